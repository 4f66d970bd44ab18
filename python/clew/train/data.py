"""What batches are made of, in an order that a seed and the step's number give: nothing to keep but these two."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError, TokenError
from ..inputs import as_array, check_choice, whole
from ..inputs import check_seed as check_seed  # where others look for it
from .step import Examples

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]


class Source(Protocol):
    """Anything that gives the batch of a step.

    One whose batches take other sizes in the course of training may say so by a method `starts() -> list[int]`, the
    first step of each part: memory is then planned for all of them.

    It may have a method `check(model)` too, which a :class:`clew.train.Trainer` calls when it is made: it raises
    where the model cannot be trained with these data.
    """

    def batch(self, step: int, size: int) -> Examples:
        """The examples of a step (the first is 0): the same for the same arguments."""

    def identity(self) -> str:
        """What the data and their order are; a run is resumed only with the same."""


def generator(seed: int, *place: int) -> np.random.Generator:
    """NumPy's PCG64, of the seed and a place: a step, an epoch.

    >>> bool(generator(0, 5).integers(100) == generator(0, 5).integers(100))
    True
    """
    seed = check_seed(seed)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)))


def digest(*arrays: Any) -> str:
    """Names the contents of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()[:16]


class _Epochs:
    """Indices 0 … n − 1 in a new order in each epoch; an epoch's rest fills a batch up with the next one's first."""

    def __init__(self, n: int, seed: int, shuffle: bool) -> None:
        self.n, self.seed, self.shuffle = n, seed, shuffle
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> Array:
        return generator(self.seed, epoch).permutation(self.n) if self.shuffle else np.arange(self.n)

    def indices(self, step: int, size: int) -> list[int]:
        at = range(step * size, (step + 1) * size)
        return [int(self._order(i // self.n)[i % self.n]) for i in at]


class Windows:
    """Windows of a stream of tokens, each position predicting the next token of the stream.

    Parameters
    ----------
    stream
        Token ids [n].
    context
        Length of a window.
    seed
        Of the order.
    order
        "random": windows begin anywhere, drawn with replacement. "shuffle": the stream is cut into windows (at another
        place in each epoch), and each of them comes once in an epoch.

    Raises
    ------
    ShapeError, TokenError, ConfigError
        A stream that is no list of ids or is too short for a window.

    Example
    -------
    >>> batch = Windows(range(100), context=5, seed=1).batch(step=0, size=2)
    >>> batch.tokens.shape, bool((batch.targets == batch.tokens + 1).all())
    ((2, 5), True)
    """

    def __init__(self, stream: ArrayLike, context: int, seed: int = 0, order: str = "random") -> None:
        array = as_array(stream, "the stream")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ShapeError(f"Windows: a stream is token ids [n], not {array.dtype} {list(array.shape)}")
        if whole(context, "context") < 1 or len(array) <= context:
            raise TokenError(
                f"Windows: context = {context} in a stream of {len(array)} tokens: at least 1, and the stream must be "
                "longer, for the last target"
            )
        check_choice(("random", "shuffle"), order=order)
        self.stream, self.context, self.seed, self.order = array, context, check_seed(seed), order
        self.n_windows = max(1, (len(array) - context) // context)
        """Windows that an epoch of order "shuffle" holds: up to two less than the stream, so that cuts can shift."""
        self._room = len(array) - self.n_windows * context  # starts that the first window may have
        self._epochs = _Epochs(self.n_windows, self.seed, True)

    def __repr__(self) -> str:
        return f"Windows of {self.context} of {len(self.stream)} tokens, {self.order}, seed {self.seed}"

    def batch(self, step: int, size: int) -> Examples:
        """Windows [size, context] and what comes next, of a step."""
        if self.order == "random":
            starts = generator(self.seed, step).integers(0, len(self.stream) - self.context, size)
        else:
            epochs = (np.arange(step * size, (step + 1) * size) // self.n_windows).tolist()
            cuts = {epoch: generator(self.seed, epoch, 1).integers(0, self._room) for epoch in set(epochs)}
            shift = np.array([cuts[epoch] for epoch in epochs])
            starts = np.array(self._epochs.indices(step, size)) * self.context + shift
        rows = self.stream[starts[:, None] + np.arange(self.context + 1)]
        return Examples(rows[:, :-1], rows[:, 1:])

    def identity(self) -> str:
        """Kind, seed, order and contents."""
        return f"windows of {self.context} {self.order} seed {self.seed} {digest(self.stream)}"


class Sequences:
    """Sequences that are given, each once in an epoch, in an order that the seed gives.

    >>> source = Sequences([[1, 2], [3, 4, 5], [6, 7]], seed=0)
    >>> sorted(s[0] for step in range(3) for s in source.batch(step, 1).tokens)
    [1, 3, 6]
    """

    def __init__(
        self, tokens: Any, targets: Any = None, loss_mask: Any = None, seed: int = 0, shuffle: bool = True
    ) -> None:
        if isinstance(tokens, str) or not isinstance(tokens, Sequence | np.ndarray) or len(tokens) == 0:
            raise ShapeError("Sequences: tokens must be a list or an array of at least one sequence")
        for what, value in (("targets", targets), ("loss_mask", loss_mask)):
            if value is not None and not isinstance(value, Sequence | np.ndarray):
                raise ShapeError(f"Sequences: {what}: a list or an array, one for each sequence, not {value!r:.60}")
            if value is not None and len(value) != len(tokens):
                raise ShapeError(f"Sequences: {what} of {len(value)} sequences, tokens of {len(tokens)}")
        self.tokens, self.targets, self.loss_mask = tokens, targets, loss_mask
        self.seed, self.shuffle = check_seed(seed), shuffle
        self._epochs = _Epochs(len(tokens), self.seed, shuffle)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Sequences: {len(self)}, {'shuffled' if self.shuffle else 'in order'}, seed {self.seed}"

    def batch(self, step: int, size: int) -> Examples:
        """The sequences of a step."""
        indices = self._epochs.indices(step, size)
        parts = (None if v is None else _pick(v, indices) for v in (self.tokens, self.targets, self.loss_mask))
        return Examples(*parts)

    def identity(self) -> str:
        """Kind, seed and contents."""
        held = [v for v in (self.tokens, self.targets, self.loss_mask) if v is not None]
        rows = [v if isinstance(v, np.ndarray) else _text(v) for v in held]
        return f"sequences {'shuffled' if self.shuffle else 'in order'} seed {self.seed} {digest(*rows)}"


def _text(values: Any) -> Array:
    """Sequences written out, as bytes."""
    plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    return np.frombuffer(repr(plain).encode(), np.uint8)


def _pick(values: Any, indices: list[int]) -> Any:
    return values[np.array(indices)] if isinstance(values, np.ndarray) else [values[i] for i in indices]


class Generated:
    """Batches that a function makes: `function(rng, size)` gives :class:`Examples`, or tokens, or (tokens, targets).

    The generator `rng` is a new one for each step, of the seed and the step's number.

    >>> Generated(lambda rng, size: rng.integers(0, 9, (size, 4)), seed=3).batch(0, 2).tokens.shape
    (2, 4)
    """

    def __init__(self, function: Callable[[np.random.Generator, int], Any], seed: int = 0) -> None:
        if not callable(function):
            raise ConfigError(f"Generated: a function f(rng, size), not {type(function).__name__}")
        self.function, self.seed = function, check_seed(seed)

    def __repr__(self) -> str:
        return f"Generated by {self._name}, seed {self.seed}"

    @property
    def _name(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

    def batch(self, step: int, size: int) -> Examples:
        """What the function makes for a step."""
        made = self.function(generator(self.seed, step), size)
        if isinstance(made, Examples):
            return made
        return _of_tuple(made) if isinstance(made, tuple) else Examples(made)

    def identity(self) -> str:
        """Kind, seed and the function's name: what it computes cannot be told apart."""
        return f"generated by {self._name} seed {self.seed}"


def _is_maze(value: Any) -> bool:
    """Is it of :mod:`clew.mazes`? Not imported for this: what there is one of is imported already."""
    kinds = sys.modules.get("clew.mazes.maze")
    return kinds is not None and isinstance(value, kinds.Maze | kinds.Mazes)


def _encoded(text: str, model: Model) -> list[int]:
    """A text's ids. Raises ConfigError for the path of a file."""
    if os.path.isfile(text):
        raise ConfigError(
            f"data to train on: {text!r} is the path of a file; a text itself is expected: read the file first"
        )
    return model._encode(text)


def _is_stream(data: Any, model: Model, what: str = "data to train on") -> bool:
    """Are these the ids of one stream, not sequences? Raises ShapeError for what is neither."""
    if _is_maze(data) or (isinstance(data, Sequence) and len(data) > 0 and _is_maze(data[0])):
        raise ShapeError(
            f"{what}: mazes are no tokens: clew.mazes.examples(mazes, tokenizer) makes some of them, "
            "clew.mazes.Curriculum new ones for each step"
        )
    if not isinstance(data, Sequence | np.ndarray):
        expected = "text, token ids, sequences or a function" if what != "held_out" else "text, token ids or sequences"
        raise ShapeError(f"{what}: {type(data).__name__}, expected {expected}")
    return model.config.d_in is None and len(data) > 0 and np.ndim(data[0]) == 0 and not isinstance(data[0], str)


def _of_tuple(parts: tuple[Any, ...]) -> Examples:
    if not 1 <= len(parts) <= 3:
        raise ShapeError(
            f"examples: a tuple of {len(parts)}, expected (tokens, targets) or (tokens, targets, loss_mask)"
        )
    return Examples(*parts)


def as_source(data: Any, model: Model, context: int | None, seed: int) -> Source:
    """What `fit` takes as data: a source, a function, a text or stream of ids, sequences, (tokens, targets, mask)."""
    if hasattr(data, "batch") and hasattr(data, "identity"):
        source: Source = data
        return source
    if callable(data):
        return Generated(data, seed)
    if isinstance(data, Examples):
        return Sequences(data.tokens, data.targets, data.loss_mask, seed)
    if isinstance(data, tuple):
        return as_source(_of_tuple(data), model, context, seed)
    if isinstance(data, str):
        data = _encoded(data, model)
    if _is_stream(data, model):
        length = model.config.n_ctx if context is None else context
        return Windows(data, length, seed)
    return Sequences(data, seed=seed)


def as_held_out(data: Any, model: Model, context: int | None) -> Examples:
    """What is evaluated: examples as they are, or a stream cut into windows, the rest left out."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, tuple):
        return _of_tuple(data)
    if isinstance(data, str):
        data = _encoded(data, model)
    if _is_stream(data, model, "held_out"):
        stream = as_array(data, "held-out data")
        length = min(model.config.n_ctx if context is None else context, len(stream))
        if length < 2:
            raise TokenError(f"held-out data: windows of {length} tokens predict nothing: at least two are needed")
        return Examples(stream[: len(stream) // length * length].reshape(-1, length))
    return Examples(data)
