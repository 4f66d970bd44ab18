"""What models are asked about mazes, one position at a time: prompts, residual streams, intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, TokenError
from ..inputs import is_word
from ..train.data import generator
from .maze import WAYS, Maze, Mazes
from .rollout import BATCH
from .tokens import Tokenizer

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]

NORMAL_95 = 1.959963984540054
"""Standard deviations around a normal variable's mean that hold 95 % of it."""
POSITIONS = ("path_start", "origin", "path")
"""Where a residual stream is read: at <PATH_START>, at the path's first cell, at a random cell of it but the last."""
BEFORE = {"adjlist_end": 7, "origin_start": 6, "origin_end": 4, "target_start": 3, "target_end": 1}
"""Other tokens where it may be read, and how far each stands before <PATH_START>."""
FIXED = (*BEFORE, "path_start")
"""Tokens that stand in every prompt at the same place from <PATH_START>, in their order."""
STREAMS = ("resid_post", "resid_mid", "resid_pre")
"""Sites of the residual stream: after a layer, between its attention and its MLP, before it."""


@dataclass(frozen=True)
class Prompts:
    """Tokens up to some cell of a path, and what follows it."""

    mazes: Mazes
    tokens: list[Array]
    """Ids of each prompt, int32 [length]."""
    step: Array
    """Number of the path's cell that each prompt ends with, int [n]; −1: it ends with <PATH_START>, −2 one token before
    it, and so on."""
    here: Array
    """The cell where the walk is, int [n, 2]; of a prompt without a cell of the path, the origin."""
    following: Array
    """The true next cell, int [n, 2]."""
    targets: Array
    """Its token, int [n]."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"prompts of {self.mazes!r}"

    def batches(self, size: int = BATCH) -> Iterator[tuple[slice, list[Array]]]:
        """(rows, tokens) piece by piece."""
        for start in range(0, len(self), size):
            yield slice(start, min(len(self), start + size)), self.tokens[start : start + size]


def path_prompts(ms: Mazes | Iterable[Maze] | Maze, tok: Tokenizer, position: str = "nonend", seed: int = 0) -> Prompts:
    """Prompts that end with <PATH_START> ("path_start"), with the origin behind it ("origin"), with a random cell of
    the path before its last ("path"), or with one of c₁ … c_{k−3} of c₀ … c_k, as the task `rand_path_token_nonend`
    of :func:`clew.mazes.evaluate` asks ("nonend": the next cell is one of c₂ … c_{k−2}).

    Mazes whose paths are too short are left out. Raises ConfigError for another name, without mazes, or where none is
    left.

    >>> from clew import mazes
    >>> asked = path_prompts(mazes.generate(5, grid=4), mazes.Tokenizer(4), "origin")
    >>> len(asked), bool((asked.here == asked.mazes.ends[:, 0]).all())
    (5, True)
    """
    batch, rng = Mazes.of(ms), generator(seed)
    if not is_word(position, (*POSITIONS, "nonend")):
        raise ConfigError(f"position = {position!r}: one of {', '.join(POSITIONS)}, nonend")
    if len(batch) == 0:
        raise ConfigError("no mazes: an empty split?")
    # the step is the last cell that is shown; the next one must be among those that the task asks for
    first, margin, least = {"path_start": (-1, 1, 1), "origin": (0, 1, 2), "path": (0, 1, 2), "nonend": (1, 3, 5)}[
        position
    ]
    kept = np.flatnonzero(batch.path_lengths >= least)
    if len(kept) == 0:
        raise ConfigError(f"no maze has a path of {least} cells or more, as {position!r} needs")
    batch = batch[kept]
    k = batch.path_lengths
    if position in ("path_start", "origin"):
        step = np.full(len(batch), first)
    else:
        step = first + np.floor(rng.random(len(batch)) * (k - margin - first)).astype(int)
    rows, path = np.arange(len(batch)), batch.batch[4].astype(int)
    following = path[rows, step + 1]
    tokens = tokens_until(batch, tok, step)
    here = path[rows, np.maximum(step, 0)]
    return Prompts(batch, tokens, step, here, following, tok.cell_ids[following[:, 0], following[:, 1]].astype(int))


def reading_prompts(
    ms: Mazes | Iterable[Maze] | Maze, tok: Tokenizer, position: str = "path_start", seed: int = 0
) -> Prompts:
    """Prompts at whose end a stream is read: those of :func:`path_prompts`, or such as end with another token before
    the path ("origin_end": <ORIGIN_END>, and so on). Raises ConfigError for another name.

    >>> from clew import mazes
    >>> tok = mazes.Tokenizer(4)
    >>> tok.decode(reading_prompts(mazes.generate(1, grid=4), tok, "origin_end").tokens[0][-1:])
    ['<ORIGIN_END>']
    """
    if not is_word(position, (*POSITIONS, *BEFORE)):
        raise ConfigError(f"position = {position!r}: one of {', '.join((*POSITIONS, *BEFORE))}")
    if position in POSITIONS:
        return path_prompts(ms, tok, position, seed)
    start = path_prompts(ms, tok, "path_start", seed)
    back = BEFORE[position]
    return replace(start, tokens=[row[:-back] for row in start.tokens], step=start.step - back)


def place_name(position: str, site: str = STREAMS[0]) -> str:
    """A position as tables and figures name it, and the site where the stream is not read after a layer.

    >>> place_name("origin_end"), place_name("path"), place_name("origin_end", "resid_mid")
    ('<ORIGIN_END>', 'a cell of the path', '<ORIGIN_END> (resid_mid)')
    """
    cells = {"origin": "the path's first cell", "path": "a cell of the path"}
    return cells.get(position, f"<{position.upper()}>") + (f" ({site})" if site != STREAMS[0] else "")


def tokens_until(ms: Mazes, tok: Tokenizer, step: Array) -> list[Array]:
    """Ids of each maze up to cell number `step` [n] of its path; −1: up to <PATH_START>."""
    rows = zip(tok.encode_batch(ms), ms.path_lengths, step, strict=True)
    return [row[: len(row) - k + s] for row, k, s in rows]  # behind the path comes <PATH_END>


def residuals(
    model: Model, prompts: Prompts, size: int = BATCH, back: Sequence[int] = (0,), site: str = STREAMS[0]
) -> Iterator[tuple[slice, Array]]:
    """(rows, the stream at one site of every layer, at each prompt's last token [layer, rows, d_model]), in pieces.

    back: how many tokens before the last one instead; of several all layers at the first come first,
    [place · layer, rows, d_model].
    """
    check_length(model, prompts)
    for rows, tokens in prompts.batches(size):
        run = model.run(tokens, capture=site, positions=[-1 - b for b in back], logits=None)
        x = np.moveaxis(run.stack(site), 2, 0)  # [place, layer, rows, d_model]
        yield rows, x.reshape(-1, *x.shape[2:])


def check_length(model: Model, prompts: Prompts) -> None:
    """Raises TokenError for prompts longer than the model's learned positions."""
    longest = max(len(t) for t in prompts.tokens)
    if "pos_embed.W_pos" in model.weights and longest > model.config.n_ctx:
        raise TokenError(f"prompts of {longest} tokens, {model.config.model_name} has {model.config.n_ctx} positions")


def neighbours(ms: Mazes, here: Array) -> tuple[Array, Array, Array]:
    """Of each maze the four cells around a cell [n, 2]: cells [n, 4, 2], inside the grid? connected? bool [n, 4]."""
    around = here[:, None] + WAYS
    inside = ((around >= 0) & (around < ms.grids[:, None, None])).all(-1)
    connected = ms.connections()[np.arange(len(ms)), here[:, 0], here[:, 1]]
    return around, inside, connected & inside


def cell_mass(probabilities: Array, tok: Tokenizer, cells: Array, which: Array) -> Array:
    """Σ of probabilities [..., n, vocab] over the cells [n, m, 2] that are meant, bool [n, m]; [..., n]."""
    safe = np.where(which[..., None], cells, 0)
    ids = tok.cell_ids[safe[..., 0], safe[..., 1]]
    rows = np.arange(len(ids))[:, None]
    return np.asarray((probabilities[..., rows, ids] * which).sum(-1))


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis, float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    out: Array = np.exp(shifted.astype(np.float64))
    out /= out.sum(-1, keepdims=True)
    return out


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def above_zero(self) -> bool:
        """Does the whole interval lie above 0?"""
        return self.low > 0


def bootstrap(
    values: ArrayLike, statistic: Callable[[Array], Any] | None = None, *, seed: int = 0, draws: int = 1000
) -> Estimate:
    """A statistic of rows [n, ...] with its percentile interval over resampled rows (Efron 1979); None: the mean.

    NaN rows are left out where they are numbers [n]. One row: NaN, no interval.

    Raises ConfigError without rows.

    >>> found = bootstrap(np.arange(100.0))
    >>> found.value, 42 < found.low < 45, 54 < found.high < 57
    (49.5, True, True)
    """
    array = np.asarray(values, np.float64)
    if array.ndim == 1:
        array = array[~np.isnan(array)]
    if len(array) == 0:
        raise ConfigError("bootstrap: no rows")
    rng, n = generator(seed), len(array)
    if n == 1:  # drawn again and again it would be an interval of width 0
        return Estimate(float((statistic or np.mean)(array)), np.nan, np.nan, 1)
    if statistic is None and array.ndim == 1:
        found = np.concatenate(
            [array[rng.integers(n, size=(min(100, draws - i), n))].mean(1) for i in range(0, draws, 100)]
        )
        middle = float(array.mean())
    else:
        how = statistic if statistic is not None else np.mean
        found = np.array([how(array[rng.integers(n, size=n)]) for _ in range(draws)])
        middle = float(how(array))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return Estimate(middle, float(low), float(high), n)


__all__ = [
    "BEFORE", "FIXED", "POSITIONS", "Estimate", "Prompts", "bootstrap", "cell_mass", "check_length", "neighbours",
    "path_prompts", "place_name", "reading_prompts", "residuals", "softmax",
]  # fmt: skip
