"""Hugging Face configurations: the keys of `config.json` -> fields of a ModelConfig, one function an architecture.

Defaults of absent keys are those of the architecture's own configuration class. Whatever changes results and is not
computed here is refused by name. Numbers follow the reference implementation in exact arithmetic: Gemma's embedding
scale is √d_model (the reference rounds it to the dtype that PyTorch's default was when the model was built: in a model
converted to float64 afterwards it is √d_model rounded to float32, a relative 3e-8 off).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .keys import Keys, build

Fields = dict[str, Any]

# ---- Defaults -------------------------------------------------------------------------------------------------------

_LLAMA: Fields = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_QWEN2: Fields = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768,
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
    "layer_types": None,
}  # fmt: skip
_GEMMA2: Fields = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "bos_token_id": 2,
    "eos_token_id": 1, "tie_word_embeddings": True, "attention_bias": False, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": None,
}  # fmt: skip

CLASS_DEFAULTS: dict[str, Fields] = {
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "scale_attn_weights": True, "bos_token_id": 50256, "eos_token_id": 50256,
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True,
    },
    "gpt_neo": {
        "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2048, "num_layers": 24, "num_heads": 16,
        "attention_types": None, "intermediate_size": None, "window_size": 256, "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "bos_token_id": 50256, "eos_token_id": 50256,
        "tie_word_embeddings": True,
    },
    "gptj": {
        "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
        "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "bos_token_id": 50256, "eos_token_id": 50256, "tie_word_embeddings": False,
    },
    "gpt_neox": {
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "max_position_embeddings": 2048, "initializer_range": 0.02,
        "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False,
        "use_parallel_residual": True, "attention_bias": True,
    },
    "opt": {
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "do_layer_norm_before": True, "_remove_final_layer_norm": False,
        "word_embed_proj_dim": None, "num_attention_heads": 12, "activation_function": "relu", "init_std": 0.02,
        "bos_token_id": 2, "eos_token_id": 2, "enable_bias": True, "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
    },
    "phi": {
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": None, "hidden_act": "gelu_new",
        "max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False, "qk_layernorm": False, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama": _LLAMA,
    "mistral": {
        **{key: value for key, value in _LLAMA.items() if key not in ("attention_bias", "mlp_bias")},
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128, "attention_bias": False},
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "bos_token_id": 2,
        "eos_token_id": 1, "tie_word_embeddings": True, "attention_bias": False, "use_bidirectional_attention": None,
    },
    "gemma2": _GEMMA2,
    "gemma3_text": {
        **_GEMMA2, "vocab_size": 262_208, "max_position_embeddings": 131_072, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "use_bidirectional_attention": False,
    },
}  # fmt: skip
"""model_type -> what its configuration class takes for a key that is absent; a test compares them. None: by rule."""

# ---- Keys that several architectures share --------------------------------------------------------------------------

_LAYER_KINDS = ("full_attention", "sliding_attention")


def _rotary(keys: Keys, d_head: int, partial: float | None = None) -> Fields:
    """Rotary fields from `rope_parameters` or from `rope_theta` and `rope_scaling`.

    `partial` is the architecture's default of `partial_rotary_factor`, None where it has none.
    """
    new, old = _object(keys, "rope_parameters"), _object(keys, "rope_scaling")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value and any(kind in value for kind in _LAYER_KINDS):
            _of_layers(keys, key, value)
            raise UnsupportedModelError(f"{keys.where}: {key} by layer type is not supported for this architecture")
    # the older key wins where both are given, as in the reference
    rope = Keys(old or new or {}, f"{keys.where}: {'rope_scaling' if old else 'rope_parameters'}")
    return {
        "positional_embedding_type": "rotary",
        "rotary_base": rope.number("rope_theta", _given(keys, "rope_theta", 1e4)),
        "rope_scaling": _scaling(keys, rope),
        "rotary_dim": _rotary_dim(keys, rope, d_head, partial),
    }


def _rotary_by_layer(keys: Keys, d_head: int) -> Fields:
    """Gemma 3's rotary fields: two kinds of layers in `rope_parameters`, or the older keys.

    The older keys stand in where `rope_parameters` lacks a base, as in the reference.
    """
    new, old = _object(keys, "rope_parameters"), _object(keys, "rope_scaling")
    if new is None:
        whole, local = Keys(old or {}, f"{keys.where}: rope_scaling"), Keys({}, keys.where)
    elif not any(kind in new for kind in _LAYER_KINDS):
        raise keys.wrong("rope_parameters", "an object with full_attention and sliding_attention")
    else:
        keys.refuse("rope_scaling", {}, why="beside rope_parameters")
        whole, local = _of_layers(keys, "rope_parameters", new)
    if _scaling(keys, local):
        raise UnsupportedModelError(f"{local.where}: rope_type = {_rope_type(local)!r}; supported: default")
    dims = {_rotary_dim(keys, rope, d_head, None) for rope in (whole, local)}
    return {
        "positional_embedding_type": "rotary",
        "rotary_base": whole.number("rope_theta", _given(keys, "rope_theta", 1e6)),
        "rotary_base_local": local.number("rope_theta", _given(keys, "rope_local_base_freq", 1e4)),
        "rope_scaling": _scaling(keys, whole),
        "rotary_dim": dims.pop(),
    }


def _object(keys: Keys, key: str) -> dict[str, Any] | None:
    """An object or null."""
    value = keys.get(key)
    if value is not None and not isinstance(value, dict):
        raise keys.wrong(key, "an object")
    return value


def _of_layers(keys: Keys, key: str, by_layer: dict[str, Any]) -> list[Keys]:
    """The keys of full and of sliding layers."""
    unknown = set(by_layer) - set(_LAYER_KINDS)
    if unknown:
        raise UnsupportedModelError(f"{keys.where}: {key} of {sorted(unknown)} layers")
    outer = Keys(by_layer, f"{keys.where}: {key}")
    return [Keys(_object(outer, kind) or {}, f"{outer.where}.{kind}") for kind in _LAYER_KINDS]


def _given(keys: Keys, key: str, default: float) -> float:
    """A positive number; the default where absent or null."""
    return default if keys.get(key) is None else keys.number(key)


def _rotary_dim(keys: Keys, rope: Keys, d_head: int, partial: float | None) -> int:
    """How many dimensions of a head rotate."""
    factor = rope.get("partial_rotary_factor", keys.get("partial_rotary_factor", partial))
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1):
        raise LoadError(f"{rope.where}: partial_rotary_factor = {factor!r}, expected a number in (0, 1]")
    if partial is None and factor not in (None, 1):
        raise UnsupportedModelError(
            f"{keys.where}: partial_rotary_factor = {factor!r} is not supported for this architecture"
        )
    rotary_dim = d_head if factor is None else int(d_head * factor)
    if rotary_dim % 2:
        raise UnsupportedModelError(
            f"{keys.where}: {rotary_dim} rotary dimensions of each head (head_dim {d_head}): must be even"
        )
    return rotary_dim


def _rope_type(rope: Keys) -> Any:
    """The kind of scaling: `rope_type`, or where absent or null the older `type`.

    The reference's fifth release leaves Gemma 3 unscaled where a file has `type` only, the fourth scaled it. What the
    file says counts here; Google's own say `rope_type`.
    """
    kind = rope.get("rope_type")
    return rope.get("type") if kind is None else kind


def _scaling(keys: Keys, rope: Keys) -> dict[str, Any] | None:
    """`rope_scaling` of a ModelConfig."""
    kind = _rope_type(rope)
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


def _window(keys: Keys) -> int | None:
    return None if keys.get("sliding_window") is None else keys.size("sliding_window", most=1 << 31)


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
        "n_ctx": keys.size("n_positions"),
        "act_fn": keys.activation("activation_function"),
        "eps": keys.number("layer_norm_epsilon"),
        "use_attn_scale": keys.flag("scale_attn_weights"),
        "scale_attn_by_inverse_layer_idx": keys.flag("scale_attn_by_inverse_layer_idx"),
    }


def _gpt_neo(keys: Keys) -> Fields:
    n_layers, d_model, n_heads = keys.layers("num_layers"), keys.size("hidden_size"), keys.size("num_heads")
    kinds = _attention_layers(keys, n_layers)
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": _heads(keys, d_model, n_heads, "num_heads"),
        "d_mlp": keys.size_or("intermediate_size", 4 * d_model),
        "n_ctx": keys.size("max_position_embeddings"),
        "act_fn": keys.activation("activation_function"),
        "eps": keys.number("layer_norm_epsilon"),
        "use_attn_scale": False,
        "qkv_bias": False,
        **_windows(keys, kinds, keys.size("window_size")),
    }


def _attention_layers(keys: Keys, n_layers: int) -> tuple[str, ...]:
    """GPT-Neo's attn_types: `attention_layers`, or where there is none `attention_types`, the same in short."""
    kinds: list[Any] = []
    try:
        for pattern, repeat in keys.get("attention_types") or [[["global", "local"], 12]]:
            if len(kinds) + len(pattern) * repeat > 10_000:
                raise ValueError
            kinds += list(pattern) * repeat
    except (TypeError, ValueError):
        raise keys.wrong("attention_types", "a list of [[kinds], repeat]") from None
    key = "attention_types"
    if keys.get("attention_layers") is not None:  # the reference reads this one, whatever the other says
        key, kinds = "attention_layers", keys.raw["attention_layers"]
    if not isinstance(kinds, list) or len(kinds) != n_layers or not all(kind in ("global", "local") for kind in kinds):
        raise keys.wrong(key, f"'global' or 'local' for each of {n_layers} layers")
    return tuple(kinds)


