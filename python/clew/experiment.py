"""What the experiment of a paper gives: claims with verdicts, a table, figures, and every number as JSON.

Each of the papers' modules has a function `experiment(model, text=None, quick=True, seed=0)` whose result is a frozen
dataclass derived from :class:`Experiment`: its own fields hold the measurements, `to_json` finds them by itself, and
`figures` draws them. Reports and the command line know nothing else.

>>> import dataclasses
>>> @dataclasses.dataclass(frozen=True)
... class Lengths(Experiment):
...     norms: np.ndarray
>>> claim = Claim(3, "streams grow", "the stream's length grows", "1.2 to 3.4", "holds", "norms")
>>> result = Lengths(3, "Lengths", "tiny", 0, True, (claim,), np.array([1.2, 3.4]))
>>> result.to_json()["numbers"], result.to_json()["claims"][0]["verdict"]
({'norms': [1.2, 3.4]}, 'holds')
>>> print(result.table())
Paper 3: Lengths (tiny, seed 0)
  holds  streams grow
         paper: the stream's length grows
         here:  1.2 to 3.4
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from .brief import Brief
from .errors import ConfigError
from .inputs import check_folder, check_path, check_type

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["holds", "does not hold", "not testable on this model"]


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, what was measured of it, and whether it holds.

    Raises ConfigError for a verdict that is none of the three.
    """

    paper: int
    """Number of the paper, 1 to 5."""
    text: str
    """The claim in a few words."""
    says: str
    """What the paper says; where it is not the paper's but ours, it says so."""
    measured: str
    """What was measured, with numbers."""
    verdict: Verdict
    figure: str | None = None
    """Name of the figure that shows it, a key of `Experiment.figures()`."""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ConfigError(f"verdict = {self.verdict!r}: one of {', '.join(map(repr, get_args(Verdict)))}")


def verdict(holds: bool | np.bool_ | None) -> Verdict:
    """The verdict of a yes, a no, or None for what this model cannot show."""
    if holds is None:
        return "not testable on this model"
    return "holds" if holds else "does not hold"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays as nested lists, dataclasses as objects, NaN and infinities as null.

    Fields of a dataclass with metadata {"json": False} are left out. Raises TypeError for what has no such form.

    >>> plain({"a": np.array([1.0, np.nan]), 2: (np.int64(3), None)})
    {'a': [1.0, None], '2': [3, None]}
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [f.name for f in dataclasses.fields(value) if f.metadata.get("json", True)]
        return {name: plain(getattr(value, name)) for name in kept}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write(path: str | os.PathLike[str], value: Any) -> None:
    """A dataclass's :func:`plain` form as a JSON file, a line for each field, numbers rounded to five digits.

    Raises OSError, TypeError as `plain`, ConfigError for what has no fields.

    >>> write("one.json", Claim(1, "words turn", "they turn", "12 degrees", "holds"))
    >>> Path("one.json").read_text(encoding="utf-8").splitlines()[1]
    ' "paper": 1,'
    """
    check_path(path=path)
    fields = plain(value)
    check_type(dict, "a dataclass or a mapping", value=fields)
    lines = [f" {json.dumps(key)}: {json.dumps(_rounded(part), ensure_ascii=False)}" for key, part in fields.items()]
    Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


# ---- Progress -------------------------------------------------------------------------------------------------------

_LISTENER: ContextVar[Callable[[str], object] | None] = ContextVar("clew_listener", default=None)


@contextmanager
def listening(listener: Callable[[str], object]) -> Iterator[None]:
    """Inside, `listener` hears the name of each part of an experiment before it is measured.

    >>> heard = []
    >>> with listening(heard.append):
    ...     measured({"one": lambda: 1, "two": lambda: 2})
    {'one': 1, 'two': 2}
    >>> heard
    ['one', 'two']
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def tell(part: str) -> None:
    """Says which part of an experiment begins, to who listens."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(part.replace("_", " "))


def measured(parts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Measures the parts of an experiment one after the other, and tells each; name → what its function gave."""
    out = {}
    for name, function in parts.items():
        tell(name)
        out[name] = function()
    return out


# ---- Results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment(Brief):
    """Base of the papers' results. Derive a frozen dataclass that adds fields, and `figures`."""

    paper: int
    """Number of the paper, 1 to 5."""
    title: str
    model: str
    """Name of the model that was measured."""
    seed: int
    quick: bool
    """Was it the small version?"""
    claims: tuple[Claim, ...]

    def figures(self) -> dict[str, Figure]:
        """Figures by name; needs matplotlib (`clew[plot]`)."""
        return {}

    def details(self) -> str:
        """The tables of all that was measured, one after the other; empty where there are none."""
        return ""

    def numbers(self) -> dict[str, Any]:
        """Every measurement as plain values: the fields that the derived class added."""
        own = {f.name for f in dataclasses.fields(Experiment)}
        return {name: value for name, value in plain(self).items() if name not in own}

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values: paper, title, model, seed, quick, version, claims and numbers."""
        from .info import __version__

        return {
            "paper": self.paper,
            "title": self.title,
            "model": self.model,
            "seed": self.seed,
            "quick": self.quick,
            "version": __version__,
            "claims": [plain(claim) for claim in self.claims],
            "numbers": self.numbers(),
        }

    def table(self) -> str:
        """The claims as text: verdict, claim, what the paper says, what was measured."""
        width = max((len(claim.verdict) for claim in self.claims), default=0)
        lines = [f"Paper {self.paper}: {self.title} ({self.model}, seed {self.seed})"]
        for claim in self.claims:
            lines.append(f"  {claim.verdict:<{width}}  {claim.text}")
            lines.append(f"  {'':<{width}}  paper: {claim.says}")
            lines.append(f"  {'':<{width}}  here:  {claim.measured}")
        return "\n".join(lines)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Writes table.txt (claims, then details), result.json and every figure (NAME.png) into a folder; the files.

        Raises ConfigError where the folder holds such files already, unless `overwrite`, or is a file; OSError.
        """
        target = check_folder(folder=folder)
        figures = self.figures()
        files = [target / "table.txt", target / "result.json", *(target / f"{name}.png" for name in figures)]
        there = [path.name for path in files if path.exists()]
        if there and not overwrite:
            raise ConfigError(f"{target} holds {', '.join(there)} already: choose another folder, or overwrite=True")
        target.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join(part for part in (self.table(), self.details()) if part)
        files[0].write_text(text + "\n", encoding="utf-8")
        files[1].write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for path, figure in zip(files[2:], figures.values(), strict=True):
            figure.savefig(path)
        return files

    def __str__(self) -> str:
        return self.table()


__all__ = ["Claim", "Experiment", "listening", "measured", "plain", "tell", "verdict", "write"]
