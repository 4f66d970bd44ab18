"""Mazes: generators, tokens, models that solve them, and what is known of them (paper 5).

M. I. Ivanitskiy et al., Structured World Representations in Maze-Solving Transformers, arXiv:2312.02566. The mazes and
tokens are those of the `maze-dataset` package.

>>> from clew import mazes
>>> print(mazes.generate(1, grid=3, seed=4)[0])
"""

from __future__ import annotations

from .generate import KINDS, generate, split, unique
from .maze import Maze, Mazes
from .rollout import rollouts, solve, tokenizer_of
from .tokens import Tokenizer
from .training import Curriculum, Stage, examples, hallway_config, jirpy_config

__all__ = [
    "KINDS",
    "Curriculum",
    "Maze",
    "Mazes",
    "Stage",
    "Tokenizer",
    "examples",
    "generate",
    "hallway_config",
    "jirpy_config",
    "rollouts",
    "solve",
    "split",
    "tokenizer_of",
    "unique",
]
