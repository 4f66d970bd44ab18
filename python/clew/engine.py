"""Between the configuration and the core: numbers for the engine, weights in memory that it may read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .config import ACTIVATIONS, ModelConfig
from .errors import LoadError
from .loaders.initialise import weight_shapes

Array = NDArray[Any]

WEIGHTS: tuple[tuple[str, str, bool], ...] = tuple(_core.weights())
"""(name, axes, layered) of every weight, in the core's order."""


def weight_names(n_layers: int) -> dict[str, tuple[int, int]]:
    """Full name of every possible weight → (number, layer)."""
    out: dict[str, tuple[int, int]] = {}
    for i, (name, _, layered) in enumerate(WEIGHTS):
        if layered:
            out.update({f"blocks.{layer}.{name}": (i, layer) for layer in range(n_layers)})
        else:
            out[name] = (i, 0)
    return out


def core_config(config: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """The configuration as the core reads it."""
    local_base = 1 if config.rotary_base_local is not None else 0
    rotary = config.positional_embedding_type == "rotary" and config.rotary_dim > 0
    layers = []
    for layer in range(config.n_layers):
        local = config.is_local(layer)
        scale = 1.0 / config.attn_scale if config.use_attn_scale else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= layer + 1
        layers.append((config.window_size or 0 if local else 0, local_base if local else 0, rotary, scale))
    return {
        "dtype": 0 if dtype == np.float32 else 1,
        "norm": 0 if config.normalization_type is None else 2 if config.rms else 1,
        "position": {"none": 0, "standard": 1, "rotary": 2 if rotary else 0}[config.positional_embedding_type],
        "act": ACTIVATIONS.index(config.act_fn),
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_key_value_heads,
        "d_head": config.d_head,
        "d_mlp": config.d_mlp,
        "n_ctx": config.n_ctx,
        "d_vocab": config.d_vocab,
        "d_vocab_out": config.d_vocab_out,
        "vector_input": config.d_in is not None,
        "pos_offset": config.pos_offset,
        "n_rot": config.rotary_dim if rotary else 0,
        "linear_n": config.linear_attn_n or 0,
        "final_norm": config.final_norm and config.normalization_type is not None,
        "post_norms": config.use_normalization_before_and_after,
        "qk_norm": config.use_qk_norm,
        "rotary_adjacent": config.rotary_adjacent_pairs,
        "attn_only": config.attn_only,
        "parallel": config.parallel_attn_mlp,
        "shared_norm": config.shared_norm,
        "gated": config.gated_mlp,
        "causal": config.attention_dir == "causal",
        "linear_attention": config.attention_kind == "linear",
        "exclude_self": config.exclude_self,
        "exclude_last": config.exclude_last,
        "eps": config.eps,
        "embed_scale": config.embed_scale,
        "score_softcap": config.attn_scores_soft_cap or 0.0,
        "logit_softcap": config.output_logits_soft_cap or 0.0,
        "inv_freq": np.ascontiguousarray(config.rotary_frequencies()),
        "layers": layers,
    }


def in_slab(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array itself where the engine can read it in place, else a copy with the same order of axes in memory."""
    usable = array.dtype == dtype and array.dtype.isnative and array.flags.aligned and 1 <= array.ndim <= 3
    if usable and _core.in_slab(array) and all(s % dtype.itemsize == 0 and s >= 0 for s in array.strides):
        return array
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    copy = _core.empty(tuple(array.shape[axis] for axis in order), dtype.name)
    copy[...] = array.transpose(order)
    return copy.transpose(np.argsort(order))  # type: ignore[no-any-return]


_NORM = re.compile(r"(^|\.)(ln\d|ln\d_post|ln_final)\.[wb]$")


def _is_bias(name: str) -> bool:
    return name.rsplit(".", 1)[-1].startswith("b")


def _listed(names: Sequence[str]) -> str:
    """Names, or the first of very many."""
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def place_weights(weights: Mapping[str, Array], config: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Array]:
    """All weights in memory that the engine may read, in the core's order; arrays that share memory still do.

    Raises
    ------
    LoadError
        A name that is no weight of such a model, or a weight that is not there; all are named. Absent biases are 0.
    """
    known = weight_names(config.n_layers)
    strange = [name for name in weights if name not in known]
    if strange:
        raise LoadError(f"weights with names that this model does not have: {_listed(strange)}")
    missing = [name for name in weight_shapes(config) if name not in weights and not _is_bias(name)]
    if missing:
        raise LoadError(f"weights that are missing: {_listed(missing)}")
    if not config.norm_affine:  # the core would apply them
        strange = [name for name in weights if _NORM.search(name)]
        if strange:
            raise LoadError(f"weights that norms of type {config.normalization_type} do not have: {_listed(strange)}")
    placed: dict[str, Array] = {}
    for name in sorted(weights, key=lambda n: known[n]):
        array = np.asarray(weights[name])
        tied = name == "unembed.W_U" and "embed.W_E" in weights
        embedding = np.asarray(weights["embed.W_E"]) if tied else array
        if tied and array.shape == embedding.T.shape and _same_memory(array, embedding.T):
            placed[name] = placed["embed.W_E"].T
        else:
            placed[name] = in_slab(array, dtype)
    return placed


def _same_memory(a: Array, b: Array) -> bool:
    """Are the two the same view?"""
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and a.strides == b.strides


def trainable_order(name: str, n_dims: int) -> tuple[int, ...]:
    """Classic axes of a weight that is trained, from the slowest to the fastest in memory; its own inverse."""
    heads = name.rsplit(".", 1)[-1] in ("W_Q", "W_K", "W_V")
    return (1, 0, 2) if heads else tuple(range(n_dims))


def trainable_weights(weights: Mapping[str, Array], dtype: np.dtype[Any]) -> dict[str, Array]:
    """Writable copies in the layouts that the core multiplies in one product: nothing else holds a value of them.

    W_Q, W_K and W_V lie as [d, heads, e] and are seen as [heads, d, e], everything else as its classic shape says. An
    unembedding that is the embedding's memory stays so.
    """
    out: dict[str, Array] = {}
    for name, array in weights.items():
        if name == "unembed.W_U" and _same_memory(array, weights["embed.W_E"].T):
            out[name] = out["embed.W_E"].T
            continue
        order = trainable_order(name, array.ndim)
        copy = _core.empty(tuple(array.shape[axis] for axis in order), dtype.name)
        copy[...] = array.transpose(order)
        out[name] = copy.transpose(order)
    return out
