"""Nearest-token search against a full sort in float64."""

from __future__ import annotations

import threading
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core
from clew.geometry import nearest, nearest_by
from support import assert_python

Array = np.ndarray[Any, Any]


def reference(rows: Array, x: Array, k: int, metric: str) -> tuple[Array, Array]:
    """Ids and scores from the whole matrix of scores, float64; of equal scores the smaller id first."""
    rows, x = rows.astype(np.float64), x.astype(np.float64)
    if metric == "l2":
        scores = -np.sqrt(np.square(x[:, None] - rows[None]).sum(-1))
    else:
        scores = x @ rows.T
        if metric == "cosine":
            sizes = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(rows, axis=-1)
            scores = np.divide(scores, sizes, out=np.zeros_like(scores), where=sizes > 0)
    ids = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, -1)
    return ids, -best if metric == "l2" else best


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "n_rows", "d", "k"),
    [(1, 1, 1, 1), (1, 5000, 24, 7), (3, 17, 5, 17), (40, 1300, 32, 10), (700, 1025, 16, 1), (33, 600, 2, 3)],
)
def test_equals_a_full_sort(n: int, n_rows: int, d: int, k: int, dtype: Any, metric: Any) -> None:
    rng = np.random.default_rng(n + n_rows)
    rows, x = rng.standard_normal((n_rows, d)).astype(dtype), rng.standard_normal((n, d)).astype(dtype)
    found = nearest(rows, x, k, metric)
    ids, scores = reference(rows, x, k, metric)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-12, atol=1e-13)
    differ = found.ids != ids  # only where two scores are the same to rounding
    np.testing.assert_allclose(found.scores[differ], scores[differ], rtol=1e-14)
    assert differ.mean() < 0.01


def test_ties_and_zero_vectors() -> None:
    rows = np.zeros((2000, 4), np.float32)
    rows[[5, 1999, 700]] = [1, 0, 0, 0]
    x = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    found = nearest(rows, x, 5)
    assert found.ids.tolist() == [[5, 700, 1999, 0, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    cosine = nearest(rows, x, 4, "cosine")
    assert cosine.scores.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert cosine.ids[0].tolist() == [5, 700, 1999, 0]


def test_small_distances_far_from_the_origin() -> None:
    """‖x‖² − 2 x·w + ‖w‖² would leave few digits of these, or none in float32."""
    rng = np.random.default_rng(0)
    rows = 100 + 1e-3 * rng.standard_normal((300, 8))
    found = nearest(rows, rows, 2, "l2")
    assert found.ids[:, 0].tolist() == list(range(300)) and not found.scores[:, 0].any()
    np.testing.assert_allclose(found.scores, reference(rows, rows, 2, "l2")[1], rtol=1e-12)
    few = rows[:10].astype(np.float32)  # so few that all are scored in double
    np.testing.assert_allclose(nearest(few, few, 2, "l2").scores, reference(few, few, 2, "l2")[1], rtol=1e-12)


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_same_bits_for_any_number_of_threads_and_batch(metric: Any) -> None:
    rng = np.random.default_rng(1)
    rows, x = rng.standard_normal((3000, 20), np.float32), rng.standard_normal((600, 20), np.float32)
    clew.set_num_threads(1)
    one = nearest(rows, x, 6, metric)
    for n in (2, 3):
        clew.set_num_threads(n)
        again = nearest(rows, x, 6, metric)
        assert np.array_equal(one.ids, again.ids) and np.array_equal(one.scores, again.scores)
    alone = nearest(rows, x[17], 6, metric)
    assert np.array_equal(alone.ids, one.ids[17]) and np.array_equal(alone.scores, one.scores[17])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "n_rows", "d", "k"), [(1, 3, 2, 3), (5, 1500, 7, 4), (600, 700, 16, 9)])
def test_several_metrics_share_their_products(n: int, n_rows: int, d: int, k: int, dtype: Any) -> None:
    """Each finds the bits that it finds alone, in any order, and those of a full sort."""
    rng = np.random.default_rng(n)
    rows, x = rng.standard_normal((n_rows, d)).astype(dtype), rng.standard_normal((n, d)).astype(dtype)
    rows[0] = 0
    for metrics in (("dot", "cosine", "l2"), ("l2", "dot"), ("cosine",)):
        found = nearest_by(rows, x, k, metrics)
        assert tuple(found) == metrics
        for metric, own in found.items():
            alone = nearest(rows, x, k, metric)  # type: ignore[arg-type]
            assert np.array_equal(own.ids, alone.ids) and np.array_equal(own.scores, alone.scores)
            assert own.metric == metric
            np.testing.assert_allclose(own.scores, reference(rows, x, k, metric)[1], rtol=1e-12, atol=1e-13)
    with pytest.raises(clew.ConfigError, match=r"metrics = \('dot', 'dot'\): one or more, each once"):
        nearest_by(rows, x, 1, ("dot", "dot"))
    with pytest.raises(clew.ConfigError, match="metrics = .*: one or more, each once"):
        nearest_by(rows, x, 1, ())


