"""What is moved between mazes: heads' outputs between minimal pairs, and the stream at <PATH_START> (beyond
arXiv:2312.02566)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import edit
from ..errors import ConfigError
from ..metrics import logit_diff
from ..train.data import generator
from .causal import (
    MOST_GROUPS,
    PIECE,
    Likeliest,
    choose_heads,
    control_groups,
    effect_of,
    names,
    pieces,
    pool_of,
    rank_correlation,
    share,
)
from .checks import Head, Heads, apart, layers_of, mazes_of, names_of, share_of, whole_number
from .counterfactual import MinimalPairs, minimal_pairs, padded, rebuilt, same, shuffled, start_prompts, walks
from .evaluate import Rate, judge, rate_of
from .maze import Maze, Mazes
from .prompts import Estimate, bootstrap, check_length
from .rollout import tokenizer_of
from .tokens import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..edit import Edit
    from ..model import Model

Array = NDArray[Any]

PAIR_KINDS = ("walls", "ends")
"""Mazes with the same endpoints and other walls; with the same walls and other endpoints."""
SOURCES = ("other maze", "same maze rewritten", "mean")
"""Where the stream at <PATH_START> comes from: a maze that differs; the same one, its edges listed otherwise; the mean
over reference mazes."""


# ---- Patching between minimal pairs ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """What heads of one maze do in the other of its pair."""

    group: str
    """"adjacency", "matched", "random", or "all" heads of all layers."""
    heads: Heads
    recovered: Estimate
    """Share of the way from the unchanged logit difference to that of the maze that the values come from."""
    effect: Estimate
    """Cohen's d of the change of the logit difference."""
    flipped: Rate
    """The other maze's next cell becomes the likeliest token, of the prompts where the own one was the likelier."""
    changes: Array = field(repr=False, metadata={"json": False})
    """Of the logit difference, each pair's, mean over both directions [pairs]."""


