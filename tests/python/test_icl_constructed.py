"""Transformers by construction, each against loops of its solver, layer by layer; and the papers' closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import regression
from clew.regression import constructed, tasks
from numpy.typing import NDArray
from support import relative_error

Float = NDArray[np.float64]
EXACT = 1e-12
D, N = 4, 7


@pytest.fixture(scope="module")
def prompts() -> tasks.Prompts:
    return tasks.dense(D, noise_var=0.1).sample(3, N, seed=0)


# ---- Solvers, one prefix after the other ----------------------------------------------------------------------------


def descent(x: Float, y: Float, rates: Any, precond: Any = None, gammas: Any = None) -> list[tuple[Float, Float]]:
    """(w, matrix that the query is multiplied by) behind every step, for the examples x [k, d], y [k]."""
    k, d = x.shape
    w, moved = np.zeros(d), np.eye(d)
    residual = y.copy()
    out = [(np.zeros(d), np.eye(d))]
    for step, rate in enumerate(rates):
        a = np.eye(d) if precond is None else precond[step]
        change = rate * a @ (x.T @ residual) / max(k, 1)  # against the inputs as they are now
        w = w + moved.T @ change
        residual = residual - x @ change
        if gammas is not None:
            turn = np.eye(d) - gammas[step] * x.T @ x
            x, moved = x @ turn, turn @ moved
        out.append((w, moved))
    return out


def prefixes(prompts: tasks.Prompts, weights: Callable[[Float, Float], list[Float]]) -> Float:
    """Predictions [steps + 1, batch, n] of a solver that gives w behind every step."""
    out = [
        [np.array(weights(x[:i], y[:i])) @ x[i] for i in range(len(x))]
        for x, y in zip(prompts.X, prompts.y, strict=True)
    ]
    return np.moveaxis(np.array(out), -1, 0)


# ---- Gradient descent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.3, [0.5, 0.1, 0.25]])
def test_gradient_descent_layer_by_layer(prompts: tasks.Prompts, lr: Any) -> None:
    built = constructed.gd(D, 3, lr)
    want = prefixes(prompts, lambda x, y: [w for w, _ in descent(x, y, np.broadcast_to(lr, 3))])
    assert relative_error(built.layers(prompts.X, prompts.y), want) <= EXACT
    assert relative_error(built.predict(prompts.X, prompts.y), want[-1]) <= EXACT
    assert not built.layers(prompts.X, prompts.y)[:, :, 0].any()  # nothing seen: 0


def test_residuals_of_the_examples_are_in_the_stream(prompts: tasks.Prompts) -> None:
    built = constructed.gd(D, 3, 0.4)
    x, y, query = prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:]
    run = built.model.run(built.prompts(x, y, query), capture="resid_post")
    for b in range(3):
        for layer, (w, _) in enumerate(descent(x[b], y[b], [0.4] * 3)[1:]):
            stream = run["resid_post", layer][b]
            assert relative_error(stream[:-1, D], y[b] - x[b] @ w) <= EXACT
            assert relative_error(stream[-1, D], -query[b, 0] @ w) <= EXACT
            np.testing.assert_array_equal(stream[:-1, :D], x[b])


def test_preconditioners_that_are_not_symmetric(prompts: tasks.Prompts) -> None:
    a = np.random.default_rng(0).standard_normal((3, D, D))
    want = prefixes(prompts, lambda x, y: [w for w, _ in descent(x, y, [0.2] * 3, a)])
    assert relative_error(constructed.gd(D, 3, 0.2, a).layers(prompts.X, prompts.y), want) <= EXACT
    want = prefixes(prompts, lambda x, y: [w for w, _ in descent(x, y, [0.2] * 3, [a[0]] * 3)])
    assert relative_error(constructed.gd(D, 3, 0.2, a[0]).layers(prompts.X, prompts.y), want) <= EXACT


def test_gd_pp_layer_by_layer(prompts: tasks.Prompts) -> None:
    rates, gammas = [0.3, 0.2, 0.4], [0.02, 0.05, 0.01]
    built = constructed.gd_pp(D, 3, rates, gammas)
    want = prefixes(prompts, lambda x, y: [w for w, _ in descent(x, y, rates, None, gammas)])
    assert relative_error(built.layers(prompts.X, prompts.y), want) <= EXACT


def test_gd_pp_moves_eigenvalues() -> None:
    """λ → λ − 2γλ² + γ²λ³ (von Oswald et al.), at their N = 25 and γ = 0.099, inputs of their code."""
    x = tasks.uniform(10, 0.5).sample(1, 25, seed=0).X
    built = constructed.gd_pp(10, 1, 0.1, 0.099)
    run = built.model.run(built.prompts(x, np.zeros((1, 25)), x[:, :1]), capture="resid_post")
    moved = run["resid_post", 0][0, :-1, :10]
    eigenvalues = np.linalg.eigvalsh(x[0].T @ x[0])
    want = np.sort(eigenvalues - 2 * 0.099 * eigenvalues**2 + 0.099**2 * eigenvalues**3)
    assert relative_error(np.linalg.eigvalsh(moved.T @ moved), want) <= EXACT
    np.testing.assert_allclose(run["resid_post", 0][0, :-1, 10:20], 25 * moved, rtol=1e-12)
    condition = want[-1] / want[0]
    assert condition < eigenvalues[-1] / eigenvalues[0]  # what GD++ is for


def test_one_causal_step_for_all_prefixes(prompts: tasks.Prompts) -> None:
    built = constructed.gd_causal(D, 0.7)
    want = prefixes(prompts, lambda x, y: [descent(x, y, [0.7])[-1][0]])[0]
    assert relative_error(built.predict(prompts.X, prompts.y), want) <= EXACT
    averaging = constructed.gd_causal(D, 1.0)
    want = prefixes(prompts, lambda x, y: [x.T @ y / max(1, len(x))])[0]
    assert relative_error(averaging.predict(prompts.X, prompts.y), want) <= EXACT
    query = prompts.X[:, -2:]
    got = built.fit_predict(prompts.X[:, :3], prompts.y[:, :3], query)
    want = np.stack([query[b] @ descent(prompts.X[b, :3], prompts.y[b, :3], [0.7])[-1][0] for b in range(3)])
    assert relative_error(got, want) <= EXACT


# ---- The papers' values ---------------------------------------------------------------------------------------------


def test_best_one_step_loss_of_von_oswald() -> None:
    """N = d = 10, x ~ U(−1, 1): 1.650 as a plain squared error, 0.2062 in their code's convention (x/2, ½ MSE)."""
    n = d = 10
    # E (w·x − lr/n Σ y x·x_q)² = v d (1 − 2 lr v + lr² m): v = E x², m = ((n−1) v² + E x⁴ + (d−1) v²) / n
    v, fourth = 1 / 3, 1 / 5
    m = ((n - 1) * v**2 + fourth + (d - 1) * v**2) / n
    best = v / m
    loss = v * d * (1 - v**2 / m)
    assert loss == pytest.approx(1.650, abs=5e-4) and loss / 8 == pytest.approx(0.2062, abs=5e-5)
    prompts = tasks.uniform(d).sample(10_000, n + 1, seed=0)
    for rate, convention in ((best, 1.0), (4 * best, 1 / 8)):
        scale = 1.0 if convention == 1 else 0.5
        x = scale * prompts.X
        y = np.einsum("bnd,bd->bn", x, prompts.w)
        got = constructed.gd(d, 1, rate).fit_predict(x[:, :-1], y[:, :-1], x[:, -1:])[:, 0]
        errors = (np.square(got - y[:, -1])) * (1.0 if convention == 1 else 0.5)
        standard_error = errors.std() / math.sqrt(len(errors))
        assert abs(errors.mean() - loss * convention) <= 4 * standard_error, (errors.mean(), standard_error)
        assert standard_error < 0.02 * loss * convention


