"""Tiny Hugging Face models of every architecture, with weights turned up, and what they compute."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lifted import lifted
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

transformers.utils.logging.disable_progress_bar()

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 100,
}  # fmt: skip


def _llama_like(d: int, heads: int, kv: int, **changes: Any) -> dict[str, Any]:
    return dict(
        hidden_size=d, num_attention_heads=heads, num_key_value_heads=kv, intermediate_size=2 * d - 3,
        num_hidden_layers=2, vocab_size=61, max_position_embeddings=64,
    ) | changes  # fmt: skip


def models() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (model type, its configuration's fields). The first of each type is what the golden files hold."""
    gemma = dict(head_dim=8, hidden_activation="gelu_pytorch_tanh", pad_token_id=0)
    gpt2 = dict(n_embd=24, n_head=3, n_layer=2, n_positions=32, vocab_size=61)
    neo = dict(
        hidden_size=24, num_heads=4, num_layers=2, intermediate_size=50, vocab_size=61, max_position_embeddings=32,
        window_size=4, attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    neox = dict(
        hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=50, vocab_size=61,
        max_position_embeddings=64,
    )  # fmt: skip
    opt = dict(
        hidden_size=24, num_attention_heads=3, num_hidden_layers=2, ffn_dim=50, vocab_size=61, word_embed_proj_dim=24,
        max_position_embeddings=32, pad_token_id=1,
    )  # fmt: skip
    return {
        "gpt2": ("gpt2", gpt2),
        "gpt2_inverse_layer": (
            "gpt2", gpt2 | dict(scale_attn_by_inverse_layer_idx=True, n_layer=3, activation_function="relu"),
        ),
        "gpt2_unscaled": ("gpt2", gpt2 | dict(scale_attn_weights=False, tie_word_embeddings=False)),
        "gpt2_d20": ("gpt2", gpt2 | dict(n_embd=20, n_head=4, n_inner=37, vocab_size=7)),
        "gpt2_one_head": ("gpt2", gpt2 | dict(n_embd=13, n_head=1)),
        "gpt_neo": ("gpt_neo", neo),
        "gpt_neo_d20": ("gpt_neo", neo | dict(hidden_size=20, intermediate_size=None, window_size=1, vocab_size=7)),
        "gptj": (
            "gptj", dict(n_embd=24, n_head=2, n_layer=2, n_positions=32, vocab_size=61, rotary_dim=8, n_inner=50),
        ),
        "gptj_full_rotary": (
            "gptj", dict(n_embd=20, n_head=2, n_layer=2, n_positions=32, vocab_size=7, rotary_dim=10),
        ),
        "gpt_neox": (
            "gpt_neox",
            neox | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}),
        ),
        "gpt_neox_serial": (
            "gpt_neox",
            neox | dict(
                use_parallel_residual=False, hidden_act="gelu_new",
                rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            ),
        ),
        "gpt_neox_d20": (
            "gpt_neox",
            neox | dict(
                hidden_size=20, num_attention_heads=1, vocab_size=7,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.3},
            ),
        ),
        "opt": ("opt", opt),
        "opt_d20": (
            "opt", opt | dict(hidden_size=20, word_embed_proj_dim=20, num_attention_heads=1, enable_bias=False),
        ),
        "phi": (
            "phi",
            _llama_like(24, 3, 3, rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            }),
        ),
        "phi_gqa": (
            "phi",
            _llama_like(36, 6, 2, vocab_size=7, rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 2 / 3,
            }),
        ),
        "llama": ("llama", _llama_like(24, 3, 3)),
        "llama_d18_gqa": ("llama", _llama_like(18, 6, 2, head_dim=6, vocab_size=7)),
        "llama_one_head": ("llama", _llama_like(22, 1, 1, tie_word_embeddings=True)),
        "llama_biased": ("llama", _llama_like(24, 3, 1, attention_bias=True, mlp_bias=True)),
        "llama3": ("llama", _llama_like(32, 4, 2, rope_parameters=LLAMA3, max_position_embeddings=256)),
        "llama_linear": (
            "llama",
            _llama_like(24, 3, 3, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
        ),
        "mistral": ("mistral", _llama_like(32, 4, 2, sliding_window=5)),
        "mistral_no_window": ("mistral", _llama_like(18, 3, 1, head_dim=4, sliding_window=None)),
        "qwen2": ("qwen2", _llama_like(24, 6, 2, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
        "qwen2_window": (
            "qwen2", _llama_like(24, 6, 2, use_sliding_window=True, sliding_window=3, max_window_layers=1),
        ),
        "qwen3": ("qwen3", _llama_like(24, 4, 2, head_dim=10)),
        "qwen3_window": (
            "qwen3",
            _llama_like(20, 4, 1, head_dim=6, use_sliding_window=True, sliding_window=4, max_window_layers=1,
                        attention_bias=True),
        ),
        "gemma": ("gemma", _llama_like(24, 4, 1, **gemma)),
        "gemma2": (
            "gemma2",
            _llama_like(24, 4, 2, **gemma, sliding_window=6, query_pre_attn_scalar=12, attn_logit_softcapping=3.0,
                        final_logit_softcapping=4.0, num_hidden_layers=3),
        ),
        "gemma2_d20": (
            "gemma2",
            _llama_like(20, 4, 1, **gemma, sliding_window=2, query_pre_attn_scalar=8, attn_logit_softcapping=None,
                        final_logit_softcapping=None, vocab_size=7),
        ),
        "gemma3": (
            "gemma3_text",
            _llama_like(
                20, 2, 1, **gemma, sliding_window=5, query_pre_attn_scalar=12, num_hidden_layers=6,
                intermediate_size=24,
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
        ),
        "gemma3_soft_cap": (
            "gemma3_text",
            _llama_like(
                24, 2, 2, **gemma, sliding_window=3, query_pre_attn_scalar=8, final_logit_softcapping=3.0,
                layer_types=["full_attention", "sliding_attention"],
            ),
        ),
    }  # fmt: skip


GOLDEN = (
    "gpt2", "gpt2_inverse_layer", "gpt_neo", "gptj", "gpt_neox", "gpt_neox_serial", "opt", "phi", "llama", "llama3",
    "llama_linear", "llama_biased", "mistral", "qwen2", "qwen2_window", "qwen3", "gemma", "gemma2", "gemma3",
)  # fmt: skip
"""Those whose results are recorded under tests/golden."""


def save(name: str, seed: int, directory: Path) -> None:
    """Writes config.json and model.safetensors (float32) of a model with turned-up random weights."""
    kind, fields = models()[name]
    model = _model_class(kind)(_config(kind, fields))
    _turn_up(model, seed)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)


def save_as_written(raw: dict[str, Any], seed: int, directory: Path) -> None:
    """The same for a config.json as somebody wrote it: it is read by the library, and stays as it is."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(raw))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(directory))
    _turn_up(model, seed)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))


def tokens(name: str, seed: int, batch: int = 2, pos: int = 12) -> NDArray[np.int64]:
    """Token ids [batch, pos]; 12 positions are more than any window here."""
    vocab = models()[name][1]["vocab_size"]
    # id 1 is OPT's padding, ids of the last token are in use everywhere
    return np.random.default_rng(seed).integers(2, vocab, (batch, pos))


def reference(directory: Path, ids: NDArray[np.int64], dtype: torch.dtype = torch.float64) -> Arrays:
    """Logits, hidden states [layer + 1, b, p, d] (the last after the final norm), attentions [layer, b, h, p, k].

    float64: without the casts to float32; float32: as the library computes.
    """
    lift = lifted() if dtype == torch.float64 else contextlib.nullcontext()
    with lift, torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="eager", local_files_only=True
        ).eval()
        out = model(torch.from_numpy(ids), output_hidden_states=True, output_attentions=True, use_cache=False)
    result = {
        "logits": out.logits.numpy(),
        "hidden_states": torch.stack(out.hidden_states).numpy(),
        "attentions": torch.stack(out.attentions).numpy(),
    }
    for key, value in result.items():
        assert value.dtype == (np.float64 if dtype == torch.float64 else np.float32), (key, value.dtype)
    return result


def _config(kind: str, fields: dict[str, Any]) -> Any:
    special = dict(bos_token_id=None, eos_token_id=None)
    return transformers.AutoConfig.for_model(kind, **(special | fields))


def _model_class(kind: str) -> Any:
    return {
        "gpt2": transformers.GPT2LMHeadModel,
        "gpt_neo": transformers.GPTNeoForCausalLM,
        "gptj": transformers.GPTJForCausalLM,
        "gpt_neox": transformers.GPTNeoXForCausalLM,
        "opt": transformers.OPTForCausalLM,
        "phi": transformers.PhiForCausalLM,
        "llama": transformers.LlamaForCausalLM,
        "mistral": transformers.MistralForCausalLM,
        "qwen2": transformers.Qwen2ForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "gemma": transformers.GemmaForCausalLM,
        "gemma2": transformers.Gemma2ForCausalLM,
        "gemma3_text": transformers.Gemma3ForCausalLM,
    }[kind]


def _turn_up(model: Any, seed: int) -> None:
    """Norm weights 1 + .25 n, biases .3 n, matrices wide enough that attention patterns are peaked."""
    rng = np.random.default_rng(seed)
    config = model.config
    d = config.hidden_size
    unscaled = config.model_type == "gpt_neo" or not getattr(config, "scale_attn_weights", True)
    one_plus_w = config.model_type.startswith("gemma")  # the norm multiplies by 1 + weight
    head = getattr(config, "head_dim", None) or d // config.num_attention_heads
    with torch.no_grad():
        for name, p in model.named_parameters():
            n = rng.standard_normal(tuple(p.shape))
            if p.ndim == 1 and name.endswith("weight"):
                centre = 2.0 if name.split(".")[-2] in ("q_norm", "k_norm") else 1.0
                values = centre + 0.25 * n - one_plus_w
            elif p.ndim == 1:
                values = 0.3 * n
            elif "wpe" in name or "embed_positions" in name:
                values = 0.7 * n
            elif p.shape == (config.vocab_size, d):
                # tied or not, logits and the residual stream both want to be of order 1
                values = n * ((d**-0.5 if one_plus_w else 1.0) if "lm_head" not in name else 2 * d**-0.5)
            else:
                fan_in = p.shape[0] if config.model_type == "gpt2" else p.shape[1]
                values = n * fan_in**-0.5
                if any(k in name for k in ("q_proj", "k_proj", "query_key_value", "c_attn")):
                    values *= 1.6 / (head**0.25 if unscaled else 1.0)
            p.copy_(torch.from_numpy(values).to(p.dtype))
    model.tie_weights()
