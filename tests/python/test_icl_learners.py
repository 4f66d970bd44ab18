"""Learners in context: that training finds what theory says, and that every measurement measures what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import regression
from clew.regression import constructed, learners, tasks
from support import relative_error

D, N = 3, 6
DATA = Path(clew.__file__).parent / "data" / "icl"


def wrap(built: constructed.Construction, n: int) -> learners.Learner:
    """A construction over joined tokens as if it had been trained."""
    return learners.Learner(built.model, "linear", built.d, n, clew.train.Curve(), {})


@pytest.fixture(scope="module")
def prompts() -> tasks.Prompts:
    return tasks.dense(D, noise_var=0.1).sample(40, N, seed=0)


@pytest.fixture(scope="module")
def exact() -> learners.Learner:
    return wrap(constructed.gd(D, 3, 0.4), N - 1)


@pytest.fixture(scope="module")
def gpt2() -> learners.Learner:
    setting = tasks.noisy(D, 0.25)
    return learners.train(setting, N, "gpt2", n_layers=2, width=16, n_heads=2, steps=30, batch=16, seed=1)


# ---- Training -------------------------------------------------------------------------------------------------------


def test_one_linear_layer_learns_the_best_gradient_step() -> None:
    """d = 3, 5 examples, x ~ U(−1, 1): the loss comes to that of the best step, and the predictions to the step's."""
    d, n = 3, 5
    v, fourth = 1 / 3, 1 / 5
    m = ((n - 1) * v**2 + fourth + (d - 1) * v**2) / n
    best = v * d * (1 - v**2 / m)
    setting = tasks.uniform(d)
    learner = learners.train(setting, n, "linear", n_layers=1, steps=400, batch=256, lr=2e-2, seed=0)
    prompts = setting.sample(8000, n + 1, seed=9)
    own = learner.fit_last(prompts.X, prompts.y)
    step = constructed.gd(d, 1, v / m).fit_predict(prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:])[:, 0]
    errors = np.square(own - prompts.f[:, -1])
    assert abs(errors.mean() - best) <= 4 * errors.std() / math.sqrt(len(errors)) + 0.01 * best
    assert np.square(own - step).mean() < 0.01 * np.square(step).mean()
    steps = learners.gradient_steps(learner, prompts, 3)
    assert steps.likest[-1] == 1 and steps.distance[-1, 1] < 0.01
    assert steps.rate[-1, 1] == pytest.approx(v / m, rel=0.1)
    weights = v / m * np.einsum("bni,bn->bi", prompts.X[:, :-1], prompts.y[:, :-1]) / n
    assert learners.likeness(learner, prompts, weights).cosine > 0.99


def test_training_is_its_seed() -> None:
    setting = tasks.dense(D)
    a, b, c = (
        learners.train(setting, N, "softmax", n_layers=1, steps=5, batch=8, seed=seed, curriculum=curriculum)
        for seed, curriculum in ((0, None), (0, None), (0, tasks.Curriculum((1, 3, 1), (3, 7, 2), 2)))
    )
    assert a.curve.rows == b.curve.rows != c.curve.rows
    np.testing.assert_array_equal(a.model.W_Q, b.model.W_Q)
    assert a.record["steps"] == 5 and a.record["kind"] == "softmax" and a.record["seed"] == 0


@pytest.mark.parametrize("kind", ["gpt2", "softmax", "linear"])
def test_all_kinds_learn_something(kind: Any) -> None:
    setting = tasks.dense(2)
    learner = learners.train(setting, 4, kind, n_layers=1, steps=60, batch=32, lr=1e-2)
    assert learner.curve.losses[-10:].mean() < learner.curve.losses[:10].mean()
    prompts = setting.sample(5, 4, seed=3)
    all_of_them = learner.predict(prompts.X, prompts.y)
    assert all_of_them.shape == (5, 4) and all_of_them.dtype == np.float64
    np.testing.assert_allclose(learner.fit_last(prompts.X, prompts.y), all_of_them[:, -1], rtol=1e-4, atol=1e-5)
    # a prediction reads nothing of its own label nor of what comes later
    y = prompts.y.copy()
    y[:, 2:] += 1
    np.testing.assert_allclose(learner.predict(prompts.X, y)[:, :3], all_of_them[:, :3], rtol=1e-4, atol=1e-5)


