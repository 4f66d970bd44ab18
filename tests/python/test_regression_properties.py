"""What must hold for any data (Hypothesis), and known expectations by Monte Carlo with their standard errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clew import regression
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_regression_exact import PARAMETERS, data

Array = NDArray[Any]

shapes = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 12), st.integers(1, 5))
quick = settings(max_examples=40, deadline=None, derandomize=True)


def make(shape: tuple[int, int, int, int]) -> tuple[Array, Array, np.random.Generator]:
    seed, batch, n, d = shape
    return *data(seed, batch, n, d), np.random.default_rng(seed)


ORDERED = {"sgd"}  # the order of examples matters
FIXED_D = {"bayes", "dmmse", "mixture"}  # parameters of d = 4


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - ORDERED))
@quick
@given(shapes)
def test_order_of_a_prefix_does_not_matter(name: str, shape: tuple[int, int, int, int]) -> None:
    seed, batch, n, d = shape
    x, y, rng = make((seed, batch, n, 4 if name in FIXED_D else d))
    queries = rng.standard_normal((batch, 3, x.shape[2]))
    order = rng.permutation(n)
    first = regression.fit_predict(x, y, queries, name, **PARAMETERS[name])
    second = regression.fit_predict(x[:, order], y[:, order], queries, name, **PARAMETERS[name])
    kept = 1e-7 * (1 + abs(first).max())
    if name == "lasso":
        kept *= 100  # two points within the gap
    conds = [np.linalg.cond(a) for a in x]
    assert abs(first - second).max() <= kept * (max(conds) if name == "ols" else 1)


@pytest.mark.parametrize("name", ["ols", "ridge", "averaging", "gd", "momentum", "gd_pp", "newton_schulz", "sgd"])
@quick
@given(shapes, st.floats(-3, 3))
def test_outputs_scale(name: str, shape: tuple[int, int, int, int], power: float) -> None:
    """A linear estimator: scaled outputs give scaled predictions."""
    x, y, _ = make(shape)
    one, ten = (getattr(regression, name)(x, c * y, **PARAMETERS[name]) for c in (1, 10**power))
    np.testing.assert_allclose(ten, 10**power * one, rtol=1e-6, atol=1e-8 * 10**power * (1 + abs(one).max()))


@pytest.mark.parametrize(
    "name", ["ols", "ridge", "averaging", "gd", "momentum", "gd_pp", "knn", "nadaraya_watson", "kernel_ridge", "sgd"]
)
@quick
@given(shapes)
def test_rotations_of_the_inputs_change_nothing(name: str, shape: tuple[int, int, int, int]) -> None:
    x, y, rng = make(shape)
    turn = np.linalg.qr(rng.standard_normal((shape[3],) * 2))[0]
    one = getattr(regression, name)(x, y, **PARAMETERS[name])
    other = getattr(regression, name)(x @ turn, y, **PARAMETERS[name])
    np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-7 * (1 + abs(one).max()))


@quick
@given(shapes, st.integers(-60, 60))
def test_least_squares_is_equivariant_by_powers_of_two(shape: tuple[int, int, int, int], power: int) -> None:
    x, y, _ = make(shape)
    assert np.array_equal(regression.ols(x * 2.0**power, y), regression.ols(x, y))
    assert np.array_equal(regression.ols(x, y * 2.0**power), regression.ols(x, y) * 2.0**power)


@quick
@given(shapes)
def test_ridge_tends_to_least_squares(shape: tuple[int, int, int, int]) -> None:
    x, y, _ = make(shape)
    truth, w = regression.ols(x, y, weights=True)
    last = np.inf
    for lam in (1e-2, 1e-4, 1e-6, 1e-8):
        _, near = regression.ridge(x, y, lam, weights=True)
        error = abs(near - w).max()
        assert error <= last + 1e-6
        last = error
    smallest = min(np.linalg.svd(x[b, :k], compute_uv=False).min() for b in range(len(x)) for k in range(1, x.shape[1]))
    assert last <= 1e-8 / smallest**2 * (abs(w).max() + 1) + 1e-6


@quick
@given(shapes)
def test_newton_schulz_tends_to_least_squares_and_ridge(shape: tuple[int, int, int, int]) -> None:
    x, y, _ = make(shape)
    np.testing.assert_allclose(regression.newton_schulz(x, y, 40, 0.5), regression.ridge(x, y, 0.5), atol=1e-8)


@quick
@given(shapes, st.floats(0.05, 5), st.floats(0.05, 5))
def test_posterior_variance_never_grows(shape: tuple[int, int, int, int], prior: float, noise: float) -> None:
    x, y, rng = make(shape)
    root = rng.standard_normal((shape[3],) * 2)
    cov = prior * (root @ root.T + 0.1 * np.eye(shape[3]))
    _, variance, _, _, posterior = regression.bayes(x, y, cov, noise, weights=True, covariance=True)
    assert (variance > noise * (1 - 1e-12)).all()
    for probe in (*np.eye(shape[3]), rng.standard_normal(shape[3])):
        along = np.einsum("i,bnij,j->bn", probe, posterior, probe)
        assert (np.diff(along, axis=1) <= 1e-10 * (1 + along[:, :1])).all() and (along > 0).all()


@quick
@given(shapes)
def test_predictions_use_the_past_only(shape: tuple[int, int, int, int]) -> None:
    x, y, rng = make(shape)
    changed, outputs = x.copy(), y.copy()
    cut = shape[2] // 2
    changed[:, cut + 1 :] = rng.standard_normal(changed[:, cut + 1 :].shape)
    outputs[:, cut:] = 9.0
    for name in set(PARAMETERS) - FIXED_D:
        one = getattr(regression, name)(x, y, **PARAMETERS[name])
        two = getattr(regression, name)(changed, outputs, **PARAMETERS[name])
        assert np.array_equal(one[:, : cut + 1], two[:, : cut + 1]), name


# ---- Monte Carlo ----------------------------------------------------------------------------------------------------


def mean_and_error(values: Array) -> tuple[Array, Array]:
    """Over the first axis: the mean and its standard error."""
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def within(values: Array, expected: Array, sigmas: float = 4.5) -> None:
    mean, error = mean_and_error(values)
    assert (abs(mean - expected) <= sigmas * error + 1e-12).all(), (mean - expected) / error


def prompts(batch: int, n: int, d: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((batch, n, d)), rng.standard_normal((batch, d))
    return x, np.einsum("bnd,bd->bn", x, w)


def test_losses_of_garg_et_al() -> None:
    """d = 8, noiseless: least squares 1 − k/d below d and 0 from there; averaging (d + 1)/k."""
    d = 8
    x, y = prompts(20_000, 17, d, 0)
    k = np.arange(17)
    loss = (regression.ols(x, y) - y) ** 2 / d
    within(loss[:, :d], 1 - k[:d] / d)
    assert loss[:, d + 1 :].max() < 1e-9
    within(((regression.averaging(x, y) - y) ** 2 / d)[:, 1:], (d + 1) / k[1:])


def test_one_step_of_von_oswald_et_al() -> None:
    """N = d = 10, x uniform: the best rate's loss is 0.2062 as ½ · MSE for U(−½, ½), 1.650 as MSE for U(−1, 1)."""
    rng = np.random.default_rng(1)
    for width, half, expected in ((0.5, 0.5, 0.2062), (1.0, 1.0, 1.650)):
        x = rng.uniform(-width, width, (60_000, 11, 10))
        y = np.einsum("bnd,bd->bn", x, rng.standard_normal((60_000, 10)))
        step = regression.gd(x, y, 1, 1.0)[:, 10]  # linear in the rate
        rate = (step @ y[:, 10]) / (step @ step)
        mean, error = mean_and_error(half * (rate * step - y[:, 10]) ** 2)
        assert abs(mean - expected) <= 4 * error + 5e-5 * expected / 0.2, (mean, error)


