"""Norms as geometry, attention by W_QK and W_VO: identities in double, on every model of the zoo."""

from __future__ import annotations

import os
from typing import Any

import clew
import numpy as np
import pytest
from clew import geometry
from support import make, relative_error
from zoo import zoo

Array = np.ndarray[Any, Any]
ZOO = {name: c for name, c in zoo().items() if c.d_in is None and c.n_layers}
NORMED = [name for name, c in ZOO.items() if c.normalization_type is not None]


def tokens(config: clew.ModelConfig, pos: int = 12) -> Array:
    return np.random.default_rng(0).integers(0, config.d_vocab, (2, pos))


# ---- norms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMED)
def test_every_norm_is_its_geometry(name: str) -> None:
    """Projection, sphere of radius √(d v/(v + ε)), ellipsoid and shift give what the forward pass gives."""
    model, _ = make(ZOO[name])
    run = model.run(tokens(model.config), capture=["*.hook_out", "resid_pre", "resid_post"])
    d, eps = model.config.d_model, model.config.eps
    inputs = {"blocks.0.ln1": run["resid_pre", 0], "blocks.1.ln1": run["resid_pre", 1]}
    inputs["ln_final"] = run["resid_post", -1]
    for norm, x in inputs.items():
        if f"{norm}.hook_out" not in run:
            continue
        found = geometry.norm_geometry(model, norm)
        stages = found.stages(x)
        assert relative_error(stages.shifted, run[f"{norm}.hook_out"]) < 1e-12
        centred = x if model.config.rms else x - x.mean(-1, keepdims=True)
        assert relative_error(stages.projected, centred) < 1e-12
        v = np.square(centred).mean(-1)
        assert relative_error(stages.radius, np.sqrt(d * v / (v + eps))) < 1e-12
        assert relative_error(np.linalg.norm(stages.spherical, axis=-1), stages.radius) < 1e-12
        if found.normal is not None:
            assert (
                abs(np.linalg.norm(found.normal) - 1) < 1e-14 and np.abs(stages.projected @ found.normal).max() < 1e-12
            )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_ellipsoid_axes(name: str) -> None:
    """The axes are those of the image of the sphere: orthonormal directions, and every point on the quadric."""
    model, weights = make(ZOO[name])
    found = geometry.norm_geometry(model, "blocks.1.ln1")
    lengths, directions = found.axes
    d = model.config.d_model
    assert lengths.shape == (d if model.config.rms else d - 1,) and (np.diff(lengths) <= 0).all()
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(lengths)), atol=1e-12)
    gamma = np.diag(weights["blocks.1.ln1.w"])
    kept = np.eye(d) if model.config.rms else np.eye(d) - np.full((d, d), 1 / d)
    want = np.linalg.svd(gamma @ kept, compute_uv=False)[: len(lengths)] * np.sqrt(d)
    np.testing.assert_allclose(lengths, want, rtol=1e-12)
    x = np.random.default_rng(1).standard_normal((50, d))
    stages = found.stages(x)
    along = stages.ellipsoidal @ directions.T / lengths
    np.testing.assert_allclose(np.square(along).sum(-1), np.square(stages.radius) / d, rtol=1e-10)


