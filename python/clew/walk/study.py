"""Paper 1 on one model: everything of this package measured beside its controls, the claims judged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import corpus
from ..brief import Brief
from ..config import ModelConfig
from ..errors import ConfigError, TokenError
from ..experiment import Claim, Experiment, measured, verdict
from ..info import bundled
from ..inputs import check_seed
from ..model import Model, check_model, load
from .attention import Ablations, ablate
from .choice import Choices, Comparison, compare, evaluate
from .context import Insertion, Proximity, insertion, proximity
from .knowledge import DoseResponse, dose_response
from .neighbours import Composition, Purity, composition, purity_of_tokens
from .similarity import SPACES, WordPairs, WordSimilarities, word_similarities
from .stored import Trainings, stored_semantics, stored_trainings
from .tasks import next_sentence_tasks
from .walks import Walk, decoding_walk, linear_recurrence, split_decoding, split_encoding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


@dataclass(frozen=True)
class Splits(Brief):
    """How exactly steps are filtering and aggregation; made by :func:`splits`."""

    errors: dict[str, float]
    """What was split → largest deviation of the sum of the parts, relative to the largest value."""
    share: Array
    """Aggregation's mean share of the encoding walk's steps, along them [layer]; filtering has the rest."""


@dataclass(frozen=True)
class MultipleChoice(Brief):
    """Both tests on the next of four sentences, with baseline and controls; made by :func:`experiment`."""

    accuracy: dict[str, tuple[float, float, float]]
    """Test → accuracy with its bootstrap interval."""
    generation: Comparison
    similarity: Comparison
    n: int


@dataclass(frozen=True)
class WalkExperiment(Experiment):
    """What paper 1's experiments give on a model; made by :func:`experiment`."""

    text: str
    """Where the text comes from, and how much of it was not used."""
    windows: tuple[int, int]
    """Windows of text and tokens in each."""
    walk: Walk = field(repr=False)
    proximity: Proximity
    insertion: Insertion | None
    """None where the context does not hold the prompts."""
    dose_response: DoseResponse
    ablations: Ablations
    trainings: Trainings
    """Stored with the package: small models' trainings, not this model's."""
    splits: Splits
    purity: dict[str, Purity]
    """Space → purity of W_E; empty without a tokenizer or too few words."""
    composition: Composition
    choices: MultipleChoice | None
    """None without a tokenizer, or for a text of too few sentences."""
    words: WordSimilarities | None
    """Of the sets that were given."""
    semantics: Mapping[str, Any] | None
    """Word similarity and HellaSwag of a bundled model, stored with the package."""

    def figures(self) -> dict[str, Figure]:
        """Figures by name; needs matplotlib (`clew[plot]`)."""
        from . import figures

        out = {
            "walk": figures.walk(self.walk),
            "proximity": figures.proximity(self.proximity),
            "dose_response": figures.dose_response(self.dose_response),
            "attention": figures.ablations(self.ablations),
            "trainings": figures.trainings(self.trainings),
            "splits": figures.splits(self.splits),
            "composition": figures.composition(self.composition),
        }
        if self.insertion is not None:
            out["insertion"] = figures.insertion(self.insertion)
        if self.purity:
            out["purity"] = figures.purity(self.purity)
        if self.choices is not None:
            out["choices"] = figures.choices(self.choices.accuracy)
        rows = _word_rows(self.words, self.semantics)
        if rows:
            out["words"] = figures.words(rows)
        return out

    def details(self) -> str:
        """The tables of all parts, one after the other."""
        parts = [f"{self.windows[0]} windows of {self.windows[1]} tokens: {self.text}"]
        parts += [self.walk.table(), repr(self.proximity)]
        parts += [] if self.insertion is None else [self.insertion.table()]
        parts += [self.dose_response.table(), self.ablations.table(), self.trainings.table()]
        parts += [f"{space}: {found!r}" for space, found in self.purity.items()]
        parts += [] if self.words is None else [self.words.table()]
        return "\n\n".join(parts)


