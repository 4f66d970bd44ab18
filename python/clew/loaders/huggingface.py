"""Hugging Face directories: configuration keys -> flags, checkpoint names -> classic weights, one table each.

Defaults of absent keys are those of the architecture's own configuration class. Whatever changes results and is not
computed here is refused by name. Numbers follow the reference implementation in exact arithmetic: Gemma's embedding
scale is √d_model (the reference rounds it to the dtype that PyTorch's default was when the model was built: in a model
converted to float64 afterwards it is √d_model rounded to float32, a relative 3e-8 off).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .assemble import (
    Array,
    Names,
    Source,
    assemble,
    heads_bias,
    heads_in,
    heads_in_columns,
    heads_out,
    heads_out_rows,
    plus_one,
    transposed,
)
from .checkpoint import Checkpoint
from .keys import Keys, build
from .safetensors import TensorStore

Fields = dict[str, Any]

# ---- Keys that several architectures share --------------------------------------------------------------------------


def _rotary(keys: Keys, d_head: int, partial: float | None = None, scaling: str = "rope_scaling") -> Fields:
    """Rotary fields from `rope_parameters` (flat or by layer type) or from `rope_theta` and `rope_scaling`.

    `partial` is the architecture's default of `partial_rotary_factor`, None where it has none.
    """
    new = keys.get("rope_parameters")
    old = keys.get(scaling)
    theta = keys.number("rope_theta", 10000.0) if keys.get("rope_theta") is not None else 10000.0
    factor = keys.get("partial_rotary_factor", partial)
    for key, value in (("rope_parameters", new), (scaling, old)):
        if value is not None and not isinstance(value, dict):
            raise keys.wrong(key, "an object")
    by_type = isinstance(new, dict) and ("full_attention" in new or "sliding_attention" in new)
    out: Fields = {"positional_embedding_type": "rotary"}
    if by_type:
        if old:
            raise UnsupportedModelError(f"{keys.where}: {scaling} = {old!r} beside rope_parameters by layer type")
        unknown = set(new) - {"full_attention", "sliding_attention"}
        if unknown:
            raise UnsupportedModelError(f"{keys.where}: rope_parameters of {sorted(unknown)} layers")
        local = Keys(new.get("sliding_attention") or {}, f"{keys.where}: rope_parameters.sliding_attention")
        if _scaling(keys, local):
            raise UnsupportedModelError(
                f"{local.where}: rope_type = {local.raw.get('rope_type')!r}; supported: default"
            )
        whole = Keys(new.get("full_attention") or {}, f"{keys.where}: rope_parameters.full_attention")
        out["rotary_base_local"] = local.number("rope_theta", theta)
        if local.get("partial_rotary_factor", factor) != whole.get("partial_rotary_factor", factor):
            raise UnsupportedModelError(f"{local.where}: partial_rotary_factor differs from the other layers'")
    else:
        # the older key wins where both are given, as in the reference
        whole = Keys(old or new or {}, f"{keys.where}: {scaling if old else 'rope_parameters'}")
    out["rotary_base"] = whole.number("rope_theta", theta)
    out["rope_scaling"] = _scaling(keys, whole)
    factor = whole.get("partial_rotary_factor", factor)
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1):
        raise LoadError(f"{whole.where}: partial_rotary_factor = {factor!r}, expected a number in (0, 1]")
    if partial is None and factor not in (None, 1):
        raise UnsupportedModelError(
            f"{keys.where}: partial_rotary_factor = {factor!r} is not supported for this architecture"
        )
    out["rotary_dim"] = d_head if factor is None else int(d_head * factor)
    if out["rotary_dim"] % 2:
        raise UnsupportedModelError(
            f"{keys.where}: {out['rotary_dim']} rotary dimensions of each head (head_dim {d_head}): must be even"
        )
    return out


def _scaling(keys: Keys, rope: Keys) -> dict[str, Any] | None:
    """`rope_scaling` of a ModelConfig."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in (None, "default"):
        return None
    if kind not in ("linear", "llama3"):
        raise UnsupportedModelError(f"{rope.where}: rope_type = {kind!r}; supported: default, linear, llama3")
    if "factor" not in rope:
        raise LoadError(f"{rope.where}: factor is missing")
    out: dict[str, Any] = {"rope_type": kind, "factor": rope.number("factor", 1.0)}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            if name not in rope:
                raise LoadError(f"{rope.where}: {name} is missing")
            out[name] = rope.number(name, 1.0)
        if out["high_freq_factor"] <= out["low_freq_factor"]:
            raise LoadError(f"{rope.where}: high_freq_factor must be larger than low_freq_factor")
        outside = keys if keys.get("original_max_position_embeddings") is not None else rope
        original = "original_max_position_embeddings"
        if outside.get(original) is None:
            outside, original = keys, "max_position_embeddings"
        out["original_max_position_embeddings"] = outside.size(original, 2048, most=1 << 40)
    return out


