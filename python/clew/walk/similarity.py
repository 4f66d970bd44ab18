"""What embeddings know of words: human similarity scores beside cosines, with vectors of counts as a control.

Files of pairs (SimLex-999, WordSim-353, MEN, RG-65, SimVerb-3500 as they are handed around) hold a line for each pair:
two words and people's score. None of them comes with the package.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import norm
from ..brief import Brief, listed
from ..descent.steps import spearman
from ..errors import ConfigError, LoadError, ShapeError, TokenError
from ..inputs import check_counts, check_path, check_seed, check_type, is_word, real_array, whole
from ..model import Model, check_model
from .concepts import normed
from .tasks import Bad, check_text, read_lines

Array = NDArray[Any]
Space = Literal["raw", "centred", "normed"]
Pieces = Literal["mean", "last", "single"]

SPACES: tuple[Space, ...] = ("raw", "centred", "normed")
MIN_COUNT = 20
"""A word must occur so often in the training text to count."""

_CONTROL = "PPMI-SVD"
"""What the source of the control's vectors begins with."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


# ---- Files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordPairs(Brief):
    """Pairs of words that people have scored; made by :func:`read_word_pairs`."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    scores: Array
    """People's scores [pair]; scales differ from set to set."""
    skipped: tuple[str, ...] = ()
    """What was wrong with each line that was left out."""

    @property
    def words(self) -> list[str]:
        """Every word once, in the order of the file."""
        return list(dict.fromkeys(word for pair in self.pairs for word in pair))


def _pair(number: int, line: str) -> tuple[str, str, float]:
    parts = check_text(line, number).split()
    if len(parts) != 3:
        raise ValueError(f"line {number}: {len(parts)} fields, expected two words and a score")
    try:
        score = float(parts[2])
    except ValueError:
        score = float("nan")
    if not np.isfinite(score):
        raise ValueError(f"line {number}: the score is {parts[2][:40]!r}, not a number")
    return parts[0], parts[1], score


def read_word_pairs(path: str | os.PathLike[str], bad: Bad = "error") -> WordPairs:
    """Pairs of a file: a line each, two words and a score between tabs or spaces; empty lines are passed over.

    bad: "error" stops at a broken line, with its number and what is wrong; "skip" leaves it out, and `skipped` says
    what was wrong with each. Raises LoadError, ConfigError.
    """
    check_path(path=path)
    if not is_word(bad, ("error", "skip")):
        raise ConfigError(f"bad = {bad!r}: 'error' or 'skip'")
    found, skipped = [], []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            found.append(_pair(number, line))
        except ValueError as error:
            if bad == "error":
                raise LoadError(f"{path}: {error}") from None
            skipped.append(str(error))
    if not found:
        raise LoadError(f"{path}: no pair" + (f"; the first of {len(skipped)}: {skipped[0]}" if skipped else ""))
    return WordPairs(
        Path(path).stem, tuple((a, b) for a, b, _ in found), np.array([s for *_, s in found]), tuple(skipped)
    )


def read_word_sets(folder: str | os.PathLike[str], bad: Bad = "error") -> list[WordPairs]:
    """Every .txt file of a folder, by name. Raises LoadError for a folder that is not there or holds none."""
    check_path(folder=folder)
    if not Path(folder).is_dir():
        raise LoadError(f"{folder}: no such folder")
    paths = sorted(Path(folder).glob("*.txt"))
    if not paths:
        raise LoadError(f"{folder}: no .txt file")
    return [read_word_pairs(path, bad) for path in paths]


# ---- Vectors --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordVectors(Brief):
    """Vectors of words; made by :func:`word_vectors` and :func:`ppmi_vectors`."""

    words: tuple[str, ...]
    vectors: Array = field(repr=False)
    """[word, d], float64"""
    source: str
    missing: tuple[str, ...] = ()
    """Words that were asked for and have none."""
    pieces: Array | None = field(default=None, repr=False)
    """Tokens of each word [word]."""

    def spaced(self, space: Space) -> WordVectors:
        """The vectors less their mean ("centred"), or each less its own mean, over its deviation ("normed")."""
        return WordVectors(self.words, _spaced(self.vectors, space), self.source, self.missing, self.pieces)


def _spaced(table: ArrayLike, space: str, model: Model | None = None) -> Array:
    x = np.array(table, np.float64)
    if not is_word(space, SPACES):
        raise ConfigError(f"space = {space!r}: one of {', '.join(map(repr, SPACES))}")
    if space == "centred":
        return np.asarray(x - x.mean(0))
    if space == "raw":
        return x
    if model is not None and model.config.n_layers and norm.is_there(model.config, "ln1"):
        return norm.normalise(model, x, "blocks.0.ln1")
    return normed(x, "z")


