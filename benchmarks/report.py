"""Figures: a ratio, the bound that it must keep, and the table of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .timing import Times, median, paired, quartiles


@dataclass
class Figure:
    """One line of the table."""

    name: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bound: tuple[float, float] | None = None
    """Least and greatest ratio allowed; infinity where one side is open."""
    numerator: str = ""
    denominator: str = ""
    note: str = ""
    """Why the figure is missing, or how it was measured."""
    samples: Times = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """PASS, below (the bound is not reached), skipped, or nothing where no bound is required."""
        if self.ratio is None:
            return "skipped"
        if self.bound is None:
            return ""
        return "PASS" if self.bound[0] <= self.ratio <= self.bound[1] else "below"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; an open side of the bound is null."""
        out = asdict(self)
        if self.bound is not None:
            out["bound"] = [None if abs(b) == float("inf") else b for b in self.bound]
        return out | {"verdict": self.verdict}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Figure:
        """The inverse of `to_json`."""
        data = {key: value for key, value in data.items() if key != "verdict"}
        if data["bound"] is not None:
            low, high = data["bound"]
            data["bound"] = (float("-inf") if low is None else low, float("inf") if high is None else high)
        return cls(**data)


def at_most(value: float) -> tuple[float, float]:
    """A bound from above."""
    return float("-inf"), value


def at_least(value: float) -> tuple[float, float]:
    """A bound from below."""
    return value, float("inf")


def seconds(value: float) -> str:
    """A time as it is read best."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def megabytes(value: float) -> str:
    """Bytes in MB, 10⁶."""
    return f"{value / 1e6:.1f} MB" if value < 1e8 else f"{value / 1e6:.0f} MB"


def of_times(
    name: str, times: Times, above: str, below: str, bound: tuple[float, float] | None = None, note: str = ""
) -> Figure:
    """The median of the paired ratios above / below."""
    ratios = paired(times, above, below)
    low, high = quartiles(ratios)
    return Figure(
        name,
        median(ratios),
        low,
        high,
        bound,
        seconds(median(times[above])),
        seconds(median(times[below])),
        note,
        {"numerator": times[above], "denominator": times[below]},
    )


def of_limit(name: str, value: float, limit: float, unit: Any, note: str = "") -> Figure:
    """A value over what it may be."""
    return Figure(name, value / limit, None, None, at_most(1.0), unit(value), unit(limit), note)


def skipped(name: str, bound: tuple[float, float] | None, why: str) -> Figure:
    """A figure that cannot be measured here."""
    return Figure(name, bound=bound, note=why)


# ---- The table --------------------------------------------------------------------------------------------------


def _bound(bound: tuple[float, float] | None) -> str:
    if bound is None:
        return "–"
    low, high = bound
    if low == float("-inf"):
        return f"≤ {high:.2f}"
    return f"≥ {low:.2f}" if high == float("inf") else f"{low:.2f} – {high:.2f}"


def _cells(figure: Figure) -> list[str]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    spread = "" if figure.low is None or figure.high is None else f"{figure.low:.2f} – {figure.high:.2f}"
    numbers = [figure.numerator, figure.denominator, ratio, spread, _bound(figure.bound)]
    return [figure.name, *numbers, figure.verdict, figure.note]


HEADER = ["figure = a / b", "a", "b", "ratio", "quartiles", "bound", "", ""]


def table(parts: dict[str, list[Figure]]) -> str:
    """All figures, by part."""
    rows = {part: [_cells(figure) for figure in figures] for part, figures in parts.items()}
    every = [HEADER, *(row for part in rows.values() for row in part)]
    widths = [max(len(row[column]) for row in every) for column in range(len(HEADER))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, 6)), row[6].ljust(widths[6])]
        return "  ".join([*cells, row[7]]).rstrip()

    out = [line(HEADER)]
    for part, content in rows.items():
        out += ["", f"{part}", *(f"{line(row)}" for row in content)]
    return "\n".join(out)


def tally(figures: Iterable[Figure]) -> str:
    """How many figures keep their bounds."""
    verdicts = [figure.verdict for figure in figures if figure.bound is not None]
    counts = {word: verdicts.count(word) for word in ("PASS", "below", "skipped")}
    return f"{counts['PASS']} of {len(verdicts)} bounds kept, {counts['below']} below, {counts['skipped']} skipped"


# ---- The machine ------------------------------------------------------------------------------------------------


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    from clew import _core

    build, load = _core.build_info(), os.getloadavg()
    facts = {
        "machine": platform.node(),
        "processor": f"{_processor()}, {usable_cores()} cores",
        "load average": ", ".join(f"{x:.2f}" for x in load) + (": BUSY, figures are rough" if load[0] > 0.5 else ""),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "clew": f"{build['version']}, kernels {build['kernels']}, BLIS {build['blis_version']} {build['blis_kernels']}",
    }
    for name in ("numpy", "torch", "transformers", "transformer_lens"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts
