"""Words on their way through the layers: trajectories, distances, refinement, contextual embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import corpus, lens, norm
from ..brief import Brief
from ..errors import ConfigError, ShapeError, TokenError, install
from ..inputs import check_counts, check_numbers, check_seed, is_word, real_array, whole
from ..model import Model, check_model
from .norms import cosines, embeddings, texts
from .search import nearest

Array = NDArray[Any]
Method = Literal["pca", "umap"]

PROMPT = "To kill two birds with one stone"
"""The phrase of the paper's figure."""


# ---- Drawing in a few dimensions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projection(Brief):
    """A map to a few dimensions, fitted to rows of an embedding; made by :func:`fit_projection`."""

    method: Method
    dims: int
    explained: Array | None
    """Share of the variance along each axis [dims]; None for UMAP, which has no such thing."""
    _mean: Array = field(repr=False, metadata={"json": False})
    _axes: Any = field(repr=False, metadata={"json": False})

    def __call__(self, x: ArrayLike) -> Array:
        """x [..., d] in the few dimensions [..., dims], float64. Raises ShapeError."""
        vectors = real_array(x, "vectors")
        if vectors.ndim < 1 or vectors.shape[-1] != len(self._mean):
            raise ShapeError(f"vectors {list(vectors.shape)}: the projection was fitted to rows of {len(self._mean)}")
        if self.method == "pca":
            return np.asarray((vectors - self._mean) @ self._axes)
        flat = self._axes.transform(vectors.reshape(-1, vectors.shape[-1]))
        return np.asarray(flat, np.float64).reshape(*vectors.shape[:-1], self.dims)


def fit_projection(
    rows: ArrayLike, dims: int = 3, method: Method = "pca", *, max_rows: int = 10_000, neighbours: int = 15,
    min_dist: float = 0.1, seed: int = 0,
) -> Projection:  # fmt: skip
    """Fits principal components, or UMAP, to rows [n, d], at most `max_rows` of them drawn by the seed.

    The defaults are those of the paper's figure, which used UMAP. Axes of PCA point to where their largest coordinate
    is positive. UMAP needs umap-learn (`pip install '.[umap]'` in the checkout).

    Raises ShapeError, ConfigError (dims out of range, another method), ImportError.

    >>> points = fit_projection(np.random.default_rng(0).standard_normal((50, 5)), 2)(np.zeros((4, 5)))
    >>> points.shape
    (4, 2)
    """
    x = real_array(rows, "rows")
    if x.ndim != 2 or len(x) < 2:
        raise ShapeError(f"rows {list(x.shape)}: [n, d] with n at least 2")
    if not is_word(method, ("pca", "umap")):
        raise ConfigError(f"method = {method!r}: 'pca' or 'umap'")
    if not 1 <= (dims := whole(dims, "dims")) <= x.shape[1]:
        raise ConfigError(f"dims = {dims} of {x.shape[1]}")
    if not np.isfinite(x).all():
        raise ConfigError("rows hold NaN or infinity: there are no directions of largest variance")
    if whole(max_rows, "max_rows") < 2:
        raise ConfigError(f"max_rows = {max_rows}: at least 2")
    check_counts(2, neighbours=neighbours)
    check_numbers(min_dist=min_dist)
    if not 0 <= min_dist <= 1:
        raise ConfigError(f"min_dist = {min_dist}: from 0 to 1")
    seed = check_seed(seed)
    if len(x) > max_rows:
        x = x[np.sort(np.random.default_rng(seed).choice(len(x), max_rows, replace=False))]
    if method == "umap":
        try:
            import umap
        except ImportError as error:
            raise ImportError(f"method = 'umap' needs umap-learn: {install('umap')}") from error
        reducer = umap.UMAP(n_neighbors=neighbours, min_dist=min_dist, n_components=dims, random_state=seed, n_jobs=1)
        return Projection("umap", dims, None, np.zeros(x.shape[1]), reducer.fit(x))
    mean = x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x - mean, rowvar=False, bias=True).reshape(x.shape[1], -1))
    axes = vectors[:, ::-1][:, :dims]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(dims)])
    total = values.sum()
    explained = values[::-1][:dims] / total if total > 0 else np.zeros(dims)
    return Projection("pca", dims, explained, mean, axes)


