"""Streams of texts: what reducers add to the runs they watch, and what a second process gives."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew.stream import Covariance, Histogram, Mean, Ridge, TopK, distributed, reduce
from clew.stream.flow import batches, pieces, settings

from . import models
from .report import Figure, at_least, at_most, of_times, skipped
from .timing import alternate

if TYPE_CHECKING:
    from .part import Setting

AT_ONCE = 1024
"""Tokens of a batch."""
PER_CHUNK = 8
"""Texts that a worker takes at a time."""


def _texts(n: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(longest // 2, longest + 1, n)
    return [rng.integers(0, models.D_VOCAB, length).tolist() for length in lengths]


def _reducers(setting: Setting) -> list[Figure]:
    """Each reducer alone and all of them, against the same batches run for the same sites."""
    model = clew.load(setting.directory)
    texts = _texts(16 if setting.quick else 32, 128)
    watches: dict[str, Any] = {
        "mean": (Mean(), "resid_post.6"),
        "covariance": (Covariance(), "resid_post.6"),
        "histogram": (Histogram(-10, 10), "resid_post.6"),
        "top-10": (TopK(10), "resid_post.6"),
        "ridge": (Ridge(), "resid_post.5", "resid_post.6"),
    }
    how = settings(None, "error", AT_ONCE)

    def runs(sites: list[str]) -> None:
        for batch in batches(pieces(model, 0, texts, how)[0], AT_ONCE):
            model.run([p.ids for p in batch], capture=sites, logits=None)

    out = []
    chosen = {name: {name: watch} for name, watch in watches.items()} | {"all five": watches}
    for name, some in chosen.items():
        sites = list(dict.fromkeys(site for watch in some.values() for site in watch[1:]))
        sides: dict[str, models.Forward] = {
            "reduce": partial(reduce, model, texts, some, at_once=AT_ONCE),
            "runs": partial(runs, sites),
        }
        times = alternate(sides, setting.rounds)
        out.append(of_times(f"{name}: reduce / its runs", times, "reduce", "runs", at_most(1.10)))
    return out


def _processes(setting: Setting) -> Figure:
    """The same texts by one and by two worker processes that are up already; the same numbers."""
    name, bound = "Dask, one process / two", at_least(1.6)
    why = models.missing("dask", "distributed")
    if why or models.threads() < 2:
        return skipped(name, bound, why or "this machine has one core, or --threads 1")
    import distributed as dask

    texts = _texts(96, 128)
    watches: dict[str, Any] = {"both": (Covariance(), "resid_post.6"), "top": (TopK(10), "mlp_out.6")}
    with ExitStack() as held:
        sides: dict[str, Any] = {}
        for n in (1, 2):
            cluster = held.enter_context(
                dask.LocalCluster(n_workers=n, threads_per_worker=1, processes=True, dashboard_address=None)  # type: ignore[no-untyped-call]
            )
            client = held.enter_context(dask.Client(cluster))  # type: ignore[no-untyped-call]
            sides[str(n)] = partial(distributed, str(setting.directory), texts, watches, client=client, threads=1,
                                    chunk=4 * 96 * PER_CHUNK)  # fmt: skip
        one, two = sides["1"](), sides["2"]()
        np.testing.assert_allclose(one["both"].covariance, two["both"].covariance, rtol=1e-12, atol=1e-12)
        assert (one["top"].where == two["top"].where).all()
        times = alternate(sides, setting.rounds)
    note = (
        f"{one.tokens:,} tokens in {-(-len(texts) // PER_CHUNK)} or more chunks, one thread in each; the same numbers"
    )
    return of_times(name, times, "1", "2", bound, note)


def stream(setting: Setting) -> list[Figure]:
    """Reducers against their runs, and two processes against one."""
    return [*_reducers(setting), _processes(setting)]
