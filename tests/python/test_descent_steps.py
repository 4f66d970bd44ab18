"""Layers as steps: gradients against finite differences, identities in double, measures against plain NumPy."""

from __future__ import annotations

import os
from typing import Any

import clew
import numpy as np
import pytest
from clew import corpus, descent, norm
from clew.descent import lens_gradient
from clew.lens import TunedLens, logit_lens, unembed
from clew.loaders.checkpoint import Checkpoint
from scipy import stats
from support import make, relative_error
from zoo import zoo

Array = np.ndarray[Any, Any]
ZOO = zoo()
MODELS = ["gpt2", "gptj", "phi", "llama", "gemma2", "no_norm", "no_final_norm", "ln_pre", "rms_pre", "attn_only"]


def case(name: str, n: int = 6) -> tuple[clew.Model, Array, Array]:
    """A model, residual vectors of about the stream's size, and targets."""
    model, _ = make(ZOO[name])
    rng = np.random.default_rng(1)
    return model, 2 * rng.standard_normal((n, model.config.d_model)), rng.integers(0, model.config.d_vocab, n)


def loss_at(model: clew.Model, x: Array, y: Array) -> Array:
    """Cross-entropy of the lens from its logits."""
    z = unembed(model, x)
    return np.logaddexp.reduce(z, -1) - z[np.arange(len(y)), y]


