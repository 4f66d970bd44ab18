"""Mazes of the `maze-dataset` package: taken over, and given to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import ConfigError, ShapeError
from ..inputs import as_array, is_list
from .checks import path_of
from .maze import Maze, Mazes


def from_maze_dataset(value: Any) -> Maze | Mazes:
    """A `SolvedMaze` or `TargetedLatticeMaze` of `maze-dataset` as a :class:`Maze`, a `MazeDataset` or a list of them
    as :class:`Mazes`. Their solutions are kept; edges come row by row, as no order is known.

    `maze-dataset` itself is not needed: what is read is `connection_list`, `start_pos`, `end_pos` and `solution`.

    Raises ConfigError for a maze without start and end, ShapeError for one that is not a square or whose arrays hold
    other things.

    >>> from types import SimpleNamespace
    >>> walls = np.zeros((2, 2, 2), bool)
    >>> walls[1, 0, 0] = True
    >>> from_maze_dataset(SimpleNamespace(connection_list=walls, solution=np.array([[0, 0], [0, 1]])))
    Maze of 2 × 2, 1 edges, (0,0) to (0,1) in 1 steps
    """
    if hasattr(value, "connection_list"):
        return _one(value)
    items = value.mazes if hasattr(value, "mazes") else value
    if not is_list(items):
        raise ConfigError(f"from_maze_dataset: {type(value).__name__} is no maze and no dataset")
    return Mazes.of([_one(item) for item in items])


def _one(value: Any) -> Maze:
    walls = as_array(getattr(value, "connection_list", None), "from_maze_dataset: connection_list")
    if walls.ndim != 3 or walls.shape[0] != 2 or walls.shape[1] != walls.shape[2]:
        raise ShapeError(f"from_maze_dataset: connection_list {list(walls.shape)}, expected [2, grid, grid]")
    if walls.dtype.kind not in "biuf" or not ((walls == 0) | (walls == 1)).all():
        raise ShapeError(f"from_maze_dataset: connection_list must hold True and False, not other {walls.dtype}")
    solution = getattr(value, "solution", None)
    path = None if solution is None else path_of(solution, "from_maze_dataset: solution")
    ends: list[Any] = [getattr(value, name, None) for name in ("start_pos", "end_pos")]
    if path is not None and len(path):
        ends = [path[0], path[-1]]
    if any(end is None for end in ends):
        raise ConfigError("from_maze_dataset: the maze has no start and end: give a SolvedMaze or TargetedLatticeMaze")
    grid = walls.shape[1]
    r, c, way = np.nonzero(np.moveaxis(walls.astype(bool), 0, -1))
    here = np.stack([r, c], axis=1)
    there = here + np.stack([way == 0, way == 1], axis=1)
    known = path if path is not None and len(path) else None
    return Maze(grid, np.stack([here, there], axis=1), ends[0], ends[1], known)


def to_maze_dataset(maze: Maze | Mazes | Iterable[Maze]) -> Any:
    """A `maze_dataset.SolvedMaze`, or a list of them.

    Raises ConfigError for what is no maze, or a maze without a path; ImportError without `maze-dataset`.

    >>> from clew import mazes
    >>> to_maze_dataset(mazes.generate(1)[0]).connection_list.shape            # doctest: +SKIP
    (2, 6, 6)
    """
    ms = Mazes.of(maze)
    if (bad := np.flatnonzero(ms.path_lengths == 0)).size:
        raise ConfigError(f"to_maze_dataset: {ms[int(bad[0])]!r}: a SolvedMaze has a path")
    try:
        import maze_dataset  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise ImportError("to_maze_dataset needs maze-dataset: pip install maze-dataset 'muutils<0.9'") from error
    return _solved(maze) if isinstance(maze, Maze) else [_solved(item) for item in ms]


def _solved(maze: Maze) -> Any:
    from maze_dataset import SolvedMaze

    meta = {"func_name": "clew", "grid_shape": np.array([maze.grid] * 2), "fully_connected": False}
    cells = {tuple(cell) for cell in np.argwhere(maze.distances()[np.dot(maze.origin, [maze.grid, 1])].reshape(
        maze.grid, maze.grid) >= 0).tolist()}  # fmt: skip
    return SolvedMaze(
        connection_list=maze.connections.copy(), solution=maze.solution.copy(),
        generation_meta={**meta, "visited_cells": cells},
    )  # fmt: skip
