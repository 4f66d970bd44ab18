"""Chunks of texts through a model: cut, sorted by length, run in batches, reduced.

A chunk is a number of texts that fits into memory. Its pieces are sorted by length and run together up to `at_once`
tokens; new reducers see the chunk and are then merged into the total, in the order of the texts. `distributed` hands
out the same chunks and merges in the same order: its numbers are the same, to the bit, for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..brief import Brief
from ..errors import ConfigError, ShapeError, SiteError, TokenError
from ..inputs import as_array, check_type
from ..model import Model, check_model
from ..run import Run
from ..weights import whole
from .reducers import Reducer
from .texts import Broken, Item, Texts

Array = NDArray[Any]
Where: TypeAlias = "str | tuple[str, int] | Callable[[Run], Array]"
Watch: TypeAlias = "tuple[Reducer, Where] | tuple[Reducer, Where, Where]"
"""A reducer and what it watches: sites, or functions of a run that give rows [tokens, d]; two for Ridge (x, y)."""
TooLong = Literal["error", "split"]
CHUNK = 1 << 18  # characters, about


@dataclass
class Reduced(Brief, Mapping[str, Any]):
    """Reducers by name, and what was read."""

    reducers: dict[str, Reducer]
    texts: int = 0
    tokens: int = 0
    split: int = 0
    """Texts that were longer than a run and were cut."""
    n_broken: int = 0
    """Lines that were skipped."""
    broken: list[Broken] = field(default_factory=list)
    """The first 100 of them."""

    def __getitem__(self, name: str) -> Any:
        return self.reducers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reducers)

    def __len__(self) -> int:
        return len(self.reducers)

    def add(self, part: Reduced) -> None:
        """Takes what a later part has seen."""
        for name, reducer in self.reducers.items():
            reducer.merge(part.reducers[name])
        self.texts += part.texts
        self.tokens += part.tokens
        self.split += part.split


@dataclass(frozen=True)
class Settings:
    """How texts are run; made by :func:`settings`, which checks it."""

    length: int | None
    """Most tokens in a run's sequence; None: the model's n_ctx."""
    too_long: TooLong
    at_once: int
    capture: tuple[Any, ...]
    """Sites beside those that reducers name."""
    chunk: int
    """Characters of text that are held and reduced at a time, about."""


@dataclass(frozen=True)
class Piece:
    """A sequence to run: a text, or a part of one."""

    text: int
    """Number of the text."""
    start: int
    """Position of the first token in the text."""
    ids: list[int]


def settings(
    length: int | None, too_long: TooLong, at_once: int, capture: Any = (), chunk: int = CHUNK
) -> Settings:  # fmt: skip
    """Raises ConfigError for what makes no sense."""
    if too_long not in ("error", "split"):
        raise ConfigError(f"too_long = {too_long!r}: 'error' or 'split'")
    if length is not None and whole(length, "length") < 1:
        raise ConfigError(f"length = {length}: at least 1")
    if whole(at_once, "at_once") < 1:
        raise ConfigError(f"at_once = {at_once}: at least 1")
    if whole(chunk, "chunk") < 1:
        raise ConfigError(f"chunk = {chunk}: at least 1")
    check_type((str, tuple, list), "sites", capture=capture)
    named = [capture] if isinstance(capture, str) or (isinstance(capture, tuple) and len(capture) == 2) else capture
    return Settings(length, too_long, at_once, tuple(named), chunk)


def chunks(texts: Iterable[Item], size: int) -> Iterator[tuple[int, list[Item]]]:
    """(Number of the first, texts) of about `size` characters; an id counts as four."""
    held: list[Item] = []
    first = weight = 0
    for item in texts:
        held.append(item)
        weight += len(item) if isinstance(item, str) else 4 * len(item)
        if weight >= size:
            yield first, held
            first, held, weight = first + len(held), [], 0
    if held:
        yield first, held


def pieces(model: Model, first: int, items: list[Item], how: Settings) -> tuple[list[Piece], int]:
    """Sequences to run, in order, and how many texts were cut. Raises TokenError for a text that is too long."""
    c = model.config
    most = c.n_ctx if how.length is None else how.length
    if c.positional_embedding_type == "standard" and most > c.n_ctx:
        raise ConfigError(f"length = {most}: the model has learned {c.n_ctx} positions")
    out, split = [], 0
    for number, item in enumerate(items, first):
        ids = _encoded(model, item, number) if isinstance(item, str) else _known(item, c.d_vocab, number)
        if len(ids) > most and how.too_long == "error":
            raise TokenError(f'text {number} has {len(ids)} tokens, a run {most}: too_long="split" cuts such texts')
        split += len(ids) > most
        out += [Piece(number, at, ids[at : at + most]) for at in range(0, len(ids), most)]
    return out, split


def _encoded(model: Model, text: str, number: int) -> list[int]:
    """A text's ids. Raises TokenError, with its number."""
    try:
        return [int(t) for t in model.to_tokens(text)[0]]
    except TokenError as error:
        raise TokenError(f"text {number}: {error}") from None