# ---- the gradient ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_gradient_against_finite_differences(name: str) -> None:
    model, x, y = case(name)
    found = lens_gradient(model, x, y, reference=x[::-1])
    np.testing.assert_allclose(found.loss, loss_at(model, x, y), rtol=1e-12)
    z = unembed(model, x)
    np.testing.assert_allclose(found.entropy, stats.entropy(np.exp(z - z.max(-1, keepdims=True)), axis=-1), rtol=1e-10)
    assert found.rank.tolist() == [(row > row[t]).sum() for row, t in zip(z, y, strict=True)]
    q = np.exp(z[::-1] - np.logaddexp.reduce(z[::-1], -1)[:, None])
    h = 1e-6
    assert found.expected is not None
    for i in range(model.config.d_model):
        up, down = x.copy(), x.copy()
        up[:, i] += h
        down[:, i] -= h
        slope = (loss_at(model, up, y) - loss_at(model, down, y)) / (2 * h)
        np.testing.assert_allclose(found.gradient[:, i], slope, rtol=1e-6, atol=1e-8)
        # against the reference's prediction: Σ_v q_v L_v
        each = [unembed(model, v) for v in (up, down)]
        each = [(q * (np.logaddexp.reduce(e, -1)[:, None] - e)).sum(-1) for e in each]
        np.testing.assert_allclose(found.expected[:, i], (each[0] - each[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_gradient_through_a_tuned_lens() -> None:
    model, x, y = case("gpt2")
    rows = np.random.default_rng(5).integers(0, 31, (40, 20))
    tuned = TunedLens.fit(model, [rows])
    found = lens_gradient(model, x, y, tuned=tuned, layer=0)
    np.testing.assert_allclose(found.loss, loss_at(model, tuned.translate(x, 0), y), rtol=1e-12)
    h = 1e-6
    for i in range(0, 24, 5):
        up, down = x.copy(), x.copy()
        up[:, i] += h
        down[:, i] -= h
        slope = loss_at(model, tuned.translate(up, 0), y) - loss_at(model, tuned.translate(down, 0), y)
        np.testing.assert_allclose(found.gradient[:, i], slope / (2 * h), rtol=1e-6, atol=1e-8)
    last = lens_gradient(model, x, y, tuned=tuned, layer=-1)
    assert np.array_equal(last.gradient, lens_gradient(model, x, y).gradient)  # its map is the identity


def test_gradient_without_a_norm_is_the_notes_formula() -> None:
    """−∇L = u_y − Σ_v p_v u_v"""
    model, x, y = case("no_norm")
    z = x @ model.W_U + model.b_U
    p = np.exp(z - np.logaddexp.reduce(z, -1)[:, None])
    want = model.W_U.T[y] - p @ model.W_U.T
    np.testing.assert_allclose(-lens_gradient(model, x, y).gradient, want, rtol=1e-11, atol=1e-13)


def test_gradient_refuses() -> None:
    model, x, y = case("gpt2")
    other, _ = make(ZOO["gpt2"], seed=9)
    tuned = TunedLens(other, np.zeros((2, 24, 24)), np.zeros((2, 24)))
    for arguments, more, error, message in (
        ((x[:, :3], y), {}, clew.ShapeError, r"residuals \[6, 3\] and targets int64 \[6\]"),
        ((x, y[:2]), {}, clew.ShapeError, r"targets int64 \[2\]"),
        ((x, y + 40), {}, clew.TokenError, "is no token: the vocabulary has 0 to 30"),
        ((x, y), {"reference": x[:2]}, clew.ShapeError, r"reference \[2, 24\] for residuals \[6, 24\]"),
        ((x, y), {"tuned": tuned, "layer": 0}, clew.ConfigError, "made for another model"),
        ((x, y), {"tuned": TunedLens(model, tuned.weight, tuned.bias)}, clew.ConfigError, "give layer="),
    ):
        with pytest.raises(error, match=message):
            lens_gradient(model, *arguments, **more)


# ---- identities -----------------------------------------------------------------------------------------------------


def test_radial_identity() -> None:
    """⟨r, −∇L⟩ = z_y − E_p z = H(p) − NLL for a bias-free linear head: the norm grows exactly when NLL < H."""
    config = ZOO["no_norm"]
    assert not config.unembed_bias
    model, x, y = case("no_norm", 50)
    found = lens_gradient(model, x, y)
    along = -(x * found.gradient).sum(-1)
    z = x @ model.W_U
    p = np.exp(z - np.logaddexp.reduce(z, -1)[:, None])
    np.testing.assert_allclose(along, z[np.arange(50), y] - (p * z).sum(-1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(along, found.entropy - found.loss, rtol=1e-10, atol=1e-12)
    tiny = x - 1e-7 * found.gradient
    grows = np.linalg.norm(tiny, axis=-1) > np.linalg.norm(x, axis=-1)
    assert np.array_equal(grows, found.loss < found.entropy) and 0 < grows.sum() < 50


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scale_invariance(name: str) -> None:
    """ε → 0: the loss does not depend on ‖r‖, ∇L ⟂ r, and a step gives ‖r'‖² = ‖r‖² + η²‖∇L‖² exactly."""
    config = ZOO[name].replace(eps=0.0)
    _, weights = make(ZOO[name])
    model = clew.Model(Checkpoint(config, weights, np.dtype(np.float64)))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, config.d_model)), rng.integers(0, config.d_vocab, 20)
    found = lens_gradient(model, x, y)
    own = norm.centre(config, x)  # LayerNorm: r less its mean
    np.testing.assert_allclose(lens_gradient(model, 7 * x, y).loss, found.loss, rtol=1e-12)
    np.testing.assert_allclose(lens_gradient(model, 7 * x, y).gradient, found.gradient / 7, rtol=1e-9, atol=1e-13)
    assert np.abs((own * found.gradient).sum(-1)).max() < 1e-12
    if not config.rms:
        assert np.abs(found.gradient.sum(-1)).max() < 1e-12
    for eta in (0.1, 3.0):
        after = np.square(own - eta * found.gradient).sum(-1)
        want = np.square(own).sum(-1) + eta**2 * np.square(found.gradient).sum(-1)
        np.testing.assert_allclose(after, want, rtol=1e-12)
    with_eps, _ = make(ZOO[name])
    same = descent.identities(with_eps, rng.integers(0, config.d_vocab, (2, 12)))
    assert same.radial < 1e-12 and same.invariance is not None and same.invariance < 1e-3
    assert descent.identities(make(ZOO["no_norm"])[0], [[1, 2, 3]]).invariance is None


def test_whitening() -> None:
    """White coordinates: the vectors that logits read have unit covariance there; ⟨Δ, ∇L⟩ is the same in both."""
    model, x, y = case("gpt2")
    white = descent.Whitening(model)
    u = norm.centre(model.config, model.W_U.T * model.weights["ln_final.w"])
    u = white.gradient(u - u.mean(0))
    values = np.sort(np.linalg.eigvalsh(u.T @ u / len(u)))
    np.testing.assert_allclose(values[1:], 1, rtol=1e-9)  # 23 of 24 directions: layer norm takes out one
    assert abs(values[0]) < 1e-9
    gradient, delta = lens_gradient(model, x, y).gradient, norm.centre(model.config, x[::-1])
    np.testing.assert_allclose(
        (white.step(delta) * white.gradient(gradient)).sum(-1), (delta * gradient).sum(-1), rtol=1e-8, atol=1e-12
    )


# ---- what descend gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "attn_only", "no_norm"])
def test_descend_against_plain_numpy(name: str) -> None:
    model, _ = make(ZOO[name])
    rows = np.random.default_rng(3).integers(0, model.config.d_vocab, (3, 10))
    found = descent.descend(model, rows, sink=1e9)
    has_mlp = not model.config.attn_only
    run = model.run(rows, capture=["resid_pre", "resid_post", "attn_out", *(["mlp_out"] if has_mlp else [])])
    r = np.concatenate([run["resid_pre", 0][None], run.stack("resid_post")])[:, :, 1:-1].reshape(3, -1, r_d(model))
    y = rows[:, 2:].reshape(-1)  # position 0 is a sink, the last has no next token
    assert found.n == 24 and found.n_sinks == 3
    losses = np.stack([loss_at(model, x, y) for x in r])
    np.testing.assert_allclose(found.loss, losses.mean(1), rtol=1e-11)
    lens = logit_lens(model, rows)
    np.testing.assert_allclose(found.loss[1:], lens.loss[:, :, 1:-1].mean((1, 2)), rtol=1e-11)
    np.testing.assert_allclose(found.falls, (np.diff(losses, axis=0) < 0).mean(1))
    assert found.falls_all == pytest.approx((np.diff(losses, axis=0) < 0).mean())
    lengths = np.linalg.norm(r, axis=-1)
    np.testing.assert_allclose(found.norm, lengths.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.norm_quantiles, np.percentile(lengths, [25, 50, 75], axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.growth, np.median(lengths[1:] / lengths[:-1], axis=1), rtol=1e-12)
    # the two shares of the growth of ‖r‖² are all of it
    whole = np.diff(np.square(lengths), axis=0).mean(1)
    np.testing.assert_allclose(found.attention_growth + found.mlp_growth, whole, rtol=1e-9, atol=1e-9)
    a = run.stack("attn_out")[:, :, 1:-1]
    np.testing.assert_allclose(found.attention_length, np.linalg.norm(a, axis=-1).mean((1, 2)), rtol=1e-12)
    for layer in range(2):
        gradient = lens_gradient(model, r[layer], y, reference=r[-1])
        step = r[layer + 1] - r[layer]
        size = np.linalg.norm(step, axis=-1)
        cosine = -(step * gradient.gradient).sum(-1) / size / np.linalg.norm(gradient.gradient, axis=-1)
        assert found.cosine[layer] == pytest.approx(cosine.mean(), rel=1e-10)
        assert found.cosine_error[layer] == pytest.approx(cosine.std() / np.sqrt(24), rel=1e-10)
        assert gradient.expected is not None
        cosine = -(step * gradient.expected).sum(-1) / size / np.linalg.norm(gradient.expected, axis=-1)
        assert found.cosine_expected[layer] == pytest.approx(cosine.mean(), rel=1e-10)
        eta = -(step * gradient.gradient).sum(-1) / np.square(gradient.gradient).sum(-1)
        np.testing.assert_allclose(found.step_size[:, layer], np.percentile(eta, [25, 50, 75]), rtol=1e-9)
        radial = (step * r[layer]).sum(-1) / size / lengths[layer]
        assert found.radial[layer] == pytest.approx(radial.mean(), rel=1e-10)
    counts = np.bincount(rows.reshape(-1), minlength=model.config.d_vocab)
    want = stats.spearmanr(lengths[-1], np.log1p(counts[y])).statistic
    assert found.correlations["log frequency of the next token"][-1] == pytest.approx(want)
    assert found.correlations["the model's loss"][1] == pytest.approx(stats.spearmanr(lengths[1], losses[-1]).statistic)
    assert len(found.table().splitlines()) == 2 + 3 + 5


def r_d(model: clew.Model) -> int:
    return int(model.config.d_model)


def test_a_gradient_step_is_found() -> None:
    """Streams that follow −∇L with a known rate have cosine 1, that step, and a loss that falls everywhere."""
    model, x, y = case("gpt2", 30)
    streams = [x]
    for _ in range(3):
        streams.append(streams[-1] - 0.05 * lens_gradient(model, streams[-1], y).gradient)
    zeros = np.zeros((3, 30, 24))
    given = descent.Streams(np.stack(streams), zeros, zeros, y, y, np.ones(30, np.int64))
    found = descent.measure(model, given, np.ones(31))
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-9)
    np.testing.assert_allclose(found.step_size, 0.05, rtol=1e-6)
    assert found.falls_all == 1 and np.abs(found.radial).max() < 1e-2
    still = descent.measure(model, given.with_resid(np.stack([x, x])), np.ones(31))
    assert not still.cosine.any() and still.falls_all == 0  # a step that is none goes nowhere


def test_spearman() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 40), rng.standard_normal(40).round(1)
        assert descent.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(descent.spearman([1, 1], [1, 2])) and np.isnan(descent.spearman([1], [2]))
    assert np.isnan(descent.spearman([np.nan, 1, 2], [1, 2, 3])) and np.isnan(descent.spearman([1, 2], [1, np.nan]))
    assert descent.spearman([1, np.inf, 2], [1, 3, 2]) == pytest.approx(1)
    with pytest.raises(clew.ShapeError, match=r"spearman: \[2\] and \[3\]"):
        descent.spearman([1, 2], [1, 2, 3])


def test_sinks_are_apart() -> None:
    model, _ = make(ZOO["gpt2"])
    rows = np.random.default_rng(3).integers(0, 31, (2, 10))
    vector = np.full(24, 500.0)
    with model.edited([clew.edit.add("blocks.0.hook_resid_post", vector, positions=[4])]):
        found = descent.descend(model, rows)
    assert found.n_sinks == 4 and found.per_token.sink.reshape(2, 9)[:, [0, 4]].all()
    plain = descent.descend(model, rows)
    assert plain.n_sinks == 2 and found.norm[1] < 100 < found.sink_norm[1]
    with pytest.raises(clew.ConfigError, match="all 2 tokens are sinks"):
        descent.descend(model, [[1, 2], [3, 4]])


def test_results_do_not_depend_on_the_batch() -> None:
    model, _ = make(ZOO["llama"])
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 31, n).tolist() for n in (9, 12, 5, 12, 9)]
    one, other = descent.descend(model, rows), descent.descend(model, rows[::-1])
    for name in ("loss", "cosine", "cosine_expected", "cosine_whitened", "norm", "growth", "radial"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-10)
    alone = descent.collect(model, rows[2])
    assert relative_error(descent.collect(model, rows).resid[:, -4:], alone.resid) < 1e-12


