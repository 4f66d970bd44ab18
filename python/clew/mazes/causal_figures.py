"""Figures of the causal experiments. Needs matplotlib (`clew[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..plot import _MORE_SERIES, _axes
from .checks import Head
from .figures import _panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .causal import HeadAblation
    from .evaluate import Rate
    from .patching import HeadPatching, PathStartPatching
    from .steering import WallFlips

Array = NDArray[Any]


def _rates(ax: Axes, layers: Sequence[int], series: Mapping[str, Sequence[Rate]], ylabel: str, title: str) -> None:
    """Shares with their intervals, by layer; names that begin with "control" are dashed."""
    for i, (name, rates) in enumerate(series.items()):
        colour, marker = _MORE_SERIES[(i + 1) % len(_MORE_SERIES)]
        value, low, high = (100 * np.array([getattr(r, end) for r in rates]) for end in ("value", "low", "high"))
        around = np.nan_to_num(np.stack([value - low, high - value]))
        shift = 0.06 * (i - (len(series) - 1) / 2)
        ax.errorbar(
            np.asarray(layers) + shift, value, yerr=np.maximum(around, 0), color=colour, marker=marker, markersize=5,
            capsize=2, linestyle="--" if name.startswith("control") else "-", label=name,
        )  # fmt: skip
    ax.set_xlabel("layer where the stream is changed")
    ax.set_xticks(list(layers))
    ax.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    ax.set_ylabel(ylabel)
    ax.set_ylim(bottom=0)
    ax.set_title(title, fontsize=10)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _heads(
    scores: Array, value: Array, low: Array, high: Array, groups: Mapping[str, Sequence[Head]], ylabel: str, title: str
) -> Figure:
    """Every head's adjacency score against what it does; some groups in colour."""
    figure, ax = _axes(None, 6.4, 4.2)
    ax.axhline(0, color="#707070", linewidth=0.8)
    ax.axvline(0, color="#707070", linewidth=0.8)
    rest = {divmod(i, scores.shape[1]) for i in range(scores.size)} - {tuple(h) for hs in groups.values() for h in hs}
    shown = {**groups, "other heads": sorted(rest)}
    colours = dict(zip(shown, ("#D55E00", "#0072B2", "#909090"), strict=False))
    for name, heads in shown.items():
        if not heads:
            continue
        at = tuple(np.array(heads).T)
        around = np.nan_to_num(np.stack([value[at] - low[at], high[at] - value[at]]))
        ax.errorbar(scores[at], value[at], yerr=np.maximum(around, 0), fmt="o", color=colours[name], markersize=5,
                    capsize=2, label=name)  # fmt: skip
        if name != "other heads":
            for layer, head in heads:
                ax.annotate(f"L{layer}H{head}", (scores[layer, head], value[layer, head]), fontsize=8,
                            xytext=(5, 4), textcoords="offset points")  # fmt: skip
    ax.set_xlabel("adjacency score: × uniform, open edges − walls")
    ax.set_ylabel(ylabel)
    ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    return figure


def head_ablation(found: HeadAblation) -> Figure:
    """Adjacency score against what the right next cell's margin loses without each head."""
    groups = {"adjacency heads": found.heads, "matched controls": found.row("matched", found.rows[0].method)[0].heads}
    return _heads(
        found.scores, -found.each, -found.each_high, -found.each_low, groups, "margin lost without the head, nats",
        "One head mean-ablated from <PATH_START> on",
    )  # fmt: skip


def head_patching(found: HeadPatching) -> Figure:
    """Adjacency score against the share of the logit difference that each head carries over."""
    groups = {"adjacency heads": found.heads, "matched controls": found.row("matched")[0].heads}
    return _heads(
        found.scores, found.each, found.each_low, found.each_high, groups, "share of the logit difference",
        "One head patched between mazes that differ in one edge",
    )  # fmt: skip


def wall_flips(found: WallFlips) -> Figure:
    """How often walks go through the wall, or leave the edge, by layer and change."""
    figure, axes = _panels(len(found.kinds), 4.2 * len(found.kinds), 4.2)
    names = {"flip": "flipped", "erase": "erased", "other wall": "control: other wall", "random": "control: random"}
    changes = list(dict.fromkeys(row.change for row in found.rows))
    for ax, kind in zip(axes, found.kinds, strict=True):
        series = {names[c]: [found.row(kind, layer, c).moved for layer in found.layers] for c in changes}
        what = "walks through the wall, %" if kind == "open" else "walks that avoid the edge, %"
        title = "A wall looks open" if kind == "open" else "An edge looks like a wall"
        _rates(ax, found.layers, series, what, f"{title},\nfrom {found.place} on")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


def start_patches(found: PathStartPatching) -> Figure:
    """Whose way is walked once the stream at <PATH_START> comes from elsewhere."""
    figure, axes = _panels(len(found.kinds), 4.2 * len(found.kinds), 4.2)
    sources = list(dict.fromkeys(row.source for row in found.rows))
    for ax, kind in zip(axes, found.kinds, strict=True):
        series: dict[str, list[Rate]] = {}
        for source in sources:
            rows = [found.row(kind, layer, source) for layer in found.layers]
            if source == "other maze":
                series["the other maze's way"] = [row.as_source for row in rows]
                series["its own way"] = [row.as_target for row in rows]
            else:
                series[f"control: {source}, own way"] = [row.as_target for row in rows]
        _rates(ax, found.layers, series, "walks, %", f"<PATH_START> of a maze\nwith other {kind}")
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figure


__all__ = ["head_ablation", "head_patching", "start_patches", "wall_flips"]
