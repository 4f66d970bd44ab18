"""The engine in float64 against what Hugging Face computed (tests/golden, written by make_golden.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(HERE))
import older_form  # noqa: E402

GOLDEN = sorted(p.parent.name for p in HERE.glob("*/reference.npz"))


def relative_error(got: Any, want: Any) -> float:
    """Largest difference over the largest value."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    return float(np.abs(got - want).max() / np.abs(want).max())


def check(model: clew.Model, reference: Any, limit: float) -> None:
    """Logits, hidden states and attention weights of a run over the recorded tokens."""
    run = model.run(reference["tokens"], capture=["resid_pre", "ln_final.hook_out", "pattern"])
    hidden = np.concatenate([run.stack("resid_pre"), run["ln_final.hook_out"][None]])
    assert relative_error(run.logits, reference["logits"]) < limit
    for got, want in zip(hidden, reference["hidden_states"], strict=True):
        assert relative_error(got, want) < limit
    for got, want in zip(run.stack("pattern"), reference["attentions"], strict=True):
        assert relative_error(got, want) < limit


@pytest.mark.parametrize("name", GOLDEN)
def test_float64(name: str) -> None:
    check(clew.load(HERE / name, dtype="float64"), np.load(HERE / name / "reference.npz"), 1e-10)


@pytest.mark.parametrize("name", GOLDEN)
def test_pattern_that_is_not_captured_gives_the_same_logits(name: str) -> None:
    # another path through the engine: attention without its weights written out
    reference = np.load(HERE / name / "reference.npz")
    run = clew.load(HERE / name, dtype="float64").run(reference["tokens"])
    assert relative_error(run.logits, reference["logits"]) < 1e-10


@pytest.mark.parametrize("name", older_form.CHANGED)
def test_older_form_of_the_configuration(name: str, tmp_path: Path) -> None:
    older_form.rewrite(HERE / name, tmp_path)
    check(clew.load(tmp_path, dtype="float64"), np.load(HERE / name / "reference.npz"), 1e-10)


def test_there_is_one_of_every_architecture() -> None:
    assert set(GOLDEN) >= {
        "gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_neox_serial", "opt", "phi", "llama", "llama3", "llama_linear",
        "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
    }  # fmt: skip
