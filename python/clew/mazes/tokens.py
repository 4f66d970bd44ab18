"""Mazes as tokens, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError, TokenError
from ..inputs import as_array, check_flags, is_word
from .maze import LARGEST, Cell, Maze, Mazes, check_grid

Array = NDArray[Any]

SPECIALS = (
    "<ADJLIST_START>", "<ADJLIST_END>", "<TARGET_START>", "<TARGET_END>", "<ORIGIN_START>", "<ORIGIN_END>",
    "<PATH_START>", "<PATH_END>", "<-->", ";", "<PADDING>",
)  # fmt: skip
"""Tokens that are no cells, in order of their ids."""
ADJLIST_END, PATH_START, PATH_END, PADDING = map(
    SPECIALS.index, ("<ADJLIST_END>", "<PATH_START>", "<PATH_END>", "<PADDING>")
)


def cells_in_order(grid: int, order: str) -> list[Cell]:
    """Cells in the order of their ids: "rasterized" row by row, "uniform" so that a smaller grid's come first.

    >>> cells_in_order(2, "rasterized") == cells_in_order(2, "uniform")
    True
    >>> cells_in_order(3, "uniform")[4:]
    [(0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    """
    if not is_word(order, ("uniform", "rasterized")):
        raise ConfigError(f'Tokenizer: order = {order!r}: "uniform" or "rasterized"')
    cells = [(r, c) for r in range(grid) for c in range(grid)]
    if order == "rasterized":
        return cells
    return sorted(cells, key=lambda cell: (max(cell), cell if cell[0] % 2 == 0 else cell[::-1]))


def grid_of(d_vocab: int) -> int | None:
    """Rows of the largest maze of a vocabulary of so many tokens; None where no vocabulary has so many.

    >>> grid_of(60), grid_of(59)
    (7, None)
    """
    grid = math.isqrt(max(0, d_vocab - len(SPECIALS)))
    return grid if 2 <= grid <= LARGEST and len(SPECIALS) + grid * grid == d_vocab else None


class Tokenizer:
    """The vocabulary and token layout of `maze-dataset`'s AOTP_UT_uniform and AOTP_UT_rasterized.

        <ADJLIST_START> (0,0) <--> (0,1) ; … <ADJLIST_END> <ORIGIN_START> (0,0) <ORIGIN_END>
        <TARGET_START> (1,1) <TARGET_END> <PATH_START> (0,0) (0,1) (1,1) <PATH_END>

    Parameters
    ----------
    grid
        Rows of the largest maze that it knows: 11 + grid² tokens.
    order
        "uniform": cells of smaller mazes have lower ids. "rasterized": row by row.

    Raises ConfigError for an order or a size that does not exist.

    Example
    -------
    >>> from clew import mazes
    >>> tok = mazes.Tokenizer(grid=7)
    >>> maze = mazes.generate(1, grid=3)[0]
    >>> ids = tok.encode(maze)
    >>> len(tok.vocab), len(ids) == 4 * 8 + 10 + len(maze.solution), tok.parse(ids) == maze
    (60, True, True)
    """

    def __init__(self, grid: int = 7, order: str = "uniform") -> None:
        self.grid = check_grid(grid)
        """Rows of the largest maze."""
        self.order = order
        cells = cells_in_order(self.grid, order)
        self.vocab = [*SPECIALS, *(f"({r},{c})" for r, c in cells)]
        """Tokens by id."""
        self.ids = {token: i for i, token in enumerate(self.vocab)}
        """Ids by token."""
        self.cells = np.array(cells)
        """Cell of id 11 + i, int [grid², 2]."""
        self.cell_ids = np.zeros((self.grid, self.grid), np.int32)
        """Id of each cell, int32 [grid, grid]."""
        self.cell_ids[self.cells[:, 0], self.cells[:, 1]] = np.arange(len(SPECIALS), len(self.vocab))
        self._specials = np.arange(10, dtype=np.int32)

    # ---- To tokens ------------------------------------------------------------------------------------------------

    def encode(self, maze: Maze | str | Sequence[str], path: bool = True) -> Array:
        """Ids of a maze, int32 [n], its edges in their own order; or of tokens, given as text or a list.

        path: False leaves out <PATH_START> and what follows: the prompt of the paper's evaluations.

        Raises TokenError for a maze that is larger than the vocabulary, and for an unknown token.
        """
        if isinstance(maze, Maze):
            return self.encode_batch(maze, path)[0]
        if not isinstance(maze, Iterable):
            raise TokenError(f"encode takes a maze, text or tokens, not {type(maze).__name__}")
        words = maze.split() if isinstance(maze, str) else list(maze)
        for i, word in enumerate(words):
            if not isinstance(word, str) or word not in self.ids:
                raise TokenError(f"token {i}, {word!r}, is not in the vocabulary of {self.grid} × {self.grid} mazes")
        return np.array([self.ids[word] for word in words], np.int32)

    def encode_batch(self, ms: Mazes | Iterable[Maze] | Maze, path: bool = True) -> list[Array]:
        """Ids of each maze, int32 [length]: views of one array. Raises TokenError as :meth:`encode`."""
        tokens, lengths = self._packed(ms, path)
        ends = np.cumsum(lengths).tolist()
        return [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    def _packed(self, ms: Mazes | Iterable[Maze] | Maze, path: bool) -> tuple[Array, Array]:
        """Ids of all mazes one after the other, and each one's number, int32."""
        batch = Mazes.of(ms)
        check_flags(path=path)
        if path and (bad := np.flatnonzero(batch.path_lengths == 0)).size:
            raise TokenError(f"maze {bad[0]}: its target cannot be reached: there is no path to write down")
        tokens, lengths = _core.maze_tokens(batch.batch, self._specials, self.cell_ids, path)
        return tokens, lengths

    # ---- From tokens ----------------------------------------------------------------------------------------------

    def decode(self, ids: ArrayLike) -> list[str]:
        """Tokens of ids. Raises TokenError for an id that there is not."""
        array = as_array(ids, "ids")
        if array.ndim != 1 or array.dtype.kind not in "iu" and array.size:
            raise TokenError(f"decode takes ids [n], not {array.dtype} {list(array.shape)}")
        for i, token in enumerate(array.tolist()):
            if not 0 <= token < len(self.vocab):
                raise TokenError(f"token {i}: id {token}; there are ids 0 to {len(self.vocab) - 1}")
        return [self.vocab[token] for token in array.tolist()]

    def cells_of(self, ids: ArrayLike) -> Array:
        """Cells of ids, int [..., 2]; (−1, −1) for tokens that are no cells. Raises TokenError for what is no id."""
        array = as_array(ids, "ids")
        if array.dtype.kind not in "iu" and array.size:
            raise TokenError(f"cells_of takes ids, not {array.dtype} {list(array.shape)}")
        array = array.astype(np.int64)
        number = array - len(SPECIALS)
        inside = (number >= 0) & (number < len(self.cells))
        return np.where(inside[..., None], self.cells[np.where(inside, number, 0)], -1)

    def parse(self, ids: ArrayLike | str, grid: int | None = None) -> Maze:
        """The maze that tokens say, padding left out.

        Tokens that end before <PATH_START> give a maze with its shortest path. Edges keep the order of their tokens.

        grid: rows of the maze. None: the largest row or column that is named, and one, which is too small where no edge
        leads to the last row and column.

        Raises TokenError naming the first token that forms no maze, by its number in what was given, and why;
        ConfigError for a grid that the vocabulary does not have.
        """
        side = None if grid is None else check_grid(grid)
        if side is not None and side > self.grid:
            raise ConfigError(f"parse: grid = {side}: the vocabulary has cells of {self.grid} × {self.grid}")
        words = self.decode(self.encode(ids)) if isinstance(ids, str) else self.decode(ids)
        return _Parser(words, side).maze()

    def __repr__(self) -> str:
        return f"Tokenizer of {self.grid} × {self.grid} mazes, {self.order}: {len(self.vocab)} tokens"


class _Parser:
    """Reads tokens from left to right, padding left out."""

    def __init__(self, words: list[str], grid: int | None) -> None:
        self.places = [i for i, word in enumerate(words) if word != "<PADDING>"]
        """Where each word stands among all tokens."""
        self.words, self.grid, self.at = [words[i] for i in self.places], grid, 0

    def fail(self, why: str) -> TokenError:
        if self.at < len(self.words):
            return TokenError(f"token {self.places[self.at]}, {self.words[self.at]!r}: {why}")
        return TokenError(f"token {self.places[-1] + 1 if self.places else 0}, the end: {why}")

    def peek(self) -> str | None:
        return self.words[self.at] if self.at < len(self.words) else None

    def take(self, word: str) -> None:
        if self.peek() != word:
            raise self.fail(f"expected {word}")
        self.at += 1

    def cell(self, where: str) -> Cell:
        word = self.peek()
        if word is None or not word.startswith("("):
            raise self.fail(f"expected a cell {where}")
        r, c = map(int, word[1:-1].split(","))
        if self.grid is not None and max(r, c) >= self.grid:
            raise self.fail(f"a cell outside a grid of {self.grid} × {self.grid}")
        self.at += 1
        return r, c

    def one(self, name: str) -> Cell:
        self.take(f"<{name}_START>")
        cell = self.cell(f"as the {name.lower()}")
        self.take(f"<{name}_END>")
        return cell

    def edges(self) -> list[tuple[Cell, Cell]]:
        self.take("<ADJLIST_START>")
        edges: list[tuple[Cell, Cell]] = []
        seen = set()
        while self.peek() != "<ADJLIST_END>":
            a = self.cell("or <ADJLIST_END>")
            self.take("<-->")
            b = self.cell("behind <-->")
            if abs(a[0] - b[0]) + abs(a[1] - b[1]) != 1:
                self.at -= 1
                raise self.fail(f"({a[0]},{a[1]}) and ({b[0]},{b[1]}) are no neighbours")
            if frozenset((a, b)) in seen:
                self.at -= 1
                raise self.fail(f"the edge ({a[0]},{a[1]}) – ({b[0]},{b[1]}) comes twice")
            self.take(";")
            seen.add(frozenset((a, b)))
            edges.append((a, b))
        self.take("<ADJLIST_END>")
        return edges

    def path(self, origin: Cell, target: Cell, edges: list[tuple[Cell, Cell]]) -> list[Cell]:
        joined = {frozenset(edge) for edge in edges}
        self.take("<PATH_START>")
        path: list[Cell] = []
        while self.peek() != "<PATH_END>":
            cell = self.cell("or <PATH_END>")
            problem = None
            if not path and cell != origin:
                problem = f"the path does not begin at the origin ({origin[0]},{origin[1]})"
            elif path and frozenset((path[-1], cell)) not in joined:
                problem = f"the path steps from ({path[-1][0]},{path[-1][1]}) to a cell that is not connected with it"
            if problem:
                self.at -= 1
                raise self.fail(problem)
            path.append(cell)
        if not path or path[-1] != target:
            raise self.fail(f"the path does not end at the target ({target[0]},{target[1]})")
        self.take("<PATH_END>")
        return path

    def maze(self) -> Maze:
        edges = self.edges()
        origin, target = self.one("ORIGIN"), self.one("TARGET")
        path = None if self.peek() is None else self.path(origin, target, edges)
        if self.peek() is not None:
            raise self.fail("nothing follows <PATH_END>")
        cells = [origin, target, *(cell for edge in edges for cell in edge)]
        grid = max(2, 1 + max(max(cell) for cell in cells)) if self.grid is None else self.grid
        return Maze(grid, np.array(edges, int).reshape(-1, 2, 2), origin, target, path)
