"""Figures of paper 5. Needs matplotlib (`clew[plot]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..plot import _axes, _bar, _Figure, curves
from .draw import draw, legend
from .evaluate import PAPER, TASKS
from .prompts import place_name

if TYPE_CHECKING:
    from .consistency import Consistency
    from .dynamics import Dynamics
    from .embedding import EmbeddingDistances
    from .evaluate import Table
    from .heads import AdjacencyHeads, LogitAttribution
    from .lens import LensMasses
    from .probes import WallProbes
    from .study import Shown

Array = NDArray[Any]

ROW_WORDS = {
    "exact": "path: the solution", "valid": "path: through no wall", "target": "path: ends at the target",
    "path_start": "token: <PATH_START>", "origin_after_path_start": "token: the origin",
    "first_path_choice": "token: the first step", "rand_path_token": "token: some next cell",
    "rand_path_token_nonend": "token: a cell amid the path", "final_before_path_end": "token: the target",
    "path_end": "token: <PATH_END>",
}  # fmt: skip
"""Rows of Table 1 as figures name them."""
KIND_WORDS = {
    "forkless": "forkless: one corridor", "rdfs": "rdfs: a tree, with forks", "prdfs": "prdfs: a tree and more edges",
}  # fmt: skip
PAPER_MODELS = {"hallway": "paper: hallway, 1.2 M parameters", "jirpy": "paper: jirpy, 9.6 M parameters"}


def _panels(n: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Any]]:
    figure = _Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, n, sharey=sharey)))


def solved(shown: Shown) -> Figure:
    """Mazes with their solutions (orange) and the paths that the model walked (blue; dotted through walls)."""
    n = len(shown.paths)
    figure, axes = _panels(n, 0.6 + 3.2 * n, 4.0)
    for ax, maze, path, kind, exact in zip(axes, shown.mazes, shown.paths, shown.kinds, shown.exact, strict=True):
        draw(maze, path=path, ax=ax)
        ax.set_title(f"{kind}: {'solved' if exact else 'not solved'}", fontsize=14)  # legible on a telephone too
    legend(figure, False, True, "the model's path")
    return figure


def evaluation(table: Table) -> Figure:
    """Rows of Table 1 by kind of maze, one below the other, with 95 % intervals, beside the paper's two models."""
    rows = ["exact", "valid", "target", *TASKS]
    n = len(table.columns)
    figure = _Figure(figsize=(5.4, 1.2 + 2.3 * n), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(n, 1, sharex=True))
    y = np.arange(len(rows))[::-1]
    for ax, (kind, column) in zip(axes, table.columns.items(), strict=True):
        rates = [column[row] for row in rows]
        value = np.array([100 * rate.value for rate in rates])
        off = np.abs(np.array([(100 * rate.low, 100 * rate.high) for rate in rates]).T - value)
        ax.errorbar(value, y, xerr=off, fmt="o", color="#000000", ms=5, capsize=3, label="this model, 95 %", zorder=3)
        for (name, columns), (colour, marker) in zip(PAPER.items(), (("#0072B2", "s"), ("#D55E00", "^")), strict=True):
            if kind in columns:
                percent = [columns[kind][row] for row in rows]
                ax.plot(percent, y, marker, color=colour, mfc="none", label=PAPER_MODELS[name])
        ax.set_title(KIND_WORDS.get(kind, kind), fontsize=10)
        ax.set_yticks(y, [ROW_WORDS[row] for row in rows])
        ax.axhline(len(TASKS) - 0.5, color="#909090", lw=0.8)  # whole paths above, single tokens below
        ax.set_xlim(-3, 103)
        ax.grid(color="#DDDDDD", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("% right")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower center")
    return figure


def by_length(table: Table) -> Figure:
    """Share of exact paths by the number of the solution's cells."""
    lengths = sorted({k for column in table.columns.values() for k in column.by_length()})
    series = {
        kind: np.array([found[k]["exact"].value if k in found else np.nan for k in lengths])
        for kind, found in ((kind, column.by_length()) for kind, column in table.columns.items())
    }
    return curves(series, np.array(lengths), xlabel="cells of the solution", ylabel="share exact",
                  title="Longer ways are harder")  # fmt: skip


def embedding(found: Mapping[str, EmbeddingDistances]) -> Figure:
    """Distances between embeddings of cells by Manhattan distance: means and standard deviations."""
    figure, axes = _panels(len(found), 0.6 + 3.6 * len(found), 3.4)
    for ax, (name, one) in zip(axes, found.items(), strict=True):
        steps, mean, deviation = one.by_distance()
        ax.errorbar(steps, mean, yerr=deviation, fmt="o-", color="#0072B2", capsize=3)
        ax.set_xlabel("Manhattan distance")
        ax.set_ylabel(f"{name} distance of embeddings")
        ax.set_title(f"r = {one.r:.3f}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def heads(values: Array, title: str, label: str) -> Figure:
    """A number of each head [layer, head] as a picture."""
    rows, columns = values.shape
    figure, ax = _axes(None, 1.8 + 0.75 * columns, 1.4 + 0.5 * rows)
    most = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = ax.imshow(values, cmap="RdBu_r", norm=Normalize(-most, most), aspect="auto")
    for (layer, head), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 * most else "black"
        ax.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(columns))
    ax.set_yticks(range(rows))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.set_title(title, fontsize=10)
    _bar(figure, image, ax, label)
    return figure


def attribution(found: LogitAttribution) -> Figure:
    """The paper's C of every head."""
    return heads(found.heads, "Direct attribution to the next cell's logit", "logit over the mean of the others")


def adjacency_scores(found: AdjacencyHeads) -> Figure:
    """The score of every head."""
    return heads(found.score, "Attention along open edges less that through walls", "× uniform attention")


def adjacency_head(shown: Shown) -> Figure:
    """Attention of a head, from the cell that a ring marks, over the maze: where most of it goes along open edges.

    A head looks at its own cell most, which would leave the rest pale: that cell is hatched, and has no colour.
    """
    layer, head = shown.head
    values = np.ma.masked_array(shown.attention, np.zeros(shown.attention.shape, bool))
    values[shown.here] = np.ma.masked
    figure = draw(
        shown.maze, values=values, values_label="attention to the cell's tokens",
        path=shown.maze.solution[: shown.step + 1], path_label="the path so far" if shown.step else "",
        solution=False,
        title=f"Layer {layer}, head {head}: a clear example, from the ring\n"
        f"(its own cell, hatched: {shown.attention[shown.here]:.0%}, left out)",
    )  # fmt: skip
    figure.axes[0].plot(shown.here[1], shown.here[0], "o", color="#D55E00", ms=13, mfc="none", mew=2, zorder=6)
    return figure


def adjacency_lengths(found: AdjacencyHeads, layer: int, head: int) -> Figure:
    """Attention of a head to the adjacency list's cells, by path length and by Manhattan distance, with what uniform
    attention of the same mass would give."""
    figure, axes = _panels(2, 8.6, 3.4, sharey=True)
    for ax, part, uniform, name in (
        (axes[0], found.by_path_length, found.uniform_by_path_length, "path length in the maze"),
        (axes[1], found.by_manhattan, found.uniform_by_manhattan, "Manhattan distance"),
    ):
        here, even = part[0, layer, head], uniform[0, layer, head] * found.mass_by_place[0, layer, head]
        top = 1 + int(np.flatnonzero((here > 1e-4) | (even > 1e-4)).max(initial=1))
        where = np.arange(min(top, 16))
        ax.bar(where, here[: len(where)], color="#0072B2", label=f"layer {layer}, head {head}")
        ax.plot(where, even[: len(where)], "k_", ms=12, label="spread evenly")
        ax.set_xlabel(name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("attention")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def probes(
    walls: WallProbes, untrained: WallProbes | None, bag: WallProbes | None, elsewhere: Sequence[WallProbes] = ()
) -> Figure:
    """Accuracy of wall probes on inner walls by layer, and baselines; `elsewhere`: of ridge probes at other places."""
    series: dict[str, Any] = {f"{method} at {walls.place}": scores.accuracy for method, scores in walls.scores.items()}
    series |= {f"ridge at {other.place}": other["ridge"].accuracy for other in elsewhere}
    first = next(iter(walls.scores.values()))
    n = len(first.accuracy)
    series["whole mazes, as trees"] = first.tree_exact
    series["control: other mazes' walls"] = first.control
    series["control: majority of each wall"] = np.full(n, walls.majority)
    if untrained is not None:
        series["control: untrained"] = untrained["ridge"].accuracy
    if bag is not None:
        series["control: bag of tokens"] = np.full(n, bag["ridge"].accuracy[0])
    return curves(series, ylabel="share of inner walls right", title="Walls read off one token")


def probe_positions(along: Mapping[str, WallProbes], within: Mapping[str, WallProbes] | None = None) -> Figure:
    """Accuracy of ridge probes on inner walls by layer, at every token before the path; `within`: between attention and
    MLP, half a layer before."""
    series: dict[str, Any] = {place_name(position): walls["ridge"].accuracy for position, walls in along.items()}
    first = next(iter(along.values()))
    x, xlabel = np.arange(len(first["ridge"].accuracy), dtype=float), "layer"
    if within is not None:
        series = {
            place_name(at): np.stack([within[at]["ridge"].accuracy, walls["ridge"].accuracy], axis=1).ravel()
            for at, walls in along.items()
        }
        x, xlabel = np.stack([x - 0.5, x], axis=1).ravel(), "layer (half a layer before: between its attention and MLP)"
    series["control: majority of each wall"] = np.full(len(x), first.majority)
    return curves(series, x, xlabel=xlabel, ylabel="share of inner walls right", title="Where the walls are gathered")


def probe_picture(shown: Shown) -> Figure:
    """What the probes of a layer say of every inner wall of one maze: red a wall, black edges where they are wrong."""
    title = f"Walls as layer {shown.layer} has them at {place_name(shown.position, shown.site)}"
    return draw(shown.maze, walls=shown.openness, title=title)


def lens(found: LensMasses) -> Figure:
    """Mass on lattice neighbours and on connected neighbours by layer."""
    series = {
        "neighbours, tuned": found.neighbours["tuned"],
        "connected, tuned": found.connected["tuned"],
        "neighbours, logit lens": found.neighbours["logit"],
        "connected, logit lens": found.connected["logit"],
        "control: connected in another maze": found.other_maze["tuned"],
        "control: neighbours' mass spread evenly": found.even["tuned"],
    }
    if not np.isnan(found.neighbours["shuffled"]).any():
        series["control: shuffled lens, neighbours"] = found.neighbours["shuffled"]
    return curves(series, ylabel="probability", title="What each layer would say next")


def dynamics(found: Dynamics) -> Figure:
    """Probe accuracy and behaviour over training; steps are evenly spaced."""
    series = {
        "probes, best layer": found.best_accuracy,
        "exact": found["exact"],
        "valid": found["valid"],
        "target": found["target"],
        "control: majority of each wall": found["majority"],
    }
    return curves(series, [f"{step:,}" for step in found.steps.tolist()], xlabel="training step", ylabel="share",
                  title="Probes and paths over training")  # fmt: skip


def consistency(found: Consistency) -> Figure:
    """Probe accuracy by layer of models that differ in their seed."""
    series = {f"{shape}, seed {i}": one.accuracy for shape, ones in found.models.items() for i, one in enumerate(ones)}
    n = len(next(iter(series.values())))
    series["control: majority of each wall"] = np.full(n, next(iter(found.models.values()))[0].majority)
    series["control: bag of tokens"] = np.full(n, found.bag)
    return curves(series, ylabel="share of inner walls right", title="4 × 4 mazes: the same for every seed?")


__all__ = [
    "adjacency_head", "adjacency_lengths", "adjacency_scores", "attribution", "by_length", "consistency", "dynamics",
    "embedding", "evaluation", "heads", "lens", "probe_picture", "probe_positions", "probes", "solved",
]  # fmt: skip
