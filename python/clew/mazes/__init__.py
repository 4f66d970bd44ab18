"""Mazes: generators, tokens, models that solve them, and what is known of them (paper 5).

M. I. Ivanitskiy et al., Structured World Representations in Maze-Solving Transformers, arXiv:2312.02566. Mazes and
tokens are those of the `maze-dataset` package.

>>> from clew import mazes
>>> ms = mazes.generate(1000, grid=6, kind="rdfs", seed=0)
>>> tok = mazes.Tokenizer(grid=7)
>>> tok.decode(tok.encode(ms[0]))[:4]
['<ADJLIST_START>', '(5,0)', '<-->', '(4,0)']

What is here; the paper's parts are marked with its figures and tables:

- Mazes: `generate`, `Maze`, `Mazes`, `unique`, `split`, `KINDS`; `from_maze_dataset`, `to_maze_dataset`.
- Tokens: `Tokenizer`; `tokenizer_of(model)` is the one that a model was trained with.
- Pictures: `text`, `draw` (a path, attention or what probes say over the maze).
- Training: `hallway_config`, `jirpy_config`, `Curriculum` of `Stage`s, `examples`, `questions`.
- Walking: `solve`, `rollouts`, `judge`, `evaluate`, `table` (Table 1; `PAPER` holds the paper's, `TASKS` the rows).
- Reading: `embedding_distances` (Fig. 4), `logit_attribution` (Fig. 5), `adjacency_heads` and `attention_over`
  (Figs. 6, 7), `wall_probes` at <PATH_START> (Figs. 8, 9; `inner_walls`, `walls_of`, `spanning_trees`, `untrained`) or
  another token, `wall_probes_along` at all tokens before the path, `route_probes`, `lens_masses` with `path_lens` and
  `path_steps` (Fig. 9b).
- Over training, and between seeds: `snapshot`, `over_training` with `kept_checkpoints` (Fig. 10), `compare`;
  `stored_dynamics`, `stored_consistency` come with the package.
- Interventions, beyond the paper: `ablate_heads`, `patch_heads` (`matched_heads`, `output_norms`, `minimal_pairs`),
  `flip_walls`, `patch_path_start`.
- All of it on one model, its claims judged: `experiment`; on a terminal, `clew mazes`.
"""

from __future__ import annotations

from .causal import HeadAblation, ablate_heads, matched_heads, output_norms
from .consistency import Consistency, Pair, compare, stored_consistency
from .counterfactual import MinimalPairs, minimal_pairs
from .draw import draw, text
from .dynamics import Dynamics, kept_checkpoints, over_training, stored_dynamics
from .ecosystem import from_maze_dataset, to_maze_dataset
from .embedding import EmbeddingDistances, embedding_distances
from .evaluate import PAPER, TASKS, Evaluation, Judgement, Rate, Table, evaluate, judge, table
from .generate import KINDS, generate, split, unique
from .heads import AdjacencyHeads, LogitAttribution, adjacency_heads, attention_over, logit_attribution
from .lens import LensMasses, lens_masses, path_lens, path_steps
from .maze import Maze, Mazes
from .patching import HeadPatching, PathStartPatching, patch_heads, patch_path_start
from .probes import (
    RouteProbes,
    WallProbes,
    WallScores,
    inner_walls,
    route_probes,
    spanning_trees,
    untrained,
    wall_probes,
    wall_probes_along,
    walls_of,
)
from .rollout import rollouts, solve, tokenizer_of
from .snapshot import Snapshot, snapshot
from .steering import WallFlips, flip_walls
from .study import MazeExperiment, experiment
from .tokens import Tokenizer
from .training import Curriculum, Stage, examples, hallway_config, jirpy_config, questions

__all__ = [
    "KINDS",
    "PAPER",
    "TASKS",
    "AdjacencyHeads",
    "Consistency",
    "Curriculum",
    "Dynamics",
    "EmbeddingDistances",
    "Evaluation",
    "HeadAblation",
    "HeadPatching",
    "Judgement",
    "LensMasses",
    "LogitAttribution",
    "Maze",
    "MazeExperiment",
    "Mazes",
    "MinimalPairs",
    "Pair",
    "PathStartPatching",
    "Rate",
    "RouteProbes",
    "Snapshot",
    "Stage",
    "Table",
    "Tokenizer",
    "WallFlips",
    "WallProbes",
    "WallScores",
    "ablate_heads",
    "adjacency_heads",
    "attention_over",
    "compare",
    "draw",
    "embedding_distances",
    "evaluate",
    "examples",
    "experiment",
    "flip_walls",
    "from_maze_dataset",
    "generate",
    "hallway_config",
    "inner_walls",
    "jirpy_config",
    "judge",
    "kept_checkpoints",
    "lens_masses",
    "logit_attribution",
    "matched_heads",
    "minimal_pairs",
    "output_norms",
    "over_training",
    "patch_heads",
    "patch_path_start",
    "path_lens",
    "path_steps",
    "questions",
    "rollouts",
    "route_probes",
    "snapshot",
    "solve",
    "spanning_trees",
    "split",
    "stored_consistency",
    "stored_dynamics",
    "table",
    "text",
    "to_maze_dataset",
    "tokenizer_of",
    "unique",
    "untrained",
    "wall_probes",
    "wall_probes_along",
    "walls_of",
]
