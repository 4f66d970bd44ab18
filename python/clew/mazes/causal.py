"""What adjacency heads do: they are ablated, and patched between mazes, against other heads (beyond arXiv:2312.02566,
whose authors call attribution, adjacency heads and probes correlational).

    output_norms(model, reference)                                              → [layer, head]
    matched_heads(norms, heads)                                                 → heads of the same layers
    ablate_heads(model, ms, reference, heads=3, draws=3, seed=0)                → HeadAblation
    minimal_pairs(model, ms, position="nonend", seed=0)                         → MinimalPairs
    patch_heads(model, ms, reference, heads=3, draws=3, seed=0)                 → HeadPatching
    flip_walls(model, ms, probes, layers=None, kinds=("open", "close"), scale=1.0, seed=0)      → WallFlips
    patch_path_start(model, ms, reference, kinds=("walls", "ends"), layers=None, seed=0)        → PathStartPatching

ms are mazes to measure on (held out), reference others of the same grid (of the training split) that rank the heads,
give means and stand-ins: nothing is chosen on the mazes that it is measured on. Every result has .table() and
.figure(), and its numbers as JSON through :func:`clew.experiment.plain`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import edit
from ..descent.steps import spearman
from ..errors import ConfigError, ShapeError
from ..inputs import check_seed, real_array
from ..metrics import Metric
from ..train.data import generator
from .checks import Head, Heads, apart, check_heads, head_name, heads_within, mazes_of, names_of, share_of, whole_number
from .counterfactual import legal_steps, start_prompts, walks
from .evaluate import Rate, judge, rate_of
from .heads import adjacency_heads
from .maze import Maze, Mazes
from .prompts import Estimate, Prompts, bootstrap, check_length, path_prompts
from .rollout import tokenizer_of
from .tokens import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..edit import Edit
    from ..model import Model

Array = NDArray[Any]

PIECE = 64
"""Prompts whose activations are held at a time."""
METHODS = ("mean", "resample")
"""What takes a head's place: its mean over reference mazes, or what it wrote in one of them."""
MOST_GROUPS = 1000
"""Of random heads, which are compared with the adjacency heads."""


# ---- Measures -------------------------------------------------------------------------------------------------------


class Margin(Metric):
    """The logit of one token less the mean of all other logits: what no constant that is added to all logits changes.

    >>> Margin([2])(np.array([[0.0, 1.0, 5.0]]))
    array([4.5])
    """

    name = "margin"

    def __init__(self, ids: ArrayLike) -> None:
        self.ids = np.asarray(ids, int)

    def __call__(self, logits: ArrayLike, examples: ArrayLike | None = None) -> Array:
        x = np.asarray(logits, np.float64)
        x = x[:, -1] if x.ndim == 3 else x
        right = x[np.arange(len(x)), self.ids if examples is None else self.ids[np.asarray(examples)]]
        return np.asarray(right - (x.sum(-1) - right) / (x.shape[1] - 1))


class Likeliest(Margin):
    """1 where one token's logit is the highest."""

    name = "likeliest"

    def __call__(self, logits: ArrayLike, examples: ArrayLike | None = None) -> Array:
        x = np.asarray(logits)
        x = x[:, -1] if x.ndim == 3 else x
        return np.asarray(x.argmax(-1) == (self.ids if examples is None else self.ids[np.asarray(examples)]), float)


def standardised(changes: Array) -> float:
    """Cohen's d of paired changes: their mean over their standard deviation (Cohen 1988); 0 where nothing changes."""
    spread = changes.std(ddof=1) if len(changes) > 1 else 0.0
    return float(changes.mean() / spread) if spread > 0 else 0.0


def effect_of(changes: Array, seed: int) -> Estimate:
    """Cohen's d of paired changes [n] with its bootstrap interval."""
    return bootstrap(changes[:, None], lambda x: standardised(x[:, 0]), seed=seed)


def share(estimate: Estimate) -> str:
    """An estimate of a difference of rates, in percentage points."""
    return f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


def pieces(n: int, size: int = PIECE) -> Iterator[slice]:
    """Rows, some at a time."""
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


# ---- Heads and what they write --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """What heads wrote at the positions of the paths, from <PATH_START> to the target, in reference mazes."""

    z: Array
    """[layer, row, head, d_head]"""
    norms: Array
    """Mean length of each head's output z W_O, [layer, head]."""
    spread: Array
    """Mean length of what it writes less its mean: of the change that mean ablation makes, [layer, head]."""

    @property
    def mean(self) -> Array:
        """[layer, head, d_head], float64."""
        return np.asarray(self.z.mean(1, dtype=np.float64))


