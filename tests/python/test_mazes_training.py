"""What maze models learn from: shapes of the paper, masks, curricula, runs that are stopped and go on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, TokenError, mazes
from clew.train import Sequences, Trainer
from clew.train import step as step_module
from clew.train.step import gradients_for

SCRIPT = Path(clew.__file__).parent / "data" / "maze-6x6" / "train.py"
STAGES = [mazes.Stage(2, {2: 1.0}, {"rdfs": 1.0}), mazes.Stage(9, {2: 0.3, 3: 0.7}, {"rdfs": 0.6, "forkless": 0.4}, 4)]


def small() -> clew.Model:
    config = mazes.hallway_config(n_layers=1, d_model=16, n_heads=2, d_mlp=32, n_ctx=64)
    return clew.Model.from_config(config, seed=0)


def source(**more: Any) -> mazes.Curriculum:
    return mazes.Curriculum(STAGES, mazes.Tokenizer(7), **more)


def test_the_papers_shapes() -> None:
    assert clew.Model.from_config(mazes.hallway_config()).n_params == 1_238_076
    assert clew.Model.from_config(mazes.jirpy_config()).n_params == 9_639_484
    config = mazes.hallway_config(n_layers=2, model_name="x")
    assert (config.n_layers, config.model_name, config.d_mlp, config.tie_word_embeddings) == (2, "x", 512, False)


def test_the_loss_is_on_the_path_alone() -> None:
    tok, ms = mazes.Tokenizer(7), mazes.generate(10, 5, "prdfs")
    batch = mazes.examples(ms, tok)
    for ids, mask, maze in zip(batch.tokens, batch.loss_mask, ms, strict=True):
        assert len(mask) == len(ids) and mask[-1] == 0
        learned = [tok.vocab[t] for t in ids[1:][np.flatnonzero(mask[:-1])]]
        cells = [f"({r},{c})" for r, c in maze.solution.tolist()]
        assert learned == ["<PATH_START>", *cells, "<PATH_END>"]


def _asked(words: list[str]) -> list[list[str]]:
    """The questions behind a maze's own path, each from <ORIGIN_START> on."""
    starts = [i for i, word in enumerate(words) if word == "<ORIGIN_START>"] + [len(words)]
    return [words[a:b] for a, b in zip(starts[1:-1], starts[2:], strict=True)]


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_questions_follow_the_shortest_ways_of_the_same_maze(steps: int) -> None:
    tok, ms = mazes.Tokenizer(7), mazes.Mazes.join([mazes.generate(20, 4), mazes.generate(20, 6)])
    batch, plain = mazes.questions(ms, tok, 9, steps, seed=1), mazes.examples(ms, tok)
    assert all(len(mask) == len(ids) <= 256 for ids, mask in zip(batch.tokens, batch.loss_mask, strict=True))
    closed = 0
    for i, maze in enumerate(ms):
        own, words = len(plain.tokens[i]), tok.decode(batch.tokens[i])
        assert batch.tokens[i][:own].tolist() == plain.tokens[i].tolist()
        assert batch.loss_mask[i][: own - 1].tolist() == plain.loss_mask[i][:-1].tolist()
        distance = ms[i : i + 1].distances()[0]
        asked = _asked(words)
        assert len(asked) == 9 or own + sum(map(len, asked)) > 256 - 8 - min(steps + 1, 36)
        learned = [words[own + n + 1] for n in np.flatnonzero(batch.loss_mask[i][own:])]
        want = []
        for question in asked:
            origin, target, path = question[1], question[4], [w for w in question[7:] if w != "<PATH_END>"]
            cells = [tuple(map(int, w[1:-1].split(","))) for w in [target, *path]]
            goal, *way = (r * maze.grid + c for r, c in cells)
            assert path[0] == origin != target and len(path) <= steps + 1
            assert all(distance[a, goal] == distance[b, goal] + 1 == distance[way[0], goal] - n
                       for n, (a, b) in enumerate(zip(way[:-1], way[1:], strict=True)))  # fmt: skip
            assert (question[-1] == "<PATH_END>") == (path[-1] == target) or len(words) == 256
            assert len(path) == steps + 1 or path[-1] == target
            closed += question[-1] == "<PATH_END>"
            want += question[7:]
        assert learned == want
    assert closed > 10 or steps == 1


