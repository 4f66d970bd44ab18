"""The core of clew.adaptive: gradients, posteriors, tokens and estimates, threads, closed forms, the programme."""

from __future__ import annotations

import math
from typing import Any

import clew
import numpy as np
import pytest
from clew.adaptive import (
    Constrained,
    Prior,
    between,
    codebook,
    eigenvalues,
    fit,
    flat,
    gaussian,
    gaussian_error,
    node_directions,
    noiseless_error,
    programme,
    sample_estimate,
    tree,
    water_filling,
)
from clew.adaptive.programme import tree_symmetries
from clew.errors import ConfigError, ShapeError
from numpy.typing import NDArray
from scipy import integrate, optimize, stats

Array = NDArray[Any]
PRIORS = [tree(), tree(scatter=0.2), gaussian(), codebook(seed=3), between(0.3), tree((1.0, 0.7))]


def contexts(prior: Prior, n: int, noise: float = 0.3, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    w, _ = prior.sample(n, rng)
    return w, w + noise * rng.standard_normal(w.shape)


# ---- priors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [*PRIORS[2:5], tree(), flat()], ids=lambda p: p.name)
def test_priors_have_one_covariance(prior: Prior) -> None:
    np.testing.assert_allclose(prior.covariance, np.diag(eigenvalues()), atol=1e-14)
    np.testing.assert_allclose(prior.centres.mean(axis=0), 0, atol=1e-14)
    w, _ = prior.sample(100_000, 1)
    error = np.cov(w.T) - np.diag(eigenvalues())
    assert np.abs(error).max() < 5 * 1.5 / 100_000**0.5


def test_tree_by_hand() -> None:
    a = (1.0, 0.7, 0.5)
    prior = tree(a)
    want = []
    for s1 in (-1, 1):
        for s2 in (-1, 1):
            for s3 in (-1, 1):
                w = np.zeros(7)
                w[0] = a[0] * s1
                w[1 + (s1 > 0)] = a[1] * s2
                w[3 + 2 * (s1 > 0) + (s2 > 0)] = a[2] * s3
                want.append(w)
    np.testing.assert_array_equal(prior.centres, want)


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{p.name}{p.dim}")
def test_posterior_against_densities(prior: Prior) -> None:
    """Bayes' rule with SciPy's multivariate normal densities of (messages, w) around each centre."""
    rng = np.random.default_rng(2)
    U = rng.standard_normal((2, prior.dim))
    m, noise = rng.standard_normal(2), 0.4
    C = np.diag(prior.spread)
    S = U @ C @ U.T + noise**2 * U @ U.T
    logs = np.array([stats.multivariate_normal(U @ c, S).logpdf(m) for c in prior.centres])
    p = np.exp(logs - logs.max())
    p /= p.sum()
    mean = sum(q * (c + C @ U.T @ np.linalg.solve(S, m - U @ c)) for q, c in zip(p, prior.centres, strict=True))
    got_p, got_mean = prior.posterior(U, m[None], noise)
    np.testing.assert_allclose(got_p[0], p, atol=1e-12)
    np.testing.assert_allclose(got_mean[0], mean, atol=1e-12)


def test_token_posterior_is_bayes() -> None:
    prior, sigma = between(0.4), 1.3
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1, 5, 7)), rng.standard_normal((1, 5))
    S = x[0] @ np.diag(prior.spread) @ x[0].T + sigma**2 * np.eye(5)
    logs = np.array([stats.multivariate_normal(x[0] @ c, S).logpdf(y[0]) for c in prior.centres])
    p = np.exp(logs - logs.max())
    p /= p.sum()
    gain = np.diag(prior.spread) @ x[0].T @ np.linalg.inv(S)
    mean = sum(q * (c + gain @ (y[0] - x[0] @ c)) for q, c in zip(p, prior.centres, strict=True))
    got_p, got_mean = prior.token_posterior(x, y, sigma)
    np.testing.assert_allclose(got_p[0], p, atol=1e-10)
    np.testing.assert_allclose(got_mean[0], mean, atol=1e-10)


