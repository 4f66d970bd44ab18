"""The parts of the benchmarks; each runs in a process of its own: python -m benchmarks.part PART DIRECTORY OUT."""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import clew
from clew import memory

from . import adaptive, cost, geometry, interventions, mazes, models, regression, stream, training, walk
from .floor import Gemm, Reading, flops
from .report import Figure, at_least, at_most, of_times, skipped
from .timing import Times, alternate, median, paired


@dataclass(frozen=True)
class Setting:
    """What every part is told."""

    directory: Path
    """The model's files."""
    quick: bool

    @property
    def rounds(self) -> int:
        """Rounds of a slow measurement."""
        return 3 if self.quick else 5

    @property
    def short_rounds(self) -> int:
        """Rounds of a measurement that takes a fraction of a second."""
        return 7 if self.quick else 25


def _better(times: Times, *names: str) -> str:
    return min(names, key=lambda name: median(times[name]))


def _throughput(times: Times, name: str, operations: float) -> str:
    return f"b at {operations / median(times[name]) / 1e9:.0f} GF/s"


# ---- Forward ----------------------------------------------------------------------------------------------------


class _Sides:
    """Everything that can run the model here."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = clew.load(setting.directory)
        self.gemm = Gemm()
        self.hf: dict[str, Any] = {}
        self.without_hf, self.without_lens = models.missing_hf(), models.missing_lens()
        if not self.without_hf:
            self.hf = {kind: models.hugging_face(setting.directory, kind) for kind in ("eager", "sdpa")}
            ids = models.tokens(2, 16)
            for model in self.hf.values():
                models.same_logits(self.model.run(ids).logits, models.hf_forward(model, ids)())

    def times(self, batch: int, pos: int, more: dict[str, models.Forward], short: bool) -> Times:
        """Seconds of ours, Hugging Face's and some more."""
        ids = models.tokens(batch, pos)
        sides: dict[str, models.Forward] = {"clew": partial(self.model.run, ids), **more}
        sides |= {kind: models.hf_forward(model, ids) for kind, model in self.hf.items()}
        setting = self.setting
        return alternate(sides, setting.short_rounds if short else setting.rounds, 2 if short else 1)

    def against_hf(self, name: str, times: Times, bounds: dict[str, float]) -> list[Figure]:
        """Their time over ours; the key "better" is the faster one of the two."""
        out = []
        for kind, bound in bounds.items():
            label = f"{name}  HF {kind} / clew"
            if self.without_hf:
                out.append(skipped(label, at_least(bound), self.without_hf))
                continue
            side = _better(times, *self.hf) if kind == "better" else kind
            note = f"a is {side}" if kind == "better" else ""
            out.append(of_times(label, times, side, "clew", at_least(bound), note))
        return out


def forward(setting: Setting) -> list[Figure]:
    """Forward passes with all logits, against the products alone, the memory's bandwidth and the peers."""
    sides = _Sides(setting)
    out: list[Figure] = []
    for batch, pos, bounds in (
        (1, 1024, {"eager": 2.0, "sdpa": 1.25}),
        (8, 128, {"eager": 1.5, "sdpa": 1.5}),
        (1, 32, {"better": 2.2}),
    ):
        name = f"{batch}×{pos}"
        more: dict[str, models.Forward] = {"floor": sides.gemm.forward(batch, pos)}
        lens = (batch, pos) == (1, 1024)
        if lens and not sides.without_lens:
            theirs = models.transformer_lens(setting.directory)
            ids = models.tokens(batch, pos)
            models.same_logits(sides.model.run(ids[:, :16]).logits, models.lens_forward(theirs, ids[:, :16], False)())
            default = models.sites(sides.model, "result", *models.QKV_INPUTS)  # what their cache holds
            more["lens"] = models.lens_forward(theirs, ids, False)
            more["lens cache"] = models.lens_forward(theirs, ids, True)
            more["clew cache"] = partial(sides.model.run, ids, capture=default)
        times = sides.times(batch, pos, more, short=pos == 32)
        note = _throughput(times, "floor", flops(batch, pos))
        floor_bound = None if pos == 32 else at_most(1.15)
        out.append(of_times(f"{name}  clew / GEMM floor", times, "clew", "floor", floor_bound, note))
        out += sides.against_hf(name, times, bounds)
        if lens:
            labels = [f"{name}  TransformerLens / clew", f"{name}  TransformerLens with cache / clew, same sites"]
            if sides.without_lens:
                out += [skipped(label, None, sides.without_lens) for label in labels]
            else:
                out.append(of_times(labels[0], times, "lens", "clew"))
                out.append(of_times(labels[1], times, "lens cache", "clew cache"))
    n_bytes = models.weight_bytes(sides.model) - sides.model.weights["pos_embed.W_pos"].nbytes
    reading = Reading(n_bytes, models.threads())
    small: list[tuple[int, dict[str, float]]] = [(8, {"better": 2.5}), (1, {})]
    for pos, bounds in small:
        times = sides.times(1, pos, {"reading": reading}, short=True)
        note = f"b at {n_bytes / median(times['reading']) / 1e9:.1f} GB/s: NumPy max over as many bytes, threaded"
        out.append(of_times(f"1×{pos}  clew / reading the weights once", times, "clew", "reading", None, note))
        out += sides.against_hf(f"1×{pos}", times, bounds)
    return out


