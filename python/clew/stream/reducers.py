"""What stays of values that stream by: sums that merge, in float64.

A reducer takes rows [n, d] (one for each token) by `update`, another reducer of its kind by `merge`, and gives what it
was made for as attributes. Sums are kept about their means (Chan, Golub & LeVeque 1979), so that values far from zero
lose nothing. How rows were cut into batches changes results by rounding only; histograms and top-k do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_counts, check_numbers, whole
from ..memory import copy as slab_copy
from ..memory import empty

Array = NDArray[Any]
R = TypeVar("R", bound="Reducer")
SQUARE_ROWS = 128
"""Of a block of a square: small enough that little is computed twice, large enough for a product."""
NOWHERE = np.iinfo(np.int64).max
"""Where a place of TopK is that holds no row yet."""


class Reducer:
    """Base of the reducers: rows counted, their number of values checked. Its kinds say what they take and give."""

    inputs = 1
    """Arrays of rows that `update` takes."""

    def __init__(self) -> None:
        self.n = 0
        """Rows seen."""
        self.width: tuple[int, ...] = ()
        """Values in a row of each input; empty before the first rows."""

    def fresh(self: R) -> R:
        """A reducer with the same settings that has seen nothing."""
        if self.n:
            raise ConfigError(
                f"{type(self).__name__} has seen {self.n} rows already: a fresh one is made from an unused"
            )
        return copy.deepcopy(self)

    def update(self, *rows: ArrayLike, where: Array | None = None) -> None:
        """Takes rows [n, d], one array for each input; where: int64 [n, 2], text and position of each.

        Bools count as 0 and 1. A call that Ctrl-C stops has taken none of them.

        Raises ShapeError where they are no matrices of equal length, or of another width than the rows before.
        """
        arrays = [as_array(r, f"{type(self).__name__}: rows") for r in rows]
        name = type(self).__name__
        if len(arrays) != self.inputs:
            raise ShapeError(f"{name} takes {self.inputs} array{'s' * (self.inputs > 1)} of rows, not {len(arrays)}")
        if any(a.ndim != 2 or a.dtype.kind not in "fiub" for a in arrays) or len({len(a) for a in arrays}) != 1:
            shapes = " and ".join(f"{a.dtype} {list(a.shape)}" for a in arrays)
            raise ShapeError(f"{name} takes real rows [n, d] of equal number, not {shapes}")
        width = tuple(a.shape[1] for a in arrays)
        if self.width and width != self.width:
            raise ShapeError(f"{name}: rows of {width} values after rows of {self.width}")
        if not len(arrays[0]):
            return
        if where is None:
            where = np.column_stack([np.zeros(len(arrays[0]), np.int64), np.arange(self.n, self.n + len(arrays[0]))])
        where = as_array(where, f"{name}: where")
        if where.dtype.kind not in "iu" or where.shape != (len(arrays[0]), 2):
            raise ShapeError(f"{name}: where must be int64 [n = {len(arrays[0])}, 2], not {where.dtype} "
                             f"{list(where.shape)}")  # fmt: skip
        kinds = [a.dtype if a.dtype in (np.float32, np.float64) else np.float64 for a in arrays]
        arrays = [np.require(a, kind, ["C", "A"]) for a, kind in zip(arrays, kinds, strict=True)]
        with self._whole_or_not():
            first = not self.n
            self.width = width
            self._take(arrays, np.require(where, np.int64, ["C", "A"]), first)
            self.n += len(arrays[0])

    def merge(self: R, other: R) -> None:
        """Takes what another reducer of this kind has seen. Raises ConfigError for other kinds or settings."""
        if type(self) is not type(other) or self._settings() != other._settings():
            raise ConfigError(f"{self!r} cannot take what {other!r} has seen")
        if not other.n:
            return
        if not self.n:
            self.__dict__.update(other.__dict__)  # neither writes into arrays that it holds: see _whole_or_not
            return
        if self.width != other.width:
            raise ShapeError(f"{type(self).__name__}: rows of {self.width} values merged with rows of {other.width}")
        with self._whole_or_not():
            self._join(other)
            self.n += other.n

    @contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        """What is done inside, or the state before it: an exception, Ctrl-C for one, leaves no half of it behind.

        It holds because `_take` and `_join` put new arrays in the place of old ones and write into none of these.
        """
        before = self.__dict__.copy()
        try:
            yield
        except BaseException:
            self.__dict__.update(before)
            raise

    def _settings(self) -> tuple[Any, ...]:
        return ()

    def _take(self, rows: list[Array], where: Array, first: bool) -> None:
        raise NotImplementedError

    def _join(self, other: Any) -> None:
        raise NotImplementedError

    def _needs(self, least: int = 1) -> None:
        if self.n < least:
            raise ConfigError(f"{type(self).__name__} has seen {self.n} rows: it needs {least}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._settings()))}) of {self.n} rows"


def _product(x: Array, y: Array) -> Array:
    """xᵀ y by the engine: BLAS's threads would go on spinning, on cores that the next run needs."""
    out = empty((x.shape[1], y.shape[1]), np.float64)
    _core.product(out, x.T, y)
    return out