def test_tuned_lens_in_descend() -> None:
    model, _ = make(ZOO["gpt2"])
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 31, (4, 10))
    tuned = TunedLens.fit(model, [rng.integers(0, 31, (40, 20))])
    found = descent.descend(model, rows, tuned=tuned, sink=1e9)
    want = tuned.lens(rows).loss[:, :, 1:-1].mean((1, 2))
    assert found.loss_tuned is not None and found.falls_tuned is not None and found.cosine_tuned is not None
    np.testing.assert_allclose(found.loss_tuned, want, rtol=1e-11)
    assert found.loss_tuned[-1] == pytest.approx(found.loss[-1]) and found.falls_tuned.shape == (1,)


# ---- controls -------------------------------------------------------------------------------------------------------


def test_controls() -> None:
    model, _ = make(ZOO["deep"])
    rows = np.random.default_rng(3).integers(0, model.config.d_vocab, (3, 10))
    lens = TunedLens.fit(model, [rows])
    found = descent.controls(model, rows, other_lens=lens, seed=2)
    own = descent.descend(model, rows)
    assert set(found) == {
        "random weights", "shuffled layers", "permuted steps", "straight line", "lens of another text",
    }  # fmt: skip
    for name in ("permuted steps", "straight line", "lens of another text"):  # the ends are the model's
        np.testing.assert_allclose(found[name].loss[[0, -1]], own.loss[[0, -1]], rtol=1e-9)
        np.testing.assert_allclose(found[name].norm[[0, -1]], own.norm[[0, -1]], rtol=1e-9)
    straight = descent.collect(model, rows).resid
    n = len(straight) - 1
    middle = straight[0] + (straight[-1] - straight[0]) / n
    kept = ~own.per_token.sink
    assert found["straight line"].norm[1] == pytest.approx(np.linalg.norm(middle, axis=-1)[kept].mean())
    assert found["random weights"].loss[-1] != pytest.approx(own.loss[-1])
    again = descent.controls(model, rows, seed=2)
    assert np.array_equal(again["permuted steps"].loss, found["permuted steps"].loss)
    other = descent.controls(model, rows, seed=3)
    assert not np.array_equal(other["permuted steps"].loss, again["permuted steps"].loss)


