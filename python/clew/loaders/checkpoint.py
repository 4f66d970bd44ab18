"""What every loader returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import LoadError

Array = NDArray[Any]
Files = dict[Path, tuple[int, int]]

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
"""Names of the files that a tokenizer is read from."""


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
    tokenizer_files: Files = field(default_factory=dict)
    """The files that the tokenizer is read from, as they were found; saving the model copies them."""


def found_files(paths: Iterable[Path]) -> Files:
    """Those of the files that there are, with their sizes and when they last changed."""
    return {path: ((found := path.stat()).st_size, found.st_mtime_ns) for path in paths if path.is_file()}


def check_files(files: Files, others: Iterable[Path] = ()) -> None:
    """Raises LoadError for a tokenizer's file that is not what it was; others: which were not there, and must not be.

    A tokenizer is read when it is first used: another model may have been saved in its place by then.
    """
    now = found_files({**files, **dict.fromkeys(others)})
    for path in {**files, **now}:
        if files.get(path) != now.get(path):
            what = "changed" if path in now else "is gone"
            raise LoadError(f"{path}: this file of the tokenizer {what} since the model was loaded: load it again")
