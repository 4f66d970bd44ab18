"""Probes against scikit-learn, decoding against SciPy's spanning trees, and what is refused."""

from __future__ import annotations

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, TokenError, mazes, probe
from clew.mazes.probes import _auc
from clew.mazes.prompts import bootstrap, path_prompts, residuals
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score


@pytest.fixture(scope="module")
def model() -> clew.Model:
    config = mazes.hallway_config(n_layers=2, d_model=24, n_heads=2, d_mlp=48, initializer_range=0.2)
    return clew.Model.from_config(config, seed=1, dtype="float64")


def test_probes_are_scikit_learns() -> None:
    rng, lam, n = np.random.default_rng(0), 1e-2, 600
    X = rng.standard_normal((n, 8)) @ rng.standard_normal((8, 8)) + 3
    Y = (X @ rng.standard_normal((8, 3)) + rng.standard_normal((n, 3)) > 4).astype(float)
    size = np.trace(np.cov(X.T, bias=True)) / 8
    theirs = Ridge(alpha=lam * size * n).fit(X, Y)
    sums = probe.Moments()
    for rows in (slice(0, 7), slice(7, 400), slice(400, n)):
        sums.add(X[rows], Y[rows])
    for ours in (probe.ridge(X, Y, lam), sums.ridge(lam)):
        assert np.allclose(ours.weight, theirs.coef_.T) and np.allclose(ours.bias, theirs.intercept_)
    ours = probe.logistic(X, Y, lam, steps=5000, tol=1e-9)
    for t in range(3):
        other = LogisticRegression(C=4 / (n * lam * size), tol=1e-10, max_iter=10000).fit(X, Y[:, t])
        assert np.allclose(ours.weight[:, t], other.coef_[0], atol=1e-5)
        assert np.array_equal(ours.predict(X)[:, t], other.predict(X) > 0.5)


def test_what_probes_refuse() -> None:
    with pytest.raises(ShapeError, match=r"activations \[3, 2\] and targets \[4, 1\]"):
        probe.ridge(np.ones((3, 2)), np.ones((4, 1)))
    with pytest.raises(ConfigError, match="lam = -1"):
        probe.ridge(np.ones((3, 2)), np.ones((3, 1)), -1)
    with pytest.raises(ConfigError, match="no rows"):
        probe.Moments().ridge()
    with pytest.raises(ConfigError, match="0 or 1"):
        probe.logistic(np.ones((3, 2)), np.full((3, 1), 2))
    with pytest.raises(ConfigError, match="lam = 0"):
        probe.logistic(np.ones((3, 2)), np.ones((3, 1)), 0)


def test_trees_are_maximum_spanning_trees() -> None:
    scores = np.random.default_rng(1).random((20, 24)) + 0.5
    walls, ends = mazes.spanning_trees(scores, 4), mazes.inner_walls(4) @ [4, 1]
    for row, found in zip(scores, walls, strict=True):
        graph = np.zeros((16, 16))
        graph[ends[:, 0], ends[:, 1]] = 2 - row
        assert (~found).sum() == 15
        assert (2 - row)[~found].sum() == pytest.approx(minimum_spanning_tree(graph).sum())
    ms = mazes.generate(10, 4)
    truth = mazes.walls_of(ms)
    assert np.array_equal(mazes.spanning_trees(~truth, 4), truth)
    for maze, row in zip(ms, truth, strict=True):
        assert [not maze.connected(a, b) for a, b in mazes.inner_walls(4)] == row.tolist()
    with pytest.raises(ShapeError, match="expected"):
        mazes.spanning_trees(scores, 5)


