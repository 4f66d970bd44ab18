"""Measures "maze-6x6" over its training: python dynamics.py FOLDER, or python dynamics.py --add

FOLDER is the one that train.py trained in: its directories step-N hold the weights that were kept. The bundled model
itself, whose rate fell to 0 at the end, is the last checkpoint where it is there. Writes dynamics.json beside this
file; takes about a minute for each checkpoint, and starts again from nothing when it is stopped. --add measures the
bundled model alone and puts it behind the checkpoints that dynamics.json holds: where it was trained on from its files.

Up to step 11,000 the share of 6 × 6 mazes in training grows from a fifth (see train.py): what is measured here on
6 × 6 mazes alone is also the change of what was trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import clew
import numpy as np
from clew import mazes

SEED, N_TRAIN, N_TEST, WALKS = 0, 4000, 1000, 500
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the training")
    parser.add_argument("--add", action="store_true", help="measure the bundled model alone, behind those of --out")
    parser.add_argument("--threads", type=int, help="of the pool")
    parser.add_argument("--out", type=Path, default=HERE / "dynamics.json")
    args = parser.parse_args()
    if args.threads:
        clew.set_num_threads(args.threads)
    if (args.folder is None) != args.add:
        parser.error("either FOLDER or --add")
    training, before = HERE / "training.json", mazes.Dynamics.load(args.out) if args.add else None
    last = json.loads(training.read_text(encoding="utf-8")) if training.is_file() else None
    if before is not None and (last is None or last["steps"] <= before.steps[-1]):
        parser.error(f"{args.out} holds step {before.steps[-1]}: no later one is at {HERE}")
    # the directories alone: the trainer's last checkpoints lie beside them
    kept = {} if args.folder is None else mazes.kept_checkpoints(args.folder)
    checkpoints = {step: path for step, path in kept.items() if path.is_dir()}
    if last is not None:
        checkpoints = {step: path for step, path in checkpoints.items() if step <= last["constant_steps"]}
        checkpoints[last["steps"]] = HERE
    told = [] if before is None else [before.about["decayed"]]
    if last is not None:
        told.append(f"the rate of step {last['steps']} fell to 0 from step {last['constant_steps']}")
    train, test = (
        mazes.generate(n, 6, seed=seed, split=part) for n, seed, part in ((N_TRAIN, 1, "train"), (N_TEST, 2, "test"))
    )
    about = {
        "model": "maze-6x6, at checkpoints of its own training (data/maze-6x6/train.py)", "seed": SEED,
        "measured on": f"rdfs mazes of 6 × 6: {N_TRAIN} of split train, seed 1; {N_TEST} of split test, seed 2, the "
        f"first {WALKS} walked",
        "decayed": "; ".join(told) or None,
        "version": clew.__version__,
    }  # fmt: skip
    found = mazes.over_training(checkpoints, train, test, walks=WALKS, seed=SEED, about=about)
    if before is not None:
        steps = np.concatenate([before.steps, found.steps])
        found = mazes.Dynamics(steps, (*before.snapshots, *found.snapshots), found.about)
    found.save(args.out)
    print(found.table())


if __name__ == "__main__":
    main()