def test_sampled_estimates_are_those_of_examples() -> None:
    """Mean and covariance of ŵ: drawn without examples, from examples, and the closed form ((|w|²+σ²)I + wwᵀ)/N."""
    w, n, N, sigma = np.array([1.0, -0.7, 0.5]), 40_000, 12, 1.5
    rng = np.random.default_rng(4)
    x = rng.standard_normal((n, N, 3))
    examples = np.einsum("nk,nkd->nd", x @ w + sigma * rng.standard_normal((n, N)), x) / N
    drawn = sample_estimate(np.tile(w, (n, 1)), N, sigma, 5)
    want = ((w @ w + sigma**2) * np.eye(3) + np.outer(w, w)) / N
    for sample in (examples, drawn):
        assert np.abs(sample.mean(axis=0) - w).max() < 5 * (want.max() / n) ** 0.5
        np.testing.assert_allclose(np.cov(sample.T), want, atol=0.02 * want.max())
    assert stats.ks_2samp(examples[:, 0], drawn[:, 0]).pvalue > 1e-3


# ---- forward and backward -------------------------------------------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "policy": {"layers": 3},
    "heads": {"layers": 2, "heads": 2},
    "constant": {"layers": 3, "routing": False},
    "transformer": {"layers": 3, "readout": 20},
    "orthonormal readout": {"layers": 2, "heads": 2, "readout": 20, "orthonormal": True},
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("prior", [tree(), between(0.3)], ids=lambda p: p.name)
@pytest.mark.parametrize("tokens", [0, 9])
def test_gradients_are_differences(kind: str, prior: Prior, tokens: int) -> None:
    network = Constrained(prior, 0.3, width=16, dtype="float64", seed=3, **NETWORKS[kind])
    w, estimate = contexts(prior, 100)
    data: dict[str, Any] = {"estimate": estimate}
    if tokens:
        rng = np.random.default_rng(1)
        x = rng.standard_normal((100, tokens, 7))
        data = {"examples": (x, np.einsum("nkd,nd->nk", x, w) + rng.standard_normal((100, tokens)))}
    _, gradient = network.gradient(w, **data)
    rng, step, start = np.random.default_rng(0), 1e-6, network.parameters.copy()
    for i in rng.choice(len(start), 40, replace=False):
        values = []
        for sign in (1, -1):
            network.parameters[i] = start[i] + sign * step
            values.append(network.gradient(w, **data)[0])
        network.parameters[i] = start[i]
        assert abs((values[0] - values[1]) / (2 * step) - gradient[i]) < 2e-7


def twin(network: Constrained, estimate: Array) -> tuple[Array, Array]:
    """The transformer in NumPy: messages and prediction."""
    at, d, p = 0, network.prior.dim, network.parameters

    def take(*shape: int) -> Array:
        nonlocal at
        part = p[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
        return part

    messages = np.zeros((len(estimate), 0))
    for layer in range(network.layers):
        W1, b1 = take(network.width, layer * network.heads), take(network.width)
        W2, b2 = take(network.heads * d, network.width), take(network.heads * d)
        seen = messages if network.routing else 0 * messages
        u = (np.tanh(seen @ W1.T + b1) @ W2.T + b2).reshape(-1, network.heads, d)
        messages = np.concatenate([messages, np.einsum("nhd,nd->nh", u, estimate)], axis=1)
    units = int(network.readout)
    V1, c1, V2, c2 = take(units, messages.shape[1]), take(units), take(d, units), take(d)
    return messages, np.tanh(messages @ V1.T + c1) @ V2.T + c2


@pytest.mark.parametrize("routing", [True, False])
def test_transformer_equals_its_twin(routing: bool) -> None:
    network = Constrained(tree(), 0.3, 3, 2, readout=24, routing=routing, dtype="float64", seed=1)
    _, estimate = contexts(tree(), 130)
    seen = network.run(estimate)
    messages, prediction = twin(network, estimate)
    np.testing.assert_allclose(seen.messages, messages, atol=1e-13)
    np.testing.assert_allclose(seen.prediction, prediction, atol=1e-13)
    single = Constrained(tree(), 0.3, 3, 2, readout=24, routing=routing, parameters=network.parameters)
    np.testing.assert_allclose(single.run(estimate).prediction, prediction, atol=2e-5)


def test_policy_predicts_the_exact_posterior() -> None:
    for prior in (*PRIORS[:5], flat()):
        network = Constrained(prior, 0.3, 3, dtype="float64", seed=2)
        _, estimate = contexts(prior, 70)
        seen = network.run(estimate)
        gram = seen.directions @ seen.directions.transpose(0, 2, 1)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(3), gram.shape), atol=1e-12)
        _, mean = prior.posterior(seen.directions, seen.messages, 0.3)
        np.testing.assert_allclose(seen.prediction, mean, atol=1e-12)


