"""Live parity with Hugging Face: every architecture, odd sizes, several seeds.

float64 against its models with the casts to float32 lifted; float32 no worse than twice its own float32 error. Needs
torch and transformers (`make parity`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden")]

import clew  # noqa: E402
import older_form  # noqa: E402
from hf_models import GOLDEN, models, reference, save, tokens  # noqa: E402

SEEDS = (0, 1, 2)
KINDS = ("logits", "hidden_states", "attentions")


def relative_error(got: Any, want: Any) -> float:
    """Largest difference over the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def ours(directory: Path, ids: Any, dtype: str) -> dict[str, Any]:
    """What `reference` gives, from clew."""
    run = clew.load(directory, dtype=dtype).run(ids, capture=["resid_pre", "ln_final.hook_out", "pattern"])
    result = {
        "logits": run.logits,
        "hidden_states": np.concatenate([run.stack("resid_pre"), run["ln_final.hook_out"][None]]),
        "attentions": run.stack("pattern"),
    }
    assert all(value.dtype == np.dtype(dtype) for value in result.values())
    return result


@pytest.mark.parametrize("name", models())
def test_float64(name: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        directory = tmp_path / str(seed)
        save(name, seed, directory)
        ids = tokens(name, seed)
        truth, got = reference(directory, ids), ours(directory, ids, "float64")
        assert relative_error(got["logits"], truth["logits"]) < 1e-10
        for kind in ("hidden_states", "attentions"):
            for layer, (a, b) in enumerate(zip(got[kind], truth[kind], strict=True)):
                assert relative_error(a, b) < 1e-10, (seed, kind, layer)


@pytest.mark.parametrize("name", ["gpt_neox", "phi_gqa", "llama3", "mistral", "qwen3_window", "gemma2", "gemma3"])
def test_long_prompts(name: str, tmp_path: Path) -> None:
    # longer than any block of keys or queries; rotary positions have no end
    save(name, 0, tmp_path)
    ids = tokens(name, 0, batch=1, pos=300)
    truth, got = reference(tmp_path, ids), ours(tmp_path, ids, "float64")
    for kind in KINDS:
        assert relative_error(got[kind], truth[kind]) < 1e-10
    alone = clew.load(tmp_path, dtype="float64").run(ids)  # without the pattern: streaming softmax
    assert relative_error(alone.logits, truth["logits"]) < 1e-10


@pytest.mark.parametrize("name", models())
def test_float32_errs_no_more_than_twice_as_much(name: str, tmp_path: Path) -> None:
    squares: dict[str, list[float]] = {f"{who} {kind}": [] for who in ("ours", "theirs") for kind in KINDS}
    for seed in SEEDS:
        directory = tmp_path / str(seed)
        save(name, seed, directory)
        ids = tokens(name, seed)
        truth = reference(directory, ids)
        results = {"ours": ours(directory, ids, "float32"), "theirs": reference(directory, ids, torch.float32)}
        for who, result in results.items():
            for kind in KINDS:
                error = (result[kind].astype(np.float64) - truth[kind]) / np.abs(truth[kind]).max()
                squares[f"{who} {kind}"].append(float((error**2).mean()))
    for kind in KINDS:
        mine, theirs = (np.sqrt(np.mean(squares[f"{who} {kind}"])) for who in ("ours", "theirs"))
        assert 0 < theirs < 1e-4  # the reference really is of another precision
        assert mine <= 2 * theirs, kind


@pytest.mark.parametrize("name", older_form.CHANGED)
def test_the_older_form_of_the_configuration_means_the_same_there(name: str, tmp_path: Path) -> None:
    save(name, 0, tmp_path / "new")
    older_form.rewrite(tmp_path / "new", tmp_path / "old")
    ids = tokens(name, 0)
    truth, got = reference(tmp_path / "old", ids), ours(tmp_path / "old", ids, "float64")
    for kind in KINDS:
        assert relative_error(got[kind], truth[kind]) < 1e-10


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_lifting_matters(name: str, tmp_path: Path) -> None:
    # what the library calls float64 misses the truth by far more than 1e-10 (GPT-2 alone has no cast): the comparison
    # above would not pass by accident
    import transformers

    save(name, 0, tmp_path)
    ids = tokens(name, 0)
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager"
        )(torch.from_numpy(ids), use_cache=False)
    error = relative_error(plain.logits.numpy(), reference(tmp_path, ids)["logits"])
    assert error < 1e-13 if name == "gpt2" else error > 1e-9


def test_golden_models_are_among_these() -> None:
    assert set(GOLDEN) <= models().keys()
