"""How well a model solves mazes: every row of the paper's Table 1, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, SiteError, TokenError
from ..inputs import check_seed, is_list, number
from ..train.data import generator
from .checks import names_of, path_of, whole_number
from .generate import KINDS, generate
from .maze import Maze, Mazes, shortest_lengths
from .prompts import NORMAL_95
from .rollout import BATCH, path_tokens, rollouts, tokenizer_of, walk_cells
from .tokens import Tokenizer

if TYPE_CHECKING:
    from ..edit import Edit
    from ..model import Model

Array = NDArray[Any]

TASKS = (
    "path_start", "origin_after_path_start", "first_path_choice", "rand_path_token", "rand_path_token_nonend",
    "final_before_path_end", "path_end",
)  # fmt: skip
"""Tasks of one token, in the paper's order."""
PATHS = ("exact", "valid", "target", "shortest", "ended")
"""What is asked of a whole path."""

PAPER: dict[str, dict[str, dict[str, float]]] = {
    model: {
        kind: dict(zip(("exact", "valid", "target", *TASKS), column, strict=True))
        for kind, column in columns.items()
    }
    for model, columns in {
        "hallway": {
            "forkless": (38.3, 54.3, 87.1, 100, 91.0, 71.5, 93.0, 97.3, 95.7, 86.7),
            "rdfs": (24.2, 37.5, 94.5, 100, 100, 67.2, 90.2, 92.2, 93.4, 100),
            "prdfs": (24.2, 49.6, 92.6, 100, 100, 66.4, 84.0, 84.4, 84.4, 100),
        },
        "jirpy": {
            "forkless": (38.7, 53.5, 64.5, 100, 86.7, 66.4, 87.1, 89.8, 85.9, 71.5),
            "rdfs": (82.4, 84.0, 99.2, 100, 100, 86.7, 98.0, 99.2, 100, 99.6),
            "prdfs": (70.7, 87.1, 100, 100, 100, 84.4, 94.5, 97.3, 100, 100),
        },
    }.items()
}  # fmt: skip
"""Table 1 of the paper, 6 × 6 mazes, in percent: [model][kind of maze][row]."""
PAPER_GRID = 6
"""Rows of the paper's mazes: figures of other sizes are not comparable."""


@dataclass(frozen=True)
class Rate:
    """A share of successes with its Wilson interval (Wilson 1927). Raises ConfigError for more successes than trials.

    >>> rate = Rate(8, 10)
    >>> f"{rate.value:.2f} in {rate.low:.3f} … {rate.high:.3f}"
    '0.80 in 0.490 … 0.943'
    """

    successes: int
    n: int
    z: float = NORMAL_95
    """Standard deviations: 95 %."""

    def __post_init__(self) -> None:
        whole_number(self.successes, "Rate: successes", 0, whole_number(self.n, "Rate: n"))
        number(self.z, "Rate: z", above=True)

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.successes / self.n if self.n else math.nan

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self._ends()[0]

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self._ends()[1]

    def _ends(self) -> tuple[float, float]:
        if self.n == 0:
            return 0.0, 1.0
        n, p, z2 = self.n, self.value, self.z**2
        middle, half = p + z2 / (2 * n), self.z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
        return (0.0 if self.successes == 0 else low), (1.0 if self.successes == n else high)

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n}"


@dataclass(frozen=True)
class Judgement:
    """What is true of each path; arrays [n]."""

    exact: Array
    """It is the solution."""
    valid: Array
    """It holds cells of the maze only, at least one, each connected with the one before; backtracking is fine."""
    target: Array
    """Its last cell is the target."""
    shortest: Array
    """It is valid, goes from origin to target, and no way is shorter, even where the maze's own solution goes round:
    the same as exact where there are no cycles."""
    streak: Array
    """Cells at its beginning that agree with the solution, int."""

    def __repr__(self) -> str:
        return (
            f"Judgement of {len(self.exact)} paths: {self.exact.sum()} exact, {self.valid.sum()} valid, "
            f"{self.target.sum()} to the target, {self.shortest.sum()} shortest"
        )


