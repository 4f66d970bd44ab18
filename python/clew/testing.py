"""For tests that pin a published result: values against a file of golden ones, with a tolerance for each name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, LoadError
from .experiment import Experiment, plain
from .info import __version__
from .inputs import check_folder, check_path

UPDATE = "CLEW_UPDATE_GOLDEN"
"""Environment variable that, set to 1, makes every assertion record instead of compare."""


def assert_close_to_golden(path: str | os.PathLike[str], values: Experiment | Mapping[str, Any],
                           tolerance: float | Mapping[str, float] = 1e-6,
                           update: bool | None = None) -> None:  # fmt: skip
    """Are values those of a golden file (JSON)? Raises AssertionError that lists every difference.

    Parameters
    ----------
    values
        Numbers, arrays, texts and nestings of them by name, or an experiment, whose numbers are taken.
    tolerance
        Relative to the largest golden value under a name; by name, where "*" stands for all others (1e-6 without it).
        0 asks for equality. Names inside others are joined by dots, and the longest name that fits counts.
    update
        True records the values instead of comparing; None: does CLEW_UPDATE_GOLDEN=1 say so?

    Raises ConfigError (no values, or what is no mapping; a tolerance that is no number from 0 or belongs to no name; a
    path that can be no file),
    LoadError for a file that holds no golden values, AssertionError where there is no file.

    In a test, the file is kept beside it and under version control; `CLEW_UPDATE_GOLDEN=1 pytest` records it anew:

        def test_what_geometry_finds() -> None:
            result = geometry.experiment(clew.load("stories260K"))
            golden = Path(__file__).parent / "golden" / "geometry.json"
            assert_close_to_golden(golden, result, {"*": 1e-3, "distances": 1e-2, "windows": 0})

    >>> assert_close_to_golden("loss.json", {"loss": 2.5, "ids": [1, 2]}, update=True)
    >>> assert_close_to_golden("loss.json", {"loss": 2.5000001, "ids": [1, 2]}, {"loss": 1e-3, "ids": 0})
    """
    check_path(path=path)
    file = Path(path)
    if not isinstance(values, Experiment | Mapping):
        raise ConfigError(f"values: an experiment or a mapping of names to values, not {type(values).__name__}")
    got = plain(values.numbers() if isinstance(values, Experiment) else dict(values))
    bounds = dict(tolerance) if isinstance(tolerance, Mapping) else {"*": tolerance}
    found = _leaves(got)
    if not found:
        raise ConfigError("no values: there is nothing to compare or to record")
    for name, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float | np.number) or not 0 <= bound < np.inf:
            raise ConfigError(f"tolerance of {name!r} = {bound!r}: a number from 0")
        if name != "*" and not any(leaf == name or leaf.startswith(f"{name}.") for leaf in found):
            raise ConfigError(f"tolerance of {name!r}: no such value; there are {', '.join(found)}")
    if os.environ.get(UPDATE) == "1" if update is None else update:
        check_folder(path=file.parent)
        if file.is_dir():
            raise ConfigError(f"{file} is a folder, not a file")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"version": __version__, "values": got}, indent=1) + "\n", encoding="utf-8")
        return
    if not file.exists():
        raise AssertionError(f"{file} does not exist: record it with update=True or {UPDATE}=1, and look at it")
    golden = _leaves(_read(file))
    wrong = [f"{name}: not in the golden file" for name in found if name not in golden]
    wrong += [f"{name}: in the golden file only" for name in golden if name not in found]
    for name, want in golden.items():
        if name in found:
            wrong += _difference(name, found[name], want, _bound(name, bounds))
    if wrong:
        lines = "\n  ".join(wrong)
        raise AssertionError(f"{len(wrong)} of {len(golden)} values differ from {file}:\n  {lines}")


def _read(file: Path) -> dict[str, Any]:
    """The values of a golden file."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{file}: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LoadError(f"{file}: not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("values"), dict):
        raise LoadError(f"{file}: no golden file: it has no object 'values'")
    values: dict[str, Any] = data["values"]
    return values


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Values by dotted name; a list of numbers is one value."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{name}.{key}" if name else key).items()}
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {k: v for i, item in enumerate(value) for k, v in _leaves(item, f"{name}.{i}").items()}
    return {name: value}


def _bound(name: str, bounds: Mapping[str, float]) -> float:
    fits = [b for b in bounds if name == b or name.startswith(f"{b}.")]
    return bounds[max(fits, key=len)] if fits else bounds.get("*", 1e-6)


def _numbers(value: Any) -> Any:
    """A float64 array, NaN for null; None for what holds no numbers only."""
    try:
        array = np.array(value)
        if array.dtype.kind == "b" or array.dtype.kind in "US":
            return None
        return array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _difference(name: str, got: Any, want: Any, bound: float) -> list[str]:
    a, b = _numbers(got), _numbers(want)
    if a is None or b is None or a.size == 0 or b.size == 0:
        return [] if got == want else [f"{name}: {got!r:.80} instead of {want!r:.80}"]
    if a.shape != b.shape:
        return [f"{name}: shape {list(a.shape)} instead of {list(b.shape)}"]
    missing = np.isnan(a) != np.isnan(b)
    off = np.where(missing, np.inf, np.abs(np.nan_to_num(a) - np.nan_to_num(b)))
    scale = float(np.abs(np.nan_to_num(b)).max())
    if not (off > bound * scale).any():
        return []
    at = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    where = f" at {list(at)}" if at else ""
    error = float(off[at]) / scale if scale else float("inf")
    count = f", {int((off > bound * scale).sum())} of {a.size} values" if a.size > 1 else ""
    return [
        f"{name}{where}: {a[at]:.9g} instead of {b[at]:.9g}; {error:.2g} of the largest, tolerance {bound:g}{count}"
    ]


__all__ = ["UPDATE", "assert_close_to_golden"]