def test_inputs_of_every_kind_are_read_and_left_alone() -> None:
    rng = np.random.default_rng(2)
    wide = rng.standard_normal((50, 12))
    rows, x = wide[:, ::2], rng.standard_normal((2, 3, 12))[..., ::-2]
    x.flags.writeable = False
    before = wide.copy()
    found = nearest(rows, x, 4, "l2")
    assert found.ids.shape == found.scores.shape == (2, 3, 4) and np.array_equal(wide, before)
    ids, scores = reference(rows, x.reshape(-1, 6), 4, "l2")
    assert np.array_equal(found.ids.reshape(-1, 4), ids)
    np.testing.assert_allclose(found.scores.reshape(-1, 4), scores, rtol=1e-12)
    integers = nearest(np.eye(5, dtype=np.float16), np.arange(5), 2)
    assert integers.ids.tolist() == [4, 3] and integers.scores.tolist() == [4.0, 3.0]
    assert nearest(rows, np.zeros((0, 6)), 3).ids.shape == (0, 3)
    # a transpose: rows apart by one value, in slab memory as a model's unembedding is
    slab = _core.empty((6, 50), np.float64)
    slab[...] = rows.T
    transposed = nearest(slab.T, x, 4, "l2")
    assert np.array_equal(transposed.ids, found.ids)
    np.testing.assert_allclose(transposed.scores, found.scores, rtol=1e-14)


def test_tokens_of_a_model() -> None:
    model = clew.load("shakespeare")
    found = nearest(model, model.W_E[[10, 20]], 3, "cosine")
    assert found.ids[:, 0].tolist() == [10, 20]
    assert found.tokens()[0, 0] == model.to_str_tokens([10])[0]
    assert len(found.table().splitlines()) == 2
    small = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=20, d_mlp=8))
    x = np.random.default_rng(0).standard_normal(8)
    assert nearest(small, x, 20, of="W_U").ids.tolist() == np.argsort(-(x.astype(np.float32) @ small.W_U)).tolist()
    assert nearest(small, x, 1).tokens()[0].isdigit()


def test_what_is_refused() -> None:
    rows = np.ones((4, 3), np.float32)
    for arguments, error, message in (
        ((rows, np.ones((2, 4))), clew.ShapeError, r"vectors \[2, 4\] among rows \[4, 3\]"),
        ((rows, np.ones(3), 5), clew.ConfigError, "k = 5 of 4 rows"),
        ((rows, np.ones(3), 0), clew.ConfigError, "k = 0 of 4 rows"),
        ((rows, np.ones(3), 1.5), clew.ConfigError, "k = 1.5: expected a whole number"),
        ((rows, np.ones(3), 1, "angle"), clew.ConfigError, "metric = 'angle': 'dot', 'cosine', 'l2'"),
        ((rows, [[1, 1, 1], [1, np.nan, 0]], 1), clew.ShapeError, "vector 1 holds NaN or infinity"),
        ((np.diag([1, np.inf, 1]), np.ones(3), 1), clew.ShapeError, "row 1 holds NaN or infinity"),
        ((np.ones((4, 3), complex), np.ones(3), 1), clew.ShapeError, "the matrix must be real numbers, not complex128"),
        ((np.ones((0, 3)), np.ones(3), 1), clew.ShapeError, r"among rows \[0, 3\]"),
    ):
        with pytest.raises(error, match=message):
            nearest(*arguments)
    with pytest.raises(clew.ConfigError, match="of = 'W_Q': 'W_E' or 'W_U'"):
        nearest(clew.load("shakespeare"), np.ones(3), of="W_Q")


def test_the_binding_checks_what_it_gets() -> None:
    a = _core.empty((2, 3), np.float32)
    a[...] = 0
    for arguments, message in (
        ((np.zeros((2, 3), np.float32), a, 1, (0,)), "vectors must be a 2-D array of the common dtype, in slab memory"),
        ((a, a.astype(np.float64), 1, (0,)), "rows must be"),
        (([1], a, 1, (0,)), "vectors must be float32 or float64"),
        ((a, a[:, :2], 1, (0,)), r"vectors \[2, 3\] and rows \[2, 2\]"),
        ((a, a[::-1], 1, (0,)), "axis 0 of rows has stride -3"),
        ((a, a, 1, ()), "0 metrics, expected 1 to 3"),
        ((a, a, 1, (0, 1, 2, 0)), "4 metrics, expected 1 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.nearest(*arguments)
    with pytest.raises(clew.ConfigError, match="metric 3"):
        _core.nearest(a, a, 1, (3,))
    with pytest.raises(clew.ConfigError, match="k = 3 of 2 rows"):
        _core.nearest(a, a, 3, (0,))
    a[1] = np.nan
    with pytest.raises(clew.ConfigError, match="vector 0 has fewer than 2 scores that are numbers"):
        _core.nearest(a, a, 2, (0,))


def test_ctrl_c_stops_it() -> None:
    assert_python(
        """
import os, signal, threading, time
import numpy as np
from clew.geometry import nearest
rng = np.random.default_rng(0)
rows, x = rng.standard_normal((60_000, 256), np.float32), rng.standard_normal((60_000, 256), np.float32)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    nearest(rows, x, 10)
except KeyboardInterrupt:
    pass
else:
    raise SystemExit("not stopped")
assert nearest(rows, x[:1], 1).ids.shape == (1, 1)
print("fine")
"""
    )


def test_two_threads_search_at_once() -> None:
    rng = np.random.default_rng(3)
    rows, x = rng.standard_normal((2000, 16), np.float32), rng.standard_normal((100, 16), np.float32)
    want = nearest(rows, x, 3).ids
    results: list[Array] = []
    threads = [threading.Thread(target=lambda: results.append(nearest(rows, x, 3).ids)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(want, ids) for ids in results)
