"""Attention rewritten with W_QK and W_VO, biases included: the same numbers as the forward pass, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import norm
from ..brief import Brief
from ..errors import ConfigError, ShapeError, UnsupportedModelError
from ..factored import FactoredMatrix
from ..inputs import real_array, whole
from ..model import Model, check_model

Array = NDArray[Any]


@dataclass(frozen=True)
class QueryKey(Brief):
    """A layer's scores as a form in what attention reads: x_i W x_j + x_i · query + x_j · key + constant, by head.

    Source: Molina 2023: W_QK = W_Q W_Kᵀ / √d_k, "plus bias terms", which are spelt out here.
    """

    W: FactoredMatrix
    """[heads, d_model, d_model], factored, divided by the scale of the scores."""
    query: Array
    """W_Q b_Kᵀ over the scale [heads, d_model]: what a query prefers whatever the key is."""
    key: Array
    """W_K b_Qᵀ over the scale [heads, d_model]: what a key gets whatever the query is."""
    constant: Array
    """b_Q · b_K over the scale [heads]."""
    offset: int | None
    """Query's position less the key's that it holds for (rotary positions); None: for all."""


@dataclass(frozen=True)
class ValueOutput(Brief):
    """What a layer's heads write of what they attend to: x W + bias, by head."""

    W: FactoredMatrix
    """W_V W_O [heads, d_model, d_model], factored."""
    bias: Array
    """b_V W_O [heads, d_model]; b_O is the layer's, not a head's."""


def _layer(model: Model, layer: int) -> int:
    check_model(model)
    return model.sites().layer(whole(layer, "layer"), f"layer {layer}")


