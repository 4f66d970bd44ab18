"""The loop: the same bits after any stop, whole checkpoints after kills and full disks, what is shown."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core
from clew.train import Curve, Examples, Trainer, Windows, checkpoint, fit
from support import assert_python
from training_runs import CONFIG, HELD, STREAM, same_bits, trainer

Array = Any


@pytest.fixture(scope="module")
def straight() -> Trainer:
    run = trainer()
    run.run()
    return run


def test_the_loop_is_train_step_in_order(straight: Trainer) -> None:
    """Against the steps written out: batches of the source, the schedule, micro-batches of 2 and 1."""
    model = clew.Model.from_config(CONFIG, seed=1)
    optimizer = clew.AdamW(model, lr=0, weight_decay=0.1, clip=0.5)
    source, schedule = Windows(STREAM, 12, seed=3), clew.train.cosine(1e-2, 12, 3, 1e-3)
    held = HELD.reshape(5, 12)
    rows, losses = [], [(0, model.loss(held, reduce="mean"))]
    for step in range(12):
        optimizer.lr = schedule(step)
        batch = source.batch(step, 3)
        two = model.train_step(batch.tokens[:2], batch.targets[:2], optimizer=optimizer, accumulate=True)
        one = model.train_step(batch.tokens[2:], batch.targets[2:], optimizer=optimizer)
        rows.append((step + 1, (2 * two + one) / 3, schedule(step)))
        if step % 4 == 3:
            losses.append((step + 1, model.loss(held, reduce="mean")))
    for name, array in model.weights.items():
        assert np.array_equal(array, straight.model.weights[name]), name
    assert [(r[0], pytest.approx(r[1], rel=1e-6), r[2]) for r in rows] == [r[:3] for r in straight.curve.rows]
    assert straight.curve.held_out == [(s, pytest.approx(v, rel=1e-9)) for s, v in losses]
    assert straight.curve.rows[-1][3] > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stops", [[7], [3, 4, 11], [0, 12]])
def test_resuming_gives_the_same_bits(stops: list[int], dtype: str, tmp_path: Path) -> None:
    whole = trainer(dtype=dtype)
    whole.run()
    for number, stop in enumerate([*stops, 12]):
        clew.set_num_threads(1 + number % 3)
        part = trainer(tmp_path, dtype=dtype)
        assert part.optimizer.steps == ([0, *stops][number] if (tmp_path / "curve.jsonl").exists() else 0)
        part.run(until=stop)
        assert part.optimizer.steps == stop
    same_bits(part, whole)
    assert Curve.load(tmp_path / "curve.jsonl") == whole.curve


def test_going_on_in_one_process_gives_the_same_bits(straight: Trainer) -> None:
    run = trainer()
    for until in (1, 1, 5, 12, 12):
        run.run(until=until)
    same_bits(run, straight)


def test_other_seeds_and_data_train_otherwise(straight: Trainer) -> None:
    other = trainer(seed=4)
    other.run()
    assert other.curve.rows != straight.curve.rows


def test_which_checkpoints_stay(tmp_path: Path, straight: Trainer) -> None:
    run = trainer(tmp_path, keep=2)
    run.run()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["best.safetensors", "curve.jsonl", "step-000000009.safetensors", "step-000000012.safetensors"]
    best = checkpoint.read(tmp_path / "best.safetensors")
    assert (best.steps, min(v for _, v in run.curve.held_out)) == run.curve.best
    for where in (tmp_path, tmp_path / "step-000000012.safetensors"):
        model = clew.train.load_model(where)
        assert model.config == CONFIG
        for name, array in run.model.weights.items():
            assert np.array_equal(model.weights[name], array), name
        assert np.array_equal(model.run(HELD[:12]).logits, run.model.run(HELD[:12]).logits)
    only = trainer(tmp_path / "one", keep=1, held_out=None)
    only.run()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["curve.jsonl", "step-000000012.safetensors"]


def test_snapshots_stay_whatever_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = dict(keep=1, held_out=None, snapshots=[0, 2, np.int64(5), 7])
    whole = trainer(tmp_path / "whole", **how)
    kept: dict[int, Array] = {}
    whole.callback = lambda t: kept.update({t.optimizer.steps: t.model.weights["embed.W_E"].copy()})
    whole.run()
    names = ["curve.jsonl", "step-0", "step-000000012.safetensors", "step-2", "step-5", "step-7"]
    assert sorted(p.name for p in (tmp_path / "whole").iterdir()) == names
    first = clew.Model.from_config(CONFIG, seed=1).weights["embed.W_E"]
    for step, want in ((0, first), (2, kept[2]), (5, kept[5]), (7, kept[7])):
        assert np.array_equal(clew.load(tmp_path / "whole" / f"step-{step}").weights["embed.W_E"], want)

    # ends behind a step, before its snapshot is whole; the next process goes on from the checkpoint before it, or at it
    folder, own = tmp_path / "stopped", clew.Model.save
    for error in (OSError, KeyboardInterrupt):
        run = trainer(folder, **how)

        def fails(model: clew.Model, path: Any, error: type[BaseException] = error) -> None:
            own(model, path)
            if Path(path).name in ("step-2", "step-5"):
                (Path(path) / "config.json").unlink()
                raise error

        monkeypatch.setattr(clew.Model, "save", fails)
        with pytest.raises(error):
            run.run()
        monkeypatch.setattr(clew.Model, "save", own)
        trainer(folder, **how).run(until=run.optimizer.steps + 1)
    trainer(folder, **how).run()
    for step in (0, 2, 5, 7):
        one, other = (clew.load(tmp_path / where / f"step-{step}").weights for where in ("whole", "stopped"))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    with pytest.raises(clew.ConfigError, match="a step of snapshots = -1, must be a whole number"):
        trainer(tmp_path / "x", snapshots=[-1])
    with pytest.raises(clew.ConfigError, match="snapshots = 5: a list of steps"):
        trainer(tmp_path / "x", snapshots=5)
    with pytest.raises(clew.ConfigError, match="snapshots need a directory"):
        trainer(snapshots=[1])


def test_checkpoints_of_other_layouts(tmp_path: Path) -> None:
    """One head, several key-value heads, apart unembedding, vectors: what is loaded computes the same."""
    for i, config in enumerate(
        (
            clew.ModelConfig(n_layers=1, d_model=4, n_heads=1, n_ctx=12, d_vocab=11),
            clew.ModelConfig(n_layers=1, d_model=8, n_heads=4, n_key_value_heads=2, d_head=1, n_ctx=12, d_vocab=11,
                             use_qk_norm=True, gated_mlp=True),
            clew.ModelConfig(n_layers=1, d_model=4, n_heads=2, n_ctx=12, d_in=2, d_out=1),
        )
    ):  # fmt: skip
        model = clew.Model.from_config(config)
        vectors = config.d_in is not None
        data = (np.ones((4, 5, 2)), np.ones((4, 5, 1))) if vectors else STREAM
        fit(model, data, 3, 2, directory=tmp_path / str(i), progress=False)
        inputs = np.ones((1, 5, 2)) if vectors else STREAM[:5]
        again = clew.train.load_model(tmp_path / str(i))
        assert np.array_equal(again.run(inputs).logits, model.run(inputs).logits)


def test_checkpoints_keep_the_tokenizer(tmp_path: Path) -> None:
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=12, d_vocab=1024)
    model = clew.Model.from_config(config, tokenizer=clew.load("shakespeare"))
    text = "To be, or not to be, that is the question. " * 5
    fit(model, text, 3, 2, directory=tmp_path, held_out=text, checkpoint_every=2, progress=False)
    assert (tmp_path / "tokenizer.json").is_file()
    for where in (tmp_path, tmp_path / "best.safetensors", checkpoint.found(tmp_path)[1][1]):
        again = clew.train.load_model(where)
        assert np.array_equal(again.to_tokens(text), model.to_tokens(text))
    assert np.array_equal(clew.train.load_model(tmp_path).run("To be").logits, model.run("To be").logits)
    clew.train.load_model(tmp_path).save(tmp_path / "saved")
    assert clew.load(tmp_path / "saved").run("To be").logits.shape[-1] == 1024
    assert Trainer(model, text, 4, 2, directory=tmp_path, held_out=text, progress=False).run().rows[-1][0] == 4
    # without its files, and of a model that has none in a folder where there are some
    alone = tmp_path / "alone" / "step-000000004.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "step-000000004.safetensors").read_bytes())
    moved = clew.train.load_model(alone)
    assert moved.tokenizer is None and "tokenizer.json not beside it" in moved.notes[-1]
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    fit(clew.Model.from_config(CONFIG), STREAM, 1, 2, directory=other, progress=False)
    assert clew.train.load_model(other).tokenizer is None
    with pytest.raises(clew.ConfigError, match="save: .*other holds a training's checkpoints: their tokenizer.json"):
        clew.Model.from_config(CONFIG).save(other)  # it would be loaded with the model
    model.save(tmp_path)  # its own
    assert clew.load(tmp_path).to_string(clew.load(tmp_path).to_tokens(text)) == text


# ---- Interrupted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_loses_nothing(
    when: str, tmp_path: Path, straight: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, left = _core.adamw, [5]

    def interrupted(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] or when == "after":
            own(*arguments)
        if not left[0]:
            raise KeyboardInterrupt

    run = trainer(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_core, "adamw", interrupted)
        run.run()
    done = 5 if when == "after" else 4
    assert run.optimizer.steps == done and [r[0] for r in run.curve.rows] == list(range(1, done + 1))
    again = trainer(tmp_path)  # the interrupt left a checkpoint
    assert again.optimizer.steps == done
    for part in (run, again):  # both go on to the same end
        part.run()
        for name, array in straight.optimizer.state().items():
            assert np.array_equal(array, part.optimizer.state()[name]), name
        assert part.curve.rows == straight.curve.rows


def test_real_signals_at_any_moment(tmp_path: Path) -> None:
    """SIGINT at seeded moments; the script goes on until all steps are done, in one process."""
    script = f"""
