"""Paper 5 on one model: everything of this package measured, its claims judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, TokenError
from ..experiment import Experiment, measured, tell
from ..inputs import check_seed
from ..model import Model
from .causal import HeadAblation, ablate_heads
from .checks import Head
from .claims import claims
from .consistency import Consistency, stored_consistency
from .dynamics import Dynamics, stored_dynamics
from .embedding import EmbeddingDistances, embedding_distances
from .evaluate import Rate, Table, judge
from .evaluate import table as evaluations
from .generate import generate
from .heads import AdjacencyHeads, LogitAttribution, adjacency_heads, attention_over, logit_attribution
from .lens import LensMasses, lens_masses
from .maze import Cell, Maze, Mazes, check_grid
from .patching import HeadPatching, PathStartPatching, patch_heads, patch_path_start
from .probes import RouteProbes, WallProbes, by_position, route_probes, untrained, wall_probes, wall_probes_along
from .prompts import reading_prompts, residuals
from .rollout import solve, tokenizer_of
from .steering import WallFlips, flip_walls
from .tokens import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

KINDS = ("forkless", "rdfs", "prdfs")
GATHERED = "origin_start"
"""The token at whose stream the walls of the bundled model are read best."""
LEAST_MASS = 0.05
"""Attention to the adjacency list below which no head is called an adjacency head."""


@dataclass(frozen=True)
class Shown:
    """Mazes for pictures."""

    mazes: Mazes
    """One of each kind."""
    kinds: tuple[str, ...]
    paths: tuple[Array, ...]
    """What the model walked in them."""
    exact: tuple[bool, ...]
    maze: Maze
    """The maze of the pictures below: the held-out rdfs maze of the longest way among the first twenty."""
    head: Head
    step: int
    """Number of the path's cell from which the head looks."""
    here: Cell
    attention: Array
    """[grid, grid]"""
    position: str
    """Of the probes."""
    site: str
    layer: int
    openness: Array
    """[2, grid, grid]"""


@dataclass(frozen=True)
class MazeExperiment(Experiment):
    """What paper 5's experiments give on a model; made by :func:`experiment`."""

    grid: int
    sizes: dict[str, int]
    """How many mazes each part had."""
    table1: Table = field(repr=False, metadata={"json": False})
    rows: dict[str, dict[str, Rate]]
    """Table 1: kind of maze → row → rate."""
    embedding: dict[str, EmbeddingDistances]
    """By metric, "l1" and "cosine"."""
    attribution: LogitAttribution
    adjacency: AdjacencyHeads
    """On held-out mazes."""
    adjacency_head: Head
    """The head with the highest score on mazes of the training split."""
    walls: WallProbes
    """At <PATH_START>, as the paper's."""
    walls_along: dict[str, WallProbes]
    """Ridge probes at every token from <ADJLIST_END> to <PATH_START>."""
    walls_within: dict[str, WallProbes] | None
    """The same between attention and MLP; None for models where both read the same stream."""
    walls_untrained: WallProbes
    walls_bag: WallProbes
    route: RouteProbes
    lens: LensMasses
    ablation: HeadAblation | None
    """Causal tests, beyond the paper; None where a model has no heads to spare as controls."""
    patching: HeadPatching | None
    flips: WallFlips
    """By probes at <PATH_START>, from there on."""
    flips_before: WallFlips
    """By probes at <ORIGIN_START>, from there on; between attention and MLP where there is a stream between them."""
    start: PathStartPatching
    dynamics: Dynamics | None
    """Of the training of "maze-6x6", as it is stored with the package; None for other models."""
    consistency: Consistency | None
    """Of small models, as it is stored with the package."""
    shown: Shown = field(repr=False, metadata={"json": False})

    def figures(self) -> dict[str, Figure]:
        """Figures by name; needs matplotlib (`clew[plot]`)."""
        from . import figures

        elsewhere = [one[GATHERED] for one in (self.walls_along, self.walls_within) if one is not None]
        out = {
            "evaluation": figures.evaluation(self.table1),
            "solved": figures.solved(self.shown),
            "by_length": figures.by_length(self.table1),
            "embedding": figures.embedding(self.embedding),
            "attribution": figures.attribution(self.attribution),
            "adjacency_scores": figures.adjacency_scores(self.adjacency),
            "adjacency_lengths": figures.adjacency_lengths(self.adjacency, *self.adjacency_head),
            "adjacency_head": figures.adjacency_head(self.shown),
            "probes": figures.probes(self.walls, self.walls_untrained, self.walls_bag, elsewhere),
            "probe_positions": figures.probe_positions(self.walls_along, self.walls_within),
            "probe_picture": figures.probe_picture(self.shown),
            "lens": figures.lens(self.lens),
        }
        for name in ("ablation", "patching", "flips", "flips_before", "start"):
            part = getattr(self, name)
            if part is not None:
                out[name] = part.figure()
        if self.dynamics is not None:
            out["dynamics"] = figures.dynamics(self.dynamics)
        if self.consistency is not None:
            out["consistency"] = figures.consistency(self.consistency)
        return out

    def __repr__(self) -> str:
        return self.table()

    def details(self) -> str:
        """The tables of all parts, one after the other."""
        parts = [
            repr(self.table1), self.adjacency.table(8), self.walls.table(), by_position(self.walls_along),
            *([by_position(self.walls_within)] if self.walls_within is not None else []),
            self.route.table(), self.lens.table(),
        ]  # fmt: skip
        more = (
            self.ablation, self.patching, self.flips, self.flips_before, self.start, self.dynamics, self.consistency
        )  # fmt: skip
        parts += [part.table() for part in more if part is not None]
        return "\n\n".join(parts)


