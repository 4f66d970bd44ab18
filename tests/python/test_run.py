"""Running a model on whatever users hand it, its losses, its weights, and saving it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.loaders.checkpoint import Checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_python, make, relative_error, with_positions
from twin import twin
from zoo import random_tokens, random_weights, zoo

ZOO = zoo()
EXACT = 1e-12


@pytest.fixture(scope="module")
def gpt2() -> clew.Model:
    return make(ZOO["gpt2"])[0]


class Letters:
    """A tokenizer of lower-case letters; `begin` is put before every text."""

    bos_id = 30

    def __init__(self, begin: bool) -> None:
        self.begin = begin

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [ord(c) - ord("a") for c in text]
        return [self.bos_id, *ids] if self.begin and add_special_tokens else ids

    def to_str_tokens(self, ids: list[int]) -> list[str]:
        return [chr(ord("a") + i) for i in ids]

    def single_token(self, text: str) -> int:
        (one,) = self.encode(text, False)
        return one


def with_letters(begin: bool = False) -> clew.Model:
    config = ZOO["gpt2"]
    return clew.Model(Checkpoint(config, random_weights(config, 1), np.dtype(np.float64), lambda: Letters(begin)))


# ---- Inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens",
    [
        [3, 1, 4],
        (3, 1, 4),
        [[3, 1, 4]],
        ((3, 1, 4),),
        range(3, 6),
        np.array([3, 1, 4]),
        np.array([3, 1, 4], np.uint8),
        np.array([[3, 1, 4]], np.int16),
        np.array([3, 0, 1, 0, 4])[::2],
        np.array([3, 1, 4], ">i4"),
        [np.array([3, 1, 4], np.int8)],
        [np.int32(3), 1, np.int64(4)],
    ],
    ids=repr,
)
def test_ids_come_in_many_forms(gpt2: clew.Model, tokens: Any) -> None:
    want = [3, 4, 5] if isinstance(tokens, range) else [3, 1, 4]
    run = gpt2.run(tokens)
    assert np.array_equal(run.logits, gpt2.run(np.array([want])).logits)
    assert run.tokens is not None and run.tokens.tolist() == [want]
    assert run.logits.shape == (1, 3, 31)


@pytest.mark.parametrize(
    "tokens",
    [
        [[3, 1, 4], [1, 5]],
        ((3, 1, 4), (1, 5)),
        [np.array([3, 1, 4], np.uint8), (1, 5)],
        [np.array([3, 1, 4], np.uint64), np.array([1, 5], np.int64)],
    ],
    ids=repr,
)
def test_ragged_ids_come_in_many_forms(gpt2: clew.Model, tokens: Any) -> None:
    run = gpt2.run(tokens)
    assert run.lengths.tolist() == [3, 2]
    assert relative_error(run.logits[1, :2], gpt2.run([1, 5]).logits[0]) <= EXACT


def test_text_is_encoded_with_the_tokenizers_own_rule() -> None:
    plain, begun = with_letters(), with_letters(begin=True)
    assert np.array_equal(plain.run("cab").logits, plain.run([2, 0, 1]).logits)
    run = begun.run(["cab", "d"])
    assert run.tokens is not None and run.tokens.tolist() == [[30, 2, 0, 1], [30, 3, -1, -1]]
    assert begun.to_tokens("cab", bos=False).tolist() == [[2, 0, 1]]  # type: ignore[union-attr]
    assert plain.to_tokens("cab", bos=True).tolist() == [[30, 2, 0, 1]]  # type: ignore[union-attr]
    assert begun.to_tokens(["cab", "d"]) == [[30, 2, 0, 1], [30, 3]]
    assert plain.to_str_tokens("cab") == plain.to_str_tokens([[2, 0, 1]]) == ["c", "a", "b"]
    assert plain.to_single_token("b") == 1
    assert relative_error(begun.loss("cab"), begun.loss([30, 2, 0, 1])) == 0


def test_the_callers_arrays_are_not_kept(gpt2: clew.Model) -> None:
    tokens = np.array([[3, 1, 4]], np.int32)
    run = gpt2.run(tokens, capture="hook_embed")
    before = run["hook_embed"].copy()
    tokens[:] = 7
    assert run.tokens is not None and run.tokens.tolist() == [[3, 1, 4]]
    x = before.copy()
    run = gpt2.run(embeddings=x, capture="hook_embed")
    x[:] = 7
    assert np.array_equal(run["hook_embed"], before)


def test_a_run_is_a_function_of_its_input(gpt2: clew.Model) -> None:
    first, second = (gpt2.run([5, 2, 7], capture="*") for _ in range(2))
    for name in first:
        assert np.array_equal(first[name], second[name])


# ---- Logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi", "gptj", "mistral", "attn_only", "no_layers", "linear_full"])
def test_last_logits_are_the_last_of_all(name: str) -> None:
    model, _ = make(ZOO[name])
    tokens = random_tokens(ZOO[name], 3, 3, 11)
    everything = model.run(tokens).logits
    for capture in (None, "resid_pre", "k", "*", "ln_final.hook_out", "hook_embed"):
        if capture in (None, "*", "hook_embed") or capture in model.sites():
            last = model.run(tokens, capture=capture, logits="last").logits
            assert last.shape == (3, 1, ZOO[name].d_vocab)
            assert relative_error(last, everything[:, -1:]) <= EXACT
            assert last.flags.c_contiguous and not last.flags.writeable


def test_no_logits_where_none_are_wanted(gpt2: clew.Model) -> None:
    run = gpt2.run([1, 2, 3], capture="resid_post", logits=None)
    assert "logits" not in run and len(run) == 2
    plans = [gpt2.plan(1, 8, "resid_post", logits=mode) for mode in (None, "last", "all")]
    assert plans[0].flops < plans[1].flops < plans[2].flops
    assert [p.keep_bytes - plans[0].keep_bytes for p in plans] == [0, 31 * 8, 8 * 31 * 8]


def test_logits_can_be_captured_by_name(gpt2: clew.Model) -> None:
    run = gpt2.run([1, 2, 3], capture="logits", logits=None)
    assert list(run) == ["logits"] and run.logits.shape == (1, 3, 31)
    assert gpt2.run([1, 2, 3], capture="logits", logits="last").logits.shape == (1, 1, 31)


# ---- Loss -----------------------------------------------------------------------------------------------------------


def reference_loss(logits: Any, tokens: Any) -> Any:
    """−log softmax(logits)[next token] in long double, [batch, pos − 1]."""
    x = np.asarray(logits, np.longdouble)[:, :-1]
    top = x.max(axis=-1, keepdims=True)
    log_sum = np.log(np.exp(x - top).sum(axis=-1)) + top[..., 0]
    targets = np.asarray(tokens)[:, 1:, None]
    return log_sum - np.take_along_axis(x, targets, axis=-1)[..., 0]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi", "vocab_1", "vocab_7", "no_layers", "linear_causal"])
def test_loss_is_minus_log_softmax(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 5, 3, 9)
    got = model.loss(tokens)
    assert got.shape == (3, 8) and got.dtype == np.float64 and got.flags.c_contiguous
    want = reference_loss(twin(config, weights, tokens)["logits"], tokens)
    assert np.abs(got - want).max() <= 1e-12
    assert abs(model.loss(tokens, reduce="mean") - float(want.mean())) <= 1e-12


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("d_vocab", [1023, 1024, 1025, 3000])
def test_loss_over_blocks_of_rows_and_vocabulary(d_vocab: int, cap: float | None) -> None:
    config = clew.ModelConfig(
        n_layers=1, d_model=8, n_heads=2, n_ctx=300, d_vocab=d_vocab, unembed_bias=True, output_logits_soft_cap=cap
    )
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        model, _ = make(config, dtype=dtype)
        tokens = random_tokens(config, 5, 1, 300)
        tokens[0, [5, 6, 7]] = 0, d_vocab - 1, min(1024, d_vocab - 1)
        want = reference_loss(model.run(tokens).logits, tokens)
        assert np.abs(model.loss(tokens) - want).max() <= tolerance


def test_loss_of_ragged_prompts(gpt2: clew.Model) -> None:
    tokens = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    losses = gpt2.loss(tokens)
    assert losses.shape == (3, 4)
    assert (losses[1] == 0).all() and (losses[2, 2:] == 0).all()
    assert relative_error(losses[:1], gpt2.loss([tokens[0]])) <= EXACT
    assert relative_error(losses[2:, :2], gpt2.loss([tokens[2]])) <= EXACT
    mean = (gpt2.loss([tokens[0]]).sum() + gpt2.loss([tokens[2]]).sum()) / 6
    assert abs(gpt2.loss(tokens, reduce="mean") - mean) <= 1e-13
    assert isinstance(gpt2.loss(tokens, reduce="mean"), float)


def test_loss_survives_huge_logits() -> None:
    config = ZOO["no_layers"].replace(normalization_type=None, positional_embedding_type="none", unembed_bias=True)
    weights = random_weights(config, 1)
    weights["unembed.b_U"][:] = np.linspace(-1e5, 1e5, config.d_vocab)
    model = clew.Model(Checkpoint(config, weights, np.dtype(np.float64)))
    tokens = [[0, 1, 10, 3]]
    got = model.loss(tokens)
    assert np.isfinite(got).all() and got[0, 0] > 1e4
    assert relative_error(got, reference_loss(model.run(tokens).logits, tokens)) <= EXACT


def test_loss_keeps_no_logits() -> None:
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=1024, d_vocab=50000)
    model = clew.Model.from_config(config)
    plan, *_ = model._plan(np.array([1024], np.int32), None, None, None, None, 3, False)
    assert plan.keep_bytes == 1023 * 4
    assert plan.scratch_bytes < 1024 * 50000 * 4 / 20


# ---- Hypothesis: padding does not matter ----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["gpt2", "gemma3", "mistral", "linear_causal", "gptj"]),
    prompts=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=20), min_size=1, max_size=5),
)
def test_a_prompts_company_does_not_change_it(name: str, prompts: list[list[int]]) -> None:
    model, _ = make(ZOO[name])
    together = model.run(prompts, capture="resid_post")
    for i, prompt in enumerate(prompts):
        alone = model.run(prompt, capture="resid_post")
        assert relative_error(together.logits[i, : len(prompt)], alone.logits[0]) <= EXACT
        assert (
            relative_error(together.stack("resid_post")[:, i, : len(prompt)], alone.stack("resid_post")[:, 0]) <= EXACT
        )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([n for n, c in ZOO.items() if c.attention_dir == "causal"]),
    prompt=st.lists(st.integers(0, 2), min_size=2, max_size=16),
    data=st.data(),
)
def test_the_future_does_not_reach_the_past(name: str, prompt: list[int], data: st.DataObject) -> None:
    prompt = [t % ZOO[name].d_vocab for t in prompt]
    cut = data.draw(st.integers(1, len(prompt) - 1))
    model, _ = make(ZOO[name])
    whole, part = model.run(prompt).logits, model.run(prompt[:cut]).logits
    assert relative_error(whole[:, :cut], part) <= EXACT


# ---- Layouts and saving ---------------------------------------------------------------------------------------------


def layouts(array: Any) -> list[Any]:
    """The same values in every layout that a file may hold them in."""
    strided = np.repeat(array[..., None], 2, axis=-1)[..., 0]
    moved = [np.moveaxis(np.ascontiguousarray(np.moveaxis(array, i, 0)), 0, i) for i in range(array.ndim)]
    backwards = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return [np.ascontiguousarray(array), np.asfortranarray(array), strided, backwards, *moved]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gptj", "odd_d1", "one_head", "gqa_6_2"])
@pytest.mark.parametrize("layout", range(5))
def test_the_layout_of_weights_does_not_matter(name: str, layout: int) -> None:
    config = ZOO[name]
    weights = random_weights(config, 1)
    turned = {k: layouts(v)[min(layout, len(layouts(v)) - 1)] for k, v in weights.items()}
    model = clew.Model(Checkpoint(config, turned, np.dtype(np.float64)))
    tokens = random_tokens(config, 5, 2, 9)
    assert relative_error(model.run(tokens).logits, twin(config, weights, tokens)["logits"]) <= EXACT
    for k, v in weights.items():
        assert np.array_equal(model.weights[k], v)
        assert not model.weights[k].flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gptj", "linear_full", "no_layers", "odd_d37"])
def test_what_is_saved_and_loaded_has_the_same_bits(name: str, dtype: str, tmp_path: Path) -> None:
    config = ZOO[name]
    model, _ = make(config, dtype=np.dtype(dtype))
    model.save(tmp_path)
    again = clew.load(tmp_path)
    assert again.dtype == dtype and again.config == model.config
    assert set(again.weights) == set(model.weights)
    for k, v in model.weights.items():
        assert v.tobytes() == again.weights[k].tobytes(), k
    tokens = random_tokens(config, 5, 2, 9)
    one, other = model.run(tokens, capture="*"), again.run(tokens, capture="*")
    for site in one:
        assert one[site].tobytes() == other[site].tobytes(), site


def test_a_config_and_a_seed_are_a_model() -> None:
    config = with_positions(ZOO["llama3"], 30)
    one, same, other = (clew.Model.from_config(config, seed=s, dtype="float64") for s in (4, 4, 5))
    tokens = random_tokens(config, 5, 2, 9)
    assert np.array_equal(one.run(tokens).logits, same.run(tokens).logits)
    assert not np.allclose(one.run(tokens).logits, other.run(tokens).logits)
    assert relative_error(one.run(tokens).logits, twin(config, one.weights, tokens)["logits"]) <= EXACT
    single = clew.Model.from_config(config, seed=4)
    assert single.dtype == np.float32
    assert relative_error(single.run(tokens).logits, one.run(tokens).logits) <= 1e-5


def test_logits_none_wins_over_globs(gpt2: clew.Model) -> None:
    """logits=None: only an exact name asks for them; a run that is asked for nothing gives nothing."""
    assert "logits" not in gpt2.run([1, 2], capture="*", logits=None)
    assert "logits" in gpt2.run([1, 2], capture=["logits"], logits=None)
    assert len(gpt2.run([1, 2], logits=None)) == 0
    assert gpt2.plan(1, 2, logits=None).keep_bytes == 0


def test_a_run_that_stops_keeps_where_it_got_to(gpt2: clew.Model) -> None:
    """Without capture the residual stream that leaves the last block is what it was run for."""
    want = gpt2.run([1, 2, 3], capture="resid_post")
    for layer in (0, -2, -1):
        run = gpt2.run([1, 2, 3], stop_after_layer=layer)
        assert len(run) == 1
        np.testing.assert_array_equal(run["resid_post"], want["resid_post", layer])
    last = gpt2.run([[1, 2, 3], [4, 5]], stop_after_layer=0, positions=[-1])
    np.testing.assert_array_equal(last["resid_post"][0, 0], want["resid_post", 0][0, -1])
    assert gpt2.plan(1, 3, stop_after_layer=0).keep_bytes == 3 * gpt2.config.d_model * gpt2.dtype.itemsize
    assert list(gpt2.run([1, 2, 3], capture="z", stop_after_layer=0)) == ["blocks.0.attn.hook_z"]


# ---- What new users try ---------------------------------------------------------------------------------------------


def test_names_as_printed_and_as_the_classic_library_has_them(gpt2: clew.Model) -> None:
    tokens = [1, 2, 3]
    printed = gpt2.run(tokens, capture="blocks.L.attn.hook_z", logits=None)
    assert list(printed) == list(gpt2.run(tokens, capture="z", logits=None))
    assert list(gpt2.run(tokens, capture="hook_z", logits=None)) == list(printed)
    assert list(gpt2.run(tokens, capture=("z", 1), logits=None)) == ["blocks.1.attn.hook_z"]


def test_get_and_in_tell_what_was_captured(gpt2: clew.Model) -> None:
    run = gpt2.run([1, 2, 3], capture=["resid_post", "z.1"])
    assert "resid_post" in run and "z" in run and "pattern" not in run and "nonsense" not in run
    assert run.get("pattern") is None and run.get(("z", 1)) is not None
    with pytest.raises(clew.SiteError, match="captured 2 times"):
        run.get("resid_post")
    with pytest.raises(clew.SiteError, match="no capture site"):
        run.get("nonsense")


def test_factored_matrices_compose(gpt2: clew.Model) -> None:
    first, second = gpt2.OV(0, 1), gpt2.OV(1, 0)
    both = first @ second
    assert isinstance(both, clew.FactoredMatrix)
    np.testing.assert_allclose(both.AB, first.AB @ second.AB, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.asarray(first), first.AB)
    x = np.random.default_rng(0).standard_normal((3, gpt2.config.d_model))
    np.testing.assert_allclose(x @ first, x @ first.AB, rtol=1e-9, atol=1e-12)
    with pytest.raises(clew.ShapeError, match=r"\[24, 24\] @ \[5\] does not multiply"):
        first @ np.ones(5)
    with pytest.raises(clew.ShapeError, match=r"\[5\] @ \[24, 24\] does not multiply"):
        np.ones(5) @ first


def test_weights_can_be_found(gpt2: clew.Model) -> None:
    assert {"W_Q", "b_out", "W_U"} <= set(dir(gpt2))
    with pytest.raises(KeyError, match=r"nearest: unembed\.W_U"):
        gpt2.weights["W_U"]


def test_a_plan_by_default_fits_the_model(gpt2: clew.Model) -> None:
    assert gpt2.plan().pos == min(1024, gpt2.W_pos.shape[0])


def test_saving_keeps_the_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = clew.load("shakespeare")
    model.save(tmp_path)
    again = clew.load(tmp_path)
    assert again.tokenizer is not None and again.to_str_tokens("Good morrow") == model.to_str_tokens("Good morrow")


def test_saving_over_a_model_with_another_tokenizer(gpt2: clew.Model, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model, place = clew.load("shakespeare"), tmp_path / "a"
    model.save(place)
    (place / "notes.txt").write_text("mine")
    early = clew.load(place)
    early.save(place)  # over itself
    late = clew.load(place)
    clew.load("english").save(place)
    for stale in (early, late):
        with pytest.raises(clew.LoadError, match=r"tokenizer.json: this file of the tokenizer changed since the model"):
            stale.run("My lord")
        with pytest.raises(clew.LoadError, match="changed since the model was loaded"):
            stale.save(tmp_path / "b")
    assert clew.load(place).to_tokens("One day").tolist() == clew.load("english").to_tokens("One day").tolist()
    gpt2.save(place)
    assert clew.load(place).tokenizer is None
    assert sorted(file.name for file in place.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    model.save(place)
    with pytest.raises(clew.LoadError, match="changed since"):  # what was there has come back as another file
        early.run("My lord")
    gone = clew.load(place)
    shutil.rmtree(place)
    with pytest.raises(clew.LoadError, match=r"tokenizer.json: this file of the tokenizer is gone since the model was"):
        gone.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_tokenizer_that_was_put_beside_a_model_to_come_stays(gpt2: clew.Model, tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("mine")
    gpt2.save(tmp_path)
    assert (tmp_path / "merges.txt").exists()


def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    assert_python(f"""
import resource, signal
import clew, numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
place = {str(tmp_path)!r}
old = clew.load("shakespeare")
old.save(place)
config = clew.ModelConfig(n_layers=1, d_model=2, n_heads=1, n_ctx=4, d_vocab=4096)
for tokenizer, most in ((clew.load("english"), 100_000), (None, 10_000)):
    new = clew.Model.from_config(config, tokenizer=tokenizer)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))
    try:
        new.save(place)
    except OSError as error:
        assert error.filename.startswith(place), error
    else:
        raise AssertionError("saved")
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    again = clew.load(place)
    assert np.array_equal(again.run("My lord").logits, old.run("My lord").logits)
print("fine")
""")
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_cannot_be_saved(gpt2: clew.Model, tmp_path: Path) -> None:
    with pytest.raises(clew.ConfigError, match=r"path = 'a\\x00b' is no path"):
        gpt2.save("a\0b")
    strange = clew.Model.from_config(gpt2.config.replace(extra={"a": np.float32(1)}))
    with pytest.raises(clew.ConfigError, match="save: extra = .*float32.* is not JSON serializable"):
        strange.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("value", [None, 10**400, "two"])
@pytest.mark.parametrize("key", ["n_layers", "d_model", "d_vocab", "eps"])
def test_a_saved_configuration_with_a_broken_value(gpt2: clew.Model, tmp_path: Path, key: str, value: Any) -> None:
    gpt2.save(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["config"][key] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(clew.LoadError, match="config.json"):
        clew.load(tmp_path)
