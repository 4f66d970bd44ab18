"""One figure for each prediction. Needs matplotlib (`clew[plot]`); made the way of `clew.plot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..errors import ConfigError
from ..plot import _axes, _legend
from .predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

# Okabe and Ito's colours, with a marker each
_LOOK = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#000000", "v"))
_LOSS = "E|w − ŵ|²"


def _line(ax: Axes, x: Any, y: Any, look: int, label: str, **more: Any) -> None:
    colour, marker = _LOOK[look % len(_LOOK)]
    ax.plot(x, y, color=colour, marker=marker, label=label, **more)


def _bars(ax: Axes, names: list[str], groups: dict[str, list[float]]) -> None:
    width = 0.8 / len(groups)
    for i, (label, values) in enumerate(groups.items()):
        places = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        ax.bar(places, values, width * 0.95, color=_LOOK[i % len(_LOOK)][0], label=label)
    ax.set_xticks(range(len(names)))
    ax.set_xticklabels(names)


def _table(ax: Axes, n: dict[str, Any]) -> None:
    names = list(n)
    for i, column in enumerate(("non-adaptive", "adaptive", "gaussian")):
        _line(ax, range(len(names)), [n[k][column] for k in names], i, column, linestyle="none")
        expected = [n[k]["expected"][i + 1] for k in names]
        ax.plot(range(len(names)), expected, color=_LOOK[i][0], marker="_", markersize=16, linestyle="none")
    ax.set_xticks(range(len(names)))
    ax.set_xticklabels([name.replace(" ", "\n") for name in names], fontsize=9)
    ax.set_ylabel(_LOSS)
    ax.set_title("Trained policies; bars: the expected bounds")


def _a(ax: Axes, n: dict[str, Any]) -> None:
    for i, name in enumerate(("adaptive", "non-adaptive", "closed form")):
        _line(ax, n["layers"], n[name], i, name, linestyle=("-", "--", ":")[i])
    ax.set_xlabel("layers L")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(_LOSS)
    ax.set_title("(a) Gaussian prior: no gain by adapting")


def _b(ax: Axes, n: dict[str, Any]) -> None:
    for i, (name, curve) in enumerate(n["curves"].items()):
        _line(ax, curve["layers"], curve["errors"], i, f"tree, {name}")
        ax.axhline(curve["full data"], color=_LOOK[i % len(_LOOK)][0], linewidth=0.8, linestyle=":")
    ax.set_xlabel("layers L")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(_LOSS)
    ax.set_title("(b) Tree prior: error by depth (dotted: all data)")
    inner = ax.inset_axes((0.5, 0.56, 0.5, 0.42))
    inner.plot(n["t"], n["gain"], color="#000000", marker="o", markersize=3)
    for i, (name, gain) in enumerate(n["controls"].items()):
        inner.axhline(gain, color=_LOOK[i + 1][0], linewidth=1)
        inner.text(1, gain, name, fontsize=8, ha="right", va="bottom")
    inner.set_xlabel("t: from tree to Gaussian", fontsize=8)
    inner.set_ylabel(f"gain G({n['layers of the gain']})", fontsize=8)
    inner.tick_params(labelsize=8)


def _c(ax: Axes, n: dict[str, Any]) -> None:
    for k, (name, style) in enumerate((("policy", "-"), ("transformer", "--"))):
        rows = np.array(n[name])
        for level in range(rows.shape[1]):
            label = f"level {level + 1}, {name}"
            _line(ax, range(1, len(rows) + 1), rows[:, level], level, label, linestyle=style, alpha=1 - 0.3 * k)
    ax.set_xlabel("after layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("bits about the level")
    ax.set_title("(c) Coarse levels first, finer ones later")


def _d(ax: Axes, n: dict[str, Any]) -> None:
    ax.barh(range(len(n)), list(n.values()), color=_LOOK[0][0])
    ax.set_yticks(range(len(n)))
    ax.set_yticklabels(list(n), fontsize=8)
    ax.set_xlabel(_LOSS)
    ax.set_title("(d) No routing, no gain")


def _e(ax: Axes, n: dict[str, Any]) -> None:
    layers = n["layers"]
    for i, name in enumerate(("transformer", "wide control")):
        for j, errors in enumerate(n[name]):
            ax.plot([layers[j]] * len(errors), errors, color=_LOOK[i][0], marker=_LOOK[i][1], linestyle="none",
                    markersize=4, label=f"{name} (each seed)" if j == 0 else None)  # fmt: skip
    _line(ax, layers, n["policy"], 2, "adaptive policy")
    _line(ax, layers, n["non-adaptive policy"], 3, "non-adaptive policy")
    for name, values in n["programme"].items():
        ax.plot(layers[: len(values)], values, color="#000000", marker="x", linestyle=":", label=f"programme, {name}")
    ax.axhline(n["full data"], color="#707070", linewidth=0.8, label="all data")
    ax.set_xlabel("layers L")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(_LOSS)
    ax.set_title("(e) Trained transformers and the programme")


def _f(ax: Axes, n: dict[str, Any]) -> None:
    donor = np.array(n["donor"])
    groups = {f"layer {i + 1} patched": row.tolist() for i, row in enumerate(donor)}
    _bars(ax, [f"level {k + 1}" for k in range(donor.shape[1])], groups)
    ax.axhline(0.5, color="#707070", linewidth=0.8)
    ax.set_ylim(top=1.4)  # room for the names
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.set_ylabel("share with the donor's branch")
    ax.set_title("(f) A patched workspace carries coarse branches")


def _g(ax: Axes, n: dict[str, Any]) -> None:
    _line(ax, n["N"], n["fluctuation"], 0, f"a message's spread (slope {n['slope']:.2f})")
    _line(ax, n["N"], n["errors"], 1, "error, network")
    _line(ax, n["N"], n["normal approximation"], 2, "error, ŵ ~ N(w, s² I)", linestyle="--")
    _line(ax, n["N"], n["full data"], 3, "error, all data", linestyle=":")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("examples N")
    ax.set_title("(g) Mean field: spread and error by N")


def _ordinary(ax: Axes, n: dict[str, Any]) -> None:
    names = list(n)
    for i, (label, key) in enumerate(
        (("to the tree posterior", "to_posterior"), ("to GD, GD++, ridge or OLS", "to_algorithm"))
    ):
        places = np.arange(len(names)) + (i - 0.5) * 0.4
        ax.barh(places, [n[k][key] for k in names], 0.38, color=_LOOK[i][0], label=label)
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)))
    ax.set_yticklabels([name.replace(", ", "\n", 1) for name in names], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel("mean squared difference")
    ax.set_title("Which algorithm is nearest?")


_DRAWERS: dict[str, Callable[[Axes, dict[str, Any]], None]] = {
    "table": _table, "a": _a, "b": _b, "c": _c, "d": _d, "e": _e, "f": _f, "g": _g, "ordinary": _ordinary,
}  # fmt: skip


def draw(prediction: Prediction, *, ax: Axes | None = None) -> Figure:
    """The figure of a prediction. Raises ConfigError for a key that has none."""
    if prediction.key not in _DRAWERS:
        raise ConfigError(f"no figure for {prediction.key!r}: {', '.join(_DRAWERS)}")
    figure, axes = _axes(ax, 6.4, 4.2)
    _DRAWERS[prediction.key](axes, prediction.numbers)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes, ax is None, inside=0 if prediction.key in ("b", "ordinary") else 3)  # their corners are full
    return figure
