"""Short runs of a tiny model, for the tests of training's loop and of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew.train import Trainer

CONFIG = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=12, d_vocab=11, tie_word_embeddings=True)
STREAM = (np.arange(300) * 3 + (np.random.default_rng(0).random(300) < 0.1)) % 11
HELD = np.arange(60) * 3 % 11


def trainer(directory: Path | None = None, seed: int = 3, **settings: Any) -> Trainer:
    """A run of 12 steps; every part of the state takes part."""
    given: dict[str, Any] = dict(
        data=STREAM, steps=12, batch=3, lr=clew.train.cosine(1e-2, 12, 3, 1e-3), held_out=HELD, eval_every=4, seed=seed,
        directory=directory, checkpoint_every=3, micro_batch=2, weight_decay=0.1, clip=0.5, progress=False,
    )  # fmt: skip
    dtype = settings.pop("dtype", "float32")
    model = settings.pop("model", None) or clew.Model.from_config(CONFIG, seed=1, dtype=dtype)
    return Trainer(model, **{**given, **settings})


def same_bits(one: Trainer, other: Trainer) -> None:
    for name, array in one.optimizer.state().items():
        assert np.array_equal(array, other.optimizer.state()[name]), name
    assert one.optimizer.steps == other.optimizer.steps
    assert one.curve == other.curve
