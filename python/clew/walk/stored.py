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

from ..errors import LoadError
from ..model import Model

Array = NDArray[Any]

FOLDER = Path(__file__).parent.parent / "data" / "walk"


@dataclass(frozen=True)
class Trainings:
    """Matched small models with several kinds of attention; made by :func:`stored_trainings`."""

    about: dict[str, Any]
    kinds: tuple[str, ...]
    """softmax, uniform, random, similarity, none, bare: `data/walk/train.py` says what each is."""
    seeds: tuple[int, ...]
    loss: Array
    """Held-out loss [kind, seed], nats a token."""
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

    def table(self) -> str:
        """A line for each kind."""
        lines = [f"held-out loss of {len(self.seeds)} seeds; counting tokens {self.references['tokens']:.3f}, pairs "
                 f"{self.references['pairs']:.3f}"]  # fmt: skip
        for i, kind in enumerate(self.kinds):
            losses = " ".join(f"{x:.3f}" for x in self.loss[i])
            lines.append(f"  {kind:<10} {losses}  {int(self.parameters[i]):>8,} parameters  purity "
                         f"{self.purity[i].mean():.3f}  embeddings as softmax's {self.alike[0, i]:.3f}")  # fmt: skip
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
            return np.array([[runs[kind, seed][key] for seed in seeds] for kind in kinds], np.float64)

        def alike(a: str, b: str) -> float:
            pairs = [(order.index((a, s)), order.index((b, t))) for s in seeds for t in seeds if s != t]
            return float(np.mean([similarity[i, j] for i, j in pairs]))

        curve = np.array([[runs[kind, seed]["curve"] for seed in seeds] for kind in kinds], np.float64)
        return Trainings(
            data["about"], kinds, seeds, of("held_out_loss"), curve[..., 1], curve[0, 0, :, 0].astype(np.int64),
            of("parameters")[:, 0].astype(np.int64), of("purity"), float(data["runs"][0]["purity_chance"]),
            np.array([[alike(a, b) for b in kinds] for a in kinds]), data["references"],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LoadError(f"{FOLDER / 'training.json'}: no measurements of trainings: {error!r}") from None


def identity(model: Model) -> str:
    """Names a model's embedding: what stored measurements are of."""
    return hashlib.sha256(np.ascontiguousarray(model.W_E, "<f4").tobytes()).hexdigest()[:16]


def stored_semantics(model: Model) -> dict[str, Any] | None:
    """Word similarity and HellaSwag as measured beforehand for this very model; None for another one.

    >>> import clew
    >>> stored_semantics(clew.load("stories260K")) is None
    True
    """
    models = _read("semantics.json")["models"]
    return next((entry for entry in models.values() if entry["identity"] == identity(model)), None)


__all__ = ["Trainings", "identity", "stored_semantics", "stored_trainings"]
