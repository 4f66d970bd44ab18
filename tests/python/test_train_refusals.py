"""What training refuses or tells of: settings, folders, checkpoints of other runs and damaged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.loaders.safetensors import SafetensorsFile, write_file
from clew.train import Trainer, fit
from training_runs import CONFIG, HELD, STREAM, trainer


def test_a_checkpoint_that_does_not_tell_what_its_run_began_with(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=3)
    path = tmp_path / "step-000000003.safetensors"
    file = SafetensorsFile(path)
    state = json.loads(file.metadata["clew"])
    del state["settings"]["weights"]
    arrays = {name: np.array(file.raw(name)) for name in file.tensors}
    write_file(path, arrays, {**file.metadata, "clew": json.dumps(state)})
    for _ in range(2):  # nor does one that the run writes later
        again = trainer(tmp_path, model=clew.Model.from_config(CONFIG, seed=2))
        assert again.notes == []
        again.run(until=6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(steps=-1), "steps = -1"),
        (dict(batch=0), "batch = 0"),
        (dict(batch=2.5), "batch = 2.5"),
        (dict(micro_batch=0), "micro_batch = 0"),
        (dict(memory=0), "memory = 0"),
        (dict(eval_every=0), "eval_every = 0"),
        (dict(eval_batch=0), "eval_batch = 0"),
        (dict(checkpoint_every=0), "checkpoint_every = 0"),
        (dict(keep=0), "keep = 0"),
        (dict(context=0), "context = 0"),
        (dict(seed=-1), "seed = -1"),
        (dict(progress="bar"), "progress = 'bar'"),
        (dict(lr=-1.0), "rate = -1.0"),
        (dict(clip=-1.0), "clip = -1.0"),
        (dict(data=lambda rng, size: []), "the data gave"),
        (dict(snapshots=[99], directory="unused"), "snapshots of step 99, training ends at 12"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(clew.ConfigError, match=words):
        trainer(**settings).run()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", "a", "Trainer: steps = 'a', must be a whole number, at least 0"),
        ("batch", "a", "Trainer: batch = 'a', must be a whole number, at least 1"),
        ("batch", 0, "Trainer: batch = 0, must be"),
        ("batch", None, "Trainer: batch = None, must be"),
        ("micro_batch", 0, "Trainer: micro_batch = 0, must be"),
        ("memory", "a", "Trainer: memory = 'a', must be"),
        ("eval_every", 0, "Trainer: eval_every = 0, must be"),
        ("eval_batch", 0, "Trainer: eval_batch = 0, must be"),
        ("checkpoint_every", 0, "Trainer: checkpoint_every = 0, must be"),
        ("keep", 0, "Trainer: keep = 0, must be"),
        ("recompute", "a", "Trainer: recompute = 'a': True, False or None"),
        ("snapshots", 5, "Trainer: snapshots = 5: a list of steps"),
        ("snapshots", [-1], "Trainer: a step of snapshots = -1"),
        ("callback", 5, "Trainer: callback = 5 cannot be called"),
        ("schedule", lambda step: np.nan, "Schedule: rate = <function .* is no number"),
        ("schedule", np.nan, "Schedule: rate = nan: must be a finite number"),
    ],
)
def test_settings_that_a_callback_sets_badly(name: str, value: Any, words: str) -> None:
    run = trainer(callback=lambda run: setattr(run, name, value))
    before = getattr(run, name)
    with pytest.raises(clew.ConfigError, match=words):
        run.run()
    assert run.optimizer.steps == 1 and getattr(run, name) is before


def test_settings_that_a_callback_sets_well() -> None:
    def change(run: Trainer) -> None:
        run.batch, run.micro_batch, run.schedule = np.int64(5), None, 1e-3  # type: ignore[assignment]

    run = trainer(callback=change)
    run.run(until=3)
    assert run.schedule == clew.train.constant(1e-3) and [row[2] for row in run.curve.rows[1:]] == [1e-3, 1e-3]
    assert type(run.batch) is int and run.batch == 5 and run._tokens == 5 * CONFIG.n_ctx


@pytest.mark.parametrize("name", ["best.safetensors", "curve.jsonl", "step-000000003.safetensors"])
def test_folders_in_the_place_of_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(clew.ConfigError, match=f"{name} is a folder, where training writes a file"):
        trainer(tmp_path)


def test_a_file_in_the_place_of_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "step-5").write_text("a note")
    with pytest.raises(clew.ConfigError, match="step-5 is a file, not a folder"):
        trainer(tmp_path, snapshots=[5])
    trainer(tmp_path, snapshots=[6])


def test_a_loss_curve_that_is_none_is_noted(tmp_path: Path) -> None:
    place = tmp_path / "curve.jsonl"
    place.write_text("garbage\n")
    run = trainer(tmp_path)
    assert len(run.notes) == 1 and "curve.jsonl: line 1 is none of a loss curve" in run.notes[0]
    run.run(until=3)
    assert len(clew.train.Curve.load(place).rows) == 3 and not trainer(tmp_path).notes
    place.write_bytes(b"\xff")
    (note,) = trainer(tmp_path).notes
    assert "curve.jsonl: " in note and note.endswith("the first save replaces it")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=3)

    def refused(words: str, **settings: Any) -> None:
        with pytest.raises(clew.ConfigError, match=words):
            trainer(tmp_path, **settings)

    refused("batch = 3, this run has 4", batch=4)
    refused("data = 'windows of 12 random seed 3 .*', this run has 'windows of 12 random seed 4", seed=4)
    refused("data = ", data=STREAM[1:])
    refused("weight_decay = 0.1, this run has 0.2", weight_decay=0.2)
    refused("clip = 0.5, this run has None", clip=None)
    refused("decays = ", decay=[])
    refused("dtype = 'float32', this run has 'float64'", dtype="float64")
    refused("resume is False", resume=False)
    with pytest.raises(clew.ConfigError, match="config.n_layers = 2, this run has 1"):
        Trainer(clew.Model.from_config(CONFIG.replace(n_layers=1)), STREAM, 3, 3, directory=tmp_path)


def test_a_checkpoint_from_before_a_field_came_into_being(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clew.ModelConfig.to_dict
    with monkeypatch.context() as older:
        older.setattr(clew.ModelConfig, "to_dict", lambda c: {k: v for k, v in whole(c).items() if k != "exclude_last"})
        trainer(tmp_path).run(until=3)
    assert trainer(tmp_path).optimizer.steps == 3  # what was not there is the default
    with monkeypatch.context() as other:
        other.setattr(clew.ModelConfig, "to_dict", lambda c: {**whole(c), "exclude_last": True})
        with pytest.raises(clew.ConfigError, match="made with config.exclude_last = False, this run has True"):
            trainer(tmp_path)


def test_other_held_out_data_are_noted(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=6)
    assert trainer(tmp_path).notes == []
    (note,) = trainer(tmp_path, held_out=HELD[::-1]).notes
    assert "step-000000006.safetensors was made with other held-out data: losses up to step 6" in note


def test_other_weights_than_those_a_run_began_with_are_noted(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    first.run(until=6)
    assert trainer(tmp_path).notes == [], "the weights that it began with"
    assert trainer(tmp_path, model=first.model).notes == [], "those that it has reached"
    other = clew.Model.from_config(CONFIG, seed=2)
    (note,) = trainer(tmp_path, model=other).notes
    assert "step-000000006.safetensors is of a run that began with other weights than this model had" in note
    assert "replaced by its own of step 6" in note
    trainer(tmp_path).run(until=9)
    assert trainer(tmp_path).notes == [], "it still knows what it began with"
    assert len(trainer(tmp_path, model=clew.Model.from_config(CONFIG, seed=2)).notes) == 1
    with pytest.warns(UserWarning, match="began with other weights"):
        given = dict(batch=3, lr=1e-2, seed=3, directory=tmp_path / "fit", checkpoint_every=3, progress=False)
        fit(clew.Model.from_config(CONFIG, seed=1), STREAM, 3, **given)
        fit(clew.Model.from_config(CONFIG, seed=2), STREAM, 4, **given)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(checkpoint_every=2), "checkpoint_every has no effect without directory"),
        (dict(keep=1), "keep has no effect without directory"),
        (dict(resume=False), "resume has no effect without directory"),
        (dict(eval_every=2), "eval_every has no effect without held_out"),
        (dict(eval_batch=2, held_out=None), "eval_batch has no effect without held_out"),
        (dict(held_out=lambda rng, n: []), "held_out: function, expected text, token ids or sequences$"),
    ],
)
def test_settings_without_effect(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(clew.Error, match=words):
        fit(clew.Model.from_config(CONFIG), STREAM, 1, 1, progress=False, **settings)


def test_another_schedule_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path).run(until=3)
    run = trainer(tmp_path, lr=0.5, progress="lines")
    run.run(until=4)
    assert "step-000000003.safetensors was made with another schedule" in capsys.readouterr().out
    assert [row[2] for row in run.curve.rows[-2:]] == [pytest.approx(1e-2), 0.5]
    assert len(run.notes) == 1  # what was shown is still there
    assert not trainer(tmp_path, lr=0.5).notes


def test_fit_tells_what_resuming_found(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    def again(lr: float, **settings: Any) -> None:
        fit(clew.Model.from_config(CONFIG, seed=1), STREAM, 2, 3, lr=lr, directory=tmp_path, **settings)

    again(0.1, progress=False)
    assert not recwarn
    with pytest.warns(UserWarning, match="step-000000002.* was made with another schedule.*: nothing is left to train"):
        again(0.2, progress=False)


def test_a_directory_that_is_further_on_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path).run(until=4)
    said = "step-000000004.safetensors is at step 4 already: nothing to train until 2"
    assert not trainer(tmp_path, steps=4, lr=clew.train.cosine(1e-2, 12, 3, 1e-3)).notes
    run = trainer(tmp_path, steps=2, progress="lines")
    assert len(run.notes) == 1 and said in run.notes[0]
    run.run()
    assert run.optimizer.steps == 4 and said in capsys.readouterr().out


def test_broken_checkpoints_are_passed_over_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, keep=3).run(until=9)
    (tmp_path / "best.safetensors").unlink()
    newest = tmp_path / "step-000000009.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.raises(clew.LoadError, match="step-000000009"):
        clew.train.load_model(newest)
    with pytest.warns(UserWarning, match=r"step-000000009\.safetensors.*taken instead: .*step-000000008\.safetensors"):
        model = clew.train.load_model(tmp_path)
    run = trainer(tmp_path, progress="lines")
    assert run.optimizer.steps == 8
    assert np.array_equal(model.weights["embed.W_E"], run.model.weights["embed.W_E"])
    run.run(until=9)
    assert "step-000000009.safetensors" in capsys.readouterr().out
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"no checkpoint")
    with pytest.raises(clew.ConfigError, match="no checkpoint of .* can be read: .*step-000000009"):
        trainer(tmp_path)
    with pytest.raises(clew.LoadError, match="no checkpoint of training; .*step-00000000"):
        clew.train.load_model(tmp_path)
    clew.Model.from_config(CONFIG).save(tmp_path / "model")
    with pytest.raises(clew.LoadError, match="no checkpoint of training: KeyError"):
        clew.train.load_model(tmp_path / "model" / "model.safetensors")
    with pytest.raises(clew.LoadError, match="no checkpoint of training"):
        clew.train.load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("v/embed.W_E", -1.0, "v/embed.W_E holds negative values"),
        ("m/embed.W_E", np.nan, "m/embed.W_E holds NaN or infinite values"),
        ("weights/embed.W_E", np.inf, "weights/embed.W_E holds NaN or infinite values"),
        ("curve/steps", np.nan, "curve/steps holds NaN or infinite values"),
    ],
)
def test_damaged_values_in_a_checkpoint(tensor: str, value: float, message: str, tmp_path: Path) -> None:
    """They name the file, and training goes on from the one before."""
    trainer(tmp_path, checkpoint_every=2, held_out=None).run(until=4)
    last = tmp_path / "step-000000004.safetensors"
    file = SafetensorsFile(last)
    arrays = {name: np.array(file.raw(name)) for name in file.tensors}
    metadata = dict(file.metadata)
    arrays[tensor].flat[0] = value
    write_file(last, arrays, metadata)
    with pytest.raises(clew.LoadError, match=f"step-000000004.safetensors: damaged: {message}"):
        clew.train.load_model(last)
    again = trainer(tmp_path, checkpoint_every=2, held_out=None)
    assert again.optimizer.steps == 2 and any(message in note for note in again.notes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1),
        ("steps", 10**30),
        ("steps", True),
        ("tied", "no"),
        ("tied", None),
        ("dtype", "float16"),
        ("dtype", 4),
    ],
)
def test_damaged_state_of_a_checkpoint(key: str, value: Any, tmp_path: Path) -> None:
    """Another value than any that is written, or None: the key is missing."""
    trainer(tmp_path, checkpoint_every=2, held_out=None).run(until=4)
    last = tmp_path / "step-000000004.safetensors"
    file = SafetensorsFile(last)
    state = json.loads(file.metadata["clew"])
    if value is None:
        del state[key]
    else:
        state[key] = value
    arrays = {name: np.array(file.raw(name)) for name in file.tensors}
    write_file(last, arrays, {**file.metadata, "clew": json.dumps(state)})
    with pytest.raises(clew.LoadError, match=r"step-000000004\.safetensors: no checkpoint of training"):
        clew.train.load_model(last)
    again = trainer(tmp_path, checkpoint_every=2, held_out=None)
    assert again.optimizer.steps == 2 and any("step-000000004" in note for note in again.notes)


def test_each_loader_points_to_the_other(tmp_path: Path) -> None:
    trainer(tmp_path, snapshots=[2], held_out=None).run(until=2)
    for place in (tmp_path, tmp_path / "step-000000002.safetensors"):
        with pytest.raises(
            clew.LoadError, match=r"no config\.json.*; clew\.train\.load_model reads a training's check"
        ):
            clew.load(place)
    with pytest.raises(clew.LoadError, match=r"step-2: no checkpoint of training; clew\.load loads the model"):
        clew.train.load_model(tmp_path / "step-2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(clew.LoadError, match=r"no config\.json$"):
        clew.load(tmp_path / "empty")
    with pytest.raises(clew.LoadError, match="no checkpoint of training$"):
        clew.train.load_model(tmp_path / "empty")
    with pytest.raises(
        clew.LoadError, match=r"no such file or directory: clew\.load takes the names of bundled models"
    ):
        clew.train.load_model(clew.bundled()[0])
    with pytest.raises(clew.LoadError, match="absent: no such file or directory$"):
        clew.train.load_model(tmp_path / "absent")


def test_what_other_processes_left_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = tmp_path / f".step-000000005.safetensors.{process.pid}.tmp"
    alive, other = tmp_path / f".step-000000005.safetensors.{os.getppid()}.tmp", tmp_path / ".notes.7.tmp"
    for path in (dead, alive, other):
        path.write_bytes(b"half")
    trainer(tmp_path)
    assert not dead.exists() and alive.exists() and other.exists()
