"""Settings of in-context regression: moments and structure of what is drawn, seeds, curricula, layouts, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew.regression import tasks

SETTINGS: dict[str, Callable[[], tasks.Setting]] = {
    "dense": lambda: tasks.dense(6, weight_cov=[1, 2, 3, 4, 5, 6]),
    "noisy": lambda: tasks.noisy(6, 0.5),
    "sparse": lambda: tasks.sparse(6, 2),
    "skewed": lambda: tasks.skewed(6),
    "scaled": lambda: tasks.scaled(6, 3.0, 0.5),
    "quadrants": lambda: tasks.quadrants(6),
    "opposite": lambda: tasks.quadrants(6, "opposite"),
    "uniform": lambda: tasks.uniform(6, 0.5),
    "correlated": lambda: tasks.correlated([1, 1, 0.25, 0.0625, 1, 2]),
    "normalised": lambda: tasks.normalised(6, 0.1),
    "mixture": lambda: tasks.mixture(6, 9),
    "mixture of any": lambda: tasks.mixture(6, None),
    "decision tree": lambda: tasks.decision_tree(6),
    "relu network": lambda: tasks.relu_network(6, 20),
    "tree": lambda: tasks.tree_contexts((1.0, 0.7, 0.5)),
    "flat": lambda: tasks.tree_contexts((1.0, 0.7, 0.5), "flat", mix=0.5),
    "codebook": lambda: tasks.tree_contexts((1.0, 0.7, 0.5), "codebook", scatter=0.1),
}


@pytest.fixture(params=SETTINGS)
def setting(request: Any) -> tasks.Setting:
    return SETTINGS[request.param]()


def assert_mean(values: Any, expected: Any, errors: float = 5.0) -> None:
    """The mean over the first axis is as expected, to within so many standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - expected), errors * error + 1e-12)


# ---- Every setting --------------------------------------------------------------------------------------------------


def test_shapes_seeds_and_functions(setting: tasks.Setting) -> None:
    a, b = setting.sample(5, 9, seed=3), setting.sample(5, 9, seed=3)
    assert a.X.shape == (5, 9, setting.d) and a.y.shape == a.f.shape == a.wanted.shape == (5, 9) and len(a) == 5
    for name in ("X", "y", "f", "w", "latent", "Xq", "fq"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a.X, setting.sample(5, 9, seed=4).X)
    rng = np.random.default_rng(0)
    assert not np.array_equal(setting.sample(5, 9, rng).X, setting.sample(5, 9, rng).X)  # moved on
    if a.w is not None:
        np.testing.assert_allclose(a.f, np.einsum("bnd,bd->bn", a.X, a.w), rtol=1e-13)
        np.testing.assert_allclose(a.wanted, np.einsum("bnd,bd->bn", a.queries, a.w), rtol=1e-13)
    if setting.noise_var == 0:
        np.testing.assert_array_equal(a.y, a.f)
    else:
        many = setting.sample(2000, 4, seed=1)
        assert_mean(np.square(many.y - many.f).mean(axis=1), setting.noise_var)


def test_dims_cut_coordinates(setting: tasks.Setting) -> None:
    prompts = setting.sample(4, 5, seed=0, dims=2)
    assert prompts.X[:, :, :2].all() and not prompts.X[:, :, 2:].any() and not prompts.queries[:, :, 2:].any()


# ---- Each one -------------------------------------------------------------------------------------------------------


def test_second_moments_of_inputs_and_weights() -> None:
    for name, cov_x, cov_w in [
        ("dense", np.eye(6), np.diag([1.0, 2, 3, 4, 5, 6])),
        ("scaled", 9 * np.eye(6), 0.25 * np.eye(6)),
        ("uniform", np.eye(6) / 12, np.eye(6)),
        ("normalised", np.eye(6) / 6, np.eye(6)),
        ("correlated", np.diag([1, 1, 0.25, 0.0625, 1, 2]), np.diag([1, 1, 4, 16, 1, 0.5])),
        ("skewed", np.eye(6), np.eye(6)),  # turned anew for each prompt: isotropic on average
        ("mixture of any", np.eye(6), np.eye(6)),
    ]:
        prompts = SETTINGS[name]().sample(20_000, 1, seed=2)
        assert prompts.w is not None
        assert_mean(np.einsum("bi,bj->bij", prompts.X[:, 0], prompts.X[:, 0]), cov_x)
        assert_mean(np.einsum("bi,bj->bij", prompts.w, prompts.w), cov_w)


