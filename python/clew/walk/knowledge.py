"""Where knowledge lies: loss after damage to token embeddings, against as many parameters of neurons, heads and blocks.

The experiment is ours, for the paper's claim that knowledge lies in the organisation of the vectors, not in particular
neurons or layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import corpus, edit, metrics
from ..brief import Brief
from ..edit import Edit
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_counts, check_seed, real_array
from ..model import Model, check_model

Array = NDArray[Any]
Unit = tuple[int, int]
"""(layer, number)"""

BINS = 10
"""Bands of frequency: tokens that never occur, and tenths of the others."""


@dataclass(frozen=True)
class DoseResponse(Brief):
    """Rises of the loss by dose; made by :func:`dose_response`."""

    doses: Array
    """Shares of the embedding's rows."""
    parameters: NDArray[np.int64]
    """Parameters of so many rows: what every kind of damage may touch at that dose."""
    loss: float
    """Of the whole model, nats a token."""
    rises: dict[str, Array]
    """Kind of damage → rise of the loss [dose]; NaN where the budget holds no unit, or more than all of them."""
    errors: dict[str, Array]
    """Kind → standard error of the rise over draws [dose]; 0 where nothing is drawn."""
    touched: dict[str, NDArray[np.int64]]
    """Kind → units that were changed [dose]: rows, neurons, heads, blocks."""
    draws: int
    """Random draws that "random" kinds and rows are means of."""
    n: int
    """Tokens whose loss is measured."""

    def table(self) -> str:
        """A line for each kind."""
        head = "".join(f"{dose:>10.0%}" for dose in self.doses)
        lines = [f"loss {self.loss:.3f}; rise by dose{'':<7}{head}"]
        for kind, rises in self.rises.items():
            lines.append(f"  {kind:<28}" + "".join(f"{x:>+10.3f}" for x in rises))
        return "\n".join(lines)


def frequency_bins(counts: Any, bins: int = BINS) -> NDArray[np.int64]:
    """The band of each token [d_vocab]: 0 for those that never occur, 1 to `bins` by frequency, as equal as can be.

    >>> frequency_bins([0, 5, 1, 9, 0, 2], bins=2).tolist()
    [0, 2, 1, 2, 0, 1]
    """
    counts = as_array(counts, "counts")
    out = np.zeros(len(counts), np.int64)
    seen = np.flatnonzero(counts > 0)
    order = seen[np.argsort(counts[seen], kind="stable")]
    for band, part in enumerate(np.array_split(order, bins), 1):
        out[part] = band
    return out


