"""Path patching against its definition, written out as three runs with edits for every sender."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from numpy.typing import NDArray
from support import make
from zoo import random_inputs, random_tokens, vector_zoo, zoo

Array = NDArray[Any]
ZOO = zoo()
POS = 6
DEEP = [name for name, c in ZOO.items() if c.n_layers >= 2 and c.d_vocab > 1]


def prompts(config: clew.ModelConfig) -> tuple[Array, Array]:
    clean = random_tokens(config, 5, batch=2, pos=POS)
    corrupted = clean.copy()
    for i, at in enumerate((3, 1)):
        corrupted[i, at] = (corrupted[i, at] + 1) % config.d_vocab
    return clean, corrupted


def by_definition(
    model: clew.Model,
    runs: tuple[Array, Array],
    receivers: list[tuple[Any, ...]],
    at: tuple[int, ...],
    metric: metrics.Metric,
    through_mlps: bool,
) -> Array:
    """A sender's value goes into a run of the base in which every other head (and MLP) stays; its receivers listen."""
    base_tokens, source_tokens = runs
    layer, head, *pos = at
    mlps = [] if model.config.attn_only else ["mlp_out"]
    base, source = model.run(base_tokens, capture=["z", *mlps]), model.run(source_tokens, capture="z")
    changes = [edit.set(("z", n), base["z", n]) for n in range(model.config.n_layers)]
    for name in mlps:
        last = layer if through_mlps else model.config.n_layers
        changes += [edit.set((name, n), base[name, n]) for n in range(last)]
    value = source["z", layer][:, :, [head]]
    changes.append(edit.set(("z", layer), value[:, pos] if pos else value, heads=[head], positions=pos or None))
    heard = model.run(base_tokens, capture=[r[:2] for r in receivers], edits=changes)
    told = []
    for name, n, *heads in receivers:
        value = heard[name, n]
        told.append(edit.set((name, n), value[:, :, heads] if heads else value, heads=heads or None))
    return metric(model.run(base_tokens, edits=told).logits)


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("name", DEEP)
def test_equals_the_definition(name: str, through_mlps: bool) -> None:
    model, _ = make(ZOO[name])
    config = model.config
    clean, corrupted = prompts(config)
    last = config.n_layers - 1
    metric = metrics.log_prob([0, config.d_vocab_out - 1])
    some: list[tuple[Any, ...]] = [("q_input", last, 0), ("v_input", last)]
    some += [] if config.attn_only else [("mlp_in", 1)]
    for receivers, over in ((some, ("layer", "head")), ([("resid_post", last)], ("layer", "head", "pos"))):
        for direction in ("denoise", "noise"):
            got = model.path_patch(
                clean, corrupted, receivers=receivers, over=over, metric=metric, through_mlps=through_mlps,
                keep_batch=True, direction=direction,
            )  # fmt: skip
            runs = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
            for at in np.ndindex(got.values.shape[:-1]):
                want = by_definition(model, runs, receivers, at, metric, through_mlps)
                assert np.allclose(got.values[at], want, rtol=1e-9, atol=1e-12), (receivers, at, direction)


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(ZOO["gpt2"])[0]


def test_something_travels(model: clew.Model) -> None:
    clean, corrupted = prompts(model.config)
    got = model.path_patch(clean, corrupted, receivers=("q_input", 1, 0), metric=metrics.log_prob(0))
    assert np.abs(got.effect[0]).max() > 1e-6, "senders of the first layer are heard"
    assert np.array_equal(got.effect[1], np.zeros(model.config.n_heads)), "those of the receiver's own are not"


def test_a_receiver_hears_every_sender_through_the_stream(model: clew.Model) -> None:
    """Without "head", one sender is all heads of a layer."""
    clean, corrupted = prompts(model.config)
    one = model.path_patch(clean, corrupted, over=("layer", "head"), metric=metrics.log_prob(0))
    whole = model.path_patch(clean, corrupted, over="layer", metric=metrics.log_prob(0))
    assert whole.values.shape == (2,) and one.values.shape == (2, model.config.n_heads)
    assert not np.allclose(one.effect.sum(axis=1), 0)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2", "gptj", "gpt_neox", "qwen3", "linear_causal"])
