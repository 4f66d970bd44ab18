"""Every site of every architecture against the NumPy float64 twin, and the identities between sites."""

from __future__ import annotations

from typing import Any

import clew
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import assert_close, make, relative_error, with_positions
from twin import activation, soft_cap, softmax, twin, visible
from zoo import random_tokens, random_weights, zoo

ZOO = zoo()
EXACT = 1e-12  # float64 round-off; largest seen 7e-15

# one row; few rows; more queries than one block of 64; two blocks and a rest
SHAPES = [(1, 1), (3, 2), (1, 70), (2, 130)]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_every_site_equals_the_twin(name: str, shape: tuple[int, int]) -> None:
    config = with_positions(ZOO[name], shape[1])
    model, weights = make(config)
    tokens = random_tokens(config, 5, *shape)
    want = twin(config, weights, tokens)
    everything = model.run(tokens, capture="*")
    assert set(everything) == set(want) == set(model.sites())
    assert_close(everything, want, EXACT)
    # attention streams where nobody looks at the pattern, and last positions take a way of their own
    seen = [s for s in want if not s.endswith(("hook_attn_scores", "hook_pattern", "logits"))]
    assert_close(model.run(tokens, capture=seen), want, EXACT, seen)
    assert relative_error(model.run(tokens).logits, want["logits"]) <= EXACT
    assert relative_error(model.run(tokens, logits="last").logits, want["logits"][:, -1:]) <= EXACT


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "gemma2",
        "mistral",
        "llama3",
        "linear_causal_exclude_self",
        "linear_full",
        "linear_full_exclude_last",
        "linear_window",
        "gptj",
    ],
)
def test_prompts_longer_than_a_block_of_keys(name: str) -> None:
    config = with_positions(ZOO[name], 600).replace(n_layers=1, attn_types=None)
    if config.window_size:
        config = config.replace(window_size=550)  # two blocks of keys, and the first is not the sequence's first
    model, weights = make(config)
    tokens = random_tokens(config, 6, 1, 600)
    want = twin(config, weights, tokens)
    assert_close(model.run(tokens, capture="*"), want, EXACT)
    assert_close(model.run(tokens, capture=["z", "attn_out", "resid_post"]), want, EXACT, ["blocks.0.attn.hook_z"])
    assert relative_error(model.run(tokens).logits, want["logits"]) <= EXACT
    assert relative_error(model.run(tokens, logits="last").logits, want["logits"][:, -1:]) <= EXACT


@pytest.mark.parametrize("position", [511, 512, 513, 575, 576])
def test_blocks_of_keys_end_where_they_should(position: int) -> None:
    """The last query of a prompt attends to one key only, wherever that key lies among the blocks."""
    config = ZOO["no_positions"].replace(n_layers=1, d_vocab=3, d_model=8, d_head=4, d_mlp=4, n_ctx=600)
    weights = random_weights(config, 1)
    # the key of token 2 stands out for every query; the others' keys are equal
    weights["blocks.0.attn.W_Q"][:] = 0
    weights["blocks.0.attn.b_Q"][:] = 1
    model = clew.Model(_checkpoint(config, weights))
    tokens = np.zeros(577, np.int64)
    tokens[position] = 2
    run = model.run(tokens, capture=["z", "v", "k"])
    want = twin(config, weights, tokens[None])
    assert relative_error(run["z", 0], want["blocks.0.attn.hook_z"]) <= EXACT
    # causal: nobody before the token saw it
    assert np.ptp(run["z", 0][0, :position], axis=0).max() <= 1e-14


def _checkpoint(config: clew.ModelConfig, weights: dict[str, Any]) -> Any:
    from clew.loaders.checkpoint import Checkpoint

    return Checkpoint(config, weights, np.dtype(np.float64))


# ---- float32 --------------------------------------------------------------------------------------------------------


FLOAT32_FACTOR = 4  # 2 is enough today


