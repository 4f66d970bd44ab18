"""Drawing mazes: plain text, and matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ShapeError
from .maze import Cell, Maze

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]


def text(maze: Maze, path: ArrayLike | None = None) -> str:
    """A maze in characters: walls, O the origin, T the target, · a path between them (None: the solution).

    >>> print(text(Maze(2, [[(0, 0), (0, 1)]], (0, 0), (0, 1)), path=[]))
    +---+---+
    | O   T |
    +---+---+
    |   |   |
    +---+---+
    """
    cells = maze.solution if path is None else np.asarray(path, int).reshape(-1, 2)
    marks = {tuple(cell): "·" for cell in cells.tolist()}
    marks[maze.origin], marks[maze.target] = "O", "T"
    down, right = maze.connections
    n = maze.grid
    lines = ["+" + "---+" * n]
    for r in range(n):
        row = [f" {marks.get((r, c), ' ')} " + (" " if c < n - 1 and right[r, c] else "|") for c in range(n)]
        lines.append("|" + "".join(row))
        lines.append("+" + "".join(("   " if r < n - 1 and down[r, c] else "---") + "+" for c in range(n)))
    return "\n".join(lines)


def draw(
    maze: Maze,
    path: ArrayLike | None = None,
    *,
    solution: bool = True,
    values: ArrayLike | None = None,
    values_label: str = "",
    cell_labels: Mapping[Cell, str] | None = None,
    walls: ArrayLike | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A maze as a matplotlib figure, with what is known of it over it. Needs matplotlib (`clew[plot]`).

    Parameters
    ----------
    maze
        Its walls are black lines, the origin a circle, the target a cross.
    path
        Cells that a model walked [k, 2], drawn blue; steps through walls are dotted. Tokens that are no cells are left
        out.
    solution
        Draws the maze's solution, orange.
    values
        A number of each cell [grid, grid], such as attention: shades of blue, with a colour bar.
    values_label
        What they are.
    cell_labels
        Words in cells.
    walls
        What a probe says of each inner wall: the probability that two neighbours are *connected*,
        [2, grid, grid] as :attr:`Maze.connections` (down, right). Each possible wall is a bar from white (open) to red
        (wall), with a black edge where the probe is wrong (at ½).
    ax
        Axes to draw into.
    title
        Above it.

    Returns a figure; nothing opens a window. Raises ShapeError naming the shape that was expected, ImportError without
    matplotlib.

    >>> from clew import mazes
    >>> figure = draw(mazes.generate(1)[0], values=np.eye(6), values_label="attention")
    >>> len(figure.axes)
    2
    """
    from ..plot import _axes

    n = maze.grid
    shade = None if values is None else _shaped(values, (n, n), "values")
    said = None if walls is None else _shaped(walls, (2, n, n), "walls")
    figure, ax = _axes(ax, 1.2 + 0.55 * n, 0.9 + 0.55 * n)
    ax.set_xlim(-0.6, n - 0.4)
    ax.set_ylim(n - 0.4, -0.6)
    ax.set_aspect("equal")
    ax.set_xticks(range(n))
    ax.set_yticks(range(n))
    ax.tick_params(length=0, labelsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if shade is not None:
        image = ax.imshow(shade, cmap="Blues", extent=(-0.5, n - 0.5, n - 0.5, -0.5), zorder=0)
        figure.colorbar(image, ax=ax, shrink=0.8, label=values_label)
    _draw_walls(ax, maze, said)
    if solution and len(maze.solution):
        ax.plot(maze.solution[:, 1], maze.solution[:, 0], color="#E69F00", lw=5, alpha=0.6, zorder=2, label="solution")
    if path is not None:
        _draw_path(ax, maze, np.asarray(path, int).reshape(-1, 2))
    ax.plot(maze.origin[1], maze.origin[0], "o", color="black", ms=9, mfc="white", mew=2, zorder=4)
    ax.plot(maze.target[1], maze.target[0], "x", color="black", ms=9, mew=2.5, zorder=4)
    for (r, c), word in (cell_labels or {}).items():
        ax.text(c, r, word, ha="center", va="center", fontsize=7, zorder=5)
    if title:
        ax.set_title(title, fontsize=10)
    return figure


def _shaped(value: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    array = np.asarray(value, float)
    if array.shape != shape:
        raise ShapeError(f"draw: {what} of shape {list(array.shape)}, the maze needs {list(shape)}")
    return array


def _bar(r: int, c: int, right: bool) -> tuple[list[float], list[float]]:
    """x and y of the wall to the right of a cell, or below it."""
    return ([c + 0.5, c + 0.5], [r - 0.5, r + 0.5]) if right else ([c - 0.5, c + 0.5], [r + 0.5, r + 0.5])


def _draw_walls(ax: Axes, maze: Maze, said: Array | None) -> None:
    n = maze.grid
    ax.plot([-0.5, n - 0.5, n - 0.5, -0.5, -0.5], [-0.5, -0.5, n - 0.5, n - 0.5, -0.5], color="black", lw=3, zorder=3)
    for right in (False, True):
        for r in range(n - (not right)):
            for c in range(n - right):
                x, y = _bar(r, c, right)
                open_ = bool(maze.connections[int(right), r, c])
                if said is None:
                    if not open_:
                        ax.plot(x, y, color="black", lw=3, solid_capstyle="projecting", zorder=3)
                    continue
                shown = float(np.clip(said[int(right), r, c], 0, 1))
                if (shown > 0.5) != open_:
                    ax.plot(x, y, color="black", lw=9, solid_capstyle="butt", zorder=3)
                ax.plot(x, y, color=(1, shown, shown), lw=6, solid_capstyle="butt", zorder=3)


def _draw_path(ax: Axes, maze: Maze, path: Array) -> None:
    inside = path[((path >= 0) & (path < maze.grid)).all(1)]
    ax.plot(inside[:, 1], inside[:, 0], "o", color="#0072B2", ms=4, zorder=4)
    for a, b in zip(inside[:-1], inside[1:], strict=True):
        style = "-" if maze.connected(a, b) else ":"
        ax.plot([a[1], b[1]], [a[0], b[0]], style, color="#0072B2", lw=2, zorder=4)
