"""Figures: what is drawn is the data, labels do not overlap, and a figure needs no display."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.lens import logit_lens
from support import assert_python, make
from zoo import zoo

pytest.importorskip("matplotlib", reason="matplotlib is not installed: figures are not tested")

from clew import metrics, plot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402
from matplotlib.text import Text  # noqa: E402

PROMPT = [1, 4, 2, 8, 5, 7, 1, 4]


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(zoo()["gpt2"])[0]


@pytest.fixture(scope="module")
def run(model: clew.Model) -> clew.Run:
    return model.run([PROMPT, PROMPT[:3]], capture=["resid_post", "attn_out", "mlp_out", "pattern"])


def image_of(figure: Figure) -> AxesImage:
    return figure.axes[0].images[0]


def texts(figure: Figure) -> list[Text]:
    """Everything written in a figure that is drawn: a label outside an axis' range is not."""
    figure.draw_without_rendering()
    hidden = set()
    for ax in figure.findobj(Axes):
        assert isinstance(ax, Axes)
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            hidden |= {text for place, text in ticks if not low <= place <= high}
    found = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]
    return [t for t in found if t not in hidden]


def assert_readable(figure: Figure) -> None:
    """No two texts overlap by more than a hair, and all lie inside the figure."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = []
    for text in texts(figure):
        rotation = text.get_rotation() % 90
        if rotation:  # a tilted label's box is larger than its ink
            continue
        boxes.append((text.get_text(), text.get_window_extent(renderer)))
    for name, box in boxes:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
        assert inside, f"{name!r} sticks out of the figure"
    for (one, a), (two, b) in itertools.combinations(boxes, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide < 2 or high < 2, f"{one!r} and {two!r} overlap"


def test_residual_norms_draws_the_lengths(run: clew.Run) -> None:
    figure = plot.residual_norms(run)
    ax = figure.axes[0]
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), float) for line in ax.lines}
    lengths = np.sqrt(np.square(run.stack("resid_post")[:, 0].astype(np.float64)).sum(-1))
    np.testing.assert_allclose(lines["residual stream"], np.median(lengths[:, 1:], axis=1))
    np.testing.assert_allclose(lines["residual stream, first position"], lengths[:, 0])
    added = np.sqrt(np.square(run.stack("mlp_out")[:, 0].astype(np.float64)).sum(-1))
    np.testing.assert_allclose(lines["added by the MLP"], np.median(added[:, 1:], axis=1))
    assert ax.get_xlabel() == "layer" and ax.get_ylabel() == "Euclidean length"
    assert_readable(figure)


def test_residual_norms_of_a_shorter_sequence(run: clew.Run) -> None:
    line = plot.residual_norms(run, batch=1).axes[0].lines[0]
    lengths = np.linalg.norm(run.stack("resid_post")[:, 1, 1:3].astype(np.float64), axis=-1)
    np.testing.assert_allclose(np.asarray(line.get_ydata(), float), np.median(lengths, axis=1))


def test_residual_norms_of_one_position(model: clew.Model) -> None:
    figure = plot.residual_norms(model.run([3], capture="resid_post"))
    assert len(figure.axes[0].lines) == 1


def test_attention_draws_the_pattern(model: clew.Model, run: clew.Run) -> None:
    pattern = run["pattern", 1][0, 2]
    figure = plot.attention(pattern, plot.token_labels(model, PROMPT), title="a head")
    image = image_of(figure)
    assert np.array_equal(np.asarray(image.get_array()), pattern)
    assert image.norm.vmin == 0 and image.norm.vmax == pattern.max()
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [str(i) for i in PROMPT]
    assert ax.get_title() == "a head"
    assert_readable(figure)


@pytest.mark.parametrize("n", [1, 2, 45, 64])
def test_attention_labels_fit(n: int) -> None:
    labels = [f"WIDEST WORD {i}" for i in range(n)]
    figure = plot.attention(np.eye(n), labels, title="a model, layer 10, head 11: looks at the token before")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        t if len(t) <= 14 else f"{t[:13]}…" for t in labels
    ]
    assert_readable(figure)


def test_attention_of_every_head(run: clew.Run, model: clew.Model) -> None:
    pattern = run["pattern", 0][0, :, :8, :8]
    figure = plot.attention(pattern, plot.token_labels(model, PROMPT), title="layer 0")
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [f"head {i}" for i in range(len(pattern))]
    for weights, ax in zip(pattern, panels, strict=True):
        assert np.array_equal(ax.images[0].get_array(), weights)  # type: ignore[arg-type]
        assert ax.images[0].get_clim() == (0, pattern.max())
    assert_readable(figure)


def test_any_numbers_by_layer_and_head() -> None:
    values = np.arange(6.0).reshape(2, 3) - 2
    figure = plot.heatmap(values, bar="score", title="Heads")
    image = image_of(figure)
    assert np.array_equal(image.get_array(), values) and image.get_clim() == (-3, 3)  # type: ignore[arg-type]
    assert image.origin == "lower" and figure.axes[0].get_ylabel() == "layer"
    assert_readable(figure)


def bar_inside(figure: Figure) -> bool:
    """Is the colour bar's label, which stands upright, within the figure?"""
    figure.draw_without_rendering()
    box = figure.axes[1].yaxis.label.get_window_extent()
    return bool(box.y0 > -1 and box.y1 < figure.bbox.y1 + 1)


