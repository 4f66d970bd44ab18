"""Captured tensors on disk, as Zarr. Needs `clew[dist]`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, SiteError, install
from ..info import __version__
from ..inputs import check_flags, check_folder, check_path
from ..model import Model, check_model
from ..sites import capture_list, pair_name
from .flow import CHUNK, Array, Piece, Reduced, TooLong, batches, check_progress, chunks, pieces, real, rows, settings
from .texts import Texts

_ROWS = 4096  # tokens in a chunk of the store


def to_zarr(model: Model, source: Any, sites: Any, path: str | os.PathLike[str], *, length: int | None = None,
            too_long: TooLong = "error", at_once: int = 4096, overwrite: bool = False, chunk: int = CHUNK,
            progress: Callable[[Reduced], object] | None = None) -> Reduced:  # fmt: skip
    """Writes what a model computes on texts into a Zarr group, in the order of the texts; counts of what was read.

    The group holds `tokens` [n], `where` [n, 2] (number of the text, position in it) and an array [n, d] for each
    site, in the model's dtype, under the site's name as it was given ("resid_post.3"); of a name that means several
    ("resid_post", a glob) under the full name of each. Axes behind pos are flattened.
    Its attributes are model, sites, version and, once all is written, the numbers of texts and tokens: a group without
    these was interrupted. Arguments are those of :func:`clew.stream.reduce`.

    Raises ConfigError where something is at `path` already, unless it is a Zarr group and `overwrite` is set;
    ImportError without `clew[dist]`; what :func:`clew.stream.reduce` raises.

    >>> import clew
    >>> found = to_zarr(clew.load("stories260K"), [[1, 2, 3], [4]], "resid_post.4", "streams.zarr")
    >>> import zarr
    >>> zarr.open_group("streams.zarr", mode="r")["resid_post.4"].shape
    (4, 64)
    """
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"clew.stream.to_zarr needs Zarr: {install('dist')}") from error

    check_model(model)
    check_path(path=path)
    check_flags(overwrite=overwrite)
    names = _names(model, sites)
    how = settings(length, too_long, at_once, chunk=chunk)
    check_progress(progress)
    _check_place(Path(path), overwrite)
    texts = source if isinstance(source, Texts) else Texts(source)
    model.plan(1, 1, capture=names)  # what a run cannot capture is told before anything is made
    group = zarr.open_group(os.fspath(path), mode="w")
    group.attrs.update({"model": model.config.model_name, "sites": names, "version": __version__})
    arrays: dict[str, Any] = {}
    total = Reduced({})
    for first, items in chunks(texts, how.chunk):
        found, split = pieces(model, first, items, how)
        columns = _columns(model, found, names, how.at_once) if found else {}  # not of texts without a token
        for name, values in columns.items():
            if name not in arrays:
                arrays[name] = group.create_array(
                    name, shape=(0, *values.shape[1:]), chunks=(_ROWS, *values.shape[1:]), dtype=values.dtype
                )
            arrays[name].append(values)
        total.texts, total.split = total.texts + len(items), total.split + split
        total.tokens += sum(len(p.ids) for p in found)
        total.n_broken, total.broken = texts.n_broken, list(texts.broken)
        if progress is not None:
            progress(total)
    total.n_broken, total.broken = texts.n_broken, list(texts.broken)
    group.attrs.update({"texts": total.texts, "tokens": total.tokens})
    return total


def _columns(model: Model, found: list[Piece], names: list[str], at_once: int) -> dict[str, Array]:
    """What is written of a chunk: arrays of rows, in the order of its pieces whatever the batches they ran in."""
    starts = dict(zip(((p.text, p.start) for p in found), np.cumsum([0, *(len(p.ids) for p in found)]), strict=False))
    n = sum(len(p.ids) for p in found)
    columns: dict[str, Array] = {
        "tokens": np.concatenate([np.array(p.ids, np.int64) for p in found]),
        "where": np.concatenate(
            [np.column_stack([np.full(len(p.ids), p.text), p.start + np.arange(len(p.ids))]) for p in found]
        ),
    }
    for batch in batches(found, at_once):
        run = model.run([p.ids for p in batch], capture=names, logits=None)
        to = np.concatenate([starts[p.text, p.start] + np.arange(len(p.ids)) for p in batch])
        mask = real(run)
        for name in names:
            got = rows(run, name, mask)
            columns.setdefault(name, np.empty((n, got.shape[1]), got.dtype))[to] = got
    return columns


def _names(model: Model, sites: Any) -> list[str]:
    """A name for each array. Raises SiteError for unknown sites and those without a row per token, ConfigError."""
    names = []
    for given in map(pair_name, capture_list(sites)):
        found = model.sites().find(given)
        for site, layer in found:
            if site.axes[:2] != ("batch", "pos"):
                raise SiteError(f"{site.full_name(layer)} [{', '.join(site.axes)}] has no row for each token: a store "
                                "of tokens cannot hold it")  # fmt: skip
            names.append(given if len(found) == 1 else site.full_name(layer))
    if not names:
        raise ConfigError("nothing to write: name a site")
    return list(dict.fromkeys(names))


def _check_place(path: Path, overwrite: bool) -> None:
    """Raises ConfigError where a store cannot be made; only another store is overwritten, never a folder of files."""
    check_folder(path=path)
    if not path.exists():
        return
    if not overwrite:
        raise ConfigError(f"{path} exists already: choose another path, or overwrite=True")
    if any(path.iterdir()) and not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise ConfigError(f"{path} is a folder of other files, no Zarr group: it is not overwritten")