def _rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("name", ZOO)
def test_float32_is_as_exact_as_float32_can_be(name: str) -> None:
    """Backward error: what float32 computes is what exact arithmetic would with weights changed by a few roundings.

    So the error of each site is held against how far the float64 twin moves when every weight is changed by about one
    rounding (2⁻²⁴, relative): products of tens of terms, a few one behind the other, give some multiple of it. The
    second term covers sites that weights do not reach (one visible key: the pattern is 1 whatever they are).
    """
    config = ZOO[name]
    model, weights = make(config, dtype=np.float32)
    tokens = random_tokens(config, 5, 2, 14)
    exact = {k: np.asarray(v, np.float64) for k, v in weights.items()}
    want = twin(config, exact, tokens)
    rng = np.random.default_rng(0)
    moved: dict[str, float] = dict.fromkeys(want, 0.0)
    for _ in range(3):
        nudged = {k: v * (1 + 2.0**-24 * rng.standard_normal(v.shape)) for k, v in exact.items()}
        if config.tie_word_embeddings:
            nudged["unembed.W_U"] = nudged["embed.W_E"].T
        for site, value in twin(config, nudged, tokens).items():
            finite = np.isfinite(value)
            moved[site] = max(moved[site], _rms(value[finite] - want[site][finite]))
    run = model.run(tokens, capture="*")
    assert run.logits.dtype == np.float32
    for site, value in want.items():
        finite = np.isfinite(value)
        error, size = _rms(run[site][finite] - value[finite]), _rms(value[finite])
        assert error <= FLOAT32_FACTOR * moved[site] + 2.0**-22 * size, f"{site}: {error:.2e}, {moved[site]:.2e}"
        assert np.array_equal(np.isfinite(run[site]), finite)


# ---- Identities of SITES --------------------------------------------------------------------------------------------


@pytest.fixture(params=ZOO, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[clew.ModelConfig, dict[str, Any], clew.Run]:
    config = ZOO[request.param]
    model, weights = make(config, seed=3)
    return config, weights, model.run(random_tokens(config, 4, 2, 13), capture="*")


def _blocks(config: clew.ModelConfig) -> list[str]:
    return [f"blocks.{layer}." for layer in range(config.n_layers)]


def test_the_residual_stream_is_a_sum(case: Any) -> None:
    config, _, run = case
    embed = run["hook_embed"] + (run["hook_pos_embed"] if "hook_pos_embed" in run else 0)
    first = "blocks.0.hook_resid_pre"
    if first in run:
        assert relative_error(run[first], embed) <= 1e-15
    for layer, at in enumerate(_blocks(config)):
        pre, post, attn = (run[f"{at}hook_{s}"] for s in ("resid_pre", "resid_post", "attn_out"))
        if config.attn_only:
            assert f"{at}hook_mlp_out" not in run
            assert relative_error(post, pre + attn) <= 1e-15
        elif config.parallel_attn_mlp:
            assert f"{at}hook_resid_mid" not in run
            assert relative_error(post, pre + attn + run[f"{at}hook_mlp_out"]) <= 1e-15
            assert np.array_equal(run[f"{at}hook_mlp_in"], pre)
        else:
            mid = run[f"{at}hook_resid_mid"]
            assert relative_error(mid, pre + attn) <= 1e-15
            assert relative_error(post, mid + run[f"{at}hook_mlp_out"]) <= 1e-15
            assert np.array_equal(run[f"{at}hook_mlp_in"], mid)
        if layer + 1 < config.n_layers:
            assert np.array_equal(post, run[f"blocks.{layer + 1}.hook_resid_pre"])
        assert np.array_equal(run[f"{at}hook_attn_in"], pre)
        for kind, heads in (("q", config.n_heads), ("k", config.n_key_value_heads), ("v", config.n_key_value_heads)):
            spread = np.broadcast_to(pre[:, :, None, :], (*pre.shape[:2], heads, config.d_model))
            assert np.array_equal(run[f"{at}hook_{kind}_input"], spread)


def test_norms_are_centred_scaled_and_affine(case: Any) -> None:
    config, weights, run = case
    norms = {name.removesuffix(".hook_scale") for name in run if name.endswith(".hook_scale")}
    if config.normalization_type is None:
        assert not norms
    for norm in norms:
        scale, normalized, out = (run[f"{norm}.hook_{s}"] for s in ("scale", "normalized", "out"))
        w, b = weights.get(f"{norm}.w", 1.0), weights.get(f"{norm}.b", 0.0)
        assert relative_error(out, normalized * w + b) <= 1e-14
        at = norm.rsplit(".", 1)[0]
        if norm.endswith("ln1"):
            x = run[f"{at}.hook_resid_pre"]
        elif norm.endswith("ln2"):
            x = run[f"{at}.hook_mlp_in"]
        elif norm == "ln_final":
            x = run[f"blocks.{config.n_layers - 1}.hook_resid_post"] if config.n_layers else run["hook_embed"]
            x = x + (run["hook_pos_embed"] if "hook_pos_embed" in run and not config.n_layers else 0)
        else:
            continue  # the branch before its post-norm is no site
        centred = x if config.rms else x - x.mean(axis=-1, keepdims=True)
        assert relative_error(scale, np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config.eps)) <= 1e-14
        assert relative_error(normalized * scale, centred) <= 1e-14


