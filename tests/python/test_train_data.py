"""Schedules, the order of data, loss curves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.train import Curve, Examples, Generated, Schedule, Sequences, Windows, constant, cosine, linear
from clew.train.data import as_held_out, as_source

CONFIG = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=6, d_vocab=10)
VECTORS = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=6, d_in=2, d_out=1)


# ---- Schedules -------------------------------------------------------------------------------------------------


def test_closed_forms_of_schedules() -> None:
    assert [constant(0.5)(s) for s in (0, 1, 999)] == [0.5] * 3
    assert [constant(0.5, warmup=2)(s) for s in (0, 1, 2)] == [0.25, 0.5, 0.5]
    falling = linear(1.0, steps=10, warmup=4, floor=0.25)
    assert [falling(s) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [falling(s) for s in (4, 7, 10, 11, 500)] == pytest.approx([1.0, 0.625, 0.25, 0.25, 0.25])
    wave = cosine(2.0, steps=8, floor=1.0)
    assert [wave(s) for s in range(9)] == pytest.approx([1.5 + 0.5 * math.cos(math.pi * s / 8) for s in range(9)])
    assert wave(20) == 1.0
    for schedule in (falling, wave):
        rates = [schedule(s) for s in range(schedule.warmup, 30)]
        assert rates == sorted(rates, reverse=True)
    assert Schedule(**wave.to_dict()) == wave
    assert json.dumps(linear(np.float32(0.5), np.int64(9), warmup=np.int32(2)).to_dict()) == json.dumps(
        linear(0.5, 9, 2).to_dict()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(kind="step", rate=1.0), "kind = 'step'; known: constant, linear, cosine"),
        (dict(kind="constant", rate=-1.0), "rate = -1.0"),
        (dict(kind="constant", rate=math.inf), "rate = inf"),
        (dict(kind="constant", rate="1"), "rate = '1'"),
        (dict(kind="linear", rate=1.0, steps=3, warmup=3), "steps = 3 must be more than warmup = 3"),
        (dict(kind="cosine", rate=1.0, steps=2.5), "steps = 2.5"),
        (dict(kind="cosine", rate=1.0, steps=5, warmup=-1), "warmup = -1"),
        (dict(kind="cosine", rate=1.0, steps=5, floor=2.0), "floor = 2.0 lies above rate = 1.0"),
    ],
)
def test_schedules_that_cannot_be(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(clew.ConfigError, match=words):
        Schedule(**arguments)


# ---- Order of the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "shuffle"])
def test_windows_are_of_the_stream_and_of_the_seed(order: str) -> None:
    stream = np.arange(1000, 1103)
    source, same, other = (Windows(stream, 7, seed, order) for seed in (5, 5, 6))
    batches = [source.batch(step, 4) for step in range(40)]
    for step in (39, 0, 17):  # no state: any order of asking
        assert np.array_equal(same.batch(step, 4).tokens, batches[step].tokens)
    assert any(not np.array_equal(other.batch(step, 4).tokens, batches[step].tokens) for step in range(3))
    for batch in batches:
        assert batch.tokens.shape == batch.targets.shape == (4, 7)
        assert (np.diff(batch.tokens, axis=1) == 1).all() and np.array_equal(batch.targets, batch.tokens + 1)
    starts = np.concatenate([b.tokens[:, 0] for b in batches]) - 1000
    assert starts.min() >= 0 and starts.max() <= 103 - 8
    assert len(set(starts.tolist())) > 60
    if order == "random":
        assert {0, 103 - 8} <= set(np.concatenate([source.batch(s, 9).tokens[:, 0] for s in range(99)]) - 1000)


def test_an_epoch_of_windows_holds_each_once() -> None:
    source = Windows(np.arange(75), 5, 3, "shuffle")
    starts = np.concatenate([source.batch(step, 6).tokens[:, 0] for step in range(7)])
    assert source.n_windows == 14
    epochs = starts.reshape(3, 14)
    for epoch in epochs:
        assert (np.diff(np.sort(epoch)) == 5).all()
    assert len({int(e.min()) for e in epochs}) > 1 and not np.array_equal(
        epochs[0] - epochs[0].min(), epochs[1] - epochs[1].min()
    )
    assert Windows(np.arange(6), 5, 0, "shuffle").batch(3, 2).tokens.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_sequences_come_once_in_an_epoch() -> None:
    tokens = [[i, i + 1, i + 2][: 2 + i % 2] for i in range(10)]
    targets, mask = [[0] * len(t) for t in tokens], np.arange(10)
    source = Sequences(tokens, targets, mask, seed=1)
    assert len(source) == 10
    batches = [source.batch(step, 4) for step in range(5)]
    order = [t[0] for b in batches for t in b.tokens]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:] and order[:10] != list(range(10))
    assert [m for b in batches for m in b.loss_mask] == order  # parts stay together
    assert all(len(t) == len(g) for b in batches for t, g in zip(b.tokens, b.targets, strict=True))
    assert [t[0] for t in Sequences(tokens, shuffle=False).batch(2, 4).tokens] == [8, 9, 0, 1]
    array = np.arange(12).reshape(6, 2)
    assert Sequences(array, seed=0).batch(0, 6).tokens.shape == (6, 2)


def test_generated_batches() -> None:
    def make(rng: np.random.Generator, size: int) -> Any:
        return rng.integers(0, 9, (size, 3)), rng.integers(0, 9, (size, 3))

    source = Generated(make, seed=2)
    one, two = source.batch(4, 5), source.batch(4, 5)
    assert np.array_equal(one.tokens, two.tokens) and np.array_equal(one.targets, two.targets)
    assert not np.array_equal(source.batch(5, 5).tokens, one.tokens)
    assert Generated(lambda rng, n: Examples([[1, 2]] * n)).batch(0, 3).tokens == [[1, 2]] * 3
    assert Generated(lambda rng, n: [[1, 2]] * n).batch(0, 2).targets is None


def test_what_data_are_taken_for() -> None:
    model, vectors = clew.Model.from_config(CONFIG), clew.Model.from_config(VECTORS)
    stream = as_source([1, 2, 3, 4, 5, 6, 7, 8], model, None, 0)
    assert isinstance(stream, Windows) and stream.context == 6
    assert isinstance(as_source(np.arange(9), model, 4, 0), Windows)
    for data in ([[1, 2], [3, 4, 5]], np.zeros((4, 5), int), ([[1, 2]], [[2, 3]]), Examples([[1, 2]])):
        assert isinstance(as_source(data, model, None, 0), Sequences)
    assert isinstance(as_source((np.zeros((3, 4, 2)), np.zeros((3, 4, 1))), vectors, None, 0), Sequences)
    assert isinstance(as_source(lambda rng, n: None, model, None, 0), Generated)
    assert as_source(stream, model, None, 0) is stream
    held = as_held_out(np.arange(20) % 10, model, None)
    assert held.tokens.tolist() == (np.arange(18) % 10).reshape(3, 6).tolist() and held.targets is None
    assert as_held_out([1, 2, 3], model, None).tokens.tolist() == [[1, 2, 3]]
    assert as_held_out(([[1]], [[2]]), model, None).targets == [[2]]


def test_text_becomes_a_stream() -> None:
    pytest.importorskip("tokenizers")
    model, text = clew.load("shakespeare"), "Enough! no more; 'tis not so sweet now as it was before."
    source = as_source(text, model, 5, 0)
    assert isinstance(source, Windows) and source.stream.tolist() == model._encode(text)
    ids = model._encode(text)
    assert as_held_out(text, model, 4).tokens.tolist() == [ids[i : i + 4] for i in range(0, len(ids) - 3, 4)]


def test_the_path_of_a_file_is_no_text(tmp_path: Path) -> None:
    model = clew.Model.from_config(CONFIG)
    model._encode = lambda text: [1] * len(text)  # type: ignore[method-assign]
    file = tmp_path / "text.txt"
    file.write_text("some text")
    for taken in (lambda text: as_source(text, model, 3, 0), lambda text: as_held_out(text, model, 3)):
        with pytest.raises(
            clew.ConfigError, match=r"text\.txt' is the path of a file; a text itself is expected: read"
        ):
            taken(str(file))
        for text in (str(tmp_path / "absent"), "x" * 10_000, "a\0b of"):
            taken(text)


def test_mazes_are_no_tokens() -> None:
    model, ms = clew.Model.from_config(CONFIG), clew.mazes.generate(3, 2)
    for data in (ms, list(ms), ms[0]):
        for taken in (lambda data: as_source(data, model, None, 0), lambda data: as_held_out(data, model, None)):
            with pytest.raises(clew.ShapeError, match=r"clew\.mazes\.examples\(mazes, tokenizer\) .*mazes\.Curriculum"):
                taken(data)


def test_identity_tells_data_and_order_apart() -> None:
    stream = np.arange(50) % 10
    names = {
        Windows(stream, 5).identity(), Windows(stream, 6).identity(), Windows(stream, 5, 1).identity(),
        Windows(stream, 5, order="shuffle").identity(), Windows(stream[1:], 5).identity(),
        Sequences([[1, 2], [3]]).identity(), Sequences([[1], [2, 3]]).identity(),
        Sequences([[1, 2], [3]], seed=1).identity(), Sequences([[1, 2], [3]], [[1, 2], [3]]).identity(),
        Generated(print).identity(), Generated(print, 1).identity(),
    }  # fmt: skip
    assert len(names) == 11
    assert Windows(stream.copy(), 5).identity() == Windows(stream, 5).identity()


def test_data_that_cannot_be() -> None:
    model = clew.Model.from_config(CONFIG)
    for build, error, words in (
        (lambda: Windows(np.zeros((2, 9), int), 3), clew.ShapeError, r"not int64 \[2, 9\]"),
        (lambda: Windows([0.5] * 9, 3), clew.ShapeError, "float64"),
        (lambda: Windows(range(5), 5), clew.TokenError, "context = 5 in a stream of 5 tokens"),
        (lambda: Windows(range(5), 0), clew.TokenError, "context = 0"),
        (lambda: Windows(range(9), 3, -1), clew.ConfigError, "seed = -1"),
        (lambda: Windows(range(9), 3, 0, "sorted"), clew.ConfigError, "order = 'sorted'"),
        (lambda: Sequences([]), clew.ShapeError, "at least one sequence"),
        (lambda: Sequences("text"), clew.ShapeError, "list or an array"),
        (lambda: Sequences([[1], [2]], [[1]]), clew.ShapeError, "targets of 1 sequences, tokens of 2"),
        (lambda: as_held_out([3], model, None), clew.TokenError, "windows of 1 tokens"),
        (lambda: as_source("text", model, None, 0), clew.TokenError, "no tokenizer"),
        (lambda: as_source([], model, None, 0), clew.ShapeError, "at least one sequence"),
        (lambda: as_source(5, model, None, 0), clew.ShapeError, "data to train on: int"),
    ):
        with pytest.raises(error, match=words):
            build()


# ---- Curves ----------------------------------------------------------------------------------------------------


def test_a_curve_comes_back_from_its_file(tmp_path: Path) -> None:
    curve = Curve([(1, 0.1 + 0.2, 1e-3, 2.5), (2, 1 / 3, 1e-3, 0.5)], [(0, 2.0), (2, 1.5)])
    path = tmp_path / "curve.jsonl"
    curve.save(path)
    assert Curve.load(path) == curve
    lines = path.read_text().splitlines()
    assert lines[0] == '{"step": 0, "held_out": 2.0}' and lines[-1] == '{"step": 2, "held_out": 1.5}'
    assert Curve.from_arrays(curve.arrays()) == curve and Curve.from_arrays(Curve().arrays()) == Curve()
    assert curve.best == (2, 1.5) and Curve().best is None
    curve.cut(1)
    assert curve == Curve([(1, 0.1 + 0.2, 1e-3, 2.5)], [(0, 2.0)])
    path.write_text(lines[0] + '\n{"step": 1}\n')
    with pytest.raises(clew.LoadError, match="line 2 is none of a loss curve"):
        Curve.load(path)
    with pytest.raises(clew.LoadError, match="nothing.jsonl"):
        Curve.load(tmp_path / "nothing.jsonl")


def test_a_curve_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    from clew.plot import loss_curve

    rows = [(i + 1, 3.0 - i / 100, 1e-3, 1.0) for i in range(100)]
    figure = Curve(rows, [(0, 3.0), (100, 2.1)]).plot(smooth=10)
    axes = figure.axes[0]
    batch, mean, held = axes.lines
    np.testing.assert_allclose(batch.get_ydata(), [r[1] for r in rows])
    np.testing.assert_allclose(mean.get_xdata(), np.arange(10, 101))
    np.testing.assert_allclose(mean.get_ydata(), [np.mean([r[1] for r in rows[i - 10 : i]]) for i in range(10, 101)])
    np.testing.assert_allclose(held.get_xydata(), [(0, 3.0), (100, 2.1)])
    assert axes.get_xlabel() == "step" and axes.get_ylabel() == "loss"
    assert len(loss_curve(Curve(rows[:1])).axes[0].lines) == 1
    with pytest.raises(clew.ShapeError, match="holds no step"):
        loss_curve(Curve())
    with pytest.raises(clew.ShapeError, match="smooth = 0"):
        loss_curve(Curve(rows), smooth=0)
