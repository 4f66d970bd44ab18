"""What maze models learn from: batches of mazes that are made while training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..config import ModelConfig
from ..errors import ConfigError, TokenError
from ..inputs import check_choice, check_seed, check_type, is_list, is_word
from ..train.data import generator
from ..train.step import Examples
from .checks import whole_number
from .generate import KINDS, generate, threshold
from .maze import Maze, Mazes, check_grid
from .rollout import tokenizer_of
from .tokens import Tokenizer, grid_of

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]


def hallway_config(**changes: Any) -> ModelConfig:
    """The paper's hallway model: 6 layers of width 128, 4 heads, 1,238,076 parameters; fields may be changed.

    Its vocabulary is the uniform one of its size, which `extra` names; see :func:`clew.mazes.tokenizer_of`.

    >>> from clew.loaders.initialise import weight_shapes
    >>> import math
    >>> f"{sum(math.prod(shape) for shape in weight_shapes(hallway_config()).values()):,}"
    '1,238,076'
    """
    fields: dict[str, Any] = {
        "n_layers": 6, "d_model": 128, "n_heads": 4, "d_mlp": 512, "n_ctx": 256, "d_vocab": 60,
        "unembed_bias": True, "model_name": "maze-hallway",
    }  # fmt: skip
    return _named(ModelConfig(**{**fields, **changes}), "uniform")


def jirpy_config(**changes: Any) -> ModelConfig:
    """The paper's jirpy model: 12 layers of width 256, 16 heads, 9,639,484 parameters; fields may be changed.

    Its vocabulary is the rasterized one of its size, which `extra` names; see :func:`clew.mazes.tokenizer_of`.

    >>> from clew.loaders.initialise import weight_shapes
    >>> import math
    >>> f"{sum(math.prod(shape) for shape in weight_shapes(jirpy_config()).values()):,}"
    '9,639,484'
    """
    fields: dict[str, Any] = {
        "n_layers": 12, "d_model": 256, "n_heads": 16, "d_mlp": 1024, "n_ctx": 512, "d_vocab": 60,
        "unembed_bias": True, "model_name": "maze-jirpy",
    }  # fmt: skip
    return _named(ModelConfig(**{**fields, **changes}), "rasterized")


def _named(config: ModelConfig, order: str) -> ModelConfig:
    """The configuration with its vocabulary's name where it has none: it tells orders apart, which sizes do not."""
    grid = grid_of(config.d_vocab)
    if grid is None or "mazes" in config.extra:
        return config
    return config.replace(extra={"mazes": {"grid": grid, "order": order}, **config.extra})


MOST = 2**31 - 1
"""Steps of a training, and mazes of a batch."""
CONTEXT = 256
"""Most tokens of a sequence with questions, where nothing else is asked for."""
LOSSES = ("path", "all")
"""What counts: the path alone, delimiters included, as for the paper's jirpy model; all tokens, as for its hallway."""


def examples(ms: Mazes | Iterable[Maze] | Maze, tokenizer: Tokenizer, *, loss: str = "path") -> Examples:
    """Mazes as a trainer takes them: ragged tokens, and what counts for the loss.

    loss: "path", the path alone, <PATH_START> and <PATH_END> included; "all", every token but the first, which nothing
    foretells. Raises ConfigError without mazes or without a tokenizer, or for another loss, TokenError as
    :meth:`clew.mazes.Tokenizer.encode`.

    >>> from clew import mazes
    >>> batch = examples(mazes.generate(2, grid=3), mazes.Tokenizer(grid=3))
    >>> [int(mask.sum()) - 2 for mask in batch.loss_mask] == mazes.generate(2, grid=3).path_lengths.tolist()
    True
    """
    batch = Mazes.of(ms)
    check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
    check_choice(LOSSES, loss=loss)
    if len(batch) == 0:
        raise ConfigError("examples: no mazes: an empty split?")
    tokens = tokenizer.encode_batch(batch)
    masks = []
    for row, cells in zip(tokens, batch.path_lengths.tolist(), strict=True):
        mask = np.zeros(len(row), np.float32)
        # what comes next is <PATH_START>, a cell of the path or <PATH_END>
        mask[-cells - 3 if loss == "path" else 0 : -1] = 1
        masks.append(mask)
    return Examples(tokens, None, masks)


