"""Gradients against finite differences in double: by every weight and every site of every architecture."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from clew.gradients import WeightGradients
from clew.loaders.checkpoint import Checkpoint
from numpy.typing import NDArray
from support import make, relative_error
from zoo import random_tokens, zoo

Array = NDArray[Any]
ZOO = zoo()
TOKENS = {name: c for name, c in ZOO.items() if c.d_in is None}
LENGTHS = [7, 4]
STEP = 1e-5
EXACT = 1e-6


def slope(value: Any) -> float:
    """Derivative of value(t) at 0, from four points: the error is of order STEP⁴."""
    near, far = value(STEP / 2) - value(-STEP / 2), value(STEP) - value(-STEP)
    return float((8 * near - far) / (6 * STEP))


def assert_slope(got: float, want: float, what: str) -> None:
    # what rounding leaves of a difference of losses of order 1, far below the tolerance for any slope that matters
    assert abs(got - want) <= EXACT * max(abs(got), abs(want)) + 2e-10 / STEP * 1e-2, f"{what}: {got} is not {want}"


def batch_of(config: clew.ModelConfig) -> tuple[list[list[int]], Array, Array, Array]:
    """Ragged prompts; their tokens end to end, targets (one row has none) and weights of rows."""
    rng = np.random.default_rng(5)
    ids = rng.integers(0, config.d_vocab, sum(LENGTHS)).astype(np.int32)
    targets = rng.integers(0, config.d_vocab_out, len(ids)).astype(np.int32)
    targets[3] = -1
    prompts = [row.tolist() for row in np.split(ids, np.cumsum(LENGTHS)[:-1])]
    return prompts, ids, targets, rng.random(len(ids)) + 0.2


def weighted_loss(model: clew.Model, prompts: list[list[int]], targets: Array, weights: Array, **more: Any) -> float:
    """The loss from logits, by its definition."""
    run = model.run(prompts, **more)
    x = np.concatenate([run.logits[i, :n] for i, n in enumerate(LENGTHS)])
    log_p = x - x.max(axis=-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    real = targets >= 0
    picked = -log_p[np.arange(len(x)), targets]
    return float((weights * picked)[real].sum() / weights[real].sum())


@pytest.mark.parametrize("name", TOKENS)
def test_by_every_weight(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    prompts, ids, targets, scale = batch_of(config)
    loss, grads = WeightGradients(model, LENGTHS).run(ids, targets, scale)
    assert abs(loss - weighted_loss(model, prompts, targets, scale)) <= 1e-12 * max(abs(loss), 1)
    assert set(grads) == set(model.weights)
    rng = np.random.default_rng(1)
    for full, value in weights.items():
        tied = config.tie_word_embeddings
        if tied and full == "unembed.W_U":
            assert np.array_equal(grads[full], grads["embed.W_E"].T)
            continue
        along = rng.standard_normal(value.shape)
        along /= np.linalg.norm(along)
        assert grads[full].shape == value.shape, full

        def moved(t: float, full: str = full, along: Array = along) -> float:
            other = dict(weights)
            other[full] = weights[full] + t * along
            if config.tie_word_embeddings and full == "embed.W_E":
                other["unembed.W_U"] = other[full].T
            return weighted_loss(clew.Model(Checkpoint(config, other, np.dtype("f8"))), prompts, targets, scale)

        assert_slope(float((grads[full] * along).sum()), slope(moved), full)


WIDE = {
    f"{name}, {width} neurons": TOKENS[name].replace(d_mlp=width) for name in ("gpt2", "llama3") for width in (119, 300)
}
"""Layers of several tiles and panels, the last of which is not full."""


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2", "qwen3", "attn_only", "window_3_learned", *WIDE])
def test_many_rows_equal_few(name: str) -> None:
    """600 rows, where weights are transposed first, against the same sequences two at a time."""
    config = WIDE.get(name) or TOKENS[name]
    model, _ = make(config)
    rng = np.random.default_rng(6)
    n = 600 // 6
    ids = rng.integers(0, config.d_vocab, (n, 6)).astype(np.int32)
    targets = rng.integers(0, config.d_vocab_out, (n, 6)).astype(np.int32)
    loss, grads = WeightGradients(model, [6] * n).run(ids.ravel(), targets.ravel())
    few = WeightGradients(model, [6] * 2)
    parts = [few.run(ids[i : i + 2].ravel(), targets[i : i + 2].ravel()) for i in range(0, n, 2)]
    assert abs(loss - np.mean([value for value, _ in parts])) <= 1e-12
    for full, gradient in grads.items():
        want = np.mean([g[full] for _, g in parts], axis=0)  # of b_K zero, but for rounding
        assert np.abs(gradient - want).max() <= 1e-11 * max(float(np.abs(want).max()), 1e-3), full


@pytest.mark.parametrize("name", TOKENS)
def test_recomputation_gives_the_same_bits(name: str) -> None:
    model, _ = make(TOKENS[name])
    _, ids, targets, scale = batch_of(TOKENS[name])
    kept, again = WeightGradients(model, LENGTHS), WeightGradients(model, LENGTHS, recompute=True)
    (loss, grads), (same, others) = kept.run(ids, targets, scale), again.run(ids, targets, scale)
    assert loss == same and all(np.array_equal(grads[full], others[full]) for full in grads)
    more = {True: again.flops > kept.flops, False: again.flops == kept.flops}
    assert more[model.config.n_layers > 1]


def test_weights_that_move_when_a_model_is_trained() -> None:
    model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    ids, targets = np.array([1, 2, 3], np.int32), np.array([2, 3, -1], np.int32)
    early = WeightGradients(model, [3])
    before = early.run(ids, targets)[0]
    model.train_step([1, 2, 3], optimizer=clew.AdamW(model, lr=0.1))
    after = WeightGradients(model, [3]).run(ids, targets)[0]
    assert early.run(ids, targets)[0] == after < before


def test_recomputation_saves_what_it_says() -> None:
    config = clew.ModelConfig(n_layers=8, d_model=32, n_heads=4, n_ctx=64, d_vocab=50)
    model = clew.Model.from_config(config)
    kept, again = (WeightGradients(model, [64] * 4, recompute=r) for r in (False, True))
    rows = 256 * 4  # bytes of one column
    block = rows * 32 * (4 + 3 + 2 * 4)  # q k v z, norms and the residual between, the MLP before and behind its act
    assert kept.scratch_bytes - again.scratch_bytes >= 6 * block
    assert kept.flops < again.flops < 4 / 3 * kept.flops


@pytest.mark.parametrize("name", TOKENS)
def test_by_every_site(name: str) -> None:
    """A site is moved by an edit; gradients are taken by one site at a time and by all of them at once."""
    config = ZOO[name]
    model, _ = make(config)
    prompts, *_ = batch_of(config)
    if config.d_vocab_out < config.d_vocab:
        prompts = [[t % config.d_vocab_out for t in p] for p in prompts]  # each token is the one before's target
    rng = np.random.default_rng(2)
    names = list(model.sites())
    every = model.gradients(prompts, metrics.loss(), wrt=names)
    plain = model.run(prompts, capture="*")
    assert abs(every.total - model.loss(prompts, reduce="mean")) <= 1e-12 * max(abs(every.total), 1)
    for full in names:
        alone = model.gradients(prompts, metrics.loss(), wrt=[full])
        assert relative_error(every[full], alone[full]) <= 1e-10 or np.abs(every[full] - alone[full]).max() < 1e-14, (
            full
        )
        value = plain[full]
        along = rng.standard_normal(value.shape)
        site, _ = model.sites().find(full)[0]
        inside: list[Any] = [1, *[slice(None)] * (value.ndim - 1)]
        inside[site.axes.index("pos")] = slice(LENGTHS[1], None)
        along[tuple(inside)] = 0
        assert not alone[full][tuple(inside)].any(), f"{full}: padding"
        if "key_pos" in site.axes:
            along[1, ..., LENGTHS[1] :] = 0
        along[np.isneginf(value)] = 0  # what a mask hides stays hidden
        along /= max(float(np.linalg.norm(along)), 1e-300)

        def moved(t: float, full: str = full, along: Array = along) -> float:
            return float(model.loss(prompts, reduce="mean", edits=[edit.add(full, t * along)]))

        assert_slope(float((alone[full] * along).sum()), slope(moved), full)


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(ZOO["gpt2"])[0]


def cubed(logits: Array) -> tuple[Array, Array]:
    """A metric of one's own: the mean third power of all logits of the second position."""
    slope_of = np.zeros_like(logits)
    slope_of[:, 1] = 3 * logits[:, 1] ** 2
    return (logits[:, 1] ** 3).sum(axis=-1), slope_of


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "llama3", "linear_full", "linear_full_exclude_last", "attn_only", "gpt_neox"]
)
@pytest.mark.parametrize(
    "metric",
    [metrics.logit_diff([1, 2], 3), metrics.log_prob(2), metrics.kl(np.cos(np.arange(62.0)).reshape(2, 31)), cubed],
    ids=["logit_diff", "log_prob", "kl", "function"],
)
def test_metrics(name: str, metric: Any) -> None:
    config = ZOO[name]
    model, _ = make(config)
    if isinstance(metric, metrics.kl):
        metric = metrics.kl(np.cos(np.arange(2.0 * config.d_vocab_out)).reshape(2, -1))
    tokens = random_tokens(config, 6, batch=2, pos=5)
    along = np.random.default_rng(0).standard_normal((2, 5, config.d_model))
    got = model.gradients(tokens, metric, wrt=["resid_pre", "embeddings", "W_V"])

    def moved(t: float) -> float:
        logits = model.run(tokens, edits=[edit.add(("resid_pre", 1), t * along)]).logits
        return float((metric(logits) if isinstance(metric, metrics.Metric) else metric(logits)[0]).sum())

    assert abs(got.total - moved(0)) <= 1e-12 * max(1, abs(got.total))
    assert_slope(float((got["resid_pre", 1] * along).sum()), slope(moved), "resid_pre.1")
    assert got.value.shape == (2,) and got["hook_embed"].shape == (2, 5, config.d_model)
    assert set(got.weights) == {f"blocks.{n}.attn.W_V" for n in range(config.n_layers)}


