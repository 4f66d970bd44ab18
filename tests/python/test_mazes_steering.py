"""Walls that are flipped in a stream, and streams at <PATH_START> from other mazes; results as text, JSON, figures."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, TokenError, mazes
from clew.experiment import plain
from clew.mazes import patching, steering
from clew.mazes.counterfactual import start_prompts, walks
from clew.mazes.probes import walls_of
from clew.probe import Probe
from maze_twin import TOK, Array, logits_of, made, slow_walk, solved
from twin import twin


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return made()


@pytest.fixture(scope="module")
def test() -> mazes.Mazes:
    return mazes.generate(12, 4, seed=1, split="test")


@pytest.fixture(scope="module")
def train() -> mazes.Mazes:
    return mazes.generate(20, 4, seed=2, split="train")


@pytest.fixture(scope="module", params=["resid_post", "resid_mid"])
def along(model: clew.Model, test: mazes.Mazes, request: pytest.FixtureRequest) -> dict[str, mazes.WallProbes]:
    return mazes.wall_probes_along(model, mazes.generate(150, 4, seed=4, split="train"), test, site=request.param)


@pytest.fixture(scope="module")
def probes(model: clew.Model, test: mazes.Mazes) -> mazes.WallProbes:
    return mazes.wall_probes_along(model, mazes.generate(150, 4, seed=4, split="train"), test)["path_start"]


BACK = {"path_start": 0, "origin_end": 4, "adjlist_end": 7}  # tokens before <PATH_START>
POSITIONS = pytest.mark.parametrize("position", BACK)


# ---- Walls ----------------------------------------------------------------------------------------------------------


def case_of(test: mazes.Mazes, kind: str) -> Any:
    return steering._case(test, kind, TOK, 0)


@pytest.mark.parametrize("kind", ["open", "close"])
def test_walls_and_edges_of_the_way(kind: str) -> None:
    ms = mazes.generate(40, 4, seed=9)
    case = case_of(ms, kind)
    walls = mazes.inner_walls(4)
    for i, maze in enumerate(case.mazes):
        way = [tuple(c) for c in maze.solution.tolist()]
        a, b = (tuple(c) for c in case.pair[i].tolist())
        assert {a, b} == {tuple(c) for c in walls[case.wall[i]].tolist()} and way.index(a) < way.index(b)
        assert case.prompts.tokens[i].tolist() == [
            *start_prompts(ms, TOK)[0][:0],
            *TOK.encode(maze)[: len(case.prompts.tokens[i])],
        ]
        assert case.prompts.tokens[i][-1] == TOK.cell_ids[a] and case.prompts.targets[i] == TOK.cell_ids[b]
        other = case.changed[i]
        if kind == "open":
            assert not maze.connected(a, b) and other == solved(maze, None, (a, b))
            saved = [
                abs(way.index(p) - way.index(q))
                for p, q in ([tuple(c) for c in w.tolist()] for w in walls)
                if p in way and q in way and not maze.connected(p, q)
            ]
            assert len(maze.solution) - len(other.solution) == max(saved) - 1 > 0
        else:
            assert way.index(b) == way.index(a) + 1 and len(other.solution) == 0
            assert other.hash == solved(maze, (a, b), None).hash
    if kind == "close":
        assert len(case.mazes) == 40
        return
    ways = [{tuple(c) for c in m.solution.tolist()} for m in ms]
    there = [
        any(not m.connected(*w) and {tuple(c) for c in w.tolist()} <= way for w in walls)
        for m, way in zip(ms, ways, strict=True)
    ]
    assert len(case.mazes) == sum(there)


def test_other_walls_are_in_the_same_state_and_away() -> None:
    case = case_of(mazes.generate(40, 5, seed=9), "open")
    other = steering._others(case, 5, 0)
    there = mazes.walls_of(case.mazes)
    rows = np.arange(len(other))
    assert there[rows, other].all() and there[rows, case.wall].all() and (other != case.wall).all()
    walls = mazes.inner_walls(5)
    touching = [
        any(tuple(c) in {tuple(p) for p in m.solution.tolist()} for c in walls[w].tolist())
        for m, w in zip(case.mazes, other, strict=True)
    ]
    assert np.mean(touching) < 0.2


@POSITIONS
@pytest.mark.parametrize("layer", [0, 1])
def test_changes_of_the_stream(
    model: clew.Model, test: mazes.Mazes, along: dict[str, mazes.WallProbes], layer: int, position: str
) -> None:
    case, probes, back = case_of(test, "close"), along[position], BACK[position]
    flips = steering._Flips(model, case, probes, [0, 1], 1.5, TOK, 0)
    n = len(case.wall)
    tokens = case.prompts.tokens
    begin = [int(np.flatnonzero(row == TOK.ids["<PATH_START>"])[0]) - back for row in tokens]
    assert all(TOK.decode(row[[at]]) == [f"<{position.upper()}>"] for row, at in zip(tokens, begin, strict=True))
    probe = probes.probes["ridge"].layer(layer)
    plain_run = model.run(tokens, capture=[(probes.site, layer)])
    rows = np.arange(n)
    lengths = [np.linalg.norm(flips.vectors(layer, c), axis=1) for c in ("flip", "other wall", "random")]
    assert np.allclose(lengths[0], lengths[1]) and np.allclose(lengths[0], lengths[2])
    assert np.allclose(lengths[0], 1.5 / np.linalg.norm(probe.weight[:, case.wall], axis=0))
    for change, edits in zip(steering.CHANGES, flips.prompted(layer, steering.CHANGES, slice(0, n)), strict=True):
        x = model.run(tokens, capture=[(probes.site, layer)], edits=edits)[probes.site, layer]
        before = plain_run[probes.site, layer]
        said, was = (probe(s)[rows, :, case.wall] for s in (x, before))
        flipped = []
        for i in range(n):
            own = slice(begin[i], len(tokens[i]))
            assert np.array_equal(x[i, : begin[i]], before[i, : begin[i]])
            if change == "flip":
                assert said[i, own] == pytest.approx(was[i, own] + 1.5)
            elif change == "erase":
                way = begin[i] + back + 1
                assert said[i, begin[i] : way] == pytest.approx(flips.levels[layer, :-1, case.wall[i]], abs=1e-12)
                assert said[i, way : len(tokens[i])] == pytest.approx(flips.levels[layer, -1, case.wall[i]])
                moved = (x - before)[i, own]
                direction = probe.weight[:, case.wall[i]]
                assert np.allclose(moved, np.outer(moved @ direction, direction) / (direction @ direction))
            flipped.append((said[i, begin[i]] > 0.5) != (was[i, begin[i]] > 0.5))
        assert flips.read(layer, change) == pytest.approx(np.mean(flipped))
    # with its bias as the level, the direction is projected out and the probe reads its bias exactly
    w, b = probe.weight[:, 0], probe.bias[0]
    out = steering.with_reading(plain_run[probes.site, layer], w, b, b)
    assert np.abs(out @ w).max() < 1e-12 * max(1, np.abs(plain_run[probes.site, layer] @ w).max())


@POSITIONS
def test_levels_are_mean_readings(
    model: clew.Model, test: mazes.Mazes, along: dict[str, mazes.WallProbes], position: str
) -> None:
    case, probes, back = case_of(test, "close"), along[position], BACK[position]
    flips = steering._Flips(model, case, probes, [1], 1.0, TOK, 0)
    starts, ways, above = [], [], []
    for i, (tokens, k) in enumerate(zip(TOK.encode_batch(case.mazes), case.mazes.path_lengths, strict=True)):
        said = probes.probes["ridge"].layer(1)(model.run(tokens, capture=[(probes.site, 1)])[probes.site, 1][0])
        starts.append(said[-k - 2 - back : -k - 1])
        ways.append(said[-k - 1 : -1].mean(0))
        above.append((said[-k - 1 : -1, case.wall[i]] > 0.5).mean())
    assert np.allclose(flips.levels[0], [*np.mean(starts, 0), np.mean(ways, 0)])
    assert np.allclose(flips.first[0], [s[0, w] for s, w in zip(starts, case.wall, strict=True)])
    assert np.allclose(flips.above[0], above)


@POSITIONS
def test_flipped_walks_are_walked_token_after_token(
    model: clew.Model, test: mazes.Mazes, along: dict[str, mazes.WallProbes], position: str
) -> None:
    case, probes, back = case_of(test[:3], "close"), along[position], BACK[position]
    flips = steering._Flips(model, case, probes, [0], 1.0, TOK, 0)
    w, b = probes.probes["ridge"].weight[0], probes.probes["ridge"].bias[0]
    for change in ("flip", "erase"):
        for i, (path, prompt) in enumerate(zip(flips.walk(0, change), start_prompts(case.mazes, TOK), strict=True)):
            v = w[:, case.wall[i]]

            def fn(
                x: Array, i: int = i, v: Array = v, begin: int = len(prompt) - 1 - back, change: str = change
            ) -> Array:
                for at in range(begin, x.shape[1]):
                    if change == "flip":
                        x[0, at] += v / (v @ v)
                    else:
                        level = flips.levels[0, min(at - begin, back + 1), case.wall[i]]
                        x[0, at] += (level - x[0, at] @ v - b[case.wall[i]]) * v / (v @ v)
                return x

            want = slow_walk(model, prompt, 16, lambda n, fn=fn: {f"blocks.0.hook_{probes.site}": fn})
            assert [tuple(c) for c in path.tolist()] == want


@pytest.mark.parametrize("kind", ["open", "close"])
def test_walks_through_walls_are_counted(
    model: clew.Model, probes: mazes.WallProbes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that walks as the probe reads, in every second maze; and one that never does."""
    test = mazes.generate(30, 4, seed=21, split="test")
    case = case_of(test, kind)
    monkeypatch.setattr(steering, "walks", lambda *args: [m.solution for m in case.mazes])

    def walk(self: Any, layer: int, change: str) -> list[Array]:
        new = [c.solution if len(c.solution) else m.solution[:1] for c, m in zip(case.changed, case.mazes, strict=True)]
        return [
            n if change == "flip" and i % 2 == 0 else m.solution
            for i, (n, m) in enumerate(zip(new, case.mazes, strict=True))
        ]

    monkeypatch.setattr(steering._Flips, "walk", walk)
    found = mazes.flip_walls(model, test, probes, layers=1, kinds=[kind])
    n = len(case.wall)
    row = found.row(kind, 1, "flip")
    assert (row.moved.successes, row.moved.n) == (-(-n // 2), n)
    assert found.row(kind, 1, "random").moved.successes == 0 == found.row(kind, 1, "other wall").moved.successes
    assert found.contrast[kind]["random"][0].value == pytest.approx(row.moved.value)
    assert found.crossed[kind].value == (0 if kind == "open" else 1) and found.valid[kind].value == 1
    if kind == "open":
        assert row.changed_exact.successes == -(-n // 2) and row.changed_valid.value == 1
        assert row.valid.successes == n // 2 and row.legal.value == 1


@POSITIONS
def test_margins_of_flips_are_numpys(
    model: clew.Model, test: mazes.Mazes, along: dict[str, mazes.WallProbes], position: str
) -> None:
    probes = along[position]
    found = mazes.flip_walls(model, test, probes, layers=[0], kinds=["close"], scale=2.0)
    case = case_of(test, "close")
    w = probes.probes["ridge"].weight[0]
    margins: dict[str, list[float]] = {"plain": [], "flip": []}
    for i, tokens in enumerate(case.prompts.tokens):
        begin = int(np.flatnonzero(tokens == TOK.ids[f"<{position.upper()}>"])[0])
        v = w[:, case.wall[i]]

        def fn(x: Array, v: Array = v, begin: int = begin) -> Array:
            x[0, begin:] += 2 * v / (v @ v)
            return x

        for name, edits in (("plain", None), ("flip", {f"blocks.0.hook_{probes.site}": fn})):
            logits = logits_of(model, [tokens], edits)
            right = case.prompts.targets[i]
            margins[name].append(logits[right] - np.delete(logits, right).mean())
    change = np.subtract(margins["flip"], margins["plain"])
    assert np.allclose(found.row("close", 0, "flip").changes, change, atol=1e-9)
    assert found.margin["close"].value == pytest.approx(np.mean(margins["plain"]))
    assert found.push[0] > 0 and found.accuracy["close"].shape == (1, 2)
    within = " (resid_mid)" if probes.site == "resid_mid" else ""
    assert (found.position, found.site) == (position, probes.site)
    assert f"from <{position.upper()}>{within} on" in found.table()


# ---- Walls that never vary -----------------------------------------------------------------------------------------


def _with_zeros(probes: mazes.WallProbes, none: Array, size: float = 0.0) -> mazes.WallProbes:
    """Probes of which some are zero at layer 1, or rounding."""
    ridge = probes.probes["ridge"]
    weight = ridge.weight.copy()
    weight[1][:, none] *= size
    made = Probe(weight, ridge.bias, ridge.boundary)
    return dataclasses.replace(probes, probes={**probes.probes, "ridge": made})


def test_walls_that_never_vary_are_not_flipped(model: clew.Model, probes: mazes.WallProbes) -> None:
    test = mazes.generate(30, 4, seed=21, split="test")
    whole = mazes.flip_walls(model, test, probes, layers=[1])
    assert whole.left_out.shape == (0, 2, 2) and "not flipped" not in whole.table()
    none = np.arange(24) % 3 == 0
    for size in (0.0, 1e-14):
        found = mazes.flip_walls(model, test, _with_zeros(probes, none, size), layers=[1])
        assert np.array_equal(found.left_out, probes.walls[none])
        assert "not flipped, their probes are 0: (0,0)–(1,0), " in found.table()
        assert np.isfinite(found.push).all()
        for row in found.rows:
            assert np.isfinite([row.margin.value, row.effect.value, row.read, row.legal.value]).all()
            assert np.isfinite(row.changes).all()
        for kind in found.kinds:
            case = steering._case(test, kind, TOK, 0, ~none)
            assert found.n[kind] == len(case.wall) and not none[case.wall].any()
            assert not none[steering._others(case, 4, 0, ~none)].any()
    other = mazes.flip_walls(model, test, _with_zeros(probes, none), layers=[0])  # there they have directions
    assert len(other.left_out) == 0

    one = mazes.Mazes.of([test[0], test[0]])
    kind = "close"
    lost = steering._case(one, kind, TOK, 0)
    on_way = {
        frozenset(map(tuple, pair)) for pair in np.stack([test[0].solution[:-1], test[0].solution[1:]], 1).tolist()
    }
    none = np.array([frozenset(map(tuple, pair)) in on_way for pair in probes.walls.tolist()])
    assert none[lost.wall].all()
    (a, b), (c, d) = probes.walls[none][0].tolist()
    with pytest.raises(ConfigError, match=rf"of 2 mazes 0 have a way .* from: .*\({a},{b}\)–\({c},{d}\)"):
        mazes.flip_walls(model, one, _with_zeros(probes, none), layers=[1], kinds=[kind])
    with pytest.raises(ConfigError, match='of the probes 1 have a direction, .* "other wall" needs two'):
        mazes.flip_walls(model, test, _with_zeros(probes, np.arange(24) > 0), layers=[1])
    with pytest.raises(ConfigError, match="a probe of zeros has no direction"):
        steering.with_reading(np.ones((2, 3)), np.zeros(3), 0.0, 1.0)


def test_a_wall_that_never_varies_leaves_a_probe_of_zeros(model: clew.Model) -> None:
    train = mazes.generate(200, 4, split="train")
    walls = walls_of(train)
    probes = mazes.wall_probes(
        model, train[np.flatnonzero(walls[:, 5])], mazes.generate(20, 4, split="test"), methods=["ridge"]
    )
    found = mazes.flip_walls(model, mazes.generate(30, 4, seed=21, split="test"), probes, layers=[0], kinds=["open"])
    assert np.array_equal(found.left_out, probes.walls[5:6])
    assert not any(np.isnan(row.margin.value) for row in found.rows)


# ---- The stream at <PATH_START> -------------------------------------------------------------------------------------


def test_pairs_share_walls_or_endpoints(test: mazes.Mazes) -> None:
    own, other = patching._pairs(test, "walls", 0)
    assert (own.ends == other.ends).all() and (own.hashes != other.hashes).all()
    own, other = patching._pairs(test, "ends", 0)
    assert (own.hashes == other.hashes).all()
    for a, b in zip(own, other, strict=True):
        assert not {a.origin, a.target} & {b.origin, b.target}
        assert b == a.with_ends(b.origin, b.target)


def test_the_last_layers_stream_says_the_first_token_and_no_more(
    model: clew.Model, test: mazes.Mazes, train: mazes.Mazes
) -> None:
    own, other = patching._pairs(test, "ends", 0)
    prompts, theirs = start_prompts(own, TOK), start_prompts(other, TOK)
    streams = patching._streams(model, theirs, [1])[0]
    after = patching._walked(model, prompts, TOK, 16, 1, streams)
    before, elsewhere = (walks(model, p, TOK, 16) for p in (prompts, theirs))
    for a, b, c in zip(after, before, elsewhere, strict=True):
        assert (a[:1] == c[:1]).all()
        if len(b) and len(c) and (b[0] == c[0]).all():
            assert np.array_equal(a, b)
    found = mazes.patch_path_start(model, test, train, kinds=["ends"], layers=[1])
    row = found.row("ends", 1, "other maze")
    same = [len(a) > 0 and len(b) > 0 and bool((a == b).all()) if a.shape == b.shape else a.shape == b.shape
            for a, b in zip(after, before, strict=True)]  # fmt: skip
    assert row.as_target.n == len(own) and row.as_target.successes >= sum(same) - 1
    assert found.n["ends"] == len(own)


def test_whose_way() -> None:
    ms = mazes.generate(20, 4, seed=3)
    own, other = patching._pairs(ms, "ends", 1)
    before, elsewhere = ([m.solution for m in part] for part in (own, other))
    after = [e if i % 2 else b for i, (b, e) in enumerate(zip(before, elsewhere, strict=True))]
    n = len(own)
    row = patching._whose("ends", 0, "other maze", own, other, before, elsewhere, after)
    assert row.as_source.successes == row.solves_source.successes == row.origin_source.successes == n // 2
    assert row.as_target.successes == row.solves_target.successes == n - n // 2
    assert row.changed_each.tolist() == [bool(i % 2) for i in range(n)]
    assert row.first_source.n == n and row.first_source.successes + row.first_target.successes == n
    assert patching._whose("walls", 0, "mean", own, other, before, elsewhere, after).origin_source.n == 0


def test_patched_streams_are_walked_token_after_token(model: clew.Model, test: mazes.Mazes) -> None:
    own, other = patching._pairs(test, "walls", 0)
    prompts, theirs = start_prompts(own, TOK), start_prompts(other, TOK)
    streams = patching._streams(model, theirs, [0])[0]
    after = patching._walked(model, prompts, TOK, 16, 0, streams)
    for i in range(3):
        source = twin(model.config, {n: model.weights[n] for n in model.weights}, [theirs[i]])[
            "blocks.0.hook_resid_post"
        ]
        assert np.allclose(streams[i], source[0, -1])

        def fn(x: Array, i: int = i, source: Array = source) -> Array:
            x[0, len(prompts[i]) - 1] = source[0, -1]
            return x

        want = slow_walk(model, prompts[i], 16, lambda n, fn=fn: {"blocks.0.hook_resid_post": fn})
        assert [tuple(c) for c in after[i].tolist()] == want


# ---- Results --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(model: clew.Model, train: mazes.Mazes, probes: mazes.WallProbes) -> dict[str, Any]:
    test = mazes.generate(30, 4, seed=1, split="test")
    return {
        "ablate": mazes.ablate_heads(model, test[:10], train, 1, draws=2, position="path"),
        "patch": mazes.patch_heads(model, test, train, 1, draws=2, position="path"),
        "flip": mazes.flip_walls(model, test[:12], probes, layers=[1]),
        "start": mazes.patch_path_start(model, test[:10], train, layers=[0]),
    }


def test_results_as_text_and_json(results: dict[str, Any]) -> None:
    for name, words in {
        "ablate": ["adjacency  mean", "adjacency − matched, resample", "Spearman"],
        "patch": ["adjacency", "all         all", "adjacency − random: recovered"],
        "flip": ["walks through the wall", "avoids the edge", "flip − other wall, points: L1"],
        "start": ["other walls:", "same maze rewritten", "origin of other"],
    }.items():  # fmt: skip
        text = results[name].table()
        assert all(word in text for word in words if word != "all         all"), (name, text)
        assert json.loads(json.dumps(plain(results[name])))
        with pytest.raises(AttributeError):
            results[name].rows = ()


def test_intervals_hold_the_values(results: dict[str, Any]) -> None:
    for row in results["ablate"].rows:
        assert row.margin.low <= row.margin.value <= row.margin.high and row.exact.low <= row.exact.value
    contrast = results["ablate"].contrast["mean"]["matched"]["margin"].value
    own, other = (results["ablate"].row(g, "mean")[0].margin.value for g in ("adjacency", "matched"))
    assert contrast == pytest.approx(own - other)
    rows = results["ablate"].row("random", "mean")
    assert results["ablate"].contrast["mean"]["random"]["margin"].value == pytest.approx(
        own - np.mean([row.margin.value for row in rows])
    )


def test_figures(results: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for name, axes in (("ablate", 1), ("patch", 1), ("flip", 2), ("start", 2)):
        figure = results[name].figure()
        assert len(figure.axes) == axes and figure._repr_png_().startswith(b"\x89PNG")


# ---- Bad input ----------------------------------------------------------------------------------------------------


def test_what_flips_refuse(model: clew.Model, test: mazes.Mazes, probes: mazes.WallProbes) -> None:
    with pytest.raises(TokenError, match="vocabulary of 50 tokens is none of mazes"):
        mazes.flip_walls(made(1, d_vocab=50), test, probes)
    with pytest.raises(ConfigError, match="flip_walls: 1 mazes: at least 2"):
        mazes.flip_walls(model, test[:1], probes)
    with pytest.raises(ConfigError, match="flip_walls: layer 2: there are layers 0 to 1"):
        mazes.flip_walls(model, test, probes, layers=[0, 2])
    with pytest.raises(ConfigError, match="flip_walls: layer -1: there are layers 0 to 1"):
        mazes.flip_walls(model, test, probes, layers=-1)
    with pytest.raises(ConfigError, match="flip_walls: layers is empty"):
        mazes.flip_walls(model, test, probes, layers=[])
    with pytest.raises(ConfigError, match=r"kinds = \['shut'\]: of 'open', 'close'"):
        mazes.flip_walls(model, test, probes, kinds=["shut"])
    with pytest.raises(ConfigError, match=r"changes = \[\]: of 'flip', 'erase', 'other wall', 'random'"):
        mazes.flip_walls(model, test, probes, changes=[])
    with pytest.raises(ConfigError, match="scale = 0: a number above 0"):
        mazes.flip_walls(model, test, probes, scale=0)
    with pytest.raises(ShapeError, match="probes of 4 × 4 mazes, mazes of 3 × 3"):
        mazes.flip_walls(model, mazes.generate(4, 3), probes)
    with pytest.raises(ShapeError, match="probes of 2 layers of width 24, maze-hallway has 3 of width 24"):
        mazes.flip_walls(made(3), test, probes)
    with pytest.raises(ConfigError, match="of 2 mazes 0 have a wall between two cells of its way"):
        straight = mazes.Maze(4, [[(0, 0), (0, 1)]], (0, 0), (0, 1))
        mazes.flip_walls(model, [straight, straight], probes)
    logistic = mazes.wall_probes(
        model, mazes.generate(30, 4, seed=4, split="train"), test, methods=["logistic"], position="origin"
    )
    fixed = "adjlist_end, origin_start, origin_end, target_start, target_end, path_start"
    with pytest.raises(
        ConfigError, match=f"probes by logistic at 'origin': ridge probes are needed, at one of {fixed}"
    ):
        mazes.flip_walls(model, test, logistic)
    found = mazes.flip_walls(model, test, probes, layers=[1], kinds=["close"], changes=["erase"])
    with pytest.raises(ConfigError, match="no row of kind 'open', layer 1 and change 'erase'"):
        found.row("open", 1, "erase")


def test_what_patching_the_stream_refuses(model: clew.Model, test: mazes.Mazes, train: mazes.Mazes) -> None:
    with pytest.raises(TokenError, match="vocabulary of 50 tokens is none of mazes"):
        mazes.patch_path_start(made(1, d_vocab=50), test, train)
    with pytest.raises(ConfigError, match="patch_path_start: 0 mazes: at least 2"):
        mazes.patch_path_start(model, test[:0], train)
    with pytest.raises(ConfigError, match="patch_path_start: layer 7: there are layers 0 to 1"):
        mazes.patch_path_start(model, test, train, layers=7)
    with pytest.raises(ConfigError, match=r"kinds = \['size'\]: of 'walls', 'ends'"):
        mazes.patch_path_start(model, test, train, kinds=["size"])
    with pytest.raises(ConfigError, match=r"sources = \['zero'\]: of 'other maze'"):
        mazes.patch_path_start(model, test, train, sources=["zero"])
    with pytest.raises(ConfigError, match="11 mazes' walls are in the mazes and in the reference"):
        mazes.patch_path_start(model, test, test)
    alone = mazes.Maze(4, [[(0, 0), (0, 1)]], (0, 0), (0, 1))
    with pytest.raises(ConfigError, match="of 2 pairs with other ends 0 have two solutions that differ"):
        mazes.patch_path_start(model, [alone, alone], train, kinds=["ends"])
    found = mazes.patch_path_start(model, test, train, layers=[0], kinds=["walls"], sources=["mean"])
    with pytest.raises(ConfigError, match="no row of kind 'ends', layer 0 and source 'mean'"):
        found.row("ends", 0, "mean")
