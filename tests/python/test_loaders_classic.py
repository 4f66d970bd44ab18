"""Classic HookedTransformer states: names, fields, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import random_tensors, write_checkpoint
from clew.errors import LoadError, UnsupportedModelError
from clew.loaders import open_checkpoint
from clew.loaders.checkpoint import Checkpoint
from twin import twin

V, C, L, D, H, E, F = 11, 12, 2, 12, 3, 4, 10
SIZES: dict[str, Any] = dict(n_layers=L, d_model=D, n_ctx=C, d_head=E, n_heads=H, d_vocab=V, d_mlp=F, act_fn="gelu")
NO_SCALING = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0)


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes that the classic library's state has for a configuration."""
    c = {"normalization_type": "LN", "positional_embedding_type": "standard"} | config
    groups, norm = c.get("n_key_value_heads"), c["normalization_type"]

    def norms(name: str, kind: str | None = norm, width: int = D) -> dict[str, tuple[int, ...]]:
        out = {f"{name}.w": (width,)} if kind in ("LN", "RMS") else {}
        return out | ({f"{name}.b": (width,)} if kind == "LN" else {})

    out: dict[str, tuple[int, ...]] = {"embed.W_E": (V, D), "unembed.W_U": (D, V), "unembed.b_U": (V,)}
    if c["positional_embedding_type"] == "standard":
        out["pos_embed.W_pos"] = (C, D)
    for layer in range(L):
        at = f"blocks.{layer}"
        under, n = ("_", groups) if groups else ("", H)
        out |= norms(f"{at}.ln1") | {f"{at}.attn.W_Q": (H, D, E), f"{at}.attn.b_Q": (H, E)}
        for letter in "KV":
            out |= {f"{at}.attn.{under}W_{letter}": (n, D, E), f"{at}.attn.{under}b_{letter}": (n, E)}
        out |= {f"{at}.attn.W_O": (H, E, D), f"{at}.attn.b_O": (D,)}
        out |= {f"{at}.attn.mask": (C, C), f"{at}.attn.IGNORE": ()}
        if c.get("use_qk_norm"):
            out |= norms(f"{at}.attn.q_norm", "RMS", E) | norms(f"{at}.attn.k_norm", "RMS", E)
        if c.get("use_normalization_before_and_after"):
            out |= norms(f"{at}.ln1_post", "RMS") | norms(f"{at}.ln2_post", "RMS")
        if not c.get("attn_only"):
            out |= norms(f"{at}.ln2")
            out |= {
                f"{at}.mlp.W_in": (D, F),
                f"{at}.mlp.b_in": (F,),
                f"{at}.mlp.W_out": (F, D),
                f"{at}.mlp.b_out": (D,),
            }
            out |= {f"{at}.mlp.W_gate": (D, F)} if c.get("gated_mlp") else {}
    return out | norms("ln_final")


def load(directory: Path, dtype: Any = None, **changes: Any) -> tuple[Checkpoint, dict[str, Any]]:
    config = SIZES | changes
    tensors = random_tensors(shapes_of(config))
    for name in tensors:
        if name.endswith("mask"):
            tensors[name] = np.tril(np.ones((C, C), bool))
    return open_checkpoint(write_checkpoint(directory, config, tensors), dtype), tensors