EDITS = [
    edit.zero("z", heads=[0], positions=[1]),
    edit.set("resid_mid.0", 0.3, neurons=[2, 5]),
    edit.scale("mlp_out", 1.7, positions=[-1]),
    edit.add("resid_pre.1", 0.5),
    edit.scale("pattern.1", 0.5, heads=[1]),
    edit.scale("ln1.hook_scale.1", 1.1),
    edit.zero("result.1", heads=[2]),
    edit.scale("q_input.1", 0.9, heads=[0]),
    edit.set("v.0", 0.1, heads=[1]),
    edit.scale("logits", 0.5),
]


def test_gradients_of_edited_runs(model: clew.Model) -> None:
    tokens = random_tokens(model.config, 6, batch=2, pos=5)
    along = np.random.default_rng(0).standard_normal((2, 5, model.config.d_model))
    for edits in [[e] for e in EDITS] + [EDITS]:
        got = model.gradients(tokens, metrics.log_prob(3), wrt=["embeddings"], edits=edits)

        def moved(t: float, edits: Any = edits) -> float:
            run = model.run(tokens, edits=[edit.add("hook_embed", t * along), *edits])
            return float(metrics.log_prob(3)(run.logits).sum())

        assert_slope(float((got["hook_embed"] * along).sum()), slope(moved), repr(edits))


