"""What a config.json means, in float64, against the library reading the same file; needs torch and transformers."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

transformers = pytest.importorskip("transformers")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import clew  # noqa: E402
from clew.loaders.huggingface_config import CLASS_DEFAULTS, OTHER_NAMES, read_config  # noqa: E402
from hf_models import reference, save_as_written  # noqa: E402
from test_hf import KINDS, ours, relative_error  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

# fields of the classes that change no result: randomness of training, other heads, caches, how work is cut
NO_RESULT = {
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "use_cache", "pad_token_id", "reorder_and_upcast_attn",
    "resid_dropout", "embed_dropout", "attention_dropout", "classifier_dropout", "hidden_dropout", "is_decoder",
    "dropout", "layerdrop", "pretraining_tp",
}  # fmt: skip


@pytest.mark.parametrize("kind", CLASS_DEFAULTS)
def test_defaults_are_those_of_the_class(kind: str) -> None:
    own = CONFIG_MAPPING[kind]
    common = {field.name for field in dataclasses.fields(transformers.PretrainedConfig)}
    fields = {field.name: field.default for field in dataclasses.fields(own) if field.name not in common}
    assert fields.pop("rope_parameters", None) is None
    assert {key: value for key, value in fields.items() if key not in NO_RESULT} == CLASS_DEFAULTS[kind]
    assert OTHER_NAMES.get(kind, {}) == own.attribute_map


GPT2 = dict(vocab_size=61, n_positions=32)
NEO = dict(model_type="gpt_neo", hidden_size=24, num_heads=4, num_layers=2, vocab_size=61, window_size=3)
NEOX = dict(
    model_type="gpt_neox", hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=50,
    vocab_size=61,
)  # fmt: skip
GEMMA3 = dict(
    model_type="gemma3_text", hidden_size=20, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    intermediate_size=24, num_hidden_layers=6, vocab_size=61, sliding_window=5,
)  # fmt: skip
RELEASED = dict(
    hidden_size=24, intermediate_size=37, model_type="gemma3_text", num_hidden_layers=6, sliding_window=4,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
)  # fmt: skip
"""The keys of Google's 4B, 12B and 27B files."""

WRITTEN: dict[str, dict[str, Any]] = {
    "gpt2 under other names": dict(
        model_type="gpt2", hidden_size=24, num_attention_heads=3, num_hidden_layers=2, **GPT2, n_embd=48, n_layer=5
    ),
    "gptj under other names": dict(
        model_type="gptj", hidden_size=24, num_attention_heads=2, num_hidden_layers=2, rotary_dim=8, **GPT2
    ),
    "gpt_neo under other names": dict(
        model_type="gpt_neo", hidden_size=24, num_attention_heads=4, num_hidden_layers=2, vocab_size=61, window_size=3,
        attention_types=[[["global", "local"], 1]],
    ),
    "gpt_neo, attention_layers win": dict(
        **NEO, attention_types=[[["global", "local"], 1]], attention_layers=["local", "local"]
    ),
    "gpt_neo, types of another length": dict(
        **NEO, attention_types=[[["global", "local"], 12]], attention_layers=["local", "global"]
    ),
    "gpt_neo is causal whatever it says": dict(**NEO, attention_layers=["local", "global"], is_causal=False),
    "gpt_neox ignores names of others": dict(**NEOX, rope_theta=50.0, partial_rotary_factor=0.5),
    "gpt_neox, its own names": dict(**NEOX, rotary_emb_base=50, rotary_pct=0.5, partial_rotary_factor=1.0),
    "gemma3, bases outside": dict(
        **GEMMA3, rope_theta=50.0, rope_local_base_freq=7.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"},
        },
    ),
    "gemma3, one kind of layers said": dict(
        **GEMMA3, rope_theta=50.0, rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 3.0}}
    ),
    "gemma3 as released": RELEASED,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_results(name: str, tmp_path: Path) -> None:
    save_as_written(WRITTEN[name], 0, tmp_path / "a")
    ids = np.random.default_rng(0).integers(2, 61, (2, 12))
    truth, got = reference(tmp_path / "a", ids), ours(tmp_path / "a", ids, "float64")
    for kind in KINDS:
        assert relative_error(got[kind], truth[kind]) < 1e-10, kind


def test_released_gemma3_in_its_wrapper(tmp_path: Path) -> None:
    raw = {"model_type": "gemma3", "text_config": RELEASED, "eos_token_id": [1, 106]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).text_config.to_dict()
    for key in ("rope_scaling", "transformers_version"):
        theirs.pop(key, None)
    said = read_config(raw, "ours").replace(extra={}, model_name="", original_architecture=None, eos_token_id=None)
    full = read_config(theirs, "theirs").replace(extra={}, model_name="", original_architecture=None, eos_token_id=None)
    assert said == full


@pytest.mark.parametrize("kind", [kind for kind in CLASS_DEFAULTS if kind != "gpt_neo"])
def test_the_library_honours_is_causal(kind: str, tmp_path: Path) -> None:
    """Where it does, we refuse: a prediction changes with what comes later."""
    from test_hf import models

    names = [name for name, (model_type, _) in models().items() if model_type == kind]
    raw = {"model_type": kind, **models()[names[0]][1], "is_causal": False}
    save_as_written(raw, 0, tmp_path / "a")
    one, other = np.array([[5, 3, 4, 2]]), np.array([[5, 3, 4, 6]])
    first, second = (reference(tmp_path / "a", ids)["logits"][0, 0] for ids in (one, other))
    assert np.abs(first - second).max() > 1e-3
    with pytest.raises(clew.UnsupportedModelError, match="is_causal"):
        clew.load(tmp_path / "a")