def picture(model: Model, walls: WallProbes, head: Head, grid: int, seed: int, tok: Tokenizer) -> Shown:
    """Solves some held-out mazes and looks into one of them."""
    ms = Mazes.join([generate(1, grid, kind, seed + 3, split="test") for kind in KINDS])
    paths = solve(model, ms, tokenizer=tok)
    some = generate(20, grid, "rdfs", seed + 3, split="test")
    maze = some[int(some.path_lengths.argmax())]
    looks = [attention_over(model, maze, head, k, tokenizer=tok) for k in range(len(maze.solution) - 1)]
    # an example of what the head does: the cell from which most of its attention goes to cells that one step reaches
    step = int(np.argmax([sum(look[b] for b in _reached(maze, k)) for k, look in enumerate(looks)]))
    scores = walls.scores
    method = max(scores, key=lambda name: float(scores[name].accuracy.max()))
    layer = scores[method].best
    _, stream = next(residuals(model, reading_prompts(maze, tok, walls.position), site=walls.site))
    return Shown(
        ms, KINDS, tuple(paths), tuple(judge(paths, ms).exact.tolist()), maze, head, step,
        (int(maze.solution[step][0]), int(maze.solution[step][1])),
        looks[step], walls.position, walls.site, layer,
        walls.openness(stream[layer], layer, method)[0],
    )  # fmt: skip


def _reached(maze: Maze, step: int) -> list[tuple[int, int]]:
    """Cells that one step reaches from a cell of the path."""
    r, c = (int(i) for i in maze.solution[step])
    around = ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
    return [(a, b) for a, b in around if 0 <= a < maze.grid and 0 <= b < maze.grid and maze.connected((r, c), (a, b))]


def has_mid(model: Model) -> bool:
    """Is there a stream between attention and MLP?"""
    return "blocks.0.hook_resid_mid" in model.sites()


def _lens(model: Model, train: Mazes, test: Mazes) -> LensMasses:
    """Along the model's own paths as the paper's, or along the mazes' where the model walks none."""
    walks = [path[:2] for path in solve(model, test)]
    side = int(test.grids[0])
    own = any(len(path) == 2 and ((path >= 0) & (path < side)).all() for path in walks)
    return lens_masses(model, train, test, paths="model" if own else "solution")