def permuted_rows(bins: Any, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Whose row each token gets [d_vocab]: of every band a share of the tokens change places, none keeps its own.

    Where a share is one token, two change places: one alone cannot. A band of one token keeps it.

    >>> moved = permuted_rows([0, 0, 0, 0, 1, 1], 1.0, np.random.default_rng(0))
    >>> bool((moved != np.arange(6)).all()), sorted(moved[:4].tolist())
    (True, [0, 1, 2, 3])
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share = {share}: from 0 to 1")
    bins = np.asarray(bins)
    out = np.arange(len(bins))
    for band in np.unique(bins):
        own = rng.permutation(np.flatnonzero(bins == band))
        count = round(share * len(own))
        own = own[: 2 if count == 1 else count]
        out[own] = np.roll(own, 1)  # a cycle: with two or more, nobody stays
    return out


def _within(order: Sequence[Any], cost: int, budget: int) -> list[Any] | None:
    """The first units that the budget pays; None where it pays none, or more than there are."""
    count = budget // cost
    return list(order[:count]) if 1 <= count <= len(order) else None


def _by_layer(units: Sequence[Unit]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for layer, number in units:
        out.setdefault(layer, []).append(number)
    return out


class _Means:
    """Means of sites over the tokens, and first-order attributions of replacing values by them."""

    def __init__(self, model: Model, tokens: Array) -> None:
        c = model.config
        names = ["z", "attn_out"] + ([] if c.attn_only else ["post", "mlp_out"])
        run = model.run(tokens, capture=names, logits=None)
        slopes = model.gradients(tokens, metrics.loss(), wrt=names)
        self.mean: dict[tuple[str, int], Array] = {}
        self.attribution: dict[str, Array] = {}
        for name in names:
            rows = []
            for layer in range(c.n_layers):
                value = run[name, layer].astype(np.float64)
                self.mean[name, layer] = mean = value.mean(axis=(0, 1))
                effect = slopes[name, layer].astype(np.float64) * (mean - value)
                rows.append(effect.sum(axis=(0, 1, *(range(3, effect.ndim) if name == "z" else ()))))
            self.attribution[name] = np.array(rows)
        branches = [self.attribution[name].sum(1) for name in names if name.endswith("out")]
        self.blocks = np.sum(branches, axis=0)


def dose_response(model: Model, tokens: Any, doses: Any = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0), counts: Any = None,
                  draws: int = 5, seed: int = 0) -> DoseResponse:  # fmt: skip
    """Loss after damage of matched size to embeddings, neurons, heads and blocks.

    At each dose, a share of W_E's rows, the budget is their number of parameters. Embeddings: rows change places within
    bands of frequency ("rows permuted"), or are replaced by the mean row of their band ("rows to the mean"). The others
    are replaced by their mean over these tokens: neurons of the MLPs, heads (W_Q, W_K, W_V, W_O) and blocks, drawn at
    random, or those first whose first-order attribution foretells the largest rise. Only what is read changes: the
    unembedding stays as it is, tied or not.

    Parameters
    ----------
    tokens
        Windows [window, pos] of one length; the loss, the means and the attributions are theirs.
    counts
        How often each token occurs [d_vocab]; None: in `tokens`.
    draws
        Random draws that are averaged.

    Raises ConfigError for a model of vectors or doses outside (0, 1].

    >>> import clew
    >>> found = dose_response(clew.load("stories260K"), [[1, 403, 407, 261, 378]], doses=(0.5, 1.0), draws=1)
    >>> sorted(found.rises)[:2], found.rises["rows permuted"].shape
    (['blocks, random', 'blocks, top'], (2,))
    """
    check_model(model)
    check_counts(draws=draws)
    seed = check_seed(seed)
    c = model.config
    if c.d_in is not None or c.d_out is not None:
        raise ConfigError("dose_response: the model reads or writes vectors, it has no token embeddings")
    shares = np.atleast_1d(real_array(doses, "dose_response: doses"))
    if shares.ndim != 1 or not shares.size or not ((shares > 0) & (shares <= 1)).all():
        raise ConfigError(f"dose_response: doses = {shares.tolist()}: above 0, at most 1")
    ids = corpus.rows_of(model, tokens, "dose_response")
    seen = np.bincount(ids.reshape(-1), minlength=c.d_vocab) if counts is None else real_array(counts, "counts")
    if seen.shape != (c.d_vocab,):
        raise ShapeError(f"dose_response: counts {list(seen.shape)} must be [d_vocab = {c.d_vocab}]")
    bins = frequency_bins(seen)
    table = model.W_E.astype(np.float64) * c.embed_scale
    middle = np.array(
        [table[bins == band].mean(0) if (bins == band).any() else 0 * table[0] for band in range(BINS + 1)]
    )
    base = float(model.loss(ids, reduce="mean"))
    means = _Means(model, ids)

    def rise(edits: list[Edit]) -> float:
        return float(model.loss(ids, reduce="mean", edits=edits)) - base

    def permuted(share: float, rng: np.random.Generator) -> list[Edit]:
        return [edit.set("hook_embed", table[permuted_rows(bins, share, rng)[ids]])]

    def to_mean(share: float, rng: np.random.Generator) -> list[Edit]:
        changed = permuted_rows(bins, share, rng) != np.arange(c.d_vocab)
        return [edit.set("hook_embed", np.where(changed[:, None], middle[bins], table)[ids])]

    def neurons(units: Sequence[Unit]) -> list[Edit]:
        return [edit.set(("post", layer), means.mean["post", layer], neurons=own) for layer, own in
                _by_layer(units).items()]  # fmt: skip

    def heads(units: Sequence[Unit]) -> list[Edit]:
        return [edit.set(("z", layer), means.mean["z", layer], heads=own) for layer, own in _by_layer(units).items()]

    def blocks(units: Sequence[Unit]) -> list[Edit]:
        names = ["attn_out"] if c.attn_only else ["attn_out", "mlp_out"]
        return [edit.set((name, layer), means.mean[name, layer]) for layer, _ in units for name in names]

    # parameters of one unit, biases and norms not counted; heads that share keys and values pay their part of them
    head = 2 * c.d_model * c.d_head + 2 * c.d_model * c.d_head * c.n_key_value_heads // c.n_heads
    neuron = (3 if c.gated_mlp else 2) * c.d_model
    block = c.n_heads * head + (0 if c.attn_only else c.d_mlp * neuron)
    kinds: dict[str, tuple[int, Array, Callable[[Sequence[Unit]], list[Edit]]]] = {
        "heads": (head, means.attribution["z"], heads),
        "blocks": (block, means.blocks[:, None], blocks),
    }
    if not c.attn_only:
        kinds = {"neurons": (neuron, means.attribution["post"], neurons)} | kinds
    rises: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    touched: dict[str, list[int]] = {}

    def put(kind: str, values: list[float], count: int) -> None:
        rises.setdefault(kind, []).append(float(np.mean(values)))
        errors.setdefault(kind, []).append(float(np.std(values, ddof=1) / np.sqrt(draws)) if len(values) > 1 else 0.0)
        touched.setdefault(kind, []).append(count)

    for share in shares:
        budget = round(share * c.d_vocab) * c.d_model
        for kind, damage in (("rows permuted", permuted), ("rows to the mean", to_mean)):
            rngs = [np.random.default_rng([seed, draw]) for draw in range(draws)]
            put(kind, [rise(damage(share, rng)) for rng in rngs], round(share * c.d_vocab))
        for kind, (cost, attribution, damage_units) in kinds.items():
            order = np.argsort(-attribution, axis=None, kind="stable")
            units = [(int(i) // attribution.shape[1], int(i) % attribution.shape[1]) for i in order]
            values = []
            for draw in range(draws):
                mixed = [units[i] for i in np.random.default_rng([seed, draw]).permutation(len(units))]
                chosen = _within(mixed, cost, budget)
                values.append(float("nan") if chosen is None else rise(damage_units(chosen)))
            chosen = _within(units, cost, budget)
            count = 0 if chosen is None else len(chosen)
            put(f"{kind}, random", values, count)
            put(f"{kind}, top", [float("nan") if chosen is None else rise(damage_units(chosen))], count)
    return DoseResponse(
        shares, np.array([round(s * c.d_vocab) * c.d_model for s in shares]), base,
        {kind: np.array(values) for kind, values in rises.items()},
        {kind: np.array(values) for kind, values in errors.items()},
        {kind: np.array(values) for kind, values in touched.items()}, draws, ids.shape[0] * (ids.shape[1] - 1),
    )  # fmt: skip


__all__ = ["BINS", "DoseResponse", "dose_response", "frequency_bins", "permuted_rows"]