@dataclass(frozen=True)
class HeadPatching:
    """Heads' outputs at the last position, moved between minimal pairs; made by :func:`patch_heads`."""

    heads: Heads
    """The adjacency heads."""
    scores: Array
    """Adjacency score of every head on the reference mazes [layer, head]."""
    n: int
    """Pairs; each is measured in both directions."""
    gap: Estimate
    """Logit difference between the two next cells, own less other, in the unchanged model; nats."""
    right: Rate
    """Prompts whose own next cell is the likeliest token."""
    rows: tuple[Patch, ...]
    contrast: dict[str, Estimate]
    """group → share that adjacency heads recover, less the group's."""
    each: Array
    """Share that each head alone recovers [layer, head]."""
    each_low: Array
    each_high: Array
    score_correlation: Estimate
    """Spearman's ρ over heads between adjacency score and `each`."""

    def row(self, group: str) -> list[Patch]:
        """The rows of a group; "random" has several."""
        return [row for row in self.rows if row.group == group]

    def table(self) -> str:
        """All rows as text."""
        lines = [
            f"{self.n} minimal pairs, both ways; adjacency heads {names(self.heads)}; unchanged: own − other next cell "
            f"{self.gap.value:.2f} nats, own likeliest {100 * self.right.value:.1f} %",
            "heads      which               recovered [95 %]           d      flipped",
        ]
        for row in self.rows:
            which = "all" if row.group == "all" else names(row.heads)
            lines.append(f"{row.group:<10} {which:<18}  {row.recovered!s:<25}  {row.effect.value:+.2f}  {row.flipped}")
        lines += [f"adjacency − {group}: recovered {value}" for group, value in self.contrast.items()]
        lines.append(f"Spearman's ρ of score and recovered share over all heads: {self.score_correlation}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def figure(self) -> Figure:
        """Share that each head recovers, by layer; needs matplotlib (`clew[plot]`)."""
        from .causal_figures import head_patching

        return head_patching(self)


def patch_heads(
    model: Model,
    ms: Mazes | Iterable[Maze] | MinimalPairs,
    reference: Mazes | Iterable[Maze],
    heads: int | Iterable[Head] = 3,
    *,
    draws: int = 3,
    least_mass: float = 0.1,
    position: str = "nonend",
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> HeadPatching:
    """Moves what heads write at the last position between two mazes that differ in one edge, which makes the next cell
    another one (:func:`minimal_pairs`), and asks how far the logits follow.

    Confounds that are controlled here: *everything but one edge* is the same in both prompts, length, order and path so
    far; *both directions* are measured, so that neither cell's own bias nor the made-over maze's strangeness counts;
    *layer and output norm* as by :func:`ablate_heads`, and the heads are chosen on reference mazes; "all" heads at once
    are the most that any group could do here.

    Parameters
    ----------
    ms
        Spanning trees of one grid, or pairs of them that were made before.
    model, reference, heads, draws, least_mass, position, seed, tokenizer
        As for :func:`ablate_heads`; no walls of the mazes that pairs are made of may be in the reference.

    Raises as :func:`ablate_heads` and :func:`minimal_pairs`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=4), seed=0)
    >>> ms, reference = (mazes.generate(20, 4, split=part) for part in ("test", "train"))
    >>> found = mazes.patch_heads(model, ms, reference, heads=[(1, 0)], draws=1)
    >>> [row.group for row in found.rows], found.each.shape
    (['adjacency', 'matched', 'random', 'all'], (2, 4))
    """
    what = "patch_heads"
    tok = tokenizer_of(model, tokenizer)
    draws = whole_number(draws, f"{what}: draws", 0, MOST_GROUPS)
    least_mass = share_of(least_mass, f"{what}: least_mass")
    other = mazes_of(reference, f"{what}: reference")
    if isinstance(ms, MinimalPairs):
        pairs = ms
    else:
        batch = mazes_of(ms, what)
        apart(batch, other, what)
        pairs = minimal_pairs(tok, batch, position=position, seed=seed)
    check_length(model, pairs.a)
    chosen, scores = choose_heads(model, other, heads, tok, least_mass, seed, position)
    norms = pool_of(model, other, tok).norms
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    every: Heads = tuple((i, j) for i in range(n_layers) for j in range(n_heads))
    groups = [*control_groups(norms, chosen, draws, seed), ("all", every)]
    sets = [hs for _, hs in groups]
    base, changed, right, flips = _patched(model, pairs, [*sets, *((head,) for head in every)], len(sets))
    # a pair's two directions are one draw: [pairs, variants + 1], the gap last
    n = len(pairs)
    changes = (changed - base).reshape(-1, 2, n).mean(1)
    gap = -(base[:n] + base[n:])  # from the base, which is negative, to the other run's, which is its partner's less
    columns = np.concatenate([changes.T, gap[:, None]], axis=1)

    def part(i: int) -> Estimate:
        return bootstrap(columns[:, [i, -1]], lambda x: x[:, 0].sum() / x[:, 1].sum(), seed=seed)

    open_ = base < 0
    rows = [
        Patch(name, hs, part(i), effect_of(changes[i], seed),
              rate_of(flips[i][open_]), changes[i])
        for i, (name, hs) in enumerate(groups)
    ]  # fmt: skip
    contrast = {}
    for name in ("matched", "random"):
        which = [i for i, (group, _) in enumerate(groups) if group == name]
        if which:
            both = np.stack([changes[0] - changes[which].mean(0), gap], axis=1)
            contrast[name] = bootstrap(both, lambda x: x[:, 0].sum() / x[:, 1].sum(), seed=seed)
    each = [part(len(sets) + i) for i in range(len(every))]
    by_head = [np.array([getattr(e, end) for e in each]).reshape(n_layers, n_heads) for end in ("value", "low", "high")]
    correlation = bootstrap(np.stack([scores.ravel(), by_head[0].ravel()], 1), rank_correlation, seed=seed)
    return HeadPatching(
        chosen, scores, n, bootstrap(gap / 2, seed=seed), rate_of(right), tuple(rows), contrast, by_head[0], by_head[1],
        by_head[2], correlation,
    )  # fmt: skip


def _patched(
    model: Model, pairs: MinimalPairs, variants: Sequence[Heads], asked_for: int
) -> tuple[Array, Array, Array, Array]:
    """Logit of the other maze's next cell less that of the own one, prompts of all first mazes, then of all second:
    unchanged [2n], patched [variant, 2n]; is the own cell likeliest? [2n]; is the other's, in the first variants?"""
    n = len(pairs)
    base, right = np.zeros(2 * n), np.zeros(2 * n, bool)
    changed, flips = np.zeros((len(variants), 2 * n)), np.zeros((asked_for, 2 * n), bool)
    for part in pieces(n, PIECE // 2):
        tokens = pairs.a.tokens[part] + pairs.b.tokens[part]
        m = len(tokens) // 2
        own = np.concatenate([pairs.a.targets[part], pairs.b.targets[part]])
        others = np.roll(own, m)
        z = model.run(tokens, capture="z", positions=[-1], logits=None).stack("z")
        moved = np.roll(z, m, axis=1)
        edits = [
            [edit.set(("z", layer), moved[layer][:, :, head : head + 1], heads=[head], positions=[-1])
             for layer, head in hs]
            for hs in variants
        ]  # fmt: skip
        at = np.concatenate([np.arange(part.start, part.stop), n + np.arange(part.start, part.stop)])
        found = model.sweep(tokens, edits=edits, metric=logit_diff(others, own))
        base[at], changed[:, at] = found.baseline, found.per_example
        likely = model.sweep(tokens, edits=edits[:asked_for], metric=Likeliest(others))
        flips[:, at] = likely.per_example > 0
        right[at] = Likeliest(own)(model.run(tokens, logits="last").logits) > 0
    return base, changed, right, flips


# ---- The stream at <PATH_START> -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartPatch:
    """The stream at <PATH_START> after one layer, from somewhere else, and whose way the model then walks."""

    kind: str
    """"walls": the other maze has other walls and the same endpoints; "ends": other endpoints and the same walls."""
    layer: int
    source: str
    """One of SOURCES."""
    as_target: Rate
    """The walk is the one that the unchanged model makes in the maze that is shown."""
    as_source: Rate
    """It is the one that it makes in the other maze, where the two differ."""
    solves_target: Rate
    """It is the solution of the maze that is shown."""
    solves_source: Rate
    """It is that of the other maze."""
    origin_source: Rate
    """It begins at the other maze's origin ("ends" only: there the two differ)."""
    first_source: Rate
    """Its first step is the one that the unchanged model takes in the other maze, where the two first steps differ."""
    first_target: Rate
    """Its first step is the one of the maze that is shown, of the same mazes."""
    changed_each: Array = field(repr=False, metadata={"json": False})
    """Is the walk another one than the unchanged model's? bool [n]"""


@dataclass(frozen=True)
class PathStartPatching:
    """The stream at <PATH_START> moved between mazes; made by :func:`patch_path_start`."""

    layers: tuple[int, ...]
    kinds: tuple[str, ...]
    n: dict[str, int]
    """kind → pairs of mazes whose solutions differ."""
    exact: dict[str, Rate]
    """Unchanged model, mazes that are shown."""
    differ: dict[str, Rate]
    """kind → pairs in which the unchanged model's two walks differ."""
    rows: tuple[StartPatch, ...]
    contrast: dict[str, dict[str, list[Estimate]]]
    """kind → control → rate of walks that change under "other maze" less that under the control, by layer."""

    def row(self, kind: str, layer: int, source: str) -> StartPatch:
        """One row. Raises ConfigError for one that there is not."""
        for row in self.rows:
            if (row.kind, row.layer, row.source) == (kind, layer, source):
                return row
        raise ConfigError(f"no row of kind {kind!r}, layer {layer} and source {source!r}")

    def table(self) -> str:
        """All rows as text."""
        lines = []
        for kind in self.kinds:
            lines += [
                f"other {kind}: {self.n[kind]} pairs, unchanged exact {self.exact[kind]}",
                "layer  stream from           walks as in its own maze [95 %]    as in the other [95 %]            "
                "first step own, other   origin of other  solves own, other, %",
            ]
            for row in self.rows:
                if row.kind == kind:
                    origin = "–" if row.origin_source.n == 0 else f"{100 * row.origin_source.value:.1f}"
                    lines.append(
                        f"{row.layer:<5}  {row.source:<20}  {row.as_target!s:<32}  {row.as_source!s:<32}  "
                        f"{100 * row.first_target.value:9.1f}, {100 * row.first_source.value:5.1f}  {origin:>15}  "
                        f"{100 * row.solves_target.value:8.1f}, {100 * row.solves_source.value:5.1f}"
                    )
            for control, estimates in self.contrast[kind].items():
                shown = "; ".join(f"L{n} {share(e)}" for n, e in zip(self.layers, estimates, strict=True))
                lines.append(f"walks that change, other maze − {control}, points: {shown}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()

    def figure(self) -> Figure:
        """Whose way is walked, by layer; needs matplotlib (`clew[plot]`)."""
        from .causal_figures import start_patches

        return start_patches(self)


def _pairs(ms: Mazes, kind: str, seed: int) -> tuple[Mazes, Mazes]:
    """Mazes and the ones that they get their stream from, where the two solutions differ."""
    n, side = len(ms), int(ms.grids[0])
    rng = generator(seed, 6)
    if kind == "walls":
        turn = 1 + int(rng.integers(n - 1))
        moved = ms[np.roll(np.arange(n), turn)]
        other = rebuilt(moved, ends=ms.batch[3])
    else:
        numbers = np.argsort(rng.random((n, side * side)), axis=1)  # four cells would do: none is an endpoint already
        old = ms.ends @ [side, 1]
        free = np.where((numbers[:, :, None] != old[:, None]).all(-1), 0, 1).argsort(1, kind="stable")
        new = np.take_along_axis(numbers, free[:, :2], axis=1)
        other = rebuilt(ms, ends=np.stack(np.divmod(new, side), -1))
    a, b = ([maze[:k] for maze, k in zip(m.batch[4].astype(int), m.path_lengths, strict=True)] for m in (ms, other))
    kept = np.flatnonzero(~same(a, b) & (other.path_lengths > 0))
    if len(kept) < 2:
        raise ConfigError(
            f"patch_path_start: of {n} pairs with other {kind} {len(kept)} have two solutions that differ: more mazes, "
            "of which every cell can be reached, are needed"
        )
    return ms[kept], other[kept]


def patch_path_start(
    model: Model,
    ms: Mazes | Iterable[Maze],
    reference: Mazes | Iterable[Maze],
    *,
    kinds: Sequence[str] = PAIR_KINDS,
    layers: Iterable[int] | int | None = None,
    sources: Sequence[str] = SOURCES,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> PathStartPatching:
    """Puts the stream at <PATH_START> of another maze into a maze, after one layer, and sees whose way is walked.

    Confounds that are controlled here:

    - *What the two mazes share*: "walls" pairs have the same endpoints, "ends" pairs the same walls, both the same
      size; pairs whose solutions agree are left out.
    - *What patching alone does*: the same maze with its edges listed in another order gives the same maze's stream in
      another form, and the mean over reference mazes one that knows no maze. A prompt patched with its own stream walks
      as before, to the bit (tests).
    - *What the model would do anyway*: walks are compared with its own in either maze, not with solutions alone, which
      it may not find.
    - *Later positions* read the adjacency list again, which still holds the maze that is shown: that is what is
      measured. The last layer's stream at <PATH_START> reaches no later position, so only the first token can change.

    Parameters
    ----------
    model, ms, tokenizer
        A model of maze tokens; mazes to measure on, of one grid.
    reference
        Other mazes of that grid, whose mean is one of the sources.
    kinds, sources
        Of PAIR_KINDS and of SOURCES.
    layers
        After which the stream is patched, one at a time; None: all.
    seed
        Of the pairs.

    Raises
    ------
    TokenError
        A model of other tokens.
    ConfigError
        Too few mazes, walls in both batches, a layer, kind or source that there is not.
    ShapeError
        Mazes of several grids.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2, d_model=32, n_heads=2), seed=0)
    >>> ms, reference = (mazes.generate(8, 4, split=part) for part in ("test", "train"))
    >>> found = mazes.patch_path_start(model, ms, reference, kinds=["walls"], layers=[0])
    >>> [row.source for row in found.rows]
    ['other maze', 'same maze rewritten', 'mean']
    """
    what = "patch_path_start"
    tok = tokenizer_of(model, tokenizer)
    batch, others = mazes_of(ms, what), mazes_of(reference, f"{what}: reference")
    apart(batch, others, what)
    chosen = layers_of(layers, model.config.n_layers, what)
    kinds, sources = names_of(kinds, f"{what}: kinds", PAIR_KINDS), names_of(sources, f"{what}: sources", SOURCES)
    mean = _streams(model, start_prompts(others, tok), chosen).mean(1, keepdims=True)
    rows: list[StartPatch] = []
    n, exact, differ = {}, {}, {}
    contrast: dict[str, dict[str, list[Estimate]]] = {}
    for kind in kinds:
        own, other = _pairs(batch, kind, seed)
        prompts, theirs = start_prompts(own, tok), start_prompts(other, tok)
        streams = {
            "other maze": _streams(model, theirs, chosen),
            "same maze rewritten": _streams(model, start_prompts(shuffled(own, seed), tok), chosen),
            "mean": np.broadcast_to(mean, (len(chosen), len(own), mean.shape[-1])),
        }
        cells = int(own.grids[0]) ** 2
        before, elsewhere = walks(model, prompts, tok, cells), walks(model, theirs, tok, cells)
        n[kind], exact[kind] = len(own), rate_of(judge(before, own).exact)
        differ[kind] = rate_of(~same(before, elsewhere))
        contrast[kind] = {s: [] for s in sources if s != "other maze"} if "other maze" in sources else {}
        for k, layer in enumerate(chosen):
            found = {}
            for source in sources:
                after = _walked(model, prompts, tok, cells, layer, streams[source][k])
                found[source] = _whose(kind, layer, source, own, other, before, elsewhere, after)
            rows += found.values()
            for control, estimates in contrast[kind].items():
                gained = found["other maze"].changed_each.astype(float) - found[control].changed_each
                estimates.append(bootstrap(gained, seed=seed))
    return PathStartPatching(tuple(chosen), tuple(kinds), n, exact, differ, tuple(rows), contrast)


def _streams(model: Model, prompts: Sequence[Array], layers: Sequence[int]) -> Array:
    """The stream after layers at the last position of prompts [layer, n, d_model]."""
    sites = [("resid_post", layer) for layer in layers]
    parts = []
    for rows in pieces(len(prompts)):
        run = model.run(list(prompts[rows]), capture=sites, positions=[-1], logits=None)
        parts.append(np.stack([run[site][:, 0] for site in sites]))
    return np.concatenate(parts, axis=1)


def _walked(
    model: Model, prompts: Sequence[Array], tok: Tokenizer, cells: int, layer: int, stream: Array
) -> list[Array]:
    """Walks with another stream [n, d_model] after a layer at the prompts' last position."""

    def edits(rows: Array, positions: Array) -> list[Edit]:
        return [edit.set(("resid_post", layer), stream[rows][:, None], positions=positions[:, :1])]

    return walks(model, prompts, tok, cells, edits)


def _whose(
    kind: str, layer: int, source: str, own: Mazes, other: Mazes, before: list[Array], elsewhere: list[Array],
    after: list[Array],
) -> StartPatch:  # fmt: skip
    differ = ~same(before, elsewhere)
    first = [padded(paths)[:, 1] for paths in (before, elsewhere, after)]
    steps = (first[0] != first[1]).any(1)
    begins = np.zeros(0, bool)
    if kind == "ends":
        begins = (padded(after)[:, 0] == other.ends[:, 0]).all(1)
    return StartPatch(
        kind, layer, source, rate_of(same(after, before)), rate_of(same(after, elsewhere)[differ]),
        rate_of(judge(after, own).exact), rate_of(judge(after, other).exact), rate_of(begins),
        rate_of((first[2] == first[1]).all(1)[steps]), rate_of((first[2] == first[0]).all(1)[steps]),
        ~same(after, before),
    )  # fmt: skip


__all__ = [
    "PAIR_KINDS", "SOURCES", "HeadPatching", "Patch", "PathStartPatching", "StartPatch", "patch_heads",
    "patch_path_start",
]  # fmt: skip
