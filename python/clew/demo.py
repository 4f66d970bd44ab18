"""The demonstration: what each layer of a trained model predicts, and how another one copies what it read before."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import edit, lens, metrics, model
from .inputs import check_folder
from .tables import COLUMN, pad

Array = NDArray[Any]

TEXT = (
    "GREMIO:\nGood morrow, neighbour Baptista.\n\nBAPTISTA:\nGood morrow, neighbour Gremio.\n"
    "God save you, gentlemen!\n\nPETRUCHIO:\nAnd you, good sir!"
)
"""From the part of the plays that the bundled model was not trained on."""
FIGURES = ("residual_norms.png", "attention_pattern.png", "logit_lens.png")
CHANGED_FIGURES = ("induction_head.png", "patching.png")
"""Of the second part, on the model "english"."""
_SHOWN = 20  # positions in the table and in the figure of the lens
_HEAD_SHOWN = 24  # positions in the figure of a head: their labels stay readable in a small picture


def _continued(of: model.Model, ids: list[int], n: int) -> list[int]:
    """The ids and the n that the model finds likeliest after them, one at a time."""
    for _ in range(n):
        ids = [*ids, int(of.run(ids, logits="last").logits[0, 0].argmax())]
    return ids


def summary_lines(view: lens.LogitLens) -> list[str]:
    """How well each layer predicts the whole text."""
    lines = []
    for what, unit in (("first guess right", ""), ("surprise", ", nats a token"), ("median place", "")):
        cells = []
        for row in range(len(view.layers)):
            known = view.ranks[row] >= 0
            ranks, loss = view.ranks[row][known], view.loss[row][known]
            value = {
                "first guess right": f"{(ranks == 0).mean():.0%}",
                "surprise": f"{loss.mean():.2f}",
                "median place": f"{np.median(ranks) + 1:.0f}",
            }[what]
            cells.append(pad(value.rjust(COLUMN - 6), COLUMN))
        lines.append((pad(what + unit, 24) + "".join(cells)).rstrip())
    return lines


def looks_back(pattern: Array) -> tuple[int, int, float]:
    """(layer, head, mean weight) of the head in [layer, head, query, key] that looks most at the token before."""
    if pattern.shape[-1] < 2:
        return 0, 0, 0.0
    weight = np.diagonal(pattern, -1, axis1=2, axis2=3).mean(-1)
    layer, head = np.unravel_index(int(weight.argmax()), weight.shape)
    return int(layer), int(head), float(weight.max())


def words_twice(of: model.Model, n: int = 12, seed: int = 0) -> list[int]:
    """Ids of n random words of a model's vocabulary, twice: nothing but the first time helps with the second."""
    assert of.tokenizer is not None
    texts = of.tokenizer.to_str_tokens(range(of.config.d_vocab))
    words = [i for i, t in enumerate(texts) if t[:1] == " " and t[1:].isalpha() and t[1:].islower() and len(t) > 5]
    once: list[int] = np.random.default_rng(seed).choice(words, n, replace=False).tolist()
    return once + once


def copying_weight(pattern: Array) -> Array:
    """[layer, head] mean weight from each token of the second half to what followed it in the first.

    pattern: [layer, head, query, key] of n tokens that come twice.
    """
    n = pattern.shape[-1] // 2
    after = np.diagonal(pattern[:, :, n:, 1 : n + 1], axis1=2, axis2=3)[..., : n - 1]
    return np.asarray(after.mean(-1))


def copying(folder: Path) -> list[Path]:
    """The second part: the heads with which "english" copies, what is lost without them, what they move."""
    from . import plot

    of = model.load("english")
    tokenizer = of.tokenizer
    assert tokenizer is not None
    c = of.config
    ids = words_twice(of)
    n = len(ids) // 2
    print(
        f"\n{c.model_name}: {of.n_params:,} parameters, {c.n_layers} layers of {c.n_heads} heads, d_model {c.d_model}"
    )
    print(f"\nIt reads {n} random words, twice:")
    print(textwrap.fill(tokenizer.decode(ids).strip(), 100, initial_indent="  ", subsequent_indent="  "))

    def second(edits: Sequence[edit.Edit] = ()) -> float:
        return float(of.loss(ids, edits=edits)[0, n:].mean())

    first = float(of.loss(ids)[0, : n - 1].mean())
    print(f"\nSurprise: {first:.2f} nats a word the first time, {second():.2f} the second.")
    patterns = of.run(ids, capture="pattern", logits=None).stack("pattern")[:, 0]
    weight = copying_weight(patterns)
    print("Share of attention from a word to what followed it the first time, by head:")
    for layer, row in enumerate(weight):
        print(f"  layer {layer}  " + "".join(f"{w:6.0%}" for w in row))
    layer, head = (int(i) for i in np.unravel_index(int(weight.argmax()), weight.shape))
    back, back_head, share = looks_back(patterns[:layer] if layer else patterns)
    other = (back_head + 1) % c.n_heads
    print(f"Layer {layer}, head {head} does it most. It needs to know what came before each word: head {back_head} of")
    print(f"layer {back} tells, {share:.0%} of whose attention goes to the token before.")
    print("\nSurprise the second time")
    for what, edits in (
        (f"without layer {layer}'s heads", [edit.zero(("z", layer))]),
        (f"without layer {back}, head {back_head}", [edit.zero(("z", back), heads=[back_head])]),
        (f"without layer {back}, head {other}", [edit.zero(("z", back), heads=[other])]),
    ):
        print(f"  {pad(what, 32)} {second(edits):5.2f}")

    asked = ids[:-1]  # the last word is to be copied from position n − 1; there another word stands in its place
    instead = list(asked)
    instead[n - 1] = next(i for i in words_twice(of, n + 1, seed=1) if i not in ids)
    metric = metrics.logit_diff(ids[-1], instead[n - 1])
    sweep = of.sweep(asked, instead, site="resid_pre", over=("layer", "pos"), metric=metric)
    lines = [
        f"layer {i}: " + ", ".join(f"{sweep.recovered[i, p]:.0%}" for p in (n - 1, len(asked) - 1))
        for i in range(c.n_layers)
    ]
    print(f"\nWith another word in place {n}, the model expects that one at the end. Share of the difference that")
    print("comes back when the stream is patched at that place and at the end:")
    print("  " + "; ".join(lines))
    title = f"{c.model_name}, layer {layer}, head {head}: what each word attends to"
    labels = plot.token_labels(of, ids)
    figures = (
        plot.attention(patterns[layer, head], labels, title=title),
        plot.sweep(sweep, show="recovered", title=f"{c.model_name}: where the word to copy is"),
    )
    return _written(figures, CHANGED_FIGURES, folder)


