"""Measures the bundled model "maze-6x6" on held-out mazes: python evaluate.py

Every row of the paper's Table 1 on 1,000 mazes of each kind, and probes for every inner wall at <PATH_START>, learned
from 15,000 mazes as the paper's. Writes evaluation.json beside this file, with the seeds, and prints the tables that
README.md shows; takes some minutes, and starts again from nothing when it is stopped. `clew mazes --full` measures all
the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import clew
import numpy as np
from clew import mazes
from clew.experiment import plain

SEED, N_TABLE, N_TRAIN, N_TEST = 0, 1000, 15000, 2000
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE, help="a directory with a model")
    parser.add_argument("--threads", type=int, help="of the pool")
    parser.add_argument("--fewer", type=int, default=1, metavar="N", help="one of N of the mazes: to try the script")
    parser.add_argument("--out", type=Path, default=HERE / "evaluation.json")
    args = parser.parse_args()
    if args.threads:
        clew.set_num_threads(args.threads)
    model = clew.load(args.model)
    n_table, n_train, n_test = (max(1, n // args.fewer) for n in (N_TABLE, N_TRAIN, N_TEST))
    table = mazes.table(model, n_table, 6, seed=SEED)
    train, test = (
        mazes.generate(n, 6, seed=seed, split=part) for n, seed, part in ((n_train, 1, "train"), (n_test, 2, "test"))
    )
    walls = mazes.wall_probes(model, train, test, seed=SEED)
    result = {
        "model": model.config.model_name, "version": clew.__version__, "table 1": table.to_dict(),
        "below the paper's hallway model": table.below(),
        "walls": {
            "mazes": f"rdfs, 6 × 6: {n_train} of split train, seed 1; {n_test} of split test, seed 2",
            "majority of each wall": walls.majority,
            **{name: {key: np.round(plain(getattr(one, key)), 5).tolist() for key in ("accuracy", "low", "high",
               "control", "exact", "tree_exact")} for name, one in walls.scores.items()},
        },
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(plain(value), ensure_ascii=False)}" for key, value in result.items()]
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{table!r}\n\n{walls!r}\n\nbelow the paper's hallway model: {table.below() or 'none'}")


if __name__ == "__main__":
    main()