def test_sweeps_say_what_they_are(model: clew.Model) -> None:
    other = [*PROMPT[:2], PROMPT[2] + 1, *PROMPT[3:]]
    metric = clew.metrics.logit_diff(7, 9)
    worded = clew.load("shakespeare").sweep(
        [3, 1, 4], [3, 5, 4], metric=clew.metrics.logit_diff(300, 700), method="attribution"
    )
    assert bar_inside(plot.sweep(worded))
    result = model.path_patch(PROMPT, other, receivers=[("q_input", 1, 0), "resid_post.-1"], metric=metric)
    title = plot.sweep(result).axes[0].get_title().replace("\u00a0", " ").replace("\n", " ")
    last = model.config.n_layers - 1
    assert title == f"Paths from attn.hook_z to q_input.1 head 0, resid_post.{last}"
    assert "to q_input.1 head 0" in repr(result) and " to " not in repr(model.sweep(PROMPT, other, metric=metric))


def test_attention_without_room_for_labels() -> None:
    figure = plot.attention(np.eye(65), ["x"] * 65)
    assert "x" not in {t.get_text() for t in texts(figure)}
    assert_readable(figure)


def test_negative_weights_are_drawn_around_zero() -> None:
    image = image_of(plot.attention(np.array([[0.5, -2.0], [1.0, 0.0]])))
    assert (image.norm.vmin, image.norm.vmax) == (-2, 2)
    assert image_of(plot.attention(np.zeros((2, 2)))).norm.vmax == 1


def test_lens_table_draws_ranks_and_tokens(model: clew.Model) -> None:
    lens = logit_lens(model, PROMPT)
    figure = plot.lens_table(lens)
    data = np.ma.asarray(image_of(figure).get_array())
    assert np.array_equal(data[:, :-1], lens.ranks[:, 0, :-1] + 1)
    assert data.mask[:, -1].all() and not data.mask[:, :-1].any()
    cells = {(round(t.get_position()[0]), round(t.get_position()[1])): t for t in figure.axes[0].texts}
    for layer in range(2):
        for pos in range(len(PROMPT)):
            cell = cells[pos, layer]
            assert cell.get_text() == str(lens.top_tokens[layer, 0, pos, 0])
            assert (cell.get_fontweight() == "bold") == (lens.ranks[layer, 0, pos] == 0)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == [str(i) for i in PROMPT]
    above = [t.get_text() for t in figure.axes[0].child_axes[0].get_xticklabels()]
    assert above == [*map(str, PROMPT[1:]), "?"]
    assert_readable(figure)


def test_text_in_cells_has_contrast(model: clew.Model) -> None:
    figure = plot.lens_table(logit_lens(model, np.random.default_rng(0).integers(0, 31, 20)))
    image = image_of(figure)
    colours = image.to_rgba(image.get_array())
    for text in figure.axes[0].texts:
        column, row = (round(v) for v in text.get_position())
        ground = plot._luminance(colours[row, column]) if column < 19 else plot._luminance(np.array([0.85] * 3))
        ink = 0.0 if text.get_color() == "black" else 1.0
        light, dark = max(ground, ink), min(ground, ink)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_lens_table_positions(model: clew.Model) -> None:
    lens = logit_lens(model, [PROMPT, PROMPT[:3]])
    some = np.ma.asarray(image_of(plot.lens_table(lens, positions=[1, -2])).get_array())
    assert np.array_equal(some, lens.ranks[:, 0, [1, -2]] + 1)
    cut = np.ma.asarray(image_of(plot.lens_table(lens, positions=slice(1, 4))).get_array())
    assert np.array_equal(cut, lens.ranks[:, 0, 1:4] + 1)
    assert np.ma.asarray(image_of(plot.lens_table(lens, batch=1)).get_array()).shape == (2, 3)


