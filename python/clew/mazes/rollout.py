"""Letting models walk: prompts, batched rollouts through the key-value cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import ConfigError, TokenError
from ..generate import Guess, likeliest
from ..inputs import check_type
from ..model import Model, check_model
from ..weights import whole
from .maze import Maze, Mazes
from .tokens import PATH_END, PATH_START, SPECIALS, Tokenizer, grid_of

if TYPE_CHECKING:
    from ..edit import Edit

Array = NDArray[Any]

BATCH = 256
"""Mazes that are walked at a time."""
MOST_CELLS = 2**30
"""Of a path: longer ones could not be counted."""


def tokenizer_of(model: Model, tokenizer: Tokenizer | None = None) -> Tokenizer:
    """The vocabulary of a maze model: the one that is given, the one that its configuration names, or the uniform one
    of its size.

    A configuration names it by the key "mazes" of its `extra`: {"mazes": {"grid": 7, "order": "rasterized"}}, the
    arguments of :class:`Tokenizer`. `hallway_config` and `jirpy_config` write that key, and files keep it.

    Raises
    ------
    TokenError
        A model whose vocabulary is another one, or whose configuration names another one.
    ConfigError
        What is no model, or no tokenizer; a configuration whose key "mazes" names none.

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
    named: Tokenizer | None = None
    if tokenizer is None:
        tokenizer = recorded(model)
    else:
        with suppress(ConfigError):  # a record that names no vocabulary contradicts none
            named = recorded(model)
    if tokenizer is None:
        grid = grid_of(d_vocab)
        if grid is None or model.config.d_in is not None:
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
    if named is not None and (named.grid, named.order) != (tokenizer.grid, tokenizer.order):
        raise TokenError(
            f"{model.config.model_name} is configured for {named!r}, not for {tokenizer!r}: give its configuration "
            f'extra={{"mazes": {{"grid": {tokenizer.grid}, "order": "{tokenizer.order}"}}}}'
        )
    return tokenizer


def recorded(model: Model) -> Tokenizer | None:
    """The vocabulary that a model's configuration names, whatever its size; None where it names none.

    Raises ConfigError for a key "mazes" that names no vocabulary.
    """
    extra, name = model.config.extra, model.config.model_name
    if "mazes" not in extra:
        return None
    named = extra["mazes"]
    if not isinstance(named, Mapping) or not {"grid", "order"} <= named.keys():
        raise ConfigError(f'{name}: extra["mazes"] = {named!r:.80}: a mapping with "grid" and "order"')
    try:
        return Tokenizer(named["grid"], named["order"])
    except ConfigError as error:
        raise ConfigError(f'{name}: extra["mazes"] = {named!r:.80}: {error}') from None


def room_for_paths(model: Model, lengths: Array, wanted: Array | int) -> Array:
    """New tokens behind prompts of so many tokens [n]: as many as are wanted, or as the model's positions leave room
    for. Raises TokenError naming the first maze that has room for none."""
    if "pos_embed.W_pos" not in model.weights:
        return np.broadcast_to(wanted, lengths.shape)
    room = np.minimum(wanted, model.config.n_ctx - lengths)
    if (bad := np.flatnonzero(room < 1)).size:
        raise TokenError(
            f"maze {bad[0]}: a prompt of {lengths[bad[0]]} tokens, {model.config.model_name} has {model.config.n_ctx} "
            "positions: no room for a path"
        )
    return np.asarray(room)


def solve(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    tokenizer: Tokenizer | None = None,
    edits: Edit | Iterable[Edit] = (),
    max_cells: int | None = None,
) -> list[Array]:
    """The paths that a model walks: the likeliest token again and again, until it says <PATH_END>.

    The prompt is everything before <PATH_START>, as the paper's. What a model walks in a maze does not depend on the
    others.

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
        Longest path; None: as many cells as the maze has, or as the model's positions leave room for behind its prompt.

    Returns
    -------
    For each maze the cells of its path, int [k, 2]; (−1, −1) for a token that is no cell. A path that never ended has
    no <PATH_END>, which :func:`rollouts` shows.

    Raises
    ------
    TokenError
        A model with another vocabulary, a maze that is larger than it, or whose prompt takes all the model's positions:
        its number and its tokens are named.

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
    """New token ids of each maze as the model says them, <PATH_START> and <PATH_END> included: see :func:`solve`.

    A walk that was cut off, by `max_cells` or where the model's positions end, has no <PATH_END>. What the maze makes
    likely is read as a guess of what is said: a walk that takes the shortest path takes one pass with its prompt
    instead of one for each cell, one that goes astray a few, and no walk becomes another. Edits see every cell come by
    itself.
    """
    from ..edit import as_edits

    tok, batch, held = tokenizer_of(model, tokenizer), Mazes.of(ms), as_edits(edits)
    if max_cells is not None and (isinstance(max_cells, bool) or whole(max_cells, "max_cells") < 1):
        raise ConfigError(f"max_cells = {max_cells!r}: at least 1")
    prompts = tok.encode_batch(batch, path=False)
    wanted = path_tokens(batch) if max_cells is None else min(int(max_cells), MOST_CELLS) + 2
    room = room_for_paths(model, np.array([len(row) for row in prompts], int), wanted)
    out: list[Array] = []
    size = max(len(batch), 1) if held else BATCH  # edits may count sequences
    for start in range(0, len(batch), size):
        part = slice(start, start + size)
        out += likeliest(model, prompts[part], room[part], PATH_END, held, _corridors(batch[part], tok))
    # The last of the wanted tokens is the place of <PATH_END>: what stands there instead is a cell too many.
    most = np.broadcast_to(wanted, len(batch)).tolist()
    return [row[:-1] if len(row) == n and row[-1] != PATH_END else row for row, n in zip(out, most, strict=True)]


def _corridors(ms: Mazes, tokenizer: Tokenizer) -> Guess:
    """Guesses that walk along what is connected, nearer to the target wherever they can.

    A model that has learned its mazes does so most of the time, also where it has taken a wrong turn.
    """

    def guess(walks: Array, said: list[list[int]], most: Array) -> list[Array]:
        lengths = np.array([len(text) for text in said], np.int32)
        tokens = np.array([token for text in said for token in text], np.int32)
        found, counts = _core.maze_guess(
            ms.batch, tokenizer._specials, tokenizer.cell_ids, walks, tokens, lengths, most
        )
        starts = np.cumsum(most) - most
        return [found[i : i + n] for i, n in zip(starts.tolist(), counts.tolist(), strict=True)]

    return guess


def path_tokens(ms: Mazes) -> Array:
    """Tokens of each maze's longest path without a cell twice, <PATH_START> and <PATH_END> included, int [n]."""
    return ms.grids**2 + 2
