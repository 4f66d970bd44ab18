"""Heads as tokens and words on their way: against plain NumPy, and claims' scores on cases whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import corpus, geometry
from clew.geometry import NOUNS
from clew.lens import unembed
from sklearn.decomposition import PCA
from support import make
from zoo import zoo

Array = np.ndarray[Any, Any]
ZOO = zoo()


def nearest_ids(rows: Array, x: Array, k: int) -> Array:
    return np.argsort(-(x @ rows.T), axis=-1, kind="stable")[..., :k]


def layer_norm(model: clew.Model, x: Array, name: str) -> Array:
    config = model.config
    x = x if config.rms else x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + config.eps)
    x = x * model.weights[f"{name}.w"]
    return x + model.weights[f"{name}.b"] if f"{name}.b" in model.weights else x


# ---- heads ----------------------------------------------------------------------------------------------------------


def test_nouns_are_a_hundred_and_missing_ones_are_listed() -> None:
    assert len(set(NOUNS)) == len(NOUNS) == 100
    model = clew.load("shakespeare")
    kept, ids, missing = geometry.single_tokens(model, [*NOUNS, "qwzx"])
    assert len(kept) + len(missing) == 101 and "qwzx" in missing and len(kept) >= 10
    assert all(model.to_str_tokens([i])[0].strip() == word for i, word in zip(ids, kept, strict=True))
    probe = geometry.probe_nouns(model, ["man", "qwzx", "king", "zzyx"])
    assert probe.missing == ("qwzx", "zzyx") and probe.table().startswith(
        "2 words are single tokens; not: 2: qwzx, zzyx"
    )
    with pytest.raises(clew.TokenError, match="none of the words is a single token: qwzx, zzyx"):
        geometry.probe_nouns(model, ["qwzx", "zzyx"])
    with pytest.raises(clew.TokenError, match="no tokenizer"):
        geometry.probe_nouns(clew.load("stories260K"))
    with pytest.raises(clew.TokenError, match="id 900 is no token: the vocabulary has 0 to 511"):
        geometry.probe_nouns(clew.load("stories260K"), ids=[900])


@pytest.mark.parametrize("name", ["gpt2", "llama_biased", "gqa_6_2"])
def test_probing_words_against_plain_numpy(name: str) -> None:
    model, w = make(ZOO[name])
    config, ids, k = model.config, [3, 5, 6], 4
    found = geometry.probe_nouns(model, ids=ids, layers=[0, -1], k=k)
    assert found.layers == (0, config.n_layers - 1)
    every = w["embed.W_E"] * config.embed_scale
    group = config.n_heads // config.n_key_value_heads
    for row, layer in enumerate(found.layers):
        read = layer_norm(model, every, f"blocks.{layer}.ln1")
        a = {n: w[f"blocks.{layer}.attn.{n}"] for n in ("W_Q", "W_K", "W_V", "W_O", "b_V", "b_O")}
        total = np.zeros((3, config.d_model))
        assert found.query_key is not None
        for head in range(config.n_heads):
            g = head // group
            wanted = read[ids] @ a["W_Q"][head] @ a["W_K"][g].T
            assert np.array_equal(found.query_key[row, head], nearest_ids(read, wanted, k))
            written = (read[ids] @ a["W_V"][g] + a["b_V"][g]) @ a["W_O"][head]
            total += written
            after = layer_norm(model, every[ids] + written + a["b_O"], "ln_final")
            assert np.array_equal(found.value_output[row, head], nearest_ids(every, after, k))
        after = layer_norm(model, every[ids] + total + a["b_O"], "ln_final")
        assert np.array_equal(found.value_output_sum[row], nearest_ids(every, after, k))
        own = [ids[i] in found.value_output_sum[row, i] for i in range(3)]
        assert found.kept[row] == pytest.approx(np.mean(own))
    assert "3 words are single tokens" in found.table()


@pytest.mark.parametrize("kind", ["QK", "VO"])
def test_singular_vectors_against_numpy(kind: Any) -> None:
    model, w = make(ZOO["gpt2"])
    config = model.config
    found = geometry.svd_heads(model, 1, kind, pairs=5, k=3)
    read = layer_norm(model, w["embed.W_E"], "blocks.1.ln1")
    right_rows = read if kind == "QK" else w["embed.W_E"]
    for head in range(config.n_heads):
        a = {n: w[f"blocks.1.attn.{n}"][head] for n in ("W_Q", "W_K", "W_V", "W_O")}
        matrix = a["W_Q"] @ a["W_K"].T / config.attn_scale if kind == "QK" else a["W_V"] @ a["W_O"]
        u, s, vh = np.linalg.svd(matrix)
        r = config.d_head
        np.testing.assert_allclose(found.singular_values[head], s[:r], rtol=1e-11)
        for i in range(5):
            sign = 1.0 if (right_rows @ vh[i]).max() >= (right_rows @ -vh[i]).max() else -1.0  # the sign rule
            np.testing.assert_allclose(found.right[head, i], sign * vh[i], atol=1e-9)
            np.testing.assert_allclose(found.left[head, i], sign * u[:, i], atol=1e-9)
            assert np.array_equal(found.right_tokens[head, i], nearest_ids(right_rows, found.right[head, i], 3))
            assert np.array_equal(found.left_tokens[head, i], nearest_ids(read, found.left[head, i], 3))
        share = np.cumsum(s[:r]) / s[:r].sum()
        np.testing.assert_allclose(found.coverage[head], share, rtol=1e-11)
        assert share[found.mark[head] - 1] >= 0.99 and (found.mark[head] == 1 or share[found.mark[head] - 2] < 0.99)
    assert len(found.table(head=1, pairs=2).splitlines()) == 3
    with pytest.raises(clew.ConfigError, match="kind = 'KQ': 'QK' or 'VO'"):
        geometry.svd_heads(model, 0, "KQ")  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match="pairs = 0"):
        geometry.svd_heads(model, 0, pairs=0)


def test_tokens_of_bias_vectors() -> None:
    model, w = make(ZOO["gpt2"])
    found = geometry.bias_tokens(model, 0, k=4)
    assert found is not None
    read = layer_norm(model, w["embed.W_E"], "blocks.0.ln1")
    for head in range(model.config.n_heads):
        a = {n: w[f"blocks.0.attn.{n}"][head] for n in ("W_Q", "W_K", "b_Q", "b_K")}
        query, key = a["W_Q"] @ a["b_K"] / model.config.attn_scale, a["b_Q"] @ a["W_K"].T / model.config.attn_scale
        for i, sign in enumerate((1, -1)):
            assert np.array_equal(found.query[i, head], nearest_ids(read, sign * query, 4))
            assert np.array_equal(found.key[i, head], nearest_ids(read, sign * key, 4))
        np.testing.assert_allclose(found.sizes[:, head], [np.linalg.norm(query), np.linalg.norm(key)], rtol=1e-12)
    assert len(found.table().splitlines()) == 4 * model.config.n_heads
    assert geometry.bias_tokens(make(ZOO["llama"])[0], 0) is None


def test_coherence() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 6))
    ids = rng.integers(0, 40, (3, 2, 5))
    centred = rows - rows.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosines = unit @ unit.T
    for index in np.ndindex(3, 2):
        group = ids[index]
        want = np.mean([cosines[a, b] for i, a in enumerate(group) for j, b in enumerate(group) if i != j])
        assert geometry.coherence(rows, ids)[index] == pytest.approx(want)


def test_heads_that_read_a_subject_are_coherent() -> None:
    """A head made to read and write one cluster of tokens stands out of the random draws; others do not have to."""
    config = clew.ModelConfig(n_layers=1, d_model=32, n_heads=2, n_ctx=8, d_vocab=200, normalization_type=None)
    model, w = make(config)
    rng = np.random.default_rng(5)
    centres = np.linalg.qr(rng.standard_normal((32, 16)))[0].T
    w["embed.W_E"][:] = 3 * centres[np.arange(200) % 16] + 0.1 * rng.standard_normal((200, 32))
    w["blocks.0.attn.W_V"][0], w["blocks.0.attn.W_O"][0] = centres.T, np.diag(np.arange(16, 0, -1.0)) @ centres[::-1]
    from clew.loaders.checkpoint import Checkpoint

    found = geometry.head_coherence(clew.Model(Checkpoint(config, w, np.dtype(np.float64))), pairs=4, k=10)
    assert found.right[0, 0] > max(0.95, np.quantile(found.random_right, 0.95))
    assert found.left[0, 0] > max(0.95, np.quantile(found.random_left, 0.95))
    assert min(found.above_chance) >= 0.5 and len(found.table().splitlines()) == 2
    with pytest.raises(clew.ConfigError, match="k = 1: coherence takes two tokens"):
        geometry.head_coherence(model, k=1)


def test_random_directions_are_as_many_as_singular_ones() -> None:
    """A head of four dimensions has four: a mean over more random ones would vary less, and more heads stand out."""
    model, _ = make(clew.ModelConfig(n_layers=2, d_model=32, n_heads=8, n_ctx=8, d_vocab=200))
    all_, more = (geometry.head_coherence(model, pairs=pairs, k=5) for pairs in (4, 400))
    for name in ("left", "right", "random_left", "random_right", "untrained_left"):
        assert np.array_equal(getattr(all_, name), getattr(more, name)), name
    assert geometry.head_coherence(model, pairs=1, k=5).random_left.std() > 1.5 * all_.random_left.std()


# ---- ways -----------------------------------------------------------------------------------------------------------


def test_principal_components_against_sklearn() -> None:
    rows = np.random.default_rng(1).standard_normal((300, 9)) @ np.diag(np.arange(9, 0, -1.0))
    ours, theirs = geometry.fit_projection(rows, 3), PCA(3).fit(rows)
    want = theirs.transform(rows)
    got = ours(rows)
    np.testing.assert_allclose(np.abs(got), np.abs(want), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, rtol=1e-10)
    assert geometry.fit_projection(rows, 2, max_rows=50, seed=3)(rows).shape == (300, 2)
    for arguments, error, message in (
        ((rows, 10), clew.ConfigError, "dims = 10 of 9"),
        ((rows, 2, "tsne"), clew.ConfigError, "method = 'tsne': 'pca' or 'umap'"),
        ((rows[:1], 1), clew.ShapeError, r"rows \[1, 9\]"),
    ):
        with pytest.raises(error, match=message):
            geometry.fit_projection(*arguments)
    with pytest.raises(clew.ConfigError, match="neighbours = 1: at least 2"):
        geometry.fit_projection(rows, 2, "umap", neighbours=1)
    with pytest.raises(clew.ConfigError, match=r"min_dist = 1\.5: from 0 to 1"):
        geometry.fit_projection(rows, 2, "umap", min_dist=1.5)
    one, same = geometry.fit_projection(rows, 1), geometry.fit_projection(rows, np.uint64(1))  # type: ignore[arg-type]
    assert np.array_equal(one(rows), same(rows)) and same.dims == 1


@pytest.mark.filterwarnings("ignore")  # umap-learn warns of what it does without
def test_umap_is_an_extra() -> None:
    rows = np.random.default_rng(1).standard_normal((60, 5))
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"needs umap-learn: pip install '\.\[umap\]' in the checkout"):
            geometry.fit_projection(rows, 2, "umap")
        pytest.skip("umap-learn is not installed: its projection is not fitted")
    once, again = (geometry.fit_projection(rows, 2, "umap", seed=3)(rows[:4]) for _ in range(2))
    assert once.shape == (4, 2) and (once == again).all()
    way = geometry.trajectory(clew.load("stories260K"), [1, 403, 407, 261], method="umap", dims=2)
    assert way.points.shape == (6, 2)
    np.testing.assert_allclose(way.projected, np.linalg.norm(way.points - way.target_point, axis=-1))
    np.testing.assert_allclose(way.l2, geometry.trajectory(clew.load("stories260K"), [1, 403, 407, 261]).l2)


def test_trajectory_in_both_spaces() -> None:
    model = clew.load("shakespeare")
    way = geometry.trajectory(model, dims=2)
    ids = [int(i) for i in model.to_tokens(geometry.paths.PROMPT)[0]]
    assert way.position == len(ids) - 2 and way.target == ids[-1]
    run = model.run(ids, capture=["resid_pre", "resid_post"])
    streams = np.concatenate([run["resid_pre", 0][None], run.stack("resid_post")])[:, 0, -2].astype(np.float64)
    states = layer_norm(model, streams, "ln_final")
    goal = model.W_E[ids[-1]].astype(np.float64)
    np.testing.assert_allclose(way.l2, np.linalg.norm(states - goal, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(way.dot, states @ goal, rtol=1e-4, atol=1e-4)
    cosine = states @ goal / np.linalg.norm(states, axis=-1) / np.linalg.norm(goal)
    np.testing.assert_allclose(way.cosine, cosine, atol=1e-5)
    np.testing.assert_allclose(way.projected, np.linalg.norm(way.points - way.target_point, axis=-1), rtol=1e-12)
    assert len(way.table().splitlines()) == 7
    for arguments, error, message in (
        (("To kill", -1), clew.ShapeError, "position = -1 of .* tokens: a token that another follows"),
        (([5], 0), clew.TokenError, "one sequence of two tokens or more"),
    ):
        with pytest.raises(error, match=message):
            geometry.trajectory(model, *arguments)


@pytest.mark.parametrize("name", ["gpt2", "phi", "llama", "no_norm"])
def test_distances_against_the_logits(name: str) -> None:
    """Behind the last block it is log p(next) − log p(current); at each layer that of the lens; ragged batches too."""
    model, _ = make(ZOO[name])
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, model.config.d_vocab, n).tolist() for n in (9, 12, 5, 12)]
    found = geometry.distances(model, rows)
    sums, counts = np.zeros((model.config.n_layers + 1, 11)), np.zeros(11)
    for row in rows:
        run = model.run(row, capture=["resid_pre", "resid_post"])
        n = np.arange(len(row) - 1)
        log_p = run.logits[0] - np.logaddexp.reduce(run.logits[0], -1)[:, None]
        sums[-1, n] += log_p[n, row[1:]] - log_p[n, row[:-1]]
        for layer in range(model.config.n_layers):
            x = run["resid_pre", 0] if layer == 0 else run["resid_post", layer - 1]
            logits = unembed(model, x[0])
            sums[layer, n] += logits[n, row[1:]] - logits[n, row[:-1]]
        counts[n] += 1
    assert found.count.tolist() == counts.tolist()
    np.testing.assert_allclose(found.log_ratio, sums / counts, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mean, sums.sum(1) / counts.sum(), rtol=1e-9, atol=1e-9)
    assert np.isnan(found.error[:, counts < 2]).all() and (found.error[:, counts > 2] > 0).all()
    assert len(found.table().splitlines()) == model.config.n_layers + 2


def test_distances_do_not_depend_on_the_batch() -> None:
    model, _ = make(ZOO["gpt2"])
    rows = np.random.default_rng(2).integers(0, 31, (6, 8))
    together, mixed = geometry.distances(model, rows), geometry.distances(model, rows[::-1].tolist())
    np.testing.assert_allclose(together.log_ratio, mixed.log_ratio, rtol=1e-12)
    with pytest.raises(clew.TokenError, match="no token that another one follows"):
        geometry.distances(model, [[3], [4]])
    with pytest.raises(clew.ConfigError, match="different vocabularies"):
        geometry.distances(make(ZOO["vocab_out"])[0], [[3, 4]])


def test_refinement() -> None:
    model, _ = make(ZOO["gpt2"])
    rows = np.random.default_rng(2).integers(0, 31, (3, 8))
    found = geometry.refinement(model, rows)
    run = model.run(rows, capture=["resid_pre", "resid_post"])
    streams = np.concatenate([run["resid_pre", 0][None], run.stack("resid_post")]).reshape(3, -1, 24)
    streams = streams - streams.mean(-1, keepdims=True)
    unit = streams / np.linalg.norm(streams, axis=-1, keepdims=True)
    turns = np.degrees(np.arccos((unit[:-1] * unit[1:]).sum(-1))).mean(-1)
    np.testing.assert_allclose(found.angle, turns, rtol=1e-10)
    log_p = [x - np.logaddexp.reduce(x, -1)[..., None] for x in (run.logits, unembed(model, run["resid_post", 0]))]
    kl = (np.exp(log_p[0]) * (log_p[0] - log_p[1])).sum(-1).mean()
    assert found.divergence[0] == pytest.approx(kl, rel=1e-9) and abs(found.divergence[-1]) < 1e-12


def test_contextual_without_context() -> None:
    """Streams that depend on the token alone stay alike at every layer; with attention they do not."""
    config = clew.ModelConfig(
        n_layers=2, d_model=16, n_heads=2, n_ctx=32, d_vocab=12, positional_embedding_type="none", act_fn="gelu"
    )
    rows = np.random.default_rng(0).integers(0, 12, (4, 20))
    model, _ = make(config)
    with_context = geometry.contextual(model, rows, pairs=300)
    with model.edited([clew.edit.zero("attn_out")]):
        without = geometry.contextual(model, rows, pairs=300)
    np.testing.assert_allclose(without.same, 1, rtol=1e-12)
    assert with_context.same[0] == pytest.approx(1) and (with_context.same[1:] < 0.999).all()
    np.testing.assert_allclose(without.corrected, without.same - without.different, rtol=1e-14)
    assert (without.different < 0.9).all()
    with pytest.raises(clew.TokenError, match="no token occurs twice"):
        geometry.contextual(model, [[1, 2, 3]])
    with pytest.raises(clew.ConfigError, match="pairs = 0"):
        geometry.contextual(model, rows, pairs=0)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_windows() -> None:
    model = clew.load("shakespeare")
    ids = np.asarray(model.to_tokens(corpus.held_out())[0])
    cut = corpus.windows(model, None, 50)
    assert np.array_equal(cut.tokens.reshape(-1), ids[: cut.tokens.size]) and cut.left_out == len(ids) - cut.tokens.size
    few = corpus.windows(model, None, 50, limit=3)
    assert (
        few.told() == f"held-out Shakespeare of the package, {len(ids) - 150:,} of its {len(ids):,} tokens in no window"
    )
    assert corpus.windows(model, few.tokens, 50).told() == "the windows given"
    assert np.array_equal(few.tokens, cut.tokens[[0, round((len(cut.tokens) - 1) / 2), -1]])
    assert corpus.windows(model, few.tokens, 50).tokens.tolist() == few.tokens.tolist()
    made = corpus.windows(clew.load("stories260K"), None, 16, limit=3, seed=1)
    assert made.tokens.shape[1] == 16 and "made" in made.source
    for arguments, error, message in (
        (("abc", 300), clew.ConfigError, "length = 300: the model has learned 256 positions"),
        (("abc", 1), clew.ConfigError, "length = 1: a window needs two tokens"),
        (("abc", 20), clew.TokenError, "holds no window of 20"),
        (([5, 6, 5000], 2), clew.TokenError, "id 5000 is no token"),
        (([0.5, 1.0], 2), clew.ShapeError, "tokens must be integers"),
        (([5, 6], 2, 0), clew.ConfigError, "limit = 0"),
    ):
        with pytest.raises(error, match=message):
            corpus.windows(model, *arguments)


# ---- the experiment -------------------------------------------------------------------------------------------------


def test_experiment_on_a_small_model(tmp_path: Path) -> None:
    model = clew.load("shakespeare")
    result = geometry.experiment(model, seed=3)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["seed"] == 3 and data["version"] == clew.__version__ and len(data["claims"]) == 9
    assert data["numbers"]["windows"] == [32, 64] and data["numbers"]["attention_error"] < 1e-5
    assert data["numbers"]["distances"]["mean"] == result.distances.mean.tolist()
    assert all(claim.says and claim.measured for claim in result.claims)
    assert "Traveling words (shakespeare, seed 3)" in result.table() and len(result.details()) > 2000
    assert (
        result.details().startswith("32 windows of 64 tokens: held-out Shakespeare") and "in no window" in result.text
    )
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: figures are not drawn")
    names = set(result.figures())
    assert {claim.figure for claim in result.claims} - {None} <= names
    files = result.save(tmp_path / "out")
    assert len(files) == 2 + len(names) and all(path.stat().st_size for path in files)


@pytest.mark.parametrize("name", ["qwen3", "no_norm", "gemma2"])
def test_experiment_on_odd_models(name: str) -> None:
    model, _ = make(ZOO[name])
    rows = np.random.default_rng(0).integers(0, model.config.d_vocab, (4, 12))
    result = geometry.experiment(model, rows)
    verdicts = {claim.text: claim.verdict for claim in result.claims}
    assert verdicts["in the last block the sum over heads keeps a word's meaning"] == "not testable on this model"
    no_matrix = verdicts["query-key patterns are readable in block 0 and not in deeper ones"]
    assert (no_matrix == "not testable on this model") == (name == "qwen3")