def test_questions_are_drawn_once_for_a_seed_and_none_are_examples() -> None:
    tok, ms = mazes.Tokenizer(7), mazes.generate(5, 3)
    none, plain = mazes.questions(ms, tok, 0), mazes.examples(ms, tok)
    assert all(np.array_equal(a, b) for a, b in zip(none.tokens, plain.tokens, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(none.loss_mask, plain.loss_mask, strict=True))
    first, again, other = (mazes.questions(ms, tok, seed=seed).tokens for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    cut = mazes.questions(ms, tok, context=70)
    assert max(map(len, cut.tokens)) <= 70


def test_no_maze_is_cut_for_want_of_room() -> None:
    tok, ms = mazes.Tokenizer(7), mazes.Mazes.join([mazes.generate(3, 3), mazes.generate(2, 5, seed=1)])
    own = [len(ids) for ids in mazes.examples(ms, tok).tokens]
    with pytest.raises(
        TokenError, match=rf"questions: maze 3, of 5 × 5, has {own[3]} tokens itself, .* context of 100"
    ):
        mazes.questions(ms, tok, context=100)
    exact = mazes.questions(ms[4], tok, context=own[4])
    assert exact.tokens[0].tolist() == mazes.examples(ms[4], tok).tokens[0].tolist()
    stage = mazes.Stage(9, {6: 1.0}, {"rdfs": 1.0}, questions=9)
    with pytest.raises(ConfigError, match="context = 128: mazes of 6 × 6 have 152 tokens at least, without any"):
        mazes.Curriculum([stage], mazes.Tokenizer(7), context=128)
    shortest = mazes.Maze(6, mazes.generate(1, 6)[0].edges, (0, 0), (0, 0))
    assert len(tok.encode(shortest)) == 151  # an origin that is its target; curricula have none such
    forkless = mazes.Stage(9, {6: 1.0}, {"forkless": 1.0}, questions=9)
    assert max(map(len, mazes.Curriculum([forkless], tok, context=200).batch(0, 9).tokens)) <= 200


@pytest.mark.parametrize(("grid", "context"), [(4, 128), (8, 512)])
def test_a_curriculum_with_questions_fits_the_models_positions(grid: int, context: int) -> None:
    tok = mazes.Tokenizer(grid)
    stages = [mazes.Stage(9, {grid: 1.0}, {"rdfs": 1.0}, questions=30)]
    data = mazes.Curriculum(stages, tok, context=context)
    lengths = [len(ids) for ids in data.batch(0, 8).tokens]
    assert context - 12 < min(lengths) <= max(lengths) <= context
    config = mazes.hallway_config(n_layers=1, d_model=8, n_heads=1, d_mlp=8, n_ctx=context, d_vocab=len(tok.vocab))
    curve = clew.train.fit(clew.Model.from_config(config, seed=0), data, steps=2, batch=2, progress=False)
    assert len(curve.losses) == 2
    assert data.identity().endswith(f" context {context}")


def test_the_usual_context_and_loss_go_unnamed() -> None:
    usual = source()
    assert source(context=256, loss="path").identity() == usual.identity()
    assert usual.identity() == (
        "mazes until 2 {2: 1.0} {'rdfs': 1.0} batch None; until 9 {2: 0.3, 3: 0.7} {'rdfs': 0.6, 'forkless': 0.4} "
        f"batch 4; {mazes.Tokenizer(7)!r}; seed 0 test_share 0.1"
    )
    assert source(loss="all").identity() == usual.identity() + " loss all"


def test_numpys_small_numbers_are_pythons() -> None:
    tok = mazes.Tokenizer(np.int8(12))
    for grids in ({12: 1.0}, {12: 1}, {np.int8(12): np.float32(1)}):
        stages = [mazes.Stage(np.int8(9), grids, {"rdfs": 1}, np.int8(2), np.int8(1))]  # type: ignore[arg-type]
        data = mazes.Curriculum(stages, tok, np.int8(127), context=1024)
        assert data.identity() == (
            "mazes until 9 {12: 1.0} {'rdfs': 1.0} batch 2 questions 1; Tokenizer of 12 × 12 mazes, uniform: 155 "
            "tokens; seed 127 test_share 0.1 context 1024"
        )
        assert len(data.batch(0, 2).tokens) == 2
    walls = mazes.walls_of(mazes.generate(2, 12))
    assert np.array_equal(mazes.spanning_trees(~walls, np.int8(12)), walls)


def test_numpys_small_seeds_do_not_overflow() -> None:
    train, test = (mazes.generate(9, 3, split=part) for part in ("train", "test"))
    model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=16, n_heads=4, d_mlp=16), seed=0)
    for seed in (np.int8(127), np.uint8(255)):
        for measure in (
            lambda seed: mazes.wall_probes(model, train, test, position="path", methods=["ridge"], seed=seed)["ridge"],
            lambda seed: mazes.route_probes(model, train, test, position="path", seed=seed),
            lambda seed: mazes.ablate_heads(model, test, train, 1, position="path", methods=["mean"], seed=seed),
        ):
            assert repr(measure(seed)) == repr(measure(int(seed)))


