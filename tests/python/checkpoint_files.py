"""Tiny checkpoints for the loaders' tests, written without any of the code under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16", "bool": "BOOL", "int64": "I64"}


def safetensors_bytes(tensors: dict[str, Array], metadata: dict[str, str] | None = None, pad: int = 0) -> bytes:
    """A safetensors file; uint16 arrays are bfloat16 bits. `pad` spaces behind the header shift the data."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    return struct.pack("<Q", len(text)) + text + data


def write_checkpoint(directory: Path, config: dict[str, Any], tensors: dict[str, Array], pad: int = 0) -> Path:
    """`config.json` and `model.safetensors` in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").write_bytes(safetensors_bytes(tensors, pad=pad))
    return directory


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: str = "float32", seed: int = 0) -> dict[str, Array]:
    """Different numbers everywhere."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def to_bfloat16(array: Array) -> Array:
    """The bits of the nearest bfloat16 below in magnitude."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


V, C, L, D, H, G, E, F = 11, 12, 2, 12, 3, 1, 4, 10
"""Vocabulary, positions, layers, d_model, heads, key-value heads, d_head, d_mlp of every checkpoint here."""


def _each_layer(at: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{at}.{layer}.{name}": shape for layer in range(L) for name, shape in shapes.items()}


def _linear(name: str, d_out: int, d_in: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d_out, d_in)} | ({f"{name}.bias": (d_out,)} if bias else {})


def _norm(name: str, bias: bool = True, width: int = D) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def _conv(name: str, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (d_in, d_out), f"{name}.bias": (d_out,)}


def _gated(qkv_bias: bool = False, e: int = E, g: int = G, more: dict[str, tuple[int, ...]] | None = None):  # type: ignore[no-untyped-def]
    layer = _norm("input_layernorm", False) | _norm("post_attention_layernorm", False)
    layer |= _linear("self_attn.q_proj", H * e, D, qkv_bias) | _linear("self_attn.k_proj", g * e, D, qkv_bias)
    layer |= _linear("self_attn.v_proj", g * e, D, qkv_bias) | _linear("self_attn.o_proj", D, H * e, False)
    layer |= _linear("mlp.gate_proj", F, D, False) | _linear("mlp.up_proj", F, D, False)
    layer |= _linear("mlp.down_proj", D, F, False) | (more or {})
    return {"model.embed_tokens.weight": (V, D)} | _each_layer("model.layers", layer) | {"model.norm.weight": (D,)}


_SIZES = dict(hidden_size=D, num_hidden_layers=L, num_attention_heads=H, vocab_size=V, max_position_embeddings=C)
_GATED = _SIZES | dict(num_key_value_heads=G, intermediate_size=F)
_GPT = dict(n_embd=D, n_layer=L, n_head=H, n_positions=C, n_inner=F, vocab_size=V)
_HEAD = {"lm_head.weight": (V, D)}
_GEMMA = {
    "pre_feedforward_layernorm.weight": (D,),
    "post_feedforward_layernorm.weight": (D,),
}
_QK = {"self_attn.q_norm.weight": (6,), "self_attn.k_norm.weight": (6,)}
_GPT_LAYER = _norm("ln_1") | _norm("ln_2")
_SEPARATE = {f"{name}.weight": (D, D) for name in ("k_proj", "v_proj", "q_proj")}

CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "gpt2": (
        _GPT,
        {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (C, D)}
        | _each_layer(
            "transformer.h",
            _GPT_LAYER
            | _conv("attn.c_attn", D, 3 * D)
            | _conv("attn.c_proj", D, D)
            | _conv("mlp.c_fc", D, F)
            | _conv("mlp.c_proj", F, D),
        )
        | _norm("transformer.ln_f"),
    ),
    "gpt_neo": (
        dict(
            hidden_size=D,
            num_layers=L,
            num_heads=H,
            max_position_embeddings=C,
            intermediate_size=F,
            vocab_size=V,
            attention_types=[[["global", "local"], 1]],
            window_size=5,
        ),
        {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (C, D)}
        | _each_layer(
            "transformer.h",
            _GPT_LAYER
            | {f"attn.attention.{name}": shape for name, shape in _SEPARATE.items()}
            | _linear("attn.attention.out_proj", D, D)
            | _linear("mlp.c_fc", F, D)
            | _linear("mlp.c_proj", D, F),
        )
        | _norm("transformer.ln_f"),
    ),
    "gptj": (
        _GPT | dict(rotary_dim=2),
        {"transformer.wte.weight": (V, D)}
        | _each_layer(
            "transformer.h",
            _norm("ln_1")
            | {f"attn.{name}": shape for name, shape in _SEPARATE.items()}
            | {"attn.out_proj.weight": (D, D)}
            | _linear("mlp.fc_in", F, D)
            | _linear("mlp.fc_out", D, F),
        )
        | _norm("transformer.ln_f")
        | _linear("lm_head", V, D),
    ),
    "gpt_neox": (
        _SIZES | dict(intermediate_size=F, rotary_pct=0.5, rotary_emb_base=500),
        {"gpt_neox.embed_in.weight": (V, D)}
        | _each_layer(
            "gpt_neox.layers",
            _norm("input_layernorm")
            | _norm("post_attention_layernorm")
            | _linear("attention.query_key_value", 3 * D, D)
            | _linear("attention.dense", D, D)
            | _linear("mlp.dense_h_to_4h", F, D)
            | _linear("mlp.dense_4h_to_h", D, F),
        )
        | _norm("gpt_neox.final_layer_norm")
        | {"embed_out.weight": (V, D)},
    ),
    "opt": (
        _SIZES | dict(ffn_dim=F, word_embed_proj_dim=D),
        {"model.decoder.embed_tokens.weight": (V, D), "model.decoder.embed_positions.weight": (C + 2, D)}
        | _each_layer(
            "model.decoder.layers",
            _norm("self_attn_layer_norm")
            | _norm("final_layer_norm")
            | _linear("self_attn.q_proj", D, D)
            | _linear("self_attn.k_proj", D, D)
            | _linear("self_attn.v_proj", D, D)
            | _linear("self_attn.out_proj", D, D)
            | _linear("fc1", F, D)
            | _linear("fc2", D, F),
        )
        | _norm("model.decoder.final_layer_norm"),
    ),
    "phi": (
        _GATED,
        {"model.embed_tokens.weight": (V, D)}
        | _each_layer(
            "model.layers",
            _norm("input_layernorm")
            | _linear("self_attn.q_proj", D, D)
            | _linear("self_attn.k_proj", G * E, D)
            | _linear("self_attn.v_proj", G * E, D)
            | _linear("self_attn.dense", D, D)
            | _linear("mlp.fc1", F, D)
            | _linear("mlp.fc2", D, F),
        )
        | _norm("model.final_layernorm")
        | _linear("lm_head", V, D),
    ),
    "llama": (_GATED, _gated() | _HEAD),
    "mistral": (_GATED | dict(sliding_window=5), _gated() | _HEAD),
    "qwen2": (_GATED, _gated(qkv_bias=True) | _HEAD),
    "qwen3": (_GATED | dict(head_dim=6), _gated(e=6, more=_QK) | _HEAD),
    "gemma": (_GATED | dict(head_dim=6), _gated(e=6)),
    "gemma2": (_GATED | dict(head_dim=6, sliding_window=5), _gated(e=6, more=_GEMMA)),
    "gemma3_text": (_GATED | dict(head_dim=6, sliding_window=5), _gated(e=6, more=_GEMMA | _QK)),
}
"""model_type → (keys of config.json, names and shapes of the tensors as the hub has them)."""


def case(kind: str, **changes: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """A copy of a case with other keys in its configuration."""
    config, shapes = CASES[kind]
    return {"model_type": kind} | config | changes, dict(shapes)
