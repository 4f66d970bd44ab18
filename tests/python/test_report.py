"""The papers' commands, the report's page as HTML, golden files."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import clew
import pytest
from clew import cli, commands, report, testing
from clew.experiment import Claim, Experiment


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.classes: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes += (dict(attrs).get("class") or "").split()
        if tag == "img":
            self.images.append(dict(attrs))


def test_page() -> None:
    claims = tuple(Claim(1, f"claim <{i}>", "says", "1", "holds", "f") for i in range(3))
    good = report.Entry(commands.PAPERS[0], Experiment(1, "T", "m", 0, True, claims), "", 1.0, {"f": b"1", "g": b"2"})
    bad = report.Entry(commands.PAPERS[1], None, "LoadError: <no> weights")
    text = report.page([good, bad])
    page = Page(text)
    assert page.classes.count("claim") == page.classes.count("verdict") == 3
    assert len(page.images) == 2 and all((i["src"] or "").startswith("data:image/") and i["alt"] for i in page.images)
    assert "script" not in page.tags and 'name="viewport"' in text and "http" not in text
    assert "LoadError: &lt;no&gt; weights" in text and "failure" in page.classes and "claim &lt;0&gt;" in text


def test_failure_is_on_the_page_and_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def broken(*args: object, **more: object) -> None:
        raise ValueError("out of luck")

    monkeypatch.setattr(report, "run", broken)
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "FAILED: ValueError: out of luck" in out and "5 of 5 experiments failed" in err
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("ValueError: out of luck") == 5


def test_command_of_a_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out = tmp_path / "new"
    assert cli.main(["geometry", "stories260K", "--out", str(out)]) == 0
    assert "Paper 3" in capsys.readouterr().out and (out / "result.json").is_file() and list(out.glob("*.png"))
    assert cli.main(["geometry", "stories260K", "--out", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert cli.main(["adaptive", "stories260K"]) == 2
    assert "trains its own networks" in capsys.readouterr().err


def test_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.json"
    with pytest.raises(AssertionError, match="does not exist: record it"):
        testing.assert_close_to_golden(path, {"a": 1.0})
    monkeypatch.setenv(testing.UPDATE, "1")
    testing.assert_close_to_golden(path, {"a": [1.0, 2.0], "b": {"c": "x"}})
    monkeypatch.delenv(testing.UPDATE)
    testing.assert_close_to_golden(path, {"a": [1.0, 2.1], "b": {"c": "x"}}, {"a": 0.06})
    with pytest.raises(AssertionError, match=r"a at \[1\]: 2.1 instead of 2; 0.05 of the largest, tolerance 0.01"):
        testing.assert_close_to_golden(path, {"a": [1.0, 2.1], "b": {"c": "x"}}, 0.01)
    with pytest.raises(AssertionError, match=r"b.c: 'y' instead of 'x'"):
        testing.assert_close_to_golden(path, {"a": [1.0, 2.0], "b": {"c": "y"}})
    with pytest.raises(AssertionError, match=r"d: not in the golden file"):
        testing.assert_close_to_golden(path, {"a": [1.0, 2.0], "b": {"c": "x"}, "d": 1})
    with pytest.raises(clew.ConfigError, match="no such value"):
        testing.assert_close_to_golden(path, {"a": 1.0}, {"z": 1e-3})
