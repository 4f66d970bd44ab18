"""What the engine's tests share: models of the zoo, comparisons, memory, and scripts in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clew
import numpy as np
from clew.loaders.checkpoint import Checkpoint
from numpy.typing import NDArray
from zoo import random_weights

Array = NDArray[Any]


def make(config: clew.ModelConfig, seed: int = 1, dtype: Any = np.float64) -> tuple[clew.Model, dict[str, Array]]:
    """A model with the zoo's random weights, and the weights."""
    weights = random_weights(config, seed, dtype)
    return clew.Model(Checkpoint(config, weights, np.dtype(dtype))), weights


def with_positions(config: clew.ModelConfig, n: int) -> clew.ModelConfig:
    """The same model with learned positions for prompts of n tokens."""
    return config.replace(n_ctx=max(config.n_ctx, n))


def relative_error(got: Any, want: Any) -> float:
    """Largest difference over the largest value; both must be -inf (masked scores) in the same places."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    masked = np.isneginf(want)
    assert np.array_equal(np.isneginf(got), masked)
    assert np.isfinite(got[~masked]).all()
    got, want = got[~masked].astype(np.float64), want[~masked].astype(np.float64)
    if not want.size:
        return 0.0
    return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(np.float64).tiny))


def assert_close(got: Mapping[str, Any], want: Mapping[str, Any], tolerance: float, names: Any = None) -> None:
    """Every site of `want` (or of `names`) is in `got` and equal to within the relative tolerance."""
    for name in want if names is None else names:
        error = relative_error(got[name], want[name])
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def run_python(script: str, *flags: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with the package and the tests' modules on its path; stderr is part of the result."""
    path = os.pathsep.join([str(Path(clew.__file__).parent.parent), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, *flags, "-c", script],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_python(script: str, *flags: str, timeout: float = 120, **environment: str) -> str:
    """As `run_python`, and it must end well and print "fine" last; gives what it printed."""
    done = run_python(script, *flags, timeout=timeout, **environment)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.rstrip().endswith("fine"), done.stdout + done.stderr
    return done.stdout
