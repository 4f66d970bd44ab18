"""The demonstration's mazes: a trained model walks through new ones, and they are read out of it."""

from __future__ import annotations

import os
from pathlib import Path

from ..loaders import bundled
from ..model import load
from . import figures
from .draw import text
from .evaluate import PAPER, table
from .generate import generate
from .heads import adjacency_heads
from .probes import wall_probes
from .rollout import tokenizer_of
from .study import GATHERED, KINDS, LEAST_MASS, has_mid, picture

MODEL = "maze-6x6"
FIGURES = ("maze_paths.png", "maze_probes.png", "maze_adjacency_head.png", "maze_table.png")
_MAZES = 100  # of each kind
_TRAIN, _TEST = 1000, 200  # of the probes: enough for a picture


def main(out: str | os.PathLike[str] = "out", name: str | os.PathLike[str] = MODEL, *, mazes: int = _MAZES,
         train: int = _TRAIN) -> list[Path]:  # fmt: skip
    """Lets a maze model solve new mazes, prints Table 1 of the paper for it, and draws paths, probes and a head.

    Nothing is trained but the probes. Writes FIGURES into the folder; their paths. Where the model is not bundled in
    this installation it says so in one line, and gives no paths. Raises LoadError for another model that cannot be
    loaded, TokenError for one that reads no mazes, OSError, and ImportError where matplotlib is missing.
    """
    if name == MODEL and MODEL not in bundled():
        print(f"\n{MODEL} does not come with this installation: no mazes are shown.")
        return []
    model = load(name)
    tok, config = tokenizer_of(model), model.config
    side = min(6, tok.grid)
    print(f"\n{config.model_name}: {model.n_params:,} parameters, {config.n_layers} layers of {config.n_heads} heads")
    print("It reads a maze's open edges, origin and target, and says a path.")
    found = table(model, mazes, side, kinds=KINDS)
    kinds = list(found)
    print(f"\n{mazes} new mazes of each kind, {side} × {side}, whose walls were never trained on: % right,")
    print("in brackets the paper's" + "".join(f"{kind:>{21 if i == 0 else 22}}" for i, kind in enumerate(kinds)))
    for row in ("exact", "valid", "target", "path_start", "first_path_choice", "rand_path_token", "path_end"):
        cells = [f"{100 * found[kind][row].value:13.1f}  ({PAPER['hallway'][kind][row]:5.1f})" for kind in kinds]
        print(f"  {row:<20}" + "".join(cells))
    learn = generate(train, side, "rdfs", 1, split="train")
    held = generate(_TEST, side, "rdfs", 2, split="test")
    site = "resid_mid" if has_mid(model) else "resid_post"
    here = wall_probes(model, learn, held, methods=["ridge"])
    gathered = wall_probes(model, learn, held, position=GATHERED, site=site, methods=["ridge"])
    heads = adjacency_heads(model, learn[:_TEST], draws=2)
    head = heads.ranked(LEAST_MASS)[0]
    (layer, share), (layer_before, share_before) = (
        (one["ridge"].best, one["ridge"].accuracy.max()) for one in (here, gathered)
    )
    print(f"\nAt <PATH_START>, before the first step, linear probes behind layer {layer} read {share:.1%} of the inner")
    print(f"walls of {_TEST} other mazes. Before it knows where from and where to, at {gathered.place},")
    print(f"layer {layer_before}, they read {share_before:.1%}. What is commoner for each wall gives", end=" ")
    print(f"{here.majority:.1%}.")
    near, behind = heads.connected_over_uniform[head], heads.walled_over_uniform[head]
    print(f"Layer {head[0]}, head {head[1]} looks most along open edges: {near:.1f} × as much as spread evenly at")
    print(f"cells that one step reaches, {behind:.1f} × at neighbours behind a wall.")
    shown = picture(model, gathered, head, side, 0, tok)
    for maze, path, kind, exact in zip(shown.mazes, shown.paths, shown.kinds, shown.exact, strict=True):
        print(f"\nA maze, {kind}, and the path that the model walked: {'solved' if exact else 'not solved'}")
        print(text(maze, path))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = (
        figures.solved(shown), figures.probe_picture(shown), figures.adjacency_head(shown), figures.evaluation(found),
    )  # fmt: skip
    files = [folder / file for file in FIGURES]
    for figure, file in zip(drawn, files, strict=True):
        figure.savefig(file)
    return files


__all__ = ["FIGURES", "MODEL", "main"]
