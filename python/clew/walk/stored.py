"""What was measured beforehand and comes with the package: small trainings, word similarity, HellaSwag.

`data/walk` holds the numbers, and the scripts that made them from texts and data sets that do not come with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..brief import Brief
from ..errors import LoadError
from ..model import Model, check_model

Array = NDArray[Any]

FOLDER = Path(__file__).parent.parent / "data" / "walk"


@dataclass(frozen=True)
class Trainings(Brief):
    """Matched small models with several kinds of attention; made by :func:`stored_trainings`."""

    about: dict[str, Any]
    kinds: tuple[str, ...]
    """softmax, uniform, random, similarity, none, bare: `data/walk/train.py` says what each is."""
    seeds: tuple[int, ...]
    loss: Array
    """Held-out loss [kind, seed], nats a token; NaN where a run is not among those stored."""
    curve: Array
    """[kind, seed, measurement]"""
    steps: NDArray[np.int64]
    """[measurement]"""
    parameters: NDArray[np.int64]
    """Parameters that learned [kind]."""
    purity: Array
    """Purity of W_E [kind, seed]."""
    purity_chance: float
    alike: Array
    """Similarity of W_E's arrangement, mean over pairs of different seeds [kind, kind]."""
    references: dict[str, float]
    """Held-out losses of counting: "tokens", "pairs"."""

    @property
    def runs(self) -> NDArray[np.int64]:
        """How many runs there are of each kind [kind]."""
        return np.asarray((~np.isnan(self.loss)).sum(1))

    def table(self) -> str:
        """A line for each kind."""
        lines = [f"held-out loss by seed; counting tokens {self.references['tokens']:.3f}, pairs "
                 f"{self.references['pairs']:.3f}"]  # fmt: skip
        for i, kind in enumerate(self.kinds):
            losses = " ".join(f"{x:.3f}" for x in self.loss[i])
            lines.append(
                f"  {kind:<10} {losses}  {int(self.parameters[i]):>8,} parameters  "
                f"purity {np.nanmean(self.purity[i]):.3f}  embeddings as softmax's {self.alike[0, i]:.3f}"
            )
        return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    path = FOLDER / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: no measurements: {error}") from None
    return data


def stored_trainings() -> Trainings:
    """The trainings that come with the package. Raises LoadError for a file that is none.

    >>> found = stored_trainings()
    >>> found.kinds[0], len(found.seeds), found.loss.shape[0] == len(found.kinds)
    ('softmax', 3, True)
    """
    data = _read("training.json")
    try:
        runs = {(r["kind"], r["seed"]): r for r in data["runs"]}
        kinds = tuple(dict.fromkeys(r["kind"] for r in data["runs"]))
        seeds = tuple(sorted({int(r["seed"]) for r in data["runs"]}))
        order = [(r["kind"], r["seed"]) for r in data["runs"]]
        similarity = np.array(data["similarity"], np.float64)

        def of(key: str) -> Array:
            missing = np.full_like(np.array(data["runs"][0][key], np.float64), np.nan)
            rows = [[runs[kind, seed][key] if (kind, seed) in runs else missing for seed in seeds] for kind in kinds]
            return np.array(rows, np.float64)

        def alike(a: str, b: str) -> float:
            pairs = [(order.index((a, s)), order.index((b, t))) for s in seeds for t in seeds
                     if s != t and (a, s) in runs and (b, t) in runs]  # fmt: skip
            return float(np.mean([similarity[i, j] for i, j in pairs])) if pairs else float("nan")

        curve = of("curve")
        learned = {r["kind"]: int(r["parameters"]) for r in data["runs"]}
        return Trainings(
            data["about"], kinds, seeds, of("held_out_loss"), curve[..., 1],
            np.array([step for step, _ in data["runs"][0]["curve"]], np.int64),
            np.array([learned[kind] for kind in kinds]), of("purity"), float(data["runs"][0]["purity_chance"]),
            np.array([[alike(a, b) for b in kinds] for a in kinds]), data["references"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(f"{FOLDER / 'training.json'}: no measurements of trainings: {error!r}") from None


def identity(model: Model) -> str:
    """Names a model's embedding: what stored measurements are of. Raises ConfigError for what is no model."""
    check_model(model)
    return hashlib.sha256(np.ascontiguousarray(model.W_E, "<f4").tobytes()).hexdigest()[:16]


def stored_semantics(model: Model) -> dict[str, Any] | None:
    """Word similarity and HellaSwag as measured beforehand for this very model; None for another one.

    Raises LoadError for a file that is none.

    >>> import clew
    >>> stored_semantics(clew.load("stories260K")) is None
    True
    """
    data = _read("semantics.json")
    try:
        by_identity = {entry["identity"]: entry for entry in data["models"].values()}
    except (AttributeError, KeyError, TypeError) as error:
        raise LoadError(f"{FOLDER / 'semantics.json'}: no measurements of models: {error!r}") from None
    return by_identity.get(identity(model))


__all__ = ["Trainings", "identity", "stored_semantics", "stored_trainings"]
