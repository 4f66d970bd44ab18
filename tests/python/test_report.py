"""The papers' commands, the report's page as HTML, golden files."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import clew
import numpy as np
import pytest
from clew import cli, commands, geometry, report, testing
from clew.experiment import Claim, Experiment
from clew.inputs import check_writable


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


def test_a_command_makes_a_new_folder_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that an earlier run wrote is written over, and --dry writes nothing."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["geometry", "stories260K", "--dry"]) == 0
    assert "Made" not in capsys.readouterr().out and not any(tmp_path.iterdir())
    for folder in ("geometry", "geometry-2"):
        assert cli.main(["geometry", "stories260K"]) == 0
        assert f"files in out/{folder}: table.txt, result.json, " in capsys.readouterr().out
        result = json.loads((tmp_path / "out" / folder / "result.json").read_text(encoding="utf-8"))
        assert (result["seed"], result["version"]) == (0, clew.__version__)
        assert list((tmp_path / "out" / folder).glob("*.png"))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert cli.main(["geometry", "stories260K"]) == 0
    shown = capsys.readouterr()
    assert (
        "only printed: figures need matplotlib: pip install '.[plot]' in the checkout" in shown.err
        and "paper:" in shown.out
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["geometry", "geometry-2"]


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc\xff")
    for command, message in (
        (["geometry", "nowhere/at/all"], "nowhere/at/all"),
        (["geometry", "stories260K", "--text", str(tmp_path / "none.txt")], "none.txt"),
        (["geometry", "shakespeare", "--text", str(file)], "not UTF-8 at byte 3"),
        (["geometry", "stories260K", "--out", str(file)], "is a file, not a folder"),
        (["geometry", "stories260K", "--out", str(file / "below")], "file is a file, not a folder"),
        (["adaptive", "--text", __file__], "it takes no model and no text"),
        (["report", "--out", str(file)], "file"),
        (["geometry", "", "--dry"], "path = '': give a path"),
        (["geometry", "--out", "/proc/clew/out"], "/proc/clew"),
        (["report", "--out", "/proc/clew/out"], "/proc/clew"),
    ):
        assert cli.main(command) == 2, command
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and not out, command
    new = tmp_path / "a" / "b"
    assert check_writable(out=new) == new and not new.parent.exists()  # tried out, and left as it was
    for seed in ("-1", "x"):
        with pytest.raises(SystemExit):
            cli.main(["geometry", "--seed", seed])
        assert f"'{seed}' is no whole number from 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["descent", "--quick", "--full"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_golden_of_an_experiment(tmp_path: Path) -> None:
    """Pinned by its numbers; a tolerance for a name holds for what is inside it."""
    result = geometry.experiment(clew.load("stories260K"))
    path = tmp_path / "golden" / "geometry.json"
    testing.assert_close_to_golden(path, result, update=True)
    testing.assert_close_to_golden(path, result, 0)
    off = result.numbers()
    off["distances"]["mean"][1] += 1e-2 * max(abs(x) for x in off["distances"]["mean"])
    testing.assert_close_to_golden(path, off, {"*": 0, "distances": 2e-2})
    testing.assert_close_to_golden(path, off, {"*": 0, "distances": 0, "distances.mean": 2e-2})
    with pytest.raises(
        AssertionError, match=r"1 of \d+ values differ from .*geometry.json:\n  distances.mean at \[1\]"
    ):
        testing.assert_close_to_golden(path, off, {"*": 1, "distances": 5e-3})


def test_golden_refuses(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    with pytest.raises(clew.ConfigError, match="values: an experiment or a mapping of names to values, not list"):
        testing.assert_close_to_golden(path, [1.0])  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match="no values: there is nothing"):
        testing.assert_close_to_golden(path, {}, update=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(clew.ConfigError, match="file is a file, not a folder"):
        testing.assert_close_to_golden(tmp_path / "file" / "g.json", {"a": 1.0}, update=True)
    with pytest.raises(clew.ConfigError, match="is a folder, not a file"):
        testing.assert_close_to_golden(tmp_path, {"a": 1.0}, update=True)
    for bound in (-1.0, float("nan"), float("inf"), "tight", None, True):
        with pytest.raises(clew.ConfigError, match=r"tolerance of '\*' = .*: a number from 0"):
            testing.assert_close_to_golden(path, {"a": 1.0}, bound)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="object has no JSON form"):
        testing.assert_close_to_golden(path, {"a": object()}, update=True)
    assert not path.exists()
    for content, message in ((b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "no object 'values'"),
                             (b'{"values": 1}', "no object 'values'")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(clew.LoadError, match=f"g.json: .*{message}"):
            testing.assert_close_to_golden(path, {"a": 1.0})
    testing.assert_close_to_golden(path, {"a": [1.0, np.nan], "b": [], "c": 0.0}, update=True)
    testing.assert_close_to_golden(path, {"a": [1.0, np.nan], "b": [], "c": 0.0}, 0)
    for changed, message in (
        ({"a": [1.0, 2.0], "b": [], "c": 0.0}, r"a at \[1\]: 2 instead of nan"),
        ({"a": [1.0], "b": [], "c": 0.0}, r"a: shape \[1\] instead of \[2\]"),
        ({"a": [1.0, np.nan], "b": [1.0], "c": 0.0}, r"b: \[1.0\] instead of \[\]"),
        ({"a": [1.0, np.nan], "b": []}, "c: in the golden file only"),
        ({"a": [1.0, np.nan], "b": [], "c": 1e-300}, "c: 1e-300 instead of 0"),  # no tolerance around zero alone
    ):  # fmt: skip
        with pytest.raises(AssertionError, match=message):
            testing.assert_close_to_golden(path, changed, 0.5)


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
