"""Seeded initial weights of a model made from its configuration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import memory
from ..config import ModelConfig
from ..inputs import check_seed
from .safetensors import weights_dtype

Array = NDArray[Any]


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and classic shape of every weight of a model, biases as its flags say; a tied unembedding included.

    Example
    -------
    >>> shapes = weight_shapes(ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_vocab=5))
    >>> shapes["blocks.0.attn.W_Q"]
    (2, 8, 4)
    """
    c = config
    d, e, f, h, g = c.d_model, c.d_head, c.d_mlp, c.n_heads, c.n_key_value_heads
    out: dict[str, tuple[int, ...]] = {"embed.W_E": (c.d_vocab, d)}
    if c.positional_embedding_type == "standard":
        out["pos_embed.W_pos"] = (c.n_ctx + c.pos_offset, d)

    def norm(name: str) -> None:
        if c.norm_affine:
            out[f"{name}.w"] = (d,)
            if c.norm_bias and not c.rms:
                out[f"{name}.b"] = (d,)

    for layer in range(c.n_layers):
        at = f"blocks.{layer}"
        norm(f"{at}.ln1")
        for letter, n in (("Q", h), ("K", g), ("V", g)):
            out[f"{at}.attn.W_{letter}"] = (n, d, e)
            if c.qkv_bias:
                out[f"{at}.attn.b_{letter}"] = (n, e)
        if c.use_qk_norm:
            out[f"{at}.attn.q_norm.w"] = out[f"{at}.attn.k_norm.w"] = (e,)
        out[f"{at}.attn.W_O"] = (h, e, d)
        if c.attn_out_bias:
            out[f"{at}.attn.b_O"] = (d,)
        if c.use_normalization_before_and_after:
            norm(f"{at}.ln1_post")
        if c.attn_only:
            continue
        if not (c.parallel_attn_mlp and c.shared_norm):
            norm(f"{at}.ln2")
        for kind in ("gate", "in") if c.gated_mlp else ("in",):
            out[f"{at}.mlp.W_{kind}"] = (d, f)
            if c.mlp_bias:
                out[f"{at}.mlp.b_{kind}"] = (f,)
        out[f"{at}.mlp.W_out"] = (f, d)
        if c.mlp_bias:
            out[f"{at}.mlp.b_out"] = (d,)
        if c.use_normalization_before_and_after:
            norm(f"{at}.ln2_post")
    if c.final_norm:
        norm("ln_final")
    out["unembed.W_U"] = (d, c.d_vocab_out)
    if c.unembed_bias:
        out["unembed.b_U"] = (c.d_vocab_out,)
    return out


def initialise(config: ModelConfig, seed: int = 0, dtype: DTypeLike = np.float32) -> dict[str, Array]:
    """Random weights of a configuration; the same bits for the same seed and NumPy.

    Every matrix and embedding is N(0, initializer_range²), W_O and mlp.W_out divided by √(2 n_layers) besides
    (each block adds two terms to the residual stream); biases 0, norm weights 1. Each weight has its own PCG64 stream
    made of the seed and its place in :func:`weight_shapes`; float32 models hold the rounded float64 draws.

    Returns
    -------
    name -> array in classic shape. W_Q, W_K and W_V [h, d, e] are views of a contiguous [d, h·e] array, the other
    arrays are contiguous; a tied W_U is a transposed view of W_E.

    Raises
    ------
    ValueError
        A dtype other than float32 and float64; a seed that is no whole number (ConfigError).
    MemoryError
        There is not that much memory.
    """
    kind = weights_dtype(dtype, False)
    shapes = weight_shapes(config)
    streams = np.random.SeedSequence(check_seed(seed)).spawn(len(shapes))
    small = 1 / math.sqrt(2 * max(1, config.n_layers))
    out: dict[str, Array] = {}
    for stream, (name, shape) in zip(streams, shapes.items(), strict=True):
        last = name.rsplit(".", 1)[-1]
        if name == "unembed.W_U" and config.tie_word_embeddings:
            out[name] = out["embed.W_E"].T
        elif last in ("W_Q", "W_K", "W_V"):
            n, d, e = shape
            out[name] = _normal(stream, (d, n * e), config.initializer_range, kind).reshape(d, n, e).transpose(1, 0, 2)
        elif last.startswith("W_"):
            scale = config.initializer_range * (small if last in ("W_O", "W_out") else 1.0)
            out[name] = _normal(stream, shape, scale, kind)
        else:
            out[name] = memory.empty(shape, kind)
            out[name][...] = 1.0 if last == "w" else 0.0
    return out


def _normal(stream: np.random.SeedSequence, shape: tuple[int, ...], scale: float, dtype: np.dtype[Any]) -> Array:
    """N(0, scale²), drawn as float64 a few rows at a time so that a float32 matrix costs no second one."""
    generator = np.random.Generator(np.random.PCG64(stream))
    out = memory.empty(shape, dtype)
    flat = out.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        part = flat[start : start + (1 << 20)]
        part[...] = generator.standard_normal(part.size) * scale
    return out