def judge(paths: Sequence[Array], ms: Mazes | Iterable[Maze] | Maze) -> Judgement:
    """Compares paths [k, 2] with their mazes; (−1, −1) stands for a token that is no cell.

    Raises ConfigError where the numbers of paths and mazes differ, ShapeError for what is no path.

    Example
    -------
    >>> from clew import mazes
    >>> maze = mazes.Maze(2, [[(0, 0), (0, 1)], [(0, 1), (1, 1)]], (0, 0), (1, 1))
    >>> there_and_back = np.array([(0, 0), (0, 1), (0, 0), (0, 1), (1, 1)])
    >>> found = mazes.judge([maze.solution, there_and_back, maze.solution[:2]], [maze] * 3)
    >>> found.exact.tolist(), found.valid.tolist(), found.target.tolist()
    ([True, False, False], [True, True, True], [True, True, False])
    """
    batch = Mazes.of(ms)
    if not is_list(paths):
        raise ConfigError(f"judge: paths: a list of paths, not {type(paths).__name__}")
    paths = [path_of(path, f"judge: path {i}") for i, path in enumerate(paths)]
    if len(paths) != len(batch):
        raise ConfigError(f"judge: {len(paths)} paths, {len(batch)} mazes")
    n = len(batch)
    lengths = np.array([len(p) for p in paths], int)
    width = max(2, int(lengths.max(initial=0)), int(batch.path_lengths.max(initial=0)))
    walked, solution = np.full((2, n, width, 2), -1)
    for i, path in enumerate(paths):
        walked[i, : len(path)] = path
    held = batch.batch[4][:, :width].astype(int)
    inside = np.arange(held.shape[1]) < batch.path_lengths[:, None]
    solution[:, : held.shape[1]][inside] = held[inside]
    rows = np.arange(n)
    real: Array = np.less(np.arange(width), lengths[:, None])
    cells: Array = np.all((walked >= 0) & (walked < batch.grids[:, None, None]), axis=-1)
    joined = batch.open_steps(walked)
    valid = (lengths > 0) & (cells | ~real).all(1) & (joined | ~real[:, 1:]).all(1)
    last = walked[rows, np.maximum(lengths - 1, 0)]
    target = (lengths > 0) & (last == batch.ends[:, 1]).all(-1)
    agree = (walked == solution).all(-1)
    exact = (lengths == batch.path_lengths) & (agree | ~real).all(1) & (lengths > 0)
    shortest = valid & target & (walked[:, 0] == batch.ends[:, 0]).all(-1) & (lengths == shortest_lengths(batch))
    streak = np.logical_and.accumulate(agree & real, axis=1).sum(1)
    return Judgement(exact, valid, target, shortest, streak)


