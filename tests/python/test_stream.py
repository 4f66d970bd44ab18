"""Streams of texts: what is read, what reducers give against NumPy, batches, Dask with a lost worker, Zarr."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import stream
from clew.stream.flow import Piece, batches, real
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return clew.load("stories260K", dtype="float64")


def sequences(n: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 512, int(rng.integers(1, 60))).tolist() for _ in range(n)]


WATCHES: dict[str, Any] = {
    "mean": (stream.Mean(), "resid_post.1"),
    "covariance": (stream.Covariance(), ("resid_post", 1)),
    "histogram": (stream.Histogram(-0.5, 0.5, 7), "z.0"),
    "top": (stream.TopK(3), "mlp_out.1"),
    "ridge": (stream.Ridge(2.0), "resid_post.0", "resid_post.1"),
}


def test_reducers_against_numpy(model: clew.Model) -> None:
    texts = sequences()
    found = stream.reduce(model, texts, WATCHES, at_once=200)
    sites = ["resid_post.0", "resid_post.1", "z.0", "mlp_out.1"]
    runs = [model.run(t, capture=sites) for t in texts]
    x, y, z, m = (
        np.concatenate([r[s][0].reshape(len(t), -1) for r, t in zip(runs, texts, strict=True)]) for s in sites
    )
    assert found.texts == 40 and found.tokens == len(x)
    np.testing.assert_allclose(found["mean"].mean, y.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["mean"].variance, y.var(0), rtol=1e-10)
    np.testing.assert_allclose(found["covariance"].covariance, np.cov(y.T, bias=True), rtol=1e-9, atol=1e-12)
    for column in range(z.shape[1]):
        assert found["histogram"].counts[column].tolist() == np.histogram(z[:, column], 7, (-0.5, 0.5))[0].tolist()
    assert (found["histogram"].below == (z < -0.5).sum(0)).all()
    np.testing.assert_allclose(found["top"].values, -np.sort(-m, axis=0)[:3].T, rtol=1e-10)
    text, pos = found["top"].where[5, 0]
    np.testing.assert_allclose(runs[text]["mlp_out.1"][0, pos, 5], m[:, 5].max(), rtol=1e-12)
    xc, yc = x - x.mean(0), y - y.mean(0)
    weights, bias = found["ridge"].solve()
    expected = np.linalg.solve(xc.T @ xc + 2 * np.eye(x.shape[1]), xc.T @ yc)
    np.testing.assert_allclose(weights, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(bias, y.mean(0) - x.mean(0) @ expected, atol=1e-9)
    left = ((yc - xc @ expected) ** 2).sum(0) / (yc**2).sum(0)
    np.testing.assert_allclose(found["ridge"].explained(), 1 - left, atol=1e-9)


def test_batches_do_not_matter(model: clew.Model) -> None:
    one, other = (stream.reduce(model, sequences(), WATCHES, at_once=n) for n in (1, 5000))
    np.testing.assert_allclose(one["covariance"].covariance, other["covariance"].covariance, rtol=1e-9, atol=1e-12)
    assert (one["histogram"].counts == other["histogram"].counts).all()
    assert (one["top"].where == other["top"].where).all()


def test_top_k_of_equal_values_is_the_earliest() -> None:
    top, rest = stream.TopK(2), stream.TopK(2)
    rest.update(np.ones((3, 1)), where=np.array([[2, 0], [0, 1], [0, 0]]))
    top.update(np.array([[np.nan], [1.0]]), where=np.array([[7, 0], [1, 0]]))
    top.merge(rest)
    assert top.where.tolist() == [[[0, 0], [0, 1]]]


def test_long_texts(model: clew.Model) -> None:
    watch = {"m": (stream.Mean(), "resid_post.0")}
    with pytest.raises(clew.TokenError, match=r"text 1 has 5 tokens, a run 4"):
        stream.reduce(model, [[1], [1] * 5], watch, length=4)
    found = stream.reduce(model, [[1], [1] * 5], watch, length=4, too_long="split")
    assert (found.split, found.tokens) == (1, 6)


LINES = b'{"text": "one"}\n\nnot json\n{"other": 1}\n[1]\n{"text": ""}\n\xff\n{"text": [1, 2]}\n'


@pytest.mark.parametrize("packed", [False, True])
def test_broken_lines(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(LINES) if packed else LINES)
    texts = stream.Texts(path, broken="skip")
    assert list(texts) == ["one", [1, 2]] and texts.n_broken == 5
    reasons = {b.line: b.reason for b in texts.broken}
    assert sorted(reasons) == [3, 4, 5, 6, 7]
    assert "column 1" in reasons[3] and "no field 'text'; it has 'other'" in reasons[4] and "empty" in reasons[6]
    with pytest.raises(clew.LoadError, match=r"a\.jsonl.*, line 3: not JSON"):
        list(stream.Texts(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A packed file that breaks off, is damaged or is none: told, never half a text; and what JSON cannot hold."""
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    damaged = bytearray(whole)
    damaged[300:340] = bytes(40)
    for name, data, message in (
        ("a.jsonl.gz", whole[:-100], "end-of-stream"), ("b.jsonl.gz", bytes(damaged), "b.jsonl.gz"),
        ("c.txt.gz", b"no gzip", "Not a gzipped file"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        with pytest.raises(clew.LoadError, match=f"{name}.*{message}" if message != name else name):
            list(stream.Texts(tmp_path / name, broken="skip"))
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "marked"}\n{"text": ' + b"1" * 5000 + b"}\n")
    texts = stream.Texts(path, broken="skip")
    assert list(texts) == ["marked"] and "not JSON that can be read" in texts.broken[0].reason
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert list(stream.Texts(tmp_path / "e.txt")) == ["marked"]


def test_ids_that_are_no_tokens(model: clew.Model, tmp_path: Path) -> None:
    watch = {"m": (stream.Mean(), "resid_post.0")}
    path = tmp_path / "ids.jsonl"
    for bad in (-4, 512, 10**30):
        path.write_text("".join(f'{{"text": {ids}}}\n' for ids in ([1] * 9, [2] * 5, [1, bad])))
        with pytest.raises(clew.TokenError, match=f"text 2: id {bad} at position 1: the vocabulary has 0 to 511"):
            stream.reduce(model, path, watch)


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("a\nb\n\n\nc\n")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    assert list(stream.Texts(tmp_path)) == ["first", "a\nb", "c"]
    assert list(stream.Texts(tmp_path / "b", by="line")) == ["a", "b", "c"]
    assert list(stream.Texts(tmp_path / "b", by="file")) == ["a\nb\n\n\nc\n"]
    with pytest.raises(clew.LoadError, match="no such file or folder"):
        stream.Texts("nowhere.txt")
    with pytest.raises(clew.TokenError, match="item 0 is neither"):
        list(stream.Texts([1.5]))


def test_wrong_watches(model: clew.Model) -> None:
    with pytest.raises(clew.ConfigError, match="Ridge watches 2, not 1"):
        stream.reduce(model, [[1]], {"r": (stream.Ridge(), "resid_post.0")})
    with pytest.raises(clew.ShapeError, match=r"rows of \(3,\) values after rows of \(2,\)"):
        mean = stream.Mean()
        mean.update(np.ones((1, 2)))
        mean.update(np.ones((1, 3)))
    for one, other in (
        (stream.TopK(2), stream.TopK(3)), (stream.Ridge(1), stream.Ridge(2)), (stream.Mean(), stream.Covariance()),
        (stream.Histogram(0, 1, 2), stream.Histogram(0, 1, 3)),
    ):  # fmt: skip
        with pytest.raises(clew.ConfigError, match="cannot take"):
            one.merge(other)


def test_zarr(model: clew.Model, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    texts = sequences(10)
    stream.to_zarr(model, texts, "resid_post.2", tmp_path / "x.zarr", at_once=50)
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="r")
    expected = np.concatenate([model.run(t, capture="resid_post.2")["resid_post.2"][0] for t in texts])
    np.testing.assert_allclose(group["resid_post.2"][:], expected, atol=1e-12)
    assert group["tokens"][:].tolist() == [i for t in texts for i in t]
    with pytest.raises(clew.ConfigError, match="exists already"):
        stream.to_zarr(model, texts, "resid_post.2", tmp_path / "x.zarr")


# ---- What merges ----------------------------------------------------------------------------------------------------


def made() -> dict[str, stream.Reducer]:
    return {name: watch[0].fresh() for name, watch in WATCHES.items()}


def results(reducer: stream.Reducer) -> list[np.ndarray[Any, Any]]:
    r: Any = reducer
    return {
        "Mean": lambda: [r.mean, r.variance],
        "Covariance": lambda: [r.mean, r.covariance],
        "Histogram": lambda: [r.counts, r.below, r.above, r.nan],
        "TopK": lambda: [r.values, r.where],
        "Ridge": lambda: [*r.solve(), r.explained()],
    }[type(reducer).__name__]()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 2**31), st.permutations(range(5)))
