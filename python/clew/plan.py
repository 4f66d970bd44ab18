"""What a run would cost."""

from __future__ import annotations

from typing import Any

from .sites import SITES


class Plan:
    """What a run would do and need, known before anything is allocated."""

    def __init__(self, core: Any, batch: int, pos: int) -> None:
        self._core = core
        self.batch, self.pos = batch, pos
        self.keep_bytes: int = core.keep_bytes
        """Bytes of the arrays that the caller gets."""
        self.flops: float = core.flops
        """Floating-point operations of all products; causal attention counts what it shows."""
        self.sites: dict[str, tuple[int, ...]] = {}
        """Full name → shape of every array that the run gives, in order of computation."""
        for index, layers, shape in core.outputs:
            for layer in layers:
                self.sites[SITES[index].full_name(layer)] = shape

    @property
    def scratch_bytes(self) -> int:
        """Bytes that a run needs besides, recycled when it ends; depends on the number of threads."""
        return int(self._core.scratch_bytes)

    @property
    def steps(self) -> list[str]:
        """One line for each step of the computation."""
        return list(self._core.steps)

    def __repr__(self) -> str:
        return (
            f"Plan of {self.batch} × {self.pos} tokens: {len(self.steps)} steps, {self.flops / 1e9:.3g} GFLOP, "
            f"keeps {self.keep_bytes / 1e6:.3g} MB in {len(self.sites)} arrays, "
            f"scratch {self.scratch_bytes / 1e6:.3g} MB"
        )


__all__ = ["Plan"]