import os, random, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_loop import *
whole = trainer(steps=60, held_out=None, lr=1e-3)
whole.run()
run, clock, seen = trainer(steps=60, held_out=None, lr=1e-3), random.Random(1), 0
while run.optimizer.steps < 60:
    timer = threading.Timer(clock.uniform(0.0005, 0.02), os.kill, (os.getpid(), signal.SIGINT))
    try:
        try:
            timer.start()
            run.run()
        finally:
            timer.cancel()
            timer.join()
    except KeyboardInterrupt:
        seen += 1
for _ in range(3):  # one that is still to come
    try:
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
same_bits(run, whole)
assert seen >= 3, seen
print("fine")
"""
    assert_python(script)


KILLED = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_loop import *
def big(directory):
    config = clew.ModelConfig(n_layers=2, d_model=128, n_heads=2, n_ctx=12, d_vocab=500)
    return Trainer(clew.Model.from_config(config, seed=1), STREAM, steps=40, batch=1, context=4, lr=1e-3,
                   progress=False, directory=directory, checkpoint_every=1, keep=2, seed=2)
if __name__ == "__main__":
    run = big(sys.argv[1])
    print("begun", flush=True)
    run.run()
    print("fine", flush=True)
"""


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """SIGKILL at seeded moments of a run that mostly writes; each time the newest checkpoint loads and is resumed."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder, clock = tmp_path / "run", random.Random(7)
    environment = {**os.environ, "PYTHONPATH": str(Path(clew.__file__).parent.parent)}
    reached, torn = [], 0
    for _ in range(60):
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(clock.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        torn += any(p.name.endswith(".tmp") for p in folder.iterdir())
        files = checkpoint.found(folder)
        for steps, path in files:
            assert checkpoint.read(path).steps == steps
            clew.train.load_model(path)
        reached.append(files[0][0] if files else 0)
        assert reached == sorted(reached)
        if "fine" in rest or (len(reached) >= 8 and torn):
            break
    assert torn, "no kill fell into the writing of a checkpoint"
    assert len(reached) >= 4 and reached[-1] > 0, reached
    scope: dict[str, Any] = {"__name__": "killed"}
    exec(compile(KILLED, "killed", "exec"), scope)
    last, whole = scope["big"](folder), scope["big"](None)
    assert last.optimizer.steps == reached[-1]
    assert not any(p.name.endswith(".tmp") for p in folder.iterdir())
    last.run()
    whole.run()
    same_bits(last, whole)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails half-way."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train_loop import *
folder = Path({str(tmp_path)!r})
run = trainer(folder)
run.run(until=6)
before = {{p.name: p.read_bytes() for p in folder.iterdir()}}
size = len(before["step-000000006.safetensors"])
for part in (100, size // 2, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (part, resource.RLIM_INFINITY))
    try:
        run.run(until=9)
    except OSError as error:
        assert "checkpoint of step" in str(error) and "step-00000000" in error.filename, error
    else:
        raise AssertionError("the disk was not full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {{p.name: p.read_bytes() for p in folder.iterdir()}} == before
again = trainer(folder)
assert again.optimizer.steps == 6
again.run()
run.run()
same_bits(again, run)
print("fine")
"""
    assert_python(script)


