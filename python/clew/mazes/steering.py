"""What models do with what probes read: a wall's direction is flipped and erased (beyond arXiv:2312.02566)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import edit
from ..errors import ConfigError, ShapeError
from ..train.data import generator
from .causal import Margin, along_the_way, asked, behind, effect_of, pieces, share
from .checks import layers_of, mazes_of, names_of
from .counterfactual import crosses, legal_steps, rebuilt, start_prompts, walks
from .evaluate import Rate, judge, rate_of
from .maze import Maze, Mazes
from .probes import WallProbes, inner_walls, walls_of
from .prompts import BEFORE, FIXED, Estimate, Prompts, bootstrap, check_length, place_name, tokens_until
from .rollout import tokenizer_of
from .tokens import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..edit import Edit
    from ..model import Model

Array = NDArray[Any]

WALL_KINDS = ("open", "close")
"""A wall between two cells of the way is made to look open; an open edge of the way is made to look like a wall."""
CHANGES = ("flip", "erase", "other wall", "random")
"""The wall's direction flipped, or erased; as far along another wall's direction, or along a random one."""


# ---- Wall flips -----------------------------------------------------------------------------------------------------


def with_reading(x: ArrayLike, weight: ArrayLike, bias: ArrayLike, level: ArrayLike) -> Array:
    """Streams [..., d] moved along a probe's direction, as little as possible, to where it reads `level`.

    weight: [..., d], bias, level: [...]. With level = bias the direction is projected out. Raises ConfigError for a
    weight of zeros, which reads its bias wherever the stream is.

    >>> x = with_reading([[1.0, 2.0], [3.0, 0.0]], [1.0, 1.0], 0.5, 0.25)
    >>> (x @ [1.0, 1.0] + 0.5).tolist()
    [0.25, 0.25]
    """
    array, w = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    squares = (w * w).sum(-1)
    if not (squares > 0).all():
        raise ConfigError("with_reading: a probe of zeros has no direction to move a stream along")
    off = np.asarray(level) - ((array * w).sum(-1) + bias)
    return np.asarray(array + (off / squares)[..., None] * w)


@dataclass(frozen=True)
class WallFlip:
    """One change of the stream at one layer, and what the model then does."""

    kind: str
    """"open" or "close"."""
    layer: int
    change: str
    """One of CHANGES."""
    moved: Rate
    """Of the mazes where the unchanged model does not: walks that go through the wall ("open"), or that no longer take
    the edge ("close")."""
    valid: Rate
    """Walks that are possible in the maze as it is."""
    changed_valid: Rate
    """Walks that are possible in the maze as the probe now reads it."""
    changed_exact: Rate
    """Walks that are its shortest way (of "close" in a tree there is none)."""
    legal: Estimate
    """Share of a walk's steps that the maze as it is or as it is read allows, mean: is the model still walking?"""
    margin: Estimate
    """Change of the margin of the cell behind the wall or edge, where the true way has come to it."""
    effect: Estimate
    """Cohen's d of that change."""
    read: float
    """Share of mazes where the wall's probe, at its own token, then says the opposite of what it said."""
    moved_each: Array = field(repr=False, metadata={"json": False})
    """Bool [mazes of `moved`]"""
    changes: Array = field(repr=False, metadata={"json": False})
    """Of the margin [mazes]"""


