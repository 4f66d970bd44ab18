"""Site by site against TransformerLens: the classic HookedTransformer (versions 2 and 3) and the bridge (3 and 4).

Both in float64. Where a name means something else there, the test says so and compares with what it means.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("transformer_lens")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import clew  # noqa: E402
from hf_models import save, tokens  # noqa: E402
from lifted import lifted  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

MAJOR = int(importlib.metadata.version("transformer_lens").split(".")[0])

classic = pytest.mark.skipif(MAJOR > 3, reason="TransformerLens 4 has no HookedTransformer: install transformer_lens<4")
bridge = pytest.mark.skipif(MAJOR < 3, reason="TransformerLens 2 has no bridge: install transformer_lens>=3")


def relative_error(got: Any, want: Any, name: str = "") -> float:
    """Largest difference over the largest value, where both are finite; infinities must coincide."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, (name, got.shape, want.shape)
    finite = np.isfinite(want)
    assert (finite == np.isfinite(got)).all(), name
    return float(np.abs(got[finite] - want[finite]).max() / np.abs(want[finite]).max())


# ---- The classic library ---------------------------------------------------------------------------------------

BASE: dict[str, Any] = dict(n_layers=2, d_model=24, n_heads=3, d_head=8, n_ctx=20, d_vocab=31, act_fn="gelu_new")
ROTARY: dict[str, Any] = dict(positional_embedding_type="rotary", rotary_dim=8)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "odd_sizes": dict(d_model=13, n_heads=1, d_head=5, d_vocab=7, d_mlp=9, act_fn="relu"),
    "folded": dict(normalization_type="LNPre"),
    "no_norm": dict(normalization_type=None, act_fn="gelu"),
    "attn_only": dict(attn_only=True),
    "inverse_layer": dict(scale_attn_by_inverse_layer_idx=True),
    "local": dict(use_local_attn=True, attn_types=["global", "local"], window_size=4, use_attn_scale=False),
    "parallel_adjacent": dict(**ROTARY | dict(rotary_dim=4), parallel_attn_mlp=True, rotary_adjacent_pairs=True),
    "partial_rotary": dict(**ROTARY | dict(rotary_dim=2)),
    "llama": dict(**ROTARY, normalization_type="RMS", gated_mlp=True, act_fn="silu", final_rms=True),
    "folded_rms": dict(**ROTARY, normalization_type="RMSPre", gated_mlp=True, act_fn="silu"),
    "llama3": dict(
        **ROTARY, normalization_type="RMS", gated_mlp=True, act_fn="silu", use_NTK_by_parts_rope=True,
        NTK_original_ctx_len=100,
    ),
    "grouped": dict(**ROTARY, normalization_type="RMS", n_heads=6, n_key_value_heads=2),
    "query_key_norm": dict(**ROTARY, normalization_type="RMS", use_qk_norm=True, n_key_value_heads=1),
    "gemma": dict(
        **ROTARY, normalization_type="RMS", gated_mlp=True, use_normalization_before_and_after=True,
        attn_scores_soft_cap=3.0, output_logits_soft_cap=4.0, attn_scale=2.0, use_local_attn=True, window_size=5,
        attn_types=["local", "global"],
    ),
}  # fmt: skip