# ---- Not finite ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_in=2, d_out=1)

    def make(rng: np.random.Generator, size: int) -> Any:
        x = rng.standard_normal((size, 4, 2))
        return x, x[..., :1] + (np.inf if bad and rng.bit_generator.seed_seq.spawn_key == (7,) else 0)  # type: ignore[attr-defined]

    def run(directory: Path | None) -> Trainer:
        return Trainer(
            clew.Model.from_config(config), make, 12, 4, directory=directory, checkpoint_every=5, progress=False
        )

    bad = True
    broken = run(tmp_path)
    with pytest.raises(clew.TrainingError) as error:
        broken.run()
    assert error.value.step == 8
    assert "step 8: the loss is inf; the weights are those of step 7" in str(error.value)
    assert "last good checkpoint" in str(error.value) and "step-000000005.safetensors" in str(error.value)
    assert broken.optimizer.steps == 7 and [r[0] for r in broken.curve.rows] == list(range(1, 8))
    bad = False
    good = run(None)
    good.run(until=7)
    same_bits(broken, good)
    assert checkpoint.found(tmp_path)[0][0] == 5
    again = run(tmp_path)
    assert again.optimizer.steps == 5
    again.run()
    good.run()
    same_bits(again, good)
    bad = True
    with pytest.raises(clew.TrainingError, match="7$"):  # without a directory there is no checkpoint to name
        run(None).run()


