"""Paper 3 on one model: everything of this package measured, its claims judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import corpus
from ..errors import TokenError
from ..experiment import Claim, Experiment, measured, tell, verdict
from ..model import Model
from .attention import rewrite_attention
from .heads import (
    BiasTokens,
    HeadCoherence,
    HeadSVD,
    NounProbe,
    bias_tokens,
    head_coherence,
    probe_nouns,
    svd_heads,
)
from .norms import EmbeddingNorms, TokenScores, embedding_norms, norm_geometry, token_scores
from .paths import (
    PROMPT,
    Contextual,
    Distances,
    Refinement,
    Trajectory,
    contextual,
    distances,
    refinement,
    trajectory,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GeometryExperiment(Experiment):
    """What paper 3's experiments give on a model; made by :func:`experiment`."""

    text: str
    """Where the text comes from, and how much of it was not used."""
    windows: tuple[int, int]
    """Windows of text and tokens in each."""
    norm_error: float | None
    """Largest relative difference of the final norm as geometry from the run; None without a final norm."""
    attention_error: float | None
    """The same of the rewritten attention, over all layers; None where W_QK does not exist."""
    embedding_norms: EmbeddingNorms
    token_scores: TokenScores = field(repr=False, metadata={"json": False})
    extreme_tokens: dict[str, list[str]]
    """Score and end → tokens."""
    nouns: NounProbe | None
    """None for a model without a tokenizer, or with none of the nouns in its vocabulary."""
    svd: tuple[HeadSVD, ...]
    """W_QK and W_VO of the first, middle and last layer."""
    biases: BiasTokens | None
    trajectory: Trajectory
    distances: Distances
    refinement: Refinement
    contextual: Contextual
    coherence: tuple[HeadCoherence, ...]
    """Of W_VO, and of W_QK where it exists."""

    def figures(self) -> dict[str, Figure]:
        """Figures by name; needs matplotlib (`clew[plot]`)."""
        from . import figures

        out = {
            "layer_norm": figures.layer_norm(self.embedding_norms),
            "coverage": figures.coverage(list(self.svd)),
            "trajectory": figures.trajectory(self.trajectory),
            "distances": figures.distances(self.distances),
            "refinement": figures.refinement(self.refinement),
            "contextual": figures.contextual(self.contextual),
        }
        out |= {f"coherence_{one.kind.lower()}": figures.coherence(one) for one in self.coherence}
        if self.nouns is not None:
            out["nouns"] = figures.kept_words(self.nouns)
        return out

    def details(self) -> str:
        """The tables of all parts, one after the other."""
        text = f"{self.windows[0]} windows of {self.windows[1]} tokens: {self.text}"
        parts: list[Any] = [self.embedding_norms, self.token_scores, self.nouns, *self.svd, self.biases]
        parts += [self.trajectory, self.distances, self.refinement, self.contextual, *self.coherence]
        return "\n\n".join([text, *(part.table() for part in parts if part is not None)])


def _identities(model: Model, tokens: Any) -> tuple[float | None, float | None]:
    """Relative errors of the final norm's geometry and of the rewritten attention, beside a run."""
    sites = model.sites()
    normed = "ln_final.hook_out" in sites
    reads = "ln1.hook_out" if model.config.normalization_type is not None else "hook_resid_pre"
    names = [f"blocks.{n}.{reads}" for n in range(model.config.n_layers)]
    run = model.run(tokens, capture=["attn_out", *names, *(["resid_post", "ln_final.hook_out"] if normed else [])])

    def error(got: Any, want: Any) -> float:
        return float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))

    norm_error = None
    if normed:
        norm_error = error(norm_geometry(model)(run["resid_post", -1]), run["ln_final.hook_out"])
    if model.config.use_qk_norm or model.config.attention_kind != "softmax":
        return norm_error, None
    errors = [error(rewrite_attention(model, run[name], n).out, run["attn_out", n]) for n, name in enumerate(names)]
    return norm_error, max(errors)


def _nouns(model: Model) -> NounProbe | None:
    try:
        return probe_nouns(model)
    except TokenError:
        return None


