"""Bad input: an error of the right class whose message names what was wrong; the model works as before."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import clew
import numpy as np
import pytest
from clew import (
    ConfigError,
    LoadError,
    ShapeError,
    SiteError,
    TokenError,
    UnsupportedModelError,
    _core,
    edit,
    lens,
    mazes,
    metrics,
)
from clew.attribution import direct_logit_attribution
from clew.loaders.checkpoint import Checkpoint
from clew.train import evaluate
from support import make, resident
from zoo import random_tokens, random_weights, zoo

ZOO = zoo()


@pytest.fixture(scope="module")
def gpt2() -> clew.Model:
    """d_model 24, vocabulary 31, 24 learned positions, 2 layers."""
    return make(ZOO["gpt2"])[0]


@pytest.fixture(scope="module")
def gptj() -> clew.Model:
    return make(ZOO["gptj"])[0]


@pytest.fixture(autouse=True)
def still_usable(gpt2: clew.Model) -> Iterator[None]:
    """Whatever was refused, the next run gives the same bits."""
    before = gpt2.run([1, 2, 3]).logits
    yield
    assert np.array_equal(gpt2.run([1, 2, 3]).logits, before)


def test_every_error_is_one_of_ours() -> None:
    for kind, builtin in [
        (ShapeError, ValueError), (SiteError, KeyError), (LoadError, OSError), (TokenError, ValueError),
        (UnsupportedModelError, NotImplementedError), (ConfigError, ValueError),
    ]:  # fmt: skip
        assert issubclass(kind, clew.Error) and issubclass(kind, builtin)
        assert str(kind("a 'sentence'")) == "a 'sentence'"


def test_every_error_survives_copies() -> None:
    """A process pool sends exceptions to its parent; one that cannot be made again leaves it waiting for ever."""
    for kind in clew.Error.__subclasses__():
        error = kind("a sentence", 3) if kind is clew.TrainingError else kind("a sentence")
        error.add_note("and a note")
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind and str(again) == "a sentence" and again.__dict__ == error.__dict__


# ---- Sites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ("resid_pots", "'resid_pots' matches no capture site; nearest: resid_post"),
        ("blocks.1.hook_resid_pots", "nearest: blocks.1.hook_resid_post"),
        ("z." + "9" * 5000, "matches no capture site; nearest: z"),
        ("blocks." + "9" * 5000 + ".attn.hook_z", "matches no capture site; model.sites"),
        (3, "capture = 3: expected a name of a site, a list of them, or None"),
        (False, "capture = False: expected a name"),
        ("xyzzy", "'xyzzy' matches no capture site; model.sites"),
        ("", "'' matches no capture site"),
        ("blocks.*.hook_zz", "matches no capture site"),
        ("blocks.2.hook_resid_post", "blocks.2.hook_resid_post: the model has layers 0 to 1"),
        ("z.2", "z.2: the model has layers 0 to 1"),
        ("z.-3", "z.-3: the model has layers 0 to 1"),
        (("z", 2), "the model has layers 0 to 1"),
        ([("z", 0.5)], r"\('z', 0.5\) is no name of a capture site"),
        ([("z", None)], "is no name of a capture site"),
        ([3], "3 is no name of a capture site"),
        ([None], "None is no name"),
        (["z", "nonsense"], "'nonsense' matches no capture site"),
        (["z", "blocks.7.*"], "'blocks.7.\\*' matches no capture site"),
        ("hook_embed.0", "matches no capture site"),
    ],
)
def test_unknown_sites(gpt2: clew.Model, capture: Any, message: str) -> None:
    for ask in (lambda: gpt2.run([1, 2, 3], capture=capture), lambda: gpt2.plan(1, 3, capture)):
        if isinstance(capture, tuple):
            with pytest.raises(SiteError):  # a pair alone is a list of two
                ask()
            with pytest.raises(SiteError, match=message):
                gpt2.run([1, 2, 3], capture=[capture])
        else:
            with pytest.raises(SiteError, match=message):
                ask()


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("gptj", "resid_mid"), ("gptj", "blocks.0.hook_resid_mid"), ("gptj", "ln2.out"), ("gptj", "hook_pos_embed"),
        ("gpt2", "rot_q"), ("gpt2", "rot_k.1"), ("gpt2", "q_normed"), ("gpt2", "blocks.0.ln1_post.hook_scale"),
        ("gpt2", "pre_linear"), ("attn_only", "mlp_out"), ("attn_only", "resid_mid"), ("no_norm", "ln1.scale"),
        ("no_final_norm", "ln_final.hook_out"), ("llama", "pos_embed"),
    ],
)  # fmt: skip
def test_sites_that_an_architecture_does_not_have(name: str, site: str) -> None:
    model, _ = make(ZOO[name])
    message = f"'{re.escape(site)}': this model has no such site .its architecture does not compute it"
    with pytest.raises(SiteError, match=message):
        model.run([1, 2], capture=site)
    assert site not in model.sites()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(capture="blocks.0.hook_resid_post", start_at_layer=1), "not computed: the run covers blocks 1 to 1"),
        (dict(capture="z.0", start_at_layer=1), "not computed: the run covers blocks 1 to 1"),
        (dict(capture="hook_embed", start_at_layer=0), "starts behind the embedding"),
        (dict(capture="hook_pos_embed", start_at_layer=1), "starts behind the embedding"),
        (dict(capture="hook_*", start_at_layer=1), r"'hook_\*' matches nothing that a run of blocks 1 to 1 computes"),
        (dict(capture="blocks.1.hook_resid_post", stop_after_layer=0), "not computed: the run covers blocks 0 to 0"),
        (dict(capture="ln_final.hook_out", stop_after_layer=0), "not computed: the run covers blocks 0 to 0"),
        (dict(capture="ln_final.*", stop_after_layer=1), r"'ln_final.\*' matches nothing that a run of blocks 0 to 1"),
        (dict(capture="logits", stop_after_layer=0), "not computed"),
        (dict(capture=["z", "blocks.0.*"], start_at_layer=1), r"blocks.0"),
    ],
)
def test_sites_that_a_part_of_the_model_does_not_compute(gpt2: clew.Model, arguments: Any, message: str) -> None:
    x = np.zeros((3, 24))
    with pytest.raises(SiteError, match=message):
        if "start_at_layer" in arguments:
            gpt2.run(embeddings=x, **arguments)
        else:
            gpt2.run([1, 2, 3], **arguments)


# ---- Tokens ---------------------------------------------------------------------------------------------------------

R = "the vocabulary has ids 0 to 30"


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([1, 31], TokenError, f"token 31 at position 1 of prompt 0: {R}"),
        ([[1, 2], [3, 99]], TokenError, f"token 99 at position 1 of prompt 1: {R}"),
        ([[1, 2, 3], [4], [5, -1]], TokenError, f"token -1 at position 1 of prompt 2: {R}"),
        ([2**40], TokenError, f"token {2**40} at position 0"),
        ([2**63], TokenError, f"token {2**63} at position 0"),
        ([-(2**31) - 1], TokenError, f"token {-(2**31) - 1} at position 0"),
        ([2**32 + 1], TokenError, f"token {2**32 + 1} at position 0"),
        ([2**64], TokenError, "token 18446744073709551616 is outside the vocabulary"),
        (list(range(25)), TokenError, "prompt 0 has 25 tokens, but the model has 24 learned positions"),
        ([[1], list(range(26))], TokenError, "prompt 1 has 26 tokens, but the model has 24"),
        ([], TokenError, "the prompt is empty"),
        ([[]], TokenError, "prompt 0 is empty"),
        ([[1], []], TokenError, "prompt 1 is empty"),
        (np.zeros((0, 3), int), TokenError, r"empty batch of shape \[0, 3\]"),
        (np.zeros((3, 0), int), TokenError, r"empty batch of shape \[3, 0\]"),
        (None, TokenError, "nothing to run: give tokens or embeddings"),
        (np.broadcast_to(np.int32(1), (2**33, 1)), TokenError, f"{2**33} tokens: one run takes at most {2**31 - 1}"),
        ([np.broadcast_to(np.int32(1), (2**33,))], TokenError, f"{2**33} tokens: one run takes at most"),
        (np.ma.array([1, 2], mask=[False, True]), ShapeError, "the prompt: an array with masked values"),
        ([1.0, 2.0], ShapeError, r"token ids must be integers, not float64 \[2\]"),
        (np.ones((2, 2), np.float32), ShapeError, r"must be integers, not float32 \[2, 2\]"),
        ([[1, 2], [3.5]], ShapeError, "prompt 1: token ids must be integers, not float64"),
        ([True, False], ShapeError, "must be integers, not bool"),
        (5, ShapeError, r"must be \[pos\] or \[batch, pos\], not \[\]"),
        (np.ones((1, 2, 3), int), ShapeError, r"not \[1, 2, 3\]"),
        ([[1, 2], 3], ShapeError, "cannot be read as an array"),
        ([[[1, 2], [3]], [[1]]], ShapeError, "cannot be read as an array"),
        ([[1, None]], ShapeError, "must be integers, not object"),
        (np.array(["a"]), ShapeError, "must be integers, not <U1"),
        ({1: 2}, ShapeError, r"token ids \(integers\) or a list of either, not dict"),
        ("some text", TokenError, "has no tokenizer: give token ids instead"),
        (["text", "texts"], TokenError, "has no tokenizer"),
        (b"text", ShapeError, "bytes"),
        (["text", [1, 2]], ShapeError, r"a list of texts holds list: \[1, 2\]"),
    ],
    ids=repr,
)
def test_bad_tokens(gpt2: clew.Model, tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpt2.run(tokens)
    with pytest.raises(error, match=message):
        gpt2.loss(tokens)


def test_loss_needs_something_to_predict(gpt2: clew.Model) -> None:
    for tokens in ([1], [[1], [2]]):
        with pytest.raises(TokenError, match="two tokens or more"):
            gpt2.loss(tokens)
    with pytest.raises(ConfigError, match="reduce = 'sum': 'none' or 'mean'"):
        gpt2.loss([1, 2], reduce="sum")  # type: ignore[arg-type]


def test_text_methods_need_a_tokenizer(gpt2: clew.Model) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: gpt2.to_tokens("a"), lambda: gpt2.to_str_tokens("a"), lambda: gpt2.to_single_token("a"),
        lambda: gpt2.to_str_tokens([1]),
    ]  # fmt: skip
    for ask in asks:
        with pytest.raises(TokenError, match="has no tokenizer"):
            ask()
    assert gpt2.tokenizer is None


# ---- Embeddings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (np.zeros((2, 3, 23)), ShapeError, r"embeddings of prompt 0 have shape \[3, 23\], expected \[pos, 24\]"),
        ([np.zeros((3, 24)), np.zeros((3, 25))], ShapeError, r"prompt 1 have shape \[3, 25\], expected \[pos, 24\]"),
        (np.zeros(24), ShapeError, r"embeddings \[24\]: expected \[batch, pos, 24\] or \[pos, 24\]"),
        (np.zeros((1, 1, 3, 24)), ShapeError, r"embeddings \[1, 1, 3, 24\]"),
        (np.zeros((3, 24), complex), ShapeError, "real numbers, not complex128"),
        (np.zeros((3, 24), bool), ShapeError, "real numbers, not bool"),
        (np.full((3, 24), "a"), ShapeError, "real numbers, not <U1"),
        (np.zeros((0, 24)), TokenError, "prompt 0 is empty"),
        (np.zeros((2, 0, 24)), TokenError, "prompt 0 is empty"),
        (np.zeros((0, 3, 24)), TokenError, "empty batch"),
        ([[1.0], [1.0, 2.0]], ShapeError, "cannot be read as an array"),
        (np.zeros((25, 24)), TokenError, "25 tokens, but the model has 24 learned positions"),
        (np.broadcast_to(0.0, (2**33, 1, 24)), TokenError, f"{2**33} tokens: one run takes at most"),
    ],
    ids=lambda x: str(np.shape(x)) if isinstance(x, np.ndarray) else None,
)
def test_bad_embeddings(gpt2: clew.Model, embeddings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpt2.run(embeddings=embeddings)


def test_tokens_and_embeddings_exclude_each_other(gpt2: clew.Model) -> None:
    with pytest.raises(ShapeError, match="tokens or embeddings, not both"):
        gpt2.run([1, 2], embeddings=np.zeros((2, 24)))
    with pytest.raises(ShapeError, match="start_at_layer: give the residual stream .* as embeddings="):
        gpt2.run([1, 2], start_at_layer=1)


# ---- Layers, positions, logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(stop_after_layer=2), ConfigError, "stop_after_layer = 2: the model has layers 0 to 1"),
        (dict(stop_after_layer=-3), ConfigError, "stop_after_layer = -3: the model has layers 0 to 1"),
        (dict(stop_after_layer=0.5), ConfigError, "stop_after_layer = 0.5: expected a whole number"),
        (dict(stop_after_layer="0"), ConfigError, "stop_after_layer = '0'"),
        (dict(stop_after_layer=0, logits="last"), ConfigError, 'logits = "last": a run that stops .* has none'),
        (dict(logits="foo"), ConfigError, 'logits = \'foo\': "all", "last" or None'),
        (dict(logits=False), ConfigError, "logits = False"),
        (dict(logits=["all"]), ConfigError, r"logits = \['all'\]"),
        (dict(logits=0), ConfigError, "logits = 0"),
        (dict(positions=[3]), ShapeError, "positions: 3 of a prompt of 3 tokens"),
        (dict(positions=[0, -4]), ShapeError, "positions: -4 of a prompt of 3 tokens"),
        (dict(positions=[2**40]), ShapeError, f"positions: {2**40}"),
        (dict(positions=[0.5]), ShapeError, r"positions must be a list of integers, not float64 \[1\]"),
        (dict(positions=[]), ShapeError, "selects nothing"),
        (dict(positions=np.zeros(0, int)), ShapeError, "selects nothing"),
        (dict(positions=[[0, 1]]), ShapeError, r"not int64 \[1, 2\]"),
        (dict(positions=[True, False]), ShapeError, r"positions: a mask \[2\] for 3 positions"),
        (dict(positions=[[0], [0, 1]]), ShapeError, "positions cannot be read as an array"),
        (dict(positions=[0], capture=None), ConfigError, "positions choose what is kept of captured sites"),
        (dict(positions=[0], capture="logits"), ConfigError, "but none is captured"),
    ],
)
def test_bad_requests(gpt2: clew.Model, arguments: Any, error: type[Exception], message: str) -> None:
    arguments = {"capture": "z.0", **arguments}
    with pytest.raises(error, match=message):
        gpt2.run([1, 2, 3], **arguments)
    with pytest.raises(error, match=message):
        gpt2.plan(1, 3, **arguments)


def test_first_and_last_layer_must_be_in_order(gpt2: clew.Model) -> None:
    x = np.zeros((3, 24))
    with pytest.raises(ConfigError, match="start_at_layer = 1 lies behind stop_after_layer = 0"):
        gpt2.run(embeddings=x, start_at_layer=1, stop_after_layer=0, capture="z")
    for layer in (2, -3):
        with pytest.raises(ConfigError, match=f"start_at_layer = {layer}: the model has layers 0 to 1"):
            gpt2.run(embeddings=x, start_at_layer=layer)
    with pytest.raises(ConfigError, match="start_at_layer = 1.0: expected a whole number"):
        gpt2.run(embeddings=x, start_at_layer=1.0)  # type: ignore[arg-type]
    empty, _ = make(ZOO["no_layers"])
    with pytest.raises(ConfigError, match="start_at_layer = 0: the model has no layers"):
        empty.run(embeddings=np.zeros((3, 10)), start_at_layer=0)
    with pytest.raises(SiteError, match="'resid_post': this model has no layers"):
        empty.run([1, 2], capture="resid_post")


def test_run_takes_no_unknown_arguments(gpt2: clew.Model) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sites'"):
        gpt2.run([1, 2], sites="z")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional argument"):
        gpt2.run([1, 2], "z")  # type: ignore[misc]


# ---- Models ---------------------------------------------------------------------------------------------------------


def build(config: clew.ModelConfig, weights: dict[str, Any], dtype: Any = np.float64) -> clew.Model:
    return clew.Model(Checkpoint(config, weights, np.dtype(dtype)))


def test_all_missing_weights_are_listed() -> None:
    weights = random_weights(ZOO["gpt2"], 1)
    gone = ["blocks.0.attn.W_Q", "blocks.1.mlp.W_out", "blocks.1.ln2.w", "ln_final.w", "pos_embed.W_pos"]
    for name in gone:
        del weights[name]
    with pytest.raises(LoadError) as caught:
        build(ZOO["gpt2"], weights)
    assert "weights that are missing: " in str(caught.value)
    for name in gone:
        assert name in str(caught.value)
    with pytest.raises(LoadError, match="attn.q_norm.w"):
        build(ZOO["qwen3"], {k: v for k, v in random_weights(ZOO["qwen3"], 1).items() if "q_norm" not in k})


def test_absent_biases_are_zero() -> None:
    weights = random_weights(ZOO["gpt2"], 1)
    zeroed = {k: v * 0 if k.rsplit(".", 1)[-1].startswith("b") else v for k, v in weights.items()}
    without = {k: v for k, v in weights.items() if not k.rsplit(".", 1)[-1].startswith("b")}
    tokens = random_tokens(ZOO["gpt2"], 1)
    assert np.array_equal(build(ZOO["gpt2"], zeroed).run(tokens).logits, build(ZOO["gpt2"], without).run(tokens).logits)


def test_all_strange_names_are_listed() -> None:
    weights = random_weights(ZOO["gpt2"], 1)
    strange = ["blocks.2.attn.W_Q", "blocks.0.attn.W_R", "lm_head.weight"]
    weights |= dict.fromkeys(strange, np.zeros(3))
    with pytest.raises(LoadError, match="names that this model does not have: " + ", ".join(map(re.escape, strange))):
        build(ZOO["gpt2"], weights)


def test_weights_without_a_place_are_refused() -> None:
    """A weight that the configuration would ignore is an error, not silence."""
    for name, extra, shape in [
        ("gpt2", "blocks.0.attn.q_norm.w", (8,)), ("gpt2", "blocks.0.mlp.W_gate", (24, 96)),
        ("llama", "pos_embed.W_pos", (24, 24)), ("gptj", "blocks.1.ln2.w", (24,)),
        ("attn_only", "blocks.0.mlp.b_in", (80,)), ("no_final_norm", "ln_final.b", (16,)),
        ("gpt2", "blocks.0.ln1_post.w", (24,)),
    ]:  # fmt: skip
        with pytest.raises(ShapeError, match=f"{re.escape(extra)}: this configuration has no place for it"):
            build(ZOO[name], random_weights(ZOO[name], 1) | {extra: np.zeros(shape)})
    with pytest.raises(LoadError, match="norms of type LNPre do not have: blocks.0.ln1.w, ln_final.b"):
        build(
            ZOO["ln_pre"], random_weights(ZOO["ln_pre"], 1) | {"blocks.0.ln1.w": np.ones(16), "ln_final.b": np.ones(16)}
        )


def test_all_wrong_shapes_are_listed_with_both() -> None:
    weights = random_weights(ZOO["gpt2"], 1)
    weights["blocks.0.attn.W_Q"] = weights["blocks.0.attn.W_Q"].transpose(0, 2, 1)
    weights["blocks.1.mlp.b_in"] = np.zeros(95)
    weights["embed.W_E"] = np.zeros((31, 25))
    weights["ln_final.w"] = np.zeros((24, 1))
    with pytest.raises(ShapeError) as caught:
        build(ZOO["gpt2"], weights)
    for line in [
        "blocks.0.attn.W_Q has shape [3, 8, 24], expected [3, 24, 8]",
        "blocks.1.mlp.b_in has shape [95], expected [96]",
        "embed.W_E has shape [31, 25], expected [31, 24]",
        "ln_final.w has shape [24, 1], expected [24]",
    ]:
        assert line in str(caught.value)


@pytest.mark.parametrize("shape", [(), (24, 1, 1, 1), (0,)])
def test_weights_of_no_usable_rank(shape: tuple[int, ...]) -> None:
    weights = random_weights(ZOO["gpt2"], 1) | {"ln_final.w": np.zeros(shape)}
    with pytest.raises((ShapeError, ValueError), match="ln_final.w"):
        build(ZOO["gpt2"], weights)


def test_nan_and_infinite_weights_are_reported() -> None:
    for dtype in (np.float32, np.float64):
        weights = random_weights(ZOO["gpt2"], 1, dtype)
        assert build(ZOO["gpt2"], weights, dtype).check() == []
        weights["blocks.1.attn.W_O"][2, 3, 5] = np.nan
        weights["blocks.1.attn.W_O"][2, 7, 5] = np.inf
        weights["blocks.0.mlp.b_in"][95] = -np.inf
        second, first = build(ZOO["gpt2"], weights, dtype).check()  # in the order of the weights
        assert (first.name, first.index, first.value) == ("blocks.0.mlp.b_in", (95,), -np.inf)
        assert (second.name, second.index) == ("blocks.1.attn.W_O", (2, 3, 5)) and np.isnan(second.value)


def test_nan_stays_in_its_own_sequence() -> None:
    model, _ = make(ZOO["llama"])
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((n, 24)) for n in (9, 5, 9)]
    clean = model.run(embeddings=x, capture="resid_post")
    x[1][2, 3] = np.nan
    dirty = model.run(embeddings=x, capture="resid_post")
    for name in clean:
        assert np.array_equal(dirty[name][::2], clean[name][::2])
        assert np.isnan(dirty[name][1, 2:5]).any(axis=-1).all()
        assert (dirty[name][1, 5:] == 0).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(d_head=0), ConfigError, "d_head = 0"),
        (dict(n_key_value_heads=0), ConfigError, "n_key_value_heads = 0"),
        (dict(n_key_value_heads=2), ConfigError, "n_heads = 3 is no multiple of n_key_value_heads = 2"),
        (dict(n_layers=1.5), ConfigError, "n_layers = 1.5"),
        (dict(d_mlp=-4), ConfigError, "d_mlp = -4"),
        (dict(d_mlp=0), ConfigError, "d_mlp = 0, must be at least 1"),
        (dict(attn_scale=0.0), ConfigError, "attn_scale = 0.0, must be positive"),
        (dict(eps=-1.0), ConfigError, "eps = -1.0"),
        (dict(eps=float("nan")), ConfigError, "eps = nan"),
        (dict(attn_scores_soft_cap=-1.0), ConfigError, "attn_scores_soft_cap = -1.0"),
        (dict(pos_offset=-2), ConfigError, "pos_offset = -2"),
        (dict(window_size=-3), ConfigError, "window_size = -3"),
        (dict(attention_kind="linear", linear_attn_n=-3), ConfigError, "linear_attn_n = -3"),
        (dict(shared_norm=True), ConfigError, "shared_norm needs parallel"),
        (dict(attention_dir="bidirectional"), UnsupportedModelError, "softmax attention that is not causal"),
        (dict(exclude_self=True), UnsupportedModelError, "excludes itself"),
        (dict(attention_kind="linear", exclude_last=True), UnsupportedModelError, "exclude_last without linear"),
        (
            dict(parallel_attn_mlp=True, use_normalization_before_and_after=True),
            UnsupportedModelError,
            "parallel blocks with post-norms",
        ),
    ],
)
def test_bad_configurations(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config = ZOO["gpt2"].replace(**changes)
        clew.Model(Checkpoint(config, random_weights(config, 1), np.dtype(np.float64)))


def test_models_compute_in_two_precisions_only() -> None:
    for dtype in ("float16", "int32"):
        with pytest.raises(ShapeError, match=f"dtype {dtype}: a model computes in float32 or float64"):
            clew.Model.from_config(ZOO["gpt2"], dtype=dtype)
        with pytest.raises(ShapeError, match=f"dtype {dtype}"):
            clew.load("nowhere", dtype=dtype)


def test_unknown_weights_and_attributes(gpt2: clew.Model) -> None:
    with pytest.raises(KeyError, match="'blocks.0.attn.W_q' is no weight of this model; nearest: blocks.0.attn.W_"):
        gpt2.weights["blocks.0.attn.W_q"]
    with pytest.raises(AttributeError, match="no attribute 'W_X'"):
        gpt2.W_X  # noqa: B018
    for head in (3, -4):
        with pytest.raises(ConfigError, match=f"head {head}: the model has heads 0 to 2"):
            gpt2.OV(0, head)
    with pytest.raises(SiteError, match="layers 0 to 1"):
        gpt2.QK(2, 0)


# ---- Memory ---------------------------------------------------------------------------------------------------------


def test_a_capture_that_does_not_fit_is_refused_before_memory_is_touched() -> None:
    config = clew.ModelConfig(
        n_layers=4, d_model=16, n_heads=16, n_ctx=8, d_vocab=5, positional_embedding_type="rotary", d_head=2, d_mlp=1
    )
    model = clew.Model.from_config(config)
    n = 100_000
    plan = model.plan(1, n, capture=["resid_post", "pattern"])  # a plan only counts
    pattern = 4 * 16 * n * n * 4
    assert plan.keep_bytes == pattern + 4 * n * 16 * 4 + n * 5 * 4
    before = resident()
    with pytest.raises(MemoryError, match=rf"keeps {plan.keep_bytes} bytes and needs \d+ more .* {pattern} could not"):
        model.run(np.zeros(n, int), capture=["resid_post", "pattern"])
    assert resident() - before < 64 << 20
    assert model.run([1, 2, 3]).logits.shape == (1, 3, 5)


def test_scratch_that_does_not_fit_is_refused() -> None:
    """One block of queries against every key: what a thread needs for itself grows with the prompt."""
    config = clew.ModelConfig(n_layers=1, d_model=1, n_heads=1, n_ctx=8, d_vocab=1, attn_only=True,
                              positional_embedding_type="none")  # fmt: skip
    model = clew.Model.from_config(config, dtype="float64")
    clew.set_num_threads(256)
    plan = model.plan(1, 2_000_000, capture="pattern", positions=[0], logits=None)
    assert plan.keep_bytes == 2_000_000 * 8
    assert plan.scratch_bytes >= 256 * 64 * 2_000_000 * 8
    with pytest.raises(MemoryError, match=r"needs \d+ bytes of scratch memory"):
        model.run(np.zeros(2_000_000, int), capture="pattern", positions=[0], logits=None)


@pytest.mark.parametrize(("batch", "pos"), [(2**16, 2**15 - 1), (1, 2**22)])
def test_plans_of_absurd_sizes(batch: int, pos: int) -> None:
    config = ZOO["llama"]
    model, _ = make(config)
    if batch * pos > 2**24:
        with pytest.raises(TokenError, match="one run takes at most 2147483647"):
            model.plan(2 * batch, 2 * pos)
    else:
        plan = model.plan(batch, pos, capture="*")
        assert plan.keep_bytes > pos**2
        with pytest.raises(MemoryError, match="could not be had"):
            plan._core.run(np.zeros(batch * pos, np.int32), None)


def test_bytes_that_cannot_be_counted() -> None:
    config = clew.ModelConfig(n_layers=3, d_model=1, n_heads=2**20, d_head=1, n_ctx=8, d_vocab=1, attn_only=True,
                              positional_embedding_type="none")  # fmt: skip
    model = clew.Model.from_config(config)
    with pytest.raises(MemoryError, match="capturing attn.hook_pattern needs more bytes than can be addressed"):
        model.plan(1, 2**21, capture="pattern")


# ---- Threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 257])
def test_numbers_of_threads_out_of_range(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n}.*1 to 256"):
        clew.set_num_threads(n)
    with pytest.raises(ConfigError, match=r"set_num_threads\(1.5\)"):
        clew.set_num_threads(1.5)  # type: ignore[arg-type]


# ---- The extension itself -------------------------------------------------------------------------------------------


def test_the_extension_checks_what_it_is_given(gpt2: clew.Model) -> None:
    core = gpt2._core
    lengths, none = np.array([3], np.int32), np.zeros((0, 2), np.int32)
    plan = _core.Plan(core, lengths, none, None, -1, -1, False, 2)
    ok = np.array([1, 2, 3], np.int32)
    for arguments, error in [
        ((np.array([1, 2], np.int32), None), ShapeError), ((ok.astype(np.int64), None), TypeError),
        ((np.array([1, 2, 31], np.int32), None), TokenError), ((None, None), TokenError), ((ok,), TypeError),
        ((ok, np.zeros(5)), ShapeError), ((ok[::-1], None), TypeError), (([1, 2, 3], None), TypeError),
    ]:  # fmt: skip
        with pytest.raises(error):
            plan.run(*arguments)
    for arguments, error in [
        ((core, lengths, none, None, -1, -1, False, 9), ValueError),
        ((3, lengths, none, None, -1, -1, False, 2), TypeError),
        ((core, lengths, none[:, :1].copy(), None, -1, -1, False, 2), ValueError),
        ((core, np.zeros(0, np.int32), none, None, -1, -1, False, 2), TokenError),
        ((core, np.array([-3], np.int32), none, None, -1, -1, False, 2), TokenError),
        ((core, lengths, np.array([[99, 0]], np.int32), None, -1, -1, False, 2), SiteError),
        ((core, lengths, np.array([[-1, 0]], np.int32), None, -1, -1, False, 2), SiteError),
        ((core, lengths, np.array([[5, 7]], np.int32), None, -1, -1, False, 2), SiteError),
        ((core, lengths, none, np.array([3], np.int32), -1, -1, False, 2), ShapeError),
        ((core, lengths, none, None, 9, -1, False, 2), ConfigError),
        ((core, lengths, none, None, -1, 0, False, 2), ConfigError),
    ]:  # fmt: skip
        with pytest.raises(error):
            _core.Plan(*arguments)
    with pytest.raises(ValueError, match="past, past_seq and last must be as long as lengths"):
        _core.Plan(core, lengths, none, None, -1, -1, False, 1, last=ok)
    with pytest.raises(TypeError):
        _core.first_bad(np.zeros(3, int))
    with pytest.raises(TypeError):
        _core.first_bad("weights")
    with pytest.raises(ValueError, match="length -1"):
        _core.empty((-1,), "float32")
    for dtype in (object, ">f4", "S5", "U", [("a", "f4")]):
        with pytest.raises(TypeError, match="number or bool in native byte order"):
            _core.empty((2,), dtype)
    for shape in ((2**62, 2**62), (10**30,)):
        with pytest.raises(MemoryError):
            _core.empty(shape, "float32")
    assert _core.empty((np.int64(2),), "float32").shape == (2,)
    for threads in (0, 257, 10**30):
        with pytest.raises(ValueError, match=f"set_num_threads.{threads}.: 1 to 256"):
            clew.set_num_threads(threads)
    with pytest.raises(MemoryError, match=str(2**46 * 8)):
        _core.empty((2**46,), "float64")
    with pytest.raises(FileNotFoundError):
        _core.map_file("/nowhere/at/all")
    assert list(plan.run(ok, None)[0][2].shape) == [1, 3, 31]


def test_the_extension_checks_walks_in_mazes() -> None:
    batch, tok = mazes.generate(2, 3).batch, mazes.Tokenizer(7)

    def guess(**given: Any) -> Any:
        how: dict[str, Any] = {"batch": batch, "specials": tok._specials, "cells": tok.cell_ids}
        how |= {"mazes": [0, 1], "said": [6, 11, 6], "lengths": [2, 1], "most": [4, 0]} | given
        return _core.maze_guess(*(np.array(v, np.int32) if isinstance(v, list) else v for v in how.values()))

    tokens, counts = guess()
    assert len(tokens) == 4 and counts.tolist()[1] == 0
    for given, words in [
        ({"mazes": [0, 2]}, "walk 1: maze 2 of 2"), ({"mazes": [-1, 0]}, "walk 0: maze -1 of 2"),
        ({"most": [4, -1]}, "walk 1: .* -1 to guess"), ({"lengths": [4, -1]}, "walk 1: .* -1 tokens"),
        ({"lengths": [2, 2]}, "3 tokens in all, lengths say 4"), ({"lengths": [3]}, "int32"),
        ({"said": np.zeros(3)}, "int32"), ({"specials": np.zeros(9, np.int32)}, "specials must be"),
        ({"cells": mazes.Tokenizer(2).cell_ids}, "walk 0: a maze of 3 rows, the vocabulary has 2"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            guess(**given)
    with pytest.raises(TypeError, match="a tuple of six arrays"):
        guess(batch=None)


# ---- What Python does to objects ------------------------------------------------------------------------------------


def test_copies_pickles_and_comparisons(gpt2: clew.Model) -> None:
    assert copy.copy(gpt2) is gpt2 and copy.deepcopy(gpt2) is gpt2
    with pytest.raises(TypeError, match="a Model cannot be pickled: save"):
        pickle.dumps(clew.load("stories260K"))
    run = gpt2.run([1, 2], capture="z")
    assert run == run and run != gpt2.run([1, 2], capture="z") and gpt2.weights == gpt2.weights
    assert len({run, gpt2.weights}) == 2
    assert np.array_equal(pickle.loads(pickle.dumps(run))["z", 1], run["z", 1])
    for again in (copy.copy(run), copy.deepcopy(run)):
        assert again.model is gpt2 and np.array_equal(again.stack_head_results(), run.stack_head_results())


def test_models_are_made_of_checkpoints(gpt2: clew.Model) -> None:
    for wrong in (None, gpt2.config):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}: see clew.load and Model.from_config"):
            clew.Model(wrong)  # type: ignore[arg-type]


def test_factored_matrices_need_whole_numbers(gpt2: clew.Model) -> None:
    for ask in (gpt2.QK, gpt2.OV):
        with pytest.raises(ConfigError, match=r"head = 0.5: expected a whole number"):
            ask(0, 0.5)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"layer = '0': expected a whole number"):
            ask("0", 0)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"layer = True: expected a whole number"):
            ask(True, 0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m: m.run([1, 2], stop_after_layer=True),
        lambda m: m.run(embeddings=np.zeros((2, 24)), start_at_layer=True),
        lambda m: m.run([1, 2], capture=("z", True)),
        lambda m: m.run([1, 2], capture="z")["z", True],
        lambda m: m.run([1, 2], edits=[edit.zero(("z", True))]),
        lambda m: m.run([3, True]),
        lambda m: m.run([[3, True], [4]]),
        lambda m: m.gradients([1, 2], metrics.logit_diff(1, 2), wrt=[("z", True)]),
        lambda m: m.jvp([1, 2], {("resid_pre", True): np.ones(24)}),
        lambda m: m.path_patch([1, 2], [1, 3], receivers=[("q_input", True)], metric=metrics.logit_diff(1, 2)),
        lambda m: m.path_patch([1, 2], [1, 3], receivers=[("q_input", 1, True)], metric=metrics.logit_diff(1, 2)),
        lambda m: m.sweep([1, 2], [1, 3], layers=[0, True], metric=metrics.logit_diff(1, 2)),
        lambda m: lens.logit_lens(m, [1, 2], layers=[0, True]),
        lambda m: lens.TunedLens.fit(m, [[1, 2]], steps=True),
        lambda m: m.plan(batch=True),
        lambda m: m.run([1, 2], capture="resid_pre").accumulated_resid(layer=True),
        lambda m: direct_logit_attribution(m, [1, 2], 3, pos=True),
        lambda m: evaluate(m, [[1, 2]], batch=True),
        lambda m: clew.set_num_threads(True),
    ],
)  # fmt: skip
def test_true_is_no_number(gpt2: clew.Model, ask: Any) -> None:
    with pytest.raises(clew.Error, match=r"True|bool"):
        ask(gpt2)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, run: m.folded(fold_ln="x"),
        lambda m, run: m.folded(center_unembed=1),
        lambda m, run: run.accumulated_resid(incl_mid="x"),
        lambda m, run: run.decompose_resid(heads="x"),
        lambda m, run: run.get_full_resid_decomposition(expand_neurons="x"),
        lambda m, run: run.stack_head_results(incl_remainder="x"),
        lambda m, run: run.stack_neuron_results(return_labels="x"),
    ],
)
def test_flags_are_true_or_false(gpt2: clew.Model, ask: Any) -> None:
    run = gpt2.run([1, 2], capture="*")
    with pytest.raises(ConfigError, match=r"^(fold_ln|center_unembed|incl_\w+|heads|expand_neurons|return_labels) = "):
        ask(gpt2, run)


def test_what_would_be_ignored_or_is_raw(gpt2: clew.Model, tmp_path: Any) -> None:
    metric, two = metrics.logit_diff(1, 2), [[1, 2, 3], [4, 5, 6]]
    sweep = gpt2.sweep(two, [[1, 4, 3], [4, 1, 6]], metric=metric)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: sweep.interval(n=True), ConfigError, "n = True"),
        (lambda: sweep.interval(seed=-1), ConfigError, "seed = -1"),
        (lambda: sweep.interval(seed="a"), ConfigError, "seed = 'a'"),
        (lambda: gpt2.sweep(two, edits=[None], metric=metric), ConfigError, "edits holds None"),
        (lambda: gpt2.sweep(two, two, metric=metrics.Metric()), ConfigError, "what the others are made of"),
        (lambda: gpt2.sweep(two, two, "hook_embed", "pos", metric, layers=[0]), ConfigError, "hook_embed has none"),
        (
            lambda: gpt2.sweep(two, two, positions=np.ma.array([0, 1], mask=[0, 1]), metric=metric),
            ShapeError,
            "masked values",
        ),
        (lambda: metrics.logit_diff([1, 2], [1, 2, 3]), ShapeError, "2 and 3 tokens are no pairs"),
        (lambda: metrics.log_prob([1, 2])(np.zeros((1, 31))), ShapeError, "for 2 examples, the logits are of 1"),
        (lambda: metrics.kl(np.zeros((2, 31)))(np.zeros((3, 31))), ShapeError, "2 examples, the batch 3"),
        (lambda: metrics.kl(np.zeros((1, 0, 31))), ShapeError, r"not \[1, 0, 31\]"),
        (lambda: metrics.kl(np.zeros((1, 31)) * 1j), ShapeError, "real numbers, not complex128"),
        (lambda: clew.memory.set_idle_limit("a"), ConfigError, "size = 'a'"),
        (lambda: clew.train.load_model("x" * 5000), LoadError, "is no path"),
        (lambda: gpt2.plan(batch=10**8, pos=1), TokenError, "at most 4194304 sequences"),
        (lambda: setattr(gpt2, "W_E", 0), AttributeError, r"model\.W_E cannot be set"),
        (lambda: setattr(gpt2, "weights", {}), AttributeError, r"model\.weights cannot be set"),
    ]
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_weights_beyond_the_precision_asked_for(gpt2: clew.Model, tmp_path: Any) -> None:
    weights = dict(gpt2.weights) | {"embed.W_E": np.full_like(gpt2.W_E, 1e39)}
    clew.Model(Checkpoint(gpt2.config, weights, np.dtype(np.float64))).save(tmp_path)
    assert clew.load(tmp_path).W_E.max() == 1e39
    with pytest.raises(LoadError, match=r"tensor 'embed\.W_E' holds values beyond float32"):
        clew.load(tmp_path, dtype="float32")


def test_arrays_of_names_can_be_captured(gpt2: clew.Model) -> None:
    assert len(gpt2.run([1, 2], capture=np.array(["z.0", "q.1"]), logits=None)) == 2  # type: ignore[arg-type]
    assert len(gpt2.run([1, 2], capture=np.array([], str))) == 1  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="3 is no name"):
        gpt2.run([1, 2], capture="z").stack(3)  # type: ignore[arg-type]


def test_what_cannot_be_a_path_or_a_dtype(gpt2: clew.Model) -> None:
    for path in ("a" * 10_000, "a/" * 5000, "~nobody-of-this-name/x"):
        with pytest.raises(LoadError, match="is no path: "):
            clew.load(path)
    with pytest.raises(ShapeError, match="dtype None: a model computes"):
        clew.Model.from_config(gpt2.config, dtype=None)  # type: ignore[arg-type]
