"""Drawing mazes: plain text, and matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import check_flags, real_array
from .checks import one_maze, path_within
from .maze import Cell, Maze, cell_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]


def text(maze: Maze, path: ArrayLike | None = None) -> str:
    """A maze in characters: walls, O the origin, T the target, · a path between them (None: the solution).

    Cells (−1, −1), tokens that are none, are left out, and so are cells that only larger mazes have: paths are taken as
    :func:`clew.mazes.solve` gives them. Raises ShapeError for what is no path, ConfigError for what is no maze, or a
    cell that none has.

    >>> print(text(Maze(2, [[(0, 0), (0, 1)]], (0, 0), (0, 1)), path=[]))
    +---+---+
    | O   T |
    +---+---+
    |   |   |
    +---+---+
    """
    one_maze(maze, "text")
    cells = maze.solution if path is None else as_walked(path_within(path, maze, "text: path"), maze)
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
    path_label: str = "the model's path",
) -> Figure:
    """A maze as a matplotlib figure, with what is known of it over it. Needs matplotlib (`clew[plot]`).

    Parameters
    ----------
    maze
        Its walls are black lines, the origin a circle, the target a cross.
    path
        Cells that a model walked [k, 2], drawn blue; steps through walls are dotted. (−1, −1), a token that is no cell,
        is left out, and so is a cell that only larger mazes have.
    solution
        Draws the maze's solution, orange.
    values
        A number of each cell [grid, grid], such as attention: shades of blue, with a colour bar. Cells whose value is
        masked (`numpy.ma`) are hatched: they have none.
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
    path_label
        What the path is, in the legend, which stands below a figure of its own.

    Returns a figure; nothing opens a window.

    Raises
    ------
    ShapeError
        Arrays of another shape, naming the one that was expected; what is no path.
    ConfigError
        What is no maze; cells that no maze has; labels outside it; values that are NaN or infinite; probabilities
        outside 0 to 1; words that are no text; axes that are none.
    ImportError
        matplotlib is missing.

    >>> from clew import mazes
    >>> figure = draw(mazes.generate(1)[0], values=np.eye(6), values_label="attention")
    >>> len(figure.axes)
    2
    """
    from ..plot import _axes

    n = one_maze(maze, "draw").grid
    shade = None if values is None else _shaped(values, (n, n), "values")
    said = None if walls is None else _shaped(walls, (2, n, n), "walls")
    if np.ma.is_masked(said):
        raise ConfigError("draw: walls: masked: every inner wall needs a probability")
    if said is not None and ((said < 0) | (said > 1)).any():
        raise ConfigError(f"draw: walls: a probability lies in 0 to 1, not {said.min():g} to {said.max():g}")
    walked = None if path is None else as_walked(path_within(path, maze, "draw: path"), maze)
    words = _labels(cell_labels, maze)
    check_flags(solution=solution)
    for name, word in (("title", title), ("values_label", values_label), ("path_label", path_label)):
        if word is not None and not isinstance(word, str):
            raise ConfigError(f"draw: {name} = {word!r}: a text")
    if ax is not None and not hasattr(ax, "get_figure"):
        raise ConfigError(f"draw: ax: matplotlib's axes, not {type(ax).__name__}")
    own = ax is None
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
        for r, c in np.argwhere(np.ma.getmaskarray(shade)).tolist():
            ax.fill_between(
                [c - 0.5, c + 0.5], r - 0.5, r + 0.5, fc="white", ec="#909090", hatch="////", lw=0, zorder=0
            )
    _draw_walls(ax, maze, said)
    if solution and len(maze.solution):
        ax.plot(maze.solution[:, 1], maze.solution[:, 0], color="#E69F00", lw=5, alpha=0.6, zorder=2, label="solution")
    if walked is not None:
        _draw_path(ax, maze, walked)
    ax.plot(maze.origin[1], maze.origin[0], "o", color="black", ms=9, mfc="white", mew=2, zorder=4)
    ax.plot(maze.target[1], maze.target[0], "x", color="black", ms=9, mew=2.5, zorder=4)
    for (r, c), word in words.items():
        ax.text(c, r, word, ha="center", va="center", fontsize=7, zorder=5)
    if title:
        ax.set_title(title, fontsize=10)
    if own:
        legend(figure, said is not None, solution and len(maze.solution) > 0, path_label if walked is not None else "")
    return figure


def legend(figure: Figure, walls: bool, solution: bool, path_label: str) -> None:
    """What the colours of drawn mazes mean, below them; the figure grows by it."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=(1, 0, 0), lw=6, label="the probe says: wall"),
        Line2D([], [], color=(1, 0.75, 0.75), lw=6, label="the paler, the likelier open"),
        Line2D([], [], color="black", lw=2, label="black edge: the probe is wrong"),
    ] if walls else []  # fmt: skip
    if solution:
        handles.append(Line2D([], [], color="#E69F00", lw=5, alpha=0.6, label="solution"))
    if path_label:
        dotted = " (dotted: through a wall)" if path_label == "the model's path" else ""
        handles.append(Line2D([], [], color="#0072B2", lw=2, marker="o", ms=4, label=path_label + dotted))
    for marker, label in (("o", "origin"), ("x", "target")):
        handles.append(Line2D([], [], color="black", mfc="white", mew=1.8, lw=0, ms=6, marker=marker, label=label))
    width, height = figure.get_size_inches()
    columns = 2 if width > 4 and len(handles) > 1 else 1
    figure.set_size_inches(width, height + 0.22 * -(-len(handles) // columns))
    figure.legend(handles=handles, frameon=False, fontsize=8.5, loc="outside lower center", ncols=columns)


def as_walked(path: Array, maze: Maze) -> Array:
    """A model's path as it is seen in the maze: cells that only larger mazes have are (−1, −1)."""
    outside: Array = np.any((path < 0) | (path >= maze.grid), axis=1)
    return np.where(outside[:, None], -1, path)


def _shaped(value: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """Finite numbers of a shape, float64; masked where they are masked."""
    mask = np.ma.getmaskarray(value) if isinstance(value, np.ma.MaskedArray) else None
    array = real_array(np.asarray(value) if mask is not None else value, f"draw: {what}")
    if array.shape != shape:
        raise ShapeError(f"draw: {what} of shape {list(array.shape)}, the maze needs {list(shape)}")
    shown = array.ravel() if mask is None else array[~mask]
    if not np.isfinite(shown).all():
        raise ConfigError(f"draw: {what} hold NaN or infinity: numbers must be finite")
    return array if mask is None else np.ma.masked_array(array, mask)


def _labels(value: Mapping[Cell, str] | None, maze: Maze) -> dict[Cell, str]:
    """Words by cell, checked; ConfigError, ShapeError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"draw: cell_labels: a mapping of cells to words, not {type(value).__name__}")
    out: dict[Cell, str] = {}
    for key, word in value.items():
        cell = cell_pair(key)
        if not isinstance(word, str):
            raise ConfigError(f"draw: cell_labels: the label of ({cell[0]},{cell[1]}) is {word!r}, no text")
        if not all(0 <= i < maze.grid for i in cell):
            raise ConfigError(
                f"draw: cell_labels: ({cell[0]},{cell[1]}) lies outside a grid of {maze.grid} × {maze.grid}"
            )
        out[cell] = word
    return out


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
                shown = float(said[int(right), r, c])
                if (shown > 0.5) != open_:
                    ax.plot(x, y, color="black", lw=9, solid_capstyle="butt", zorder=3)
                ax.plot(x, y, color=(1, shown, shown), lw=6, solid_capstyle="butt", zorder=3)


def _draw_path(ax: Axes, maze: Maze, path: Array) -> None:
    inside = path[((path >= 0) & (path < maze.grid)).all(1)]
    ax.plot(inside[:, 1], inside[:, 0], "o", color="#0072B2", ms=4, zorder=4)
    for a, b in zip(inside[:-1], inside[1:], strict=True):
        style = "-" if maze.connected(a, b) else ":"
        ax.plot([a[1], b[1]], [a[0], b[0]], style, color="#0072B2", lw=2, zorder=4)
