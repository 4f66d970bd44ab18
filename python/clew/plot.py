"""Figures of a run: residual norms, attention patterns, what the logit lens reads. Needs matplotlib (`clew[plot]`).

Every function returns a matplotlib Figure that a notebook shows and `figure.savefig("name.png")` writes; nothing opens
a window and no global state of matplotlib changes. `ax=` draws into axes of your own. Colours are told apart by
colour-blind readers and in grey.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError, SiteError, TokenError, install
from .inputs import check_choice, check_type, real_array, whole
from .lens import LogitLens
from .model import Model, check_model
from .run import Run, check_run
from .sweep import Sweep

try:
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
except ImportError as error:
    raise ImportError(f"clew.plot needs matplotlib: {install('plot')}") from error

if TYPE_CHECKING:
    from matplotlib.image import AxesImage

    from .train.curve import Curve

Array = NDArray[Any]

# Okabe and Ito's colours, with a marker each
_SERIES = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"))
_MORE_SERIES = (*_SERIES, ("#009E73", "D"), ("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"), ("#707070", "*"))
_MAX_TEXT_COLUMNS = 40  # more columns than this leave no room for words in the cells
_MAX_LABELS = 64
_LARGEST = 1e300  # the span of a colour bar has to be a number too


class _Figure(Figure):
    """A figure that shows itself in a notebook, whichever backend is chosen."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=96)
        return data.getvalue()


def _axes(
    ax: Axes | None, width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> tuple[Figure, Axes]:
    if ax is not None:
        check_type(Axes, "a matplotlib Axes", ax=ax)
        figure = ax.get_figure(root=True)
        assert figure is not None
    else:
        figure = _Figure(figsize=(width, height), dpi=120, layout=layout)
        FigureCanvasAgg(figure)
        ax = figure.add_subplot()
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):  # a "$" may be a token's
        text.set_parse_math(False)
    return figure, ax


def _drawable(what: str, values: Array) -> None:
    """Raises ConfigError for a finite number whose distance from others may be beyond float64."""
    large = values[np.isfinite(values) & (np.abs(values) >= _LARGEST)]
    if large.size:
        raise ConfigError(f"{what} holds {large[0]:g}: numbers must be below {_LARGEST:g} to be drawn")


@lru_cache(maxsize=1)
def _font() -> Any:
    return font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))


@lru_cache(maxsize=4096)
def label(token: str) -> str:
    r"""A token as figures write it: spaces are shown, line breaks escaped, letters that the font lacks are code points.

    >>> label(" cat"), label(" "), label("\n"), label("")
    ('·cat', '␣', '\\n', '∅')
    """
    check_type(str, "a token's text", token=token)
    # a token of nothing but spaces gets a sign that nobody takes for a full stop
    shown = token.replace(" ", "·" if token.strip() else "␣") if token else "∅"
    out = []
    for character in shown:
        if character in "\n\t\r":
            out.append({"\n": "\\n", "\t": "\\t", "\r": "\\r"}[character])
        elif character.isprintable() and _font().get_char_index(ord(character)):
            out.append(character)
        else:
            out.append(f"U+{ord(character):04X}")
    return "".join(out)


def token_labels(model: Model, ids: ArrayLike) -> list[str]:
    """Labels of token ids [pos]: their text, or the ids themselves where the model has no tokenizer (installed).

    Raises ShapeError for what are no ids [pos], TokenError for an id outside the vocabulary.
    """
    check_model(model)
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShapeError(f"token_labels: integer ids [pos], not {array.dtype} {list(array.shape)}")
    n = max(model.config.d_vocab, model.config.d_vocab_out)
    outside = np.flatnonzero((array < 0) | (array >= n))
    if outside.size:
        at = int(outside[0])
        raise TokenError(f"token_labels: id {int(array[at])} at place {at} is outside the vocabulary of {n}")
    if model._labeller is None:
        return [str(int(i)) for i in array]
    return [label(t) for t in model._labeller.to_str_tokens([int(i) for i in array])]


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _sequence(run: Run, batch: int) -> tuple[int, int]:
    """A sequence's number and length."""
    check_run(run)
    n = len(run.lengths)
    if not -n <= whole(batch, "batch") < n:
        raise ShapeError(f"batch = {batch}: the run has {n} sequence{'s' if n != 1 else ''}")
    return batch % n, int(run.lengths[batch])


