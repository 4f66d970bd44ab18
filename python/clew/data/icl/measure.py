"""Trains in-context learners and writes what was measured beside this file: python measure.py PART [--seeds 0 1].

PART   writes           what
linear linear.json      one layer of linear attention against the best step of gradient descent (von Oswald et al.'s
                        N = d = 10), and three layers against steps of GD, GD++ and least squares (Ahn et al.'s d = 5)
gpt2   gpt2.json        a small GPT-2-like model, d = 5, noise: which solver it follows by position and by layer
tasks  tasks.json       learners of M = 4, 32, 256 and any tasks against dMMSE and ridge (Raventós et al.)

Each file holds the settings, the seeds, clew's and NumPy's versions, the command, and standard errors over prompts. A
training is one draw of a seed; figures of another seed differ by more than these errors.

Seeds are measured one by one and joined to those that the file holds, so a run can be stopped and gone on with; seeds
that are there are left out. Several processes can measure seeds of one part at once, each with an --out of its own;
--join PATH … puts such files together.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew import regression
from clew.regression import constructed, learners, tasks

HERE = Path(__file__).parent


def mean(values: Any) -> list[float]:
    """[mean, standard error]"""
    values = np.asarray(values, np.float64)
    return [float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))]


def rounded(value: Any) -> Any:
    """Six digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float | np.floating) else value


def last(solver: Callable[..., Any], prompts: tasks.Prompts, *settings: Any) -> Any:
    """A solver's predictions for the last query of each prompt."""
    return solver(prompts.X, prompts.y, *settings)[:, -1]


def measure_linear(seeds: list[int]) -> dict[str, Any]:
    out: dict[str, Any] = {"one_layer": [], "three_layers": []}
    d = n = 10
    setting = tasks.uniform(d)
    for seed in seeds:
        learner = learners.train(setting, n, "linear", n_layers=1, steps=3000, batch=512, lr=5e-3, seed=seed)
        prompts = setting.sample(20_000, n + 1, seed=seed + 100)
        own = learner.fit_last(prompts.X, prompts.y)
        best = (1 / 3) / 0.22  # of one step, by the closed form: v / m with v = 1/3, m = 0.22
        step = constructed.gd(d, 1, best).fit_predict(prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1:])[:, 0]
        out["one_layer"].append({
            **learner.record, "loss": mean(np.square(own - prompts.f[:, -1])),
            "loss_of_the_best_step": mean(np.square(step - prompts.f[:, -1])), "closed_form": 1.64983,
            "squared_distance_to_it": mean(np.square(own - step)),
        })  # fmt: skip
    d, n = 5, 20
    setting = tasks.dense(d)
    for seed in seeds:
        learner = learners.train(setting, n, "linear", n_layers=3, steps=6000, batch=256, lr=2e-3, seed=seed)
        prompts = setting.sample(4000, n + 1, seed=seed + 100)
        own = learner.fit_last(prompts.X, prompts.y)
        steps = learners.gradient_steps(learner, prompts, steps=6)
        rates = np.geomspace(0.05, 1.5, 40)
        descent = [mean(np.square(last(regression.gd, prompts, 3, r) - prompts.f[:, -1])) for r in rates]
        plus = [
            mean(np.square(last(regression.gd_pp, prompts, 3, r, g) - prompts.f[:, -1]))
            for r in np.geomspace(0.2, 2, 12)
            for g in np.geomspace(0.002, 0.04, 12)
        ]
        w = regression.ols(prompts.X, prompts.y, weights=True)[1][:, -1]
        alike = learners.likeness(learner, prompts, w)
        out["three_layers"].append({
            **learner.record, "loss": mean(np.square(own - prompts.f[:, -1])),
            "best_of_3_steps_gd": min(descent), "best_of_3_steps_gd_pp": min(plus),
            "distance_to_gd_by_layer_and_steps": steps.distance, "likest_steps": steps.likest.tolist(),
            "cosine_to_ols": alike.cosine,
        })  # fmt: skip
    return out