def test_set_values_have_no_gradient_above(model: clew.Model) -> None:
    tokens = random_tokens(model.config, 6, batch=1, pos=5)
    got = model.gradients(
        tokens, metrics.log_prob(3), wrt=["resid_pre.0", "resid_post.0"], edits=[edit.set("resid_post.0", 1.0)]
    )
    assert not got["resid_pre", 0].any() and got["resid_post", 0].any()


def test_mean_squared_error() -> None:
    model, _ = make(ZOO["parallel_learned"])  # not tied: the unembedding's gradient is its own
    prompts, ids, _, scale = batch_of(model.config)
    target = np.random.default_rng(0).normal(size=(len(ids), model.config.d_vocab_out))
    loss, grads = WeightGradients(model, LENGTHS, loss="mse").run(ids, target, scale)
    run = model.run(prompts)
    y = np.concatenate([run.logits[i, :n] for i, n in enumerate(LENGTHS)])
    want = float((scale[:, None] * (y - target) ** 2).sum() / scale.sum() / y.shape[1])
    assert abs(loss - want) <= 1e-12 * want
    inside = model.run(prompts, capture="ln_final.hook_out")["ln_final.hook_out"]
    x = np.concatenate([inside[i, :n] for i, n in enumerate(LENGTHS)])
    by_output = 2 * scale[:, None] * (y - target) / scale.sum() / y.shape[1]
    assert relative_error(grads["unembed.W_U"], x.T @ by_output) <= 1e-11


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt_neox", "opt", "linear_full", "qwen3"])
def test_bits_do_not_depend_on_threads(name: str) -> None:
    model, _ = make(ZOO[name], dtype=np.float32)
    tokens = random_tokens(model.config, 6, batch=3, pos=20)
    found = []
    for n in (1, 2, 3, 8):
        clew.set_num_threads(n)
        got = model.gradients(tokens, metrics.loss(), wrt=["weights", "pattern", "resid_pre"])
        found.append([got.stack("pattern"), got.stack("resid_pre"), *got.weights.values()])
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama", "linear_causal"])
def test_float32_is_near_float64(name: str) -> None:
    tokens = random_tokens(ZOO[name], 6, batch=2, pos=20)
    exact = make(ZOO[name])[0].gradients(tokens, metrics.loss(), wrt="weights")
    rough = make(ZOO[name], dtype=np.float32)[0].gradients(tokens, metrics.loss(), wrt="weights")
    for full, want in exact.weights.items():
        # a bias of keys moves no softmax: its gradient is what rounding leaves
        size = max(float(np.abs(want).max()), 1e-3)
        assert np.abs(rough.weights[full] - want).max() < 2e-4 * size, full


