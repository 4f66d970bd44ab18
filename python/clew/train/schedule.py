"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..inputs import number

_KINDS = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step: a linear warm-up, then constant, or falling to a floor. See the functions below.

    >>> rate = cosine(1e-3, steps=100, warmup=10, floor=1e-4)
    >>> f"{rate(0):.0e} {rate(9):.0e} {rate(10):.0e} {rate(55):.2e} {rate(100):.0e} {rate(1000):.0e}"
    '1e-04 1e-03 1e-03 5.50e-04 1e-04 1e-04'
    """

    kind: str
    rate: float
    """The largest rate."""
    steps: int = 0
    """Steps until the floor is reached, the warm-up included."""
    warmup: int = 0
    """Steps over which the rate rises to its largest."""
    floor: float = 0.0
    """The smallest rate behind the warm-up."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(f"Schedule: kind = {self.kind!r}; known: {', '.join(_KINDS)}")
        for name in ("rate", "floor"):
            object.__setattr__(self, name, number(getattr(self, name), f"Schedule: {name}"))
        for name in ("steps", "warmup"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ConfigError(f"Schedule: {name} = {value!r}, must be a whole number, at least 0")
            object.__setattr__(self, name, int(value))
        if self.kind != "constant" and self.steps <= self.warmup:
            raise ConfigError(f"Schedule: steps = {self.steps} must be more than warmup = {self.warmup}")
        if self.floor > self.rate:
            raise ConfigError(f"Schedule: floor = {self.floor} lies above rate = {self.rate}")

    def __call__(self, step: int) -> float:
        """The rate of a step; the first is 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.rate
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        share = 1 - done if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.floor + (self.rate - self.floor) * share

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON can hold them."""
        return asdict(self)


def constant(rate: float, warmup: int = 0) -> Schedule:
    """The same rate throughout, after `warmup` steps of rising to it."""
    return Schedule("constant", rate, 0, warmup)


def linear(rate: float, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Rises over `warmup` steps, then falls in a straight line, to be `floor` from step `steps` on."""
    return Schedule("linear", rate, steps, warmup, floor)


def cosine(rate: float, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Rises over `warmup` steps, then falls along half a cosine, to be `floor` from step `steps` on."""
    return Schedule("cosine", rate, steps, warmup, floor)