def measure_gpt2(seeds: list[int]) -> dict[str, Any]:
    d, n, noise = 5, 10, 0.25
    setting = tasks.noisy(d, noise)
    solvers: dict[str, learners.Solver] = {
        "ols": regression.ols,
        "ridge": lambda x, y: regression.ridge(x, y, noise),
        "averaging": regression.averaging,
        "gd, 1 step": lambda x, y: regression.gd(x, y, 1, 0.6),
        "gd, 4 steps": lambda x, y: regression.gd(x, y, 4, 0.1),
        "3 nearest": lambda x, y: regression.knn(x, y, 3),
    }
    # without it, 4,000 steps at a rate of 2e-3 (seed 0) left the loss where predicting 0 leaves it
    easier = tasks.Curriculum(dims=(1, d, 1), points=(4, n, 2), every=500)
    rows = []
    for seed in seeds:
        learner = learners.train(
            setting, n, "gpt2", n_layers=3, width=64, steps=6000, batch=64, lr=1e-3, curriculum=easier, seed=seed
        )
        prompts = setting.sample(4000, n, seed=seed + 100)
        seen = learners.compare(learner, prompts, solvers)
        x, y = prompts.X, prompts.y
        w = regression.ridge(x, y, noise, weights=True)[1][:, -1]
        moment = np.einsum("bni,bn->bi", x[:, :-1], y[:, :-1]) / (n - 1)
        targets = {"w (ridge)": w, "XᵀX": learners.second_moments(x), "Xᵀy": moment, "prediction": last(
            lambda a, b: regression.ridge(a, b, noise)[..., None], prompts)}  # fmt: skip
        rows.append({
            **learner.record, "curriculum": {"dims": [1, d, 1], "points": [4, n, 2], "every": 500},
            "errors": seen.errors, "distances": seen.distances,
            "standard_errors": seen.standard_errors, "closest": seen.closest, "total": seen.total,
            "by_layer": learners.by_layer(learner, prompts, solvers),
            "probe_at_the_last_query": learners.probe(learner, prompts, targets),
            "cosine_to_ridge": learners.likeness(learner, prompts, w).cosine,
        })  # fmt: skip
    return {"rows": rows}


def measure_tasks(seeds: list[int]) -> dict[str, Any]:
    out = learners.diversity(
        (4, 32, 256, None), d=4, K=8, noise_var=0.25, steps=10_000, n_layers=2, width=64, batch=64, lr=1e-3,
        seeds=seeds, done=lambda row: print(json.dumps(rounded(row)), flush=True),
    )  # fmt: skip
    return {"record": out.record, "rows": out.rows}


def lists_of(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What a file holds for each seed, by its name in the file."""
    return {key: rows for key, rows in found.items() if isinstance(rows, list)}


def seeds_of(found: dict[str, Any]) -> list[int]:
    """The seeds of a file."""
    return sorted({row["seed"] for rows in lists_of(found).values() for row in rows})


def joined(part: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both files' seeds, those of `new` where both hold one; the seconds add up."""
    out = old | new
    fresh = seeds_of(new)
    for key, rows in lists_of(old).items():
        out[key] = [row for row in rows if row["seed"] not in fresh] + new.get(key, [])
        out[key].sort(key=lambda row: int(row["seed"]))  # stable: a seed's rows keep their order
    out["seconds"] = old.get("seconds", 0) + new["seconds"]
    out["command"] = f"python measure.py {part} --seeds {' '.join(map(str, seeds_of(out)))}"
    if part == "tasks":
        out["threshold"] = learners.Diversity(out["rows"], out["record"]).threshold
    return out


def read(path: Path) -> dict[str, Any]:
    """A file's content, nothing where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(rounded(found), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parts = {"linear": measure_linear, "gpt2": measure_gpt2, "tasks": measure_tasks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="the file; by default the one beside this script")
    parser.add_argument("--join", type=Path, nargs="+", default=[], metavar="PATH", help="measure nothing")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    path = given.out or HERE / f"{given.part}.json"
    for other in given.join:
        write(path, joined(given.part, read(path), read(other)))
    if given.join:
        return
    if given.threads:
        clew.set_num_threads(given.threads)
    for seed in given.seeds:
        if seed in seeds_of(read(path)):
            continue
        began = time.time()
        measured = parts[given.part]([seed])
        about = {
            "command": "",
            "clew": clew.__version__,
            "numpy": np.__version__,
            "seconds": round(time.time() - began),
        }
        write(path, joined(given.part, read(path), about | measured))


if __name__ == "__main__":
    main()
