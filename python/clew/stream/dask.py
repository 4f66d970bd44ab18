"""The same reducers on several processes or machines, through Dask. Needs `clew[dist]`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

from ..errors import ConfigError, install
from ..inputs import check_counts, check_type
from ..model import Model, load
from ..threads import set_num_threads
from .flow import CHUNK, Reduced, Settings, TooLong, Watch, check, check_progress, chunks, reduce_chunk, settings
from .texts import Item, Texts


@lru_cache(maxsize=1)
def _loaded(name: str, dtype: str | None) -> Model:
    """A worker's own copy: its weights are mapped from the file, so processes of one machine share them."""
    return load(name, dtype=dtype)


def _task(name: str, dtype: str | None, threads: int | None, first: int, items: list[Item],
          watches: Mapping[str, Watch], how: Settings) -> Reduced:  # fmt: skip
    if threads is not None:
        set_num_threads(threads)
    return reduce_chunk(_loaded(name, dtype), first, items, watches, how)


def distributed(model: str | os.PathLike[str], source: Any, watches: Mapping[str, Watch], *, client: Any = None,
                workers: int = 2, threads: int | None = 1, dtype: str | None = None, length: int | None = None,
                too_long: TooLong = "error", at_once: int = 4096, capture: Any = (), chunk: int = CHUNK,
                progress: Callable[[Reduced], object] | None = None) -> Reduced:  # fmt: skip
    """`reduce` under Dask: every worker loads the model itself, from the same name or path.

    This process reads the texts and hands out chunks, a few for each worker at a time; what a lost worker had is
    computed again by another. Chunks are merged in their order, so that the numbers are those of `reduce`.

    Parameters
    ----------
    client
        A `distributed.Client`, the address of a scheduler, or None: a cluster of `workers` processes on this machine.
    threads
        The engine's threads in each worker; None: as many as the worker's process chooses.
    chunk
        As in `reduce`; also what a worker takes at a time, so that small ones share the work more evenly.

    The others are those of :func:`clew.stream.reduce`. Raises what it raises, ConfigError for a model that is not a
    name, ImportError without `clew[dist]`.

    >>> import clew
    >>> from clew.stream import Mean
    >>> distributed(clew.load("stories260K"), [[1]], {"m": (Mean(), "resid_post.0")})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    clew.errors.ConfigError: model: a name or path that every worker can load, not Model
    """
    try:
        import distributed as dask
    except ImportError as error:
        raise ImportError(f"clew.stream.distributed needs Dask: {install('dist')}") from error

    if not isinstance(model, str | os.PathLike):
        raise ConfigError(f"model: a name or path that every worker can load, not {type(model).__name__}")
    name = os.fspath(model)
    name = os.path.abspath(name) if os.path.exists(name) else name
    check(watches)
    check_progress(progress)
    check_counts(workers=workers)  # with none, the first chunk would wait for ever
    if threads is not None:
        check_counts(threads=threads)
    if client is not None:
        check_type((str, dask.Client), "a distributed.Client or a scheduler's address", client=client)
    how = settings(length, too_long, at_once, capture, chunk)
    texts = source if isinstance(source, Texts) else Texts(source)
    total = Reduced({key: watch[0].fresh() for key, watch in watches.items()})
    with ExitStack() as held:
        if client is None:
            cluster = held.enter_context(dask.LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None))  # fmt: skip
            client = held.enter_context(dask.Client(cluster))  # type: ignore[no-untyped-call]
        elif isinstance(client, str):
            client = held.enter_context(dask.Client(client))  # type: ignore[no-untyped-call]
        waiting: deque[Any] = deque()

        def take() -> None:
            total.add(waiting.popleft().result())
            if progress is not None:
                progress(total)

        for first, items in chunks(texts, how.chunk):
            waiting.append(client.submit(_task, name, dtype, threads, first, items, dict(watches), how, pure=False))
            if len(waiting) > 2 + 2 * max(1, len(client.scheduler_info(n_workers=-1)["workers"])):
                take()
        while waiting:
            take()
    total.n_broken, total.broken = texts.n_broken, list(texts.broken)
    return total
