"""Mazes against `maze-dataset`, token by token: `pip install maze-dataset 'muutils<0.9'`, as `make parity` does."""

from __future__ import annotations

import collections
import random
import warnings
from typing import Any

import numpy as np
import pytest
from clew import mazes
from scipy import stats

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    maze_dataset = pytest.importorskip("maze_dataset", reason="maze-dataset is not installed: nothing to compare with")
    from maze_dataset.generation import GENERATORS_MAP
    from maze_dataset.tokenization import MazeTokenizer, TokenizationMode

pytestmark = pytest.mark.filterwarnings("ignore")
MODES = {"uniform": TokenizationMode.AOTP_UT_uniform, "rasterized": TokenizationMode.AOTP_UT_rasterized}
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "rdfs": ("gen_dfs", {}),
    "forkless": ("gen_dfs", {"do_forks": False}),
    "prdfs": ("gen_dfs_percolation", {"p": 0.1}),
    "wilson": ("gen_wilson", {}),
    "percolation": ("gen_percolation", {"p": 0.4}),
}


@pytest.mark.parametrize("order", MODES)
@pytest.mark.parametrize("grid", [2, 3, 5, 6, 7, 10, 20])
def test_vocabularies(order: str, grid: int) -> None:
    theirs = MazeTokenizer(tokenization_mode=MODES[order], max_grid_size=grid)
    assert list(theirs.token_arr) == mazes.Tokenizer(grid, order).vocab


def their_mazes(kind: str, grid: int, n: int) -> list[Any]:
    name, settings = GENERATORS[kind]
    np.random.seed(grid)
    random.seed(grid)
    out: list[Any] = []
    while len(out) < n:
        maze = GENERATORS_MAP[name](np.array([grid, grid]), **settings)
        path = maze.generate_random_path(endpoints_not_equal=True, except_on_no_valid_endpoint=False)
        if path is not None:
            out.append(maze_dataset.SolvedMaze.from_lattice_maze(maze, path))
    return out


@pytest.mark.parametrize("order", MODES)
@pytest.mark.parametrize("kind", mazes.KINDS)
def test_their_mazes_have_the_same_tokens_here(kind: str, order: str) -> None:
    for grid in (2, 3, 6, 7):
        theirs = MazeTokenizer(tokenization_mode=MODES[order], max_grid_size=7)
        tok = mazes.Tokenizer(7, order)
        for maze in their_mazes(kind, grid, 8):
            words = maze.as_tokens(theirs)
            ids = list(theirs.encode(words))
            assert tok.encode(words).tolist() == ids
            parsed = tok.parse(ids)  # keeps the order that they drew
            assert tok.encode(parsed).tolist() == ids and tok.decode(ids) == words
            imported = mazes.from_maze_dataset(maze)
            assert isinstance(imported, mazes.Maze)
            assert np.array_equal(imported.connections, maze.connection_list)
            assert np.array_equal(imported.solution, parsed.solution)
            assert imported.hash == mazes.Maze(grid, parsed.edges, parsed.origin, parsed.target).hash


@pytest.mark.parametrize("order", MODES)
@pytest.mark.parametrize("kind", mazes.KINDS)
def test_our_mazes_are_mazes_there(kind: str, order: str) -> None:
    tokenizer, tok = MazeTokenizer(tokenization_mode=MODES[order], max_grid_size=7), mazes.Tokenizer(7, order)
    for grid in (3, 6):
        ms = mazes.generate(8, grid, kind, seed=grid)
        for maze, theirs in zip(ms, mazes.to_maze_dataset(ms), strict=True):
            assert np.array_equal(theirs.connection_list, maze.connections)
            assert len(theirs.find_shortest_path(maze.origin, maze.target)) == len(maze.solution)
            assert mazes.from_maze_dataset(theirs) == maze
            again = tok.parse(list(tokenizer.encode(theirs.as_tokens(tokenizer))))
            assert {frozenset(map(tuple, e)) for e in again.edges.tolist()} == {
                frozenset(map(tuple, e)) for e in maze.edges.tolist()
            }
            assert np.array_equal(again.solution, maze.solution)
            if kind in ("rdfs", "wilson", "prdfs"):  # they read a grid off the largest cell as well
                back = maze_dataset.SolvedMaze.from_tokens(tok.decode(tok.encode(maze)), tokenizer)
                assert np.array_equal(back.connection_list, maze.connections)


@pytest.mark.parametrize("kind", mazes.KINDS)
def test_both_generators_draw_from_one_distribution(kind: str) -> None:
    """Edges, longest ways and solutions of 6 × 6 mazes: two-sample tests."""
    n = 400
    theirs = mazes.from_maze_dataset(their_mazes(kind, 6, n))
    assert isinstance(theirs, mazes.Mazes)
    ours = mazes.generate(4 * n, 6, kind, seed=1)
    for name, value in {
        "edges": lambda ms: [len(m.edges) for m in ms],
        "solution": lambda ms: ms.path_lengths,
        "dead ends": lambda ms: (ms.connections().sum(-1) == 1).sum((1, 2)),
        "longest way": lambda ms: ms.distances().max((1, 2)),
        "middle": lambda ms: ms.connections()[:, 2, 2].sum(-1),
    }.items():
        a, b = (collections.Counter(np.asarray(value(ms)).tolist()) for ms in (theirs, ours))
        # values that are rare go into one bin
        common = [v for v in sorted({*a, *b}) if a[v] + b[v] >= 25]
        table = np.array([[c[v] for v in common] + [sum(c.values()) - sum(c[v] for v in common)] for c in (a, b)])
        table = table[:, table.sum(0) > 0]
        if table.shape[1] > 1:
            assert stats.chi2_contingency(table).pvalue > 1e-4, name
