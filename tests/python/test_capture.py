"""What a run gives: names, positions, ragged batches, layers, the arrays, and the plan that foretells them."""

from __future__ import annotations

import gc
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, SiteError, _core
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import assert_close, make, relative_error, with_positions
from twin import twin
from zoo import random_tokens, zoo

ZOO = zoo()
EXACT = 1e-12
LENGTHS = [9, 1, 14, 5]


@pytest.fixture(scope="module")
def deep() -> clew.Model:
    """Seven layers."""
    return make(ZOO["deep"])[0]


@pytest.fixture(scope="module")
def gemma2() -> clew.Model:
    """The architecture with the most sites."""
    return make(ZOO["gemma2"])[0]


def ragged_tokens(config: clew.ModelConfig, lengths: list[int], seed: int = 2) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.d_vocab, n).tolist() for n in lengths]


def real(array: Any, name: str, seq: int, length: int) -> Any:
    """One sequence's own part of a padded array, with a batch axis."""
    if name.endswith(("hook_pattern", "hook_attn_scores")):
        return array[seq : seq + 1, :, :length, :length]
    return array[seq : seq + 1, :length]


# ---- Names ----------------------------------------------------------------------------------------------------------


def test_an_exact_name_captures_one_array(deep: clew.Model) -> None:
    run = deep.run([1, 2, 3], capture="blocks.3.attn.hook_z")
    assert list(run) == ["blocks.3.attn.hook_z", "logits"]
    assert len(run) == 2


def test_short_names_mean_every_layer(deep: clew.Model) -> None:
    run = deep.run([1, 2, 3], capture=["resid_post", "z"])
    assert {n for n in run if n != "logits"} == {
        f"blocks.{layer}.{site}" for layer in range(7) for site in ("hook_resid_post", "attn.hook_z")
    }


@pytest.mark.parametrize(
    "name", ["pattern.3", "attn.pattern.3", ("pattern", 3), ("pattern", np.int64(3)), "pattern.-4"]
)
def test_a_layer_can_be_named_in_many_ways(deep: clew.Model, name: Any) -> None:
    run = deep.run([1, 2, 3], capture=[name])
    assert set(run) == {"blocks.3.attn.hook_pattern", "logits"}
    for key in (name, "pattern", "blocks.3.attn.hook_pattern", ("pattern", -4), "blocks.-4.attn.hook_pattern"):
        assert np.array_equal(run[key], run["blocks.3.attn.hook_pattern"]) and key in run


def test_globs_match_full_names(deep: clew.Model) -> None:
    run = deep.run([1, 2], capture=["blocks.[2-4].hook_*_out", "ln_final.*"])
    assert {n for n in run if n != "logits"} == {
        *(f"blocks.{layer}.hook_{kind}_out" for layer in (2, 3, 4) for kind in ("attn", "mlp")),
        *(f"ln_final.hook_{kind}" for kind in ("scale", "normalized", "out")),
    }
    assert set(deep.run([1, 2], capture="*")) == set(deep.sites())


def test_repeats_and_overlaps_are_captured_once(deep: clew.Model) -> None:
    run = deep.run([1, 2], capture=["z", "z.1", "blocks.1.attn.hook_z", "blocks.1.attn.*z"])
    assert len(run) == 7 + 1
    assert run.stack("z").shape[0] == 7


def test_arrays_come_in_the_order_of_computation(gemma2: clew.Model) -> None:
    names = list(gemma2.run([1, 2], capture="*"))
    assert names == list(gemma2.sites())
    assert names[0] == "hook_embed" and names[-1] == "logits"
    assert names.index("blocks.0.hook_resid_post") < names.index("blocks.1.hook_resid_pre")


def test_stacks_hold_the_captured_layers(deep: clew.Model) -> None:
    run = deep.run([1, 2, 3], capture=["mlp_out.5", "mlp_out.1", "mlp_out.-1"])
    assert run.layers("mlp_out") == (1, 5, 6)
    assert run.stack("mlp_out").shape == (3, 1, 3, 8)
    for i, layer in enumerate((1, 5, 6)):
        assert np.shares_memory(run["mlp_out", layer], run.stack("mlp_out")[i])
        assert np.array_equal(run["mlp_out", layer], run.stack("mlp_out")[i])
    assert ("mlp_out", 2) not in run and "mlp_out.2" not in run


