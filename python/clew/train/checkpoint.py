"""Checkpoints of training: one safetensors file each, which takes its place whole or not at all.

A file holds the weights and the optimiser's moments as they lie in memory ("weights/…", "m/…", "v/…"), the loss curve,
and in its header, under "clew", what the rest of the state is: configuration, steps done, seeds, order of the data. It
is written beside its place, forced to the disk and renamed: a full disk or a killed process leaves the others as they
were. The files of the model's tokenizer lie beside the checkpoints, which name them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..engine import trainable_order
from ..errors import LoadError
from ..inputs import check_path
from ..loaders import TOKENIZER_FILES
from ..loaders.safetensors import SafetensorsFile, replacing, write_file
from .curve import Curve

if TYPE_CHECKING:
    from ..model import Model
    from .adamw import AdamW

Array = NDArray[Any]
VERSION = 1
_NAME = re.compile(r"step-(\d{9,})\.safetensors")
_TEMPORARY = re.compile(
    rf"\.(?:step-\d{{9,}}\.safetensors|best\.safetensors|curve\.jsonl|{'|'.join(map(re.escape, TOKENIZER_FILES))})"
    r"\.(\d+)\.tmp"
)


@dataclass
class Saved:
    """A checkpoint's contents; arrays are views of the mapped file."""

    path: Path
    state: dict[str, Any]
    """What the header says: "steps", "config", "dtype", "settings", …"""
    arrays: dict[str, Array]

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.state["steps"])

    @property
    def curve(self) -> Curve:
        """Losses so far."""
        return Curve.from_arrays(self.arrays)


def path_of(directory: Path, steps: int) -> Path:
    """Where the checkpoint of so many steps lies."""
    return directory / f"step-{steps:09d}.safetensors"


def found(directory: Path) -> list[tuple[int, Path]]:
    """(steps, path) of the checkpoints in a directory, the newest first."""
    matches = [(match, path) for path in directory.glob("step-*.safetensors") if (match := _NAME.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in matches), reverse=True)


def write(path: Path, optimizer: AdamW, curve: Curve, settings: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
    """A checkpoint of the model and its optimiser as they are now.

    settings: what a run that goes on from it must have too; schedule: what it should have.

    Raises OSError, naming the file; whatever was there is then as it was.
    """
    model = optimizer.model
    weights = optimizer.state()
    state = {
        "version": VERSION,
        "steps": optimizer.steps,
        "config": model.config.to_dict(),
        "dtype": str(model.dtype),
        "tied": "unembed.W_U" not in optimizer.names,
        "settings": dict(settings),
        "schedule": dict(schedule),
        "tokenizer": [file.name for file in model.tokenizer_files],
    }
    try:
        for file in model.tokenizer_files:  # before what names them
            _copy_changed(file, path.parent / file.name)
        write_file(path, {**weights, **curve.arrays()}, {"format": "clew training", "clew": json.dumps(state)})
        sync_directory(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"checkpoint of step {optimizer.steps}: {error.strerror}", str(path)) from error


def _copy_changed(source: Path, target: Path) -> None:
    """A file's contents under another name, written only where they are not there yet."""
    text = source.read_bytes()
    if not target.is_file() or target.read_bytes() != text:
        with replacing(target) as file:
            file.write(text)


def as_json(value: Any) -> Any:
    """A value as it comes back from a file."""
    return json.loads(json.dumps(value))


def sync_directory(directory: Path) -> None:
    """Forces names in a directory to the disk, where the system can."""
    with suppress(OSError):
        number = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read(path: str | os.PathLike[str]) -> Saved:
    """A checkpoint, checked. Raises LoadError naming the file and what is wrong with it."""
    file = SafetensorsFile(path)
    try:
        state = json.loads(file.metadata["clew"])
        if state["version"] != VERSION:
            raise LoadError(f"{path}: a checkpoint of version {state['version']!r}; supported: {VERSION}")
        complete = type(state["steps"]) is int and type(state["tied"]) is bool
        complete = complete and 0 <= state["steps"] < 2**63 and state["dtype"] in ("float32", "float64")
        complete = complete and all(isinstance(state[key], dict) for key in ("config", "settings", "schedule"))
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path}: no checkpoint of training: {error!r}") from None
    if not complete or not {"curve/steps", "curve/held_out"} <= set(file.tensors):
        raise LoadError(f"{path}: no checkpoint of training: its state is not complete")
    arrays = {name: file.raw(name) for name in file.tensors}
    for name, array in arrays.items():
        part = array[:, :1] if name == "curve/steps" else array  # losses of before may be what they are
        sound = name == "curve/held_out" or bool(np.isfinite(part).all())
        if not sound or (name.startswith("v/") and array.size and array.min() < 0):
            raise LoadError(f"{path}: damaged: {name} holds {'negative' if sound else 'NaN or infinite'} values")
    return Saved(Path(path), state, arrays)


