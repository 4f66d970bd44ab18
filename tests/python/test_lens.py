"""The logit lens against the engine itself: layer k of the lens is what a model cut after block k computes."""

from __future__ import annotations

import pickle
from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from clew.lens import LogitLens, logit_lens, unembed
from clew.loaders.checkpoint import Checkpoint
from support import make, relative_error
from zoo import random_tokens, random_weights, vector_zoo, zoo

ZOO = {name: c for name, c in zoo().items() if c.n_layers > 1 and c.d_vocab > 2}


def cut(config: clew.ModelConfig, n_layers: int) -> clew.ModelConfig:
    types = None if config.attn_types is None else config.attn_types[:n_layers]
    return config.replace(n_layers=n_layers, attn_types=types)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_each_layer_is_the_model_that_ends_there(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 3, pos=9)
    lens = logit_lens(model, tokens)
    assert lens.layers == tuple(range(config.n_layers))
    for layer in range(config.n_layers):
        kept = cut(config, layer + 1)
        here = {n: w for n, w in weights.items() if not n.startswith("blocks.") or int(n.split(".")[1]) <= layer}
        truth = clew.Model(Checkpoint(kept, here, np.dtype(np.float64))).run(tokens).logits
        assert relative_error(lens.logits[layer], truth) < 1e-12


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(normalization_type="RMS"),
        dict(normalization_type="LNPre"),
        dict(normalization_type="RMSPre"),
        dict(normalization_type=None),
        dict(final_norm=False),
        dict(unembed_bias=True),
        dict(output_logits_soft_cap=1.5),
        dict(eps=0.5),
    ],
    ids=lambda c: " ".join(map(str, c.items())) or "LN",
)
def test_last_layer_is_the_models_own_output(changes: dict[str, Any]) -> None:
    config = clew.ModelConfig(**(dict(n_layers=2, d_model=12, n_heads=3, n_ctx=16, d_vocab=23) | changes))
    model, _ = make(config)
    run = model.run(random_tokens(config, 0), capture="resid_post")
    assert relative_error(logit_lens(model, run).logits[-1], run.logits) < 1e-13
    assert relative_error(unembed(model, run["resid_post", -1][0, 3]), run.logits[0, 3]) < 1e-13


def test_float32_stays_float32() -> None:
    config = ZOO["gpt2"]
    model, _ = make(config, dtype=np.float32)
    run = model.run(random_tokens(config, 0), capture="resid_post")
    lens = logit_lens(model, run)
    assert lens.logits.dtype == lens.log_probs.dtype == lens.entropy.dtype == np.float32
    assert relative_error(lens.logits[-1], run.logits) < 1e-5


def test_statistics_by_hand() -> None:
    config = ZOO["gpt2"]
    model, _ = make(config)
    tokens = random_tokens(config, 5)
    lens = logit_lens(model, tokens, top_k=4)
    logits = lens.logits
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(lens.log_probs), p, rtol=1e-12)
    np.testing.assert_allclose(lens.entropy, -(p * np.log(p)).sum(-1), rtol=1e-12, atol=1e-15)
    order = np.argsort(-logits, axis=-1, kind="stable")
    assert np.array_equal(lens.top_tokens, order[..., :4])
    np.testing.assert_allclose(lens.top_probs, np.take_along_axis(p, order[..., :4], -1), rtol=1e-12)
    for layer in range(config.n_layers):
        for seq in range(2):
            for pos in range(tokens.shape[1] - 1):
                following = tokens[seq, pos + 1]
                assert order[layer, seq, pos][lens.ranks[layer, seq, pos]] == following
                np.testing.assert_allclose(lens.loss[layer, seq, pos], -np.log(p[layer, seq, pos, following]))
    assert (lens.ranks[:, :, -1] == -1).all() and np.isnan(lens.loss[:, :, -1]).all()
    np.testing.assert_allclose(lens.loss[-1, :, :-1], model.loss(tokens), rtol=1e-10)


