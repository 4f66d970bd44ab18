"""Heads: attribution against recomputed logits, attention shares against slow sums."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, mazes
from clew.loaders.checkpoint import Checkpoint
from clew.mazes.prompts import bootstrap, path_prompts
from support import make


@pytest.fixture(scope="module")
def model() -> clew.Model:
    config = mazes.hallway_config(n_layers=2, d_model=32, n_heads=4, d_mlp=64, initializer_range=0.3)
    return clew.Model.from_config(config, seed=1, dtype="float64")


def test_attribution_is_what_a_head_adds_to_the_logits(model: clew.Model) -> None:
    ms = mazes.generate(12, 4, seed=2)
    found = mazes.logit_attribution(model, ms)
    asked = path_prompts(ms, mazes.Tokenizer(7))
    contribution = np.zeros((2, 4))
    for tokens, right in zip(asked.tokens, asked.targets, strict=True):
        run = model.run(tokens, capture=["z", "resid_post", "ln_final.hook_scale"])
        scale = run["ln_final.hook_scale"][0, -1]
        for layer in range(2):
            for head in range(4):
                out = run["z", layer][0, -1, head] @ model.W_O[layer, head]
                normed = (out - out.mean()) / scale * model.weights["ln_final.w"]
                logits = normed @ model.weights["unembed.W_U"]
                contribution[layer, head] += logits[right] - np.delete(logits, right).mean()
    assert np.allclose(found.heads, contribution / len(asked), atol=1e-9)
    whole = found.heads.sum() + found.mlps.sum() + found.biases.sum() + found.embedding + found.constant
    assert whole == pytest.approx(found.total, abs=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
        {"use_normalization_before_and_after": True, "output_logits_soft_cap": 0.5},
        {"normalization_type": None, "output_logits_soft_cap": 2.0},
        {"attn_only": True},
        {"attn_only": True, "normalization_type": None},
    ],
)
def test_attribution_is_that_of_any_model(changes: dict[str, Any]) -> None:
    config = mazes.hallway_config(n_layers=2, d_model=16, n_heads=2, d_mlp=32, d_vocab=27,
                                  extra={"mazes": {"grid": 4, "order": "uniform"}})  # fmt: skip
    model, _ = make(config.replace(**changes))
    ms = mazes.generate(9, 4, seed=2)
    found, asked = mazes.logit_attribution(model, ms), path_prompts(ms, mazes.Tokenizer(4))
    others = [np.delete(np.arange(27), right) for right in asked.targets]
    dla = [
        [clew.direct_logit_attribution(model, tokens, int(right), int(wrong), by="head") for wrong in rest]
        for tokens, right, rest in zip(asked.tokens, asked.targets, others, strict=True)
    ]
    labels = dla[0][0].labels
    mean = np.mean([[one.values[:, 0] for one in row] for row in dla], axis=(0, 1))
    for head in np.ndindex(2, 2):
        assert found.heads[head] == pytest.approx(mean[labels.index(f"L{head[0]}H{head[1]}")], abs=1e-9)
    assert found.mlps == pytest.approx(
        [0 if model.config.attn_only else mean[labels.index(f"{layer}_mlp_out")] for layer in range(2)], abs=1e-9
    )
    assert found.total == pytest.approx(np.mean([[one.logit[0] for one in row] for row in dla]), abs=1e-9)
    whole = found.heads.sum() + found.mlps.sum() + found.biases.sum() + found.embedding + found.constant
    assert whole == pytest.approx(found.total, abs=1e-9)


def test_shares_of_attention(model: clew.Model) -> None:
    ms = mazes.generate(6, 4, "prdfs", seed=3)
    found, tok = mazes.adjacency_heads(model, ms, draws=10), mazes.Tokenizer(7)
    asked = path_prompts(ms, tok)
    near, wall, whole, even_near, even_wall = np.zeros((5, 2, 4))
    for maze, tokens, here in zip(asked.mazes, asked.tokens, asked.here, strict=True):
        run, words = model.run(tokens, capture="pattern"), tok.decode(tokens)
        cells = [i for i in range(words.index("<ADJLIST_END>")) if words[i].startswith("(")]
        place = {i: tuple(map(int, words[i][1:-1].split(","))) for i in cells}
        touching = [i for i in cells if abs(np.subtract(place[i], here)).sum() == 1]
        open_ = [i for i in touching if maze.connected(place[i], here)]
        behind = [i for i in touching if i not in open_]
        pattern = run.stack("pattern")[:, 0, :, -1]
        near += pattern[..., open_].sum(-1)
        wall += pattern[..., behind].sum(-1)
        mass = pattern[..., cells].sum(-1)
        whole += mass
        even_near, even_wall = even_near + mass * len(open_) / len(cells), even_wall + mass * len(behind) / len(cells)
    assert np.allclose(found.connected_over_uniform, near / even_near)
    assert np.allclose(found.walled_over_uniform, wall / even_wall)
    assert np.allclose(found.mass_by_place[0], whole / len(asked))
    assert found.by_path_length.sum(-1) == pytest.approx(found.mass_by_place)
    assert len(found.ranked()) == 8 and "L1H" in found.table()


@pytest.fixture(scope="module")
def uniform() -> clew.Model:
    """Attends to all tokens alike: its queries are 0."""
    model = clew.Model.from_config(mazes.hallway_config(n_layers=1, d_model=16, n_heads=2, d_mlp=16), seed=0)
    weights = {name: np.array(w) for name, w in model.weights.items()}
    for name in ("W_Q", "b_Q"):
        weights[f"blocks.0.attn.{name}"][:] = 0
    return clew.Model(Checkpoint(model.config, weights, model.dtype))


@pytest.mark.parametrize("position", ["path_start", "origin", "path", "nonend"])
@pytest.mark.parametrize("kind", ["rdfs", "forkless", "prdfs", "percolation"])
def test_uniform_attention_is_once_uniform(uniform: clew.Model, kind: str, position: str) -> None:
    found = mazes.adjacency_heads(uniform, mazes.generate(60, 5, kind, seed=5), position=position, draws=20)
    assert np.allclose(found.connected_over_uniform, 1, atol=1e-5)
    assert np.allclose(found.walled_over_uniform, 1, atol=1e-5)
    if position in ("path", "nonend"):
        assert np.allclose(found.path_connected_over_uniform, 1, atol=1e-5)
    else:  # the path shows no cell, or the origin alone: nothing of it is one step away
        assert np.isnan(found.path_connected_over_uniform).all()
    assert all(np.allclose(part, 0, atol=1e-5) for part in (found.score, found.low, found.high))
    for part, even in ((found.by_path_length, found.uniform_by_path_length),
                       (found.by_manhattan, found.uniform_by_manhattan)):  # fmt: skip
        there = found.mass_by_place > 0
        assert np.allclose(part[there], (even * found.mass_by_place[..., None])[there], atol=1e-6)
    assert np.allclose(found.by_manhattan.sum(-1), found.mass_by_place)
    if kind == "percolation":  # what no way leads to counts among the cells, at no path length
        assert (found.by_path_length.sum(-1)[0] < found.mass_by_place[0] - 1e-3).all()


def test_one_maze_has_no_interval(model: clew.Model) -> None:
    train, test = mazes.generate(9, 4, seed=1, split="train"), mazes.generate(2, 4, seed=1, split="test")
    still = test[1].with_ends((0, 0), (0, 0))  # its path has no step
    lens = mazes.lens_masses(model, train, [test[0], still])
    found: list[Any] = [
        mazes.logit_attribution(model, test[0]), mazes.adjacency_heads(model, test[0], draws=9),
        mazes.wall_probes(model, train, test[0], methods=["ridge"])["ridge"], bootstrap([1.0, np.nan]),
        bootstrap([[1.0, 2.0]], lambda pairs: pairs[0, 1]),
    ]  # fmt: skip
    for one in found:
        assert np.isnan(one.low).all() and np.isnan(one.high).all() and "nan" in repr(one)
    assert found[-1].value == 2 and not found[-1].above_zero and np.isfinite(found[0].heads).all()
    assert lens.n_mazes == 1 and np.isnan(lens.connected_high["tuned"]).all() and not lens.knows_walls().any()
    assert mazes.wall_probes(model, train, test[0], methods=["ridge"]).table().count("[nan, nan]") == 2


def test_distances_of_embeddings() -> None:
    model = clew.Model.from_config(mazes.hallway_config(n_layers=1), seed=0, dtype="float64")
    tok = mazes.Tokenizer(7)
    found = mazes.embedding_distances(model, "l2", grid=6)
    cells = [(r, c) for r in range(6) for c in range(6)]
    rows = model.weights["embed.W_E"][[tok.ids[f"({r},{c})"] for r, c in cells]]
    pairs = [(i, j) for i in range(36) for j in range(i + 1, 36)]
    apart = [np.linalg.norm(rows[i] - rows[j]) for i, j in pairs]
    steps = [abs(np.subtract(cells[i], cells[j])).sum() for i, j in pairs]
    assert found.r == pytest.approx(np.corrcoef(apart, steps)[0, 1])
    with pytest.raises(ConfigError, match="metric = 'tall'"):
        mazes.embedding_distances(model, "tall")
    with pytest.raises(ConfigError, match="2 to 7 rows"):
        mazes.embedding_distances(model, grid=8)
