"""Training: AdamW, schedules, data in a seeded order, checkpoints, and a loop around them.

>>> import clew, numpy as np
>>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=16, d_vocab=8))
>>> stream = np.arange(400) % 8
>>> curve = clew.train.fit(model, stream, steps=30, batch=4, lr=1e-2, progress=False)
>>> bool(curve.losses[-1] < 0.5)
True
"""

from __future__ import annotations

from .adamw import AdamW
from .checkpoint import load_model
from .curve import Curve
from .data import Generated, Sequences, Windows
from .schedule import Schedule, constant, cosine, linear
from .step import Examples, evaluate
from .trainer import Trainer, fit

__all__ = [
    "AdamW",
    "Curve",
    "Examples",
    "Generated",
    "Schedule",
    "Sequences",
    "Trainer",
    "Windows",
    "constant",
    "cosine",
    "evaluate",
    "fit",
    "linear",
    "load_model",
]