def test_a_run_says_what_it_does_not_hold(deep: clew.Model) -> None:
    run = deep.run([1, 2, 3], capture=["z", "mlp_out.2"], logits=None)
    for key, message in [
        ("mlp_out.1", "'mlp_out.1' was not captured; this run holds z, mlp_out"),
        ("z", r"'z' was captured 7 times .* give the full name, \(name, layer\), or use run.stack"),
        ("zz", "matches no capture site"),
        (("z", 7), "layers 0 to 6"),
        (("z", 1.5), "no name of a capture site"),
        (("z", 1, 2), "no name of a capture site"),
        (5, "no name of a capture site"),
    ]:
        with pytest.raises(SiteError, match=message):
            run[key]  # type: ignore[index]
        assert key not in run or key == "z"
    for message, attempt in [
        ("captured on no layer", lambda: run.stack("pattern")),
        ("was made with logits=None", lambda: run.logits),
        ("matches no capture site", lambda: run.stack("patern")),
    ]:
        with pytest.raises(SiteError, match=message):
            attempt()


def test_one_short_name_of_several_sites(gemma2: clew.Model) -> None:
    """`ln1.scale`, `ln1_post.scale`, ...: the short name `scale` means all of them."""
    run = gemma2.run([1, 2], capture="scale", logits=None)
    assert {n.split(".", 2)[2] for n in run if n.startswith("blocks")} == {
        f"{norm}.hook_scale" for norm in ("ln1", "ln1_post", "ln2", "ln2_post")
    }
    assert "ln_final.hook_scale" in run
    assert run.stack("ln1_post.scale").shape == (3, 1, 2, 1)
    with pytest.raises(SiteError, match="means .*ln1.hook_scale.*give one of them"):
        run.stack("scale")


def test_run_and_sites_print_themselves(gemma2: clew.Model) -> None:
    run = gemma2.run([[1, 2], [3, 4]], capture=["z", "resid_post.1"])
    assert "2 sequences, 4 tokens" in repr(run) and "blocks.L.attn.hook_z" in repr(run) and "3 layers" in repr(run)
    html = run._repr_html_()
    assert html.startswith("<table>") and "hook_resid_post" in html and "2 batch" in html and "float64" in html
    assert len(repr(gemma2.sites()).splitlines()) == len(gemma2.sites().sites) + 1
    assert "blocks.L.ln1_post.hook_out" in gemma2.sites()._repr_html_()


# ---- Any capture list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "gptj", "llama3", "qwen3", "linear_window", "attn_only", "ln_sandwich"]
)
def test_each_site_alone_is_what_it_is_among_all(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 5, 2, 7)
    want = twin(config, weights, tokens)
    for site in want:
        run = model.run(tokens, capture=site, logits="all" if site == "logits" else None)
        assert list(run) == [site]
        assert relative_error(run[site], want[site]) <= EXACT, site


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_capture_list_gives_parts_of_the_full_run(data: st.DataObject) -> None:
    name = data.draw(
        st.sampled_from(["gpt2", "gemma3", "phi", "gpt_neox", "mistral", "attn_only", "linear_full", "opt"])
    )
    config = ZOO[name]
    model, _ = make(config)
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    tokens = ragged_tokens(config, lengths)
    sites = data.draw(st.lists(st.sampled_from(sorted(model.sites())), min_size=1, max_size=12))
    longest = max(lengths)
    positions = data.draw(st.none() | st.lists(st.integers(-longest, longest - 1), min_size=1, max_size=4))
    logits = data.draw(st.sampled_from(["all", "last", None]))
    if all(s == "logits" for s in sites):
        positions = None
    if logits is None and "logits" in sites:
        logits = "all"
    run = model.run(tokens, capture=sites, positions=positions, logits=logits)
    assert set(run) == set(sites) | ({"logits"} if logits else set())
    for seq, length in enumerate(lengths):
        full = model.run(tokens[seq], capture="*")
        for site in run:
            whole, mine = full[site], run[site][seq : seq + 1]
            if site == "logits":
                want = np.zeros((1, longest, config.d_vocab))
                want[:, :length] = whole
                want = whole[:, -1:] if logits == "last" else want
            else:
                want = _padded(whole, site, length, longest)
                if positions is not None:
                    want = _at(want, site, positions, length)
            assert relative_error(mine, want) <= EXACT, (site, seq)


