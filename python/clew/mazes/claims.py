"""What paper 5 claims, what was measured of it, and whether it holds.

"Table 1" and "Fig. N" mark what the paper says; "(ours)" what it does not: criteria, controls and further tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..experiment import Claim, verdict
from .causal import share
from .checks import head_name
from .embedding import PAPER_R
from .evaluate import PAPER, TASKS, Rate
from .probes import WallProbes, best_position
from .prompts import bootstrap
from .steering import WallFlips

Parts = Mapping[str, Any]
Say = Callable[..., None]

WHOLE = ("exact", "valid", "target")


def claims(parts: Parts) -> tuple[Claim, ...]:
    """Every claim, judged by the parts of :class:`clew.mazes.MazeExperiment`."""
    out: list[Claim] = []

    def say(text: str, says: str, measured: str, holds: Any, figure: str | None = None) -> None:
        out.append(Claim(5, text, says, measured, verdict(holds), figure))

    for part in (
        _behaviour,
        _embedding,
        _attribution,
        _adjacency,
        _walls,
        _route,
        _lens,
        _causal,
        _dynamics,
        _consistency,
    ):
        part(parts, say)
    return tuple(out)


def percent(value: float) -> str:
    """A share in percent; – for a share of nothing."""
    return "–" if np.isnan(value) else f"{value:.1%}"


def below(rate: Rate, paper: float) -> bool:
    """Does a rate's 95 % interval lie below the paper's percentage?"""
    return 100 * rate.high < paper


def _behaviour(parts: Parts, say: Say) -> None:
    rows, hallway, jirpy = parts["rows"], PAPER["hallway"], PAPER["jirpy"]
    kinds = list(rows)

    def three(values: Callable[[str, str], float], row: str) -> str:
        return f"{row} " + "/".join(f"{values(kind, row):.1f}" for kind in kinds)

    here = "; ".join(three(lambda kind, row: 100 * rows[kind][row].value, row) for row in WHOLE)
    span = rows["rdfs"]["exact"]
    comparable = parts["grid"] == 6
    say(
        "a small transformer learns to solve mazes",
        f"Table 1, 6 × 6, % {'/'.join(kinds)}: hallway "
        + "; ".join(three(lambda kind, row: hallway[kind][row], row) for row in WHOLE)
        + "; jirpy, of eight times the size, "
        + "; ".join(three(lambda kind, row: jirpy[kind][row], row) for row in WHOLE),
        f"{here} (exact on rdfs [{100 * span.low:.1f}, {100 * span.high:.1f}], {span.n} held-out mazes of each kind). "
        "Judged: no figure below the hallway model's by more than its 95 % interval",
        not any(below(rows[kind][row], hallway[kind][row]) for kind in kinds for row in WHOLE) if comparable else None,
        "evaluation",
    )
    under = [f"{kind} {row} {100 * rows[kind][row].value:.1f} ({hallway[kind][row]})" for kind in kinds
             for row in TASKS if below(rows[kind][row], hallway[kind][row])]  # fmt: skip
    single = ", ".join(f"{row} {100 * rows['rdfs'][row].value:.1f}" for row in TASKS)
    say(
        "behind the true tokens the next token is nearly always right",
        "Table 1: single tokens of the hallway model 66.4 to 100 %, <PATH_START> always",
        f"{single} % on rdfs; "
        + (f"below the hallway model: {', '.join(under)}" if under else "none of the 21 figures below the hallway's"),
        not under if comparable else None,
        "evaluation",
    )
    first = rows["rdfs"]["first_path_choice"].value
    others = [rows["rdfs"][row].value for row in TASKS if row != "first_path_choice"]
    say(
        "which way to go first is the hardest token",
        "Table 1, rdfs: first_path_choice is the lowest single-token row of both models (67.2, 86.7 %; the reading is "
        "ours)",
        f"first_path_choice {first:.1%}, the other tokens {min(others):.1%} to {max(others):.1%}",
        first <= min(others),
        "by_length",
    )


def _embedding(parts: Parts, say: Say) -> None:
    l1, cosine = parts["embedding"]["l1"], parts["embedding"]["cosine"]
    paper = {metric: f"{PAPER_R['hallway'][metric]} and {PAPER_R['jirpy'][metric]}" for metric in ("l1", "cosine")}
    say(
        "embeddings of cells lie as the cells do",
        f"Fig. 4: L1 distance against Manhattan distance, r = {paper['l1']} (hallway, jirpy); cosine {paper['cosine']}",
        f"r = {l1.r:.3f} (L1), {cosine.r:.3f} (cosine); shuffled cells reach {np.percentile(l1.control, 97.5):.2f} in "
        f"2.5 % of draws, p = {l1.p:.3f} (the control is ours)",
        l1.r > 0 and l1.p < 0.05,
        "embedding",
    )


def _attribution(parts: Parts, say: Say) -> None:
    found = parts["attribution"]
    positive = np.maximum(found.heads, 0)
    order = found.ranked()
    quarter = max(1, len(order) // 4)
    share = sum(positive[head] for head in order[:quarter]) / max(positive.sum(), np.finfo(float).tiny)
    best = order[0]
    say(
        "some heads write the next cell's logit directly",
        "Fig. 5: the contribution C of each head by direct logit attribution (a picture; the criterion is ours: the "
        "highest head's interval above 0, a quarter of the heads with most of what is positive)",
        f"{', '.join(f'{head_name(head)} {found.heads[head]:+.2f}' for head in order[:3])} of {found.total:+.2f} in "
        f"all; the highest quarter of the heads has {share:.0%} of the positive contributions; MLPs "
        f"{found.mlps.sum():+.2f}",
        found.total > 0 and found.low[best] > 0 and share > 0.5,
        "attribution",
    )


def _adjacency(parts: Parts, say: Say) -> None:
    found, head = parts["adjacency"], parts["adjacency_head"]
    near, wall = found.connected_over_uniform[head], found.walled_over_uniform[head]
    say(
        "adjacency heads look at the cells that one step reaches",
        "Figs. 6, 7: attention of hallway's L5H3 sits at path length 1 (the score is ours: × uniform attention to "
        "connected neighbours less × to neighbours behind walls, in the adjacency list)",
        f"{head_name(head)}, chosen on other mazes, from every cell of the paths: {near:.2f} × uniform at path length "
        f"1, {wall:.2f} × behind walls, "
        f"score {found.score[head]:+.2f} [{found.low[head]:+.2f}, {found.high[head]:+.2f}]; attention to the list "
        f"{found.mass_by_place[0][head]:.0%}. The picture is one cell of one maze, and all of its tokens",
        found.low[head] > 0 and near > 1,
        "adjacency_head",
    )
    path = found.path_connected_over_uniform
    previous = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(path * found.mass_by_place[2])), path.shape))
    above, by_chance = int((found.low > 0).sum()), 0.025 * found.score.size
    say(
        "it is not only a look at the cell before",
        "(ours: a confound) the previous cell of the path is always at path length 1, so a previous-token head shows "
        "the same curve",
        f"counted apart: {above} of {found.score.size} heads have a score above 0 within the adjacency list alone "
        f"({by_chance:.1f} by chance); in the path {head_name((previous[0], previous[1]))} looks most at path length "
        f"1, {path[previous]:.2f} × uniform",
        above >= 2 and above > by_chance + 2.33 * np.sqrt(by_chance),
        "adjacency_scores",
    )


def _walls(parts: Parts, say: Say) -> None:
    walls = parts["walls"]
    method = max(walls.scores, key=lambda key: float(walls[key].accuracy.max()))
    best = walls[method]
    layer = best.best
    paper = walls.paper_accuracy(method)
    baseline = max(walls.majority, float(parts["walls_untrained"]["ridge"].accuracy.max()),
                   float(parts["walls_bag"]["ridge"].accuracy.max()), float(best.control.max()))  # fmt: skip
    say(
        "all walls can be read linearly off one token",
        "Figs. 8, 9: jirpy's probes at <PATH_START> reach .945 at the best layer, boundary counted and inner walls "
        "twice (read off; 'always a wall' gives .51 there)",
        f"{best.accuracy[layer]:.1%} [{best.low[layer]:.1%}, {best.high[layer]:.1%}] of inner walls, {method}, "
        f"layer {layer}; as the paper counts {paper[layer]:.3f} ('always a wall' {walls.paper_always_wall:.3f}). "
        f"Baselines on inner walls: majority of each wall {walls.majority:.1%}, untrained model "
        f"{parts['walls_untrained']['ridge'].accuracy.max():.1%}, bag of tokens "
        f"{parts['walls_bag']['ridge'].accuracy.max():.1%}, other mazes' walls {best.control.max():.1%}. "
        f"{_elsewhere(parts['walls_along'], parts['walls_within'])}. "
        "Judged: 90 % of inner walls at <PATH_START>, and above every baseline",
        best.accuracy[layer] >= 0.9 and best.low[layer] > baseline,
        "probe_picture",
    )
    n, readable = len(best.accuracy), bool(best.low[layer] > baseline)
    say(
        "walls are read best in early layers, less well later",
        "Fig. 9, jirpy: .75 at layer 0, .945 at layer 2 of 12, .835 at the last (read off)",
        "by layer: "
        + " ".join(f"{x:.3f}" for x in best.accuracy)
        + ("" if readable else "; no layer passes the baselines above, so there is little to compare"),
        0 < layer < n - 1 and best.accuracy[-1] < best.low[layer] if n > 2 and readable else None,
        "probes",
    )
    alone = best.accuracy[layer] ** len(walls.walls)
    say(
        "the probes decode whole mazes",
        "(ours) the paper counts walls; independent errors at the accuracy per wall would leave few mazes without any",
        f"{best.exact[layer]:.1%} of mazes have every inner wall right (independent errors: {alone:.1%}), "
        f"{best.tree_exact.max():.1%} after decoding to a maximum spanning tree",
        best.tree_exact.max() > 0.5 if not np.isnan(best.tree_exact).any() else best.exact[layer] > 0.5,
        "probes",
    )


def _elsewhere(along: Mapping[str, WallProbes], within: Mapping[str, WallProbes] | None) -> str:
    """Where else walls are read best, which the paper does not ask."""
    best = [one[best_position(one)] for one in (along, within) if one is not None]
    walls = max(best, key=lambda found: float(found["ridge"].accuracy.max()))
    one, paper = walls["ridge"], walls.paper_accuracy("ridge")
    i = one.best
    return (
        f"The best token before it (ours) is {walls.place}: {one.accuracy[i]:.1%} [{one.low[i]:.1%}, "
        f"{one.high[i]:.1%}], ridge, layer {i}, as the paper counts {paper[i]:.3f}; majority {walls.majority:.1%}, "
        f"other mazes' walls {one.control[i]:.1%}"
    )


def _route(parts: Parts, say: Say) -> None:
    found = parts["route"]
    step, auc = found.step_accuracy.max(), found.path_auc.max()
    chance = max(found.step_majority, found.step_greedy, float(found.step_control.max()))
    say(
        "before the first step the way is there too",
        "(ours) not in the paper: linear probes at <PATH_START>",
        f"first step {step:.1%} of four (going towards the target {found.step_greedy:.1%}, majority "
        f"{found.step_majority:.1%}); cells of the way: area under the curve {auc:.3f}; its length: R² "
        f"{found.distance_r2.max():.2f} (Manhattan distance alone {found.distance_manhattan_r2:.2f})",
        step > chance and auc > 0.6 and found.distance_r2.max() > found.distance_manhattan_r2,
    )


def _lens(parts: Parts, say: Say) -> None:
    found = parts["lens"]
    near, joined = found.neighbours["tuned"], found.connected["tuned"]
    early = min(1, len(near) - 1)
    say(
        "the first layers know the lattice",
        "Fig. 9b, jirpy's tuned lens on 50 rollouts: mass on lattice neighbours .58 after layer 0, .90 after 1, .99 at "
        "the output (read off; the criterion is ours: most of the mass after layer 1)",
        ("" if found.paths == "model" else "along the mazes' own ways (it walks none), ")
        + "after each layer "
        + " ".join(f"{x:.3f}" for x in near)
        + f"; {found.chance_neighbours:.3f} if all cells were alike, "
        + f"{found.neighbours['shuffled'][early]:.3f} after layer {early} through a lens of shuffled places",
        near[early] > 0.5,
        "lens",
    )
    say(
        "later layers know the walls",
        "Fig. 9b: mass on connected neighbours rises from .43 after layer 0 by .75 after 2 and .91 after 8 to .93 at "
        "the output (read off)",
        "after each layer "
        + " ".join(f"{x:.3f}" for x in joined)
        + f"; were the neighbours' mass spread evenly, {found.even['tuned'][-1]:.3f}; on what another maze connects "
        f"{found.other_maze['tuned'][-1]:.3f}; {int(found.knows_walls().sum())} of {len(joined)} layers above an even "
        "spread",
        bool(found.knows_walls()[-1]) and joined[-1] > found.connected_high["tuned"][0] if len(joined) > 1 else None,
        "lens",
    )


def _causal(parts: Parts, say: Say) -> None:
    beyond = "(ours: the authors call their heads and probes correlational) "
    ablation, patching, flips, start = (parts[key] for key in ("ablation", "patching", "flips", "start"))
    text = "without adjacency heads the next step is lost, more than without other heads"
    if ablation is None or patching is None:
        say(text, beyond + "ablation against heads of the same layers", "this model has no heads to compare with", None)
    else:
        row, control = (ablation.row(group, "mean")[0] for group in ("adjacency", "matched"))
        contrast = ablation.contrast["mean"]["matched"]
        say(
            text,
            beyond + "mean ablation from <PATH_START> on against heads of the same layers and of like output norm",
            f"{', '.join(map(head_name, row.heads))}: margin of the next cell {row.margin} nats of "
            f"{ablation.margin.value:.2f}, legal steps {row.legal.value:.1%} of {ablation.legal.value:.1%}, exact "
            f"{row.exact.value:.1%} of {ablation.exact.value:.1%}; {', '.join(map(head_name, control.heads))}: margin "
            f"{control.margin}, exact {control.exact.value:.1%}; difference of the margins {contrast['margin']}",
            contrast["margin"].high < 0,
            "ablation",
        )
        row, control = (patching.row(group)[0] for group in ("adjacency", "matched"))
        say(
            "what adjacency heads write decides which edge is taken",
            beyond + "outputs at the last position moved between mazes that differ in one edge",
            f"{', '.join(map(head_name, row.heads))} recover {row.recovered} of the way to the other maze's choice, "
            f"{', '.join(map(head_name, control.heads))} {control.recovered}; difference "
            f"{patching.contrast['matched']} ({patching.n} pairs)",
            patching.contrast["matched"].low > 0,
            "patching",
        )
    # The layer is chosen by what probes read, not by what the edits do: the best of several has effects by chance.
    flipped = _readable(parts["walls"], flips.layers)
    before = parts["flips_before"]
    read = parts["walls_along" if before.site == "resid_post" else "walls_within"]
    i = _readable(read[before.position], before.layers)
    say(
        "the model walks by the walls that its probes read",
        beyond
        + "one wall's probe direction is flipped at every position from <PATH_START> on: does the model now walk "
        "through the wall, or avoid the edge?",
        f"{_moved(flips, flipped)}. By probes at {before.place}, from there on: {_moved(before, i)}. "
        f"{_better(flips, flipped, before, i)}. Judged at <PATH_START>",
        any(all(flips.contrast[kind][c][flipped].low > 0 for c in ("other wall", "random")) for kind in flips.kinds),
        "flips",
    )
    told, moves = [], {}
    for kind, what in (("walls", "other walls"), ("ends", "other endpoints")):
        if kind not in start.kinds:
            continue
        contrast = start.contrast[kind]["same maze rewritten"]
        i = _readable(parts["walls"], start.layers)
        row = start.row(kind, start.layers[i], "other maze")
        moves[kind] = contrast[i].low > 0
        told.append(
            f"stream of a maze with {what}, layer {row.layer}: walks its own maze's way in "
            f"{percent(row.as_target.value)}, the other's in {percent(row.as_source.value)}; changed walks over the "
            f"same maze rewritten {100 * contrast[i].value:+.0f} points [{100 * contrast[i].low:+.0f}, "
            f"{100 * contrast[i].high:+.0f}]"
        )
    say(
        "the walls that are readable at <PATH_START> are used from there",
        beyond + "the stream at <PATH_START> is taken from another maze; later positions could read the adjacency list "
        "again",
        "; ".join(told),
        moves.get("walls"),
        "start",
    )


WAYS_MOVED = {"open": "walks through the wall", "close": "avoids the edge"}


def _moved(flips: WallFlips, i: int) -> str:
    """What the walks do once walls are flipped behind layer number i."""
    told = []
    for kind in flips.kinds:
        rows = {c: flips.row(kind, flips.layers[i], c).moved for c in ("flip", "other wall", "random")}
        if rows["flip"].n == 0:
            told.append(f"layer {flips.layers[i]}, {kind}: no walk to move")
            continue
        less = flips.contrast[kind]["other wall"][i]
        told.append(
            f"layer {flips.layers[i]}, {kind}: {WAYS_MOVED[kind]} in {percent(rows['flip'].value)} of "
            f"{rows['flip'].n} mazes (another wall's direction {percent(rows['other wall'].value)}, a random one "
            f"{percent(rows['random'].value)}; flip less other wall {share(less)} points)"
        )
    return "; ".join(told)


def _better(flips: WallFlips, i: int, before: WallFlips, j: int) -> str:
    """Do the second ones' probes steer better? Both are measured on the same walls and edges of the same mazes."""
    gained = {
        kind: bootstrap(
            before.row(kind, before.layers[j], "flip").moved_each.astype(float)
            - flips.row(kind, flips.layers[i], "flip").moved_each
        )
        for kind in flips.kinds
        if flips.row(kind, flips.layers[i], "flip").moved.n
    }
    more = [kind for kind, gain in gained.items() if gain.above_zero]
    less = [kind for kind, gain in gained.items() if gain.high < 0]
    answer = f"better ({', '.join(more)})" if more else f"less ({', '.join(less)})" if less else "no better"
    points = "; ".join(f"{kind} {share(gain)} points" for kind, gain in gained.items()) or "no walk to move"
    return f"Walls read at {before.place} steer the walk {answer}: {points} more walks moved"


