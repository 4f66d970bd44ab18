"""Mazes that differ in one thing, and walks under interventions that begin at <PATH_START> or somewhat before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import ConfigError
from ..generate import likeliest
from ..inputs import is_word
from ..train.data import generator
from .checks import mazes_of
from .maze import Maze, Mazes
from .probes import inner_walls
from .prompts import Prompts, path_prompts, tokens_until
from .rollout import BATCH, room_for_paths, tokenizer_of, walk_cells
from .tokens import Tokenizer

if TYPE_CHECKING:
    from ..edit import Edit
    from ..model import Model

Array = NDArray[Any]
Edits = Callable[[Array, Array], "list[Edit]"]
"""(rows [n], the positions of each from <PATH_START>, or some tokens before it, on [n, room]) → edits"""


# ---- Walking --------------------------------------------------------------------------------------------------------


def walks(
    model: Model, tokens: Sequence[Array], tok: Tokenizer, cells: int, edits: Edits | None = None, back: int = 0
) -> list[Array]:
    """The cells [k, 2] that a model walks behind prompts that end with <PATH_START>, the likeliest token again and
    again until it says <PATH_END>; (−1, −1) for tokens that are no cells.

    cells: of a path at most, fewer where the model's positions end. edits: made for each batch of prompts, of its rows
    and of the positions of each prompt from <PATH_START>, or `back` tokens before it, on, those that are still to be
    generated included. Raises TokenError for a prompt that leaves no room, with its number.
    """
    out: list[Array] = []
    lengths = np.array([len(row) for row in tokens], int)
    room = room_for_paths(model, lengths, cells + 1)
    for first in range(0, len(tokens), BATCH):
        part = slice(first, first + BATCH)
        rows = np.arange(len(tokens))[part]
        positions = lengths[part, None] - 1 - back + np.arange(int(room[part].max()) + 1 + back)
        held = [] if edits is None else edits(rows, positions)
        made = likeliest(model, tokens[part], room[part], tok.ids["<PATH_END>"], held)
        out += [tok.cells_of(walk_cells(row)) for row in made]
    return out


def start_prompts(ms: Mazes, tok: Tokenizer) -> list[Array]:
    """Tokens of each maze, up to <PATH_START>."""
    return [np.append(row, np.int32(tok.ids["<PATH_START>"])) for row in tok.encode_batch(ms, path=False)]


def padded(paths: Sequence[Array]) -> Array:
    """Paths as one array [n, longest, 2], −2 behind their ends."""
    out = np.full((len(paths), max(2, max(map(len, paths), default=0)), 2), -2)
    for i, path in enumerate(paths):
        out[i, : len(path)] = path
    return out


def same(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Are two paths the same? bool [n]."""
    return np.array([x.shape == y.shape and bool((x == y).all()) for x, y in zip(a, b, strict=True)], bool)


def crosses(paths: Sequence[Array], walls: Array) -> Array:
    """Does each path step from one of two cells to the other, in either direction? walls: [n, 2, 2]; bool [n].

    >>> path = np.array([(0, 0), (0, 1), (1, 1)])
    >>> crosses([path, path], np.array([[(1, 1), (0, 1)], [(0, 0), (1, 0)]])).tolist()
    [True, False]
    """
    cells = padded(paths)
    steps = np.stack([cells[:, :-1], cells[:, 1:]], axis=2)
    either = [(steps == pair[:, None]).all((2, 3)) for pair in (walls, walls[:, ::-1])]
    return np.asarray((either[0] | either[1]).any(1))


def legal_steps(paths: Sequence[Array], ms: Mazes) -> Array:
    """Share of each walk's steps that go to a connected cell [n]; NaN of walks without a step.

    >>> from clew import mazes
    >>> maze = mazes.Maze(2, [[(0, 0), (0, 1)], [(0, 1), (1, 1)]], (0, 0), (1, 1))
    >>> legal_steps([np.array([(0, 0), (0, 1), (0, 0), (1, 0), (0, 1)])], Mazes.of(maze)).tolist()
    [0.5]
    """
    cells = padded(paths)
    real: Array = np.all(cells != -2, axis=-1)
    good = ms.open_steps(cells) & real[:, 1:]
    count = real[:, 1:].sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(count > 0, good.sum(1) / np.maximum(count, 1), np.nan))


# ---- Mazes ----------------------------------------------------------------------------------------------------------


def rebuilt(ms: Mazes, edges: Array | None = None, ends: Array | None = None, n_edges: Array | None = None) -> Mazes:
    """Mazes with other edges [n, E, 2, 2] or endpoints [n, 2, 2], and shortest paths between them."""
    side = int(ms.grids.max())
    n = len(ms)
    batch = (
        ms.batch[0].copy(),
        np.ascontiguousarray(ms.batch[1] if edges is None else edges, np.uint8).copy(),
        (ms.batch[2] if n_edges is None else n_edges).astype(np.int32),
        np.ascontiguousarray(ms.batch[3] if ends is None else ends, np.uint8).copy(),
        np.zeros((n, side * side, 2), np.uint8),
        np.zeros(n, np.int32),
    )
    _core.maze_paths(batch)
    return Mazes(batch)


def shuffled(ms: Mazes, seed: int = 0) -> Mazes:
    """The same mazes with their edges listed in another random order, each turned round or not at random."""
    rng = generator(seed)
    grids, edges, n_edges, ends, path, n_path = ms.batch
    keys = np.where(np.arange(edges.shape[1]) < n_edges[:, None], rng.random(edges.shape[:2]), 2.0)  # empty slots last
    moved = np.take_along_axis(edges, keys.argsort(1)[:, :, None, None], axis=1)
    turned = np.where((rng.random(edges.shape[:2]) < 0.5)[..., None, None], moved[:, :, ::-1], moved)
    return Mazes((grids.copy(), np.ascontiguousarray(turned), n_edges.copy(), ends.copy(), path.copy(), n_path.copy()))