def token_table(model: Model, of: str = "W_E", space: Space = "raw") -> Array:
    """A model's token vectors [d_vocab, d_model], float64: rows of W_E or columns of W_U.

    space: "raw"; "centred", less the mean over the vocabulary; "normed", behind the norm that block 0's attention reads
    through (affine part included; a model without it: less its own mean, over its deviation). Raises ConfigError.

    >>> import clew
    >>> float(abs(token_table(clew.load("stories260K"), space="centred").mean(0)).max()) < 1e-9
    True
    """
    check_model(model)
    if not is_word(of, ("W_E", "W_U")):
        raise ConfigError(f"of = {of!r}: 'W_E' or 'W_U'")
    return _spaced(model.W_E if of == "W_E" else model.W_U.T, space, model)


def word_ids(model: Model, word: str) -> list[int]:
    """Token ids of a word as it stands inside a sentence, behind a space; empty where the vocabulary lacks it."""
    tokenizer = model._needs_tokenizer()
    bos = None if tokenizer.bos_id is None else False
    ids = [int(i) for i in model.to_tokens(" " + word, bos=bos)[0]]
    said = "".join(str(t) for t in tokenizer.to_str_tokens(ids))
    return ids if word in said else []  # an unknown token says something else


def word_vectors(model: Model, words: Iterable[str], of: str = "W_E", space: Space = "raw",
                 pieces: Pieces = "mean") -> WordVectors:  # fmt: skip
    """Vectors of words from a model's token vectors.

    Parameters
    ----------
    words
        Each is read as it stands inside a sentence, with a space before it.
    of, space
        As :func:`token_table` takes them.
    pieces
        A word of several tokens: "mean" of their vectors, the "last" one's, or "single": such words are missing.

    Raises TokenError for a model without a tokenizer, ConfigError.

    >>> import clew
    >>> found = word_vectors(clew.load("shakespeare"), ["king", "handkerchief"])
    >>> found.vectors.shape, found.pieces.tolist()[0]
    ((2, 128), 1)
    """
    if not is_word(pieces, ("mean", "last", "single")):
        raise ConfigError(f"pieces = {pieces!r}: 'mean', 'last' or 'single'")
    check_type(Iterable, "a list of words", words=words)
    words = list(words) if not isinstance(words, str) else [words]
    if not all(isinstance(word, str) for word in words):
        raise ConfigError("words: a list of words, and nothing else")
    table = token_table(model, of, space)
    kept: dict[str, Array] = {}
    missing, counts = [], []
    for word in dict.fromkeys(words):
        ids = word_ids(model, word)
        if not ids or (pieces == "single" and len(ids) > 1):
            missing.append(word)
            continue
        kept[word] = table[ids[-1]] if pieces == "last" else table[ids].mean(0)
        counts.append(len(ids))
    vectors = np.array(list(kept.values())).reshape(len(kept), table.shape[1])
    return WordVectors(tuple(kept), vectors, f"{of} of {model.config.model_name}, {space}", tuple(missing),
                       np.array(counts, np.int64))  # fmt: skip


def word_counts(text: str) -> Counter[str]:
    """How often each word occurs, in lower case."""
    check_type(str, "a text", text=text)
    return Counter(w.lower() for w in _WORD.findall(text))