def test_best_preconditioner_of_ahn() -> None:
    d, n = 5, 20
    # isotropic: one layer's best loss is d (1 − n / (n + 1 + d))
    a = constructed.ahn_optimum(np.ones(d), n)
    np.testing.assert_allclose(a, np.eye(d) * n / (n + 1 + d), rtol=1e-14)
    prompts = tasks.correlated(np.ones(d)).sample(10_000, n + 1, seed=1)
    built = constructed.gd(d, 1, 1.0, a)
    got = built.fit_predict(prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:])[:, 0]
    errors = np.square(got - prompts.f[:, -1])
    assert abs(errors.mean() - d * (1 - n / (n + 1 + d))) <= 4 * errors.std() / math.sqrt(len(errors))


@pytest.mark.parametrize("weights", ["identity", "inverse"])
def test_ahns_optimum_is_the_minimum_of_the_exact_loss(weights: Any) -> None:
    """Σ = Uᵀ diag(1, 1, .25, .0625, 1) U: the loss is quadratic in A, and its gradient is 0 at the optimum."""
    d, n = 5, 20
    u = tasks.rotations(np.random.default_rng(3), 1, d)[0]
    sigma = u.T @ np.diag([1, 1, 0.25, 0.0625, 1.0]) @ u
    prior = np.eye(d) if weights == "identity" else np.linalg.inv(sigma)

    def loss(a: Float) -> float:
        # E (w − A S w)ᵀ Σ (w − A S w), S = (1/n) Σ x xᵀ; E S M S = Σ M Σ + (Σ M Σ + tr(M Σ) Σ) / n (Isserlis)
        middle = sigma @ prior @ sigma
        squared = middle + (middle + np.trace(prior @ sigma) * sigma) / n
        return float(np.trace(sigma @ prior) - 2 * np.trace(sigma @ a @ sigma @ prior)
                     + np.trace(a.T @ sigma @ a @ squared))  # fmt: skip

    best = constructed.ahn_optimum(sigma, n, weights)
    for i in range(d):
        for j in range(d):
            bump = np.zeros((d, d))
            bump[i, j] = 1e-3
            assert abs(loss(best + bump) - loss(best - bump)) / 2e-3 < 1e-9
            assert loss(best + bump) > loss(best)
    prompts = tasks.correlated(sigma, weights=weights).sample(10_000, n + 1, seed=5)
    got = constructed.gd(d, 1, 1.0, best).fit_predict(prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:])
    errors = np.square(got[:, 0] - prompts.f[:, -1])
    assert abs(errors.mean() - loss(best)) <= 4 * errors.std() / math.sqrt(len(errors))


