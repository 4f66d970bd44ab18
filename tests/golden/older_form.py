"""The same configuration as releases before `rope_parameters` and `layer_types` wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

CHANGED = (
    "gpt_neox", "gpt_neox_serial", "phi", "llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_window",
    "qwen3", "gemma", "gemma2", "gemma3",
)  # fmt: skip
"""Golden models whose configuration has an older form."""


def older_form(config: dict[str, Any]) -> dict[str, Any]:
    """A copy with `rope_theta`, `rope_scaling`, ... in place of `rope_parameters`, without `layer_types`."""
    out = dict(config)
    kind = out["model_type"]
    rope = out.pop("rope_parameters")
    out.pop("layer_types", None)
    out["torch_dtype"] = out.pop("dtype")
    out["transformers_version"] = "4.40.0"
    if kind == "gemma3_text":
        full = dict(rope["full_attention"])
        out["rope_theta"] = full.pop("rope_theta")
        out["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        out["rope_scaling"] = full
        out["sliding_window_pattern"] = out.pop("_sliding_window_pattern")
        return out
    rope = dict(rope)
    theta, partial = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    scaling = None if rope["rope_type"] == "default" else rope
    if scaling and scaling["rope_type"] == "linear":
        scaling = {"type": "linear", "factor": scaling["factor"]}  # older still
    if kind == "gpt_neox":
        out["rotary_emb_base"], out["rotary_pct"] = theta, partial
    else:
        out["rope_theta"], out["rope_scaling"] = theta, scaling
        if partial is not None:
            out["partial_rotary_factor"] = partial
    return out


def rewrite(source: Path, target: Path) -> None:
    """Copies a model's directory with its configuration in the older form."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "model.safetensors", target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(older_form(config), indent=2))