@settings(max_examples=25, deadline=None)
def test_any_split_merges_to_the_same(sizes: list[int], seed: int, order: list[int]) -> None:
    """Cut anywhere, merged in any order, far from zero: the numbers of one pass."""
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    x, y = 1e4 + rng.standard_normal((n, 3)), rng.standard_normal((n, 2))
    where = np.column_stack([np.zeros(n, np.int64), np.arange(n)])
    ends = np.cumsum(sizes)
    for name, whole in made().items():
        rows = (x, y) if whole.inputs == 2 else (y,)
        whole.update(*rows, where=where)
        parts = []
        for start, end in zip(ends - sizes, ends, strict=True):
            parts.append(WATCHES[name][0].fresh())
            parts[-1].update(*(r[start:end] for r in rows), where=where[start:end])
        total = WATCHES[name][0].fresh()
        for i in sorted(range(len(parts)), key=lambda i: order[i]):
            total.merge(parts[i])
        assert total.n == whole.n == n
        for got, want in zip(results(total), results(whole), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_merging_copies_and_leaves_the_other_alone() -> None:
    for name, first in made().items():
        rows = [np.arange(6.0).reshape(3, 2)] * first.inputs
        first.update(*rows)
        total = WATCHES[name][0].fresh()
        total.merge(first)
        before = [r.copy() for r in results(first)]
        total.update(*rows)
        total.merge(first)
        for got, want in zip(results(first), before, strict=True):
            np.testing.assert_array_equal(got, want)


def test_reducers_before_the_first_row() -> None:
    for reducer in (stream.Mean(), stream.Covariance()):
        with pytest.raises(clew.ConfigError, match="has seen 0 rows: it needs 1"):
            _ = reducer.mean
    with pytest.raises(clew.ConfigError, match="Ridge has seen 0 rows"):
        stream.Ridge().solve()
    used = stream.Mean()
    used.update(np.ones((1, 1)))
    with pytest.raises(clew.ConfigError, match="has seen 1 rows already"):
        used.fresh()


def test_reducers_refuse() -> None:
    with pytest.raises(clew.ConfigError, match="lam = -1"):
        stream.Ridge(-1)
    with pytest.raises(clew.ConfigError, match="k = 0: at least 1"):
        stream.TopK(0)
    with pytest.raises(clew.ConfigError, match=r"Histogram\(1, 1, 100\): needs low < high"):
        stream.Histogram(1, 1)
    with pytest.raises(clew.ShapeError, match=r"Ridge takes 2 arrays of rows, not 1"):
        stream.Ridge().update(np.ones((1, 1)))
    with pytest.raises(
        clew.ShapeError, match=r"real rows \[n, d\] of equal number, not float64 \[2, 1\] and float64 \[3, 1\]"
    ):
        stream.Ridge().update(np.ones((2, 1)), np.ones((3, 1)))


# ---- What is held ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, bins", [(0.0, 1.0, 10), (-0.5, 0.5, 7), (0.1, 0.7, 6), (1e6, 1e6 + 1e-8, 7), (-1e300, 1e300, 3)]
)
def test_histogram_on_its_edges(low: float, high: float, bins: int) -> None:
    edges = np.linspace(low, high, bins + 1)
    inside = np.random.default_rng(0).uniform(low, high, 500)
    values = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), inside])
    counts = stream.Histogram(low, high, bins)
    counts.update(np.concatenate([values, [np.inf, -np.inf, np.nan, np.nan]])[:, None])
    assert counts.counts.tolist() == [np.histogram(values, edges)[0].tolist()]
    assert counts.below.tolist() == [int((values < low).sum()) + 1]
    assert counts.above.tolist() == [int((values > high).sum()) + 1]
    assert counts.nan.tolist() == [2]