def _known(ids: list[int], d_vocab: int, number: int) -> list[int]:
    """The ids. Raises TokenError, with the text's number, for one that is no token; a run knows its batch only."""
    if 0 <= min(ids) and max(ids) < d_vocab:
        return ids
    at = next(i for i, token in enumerate(ids) if not 0 <= token < d_vocab)
    raise TokenError(f"text {number}: id {ids[at]} at position {at}: the vocabulary has 0 to {d_vocab - 1}")


def batches(found: list[Piece], at_once: int) -> Iterator[list[Piece]]:
    """Pieces by length, as many at once as make `at_once` tokens with their padding, at least one."""
    batch: list[Piece] = []
    for piece in sorted(found, key=lambda p: (len(p.ids), p.text, p.start)):
        if batch and (len(batch) + 1) * len(piece.ids) > at_once:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def real(run: Run) -> Array:
    """Which of [batch, pos] are tokens, not padding."""
    return np.asarray(np.arange(int(run.lengths.max())) < run.lengths[:, None])


def rows(run: Run, what: Where, mask: Array) -> Array:
    """What a reducer watches, as rows [tokens, d]."""
    if callable(what):
        name, n = getattr(what, "__name__", type(what).__name__), int(mask.sum())
        found = as_array(what(run), f"what {name} gave")
        if found.ndim != 2 or len(found) != n:
            raise ShapeError(f"what {name} gave for {n} tokens: {list(found.shape)}, expected rows [{n}, d]")
        return found
    array = run[what]
    if array.shape[:2] != mask.shape:
        raise SiteError(
            f"{what!r} has shape {list(array.shape)}: watch a function of the run that gives rows per token"
        )
    taken = array[mask]
    return taken.reshape(len(taken), -1)


def check(watches: Mapping[str, Watch]) -> None:
    """Raises ConfigError where a watch is no reducer with its inputs."""
    check_type(Mapping, "names to (reducer, site)", watches=watches)
    if not watches:
        raise ConfigError("nothing is watched: give {name: (reducer, site)}")
    for name, watch in watches.items():
        if not isinstance(watch, tuple) or not watch or not isinstance(watch[0], Reducer):
            raise ConfigError(f"{name!r}: {watch!r} is no (reducer, site), such as (Mean(), 'resid_post.3')")
        if len(watch) - 1 != watch[0].inputs:
            raise ConfigError(f"{name!r}: {type(watch[0]).__name__} watches {watch[0].inputs}, not {len(watch) - 1}")


def check_sites(model: Model, watches: Mapping[str, Watch], how: Settings) -> None:
    """Raises SiteError for a site that the model does not have, or a name of several where one is watched."""
    model.plan(1, 1, capture=watched(watches, how))
    for name, watch in watches.items():
        for w in watch[1:]:
            found = [] if callable(w) else model.sites().find(w)
            if len(found) > 1:
                site, layer = found[-1]
                raise SiteError(f"{name!r}: {w!r} means {len(found)} sites: a reducer watches one, such as "
                                f"{site.full_name(layer)!r}")  # fmt: skip