def _layer_types(keys: Keys, n_layers: int, default: Callable[[int], bool]) -> tuple[str, ...]:
    """attn_types from `layer_types`, or from the architecture's older rule (True: sliding)."""
    given = keys.get("layer_types")
    if given is None:
        return tuple("local" if default(layer) else "global" for layer in range(n_layers))
    known = {"sliding_attention": "local", "full_attention": "global"}
    if not isinstance(given, list) or len(given) != n_layers:
        raise keys.wrong("layer_types", f"one entry for each of {n_layers} layers")
    for kind in given:
        if not isinstance(kind, str) or kind not in known:
            raise UnsupportedModelError(f"{keys.where}: layer_types holds {kind!r}; supported: {', '.join(known)}")
    return tuple(known[kind] for kind in given)


def _windows(keys: Keys, attn_types: tuple[str, ...], window: int | None) -> Fields:
    """Window fields; plain global attention where no layer slides."""
    if "local" not in attn_types:
        return {}
    if window is None:
        raise UnsupportedModelError(f"{keys.where}: layer_types has sliding layers, but sliding_window is not in use")
    return {"attn_types": attn_types, "window_size": window}


def _window(keys: Keys, default: int) -> int | None:
    return None if keys.get("sliding_window", default) is None else keys.size("sliding_window", default, most=1 << 31)


def _heads(keys: Keys, d_model: int, n_heads: int, key: str) -> int:
    """d_head where there is no key for it."""
    if d_model % n_heads:
        raise LoadError(f"{keys.where}: {key} = {n_heads} does not divide the hidden size {d_model}")
    return d_model // n_heads


# ---- Configurations -------------------------------------------------------------------------------------------------


