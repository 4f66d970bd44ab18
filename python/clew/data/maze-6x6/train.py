"""Trains the bundled model "maze-6x6" with clew, on mazes that are made while it learns.

    python train.py FOLDER                                  trains at a constant rate, for as long as it is let
    python train.py FOLDER --decay-from CHECKPOINT          makes a model of a checkpoint: the rate falls to 0
    python train.py FOLDER --from-model MODEL               trains on from such a model, in a FOLDER of its own

The shape is the paper's hallway model (arXiv:2312.02566): 6 layers of width 128, 4 heads, 1,238,076 parameters, tokens
AOTP_UT_uniform of 7 × 7 mazes. The loss is on the path alone, <PATH_START> and <PATH_END> included. What is learned
first is to look up edges, then which way leads to the target; small mazes teach both with a third of the tokens, and
small batches suffice for it. So grids grow from 3 to 6, and batches with them; some large mazes come from the
beginning, for positions and cells are learned. From step 17,000 on nine further origins and targets come behind each
maze's path, with the first two steps between them: of the first step, where most paths go wrong, there are ten to learn
from in place of one. The rate is low: at 4e-4 the loss on 3 × 3 mazes falls from 0.2 nats per token at 600 steps to 0.1
at 1,200, where at 1e-3 it is still 0.15; at 1.5e-3 a model looks up edges and guesses at forks for 10,000 steps.

The first command goes on from its last checkpoint when it is stopped and started again, with the same bits as without
the stop. The rate is constant, so a decay may begin at any checkpoint, and training may go on behind it. FOLDER holds
the trainer's checkpoints and, as float16, the weights at steps spaced by factors of about 2 (step-N/, for the
dynamics). The second command writes config.json, model.safetensors (float16) and training.json to --out. The third
needs what the second wrote to --out, and no checkpoint: the last stage and the constant rate again, counted from 0,
with a new optimizer and other mazes. It is stopped, gone on with and decayed as above, --from-model given each time;
training.json then joins the curves.

All mazes of training have walls whose hash lies in the split "train"; the other tenth is held out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew import mazes
from clew.train import Trainer, constant, linear
from safetensors.numpy import load_file, save_file

SEED, BATCH, RATE, WARMUP, DECAY, CLIP = 0, 32, 4e-4, 100, 0.1, 1.0
BETAS, STD = (0.9, 0.98), 0.06
KINDS = {"rdfs": 0.7, "forkless": 0.2, "prdfs": 0.1}
STAGES = (
    mazes.Stage(2500, {3: 0.8, 6: 0.2}, KINDS, batch=8),
    mazes.Stage(5000, {3: 0.15, 4: 0.65, 6: 0.2}, KINDS, batch=12),
    mazes.Stage(8000, {3: 0.05, 4: 0.15, 5: 0.5, 6: 0.3}, KINDS, batch=16),
    mazes.Stage(11000, {4: 0.05, 5: 0.25, 6: 0.7}, KINDS, batch=24),
    mazes.Stage(17000, {3: 0.02, 4: 0.03, 5: 0.1, 6: 0.85}, KINDS),
    mazes.Stage(10**9, {3: 0.02, 4: 0.03, 5: 0.1, 6: 0.85}, KINDS, questions=9),
)
KEPT = (0, 100, 250, 500, 1000, 2500, 5000, 8000, 11000, 15000, 20000, 28000, 40000)
EXTRA = {"mazes": {"grid": 7, "order": "uniform"}}
HERE = Path(__file__).parent
TOKENIZER = mazes.Tokenizer(**EXTRA["mazes"])


def held_out(n: int = 96) -> clew.train.Examples:
    """Held-out 6 × 6 mazes of the three kinds."""
    parts = [mazes.generate(n, 6, kind, seed=10**6, split="test") for kind in KINDS]
    return mazes.examples(mazes.Mazes.join(parts), TOKENIZER)


def save_half(model: clew.Model, folder: Path) -> None:
    """The model's files, float16."""
    model.save(folder)
    half = {name: w.astype(np.float16) for name, w in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", {"format": "clew"})


def trainer_of(model: clew.Model, folder: Path, steps: int, lr: clew.train.Schedule, every: int, done: int) -> Trainer:
    """The trainer of both phases, behind so many steps of the model that it goes on from."""
    data = mazes.Curriculum(STAGES[-1:] if done else STAGES, TOKENIZER, SEED + done)

    def keep(trainer: Trainer) -> None:
        step = trainer.optimizer.steps
        if step in KEPT:
            save_half(trainer.model, folder / f"step-{step}")

    return Trainer(
        model, data, steps, BATCH, lr=lr, betas=BETAS, weight_decay=DECAY,
        clip=CLIP, micro_batch=256, held_out=held_out(), eval_every=250, eval_batch=64, directory=folder,
        checkpoint_every=every, keep=3, seed=SEED, progress="lines", callback=keep,
    )  # fmt: skip


def begin(folder: Path | None) -> tuple[clew.Model, dict[str, Any]]:
    """A model to train, and the training.json of the one that it goes on from."""
    if folder is None:
        config = mazes.hallway_config(initializer_range=STD, model_name="maze-6x6", extra=EXTRA)
        return clew.Model.from_config(config, seed=SEED), {"steps": 0, "loss_curve": [], "held_out_loss": []}
    return clew.load(folder), json.loads((folder / "training.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoints go")
    parser.add_argument("--steps", type=int, default=20000, help="of the constant rate, all together")
    parser.add_argument("--threads", type=int, help="of the pool")
    parser.add_argument("--decay-from", type=Path, help="a checkpoint (step-….safetensors) to make a model of")
    parser.add_argument("--decay-steps", type=int, default=3000)
    parser.add_argument("--from-model", type=Path, metavar="MODEL", help="the --out of an earlier training")
    parser.add_argument("--out", type=Path, default=HERE, help="where the model goes")
    args = parser.parse_args()
    if args.threads:
        clew.set_num_threads(args.threads)
    model, before = begin(args.from_model)
    done = before["steps"]
    if args.decay_from is None:
        args.folder.mkdir(parents=True, exist_ok=True)
        if not (args.folder / "step-0").exists():
            save_half(model, args.folder / "step-0")
        trainer_of(model, args.folder, args.steps, constant(RATE, WARMUP), 250, done).run()
        return
    began = int(args.decay_from.stem.removeprefix("step-"))
    folder = args.folder / f"decay-{began}-{args.decay_steps}"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("step-*.safetensors")):
        shutil.copyfile(args.decay_from, folder / args.decay_from.name)
    end = began + args.decay_steps
    trainer = trainer_of(model, folder, end, linear(RATE, end, began), 250, done)
    curve = trainer.run()
    save_half(model, args.out)
    result = {
        "seed": SEED, "steps": done + end, "constant_steps": done + began, "decay_steps": args.decay_steps,
        "batch": BATCH, "rate": RATE, "betas": BETAS, "weight_decay": DECAY, "parameters": model.n_params,
        "data": (f"{before['data']}; then " if done else "") + trainer.source.identity(),
        "loss_curve": before["loss_curve"]
        + [[done + int(row[0]), round(float(row[1]), 4)] for row in curve.rows if row[0] % 50 == 0],
        "held_out_loss": before["held_out_loss"]
        + [[done + int(step), round(float(loss), 4)] for step, loss in curve.held_out if step or not done],
    }  # fmt: skip
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in result.items()]
    (args.out / "training.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
