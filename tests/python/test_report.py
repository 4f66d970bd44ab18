"""The papers' commands, the report's page as HTML, golden files."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
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
    assert "LoadError: &lt;no&gt; weights" in text and "failure" in page.classes and "Claim &lt;0&gt;" in text


def test_remarks_stand_back() -> None:
    claim = Claim(1, "t", "(ours) says <x> (of y)", "no (remark) first", "holds")
    text = report.page([report.Entry(commands.PAPERS[0], Experiment(1, "T", "m", 0, True, (claim,)))])
    assert (
        '<span class="note">(ours) </span>says &lt;x&gt; (of y)</dd>' in text and "<dd>no (remark) first</dd>" in text
    )


def test_failure_is_on_the_page_and_in_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    def broken(*args: object, **more: object) -> None:
        raise ValueError("out of luck")

    monkeypatch.setattr(report, "run", broken)
    assert cli.main(["report", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "FAILED: ValueError: out of luck" in out and "5 of 5 experiments failed" in err
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("ValueError: out of luck") == 5


# ---- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    path = browser.chromium()
    if path is None:
        pytest.skip(f"no Chromium ({', '.join(browser.NAMES)}): the report's page is not looked at")
    with browser.Browser(path) as running:
        yield running


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with an experiment and a failure."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no page with pictures")
    paper = commands.Paper(3, "geometry", "Traveling words", "stories260K")
    missing = commands.Paper(1, "nowhere", "An experiment that is not there, with a" + "verylongname" * 9, None)
    folder = tmp_path_factory.mktemp("report")
    with pytest.raises(clew.Error, match="1 of 2 experiments failed: nowhere"):
        report.main(folder, papers=[paper, missing])
    return folder / "report.html"


@pytest.mark.parametrize("width", [320, browser.PHONE, browser.DESKTOP])
def test_page_in_chromium(chromium: browser.Browser, whole_page: Path, width: int) -> None:
    seen = chromium.look(whole_page, width)
    assert seen.complaints() == []
    assert len(seen.facts["images"]) >= 7 and seen.shots and all(s[:8] == b"\x89PNG\r\n\x1a\n" for s in seen.shots)
    shown = [i["shown"] for i in seen.facts["images"]]
    assert min(shown) >= min(0.8 * width, 400) and max(shown) <= width  # large enough to read, none cut


def test_browser_sees_what_is_wrong(chromium: browser.Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><body style='width:3000px'><img id=gone src='gone.png' alt=''><a href='#no'>x</a>"
        "<p style='font-size:5px'>small</p><script>console.error('told'); throw Error('thrown')</script>"
    )
    complaints = "\n".join(chromium.look(bad, browser.DESKTOP, shots=False).complaints())
    for part in ("console: told", "exception: Uncaught", "no picture gone", "has no alt text", "wider than the screen",
                 "text of 5 px", "#no leads nowhere", "asks for file", "not loaded"):  # fmt: skip
        assert part in complaints, part


# ---- Commands and golden files --------------------------------------------------------------------------------------


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
