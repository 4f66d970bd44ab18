"""One measurement of a fresh process, printed as JSON: python -m benchmarks.probe import, load DIR, ..."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak() -> int | None:
    """Largest resident size of this process so far, in bytes (Linux: since exec)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def of_import() -> dict[str, Any]:
    """Seconds of `import clew` after `import numpy`."""
    import numpy  # noqa: F401

    start = time.perf_counter()
    import clew  # noqa: F401

    return {"seconds": time.perf_counter() - start}


def of_load(directory: str) -> dict[str, Any]:
    """Seconds of the process's first `clew.load`."""
    import clew

    start = time.perf_counter()
    model = clew.load(directory)
    return {"seconds": time.perf_counter() - start, "parameters": model.n_params}


def of_memory(directory: str, kind: str) -> dict[str, Any]:
    """Peak, weights and what is kept, in bytes, of a run at 1×1024."""
    import clew

    from . import models

    model = clew.load(directory)
    capture = models.sites(model, *models.LARGE) if kind == "most" else None
    run = model.run(models.tokens(1, 1024), capture=capture)
    kept = model.plan(1, 1024, capture=capture).keep_bytes
    out = {"peak": peak(), "weights": models.weight_bytes(model), "kept": kept}
    del run
    return out


def of_memory_hf(directory: str) -> dict[str, Any]:
    """Peak in bytes of Hugging Face's run at 1×1024."""
    from . import models

    logits = models.hf_forward(models.hugging_face(Path(directory), "sdpa"), models.tokens(1, 1024))()
    return {"peak": peak(), "logits": list(logits.shape)}


def of_memory_dmmse(batch: str) -> dict[str, Any]:
    """Peak in bytes, and before it with the data, and seconds of dMMSE over 2²⁰ tasks in float32."""
    import numpy as np
    from clew import regression

    rng = np.random.default_rng(0)
    tasks = rng.standard_normal((2**20, 8), dtype=np.float32)
    x = rng.standard_normal((int(batch), 16, 8), dtype=np.float32)
    y = rng.standard_normal((int(batch), 16), dtype=np.float32)
    before, start = peak(), time.perf_counter()
    regression.dmmse(x, y, tasks, 0.25)
    return {"peak": peak(), "before": before, "seconds": time.perf_counter() - start}


def of_nearest(vectors: str) -> dict[str, Any]:
    """Bytes that a nearest-token search takes beside what it is given, at its peak."""
    from clew.geometry import nearest

    from . import models
    from .floor import filled

    rows, x = filled(models.D_VOCAB, models.D_MODEL), filled(int(vectors), models.D_MODEL)
    nearest(rows[:64], x[:64], 10)
    before = peak()
    found = nearest(rows, x, 10)
    after = peak()
    return {"bytes": None if before is None or after is None else after - before, "shape": list(found.ids.shape)}


def of_walls(n: str) -> dict[str, Any]:
    """Bytes that wall probes take beside model and mazes, at their peak."""
    from clew import mazes

    from .mazes import probed

    model, train, test = probed(int(n))
    before = peak()
    mazes.wall_probes(model, train, test, methods=["ridge"])
    after = peak()
    return {"bytes": None if before is None or after is None else after - before}


def write(directory: str) -> dict[str, Any]:
    """Writes the model's files."""
    from . import models

    return {"writer": models.write(Path(directory))}


def main() -> None:
    """Measures what is asked for."""
    what, *arguments = sys.argv[1:]
    probes: dict[str, Callable[..., dict[str, Any]]] = {}
    probes |= {"import": of_import, "load": of_load, "memory": of_memory, "memory-hf": of_memory_hf, "write": write}
    probes |= {"memory-dmmse": of_memory_dmmse}
    probes |= {"nearest": of_nearest, "walls": of_walls}
    print(json.dumps(probes[what](*arguments)))


if __name__ == "__main__":
    main()
