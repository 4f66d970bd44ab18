"""Neighbourhoods: are the nearest words of the same class, and does a word in a text stay near its own neighbours?

The note names both without a definition; these are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import corpus
from ..brief import Brief
from ..errors import ConfigError, ShapeError, TokenError
from ..geometry import nearest
from ..inputs import check_counts, check_seed, check_type, real_array, whole
from ..model import Model, check_model
from .similarity import Space, token_table, word_ids

Array = NDArray[Any]

CLASSES: dict[str, str] = {
    "pronouns": "I me my he him his she her we us our they them their you your thou thee thy it",
    "prepositions": "of in to with for from by on at upon into against before after between through under over",
    "auxiliaries": "is are was were be am been do did does have has had will would shall should can could may might "
    "must",
    "conjunctions": "and but or if that as when then than so because though",
    "questions": "what who where why how which",
    "numbers": "one two three four five six seven eight nine ten hundred thousand",
    "family": "father mother son daughter brother sister wife husband uncle cousin child children boy girl man woman",
    "titles": "king queen lord lady sir prince duke master captain president",
    "body": "hand hands heart eye eyes face head blood tongue arm arms foot feet hair",
    "time": "day night time hour year years month week morning today",
    "saying": "say said tell told speak hear ask asked call called",
    "going": "go come went came run stand leave walk walks turn",
    "praise": "good great fair sweet noble true gentle dear brave",
}
"""Classes of words for :func:`purity_of_tokens`, chosen by us; a word counts where it is one token."""


@dataclass(frozen=True)
class Purity:
    """How often neighbours are of one class; made by :func:`purity`."""

    purity: float
    """Mean share of the k nearest others that are of the item's own class."""
    chance: float
    """Its expectation when labels are dealt at random: Σ n_c (n_c − 1) / (n (n − 1))."""
    p: float
    """Share of random deals, the true one among them, that reach it."""
    k: int
    n: int
    by_class: dict[str, float]
    sizes: dict[str, int]

    def __repr__(self) -> str:
        return (f"Purity {self.purity:.3f} (chance {self.chance:.3f}, p {self.p:.3g}): {self.k} nearest of {self.n} "
                f"items in {len(self.sizes)} classes")  # fmt: skip


def purity(vectors: ArrayLike, labels: Sequence[Any], k: int = 3, deals: int = 999, seed: int = 0) -> Purity:
    """Neighbourhood purity of labelled vectors [n, d]: neighbours by cosine, among the labelled ones only.

    Classes of one item have no neighbour of their own and are refused. Raises ShapeError, ConfigError.

    >>> x = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> purity(x, ["a", "a", "b", "b"], k=1).purity
    1.0
    """
    x = real_array(vectors, "purity: vectors")
    check_type((Sequence, np.ndarray), "a list of names", labels=labels)
    check_counts(0, deals=deals)
    names = [str(label) for label in labels]
    if x.ndim != 2 or len(x) != len(names):
        raise ShapeError(f"purity: vectors {list(x.shape)} with {len(names)} labels")
    classes, own, sizes = np.unique(names, return_inverse=True, return_counts=True)
    k = whole(k, "purity: k")
    if len(classes) < 2 or sizes.min() < 2 or not 1 <= k < len(x):
        raise ConfigError(f"purity: k = {k} of {len(x)} items in classes of {sizes.tolist()}: two classes of two items "
                          "at least, and k below the number of items")  # fmt: skip
    ids = nearest(x, x, k + 1, "cosine").ids
    others = np.empty((len(x), k), np.int64)
    for i, row in enumerate(ids):  # an item is its own nearest, unless another is the same
        others[i] = [j for j in row if j != i][:k]
    same = own[others] == own[:, None]
    share = same.mean(1)
    rng = np.random.default_rng(check_seed(seed))
    reached = 1
    for _ in range(deals):
        dealt = rng.permutation(own)
        reached += (dealt[others] == dealt[:, None]).mean() >= share.mean() - 1e-12
    return Purity(
        float(share.mean()), float((sizes * (sizes - 1)).sum() / (len(x) * (len(x) - 1))), reached / (deals + 1), k,
        len(x), {str(name): float(share[own == i].mean()) for i, name in enumerate(classes)},
        {str(name): int(size) for name, size in zip(classes, sizes, strict=True)},
    )  # fmt: skip


