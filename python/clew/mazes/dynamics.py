"""Does a model come to solve mazes when the maze comes to be readable in it? (arXiv:2312.02566, Fig. 10)"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descent.steps import spearman
from ..errors import ConfigError, LoadError
from ..experiment import write
from ..inputs import check_path
from ..model import Model, load
from ..train.checkpoint import is_checkpoint, kept_models, load_model
from .checks import head_name, whole_number
from .maze import Maze, Mazes
from .snapshot import FIELDS, Snapshot, about_of, read, restored, snapshot

Array = NDArray[Any]

PAPER_DYNAMICS = {"accuracy": (0.61, 0.955), "exact": (0.1, 0.88)}
"""Read off the paper's Fig. 10, jirpy: first and last checkpoint (probes begin at .55 to .67)."""


@dataclass(frozen=True)
class Dynamics:
    """Snapshots of a model over its training; made by :func:`over_training`. `dynamics["exact"]`: a number of each
    checkpoint, or an array with the checkpoints as axis 0; names are those of :class:`clew.mazes.Snapshot`."""

    steps: Array
    """Training steps done [checkpoint]; 0 is the model before training."""
    snapshots: tuple[Snapshot, ...]
    about: dict[str, Any]
    """What was trained and measured, in words and numbers."""

    def __getitem__(self, name: str) -> Array:
        if name not in FIELDS:
            raise ConfigError(f"dynamics of {name!r}: there are {', '.join(FIELDS)}")
        return np.array([getattr(one, name) for one in self.snapshots])

    @property
    def best_accuracy(self) -> Array:
        """Of the best layer's probes [checkpoint]."""
        return np.asarray(self["accuracy"].max(1))

    def together(self, behaviour: str = "exact") -> float:
        """Spearman's correlation over checkpoints of the best layer's probe accuracy with "exact", "valid", "target",
        "streak" or "loss"; NaN for fewer than two checkpoints."""
        return spearman(self.best_accuracy, self[behaviour])

    def changes_together(self, behaviour: str = "exact") -> float:
        """The same of the changes from checkpoint to checkpoint: two things that merely both grow need not have it."""
        return spearman(np.diff(self.best_accuracy), np.diff(self[behaviour]))

    def table(self) -> str:
        """A line for each checkpoint."""
        lines = ["   step    loss  exact  valid  target  streak  probes (layer)  majority  adjacency heads"]
        for step, one in zip(self.steps.tolist(), self.snapshots, strict=True):
            heads = ", ".join(map(head_name, one.adjacency_heads()[:3])) or "none"
            lines.append(
                f"{step:>7}  {one.loss:6.3f}  {one.exact:5.1%}  {one.valid:5.1%}  {one.target:6.1%}  {one.streak:6.2f}"
                f"  {one.accuracy.max():7.1%} ({one.best})     {one.majority:7.1%}  {heads}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as JSON, numbers rounded to five digits. Raises OSError."""
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dynamics:
        """Reads what :meth:`save` wrote. Raises LoadError for another file, or none."""
        data = read(path, ("steps", "snapshots", "about"))
        try:
            return cls(np.array(data["steps"], int), tuple(restored(one) for one in data["snapshots"]), data["about"])
        except (LoadError, TypeError, ValueError) as error:
            raise LoadError(f"{path}: {error}") from None


def kept_checkpoints(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Step → path of the models that a training left in a folder, in order: directories `step-N`
    (`Trainer(snapshots=…)`), and the trainer's own checkpoints, of which it deletes all but the newest.

    Raises LoadError where there is none.

    >>> kept_checkpoints("nowhere")
    Traceback (most recent call last):
    clew.errors.LoadError: nowhere: no directory step-N with a model (config.json) in it, nor a checkpoint of a trainer
    """
    check_path(folder=folder)
    found = kept_models(Path(folder))
    if not found:
        raise LoadError(
            f"{os.fspath(folder)}: no directory step-N with a model (config.json) in it, nor a checkpoint of a trainer"
        )
    return found


def over_training(
    checkpoints: Mapping[int, Any] | str | os.PathLike[str],
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    walks: int = 256,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Dynamics:
    """A :func:`clew.mazes.snapshot` of each checkpoint of a training, on the same mazes.

    Parameters
    ----------
    checkpoints
        Step → model, what `clew.load` takes, or a checkpoint of a trainer; or the folder of a training,
        `Trainer(directory=…, snapshots=…)`: see :func:`kept_checkpoints`. One model is in memory at a time.
    train, test, walks, seed
        As :func:`clew.mazes.snapshot` takes them.
    about
        Words and numbers to keep with the result.

    Raises
    ------
    ConfigError
        No checkpoints.
    LoadError
        A folder without any, or as `clew.load`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> config = mazes.hallway_config(n_layers=2, d_model=32, n_heads=2)
    >>> kept = {step: clew.Model.from_config(config, seed=step) for step in (0, 10)}
    >>> train, test = (mazes.generate(n, 3, split=part) for n, part in ((100, "train"), (20, "test")))
    >>> found = mazes.over_training(kept, train, test, walks=5)
    >>> found.steps.tolist(), found["accuracy"].shape
    ([0, 10], (2, 2))
    """
    given = kept_checkpoints(checkpoints) if isinstance(checkpoints, str | os.PathLike) else checkpoints
    if not isinstance(given, Mapping):
        raise ConfigError(f"over_training: checkpoints: a mapping of steps to models, not {type(given).__name__}")
    if not given:
        raise ConfigError("over_training: no checkpoints")
    kept = {whole_number(step, "over_training: a step"): source for step, source in given.items()}
    for source in kept.values():
        if not isinstance(source, Model | str | os.PathLike):
            raise ConfigError(f"over_training: a checkpoint is a model or a path, not {type(source).__name__}")
    told, learn, held = about_of(about, "over_training"), Mazes.of(train), Mazes.of(test)
    steps = sorted(kept)
    snapshots = []
    for step in steps:
        source = kept[step]
        model = source if isinstance(source, Model) else load_model(source) if is_checkpoint(source) else load(source)
        snapshots.append(snapshot(model, learn, held, walks=walks, seed=seed))
    return Dynamics(np.array(steps), tuple(snapshots), told)


def stored_dynamics() -> Dynamics | None:
    """The measurements of the training of "maze-6x6" that come with the package (`data/maze-6x6/dynamics.py` says how
    they were made); None where this installation has none."""
    path = Path(__file__).parent.parent / "data" / "maze-6x6" / "dynamics.json"
    return Dynamics.load(path) if path.is_file() else None


__all__ = ["PAPER_DYNAMICS", "Dynamics", "kept_checkpoints", "over_training", "stored_dynamics"]
