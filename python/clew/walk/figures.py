"""Figures of paper 1. Needs matplotlib (`clew[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..plot import _MORE_SERIES, _axes, curves

if TYPE_CHECKING:
    from .attention import Ablations
    from .context import Insertion, Proximity
    from .knowledge import DoseResponse
    from .neighbours import Composition, Purity
    from .stored import Trainings
    from .study import Splits
    from .walks import Walk

_SHOWN = 16


def _bars(groups: Sequence[str], series: Mapping[str, Any], ylabel: str, title: str, level: float | None = None,
          errors: Mapping[str, Any] | None = None, width: float = 7.2) -> Figure:  # fmt: skip
    """Bars side by side: one group for each name, one colour for each series [group]."""
    figure, ax = _axes(None, width, 3.8)
    where, share = np.arange(len(groups)), 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        yerr = None if errors is None else errors.get(name)
        at = where + (i - (len(series) - 1) / 2) * share
        ax.bar(at, values, share, color=_MORE_SERIES[i][0], label=name, yerr=yerr, capsize=2, error_kw={"lw": 0.8})
    if level is not None:
        ax.axhline(level, color="#707070", linewidth=0.8)
    ax.set_xticks(where)
    long = max(map(len, groups)) * len(groups) > 70
    ax.set_xticklabels(groups, rotation=30 if long else 0, ha="right" if long else "center", fontsize=8)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    ax.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        ax.legend(fontsize=8, framealpha=1.0, edgecolor="none", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def walk(found: Walk) -> Figure:
    """The first points of a decoding walk in their own two largest dimensions, with what was read there."""
    points = found.points[:_SHOWN].astype(np.float64)
    middle = points - points.mean(0)
    axes = np.linalg.svd(middle, full_matrices=False)[2][:2]
    flat = middle @ axes.T
    flat = flat if flat.shape[1] > 1 else np.concatenate([flat, np.zeros_like(flat)], 1)
    near = found.nearest["dot"].tokens() if "dot" in found.nearest else None
    names = [found.labels[i] if near is None else f"{found.labels[i]} → {near[i][0]!r}" for i in range(len(flat))]
    rows = -(-len(names) // 2)
    figure, ax = _axes(None, 4.8, 4.2 + 0.2 * rows)
    ax.plot(flat[:, 0], flat[:, 1], color="#0072B2", linewidth=0.8, alpha=0.6)
    ax.scatter(flat[:, 0], flat[:, 1], s=130, facecolor="white", edgecolor="#0072B2", zorder=2)
    for i, (x, y) in enumerate(flat):  # words would cover each other: they stand below
        ax.text(x, y, str(i + 1), fontsize=7.5, ha="center", va="center", zorder=3)
    ax.margins(0.08)
    ax.set_xlabel("PCA 1")
    ax.set_ylabel("PCA 2")
    ax.set_title("Context vectors: what was read → the nearest token", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], linestyle="none", label=f"{i}  {name}") for i, name in enumerate(names, 1)]
    legend = figure.legend(
        handles=lines, frameon=False, fontsize=8.5, loc="outside lower left", ncols=2, handlelength=0, handletextpad=0
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    return figure


def proximity(found: Proximity) -> Figure:
    """Share of positions whose nearest tokens hold the true next one, by metric, beside chance."""
    names = list(found.hits)
    series = {"own context": [found.hits[n] for n in names], "another context": [found.chance_hits[n] for n in names]}
    return _bars(
        names, series, f"share with the next token among {found.k}", "Where the context vector lies", width=5.6
    )


def insertion(found: Insertion) -> Figure:
    """Share of the examples' gain that the composed vector brings, by layer."""
    series = {"composed vector": found.recovered, "control: shuffled answers": found.shuffled}
    series["control: another task"] = found.other
    return curves(series, ylabel="share of the gain recovered", title="A context put into another prompt", level=0.0)


