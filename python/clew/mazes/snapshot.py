"""What one model has learned of mazes, in few numbers: to be compared over checkpoints, and between models."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LoadError
from ..inputs import check_path, check_seed
from ..train.step import evaluate as loss_of
from .checks import whole_number
from .embedding import embedding_distances
from .evaluate import Judgement, judge
from .heads import adjacency_heads
from .maze import Maze, Mazes
from .probes import one_grid, wall_probes
from .rollout import solve, tokenizer_of
from .tokens import Tokenizer
from .training import examples

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]


@dataclass(frozen=True)
class Snapshot:
    """How well a model solves mazes, and how much of them can be read out of it; made by :func:`snapshot`."""

    n: int
    """Held-out mazes that it walked."""
    exact: float
    """Share of them whose solution it walked."""
    valid: float
    target: float
    streak: float
    """Mean number of cells at the beginning of a path that agree with the solution."""
    loss: float
    """Of the held-out mazes' paths, nats per token."""
    accuracy: Array
    """Of ridge probes for inner walls at <PATH_START>, on held-out mazes [layer]."""
    low: Array
    """Lower end of its 95 % interval [layer]."""
    high: Array
    control: Array
    """Of probes that learned other mazes' walls [layer]."""
    majority: float
    """Of saying for each wall what is commoner."""
    adjacency: Array
    """Score of each head as an adjacency head [layer, head], see :class:`clew.mazes.AdjacencyHeads`."""
    adjacency_low: Array
    """Lower end of its 95 % interval [layer, head]."""
    adjacency_mass: Array
    """Its attention to cells of the adjacency list [layer, head]."""
    embedding_r: float
    """Correlation of L1 distances between embeddings with Manhattan distances."""
    embedding_p: float

    def __repr__(self) -> str:
        return (
            f"Snapshot of {self.n} walks: exact {self.exact:.1%}, valid {self.valid:.1%}, target {self.target:.1%}, "
            f"loss {self.loss:.3f}; walls read at layer {self.best}: {self.accuracy.max():.1%} (majority "
            f"{self.majority:.1%})"
        )

    @property
    def best(self) -> int:
        """The layer whose probes are best."""
        return int(self.accuracy.argmax())

    def adjacency_heads(self, least_mass: float = 0.1) -> list[tuple[int, int]]:
        """(layer, head) of the heads whose score's interval lies above 0 and that look at the adjacency list at all,
        the highest score first."""
        there = (self.adjacency_low > 0) & (self.adjacency_mass >= least_mass)
        order = np.argsort(-np.nan_to_num(self.adjacency, nan=-np.inf).ravel(), kind="stable")
        heads = self.adjacency.shape[1]
        return [divmod(int(i), heads) for i in order if there.ravel()[i]]


def snapshot(
    model: Model,
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    walks: int = 256,
    position: str | None = None,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Snapshot:
    """Walks, probes, heads and embeddings of a model, measured alike for all models.

    Parameters
    ----------
    model
        A model of maze tokens.
    train, test
        Mazes that probes learn from, and held-out ones of the same size; no walls may be in both.
    walks
        How many of `test`, from the first, are walked; all are for probes.
    position
        Where adjacency heads look from, see :func:`clew.mazes.adjacency_heads`; None: "nonend", or "path" in 2 × 2
        mazes, whose paths are too short for it.
    seed
        Of random cells, shuffles and resampling.

    Raises as :func:`clew.mazes.wall_probes` and :func:`clew.mazes.solve`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((200, "train"), (50, "test")))
    >>> found = mazes.snapshot(model, train, test, walks=5)
    >>> found.n, found.exact, found.accuracy.shape, found.adjacency.shape
    (5, 0.0, (2,), (2, 2))
    """
    return _snapshot(model, Mazes.of(train), Mazes.of(test), walks, seed, tokenizer, position)[0]


def _snapshot(
    model: Model, train: Mazes, test: Mazes, walks: int, seed: int, tokenizer: Tokenizer | None = None,
    position: str | None = None,
) -> tuple[Snapshot, list[Array], Judgement]:  # fmt: skip
    """The snapshot, the paths that were walked, and what is true of them."""
    tok = tokenizer_of(model, tokenizer)
    seed = check_seed(seed)
    one_grid(train, test, "snapshot")
    walked = test[: whole_number(walks, "walks", 1)]
    paths = solve(model, walked, tokenizer=tok)
    judged = judge(paths, walked)
    probes = wall_probes(model, train, test, methods=["ridge"], seed=seed, tokenizer=tok)
    side = int(test.grids[0])
    if position is None:
        position = "nonend" if side > 2 else "path"
    heads = adjacency_heads(model, walked, position=position, seed=seed, draws=200, tokenizer=tok)
    cells = embedding_distances(model, grid=side, seed=seed, tokenizer=tok)
    walls = probes["ridge"]
    found = Snapshot(
        len(walked), float(judged.exact.mean()), float(judged.valid.mean()), float(judged.target.mean()),
        float(judged.streak.mean()), loss_of(model, examples(walked, tok), 64)[0], walls.accuracy, walls.low,
        walls.high, walls.control, probes.majority, heads.score, heads.low, heads.mass_by_place[0], cells.r, cells.p,
    )  # fmt: skip
    return found, paths, judged


def about_of(about: Any, what: str) -> dict[str, Any]:
    """Words and numbers to keep with a result, copied; None: none. Raises ConfigError for what is no mapping."""
    if about is not None and not isinstance(about, Mapping):
        raise ConfigError(f"{what}: about: a mapping, not {type(about).__name__}")
    return dict(about or {})


def read(path: str | os.PathLike[str], fields: Iterable[str]) -> dict[str, Any]:
    """What :func:`write` wrote, by field. Raises LoadError for a file that is missing or holds other things,
    ConfigError for what is no path."""
    check_path(path=path)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: no measurements of mazes: {error}") from None
    if not isinstance(data, dict) or set(data) != set(fields):
        raise LoadError(f"{path}: no measurements of mazes: its keys are others")
    return data


def restored(data: dict[str, Any]) -> Snapshot:
    """A snapshot of its plain values. Raises LoadError where they are not those of one."""
    try:
        values: dict[str, Any] = {k: np.array(v, np.float64) if isinstance(v, list) else v for k, v in data.items()}
        return Snapshot(**values)
    except (TypeError, ValueError) as error:
        raise LoadError(f"no snapshot of a maze model: {error}") from None


FIELDS = tuple(field.name for field in dataclasses.fields(Snapshot))

__all__ = ["FIELDS", "Snapshot", "about_of", "read", "restored", "snapshot"]
