"""Sweeps, decoding and training against the peers, and against the work that cannot be avoided."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew import _core, edit

from . import models
from .floor import filled
from .models import D_MLP, D_MODEL, N_HEADS, N_LAYERS
from .report import Figure, at_least, at_most, of_times, skipped
from .timing import Times, alternate, median

if TYPE_CHECKING:
    from .part import Setting

POS = 16


class Dense:
    """The products of the blocks that a sweep must compute: for each first layer, so many rows and last rows."""

    def __init__(self) -> None:
        self._layers = [
            (filled(D_MODEL, 3 * D_MODEL), filled(D_MODEL, D_MODEL), filled(D_MODEL, D_MLP), filled(D_MLP, D_MODEL))
            for _ in range(N_LAYERS)
        ]

    def sweep(self, rows: int, last: int, from_z: bool) -> Any:
        """A function that computes, for each layer, blocks from it on for `rows` rows; the last block's for `last`.

        Variants that begin later join those that have come to their layer: products of as many rows as there can be.
        from_z: the first of a variant's blocks begins behind its attention.
        """
        most = N_LAYERS * rows
        x, y, hidden = filled(most, D_MODEL), filled(most, D_MODEL), filled(most, D_MLP)
        qkv = filled(most, 3 * D_MODEL)
        product = _core.product

        def run() -> None:
            for layer, (w_qkv, w_o, w_in, w_out) in enumerate(self._layers):
                all_rows, attended = (layer + 1) * rows, (layer + 1 - from_z) * rows
                n = (layer + 1) * last if layer == N_LAYERS - 1 else all_rows
                if n == all_rows:
                    product(qkv[:attended], x[:attended], w_qkv)
                else:
                    queries = (layer + 1 - from_z) * last
                    product(qkv[:attended, D_MODEL:], x[:attended], w_qkv[:, D_MODEL:])
                    product(qkv[:queries, :D_MODEL], x[:queries], w_qkv[:, :D_MODEL])
                product(y[:n], x[:n], w_o)
                product(hidden[:n], x[:n], w_in)
                product(y[:n], hidden[:n], w_out)

        return run


def _lens_sweep(directory: Any, name: str, clean: Any, corrupted: Any, a: int, b: int) -> Any:
    """TransformerLens' own sweep of the same prompts, on its own model: ours as a function of nothing."""
    import torch
    from transformer_lens import patching

    model = models.transformer_lens(directory)
    old = torch.from_numpy(corrupted)
    with torch.inference_mode():
        _, cache = model.run_with_cache(torch.from_numpy(clean))

    def metric(logits: Any) -> Any:
        return logits[0, -1, a] - logits[0, -1, b]

    def run() -> Any:
        with torch.inference_mode():
            return getattr(patching, name)(model, old, cache, metric)

    return run


def sweep(setting: Setting) -> list[Figure]:
    """Activation patching of a prompt of 16 tokens: the residual stream by layer and position, z by layer and head."""
    model = clew.load(setting.directory)
    corrupted = models.tokens(1, POS)
    clean = corrupted.copy()
    clean[0, 0] = (clean[0, 0] + 1) % models.D_VOCAB  # from the first token on: nothing of the prompt is shared
    a, b = 11, 4000
    metric = clew.metrics.logit_diff(a, b)
    dense = Dense()
    out = []
    for site, over, theirs, bound, floor in (
        ("resid_pre", ("layer", "pos"), "get_act_patch_resid_pre", 25.0, dense.sweep(POS * (POS + 1) // 2, POS, False)),
        (
            "z",
            ("layer", "head"),
            "get_act_patch_attn_head_out_all_pos",
            18.0,
            dense.sweep(POS * N_HEADS, N_HEADS, True),
        ),
    ):
        ours = partial(model.sweep, clean, corrupted, site=site, over=over, metric=metric)
        times: Times = alternate({"clew": ours, "floor": floor}, setting.rounds)
        label = f"{site} sweep {N_LAYERS}×{POS if site == 'resid_pre' else N_HEADS}"
        out.append(of_times(f"{label}  clew / GEMM floor", times, "clew", "floor", at_most(1.3)))
        why = models.missing_lens()
        if why:
            out.append(skipped(f"{label}  TransformerLens / clew", at_least(bound), why))
            continue
        peer = _lens_sweep(setting.directory, theirs, clean, corrupted, a, b)
        result = np.asarray(peer())
        error = np.abs(result - ours().values).max() / np.abs(result).max()
        if not error < 1e-3:
            raise RuntimeError(f"the two sides disagree about the {site} sweep by {error:.2g} of the largest")
        times = alternate({"clew": ours, "lens": peer}, 2 if setting.quick else 3, 0)
        out.append(of_times(f"{label}  TransformerLens / clew", times, "lens", "clew", at_least(bound)))
    return out


def edits(setting: Setting) -> list[Figure]:
    """What an edit of one head, and a Python function at one site, add to a run."""
    model = clew.load(setting.directory)
    ids = models.tokens(1, 128)
    one_head = [edit.zero(("z", 5), heads=[3])]
    nothing = [edit.call(("resid_post", 5), lambda array, name: None)]
    sides = {
        "plain": partial(model.run, ids),
        "edit": partial(model.run, ids, edits=one_head),
    }
    times = alternate(sides, setting.short_rounds, 2)
    out = [of_times("1×128  edit of one head / none", times, "edit", "plain", at_most(1.02))]
    few = models.tokens(1, 8)  # a short run: its own time hides nothing
    times = alternate(
        {"plain": partial(model.run, few), "call": partial(model.run, few, edits=nothing)}, 2 * setting.short_rounds, 2
    )
    added = median([call - plain for call, plain in zip(times["call"], times["plain"], strict=True)])
    note = "median difference of paired runs"
    out.append(Figure("1×8  a function at one site / 1 ms", added / 1e-3, bound=at_most(1.0), note=note))
    return out