def _square(x: Array) -> Array:
    """xᵀ x as far as it is needed: blocks of rows from the diagonal on, zeros before them; `_whole` is its mirror."""
    d = x.shape[1]
    out = empty((d, d), np.float64)
    for i in range(0, d, SQUARE_ROWS):
        j = min(i + SQUARE_ROWS, d)
        _core.product(out[i:j, i:], x.T[i:j], x[:, i:])
        out[j:, i:j] = 0
    return out


def _whole(square: Array) -> Array:
    """A symmetric matrix of what stands on and above its diagonal."""
    return np.asarray(np.triu(square) + np.triu(square, 1).T)


def _apart(here: list[Array], there: list[Array]) -> list[Array]:
    """Distances [d] of means [2, d]."""
    return [(b[0] - a[0]) + (b[1] - a[1]) for a, b in zip(here, there, strict=True)]


def _moved(mean: Array, shift: Array) -> Array:
    """A mean [2, d] and a shift [d]: their sum, and what rounding leaves of it (Knuth's two-sum)."""
    by = mean[1] + shift
    to = mean[0] + by
    back = to - mean[0]
    return np.stack([to, (mean[0] - (to - back)) + (by - back)])


class _Centred(Reducer):
    """Means and sums of products about them.

    A mean is kept as two numbers [2, d], what rounding leaves of it being the second: the distance of two means that
    are far from zero would have few digits otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._mean: list[Array] = []
        self._sums: list[Array] = []

    def _products(self, centred: list[Array]) -> list[Array]:
        raise NotImplementedError

    def _take(self, rows: list[Array], where: Array, first: bool) -> None:
        n = len(rows[0])
        weight = np.sqrt(self.n * (n / (self.n + n)))
        centred, means = [empty((n + 1, d), np.float64) for d in self.width], [np.empty((2, d)) for d in self.width]
        for r, out, mean in zip(rows, centred, means, strict=True):
            _core.centre(out, mean, r)
        shift = [np.zeros(d) for d in self.width] if first else _apart(self._mean, means)
        for out, s in zip(centred, shift, strict=True):
            out[n] = weight * s  # what the means' distance adds is that of one row more: no matrix has to be added
        sums = self._products(centred)
        if first:
            self._mean, self._sums = means, sums
            return
        for total, more in zip(self._sums, sums, strict=True):
            more += total
        self._sums = sums
        self._mean = [_moved(m, s * (n / (self.n + n))) for m, s in zip(self._mean, shift, strict=True)]

    def _join(self, other: Any) -> None:
        total = self.n + other.n
        shift = _apart(self._mean, other._mean)
        beside = self._products([slab_copy(s[None]) for s in shift])
        self._sums = [
            a + b + s * (self.n * other.n / total) for a, b, s in zip(self._sums, other._sums, beside, strict=True)
        ]
        self._mean = [_moved(m, s * (other.n / total)) for m, s in zip(self._mean, shift, strict=True)]


class Mean(_Centred):
    """Mean and variance of every column.

    >>> mean = Mean()
    >>> mean.update([[1.0, 2.0], [3.0, 2.0]])
    >>> mean.mean, mean.variance
    (array([2., 2.]), array([1., 0.]))
    """

    def _products(self, centred: list[Array]) -> list[Array]:
        return [np.einsum("nd,nd->d", centred[0], centred[0])]

    @property
    def mean(self) -> Array:
        """[d], float64. Raises ConfigError before the first row."""
        self._needs()
        return np.array(self._mean[0][0])

    @property
    def variance(self) -> Array:
        """[d], over n. Raises ConfigError before the first row."""
        self._needs()
        return np.asarray(self._sums[0] / self.n)


class Covariance(_Centred):
    """Mean and covariance of the columns.

    >>> both = Covariance()
    >>> both.update([[0.0, 0.0], [2.0, 4.0]])
    >>> both.covariance
    array([[1., 2.],
           [2., 4.]])
    """

    def _products(self, centred: list[Array]) -> list[Array]:
        return [_square(centred[0])]

    @property
    def mean(self) -> Array:
        """[d], float64. Raises ConfigError before the first row."""
        self._needs()
        return np.array(self._mean[0][0])

    @property
    def covariance(self) -> Array:
        """[d, d], over n. Raises ConfigError before the first row."""
        self._needs()
        return _whole(self._sums[0] / self.n)


class Ridge(_Centred):
    """Normal equations of ridge regression with intercept: min Σ‖y − x W − b‖² + lam ‖W‖² over two arrays of rows.

    Raises ConfigError for a negative or non-finite lam.

    >>> fit = Ridge(lam=0.0)
    >>> fit.update([[0.0], [1.0], [2.0]], [[1.0], [3.0], [5.0]])
    >>> weights, bias = fit.solve()
    >>> weights.round(9), bias.round(9)
    (array([[2.]]), array([1.]))
    """

    inputs = 2

    def __init__(self, lam: float = 1.0) -> None:
        super().__init__()
        check_numbers(lam=lam)
        if lam < 0:
            raise ConfigError(f"lam = {lam}: a number from 0")
        self.lam = float(lam)

    def _settings(self) -> tuple[Any, ...]:
        return (self.lam,)

    def _products(self, centred: list[Array]) -> list[Array]:
        x, y = centred
        return [_square(x), _product(x, y), np.einsum("nd,nd->d", y, y)]

    def solve(self, lam: float | None = None) -> tuple[Array, Array]:
        """Weights [d, m] and bias [m]; of minimum norm where lam is 0 and the columns depend on each other.

        Raises ConfigError before the first row, and for rows that held NaN, infinities or values too large to square.
        """
        self._needs()
        lam = self.lam if lam is None else lam
        check_numbers(lam=lam)
        if lam < 0:
            raise ConfigError(f"lam = {lam}: a number from 0")
        xx, xy = _whole(self._sums[0]), self._sums[1]
        for name, of in zip("xy", self._sums[::2], strict=True):
            bad = np.flatnonzero(~np.isfinite(of if of.ndim == 1 else of.diagonal()))
            if bad.size:
                raise ConfigError(f"Ridge: column {bad[0]} of {name} held NaN, infinity or values too large to square: "
                                  f"there is no fit ({bad.size} such column{'s' * (bad.size > 1)})")  # fmt: skip
        weights = None
        if lam > 0:
            with suppress(np.linalg.LinAlgError):  # a lam that rounds away beside columns that depend on each other
                weights = np.linalg.solve(xx + lam * np.eye(len(xx)), xy)
        if weights is None:
            weights = np.linalg.lstsq(xx, xy, rcond=None)[0]
        return weights, self._mean[1][0] - self._mean[0][0] @ weights

    def explained(self, lam: float | None = None) -> Array:
        """Share of each output's variance that the fit explains [m]; NaN for an output that never changes."""
        weights, _ = self.solve(lam)
        xx, (xy, yy) = _whole(self._sums[0]), self._sums[1:]
        left = yy - 2 * np.einsum("dm,dm->m", weights, xy) + np.einsum("dm,dm->m", weights, xx @ weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(yy > 0, 1 - left / yy, np.nan))


