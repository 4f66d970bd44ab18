"""What mazes refuse, and that the message names what came. No case does any work before it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import clew
import numpy as np
import pytest
from clew import mazes
from clew.errors import ConfigError, ShapeError, SiteError, TokenError
from clew.mazes.draw import as_walked

MODEL = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=4, n_ctx=128), seed=0)
TEST, TRAIN = (mazes.generate(n, 4, split=part) for n, part in ((6, "test"), (12, "train")))
MAZE = TEST[0]
TOK = mazes.Tokenizer(7)
PROBES = mazes.wall_probes(MODEL, TRAIN, TEST, methods=["ridge"])
STAGE = mazes.Stage(3, {3: 1.0}, {"rdfs": 1.0})
CURRICULUM = mazes.Curriculum([STAGE], TOK)
HEADS = mazes.adjacency_heads(MODEL, TEST, draws=2)
TABLE = mazes.table(MODEL, 1, 3)
X = np.ones((1, 32))
CLOSED = np.zeros((2, 2, 2), bool)
CLOSED4 = np.zeros((2, 4, 4))
FIVE = mazes.generate(6, 5, split="test")
EMPTY = mazes.generate(0, 4)


def theirs(walls: Any = CLOSED, **more: Any) -> Any:
    return mazes.from_maze_dataset(SimpleNamespace(connection_list=walls, **more))


any_: Any = None
WORDS: Any = np.array(["a", "b"])
wrong: Any = "z"
CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # ---- mazes and batches
    (lambda: mazes.Maze(2, [], [], (0, 0)), ShapeError, "Maze: origin must be one cell (row, column), not [0]"),
    (
        lambda: mazes.Maze(2, [], (0, 0), [(0, 0), (1, 1)]),
        ShapeError,
        "target must be one cell (row, column), not [2, 2]",
    ),
    (lambda: MAZE.connected(3, (0, 0)), ShapeError, "a cell is two whole numbers (row, column), not int64 []"),
    (
        lambda: MAZE.connected((0.5, 0), (0, 0)),
        ShapeError,
        "a cell is two whole numbers (row, column), not float64 [2]",
    ),
    (lambda: mazes.Mazes(TEST.batch[:5]), ConfigError, "mazes.generate makes one"),  # type: ignore[arg-type]
    (lambda: mazes.Mazes(any_), ConfigError, "Mazes: a batch is six arrays"),
    (lambda: mazes.Mazes.join([]), ConfigError, "Mazes.join: a list of at least one Mazes"),
    (lambda: mazes.Mazes.join([TEST, wrong]), ConfigError, "Mazes.join: a list of at least one Mazes"),
    (lambda: TEST[wrong], IndexError, "'z' is no number, slice, list of numbers or mask"),
    (lambda: TEST[True], IndexError, "True is no number, slice, list of numbers or mask"),
    (
        lambda: mazes.Mazes((TEST.batch[0].astype(int), *TEST.batch[1:])),  # type: ignore[arg-type]
        ShapeError,
        "Mazes: array 0 is int64 [6], expected uint8 [6]",
    ),
    (
        lambda: mazes.Mazes((*TEST.batch[:5], TEST.batch[5] + np.int32(99))),  # type: ignore[arg-type]
        ConfigError,
        "cells of a path in an array of",
    ),
    (lambda: mazes.Rate(1, 2, wrong), ConfigError, "Rate: z = 'z' is no number"),
    (lambda: mazes.Rate(1, 2, np.nan), ConfigError, "Rate: z = nan: must be a finite number above 0"),
    (
        lambda: mazes.draw(MAZE, walls=np.ma.masked_less(np.eye(4)[None].repeat(2, 0), 0.5)),
        ConfigError,
        "walls: masked",
    ),
    (lambda: TEST[[0.5]], IndexError, "[0.5] is no number, slice, list of numbers or mask"),
    # ---- generating
    (lambda: mazes.generate(wrong), ConfigError, "n = 'z', must be a whole number"),
    (lambda: mazes.generate(1, 4, seed=wrong), ConfigError, "seed = 'z'"),
    (
        lambda: mazes.generate(1, first=2**63),
        ConfigError,
        "first = 9223372036854775808, must be a whole number, at most 9",
    ),
    (lambda: mazes.generate(1, distinct=wrong), ConfigError, "distinct = 'z': True or False"),
    (lambda: mazes.generate(10**12, 4), MemoryError, "1,000,000,000,000 mazes of 4 × 4 take 105,000,000,000,000 bytes"),
    (lambda: mazes.generate(10**30, 4), MemoryError, "bytes; this machine has"),
    # ---- drawing
    (lambda: mazes.text(any_), ConfigError, "text: a Maze, not NoneType"),
    (lambda: mazes.text(TEST), ConfigError, "text: a Maze, not Mazes: take one of them, such as mazes[0]"),  # type: ignore[arg-type]
    (lambda: mazes.text(MAZE, 3), ShapeError, "text: path: cells [k, 2] as whole numbers (row, column), not int64 []"),
    (lambda: mazes.text(MAZE, [[1, 2], [3]]), ShapeError, "text: path cannot be read as an array"),
    (lambda: mazes.text(MAZE, [[0, 0], [20, 9]]), ConfigError, "cell 1, (20,9), lies outside a grid of 4 × 4"),
    (lambda: mazes.draw(wrong), ConfigError, "draw: a Maze, not str"),
    (lambda: mazes.draw(MAZE, [[-1, 2]]), ConfigError, "draw: path: cell 0, (-1,2), lies outside a grid of 4 × 4"),
    (lambda: mazes.draw(MAZE, [[np.nan, 0]]), ShapeError, "not float64 [1, 2]"),
    (lambda: mazes.draw(MAZE, values=np.full((4, 4), np.inf)), ConfigError, "draw: values hold NaN or infinity"),
    (lambda: mazes.draw(MAZE, values=wrong), ShapeError, "draw: values must be real numbers"),
    (lambda: mazes.draw(MAZE, walls=np.full((2, 4, 4), np.nan)), ConfigError, "draw: walls hold NaN or infinity"),
    (lambda: mazes.draw(MAZE, walls=np.full((2, 4, 4), 7.0)), ConfigError, "a probability lies in 0 to 1, not 7 to 7"),
    (lambda: mazes.draw(MAZE, cell_labels=[1]), ConfigError, "cell_labels: a mapping of cells to words, not list"),  # type: ignore[arg-type]
    (lambda: mazes.draw(MAZE, cell_labels={0: "x"}), ShapeError, "a cell is two whole numbers"),  # type: ignore[dict-item]
    (lambda: mazes.draw(MAZE, cell_labels={(9, 9): "x"}), ConfigError, "(9,9) lies outside a grid of 4 × 4"),
    (lambda: mazes.draw(MAZE, cell_labels={(0, 1): 3}), ConfigError, "the label of (0,1) is 3, no text"),  # type: ignore[dict-item]
    (lambda: mazes.draw(MAZE, ax=wrong), ConfigError, "draw: ax: matplotlib's axes, not str"),
    (lambda: mazes.draw(MAZE, title=3), ConfigError, "draw: title = 3: a text"),  # type: ignore[arg-type]
    # ---- other packages' mazes
    (lambda: theirs(solution="zz"), ShapeError, "from_maze_dataset: solution: cells [k, 2]"),
    (lambda: theirs(start_pos="a", end_pos="b"), ShapeError, "origin must be whole numbers"),
    (lambda: theirs([[1, 2], [3]]), ShapeError, "connection_list cannot be read as an array"),
    (lambda: theirs(np.full((2, 2, 2), np.nan)), ShapeError, "must hold True and False, not other float64"),
    (lambda: mazes.to_maze_dataset([3]), ConfigError, "a sequence of mazes: number 0 is 3"),  # type: ignore[list-item]
    (lambda: mazes.to_maze_dataset(mazes.Maze(2, [], (0, 0), (1, 1))), ConfigError, "a SolvedMaze has a path"),
    # ---- training
    (lambda: mazes.examples(TEST, any_), ConfigError, "tokenizer: a Tokenizer of mazes, not NoneType"),
    (lambda: mazes.examples([], TOK), ConfigError, "examples: no mazes: an empty split?"),
    (
        lambda: mazes.Stage(0, {3: 1.0}, {"rdfs": 1.0}),
        ConfigError,
        "Stage: until = 0, must be a whole number, at least 1",
    ),
    (lambda: mazes.Stage(3, any_, {"rdfs": 1.0}), ConfigError, "Stage: grids = None: a mapping to shares"),
    (lambda: mazes.Stage(3, {3: wrong}, {"rdfs": 1.0}), ConfigError, "grids = {3: 'z'}"),
    (lambda: mazes.Stage(3, {3: 1.0}, {"rdfs": np.inf}), ConfigError, "kinds = {'rdfs': inf}"),
    (lambda: mazes.Stage(3, {3: 1.0}, {"rdfs": 1.0}, wrong), ConfigError, "Stage: batch = 'z'"),
    (
        lambda: mazes.Stage(3, {3: 1.0}, {"rdfs": 1.0}, 10**12),
        ConfigError,
        "batch = 1000000000000, must be a whole number, at most 2,147,483,647",
    ),
    (lambda: mazes.Curriculum(any_, TOK), ConfigError, "Curriculum: stages = None: a list of Stage"),
    (lambda: mazes.Curriculum([wrong], TOK), ConfigError, "Curriculum: stages = ['z']: a list of Stage"),
    (lambda: mazes.Curriculum([STAGE], any_), ConfigError, "tokenizer: a Tokenizer of mazes, not NoneType"),
    (lambda: mazes.Curriculum([STAGE], TOK, seed=-1), ConfigError, "seed = -1"),
    (lambda: CURRICULUM.batch(-1, 2), ConfigError, "Curriculum: step = -1"),
    (lambda: CURRICULUM.batch(0, 0), ConfigError, "Curriculum: size = 0, must be a whole number, at least 1"),
    (lambda: CURRICULUM.batch(0, 10**12), ConfigError, "Curriculum: size = 1000000000000"),
    # ---- walking and judging
    (lambda: mazes.judge(any_, TEST), ConfigError, "judge: paths: a list of paths, not NoneType"),
    (lambda: mazes.judge(["a"] * 6, TEST), ShapeError, "judge: path 0: cells [k, 2]"),  # type: ignore[list-item]
    (lambda: mazes.judge([np.ones((2, 2))] * 6, TEST), ShapeError, "judge: path 0: cells [k, 2] as whole numbers"),
    (lambda: mazes.Rate(5, 3), ConfigError, "Rate: successes = 5, must be a whole number, at most 3"),
    (
        lambda: mazes.table(MODEL, 1, 3, kinds="rdfs"),
        ConfigError,
        "table: kinds = 'rdfs': a list of 'rdfs', 'forkless'",
    ),
    (lambda: mazes.table(MODEL, 1, 3, kinds=[]), ConfigError, "table: kinds = []"),
    (lambda: TABLE["z"], SiteError, "kind 'z': there are forkless, rdfs, prdfs"),
    (lambda: TABLE["rdfs"]["z"], SiteError, "row 'z': there are exact, valid"),
    (lambda: TABLE.below("z"), ConfigError, "model = 'z': one of hallway, jirpy"),
    (lambda: mazes.solve(MODEL, TEST, edits=[1]), ConfigError, "edits hold 1: make edits with clew.edit.zero"),  # type: ignore[list-item]
    (lambda: MODEL.to_tokens("abc"), TokenError, "this model reads mazes, not text: clew.mazes.tokenizer_of(model)"),
    # ---- probes
    (lambda: mazes.inner_walls(21), ConfigError, "grid = 21: a maze has 2 to 20 rows"),
    (lambda: mazes.walls_of(mazes.Mazes.join([TEST, FIVE])), ShapeError, "walls_of: mazes of 4 × 4 and 5 × 5"),
    (lambda: mazes.walls_of(TEST[:0]), ConfigError, "walls_of: no mazes"),
    (lambda: mazes.spanning_trees(np.full((1, 24), np.nan), 4), ConfigError, "spanning_trees: openness holds NaN"),
    (lambda: mazes.spanning_trees([[1, 2], [3]], 4), ShapeError, "spanning_trees: openness cannot be read as an array"),
    (lambda: mazes.untrained(any_), ConfigError, "model: a Model, such as clew.load gives, not NoneType"),
    (lambda: mazes.untrained(MODEL, -1), ConfigError, "seed = -1"),
    (
        lambda: mazes.wall_probes(MODEL, TRAIN, TEST, methods="ridge"),
        ConfigError,
        "methods = 'ridge': a list of 'ridge'",
    ),
    (
        lambda: mazes.wall_probes(MODEL, TRAIN, TEST, methods=["ridge"] * 2),
        ConfigError,
        "['ridge', 'ridge']: each once",
    ),
    (lambda: mazes.wall_probes(MODEL, TRAIN, TEST, seed=wrong), ConfigError, "seed = 'z'"),
    (
        lambda: mazes.wall_probes("bag of tokens", TRAIN, TEST, tokenizer=wrong),
        ConfigError,
        "a Tokenizer of mazes, not str",
    ),
    (lambda: mazes.route_probes(MODEL, TRAIN, TEST, seed=wrong), ConfigError, "seed = 'z'"),
    (lambda: PROBES["logistic"], ConfigError, "method = 'logistic': there are ridge"),
    (lambda: PROBES.paper_accuracy([]), ConfigError, "method = []: there are ridge"),  # type: ignore[arg-type]
    (lambda: PROBES.openness(X * np.nan, 0), ConfigError, "openness: streams hold NaN or infinity"),
    (lambda: PROBES.openness(X[:, :3], 0), ShapeError, "activations [1, 3], the last axis must be 32"),
    (lambda: PROBES.openness(X, 9), ConfigError, "layer 9: there are 0 to 1"),
    (lambda: PROBES.direction(99, 0), ConfigError, "wall 99: there are 0 to 23"),
    (lambda: PROBES.wall(3, (0, 0)), ShapeError, "a cell is two whole numbers"),
    # ---- heads, embeddings and lenses
    (
        lambda: mazes.adjacency_heads(MODEL, TEST, draws=0),
        ConfigError,
        "draws = 0, must be a whole number, at least 1",
    ),
    (lambda: mazes.adjacency_heads(MODEL, TEST, draws=10**12), ConfigError, "draws = 1000000000000"),
    (lambda: HEADS.ranked(wrong), ConfigError, "least_mass = 'z': a share lies in 0 to 1"),
    (lambda: HEADS.table(wrong), ConfigError, "table: k = 'z'"),
    (lambda: mazes.attention_over(MODEL, TEST, (0, 0)), ConfigError, "attention_over: a Maze, not Mazes"),  # type: ignore[arg-type]
    (lambda: mazes.attention_over(MODEL, MAZE, (0, 0, 0)), ConfigError, "(0, 0, 0) is no pair (layer, head)"),  # type: ignore[arg-type]
    (lambda: mazes.attention_over(MODEL, MAZE, (0, 0), 1.5), ConfigError, "step 1.5: the path has"),  # type: ignore[arg-type]
    (lambda: mazes.embedding_distances(MODEL, draws=wrong), ConfigError, "embedding_distances: draws = 'z'"),
    (lambda: mazes.path_lens(MODEL, any_), ConfigError, "steps: places on paths, as path_steps gives, not NoneType"),
    (lambda: mazes.lens_masses(MODEL, TRAIN, TEST[:1]), ConfigError, "lens_masses: 1 mazes: at least 2"),
    (
        lambda: mazes.lens_masses(MODEL, TRAIN, mazes.Mazes.join([TEST, FIVE])),
        ShapeError,
        "lens_masses: mazes of 4 × 4",
    ),
    # ---- causal tests
    (lambda: mazes.matched_heads(X[:, :4] * np.nan, [(0, 0)]), ConfigError, "norms hold a negative number, NaN or"),
    (lambda: mazes.matched_heads(X[:, :4], [(0, 7)]), ConfigError, "L0H7: the table of norms has layers 0 to 0"),
    (lambda: mazes.matched_heads(X[:, :4], any_), ConfigError, "heads = None: a list of pairs (layer, head)"),
    (lambda: mazes.ablate_heads(MODEL, TEST, TRAIN, any_), ConfigError, "heads = None: a list of pairs (layer, head)"),
    (lambda: mazes.ablate_heads(MODEL, TEST, TRAIN, True), ConfigError, "heads = True: 1 to 4"),
    (
        lambda: mazes.ablate_heads(MODEL, TEST, TRAIN, methods=any_),
        ConfigError,
        "ablate_heads: methods = None: a list of",
    ),
    (lambda: mazes.ablate_heads(MODEL, TEST, TRAIN, draws=10**12), ConfigError, "draws = 1000000000000, must be"),
    (lambda: mazes.ablate_heads(MODEL, TEST, TRAIN, least_mass=np.nan), ConfigError, "least_mass = nan: a share"),
    (lambda: mazes.patch_heads(MODEL, TEST, TRAIN, least_mass=wrong), ConfigError, "patch_heads: least_mass = 'z'"),
    (
        lambda: mazes.patch_path_start(MODEL, TEST, TRAIN, kinds="walls"),
        ConfigError,
        "kinds = 'walls': a list of 'walls'",
    ),
    (lambda: mazes.patch_path_start(MODEL, TEST, TRAIN, layers=[0, 0]), ConfigError, "layers = [0, 0]: each once"),
    (lambda: mazes.patch_path_start(MODEL, TEST, TRAIN, sources=[3]), ConfigError, "sources = [3]"),  # type: ignore[list-item]
    (lambda: mazes.flip_walls(MODEL, TEST, any_), ConfigError, "probes: WallProbes, as wall_probes makes them, not"),
    (lambda: mazes.flip_walls(MODEL, TEST, PROBES, layers=1.0), ConfigError, "flip_walls: layer 1.0"),  # type: ignore[arg-type]
    (lambda: mazes.flip_walls(MODEL, TEST, PROBES, changes=any_), ConfigError, "flip_walls: changes = None: a list of"),
    # ---- several models
    (lambda: mazes.snapshot(MODEL, TRAIN, TEST, walks=0), ConfigError, "walks = 0, must be a whole number, at least 1"),
    (lambda: mazes.snapshot(MODEL, TRAIN, TEST, seed=wrong), ConfigError, "seed = 'z'"),
    (lambda: mazes.compare(any_, TRAIN, TEST), ConfigError, "compare: models: a mapping of shapes to lists of models"),
    (lambda: mazes.compare({"a": [any_]}, TRAIN, TEST), ConfigError, "model: a Model"),
    (
        lambda: mazes.compare({"a": [MODEL]}, TRAIN, TEST[:0]),
        ConfigError,
        "compare: 12 mazes to learn from and 0 held out",
    ),
    (
        lambda: mazes.compare({"a": [MODEL]}, TRAIN, TEST, about=wrong),
        ConfigError,
        "compare: about: a mapping, not str",
    ),
    (lambda: mazes.over_training(any_, TRAIN, TEST), ConfigError, "a mapping of steps to models, not NoneType"),
    (lambda: mazes.over_training({-1: MODEL}, TRAIN, TEST), ConfigError, "over_training: a step = -1"),
    (lambda: mazes.over_training({0: 3}, TRAIN, TEST), ConfigError, "a checkpoint is a model or a path, not int"),
    (
        lambda: mazes.wall_probes(MODEL, EMPTY, TEST),
        ConfigError,
        "wall_probes: 0 mazes to learn from and 6 held out",
    ),
    (
        lambda: mazes.wall_probes(MODEL, TRAIN, EMPTY),
        ConfigError,
        "12 mazes to learn from and 0 held out: an empty split",
    ),
    (
        lambda: mazes.wall_probes_along(MODEL, TRAIN, EMPTY),
        ConfigError,
        "wall_probes_along: 12 mazes to learn from and 0 held",
    ),
    (lambda: mazes.route_probes(MODEL, EMPTY, TEST), ConfigError, "route_probes: 0 mazes to learn from and 6 held out"),
    (lambda: mazes.logit_attribution(MODEL, EMPTY), ConfigError, "no mazes: an empty split"),
    (lambda: mazes.adjacency_heads(MODEL, EMPTY), ConfigError, "no mazes: an empty split"),
    (lambda: mazes.lens_masses(MODEL, EMPTY, TEST), ConfigError, "lens_masses: no mazes to learn from: an empty split"),
    (lambda: mazes.lens_masses(MODEL, TRAIN, EMPTY), ConfigError, "lens_masses: 0 mazes: at least 2; an empty split"),
    (lambda: mazes.path_steps(MODEL, EMPTY), ConfigError, "path_steps: no mazes: an empty split"),
    (lambda: mazes.ablate_heads(MODEL, EMPTY, TRAIN), ConfigError, "ablate_heads: 0 mazes: at least 2; an empty split"),
    (lambda: mazes.kept_checkpoints(any_), ConfigError, "folder: a path, not NoneType"),
    (lambda: mazes.Dynamics.load(any_), ConfigError, "path: a path, not NoneType"),
    (lambda: mazes.experiment(MODEL, grid=wrong), ConfigError, "grid = 'z': a maze has 2 to 20 rows"),
    (lambda: mazes.experiment(MODEL, seed=-1), ConfigError, "seed = -1"),
    # ---- another vocabulary than the model's own; True and False; what is no list, and no word
    (
        lambda: mazes.evaluate(MODEL, TEST, tokenizer=mazes.Tokenizer(7, "rasterized")),
        TokenError,
        "is configured for Tokenizer of 7 × 7 mazes, uniform: 60 tokens, not for Tokenizer of 7 × 7 mazes, rasterized",
    ),
    (lambda: TOK.encode(MAZE, path=wrong), ConfigError, "path = 'z': True or False"),
    (lambda: TOK.encode_batch(TEST, path=any_), ConfigError, "path = None: True or False"),
    (lambda: mazes.unique(TEST, ends=wrong), ConfigError, "ends = 'z': True or False"),
    (lambda: mazes.draw(MAZE, solution=wrong), ConfigError, "solution = 'z': True or False"),
    *[
        (lambda given=given: mazes.walls_of(given), ConfigError, "mazes: a maze or a sequence of mazes, not " + name)
        for given, name in (("", "str"), ({}, "dict"), ({MAZE: 1}, "dict"), (np.array(3), "ndarray"))
    ],
    (lambda: mazes.Curriculum(np.array(3), TOK), ConfigError, "Curriculum: stages = array(3): a list of Stage"),  # type: ignore[arg-type]
    (lambda: mazes.wall_probes(MODEL, TRAIN, TEST, methods=np.array("ridge")), ConfigError, "wall_probes: methods = "),  # type: ignore[arg-type]
    (lambda: mazes.judge(np.array(3), TEST), ConfigError, "judge"),  # type: ignore[arg-type]
    (lambda: mazes.generate(1, 4, WORDS), ConfigError, "generate: kind = array(['a', 'b']"),
    (lambda: mazes.generate(1, 4, split=WORDS), ConfigError, "generate: split = array(['a', 'b']"),
    (lambda: mazes.Tokenizer(4, WORDS), ConfigError, "Tokenizer: order = array(['a', 'b']"),
    (lambda: mazes.embedding_distances(MODEL, WORDS), ConfigError, "metric = array(['a', 'b']"),
    (lambda: mazes.logit_attribution(MODEL, TEST, position=WORDS), ConfigError, "position = array(['a', 'b']"),
    (lambda: mazes.wall_probes(MODEL, TRAIN, TEST, position=WORDS), ConfigError, "position = array(['a', 'b']"),
    (lambda: mazes.wall_probes(MODEL, TRAIN, TEST, site=WORDS), ConfigError, "wall_probes: site = array(['a', 'b']"),
    (
        lambda: mazes.wall_probes_along(MODEL, TRAIN, TEST, site=wrong),
        ConfigError,
        "wall_probes_along: site = 'z': one",
    ),
    (lambda: mazes.route_probes(MODEL, TRAIN, TEST, site="z"), ConfigError, "resid_post, resid_mid, resid_pre"),
    (
        lambda: mazes.wall_probes("bag of tokens", TRAIN, TEST, site="resid_mid", tokenizer=mazes.Tokenizer(4)),
        ConfigError,
        "wall_probes: site = 'resid_mid': a bag of tokens has no sites",
    ),
    (lambda: mazes.path_steps(MODEL, TEST, WORDS), ConfigError, "paths = array(['a', 'b']"),
    (lambda: mazes.experiment(MODEL, quick=wrong), ConfigError, "quick = 'z': True or False"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_came_is_named(number: int) -> None:
    call, error, message = CASES[number]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_what_is_left_to_users() -> None:
    """An empty list is an empty selection; a path in a larger grid can be drawn once its cells there are none."""
    assert len(TEST[[]]) == 0 and len(TEST[[True] + [False] * 5]) == 1
    walked = np.array([[0, 0], [5, 0], [-1, -1], [1, 0]])
    assert as_walked(walked, MAZE).tolist() == [[0, 0], [-1, -1], [-1, -1], [1, 0]]
    assert mazes.text(MAZE, as_walked(walked, MAZE)) == mazes.text(MAZE, [[0, 0], [1, 0]])
    assert len(mazes.examples(list(TEST), TOK).tokens) == len(mazes.walls_of(list(TEST))) == len(TEST)


def test_a_batchs_arrays_stay_the_callers() -> None:
    arrays = tuple(array.copy() for array in TEST.batch)
    batch = mazes.Mazes(arrays)  # type: ignore[arg-type]
    assert batch == TEST and all(array.flags.writeable for array in arrays)
    assert not any(array.flags.writeable for array in batch.batch)


def test_results_are_told_in_few_lines() -> None:
    """Not as all their numbers."""
    route = mazes.route_probes(MODEL, TRAIN, TEST)
    steps = mazes.path_steps(MODEL, TEST)
    results = [
        PROBES, PROBES["ridge"], HEADS, route, steps, mazes.logit_attribution(MODEL, TEST), TABLE["rdfs"].judgement,
        mazes.embedding_distances(MODEL, grid=4, draws=5), mazes.minimal_pairs(TOK, TRAIN, position="origin"),
        mazes.lens_masses(MODEL, TRAIN, TEST),
    ]  # fmt: skip
    for result in results:
        told = repr(result)
        assert "array(" not in told and len(told.splitlines()) < 20 and max(map(len, told.splitlines())) < 160, told
    assert "walls of 4 × 4 mazes at <PATH_START>, 12 mazes to learn from, 6 held out" in repr(PROBES)
    assert repr(PROBES["ridge"]).startswith("WallScores of 2 layers: best is layer")
    assert "next step right" in repr(route) and "pairs that differ in one edge" in repr(results[8])