def _written(figures: Sequence[Any], names: Sequence[str], folder: Path) -> list[Path]:
    paths = []
    for figure, name in zip(figures, names, strict=True):
        figure.savefig(folder / name)
        paths.append(folder / name)
    return paths


def main(out: str | PathLike[str] = "out", name: str | PathLike[str] = "shakespeare") -> list[Path]:
    """Runs the demonstration, prints it, and writes its figures into a folder; gives their paths.

    The second part (edits, a sweep) and the third (:mod:`clew.mazes.demo`) come with the first one's own model,
    "shakespeare", only. Other files in the folder stay. Raises LoadError (also where the model's tokenizer needs a
    package that is missing), ConfigError for a file in the folder's place, OSError, and ImportError without matplotlib.
    """
    from . import plot

    folder = check_folder(out=out)
    of = model.load(name)
    tokenizer = of.tokenizer  # loaded now: a missing package is told before anything is printed or made
    folder.mkdir(parents=True, exist_ok=True)
    c = of.config
    print(f"{c.model_name}: {of.n_params:,} parameters, {c.n_layers} layers of {c.n_heads} heads, d_model {c.d_model}")
    if tokenizer is None:
        start = c.bos_token_id if c.bos_token_id is not None else 0
        ids = _continued(of, [start], min(44, c.n_ctx) - 1)
        print("\nThere is no tokenizer beside this model: tokens are shown as ids (#), and the text is the story that")
        print(f"the model itself finds likeliest, {len(ids)} tokens:")
        print(textwrap.fill(" ".join(map(str, ids)), 100, initial_indent="  ", subsequent_indent="  "))
    else:
        ids = tokenizer.encode(TEXT)
        print(f"\nIt reads {len(ids)} tokens:")
        print(textwrap.indent(TEXT, "  "))

    sites = ["resid_pre", "resid_post", "attn_out", "mlp_out", "pattern"]
    plan = of.plan(1, len(ids), capture=sites)
    run = of.run(ids, capture=sites)
    print(f"\nOne run keeps {len(run)} arrays, {plan.keep_bytes / 1e6:.2f} MB, for {plan.flops / 1e6:.0f} MFLOP.")
    parts = run["resid_pre", 0] + run.stack("attn_out").sum(0) + run.stack("mlp_out").sum(0)
    error = np.abs(parts - run["resid_post", -1]).max() / np.abs(parts).max()
    print(f"The stream is the embedding plus what every attention and MLP added: to {error:.0e} of its largest value.")

    view = lens.logit_lens(of, run)
    shown = range(min(1, len(ids) - 1), min(_SHOWN + 1, len(ids)))
    print("\nWhat would be predicted if the stream ended after each layer (share of the probability; * right):\n")
    print(view.table(shown))
    print(f"\nOver all {len(ids) - 1} predictions:")
    print("\n".join(summary_lines(view)))

    layer, head, weight = looks_back(run.stack("pattern")[:, 0])
    print(f"\nLayer {layer}, head {head} looks back most: {weight:.0%} of its attention goes to the token before.")

    n = min(_HEAD_SHOWN, len(ids))
    title = f"{c.model_name}, layer {layer}, head {head}: what each token attends to"
    figures = (
        plot.residual_norms(run, title=f"{c.model_name}: length of the residual stream"),
        plot.attention(run["pattern", layer][0, head, :n, :n], plot.token_labels(of, ids[:n]), title=title),
        plot.lens_table(view, positions=shown, title=f"{c.model_name}: the likeliest next token after each layer"),
    )
    paths = _written(figures, FIGURES, folder)
    if name == "shakespeare":
        from .mazes import demo as mazes

        paths += copying(folder)
        paths += mazes.main(folder)
    print(f"\nMade {len(paths)} figures in {os.fspath(out)}: {', '.join(path.name for path in paths)}")
    return paths