def test_a_loss_on_all_tokens() -> None:
    tok, ms = mazes.Tokenizer(7), mazes.generate(6, 4, seed=2)
    for batch in (mazes.examples(ms, tok, loss="all"), mazes.questions(ms, tok, 5, loss="all", seed=3)):
        for ids, mask in zip(batch.tokens, batch.loss_mask, strict=True):
            assert mask.tolist() == [1] * (len(ids) - 1) + [0]
    asked, also = mazes.questions(ms, tok, 5, seed=3), mazes.questions(ms, tok, 5, seed=3, loss="all")
    assert all(np.array_equal(a, b) for a, b in zip(asked.tokens, also.tokens, strict=True))
    data = source(loss="all")
    assert all(mask.sum() == len(mask) - 1 for step in (0, 3) for mask in data.batch(step, 4).loss_mask)
    stages = [mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0}, questions=3)]
    more = mazes.Curriculum(stages, tok, loss="all").batch(0, 4)
    assert all(mask.sum() == len(mask) - 1 for mask in more.loss_mask)


def test_questions_come_on_top_of_a_batchs_mazes() -> None:
    large = mazes.Stage(2, {6: 1.0}, {"rdfs": 1.0})
    plain, asked = (
        mazes.Curriculum([mazes.Stage(1, {3: 1.0}, {"rdfs": 1.0}, questions=n), large], mazes.Tokenizer(7))
        for n in (0, 9)
    )
    one, other = plain.batch(0, 16), asked.batch(0, 16)
    assert len(one.tokens) == len(other.tokens)
    assert 2.5 < sum(map(len, other.tokens)) / sum(map(len, one.tokens)) < 3.5


def test_cells_that_no_way_joins_are_not_asked_for() -> None:
    lone = mazes.Maze(3, [[(0, 0), (0, 1)]], (0, 0), (0, 1))  # all other cells stand alone
    tok = mazes.Tokenizer(3)
    words = tok.decode(mazes.questions(lone, tok, 200, seed=0).tokens[0])
    asked = _asked(words)
    assert 0 < len(asked) < 60 and {(q[1], q[4]) for q in asked} <= {("(0,0)", "(0,1)"), ("(0,1)", "(0,0)")}


def test_a_stage_asks_more() -> None:
    stages = [mazes.Stage(2, {3: 1.0}, {"rdfs": 1.0}), mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0}, questions=3)]
    data = mazes.Curriculum(stages, mazes.Tokenizer(7))
    first, second = data.batch(1, 4), data.batch(2, 4)
    assert all("<PATH_END>" == mazes.Tokenizer(7).decode(ids)[-1] for ids in first.tokens)
    assert all(1 <= len(_asked(mazes.Tokenizer(7).decode(ids))) <= 3 for ids in second.tokens)
    again = data.batch(2, 4)
    assert all(np.array_equal(a, b) for a, b in zip(second.tokens, again.tokens, strict=True))
    plain = mazes.Curriculum([stages[0], mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0})], mazes.Tokenizer(7))
    assert data.identity().replace(" questions 3", "") == plain.identity() != data.identity()


