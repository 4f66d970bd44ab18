"""Tables for a terminal: columns of tokens whose width is right for every script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from .lens import LogitLens
    from .model import Model

Array = NDArray[Any]
COLUMN = 16
"""Characters of a layer's column."""


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


def token_texts(of: Model, ids: Array | Sequence[int]) -> list[str]:
    """Ids as text for a terminal: the token between quotes, escapes for what is not printable, or the id."""
    numbers = [int(i) for i in ids]
    if of._labeller is None:
        return [f"#{i}" for i in numbers]
    return [repr(t) for t in of._labeller.to_str_tokens(numbers)]


def lens_lines(view: LogitLens, positions: Sequence[int], batch: int = 0) -> list[str]:
    """A table of what each layer finds likeliest at some positions; `*`: it is the token that follows."""
    of, targets, tokens = view.model, view.targets, view.tokens
    head = pad("token", 12) + pad("follows", 12) + "".join(pad(f"layer {n}", COLUMN) for n in view.layers)
    lines = [head.rstrip(), "─" * _wide(head)]
    for p in positions:
        next_id = -1 if targets is None else int(targets[batch, p])
        follows = token_texts(of, [next_id])[0] if next_id >= 0 else "?"
        here = f"at {p}" if tokens is None else token_texts(of, [tokens[batch, p]])[0]  # a run from embeddings
        line = pad(here, 11) + " " + pad(follows, 11) + " "
        for row in range(len(view.layers)):
            best = int(view.top_tokens[row, batch, p, 0])
            mark = "*" if best == next_id else " "
            share = f"{view.top_probs[row, batch, p, 0]:4.0%}{mark}"
            line += pad(token_texts(of, [best])[0], COLUMN - 6) + share + " "
        lines.append(line.rstrip())
    return lines


__all__ = ["COLUMN", "lens_lines", "pad", "token_texts"]
