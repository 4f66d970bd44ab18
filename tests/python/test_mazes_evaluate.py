"""Rollouts and the rows of Table 1: hand-made paths, slow twins of what models are asked, intervals against SciPy."""

from __future__ import annotations

import math
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, TokenError, edit, generate, mazes
from clew.mazes.evaluate import PATHS
from clew.mazes.maze import shortest_lengths
from clew.mazes.rollout import walk_cells
from scipy import stats

# +---+---+---+
# | O   ·   · |      a ring around the middle, and a dead end into it
# +   +---+   +
# |   |       |
# +   +---+   +
# |         T |
# +---+---+---+
RING = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]
EDGES = [*zip(RING[:-1], RING[1:], strict=True), ((1, 1), (1, 2))]
MAZE = mazes.Maze(3, EDGES, (0, 0), (2, 2), RING[:5])
NONE = (-1, -1)


@pytest.mark.parametrize(
    ("path", "true", "streak"),
    [
        (RING[:5], "exact valid target shortest", 5),
        ([(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)], "valid target shortest", 1),  # as short, another way
        ([(0, 0), (0, 1), (0, 0), (0, 1), (0, 2), (1, 2), (2, 2)], "valid target", 2),  # backtracking
        ([(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 2), (2, 2)], "valid target", 4),  # into the dead end and back
        (RING[:4], "valid", 4),  # stops early
        (RING[:5] + [(2, 1)], "valid", 5),  # walks over the target
        ([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], "target", 2),  # through a wall
        ([(0, 0), (2, 2)], "target", 1),  # a leap
        ([(0, 0), (0, 0), (0, 1), (0, 2), (1, 2), (2, 2)], "target", 1),  # a cell is no neighbour of itself
        ([(0, 1), (0, 2), (1, 2), (2, 2)], "valid target", 0),  # does not begin at the origin
        ([(0, 0), NONE, (0, 2), (1, 2), (2, 2)], "target", 1),  # a token that is no cell
        ([(0, 0), (0, 3)], "", 1),  # a cell of larger mazes
        ([(0, 0), (0, 1), (0, 2), (1, 2), NONE], "", 4),
        ([(2, 2)], "valid target", 0),
        ([], "", 0),
    ],
)
def test_what_is_true_of_a_path(path: list[tuple[int, int]], true: str, streak: int) -> None:
    # among others, so that padding and neighbours in a batch are seen not to matter
    others = [np.array(RING[:5]), np.array([(0, 0)]), np.array(RING * 3)]
    found = mazes.judge([others[0], np.array(path).reshape(-1, 2), *others[1:]], [MAZE] * 4)
    names = [name for name in ("exact", "valid", "target", "shortest") if getattr(found, name)[1]]
    assert names == true.split() and found.streak[1] == streak
    assert found.exact.tolist()[0] and found.valid.tolist()[2:] == [True, False]


def test_the_shortest_way_is_the_mazes_not_its_solutions() -> None:
    ring = [((0, 0), (0, 1)), ((0, 1), (1, 1)), ((1, 1), (1, 0)), ((1, 0), (0, 0))]
    round_, straight = [(0, 0), (1, 0), (1, 1), (0, 1)], [(0, 0), (0, 1)]
    maze = mazes.Maze(2, ring, (0, 0), (0, 1), solution=round_)
    found = mazes.judge([np.array(round_), np.array(straight), np.array(RING[:5])], [maze, maze, MAZE])
    assert found.exact.tolist() == [True, False, True] and found.shortest.tolist() == [False, True, True]
    ms = mazes.generate(50, 4, "prdfs", seed=1, p=0.5)
    far = [int(m.distances()[m.origin[0] * 4 + m.origin[1], m.target[0] * 4 + m.target[1]]) + 1 for m in ms]
    assert shortest_lengths(ms).tolist() == far == ms.path_lengths.tolist()
    assert mazes.judge([m.solution for m in ms], ms).shortest.all()
    assert shortest_lengths(mazes.Mazes.of(mazes.Maze(3, EDGES[:1], (0, 0), (2, 2)))).tolist() == [0]