def residual_norms(
    run: Run, *, batch: int = 0, ax: Axes | None = None, title: str = "Length of the residual stream"
) -> Figure:
    """Euclidean length of the residual stream after each layer, over positions: median, and the middle half as a band.

    Besides `resid_post`, which the run must have captured, it draws `attn_out` and `mlp_out`, what each layer's
    attention and MLP add, where they were captured. The first position, which many models use as a place to rest
    attention and make very long, is drawn apart where there are others.

    Raises SiteError without `resid_post`, ShapeError for a sequence that is not there, ConfigError for what is no run.
    """
    seq, length = _sequence(run, batch)
    layers = run.layers("resid_post")
    real = run._real()[seq]
    if not real.any():
        raise ShapeError(f"batch = {batch}: the sequence has none of the positions that the run kept")
    own = ax is None
    figure, ax = _axes(ax, 6.4, 4.2)
    first = 1 if length > 1 and run.positions is None else 0

    def lengths(name: str) -> Array:
        x = run.stack(name)[:, seq, real]
        return np.asarray(np.linalg.norm(x.astype(np.float64), axis=-1))

    names = (("resid_post", "residual stream"), ("attn_out", "added by attention"), ("mlp_out", "added by the MLP"))
    for (name, text), (colour, marker) in zip(names, _SERIES, strict=True):
        try:
            held = run.layers(name)
        except SiteError:
            if name == "resid_post":
                raise
            continue
        norms = lengths(name)
        low, middle, high = np.percentile(norms[:, first:], [25, 50, 75], axis=1)
        ax.fill_between(held, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(held, middle, color=colour, marker=marker, label=text)
        if name == "resid_post" and first:
            ax.plot(
                held, norms[:, 0], color="#707070", linestyle="--", marker="o", markerfacecolor="white",
                label="residual stream, first position",
            )  # fmt: skip
    ax.fill_between([], [], [], color="#000000", alpha=0.15, linewidth=0, label="lines: median, bands: middle half")
    ax.set_ylim(bottom=0)
    ax.set_xticks(list(layers))
    if len(layers) > 16:
        ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("Euclidean length")
    ax.set_title(title)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _legend(figure, ax, own)
    return figure


def attention(
    pattern: ArrayLike,
    labels: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "Attention pattern",
) -> Figure:
    """One head's attention weights [query, key] as a map: a row is a query, a column what it attends to.

    labels: a text for each token ([query] = [key] then); up to 64 are written. Colours run from 0 to the largest
    weight, or symmetrically around 0 where weights are negative (linear attention). Weights [head, query, key] become
    a map for each head, with one scale of colours and up to 24 labels.

    Raises ShapeError for another number of axes or of labels, for what are no real numbers, and where several heads are
    to share one `ax`; ConfigError for weights that are not finite or too large to draw, and labels that are no texts.

    Example
    -------
    >>> import clew, clew.plot
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407, 261, 378], capture="pattern")
    >>> figure = clew.plot.attention(run["pattern", 2][0, 5], clew.plot.token_labels(model, run.tokens[0]))
    >>> figure.savefig("head.png")                                              # doctest: +SKIP
    """
    weights = real_array(pattern, "pattern")
    if weights.ndim not in (2, 3) or 0 in weights.shape or (weights.ndim == 3 and ax is not None):
        several = ", or [head, query, key] without ax" if weights.ndim != 3 or ax is None else " in one ax"
        raise ShapeError(f"pattern must be [query, key] of one head{several}, not {list(weights.shape)}")
    if not (np.abs(weights) < _LARGEST).all():
        worst = weights[~(np.abs(weights) < _LARGEST)][0]
        raise ConfigError(f"pattern holds {worst:g}: weights must be finite, and below {_LARGEST:g} to be drawn")
    n_query, n_key = weights.shape[-2:]
    if labels is not None:
        check_type((Sequence, np.ndarray), "a text for each position", labels=labels)
        for text in labels:
            check_type(str, "a text for each position", labels=text)
    if labels is not None and (len(labels) != n_key or n_query != n_key):
        raise ShapeError(f"{len(labels)} labels for a pattern of {n_query} queries and {n_key} keys")
    if weights.ndim == 3:
        return _heads(weights, labels, title)
    written = labels is not None and n_key <= _MAX_LABELS
    side = min(max(4.2, 0.2 * n_key + 2.0), 13.0) if written else 5.2
    figure, ax = _axes(ax, side + 1.4, side, "compressed")  # for axes of fixed proportions
    image = ax.imshow(weights, **_colours(weights), interpolation="nearest")
    if labels is not None and written:
        ax.set_xticks(range(n_key))
        ax.set_yticks(range(n_query))
        shown = [_short(t, 14) for t in labels]
        ax.set_xticklabels(shown, rotation=90, fontsize=8, parse_math=False)
        ax.set_yticklabels(shown, fontsize=8, parse_math=False)
        ax.tick_params(length=0)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("key: attended to")
    ax.set_ylabel("query: attends")
    ax.set_title(title)
    _bar(figure, image, ax, "attention weight")
    return figure


def _colours(weights: Array) -> dict[str, Any]:
    biggest = float(np.abs(weights).max()) or 1.0
    signed = bool((weights < 0).any())
    return {"cmap": "RdBu_r" if signed else "Blues", "norm": Normalize(-biggest if signed else 0.0, biggest)}


def _heads(weights: Array, labels: Sequence[str] | None, title: str) -> Figure:
    """A map for each head [head, query, key]."""
    n, columns = len(weights), min(len(weights), 4)
    rows = -(-n // columns)
    figure = _Figure(figsize=(2.2 * columns + 1.2, 2.3 * rows + 0.8), dpi=120, layout="compressed")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = [] if labels is None or len(labels) > 24 else [_short(t, 10) for t in labels]
    for head, ax in enumerate(panels[:n]):
        image = ax.imshow(weights[head], **_colours(weights), interpolation="nearest")
        ax.set_title(f"head {head}", fontsize=9)
        for axis, outer in ((ax.xaxis, head + columns >= n), (ax.yaxis, head % columns == 0)):
            if not outer:
                axis.set_ticks([])
            elif shown:
                upright = {"rotation": 90} if axis is ax.xaxis else {}
                axis.set_ticks(range(len(shown)), shown, fontsize=6, parse_math=False, **upright)
            else:
                axis.set_major_locator(MaxNLocator(4, integer=True))
        ax.tick_params(length=0)
    for ax in panels[n:]:
        ax.remove()
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("key: attended to", fontsize=10)
    figure.supylabel("query: attends", fontsize=10)
    bar = figure.colorbar(image, ax=panels[:n].tolist(), fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("attention weight")
    return figure


def _luminance(rgba: Array) -> Array:
    """Relative luminance (WCAG) of colours [n, 4]."""
    rgb = np.asarray(rgba)[..., :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _bar(figure: Figure, image: AxesImage, ax: Axes, text: str) -> Any:
    bar: Any = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(text, parse_math=False)
    return bar


def lens_table(
    lens: LogitLens,
    *,
    batch: int = 0,
    positions: slice | Sequence[int] | None = None,
    ax: Axes | None = None,
    title: str = "Logit lens: the likeliest next token after each layer",
) -> Figure:
    """What each layer would predict: the likeliest token as text, how likely the true next token was as colour.

    Columns are positions (below: the token there; above: the one that follows), rows layers, the last on top. Up to 40
    columns hold text; more are colours only. positions: columns to draw; None: all that hold a token.

    Raises ConfigError when the next tokens are not known, or for a batch that is no whole number; ShapeError for a
    sequence or position that is not there.
    """
    check_type(LogitLens, "a LogitLens, such as clew.lens.logit_lens gives", lens=lens)
    n_layers = len(lens.ranks)
    assert lens.targets is not None
    batch, columns = lens._columns(positions, batch)
    if columns.size == 0:
        raise ShapeError("positions: none of them holds a token")
    model, targets = lens.model, lens.targets[batch, columns]
    ranks = lens.ranks[:, batch, columns]
    with_text = columns.size <= _MAX_TEXT_COLUMNS
    width = 1.9 + 0.72 * columns.size if with_text else min(2.0 + 0.1 * columns.size, 16.0)
    figure, ax = _axes(ax, max(width, 5.6), 1.9 + (0.42 if with_text else 0.28) * n_layers)
    known = ranks >= 0
    most = max(int(ranks.max(initial=0)) + 1, 10)
    # rank 1 is the first guess; the next token of the last column is not known: grey
    colours = np.ma.masked_array(ranks + 1.0, mask=~known)
    ax.set_facecolor("#D9D9D9")
    image = ax.imshow(colours, cmap="cividis_r", norm=LogNorm(1, most), aspect="auto", origin="lower",
                      interpolation="nearest")  # fmt: skip
    if with_text:
        for row in range(n_layers):
            texts = token_labels(model, lens.top_tokens[row, batch, columns, 0])
            light = _luminance(image.to_rgba(colours[row])) > 0.18  # where black and white text are equally clear
            for column, text in enumerate(texts):
                right = ranks[row, column] == 0
                dark = known[row, column] and not light[column]
                ax.text(
                    column, row, _short(text, 9), ha="center", va="center", fontsize=7.5, parse_math=False,
                    color="white" if dark else "black", fontweight="bold" if right else "normal",
                )  # fmt: skip
        tokens = lens.tokens  # not known for a run from embeddings: places instead
        below = [str(c) for c in columns] if tokens is None else token_labels(model, tokens[batch, columns])
        ax.set_xticks(range(columns.size))
        ax.set_xticklabels(
            [_short(t, 12) for t in below], rotation=45, ha="right", rotation_mode="anchor", fontsize=8,
            parse_math=False,
        )  # fmt: skip
        above = ["?" if t < 0 else token_labels(model, [t])[0] for t in targets]
        top = ax.secondary_xaxis("top")
        top.set_xticks(range(columns.size))
        top.set_xticklabels(
            [_short(t, 12) for t in above], rotation=45, ha="left", rotation_mode="anchor", fontsize=8,
            parse_math=False,
        )  # fmt: skip
        top.tick_params(length=0)
        top.set_xlabel("token that follows")
        top.spines["top"].set_visible(False)
        ax.set_xlabel("position" if tokens is None else "token at the position")
        ax.set_xticks(np.arange(1, columns.size) - 0.5, minor=True)
        ax.set_yticks(np.arange(1, n_layers) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.2)
    else:
        places = MaxNLocator(10, integer=True).tick_values(0, columns.size - 1)
        kept = [int(p) for p in places if 0 <= p < columns.size]
        ax.set_xticks(kept)
        ax.set_xticklabels([str(columns[p]) for p in kept])
        ax.set_xlabel("position")
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    step = -(-n_layers // 24)
    ax.set_yticks(range(0, n_layers, step))
    ax.set_yticklabels([str(layer) for layer in lens.layers[::step]])
    ax.set_ylabel("after layer")
    ax.set_title(title)
    bar = _bar(figure, image, ax, "place of the token that follows\n(1: first guess, bold)")
    ticks = [t for t in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000) if t <= most]
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    bar.ax.invert_yaxis()
    return figure


def loss_curve(curve: Curve, *, smooth: int | None = None, ax: Axes | None = None, title: str = "Training") -> Figure:
    """Loss over steps: each step's as a thin line, its running mean over `smooth` steps, and the held-out loss.

    smooth: None is a fiftieth of the steps. Raises ShapeError for a curve without steps, or smooth < 1; ConfigError for
    losses too large to draw.
    """
    from .train.curve import Curve

    check_type(Curve, "a Curve, such as clew.train.fit gives", curve=curve)
    losses = curve.losses
    if losses.size == 0:
        raise ShapeError("loss_curve: the curve holds no step")
    width = max(1, len(losses) // 50) if smooth is None else whole(smooth, "loss_curve: smooth")
    if width < 1:
        raise ShapeError(f"loss_curve: smooth = {smooth}, must be at least 1")
    held = np.array(curve.held_out).reshape(-1, 2)
    _drawable("loss_curve: the curve", np.concatenate([losses, held[:, 1]]))
    figure, axes = _axes(ax, 6.4, 3.6)
    steps = np.array([row[0] for row in curve.rows])
    axes.plot(steps, losses, color="#000000", alpha=0.25, linewidth=0.7, label="batch")
    if 1 < width <= len(losses):
        total = np.cumsum(np.concatenate([[0.0], losses]))
        mean = (total[width:] - total[:-width]) / width
        axes.plot(steps[width - 1 :], mean, color=_SERIES[0][0], linewidth=1.5, label=f"mean of {width} steps")
    if curve.held_out:
        axes.plot(held[:, 0], held[:, 1], color=_SERIES[2][0], marker=_SERIES[2][1], markersize=4, label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def curves(
    series: Mapping[str, ArrayLike],
    x: ArrayLike | None = None,
    *,
    xlabel: str = "layer",
    ylabel: str = "",
    title: str = "",
    level: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Lines over layers, steps or anything else, told apart by colour and marker.

    Parameters
    ----------
    series
        Name → values [n]; NaN leaves a gap. Names that begin with "control" are dashed.
    x
        Where the values stand: numbers, or texts; None: 0, 1, 2, ...
    level
        A thin horizontal line there.

    Raises ShapeError for series of different lengths, or none; ConfigError for names that are no texts, and numbers too
    large to draw.

    >>> figure = curves({"loss": [3.0, 2.0]}, ylabel="nats")
    """
    if not isinstance(series, Mapping):
        raise ShapeError(f"curves: a name for each series, {{name: values}}, not {type(series).__name__}")
    for name in series:
        check_type(str, "a text", **{"curves: the name of a series": name})
    try:
        values = {name: np.asarray(v, np.float64) for name, v in series.items()}
    except (TypeError, ValueError) as error:
        raise ShapeError(f"curves: series must be numbers: {error}") from None
    lengths = {v.shape for v in values.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise ShapeError(f"curves: series of shapes {sorted(list(s) for s in lengths)} must be [n], all of one length")
    n = next(iter(lengths))[0]
    where = np.arange(n) if x is None else np.asarray(x)
    if where.shape != (n,):
        raise ShapeError(f"curves: x {list(where.shape)} for series [{n}]")
    texts = where.dtype.kind not in "fiu"
    for name, v in values.items():
        _drawable(f"curves: {name}", v)
    if not texts:
        _drawable("curves: x", where)
    own = ax is None
    figure, ax = _axes(ax, 6.4, 3.8)
    if level is not None:
        ax.axhline(level, color="#707070", linewidth=0.8)
    for i, (name, v) in enumerate(values.items()):
        colour, marker = _MORE_SERIES[i % len(_MORE_SERIES)]
        ax.plot(
            np.arange(n) if texts else where, v, color=colour, marker=marker if n <= 40 else "", markersize=5,
            linestyle="--" if name.startswith("control") else "-", label=name,
        )  # fmt: skip
    if texts:
        _ticks(ax.xaxis, [str(t) for t in where], False)
        if sum(len(str(t)) + 1 for t in where) > 40:  # side by side they would touch
            for tick in ax.get_xticklabels():
                tick.set(rotation=45, ha="right", rotation_mode="anchor")
    elif where.dtype.kind in "iu":
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    ax.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _legend(figure, ax, own)
    return figure


def _legend(figure: Figure, ax: Axes, own: bool, inside: int = 2) -> None:
    """Names of the lines: up to `inside` in a corner, more below the axes of its own figure, which grows."""
    handles, names = ax.get_legend_handles_labels()
    if len(names) < 2:
        return
    if len(names) <= inside:
        legend = ax.legend(frameon=True, framealpha=1.0, edgecolor="none", fontsize=9)
    elif own:
        width, height = figure.get_size_inches()
        columns = 2 if max(map(len, names)) < 5 * width else 1  # letters that fit into half of it
        figure.set_size_inches(width, height + 0.2 * -(-len(names) // columns))
        legend = figure.legend(handles, names, frameon=False, fontsize=9, loc="outside lower center", ncols=columns)
    else:
        legend = ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    for text in legend.get_texts():
        text.set_parse_math(False)


def sweep(
    result: Sweep,
    *,
    show: Literal["effect", "values", "recovered"] = "effect",
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """A sweep as a map [first axis, second axis], or as a line where it has one axis.

    show: "effect" (difference from the unpatched run), "values" (the metric itself) or "recovered" (share of the way to
    the other run). Colours are symmetric around 0, around the unpatched metric for "values".

    Raises ShapeError for sweeps over more than two axes: give a part of `result.effect` to :func:`heatmap`; ConfigError
    for numbers too large to draw.

    Example
    -------
    >>> import clew, clew.plot
    >>> model = clew.load("stories260K")
    >>> result = model.sweep([1, 403, 407, 261], [1, 403, 300, 261], metric=clew.metrics.logit_diff(378, 261))
    >>> figure = clew.plot.sweep(result)
    """
    check_type(Sweep, "a Sweep, such as model.sweep gives", result=result)
    check_choice(("effect", "values", "recovered"), show=show)
    data = result.per_example.mean(axis=-1) if show == "values" else getattr(result, show)
    if data.ndim > 2:
        part = ", ".join(["0"] * (data.ndim - 2))
        raise ShapeError(
            f"a sweep over {' × '.join(result.axes)} has no map: give two of its axes to plot.heatmap, such as "
            f"result.{show if show != 'values' else 'per_example.mean(-1)'}[{part}]"
        )
    names = {axis: "position" if axis == "pos" else axis for axis in result.axes}
    words = {"effect": f"change of {result.metric}", "values": result.metric, "recovered": "share recovered"}
    texts = [[label(t) if isinstance(t, str) else str(t) for t in axis] for axis in result.labels]
    if title is None:
        site = result.site.removeprefix("blocks.L.")
        to = result.receivers.replace(" head ", "\u00a0head\u00a0")
        title = f"Paths from {site} to {to}" if to else f"Patching {site}"
        title = textwrap.fill("Edits" if result.axes == ("variant",) else title, 40)
    _drawable(f"the sweep's {show}", data)
    if data.ndim == 1:
        figure, ax = _axes(ax, 6.4, 3.8)
        ax.axhline(result.baseline.mean() if show == "values" else 0.0, color="#707070", linewidth=0.8)
        line = "-" if result.axes[0] in ("layer", "pos") else "none"  # heads, neurons and edits have no order
        ax.plot(range(len(data)), data, color=_SERIES[1][0], marker=_SERIES[1][1], linestyle=line)
        ax.set_ylabel(words[show])
        ax.spines[["top", "right"]].set_visible(False)
        _ticks(ax.xaxis, texts[0], result.axes[0] == "pos")
        ax.set_xlabel(names[result.axes[0]])
        ax.set_title(title)
        return figure
    middle = float(result.baseline.mean()) if show == "values" else 0.0
    return _map(
        data, texts, (names[result.axes[0]], names[result.axes[1]]), words[show], middle, title, ax,
        upright=result.axes[1] == "pos",
    )  # fmt: skip


def heatmap(
    values: ArrayLike,
    *,
    ylabel: str = "layer",
    xlabel: str = "head",
    bar: str = "",
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Any numbers [layer, head], or [row, column] of what the labels say, as a map with colours symmetric around 0.

    Raises ShapeError for anything but two axes of real numbers, ConfigError for numbers too large to draw.

    >>> figure = heatmap(np.eye(4), bar="score", title="Heads")
    """
    data = np.asarray(values)
    if data.ndim != 2 or 0 in data.shape or data.dtype.kind not in "fiub":
        raise ShapeError(f"heatmap: numbers [layer, head], not {data.dtype} {list(data.shape)}")
    data = data.astype(np.float64)
    _drawable("heatmap", data)
    texts = [[str(i) for i in range(n)] for n in data.shape]
    return _map(data, texts, (ylabel, xlabel), bar, 0.0, title, ax)


def _map(
    data: Array, texts: Sequence[Sequence[str]], names: tuple[str, str], bar: str, middle: float, title: str,
    ax: Axes | None, upright: bool = False,
) -> Figure:  # fmt: skip
    """Numbers [row, column] as colours, symmetric around the middle; layers from below."""
    rows, columns = data.shape
    figure, ax = _axes(ax, min(max(4.4, 0.32 * columns + 2.4), 13.0), min(max(3.0, 0.3 * rows + 1.8), 12.0))
    most = float(np.nanmax(np.abs(data - middle), initial=0.0)) or 1.0
    image = ax.imshow(
        data, cmap="RdBu_r", norm=Normalize(middle - most, middle + most), aspect="auto", interpolation="nearest",
        origin="lower" if names[0] == "layer" else "upper",
    )  # fmt: skip
    _ticks(ax.xaxis, texts[1], upright)
    _ticks(ax.yaxis, texts[0], False)
    ax.set_xlabel(names[1])
    ax.set_ylabel(names[0])
    ax.set_title(title)
    tall = float(ax.get_position().height * figure.get_size_inches()[1])
    bar = re.sub("'[^']*'", lambda token: token[0].replace(" ", "\u00a0"), bar)  # no break inside a token
    _bar(figure, image, ax, textwrap.fill(bar, max(14, int(10 * tall))))  # letters that stand beside the map
    return figure


def _ticks(axis: Axis, texts: Sequence[str], upright: bool) -> None:
    """A text at each place, or at some places where there are many."""
    step = max(1, -(-len(texts) // (_MAX_TEXT_COLUMNS if upright else 24)))
    axis.set_ticks(range(0, len(texts), step))
    axis.set_ticklabels([_short(t, 14) for t in texts[::step]], parse_math=False)
    if upright:
        for tick in axis.get_majorticklabels():
            tick.set_rotation(90)
            tick.set_fontsize(8)
    axis.set_tick_params(length=0)


__all__ = [
    "attention",
    "curves",
    "heatmap",
    "label",
    "lens_table",
    "loss_curve",
    "residual_norms",
    "sweep",
    "token_labels",
]


def __dir__() -> list[str]:
    return __all__
