"""The exceptions that clew raises, all subclasses of :class:`clew.Error`."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Anything that clew refuses; every other exception here is one of these."""


class ShapeError(Error, ValueError):
    """An array of the wrong rank, shape or dtype; the message names what was expected and what came."""


class SiteError(Error, KeyError):
    """A capture site that does not exist or that this model does not have; the message says the nearest names."""

    def __str__(self) -> str:  # KeyError would show the message quoted
        return Exception.__str__(self)


class LoadError(Error, OSError):
    """A file that cannot be read as a model or a tokenizer; the message names the file, and the byte where known."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class MissingPackageError(LoadError):
    """A file that needs a package which is not installed; the message says how to install it."""


class UnsupportedModelError(Error, NotImplementedError):
    """A model that the engine would compute wrongly; the message names the architecture or the key."""


class TokenError(Error, ValueError):
    """A token that is not in the vocabulary, a prompt that is empty or too long."""


class ConfigError(Error, ValueError):
    """Settings that contradict each other or the model; the message names them."""


class TrainingError(Error, ArithmeticError):
    """Training came to a loss or a gradient that is NaN or infinite; the message names the step.

    The model's weights and the optimiser are those before that step.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
        """The step that could not be done; the first is 1."""

    def __reduce__(self) -> Any:  # an exception's own would call it with the message alone
        return type(self), (*self.args, self.step), self.__dict__


def install(extra: str) -> str:
    """What messages say about an extra that is not installed; clew is on no package index.

    >>> install("text")
    "pip install '.[text]' in the checkout"
    """
    return f"pip install '.[{extra}]' in the checkout"
