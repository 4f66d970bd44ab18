"""Nearest tokens against the products that they need, and the memory that the search takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from clew import _core
from clew.geometry import nearest

from . import models
from .cost import probe
from .floor import filled
from .models import D_MODEL, D_VOCAB
from .report import Figure, at_most, megabytes, of_limit, of_times, skipped
from .timing import alternate, median

if TYPE_CHECKING:
    from .part import Setting

VECTORS = 10_000
BLOCK = 512
"""Vectors whose scores the floor computes at once."""


def geometry(setting: Setting) -> list[Figure]:
    """The ten nearest of 50,257 × 768 rows to each of 10,000 vectors; the floor is the products alone."""
    n = VECTORS // 4 if setting.quick else VECTORS
    rows, vectors = filled(D_VOCAB, D_MODEL), filled(n, D_MODEL)
    scores = filled(BLOCK, D_VOCAB)

    def floor() -> None:
        for first in range(0, n, BLOCK):
            block = vectors[first : first + BLOCK]
            _core.product(scores[: len(block)], block, rows.T)

    metrics = ("dot", "cosine", "l2")
    sides: dict[str, models.Forward] = {m: partial(nearest, rows, vectors, 10, m) for m in metrics}  # type: ignore[arg-type]
    times = alternate(sides | {"floor": floor}, setting.rounds)
    rate = f"b at {2.0 * n * D_VOCAB * D_MODEL / median(times['floor']) / 1e9:.0f} GF/s"
    out = [
        of_times(f"nearest of {D_VOCAB:,} to {n:,}, {m}  clew / GEMM floor", times, m, "floor", at_most(1.4), rate)
        for m in metrics
    ]
    name, taken = f"memory of nearest to {VECTORS:,} / 64 MB", probe("nearest", str(VECTORS))["bytes"]
    if taken is None:
        out.append(skipped(name, at_most(1.0), "the system does not tell a process's peak memory"))
    else:
        out.append(of_limit(name, taken, 64e6, megabytes, "beside both matrices"))
    return out