def _gptj(keys: Keys) -> Fields:
    d_model, n_heads = keys.size("n_embd"), keys.size("n_head")
    d_head = _heads(keys, d_model, n_heads, "n_head")
    if keys.get("rotary_dim") is None:
        raise UnsupportedModelError(f"{keys.where}: rotary_dim = null is not supported")
    rotary_dim = keys.size("rotary_dim")
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
        "n_ctx": keys.size("n_positions"),
        "act_fn": keys.activation("activation_function"),
        "eps": keys.number("layer_norm_epsilon"),
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
    bias = keys.flag("attention_bias")
    # this architecture has its own older names for base and fraction; the common ones mean nothing beside them
    keys.raw["rope_theta"] = _given(keys, "rotary_emb_base", 1e4)
    keys.raw["partial_rotary_factor"] = _given(keys, "rotary_pct", 0.25)
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": d_head,
        "d_mlp": keys.size("intermediate_size"),
        "n_ctx": keys.size("max_position_embeddings"),
        "act_fn": keys.activation("hidden_act"),
        "eps": keys.number("layer_norm_eps"),
        "parallel_attn_mlp": keys.flag("use_parallel_residual"),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        **_rotary(keys, d_head, 0.25),
    }


def _opt(keys: Keys) -> Fields:
    keys.refuse("do_layer_norm_before", True, why="norms behind the branches")
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    keys.refuse("word_embed_proj_dim", d_model, why=f"embeddings of another width than hidden_size = {d_model}")
    bias, affine = keys.flag("enable_bias"), keys.flag("layer_norm_elementwise_affine")
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": _heads(keys, d_model, n_heads, "num_attention_heads"),
        "d_mlp": keys.size("ffn_dim"),
        "n_ctx": keys.size("max_position_embeddings"),
        "pos_offset": 2,
        "act_fn": keys.activation("activation_function"),
        "normalization_type": "LN" if affine else "LNPre",
        "norm_bias": affine,
        "final_norm": not keys.flag("_remove_final_layer_norm"),
        "qkv_bias": bias,
        "attn_out_bias": bias,
        "mlp_bias": bias,
    }


