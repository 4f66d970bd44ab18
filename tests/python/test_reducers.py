"""Reducers against NumPy and sorted lists: edges, ties, NaN, dtypes, batches cut anywhere, threads, Ctrl-C."""

from __future__ import annotations

import math
import pickle
import signal
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core, stream
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
LOW, HIGH, BINS = -0.3, 0.4, 7
EDGES = np.linspace(LOW, HIGH, BINS + 1)


def special(rng: np.random.Generator, shape: tuple[int, int], dtype: Any = np.float64) -> Array:
    """Values of which many are equal, on an edge or beside it, infinite or no number."""
    some = np.concatenate(
        [EDGES, np.nextafter(EDGES, 9), np.nextafter(EDGES, -9), [np.inf, -np.inf, np.nan, 0.0, -0.0]]
    )
    ordinary = rng.normal(0, 0.4, shape)
    return np.where(rng.random(shape) < 0.5, ordinary, rng.choice(some, shape)).astype(dtype)


def places(rng: np.random.Generator, n: int) -> Array:
    """Texts and positions in any order, none of them twice."""
    return np.stack(np.divmod(rng.permutation(n), 10), 1)


# ---- Histogram ------------------------------------------------------------------------------------------------------


def check_histogram(found: stream.Histogram, rows: Array) -> None:
    rows = rows.astype(np.float64)
    for column, values in enumerate(rows.T):
        finite = values[~np.isnan(values)]
        assert found.counts[column].tolist() == np.histogram(finite, EDGES)[0].tolist()
    assert found.below.tolist() == (rows < LOW).sum(0).tolist()
    assert found.above.tolist() == (rows > HIGH).sum(0).tolist()
    assert found.nan.tolist() == np.isnan(rows).sum(0).tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "longdouble", ">f4"])
def test_histogram_of_many_columns(dtype: str) -> None:
    rows = special(np.random.default_rng(0), (300, 75), dtype)
    counts = stream.Histogram(LOW, HIGH, BINS)
    counts.update(rows[:100])
    counts.update(rows[100:])
    check_histogram(counts, rows)


def test_rows_of_any_kind() -> None:
    """Integers, views with gaps, read-only rows; none of them is changed."""
    rng = np.random.default_rng(1)
    whole = rng.integers(-3, 4, (200, 40))
    mixed = special(rng, (200, 40))
    mixed.flags.writeable = False
    for rows in (whole, mixed[::-2, 1::3], mixed.T):
        before, plain = rows.copy(), np.array(rows, np.float64, order="C")
        for one, other in ((stream.Histogram(-1, 1, 9), stream.Histogram(-1, 1, 9)), (stream.TopK(4), stream.TopK(4))):
            one.update(rows)
            other.update(plain)
            for got, want in zip(held(one), held(other), strict=True):
                np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(rows, before)


# ---- TopK -----------------------------------------------------------------------------------------------------------


def sorted_items(values: Array, where: Array, k: int) -> list[tuple[float, int, int]]:
    """The k greatest of a column, by sorting all."""
    items = [(-v, *w) for v, w in zip(values.tolist(), where.tolist(), strict=True) if not math.isnan(v)]
    return [(-v, text, position) for v, text, position in sorted(items)[:k]]


def check_top(top: stream.TopK, rows: Array, where: Array) -> None:
    assert top.values.shape == (rows.shape[1], top.k) and top.where.shape == (*top.values.shape, 2)
    for column in range(rows.shape[1]):
        want = sorted_items(rows[:, column], where, top.k)
        got = [(v, *w) for v, w in zip(top.values[column].tolist(), top.where[column].tolist(), strict=True)]
        assert got[: len(want)] == want
        assert all(math.isnan(v) and (text, position) == (-1, -1) for v, text, position in got[len(want) :])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("k", [1, 3, 50, 400])
def test_top_k_against_sorting(dtype: str, k: int) -> None:
    rng = np.random.default_rng(2)
    rows, where = special(rng, (300, 53), dtype), places(rng, 300)
    rows[:, 5] = np.nan
    top = stream.TopK(k)
    for batch in np.array_split(np.arange(300), 4):
        top.update(rows[batch], where=where[batch])
    check_top(top, rows, where)


