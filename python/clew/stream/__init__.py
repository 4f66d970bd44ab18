"""Texts larger than memory through a model: read, batch by length, reduce, merge; on one process or on several.

`reduce` runs a model over files, folders, JSONL or any iterable, a chunk at a time, and keeps reducers only
(`Mean`, `Covariance`, `Histogram`, `TopK`, `Ridge`). `distributed` does the same under Dask, `to_zarr` writes what is
captured to disk (both need `clew[dist]`).

>>> import clew
>>> model = clew.load("stories260K")
>>> found = reduce(model, [[1, 2, 3], [4, 5]], {"mean": (Mean(), "resid_post.4")})
>>> found.tokens, found["mean"].mean.shape
(5, (64,))
"""

from __future__ import annotations

from .dask import distributed
from .flow import Reduced, Watch, reduce
from .reducers import Covariance, Histogram, Mean, Reducer, Ridge, TopK
from .store import to_zarr
from .texts import Broken, Texts

__all__ = [
    "Broken",
    "Covariance",
    "Histogram",
    "Mean",
    "Reduced",
    "Reducer",
    "Ridge",
    "Texts",
    "TopK",
    "Watch",
    "distributed",
    "reduce",
    "to_zarr",
]