def _grouped_sizes(keys: Keys) -> Fields:
    """Sizes by the names that models of grouped queries share."""
    d_model, n_heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    given = keys.get("head_dim") is not None
    return {
        "n_layers": keys.layers("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_key_value_heads": keys.size_or("num_key_value_heads", n_heads),
        "d_head": keys.size("head_dim") if given else _heads(keys, d_model, n_heads, "num_attention_heads"),
        "d_mlp": keys.size("intermediate_size"),
        "n_ctx": keys.size("max_position_embeddings"),
    }


def _phi(keys: Keys) -> Fields:
    keys.refuse("qk_layernorm", False)
    sizes = _grouped_sizes(keys)
    return {
        **sizes,
        "act_fn": keys.activation("hidden_act"),
        "eps": keys.number("layer_norm_eps"),
        "parallel_attn_mlp": True,
        "shared_norm": True,
        "unembed_bias": True,
        **_rotary(keys, sizes["d_head"], 0.5),
    }


def _llama_like(
    keys: Keys,
    *,
    act_key: str = "hidden_act",
    bias: bool = False,
    mlp_bias: bool = False,
) -> Fields:
    """RMS norms, gated MLP, no biases but where a flag says so; without rotary fields and windows."""
    return {
        **_grouped_sizes(keys),
        "act_fn": keys.activation(act_key),
        "eps": keys.number("rms_norm_eps"),
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
    out = _llama_like(keys, bias=keys.flag("attention_bias"), mlp_bias=keys.flag("mlp_bias"))
    return {**out, **_rotary(keys, out["d_head"])}


def _mistral(keys: Keys) -> Fields:
    for key in ("attention_bias", "mlp_bias"):
        keys.refuse(key, False)
    out = _llama_like(keys)
    window = _window(keys)
    # the reference ignores layer_types here, so they may only say what it computes
    keys.refuse("layer_types", ["sliding_attention" if window else "full_attention"] * out["n_layers"])
    return {**out, "window_size": window, **_rotary(keys, out["d_head"])}


def _qwen(keys: Keys, bias: bool = False) -> Fields:
    out = _llama_like(keys, bias=bias)
    window = _window(keys) if keys.flag("use_sliding_window") else None
    first = keys.get("max_window_layers")
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
    return {**_qwen(keys, bias=keys.flag("attention_bias")), "use_qk_norm": True}


def _gemma_like(keys: Keys, act_key: str) -> Fields:
    keys.refuse("use_bidirectional_attention", False)
    keys.refuse("mlp_bias", False)
    out = _llama_like(keys, act_key=act_key, bias=keys.flag("attention_bias"))
    return {**out, "embed_scale": math.sqrt(out["d_model"])}


def _gemma(keys: Keys) -> Fields:
    for key in ("sliding_window", "final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"):
        keys.refuse(key)
    # "gelu" stands in early files and has always meant the tanh approximation
    if keys.raw.get("hidden_act") == "gelu":
        keys.raw["hidden_act"] = "gelu_pytorch_tanh"
    out = _gemma_like(keys, "hidden_act")
    if keys.get("hidden_activation") is not None and keys.activation("hidden_activation") != out["act_fn"]:
        raise UnsupportedModelError(
            f"{keys.where}: hidden_activation = {keys.raw['hidden_activation']!r} contradicts hidden_act ="
            f" {keys.raw.get('hidden_act')!r}"
        )
    return {**out, **_rotary(keys, out["d_head"])}


def _gemma_sandwich(keys: Keys) -> Fields:
    keys.get("hidden_act")  # the other key counts
    out = _gemma_like(keys, "hidden_activation")
    return {
        **out,
        "use_normalization_before_and_after": True,
        "attn_scale": math.sqrt(keys.number("query_pre_attn_scalar")),
    }


def _gemma2(keys: Keys) -> Fields:
    out = _gemma_sandwich(keys)
    types = _layer_types(keys, out["n_layers"], lambda layer: layer % 2 == 0)
    return {
        **out,
        "attn_scores_soft_cap": keys.number_or_none("attn_logit_softcapping"),
        "output_logits_soft_cap": keys.number_or_none("final_logit_softcapping"),
        **_windows(keys, types, _window(keys)),
        **_rotary(keys, out["d_head"]),
    }


def _gemma3(keys: Keys) -> Fields:
    # the reference reads this key but never applies it
    keys.refuse("attn_logit_softcapping")
    out = _gemma_sandwich(keys)
    pattern = keys.size("sliding_window_pattern", 6) if keys.get("sliding_window_pattern") is not None else 6
    types = _layer_types(keys, out["n_layers"], lambda layer: (layer + 1) % pattern != 0)
    return {
        **out,
        "use_qk_norm": True,
        "output_logits_soft_cap": keys.number_or_none("final_logit_softcapping"),
        **_windows(keys, types, _window(keys)),
        **_rotary_by_layer(keys, out["d_head"]),
    }


CONFIGURATIONS: dict[str, Callable[[Keys], Fields]] = {
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gptj": _gptj,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "phi": _phi,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
}
"""model_type -> what reads its keys."""

_GPT_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
OTHER_NAMES: dict[str, dict[str, str]] = {
    "gpt2": _GPT_NAMES,
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "gptj": _GPT_NAMES,
}
"""model_type -> names that its configuration class takes as well, and what they stand for."""

SUPPORTED = (*CONFIGURATIONS, "clew")


def read_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """A `config.json` of an architecture in the table.

    Raises
    ------
    UnsupportedModelError
        Another architecture, or a key whose value would change the results; names it.
    LoadError
        Keys that are missing or make no sense.
    """
    kind = raw.get("model_type")
    given, text_of = raw, where
    Keys(raw, where).refuse("quantization_config")
    Keys(raw, where).refuse("compression_config")
    if kind == "gemma3":
        text = raw.get("text_config")
        if not isinstance(text, dict):
            raise LoadError(f"{where}: text_config = {text!r}, expected an object")
        # the wrapper's own key decides about tying
        outer: dict[str, Any] = {key: raw[key] for key in ("bos_token_id", "eos_token_id") if key in raw}
        outer["tie_word_embeddings"] = raw.get("tie_word_embeddings", True)
        given, text_of = {**text, **outer}, f"{where}: text_config"
    name = "gemma3_text" if kind == "gemma3" else kind
    if not isinstance(name, str) or name not in CONFIGURATIONS:
        raise UnsupportedModelError(f"{where}: model_type = {kind!r}; supported: {', '.join(SUPPORTED)}")
    keys = Keys(given, text_of, CLASS_DEFAULTS[name])
    for other, own in OTHER_NAMES.get(name, {}).items():
        if keys.raw.get(other) is not None:  # it wins where both are given, as in the reference
            keys.raw[own] = keys.raw.pop(other)
    for key in ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"):
        keys.get(key)
    keys.refuse("quantization_config")
    keys.refuse("is_encoder_decoder", False)
    # the engine has no softmax attention that sees what comes later; GPT-Neo's own code never reads the key
    if name != "gpt_neo" and not keys.flag("is_causal", True):
        raise UnsupportedModelError(
            f"{keys.where}: is_causal = {keys.raw['is_causal']!r} is not supported: attention over the whole prompt"
        )
    for key in ("logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling"):
        keys.refuse(key, 1)
    keys.refuse("pruned_heads", {})
    fields = CONFIGURATIONS[name](keys)
    fields["d_vocab"] = keys.size("vocab_size")
    fields["tie_word_embeddings"] = keys.flag("tie_word_embeddings")
    fields["initializer_range"] = keys.number("init_std" if kind == "opt" else "initializer_range", positive=False)
    fields.update(keys.tokens(), original_architecture=kind, model_name=str(keys.get("_name_or_path") or kind))
    fields["extra"] = keys.extra()
    return build(where, fields)


_NO_SHAPES = (
    "bos_token_id",
    "eos_token_id",
    "max_window_layers",
    "query_pre_attn_scalar",
    "sliding_window",
    "window_size",
)


def assumed_sizes(raw: dict[str, Any]) -> dict[str, int]:
    """Sizes that a `config.json` leaves to the defaults: where its tensors do not fit, one of them may be to blame."""
    wrapped = raw.get("model_type") == "gemma3"
    kind = "gemma3_text" if wrapped else raw.get("model_type")
    given = raw.get("text_config") if wrapped else raw
    if not isinstance(kind, str) or kind not in CLASS_DEFAULTS or not isinstance(given, dict):
        return {}
    present = {OTHER_NAMES.get(kind, {}).get(key, key) for key in given}
    return {
        key: value
        for key, value in CLASS_DEFAULTS[kind].items()
        if type(value) is int and key not in present and key not in _NO_SHAPES
    }