def _gpt2(keys: Keys) -> Fields:
    keys.refuse("add_cross_attention", False)
    d_model, n_heads = keys.size("n_embd"), keys.size("n_head")
    return {
        "n_layers": keys.layers("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": _heads(keys, d_model, n_heads, "n_head"),
        "d_mlp": keys.size_or("n_inner", 4 * d_model),
        "n_ctx": keys.size("n_positions", 1024),
        "act_fn": keys.activation("activation_function", "gelu_new"),
        "eps": keys.number("layer_norm_epsilon", 1e-5),
        "use_attn_scale": keys.flag("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": keys.flag("scale_attn_by_inverse_layer_idx", False),
    }


def _gpt_neo(keys: Keys) -> Fields:
    n_layers, d_model, n_heads = keys.layers("num_layers"), keys.size("hidden_size"), keys.size("num_heads")
    kinds: list[str] = []
    try:
        for pattern, repeat in keys.get("attention_types", [[["global", "local"], 12]]):
            if len(kinds) + len(pattern) * repeat > 10_000:
                raise ValueError
            kinds += list(pattern) * repeat
    except (TypeError, ValueError):
        raise keys.wrong("attention_types", "a list of [[kinds], repeat]") from None
    if len(kinds) != n_layers or not all(kind in ("global", "local") for kind in kinds):
        raise keys.wrong("attention_types", f"'global' or 'local' for each of {n_layers} layers")
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": _heads(keys, d_model, n_heads, "num_heads"),
        "d_mlp": keys.size_or("intermediate_size", 4 * d_model),
        "n_ctx": keys.size("max_position_embeddings", 2048),
        "act_fn": keys.activation("activation_function", "gelu_new"),
        "eps": keys.number("layer_norm_epsilon", 1e-5),
        "use_attn_scale": False,
        "qkv_bias": False,
        **_windows(keys, tuple(kinds), keys.size("window_size", 256)),
    }


def _gptj(keys: Keys) -> Fields:
    d_model, n_heads = keys.size("n_embd"), keys.size("n_head")
    d_head = _heads(keys, d_model, n_heads, "n_head")
    if keys.get("rotary_dim", 64) is None:
        raise UnsupportedModelError(f"{keys.where}: rotary_dim = null is not supported")
    rotary_dim = keys.size("rotary_dim", 64)
    if rotary_dim % 2 or rotary_dim > d_head:
        raise keys.wrong("rotary_dim", f"an even number up to the head's {d_head}")
    for key in ("rope_scaling", "rope_parameters"):
        keys.refuse(key)
    keys.refuse("rope_theta", 10000)
    return {
        "n_layers": keys.layers("n_layer"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_head,
        "d_mlp": keys.size_or("n_inner", 4 * d_model),
        "n_ctx": keys.size("n_positions", 2048),
        "act_fn": keys.activation("activation_function", "gelu_new"),
        "eps": keys.number("layer_norm_epsilon", 1e-5),
        "positional_embedding_type": "rotary",
        "rotary_dim": rotary_dim,
        "rotary_adjacent_pairs": True,
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "qkv_bias": False,
        "attn_out_bias": False,
        "unembed_bias": True,
    }


def _gpt_neox(keys: Keys) -> Fields:
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    d_head = _heads(keys, d_model, n_heads, "num_attention_heads")
    keys.refuse("head_dim", d_head)
    bias = keys.flag("attention_bias", True)
    # this architecture has its own older names for base and fraction
    if keys.get("rotary_emb_base") is not None:
        keys.raw["rope_theta"] = keys.number("rotary_emb_base", 10000.0)
    if keys.get("rotary_pct") is not None:
        keys.raw["partial_rotary_factor"] = keys.number("rotary_pct", 0.25)
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_head,
        "d_mlp": keys.size("intermediate_size", 24576),
        "n_ctx": keys.size("max_position_embeddings", 2048),
        "act_fn": keys.activation("hidden_act", "gelu"),
        "eps": keys.number("layer_norm_eps", 1e-5),
        "parallel_attn_mlp": keys.flag("use_parallel_residual", True),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        **_rotary(keys, d_head, 0.25),
    }


def _opt(keys: Keys) -> Fields:
    keys.refuse("do_layer_norm_before", True, why="norms behind the branches")
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    keys.refuse("word_embed_proj_dim", d_model, why=f"embeddings of another width than hidden_size = {d_model}")
    bias, affine = keys.flag("enable_bias", True), keys.flag("layer_norm_elementwise_affine", True)
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": _heads(keys, d_model, n_heads, "num_attention_heads"),
        "d_mlp": keys.size("ffn_dim", 3072),
        "n_ctx": keys.size("max_position_embeddings", 2048),
        "pos_offset": 2,
        "act_fn": keys.activation("activation_function", "relu"),
        "normalization_type": "LN" if affine else "LNPre",
        "norm_bias": affine,
        "final_norm": not keys.flag("_remove_final_layer_norm", False),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": bias,
    }


def _phi(keys: Keys) -> Fields:
    keys.refuse("qk_layernorm", False)
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    d_head = keys.size("head_dim") if keys.get("head_dim") else _heads(keys, d_model, n_heads, "num_attention_heads")
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_key_value_heads": keys.size_or("num_key_value_heads", n_heads),
        "d_head": d_head,
        "d_mlp": keys.size("intermediate_size", 8192),
        "n_ctx": keys.size("max_position_embeddings", 2048),
        "act_fn": keys.activation("hidden_act", "gelu_new"),
        "eps": keys.number("layer_norm_eps", 1e-5),
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "unembed_bias": True,
        **_rotary(keys, d_head, 0.5),
    }


def _llama_like(
    keys: Keys,
    *,
    n_ctx: int = 2048,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    act_key: str = "hidden_act",
    act: str = "silu",
    bias: bool = False,
    mlp_bias: bool = False,
) -> Fields:
    """RMS norms, gated MLP, no biases but where a flag says so; without rotary fields and windows."""
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    if keys.get("head_dim", head_dim) is not None:
        d_head = keys.size("head_dim", head_dim)
    else:
        d_head = _heads(keys, d_model, n_heads, "num_attention_heads")
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_key_value_heads": keys.size_or("num_key_value_heads", n_heads, kv_heads),
        "d_head": d_head,
        "d_mlp": keys.size("intermediate_size"),
        "n_ctx": keys.size("max_position_embeddings", n_ctx),
        "act_fn": keys.activation(act_key, act),
        "eps": keys.number("rms_norm_eps", 1e-6),
        "normalization_type": "RMS",
        "norm_bias": False,
        "gated_mlp": True,
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": mlp_bias,
    }


def _llama(keys: Keys) -> Fields:
    keys.refuse("sliding_window")
    keys.refuse("layer_types", ["full_attention"] * keys.layers("num_hidden_layers"))
    out = _llama_like(keys, bias=keys.flag("attention_bias", False), mlp_bias=keys.flag("mlp_bias", False))
    return {**out, **_rotary(keys, out["d_head"])}


