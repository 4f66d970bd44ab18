"""Small random models of every family, and odd ones: what the engine's tests run over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from clew.config import ModelConfig
from numpy.typing import NDArray

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}
"""Scaling whose three branches (kept, blended, divided) all occur with 4 rotary pairs of base 10000."""


def _rms(**changes: Any) -> dict[str, Any]:
    """What the llama family shares."""
    fields: dict[str, Any] = dict(
        normalization_type="RMS",
        eps=1e-6,
        positional_embedding_type="rotary",
        gated_mlp=True,
        act_fn="silu",
        qkv_bias=False,
        attn_out_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    return fields | changes


def zoo() -> dict[str, ModelConfig]:
    """Configurations by name. Prompts of up to 16 positions fit all of them."""
    gemma = dict(act_fn="gelu_tanh", tie_word_embeddings=True)
    parallel = dict(parallel_attn_mlp=True, positional_embedding_type="rotary")
    small: dict[str, Any] = dict(n_layers=2, n_ctx=24)
    linear: dict[str, Any] = dict(
        n_layers=2, d_model=11, n_heads=2, d_head=6, n_ctx=24, d_vocab=9, attention_kind="linear"
    )
    return {
        # the architectures
        "gpt2": ModelConfig(**small, d_model=24, n_heads=3, d_vocab=31, act_fn="gelu_new", tie_word_embeddings=True),
        "gpt2_inverse_layer": ModelConfig(
            n_layers=3, d_model=20, n_heads=4, n_ctx=24, d_vocab=19, scale_attn_by_inverse_layer_idx=True
        ),
        "gpt_neo": ModelConfig(
            n_layers=2, d_model=24, n_heads=4, n_ctx=24, d_vocab=31, act_fn="gelu_new", qkv_bias=False,
            use_attn_scale=False, attn_types=("global", "local"), window_size=4, tie_word_embeddings=True,
        ),
        "gptj": ModelConfig(
            **small, **parallel, d_model=24, n_heads=2, d_vocab=31, act_fn="gelu_new", shared_norm=True, rotary_dim=8,
            rotary_adjacent_pairs=True, qkv_bias=False, attn_out_bias=False, unembed_bias=True,
        ),
        "gpt_neox": ModelConfig(**small, **parallel, d_model=24, n_heads=3, d_vocab=31, rotary_dim=2),
        "gpt_neox_serial": ModelConfig(
            **small, d_model=24, n_heads=3, d_vocab=31, rotary_dim=4, positional_embedding_type="rotary"
        ),
        "opt": ModelConfig(
            n_layers=2, d_model=24, n_heads=3, n_ctx=24, d_vocab=31, d_mlp=40, act_fn="relu", pos_offset=2,
            tie_word_embeddings=True,
        ),
        "phi": ModelConfig(
            **small, **parallel, d_model=24, n_heads=3, d_vocab=31, act_fn="gelu_new", shared_norm=True, rotary_dim=4,
            unembed_bias=True,
        ),
        "llama": ModelConfig(**small, **_rms(), d_model=24, n_heads=3, d_vocab=31, d_mlp=40),
        "llama3": ModelConfig(
            **small, **_rms(rope_scaling=LLAMA3), d_model=32, n_heads=4, n_key_value_heads=2, d_vocab=31, d_mlp=40
        ),
        "llama_linear_scaling": ModelConfig(
            **small, **_rms(rope_scaling={"rope_type": "linear", "factor": 4.0}), d_model=24, n_heads=3, d_vocab=31
        ),
        "llama_biased": ModelConfig(
            **small, **_rms(qkv_bias=True, attn_out_bias=True, mlp_bias=True), d_model=24, n_heads=3, d_vocab=31
        ),
        "mistral": ModelConfig(
            **small, **_rms(window_size=5), d_model=32, n_heads=4, n_key_value_heads=2, d_vocab=31, d_mlp=40
        ),
        "qwen2": ModelConfig(
            **small, **_rms(qkv_bias=True, rotary_base=1e6), d_model=24, n_heads=6, n_key_value_heads=2, d_vocab=31
        ),
        "qwen3": ModelConfig(
            **small, **_rms(use_qk_norm=True), d_model=24, n_heads=4, n_key_value_heads=2, d_head=10, d_vocab=31
        ),
        "gemma": ModelConfig(
            **small, **_rms(**gemma), d_model=24, n_heads=4, n_key_value_heads=1, d_head=8, d_vocab=31,
            embed_scale=math.sqrt(24),
        ),
        "gemma2": ModelConfig(
            n_layers=3, **_rms(**gemma), n_ctx=24, d_model=24, n_heads=4, n_key_value_heads=2, d_head=8, d_vocab=31,
            embed_scale=math.sqrt(24), use_normalization_before_and_after=True, attn_scores_soft_cap=3.0,
            output_logits_soft_cap=4.0, attn_scale=math.sqrt(12), attn_types=("local", "global", "local"),
            window_size=6,
        ),
        "gemma3": ModelConfig(
            n_layers=3, **_rms(**gemma), n_ctx=24, d_model=24, n_heads=4, n_key_value_heads=2, d_head=8, d_vocab=31,
            embed_scale=math.sqrt(24), use_normalization_before_and_after=True, use_qk_norm=True,
            attn_types=("local", "local", "global"), window_size=5, rotary_base=1e6, rotary_base_local=1e4,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
        ),
        # odd sizes and forms
        "odd_d20": ModelConfig(**small, d_model=20, n_heads=4, d_vocab=7, d_mlp=13),
        "odd_d37": ModelConfig(**small, d_model=37, n_heads=3, d_head=5, d_vocab=53, d_mlp=29, unembed_bias=True),
        "odd_d1": ModelConfig(**small, d_model=1, n_heads=1, d_head=1, d_vocab=3, d_mlp=1, normalization_type=None),
        "one_head": ModelConfig(**small, d_model=12, n_heads=1, d_vocab=7),
        "vocab_out": ModelConfig(**small, d_model=24, n_heads=3, d_vocab=31, d_vocab_out=7, unembed_bias=True),
        "vocab_7": ModelConfig(**small, **_rms(), d_model=16, n_heads=2, d_vocab=7),
        "vocab_1": ModelConfig(**small, d_model=9, n_heads=1, d_vocab=1),
        "gqa_6_2": ModelConfig(**small, d_model=18, n_heads=6, n_key_value_heads=2, d_head=7, d_vocab=11),
        "mqa_partial_rotary": ModelConfig(
            **small, **_rms(), d_model=20, n_heads=5, n_key_value_heads=1, d_head=7, rotary_dim=4, d_vocab=11
        ),
        "adjacent_partial_rotary": ModelConfig(
            **small, **_rms(), d_model=20, n_heads=2, d_head=9, rotary_dim=6, rotary_adjacent_pairs=True, d_vocab=11
        ),
        "window_1": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, window_size=1),
        "window_3_learned": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, window_size=3),
        "window_longer_than_context": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, window_size=1000),
        "attn_only": ModelConfig(**small, d_model=20, n_heads=4, d_vocab=11, attn_only=True),
        "attn_only_no_norm": ModelConfig(
            **small, d_model=20, n_heads=4, d_vocab=11, attn_only=True, normalization_type=None
        ),
        "no_norm": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, act_fn="relu", normalization_type=None),
        "no_final_norm": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, final_norm=False),
        "ln_pre": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, normalization_type="LNPre"),
        "rms_pre": ModelConfig(
            **small, **_rms(normalization_type="RMSPre"), d_model=16, n_heads=2, d_vocab=11
        ),
        "ln_no_bias": ModelConfig(
            **small, d_model=16, n_heads=2, d_vocab=11, norm_bias=False, qkv_bias=False, attn_out_bias=False,
            mlp_bias=False,
        ),
        "ln_sandwich": ModelConfig(
            **small, d_model=16, n_heads=2, d_vocab=11, use_normalization_before_and_after=True, gated_mlp=True
        ),
        "rms_learned": ModelConfig(
            **small, d_model=16, n_heads=2, d_vocab=11, normalization_type="RMS", norm_bias=False
        ),
        "no_positions": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, positional_embedding_type="none"),
        "qk_norm_learned": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, use_qk_norm=True),
        "soft_cap_learned": ModelConfig(
            **small, d_model=16, n_heads=2, d_vocab=11, attn_scores_soft_cap=2.0, output_logits_soft_cap=2.5
        ),
        "parallel_learned": ModelConfig(**small, d_model=16, n_heads=2, d_vocab=11, parallel_attn_mlp=True),
        "parallel_shared_gated": ModelConfig(
            **small, **_rms(), d_model=16, n_heads=2, d_vocab=11, parallel_attn_mlp=True, shared_norm=True
        ),
        "deep": ModelConfig(n_layers=7, d_model=8, n_heads=2, n_ctx=24, d_vocab=11),
        "no_layers": ModelConfig(n_layers=0, d_model=10, n_heads=2, n_ctx=24, d_vocab=11),
        **{
            f"act_{act}": ModelConfig(**small, d_model=10, n_heads=2, d_vocab=11, act_fn=act, gated_mlp=gated)
            for act, gated in [
                ("none", False), ("gelu", True), ("relu", True), ("silu", False), ("quick_gelu", False),
                ("relu2", False), ("tanh", True), ("sigmoid", False),
            ]
        },
        # linear attention: no softmax, scores / n
        "linear_causal": ModelConfig(**linear, normalization_type=None),
        "linear_causal_exclude_self": ModelConfig(**linear, normalization_type=None, exclude_self=True),
        "linear_full": ModelConfig(**linear, normalization_type=None, attention_dir="bidirectional"),
        "linear_full_exclude_self": ModelConfig(
            **linear, normalization_type="LN", attention_dir="bidirectional", exclude_self=True
        ),
        "linear_full_exclude_last": ModelConfig(
            **linear, normalization_type=None, attention_dir="bidirectional", exclude_last=True
        ),
        "linear_full_exclude_both": ModelConfig(
            **linear, normalization_type=None, attention_dir="bidirectional", exclude_last=True, exclude_self=True,
            window_size=3,
        ),
        "linear_fixed_n": ModelConfig(**linear, normalization_type=None, linear_attn_n=10),
        "linear_window": ModelConfig(**linear, normalization_type="RMS", norm_bias=False, window_size=3),
        "linear_attn_only": ModelConfig(
            **linear, normalization_type=None, final_norm=False, attn_only=True, positional_embedding_type="none",
            use_attn_scale=False, qkv_bias=False, attn_out_bias=False,
        ),
    }  # fmt: skip


def vector_zoo() -> dict[str, ModelConfig]:
    """Models that read or write vectors instead of tokens and logits, by name."""
    small: dict[str, Any] = dict(n_layers=2, n_ctx=24, d_model=20, n_heads=4)
    return {
        "vectors": ModelConfig(**small, d_in=5, d_out=3),
        "vectors_rotary": ModelConfig(**small, **_rms(), d_head=6, d_in=7, d_out=1, d_mlp=13),
        "vectors_no_positions": ModelConfig(
            **small, d_in=1, d_out=20, positional_embedding_type="none", attn_only=True
        ),
        "vectors_offset": ModelConfig(**small, d_in=6, d_out=2, pos_offset=2, embed_scale=3.0, unembed_bias=True),
        "vectors_linear": ModelConfig(
            n_layers=2, d_model=11, n_heads=1, n_ctx=24, d_in=11, d_out=11, attention_kind="linear", attn_only=True,
            attention_dir="bidirectional", exclude_self=True, normalization_type=None, final_norm=False,
            positional_embedding_type="none", use_attn_scale=False, qkv_bias=False, attn_out_bias=False,
        ),
        "vectors_to_logits": ModelConfig(**small, d_in=4, d_vocab_out=9),
        "tokens_to_vectors": ModelConfig(**small, d_vocab=9, d_out=4, output_logits_soft_cap=2.0),
        "vectors_no_layers": ModelConfig(n_layers=0, d_model=6, n_heads=1, n_ctx=24, d_in=3, d_out=2),
    }  # fmt: skip


def random_inputs(config: ModelConfig, seed: int, batch: int = 2, pos: int = 12) -> NDArray[Any]:
    """Token ids [batch, pos], or vectors [batch, pos, d_in] where the model reads these."""
    if config.d_in is None:
        return random_tokens(config, seed, batch, pos)
    return np.random.default_rng(seed).standard_normal((batch, pos, config.d_in))


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Classic shape of every weight that the configuration's flags ask for."""
    c, d, h, g, e, f = (
        config, config.d_model, config.n_heads, config.n_key_value_heads, config.d_head, config.d_mlp,
    )  # fmt: skip

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        out: dict[str, tuple[int, ...]] = {}
        if c.norm_affine:
            out[f"{name}.w"] = (d,)
            if c.norm_bias and not c.rms:
                out[f"{name}.b"] = (d,)
        return out

    shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (c.d_vocab, d)}
    if c.positional_embedding_type == "standard":
        shapes["pos_embed.W_pos"] = (c.n_ctx + c.pos_offset, d)
    for layer in range(c.n_layers):
        own = norm("ln1")
        own |= {"attn.W_Q": (h, d, e), "attn.W_K": (g, d, e), "attn.W_V": (g, d, e), "attn.W_O": (h, e, d)}
        if c.qkv_bias:
            own |= {"attn.b_Q": (h, e), "attn.b_K": (g, e), "attn.b_V": (g, e)}
        if c.attn_out_bias:
            own["attn.b_O"] = (d,)
        if c.use_qk_norm:
            own |= {"attn.q_norm.w": (e,), "attn.k_norm.w": (e,)}
        if c.use_normalization_before_and_after:
            own |= norm("ln1_post")
        if not c.attn_only:
            if not (c.parallel_attn_mlp and c.shared_norm):
                own |= norm("ln2")
            own |= {"mlp.W_in": (d, f), "mlp.W_out": (f, d)}
            if c.gated_mlp:
                own["mlp.W_gate"] = (d, f)
            if c.mlp_bias:
                own |= {"mlp.b_in": (f,), "mlp.b_out": (d,)}
                if c.gated_mlp:
                    own["mlp.b_gate"] = (f,)
            if c.use_normalization_before_and_after:
                own |= norm("ln2_post")
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in own.items()}
    if c.final_norm:
        shapes |= norm("ln_final")
    shapes["unembed.W_U"] = (d, c.d_vocab_out)
    if c.unembed_bias:
        shapes["unembed.b_U"] = (c.d_vocab_out,)
    return shapes


