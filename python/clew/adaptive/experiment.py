"""The whole experiment: every prediction measured and judged, and the stored results of the long run."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..experiment import Experiment as _Base
from ..experiment import plain, tell
from ..info import __version__
from ..inputs import check_counts, check_flags, check_path, check_seed, check_type
from .claims import claim
from .ordinary import grid
from .predictions import PREDICTIONS, Check, Laboratory, Prediction, above, below, expected_values
from .priors import tree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "experiment", "judge_ordinary", "reproduce", "stored"]

STORED = Path(__file__).resolve().parents[1] / "data" / "adaptive" / "reproduction.json"
"""The results of `reproduce`, as they come with the package."""


@dataclass(frozen=True, init=False)
class Experiment(_Base):
    """What was measured: predictions by key, and facts about the run (seed, versions, seconds, how it was called)."""

    predictions: dict[str, Prediction]
    facts: dict[str, Any]
    before: dict[str, Prediction]
    """Predictions that take too long for this run, as the package's stored run found them."""

    def __init__(
        self, predictions: Mapping[str, Prediction], facts: Mapping[str, Any],
        before: Mapping[str, Prediction] | None = None,
    ) -> None:  # fmt: skip
        claims = [claim(prediction) for prediction in predictions.values()]
        claims += [claim(prediction, before=True) for prediction in (before or {}).values()]
        title = "Adaptive inference: a test of an abstract's claims (arXiv 2606.16694) under our own specification"
        quick = facts["setting"] == "quick"
        super().__init__(2, title, "networks trained here", int(facts["seed"]), quick, tuple(claims))
        for name, value in (("predictions", predictions), ("facts", facts), ("before", before or {})):
            object.__setattr__(self, name, dict(value))  # the way that frozen dataclasses set their fields

    def __repr__(self) -> str:
        return self.table()

    def details(self) -> str:
        """Every check of every prediction: the number it is about and the bound it was held to."""
        lines = ["{call}: seed {seed}, {setting}, {seconds:.0f} s, clew {clew}".format(**self.facts)]
        for key, prediction in (self.predictions | self.before).items():
            lines += ["", f"({key}) {prediction.claim}"]
            width = max((len(c.statement) for c in prediction.checks), default=0)
            lines += [
                f"  {'holds' if c.holds else 'FAILS'}  {c.statement:<{width}}  {c.value:9.4f}  bound {c.bound:g}"
                for c in prediction.checks
            ]
        return "\n".join(lines)

    def figures(self) -> dict[str, Figure]:
        """A figure for each prediction, by key; needs matplotlib (`clew[plot]`)."""
        from .figures import draw

        return {key: draw(prediction) for key, prediction in (self.predictions | self.before).items()}

    def numbers(self) -> dict[str, Any]:
        """Facts and predictions, each with its claim, verdict, numbers, checks and settings."""
        parts = {"predictions": self.predictions, "before": self.before}
        found = {name: {k: p.to_json() for k, p in part.items()} for name, part in parts.items()}
        return dict(plain({"facts": self.facts, **found}))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Experiment:
        """The inverse of `to_json`."""
        n = data["numbers"]
        made = {name: {k: Prediction.from_json(p) for k, p in n[name].items()} for name in ("predictions", "before")}
        return cls(made["predictions"], n["facts"], made["before"])


def _facts(seed: int, setting: str, call: str, start: float) -> dict[str, Any]:
    return {
        "seed": seed, "setting": setting, "call": call, "seconds": round(time.perf_counter() - start, 1),
        "clew": __version__, "numpy": np.__version__, "python": platform.python_version(),
    }  # fmt: skip


