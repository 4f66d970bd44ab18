"""The 2 × 2 of MLP × depth with linear and softmax attention, over seeds: python measure.py ROWS [--seeds 0 1 2].

Trains the models of `clew.adaptive.ordinary.grid` one by one and appends a line for each to ROWS (JSON lines), leaving
out those that are there: it can be stopped and started again, and --attention linear and --attention softmax can run
side by side into one file. --join judges what ROWS holds and puts it into reproduction.json beside this file, whose
other predictions stay as they are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import clew
from clew.adaptive import ordinary
from clew.adaptive.experiment import STORED, Experiment, judge_ordinary, stored


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is measured already."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def measure(path: Path, attention: str, seeds: list[int], steps: int) -> None:
    """Trains what is missing."""
    clew.set_num_threads(1)
    for seed in seeds:
        for name, cell in ordinary.cells().items():
            known = {(row["cell"], row["seed"], row["steps"]) for row in rows_of(path)}
            if (name, seed, steps) in known or attention not in ("both", cell[0]):
                continue
            model = ordinary.train_ordinary(*cell, steps=steps, seed=seed)
            found = asdict(ordinary.compare_with_algorithms(model))
            line = json.dumps({"cell": name, "seed": seed, "steps": steps, **found})
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)


def join(path: Path, steps: int, wanted: list[int]) -> None:
    """Writes the verdict beside the other predictions."""
    by_cell: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in ordinary.cells()}
    for row in sorted(rows_of(path), key=lambda row: int(row["seed"])):
        if row["steps"] == steps and row["seed"] in wanted:
            values = {key: value for key, value in row.items() if key not in ("cell", "seed", "steps")}
            by_cell[row["cell"]][str(row["seed"])] = values
    seeds = sorted({int(seed) for found in by_cell.values() for seed in found})
    for name, found in by_cell.items():
        if sorted(map(int, found)) != seeds:
            raise SystemExit(f"{name}: seeds {', '.join(found) or 'none'}, others have {seeds}")
    settings = {"steps": steps, "seeds": seeds, "batch": 32, "lr": 1e-3, "warm-up": steps // 10, "clip": 1.0}
    judged = judge_ordinary({name: ordinary.summary(found) for name, found in by_cell.items()}, settings)
    whole = stored()
    before = whole.facts["call"].split(" and ")[0]
    call = f"{before} and data/adaptive/measure.py (ordinary, {steps} steps, seeds {seeds})"
    made = Experiment(whole.predictions | {"ordinary": judged}, whole.facts | {"call": call}, whole.before)
    STORED.write_text(json.dumps(made.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--attention", choices=("linear", "softmax", "both"), default="both")
    parser.add_argument("--join", action="store_true")
    given = parser.parse_args()
    if given.join:
        join(given.rows, given.steps, given.seeds)
    else:
        measure(given.rows, given.attention, given.seeds, given.steps)


if __name__ == "__main__":
    main()
