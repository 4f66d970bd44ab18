"""Three steps of training against torch: every architecture's gradients by autograd, torch's own AdamW and clipping.

float64, with Hugging Face's casts to float32 lifted. What torch trained is saved and loaded, weight by weight.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden")]

import clew  # noqa: E402
from hf_models import models, save, tokens  # noqa: E402
from lifted import lifted  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "usual": dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, clip=None),
    "clipped": dict(lr=5e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0, clip=0.1),
}


def batches(name: str) -> list[Any]:
    """Ids [batch, pos] for each step; none is a padding token, whose embedding torch would not train."""
    return [tokens(name, seed, batch=3, pos=14) for seed in range(3)]


def trained_by_torch(directory: Path, ids: list[Any], s: dict[str, Any], out: Path) -> list[tuple[float, float]]:
    """Losses and gradient norms of the steps; the model lies in `out` then."""
    rows = []
    with lifted():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float64, attn_implementation="eager"
        )
        model.eval()  # no dropout
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": s["weight_decay"]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=s["lr"], betas=s["betas"], eps=s["eps"])
        for batch in ids:
            x = torch.from_numpy(batch)
            logits = model(x, use_cache=False).logits[:, :-1]
            assert logits.dtype == torch.float64
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            clip = s["clip"] if s["clip"] is not None else float("inf")
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            rows.append((loss.item(), norm.item()))
        model.save_pretrained(out)
    return rows


CASES = [(name, "usual") for name in models()] + [(name, "clipped") for name in ("gpt2", "gptj", "gemma3")]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_three_steps(name: str, settings: str, tmp_path: Path) -> None:
    s, ids = SETTINGS[settings], batches(name)
    save(name, 0, tmp_path / "start")
    rows = trained_by_torch(tmp_path / "start", ids, s, tmp_path / "end")
    model = clew.load(tmp_path / "start", dtype="float64")
    before = {weight: array.copy() for weight, array in model.weights.items()}
    optimizer = clew.AdamW(model, **s)
    for step, (batch, (loss, norm)) in enumerate(zip(ids, rows, strict=True)):
        got = model.train_step(batch[:1], optimizer=optimizer, accumulate=True) / 3
        got += model.train_step(batch[1:], optimizer=optimizer, accumulate=True) * 2 / 3
        assert optimizer.step() == pytest.approx(norm, rel=1e-9), step
        assert got == pytest.approx(loss, rel=1e-9), step
    want = clew.load(tmp_path / "end", dtype="float64").weights
    assert set(want) == set(model.weights)
    moved = [np.abs(array - before[weight]).max() > 1e-4 for weight, array in want.items()]
    assert np.mean(moved) > 0.75  # torch did train; what a window of 1 cannot reach stayed
    for weight, array in want.items():
        error = np.abs(model.weights[weight] - array).max() / np.abs(array).max()
        assert error < 1e-9, (weight, error)
