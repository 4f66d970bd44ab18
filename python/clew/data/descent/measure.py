"""Measures an inner optimisation over the training of "shakespeare": python measure.py SHARED_DATA CHECKPOINTS

CHECKPOINTS is the folder with step-N directories that `python data/shakespeare/train.py input.txt CHECKPOINTS` makes:
the very training of the bundled model once more, same seed and order. The held-out losses that this script computes at
its steps are kept beside those which that training recorded, so that it can be seen whether it is the same. The last
checkpoint is the bundled model itself, whether the folder holds step 2,400 or not.

Everything is measured on every other window of the package's held-out text, on which the model was not trained; the
tuned lens is fitted to the other windows at each checkpoint, the control lens to the test part of WikiText-2. Token
frequencies are those of the text that was trained on. Writes training.json beside this file; a minute on a quiet core.
Seed 0 for all that is drawn; one run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew import corpus, descent

LENGTH, WINDOWS, SEED = 64, 32, 0
HERE = Path(__file__).parent


def recorded() -> dict[int, float]:
    """Step → held-out loss that the bundled model's training recorded."""
    data = json.loads((HERE.parent / "shakespeare" / "training.json").read_text(encoding="utf-8"))
    return {row["step"]: row["held_out_loss"] for row in data["curve"]}


def held_out_loss(model: clew.Model, ids: Any) -> float:
    """As data/shakespeare/train.py computes it: the mean over batches of 32 windows."""
    rows = ids[: len(ids) // 129 * 129].reshape(-1, 129)
    return float(np.mean([model.loss(rows[i : i + 32], reduce="mean") for i in range(0, len(rows), 32)]))


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    bundled = clew.load("shakespeare")
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    learned, held_out = (np.asarray(bundled.to_tokens(part)[0]) for part in (text[:cut], text[cut:]))
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    last = max(recorded())
    checkpoints: dict[int, Any] = {step: clew.load(folder / f"step-{step}") for step in steps} | {last: bundled}
    again = {str(n): round(held_out_loss(checkpoints[n], held_out), 4) for n in checkpoints if n in recorded()}
    windows = corpus.windows(bundled, None, LENGTH, 2 * WINDOWS).tokens
    other = (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").replace("<unk>", "unknown")
    about = {
        "model": "the bundled model shakespeare, at checkpoints of its own training",
        "checkpoints": "made again by data/shakespeare/train.py; the last is the bundled model, float16",
        "training_seed": 0, "seed": SEED, "runs": 1,
        "held_out_loss": again, "held_out_loss_recorded": {n: recorded()[int(n)] for n in again},
        "text": "held-out Shakespeare of the package", "windows": WINDOWS, "length": LENGTH,
        "other_text": "WikiText-2, test part", "training_tokens": len(learned), "version": clew.__version__,
    }  # fmt: skip
    found = descent.over_training(
        checkpoints, windows[::2], frequency=np.bincount(learned, minlength=bundled.config.d_vocab), about=about,
        learn=windows[1::2], controls=True, other=corpus.windows(bundled, other, LENGTH, WINDOWS).tokens, seed=SEED,
    )  # fmt: skip
    found.save(HERE / "training.json")
    print(found.table())


if __name__ == "__main__":
    main()