def test_skewed_prompts_share_a_covariance() -> None:
    prompts = tasks.skewed(4).sample(3, 20_000, seed=0)
    wanted = np.arange(1, 5) ** -2.0
    for x in prompts.X:
        np.testing.assert_allclose(np.linalg.eigvalsh(x.T @ x / len(x))[::-1], 4 * wanted / wanted.sum(), rtol=0.1)


def test_sparse_weights() -> None:
    w = tasks.sparse(20, 3).sample(4000, 1, seed=0).w
    assert w is not None and ((w != 0).sum(axis=1) == 3).all()
    assert_mean(w != 0, 3 / 20)


def test_quadrants() -> None:
    for name in ("quadrants", "opposite"):
        prompts = SETTINGS[name]().sample(500, 4, seed=0)
        assert prompts.Xq is not None
        sign = np.sign(prompts.X[:, 0])
        assert (np.sign(prompts.X) == sign[:, None]).all()
        same = np.sign(prompts.Xq) == sign[:, None]
        assert not same.any() if name == "opposite" else 0.45 < same.mean() < 0.55


def test_mixture_tasks() -> None:
    few, many = tasks.mixture(6, 9, seed=1), tasks.mixture(6, 40, seed=1)
    assert isinstance(few.target, tasks.FiniteTasks) and isinstance(many.target, tasks.FiniteTasks)
    np.testing.assert_array_equal(many.target.tasks[:9], few.target.tasks)
    assert not np.array_equal(tasks.mixture(6, 9, seed=2).target.tasks, few.target.tasks)  # type: ignore[attr-defined]
    prompts = few.sample(2000, 1, seed=5)
    assert prompts.latent is not None and set(prompts.latent) == set(range(9))
    np.testing.assert_array_equal(prompts.w, few.target.tasks[prompts.latent])


def test_decision_trees_follow_their_nodes() -> None:
    target = tasks.DecisionTrees(depth=3)
    rng = np.random.default_rng(0)
    asked, leaves = target.draw(rng, 4, 5)
    x = rng.standard_normal((4, 6, 5))
    got = target.values((asked, leaves), x)
    for b in range(4):
        for i in range(6):
            node = 0
            while node < 7:
                node = 2 * node + (2 if x[b, i, asked[b, node]] > 0 else 1)
            assert got[b, i] == leaves[b, node - 7]
    assert_mean(np.square(tasks.decision_tree(20).sample(4000, 1, seed=0).f[:, 0]), 1.0)


def test_relu_networks() -> None:
    target = tasks.ReLUNetworks(hidden=7)
    rng = np.random.default_rng(0)
    first, second = target.draw(rng, 2, 3)
    x = rng.standard_normal((2, 5, 3))
    got = target.values((first, second), x)
    for b in range(2):
        for i in range(5):
            hidden = [max(0.0, float(first[b, :, r] @ x[b, i])) for r in range(7)]
            assert got[b, i] == pytest.approx(math.sqrt(2 / 7) * float(second[b] @ hidden), rel=1e-12)
    # E f² = (2 / r) · r · ½ ‖x‖² = d
    assert_mean(np.square(tasks.relu_network(6, 20).sample(20_000, 1, seed=1).f[:, 0]), 6.0)


# ---- Trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["tree", "flat", "codebook"])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_every_context_has_the_same_covariance(prior: Any, mix: float) -> None:
    setting = tasks.tree_contexts((1.0, 0.7, 0.5), prior, mix)
    assert setting.d == 7 and isinstance(setting.target, tasks.TreeContexts)
    variances = [1.0, 0.245, 0.245, 0.0625, 0.0625, 0.0625, 0.0625]
    np.testing.assert_allclose(setting.target.variances, variances, rtol=1e-14)
    w = setting.sample(20_000, 1, seed=0).w
    assert w is not None
    assert_mean(np.einsum("bi,bj->bij", w, w), np.diag(variances))
    assert_mean(w, 0)


