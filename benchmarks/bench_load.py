"""Loading and planning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clew


def bench_map(benchmark: Any, directory: Path) -> None:
    """float32 weights stay in the mapped file."""
    assert benchmark(clew.load, directory).config.n_layers == 12


def bench_convert(benchmark: Any, directory: Path) -> None:
    """float64 weights are converted once."""
    model = benchmark.pedantic(clew.load, (directory,), {"dtype": "float64"}, rounds=3, warmup_rounds=1)
    assert model.dtype == "float64"


def bench_plan(benchmark: Any, model: clew.Model) -> None:
    """Everything captured at 1×1024."""
    assert benchmark(model.plan, 1, 1024, "*").keep_bytes > 0