def test_lens_table_of_a_long_prompt(model: clew.Model) -> None:
    long = make(zoo()["gpt2"].replace(n_ctx=64))[0]
    figure = plot.lens_table(logit_lens(long, np.arange(60) % 31))
    assert not figure.axes[0].texts
    assert figure.axes[0].get_xlabel() == "position"
    assert_readable(figure)


def test_lens_table_from_embeddings(model: clew.Model) -> None:
    embeddings = np.random.default_rng(1).normal(size=(1, 3, 24))
    run = model.run(embeddings=embeddings, capture="resid_post")
    with pytest.raises(clew.ConfigError, match="the next tokens are not known"):
        plot.lens_table(logit_lens(model, run))
    figure = plot.lens_table(logit_lens(model, run, targets=[[3, 4, -1]]))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_labels() -> None:
    assert [plot.label(t) for t in ("cat", " cat", " ", "  ", "a b", "\n", "\t", "", "$x$", "_", "\x00")] == [
        "cat", "·cat", "␣", "␣␣", "a·b", "\\n", "\\t", "∅", "$x$", "_", "U+0000"
    ]  # fmt: skip
    assert plot.label("é") == "é" and plot.label("\U0001f600").isprintable()
    assert plot.label("\u4e2d") in ("\u4e2d", "U+4E2D")


def test_signs_that_matplotlib_would_interpret(tmp_path: Path) -> None:
    figure = plot.attention(np.eye(3), [plot.label(t) for t in ("$x^$", "_a$", "\u4e2d\u6587")])
    figure.savefig(tmp_path / "signs.png")  # a warning about a missing glyph or broken formula would be an error
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()][:2] == ["$x^$", "_a$"]


def test_titles_and_names_that_matplotlib_would_interpret(model: clew.Model, run: clew.Run, tmp_path: Path) -> None:
    bad = "$\\bad{$"
    curve = clew.train.Curve([(1, 2.0, 0.1, 1.0), (2, 1.0, 0.1, 1.0)])
    swept = model.sweep(PROMPT, PROMPT[::-1], site="z", over=("layer", "head"), metric=clew.metrics.logit_diff(7, 9))
    for figure in (
        plot.attention(np.eye(3), title=bad),
        plot.attention(np.ones((2, 3, 3)), title=bad),
        plot.residual_norms(run, title=bad),
        plot.lens_table(logit_lens(model, PROMPT), title=bad),
        plot.loss_curve(curve, title=bad),
        plot.heatmap(np.eye(2), title=bad, xlabel=bad, ylabel=bad, bar=bad),
        plot.curves({bad: [1, 2], "b": [2, 1]}, title=bad, xlabel=bad, ylabel=bad),
        plot.curves({bad + str(i): [1, 2] for i in range(3)}, title=bad),
        plot.sweep(swept, title=bad),
    ):
        figure.savefig(tmp_path / "bad.png")
        assert figure.get_suptitle() == bad or figure.axes[0].get_title() == bad