def test_tokens_agree_with_their_estimate() -> None:
    """The reduced model on ŵ = mean of y x equals the token-level model to rounding, gradients as well."""
    for kind in ("policy", "transformer"):
        network = Constrained(tree(), 0.3, dtype="float64", seed=5, **NETWORKS[kind])
        w, _ = tree().sample(90, 1)
        rng = np.random.default_rng(8)
        x = rng.standard_normal((90, 33, 7))
        y = np.einsum("nkd,nd->nk", x, w) + rng.standard_normal((90, 33))
        reduced = np.einsum("nk,nkd->nd", y, x) / 33
        token, short = network.run(examples=(x, y)), network.run(reduced)
        np.testing.assert_allclose(token.messages, short.messages, atol=1e-12)
        np.testing.assert_allclose(token.prediction, short.prediction, atol=1e-11)
        np.testing.assert_allclose(network.gradient(w, examples=(x, y))[1], network.gradient(w, reduced)[1], atol=1e-11)


def test_patching_its_own_workspace_changes_nothing() -> None:
    network = Constrained(tree(), 0.3, 3, readout=24, seed=5)
    _, estimate = contexts(tree(), 70)
    plain = network.run(estimate)
    for layer in range(4):
        again = network.run(estimate, start=layer, messages=plain.messages)
        np.testing.assert_array_equal(again.prediction, plain.prediction)
    moved = network.run(estimate, start=3, messages=plain.messages[::-1])
    np.testing.assert_array_equal(moved.prediction, plain.prediction[::-1])


