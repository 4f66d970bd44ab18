"""What can be read off one token's residual stream: every wall of the maze, and the way (arXiv:2312.02566, Figs. 8, 9).

Activations are streamed: ridge regression keeps sums of products, logistic regression one vector a maze.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import check_seed, check_type, is_word, real_array
from ..model import check_model
from ..probe import Moments, Probe, logistic
from .checks import names_of, one_size, place_in
from .maze import Maze, Mazes, cell_pair, check_grid, way_of
from .prompts import BEFORE, FIXED, NORMAL_95, STREAMS, Prompts, place_name, reading_prompts, residuals
from .rollout import tokenizer_of
from .tokens import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..model import Model

Array = NDArray[Any]
Features = Iterator[tuple[slice, Array]]

METHODS = ("ridge", "logistic")
KEPT = 1 << 14
"""Mazes that logistic regression learns from at most: their activations are kept."""


def inner_walls(grid: int) -> Array:
    """Pairs of cells that a wall may part, int [2 · grid · (grid − 1), 2, 2]: below each other first, then beside.

    Raises ConfigError for a size that no maze has.

    >>> inner_walls(2).tolist()
    [[[0, 0], [1, 0]], [[0, 1], [1, 1]], [[0, 0], [0, 1]], [[1, 0], [1, 1]]]
    """
    grid = check_grid(grid)
    r, c = np.divmod(np.arange(grid * grid), grid)
    cells = np.stack([r, c], axis=1)
    return np.concatenate(
        [np.stack([cells[cells[:, a] < grid - 1]] * 2, 1) + [[0, 0], [a == 0, a == 1]] for a in (0, 1)]
    )


def walls_of(ms: Mazes | Iterable[Maze] | Maze) -> Array:
    """Is each inner wall there? bool [n, walls], in the order of :func:`inner_walls`.

    Raises ConfigError without mazes, ShapeError for mazes of several grids.
    """
    batch = Mazes.of(ms)
    one_size(batch, "walls_of")
    n, open_ = len(batch), batch.connections()
    return ~np.concatenate([open_[:, :-1, :, 3].reshape(n, -1), open_[:, :, :-1, 2].reshape(n, -1)], axis=1)


def spanning_trees(openness: ArrayLike, grid: int) -> Array:
    """The spanning tree whose edges have the largest sum of openness, of each maze (Kruskal 1956, greedily).

    openness: float [n, walls], the larger the likelier is the edge open. Returns the *walls*, bool [n, walls]: True
    where the tree has no edge. Of equal values the first wall counts as open. Raises ShapeError; ConfigError for NaN or
    a size that no maze has.

    >>> spanning_trees([[0.9, 0.8, 0.7, 0.1]], 2).tolist()
    [[False, False, False, True]]
    """
    scores, grid = real_array(openness, "spanning_trees: openness"), check_grid(grid)
    walls = inner_walls(grid)
    if scores.ndim != 2 or scores.shape[1] != len(walls):
        raise ShapeError(f"spanning_trees: {list(scores.shape)} for {grid} × {grid} mazes, expected [n, {len(walls)}]")
    if np.isnan(scores).any():
        raise ConfigError("spanning_trees: openness holds NaN")
    n, rows = len(scores), np.arange(len(scores))
    ends = walls @ [grid, 1]
    component = np.broadcast_to(np.arange(grid * grid), (n, grid * grid)).copy()
    out = np.ones(scores.shape, bool)
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(len(walls)):  # over edges; all mazes at once
        edge = order[:, k]
        a, b = component[rows, ends[edge, 0]], component[rows, ends[edge, 1]]
        joins = a != b
        out[rows[joins], edge[joins]] = False
        component = np.where((component == b[:, None]) & joins[:, None], a[:, None], component)
    return out


# ---- Streams of features --------------------------------------------------------------------------------------------


def bags(prompts: Prompts, vocab: int) -> Features:
    """(rows, how often each token comes [1, rows, vocab]): what order and pairs of tokens do not tell."""
    for rows, tokens in prompts.batches():
        yield rows, np.array([np.bincount(row, minlength=vocab) for row in tokens], np.float64)[None]


def _stream(source: Model | str, prompts: Prompts, *, vocab: int, site: str) -> Features:
    return bags(prompts, vocab) if isinstance(source, str) else residuals(source, prompts, site=site)


def _site(site: str, what: str) -> str:
    """Raises ConfigError for what is no site of the residual stream."""
    if not is_word(site, STREAMS):
        raise ConfigError(f"{what}: site = {site!r}: one of {', '.join(STREAMS)}")
    return site


def untrained(model: Model, seed: int = 0) -> Model:
    """A model of the same shape with the random weights that its configuration starts from: a baseline.

    Raises ConfigError for what is no model, or no seed.
    """
    from ..model import Model as Class

    check_model(model)
    seed = check_seed(seed)
    return Class.from_config(model.config, seed=seed, dtype=model.dtype.name)


@dataclass(frozen=True)
class _Fit:
    """Probes by method, and the control's: the same with the targets of other mazes."""

    probes: dict[str, Probe]
    controls: dict[str, Probe]