def test_top_k_of_single_rows_after_doubles() -> None:
    """Kept values lie between those of float32: what is equal to one only when rounded does not take its place."""
    top = stream.TopK(1)
    top.update([[1 + 1e-9]], where=np.array([[3, 3]]))
    top.update(np.ones((1, 1), np.float32), where=np.array([[0, 0]]))
    assert top.values.tolist() == [[1 + 1e-9]] and top.where.tolist() == [[[3, 3]]]
    top.update(np.nextafter(np.ones((1, 1), np.float32), np.float32(2)), where=np.array([[9, 9]]))
    assert top.where.tolist() == [[[9, 9]]]


def test_top_k_takes_room_for_what_it_has_seen() -> None:
    top = stream.TopK(10**12)
    top.update(np.ones((3, 2)))
    top.merge(top)
    assert len(pickle.dumps(top)) < 10_000


def test_top_k_before_the_first_row() -> None:
    assert stream.TopK(3).values.shape == (0, 3) and stream.TopK(3).where.shape == (0, 3, 2)


# ---- Means and products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, scale", [("float32", 1.0), ("float64", 1e8), ("float64", 1e-300)])
def test_means_are_exact(dtype: str, scale: float) -> None:
    """Against sums without any rounding: the last place of the mean, however long the column is."""
    rows = ((np.random.default_rng(3).random((5001, 3)) + 1) * scale).astype(dtype)
    centred, both = np.full((5003, 3), 7.0), np.empty((2, 3))
    _core.centre(centred, both, rows)
    mean = both[0]
    exact = [sum(map(Fraction, column)) / 5001 for column in rows.T.astype(float).tolist()]
    for m, rest, want in zip(*both.tolist(), exact, strict=True):
        assert abs(Fraction(m) - want) <= 2 * math.ulp(m)
        assert abs(Fraction(m) + Fraction(rest) - want) <= 3e-16 * scale
    np.testing.assert_array_equal(centred[:5001], rows.astype(float) - mean)
    assert (centred[5001:] == 7).all()


