"""Figures of paper 4. Needs matplotlib (`clew[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from ..plot import curves

if TYPE_CHECKING:
    from .steps import Descent
    from .training import Training


def _after(n: int) -> list[str]:
    return ["start", *map(str, range(n - 1))]


def loss(found: Descent, beside: Mapping[str, Descent]) -> Figure:
    """The lens's loss by layer: the model's, the tuned lens's, and the controls'."""
    series = {"logit lens": found.loss}
    if found.loss_tuned is not None:
        series["tuned lens"] = np.concatenate([[np.nan], found.loss_tuned])
    for name, other in beside.items():
        if other.loss_tuned is None:
            series[f"control: {name}"] = other.loss
        else:
            series[f"control: {name}"] = np.concatenate([[np.nan], other.loss_tuned])
    figure = curves(series, _after(len(found.loss)), ylabel="loss, nats", title="Loss of the lens by layer")
    axis = figure.axes[0].yaxis
    figure.axes[0].set_yscale("log")  # the first layer takes most of it
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 7)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    return figure


def cosine(found: Descent, beside: Mapping[str, Descent]) -> Figure:
    """cos(Δ, −∇L) by layer, and the controls'."""
    series = {"next token": found.cosine, "whitened": found.cosine_whitened}
    series |= {f"control: {name}": other.cosine for name, other in beside.items() if other.loss_tuned is None}
    return curves(series, ylabel="cos(Δ, −∇L)", title="Do blocks step down the gradient?", level=0.0)


def expected(found: Descent, beside: Mapping[str, Descent]) -> Figure:
    """cos(Δ, −∇L) with the expected gradient, and the controls'."""
    series = {"expected gradient": found.cosine_expected}
    series |= {f"control: {name}": other.cosine_expected for name, other in beside.items() if other.loss_tuned is None}
    return curves(series, ylabel="cos(Δ, −∇L expected)", title="Steps towards the last prediction", level=0.0)


def norms(found: Descent) -> Figure:
    """Length of the stream by layer: quartiles, sinks apart, and what attention and the MLP add."""
    low, middle, high = found.norm_quantiles
    series = {"stream": middle, "sinks": found.sink_norm} if found.n_sinks else {"stream": middle}
    for name, values in (("attention adds", found.attention_length), ("the MLP adds", found.mlp_length)):
        series[name] = np.concatenate([[np.nan], values])
    figure = curves(series, _after(len(middle)), ylabel="Euclidean length", title="Length of the stream")
    figure.axes[0].fill_between(np.arange(len(middle)), low, high, color="#000000", alpha=0.15, linewidth=0)
    return figure


def correlations(found: Descent) -> Figure:
    """Spearman's correlation of the stream's length with five things, by layer."""
    return curves(
        found.correlations, _after(len(found.norm)), ylabel="rank correlation with ‖r‖",
        title="What goes with the stream's length", level=0.0,
    )  # fmt: skip


def training(found: Training) -> Figure:
    """cos(Δ, −∇L) of each block over the training, and the mean of the hardest controls where they were measured."""
    series = {f"block {n}": found.cosine[:, n] for n in range(min(found.cosine.shape[1], 6))}
    for name in ("permuted steps", "straight line"):
        if name in found.controls:
            series[f"control: {name}, mean"] = found.controls[name]["cosine"].mean(1)
    # a place for each checkpoint: most lie at the beginning
    return curves(series, [str(step) for step in found.steps], xlabel="training step", ylabel="cos(Δ, −∇L)",
                  title="Alignment over the training", level=0.0)  # fmt: skip


def training_norms(found: Training) -> Figure:
    """Lengths of W_E's rows by frequency over the training: the rarest and the most frequent tenth, and the mean."""
    rows = found.row_norms
    tied = np.array_equal(rows["embed_bands"], rows["unembed_bands"])
    kinds = {"W_E and W_U": "embed"} if tied else {"W_E": "embed", "W_U": "unembed"}
    series = {
        f"{name}, {band} tenth": rows[f"{kind}_bands"][:, end]
        for name, kind in kinds.items()
        for band, end in (("rarest", 0), ("most frequent", -1))
    }
    return curves(series, [str(step) for step in found.steps], xlabel="training step", ylabel="mean length",
                  title="Token vectors by frequency")  # fmt: skip


__all__ = ["correlations", "cosine", "expected", "loss", "norms", "training", "training_norms"]