def dose_response(found: DoseResponse) -> Figure:
    """Rise of the loss by share of embedding rows, and by as many parameters of other parts."""
    series = {kind: rises for kind, rises in found.rises.items() if not np.isnan(rises).all()}
    return curves(
        dict(list(series.items())[:8]), [f"{d:.0%}" for d in found.doses],
        xlabel="share of embedding rows, or as many parameters", ylabel="rise of the loss, nats",
        title="Damage of equal size", level=0.0,
    )  # fmt: skip


def ablations(found: Ablations) -> Figure:
    """Rise of the loss for each change of attention: in all layers, and in each alone."""
    kinds = list(found.ablated)
    n = max((len(x) for x in found.by_layer.values()), default=0)
    series: dict[str, Any] = {"all layers": [found.ablated[k] - found.loss for k in kinds]}
    for layer in range(n if n <= 6 else 0):
        series[f"layer {layer}"] = [found.by_layer[k][layer] - found.loss if k in found.by_layer else 0 for k in kinds]
    errors = {"all layers": [found.rise_error[k] for k in kinds]}
    return _bars(kinds, series, "rise of the loss, nats", "Attention replaced", errors=errors)


def trainings(found: Trainings) -> Figure:
    """Held-out loss over the training of small models, means over seeds."""
    series = {kind: np.nanmean(found.curve[i], 0) for i, kind in enumerate(found.kinds)}
    later = found.steps >= found.steps[-1] * 0.1  # the first steps would hide the rest
    return curves(
        {kind: values[later] for kind, values in series.items()}, found.steps[later], xlabel="training step",
        ylabel="held-out loss, nats", title="Small models with six kinds of attention",
        level=found.references["pairs"],
    )  # fmt: skip


def splits(found: Splits) -> Figure:
    """Aggregation's and filtering's shares of each layer's step."""
    return curves(
        {"aggregation": found.share, "filtering": 1 - found.share}, ylabel="share along the step",
        title="What steps are made of", level=0.0,
    )  # fmt: skip


def purity(found: Mapping[str, Purity]) -> Figure:
    """Purity of each class of words, by space."""
    classes = list(next(iter(found.values())).by_class)
    series = {space: [one.by_class[name] for name in classes] for space, one in found.items()}
    chance = next(iter(found.values())).chance
    return _bars(classes, series, "nearest words of the same class", "Neighbourhood purity", level=chance, width=8.6)


def composition(found: Composition) -> Figure:
    """Where a word's vector in a text lies, by layer."""
    series = {
        "own neighbours": found.own,
        "control: another word's neighbours": found.other,
        "nearest: the word itself": found.itself,
        "nearest: the next word": found.following,
    }
    labels = ["start", *map(str, range(len(found.own) - 1))]
    return curves(series, labels, ylabel="share", title="A word's vector in a text")


def choices(accuracy: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Accuracy of each test with its interval; the line is chance."""
    names = list(accuracy)
    values = np.array([accuracy[n] for n in names])
    bars = np.abs(values[:, 1:] - values[:, :1]).T
    return _bars(names, {"accuracy": values[:, 0]}, "accuracy", "The next of four sentences", level=0.25,
                 errors={"accuracy": bars})  # fmt: skip


def words(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Spearman's correlation with people's scores, by set and kind of vectors."""
    names = list(dict.fromkeys(r["name"] for r in rows))
    kinds = list(dict.fromkeys(r["source"] for r in rows))
    found = {(r["name"], r["source"]): r["rho"] for r in rows}
    series = {
        kind: [found[name, kind] if found[name, kind] is not None else np.nan for name in names] for kind in kinds
    }
    return _bars([n.removeprefix("EN-") for n in names], series, "Spearman's rho", "Cosines beside people's scores",
                 level=0.0, width=8.6)  # fmt: skip


__all__ = [
    "ablations", "choices", "composition", "dose_response", "insertion", "proximity", "purity", "splits", "trainings",
    "walk", "words",
]  # fmt: skip