def test_batches_with_room_for_longer_paths() -> None:
    ms = mazes.generate(5, 6, seed=1)
    assert ms.batch[4].shape[1] == 36 > ms.path_lengths.max()
    assert mazes.judge([m.solution for m in ms], ms).exact.all()
    assert mazes.judge([m.solution[:1] for m in ms], ms).streak.tolist() == [1] * 5


def test_paths_in_mazes_of_several_sizes() -> None:
    large = mazes.generate(1, 7, seed=2)[0]
    found = mazes.judge([MAZE.solution, large.solution, MAZE.solution], [MAZE, large, large])
    assert found.exact.tolist() == [True, True, False]
    with pytest.raises(ConfigError, match="judge: 1 paths, 2 mazes"):
        mazes.judge([MAZE.solution], [MAZE, large])


def test_intervals_are_wilsons() -> None:
    for k, n in ((0, 10), (10, 10), (3, 17), (782, 1000)):
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        rate = mazes.Rate(k, n)
        assert (rate.low, rate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert math.isnan(mazes.Rate(0, 0).value) and str(mazes.Rate(1, 2)) == "50.0 % [9.5, 90.5] of 2"


# ---- Models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> clew.Model:
    """Random, with logits that differ enough for all kinds of tokens to come."""
    return clew.Model.from_config(mazes.hallway_config(n_layers=2, initializer_range=0.3), seed=3, dtype="float64")


@pytest.fixture(scope="module")
def learned() -> clew.Model:
    """A model that has learned 2 × 2 mazes, more or less."""
    config = mazes.hallway_config(n_layers=2, d_model=64, n_heads=4, d_mlp=128, n_ctx=40, initializer_range=0.06)
    model = clew.Model.from_config(config, seed=0)
    source = mazes.Curriculum([mazes.Stage(1, {2: 1.0}, {"rdfs": 0.7, "prdfs": 0.3})], mazes.Tokenizer(7), test_share=0)
    schedule = clew.train.cosine(3e-3, steps=150, warmup=20)
    clew.train.fit(model, source, 150, 64, lr=schedule, betas=(0.9, 0.98), progress=False)
    return model


def greedy(model: clew.Model, prompt: list[int], n: int) -> list[int]:
    """The likeliest token again and again, each time over the whole text."""
    out: list[int] = []
    while len(out) < n and (not out or out[-1] != 7):
        out.append(int(model.run([*prompt, *out]).logits[0, -1].argmax()))
    return out


def test_rollouts_are_greedy(model: clew.Model, learned: clew.Model) -> None:
    tok = mazes.Tokenizer(7)
    for m, ms in ((model, [*mazes.generate(4, 3, "prdfs"), *mazes.generate(2, 5)]), (learned, mazes.generate(8, 2))):
        made = mazes.rollouts(m, ms)
        for row, maze in zip(made, ms, strict=True):
            said = greedy(m, tok.encode(maze, path=False).tolist(), maze.grid**2 + 2)
            too_long = len(said) == maze.grid**2 + 2 and said[-1] != 7  # no <PATH_END> where it would have to be
            assert row.tolist() == (said[:-1] if too_long else said)
        for row, path in zip(made, mazes.solve(m, ms), strict=True):
            assert np.array_equal(path, tok.cells_of(walk_cells(row)))
    for cells in (1, 3):
        for row, path in zip(
            *(walk(model, mazes.generate(3, 3), max_cells=cells) for walk in (mazes.rollouts, mazes.solve)), strict=True
        ):
            assert len(row) == cells + 1 if row[-1] != 7 else len(row) <= cells + 2
            assert len(path) <= cells + (row[0] != 6)  # a walk that does not begin with <PATH_START>


def test_walks_towards_what_cannot_be_reached(model: clew.Model) -> None:
    maze = mazes.Maze(3, [[(0, 0), (0, 1)], [(2, 2), (1, 2)]], (0, 0), (2, 2))
    said = greedy(model, mazes.Tokenizer(7).encode(maze, path=False).tolist(), 11)
    (walk,) = mazes.rollouts(model, maze)
    assert walk.tolist() == (said if said[-1] == 7 else said[:10])


def test_walks_take_few_passes(learned: clew.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with the prompt where the shortest path is walked; fewer than cells where a walk goes astray."""
    passes: list[int] = []
    run = generate._Decoder.run

    def counted(*given: Any, **named: Any) -> Any:
        passes.append(len(given[2]))
        return run(*given, **named)

    monkeypatch.setattr(generate._Decoder, "run", counted)
    model, tok = clew.load("maze-6x6"), mazes.Tokenizer(7)
    for m, ms in ((learned, mazes.generate(20, 2)), (model, mazes.generate(60, 6, split="test"))):
        walks = mazes.rollouts(m, ms)
        prompts = tok.encode_batch(ms, path=False)
        solved = [tok.encode(maze).tolist() == [*p, *row] for maze, p, row in zip(ms, prompts, walks, strict=True)]
        assert sum(solved) > len(ms) // 2
        passes.clear()
        mazes.rollouts(m, ms[solved])
        assert passes == [sum(solved)]
    astray = np.flatnonzero(~np.array(solved))
    longest = max(len(walks[i]) for i in astray)
    passes.clear()
    mazes.rollouts(model, ms[astray])
    assert passes[0] == len(astray) and 1 < len(passes) <= longest // 2


@pytest.fixture(scope="module")
def cramped() -> tuple[clew.Model, mazes.Mazes]:
    """A model of 96 positions, and mazes of several sizes, some of which take nearly all of them."""
    config = mazes.hallway_config(n_layers=2, d_model=32, n_heads=2, d_mlp=32, n_ctx=96, initializer_range=0.3)
    ms = mazes.Mazes.join([mazes.generate(6, 3), mazes.generate(60, 4, "prdfs", p=0.5), mazes.generate(3, 2)])
    lengths = np.array([len(row) for row in mazes.Tokenizer(7).encode_batch(ms, path=False)])
    assert (lengths[lengths < 96] > 90).any() and lengths.max() == 96
    return clew.Model.from_config(config, seed=3, dtype="float64"), ms[lengths < 96]


@pytest.mark.parametrize("max_cells", [None, 12])
def test_a_walk_does_not_depend_on_the_other_mazes(
    cramped: tuple[clew.Model, mazes.Mazes], max_cells: int | None
) -> None:
    """Each has as many tokens as its own cells, and its own prompt leaves room for; also where edits hold."""
    model, ms = cramped
    how: dict[str, Any] = {"max_cells": max_cells}
    changes = [(), edit.add(("resid_post", 0), np.sin(np.arange(32)))]
    for edits in changes:
        together = mazes.rollouts(model, ms, edits=edits, **how)
        for i in range(0, len(ms), 4):
            assert np.array_equal(mazes.rollouts(model, ms[i], edits=edits, **how)[0], together[i])
        prompts = mazes.Tokenizer(7).encode_batch(ms, path=False)
        lengths = set()
        for maze, prompt, row in zip(ms, prompts, together, strict=True):
            cells, room = maze.grid**2 if max_cells is None else max_cells, 96 - len(prompt)
            assert len(row) == min(cells + 1, room) or (row[-1] == 7 and len(row) <= min(cells + 2, room))
            lengths.add(len(row))
        assert len(lengths) > 2
    # an edit of one sequence still counts among all
    last = len(ms) - 1
    one = mazes.rollouts(model, ms, edits=edit.add(("resid_post", 0), np.sin(np.arange(32)), batch=[last]), **how)
    plain, edited = (mazes.rollouts(model, ms, edits=edits, **how) for edits in changes)
    assert [row.tolist() for row in one] == [row.tolist() for row in [*plain[:last], edited[last]]]


def test_a_walk_that_the_context_cuts_off_is_no_finished_path(
    model: clew.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = mazes.Tokenizer(7)
    ids = tok.encode(MAZE)
    whole = ids[ids.tolist().index(6) :]
    module: Any = __import__("sys").modules[mazes.evaluate.__module__]
    found = []
    for row in (whole, whole[:-1]):
        monkeypatch.setattr(module, "rollouts", lambda *_, row=row, **__: [row])
        result = mazes.evaluate(model, [MAZE])
        found.append([name for name in PATHS if result[name].successes])
    assert found == [["exact", "valid", "target", "shortest", "ended"], ["valid"]]


def test_none_are_walked_with_edits_as_without(model: clew.Model) -> None:
    for edits in ((), [edit.zero("z")]):
        assert mazes.solve(model, mazes.generate(0), edits=edits) == []
        assert mazes.rollouts(model, [], edits=edits) == []


def test_walked_cells() -> None:
    assert walk_cells(np.array([6, 11, 12, 7])).tolist() == [11, 12]
    assert walk_cells(np.array([11, 6, 12])).tolist() == [11, 6, 12]
    assert walk_cells(np.array([7])).tolist() == [] and walk_cells(np.array([6])).tolist() == []


def test_tasks_of_one_token(model: clew.Model, learned: clew.Model) -> None:
    tok = mazes.Tokenizer(7)
    for m, ms in ((model, mazes.generate(30, 4, "prdfs", seed=1)), (learned, mazes.generate(60, 2, "prdfs", seed=1))):
        result = mazes.evaluate(m, ms)
        for i, maze in enumerate(ms):
            ids, k = tok.encode(maze).tolist(), len(maze.solution)
            start = ids.index(6)
            fixed = {"path_start": 0, "origin_after_path_start": 1, "first_path_choice": 2,
                     "final_before_path_end": k, "path_end": k + 1}  # fmt: skip

            def right(index: int, m: clew.Model = m, ids: list[int] = ids, start: int = start) -> int:
                return int(m.run(ids[: start + index]).logits[0, -1].argmax() == ids[start + index])

            for name, index in fixed.items():
                assert result.tasks[name][i] == right(index), name
            among = {"rand_path_token": range(1, k), "rand_path_token_nonend": range(3, k - 1)}
            for name, choices in among.items():
                options = {right(index) for index in choices} or {-1}
                assert result.tasks[name][i] in options, name
        assert list(result) == [*PATHS, *mazes.TASKS]
        for name in mazes.TASKS:
            found = result.tasks[name]
            assert result[name] == mazes.Rate(int((found == 1).sum()), int((found >= 0).sum()))


def test_random_tokens_are_anywhere_in_their_range(learned: clew.Model) -> None:
    """Which tokens are chosen shows in mazes where the model is right at one place only."""
    one = mazes.Maze(3, [((0, c), (0, c + 1)) for c in range(2)] + [((r, 2), (r + 1, 2)) for r in range(2)]
                     + [((2, c), (2, c + 1)) for c in range(2)], (0, 0), (2, 0))  # fmt: skip
    k = len(one.solution)
    right = np.zeros((4000, k + 2), int)
    chosen = {name: np.zeros(k + 2, int) for name in ("rand_path_token", "rand_path_token_nonend")}
    from clew.mazes import evaluate as function

    module: Any = __import__("sys").modules[function.__module__]
    batch = mazes.Mazes.of([one] * 4000)
    original = module._right
    try:
        for index in range(k + 2):
            right[:] = 0
            right[:, index] = 1
            module._right = lambda *_: right
            tasks = module._tasks(learned, batch, mazes.Tokenizer(7), [], 0)
            for name in chosen:
                chosen[name][index] = int((tasks[name] == 1).sum())
    finally:
        module._right = original
    for name, places in (("rand_path_token", range(1, k)), ("rand_path_token_nonend", range(3, k - 1))):
        counts = chosen[name]
        assert counts.sum() == 4000 and set(np.flatnonzero(counts)) == set(places)
        assert stats.chisquare(counts[list(places)]).pvalue > 1e-3


def test_a_learned_model_scores(learned: clew.Model) -> None:
    ms = mazes.generate(300, 2, seed=5)
    result = mazes.evaluate(learned, ms)
    assert result["path_start"].value == 1 and result["ended"].value > 0.95 and result["exact"].value > 0.6
    found = mazes.judge(mazes.solve(learned, ms), ms)
    assert result["exact"].successes == found.exact.sum() and result.streak == found.streak.mean()
    lengths = result.by_length()
    assert list(lengths) == [2, 3, 4]
    for name in PATHS:
        assert sum(row[name].successes for row in lengths.values()) == result[name].successes
        assert sum(row[name].n for row in lengths.values()) == 300
    assert "exact" in repr(result) and "<td>valid</td>" in result._repr_html_()


def test_edits_hold_in_rollouts_and_tasks(learned: clew.Model) -> None:
    ms = mazes.generate(300, 2, seed=5)  # more than one batch of rollouts
    blind = [edit.zero("z")]
    assert mazes.evaluate(learned, ms, edits=blind)["exact"].value < 0.4
    with learned.edited(blind):
        inside = mazes.evaluate(learned, ms)
    assert {**inside} == {**mazes.evaluate(learned, ms, edits=blind)}
    # one sequence alone
    vector = 9 * np.random.default_rng(0).standard_normal(64)
    paths = mazes.solve(learned, ms, edits=edit.add("blocks.0.hook_resid_pre", vector, batch=[299]))
    plain = mazes.solve(learned, ms)
    assert [np.array_equal(a, b) for a, b in zip(paths, plain, strict=True)].index(False) == 299


def test_table(learned: clew.Model, model: clew.Model) -> None:
    table = mazes.table(learned, 40, grid=2, split=None)
    assert list(table) == ["forkless", "rdfs", "prdfs"] and table["rdfs"]["exact"].n == 40
    assert {**table["prdfs"]} == {**mazes.evaluate(learned, mazes.generate(40, 2, "prdfs"))}
    assert table.to_dict()["rows"]["rdfs"]["exact"] == [table["rdfs"]["exact"].successes, 40]
    # the paper has no mazes of this size, nor of several
    sizes = mazes.Mazes.join([mazes.generate(2, 6), mazes.generate(1, 5)])
    for other in (table, mazes.Table({"rdfs": mazes.evaluate(model, sizes)}, "several")):
        assert "paper" not in repr(other) and "jirpy" not in other._repr_html_() and other.below() == []
        assert all(len(line) == 1 + len(list(other)) for line in other._lines())
    table = mazes.table(model, 4, grid=6)
    assert "forkless  [95 %]  paper: hallway, jirpy" in repr(table) and "<table>" in table._repr_html_()
    assert [line[2] for line in table._lines() if line[0] == "path_start"][0].endswith("]  100, 100")
    below = table.below()
    for kind, row in ((k, r) for k in table for r in mazes.PAPER["hallway"][k]):
        assert ((kind, row) in below) == (100 * table[kind][row].value < mazes.PAPER["hallway"][kind][row] - 0.05)
    assert len(below) > 20
    assert mazes.PAPER["hallway"]["rdfs"]["first_path_choice"] == 67.2
    assert mazes.PAPER["jirpy"]["forkless"]["path_end"] == 71.5


# ---- What is refused ------------------------------------------------------------------------------------------------


def test_models_with_another_vocabulary(model: clew.Model) -> None:
    other = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=99, d_vocab=50), seed=0)
    with pytest.raises(TokenError, match=r"a vocabulary of 50 tokens is none of mazes: they have 11 \+ grid²"):
        mazes.solve(other, [MAZE])
    with pytest.raises(TokenError, match="reads 60 and writes 60 tokens; the vocabulary of 5 × 5 mazes has 36"):
        mazes.evaluate(model, [MAZE], tokenizer=mazes.Tokenizer(5))
    named = mazes.hallway_config(extra={"mazes": {"grid": 6, "order": "rasterized"}}, n_layers=1)
    with pytest.raises(TokenError, match="reads 60 and writes 60 tokens; the vocabulary of 6 × 6 mazes has 47"):
        mazes.solve(clew.Model.from_config(named), [MAZE])
    fitting = named.replace(d_vocab=47, d_vocab_out=47)
    assert mazes.tokenizer_of(clew.Model.from_config(fitting)).order == "rasterized"


def test_the_papers_models_name_their_vocabulary(tmp_path: Any) -> None:
    """Orders cannot be told from a model's size."""
    small: dict[str, Any] = dict(n_layers=1, d_model=16, n_heads=2, d_mlp=16)
    for config, order in ((mazes.hallway_config, "uniform"), (mazes.jirpy_config, "rasterized")):
        model = clew.Model.from_config(config(**small), seed=0)
        assert model.config.extra == {"mazes": {"grid": 7, "order": order}}
        assert mazes.tokenizer_of(model).order == order
        pytest.importorskip("safetensors", reason="safetensors is not installed: models are saved with it")
        model.save(tmp_path / order)
        assert mazes.tokenizer_of(clew.load(tmp_path / order)).order == order
        assert config(d_vocab=20).extra["mazes"]["grid"] == 3 and config(d_vocab=50).extra == {}
        assert config(extra={"note": 1}).extra == {"mazes": {"grid": 7, "order": order}, "note": 1}
        named = {"mazes": {"grid": 7, "order": "rasterized"}}
        assert config(extra=named).extra == named


@pytest.mark.parametrize(
    "named", [None, 3, "uniform", [7, "uniform"], {}, {"grid": 7}, {"order": "uniform"}, {"grid": 7, "order": "random"},
              {"grid": "7", "order": "uniform"}, {"grid": 7, "order": ["uniform"]}, {"grid": 99, "order": "uniform"}]
)  # fmt: skip
def test_vocabularies_that_are_named_badly(named: Any) -> None:
    model = clew.Model.from_config(mazes.hallway_config(n_layers=1, extra={"mazes": named}), seed=0)
    with pytest.raises(ConfigError, match=r'maze-hallway: extra\["mazes"\] = '):
        mazes.tokenizer_of(model)
    assert mazes.tokenizer_of(model, mazes.Tokenizer(7)).order == "uniform"


def test_mazes_that_do_not_fit(model: clew.Model) -> None:
    with pytest.raises(TokenError, match="maze 0 has a grid of 8 × 8, larger than the vocabulary's 7 × 7"):
        mazes.solve(model, mazes.generate(1, 8))
    short = clew.Model.from_config(mazes.hallway_config(n_layers=1, n_ctx=100))
    mixed = mazes.Mazes.join([mazes.generate(300, 3), mazes.generate(2, 6)])
    with pytest.raises(TokenError, match="maze 300: a prompt of 148 tokens, maze-hallway has 100 positions: no room"):
        mazes.solve(short, mixed)
    tight = clew.Model.from_config(mazes.hallway_config(n_layers=1, n_ctx=150))
    with pytest.raises(TokenError, match="maze 1: 15[0-9] tokens, its path included: maze-hallway has 150 positions"):
        mazes.evaluate(tight, mixed[299:])
    with pytest.raises(ConfigError, match="max_cells = 0: at least 1"):
        mazes.solve(model, [MAZE], max_cells=0)
    with pytest.raises(ConfigError, match="evaluate: no mazes: an empty split?"):
        mazes.evaluate(model, [])
    with pytest.raises(TokenError, match="maze 0: its target cannot be reached"):
        mazes.evaluate(model, [mazes.Maze(3, EDGES[:1], (0, 0), (2, 2))])