# ---- Capture ----------------------------------------------------------------------------------------------------


def capture(setting: Setting) -> list[Figure]:
    """What capturing adds to a run, with warm memory: each set takes turns with plain runs only.

    More than 1 GiB of memory stays warm only where the limit of idle memory is raised.
    """
    memory.set_idle_limit(8 << 30)
    model, shape = clew.load(setting.directory), (1, 1024)
    ids = models.tokens(*shape)
    out = []
    for label, without, bound in (
        ("all but scores, patterns, result, q/k/v_input", models.LARGE + models.QKV_INPUTS, 1.08),
        ("all but scores, patterns, result", models.LARGE, 1.08),
        ("everything", (), 1.30),
    ):
        names = models.sites(model, *without)
        sides: dict[str, models.Forward] = {
            "none": partial(model.run, ids),
            "set": partial(model.run, ids, capture=names),
        }
        times = alternate(sides, setting.rounds, 2)
        faults = _page_faults(sides["set"])
        kept = model.plan(*shape, capture=names).keep_bytes
        note = f"keeps {kept / 1e6:.0f} MB, {faults} page faults"
        out.append(of_times(f"1×1024  {label} / none", times, "set", "none", at_most(bound), note))
    return out


def _page_faults(run: models.Forward) -> int:
    """Page faults of a run: none where its memory is warm."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    result = run()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del result
    return after - before


# ---- Threads and growth -----------------------------------------------------------------------------------------


def threads(setting: Setting) -> list[Figure]:
    """What the second thread gives, and what the machine could: two runs of one thread at the same time."""
    names = {shape: f"{shape[0]}×{shape[1]}  one thread / two" for shape in ((1, 1024), (8, 128))}
    if models.threads() < 2:
        return [skipped(name, at_least(1.8), "this machine has one core, or --threads 1") for name in names.values()]
    model = clew.load(setting.directory)

    def run(n: int, ids: Any) -> Any:
        clew.set_num_threads(n)
        return model.run(ids)

    def side_by_side(ids: Any) -> None:
        clew.set_num_threads(1)
        list(pool.map(lambda _: model.run(ids), range(2)))

    out = []
    with ThreadPoolExecutor(2) as pool:
        for shape, name in names.items():
            ids = models.tokens(*shape)
            sides: dict[str, models.Forward] = {str(n): partial(run, n, ids) for n in (1, 2)}
            sides["both"] = partial(side_by_side, ids)
            times = alternate(sides, 3 * setting.rounds)  # two processors of a shared host differ: more rounds
            machine = median([2 * ratio for ratio in paired(times, "1", "both")])
            note = f"two runs at once, a thread each: {machine:.2f} times as many as one after the other"
            out.append(of_times(name, times, "1", "2", at_least(1.8), note))
    return out


def scaling(setting: Setting) -> list[Figure]:
    """Time per floating-point operation as the input grows."""
    model = clew.load(setting.directory)
    shapes = {"1×128": (1, 128), "8×128": (8, 128), "1×1024": (1, 1024)}
    inputs = {name: models.tokens(*shape) for name, shape in shapes.items()}
    sides = {name: partial(model.run, ids) for name, ids in inputs.items()}
    times = alternate(sides, setting.rounds + 2)
    per = {
        name: [t / model.plan(*shape).flops * 1e9 for t in times[name]]  # seconds for 10⁹ operations
        for name, shape in shapes.items()
    }
    out = []
    for large in ("8×128", "1×1024"):
        name = f"time per FLOP, {large} / 1×128"
        figure = of_times(name, per, large, "1×128", (0.85, 1.15), "within 15 %")
        figure.numerator, figure.denominator = (f"{1 / median(per[side]):.0f} GF/s" for side in (large, "1×128"))
        out.append(figure)
    return out


PARTS: dict[str, Callable[[Setting], list[Figure]]] = {
    "forward": forward,
    "capture": capture,
    "threads": threads,
    "scaling": scaling,
    "sweep": interventions.sweep,
    "edits": interventions.edits,
    "decode": training.decode,
    "training": training.training,
    "regression": regression.regression,
    "geometry": geometry.geometry,
    "walk": walk.walk,
    "mazes": mazes.figures,
    "adaptive": adaptive.adaptive,
    "stream": stream.stream,
    "memory": lambda setting: cost.memory(setting.directory),
    "start": lambda setting: cost.start(setting.directory, setting.rounds + 4),
    "size": lambda setting: cost.size(),
}


def main() -> None:
    """Runs one part and writes its figures as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    clew.set_num_threads(models.threads())
    figures = PARTS[options.part](Setting(options.directory, options.quick))
    options.out.write_text(json.dumps([figure.to_json() for figure in figures]), encoding="utf-8")


if __name__ == "__main__":
    main()