@pytest.mark.parametrize("sender", ["q", "k", "v", "attn_scores", "pattern", "q_input", "v_input", "result"])
def test_parts_of_a_head_speak_through_its_output(name: str, sender: str) -> None:
    """Every other head and every MLP stay as they were; the sender's own z is what becomes of it."""
    model, _ = make(ZOO[name])
    config, mlps = model.config, [] if ZOO[name].attn_only else ["mlp_out"]
    clean, corrupted = prompts(config)
    site = next(s for s in model.sites().sites if s.short == sender)
    axis = next(i for i, a in enumerate(site.axes) if a in ("head", "kv_head"))
    group = config.n_heads // config.n_key_value_heads if "kv_head" in site.axes else 1
    metric = metrics.logit_diff(0, 1)
    base, source = model.run(corrupted, capture=["z", *mlps]), model.run(clean, capture=sender)
    receivers = [("resid_post", config.n_layers - 1), ("k_input", 1), ("z", 0)]
    got = model.path_patch(clean, corrupted, sender, receivers, ("layer", "head"), metric, keep_batch=True)
    for layer, head in np.ndindex(got.values.shape[:2]):
        own = range(head * group, (head + 1) * group)
        changes = []
        for n in range(config.n_layers):
            left = [h for h in range(config.n_heads) if n != layer or h not in own or sender == "result"]
            if left:
                changes.append(edit.set(("z", n), base["z", n][:, :, left], heads=left))
            changes += [edit.set((m, n), base[m, n]) for m in mlps]
        value = np.take(source[sender, layer], [head], axis=axis)
        changes.append(edit.set((sender, layer), value, heads=[head]))
        heard = model.run(corrupted, capture=receivers, edits=changes)
        told = [edit.set(r, heard[r]) for r in receivers]
        want = metric(model.run(corrupted, edits=told).logits)
        assert np.allclose(got.values[layer, head], want, rtol=1e-9, atol=1e-11), (layer, head)
    assert np.abs(got.values - got.baseline).max() > 1e-7


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2", "gptj", "gpt_neox"])
@pytest.mark.parametrize("sender", ["pre", "post", "mlp_in", "ln1.hook_out", "attn_in", "resid_pre", "attn_out"])
@pytest.mark.parametrize("through_mlps", [False, True])
def test_parts_of_a_branch_speak_through_its_output(name: str, sender: str, through_mlps: bool) -> None:
    model, _ = make(ZOO[name])
    config = model.config
    clean, corrupted = prompts(config)
    metric = metrics.log_prob([0, 3])
    shared = config.parallel_attn_mlp and config.shared_norm
    own = {"z": sender in ("ln1.hook_out", "attn_in"),
           "mlp_out": sender in ("pre", "post", "mlp_in") or (shared and sender == "ln1.hook_out")}  # fmt: skip
    base = model.run(corrupted, capture=["z", "mlp_out"])
    held = ["z"] if through_mlps else ["z", "mlp_out"]
    got = model.path_patch(
        clean, corrupted, sender, over=("layer", "pos"), metric=metric, keep_batch=True, through_mlps=through_mlps
    )
    source = model.run(clean, capture=f"blocks.*.{'' if sender.startswith('ln') else '*hook_'}{sender}")
    for layer, pos in np.ndindex(got.values.shape[:2]):
        changes = [
            edit.set((s, n), base[s, n]) for n in range(layer, config.n_layers) for s in held if n > layer or not own[s]
        ]
        name_here = f"{sender}.{layer}"
        changes.append(edit.set(name_here, source[name_here][:, [pos]], positions=[pos]))
        last = ("resid_post", config.n_layers - 1)
        heard = model.run(corrupted, capture=[last], edits=changes)
        want = metric(model.run(corrupted, edits=[edit.set(last, heard[last])]).logits)
        assert np.allclose(got.values[layer, pos], want, rtol=1e-9, atol=1e-11), (layer, pos)
    assert np.abs(got.values - got.baseline).max() > 1e-7


def test_a_receiver_that_is_the_sender_is_told_what_it_said(model: clew.Model) -> None:
    """Then the path is the site itself: plain activation patching."""
    clean, corrupted = prompts(model.config)
    metric = metrics.log_prob(0)
    got = model.path_patch(clean, corrupted, "z", ("z", 1), ("layer", "head"), metric, keep_batch=True)
    plain = model.sweep(clean, corrupted, "z", ("layer", "head"), metric, keep_batch=True)
    assert np.allclose(got.values[1], plain.values[1], rtol=1e-11) and np.abs(got.effect[1]).min() > 1e-9
    assert np.array_equal(got.values[0], np.broadcast_to(got.baseline, got.values[0].shape)), "z of layer 1 is held"
    one = model.path_patch(clean, corrupted, "z", ("z", 1, 2), ("layer", "head"), metric, keep_batch=True)
    assert np.allclose(one.values[1, 2], plain.values[1, 2], rtol=1e-11)
    assert np.allclose(one.values[1, :2], one.baseline, rtol=1e-11)