class Histogram(Reducer):
    """Counts of every column in equal bins of [low, high]; the last bin holds `high` too.

    `below`, `above` and `nan` [d] count what is in none. Raises ConfigError unless low < high and bins ≥ 1, and where
    float64 cannot tell one edge from the next, or not hold high − low.

    >>> counts = Histogram(0, 1, bins=2)
    >>> counts.update([[0.1], [0.9], [1.0], [7.0]])
    >>> counts.counts, counts.above
    (array([[1, 2]]), array([1]))
    """

    def __init__(self, low: float, high: float, bins: int = 100) -> None:
        super().__init__()
        check_counts(bins=bins)
        self.bins = whole(bins, "bins")
        check_numbers(low=low, high=high)
        if low >= high:
            raise ConfigError(f"Histogram({low}, {high}, {bins}): needs low < high and one bin or more")
        with np.errstate(over="ignore", invalid="ignore"):
            self.edges = np.linspace(float(low), float(high), self.bins + 1)
        """[bins + 1]"""
        if not (self.edges[1:] > self.edges[:-1]).all():
            raise ConfigError(f"Histogram({low}, {high}, {bins}): bins of equal width have no edges in float64 there")
        self._all = np.zeros((0, self.bins + 3), np.int64)

    def _settings(self) -> tuple[Any, ...]:
        return (float(self.edges[0]), float(self.edges[-1]), self.bins)

    def _take(self, rows: list[Array], where: Array, first: bool) -> None:
        found = np.zeros((self.width[0], self.bins + 3), np.int64) if first else self._all.copy()
        _core.histogram(found, rows[0], self.edges)
        self._all = found

    def _join(self, other: Any) -> None:
        self._all = self._all + other._all

    @property
    def counts(self) -> Array:
        """[d, bins]"""
        return np.array(self._all[:, 1 : self.bins + 1])

    @property
    def below(self) -> Array:
        """[d], smaller than every bin."""
        return np.array(self._all[:, 0])

    @property
    def above(self) -> Array:
        """[d], greater than every bin."""
        return np.array(self._all[:, self.bins + 1])

    @property
    def nan(self) -> Array:
        """[d]"""
        return np.array(self._all[:, self.bins + 2])