def test_batches_are_sorted_by_length_and_bounded() -> None:
    found = [Piece(i, 0, [0] * n) for i, n in enumerate(np.random.default_rng(1).integers(1, 50, 200).tolist())]
    made = list(batches(found, 300))
    flat = [len(p.ids) for batch in made for p in batch]
    assert flat == sorted(flat) and len(flat) == 200
    assert all(len(batch) * len(batch[-1].ids) <= 300 for batch in made)
    padding = sum(len(batch) * len(batch[-1].ids) - sum(len(p.ids) for p in batch) for batch in made)
    assert padding < 0.2 * sum(flat)
    assert [len(batch) for batch in batches(found[:1], 1)] == [1]  # one that is longer than a batch runs alone


def test_texts_are_read_as_they_are_needed(model: clew.Model) -> None:
    """A stream without end: only a chunk of it is taken before the first is reduced."""
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield [taken % 500] * 10

    class Enough(Exception):
        pass

    def stop(so_far: stream.Reduced) -> None:
        if so_far.texts >= 50:
            raise Enough

    with pytest.raises(Enough):
        stream.reduce(model, endless(), {"m": (stream.Mean(), "resid_post.0")}, chunk=400, progress=stop)
    assert taken == 50


def test_chunks_do_not_matter(model: clew.Model) -> None:
    one, other = (stream.reduce(model, sequences(), WATCHES, chunk=n) for n in (1, 10**6))
    for name in WATCHES:
        for got, want in zip(results(one[name]), results(other[name]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


def test_functions_of_a_run(model: clew.Model) -> None:
    """The cosine between what attention and the MLP add, a row for each token."""

    def cosine(run: clew.Run) -> np.ndarray[Any, Any]:
        a, b = run["attn_out", 0][real(run)], run["mlp_out", 0][real(run)]
        return ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))[:, None]

    texts = sequences(5)
    found = stream.reduce(model, texts, {"cos": (stream.Mean(), cosine)}, capture=["attn_out.0", "mlp_out.0"])
    runs = [model.run([t], capture=["attn_out.0", "mlp_out.0"]) for t in texts]
    np.testing.assert_allclose(found["cos"].mean, np.concatenate([cosine(r) for r in runs]).mean(0), atol=1e-12)