@pytest.mark.parametrize("value", [1e308, -1e308, 1e300])
def test_numbers_too_large_to_draw(value: float) -> None:
    said = re.escape(f"holds {value:g}: numbers must be below 1e+300 to be drawn")
    curve = clew.train.Curve([(1, value, 0.1, 1.0), (2, 1.0, 0.1, 1.0)])
    held = clew.train.Curve([(1, 1.0, 0.1, 1.0)], [(1, value)])
    for draw, what in (
        (lambda: plot.heatmap([[value, 0.0]]), "heatmap"),
        (lambda: plot.curves({"a": [value, np.nan]}), "curves: a"),
        (lambda: plot.curves({"a": [0.0]}, [value]), "curves: x"),
        (lambda: plot.loss_curve(curve), "loss_curve: the curve"),
        (lambda: plot.loss_curve(held), "loss_curve: the curve"),
    ):
        refuse(draw, clew.ConfigError, f"{what} {said}")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_can_be_saved(run: clew.Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure.{suffix}"
    plot.residual_norms(run).savefig(path)
    assert path.stat().st_size > 1000


def test_axes_of_ones_own(model: clew.Model, run: clew.Run) -> None:
    mine = Figure()
    a, b, c = mine.subplots(3)
    assert plot.residual_norms(run, ax=a) is mine
    assert plot.attention(run["pattern", 0][0, 0], ax=b) is mine
    assert plot.lens_table(logit_lens(model, PROMPT), ax=c) is mine
    assert a.lines and b.images and c.images


def test_a_notebook_shows_it(run: clew.Run) -> None:
    assert plot.residual_norms(run)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def refuse(call: Any, error: type[clew.Error], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_refused(model: clew.Model, run: clew.Run) -> None:
    lens = logit_lens(model, PROMPT)
    refuse(lambda: plot.residual_norms(run, batch=2), clew.ShapeError, "batch = 2: the run has 2 sequences")
    bare = model.run(PROMPT, capture="z")
    refuse(lambda: plot.residual_norms(bare), clew.SiteError, "resid_post")
    refuse(lambda: plot.attention(np.zeros(2)), clew.ShapeError, r"\[query, key\] of one head, .*, not \[2\]")
    ax = Figure().subplots()
    refuse(lambda: plot.attention(np.zeros((2, 2, 2)), ax=ax), clew.ShapeError, r"in one ax, not \[2, 2, 2\]")
    refuse(lambda: plot.heatmap(np.zeros(3)), clew.ShapeError, r"\[layer, head\], not float64 \[3\]")
    refuse(lambda: plot.attention(np.zeros((0, 0))), clew.ShapeError, r"not \[0, 0\]")
    refuse(lambda: plot.attention(np.eye(3), ["a"]), clew.ShapeError, "1 labels for a pattern of 3 queries and 3 keys")
    refuse(lambda: plot.lens_table(lens, batch=1), clew.ShapeError, "batch = 1: the lens has 1 sequence")
    refuse(lambda: plot.lens_table(lens, positions=[99]), clew.ShapeError, "positions 0 to 7")
    refuse(
        lambda: plot.lens_table(lens, positions=[1.5]),
        clew.ShapeError,
        "positions: a slice, a list of integers or a mask",
    )
    for batch in ("a", None, [0], 1.0, True):
        for draw in (lambda b: plot.lens_table(lens, batch=b), lambda b: plot.residual_norms(run, batch=b)):
            refuse(lambda draw=draw, b=batch: draw(b), clew.ConfigError, "batch = .*: expected a whole number")
    gradients = model.gradients(PROMPT, metrics.logit_diff([4], [5]), wrt="resid_post")
    for other in (gradients, 5):
        name = type(other).__name__
        refuse(lambda other=other: plot.residual_norms(other), clew.ConfigError, f"run: a Run, .*, not {name}")
    refuse(lambda: plot.lens_table(lens, positions=[]), clew.ShapeError, "none of them holds a token")
    refuse(lambda: plot.curves({5: [1, 2]}), clew.ConfigError, "curves: the name of a series: a text, not int")
    for outside in (-1, model.config.d_vocab):
        said = f"token_labels: id {outside} at place 1 is outside the vocabulary of {model.config.d_vocab}"
        refuse(lambda outside=outside: plot.token_labels(model, [1, outside]), clew.TokenError, said)
    over: Any = ("layer", "pos", "head")
    swept = model.sweep(PROMPT, PROMPT, site="z", over=over, metric=clew.metrics.logit_diff(7, 9))
    said = r"layer × pos × head has no map: give two of its axes to plot.heatmap, such as result.effect\[0\]"
    refuse(lambda: plot.sweep(swept), clew.ShapeError, said)
    plot.heatmap(swept.effect[0])
    refuse(lambda: plot.token_labels(model, [[1]]), clew.ShapeError, r"integer ids \[pos\], not int64 \[1, 1\]")


def test_no_display_no_pyplot_no_global_state() -> None:
    assert_python(
        "import sys, matplotlib\n"
        "settings = lambda: {k: dict.__getitem__(matplotlib.rcParams, k) for k in matplotlib.rcParams}\n"
        "before = settings()\n"
        "import numpy as np, clew.plot\n"
        "clew.plot.attention(np.eye(2), ['a', 'b'])._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert settings() == before\n"
        "print('fine')",
        DISPLAY="",
    )


def test_without_matplotlib() -> None:
    assert_python(
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import clew\n"
        "try:\n"
        "    import clew.plot\n"
        "except ImportError as error:\n"
        "    assert str(error) == \"clew.plot needs matplotlib: pip install '.[plot]' in the checkout\", error\n"
        "    print('fine')\n"
    )


def test_norms_leave_out_positions_that_a_sequence_lacks() -> None:
    model = clew.Model.from_config(clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=8, d_vocab=10), seed=0)
    run = model.run([[1, 2, 3, 4], [5, 6]], capture="resid_post", positions=[-1, -3])
    drawn = plot.residual_norms(run, batch=1).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, np.linalg.norm(run.stack("resid_post")[:, 1, 0], axis=-1), rtol=1e-6)
    with pytest.raises(clew.ShapeError, match="has none of the positions that the run kept"):
        plot.residual_norms(model.run([[1, 2, 3], [5, 6]], capture="resid_post", positions=[-3]), batch=1)
