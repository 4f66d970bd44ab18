"""Mazes as text and as figures, and what comes from other packages."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clew import ConfigError, ShapeError, mazes

MAZE = mazes.Maze(3, [((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 2)), ((1, 0), (2, 0))], (0, 0), (1, 2))


def test_text() -> None:
    assert str(MAZE) == (
        "+---+---+---+\n| O   · |   |\n+---+   +---+\n|   | ·   T |\n+   +---+---+\n|   |   |   |\n+---+---+---+"
    )
    lines = mazes.text(MAZE, path=[(0, 0), (1, 0), (2, 0)]).split("\n")
    assert lines[3].startswith("| · |") and lines[5].startswith("| · |") and "·" not in lines[1]


def test_paths_are_taken_as_models_say_them() -> None:
    """A model of 7 × 7 mazes says cells that a maze of 3 × 3 does not have; they are left out, as other tokens are."""
    said = [(0, 0), (0, 6), (0, 1), (3, 0), (-1, -1), (1, 1)]
    seen = [(0, 0), (-1, -1), (0, 1), (-1, -1), (-1, -1), (1, 1)]
    assert mazes.text(MAZE, said) == mazes.text(MAZE, seen)
    with pytest.raises(ConfigError, match=r"text: path: cell 1, \(-1,0\), lies outside a grid of 3 × 3"):
        mazes.text(MAZE, [(0, 0), (-1, 0)])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    drawn = [
        [(line.get_linestyle(), np.asarray(line.get_xdata()).tolist()) for line in lines(mazes.draw(MAZE, path))]
        for path in (said, seen)
    ]
    assert drawn[0] == drawn[1]


def test_text_says_the_maze() -> None:
    """Walls read back from the characters are the maze's."""
    for maze in mazes.generate(5, 7, "prdfs"):
        lines = str(maze).split("\n")
        for r in range(7):
            for c in range(7):
                if c < 6:
                    assert (lines[2 * r + 1][4 * c + 4] == " ") == maze.connected((r, c), (r, c + 1))
                if r < 6:
                    assert (lines[2 * r + 2][4 * c + 2] == " ") == maze.connected((r, c), (r + 1, c))


# ---- Figures --------------------------------------------------------------------------------------------------------


def lines(figure: Any) -> list[Any]:
    return list(figure.axes[0].lines)


def test_figures_show_walls_paths_values_and_probes() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    walls = 12 - len(MAZE.edges)
    plain = mazes.draw(MAZE, solution=False)
    assert len(lines(plain)) == 1 + walls + 2  # the border, inner walls, two endpoints
    assert len(lines(mazes.draw(MAZE))) == len(lines(plain)) + 1
    walked = [(0, 0), (0, 1), (0, 2), (-1, -1), (1, 2)]
    figure = mazes.draw(MAZE, path=walked, solution=False, title="walk")
    styles = [line.get_linestyle() for line in lines(figure) if line.get_color() == "#0072B2"]
    assert styles == ["None", "-", ":", ":"] and figure.axes[0].get_title() == "walk"
    figure = mazes.draw(MAZE, values=np.arange(9).reshape(3, 3), values_label="attention", cell_labels={(2, 2): "x"})
    assert len(figure.axes) == 2 and figure.axes[1].get_ylabel() == "attention"
    assert [t.get_text() for t in figure.axes[0].texts] == ["x"]
    said = MAZE.connections.astype(float)
    said[1, 0, 0] = 0.2  # wrong
    figure = mazes.draw(MAZE, walls=said, solution=False)
    black = [line for line in lines(figure) if line.get_linewidth() == 9]
    bars = [line for line in lines(figure) if line.get_linewidth() == 6]
    assert len(black) == 1 and black[0].get_xdata().tolist() == [0.5, 0.5] and len(bars) == 12
    assert sorted({line.get_color() for line in bars}) == [(1, 0.0, 0.0), (1, 0.2, 0.2), (1, 1.0, 1.0)]
    assert figure._repr_png_().startswith(b"\x89PNG")
    shown = np.ma.masked_array(np.arange(9.0).reshape(3, 3), np.arange(9).reshape(3, 3) == 8)
    figure = mazes.draw(
        MAZE, values=shown
    )  # a masked cell is hatched, and the colours end at the largest of the others
    assert [c.get_hatch() for c in figure.axes[0].collections] == ["////"]
    assert figure.axes[0].images[0].get_clim() == (0, 7)
    inside = mazes.draw(MAZE, ax=plain.axes[0])
    assert inside is plain


def test_what_figures_refuse() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(ShapeError, match=r"draw: values of shape \[2, 3\], the maze needs \[3, 3\]"):
        mazes.draw(MAZE, values=np.zeros((2, 3)))
    with pytest.raises(ShapeError, match=r"draw: walls of shape \[3, 3\], the maze needs \[2, 3, 3\]"):
        mazes.draw(MAZE, walls=np.zeros((3, 3)))


# ---- Other packages -------------------------------------------------------------------------------------------------


def their_maze(**more: Any) -> Any:
    return SimpleNamespace(connection_list=MAZE.connections, **more)


def test_mazes_of_other_packages() -> None:
    assert mazes.from_maze_dataset(their_maze(solution=MAZE.solution.astype(np.int8))) == MAZE
    assert mazes.from_maze_dataset(their_maze(start_pos=np.array([0, 0]), end_pos=np.array([1, 2]))) == MAZE
    batch = mazes.from_maze_dataset(SimpleNamespace(mazes=[their_maze(solution=MAZE.solution)] * 2))
    assert isinstance(batch, mazes.Mazes) and list(batch) == [MAZE, MAZE]


def test_what_else_comes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the maze has no start and end"):
        mazes.from_maze_dataset(their_maze())
    with pytest.raises(ShapeError, match=r"connection_list \[2, 3, 4\], expected \[2, grid, grid\]"):
        mazes.from_maze_dataset(SimpleNamespace(connection_list=np.zeros((2, 3, 4))))
    with pytest.raises(ConfigError, match="from_maze_dataset: int is no maze and no dataset"):
        mazes.from_maze_dataset(3)
    monkeypatch.setitem(sys.modules, "maze_dataset", None)
    with pytest.raises(ImportError, match="to_maze_dataset needs maze-dataset: pip install maze-dataset"):
        mazes.to_maze_dataset(MAZE)
