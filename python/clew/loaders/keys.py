"""Reading a configuration file: typed keys, refusals by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ACTIVATION_ALIASES, ACTIVATIONS, ModelConfig
from ..errors import LoadError, UnsupportedModelError

MAX_SIZE = 1 << 24
"""No dimension of a model is larger; a damaged file must not make us allocate."""


class Keys:
    """The keys of a `config.json`, each read with the type it must have.

    Parameters
    ----------
    raw
        The parsed file.
    where
        Its name, for messages.
    defaults
        What absent keys hold; a method's own default comes after it.

    Raises
    ------
    LoadError
        (every method) A key that is needed and absent, or of another type; names the file and the key.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.raw = dict(raw)
        self.where = where
        self.defaults = dict(defaults or {})
        self.used: set[str] = set()

    def __contains__(self, key: object) -> bool:
        return key in self.raw

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; `default` only where the key is absent (null is a value)."""
        self.used.add(key)
        return self.raw.get(key, self.defaults.get(key, default))

    def wrong(self, key: str, expected: str) -> LoadError:
        """An error that says what the key holds and what it should."""
        return LoadError(f"{self.where}: {key} = {self.raw.get(key)!r}, expected {expected}")

    def size(self, key: str, default: int | None = None, most: int = MAX_SIZE) -> int:
        """A positive integer; without a default the key is needed."""
        value = self._needed(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.wrong(key, f"an integer from 1 to {most}")
        return value

    def _needed(self, key: str, default: Any) -> Any:
        value = self.get(key, default)
        if value is None and key not in self.raw:
            raise LoadError(f"{self.where}: {key} is missing")
        return value

    def size_or(self, key: str, default: int) -> int:
        """A positive integer; `default` where null or absent."""
        return default if self.get(key) is None else self.size(key)

    def layers(self, key: str) -> int:
        """The number of layers."""
        return self.size(key, most=10_000)

    def number(self, key: str, default: float | None = None, positive: bool = True) -> float:
        """A finite number; without a default the key is needed."""
        value = self._needed(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        value = float(value) if abs(value) < 1e300 else float("inf")
        if not abs(value) < 1e300 or (positive and value <= 0):
            raise self.wrong(key, "a positive number" if positive else "a finite number")
        return value

    def number_or_none(self, key: str) -> float | None:
        """A positive number; None where null or absent."""
        return None if self.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; null counts as false."""
        value = self.get(key, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def activation(self, key: str, default: str | None = None) -> str:
        """An activation function that the engine has.

        Raises
        ------
        UnsupportedModelError
            Another one.
        """
        value = self.get(key, default)
        name = ACTIVATION_ALIASES.get(value, value) if isinstance(value, str) else None
        if name not in ACTIVATIONS:
            supported = sorted({*ACTIVATIONS, *ACTIVATION_ALIASES})
            raise UnsupportedModelError(f"{self.where}: {key} = {value!r}; supported: {', '.join(supported)}")
        return name

    def refuse(self, key: str, *neutral: Any, why: str = "") -> None:
        """Refuse a key that would change the results, unless absent, null, or one of the `neutral` values.

        Raises
        ------
        UnsupportedModelError
            Names the key and its value.
        """
        value = self.get(key)
        if value is None or any(type(value) is type(other) and value == other for other in neutral):
            return
        if isinstance(value, (int, float)) and any(
            isinstance(other, (int, float)) and not isinstance(other, bool) and value == other for other in neutral
        ):
            return
        raise UnsupportedModelError(f"{self.where}: {key} = {value!r} is not supported{why and ': ' + why}")

    def tokens(self) -> dict[str, Any]:
        """Beginning- and end-of-sequence ids as ModelConfig holds them."""
        bos, eos = self.get("bos_token_id"), self.get("eos_token_id")
        return {
            "bos_token_id": bos if type(bos) is int else None,
            "eos_token_id": tuple(eos) if isinstance(eos, list) else eos if type(eos) is int else None,
        }

    def extra(self) -> dict[str, Any]:
        """The keys that nothing asked for."""
        return {key: value for key, value in self.raw.items() if key not in self.used}


def build(where: str, fields: Mapping[str, Any]) -> ModelConfig:
    """A ModelConfig; sizes that contradict each other become a LoadError that names the file."""
    try:
        return ModelConfig(**fields)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise LoadError(f"{where}: {error}") from error