def experiment(
    model: Model, text: Any = None, quick: bool = True, seed: int = 0, *, grid: int | None = None
) -> MazeExperiment:
    """Paper 5 (Ivanitskiy et al. 2023, arXiv:2312.02566) on a model of maze tokens.

    Parameters
    ----------
    model
        A model of maze tokens, such as "maze-6x6".
    text
        None: it makes its own mazes.
    quick
        The small version: 150 mazes of each kind for Table 1, 2,000 for the probes to learn from, 60 for causal tests
        at the layer of the best probes alone; else 1,000, 15,000 (as the paper), 500, and every layer. Walls are read
        and flipped at <PATH_START> behind each layer, as the paper's, and beside it at <ORIGIN_START>, where the
        bundled model gathers them, between attention and MLP.
    seed
        Of mazes, random cells, shuffles and resampling. Probes and lenses learn on mazes of the split "train", all is
        measured on "test".
    grid
        Rows of the mazes; None: 6 as the paper's, or fewer where the vocabulary has no more.

    Dynamics and consistency are read from what is stored with the package; dynamics for "maze-6x6" alone.

    Raises ConfigError for a text, TokenError for a model of other tokens, and what the parts raise.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> config = mazes.hallway_config(n_layers=2, d_model=32, n_heads=2, d_vocab=20, n_ctx=64)
    >>> result = mazes.experiment(clew.Model.from_config(config, seed=0), grid=3)
    >>> result.paper, result.claims[0].verdict
    (5, 'not testable on this model')
    """
    if text is not None:
        raise ConfigError("clew mazes takes no text: it makes its own mazes")
    tok = tokenizer_of(model)
    seed = check_seed(seed)
    if not isinstance(quick, bool | np.bool_):
        raise ConfigError(f"quick = {quick!r}: True or False")
    side = min(6, tok.grid) if grid is None else check_grid(grid)
    n_table, n_train, n_test, n_lens, n_heads = (150, 2000, 500, 200, 200) if quick else (1000, 15000, 2000, 2000, 1000)
    n_causal, n_route = (60, 1000) if quick else (500, 15000)
    if side > tok.grid:
        raise TokenError(f"mazes of {side} × {side}: the vocabulary of {model.config.model_name} has {tok.grid} rows")
    tell("mazes")
    train = generate(n_train, side, "rdfs", seed + 1, split="train")
    test = generate(max(n_test, n_heads), side, "rdfs", seed + 2, split="test")
    tell("heads")
    head = adjacency_heads(model, train[:n_heads], seed=seed, draws=2).ranked(LEAST_MASS)[0]
    tell("table 1")
    table1 = evaluations(model, n_table, side, kinds=KINDS, seed=seed)
    tell("wall probes")
    along = wall_probes_along(model, train, test[:n_test])
    within = wall_probes_along(model, train, test[:n_test], site="resid_mid") if has_mid(model) else None
    walls = along["path_start"] if quick else wall_probes(model, train, test[:n_test], seed=seed)
    gathered = (along if within is None else within)[GATHERED]
    layers, layers_before = ([one["ridge"].best] if quick else None for one in (walls, gathered))
    spare = model.config.n_layers * (model.config.n_heads // 2)
    asked, reference = test[:n_causal], train[: max(100, n_causal)]
    settings: dict[str, Any] = dict(heads=min(2, spare), draws=1 if quick else 3, least_mass=LEAST_MASS, seed=seed)
    parts: dict[str, Any] = dict(
        grid=side,
        sizes={"table 1, of each kind": n_table, "probes, train": n_train, "probes, test": n_test,
               "tuned lens, train": n_lens, "lens rollouts": 50, "heads": n_heads,
               "causal tests": n_causal, "route, train": n_route},
        table1=table1,
        rows={kind: dict(column) for kind, column in table1.columns.items()},
        adjacency_head=head,
        walls=walls,
        walls_along=along,
        walls_within=within,
    )  # fmt: skip
    blank: Any = dict(methods=["ridge"], seed=seed, tokenizer=tok)
    parts |= measured({
        "embedding": lambda: {n: embedding_distances(model, n, grid=side, seed=seed) for n in ("l1", "cosine")},
        "attribution": lambda: logit_attribution(model, test[:n_heads], seed=seed),
        "adjacency": lambda: adjacency_heads(model, test[:n_heads], seed=seed),
        "walls_untrained": lambda: wall_probes(untrained(model, seed), train, test[:n_test], **blank),
        "walls_bag": lambda: wall_probes("bag of tokens", train, test[:n_test], **blank),
        "route": lambda: route_probes(model, train[:n_route], test[:n_test], seed=seed),
        "lens": lambda: _lens(model, train[:n_lens], test[:50]),
        "ablation": lambda: ablate_heads(model, asked, reference, **settings) if spare else None,
        "patching": lambda: patch_heads(model, asked, reference, **settings) if spare else None,
        "flips": lambda: flip_walls(model, asked, walls, layers=layers, seed=seed),
        "flips_before": lambda: flip_walls(model, asked, gathered, layers=layers_before, seed=seed),
        "start": lambda: patch_path_start(model, asked, reference, layers=layers, seed=seed),
        "dynamics": lambda: stored_dynamics() if model.config.model_name == "maze-6x6" else None,
        "consistency": stored_consistency,
        "shown": lambda: picture(model, gathered, head, side, seed, tok),
    })  # fmt: skip
    title = "Structured world representations in maze-solving transformers"
    return MazeExperiment(5, title, model.config.model_name, seed, quick, claims(parts), **parts)


__all__ = ["GATHERED", "KINDS", "LEAST_MASS", "MazeExperiment", "Shown", "experiment", "has_mid", "picture"]
