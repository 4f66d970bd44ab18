"""Every figure as a ratio, in one table: python -m benchmarks [PART ...] [--quick] [--threads N] [--strict].

Parts: forward, capture, threads, scaling, sweep, edits, decode, training, regression, adaptive, stream, geometry,
mazes, memory, start, size; all of them when none is named. Each runs in a process of its own, on one directory of GPT-2 124M
with random weights. Ratios are medians over paired rounds of sides that take turns. The figures are also written to
out/bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .cost import ROOT, probe
from .part import PARTS
from .report import Figure, machine, table, tally, usable_cores


def _environment(threads: int) -> None:
    """The same number of threads on every side; idle threads of the peers sleep; nothing is downloaded."""
    count = str(threads)
    for library in ("CLEW", "OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = count
    os.environ |= {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}


def _run(part: str, directory: Path, quick: bool) -> tuple[list[Figure], str]:
    """The figures of one part, or an explanation."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.part", part, str(directory), str(out)]
        if quick:
            command.append("--quick")
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            return [], f"the part {part} failed:\n{result.stdout}"
        return [Figure.from_json(data) for data in json.loads(out.read_text(encoding="utf-8"))], ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (all of them)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: rough figures")
    parser.add_argument("--threads", type=int, default=min(2, usable_cores()), help="threads on every side (2)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a bound is not kept")
    parser.add_argument("--model", type=Path, help="a directory with the model's files, instead of writing one")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part named {', '.join(unknown)}: {', '.join(PARTS)}")
    if options.threads < 1:
        parser.error("--threads: at least 1")
    _environment(options.threads)
    facts = machine() | {"threads": str(options.threads), "rounds": "quick" if options.quick else "full"}

    parts: dict[str, list[Figure]] = {}
    failures = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as folder:
        directory = options.model
        if directory is None:
            directory = Path(folder)
            facts["model"] = f"GPT-2 124M, random weights, files written by {probe('write', folder)['writer']}"
        else:
            directory = directory.resolve()
            facts["model"] = directory.name
        for part in dict.fromkeys(options.parts or PARTS):
            print(f"{part} ...", file=sys.stderr, flush=True)
            parts[part], failure = _run(part, directory, options.quick)
            failures += [failure] if failure else []

    width = max(len(name) for name in facts)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    print(f"\n{table(parts)}\n")
    figures = [figure for content in parts.values() for figure in content]
    print(f"{tally(figures)}; {time.monotonic() - start:.0f} s")
    out = ROOT / "out" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    content = {part: [figure.to_json() for figure in content] for part, content in parts.items()}
    out.write_text(json.dumps({"machine": facts, "figures": content, "failures": failures}, indent=1), encoding="utf-8")
    print(f"written to {out.relative_to(ROOT)}")
    for failure in failures:
        print(failure, file=sys.stderr)
    below = any(figure.verdict == "below" for figure in figures)
    return 1 if failures or (options.strict and below) else 0


if __name__ == "__main__":
    sys.exit(main())