def test_patterns_are_distributions_over_what_is_visible(case: Any) -> None:
    config, _, run = case
    for layer, at in enumerate(_blocks(config)):
        scores, pattern = run[f"{at}attn.hook_attn_scores"], run[f"{at}attn.hook_pattern"]
        seen = visible(config, layer, scores.shape[-1])
        assert np.isneginf(scores[..., ~seen]).all() and np.isfinite(scores[..., seen]).all()
        assert (pattern[..., ~seen] == 0).all()
        if config.attention_kind == "softmax":
            assert (pattern >= 0).all()
            assert np.abs(pattern.sum(axis=-1) - 1).max() <= 1e-14
            assert relative_error(pattern, softmax(scores)) <= 1e-14
        if config.attn_scores_soft_cap:
            assert np.abs(scores[..., seen]).max() <= config.attn_scores_soft_cap
        group = config.n_heads // config.n_key_value_heads
        v = np.repeat(run[f"{at}attn.hook_v"], group, axis=2)
        assert relative_error(run[f"{at}attn.hook_z"], np.einsum("bhpk,bkhe->bphe", pattern, v)) <= 1e-14


def test_heads_add_up_to_what_attention_writes(case: Any) -> None:
    config, weights, run = case
    for at in _blocks(config):
        total = run[f"{at}attn.hook_result"].sum(axis=2) + weights.get(f"{at}attn.b_O", 0.0)
        if config.use_normalization_before_and_after:
            scale, normalized = run[f"{at}ln1_post.hook_scale"], run[f"{at}ln1_post.hook_normalized"]
            centred = total if config.rms else total - total.mean(axis=-1, keepdims=True)
            assert relative_error(scale * normalized, centred) <= 1e-13
            assert np.array_equal(run[f"{at}hook_attn_out"], run[f"{at}ln1_post.hook_out"])
        else:
            assert relative_error(run[f"{at}hook_attn_out"], total) <= 1e-13


def test_mlps_act_and_gate(case: Any) -> None:
    config, weights, run = case
    if config.attn_only:
        assert not [name for name in run if ".mlp." in name]
        return
    for at in _blocks(config):
        post = activation(config.act_fn, run[f"{at}mlp.hook_pre"])
        if config.gated_mlp:
            post = post * run[f"{at}mlp.hook_pre_linear"]
        else:
            assert f"{at}mlp.hook_pre_linear" not in run
        assert relative_error(run[f"{at}mlp.hook_post"], post) <= 1e-14
        out = run[f"{at}mlp.hook_post"] @ weights[f"{at}mlp.W_out"] + weights.get(f"{at}mlp.b_out", 0.0)
        if config.use_normalization_before_and_after:
            assert np.array_equal(run[f"{at}hook_mlp_out"], run[f"{at}ln2_post.hook_out"])
        else:
            assert relative_error(run[f"{at}hook_mlp_out"], out) <= 1e-14


def test_rotary_positions_turn_and_do_not_stretch(case: Any) -> None:
    config, _, run = case
    for at in _blocks(config):
        for kind in "qk":
            turned = f"{at}attn.hook_rot_{kind}"
            if config.positional_embedding_type != "rotary":
                assert turned not in run
                continue
            before = run[f"{at}attn.hook_{kind}_normed" if config.use_qk_norm else f"{at}attn.hook_{kind}"]
            assert np.array_equal(run[turned][:, 0], before[:, 0])
            assert np.array_equal(run[turned][..., config.rotary_dim :], before[..., config.rotary_dim :])
            lengths = (np.linalg.norm(x[..., : config.rotary_dim], axis=-1) for x in (run[turned], before))
            assert relative_error(*lengths) <= 1e-14
            assert not np.allclose(run[turned][:, 1:], before[:, 1:], atol=1e-3)