def _mistral(keys: Keys) -> Fields:
    for key in ("attention_bias", "mlp_bias"):
        keys.refuse(key, False)
    out = _llama_like(keys, n_ctx=4096 * 32, kv_heads=8)
    window = _window(keys, 4096)
    # the reference ignores layer_types here, so they may only say what it computes
    keys.refuse("layer_types", ["sliding_attention" if window else "full_attention"] * out["n_layers"])
    return {**out, "window_size": window, **_rotary(keys, out["d_head"])}


def _qwen(keys: Keys, **defaults: Any) -> Fields:
    out = _llama_like(keys, n_ctx=32768, kv_heads=32, **defaults)
    window = _window(keys, 4096) if keys.flag("use_sliding_window", False) else None
    first = keys.get("max_window_layers", 28)
    if type(first) is not int:
        raise keys.wrong("max_window_layers", "an integer")
    types = _layer_types(keys, out["n_layers"], lambda layer: window is not None and layer >= first)
    return {**out, **_windows(keys, types, window), **_rotary(keys, out["d_head"])}


def _qwen2(keys: Keys) -> Fields:
    keys.refuse("attention_bias", True)
    keys.refuse("mlp_bias", False)
    return {**_qwen(keys), "qkv_bias": True}


def _qwen3(keys: Keys) -> Fields:
    keys.refuse("mlp_bias", False)
    return {**_qwen(keys, head_dim=128, bias=keys.flag("attention_bias", False)), "use_qk_norm": True}


def _gemma_like(keys: Keys, **defaults: Any) -> Fields:
    keys.refuse("use_bidirectional_attention", False)
    keys.refuse("mlp_bias", False)
    out = _llama_like(keys, head_dim=256, bias=keys.flag("attention_bias", False), **defaults)
    return {**out, "embed_scale": math.sqrt(out["d_model"])}


def _gemma(keys: Keys) -> Fields:
    for key in ("sliding_window", "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"):
        keys.refuse(key)
    # "gelu" stands in early files and has always meant the tanh approximation
    if keys.raw.get("hidden_act") == "gelu":
        keys.raw["hidden_act"] = "gelu_pytorch_tanh"
    out = _gemma_like(keys, n_ctx=8192, kv_heads=16, act="gelu_pytorch_tanh")
    if keys.get("hidden_activation") is not None and keys.activation("hidden_activation", "") != out["act_fn"]:
        raise UnsupportedModelError(
            f"{keys.where}: hidden_activation = {keys.raw['hidden_activation']!r} contradicts hidden_act ="
            f" {keys.raw.get('hidden_act')!r}"
        )
    return {**out, **_rotary(keys, out["d_head"])}


def _gemma_sandwich(keys: Keys, n_ctx: int) -> Fields:
    keys.get("hidden_act")  # the other key counts
    out = _gemma_like(keys, n_ctx=n_ctx, kv_heads=4, act_key="hidden_activation", act="gelu_pytorch_tanh")
    return {
        **out,
        "use_normalization_before_and_after": True,
        "attn_scale": math.sqrt(keys.number("query_pre_attn_scalar", 256)),
    }


def _gemma2(keys: Keys) -> Fields:
    out = _gemma_sandwich(keys, 8192)
    types = _layer_types(keys, out["n_layers"], lambda layer: layer % 2 == 0)
    return {
        **out,
        "attn_scores_soft_cap": keys.number_or_none("attn_logit_softcapping", 50.0),
        "output_logits_soft_cap": keys.number_or_none("final_logit_softcapping", 30.0),
        **_windows(keys, types, _window(keys, 4096)),
        **_rotary(keys, out["d_head"]),
    }