def test_stages_follow_each_other() -> None:
    data = source()
    first, second = data.mazes(0, 8), data.mazes(2, 8)
    assert set(first.grids) == {2} and set(second.grids) == {2, 3}
    assert np.array_equal(data.mazes(1, 8).batch[1], source().mazes(1, 8).batch[1])
    assert not np.array_equal(data.mazes(0, 8).hashes, data.mazes(1, 8).hashes) or len(set(first.hashes)) < 4
    # as many tokens as `size` mazes of the largest grid, whatever the grid; the second stage has a size of its own
    tokens = [sum(map(len, data.batch(step, 400).tokens)) for step in (0, 1)]
    large = sum(map(len, mazes.examples(mazes.generate(400, 3), mazes.Tokenizer(7)).tokens))
    assert all(abs(n / large - 1) < 0.1 for n in tokens)
    assert len(data.mazes(5, 400)) == len(data.mazes(5, 8)) < 12
    later = data.mazes(10**6, 8)  # the last stage goes on
    assert set(later.grids) == {2, 3}
    many = mazes.Curriculum([mazes.Stage(1, {3: 1.0}, {"rdfs": 0.5, "forkless": 0.5})], mazes.Tokenizer(7))
    forkless = [len(m.edges) < 8 for m in many.mazes(0, 1000)]
    assert 0.3 < np.mean(forkless) < 0.5  # some walks cross the whole grid


def test_no_maze_of_the_test_split_is_learned_from() -> None:
    data = source(test_share=0.5)
    seen = np.concatenate([data.mazes(step, 64).hashes for step in range(2, 30)])
    assert not set(seen) & set(mazes.generate(500, 3, split="test", test_share=0.5).hashes)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    how: dict[str, Any] = dict(steps=6, batch=8, lr=1e-2, checkpoint_every=2, progress=False)
    whole = Trainer(small(), source(), **how)
    whole.run()
    Trainer(small(), source(), directory=tmp_path, **how).run(until=4)
    rest = Trainer(small(), source(), directory=tmp_path, **how)
    assert rest.optimizer.steps == 4
    rest.run()
    for name, value in whole.model.weights.items():
        assert np.array_equal(value, rest.model.weights[name]), name
    with pytest.raises(ConfigError, match='was made with data = "mazes until 2 .* seed 0 .*this run has .*seed 1'):
        Trainer(small(), source(seed=1), directory=tmp_path, **how)  # a folder that holds another run


GROWING = [
    mazes.Stage(2, {2: 1.0}, {"rdfs": 1.0}, 1),
    mazes.Stage(4, {4: 1.0}, {"rdfs": 1.0}, 6, questions=9),
    mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0}),
]
"""The largest batches come in the middle; the first ones are small."""


def growing() -> mazes.Curriculum:
    return mazes.Curriculum(GROWING, mazes.Tokenizer(7), context=120)


def wide() -> clew.Model:
    config = mazes.hallway_config(n_layers=1, d_model=16, n_heads=2, d_mlp=32, n_ctx=128)
    return clew.Model.from_config(config, seed=0)