def test_logits_read_the_final_norm(case: Any) -> None:
    config, weights, run = case
    if "ln_final.hook_out" in run:
        x = run["ln_final.hook_out"]
    elif config.n_layers:
        x = run[f"blocks.{config.n_layers - 1}.hook_resid_post"]
    else:
        return
    logits = soft_cap(x @ weights["unembed.W_U"] + weights.get("unembed.b_U", 0.0), config.output_logits_soft_cap)
    assert relative_error(run.logits, logits) <= 1e-14
    assert run["logits"] is run.logits


# ---- Any configuration ----------------------------------------------------------------------------------------------


@st.composite
def configs(draw: st.DrawFn) -> clew.ModelConfig:
    """Any combination of forms that a configuration can hold, not only those of known families."""
    kv = draw(st.integers(1, 3))
    d_head = draw(st.integers(1, 9))
    positions = draw(st.sampled_from(["standard", "rotary", "none"] if d_head > 1 else ["standard", "none"]))
    linear = draw(st.integers(0, 4)) == 0
    parallel = draw(st.booleans())
    norm = draw(st.sampled_from(["LN", "RMS", "LNPre", "RMSPre", None]))
    fields: dict[str, Any] = dict(
        n_layers=draw(st.integers(0, 3)),
        d_model=draw(st.integers(1, 21)),
        n_key_value_heads=kv,
        n_heads=kv * draw(st.integers(1, 3)),
        d_head=d_head,
        d_mlp=draw(st.integers(1, 35)),
        n_ctx=80,
        d_vocab=draw(st.integers(1, 40)),
        act_fn=draw(st.sampled_from(["gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "relu2", "tanh", "none"])),
        normalization_type=norm,
        final_norm=draw(st.booleans()),
        positional_embedding_type=positions,
        pos_offset=draw(st.sampled_from([0, 2])),
        attn_only=draw(st.integers(0, 4)) == 0,
        gated_mlp=draw(st.booleans()),
        parallel_attn_mlp=parallel,
        shared_norm=parallel and draw(st.booleans()),
        use_normalization_before_and_after=norm is not None and not parallel and draw(st.booleans()),
        use_qk_norm=draw(st.booleans()),
        scale_attn_by_inverse_layer_idx=draw(st.booleans()),
        window_size=draw(st.sampled_from([None, None, 1, 3, 17])),
        attn_scores_soft_cap=draw(st.sampled_from([None, 2.0])),
        output_logits_soft_cap=draw(st.sampled_from([None, 3.0])),
        rotary_dim=2 * draw(st.integers(1, d_head // 2)) if positions == "rotary" else 0,
        rotary_adjacent_pairs=draw(st.booleans()),
        embed_scale=draw(st.sampled_from([1.0, 3.5])),
    )
    for bias in ("qkv_bias", "attn_out_bias", "mlp_bias", "norm_bias", "unembed_bias"):
        fields[bias] = draw(st.booleans())
    if linear:
        fields |= dict(
            attention_kind="linear",
            attention_dir=draw(st.sampled_from(["causal", "bidirectional"])),
            exclude_self=draw(st.booleans()),
            linear_attn_n=draw(st.sampled_from([None, 5])),
        )
        fields["exclude_last"] = fields["attention_dir"] == "bidirectional" and draw(st.booleans())
    return clew.ModelConfig(**fields)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=configs(), batch=st.integers(1, 3), pos=st.sampled_from([1, 2, 5, 16, 66]), seed=st.integers(0, 9))
def test_any_configuration_equals_the_twin(config: clew.ModelConfig, batch: int, pos: int, seed: int) -> None:
    model, weights = make(config, seed)
    tokens = random_tokens(config, seed, batch, pos)
    want = twin(config, weights, tokens)
    run = model.run(tokens, capture="*")
    assert set(run) == set(want)
    assert_close(run, want, 1e-11)
    assert relative_error(model.run(tokens).logits, want["logits"]) <= 1e-11
