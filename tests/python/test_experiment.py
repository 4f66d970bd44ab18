"""What the papers' experiments share: claims, JSON, tables, folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.experiment import Claim, Experiment, plain, verdict

CLAIM = Claim(4, "it grows", "says nothing of it", "1 to 2", "does not hold", "growth")


@dataclasses.dataclass(frozen=True)
class Part:
    values: np.ndarray
    hidden: object = dataclasses.field(default=None, metadata={"json": False})


@dataclasses.dataclass(frozen=True)
class Result(Experiment):
    part: Part
    parts: tuple[Part, ...] = ()

    def figures(self) -> dict[str, Any]:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
        from matplotlib.figure import Figure

        return {"growth": Figure(figsize=(1, 1))}


def result() -> Result:
    part = Part(np.array([1.0, np.inf]), object())
    return Result(4, "Growth", "tiny", 7, True, (CLAIM,), part, (part,))


def test_json_holds_every_number_and_the_claims() -> None:
    data = json.loads(json.dumps(result().to_json(), allow_nan=False))
    assert data["numbers"] == {"part": {"values": [1.0, None]}, "parts": [{"values": [1.0, None]}]}
    assert (data["paper"], data["seed"], data["quick"], data["version"]) == (4, 7, True, clew.__version__)
    assert data["claims"] == [dataclasses.asdict(CLAIM)]


def test_plain_values() -> None:
    assert plain([np.float32(0.5), np.bool_(True), range(2), float("nan"), {1: None}]) == [
        0.5,
        True,
        [0, 1],
        None,
        {"1": None},
    ]
    with pytest.raises(TypeError, match="object has no JSON form"):
        plain([object()])


def test_verdicts() -> None:
    assert [verdict(x) for x in (True, np.bool_(False), None)] == [
        "holds",
        "does not hold",
        "not testable on this model",
    ]
    with pytest.raises(clew.ConfigError, match="verdict = 'maybe': one of 'holds'"):
        Claim(1, "", "", "", "maybe")  # type: ignore[arg-type]


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    files = result().save(tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["table.txt", "result.json", "growth.png"]
    assert all(path.stat().st_size for path in files)
    assert json.loads(files[1].read_text())["title"] == "Growth"
    assert "does not hold  it grows" in files[0].read_text()
    with pytest.raises(clew.ConfigError, match=r"folder holds table.txt, result.json, growth.png already"):
        result().save(tmp_path / "new" / "folder")
    result().save(tmp_path / "new" / "folder", overwrite=True)
    for inside in (files[0], files[0] / "below"):
        with pytest.raises(clew.ConfigError, match=r"table\.txt is a file, not a folder"):
            result().save(inside, overwrite=True)
