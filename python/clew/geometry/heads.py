"""What attention heads read and write, as tokens: noun probing, singular vectors, bias vectors, coherence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import norm
from ..brief import Brief, listed
from ..errors import ConfigError, ShapeError, TokenError
from ..factored import FactoredMatrix
from ..inputs import as_array, check_counts, check_seed, check_type, is_word, real_array, whole
from ..model import Model, check_model
from .attention import _layer, query_key, value_output
from .norms import embeddings, texts
from .search import nearest

Array = NDArray[Any]
Kind = Literal["QK", "VO"]

NOUNS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem
    hand part place case week company system program question work government number night point home water room
    mother area money story fact month lot right study book eye job word business issue side kind head house
    service friend father power hour game line end member law car city community name president team minute idea
    body information back parent face others level office door health person art war history party result change
    morning reason research girl guy moment air teacher force education foot
    """.split()
)
"""A hundred frequent English nouns."""


def single_tokens(model: Model, words: Iterable[str]) -> tuple[list[str], list[int], list[str]]:
    """Words that are one token, with their ids, and the words that are not.

    A word is tried with a space before it first, as most vocabularies hold it, then without.
    Raises TokenError without a tokenizer.

    >>> import clew
    >>> kept, ids, missing = single_tokens(clew.load("shakespeare"), ["man", "zebra"])
    >>> kept, missing
    (['man'], ['zebra'])
    """
    check_model(model)
    check_type(Iterable, "a list of words", words=words)
    words = [words] if isinstance(words, str) else list(words)
    if not all(isinstance(word, str) for word in words):
        raise ConfigError("words: a list of words, and nothing else")
    kept: list[str] = []
    ids: list[int] = []
    missing: list[str] = []
    for word in words:
        for text in (f" {word}", word):
            try:
                token = model.to_single_token(text)
            except TokenError:
                if model.tokenizer is None:
                    raise
                continue
            kept.append(word)
            ids.append(token)
            break
        else:
            missing.append(word)
    return kept, ids, missing


def _ln1(model: Model, layer: int, x: Array) -> Array:
    return norm.normalise(model, x, f"blocks.{layer}.ln1")


def _searched(model: Model, rows: Array) -> Array:
    """Rows in the model's own precision: a search among them takes half the time in float32."""
    return rows.astype(model.dtype)


def _offset(model: Model) -> int | None:
    """Query and key at the same place, where the place matters."""
    return 0 if model.config.positional_embedding_type == "rotary" else None


# ---- Probing heads with words ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NounProbe(Brief):
    """What heads do with single words; made by :func:`probe_nouns`."""

    words: tuple[str, ...]
    ids: tuple[int, ...]
    missing: tuple[str, ...]
    """Words that are not one token of this vocabulary."""
    layers: tuple[int, ...]
    query_key: NDArray[np.int32] | None
    """Tokens that each word, as a query, attends to most [layer, head, word, k]; None under query and key norms."""
    value_output: NDArray[np.int32]
    """Tokens nearest to the word after one head has written [layer, head, word, k]."""
    value_output_sum: NDArray[np.int32]
    """The same after all heads have written [layer, word, k]."""
    kept: Array
    """Share of words whose own token is among the k nearest, heads summed [layer]."""
    kept_by_head: Array
    """The same of each head [layer, head]."""
    model: Model = field(repr=False, metadata={"json": False})

    def table(self, words: int = 5) -> str:
        """The first words' nearest tokens at each layer: heads summed, and the query-key neighbours of head 0."""
        lines = [f"{len(self.words)} words are single tokens; not: {listed(self.missing)}"]
        for row, layer in enumerate(self.layers):
            lines.append(f"layer {layer}: {self.kept[row]:.0%} of words are kept by the sum over heads")
            for i in range(min(words, len(self.words))):
                written = " ".join(texts(self.model, self.value_output_sum[row, i]))
                lines.append(f"  {self.words[i]:<10} writes    {written}")
                if self.query_key is not None:
                    lines.append(f"  {'':<10} looks for {' '.join(texts(self.model, self.query_key[row, 0, i]))}")
        return "\n".join(lines)


