"""What other libraries call a model's attributes, and their names here; for messages only."""

from __future__ import annotations

from dataclasses import fields

from .config import ModelConfig
from .inputs import nearest

_HERE = {
    "cfg": "model.config",
    "forward": "model.run(tokens)",
    "run_with_cache": 'model.run(tokens, capture="*")',
    "run_with_hooks": "model.run(tokens, edits=[clew.edit.call(site, fn), …])",
    "add_hook": "with model.edited([…]):",
    "hooks": "with model.edited([…]):",
    "reset_hooks": "with model.edited([…]):",
    "hook_dict": "model.sites()",
    "from_pretrained": "clew.load(name)",
    "state_dict": "model.weights",
    "named_parameters": "model.weights",
    "parameters": "model.weights",
    "blocks": 'model.weights["blocks.0.attn.W_Q"]',
    "embed": "model.W_E[ids]",
    "logit_lens": "clew.logit_lens(model, tokens)",
    "direct_logit_attribution": "clew.direct_logit_attribution(model, tokens, answer)",
    "unembed": "clew.lens.unembed(model, resid)",
    "tokens_to_residual_directions": "model.W_U[:, ids]",
    "to": "clew.load(name, dtype=…)",
}
"""TransformerLens and PyTorch → clew."""


def no_attribute(name: str, names: list[str]) -> str:
    """What an AttributeError of a model says: clew's way, or the nearest names.

    >>> no_attribute("cfg", []), no_attribute("wieghts", ["weights"])
    ("Model has no attribute 'cfg': here it is model.config", "Model has no attribute 'wieghts'; nearest: weights")
    """
    here = _HERE.get(name, f"model.config.{name}" if name in {field.name for field in fields(ModelConfig)} else "")
    public = [known for known in names if known[:1] != "_"]
    hint = f": here it is {here}" if here else "" if name[:1] == "_" else nearest(name, public)
    return f"Model has no attribute {name!r}{hint}"


__all__ = ["no_attribute"]
