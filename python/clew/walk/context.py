"""What a context does: where the composed vector lies, and how much of a prompt it carries into another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import corpus, edit
from ..brief import Brief
from ..descent.steps import spearman
from ..errors import ConfigError, ShapeError, TokenError, UnsupportedModelError
from ..geometry import nearest_by
from ..inputs import as_array, check_counts, check_seed, whole
from ..model import Model, check_model
from .walks import METRICS, _final_site, measure

Array = NDArray[Any]


# ---- Where the composed vector lies ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proximity(Brief):
    """Composed vectors c_t among token vectors u_v (columns of W_U); made by :func:`proximity`."""

    logits_error: float
    """Largest |c_t · u_v + b_v − logit| over the largest logit (a soft-cap is undone): rounding."""
    argmax: dict[str, float]
    """Metric → share of positions whose nearest token is the likeliest next one."""
    hits: dict[str, float]
    """Metric → share of positions whose k nearest hold the true next token."""
    chance_hits: dict[str, float]
    """The same for the vector of another position."""
    pairs: float
    """Mean over tokens a of Spearman's correlation, over tokens b seen behind a, of how often b follows a in the text
    with mean c_t · u_b + b_b over positions that read a."""
    chance_pairs: float
    """The same with the counts of another token a."""
    n_pairs: int
    """Tokens a that were correlated."""
    step_length: float
    """Mean step of the decoding walks."""
    shuffled_step_length: float
    """The same with the points of each walk in random order."""
    turning_angle: float
    """Mean angle between steps, degrees."""
    straightness: float
    k: int
    n: int
    """Positions."""


def proximity(model: Model, tokens: Any, k: int = 10, least: int = 20, seed: int = 0) -> Proximity:
    """Do composed vectors lie near the tokens that come next, and near those that often do?

    tokens: windows [window, pos] of one length, 3 or more. `least`: positions that a token a needs. Raises ConfigError
    for a model that reads or writes vectors, or two vocabularies, TokenError for windows that are too short.

    >>> import clew
    >>> found = proximity(clew.load("stories260K"), [[1, 403, 407, 261], [1, 378, 432, 383]], k=3, least=2)
    >>> found.logits_error < 1e-5, found.argmax["dot"]
    (True, 1.0)
    """
    check_model(model)
    check_counts(k=k, least=least)
    c = model.config
    if c.d_out is not None or c.d_in is not None:
        raise ConfigError("proximity: the model reads or writes vectors, no tokens")
    if c.d_vocab_out != c.d_vocab:
        raise ConfigError("proximity: the model reads and writes different vocabularies")
    ids = corpus.rows_of(model, tokens, "proximity")
    if ids.shape[1] < 3:
        raise TokenError(f"proximity: windows of {ids.shape[1]} tokens: a walk that turns needs 3")
    points = np.concatenate([r[_final_site(model)] for r in corpus.runs(model, ids, [_final_site(model)])])
    first = model.run(ids[:1])
    bias = model.b_U if "unembed.b_U" in model.weights else np.zeros(c.d_vocab_out)
    made, cap = points[0].astype(np.float64) @ model.W_U + bias, c.output_logits_soft_cap
    logits = first.logits[0].astype(np.float64)
    made = cap * np.tanh(made / cap) if cap else made
    error = float(np.abs(made - logits).max() / np.abs(logits).max())

    here, after = points[:, :-1].reshape(-1, c.d_model), ids[:, 1:].reshape(-1)
    found = nearest_by(model, here, k, METRICS, of="W_U")
    rng = np.random.default_rng(check_seed(seed))
    mixed = rng.permutation(len(after))
    scores = here.astype(np.float64) @ model.W_U + bias
    likeliest = scores.argmax(1)
    hits = {name: float((one.ids == after[:, None]).any(1).mean()) for name, one in found.items()}
    chance = {name: float((one.ids == after[mixed][:, None]).any(1).mean()) for name, one in found.items()}

    before = ids[:, :-1].reshape(-1)
    often = [int(a) for a in np.flatnonzero(np.bincount(before, minlength=c.d_vocab) >= least)]
    counts = {a: np.bincount(after[before == a], minlength=c.d_vocab_out) for a in often}
    means = {a: scores[before == a].mean(0) for a in often}
    turned = dict(zip(often, np.roll(often, 1), strict=True))

    def correlation(a: int, of: int) -> float:
        seen = np.flatnonzero(counts[of])
        return spearman(counts[of][seen], means[a][seen])

    own = np.array([correlation(a, a) for a in often])
    other = np.array([correlation(a, int(turned[a])) for a in often])
    walks = [measure(p) for p in points]
    shuffled = [measure(rng.permutation(p)) for p in points]
    return Proximity(
        error, {name: float((one.ids[:, 0] == likeliest).mean()) for name, one in found.items()}, hits, chance,
        _mean(own), _mean(other), int((~np.isnan(own)).sum()), float(np.mean([w.step_length.mean() for w in walks])),
        float(np.mean([w.step_length.mean() for w in shuffled])),
        float(np.degrees(np.mean([np.nanmean(w.turning_angle) for w in walks]))),
        float(np.mean([w.straightness for w in walks])), k, len(after),
    )  # fmt: skip


def _mean(x: Array) -> float:
    known = x[~np.isnan(x)]
    return float(known.mean()) if known.size else float("nan")


# ---- What a composed vector carries ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Insertion(Brief):
    """Composed vectors of prompts with K examples, put into prompts without any; made by :func:`insertion`."""

    shots: NDArray[np.int64]
    """Numbers of examples K, 0 first."""
    log_prob: Array
    """Mean log-probability of the answer by K, nats."""
    entropy: Array
    """Mean entropy of the next token by K, nats."""
    gain: float
    """log_prob of the most examples less that of none."""
    gain_error: float
    """Its standard error over tasks."""
    recovered: Array
    """Share of the gain that the composed vector brings, put in behind each layer [layer]; the last is 1 by making."""
    shuffled: Array
    """The same for the vector of examples with shuffled answers, of equal length."""
    other: Array
    """The same for the vector of another task, of equal length."""
    n: int
    """Tasks."""

    def table(self) -> str:
        """By number of examples, then by layer."""
        lines = [f"K = {k}: log p(answer) {p:.2f}, entropy {h:.2f} nats" for k, p, h in
                 zip(self.shots, self.log_prob, self.entropy, strict=True)]  # fmt: skip
        lines += [f"layer {i}: recovered {a:.2f}, shuffled answers {b:.2f}, another task {c:.2f}" for i, (a, b, c) in
                  enumerate(zip(self.recovered, self.shuffled, self.other, strict=True))]  # fmt: skip
        return "\n".join(lines)


def _prompts(rng: np.random.Generator, pool: Array, keys: Array, answers: Array, shots: int, places: int,
             fill: int) -> Array:  # fmt: skip
    """Prompts [n, places · (fill + 2) + fill + 1]: in the last `shots` of the places the key with its answer, elsewhere
    random tokens; the key comes last. answers: [n, shots]."""
    n, width = len(keys), fill + 2
    out = rng.choice(pool, (n, places * width + fill + 1))
    for shot in range(shots):
        at = (places - shots + shot) * width + fill
        out[:, at], out[:, at + 1] = keys, answers[:, shot]
    out[:, -1] = keys
    return np.asarray(out)


def insertion(model: Model, pool: Any, shots: Any = (0, 1, 2, 4, 8), n: int = 64, fill: int = 2,
              seed: int = 0) -> Insertion:  # fmt: skip
    """How much of what examples give is in the composed vector of the last position, layer by layer.

    A task is a pair of random tokens, key and answer. A prompt shows the pair K times between random tokens and ends
    with the key; where there are fewer examples, random tokens keep the length. The vector at the last position behind
    a layer is put into a prompt without examples and with other random tokens. Controls of equal length: the vector of
    a prompt whose examples give the key another answer each time, and that of another task.

    Parameters
    ----------
    pool
        Token ids to draw from, such as those of a text; each counts once.
    shots
        Numbers of examples; 0 and the largest are compared.
    n, fill
        Tasks; random tokens before each pair.

    Raises UnsupportedModelError for a model that does not predict tokens causally, ConfigError, TokenError (a prompt
    that the context does not hold, a pool of fewer than four tokens).

    >>> import clew
    >>> found = insertion(clew.load("stories260K"), range(260, 500), shots=(0, 2), n=8)
    >>> found.log_prob.shape, found.recovered.shape
    ((2,), (5,))
    """
    check_model(model)
    check_counts(0, fill=fill)
    check_counts(n=n)
    seed = check_seed(seed)
    c = model.config
    if c.d_in is not None or c.d_out is not None or c.attention_dir != "causal":
        raise UnsupportedModelError("insertion: the model must read tokens and predict the next one causally")
    asked = np.atleast_1d(as_array(shots, "insertion: shots"))
    numbers = sorted({whole(k, "insertion: shots") for k in asked.tolist()})
    if not numbers or numbers[0] != 0 or len(numbers) < 2:
        raise ConfigError(f"insertion: shots = {numbers}: 0 and at least one more")
    ids = np.unique(as_array(pool, "insertion: pool"))
    if ids.dtype.kind not in "iu":
        raise ShapeError(f"insertion: pool: token ids, not {ids.dtype} {list(ids.shape)}")
    places = numbers[-1]
    length = places * (fill + 2) + fill + 1
    if len(ids) < 4 or n < 2:
        raise TokenError(f"insertion: a pool of {len(ids)} tokens and {n} tasks: at least 4 tokens and 2 tasks")
    if length > c.n_ctx:
        raise TokenError(f"insertion: prompts of {length} tokens, the context holds {c.n_ctx}: fewer shots")
    rng = np.random.default_rng(seed)
    keys = rng.choice(ids, n)
    answers = np.array([rng.choice(ids[ids != key]) for key in keys])
    same = np.repeat(answers[:, None], places, 1)

    def outcome(prompts: Array, edits: Any = ()) -> tuple[Array, Array]:
        logits = model.run(prompts, logits="last", edits=edits).logits[:, 0].astype(np.float64)
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        return log_p[np.arange(n), answers], -(np.exp(log_p) * log_p).sum(1)

    by_shots = [outcome(_prompts(rng, ids, keys, answers=same, shots=k, places=places, fill=fill)) for k in numbers]
    shown = _prompts(rng, ids, keys, same, places, places, fill)
    mixed = _prompts(rng, ids, keys, rng.choice(ids, (n, places)), places, places, fill)
    empty = _prompts(rng, ids, keys, same, 0, places, fill)

    def vectors(prompts: Array) -> Array:
        run = model.run(prompts, capture="resid_post", positions=[-1], logits=None)
        return run.stack("resid_post")[:, :, 0].astype(np.float64)

    composed = vectors(shown)
    size = np.linalg.norm(composed, axis=-1, keepdims=True)
    zero, full = outcome(empty)[0], outcome(shown)[0]

    def share(inserted: Array) -> Array:
        inserted = inserted * (size / np.maximum(np.linalg.norm(inserted, axis=-1, keepdims=True), 1e-30))
        means = [
            outcome(empty, [edit.set(("resid_post", layer), inserted[layer][:, None], positions=[-1])])[0].mean()
            for layer in range(c.n_layers)
        ]
        return np.asarray((np.array(means) - zero.mean()) / (full - zero).mean())

    rise = full - zero
    return Insertion(
        np.array(numbers), np.array([p.mean() for p, _ in by_shots]), np.array([h.mean() for _, h in by_shots]),
        float(rise.mean()), float(rise.std(ddof=1) / np.sqrt(n)), share(composed), share(vectors(mixed)),
        share(np.roll(composed, 1, axis=1)), n,
    )  # fmt: skip


__all__ = ["Insertion", "Proximity", "insertion", "proximity"]