def test_norms_that_are_not_there() -> None:
    model = clew.load("stories260K")
    with pytest.raises(clew.SiteError, match="'ln_first' is no norm of this model; it has blocks.0.ln1"):
        geometry.norm_geometry(model, "ln_first")
    with pytest.raises(clew.SiteError, match="it has none"):
        geometry.norm_geometry(make(ZOO["no_norm"])[0])
    with pytest.raises(clew.ShapeError, match=r"vectors of shape \[3\]: the last axis must be d_model = 64"):
        geometry.norm_geometry(model)(np.ones(3))
    middle = geometry.norm_geometry(clew.load("shakespeare")).stages(np.full((2, 128), 8.0))
    assert np.abs(middle.spherical).max() < 1e-9 and np.isfinite(middle.shifted).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_embedding_norms(name: str) -> None:
    model, weights = make(ZOO[name])
    config = model.config
    e = weights["embed.W_E"] * config.embed_scale
    mean = 0 if config.rms else e.mean(1, keepdims=True)
    out = (e - mean) / np.sqrt(np.square(e - mean).mean(1, keepdims=True) + config.eps)
    s = np.sqrt(config.d_model) / np.linalg.norm(e, axis=1).mean()
    found = geometry.embedding_norms(model)
    assert found.factor == pytest.approx(s, rel=1e-14)
    for i, other in enumerate((e, e - e.mean(0), s * e, s * (e - e.mean(0)))):
        l2 = np.linalg.norm(out - other, axis=1)
        cosine = 1 - (out * other).sum(1) / np.linalg.norm(out, axis=1) / np.linalg.norm(other, axis=1)
        got = found.l2_mean[i], found.l2_std[i], found.cosine_mean[i], found.cosine_std[i]
        np.testing.assert_allclose(got, [l2.mean(), l2.std(), cosine.mean(), cosine.std()], rtol=1e-11, atol=1e-14)
    assert len(found.table().splitlines()) == 5


def test_embedding_norms_of_gpt2() -> None:
    """Values remembered from the authors' code, unverified: L2 23.747, 24.872, 2.413, 14.591; cosine .150 centred."""
    folder = os.environ.get("CLEW_GPT2")
    if not folder:
        pytest.skip("the weights of GPT-2 124M are not here: set CLEW_GPT2 to their directory")
    found = geometry.embedding_norms(clew.load(folder))
    np.testing.assert_allclose(found.l2_mean, [23.747, 24.872, 2.413, 14.591], atol=0.01)
    np.testing.assert_allclose(found.cosine_mean, [0, 0.150, 0, 0.150], atol=0.001)


@pytest.mark.parametrize("name", ["gpt2", "phi", "llama", "no_final_norm"])
def test_token_scores(name: str) -> None:
    """Logits are γ ⊙ u times the point of the sphere, plus the bias score."""
    model, weights = make(ZOO[name])
    scores = geometry.token_scores(model)
    run = model.run(tokens(model.config), capture="resid_post")
    u = model.W_U.T
    there = "ln_final.w" in weights
    gamma = weights["ln_final.w"] if there else np.ones(model.config.d_model)
    np.testing.assert_allclose(scores.norm, np.linalg.norm(u, axis=1), rtol=1e-14)
    np.testing.assert_allclose(scores.scaled_norm, np.linalg.norm(u * gamma, axis=1), rtol=1e-14)
    np.testing.assert_allclose(scores.scaled_norm_and_bias, scores.scaled_norm + scores.bias, rtol=1e-14)
    x = run["resid_post", -1]
    point = geometry.norm_geometry(model).stages(x).ellipsoidal if there else x
    np.testing.assert_allclose(point @ u.T + scores.bias, run.logits, rtol=1e-11, atol=1e-11)
    order = np.argsort(-scores.norm_and_bias, kind="stable")
    assert scores.top("norm_and_bias", 3) == order[:3].tolist()
    assert scores.bottom("norm_and_bias", 2) == order[::-1][:2].tolist()
    with pytest.raises(clew.ConfigError, match="score = 'length': one of norm, scaled_norm"):
        scores.top("length")
    assert len(scores.table().splitlines()) == 10


# ---- attention ------------------------------------------------------------------------------------------------------

SOFTMAX = [n for n, c in ZOO.items() if c.attention_kind == "softmax" and c.attention_dir == "causal"]
WITH_MATRIX = [name for name in SOFTMAX if not ZOO[name].use_qk_norm]


@pytest.mark.parametrize("name", WITH_MATRIX)
def test_rewritten_attention_is_the_forward_pass(name: str) -> None:
    """Σ_h softmax(X W_QK Xᵀ + bias terms) (X W_VO + b_V W_O) + b_O, with any positions, window, cap and grouping."""
    model, _ = make(ZOO[name])
    reads = "ln1.hook_out" if model.config.normalization_type is not None else "hook_resid_pre"
    run = model.run(tokens(model.config), capture=[f"*.{reads}", "attn_scores", "pattern", "attn_out"])
    for layer in range(model.config.n_layers):
        found = geometry.rewrite_attention(model, run[f"blocks.{layer}.{reads}"], layer)
        assert relative_error(found.scores, run["attn_scores", layer]) < 1e-12
        assert relative_error(found.pattern, run["pattern", layer]) < 1e-12
        assert relative_error(found.out, run["attn_out", layer]) < 1e-12


