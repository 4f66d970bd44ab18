"""Jacobian-vector products against finite differences, closed forms and the backward pass."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from clew import edit
from numpy.typing import NDArray
from support import make
from zoo import random_tokens, zoo

Array = NDArray[Any]
ZOO = zoo()
TOKENS = {name: c for name, c in ZOO.items() if c.d_in is None}
STEP = 1e-4
EXACT = 1e-6
LENGTHS = [7, 4]


def prompts_of(config: clew.ModelConfig) -> list[list[int]]:
    ids = random_tokens(config, 3, batch=1, pos=sum(LENGTHS))[0].tolist()
    return [ids[: LENGTHS[0]], ids[LENGTHS[0] :]]


def differences(model: clew.Model, prompts: Any, site: str, along: Array, names: list[str]) -> dict[str, Array]:
    """d/dε of every site when ε · along is added at one, from six points: the error is of order STEP⁶."""
    out: dict[str, Array] = {name: np.zeros(()) for name in names}
    for factor, t in ((3 / 4, 1), (-3 / 20, 2), (1 / 60, 3)):
        for sign in (1, -1):
            run = model.run(prompts, capture=names, edits=[edit.add(site, sign * t * STEP * along)])
            for name in names:
                value = run[name]
                value = np.where(np.isneginf(value), 0, value)  # what a mask hides does not move
                out[name] = out[name] + sign * factor * value / STEP
    return out


@pytest.mark.parametrize("name", TOKENS)
def test_every_site_of_every_architecture(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    prompts = prompts_of(config)
    names = list(model.sites())
    assert "logits" in names
    plain = model.run(prompts, capture=names)
    rng = np.random.default_rng(4)
    for full in [n for n in model.sites() if not n.startswith("blocks.") or n.startswith("blocks.0.")]:
        if full == "logits":
            continue
        along = rng.standard_normal(plain[full].shape)
        along[np.isneginf(plain[full])] = 0
        if "key_pos" in model.sites().find(full)[0][0].axes:
            along[1, ..., LENGTHS[1] :] = 0  # no such keys
        along /= np.linalg.norm(along)
        got = model.jvp(prompts, {full: along}, of=names)
        want = differences(model, prompts, full, along, names)
        for other in names:
            scale = max(float(np.abs(want[other]).max()), 1e-3)
            assert np.abs(got[other] - want[other]).max() <= EXACT * scale, f"d {other} by {full}"


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "llama3", "linear_full", "linear_full_exclude_last"])
def test_is_the_transpose_of_the_gradient(name: str) -> None:
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 8, batch=2, pos=6)
    rng = np.random.default_rng(0)
    to, t = rng.standard_normal((2, 6, config.d_vocab_out)), rng.standard_normal((2, 6, config.d_model))
    back = model.gradients(tokens, lambda x: ((x * to).sum(axis=(1, 2)), to), wrt=[("resid_pre", 1)])
    ahead = model.jvp(tokens, {("resid_pre", 1): t}, of="logits")
    a, b = float((back["resid_pre", 1] * t).sum()), float((ahead["logits"] * to).sum())
    assert abs(a - b) <= 1e-11 * max(abs(a), 1)


def test_final_norm_in_closed_form() -> None:
    model, weights = make(ZOO["gpt2"])
    x = model.run([1, 2, 3], capture=("resid_post", -1))["resid_post", -1]
    t = np.random.default_rng(1).standard_normal(x.shape)
    centred, d = x - x.mean(-1, keepdims=True), x.shape[-1]
    s = np.sqrt((centred**2).mean(-1, keepdims=True) + model.config.eps)
    moved = t - t.mean(-1, keepdims=True)
    want = weights["ln_final.w"] * (moved - centred * (centred * moved).sum(-1, keepdims=True) / (d * s**2)) / s
    last = model.config.n_layers - 1
    got = model.jvp([1, 2, 3], {("resid_post", last): t}, of="ln_final.hook_out")
    assert np.abs(next(iter(got.values())) - want).max() <= 1e-13


def test_a_block_on_its_own_and_selected_parts() -> None:
    model, _ = make(ZOO["llama3"])
    tokens = random_tokens(model.config, 2, batch=2, pos=5)
    resid = model.run(tokens, capture=("resid_pre", 1))["resid_pre", 1]
    t = np.random.default_rng(2).standard_normal(resid.shape)
    whole = model.jvp(tokens, {("resid_pre", 1): t}, of=("resid_post", 1))["resid_post", 1]
    alone = model.jvp(None, {("resid_pre", 1): t}, of=("resid_post", 1), embeddings=resid, start_at_layer=1)
    assert np.abs(alone["resid_post", 1] - whole).max() <= 1e-13
    at = model.jvp(tokens, edit.add(("resid_pre", 1), t[0, 2], batch=[0], positions=[2]), of=("resid_post", 1))
    alone_t = np.zeros_like(t)
    alone_t[0, 2] = t[0, 2]
    same = model.jvp(tokens, {("resid_pre", 1): alone_t}, of=("resid_post", 1))
    assert np.array_equal(at["resid_post", 1], same["resid_post", 1])
    assert not at["resid_post", 1][1].any() and not at["resid_post", 1][0, :2].any()
    both = model.jvp(tokens, [edit.add(("resid_pre", 1), t), edit.add(("z", 1), 1.0, heads=[0])], of=("resid_post", 1))
    z = model.jvp(tokens, edit.add(("z", 1), 1.0, heads=[0]), of=("resid_post", 1))
    assert np.abs(both["resid_post", 1] - whole - z["resid_post", 1]).max() <= 1e-12
    assert not model.jvp(tokens, {("resid_pre", 1): t}, of=("resid_post", 0))["resid_post", 0].any()


def test_along_other_edits() -> None:
    model, _ = make(ZOO["gpt2"])
    tokens = random_tokens(model.config, 2, batch=1, pos=5)
    t = np.random.default_rng(2).standard_normal((1, 5, model.config.d_model))
    held = [edit.scale(("mlp_out", 0), 0.5), edit.zero(("z", 1), heads=[1]), edit.add(("resid_mid", 0), 2.0)]
    got = model.jvp(tokens, {("resid_pre", 0): t}, of=["z", "logits"], edits=held)
    with model.edited(held):
        same = model.jvp(tokens, {("resid_pre", 0): t}, of=["z", "logits"])
    assert np.array_equal(got["logits"], same["logits"])
    ahead, behind = (model.run(tokens, edits=[*held, edit.add(("resid_pre", 0), e * t)]).logits for e in (1e-6, -1e-6))
    assert np.abs((ahead - behind) / 2e-6 - got["logits"]).max() <= 1e-7
    assert not got["z", 1][:, :, 1].any() and got["z", 1][:, :, 0].any()


def test_float32_and_threads() -> None:
    model, _ = make(ZOO["gpt2"])
    small = clew.Model.from_config(ZOO["gpt2"], seed=3)
    t = np.ones(small.config.d_model)
    tokens = random_tokens(small.config, 2, batch=3, pos=9)
    clew.set_num_threads(1)
    one = small.jvp(tokens, {("resid_pre", 0): t}, of="logits")["logits"]
    clew.set_num_threads(2)
    assert one.dtype == np.float32 and np.array_equal(
        small.jvp(tokens, {("resid_pre", 0): t}, of="logits")["logits"], one
    )
    assert model.jvp(tokens, {("resid_pre", 0): t}, of="logits")["logits"].dtype == np.float64


def test_refuses() -> None:
    model, _ = make(ZOO["gpt2"])
    push = {("resid_pre", 0): 1.0}
    with pytest.raises(clew.ConfigError, match="along what"):
        model.jvp([1, 2], [])
    with pytest.raises(clew.ConfigError, match=r"edit\.add or \{site: array\}, not edit\.zero"):
        model.jvp([1, 2], edit.zero("z"))
    with pytest.raises(clew.ConfigError, match="not 'resid_pre'"):
        model.jvp([1, 2], "resid_pre")  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match="start_at_layer = 9"):
        model.jvp(None, push, embeddings=np.zeros((1, 2, model.config.d_model)), start_at_layer=9)
    with pytest.raises(clew.SiteError, match="resid_pr"):
        model.jvp([1, 2], {"resid_pr": 1.0})
    with pytest.raises(clew.SiteError, match="resid_posst"):
        model.jvp([1, 2], push, of="resid_posst")
    with pytest.raises(clew.SiteError, match="jvp of what"):
        model.jvp([1, 2], push, of=[])
    with pytest.raises(clew.SiteError, match="logits"):
        model.jvp([1, 2], {"logits": 1.0}, of="logits")
    with pytest.raises(clew.ShapeError, match=r"\[3\].*\[1, 2, "):
        model.jvp([1, 2], {("resid_pre", 0): np.ones(3)})
    with pytest.raises(clew.UnsupportedModelError, match="Python function"):
        model.jvp([1, 2], push, edits=[edit.call(("resid_mid", 0), lambda x, name: None)])
    assert model.jvp([1, 2], push)["resid_post", 0].shape == (1, 2, model.config.d_model)