def test_names_and_settings_that_do_not_exist(model: clew.Model) -> None:
    mean = {"m": (stream.Mean(), "resid_pots.0")}
    with pytest.raises(clew.SiteError, match="resid_pots.*resid_post"):
        stream.reduce(model, [[1]], mean)
    with pytest.raises(clew.SiteError, match="watch a function of the run"):
        stream.reduce(model, [[1, 2]], {"m": (stream.Mean(), "pattern.0")})
    good = {"m": (stream.Mean(), "resid_post.0")}
    for more, message in (
        ({"too_long": "cut"}, "too_long = 'cut': 'error' or 'split'"), ({"at_once": 0}, "at_once = 0"),
        ({"length": 0}, "length = 0"), ({"chunk": 0}, "chunk = 0: at least 1"),
    ):  # fmt: skip
        with pytest.raises(clew.ConfigError, match=message):
            stream.reduce(model, [[1]], good, **more)
    with pytest.raises(clew.ConfigError, match="nothing is watched"):
        stream.reduce(model, [[1]], {})
    with pytest.raises(clew.ConfigError, match="is no \\(reducer, site\\)"):
        stream.reduce(model, [[1]], {"m": "resid_post"})
    nothing = stream.reduce(model, [], good)
    assert (nothing.texts, nothing.tokens) == (0, 0)


def test_longer_than_the_learned_positions() -> None:
    shakespeare = clew.load("shakespeare")
    n_ctx = shakespeare.config.n_ctx
    watch = {"m": (stream.Mean(), "resid_post.0")}
    with pytest.raises(clew.TokenError, match=f"text 0 has {n_ctx + 1} tokens, a run {n_ctx}"):
        stream.reduce(shakespeare, [[1] * (n_ctx + 1)], watch)
    with pytest.raises(clew.ConfigError, match=f"the model has learned {n_ctx} positions"):
        stream.reduce(shakespeare, [[1]], watch, length=n_ctx + 1)
    found = stream.reduce(shakespeare, [[1] * (n_ctx + 1)], watch, too_long="split")
    assert (found.split, found.tokens) == (1, n_ctx + 1)