def _gemma3(keys: Keys) -> Fields:
    # the reference reads this key but never applies it
    keys.refuse("attn_logit_softcapping")
    out = _gemma_sandwich(keys, 131_072)
    pattern = keys.size("sliding_window_pattern", 6) if keys.get("sliding_window_pattern") is not None else 6
    types = _layer_types(keys, out["n_layers"], lambda layer: (layer + 1) % pattern != 0)
    new = keys.get("rope_parameters")
    keys.get("rope_local_base_freq")
    if new is None:
        theta = keys.number("rope_theta", 1e6) if keys.get("rope_theta") is not None else 1e6
        local = keys.number("rope_local_base_freq", 1e4) if keys.raw.get("rope_local_base_freq") is not None else 1e4
        scaling = keys.get("rope_scaling") or {}
        if not isinstance(scaling, dict):
            raise keys.wrong("rope_scaling", "an object")
        parameters: dict[str, Any] = {
            "full_attention": {"rope_theta": theta, **scaling},
            "sliding_attention": {"rope_theta": local},
        }
    elif not isinstance(new, dict) or not {"full_attention", "sliding_attention"} & set(new):
        raise keys.wrong("rope_parameters", "an object with full_attention and sliding_attention")
    else:
        parameters = {
            "full_attention": {"rope_theta": 1e6, **(new.get("full_attention") or {})},
            "sliding_attention": {"rope_theta": 1e4, **(new.get("sliding_attention") or {})},
            **{key: value for key, value in new.items() if key not in ("full_attention", "sliding_attention")},
        }
        keys.refuse("rope_scaling", why="beside rope_parameters")
    nested = Keys({**keys.raw, "rope_parameters": parameters, "rope_scaling": None}, keys.where)
    return {
        **out,
        "use_qk_norm": True,
        "output_logits_soft_cap": keys.number_or_none("final_logit_softcapping", None),
        **_windows(keys, types, _window(keys, 4096)),
        **_rotary(nested, out["d_head"]),
    }


# ---- Weights --------------------------------------------------------------------------------------------------------


def _norm(weight: str, name: str, d: int, bias: bool) -> list[Source]:
    out = [Source(f"{weight}.w", f"{name}.weight", (d,))]
    return [*out, Source(f"{weight}.b", f"{name}.bias", (d,))] if bias else out


def _linear(weight: str, bias: str | None, name: str, d_in: int, d_out: int) -> list[Source]:
    """PyTorch's Linear, [out, in]."""
    out = [Source(weight, f"{name}.weight", (d_out, d_in), transposed)]
    return [*out, Source(bias, f"{name}.bias", (d_out,))] if bias else out


def _columns(weight: str, bias: str, name: str, d_in: int, d_out: int) -> list[Source]:
    """GPT-2's Conv1D, [in, out]."""
    return [Source(weight, f"{name}.weight", (d_in, d_out)), Source(bias, f"{name}.bias", (d_out,))]


def _attention(c: ModelConfig, to: str, q: str, k: str, v: str, o: str) -> list[Source]:
    """Four PyTorch Linears."""
    d, e = c.d_model, c.d_head
    out = []
    for letter, name, n in (("Q", q, c.n_heads), ("K", k, c.n_key_value_heads), ("V", v, c.n_key_value_heads)):
        out.append(Source(f"{to}.W_{letter}", f"{name}.weight", (n * e, d), heads_in(n)))
        if c.qkv_bias:
            out.append(Source(f"{to}.b_{letter}", f"{name}.bias", (n * e,), heads_bias(n)))
    out.append(Source(f"{to}.W_O", f"{o}.weight", (d, c.n_heads * e), heads_out(c.n_heads)))
    if c.attn_out_bias:
        out.append(Source(f"{to}.b_O", f"{o}.bias", (d,)))
    return out


def _outer(c: ModelConfig, embed: str, final: str, position: str | None = None) -> list[Source]:
    out = [Source("embed.W_E", f"{embed}.weight", (c.d_vocab, c.d_model))]
    if position is not None:
        out.append(Source("pos_embed.W_pos", f"{position}.weight", (c.n_ctx, c.d_model)))
    if c.final_norm and c.norm_affine:
        out += _norm("ln_final", final, c.d_model, c.norm_bias)
    out.append(Source("unembed.W_U", "lm_head.weight", (c.d_vocab, c.d_model), transposed))
    if c.unembed_bias:
        out.append(Source("unembed.b_U", "lm_head.bias", (c.d_vocab,)))
    return out