def test_far_from_zero_merging_loses_nothing() -> None:
    """The bias is a difference of numbers a million times the spread: batches' means need more digits than one number.

    Against normal equations of exact sums, solved with iterative refinement in long double.
    """
    rng = np.random.default_rng(8)
    x, y = 1e6 + rng.standard_normal((90, 3)), rng.standard_normal((90, 2))
    fits = [stream.Ridge(2.0), stream.Ridge(2.0)]
    for start in range(0, 90, 15):
        fits[start // 45].update(x[start : start + 15], y[start : start + 15])
    fits[0].merge(fits[1])
    wide, long_y = x.astype(np.longdouble), y.astype(np.longdouble)
    xc, yc = wide - wide.mean(0), long_y - long_y.mean(0)
    a, b = xc.T @ xc + 2 * np.eye(3), xc.T @ yc
    want = np.zeros_like(b)
    for _ in range(4):
        want += np.linalg.solve(a.astype(float), (b - a @ want).astype(float))
    weights, bias = fits[0].solve()
    np.testing.assert_allclose(weights, want.astype(float), rtol=0, atol=3e-15)
    np.testing.assert_allclose(bias, (long_y.mean(0) - wide.mean(0) @ want).astype(float), rtol=0, atol=3e-9)


def test_what_memory_held_before_is_not_added() -> None:
    """Below the diagonal nothing is computed: sums that overflowed there would warn."""
    x = np.random.default_rng(9).standard_normal((20, 300))
    dirty = [clew.memory.empty((300, 300), np.float64) for _ in range(4)]
    for array in dirty:
        array[...] = 1e308
    del array, dirty
    both = stream.Covariance()
    with np.errstate(all="raise"):
        for _ in range(3):
            both.update(x)
    np.testing.assert_allclose(both.covariance, np.cov(x.T, bias=True), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("widths", [(1, 1), (130, 5), (300, 129)])
def test_wide_products_against_numpy(widths: tuple[int, int]) -> None:
    """Wider than a block of what is multiplied at a time, in three batches and a merge."""
    rng = np.random.default_rng(4)
    x, y = (50 + rng.standard_normal((500, w)) for w in widths)
    both, fit = stream.Covariance(), stream.Ridge(3.0)
    for reducer, rows in ((both, (x,)), (fit, (x, y))):
        rest = reducer.fresh()
        for batch in (slice(0, 200), slice(200, 203)):
            reducer.update(*(r[batch] for r in rows))
        rest.update(*(r[203:] for r in rows))
        reducer.merge(rest)
    xc, yc = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(both.covariance, xc.T @ xc / 500, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(both.covariance, both.covariance.T)
    weights, bias = fit.solve()
    want = np.linalg.solve(xc.T @ xc + 3 * np.eye(widths[0]), xc.T @ yc)
    np.testing.assert_allclose(weights, want, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(bias, y.mean(0) - x.mean(0) @ want, atol=1e-8)
    explained = 1 - ((yc - xc @ want) ** 2).sum(0) / (yc**2).sum(0)
    np.testing.assert_allclose(fit.explained(), explained, atol=1e-10)


# ---- All of them ----------------------------------------------------------------------------------------------------


def made() -> list[stream.Reducer]:
    return [stream.Mean(), stream.Covariance(), stream.Ridge(), stream.Histogram(LOW, HIGH, BINS), stream.TopK(5)]


def held(reducer: Any) -> list[Array]:
    """What a reducer gives."""
    names = ("mean", "variance", "covariance", "counts", "below", "above", "nan", "values", "where")
    return [getattr(reducer, n) for n in names if hasattr(reducer, n)] + (
        list(reducer.solve()) if isinstance(reducer, stream.Ridge) else []
    )


@given(st.integers(0, 2**31), st.integers(1, 40), st.lists(st.integers(1, 25), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_gives_the_same_counts_and_places(seed: int, d: int, sizes: list[int], data: Any) -> None:
    """Batches of any length, some to one reducer and some to others that are merged in any order."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    rows, where = special(rng, (n, d), data.draw(st.sampled_from(["float32", "float64"]))), places(rng, n)
    owners = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    k = data.draw(st.integers(1, 9))
    parts: list[tuple[stream.Histogram, stream.TopK]] = [
        (stream.Histogram(LOW, HIGH, BINS), stream.TopK(k)) for _ in range(3)
    ]
    for owner, batch in zip(owners, np.split(np.arange(n), np.cumsum(sizes)[:-1]), strict=True):
        for reducer in parts[owner]:
            reducer.update(rows[batch], where=where[batch])
    (counts, top), *others = [parts[i] for i in data.draw(st.permutations(range(3)))]
    for more, best in others:
        counts.merge(more)
        top.merge(best)
    check_histogram(counts, rows)
    check_top(top, rows, where)


def test_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((400, 150)).astype(np.float32), rng.standard_normal((400, 150))
    before = clew.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            clew.set_num_threads(threads)
            reducers = made()
            for reducer in reducers:
                for batch in (slice(0, 250), slice(250, 400)):
                    reducer.update(*[x[batch], y[batch]][: reducer.inputs])
            found.append(sum(map(held, reducers), []))
    finally:
        clew.set_num_threads(before)
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_rows_without_columns() -> None:
    for reducer in made():
        reducer.update(*[np.ones((3, 0))] * reducer.inputs)
        reducer.update(*[np.ones((2, 0))] * reducer.inputs)
        assert reducer.n == 5


# ---- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index, name, merged",
    [
        (0, "centre", False),
        (1, "product", False),
        (1, "product", True),
        (2, "product", False),
        (2, "product", True),
        (3, "histogram", False),
        (4, "top_k", False),
        (4, "top_k", True),
    ],
)
def test_interrupted_it_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, index: int, name: str, merged: bool
) -> None:  # fmt: skip
    """The core has done its work, or some of it, and Ctrl-C comes. Means and histograms are merged without the core."""
    x = np.random.default_rng(6).standard_normal((60, 40))
    reducer, other = made()[index], made()[index]
    reducer.update(*[x] * reducer.inputs)
    other.update(*[3 * x] * reducer.inputs)
    before = [a.copy() for a in held(reducer)]
    work: Callable[..., None] = getattr(_core, name)

    def interrupted(*arguments: Any) -> None:
        work(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(_core, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        if merged:
            reducer.merge(other)
        else:
            reducer.update(*[3 * x] * reducer.inputs)
    assert reducer.n == 60
    for got, want in zip(held(reducer), before, strict=True):
        np.testing.assert_array_equal(got, want)


def test_top_k_hears_signals() -> None:
    """Rows that grow go through the whole heap, each of them: work enough to be heard in."""
    rows = np.repeat(np.arange(6000, dtype=np.float32)[:, None], 1500, 1)
    top = stream.TopK(2000)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            top.update(rows)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert top.n == 0
    top.update(rows[:3])
    assert top.values[0, :4].tolist()[:3] == [2, 1, 0] and np.isnan(top.values[:, 3:]).all()


# ---- What the core refuses ------------------------------------------------------------------------------------------


def test_the_core_refuses() -> None:
    rows, edges, counts = np.ones((4, 3)), np.linspace(0, 1, 3), np.zeros((3, 5), np.int64)
    values, where, at = np.zeros((3, 2)), np.zeros((3, 2, 2), np.int64), np.zeros((4, 2), np.int64)
    frozen = np.zeros((3, 5), np.int64)
    frozen.flags.writeable = False
    for call, message in (
        (lambda: _core.histogram(frozen, rows, edges), "histogram: counts: a contiguous writable array of 2 axes"),
        (lambda: _core.histogram(counts, rows.astype(int), edges), "histogram: rows: a contiguous array of 2 axes"),
        (lambda: _core.histogram(counts, rows[:, ::2], edges), "histogram: rows: a contiguous array of 2 axes"),
        (lambda: _core.histogram(counts, rows, edges.astype(np.float32)), "histogram: edges: a contiguous array of 1"),
        (lambda: _core.histogram(counts[:2], rows, edges), r"histogram: counts \[2, 5\] of 3 columns in 2 bins"),
        (lambda: _core.top_k(values.astype(int), where, rows, at), "top_k: values: a contiguous writable array of 2"),
        (lambda: _core.top_k(values, where[0], rows, at), "top_k: where: a contiguous writable array of 3 axes"),
        (lambda: _core.top_k(values, where, rows[0], at), "top_k: rows: a contiguous array of 2 axes"),
        (lambda: _core.top_k(values, where, rows, at[0]), "top_k: at: a contiguous array of 3 axes"),
        (lambda: _core.top_k(values, where, rows, at[:3]), r"top_k: values \[3, 2\], rows \[4, 3\], where or at of an"),
        (lambda: _core.top_k(values[:2], where, rows, at), r"top_k: values \[2, 2\], rows \[4, 3\], where or at of an"),
        (lambda: _core.top_k(values, where, rows, where), r"top_k: values \[3, 2\], rows \[4, 3\], where or at of an"),
        (lambda: _core.centre(rows.T, np.ones((2, 3)), rows), "centre: centred: a contiguous writable array of 2 axes"),
        (lambda: _core.centre(rows.copy(), rows[0], rows), "centre: mean: a contiguous writable array of 2 axes"),
        (lambda: _core.centre(rows.copy(), np.ones((2, 3)), None), "centre: rows: a contiguous array of 2 axes"),
        (lambda: _core.centre(rows[:3], np.ones((2, 3)), rows), r"centre: rows \[4, 3\] into \[3, 3\], mean \[2, 3\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(clew.ConfigError, match="histogram: 0 bins"):
        _core.histogram(np.zeros((3, 3), np.int64), rows, edges[:1])
    with pytest.raises(clew.ConfigError, match="top_k: k = 0"):
        _core.top_k(np.zeros((3, 0)), np.zeros((3, 0, 2), np.int64), rows, at)
    with pytest.raises(clew.ConfigError, match="centre: no rows"):
        _core.centre(rows.copy(), np.ones((2, 3)), rows[:0])