def _readable(walls: Any, layers: Any) -> int:
    """Place among `layers` of the one whose probes read walls best."""
    best = max(walls.scores.values(), key=lambda one: float(one.accuracy.max()))
    return int(np.argmax([best.accuracy[layer] for layer in layers]))


def _dynamics(parts: Parts, say: Say) -> None:
    found = parts["dynamics"]
    says = "Fig. 10, jirpy: probes rise from .55–.67 to .955 as exact paths rise from .1 to .88 (read off)"
    if found is None:
        say("probes and behaviour rise together in training", says, "no checkpoints of this model", None)
        return
    best, exact = found.best_accuracy, found["exact"]
    say(
        "probes and behaviour rise together in training",
        says,
        f"over {len(best)} checkpoints inner walls {best[0]:.1%} to {best[-1]:.1%}, exact {exact[0]:.1%} to "
        f"{exact[-1]:.1%}; Spearman {found.together():.2f} with exact, {found.together('streak'):.2f} with the streak; "
        f"of the changes between checkpoints {found.changes_together():.2f} (ours; sizes of mazes grow meanwhile). "
        f"A bag of tokens gives {parts['walls_bag']['ridge'].accuracy.max():.1%} of the walls",
        len(best) > 3 and found.together() > 0.5 and exact[-1] > exact[0],
        "dynamics",
    )