def test_memory_is_planned_for_the_largest_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    data, took = growing(), []
    assert data.starts() == [0, 2, 4] and source().starts() == [0, 2]
    run = Trainer(wide(), data, steps=7, batch=8, progress=False)

    def needed(lengths: Any) -> int:
        return int(gradients_for(probe.optimizer, np.array(lengths, np.int32)).scratch_bytes)

    probe = Trainer(wide(), data, steps=7, batch=8, progress=False)
    batches = [[len(ids) for ids in data.batch(step, 8).tokens] for step in range(7)]
    assert (len(batches[0]), len(batches[2])) == (3, 6)
    line = run.plan()
    most = max(len(batches[step]) for step in (0, 2, 4))  # pieces are as large as the largest stage's batch
    largest = max(needed(sorted(batches[step], reverse=True)) for step in (0, 2, 4))
    shape = f"{len(batches[2])} × {max(batches[2])}"
    assert f"activations of {shape} {largest / 1e6:.3g} MB" in line and run.micro_batch == most
    assert largest > 2 * needed(batches[0])
    room = needed([120] * 2)
    own = step_module.loss_and_gradients

    def counted(optimizer: Any, packed: Any, recompute: bool = False) -> Any:
        took.append(int(gradients_for(optimizer, packed.lengths, recompute).scratch_bytes))
        return own(optimizer, packed, recompute)

    monkeypatch.setattr("clew.train.trainer.loss_and_gradients", counted)
    run = Trainer(wide(), data, steps=7, batch=8, memory=room, progress=False)
    run.run()
    assert run.micro_batch == 2 and max(took) <= room
    alone = needed([120])
    with pytest.raises(ConfigError, match="activations of one sequence take"):  # at once, not at the second stage
        Trainer(wide(), data, steps=7, batch=8, memory=needed([max(batches[0])]) + 1, recompute=False).plan()
    took.clear()
    uneven = Sequences([[1, 2, 3]] * 4 + [[1, 2, 3] * 20] * 4, shuffle=False)  # longer ones come unannounced
    run = Trainer(wide(), uneven, steps=2, batch=4, memory=alone, progress=False)
    run.run()
    assert run.micro_batch == 4 and len(took) == 3 and max(took) <= alone


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stages_of_other_sizes_go_on_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    how: dict[str, Any] = dict(steps=7, batch=32, lr=1e-2, progress=False)
    whole = Trainer(wide(), growing(), **how)
    whole.run()
    Trainer(wide(), growing(), directory=tmp_path, **how).run(until=stop)
    rest = Trainer(wide(), growing(), directory=tmp_path, **how)
    rest.run()
    for name, value in whole.model.weights.items():
        assert np.array_equal(value, rest.model.weights[name]), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mazes.Stage(1, {21: 1.0}, {"rdfs": 1.0}), "grid = 21: a maze has 2 to 20 rows"),
        (lambda: mazes.Stage(1, {3: 1.0}, {"maze": 1.0}), "Stage: kind 'maze'; known: rdfs"),
        (lambda: mazes.Stage(1, {}, {"rdfs": 1.0}), r"Stage: grids = \{\}: a mapping to shares, which must be above 0"),
        (lambda: mazes.Stage(1, {3: 1.0}, {"rdfs": 0.0}), "Stage: kinds = .*: a mapping to shares"),
        (lambda: mazes.Stage(1, {3: 1.0}, {"rdfs": 1.0}, 0), "Stage: batch = 0, must be a whole number, at least 1"),
        (
            lambda: mazes.Stage(1, {3: 1.0}, {"rdfs": 1.0}, questions=-1),
            "Stage: questions = -1, must be a whole number",
        ),
        (lambda: mazes.questions(mazes.generate(1, 3), mazes.Tokenizer(7), 1.5), "questions: n = 1.5"),  # type: ignore[arg-type]
        (lambda: mazes.questions(mazes.generate(1, 3), mazes.Tokenizer(7), steps=0), "questions: steps = 0"),
        (lambda: mazes.questions(mazes.generate(1, 3), mazes.Tokenizer(7), context=0), "questions: context = 0"),
        (
            lambda: mazes.questions(mazes.generate(1, 3), mazes.Tokenizer(7), seed=-1),
            "seed = -1, must be a whole number",
        ),
        (lambda: mazes.questions([], mazes.Tokenizer(7)), "examples: no mazes"),
        (
            lambda: mazes.examples(mazes.generate(1, 3), mazes.Tokenizer(7), loss="maze"),
            'loss = \'maze\': "path" or "all"',
        ),
        (lambda: mazes.Curriculum(STAGES, mazes.Tokenizer(7), loss="maze"), "loss = 'maze'"),
        (lambda: mazes.Curriculum(STAGES, mazes.Tokenizer(7), context=0), "Curriculum: context = 0"),
        (lambda: mazes.Curriculum([], mazes.Tokenizer(7)), "Curriculum: stages must come in order, at least one"),
        (lambda: mazes.Curriculum(STAGES[::-1], mazes.Tokenizer(7)), "Curriculum: stages must come in order"),
        (
            lambda: mazes.Curriculum(STAGES, mazes.Tokenizer(2)),
            "Curriculum: mazes of 3 × 3, larger than the vocabulary's 2 × 2",
        ),
        (lambda: mazes.Curriculum(STAGES, mazes.Tokenizer(7), seed=-1), "seed = -1, must be a whole number"),
        (lambda: mazes.Curriculum(STAGES, mazes.Tokenizer(7), test_share=1.0), "leaves the split 'train' empty"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ---- Models that the data do not fit --------------------------------------------------------------------------------


def fit(model: clew.Model, tokenizer: mazes.Tokenizer, stages: Any = STAGES, **more: Any) -> Trainer:
    return Trainer(model, mazes.Curriculum(stages, tokenizer), steps=1, batch=2, progress=False, **more)


def test_a_trainer_compares_vocabularies() -> None:
    """Before the first step; sizes alone do not tell orders apart."""
    with pytest.raises(TokenError, match="reads 60 and writes 60 tokens; the vocabulary of 6 × 6 mazes has 47"):
        fit(small(), mazes.Tokenizer(6))
    with pytest.raises(
        TokenError, match=r"is configured for Tokenizer of 7 × 7 mazes, uniform.*not for .* 7 × 7 mazes, rasterized"
    ):
        fit(small(), mazes.Tokenizer(7, "rasterized"))
    named = small().config.replace(extra={"mazes": {"grid": 7, "order": "rasterized"}})
    with pytest.raises(TokenError, match=r'"order": "uniform"'):
        fit(clew.Model.from_config(named, seed=0), mazes.Tokenizer(7))
    for extra, order in ((named.extra, "rasterized"), ({}, "rasterized"), ({}, "uniform")):
        assert fit(clew.Model.from_config(named.replace(extra=extra), seed=0), mazes.Tokenizer(7, order)).steps == 1


def test_a_trainer_compares_positions() -> None:
    """A maze that joins 16 cells has 72 tokens at least; the model has 64 positions."""
    tok, model = mazes.Tokenizer(7), small()
    for kind in ("rdfs", "prdfs", "wilson"):
        stages = [STAGES[0], mazes.Stage(9, {3: 1.0, 4: 0.1}, {"forkless": 1.0, kind: 0.1})]
        with pytest.raises(
            TokenError, match="stage 1: a maze of 4 × 4 has 72 tokens at least; maze-hallway has 64 pos"
        ):
            fit(model, tok, stages)
    assert fit(model, tok, [mazes.Stage(9, {4: 1.0}, {"forkless": 0.5, "percolation": 0.5})]).steps == 1
    assert min(len(row) for row in tok.encode_batch(mazes.generate(2000, 4))) == 72
    exact = clew.Model.from_config(model.config.replace(n_ctx=72), seed=0)
    assert fit(exact, tok, [mazes.Stage(9, {4: 1.0}, {"rdfs": 1.0})]).steps == 1
    rotary = model.config.replace(positional_embedding_type="rotary", rotary_dim=8)
    assert fit(clew.Model.from_config(rotary, seed=0), tok, [mazes.Stage(9, {4: 1.0}, {"rdfs": 1.0})]).steps == 1


def test_questions_fill_no_more_than_the_models_positions() -> None:
    """Said before the first step, not by the first sequence that is too long."""
    tok, model = mazes.Tokenizer(7), small()
    stages = [STAGES[0], mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0}, questions=9)]
    with pytest.raises(ConfigError, match=r"stage 1 .* context = 256 tokens; maze-hallway has n_ctx = 64: give"):
        fit(model, tok, stages)
    assert Trainer(model, mazes.Curriculum(stages, tok, context=64), 1, 2, progress=False).steps == 1
    assert fit(model, tok).steps == 1  # without questions nothing is filled up
    rotary = model.config.replace(positional_embedding_type="rotary", rotary_dim=8)
    assert fit(clew.Model.from_config(rotary, seed=0), tok, stages).steps == 1