def newest(directory: Path, notes: list[str]) -> Saved | None:
    """The newest checkpoint that can be read; why others could not goes into the notes."""
    for _, path in found(directory):
        try:
            return read(path)
        except LoadError as error:
            notes.append(str(error))
    return None


def clean(directory: Path) -> None:
    """Removes what processes left that ended while they wrote."""
    for path in directory.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            with suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # this process writes nothing now
    try:
        os.kill(process, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def copy(source: Path, target: Path) -> None:
    """A second name for a checkpoint, replacing what was there at once: a link, or a copy where there are none."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with suppress(OSError):
        temporary.unlink()
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(target.parent)


def thin(directory: Path, keep: int) -> None:
    """Removes all but the newest checkpoints; "best" is another name and stays."""
    for _, path in found(directory)[keep:]:
        with suppress(OSError):
            path.unlink()


def holds_model(place: Path) -> bool:
    """Did `Model.save` write this folder to the end? The configuration comes last."""
    return (place / "config.json").is_file()


def kept_models(directory: Path) -> dict[int, Path]:
    """Steps → the models of a training that can be loaded: folders `step-N`, and checkpoints, in order of steps. Where
    there are both, the folder."""
    out = dict(found(directory))
    for place in directory.glob("step-*"):
        number = place.name.removeprefix("step-")
        if number.isdecimal() and holds_model(place):
            out[int(number)] = place
    return dict(sorted(out.items()))


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Is it a file by a name that a training gives to its checkpoints? :func:`load_model` loads it then."""
    name = Path(path).name
    return Path(path).is_file() and (_NAME.fullmatch(name) is not None or name == "best.safetensors")


def load_model(path: str | os.PathLike[str]) -> Model:
    """The model that a checkpoint of training holds, or the newest in a directory.

    It reads text if the one that was trained did by a tokenizer with files of its own (those of GGUF and llama2.c files
    have none), and these still lie beside the checkpoint.

    A newest checkpoint that cannot be read is passed over with a warning, which names it and the one taken.

    Raises LoadError naming the file, ConfigError for what is no path.
    """
    from ..loaders import bundled
    from ..loaders.checkpoint import Checkpoint, check_files, found_files
    from ..loaders.keys import build
    from ..model import Model
    from ..tokenizer import from_directory

    check_path(path=path)
    place = Path(path)
    try:
        is_directory = place.is_dir()
    except OSError as error:  # too long
        raise LoadError(f"{os.fspath(path)!r:.80} is no path: {error.strerror}") from None
    if is_directory:
        notes: list[str] = []
        saved = newest(place, notes)
        if saved is None:
            hint = "; clew.load loads the model that it holds" if holds_model(place) else ""
            raise LoadError(f"{place}: no checkpoint of training{''.join('; ' + note for note in notes)}{hint}")
        if notes:
            warnings.warn(f"{'; '.join(notes)}; taken instead: {saved.path}", stacklevel=2)
    else:
        if not place.exists():
            hint = ": clew.load takes the names of bundled models" if os.fspath(path) in bundled() else ""
            raise LoadError(f"{place}: no such file or directory{hint}")
        saved = read(place)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.state["config"].items()}
    if unknown := set(fields) - set(ModelConfig.__dataclass_fields__):
        raise LoadError(f"{saved.path}: config: unknown fields {', '.join(sorted(unknown))}")
    config = build(str(saved.path), fields)
    weights: dict[str, Array] = {}
    for name, array in saved.arrays.items():
        if name.startswith("weights/"):
            own = name.removeprefix("weights/")
            weights[own] = array.transpose(trainable_order(own, array.ndim))
    if saved.state["tied"] and "embed.W_E" in weights:
        weights["unembed.W_U"] = weights["embed.W_E"].T
    made = Checkpoint(config, weights, np.dtype(saved.state["dtype"]))
    named = saved.state.get("tokenizer", [])  # checkpoints from before tokenizers were kept name none
    files = tuple(saved.path.parent / name for name in TOKENIZER_FILES if isinstance(named, list) and name in named)
    if missing := [file.name for file in files if not file.is_file()]:
        made.notes.append(f"{saved.path}: its tokenizer is left out: {', '.join(missing)} not beside it")
    elif files:
        there = made.tokenizer_files = found_files(files)

        def tokenizer() -> Any:
            check_files(there)
            return from_directory(saved.path.parent)

        made.tokenizer = tokenizer
    return Model(made)
