"""What maze models learn from: batches of mazes that are made while training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import ConfigError
from ..inputs import check_seed, check_type
from ..train.data import generator
from ..train.step import Examples
from .checks import whole_number
from .generate import KINDS, generate, threshold
from .maze import Maze, Mazes, check_grid
from .tokens import Tokenizer

Array = NDArray[Any]


def hallway_config(**changes: Any) -> ModelConfig:
    """The paper's hallway model: 6 layers of width 128, 4 heads, 1,238,076 parameters; fields may be changed.

    >>> from clew.loaders.initialise import weight_shapes
    >>> import math
    >>> f"{sum(math.prod(shape) for shape in weight_shapes(hallway_config()).values()):,}"
    '1,238,076'
    """
    fields: dict[str, Any] = {
        "n_layers": 6, "d_model": 128, "n_heads": 4, "d_mlp": 512, "n_ctx": 256, "d_vocab": 60,
        "unembed_bias": True, "model_name": "maze-hallway",
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


def jirpy_config(**changes: Any) -> ModelConfig:
    """The paper's jirpy model: 12 layers of width 256, 16 heads, 9,639,484 parameters; fields may be changed.

    >>> from clew.loaders.initialise import weight_shapes
    >>> import math
    >>> f"{sum(math.prod(shape) for shape in weight_shapes(jirpy_config()).values()):,}"
    '9,639,484'
    """
    fields: dict[str, Any] = {
        "n_layers": 12, "d_model": 256, "n_heads": 16, "d_mlp": 1024, "n_ctx": 512, "d_vocab": 60,
        "unembed_bias": True, "model_name": "maze-jirpy",
    }  # fmt: skip
    return ModelConfig(**{**fields, **changes})


MOST = 2**31 - 1
"""Steps of a training, and mazes of a batch."""


def examples(ms: Mazes | Iterable[Maze] | Maze, tokenizer: Tokenizer) -> Examples:
    """Mazes as a trainer takes them: ragged tokens, and a loss on the path alone, <PATH_START> and <PATH_END> included.

    Raises ConfigError without mazes or without a tokenizer, TokenError as :meth:`clew.mazes.Tokenizer.encode`.

    >>> from clew import mazes
    >>> batch = examples(mazes.generate(2, grid=3), mazes.Tokenizer(grid=3))
    >>> [int(mask.sum()) - 2 for mask in batch.loss_mask] == mazes.generate(2, grid=3).path_lengths.tolist()
    True
    """
    batch = Mazes.of(ms)
    check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
    if len(batch) == 0:
        raise ConfigError("examples: no mazes: an empty split?")
    tokens = tokenizer.encode_batch(batch)
    masks = []
    for row, cells in zip(tokens, batch.path_lengths.tolist(), strict=True):
        mask = np.zeros(len(row), np.float32)
        mask[-cells - 3 : -1] = 1  # what comes next is <PATH_START>, a cell of the path or <PATH_END>
        masks.append(mask)
    return Examples(tokens, None, masks)


@dataclass(frozen=True)
class Stage:
    """A part of a curriculum: up to a step, mazes of which grids and kinds, with which weights.

    Weights count mazes within the batch; each size gets its share of the batch's tokens. Raises ConfigError for sizes,
    kinds or shares that are none.
    """

    until: int
    """First step that no longer belongs to it."""
    grids: dict[int, float]
    """Grid → share of the batch's tokens."""
    kinds: dict[str, float]
    """Kind → share of the mazes of each grid."""
    batch: int | None = None
    """Size of its batches instead of the trainer's."""

    def __post_init__(self) -> None:
        whole_number(self.until, "Stage: until", 1)
        for name, shares in (("grids", self.grids), ("kinds", self.kinds)):
            if not isinstance(shares, Mapping) or not shares or not all(map(_is_share, shares.values())):
                raise ConfigError(f"Stage: {name} = {shares!r}: a mapping to shares, which must be above 0")
        for grid in self.grids:
            check_grid(grid)
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"Stage: kind {kind!r}; known: {', '.join(KINDS)}")
        if self.batch is not None:
            whole_number(self.batch, "Stage: batch", 1, MOST)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool) and 0 < float(value) < np.inf


