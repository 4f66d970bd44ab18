"""Streams of texts: what is read, what reducers give against NumPy, batches, Dask with a lost worker, Zarr."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import stream


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
    with pytest.raises(clew.ConfigError, match="cannot take"):
        stream.TopK(2).merge(stream.TopK(3))


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


@pytest.mark.filterwarnings("default")
def test_dask_with_a_worker_killed() -> None:
    dask = pytest.importorskip("distributed", reason="distributed is not installed")
    texts = sequences(6000)
    killed: list[int] = []
    alone = stream.reduce(clew.load("stories260K"), texts, WATCHES)
    with dask.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with dask.Client(cluster) as client:

            def kill(so_far: stream.Reduced) -> None:
                if not killed:
                    worker = next(iter(cluster.workers.values()))
                    killed.append(worker.process.pid)
                    worker.process.process._process.kill()

            found = stream.distributed("stories260K", texts, WATCHES, client=client, progress=kill)
    assert killed and found.tokens == alone.tokens and found.texts == 6000
    np.testing.assert_allclose(found["covariance"].covariance, alone["covariance"].covariance, rtol=1e-6, atol=1e-9)
    assert (found["histogram"].counts == alone["histogram"].counts).all()
    assert (found["top"].where == alone["top"].where).all()