def probe_nouns(
    model: Model, words: Iterable[str] | None = None, layers: Sequence[int] | None = None, k: int = 5,
    *, ids: Sequence[int] | None = None,
) -> NounProbe:  # fmt: skip
    """Probes heads with words: which tokens a word looks for, and what it becomes once a head has written.

    Query-key: LN_ln1(e) W_QK, nearest by dot product among LN_ln1(W_E). Value-output: LN_f(e + LN_ln1(e) W_VO + b_V W_O
    + b_O), nearest by dot product among W_E; each head alone, and all heads together (Molina 2023, experiment with
    common nouns). Under rotary positions query and key stand at one place (ours).

    Parameters
    ----------
    words
        None: `NOUNS`. Words that are not one token are left out, counted and listed.
    layers
        None: first, middle and last.
    k
        How many tokens.
    ids
        Token ids instead of words, for models without a tokenizer.

    Raises
    ------
    TokenError
        No word is a single token, an id out of range, or no tokenizer.
    SiteError, ConfigError
        No such layer; k out of range.

    Example
    -------
    >>> import clew
    >>> probe = probe_nouns(clew.load("shakespeare"), ["man", "king", "zebra"], layers=[0, -1])
    >>> probe.missing, probe.value_output_sum.shape
    (('zebra',), (2, 2, 5))
    """
    check_model(model)
    if ids is None:
        kept, numbers, missing = single_tokens(model, NOUNS if words is None else words)
    else:
        given = np.atleast_1d(as_array(ids, "ids"))
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ShapeError(f"ids must be integers [n], not {given.dtype} {list(given.shape)}")
        kept, numbers, missing = [f"#{i}" for i in given], [int(i) for i in given], []
    if not numbers:
        raise TokenError(f"none of the words is a single token: {', '.join(missing) or 'there are none'}")
    outside = [i for i in numbers if not 0 <= i < model.config.d_vocab]
    if outside:
        raise TokenError(f"id {outside[0]} is no token: the vocabulary has 0 to {model.config.d_vocab - 1}")
    n = model.config.n_layers
    some = [0, n // 2, n - 1] if layers is None else np.atleast_1d(as_array(layers, "layers")).tolist()
    chosen = [_layer(model, i) for i in some]
    if not chosen:
        raise ConfigError("layers: none were given")
    chosen = list(dict.fromkeys(chosen))
    every = embeddings(model)
    e, found_qk, found_vo, found_sum = every[numbers], [], [], []
    for layer in chosen:
        read = _ln1(model, layer, e)
        if not model.config.use_qk_norm:
            wanted = read @ query_key(model, layer, _offset(model)).W  # [head, word, d]
            found_qk.append(nearest(_searched(model, _ln1(model, layer, every)), wanted, k).ids)
        moved = value_output(model, layer)
        written = read @ moved.W + moved.bias[:, None]  # [head, word, d]
        name = f"blocks.{layer}.attn.b_O"
        rest = model.weights[name].astype(np.float64) if name in model.weights else 0.0
        states = np.concatenate([written, written.sum(0, keepdims=True)]) + rest
        if model.config.use_normalization_before_and_after:
            states = norm.normalise(model, states, f"blocks.{layer}.ln1_post")
        found = nearest(_searched(model, every), norm.normalise(model, e + states), k).ids
        found_vo.append(found[:-1])
        found_sum.append(found[-1])
    own = np.array(numbers)[:, None]
    by_head, together = np.stack(found_vo), np.stack(found_sum)
    return NounProbe(
        tuple(kept), tuple(numbers), tuple(missing), tuple(chosen), np.stack(found_qk) if found_qk else None,
        by_head, together, (together == own).any(-1).mean(-1), (by_head == own).any(-1).mean(-1), model,
    )  # fmt: skip


# ---- Singular vectors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadSVD(Brief):
    """Singular value decomposition of W_QK or W_VO of a layer's heads; made by :func:`svd_heads`."""

    kind: Kind
    layer: int
    singular_values: Array
    """[head, r], largest first."""
    left: Array = field(metadata={"json": False})
    """Left vectors, signed [head, pairs, d_model]: queries of W_QK, keys of W_VO."""
    right: Array = field(metadata={"json": False})
    """Right vectors, signed [head, pairs, d_model]: keys of W_QK, values of W_VO."""
    left_tokens: NDArray[np.int32]
    """Tokens nearest to the left vectors [head, pairs, k]."""
    right_tokens: NDArray[np.int32]
    """Tokens nearest to the right vectors [head, pairs, k]."""
    coverage: Array
    """Sum of the first singular values over the sum of all [head, r]."""
    mark: NDArray[np.int64]
    """How many singular values hold 99 % of the sum [head]."""
    model: Model = field(repr=False, metadata={"json": False})

    def table(self, head: int = 0, pairs: int = 5) -> str:
        """A head's first pairs as tokens. Raises ConfigError for a head that is not there."""
        check_counts(0, pairs=pairs)
        if not 0 <= whole(head, "head") < len(self.mark):
            raise ConfigError(f"head = {head}: the layer has heads 0 to {len(self.mark) - 1}")
        lines = [
            f"{self.kind} of layer {self.layer}, head {head}: {self.mark[head]} of {self.coverage.shape[1]} "
            "singular values hold 99 %"
        ]
        for i in range(min(pairs, self.left_tokens.shape[1])):
            left, right = (" ".join(texts(self.model, t[head, i])) for t in (self.left_tokens, self.right_tokens))
            lines.append(f"  {self.singular_values[head, i]:8.3g}  {left}  →  {right}")
        return "\n".join(lines)


def _matrix(model: Model, layer: int, kind: str) -> FactoredMatrix:
    if not is_word(kind, ("QK", "VO")):
        raise ConfigError(f"kind = {kind!r}: 'QK' or 'VO'")
    return query_key(model, layer, _offset(model)).W if kind == "QK" else value_output(model, layer).W


def _sides(model: Model, layer: int, kind: str) -> tuple[Array, Array]:
    """What left and right vectors are compared with: what attention reads; values with what the unembedding reads."""
    read = _searched(model, _ln1(model, layer, embeddings(model)))
    return read, read if kind == "QK" else _searched(model, embeddings(model))


def svd_heads(model: Model, layer: int, kind: Kind = "QK", pairs: int = 20, k: int = 5) -> HeadSVD:
    """Singular vectors of every head's W_QK or W_VO as tokens.

    The sign of each pair is that for which the right vector has the larger maximal dot product with a token (Molina
    2023). Queries and keys are compared with LN_ln1(W_E), values with W_E, by dot product (ours). Coverage counts
    singular values, not their squares. Rotary positions: query and key at one place (ours).

    Parameters
    ----------
    pairs
        How many pairs, at most the rank.
    k
        Tokens of each vector.

    Raises SiteError, ConfigError, UnsupportedModelError as :func:`query_key` and :func:`nearest`.

    Example
    -------
    >>> import clew
    >>> found = svd_heads(clew.load("shakespeare"), 0, "VO", pairs=3)
    >>> found.right_tokens.shape, bool((found.mark <= 32).all())
    ((4, 3, 5), True)
    """
    layer = _layer(model, layer)
    u, s, vh = _matrix(model, layer, kind).svd()
    count = whole(pairs, "pairs")
    if count < 1:
        raise ConfigError(f"pairs = {count}: at least 1")
    left_rows, right_rows = _sides(model, layer, kind)
    left = np.swapaxes(u, -1, -2)[:, :count]
    right = vh[:, :count]
    best = [nearest(right_rows, sign * right, 1).scores[..., 0] for sign in (1, -1)]
    sign = np.where(best[0] >= best[1], 1.0, -1.0)[..., None]
    left, right = left * sign, right * sign
    total = np.cumsum(s, axis=-1)
    whole_sum = total[:, -1:]
    coverage = np.divide(total, whole_sum, out=np.ones_like(total), where=whole_sum > 0)
    return HeadSVD(
        kind, layer, s, left, right, nearest(left_rows, left, k).ids, nearest(right_rows, right, k).ids, coverage,
        (coverage < 0.99).sum(-1) + 1, model,
    )  # fmt: skip


@dataclass(frozen=True)
class BiasTokens(Brief):
    """Tokens nearest to a layer's bias vectors; made by :func:`bias_tokens`. All [2, head, k]: +, then −."""

    layer: int
    query: NDArray[np.int32]
    """±W_Q b_Kᵀ: queries that any key attracts, or repels."""
    key: NDArray[np.int32]
    """±b_Q W_Kᵀ: keys that any query attends to, or does not."""
    sizes: Array
    """Lengths of the two vectors [2, head]."""
    model: Model = field(repr=False, metadata={"json": False})

    def table(self) -> str:
        """Every head's tokens."""
        lines = []
        for head in range(self.query.shape[1]):
            for name, ids, size in (("W_Q b_K", self.query, self.sizes[0]), ("b_Q W_K", self.key, self.sizes[1])):
                for sign, row in zip("+−", ids[:, head], strict=True):
                    lines.append(f"head {head}  {sign}{name}  {size[head]:8.3g}  {' '.join(texts(self.model, row))}")
        return "\n".join(lines)


def bias_tokens(model: Model, layer: int, k: int = 5) -> BiasTokens | None:
    """Tokens nearest ±W_Q b_Kᵀ and ±b_Q W_Kᵀ of each head, by dot product among LN_ln1(W_E) (Molina 2023).

    None for a layer without query and key biases. Raises SiteError, ConfigError, UnsupportedModelError.

    >>> import clew
    >>> bias_tokens(clew.load("shakespeare"), 0).query.shape
    (2, 4, 5)
    >>> bias_tokens(clew.load("stories260K"), 0) is None
    True
    """
    layer = _layer(model, layer)
    form = query_key(model, layer, _offset(model))
    if not form.query.any() and not form.key.any():
        return None
    rows = _searched(model, _ln1(model, layer, embeddings(model)))
    found = [nearest(rows, np.stack([v, -v]), k).ids for v in (form.query, form.key)]
    sizes = np.stack([np.linalg.norm(v, axis=-1) for v in (form.query, form.key)])
    return BiasTokens(layer, found[0], found[1], sizes, model)


# ---- Coherence ------------------------------------------------------------------------------------------------------


def coherence(rows: Array, ids: Array) -> Array:
    """Mean cosine between the k rows of each group [..., k], the mean of all rows taken out first; float64 [...].

    1: the rows point one way. Zero rows count as zero. Raises ShapeError for what is no matrix of real numbers or no
    groups of two and more of its rows, ConfigError for a number that no row has.
    """
    rows, ids = real_array(rows, "rows"), as_array(ids, "ids")
    if rows.ndim != 2 or not rows.size or ids.ndim < 1 or ids.dtype.kind not in "iu" or ids.shape[-1] < 2:
        raise ShapeError(
            f"coherence: rows [n, d] and the numbers of two or more of them [..., k], not {list(rows.shape)} and "
            f"{ids.dtype} {list(ids.shape)}"
        )
    if ids.size and not (0 <= ids.min() and ids.max() < len(rows)):
        raise ConfigError(f"coherence: ids {ids.min()} to {ids.max()} of {len(rows)} rows")
    centred = rows - rows.mean(0)
    sizes = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, sizes, out=np.zeros_like(centred), where=sizes > 0)
    k = ids.shape[-1]
    sums = unit[ids].sum(-2)  # ‖Σ u‖² = k + the sum of the cosines of all ordered pairs
    own = np.square(unit[ids]).sum((-1, -2))
    return np.asarray((np.square(sums).sum(-1) - own) / (k * (k - 1)))


