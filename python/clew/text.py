"""A model's text: its tokenizer, and what goes through it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import ModelConfig
from .errors import MissingPackageError, ShapeError, TokenError
from .inputs import as_array

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Array = NDArray[Any]


class TextAccess:
    """What a :class:`clew.Model` does with text."""

    config: ModelConfig
    _make_tokenizer: Callable[[], Tokenizer] | None

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the model's files hold, loaded on first use; None where there is none.

        Raises LoadError where its files are damaged or need a package that is not installed.
        """
        return None if self._make_tokenizer is None else self._make_tokenizer()

    @functools.cached_property
    def _labeller(self) -> Tokenizer | None:
        """The tokenizer for labels and texts beside ids: None, too, where its package is not installed."""
        try:
            return self.tokenizer
        except MissingPackageError:
            return None

    def _needs_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            mazes = "mazes" in self.config.extra or self.config.model_name.startswith("maze-")
            raise TokenError(
                "this model reads mazes, not text: clew.mazes.tokenizer_of(model) encodes them"
                if mazes
                else "this model has no tokenizer: give token ids instead of text"
            )
        return self.tokenizer

    def _encode(self, text: str, bos: bool | None = None) -> list[int]:
        tokenizer = self._needs_tokenizer()
        if not isinstance(text, str):
            raise ShapeError(f"a text is a str, not {type(text).__name__}: {text!r}")
        if bos is None:
            return list(tokenizer.encode(text))
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        if bos:
            if tokenizer.bos_id is None:
                raise TokenError("this tokenizer has no beginning-of-sequence token")
            ids.insert(0, tokenizer.bos_id)
        return ids

    def to_tokens(self, text: str | Iterable[str], bos: bool | None = None) -> Array | list[list[int]]:
        """Token ids, int64 [batch, pos]; a list of lists for texts of different lengths.

        bos: begin with the beginning-of-sequence token; None: as the tokenizer's own configuration says.
        Raises TokenError without a tokenizer.
        """
        if not isinstance(text, Iterable) or isinstance(text, bytes):
            raise ShapeError(f"to_tokens: a text or a list of texts, not {type(text).__name__}")
        rows = [self._encode(t, bos) for t in ([text] if isinstance(text, str) else text)]
        return np.array(rows, np.int64) if len({len(r) for r in rows}) == 1 else rows

    def to_string(self, ids: ArrayLike) -> str:
        """The text of ids [pos], or [1, pos] as a run holds them; padding (-1) is left out."""
        tokenizer = self._needs_tokenizer()
        array = as_array(ids, "to_string: ids")
        if array.ndim > 2 or (array.ndim == 2 and len(array) != 1) or (array.size and array.dtype.kind not in "iu"):
            raise ShapeError(f"to_string: integer ids [pos] of one text, not {array.dtype} {list(array.shape)}")
        return tokenizer.decode([int(i) for i in array.ravel() if i != -1])

    def to_str_tokens(self, text: str | ArrayLike) -> list[str]:
        """The text of each token of a string or of ids [pos]; of one id a list of one."""
        tokenizer = self._needs_tokenizer()
        if isinstance(text, str):
            ids = self._encode(text)
        else:
            array = np.atleast_1d(as_array(text, "to_str_tokens: ids"))
            if array.size == 0 and array.ndim == 1:
                return []
            if array.ndim == 2 and array.shape[0] == 1:
                array = array[0]
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ShapeError(f"to_str_tokens: text or integer ids [pos], not {array.dtype} {list(array.shape)}")
            ids = [int(i) for i in array]
        return list(tokenizer.to_str_tokens(ids))

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token; TokenError, with the split, when it is not."""
        if not isinstance(text, str):
            raise ShapeError(f"to_single_token: a text, not {type(text).__name__}: {text!r}")
        return int(self._needs_tokenizer().single_token(text))
