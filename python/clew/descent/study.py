"""Paper 4 on one model: everything of this package measured beside its controls, the claims judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import corpus, norm
from ..errors import ConfigError
from ..experiment import Claim, Experiment, tell, verdict
from ..inputs import check_seed, check_type
from ..model import Model, check_model
from .gradient import lens_gradient
from .steps import Descent, collect, controls, descend
from .training import RowNorms, Training, fit_lens, row_norms, stored_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Identities:
    """Two identities of the gradient, as they hold on the model's own streams; made by :func:`identities`."""

    radial: float
    """Largest |⟨r, −∇L⟩ − (H − NLL)|, nats, of a bias-free linear head on the last streams."""
    invariance: float | None
    """Mean |cos(r, ∇L)| on the last streams, r centred for LayerNorm: 0 up to ε where the head begins with a norm.
    None without a final norm."""
    growth: float | None
    """Largest relative difference of ‖r'‖² from ‖r‖² + η²‖∇L‖² after a true gradient step of η = 1."""


@dataclass(frozen=True)
class DescentExperiment(Experiment):
    """What paper 4's experiments give on a model; made by :func:`experiment`."""

    text: str
    """Where the text comes from, and how much of it was not used."""
    windows: tuple[int, int]
    """Windows of text that were measured, and tokens in each."""
    lens_windows: int
    """Other windows of the same text, on which the tuned lens was fitted."""
    identities: Identities
    descent: Descent
    controls: Mapping[str, Descent]
    row_norms: RowNorms
    """Of the model, against token frequency in all of the text."""
    training: Training
    """Of the bundled "shakespeare", stored with the package, unless another was given."""

    def figures(self) -> dict[str, Figure]:
        """Figures by name; needs matplotlib (`clew[plot]`)."""
        from . import figures

        return {
            "loss": figures.loss(self.descent, self.controls),
            "cosine": figures.cosine(self.descent, self.controls),
            "expected": figures.expected(self.descent, self.controls),
            "norms": figures.norms(self.descent),
            "correlations": figures.correlations(self.descent),
            "training": figures.training(self.training),
            "training_norms": figures.training_norms(self.training),
        }

    def details(self) -> str:
        """The tables of all parts, one after the other."""
        n, length = self.windows
        parts = [f"{n} windows of {length} tokens, {self.lens_windows} others for the tuned lens: {self.text}"]
        parts += [f"{self.model}\n{self.descent.table()}"]
        parts += [f"control: {name}\n{found.table()}" for name, found in self.controls.items()]
        return "\n\n".join([*parts, self.training.table()])


def identities(model: Model, tokens: Any) -> Identities:
    """How well the radial identity and scale invariance hold on a model's last streams.

    Radial: with a bias-free linear head z = U r, ⟨r, −∇L⟩ = z_y − E_p z = H(p) − NLL (computed in float64 from the
    model's W_U without norm, bias and soft-cap). Invariance: behind a norm with ε → 0 the loss does not depend on ‖r‖,
    so ∇L ⟂ r, and a gradient step gives ‖r'‖² = ‖r‖² + η²‖∇L‖²; with LayerNorm for r less its mean. Both ours.

    >>> import clew
    >>> found = identities(clew.load("stories260K"), [[1, 403, 407, 261]])
    >>> found.radial < 1e-10, found.invariance < 1e-4
    (True, True)
    """
    streams = collect(model, tokens)
    n = min(len(streams.targets), 256)
    r, y = streams.resid[-1][:n], streams.targets[:n]
    W_U = model.W_U.astype(np.float64)
    z = r @ W_U
    shifted = z - z.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    p = np.exp(log_p)
    down = W_U.T[y] - p @ W_U.T
    nll = -log_p[np.arange(n), y]
    radial = np.einsum("nd,nd->n", r, down) - (-(p * log_p).sum(-1) - nll)
    if not norm.is_there(model.config, "ln_final"):
        return Identities(float(np.abs(radial).max()), None, None)
    gradient = lens_gradient(model, r, y).gradient
    own = norm.centre(model.config, r)
    square, slope = np.square(own).sum(-1), np.square(gradient).sum(-1)
    along = np.einsum("nd,nd->n", own, gradient)
    sizes = np.sqrt(square * slope)
    cosine = np.divide(along, sizes, out=np.zeros(n), where=sizes > 0)
    after = np.square(own - gradient).sum(-1)
    off = np.abs(after - square - slope) / np.maximum(square, np.finfo(float).tiny)
    return Identities(float(np.abs(radial).max()), float(np.abs(cosine).mean()), float(off.max()))


