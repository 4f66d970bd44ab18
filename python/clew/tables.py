"""Tables for a terminal: columns of tokens whose width is right for every script."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from .config import ModelConfig
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


def model_facts(model: Model) -> list[tuple[str, str]]:
    """What a model's look says of it: (name, value)."""
    c = model.config
    heads = f"{c.n_heads} × {c.d_head}"
    if c.n_key_value_heads != c.n_heads:
        heads += f", {c.n_key_value_heads} key-value heads"
    return [
        ("architecture", c.original_architecture or "custom"),
        ("parameters", f"{model.n_params:,}"),
        ("layers", str(c.n_layers)),
        ("d_model", str(c.d_model)),
        ("heads", heads),
        *([("attention", seen)] if (seen := visible(c)) else []),
        ("d_mlp", "none" if c.attn_only else f"{c.d_mlp}, {c.act_fn}{', gated' if c.gated_mlp else ''}"),
        ("norm", str(c.normalization_type)),
        ("positions", f"{c.positional_embedding_type}, n_ctx {c.n_ctx}"),
        ("input", f"vectors of {c.d_in}") if c.d_in is not None else ("vocabulary", str(c.d_vocab)),
        *([("output", f"vectors of {c.d_out}")] if c.d_out is not None else []),
        ("dtype", str(model.dtype)),
    ]


def visible(config: ModelConfig) -> str:
    """What positions see, in words; "" where it is simply all before them.

    >>> import clew
    >>> visible(clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=8, d_vocab=9, window_size=4))
    'the last 4 positions in all layers'
    """
    if config.attention_kind == "linear":
        return f"linear, {config.attention_dir}"
    local = [str(layer) for layer in range(config.n_layers) if config.is_local(layer)]
    where = f"layer{'s' if len(local) > 1 else ''} {', '.join(local)}" if len(local) < config.n_layers else "all layers"
    return f"the last {config.window_size} positions in {where}" if local else ""


__all__ = ["COLUMN", "lens_lines", "model_facts", "pad", "token_texts"]
