"""Walks and their splits against closed forms and NumPy; concept vectors against a direct version."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import walk
from clew.walk.concepts import ACTIVATIONS, NORMS, POOLINGS, activation
from scipy import special

RNG = np.random.default_rng(3)


def model(**more: Any) -> clew.Model:
    shape: dict[str, Any] = dict(n_layers=3, d_model=16, n_heads=4, n_ctx=12, d_vocab=40, initializer_range=0.4)
    return clew.Model.from_config(clew.ModelConfig(**shape | more), seed=2, dtype="float64")


def test_measures_of_a_circle() -> None:
    """A regular polygon: equal steps, equal angles, and a chord over an arc."""
    n = 12
    angles = 2 * np.pi * np.arange(n // 2 + 1) / n
    path = walk.measure(np.stack([np.cos(angles), np.sin(angles)], 1))
    np.testing.assert_allclose(path.step_length, 2 * np.sin(np.pi / n), rtol=1e-13)
    np.testing.assert_allclose(path.turning_angle, 2 * np.pi / n, rtol=1e-12)
    np.testing.assert_allclose(path.cosine_to_start, np.cos(angles), atol=1e-14)
    np.testing.assert_allclose(path.cosine_to_end, np.cos(angles[-1] - angles), atol=1e-14)
    assert path.straightness == pytest.approx(2 / (n // 2 * 2 * np.sin(np.pi / n)), rel=1e-12)


def test_measures_of_degenerate_paths() -> None:
    line = walk.measure(np.arange(1, 5)[:, None] * np.ones(3))
    assert line.straightness == pytest.approx(1) and np.abs(line.turning_angle).max() < 1e-7
    assert walk.measure([[0.0], [1.0], [0.0]]).turning_angle[0] == pytest.approx(np.pi)
    still = walk.measure(np.ones((3, 2)))
    assert np.isnan(still.straightness) and np.isnan(still.turning_angle).all()
    with pytest.raises(clew.ShapeError, match=r"real vectors \[n, d\], not float64 \[3\]"):
        walk.measure(np.ones(3))


def test_decoding_walk_points_predict() -> None:
    """c_t · W_U + b_U are the logits, and the nearest by dot product are the largest of c_t · W_U."""
    m, ids = model(), RNG.integers(0, 40, 9)
    found = walk.decoding_walk(m, ids, k=3)
    scores = found.points @ m.W_U
    np.testing.assert_allclose(scores + m.b_U, m.run(ids).logits[0], atol=1e-12)
    np.testing.assert_array_equal(found.nearest["dot"].ids, np.argsort(-scores, 1, kind="stable")[:, :3])
    distance = np.linalg.norm(found.points[:, None] - m.W_U.T, axis=-1)
    np.testing.assert_array_equal(found.nearest["l2"].ids, np.argsort(distance, 1, kind="stable")[:, :3])
    cosine = scores / np.linalg.norm(found.points, axis=1)[:, None] / np.linalg.norm(m.W_U, axis=0)
    np.testing.assert_array_equal(found.nearest["cosine"].ids, np.argsort(-cosine, 1, kind="stable")[:, :3])
    assert "straightness" in found.table()


def test_encoding_walk_is_the_residual_stream() -> None:
    m, ids = model(), RNG.integers(0, 40, 7)
    run = m.run(ids, capture=[("resid_pre", 0), "resid_post"])
    found = walk.encoding_walk(m, ids, position=2, k=2)
    want = np.stack([run["resid_pre", 0][0, 2], *run.stack("resid_post")[:, 0, 2]])
    np.testing.assert_array_equal(found.points, want)
    last = walk.encoding_walk(m, ids, k=1).nearest["dot"].ids[-1, 0]
    assert last == (m.run(ids).logits[0, -1] - m.b_U).argmax()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"parallel_attn_mlp": True},
        {"attn_only": True},
        {"normalization_type": "RMS", "use_normalization_before_and_after": True, "norm_bias": False},
        {"attention_kind": "linear", "normalization_type": None, "positional_embedding_type": "none"},
        {"d_in": 5, "d_out": 2, "d_vocab": None},
    ],
)
def test_steps_split_exactly(more: dict[str, Any]) -> None:
    m = model(**more)
    inputs = RNG.standard_normal((2, 6, 5)) if m.config.d_in else RNG.integers(0, 40, (2, 6))
    layers, positions = walk.split_encoding(m, inputs), walk.split_decoding(m, inputs)
    assert layers.error() < 1e-13 and positions.error() < 1e-13
    assert layers.step.shape == (3, 2, 6, 16) and positions.step.shape == (2, 5, 16)
    run = m.run(inputs, capture=["attn_out"])
    np.testing.assert_array_equal(layers.aggregation, run.stack("attn_out"))
    along = np.einsum("...d,...d->...", layers.filtering, layers.step) / (layers.step**2).sum(-1)
    np.testing.assert_allclose(layers.share() + along, 1, atol=1e-9)


def test_linear_attention_is_a_recurrence() -> None:
    m = model(attention_kind="linear", n_key_value_heads=2)
    for layer in range(3):
        ours, forward = walk.linear_recurrence(m, RNG.integers(0, 40, (2, 8)), layer)
        np.testing.assert_allclose(ours, forward, atol=1e-12)
    with pytest.raises(clew.ConfigError, match="causal linear attention"):
        walk.linear_recurrence(model(), [1, 2])


def test_texts_longer_than_the_context() -> None:
    m = model(positional_embedding_type="rotary")
    with pytest.raises(clew.TokenError, match="the text has 13 tokens, the context holds 12"):
        walk.decoding_walk(m, [1] * 13)
    with pytest.raises(clew.ShapeError, match="one text, not of 2"):
        walk.decoding_walk(m, [[1, 2], [3, 4]])


def sigma(x: Any) -> Any:
    """The model's gelu by SciPy."""
    return x * special.ndtr(x)