def test_equal_logits_the_smaller_id_first() -> None:
    config = ZOO["gpt2"].replace(tie_word_embeddings=False)
    weights = random_weights(config, 1)
    weights["unembed.W_U"] = np.zeros_like(weights["unembed.W_U"])
    model = clew.Model(Checkpoint(config, weights, np.dtype(np.float64)))
    lens = logit_lens(model, [1, 2, 3], top_k=config.d_vocab)
    assert (lens.top_tokens == np.arange(config.d_vocab)).all()
    assert np.array_equal(logit_lens(model, [1, 2, 3], top_k=99).top_tokens, lens.top_tokens)
    np.testing.assert_allclose(lens.entropy, np.log(config.d_vocab), rtol=1e-12)
    assert (lens.ranks[..., :-1] == 0).all()  # nothing is likelier


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ZOO["gpt2"]
    model, _ = make(config)
    tokens = random_tokens(config, 2)
    whole = logit_lens(model, tokens)
    sizes = []

    def counted(model: clew.Model, resid: Any) -> Any:
        sizes.append(len(resid))
        return unembed(model, resid)

    monkeypatch.setattr("clew.lens._BLOCK", 3 * config.d_vocab)
    monkeypatch.setattr("clew.lens.unembed", counted)
    pieces = logit_lens(model, tokens)
    assert max(sizes) == 3 and sum(sizes) == tokens.size * config.n_layers
    assert np.array_equal(pieces.top_tokens, whole.top_tokens) and np.array_equal(pieces.ranks, whole.ranks)
    np.testing.assert_allclose(pieces.loss, whole.loss, rtol=1e-12)


def test_ragged_batch_is_one_by_one() -> None:
    config = ZOO["gpt2"]
    model, _ = make(config)
    prompts = [[1, 2, 3, 4, 5], [6, 7]]
    lens = logit_lens(model, prompts)
    for seq, prompt in enumerate(prompts):
        alone = logit_lens(model, [prompt])
        n = len(prompt)
        assert np.array_equal(lens.ranks[:, seq, :n], alone.ranks[:, 0])
        assert np.array_equal(lens.top_tokens[:, seq, :n], alone.top_tokens[:, 0])
        np.testing.assert_allclose(lens.logits[:, seq, :n], alone.logits[:, 0], rtol=1e-9, atol=1e-12)
        assert (lens.top_tokens[:, seq, n:] == -1).all() and np.isnan(lens.entropy[:, seq, n:]).all()
        assert (lens.ranks[:, seq, n:] == -1).all() and (lens.logits[:, seq, n:] == 0).all()


def test_layers_and_targets() -> None:
    config = ZOO["gpt2_inverse_layer"]
    model, _ = make(config)
    tokens = random_tokens(config, 4)
    every = logit_lens(model, tokens)
    some = logit_lens(model, tokens, layers=[-1, 0])
    assert some.layers == (2, 0)
    assert np.array_equal(some.ranks, every.ranks[[2, 0]])
    run = model.run(tokens, capture=["resid_post.1", "resid_post.2"])
    assert logit_lens(model, run).layers == (1, 2)
    assert np.array_equal(logit_lens(model, run, layers=[2]).ranks, every.ranks[2:])

    given = np.full(tokens.shape, 7)
    given[:, 0] = -1
    lens = logit_lens(model, tokens, targets=given)
    assert (lens.ranks[..., 0] == -1).all()
    assert np.array_equal(lens.ranks[..., 1:], (every.logits > every.logits[..., 7:8]).sum(-1)[..., 1:])