@dataclass(frozen=True)
class MinimalPairs:
    """Two mazes each that differ in one edge, so that behind the same tokens of the path another cell comes next.

    The prompts of a pair have the same length and differ in one edge of the adjacency list, at the same place.
    """

    a: Prompts
    b: Prompts
    removed: Array
    """The edge that only the first maze has, int [n, 2, 2]: from where the walk is to its next cell."""
    added: Array
    """The edge that only the second one has."""

    def __len__(self) -> int:
        return len(self.a)

    def __repr__(self) -> str:
        return f"{len(self)} pairs that differ in one edge, of {self.a.mazes!r}"


def minimal_pairs(
    model: Model | Tokenizer,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    position: str = "nonend",
    seed: int = 0,
) -> MinimalPairs:
    """Pairs of mazes that differ in one edge, which makes the next cell of the path another one.

    Of a spanning tree, the edge from where the walk is to the next cell is taken away, and one of the walls that part
    the two halves is opened instead: the tree still spans the grid, its new way to the target has the same cells up to
    here, and goes on otherwise. In the tokens the new edge takes the old one's place, so that nothing else differs:
    neither length, nor order, nor the path so far.

    Parameters
    ----------
    model
        A model of maze tokens, or a tokenizer.
    ms
        Spanning trees ("rdfs", "wilson") of one grid.
    position
        Where the walk is: "origin", "path" or "nonend", see :func:`clew.mazes.prompts.path_prompts`.
    seed
        Of where the walk is, and of which wall is opened.

    Mazes in which no wall would do are left out. Raises ConfigError for mazes that are no trees, or where none is left;
    ShapeError for several grids; TokenError as :func:`clew.mazes.solve`.

    Example
    -------
    >>> from clew import mazes
    >>> pairs = mazes.minimal_pairs(mazes.Tokenizer(7), mazes.generate(20, grid=5))
    >>> bool((pairs.a.here == pairs.b.here).all()), bool((pairs.a.targets == pairs.b.targets).any())
    (True, False)
    """
    tok = model if isinstance(model, Tokenizer) else tokenizer_of(model)
    batch = mazes_of(ms, "minimal_pairs", 1)
    if not is_word(position, ("origin", "path", "nonend")):
        raise ConfigError(f"minimal_pairs: position = {position!r}: one of origin, path, nonend")
    side = int(batch.grids[0])
    cells = side * side
    trees = (batch.batch[2] == cells - 1) & (batch.distances() >= 0).all((1, 2))
    if not trees.all():
        raise ConfigError(f"minimal_pairs: maze {int(np.flatnonzero(~trees)[0])} is no spanning tree")
    prompts = path_prompts(batch, tok, position, seed)
    chosen = prompts.mazes
    rows, steps = np.arange(len(chosen)), chosen.distances().astype(int)
    here, there = prompts.here @ [side, 1], prompts.following @ [side, 1]
    origin = chosen.ends[:, 0] @ [side, 1]
    beyond = steps[rows, there] < steps[rows, here]  # [n, cells]: the half that holds the target
    through = ~beyond & (steps[rows, origin, here][:, None] + steps[rows, here] == steps[rows, origin])
    walls = inner_walls(side)
    ends = walls @ [side, 1]
    one, other = (through[:, ends[:, i]] & beyond[:, ends[:, 1 - i]] for i in (0, 1))
    old = (np.sort(np.stack([here, there], 1), 1)[:, None] == ends).all(-1)
    possible = (one | other) & ~old
    pick = np.where(possible, generator(seed, 1).random(possible.shape), -1.0).argmax(1)
    kept = np.flatnonzero(possible.any(1))
    if len(kept) == 0:
        raise ConfigError(f"minimal_pairs: in none of {len(batch)} mazes another edge would change the next cell")
    near = np.where(one[rows, pick][:, None], walls[pick, 0], walls[pick, 1])  # on the near side
    far = np.where(one[rows, pick][:, None], walls[pick, 1], walls[pick, 0])
    edges = chosen.batch[1].astype(int)
    pair = np.stack([prompts.here, prompts.following], 1)
    straight = (edges == pair[:, None]).all((2, 3))
    slot = (straight | (edges == pair[:, None, ::-1]).all((2, 3))).argmax(1)
    new = np.stack([near, far], 1)
    changed = edges.copy()
    changed[rows, slot] = np.where(straight[rows, slot][:, None, None], new, new[:, ::-1])
    rewired = rebuilt(chosen[kept], changed[kept])
    path = rewired.batch[4].astype(int)
    following = path[np.arange(len(kept)), prompts.step[kept] + 1]
    tokens = tokens_until(rewired, tok, prompts.step[kept])
    a = Prompts(
        chosen[kept], [prompts.tokens[i] for i in kept], prompts.step[kept], prompts.here[kept],
        prompts.following[kept], prompts.targets[kept],
    )  # fmt: skip
    targets = tok.cell_ids[following[:, 0], following[:, 1]].astype(int)
    b = Prompts(rewired, tokens, prompts.step[kept], prompts.here[kept], following, targets)
    return MinimalPairs(a, b, pair[kept], new[kept])


__all__ = ["MinimalPairs", "crosses", "minimal_pairs", "shuffled", "walks"]
