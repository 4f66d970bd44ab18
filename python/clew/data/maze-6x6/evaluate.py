"""Measures the bundled model "maze-6x6" on held-out mazes: python evaluate.py

Every row of the paper's Table 1 on 1,000 mazes of each kind; probes for every inner wall behind each layer at
<PATH_START>, learned from 15,000 mazes as the paper's, and at <ORIGIN_START>, there also between attention and MLP;
ridge probes at every token before the path, from 5,000 of them; and what walks do once one wall is flipped along the
probes' directions at these places, in 300 mazes, at every layer. Writes evaluation.json beside this file, with the
seeds, and prints the tables that README.md shows; takes about fifteen minutes, and starts again from nothing when it is
stopped. `clew mazes --full` measures all the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import clew
from clew import mazes
from clew.experiment import plain
from clew.mazes.probes import by_position

SEED, N_TABLE, N_TRAIN, N_TEST, N_FLIPS = 0, 1000, 15000, 10000, 300
N_ALONG = 5000, 1000
READ = ("path_start", "origin_start")
WITHIN = "resid_mid"
HERE = Path(__file__).parent


def rounded(part: object) -> object:
    """JSON numbers with five digits behind the point."""
    values = plain(part)
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return round(values, 5) if isinstance(values, float) else values


def walls_json(walls: mazes.WallProbes) -> dict[str, object]:
    """What the probes of one token read, by method."""
    keys = ("accuracy", "low", "high", "control", "exact", "tree_exact")
    return {name: {key: rounded(getattr(one, key)) for key in keys} for name, one in walls.scores.items()}


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
    n_table, n_train, n_test, n_flips, *n_along = (
        max(2, n // args.fewer) for n in (N_TABLE, N_TRAIN, N_TEST, N_FLIPS, *N_ALONG)
    )
    table = mazes.table(model, n_table, 6, seed=SEED)
    train, test = (
        mazes.generate(n, 6, seed=seed, split=part) for n, seed, part in ((n_train, 1, "train"), (n_test, 2, "test"))
    )
    found = mazes.wall_probes_along(model, train, test, positions=READ, methods=["ridge", "logistic"])
    walls = [*found.values(), mazes.wall_probes(model, train, test, position=READ[1], site=WITHIN)]
    fewer = train[: n_along[0]], test[: n_along[1]]
    along = {site: mazes.wall_probes_along(model, *fewer, site=site) for site in ("resid_post", WITHIN)}
    flips = [mazes.flip_walls(model, test[:n_flips], probes, seed=SEED) for probes in walls]
    said = f"rdfs, 6 × 6: {n_train} of split train, seed 1; {n_test} of split test, seed 2"
    result = {
        "model": model.config.model_name, "version": clew.__version__, "table 1": table.to_dict(),
        "below the paper's hallway model": table.below(),
        "walls": {
            "mazes": said, "majority of each wall": walls[0].majority, **{one.place: walls_json(one) for one in walls}
        },
        "walls by token, ridge": {
            "mazes": f"the first {n_along[0]} and {n_along[1]} of them",
            "majority of each wall": along[WITHIN][READ[0]].majority,
            **{site: {at: walls_json(one)["ridge"] for at, one in read.items()} for site, read in along.items()},
        },
        "flips": {"mazes": f"the first {n_flips} of those of split test", "seed": SEED,
                  **{one.place: rounded(one) for one in flips}},
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(plain(value), ensure_ascii=False)}" for key, value in result.items()]
    args.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    parts = [table, *walls, *map(by_position, along.values()), *flips]
    print("\n\n".join(map(str, parts)))
    print(f"\nbelow the paper's hallway model: {table.below() or 'none'}")


if __name__ == "__main__":
    main()