@dataclass(frozen=True)
class HeadCoherence(Brief):
    """Are the tokens of a head's singular directions alike? Made by :func:`head_coherence`."""

    kind: Kind
    left: Array
    """Coherence of the tokens nearest to left vectors, mean over directions [layer, head]."""
    right: Array
    """The same of right vectors [layer, head]."""
    random_left: Array
    """The same of as many random directions, many times [layer, draw]: what a head without any subject would give."""
    random_right: Array
    untrained_left: Array
    """The same of a model of the same shape that was never trained, in its own embedding [layer]."""
    untrained_right: Array

    @property
    def above_chance(self) -> tuple[float, float]:
        """Share of heads, left and right, above 95 % of the random draws of their layer; 0.05 by chance."""
        pairs = ((self.left, self.random_left), (self.right, self.random_right))
        left, right = (float((x > np.quantile(r, 0.95, axis=1)[:, None]).mean()) for x, r in pairs)
        return left, right

    def table(self) -> str:
        """A line for each layer: heads' mean and range, and the controls."""
        lines = [f"{self.kind} layer   left (range)            right (range)           random         untrained"]
        for n in range(len(self.left)):
            cells = "  ".join(
                f"{x.mean():6.3f} ({x.min():6.3f} – {x.max():5.3f})" for x in (self.left[n], self.right[n])
            )
            lines.append(
                f"{n:>8}  {cells}  {self.random_left[n].mean():5.3f}, {self.random_right[n].mean():5.3f}   "
                f"{self.untrained_left[n]:5.3f}, {self.untrained_right[n]:5.3f}"
            )
        return "\n".join(lines)


