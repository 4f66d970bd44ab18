"""Mazes: what each generator makes and how often, endpoints, splits, paths and distances against SciPy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, mazes
from scipy import stats
from scipy.sparse import csgraph

Edges = frozenset[frozenset[tuple[int, int]]]


def edges_of(maze: mazes.Maze) -> Edges:
    return frozenset(frozenset(map(tuple, edge)) for edge in maze.edges.tolist())


def graph_of(maze: mazes.Maze) -> Any:
    """Adjacency [cells, cells] from the listed edges alone."""
    out = np.zeros((maze.grid**2,) * 2)
    for (r, c), (s, d) in maze.edges.tolist():
        out[r * maze.grid + c, s * maze.grid + d] = out[s * maze.grid + d, r * maze.grid + c] = 1
    return out


def neighbours(rows: int, cell: tuple[int, int]) -> Iterator[tuple[int, int]]:
    r, c = cell
    for s, d in ((r - 1, c), (r, c - 1), (r, c + 1), (r + 1, c)):
        if 0 <= s < rows and 0 <= d < rows:
            yield s, d


def lattice(rows: int) -> Edges:
    cells = itertools.product(range(rows), range(rows))
    return frozenset(frozenset((a, b)) for a in cells for b in neighbours(rows, a))


def depth_first(rows: int, forks: bool) -> dict[Edges, Fraction]:
    """Probability of each maze, by following every choice."""
    out: dict[Edges, Fraction] = {}

    def go(stack: list[tuple[int, int]], seen: frozenset[Any], edges: Edges, p: Fraction) -> None:
        while stack:
            cell = stack[-1]
            ways = [b for b in neighbours(rows, cell) if b not in seen]
            if ways:
                kept = stack if forks else []
                for b in ways:
                    go([*kept, b], seen | {b}, edges | {frozenset((cell, b))}, p / len(ways))
                return
            stack = stack[:-1]
        out[edges] = out.get(edges, Fraction(0)) + p

    for start in itertools.product(range(rows), range(rows)):
        go([start], frozenset([start]), frozenset(), Fraction(1, rows * rows))
    return out


def spanning_trees(rows: int) -> list[Edges]:
    every = sorted(lattice(rows), key=sorted)
    found = []
    for chosen in itertools.combinations(every, rows * rows - 1):
        graph = np.zeros((rows * rows,) * 2)
        for a, b in map(sorted, chosen):
            graph[a[0] * rows + a[1], b[0] * rows + b[1]] = 1
        if csgraph.connected_components(graph, directed=False)[0] == 1:
            found.append(frozenset(chosen))
    return found


def p_value(counts: Counter[Any], expected: dict[Any, Any], n: int) -> float:
    assert set(counts) <= set(expected)
    return float(stats.chisquare([counts[k] for k in expected], [float(p) * n for p in expected.values()]).pvalue)


# ---- What generators make -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [2, 3, 6, 7, 20])
@pytest.mark.parametrize("kind", mazes.KINDS)
def test_mazes_are_what_their_kind_says(kind: str, grid: int) -> None:
    ms = mazes.generate(20, grid, kind, seed=grid)
    for maze in ms:
        assert edges_of(maze) <= lattice(grid) and len(edges_of(maze)) == len(maze.edges)
        graph = graph_of(maze)
        parts, part = csgraph.connected_components(graph, directed=False)
        degrees = graph.sum(0)
        if kind in ("rdfs", "wilson"):
            assert parts == 1 and len(maze.edges) == grid * grid - 1
        if kind == "prdfs":
            assert parts == 1 and len(maze.edges) >= grid * grid - 1
        if kind == "forkless":  # one path: as many cells as edges and one
            assert degrees.max() <= 2 and (degrees > 0).sum() == len(maze.edges) + 1
            assert parts == grid * grid - len(maze.edges)
        o, t = (r * grid + c for r, c in (maze.origin, maze.target))
        assert o != t and part[o] == part[t]
        solution = maze.solution
        assert tuple(solution[0]) == maze.origin and tuple(solution[-1]) == maze.target
        assert all(maze.connected(a, b) for a, b in itertools.pairwise(solution))
        assert len(solution) - 1 == csgraph.shortest_path(graph, unweighted=True, indices=o)[t]


def test_wilson_is_uniform_over_spanning_trees() -> None:
    trees = spanning_trees(3)
    assert len(trees) == 192
    n = 20_000
    counts = Counter(map(edges_of, mazes.generate(n, 3, "wilson", seed=1)))
    assert p_value(counts, dict.fromkeys(trees, Fraction(1, 192)), n) > 1e-3
    biased = Counter(map(edges_of, mazes.generate(n, 3, "rdfs", seed=1)))  # the test can tell
    assert p_value(biased, dict.fromkeys(trees, Fraction(1, 192)), n) < 1e-10


@pytest.mark.parametrize("kind", ["rdfs", "forkless"])
def test_depth_first_mazes_come_as_often_as_their_choices_say(kind: str) -> None:
    expected = depth_first(3, forks=kind == "rdfs")
    assert sum(expected.values()) == 1
    n = 20_000
    counts = Counter(map(edges_of, mazes.generate(n, 3, kind, seed=5)))
    assert p_value(counts, expected, n) > 1e-3


def test_percolation_opens_each_edge_with_probability_p() -> None:
    n, p = 20_000, 0.35
    # endpoints anywhere, also the same: no maze is drawn again
    ms = mazes.generate(n, 3, "percolation", seed=2, p=p, distinct=False)
    counts: Counter[Any] = Counter()
    for maze in ms:
        counts.update(edges_of(maze))
    assert set(counts) == set(lattice(3))
    z = [(k - n * p) / np.sqrt(n * p * (1 - p)) for k in counts.values()]
    assert np.abs(z).max() < 4
    sizes = np.array([len(m.edges) for m in ms])
    assert abs(sizes.var() - 12 * p * (1 - p)) < 0.1


def test_prdfs_adds_each_other_edge_with_probability_p() -> None:
    n = 4000
    more = [len(m.edges) - 35 for m in mazes.generate(n, 6, "prdfs", seed=3, p=0.1)]
    assert abs(np.mean(more) - 2.5) < 4 * np.sqrt(25 * 0.09 / n)
    assert abs(np.var(more) - 25 * 0.09) < 0.25
    assert {len(m.edges) for m in mazes.generate(5, 6, "prdfs", p=1.0)} == {60}


def test_edges_come_in_any_order_and_direction() -> None:
    ms = mazes.generate(6000, 2, "prdfs", seed=0, p=1.0)  # the four edges of a square
    first = Counter(tuple(map(tuple, m.edges[0].tolist())) for m in ms)
    assert len(first) == 8 and stats.chisquare(list(first.values())).pvalue > 1e-3
    orders = Counter(tuple(tuple(sorted(map(tuple, e))) for e in m.edges.tolist()) for m in ms)
    assert len(orders) == 24 and stats.chisquare(list(orders.values())).pvalue > 1e-3


# ---- Endpoints ------------------------------------------------------------------------------------------------------


def test_endpoints_are_any_two_cells() -> None:
    n = 20_000
    pairs = Counter((m.origin, m.target) for m in mazes.generate(n, 3, seed=4))
    assert len(pairs) == 72 and stats.chisquare(list(pairs.values())).pvalue > 1e-3
    either = Counter((m.origin, m.target) for m in mazes.generate(n, 3, seed=4, distinct=False))
    assert len(either) == 81 and stats.chisquare(list(either.values())).pvalue > 1e-3


def test_endpoints_of_percolation_lie_in_the_component_of_a_random_cell() -> None:
    for maze in mazes.generate(200, 5, "percolation", seed=1, distinct=False):
        assert len(maze.solution) >= 1


def test_dead_ends_and_allowed_cells() -> None:
    for maze in mazes.generate(100, 5, seed=1, start="dead end", target="dead end"):
        degrees = graph_of(maze).sum(0)
        assert all(degrees[r * 5 + c] == 1 for r, c in (maze.origin, maze.target))
    ms = mazes.generate(200, 5, seed=1, start=[(0, 0), (2, 1)], target=(4, 4))
    assert {m.origin for m in ms} == {(0, 0), (2, 1)} and {m.target for m in ms} == {(4, 4)}
    # a forkless maze whose ends are dead ends is crossed whole
    assert all(len(m.solution) == len(m.edges) + 1
               for m in mazes.generate(50, 5, "forkless", start="dead end", target="dead end"))  # fmt: skip


# ---- Seeds, threads, splits -----------------------------------------------------------------------------------------


def test_a_maze_depends_on_its_seed_and_number_alone() -> None:
    threads = clew.get_num_threads()
    try:
        batches = []
        for n in (1, 2, 3):
            clew.set_num_threads(n)
            batches.append(mazes.generate(500, 6, "prdfs", seed=9).batch)
    finally:
        clew.set_num_threads(threads)
    for other in batches[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(batches[0], other, strict=True))
    part = mazes.generate(100, 6, "prdfs", seed=9, first=300).batch
    assert all(np.array_equal(a[300:400], b) for a, b in zip(batches[0], part, strict=True))
    assert len(set(mazes.generate(500, 6, seed=10).hashes) & set(mazes.generate(500, 6, seed=11).hashes)) == 0


def test_splits_have_no_walls_in_common() -> None:
    train = mazes.generate(3000, 4, seed=0, split="train", test_share=0.3)
    test = mazes.generate(3000, 4, seed=1, split="test", test_share=0.3)
    assert not set(train.hashes) & set(test.hashes)
    one, other = mazes.split(mazes.generate(3000, 4, seed=2), test_share=0.3)
    assert abs(len(other) / 3000 - 0.3) < 0.05
    assert not set(one.hashes) & set(test.hashes) and not set(other.hashes) & set(train.hashes)
    assert not set(map(edges_of, train)) & set(map(edges_of, test))


def test_the_hash_knows_walls_and_nothing_else() -> None:
    maze = mazes.generate(1, 6, seed=3)[0]
    turned = mazes.Maze(6, maze.edges[::-1, ::-1], maze.target, maze.origin)
    assert maze.hash == turned.hash and maze != turned
    assert mazes.Maze(6, maze.edges[1:], *maze.edges[1]).hash != maze.hash
    assert mazes.Maze(7, maze.edges, maze.origin, maze.target).hash != maze.hash
    trees = {edges_of(m): m.hash for m in mazes.generate(4000, 3, "wilson")}
    assert len(trees) == len(set(trees.values())) == 192
    assert mazes.generate(7, 6, seed=3).hashes.tolist() == [m.hash for m in mazes.generate(7, 6, seed=3)]


def test_unique() -> None:
    ms = mazes.generate(2000, 2, "wilson", seed=0)
    assert len(mazes.unique(ms)) == 48 and len(mazes.unique(ms, ends=False)) == 4
    assert mazes.unique(ms)[0] == ms[0]


# ---- Paths and distances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", mazes.KINDS)
def test_distances(kind: str) -> None:
    ms = mazes.generate(20, 5, kind, seed=8)
    for maze, distances in zip(ms, ms.distances(), strict=True):
        theirs = csgraph.shortest_path(graph_of(maze), unweighted=True)
        assert np.array_equal(np.where(np.isinf(theirs), -1, theirs), distances)
        assert np.array_equal(maze.distances(), distances)
        assert np.array_equal(maze.adjacency, graph_of(maze) > 0)


def test_of_several_shortest_paths_the_first_way_wins() -> None:
    square = [((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 0)), ((1, 0), (0, 0))]
    assert mazes.Maze(2, square, (0, 0), (1, 1)).solution.tolist() == [[0, 0], [0, 1], [1, 1]]  # right before down
    assert mazes.Maze(2, square, (1, 1), (0, 0)).solution.tolist() == [[1, 1], [0, 1], [0, 0]]  # up before left


def test_connections_agree_with_edges() -> None:
    ms = mazes.generate(10, 5, "prdfs", seed=1)
    ways = ((-1, 0), (0, -1), (0, 1), (1, 0))
    for maze, connections in zip(ms, ms.connections(), strict=True):
        for r, c, way in itertools.product(range(5), range(5), range(4)):
            there = (r + ways[way][0], c + ways[way][1])
            joined = frozenset(((r, c), there)) in edges_of(maze)
            assert connections[r, c, way] == joined == maze.connected((r, c), there)


# ---- Batches and single mazes ---------------------------------------------------------------------------------------


def test_batches_are_sequences() -> None:
    ms = mazes.generate(6, 4, seed=1)
    assert ms[-1] == ms[5] and [m.hash for m in ms[1:3]] == [ms[1].hash, ms[2].hash]
    assert ms[[4, 0]][0] == ms[4] and len(ms[np.arange(6) > 3]) == 2
    mixed = mazes.Mazes.join([ms, mazes.generate(2, 7, "prdfs")])
    assert mixed.grids.tolist() == [4] * 6 + [7] * 2 and mixed[3] == ms[3]
    again = mazes.Mazes.of(list(mixed))
    assert list(again) == list(mixed) and repr(mixed) == "8 mazes of 4 × 4, 7 × 7"
    with pytest.raises(IndexError, match="maze 6 of 6"):
        ms[6]
    with pytest.raises(ValueError, match="read-only"):
        ms[0].edges[0] = 0
    with pytest.raises(ShapeError, match="maze 6 is 7 × 7, maze 0 4 × 4"):
        mixed.distances()


def test_batches_with_the_same_mazes_are_equal() -> None:
    ms = mazes.generate(5, 4, "prdfs", seed=1)
    same = [mazes.generate(5, 4, "prdfs", seed=1), mazes.Mazes.of(list(ms)), mazes.generate(9, 4, "prdfs", seed=1)[:5]]
    turned = [mazes.Maze(4, m.edges[::-1, ::-1], m.origin, m.target, m.solution) for m in ms]
    for other in (*same, mazes.Mazes.of(turned)):
        assert ms == other and hash(ms) == hash(other) and not ms != other
    ends = mazes.Mazes.of([m.with_ends(m.target, m.origin) for m in ms])
    walls = mazes.Mazes.of([mazes.Maze(4, [*m.edges, extra], m.origin, m.target, m.solution)
                            for m, extra in zip(ms, map(_closed, ms), strict=True)])  # fmt: skip
    for other in (ms[:4], ms[[1, 0, 2, 3, 4]], ends, walls, list(ms), mazes.generate(5, 5, "prdfs", seed=1)):
        assert ms != other
    ring = [((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 0)), ((1, 0), (0, 0))]
    ways = [[(0, 0), (0, 1), (1, 1)], [(0, 0), (1, 0), (1, 1)]]
    one, other = (mazes.Mazes.of(mazes.Maze(2, ring, (0, 0), (1, 1), way)) for way in ways)
    assert one != other and mazes.generate(0) == mazes.generate(0, seed=1) == ms[:0] and len({ms, *same}) == 1


def _closed(maze: mazes.Maze) -> Any:
    """A wall of it."""
    return next((a, b) for a, b in mazes.inner_walls(maze.grid) if not maze.connected(a, b))


def test_every_second_maze_of_a_batch() -> None:
    ms = mazes.generate(7, 4, seed=1)
    for part, want in ((ms[::2], ms[[0, 2, 4, 6]]), (ms[::-1], ms[[6, 5, 4, 3, 2, 1, 0]])):
        assert part == want and part.hashes.tolist() == want.hashes.tolist()
        assert (part.distances() == want.distances()).all()


def test_a_maze_without_a_way() -> None:
    maze = mazes.Maze(3, [[(0, 0), (0, 1)]], (0, 0), (2, 2))
    assert maze.solution.shape == (0, 2) and "no steps" in repr(maze)
    assert maze.distances()[0, 8] == -1 and not maze.connected((0, 0), (-1, 0)) and not maze.connected((0, 0), (0, 0))


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": 1}, "grid = 1: a maze has 2 to 20 rows"),
        ({"grid": 21}, "grid = 21: a maze has 2 to 20 rows"),
        ({"grid": 4.0}, "grid = 4.0: a maze has 2 to 20 rows"),
        ({"n": -1}, "n = -1, must be a whole number, at least 0"),
        ({"first": -1}, "first = -1, must be a whole number, at least 0"),
        ({"seed": -1}, "seed = -1, must be a whole number"),
        ({"seed": 2**64}, "seed = 18446744073709551616: below 2⁶⁴"),
        ({"kind": "prim"}, "kind = 'prim'; known: rdfs, forkless, prdfs, wilson, percolation"),
        ({"p": 0.5}, "mazes of kind 'rdfs' have no probability"),
        ({"kind": "prdfs", "p": 1.5}, "p = 1.5: a probability lies in 0 to 1"),
        ({"start": "corner"}, 'start = \'corner\': "anywhere", "dead end" or cells'),
        ({"target": [(0, 6)]}, r"target: \(0,6\) lies outside a grid of 6 × 6"),
        ({"target": [0.5, 1]}, r"target: .* not float64 \[1, 2\]"),
        ({"start": (1, 1), "target": [(1, 1)]}, "allow one cell, the same: with distinct=True there is no maze"),
        ({"split": "valid"}, 'split = \'valid\': None, "train" or "test"'),
        ({"split": "test", "test_share": 0}, "test_share = 0 leaves the split 'test' empty"),
        ({"split": "train", "test_share": 1.0}, "test_share = 1 leaves the split 'train' empty"),
        ({"test_share": 1.5}, "test_share = 1.5: a share lies in 0 to 1"),
        (
            {"kind": "percolation", "p": 0.0},
            "percolation mazes of 6 × 6, p = 0: maze 0: none of 10000 has endpoints as asked for",
        ),
        (
            {"grid": 2, "split": "test", "test_share": 1e-6},
            "rdfs mazes of 2 × 2, split 'test' of test_share 1e-06: maze 0: none of 10000",
        ),
        ({"kind": "prdfs", "p": 1.0, "start": "dead end"}, "none of 10000 has endpoints as asked for"),
    ],
)
def test_generate_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mazes.generate(**{"n": 2, **settings})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, [[(0, 0), (1, 1)]], (0, 0), (1, 1)), ConfigError, r"edge 0 joins \(0,0\) and \(1,1\), which are no neigh"),
        ((3, [[(0, 0), (0, 3)]], (0, 0), (0, 1)), ConfigError, r"edges: \(0,3\) lies outside a grid of 3 × 3"),
        ((3, [[(0, 0), (0, 1)], [(0, 1), (0, 0)]], (0, 0), (0, 1)), ConfigError, r"\(0,0\) – \(0,1\) comes twice"),
        ((3, [[(0, 0), (0, 1)]], (0, 0), (3, 1)), ConfigError, r"target: \(3,1\) lies outside"),
        ((3, [[(0, 0), (0, 1)]], (0.5, 0), (0, 1)), ShapeError, r"origin must be whole numbers \(row, column\)"),
        ((3, [(0, 0), (0, 1), (0, 2)], (0, 0), (0, 1)), ShapeError, r"edges must be pairs of cells \[m, 2, 2\]"),
        ((3, [[(0, 0), (0, 1)]], (0, 0), (0, 1), [(0, 1), (0, 0)]), ConfigError, r"a solution from \(0,1\) to \(0,0\)"),
        (
            (3, [[(0, 0), (0, 1)]], (0, 0), (1, 0), [(0, 0), (1, 0)]),
            ConfigError,
            r"steps from \(0,0\) to \(1,0\), which are not connected",
        ),
    ],
)
def test_maze_refuses(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mazes.Maze(*arguments)


def test_empty_splits_and_other_things_are_refused() -> None:
    with pytest.raises(ConfigError, match="split: of 5 mazes none is test with test_share = 0"):
        mazes.split(mazes.generate(5), test_share=0.0)
    with pytest.raises(ConfigError, match="split: of 5 mazes none is train with test_share = 1"):
        mazes.split(mazes.generate(5), test_share=1)
    with pytest.raises(ConfigError, match="a sequence of mazes: number 1 is 3"):
        mazes.Mazes.of([mazes.generate(1)[0], 3])  # type: ignore[list-item]


def test_the_core_checks_batches() -> None:
    good = mazes.generate(2, 4).batch
    core: Any = clew._core
    with pytest.raises(TypeError, match="a batch of mazes is a tuple of six arrays"):
        core.maze_hashes(good[:5])
    with pytest.raises(TypeError, match="n_edges must be a contiguous array of int32 with 1 axes"):
        core.maze_hashes((*good[:2], good[2].astype(np.int64), *good[3:]))
    with pytest.raises(ValueError, match="arrays do not fit each other"):
        core.maze_hashes((good[0][:1], *good[1:]))
    with pytest.raises(ShapeError, match="maze 0: 99 edges and"):
        core.maze_hashes((*good[:2], good[2] * 0 + 99, *good[3:]))
    with pytest.raises(ConfigError, match=r"maze 0: a cell of an edge, \(\d,\d\) lies outside a grid of 2 × 2"):
        core.maze_hashes((good[0] * 0 + 2, *good[1:]))