def test_a_held_out_loss_that_is_not_finite_stops_training() -> None:
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_in=2, d_out=1)
    x = np.ones((3, 4, 2))
    run = Trainer(
        clew.Model.from_config(config), (x, x[..., :1]), 3, 2, held_out=(x, x[..., :1] * np.nan), progress=False
    )
    with pytest.raises(clew.TrainingError, match="step 0: the held-out loss is nan; the weights are those of step 0"):
        run.run()


def exploding(directory: Path | None, at: int, **settings: Any) -> Trainer:
    """A run whose rate becomes 1e30 behind step `at`: step at + 1 breaks the weights."""

    def explode(run: Trainer) -> None:
        if run.optimizer.steps == at:
            run.schedule = clew.train.constant(1e30)

    given = dict(lr=1e-2, held_out=None, directory=directory, checkpoint_every=1, callback=explode)
    return trainer(**{**given, **settings})


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 3])
def test_broken_weights_cost_no_good_checkpoint(keep: int, every: int, tmp_path: Path) -> None:
    """The weights of step 6 are broken, which the loss of step 7 tells; step 5 is good."""
    run = exploding(tmp_path, 5, keep=keep, checkpoint_every=every)
    with pytest.raises(clew.TrainingError) as error:
        run.run()
    assert error.value.step == 7 and run.optimizer.steps == 6
    assert "step 7: the loss is" in str(error.value) and "the weights are those of step 6" in str(error.value)
    left = checkpoint.found(tmp_path)
    last = 5 if every == 1 else 3
    assert [steps for steps, _ in left] == list(range(last, 0, -every))[:keep]
    assert f"last good checkpoint: {left[0][1]}" in str(error.value)
    assert np.isfinite(clew.train.load_model(tmp_path).loss(STREAM[:12])).all()
    again = trainer(tmp_path, lr=1e-2, held_out=None, keep=keep, checkpoint_every=every)
    assert again.optimizer.steps == last
    again.run()
    whole = trainer(lr=1e-2, held_out=None)
    whole.run()
    same_bits(again, whole)
    assert len(checkpoint.found(tmp_path)) == min(keep, 12 // every)


def test_weights_that_the_last_step_breaks(tmp_path: Path) -> None:
    """No step comes that would tell: they are tried."""
    run = exploding(tmp_path, 11, keep=1, checkpoint_every=4)
    with pytest.raises(
        clew.TrainingError, match="step 12: .*; the weights are those of step 12; last .*00000008"
    ) as error:
        run.run()
    assert error.value.step == 12
    assert [steps for steps, _ in checkpoint.found(tmp_path)] == [8]


def test_broken_weights_that_an_interrupt_saved(tmp_path: Path) -> None:
    """Nothing was known of them; the run that goes on from there removes them, and the next one goes on."""

    def interrupt(run: Trainer) -> None:
        if run.optimizer.steps == 6:
            raise KeyboardInterrupt

    run = exploding(tmp_path, 5, keep=1)
    callback, before = run.callback, []
    run.callback = lambda t: (callback(t), interrupt(t))  # type: ignore[misc]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    before = [steps for steps, _ in checkpoint.found(tmp_path)]
    assert before == [6, 5]
    with pytest.raises(clew.TrainingError, match="step 7: .*last good checkpoint: .*step-000000005"):
        trainer(tmp_path, lr=1e-2, held_out=None).run()
    assert trainer(tmp_path, lr=1e-2, held_out=None).optimizer.steps == 5


def test_data_that_are_broken_cost_no_checkpoint(tmp_path: Path) -> None:
    """The weights are good where what they were trained on last still has a finite loss."""
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=4, d_in=2, d_out=1)

    def make(rng: np.random.Generator, size: int) -> Any:
        x = rng.standard_normal((size, 4, 2))
        return x, x[..., :1] + (np.nan if rng.bit_generator.seed_seq.spawn_key == (5,) else 0)  # type: ignore[attr-defined]

    run = Trainer(
        clew.Model.from_config(config), make, 12, 4, directory=tmp_path, checkpoint_every=5, keep=1, progress=False
    )
    with pytest.raises(clew.TrainingError, match="step 6: .*last good checkpoint: .*step-000000005"):
        run.run()
    assert checkpoint.found(tmp_path)[0][0] == 5


