"""The twin itself: against recorded Hugging Face results through the loaders, closed forms, identities of sites."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clew import ModelConfig
from clew.loaders import open_checkpoint
from twin import rotate, sigmoid, softmax, twin
from zoo import random_tokens, random_weights, weight_shapes, zoo

GOLDEN = sorted(p.parent for p in (Path(__file__).parent.parent / "golden").glob("*/reference.npz"))
ZOO = zoo()


def relative_error(got: Any, want: Any) -> float:
    """Largest difference over the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.fixture(params=ZOO, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[ModelConfig, dict[str, Any], Any, dict[str, Any]]:
    """Configuration, weights, tokens and sites of each model of the zoo."""
    config = ZOO[request.param]
    weights, tokens = random_weights(config, seed=3), random_tokens(config, seed=4)
    return config, weights, tokens, twin(config, weights, tokens)


# ---- Against Hugging Face -------------------------------------------------------------------------------------------


def test_golden_files_are_there() -> None:
    assert len(GOLDEN) == 19


@pytest.mark.parametrize("directory", GOLDEN, ids=lambda p: p.name)
def test_loaded_weights_in_the_twin_give_the_recorded_results(directory: Path) -> None:
    reference = np.load(directory / "reference.npz")
    checkpoint = open_checkpoint(directory, dtype="float64")
    sites = twin(checkpoint.config, checkpoint.weights, reference["tokens"])
    n_layers = checkpoint.config.n_layers
    hidden = [sites[f"blocks.{layer}.hook_resid_pre"] for layer in range(n_layers)] + [sites["ln_final.hook_out"]]
    patterns = [sites[f"blocks.{layer}.attn.hook_pattern"] for layer in range(n_layers)]
    assert relative_error(sites["logits"], reference["logits"]) < 1e-12
    for got, want in zip(hidden, reference["hidden_states"], strict=True):
        assert relative_error(got, want) < 1e-12
    for got, want in zip(patterns, reference["attentions"], strict=True):
        assert relative_error(got, want) < 1e-12


# ---- Identities of SITES --------------------------------------------------------------------------------------------


def test_sums_of_the_residual_stream(case: Any) -> None:
    config, weights, _, sites = case
    total = sites["hook_embed"] + sites.get("hook_pos_embed", 0)
    for layer in range(config.n_layers):
        own = {k.split(".", 2)[2]: v for k, v in sites.items() if k.startswith(f"blocks.{layer}.")}
        np.testing.assert_allclose(own["hook_resid_pre"], total, rtol=1e-13, atol=1e-13)
        np.testing.assert_array_equal(own["hook_attn_in"], own["hook_resid_pre"])
        for kind in "qkv":
            for head in range(own[f"hook_{kind}_input"].shape[2]):
                np.testing.assert_array_equal(own[f"hook_{kind}_input"][:, :, head], own["hook_resid_pre"])
        total = total + own["hook_attn_out"]
        assert ("hook_resid_mid" in own) == (not config.parallel_attn_mlp and not config.attn_only)
        if "hook_resid_mid" in own:
            np.testing.assert_allclose(own["hook_resid_mid"], total, rtol=1e-13, atol=1e-13)
            np.testing.assert_array_equal(own["hook_mlp_in"], own["hook_resid_mid"])
        assert ("hook_mlp_out" in own) == (not config.attn_only)
        total = total + own.get("hook_mlp_out", 0)
        np.testing.assert_allclose(own["hook_resid_post"], total, rtol=1e-13, atol=1e-13)
        attn_out = own["attn.hook_result"].sum(axis=2) + weights.get(f"blocks.{layer}.attn.b_O", 0)
        if not config.use_normalization_before_and_after:
            np.testing.assert_allclose(attn_out, own["hook_attn_out"], rtol=1e-12, atol=1e-12)
    normed = sites.get("ln_final.hook_out", total)
    logits = normed @ weights["unembed.W_U"] + weights.get("unembed.b_U", 0)
    if config.output_logits_soft_cap:
        logits = config.output_logits_soft_cap * np.tanh(logits / config.output_logits_soft_cap)
    np.testing.assert_allclose(sites["logits"], logits, rtol=1e-12, atol=1e-12)


def test_patterns(case: Any) -> None:
    config, _, _, sites = case
    for layer in range(config.n_layers):
        pattern, scores = (sites[f"blocks.{layer}.attn.hook_{name}"] for name in ("pattern", "attn_scores"))
        assert pattern.shape == (2, config.n_heads, 12, 12)
        assert (pattern[np.isneginf(scores)] == 0).all()
        offset = np.arange(12)[:, None] - np.arange(12)
        seen = np.ones((12, 12), dtype=bool) if config.attention_dir == "bidirectional" else offset >= 0
        if config.is_local(layer):
            seen &= offset < config.window_size
        if config.exclude_self:
            seen &= offset != 0
        if config.exclude_last:
            seen[:, -1] = False
        assert (np.isfinite(scores) == seen).all()
        if config.attention_kind == "softmax":
            np.testing.assert_allclose(pattern.sum(axis=-1), 1, rtol=1e-13)
        else:
            n = config.linear_attn_n or seen.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(pattern * n, np.where(seen, scores, 0), rtol=1e-13, atol=1e-15)


def test_norms(case: Any) -> None:
    config, weights, _, sites = case
    names = [k.removesuffix(".hook_scale") for k in sites if k.endswith(".hook_scale")]
    assert bool(names) == (config.normalization_type is not None)
    for name in names:
        scale, normalized, out = (sites[f"{name}.hook_{part}"] for part in ("scale", "normalized", "out"))
        assert scale.shape == (2, 12, 1)
        # a scale of √(m + ε) leaves the mean square m / (m + ε)
        mean_square = (normalized**2).mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(mean_square, 1 - config.eps / scale**2, rtol=1e-12)
        if not config.rms:
            np.testing.assert_allclose(normalized.mean(axis=-1), 0, atol=1e-13)
        np.testing.assert_allclose(out, normalized * weights.get(f"{name}.w", 1) + weights.get(f"{name}.b", 0))


def test_starting_at_a_layer_and_stopping_after_one(case: Any) -> None:
    config, weights, tokens, sites = case
    if config.n_layers < 2:
        return
    early = twin(config, weights, tokens, stop_after_layer=0)
    late = twin(config, weights, embeddings=early["blocks.0.hook_resid_post"], start_at_layer=1)
    assert not early.keys() & late.keys()
    assert early.keys() | late.keys() == sites.keys()
    for name, value in (early | late).items():
        np.testing.assert_array_equal(value, sites[name])
    again = twin(config, weights, embeddings=sites["hook_embed"])
    np.testing.assert_array_equal(again["logits"], sites["logits"])


# ---- The zoo can show an error --------------------------------------------------------------------------------------


def _largest_change(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Over all sites, the largest difference relative to that site's largest value; a site that comes or goes: inf."""
    if a.keys() != b.keys():
        return math.inf
    worst = 0.0
    for name, x in a.items():
        seen, seen_b = np.isfinite(x), np.isfinite(b[name])
        if (seen != seen_b).any():
            return math.inf
        worst = max(worst, float(np.abs(x[seen] - b[name][seen]).max() / np.abs(x[seen]).max()))
    return worst


def test_no_weight_can_be_dropped_unseen(case: Any) -> None:
    config, weights, tokens, sites = case
    assert weights.keys() == weight_shapes(config).keys()
    for name, value in weights.items():
        assert value.shape == weight_shapes(config)[name]
        without = weights | {name: np.ones_like(value) if name.endswith(".w") else np.zeros_like(value)}
        assert _largest_change(sites, twin(config, without, tokens)) > 0.01, name


def test_no_setting_can_be_ignored_unseen(case: Any) -> None:
    config, weights, tokens, sites = case
    changes: dict[str, Any] = {
        "scale_attn_by_inverse_layer_idx": False,
        "use_normalization_before_and_after": False,
        "parallel_attn_mlp": False,
        "use_qk_norm": False,
        "gated_mlp": False,
        "exclude_self": False,
        "exclude_last": False,
        "rotary_adjacent_pairs": False,
        "pos_offset": 0,
        "attn_scores_soft_cap": None,
        "output_logits_soft_cap": None,
        "rotary_base_local": None,
        "rope_scaling": None,
        "linear_attn_n": None,
        "embed_scale": 1.0,
        "attention_dir": "causal",
        "attention_kind": "softmax",
        "shared_norm": False,
    }
    for field, plain in changes.items():
        if getattr(config, field) != plain:
            only_linear = {
                "linear_attn_n": None,
                "exclude_self": False,
                "attention_dir": "causal",
                "exclude_last": False,
            }
            drops = (
                only_linear
                if field == "attention_kind"
                else {"exclude_last": False}
                if field == "attention_dir"
                else {}
            )
            changed = config.replace(**{field: plain}, **drops)
            other = weights
            if field == "shared_norm":  # then the MLP has a norm of its own, without weights here
                other = {k: v for k, v in weights.items() if ".ln2." not in k}
            assert _largest_change(sites, twin(changed, other, tokens)) > 0.01, field
    for field, value in {"eps": 0.1, "attn_scale": 2 * config.attn_scale, "rotary_base": 77.0}.items():
        used = {
            "eps": config.normalization_type is not None,
            "attn_scale": config.n_layers > 0,
            "rotary_base": config.positional_embedding_type == "rotary" and config.rotary_dim > 2,
        }[field]
        if used:
            assert _largest_change(sites, twin(config.replace(**{field: value}), weights, tokens)) > 0.001, field
    if config.window_size and config.window_size < 12:
        wider = config.replace(window_size=config.window_size + 1)
        assert _largest_change(sites, twin(wider, weights, tokens)) == math.inf


def test_attention_is_peaked() -> None:
    for name in ("gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi", "llama", "qwen3", "gemma3"):
        config = ZOO[name]
        sites = twin(config, random_weights(config, 0), random_tokens(config, 1))
        for layer in range(config.n_layers):
            assert sites[f"blocks.{layer}.attn.hook_pattern"][:, :, 6:].max(axis=-1).mean() > 0.35, (name, layer)


# ---- Closed forms ---------------------------------------------------------------------------------------------------


def test_equal_scores_average_the_visible_values() -> None:
    config = ZOO["window_3_learned"]
    weights = random_weights(config, 0)
    weights |= {name: np.zeros_like(w) for name, w in weights.items() if name.endswith(("W_Q", "b_Q"))}
    sites = twin(config, weights, random_tokens(config, 1))
    v, z = sites["blocks.1.attn.hook_v"], sites["blocks.1.attn.hook_z"]
    for i in range(12):
        np.testing.assert_allclose(z[:, i], v[:, max(0, i - 2) : i + 1].mean(axis=1), rtol=1e-12, atol=1e-13)


def test_linear_attention_is_one_gradient_step() -> None:
    # from w = 0, one step of size lr on (1 / 2i) Σ (w·x_j − y_j)² predicts lr / i · Σ y_j x_j · x_i
    rng = np.random.default_rng(0)
    d, lr, x = 5, 0.7, rng.standard_normal((1, 9, 5))
    y = x @ rng.standard_normal(d)
    config = ModelConfig(
        n_layers=1, d_model=d + 1, n_heads=1, d_head=d + 1, n_ctx=9, d_vocab=2, attn_only=True,
        normalization_type=None, positional_embedding_type="none", attention_kind="linear", exclude_self=True,
        use_attn_scale=False,
    )  # fmt: skip
    pick_x, pick_y = np.diag([1.0] * d + [0.0]), np.diag([0.0] * d + [lr])
    weights = {
        f"blocks.0.attn.W_{m}": w[None] for m, w in zip("QKVO", (pick_x, pick_x, pick_y, np.eye(6)), strict=True)
    }
    weights |= {"embed.W_E": np.zeros((2, 6)), "unembed.W_U": np.zeros((6, 2))}
    sites = twin(config, weights, embeddings=np.concatenate([x, y[..., None]], axis=-1))
    for i in range(9):
        w = lr / max(i, 1) * (y[0, :i, None] * x[0, :i]).sum(axis=0)
        np.testing.assert_allclose(sites["blocks.0.hook_attn_out"][0, i, d], w @ x[0, i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n, c in ZOO.items() if c.positional_embedding_type == "rotary"])
def test_rotary_turns_complex_numbers_and_is_relative(name: str) -> None:
    config = ZOO[name]
    rng = np.random.default_rng(0)
    x, half = np.tile(rng.standard_normal(config.d_head), (1, 10, 1, 1)), config.rotary_dim // 2
    for layer in range(config.n_layers):
        y = rotate(config, layer, x)
        row = 1 if config.rotary_base_local is not None and config.is_local(layer) else 0
        angle = np.arange(10)[:, None] * config.rotary_frequencies()[row]  # the engine's own table
        if config.rotary_adjacent_pairs:
            re, im = x[0, :, 0, : 2 * half : 2], x[0, :, 0, 1 : 2 * half : 2]
            got = y[0, :, 0, : 2 * half : 2] + 1j * y[0, :, 0, 1 : 2 * half : 2]
        else:
            re, im = x[0, :, 0, :half], x[0, :, 0, half : 2 * half]
            got = y[0, :, 0, :half] + 1j * y[0, :, 0, half : 2 * half]
        np.testing.assert_allclose(got, (re + 1j * im) * np.exp(1j * angle), rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(y[..., 2 * half :], x[..., 2 * half :])
        dots = y[0, :, 0] @ y[0, :, 0].T
        for offset in range(10):
            np.testing.assert_allclose(np.diag(dots, offset), dots[0, offset], rtol=1e-12, atol=1e-12)


def test_llama3_scaling_has_all_three_branches() -> None:
    config = ZOO["llama3"]
    ratio = config.rotary_frequencies()[0] / config.replace(rope_scaling=None).rotary_frequencies()[0]
    assert ratio[0] == 1
    assert 1 / 8 < ratio[1] < 1
    np.testing.assert_allclose(ratio[2:], 1 / 8, rtol=1e-13)


def test_parts_at_the_edges() -> None:
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_array_equal(softmax(np.array([[-np.inf, 1000.0], [-1000.0, -np.inf]])), [[0, 1], [1, 0]])