def purity_of_tokens(model: Model, space: Space = "centred", k: int = 3, *, of: str = "W_E", table: Any = None,
                     classes: Mapping[str, str] = CLASSES, seed: int = 0) -> Purity:  # fmt: skip
    """Purity of a model's token vectors: words of `classes` that are one token behind a space.

    table: another table [d_vocab, d] of the same tokens, such as another model's. Raises TokenError for a model without
    a tokenizer or with fewer than two classes of two tokens; ShapeError.

    >>> import clew
    >>> found = purity_of_tokens(clew.load("shakespeare"))
    >>> found.purity > found.chance
    True
    """
    check_model(model)
    check_type(Mapping, "names of classes to words", classes=classes)
    check_counts(k=k)
    rows = token_table(model, of, space) if table is None else real_array(table, "table")
    if rows.ndim != 2 or len(rows) != model.config.d_vocab:
        raise ShapeError(f"a table {list(rows.shape)} for {model.config.d_vocab} tokens")
    if table is not None and space == "centred":
        rows = rows - rows.mean(0)
    ids: list[int] = []
    labels: list[str] = []
    for name, words in classes.items():
        own = [found[0] for found in (word_ids(model, w) for w in words.split()) if len(found) == 1]
        own = [i for i in dict.fromkeys(own) if i not in ids]
        if len(own) > 1:
            ids += own
            labels += [name] * len(own)
    if len(set(labels)) < 2:
        raise TokenError("purity: the vocabulary has fewer than two classes of two words that are one token")
    return purity(rows[ids], labels, min(k, len(ids) - 1), seed=seed)


@dataclass(frozen=True)
class Composition(Brief):
    """Do composed vectors stay with their word? Made by :func:`composition`. Arrays are [layer + 1], 0 the start."""

    own: Array
    """Share of the k tokens nearest to a word's embedding that are among the k nearest to its vector in the text."""
    other: Array
    """The same with another word of the text: what hubs and anisotropy give."""
    itself: Array
    """Share of positions whose nearest token is the word itself."""
    following: Array
    """Share of positions whose nearest token is the next word."""
    k: int
    n: int
    """Positions."""


def composition(model: Model, tokens: Any, k: int = 10, seed: int = 0) -> Composition:
    """The residual stream of words in a text among token embeddings, layer by layer; neighbours by cosine in W_E.

    The last position of each sequence is left out: nothing follows it. Raises ConfigError for a model of vectors or k
    out of range, TokenError for sequences of one token.

    >>> import clew
    >>> found = composition(clew.load("stories260K"), [[1, 403, 407, 261, 378]], k=5)
    >>> found.own.shape, float(found.own[0]), float(found.itself[0])
    ((6,), 1.0, 1.0)
    """
    check_model(model)
    check_counts(k=k)
    seed = check_seed(seed)
    c = model.config
    if c.d_in is not None:
        raise ConfigError("composition: the model reads vectors, it has no words")
    points, here, after = [], [], []
    for run in corpus.runs(model, tokens, [("resid_pre", 0), "resid_post"]):
        stack, ids_here = corpus.stream(run), run.tokens
        assert ids_here is not None
        for i, length in enumerate(run.lengths):
            points.append(stack[:, i, : length - 1])
            here.append(ids_here[i][: length - 1])
            after.append(ids_here[i][1:length])
    ids, following = np.concatenate(here).astype(np.int64), np.concatenate(after)
    if not len(ids):
        raise TokenError("composition: no sequence of two tokens")
    streams = np.concatenate(points, axis=1)
    rows = token_table(model)
    home = nearest(rows, rows[ids], k, "cosine").ids
    shift = np.random.default_rng(seed).permutation(len(ids))
    found = nearest(rows, streams, k, "cosine").ids

    def overlap(theirs: Array) -> Array:
        return np.array([(layer[:, :, None] == theirs[:, None, :]).any(-1).mean() for layer in found])

    return Composition(
        overlap(home), overlap(home[shift]), (found[:, :, 0] == ids).mean(1), (found[:, :, 0] == following).mean(1), k,
        len(ids),
    )  # fmt: skip


__all__ = ["CLASSES", "Composition", "Purity", "composition", "purity", "purity_of_tokens"]
