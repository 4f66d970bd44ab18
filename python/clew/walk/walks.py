"""Walks through embedding space: lengths, angles and neighbours of the steps, and what each step is made of.

A *decoding walk* goes from position to position: its points are the vectors that the unembedding multiplies, so that
p(next = v) ∝ exp(c_t · u_v). An *encoding walk* goes through the layers at one position: its points are the residual
stream. Both are working definitions of ours, consistent with the paper's abstracts (Singh 2023, arXiv:2308.10874).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..brief import Brief
from ..errors import ConfigError, ShapeError, SiteError, TokenError
from ..geometry import Nearest, nearest_by
from ..geometry.search import METRICS
from ..inputs import as_array, check_counts, check_type
from ..model import Model, check_model
from ..run import Run

Array = NDArray[Any]

_FINAL = "ln_final.hook_out"


@dataclass(frozen=True)
class Steps(Brief):
    """Geometry of a path; made by :func:`measure`."""

    points: Array = field(repr=False)
    """[n, d], as the model gave them."""
    step_length: Array
    """‖x_{i+1} − x_i‖ [n − 1], float64."""
    turning_angle: Array
    """Angle between one step and the next, radians [n − 2]; NaN beside a step of length 0."""
    cosine_to_start: Array
    """cos(x_i, x_0) [n]; NaN for a zero vector."""
    cosine_to_end: Array
    """cos(x_i, x_{n−1}) [n]."""
    straightness: float
    """‖x_{n−1} − x_0‖ / Σ step lengths: 1 on a straight line; NaN for a path that stands still."""


def measure(points: ArrayLike) -> Steps:
    """Step lengths, turning angles, cosines to start and end, and straightness of a path [n, d], in float64.

    Raises ShapeError for what is no list of vectors.

    >>> path = measure([[0.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
    >>> path.step_length.tolist(), round(float(path.turning_angle[0]), 4), round(path.straightness, 4)
    ([1.0, 1.0], 1.5708, 0.7071)
    """
    given = as_array(points, "a path")
    if given.ndim != 2 or 0 in given.shape or given.dtype.kind not in "fiu":
        raise ShapeError(f"a path is real vectors [n, d], not {given.dtype} {list(given.shape)}")
    x = given.astype(np.float64)
    steps = np.diff(x, axis=0)
    length = np.linalg.norm(steps, axis=1)
    norms = np.linalg.norm(x, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = steps / length[:, None]
        # atan2 of half-vectors keeps small and straight angles exact, where arccos of a dot product loses them
        angle = 2 * np.arctan2(
            np.linalg.norm(unit[1:] - unit[:-1], axis=1), np.linalg.norm(unit[1:] + unit[:-1], axis=1)
        )
        to_start, to_end = x @ x[0] / (norms * norms[0]), x @ x[-1] / (norms * norms[-1])
        straight = float(np.linalg.norm(x[-1] - x[0]) / length.sum()) if length.sum() > 0 else float("nan")
    return Steps(given, length, angle, np.clip(to_start, -1, 1), np.clip(to_end, -1, 1), straight)


@dataclass(frozen=True)
class Walk(Steps):
    """A model's walk; made by :func:`decoding_walk` and :func:`encoding_walk`."""

    kind: str = ""
    """"decoding" or "encoding"."""
    labels: tuple[str, ...] = ()
    """What each point is: the token read, or the layer."""
    nearest: dict[str, Nearest] = field(default_factory=dict, repr=False)
    """Metric → the nearest tokens of every point [n, k]."""

    def table(self) -> str:
        """A line for each point: step to it, angle there, cosines, nearest tokens by each metric."""
        width = max((len(label) for label in self.labels), default=4)
        head = "".join(f"  nearest by {name:<12}" for name in self.nearest)
        lines = [f"{self.kind} walk, straightness {self.straightness:.3f}",
                 f"{'':<{width}}   step  angle  cos start  cos end{head}"]  # fmt: skip
        texts = {name: found.tokens() for name, found in self.nearest.items()}
        for i, label in enumerate(self.labels):
            step = f"{self.step_length[i - 1]:6.2f}" if i else " " * 6
            angle = f"{np.degrees(self.turning_angle[i - 1]):5.0f}°" if 0 < i < len(self.labels) - 1 else " " * 6
            near = "".join("  " + " ".join(repr(t) for t in row[i][:2]).ljust(23) for row in texts.values())
            lines.append(f"{label:<{width}} {step} {angle} {self.cosine_to_start[i]:10.3f} "
                         f"{self.cosine_to_end[i]:8.3f}{near}".rstrip())  # fmt: skip
        return "\n".join(lines)


def _labels(model: Model, ids: Array) -> tuple[str, ...]:
    if model._labeller is None:
        return tuple(str(int(i)) for i in ids)
    return tuple(repr(t) for t in model.to_str_tokens(ids))


def _one(run: Run) -> Run:
    if len(run.lengths) != 1:
        raise ShapeError(f"a walk is of one text, not of {len(run.lengths)}")
    return run


def _neighbours(model: Model, points: Array, k: int, metrics: Any) -> dict[str, Nearest]:
    if model.config.d_out is not None or not k or not len(metrics):
        return {}
    return nearest_by(model, points, k, metrics, of="W_U")


def _check(model: Model, k: Any, metrics: Any) -> None:
    check_model(model)
    check_counts(0, k=k)
    check_type((tuple, list), f"a list of {', '.join(map(repr, METRICS))}", metrics=metrics)


def _final_site(model: Model) -> str:
    return _FINAL if _FINAL in model.sites() else f"blocks.{model.config.n_layers - 1}.hook_resid_post"


def check_length(model: Model, n: int, what: str = "the text") -> None:
    """Raises TokenError for a text of n tokens that the context does not hold."""
    if n > model.config.n_ctx:
        raise TokenError(f"{what} has {n} tokens, the context holds {model.config.n_ctx}: split it")


def decoding_walk(model: Model, tokens: Any, k: int = 5, metrics: Any = METRICS) -> Walk:
    """The walk of the successive final context vectors c_t of a text, with the k tokens nearest to each.

    c_t is the final norm's output; tokens are the columns of W_U. k = 0 or a model that writes vectors: no neighbours.
    Raises ShapeError for several texts, TokenError for one longer than the context, ConfigError for other metrics.

    >>> import clew
    >>> walk = decoding_walk(clew.load("stories260K"), [1, 403, 407, 261], k=3)
    >>> walk.points.shape, walk.step_length.shape, walk.nearest["cosine"].ids.shape
    ((4, 64), (3,), (4, 3))
    """
    _check(model, k, metrics)
    run = _one(model.run(tokens, capture=[_final_site(model)], logits=None))
    check_length(model, int(run.lengths[0]))
    points = run[_final_site(model)][0]
    path = measure(points)
    labels = _labels(model, run.tokens[0]) if run.tokens is not None else tuple(map(str, range(len(points))))
    return Walk(**vars(path), kind="decoding", labels=labels, nearest=_neighbours(model, points, k, metrics))


def encoding_walk(model: Model, tokens: Any, position: int = -1, k: int = 5, metrics: Any = METRICS,
                  normed: bool = True) -> Walk:  # fmt: skip
    """The walk of one position's residual stream through the layers, with the k tokens nearest to each point.

    Neighbours are those of the point itself, or, `normed`, of the point after the final norm. Raises as
    `decoding_walk`.

    >>> import clew
    >>> walk = encoding_walk(clew.load("stories260K"), [1, 403, 407, 261], k=3)
    >>> walk.labels
    ('start', '0', '1', '2', '3', '4')
    """
    from ..geometry import norm_geometry

    _check(model, k, metrics)
    run = _one(model.run(tokens, capture=[("resid_pre", 0), "resid_post"], positions=[position], logits=None))
    check_length(model, int(run.lengths[0]))
    points = np.concatenate([run["resid_pre", 0][0], run.stack("resid_post")[:, 0, 0]])
    looked = norm_geometry(model)(points) if normed and _FINAL in model.sites() else points
    labels = ("start", *map(str, range(model.config.n_layers)))
    found = _neighbours(model, looked, k, metrics)
    return Walk(**vars(measure(points)), kind="encoding", labels=labels, nearest=found)


@dataclass(frozen=True)
class Split(Brief):
    """What steps are made of; made by :func:`split_encoding` and :func:`split_decoding`. step = Σ of the parts."""

    step: Array
    """[..., d]"""
    aggregation: Array
    """What attention, the data-dependent weighted sum over positions, puts in."""
    filtering: Array
    """What maps of each position alone put in: MLPs; for walks over positions the embeddings too."""
    axes: tuple[str, ...]

    def error(self) -> float:
        """Largest deviation of the parts' sum from the step, relative to the largest value: rounding."""
        largest = float(np.abs(self.step).max()) or 1.0
        return float(np.abs(self.aggregation + self.filtering - self.step).max()) / largest

    def share(self) -> Array:
        """Aggregation's share of each step, along the step: aggregation · step / ‖step‖²; filtering has the rest."""
        squared = np.einsum("...d,...d->...", self.step, self.step)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.einsum("...d,...d->...", self.aggregation, self.step) / squared)


def _branches(model: Model, tokens: Any) -> tuple[Run, Array, Array, Array]:
    """Run, stream [layer + 1, batch, pos, d], attention and MLP outputs [layer, batch, pos, d] in float64."""
    check_model(model)
    names: list[Any] = [("resid_pre", 0), "resid_post", "attn_out"]
    if not model.config.n_layers:
        raise ConfigError("a model without layers has no steps to split")
    if not model.config.attn_only:
        names.append("mlp_out")
    run = model.run(tokens, capture=names, logits=None)
    stream = np.concatenate([run["resid_pre", 0][None], run.stack("resid_post")]).astype(np.float64)
    attention = run.stack("attn_out").astype(np.float64)
    try:
        mlp = run.stack("mlp_out").astype(np.float64)
    except SiteError:
        mlp = np.zeros_like(attention)
    return run, stream, attention, mlp


def split_encoding(model: Model, tokens: Any) -> Split:
    """Each layer's step of the residual stream, as aggregation + filtering [layer, batch, pos, d], float64.

    The identity resid_post − resid_pre = attn_out + mlp_out: exact but for rounding, on every architecture, on models
    that read vectors and on linear attention. What the attention's output passes on its way (W_O, a norm behind it)
    counts to it.

    >>> import clew
    >>> split = split_encoding(clew.load("stories260K"), [1, 403, 407])
    >>> split.step.shape, split.error() < 1e-6
    ((5, 1, 3, 64), True)
    """
    _, stream, attention, mlp = _branches(model, tokens)
    return Split(np.diff(stream, axis=0), attention, mlp, ("layer", "batch", "pos", "d_model"))


def split_decoding(model: Model, tokens: Any) -> Split:
    """Each step of the last stream to the next position, as aggregation + filtering [batch, pos − 1, d]; float64.

    Filtering holds the difference of the embeddings too. The final norm comes after: it is one more filter, and none of
    a sum's parts. Padding behind shorter texts gives steps of no meaning.

    >>> import clew
    >>> split_decoding(clew.load("stories260K"), [1, 403, 407]).error() < 1e-6
    True
    """
    _, stream, attention, mlp = _branches(model, tokens)
    return Split(
        np.diff(stream[-1], axis=1),
        np.diff(attention.sum(0), axis=1),
        np.diff(stream[0] + mlp.sum(0), axis=1),
        ("batch", "pos", "d_model"),
    )


def linear_recurrence(model: Model, tokens: Any, layer: int = 0) -> tuple[Array, Array]:
    """Causal linear attention as a recurrence: S_t = S_{t−1} + k_t v_tᵀ (aggregation), z_t = q_t S_t / n_t (filter).

    Gives z [batch, pos, head, d_head] of the recurrence, and as the forward pass has it. Raises ConfigError for a model
    whose attention is no such recurrence.

    >>> import clew
    >>> config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=9, attention_kind="linear")
    >>> ours, forward = linear_recurrence(clew.Model.from_config(config, dtype="float64"), [1, 2, 3])
    >>> bool(np.allclose(ours, forward))
    True
    """
    check_model(model)
    c = model.config
    if c.attention_kind != "linear" or c.attention_dir != "causal" or c.window_size is not None or c.exclude_self:
        raise ConfigError("linear_recurrence: the model must have causal linear attention over the whole past")
    rotary, normed = c.positional_embedding_type == "rotary" and c.rotary_dim > 0, c.use_qk_norm
    names = ["rot_q", "rot_k"] if rotary else ["q_normed", "k_normed"] if normed else ["q", "k"]
    run = model.run(tokens, capture=[(name, layer) for name in (*names, "v", "z")], logits=None)
    q, k, v = (run[name, layer].astype(np.float64) for name in (*names, "v"))
    group = c.n_heads // c.n_key_value_heads
    state = np.cumsum(k[..., :, None] * v[..., None, :], axis=1).repeat(group, axis=2)
    n = np.arange(1, q.shape[1] + 1)[:, None, None] if c.linear_attn_n is None else float(c.linear_attn_n)
    return np.einsum("bphe,bphef->bphf", q, state) / (n * c.attn_scale), run["z", layer]


__all__ = [
    "METRICS", "Split", "Steps", "Walk", "check_length", "decoding_walk", "encoding_walk", "linear_recurrence",
    "measure", "split_decoding", "split_encoding",
]  # fmt: skip
