"""The tuned lens: closed forms, finite differences, and text that the bundled model was not trained on."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import lens as lens_module
from clew import metrics
from clew.corpus import held_out
from clew.lens import TunedLens, kl_divergence, logit_lens, unembed
from clew.loaders.checkpoint import Checkpoint
from clew.loaders.safetensors import write_file
from support import make, relative_error
from zoo import random_tokens, zoo

ZOO = zoo()


def log_softmax(z: Any) -> Any:
    z = np.asarray(z, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def divergence_by_hand(model: clew.Model, tokens: Any, translate: Any) -> Any:
    run = model.run(tokens, capture="resid_post")
    log_p = log_softmax(run.logits)
    out = []
    for layer in range(model.config.n_layers):
        log_q = log_softmax(unembed(model, translate(run["resid_post", layer], layer)))
        out.append((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())
    return np.array(out)


@functools.cache
def shakespeare() -> tuple[clew.Model, list[Any], Any]:
    """The bundled model, text to fit on in batches, and text held out from that too."""
    model = clew.load("shakespeare")
    ids = model.tokenizer.encode(held_out())
    rows = np.array(ids[: len(ids) // 64 * 64]).reshape(-1, 64)
    cut = len(rows) * 3 // 4
    return model, [rows[i : i + 8] for i in range(0, cut, 8)], rows[cut:]


# ---- On a trained model ---------------------------------------------------------------------------------------------


def test_nearer_to_the_model_than_the_logit_lens_on_held_out_text() -> None:
    pytest.importorskip("tokenizers")
    model, batches, held_out = shakespeare()
    plain = kl_divergence(model, [held_out])
    ridge = TunedLens.fit(model, iter(batches))
    by_ridge = kl_divergence(model, [held_out], ridge)
    tuned = TunedLens.fit(model, batches, "kl", steps=80)
    by_kl = kl_divergence(model, [held_out[:30], held_out[30:]], tuned)
    assert plain[-1] == by_ridge[-1] == by_kl[-1] == 0
    assert (by_ridge[:-1] < 0.6 * plain[:-1]).all(), (plain, by_ridge)
    assert (by_kl[:-1] < 0.85 * by_ridge[:-1]).all(), (by_ridge, by_kl)
    assert (np.diff(by_kl) < 0).all()  # each layer knows more than the one before
    assert tuned.losses.shape == (80, 4) and (tuned.losses[-20:].mean(0)[:-1] < tuned.losses[:20].mean(0)[:-1]).all()
    first = kl_divergence(model, batches[:1], ridge)
    np.testing.assert_allclose(tuned.losses[0], first, rtol=1e-3)  # the ridge maps were rounded to float32
    # the next token, too, not only the model's guess of it
    a, b = (np.nanmean(view.loss, axis=(1, 2)) for view in (logit_lens(model, held_out), tuned.lens(held_out)))
    assert (b[:-1] < a[:-1]).all() and b[-1] == a[-1]


def test_divergence_by_hand() -> None:
    pytest.importorskip("tokenizers")
    model, batches, held_out = shakespeare()
    tuned = TunedLens.fit(model, batches[:5])
    np.testing.assert_allclose(
        kl_divergence(model, [held_out[:6]]), divergence_by_hand(model, held_out[:6], lambda x, _: x), atol=2e-6
    )
    np.testing.assert_allclose(
        kl_divergence(model, [held_out[:2], held_out[2:6]], tuned),
        divergence_by_hand(model, held_out[:6], tuned.translate),
        atol=2e-6,
    )


# ---- Ridge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "no_norm", "no_final_norm", "gemma2"])
@pytest.mark.parametrize("ridge", [0.3, 1e-2])
def test_ridge_is_the_regression_that_it_says(name: str, ridge: float) -> None:
    model, _ = make(ZOO[name])
    batches = [random_tokens(model.config, seed, batch=5, pos=11) for seed in range(4)]
    tuned = TunedLens.fit(model, batches, ridge=ridge)
    run = model.run(np.concatenate(batches), capture="resid_post")
    d = model.config.d_model
    y = run["resid_post", -1].reshape(-1, d)
    weights = np.ones(len(y))
    if model.config.final_norm and model.config.normalization_type:
        centred = y if model.config.rms else y - y.mean(-1, keepdims=True)
        weights = 1 / (np.square(centred).mean(-1) + model.config.eps)
    weights /= weights.sum()
    root = np.sqrt(weights)[:, None]
    for layer in range(model.config.n_layers - 1):
        x = run["resid_post", layer].reshape(-1, d)
        # one least-squares problem: weighted rows, a column of ones, rows that pull towards the identity
        spread = (weights[:, None] * np.square(x - weights @ x)).sum() / d
        rows = np.concatenate([np.hstack([x, np.ones((len(x), 1))]) * root, np.sqrt(ridge * spread) * np.eye(d, d + 1)])
        want = np.concatenate([(y - x) * root, np.zeros((d, d))])
        solution = np.linalg.lstsq(rows, want, rcond=None)[0]
        assert relative_error(tuned.weight[layer], np.eye(d) + solution[:-1]) < 1e-8
        assert relative_error(tuned.bias[layer], solution[-1]) < 1e-8


# attention to oneself alone, no norms, no activation function: the second block is an affine map
AFFINE = clew.ModelConfig(
    n_layers=2, d_model=8, n_heads=2, n_ctx=24, d_vocab=31, window_size=1, act_fn="none", normalization_type=None
)


def test_an_affine_rest_of_the_model_is_learnt_exactly() -> None:
    model, w = make(AFFINE)
    tuned = TunedLens.fit(model, [random_tokens(AFFINE, 0, batch=8, pos=20)], ridge=0)
    attention = np.eye(8) + model.OV(1).AB.sum(0)
    mlp = np.eye(8) + w["blocks.1.mlp.W_in"] @ w["blocks.1.mlp.W_out"]
    assert relative_error(tuned.weight[0], attention @ mlp) < 1e-9
    fresh = random_tokens(AFFINE, 1)
    assert kl_divergence(model, [fresh], tuned)[0] < 1e-15 < 1e-3 < kl_divergence(model, [fresh])[0]
    assert relative_error(tuned.logits(model.run(fresh, capture="resid_post"), 0), model.run(fresh).logits) < 1e-9


def test_far_from_the_origin_nothing_is_lost_in_large_sums() -> None:
    _, weights = make(AFFINE)
    weights["embed.W_E"] = weights["embed.W_E"] + 1e6
    far = clew.Model(Checkpoint(AFFINE, weights, np.dtype(np.float64)))
    tuned = TunedLens.fit(far, [random_tokens(AFFINE, seed, batch=8) for seed in range(3)], ridge=0)
    run = far.run(random_tokens(AFFINE, 7), capture="resid_post")
    assert np.abs(tuned.translate(run["resid_post", 0], 0) - run["resid_post", 1]).max() < 1e-7


def test_batches_ragged_or_not_are_one_text() -> None:
    model, _ = make(ZOO["gpt2"])
    prompts = [list(row[:n]) for row, n in zip(random_tokens(model.config, 0, batch=9), range(3, 12), strict=True)]
    whole = TunedLens.fit(model, [prompts])
    for pieces in ([prompts[:4], prompts[4:]], prompts):
        again = TunedLens.fit(model, pieces)
        assert relative_error(again.weight, whole.weight) < 1e-9 and relative_error(again.bias, whole.bias) < 1e-9
    np.testing.assert_allclose(kl_divergence(model, prompts, whole), kl_divergence(model, [prompts], whole), rtol=1e-9)
    one, two = (TunedLens.fit(model, iter([prompts[:4], prompts[4:]]), "kl", steps=5) for _ in range(2))
    assert np.array_equal(one.weight, two.weight) and np.array_equal(one.losses, two.losses)


# ---- The divergence and its gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "no_norm", "no_final_norm", "gemma2", "soft_cap_learned", "ln_pre", "vocab_out", "phi"]
)
def test_gradient_against_finite_differences(name: str) -> None:
    model, _ = make(ZOO[name])
    d = model.config.d_model
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, d))
    log_p = log_softmax(rng.standard_normal((6, model.config.d_vocab_out)) * 2)
    weight, bias = np.eye(d) + 0.2 * rng.standard_normal((d, d)), rng.standard_normal(d)
    loss, by_weight, by_bias = lens_module._divergence(model, log_p, x, weight, bias)
    log_q = log_softmax(unembed(model, x @ weight + bias))
    np.testing.assert_allclose(loss, (np.exp(log_p) * (log_p - log_q)).sum(-1), rtol=1e-11, atol=1e-13)

    def at(w: Any, b: Any) -> float:
        return float(lens_module._divergence(model, log_p, x, w, b)[0].sum())

    step = 1e-5
    for _ in range(5):
        dw, db = rng.standard_normal((d, d)), rng.standard_normal(d)
        for got, plus, minus in (
            ((by_weight * dw).sum(), (weight + step * dw, bias), (weight - step * dw, bias)),
            ((by_bias * db).sum(), (weight, bias + step * db), (weight, bias - step * db)),
        ):
            want = (at(*plus) - at(*minus)) / (2 * step)
            assert abs(got - want) < 1e-6 * max(1.0, abs(want))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make(ZOO["gpt2"])
    batches = [random_tokens(model.config, s) for s in range(2)]
    whole = TunedLens.fit(model, batches, "kl", steps=4)
    kl = kl_divergence(model, batches, whole)
    monkeypatch.setattr("clew.lens._BLOCK", 3 * model.config.d_vocab)
    pieces = TunedLens.fit(model, batches, "kl", steps=4)
    assert relative_error(pieces.weight, whole.weight) < 1e-9
    np.testing.assert_allclose(kl_divergence(model, batches, whole), kl, rtol=1e-10)


# ---- As a lens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama3"])
def test_as_a_lens(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 3)
    tuned = TunedLens.fit(model, [random_tokens(config, 0, batch=20)])
    n = config.n_layers
    run = model.run(tokens, capture="resid_post")
    view, plain = tuned.lens(run), logit_lens(model, run)
    assert np.array_equal(view.logits[-1], plain.logits[-1])  # identity after the last layer
    assert relative_error(view.logits[-1], run.logits) < 1e-12
    for layer in range(n):
        assert relative_error(tuned.logits(run, layer), view.logits[layer]) < 1e-12
        assert np.array_equal(tuned.logits(run["resid_post", layer], layer - n), tuned.logits(run, layer))
    assert np.abs(view.logits[0] - plain.logits[0]).max() > 1e-3
    p = np.exp(log_softmax(view.logits))
    np.testing.assert_allclose(view.entropy, -(p * np.log(p)).sum(-1), rtol=1e-9)
    some = tuned.lens(tokens, layers=[-1, 0], top_k=2)
    assert some.layers == (n - 1, 0) and np.array_equal(some.top_tokens, view.top_tokens[[-1, 0], ..., :2])
    given = tuned.lens(run, targets=np.full(tokens.shape, 2))
    assert np.array_equal(given.ranks, (view.logits > view.logits[..., 2:3]).sum(-1))
    assert "loss" in repr(view)


def test_its_figure() -> None:
    plot = pytest.importorskip("clew.plot", exc_type=ImportError)
    model, _ = make(ZOO["gpt2"])
    tuned = TunedLens.fit(model, [random_tokens(model.config, 0)])
    figure = plot.lens_table(tuned.lens([1, 2, 3, 4]), title="Tuned lens")
    assert figure.axes[0].get_title() == "Tuned lens"


# ---- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_and_loaded_it_has_the_same_bits(dtype: Any, tmp_path: Path) -> None:
    model, _ = make(ZOO["gpt2"], dtype=dtype)
    tuned = TunedLens.fit(model, [random_tokens(model.config, 0)])
    path = tmp_path / "lens.safetensors"
    tuned.save(path)
    again = TunedLens.load(path, model)
    for a, b in ((again.weight, tuned.weight), (again.bias, tuned.bias)):
        assert a.dtype == b.dtype == dtype and np.array_equal(a, b)
    tokens = random_tokens(model.config, 1)
    assert np.array_equal(again.lens(tokens).logits, tuned.lens(tokens).logits)
    again.save(path)  # over the file that it was read from
    assert np.array_equal(TunedLens.load(path, model).weight, tuned.weight)
    assert repr(again) == "TunedLens of 2 layers, d_model 24, for custom"
    deeper, _ = make(ZOO["gpt2"].replace(n_layers=3), dtype=dtype)
    with pytest.raises(clew.LoadError, match=r"weight: F\d\d \[2, 24, 24\], the model needs \[3, 24, 24\]"):
        TunedLens.load(path, deeper)


def test_files_that_are_no_lens(tmp_path: Path) -> None:
    model, _ = make(ZOO["gpt2"])
    path = tmp_path / "x.safetensors"
    with pytest.raises(clew.LoadError, match="No such file"):
        TunedLens.load(path, model)
    write_file(path, {"weight": np.zeros((2, 24, 24))}, {})
    with pytest.raises(clew.LoadError, match="no tuned lens"):
        TunedLens.load(path, model)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(clew.LoadError, match="do not lie in the file"):
        TunedLens.load(path, model)


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(method="adam"), clew.ConfigError, 'method = \'adam\': "ridge" or "kl"'),
        (dict(ridge=-1), clew.ConfigError, "ridge = -1: a number, at least 0"),
        (dict(ridge=np.inf), clew.ConfigError, "ridge = inf"),
        (dict(steps=-1), clew.ConfigError, "steps = -1"),
        (dict(lr=0.0), clew.ConfigError, "lr = 0.0: steps at least 0, lr above 0"),
        (dict(batches="text"), clew.ConfigError, "a list of prompts, not one text"),
        (dict(batches=[]), clew.ConfigError, "batches is empty"),
        (dict(batches=iter([]), method="kl"), clew.ConfigError, "batches is empty"),
        (dict(batches=[[1, 99]]), clew.TokenError, "token 99 at position 1"),
    ],
)
def test_refused(options: dict[str, Any], error: type[clew.Error], message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    with pytest.raises(error, match=message):
        TunedLens.fit(model, **(dict(batches=[[1, 2, 3]]) | options))


def test_refused_elsewhere() -> None:
    model, _ = make(ZOO["gpt2"])
    tuned = TunedLens.fit(model, [[1, 2, 3]])
    with pytest.raises(clew.SiteError, match="layer 2: the model has layers 0 to 1"):
        tuned.translate(np.zeros(24), 2)
    with pytest.raises(clew.ShapeError, match=r"residuals of shape \[23\]: the last axis must be d_model = 24"):
        tuned.logits(np.zeros(23), 0)
    with pytest.raises(clew.SiteError, match="was not captured"):
        tuned.logits(model.run([1, 2], capture="z"), 0)
    with pytest.raises(clew.ShapeError, match=r"weight \[1, 2\] and bias \[2\]; the model needs \[2, 24, 24\] and"):
        TunedLens(model, np.ones((1, 2)), np.ones(2))
    deeper, _ = make(ZOO["gpt2"].replace(n_layers=3))
    with pytest.raises(clew.ShapeError, match="the run is of a model with n_layers = 3; this model has 2"):
        tuned.logits(deeper.run([1, 2], capture="resid_post"), 0)
    gradients = model.gradients([1, 2], metrics.logit_diff([4], [5]), wrt="resid_post")
    for read in (lambda: tuned.logits(gradients, 0), lambda: tuned.lens(gradients)):
        with pytest.raises(clew.ConfigError, match="run: a Run, such as model.run gives, not Gradients"):
            read()
    other, _ = make(ZOO["gpt2"])
    with pytest.raises(clew.ConfigError, match="made for another model"):
        kl_divergence(other, [[1, 2]], tuned)
    with pytest.raises(clew.ConfigError, match="batches is empty"):
        kl_divergence(model, [])
    empty, _ = make(ZOO["no_layers"])
    with pytest.raises(clew.SiteError, match="the model has no layers"):
        TunedLens.fit(empty, [[1, 2]])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("resid", "message"),
    [
        (["a"] * 24, "residuals must be real numbers, not <U1"),
        ([None] * 24, "residuals must be real numbers, not object"),
        (np.ones(24, complex), "residuals must be real numbers, not complex128"),
        ([[1], [2, 3]], "residuals cannot be read as an array: .* inhomogeneous"),
        (np.ma.masked_all(24), "residuals: an array with masked values"),
    ],
)
def test_refused_residuals(resid: Any, message: str, layer: int) -> None:
    model, _ = make(ZOO["gpt2"])
    tuned = TunedLens(model, np.zeros((2, 24, 24)), np.zeros((2, 24)))
    for read in (tuned.translate, tuned.logits):
        with pytest.raises(clew.ShapeError, match=message):
            read(resid, layer)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(weight=np.zeros((2, 24, 24)) * 1j), clew.ShapeError, "TunedLens: weight must be real numbers, not compl"),
        (dict(bias=np.zeros((2, 24)) * 1j), clew.ShapeError, "TunedLens: bias must be real numbers, not complex128"),
        (dict(weight="a"), clew.ShapeError, "TunedLens: weight must be real numbers, not <U1"),
        (dict(weight=[[1], [2, 3]]), clew.ShapeError, "TunedLens: weight cannot be read as an array"),
        (dict(bias=np.ma.masked_all((2, 24))), clew.ShapeError, "TunedLens: bias: an array with masked values"),
        (dict(weight=np.full((2, 24, 24), np.nan)), clew.ConfigError, "TunedLens: weight holds NaN or infinity"),
        (dict(bias=np.full((2, 24), np.inf)), clew.ConfigError, "TunedLens: bias holds NaN or infinity"),
        (dict(losses=[1, 2, 3]), clew.ShapeError, r"TunedLens: losses \[3\]; expected \[step, 2\]"),
        (dict(losses=np.ones((1, 4))), clew.ShapeError, r"TunedLens: losses \[1, 4\]; expected \[step, 2\]"),
        (dict(losses="a"), clew.ShapeError, "TunedLens: losses must be real numbers, not <U1"),
        (dict(model=5), clew.ConfigError, "model: a Model, .*, not int"),
    ],
)
def test_refused_maps(changes: dict[str, Any], error: type[clew.Error], message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    given = dict(model=model, weight=np.zeros((2, 24, 24)), bias=np.zeros((2, 24))) | changes
    with pytest.raises(error, match=message):
        TunedLens(**given)


def test_maps_of_a_model_without_layers() -> None:
    model, _ = make(ZOO["no_layers"])
    d = model.config.d_model
    assert TunedLens(model, np.zeros((0, d, d)), np.zeros((0, d))).losses.shape == (0, 0)


def test_values_beyond_single_precision() -> None:
    model, _ = make(ZOO["gpt2"], dtype=np.float32)
    with pytest.raises(clew.ConfigError, match=r"TunedLens: bias: the value 1e\+39 is beyond the model's float32"):
        TunedLens(model, np.zeros((2, 24, 24)), np.full((2, 24), 1e39))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_streams_that_are_no_numbers(value: float) -> None:
    model, weights = make(ZOO["gpt2"])
    W_out = weights["blocks.1.mlp.W_out"].copy()
    W_out[0, 0] = value
    broken = model.with_weights({"blocks.1.mlp.W_out": W_out})
    for learn in (lambda: TunedLens.fit(broken, [[1, 2, 3]]), lambda: kl_divergence(broken, [[1, 2, 3]])):
        with pytest.raises(clew.ConfigError, match="the residual stream after layer 1 holds NaN or infinity"):
            learn()
