"""How results show themselves: names, shapes and small values on a few lines, never whole arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_WIDTH = 110
_MOST = 4  # entries of a list or a mapping that are written out


def brief(value: Any) -> str:
    """A value in a few words: an array's shape, a result's kind, the first entries of what is long.

    >>> brief(np.zeros((2, 3))), brief({"a": np.ones(5), "b": 2}), brief(range(9))
    ('[2, 3]', "{'a': [5], 'b': 2}", 'range(0, 9)')
    >>> brief([1, 2, 3, 4, 5, 6])
    '[1, 2, 3, 4, … 6 in all]'
    """
    if isinstance(value, np.ndarray):
        return str(list(value.shape)) if value.ndim else repr(value.item())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    if isinstance(value, Mapping):
        return "{" + _some([f"{key!r}: {brief(item)}" for key, item in value.items()]) + "}"
    if isinstance(value, tuple | list):
        inside = _some([brief(item) for item in value])
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _some(parts: list[str]) -> str:
    more = [] if len(parts) <= _MOST else [f"… {len(parts)} in all"]
    return ", ".join([*parts[:_MOST], *more])


def listed(words: Sequence[str], most: int = 12) -> str:
    """Words counted and listed, the first of many.

    >>> listed(["one", "two", "three"], most=2), listed([])
    ('3: one, two, …', '0')
    """
    more = ["…"] if len(words) > most else []
    return f"{len(words)}: {', '.join([*words[:most], *more])}" if words else "0"


class Brief:
    """Base of result dataclasses: `repr` gives :func:`brief` of every field, unless the class has a repr of its own.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Found(Brief):
    ...     loss: np.ndarray
    ...     n: int
    >>> Found(np.zeros((3, 4)), 7)
    Found(loss [3, 4], n = 7)
    """

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in cls.__dict__:  # else the dataclass would write one that shows arrays whole
            cls.__repr__ = Brief.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        parts = []
        for of in dataclasses.fields(self):  # type: ignore[arg-type]
            if of.repr:
                value = getattr(self, of.name)
                array = isinstance(value, np.ndarray) and value.ndim
                parts.append(f"{of.name}{' ' if array else ' = '}{brief(value)}")
        lines = [f"{type(self).__name__}("]
        for i, part in enumerate(parts):
            piece = part + (", " if i + 1 < len(parts) else ")")
            if len(lines[-1]) + len(piece) > _WIDTH and lines[-1].strip():
                lines.append("  ")
            lines[-1] += piece
        end = "; table() prints it" if callable(getattr(self, "table", None)) else ""
        return "\n".join(line.rstrip() for line in lines) + end


__all__ = ["Brief", "brief", "listed"]
