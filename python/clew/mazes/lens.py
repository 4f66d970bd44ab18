"""What each layer would say next, through the logit and the tuned lens: does it know the lattice, and the walls?
(arXiv:2312.02566, Fig. 9b)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..inputs import is_word
from ..lens import TunedLens, unembed
from ..model import check_model
from ..probe import Moments
from .checks import mazes_of
from .maze import Maze, Mazes
from .prompts import NORMAL_95, cell_mass, neighbours, softmax
from .rollout import rollouts, tokenizer_of, walk_cells
from .tokens import Tokenizer

if TYPE_CHECKING:
    from ..model import Model

Array = NDArray[Any]

PATHS = ("solution", "model")
"""Which paths: the mazes' own, or those that the model walks."""
LENSES = ("logit", "tuned", "shuffled")
PAPER_MASS = {
    "neighbours": {"0": 0.58, "1": 0.90, "4": 0.95, "out": 0.99},
    "connected": {"0": 0.43, "1": 0.69, "2": 0.75, "4": 0.82, "8": 0.91, "out": 0.93},
}
"""Read off the paper's Fig. 9b: the 12-layer jirpy model's tuned lens, 50 rollouts; by layer."""


@dataclass(frozen=True)
class Steps:
    """Places on paths where a model says which cell comes next."""

    mazes: Mazes
    tokens: list[Array]
    """Ids of each maze and its path, without <PATH_END>, int32 [length]."""
    maze: Array
    """Number of each place's maze, int [n]."""
    position: Array
    """Its position within the maze's tokens, int [n]."""
    here: Array
    """The cell there, int [n, 2]."""

    def __len__(self) -> int:
        return len(self.maze)

    def __repr__(self) -> str:
        return f"{len(self)} steps on the paths of {self.mazes!r}"

    def streams(self, model: Model, size: int = 64) -> Iterator[tuple[slice, Array]]:
        """(places, the stream after every layer there [layer, places, d_model]), `size` mazes at a time."""
        for first in range(0, len(self.tokens), size):
            part = self.tokens[first : first + size]
            low, high = np.searchsorted(self.maze, [first, first + len(part)])
            if low == high:
                continue
            stack = model.run(part, capture="resid_post", logits=None).stack("resid_post")
            yield slice(int(low), int(high)), stack[:, self.maze[low:high] - first, self.position[low:high]]


def path_steps(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    paths: str = "solution",
    *,
    tokenizer: Tokenizer | None = None,
) -> Steps:
    """Every place of every path but its last cell: there another cell comes next.

    paths: "solution", or "model" for what the model walks, as far as it says cells of the maze. Raises ConfigError for
    another name, without mazes, and where no path has two cells; TokenError as :func:`clew.mazes.solve`.

    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> ms = mazes.generate(5, grid=4)
    >>> bool(len(path_steps(model, ms)) == ms.path_lengths.sum() - 5)
    True
    """
    if not is_word(paths, PATHS):
        raise ConfigError(f"paths = {paths!r}: one of {', '.join(PATHS)}")
    tok, batch = tokenizer_of(model, tokenizer), Mazes.of(ms)
    if len(batch) == 0:
        raise ConfigError("path_steps: no mazes: an empty split?")
    prompts = tok.encode_batch(batch, path=False)
    if paths == "solution":
        whole = tok.encode_batch(batch)
        walks = [row[len(prompt) + 1 : -1] for row, prompt in zip(whole, prompts, strict=True)]
    else:
        walks = [walk_cells(row) for row in rollouts(model, batch, tokenizer=tok)]
    tokens, maze, position, here = [], [], [], []
    for i, (prompt, walk) in enumerate(zip(prompts, walks, strict=True)):
        cells = tok.cells_of(walk)
        strange = np.flatnonzero(((cells < 0) | (cells >= batch.grids[i])).any(1))
        k = int(strange[0]) if len(strange) else len(cells)
        n = max(0, k - 1)
        tokens.append(np.concatenate([prompt, [tok.ids["<PATH_START>"]], walk[:k]]).astype(np.int32))
        maze.append(np.full(n, i))
        position.append(len(prompt) + 1 + np.arange(n))
        here.append(cells[:n])
    if not sum(map(len, maze)):
        raise ConfigError(f"path_steps: no path ({paths}) of two cells or more")
    return Steps(batch, tokens, np.concatenate(maze), np.concatenate(position), np.concatenate(here))