def _gpt2_weights(c: ModelConfig) -> list[Source]:
    d, h, out = c.d_model, c.n_heads, _outer(c, "wte", "ln_f", "wpe")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True) + _norm(f"{to}.ln2", f"{at}.ln_2", d, True)
        for part, letter in enumerate("QKV"):
            view = heads_in_columns(h, part, 3)
            out.append(Source(f"{to}.attn.W_{letter}", f"{at}.attn.c_attn.weight", (d, 3 * d), view))
            out.append(Source(f"{to}.attn.b_{letter}", f"{at}.attn.c_attn.bias", (3 * d,), heads_bias(h, part, 3)))
        out.append(Source(f"{to}.attn.W_O", f"{at}.attn.c_proj.weight", (d, d), heads_out_rows(h)))
        out.append(Source(f"{to}.attn.b_O", f"{at}.attn.c_proj.bias", (d,)))
        out += _columns(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.c_fc", d, c.d_mlp)
        out += _columns(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.c_proj", c.d_mlp, d)
    return out


def _gpt_neo_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "wte", "ln_f", "wpe")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        inner = f"{at}.attn.attention"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True) + _norm(f"{to}.ln2", f"{at}.ln_2", d, True)
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.out_proj")
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.c_fc", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.c_proj", c.d_mlp, d)
    return out


def _gptj_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "wte", "ln_f")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True)
        out += _attention(
            c, f"{to}.attn", f"{at}.attn.q_proj", f"{at}.attn.k_proj", f"{at}.attn.v_proj", f"{at}.attn.out_proj"
        )
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.fc_in", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.fc_out", c.d_mlp, d)
    return out


def _gpt_neox_weights(c: ModelConfig) -> list[Source]:
    d, h, out = c.d_model, c.n_heads, _outer(c, "embed_in", "final_layer_norm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, True)
        out += _norm(f"{to}.ln2", f"{at}.post_attention_layernorm", d, True)
        fused = f"{at}.attention.query_key_value"
        for part, letter in enumerate("QKV"):
            out.append(Source(f"{to}.attn.W_{letter}", f"{fused}.weight", (3 * d, d), heads_in(h, part, 3)))
            if c.qkv_bias:
                view = heads_bias(h, part, 3, interleaved=True)
                out.append(Source(f"{to}.attn.b_{letter}", f"{fused}.bias", (3 * d,), view))
        out.append(Source(f"{to}.attn.W_O", f"{at}.attention.dense.weight", (d, d), heads_out(h)))
        if c.attn_out_bias:
            out.append(Source(f"{to}.attn.b_O", f"{at}.attention.dense.bias", (d,)))
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.dense_h_to_4h", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.dense_4h_to_h", c.d_mlp, d)
    return out


def _opt_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "embed_tokens", "final_layer_norm")
    # position 0 reads row 2 of it
    out.append(Source("pos_embed.W_pos", "embed_positions.weight", (c.n_ctx + c.pos_offset, d)))
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        if c.norm_affine:
            out += _norm(f"{to}.ln1", f"{at}.self_attn_layer_norm", d, True)
            out += _norm(f"{to}.ln2", f"{at}.final_layer_norm", d, True)
        inner = f"{at}.self_attn"
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.out_proj")
        bias = c.mlp_bias or None
        out += _linear(f"{to}.mlp.W_in", bias and f"{to}.mlp.b_in", f"{at}.fc1", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", bias and f"{to}.mlp.b_out", f"{at}.fc2", c.d_mlp, d)
    return out


def _phi_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "embed_tokens", "final_layernorm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, True)
        inner = f"{at}.self_attn"
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.dense")
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.fc1", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.fc2", c.d_mlp, d)
    return out