def test_one_layer_of_ahn_et_al() -> None:
    """Isotropic, one layer: d (1 − n/(n + 1 + d)) at the best rate n/(n + 1 + d)."""
    d, n = 5, 20
    x, y = prompts(40_000, n + 1, d, 2)
    step = regression.gd(x, y, 1, n / (n + 1 + d))[:, n]
    within((step - y[:, n])[:, None] ** 2, np.array([d * (1 - n / (n + 1 + d))]))


def test_optimum_of_ahn_et_al() -> None:
    """Theorem 1, w ~ N(0, I): at U diag{1/((n+1)/n λ_i + Σλ/n)} Uᵀ the loss has no slope."""
    lam, n = np.array([1, 1, 0.25, 0.0625, 1]), 20
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60_000, n + 1, 5)) * np.sqrt(lam)
    y = np.einsum("bnd,bd->bn", x, rng.standard_normal((60_000, 5)))
    best = 1 / ((n + 1) / n * lam + lam.sum() / n)
    yhat, w = regression.gd(x, y, 1, 1.0, best, weights=True)
    error = yhat[:, n] - y[:, n]
    slope = error[:, None] * x[:, n] * w[:, n] / best  # by each diagonal entry
    within(slope, np.zeros(5))
    other = regression.gd(x, y, 1, 1.0, 1.5 * best)[:, n] - y[:, n]
    assert (other**2).mean() > (error**2).mean()