def _padded(whole: Any, site: str, length: int, longest: int) -> Any:
    """One sequence's array as it stands in a ragged batch: what lies behind its end is zero, or unseen."""
    square = site.endswith(("hook_pattern", "hook_attn_scores"))
    axis = 2 if square else 1
    shape = list(whole.shape)
    shape[axis] = longest
    if square:
        shape[3] = longest
    want = np.zeros(shape)
    if square:
        want[:, :, :length] = -np.inf if site.endswith("scores") else 0
        want[:, :, :length, :length] = whole
    else:
        want[:, :length] = whole
    return want


def _at(want: Any, site: str, positions: list[int], length: int) -> Any:
    """The chosen positions, negative ones from the sequence's own end; zeros where it has no such position."""
    axis = 2 if site.endswith(("hook_pattern", "hook_attn_scores")) else 1
    rows = [p + length if p < 0 else p for p in positions]
    picked = np.take(want, [r if 0 <= r < length else 0 for r in rows], axis=axis)
    for i, r in enumerate(rows):
        if not 0 <= r < length:
            picked[(slice(None),) * axis + (i,)] = 0
    return picked


# ---- Positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox", "linear_causal", "mqa_partial_rotary"])
@pytest.mark.parametrize("positions", [[0], [-1], [3, 1, 1, -2], 5, np.array([2, -10], np.int8), range(10)])
def test_selecting_positions_is_slicing(name: str, positions: Any) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 5, 2, 10)
    full = model.run(tokens, capture="*")
    run = model.run(tokens, capture="*", positions=positions)
    index = np.atleast_1d(np.asarray(positions))
    for site in full:
        if site == "logits":
            assert np.array_equal(run[site], full[site])
            continue
        axis = 2 if site.endswith(("hook_pattern", "hook_attn_scores")) else 1
        assert relative_error(run[site], np.take(full[site], index, axis=axis)) <= EXACT, site


def test_positions_far_apart_lie_in_different_blocks() -> None:
    config = with_positions(ZOO["gpt2"], 200)
    model, _ = make(config)
    tokens = random_tokens(config, 5, 1, 200)
    full = model.run(tokens, capture=["pattern", "z"])
    run = model.run(tokens, capture=["pattern", "z"], positions=[-1, 63, 64, 0, 130])
    rows = [199, 63, 64, 0, 130]
    assert relative_error(run.stack("pattern"), full.stack("pattern")[:, :, :, rows]) <= EXACT
    assert relative_error(run.stack("z"), full.stack("z")[:, :, rows]) <= EXACT


def test_negative_positions_count_from_each_sequences_own_end() -> None:
    config = ZOO["llama"]
    model, _ = make(config)
    tokens = ragged_tokens(config, LENGTHS)
    run = model.run(tokens, capture=["resid_post", "pattern"], positions=[-1, 0, 8])
    for seq, length in enumerate(LENGTHS):
        full = model.run(tokens[seq], capture=["resid_post", "pattern"])
        got, want = run["resid_post", 1][seq], full["resid_post", 1][0]
        assert relative_error(got[:2], want[[-1, 0]]) <= EXACT
        rows, mine = run["pattern", 0][seq], full["pattern", 0][0]
        assert relative_error(rows[:, 0, :length], mine[:, -1]) <= EXACT
        assert (rows[:, :, length:] == 0).all()
        if length > 8:
            assert relative_error(got[2], want[8]) <= EXACT
        else:  # a position of the batch that this sequence does not have is padding
            assert (got[2] == 0).all() and (rows[:, 2] == 0).all()