# ---- Measurements ---------------------------------------------------------------------------------------------------


def test_reading_a_construction(prompts: tasks.Prompts, exact: learners.Learner) -> None:
    built = constructed.gd(D, 3, 0.4)
    assert relative_error(exact.predict(prompts.X, prompts.y), built.predict(prompts.X, prompts.y)) <= 1e-12
    assert relative_error(exact.layers(prompts.X, prompts.y), built.layers(prompts.X, prompts.y)) <= 1e-12
    assert exact.residuals(prompts.X, prompts.y).shape == (4, 40, N, D + 1)


def test_sensitivity_is_the_weight_vector(prompts: tasks.Prompts, exact: learners.Learner) -> None:
    w = regression.gd(prompts.X, prompts.y, 3, 0.4, weights=True)[1][:, -1]
    assert relative_error(exact.sensitivity(prompts.X, prompts.y), w) <= 1e-12
    alike = learners.likeness(exact, prompts, w)
    assert alike.cosine == pytest.approx(1) and alike.distance < 1e-12 and alike.prediction < 1e-12
    turned = learners.likeness(exact, prompts, -2 * w)
    assert turned.cosine == pytest.approx(-1)
    assert turned.distance == pytest.approx(3 * np.linalg.norm(w, axis=1).mean())


def test_sensitivity_equals_differences(gpt2: learners.Learner) -> None:
    prompts = tasks.noisy(D).sample(6, N, seed=4)
    double = clew.Model(
        clew.loaders.checkpoint.Checkpoint(
            gpt2.model.config, {k: v.astype(np.float64) for k, v in gpt2.model.weights.items()}, np.dtype(np.float64)
        )
    )
    learner = learners.Learner(double, "gpt2", D, N, gpt2.curve, {})
    slope = learner.sensitivity(prompts.X, prompts.y)
    for i in range(D):
        step = np.zeros((6, N, D))
        step[:, -1, i] = 1e-5
        up, down = (learner.predict(prompts.X + s, prompts.y)[:, -1] for s in (step, -step))
        np.testing.assert_allclose((up - down) / 2e-5, slope[:, i], rtol=1e-6, atol=1e-8)