def splits(model: Model, tokens: Any, seed: int = 0) -> Splits:
    """The split into filtering and aggregation on a model, and on four others: mazes, vectors, linear attention.

    The maze model is the bundled one where there is one, else the paper-5 shape with random weights; the others have
    random weights: the identity does not depend on training. Source: claim 6 of the note, the extension to other models
    is ours. Raises TokenError for texts of one token, which take no step from position to position; ConfigError.

    >>> import clew
    >>> found = splits(clew.load("stories260K"), [[1, 403, 407, 261]])
    >>> len(found.errors), max(found.errors.values()) < 1e-5
    (6, True)
    """
    from .. import mazes

    check_model(model)
    seed = check_seed(seed)
    tokens = corpus.sequences(model, tokens)
    if min(map(len, tokens)) < 2:
        raise TokenError("splits: a text of one token makes no step from position to position")
    encoding, decoding = split_encoding(model, tokens), split_decoding(model, tokens)
    rng = np.random.default_rng(seed)
    trained = "maze-6x6" in bundled()
    maze = load("maze-6x6") if trained else Model.from_config(mazes.hallway_config(), seed=seed)
    small: dict[str, Any] = dict(n_layers=2, d_model=32, n_heads=4, n_ctx=24, initializer_range=0.2)
    vectors = Model.from_config(ModelConfig(**small, d_in=6, d_out=1), seed=seed)
    linear = Model.from_config(ModelConfig(**small, d_vocab=50, attention_kind="linear"), seed=seed)
    ids = rng.integers(0, min(50, maze.config.d_vocab), (2, 20))
    ours, forward = linear_recurrence(linear, ids)
    errors = {
        "this model, through the layers": encoding.error(),
        "this model, from position to position": decoding.error(),
        "a maze model" + ("" if trained else ", random weights"): split_encoding(maze, ids).error(),
        "a model of vectors, random weights": split_encoding(vectors, rng.standard_normal((2, 20, 6))).error(),
        "linear attention, random weights": split_encoding(linear, ids).error(),
        "linear attention as a recurrence": float(np.abs(ours - forward).max() / np.abs(forward).max()),
    }
    share = encoding.share()
    return Splits(errors, np.nanmean(share.reshape(len(share), -1), axis=1))


def _purity(model: Model, seed: int) -> dict[str, Purity]:
    if model.tokenizer is None:
        return {}
    try:
        return {space: purity_of_tokens(model, space, seed=seed) for space in SPACES}
    except TokenError:
        return {}


def _choices(model: Model, text: Any, n: int, seed: int) -> MultipleChoice | None:
    if model.tokenizer is None or not (text is None or isinstance(text, str)):
        return None
    try:
        # endings of one length: a sum of log-probabilities prefers short ones
        tasks = next_sentence_tasks(corpus.held_out() if text is None else text, n, seed, sentences=4, alike=True)
    except TokenError:
        return None
    found: dict[str, Choices] = {
        "cross-encoding": evaluate(model, tasks, too_long="skip"),
        "generation": evaluate(model, tasks, "generation", too_long="skip"),
        "similarity": evaluate(model, tasks, "similarity", too_long="skip"),
        "control: ending alone": evaluate(model, tasks, control="ending_only"),
        "control: mismatched": evaluate(model, tasks, control="mismatched", too_long="skip"),
    }
    base = found["cross-encoding"]
    if not all(one.used.any() for one in found.values()):
        return None
    floor = max((found["control: ending alone"], found["control: mismatched"]), key=lambda one: one.accuracy)
    return MultipleChoice(
        {name: (one.accuracy, *one.interval()) for name, one in found.items()},
        compare(found["generation"], base, floor), compare(found["similarity"], base, floor), int(base.used.sum()),
    )  # fmt: skip


def _insertion(model: Model, pool: Array, n: int, seed: int) -> Insertion | None:
    shots = [k for k in (0, 1, 2, 4, 8) if 4 * k + 3 <= model.config.n_ctx]
    return insertion(model, pool, shots, n, seed=seed) if len(shots) > 1 and len(pool) >= 4 else None


