"""Heads that are ablated and patched, and what models then do: a NumPy twin, slow loops and closed forms."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, TokenError, edit, mazes
from clew.mazes import causal, counterfactual, patching
from clew.mazes.counterfactual import crosses, legal_steps, shuffled, start_prompts, walks
from clew.mazes.prompts import path_prompts
from maze_twin import TOK, Array, logits_of, made, slow_walk, solved
from scipy import stats


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return made()


@pytest.fixture(scope="module")
def test() -> mazes.Mazes:
    return mazes.generate(12, 4, seed=1, split="test")


@pytest.fixture(scope="module")
def train() -> mazes.Mazes:
    return mazes.generate(20, 4, seed=2, split="train")


# ---- Mazes that differ in one thing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "position"), [("rdfs", "nonend"), ("wilson", "path"), ("rdfs", "origin")])
def test_minimal_pairs_differ_in_one_edge(kind: str, position: str) -> None:
    ms = mazes.generate(60, 4, kind, seed=7)
    pairs = mazes.minimal_pairs(TOK, ms, position=position, seed=3)
    asked = path_prompts(ms, TOK, position, 3)
    possible = 0
    for maze, here, step, following in zip(asked.mazes, asked.here, asked.step, asked.following, strict=True):
        others = []
        for a, b in mazes.inner_walls(4):
            if maze.connected(a, b):
                continue
            other = solved(maze, (here, following), (a, b))
            way = other.solution
            if len(way) > step + 1 and (way[: step + 1] == maze.solution[: step + 1]).all():
                others.append((a, b))
        possible += bool(others)
    assert len(pairs) == possible > 5
    for i in range(len(pairs)):
        a, b = pairs.a.mazes[i], pairs.b.mazes[i]
        assert solved(a, pairs.removed[i], pairs.added[i]) == b
        assert (b.solution[: pairs.b.step[i] + 1] == a.solution[: pairs.a.step[i] + 1]).all()
        assert tuple(b.solution[pairs.b.step[i] + 1]) == tuple(pairs.b.following[i]) != tuple(pairs.a.following[i])
        one, other = pairs.a.tokens[i], pairs.b.tokens[i]
        differ = np.flatnonzero(one != other)
        assert len(one) == len(other) and 1 <= len(differ) <= 2 and differ[-1] - differ[0] in (0, 2)
        assert {TOK.vocab[t] for t in one[differ[0] // 4 * 4 + 1 :][:3]} > {"<-->"}
        assert one[-1] == TOK.cell_ids[tuple(pairs.a.here[i])]
        assert pairs.b.targets[i] == TOK.cell_ids[tuple(pairs.b.following[i])]


def test_what_minimal_pairs_refuse(test: mazes.Mazes) -> None:
    with pytest.raises(ConfigError, match="minimal_pairs: maze 0 is no spanning tree"):
        mazes.minimal_pairs(TOK, mazes.generate(3, 4, "prdfs", p=0.5))
    with pytest.raises(ConfigError, match="position = 'path_start': one of origin, path, nonend"):
        mazes.minimal_pairs(TOK, test, position="path_start")
    with pytest.raises(ShapeError, match="mazes of 3 × 3 and 4 × 4: one size at a time"):
        mazes.minimal_pairs(TOK, mazes.Mazes.join([test, mazes.generate(3, 3)]))
    with pytest.raises(TokenError, match="vocabulary of 50 tokens"):
        mazes.minimal_pairs(made(1, d_vocab=50), test)
    straight = mazes.Maze(2, [[(0, 0), (0, 1)], [(0, 1), (1, 1)], [(1, 0), (0, 0)]], (0, 1), (1, 1))
    with pytest.raises(ConfigError, match="in none of 1 mazes"):  # the new way has to leave by the cell it came by
        mazes.minimal_pairs(TOK, [straight.with_ends((0, 0), (1, 1))], position="path")


def test_mazes_written_otherwise() -> None:
    ms = mazes.generate(10, 5, "prdfs", seed=1)
    other = shuffled(ms, seed=2)
    assert list(ms) == list(other) and (ms.hashes == other.hashes).all()
    assert any((a != b).any() for a, b in zip(TOK.encode_batch(ms), TOK.encode_batch(other), strict=True))


def test_steps_and_crossings() -> None:
    ms = mazes.generate(6, 4, "prdfs", seed=5)
    rng = np.random.default_rng(0)
    paths = [np.concatenate([m.solution, rng.integers(-1, 6, (i, 2))]) for i, m in enumerate(ms)]
    want = [
        np.mean([m.connected(a, b) for a, b in zip(p[:-1], p[1:], strict=True)]) for m, p in zip(ms, paths, strict=True)
    ]
    assert legal_steps(paths, ms) == pytest.approx(want)
    assert np.isnan(legal_steps([paths[0][:1]], ms[:1])).all() and len(legal_steps([], ms[:0])) == 0
    pairs = np.array([p[:2] if i % 2 else p[1::-1] for i, p in enumerate(paths)])
    assert crosses(paths, pairs).all() and not crosses([p[1:] for p in paths[:1]], pairs[:1]).any()


# ---- Walks ----------------------------------------------------------------------------------------------------------


def test_walks_go_token_after_token(model: clew.Model, test: mazes.Mazes) -> None:
    prompts = start_prompts(test, TOK)
    for path, row in zip(walks(model, prompts, TOK, 16)[:3], prompts, strict=False):
        assert [tuple(c) for c in path.tolist()] == slow_walk(model, row, 16, lambda n: None)
    longest = len(prompts[0])
    with pytest.raises(TokenError, match=f"maze 1: a prompt of {longest} tokens, maze-hallway has {longest} pos"):
        walks(made(1, n_ctx=longest), [prompts[0][:9], prompts[0]], TOK, 16)


def test_walks_do_not_depend_on_the_others() -> None:
    """Each goes on as far as the positions behind its own prompt, edits that count sequences and positions included."""
    short = made(n_ctx=92)
    ms = mazes.generate(60, 4, "prdfs", seed=1, p=0.4)
    prompts = [row for row in start_prompts(ms, TOK) if len(row) < 92]
    lengths = np.array([len(row) for row in prompts])
    assert lengths.max() > 82 and lengths.min() < 75

    def edits_of(numbers: Array) -> counterfactual.Edits:
        def edits(rows: Array, positions: Array) -> list[edit.Edit]:
            shift = np.sin(np.arange(24) + numbers[rows][:, None, None])
            return [edit.add(("resid_post", 0), shift, positions=positions)]

        return edits

    for each in (False, True):
        together = walks(short, prompts, TOK, 16, edits_of(lengths) if each else None)
        for i in (int(lengths.argmax()), int(lengths.argmin()), 0):
            alone = walks(short, prompts[i : i + 1], TOK, 16, edits_of(lengths[i : i + 1]) if each else None)
            assert np.array_equal(alone[0], together[i])
            assert len(alone[0]) <= min(17, 92 - lengths[i])
        assert {len(path) for path, n in zip(together, lengths, strict=True) if n > 82} <= set(range(10))
        assert max(map(len, together)) > 92 - lengths.max() + 3


# ---- Heads ----------------------------------------------------------------------------------------------------------


def test_output_norms_are_numpys(model: clew.Model, train: mazes.Mazes) -> None:
    found = mazes.output_norms(model, train)
    lengths: list[Array] = []
    for tokens, k in zip(TOK.encode_batch(train), train.path_lengths, strict=True):
        z = model.run(tokens, capture="z").stack("z")[:, 0, len(tokens) - k - 2 : -1]
        lengths.append(np.linalg.norm(np.einsum("lphe,lhed->lphd", z, model.W_O), axis=-1))
    assert np.allclose(found, np.concatenate(lengths, axis=1).mean(1))


def test_controls_are_of_the_same_layer_and_the_closest_norm() -> None:
    norms = np.random.default_rng(1).lognormal(size=(5, 6))
    for layer in range(5):
        for head in range(6):
            others = [h for h in range(6) if h != head]
            closest = min(others, key=lambda h: abs(np.log(norms[layer, h] / norms[layer, head])))
            assert mazes.matched_heads(norms, [(layer, head)]) == ((layer, closest),)
    chosen = [(2, 0), (2, 3), (4, 1)]
    for seed in (None, 0, 1):
        found = mazes.matched_heads(norms, chosen, seed)
        assert [layer for layer, _ in found] == [2, 2, 4] and len({*found, *chosen}) == 6
    assert len({mazes.matched_heads(norms, chosen, seed) for seed in range(30)}) > 10
    groups = causal.control_groups(norms, tuple(chosen), 4, 0)
    assert [name for name, _ in groups] == ["adjacency", "matched", *["random"] * 4]
    assert len({frozenset(heads) for name, heads in groups if name == "random"}) == 4
    assert len(causal.control_groups(norms[:, :2], ((0, 0),), 4, 0)) == 3  # there is one such group
    with pytest.raises(ConfigError, match="layer 2 has 6 heads, 4 of them chosen: too few others"):
        mazes.matched_heads(norms, [(2, h) for h in range(4)])
    with pytest.raises(ShapeError, match=r"norms \[6\], expected \[layer, head\]"):
        mazes.matched_heads(norms[0], [(0, 0)])


def test_mean_and_resample_ablation_are_numpys(model: clew.Model, test: mazes.Mazes, train: mazes.Mazes) -> None:
    heads = ((0, 1), (1, 2))
    found = mazes.ablate_heads(model, test, train, heads, draws=1, position="path", seed=5)
    pool: list[Array] = []
    for tokens, k in zip(TOK.encode_batch(train), train.path_lengths, strict=True):
        pool.append(model.run(tokens, capture="z").stack("z")[:, 0, len(tokens) - k - 2 : -1])
    z = np.concatenate(pool, axis=1)
    asked = path_prompts(test, TOK, "path", 5)
    rng = np.random.default_rng(np.random.PCG64(np.random.SeedSequence(5, spawn_key=(2,))))
    draws = rng.integers(z.shape[1], size=(len(asked), 18))
    margin = causal.Margin(asked.targets[:1])
    changes: dict[str, list[float]] = {"mean": [], "resample": []}
    for i, tokens in enumerate(asked.tokens):
        begin = int(np.flatnonzero(tokens == TOK.ids["<PATH_START>"])[0])

        def change(layer: int, head: int, method: str, begin: int = begin, i: int = i) -> Any:
            def fn(x: Array) -> Array:
                n = x.shape[1] - begin
                x[0, begin:, head] = z[layer, :, head].mean(0) if method == "mean" else z[layer, draws[i, :n], head]
                return x

            return fn

        margin.ids = asked.targets[i : i + 1]
        before = margin(logits_of(model, [tokens])[None])[0]
        for method, values in changes.items():
            edits = {f"blocks.{layer}.attn.hook_z": change(layer, head, method) for layer, head in heads}
            values.append(margin(logits_of(model, [tokens], edits)[None])[0] - before)
    for method, values in changes.items():
        row = found.row("adjacency", method)[0]
        assert row.heads == heads and np.allclose(row.changes, values, atol=1e-9)
        assert row.margin.value == pytest.approx(np.mean(values))
        assert row.effect.value == pytest.approx(np.mean(values) / np.std(values, ddof=1))
    alone = mazes.ablate_heads(model, test, train, [(1, 3)], draws=0, position="path", seed=5, methods=["mean"])
    assert alone.row("adjacency", "mean")[0].margin.value == pytest.approx(found.each[1, 3])
    assert [row.group for row in alone.rows] == ["adjacency", "matched", "noise"]
    assert alone.row("noise", "noise")[0].moved == alone.row("adjacency", "mean")[0].moved


def test_noise_is_as_long_as_what_ablation_takes_away(model: clew.Model, test: mazes.Mazes, train: mazes.Mazes) -> None:
    pool = causal.pool_of(model, train, TOK)
    written = np.einsum("rhe,hed->rhd", pool.z[1], model.W_O[1])
    assert np.allclose(pool.spread[1], np.linalg.norm(written - written.mean(0), axis=-1).mean(0))
    asked = path_prompts(test, TOK, "path")
    stand = causal.StandIns.drawn(pool, len(asked), 18, 24, np.random.default_rng(0))
    positions, counts = causal.behind(asked, slice(0, len(asked)))
    edits = stand.edits(((1, 2),), "noise", np.arange(len(asked)), positions, counts)
    before, after = (model.run(asked.tokens, capture=["attn_out.1"], edits=e)["attn_out", 1] for e in ((), edits))
    length = np.linalg.norm(after - before, axis=-1)
    for i, tokens in enumerate(asked.tokens):
        begin = int(np.flatnonzero(tokens == TOK.ids["<PATH_START>"])[0])
        assert length[i, begin : len(tokens)] == pytest.approx(pool.spread[1, 2]) and not length[i, :begin].any()


def test_the_heads_with_the_highest_scores_are_chosen(model: clew.Model, train: mazes.Mazes) -> None:
    ranked = mazes.adjacency_heads(model, train, draws=2).ranked(0.1)
    along = mazes.adjacency_heads(model, train, position="path", draws=2)
    assert np.array_equal(causal.choose_heads(model, train, 1, TOK, 0.1, 0, "path")[1], along.score)
    for n in (1, 2, 4):
        chosen, scores = causal.choose_heads(model, train, n, TOK, 0.1, 0)
        want: list[tuple[int, int]] = []
        for head in ranked:
            if len(want) < n and [layer for layer, _ in want].count(head[0]) < 2:
                want.append(head)
        assert chosen == tuple(want) and scores.shape == (2, 4)


def test_ablated_walks_are_walked_token_after_token(
    model: clew.Model, test: mazes.Mazes, train: mazes.Mazes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Array]] = []

    def watched(*args: Any) -> list[Array]:
        seen.append(walks(*args))
        return seen[-1]

    monkeypatch.setattr(causal, "walks", watched)
    found = mazes.ablate_heads(model, test[:4], train, [(0, 2)], draws=0, methods=["mean"])
    z = causal.pool_of(model, train, TOK).z[0, :, 2].mean(0)

    def edits(begin: int) -> Any:
        def fn(x: Array) -> Array:
            x[0, begin:, 2] = z
            return x

        return lambda n: {"blocks.0.attn.hook_z": fn}

    for i, prompt in enumerate(start_prompts(test[:4], TOK)):
        assert [tuple(c) for c in seen[0][i].tolist()] == slow_walk(model, prompt, 16, lambda n: None)
        assert [tuple(c) for c in seen[1][i].tolist()] == slow_walk(model, prompt, 16, edits(len(prompt) - 1))
    after = mazes.judge(seen[1], test[:4])
    assert found.rows[0].exact.successes == after.exact.sum() and found.rows[0].valid.successes == after.valid.sum()
    assert found.exact.n == 4 and found.rows[0].legal.value == pytest.approx(
        np.nan_to_num(legal_steps(seen[1], test[:4])).mean()
    )


def test_own_outputs_change_nothing_to_the_bit(model: clew.Model, test: mazes.Mazes) -> None:
    for kind in ("float64", "float32"):
        other = clew.Model.from_config(model.config, seed=3, dtype=kind)
        asked = path_prompts(test, TOK, "path")
        run = other.run(asked.tokens, capture="z", positions=[-1], logits="last")
        for layer in range(2):
            edits = [edit.set(("z", layer), run["z", layer], positions=[-1])]
            assert np.array_equal(other.run(asked.tokens, edits=edits, logits="last").logits, run.logits)
        prompts = start_prompts(test, TOK)
        before = walks(other, prompts, TOK, 16)
        streams = patching._streams(other, prompts, [0, 1])
        for layer in (0, 1):
            after = patching._walked(other, prompts, TOK, 16, layer, streams[layer])
            assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    pairs = mazes.minimal_pairs(TOK, mazes.generate(30, 4, seed=6), position="path")
    alike = counterfactual.MinimalPairs(pairs.a, pairs.a, pairs.removed, pairs.added)
    base, changed, _, _ = patching._patched(model, alike, [((0, 0), (1, 1))], 1)
    assert np.array_equal(changed[0], base)


def test_patching_all_heads_gives_the_other_maze(model: clew.Model, train: mazes.Mazes) -> None:
    """The last token is the same in both: what differs has come through heads."""
    found = mazes.patch_heads(model, mazes.generate(30, 4, seed=8, split="test"), train, 2, draws=2, position="path")
    assert found.row("all")[0].recovered.value == pytest.approx(1, abs=1e-9)
    assert found.row("all")[0].recovered.low == pytest.approx(1, abs=1e-9)
    assert [row.group for row in found.rows] == ["adjacency", "matched", *["random"] * (len(found.rows) - 3), "all"]
    assert found.row("adjacency")[0].heads == found.heads and len(found.heads) == 2


def test_patched_heads_are_numpys(model: clew.Model, train: mazes.Mazes) -> None:
    pairs = mazes.minimal_pairs(TOK, mazes.generate(25, 4, seed=8, split="test"), position="path", seed=2)
    heads = ((0, 3), (1, 0))
    found = mazes.patch_heads(model, pairs, train, heads, draws=0)
    changes, gaps, flips = [], [], []
    sides = [(pairs.a, pairs.b), (pairs.b, pairs.a)]
    for i in range(len(pairs)):
        for own, other in sides:
            z = model.run(other.tokens[i], capture="z").stack("z")

            def put(layer: int, head: int, z: Array = z) -> Any:
                def fn(value: Array) -> Array:
                    value[0, -1, head] = z[layer, 0, -1, head]
                    return value

                return fn

            edits = {f"blocks.{layer}.attn.hook_z": put(layer, head) for layer, head in heads}
            logits = [logits_of(model, [own.tokens[i]], e) for e in (None, edits)]
            source = logits_of(model, [other.tokens[i]])
            gained = [x[other.targets[i]] - x[own.targets[i]] for x in (*logits, source)]
            changes.append(gained[1] - gained[0])
            gaps.append(gained[2] - gained[0])
            if gained[0] < 0:
                flips.append(logits[1].argmax() == other.targets[i])
    row = found.row("adjacency")[0]
    assert row.recovered.value == pytest.approx(np.sum(changes) / np.sum(gaps))
    assert np.allclose(row.changes, np.reshape(changes, (-1, 2)).mean(1))
    assert (row.flipped.successes, row.flipped.n) == (sum(flips), len(flips))
    assert found.gap.value == pytest.approx(np.mean(gaps) / 2)
    alone = mazes.patch_heads(model, pairs, train, [(1, 2)], draws=0)
    assert alone.row("adjacency")[0].recovered.value == pytest.approx(found.each[1, 2])


def test_metrics_and_effects() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 1, 7))
    ids = np.array([3, 0, 6, 2, 2])
    want = [x[i, 0, t] - np.delete(x[i, 0], t).mean() for i, t in enumerate(ids)]
    assert causal.Margin(ids)(x) == pytest.approx(want)
    assert causal.Margin(ids)(x[[4, 1]], [4, 1]) == pytest.approx([want[4], want[1]])
    assert causal.Likeliest(ids)(x).tolist() == [float(x[i].argmax() == t) for i, t in enumerate(ids)]
    pairs = np.round(rng.standard_normal((30, 2)), 1)
    assert causal.rank_correlation(pairs) == pytest.approx(stats.spearmanr(*pairs.T).statistic)
    changes = rng.standard_normal(20) + 1
    assert causal.standardised(changes) == pytest.approx(stats.ttest_1samp(changes, 0).statistic / np.sqrt(20))
    assert causal.standardised(np.zeros(5)) == 0 == causal.standardised(np.zeros(1))


# ---- Bad input ----------------------------------------------------------------------------------------------------


def test_what_ablation_and_patching_refuse(model: clew.Model, test: mazes.Mazes, train: mazes.Mazes) -> None:
    for function in (mazes.ablate_heads, mazes.patch_heads):
        name = function.__name__
        with pytest.raises(TokenError, match="vocabulary of 50 tokens is none of mazes"):
            function(made(1, d_vocab=50), test, train)
        with pytest.raises(ConfigError, match=f"{name}: 1 mazes: at least 2"):
            function(model, test[:1], train)
        with pytest.raises(ConfigError, match=f"{name}: reference: 0 mazes: at least 2"):
            function(model, test, train[:0])
        with pytest.raises(ConfigError, match=f"{name}: 11 mazes' walls are in the mazes and in the reference"):
            function(model, test, test)
        with pytest.raises(ConfigError, match="L2H0: maze-hallway has layers 0 to 1 of heads 0 to 3"):
            function(model, test, train, [(2, 0)])
        with pytest.raises(ConfigError, match="L0H-1: maze-hallway has layers 0 to 1"):
            function(model, test, train, [(0, -1)])
        with pytest.raises(ConfigError, match="L0H1 comes twice"):
            function(model, test, train, [(0, 1), (0, 1)])
        with pytest.raises(ConfigError, match=r"heads: 3 is no pair \(layer, head\)"):
            function(model, test, train, [3])
        with pytest.raises(ConfigError, match="heads is empty"):
            function(model, test, train, [])
        with pytest.raises(ConfigError, match="heads = 5: 1 to 4, so that as many are left"):
            function(model, test, train, 5)
        with pytest.raises(ConfigError, match=f"{name}: draws = -1, must be a whole number, at least 0"):
            function(model, test, train, draws=-1)
    with pytest.raises(ConfigError, match=r"ablate_heads: methods = \['zero'\]: of 'mean', 'resample'"):
        mazes.ablate_heads(model, test, train, methods=["zero"])
    with pytest.raises(ConfigError, match="maze 0 has no way from its origin to its target"):
        cut = mazes.Maze(4, [[(0, 0), (0, 1)]], (0, 0), (3, 3))
        mazes.ablate_heads(model, [cut, cut], train)
    with pytest.raises(ShapeError, match="ablate_heads: mazes of 4 × 4, reference of 3 × 3"):
        mazes.ablate_heads(model, test, mazes.generate(4, 3))
    with pytest.raises(ShapeError, match="mazes of 3 × 3 and 4 × 4"):
        mazes.output_norms(model, mazes.Mazes.join([test, mazes.generate(2, 3)]))
