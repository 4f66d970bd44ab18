"""Concept vectors (paper 1): the hidden states of a text, reduced to one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, TokenError
from ..inputs import as_array, check_counts, check_type
from ..model import Model, check_model

Array = NDArray[Any]

POOLINGS = ("mean", "w1mean", "last", "concat")
ACTIVATIONS = (None, "act|", "-act|", "act+|", "-act+|")
NORMS = (None, "l2", "var", "z")
TooLong = Literal["error", "split"]


@dataclass(frozen=True)
class Concept:
    """How a text becomes a vector. Raises ConfigError for a name that there is not.

    >>> Concept("w1mean", layer="last").pooling
    'w1mean'
    """

    pooling: str = "mean"
    """"mean", "w1mean" (Σ t·h_t / Σ t, t = 1 … T), "last", or "concat" (no reduction: a vector for each token)."""
    layer: int | str = 0
    """Index of Hugging Face's hidden_states: 0 what enters the first block, n_layers what the final norm gives; those
    below 0 count from the end. Or "middle", "last", "E" (rows of W_E as they are), "OE" (columns of W_U)."""
    activation: str | None = None
    """Before pooling, σ the model's own: "act|" σ(h), "-act|" −σ(−h), "act+|" σ(h) + h, "-act+|" h − σ(−h)."""
    znorm: bool = False
    """Before pooling, after the activation: each token's vector less its mean, over its deviation."""
    norm: str | None = None
    """After pooling: "l2", "var" (÷ deviation), "z" (layer norm without affine part)."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("pooling", self.pooling, POOLINGS),
            ("activation", self.activation, ACTIVATIONS),
            ("norm", self.norm, NORMS),
        ):
            if value not in known:
                raise ConfigError(f"Concept: {name} = {value!r}: one of {', '.join(map(repr, known))}")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int | np.integer | str):
            raise ConfigError(f"Concept: layer = {self.layer!r}: a number, 'middle', 'last', 'E' or 'OE'")

    def index(self, model: Model) -> int | str:
        """The layer as an index from 0 to n_layers, "E" or "OE". Raises ConfigError."""
        n, layer = model.config.n_layers, self.layer
        if layer in ("E", "OE"):
            return str(layer)
        if isinstance(layer, str):
            known = {"middle": n // 2, "last": n}
            if layer not in known:
                raise ConfigError(f"Concept: layer = {layer!r}: 0 to {n}, 'middle', 'last', 'E' or 'OE'")
            return known[layer]
        if not -n - 1 <= layer <= n:
            raise ConfigError(f"Concept: layer = {layer!r}: the model has hidden states 0 to {n}")
        return int(layer) % (n + 1)


_TANH_GELU = np.sqrt(2 / np.pi)


def activation(name: str, x: Array) -> Array:
    """The model's activation function, in the array's dtype. Raises ConfigError for one that is not known here."""
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return np.asarray(x * (0.5 + 0.5 * np.tanh(x / 2)))  # x / (1 + e^−x) without overflow
    if name == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(_TANH_GELU * (x + 0.044715 * x**3))))
    if name == "gelu":
        from math import erf

        return np.asarray(0.5 * x * (1 + np.vectorize(erf, otypes=[x.dtype])(x / np.sqrt(2))))
    if name == "quick_gelu":
        return np.asarray(x * (0.5 + 0.5 * np.tanh(0.851 * x)))
    if name == "none":
        return x
    if name == "tanh":
        return np.tanh(x)
    if name == "sigmoid":
        return 0.5 + 0.5 * np.tanh(x / 2)
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    raise ConfigError(f"the model's activation {name!r} has no form here: choose Concept(activation=None)")


def _activated(concept: Concept, name: str, h: Array) -> Array:
    if concept.activation == "act|":
        h = activation(name, h)
    elif concept.activation == "-act|":
        h = -activation(name, -h)
    elif concept.activation == "act+|":
        h = activation(name, h) + h
    elif concept.activation == "-act+|":
        h = h - activation(name, -h)
    return normed(h, "z") if concept.znorm else h


def normed(x: Array, norm: str | None) -> Array:
    """Vectors [..., d] after a norm of :class:`Concept`; vectors without a length or spread stay 0."""
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdims=True)
    if norm == "l2":
        scale, out = np.linalg.norm(x, axis=-1, keepdims=True), x
    else:
        scale, out = np.sqrt((centred**2).mean(-1, keepdims=True)), centred if norm == "z" else x
    return np.asarray(out / np.where(scale > 0, scale, 1.0))


def _pooled(concept: Concept, h: Array, real: Array) -> Array:
    """[batch, d] of h [batch, pos, d]; real [batch, pos]."""
    if concept.pooling == "last":
        return np.asarray(h[np.arange(len(h)), real.sum(1) - 1])
    weights = real.astype(np.float64)
    if concept.pooling == "w1mean":
        weights = weights * np.arange(1, h.shape[1] + 1)
    return np.asarray(np.matmul((weights / weights.sum(1, keepdims=True))[:, None], h)[:, 0])


def _hidden(model: Model, rows: Sequence[Sequence[int]], index: int | str) -> tuple[Array, Array]:
    """Hidden states [batch, pos, d], float64, and which are real [batch, pos]."""
    longest = max(map(len, rows))
    real = np.arange(longest) < np.array([len(r) for r in rows])[:, None]
    if isinstance(index, str):
        ids = np.zeros(real.shape, np.int64)
        ids[real] = np.concatenate([np.asarray(r) for r in rows])
        table = model.W_E if index == "E" else model.W_U.T
        return table[ids].astype(np.float64), real
    n = model.config.n_layers
    if index < n or "ln_final.hook_out" not in model.sites():
        key = ("resid_pre", 0) if index == 0 else ("resid_post", index - 1)
        run = model.run(rows, capture=[key], stop_after_layer=max(index - 1, 0), logits=None)
        return run[key].astype(np.float64), real
    return model.run(rows, capture="ln_final.hook_out", logits=None)["ln_final.hook_out"].astype(np.float64), real


def token_rows(model: Model, texts: Sequence[Any]) -> list[list[int]]:
    """Ids of texts, or of what are ids already. Raises TokenError for an empty one."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
        raise ConfigError(f"texts: a list of texts or of lists of ids, not {type(texts).__name__}")
    rows = []
    for i, text in enumerate(texts):
        ids = np.asarray(model.to_tokens(text)[0]) if isinstance(text, str) else as_array(text, f"text {i}")
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise TokenError(f"text {i} is neither a text nor a list of ids, but {ids.dtype} {list(ids.shape)}")
        rows.append(ids.tolist())
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise TokenError(f"text {empty} is empty: it has no concept vector")
    return rows


