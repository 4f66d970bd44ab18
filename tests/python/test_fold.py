"""Folded models: the same predictions on every architecture, and what folding does to each weight and site."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from support import make, relative_error
from twin import twin
from zoo import random_tokens, zoo

ZOO = zoo()
OPTIONS = ("fold_ln", "center_writing", "center_unembed", "fold_value_biases")


def log_probs(logits: Any) -> Any:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def only(**on: bool) -> dict[str, bool]:
    return dict.fromkeys(OPTIONS, False) | on


def centres(config: clew.ModelConfig) -> bool:
    """Do all readers of the stream take its mean out?"""
    norm = config.normalization_type in ("LN", "LNPre")
    return norm and config.final_norm and not config.use_normalization_before_and_after


@pytest.mark.parametrize("name", ZOO)
def test_same_predictions(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 3)
    want = model.run(tokens).logits
    everything = model.folded()
    if config.output_logits_soft_cap:
        assert relative_error(everything.run(tokens).logits, want) < 1e-10
    else:
        got = everything.run(tokens).logits
        assert np.abs(log_probs(got) - log_probs(want)).max() < 1e-10
        apart = got - want
        assert np.abs(apart - apart.mean(-1, keepdims=True)).max() < 1e-10  # the same at every token of a position
        assert np.abs(got.mean(-1)).max() < 1e-10
    assert relative_error(model.folded(center_unembed=False).run(tokens).logits, want) < 1e-10
    for option in ("fold_ln", "center_writing", "fold_value_biases"):
        assert relative_error(model.folded(**only(**{option: True})).run(tokens).logits, want) < 1e-10, option
    assert np.array_equal(model.run(tokens).logits, want)  # the model itself is as it was


@pytest.mark.parametrize("d_out", [1, 2])
def test_outputs_that_are_vectors_keep_their_mean(d_out: int) -> None:
    config = clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=8, d_in=3, d_out=d_out, unembed_bias=True)
    model, _ = make(config)
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    folded = model.folded()
    assert relative_error(folded.run(x).logits, model.run(x).logits) < 1e-10
    assert any("the unembedding is not centred: the mean of the outputs" in note for note in folded.notes)
    assert not any("unembedding" in note for note in model.folded(center_unembed=False).notes)


@pytest.mark.parametrize("on", list(itertools.product([False, True], repeat=4)), ids=str)
def test_every_combination(on: tuple[bool, ...]) -> None:
    for name in ("gpt2", "phi", "qwen2", "ln_sandwich", "linear_full_exclude_self"):
        config = ZOO[name]
        model, _ = make(config)
        tokens = random_tokens(config, 1)
        got, want = (m.run(tokens).logits for m in (model.folded(*on), model))
        assert np.abs(log_probs(got) - log_probs(want)).max() < 1e-10


@pytest.mark.parametrize("name", ZOO)
def test_the_form_of_folded_weights(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    folded = model.folded()
    kind, w = folded.config.normalization_type, folded.weights
    affine = [n for n in w if n.split(".")[-2].startswith("ln") and "post" not in n]
    if config.use_normalization_before_and_after:
        assert kind == config.normalization_type
        assert affine and all(n.endswith(".w") and (w[n] == 1).all() for n in affine)
        kept = [n for n in model.weights if "_post" in n]
        assert kept and all(np.array_equal(w[n], model.weights[n]) for n in kept)
    else:
        assert not affine
        assert kind == {"LN": "LNPre", "RMS": "RMSPre"}.get(config.normalization_type, config.normalization_type)
    for n in model.weights:
        if "_norm.w" in n:
            assert np.array_equal(w[n], model.weights[n])
    if config.attention_kind == "softmax":
        assert not any(n.endswith("b_V") for n in w)
    if centres(config):
        writing = [n for n in w if n.rsplit(".", 1)[-1] in ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")]
        assert writing and all(np.abs(w[n].mean(-1)).max() < 1e-15 for n in writing)
    if config.normalization_type == "LN":  # what reads a centred input need not see its mean
        reading = [n for n in w if n.rsplit(".", 1)[-1] in ("W_Q", "W_K", "W_V", "W_in", "W_gate")]
        assert all(np.abs(w[n].mean(-2)).max() < 1e-14 for n in reading)
    said = "\n".join(folded.notes)
    assert ("not centred" in said) == (not centres(config) or bool(config.output_logits_soft_cap))
    assert ("value biases stay" in said) == (config.attention_kind == "linear")
    biases = {n.rsplit(".", 1)[-1] for n in w}
    c = folded.config
    assert c.qkv_bias == bool(biases & {"b_Q", "b_K", "b_V"}) and c.attn_out_bias == ("b_O" in biases)
    assert c.mlp_bias == bool(biases & {"b_in", "b_gate", "b_out"}) and c.unembed_bias == ("b_U" in biases)
    # the twin reads the folded model's configuration and weights on its own
    tokens = random_tokens(config, 4)
    assert relative_error(folded.run(tokens).logits, twin(c, w, tokens)["logits"]) < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_neox", "phi", "opt", "ln_no_bias", "attn_only", "ln_pre"])
def test_sites_of_a_folded_model(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 2)
    one, two = (m.run(tokens, capture="*") for m in (model, model.folded()))

    def centred(x: Any) -> Any:
        return x - x.mean(-1, keepdims=True)

    same = {"hook_normalized", "hook_q", "hook_k", "hook_pattern", "hook_attn_scores", "hook_pre", "hook_post"}
    stream = {
        "hook_embed", "hook_pos_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out",
        "hook_mlp_out",
    }  # fmt: skip
    seen = set()
    for site in one:
        last = site.rsplit(".", 1)[-1]
        if last in same or last == "hook_scale":
            assert relative_error(two[site], one[site]) < 1e-10, site
        elif last in stream:
            assert relative_error(two[site], centred(one[site])) < 1e-10, site
            assert np.abs(two[site].mean(-1)).max() < 1e-13
        elif last == "hook_z":  # the value bias, which every position sees in full, is elsewhere
            at = f"blocks.{site.split('.')[1]}."
            fixed = np.zeros(one[site].shape[2:])
            v = model.weights.get(at + "attn.b_V")
            fixed += 0 if v is None else v
            if at + "ln1.b" in model.weights:
                fixed += model.weights[at + "ln1.b"] @ model.weights[at + "attn.W_V"]
            assert relative_error(two[site], one[site] - fixed) < 1e-10, site
        else:
            continue
        seen.add(last)
    assert {"hook_z", "hook_resid_post", "hook_normalized", "hook_pattern"} <= seen


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi", "gqa_6_2", "ln_sandwich", "linear_causal"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_and_loaded_it_has_the_same_bits(name: str, dtype: Any, tmp_path: Path) -> None:
    config = ZOO[name]
    folded = make(config, dtype=dtype)[0].folded()
    folded.save(tmp_path)
    again = clew.load(tmp_path)
    assert again.config == folded.config and list(again.weights) == list(folded.weights)
    for n, w in folded.weights.items():
        assert np.array_equal(again.weights[n], w) and again.weights[n].dtype == dtype
        assert again.weights[n].strides == w.strides or w.size in w.shape
    tokens = random_tokens(config, 0)
    assert np.array_equal(again.run(tokens).logits, folded.run(tokens).logits)


def test_tied_embeddings_come_apart() -> None:
    model, _ = make(ZOO["gpt2"])
    folded = model.folded()
    assert not folded.config.tie_word_embeddings
    assert not np.shares_memory(folded.weights["embed.W_E"], folded.weights["unembed.W_U"])
    assert folded.n_params > model.n_params - 100
    unchanged = model.folded(*[False] * 4)
    assert unchanged.config.tie_word_embeddings and unchanged.n_params == model.n_params
    assert np.shares_memory(unchanged.weights["embed.W_E"], model.weights["embed.W_E"])


def test_folding_twice_changes_nothing() -> None:
    for name in ("gpt2", "llama_biased", "gemma3"):
        once = make(ZOO[name])[0].folded()
        twice = once.folded()
        assert twice.config == once.config
        for n, w in once.weights.items():
            np.testing.assert_allclose(twice.weights[n], w, rtol=0, atol=1e-15)


def test_float32_is_rounded_once() -> None:
    config = ZOO["gpt2"]
    single, weights = make(config, dtype=np.float32)
    double = clew.Model(
        clew.loaders.checkpoint.Checkpoint(
            config, {n: w.astype(np.float64) for n, w in weights.items()}, np.dtype(np.float64)
        )
    )
    want = double.folded().weights
    for n, w in single.folded().weights.items():
        assert w.dtype == np.float32 and np.array_equal(w, want[n].astype(np.float32)), n


def test_the_bundled_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = clew.load("shakespeare")
    folded = model.folded()
    text = "What light through yonder window breaks"
    assert folded.to_str_tokens(text) == model.to_str_tokens(text)
    np.testing.assert_allclose(folded.loss(text), model.loss(text), atol=2e-4)
    folded.save(tmp_path)
    np.testing.assert_array_equal(clew.load(tmp_path).loss(text), folded.loss(text))
