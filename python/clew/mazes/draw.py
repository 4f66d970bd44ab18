"""Drawing mazes: plain text, and matplotlib."""

from __future__ import annotations

from .maze import Maze


def text(maze: Maze) -> str:
    """A maze in characters: walls, O the origin, T the target, · the solution between them."""
    marks = {tuple(cell): "·" for cell in maze.solution.tolist()}
    marks[maze.origin], marks[maze.target] = "O", "T"
    down, right = maze.connections
    n = maze.grid
    lines = ["+" + "---+" * n]
    for r in range(n):
        cells = [f" {marks.get((r, c), ' ')} " + (" " if c < n - 1 and right[r, c] else "|") for c in range(n)]
        lines.append("|" + "".join(cells))
        lines.append("+" + "".join(("   " if r < n - 1 and down[r, c] else "---") + "+" for c in range(n)))
    return "\n".join(lines)