# ---- Ragged batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_a_ragged_batch_is_its_sequences_one_by_one(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = ragged_tokens(config, LENGTHS)
    run = model.run(tokens, capture="*")
    plain = model.run(tokens)
    last = model.run(tokens, logits="last")
    for seq, length in enumerate(LENGTHS):
        alone = model.run(tokens[seq], capture="*")
        assert_close({k: real(v, k, seq, length) for k, v in run.items()}, alone, EXACT)
        assert relative_error(plain.logits[seq, :length], alone.logits[0]) <= EXACT
        assert relative_error(last.logits[seq, 0], alone.logits[0, -1]) <= EXACT
        for site, array in run.items():
            if site.endswith(("hook_pattern", "hook_attn_scores")):
                assert (array[seq, :, length:] == 0).all(), site
                unseen = -np.inf if site.endswith("scores") else 0
                assert (array[seq, :, :length, length:] == unseen).all(), site
            else:
                assert (array[seq, length:] == 0).all(), site
        assert (plain.logits[seq, length:] == 0).all()


@pytest.mark.parametrize(("name", "d_mlp", "d_vocab"), [("gpt2", 119, 215), ("llama3", 120, 216), ("gemma2", 300, 500)])
def test_wide_layers_of_many_rows(name: str, d_mlp: int, d_vocab: int) -> None:
    """Tiles of several panels, the last of which is not full, against few rows at a time."""
    config = ZOO[name].replace(d_mlp=d_mlp, d_vocab=d_vocab, d_vocab_out=d_vocab)
    model, _ = make(config)
    lengths = [14, 3, 13, 14, 11, 14, 13]
    tokens = ragged_tokens(config, lengths)
    run = model.run(tokens, capture="*")
    assert_close({"logits": model.run(tokens).logits}, {"logits": run.logits}, EXACT)
    for seq, length in enumerate(lengths):
        alone = model.run(tokens[seq], capture="*")
        assert_close({k: real(v, k, seq, length) for k, v in run.items()}, alone, EXACT)


def test_ragged_blocks_of_queries() -> None:
    lengths = [1, 64, 65, 129, 200]
    config = with_positions(ZOO["gemma2"], 200)
    model, _ = make(config)
    tokens = ragged_tokens(config, lengths)
    run, plain = model.run(tokens, capture="*"), model.run(tokens, capture="z")
    for seq, length in enumerate(lengths):
        alone = model.run(tokens[seq], capture="*")
        assert_close({k: real(v, k, seq, length) for k, v in run.items()}, alone, EXACT)
        for layer in range(3):
            assert relative_error(plain["z", layer][seq, :length], alone["z", layer][0]) <= EXACT


def test_a_run_knows_its_lengths_and_tokens() -> None:
    run = make(ZOO["gpt2"])[0].run([[3, 1, 4], [1], [5, 9]])
    assert run.lengths.tolist() == [3, 1, 2]
    assert run.tokens is not None and run.tokens.tolist() == [[3, 1, 4], [1, -1, -1], [5, 9, -1]]


