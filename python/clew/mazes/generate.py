"""Making mazes: kinds, endpoints, splits by hash."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError
from ..inputs import as_array, check_flags, check_seed, is_word
from .checks import room_for, whole_number
from .maze import Batch, Maze, Mazes, check_grid

Array = NDArray[Any]

KINDS = ("rdfs", "forkless", "prdfs", "wilson", "percolation")
"""Kinds of mazes, in the order of the core's enumeration."""
MOST_MAZES = 2**63 - 1
"""Numbers of mazes end here: the core counts in 64 bits."""
_PARTS = (None, "train", "test")
_ENDS = ("anywhere", "dead end")
_P = {"prdfs": 0.1, "percolation": 0.4}


def generate(
    n: int,
    grid: int = 6,
    kind: str = "rdfs",
    seed: int = 0,
    *,
    p: float | None = None,
    start: str | ArrayLike = "anywhere",
    target: str | ArrayLike = "anywhere",
    distinct: bool = True,
    split: str | None = None,
    test_share: float = 0.1,
    first: int = 0,
) -> Mazes:
    """Random mazes with an origin, a target and a shortest path between them, made in C.

    Maze i depends on the seed and on i alone: a longer batch begins with the shorter one, and any number of threads
    makes the same. The rules are those of the `maze-dataset` package (Ivanitskiy et al., arXiv:2309.10498).

    Parameters
    ----------
    n
        How many.
    grid
        Rows, and columns; 2 to 20.
    kind
        "rdfs": a depth-first spanning tree. "forkless": the same without going back, a walk that ends where it is
        stuck; other cells are connected with nothing. "prdfs": rdfs, and each edge of the lattice besides with
        probability p. "wilson": uniform over spanning trees. "percolation": each edge of the lattice with probability
        p; the endpoints lie in the component of a random cell.
    seed
        Of the random numbers, below 2⁶⁴.
    p
        None: 0.1 for "prdfs", 0.4 for "percolation".
    start, target
        Where endpoints may lie: "anywhere", "dead end" (cells with one neighbour), or cells [k, 2].
    distinct
        Origin and target are two cells.
    split
        "train" or "test": only mazes whose walls' hash lies in that part. The two have no walls in common, whatever
        their seeds. None: any maze.
    test_share
        The part of all hashes that is "test".
    first
        Number of the first maze.

    A maze without endpoints as the rules want them is drawn again.

    Raises
    ------
    ConfigError
        A size, kind or rule that does not exist, or rules that none of 10,000 mazes in a row fits; an empty split.
    MemoryError
        More mazes than the machine has memory for, before any is made.

    Example
    -------
    >>> from clew import mazes
    >>> ms = mazes.generate(100, grid=5, kind="wilson", seed=3)
    >>> len(ms), ms[0].edges.shape, ms[7] == mazes.generate(8, grid=5, kind="wilson", seed=3)[7]
    (100, (24, 2, 2), True)
    """
    number = check_seed(seed)
    if number >= 2**64:
        raise ConfigError(f"generate: seed = {number}: below 2⁶⁴, for the core counts in 64 bits")
    n, first = whole_number(n, "generate: n"), whole_number(first, "generate: first", 0, MOST_MAZES)
    side = check_grid(grid)
    if not is_word(kind, KINDS):
        raise ConfigError(f"generate: kind = {kind!r}; known: {', '.join(KINDS)}")
    if p is None:
        p = _P.get(kind, 0.0)
    elif kind not in _P:
        raise ConfigError(f"generate: p = {p!r}: mazes of kind {kind!r} have no probability")
    if isinstance(p, bool) or not isinstance(p, int | float | np.floating) or not 0 <= p <= 1:
        raise ConfigError(f"generate: p = {p!r}: a probability lies in 0 to 1")
    if split is not None and not is_word(split, _PARTS):
        raise ConfigError(f'generate: split = {split!r}: None, "train" or "test"')
    below = threshold(test_share, split)
    ends = [_rule("start", start, side), _rule("target", target, side)]
    check_flags(distinct=distinct)
    if distinct:
        allowed = [flags for flags, _ in ends if flags is not None and flags.sum() == 1]
        if len(allowed) == 2 and np.array_equal(allowed[0], allowed[1]):
            raise ConfigError(
                "generate: start and target allow one cell, the same: with distinct=True there is no maze"
            )
    batch = _empty(n, side, kind)
    try:
        _core.maze_generate(
            batch, first, KINDS.index(kind), side, float(p), ends[0][0], ends[1][0], ends[0][1], ends[1][1],
            bool(distinct), _PARTS.index(split), below, number,
        )  # fmt: skip
    except ConfigError as error:
        part = "" if split is None else f", split {split!r} of test_share {test_share:g}"
        probability = f", p = {p:g}" if kind in _P else ""
        raise ConfigError(f"generate: {kind} mazes of {side} × {side}{probability}{part}: {error}") from None
    return Mazes(batch)


