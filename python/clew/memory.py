"""Memory that the engine may read: mapped files and arrays with readable slack behind them.

Matrix products may read slightly past an operand's end, so weights must lie in memory that the extension made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from .errors import ConfigError
from .inputs import whole


def map_file(path: str | os.PathLike[str], slack: int = 0) -> NDArray[np.uint8]:
    """Map a file read-only.

    Parameters
    ----------
    path
        A file of at least one byte.
    slack
        How many bytes behind the end must be readable (they hold zeros); 64 KiB at least.

    Returns
    -------
    uint8 [bytes], read-only; the mapping lives as long as any view of it.

    Raises
    ------
    OSError
        The file cannot be opened or mapped.
    """
    return np.asarray(_core.map_file(os.fspath(path), slack))


def empty(shape: int | Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised, writable, C-contiguous array with readable slack behind it.

    Raises
    ------
    MemoryError
        There is not that much memory.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.asarray(_core.empty(shape, np.dtype(dtype)))


def copy(array: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A C-contiguous copy, converted to `dtype`, in memory of :func:`empty`."""
    out = empty(array.shape, array.dtype if dtype is None else dtype)
    out[...] = array
    return out


def set_idle_limit(size: int) -> None:
    """How many bytes of released memory are kept for later runs; 1 GiB until this is called.

    A loop that captures more than that in each run is faster with a higher limit: fresh memory costs more than the
    arithmetic that fills it. 0 gives everything back at once.

    >>> from clew import memory
    >>> memory.set_idle_limit(1 << 30)
    """
    if whole(size, "set_idle_limit: size") < 0:
        raise ConfigError(f"set_idle_limit({size}): must not be negative")
    _core.set_idle_limit(min(size, sys.maxsize))
