"""Records what Hugging Face computes, in true float64, for a tiny model of every architecture.

    python tests/golden/make_golden.py        # needs torch and transformers

Writes tests/golden/<name>/: config.json, model.safetensors (float32) and reference.npz with `tokens`, `logits`,
`hidden_states` (the last one after the final norm) and `attentions`, computed in float64 from the float32 weights.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))

from hf_models import GOLDEN, reference, save, tokens  # noqa: E402


def main() -> None:
    total = 0
    for seed, name in enumerate(GOLDEN):
        directory = HERE / name
        shutil.rmtree(directory, ignore_errors=True)
        save(name, seed, directory)
        ids = tokens(name, seed, batch=2 if name == "gpt2" else 1)
        result = reference(directory, ids)
        np.savez_compressed(directory / "reference.npz", tokens=ids, **result)
        size = sum(f.stat().st_size for f in directory.iterdir())
        total += size
        peak = result["attentions"][..., 4:, :].max(-1).mean()
        print(f"{name:20} {size / 1e3:6.0f} kB  largest attention weight {peak:.2f} on average")
    print(f"{len(GOLDEN)} models, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