def _extremes(model: Model, scores: TokenScores) -> dict[str, list[str]]:
    from .norms import texts

    out = {}
    for name in ("norm", "scaled_norm", "norm_and_bias", "scaled_norm_and_bias"):
        out[f"top by {name}"] = texts(model, scores.top(name))
        out[f"bottom by {name}"] = texts(model, scores.bottom(name))
    return out


def experiment(model: Model, text: Any = None, quick: bool = True, seed: int = 0) -> GeometryExperiment:
    """Paper 3 (Molina 2023, *Traveling Words*) on a model.

    Parameters
    ----------
    text
        A text or token ids; None: :func:`clew.corpus.windows`'s default, held out from the bundled models.
    quick
        32 windows of 64 tokens; else 128 of 128, and more singular directions.
    seed
        Of random directions, the untrained model and pairs of words.

    Raises what the parts raise: ConfigError for models that read or write vectors, TokenError for a text too short.

    >>> import clew
    >>> result = experiment(clew.load("stories260K"))
    >>> len(result.claims), sorted(result.to_json())[:3]
    (9, ['claims', 'model', 'numbers'])
    """
    config = model.config
    length, limit = (64, 32) if quick else (128, 128)
    if config.positional_embedding_type == "standard":
        length = min(length, config.n_ctx)
    cut = corpus.windows(model, text, length, limit, seed)
    layers = list(dict.fromkeys([0, config.n_layers // 2, config.n_layers - 1]))
    has_qk = not config.use_qk_norm
    kinds: tuple[Any, ...] = ("VO", "QK") if has_qk else ("VO",)
    pairs = 10 if quick else 20
    scores = token_scores(model)
    prompt: Any = PROMPT if model.tokenizer is not None else cut.tokens[0, : min(12, length)]
    tell("identities")
    parts: dict[str, Any] = dict(zip(("norm_error", "attention_error"), _identities(model, cut.tokens[0]), strict=True))
    parts |= measured({
        "embedding_norms": lambda: embedding_norms(model),
        "nouns": lambda: _nouns(model),
        "svd": lambda: tuple(svd_heads(model, n, kind, pairs) for kind in kinds for n in layers),
        "biases": lambda: bias_tokens(model, 0) if has_qk else None,
        "trajectory": lambda: trajectory(model, prompt, seed=seed),
        "distances": lambda: distances(model, cut),
        "refinement": lambda: refinement(model, cut),
        "contextual": lambda: contextual(model, cut, seed=seed),
        "coherence": lambda: tuple(head_coherence(model, kind, pairs, seed=seed) for kind in kinds),
    })  # fmt: skip
    return GeometryExperiment(
        3, "Traveling words", config.model_name, seed, quick, _claims(model, parts), cut.told(),
        (cut.tokens.shape[0], cut.tokens.shape[1]), token_scores=scores,
        extreme_tokens=_extremes(model, scores), **parts,
    )  # fmt: skip


_OURS = "(the score is ours) "


def _claims(model: Model, parts: dict[str, Any]) -> tuple[Claim, ...]:
    claims = []

    def claim(text: str, says: str, measured: str, holds: Any, figure: str | None = None) -> None:
        claims.append(Claim(3, text, says, measured, verdict(holds), figure))

    tolerance = 1e-4 if model.dtype == np.float32 else 1e-10
    error = parts["norm_error"]
    claim(
        "layer norm projects to a sphere, scales it to an ellipsoid and shifts it",
        "LN(x) = γ ⊙ √d (x − μ)/‖x − μ‖ + β",
        "no final norm" if error is None else f"equal to the forward pass within {error:.1e} of the largest value",
        None if error is None else error < tolerance,
    )
    error = parts["attention_error"]
    claim(
        "attention is a sum over heads of softmax(X W_QK Xᵀ) X W_VO, plus bias terms",
        "the rewriting with W_QK and W_VO",
        "query and key norms: no one W_QK" if error is None else f"equal to the forward pass within {error:.1e}",
        None if error is None else error < tolerance,
    )
    norms = parts["embedding_norms"]
    claim(
        "layer norm hardly turns word embeddings: it scales them",
        "1 − cos(LN(e), e) < .001, against .150 once the mean embedding is taken out "
        "(GPT-2, remembered from the authors' code, unverified)",
        f"1 − cos {max(norms.cosine_mean[0], 0):.4f}, and {norms.cosine_mean[1]:.3f} with the mean taken out",
        norms.cosine_mean[0] < 0.01,
        "layer_norm",
    )
    qk = next((c for c in parts["coherence"] if c.kind == "QK"), None)
    first = last = float("nan")
    if qk is not None:
        chance = qk.random_left.mean(-1) + qk.random_right.mean(-1)
        over = (qk.left.mean(-1) + qk.right.mean(-1) - chance) / 2
        first, last = float(over[0]), float(over[-1])
    claim(
        "query-key patterns are readable in block 0 and not in deeper ones",
        "readable in block 0, deeper not",
        "no one W_QK"
        if qk is None
        else _OURS + f"coherence of directions' tokens over that of random ones: "
        f"{first:+.3f} in block 0, {last:+.3f} in the last",
        None if qk is None or model.config.n_layers < 2 else first > 0 and first > last,
        "coherence_qk" if qk is not None else None,
    )
    nouns, kept = parts["nouns"], "no noun is a token here"
    if nouns is not None:
        kept = (
            _OURS + f"{nouns.kept[-1]:.0%} of {len(nouns.words)} nouns stay among the 5 nearest tokens "
            f"({nouns.kept_by_head[-1].mean():.0%} with one head; in block 0 {nouns.kept[0]:.0%})"
        )
    claim(
        "in the last block the sum over heads keeps a word's meaning",
        "the sum over heads keeps the input's meaning",
        kept,
        None if nouns is None else nouns.kept[-1] >= 0.5,
        "nouns" if nouns is not None else None,
    )
    far = parts["distances"]
    claim(
        "a word travels towards the next word's embedding",
        "the path of LN_f(x) moves towards the last token's embedding (one phrase, seen in a UMAP)",
        f"in the space itself, {far.closer:.0%} of tokens end nearer to the next one's embedding than they began (L2), "
        f"{far.closer_by_angle:.0%} by angle; mean cosine {far.cosine_next[0]:.3f} to {far.cosine_next[-1]:.3f}",
        far.closer > 0.5 and far.closer_by_angle > 0.5,
        "trajectory",
    )
    rises = int((np.diff(far.mean) > 0).sum())
    claim(
        "layer by layer the next word gains on the current one",
        "the mean of LN_f(x_l) · (e_next − e_current) by layer and position",
        f"{far.mean[0]:.2f} nats at the start, {far.mean[-1]:.2f} at the end; rises in {rises} of {len(far.mean) - 1} "
        "layers",
        far.mean[-1] > 0 and rises == len(far.mean) - 1,
        "distances",
    )
    steps = parts["refinement"].divergence[:-1]  # the last is 0 by definition
    falls = int((np.diff(steps) < 0).sum())
    same = parts["contextual"].corrected
    claim(
        "predictions are refined iteratively, and embeddings become contextual",
        "iterative refinement; contextual embeddings",
        "nothing before the last layer"
        if not len(steps)
        else _OURS + f"KL to the output {steps[0]:.2f} nats after layer 0, falls in {falls} of {len(steps) - 1} layers "
        "(the last, where it is 0 by definition, is not counted); "
        f"same-word cosine, corrected for anisotropy, {same[0]:.2f} at the start, {same[-1]:.2f} at the end",
        falls == len(steps) - 1 and same[-1] < same[0] if len(steps) > 1 else None,
        "refinement",
    )
    left, right = parts["coherence"][0].above_chance
    claim(
        "some heads' key and value directions belong to one subject",
        "subject-specific heads",
        _OURS + f"coherence of directions' tokens is above 95 % of random draws for {left:.0%} of heads (keys) and "
        f"{right:.0%} (values); 5 % by chance",
        max(left, right) > 0.15,
        "coherence_vo",
    )
    return tuple(claims)


__all__ = ["GeometryExperiment", "experiment"]