# ---- One word's way -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectory(Brief):
    """A token's way through the layers, as the final norm would show it; made by :func:`trajectory`.

    Axis 0 of everything: before the first block, then after each.
    """

    tokens: tuple[int, ...]
    position: int
    target: int
    """The token that follows."""
    points: Array
    """LN_f(x_l) in the projection's dimensions [layer + 1, dims]."""
    start_point: Array
    """The token's own embedding there [dims]."""
    target_point: Array
    """The next token's embedding there [dims]."""
    projected: Array
    """Distance to the next token's embedding in the projection [layer + 1]."""
    l2: Array
    """The same in the space itself [layer + 1]."""
    cosine: Array
    """Cosine to the next token's embedding, in the space itself [layer + 1]."""
    dot: Array
    """Dot product with it [layer + 1]."""
    nearest_ids: NDArray[np.int32]
    """Tokens whose embeddings have the largest dot product with it [layer + 1, k]."""
    projection: Projection
    background: Array = field(repr=False, metadata={"json": False})
    """Some of the rows that the projection was fitted to, there [n, dims]."""
    model: Model = field(repr=False, metadata={"json": False})

    def table(self) -> str:
        """A line for each layer."""
        own, following = texts(self.model, [self.tokens[self.position], self.target])
        lines = [
            f"{own} on its way to {following}",
            f"layer  {self.projection.method + ' distance':>13}        L2  cosine      dot  nearest",
        ]
        for row in range(len(self.l2)):
            lines.append(
                f"{row - 1 if row else 'start':>5}  {self.projected[row]:13.3f}  {self.l2[row]:8.3f}  "
                f"{self.cosine[row]:6.3f}  {self.dot[row]:7.2f}  {' '.join(texts(self.model, self.nearest_ids[row]))}"
            )
        return "\n".join(lines)


def trajectory(
    model: Model, tokens: Any = PROMPT, position: int = -2, method: Method = "pca", dims: int = 3, *,
    max_rows: int = 10_000, k: int = 3, seed: int = 0,
) -> Trajectory:  # fmt: skip
    """The way of one token's LN_f(x_l) over the layers, drawn in a few dimensions, with distances in both spaces.

    Molina 2023: the second-to-last token of the prompt, in a 3-D UMAP of 10,000 rows of W_E; PCA is the default here.
    Distances are to the embedding of the token that follows.

    Raises TokenError (one sequence of two tokens or more; no tokenizer), ShapeError (position), and what
    :func:`fit_projection` raises.

    >>> import clew
    >>> way = trajectory(clew.load("shakespeare"))
    >>> way.points.shape, way.l2.shape
    ((5, 3), (5,))
    """
    check_counts(k=k)
    seed = check_seed(seed)
    rows = corpus.sequences(model, tokens)
    if len(rows) != 1 or len(rows[0]) < 2:
        raise TokenError("trajectory: one sequence of two tokens or more")
    ids = rows[0]
    n = len(ids)
    at = whole(position, "position")
    if not -n <= at < n or at % n == n - 1:
        raise ShapeError(f"position = {position} of {n} tokens: a token that another follows")
    at %= n
    run = model.run(ids, capture=[("resid_pre", 0), "resid_post"], positions=[at], logits=None)
    states = norm.normalise(model, corpus.stream(run)[:, 0, 0])
    every = embeddings(model)
    projection = fit_projection(every, dims, method, max_rows=max_rows, seed=seed)
    goal = every[ids[at + 1]]
    points, shown = projection(states), projection(every[[ids[at], ids[at + 1]]])
    some = np.random.default_rng(seed).permutation(len(every))[:500]
    return Trajectory(
        tuple(ids), at, ids[at + 1], points, shown[0], shown[1], np.linalg.norm(points - shown[1], axis=-1),
        np.linalg.norm(states - goal, axis=-1), cosines(states, np.broadcast_to(goal, states.shape)), states @ goal,
        nearest(every.astype(model.dtype), states, min(k, len(every))).ids, projection, projection(every[some]), model,
    )  # fmt: skip


# ---- Distances over many sentences ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Distances(Brief):
    """Towards the next token and away from the current one, by layer and position; made by :func:`distances`.

    Axis 0 of every array: before the first block, then after each.
    """

    log_ratio: Array
    """Mean over sentences of LN_f(x_l) · (u_{t+1} − u_t) + b_{t+1} − b_t, nats [layer + 1, pos]; NaN where none."""
    error: Array
    """Standard error of that mean [layer + 1, pos]; NaN for fewer than two sentences."""
    count: NDArray[np.int64]
    """Sentences at each position [pos]."""
    mean: Array
    """Mean of the same over all tokens [layer + 1]."""
    share: Array
    """Share of tokens for which it is positive [layer + 1]: the next token is likelier than the current one."""
    l2_next: Array
    l2_current: Array
    """Mean Euclidean distance, in the space itself, from LN_f(x_l) to the next and the current token's row of W_Uᵀ
    [layer + 1]."""
    cosine_next: Array
    cosine_current: Array
    """Mean cosine [layer + 1]."""
    closer: float
    """Share of tokens whose LN_f(x) is nearer (L2) to the next token's row after the last block than before the
    first."""
    closer_by_angle: float
    """The same by cosine."""

    def table(self) -> str:
        """A line for each layer."""
        lines = ["layer  log p(next)/p(current)  positive  L2 next  L2 current  cos next  cos current"]
        for row in range(len(self.mean)):
            lines.append(
                f"{row - 1 if row else 'start':>5}  {self.mean[row]:22.3f}  {self.share[row]:8.1%}  "
                f"{self.l2_next[row]:7.2f}  {self.l2_current[row]:10.2f}  {self.cosine_next[row]:8.3f}  "
                f"{self.cosine_current[row]:11.3f}"
            )
        return "\n".join(lines)


