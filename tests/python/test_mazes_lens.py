"""The lenses on paths against direct NumPy versions, and what is refused."""

from __future__ import annotations

import clew
import numpy as np
import pytest
from clew import ConfigError, TokenError, mazes
from clew.lens import unembed
from clew.mazes.lens import _interval
from sklearn.linear_model import Ridge

EDGES = [[(0, 0), (0, 1)], [(0, 1), (1, 1)], [(1, 1), (1, 0)]]


@pytest.fixture(scope="module")
def model() -> clew.Model:
    config = mazes.hallway_config(
        n_layers=3, d_model=16, n_heads=2, d_mlp=32, d_vocab=11 + 16, initializer_range=0.4,
        extra={"mazes": {"grid": 4, "order": "uniform"}},
    )  # fmt: skip
    return clew.Model.from_config(config, seed=3, dtype="float64")


@pytest.fixture(scope="module")
def parts() -> tuple[mazes.Mazes, mazes.Mazes]:
    train, test = (mazes.generate(n, 4, "prdfs", seed=n, split=part) for n, part in ((60, "train"), (70, "test")))
    return train, test


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def test_places_on_paths(model: clew.Model) -> None:
    tok = mazes.tokenizer_of(model)
    maze = mazes.Maze(2, EDGES, (0, 0), (1, 0))
    other = mazes.Maze(3, EDGES, (1, 1), (0, 1))
    steps = mazes.path_steps(model, [maze, other])
    assert [tok.decode(row)[-5:] for row in steps.tokens] == [
        ["<PATH_START>", "(0,0)", "(0,1)", "(1,1)", "(1,0)"],
        ["(0,1)", "<TARGET_END>", "<PATH_START>", "(1,1)", "(0,1)"],
    ]
    assert steps.maze.tolist() == [0, 0, 0, 1] and steps.here.tolist() == [[0, 0], [0, 1], [1, 1], [1, 1]]
    said = [tok.cells_of(steps.tokens[m][p]).tolist() for m, p in zip(steps.maze, steps.position, strict=True)]
    assert said == steps.here.tolist()
    for size in (1, 2):
        found = np.concatenate([x for _, x in steps.streams(model, size)], axis=1)
        for i, (m, p) in enumerate(zip(steps.maze, steps.position, strict=True)):
            run = model.run(steps.tokens[m][: p + 1], capture="resid_post")
            assert np.allclose(found[:, i], run.stack("resid_post")[:, 0, -1])


def test_the_models_own_paths(model: clew.Model, parts: tuple[mazes.Mazes, mazes.Mazes]) -> None:
    tok, ms = mazes.tokenizer_of(model), parts[1][:20]
    walked = mazes.solve(model, ms)
    try:
        steps = mazes.path_steps(model, ms, "model")
    except ConfigError as error:
        assert "of two cells" in str(error)  # noqa: PT017
        assert all(len(w) < 2 or not ((w[:2] >= 0) & (w[:2] < 4)).all() for w in walked)
        return
    for i, walk in enumerate(walked):
        mine = steps.here[steps.maze == i]
        assert np.array_equal(mine, walk[: len(mine)]) and ((mine >= 0) & (mine < 4)).all()
        assert len(mine) == 0 or tok.cells_of(steps.tokens[i][-1]).tolist() == walk[len(mine)].tolist()


def test_masses_are_those_of_a_loop(model: clew.Model, parts: tuple[mazes.Mazes, mazes.Mazes]) -> None:
    train, test = parts
    found = mazes.lens_masses(model, train, test, lam=1e-2)
    tok, tuned = mazes.tokenizer_of(model), found.lenses["tuned"]
    assert tuned is not None
    rows = []
    for i, maze in enumerate(test):
        run = model.run(tok.encode(maze)[:-1], capture="resid_post")
        stack = run.stack("resid_post")[:, 0, -len(maze.solution) :]
        for j, here in enumerate(maze.solution[:-1]):
            near = [here + step for step in ((-1, 0), (0, -1), (0, 1), (1, 0))]
            near = [cell for cell in near if ((cell >= 0) & (cell < 4)).all()]
            joined = [cell for cell in near if maze.connected(here, cell)]
            moved = [cell for cell in near if test[(i + 1) % len(test)].connected(here, cell)]
            out = softmax(run.logits[0, -len(maze.solution) + j])
            for layer in range(3):
                line: list[float] = [layer]
                for x in (stack[layer, j], tuned.translate(stack[layer, j], layer)):
                    p = softmax(unembed(model, x))

                    def mass(cells: list, p: np.ndarray = p) -> float:
                        return float(sum(p[tok.cell_ids[tuple(cell)]] for cell in cells))

                    line += [p[11:].sum(), mass(near), mass(joined), mass(near) * len(joined) / len(near), mass(moved)]
                    line += [float((out * np.log(out / p)).sum())]
                rows.append([*line, i, len(near) / 16, len(joined) / 16])
    table = np.array(rows)
    assert found.n == len(table) // 3 and found.n_mazes == len(test)
    for layer in range(3):
        mine = table[table[:, 0] == layer]
        for k, lens in enumerate(("logit", "tuned")):
            want = mine[:, 1 + 6 * k : 7 + 6 * k].mean(0)
            parts_ = (found.cells, found.neighbours, found.connected, found.even, found.other_maze, found.divergence)
            assert np.allclose([part[lens][layer] for part in parts_], want), (layer, lens)
        # a ratio of sums over mazes: its error is that of the sums of what each place is off
        m, n = len(test), len(mine)
        off = [(mine[mine[:, 13] == i, 9] - mine[:, 9].mean()).sum() for i in range(m)]
        width = 1.959964 * np.sqrt(np.var(off, ddof=1) * m) / n
        assert found.connected_low["tuned"][layer] == pytest.approx(mine[:, 9].mean() - width)
    assert found.chance_neighbours == pytest.approx(table[:, 14].mean())
    assert found.chance_connected == pytest.approx(table[:, 15].mean())
    assert np.array_equal(found.connected["tuned"][-1], found.connected["logit"][-1])
    assert np.allclose(found.divergence["shuffled"][-1], 0)
    assert "other maze" in found.table() and found.knows_walls().shape == (3,)


