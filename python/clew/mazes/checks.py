"""What functions of this package are given, checked before any work: a refusal names what came."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import as_array, is_list
from .maze import LARGEST, Maze, Mazes

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]
Head = tuple[int, int]
Heads = tuple[Head, ...]

MOST_DRAWS = 10**6
"""Of a bootstrap or a permutation test: more would only take longer."""


# ---- Numbers and names ----------------------------------------------------------------------------------------------


def whole_number(value: Any, what: str, least: int = 0, most: int | None = None) -> int:
    """A whole number within bounds. Raises ConfigError.

    >>> whole_number(3, "draws"), whole_number(np.int8(1), "draws", 1, 5)
    (3, 1)
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{what} = {value!r}, must be a whole number, at least {least}")
    if most is not None and value > most:
        raise ConfigError(f"{what} = {value!r}, must be a whole number, at most {most:,}")
    return int(value)


def share_of(value: Any, what: str) -> float:
    """A number from 0 to 1. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value <= 1:
        raise ConfigError(f"{what} = {value!r}: a share lies in 0 to 1")
    return float(value)


def names_of(value: Any, what: str, known: Sequence[str]) -> tuple[str, ...]:
    """Some of the known names, each once. Raises ConfigError for anything else, also for none."""
    listed = is_list(value)
    out = tuple(value) if listed else (value,)
    if not listed or not out or any(not isinstance(name, str) or name not in known for name in out):
        given = f"{list(out)!r}: of" if listed else f"{value!r}: a list of"
        raise ConfigError(f"{what} = {given} {', '.join(map(repr, known))}")
    if len(set(out)) < len(out):
        raise ConfigError(f"{what} = {list(out)!r}: each once")
    return out


def place_in(value: Any, n: int, what: str) -> int:
    """A number from 0 to n − 1; negative ones count from the end. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -n <= value < n:
        raise ConfigError(f"{what} {value!r}: there are 0 to {n - 1}")
    return int(value) % n


# ---- Mazes and cells ------------------------------------------------------------------------------------------------


def one_maze(value: Any, what: str) -> Maze:
    """A single maze. Raises ConfigError."""
    if not isinstance(value, Maze):
        more = ": take one of them, such as mazes[0]" if isinstance(value, Mazes) else ""
        raise ConfigError(f"{what}: a Maze, not {type(value).__name__}{more}")
    return value


def path_of(value: Any, what: str) -> Array:
    """Cells of a path, int64 [k, 2]. Raises ShapeError."""
    array = as_array(value, what)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise ShapeError(f"{what}: cells [k, 2] as whole numbers (row, column), not {array.dtype} {list(array.shape)}")
    return array.astype(np.int64)


def path_within(value: Any, maze: Maze, what: str) -> Array:
    """The same, each a cell of the maze or of a larger one, which models say too, or (−1, −1): a token that is none.
    Raises ShapeError, and ConfigError for a cell that no maze has."""
    cells = path_of(value, what)
    nowhere: Array = np.flatnonzero(((cells < 0) | (cells >= LARGEST)).any(1) & (cells != -1).any(1))
    if nowhere.size:
        r, c = cells[nowhere[0]].tolist()
        raise ConfigError(
            f"{what}: cell {nowhere[0]}, ({r},{c}), lies outside a grid of {maze.grid} × {maze.grid}, and of every "
            "larger one; (-1, -1) stands for a token that is no cell"
        )
    return cells


def mazes_of(ms: Mazes | Iterable[Maze] | Maze, what: str, least: int = 2) -> Mazes:
    """Mazes that have paths, of one grid. Raises ConfigError (too few, or a maze without a path), ShapeError."""
    batch = Mazes.of(ms)
    if len(batch) < least:
        empty = "" if len(batch) else "; an empty split?"
        raise ConfigError(f"{what}: {len(batch)} mazes: at least {least}{empty}")
    if (bad := np.flatnonzero(batch.path_lengths == 0)).size:
        raise ConfigError(f"{what}: maze {bad[0]} has no way from its origin to its target")
    one_size(batch, what)
    return batch