def along_the_way(ms: Mazes, tok: Tokenizer, back: int = 0) -> tuple[list[Array], Array, Array, Array]:
    """Tokens of each maze without <PATH_END>; and of every place from <PATH_START>, or so many tokens before it, to the
    target, in order, its maze, its position, and its number from the first on [places]."""
    texts = [row[:-1] for row in tok.encode_batch(ms)]
    count = ms.path_lengths + 1 + back
    maze = np.repeat(np.arange(len(texts)), count)
    place = np.arange(len(maze)) - np.repeat(np.cumsum(count) - count, count)
    begin = np.array([len(row) for row in texts]) - count
    return texts, maze, begin[maze] + place, place


def pool_of(model: Model, reference: Mazes, tok: Tokenizer) -> Pool:
    """Runs the model on reference mazes with their paths."""
    parts: list[Array] = []
    for rows in pieces(len(reference)):
        texts, maze, at, _ = along_the_way(reference[rows], tok)
        parts.append(model.run(texts, capture="z", logits=None).stack("z")[:, maze, at])
    z = np.concatenate(parts, axis=1)
    mean = z.mean(1, dtype=np.float64, keepdims=True).astype(z.dtype)

    def length(x: Array) -> Array:
        """Mean of ‖x W_O‖, from W_O W_Oᵀ: no array as wide as the stream."""
        gram = np.einsum("lhed,lhfd->lhef", model.W_O, model.W_O, dtype=np.float64)
        squares = np.einsum("lrhe,lhef,lrhf->lrh", x, gram, x, optimize=True)
        return np.asarray(np.sqrt(np.maximum(squares, 0)).mean(1))

    return Pool(z, length(z), length(z - mean))


def output_norms(model: Model, reference: Mazes | Iterable[Maze], *, tokenizer: Tokenizer | None = None) -> Array:
    """Mean length of what each head adds to the stream, ‖z W_O‖, at the positions from <PATH_START> to the target.

    Returns [layer, head]. Raises ConfigError for fewer than two mazes, TokenError as :func:`clew.mazes.solve`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2), seed=0)
    >>> mazes.output_norms(model, mazes.generate(4, grid=3)).shape
    (2, 4)
    """
    tok = tokenizer_of(model, tokenizer)
    return pool_of(model, mazes_of(reference, "output_norms"), tok).norms


def matched_heads(norms: ArrayLike, heads: Iterable[Head], seed: int | None = None) -> Heads:
    """For each head another one of the same layer, none of them twice: controls that are matched by layer and norm.

    Parameters
    ----------
    norms
        Mean length of every head's output, [layer, head]: see :func:`output_norms`.
    heads
        (layer, head) pairs; none of them is a control.
    seed
        None: the pairs whose norms are closest, on a logarithmic scale (greedily, the closest pair of a layer first).
        A number: heads of the same layers at random.

    Raises ShapeError for norms of another shape, ConfigError for norms that are none, heads that are not there, or a
    layer that has too few others.

    >>> norms = np.array([[1.0, 5.0, 1.1, 4.0]])
    >>> matched_heads(norms, [(0, 0)]), matched_heads(norms, [(0, 1), (0, 0)])
    (((0, 2),), ((0, 3), (0, 2)))
    """
    table = real_array(norms, "matched_heads: norms")
    if table.ndim != 2:
        raise ShapeError(f"matched_heads: norms {list(table.shape)}, expected [layer, head]")
    if not (np.isfinite(table) & (table >= 0)).all():
        raise ConfigError("matched_heads: norms hold a negative number, NaN or infinity")
    wanted = heads_within(heads, table.shape[0], table.shape[1], "the table of norms")
    found: dict[Head, Head] = {}
    for layer in sorted({layer for layer, _ in wanted}):
        mine = [head for at, head in wanted if at == layer]
        others = [head for head in range(table.shape[1]) if head not in mine]
        if len(others) < len(mine):
            raise ConfigError(
                f"layer {layer} has {table.shape[1]} heads, {len(mine)} of them chosen: too few others to match them"
            )
        if seed is not None:
            picked = generator(check_seed(seed), layer).permutation(others)[: len(mine)]
            found |= {(layer, a): (layer, int(b)) for a, b in zip(mine, picked, strict=True)}
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.abs(np.log(table[layer, mine])[:, None] - np.log(table[layer, others]))
        gap = np.nan_to_num(gap, nan=0.0, posinf=1e300)
        for _ in mine:
            i, j = np.unravel_index(gap.argmin(), gap.shape)
            found[layer, mine[i]] = (layer, others[j])
            gap[i], gap[:, j] = np.inf, np.inf
    return tuple(found[head] for head in wanted)


