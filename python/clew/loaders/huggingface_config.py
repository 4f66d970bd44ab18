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

_TIED = ("gpt2", "gpt_neo", "opt", "gemma", "gemma2", "gemma3_text")
"""Those whose default of tie_word_embeddings is true."""

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
        read, tied = CONFIGURATIONS["gemma3_text"], True
    elif isinstance(kind, str) and kind in CONFIGURATIONS:
        read, tied = CONFIGURATIONS[kind], kind in _TIED
    else:
        raise UnsupportedModelError(f"{where}: model_type = {kind!r}; supported: {', '.join(SUPPORTED)}")
    for key in ("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"):
        keys.get(key)
    keys.refuse("is_encoder_decoder", False)
    for key in ("logit_scale", "embedding_multiplier", "residual_multiplier", "logits_scaling"):
        keys.refuse(key, 1)
    keys.refuse("pruned_heads", {})
    fields = read(keys)
    fields["d_vocab"] = keys.size("vocab_size")
    fields["tie_word_embeddings"] = keys.flag("tie_word_embeddings", tied)
    fields["initializer_range"] = keys.number(
        "init_std" if kind == "opt" else "initializer_range", 0.02, positive=False
    )
    fields.update(keys.tokens(), original_architecture=kind, model_name=str(keys.get("_name_or_path") or kind))
    fields["extra"] = keys.extra()
    return build(where, fields)
