"""Trains three models of each of two small shapes on 4 × 4 mazes: do they find the same solution?

    python train.py FOLDER                  trains all six, one after the other, and measures them
    python train.py FOLDER --measure        measures those that are there, and trains none

Both shapes have 4 layers of width 64; one has 4 heads of 16, the other 2 of 32, the sizes of the heads of the paper's
two models. Mazes are 3 × 3 at first, for edges are looked up sooner there, and 4 × 4 for the rest. All settings but the
seed (of weights and data alike) are the same; every model that was trained is in consistency.json, which is written
beside this file. FOLDER keeps checkpoints: a training that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import clew
from clew import mazes
from clew.train import Trainer, linear

SHAPES = {"4 heads of 16": {"n_heads": 4}, "2 heads of 32": {"n_heads": 2}}
SEEDS = (0, 1, 2)
STEPS, BATCH, RATE, WARMUP, DECAY, CLIP = 4000, 16, 1e-3, 100, 0.1, 1.0
BETAS, STD = (0.9, 0.98), 0.08
KINDS = {"rdfs": 0.7, "forkless": 0.2, "prdfs": 0.1}
STAGES = (mazes.Stage(500, {3: 0.8, 4: 0.2}, KINDS, batch=12), mazes.Stage(10**9, {3: 0.1, 4: 0.9}, KINDS))
EXTRA = {"mazes": {"grid": 4, "order": "uniform"}}
HERE = Path(__file__).parent
TOKENIZER = mazes.Tokenizer(**EXTRA["mazes"])


def train(shape: str, seed: int, folder: Path) -> None:
    """Trains one of the six, and saves it in its folder at the end."""
    config = mazes.hallway_config(
        n_layers=4, d_model=64, d_mlp=256, n_ctx=128, d_vocab=len(TOKENIZER.vocab), initializer_range=STD,
        model_name=f"maze-4x4, {shape}, seed {seed}", extra=EXTRA, **SHAPES[shape],
    )  # fmt: skip
    model = clew.Model.from_config(config, seed=seed)
    held_out = mazes.examples(mazes.generate(128, 4, seed=10**6, split="test"), TOKENIZER)
    Trainer(
        model, mazes.Curriculum(STAGES, TOKENIZER, seed), STEPS, BATCH, lr=linear(RATE, STEPS, WARMUP),
        betas=BETAS, weight_decay=DECAY, clip=CLIP, micro_batch=256, held_out=held_out, eval_every=500, eval_batch=64,
        directory=folder, checkpoint_every=250, keep=1, seed=seed,
        progress="lines",
    ).run()  # fmt: skip
    model.save(folder)


def measured(models: dict[str, list[clew.Model]], missing: list[str]) -> mazes.Consistency:
    """All of them, on held-out mazes, with the settings that they were trained with."""
    train, test = (mazes.generate(n, 4, seed=s, split=part) for n, s, part in ((2000, 1, "train"), (500, 2, "test")))
    about = {
        "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "rate": RATE, "warmup": WARMUP, "betas": BETAS, "clip": CLIP,
        "weight_decay": DECAY, "parameters": {shape: ones[0].n_params for shape, ones in models.items()},
        "data": mazes.Curriculum(STAGES, TOKENIZER, 0).identity() + ", and the other seeds", "not trained": missing,
        "measured on": "rdfs mazes of 4 × 4: 2,000 of split train, seed 1; 500 of split test, seed 2, all walked",
        "version": clew.__version__,
    }  # fmt: skip
    return mazes.compare(models, train, test, walks=500, about=about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoints go")
    parser.add_argument("--threads", type=int, help="of the pool")
    parser.add_argument("--measure", action="store_true", help="train none")
    args = parser.parse_args()
    if args.threads:
        clew.set_num_threads(args.threads)
    models: dict[str, list[clew.Model]] = {}
    missing = []
    for seed in SEEDS:
        for shape in SHAPES:
            folder = args.folder / f"heads-{SHAPES[shape]['n_heads']}-seed-{seed}"
            if not args.measure:
                print(f"{shape}, seed {seed}", flush=True)
                train(shape, seed, folder)
            if (folder / "model.safetensors").is_file():
                models.setdefault(shape, []).append(clew.load(folder))
            else:
                missing.append(f"{shape}, seed {seed}")
    found = measured(models, missing)
    found.save(HERE / "consistency.json")
    print(found.table())


if __name__ == "__main__":
    main()
