"""Reading what users give a model: text, ids in every shape, embeddings."""

from __future__ import annotations

import math
import operator
import os
import tempfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, Error, ShapeError, TokenError

Array = NDArray[Any]

MOST_TOKENS = 2**31 - 1
"""Of one run; the core counts them in 32 bits."""


@dataclass
class Batch:
    """Sequences one after the other, without padding."""

    lengths: NDArray[np.int32]
    """[batch]"""
    tokens: NDArray[np.int32] | None = None
    """[Σ lengths]"""
    embeddings: Array | None = None
    """[Σ lengths, d_model]"""
    vectors: Array | None = None
    """[Σ lengths, d_in]: what a model without tokens reads"""

    @property
    def floats(self) -> Array | None:
        """Embeddings or vectors, whichever the batch holds."""
        return self.vectors if self.embeddings is None else self.embeddings

    def padded_tokens(self) -> NDArray[np.int32] | None:
        """Ids [batch, pos], -1 behind a sequence's end."""
        return None if self.tokens is None else padded(self.tokens, self.lengths)


def padded(tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """Ids of sequences [batch, pos], -1 behind each one's end; tokens [sum of lengths]."""
    real = np.arange(int(lengths.max())) < lengths[:, None]
    out = np.full(real.shape, -1, np.int32)
    out[real] = tokens
    return out


def whole(number: Any, what: str) -> int:
    """A whole number, or a ConfigError that says what came instead: True and False are none."""
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)
    except TypeError:
        raise ConfigError(f"{what} = {number!r:.80}: expected a whole number") from None


def check_counts(least: int = 1, /, **given: Any) -> None:
    """Raises ConfigError, with its name, for an argument that is no whole number from `least` and below 2³¹."""
    for name, value in given.items():
        if whole(value, name) < least:
            raise ConfigError(f"{name} = {value}: at least {least}")
        if value > MOST_TOKENS:
            raise ConfigError(f"{name} = {value}: below 2³¹")


def check_numbers(**given: Any) -> None:
    """Raises ConfigError, with its name, for an argument that is no finite number."""
    for name, value in given.items():
        try:
            finite = not isinstance(value, bool) and isinstance(value, int | float | np.number) and math.isfinite(value)
        except OverflowError:  # of an int beyond float64
            finite = False
        if not finite:
            raise ConfigError(f"{name} = {value!r:.80}: expected a finite number")


def number(value: Any, name: str, *, least: float = 0.0, above: bool = False, why: str = "") -> float:
    """A finite number of at least (or above) `least`; ConfigError otherwise."""
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        out = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} = {value!r:.60} is no number") from None
    if not math.isfinite(out) or out < least or (above and out == least):
        bound = "" if least == -math.inf else f" {'above' if above else 'at least'} {least:g}"
        raise ConfigError(f"{name} = {value!r}: must be a finite number{bound}{why}")
    return out


def check_flags(**given: Any) -> None:
    """Raises ConfigError, with its name, for an argument that is neither True nor False, NumPy's or Python's."""
    for name, value in given.items():
        if not isinstance(value, bool | np.bool_):
            said = ", whether the estimator's weights are returned" if name == "weights" else ""
            raise ConfigError(f"{name} = {value!r:.40}: True or False{said}")


def check_type(kind: type | tuple[type, ...], said: str, /, **given: Any) -> None:
    """Raises ConfigError, with its name, for an argument of another type; `said` is what was expected, in words."""
    for name, value in given.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name}: {said}, not {type(value).__name__}")


def check_choice(choices: tuple[str, ...], /, **given: Any) -> None:
    """Raises ConfigError, with its name, for an argument that is none of these words."""
    for name, value in given.items():
        if not is_word(value, choices):
            said = " or ".join([", ".join(f'"{c}"' for c in choices[:-1]), f'"{choices[-1]}"'])
            raise ConfigError(f"{name} = {value!r:.80}: {said}")