def experiment(
    model: Model, text: Any = None, quick: bool = True, seed: int = 0, *, other_text: Any = None,
    training: Training | None = None,
) -> DescentExperiment:  # fmt: skip
    """Paper 4 (Wu & Varshney 2023) on a model.

    Parameters
    ----------
    text
        A text or token ids that the model never learned; None: :func:`clew.corpus.windows`'s default. Every other
        window fits the tuned lens, the rest is measured.
    quick
        16 windows of 64 tokens are measured; else 64 of 128.
    seed
        Of the untrained model, permuted steps and shuffled layers.
    other_text
        What the lens of another text is fitted to: a text or ids; None: what the model itself writes after single
        tokens, at temperature 1.
    training
        Measurements at checkpoints (:func:`over_training`); None: those of the bundled "shakespeare", stored with the
        package.

    Raises ConfigError (models of vectors, a text of one window), TokenError.

    >>> import clew
    >>> result = experiment(clew.load("stories260K"))
    >>> len(result.claims), len(result.training.steps) >= 8
    (7, True)
    """
    check_model(model)
    seed = check_seed(seed)
    if training is not None:
        check_type(Training, "what over_training gives", training=training)
    config = model.config
    length, limit = (64, 16) if quick else (128, 64)
    if config.positional_embedding_type == "standard":
        length = min(length, config.n_ctx)
    cut = corpus.windows(model, text, length, 8 * limit, seed)
    if len(cut.tokens) < 2:
        raise ConfigError(f"a text of one window of {length} tokens: half of the windows fit the tuned lens")
    measured, learned = cut.tokens[::2], cut.tokens[1::2]
    measured = measured[np.linspace(0, len(measured) - 1, min(limit, len(measured))).round().astype(int)]
    if other_text is None:
        starts = np.random.default_rng(seed).integers(0, config.d_vocab, 2 * limit)
        made = model.generate(starts[:, None], max_new_tokens=length - 1, temperature=1.0, seed=seed)
        other = [[int(s), *map(int, row)] for s, row in zip(starts, made.tokens, strict=True)]
    else:
        other = corpus.windows(model, other_text, length, 2 * limit, seed).tokens.tolist()
    tell("descent")
    found = descend(model, measured, tuned=fit_lens(model, learned))
    tell("controls")
    beside = controls(model, measured, other_lens=fit_lens(model, other), seed=seed)
    counts = np.bincount(cut.tokens.reshape(-1), minlength=config.d_vocab)
    kept = stored_training() if training is None else training
    tell("identities")
    same = identities(model, measured)
    return DescentExperiment(
        4, "Layers as steps of an inner optimisation", config.model_name, seed, quick,
        _claims(model, found, beside, kept, same), cut.told(), (len(measured), length), len(learned), same, found,
        beside, row_norms(model, counts), kept,
    )  # fmt: skip


_ABSTRACT = "(only the abstract was at hand; the measure is ours) "
_OURS = "nothing of it in what was at hand: an identity of ours"