# ---- Newton–Schulz and ridge ----------------------------------------------------------------------------------------


def newton(x: Float, steps: int, lam: float) -> list[Float]:
    a = x.T @ x + lam * np.eye(x.shape[1])
    norm = np.abs(a).sum(axis=0).max()
    v = a / norm**2 if norm > 0 else a
    out = [v]
    for _ in range(steps):
        v = v @ (2 * np.eye(len(a)) - a @ v)
        out.append(v)
    return out


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_newton_schulz_iterates(prompts: tasks.Prompts, lam: float) -> None:
    for steps in (0, 1, 6):
        built = constructed.newton_schulz(D, steps, lam)
        got = constructed.iterates(built, prompts.X)
        for b in range(3):
            want = np.stack(newton(prompts.X[b], steps, lam))
            assert relative_error(got[:, b], want) <= EXACT
        want = prefixes(prompts, lambda x, y, steps=steps: [newton(x, steps, lam)[-1] @ x.T @ y])[0]  # type: ignore[misc]
        assert relative_error(built.predict(prompts.X, prompts.y), want) <= EXACT
        assert not built.layers(prompts.X, prompts.y)[:-1].any()


def test_newton_schulz_squares_its_error(prompts: tasks.Prompts) -> None:
    inverse = np.linalg.inv(prompts.X[0].T @ prompts.X[0] + 0.5 * np.eye(D))
    errors = [
        np.linalg.norm(v @ np.linalg.inv(inverse) - np.eye(D), 2)
        for v in constructed.iterates(constructed.newton_schulz(D, 6, 0.5), prompts.X)[:, 0]
    ]
    for before, after in zip(errors, errors[1:], strict=False):
        assert after == pytest.approx(before**2, rel=1e-8)


@pytest.mark.parametrize("lam", [0.01, 0.25, 4.0])
def test_ridge_to_rounding(prompts: tasks.Prompts, lam: float) -> None:
    built = constructed.ridge(D, lam)

    def solve(x: Float, y: Float) -> list[Float]:
        return [np.linalg.solve(x.T @ x + lam * np.eye(D), x.T @ y)]

    assert relative_error(built.predict(prompts.X, prompts.y), prefixes(prompts, solve)[0]) <= 1e-11
    query = np.random.default_rng(1).standard_normal((3, 5, D))  # several queries in one prompt
    want = np.stack([query[b] @ solve(prompts.X[b], prompts.y[b])[0] for b in range(3)])
    assert relative_error(built.fit_predict(prompts.X, prompts.y, query), want) <= 1e-11


