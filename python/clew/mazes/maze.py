"""Mazes and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, is_list

Array = NDArray[Any]
Cell = tuple[int, int]
Batch = tuple[Array, Array, Array, Array, Array, Array]

WAYS = np.array([(-1, 0), (0, -1), (0, 1), (1, 0)])
"""Up, left, right, down: the last axis of :meth:`Mazes.connections`."""
LARGEST = 20
"""Rows and columns that a maze has at most."""


class Maze:
    """A square maze: which neighbouring cells are connected, an origin, a target, and a way between them.

    Parameters
    ----------
    grid
        Rows, and columns; 2 to 20.
    edges
        Pairs of neighbouring cells that are connected, [m, 2, 2] as (row, column), in the order and direction in which
        tokens list them.
    origin, target
        Cells; both must be connected for `solution` to hold anything.
    solution
        Cells from origin to target, [k, 2]. None: a shortest path; of several the one that goes to the first of up,
        left, right, down at each step. Empty where there is no way.

    Raises
    ------
    ConfigError
        A grid that is too small or too large, edges that join no neighbours or come twice, cells outside the grid, a
        solution that is no way from origin to target.

    Example
    -------
    >>> maze = Maze(2, [[(0, 0), (0, 1)], [(1, 1), (0, 1)]], origin=(0, 0), target=(1, 1))
    >>> maze.solution.tolist(), maze.connected((0, 1), (1, 1)), maze.connected((0, 0), (1, 0))
    ([[0, 0], [0, 1], [1, 1]], True, False)
    >>> print(maze)
    +---+---+
    | O   · |
    +---+   +
    |   | T |
    +---+---+
    """

    def __init__(
        self, grid: int, edges: ArrayLike, origin: ArrayLike, target: ArrayLike, solution: ArrayLike | None = None
    ) -> None:
        side = check_grid(grid)
        pairs = _cells(edges, "edges", side).reshape(-1, 2, 2)
        ends = np.stack([_cell(origin, "origin", side), _cell(target, "target", side)])
        if (np.abs(np.diff(pairs.astype(int), axis=1)).sum((1, 2)) != 1).any():
            first = int(np.flatnonzero(np.abs(np.diff(pairs.astype(int), axis=1)).sum((1, 2)) != 1)[0])
            raise ConfigError(f"Maze: edge {first} joins {_name(pairs[first, 0])} and {_name(pairs[first, 1])}, which "
                              "are no neighbours")  # fmt: skip
        low = np.sort(pairs.astype(int) @ [side, 1], axis=1)
        _, index, counts = np.unique(low, axis=0, return_index=True, return_counts=True)
        if (counts > 1).any():
            first = int(index[counts > 1].min())
            raise ConfigError(f"Maze: the edge {_name(pairs[first, 0])} – {_name(pairs[first, 1])} comes twice")
        self._set(side, pairs, ends, None)
        if solution is None:
            path = np.zeros((1, side * side, 2), np.uint8)
            length = np.zeros(1, np.int32)
            _core.maze_paths((*self._batch()[:4], path, length))
            self.solution = _frozen(path[0, : length[0]])
        else:
            self.solution = _frozen(_cells(solution, "solution", side).reshape(-1, 2))
            self._check_solution()

    def _set(self, grid: int, edges: Array, ends: Array, solution: Array | None) -> None:
        self.grid = grid
        """Rows, and columns."""
        self.edges = _frozen(edges)
        """Connected neighbours, int64 [m, 2, 2] as (row, column), read-only."""
        self.origin: Cell = (int(ends[0, 0]), int(ends[0, 1]))
        """Where the path begins."""
        self.target: Cell = (int(ends[1, 0]), int(ends[1, 1]))
        """Where it ends."""
        if solution is not None:
            self.solution = _frozen(solution)
            """The path, int64 [k, 2], read-only; empty where there is none."""

    @classmethod
    def _trusted(cls, grid: int, edges: Array, ends: Array, solution: Array) -> Maze:
        """A maze of arrays that are known to be one."""
        maze = cls.__new__(cls)
        maze._set(grid, edges, ends, solution)
        return maze

    def _check_solution(self) -> None:
        path = self.solution
        if len(path) == 0:
            return
        if tuple(path[0]) != self.origin or tuple(path[-1]) != self.target:
            raise ConfigError(
                f"Maze: a solution from {_name(path[0])} to {_name(path[-1])}; origin {_name(self.origin)}, target "
                f"{_name(self.target)}"
            )
        for a, b in zip(path[:-1], path[1:], strict=True):
            if not self.connected(a, b):
                raise ConfigError(f"Maze: the solution steps from {_name(a)} to {_name(b)}, which are not connected")

    def _batch(self) -> Batch:
        solution = self.solution if hasattr(self, "solution") else np.zeros((0, 2), np.int64)
        return (
            np.array([self.grid], np.uint8),
            np.ascontiguousarray(self.edges[None], np.uint8),
            np.array([len(self.edges)], np.int32),
            np.array([[self.origin, self.target]], np.uint8),
            np.ascontiguousarray(solution[None], np.uint8),
            np.array([len(solution)], np.int32),
        )

    @cached_property
    def connections(self) -> Array:
        """Bool [2, grid, grid]: is (r, c) connected with the cell below it, with the cell to its right?"""
        out = np.zeros((2, self.grid, self.grid), bool)
        low, high = self.edges.min(1), self.edges.max(1)
        out[(high[:, 0] == low[:, 0]).astype(int), low[:, 0], low[:, 1]] = True
        return _read_only(out)

    def connected(self, a: ArrayLike, b: ArrayLike) -> bool:
        """Are two cells neighbours without a wall between them? Cells outside the grid are connected with none.

        Raises ShapeError for what is no cell.
        """
        (r, c), (s, d) = sorted([cell_pair(a), cell_pair(b)])
        if not (0 <= r and 0 <= c < self.grid and 0 <= d < self.grid and s < self.grid) or s - r + abs(d - c) != 1:
            return False
        return bool(self.connections[int(s == r), r, c])

    @property
    def adjacency(self) -> Array:
        """Bool [cells, cells], cells numbered row by row."""
        out = np.zeros((self.grid**2,) * 2, bool)
        a, b = (self.edges @ [self.grid, 1]).T if len(self.edges) else np.zeros((2, 0), int)
        out[a, b] = out[b, a] = True
        return out

    def distances(self) -> Array:
        """Steps between all cells, int16 [cells, cells], cells numbered row by row; −1 where there is no way."""
        return np.asarray(_core.maze_distances(self._batch())[0])

    @property
    def hash(self) -> int:
        """A 64-bit number of the walls alone: the same whatever the order of edges, origin and target."""
        return int(_core.maze_hashes(self._batch())[0])

    def with_ends(self, origin: ArrayLike, target: ArrayLike) -> Maze:
        """The same walls with another origin and target, and a shortest path between them."""
        return Maze(self.grid, self.edges, origin, target)

    def __eq__(self, other: object) -> bool:
        """The same walls, origin, target and solution, in whatever order the edges are listed."""
        if not isinstance(other, Maze):
            return NotImplemented
        return (
            (self.grid, self.origin, self.target) == (other.grid, other.origin, other.target)
            and np.array_equal(self.connections, other.connections)
            and np.array_equal(self.solution, other.solution)
        )

    def __hash__(self) -> int:
        return hash((self.hash, self.origin, self.target))

    def __str__(self) -> str:
        from .draw import text

        return text(self)

    def __repr__(self) -> str:
        return (
            f"Maze of {self.grid} × {self.grid}, {len(self.edges)} edges, {_name(self.origin)} to {_name(self.target)} "
            f"in {len(self.solution) - 1 if len(self.solution) else 'no'} steps"
        )


class Mazes(Sequence[Maze]):
    """A batch of mazes, packed; a sequence of :class:`Maze`. `generate` makes one, and `Mazes.of` a list of mazes.

    >>> from clew import mazes
    >>> ms = mazes.generate(3, grid=4)
    >>> len(ms), ms[0].grid, len(ms[:2]), len(Mazes.of([ms[2], ms[0]]))
    (3, 4, 2, 2)
    """

    def __init__(self, batch: Batch) -> None:
        if not isinstance(batch, tuple) or len(batch) != 6 or not all(isinstance(a, np.ndarray) for a in batch):
            raise ConfigError(
                "Mazes: a batch is six arrays as the core has them; mazes.generate makes one, Mazes.of a list of mazes"
            )
        grids, edges, n_edges, ends, path, n_path = batch
        n = len(grids) if grids.ndim else -1
        layout = ((np.uint8, (n,)), (np.uint8, (n, *edges.shape[1:2], 2, 2)), (np.int32, (n,)), (np.uint8, (n, 2, 2)),
                  (np.uint8, (n, *path.shape[1:2], 2)), (np.int32, (n,)))  # fmt: skip
        for i, (array, (dtype, shape)) in enumerate(zip(batch, layout, strict=True)):
            if array.dtype != dtype or array.shape != shape:
                raise ShapeError(f"Mazes: array {i} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} "
                                 f"{list(shape)}")  # fmt: skip
        for what, counts, most in (("edges", n_edges, edges.shape[1]), ("cells of a path", n_path, path.shape[1])):
            if ((counts < 0) | (counts > most)).any():
                raise ConfigError(f"Mazes: {counts.min()} to {counts.max()} {what} in an array of {most}")
        if ((grids < 2) | (grids > LARGEST)).any():
            raise ConfigError(f"Mazes: grids of {grids.min()} to {grids.max()}: a maze has 2 to {LARGEST} rows")
        self.batch: Batch = tuple(_read_only(array.view()) for array in batch)  # type: ignore[assignment]
        """Arrays as the core has them: grids [n], edges [n, E, 2, 2], counts of edges [n], ends [n, 2, 2], paths
        [n, P, 2], lengths of paths [n]."""

    @classmethod
    def of(cls, items: Iterable[Maze] | Maze) -> Mazes:
        """Packs mazes; a batch as it is. Raises ConfigError for what holds other things."""
        if isinstance(items, Mazes):
            return items
        if not isinstance(items, Maze) and not is_list(items):
            raise ConfigError(f"mazes: a maze or a sequence of mazes, not {type(items).__name__}")
        ms = [items] if isinstance(items, Maze) else list(items)
        for i, maze in enumerate(ms):
            if not isinstance(maze, Maze):
                raise ConfigError(f"a sequence of mazes: number {i} is {maze!r}")
        n_edges = np.array([len(m.edges) for m in ms], np.int32)
        n_path = np.array([len(m.solution) for m in ms], np.int32)
        edges = np.zeros((len(ms), max(n_edges, default=0), 2, 2), np.uint8)
        path = np.zeros((len(ms), max(n_path, default=0), 2), np.uint8)
        for i, m in enumerate(ms):
            edges[i, : n_edges[i]], path[i, : n_path[i]] = m.edges, m.solution
        ends = np.array([(m.origin, m.target) for m in ms], np.uint8).reshape(-1, 2, 2)
        return cls((np.array([m.grid for m in ms], np.uint8), edges, n_edges, ends, path, n_path))

    @classmethod
    def join(cls, parts: Sequence[Mazes]) -> Mazes:
        """Batches behind each other; their grids may differ. Raises ConfigError for what are none, or no parts."""
        if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, Mazes) for part in parts):
            raise ConfigError("Mazes.join: a list of at least one Mazes; Mazes.of packs single mazes")
        arrays: list[Array] = []
        for i in range(6):
            columns = [part.batch[i] for part in parts]
            if i in (1, 4):
                width = max((c.shape[1] for c in columns), default=0)
                columns = [np.pad(c, [(0, 0), (0, width - c.shape[1]), *[(0, 0)] * (c.ndim - 2)]) for c in columns]
            arrays.append(np.concatenate(columns))
        grids, edges, n_edges, ends, path, n_path = arrays
        return cls((grids, edges, n_edges, ends, path, n_path))

    @overload
    def __getitem__(self, key: int) -> Maze: ...
    @overload
    def __getitem__(self, key: slice | ArrayLike) -> Mazes: ...
    def __getitem__(self, key: Any) -> Maze | Mazes:
        grids, edges, n_edges, ends, path, n_path = self.batch
        if isinstance(key, bool | np.bool_):
            raise IndexError(f"mazes: {key!r} is no number, slice, list of numbers or mask")
        if isinstance(key, int | np.integer):
            i = int(key)
            if not -len(self) <= i < len(self):
                raise IndexError(f"maze {i} of {len(self)}")
            return Maze._trusted(int(grids[i]), edges[i, : n_edges[i]], ends[i], path[i, : n_path[i]])
        rows: slice | Array = key if isinstance(key, slice) else as_array(key, "numbers of mazes")
        if not isinstance(rows, slice):
            rows = rows.astype(int) if rows.shape == (0,) else rows  # an empty list has no dtype of its own
            if rows.ndim != 1 or rows.dtype.kind not in "iub":
                raise IndexError(f"mazes: {key!r} is no number, slice, list of numbers or mask")
        # a slice with a step is no contiguous array, which is what the core reads
        parts = [np.ascontiguousarray(array[rows]) for array in self.batch]
        return Mazes((parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]))

    def __len__(self) -> int:
        return len(self.batch[0])

    def __eq__(self, other: object) -> bool:
        """The same mazes in the same order, each as :class:`Maze` has it: whatever order its edges are listed in."""
        if not isinstance(other, Mazes):
            return NotImplemented
        return (
            all(np.array_equal(self.batch[i], other.batch[i]) for i in (0, 3, 5))
            and np.array_equal(self._solutions(), other._solutions())
            and np.array_equal(self.connections(), other.connections())
        )

    def __hash__(self) -> int:
        return hash((self.hashes.tobytes(), self.ends.tobytes()))

    def _solutions(self) -> Array:
        """Cells of all solutions one after the other [Σ path_lengths, 2]."""
        path = self.batch[4]
        return np.asarray(path[np.arange(path.shape[1]) < self.path_lengths[:, None]])

    def __iter__(self) -> Iterator[Maze]:
        return (self[i] for i in range(len(self)))

    @property
    def grids(self) -> Array:
        """Rows of each, int [n]."""
        return self.batch[0].astype(int)

    @property
    def ends(self) -> Array:
        """Origin and target of each, int [n, 2, 2]."""
        return self.batch[3].astype(int)

    @property
    def path_lengths(self) -> Array:
        """Cells of each solution, origin and target included, int [n]; 0: no way."""
        return self.batch[5].astype(int)

    @property
    def hashes(self) -> Array:
        """A number for each maze's walls, uint64 [n]; see :attr:`Maze.hash`."""
        return np.asarray(_core.maze_hashes(self.batch))

    def connections(self) -> Array:
        """Bool [n, side, side, 4]: is (r, c) connected with the cell above, to the left, to the right, below?

        side: the largest grid of the batch.
        """
        grids, edges, n_edges, *_ = self.batch
        side = int(max(grids, default=2))
        out = np.zeros((len(self), side, side, 4), bool)
        maze, number = np.nonzero(np.arange(edges.shape[1]) < n_edges[:, None])
        a, b = edges[maze, number, 0].astype(int), edges[maze, number, 1].astype(int)
        for here, there in ((a, b), (b, a)):
            out[maze, here[:, 0], here[:, 1], way_of(there - here)] = True
        return out

    def open_steps(self, paths: Array) -> Array:
        """Does each step of the mazes' paths [n, k, 2] go from a cell to a connected one? bool [n, k − 1].

        Steps from and to what is no cell of the maze do not.
        """
        inside: Array = np.all((paths >= 0) & (paths < self.grids[:, None, None]), axis=-1)
        here = np.where(inside[..., None], paths, 0)[:, :-1]
        way = way_of(np.diff(paths, axis=1))
        joined = self.connections()[np.arange(len(self))[:, None], here[..., 0], here[..., 1], way]
        return np.asarray(joined & (way >= 0) & inside[:, :-1] & inside[:, 1:])

    def distances(self) -> Array:
        """Steps between all cells of each maze, int16 [n, cells, cells]; −1: no way. Mazes of one grid only.

        Raises ShapeError naming both grids.
        """
        return np.asarray(_core.maze_distances(self.batch))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{g} × {g}" for g in np.unique(self.batch[0]))
        return f"{len(self)} mazes of {sizes}" if len(self) else "no mazes"