def random_weights(config: ModelConfig, seed: int, dtype: Any = np.float64) -> dict[str, NDArray[Any]]:
    """Weights turned up so that no term can hide: norm weights 1 + .25 n, biases .3 n ± .1, peaked patterns."""
    rng = np.random.default_rng(seed)
    c = config
    # the standard deviation of scores of unit-variance inputs; without norms linear attention is cubic in its input
    peak = 2.5 if c.attention_kind == "softmax" else 1.0 if c.normalization_type else 0.3
    qk = math.sqrt(peak * c.attn_scale / (math.sqrt(c.d_head) * c.d_model))
    std = {
        "W_E": 1 / c.embed_scale, "W_pos": 0.7, "W_Q": qk, "W_K": qk, "W_V": c.d_model**-0.5,
        "W_O": (c.n_heads * c.d_head) ** -0.5, "W_in": c.d_model**-0.5, "W_gate": c.d_model**-0.5,
        "W_out": max(c.d_mlp, 1) ** -0.5, "W_U": 2 * c.d_model**-0.5,
    }  # fmt: skip
    weights: dict[str, NDArray[Any]] = {}
    for name, shape in weight_shapes(config).items():
        last = name.rsplit(".", 1)[-1]
        values = rng.standard_normal(shape)
        if last == "w":
            values = (2.0 if "q_norm" in name else 1.0) + 0.25 * values
        elif last.startswith("b"):
            values = 0.3 * values + np.copysign(0.1, values)  # none close to 0
        else:
            values = std[last] * values
        weights[name] = values.astype(dtype)
    if c.tie_word_embeddings:
        weights["unembed.W_U"] = weights["embed.W_E"].T
    return weights


def random_tokens(config: ModelConfig, seed: int, batch: int = 2, pos: int = 12) -> NDArray[np.int64]:
    """Token ids [batch, pos] within the vocabulary."""
    return np.random.default_rng(seed).integers(0, config.d_vocab, (batch, pos))