def _empty(n: int, side: int, kind: str) -> Batch:
    edges = 2 * side * (side - 1) if kind in _P else side * side - 1
    room_for(n * (4 * edges + 2 * side * side + 13), f"generate: {n:,} mazes of {side} × {side}")
    return (
        np.zeros(n, np.uint8),
        np.empty((n, edges, 2, 2), np.uint8),
        np.zeros(n, np.int32),
        np.empty((n, 2, 2), np.uint8),
        np.empty((n, side * side, 2), np.uint8),
        np.zeros(n, np.int32),
    )


def threshold(test_share: float, split: str | None = None) -> int:
    """Hashes below this are test mazes. Raises ConfigError for a share that leaves a split empty."""
    good = isinstance(test_share, int | float | np.floating) and not isinstance(test_share, bool)
    if not good or not 0 <= test_share <= 1:
        raise ConfigError(f"test_share = {test_share!r}: a share lies in 0 to 1")
    if (split == "test" and test_share == 0) or (split == "train" and test_share == 1):
        raise ConfigError(f"test_share = {test_share:g} leaves the split {split!r} empty")
    return min(int(test_share * 2.0**64), 2**64 - 1)


def _rule(what: str, rule: str | ArrayLike, side: int) -> tuple[Array | None, bool]:
    """(flags of allowed cells [side, side] or None, only dead ends?)"""
    if isinstance(rule, str):
        if rule not in _ENDS:
            raise ConfigError(f'generate: {what} = {rule!r}: "anywhere", "dead end" or cells [k, 2]')
        return None, rule == "dead end"
    cells = as_array(rule, f"generate: {what}")
    if cells.shape == (2,):
        cells = cells[None]
    if cells.ndim != 2 or cells.shape[1] != 2 or cells.dtype.kind not in "iu" or len(cells) == 0:
        raise ConfigError(f'generate: {what}: "anywhere", "dead end" or cells [k, 2], not {cells.dtype} '
                          f"{list(cells.shape)}")  # fmt: skip
    outside = np.flatnonzero(((cells < 0) | (cells >= side)).any(1))
    if outside.size:
        r, c = cells[outside[0]].tolist()
        raise ConfigError(f"generate: {what}: ({r},{c}) lies outside a grid of {side} × {side}")
    flags = np.zeros((side, side), np.uint8)
    flags[cells[:, 0], cells[:, 1]] = 1
    return flags, False


def unique(ms: Mazes | list[Maze], ends: bool = True) -> Mazes:
    """The first of each set of equal mazes, in order; ends: mazes that differ in origin or target alone both stay.

    >>> from clew import mazes
    >>> ms = mazes.generate(1000, grid=2)
    >>> len(mazes.unique(ms, ends=False)), len(mazes.unique(ms))
    (4, 48)
    """
    batch = Mazes.of(ms)
    check_flags(ends=ends)
    key = batch.hashes
    if ends:
        key = np.stack([key, batch.ends.reshape(-1, 4) @ np.array([1, 32, 1024, 32768]).astype(np.uint64)], axis=1)
    _, index = np.unique(key, axis=0, return_index=True)
    return batch[np.sort(index)]


def split(ms: Mazes | list[Maze], test_share: float = 0.1) -> tuple[Mazes, Mazes]:
    """(train, test) by the hash of the walls: no walls are in both, and a maze falls on the side that
    `generate(split=…)` with the same `test_share` gives it.

    Raises ConfigError where one of the two would be empty.

    >>> from clew import mazes
    >>> train, test = mazes.split(mazes.generate(1000, grid=5), test_share=0.25)
    >>> 200 < len(test) < 300 and len(train) + len(test) == 1000
    True
    """
    batch = Mazes.of(ms)
    test = batch.hashes < np.uint64(threshold(test_share))
    if test.all() or not test.any():
        side = "train" if test.all() else "test"
        raise ConfigError(f"split: of {len(batch)} mazes none is {side} with test_share = {test_share:g}")
    return batch[~test], batch[test]