def test_eigenvalues_of_gd_pp() -> None:
    """One direction, X = √λ: the second step acts on λ − 2γλ² + γ²λ³ (von Oswald et al.)."""
    for value, gamma, rate in ((0.7, 0.3, 0.4), (2.0, 0.1, 0.2)):
        x = np.array([[[np.sqrt(value)], [1.0]]])
        w = regression.gd_pp(x, [[1.0, 0.0]], 2, rate, gamma, weights=True)[1][0, 1, 0]
        turn = 1 - gamma * value
        left = turn * (1 - rate * value) * np.sqrt(value)
        assert abs(w - (rate * np.sqrt(value) + rate * turn * left)) < 1e-14
        # what is left of the output after the second step has met the new eigenvalue
        after = value - 2 * gamma * value**2 + gamma**2 * value**3
        residual = (1 - rate * value) * (1 - rate * after)
        w2 = regression.gd_pp(x, [[1.0, 0.0]], 3, [rate, rate, 0], gamma, weights=True)[1][0, 1, 0]
        assert abs((1 - np.sqrt(value) * w2) - residual) < 1e-14


def test_dmmse_tends_to_ridge() -> None:
    """Tasks from N(0, I): the error against ridge with λ = σ² falls as M grows, about as 1/√M."""
    rng = np.random.default_rng(4)
    noise = 0.25
    x = rng.standard_normal((200, 9, 3))
    y = np.einsum("bnd,bd->bn", x, rng.standard_normal((200, 3))) + 0.5 * rng.standard_normal((200, 9))
    target = regression.ridge(x, y, noise)
    gaps = []
    for m in (2**6, 2**10, 2**14, 2**17):
        gaps.append(((regression.dmmse(x, y, rng.standard_normal((m, 3)), noise) - target) ** 2).mean())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 18 * gaps[3] and gaps[3] < 1e-3


def test_bayes_is_calibrated() -> None:
    """(y − yhat)² / variance has mean 1 when w comes from the prior."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20_000, 7, 3))
    prior = np.array([2.0, 0.5, 1.0])
    w = rng.standard_normal((20_000, 3)) * np.sqrt(prior)
    y = np.einsum("bnd,bd->bn", x, w) + 0.6 * rng.standard_normal((20_000, 7))
    yhat, variance, _ = regression.bayes(x, y, prior, 0.36)
    within((y - yhat) ** 2 / variance, np.ones(7))