def _write_classic(directory: Path, changes: dict[str, Any], capture_inputs: bool) -> Any:
    """A random HookedTransformer, and its state and configuration as files."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(**BASE | changes, dtype=torch.float64, device="cpu", seed=0)
    model = HookedTransformer(config)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            n = rng.standard_normal(tuple(p.shape))
            last = name.rsplit(".", 1)[-1].removeprefix("_")
            if last == "w":
                n = 1 + 0.25 * n
            elif last.startswith("b"):
                n = 0.3 * n
            elif last not in ("W_E", "W_pos"):
                n = n * (1.6 if last in ("W_Q", "W_K") else 1.0) * p.shape[-2] ** -0.5
            p.copy_(torch.from_numpy(n))
    if changes.get("gated_mlp"):
        # added behind the product there, to the linear branch here: see test_bias_of_a_gated_mlp
        with torch.no_grad():
            for block in model.blocks:
                block.mlp.b_in.zero_()
    directory.mkdir(exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    model.set_use_attn_result(True)
    if capture_inputs:
        if not config.attn_only:
            model.set_use_hook_mlp_in(True)
        model.set_use_split_qkv_input(True)
    return model


@classic
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capture_inputs", [False, True], ids=["plain", "split inputs"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_site_of_the_classic_library(name: str, capture_inputs: bool, tmp_path: Path) -> None:
    ids = np.random.default_rng(2).integers(0, (BASE | CONFIGS[name])["d_vocab"], (2, 12))
    with lifted(), torch.no_grad():  # its llama3 frequencies pass through float32 otherwise
        theirs = _write_classic(tmp_path, CONFIGS[name], capture_inputs)
        logits, cache = theirs.run_with_cache(torch.from_numpy(ids))
    model = clew.load(tmp_path)
    assert model.dtype == np.float64
    run = model.run(ids, capture="*")
    assert relative_error(run.logits, logits) < 1e-10

    n_heads = theirs.cfg.n_heads
    compared = set()
    for site, value in cache.items():
        if ".q_norm." in site or ".k_norm." in site:
            continue  # the inside of the query and key norms, which here are hook_q_normed and hook_k_normed
        if site == "unembed.hook_in":  # version 3
            site = "ln_final.hook_out" if theirs.cfg.normalization_type else "blocks.1.hook_resid_post"
        elif site == "unembed.hook_out":  # before the soft-cap there
            site, cap = "logits", theirs.cfg.output_logits_soft_cap
            value = cap * torch.tanh(value / cap) if cap > 0 else value
        want = value.numpy()
        name_here, got = site, run[site]
        if MAJOR < 3 and site.endswith("hook_normalized") and theirs.cfg.normalization_type == "LN":
            # version 2: of LayerNorm the output, affine part included; of RMSNorm before it
            name_here = site.replace("hook_normalized", "hook_out")
            got = run[name_here]
        if capture_inputs and "ln1.hook_" in site:
            # with split inputs the norm runs once per head: every head's is the same, query, key and value in turn
            assert want.shape[2] in (n_heads, theirs.cfg.n_key_value_heads)
            want = want[:, :, 0]
        assert relative_error(got, want, site) < 1e-10, site
        compared.add(name_here)
    ours_only = {site.split(".", 2)[2] if site.startswith("blocks.") else site for site in run if site not in compared}
    expected = {"logits", "hook_attn_in", "ln1.hook_out", "ln2.hook_out", "ln_final.hook_out"}
    expected |= {f"{n}.hook_normalized" for n in ("ln1", "ln2", "ln_final")}
    expected |= {f"{n}.hook_{part}" for n in ("ln1_post", "ln2_post") for part in ("out", "normalized")}
    expected |= {"attn.hook_q_normed", "attn.hook_k_normed"}
    if not capture_inputs:
        expected |= {"hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in"}
    assert ours_only <= expected


@classic
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bias_of_a_gated_mlp(tmp_path: Path) -> None:
    # theirs: post = act(gate) · linear + b_in; here b_in is the linear branch's, so the loader moves it into b_out
    ids = np.random.default_rng(2).integers(0, 31, (2, 12))
    theirs = _write_classic(tmp_path, CONFIGS["llama"], False)
    with torch.no_grad():
        for block in theirs.blocks:
            block.mlp.b_in.copy_(torch.linspace(-0.5, 0.7, theirs.cfg.d_mlp))
        save_file({k: v.contiguous().clone() for k, v in theirs.state_dict().items()}, tmp_path / "model.safetensors")
        logits, cache = theirs.run_with_cache(torch.from_numpy(ids))
    run = clew.load(tmp_path).run(ids, capture=["mlp_out", "blocks.*.mlp.hook_post"])
    assert relative_error(run.logits, logits) < 1e-10
    assert relative_error(run["mlp_out", 1], cache["blocks.1.hook_mlp_out"]) < 1e-10
    b_in = theirs.blocks[1].mlp.b_in.detach()
    assert relative_error(run["blocks.1.mlp.hook_post"], cache["blocks.1.mlp.hook_post"] - b_in) < 1e-10


# ---- The bridge ------------------------------------------------------------------------------------------------

# hook_attn_scores is there what its own module happens to have before scaling or masking
_UNLIKE_SCORES = ("gptj", "gpt_neo", "opt")


@bridge
@pytest.mark.parametrize(
    "name",
    ["gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"],
)
def test_sites_of_the_bridge(name: str, tmp_path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    save(name, 0, tmp_path)
    ids = tokens(name, 0)
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, 61)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<s>")), eos_token="</s>"
    )
    with lifted(), torch.no_grad():
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager"
        )
        theirs = TransformerBridge.boot_transformers(
            str(tmp_path), hf_model=hf, dtype=torch.float64, tokenizer=tokenizer
        )
        logits, cache = theirs.run_with_cache(torch.from_numpy(ids))
    run = clew.load(tmp_path, dtype="float64").run(ids, capture="*")

    # its attention casts the softmax to float32 on most architectures: weights err by up to 2⁻²⁴ = 6e-8 relative,
    # and up to six layers of peaked attention carry that on
    limit = 3e-6
    assert relative_error(run.logits, logits) < limit
    compared = 0
    for site, value in cache.items():
        if site not in run or (site.endswith("hook_attn_scores") and name in _UNLIKE_SCORES):
            continue
        want = value.numpy()
        if site.endswith(("hook_q_normed", "hook_k_normed")):
            want = want.transpose(0, 2, 1, 3)  # heads before positions there
        elif name == "opt" and ".ln2.hook_" in site:
            want = want.reshape(*ids.shape, -1)  # its model flattens batch and positions
        got = run[site]
        if site.endswith("hook_attn_scores"):
            want = np.where(np.isfinite(got), want, -np.inf)  # masked there with the lowest number, or later
        assert relative_error(got, want, site) < limit, site
        compared += 1
    assert compared >= 15 * run.stack("resid_pre").shape[0]