class Curriculum:
    """A source of batches (:class:`clew.train.Trainer` takes it as data) of about so many tokens each.

    A batch of `size` is as many mazes of the stage's grids as have the tokens of `size` mazes of the largest grid: a
    batch of small mazes costs what one of large mazes costs. All mazes are of the split "train".

    Parameters
    ----------
    stages
        In order; the last goes on for ever.
    tokenizer
        Its vocabulary.
    seed
        Of the mazes.
    test_share
        Held back; see :func:`clew.mazes.generate`.

    Raises ConfigError for stages that are none or come in no order, a seed or a share that is none, and mazes larger
    than the vocabulary.

    Example
    -------
    >>> source = Curriculum([Stage(100, {3: 1.0}, {"rdfs": 1.0}), Stage(200, {4: 1.0}, {"rdfs": 1.0})], Tokenizer(4))
    >>> len(source.batch(0, 8).tokens), len(source.batch(150, 8).tokens)
    (13, 8)
    """

    def __init__(self, stages: Sequence[Stage], tokenizer: Tokenizer, seed: int = 0, test_share: float = 0.1) -> None:
        listed = list(stages) if isinstance(stages, Iterable) else [stages]
        if not isinstance(stages, Iterable) or not all(isinstance(stage, Stage) for stage in listed):
            raise ConfigError(f"Curriculum: stages = {stages!r}: a list of Stage")
        check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
        self.stages, self.tokenizer, self.seed, self.test_share = listed, tokenizer, check_seed(seed), test_share
        if not self.stages or any(a.until >= b.until for a, b in zip(self.stages[:-1], self.stages[1:], strict=True)):
            raise ConfigError("Curriculum: stages must come in order, at least one")
        threshold(test_share, "train")
        self.largest = max(grid for stage in self.stages for grid in stage.grids)
        if self.largest > tokenizer.grid:
            raise ConfigError(
                f"Curriculum: mazes of {self.largest} × {self.largest}, larger than the vocabulary's "
                f"{tokenizer.grid} × {tokenizer.grid}"
            )

    def mazes(self, step: int, size: int) -> Mazes:
        """The mazes of a step. Raises ConfigError for a step or a size that is none."""
        step, size = whole_number(step, "Curriculum: step"), whole_number(size, "Curriculum: size", 1, MOST)
        stage = next((s for s in self.stages if step < s.until), self.stages[-1])
        size = stage.batch or size
        rng = generator(self.seed, step)
        parts = []
        for grid, share in stage.grids.items():
            mazes_here = size * share / sum(stage.grids.values()) * _tokens(self.largest) / _tokens(grid)
            names, weights = list(stage.kinds), np.array(list(stage.kinds.values()))
            total = max(1, round(mazes_here))
            counts = rng.multinomial(total, weights / weights.sum())
            for kind, count in zip(names, counts.tolist(), strict=True):
                if count:
                    seed = int(rng.integers(2**63))
                    parts.append(generate(count, grid, kind, seed, split="train", test_share=self.test_share))
        return Mazes.join(parts)

    def batch(self, step: int, size: int) -> Examples:
        """The examples of a step: the same for the same arguments."""
        return examples(self.mazes(step, size), self.tokenizer)

    def identity(self) -> str:
        """Stages, vocabulary, seed and split."""
        stages = "; ".join(f"until {s.until} {s.grids} {s.kinds} batch {s.batch}" for s in self.stages)
        return f"mazes {stages}; {self.tokenizer!r}; seed {self.seed} test_share {self.test_share}"


def _tokens(grid: int) -> float:
    """About how many tokens a spanning tree's maze has."""
    return 4 * (grid * grid - 1) + 10 + 0.45 * grid * grid