def is_word(value: Any, words: Container[str | None]) -> bool:
    """Is it one of these words? Of an array Python's `in` would ask each element."""
    return isinstance(value, str) and value in words


def is_list(value: Any) -> TypeGuard[Iterable[Any]]:
    """Can it be gone through, and is it no text, no mapping and no array without an axis?"""
    through = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return through and getattr(value, "ndim", 1) != 0


def check_path(**given: Any) -> None:
    """Raises ConfigError, with its name, for an argument that is neither a str nor a path object, or an empty str."""
    check_type((str, os.PathLike), "a path", **given)
    for name, value in given.items():
        if value == "":
            raise ConfigError(f"{name} = '': an empty path; '.' is the folder at hand")
        if "\0" in str(value):
            raise ConfigError(f"{name} = {value!r:.80} is no path")


def nearest(name: str, names: Iterable[str]) -> str:
    """What a message about a name that there is not ends with: the names that look like it, if any."""
    import difflib

    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


def check_folder(**given: Any) -> Path:
    """A folder that there is or that can be made; raises ConfigError for a file in its place, or above it."""
    check_path(**given)
    (path,) = given.values()
    folder = Path(path)
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ConfigError(f"{part} is a file, not a folder")
    return folder


def check_writable(**given: Any) -> Path:
    """A folder that can be written to, tried out and left as it was. Raises ConfigError as check_folder, OSError."""
    folder = check_folder(**given)
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for part in filter(Path.exists, missing):
            part.rmdir()
    return folder