def _llama_weights(c: ModelConfig, one_plus: bool = False) -> list[Source]:
    """Llama, Mistral, Qwen and the Gemmas; with `one_plus` the norms multiply by 1 + w."""
    d, e, out = c.d_model, c.d_head, _outer(c, "embed_tokens", "norm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        inner = f"{at}.self_attn"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, False)
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.o_proj")
        if c.use_qk_norm:
            out += _norm(f"{to}.attn.q_norm", f"{inner}.q_norm", e, False)
            out += _norm(f"{to}.attn.k_norm", f"{inner}.k_norm", e, False)
        if c.use_normalization_before_and_after:
            out += _norm(f"{to}.ln1_post", f"{at}.post_attention_layernorm", d, False)
            out += _norm(f"{to}.ln2", f"{at}.pre_feedforward_layernorm", d, False)
            out += _norm(f"{to}.ln2_post", f"{at}.post_feedforward_layernorm", d, False)
        else:
            out += _norm(f"{to}.ln2", f"{at}.post_attention_layernorm", d, False)
        for weight, name, wide, narrow in (
            ("gate", "gate_proj", d, c.d_mlp),
            ("in", "up_proj", d, c.d_mlp),
            ("out", "down_proj", c.d_mlp, d),
        ):
            bias = f"{to}.mlp.b_{weight}" if c.mlp_bias else None
            out += _linear(f"{to}.mlp.W_{weight}", bias, f"{at}.mlp.{name}", wide, narrow)
    if one_plus:
        out = [Source(s.weight, s.name, s.shape, plus_one) if s.weight.endswith(".w") else s for s in out]
    return out


def _gemma_weights(c: ModelConfig) -> list[Source]:
    return _llama_weights(c, one_plus=True)


# ---- The architectures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """One `model_type`: its configuration, its weights, and how its files name them."""

    config: Callable[[Keys], Fields]
    weights: Callable[[ModelConfig], list[Source]]
    tied: bool
    """Default of tie_word_embeddings."""
    prefixes: tuple[str, ...] = ("model.",)
    harmless: tuple[str, ...] = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
    renames: dict[str, str] = field(default_factory=dict)


_CAUSAL_MASKS = (r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias|embed_positions)",)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(_gpt2, _gpt2_weights, True, ("transformer.",), _CAUSAL_MASKS),
    "gpt_neo": Architecture(_gpt_neo, _gpt_neo_weights, True, ("transformer.",), _CAUSAL_MASKS),
    "gptj": Architecture(_gptj, _gptj_weights, False, ("transformer.",), _CAUSAL_MASKS),
    "gpt_neox": Architecture(
        _gpt_neox,
        _gpt_neox_weights,
        False,
        ("gpt_neox.",),
        (r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"rotary_emb\.inv_freq"),
        {"embed_out.weight": "lm_head.weight"},
    ),
    "opt": Architecture(_opt, _opt_weights, True, ("model.decoder.", "decoder."), ()),
    "phi": Architecture(_phi, _phi_weights, False),
    "llama": Architecture(_llama, _llama_weights, False),
    "mistral": Architecture(_mistral, _llama_weights, False),
    "qwen2": Architecture(_qwen2, _llama_weights, False),
    "qwen3": Architecture(_qwen3, _llama_weights, False),
    "gemma": Architecture(_gemma, _gemma_weights, True),
    "gemma2": Architecture(_gemma2, _gemma_weights, True),
    "gemma3_text": Architecture(_gemma3, _gemma_weights, True),
}

_WRAPPED = Architecture(
    _gemma3,
    _gemma_weights,
    True,
    ("language_model.model.", "model.language_model.", "language_model.", "model."),
    (*Architecture(_gemma3, _gemma_weights, True).harmless, r"(vision_tower|multi_modal_projector)\..*"),
)
"""Gemma 3 inside its image-and-text wrapper: the text half."""

SUPPORTED = (*ARCHITECTURES, "clew")


def read_config(raw: dict[str, Any], where: str) -> tuple[ModelConfig, Architecture]:
    """A `config.json` of an architecture in the table.

    Raises
    ------
    UnsupportedModelError
        Another architecture, or a key whose value would change the results; names it.
    LoadError
        Keys that are missing or make no sense.
    """
    kind = raw.get("model_type")
    keys = Keys(raw, where)
    keys.refuse("quantization_config")
    keys.refuse("compression_config")
    if kind == "gemma3":
        text = raw.get("text_config")
        if not isinstance(text, dict):
            raise LoadError(f"{where}: text_config = {text!r}, expected an object")
        # the wrapper's own key decides about tying
        outer: dict[str, Any] = {key: raw[key] for key in ("bos_token_id", "eos_token_id") if key in raw}
        outer["tie_word_embeddings"] = raw.get("tie_word_embeddings", True)
        keys = Keys({**text, **outer}, f"{where}: text_config")
        keys.refuse("quantization_config")
        architecture = _WRAPPED
    elif isinstance(kind, str) and kind in ARCHITECTURES:
        architecture = ARCHITECTURES[kind]
    else:
        raise UnsupportedModelError(f"{where}: model_type = {kind!r}; supported: {', '.join(SUPPORTED)}")
    for key in ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"):
        keys.get(key)
    keys.refuse("is_encoder_decoder", False)
    for key in ("logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling"):
        keys.refuse(key, 1)
    keys.refuse("pruned_heads", {})
    fields = architecture.config(keys)
    fields["d_vocab"] = keys.size("vocab_size")
    fields["tie_word_embeddings"] = keys.flag("tie_word_embeddings", architecture.tied)
    fields["initializer_range"] = keys.number(
        "init_std" if kind == "opt" else "initializer_range", 0.02, positive=False
    )
    fields.update(keys.tokens(), original_architecture=kind, model_name=str(keys.get("_name_or_path") or kind))
    fields["extra"] = keys.extra()
    return build(where, fields), architecture