def direct(m: clew.Model, ids: list[int], concept: walk.Concept) -> Any:
    """A text's concept vector by the note's definitions, on its own."""
    run = m.run(ids, capture=[("resid_pre", 0), "resid_post", "ln_final.hook_out"])
    states = [run["resid_pre", 0], run["resid_post", 0], run["resid_post", 1], run["ln_final.hook_out"]]
    layer = {"E": m.W_E[ids], "OE": m.W_U.T[ids], "middle": states[1][0], "last": states[3][0]}
    h = layer[concept.layer] if isinstance(concept.layer, str) else states[concept.layer][0]
    acts = {None: h, "act|": sigma(h), "-act|": -sigma(-h), "act+|": sigma(h) + h, "-act+|": h - sigma(-h)}
    h = acts[concept.activation]
    if concept.znorm:
        h = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
    t = np.arange(1, len(ids) + 1)[:, None]
    pooled = {"mean": h.mean(0), "w1mean": (t * h).sum(0) / t.sum(), "last": h[-1], "concat": h}[concept.pooling]
    if concept.norm == "l2":
        return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)
    if concept.norm == "var":
        return pooled / pooled.std(-1, keepdims=True)
    if concept.norm == "z":
        return (pooled - pooled.mean(-1, keepdims=True)) / pooled.std(-1, keepdims=True)
    return pooled


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_concept_vectors_against_a_direct_version(pooling: str, norm: Any, act: Any) -> None:
    m = model()
    texts = [RNG.integers(0, 40, n).tolist() for n in (3, 12, 1, 7)]
    for layer in (0, 1, -1, "middle", "last", "E", "OE"):
        concept = walk.Concept(pooling, layer, act, znorm=layer == 1, norm=norm)
        found = walk.concept_vectors(m, texts, concept, at_once=16)
        for ids, vector in zip(texts, found, strict=True):
            np.testing.assert_allclose(vector, direct(m, ids, concept), atol=1e-10)


@pytest.mark.parametrize(
    "name", ["relu", "silu", "gelu", "gelu_tanh", "quick_gelu", "relu2", "tanh", "sigmoid", "none"]
)
def test_activations_are_the_models(name: str) -> None:
    m = model(act_fn=name)
    run = m.run([1, 2, 3], capture=["blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"])
    np.testing.assert_allclose(activation(name, run["pre", 1]), run["post", 1], atol=1e-12)


def test_long_texts_are_split_not_cut() -> None:
    m, ids = model(), RNG.integers(0, 40, 30).tolist()
    concept = walk.Concept("w1mean", layer=2)
    with pytest.raises(clew.TokenError, match="text 1 has 30 tokens, the context holds 12: too_long='split'"):
        walk.concept_vectors(m, [[1], ids], concept)
    states = [m.run(ids[at : at + 12], capture=[("resid_post", 1)])["resid_post", 1][0] for at in (0, 12, 24)]
    t = np.arange(1, 31)[:, None]
    want = (t * np.concatenate(states)).sum(0) / t.sum()
    np.testing.assert_allclose(walk.concept_vectors(m, [ids], concept, too_long="split")[0], want, atol=1e-12)


def test_concepts_that_there_are_not() -> None:
    with pytest.raises(clew.ConfigError, match="pooling = 'max': one of 'mean', 'w1mean', 'last', 'concat'"):
        walk.Concept("max")
    with pytest.raises(clew.ConfigError, match="layer = 'top': 0 to 3, 'middle', 'last', 'E' or 'OE'"):
        walk.concept_vectors(model(), [[1]], walk.Concept(layer="top"))
    with pytest.raises(clew.ConfigError, match="layer = 4: the model has hidden states 0 to 3"):
        walk.concept_vectors(model(), [[1]], walk.Concept(layer=4))
    with pytest.raises(clew.TokenError, match="text 1 is empty"):
        walk.concept_vectors(model(), [[1], []])
