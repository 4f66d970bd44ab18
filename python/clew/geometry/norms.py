"""Layer norm as geometry: a projection, a sphere, an ellipsoid and a shift; and what it does to word embeddings."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import norm
from ..brief import Brief
from ..errors import ConfigError, ShapeError, SiteError
from ..inputs import check_counts, check_type, is_word, real_array
from ..model import Model, check_model

Array = NDArray[Any]


@dataclass(frozen=True)
class NormStages(Brief):
    """A norm's input on its way to the output, all [..., d_model], float64."""

    projected: Array
    """LayerNorm: x less its component along **1**; RMSNorm: x itself."""
    spherical: Array
    """The same direction at length `radius`."""
    ellipsoidal: Array
    """Times the weight γ."""
    shifted: Array
    """Plus the bias β: the norm's output."""
    radius: Array
    """Length of `spherical` [...]: √(d v / (v + ε)), v the mean square of `projected`."""


@dataclass(frozen=True)
class NormGeometry:
    """A norm of a model as a map of space (Molina 2023, section 2); made by :func:`norm_geometry`."""

    name: str
    eps: float
    gamma: Array
    """Weight [d_model]; ones where the norm has none."""
    beta: Array
    """Bias [d_model]; zeros where the norm has none."""
    normal: Array | None
    """Unit vector 1/√d · **1** that LayerNorm projects out [d_model]; None for RMSNorm, which projects nothing out."""

    @property
    def radius(self) -> float:
        """√d_model: the sphere's radius for inputs whose variance is far above ε."""
        return float(np.sqrt(len(self.gamma)))

    def project(self, x: ArrayLike) -> Array:
        """x less its component along `normal`; a copy for RMSNorm."""
        out = _vectors(x, len(self.gamma))
        return out if self.normal is None else out - (out @ self.normal)[..., None] * self.normal

    def stages(self, x: ArrayLike) -> NormStages:
        """Projection, sphere, ellipsoid and shift of x [..., d_model]; a vector without variance stays in the middle.

        Raises ShapeError when the last axis is not d_model.
        """
        projected = self.project(x)
        square = np.square(projected).mean(-1)
        # √(d v / (v + ε)), with a zero vector left where it is when ε is 0
        ratio = np.divide(square, square + self.eps, out=np.zeros_like(square), where=square + self.eps > 0)
        radius = np.sqrt(len(self.gamma) * ratio)
        length = np.linalg.norm(projected, axis=-1)
        scale = np.divide(radius, length, out=np.zeros_like(radius), where=length > 0)
        spherical = projected * scale[..., None]
        ellipsoidal = spherical * self.gamma
        return NormStages(projected, spherical, ellipsoidal, ellipsoidal + self.beta, radius)

    def __call__(self, x: ArrayLike) -> Array:
        """The norm's output for x [..., d_model], float64."""
        return self.stages(x).shifted

    @functools.cached_property
    def axes(self) -> tuple[Array, Array]:
        """Semi-axes of the ellipsoid that the sphere becomes: lengths [n], longest first, and directions [n, d_model].

        LayerNorm: n = d_model − 1 singular values and left singular vectors of diag(γ) on the projected space, times
        √d; RMSNorm: n = d_model, √d |γ| along the coordinates.
        """
        if self.normal is None:
            order = np.argsort(-np.abs(self.gamma), kind="stable")
            return self.radius * np.abs(self.gamma[order]), np.eye(len(self.gamma))[order]
        # columns 2 … d of an orthogonal matrix whose first is the normal span the projected space
        basis = np.linalg.qr(np.column_stack([self.normal, np.eye(len(self.gamma))[:, :-1]]))[0][:, 1:]
        u, s, _ = np.linalg.svd(self.gamma[:, None] * basis, full_matrices=False)
        return self.radius * s, u.T

    def __repr__(self) -> str:
        kind = "RMSNorm: no projection" if self.normal is None else "LayerNorm: projects along 1"
        return (
            f"NormGeometry {self.name}: {kind}, radius √{len(self.gamma)} = {self.radius:.2f}, "
            f"|γ| {np.abs(self.gamma).min():.3g} to {np.abs(self.gamma).max():.3g}, "
            f"‖β‖ {np.linalg.norm(self.beta):.3g}"
        )