def test_same_bits_for_any_number_of_threads() -> None:
    before = clew.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 3):
            clew.set_num_threads(threads)
            many = fit(between(0.2), 0.3, 2, seeds=(0, 1), steps=20, batch=200)
            w, estimate = contexts(tree(), 300)
            value = programme(tree(), 0.3, (1, 1), node_directions(3, 1, False)).value
            seen.append((many[1].parameters, many[1].gradient(w, estimate)[1], many[1].losses, np.array(value)))
    finally:
        clew.set_num_threads(before)
    for other in seen[1:]:
        for a, b in zip(seen[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_training_does_not_depend_on_company() -> None:
    alone = fit(tree(), 0.3, 2, seeds=(7,), steps=15, batch=130)[0]
    together = fit(tree(), 0.3, 2, seeds=(3, 7), steps=15, batch=130)[1]
    np.testing.assert_array_equal(alone.parameters, together.parameters)
    double = fit(tree(), 0.3, 2, seeds=(7,), steps=15, batch=130, dtype="float64")[0]
    np.testing.assert_allclose(double.losses, alone.losses, rtol=1e-3)  # the same contexts


def test_training_losses_are_those_of_fresh_contexts() -> None:
    """At a vanishing rate the mean of the batches' losses is the untrained network's error."""
    network = fit(between(0.5), 0.4, 2, steps=200, batch=512, rate=1e-12)[0]
    error, deviation = network.error(100_000)
    assert abs(network.losses.mean() - error) < 5 * deviation


def test_inputs_of_many_kinds_are_not_changed() -> None:
    network = Constrained(tree(), 0.3, 2, readout=8)
    estimate = np.arange(70).reshape(10, 7) % 3
    want = network.run(estimate.astype(np.float64)).prediction
    for kind in (np.int32, np.float16, np.float32):
        given = estimate.astype(kind)
        given.setflags(write=False)
        np.testing.assert_array_equal(network.run(given).prediction, want)
    np.testing.assert_array_equal(network.run(np.asfortranarray(estimate)).prediction, want)
    np.testing.assert_array_equal(network.run(np.repeat(estimate, 2, axis=0)[::2]).prediction, want)
    assert len(network.run(np.empty((0, 7))).prediction) == 0


# ---- closed forms ---------------------------------------------------------------------------------------------------


def test_values_marked_in_the_specification() -> None:
    lam = eigenvalues((1.0, 1.0, 1.0))
    assert round(water_filling(lam, 2, 0.6)[0], 3) == 1.968
    assert round(water_filling(lam, 3, 0.6)[0], 3) == 1.675
    assert noiseless_error(lam, 3) == pytest.approx(lam[3:].sum(), abs=0)
    for messages in range(8):  # vanishing noise
        assert gaussian_error(lam, messages, 1e-9) == pytest.approx(noiseless_error(lam, messages), abs=1e-12)


def test_gaussian_error_is_the_least_over_directions() -> None:
    """Against a numerical minimum over all pairs of directions, from several starts."""
    lam, s = np.array([1.0, 0.4, 0.2]), 0.5

    def error(flat_u: Array) -> float:
        q, _ = np.linalg.qr(flat_u.reshape(3, 2))
        S = q.T @ np.diag(lam) @ q + s**2 * np.eye(2)
        return float(lam.sum() - np.trace(np.diag(lam) @ q @ np.linalg.solve(S, q.T @ np.diag(lam))))

    rng = np.random.default_rng(0)
    best = min(optimize.minimize(error, rng.standard_normal(6)).fun for _ in range(5))
    assert gaussian_error(lam, 2, s) == pytest.approx(best, abs=1e-8)
    assert water_filling(lam, 2, s)[0] <= best + 1e-12


def test_water_filling_against_a_solver() -> None:
    lam, s = np.array([1.0, 0.5, 0.5, 0.1]), 0.8
    for messages in (1, 2, 3, 4):
        error, poured = water_filling(lam, messages, s)
        assert poured.sum() == pytest.approx(messages / s**2) and (poured >= 0).all()

        def value(j: Array) -> float:
            return float((lam / (1 + lam * np.pad(j, (0, 4 - len(j))))).sum())

        start = np.full(messages, 1 / s**2)
        found = optimize.minimize(
            value, start, bounds=[(0, None)] * messages, method="SLSQP", options={"ftol": 1e-12},
            constraints={"type": "eq", "fun": lambda j, n=messages: j.sum() - n / s**2},
        )  # fmt: skip
        assert error == pytest.approx(found.fun, abs=1e-6)


# ---- the programme --------------------------------------------------------------------------------------------------


def test_symmetries_map_leaves_onto_leaves() -> None:
    for depth in (1, 2, 3):
        leaves = tree((1.0, 0.7, 0.5)[:depth]).centres
        for g in tree_symmetries(depth):
            np.testing.assert_array_equal(np.unique(leaves @ g.T + 0.0, axis=0), np.unique(leaves, axis=0))


def one_message(q: Array, prior: Prior, noise: float) -> float:
    """E tr Cov after one message along q, by adaptive quadrature."""
    n, var = len(prior.centres), noise**2 + prior.spread[0]

    def integrand(m: float) -> float:
        like = stats.norm.pdf(m, prior.centres @ q, var**0.5) / n
        _, mean = prior.posterior(q[None], np.array([[m]]), noise)
        return float(like.sum() * (mean[0] @ mean[0]))

    total = np.trace(prior.covariance)
    seen, _ = integrate.quad(integrand, -8, 8, limit=400, epsabs=1e-9)
    return float(total - seen)


@pytest.mark.parametrize("scatter", [0.0, 0.3])
def test_one_layer_against_quadrature(scatter: float) -> None:
    prior, directions = tree((1.0, 0.7), scatter), node_directions(2)
    found = programme(prior, 0.5, (1,), symmetry=False, step=0.25)
    want = [one_message(q, prior, 0.5) for q in directions]
    np.testing.assert_allclose(found.first_values, want, atol=2e-6)


def brute(prior: Prior, noise: float, directions: Array, layers: int) -> float:
    """The adaptive programme as a recursion in NumPy over the same grid."""

    def value(p: Array, seen: list[Array], left: int) -> float:
        if left == 0:
            mean = p @ prior.centres
            return float(p @ (prior.centres**2).sum(axis=1) - mean @ mean)
        best = np.inf
        for u in directions:
            q = u - sum((u @ v) * v for v in seen)
            length = np.linalg.norm(q)
            if length < 1e-9:
                best = min(best, value(p, seen, left - 1))
                continue
            q = q / length
            grid = (np.arange(-60, 60) + 0.5) * noise * 0.5
            like = stats.norm.pdf(grid[:, None], prior.centres @ q, noise) * noise * 0.5
            joint = like * p
            total = 0.0
            for row in joint:
                if row.sum() > 1e-12:
                    total += row.sum() * value(row / row.sum(), [*seen, q], left - 1)
            best = min(best, total)
        return best

    n = len(prior.centres)
    return value(np.full(n, 1 / n), [], layers)


def test_two_layers_against_a_recursion() -> None:
    prior, directions = tree((1.0, 0.7)), node_directions(2, families=False)[:5]
    found = programme(prior, 0.5, (1, 1), directions, symmetry=False)
    assert found.value == pytest.approx(brute(prior, 0.5, directions, 2), abs=1e-6)


def test_symmetry_changes_nothing_but_time() -> None:
    for heads in ((1,), (1, 1), (2,)):
        plain = programme(tree(), 0.4, heads, node_directions(3, 1), symmetry=False)
        short = programme(tree(), 0.4, heads, node_directions(3, 1))
        assert len(short.first_values) < len(plain.first_values)
        assert short.value == pytest.approx(plain.value, abs=1e-7)


def test_grid_of_the_programme() -> None:
    """Halving the step moves the value by less than 0.001: the error that other tests allow for."""
    coarse, fine = (programme(tree(), 0.3, (1, 1), step=step).value for step in (0.5, 0.25))
    assert abs(coarse - fine) < 1e-3


def test_inequalities_of_the_programme() -> None:
    """full data ≤ adaptive ≤ mixed ≤ non-adaptive; more layers help; one layer is one problem; a policy of the same set
    does no better."""
    few = node_directions(3, 1)
    for s in (0.3, 0.6):
        full, deviation = tree().full_data_error(s)
        one, two, three, fixed, mixed = (
            programme(tree(), s, heads, few).value for heads in ((1,), (1, 1), (1, 1, 1), (3,), (2, 1))
        )
        assert full - 3 * deviation <= three <= mixed + 1e-9 and mixed <= fixed + 1e-9
        assert three < two < one
        policy = coarse_to_fine(s)
        assert policy[0] >= three - 1e-3 - 3 * policy[1]


def coarse_to_fine(s: float, n: int = 100_000) -> tuple[float, float]:
    """Asks the root, then always the node that the likelier branch leads to: node directions only."""
    prior, rng = tree(), np.random.default_rng(1)
    w, _ = prior.sample(n, rng)
    estimate, node = w + s * rng.standard_normal(w.shape), np.zeros(n, int)
    asked = []
    for _ in range(3):
        asked.append(node)
        node = 2 * node + 1 + (estimate[np.arange(n), node] > 0)
    U = np.eye(7)[np.stack(asked, axis=1)]
    _, mean = prior.posterior(U, np.einsum("nld,nd->nl", U, estimate), s)
    errors = ((mean - w) ** 2).sum(axis=1)
    return float(errors.mean()), float(errors.std() / n**0.5)


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (lambda: Prior("x", np.zeros((2, 3)), np.zeros(2)), ShapeError, r"centres \[2, 3\] and spread \[2\]"),
    (lambda: Prior("x", [[0, np.nan]], np.zeros(2)), ConfigError, r"centres\[0, 1\] is nan"),
    (lambda: Prior("x", [[0, 1]], [0, -1.0]), ConfigError, r"spread\[1\] = -1 is negative"),
    (lambda: tree(()), ShapeError, "1 to 10 levels"),
    (lambda: tree((1.0, -1.0)), ConfigError, "must be positive"),
    (lambda: tree(scatter=-1.0), ConfigError, "scatter = -1.0"),
    (lambda: flat((1.0,) * 5), ConfigError, "at most 4 levels"),
    (lambda: between(1.5), ConfigError, "t = 1.5"),
    (lambda: tree().posterior(np.eye(7), np.zeros((2, 3)), 0.3), ShapeError, r"messages \[2, 3\]"),
    (lambda: tree().full_posterior(np.zeros((2, 7)), 0.0), ConfigError, "noise = 0.0, must be positive"),
    (lambda: tree().token_posterior(np.zeros((1, 2, 3)), np.zeros((1, 2)), 1), ShapeError, "D is 7"),
    (lambda: sample_estimate(np.zeros((2, 7)), 3, 1.0), ShapeError, "at least D examples"),
    (lambda: gaussian_error([1, 2], 3, 0.1), ShapeError, "0 to D of them"),
    (lambda: noiseless_error([1, -2], 1), ConfigError, "not negative"),
    (lambda: Constrained(tree(), 0.3, 8), ConfigError, "more than 7 directions cannot be orthonormal"),
    (lambda: Constrained(tree(), 0.3, 0), ConfigError, "layers = 0"),
    (lambda: Constrained(tree(), -1, 1), ConfigError, "noise = -1"),
    (lambda: Constrained(tree(), 0.3, 1, readout=0), ConfigError, "readout = 0"),
    (lambda: Constrained(tree(), 0.3, 1, orthonormal=False), ConfigError, "needs orthonormal directions"),
    (lambda: Constrained(tree(), 0.3, 1, dtype="float16"), ConfigError, "must be float32 or float64"),
    (lambda: Constrained(tree(), 0.3, 1, parameters=np.zeros(3)), ShapeError, r"parameters \[3\]"),
    (lambda: Constrained(tree(), 0.3, 1).run(np.zeros((2, 3))), ShapeError, r"estimate \[2, 3\]: \[n, D\]"),
    (lambda: Constrained(tree(), 0.3, 1).run(), ConfigError, "give one of them"),
    (lambda: Constrained(tree(), 0.3, 1).run(np.zeros((2, 7)), start=1), ConfigError, "needs the messages"),
    (lambda: Constrained(tree(), 0.3, 1).run(np.zeros((2, 7)), start=2), ConfigError, "has 1 layers"),
    (lambda: Constrained(tree(), 0.3, 1).run(np.zeros((2, 7)), w=np.zeros((3, 7))), ShapeError, r"w \[3, 7\] for 2"),
    (
        lambda: Constrained(tree(), 0.3, 1).run(examples=(np.zeros((2, 4, 7)), np.zeros((2, 3)))),
        ShapeError,
        r"x \[2, 4, 7\] and y \[2, 3\]",
    ),
    (lambda: fit([tree(), gaussian()], 0.3, 1, seeds=(0, 1)), ConfigError, "different numbers of centres"),
    (lambda: fit(tree(), 0.3, 1, seeds=()), ConfigError, "1 priors for seeds|0 priors for seeds"),
    (lambda: fit(tree(), 0.3, 1, steps=0), ConfigError, "steps = 0"),
    (lambda: node_directions(9), ConfigError, "depth = 9"),
    (lambda: node_directions(2, 4), ConfigError, "terms = 4"),
    (lambda: programme(gaussian(), 0.3, (1,)), ConfigError, "differs between directions"),
    (lambda: programme(tree(), 0.3, (0,)), ConfigError, "one positive whole number for each layer"),
    (lambda: programme(tree(), 0.3, (8,)), ShapeError, "8 messages"),
    (lambda: programme(tree(), 0.3, (1,), np.zeros((1, 7))), ConfigError, "finite and not zero"),
    (lambda: programme(tree(), 0.3, (1,), np.zeros((1, 3))), ShapeError, r"directions \[1, 3\], D is 7"),
    (lambda: programme(tree(), 0.3, (2,), np.eye(7)[:1]), ConfigError, "more directions than there are"),
    (lambda: programme(tree(), 0.3, (1,), step=0), ConfigError, "step = 0"),
]


@pytest.mark.parametrize("number", range(len(REFUSALS)))
def test_refusals(number: int) -> None:
    call, kind, message = REFUSALS[number]
    with pytest.raises(kind, match=message):
        call()


def test_a_loss_that_is_no_number_is_told() -> None:
    with pytest.raises(clew.TrainingError, match="lower the learning rate"):
        fit(tree(), 0.3, 2, readout=8, steps=50, rate=1e30)