def experiment(quick: bool = True, seed: int = 0, only: Sequence[str] | None = None) -> Experiment:
    """Measures and judges predictions (a) to (g) and the table of expected values.

    quick: small trainings, about half a minute on two cores; the table's s = .3 rows only. Otherwise some minutes.
    Ordinary transformers take longer: where all is asked for, what `stored()` says of them stands in `before`.
    only: keys out of "a" … "g" and "table". Results depend on the seed alone.

    Raises ConfigError for unknown keys, a seed that is not a whole number and `quick` that is neither True nor False.

    Example
    -------
    >>> result = experiment(seed=1, only=["table"])
    >>> sorted(result.predictions)
    ['table']
    """
    seed = check_seed(seed)
    check_flags(quick=quick)
    if only is not None:
        check_type((list, tuple), 'a list of keys, such as ["a", "table"]', only=only)
    known = ["table", *PREDICTIONS]
    chosen = known if only is None else list(only)
    unknown = [key for key in chosen if key not in known]
    if unknown:
        raise ConfigError(f"no prediction named {', '.join(map(repr, unknown))}: {', '.join(known)}")
    start = time.perf_counter()
    lab = Laboratory(quick, int(seed))
    found: dict[str, Prediction] = {}
    for key in chosen:
        tell(key if key == "table" else f"prediction {key}")
        cells = [(0.3, 1), (0.3, 2), (0.3, 3)] if quick else None
        found[key] = expected_values(lab, cells) if key == "table" else PREDICTIONS[key](lab)
    call = f"clew.adaptive.experiment(quick={quick}, seed={seed})"
    before = {} if only is not None else {"ordinary": stored().predictions["ordinary"]}
    return Experiment(found, _facts(int(seed), "quick" if quick else "full", call, start), before)


def judge_ordinary(rows: dict[str, dict[str, Any]], settings: dict[str, Any]) -> Prediction:
    """The 2 × 2 of MLP × depth and attention kind: which algorithm trained models lie nearer to."""
    checks: list[Check] = []
    total = float(np.trace(tree().covariance))
    for name, row in rows.items():
        checks.append(above(f"{name}: error / tree posterior's error", row["error"] / row["posterior_error"], 1.0))
        checks.append(below(f"{name}: error / error of predicting 0", row["error"] / total, 1.0))
    for kind in dict.fromkeys(name.split(",")[0] for name in rows):
        deep, shallow = f"{kind}, 3 layers, MLP", f"{kind}, 1 layer, no MLP"
        if deep in rows and shallow in rows:
            ratio = rows[deep]["to_posterior"] / rows[shallow]["to_posterior"]
            checks.append(below(f"{kind}: distance to the tree posterior, 3 layers with MLP / 1 without", ratio, 0.7))
            depth = rows[f"{kind}, 3 layers, no MLP"]["to_posterior"] / rows[shallow]["to_posterior"]
            checks.append(below(f"{kind}: the same by depth alone, without an MLP", depth, 0.7))
            for layers in ("1 layer", "3 layers"):
                blocks = (
                    rows[f"{kind}, {layers}, MLP"]["to_posterior"] / rows[f"{kind}, {layers}, no MLP"]["to_posterior"]
                )
                checks.append(below(f"{kind}, {layers}: the same by an MLP alone", blocks, 1.0))
            own = rows[deep]["to_posterior"] / rows[deep]["to_algorithm"]
            checks.append(
                below(f"{kind}, 3 layers, MLP: distance to the posterior / to GD, GD++, ridge, OLS", own, 1.0)
            )
    claim = (
        "feedforward blocks and depth bring ordinary transformers nearer to the tree posterior than GD-like algorithms"
    )
    return Prediction("ordinary", claim, rows, checks, settings)


def reproduce(path: str | Path | None = None, seed: int = 0, steps: int = 1500) -> Experiment:
    """The long run: everything of `experiment(quick=False)` and the ordinary transformers; writes JSON to `path`.

    steps: of an ordinary transformer. Minutes on two idle cores. The package's file comes from separate runs of the two
    halves that were joined afterwards (`stored().facts["call"]`, `data/adaptive/measure.py`).

    Raises ConfigError for a seed or number of steps that is none, and for a path in a folder that does not exist.
    """
    seed = check_seed(seed)
    check_counts(steps=steps)
    if path is not None:
        check_path(path=path)
        if not Path(path).resolve().parent.is_dir():
            raise ConfigError(f"path = {str(path)!r}: there is no folder {str(Path(path).resolve().parent)!r}")
    start = time.perf_counter()
    result = experiment(quick=False, seed=seed)
    found = dict(result.predictions)
    rows = grid(steps=steps, seeds=(seed,))
    found["ordinary"] = judge_ordinary(rows, {"steps": steps, "seeds": [seed], "batch": 32})
    whole = Experiment(found, _facts(seed, "full", f"clew.adaptive.reproduce(path, seed={seed}, steps={steps})", start))
    if path is not None:
        Path(path).write_text(json.dumps(whole.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return whole


def stored() -> Experiment:
    """The results of the long run that come with the package.

    >>> stored().facts["seed"]
    0
    """
    return Experiment.from_json(json.loads(STORED.read_text(encoding="utf-8")))
