"""Timing of several sides that take turns in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import Any

Times = dict[str, list[float]]
"""Side → seconds, one for each round."""


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> Times:
    """Seconds of every side in every round; the order is rotated, and reversed in every second round.

    What a side returns is freed outside the timed part.
    """
    names = list(sides)
    times: Times = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-warm_up, rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order[::-1] if turn % 2 else order:
                start = time.perf_counter()
                result = sides[name]()
                seconds = time.perf_counter() - start
                del result
                if turn >= 0:
                    times[name].append(seconds)
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return times


def paired(times: Times, above: str, below: str) -> list[float]:
    """Ratio of two sides in each round: drift of the machine cancels."""
    return [a / b for a, b in zip(times[above], times[below], strict=True)]


def quartiles(values: list[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


__all__ = ["Times", "alternate", "median", "paired", "quartiles"]
