"""Least squares where it is hard: rank deficiency of every kind, scales, ill conditioning; and the bounds that hold.

The backward error is that of a least-squares problem by Karlson and Waldén's bound: the smallest change of X, relative
to ‖X‖_F, for which w is a solution, within a factor of √2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from clew import regression
from numpy.typing import NDArray

Array = NDArray[Any]
U = 2.0**-53


def lstsq(x: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def rank(x: Array) -> int:
    """lstsq's, from the singular values."""
    s = np.linalg.svd(x, compute_uv=False)
    return int((s > np.finfo(x.dtype).eps * max(x.shape) * s[0]).sum()) if s.size and s[0] > 0 else 0


def backward_error(x: Array, y: Array, w: Array) -> float:
    """In units of u: of the solution w of min ‖Xw − y‖, relative to ‖X‖_F; of y where w is 0."""
    x, y, w = (a.astype(np.longdouble) for a in (x, y, w))
    r = y - x @ w
    size, length, norm = np.sqrt((w * w).sum()), np.sqrt((r * r).sum()), np.sqrt((x * x).sum())
    if norm == 0:
        return float(size > 0)
    if size == 0:  # w = 0 is right where Xᵀy = 0: y must be orthogonal
        top = np.sqrt((y * y).sum())
        return float(np.sqrt(((x.T @ y) ** 2).sum()) / (norm * top + (top == 0)) / U)
    nu = length / size
    u, s, _ = np.linalg.svd(x.astype(np.float64))
    s = np.concatenate([s, np.zeros(len(x) - len(s))])
    along = (u.T @ r.astype(np.float64))[: len(s)]
    low = np.sqrt(((s * along) ** 2 / (s**2 + float(nu) ** 2)).sum()) / float(size) if nu > 0 else 0.0
    return float(low / norm / U)


rng = np.random.default_rng(0)


def gaussian(batch: int, n: int, d: int) -> Array:
    return rng.standard_normal((batch, n, d))


def repeated(batch: int, n: int, d: int) -> Array:
    x = gaussian(batch, n, d)
    for b in range(batch):
        for i in range(1, n):
            if rng.random() < 0.5:
                x[b, i] = x[b, rng.integers(i)]
    return x


def dependent(batch: int, n: int, d: int) -> Array:
    """Rows of a subspace; a new direction from time to time."""
    x = gaussian(batch, n, d)
    for b in range(batch):
        for i in range(2, n):
            if rng.random() < 0.6:
                x[b, i] = rng.standard_normal(i) @ x[b, :i]
    return x


def low_rank(batch: int, n: int, d: int) -> Array:
    return gaussian(batch, n, max(1, d // 2)) @ gaussian(batch, max(1, d // 2), d)


def zeros(batch: int, n: int, d: int) -> Array:
    x = gaussian(batch, n, d)
    x[rng.random((batch, n)) < 0.4] = 0
    x[:, :, rng.random(d) < 0.3] = 0
    return x


def integers(batch: int, n: int, d: int) -> Array:
    return rng.integers(-1, 2, (batch, n, d)).astype(np.float64)


def row_scales(batch: int, n: int, d: int) -> Array:
    return gaussian(batch, n, d) * 10.0 ** rng.uniform(-5, 5, (batch, n, 1))


def column_scales(batch: int, n: int, d: int) -> Array:
    return gaussian(batch, n, d) * 10.0 ** rng.uniform(-4, 4, d)


def nearly_dependent(batch: int, n: int, d: int) -> Array:
    """A direction that shows in few digits only, some above lstsq's tolerance, some below."""
    x = low_rank(batch, n, d)
    return x + gaussian(batch, n, d) * 10.0 ** rng.uniform(-19, -11, (batch, 1, 1))


KINDS: list[Callable[[int, int, int], Array]] = [
    gaussian, repeated, dependent, low_rank, zeros, integers, row_scales, column_scales, nearly_dependent
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (9, 1), (12, 5), (30, 8), (41, 20)])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_backward_error_and_norm_of_every_prefix(
    kind: Callable[[int, int, int], Array], n: int, d: int, noise: float
) -> None:
    x = kind(9, n, d)
    y = np.einsum("bnd,bd->bn", x, gaussian(9, 1, d)[:, 0]) + noise * rng.standard_normal((9, n)) * abs(x).max()
    _, w = regression.ols(x, y, weights=True)
    for b in range(9):
        for k in range(1, n):
            seen, out = x[b, :k], y[b, :k]
            s = np.linalg.svd(seen, compute_uv=False)
            tolerance = 2 * U * max(k, d) * s[0]
            if ((s > tolerance / 4) & (s < 4 * tolerance)).any():
                continue  # rounding decides the rank
            assert backward_error(seen, out, w[b, k]) <= 10 * max(n, d), (b, k)
            theirs = lstsq(seen, out)
            cond = s[0] / s[s > tolerance].min() if (s > tolerance).any() else 1.0
            residual = np.linalg.norm(seen @ theirs - out)
            scale = cond * np.linalg.norm(theirs) + (cond**2 * residual / s[0] if s[0] else 0)
            assert np.linalg.norm(w[b, k] - theirs) <= 60 * max(k, d) * U * scale, (b, k, cond)


@pytest.mark.parametrize("kind", [gaussian, repeated, dependent, integers, zeros], ids=lambda f: f.__name__)
def test_forward_error_without_noise(kind: Callable[[int, int, int], Array]) -> None:
    """w has the planted one's projection on the rows: predictions in their span are exact."""
    x = kind(16, 41, 20)
    w = rng.standard_normal((16, 20))
    y = np.einsum("bnd,bd->bn", x, w)
    yhat = regression.ols(x, y)
    for b in range(16):
        for k in range(1, 41):
            s = np.linalg.svd(x[b, :k], compute_uv=False)
            if rank(x[b, : k + 1]) == rank(x[b, :k]) > 0 and s[0] < 1e4 * s[s > 1e-9].min():
                assert abs(yhat[b, k] - y[b, k]) < 1e-9 * max(1, abs(y[b, k])), (b, k)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-30, 1e30, 1e150, 1e300])