def test_compare(prompts: tasks.Prompts, exact: learners.Learner) -> None:
    solvers: dict[str, learners.Solver] = {
        "ols": regression.ols,
        "gd": lambda x, y: regression.gd(x, y, 3, 0.4),
        "nothing": lambda x, y: np.zeros(y.shape),
    }
    seen = learners.compare(exact, prompts, solvers)
    assert seen.distances["gd"].max() < 1e-24 and seen.closest[1:] == ["gd"] * (N - 1)
    gd = regression.gd(prompts.X, prompts.y, 3, 0.4)
    np.testing.assert_allclose(seen.errors["model"], np.square(gd - prompts.f).mean(axis=0) / D, rtol=1e-10)
    apart = np.square(gd - regression.ols(prompts.X, prompts.y)) / D
    np.testing.assert_allclose(seen.distances["ols"], apart.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(seen.standard_errors["ols"], apart.std(axis=0, ddof=1) / math.sqrt(40), rtol=1e-9)
    assert seen.total["ols"] == pytest.approx(apart.mean(), rel=1e-9)
    assert "error model" in repr(seen) and "to ols" in repr(seen)


def test_by_layer_and_steps(prompts: tasks.Prompts, exact: learners.Learner) -> None:
    solvers = {f"{k}": lambda x, y, k=k: regression.gd(x, y, k, 0.4) for k in (1, 2, 3)}
    layers = learners.by_layer(exact, prompts, solvers)
    for k in (1, 2, 3):
        assert layers[str(k)].shape == (4, N)
        assert layers[str(k)].mean(axis=1).argmin() == k and layers[str(k)][k].max() < 1e-24
    steps = learners.gradient_steps(exact, prompts, 4, rates=[0.1, 0.4, 0.9])
    assert steps.likest.tolist() == [0, 1, 2, 3]
    for k in (1, 2, 3):
        assert steps.distance[k, k] < 1e-24 and steps.rate[k, k] == 0.4


def test_probe(gpt2: learners.Learner) -> None:
    many = tasks.noisy(D).sample(400, N, seed=5)
    stream = gpt2.residuals(many.X, many.y)[:, :, -1].astype(np.float64)
    rng = np.random.default_rng(0)
    here = stream[2] @ rng.standard_normal((16, 2))
    first = stream[0] @ rng.standard_normal((16, 2))
    noise = rng.standard_normal((400, 2))
    read = learners.probe(gpt2, many, {"here": here, "first": first, "noise": noise, "x": many.X[:, -1]}, penalty=1e-9)
    assert read["here"][2] > 0.999999 > read["here"][0] and read["first"][0] > 0.999999 > read["first"][2]
    assert read["noise"].max() < 0.05  # held out: nothing can be read of it
    assert read["x"][0] > 0.999  # the embedding holds the query
    moments = learners.second_moments(many.X)
    want = np.einsum("bni,bnj->bij", many.X[:, :-1], many.X[:, :-1]) / (N - 1)
    np.testing.assert_allclose(moments[:, :3], want[:, 0], rtol=1e-12)
    np.testing.assert_allclose(moments[:, 3:], want[:, [1, 1, 2], [1, 2, 2]], rtol=1e-12)
    assert not learners.second_moments(many.X, 0).any()


def test_diversity() -> None:
    rows = []
    out = learners.diversity(
        (2, None), d=2, K=4, steps=8, prompts=64, width=8, n_heads=2, batch=8, seeds=(0, 1), done=rows.append
    )
    assert out.rows == rows and [(r["M"], r["seed"]) for r in rows] == [(2, 0), (None, 0), (2, 1), (None, 1)]
    # an untrained learner says about 0: its distance to a solver is the solver's own square
    setting = tasks.mixture(2, 2, 0.25, 0)
    fresh = tasks.mixture(2, None, 0.25).sample(64, 4, seed=10_000)
    dmmse = regression.dmmse(fresh.X, fresh.y, setting.target.tasks, 0.25)  # type: ignore[attr-defined]
    ridge = regression.ridge(fresh.X, fresh.y, 0.25)
    assert rows[0]["apart"] == pytest.approx(np.square(dmmse - ridge).mean() / 2, rel=1e-12)
    assert rows[0]["dmmse"] == pytest.approx(np.square(dmmse).mean() / 2, rel=0.1)
    assert rows[0]["old_ridge"] is not None and rows[1]["dmmse"] is None and rows[1]["old_ridge"] is None
    assert "∞" in repr(out) and out.record["steps"] == 8
    made = [dict(M=m, seed=0, ridge=r, dmmse=d) for m, r, d in ((4, 2, 1), (32, 1, 2), (256, 1, 2))]
    assert learners.Diversity(made, {}).threshold == 32
    made[2]["ridge"] = 3
    assert learners.Diversity(made, {}).threshold is None


# ---- Linear attention fitted by ridge (Lu et al.) -------------------------------------------------------------------


def test_fitted_attention_is_the_ridge_solution() -> None:
    setting = tasks.normalised(3, 0.1)
    prompts = setting.sample(50, 6, seed=0)
    built = learners.fit_attention(prompts, 0.2)
    features, gamma = learners.attention_features(prompts), learners.attention_weights(prompts, 0.2)
    for b in range(3):  # H = x_q [(d/l) Σ y x, (1/l) Σ y²]
        x, y, query = prompts.X[b, :-1], prompts.y[b, :-1], prompts.X[b, -1]
        want = np.outer(query, np.append(3 / 5 * y @ x, y @ y / 5))
        np.testing.assert_allclose(features[b], want, rtol=1e-12)
    h = features.reshape(50, -1)
    slope = h.T @ (h @ gamma.ravel() - prompts.y[:, -1]) + 0.2 * 50 / 3 * gamma.ravel()
    assert np.abs(slope).max() < 1e-10
    other = setting.sample(4, 6, seed=1)
    want = np.einsum("bij,ij->b", learners.attention_features(other), gamma)
    got = built.fit_predict(other.X[:, :-1], other.y[:, :-1], other.X[:, -1:])[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-11)


def test_limit_of_lu() -> None:
    """Many prompts: the error ρ + x / (1 + x), x = (1 + ρ) / α, up to terms of order 1/d."""
    d, length, noise = 20, 40, 0.25
    setting = tasks.normalised(d, noise)
    x = (1 + noise) * d / length
    built = learners.fit_attention(setting.sample(40_000, length + 1, seed=0), 1e-6)
    prompts = setting.sample(4000, length + 1, seed=1)
    got = built.fit_predict(prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:])[:, 0]
    errors = np.square(got - prompts.y[:, -1])
    # 420 weights fitted to 40,000 prompts add about 1 %; corrections of order 1/d are up to 5 %
    assert abs(errors.mean() / (noise + x / (1 + x)) - 1) < 0.06 + 3 * errors.std() / math.sqrt(4000) / errors.mean()


