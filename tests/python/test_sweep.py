"""Sweeps: each entry equals a run of its own with that edit; what is measured, how it is averaged, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from clew.loaders.checkpoint import Checkpoint
from clew.sites import SITES, Site
from numpy.typing import NDArray
from support import make
from zoo import random_inputs, random_tokens, vector_zoo, zoo

Array = NDArray[Any]
ZOO = zoo()
CAUSAL = [name for name, c in ZOO.items() if c.attention_dir == "causal" and c.n_layers]
POS = 6


def prompts(config: clew.ModelConfig) -> tuple[Array, Array]:
    """Two batches that differ at one position of each prompt, not the same one."""
    clean = random_tokens(config, 3, batch=2, pos=POS)
    corrupted = clean.copy()
    for i, at in enumerate((2, 1)):
        corrupted[i, at] = (corrupted[i, at] + 1) % config.d_vocab
    return clean, corrupted


def readout(logits: Array) -> Array:
    """A function of the last logits that reads all of them."""
    last = np.asarray(logits)[:, -1].astype(np.float64)
    return np.asarray((last * np.cos(np.arange(last.shape[1]))).sum(axis=1))


def kinds(model: clew.Model) -> list[Site]:
    return list(model.sites().sites)


def one_by_one(
    model: clew.Model, clean: Array, corrupted: Array, site: Site, over: tuple[str, ...], shape: tuple[int, ...]
) -> Array:
    """The plain loop: a run for each entry."""
    source = model.run(clean, capture=[site.name], logits=None if site.name != "logits" else "all")
    out = np.empty((*shape, len(corrupted)))
    heads_axis = next((i for i, a in enumerate(site.axes) if a in ("head", "kv_head")), None)
    pos_axis = site.axes.index("pos")
    for at in np.ndindex(*shape):
        where = dict(zip(over, at, strict=True))
        changes = []
        for layer in [where["layer"]] if "layer" in where else range(model.config.n_layers if site.layered else 1):
            name = site.full_name(layer)
            value = source[name]
            chosen: dict[str, Any] = {}
            if "pos" in where:
                value = np.take(value, [where["pos"]], axis=pos_axis)
                chosen["positions"] = [where["pos"]]
            if "head" in where:
                assert heads_axis is not None
                value = np.take(value, [where["head"]], axis=heads_axis)
                chosen["heads"] = [where["head"]]
            if "neuron" in where:
                value = value[..., [where["neuron"]]]
                chosen["neurons"] = [where["neuron"]]
            changes.append(edit.set(name, value, **chosen))
        out[at] = readout(model.run(corrupted, edits=changes).logits)
    return out


@pytest.mark.parametrize("name", [n for n, c in ZOO.items() if c.n_layers])
def test_every_site_equals_the_loop(name: str) -> None:
    model, _ = make(ZOO[name])
    clean, corrupted = prompts(model.config)
    for site in kinds(model):
        overs: list[tuple[Any, ...]] = [("layer", "pos") if site.layered else ("pos",)]
        if {"head", "kv_head"} & set(site.axes):
            overs += [("layer", "head"), ("head", "pos", "layer")]
        for over in overs:
            got = model.sweep(clean, corrupted, site=site.name, over=over, metric=readout, keep_batch=True)
            want = one_by_one(model, clean, corrupted, site, over, got.values.shape[:-1])
            assert np.abs(got.values - want).max() <= 1e-11 * max(np.abs(want).max(), 1e-9), f"{site.name} over {over}"


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(ZOO["gpt2"])[0]


@pytest.mark.parametrize("site", ["resid_pre", "z", "post", "pattern", "ln1.hook_normalized"])
@pytest.mark.parametrize("over", [("neuron",), ("pos", "neuron"), ("pos",), ("layer",)])
def test_axes_that_are_not_named_are_patched_whole(model: clew.Model, site: str, over: tuple[Any, ...]) -> None:
    clean, corrupted = prompts(model.config)
    neurons = [0, 3] if "neuron" in over else None
    got = model.sweep(clean, corrupted, site=site, over=over, metric=readout, keep_batch=True, neurons=neurons)
    kind = next(s for s in kinds(model) if s.name.endswith(site if "." in site else f"hook_{site}"))
    shape = tuple({"neuron": 4, "pos": POS, "layer": model.config.n_layers}[a] for a in over)
    want = one_by_one(model, clean, corrupted, kind, over, shape)
    if neurons:
        want = want.take(neurons, axis=over.index("neuron"))
    assert np.abs(got.values - want).max() < 1e-11 * np.abs(want).max()


def test_directions_swap_the_runs(model: clew.Model) -> None:
    clean, corrupted = prompts(model.config)
    denoise = model.sweep(clean, corrupted, metric=readout)
    noise = model.sweep(clean, corrupted, metric=readout, direction="noise")
    swapped = model.sweep(corrupted, clean, metric=readout)
    assert np.array_equal(noise.values, swapped.values)
    assert not np.allclose(noise.values, denoise.values)
    assert np.allclose(noise.baseline, readout(model.run(clean).logits), rtol=1e-12)
    assert denoise.reference is not None and np.allclose(denoise.reference, noise.baseline, rtol=1e-12)


def test_ragged_prompts_are_patched_where_they_have_the_position(model: clew.Model) -> None:
    clean = [[1, 4, 2, 8, 5], [7, 1, 4]]
    corrupted = [[1, 4, 3, 8, 5], [7, 2, 4]]
    got = model.sweep(clean, corrupted, metric=readout, keep_batch=True)
    assert got.values.shape == (2, 5, 2)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        alone = model.sweep(a, b, metric=readout)
        assert np.allclose(got.values[:, : len(a), i], alone.values, rtol=1e-11)
        assert np.array_equal(got.values[:, len(a) :, i], np.broadcast_to(got.baseline[i], (2, 5 - len(a))))


@pytest.mark.parametrize("site", ["resid_pre", "z", "pattern", "logits"])
def test_negative_positions_count_from_each_prompts_own_end(model: clew.Model, site: str) -> None:
    clean, corrupted = [[1, 2, 3, 4, 5], [6, 7, 8]], [[1, 9, 3, 4, 6], [6, 10, 9]]
    head = {"z": ("head",), "pattern": ("head",)}.get(site, ())
    over = ("layer", *head, "pos") if site != "logits" else ("pos",)
    chosen = [-1, 1, -4, 4, -2]
    for method in ("patch", "attribution"):
        how: dict[str, Any] = dict(site=site, over=over, metric=metrics.logit_diff(0, 1), method=method)
        got = model.sweep(clean, corrupted, **how, positions=chosen, keep_batch=True)
        assert got.labels[-1] == tuple(chosen)
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
            for j, pos in enumerate(chosen):
                if -len(a) <= pos < len(a):
                    want = model.sweep(a, b, **how, positions=[pos]).values[..., 0]
                else:
                    want = got.baseline[i]  # it has no such position
                assert np.allclose(got.values[..., j, i], want, rtol=1e-11), (method, pos, i)
    with pytest.raises(clew.ShapeError, match="list them, negative ones count from each prompt's own end"):
        model.sweep(clean, corrupted, metric=readout, positions=slice(-2, None))
    with pytest.raises(clew.ShapeError, match="position -6 of"):
        model.sweep(clean, corrupted, metric=readout, positions=[-6])
    both = model.sweep(clean, corrupted, metric=readout, positions=slice(0, 2))
    assert both.labels[1] == (0, 1)
    same_length = model.sweep([[1, 2, 3], [4, 5, 6]], [[1, 2, 7], [4, 5, 8]], metric=readout, positions=[-1])
    assert same_length.labels[1] == (2,)


def test_patching_the_whole_stream_gives_the_other_run(model: clew.Model) -> None:
    clean, corrupted = prompts(model.config)
    got = model.sweep(clean, corrupted, over="layer", metric=readout, keep_batch=True)
    assert np.allclose(got.values, got.reference, rtol=1e-11)
    assert np.allclose(got.recovered, 1)


def test_chosen_indices(model: clew.Model) -> None:
    clean, corrupted = prompts(model.config)
    every = model.sweep(clean, corrupted, site="z", over=("layer", "head", "pos"), metric=readout)
    some = model.sweep(
        clean,
        corrupted,
        site="z",
        over=("layer", "head", "pos"),
        metric=readout,
        layers=[-1],
        heads=[1, 0],
        positions=[4],
    )
    assert np.allclose(some.values, every.values[[-1]][:, [1, 0]][:, :, [4]], rtol=1e-12)
    assert some.labels == ((1,), (1, 0), (4,))


def test_many_variants_are_cut_into_several_runs(model: clew.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, corrupted = prompts(model.config)
    whole = model.sweep(clean, corrupted, metric=readout)
    monkeypatch.setattr("clew.sweep._MOST_ROWS", 9)
    assert np.allclose(model.sweep(clean, corrupted, metric=readout).values, whole.values, rtol=1e-12)


@pytest.mark.parametrize(
    ("site", "over"),
    [
        ("resid_pre", ("layer", "pos")),
        ("z", ("head", "layer")),
        ("pattern", ("layer", "head")),
        ("post", ("layer", "neuron")),
    ],
)
def test_attribution_is_the_first_order_of_patching(model: clew.Model, site: str, over: tuple[Any, ...]) -> None:
    """For runs that hardly differ, gradient times difference is what patching gives."""
    tokens = random_tokens(model.config, 3, batch=2, pos=POS)
    base = model.weights["embed.W_E"].copy()
    ids = np.unique(tokens)
    twin_of = {int(t): int(next(u for u in range(31) if u not in ids)) for t in ids[:1]}
    weights = {n: a for n, a in model.weights.items() if n not in ("embed.W_E", "unembed.W_U")}
    ((old, new),) = twin_of.items()
    base[new] = base[old] + 1e-5 * np.cos(np.arange(24))
    near = clew.Model(Checkpoint(model.config.replace(tie_word_embeddings=False), {
        **weights, "embed.W_E": base, "unembed.W_U": model.weights["unembed.W_U"]}, np.dtype("f8")))  # fmt: skip
    other = np.where(tokens == old, new, tokens)
    assert (other != tokens).any()
    for metric in (metrics.log_prob([3, 4]), metrics.logit_diff(3, 4)):
        patched = near.sweep(other, tokens, site=site, over=over, metric=metric)
        estimated = near.sweep(other, tokens, site=site, over=over, metric=metric, method="attribution")
        assert estimated.values.shape == patched.values.shape and estimated.labels == patched.labels
        assert np.abs(patched.effect).max() > 1e-8
        assert np.abs(estimated.effect - patched.effect).max() < 1e-3 * np.abs(patched.effect).max()


# ---- The logits as a site ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [("pos",), ("neuron",), ("pos", "neuron")])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_logits_are_swept_like_every_site(name: str, over: tuple[Any, ...]) -> None:
    model, _ = make(ZOO[name])
    clean, corrupted = prompts(model.config)
    source = model.run(clean).logits
    neurons = [0, 3, 1] if "neuron" in over else None
    for metric in (metrics.logit_diff(0, 1), metrics.log_prob([3, 1]), readout, metrics.loss()):
        got = model.sweep(clean, corrupted, "logits", over, metric, keep_batch=True, neurons=neurons)
        changed = False
        for at in np.ndindex(got.values.shape[:-1]):
            where = dict(zip(over, at, strict=True))
            pos = [where["pos"]] if "pos" in where else list(range(POS))
            last = [neurons[where["neuron"]]] if neurons else list(range(model.config.d_vocab_out))
            change = edit.set("logits", source[:, pos][..., last], positions=pos, neurons=last)
            if isinstance(metric, metrics.loss):
                read = [] if pos == [POS - 1] else [change]  # nothing comes after the last
                want = model.loss(corrupted, edits=read).mean(axis=1)
            else:
                want = np.asarray(metric(model.run(corrupted, edits=[change]).logits))
            assert np.allclose(got.values[at], want, rtol=1e-11, atol=1e-12), (metric, where)
            changed = changed or not np.allclose(want, got.baseline)
        assert changed


@pytest.mark.parametrize("metric", [metrics.logit_diff(0, 1), metrics.loss()])
def test_attribution_of_logits(model: clew.Model, metric: metrics.Metric) -> None:
    """Of what is linear in the logits the estimate is exact; of the loss, the slope times the difference."""
    clean, corrupted = prompts(model.config)
    for over in (("pos",), ("pos", "neuron")):
        got = model.sweep(clean, corrupted, "logits", over, metric, keep_batch=True, method="attribution")
        if metric.wants_loss:
            logits, other = model.run(corrupted).logits, model.run(clean).logits
            slope = np.exp(log_softmax(logits))[:, :-1]
            np.put_along_axis(
                slope, corrupted[:, 1:, None], np.take_along_axis(slope, corrupted[:, 1:, None], -1) - 1, -1
            )
            want = np.moveaxis(slope * (other - logits)[:, :-1] / (POS - 1), 0, -1)
            want = np.concatenate([want, np.zeros((1, *want.shape[1:]))])
            want = want if "neuron" in over else want.sum(axis=1)
            assert np.allclose(got.values - got.baseline, want, atol=1e-12)
        else:
            want = model.sweep(clean, corrupted, "logits", over, metric, keep_batch=True).values
            assert np.allclose(got.values, want, rtol=1e-11)


def test_attribution_by_a_function(model: clew.Model) -> None:
    """A function gives the value and its gradient; the same estimate as that of the metric it stands for."""
    clean, corrupted = prompts(model.config)

    def difference(logits: Array) -> tuple[Array, Array]:
        assert logits.shape[1] == 1, "the last positions' logits"
        slope = np.zeros_like(logits)
        slope[:, 0, 3], slope[:, 0, 4] = 1, -1
        return logits[:, 0, 3] - logits[:, 0, 4], slope

    for site, over in (("z", ("layer", "head")), ("resid_pre", ("layer", "pos"))):
        given = (clean, corrupted, site, over)
        got = model.sweep(*given, difference, method="attribution", keep_batch=True)
        want = model.sweep(*given, metrics.logit_diff(3, 4), method="attribution", keep_batch=True)
        assert np.allclose(got.values, want.values, rtol=1e-12) and np.allclose(got.baseline, want.baseline)
        assert np.abs(got.effect).max() > 1e-6
    with pytest.raises(clew.ConfigError, match="gave ndarray: a metric of gradients"):
        model.sweep(clean, corrupted, metric=readout, method="attribution")
    with pytest.raises(clew.ShapeError, match="one number for each sequence"):
        model.sweep(clean, corrupted, metric=lambda x: (1.0, np.zeros_like(x)), method="attribution")


# ---- Metrics --------------------------------------------------------------------------------------------------------


def log_softmax(x: Array) -> Array:
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def test_metrics_against_their_definitions() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 7))
    last = logits[:, -1]
    assert np.allclose(metrics.logit_diff(2, 5)(logits), last[:, 2] - last[:, 5], rtol=1e-14)
    assert np.allclose(metrics.logit_diff([1, 2, 3], 5)(logits), last[[0, 1, 2], [1, 2, 3]] - last[:, 5], rtol=1e-14)
    assert np.allclose(metrics.log_prob([1, 2, 3])(logits), log_softmax(last)[[0, 1, 2], [1, 2, 3]], rtol=1e-13)
    other = np.random.default_rng(1).normal(size=(3, 7))
    p, q = log_softmax(other), log_softmax(last)
    assert np.allclose(metrics.kl(other)(logits), (np.exp(p) * (p - q)).sum(axis=-1), rtol=1e-12)
    assert np.allclose(
        metrics.kl(other)(logits[[2, 0]], [2, 0]), (np.exp(p) * (p - q)).sum(axis=-1)[[2, 0]], rtol=1e-12
    )


def test_kl_of_a_run_to_itself_is_zero(model: clew.Model) -> None:
    run = model.run([[1, 2, 3], [4, 5, 6]])
    ragged = model.run([[1, 2, 3], [4, 5]])
    assert np.abs(metrics.kl(run)(run.logits)).max() < 1e-14
    assert np.allclose(metrics.kl(ragged).log_p[1], log_softmax(ragged.logits[1, 1]))


@pytest.mark.parametrize(
    "make_metric",
    [
        lambda: metrics.logit_diff([3, 4], 9),
        lambda: metrics.log_prob(5),
        lambda: metrics.kl(np.eye(2, 31)),
        metrics.loss,
    ],
)
def test_every_metric_of_a_sweep(model: clew.Model, make_metric: Callable[[], metrics.Metric]) -> None:
    clean, corrupted = prompts(model.config)
    metric = make_metric()
    got = model.sweep(clean, corrupted, metric=metric, keep_batch=True)
    source = model.run(clean, capture="resid_pre")
    for layer, pos in np.ndindex(got.values.shape[:2]):
        change = [edit.set(("resid_pre", layer), source["resid_pre", layer][:, [pos]], positions=[pos])]
        if metric.wants_loss:
            want = model.loss(corrupted, edits=change, reduce="none").mean(axis=1)
        else:
            want = metric(model.run(corrupted, edits=change).logits)
        assert np.allclose(got.values[layer, pos], want, rtol=1e-10), (layer, pos)


# ---- Results --------------------------------------------------------------------------------------------------------


def test_averages_and_intervals(model: clew.Model) -> None:
    clean = random_tokens(model.config, 8, batch=7, pos=4)
    corrupted = clean.copy()
    corrupted[:, 1] = (corrupted[:, 1] + 3) % model.config.d_vocab
    got = model.sweep(clean, corrupted, metric=readout)
    assert got.values.shape == (2, 4) and got.per_example.shape == (2, 4, 7)
    assert np.allclose(got.values, got.per_example.mean(axis=-1))
    assert np.allclose(got.effect, got.values - got.baseline.mean())
    low, high = got.interval(0.9, n=4000, seed=1)
    assert (low <= got.values).all() and (got.values <= high).all()
    # the bootstrap's spread is that of a mean of seven
    expected = got.per_example.std(axis=-1) / np.sqrt(7) * 2 * 1.645
    changed = expected > 1e-6
    assert changed.any() and np.allclose((high - low)[changed], expected[changed], rtol=0.15)
    assert np.array_equal(got.interval(0.9, n=50, seed=3), got.interval(0.9, n=50, seed=3))
    assert "2 layer × 4 pos" in repr(got) and "7 examples" in repr(got)


def test_labels_are_tokens_where_there_is_one_text() -> None:
    model = clew.load("stories260K")
    got = model.sweep([1, 403, 407], [1, 300, 407], metric=metrics.logit_diff(3, 4))
    assert got.labels[0] == tuple(range(model.config.n_layers)) and len(got.labels[1]) == 3


# ---- Any list of edits ----------------------------------------------------------------------------------------------


def test_any_list_of_edits(model: clew.Model) -> None:
    _, tokens = prompts(model.config)

    def halve(array: Array, name: str) -> None:
        array *= 0.5

    variants: list[Any] = [
        edit.zero(("z", 1), heads=[0], positions=[2]),
        [edit.scale(("mlp_out", 0), 2.0), edit.zero(("attn_out", 1), positions=[-1])],
        edit.add(("resid_pre", 1), np.ones(model.config.d_model), batch=[1]),
        edit.call(("resid_mid", 0), halve),
        edit.set("hook_embed", 0.25, positions=[[1], [3]]),
        edit.zero("ln_final.hook_normalized", neurons=[1]),
        [],
    ]
    got = model.sweep(tokens, edits=variants, metric=readout, keep_batch=True)
    assert got.axes == ("variant",) and got.values.shape == (7, 2)
    for i, variant in enumerate(variants):
        changes = variant if isinstance(variant, list) else [variant]
        want = readout(model.run(tokens, edits=changes, logits="last").logits)
        assert np.allclose(got.values[i], want, rtol=1e-11), f"variant {i}"
    assert np.array_equal(got.values[6], got.baseline)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt_neox"])
@pytest.mark.parametrize("metric", [readout, metrics.loss()])
def test_variants_that_begin_at_other_blocks_join(name: str, metric: Any) -> None:
    """Their edits lie before, at and behind the blocks where others join them, and behind the last of these."""
    model, _ = make(dataclasses.replace(ZOO[name], n_layers=5))
    _, tokens = prompts(model.config)
    ones = np.ones(model.config.d_model)
    variants: list[list[edit.Edit]] = [
        [edit.zero(("z", 3), heads=[0])],
        [edit.add(("resid_pre", 0), ones), edit.add(("attn_out", 1), ones, positions=[-1]),
         edit.scale(("resid_post", 2), 1.5, batch=[1]), edit.add(("resid_pre", 3), 2 * ones),
         edit.zero(("mlp_out", 4), positions=[-1])],
        [edit.scale(("mlp_out", 3), 2.0), edit.zero("ln_final.hook_normalized", neurons=[1])],
        [edit.scale(("mlp_out", 1), 2.0, positions=[1]), edit.scale(("z", 2), 1.5)],
        [edit.add(("resid_pre", 1), ones, positions=[-1]), edit.zero(("z", 3), heads=[1])],
    ]  # fmt: skip
    got = model.sweep(tokens, edits=variants, metric=metric, keep_batch=True)
    for i, changes in enumerate(variants):
        if metric is readout:
            want = readout(model.run(tokens, edits=changes, logits="last").logits)
        else:
            want = model.loss(tokens, edits=changes).mean(axis=-1)
        assert np.allclose(got.values[i], want, rtol=1e-11), f"variant {i}"
        assert not np.allclose(got.values[i], got.baseline, rtol=1e-6), f"variant {i} changes nothing"


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_prompts_of_different_length(model: clew.Model) -> None:
    with pytest.raises(clew.ShapeError, match=r"\[3\] tokens, corrupted ones \[2\]"):
        model.sweep([1, 2, 3], [1, 2], metric=readout)
    with pytest.raises(clew.ShapeError, match=r"\[3, 2\] tokens, corrupted ones \[3\]"):
        model.sweep([[1, 2, 3], [1, 2]], [[1, 2, 3]], metric=readout)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"site": "resid_prx"}, clew.SiteError, "resid_pre"),
        ({"site": "*"}, clew.SiteError, "one kind of site"),
        ({"over": ("head",)}, clew.ConfigError, r"can be swept over \['layer', 'pos', 'neuron'\], not 'head'"),
        ({"over": ()}, clew.ConfigError, "at least one"),
        ({"over": ("pos", "pos")}, clew.ConfigError, "once"),
        ({"site": "hook_embed"}, clew.ConfigError, "not 'layer'"),
        ({"layers": [2]}, clew.ShapeError, "layer 2 of blocks.L.hook_resid_pre: there are 2"),
        ({"positions": [3]}, clew.ShapeError, "position 3"),
        ({"positions": []}, clew.ConfigError, "no variants"),
        ({"heads": [0]}, clew.ConfigError, "heads are chosen"),
        ({"heads": [1]}, clew.ConfigError, r"heads are chosen, but the sweep is over \['layer', 'pos'\]"),
        ({"metric": lambda x: (x[:, 0, 0], x)}, clew.ConfigError,
         r"a tuple of 2: \(value, gradient\) is for attribution and gradients"),
        ({"direction": "up"}, clew.ConfigError, "denoise"),
        ({"method": "guess"}, clew.ConfigError, "attribution"),
        ({"metric": None}, clew.ConfigError, "metric = None"),
        ({"metric": metrics.logit_diff}, clew.ConfigError, "call it"),
        ({"metric": metrics.logit_diff(31, 0)}, clew.TokenError, "31 has no logit: there are ids 0 to 30"),
        ({"metric": metrics.kl(np.zeros((1, 5)))}, clew.ShapeError, r"\[1, 5\]"),
        ({"metric": lambda logits: logits}, clew.ShapeError, "one number for each sequence"),
        ({"metric": metrics.log_prob([1, 2, 3]), "clean": [[1, 2, 3]] * 4, "corrupted": [[1, 4, 3]] * 4},
         clew.ShapeError, "tokens for 3 examples"),
        ({"corrupted": None}, clew.ConfigError, "two prompts"),
        ({"keep_batch": "no"}, clew.ConfigError, "keep_batch = 'no': True or False"),
        ({"edits": [[]], "corrupted": None, "keep_batch": 0}, clew.ConfigError, "keep_batch = 0: True or False"),
        ({"edits": []}, clew.ConfigError, "one prompt"),
        ({"edits": [], "corrupted": None}, clew.ConfigError, "no variants"),
    ],
)  # fmt: skip
def test_what_is_refused(model: clew.Model, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"clean": [1, 2, 3], "corrupted": [1, 4, 3], "metric": readout} | change
    with pytest.raises(error, match=match):
        model.sweep(given.pop("clean"), given.pop("corrupted"), **given)


def test_metrics_refuse_what_they_cannot_read() -> None:
    with pytest.raises(clew.TokenError, match="float64"):
        metrics.log_prob(1.5)
    with pytest.raises(clew.ShapeError, match=r"\[3\]"):
        metrics.log_prob(1)(np.zeros(3))
    with pytest.raises(clew.ConfigError, match=r"model\.loss"):
        metrics.loss()(np.zeros((1, 3)))
    for level, n in ((0.0, 10), (1.0, 10), (0.5, 0)):
        sweep = clew.load("stories260K").sweep([1, 2], [1, 3], metric=metrics.log_prob(0))
        with pytest.raises(clew.ConfigError, match="interval"):
            sweep.interval(level, n)


@pytest.mark.parametrize(
    ("ask", "error", "match"),
    [
        (lambda: metrics.kl([[0.0, 1.0]])([[0.0, 1.0, 2.0]]), clew.ShapeError, r"reference .* \[1, 2\], .* \[1, 3\]"),
        (lambda: metrics.kl([[0.0, 1.0]]).gradient([[0.0, 1.0, 2.0]]), clew.ShapeError, r"\[1, 2\], .* \[1, 3\]"),
        (lambda: metrics.kl(np.eye(2))([[0, 1]], [-1]), clew.ShapeError, "examples: -1, but they are counted from 0"),
        (lambda: metrics.log_prob([0, 1])([[0.0, 1.0]], [-1]), clew.ShapeError, "examples: -1, but they are counted"),
        (lambda: metrics.logit_diff([0, 1], [1, 0])([[0.0, 1.0]], [0.5]), clew.ShapeError, "1 rows, not float64"),
        (lambda: metrics.kl(np.eye(2))([[0, 1]], [0, 1]), clew.ShapeError, r"1 rows, not int64 \[2\]"),
        (lambda: metrics.logit_diff(np.uint64(2**63), 1), clew.TokenError, "token a: token 9223372036854775808 is out"),
        (lambda: metrics.log_prob([1, 2**64]), clew.TokenError, "token 18446744073709551616 is outside the vocabulary"),
        (lambda: metrics.logit_diff(5, 0).gradient([[1.0, 2.0]]), clew.TokenError, "token 5 has no logit"),
        (lambda: metrics.log_prob(5).gradient([[1.0, 2.0]]), clew.TokenError, "token 5 has no logit"),
    ],
)
def test_metrics_called_directly(ask: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ask()


def test_metrics_of_a_run_read_each_sequences_own_end(model: clew.Model) -> None:
    prompts: list[list[int]] = [[1, 2, 3], [4, 5]]
    run = model.run(prompts)
    for metric in (metrics.log_prob(3), metrics.logit_diff([3, 4], 5), metrics.kl(np.cos(np.ones((2, 31))))):
        ends = metric(np.stack([run.logits[0, 2], run.logits[1, 1]]))
        assert np.array_equal(metric(run), ends)
        assert np.allclose(metric(model.run(prompts, logits="last")), ends, rtol=1e-12)
    with pytest.raises(clew.SiteError, match="this run has no logits"):
        metrics.log_prob(3)(model.run(prompts, capture="z", logits=None))


def test_models_of_vectors_have_no_probabilities() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_vocab=20, d_out=3)
    model = clew.Model.from_config(config, dtype="float64")
    for metric, match in (
        (metrics.log_prob(0), r"log_prob\(0\): this model writes vectors, d_out = 3, and has no probabilities"),
        (metrics.kl(np.zeros((1, 3))), "kl: this model writes vectors, d_out = 3, and has no probabilities"),
        (metrics.loss(), "loss: a model with d_in = None, d_out = 3 predicts no next token"),
    ):
        for ask in (
            lambda m: model.sweep([1, 2, 1], [1, 1, 2], site="z", metric=m),
            lambda m: model.sweep([1, 2, 1], edits=[edit.zero("z")], metric=m),
            lambda m: model.path_patch([1, 2, 1], [1, 1, 2], metric=m),
            lambda m: model.gradients([1, 2, 1], m, wrt="z"),
        ):
            with pytest.raises(clew.ConfigError, match=match):
                ask(metric)
    change = model.sweep([1, 2, 1], [1, 1, 2], site="z", metric=metrics.logit_diff(0, 1))
    last = model.run([1, 1, 2]).logits[0, -1]
    assert np.allclose(change.baseline, last[0] - last[1])


def test_losses_of_edited_logits_name_tokens_without_one() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_vocab=23, d_vocab_out=9)
    model = clew.Model.from_config(config, dtype="float64")
    shift, loss = edit.add("logits", 0.1), metrics.loss()

    def inside(ask: Callable[[], object]) -> object:
        with model.edited([shift]):
            return ask()

    def patch(site: str) -> object:
        return model.sweep([1, 2, 11], [1, 3, 11], site=site, over="pos", metric=loss)

    for ask in (
        lambda: model.loss([1, 2, 11]),  # not edited: the core says it
        lambda: model.loss([1, 2, 11], edits=[shift]),
        lambda: patch("logits"),
        lambda: inside(lambda: patch("z")),
        lambda: inside(lambda: model.sweep([1, 2, 11], edits=[edit.zero("z")], metric=loss)),
    ):
        with pytest.raises(clew.TokenError, match="token 11 at position 2 of prompt 0 has no logit: there are 9"):
            ask()
    with pytest.raises(clew.TokenError, match="token 12 at position 1 of prompt 1 has no logit: there are 9"):
        model.loss([[20, 2, 3], [4, 12]], edits=[shift])  # the first is nobody's target
    assert np.allclose(model.loss([20, 2, 3], edits=[shift]), model.loss([20, 2, 3]))


def test_a_model_without_layers() -> None:
    model, _ = make(ZOO["gpt2"].replace(n_layers=0))
    for name in ("blocks.L.ln1.hook_scale", "blocks.L.attn.hook_z", "resid_pre"):
        with pytest.raises(clew.SiteError, match="no layers"):
            model.sweep([1, 2, 3], [1, 4, 3], name, ("pos",), readout)
        with pytest.raises(clew.SiteError, match="no layers"):
            model.run([1, 2, 3], capture=name)
        with pytest.raises(clew.SiteError, match="no layers"):
            model.run([1, 2, 3], edits=[edit.zero(name)])
        assert name not in model.sites()
    for name in ("hook_embed", "logits"):
        got = model.sweep([1, 2, 3], [1, 2, 4], name, "pos", readout)
        assert got.effect[2] != 0 and not got.effect[:2].any()


def test_sites_cover_every_kind() -> None:
    """The loop over the zoo reaches every site there is."""
    seen: set[Site] = set()
    for name in ("gpt2", "gemma3", "qwen3", "gpt_neox", "llama"):
        seen |= set(kinds(make(ZOO[name])[0]))
    assert seen == set(SITES)


# ---- Metrics in the core ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n, c in zoo().items() if c.d_in is None and c.d_out is None])
def test_metrics_read_in_the_core_equal_those_of_logits(name: str) -> None:
    config = zoo()[name]
    model, _ = make(config)
    tokens = random_tokens(config, 9, batch=3, pos=5)
    logits = model.run(tokens, logits="last").logits
    v = config.d_vocab_out
    reference = np.cos(np.arange(3.0 * v)).reshape(3, v)
    reference[1, 4 % v] = -np.inf if v > 1 else 0
    change = edit.scale("hook_embed", 1.25)
    other = model.run(tokens, logits="last", edits=[change]).logits
    for metric in (
        metrics.logit_diff([1 % v, 2 % v, v - 1], 3 % v),
        metrics.log_prob([0, v - 1, 5 % v]),
        metrics.log_prob(7 % v),
        metrics.kl(reference),
        metrics.kl(reference[:1]),
    ):
        got = model.sweep(tokens, edits=[change], metric=metric)
        assert np.abs(got.per_example[0] - metric(other)).max() <= 1e-12, metric
        assert np.abs(got.baseline - metric(logits)).max() <= 1e-12


def test_metrics_of_a_large_vocabulary_in_float32() -> None:
    """More blocks of the vocabulary than one, and a KL near zero, where rounding shows."""
    config = clew.ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_vocab=2500, tie_word_embeddings=True)
    model = clew.Model.from_config(config, seed=1)
    tokens = random_tokens(config, 3, batch=2, pos=4)
    clean = model.run(tokens, logits="last")
    change = edit.add("resid_post", 1e-3, neurons=[2])
    other = model.run(tokens, logits="last", edits=[change]).logits.astype(np.float64)
    for metric in (metrics.kl(clean), metrics.log_prob([2400, 1024]), metrics.logit_diff(1023, 1024)):
        got = model.sweep(tokens, edits=[change], metric=metric).per_example[0]
        assert np.abs(got - metric(other)).max() <= 1e-6, metric


def test_a_metric_of_edited_logits_sees_the_edit() -> None:
    model, _ = make(zoo()["gpt2"])
    tokens = random_tokens(model.config, 3, batch=1, pos=4)
    got = model.sweep(tokens, edits=[edit.set("logits", 2.0, neurons=[3])], metric=metrics.logit_diff(3, 5))
    plain = model.run(tokens, logits="last").logits[0, 0]
    assert got.per_example[0, 0] == pytest.approx(2.0 - plain[5], abs=1e-12)


# ---- Sweeps of an edited model ----------------------------------------------------------------------------------


def held_edits(model: clew.Model, n: int) -> list[edit.Edit]:
    """Of every kind, at sites before, at and behind what is swept; for some sequences, positions, heads, neurons."""
    config = model.config
    rng = np.random.default_rng(11)
    shape = (n, POS, config.d_model)
    out = [
        edit.add("hook_embed", rng.standard_normal(shape)),
        edit.scale(("resid_pre", 1), 1.3, positions=[-1]),
        edit.add(("resid_pre", 1), rng.standard_normal((n, 1, config.d_model)), positions=[2]),
        edit.zero(("z", 0), heads=[0], batch=[1]),
        edit.add(("resid_post", 0), rng.standard_normal(config.d_model), positions=np.array([[1], [3]])),
        edit.set(("attn_out", 1), rng.standard_normal(shape)[:1], batch=[0]),
        edit.scale(("pattern", 0), rng.random((n, config.n_heads, POS, POS)) + 0.5),
    ]
    return out


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2", "gpt_neox", "qwen3", "rms_pre"])
@pytest.mark.parametrize(
    ("site", "over"),
    [
        ("resid_pre", ("layer", "pos")),
        ("resid_post", ("layer", "pos")),
        ("z", ("layer", "head")),
        ("pattern", ("layer", "head")),
        ("hook_embed", ("pos",)),
        ("ln_final.hook_out", ("pos",)),
    ],
)
@pytest.mark.parametrize("metric", [readout, metrics.logit_diff(1, 2), metrics.loss()], ids=["f", "diff", "loss"])
def test_sweeps_of_an_edited_model_equal_edited_runs(name: str, site: str, over: tuple[str, ...], metric: Any) -> None:
    model, _ = make(ZOO[name])
    clean, corrupted = prompts(model.config)
    held = held_edits(model, 2)
    with model.edited(held):
        got = model.sweep(clean, corrupted, site=site, over=over, metric=metric)
        plain = metric if callable(metric) and not isinstance(metric, metrics.Metric) else None
        source = model.run(clean, capture="*")
        kind = model.sites().find(site)[0][0]
        for at in np.ndindex(got.per_example.shape[:-1]):
            where = dict(zip(over, at, strict=True))
            value = source[kind.full_name(where.get("layer", 0))]
            chosen: dict[str, Any] = {}
            if "pos" in where:
                chosen["positions"] = [where["pos"]]
                value = np.take(value, [where["pos"]], axis=kind.axes.index("pos"))
            if "head" in where:
                chosen["heads"] = [where["head"]]
                value = np.take(value, [where["head"]], axis=kind.axes.index("head"))
            change = edit.set(kind.full_name(where.get("layer", 0)), value, **chosen)
            if isinstance(metric, metrics.loss):
                want = model.loss(corrupted, edits=[change]).mean(axis=-1)
            else:
                logits = model.run(corrupted, edits=[change]).logits
                want = plain(logits) if plain else metric(logits)
            assert np.abs(got.per_example[at] - want).max() <= 1e-10 * max(1, np.abs(want).max()), where


def test_a_sweep_over_edits_of_an_edited_model() -> None:
    model, _ = make(ZOO["gpt2"])
    clean, _ = prompts(model.config)
    variants = [edit.zero(("mlp_out", 1), batch=[1]), edit.scale(("resid_mid", 0), 2.0, positions=[3])]
    with model.edited(held_edits(model, 2)):
        got = model.sweep(clean, edits=variants, metric=metrics.log_prob(3))
        for i, variant in enumerate(variants):
            want = metrics.log_prob(3)(model.run(clean, edits=[variant]).logits)
            assert np.abs(got.per_example[i] - want).max() <= 1e-11
    with (
        model.edited([edit.call("z", lambda x, name: None)]),
        pytest.raises(clew.ConfigError, match=r"inside model\.edited with edit\.call"),
    ):
        model.sweep(clean, edits=variants, metric=metrics.log_prob(3))
    with model.edited([edit.scale("logits", 0.5)]):
        got = model.sweep(clean, edits=variants, metric=metrics.loss())
        for i, variant in enumerate(variants):
            assert np.allclose(got.per_example[i], model.loss(clean, edits=[variant]).mean(axis=1), rtol=1e-12)
        assert np.allclose(got.baseline, model.loss(clean).mean(axis=1), rtol=1e-12)


def test_a_sweep_of_an_edited_model_that_is_not_causal() -> None:
    model, _ = make(ZOO["linear_full"])
    clean, corrupted = prompts(model.config)
    held = [edit.scale(("z", 0), 0.5, heads=[0]), edit.add(("resid_pre", 1), 0.25, batch=[1], positions=[2])]
    with model.edited(held):
        got = model.sweep(clean, corrupted, site="resid_mid", over=("layer", "pos"), metric=readout)
        source = model.run(clean, capture="resid_mid")
        for layer, pos in np.ndindex(got.values.shape):
            change = edit.set(("resid_mid", layer), source["resid_mid", layer][:, [pos]], positions=[pos])
            want = readout(model.run(corrupted, edits=[change]).logits)
            assert np.abs(got.per_example[layer, pos] - want).max() <= 1e-11


def test_paths_of_an_edited_model() -> None:
    """The same as the paths of a model whose weights do what the edit does."""
    config = ZOO["gpt2"]
    model, weights = make(config)
    clean, corrupted = prompts(config)
    other = dict(weights)
    other["blocks.0.attn.W_O"] = (
        weights["blocks.0.attn.W_O"] * np.array([0.5, *[1.0] * (config.n_heads - 1)])[:, None, None]
    )
    same = clew.Model(Checkpoint(config, other, np.dtype("f8")))
    with model.edited([edit.scale(("result", 0), 0.5, heads=[0])]):
        got = model.path_patch(clean, corrupted, metric=metrics.logit_diff(1, 2))
    want = same.path_patch(clean, corrupted, metric=metrics.logit_diff(1, 2))
    assert np.abs(got.per_example - want.per_example).max() <= 1e-11


def test_losses_of_edited_logits_and_of_one_token(model: clew.Model) -> None:
    tokens = [[1, 4, 2, 8, 5], [7, 1, 4]]
    variants: list[Any] = [
        edit.zero("logits"),
        edit.scale("logits", 0.5, positions=[[1], [0]]),
        [edit.zero(("z", 1), positions=[-1]), edit.add("logits", 1.0, neurons=[3])],
        edit.call("logits", lambda x, name: x * 0.25),
        edit.zero(("z", 0), heads=[1]),
    ]
    got = model.sweep(tokens, edits=variants, metric=metrics.loss())
    for i, variant in enumerate(variants):
        losses = model.loss(tokens, edits=variant)
        want = [losses[b, : len(t) - 1].mean() for b, t in enumerate(tokens)]
        assert np.allclose(got.per_example[i], want, rtol=1e-12), i
    for prompt in ([3], [[3, 4], [5]]):
        for call in (
            lambda p: model.sweep(p, p, metric=metrics.loss()),
            lambda p: model.sweep(p, p, metric=metrics.loss(), method="attribution"),
            lambda p: model.sweep(p, edits=[edit.zero("z")], metric=metrics.loss()),
            lambda p: model.path_patch(p, p, metric=metrics.loss()),
        ):
            with pytest.raises(clew.TokenError, match="prompts of two tokens or more"):
                call(prompt)


def test_metrics_about_another_number_of_examples() -> None:
    model, _ = make(ZOO["gpt2"])
    clean, corrupted = prompts(model.config)
    v = model.config.d_vocab_out
    for metric, words in (
        (metrics.log_prob([1, 2, 3]), "tokens for 3 examples, the batch has 2"),
        (metrics.kl(np.zeros((3, v))), "reference has 3 examples, the batch 2"),
    ):
        with pytest.raises(clew.ShapeError, match=words):
            model.sweep(clean, corrupted, metric=metric)
        with pytest.raises(clew.ShapeError, match=words):
            model.sweep(clean, edits=[edit.zero("z")], metric=metric)
        with pytest.raises(clew.ShapeError, match=words):
            model.path_patch(clean, corrupted, metric=metric)
        with pytest.raises(clew.ShapeError, match=words):
            model.gradients(clean, metric)
    unknown = metrics.kl(np.full((1, v), np.nan))
    assert np.isnan(model.sweep(clean, edits=[edit.zero("z")], metric=unknown).per_example).all()
    for chosen in ([0.5], [True], np.array([1.0])):
        with pytest.raises(clew.ShapeError, match="layers of blocks.L.hook_resid_pre must be integers, not"):
            model.sweep(clean, corrupted, metric=metrics.log_prob(1), layers=chosen)
    by_range = model.sweep(clean, corrupted, metric=metrics.log_prob(1), layers=range(1), positions=(i for i in [2, 1]))
    assert by_range.labels == ((0,), (2, 1))


# ---- Models of vectors ----------------------------------------------------------------------------------------------

VECTORS = {name: c for name, c in vector_zoo().items() if c.n_layers and c.d_in is not None}


def first_output(logits: Array) -> Array:
    return np.asarray(logits)[:, -1, 0]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    ("site", "over"), [("resid_pre", ("layer", "pos")), ("z", ("layer", "head")), ("hook_embed", ("pos",))]
)
def test_sweeps_of_models_of_vectors_equal_the_loop(name: str, site: str, over: tuple[Any, ...]) -> None:
    model, _ = make(VECTORS[name])
    clean = random_inputs(model.config, 4, batch=2, pos=POS)
    corrupted = clean.copy()
    corrupted[0, 2:4] += 1
    corrupted[1, 3, 0] -= 2
    kind = next(s for s in kinds(model) if s.short == site.removeprefix("hook_"))
    got = model.sweep(clean, corrupted, site, over, readout, keep_batch=True)
    want = one_by_one(model, clean, corrupted, kind, over, got.values.shape[:-1])
    assert np.abs(got.values - want).max() <= 1e-11 * np.abs(want).max()
    assert got.labels[0] == tuple(range(len(got.labels[0])))
    variants: list[Any] = [edit.zero(("z", 1), heads=[0]), edit.scale("hook_embed", 2.0, positions=[-2])]
    values = model.sweep(clean, edits=variants, metric=readout).per_example
    for row, variant in zip(values, variants, strict=True):
        assert np.allclose(row, readout(model.run(clean, edits=[variant]).logits), rtol=1e-11)
    ragged = [[x[:n] for x, n in zip(two, (POS, 4), strict=True)] for two in (clean, corrupted)]
    got = model.sweep(*ragged, site, over, first_output, keep_batch=True)
    for i in range(2):
        alone = model.sweep(ragged[0][i], ragged[1][i], site, over, first_output)
        here = got.values[..., i]
        assert np.allclose(here[..., : alone.values.shape[-1]] if over[-1] == "pos" else here, alone.values, rtol=1e-11)


def test_attribution_of_a_model_of_vectors() -> None:
    model, _ = make(VECTORS["vectors"])
    clean = random_inputs(model.config, 4, batch=2, pos=POS)
    corrupted = clean.copy()
    corrupted[:, 2] += 1e-5

    def with_slope(logits: Array) -> tuple[Array, Array]:
        slope = np.zeros_like(logits)
        slope[:, -1, 0] = 1
        return logits[:, -1, 0], slope

    patched = model.sweep(clean, corrupted, "z", ("layer", "head"), first_output).effect
    estimated = model.sweep(clean, corrupted, "z", ("layer", "head"), with_slope, method="attribution").effect
    assert np.abs(patched).max() > 1e-9 and np.abs(estimated - patched).max() < 1e-3 * np.abs(patched).max()
    with pytest.raises(clew.ConfigError, match="predicts no next token"):
        model.sweep(clean, corrupted, metric=metrics.loss())


def test_the_core_checks_what_a_metric_reads() -> None:
    from clew import _core

    model, _ = make(ZOO["gpt2"])
    nothing = np.zeros((0, 2), np.int32)
    plan = _core.Plan(model._core, np.array([2], np.int32), nothing, None, -1, -1, False, 6)
    ids, picks = np.array([1, 2], np.int32), np.zeros((1, 2), np.int32)
    for wrong in (np.zeros((2, 2), np.int32), picks.astype(np.int64), [0, 0]):
        with pytest.raises(ValueError, match=r"a metric's tokens must be int32 \[1, 2\]"):
            plan.run(ids, None, (), None, wrong, None)
    for wrong in (np.zeros((1, 3)), np.zeros((1, model.config.d_vocab_out), np.float32)):
        with pytest.raises(ValueError, match="a metric's reference must be float64"):
            plan.run(ids, None, (), None, picks, wrong)
