"""Factored matrices against the dense product and NumPy's dense linear algebra, one matrix and many."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import FactoredMatrix
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make
from zoo import zoo

SHAPES = [
    ((7, 3), (3, 7)),
    ((7, 3), (3, 5)),
    ((2, 6), (6, 3)),  # thicker than the product
    ((4, 1), (1, 4)),
    ((2, 3, 6, 2), (2, 3, 2, 6)),
    ((3, 5, 2), (2, 5)),
    ((2, 1, 5, 2), (3, 2, 4)),
    ((0, 5, 2), (0, 2, 5)),
]


def factored(a: tuple[int, ...], b: tuple[int, ...], seed: int = 0) -> tuple[FactoredMatrix, Any]:
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal(a), rng.standard_normal(b)
    return FactoredMatrix(A, B), np.matmul(A, B)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_against_the_dense_matrix(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    m, dense = factored(a, b)
    close = dict(rtol=1e-11, atol=1e-13)
    assert m.shape == dense.shape and m.ndim == dense.ndim and (m.ldim, m.rdim) == dense.shape[-2:]
    np.testing.assert_allclose(m.AB, dense, **close)
    np.testing.assert_allclose(np.asarray(m), dense, **close)
    np.testing.assert_allclose(m.T.AB, np.swapaxes(dense, -1, -2), **close)
    np.testing.assert_allclose(m.norm(), np.sqrt((dense**2).sum((-1, -2))), **close)
    np.testing.assert_allclose(m.get_corner(2), dense[..., :2, :2], **close)
    np.testing.assert_allclose((2 * -m * np.float64(0.5)).AB, -dense, **close)
    k = min(m.ldim, m.mdim, m.rdim)
    u, s, vh = m.svd()
    assert s.shape == (*dense.shape[:-2], k)
    np.testing.assert_allclose(s, np.linalg.svd(dense, compute_uv=False)[..., :k], **close)
    np.testing.assert_allclose((u * s[..., None, :]) @ vh, dense, **close)
    eye = np.broadcast_to(np.eye(k), (*dense.shape[:-2], k, k))
    np.testing.assert_allclose(np.swapaxes(u, -1, -2) @ u, eye, atol=1e-12)
    np.testing.assert_allclose(vh @ np.swapaxes(vh, -1, -2), eye, atol=1e-12)
    assert m.U is u and m.S is s and m.Vh is vh and np.array_equal(np.swapaxes(m.V, -1, -2), vh)
    even = m.make_even()
    np.testing.assert_allclose(even.AB, dense, **close)
    np.testing.assert_allclose(
        np.linalg.norm(even.A, axis=-2), np.linalg.norm(even.B, axis=-1), **close
    )  # each side has half
    np.testing.assert_allclose(u @ m.collapse_l(), dense, **close)
    np.testing.assert_allclose(m.collapse_r() @ vh, dense, **close)


@pytest.mark.parametrize(("a", "b"), [s for s in SHAPES if s[0][-2] == s[1][-1]])
def test_trace_and_eigenvalues(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    m, dense = factored(a, b)
    np.testing.assert_allclose(m.trace(), np.trace(dense, axis1=-2, axis2=-1), rtol=1e-11)
    np.testing.assert_allclose(m.BA, m.B @ m.A)
    got, want = m.eigenvalues(), np.linalg.eigvals(dense)
    assert got.shape == (*dense.shape[:-2], m.mdim)
    for power in (1, 2, 3):  # the power sums tell the eigenvalues but for zeros
        np.testing.assert_allclose((got**power).sum(-1), (want**power).sum(-1), rtol=1e-9, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_products(rows: int, r: int, columns: int, n: int, many: bool, many_right: bool) -> None:
    rng = np.random.default_rng(rows + 7 * r + 49 * columns)
    lead, lead_right = ((2, 3) if many else ()), ((3,) if many_right else ())
    m = FactoredMatrix(rng.standard_normal((*lead, rows, r)), rng.standard_normal((*lead, r, columns)))
    close = dict(rtol=1e-10, atol=1e-12)
    right = rng.standard_normal((*lead_right, columns, n))
    np.testing.assert_allclose(m @ right, m.AB @ right, **close)
    left = rng.standard_normal((*lead_right, n, rows))
    np.testing.assert_allclose(left @ m, left @ m.AB, **close)
    vector = rng.standard_normal(columns)
    np.testing.assert_allclose(m @ vector, m.AB @ vector, **close)
    vector = rng.standard_normal(rows)
    np.testing.assert_allclose(vector @ m, vector @ m.AB, **close)
    other = FactoredMatrix(rng.standard_normal((*lead_right, columns, n)), rng.standard_normal((n, 4)))
    both = m @ other
    assert isinstance(both, FactoredMatrix) and both.mdim == min(r, n)
    np.testing.assert_allclose(both.AB, m.AB @ other.AB, **close)


PAIR = np.array([True, False])
MASK = np.array([[True, False, True], [False, True, True]])
INDICES: list[tuple[Any, Any]] = [
    *[(i, i) for i in (0, -1, (1, 2), slice(1, None), (slice(None), 1), None, (None, 1), [1, 0], ([1, 0], [2, 1]))],
    (PAIR, PAIR),
    (MASK, MASK),
    ((0, 1, slice(2)), (0, 1, slice(2))),
    ((0, 1, slice(2), slice(1, 4)), (0, 1, slice(2), slice(1, 4))),
    ((1, ...), (1, ...)),
    ((..., slice(2), slice(3)), (..., slice(2), slice(3))),
    # rows and columns that are chosen one by one stay axes
    ((..., 2), (..., slice(2, 3))),
    ((1, ..., 0), (1, ..., slice(0, 1))),
    ((1, 0, 2, 3), (1, 0, slice(2, 3), slice(3, 4))),
    ((1, 0, -1), (1, 0, slice(4, 5))),
    ((slice(None), slice(1), [3, 1]), (slice(None), slice(1), [3, 1])),
    ((1, 2, [0, 2], [1, 1]), (1, 2, [[0], [2]], [1, 1])),
]


@pytest.mark.parametrize(("index", "want"), INDICES, ids=str)
def test_indexing_is_the_dense_matrix_indexed(index: Any, want: Any) -> None:
    m, dense = factored((2, 3, 5, 2), (2, 3, 2, 6))
    got = m[index]
    assert isinstance(got, FactoredMatrix)
    np.testing.assert_allclose(got.AB, dense[want], rtol=1e-12)


def test_factors_of_full_rank_are_not_squared() -> None:
    # the Gram matrices' product would lose half the digits of a norm that nearly cancels
    a = np.array([[1.0, 1.0]])
    b = np.array([[1.0], [-1.0 + 1e-12]])
    np.testing.assert_allclose(FactoredMatrix(a, b).norm(), abs((a @ b).item()), rtol=1e-3)


def test_results_cannot_be_changed() -> None:
    m, _ = factored((4, 2), (2, 4))
    for array in m.svd():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((3, 2), (3, 2), r"A \[3, 2\] and B \[3, 2\] do not multiply"),
        ((3,), (3, 2), r"A \[3\] and B \[3, 2\] do not multiply"),
        ((2, 4, 3), (5, 3, 4), r"A \[2, 4, 3\] and B \[5, 3, 4\]: the leading axes do not broadcast"),
    ],
)
def test_refused_factors(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(clew.ShapeError, match=message):
        FactoredMatrix(np.ones(a), np.ones(b))


def test_refused_operations() -> None:
    m, _ = factored((2, 3, 5, 2), (2, 3, 2, 6))
    with pytest.raises(clew.ShapeError, match=r"must be numbers, not <U1 and float64"):
        FactoredMatrix([["a"]], np.ones((1, 1)))
    for what in (m.trace, m.eigenvalues):
        with pytest.raises(clew.ShapeError, match=r"\[2, 3, 5, 6\]: it must be square"):
            what()
    with pytest.raises(clew.ShapeError, match=r"\[2, 3, 5, 6\] @ \[5, 6, 1\] does not multiply"):
        m @ np.ones((5, 6, 1))
    with pytest.raises(clew.ShapeError, match=r"\[4\] @ \[2, 3, 5, 6\] does not multiply"):
        np.ones(4) @ m
    with pytest.raises(clew.ShapeError, match=r"\* \[2\]: a number is meant"):
        m * np.ones(2)
    with pytest.raises(IndexError, match=r"5 indices for a FactoredMatrix of shape \[2, 3, 5, 6\]"):
        m[0, 0, 0, 0, 0]
    with pytest.raises(IndexError, match="index 5 is out of bounds for an axis of 5"):
        m[0, 0, 5]
    with pytest.raises(IndexError, match=r"does not fit a FactoredMatrix of shape \[2, 3, 5, 6\]"):
        m[0, np.ones((3, 5), bool)]


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.longdouble])
def test_factors_that_lapack_does_not_have(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.integers(0, 100, shape).astype(dtype) for shape in ((4, 2), (2, 4)))
    m, dense = FactoredMatrix(A, B), A.astype(float) @ B.astype(float)
    assert m.dtype == m.AB.dtype == np.float64
    assert np.array_equal(m.AB, dense) and m.trace() == np.trace(dense)
    np.testing.assert_allclose(m.norm(), np.linalg.norm(dense), rtol=1e-12)
    np.testing.assert_allclose(m.S, np.linalg.svd(dense, compute_uv=False)[:2], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose((-m).AB, -dense)
    assert FactoredMatrix(A.astype(np.longdouble) * 1j, B).dtype == np.complex128


def test_complex_factors() -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((5, 3), (3, 5)))
    m = FactoredMatrix(A, B)
    np.testing.assert_allclose(m.S, np.linalg.svd(A @ B, compute_uv=False)[:3], rtol=1e-12)
    np.testing.assert_allclose(m.U * m.S @ m.Vh, A @ B, rtol=1e-10)
    np.testing.assert_allclose(m.trace(), np.trace(A @ B), rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_factors_that_are_not_finite(value: float) -> None:
    B = np.ones((2, 4))
    B[1, 3] = value
    for m, name in ((FactoredMatrix(np.ones((4, 2)), B), "B"), (FactoredMatrix(B.T, np.ones((2, 4))), "A")):
        assert not np.isfinite(m.A @ m.B).all()
        for what, word in (
            (m.svd, "singular values"),
            (m.eigenvalues, "eigenvalues"),
            (m.make_even, "singular values"),
        ):
            with pytest.raises(clew.ConfigError, match=f"FactoredMatrix: {name} holds NaN or infinity: no {word}"):
                what()
    large = FactoredMatrix(np.full((2, 2), 1e200), np.full((2, 2), 1e200))
    with pytest.raises(clew.ConfigError, match="the product holds NaN or infinity: no eigenvalues"):
        large.eigenvalues()


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda m: FactoredMatrix([[1], [2, 3]], m.B), clew.ShapeError, "FactoredMatrix: A cannot be read as an array"),
        (lambda m: FactoredMatrix(m.A, np.ma.masked_all((2, 4))), clew.ShapeError, "B: an array with masked values"),
        (lambda m: m * "a", TypeError, "FactoredMatrix"),
        (lambda m: "a" * m, TypeError, "FactoredMatrix"),
        (lambda m: m * None, TypeError, "unsupported operand"),
        (lambda m: m * [[1], [2, 3]], clew.ShapeError, "the factor cannot be read as an array"),
        (lambda m: m * m, clew.ShapeError, r"\* \[4, 4\]: a number is meant, @ multiplies"),
        (lambda m: m / "a", TypeError, "unsupported operand"),
        (lambda m: m / None, TypeError, "unsupported operand"),
        (lambda m: m @ "a", TypeError, "unsupported operand"),
        (lambda m: m @ None, TypeError, "unsupported operand"),
        (lambda m: None @ m, TypeError, "unsupported operand"),
        (lambda m: m @ 5, clew.ShapeError, r"\[4, 4\] @ \[\] does not multiply"),
        (lambda m: m @ [[1], [2, 3]], clew.ShapeError, "the right factor cannot be read as an array"),
        (lambda m: [[1], [2, 3]] @ m, clew.ShapeError, "the left factor cannot be read as an array"),
        (lambda m: m @ np.ma.masked_all(4), clew.ShapeError, "the right factor: an array with masked values"),
        (lambda m: m @ np.array(["a"] * 4), clew.ShapeError, r"the right factor must be numbers, not <U1 \[4\]"),
        (lambda m: np.array(["a"] * 4) @ m, clew.ShapeError, r"the left factor must be numbers, not <U1 \[4\]"),
        (lambda m: m.unsqueeze("a"), clew.ConfigError, "k = 'a': expected a whole number"),
        (lambda m: m.get_corner("a"), clew.ConfigError, "k = 'a': expected a whole number"),
        (lambda m: m.get_corner(-1), clew.ConfigError, "k = -1: at least 0"),
        (lambda m: m["a"], IndexError, "index 'a' of a FactoredMatrix: whole numbers, masks, slices"),
        (lambda m: m[["a"]], IndexError, r"index \['a'\] of a FactoredMatrix: whole numbers"),
        (lambda m: m[1.5], IndexError, "index 1.5 of a FactoredMatrix: whole numbers"),
        (lambda m: m[:, [0.5]], IndexError, r"index \[0.5\] of a FactoredMatrix: whole numbers"),
        (lambda m: m[:, [[0, 1], [1, 0]]], IndexError, "does not fit a FactoredMatrix"),
        (lambda m: m[[[0, 1], [1, 0]]], IndexError, "does not fit a FactoredMatrix"),
    ],
)
def test_what_is_no_operand_or_index(ask: Any, error: type[Exception], message: str) -> None:
    m, _ = factored((4, 2), (2, 4))
    with pytest.raises(error, match=message):
        ask(m)


def test_numbers_of_every_kind_multiply() -> None:
    m, dense = factored((4, 2), (2, 4))
    for number in (2, 2.0, np.float32(2), np.array(2), np.longdouble(2)):
        assert (number * m).dtype == np.float64
        np.testing.assert_allclose((m * number).AB, 2 * dense, rtol=1e-12)
        np.testing.assert_allclose((m / number).AB, dense / 2, rtol=1e-12)
    np.testing.assert_allclose((m * 10**30).AB, 1e30 * dense, rtol=1e-12)
    np.testing.assert_allclose((m * 1j).AB, 1j * dense, rtol=1e-12)
    assert m[[]].shape == (0, 4) and m.get_corner(0).shape == (0, 0)


# ---- the model's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gqa_6_2", "mqa_partial_rotary"])
def test_circuits_of_all_heads(name: str) -> None:
    config = zoo()[name]
    model, w = make(config)
    L, h, d, group = config.n_layers, config.n_heads, config.d_model, config.n_heads // config.n_key_value_heads
    qk, ov = model.QK(), model.OV()
    assert qk.shape == ov.shape == (L, h, d, d)
    for layer in range(L):
        at = f"blocks.{layer}.attn."
        for head in range(h):
            want_qk = w[at + "W_Q"][head] @ w[at + "W_K"][head // group].T
            want_ov = w[at + "W_V"][head // group] @ w[at + "W_O"][head]
            for got in (qk[layer, head], model.QK(layer, head), model.QK(layer)[head], model.QK(None, head)[layer]):
                np.testing.assert_allclose(got.AB, want_qk, rtol=1e-12, atol=1e-14)
            for got in (ov[layer, head], model.OV(layer, head), model.OV(layer - L)[head], model.OV(head=head)[layer]):
                np.testing.assert_allclose(got.AB, want_ov, rtol=1e-12, atol=1e-14)
    assert np.shares_memory(model.OV(0).B, model.weights["blocks.0.attn.W_O"])


def test_refused_circuits() -> None:
    model, _ = make(zoo()["gpt2"])
    with pytest.raises(clew.ConfigError, match="head 3: the model has heads 0 to 2"):
        model.QK(None, 3)
    with pytest.raises(clew.SiteError, match=r"OV\(2, None\): the model has layers 0 to 1"):
        model.OV(2)
    empty, _ = make(zoo()["no_layers"])
    with pytest.raises(clew.SiteError, match=r"QK\(None, None\): the model has no layers"):
        empty.QK()


def test_the_classic_names() -> None:
    m, dense = factored((2, 3, 6, 2), (2, 3, 2, 6))
    assert m.pair[0] is m.A and m.pair[1] is m.B
    for k in range(3):
        assert np.array_equal(m.unsqueeze(k).AB, np.expand_dims(dense, k))
    for k in (-1, 3):
        with pytest.raises(clew.ShapeError, match="unsqueeze"):
            m.unsqueeze(k)
