"""Walks against the forward passes they come from, and multiple choice against Hugging Face."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew.walk import decoding_walk, log_probabilities
from numpy.typing import NDArray

from . import models
from .report import Figure, at_least, at_most, of_times, skipped
from .timing import alternate

if TYPE_CHECKING:
    from .part import Setting

POS = 1024
CONTEXT, ENDING, CHOICES, TASKS = 64, 20, 4, 8
"""Tokens of a task's context and ending (about HellaSwag's), endings of each, tasks of a batch."""


def _hf_scores(model: Any, rows: NDArray[np.int64], lengths: list[int]) -> NDArray[np.float64]:
    """Σ log p of the endings of whole rows [n, pos], as evaluation harnesses do: each ending behind its context."""
    import torch

    inputs = torch.from_numpy(rows)
    with torch.inference_mode():
        logits = model(inputs, use_cache=False).logits[:, CONTEXT - 1 : -1]
        log_p = torch.log_softmax(logits, -1).gather(-1, inputs[:, CONTEXT:, None])[..., 0]
    return np.array([float(row[:n].sum()) for row, n in zip(log_p, lengths, strict=True)])


def walk(setting: Setting) -> list[Figure]:
    """A walk of 1,024 tokens with its five nearest by three metrics; tasks of four endings of different lengths."""
    model = clew.load(setting.directory)
    ids = models.tokens(1, POS)[0]
    sides: dict[str, models.Forward] = {
        "walk": partial(decoding_walk, model, ids),
        "one metric": partial(decoding_walk, model, ids, metrics=("dot",)),
        "forward": partial(model.run, ids),
    }
    times = alternate(sides, setting.rounds)
    out = [
        of_times("decoding walk of 1024  all three metrics / forward", times, "walk", "forward", at_most(1.3)),
        of_times("decoding walk of 1024  all three metrics / one", times, "walk", "one metric"),
    ]
    name = f"multiple choice, {TASKS} tasks of 4 endings  HF {{}} / clew"
    if why := models.missing_hf():
        return [*out, skipped(name.format("better"), at_least(2.0), why)]

    rng = np.random.default_rng(0)
    lengths = rng.integers(ENDING // 2, ENDING + ENDING // 2, TASKS * CHOICES).tolist()
    contexts = models.tokens(TASKS, CONTEXT)
    endings = [rng.integers(0, models.D_VOCAB, n) for n in lengths]
    rows = np.zeros((len(endings), CONTEXT + max(lengths)), np.int64)
    for i, ending in enumerate(endings):
        rows[i, :CONTEXT], rows[i, CONTEXT : CONTEXT + len(ending)] = contexts[i // CHOICES], ending
    groups = [[e.tolist() for e in endings[i : i + CHOICES]] for i in range(0, len(endings), CHOICES)]
    ours = partial(log_probabilities, model, contexts.tolist(), groups)
    peers = {kind: models.hugging_face(setting.directory, kind) for kind in ("eager", "sdpa")}
    for peer in peers.values():  # both sides must compute the same, else their times say nothing
        theirs, mine = _hf_scores(peer, rows, lengths), np.concatenate(ours())
        if not np.abs(theirs - mine).max() < 1e-3 * np.abs(mine).max():
            raise RuntimeError(f"the two sides disagree: log-probabilities differ by {np.abs(theirs - mine).max():.2g}")
    choice: dict[str, models.Forward] = {"clew": ours}
    choice |= {kind: partial(_hf_scores, peer, rows, lengths) for kind, peer in peers.items()}
    times = alternate(choice, setting.rounds)
    better = min(peers, key=lambda kind: float(np.median(times[kind])))
    note = f"context {CONTEXT}, endings {min(lengths)} to {max(lengths)} tokens, one batch"
    return [*out, of_times(name.format(better), times, better, "clew", at_least(2.0), note)]