def _consistency(parts: Parts, say: Say) -> None:
    found = parts["consistency"]
    if found is None:
        return
    ones = [one for group in found.models.values() for one in group]
    heads = sum(bool(one.adjacency_heads()) for one in ones)
    above = sum(one.low.max() > max(one.majority, one.control.max(), found.bag) for one in ones)
    near = sum(one.embedding_p < 0.05 for one in ones)
    same = [pair for pair in found.between() if not np.isnan(pair.kappa)]
    kappa = float(np.mean([pair.kappa for pair in same])) if same else float("nan")
    exact = found.spread(lambda one: one.exact)
    probes = found.spread(lambda one: float(one.accuracy.max()))
    told = "; ".join(
        f"{shape}: exact {exact[shape][0]:.1%} [{exact[shape][1]:.1%} to {exact[shape][2]:.1%}], walls "
        f"{probes[shape][0]:.1%} [{probes[shape][1]:.1%} to {probes[shape][2]:.1%}]" for shape in found.models
    )  # fmt: skip
    say(
        "other seeds find the same structure",
        "(ours: the paper has one model of each kind) three seeds of two small shapes on 4 × 4 mazes; judged: all have "
        "probes above every baseline, an adjacency head and ordered embeddings",
        f"{told} (least to largest). Of {len(ones)} models {above} have probes above the baselines (majority of "
        f"each wall {max(one.majority for one in ones):.1%}, bag of tokens {found.bag:.1%}), {heads} adjacency heads, "
        f"{near} ordered embeddings; which mazes two seeds solve agrees with kappa {kappa:.2f}",
        above == heads == near == len(ones),
        "consistency",
    )


__all__ = ["claims"]
