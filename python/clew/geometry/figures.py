"""Figures of paper 3. Needs matplotlib (`clew[plot]`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..plot import _axes, _bar, curves, token_labels

if TYPE_CHECKING:
    from .heads import HeadCoherence, HeadSVD, NounProbe
    from .norms import EmbeddingNorms
    from .paths import Contextual, Distances, Refinement, Trajectory


def _layers(n: int) -> list[str]:
    return ["start", *map(str, range(n - 1))]


def _small(value: float) -> str:
    """Three decimals, or the power of ten where they would be zeros."""
    return f"{value:.3f}" if value >= 5e-3 else f"{max(value, 0.0):.1e}" if value > 1e-12 else "0"


def layer_norm(found: EmbeddingNorms) -> Figure:
    """Distances from LN(e), as bars: L2 with its spread, and above each bar the mean 1 − cosine."""
    figure, ax = _axes(None, 5.6, 3.8)
    ax.bar(found.against, found.l2_mean, yerr=found.l2_std, color="#0072B2", capsize=4)
    for i, (height, cosine) in enumerate(zip(found.l2_mean + found.l2_std, found.cosine_mean, strict=True)):
        ax.text(i, height, f"1 − cos\n{_small(cosine)}", ha="center", va="bottom", fontsize=8)
    ax.set_ylim(top=1.25 * float((found.l2_mean + found.l2_std).max()))
    ax.set_ylabel("Euclidean distance from LN(e)")
    ax.set_title("Layer norm on word embeddings")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def trajectory(found: Trajectory) -> Figure:
    """The way through the first two dimensions, among some embeddings."""
    figure, ax = _axes(None, 6.0, 5.2)
    flat = [x[..., :2] if x.shape[-1] > 1 else np.concatenate([x, np.zeros_like(x)], -1) for x in
            (found.background, found.points, found.start_point, found.target_point)]  # fmt: skip
    background, points, start, target = flat
    ax.scatter(background[:, 0], background[:, 1], s=4, color="#C8C8C8", label="embeddings")
    ax.plot(points[:, 0], points[:, 1], color="#0072B2", marker="o", markersize=4, label="after each block")
    for row, point in enumerate(points):
        ax.annotate(
            _layers(len(points))[row], (point[0], point[1]), fontsize=8, xytext=(3, 3), textcoords="offset points"
        )
    own, following = token_labels(found.model, [found.tokens[found.position], found.target])
    for point, colour, marker, text in ((start, "#000000", "s", own), (target, "#D55E00", "^", following)):
        ax.plot(point[0], point[1], color=colour, marker=marker, linestyle="none", label=f"embedding of {text}")
    method = found.projection.method.upper()
    ax.set_xlabel(f"{method} 1")
    ax.set_ylabel(f"{method} 2")
    ax.set_title("A word's way through the layers")
    legend = ax.legend(fontsize=8, framealpha=1.0, edgecolor="none")
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    return figure


def distances(found: Distances) -> Figure:
    """log p(next) / p(current) of each layer's lens, by layer and position."""
    rows, columns = found.log_ratio.shape
    figure, ax = _axes(None, min(max(5.6, 0.08 * columns + 2.4), 12.0), max(3.0, 0.32 * rows + 1.8))
    most = float(np.nanmax(np.abs(found.log_ratio), initial=0.0)) or 1.0
    image = ax.imshow(found.log_ratio, cmap="RdBu_r", norm=Normalize(-most, most), aspect="auto", origin="lower",
                      interpolation="nearest")  # fmt: skip
    step = max(1, -(-rows // 24))
    ax.set_yticks(range(0, rows, step))
    ax.set_yticklabels(_layers(rows)[::step])
    ax.set_ylabel("after layer")
    ax.set_xlabel("position")
    ax.set_title("From the current word to the next")
    _bar(figure, image, ax, "log p(next)/p(current)")
    return figure


def kept_words(found: NounProbe) -> Figure:
    """Share of words that are still among the nearest tokens once a layer's heads have written."""
    n_layers = found.model.config.n_layers
    return curves(
        {"heads summed": found.kept, "one head, mean": found.kept_by_head.mean(-1)}, [str(n) for n in found.layers],
        xlabel="layer" if len(found.layers) == n_layers else f"layer ({len(found.layers)} of {n_layers} were measured)",
        ylabel=f"share among the {found.value_output.shape[-1]} nearest", title="Words kept by value-output",
    )  # fmt: skip


def coverage(found: list[HeadSVD]) -> Figure:
    """Share of the sum of singular values that the first hold, mean over heads."""
    n_layers = found[0].model.config.n_layers
    some = len({one.layer for one in found})
    note = "" if some == n_layers else f"\n({some} of {n_layers} layers)"
    return curves(
        {f"{one.kind} of layer {one.layer}": one.coverage.mean(0) for one in found},
        np.arange(1, found[0].coverage.shape[1] + 1), xlabel="singular values",
        ylabel="share of their sum", title=f"Coverage of W_QK and W_VO{note}", level=0.99,
    )  # fmt: skip


def refinement(found: Refinement) -> Figure:
    """Divergence from the output after each layer but the last, where it is 0 by definition."""
    n = max(1, len(found.divergence) - 1)
    return curves({"KL": found.divergence[:n]}, [str(layer) for layer in range(n)], xlabel="layer (the last gives 0)",
                  ylabel="KL to the output, nats", title="Iterative refinement", level=0.0)  # fmt: skip


def contextual(found: Contextual) -> Figure:
    """Cosines of the same and of different words."""
    series: dict[str, Any] = {"same word": found.same, "different words": found.different}
    series["same less different"] = found.corrected
    return curves(series, _layers(len(found.same)), ylabel="cosine", title="Contextual embeddings")


def coherence(found: HeadCoherence) -> Figure:
    """Coherence of singular directions' tokens by layer, beside the controls."""
    series = {"left vectors": found.left.mean(-1), "right vectors": found.right.mean(-1)}
    for name, left, right in (
        ("random", found.random_left.mean(-1), found.random_right.mean(-1)),
        ("untrained", found.untrained_left, found.untrained_right),
    ):
        if np.abs(left - right).max() < 0.01:  # one line would hide the other
            series[f"control: {name}, left and right"] = (left + right) / 2
        else:
            series |= {f"control: {name}, left": left, f"control: {name}, right": right}
    return curves(series, ylabel="mean cosine between tokens", title=f"Coherence of {found.kind} directions")


__all__ = [
    "coherence", "contextual", "coverage", "distances", "kept_words", "layer_norm", "refinement", "trajectory",
]  # fmt: skip
