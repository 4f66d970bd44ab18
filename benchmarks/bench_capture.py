"""Runs of 1×128 tokens that capture nothing, something, everything."""

from __future__ import annotations

from typing import Any

import clew
import pytest

from . import models

CAPTURES = {
    "nothing": None,
    "resid_post": "resid_post",
    "pattern": "pattern",
    "result": "result",
    "everything": "*",
}


@pytest.mark.benchmark(group="capture 1x128")
@pytest.mark.parametrize("name", CAPTURES)
def bench_capture(benchmark: Any, model: clew.Model, name: str) -> None:
    """Memory is warm: what a run kept is freed before the next."""
    ids = models.tokens(1, 128)

    def run() -> int:
        return len(list(model.run(ids, capture=CAPTURES[name])))

    assert benchmark.pedantic(run, rounds=5, warmup_rounds=1) > 0