def test_flags_of_numpy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, resume=np.True_, recompute=np.True_, progress=np.False_, steps=1)
    run.run()
    assert capsys.readouterr().out == ""
    with pytest.raises(clew.ConfigError, match="resume is False"):
        trainer(tmp_path, resume=np.False_)
    with pytest.raises(clew.ConfigError, match="resume = 1: True or False"):
        trainer(tmp_path, resume=1)


# ---- Memory, looks ---------------------------------------------------------------------------------------------


def test_memory_is_planned_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(micro_batch=None, progress="lines", steps=2)
    line = run.plan()
    assert run.micro_batch == 3 and run.optimizer.steps == 0
    weights = run.model.n_params * 4 / 1e6
    assert f"{run.model.n_params:,} parameters: weights {weights:.3g} MB, gradients {weights:.3g} MB" in line
    assert f"moments {2 * weights:.3g} MB, activations of 3 × 12" in line
    run.run()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == line and shown[1].startswith("step 0: held-out loss ")
    assert any(text.startswith("step 2/2: loss ") and "tokens/s" in text for text in shown)


def test_memory_sets_the_micro_batch(straight: Trainer) -> None:
    from clew.train.step import gradients_for

    probe = trainer()
    sizes = {n: gradients_for(probe.optimizer, np.full(n, 12, np.int32)).scratch_bytes for n in (1, 2, 3)}
    assert sizes[1] < sizes[2] < sizes[3]
    run = trainer(micro_batch=None, memory=sizes[2])
    run.run()
    assert run.micro_batch == 2
    same_bits(run, straight)
    assert trainer(micro_batch=None, memory=sizes[3]).plan() and trainer(micro_batch=None, memory=sizes[1]).plan()
    with pytest.raises(clew.ConfigError, match=f"memory = {sizes[1] - 1}: activations of one sequence take {sizes[1]}"):
        trainer(memory=sizes[1] - 1, recompute=False).run()


