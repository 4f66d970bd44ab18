"""Forward passes of GPT-2 124M, the products alone beside them."""

from __future__ import annotations

from typing import Any

import clew
import pytest

from . import models
from .floor import Gemm

SHAPES = [(1, 128), (1, 32), (1, 8), (1, 1)]


@pytest.fixture(scope="module")
def gemm() -> Gemm:
    return Gemm()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def bench_forward(benchmark: Any, model: clew.Model, shape: tuple[int, int]) -> None:
    """All logits."""
    benchmark.group = f"{shape[0]}x{shape[1]}"
    run = benchmark.pedantic(model.run, (models.tokens(*shape),), rounds=5, warmup_rounds=1)
    assert run.logits.shape == (*shape, models.D_VOCAB)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def bench_gemm_floor(benchmark: Any, gemm: Gemm, shape: tuple[int, int]) -> None:
    """The products alone."""
    benchmark.group = f"{shape[0]}x{shape[1]}"
    benchmark.pedantic(gemm.forward(*shape), rounds=5, warmup_rounds=1)


def bench_last_logits(benchmark: Any, model: clew.Model) -> None:
    """Logits of the last position only."""
    run = benchmark.pedantic(model.run, (models.tokens(1, 128),), {"logits": "last"}, rounds=5, warmup_rounds=1)
    assert run.logits.shape == (1, 1, models.D_VOCAB)
