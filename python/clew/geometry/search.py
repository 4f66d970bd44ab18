"""Nearest tokens: which rows of an embedding lie closest to some vectors, searched in the core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..brief import Brief
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_type, is_word
from ..model import Model
from ..weights import whole

Array = NDArray[Any]
Metric = Literal["dot", "cosine", "l2"]

METRICS: tuple[Metric, ...] = get_args(Metric)
"""In the order of the core's numbers."""


@dataclass(frozen=True)
class Nearest(Brief):
    """The nearest rows to each vector, best first; made by :func:`nearest`."""

    ids: NDArray[np.int32]
    """Rows' numbers, of a model the token ids [..., k]."""
    scores: NDArray[np.float64]
    """Dot products, cosines, or Euclidean distances [..., k]."""
    metric: str
    model: Model | None = field(default=None, repr=False, metadata={"json": False})

    def tokens(self) -> Array:
        """Texts of the ids, an array of str [..., k]; the ids as text without a tokenizer."""
        flat = [int(i) for i in self.ids.reshape(-1)]
        tokenizer = None if self.model is None else self.model._labeller
        texts = [str(i) for i in flat] if tokenizer is None else list(tokenizer.to_str_tokens(flat))
        return np.array(texts, dtype=object).reshape(self.ids.shape)

    def table(self) -> str:
        """One line a vector: its nearest rows, with scores."""
        texts = self.tokens().reshape(-1, self.ids.shape[-1])
        scores = self.scores.reshape(texts.shape)
        rows = (
            ", ".join(f"{t!r} {s:.3g}" for t, s in zip(line, row, strict=True))
            for line, row in zip(texts, scores, strict=True)
        )
        return "\n".join(f"{i:>5}  {row}" for i, row in enumerate(rows))


def _rows(model_or_matrix: Any, of: str) -> tuple[Array, Model | None]:
    """The matrix [rows, d] that is searched, and the model it belongs to."""
    if isinstance(model_or_matrix, Model):
        if not is_word(of, ("W_E", "W_U")):
            raise ConfigError(f"nearest: of = {of!r}: 'W_E' or 'W_U'")
        return (model_or_matrix.W_E if of == "W_E" else model_or_matrix.W_U.T), model_or_matrix
    return as_array(model_or_matrix, "nearest: the matrix"), None


def _placed(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array in memory that products may read, with strides that the core takes; a copy where it must be."""
    strides = [s for s, n in zip(array.strides, array.shape, strict=True) if n > 1]
    if array.dtype == dtype and _core.in_slab(array) and min(strides, default=1) > 0:
        return array
    out = _core.empty(array.shape, dtype)
    out[...] = array
    return out


def nearest(
    model_or_matrix: Any, vectors: ArrayLike, k: int = 10, metric: Metric = "dot", *, of: str = "W_E"
) -> Nearest:
    """The k rows of a matrix that are nearest to each vector; the matrix of all scores is never in memory.

    Parameters
    ----------
    model_or_matrix
        A model, whose embedding (`of="W_E"`, rows are tokens) or unembedding (`of="W_U"`, columns are) is searched; or
        a matrix [rows, d].
    vectors
        [..., d]; they are compared in the matrix's dtype (float32 unless that is float64).
    k
        How many; 1 to the number of rows.
    metric
        "dot": the largest x · w; "cosine": the largest x · w / (‖x‖ ‖w‖), 0 for a zero vector; "l2": the smallest
        ‖x − w‖. Of equal scores the smaller id comes first.

    Candidates (k and eight more) are found with products of the matrix's dtype, their scores computed and ordered in
    double; the same bits for any number of threads. A row can be missed only where more than eight others lie within
    the rounding of those products: give float64 for distances that are tiny beside ‖x‖. Ctrl-C stops it.

    Raises
    ------
    ShapeError
        Arrays that do not fit (both shapes), are no real numbers, or hold NaN or infinity.
    ConfigError
        Another metric or `of`, k out of range.

    Example
    -------
    >>> import clew
    >>> from clew.geometry import nearest
    >>> model = clew.load("stories260K")
    >>> found = nearest(model, model.W_E[[403, 407]], k=3, metric="cosine")
    >>> found.ids.shape, found.ids[:, 0].tolist()
    ((2, 3), [403, 407])
    """
    return nearest_by(model_or_matrix, vectors, k, (metric,), of=of)[metric]


def nearest_by(
    model_or_matrix: Any, vectors: ArrayLike, k: int = 10, metrics: Sequence[Metric] = METRICS, *, of: str = "W_E"
) -> dict[str, Nearest]:
    """Metric → what :func:`nearest` finds by it, to the bit; all of them share the products, which cost the most.

    Raises as `nearest`, and ConfigError for a metric that comes twice, or none.

    >>> found = nearest_by(np.eye(4), [3.0, 1.0, 0.0, 0.0], k=1)
    >>> {name: one.ids.tolist() for name, one in found.items()}
    {'dot': [0], 'cosine': [0], 'l2': [0]}
    """
    check_type(Sequence, f"a list of {', '.join(map(repr, METRICS))}", metrics=metrics)
    for metric in metrics:
        if not isinstance(metric, str) or metric not in METRICS:
            raise ConfigError(f"nearest: metric = {metric!r}: {', '.join(map(repr, METRICS))}")
    if not metrics or len(set(metrics)) != len(metrics):
        raise ConfigError(f"nearest: metrics = {tuple(metrics)}: one or more, each once")
    rows, model = _rows(model_or_matrix, of)
    x = as_array(vectors, "nearest: vectors")
    if rows.ndim != 2 or 0 in rows.shape or x.ndim < 1 or x.shape[-1] != rows.shape[1]:
        raise ShapeError(f"nearest: vectors {list(x.shape)} among rows {list(rows.shape)}: the last axes must be equal")
    for what, array in (("vectors", x), ("the matrix", rows)):
        if array.dtype.kind not in "fiub":
            raise ShapeError(f"nearest: {what} must be real numbers, not {array.dtype}")
    count = whole(k, "nearest: k")
    if not 1 <= count <= len(rows):
        raise ConfigError(f"nearest: k = {count} of {len(rows)} rows")
    dtype = np.dtype(np.float64 if rows.dtype == np.float64 else np.float32)
    flat = _placed(x.reshape(-1, x.shape[-1]), dtype)
    placed = _placed(rows, dtype)
    for what, array in (("vector", flat), *([] if model is not None else [("row", placed)])):
        bad = _core.first_bad(array) if array.size else -1
        if bad >= 0:
            raise ShapeError(f"nearest: {what} {bad // array.shape[1]} holds NaN or infinity")
    ids, scores = _core.nearest(flat, placed, count, tuple(METRICS.index(name) for name in metrics))
    shape = (*x.shape[:-1], count)
    return {
        name: Nearest(own.reshape(shape), score.reshape(shape), name, model)
        for name, own, score in zip(metrics, ids, scores, strict=True)
    }


__all__ = ["METRICS", "Nearest", "nearest", "nearest_by"]
