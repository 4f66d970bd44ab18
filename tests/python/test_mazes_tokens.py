"""Maze tokens: vocabularies, layout, reading back, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from clew import ConfigError, TokenError, mazes


def test_vocabularies() -> None:
    uniform, rasterized = mazes.Tokenizer(7), mazes.Tokenizer(7, "rasterized")
    assert len(uniform.vocab) == len(rasterized.vocab) == 60
    assert (
        uniform.vocab[:11]
        == (
            "<ADJLIST_START> <ADJLIST_END> <TARGET_START> <TARGET_END> <ORIGIN_START> <ORIGIN_END> "
            "<PATH_START> <PATH_END> <--> ; <PADDING>"
        ).split()
    )
    assert uniform.vocab[11:20] == "(0,0) (0,1) (1,0) (1,1) (0,2) (2,0) (1,2) (2,1) (2,2)".split()
    assert uniform.vocab[20:27] == "(0,3) (3,0) (3,1) (2,3) (3,2) (1,3) (3,3)".split()
    assert rasterized.vocab[11:20] == [f"({i // 7},{i % 7})" for i in range(9)]
    for grid in range(2, 20):  # a smaller maze's vocabulary begins the larger one's
        larger = mazes.Tokenizer(grid + 1).vocab
        assert larger[: 11 + grid * grid] == mazes.Tokenizer(grid).vocab and len(set(larger)) == len(larger)


@pytest.mark.parametrize("order", ["uniform", "rasterized"])
def test_layout(order: str) -> None:
    tok = mazes.Tokenizer(4, order)
    maze = mazes.Maze(3, [[(0, 1), (0, 0)], [(0, 1), (1, 1)]], (0, 0), (1, 1))
    text = (
        "<ADJLIST_START> (0,1) <--> (0,0) ; (0,1) <--> (1,1) ; <ADJLIST_END> <ORIGIN_START> (0,0) <ORIGIN_END> "
        "<TARGET_START> (1,1) <TARGET_END> <PATH_START> (0,0) (0,1) (1,1) <PATH_END>"
    )
    ids = tok.encode(maze)
    assert tok.decode(ids) == text.split() and np.array_equal(tok.encode(text), ids)
    assert tok.decode(tok.encode(maze, path=False)) == text.split(" <PATH_START>")[0].split()
    assert np.array_equal(tok.encode(text.split()), ids) and ids.dtype == np.int32


@pytest.mark.parametrize("kind", mazes.KINDS)
@pytest.mark.parametrize("order", ["uniform", "rasterized"])
def test_parsing_gives_the_maze_back(kind: str, order: str) -> None:
    tok = mazes.Tokenizer(20, order)
    for grid in (2, 5, 9, 20):
        ms = mazes.generate(10, grid, kind, seed=grid)
        for maze, ids in zip(ms, tok.encode_batch(ms), strict=True):
            parsed = tok.parse(ids)
            assert np.array_equal(parsed.edges, maze.edges) and np.array_equal(parsed.solution, maze.solution)
            assert (parsed.origin, parsed.target) == (maze.origin, maze.target)
            assert parsed.grid == grid or kind in ("forkless", "percolation")
            assert np.array_equal(tok.encode(parsed), ids)
            padded = np.concatenate([ids, np.full(5, tok.ids["<PADDING>"])])
            assert np.array_equal(tok.encode(tok.parse(padded)), ids)
            assert tok.parse(tok.encode(maze, path=False)).origin == maze.origin
            assert tok.parse(" ".join(tok.decode(ids))) == parsed


def test_mazes_of_several_sizes_make_one_batch() -> None:
    tok = mazes.Tokenizer(7)
    ms = mazes.Mazes.join([mazes.generate(2, g, seed=g) for g in (3, 7, 5)])
    rows = tok.encode_batch(ms)
    assert [len(r) for r in rows] == [4 * len(m.edges) + 10 + len(m.solution) for m in ms]
    assert all(np.array_equal(row, tok.encode(m)) for row, m in zip(rows, ms, strict=True))
    assert tok.encode_batch([]) == []


def test_cells_of_ids() -> None:
    tok = mazes.Tokenizer(5)
    assert tok.cells_of([[11, 6], [tok.ids["(4,3)"], 99]]).tolist() == [[[0, 0], [-1, -1]], [[4, 3], [-1, -1]]]


GOOD = (
    "<ADJLIST_START> (0,0) <--> (0,1) ; (1,1) <--> (0,1) ; <ADJLIST_END> <ORIGIN_START> (0,0) <ORIGIN_END> "
    "<TARGET_START> (1,1) <TARGET_END> <PATH_START> (0,0) (0,1) (1,1) <PATH_END>"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<ADJLIST_START> ", "", "token 0, '(0,0)': expected <ADJLIST_START>"),
        ("(0,0) <--> (0,1)", "(0,0) (0,1)", "token 2, '(0,1)': expected <-->"),
        ("(0,0) <--> (0,1) ;", "(0,0) <--> ; ;", "token 3, ';': expected a cell behind <-->"),
        ("(0,0) <--> (0,1) ;", "(0,0) <--> (0,1)", "token 4, '(1,1)': expected ;"),
        ("(0,0) <--> (0,1)", "(0,0) <--> (1,1)", "token 3, '(1,1)': (0,0) and (1,1) are no neighbours"),
        ("(1,1) <--> (0,1)", "(0,1) <--> (0,0)", "token 7, '(0,0)': the edge (0,1) – (0,0) comes twice"),
        ("<ADJLIST_END>", "<PATH_END>", "token 9, '<PATH_END>': expected a cell or <ADJLIST_END>"),
        ("<ORIGIN_START> (0,0)", "<ORIGIN_START>", "token 11, '<ORIGIN_END>': expected a cell as the origin"),
        ("<TARGET_START> (1,1)", "<TARGET_START> ;", "token 14, ';': expected a cell as the target"),
        ("<PATH_START> (0,0)", "<PATH_START>", "token 17, '(0,1)': the path does not begin at the origin (0,0)"),
        ("(0,0) (0,1) (1,1) <PATH_END>", "(0,0) (1,1) <PATH_END>",
         "token 18, '(1,1)': the path steps from (0,0) to a cell that is not connected with it"),
        ("(0,1) (1,1) <PATH_END>", "(0,1) <PATH_END>",
         "token 19, '<PATH_END>': the path does not end at the target (1,1)"),
        (" <PATH_END>", "", "token 20, the end: expected a cell or <PATH_END>"),
        ("<PATH_END>", "<PATH_END> (0,0)", "token 21, '(0,0)': nothing follows <PATH_END>"),
    ],
)  # fmt: skip
def test_tokens_that_form_no_maze(old: str, new: str, message: str) -> None:
    tok = mazes.Tokenizer(3)
    assert old in GOOD and tok.parse(GOOD).grid == 2
    with pytest.raises(TokenError, match=re.escape(message)):
        tok.parse(tok.encode(GOOD.replace(old, new)))


def test_numbers_of_tokens_count_padding() -> None:
    """A refusal names the token by its number in what was given."""
    tok = mazes.Tokenizer(3)
    words = GOOD.replace("(0,0) <--> (0,1) ;", "(0,0) <--> ; ;").split()
    pad = ["<PADDING>"] * 3
    for given, number in ((pad + words, 6), (words[:2] + pad + words[2:], 6), (words + pad, 3)):
        assert given[number] == ";"
        with pytest.raises(TokenError, match=rf"token {number}, ';': expected a cell behind <-->"):
            tok.parse(tok.encode(given))
    short = pad + GOOD.split()[:-1]
    with pytest.raises(TokenError, match="token 23, the end: expected a cell or <PATH_END>"):
        tok.parse(tok.encode(short + pad))
    with pytest.raises(TokenError, match="token 0, the end: expected <ADJLIST_START>"):
        tok.parse(tok.encode(pad))
    assert tok.parse(tok.encode(pad + GOOD.split() + pad)) == tok.parse(GOOD)


def test_a_grid_that_the_tokens_do_not_tell() -> None:
    tok = mazes.Tokenizer(5)
    maze = mazes.Maze(4, [[(0, 0), (0, 1)], [(1, 1), (0, 1)]], (0, 0), (1, 1))
    ids = tok.encode(maze)
    assert tok.parse(ids).grid == 2 and tok.parse(ids) != maze
    assert tok.parse(ids, grid=4) == maze == tok.parse(" ".join(tok.decode(ids)), np.int64(4))
    assert tok.parse(tok.encode(maze, path=False), 4) == maze
    full = tok.encode(mazes.Maze(3, [[(0, 0), (0, 1)], [(0, 2), (0, 1)]], (0, 0), (0, 2)))
    with pytest.raises(TokenError, match=re.escape("token 5, '(0,2)': a cell outside a grid of 2 × 2")):
        tok.parse(full, grid=2)
    with pytest.raises(ConfigError, match="parse: grid = 6: the vocabulary has cells of 5 × 5"):
        tok.parse(ids, grid=6)
    with pytest.raises(ConfigError, match="grid = 1: a maze has 2 to 20 rows"):
        tok.parse(ids, grid=1)


def test_what_else_is_refused() -> None:
    tok = mazes.Tokenizer(3)
    with pytest.raises(TokenError, match="maze 1 has a grid of 4 × 4, larger than the vocabulary's 3 × 3"):
        tok.encode_batch([mazes.generate(1, 3)[0], mazes.generate(1, 4)[0]])
    with pytest.raises(TokenError, match="token 1, '<WALL>', is not in the vocabulary of 3 × 3 mazes"):
        tok.encode("<PATH_START> <WALL>")
    with pytest.raises(TokenError, match="token 1: id 20; there are ids 0 to 19"):
        tok.decode([3, 20])
    with pytest.raises(TokenError, match=r"decode takes ids \[n\], not float64 \[1\]"):
        tok.decode([0.5])
    with pytest.raises(TokenError, match="maze 0: its target cannot be reached"):
        tok.encode(mazes.Maze(3, [[(0, 0), (0, 1)]], (0, 0), (2, 2)))
    with pytest.raises(ConfigError, match='order = \'random\': "uniform" or "rasterized"'):
        mazes.Tokenizer(3, "random")
    with pytest.raises(ConfigError, match="grid = 30: a maze has 2 to 20 rows"):
        mazes.Tokenizer(30)