def _pairs(model: Model, tokens: Any) -> Iterator[tuple[Array, Array, Array, Array]]:
    """(streams through the final norm [layer + 1, n, d], positions, tokens, next tokens [n]) of each batch."""
    for run in corpus.runs(model, tokens, [("resid_pre", 0), "resid_post"]):
        assert run.tokens is not None
        seq, pos = np.nonzero(np.arange(run.tokens.shape[1] - 1) < run.lengths[:, None] - 1)
        if len(seq):
            states = norm.normalise(model, corpus.stream(run)[:, seq, pos])
            yield states, pos, run.tokens[seq, pos], run.tokens[seq, pos + 1]


def distances(model: Model, tokens: Any) -> Distances:
    """LN_f(x_l) · (u_{t+1} − u_t) by layer and position, with distances in the space itself.

    After the last block this is log p(next) − log p(current), from the logits (before a soft-cap). Molina 2023's
    distance experiment, with rows of W_E; here columns of W_U and b_U, which is the same where they are tied.

    tokens: whatever `model.run` takes, or :class:`clew.corpus.Windows`.

    Raises TokenError (no token that another follows), ConfigError (another output vocabulary).

    >>> import clew
    >>> found = distances(clew.load("stories260K"), [[1, 403, 407, 261, 378]])
    >>> found.log_ratio.shape, found.mean.shape
    ((6, 4), (6,))
    """
    check_model(model)
    if model.config.d_vocab_out != model.config.d_vocab:
        raise ConfigError("distances: the model reads and writes different vocabularies")
    u, b = model.W_U.astype(np.float64).T, model.b_U.astype(np.float64)
    layers = model.config.n_layers + 1
    rows, places = [], []
    next_l2: list[Array] = []
    current_l2: list[Array] = []
    next_cos: list[Array] = []
    current_cos: list[Array] = []
    for states, pos, current, following in _pairs(model, tokens):
        after, before = u[following], u[current]
        rows.append(np.einsum("lnd,nd->ln", states, after - before) + b[following] - b[current])
        places.append(pos)
        for goal, l2, cosine in ((after, next_l2, next_cos), (before, current_l2, current_cos)):
            l2.append(np.linalg.norm(states - goal, axis=-1))
            cosine.append(cosines(states, np.broadcast_to(goal, states.shape)))
    if not rows:
        raise TokenError("distances: no token that another one follows")
    values, where = np.concatenate(rows, axis=1), np.concatenate(places)
    n_pos = int(where.max()) + 1
    count = np.bincount(where, minlength=n_pos)
    log_ratio, error = np.full((layers, n_pos), np.nan), np.full((layers, n_pos), np.nan)
    for p in range(n_pos):
        own = values[:, where == p]
        if own.shape[1]:
            log_ratio[:, p] = own.mean(1)
        if own.shape[1] > 1:
            error[:, p] = own.std(1, ddof=1) / np.sqrt(own.shape[1])
    far_next, far_current = np.concatenate(next_l2, axis=1), np.concatenate(current_l2, axis=1)
    turned = np.concatenate(next_cos, axis=1)
    return Distances(
        log_ratio, error, count, values.mean(1), (values > 0).mean(1), far_next.mean(1), far_current.mean(1),
        np.nanmean(turned, 1), np.nanmean(np.concatenate(current_cos, axis=1), 1),
        float((far_next[-1] < far_next[0]).mean()), float((turned[-1] > turned[0]).mean()),
    )  # fmt: skip


# ---- Scores for the abstract's claims -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refinement(Brief):
    """How predictions come about layer by layer; made by :func:`refinement`."""

    divergence: Array
    """Mean Kullback-Leibler divergence from the model's prediction to the logit lens's, nats [layer]; 0 at the last."""
    angle: Array
    """Mean angle by which each block turns LN-centred streams, degrees [layer]."""
    total_angle: float
    """Mean angle between the first and the last stream, degrees."""

    def table(self) -> str:
        """A line for each layer."""
        lines = ["layer  KL to the output  turn"]
        for row in range(len(self.angle)):
            last = "  (the output itself)" if row == len(self.angle) - 1 else ""
            lines.append(f"{row:>5}  {self.divergence[row]:16.3f}  {self.angle[row]:5.1f}°{last}")
        return "\n".join(lines + [f"from the first stream to the last: {self.total_angle:.1f}°"])