def shortest_lengths(ms: Mazes) -> Array:
    """Cells of a shortest path from origin to target of each maze, int [n]; 0: no way.

    A maze's own solution may go round, so :attr:`Mazes.path_lengths` may be larger.

    >>> ring = Maze(2, [[(0, 0), (0, 1)], [(0, 1), (1, 1)], [(1, 1), (1, 0)], [(1, 0), (0, 0)]], (0, 0), (0, 1),
    ...             solution=[(0, 0), (1, 0), (1, 1), (0, 1)])
    >>> shortest_lengths(Mazes.of(ring)).tolist()
    [2]
    """
    grids, edges, n_edges, ends = (array.copy() for array in ms.batch[:4])  # the core takes writeable ones
    path = np.zeros((len(ms), int(ms.grids.max(initial=2)) ** 2, 2), np.uint8)
    length = np.zeros(len(ms), np.int32)
    _core.maze_paths((grids, edges, n_edges, ends, path, length))
    return length.astype(int)


def way_of(step: Array) -> Array:
    """Number of each step [..., 2] among WAYS, int [...]; −1 for a step that leads to no neighbour.

    >>> way_of(np.array([(1, 0), (0, -1), (1, 1)])).tolist()
    [3, 1, -1]
    """
    return np.select([(step == way).all(-1) for way in WAYS], [0, 1, 2, 3], -1)