def load_huggingface(store: TensorStore, raw: dict[str, Any], where: str, dtype: DTypeLike | None = None) -> Checkpoint:
    """A Hugging Face checkpoint whose `config.json` is parsed already.

    Parameters
    ----------
    store
        Its tensors.
    raw
        Its configuration.
    where
        The configuration's name, for messages.
    dtype
        None: float32, or float64 where the file's weights are.

    Raises
    ------
    LoadError, UnsupportedModelError
        As :func:`read_config`; tensors missing, superfluous or of the wrong shape.
    """
    config, architecture = read_config(raw, where)
    if config.n_layers > len(store):
        raise LoadError(f"{where}: {config.n_layers} layers, but {store.where} holds only {len(store)} tensors")
    names = Names(store, architecture.prefixes, architecture.renames)
    notes: list[str] = []
    if architecture is _WRAPPED and not any(re.match(r"embed_tokens\.|layers\.", name) for name in names.remaining(())):
        raise UnsupportedModelError(f"{where}: model_type = 'gemma3': {store.where} holds no text weights")
    sources = architecture.weights(config)
    config, sources, tied_to, ignored = _tie(config, sources, names, "tie_word_embeddings" in raw, notes)
    weights = assemble(names, sources, dtype, (*architecture.harmless, *ignored), notes)
    _finish_tie(weights, tied_to)
    return Checkpoint(config, weights, store.dtype, None, notes)


def _tie(
    config: ModelConfig, sources: Sequence[Source], names: Names, explicit: bool, notes: list[str]
) -> tuple[ModelConfig, list[Source], str | None, list[str]]:
    """Settle whether the unembedding is the embedding: (config, sources without it, what to derive, names to leave).

    Where the file holds both and says that they are tied, they are compared: different ones are not tied.
    """
    embed = next(source for source in sources if source.weight == "embed.W_E")
    unembed = next(source for source in sources if source.weight == "unembed.W_U")
    without_unembed = [source for source in sources if source is not unembed]
    has_embed, has_unembed = embed.name in names, unembed.name in names
    if not config.tie_word_embeddings:
        if has_unembed or explicit or not has_embed:
            return config, list(sources), None, []
        notes.append(f"no {names.full(unembed.name)}: tied to the embedding")
        return config.replace(tie_word_embeddings=True), without_unembed, "unembed.W_U", []
    if has_embed and has_unembed:
        store = names.store
        first, second = names.full(embed.name), names.full(unembed.name)
        if _same_bytes(store, first, second):
            return config, without_unembed, "unembed.W_U", [re.escape(unembed.name)]
        notes.append(f"{second} differs from {first}: not tied, although tie_word_embeddings is true")
        return config.replace(tie_word_embeddings=False), list(sources), None, []
    if has_unembed:
        return config, [source for source in sources if source is not embed], "embed.W_E", []
    return config, without_unembed, "unembed.W_U", []


def _same_bytes(store: TensorStore, first: str, second: str) -> bool:
    if store.info(first).shape != store.info(second).shape or store.info(first).dtype != store.info(second).dtype:
        return False
    one, other = store.raw(first), store.raw(second)
    return all(one[at : at + 4096].tobytes() == other[at : at + 4096].tobytes() for at in range(0, len(one), 4096))


def _finish_tie(weights: dict[str, Array], tied_to: str | None) -> None:
    """Add the derived one of the two as a transposed view."""
    if tied_to == "unembed.W_U":
        weights["unembed.W_U"] = weights["embed.W_E"].T
    elif tied_to == "embed.W_E":
        weights["embed.W_E"] = weights["unembed.W_U"].T


def find_tensors(directory: Path) -> TensorStore:
    """The tensors of a directory: one safetensors file, or the shards of an index.

    Raises
    ------
    LoadError
        None there (says what to do about `pytorch_model.bin`), or several without an index.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return TensorStore.open_sharded(index)
    if (directory / "model.safetensors").is_file():
        return TensorStore.open(directory / "model.safetensors")
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(files) == 1:
        return TensorStore.open(directory / files[0])
    if files:
        raise LoadError(
            f"{directory}: {len(files)} safetensors files ({', '.join(files)}), but no model.safetensors.index.json"
        )
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickled:
        raise LoadError(
            f"{directory}: only pickled weights ({', '.join(pickled)}): convert them to safetensors, for example with"
            " transformers' save_pretrained or safetensors.torch.save_model"
        )
    raise LoadError(f"{directory}: no model.safetensors and no model.safetensors.index.json")