def test_weights_are_the_files_own_arrays(tmp_path: Path) -> None:
    checkpoint, tensors = load(tmp_path)
    kept = {name for name in tensors if not name.endswith(("mask", "IGNORE"))}
    assert set(checkpoint.weights) == kept
    base = checkpoint.weights["embed.W_E"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    for name in kept:
        np.testing.assert_array_equal(checkpoint.weights[name], tensors[name])
        assert np.shares_memory(checkpoint.weights[name], base)
    assert len(checkpoint.notes) == 1 and "blocks.1.attn.mask" in checkpoint.notes[0]
    config = checkpoint.config
    assert (config.n_layers, config.d_model, config.n_heads, config.d_head, config.d_mlp) == (L, D, H, E, F)
    assert config.qkv_bias and config.attn_out_bias and config.mlp_bias and config.unembed_bias and config.norm_bias
    assert config.attn_scale == 2.0 and config.n_ctx == C and config.initializer_range == 0.02
    assert load(tmp_path, "float64")[0].weights["embed.W_E"].dtype == np.float64


def test_grouped_heads(tmp_path: Path) -> None:
    checkpoint, tensors = load(tmp_path, n_key_value_heads=1)
    for name in ("W_K", "W_V", "b_K", "b_V"):
        np.testing.assert_array_equal(checkpoint.weights[f"blocks.0.attn.{name}"], tensors[f"blocks.0.attn._{name}"])
    assert checkpoint.config.n_key_value_heads == 1


def test_biases_may_be_absent_and_weights_may_not(tmp_path: Path) -> None:
    tensors = random_tensors(shapes_of(SIZES))
    bare = {name: array for name, array in tensors.items() if ".b_" not in name}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, SIZES, bare))
    config = checkpoint.config
    assert not (config.qkv_bias or config.attn_out_bias or config.mlp_bias or config.unembed_bias)
    for name in ("blocks.0.ln1.b", "blocks.1.attn.W_K", "unembed.W_U"):
        del tensors[name]
    with pytest.raises(LoadError, match="3 tensors missing") as caught:
        open_checkpoint(write_checkpoint(tmp_path, SIZES, tensors))
    assert "blocks.0.ln1.b" in str(caught.value) and "blocks.1.attn.W_K" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("relu", "relu"), ("gelu", "gelu"), ("silu", "silu"), ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
    ],
)  # fmt: skip
def test_activations(name: str, kind: str, tmp_path: Path) -> None:
    assert load(tmp_path, act_fn=name)[0].config.act_fn == kind


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", "RMSPre", None])
def test_norms(norm: str | None, tmp_path: Path) -> None:
    checkpoint, _ = load(tmp_path, normalization_type=norm)
    assert checkpoint.config.normalization_type == norm
    assert ("ln_final.w" in checkpoint.weights) == (norm in ("LN", "RMS"))
    assert ("blocks.1.ln2.b" in checkpoint.weights) == (norm == "LN")
    assert checkpoint.config.final_norm == (norm is not None)


def test_attention_fields(tmp_path: Path) -> None:
    scale = dict(attn_scale=1.5, scale_attn_by_inverse_layer_idx=True, attn_scores_soft_cap=4.0)
    config = load(tmp_path / "a", **scale, output_logits_soft_cap=-1.0)[0].config
    assert config.attn_scale == 1.5 and config.scale_attn_by_inverse_layer_idx
    assert config.attn_scores_soft_cap == 4.0 and config.output_logits_soft_cap is None
    assert load(tmp_path / "b", use_attn_scale=False, attn_scale=-1.0)[0].config.attn_scale == 1.0
    assert load(tmp_path / "c", attn_scale=-1.0, n_heads=-1)[0].config.attn_scale == 2.0
    local = dict(attn_types=["local", "global"], window_size=3)
    assert load(tmp_path / "d", **local)[0].config.window_size is None  # use_local_attn decides
    config = load(tmp_path / "e", **local, use_local_attn=True)[0].config
    assert config.attn_types == ("local", "global") and config.window_size == 3
    with pytest.raises(LoadError, match="attn_types"):
        load(tmp_path / "f", use_local_attn=True, window_size=3)


def test_blocks(tmp_path: Path) -> None:
    config = load(tmp_path / "a", parallel_attn_mlp=True)[0].config
    assert config.parallel_attn_mlp and not config.shared_norm  # ln1 and ln2 are two norms there
    checkpoint, _ = load(tmp_path / "b", attn_only=True, act_fn=None, d_mlp=None)
    assert checkpoint.config.attn_only and not any(".mlp." in name for name in checkpoint.weights)


def test_rotary(tmp_path: Path) -> None:
    rotary = dict(positional_embedding_type="rotary")
    config = load(tmp_path / "a", **rotary, rotary_dim=2, rotary_base=500, rotary_adjacent_pairs=True)[0].config
    assert config.rotary_dim == 2 and config.rotary_base == 500.0 and config.rotary_adjacent_pairs
    assert load(tmp_path / "b", **rotary)[0].config.rotary_dim == E
    parts = dict(use_NTK_by_parts_rope=True, NTK_by_parts_factor=2.0, NTK_original_ctx_len=16)
    config = load(tmp_path / "c", **rotary, **parts)[0].config
    assert dict(config.rope_scaling or {}) == NO_SCALING | {"factor": 2.0, "original_max_position_embeddings": 16}
    config = load(tmp_path / "d", **rotary, rotary_scaling_factor=8.0)[0].config
    full, local = config.rotary_frequencies()
    np.testing.assert_allclose(full, [1 / 8, 0.01 / 8])
    np.testing.assert_allclose(local, [1, 0.01])  # local layers are never scaled
    assert load(tmp_path / "e", **rotary, rotary_base_local=100)[0].config.rotary_base_local == 100.0