def _vectors(x: ArrayLike, d: int) -> Array:
    out = real_array(x, "vectors")
    if out.ndim < 1 or out.shape[-1] != d:
        raise ShapeError(f"vectors of shape {list(out.shape)}: the last axis must be d_model = {d}")
    return out


def norm_geometry(model: Model, name: str = "ln_final") -> NormGeometry:
    """The geometry of one of a model's norms: "ln_final", "blocks.0.ln1", "blocks.3.ln2", ...

    Source: Molina 2023, section 2: LN(x) = γ ⊙ √d (x − μ)/‖x − μ‖ + β, x − μ being the projection of x along **1**;
    with ε in the norm the radius is √(d v/(v + ε)) (ours).

    Raises SiteError where the model has no such norm.

    >>> import clew
    >>> model = clew.load("shakespeare")
    >>> run = model.run([5, 6, 7], capture=["resid_post", "ln_final.hook_out"])
    >>> geometry = norm_geometry(model)
    >>> float(abs(geometry(run["resid_post", -1]) - run["ln_final.hook_out"]).max()) < 1e-4
    True
    """
    check_model(model)
    check_type(str, "the name of a norm, such as 'ln_final'", name=name)
    config = model.config
    if not norm.is_there(config, name.rsplit(".", 1)[-1]) or f"{name}.hook_out" not in model.sites():
        there = [site.removesuffix(".hook_out") for site in model.sites() if site.endswith(".hook_out")]
        raise SiteError(f"{name!r} is no norm of this model; it has {', '.join(there) or 'none'}")
    ones = np.ones(config.d_model)
    gamma, beta = norm.weight(model, name), norm.bias(model, name)
    return NormGeometry(
        name,
        config.eps,
        ones if gamma is None else gamma,
        np.zeros(config.d_model) if beta is None else beta,
        None if config.rms else ones / np.sqrt(config.d_model),
    )


# ---- Layer norm on word embeddings ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingNorms(Brief):
    """How far a norm without its affine part moves word embeddings e; made by :func:`embedding_norms`."""

    against: tuple[str, ...]
    """What LN(e) is compared with: e, e − ē, s e, s (e − ē)."""
    l2_mean: Array
    l2_std: Array
    """Euclidean distance over the vocabulary [4]."""
    cosine_mean: Array
    cosine_std: Array
    """1 − cosine over the vocabulary [4]."""
    factor: float
    """s = √d / mean ‖e‖."""

    def table(self) -> str:
        """A line for each comparison."""
        lines = [f"{'LN(e) against':<14}  {'L2':>8}  {'(std)':>7}  {'cosine':>8}  {'(std)':>7}"]
        for i, what in enumerate(self.against):
            lines.append(
                f"{what:<14}  {self.l2_mean[i]:8.3f}  {self.l2_std[i]:7.3f}  "
                f"{self.cosine_mean[i]:8.4f}  {self.cosine_std[i]:7.4f}"
            )
        return "\n".join(lines)


def embedding_norms(model: Model) -> EmbeddingNorms:
    """Distances from LN(e), without weight and bias, to e, e − ē, s e and s (e − ē), over the vocabulary.

    ē is the mean embedding, s = √d / mean ‖e‖ (Molina 2023, experiment on layer norm and word embeddings). The norm is
    the model's kind, LayerNorm or RMSNorm; LayerNorm for a model without any. Embeddings as they enter the stream
    (Gemma: scaled).

    >>> import clew
    >>> embedding_norms(clew.load("shakespeare")).against
    ('e', 'e − ē', 's e', 's (e − ē)')
    """
    e = embeddings(model)
    d = e.shape[1]
    normal = None if model.config.rms else np.ones(d) / np.sqrt(d)
    bare = NormGeometry("", model.config.eps, np.ones(d), np.zeros(d), normal)
    out = bare(e)
    centred, lengths = e - e.mean(0), np.linalg.norm(e, axis=1)
    factor = float(np.sqrt(d) / lengths.mean())
    names, l2, cosine = [], [], []
    for name, other in (("e", e), ("e − ē", centred), ("s e", factor * e), ("s (e − ē)", factor * centred)):
        names.append(name)
        l2.append(np.linalg.norm(out - other, axis=1))
        cosine.append(1 - cosines(out, other))
    far, apart = np.array(l2), np.array(cosine)
    return EmbeddingNorms(tuple(names), far.mean(1), far.std(1), np.nanmean(apart, 1), np.nanstd(apart, 1), factor)