def experiment(
    model: Model, text: Any = None, quick: bool = True, seed: int = 0, *,
    word_sets: list[WordPairs] | str | os.PathLike[str] | None = None, training_text: str | None = None,
) -> WalkExperiment:  # fmt: skip
    """Paper 1 (Singh 2023, *Movement through embedding space*) on a model.

    Parameters
    ----------
    text
        A text or token ids that the model never learned; None: :func:`clew.corpus.windows`'s default.
    quick
        64 windows of 64 tokens, 16 of them for damage and attention, 200 tasks; else 256 windows, 64 and 800.
    seed
        Of everything drawn.
    word_sets, training_text
        For word similarity: a folder of sets or the sets, and what the model was trained on. None: what is stored with
        the package, for bundled models.

    Raises ConfigError (models that read or write vectors, without layers, or of other than causal attention),
    TokenError (a text too short), LoadError (sets that cannot be read).

    >>> import clew
    >>> result = experiment(clew.load("stories260K"))
    >>> len(result.claims), result.claims[0].verdict
    (14, 'holds')
    """
    check_model(model)
    seed = check_seed(seed)
    c = model.config
    if c.d_in is not None or c.d_out is not None or not c.n_layers or c.attention_dir != "causal":
        raise ConfigError("walk.experiment: the model must read tokens and predict the next one, causally, with layers")
    length, limit = 64, 64 if quick else 256
    if c.positional_embedding_type == "standard":
        length = min(length, c.n_ctx)
    cut = corpus.windows(model, text, length, limit, seed)
    few = cut.tokens[np.linspace(0, len(cut.tokens) - 1, min(16 if quick else 64, len(cut.tokens))).round().astype(int)]
    counts = np.bincount(cut.tokens.reshape(-1), minlength=c.d_vocab)
    parts = measured({
        "walk": lambda: decoding_walk(model, few[0]),
        "proximity": lambda: proximity(model, cut.tokens, seed=seed),
        "insertion": lambda: _insertion(model, np.flatnonzero(counts), 64 if quick else 256, seed),
        "dose_response": lambda: dose_response(model, few, counts=counts, draws=5 if quick else 10, seed=seed),
        "ablations": lambda: ablate(
            model, few, KINDS_HERE if len(few) > 1 else [k for k in KINDS_HERE if k != "frozen"]
        ),
        "trainings": stored_trainings,
        "splits": lambda: splits(model, few[:4], seed),
        "purity": lambda: _purity(model, seed),
        "composition": lambda: composition(model, few, min(10, c.d_vocab), seed),
        "choices": lambda: _choices(model, text, 200 if quick else 800, seed),
        "words": lambda: None if word_sets is None else word_similarities(model, word_sets, training_text, seed=seed),
        "semantics": lambda: stored_semantics(model),
    })  # fmt: skip
    return WalkExperiment(
        1, "Movement through embedding space", c.model_name, seed, quick, _claims(model, parts), cut.told(),
        (cut.tokens.shape[0], cut.tokens.shape[1]), **parts,
    )  # fmt: skip


KINDS_HERE = ("uniform", "frozen", "similarity", "bare", "none")
"""Ablations of the experiment."""


# ---- Claims ---------------------------------------------------------------------------------------------------------

_OURS = "(the measure is ours) "


