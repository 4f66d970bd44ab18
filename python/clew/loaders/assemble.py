"""From a checkpoint's tensors to weights in classic layout, by a table of names and views."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import memory
from ..errors import LoadError
from .safetensors import TensorStore

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Where one weight comes from.

    `name` is the checkpoint's name without its prefix, `shape` what the file must hold, `view` what makes the classic
    layout of it (a view, except where the file stores another number). An optional one may be absent.
    """

    weight: str
    name: str
    shape: tuple[int, ...]
    view: Callable[[Array], Array] = lambda array: array
    optional: bool = False


def transposed(array: Array) -> Array:
    """[out, in] -> [in, out]"""
    out: Array = array.T
    return out


def heads_in(n_heads: int, part: int = 0, parts: int = 1) -> Callable[[Array], Array]:
    """[h·parts·e, d] -> [h, d, e], the given part of each head"""

    def view(array: Array) -> Array:
        out: Array = array.reshape(n_heads, parts, -1, array.shape[1])[:, part].transpose(0, 2, 1)
        return out

    return view


def heads_in_interleaved(n_heads: int) -> Callable[[Array], Array]:
    """Rotary rows in pairs [h·e/2·2, d] -> [h, d, e] in halves (a bias: [h, e]), as every other source has them

    Owned: no stride leads from one order to the other.
    """

    def view(array: Array) -> Array:
        mixed = array.reshape(n_heads, -1, 2, *array.shape[1:]).swapaxes(1, 2)
        halves = memory.empty(mixed.shape, array.dtype)
        halves[...] = mixed
        halves.flags.writeable = False
        out: Array = halves.reshape(n_heads, -1, *array.shape[1:])
        return out.transpose(0, 2, 1) if out.ndim == 3 else out

    return view


def heads_in_columns(n_heads: int, part: int, parts: int) -> Callable[[Array], Array]:
    """[d, parts·h·e] -> [h, d, e]"""

    def view(array: Array) -> Array:
        out: Array = array.reshape(array.shape[0], parts, n_heads, -1)[:, part].transpose(1, 0, 2)
        return out

    return view


def heads_bias(n_heads: int, part: int = 0, parts: int = 1, interleaved: bool = False) -> Callable[[Array], Array]:
    """[parts·h·e], or interleaved [h·parts·e] -> [h, e]"""

    def view(array: Array) -> Array:
        out: Array = (
            array.reshape(n_heads, parts, -1)[:, part] if interleaved else array.reshape(parts, n_heads, -1)[part]
        )
        return out

    return view


def heads_out(n_heads: int) -> Callable[[Array], Array]:
    """[d, h·e] -> [h, e, d]"""

    def view(array: Array) -> Array:
        out: Array = array.reshape(array.shape[0], n_heads, -1).transpose(1, 2, 0)
        return out

    return view


def heads_out_rows(n_heads: int) -> Callable[[Array], Array]:
    """[h·e, d] -> [h, e, d]"""

    def view(array: Array) -> Array:
        out: Array = array.reshape(n_heads, -1, array.shape[1])
        return out

    return view


def plus_one(array: Array) -> Array:
    """w -> 1 + w, as Gemma's norms multiply; owned"""
    out = memory.empty(array.shape, array.dtype)
    np.add(array, 1.0, out=out)
    out.flags.writeable = False
    return out


class Names:
    """A checkpoint's tensor names with and without the prefix that differs between exports.

    Parameters
    ----------
    store
        The checkpoint.
    prefixes
        Tried in this order; the first that fits is stripped.
    renames
        Old names of a tensor -> the name in the tables.

    Raises
    ------
    LoadError
        Two tensors that have one name without their prefixes.
    """

    def __init__(self, store: TensorStore, prefixes: Sequence[str], renames: dict[str, str] | None = None) -> None:
        self.store = store
        self.prefix = ""
        self._full: dict[str, str] = {}
        for full in store.names():
            prefix = next((prefix for prefix in prefixes if full.startswith(prefix)), "")
            short = full[len(prefix) :]
            short = (renames or {}).get(short, short)
            if short in self._full:
                raise LoadError(f"{store.where}: {self._full[short]!r} and {full!r} are the same weight")
            self._full[short] = full
            if prefix and not self.prefix:
                self.prefix = prefix

    def __contains__(self, name: object) -> bool:
        return name in self._full

    def full(self, name: str) -> str:
        """The name in the file; for a missing tensor the name that it would have."""
        return self._full.get(name, name if name.startswith("lm_head.") else self.prefix + name)

    def remaining(self, used: Iterable[str]) -> list[str]:
        """Names without prefix of tensors that are not in `used`."""
        known = set(used)
        return [name for name in self._full if name not in known]


def assemble(
    names: Names, sources: Sequence[Source], dtype: DTypeLike | None, harmless: Sequence[str], notes: list[str]
) -> dict[str, Array]:
    """Weights in classic layout, all in the dtype that the store settles on.

    Parameters
    ----------
    names
        The checkpoint's names.
    sources
        The table.
    dtype
        None: the file's.
    harmless
        Patterns of names that hold no weights; what they match goes into `notes`.

    Raises
    ------
    LoadError
        Tensors that are missing, that nothing uses, or of the wrong shape: all of them, by name.
    """
    store = names.store
    where = store.where
    absent = [names.full(source.name) for source in sources if not source.optional and source.name not in names]
    missing = list(dict.fromkeys(absent))  # several weights may lie in one tensor
    remaining = names.remaining(source.name for source in sources)
    left_out = [name for name in remaining if any(re.fullmatch(pattern, name) for pattern in harmless)]
    unknown = [names.full(name) for name in remaining if name not in set(left_out)]
    if missing:
        raise LoadError(f"{where}: {len(missing)} tensors missing: {', '.join(missing)}{_instead(missing[0], unknown)}")
    sources = [source for source in sources if source.name in names]

    wrong = {}
    for source in sources:
        full = names.full(source.name)
        shape = store.info(full).shape
        if shape != source.shape:
            wrong[full] = f"{full}: {list(shape)}, expected {list(source.shape)}"
    if wrong:
        raise LoadError(f"{where}: {len(wrong)} tensors of the wrong shape: {', '.join(wrong.values())}")

    if unknown:
        raise LoadError(f"{where}: {len(unknown)} tensors that the architecture does not have: {', '.join(unknown)}")
    if left_out:
        notes.append(f"left out, no weights: {', '.join(map(names.full, left_out))}")

    store.choose_dtype((names.full(source.name) for source in sources), dtype)
    return {source.weight: source.view(store.get(names.full(source.name))) for source in sources}


def _instead(missing: str, unknown: Sequence[str]) -> str:
    """What a message about missing tensors ends with: what the file holds that nothing uses, where it holds any."""
    if not unknown:
        return ""
    longer = [name for name in unknown if name.endswith(f".{missing}")]
    near = longer or difflib.get_close_matches(missing, unknown, n=1)
    few = f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
    return f"; nothing uses {few}" + (f"; nearest to {missing}: {near[0]}" if near else "")