def one_size(ms: Mazes, what: str) -> int:
    """The grid of all mazes. Raises ShapeError for several, ConfigError without mazes."""
    sizes = np.unique(ms.grids)
    if len(sizes) == 0:
        raise ConfigError(f"{what}: no mazes: an empty split?")
    if len(sizes) > 1:
        raise ShapeError(f"{what}: mazes of {' and '.join(f'{g} × {g}' for g in sizes)}: one size at a time")
    return int(sizes[0])


def apart(ms: Mazes, reference: Mazes, what: str) -> None:
    """Raises ConfigError where walls of one batch are in the other: what was learned there would be tested there; and
    ShapeError for mazes of two sizes."""
    if ms.grids[0] != reference.grids[0]:
        raise ShapeError(
            f"{what}: mazes of {ms.grids[0]} × {ms.grids[0]}, reference of {reference.grids[0]} × {reference.grids[0]}"
        )
    both = np.intersect1d(ms.hashes, reference.hashes)
    if len(both):
        raise ConfigError(
            f"{what}: {len(both)} mazes' walls are in the mazes and in the reference: make them with split='test' and "
            "split='train'"
        )


def room_for(n_bytes: int, what: str) -> None:
    """Raises MemoryError for more bytes than the machine has, before any of them is asked for."""
    try:
        held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        held = 2**63
    if n_bytes > held:
        raise MemoryError(f"{what} take {n_bytes:,} bytes; this machine has {held:,}")


# ---- Layers and heads -----------------------------------------------------------------------------------------------


def layers_of(layers: Iterable[int] | int | None, n_layers: int, what: str) -> list[int]:
    """Numbers of layers, each once, checked; None: all. Raises ConfigError naming the one that there is not."""
    if layers is None:
        return list(range(n_layers))
    out: list[Any] = list(layers) if is_list(layers) else [layers]
    for layer in out:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not 0 <= layer < n_layers:
            raise ConfigError(f"{what}: layer {layer!r}: there are layers 0 to {n_layers - 1}")
    if not out:
        raise ConfigError(f"{what}: layers is empty")
    if len(set(out)) < len(out):
        raise ConfigError(f"{what}: layers = {out}: each once")
    return [int(layer) for layer in out]


def head_name(head: Head) -> str:
    """As heads are written: L3H1 is head 1 of layer 3."""
    return f"L{head[0]}H{head[1]}"


def head_pair(value: Any) -> Head:
    """A pair (layer, head), whether or not a model has it. Raises ConfigError."""
    pair = tuple(value) if isinstance(value, list | tuple | np.ndarray) else (value,)
    if len(pair) != 2 or not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in pair):
        raise ConfigError(f"heads: {value!r} is no pair (layer, head)")
    return int(pair[0]), int(pair[1])


def heads_within(heads: Iterable[Head], n_layers: int, n_heads: int, owner: str) -> Heads:
    """(layer, head) pairs, each once. Raises ConfigError naming one that there is not, or that comes twice."""
    if not is_list(heads):
        raise ConfigError(f"heads = {heads!r}: a list of pairs (layer, head)")
    out: list[Head] = []
    for item in heads:
        layer, head = head_pair(item)
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ConfigError(f"L{layer}H{head}: {owner} has layers 0 to {n_layers - 1} of heads 0 to {n_heads - 1}")
        if (layer, head) in out:
            raise ConfigError(f"heads: L{layer}H{head} comes twice")
        out.append((layer, head))
    if not out:
        raise ConfigError("heads is empty: name one at least")
    return tuple(out)


def check_heads(model: Model, heads: Iterable[Head]) -> Heads:
    """Heads of a model, each once. Raises ConfigError."""
    return heads_within(heads, model.config.n_layers, model.config.n_heads, model.config.model_name)
