"""Classic HookedTransformer states: its parameter names in safetensors beside its configuration in `config.json`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import memory
from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .assemble import Array, Names, Source, assemble
from .checkpoint import Checkpoint
from .keys import Keys, build
from .safetensors import TensorStore

_NO_EFFECT = (
    "use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "ungroup_grouped_query_attention",
    "from_checkpoint", "checkpoint_index", "checkpoint_label_type", "checkpoint_value", "init_mode", "device",
    "n_devices", "seed", "init_weights", "n_params", "default_prepend_bos", "dtype", "tokenizer_prepends_bos",
    "trust_remote_code", "norm_topk_prob", "decoder_start_token_id", "uses_rms_norm", "layer_norm_folding",
)  # fmt: skip
"""Fields that change hooks, placement or training, not results."""

_HARMLESS = (r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)",)


def is_classic(raw: dict[str, Any]) -> bool:
    """Does a `config.json` hold the classic library's fields?"""
    return "model_type" not in raw and all(key in raw for key in ("n_layers", "d_model", "n_ctx", "d_head"))


def read_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The classic library's configuration.

    Raises
    ------
    UnsupportedModelError
        A field that changes results and that the engine does not have; names it and its value.
    LoadError
        Fields that are missing or make no sense.
    """
    keys = Keys(raw, where)
    for key in _NO_EFFECT:
        keys.get(key)
    keys.refuse("attention_dir", "causal", why="softmax attention is causal here")
    for key in ("use_hook_tokens", "post_embedding_ln", "load_in_4bit", "use_yarn_rope"):
        keys.refuse(key, False)
    for key in ("num_experts", "experts_per_token"):
        keys.refuse(key)
    for key in ("relative_attention_max_distance", "relative_attention_num_buckets"):
        keys.refuse(key)
    if keys.get("act_fn") in ("solu", "solu_ln"):
        raise UnsupportedModelError(f"{where}: act_fn = {raw['act_fn']!r} is not supported")
    position = keys.get("positional_embedding_type", "standard")
    if position not in ("standard", "rotary"):
        raise UnsupportedModelError(
            f"{where}: positional_embedding_type = {position!r} is not supported; supported: standard, rotary"
        )
    norm = keys.get("normalization_type", "LN")
    if norm not in ("LN", "LNPre", "RMS", "RMSPre", None):
        raise UnsupportedModelError(f"{where}: normalization_type = {norm!r}; supported: LN, LNPre, RMS, RMSPre, null")
    if norm in ("LN", "LNPre"):
        keys.refuse("final_rms", False, why=f"a final RMS norm behind {norm} blocks")
    sandwich = keys.flag("use_normalization_before_and_after", False)
    if sandwich and norm not in ("RMS", "RMSPre"):
        raise UnsupportedModelError(f"{where}: use_normalization_before_and_after with normalization_type = {norm!r}")
    keys.get("final_rms")

    n_layers, d_model, d_head = keys.size("n_layers", most=10_000), keys.size("d_model"), keys.size("d_head")
    n_heads = keys.size("n_heads") if keys.get("n_heads", -1) != -1 else max(1, d_model // d_head)
    attn_only = keys.flag("attn_only", False)
    if attn_only:
        keys.refuse("parallel_attn_mlp", False, why="there is no MLP")
    scaled = keys.flag("use_attn_scale", True)
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_key_value_heads": keys.size_or("n_key_value_heads", n_heads),
        "d_head": d_head,
        "d_mlp": 0 if attn_only else keys.size_or("d_mlp", 4 * d_model),
        "n_ctx": keys.size("n_ctx"),
        "d_vocab": keys.size("d_vocab"),
        "d_vocab_out": keys.size_or("d_vocab_out", keys.size("d_vocab")),
        "act_fn": "none" if attn_only else keys.activation("act_fn", "relu"),
        "eps": keys.number("eps", 1e-5),
        # folding keeps the weights of the norms behind the branches: the others become ones
        "normalization_type": "RMS" if sandwich else norm,
        "norm_bias": norm == "LN",
        "final_norm": norm is not None,
        "positional_embedding_type": position,
        "attn_only": attn_only,
        "gated_mlp": keys.flag("gated_mlp", False) and not attn_only,
        "parallel_attn_mlp": keys.flag("parallel_attn_mlp", False),
        "use_normalization_before_and_after": sandwich,
        "use_qk_norm": keys.flag("use_qk_norm", False),
        "use_attn_scale": scaled,
        "scale_attn_by_inverse_layer_idx": keys.flag("scale_attn_by_inverse_layer_idx", False),
        "attn_scores_soft_cap": _cap(keys, "attn_scores_soft_cap"),
        "output_logits_soft_cap": _cap(keys, "output_logits_soft_cap"),
        "unembed_bias": True,
        "original_architecture": keys.get("original_architecture"),
        "model_name": str(keys.get("model_name") or "custom"),
        "tokenizer_name": keys.get("tokenizer_name"),
    }
    if scaled and keys.get("attn_scale", -1.0) != -1.0:
        fields["attn_scale"] = keys.number("attn_scale", 1.0)
    if position == "rotary":
        fields.update(_rotary(keys, d_head))
    if keys.flag("use_local_attn", False):
        types = keys.get("attn_types")
        if not isinstance(types, list) or len(types) < n_layers or not set(map(str, types)) <= {"global", "local"}:
            raise keys.wrong("attn_types", f"'global' or 'local' for each of {n_layers} layers")
        fields["attn_types"] = tuple(types[:n_layers])
        fields["window_size"] = keys.size("window_size", most=1 << 31)
    if keys.get("initializer_range", -1.0) != -1.0:
        fields["initializer_range"] = keys.number("initializer_range", 0.02)
    fields["extra"] = keys.extra()
    return build(where, fields)


def _cap(keys: Keys, key: str) -> float | None:
    """A soft-cap; the classic library spells "none" as −1."""
    value = keys.get(key)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0):
        return None
    return keys.number(key, 1.0)


def _rotary(keys: Keys, d_head: int) -> dict[str, Any]:
    rotary_dim = keys.size_or("rotary_dim", d_head)
    if rotary_dim % 2 or rotary_dim > d_head:
        raise keys.wrong("rotary_dim", f"an even number up to d_head = {d_head}")
    base = keys.number("rotary_base", 10000.0)
    local = keys.number_or_none("rotary_base_local")
    linear = keys.number("rotary_scaling_factor", 1.0)
    out: dict[str, Any] = {
        "rotary_dim": rotary_dim,
        "rotary_base": base,
        "rotary_base_local": local,
        "rotary_adjacent_pairs": keys.flag("rotary_adjacent_pairs", False),
    }
    if keys.flag("use_NTK_by_parts_rope", False):
        if local is not None:
            raise UnsupportedModelError(
                f"{keys.where}: use_NTK_by_parts_rope with rotary_base_local = {local!r} is not supported"
            )
        out["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": keys.number("NTK_by_parts_factor", 8.0),
            "low_freq_factor": keys.number("NTK_by_parts_low_freq_factor", 1.0),
            "high_freq_factor": keys.number("NTK_by_parts_high_freq_factor", 4.0),
            "original_max_position_embeddings": keys.size("NTK_original_ctx_len", 8192, most=1 << 40),
        }
    elif linear != 1.0:
        # local layers are never scaled: they take the second table
        out["rope_scaling"] = {"rope_type": "linear", "factor": linear}
        out["rotary_base_local"] = base if local is None else local
    return out


def _sources(config: ModelConfig, names: Names, norm: str | None) -> list[Source]:
    """The table: classic names are ours but for `_W_K` and its kin of grouped heads.

    Biases may be absent (a state whose owner dropped the zeros); everything else must be there.
    """
    c = config
    d, e, f, h, g = c.d_model, c.d_head, c.d_mlp, c.n_heads, c.n_key_value_heads
    out = [Source("embed.W_E", "embed.W_E", (c.d_vocab, d))]
    if c.positional_embedding_type == "standard":
        out.append(Source("pos_embed.W_pos", "pos_embed.W_pos", (c.n_ctx, d)))
    out.append(Source("unembed.W_U", "unembed.W_U", (d, c.d_vocab_out)))
    out.append(Source("unembed.b_U", "unembed.b_U", (c.d_vocab_out,), optional=True))

    def add_norm(name: str, width: int = d, kind: str | None = norm) -> None:
        if kind in ("LN", "RMS"):
            out.append(Source(f"{name}.w", f"{name}.w", (width,)))
        if kind == "LN":
            out.append(Source(f"{name}.b", f"{name}.b", (width,)))

    add_norm("ln_final")
    for layer in range(c.n_layers):
        at = f"blocks.{layer}"
        add_norm(f"{at}.ln1")
        for letter, n in (("Q", h), ("K", g), ("V", g)):
            for kind, shape in (("W", (n, d, e)), ("b", (n, e))):
                weight = f"{at}.attn.{kind}_{letter}"
                grouped = f"{at}.attn._{kind}_{letter}"
                name = grouped if grouped in names else weight
                out.append(Source(weight, name, shape, optional=kind == "b"))
        out.append(Source(f"{at}.attn.W_O", f"{at}.attn.W_O", (h, e, d)))
        out.append(Source(f"{at}.attn.b_O", f"{at}.attn.b_O", (d,), optional=True))
        if c.use_qk_norm:
            add_norm(f"{at}.attn.q_norm", e, "RMS")
            add_norm(f"{at}.attn.k_norm", e, "RMS")
        if c.use_normalization_before_and_after:
            add_norm(f"{at}.ln1_post", d, "RMS")
        if c.attn_only:
            continue
        add_norm(f"{at}.ln2")
        if c.use_normalization_before_and_after:
            add_norm(f"{at}.ln2_post", d, "RMS")
        if c.gated_mlp:
            out.append(Source(f"{at}.mlp.W_gate", f"{at}.mlp.W_gate", (d, f)))
        out.append(Source(f"{at}.mlp.W_in", f"{at}.mlp.W_in", (d, f)))
        out.append(Source(f"{at}.mlp.b_in", f"{at}.mlp.b_in", (f,), optional=True))
        out.append(Source(f"{at}.mlp.W_out", f"{at}.mlp.W_out", (f, d)))
        out.append(Source(f"{at}.mlp.b_out", f"{at}.mlp.b_out", (d,), optional=True))
    return out


def load_classic(store: TensorStore, raw: dict[str, Any], where: str, dtype: DTypeLike | None = None) -> Checkpoint:
    """A classic HookedTransformer state; arguments and errors as :func:`clew.loaders.huggingface.load_huggingface`."""
    config = read_config(raw, where)
    if config.n_layers > len(store):
        raise LoadError(f"{where}: {config.n_layers} layers, but {store.where} holds only {len(store)} tensors")
    names = Names(store, ())
    notes: list[str] = []
    norm = raw.get("normalization_type", "LN")
    weights = assemble(names, _sources(config, names, norm), dtype, _HARMLESS, notes)
    if config.use_normalization_before_and_after and norm == "RMSPre":
        _add_ones(config, weights, store.dtype)
        notes.append("RMSPre with norms behind the branches: the norms before them have weights of one")
    if config.gated_mlp:
        _fold_gated_bias(config, weights, notes)
    flags = {
        flag: any(re.fullmatch(pattern, name) for name in weights)
        for flag, pattern in (
            ("qkv_bias", r"blocks\.\d+\.attn\.b_[QKV]"),
            ("attn_out_bias", r"blocks\.\d+\.attn\.b_O"),
            ("mlp_bias", r"blocks\.\d+\.mlp\.b_(in|out)"),
            ("unembed_bias", r"unembed\.b_U"),
        )
    }
    return Checkpoint(config.replace(**flags), weights, store.dtype, None, notes)


def _add_ones(config: ModelConfig, weights: dict[str, Array], dtype: np.dtype[Any]) -> None:
    norms = [f"blocks.{layer}.{name}" for layer in range(config.n_layers) for name in ("ln1", "ln2")]
    ones = memory.copy(np.ones(config.d_model, dtype))
    ones.flags.writeable = False
    for name in (*norms, "ln_final"):
        if not (config.attn_only and name.endswith("ln2")):
            weights[f"{name}.w"] = ones


def _fold_gated_bias(config: ModelConfig, weights: dict[str, Array], notes: list[str]) -> None:
    """The classic gated MLP adds b_in behind the product: (act(gate) · linear + b_in) W_out + b_out.

    Ours adds it to the linear branch, so it moves through W_out into b_out; the same function. Zeros are dropped.
    """
    folded = []
    for layer in range(config.n_layers):
        at = f"blocks.{layer}.mlp"
        b_in = weights.pop(f"{at}.b_in", None)
        if b_in is None or not b_in.any():
            continue
        W_out = weights[f"{at}.W_out"]
        total = b_in.astype(np.float64) @ W_out.astype(np.float64)
        if f"{at}.b_out" in weights:
            total = total + weights[f"{at}.b_out"]
        b_out = memory.copy(total, W_out.dtype)
        b_out.flags.writeable = False
        weights[f"{at}.b_out"] = b_out
        folded.append(f"{at}.b_in")
    if folded:
        notes.append(f"added behind the gate in the classic library, so folded into b_out: {', '.join(folded)}")