_DRAWS = 40


def _directions(model: Model, kind: Kind, pairs: int, k: int, seed: int) -> list[Array]:
    """Coherence of tokens nearest to singular and to random directions: left, right [layer, head], [layer, draw]."""
    config, rows, rng = model.config, embeddings(model), np.random.default_rng(seed)
    out: list[list[Array]] = [[], [], [], []]
    for layer in range(config.n_layers):
        found = svd_heads(model, layer, kind, pairs, k)
        out[0].append(coherence(rows, found.left_tokens).mean(-1))
        out[1].append(coherence(rows, found.right_tokens).mean(-1))
        n_found = found.left_tokens.shape[-2]  # the rank may be lower than `pairs`
        directions = rng.standard_normal((_DRAWS, n_found, config.d_model))
        for side, values in zip(_sides(model, layer, kind), out[2:], strict=True):
            values.append(coherence(rows, nearest(side, directions, k).ids).mean(-1))
    return [np.array(values) for values in out]


def head_coherence(model: Model, kind: Kind = "VO", pairs: int = 10, k: int = 10, seed: int = 0) -> HeadCoherence:
    """Coherence of the k tokens nearest to each singular direction, by layer and head, with controls (ours).

    The score for subject-specific heads: mean cosine between the embeddings of a direction's tokens. Tokens that share
    a direction are alike to begin with, so the numbers mean something only beside random directions in the same
    embedding and an untrained model's heads. pairs: directions of each head, at most the rank.

    Raises ConfigError (k below 2, pairs below 1), UnsupportedModelError (W_QK under query and key norms).

    >>> import clew
    >>> head_coherence(clew.load("shakespeare"), pairs=2, k=5).right.shape
    (4, 4)
    """
    check_model(model)
    seed = check_seed(seed)
    check_counts(pairs=pairs)
    if whole(k, "k") < 2:
        raise ConfigError(f"k = {k}: coherence takes two tokens or more")
    fresh = Model.from_config(model.config, seed=seed, dtype=model.dtype)
    left, right, random_left, random_right = _directions(model, kind, pairs, k, seed)
    untrained = _directions(fresh, kind, pairs, k, seed)
    return HeadCoherence(kind, left, right, random_left, random_right, untrained[0].mean(-1), untrained[1].mean(-1))


__all__ = [
    "NOUNS",
    "BiasTokens",
    "HeadCoherence",
    "HeadSVD",
    "NounProbe",
    "bias_tokens",
    "coherence",
    "head_coherence",
    "probe_nouns",
    "single_tokens",
    "svd_heads",
]
