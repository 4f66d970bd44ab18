"""How fast this machine runs a model: the command `clew bench`. `make bench` compares with other libraries."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import _core, edit, memory, metrics
from .errors import ConfigError
from .model import Model
from .weights import whole

_SQUARE = 1024
"""Rows of the product whose speed is the measure: large enough for the full speed of the machine."""


@dataclass(frozen=True)
class Timing:
    """One thing that was timed."""

    what: str
    seconds: float
    """Median over the rounds."""
    note: str
    """What that means: a speed, or a ratio to the plain forward pass."""


def bench(model: Model, batch: int = 1, pos: int | None = None, rounds: int = 7, seed: int = 0) -> list[Timing]:
    """Times a forward pass on random tokens and what is done around it; the sides take turns in every round.

    pos: None is 256, or `n_ctx` where that is less.

    Raises ConfigError for a model that reads vectors, TokenError for more tokens than the model has positions.

    >>> import clew
    >>> from clew.bench import bench
    >>> [t.what for t in bench(clew.load("stories260K"), pos=8, rounds=1)][:3]
    ['product of 1024 × 1024', 'forward, 1 × 8', '  every site captured']
    """
    config = model.config
    if config.d_in is not None or config.d_out is not None:
        raise ConfigError(
            f"bench: a model of tokens is timed, this one has d_in = {config.d_in}, d_out = {config.d_out}"
        )
    pos, batch = min(256, config.n_ctx) if pos is None else whole(pos, "pos"), whole(batch, "batch")
    if whole(rounds, "rounds") < 1:
        raise ConfigError(f"bench: rounds = {rounds}, at least 1")
    plan = model.plan(batch, pos)
    tokens = np.random.default_rng(seed).integers(0, config.d_vocab, (batch, pos))
    a, b, out = (memory.empty((_SQUARE, _SQUARE), model.dtype) for _ in range(3))
    a[...], b[...] = 1, 1
    forward = f"forward, {batch} × {pos}"
    sides: dict[str, Callable[[], object]] = {
        f"product of {_SQUARE} × {_SQUARE}": lambda: _core.product(out, a, b),
        forward: lambda: model.run(tokens),
        "  every site captured": lambda: model.run(tokens, capture="*"),
    }
    if config.n_layers:
        sides["  one head zeroed"] = lambda: model.run(tokens, edits=edit.zero(("z", 0), heads=0))
    if pos > 1:
        sides["  and backward"] = lambda: model.gradients(tokens, metrics.loss(), wrt="weights")
    new = min(16, config.n_ctx - 1)
    if new > 0 and config.attention_dir == "causal" and config.d_vocab_out <= config.d_vocab:
        sides["a new token"] = lambda: model.generate(tokens[:1, :1], max_new_tokens=new)
    seconds = _medians(sides, rounds)
    speed = {what: 2.0 * _SQUARE**3 / t for what, t in seconds.items() if what.startswith("product")}
    speed[forward] = plan.flops / seconds[forward]
    rows = []
    for what, t in seconds.items():
        if what == "a new token":
            t /= new
            note = f"{1 / t:,.0f} tokens/s, {model.n_params * model.dtype.itemsize / t / 1e9:.3g} GB/s of weights"
        elif what == forward:
            share = speed[forward] / max(speed.values())
            note = f"{batch * pos / t:,.0f} tokens/s, {speed[forward] / 1e9:.3g} GFLOP/s, {share:.0%} of the fastest"
        elif what in speed:
            note = f"{speed[what] / 1e9:.3g} GFLOP/s"
        else:
            note = f"{t / seconds[forward]:.2f} × the forward pass"
        rows.append(Timing(what, t, note))
    return rows


def _medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each side, median over rounds; one round more goes before, to warm up."""
    times: dict[str, list[float]] = {what: [] for what in sides}
    for turn in range(rounds + 1):
        for what, side in sides.items():
            begin = time.perf_counter()
            side()
            if turn:
                times[what].append(time.perf_counter() - begin)
    return {what: float(np.median(t)) for what, t in times.items()}


__all__ = ["Timing", "bench"]