def _weights(model: Model, layer: int, name: str) -> Array:
    """An attention weight of the layer [heads, ...], float64; key-value heads repeated, zeros for an absent bias."""
    config = model.config
    heads = config.n_key_value_heads if name[-1] in "KV" else config.n_heads
    full = f"blocks.{layer}.attn.{name}"
    value = model.weights[full].astype(np.float64) if full in model.weights else np.zeros((heads, config.d_head))
    return np.asarray(np.repeat(value, config.n_heads // heads, axis=0))


def _scale(model: Model, layer: int) -> float:
    inverse = layer + 1 if model.config.scale_attn_by_inverse_layer_idx else 1
    return float(model.config.attn_scale * inverse)


def _turned(model: Model, layer: int, x: Array, offset: int) -> Array:
    """x [..., d_head] turned by the rotary angle of `offset` positions."""
    config = model.config
    frequencies = config.rotary_frequencies()
    row = frequencies[1 if config.is_local(layer) and len(frequencies) > 1 else 0]
    half = len(row)
    pairs = np.arange(half)
    first, second = (2 * pairs, 2 * pairs + 1) if config.rotary_adjacent_pairs else (pairs, pairs + half)
    c, s = np.cos(offset * row), np.sin(offset * row)
    out = np.array(x)
    out[..., first] = c * x[..., first] - s * x[..., second]
    out[..., second] = s * x[..., first] + c * x[..., second]
    return out


def _no_matrix(model: Model) -> None:
    if model.config.use_qk_norm:
        raise UnsupportedModelError(
            "query and key norms: they divide each query and key by its own length, so that no one matrix W_QK exists"
        )


def query_key(model: Model, layer: int, offset: int | None = None) -> QueryKey:
    """W_QK of every head of a layer, with its bias terms; factored, float64.

    Under rotary positions W_QK depends on how far apart query and key stand: W_Q R(offset) W_Kᵀ, R turning each pair of
    d_head by its frequency times the offset. `offset` (query's position less the key's, at least 0) is then needed.

    Raises
    ------
    SiteError
        No such layer.
    ConfigError
        An offset missing (rotary positions) or out of place (none).
    UnsupportedModelError
        Query and key norms: no one matrix exists.

    Example
    -------
    >>> import clew
    >>> form = query_key(clew.load("shakespeare"), 0)
    >>> form.W.shape, form.query.shape
    ((4, 128, 128), (4, 128))
    """
    layer = _layer(model, layer)
    _no_matrix(model)
    rotary = model.config.positional_embedding_type == "rotary"
    if rotary and offset is None:
        raise ConfigError("rotary positions: W_QK depends on the query's position less the key's: give offset=")
    if not rotary and offset is not None:
        raise ConfigError(f"offset = {offset}: without rotary positions W_QK is the same for all")
    W_Q, b_Q, W_K, b_K = (_weights(model, layer, name) for name in ("W_Q", "b_Q", "W_K", "b_K"))
    if offset is not None:
        W_Q, b_Q = (_turned(model, layer, x, whole(offset, "offset")) for x in (W_Q, b_Q))
    scale = _scale(model, layer)
    return QueryKey(
        FactoredMatrix(W_Q / scale, np.swapaxes(W_K, -1, -2)),
        np.einsum("hde,he->hd", W_Q, b_K) / scale,
        np.einsum("hde,he->hd", W_K, b_Q) / scale,
        np.einsum("he,he->h", b_Q, b_K) / scale,
        offset,
    )


def value_output(model: Model, layer: int) -> ValueOutput:
    """W_VO = W_V W_O of every head of a layer, with b_V W_O; factored, float64. Raises SiteError: no such layer.

    >>> import clew
    >>> value_output(clew.load("stories260K"), 0).W.shape
    (8, 64, 64)
    """
    layer = _layer(model, layer)
    W_V, b_V, W_O = (_weights(model, layer, name) for name in ("W_V", "b_V", "W_O"))
    return ValueOutput(FactoredMatrix(W_V, W_O), np.einsum("he,hed->hd", b_V, W_O))


@dataclass(frozen=True)
class Rewritten(Brief):
    """Attention of one layer computed from W_QK and W_VO, float64; made by :func:`rewrite_attention`."""

    scores: Array
    """[batch, head, query, key], −inf where masked."""
    pattern: Array
    """[batch, head, query, key]"""
    out: Array
    """What attention adds to the stream [batch, pos, d_model]."""


def rewrite_attention(model: Model, x: ArrayLike, layer: int) -> Rewritten:
    """Attention = Σ_h softmax(x W_QK xᵀ + bias terms) (x W_VO + b_V W_O) + b_O, from what attention reads.

    x is [batch, pos, d_model] or [pos, d_model]: `ln1.hook_out` of the layer (`resid_pre` without a norm). It equals
    the forward pass to rounding: soft-caps, windows, grouped keys and norms behind the branch included. Under rotary
    positions each distance between query and key has a W_QK of its own.

    Raises
    ------
    ShapeError
        x of another shape.
    SiteError
        No such layer.
    UnsupportedModelError
        Query and key norms; attention without softmax.

    Example
    -------
    >>> import clew
    >>> model = clew.load("shakespeare")
    >>> run = model.run([5, 6, 7, 8], capture=["ln1.hook_out", "attn_out"])
    >>> found = rewrite_attention(model, run["blocks.2.ln1.hook_out"], 2)
    >>> float(abs(found.out - run["attn_out", 2]).max()) < 1e-5
    True
    """
    layer = _layer(model, layer)
    config = model.config
    if config.attention_kind != "softmax" or config.attention_dir != "causal":
        raise UnsupportedModelError("linear or bidirectional attention: the rewriting holds for causal softmax")
    x = real_array(x, "x")
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[-1] != config.d_model:
        raise ShapeError(f"x {list(x.shape)} must be [batch, pos, d_model = {config.d_model}]")
    batch, n = x.shape[:2]
    distance = np.arange(n)[:, None] - np.arange(n)
    scores = np.full((batch, config.n_heads, n, n), -np.inf)
    rotary = config.positional_embedding_type == "rotary"
    reach = min(n, config.window_size) if config.is_local(layer) and config.window_size else n
    for offset in range(reach) if rotary else (None,):
        form = query_key(model, layer, offset)
        if offset is None:
            keys = form.W.B @ np.swapaxes(x, -1, -2)[:, None]  # [batch, head, d_head, key]
            own = (x[:, None] @ form.W.A) @ keys
            own += np.einsum("bid,hd->bhi", x, form.query)[..., None]
            own += np.einsum("bjd,hd->bhj", x, form.key)[:, :, None]
            own += form.constant[:, None, None]
            seen = (distance >= 0) & (distance < reach)
            scores[:, :, seen] = own[:, :, seen]
            continue
        late, early = x[:, offset:], x[:, : n - offset]  # the pairs that stand so far apart
        own = np.einsum("bihe,bihe->bhi", np.einsum("bid,hde->bihe", late, form.W.A),
                        np.einsum("bjd,hed->bjhe", early, form.W.B))  # fmt: skip
        own += np.einsum("bid,hd->bhi", late, form.query) + np.einsum("bjd,hd->bhj", early, form.key)
        own += form.constant[:, None]
        scores[:, :, np.arange(offset, n), np.arange(n - offset)] = own
    if config.attn_scores_soft_cap:
        shown = np.isfinite(scores)
        scores[shown] = config.attn_scores_soft_cap * np.tanh(scores[shown] / config.attn_scores_soft_cap)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    moved = value_output(model, layer)
    values = (x[:, None] @ moved.W.A) @ moved.W.B + moved.bias[:, None]  # [batch, head, key, d_model]
    out = np.einsum("bhij,bhjd->bid", pattern, values)
    name = f"blocks.{layer}.attn.b_O"
    if name in model.weights:
        out += model.weights[name].astype(np.float64)
    if config.use_normalization_before_and_after:
        out = norm.normalise(model, out, f"blocks.{layer}.ln1_post")
    return Rewritten(scores, pattern, out)


__all__ = ["QueryKey", "Rewritten", "ValueOutput", "query_key", "rewrite_attention", "value_output"]