def test_a_trainer_calls_a_sources_own_check() -> None:
    class Mine:
        seen: list[clew.Model] = []

        def batch(self, step: int, size: int) -> clew.train.Examples:
            return clew.train.Examples([[1, 2, 3]] * size)

        def identity(self) -> str:
            return "mine"

        def check(self, model: clew.Model) -> None:
            self.seen.append(model)

    model = small()
    Trainer(model, Mine(), 1, 1, progress=False)
    assert Mine.seen == [model]


def test_a_run_from_before_vocabularies_were_named_goes_on(tmp_path: Path) -> None:
    """What else a configuration says changes nothing that is computed; but what both name must agree."""
    tok = mazes.Tokenizer(7)
    nameless = clew.Model.from_config(small().config.replace(extra={}), seed=0)
    fit(nameless, tok, directory=tmp_path).run()
    assert fit(small(), tok, directory=tmp_path).optimizer.steps == 1
    other = clew.Model.from_config(small().config.replace(extra={**small().config.extra, "note": 2}), seed=0)
    fit(other, tok, directory=tmp_path / "other").run()
    third = clew.Model.from_config(other.config.replace(extra={**other.config.extra, "note": 3}), seed=0)
    with pytest.raises(ConfigError, match="was made with config.extra = "):
        fit(third, tok, directory=tmp_path / "other")