def test_blocks_in_another_order() -> None:
    """The right order gives the model's own streams; another gives those of a model whose blocks are swapped."""
    model, weights = make(ZOO["gpt2"])
    rows = np.random.default_rng(3).integers(0, 31, (2, 8))
    own = descent.collect(model, rows)
    same = descent.collect(model, rows, order=[0, 1])
    for part in ("resid", "attention", "mlp"):
        assert relative_error(getattr(same, part), getattr(own, part)) < 1e-12
    swapped = {
        name.replace("blocks.0", "blocks.X").replace("blocks.1", "blocks.0").replace("blocks.X", "blocks.1"): w
        for name, w in weights.items()
    }
    other = clew.Model(Checkpoint(model.config, swapped, np.dtype(np.float64)))
    shuffled = descent.collect(model, rows, order=[1, 0])
    assert relative_error(shuffled.resid, descent.collect(other, rows).resid) < 1e-12
    with pytest.raises(clew.ConfigError, match=r"order = \[0, 0\]: each of the layers 0 to 1 once"):
        descent.collect(model, rows, order=[0, 0])
    with pytest.raises(clew.TokenError, match="no token that another one follows"):
        descent.collect(model, [[3]])
    with pytest.raises(clew.ConfigError, match="must read and write one vocabulary"):
        descent.collect(make(ZOO["vocab_out"])[0], rows)
    with pytest.raises(clew.ShapeError, match=r"frequency \[3\] must be \[d_vocab = 31\]"):
        descent.descend(model, rows, frequency=[1, 2, 3])
    for wrong in (np.nan, np.inf, -1.0):
        with pytest.raises(clew.ConfigError, match="frequency: how often each token occurs, 0 or more"):
            descent.descend(model, rows, frequency=np.full(31, wrong))


def test_controls_of_text() -> None:
    """The control with random weights has no tokenizer: it gets the ids."""
    model = clew.load("shakespeare")
    text = "Good morrow, neighbour Baptista."
    by_text, by_ids = descent.controls(model, [text]), descent.controls(model, [model.tokenizer.encode(text)])
    np.testing.assert_array_equal(by_text["random weights"].cosine, by_ids["random weights"].cosine)


def test_published_growth_of_gpt2_xl() -> None:
    """A published post reports residual norms that grow about 1.045-fold a layer in GPT2-XL."""
    folder = os.environ.get("CLEW_GPT2_XL")
    if not folder:
        pytest.skip("the weights of GPT2-XL are not here: set CLEW_GPT2_XL to their directory")
    model = clew.load(folder)
    found = descent.descend(model, corpus.windows(model, None, 64, 8))
    growth = (found.norm[-2] / found.norm[1]) ** (1 / (len(found.norm) - 3))
    assert growth == pytest.approx(1.045, abs=0.01)
