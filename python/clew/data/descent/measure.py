"""Measures an inner optimisation over a training: python measure.py SHARED_DATA CHECKPOINTS [STEP ...]

The training is that of the bundled model "shakespeare". CHECKPOINTS is the folder with step-N directories that
`python data/shakespeare/train.py input.txt CHECKPOINTS` makes: the same training once more, same seed and order. The
held-out losses that are computed here at its steps are kept beside those which the first training recorded, so that it
can be seen whether it is the same. The last checkpoint is the bundled model itself, whether the folder holds step 2,400
or not.

Everything is measured on every other window of the package's held-out text, on which the model was not trained; the
tuned lens is fitted to the other windows at each checkpoint, the control lens to the test part of WikiText-2. Token
frequencies are those of the text that was trained on. Writes training.json beside this file; some minutes on one core.
What is measured of a checkpoint stays in CHECKPOINTS/measured, so that it can be stopped and started again; with STEPs
only those are measured, and nothing is written beside this file. Seed 0 for all that is drawn; one run.
"""

from __future__ import annotations

import dataclasses
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


def joined(parts: list[Any]) -> Any:
    """One value of several, along the first axis; mappings by key."""
    if isinstance(parts[0], dict):
        return {key: joined([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def main() -> None:
    data, folder = Path(sys.argv[1]), Path(sys.argv[2])
    bundled = clew.load("shakespeare")
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    learned, held_out = (np.asarray(bundled.to_tokens(part)[0]) for part in (text[:cut], text[cut:]))
    last = max(recorded())
    steps = sorted({last, *(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))})
    windows = corpus.windows(bundled, None, LENGTH, 2 * WINDOWS).tokens
    other_text = (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8").replace("<unk>", "unknown")
    other = corpus.windows(bundled, other_text, LENGTH, WINDOWS).tokens
    (folder / "measured").mkdir(exist_ok=True)

    def measured(step: int) -> descent.Training:
        path = folder / "measured" / f"{step}.json"
        if not path.exists():
            model = bundled if step == last else clew.load(folder / f"step-{step}")
            loss = {str(step): round(held_out_loss(model, held_out), 4)} if step in recorded() else {}
            descent.over_training(
                {step: model}, windows[::2], frequency=np.bincount(learned, minlength=bundled.config.d_vocab),
                about=loss, learn=windows[1::2], controls=True, other=other, seed=SEED,
            ).save(path)  # fmt: skip
            print(step, loss, flush=True)
        return descent.Training.load(path)

    asked = [int(step) for step in sys.argv[3:]]
    parts = [measured(step) for step in asked or steps]
    if asked:
        return
    again: dict[str, float] = {}
    for part in parts:
        again |= part.about
    about = {
        "model": "the bundled model shakespeare, at checkpoints of its own training",
        "checkpoints": "made again by data/shakespeare/train.py; the last is the bundled model, float16",
        "training_seed": 0, "seed": SEED, "runs": 1,
        "held_out_loss": again, "held_out_loss_recorded": {n: recorded()[int(n)] for n in again},
        "text": "held-out Shakespeare of the package", "windows": WINDOWS, "length": LENGTH,
        "other_text": "WikiText-2, test part", "training_tokens": len(learned), "version": clew.__version__,
    }  # fmt: skip
    names = [of.name for of in dataclasses.fields(descent.Training) if of.name != "about"]
    found = descent.Training(**{n: joined([getattr(part, n) for part in parts]) for n in names}, about=about)
    found.save(HERE / "training.json")
    print(found.table())


if __name__ == "__main__":
    main()