def check_seed(seed: Any) -> int:
    """A seed of at most 64 bits, as the core and a model's files hold it; raises ConfigError."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed = {seed!r}, must be a whole number, at least 0")
    if seed >= 2**64:
        raise ConfigError(f"seed = {seed}: below 2⁶⁴")
    return int(seed)


def precision(dtype: Any, error: type[Error] = ShapeError, said: str = "a model computes in") -> np.dtype[Any]:
    """float32 or float64; for everything else the error, which names it."""
    shown = dtype
    if dtype is not None:  # which NumPy takes for float64
        with suppress(TypeError):  # no dtype at all, or none of NumPy's, such as bfloat16
            kind: np.dtype[Any] = np.dtype(dtype)
            shown = kind
            if kind in (np.float32, np.float64):
                return kind
    raise error(f"dtype {shown}: {said} float32 or float64")


def as_array(value: Any, what: str) -> Array:
    """An array, or a ShapeError where lists of different depths or lengths make none, or hold True among numbers."""
    if np.ma.is_masked(value):
        raise ShapeError(f"{what}: an array with masked values; give what is left of them, such as a.compressed()")
    if isinstance(value, list | tuple) and bool in (kinds := {*map(type, value)}) and len(kinds) > 1:
        raise ShapeError(f"{what}: True or False among numbers, for which NumPy would take it")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what} cannot be read as an array: {error}") from None


def real_numbers(value: Any, what: str) -> Array:
    """An array of real numbers in its own dtype, or a ShapeError that says what came instead."""
    array = as_array(value, what)
    if array.dtype.kind not in "fiu":
        raise ShapeError(f"{what} must be real numbers, not {array.dtype} {list(array.shape)}")
    return array


def real_array(value: Any, what: str) -> Array:
    """An array of real numbers as float64, a copy, or a ShapeError that says what came instead."""
    array = as_array(value, what)
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"{what} must be real numbers, not {array.dtype} {list(array.shape)}")
    return array.astype(np.float64)


def in_precision(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    """Numbers as dtype, contiguous, or a ConfigError that names one that is finite but beyond it."""
    try:
        with np.errstate(over="raise"):
            return np.ascontiguousarray(array, dtype)
    except FloatingPointError:
        beyond = next(x for x in array.flat if np.isfinite(x) and abs(x) > np.finfo(dtype).max)
        raise ConfigError(f"{what}: the value {beyond:g} is beyond the model's {dtype}") from None


def kept_positions(positions: Any, lengths: NDArray[np.int32]) -> Array | None:
    """Positions to keep, integers [n], from a number, a list, a slice or a mask [pos]; negative ones stay as they are.

    Raises ShapeError for what is none of these, or selects none, or lies outside the longest prompt.
    """
    if positions is None:
        return None
    longest = int(lengths.max(initial=0))
    if isinstance(positions, slice):
        if (lengths != longest).any():
            raise ShapeError(f"positions = {positions} of prompts of {lengths.tolist()} tokens: list them instead")
        where = sliced(positions, longest, "positions")
    else:
        where = np.atleast_1d(as_array(positions, "positions"))
        if where.dtype == bool:
            if where.shape != (longest,):
                raise ShapeError(f"positions: a mask {list(where.shape)} for {longest} positions")
            where = np.flatnonzero(where)
    if where.size == 0:
        raise ShapeError(f"positions = {positions!r} selects nothing")
    if where.ndim != 1 or where.dtype.kind not in "iu":
        raise ShapeError(f"positions must be a list of integers, not {where.dtype} {list(where.shape)}")
    outside = where[(where >= longest) | (where < -longest)]
    if outside.size:
        raise ShapeError(f"positions: {int(outside[0])} of a prompt of {longest} tokens")
    return where.astype(np.int32)


def sliced(which: slice, n: int, what: str) -> Array:
    """The numbers 0 … n − 1 that a slice means."""
    try:
        return np.arange(n)[which]
    except (TypeError, ValueError) as error:  # slice("a"), a step of 0
        raise ShapeError(f"{what} = {which}: {error}") from None


def selected(which: Any, n: int, what: str, there: str) -> Array:
    """The numbers 0 … n − 1 that a slice, a list or a mask means; ShapeError for another thing, which says what is
    there."""
    if isinstance(which, slice):
        return sliced(which, n, what)
    array = as_array(which, what)
    if array.size and (array.ndim != 1 or array.dtype.kind not in "iub"):
        raise ShapeError(f"{what}: a slice, a list of integers or a mask, not {array.dtype} {list(array.shape)}")
    try:
        return np.arange(n)[array if array.size else []]
    except IndexError as error:
        raise ShapeError(f"{what}: {error}; {there}") from None


def _id_array(value: Any, what: str) -> Array:
    """An integer array, or an error that says what came instead."""
    array = as_array(value, what)
    if array.size == 0 and array.ndim == 1:
        raise TokenError(f"{what} is empty")
    if array.dtype == object and array.ndim == 0:  # a generator, a dict, a path, …
        said = "; give what it holds under 'input_ids'" if isinstance(value, Mapping) and "input_ids" in value else ""
        raise ShapeError(f"{what}: a text, token ids (integers) or a list of either, not {type(value).__name__}{said}")
    if array.dtype == object and all(isinstance(i, int) for i in array.flat):
        beyond = next(i for i in array.flat if not 0 <= i < 2**63)
        raise TokenError(f"{what}: token {beyond} is outside the vocabulary of every model")
    if array.dtype.kind not in "iu":
        if isinstance(value, Mapping):
            raise ShapeError(f"{what}: a text or token ids, not a {type(value).__name__}: a run's are its .tokens")
        raise ShapeError(f"{what}: token ids must be integers, not {array.dtype} {list(array.shape)}")
    return array


def _check_count(count: int) -> None:
    """Refuses what one run cannot count."""
    if count > MOST_TOKENS:
        raise TokenError(f"{count} tokens: one run takes at most {MOST_TOKENS}")


def token_batch(tokens: Any, d_vocab: int, encode: Callable[[str], list[int]]) -> Batch:
    """Tokens of any accepted form as one packed batch.

    Raises
    ------
    TokenError
        An empty prompt or batch; an id outside the vocabulary (which, where).
    ShapeError
        Wrong rank or dtype.
    """
    if isinstance(tokens, (str, bytes)):
        tokens = [tokens]
    if isinstance(tokens, Sequence) and any(isinstance(t, (str, bytes)) for t in tokens):
        strange = next((t for t in tokens if not isinstance(t, str)), None)
        if strange is not None:
            raise ShapeError(f"a list of texts holds {type(strange).__name__}: {strange!r}")
        rows = [np.asarray(encode(t), np.int64) for t in tokens]
    elif isinstance(tokens, Sequence) and len(tokens) and all(as_array(t, "a prompt").ndim == 1 for t in tokens):
        rows = [_id_array(t, f"prompt {i}") for i, t in enumerate(tokens)]
    else:
        array = _id_array(tokens, "the prompt")
        if array.ndim not in (1, 2):
            raise ShapeError(f"token ids must be [pos] or [batch, pos], not {list(array.shape)}")
        if array.size == 0:
            raise TokenError(f"empty batch of shape {list(array.shape)}: there is no prompt to run")
        _check_count(array.size)
        rows = list(np.atleast_2d(array))
    if not rows:
        raise TokenError("empty batch: there is no prompt to run")
    _check_count(sum(map(len, rows)))
    lengths = np.array([len(r) for r in rows], np.int32)
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise TokenError(f"prompt {int(empty[0])} is empty")
    ids = np.concatenate(rows)
    outside = np.flatnonzero((ids < 0) | (ids >= d_vocab))
    if outside.size:
        at = int(outside[0])
        ends = np.cumsum(lengths)
        seq = int(np.searchsorted(ends, at, side="right"))
        pos = at - int(ends[seq] - lengths[seq])
        raise TokenError(
            f"token {int(ids[at])} at position {pos} of prompt {seq}: the vocabulary has ids 0 to {d_vocab - 1}"
        )
    return Batch(lengths, np.ascontiguousarray(ids, np.int32))


def embedding_batch(embeddings: Any, d_model: int, dtype: np.dtype[Any]) -> Batch:
    """Embeddings [batch, pos, d_model], [pos, d_model] or a ragged list of [pos, d_model] as one packed batch.

    Raises ShapeError naming both shapes.
    """
    lengths, packed = _packed_rows(embeddings, "embeddings", d_model, dtype)
    return Batch(lengths, None, packed)


def vector_batch(vectors: Any, d_in: int, dtype: np.dtype[Any]) -> Batch:
    """Input vectors [batch, pos, d_in], [pos, d_in] or a ragged list of [pos, d_in] as one packed batch.

    Raises ShapeError naming both shapes.
    """
    if isinstance(vectors, (str, bytes)):
        raise ShapeError(f"this model reads vectors of {d_in} values, not text")
    lengths, packed = _packed_rows(vectors, "input vectors", d_in, dtype)
    return Batch(lengths, vectors=packed)


def _packed_rows(values: Any, what: str, width: int, dtype: np.dtype[Any]) -> tuple[NDArray[np.int32], Array]:
    """Lengths [batch] and the rows [Σ lengths, width] one after the other."""
    listed = isinstance(values, Sequence) and len(values) > 0
    if listed and all(as_array(e, what).ndim == 2 for e in values):
        rows = [np.asarray(e) for e in values]
    else:
        array = as_array(values, what)
        if array.ndim not in (2, 3):
            raise ShapeError(f"{what} {list(array.shape)}: expected [batch, pos, {width}] or [pos, {width}]")
        _check_count(math.prod(array.shape[:-1]))
        rows = list(array if array.ndim == 3 else array[None])
    for i, row in enumerate(rows):
        if row.shape[1] != width:
            raise ShapeError(f"{what} of prompt {i} have shape {list(row.shape)}, expected [pos, {width}]")
        if row.dtype.kind not in "fiu":
            raise ShapeError(f"{what} must be real numbers, not {row.dtype}")
        if row.shape[0] == 0:
            raise TokenError(f"prompt {i} is empty")
    if not rows:
        raise TokenError("empty batch: there is no prompt to run")
    _check_count(sum(map(len, rows)))
    lengths = np.array([len(r) for r in rows], np.int32)
    return lengths, in_precision(np.concatenate(rows), dtype, what)