def check_progress(progress: Any) -> None:
    """Raises ConfigError for what cannot be called."""
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress: a function of what there is so far, not {type(progress).__name__}")


def watched(watches: Mapping[str, Watch], how: Settings) -> list[Any]:
    """Every site that a run has to capture."""
    named = [w for watch in watches.values() for w in watch[1:] if not callable(w)]
    try:
        return list(dict.fromkeys([*named, *how.capture]))
    except TypeError:
        raise SiteError(f"sites are names or (name, layer), not {[*named, *how.capture]!r:.80}") from None


def reduce_chunk(model: Model, first: int, items: list[Item], watches: Mapping[str, Watch], how: Settings) -> Reduced:
    """New reducers that have seen these texts."""
    found, split = pieces(model, first, items, how)
    part = Reduced({name: watch[0].fresh() for name, watch in watches.items()}, len(items), 0, split)
    capture = watched(watches, how)
    for batch in batches(found, how.at_once):
        run = model.run([p.ids for p in batch], capture=capture, logits=None)
        mask = real(run)
        part.tokens += int(mask.sum())
        where = np.concatenate([np.column_stack([np.full(len(p.ids), p.text), p.start + np.arange(len(p.ids))])
                                for p in batch])  # fmt: skip
        seen: dict[Any, Array] = {}
        for name, watch in watches.items():
            for w in watch[1:]:
                if w not in seen:
                    seen[w] = rows(run, w, mask)
            part.reducers[name].update(*(seen[w] for w in watch[1:]), where=where)
    return part


def reduce(model: Model, source: Any, watches: Mapping[str, Watch], *, length: int | None = None,
           too_long: TooLong = "error", at_once: int = 4096, capture: Any = (), chunk: int = CHUNK,
           progress: Callable[[Reduced], object] | None = None) -> Reduced:  # fmt: skip
    """Runs a model over texts and reduces what it computes; memory holds one chunk of texts and one batch.

    Parameters
    ----------
    source
        :class:`Texts`, or what it takes: a file, a folder, an iterable of texts or ids.
    watches
        {name: (reducer, site)}, for Ridge (reducer, x, y). A site with axes [batch, pos, …] (a name or (name, layer))
        gives a row for each token; or a function of the run that gives rows [tokens, d], padding left out.
    length, too_long
        Most tokens in one sequence (n_ctx). A longer text is an "error", or "split" into sequences of that many.
    at_once
        Tokens in a batch, padding included. It changes numbers by rounding only.
    capture
        Sites for functions.
    chunk
        Characters of text (an id counts as four), about, that are held and sorted by length at a time. It changes
        numbers by rounding only.
    progress
        Called after every chunk with what there is so far.

    Raises TokenError (a text too long, an id that is no token: which), ConfigError, SiteError, what Texts raises.

    >>> import clew
    >>> from clew.stream import TopK
    >>> found = reduce(clew.load("stories260K"), [[1, 2], [3, 4, 5]], {"top": (TopK(1), ("mlp_out", 0))})
    >>> found.texts, found["top"].values.shape
    (2, (64, 1))
    """
    check_model(model)
    check(watches)
    check_progress(progress)
    how = settings(length, too_long, at_once, capture, chunk)
    texts = source if isinstance(source, Texts) else Texts(source)
    check_sites(model, watches, how)  # before anything is read
    total = Reduced({name: watch[0].fresh() for name, watch in watches.items()})
    for first, items in chunks(texts, how.chunk):
        total.add(reduce_chunk(model, first, items, watches, how))
        total.n_broken, total.broken = texts.n_broken, list(texts.broken)
        if progress is not None:
            progress(total)
    total.n_broken, total.broken = texts.n_broken, list(texts.broken)
    return total
