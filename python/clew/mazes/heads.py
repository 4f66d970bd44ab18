"""What single heads do: their direct attribution to logits, and heads that look along open edges
(arXiv:2312.02566, Figs. 5 to 7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import norm
from ..attribution import apply_ln_to_stack
from ..errors import ConfigError, SiteError
from ..train.data import generator
from .checks import MOST_DRAWS, Head, head_pair, one_maze, one_size, share_of, whole_number
from .maze import Maze, Mazes
from .prompts import NORMAL_95, check_length, path_prompts
from .rollout import tokenizer_of
from .tokens import ADJLIST_END, PADDING, PATH_START, Tokenizer

if TYPE_CHECKING:
    from ..model import Model
    from .prompts import Prompts

Array = NDArray[Any]

PLACES = ("adjacency list", "origin and target", "path")
"""Where cells stand in a prompt."""


def _order(scores: Array) -> list[Head]:
    """(layer, head), the highest score first; NaN last."""
    layers, heads = scores.shape
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf).ravel(), kind="stable")
    return [divmod(int(i), heads) for i in order[: layers * heads]]


# ---- Direct logit attribution ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogitAttribution:
    """What parts of the stream add to the logit of the right cell over the mean of all other tokens.

    heads + mlps + biases + embedding + constant = total: the mean of logit[right] − mean of all other logits, before
    any soft-cap. A part that the model does not have counts 0.
    """

    position: str
    heads: Array
    """[layer, head]: the paper's C_{l,h}."""
    low: Array
    """Lower end of its 95 % interval, mean − 1.96 standard errors [layer, head]; NaN of one prompt."""
    high: Array
    """Upper end."""
    mlps: Array
    """[layer]"""
    biases: Array
    """Of attention outputs, b_O and a post-norm's, [layer]."""
    embedding: float
    """Of the residual stream that enters layer 0."""
    constant: float
    """Of the final norm's bias and the unembedding's."""
    total: float
    n: int

    def ranked(self) -> list[Head]:
        """(layer, head), the largest contribution first."""
        return _order(self.heads)

    def table(self, k: int | None = None) -> str:
        """The k heads with the largest contributions, and the other parts, as text; None: all heads."""
        lines = [
            f"logit of the right cell over the mean of the others, {self.n} prompts ({self.position}): "
            f"{self.total:.3f}, of which",
            "head    adds [95 %]",
        ]
        for layer, head in self.ranked()[: None if k is None else whole_number(k, "table: k")]:
            at = (layer, head)
            lines.append(f"L{layer}H{head:<3} {self.heads[at]:+.3f} [{self.low[at]:+.3f}, {self.high[at]:+.3f}]")
        lines += [f"MLP {layer}  {value:+.3f}" for layer, value in enumerate(self.mlps)]
        lines.append(
            f"biases of attention {self.biases.sum():+.3f}, embedding {self.embedding:+.3f}, constant "
            f"{self.constant:+.3f}"
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def logit_attribution(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    position: str = "nonend",
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> LogitAttribution:
    """Direct logit attribution by head, the paper's formula: C_{l,h} = mean over prompts p, right cells c of
    LN(R_{l,h}(p)) · (E(c) − r(c)), where R is what the head adds to the stream at the last position (behind any
    post-norm), LN the final norm with the scale of the run, E the unembedding and r(c) the mean of the unembeddings of
    all other tokens. As in :func:`clew.direct_logit_attribution`, logits are those before any soft-cap.

    Parameters
    ----------
    model, ms, tokenizer
        A model of maze tokens and mazes.
    position
        What is asked, see :func:`clew.mazes.prompts.path_prompts`: "nonend" for the paper's `rand_path_token_nonend`.
    seed
        Of the random cells.

    Raises TokenError for models of other tokens, ConfigError where no maze has a path that is long enough.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2), seed=0)
    >>> found = mazes.logit_attribution(model, mazes.generate(8, grid=4))
    >>> parts = found.heads.sum() + found.mlps.sum() + found.biases.sum() + found.embedding + found.constant
    >>> found.heads.shape, abs(float(parts) - found.total) < 1e-5
    ((2, 4), True)
    """
    tok = tokenizer_of(model, tokenizer)
    prompts = path_prompts(ms, tok, position, seed)
    check_length(model, prompts)
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    config, weights = model.config, model.weights
    final = norm.is_there(config, "ln_final")
    W_U, b_U = weights["unembed.W_U"].astype(np.float64), np.asarray(model.b_U, np.float64)
    v = W_U.shape[1]
    columns = (W_U * v - W_U.sum(1, keepdims=True)) / (v - 1)  # E(c) − mean of the others, for each c
    offsets = (b_U * v - b_U.sum()) / (v - 1)
    shift = norm.bias(model, "ln_final") if final else None
    end = "ln_final.hook_out" if final else f"blocks.{n_layers - 1}.hook_resid_post"
    capture = ["z", "attn_out", "resid_pre.0", end, *(["ln_final.hook_scale"] if final else [])]
    capture += [] if config.attn_only else ["mlp_out"]
    if config.use_normalization_before_and_after and config.normalization_type is not None:
        capture.append("ln1_post.hook_scale")
    parts: list[Array] = []
    totals: list[Array] = []
    constants: list[Array] = []
    for rows, tokens in prompts.batches(64):
        run = model.run(tokens, capture=capture, positions=[-1], logits=None)
        right = prompts.targets[rows]
        outputs = run.stack_head_results()
        attention = run.stack("attn_out")
        rest = attention - outputs.reshape(n_layers, n_heads, *outputs.shape[1:]).sum(1)
        mlps = np.zeros_like(attention) if config.attn_only else run.stack("mlp_out")
        stack = np.concatenate([outputs, mlps, rest, run["resid_pre", 0][None]])
        normed = apply_ln_to_stack(run, stack)[:, :, 0]
        direction = columns[:, right].T
        parts.append((normed * direction).sum(-1))
        totals.append((run[end][:, 0] * direction).sum(-1) + offsets[right])
        constants.append(offsets[right] + (0 if shift is None else direction @ shift))
    each, n = np.concatenate(parts, axis=1), len(prompts)
    mean = each.mean(1)
    error = each.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(each), np.nan)
    count = n_layers * n_heads
    heads, width = mean[:count].reshape(n_layers, n_heads), NORMAL_95 * error[:count].reshape(n_layers, n_heads)
    return LogitAttribution(
        position, heads, heads - width, heads + width, mean[count : count + n_layers],
        mean[count + n_layers : count + 2 * n_layers], float(mean[-1]), float(np.concatenate(constants).mean()),
        float(np.concatenate(totals).mean()), n,
    )  # fmt: skip


# ---- Adjacency heads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdjacencyHeads:
    """Which heads look along open edges; made by :func:`adjacency_heads`. Arrays [layer, head] unless they say more.

    Attention of the last position, at a cell of the path, to cells in the prompt, reachable from there or not. Shares
    are pooled: sums over mazes divided by sums over mazes. "Over uniform" divides by what a head would give that spread
    its attention to a place's cells in each maze evenly over them: Σ massᵢ · (count of such cells / count of all)ᵢ over
    Σ massᵢ, so that 1 is no preference, however the mass differs between mazes. NaN where no maze has such a cell.
    """

    n: int
    mass: Array
    """Attention to all cells in the prompt together, mean."""
    mass_by_place: Array
    """[place, layer, head]: in the adjacency list; as origin and target; in the path."""
    connected: Array
    """Share of the attention to the adjacency list's cells that falls on those at path length 1."""
    walled: Array
    """Share that falls on lattice neighbours behind a wall, those that no way leads to included."""
    connected_over_uniform: Array
    walled_over_uniform: Array
    path_connected_over_uniform: Array
    """The same among the path's cells: the previous cell is always at path length 1, so previous-token heads score."""
    score: Array
    """connected_over_uniform − walled_over_uniform, in the adjacency list: how much likelier than by chance a head
    looks at what can be reached in a step, than at what is as near behind a wall. 0: no difference."""
    low: Array
    """Lower end of the score's 95 % bootstrap interval; NaN of one maze."""
    high: Array
    by_path_length: Array
    """[place, layer, head, length]: attention to cells at each path length (0: the cell itself), mean. Cells that no
    way leads to are at none: percolation mazes have such."""
    by_manhattan: Array
    """[place, layer, head, distance]"""
    uniform_by_path_length: Array
    """[place, layer, head, length]: the share that each path length would have of the head's attention to the place,
    were it spread evenly in each maze."""
    uniform_by_manhattan: Array
    """[place, layer, head, distance]"""

    def ranked(self, least_mass: float = 0.0) -> list[Head]:
        """(layer, head), the highest score first; heads with less attention to the adjacency list's cells come last.

        Raises ConfigError for a mass that is no share.
        """
        least_mass = share_of(least_mass, "least_mass")
        return _order(np.where(self.mass_by_place[0] >= least_mass, self.score, -np.inf))

    def table(self, k: int | None = None) -> str:
        """The k highest heads as text; None: all."""
        lines = ["head    score  [95 %]             path length 1  behind walls  mass  (× uniform; mass: all cells)"]
        for layer, head in self.ranked()[: None if k is None else whole_number(k, "table: k")]:
            at = (layer, head)
            span = f"[{self.low[at]:+.2f}, {self.high[at]:+.2f}]"
            lines.append(
                f"L{layer}H{head:<3} {self.score[at]:+6.2f}  {span:<17}  {self.connected_over_uniform[at]:13.2f}  "
                f"{self.walled_over_uniform[at]:12.2f}  {self.mass[at]:.2f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def adjacency_heads(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    position: str = "nonend",
    seed: int = 0,
    draws: int = 500,
    tokenizer: Tokenizer | None = None,
) -> AdjacencyHeads:
    """Attention of every head, from a cell on the path to every cell in the prompt, by path length and by Manhattan
    distance in that maze; all heads scored. The paper shows curves (n = 200) and defines no score: this one is ours.

    Parameters
    ----------
    model, ms, tokenizer
        A model of maze tokens and mazes of one grid.
    position, seed
        As for :func:`logit_attribution`.
    draws
        Of the bootstrap over mazes.

    Raises ShapeError for mazes of several grids, TokenError, ConfigError as :func:`logit_attribution`.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2), seed=0)
    >>> found = mazes.adjacency_heads(model, mazes.generate(20, grid=4))
    >>> found.score.shape, len(found.ranked()), bool(abs(found.connected_over_uniform - 1).max() < 0.3)
    ((2, 4), 8, True)
    """
    tok = tokenizer_of(model, tokenizer)
    draws = whole_number(draws, "adjacency_heads: draws", 1, MOST_DRAWS)
    prompts = path_prompts(ms, tok, position, seed)
    check_length(model, prompts)
    side = one_size(prompts.mazes, "adjacency_heads")
    bins = side * side
    by_path, by_manhattan, count_path, count_manhattan, behind, count_behind = _sums(model, prompts, tok, bins)
    n = len(prompts)
    # every cell has a Manhattan distance, also those that no way leads to: [n, place, layer, head], [n, place]
    mass, count = by_manhattan.sum(-1), count_manhattan.sum(-1)
    rng = generator(seed)

    def even(cells: Array) -> Array:
        """Attention that these cells [n, place] would get of each maze's mass, were it spread evenly."""
        return np.asarray(mass * (cells / np.maximum(count, 1))[..., None, None])

    even_near, even_wall = even(count_path[..., 1]), even(count_behind)

    def over(w: Array, part: Array, spread: Array) -> Array:
        """Attention over what an even spread gives [place, layer, head], mazes weighted: the masses cancel."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.tensordot(w, part, 1) / np.tensordot(w, spread, 1))

    def score(w: Array) -> Array:
        """In the adjacency list [layer, head]."""
        return over(w, by_path[:, 0, ..., 1], even_near[:, 0]) - over(w, behind[:, 0], even_wall[:, 0])

    ones = np.ones(n)
    near, wall = over(ones, by_path[..., 1], even_near), over(ones, behind, even_wall)
    drawn = np.array([score(rng.multinomial(n, [1 / n] * n).astype(float)) for _ in range(draws)])
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0) if n > 1 else np.full((2, *drawn.shape[1:]), np.nan)
    places = mass.mean(0)

    def by_bin(counts: Array) -> Array:
        """Share of each bin under an even spread [place, layer, head, bin]."""
        shares = counts / np.maximum(count, 1)[..., None]
        return np.asarray(np.einsum("nplh,npb->plhb", mass, shares, optimize=True) / mass.sum(0)[..., None])

    with np.errstate(divide="ignore", invalid="ignore"):
        share = by_path[:, 0, ..., 1].mean(0) / places[0]
        share_behind = behind[:, 0].mean(0) / places[0]
        uniform_path, uniform_manhattan = by_bin(count_path), by_bin(count_manhattan)
    return AdjacencyHeads(
        n, places.sum(0), places, share, share_behind, near[0], wall[0], near[2], near[0] - wall[0], low, high,
        by_path.mean(0), by_manhattan.mean(0), uniform_path, uniform_manhattan,
    )  # fmt: skip


def _sums(model: Model, prompts: Prompts, tok: Tokenizer, bins: int) -> tuple[Array, ...]:
    """Attention [n, place, layer, head, bin] by path length and by Manhattan distance, counts of tokens
    [n, place, bin], attention to lattice neighbours behind walls [n, place, layer, head] and their number."""
    n, layers, heads = len(prompts), model.config.n_layers, model.config.n_heads
    by_path, by_manhattan = np.zeros((2, n, 3, layers, heads, bins))
    count_path, count_manhattan = np.zeros((2, n, 3, bins))
    behind, count_behind = np.zeros((n, 3, layers, heads)), np.zeros((n, 3))
    side = int(prompts.mazes.grids[0])
    for rows, tokens in prompts.batches(64):
        run = model.run(tokens, capture="pattern", positions=[-1], logits=None)
        pattern = run.stack("pattern")[:, :, :, 0].astype(np.float64)  # [layer, batch, head, key]
        part = prompts.mazes[rows]
        steps = part.distances()
        width = pattern.shape[-1]
        ids = np.full((len(tokens), width), PADDING)
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = row
        cells = tok.cells_of(ids)
        there = cells[..., 0] >= 0
        past = np.cumsum(ids == ADJLIST_END, axis=1) + np.cumsum(ids == PATH_START, axis=1)  # number of the place
        here = prompts.here[rows]
        at = np.arange(len(tokens))[:, None]
        number = np.where(there, cells @ [side, 1], 0)
        path_length = steps[at, (here @ [side, 1])[:, None], number]
        manhattan = np.abs(cells - here[:, None]).sum(-1)
        for place in range(3):
            mine = there & (past == place)
            for distance, out, counts in (
                (path_length, by_path[rows], count_path[rows]),
                (manhattan, by_manhattan[rows], count_manhattan[rows]),
            ):
                which = (mine & (distance >= 0))[:, :, None] & (distance[:, :, None] == np.arange(bins))
                counts[:, place] = which.sum(1)
                out[:, place] = np.einsum("lbhk,bkn->blhn", pattern, which.astype(float), optimize=True)
            wall = mine & (manhattan == 1) & (path_length != 1)
            behind[rows, place] = np.einsum("lbhk,bk->blh", pattern, wall.astype(float))
            count_behind[rows, place] = wall.sum(1)
    return by_path, by_manhattan, count_path, count_manhattan, behind, count_behind


def attention_over(model: Model, maze: Maze, head: Head, step: int = 0, *, tokenizer: Tokenizer | None = None) -> Array:
    """Attention of one head (layer, head) from a cell of the maze's path to every cell, [grid, grid] float64.

    From path cell number `step` (0: the origin), the true path before it; summed over all of a cell's tokens up to
    there. What goes to other tokens is missing: the sum lies below 1. `clew.mazes.draw(maze, values=...)` shows it.

    Raises ConfigError for what is no single maze, no pair or no step of the path, SiteError for a head that the model
    does not have, TokenError as :func:`adjacency_heads`.

    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> shown = attention_over(model, mazes.generate(1, grid=4)[0], (0, 3), step=1)
    >>> shown.shape, bool(0 < shown.sum() < 1)
    ((4, 4), True)
    """
    tok = tokenizer_of(model, tokenizer)
    k = len(one_maze(maze, "attention_over").solution)
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or not 0 <= step < k:
        raise ConfigError(f"attention_over: step {step!r}: the path has cells 0 to {k - 1}")
    layer, n = head_pair(head)
    if not 0 <= n < model.config.n_heads:
        raise SiteError(f"attention_over: head {n}: the model has heads 0 to {model.config.n_heads - 1}")
    ids = tok.encode(maze)[: step - k]
    run = model.run(ids, capture=[("pattern", layer)], positions=[-1], logits=None)
    cells = tok.cells_of(ids)
    there = cells[:, 0] >= 0
    out = np.zeros((maze.grid, maze.grid))
    np.add.at(out, tuple(cells[there].T), run["pattern", layer][0, n, 0, : len(ids)][there])
    return out


__all__ = ["PLACES", "AdjacencyHeads", "LogitAttribution", "adjacency_heads", "attention_over", "logit_attribution"]