def _claims(
    model: Model, found: Descent, beside: Mapping[str, Descent], training: Training, same: Identities
) -> tuple[Claim, ...]:
    claims = []

    def claim(text: str, says: str, measured: str, holds: Any, figure: str | None = None) -> None:
        claims.append(Claim(4, text, says, measured, verdict(holds), figure))

    plain = {name: other for name, other in beside.items() if other.loss_tuned is None}
    rest = ", ".join(f"{name} {other.falls_all:.0%}" for name, other in plain.items())
    hardest = max(other.falls_all for other in plain.values())
    claim(
        "the forward pass lowers the loss step by step",
        _ABSTRACT + "an inner optimisation process may happen within the transformer",
        f"the lens's loss, {found.loss[0]:.2f} to {found.loss[-1]:.2f} nats, falls in {found.falls_all:.0%} of all "
        f"steps (controls: {rest})",
        found.falls_all > hardest,
        "loss",
    )
    rest = ", ".join(f"{name} {other.cosine.mean():+.3f}" for name, other in plain.items())
    hardest = max(other.cosine.mean() for other in plain.values())
    margin = 2 * float(np.sqrt(np.square(found.cosine_error).sum()) / len(found.cosine))
    claim(
        "blocks step along the negative gradient, as stochastic gradient descent does",
        _ABSTRACT + "the inner process mirrors a typical optimisation such as stochastic gradient descent",
        f"mean cos(Δ, −∇L) {found.cosine.mean():+.3f} ± {margin:.3f} (controls: {rest}); whitened "
        f"{found.cosine_whitened.mean():+.3f}",
        found.cosine.mean() - margin > hardest,
        "cosine",
    )
    rest = ", ".join(f"{name} {other.cosine_expected.mean():+.3f}" for name, other in plain.items())
    # of the controls only those that come to the same end: any model steps towards its own last prediction
    hardest = max(plain[name].cosine_expected.mean() for name in ("permuted steps", "straight line"))
    claim(
        "they follow the gradient that could be expected, not the single next token's",
        _ABSTRACT + "the same; the expected gradient is a control of ours, the next token cannot be foreseen",
        f"mean cosine with Uᵀ(p_last − p_layer) {found.cosine_expected.mean():+.3f} (controls: {rest}; the first two "
        "have ends of their own)",
        found.cosine_expected.mean() > hardest,
        "expected",
    )
    assert found.loss_tuned is not None and found.falls_tuned is not None
    foreign = beside["lens of another text"].loss_tuned
    assert foreign is not None
    losses = np.concatenate([found.loss_tuned, [found.loss[-1]]])
    claim(
        "the tuned lens sees the loss fall layer by layer too",
        _ABSTRACT + "an inner optimisation process",
        "tuned lens "
        + ", ".join(f"{x:.2f}" for x in losses[:-1])
        + " nats after each layer; fitted to another text "
        + ", ".join(f"{x:.2f}" for x in foreign),
        bool((np.diff(losses[:-1]) < 0).all()) if len(losses) > 2 else None,
        "loss",
    )
    claim(
        "the norms of token representations have a special characteristic",
        "from within the inner optimisation a special characteristic of the norms of learned token representations is "
        "found (abstract; which one was not to be found)",
        f"‖r‖ {found.norm[0]:.2f} to {found.norm[-1]:.2f}, growing in {int((found.growth > 1).sum())} of "
        f"{len(found.growth)} layers (median ratios {', '.join(f'{g:.2f}' for g in found.growth)}); mean cos(r, Δ) "
        f"{found.radial.mean():+.2f}; {found.n_sinks} sinks apart",
        None,
        "norms",
    )
    tolerance = 1e-3 if model.dtype == np.float32 else 1e-6
    if same.invariance is None or same.growth is None:
        words, holds = f"⟨r, −∇L⟩ = H − NLL within {same.radial:.1e} nats; no final norm", same.radial < 1e-8
    else:
        words = (
            f"⟨r, −∇L⟩ = H − NLL within {same.radial:.1e} nats; behind the norm |cos(r, ∇L)| {same.invariance:.1e}, "
            f"and a gradient step lengthens r by the amount foretold within {same.growth:.1e}: growth alone is weak "
            "evidence"
        )
        holds = same.radial < 1e-8 and same.invariance < tolerance and same.growth < tolerance
    claim("a gradient step on a normed stream lengthens it", _OURS, words, holds, "norms")
    first, last = training.cosine[0].mean(), training.cosine[-1].mean()
    rows = training.row_norms
    ends = {name: one["cosine"][-1].mean() for name, one in training.controls.items() if "cosine" in one}
    rest = f" (controls there: {', '.join(f'{name} {x:+.3f}' for name, x in ends.items())})" if ends else ""
    claim(
        "the inner optimisation comes with training, the outer one",
        _ABSTRACT + "bi-level view: the outer process is training",
        f"{training.about.get('model', 'the training given')}: mean cos(Δ, −∇L) {first:+.3f} at step "
        f"{training.steps[0]}, {last:+.3f} at step {training.steps[-1]}{rest}; ‖W_E‖ {rows['embed_mean'][0]:.2f} to "
        f"{rows['embed_mean'][-1]:.2f}, its correlation with frequency {rows['embed_correlation'][-1]:+.2f}",
        last > first and last > 0,
        "training",
    )
    return tuple(claims)


__all__ = ["DescentExperiment", "Identities", "experiment", "identities"]
