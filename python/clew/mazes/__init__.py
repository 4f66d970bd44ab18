"""Mazes: generators, tokens, models that solve them, and what is known of them (paper 5).

M. I. Ivanitskiy et al., Structured World Representations in Maze-Solving Transformers, arXiv:2312.02566. Mazes and
tokens are those of the `maze-dataset` package.

>>> from clew import mazes
>>> ms = mazes.generate(1000, grid=6, kind="rdfs", seed=0)
>>> tok = mazes.Tokenizer(grid=7)
>>> tok.decode(tok.encode(ms[0]))[:4]
['<ADJLIST_START>', '(5,0)', '<-->', '(4,0)']
"""

from __future__ import annotations

from .draw import draw, text
from .ecosystem import from_maze_dataset, to_maze_dataset
from .evaluate import PAPER, TASKS, Evaluation, Judgement, Rate, Table, evaluate, judge, table
from .generate import KINDS, generate, split, unique
from .maze import Maze, Mazes
from .rollout import rollouts, solve, tokenizer_of
from .tokens import Tokenizer
from .training import Curriculum, Stage, examples, hallway_config, jirpy_config

__all__ = [
    "KINDS",
    "PAPER",
    "TASKS",
    "Curriculum",
    "Evaluation",
    "Judgement",
    "Maze",
    "Mazes",
    "Rate",
    "Stage",
    "Table",
    "Tokenizer",
    "draw",
    "evaluate",
    "examples",
    "from_maze_dataset",
    "generate",
    "hallway_config",
    "jirpy_config",
    "judge",
    "rollouts",
    "solve",
    "split",
    "table",
    "text",
    "to_maze_dataset",
    "tokenizer_of",
    "unique",
]
