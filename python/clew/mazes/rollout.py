"""Letting models walk: prompts, batched rollouts through the key-value cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import ConfigError, TokenError
from ..inputs import check_type
from ..model import Model, check_model
from ..weights import whole
from .maze import Maze, Mazes
from .tokens import PATH_END, PATH_START, SPECIALS, Tokenizer

if TYPE_CHECKING:
    from ..edit import Edit

Array = NDArray[Any]

BATCH = 256
"""Mazes that are walked at a time."""


def tokenizer_of(model: Model, tokenizer: Tokenizer | None = None) -> Tokenizer:
    """The vocabulary of a maze model: the one that is given, the one that its configuration names, or the uniform one
    of its size.

    Raises
    ------
    TokenError
        A model whose vocabulary is another one.
    ConfigError
        What is no model, or no tokenizer.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> mazes.tokenizer_of(clew.Model.from_config(mazes.hallway_config()))
    Tokenizer of 7 × 7 mazes, uniform: 60 tokens
    """
    check_model(model)
    if tokenizer is not None:
        check_type(Tokenizer, "a Tokenizer of mazes", tokenizer=tokenizer)
    d_vocab, d_out = model.config.d_vocab, model.config.d_vocab_out
    if tokenizer is None:
        named = model.config.extra.get("mazes")
        if isinstance(named, dict):
            tokenizer = Tokenizer(named["grid"], named["order"])
        else:
            grid = round(max(0, d_vocab - len(SPECIALS)) ** 0.5)
            if grid < 2 or len(SPECIALS) + grid * grid != d_vocab or model.config.d_in is not None:
                raise TokenError(
                    f"{model.config.model_name}: a vocabulary of {d_vocab} tokens is none of mazes: they have "
                    f"{len(SPECIALS)} + grid² (60 for 7 × 7)"
                )
            tokenizer = Tokenizer(grid)
    if d_vocab != len(tokenizer.vocab) or d_out != len(tokenizer.vocab) or model.config.d_in is not None:
        raise TokenError(
            f"{model.config.model_name} reads {d_vocab} and writes {d_out} tokens; the vocabulary of "
            f"{tokenizer.grid} × {tokenizer.grid} mazes has {len(tokenizer.vocab)}"
        )
    return tokenizer


def solve(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    tokenizer: Tokenizer | None = None,
    edits: Edit | Iterable[Edit] = (),
    max_cells: int | None = None,
) -> list[Array]:
    """The paths that a model walks: the likeliest token again and again, until it says <PATH_END>.

    The prompt is everything before <PATH_START>, as the paper's.

    Parameters
    ----------
    model
        A model of maze tokens.
    ms
        Mazes.
    tokenizer
        Its vocabulary; None: see :func:`tokenizer_of`.
    edits
        Interventions that hold for prompt and path.
    max_cells
        Longest path; None: as many cells as the maze has, or as the model's positions leave room for.

    Returns
    -------
    For each maze the cells of its path, int [k, 2]; (−1, −1) for a token that is no cell. A path that never ended has
    no <PATH_END>, which :func:`rollouts` shows.

    Raises
    ------
    TokenError
        A model with another vocabulary, a maze that is larger than it, prompts longer than the model's positions.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> [path.shape[1] for path in mazes.solve(model, mazes.generate(3, grid=3))]
    [2, 2, 2]
    """
    tok = tokenizer_of(model, tokenizer)
    return [
        tok.cells_of(walk_cells(row)) for row in rollouts(model, ms, tokenizer=tok, edits=edits, max_cells=max_cells)
    ]


def walk_cells(tokens: Array) -> Array:
    """The tokens between <PATH_START> and <PATH_END>."""
    begin = 1 if len(tokens) and tokens[0] == PATH_START else 0
    return tokens[begin:-1] if len(tokens) and tokens[-1] == PATH_END else tokens[begin:]


def rollouts(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    tokenizer: Tokenizer | None = None,
    edits: Edit | Iterable[Edit] = (),
    max_cells: int | None = None,
) -> list[Array]:
    """New token ids of each maze as the model says them, <PATH_START> and <PATH_END> included: see :func:`solve`."""
    from ..edit import as_edits

    tok, batch, held = tokenizer_of(model, tokenizer), Mazes.of(ms), as_edits(edits)
    if max_cells is not None and (isinstance(max_cells, bool) or whole(max_cells, "max_cells") < 1):
        raise ConfigError(f"max_cells = {max_cells!r}: at least 1")
    prompts = tok.encode_batch(batch, path=False)
    out: list[Array] = []
    size = len(batch) if held else BATCH  # edits may count sequences
    for start in range(0, len(batch), size):
        part = prompts[start : start + size]
        longest = max(len(p) for p in part)
        cells = int(batch.grids[start : start + size].max()) ** 2 if max_cells is None else max_cells
        room = min(cells + 2, model.config.n_ctx - longest) if "pos_embed.W_pos" in model.weights else cells + 2
        if room < 1:
            raise TokenError(f"mazes {start} to {start + len(part) - 1}: prompts of {longest} tokens, the model has "
                             f"{model.config.n_ctx} positions")  # fmt: skip
        made = model.generate(part, max_new_tokens=room, stop=tok.ids["<PATH_END>"], edits=held)
        out += made.tokens
    return out