def test_long_prompts_in_blocks() -> None:
    """More queries than a block holds, windows that leave keys out, groups of heads."""
    config = ZOO["gemma2"].replace(n_ctx=200, window_size=70, attn_types=("local", "global", "local"))
    model, _ = make(config)
    tokens = random_tokens(config, 1, batch=1, pos=150)
    along = np.random.default_rng(0).standard_normal((1, 150, config.d_model))
    got = model.gradients(tokens, metrics.loss(), wrt=["resid_pre.1"])
    want = slope(lambda t: model.loss(tokens, reduce="mean", edits=[edit.add(("resid_pre", 1), t * along)]))
    assert_slope(float((got["resid_pre", 1] * along).sum()), want, "resid_pre.1")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"metric": None}, clew.ConfigError, "gradients of what"),
        ({"metric": metrics.log_prob(31)}, clew.TokenError, "31 has no logit"),
        ({"metric": lambda x: x.sum()}, clew.ConfigError, "gives \\(value, its gradient"),
        ({"metric": lambda x: (x.sum(), x[0])}, clew.ShapeError, r"\[3, 31\], its logits \[1, 3, 31\]"),
        ({"metric": metrics.loss(), "tokens": [1]}, clew.TokenError, "two tokens"),
        ({"wrt": []}, clew.SiteError, "wrt is empty"),
        ({"wrt": "resid_prx"}, clew.SiteError, "resid_pre"),
        ({"wrt": ("z", 7)}, clew.SiteError, "layers 0 to 1"),
        ({"edits": [edit.call("resid_mid", lambda a, n: None)]}, clew.UnsupportedModelError, "edit.call"),
    ],
)
def test_what_is_refused(model: clew.Model, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"tokens": [1, 2, 3], "metric": metrics.log_prob(0), "wrt": "resid_pre"} | change
    with pytest.raises(error, match=match):
        model.gradients(given.pop("tokens"), given.pop("metric"), **given)


def test_a_metric_that_raises(model: clew.Model) -> None:
    def boom(logits: Array) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        model.gradients([1, 2, 3], boom)
    assert np.isfinite(model.run([1, 2]).logits).all()


def test_targets_that_are_wrong(model: clew.Model) -> None:
    grads = WeightGradients(model, [3])
    with pytest.raises(clew.ConfigError, match="no row has a target"):
        grads.run(np.array([1, 2, 3]), np.array([-1, -1, -1]))
    with pytest.raises(clew.TokenError, match="target 31 in row 1: there are logits 0 to 30"):
        grads.run(np.array([1, 2, 3]), np.array([1, 31, 1]))
    with pytest.raises(clew.ConfigError, match="weight of row 2 is nan"):
        grads.run(np.array([1, 2, 3]), np.array([1, 1, 1]), np.array([1, 1, np.nan]))
    with pytest.raises(clew.ShapeError, match="3 rows of 1"):
        grads.run(np.array([1, 2, 3]), np.array([1, 1]))
    with pytest.raises(clew.ConfigError, match="cross_entropy"):
        WeightGradients(model, [3], loss="hinge")  # type: ignore[arg-type]
