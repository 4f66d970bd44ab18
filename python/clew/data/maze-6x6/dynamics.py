"""Measures "maze-6x6" over its training: python dynamics.py FOLDER

FOLDER is the one that train.py trained in: its directories step-N hold the weights that were kept. The bundled model
itself, whose rate fell to 0 at the end, is the last checkpoint where it is there. Writes dynamics.json beside this
file; takes about a minute for each checkpoint, and starts again from nothing when it is stopped.

Up to step 11,000 the share of 6 × 6 mazes in training grows from a fifth (see train.py): what is measured here on
6 × 6 mazes alone is also the change of what was trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import clew
from clew import mazes

SEED, N_TRAIN, N_TEST, WALKS = 0, 4000, 1000, 500
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("--threads", type=int, help="of the pool")
    parser.add_argument("--out", type=Path, default=HERE / "dynamics.json")
    args = parser.parse_args()
    if args.threads:
        clew.set_num_threads(args.threads)
    # the directories alone: the trainer's last checkpoints lie beside them
    checkpoints = {step: path for step, path in mazes.kept_checkpoints(args.folder).items() if path.is_dir()}
    training = HERE / "training.json"
    last = None
    if training.is_file():
        last = json.loads(training.read_text(encoding="utf-8"))
        checkpoints = {step: path for step, path in checkpoints.items() if step <= last["constant_steps"]}
        checkpoints[last["steps"]] = HERE
    train, test = (
        mazes.generate(n, 6, seed=seed, split=part) for n, seed, part in ((N_TRAIN, 1, "train"), (N_TEST, 2, "test"))
    )
    about = {
        "model": "maze-6x6, at checkpoints of its own training (data/maze-6x6/train.py)", "seed": SEED,
        "measured on": f"rdfs mazes of 6 × 6: {N_TRAIN} of split train, seed 1; {N_TEST} of split test, seed 2, the "
        f"first {WALKS} walked",
        "decayed": None if last is None else f"the last checkpoint's rate fell to 0 from step {last['constant_steps']}",
        "version": clew.__version__,
    }  # fmt: skip
    found = mazes.over_training(checkpoints, train, test, walks=WALKS, seed=SEED, about=about)
    found.save(args.out)
    print(found.table())


if __name__ == "__main__":
    main()