def test_least_squares_by_newton_schulz(prompts: tasks.Prompts) -> None:
    """Without λ: the minimum-norm solution, also from fewer examples than dimensions."""
    built = constructed.newton_schulz(D, 40)
    x, y = prompts.X[:, :2], prompts.y[:, :2]
    want = np.stack([prompts.X[b] @ np.linalg.lstsq(x[b], y[b], rcond=None)[0] for b in range(3)])
    assert relative_error(built.fit_predict(x, y, prompts.X), want) <= 1e-8


# ---- Nadaraya–Watson ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["dot", "gaussian"])
@pytest.mark.parametrize("scale", [0.0, 0.8, 25.0])
def test_nadaraya_watson(prompts: tasks.Prompts, kernel: Any, scale: float) -> None:
    built = constructed.nadaraya_watson(D, scale, kernel)

    def answer(x: Float, y: Float, query: Float) -> float:
        if len(x) == 0:
            return 0.0
        s = scale * x @ query if kernel == "dot" else -0.5 * scale * np.square(x - query).sum(axis=1)
        weight = np.exp(s - s.max())
        return float(weight @ y / weight.sum())

    want = np.array([[answer(x[:i], y[:i], x[i]) for i in range(N)] for x, y in zip(prompts.X, prompts.y, strict=True)])
    layers = built.layers(prompts.X, prompts.y)
    assert layers.shape == (2, 3, N) and not layers[0].any()
    assert relative_error(layers[1], want) <= 1e-11
    query = np.random.default_rng(1).standard_normal((3, 5, D))
    want = np.array([[answer(prompts.X[b], prompts.y[b], q) for q in query[b]] for b in range(3)])
    assert relative_error(built.fit_predict(prompts.X, prompts.y, query), want) <= 1e-11


def test_patterns_are_the_kernel_weights(prompts: tasks.Prompts) -> None:
    built = constructed.nadaraya_watson(D, 0.8)
    run = built.model.run(built.prompts(prompts.X, prompts.y, prompts.X[:, :1]), capture="pattern")
    pattern = run["pattern", 0][:, 0, -1]
    weight = np.exp(0.8 * np.einsum("bnd,bd->bn", prompts.X, prompts.X[:, 0]))
    assert relative_error(pattern[:, :-1], weight / weight.sum(axis=1, keepdims=True)) <= EXACT
    assert not pattern[:, -1].any()  # it does not see itself


# ---- Every construction ----------------------------------------------------------------------------------------------


BUILT: dict[str, Callable[..., constructed.Construction]] = {
    "gd": lambda **o: constructed.gd(D, 2, 0.3, **o),
    "gd_pp": lambda **o: constructed.gd_pp(D, 2, 0.3, 0.02, **o),
    "gd_causal": lambda **o: constructed.gd_causal(D, 0.5, **o),
    "newton_schulz": lambda **o: constructed.newton_schulz(D, 3, 0.5, **o),
    "nadaraya_watson": lambda **o: constructed.nadaraya_watson(D, 0.5, **o),
}


@pytest.mark.parametrize("name", BUILT)
def test_all_of_them(prompts: tasks.Prompts, name: str) -> None:
    built = BUILT[name]()
    x, y = prompts.X.copy(), prompts.y.copy()
    all_prefixes = built.predict(x, y)
    np.testing.assert_array_equal(x, prompts.X)
    # prefixes one by one, and no example at all
    for k in range(4):
        got = built.fit_predict(x[:, :k], y[:, :k], x[:, k : k + 1])
        assert got.shape == (3, 1) and relative_error(got[:, 0] + 1, all_prefixes[:, k] + 1) <= EXACT
        assert relative_error(built.fit_layers(x[:, :k], y[:, :k], x[:, k : k + 1])[-1] + 1, got + 1) <= EXACT
    # later examples do not matter; the order of earlier ones does not either
    order = np.array([2, 0, 1, 3, 4, 5, 6])
    turned = built.predict(x[:, order], y[:, order])
    assert relative_error(turned[:, 3:], all_prefixes[:, 3:]) <= EXACT
    # other dtypes and layouts are accepted, and float32 is as good as float32 can be
    assert relative_error(built.predict(np.asfortranarray(x), np.asfortranarray(y)), all_prefixes) <= EXACT
    whole = np.round(4 * x).astype(int), np.round(4 * y).astype(int)
    np.testing.assert_array_equal(built.predict(*whole), built.predict(whole[0] * 1.0, whole[1] * 1.0))
    single = BUILT[name](dtype="float32").predict(x.astype(np.float32), y.astype(np.float32))
    assert single.dtype == np.float32 and relative_error(single, all_prefixes) <= 1e-5
    assert name in repr(built)
    # gradients and edits of the ordinary engine work
    edits = clew.edit.zero("attn_out")
    tokens = built.prompts(x, y, x[:, -1:])
    assert built.model.run(tokens, edits=edits).logits.shape[0] == 3