def check_grid(grid: Any) -> int:
    """A size of mazes; raises ConfigError."""
    if isinstance(grid, bool) or not isinstance(grid, int | np.integer) or not 2 <= grid <= LARGEST:
        raise ConfigError(f"grid = {grid!r}: a maze has 2 to {LARGEST} rows")
    return int(grid)


def cell_pair(cell: ArrayLike) -> Cell:
    """A cell, wherever it lies; ShapeError."""
    array = as_array(cell, "a cell")
    if array.shape != (2,) or array.dtype.kind not in "iu":
        raise ShapeError(f"a cell is two whole numbers (row, column), not {array.dtype} {list(array.shape)}")
    return int(array[0]), int(array[1])


def _name(cell: ArrayLike) -> str:
    r, c = np.asarray(cell).tolist()
    return f"({r},{c})"


def _cells(value: ArrayLike, what: str, grid: int) -> Array:
    """Cells, checked, uint8 [..., 2]; ShapeError, ConfigError."""
    array = as_array(value, what)
    if array.size == 0:
        return np.zeros((0, 2), np.uint8)
    if array.shape[-1:] != (2,) or array.dtype.kind not in "iu":
        raise ShapeError(f"Maze: {what} must be whole numbers (row, column), not {array.dtype} {list(array.shape)}")
    if what == "edges" and array.shape[-2:] != (2, 2):
        raise ShapeError(f"Maze: edges must be pairs of cells [m, 2, 2], not {list(array.shape)}")
    flat = array.reshape(-1, 2)
    outside = np.flatnonzero(((flat < 0) | (flat >= grid)).any(1))
    if outside.size:
        raise ConfigError(f"Maze: {what}: {_name(flat[outside[0]])} lies outside a grid of {grid} × {grid}")
    return np.ascontiguousarray(array, np.uint8)


def _cell(value: ArrayLike, what: str, grid: int) -> Array:
    """One cell, checked, uint8 [2]; ShapeError, ConfigError."""
    cell = _cells(value, what, grid)
    if cell.shape != (2,):
        raise ShapeError(f"Maze: {what} must be one cell (row, column), not {list(as_array(value, what).shape)}")
    return cell


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _frozen(array: Array) -> Array:
    return _read_only(array.astype(np.int64))