def test_atoms() -> None:
    target = tasks.TreeContexts((1.0, 0.7, 0.5))
    np.testing.assert_array_equal(np.count_nonzero(target.atoms, axis=1), 3)  # one node of each level
    np.testing.assert_allclose(target.atoms[5], [1, 0, -0.7, 0, 0, 0.5, 0])  # leaf 101: right, left, right
    book = tasks.TreeContexts((1.0, 0.7, 0.5), "codebook", seed=4).atoms
    np.testing.assert_allclose(book.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(book.T @ book / 8, np.diag(target.variances), atol=1e-14)
    assert not np.allclose(book, tasks.TreeContexts((1.0, 0.7, 0.5), "codebook", seed=5).atoms)
    prompts = tasks.tree_contexts((1.0, 0.7, 0.5)).sample(50, 1, seed=0)
    np.testing.assert_array_equal(prompts.w, target.atoms[prompts.latent])
    with pytest.raises(clew.ConfigError, match="flat prior has 2"):
        tasks.TreeContexts((1.0,), "flat").atoms  # noqa: B018


# ---- Curriculum and layouts -----------------------------------------------------------------------------------------


def test_curriculum_of_garg() -> None:
    curriculum = tasks.Curriculum()
    seen = [curriculum.at(2000 * i) for i in range(17)]
    assert seen[:3] == [(5, 11), (6, 13), (7, 15)] and seen[15:] == [(20, 41), (20, 41)]
    batch = tasks.Stream(tasks.dense(20), 41, "garg", curriculum, seed=1).batch(2000, 3)
    assert batch.tokens.shape == (3, 26, 20)
    assert batch.tokens[:, ::2, :6].all() and not batch.tokens[:, ::2, 6:].any()


def test_layouts() -> None:
    prompts = tasks.dense(3).sample(2, 4, seed=0)
    pairs = tasks.interleaved(prompts)
    assert pairs.tokens.shape == (2, 8, 4) and pairs.targets.shape == (2, 8, 1)
    np.testing.assert_array_equal(pairs.tokens[:, ::2, 1:], prompts.X)
    np.testing.assert_array_equal(pairs.tokens[:, 1::2, 0], prompts.y)
    assert not pairs.tokens[:, ::2, 0].any() and not pairs.tokens[:, 1::2, 1:].any()
    np.testing.assert_array_equal(pairs.targets[:, ::2, 0], prompts.y)
    assert pairs.loss_mask[:, ::2].all() and not pairs.loss_mask[:, 1::2].any()
    garg = tasks.interleaved(prompts, garg=True)
    np.testing.assert_array_equal(garg.tokens[:, ::2], prompts.X)
    np.testing.assert_array_equal(garg.tokens[:, 1::2, 0], prompts.y)
    one = tasks.joined(prompts)
    np.testing.assert_array_equal(one.tokens[..., :3], prompts.X)
    np.testing.assert_array_equal(one.tokens[:, :3, 3], prompts.y[:, :3])
    assert not one.tokens[:, 3, 3].any() and one.loss_mask.sum() == 2
    np.testing.assert_array_equal(one.targets[:, 3, 0], prompts.y[:, 3])
    asked = tasks.quadrants(3).sample(2, 4, seed=0)
    np.testing.assert_array_equal(tasks.joined(asked).tokens[:, -1, :3], asked.queries[:, -1])
    np.testing.assert_array_equal(tasks.joined(asked).targets[:, -1, 0], asked.wanted[:, -1])
    with pytest.raises(clew.ConfigError, match="queries of their own"):
        tasks.interleaved(asked)


def test_streams_are_the_seeds() -> None:
    stream = tasks.Stream(tasks.noisy(3), 5, seed=2)
    np.testing.assert_array_equal(stream.batch(7, 4).tokens, tasks.Stream(tasks.noisy(3), 5, seed=2).batch(7, 4).tokens)
    assert not np.array_equal(stream.batch(7, 4).tokens, stream.batch(8, 4).tokens)
    assert "noisy" in stream.identity() and "seed 2" in stream.identity()


# ---- Closed forms that the settings are for --------------------------------------------------------------------------


def test_error_of_least_squares_and_of_averaging() -> None:
    # d = 6, noiseless: minimum-norm least squares 1 − k/d of the variance, then 0; averaging (d + 1) / k, by d
    d, batch = 6, 3000
    prompts = tasks.dense(d).sample(batch, 13, seed=0)
    for k in (1, 3, 5, 6, 12):
        x, y, query = prompts.X[:, :k], prompts.y[:, :k], prompts.X[:, 12]
        w = np.einsum("bdk,bk->bd", np.linalg.pinv(x), y)
        assert_mean(np.square(np.einsum("bd,bd->b", w, query) - prompts.f[:, 12]) / d, max(0.0, 1 - k / d))
        mean = np.einsum("bkd,bk->bd", x, y) / k
        assert_mean(np.square(np.einsum("bd,bd->b", mean, query) - prompts.f[:, 12]) / d, (d + 1) / k)


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.dense(0), "dense: d = 0, must be a whole number, at least 1"),
        (lambda: tasks.dense(2.5), "d = 2.5"),  # type: ignore[arg-type]
        (lambda: tasks.dense(3, noise_var=-0.5), "noise_var = -0.5, must be a finite number, at least 0"),
        (lambda: tasks.noisy(3, math.nan), "noise_var = nan"),
        (lambda: tasks.dense(2, weight_cov=[[1, 2], [2, 1]]), "not positive definite: its smallest eigenvalue is -1"),
        (lambda: tasks.dense(2, weight_cov=[[1, 2], [0, 5]]), "not symmetric"),
        (lambda: tasks.dense(2, weight_cov=[1, math.inf]), "holds inf"),
        (lambda: tasks.dense(2, weight_cov=[1, 2, 3]), r"\[3\], expected variances \[2\] or a matrix \[2, 2\]"),
        (lambda: tasks.correlated(3.0), "correlated: cov"),
        (lambda: tasks.correlated([3.0], weights="ones"), "weights = 'ones'"),  # type: ignore[arg-type]
        (lambda: tasks.sparse(3, 4), "sparse: nonzero = 4, at most 3"),
        (lambda: tasks.mixture(3, 0), "mixture: M = 0"),
        (lambda: tasks.mixture(3, 2, seed=-1), "seed = -1"),
        (lambda: tasks.uniform(3, -1), "half = -1"),
        (lambda: tasks.quadrants(3, "same"), "query = 'same'"),  # type: ignore[arg-type]
        (lambda: tasks.decision_tree(3, 0), "depth = 0"),
        (lambda: tasks.relu_network(3, 0), "hidden = 0"),
        (lambda: tasks.tree_contexts(()), "depth = 0"),
        (lambda: tasks.tree_contexts((1, -1)), "amplitude = -1"),
        (lambda: tasks.tree_contexts((1,), "forest"), "prior = 'forest'"),  # type: ignore[arg-type]
        (lambda: tasks.tree_contexts((1,), mix=1.5), "mix = 1.5, at most 1"),
        (lambda: tasks.dense(3).sample(0, 4), "batch = 0"),
        (lambda: tasks.dense(3).sample(4, 0), "n = 0"),
        (lambda: tasks.dense(3).sample(4, 4, dims=4), "dims = 4, at most 3"),
        (lambda: tasks.dense(3).sample(4, 4, seed=-1), "seed = -1"),
        (lambda: tasks.Curriculum(dims=(5, 4, 1)), "does not lead"),
        (lambda: tasks.Curriculum(points=(5, 9, 0)), "does not lead"),
        (lambda: tasks.Curriculum(every=0), "every = 0"),
        (lambda: tasks.Curriculum().at(-1), "step = -1"),
        (lambda: tasks.Stream(tasks.dense(3), 5, "rows"), "layout = 'rows'"),  # type: ignore[arg-type]
        (
            lambda: tasks.Stream(tasks.dense(3), 41, curriculum=tasks.Curriculum()),
            "leads to 20 dims, the setting has 3",
        ),
        (lambda: tasks.Stream(tasks.dense(20), 40, curriculum=tasks.Curriculum()), "leads to 41 examples, n = 40"),
    ],
)
def test_refusals(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(clew.Error, match=message):
        make()


def test_layouts_name_both_shapes() -> None:
    x = np.zeros((2, 4, 3))
    with pytest.raises(clew.ShapeError, match=r"y: float64 \[2, 5\] with X \[2, 4, 3\], expected \[2, 4\]"):
        tasks.interleaved(tasks.Prompts(x, np.zeros((2, 5)), np.zeros((2, 5))))
    with pytest.raises(clew.ShapeError, match=r"X: float64 \[2, 3\], expected real numbers \[batch, n, d\]"):
        tasks.joined(tasks.Prompts(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))))