def concept_vectors(model: Model, texts: Sequence[Any], concept: Concept | None = None, *, too_long: TooLong = "error",
                    at_once: int = 4096) -> Any:  # fmt: skip
    """Concept vectors of texts (or lists of ids): [text, d], or for "concat" a list of [tokens, d]; float64.

    A text longer than the context is an error, or with too_long="split" it is run in pieces of n_ctx tokens whose
    hidden states are then pooled together; nothing is left out. Texts run in batches of about `at_once` tokens, longest
    first; the result does not depend on them but for rounding. Raises TokenError (too long, empty), ConfigError.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> concept_vectors(model, [[1, 403, 407], [1, 403]], Concept("w1mean", layer="last")).shape
    (2, 64)
    """
    check_model(model)
    concept = Concept() if concept is None else concept
    check_type(Concept, "a Concept", concept=concept)
    check_counts(at_once=at_once)
    index = concept.index(model)
    if too_long not in ("error", "split"):
        raise ConfigError(f"too_long = {too_long!r}: 'error' or 'split'")
    rows = token_rows(model, texts)
    n_ctx = model.config.n_ctx
    out: list[Any] = [None] * len(rows)

    def states(batch: list[list[int]]) -> tuple[Array, Array]:
        h, real = _hidden(model, batch, index)
        return _activated(concept, model.config.act_fn, h), real

    short = [i for i, row in enumerate(rows) if len(row) <= n_ctx or isinstance(index, str)]
    for i in sorted(set(range(len(rows))) - set(short)):
        if too_long == "error":
            raise TokenError(f"text {i} has {len(rows[i])} tokens, the context holds {n_ctx}: too_long='split' runs it "
                             "in pieces")  # fmt: skip
        pieces = [states([rows[i][at : at + n_ctx]])[0][0] for at in range(0, len(rows[i]), n_ctx)]
        h = np.concatenate(pieces)
        whole = h if concept.pooling == "concat" else _pooled(concept, h[None], np.ones((1, len(h)), bool))[0]
        out[i] = normed(whole, concept.norm)
    short.sort(key=lambda i: -len(rows[i]))
    while short:
        size = max(1, at_once // len(rows[short[0]]))
        now, short = short[:size], short[size:]
        h, real = states([rows[i] for i in now])
        if concept.pooling == "concat":
            found: Any = [row[mask] for row, mask in zip(h, real, strict=True)]
        else:
            found = _pooled(concept, h, real)
        for i, vector in zip(now, found, strict=True):
            out[i] = normed(vector, concept.norm)
    return out if concept.pooling == "concat" else np.array(out).reshape(len(rows), model.config.d_model)


__all__ = ["ACTIVATIONS", "NORMS", "POOLINGS", "Concept", "activation", "concept_vectors", "normed", "token_rows"]