def choose_heads(
    model: Model, reference: Mazes, heads: int | Iterable[Head], tok: Tokenizer, least_mass: float, seed: int,
    position: str = "nonend",
) -> tuple[Heads, Array]:  # fmt: skip
    """The heads that are meant, and every head's adjacency score [layer, head] at a position of the reference mazes."""
    found = adjacency_heads(model, reference, position=position, seed=seed, draws=2, tokenizer=tok)
    if not isinstance(heads, int | np.integer):
        return check_heads(model, heads), found.score
    most = model.config.n_layers * (model.config.n_heads // 2)
    if isinstance(heads, bool) or not 1 <= heads <= most:
        raise ConfigError(f"heads = {heads}: 1 to {most}, so that as many are left to match them")
    out: list[Head] = []
    for head in found.ranked(least_mass):  # half of a layer's heads at most: the others are its controls
        if sum(layer == head[0] for layer, _ in out) < model.config.n_heads // 2:
            out.append(head)
    return tuple(out[:heads]), found.score


def control_groups(norms: Array, heads: Heads, draws: int, seed: int) -> list[tuple[str, Heads]]:
    """The adjacency heads, the controls with the closest norms, and random ones of the same layers: at most `draws`,
    no two of which are the same heads."""
    out = [("adjacency", heads), ("matched", matched_heads(norms, heads))]
    seen: set[frozenset[Head]] = set()
    seed = check_seed(seed)
    for i in range(20 * draws):
        group = matched_heads(norms, heads, seed + i)
        if len(seen) < draws and frozenset(group) not in seen:
            seen.add(frozenset(group))
            out.append(("random", group))
    return out


def names(heads: Iterable[Head]) -> str:
    """Heads as they are written: L3H1."""
    return ", ".join(map(head_name, heads))


# ---- Ablation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ablation:
    """What happens without some heads. Changes are those from the unchanged model on the same mazes."""

    group: str
    """"adjacency", "matched" (the same layers, closest norms), "random" (the same layers), or "noise"."""
    method: str
    """"mean" or "resample"; of "noise" heads stay as they are, and "noise" is added to the same layers' output."""
    heads: Heads
    norm: float
    """Sum of the heads' output norms."""
    moved: float
    """Sum of the mean lengths of what mean ablation takes away, or noise adds."""
    margin: Estimate
    """Change of the right next cell's margin over the mean of all other logits, true path before it."""
    effect: Estimate
    """Cohen's d of that change."""
    right: Rate
    """The right next cell is the likeliest token."""
    exact: Rate
    """Rollouts that are the solution."""
    valid: Rate
    legal: Estimate
    """Share of a walk's steps that go to a connected cell, mean over walks."""
    exact_change: Estimate
    """Change of the exact rate."""
    valid_change: Estimate
    legal_change: Estimate
    changes: Array = field(repr=False, metadata={"json": False})
    """Of the margin, each prompt's [prompts]."""
    walked: Array = field(repr=False, metadata={"json": False})
    """Of each walk: exact? valid? share of its steps that are legal [mazes, 3]"""


@dataclass(frozen=True)
class HeadAblation:
    """Adjacency heads against other heads of the same layers; made by :func:`ablate_heads`."""

    heads: Heads
    """The adjacency heads."""
    scores: Array
    """Adjacency score of every head on the reference mazes [layer, head]."""
    norms: Array
    """Mean output norm of every head there [layer, head]."""
    n: int
    """Mazes."""
    n_prompts: int
    """Prompts of which the next cell is asked."""
    margin: Estimate
    """Margin of the unchanged model."""
    right: Rate
    exact: Rate
    valid: Rate
    legal: Estimate
    """Of the unchanged model."""
    rows: tuple[Ablation, ...]
    contrast: dict[str, dict[str, dict[str, Estimate]]]
    """method → group → "margin", "exact", "valid", "legal": what is left without adjacency heads, less what is left
    without the group's, or with noise. Below 0: adjacency heads matter more."""
    each: Array
    """Change of the margin without each head alone, mean-ablated [layer, head]."""
    each_low: Array
    each_high: Array
    score_correlation: Estimate
    """Spearman's ρ over heads between adjacency score and −each: do heads matter as much as they score? The interval
    is a bootstrap over heads."""

    def row(self, group: str, method: str) -> list[Ablation]:
        """The rows of a group and method; "random" has several."""
        return [row for row in self.rows if (row.group, row.method) == (group, method)]

    def table(self) -> str:
        """All rows as text."""
        lines = [
            f"{self.n} mazes, adjacency heads {names(self.heads)}; unchanged: margin {self.margin.value:.2f}, next "
            f"cell {100 * self.right.value:.1f} %, legal steps {100 * self.legal.value:.1f} %, valid {self.valid}, "
            f"exact {self.exact}",
            "heads      method    which               norm  moved  margin [95 %]                 d  next cell  legal "
            "steps [95 %]         valid [95 %]             exact [95 %], %",
        ]
        for row in self.rows:
            changes = [
                f"{100 * value.value:5.1f} ({share(change)})"
                for value, change in (
                    (row.legal, row.legal_change), (row.valid, row.valid_change), (row.exact, row.exact_change)
                )
            ]  # fmt: skip
            lines.append(
                f"{row.group:<10} {row.method:<9} {names(row.heads):<18} {row.norm:5.2f}  {row.moved:5.2f}  "
                f"{row.margin!s:<25} {row.effect.value:+.2f}  {100 * row.right.value:7.1f} %  {'  '.join(changes)}"
            )
        for method, groups in self.contrast.items():
            for group, found in groups.items():
                rates = ", ".join(f"{name} {share(found[name])}" for name in ("legal", "valid", "exact"))
                lines.append(f"adjacency − {group}, {method}: margin {found['margin']}; points: {rates}")
        lines.append(f"Spearman's ρ of score and loss of margin over all heads: {self.score_correlation}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def figure(self) -> Figure:
        """Adjacency score against loss of margin, every head; needs matplotlib (`clew[plot]`)."""
        from .causal_figures import head_ablation

        return head_ablation(self)


def rank_correlation(pairs: Array) -> float:
    """Spearman's correlation of two columns [n, 2], as :func:`bootstrap` asks for it."""
    return spearman(pairs[:, 0], pairs[:, 1])


@dataclass(frozen=True)
class StandIns:
    """Edits that put other values in the place of heads' z."""

    pool: Pool
    draws: Array
    """Row of the pool for each maze and position of its path, int [n, longest]."""
    directions: Array
    """Random ones, of length 1 [many, d_model]."""

    @classmethod
    def drawn(cls, pool: Pool, n: int, longest: int, width: int, rng: np.random.Generator) -> StandIns:
        """Of n mazes with paths of at most so many positions."""
        draws = rng.integers(pool.z.shape[1], size=(n, longest))
        directions = rng.standard_normal((1024, width))
        return cls(pool, draws, directions / np.sqrt((directions**2).sum(1, keepdims=True)))

    def edits(
        self, heads: Heads, method: str, rows: Array, positions: Array, counts: Array | None = None
    ) -> list[Edit]:
        """At positions [n, room] of mazes `rows`; counts: so many of each are real, the last is repeated."""
        mean = self.pool.mean
        index = np.broadcast_to(np.arange(positions.shape[1]), positions.shape)
        if counts is not None:
            index = np.minimum(index, counts[:, None] - 1)
        drawn = self.draws[rows[:, None], index]
        out = []
        for layer, head in heads:
            if method == "noise":
                real = index == np.arange(positions.shape[1])
                noise = self.directions[(drawn + 331 * layer + 97 * head) % len(self.directions)]
                noise = noise * (self.pool.spread[layer, head] * real)[..., None]
                out.append(edit.add(("attn_out", layer), noise, positions=positions))
                continue
            value = mean[layer, head] if method == "mean" else self.pool.z[layer, :, head][drawn][:, :, None]
            out.append(edit.set(("z", layer), value, heads=[head], positions=positions))
        return out


def behind(prompts: Prompts, rows: slice, back: int = 0) -> tuple[Array, Array]:
    """The positions from <PATH_START>, or so many tokens before it, to the end of some prompts [n, longest], the last
    one repeated where there are fewer, and how many there are of each."""
    lengths = np.array([len(t) for t in prompts.tokens[rows]])
    counts = prompts.step[rows] + 2 + back  # <PATH_START>, c_0 … c_step
    return np.minimum((lengths - counts)[:, None] + np.arange(int(counts.max())), lengths[:, None] - 1), counts


def asked(
    model: Model, prompts: Prompts, metric: type[Margin], edits: Callable[[slice], list[list[Edit]]]
) -> tuple[Array, Array]:
    """A metric of the right next cell: of the unchanged model [n], and under each list of edits [variant, n]."""
    plain, changed = [], []
    for rows in pieces(len(prompts)):
        found = model.sweep(prompts.tokens[rows], edits=edits(rows), metric=metric(prompts.targets[rows]))
        plain.append(found.baseline)
        changed.append(found.per_example)
    return np.concatenate(plain), np.concatenate(changed, axis=1)


def ablate_heads(
    model: Model,
    ms: Mazes | Iterable[Maze],
    reference: Mazes | Iterable[Maze],
    heads: int | Iterable[Head] = 3,
    *,
    methods: Sequence[str] = METHODS,
    draws: int = 3,
    least_mass: float = 0.1,
    position: str = "nonend",
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> HeadAblation:
    """Takes the adjacency heads away, and other heads of the same layers, and lets the model go on.

    A head's z is set, at every position from <PATH_START> on, to its mean over the paths of reference mazes, or to what
    it wrote at a random place of one of them ("resample": of all heads of a group, the same place). Measured are the
    margin of the right next cell behind the true path, and rollouts.

    Confounds that are controlled here:

    - *The choice of heads* is made on reference mazes, none of whose walls are in `ms`.
    - *The previous cell of the path* is always at path length 1, so that any previous-token head would look like an
      adjacency head: the score that ranks heads counts the adjacency list's cells alone
      (:func:`clew.mazes.adjacency_heads`); `least_mass` leaves out heads that hardly look there.
    - *Layer and output norm*: later heads act on logits more directly, and long outputs matter more. Each head has a
      control of the same layer with the closest output norm ("matched"), and others of the same layers ("random").
      "noise" is exactly as long: to the same layers' output a random direction is added, as long as what mean ablation
      takes away on average.
    - *Any damage* does harm: therefore contrasts with the controls, not effects alone, are the result, and the mean and
      another maze's output take a head's place, not zero, which no head ever writes.
    - *Later positions* could compute again what one position lost: all from <PATH_START> on are ablated.

    Parameters
    ----------
    model, ms, tokenizer
        A model of maze tokens; mazes to measure on, of one grid.
    reference
        Other mazes of that grid, to rank heads, and for means and stand-ins.
    heads
        How many adjacency heads, the highest scores first (at most half the heads of a layer), or (layer, head) pairs.
    methods
        Of "mean", "resample".
    draws
        How many "random" groups.
    least_mass
        Attention to the adjacency list's cells that an adjacency head has at least.
    position
        Where the next cell is asked for, and heads are ranked, see :func:`clew.mazes.prompts.path_prompts`.
    seed
        Of everything random.

    Raises
    ------
    TokenError
        A model of other tokens.
    ConfigError
        Too few mazes, walls in both batches, heads that there are not, no such method.
    ShapeError
        Mazes of several grids.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=4), seed=0)
    >>> ms, reference = (mazes.generate(8, 4, split=part) for part in ("test", "train"))
    >>> found = mazes.ablate_heads(model, ms, reference, heads=[(1, 0)], draws=1)
    >>> [(row.group, row.method) for row in found.rows][:3], found.each.shape
    ([('adjacency', 'mean'), ('adjacency', 'resample'), ('matched', 'mean')], (2, 4))
    """
    what = "ablate_heads"
    methods = names_of(methods, f"{what}: methods", METHODS)
    draws = whole_number(draws, f"{what}: draws", 0, MOST_GROUPS)
    least_mass = share_of(least_mass, f"{what}: least_mass")
    tok = tokenizer_of(model, tokenizer)
    batch, other = mazes_of(ms, what), mazes_of(reference, f"{what}: reference")
    apart(batch, other, what)
    chosen, scores = choose_heads(model, other, heads, tok, least_mass, seed, position)
    pool = pool_of(model, other, tok)
    groups = control_groups(pool.norms, chosen, draws, seed)
    variants = [(name, hs, method) for name, hs in groups for method in methods]
    if "mean" in methods:
        variants.append(("noise", chosen, "noise"))
    cells = int(batch.grids[0]) ** 2
    rng = generator(seed, 2)
    prompts = path_prompts(batch, tok, position, seed)
    check_length(model, prompts)
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    alone: list[tuple[Heads, str]] = [(((i, j),), "mean") for i in range(n_layers) for j in range(n_heads)]
    stand = StandIns.drawn(pool, len(prompts), cells + 2, model.config.d_model, rng)

    def made(which: Sequence[tuple[Heads, str]]) -> Callable[[slice], list[list[Edit]]]:
        def edits(rows: slice) -> list[list[Edit]]:
            positions, counts = behind(prompts, rows)
            at = np.arange(rows.start, rows.stop)
            return [stand.edits(hs, method, at, positions, counts) for hs, method in which]

        return edits

    sets = [(hs, method) for _, hs, method in variants]
    plain, margins = asked(model, prompts, Margin, made([*sets, *alone]))
    right, rights = asked(model, prompts, Likeliest, made(sets))
    changes, single = margins[: len(sets)] - plain, margins[len(sets) :] - plain

    starts = start_prompts(batch, tok)
    walking = StandIns.drawn(pool, len(batch), cells + 2, model.config.d_model, rng)

    def walked(hs: Heads = (), method: str = "") -> Array:
        """Exact? valid? share of legal steps, [mazes, 3]; of a walk without a step 0."""
        paths = walks(model, starts, tok, cells, lambda rows, at: walking.edits(hs, method, rows, at))
        found = judge(paths, batch)
        return np.stack([found.exact, found.valid, np.nan_to_num(legal_steps(paths, batch))], axis=1).astype(float)

    before = walked()
    rows = []
    known: dict[tuple[frozenset[Head], str], Array] = {}  # a random group may be the matched one
    for (name, hs, method), change, likely in zip(variants, changes, rights, strict=True):
        key = (frozenset(hs), method)
        after = known[key] if key in known else walked(hs, method)
        known[key] = after
        exact, valid, legal = (bootstrap(column, seed=seed) for column in (after - before).T)
        rows.append(Ablation(
            name, method, hs, float(sum(pool.norms[h] for h in hs)), float(sum(pool.spread[h] for h in hs)),
            bootstrap(change, seed=seed), effect_of(change, seed),
            rate_of(likely > 0), rate_of(after[:, 0] > 0), rate_of(after[:, 1] > 0), bootstrap(after[:, 2], seed=seed),
            exact, valid, legal, change, after,
        ))  # fmt: skip
    each = [bootstrap(c, seed=seed) for c in single]
    by_head = [np.array([getattr(e, end) for e in each]).reshape(n_layers, n_heads) for end in ("value", "low", "high")]
    correlation = bootstrap(np.stack([scores.ravel(), -by_head[0].ravel()], 1), rank_correlation, seed=seed)
    return HeadAblation(
        chosen, scores, pool.norms, len(batch), len(prompts), bootstrap(plain, seed=seed), rate_of(right > 0),
        rate_of(before[:, 0] > 0), rate_of(before[:, 1] > 0), bootstrap(before[:, 2], seed=seed), tuple(rows),
        _contrasts(rows, methods, seed), by_head[0], by_head[1], by_head[2], correlation,
    )  # fmt: skip


def _contrasts(
    rows: Sequence[Ablation], methods: Sequence[str], seed: int
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Adjacency heads less each group of controls, on the same mazes; random groups are averaged."""
    out: dict[str, dict[str, dict[str, Estimate]]] = {}
    for method in methods:
        own = next(row for row in rows if (row.group, row.method) == ("adjacency", method))
        out[method] = {}
        for group in ("matched", "random", "noise"):
            others = [row for row in rows if row.group == group and row.method in (method, "noise")]
            if not others or (group == "noise" and method != "mean"):
                continue
            walked = own.walked - np.mean([row.walked for row in others], axis=0)
            margin = own.changes - np.mean([row.changes for row in others], axis=0)
            out[method][group] = {"margin": bootstrap(margin, seed=seed)} | {
                name: bootstrap(column, seed=seed)
                for name, column in zip(("exact", "valid", "legal"), walked.T, strict=True)
            }
    return out


__all__ = [
    "METHODS", "Ablation", "HeadAblation", "Likeliest", "Margin", "ablate_heads", "matched_heads", "output_norms",
]  # fmt: skip
