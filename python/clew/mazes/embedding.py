"""Do the embeddings of cells lie as the cells do? (arXiv:2312.02566, Fig. 4)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..inputs import is_word
from ..train.data import generator
from .checks import MOST_DRAWS, whole_number
from .rollout import tokenizer_of
from .tokens import Tokenizer

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]

PAPER_R = {"hallway": {"l1": 0.506, "cosine": 0.451}, "jirpy": {"l1": 0.368, "cosine": 0.279}}
"""The paper's correlations."""


@dataclass(frozen=True)
class EmbeddingDistances:
    """Distances between the embeddings of all pairs of cells; made by :func:`embedding_distances`."""

    metric: str
    grid: int
    manhattan: Array
    """Steps between the cells of each pair on the open lattice, int [pairs]."""
    distance: Array
    """Distance between their rows of W_E, float64 [pairs]."""
    r: float
    """Pearson's correlation of the two."""
    control: Array
    """The same correlation with cells shuffled [draws]."""

    @property
    def p(self) -> float:
        """Share of shuffles, this order among them, whose correlation is as large (Mantel 1967)."""
        return float((1 + (self.control >= self.r).sum()) / (1 + len(self.control)))

    def __repr__(self) -> str:
        return (
            f"EmbeddingDistances, {self.metric}, of {len(self.distance):,} pairs of {self.grid} × {self.grid} cells: "
            f"r = {self.r:.3f} with Manhattan distance, p = {self.p:.3g} of {len(self.control)} shuffles"
        )

    def by_distance(self) -> tuple[Array, Array, Array]:
        """Manhattan distances, and mean and standard deviation of the embeddings' distances there."""
        steps = np.unique(self.manhattan)
        parts = [self.distance[self.manhattan == s] for s in steps]
        return steps, np.array([p.mean() for p in parts]), np.array([p.std() for p in parts])


def embedding_distances(
    model: Model,
    metric: str = "l1",
    *,
    grid: int | None = None,
    draws: int = 200,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> EmbeddingDistances:
    """Distances between rows of W_E against Manhattan distances, over all pairs of different cells.

    Parameters
    ----------
    model
        A model of maze tokens.
    metric
        "l1", "l2" or "cosine" (1 − cosine).
    grid
        Cells of the first rows and columns only: those that a model trained on smaller mazes has seen. None: all.
    draws, seed
        Shuffles of the cells: the correlation that no structure gives.

    Raises ConfigError for another metric or a grid that the vocabulary does not have, TokenError for another model.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> found = mazes.embedding_distances(model, "cosine")
    >>> len(found.distance), abs(found.r) < 0.2
    (1176, True)
    """
    tok = tokenizer_of(model, tokenizer)
    draws = whole_number(draws, "embedding_distances: draws", 1, MOST_DRAWS)
    side = tok.grid if grid is None else grid
    if isinstance(side, bool) or not isinstance(side, int | np.integer) or not 2 <= side <= tok.grid:
        raise ConfigError(f"grid = {grid!r}: the vocabulary has cells of 2 to {tok.grid} rows")
    cells = np.array([(r, c) for r in range(side) for c in range(side)])
    rows = model.weights["embed.W_E"][tok.cell_ids[cells[:, 0], cells[:, 1]]].astype(np.float64)
    if not is_word(metric, ("l1", "l2", "cosine")):
        raise ConfigError(f'metric = {metric!r}: "l1", "l2" or "cosine"')
    if metric == "cosine":
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
        between = 1 - unit @ unit.T
    else:
        apart = rows[:, None] - rows[None]
        between = np.abs(apart).sum(-1) if metric == "l1" else np.sqrt(np.square(apart).sum(-1))
    steps = np.abs(cells[:, None] - cells[None]).sum(-1)
    pairs = np.triu_indices(len(cells), 1)
    rng = generator(seed)

    def correlation(order: Array) -> float:
        return float(np.corrcoef(between[np.ix_(order, order)][pairs], steps[pairs])[0, 1])

    control = np.array([correlation(rng.permutation(len(cells))) for _ in range(draws)])
    r = correlation(np.arange(len(cells)))
    return EmbeddingDistances(metric, int(side), steps[pairs], between[pairs], r, control)


__all__ = ["PAPER_R", "EmbeddingDistances", "embedding_distances"]
