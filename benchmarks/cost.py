"""What a run costs besides its time: memory, start, size."""

from __future__ import annotations

import compileall
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import clew

from . import models
from .report import Figure, at_most, megabytes, of_limit, seconds, skipped
from .timing import median, quartiles

ROOT = Path(__file__).resolve().parent.parent


def probe(*arguments: str) -> Any:
    """What a fresh process (benchmarks/probe.py) measured."""
    command = [sys.executable, "-m", "benchmarks.probe", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {result.stderr.strip()}")
    return json.loads(result.stdout.splitlines()[-1])


def memory(directory: Path) -> list[Figure]:
    """Peak memory of fresh processes at 1×1024, and what grows with the number of layers."""
    out = []
    peaks = {}
    for label, kind in (("no capture", "none"), ("all but scores, patterns, result", "most")):
        name = f"1×1024  peak / (weights + kept + 150 MB), {label}"
        got = probe("memory", str(directory), kind)
        if got["peak"] is None:
            out.append(skipped(name, at_most(1.0), "the system does not tell a process's peak memory"))
            continue
        peaks[kind] = got["peak"]
        over = got["peak"] - got["weights"] - got["kept"]
        note = f"{megabytes(over)} besides weights and what is kept"
        out.append(of_limit(name, got["peak"], got["weights"] + got["kept"] + 150e6, megabytes, note))
    name = "1×1024  HF sdpa peak / clew peak"
    why = models.missing_hf() or ("" if peaks else "no peak memory")
    if why:
        out.append(skipped(name, None, why))
    else:
        theirs = probe("memory-hf", str(directory))["peak"]
        sides = megabytes(theirs), megabytes(peaks["none"])
        out.append(Figure(name, theirs / peaks["none"], None, None, None, *sides))
    name, needs = "memory of a run without capture, 24 layers / 2", []
    for n_layers in (2, 24):
        small = models.config(n_layers=n_layers, d_model=64, n_heads=4, d_vocab=101)
        plan = clew.Model.from_config(small).plan(1, 1024)
        needs.append(plan.keep_bytes + plan.scratch_bytes)
    sides = megabytes(needs[1]), megabytes(needs[0])
    out.append(Figure(name, needs[1] / needs[0], None, None, at_most(1.0), *sides))
    return out


def start(directory: Path, times: int) -> list[Figure]:
    """Importing and loading, in fresh processes; the bytecode is there, as pip leaves it when it installs."""
    compileall.compile_dir(Path(clew.__file__).parent, quiet=1)
    imports = [probe("import")["seconds"] for _ in range(times)]
    loads = [probe("load", str(directory))["seconds"] for _ in range(times)]
    out = []
    for name, values, limit in (
        ("import clew after NumPy / 0.15 s", imports, 0.15),
        ("mapping a float32 GPT-2 124M directory / 50 ms", loads, 0.05),
    ):
        figure = of_limit(name, median(values), limit, seconds, f"median of {times} fresh processes")
        figure.low, figure.high = (q / limit for q in quartiles(values))
        figure.samples = {"numerator": values}
        out.append(figure)
    return out


def size() -> list[Figure]:
    """The extension's file, and a wheel's, which is built for it."""
    from clew import _core

    extension = Path(_core.__file__).stat().st_size
    out = [of_limit("extension / 12 MB", extension, 12e6, megabytes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            str(ROOT),
        ]
        built = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("clew-*.whl"))
        if wheels:
            out.append(of_limit("wheel / 25 MB", wheels[0].stat().st_size, 25e6, megabytes, wheels[0].name))
        else:
            why = (built.stderr.strip() or "pip made none").splitlines()[-1]
            out.append(skipped("wheel / 25 MB", at_most(1.0), why))
    return out