def test_training_inside_edited_is_refused() -> None:
    run = trainer(steps=2)
    with run.model.edited(clew.edit.zero("z")), pytest.raises(clew.ConfigError, match=r"inside model\.edited"):
        run.step()
    assert run.optimizer.steps == 0


def test_recomputation_in_the_trainer(straight: Trainer) -> None:
    from clew.train.step import gradients_for

    probe = trainer()
    one = np.full(1, 12, np.int32)
    kept, again = (gradients_for(probe.optimizer, one, recompute).scratch_bytes for recompute in (False, True))
    assert again < kept
    run = trainer(recompute=True)
    run.run()
    same_bits(run, straight)
    run = trainer(micro_batch=None, memory=kept - 1)
    assert "recomputed" in run.plan() and run.recompute
    assert "recomputed" not in trainer(micro_batch=None, memory=kept).plan()
    assert "recomputed" not in straight.plan()
    with pytest.raises(clew.ConfigError, match=f"memory = 1: activations of one sequence take {again}"):
        trainer(memory=1).plan()
    with pytest.raises(clew.ConfigError, match="recompute = 3: True, False or None"):
        trainer(recompute=3)


def test_what_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(progress=False, steps=2).run()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    trainer(progress=True, steps=2).run()
    assert "step 2/2: loss" in capsys.readouterr().out
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    trainer(progress=True, steps=2).run()
    shown = capsys.readouterr()
    assert "2/2" in shown.err and "tokens/s" in shown.err and "held-out loss" in shown.out


def test_a_callback_sees_every_step() -> None:
    seen: list[tuple[int, float]] = []
    run = trainer(steps=4, callback=lambda t: seen.append((t.optimizer.steps, t.curve.losses[-1])))
    run.run()
    assert seen == [(r[0], r[1]) for r in run.curve.rows] and len(seen) == 4


def test_learning_shows_on_held_out_data() -> None:
    """A stream whose next token follows from the last: held-out loss falls from ln 11 to almost 0."""
    stream = np.cumsum(np.full(500, 3)) % 11
    model = clew.Model.from_config(CONFIG, seed=0)
    curve = fit(model, stream[:400], 60, 8, lr=1e-2, held_out=stream[400:], eval_every=20, progress=False)
    assert [step for step, _ in curve.held_out] == [0, 20, 40, 60]
    assert curve.held_out[0][1] > 2.3 and curve.held_out[-1][1] < 0.05
    assert curve.best == curve.held_out[-1]


def test_a_custom_source() -> None:
    class Same:
        def batch(self, step: int, size: int) -> Examples:
            return Examples(np.full((size, 4), step % 11))

        def identity(self) -> str:
            return "the step's number"

    run = trainer(data=Same(), steps=2)
    assert run.run().rows[-1][0] == 2