def test_the_solvers_of_the_package_are_the_same(prompts: tasks.Prompts) -> None:
    x, y = prompts.X, prompts.y
    a = np.random.default_rng(0).standard_normal((3, D, D))
    for built, want in [
        (constructed.gd(D, 3, [0.1, 0.2, 0.3], a), regression.gd(x, y, 3, [0.1, 0.2, 0.3], a)),
        (constructed.gd_pp(D, 3, 0.3, 0.02), regression.gd_pp(x, y, 3, 0.3, 0.02)),
        (constructed.gd_causal(D, 1.0), regression.averaging(x, y)),
        (constructed.newton_schulz(D, 5, 0.5), regression.newton_schulz(x, y, 5, 0.5)),
        (constructed.ridge(D, 0.5), regression.ridge(x, y, 0.5)),
        (constructed.nadaraya_watson(D, 0.7), regression.nadaraya_watson(x, y, 0.7)),
    ]:
        assert relative_error(built.predict(x, y), want) <= EXACT, built.name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constructed.gd(0, 1, 0.1), "gd: d = 0"),
        (lambda: constructed.gd(2, 0, 0.1), "gd: steps = 0"),
        (lambda: constructed.gd(2, 2, [0.1, 0.2, 0.3]), r"lr: float64 \[3\], expected a number or one for each of 2"),
        (lambda: constructed.gd(2, 2, math.nan), "lr = nan: must be finite"),
        (lambda: constructed.gd(2, 2, 0.1, np.eye(3)), r"precond: float64 \[3, 3\], expected \[2, 2\] or \[2, 2, 2\]"),
        (lambda: constructed.gd(2, 1, 0.1, [[1, 2], [3, math.inf]]), "precond holds inf"),
        (lambda: constructed.gd(2, 1, 0.1, dtype="float16"), "dtype float16"),
        (lambda: constructed.gd_pp(2, 2, 0.1, [0.1] * 3), r"gamma: float64 \[3\]"),
        (lambda: constructed.newton_schulz(2, -1), "steps = -1"),
        (lambda: constructed.newton_schulz(2, 1, -0.5), "lam = -0.5"),
        (lambda: constructed.ridge(2, 0), "lam = 0 has no bound"),
        (lambda: constructed.ridge(2, 1, condition=0.5), "condition = 0.5"),
        (lambda: constructed.nadaraya_watson(2, -1), "scale = -1"),
        (lambda: constructed.nadaraya_watson(2, 1, "box"), "kernel = 'box'"),  # type: ignore[arg-type]
        (lambda: constructed.ahn_optimum([1.0, -1.0], 4), "not positive definite"),
        (lambda: constructed.ahn_optimum([1.0], 0), "n = 0"),
        (lambda: constructed.ahn_optimum([1.0], 2, "none"), "weights = 'none'"),  # type: ignore[arg-type]
        (lambda: constructed.iterates(constructed.gd(2, 1, 0.1), np.ones((1, 2, 2))), "only newton_schulz"),
        (lambda: constructed.gd(2, 1, 0.1).predict(np.ones((1, 3, 3)), np.ones((1, 3))), r"\[1, 3, 3\] for .* d = 2"),
        (lambda: constructed.gd(2, 1, 0.1).predict(np.ones((1, 3, 2)), np.ones((1, 4))), r"y: float64 \[1, 4\] with X"),
        (lambda: constructed.gd(2, 1, 0.1).predict(np.ones((1, 0, 2)), np.ones((1, 0))), r"X: float64 \[1, 0, 2\]"),
        (
            lambda: constructed.gd(2, 1, 0.1).predict([[[1.0, math.nan]]], [[1.0]]),
            r"X\[0, 0, 1\] is nan",
        ),
        (lambda: constructed.gd(2, 1, 0.1).predict([[[1.0, 2.0]]], [[math.inf]]), r"y\[0, 0\] is inf"),
        (
            lambda: constructed.gd(2, 1, 0.1).fit_predict(np.ones((1, 3, 2)), np.ones((1, 3)), np.ones((2, 1, 2))),
            r"Xq: float64 \[2, 1, 2\] with X \[1, 3, 2\], expected \[1, m, 2\]",
        ),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(clew.Error, match=message):
        make()
