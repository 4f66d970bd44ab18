"""What every estimator accepts: examples, numbers and matrices, checked and copied to where the engine reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import precision, real_numbers

Array = NDArray[Any]


def common_dtype(*arrays: Array) -> np.dtype[Any]:
    """float32 where every array is float32 or float16, else float64."""
    small = all(a.dtype.kind == "f" and a.dtype.itemsize <= 4 for a in arrays)
    return np.dtype(np.float32 if small else np.float64)


def check_finite(array: Array, name: str, axes: Sequence[str]) -> None:
    """ConfigError that says where the first NaN or infinity of a float array is."""
    _refuse(_core.first_bad(array), array, name, axes)


def _refuse(at: int, array: Array, name: str, axes: Sequence[str]) -> None:
    """ConfigError unless `at`, the flat index of a value that is not finite, is -1."""
    if at < 0:
        return
    where = np.unravel_index(at, array.shape)
    value = "NaN" if np.isnan(array[where]) else "infinite"
    place = ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, where, strict=True))
    raise ConfigError(f"{name} is {value} at {place}: estimates of it would be NaN")


def in_slab(array: Array, dtype: np.dtype[Any], name: str, axes: Sequence[str]) -> Array:
    """A copy of this dtype in memory that products may read behind, checked for finite values."""
    out = _core.empty(array.shape, dtype)
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:  # in one pass
        _refuse(_core.copy_finite(out, array), array, name, axes)
        return out
    with np.errstate(over="ignore"):
        out[...] = array
    check_finite(out, name, axes)
    return out


@dataclass(frozen=True)
class Examples:
    """Sequences of examples, contiguous and finite, of one dtype."""

    x: Array
    """Inputs [batch, n, d]."""
    y: Array
    """Outputs [batch, n]."""

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.x.dtype

    @property
    def d(self) -> int:
        return int(self.x.shape[2])


def examples(x: ArrayLike, y: ArrayLike) -> Examples:
    """Checks X [batch, n, d] and y [batch, n]; their dtype is that of the computation (`common_dtype`).

    Raises ShapeError for other shapes and for what is no real number, ConfigError for NaN and infinity.
    """
    a, b = real_numbers(x, "X"), real_numbers(y, "y")
    if a.ndim != 3 or b.ndim != 2 or a.shape[:2] != b.shape:
        one = "; one prompt is a batch of one: X[None], y[None]" if a.ndim == 2 and b.ndim == 1 else ""
        raise ShapeError(
            f"X {list(a.shape)} and y {list(b.shape)}: X must be [batch, n, d] and y [batch, n] of the same batch and n"
            f"{one}"
        )
    if 0 in a.shape:
        empty = ["batch", "n", "d"][a.shape.index(0)]
        raise ShapeError(f"X {list(a.shape)}: {empty} = 0, there is nothing to learn from")
    dtype = common_dtype(a, b)
    return Examples(in_slab(a, dtype, "X", ("sequence", "row", "feature")), in_slab(b, dtype, "y", ("sequence", "row")))


def query_array(value: ArrayLike, given: Examples) -> Array:
    """Checks queries [batch, m, d] against the examples."""
    q = real_numbers(value, "Xq")
    batch, _, d = given.x.shape
    if q.ndim != 3 or q.shape[0] != batch or q.shape[2] != d:
        raise ShapeError(f"Xq {list(q.shape)} with X {list(given.x.shape)}: Xq must be [{batch}, m, {d}]")
    return in_slab(q, given.dtype, "Xq", ("sequence", "row", "feature"))


def count(value: Any, name: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """A whole number from `least` to `most`; ConfigError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} = {value!r}: must be a whole number, at least {least}")
    if value > most:
        raise ConfigError(f"{name} = {value}: at most {most}")
    return int(value)


def check_range(dtype: np.dtype[Any], least: float = 0.0, /, **given: Any) -> None:
    """ConfigError, with its name, for a parameter that the dtype of the data has not, or only below its normal numbers.

    Of several values the largest counts. `least`: a parameter above 0 is at least that.
    """
    info = np.finfo(dtype)
    low = max(float(info.tiny), least)
    for name, value in given.items():
        values = np.asarray(value, np.float64).ravel()
        most = values[np.abs(values).argmax()] if values.size else 0.0
        if abs(most) > info.max or 0 < abs(most) < low:
            raise ConfigError(
                f"{name} = {most:g}: of X and y in {dtype} it is 0 or lies in {low:.2g} to {info.max:.2g}"
            )


def check_room(what: str, *shape: int) -> None:
    """MemoryError, with the bytes, for float64 arrays that no process can hold; smaller ones are NumPy's to refuse."""
    if (size := 8 * math.prod(shape)) >= 2**47:
        raise MemoryError(f"{what} {list(shape)}: {size} bytes in float64, more than a process can address")


def float_dtype(value: Any) -> np.dtype[Any]:
    """float32 or float64; ConfigError otherwise."""
    return precision(value, ConfigError, "must be")


def finite_array(value: ArrayLike, name: str) -> Array:
    """As a float64 array of any shape; ShapeError for what is no real number, ConfigError for NaN and infinity."""
    array = real_numbers(value, name).astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ConfigError(f"{name}{bad[0].tolist() or ''} is {array[tuple(bad[0])]}")
    return array


def per_step(value: Any, steps: int, name: str) -> Array:
    """One number for each step [steps], float64, from one for all or one for each."""
    array = real_numbers(value, name).astype(np.float64)
    if array.ndim > 1 or (array.ndim == 1 and array.shape != (steps,)):
        raise ShapeError(f"{name} {list(array.shape)}: one number, or one for each of {steps} steps")
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} = {value!r}: must be finite")
    return np.ascontiguousarray(np.broadcast_to(array, (steps,)))


def matrix(value: ArrayLike, d: int, name: str) -> Array:
    """A finite float64 [d, d] from a number (times the identity), a diagonal [d] or a matrix [d, d]."""
    array = real_numbers(value, name).astype(np.float64)
    if array.ndim > 2 or any(size != d for size in array.shape):
        raise ShapeError(f"{name} {list(array.shape)} with d = {d}: a number, a diagonal [{d}] or a matrix [{d}, {d}]")
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} holds NaN or infinity")
    return array if array.ndim == 2 else np.diag(np.broadcast_to(array, (d,)))


def covariance_factor(value: ArrayLike, d: int, name: str) -> Array:
    """The lower Cholesky factor, float64 [d, d], of a covariance: a variance, variances [d] or a matrix [d, d]."""
    full = matrix(value, d, name)
    if not np.allclose(full, full.T, rtol=1e-8, atol=1e-12 * float(np.abs(full).max())):
        raise ConfigError(f"{name} is not symmetric")
    try:
        return np.linalg.cholesky(full)
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(full)[0])
        raise ConfigError(f"{name} is not positive definite: its smallest eigenvalue is {least:.3g}") from None