# ---- Start and stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gptj", "gpt2_inverse_layer", "deep", "attn_only", "gpt_neo"])
def test_a_run_can_begin_and_end_anywhere(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 5, 2, 9)
    full = model.run(tokens, capture="*")
    n = config.n_layers
    for first in range(n):
        resid = full["resid_pre", first]
        run = model.run(embeddings=resid, start_at_layer=first, capture="*")
        assert set(run) == set(twin(config, weights, embeddings=resid, start_at_layer=first))
        assert_close(run, full, EXACT, list(run))
        assert run.tokens is None
        for last in range(first, n):
            part = model.run(embeddings=resid, start_at_layer=first - n, stop_after_layer=last, capture="*")
            assert set(part) == {s for s in run if s.startswith("blocks.") and int(s.split(".")[1]) <= last}
            assert_close(part, full, EXACT, list(part))
    stopped = model.run(tokens, stop_after_layer=0, capture=["resid_post", "hook_embed"])
    assert list(stopped) == ["hook_embed", "blocks.0.hook_resid_post"]
    assert_close(stopped, full, EXACT, list(stopped))


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma", "llama", "no_layers", "linear_full"])
def test_embeddings_take_the_place_of_tokens(name: str) -> None:
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 5, 2, 9)
    full = model.run(tokens, capture="*")
    run = model.run(embeddings=full["hook_embed"], capture="*")
    assert_close(run, full, EXACT)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, config.d_model))
    want = twin(config, weights, embeddings=x)
    assert_close(model.run(embeddings=x, capture="*"), want, EXACT)
    # any real dtype and layout; one sequence without a batch axis; a ragged list
    single = np.asfortranarray(x[0].astype(np.float32))
    assert_close(model.run(embeddings=single, capture="*"), twin(config, weights, embeddings=single[None]), EXACT)
    whole = np.arange(2 * config.d_model).reshape(2, config.d_model) % 3
    assert_close(model.run(embeddings=whole, capture="*"), twin(config, weights, embeddings=whole[None]), EXACT)
    ragged = model.run(embeddings=[x[0, :2], x[1], x[2, :1]])
    assert ragged.lengths.tolist() == [2, 5, 1]
    for seq, length in enumerate([2, 5, 1]):
        alone = model.run(embeddings=x[seq, :length])
        assert relative_error(ragged.logits[seq, :length], alone.logits[0]) <= EXACT


def test_a_prompt_may_be_longer_than_learned_positions_where_none_are_added() -> None:
    config = ZOO["gpt2"]
    model, weights = make(config)
    resid = np.random.default_rng(0).standard_normal((1, 40, config.d_model))
    run = model.run(embeddings=resid, start_at_layer=1)
    want = twin(config, weights, embeddings=resid, start_at_layer=1)
    assert relative_error(run.logits, want["logits"]) <= EXACT


# ---- Arrays ---------------------------------------------------------------------------------------------------------


def owner(array: Any) -> Any:
    """What an array's memory belongs to."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("tokens", [[[1, 2, 3]], [[1, 2, 3], [4]]], ids=["even", "ragged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_are_contiguous_read_only_views_of_slabs(tokens: Any, dtype: str) -> None:
    model, _ = make(ZOO["gemma2"], dtype=np.dtype(dtype))
    for positions in (None, [-1]):
        run = model.run(tokens, capture="*", positions=positions)
        for name, array in run.items():
            assert array.flags.c_contiguous and array.flags.aligned, name
            assert array.dtype == dtype and _core.in_slab(array), name
            assert not array.flags.writeable and not array.flags.owndata, name
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
            assert type(owner(array)).__name__ == "PyCapsule", name
            mine = array.copy()
            mine[...] = 0  # a copy is the caller's
        z = run.stack("z")
        assert np.shares_memory(z, run["z", 0]) and not z.flags.writeable


def test_arrays_outlive_the_run_and_the_model() -> None:
    model, weights = make(ZOO["gpt2"])
    tokens = random_tokens(ZOO["gpt2"], 5, 2, 9)
    want = twin(ZOO["gpt2"], weights, tokens)
    run = model.run(tokens, capture=["z", "resid_post"])
    kept = {name: run[name] for name in run}
    stack = run.stack("z")
    del run
    del model
    gc.collect()
    other, _ = make(ZOO["gpt2"], seed=9)
    for _ in range(5):  # whatever was given back is written over now
        other.run(tokens, capture="*")
    assert_close(kept, want, EXACT, list(kept))
    assert relative_error(stack[1], want["blocks.1.attn.hook_z"]) <= EXACT


def test_two_runs_share_nothing(deep: clew.Model) -> None:
    first = deep.run([1, 2, 3], capture="*")
    copy = {name: array.copy() for name, array in first.items()}
    second = deep.run([4, 5, 6], capture="*")
    for name, array in first.items():
        assert np.array_equal(array, copy[name])
        assert not np.shares_memory(array, second[name])


def test_one_small_array_does_not_keep_the_run() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=64, n_heads=4, n_ctx=512, d_vocab=100)
    model = clew.Model.from_config(config)
    plan = model.plan(1, 512, capture="*")
    kept, sizes = [], []
    for _ in range(3):
        _core.trim()
        run = model.run(np.zeros(512, int), capture="*")
        kept.append(run["ln1.scale", 0])
        del run
        sizes.append(_core.idle_bytes())
    small = 2 * 512 * 4
    assert all(size >= plan.keep_bytes - small for size in sizes), (sizes, plan.keep_bytes)


def test_equal_values_are_kept_once() -> None:
    """resid_post of a block and resid_pre of the next are one value."""
    model, _ = make(ZOO["deep"])
    run = model.run([1, 2, 3], capture=["resid_pre", "resid_post", "attn_in", "resid_mid", "mlp_in"])
    for layer in range(6):
        assert np.shares_memory(run["resid_post", layer], run["resid_pre", layer + 1])
        assert np.shares_memory(run["attn_in", layer], run["resid_pre", layer])
        assert np.shares_memory(run["mlp_in", layer], run["resid_mid", layer])
    assert not np.shares_memory(run["resid_post", 6], run["resid_pre", 6])


# ---- Plans ----------------------------------------------------------------------------------------------------------


def bytes_held(run: clew.Run) -> int:
    """Bytes of a run's arrays, each byte once."""
    spans = sorted((a.__array_interface__["data"][0], a.nbytes) for a in run.values())
    total, end = 0, 0
    for start, size in spans:
        total += max(0, start + size - max(start, end))
        end = max(end, start + size)
    return total


