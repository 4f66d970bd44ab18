"""Hugging Face's models in true float64.

Its modelling code casts softmax, RMS norms and rotary tables to float32 whatever the model's dtype, which costs 5e-8 to
7e-6. Inside `lifted()` those casts go to float64 instead. Build the model and run it inside.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import transformers.modeling_rope_utils

ARCHITECTURES = (
    "gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2",
    "gemma3",
)  # fmt: skip


class _Torch:
    """torch, with float64 under the names of float32."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """Modelling code that runs inside computes in float64 what it would compute in float32."""
    modules: list[Any] = [transformers.modeling_rope_utils]
    modules += [importlib.import_module(f"transformers.models.{name}.modeling_{name}") for name in ARCHITECTURES]
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "torch", _Torch()))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        torch.set_default_dtype(torch.float64)  # tables built from integers, torch.tensor(scale)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