def ppmi_vectors(text: str, d: int = 64, window: int = 5, min_count: int = MIN_COUNT) -> WordVectors:
    """Vectors of the words of a text from counts alone: positive pointwise mutual information, then an SVD.

    Two words count as together when at most `window` words lie between their places in the text (rare ones counted as
    places); ppmi = max(0, log p(a, b) / (p(a) p(b))), a symmetric matrix U Λ Uᵀ whose d largest |Λ| give the vectors
    U |Λ|^½ (Levy & Goldberg 2014). Words of fewer than `min_count` occurrences have none. Lower case.

    Raises ConfigError, TokenError for a text without two such words.

    >>> ppmi_vectors("the cat sat . the dog sat . " * 20, d=2, window=2).words
    ('cat', 'dog', 'sat', 'the')
    """
    d, window, min_count = (whole(v, n) for v, n in ((d, "d"), (window, "window"), (min_count, "min_count")))
    if d < 1 or window < 1 or min_count < 1:
        raise ConfigError(f"ppmi_vectors: d = {d}, window = {window}, min_count = {min_count}: at least 1")
    check_type(str, "a text", text=text)
    said = [w.lower() for w in _WORD.findall(text)]
    words = sorted(w for w, n in Counter(said).items() if n >= min_count)
    if len(words) < 2:
        raise TokenError(f"a text of {len(said)} words, {len(words)} of them {min_count} times or more")
    n, number = len(words), {w: i for i, w in enumerate(words)}
    ids = np.array([number.get(w, -1) for w in said])
    counts = np.zeros(n * n)
    for apart in range(1, min(window, len(ids) - 1) + 1):
        a, b = ids[:-apart], ids[apart:]
        both = (a >= 0) & (b >= 0)
        counts += np.bincount(a[both] * n + b[both], minlength=n * n)
    together = counts.reshape(n, n)
    together = together + together.T
    total = together.sum()
    each = together.sum(1) / total if total else np.ones(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.log(together / total / (each[:, None] * each))
    ppmi = np.where(together > 0, np.maximum(ppmi, 0), 0.0)
    values, vectors = np.linalg.eigh(ppmi)
    best = np.argsort(-np.abs(values), kind="stable")[: min(d, n)]
    return WordVectors(tuple(words), vectors[:, best] * np.sqrt(np.abs(values[best])), f"{_CONTROL} of the text")


# ---- Correlation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Similarity:
    """Cosines of vectors beside people's scores; made by :func:`word_similarity`."""

    name: str
    """Of the pairs' set."""
    source: str
    """Whose vectors."""
    rho: float
    """Spearman's correlation; NaN for fewer than three pairs."""
    interval: tuple[float, float]
    """Bootstrap over pairs, 95 %."""
    n: int
    """Pairs that count."""
    total: int
    """Pairs of the set."""
    missing: tuple[str, ...] = ()
    """Words without a vector."""
    rare: tuple[str, ...] = ()
    """Words with one that the text holds too seldom."""

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name}, {self.source}: rho {self.rho:+.3f} [{low:+.3f}, {high:+.3f}] on {self.n} of {self.total} "
            f"pairs; words missing {len(self.missing)}, too rare {len(self.rare)}"
        )


def word_similarity(vectors: WordVectors, pairs: WordPairs, counts: Mapping[str, int] | None = None,
                    min_count: int = MIN_COUNT, resamples: int = 500, seed: int = 0) -> Similarity:  # fmt: skip
    """Spearman's correlation of cosines with people's scores, over pairs whose words both count.

    counts: how often each word (lower case) occurs in the training text; words below `min_count` are left out and
    listed. None: every word with a vector counts. Raises ConfigError.

    >>> three = WordVectors(("a", "b", "c"), np.array([[1.0, 0], [1, 0.1], [0, 1]]), "ours")
    >>> pairs = WordPairs("set", (("a", "b"), ("a", "c"), ("b", "c"), ("a", "d")), np.array([9.0, 1, 2, 5]))
    >>> found = word_similarity(three, pairs)
    >>> round(found.rho, 3), found.n, found.missing
    (1.0, 3, ('d',))
    """
    check_type(WordVectors, "what word_vectors gives", vectors=vectors)
    check_type(WordPairs, "what read_word_pairs gives", pairs=pairs)
    if counts is not None:
        check_type(Mapping, "words to numbers", counts=counts)
    check_counts(min_count=min_count, resamples=resamples)
    seed = check_seed(seed)
    number = {word: i for i, word in enumerate(vectors.words)}
    here = {word: number.get(word, number.get(word.lower(), -1)) for word in pairs.words}
    missing = tuple(word for word, row in here.items() if row < 0)
    rare = (
        () if counts is None else tuple(w for w, i in here.items() if i >= 0 and counts.get(w.lower(), 0) < min_count)
    )
    out = {*missing, *rare}
    kept = [i for i, (a, b) in enumerate(pairs.pairs) if a not in out and b not in out]
    nothing = (float("nan"), float("nan"))
    if len(kept) < 3:
        return Similarity(pairs.name, vectors.source, float("nan"), nothing, len(kept), len(pairs.pairs), missing, rare)
    a, b = (vectors.vectors[[here[pairs.pairs[i][side]] for i in kept]] for side in (0, 1))
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("nd,nd->n", a, b)
    cosines, scores = np.divide(dots, sizes, out=np.zeros(len(kept)), where=sizes > 0), pairs.scores[kept]
    rng = np.random.default_rng(seed)
    draws = [spearman(cosines[i], scores[i]) for i in rng.integers(0, len(kept), (resamples, len(kept)))]
    known = np.array([x for x in draws if not np.isnan(x)])
    interval = nothing if not known.size else tuple(float(x) for x in np.quantile(known, [0.025, 0.975]))
    return Similarity(pairs.name, vectors.source, spearman(cosines, scores), (interval[0], interval[1]), len(kept),
                      len(pairs.pairs), missing, rare)  # fmt: skip


