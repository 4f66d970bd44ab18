"""What every loader returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig

Array = NDArray[Any]


@dataclass
class Checkpoint:
    """A model as it lies in a file: its configuration and its weights in classic layout.

    `weights` maps full names (`"blocks.0.attn.W_Q"`, see `weights.def`) to arrays whose *shape* is the classic one and
    whose strides are the file's: a float32 file's arrays are views of the mapped file. Absent biases are left out.
    All arrays share one dtype, float32 or float64. A tied unembedding is a transposed view of `W_E`.
    """

    config: ModelConfig
    weights: dict[str, Array]
    dtype: np.dtype[Any]
    tokenizer: Callable[[], Any] | None = None
    """Builds the tokenizer on first use; None where the files hold none."""
    notes: list[str] = field(default_factory=list)
    """What the loader left out and why (rotary buffers, attention masks, ...); never a weight that matters."""
    tokenizer_files: tuple[Path, ...] = ()
    """The files that the tokenizer is read from; saving the model copies them."""
