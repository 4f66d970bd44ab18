"""Do models that differ in their seed alone find the same solution?"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LoadError
from ..experiment import write
from ..inputs import check_flags
from .checks import head_name
from .embedding import embedding_distances
from .maze import Maze, Mazes
from .probes import one_grid, wall_probes
from .rollout import tokenizer_of
from .snapshot import Snapshot, _snapshot, about_of, read, restored

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """Two models of one shape, or of two."""

    a: tuple[str, int]
    """Shape and number of the model within it."""
    b: tuple[str, int]
    same_path: float
    """Share of mazes in which both walk the same path."""
    both_exact: float
    """Share of mazes that both solve."""
    kappa: float
    """Cohen's kappa of which mazes are solved: 0 is what two rates alone give, 1 the same mazes; NaN where one model
    solves all or none (Cohen 1960)."""
    profile: float
    """Pearson's correlation of probe accuracy over layers; NaN for models of different depth or a single layer."""
    embedding: float
    """Pearson's correlation of L1 distances between embeddings of all pairs of cells."""


@dataclass(frozen=True)
class Consistency:
    """Models of several shapes and seeds, measured alike; made by :func:`compare`."""

    models: dict[str, tuple[Snapshot, ...]]
    """Shape → one snapshot for each model."""
    pairs: tuple[Pair, ...]
    bag: float
    """Accuracy of probes for inner walls that read how often each token of the maze comes, and no model: baseline."""
    about: dict[str, Any]

    def between(self, same_shape: bool = True) -> list[Pair]:
        """Pairs of one shape, or of two."""
        check_flags(same_shape=same_shape)
        return [pair for pair in self.pairs if (pair.a[0] == pair.b[0]) == same_shape]

    def spread(self, number: Callable[[Snapshot], float]) -> dict[str, tuple[float, float, float]]:
        """Shape → mean, least and largest over its models of a number of a snapshot.

        `spread(lambda one: one.exact)`
        """
        values = {shape: [float(number(one)) for one in ones] for shape, ones in self.models.items()}
        return {shape: (float(np.mean(v)), min(v), max(v)) for shape, v in values.items()}

    def table(self) -> str:
        """A line for each model, then means over pairs."""
        lines = ["shape, model          loss  exact  valid  target  probes by layer            majority  r      "
                 "adjacency heads"]  # fmt: skip
        for shape, ones in self.models.items():
            for i, one in enumerate(ones):
                heads = ", ".join(map(head_name, one.adjacency_heads()[:3])) or "none"
                layers = " ".join(f"{x:.3f}" for x in one.accuracy)
                lines.append(
                    f"{shape}, {i:<6}  {one.loss:6.3f}  {one.exact:5.1%}  {one.valid:5.1%}  {one.target:6.1%}  "
                    f"{layers:<25}  {one.majority:8.3f}  {one.embedding_r:.2f}  {heads}"
                )
        lines.append(f"bag of tokens, no model: inner walls {self.bag:.3f}")
        for same, name in ((True, "same shape"), (False, "two shapes")):
            pairs = self.between(same)
            if pairs:
                kappa = [p.kappa for p in pairs if not np.isnan(p.kappa)]
                lines.append(
                    f"{len(pairs)} pairs of the {name}: same path {np.mean([p.same_path for p in pairs]):.1%}, kappa "
                    f"of solving {np.mean(kappa) if kappa else np.nan:.2f}, embeddings' distances correlate "
                    f"{np.mean([p.embedding for p in pairs]):.2f}"
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as JSON, numbers rounded to five digits. Raises OSError."""
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Consistency:
        """Reads what :meth:`save` wrote. Raises LoadError for another file, or none."""
        data = read(path, ("models", "pairs", "bag", "about"))
        try:
            models = {shape: tuple(restored(one) for one in ones) for shape, ones in data["models"].items()}
            pairs = []
            for one in data["pairs"]:
                values: dict[str, Any] = {key: np.nan if v is None else v for key, v in one.items()}
                values |= {"a": tuple(one["a"]), "b": tuple(one["b"])}
                pairs.append(Pair(**values))
            return cls(models, tuple(pairs), float(data["bag"]), data["about"])
        except (LoadError, AttributeError, KeyError, TypeError) as error:
            raise LoadError(f"{path}: {error}") from None


def _correlation(a: Array, b: Array) -> float:
    if a.shape != b.shape or len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _kappa(a: Array, b: Array) -> float:
    """Cohen's kappa of two lists of yes and no."""
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return float(((a == b).mean() - chance) / (1 - chance)) if 0 < chance < 1 else float("nan")


def compare(
    models: Mapping[str, Sequence[Model]],
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    walks: int = 256,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Consistency:
    """Measures models on the same mazes, and how far each two of them agree.

    Parameters
    ----------
    models
        Name of a shape → models that differ in their seed alone.
    train, test, walks, seed
        As :func:`clew.mazes.snapshot` takes them.
    about
        Words and numbers to keep with the result.

    Raises ConfigError without models, and as :func:`clew.mazes.snapshot`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> config = mazes.hallway_config(n_layers=2, d_model=32, n_heads=2)
    >>> ours = [clew.Model.from_config(config, seed=seed) for seed in (0, 1)]
    >>> train, test = (mazes.generate(n, 3, split=part) for n, part in ((100, "train"), (20, "test")))
    >>> found = mazes.compare({"small": ours}, train, test, walks=5)
    >>> len(found.models["small"]), len(found.pairs)
    (2, 1)
    """
    if not isinstance(models, Mapping) or not all(isinstance(ones, Sequence) for ones in models.values()):
        raise ConfigError("compare: models: a mapping of shapes to lists of models")
    if not models or not all(models.values()):
        raise ConfigError("compare: no models, or a shape without any")
    for ones in models.values():
        for model in ones:
            tokenizer_of(model)
    kept, learn, held = about_of(about, "compare"), Mazes.of(train), Mazes.of(test)
    side = one_grid(learn, held, "compare")
    snapshots: dict[str, list[Snapshot]] = {shape: [] for shape in models}
    seen: list[tuple[tuple[str, int], Snapshot, list[Array], Array, Array]] = []
    for shape, ones in models.items():
        for i, model in enumerate(ones):
            found, paths, judged = _snapshot(model, learn, held, walks, seed)
            snapshots[shape].append(found)
            distance = embedding_distances(model, grid=side, draws=1).distance
            seen.append(((shape, i), found, paths, judged.exact, distance))
    pairs = []
    for (a, one, walked, exact, distance), (b, other, walked_b, exact_b, distance_b) in itertools.combinations(seen, 2):
        same = [np.array_equal(p, q) for p, q in zip(walked, walked_b, strict=True)]
        pairs.append(
            Pair(a, b, float(np.mean(same)), float((exact & exact_b).mean()), _kappa(exact, exact_b),
                 _correlation(one.accuracy, other.accuracy), _correlation(distance, distance_b))
        )  # fmt: skip
    tok = tokenizer_of(next(iter(models.values()))[0])
    bag = wall_probes("bag of tokens", learn, held, methods=["ridge"], seed=seed, tokenizer=tok)["ridge"].accuracy[0]
    shapes = {shape: tuple(ones) for shape, ones in snapshots.items()}
    return Consistency(shapes, tuple(pairs), float(bag), kept)


def stored_consistency() -> Consistency | None:
    """Three seeds of two shapes on 4 × 4 mazes, measured for the package (`data/maze-consistency/train.py` says how);
    None where this installation has no such file."""
    path = Path(__file__).parent.parent / "data" / "maze-consistency" / "consistency.json"
    return Consistency.load(path) if path.is_file() else None


__all__ = ["Consistency", "Pair", "compare", "stored_consistency"]
