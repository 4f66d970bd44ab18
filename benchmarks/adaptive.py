"""Adaptive inference: training steps against NumPy, and the restricted programme against its minute."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from clew.adaptive import Constrained, fit, programme, tree

from .report import Figure, at_least, at_most, of_times
from .timing import Times, alternate

if TYPE_CHECKING:
    from .part import Setting

STEPS, LAYERS, WIDTH, READOUT, BATCH = 50, 3, 64, 64, 512


def _numpy_steps(parts: list[np.ndarray[Any, Any]], rng: np.random.Generator) -> None:
    """Forward and backward passes of the constrained transformer, float32; the optimiser is left out."""
    centres = tree().centres.astype(np.float32)
    for _ in range(STEPS):
        w = centres[rng.integers(0, 8, BATCH)]
        estimate = w + np.float32(0.3) * rng.standard_normal(w.shape, np.float32)
        messages, hidden, at = np.zeros((BATCH, 0), np.float32), [], 0
        for _ in range(LAYERS):
            W1, b1, W2, b2 = parts[at : at + 4]
            hidden.append(np.tanh(messages @ W1.T + b1))
            answer = ((hidden[-1] @ W2.T + b2) * estimate).sum(axis=1, keepdims=True)
            messages, at = np.concatenate([messages, answer], axis=1), at + 4
        V1, c1, V2, c2 = parts[at:]
        inner = np.tanh(messages @ V1.T + c1)
        d_out = 2 * (inner @ V2.T + c2 - w) / BATCH
        d_inner = d_out @ V2 * (1 - inner**2)
        gradients = [d_out.T @ inner, d_out.sum(axis=0), d_inner.T @ messages, d_inner.sum(axis=0)]
        d_messages = d_inner @ V1
        for layer in range(LAYERS - 1, -1, -1):
            W1, _, W2, _ = parts[4 * layer : 4 * layer + 4]
            d_u = d_messages[:, layer : layer + 1] * estimate
            d_h = d_u @ W2 * (1 - hidden[layer] ** 2)
            gradients += [d_u.T @ hidden[layer], d_u.sum(axis=0), d_h.T @ messages[:, :layer], d_h.sum(axis=0)]
            d_messages[:, :layer] += d_h @ W1


def _parts(network: Constrained) -> list[np.ndarray[Any, Any]]:
    shapes: list[tuple[int, ...]] = []
    for layer in range(LAYERS):
        shapes += [(WIDTH, layer), (WIDTH,), (7, WIDTH), (7,)]
    shapes += [(READOUT, LAYERS), (READOUT,), (7, READOUT), (7,)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(network.parameters, ends[:-1]), shapes, strict=True)]


def adaptive(setting: Setting) -> list[Figure]:
    """A training step beside NumPy's forward and backward pass, and the programme of depth 3 and 3 layers."""
    network = Constrained(tree(), 0.3, LAYERS, readout=READOUT)
    sides = {
        "clew": partial(fit, tree(), 0.3, LAYERS, readout=READOUT, steps=STEPS),
        "numpy": partial(_numpy_steps, _parts(network), np.random.default_rng(0)),
    }
    times = alternate(sides, setting.rounds, 1)
    name = f"adaptive: {STEPS} training steps, {LAYERS} layers, {BATCH} contexts"
    out = [of_times(f"{name}  NumPy without optimiser / clew", times, "numpy", "clew", at_least(2.0))]
    start = time.perf_counter()
    programme(tree(), 0.3, (1, 1, 1))
    minute: Times = {"programme": [time.perf_counter() - start], "minute": [60.0]}
    out.append(of_times("adaptive: programme, depth 3, 3 layers / a minute", minute, "programme", "minute", at_most(1.0)))
    return out
