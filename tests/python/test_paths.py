"""Path patching against its definition, written out as three runs with edits for every sender."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from numpy.typing import NDArray
from support import make
from zoo import random_tokens, zoo

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
        ({"metric": metrics.loss()}, clew.ConfigError, "last position"),
        ({"direction": "x"}, clew.ConfigError, "denoise"),
        ({"positions": [1]}, clew.ConfigError, "positions are chosen"),
    ],
)
def test_what_is_refused(model: clew.Model, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"metric": metrics.log_prob(0)} | change
    with pytest.raises(error, match=match):
        model.path_patch([1, 2, 3], [1, 4, 3], **given)