def test_double_descent() -> None:
    """With almost no penalty the error peaks where there are as many prompts as weights, τ = n / d² ≈ 1."""
    d, length = 8, 16
    setting = tasks.normalised(d, 0.1)
    held = setting.sample(3000, length + 1, seed=1)
    features = learners.attention_features(held).reshape(3000, -1)
    error = {}
    for share in (0.25, 1, 8):
        losses = []
        for seed in range(5):
            gamma = learners.attention_weights(setting.sample(int(share * d * (d + 1)), length + 1, seed + 10), 1e-9)
            losses.append(np.square(features @ gamma.ravel() - held.y[:, -1]).mean())
        error[share] = np.median(losses)
    assert error[1] > 5 * error[0.25] and error[1] > 5 * error[8]


# ---- What was measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda p: p.stem)
def test_records_say_how_they_were_made(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"].startswith("python measure.py ") and "--seeds" in record["command"]
    assert record["clew"] and record["numpy"] and record["seconds"] > 0


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g, p: learners.train(tasks.dense(2), 0), "n = 0"),
        (lambda g, p: learners.train(tasks.dense(2), 4, "rnn"), "kind = 'rnn'"),
        (lambda g, p: learners.train(tasks.dense(2), 4, steps=0), "steps = 0"),
        (lambda g, p: learners.train(tasks.dense(2), 4, n_layers=0), "n_layers = 0"),
        (lambda g, p: learners.train(tasks.dense(2), 4, seed=-1), "seed = -1"),
        (lambda g, p: g.predict(np.zeros((1, 2, 5)), np.zeros((1, 2))), r"X: \[1, 2, 5\] for a learner of d = 3"),
        (lambda g, p: g.predict(np.zeros((1, 7, 3)), np.zeros((1, 7))), "the learner has positions for 6 examples"),
        (lambda g, p: learners.compare(g, p, {}), "solvers is empty"),
        (lambda g, p: learners.compare(g, p, {"bad": lambda x, y: y[:1]}), r"solver bad: predictions \[1, 6\]"),
        (lambda g, p: learners.likeness(g, p, np.zeros((2, 3))), r"weights: \[2, 3\], expected \[40, 3\]"),
        (lambda g, p: learners.gradient_steps(g, p, 0), "steps = 0"),
        (lambda g, p: learners.probe(g, p, {"w": np.zeros(40)}), r"target w: \[40\], expected \[40, m\]"),
        (lambda g, p: learners.probe(g, p, {"w": np.zeros((40, 2))}), "target w does not vary"),
        (lambda g, p: learners.probe(g, p, {"w": p.w}, penalty=-1), "penalty = -1"),
        (lambda g, p: learners.fit_attention(p, -1), "lam = -1"),
        (lambda g, p: learners.fit_attention(tasks.dense(D).sample(3, 1), 1), "1 example: at least 2"),
        (lambda g, p: constructed.attention(np.zeros((3, 3))), r"gamma: \[3, 3\], expected \[d, d \+ 1\]"),
        (lambda g, p: learners.probe(g, tasks.dense(D).sample(2, N), {"w": p.w}), "2 prompts, at least 4"),
    ],
)
def test_refusals(
    gpt2: learners.Learner, prompts: tasks.Prompts, make: Callable[[Any, Any], Any], message: str
) -> None:
    with pytest.raises(clew.Error, match=message):
        make(gpt2, prompts)