# ---- The script of the bundled model --------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The training script as a module, with a small model and short stages."""
    pytest.importorskip("safetensors", reason="safetensors is not installed: the script writes with it")
    spec = importlib.util.spec_from_file_location("train_maze", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = mazes.hallway_config
    shape = dict(n_layers=1, d_model=16, n_heads=2, d_mlp=32)
    monkeypatch.setattr(module.mazes, "hallway_config", lambda **fields: config(**fields, **shape))
    monkeypatch.setattr(module, "STAGES", (mazes.Stage(4, {3: 1.0}, {"rdfs": 1.0}, batch=2),))
    monkeypatch.setattr(module, "KEPT", (0, 2, 5))
    held_out = module.held_out
    monkeypatch.setattr(module, "held_out", lambda: held_out(2))
    return module


def test_the_script_trains_goes_on_and_decays(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train.py", str(tmp_path / "run"), *arguments])
        script.main()

    run("--steps", "2")
    run("--steps", "4")
    folder = tmp_path / "run"
    assert {p.name for p in folder.glob("step-*")} >= {"step-0", "step-2", "step-000000004.safetensors"}
    kept = clew.load(folder / "step-2")
    assert mazes.tokenizer_of(kept).grid == 7
    checkpoint = folder / "step-000000004.safetensors"
    run("--decay-from", str(checkpoint), "--decay-steps", "2", "--out", str(tmp_path / "out"))
    model = clew.load(tmp_path / "out")
    assert model.config.model_name == "maze-6x6" and (folder / "decay-4-2" / "step-5").is_dir()
    curve = clew.train.checkpoint.read(folder / "decay-4-2" / "step-000000006.safetensors").curve
    assert [row[0] for row in curve.rows] == [1, 2, 3, 4, 5, 6]
    assert [row[2] for row in curve.rows[-2:]] == pytest.approx([script.RATE, script.RATE / 2])
    trained = clew.train.load_model(folder / "decay-4-2").weights["embed.W_E"]
    assert np.array_equal(model.weights["embed.W_E"], trained.astype(np.float16).astype(np.float32))
    assert '"decay_steps": 2' in (tmp_path / "out" / "training.json").read_text()
    assert "step 4" in capsys.readouterr().out


def test_the_script_goes_on_from_a_model(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: str, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["train.py", str(tmp_path / folder), *arguments])
        script.main()

    def newest(folder: Path, step: int) -> clew.train.checkpoint.Saved:
        return clew.train.checkpoint.read(folder / f"step-{step:09d}.safetensors")

    monkeypatch.setattr(script, "STAGES", (*script.STAGES, mazes.Stage(9, {2: 1.0}, {"rdfs": 1.0})))
    out, more, end = tmp_path / "out", tmp_path / "more", tmp_path / "end"
    run("run", "--steps", "50")
    decay = "--decay-from", str(tmp_path / "run" / "step-000000050.safetensors"), "--decay-steps", "2"
    run("run", *decay, "--out", str(out))
    run("more", "--from-model", str(out), "--steps", "49")
    run("more", "--from-model", str(out), "--steps", "50")
    begun = clew.load(more / "step-0")  # weights of the model, optimizer and steps from nothing
    assert np.array_equal(begun.weights["embed.W_E"], clew.load(out).weights["embed.W_E"])
    saved = newest(more, 50)
    assert saved.curve.rows[0][0] == 1 and saved.curve.rows[0][2] == pytest.approx(script.RATE / script.WARMUP)
    source = saved.state["settings"]["data"]
    assert "{2: 1.0}" in source and "{3: 1.0}" not in source and "seed 52" in source
    decay = "--decay-from", str(more / "step-000000050.safetensors"), "--decay-steps", "50"
    run("more", "--from-model", str(out), *decay, "--out", str(end))
    before, after = (json.loads((folder / "training.json").read_text()) for folder in (out, end))
    assert (after["steps"], after["constant_steps"], after["decay_steps"]) == (152, 102, 50)
    assert after["data"] == f"{before['data']}; then {source}"
    assert [row[0] for row in before["loss_curve"]] == [50]
    assert after["loss_curve"][0] == before["loss_curve"][0]
    assert [row[0] for row in after["loss_curve"]] == [50, 102, 152]
    steps = [row[0] for row in after["held_out_loss"]]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 152 and 52 in steps
    with pytest.raises(clew.LoadError, match="nowhere"):
        run("none", "--from-model", str(tmp_path / "nowhere"))