def _of_others(targets: Array, what: str) -> Array:
    """For every maze the targets of another one, which are not its own: of the one before it, or where they are the
    same, of a random one. Raises ConfigError where all are the same."""
    n = len(targets)
    _, group, counts = np.unique(targets, axis=0, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        raise ConfigError(f"{what}: the control needs mazes that differ: all {n} to learn from have the same targets")
    other = np.roll(np.arange(n), 1)
    own, first = counts[group], (np.cumsum(counts) - counts)[group]
    place = np.floor(np.random.default_rng(0).random(n) * (n - own)).astype(int)  # among those of other groups
    drawn = np.argsort(group, kind="stable")[place + own * (place >= first)]
    return np.asarray(targets[np.where(group[other] == group, drawn, other)])


def _fit(features: Features, targets: Array, methods: Sequence[str], lam: float, what: str) -> _Fit:
    sums = Moments()
    kept_x: list[Array] = []
    kept_rows = 0
    moved = _of_others(targets, what)
    for rows, x in features:
        if "ridge" in methods:
            sums.add(x, np.concatenate([targets[rows], moved[rows]], axis=1))
        if "logistic" in methods and kept_rows < KEPT:
            kept_x.append(x[:, : KEPT - kept_rows].copy())
            kept_rows += kept_x[-1].shape[1]
    t = targets.shape[1]
    probes: dict[str, Probe] = {}
    controls: dict[str, Probe] = {}
    both: dict[str, Probe] = {}
    if "ridge" in methods:
        both["ridge"] = sums.ridge(lam)
    if "logistic" in methods:
        x = np.concatenate(kept_x, axis=1)
        both["logistic"] = logistic(x, np.concatenate([targets, moved], axis=1)[:kept_rows], lam)
    for name, probe in both.items():
        probes[name], controls[name] = probe.targets(slice(0, t)), probe.targets(slice(t, None))
    return _Fit(probes, controls)


# ---- Walls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WallScores:
    """How well one kind of probe reads the walls of mazes that it has not seen. Arrays by layer."""

    accuracy: Array
    """Share of inner walls that are right [layer]."""
    low: Array
    """Lower end of its 95 % interval over mazes (walls of one maze are no independent draws); NaN of one maze."""
    high: Array
    per_wall: Array
    """[layer, wall]"""
    control: Array
    """Accuracy of probes that learned the walls of other mazes [layer]: what the walls' frequencies give."""
    exact: Array
    """Share of mazes with every inner wall right [layer]."""
    tree_exact: Array
    """The same once scores are decoded to a maximum spanning tree [layer]; NaN where mazes are no trees."""
    tree_accuracy: Array
    """Accuracy of the walls so decoded [layer]."""

    @property
    def best(self) -> int:
        """The layer with the highest accuracy."""
        return int(self.accuracy.argmax())

    def __repr__(self) -> str:
        i = self.best
        return (
            f"WallScores of {len(self.accuracy)} layers: best is layer {i}, {self.accuracy[i]:.1%} "
            f"[{self.low[i]:.1%}, {self.high[i]:.1%}] of inner walls"
        )


@dataclass(frozen=True)
class WallProbes:
    """Linear probes for every inner wall at every layer; made by :func:`wall_probes`."""

    grid: int
    position: str
    site: str
    """Of the stream: "resid_post", after each layer, "resid_mid" or "resid_pre"."""
    n_train: int
    n_test: int
    walls: Array
    """Pairs of cells, int [walls, 2, 2]: see :func:`inner_walls`."""
    scores: dict[str, WallScores]
    """"ridge", "logistic" → how well they read held-out mazes."""
    majority: float
    """Accuracy of saying for each wall what is commoner among the mazes that probes learn from."""
    majority_per_wall: Array
    always_wall: float
    """Accuracy of "there is a wall" for inner walls."""
    probes: dict[str, Probe] = field(repr=False, metadata={"json": False})
    """Method → the maps; weight [layer, d_model, walls]. A score above the boundary says "wall"."""

    def table(self) -> str:
        """Accuracy of every method and layer as text, in percent."""
        lines = [
            f"walls of {self.grid} × {self.grid} mazes at {self.place}, {self.n_train:,} mazes to learn from, "
            f"{self.n_test:,} held out; % of inner walls:",
            f"what is commoner for each wall {100 * self.majority:.1f}, always a wall {100 * self.always_wall:.1f}",
            "method    layer  right [95 %]         other mazes' walls  whole mazes, raw  as a spanning tree",
        ]
        for name, one in self.scores.items():
            for i, right in enumerate(100 * one.accuracy):
                span = f"{right:5.1f} [{100 * one.low[i]:.1f}, {100 * one.high[i]:.1f}]"
                tree = "–" if np.isnan(one.tree_exact[i]) else f"{100 * one.tree_exact[i]:.1f}"
                lines.append(
                    f"{name:<8}  {i:>5}  {span:<20} {100 * one.control[i]:18.1f}  {100 * one.exact[i]:16.1f}  "
                    f"{tree:>18}"
                )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def __getitem__(self, method: str) -> WallScores:
        if method is None:
            raise ConfigError(f"method = None: there are {', '.join(self.scores)}")
        return self.scores[self._method(method)]

    @property
    def place(self) -> str:
        """Where the stream is read, as tables and figures name it."""
        return place_name(self.position, self.site)

    def _method(self, method: str | None) -> str:
        """A method by its name; None: the better one."""
        if method is None:
            return max(self.scores, key=lambda name: float(self.scores[name].accuracy.max()))
        if not isinstance(method, str) or method not in self.probes:
            raise ConfigError(f"method = {method!r}: there are {', '.join(self.probes)}")
        return method

    def paper_accuracy(self, method: str | None = None) -> Array:
        """Accuracy as the paper counts [layer]: four directions of every cell, so that inner walls count twice and
        the boundary's walls, which never vary, are right. None: the better method."""
        inner, boundary = len(self.walls), 4 * self.grid
        return (2 * inner * self.scores[self._method(method)].accuracy + boundary) / (2 * inner + boundary)

    @property
    def paper_always_wall(self) -> float:
        """The paper's baseline "always 1", counted in the same way."""
        inner, boundary = len(self.walls), 4 * self.grid
        return (2 * inner * self.always_wall + boundary) / (2 * inner + boundary)

    def openness(self, resid: ArrayLike, layer: int, method: str | None = None) -> Array:
        """What a probe says of streams [n, d_model]: that neighbours are connected, [n, 2, grid, grid] (down, right),
        as `clew.mazes.draw(walls=...)` takes it; 0 where there is no inner wall.

        Raises ShapeError for streams of another width, ConfigError for a layer or method that there is not, or streams
        that hold NaN or infinity.
        """
        name, x = self._method(method), real_array(resid, "openness: streams")
        if not np.isfinite(x).all():
            raise ConfigError("openness: streams hold NaN or infinity")
        score = self.probes[name].layer(self._layer(layer))(x)
        open_ = 1 / (1 + np.exp(score)) if name == "logistic" else np.clip(1 - score, 0, 1)
        out = np.zeros((len(open_), 2, self.grid, self.grid))
        half = len(self.walls) // 2
        for axis, part in enumerate((slice(0, half), slice(half, None))):
            out[:, axis, self.walls[part, 0, 0], self.walls[part, 0, 1]] = open_[:, part]
        return out

    def direction(self, wall: int, layer: int, method: str = "ridge") -> Array:
        """The vector [d_model] whose product with the stream says that a wall is there.

        Raises ConfigError for a wall (see :meth:`wall`), layer or method that there is not.
        """
        number = place_in(wall, len(self.walls), "wall")
        return np.asarray(self.probes[self._method(method)].weight[self._layer(layer), :, number])

    def _layer(self, layer: int) -> int:
        return place_in(layer, len(next(iter(self.probes.values())).weight), "layer")

    def wall(self, a: ArrayLike, b: ArrayLike) -> int:
        """Number of the wall between two neighbours. Raises ConfigError for cells that are none."""
        pair = np.array(sorted([cell_pair(a), cell_pair(b)]))
        found = np.flatnonzero((self.walls == pair).all((1, 2)))
        if len(found) == 0:
            raise ConfigError(f"{np.asarray(a).tolist()} and {np.asarray(b).tolist()} are no neighbours here")
        return int(found[0])


def _splits(train: Mazes | Iterable[Maze], test: Mazes | Iterable[Maze], what: str) -> list[Mazes]:
    """Both as mazes. Raises ConfigError for an empty one, before its paths are called too short."""
    both = [Mazes.of(train), Mazes.of(test)]
    if not all(map(len, both)):
        raise ConfigError(f"{what}: {len(both[0])} mazes to learn from and {len(both[1])} held out: an empty split?")
    return both


def one_grid(train: Mazes, test: Mazes, what: str) -> int:
    """The grid of mazes to learn from and of held-out ones. Raises ConfigError (too few, walls in both), ShapeError."""
    if len(train) < 2 or len(test) == 0:
        raise ConfigError(f"{what}: {len(train)} mazes to learn from and {len(test)} held out: an empty split?")
    grid = one_size(Mazes.join([train, test]), what)
    both = np.intersect1d(train.hashes, test.hashes)
    if len(both):
        raise ConfigError(
            f"{what}: {len(both)} mazes' walls are in both parts: make them with split='train' and split='test'"
        )
    return grid


def wall_probes(
    model: Model | str,
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    position: str = "path_start",
    site: str = "resid_post",
    methods: Sequence[str] = ("ridge", "logistic"),
    lam: float = 1e-3,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> WallProbes:
    """Fits a linear probe for every inner wall on one token's residual stream at every layer, and tests it on other
    mazes.

    Parameters
    ----------
    model
        A model of maze tokens, or "bag of tokens" for the baseline that reads how often each token comes
        (give `tokenizer` then); `untrained(model)` is the other baseline.
    train, test
        Mazes to learn from and held-out ones, of one size; no walls may be in both.
    position
        "path_start": the stream at <PATH_START>, as the paper's; "origin", "path": at a cell of the path, its first or
        a random one; "adjlist_end", "origin_start", "origin_end", "target_start", "target_end": at that token before
        it. The bundled model gathers walls at <ORIGIN_START>.
    site
        Where in a layer: "resid_post", behind it; "resid_mid", between its attention and its MLP, where the bundled
        model's walls are read best; "resid_pre", before it.
    methods
        "ridge" (on 0 and 1, boundary ½) from streamed moments; "logistic", from at most 16,384 mazes (KEPT).
    lam
        Penalty, see :mod:`clew.probe`.
    seed
        Of the random cells of "path".

    The shuffled-label control learns each maze's stream with the walls of another maze, never with its own walls.

    Raises
    ------
    ConfigError
        Empty splits, walls in both of them, no such method, position or site; a site for a bag of tokens; mazes to
        learn from that all have the same walls.
    SiteError
        A model without the site: one whose attention and MLP read the same stream has no "resid_mid".
    ShapeError
        Mazes of several sizes.
    TokenError
        A model of other tokens, mazes larger than its vocabulary, prompts longer than its positions.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((200, "train"), (50, "test")))
    >>> found = mazes.wall_probes(model, train, test, methods=["ridge"])
    >>> found["ridge"].accuracy.shape, found["ridge"].per_wall.shape, 0.5 < found.majority < 0.8
    ((2,), (2, 24), True)
    """
    methods = names_of(methods, "wall_probes: methods", METHODS)
    site, seed = _site(site, "wall_probes"), check_seed(seed)
    if isinstance(model, str):
        if model != "bag of tokens" or tokenizer is None:
            raise ConfigError(f'{model!r}: a Model, such as clew.load gives, or "bag of tokens" and a tokenizer')
        check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
        if site != STREAMS[0]:
            raise ConfigError(f"wall_probes: site = {site!r}: a bag of tokens has no sites")
        tok = tokenizer
    else:
        tok = tokenizer_of(model, tokenizer)
    splits = _splits(train, test, "wall_probes")
    learn, held = (reading_prompts(ms, tok, position, seed + i) for i, ms in enumerate(splits))
    streams = partial(_stream, model, vocab=len(tok.vocab), site=site)
    return _probed("wall_probes", streams, learn, held, [position], site, methods, lam)[position]


def wall_probes_along(
    model: Model,
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    positions: Sequence[str] = FIXED,
    site: str = "resid_post",
    methods: Sequence[str] = ("ridge",),
    lam: float = 1e-3,
    tokenizer: Tokenizer | None = None,
) -> dict[str, WallProbes]:
    """Wall probes at several tokens before the path, for which the model runs once: where does it gather the walls?

    positions: of <ADJLIST_END>, <ORIGIN_START>, <ORIGIN_END>, <TARGET_START>, <TARGET_END> and <PATH_START>, as
    :func:`wall_probes` names them. Returns what it gives at each of them, by name; other parameters and errors are
    its own.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((200, "train"), (50, "test")))
    >>> found = mazes.wall_probes_along(model, train, test, positions=["origin_end", "path_start"])
    >>> found["origin_end"]["ridge"].accuracy.shape, list(found)
    ((2,), ['origin_end', 'path_start'])
    """
    what = "wall_probes_along"
    positions = names_of(positions, f"{what}: positions", FIXED)
    methods, site = names_of(methods, f"{what}: methods", METHODS), _site(site, what)
    tok = tokenizer_of(model, tokenizer)
    learn, held = (reading_prompts(ms, tok, "path_start") for ms in _splits(train, test, what))
    back = [BEFORE.get(position, 0) for position in positions]
    return _probed(what, partial(residuals, model, back=back, site=site), learn, held, positions, site, methods, lam)


def by_position(found: Mapping[str, WallProbes], method: str = "ridge") -> str:
    """Accuracy at every token and layer as text, in percent, with its control at the best layer."""
    first = next(iter(found.values()))
    layers = range(len(first[method].accuracy))
    lines = [
        f"{method} probes by the token whose {first.site} they read, {first.n_train:,} mazes to learn from, "
        f"{first.n_test:,} held out; % of inner walls (what is commoner for each wall {100 * first.majority:.1f}):",
        f"{'':<15}" + "".join(f"{f'layer {i}':>9}" for i in layers) + "  best [95 %]          other mazes' walls",
    ]
    for position, walls in found.items():
        one, i = walls[method], walls[method].best
        span = f"{100 * one.accuracy[i]:.1f} [{100 * one.low[i]:.1f}, {100 * one.high[i]:.1f}]"
        lines.append(
            f"{place_name(position):<15}" + "".join(f"{100 * x:9.1f}" for x in one.accuracy)
            + f"  {span:<19}{100 * one.control[i]:20.1f}"
        )  # fmt: skip
    return "\n".join(lines)


def best_position(found: Mapping[str, WallProbes], but: str = "path_start", method: str = "ridge") -> str:
    """The token where probes are right most often, among all others than `but`."""
    return max((p for p in found if p != but), key=lambda p: float(found[p][method].accuracy.max()))


def _probed(
    what: str,
    streams: Callable[[Prompts], Features],
    learn: Prompts,
    held: Prompts,
    positions: Sequence[str],
    site: str,
    methods: Sequence[str],
    lam: float,
) -> dict[str, WallProbes]:
    """Fits and tests probes on streams that hold all layers at the first position, then at the next one, and so on."""
    grid = one_grid(learn.mazes, held.mazes, what)
    truth, other = walls_of(learn.mazes), walls_of(held.mazes)
    fit = _fit(streams(learn), truth.astype(np.float32), methods, lam, what)
    frequent = truth.mean(0) >= 0.5
    trees = bool((held.mazes.batch[2] == grid * grid - 1).all())
    parts: dict[str, list[tuple[Array, ...]]] = {name: [] for name in methods}
    for rows, x in streams(held):
        for name in methods:
            parts[name].append(_judged(fit.probes[name](x), fit.controls[name].predict(x), other[rows],
                                       fit.probes[name].boundary, grid if trees else None))  # fmt: skip
    columns = {name: [np.concatenate(c, axis=1) for c in zip(*part, strict=True)] for name, part in parts.items()}
    per_wall = (frequent == other).mean(0)
    n_layers = len(next(iter(fit.probes.values())).weight) // len(positions)

    def at(i: int, position: str) -> WallProbes:
        own = slice(i * n_layers, (i + 1) * n_layers)
        return WallProbes(
            grid, position, site, len(learn), len(held), inner_walls(grid),
            {name: _scores([column[own] for column in found]) for name, found in columns.items()},
            float(per_wall.mean()), per_wall, float(other.mean()),
            {name: one.layers(own) for name, one in fit.probes.items()},
        )  # fmt: skip

    return {position: at(i, position) for i, position in enumerate(positions)}


def _judged(scores: Array, control: Array, truth: Array, boundary: float, grid: int | None) -> tuple[Array, ...]:
    """Right? [layer, rows, wall] of raw scores, of the control [layer, rows], of trees [layer, rows, wall]."""
    right = (scores > boundary) == truth
    if grid is None:
        tree = np.full(right.shape, np.nan)
    else:
        flat = spanning_trees(-scores.reshape(-1, scores.shape[-1]), grid)
        tree = (flat.reshape(scores.shape) == truth).astype(float)
    return right, (control == truth).mean(-1), tree.mean(-1), tree.min(-1)


def _scores(columns: list[Array]) -> WallScores:
    right, control, tree, tree_exact = columns
    by_maze = right.mean(-1)
    n = by_maze.shape[1]
    width = NORMAL_95 * by_maze.std(1) / np.sqrt(n) if n > 1 else np.nan
    accuracy = by_maze.mean(1)
    return WallScores(
        accuracy, np.maximum(0, accuracy - width), np.minimum(1, accuracy + width), right.mean(1), control.mean(1),
        right.all(-1).mean(1), tree_exact.mean(1), tree.mean(1),
    )  # fmt: skip


# ---- The way --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouteProbes:
    """What one token's stream tells of the way; made by :func:`route_probes`. Arrays by layer, on held-out mazes."""

    position: str
    site: str
    n_train: int
    n_test: int
    path_auc: Array
    """Is a cell on the way? Area under the curve of the scores of all cells but origin and target, pooled [layer]."""
    path_accuracy: Array
    """Share of all cells that are right [layer]."""
    path_majority: float
    """Of saying for each cell what is commoner."""
    path_control: Array
    """Accuracy of probes that learned other mazes' ways [layer]."""
    distance_r2: Array
    """Steps to the target along the way: share of its variance that is explained [layer]."""
    distance_manhattan_r2: float
    """The same by a line through the Manhattan distance to the target: no maze is needed for that."""
    distance_control: Array
    step_accuracy: Array
    """Direction of the next step, of four [layer]."""
    step_majority: float
    step_greedy: float
    """Accuracy of going towards the target as the crow flies, along the axis that is further off."""
    step_control: Array

    def table(self) -> str:
        """Every layer as text."""
        lines = [
            f"the way at {place_name(self.position, self.site)}, {self.n_train:,} mazes to learn from, "
            f"{self.n_test:,} held out",
            "layer  cells of the way, AUC  cells right  length, R²  next step right",
        ]
        for i, auc in enumerate(self.path_auc):
            lines.append(
                f"{i:>5}  {auc:21.3f}  {self.path_accuracy[i]:11.1%}  {self.distance_r2[i]:10.2f}  "
                f"{self.step_accuracy[i]:15.1%}"
            )
        lines.append(
            f"without the model: cells right {self.path_majority:.1%} (the commoner), R² of the Manhattan distance "
            f"{self.distance_manhattan_r2:.2f}, next step {self.step_majority:.1%} (the commonest), "
            f"{self.step_greedy:.1%} (towards the target)"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def _auc(scores: Array, truth: Array) -> float:
    """Probability that a true one scores higher than a false one (Mann and Whitney 1947)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(truth.sum())
    m = len(truth) - n
    return float((rank[truth].sum() - n * (n + 1) / 2) / (n * m)) if n and m else float("nan")


def _route_targets(prompts: Prompts) -> tuple[Array, Array, Array]:
    """On the way? bool [n, cells]; steps to the target [n]; direction of the next step, 0 to 3 [n]."""
    ms = prompts.mazes
    grid, n, k = int(ms.grids[0]), len(ms), ms.path_lengths
    path = ms.batch[4].astype(int) @ [grid, 1]
    inside = np.arange(path.shape[1]) < k[:, None]
    on = np.zeros((n, grid * grid), bool)
    on[np.nonzero(inside)[0], path[inside]] = True
    ahead = ms.batch[4].astype(int)[np.arange(n), np.minimum(np.maximum(prompts.step, 0) + 1, k - 1)]
    step = ahead - prompts.here
    return on, k - 1 - np.maximum(prompts.step, 0), way_of(step)


def route_probes(
    model: Model,
    train: Mazes | Iterable[Maze],
    test: Mazes | Iterable[Maze],
    *,
    position: str = "path_start",
    site: str = "resid_post",
    lam: float = 1e-3,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> RouteProbes:
    """Ridge probes on one token's stream for the cells of the way, the distance to the target, and the next step.

    At <PATH_START> the distance is the whole way's length, and the next step the one from the origin. Parameters and
    errors are those of :func:`wall_probes`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((200, "train"), (50, "test")))
    >>> mazes.route_probes(model, train, test).step_accuracy.shape
    (2,)
    """
    tok = tokenizer_of(model, tokenizer)
    site, seed = _site(site, "route_probes"), check_seed(seed)
    splits = _splits(train, test, "route_probes")
    learn, held = (reading_prompts(ms, tok, position, seed + i) for i, ms in enumerate(splits))
    enough = [p.mazes.path_lengths > 1 for p in (learn, held)]
    if not all(e.all() for e in enough):
        raise ConfigError("route_probes: a maze whose origin is its target has no next step")
    grid = one_grid(learn.mazes, held.mazes, "route_probes")
    cells = grid * grid

    def targets(prompts: Prompts) -> Array:
        on, steps, way = _route_targets(prompts)
        return np.concatenate([on, steps[:, None], way[:, None] == np.arange(4)], axis=1).astype(np.float64)

    y, truth = targets(learn), targets(held)
    fit = _fit(residuals(model, learn, site=site), y, ["ridge"], lam, "route_probes")
    both = [(fit.probes["ridge"](x), fit.controls["ridge"](x)) for _, x in residuals(model, held, site=site)]
    made, control = (np.concatenate(part, axis=1) for part in zip(*both, strict=True))
    on, steps, way = truth[:, :cells] > 0.5, truth[:, cells], truth[:, cells + 1 :].argmax(1)
    ends = held.mazes.ends @ [grid, 1]
    between = np.ones((len(held), cells), bool)
    between[np.arange(len(held))[:, None], ends] = False

    def explained(guess: Array) -> Array:
        return np.asarray(1 - np.square(guess - steps).mean(-1) / steps.var())

    def far(prompts: Prompts) -> Array:
        return np.asarray(prompts.mazes.ends[:, 1] - prompts.here)

    line = np.polyfit(np.abs(far(learn)).sum(1), y[:, cells], 1)
    apart = far(held)
    vertical = np.abs(apart[:, 0]) >= np.abs(apart[:, 1])
    greedy = np.where(vertical, np.where(apart[:, 0] < 0, 0, 3), np.where(apart[:, 1] < 0, 1, 2))
    commonest = y[:, cells + 1 :].sum(0).argmax()
    return RouteProbes(
        position, site, len(learn), len(held),
        np.array([_auc(layer[:, :cells][between], on[between]) for layer in made]),
        ((made[..., :cells] > 0.5) == on).mean((1, 2)),
        float(((y[:, :cells].mean(0) > 0.5) == on).mean()),
        ((control[..., :cells] > 0.5) == on).mean((1, 2)),
        explained(made[..., cells]), float(explained(np.polyval(line, np.abs(apart).sum(1)))),
        explained(control[..., cells]),
        (made[..., cells + 1 :].argmax(-1) == way).mean(-1), float((way == commonest).mean()),
        float((way == greedy).mean()), (control[..., cells + 1 :].argmax(-1) == way).mean(-1),
    )  # fmt: skip


__all__ = [
    "KEPT", "RouteProbes", "WallProbes", "WallScores", "best_position", "by_position", "inner_walls", "route_probes",
    "spanning_trees", "untrained", "wall_probes", "wall_probes_along", "walls_of",
]  # fmt: skip