def path_lens(model: Model, steps: Steps, lam: float = 1e-3) -> tuple[TunedLens, TunedLens]:
    """The tuned lens learned on paths alone, and its control: the same with every stream led to another place's end.

    Both by ridge regression of the difference between the last layer's stream and each layer's, so that λ pulls
    towards the logit lens. Raises ConfigError for a negative lam, for what are no places on paths, or for a single one.

    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2), seed=0)
    >>> tuned, shuffled = path_lens(model, path_steps(model, mazes.generate(30, grid=4)))
    >>> tuned.weight.shape, bool((tuned.weight[-1] == np.eye(128)).all())
    ((2, 128, 128), True)
    """
    if not isinstance(steps, Steps):
        raise ConfigError(f"path_lens: steps: places on paths, as path_steps gives, not {type(steps).__name__}")
    check_model(model)
    sums = Moments()
    for _, x in steps.streams(model):
        if x.shape[1] == 1:  # alone in its piece: there is no other end that the control could lead it to
            continue
        x = x.astype(np.float64)
        # the control pairs each place with another maze's: half of the piece away
        ends = np.stack([x[-1], np.roll(x[-1], x.shape[1] // 2, axis=0)])
        sums.add(x[:-1], np.concatenate([ends[0] - x[:-1], ends[1] - x[:-1]], axis=-1))
    if sums.n == 0:
        raise ConfigError(f"path_lens: {steps!r}: the control needs two places at least")
    n, d = model.config.n_layers, model.config.d_model
    weight = np.broadcast_to(np.eye(d), (2, n, d, d)).copy()
    bias = np.zeros((2, n, d))
    if n > 1:
        found = sums.ridge(lam)
        for i, columns in enumerate((slice(0, d), slice(d, None))):
            weight[i, :-1] += found.weight[..., columns]
            bias[i, :-1] = found.bias[..., columns]
    return TunedLens(model, weight[0], bias[0]), TunedLens(model, weight[1], bias[1])


@dataclass(frozen=True)
class LensMasses:
    """Probability that a lens gives to cells around the place where a path is; made by :func:`lens_masses`.

    Arrays by lens ("logit"; "tuned"; "shuffled", the tuned lens's control), each [layer]; the last layer's are the
    model's own predictions, whatever the lens.
    """

    paths: str
    n_train: int
    """Places that the tuned lens learned from; 0: it was given."""
    n: int
    """Places that were looked at."""
    n_mazes: int
    cells: dict[str, Array]
    """On cells of the maze's grid."""
    neighbours: dict[str, Array]
    """On the two to four lattice neighbours of the place, walls or not."""
    connected: dict[str, Array]
    """On those of them that are connected with it."""
    connected_low: dict[str, Array]
    """Lower end of the 95 % interval of `connected`, over mazes; NaN where places are of one maze."""
    connected_high: dict[str, Array]
    even: dict[str, Array]
    """What `connected` would be if the neighbours' mass were spread evenly over them: no walls are known."""
    other_maze: dict[str, Array]
    """On the neighbours that another maze connects with the same cell: control."""
    chance_neighbours: float
    """Share of the grid's cells that are neighbours: mass there if all cells were alike."""
    chance_connected: float
    divergence: dict[str, Array]
    """Kullback-Leibler divergence from the model's predictions to the lens's, nats."""
    lenses: dict[str, TunedLens | None] = field(repr=False, metadata={"json": False})

    def knows_walls(self, lens: str = "tuned") -> Array:
        """Bool [layer]: does the interval of the connected neighbours' mass lie above an even spread of it?"""
        return np.asarray(self.connected_low[lens] > self.even[lens])

    def table(self) -> str:
        """Masses by layer as text."""
        lines = [f"layer  {'neighbours':>22}  {'connected':>22}  even   other maze  (logit, tuned, shuffled; tuned)"]
        for layer in range(len(self.cells["tuned"])):
            three = [
                "  ".join(f"{part[lens][layer]:6.3f}" for lens in LENSES) for part in (self.neighbours, self.connected)
            ]
            lines.append(
                f"{layer:>5}  {three[0]:>22}  {three[1]:>22}  {self.even['tuned'][layer]:.3f}  "
                f"{self.other_maze['tuned'][layer]:.3f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def lens_masses(
    model: Model,
    train: Mazes | Iterable[Maze] | Maze | TunedLens,
    test: Mazes | Iterable[Maze] | Maze,
    *,
    paths: str = "solution",
    lam: float = 1e-3,
    tokenizer: Tokenizer | None = None,
) -> LensMasses:
    """Mass of the logit lens's and the tuned lens's predictions on lattice neighbours and on connected neighbours of
    the cell where a path is, by layer.

    Parameters
    ----------
    model
        A model of maze tokens.
    train
        Mazes whose solutions the tuned lens learns from, or a tuned lens; there is no "shuffled" control of a given
        one: its rows are NaN.
    test
        Mazes to look at, of one grid, at least two: each is the other one's control.
    paths
        "solution": along the mazes' own paths; "model": along the model's, as the paper's 50 rollouts.
    lam
        Penalty of the fit, see :func:`path_lens`.

    Raises
    ------
    ConfigError
        Walls that are in both parts, another name of paths, no path of two cells, fewer than two mazes.
    ShapeError
        Mazes of several grids to look at.
    TokenError
        A model of other tokens, mazes larger than its vocabulary or its positions.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=2), seed=0)
    >>> train, test = (mazes.generate(n, 4, split=part) for n, part in ((100, "train"), (20, "test")))
    >>> found = mazes.lens_masses(model, train, test)
    >>> found.connected["tuned"].shape, 0.05 < found.chance_connected < found.chance_neighbours < 0.25
    ((2,), True)
    """
    tok = tokenizer_of(model, tokenizer)
    lenses: dict[str, TunedLens | None] = {"logit": None}
    n_train, held = 0, mazes_of(test, "lens_masses")
    if isinstance(train, TunedLens):
        if train.model is not model:
            raise ConfigError("lens_masses: the tuned lens was made for another model")
        lenses["tuned"] = train
    else:
        learn = Mazes.of(train)
        if len(learn) == 0:
            raise ConfigError("lens_masses: no mazes to learn from: an empty split?")
        both = np.intersect1d(learn.hashes, held.hashes)
        if len(both):
            raise ConfigError(f"lens_masses: {len(both)} mazes' walls are in both parts: make them with split='train' "
                              "and split='test'")  # fmt: skip
        places = path_steps(model, learn, tokenizer=tok)
        n_train = len(places)
        lenses["tuned"], lenses["shuffled"] = path_lens(model, places, lam)
    steps = path_steps(model, held, paths, tokenizer=tok)
    around, inside, connected = neighbours(held[steps.maze], steps.here)
    elsewhere = neighbours(held[(steps.maze + 1) % len(held)], steps.here)[2]
    cells = held.grids[steps.maze] ** 2
    parts = _masses(model, lenses, steps, tok, around, (inside, connected, elsewhere))
    nothing = np.full(next(iter(parts.values())).shape, np.nan)
    parts |= {lens: nothing for lens in LENSES if lens not in parts}
    share = connected.sum(1) / inside.sum(1)
    spans = {lens: _interval(part[:, 2], steps.maze) for lens, part in parts.items()}

    def mean(column: int) -> dict[str, Array]:
        return {lens: parts[lens][:, column].mean(-1) for lens in LENSES}

    return LensMasses(
        paths, n_train, len(steps), len(np.unique(steps.maze)), mean(0), mean(1), mean(2),
        {lens: spans[lens][0] for lens in LENSES}, {lens: spans[lens][1] for lens in LENSES},
        {lens: (parts[lens][:, 1] * share).mean(-1) for lens in LENSES}, mean(3),
        float((inside.sum(1) / cells).mean()), float((connected.sum(1) / cells).mean()), mean(4), lenses,
    )  # fmt: skip


def _masses(
    model: Model, lenses: dict[str, TunedLens | None], steps: Steps, tok: Tokenizer, around: Array,
    which: tuple[Array, ...],
) -> dict[str, Array]:  # fmt: skip
    """Lens → [layer, part, place]: mass on the grid's cells, on each part of the neighbours; divergence from the
    output."""
    out = {lens: np.zeros((model.config.n_layers, len(which) + 2, len(steps))) for lens in lenses}
    grids, tiny = steps.mazes.grids[steps.maze], np.finfo(np.float64).tiny
    for rows, x in steps.streams(model):
        column = tok.cells.max(1) < grids[rows, None]
        for lens, tuned in lenses.items():
            y = x if tuned is None else np.stack([tuned.translate(part, layer) for layer, part in enumerate(x)])
            p = softmax(unembed(model, y))
            out[lens][:, 0, rows] = (p[..., -len(tok.cells) :] * column).sum(-1)
            for i, wanted in enumerate(which):
                out[lens][:, 1 + i, rows] = cell_mass(p, tok, around[rows], wanted[rows])
            apart = np.log(np.maximum(p[-1], tiny)) - np.log(np.maximum(p, tiny))
            out[lens][:, -1, rows] = (p[-1] * apart).sum(-1)
    return out


def _interval(values: Array, maze: Array) -> tuple[Array, Array]:
    """95 % interval of the mean of values [layer, place], NaN of one maze's: its places are no independent draws."""
    mean = values.mean(-1)
    _, group = np.unique(maze, return_inverse=True)
    m = int(group.max()) + 1
    off = np.stack([np.bincount(group, row, m) for row in values - mean[:, None]])
    # of a ratio of sums over mazes (Cochran 1977, eq. 6.13)
    width = NORMAL_95 * np.sqrt(np.square(off).sum(-1) * m / (m - 1)) / values.shape[1] if m > 1 else np.nan
    return mean - width, mean + width


__all__ = ["LENSES", "PAPER_MASS", "PATHS", "LensMasses", "Steps", "lens_masses", "path_lens", "path_steps"]
