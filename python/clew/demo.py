"""The demonstration: a trained model reads a text, and one sees what each of its layers predicts."""

from __future__ import annotations

import os
import textwrap
import unicodedata
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import lens, model

Array = NDArray[Any]

TEXT = (
    "GREMIO:\nGood morrow, neighbour Baptista.\n\nBAPTISTA:\nGood morrow, neighbour Gremio.\n"
    "God save you, gentlemen!\n\nPETRUCHIO:\nAnd you, good sir!"
)
"""From the part of the plays that the bundled model was not trained on."""
FIGURES = ("residual_norms.png", "attention_pattern.png", "logit_lens.png")
_SHOWN = 20  # positions in the table and in the figure of the lens
_HEAD_SHOWN = 24  # positions in the figure of a head: their labels stay readable in a small picture
_WIDE = 16  # characters of a table's column


def _wide(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    """A text cut or filled to a width on a terminal."""
    if _wide(text) > width:
        while _wide(text) >= width:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _wide(text))


def token_texts(of: model.Model, ids: Array | Sequence[int]) -> list[str]:
    """Ids as text for a terminal: the token between quotes, escapes for what is not printable, or the id."""
    numbers = [int(i) for i in ids]
    if of.tokenizer is None:
        return [f"#{i}" for i in numbers]
    return [repr(t) for t in of.tokenizer.to_str_tokens(numbers)]


def _continued(of: model.Model, ids: list[int], n: int) -> list[int]:
    """The ids and the n that the model finds likeliest after them, one at a time."""
    for _ in range(n):
        ids = [*ids, int(of.run(ids, logits="last").logits[0, 0].argmax())]
    return ids


def lens_lines(view: lens.LogitLens, positions: Sequence[int], batch: int = 0) -> list[str]:
    """A table of what each layer finds likeliest at some positions; `*`: it is the token that follows."""
    of, targets, tokens = view.model, view.targets, view.tokens
    assert targets is not None and tokens is not None
    head = pad("token", 12) + pad("follows", 12) + "".join(pad(f"layer {n}", _WIDE) for n in view.layers)
    lines = [head.rstrip(), "─" * _wide(head)]
    for p in positions:
        follows = token_texts(of, [targets[batch, p]])[0] if targets[batch, p] >= 0 else "?"
        line = pad(token_texts(of, [tokens[batch, p]])[0], 11) + " " + pad(follows, 11) + " "
        for row in range(len(view.layers)):
            best = int(view.top_tokens[row, batch, p, 0])
            mark = "*" if best == targets[batch, p] else " "
            share = f"{view.top_probs[row, batch, p, 0]:4.0%}{mark}"
            line += pad(token_texts(of, [best])[0], _WIDE - 6) + share + " "
        lines.append(line.rstrip())
    return lines


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
            cells.append(pad(value.rjust(_WIDE - 6), _WIDE))
        lines.append((pad(what + unit, 24) + "".join(cells)).rstrip())
    return lines


def looks_back(pattern: Array) -> tuple[int, int, float]:
    """(layer, head, mean weight) of the head in [layer, head, query, key] that looks most at the token before."""
    if pattern.shape[-1] < 2:
        return 0, 0, 0.0
    weight = np.diagonal(pattern, -1, axis1=2, axis2=3).mean(-1)
    layer, head = np.unravel_index(int(weight.argmax()), weight.shape)
    return int(layer), int(head), float(weight.max())


def main(out: str | PathLike[str] = "out", name: str | PathLike[str] = "shakespeare") -> list[Path]:
    """Runs the demonstration, prints it, and writes its figures into a folder; gives their paths.

    Other files in the folder stay. Raises LoadError (also where the model's tokenizer needs a package that is missing),
    OSError, and ImportError where matplotlib is missing.
    """
    from . import plot

    of = model.load(name)
    tokenizer = of.tokenizer  # loaded now: a missing package is told before anything is printed or made
    folder = Path(out)
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
    print("\n".join(lens_lines(view, shown)))
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
    paths = []
    for figure, file in zip(figures, FIGURES, strict=True):
        figure.savefig(folder / file)
        paths.append(folder / file)
    print(f"\nMade {len(paths)} figures in {os.fspath(out)}: {', '.join(FIGURES)}")
    return paths