def _word_rows(words: WordSimilarities | None, semantics: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of word similarity, measured here or stored: set, whose vectors, rho, interval, pairs."""
    if words is not None:
        return [
            {"name": r.name, "source": r.source, "rho": r.rho, "interval": r.interval, "n": r.n} for r in words.rows
        ]
    return [] if semantics is None else list(semantics["word_similarity"])


def _claims(model: Model, parts: dict[str, Any]) -> tuple[Claim, ...]:
    claims = []

    def claim(text: str, says: str, measured: str, holds: Any, figure: str | None = None) -> None:
        claims.append(Claim(1, text, says, measured, verdict(holds), figure))

    near: Proximity = parts["proximity"]
    claim(
        "the transformer walks through embedding space, and its behaviour is that walk",
        "an embedding-space walker; behaviour = trajectory (that p(v) ∝ exp(c_t · u_v) is our definition of the walk)",
        f"c_t · u_v gives the logits within {near.logits_error:.1e}; the nearest token is the likeliest in "
        f"{near.argmax['dot']:.0%} by dot product, {near.argmax['l2']:.0%} by L2, {near.argmax['cosine']:.0%} by "
        f"cosine. Steps turn by {near.turning_angle:.0f}° on average; straightness {near.straightness:.2f}",
        near.logits_error < 1e-4 and near.argmax["dot"] > 0.999,
        "walk",
    )
    claim(
        "a context is one vector, and where it lies defines the next step",
        "its proximity to a token-vector reflects its co-occurrence and conditioned probability (v2)",
        _OURS + f"the true next token is among the {near.k} nearest in {near.hits['dot']:.0%} (dot), "
        f"{near.hits['l2']:.0%} (L2), {near.hits['cosine']:.0%} (cosine), with another position's vector in "
        f"{near.chance_hits['dot']:.0%}; proximity against counts of what follows a token: rho {near.pairs:+.2f}, with "
        f"another token's counts {near.chance_pairs:+.2f}, over {near.n_pairs} tokens",
        _with_known(near.hits["dot"] > 2 * near.chance_hits["dot"], near.pairs > near.chance_pairs, near.n_pairs > 2),
        "proximity",
    )
    _claim_insertion(claim, parts["insertion"])
    _claim_knowledge(claim, parts["dose_response"])
    _claim_attention(claim, parts["ablations"], parts["trainings"])
    _claim_splits(claim, model, parts["splits"])
    _claim_concepts(claim, parts)
    _claim_choices(claim, parts["choices"], parts["semantics"])
    return tuple(claims)


def _with_known(first: bool, second: bool, known: bool) -> bool | None:
    return first and second if known else None


def _claim_insertion(claim: Any, found: Insertion | None) -> None:
    says = "nothing is learned during decoding; different contexts compose into different vectors"
    if found is None:
        claim("different contexts compose into different vectors: nothing else is learned", says,
              "the context does not hold the prompts", None)  # fmt: skip
        claim("context only narrows the paths", "context only narrows the paths sampled (v2)", "not measured", None)
        return
    inner = len(found.recovered) - 1 or 1
    best = int(found.recovered[:inner].argmax())
    known = found.gain > 3 * found.gain_error and found.gain > 0.5
    claim(
        "different contexts compose into different vectors: nothing else is learned",
        says + "; the experiment is ours: the composed vector alone must carry what examples give",
        f"{found.shots[-1]} examples raise log p(answer) by {found.gain:.2f} ± {found.gain_error:.2f} nats; the vector "
        f"of the last position behind layer {best}, put into a prompt without examples, brings "
        f"{found.recovered[best]:.0%} of that (shuffled answers {found.shuffled[best]:+.0%}, another task "
        f"{found.other[best]:+.0%})",
        found.recovered[best] > 0.5 and max(found.shuffled[best], found.other[best]) < found.recovered[best] / 2
        if known else None,
        "insertion",
    )  # fmt: skip
    drop = found.entropy[0] - found.entropy[-1]
    claim(
        "context only narrows the paths",
        "context only narrows the paths sampled (v2)",
        _OURS + f"entropy of the next token with {', '.join(map(str, found.shots))} examples: "
        f"{', '.join(f'{h:.2f}' for h in found.entropy)} nats",
        drop > 0 and bool((np.diff(found.entropy) < 0.1).all()) if known else None,
        "insertion",
    )


def _claim_knowledge(claim: Any, found: DoseResponse) -> None:
    rows = found.rises["rows permuted"]
    others = {kind: r for kind, r in found.rises.items() if not kind.startswith("rows")}
    rivals = {kind: r for kind, r in others.items() if not np.isnan(r).all()}
    margin = {kind: 2 * np.hypot(found.errors[kind], found.errors["rows permuted"]) for kind in rivals}
    worse = [f"{kind} at {dose:.0%}" for kind, r in rivals.items() for dose, a, b, m in
             zip(found.doses, r, rows, margin[kind], strict=True) if a - b > m]  # fmt: skip
    at = int(np.searchsorted(found.doses, 0.25)) if found.doses[-1] >= 0.25 else len(found.doses) - 1
    shown = ", ".join(f"{kind} {r[at]:+.2f}" for kind, r in rivals.items() if not np.isnan(r[at]))
    claim(
        "knowledge lies in the organisation of the vectors, not in particular neurons or layers",
        "knowledge lies in the organisation of the vectors rather than in particular neurons or layers (dose and "
        "response are ours)",
        f"loss after {found.doses[at]:.0%} of embedding rows change places within bands of frequency: {rows[at]:+.2f} "
        f"nats, replaced by their mean {found.rises['rows to the mean'][at]:+.2f}; as many parameters of {shown}. "
        + (f"Worse than rows: {', '.join(worse)}" if worse else "Nothing of equal size is worse at any dose"),
        not worse if rivals else None,
        "dose_response",
    )


def _claim_attention(claim: Any, found: Ablations, trained: Trainings) -> None:
    rises = {kind: loss - found.loss for kind, loss in found.ablated.items()}
    shown = ", ".join(f"{kind} {rise:+.2f} ± {found.rise_error[kind]:.2f}" for kind, rise in rises.items())
    claim(
        "attention only adds a bias that a trained model could do without",
        "attention contributes an association bias to the composition (v2: potentially redundant)",
        f"loss {found.loss:.2f} nats; rise with patterns replaced: {shown}",
        rises["uniform"] < 0.1 * rises["none"],
        "attention",
    )
    mean = dict(zip(trained.kinds, np.nanmean(trained.loss, 1), strict=True))
    spread = np.nanmax(trained.loss[trained.runs > 1].std(1, ddof=1, where=~np.isnan(trained.loss[trained.runs > 1])))
    worth = mean["none"] - mean["softmax"]
    kept = {kind: (mean["none"] - mean[kind]) / worth for kind in trained.kinds if kind not in ("none", "softmax")}
    claim(
        "models trained without learned attention do as well",
        "v2: potentially redundant (the trainings are ours, stored with the package, not this model's)",
        f"{'–'.join(map(str, sorted({int(n) for n in trained.runs})))} seeds of each, held-out loss "
        + ", ".join(f"{kind} {loss:.3f}" for kind, loss in mean.items())
        + f" (deviation between seeds at most {spread:.3f}; counting pairs of tokens "
        f"{trained.references['pairs']:.3f}); of what attention gives "
        + ", ".join(f"{kind} keeps {share:.0%}" for kind, share in kept.items()),
        max(kept.values()) > 0.9,
        "trainings",
    )
    i = {kind: n for n, kind in enumerate(trained.kinds)}
    own = trained.alike[i["softmax"], i["softmax"]]
    rest = {kind: trained.alike[i["softmax"], i[kind]] for kind in trained.kinds if kind not in ("softmax", "bare")}
    claim(
        "the vectors organise alike whichever attention trains them",
        "knowledge lies in the organisation of the vectors; attention potentially redundant (this conclusion and its "
        "measure are ours)",
        f"arrangement of W_E between seeds: softmax and softmax {own:.2f}; softmax and "
        + ", ".join(f"{kind} {value:.2f}" for kind, value in rest.items())
        + f", bare {trained.alike[i['softmax'], i['bare']]:.2f}. Purity of neighbourhoods "
        + ", ".join(f"{kind} {np.nanmean(trained.purity[n]):.2f}" for kind, n in i.items())
        + f" (chance {trained.purity_chance:.2f})",
        min(rest.values()) > 0.8 * own if not np.isnan([own, *rest.values()]).any() else None,
        "trainings",
    )


def _claim_splits(claim: Any, model: Model, found: Splits) -> None:
    claim(
        "the whole model is filtering and aggregation",
        "two operations: data-independent filtering and data-dependent aggregation",
        "steps are the sum of both within "
        + ", ".join(f"{error:.0e} ({name})" for name, error in found.errors.items())
        + "; aggregation's share by layer "
        + ", ".join(f"{x:.2f}" for x in found.share),
        max(found.errors.values()) < 1e-4,
        "splits",
    )


def _claim_concepts(claim: Any, parts: dict[str, Any]) -> None:
    pure: dict[str, Purity] = parts["purity"]
    claim(
        "embedding vectors represent concepts: neighbours are of a kind",
        "embedding vectors represent concepts (the classes of words and purity are ours)",
        "no tokenizer, or too few words that are one token" if not pure else
        "; ".join(f"{space}: {p.purity:.0%} of the {p.k} nearest words are of the same class (chance {p.chance:.0%}, "
                  f"p {p.p:.3f})" for space, p in pure.items()),
        None if not pure else all(p.p < 0.01 and p.purity > 2 * p.chance for p in pure.values()),
        "purity" if pure else None,
    )  # fmt: skip
    rows = _word_rows(parts["words"], parts["semantics"])
    if not rows:
        claim("embedding vectors represent concepts: cosines agree with people", "embedding vectors represent concepts",
              "no word-similarity sets were given, and none of this model are stored", None)  # fmt: skip
    else:
        control = [r for r in rows if r["source"].startswith("PPMI")]
        own = [r for r in rows if r["source"].endswith("centred")]
        good = [r for r in own if r["n"] >= 20]
        seen = {r["name"]: r for r in control}

        def positive(row: Mapping[str, Any]) -> bool:
            return row["interval"][0] is not None and row["interval"][0] > 0

        # a set on which counts of the same text fail says nothing about the model
        judged = [r for r in good if r["name"] not in seen or positive(seen[r["name"]])]
        agree = [r for r in judged if positive(r)]
        claim(
            "embedding vectors represent concepts: cosines agree with people",
            "embedding vectors represent concepts (word similarity is our test of it)",
            ("stored with the package: " if parts["words"] is None else "")
            + "Spearman's rho, centred rows of W_E: "
            + ", ".join(f"{r['name'].removeprefix('EN-')} {r['rho']:+.2f} on {r['n']}"
                        + (f" (counts {seen[r['name']]['rho']:+.2f})" if r["name"] in seen else "") for r in good)
            + f"; above 0 with 95 % on {len(agree)} of the {len(judged)} sets on which counts of the text are, too; "
            "sets of fewer than 20 pairs are left out",
            None if not judged else len(agree) > len(judged) / 2,
            "words",
        )  # fmt: skip
    found: Composition = parts["composition"]
    claim(
        "composed vectors represent concepts too",
        "composed vectors represent concepts too (the measure is ours)",
        f"of the {found.k} tokens nearest to a word, the share still nearest to its vector in a text, layer by layer: "
        + ", ".join(f"{x:.2f}" for x in found.own)
        + " (another word's: "
        + ", ".join(f"{x:.2f}" for x in found.other)
        + "); the nearest token is the word itself in "
        + ", ".join(f"{x:.0%}" for x in found.itself)
        + ", the next word in "
        + ", ".join(f"{x:.0%}" for x in found.following),
        found.own[-1] > 2 * found.other[-1] or found.following[-1] > 2 * found.following[0],
        "composition",
    )


def _difference(own: Mapping[str, Any]) -> str:
    """A stored comparison in words."""
    low, high = own["difference_interval"]
    return (f"{own['accuracy']:.3f} against {own['baseline']:.3f} on {own['n']}, difference {own['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}]")  # fmt: skip


def _claim_choices(claim: Any, found: MultipleChoice | None, semantics: Mapping[str, Any] | None) -> None:
    papers = {
        "generation": ".839 of cross-encoding's accuracy (gpt-neo-1.3B, HellaSwag, K = 0, concat; guessing gets .647)",
        "similarity": ".705 of cross-encoding's accuracy (gpt-neo-1.3B, HellaSwag, K = 0, concat; guessing gets .647)",
    }
    stored = {} if semantics is None else semantics
    for name, text in (
        ("generation", "a context pooled to one vector still generates its ending (test 1)"),
        ("similarity", "concept vectors of context and ending are similar (test 2)"),
    ):
        more = "".join(
            words + _difference(stored[key][name])
            for key, words in (
                ("hellaswag", ". HellaSwag, stored with the package, tasks that were not learned: "),
                ("hellaswag_one_shot", "; with one example, those that fit the context, which holds no five: "),
            )
            if key in stored
        )
        if found is None:
            claim(text, papers[name], "no tokenizer, or no text of sentences" + more, None)
            continue
        result: Comparison = getattr(found, name)
        low, high = result.corrected_interval
        undecided = result.corrected is not None and low <= 0.5 <= high
        note = ", which so many tasks do not set apart from one half" if undecided else ""
        claim(
            text,
            papers[name],
            f"the next of four sentences, {found.n} tasks: {result!r}{note}; floor {result.floor:.3f}" + more,
            None if result.corrected is None or undecided else result.corrected > 0.5,
            "choices",
        )


__all__ = ["MultipleChoice", "Splits", "WalkExperiment", "experiment", "splits"]