@pytest.mark.parametrize("name", ["gpt2", "opt", "gqa_6_2"])
def test_query_key_with_biases_against_plain_numpy(name: str) -> None:
    model, weights = make(ZOO[name])
    config = model.config
    form, moved = geometry.query_key(model, 1), geometry.value_output(model, 1)
    group = config.n_heads // config.n_key_value_heads
    x, y = np.random.default_rng(3).standard_normal((2, config.d_model))
    for head in range(config.n_heads):
        part = {n: weights[f"blocks.1.attn.{n}"] for n in ("W_Q", "b_Q", "W_O")}
        part |= {n: weights[f"blocks.1.attn.{n}"][head // group] for n in ("W_K", "b_K", "W_V", "b_V")}
        q, k = x @ part["W_Q"][head] + part["b_Q"][head], y @ part["W_K"] + part["b_K"]
        scale = config.attn_scale * (2 if config.scale_attn_by_inverse_layer_idx else 1)
        got = x @ form.W[head].AB @ y + x @ form.query[head] + y @ form.key[head] + form.constant[head]
        assert got == pytest.approx(q @ k / scale, rel=1e-11)
        want = (y @ part["W_V"] + part["b_V"]) @ part["W_O"][head]
        np.testing.assert_allclose(y @ moved.W[head].AB + moved.bias[head], want, rtol=1e-10, atol=1e-12)
        assert form.W[head].mdim == config.d_head  # factored: no d × d matrix is kept


def test_rotary_matrix_depends_on_the_offset() -> None:
    model, _ = make(ZOO["gpt_neox_serial"])
    run = model.run(tokens(model.config), capture=["*.ln1.hook_out", "attn_scores"])
    x, scores = run["blocks.0.ln1.hook_out"][0], run["attn_scores", 0][0]
    for query, key in ((7, 7), (7, 3), (10, 6)):
        form = geometry.query_key(model, 0, offset=query - key)
        for head in range(model.config.n_heads):
            got = x[query] @ form.W[head].AB @ x[key] + x[query] @ form.query[head] + x[key] @ form.key[head]
            assert got + form.constant[head] == pytest.approx(scores[head, query, key], rel=1e-10)
    with pytest.raises(clew.ConfigError, match="rotary positions: W_QK depends on .*: give offset="):
        geometry.query_key(model, 0)
    with pytest.raises(clew.ConfigError, match="offset = 2: without rotary positions"):
        geometry.query_key(make(ZOO["gpt2"])[0], 0, offset=2)


def test_attention_that_has_no_such_form() -> None:
    model, _ = make(ZOO["qwen3"])
    with pytest.raises(clew.UnsupportedModelError, match="query and key norms: .* no one matrix W_QK exists"):
        geometry.query_key(model, 0, offset=0)
    with pytest.raises(clew.UnsupportedModelError, match="query and key norms"):
        geometry.rewrite_attention(model, np.zeros((3, 24)), 0)
    linear = next(name for name, c in ZOO.items() if c.attention_kind == "linear")
    with pytest.raises(clew.UnsupportedModelError, match="linear or bidirectional attention"):
        geometry.rewrite_attention(make(ZOO[linear])[0], np.zeros((3, 11)), 0)
    plain, _ = make(ZOO["gpt2"])
    with pytest.raises(clew.ShapeError, match=r"x \[1, 3, 5\] must be \[batch, pos, d_model = 24\]"):
        geometry.rewrite_attention(plain, np.zeros((3, 5)), 0)
    with pytest.raises(clew.SiteError, match="layer 7"):
        geometry.value_output(plain, 7)