def test_broken_lines_are_told_by_reduce(model: clew.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": [1, 2]}\nnot json\n{"text": [3]}\n')
    watch = {"m": (stream.Mean(), "resid_post.0")}
    with pytest.raises(clew.LoadError, match=r"a\.jsonl, line 2: not JSON: .*broken=\"skip\""):
        stream.reduce(model, path, watch)
    found = stream.reduce(model, stream.Texts(path, broken="skip"), watch)
    assert (found.tokens, found.n_broken, str(found.broken[0]).split(", ")[1][:6]) == (3, 1, "line 2")


def test_zarr_refuses_and_overwrites(model: clew.Model, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    path = tmp_path / "x.zarr"
    with pytest.raises(clew.ConfigError, match="nothing to write"):
        stream.to_zarr(model, [[1]], [], path)
    with pytest.raises(clew.SiteError, match="resid_pots"):
        stream.to_zarr(model, [[1]], "resid_pots.0", path)
    assert not path.exists()
    with pytest.raises(clew.SiteError, match=r"blocks\.1\.attn\.hook_pattern \[batch, head, .*no row for each token"):
        stream.to_zarr(model, [[1]], ["z.0", "pattern.1"], path)
    assert not path.exists()
    stream.to_zarr(model, [[1, 2, 3], [4]], ["resid_pre.0", "resid_post"], tmp_path / "all.zarr")
    group = zarr.open_group(str(tmp_path / "all.zarr"), mode="r")
    every = [f"blocks.{n}.hook_resid_post" for n in range(5)]
    assert sorted(group) == sorted(["resid_pre.0", "tokens", "where", *every])
    want = model.run([1, 2, 3], capture="resid_post")
    for name in every:
        np.testing.assert_allclose(group[name][:3], want[name][0], atol=1e-12)
    stream.to_zarr(model, [[1, 2, 3]], ["resid_post.0", ("z", 1)], path, overwrite=np.True_)
    with pytest.raises(clew.TokenError, match="text 1: id 512 at position 0"):
        stream.to_zarr(model, [[1], [512]], "resid_post.0", tmp_path / "half.zarr", chunk=1)
    assert "texts" not in zarr.open_group(str(tmp_path / "half.zarr"), mode="r").attrs
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(clew.ConfigError, match="mine is a folder of other files, no Zarr group: it is not overwritten"):
        stream.to_zarr(model, [[1]], "resid_post.0", mine, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    with pytest.raises(clew.ConfigError, match=r"thesis\.txt is a file, not a folder"):
        stream.to_zarr(model, [[1]], "resid_post.0", mine / "thesis.txt" / "x.zarr")
    stream.to_zarr(model, [[4], [5, 6]], ("z", 1), path, overwrite=True)
    group = zarr.open_group(str(path), mode="r")
    assert sorted(group) == ["tokens", "where", "z.1"] and group["where"][:].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert dict(group.attrs) == {
        "model": "stories260K", "sites": ["z.1"], "version": clew.__version__, "texts": 2, "tokens": 3,
    }  # fmt: skip
    seen: list[int] = []
    stream.to_zarr(
        model, [[1, 2], [3]], "z.0", tmp_path / "y.zarr", chunk=1, progress=lambda done: seen.append(done.tokens)
    )
    assert seen == [2, 3]


# ---- Several processes ----------------------------------------------------------------------------------------------


def test_dask_refuses() -> None:
    """Before a cluster is made: with no worker, or a client that is none, nothing would ever come back."""
    pytest.importorskip("distributed", reason="distributed is not installed")
    watch = {"m": (stream.Mean(), "resid_post.0")}
    for more, message in (
        ({"workers": 0}, "workers = 0: at least 1"), ({"threads": 0}, "threads = 0: at least 1"),
        ({"client": 3}, "client: a distributed.Client or a scheduler's address, not int"),
    ):  # fmt: skip
        with pytest.raises(clew.ConfigError, match=message):
            stream.distributed("stories260K", [[1]], watch, **more)


@pytest.mark.filterwarnings("default")
def test_dask_with_a_worker_killed() -> None:
    dask = pytest.importorskip("distributed", reason="distributed is not installed")
    texts = sequences(400)
    killed: list[int] = []
    alone = stream.reduce(clew.load("stories260K"), texts, WATCHES, chunk=2000)
    with dask.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with dask.Client(cluster) as client:

            def kill(so_far: stream.Reduced) -> None:
                if not killed:
                    worker = next(iter(cluster.workers.values()))
                    killed.append(worker.process.pid)
                    worker.process.process._process.kill()

            found = stream.distributed("stories260K", texts, WATCHES, client=client, chunk=2000, progress=kill)
            with pytest.raises(clew.TokenError, match="text 1 has 5 tokens, a run 4"):
                stream.distributed("stories260K", [[1], [1] * 5], WATCHES, client=client, length=4)
    assert killed and found.tokens == alone.tokens and found.texts == 400
    for name in WATCHES:
        for got, want in zip(results(found[name]), results(alone[name]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert (found["histogram"].counts == alone["histogram"].counts).all()
    assert (found["top"].where == alone["top"].where).all()