def test_any_scale_of_inputs(scale: float) -> None:
    x = gaussian(3, 12, 4)
    y = rng.standard_normal((3, 12))
    np.testing.assert_allclose(regression.ols(x * scale, y), regression.ols(x, y), rtol=1e-9, atol=1e-12)
    small = regression.ols(x, y * scale) / scale
    np.testing.assert_allclose(small, regression.ols(x, y), rtol=1e-9, atol=1e-9)


def test_scales_that_change_along_a_sequence() -> None:
    x, y = gaussian(4, 10, 3), rng.standard_normal((4, 10))
    for factor in (1e-200, 1e200):
        mixed = x.copy()
        mixed[:, 5:] *= factor
        _, w = regression.ols(mixed, y, weights=True)
        for b in range(4):
            for k in range(1, 10):
                expected = lstsq(mixed[b, :k], y[b, :k]) if factor < 1 else None
                if factor > 1 and k > 5:
                    expected = lstsq(mixed[b, 5:k] / factor, y[b, 5:k]) / factor
                elif factor > 1:
                    expected = lstsq(mixed[b, :k], y[b, :k])
                np.testing.assert_allclose(w[b, k], expected, rtol=1e-8, atol=1e-12 * abs(expected).max())


def test_hilbert_rows_against_exact_arithmetic() -> None:
    """Rows of a Hilbert matrix, condition 1e10 at 8 × 8: the error is that of a backward stable method."""
    n = 8
    x = np.array([[1.0 / (i + j + 1) for j in range(n)] for i in range(n)])
    y = x @ np.ones(n)
    _, w = regression.ols(x[None].repeat(2, 0), y[None].repeat(2, 0), weights=True)
    mpmath.mp.dps = 60
    for k in range(1, n):
        a = mpmath.matrix(x[:k].tolist())
        b = mpmath.matrix(y[:k].tolist())
        exact = a.T * mpmath.lu_solve(a * a.T, b)
        truth = np.array([float(v) for v in exact])
        cond = np.linalg.cond(x[:k])
        assert np.linalg.norm(w[0, k] - truth) <= 20 * U * cond * np.linalg.norm(truth)
        assert np.array_equal(w[0, k], w[1, k])


def test_float32_has_its_own_tolerance() -> None:
    """eps of float32 (lstsq itself computes float32 input in float64)."""
    x = low_rank(5, 15, 6)
    y = np.einsum("bnd,bd->bn", x, rng.standard_normal((5, 6)))
    _, w = regression.ols(x.astype(np.float32), y.astype(np.float32), weights=True)
    assert w.dtype == np.float32
    for b in range(5):
        for k in range(1, 15):
            rcond = 2.0**-23 * max(k, 6)
            theirs = np.linalg.lstsq(x[b, :k].astype(np.float32), y[b, :k].astype(np.float32), rcond)[0]
            np.testing.assert_allclose(w[b, k], theirs, atol=2e-3 * max(1, np.linalg.norm(theirs)))


def test_ridge_is_accurate_where_normal_equations_are_not() -> None:
    """Condition 1e10, lam 1e-12: XᵀX + lam I has lost the small direction in float64."""
    mpmath.mp.dps = 60
    d = 4
    q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = rng.standard_normal((9, d)) @ (q * [1, 1e-2, 1e-3, 1e-5])
    y = x @ np.ones(d)
    for lam in (1e-12, 1e-6, 1.0):
        _, w = regression.ridge(x[None], y[None], lam, weights=True)
        a, b = mpmath.matrix(x[:8].tolist()), mpmath.matrix(y[:8].tolist())
        truth = mpmath.lu_solve(a.T * a + mpmath.mpf(lam) * mpmath.eye(d), a.T * b)
        error = np.linalg.norm(w[0, 8] - np.array([float(v) for v in truth])) / float(mpmath.norm(truth))
        cond = np.linalg.cond(np.vstack([x[:8], np.sqrt(lam) * np.eye(d)]))
        assert error <= 50 * U * cond