@dataclass(frozen=True)
class WallFlips:
    """Wall probes' directions put to use; made by :func:`flip_walls`. Dictionaries are by kind."""

    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    method: str
    """Of the probes."""
    position: str
    """Where they read, and where the changes begin."""
    site: str
    """What they read of each layer, and what is changed."""
    scale: float
    """By how much a reading is moved: 1 is the way from "open" to "wall"."""
    n: dict[str, int]
    """Mazes that have such a wall or edge."""
    crossed: dict[str, Rate]
    """Walks of the unchanged model that go through the wall ("open"), or take the edge ("close")."""
    valid: dict[str, Rate]
    """Of the unchanged model."""
    margin: dict[str, Estimate]
    """Of the cell behind the wall or edge, unchanged model."""
    accuracy: dict[str, Array]
    """How often the probe reads these walls right, [layer of `layers`, at its own token and at cells of the way]."""
    push: Array
    """Length of what "flip" adds, over the stream's mean length at the probe's token [layer of `layers`]."""
    rows: tuple[WallFlip, ...]
    contrast: dict[str, dict[str, list[Estimate]]]
    """kind → control → rate of moved walks under "flip" less that under the control, by layer."""
    left_out: Array
    """Walls that are not flipped, int [walls, 2, 2]: they never vary in the mazes that the probes learned from, so that
    their probe is 0 at one of the layers, and has no direction."""

    @property
    def place(self) -> str:
        """Position and site, as tables and figures name them."""
        return place_name(self.position, self.site)

    def row(self, kind: str, layer: int, change: str) -> WallFlip:
        """One row. Raises ConfigError for one that there is not."""
        for row in self.rows:
            if (row.kind, row.layer, row.change) == (kind, layer, change):
                return row
        raise ConfigError(f"no row of kind {kind!r}, layer {layer} and change {change!r}")

    def table(self) -> str:
        """All rows as text."""
        lines = [f"not flipped, their probes are 0: {_wall_names(self.left_out)}"] if len(self.left_out) else []
        for kind in self.kinds:
            what = "walks through the wall" if kind == "open" else "avoids the edge"
            lines += [
                f"{kind}: {self.n[kind]} mazes, from {self.place} on, scale {self.scale:g}; unchanged: "
                f"crosses {self.crossed[kind]}, valid {100 * self.valid[kind].value:.1f} %, margin "
                f"{self.margin[kind].value:+.2f}",
                f"layer  change      {what + ' [95 %], %':<38} valid  valid if so  exact if so  legal steps  "
                "margin                      d  reads flipped",
            ]
            for row in self.rows:
                if row.kind == kind:
                    numbers = [r.value for r in (row.valid, row.changed_valid, row.changed_exact, row.legal)]
                    shown = "  ".join(f"{100 * r:{w}.1f}" for r, w in zip(numbers, (5, 11, 11, 11), strict=True))
                    lines.append(
                        f"{row.layer:<5}  {row.change:<10}  {row.moved!s:<38} {shown}  {row.margin!s:<25} "
                        f"{row.effect.value:+.2f}  {100 * row.read:.0f} %"
                    )
            for control, estimates in self.contrast[kind].items():
                shown = "; ".join(f"L{n} {share(e)}" for n, e in zip(self.layers, estimates, strict=True))
                lines.append(f"flip − {control}, points: {shown}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def figure(self) -> Figure:
        """Rates by layer and change; needs matplotlib (`clew[plot]`)."""
        from .causal_figures import wall_flips

        return wall_flips(self)


def _wall_names(walls: Array) -> str:
    """Pairs of cells [n, 2, 2] as text."""
    return ", ".join(f"({a},{b})–({c},{d})" for (a, b), (c, d) in walls.tolist())


def _directed(probes: WallProbes, layers: list[int]) -> Array:
    """Walls whose probe has a direction at all these layers, bool [walls]: what never varied while they learned leaves
    a weight of zeros, or of rounding."""
    weight = probes.probes["ridge"].weight[layers]
    length = np.sqrt((weight * weight).sum(1))  # [layer, wall]
    return np.asarray((length > 1e-9 * length.max(1, keepdims=True)).all(0))


@dataclass(frozen=True)
class _Case:
    """Mazes, in each one wall or edge, and the mazes in which it is the other way round."""

    mazes: Mazes
    changed: Mazes
    wall: Array
    """Number of the wall among :func:`inner_walls` [n]."""
    pair: Array
    """The cells that it parts or joins, in the order of the way, [n, 2, 2]."""
    prompts: Prompts
    """The true way up to the first of the two; the second one is what is asked about."""


def _order_of(ms: Mazes) -> Array:
    """Place of each cell on the way, −1 elsewhere, [n, cells]."""
    side = int(ms.grids[0])
    path = ms.batch[4].astype(int) @ [side, 1]
    out = np.full((len(ms), side * side), -1)
    maze, step = np.nonzero(np.arange(path.shape[1]) < ms.path_lengths[:, None])
    out[maze, path[maze, step]] = step
    return out


def _case(ms: Mazes, kind: str, tok: Tokenizer, seed: int, directed: Array | bool = True) -> _Case:
    side = int(ms.grids[0])
    walls, there = inner_walls(side), walls_of(ms)
    ends = walls @ [side, 1]
    order = _order_of(ms)
    at = order[:, ends]  # [n, wall, 2]
    on_way = (at >= 0).all(-1)
    apart_by = np.abs(at[..., 0] - at[..., 1])
    noise = generator(seed, WALL_KINDS.index(kind), 3).random(there.shape)
    if kind == "open":  # the shortcut that saves most
        good, worth = there & on_way & (apart_by > 1), apart_by + noise
    else:
        good, worth = ~there & on_way & (apart_by == 1), noise
    lost = good.any(0) & np.logical_not(directed)
    good = good & directed
    kept = np.flatnonzero(good.any(1))
    if len(kept) < 2:
        needed = "a wall between two cells of its way" if kind == "open" else "a way of two cells"
        if lost.any():
            raise ConfigError(
                f"flip_walls: of {len(ms)} mazes {len(kept)} have {needed} whose probe has a direction; 0, as these "
                f"walls never vary in the mazes that the probes learned from: {_wall_names(walls[lost])}"
            )
        raise ConfigError(f"flip_walls: of {len(ms)} mazes {len(kept)} have {needed}: more mazes are needed")
    wall = np.where(good, worth, -1.0).argmax(1)[kept]
    own, rows = ms[kept], np.arange(len(kept))
    forward = at[kept, wall, 0] < at[kept, wall, 1]
    pair = np.where(forward[:, None, None], walls[wall], walls[wall][:, ::-1])
    step = at[kept, wall].min(1)
    edges, n_edges = own.batch[1].astype(int), own.batch[2].astype(int)
    if kind == "open":
        edges = np.concatenate([edges, np.zeros_like(edges[:, :1])], axis=1)
        edges[rows, n_edges] = pair
        changed = rebuilt(own, edges, n_edges=n_edges + 1)
    else:
        slot = ((np.sort(edges @ [side, 1], 2) == ends[wall][:, None]).all(-1)).argmax(1)
        edges[rows, slot] = edges[rows, n_edges - 1]
        changed = rebuilt(own, edges, n_edges=n_edges - 1)
    tokens = tokens_until(own, tok, step)
    targets = tok.cell_ids[pair[:, 1, 0], pair[:, 1, 1]].astype(int)
    return _Case(own, changed, wall, pair, Prompts(own, tokens, step, pair[:, 0], pair[:, 1], targets))


def _others(case: _Case, side: int, seed: int, directed: Array | bool = True) -> Array:
    """Of each maze another wall in the same state that touches neither the way nor the wall; else any other one whose
    probe has a direction."""
    walls = inner_walls(side) @ [side, 1]
    state = walls_of(case.mazes)
    rows = np.arange(len(case.wall))
    alike = state == state[rows, case.wall][:, None]
    alike[rows, case.wall] = False
    away = (_order_of(case.mazes)[:, walls] < 0).all(-1)
    noise = generator(seed, 5).random(alike.shape)
    worth = np.where(directed, np.where(alike, noise + 2 * away, -1 + 0.5 * noise), -2.0)
    worth[rows, case.wall] = -1.5  # itself, where there is no other
    return np.asarray(worth.argmax(1))


def flip_walls(
    model: Model,
    ms: Mazes | Iterable[Maze],
    probes: WallProbes,
    *,
    layers: Iterable[int] | int | None = None,
    kinds: Sequence[str] = WALL_KINDS,
    changes: Sequence[str] = CHANGES,
    scale: float = 1.0,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> WallFlips:
    """Makes one wall look open, or one edge look like a wall, along a probe's direction, and lets the model walk.

    "flip" adds ±scale · p / ‖p‖² to the stream where the probes read it (after a layer, or within it: `site` of
    :func:`clew.mazes.wall_probes`), at the token that they read and at every position behind it, those that are still
    to be generated included: the probe reads ±scale more. Of probes at <PATH_START> these are the way's positions; of
    probes at a token before it, <ORIGIN_END> say, the tokens between are changed as well. "erase" moves each of these
    positions along p to the probe's mean reading of that place, one for each token up to <PATH_START> and one for cells
    of the way: nothing of the wall is left for the probe to read there. "open" takes, of the walls between two cells of
    the way, the one whose opening shortens it most; "close" a random edge of the way.

    Confounds that are controlled here:

    - *Later tokens* could read the adjacency list again: the direction is changed at every position from the probes'
      token on, and each layer is tried, so that those behind which it is not read again are among them.
    - *Any push* does harm: "other wall" pushes as far along the same layer's direction of another wall in the same
      state, away from the way; "random" as far along a random direction. The result is the contrast with them.
    - *A wrecked model* walks through walls as well: steps that both the true and the changed maze allow are counted
      ("legal"), walks that are possible, or shortest, in the maze as the probe now reads it, and only mazes count in
      which the unchanged model does otherwise.
    - *Probes that learned these mazes*: they come from :func:`clew.mazes.wall_probes`, which learns from others.
    - *Directions that mean nothing at later positions*: `accuracy` says how often the probe is right there.

    Parameters
    ----------
    model, ms, tokenizer
        A model of maze tokens; mazes to measure on, of one grid, held out from what the probes learned.
    probes
        Ridge probes of this model at <PATH_START>, or at a token before it: the changes begin where they read.
    layers
        Where the stream is changed, one at a time; None: at all.
    kinds, changes
        Of WALL_KINDS and of CHANGES.
    scale
        By how much the reading moves, above 0.
    seed
        Of walls and directions.

    Raises
    ------
    TokenError
        A model of other tokens.
    ConfigError
        Too few mazes, a layer that there is not, probes that are no ridge probes, or that read cells of the path, or of
        walls that never varied in the mazes they learned from where no other wall is left, no such kind or change.
    ShapeError
        Mazes of several grids; probes of another grid or width.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((100, "train"), (20, "test")))
    >>> probes = mazes.wall_probes(model, train, test, methods=["ridge"])
    >>> found = mazes.flip_walls(model, test, probes, layers=[1], kinds=["close"])
    >>> found.row("close", 1, "flip").read > 0.8, len(found.rows)
    (True, 4)
    """
    what = "flip_walls"
    tok = tokenizer_of(model, tokenizer)
    batch = mazes_of(ms, what)
    chosen = layers_of(layers, model.config.n_layers, what)
    kinds, changes = names_of(kinds, f"{what}: kinds", WALL_KINDS), names_of(changes, f"{what}: changes", CHANGES)
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.floating) or not 0 < scale < np.inf:
        raise ConfigError(f"{what}: scale = {scale!r}: a number above 0")
    if not isinstance(probes, WallProbes):
        raise ConfigError(f"{what}: probes: WallProbes, as wall_probes makes them, not {type(probes).__name__}")
    if "ridge" not in probes.probes or probes.position not in FIXED:
        held, fixed = ", ".join(probes.probes), ", ".join(FIXED)
        raise ConfigError(
            f"{what}: probes by {held} at {probes.position!r}: ridge probes are needed, at one of {fixed}"
        )
    side, probe = int(batch.grids[0]), probes.probes["ridge"]
    if probes.grid != side:
        raise ShapeError(f"{what}: probes of {probes.grid} × {probes.grid} mazes, mazes of {side} × {side}")
    if probe.weight.shape[:2] != (model.config.n_layers, model.config.d_model):
        raise ShapeError(
            f"{what}: probes of {probe.weight.shape[0]} layers of width {probe.weight.shape[1]}, "
            f"{model.config.model_name} has {model.config.n_layers} of width {model.config.d_model}"
        )

    directed = _directed(probes, chosen)
    if "other wall" in changes and directed.sum() < 2:
        raise ConfigError(
            f"{what}: of the probes {directed.sum()} have a direction, the others are 0, as their walls never vary in "
            f'the mazes that they learned from: {_wall_names(probes.walls[~directed])}; "other wall" needs two'
        )
    rows: list[WallFlip] = []
    n, crossed, valid, margin, accuracy = {}, {}, {}, {}, {}
    contrast: dict[str, dict[str, list[Estimate]]] = {}
    push = np.zeros((len(kinds), len(chosen)))
    for which, kind in enumerate(kinds):
        case = _case(batch, kind, tok, seed, directed)
        check_length(model, case.prompts)
        flips = _Flips(model, case, probes, chosen, float(scale), tok, seed, directed)
        before = walks(model, start_prompts(case.mazes, tok), tok, side * side)
        took = crosses(before, case.pair)
        eligible = ~took if kind == "open" else took
        n[kind], crossed[kind] = len(case.wall), rate_of(took)
        valid[kind] = rate_of(judge(before, case.mazes).valid)
        contrast[kind] = {c: [] for c in changes if c in ("other wall", "random")} if "flip" in changes else {}
        is_wall = kind == "open"
        accuracy[kind] = np.stack(
            [((flips.first > 0.5) == is_wall).mean(1), np.where(is_wall, flips.above, 1 - flips.above).mean(1)], axis=1
        )
        for k, layer in enumerate(chosen):
            push[which, k] = np.sqrt((flips.vectors(layer, "flip") ** 2).sum(1)).mean() / flips.size[k]
            plain, margins = asked(model, case.prompts, Margin, partial(flips.prompted, layer, changes))
            margin[kind] = bootstrap(plain, seed=seed)
            found = {
                change: _walked(flips, kind, layer, change, after - plain, eligible, seed)
                for change, after in zip(changes, margins, strict=True)
            }
            rows += found.values()
            for control, estimates in contrast[kind].items():
                gained = found["flip"].moved_each.astype(float) - found[control].moved_each
                estimates.append(bootstrap(gained, seed=seed) if len(gained) else Estimate(np.nan, np.nan, np.nan, 0))
    return WallFlips(
        tuple(chosen), tuple(kinds), "ridge", probes.position, probes.site, float(scale), n, crossed, valid, margin,
        accuracy, push.mean(0), tuple(rows), contrast, probes.walls[~directed],
    )  # fmt: skip


class _Flips:
    """The changes of one case: vectors to add, and readings to set."""

    def __init__(
        self, model: Model, case: _Case, probes: WallProbes, layers: list[int], scale: float, tok: Tokenizer, seed: int,
        directed: Array | bool = True,
    ) -> None:  # fmt: skip
        self.model, self.case, self.scale, self.tok, self.layers = model, case, scale, tok, layers
        self.probe, self.back, self.site = probes.probes["ridge"], BEFORE.get(probes.position, 0), probes.site
        self.sign = np.where(walls_of(case.mazes)[np.arange(len(case.wall)), case.wall], -1.0, 1.0)
        self.other = _others(case, probes.grid, seed, directed)
        noise = generator(seed, 4).standard_normal((len(case.wall), model.config.d_model))
        self.noise = noise / np.sqrt((noise**2).sum(1, keepdims=True))
        self._read()

    def _read(self) -> None:
        n, n_layers, n_walls = len(self.case.wall), len(self.layers), self.probe.weight.shape[2]
        sites = [(self.site, layer) for layer in self.layers]
        self.first = np.zeros((n_layers, n))
        """Reading of each maze's wall at the probes' token."""
        self.above = np.zeros((n_layers, n))
        """Share of the way's cells where it reads more than ½."""
        self.levels = np.zeros((n_layers, self.back + 2, n_walls))
        """Mean readings of every wall at each token from the probes' to <PATH_START>, and over cells of the way."""
        self.size = np.zeros(n_layers)
        """Mean length of the stream at the probes' token."""
        for rows in pieces(n):
            part = self.case.mazes[rows]
            texts, maze, at, place = along_the_way(part, self.tok, self.back)
            run = self.model.run(texts, capture=sites, logits=None)
            k, wall = part.path_lengths, self.case.wall[rows][maze]
            for i, layer in enumerate(self.layers):
                x = run[self.site, layer][maze, at].astype(np.float64)
                said = self.probe.layer(layer)(x)
                start, way = place == 0, place > self.back
                own = said[np.arange(len(maze)), wall]
                self.first[i, rows] = own[start]
                self.above[i, rows] = np.bincount(maze[way], own[way] > 0.5) / k
                self.levels[i, :-1] += said[~way].reshape(len(part), self.back + 1, n_walls).sum(0)
                self.levels[i, -1] += np.add.reduceat(said[way], np.cumsum(k) - k).T @ (1 / k)
                self.size[i] += np.sqrt((x[start] ** 2).sum(1)).sum()
        self.levels /= n
        self.size /= n

    def vectors(self, layer: int, change: str) -> Array:
        """What "flip", "other wall" and "random" add to each maze's stream [n, d_model], all of one length."""
        w = self.probe.weight[layer][:, self.case.wall].T
        flip = (self.sign * self.scale / (w * w).sum(1))[:, None] * w
        length = np.sqrt((flip**2).sum(1, keepdims=True))
        if change == "flip":
            return np.asarray(flip)
        if change == "random":
            return np.asarray(length * self.noise)
        other = self.probe.weight[layer][:, self.other].T * self.sign[:, None]
        return np.asarray(length * other / np.sqrt((other**2).sum(1, keepdims=True)))

    def read(self, layer: int, change: str) -> float:
        """Share of mazes whose reading at the probes' token is then on the other side of ½."""
        i = self.layers.index(layer)
        if change == "erase":
            after = self.levels[i, 0, self.case.wall]
        else:
            after = self.first[i] + (self.vectors(layer, change) * self.probe.weight[layer][:, self.case.wall].T).sum(1)
        return float(((after > 0.5) != (self.first[i] > 0.5)).mean())

    def _edits(self, layer: int, change: str, rows: Array, positions: Array, real: Array) -> list[Edit]:
        """At positions [n, room] from the probes' token on, of mazes `rows`; only where `real`."""
        site = (self.site, layer)
        if change != "erase":
            value = self.vectors(layer, change)[rows][:, None] * real[..., None]
            return [edit.add(site, value, positions=positions)]
        wall, levels = self.case.wall[rows], self.levels[self.layers.index(layer)]
        weight, bias = self.probe.weight[layer][:, wall].T, self.probe.bias[layer][wall]
        starts = positions[:, 0]

        def erase(stream: Array, name: str) -> Array:
            """Prompts are shown whole, new tokens one at a time."""
            last = self.back + 1
            place = np.arange(stream.shape[1]) - (starts[:, None] if stream.shape[1] > 1 else -last)
            level = levels[np.clip(place, 0, last), wall[:, None]]
            moved = with_reading(stream, weight[:, None], bias[:, None], level)
            return np.where((place >= 0)[..., None], moved, stream).astype(stream.dtype)

        return [edit.call(site, erase)]

    def prompted(self, layer: int, changes: Sequence[str], part: slice) -> list[list[Edit]]:
        """Edits of the true way up to the wall, by change."""
        positions, counts = behind(self.case.prompts, part, self.back)
        real = np.arange(positions.shape[1]) < counts[:, None]
        rows = np.arange(part.start, part.stop)
        return [self._edits(layer, change, rows, positions, real) for change in changes]

    def walk(self, layer: int, change: str) -> list[Array]:
        """The paths that the model walks."""
        side = int(self.case.mazes.grids[0])

        def edits(rows: Array, positions: Array) -> list[Edit]:
            return self._edits(layer, change, rows, positions, np.ones(positions.shape, bool))

        return walks(self.model, start_prompts(self.case.mazes, self.tok), self.tok, side * side, edits, self.back)


def _walked(flips: _Flips, kind: str, layer: int, change: str, changes: Array, eligible: Array, seed: int) -> WallFlip:
    case = flips.case
    paths = flips.walk(layer, change)
    crossed = crosses(paths, case.pair)
    moved = (crossed if kind == "open" else ~crossed)[eligible]
    as_is, as_read = judge(paths, case.mazes), judge(paths, case.changed)
    legal = legal_steps(paths, case.changed if kind == "open" else case.mazes)
    return WallFlip(
        kind, layer, change, rate_of(moved), rate_of(as_is.valid), rate_of(as_read.valid), rate_of(as_read.exact),
        bootstrap(np.append(legal, 0.0) if np.isnan(legal).all() else legal, seed=seed), bootstrap(changes, seed=seed),
        effect_of(changes, seed), flips.read(layer, change), moved,
        changes,
    )  # fmt: skip


__all__ = ["CHANGES", "WALL_KINDS", "WallFlip", "WallFlips", "flip_walls", "with_reading"]