def questions(
    ms: Mazes | Iterable[Maze] | Maze,
    tokenizer: Tokenizer,
    n: int = 9,
    steps: int = 2,
    context: int = CONTEXT,
    seed: int | np.random.Generator = 0,
    *,
    loss: str = "path",
) -> Examples:
    """Mazes as :func:`examples` gives them, with more questions behind each: ways between other cells of it.

    The walls take most of a maze's tokens, and most of what is hard about a path is its first step. So behind
    <PATH_END> come, again and again, an origin, a target and the first steps of the path between them, while there is
    room; all these cells count for the loss. Only training reads such tokens: :meth:`Tokenizer.parse` refuses them.

    Parameters
    ----------
    ms, tokenizer
        As for :func:`examples`.
    n
        Most questions more.
    steps
        Of each path; a shorter one is closed by <PATH_END>.
    context
        Most tokens of a sequence, its maze included, which is never cut. A question that lacks room for nothing but its
        last token is cut there.
    seed
        Of the cells, or a generator to draw them from.
    loss
        "path": on <PATH_START> and the first path, and on the cells of the others; "all": on every token.

    Raises ConfigError and TokenError as :func:`examples`, ConfigError for numbers out of range, and TokenError for a
    maze of more tokens than the context, naming both.

    >>> from clew import mazes
    >>> tok, maze = mazes.Tokenizer(2), mazes.Maze(2, [[(0, 0), (0, 1)], [(1, 1), (0, 1)]], (0, 0), (0, 1))
    >>> batch = questions(maze, tok, n=1, steps=1, seed=3)
    >>> print(*tok.decode(batch.tokens[0])[-9:])
    <ORIGIN_START> (0,0) <ORIGIN_END> <TARGET_START> (1,1) <TARGET_END> <PATH_START> (0,0) (0,1)
    """
    batch = Mazes.of(ms)
    n, steps = whole_number(n, "questions: n", 0, MOST), whole_number(steps, "questions: steps", 1, MOST)
    context = whole_number(context, "questions: context", 1, MOST)
    rng = seed if isinstance(seed, np.random.Generator) else generator(check_seed(seed))
    first = examples(batch, tokenizer, loss=loss)
    tokens, masks = [[row] for row in first.tokens], [[mask] for mask in first.loss_mask]
    lengths = np.array([len(row) for row in first.tokens])
    if lengths.max() > context:
        i = int(np.argmax(lengths > context))
        raise TokenError(
            f"questions: maze {i}, of {batch.grids[i]} × {batch.grids[i]}, has {lengths[i]} tokens itself, more than "
            f"the context of {context}"
        )
    for _ in range(n):
        asked, full = _other_ways(batch, rng)
        cells = np.minimum(full, steps + 1)
        fits = np.flatnonzero((full > 1) & (lengths + 8 + cells <= context + 1))
        if not fits.size:
            continue
        for i, row in zip(fits.tolist(), tokenizer.encode_batch(asked[fits]), strict=True):
            whole, k = full[i] <= steps + 1, cells[i]
            # <ADJLIST_START> <ADJLIST_END>, which are left out, stand before 7 tokens and the path
            row = row[2 : 9 + k + whole]
            if loss == "path":
                mask = np.zeros(len(row), np.float32)
                mask[6 : 6 + k + whole] = 1  # what comes next is a cell of the path or <PATH_END>
            else:
                mask, masks[i][-1][-1] = np.ones(len(row), np.float32), 1  # the row before it goes on with this one
            tokens[i].append(row)
            masks[i].append(mask)
            lengths[i] += len(row)
    out = [np.concatenate(parts)[:context] for parts in tokens]
    wanted = [np.concatenate(parts)[:context] for parts in masks]
    for mask in wanted:
        mask[-1] = 0  # nothing comes behind it
    return Examples(out, None, wanted)