def test_what_follows_is_not_guessed() -> None:
    config = ZOO["gpt2"]
    model, _ = make(config)
    embeddings = np.random.default_rng(0).normal(size=(1, 4, config.d_model))
    lens = logit_lens(model, model.run(embeddings=embeddings, capture="resid_post"))
    assert lens.targets is None and lens.tokens is None
    some = logit_lens(model, model.run([1, 2, 3, 4], capture="resid_post", positions=[0, 2]))
    for unknown in (lens, some):
        with pytest.raises(clew.ConfigError, match="ranks: the next tokens are not known"):
            _ = unknown.ranks
        with pytest.raises(clew.ConfigError, match="loss: the next tokens are not known"):
            _ = unknown.loss
    run = model.run([1, 2, 3, 4], capture="resid_post", positions=[0, 2])
    whole = logit_lens(model, [1, 2, 3, 4])
    assert np.array_equal(logit_lens(model, run, targets=[[2, 4]]).ranks, whole.ranks[:, :, [0, 2]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(top_k=0), clew.ConfigError, "top_k = 0: at least 1"),
        (dict(layers=[2]), clew.SiteError, "layer 2: the model has layers 0 to 1"),
        (dict(layers=[]), clew.SiteError, "no layers"),
        (dict(targets=[[1, 2]]), clew.ShapeError, r"targets must be integers \[1, 3\], not int64 \[1, 2\]"),
        (dict(targets=[[1.0, 2.0, 3.0]]), clew.ShapeError, "not float64"),
        (dict(targets=[[1, 2, 31]]), clew.ShapeError, "31 is no token; the vocabulary has ids 0 to 30"),
        (dict(targets=[[1], [2, 3]]), clew.ShapeError, "targets cannot be read as an array: .* inhomogeneous"),
        (dict(targets=np.ma.masked_array([[1, 2, 3]], [[0, 0, 1]])), clew.ShapeError, "targets: .* masked values"),
    ],
)
def test_refused(options: dict[str, Any], error: type[clew.Error], message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    with pytest.raises(error, match=message):
        logit_lens(model, [1, 2, 3], **options)


def test_refused_runs() -> None:
    model, _ = make(ZOO["gpt2"])
    with pytest.raises(clew.SiteError, match="the run holds no resid_post"):
        logit_lens(model, model.run([1, 2], capture="z"))
    with pytest.raises(clew.SiteError, match="did not capture resid_post of layer 1"):
        logit_lens(model, model.run([1, 2], capture="resid_post.0"), layers=[0, 1])
    other, _ = make(ZOO["gpt2"].replace(d_model=12))
    with pytest.raises(clew.ShapeError, match="the run is of a model with d_model = 12; this model has 24"):
        logit_lens(model, other.run([1, 2], capture="resid_post"))
    with pytest.raises(clew.ShapeError, match="must be d_model = 24"):
        unembed(model, np.zeros((2, 23)))
    with pytest.raises(clew.ShapeError, match="real numbers, not complex128"):
        unembed(model, np.zeros((2, 24), complex))
    with pytest.raises(clew.ShapeError, match="residuals cannot be read as an array: .* inhomogeneous"):
        unembed(model, [[1], [2, 3]])
    with pytest.raises(clew.ShapeError, match="residuals: an array with masked values"):
        unembed(model, np.ma.masked_all(24))


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(
    ("changes", "message", "held"),
    [
        (dict(n_layers=5), "the run is of a model with n_layers = 5; this model has 2", "n_layers = 5; .* 2"),
        (dict(d_model=12), "the run is of a model with d_model = 12; this model has 24", "d_model = 12; .* 24"),
        (
            dict(d_vocab=50, d_vocab_out=50),
            "the run is of a model with d_vocab = 50; this model has 31",
            "the run holds token 49, the model has ids 0 to 30",
        ),
    ],
)
def test_runs_of_models_of_other_sizes(changes: dict[str, Any], message: str, held: str, pickled: bool) -> None:
    model, _ = make(ZOO["gpt2"])
    other, _ = make(ZOO["gpt2"].replace(**changes))
    run = other.run([1, other.config.d_vocab - 1, 2], capture="resid_post", logits=None)
    if pickled:  # then only what the run holds tells
        run = pickle.loads(pickle.dumps(run))
        message = held
    with pytest.raises(clew.ShapeError, match=message):
        logit_lens(model, run)


def test_runs_of_models_of_the_same_sizes() -> None:
    model, _ = make(ZOO["gpt2"])
    own = model.run([1, 2, 3], capture="resid_post")
    again = pickle.loads(pickle.dumps(own))
    assert np.array_equal(logit_lens(model, again).logits, logit_lens(model, own).logits)
    for other in (model.folded(), model.with_weights({"unembed.W_U": 2 * model.weights["unembed.W_U"]})):
        assert logit_lens(other, own).logits.shape == (2, 1, 3, 31)


def test_what_is_used_like_a_run_is_no_run() -> None:
    model, _ = make(ZOO["gpt2"])
    gradients = model.gradients([1, 2, 3], metrics.logit_diff([4], [5]), wrt="resid_post")
    tangents = model.jvp([1, 2, 3], edit.add("resid_post.0", np.ones(24)))
    for given, name in ((gradients, "Gradients"), (tangents, "Tangents")):
        with pytest.raises(clew.ConfigError, match=f"run: a Run, such as model.run gives, not {name}"):
            logit_lens(model, given)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_not_ranked(value: float) -> None:
    model, weights = make(ZOO["gpt2"].replace(tie_word_embeddings=False))
    message = "the logits of sequence 0 after layer {} hold NaN or infinity: no token can be ranked"
    W_U = np.full_like(weights["unembed.W_U"], value)
    with pytest.raises(clew.ConfigError, match=message.format(0)):
        logit_lens(model.with_weights({"unembed.W_U": W_U}), [1, 2, 3])
    W_out = weights["blocks.1.mlp.W_out"].copy()
    W_out[0, 0] = value
    broken = model.with_weights({"blocks.1.mlp.W_out": W_out})
    with pytest.raises(clew.ConfigError, match=message.format(1)):
        logit_lens(broken, [1, 2, 3])
    assert (logit_lens(broken, [1, 2, 3], layers=[0]).top_tokens >= 0).all()  # before the layer that breaks


def test_positions_that_a_shorter_sequence_lacks_are_left_out() -> None:
    model, _ = make(ZOO["gpt2"])
    ragged = [[1, 2, 3, 4], [5, 6]]
    for positions, there in (
        ([-3], [[1], [0]]),
        ([2, 0], [[1, 1], [0, 1]]),
        ([-1, -2, -3, -4], [[1] * 4, [1, 1, 0, 0]]),
    ):
        run = model.run(ragged, capture="resid_post", positions=positions)
        lens = logit_lens(model, run)
        missing = ~np.array(there, bool)
        assert (np.isnan(lens.entropy) == missing).all() and ((lens.top_tokens[..., 0] < 0) == missing).all()
        whole = logit_lens(model, ragged)
        for seq, column in zip(*np.nonzero(~missing), strict=True):
            pos = positions[column] % len(ragged[seq])
            np.testing.assert_allclose(lens.entropy[:, seq, column], whole.entropy[:, seq, pos], rtol=1e-12)
    assert lens.tokens is None  # in another order than the prompt's: as many positions are not yet all of them
    run = model.run(ragged, capture="resid_post", positions=[-3])
    alone = logit_lens(model, model.run(ragged[:1], capture="resid_post", positions=[-3]))
    assert repr(logit_lens(model, run)).splitlines()[1:] == repr(alone).splitlines()[1:]


def test_repr_tells_each_layer() -> None:
    model, _ = make(ZOO["gpt2"])
    lens = logit_lens(model, [1, 2, 3])
    lines = repr(lens).splitlines()
    assert isinstance(lens, LogitLens) and len(lines) == 4 and lines[0] == "LogitLens of 2 layers, 1 × 3 positions"
    assert f"{np.nanmean(lens.loss[1]):.3f}" in lines[3]
    assert "loss" not in repr(logit_lens(model, model.run(embeddings=np.ones((2, 24)), capture="resid_post")))


def test_a_model_that_writes_vectors_has_no_lens() -> None:
    model, _ = make(vector_zoo()["tokens_to_vectors"])
    with pytest.raises(clew.ConfigError, match="writes vectors, d_out = 4"):
        logit_lens(model, [1, 2, 3])


def test_the_lens_as_a_table() -> None:
    model = clew.load("shakespeare")
    lens = logit_lens(model, ["God save you, gentle", "Good my"], layers=[1, 3])
    head, rule, *rows = lens.table(batch=1).splitlines()
    assert head.split() == ["token", "follows", "layer", "1", "layer", "3"] and set(rule) == {"─"}
    assert len(rows) == 3 and rows[-1].startswith("' my'") and " ?  " in rows[-1]
    assert repr(model.to_str_tokens([lens.top_tokens[1, 1, 2, 0]])[0]) in rows[-1]
    assert lens.table([2], batch=1).splitlines()[2:] == rows[2:] == lens.table(slice(2, None), batch=1).splitlines()[2:]
    bare = logit_lens(model, model.run(embeddings=np.ones((2, 128)), capture="resid_post"))
    assert bare.table().splitlines()[3].startswith("at 1        ?  ")
    assert lens.table(2, batch=1) == lens.table([2], batch=1) == lens.table([2, -1], batch=1)  # -1: it has none there


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(positions=[99]), clew.ShapeError, "positions: index 99 .*; the lens has positions 0 to 2"),
        (dict(positions=99), clew.ShapeError, "positions: index 99 .*; the lens has positions 0 to 2"),
        (
            dict(positions=[1.5]),
            clew.ShapeError,
            r"positions: a slice, a list .*, not float64 \[1\]",
        ),
        (dict(positions="a"), clew.ShapeError, r"positions: a slice, a list .*, not <U1 \[\]"),
        (
            dict(positions=[[0, 1]]),
            clew.ShapeError,
            r"positions: a slice, a list .*, not int64 \[1, 2\]",
        ),
        (dict(positions=[[0], [1, 2]]), clew.ShapeError, "positions cannot be read as an array"),
        (dict(positions=slice("a")), clew.ShapeError, "positions = slice.*: slice indices must be integers"),
        (dict(positions=slice(0, 2, 0)), clew.ShapeError, "positions = slice.*: slice step cannot be zero"),
        (dict(batch=2), clew.ShapeError, "batch = 2: the lens has 2 sequences"),
        *(
            (dict(batch=b), clew.ConfigError, "batch = .*: expected a whole number")
            for b in ("a", None, [0], 1.0, True)
        ),
    ],
    ids=str,
)
def test_tables_that_there_are_not(options: dict[str, Any], error: type[clew.Error], message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    lens = logit_lens(model, [[1, 2, 3], [4, 5]])
    with pytest.raises(error, match=message):
        lens.table(**options)