class TopK(Reducer):
    """The k greatest values of every column and where they were; of equal ones the earliest. NaN is passed over.

    Raises ConfigError for k below 1.

    >>> top = TopK(2)
    >>> top.update([[1.0], [5.0], [3.0]])
    >>> top.values, top.where[0].tolist()
    (array([[5., 3.]]), [[0, 1], [0, 2]])
    """

    def __init__(self, k: int = 10) -> None:
        super().__init__()
        self.k = whole(k, "k")
        if self.k < 1:
            raise ConfigError(f"k = {k}: at least 1")
        self._values = np.zeros((0, 0))
        self._where = np.zeros((0, 0, 2), np.int64)

    def _settings(self) -> tuple[Any, ...]:
        return (self.k,)

    def _sorted(self, room: int) -> tuple[Array, Array]:
        """Values [d, room] and where [d, room, 2], greatest first; −inf at NOWHERE behind the last."""
        d = self.width[0] if self.width else 0
        values, where = np.full((d, room), -np.inf), np.full((d, room, 2), NOWHERE)
        if self._values.size:
            order = np.lexsort((self._where[:, :, 1], self._where[:, :, 0], -self._values))
            values[:, : order.shape[1]] = np.take_along_axis(self._values, order, 1)
            where[:, : order.shape[1]] = np.take_along_axis(self._where, order[:, :, None], 1)
        return values, where

    def _keep(self, n: int, rows: Array, at: Array) -> None:
        room = min(self.k, self.n + n)
        if room > self._values.shape[-1]:  # the heaps grow: least first is a heap
            values, where = (np.ascontiguousarray(a[:, ::-1]) for a in self._sorted(room))
        else:
            values, where = self._values.copy(), self._where.copy()
        _core.top_k(values, where, rows, at)
        self._values, self._where = values, where

    def _take(self, rows: list[Array], where: Array, first: bool) -> None:
        self._keep(len(rows[0]), rows[0], where)

    def _join(self, other: Any) -> None:
        self._keep(other.n, np.ascontiguousarray(other._values.T), np.ascontiguousarray(other._where.swapaxes(0, 1)))

    @property
    def values(self) -> Array:
        """[d, k], greatest first, float64; NaN where fewer rows were seen."""
        values, where = self._sorted(self.k)
        return np.where(where[:, :, 0] == NOWHERE, np.nan, values)

    @property
    def where(self) -> Array:
        """[d, k, 2], number of the text and position in it, int64; −1 where fewer rows were seen."""
        where = self._sorted(self.k)[1]
        return np.where(where == NOWHERE, -1, where)