def _other_ways(batch: Mazes, rng: np.random.Generator) -> tuple[Mazes, Array]:
    """A shortest path between two other cells of each maze, walls left out, and how many cells it has; 0: none."""
    grids, edges, n_edges, *_ = (array.copy() for array in batch.batch)
    cells = batch.grids**2
    a = rng.integers(0, 2**31, len(batch)) % cells
    b = (a + 1 + rng.integers(0, 2**31, len(batch)) % (cells - 1)) % cells
    ends = np.stack([np.stack([c // batch.grids, c % batch.grids], 1) for c in (a, b)], 1).astype(np.uint8)
    path = np.zeros((len(batch), int(cells.max(initial=0)), 2), np.uint8)
    n_path = np.zeros(len(batch), np.int32)
    _core.maze_paths((grids, edges, n_edges, ends, path, n_path))
    return Mazes((grids, edges[:, :0], np.zeros_like(n_edges), ends, path, n_path)), n_path.astype(int)


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
    questions: int = 0
    """Most questions more about each maze, of two steps each, as far as the curriculum's context goes; see
    :func:`clew.mazes.questions`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "until", whole_number(self.until, "Stage: until", 1))
        for name, shares in (("grids", self.grids), ("kinds", self.kinds)):
            if not isinstance(shares, Mapping) or not shares or not all(map(_is_share, shares.values())):
                raise ConfigError(f"Stage: {name} = {shares!r}: a mapping to shares, which must be above 0")
        # Python's own numbers: equal stages have one identity, and NumPy's small ones would overflow
        grids = {check_grid(grid): float(share) for grid, share in self.grids.items()}
        object.__setattr__(self, "grids", grids)
        object.__setattr__(self, "kinds", {kind: float(share) for kind, share in self.kinds.items()})
        for kind in self.kinds:
            if not is_word(kind, KINDS):
                raise ConfigError(f"Stage: kind {kind!r}; known: {', '.join(KINDS)}")
        if self.batch is not None:
            object.__setattr__(self, "batch", whole_number(self.batch, "Stage: batch", 1, MOST))
        object.__setattr__(self, "questions", whole_number(self.questions, "Stage: questions", 0, MOST))


def _is_share(value: Any) -> bool:
    with suppress(OverflowError):  # of an int beyond float64
        known = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
        return known and 0 < float(value) < np.inf
    return False


class Curriculum:
    """A source of batches (:class:`clew.train.Trainer` takes it as data), of more mazes where they are small.

    A batch of `size` is as many mazes of the stage's grids as have, with their own paths, the tokens of `size` mazes of
    the largest grid: a batch of small mazes costs what one of large mazes costs. Questions come on top of that, up to
    `context` tokens a sequence, and small mazes leave more room for them: nine questions each make a batch of 3 × 3
    mazes about three times as long. All mazes are of the split "train".

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
    context
        Most tokens of a sequence with questions: the model's n_ctx, or fewer. Mazes without questions are never cut.
    loss
        On the "path" alone, or on "all" tokens; see :func:`clew.mazes.examples`.

    Raises ConfigError for stages that are none or come in no order, a seed, a share, a context or a loss that is none,
    mazes larger than the vocabulary, and stages with questions whose mazes alone are longer than the context; `batch`
    raises TokenError where one maze is.

    Example
    -------
    >>> source = Curriculum([Stage(100, {3: 1.0}, {"rdfs": 1.0}), Stage(200, {4: 1.0}, {"rdfs": 1.0})], Tokenizer(4))
    >>> len(source.batch(0, 8).tokens), len(source.batch(150, 8).tokens)
    (13, 8)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        tokenizer: Tokenizer,
        seed: int = 0,
        test_share: float = 0.1,
        *,
        context: int = CONTEXT,
        loss: str = "path",
    ) -> None:
        listed: list[Stage] = list(stages) if is_list(stages) else []
        if not is_list(stages) or not all(isinstance(stage, Stage) for stage in listed):
            raise ConfigError(f"Curriculum: stages = {stages!r}: a list of Stage")
        check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
        self.stages, self.tokenizer, self.seed, self.test_share = listed, tokenizer, check_seed(seed), test_share
        if not self.stages or any(a.until >= b.until for a, b in zip(self.stages[:-1], self.stages[1:], strict=True)):
            raise ConfigError("Curriculum: stages must come in order, at least one")
        threshold(test_share, "train")
        self.context, self.loss = whole_number(context, "Curriculum: context", 1, MOST), loss
        check_choice(LOSSES, loss=loss)
        for stage in self.stages:
            grid = max(stage.grids)
            least = _fewest_tokens(grid)
            if stage.questions and least > context and not SPANNING.isdisjoint(stage.kinds):
                raise ConfigError(
                    f"Curriculum: context = {context}: mazes of {grid} × {grid} have {least} tokens at least, without "
                    "any question"
                )
        self.largest = max(grid for stage in self.stages for grid in stage.grids)
        if self.largest > tokenizer.grid:
            raise ConfigError(
                f"Curriculum: mazes of {self.largest} × {self.largest}, larger than the vocabulary's "
                f"{tokenizer.grid} × {tokenizer.grid}"
            )

    def __repr__(self) -> str:
        stages = f"{len(self.stages)} stage{'s' if len(self.stages) != 1 else ''}"
        return f"Curriculum of {stages}, mazes of up to {self.largest} × {self.largest}, seed {self.seed}"

    def mazes(self, step: int, size: int) -> Mazes:
        """The mazes of a step. Raises ConfigError for a step or a size that is none."""
        step, size = whole_number(step, "Curriculum: step"), whole_number(size, "Curriculum: size", 1, MOST)
        stage = self._stage(step)
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
        ms, more = self.mazes(step, size), self._stage(step).questions
        if more == 0:
            return examples(ms, self.tokenizer, loss=self.loss)
        rng = generator(self.seed + 1, step)
        return questions(ms, self.tokenizer, more, context=self.context, seed=rng, loss=self.loss)

    def starts(self) -> list[int]:
        """First step of each stage: a trainer plans its memory for the largest of their batches."""
        return [0, *(stage.until for stage in self.stages[:-1])]

    def _stage(self, step: int) -> Stage:
        return next((stage for stage in self.stages if step < stage.until), self.stages[-1])

    def check(self, model: Model) -> None:
        """Raises TokenError for a model that cannot learn from these mazes: one of another vocabulary, or one whose
        positions cannot hold a maze of some stage, however short its path; ConfigError for one with fewer positions
        than `context`, up to which questions fill sequences up."""
        tokenizer_of(model, self.tokenizer)
        if "pos_embed.W_pos" not in model.weights:
            return
        for i, stage in enumerate(self.stages):
            least = max((_fewest_tokens(grid) for grid in stage.grids if set(stage.kinds) & SPANNING), default=0)
            if least > model.config.n_ctx:
                raise TokenError(
                    f"Curriculum: stage {i}: a maze of {max(stage.grids)} × {max(stage.grids)} has {least} tokens at "
                    f"least; {model.config.model_name} has {model.config.n_ctx} positions"
                )
            if stage.questions and self.context > model.config.n_ctx:
                raise ConfigError(
                    f"Curriculum: stage {i} asks questions, up to context = {self.context} tokens; "
                    f"{model.config.model_name} has n_ctx = {model.config.n_ctx}: give Curriculum that context, or less"
                )

    def identity(self) -> str:
        """Stages, vocabulary, seed and split; context and loss where they are not the usual ones."""
        stages = "; ".join(
            f"until {s.until} {s.grids} {s.kinds} batch {s.batch}"
            + (f" questions {s.questions}" if s.questions else "")
            for s in self.stages
        )
        more = f" context {self.context}" if self.context != CONTEXT else ""
        more += f" loss {self.loss}" if self.loss != "path" else ""
        return f"mazes {stages}; {self.tokenizer!r}; seed {self.seed} test_share {self.test_share}{more}"


SPANNING = {"rdfs", "prdfs", "wilson"}
"""Kinds whose mazes join all cells: they have at least a tree's edges. Of the others a maze may have very few."""


def _fewest_tokens(grid: int) -> int:
    """Of a maze that joins all cells: a tree's edges, the delimiters, both ends, and a path of two cells."""
    return 4 * (grid * grid - 1) + 12


def _tokens(grid: int) -> float:
    """About how many tokens a spanning tree's maze has."""
    return 4 * (grid * grid - 1) + 10 + 0.45 * grid * grid