def test_folded_norms_with_norms_behind_the_branches(tmp_path: Path) -> None:
    checkpoint, tensors = load(
        tmp_path, normalization_type="RMSPre", use_normalization_before_and_after=True, gated_mlp=True
    )
    assert checkpoint.config.normalization_type == "RMS"
    np.testing.assert_array_equal(checkpoint.weights["blocks.1.ln2.w"], np.ones(D))
    np.testing.assert_array_equal(checkpoint.weights["blocks.1.ln2_post.w"], tensors["blocks.1.ln2_post.w"])
    assert any("weights of one" in note for note in checkpoint.notes)


def test_bias_behind_the_gate(tmp_path: Path) -> None:
    """mlp_out = (act(x W_gate) · (x W_in) + b_in) W_out + b_out in the classic library."""
    sizes = dict(gated_mlp=True, act_fn="relu", normalization_type=None, positional_embedding_type="rotary")
    checkpoint, tensors = load(tmp_path, "float64", **sizes)
    sites = twin(checkpoint.config, checkpoint.weights, [1, 2, 3])
    x = sites["blocks.0.hook_resid_mid"][0]
    w = {
        name: tensors[f"blocks.0.mlp.{name}"].astype(np.float64)
        for name in ("W_gate", "W_in", "b_in", "W_out", "b_out")
    }
    want = (np.maximum(x @ w["W_gate"], 0) * (x @ w["W_in"]) + w["b_in"]) @ w["W_out"] + w["b_out"]
    np.testing.assert_allclose(sites["blocks.0.hook_mlp_out"][0], want, rtol=1e-12)
    assert "blocks.0.mlp.b_in" not in checkpoint.weights and any("folded" in note for note in checkpoint.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"positional_embedding_type": "shortformer"}, {"positional_embedding_type": "alibi"},
        {"positional_embedding_type": "relative_positional_bias"}, {"attention_dir": "bidirectional"},
        {"use_hook_tokens": True}, {"post_embedding_ln": True}, {"num_experts": 4}, {"experts_per_token": 2},
        {"act_fn": "solu"}, {"act_fn": "solu_ln"}, {"act_fn": "xielu"}, {"final_rms": True}, {"load_in_4bit": True},
        {"use_yarn_rope": True}, {"normalization_type": "batch"},
        {"relative_attention_num_buckets": 8},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_refusals(changes: dict[str, Any], tmp_path: Path) -> None:
    key, value = next(iter(changes.items()))
    with pytest.raises(UnsupportedModelError) as caught:
        load(tmp_path, **changes)
    assert f"{key} = {value!r}" in str(caught.value)


def test_combined_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="use_normalization_before_and_after"):
        load(tmp_path, use_normalization_before_and_after=True)
    with pytest.raises(UnsupportedModelError, match="rotary_base_local"):
        load(tmp_path, positional_embedding_type="rotary", use_NTK_by_parts_rope=True, rotary_base_local=100)
    with pytest.raises(UnsupportedModelError, match="parallel_attn_mlp"):
        load(tmp_path, attn_only=True, parallel_attn_mlp=True)
    assert load(tmp_path, normalization_type="RMS", final_rms=True)[0].config.normalization_type == "RMS"


def test_wrong_fields(tmp_path: Path) -> None:
    for changes, message in [({"d_vocab": -1}, "d_vocab"), ({"n_layers": 10**9}, "n_layers"), ({"eps": "x"}, "eps")]:
        with pytest.raises(LoadError, match=message):
            load(tmp_path, **changes)
    with pytest.raises(LoadError, match="rotary_dim = 3"):
        load(tmp_path, positional_embedding_type="rotary", rotary_dim=3)


def test_default_scale_is_the_square_root_of_the_head(tmp_path: Path) -> None:
    assert load(tmp_path)[0].config.attn_scale == math.sqrt(E)