@dataclass(frozen=True)
class WordSimilarities(Brief):
    """Every set by every kind of vectors; made by :func:`word_similarities`."""

    rows: tuple[Similarity, ...]
    """For each set: the model's raw, centred and normed vectors, then the control where there is a text."""
    about: str = ""

    def table(self) -> str:
        """A line for each set and kind; the words that did not count."""
        lines = list(map(repr, self.rows))
        own = [row for row in self.rows if not row.source.startswith(_CONTROL)]
        for said, missing in (("without a vector", [r.missing for r in own]), ("too rare", [r.rare for r in own])):
            words = list(dict.fromkeys(word for row in missing for word in row))
            lines += [f"words {said}: {listed(words)}"] if words else []
        return "\n".join(lines)


def word_similarities(
    model: Model, sets: Sequence[WordPairs] | str | os.PathLike[str], text: str | None = None, *, of: str = "W_E",
    pieces: Pieces = "mean", min_count: int = MIN_COUNT, d: int = 64, window: int = 5, bad: Bad = "error",
    seed: int = 0,
) -> WordSimilarities:  # fmt: skip
    """Word similarity of a model's raw, centred and normed embeddings over every set.

    Parameters
    ----------
    sets
        Sets, or the folder that :func:`read_word_sets` reads (`bad` for its broken lines).
    text
        What the model was trained on: only words that occur `min_count` times in it count, and vectors of its counts
        (:func:`ppmi_vectors` with d, window) are the control on the same pairs. None: every word counts, no control.
    of, pieces
        As :func:`word_vectors` takes them.

    Raises LoadError, TokenError, ConfigError.
    """
    if not is_word(bad, ("error", "skip")):
        raise ConfigError(f"bad = {bad!r}: 'error' or 'skip'")
    if isinstance(sets, str | os.PathLike):
        sets = read_word_sets(sets, bad)
    check_type((list, tuple), "a folder, or a list of what read_word_pairs gives", sets=sets)
    for pairs in sets:
        check_type(WordPairs, "what read_word_pairs gives", a_set=pairs)
    check_counts(min_count=min_count, d=d, window=window)
    words = [word for pairs in sets for word in pairs.words]
    counts = None if text is None else word_counts(text)
    kinds = [word_vectors(model, words, of, space, pieces) for space in SPACES]
    if text is not None:
        kinds.append(ppmi_vectors(text, d, window, min_count))
    rows = [word_similarity(kind, pairs, counts, min_count, seed=seed) for pairs in sets for kind in kinds]
    about = f"words of several tokens: {pieces}" + ("" if text is None else f"; at least {min_count} times in the text")
    return WordSimilarities(tuple(rows), about)


def embedding_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """How alike two tables of the same n tokens arrange them: Pearson's correlation of their pairs' cosines.

    a [n, d], b [n, d']: each less its mean; turning and scaling a table changes nothing. Raises ShapeError.

    >>> x = np.random.default_rng(0).standard_normal((30, 4))
    >>> round(embedding_similarity(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    tables = [real_array(t, "tables") for t in (a, b)]
    if any(t.ndim != 2 for t in tables) or len(tables[0]) != len(tables[1]) or len(tables[0]) < 3:
        raise ShapeError(f"tables {list(tables[0].shape)} and {list(tables[1].shape)}: [n, d] both, n at least 3")
    above = np.triu_indices(len(tables[0]), 1)
    cosines = []
    for table in tables:
        x = table - table.mean(0)
        sizes = np.linalg.norm(x, axis=1, keepdims=True)
        x = np.divide(x, sizes, out=np.zeros_like(x), where=sizes > 0)
        cosines.append((x @ x.T)[above])
    return float(np.corrcoef(cosines[0], cosines[1])[0, 1])


__all__ = [
    "MIN_COUNT", "SPACES", "Similarity", "WordPairs", "WordSimilarities", "WordVectors", "embedding_similarity",
    "ppmi_vectors", "read_word_pairs", "read_word_sets", "token_table", "word_counts", "word_ids", "word_similarities",
    "word_similarity", "word_vectors",
]  # fmt: skip