CAPTURES: list[Any] = [
    None, "z", "resid_post", ["resid_pre", "resid_post"], ["attn_in", "resid_pre"], "*", ["pattern", "attn_scores"],
    ["mlp_in", "resid_mid"], ["resid_pre.1", "resid_post.0"], ["resid_post.1", "resid_pre.0", "scale"],
]  # fmt: skip


@pytest.mark.parametrize("name", ["deep", "gemma2", "gptj", "attn_only"])
@pytest.mark.parametrize("logits", ["all", "last", None])
@pytest.mark.parametrize("positions", [None, [0, -1]])
def test_a_plan_foretells_the_run(name: str, logits: Any, positions: Any) -> None:
    model, _ = make(ZOO[name])
    for capture in CAPTURES:
        if capture is not None and capture != "*":
            names = [capture] if isinstance(capture, str) else capture
            capture = [c for c in names if c in model.sites()] or ["z"]
        if capture is None and (positions is not None or logits is None):
            continue
        plan = model.plan(2, 6, capture, positions=positions, logits=logits)
        run = model.run(np.ones((2, 6), int), capture=capture, positions=positions, logits=logits)
        assert plan.sites == {site: array.shape for site, array in run.items()}
        assert list(plan.sites) and set(plan.sites) == set(run)
        assert plan.keep_bytes == bytes_held(run), capture
        assert str(len(plan.steps)) in repr(plan)


def test_flops_of_a_plan_in_closed_form() -> None:
    batch, pos, d, heads, e, f, v, layers = 3, 20, 16, 4, 6, 40, 50, 2
    config = clew.ModelConfig(
        n_layers=layers, d_model=d, n_heads=heads, n_key_value_heads=2, d_head=e, d_mlp=f, n_ctx=32, d_vocab=v
    )
    model = clew.Model.from_config(config)
    rows = batch * pos
    projections = 2 * rows * d * (heads * e + 2 * 2 * e) + 2 * rows * heads * e * d
    mlp = 2 * rows * d * f * 2
    pairs = batch * pos * (pos + 1) / 2
    attention = pairs * 2 * heads * e * 2
    head = 2 * rows * d * v
    assert model.plan(batch, pos).flops == layers * (projections + attention + mlp) + head
    assert model.plan(batch, pos, "hook_embed", logits=None).flops == 0  # what nobody asks for is not computed
    # the last position's logits: one row of the last block behind its keys and values
    one = 2 * batch * d * heads * e + 2 * batch * heads * e * d + 2 * batch * d * f * 2 + 2 * batch * d * v
    last = (projections + attention + mlp) + 2 * rows * d * 2 * 2 * e + one + batch * pos * 2 * heads * e * 2
    assert model.plan(batch, pos, logits="last").flops == last
    # every head's own share is extra; the pattern alone needs no values
    result = 2 * rows * heads * e * d
    assert model.plan(batch, pos, "result.0").flops == model.plan(batch, pos).flops + result
    pattern = 2 * rows * d * (heads * e + 2 * e) + pairs * 2 * heads * e
    assert model.plan(batch, pos, "pattern.0", logits=None).flops == pattern
    gated = clew.Model.from_config(config.replace(gated_mlp=True))
    assert gated.plan(batch, pos).flops - model.plan(batch, pos).flops == layers * 2 * rows * d * f


