"""Small maze models, and slow twins of what is done with them."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
from clew import mazes
from twin import twin

Array = Any
TOK = mazes.Tokenizer(7)


def made(n_layers: int = 2, **changes: Any) -> clew.Model:
    config = mazes.hallway_config(
        **{"n_layers": n_layers, "d_model": 24, "n_heads": 4, "d_mlp": 32, "initializer_range": 0.3} | changes
    )
    return clew.Model.from_config(config, seed=3, dtype="float64")


def logits_of(model: clew.Model, tokens: Array, edits: Any = None) -> Array:
    """Of the last position, by the twin."""
    weights = {name: model.weights[name] for name in model.weights}
    return twin(model.config, weights, tokens, edits=edits)["logits"][0, -1]


def slow_walk(model: clew.Model, prompt: Array, cells: int, edits: Any) -> list[tuple[int, int]]:
    """Token after token, everything computed anew by the twin; edits: a function of the number of tokens."""
    tokens = [int(t) for t in prompt]
    while len(tokens) - len(prompt) < cells + 1:
        tokens.append(int(logits_of(model, [tokens], edits(len(tokens))).argmax()))
        if tokens[-1] == TOK.ids["<PATH_END>"]:
            tokens.pop()
            break
    return [tuple(cell) for cell in TOK.cells_of(tokens[len(prompt) :]).tolist()]


def solved(maze: mazes.Maze, removed: Any, added: Any) -> mazes.Maze:
    gone = {tuple(map(tuple, np.sort(removed, 0).tolist()))} if removed is not None else set()
    edges = [e for e in maze.edges if tuple(map(tuple, np.sort(e, 0).tolist())) not in gone]
    return mazes.Maze(maze.grid, edges + ([added] if added is not None else []), maze.origin, maze.target)
