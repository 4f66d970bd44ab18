"""Reducers and streams of texts under input that is wrong, odd or broken off."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import stream
from clew.stream import reducers

MODEL = clew.load("shakespeare")
KINDS: dict[str, Callable[[], stream.Reducer]] = {
    "Mean": stream.Mean, "Covariance": stream.Covariance, "Ridge": stream.Ridge,
    "Histogram": lambda: stream.Histogram(0, 1, 5), "TopK": lambda: stream.TopK(3),
}  # fmt: skip


def take(reducer: stream.Reducer, rows: Any) -> None:
    reducer.update(*[rows] * reducer.inputs)


def state(reducer: stream.Reducer) -> dict[str, Any]:
    """Everything it holds, as lists."""
    return {
        name: [v.tolist() for v in value] if isinstance(value, list) else np.asarray(value).tolist()
        for name, value in reducer.__dict__.items()
    }


class Interrupting:
    """The core, with Ctrl-C in one of its calls: after its work is done, before Python sees the result."""

    def __init__(self, core: Any, call: int) -> None:
        self.core, self.call = core, call

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.core, name)

        def called(*args: Any) -> Any:
            self.call -= 1
            result = function(*args)
            if self.call == 0:
                raise KeyboardInterrupt
            return result

        return called


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["first update", "update", "merge"])
def test_ctrl_c_leaves_a_reducer_as_it_was(kind: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).random((2, 6, 4))
    stopped = 0
    for call in range(1, 20):
        reducer, other = KINDS[kind](), KINDS[kind]()
        take(other, b)
        if what != "first update":
            take(reducer, a)
        before = state(reducer)
        with monkeypatch.context() as m:
            m.setattr(reducers, "_core", Interrupting(reducers._core, call))
            try:
                if what == "merge":
                    reducer.merge(other)
                else:
                    take(reducer, b)
                break
            except KeyboardInterrupt:
                stopped += 1
        assert state(reducer) == before
        if what == "merge":
            reducer.merge(other)
        else:
            take(reducer, b)
        want = KINDS[kind]()
        if what != "first update":
            take(want, a)
        if what == "merge":
            want.merge(other)
        else:
            take(want, b)
        assert state(reducer) == state(want)
    # sums of means and histograms are merged without the core
    assert stopped or (what == "merge" and kind in ("Mean", "Histogram"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_shallow_copy_keeps_what_it_has_seen(kind: str) -> None:
    a, b = np.random.default_rng(1).random((2, 6, 4))
    reducer = KINDS[kind]()
    take(reducer, a)
    shallow, before = copy.copy(reducer), state(reducer)
    take(reducer, b)
    other = KINDS[kind]()
    take(other, b)
    reducer.merge(other)
    assert state(shallow) == before


def test_bools_are_rows() -> None:
    mean = stream.Mean()
    mean.update(np.array([[True, False], [True, True]]))
    assert mean.mean.tolist() == [1.0, 0.5]


def test_rows_that_are_none_are_told_with_their_type() -> None:
    with pytest.raises(
        clew.ShapeError, match=r"Mean takes real rows \[n, d\] of equal number, not complex128 \[2, 2\]"
    ):
        stream.Mean().update(np.ones((2, 2), complex))


def test_histograms_without_edges_or_rows() -> None:
    for low, high, bins in ((-1e308, 1e308, 4), (0.0, 5e-324, 4), (1.0, 1.0 + 1e-15, 100)):
        with pytest.raises(clew.ConfigError, match="bins of equal width have no edges in float64 there"):
            stream.Histogram(low, high, bins)
    with pytest.raises(clew.ConfigError, match="bins = True: expected a whole number"):
        stream.Histogram(0, 1, True)
    empty = stream.Histogram(0, 1, 7)
    assert empty.counts.shape == (0, 7) and empty.below.shape == empty.above.shape == empty.nan.shape == (0,)


def test_ridge_names_columns_that_have_no_fit() -> None:
    rows = np.random.default_rng(2).random((9, 3))
    for value in (np.nan, np.inf, 1e300):
        bad = rows.copy()
        bad[4, 1] = value
        for x, y, name in ((bad, rows, "x"), (rows, bad, "y")):
            fit = stream.Ridge()
            fit.update(x, y)
            for lam in (0, 1):
                with pytest.raises(clew.ConfigError, match=rf"column 1 of {name} held NaN, infinity or .*\(1 such"):
                    fit.solve(lam)


def test_ridge_with_a_lam_that_rounds_away() -> None:
    x = np.repeat([[0.0], [1.0], [3.0]], 2, axis=1)
    fit = stream.Ridge()
    fit.update(x, x[:, :1])
    weights, bias = fit.solve(1e-300)
    np.testing.assert_allclose(weights, [[0.5], [0.5]], atol=1e-12)
    np.testing.assert_allclose(bias, [0.0], atol=1e-12)


# ---- Sources and watches --------------------------------------------------------------------------------------------

WATCH: dict[str, Any] = {"mean": (stream.Mean(), "resid_post.3")}


def test_names_of_files_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("My lord.")
    with pytest.raises(clew.TokenError, match=r"item 1, '.*one\.txt', is the name of a file: pathlib\.Path\("):
        stream.reduce(MODEL, ["A text.", str(path)], WATCH)
    assert list(stream.Texts(["none.txt", path])) == ["none.txt", "My lord."]


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(clew.ConfigError, match=r"source: a mapping; give its texts alone: source\.values\(\)"):
        stream.reduce(MODEL, {"a": "My lord."}, WATCH)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(clew.LoadError, match=r"pipe\.txt: neither a file nor a folder"):
        stream.reduce(MODEL, tmp_path / "pipe.txt", WATCH)
    with pytest.raises(clew.ConfigError, match="source = '': an empty path"):
        stream.reduce(MODEL, "", WATCH)
    with pytest.raises(clew.LoadError, match="no such file or folder; a text itself is given in a list"):
        stream.reduce(MODEL, "My lord, I pray thee " * 1000, WATCH)  # longer than a path can be
    with pytest.raises(clew.TokenError, match="text 1: character 2 is a lone surrogate"):
        stream.reduce(MODEL, ["a", "b \ud800"], WATCH)


def test_watches_that_are_none() -> None:
    for site, count, such in (("z", 4, "blocks.3.attn.hook_z"), ("*.1.*mlp_*", 2, "blocks.1.hook_mlp_out")):
        with pytest.raises(clew.SiteError, match=rf"'m': '.*' means {count} sites: a reducer watches one, .*{such}"):
            stream.reduce(MODEL, ["a"], {"m": (stream.Mean(), site)})
    with pytest.raises(clew.ConfigError, match=r"is no \(reducer, site\), such as \(Mean\(\), 'resid_post\.3'\)"):
        stream.reduce(MODEL, ["a"], {"m": stream.Mean()})

    def short(run: clew.Run) -> Any:
        return np.ones((2, 3))

    for function, shape in ((short, r"\[2, 3\]"), (lambda run: None, r"\[\]"), (lambda run: np.ones(7), r"\[7\]")):
        with pytest.raises(clew.ShapeError, match=rf"gave for 7 tokens: {shape}, expected rows \[7, d\]"):
            stream.reduce(MODEL, ["My lord, I pray thee."], {"m": (stream.Mean(), function)})


def test_a_result_shows_itself_in_a_few_words(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("x\n" * 50)
    found = stream.reduce(MODEL, stream.Texts(tmp_path, broken="skip"), WATCH)
    assert found.n_broken == 50 and len(repr(found)) < 200 and "Mean() of 0 rows" in repr(found)


def test_stores_of_nothing_and_overwriting(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    found = stream.to_zarr(MODEL, [""], "z.0", tmp_path / "a")
    assert (found.texts, found.tokens) == (1, 0)
    assert zarr.open_group(str(tmp_path / "a"), mode="r").attrs["texts"] == 1
    with pytest.raises(clew.ConfigError, match="overwrite = 'no': True or False"):
        stream.to_zarr(MODEL, ["a"], "z.0", tmp_path / "a", overwrite="no")  # type: ignore[arg-type]