def test_flops_count_what_a_window_shows() -> None:
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=64, d_vocab=10, window_size=7)
    pairs = sum(min(i + 1, 7) for i in range(64))
    window, whole = (clew.Model.from_config(config.replace(window_size=w)).plan(1, 64) for w in (7, None))
    assert whole.flops - window.flops == (64 * 65 / 2 - pairs) * 2 * 8 * 2


def test_flops_of_attention_in_both_directions() -> None:
    config = clew.ModelConfig(
        n_layers=1, d_model=8, n_heads=2, n_ctx=64, d_vocab=10, attention_kind="linear", attention_dir="bidirectional"
    )
    plans = [clew.Model.from_config(config.replace(window_size=w)).plan(1, 64) for w in (None, 7)]
    hidden = sum(max(0, i - 7 + 1) for i in range(64))  # keys behind the window
    assert plans[0].flops - plans[1].flops == hidden * 2 * 8 * 2


def test_capturing_nothing_needs_memory_for_one_layer_only() -> None:
    """Scratch does not grow with the number of layers, with or without capture."""
    configs = [
        clew.ModelConfig(n_layers=n, d_model=48, n_heads=4, n_ctx=256, d_vocab=100, gated_mlp=True) for n in (2, 3, 12)
    ]
    models = [clew.Model.from_config(c) for c in configs]
    for capture in (None, "resid_post", "z"):
        for logits in ("all", "last"):
            plans = [m.plan(2, 200, capture, logits=logits) for m in models]
            assert plans[0].scratch_bytes == plans[1].scratch_bytes == plans[2].scratch_bytes
    d, rows, item = 48, 400, 4
    buffers = models[0].plan(2, 200).scratch_bytes - clew.get_num_threads() * (64 * 200 + 3 * 64) * item
    assert 0 < buffers <= rows * item * (2 * d + 2 * 4 * d + d) + 4096 * (clew.get_num_threads() + 1)
    assert models[0].plan(2, 200).keep_bytes == models[2].plan(2, 200).keep_bytes == rows * 100 * item


def test_a_plan_lists_its_steps(deep: clew.Model) -> None:
    steps = deep.plan(1, 8).steps
    assert sum("attention" in s for s in steps) == 7 and "logits [8, 11]" in steps[-1]
    assert not [s for s in deep.plan(1, 8, "resid_post.1", logits=None).steps if "layer 2" in s]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(batch=0), clew.TokenError, "0 × "),
        (dict(pos=-1), clew.TokenError, "1 × -1"),
        (dict(pos=2.5), ConfigError, "pos = 2.5"),
        (dict(batch="1"), ConfigError, "batch = '1'"),
        (dict(pos=25), clew.TokenError, "25 tokens, but the model has 24 learned positions"),
        (dict(pos=2**40), clew.TokenError, "at most 2147483647"),
        (dict(batch=2**22 + 1), clew.TokenError, "at most 4194304 sequences"),
        (dict(pos=5, positions=[5]), ShapeError, "5 of a prompt of 5"),
    ],
)
def test_a_plan_refuses_what_a_run_would(arguments: Any, error: Any, message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    with pytest.raises(error, match=message):
        model.plan(**{"capture": "z", **arguments})