def test_walls_at_every_layer(model: clew.Model) -> None:
    train, test = mazes.generate(300, 3, seed=1, split="train"), mazes.generate(40, 3, seed=2, split="test")
    found = mazes.wall_probes(model, train, test)
    X, Xt = (
        model.run([[*row, 6] for row in mazes.Tokenizer(7).encode_batch(ms, path=False)], capture="resid_post")
        for ms in (train, test)
    )
    truth, other = mazes.walls_of(train), mazes.walls_of(test)
    for layer in range(2):
        x, xt = X["resid_post", layer][:, -1], Xt["resid_post", layer][:, -1]
        size = np.trace(np.cov(x.T, bias=True)) / 24
        theirs = Ridge(alpha=1e-3 * size * len(x)).fit(x, truth.astype(float)).predict(xt) > 0.5
        assert found["ridge"].accuracy[layer] == pytest.approx((theirs == other).mean(), abs=1e-3)
        assert found["ridge"].exact[layer] == pytest.approx((theirs == other).all(1).mean(), abs=0.026)
    frequent = truth.mean(0) >= 0.5
    assert found.majority == pytest.approx((other == frequent).mean())
    assert found.wall((0, 0), (1, 0)) == 0 and found.openness(x[:2], 0).shape == (2, 2, 3, 3)


def test_what_wall_probes_refuse(model: clew.Model) -> None:
    ms = mazes.generate(20, 3)
    with pytest.raises(ConfigError, match="in both parts"):
        mazes.wall_probes(model, ms, ms)
    with pytest.raises(ConfigError, match="no maze"):
        mazes.wall_probes(model, ms, ms[:0])
    with pytest.raises(ShapeError, match="one size"):
        mazes.wall_probes(model, ms, mazes.generate(5, 4))
    with pytest.raises(TokenError, match="larger"):
        mazes.wall_probes(model, mazes.generate(5, 9), ms)
    with pytest.raises(ConfigError, match="methods"):
        mazes.wall_probes(model, ms, ms, methods=["lasso"])


def test_area_under_the_curve_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.3
    scores = np.round(rng.standard_normal(300) + truth, 1)  # with ties
    assert _auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))
    assert np.isnan(_auc(scores, np.ones(300, bool)))


def test_route_probes_are_ridge_regressions_on_the_stream(model: clew.Model) -> None:
    train, test = (mazes.generate(n, 4, split=part) for n, part in ((150, "train"), (60, "test")))
    found = mazes.route_probes(model, train, test, position="origin", lam=1e-2, seed=5)
    tok = mazes.tokenizer_of(model)
    data = []
    for i, ms in enumerate((train, test)):
        asked = path_prompts(ms, tok, "origin", 5 + i)
        x = np.concatenate([part for _, part in residuals(model, asked)], axis=1)
        data.append((x, asked.mazes.path_lengths - 1))
    (x, y), (x_test, y_test) = data
    for layer in range(2):
        size = np.trace(np.cov(x[layer].T, bias=True)) / 24
        theirs = Ridge(alpha=1e-2 * size * len(y)).fit(x[layer], y)
        error = np.mean((theirs.predict(x_test[layer]) - y_test) ** 2)
        assert found.distance_r2[layer] == pytest.approx(1 - error / np.var(y_test))


def test_a_bag_of_tokens_and_an_untrained_model_are_baselines(model: clew.Model) -> None:
    train, test = (mazes.generate(n, 3, split=part) for n, part in ((800, "train"), (200, "test")))
    bag = mazes.wall_probes("bag of tokens", train, test, methods=["ridge"], tokenizer=mazes.Tokenizer(3))
    assert bag["ridge"].accuracy[0] > bag.majority + 0.03  # cells of few edges have walls around them
    assert bag["ridge"].accuracy[0] > bag["ridge"].control[0] + 0.03
    first, again, other = (mazes.untrained(model, seed) for seed in (0, 0, 1))
    assert first.config == model.config and first.dtype == model.dtype
    assert np.array_equal(first.W_E, again.W_E) and not np.array_equal(first.W_E, other.W_E)


def test_intervals_are_scipys() -> None:
    values = np.random.default_rng(4).exponential(size=200)
    ours = bootstrap(values, draws=20000)
    theirs = scipy_bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(5))
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    middle = bootstrap(np.append(values, np.nan), np.median)
    assert middle.n == 200 and middle.low < np.median(values) < middle.high
    with pytest.raises(ConfigError, match="no rows"):
        bootstrap([np.nan])