def test_paths_measured_by_the_loss(model: clew.Model) -> None:
    clean, corrupted = prompts(model.config)
    receivers: list[Any] = [("v_input", 1), ("mlp_in", 1)]
    got = model.path_patch(clean, corrupted, receivers=receivers, metric=metrics.loss(), keep_batch=True)

    class Loss(metrics.Metric):
        def __call__(self, logits: Any, examples: Any = None) -> Array:
            x = np.asarray(logits)[:, :-1]
            log_p = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
            return np.asarray(-np.take_along_axis(log_p, corrupted[:, 1:, None], axis=-1)[..., 0].mean(axis=1))

    for at in np.ndindex(got.values.shape[:-1]):
        want = by_definition(model, (corrupted, clean), receivers, at, Loss(), False)
        assert np.allclose(got.values[at], want, rtol=1e-10), at
    assert np.abs(got.effect[0]).max() > 1e-7


def test_paths_of_ragged_prompts_from_their_ends(model: clew.Model) -> None:
    clean, corrupted = [[1, 2, 3, 4, 5], [6, 7, 8]], [[1, 9, 3, 4, 6], [6, 10, 9]]
    how: dict[str, Any] = dict(over=("layer", "head", "pos"), metric=metrics.log_prob(0))
    got = model.path_patch(clean, corrupted, **how, positions=[-1, 1, -4], keep_batch=True)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        want = model.path_patch(a, b, **how, positions=[-1, 1]).values
        assert np.allclose(got.values[..., :2, i], want, rtol=1e-11)
    assert (got.values[..., 2, 1] == got.baseline[1]).all(), "it has no such position"


def test_paths_of_a_model_of_vectors() -> None:
    model, _ = make(vector_zoo()["vectors"])
    clean = random_inputs(model.config, 3, pos=POS)
    corrupted = clean.copy()
    corrupted[0, 3] += 1
    corrupted[1, 1] -= 1

    class First(metrics.Metric):
        def __call__(self, logits: Any, examples: Any = None) -> Array:
            return np.asarray(logits)[:, -1, 0]

    last: list[Any] = [("resid_post", 1)]
    got = model.path_patch(clean, corrupted, receivers=last, metric=First(), keep_batch=True)
    for at in np.ndindex(got.values.shape[:-1]):
        want = by_definition(model, (corrupted, clean), last, at, First(), False)
        assert np.allclose(got.values[at], want, rtol=1e-9, atol=1e-12), at
    assert np.abs(got.effect).max() > 1e-6


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"receivers": []}, clew.ConfigError, "no path"),
        ({"receivers": [("q_input", 1, 9)]}, clew.ShapeError, "head 9"),
        ({"receivers": [("mlp_in", 1, 0)]}, clew.SiteError, "has no heads"),
        ({"receivers": [("q_input", 5)]}, clew.SiteError, "layers 0 to 1"),
        ({"receivers": [3]}, clew.SiteError, "receiver 3"),
        ({"sender": "hook_embed", "over": "pos"}, clew.ConfigError, "belongs to a layer"),
        ({"over": "head"}, clew.ConfigError, "one layer"),
        ({"over": ("layer", "neuron")}, clew.ConfigError, "'neuron'"),
        ({"receivers": ("q_input", 0, 0)}, clew.ConfigError, "nothing that blocks.L.attn.hook_z of layer 0, 1 sends"),
        ({"receivers": ("z", 1), "layers": [0]}, clew.ConfigError, "every later .* is held"),
        ({"receivers": "mlp_out", "layers": [0], "sender": "attn_out", "over": "layer"}, clew.ConfigError, "reaches"),
        ({"receivers": "hook_embed"}, clew.ConfigError, "reaches hook_embed: receivers lie behind"),
        ({"receivers": ("k", 0), "sender": "q", "layers": [0]}, clew.ConfigError, "reaches blocks.0.attn.hook_k"),
        ({"direction": "x"}, clew.ConfigError, "denoise"),
        ({"through_mlps": "yes"}, clew.ConfigError, "through_mlps = 'yes': True or False"),
        ({"keep_batch": 1}, clew.ConfigError, "keep_batch = 1: True or False"),
        ({"positions": [1]}, clew.ConfigError, "positions are chosen"),
    ],
)
def test_what_is_refused(model: clew.Model, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"metric": metrics.log_prob(0)} | change
    with pytest.raises(error, match=match):
        model.path_patch([1, 2, 3], [1, 4, 3], **given)