def embeddings(model: Model) -> Array:
    """Word embeddings as they enter the stream [d_vocab, d_model], float64.

    Raises ConfigError for a model that reads vectors.
    """
    check_model(model)
    if model.config.d_in is not None:
        raise ConfigError("a model that reads vectors has no word embeddings")
    return np.asarray(model.W_E.astype(np.float64) * model.config.embed_scale)


def cosines(a: Array, b: Array) -> Array:
    """Cosine of the angle between vectors along the last axis; NaN for a zero vector."""
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    dots = np.einsum("...d,...d->...", a, b)
    ratio = np.divide(dots, sizes, out=np.full(dots.shape, np.nan), where=sizes > 0)
    return np.asarray(np.clip(ratio, -1, 1))


# ---- Scores of tokens -----------------------------------------------------------------------------------------------

_SCORES = ("norm", "scaled_norm", "bias", "norm_and_bias", "scaled_norm_and_bias")


@dataclass(frozen=True)
class TokenScores(Brief):
    """What the final norm gives each token beforehand; made by :func:`token_scores`. All [vocabulary], float64."""

    norm: Array
    """‖u‖, u the token's row."""
    scaled_norm: Array
    """‖γ ⊙ u‖: how far the token's logit can move from its bias on the sphere, over √d (LayerNorm: at most so far)."""
    bias: Array
    """β · u (plus the unembedding's own bias): the logit in the sphere's middle."""
    norm_and_bias: Array
    scaled_norm_and_bias: Array
    model: Model = field(repr=False, metadata={"json": False})

    def _order(self, score: str) -> Array:
        if not is_word(score, _SCORES):
            raise ConfigError(f"score = {score!r}: one of {', '.join(_SCORES)}")
        return np.argsort(-getattr(self, score), kind="stable")

    def top(self, score: str, k: int = 5) -> list[int]:
        """Ids of the k tokens with the largest score. Raises ConfigError for an unknown score."""
        check_counts(k=k)
        return [int(i) for i in self._order(score)[:k]]

    def bottom(self, score: str, k: int = 5) -> list[int]:
        """Ids of the k tokens with the smallest score, smallest first. Raises ConfigError for an unknown score."""
        check_counts(k=k)
        return [int(i) for i in self._order(score)[::-1][:k]]

    def table(self, k: int = 5) -> str:
        """Top and bottom tokens of every score."""
        lines = []
        for score in _SCORES:
            for end, ids in (("top", self.top(score, k)), ("bottom", self.bottom(score, k))):
                lines.append(f"{score:<21} {end:<6}  {'  '.join(texts(self.model, ids))}")
        return "\n".join(lines)


def texts(model: Model, ids: ArrayLike) -> list[str]:
    """Tokens as quoted text, or their numbers where the model has no tokenizer."""
    numbers = [int(i) for i in np.asarray(ids).reshape(-1)]
    if model._labeller is None:
        return [f"#{i}" for i in numbers]
    return [repr(t) for t in model._labeller.to_str_tokens(numbers)]


def token_scores(model: Model) -> TokenScores:
    """Norm and bias scores of the tokens: logits = LN_f(x) · u, so each has a bias β · u and a length ‖γ ⊙ u‖.

    u are the columns of W_U (Molina 2023: rows of W_E, which is the same where the two are tied), β and γ the final
    norm's; zeros and ones where it has none.

    >>> import clew
    >>> scores = token_scores(clew.load("shakespeare"))
    >>> scores.norm.shape, len(scores.top("bias"))
    ((1024,), 5)
    """
    check_model(model)
    u = model.W_U.astype(np.float64).T
    there = norm.is_there(model.config, "ln_final")
    gamma, beta = (norm.weight(model, "ln_final"), norm.bias(model, "ln_final")) if there else (None, None)
    lengths = np.linalg.norm(u, axis=1)
    scaled = lengths if gamma is None else np.linalg.norm(u * gamma, axis=1)
    bias = (np.zeros(len(u)) if beta is None else u @ beta) + model.b_U.astype(np.float64)
    return TokenScores(lengths, scaled, bias, lengths + bias, scaled + bias, model)


__all__ = [
    "EmbeddingNorms",
    "NormGeometry",
    "NormStages",
    "TokenScores",
    "embedding_norms",
    "norm_geometry",
    "token_scores",
]
