"""Measures an inner optimisation over a training: python train.py SHARED_DATA [CHECKPOINTS]

Without CHECKPOINTS a small model of the shape of "shakespeare" is trained with clew on the first nine tenths of
SHARED_DATA/tinyshakespeare/input.txt, through shakespeare's tokenizer (seed 0; five minutes on two cores), and measured
at eleven checkpoints, step 0 among them, as it goes. CHECKPOINTS is instead a folder with `step-N` directories, as
data/english/train.py writes them: then those are measured, with english's tokenizer.

Measured on SHARED_DATA/wikitext-2/test.txt, on which neither was trained; token frequencies are those of the training
text (for CHECKPOINTS, of the three texts' parts that english learned). Writes training.json beside this file; takes
half a minute for each checkpoint.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew import corpus, descent
from clew.train import Trainer, cosine

SEED, STEPS, BATCH, CONTEXT, RATE = 0, 600, 16, 64, 2e-3
CHECKPOINTS = (0, 10, 25, 50, 100, 150, 200, 300, 400, 500, STEPS)
WINDOWS, LENGTH = 32, 64
HERE = Path(__file__).parent


def measured_text(data: Path) -> str:
    """WikiText-2's test part."""
    return (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").replace("<unk>", "unknown")


def of_checkpoints(data: Path, folder: Path) -> descent.Training:
    """Measures checkpoints of english that are there already."""
    sys.path.insert(0, str(HERE.parent / "english"))
    import train as english  # type: ignore[import-not-found]  # data/english/train.py

    paths = {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}
    model = clew.load("english")
    learned = [text[: len(text) * 19 // 20] for text in english.texts(data).values()]
    about = {"model": "english, at checkpoints of its own training (data/english/train.py)", "seed": english.SEED}
    return measure(model, data, paths, descent.frequencies(model, learned), about)


def measure(model: clew.Model, data: Path, checkpoints: Any, frequency: Any, about: dict[str, Any]) -> descent.Training:
    """The measurements, with what they were made of."""
    cut = corpus.windows(model, measured_text(data), LENGTH, WINDOWS)
    about |= {"text": "WikiText-2, test part", "windows": WINDOWS, "length": LENGTH, "version": clew.__version__}
    return descent.over_training(checkpoints, cut.tokens, frequency=frequency, about=about)


def of_training(data: Path) -> descent.Training:
    """Trains the small model and measures it as it goes."""
    source = clew.load("shakespeare")
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    stream = np.asarray(source.to_tokens(text[: len(text) * 9 // 10])[0])
    held_out = np.asarray(source.to_tokens(text[len(text) * 9 // 10 :])[0])[: 32 * (CONTEXT + 1)]
    config = source.config.replace(n_ctx=CONTEXT, model_name="shakespeare, small run")
    model = clew.Model.from_config(config, seed=SEED)
    kept = {0: clew.Model.from_config(config, seed=SEED)}
    losses: dict[str, float] = {}

    def note(trainer: Trainer) -> None:
        step = trainer.optimizer.steps
        if step in CHECKPOINTS:
            kept[step] = copy.deepcopy(model)
            losses[str(step)] = round(float(model.loss(held_out.reshape(32, -1)[:, :CONTEXT], reduce="mean")), 4)
            print(step, losses[str(step)], flush=True)

    Trainer(
        model, stream, STEPS, BATCH, lr=cosine(RATE, STEPS, 50, RATE / 10), betas=(0.9, 0.98), weight_decay=0.1,
        clip=1.0, context=CONTEXT, seed=SEED, progress=False, callback=note,
    ).run()  # fmt: skip
    about = {
        "model": f"a model of shakespeare's shape ({model.n_params:,} parameters), trained for {STEPS} steps on tiny "
        "Shakespeare",
        "seed": SEED, "steps": STEPS, "batch": BATCH, "context": CONTEXT, "rate": RATE, "training_tokens": len(stream),
        "held_out_loss": losses,
    }  # fmt: skip
    return measure(source, data, kept, np.bincount(stream, minlength=config.d_vocab), about)


def main() -> None:
    data = Path(sys.argv[1])
    found = of_checkpoints(data, Path(sys.argv[2])) if len(sys.argv) > 2 else of_training(data)
    found.save(HERE / "training.json")
    print(found.table())


if __name__ == "__main__":
    main()