def refinement(model: Model, tokens: Any) -> Refinement:
    """Divergence of each layer's lens from the output, and the angle that each block adds (ours, for Molina's claim).

    Angles are those on the norm's sphere: of streams less their mean (LayerNorm) or as they are (RMSNorm).

    Raises TokenError where there is no token.

    >>> import clew
    >>> refinement(clew.load("stories260K"), [[1, 403, 407, 261, 378]]).divergence.shape
    (5,)
    """
    rows = corpus.sequences(model, tokens)
    turns, whole_turn = [], []
    for run in corpus.runs(model, rows, [("resid_pre", 0), "resid_post"]):
        real = np.arange(int(run.lengths.max())) < run.lengths[:, None]
        states = norm.centre(model.config, corpus.stream(run)[:, real])
        turns.append(_degrees(states[:-1], states[1:]))
        whole_turn.append(_degrees(states[0], states[-1]))
    angle = np.nanmean(np.concatenate(turns, axis=1), axis=1)
    batches = [rows[i : i + 16] for i in range(0, len(rows), 16)]
    return Refinement(lens.kl_divergence(model, batches), angle, float(np.nanmean(np.concatenate(whole_turn))))


def _degrees(a: Array, b: Array) -> Array:
    return np.asarray(np.degrees(np.arccos(np.clip(cosines(a, b), -1, 1))))


@dataclass(frozen=True)
class Contextual(Brief):
    """How alike streams of one word are in different places; made by :func:`contextual`. Axis 0: start, then layers."""

    same: Array
    """Mean cosine between two places of one token [layer + 1]."""
    different: Array
    """Mean cosine between places of different tokens [layer + 1]: the anisotropy."""
    corrected: Array
    """same − different [layer + 1]."""
    pairs: int
    """Pairs of each kind."""

    def table(self) -> str:
        """A line for each layer."""
        lines = [f"layer  same word  different  corrected   ({self.pairs} pairs of each)"]
        for row in range(len(self.same)):
            lines.append(
                f"{row - 1 if row else 'start':>5}  {self.same[row]:9.3f}  {self.different[row]:9.3f}  "
                f"{self.corrected[row]:9.3f}"
            )
        return "\n".join(lines)


def contextual(model: Model, tokens: Any, pairs: int = 2000, seed: int = 0) -> Contextual:
    """Cosine between streams of the same token in two places, less that of different tokens, by layer.

    Ethayarajh 2019's self-similarity with its correction for anisotropy, as the score for the claim that embeddings
    become contextual (ours). Position 0, where models rest attention, is left out; pairs are drawn by the seed, a token
    as often as it comes.

    Raises TokenError when no token occurs twice, ConfigError (pairs below 1).

    >>> import clew
    >>> found = contextual(clew.load("shakespeare"), [[5, 6, 7, 6, 5, 8], [5, 6, 8, 9, 7, 7]], pairs=20)
    >>> found.same.shape
    (5,)
    """
    check_counts(pairs=pairs)
    seed = check_seed(seed)
    parts, ids = [], []
    for run in corpus.runs(model, tokens, [("resid_pre", 0), "resid_post"]):
        assert run.tokens is not None
        place = np.arange(run.tokens.shape[1])
        real = (place < run.lengths[:, None]) & (place > 0)
        parts.append(norm.centre(model.config, corpus.stream(run)[:, real]))
        ids.append(run.tokens[real])
    token = np.concatenate(ids) if ids else np.zeros(0, int)
    order = np.argsort(token, kind="stable")
    values, first, count = np.unique(token[order], return_index=True, return_counts=True)
    twice = np.flatnonzero(count > 1)
    if not twice.size or len(values) < 2:
        raise TokenError("contextual: no token occurs twice behind position 0, or all are one token")
    rng = np.random.default_rng(seed)
    group = rng.choice(twice, pairs, p=count[twice] / count[twice].sum())
    one = rng.integers(0, count[group])
    other = (one + rng.integers(1, count[group])) % count[group]
    same = order[first[group] + one], order[first[group] + other]
    a = rng.integers(0, len(token), pairs)
    b = rng.integers(0, len(token), pairs)
    while (clash := token[a] == token[b]).any():
        b[clash] = rng.integers(0, len(token), int(clash.sum()))
    states = np.concatenate(parts, axis=1)
    alike = np.nanmean(cosines(states[:, same[0]], states[:, same[1]]), axis=1)
    apart = np.nanmean(cosines(states[:, a], states[:, b]), axis=1)
    return Contextual(alike, apart, alike - apart, pairs)


__all__ = [
    "PROMPT",
    "Contextual",
    "Distances",
    "Projection",
    "Refinement",
    "Trajectory",
    "contextual",
    "distances",
    "fit_projection",
    "refinement",
    "trajectory",
]