def test_the_lens_is_scikit_learns_ridge(model: clew.Model, parts: tuple[mazes.Mazes, mazes.Mazes]) -> None:
    steps = mazes.path_steps(model, parts[0])
    lam = 1e-2
    tuned, shuffled = mazes.path_lens(model, steps, lam)
    x = np.concatenate([part for _, part in steps.streams(model)], axis=1)
    for layer in range(2):
        size = np.trace(np.cov(x[layer].T, bias=True)) / 16
        theirs = Ridge(alpha=lam * size * len(steps)).fit(x[layer], x[-1] - x[layer])
        assert np.allclose(tuned.weight[layer], theirs.coef_.T + np.eye(16))
        assert np.allclose(tuned.bias[layer], theirs.intercept_)
    before, after = (np.square(lens.translate(x[0], 0) - x[-1]).mean() for lens in (shuffled, tuned))
    assert after < before / 2
    # far apart in one piece, so that no place keeps its own end
    assert len(steps.tokens) <= 64


def test_the_lens_needs_another_place_for_its_control(model: clew.Model) -> None:
    short = mazes.Maze(4, EDGES, (0, 0), (0, 1))
    with pytest.raises(ConfigError, match="path_lens: 1 steps on the paths of 1 mazes of 4 × 4: the control needs two"):
        mazes.path_lens(model, mazes.path_steps(model, short))
    tuned, shuffled = mazes.path_lens(
        model, mazes.path_steps(model, [short] * 64 + [mazes.Maze(4, EDGES, (1, 1), (0, 1))])
    )
    alone, _ = mazes.path_lens(model, mazes.path_steps(model, [short] * 64))
    assert np.array_equal(tuned.weight, alone.weight)  # the 65th is a piece of its own
    two = mazes.path_lens(model, mazes.path_steps(model, mazes.Maze(4, EDGES, (0, 0), (1, 1))))
    assert not np.allclose(two[0].bias[0], two[1].bias[0]) or not np.allclose(two[0].weight[0], two[1].weight[0])


def test_intervals_count_mazes_not_places() -> None:
    rng = np.random.default_rng(0)
    maze = np.repeat(np.arange(200), 5)
    one_each = rng.standard_normal(200)
    low, high = _interval(one_each[maze][None], maze)
    width = 1.96 * one_each.std(ddof=1) / np.sqrt(200)
    assert (high - low)[0] / 2 == pytest.approx(width, rel=1e-3)


def test_what_is_refused(model: clew.Model, parts: tuple[mazes.Mazes, mazes.Mazes]) -> None:
    train, test = parts
    with pytest.raises(ConfigError, match="paths = 'way'"):
        mazes.lens_masses(model, train, test, paths="way")
    with pytest.raises(ConfigError, match="walls are in both parts"):
        mazes.lens_masses(model, train, train[:5])
    with pytest.raises(ConfigError, match="no path"):
        mazes.path_steps(model, [mazes.Maze(2, EDGES, (0, 0), (0, 0))])
    with pytest.raises(ConfigError, match="lam = -1"):
        mazes.lens_masses(model, train, test, lam=-1)
    with pytest.raises(TokenError, match="larger"):
        mazes.lens_masses(model, mazes.generate(3, 5), test)
    given = mazes.lens_masses(model, train, test).lenses["tuned"]
    again = mazes.lens_masses(model, given, test)
    assert again.n_train == 0 and np.isnan(again.connected["shuffled"]).all()
    with pytest.raises(ConfigError, match="another model"):
        mazes.lens_masses(clew.Model.from_config(model.config, seed=1, dtype="float64"), given, test)