class Evaluation(Mapping[str, Rate]):
    """The rows of Table 1 of one model on one set of mazes: name → :class:`Rate`.

    Whole paths, the likeliest token again and again behind the prompt before <PATH_START>: "exact", "valid", "target"
    (see :class:`Judgement`); besides the paper's, "shortest" counts any shortest path, which differs where mazes have
    cycles, and "ended" those that <PATH_END> ended. A walk that was cut off where the model's positions end is no
    finished path: it may be valid as far as it goes, but it is neither exact nor shortest, and its last cell is not
    known to be the target. Then the tasks of one token, behind the true tokens before it.
    """

    def __init__(
        self, ms: Mazes, paths: list[Array], judgement: Judgement, ended: Array, tasks: dict[str, Array]
    ) -> None:
        self.mazes, self.paths, self.judgement = ms, paths, judgement
        """The mazes, the paths that were walked [k, 2], and what is true of them."""
        self.ended = ended
        """Bool [n]: did <PATH_END> end the path?"""
        self.tasks = tasks
        """Task → int [n]: 1 right, 0 wrong, −1 the maze has no such token."""
        self._rows = {name: rate_of(self._path(name)) for name in PATHS}
        self._rows |= {name: rate_of(found[found >= 0] == 1) for name, found in tasks.items()}

    def _path(self, name: str) -> Array:
        return self.ended if name == "ended" else np.asarray(getattr(self.judgement, name))

    def __getitem__(self, row: str) -> Rate:
        if not isinstance(row, str) or row not in self._rows:
            raise SiteError(f"row {row!r}: there are {', '.join(self._rows)}")
        return self._rows[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def streak(self) -> float:
        """Mean number of cells at the beginning of a path that agree with the solution."""
        return float(self.judgement.streak.mean())

    def by_length(self) -> dict[int, dict[str, Rate]]:
        """Cells of the solution → exact, valid, target, shortest, ended."""
        lengths = self.mazes.path_lengths
        return {
            int(k): {name: rate_of(self._path(name)[lengths == k]) for name in PATHS}
            for k in np.unique(lengths).tolist()
        }

    def __repr__(self) -> str:
        lines = [f"{name:<24} {rate}" for name, rate in self.items()]
        return "\n".join([f"{self.mazes!r}", *lines])

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{rate}</td></tr>" for name, rate in self.items())
        return f"<table><caption>{escape(repr(self.mazes))}</caption>{cells}</table>"


def rate_of(found: Array) -> Rate:
    """The share of True, with its interval."""
    return Rate(int(np.count_nonzero(found)), len(found))


def evaluate(
    model: Model,
    ms: Mazes | Iterable[Maze] | Maze,
    *,
    tokenizer: Tokenizer | None = None,
    edits: Edit | Iterable[Edit] = (),
    seed: int = 0,
) -> Evaluation:
    """The rows of Table 1 (arXiv:2312.02566) of a model on mazes, with 95 % intervals.

    Tasks of one token, behind the true tokens before it; the likeliest token must be the true one. Of a path c₀ … c_k
    between <PATH_START> and <PATH_END>: `path_start` asks for <PATH_START>, `origin_after_path_start` for c₀,
    `first_path_choice` for c₁, `rand_path_token` for one of c₀ … c_{k−1} at random, `rand_path_token_nonend` for one of
    c₂ … c_{k−2}, `final_before_path_end` for c_k, `path_end` for <PATH_END>: the ranges of the authors' code. A maze
    whose path is too short for a task does not count in it.

    Parameters
    ----------
    model, ms, tokenizer, edits
        As :func:`clew.mazes.solve` takes them; edits hold in the tasks of one token too.
    seed
        Of the random tokens.

    Raises
    ------
    TokenError
        As :func:`clew.mazes.solve`; a maze without a path; one whose tokens, path included, the model's positions do
        not hold.
    ConfigError
        No mazes.

    Example
    -------
    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> result = mazes.evaluate(model, mazes.generate(20, grid=3, seed=1))
    >>> result["exact"].n, result["exact"].successes, list(result)[:3]
    (20, 0, ['exact', 'valid', 'target'])
    """
    from ..edit import as_edits

    tok, batch, held = tokenizer_of(model, tokenizer), Mazes.of(ms), as_edits(edits)
    if len(batch) == 0:
        raise ConfigError("evaluate: no mazes: an empty split?")
    lengths = np.array([len(row) for row in tok.encode_batch(batch)])
    if "pos_embed.W_pos" in model.weights and (bad := np.flatnonzero(lengths > model.config.n_ctx)).size:
        raise TokenError(
            f"maze {bad[0]}: {lengths[bad[0]]} tokens, its path included: {model.config.model_name} has "
            f"{model.config.n_ctx} positions"
        )
    made = rollouts(model, batch, tokenizer=tok, edits=held)
    paths = [tok.cells_of(walk_cells(row)) for row in made]
    ended = np.array([len(row) > 0 and row[-1] == tok.ids["<PATH_END>"] for row in made])
    cut = ~ended & (np.array([len(row) for row in made]) < path_tokens(batch))
    found = judge(paths, batch)
    found = replace(found, exact=found.exact & ~cut, target=found.target & ~cut, shortest=found.shortest & ~cut)
    return Evaluation(batch, paths, found, ended, _tasks(model, batch, tok, held, seed))


def _tasks(model: Model, batch: Mazes, tok: Tokenizer, edits: Iterable[Edit], seed: int) -> dict[str, Array]:
    """Task → [n], 1 right, 0 wrong, −1 no such token."""
    held = list(edits)
    right = _right(model, batch, tok, held)
    k = batch.path_lengths  # c_0 … c_{k−1}: index 0 is <PATH_START>, 1 + i is c_i, 1 + k is <PATH_END>
    rng = generator(seed)
    rows = np.arange(len(batch))

    def at(index: Array, exists: Array) -> Array:
        return np.where(exists, right[rows, np.where(exists, index, 0)], -1)

    def any_of(low: int, high: Array) -> Array:
        chosen = low + np.floor(rng.random(len(batch)) * np.maximum(high - low, 1)).astype(int)
        return at(1 + chosen, high > low)

    always = np.ones(len(batch), bool)
    return {
        "path_start": at(np.zeros_like(k), always),
        "origin_after_path_start": at(np.ones_like(k), always),
        "first_path_choice": at(np.full_like(k, 2), k > 1),
        "rand_path_token": any_of(0, k - 1),
        "rand_path_token_nonend": any_of(2, k - 2),
        "final_before_path_end": at(k, always),
        "path_end": at(k + 1, always),
    }


def _right(model: Model, batch: Mazes, tok: Tokenizer, edits: list[Edit]) -> Array:
    """Is the likeliest token the true one? int [n, longest path + 2]: <PATH_START>, the path's cells, <PATH_END>."""
    out = np.zeros((len(batch), int(batch.path_lengths.max()) + 2), int)
    tokens = tok.encode_batch(batch)
    size = len(batch) if edits else BATCH  # edits may count sequences
    for start in range(0, len(batch), size):
        part = tokens[start : start + size]
        logits = model.run(part, edits=edits).logits
        for i, row in enumerate(part):
            k = int(batch.path_lengths[start + i])
            first = len(row) - k - 2
            out[start + i, : k + 2] = logits[i, first - 1 : len(row) - 1].argmax(-1) == row[first:]
    return out


class Table:
    """Evaluations on several kinds of mazes; `table[kind]` is an :class:`Evaluation`.

    The paper's figures stand beside those of 6 × 6 mazes, the size that it has, and no others.
    """

    def __init__(self, columns: dict[str, Evaluation], made: str) -> None:
        self.columns, self.made = columns, made
        """Kind of maze → evaluation; how the mazes were made."""

    def __getitem__(self, kind: str) -> Evaluation:
        if not isinstance(kind, str) or kind not in self.columns:
            raise SiteError(f"kind {kind!r}: there are {', '.join(self.columns)}")
        return self.columns[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def below(self, model: str = "hallway") -> list[tuple[str, str]]:
        """(kind, row) of every figure that lies below the paper's model, "hallway" or "jirpy"; none of mazes of another
        size than the paper's 6 × 6. Raises ConfigError."""
        if not isinstance(model, str) or model not in PAPER:
            raise ConfigError(f"model = {model!r}: one of {', '.join(PAPER)}")
        return [
            (kind, row)
            for kind, column in self.columns.items()
            for row, paper in self._paper(kind, model).items()
            if 100 * column[row].value < paper - 0.05  # the paper's are rounded to 0.1
        ]

    def _paper(self, kind: str, model: str) -> dict[str, float]:
        """The paper's figures that a column can be compared with, by row."""
        return PAPER[model].get(kind, {}) if (self.columns[kind].mazes.grids == PAPER_GRID).all() else {}

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: successes and n of every row, by kind."""
        rows = {kind: {row: [r.successes, r.n] for row, r in column.items()} for kind, column in self.columns.items()}
        return {"mazes": self.made, "rows": rows}

    def _lines(self) -> list[list[str]]:
        papers = {kind: {m: rows for m in PAPER if (rows := self._paper(kind, m))} for kind in self.columns}
        names = {kind: f"  paper: {', '.join(of)}" if of else "" for kind, of in papers.items()}
        lines = [["%", *(f"{kind}  [95 %]{names[kind]}" for kind in self.columns)]]
        for row in next(iter(self.columns.values())):
            cells = []
            for kind, column in self.columns.items():
                rate = column[row]
                theirs = [str(rows[row]) for rows in papers[kind].values() if row in rows]
                span = f"[{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
                cells.append(f"{100 * rate.value:5.1f}  {span}  {', '.join(theirs)}".rstrip())
            lines.append([row, *cells])
        return lines

    def __repr__(self) -> str:
        lines = self._lines()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rows = ["   ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.made, *rows])

    def _repr_html_(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in self._lines())
        return f"<table><caption>{escape(self.made)}</caption>{rows}</table>"


def table(
    model: Model,
    n: int = 1000,
    grid: int = 6,
    *,
    kinds: Sequence[str] = ("forkless", "rdfs", "prdfs"),
    seed: int = 0,
    split: str | None = "test",
    tokenizer: Tokenizer | None = None,
) -> Table:
    """Table 1 of the paper: :func:`evaluate` on n fresh mazes of each kind, by default of the held-out split.

    The paper's figures stand beside them where the grid is the paper's, 6.

    Raises as :func:`clew.mazes.generate` and :func:`evaluate`.

    >>> import clew
    >>> from clew import mazes
    >>> model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0)
    >>> mazes.table(model, 8, grid=3)["rdfs"]["target"].n
    8
    """
    seed = check_seed(seed)
    columns = {
        kind: evaluate(model, generate(n, grid, kind, seed, split=split), tokenizer=tokenizer, seed=seed)
        for kind in names_of(kinds, "table: kinds", KINDS)
    }
    return Table(columns, f"{n} mazes of {grid} × {grid} of each kind, seed {seed}, split {split!r}")
