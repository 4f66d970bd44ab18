"""The command: what it prints and saves, and that whatever is wrong is one line on stderr and status 2."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import clew
import numpy as np
import pytest
from clew import cli, demo, tables
from clew.lens import logit_lens

IDS = [1, 403, 407, 261]
BUNDLED = Path(clew.__file__).parent / "data" / "stories260K" / "stories260K.bin"


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model beside a made-up tokenizer, in llama2.c's form: 3 special pieces, 256 bytes, words."""
    folder = tmp_path_factory.mktemp("worded")
    letters = [" ", *"abcdefghijklmnopqrstuvwxyz", "O", ",", "."]
    words = [" w", " wo", " wor", " word"]
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), *letters, *words]
    pieces += [f" {a}{b}" for a in letters[1:26] for b in letters[1:26]]
    data = struct.pack("<i", max(len(p.encode()) for p in pieces[:512]))
    for i, piece in enumerate(pieces[:512]):
        text = piece.encode()
        data += struct.pack("<fi", float(i) if i > 288 else 0.0, len(text)) + text
    (folder / "tok512.bin").write_bytes(data)
    path = folder / "small.bin"
    path.write_bytes(BUNDLED.read_bytes())
    return path


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The bundled model where no tokenizer lies beside it."""
    path = tmp_path / "bare.bin"
    path.write_bytes(BUNDLED.read_bytes())
    return path


def command(*args: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    path = str(Path(clew.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": path, **more.pop("environment", {})}  # type: ignore[dict-item]
    return subprocess.run(
        [sys.executable, "-m", "clew", *args], env=environment, capture_output=True, timeout=120, check=False, **more
    )  # type: ignore[call-overload, no-any-return]


def failing(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a failing command writes."""
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("clew: error: ") and err.count("\n") == 1 and "Traceback" not in out + err
    return err.removeprefix("clew: error: ").rstrip()


# ---- info -----------------------------------------------------------------------------------------------------------


def test_info_of_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert clew.__version__ in out and "BLIS" in out
    bundled = next(line for line in out.splitlines() if line.startswith("bundled"))
    assert bundled.split(None, 1)[1] == "english, maze-6x6, shakespeare, stories260K"


def test_info_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "stories260K", "--batch", "2", "--pos", "100"]) == 0
    out = capsys.readouterr().out
    model = clew.load("stories260K")
    assert "260,032" in out
    for name in model.config.to_dict():
        assert name == "extra" or f"  {name} " in out
    for name in model.weights:
        assert name.replace("blocks.3.", "blocks.L.") in out or name.startswith("blocks.")
    assert "blocks.L.attn.W_K    [4, 64, 8]  5 × 8.19 kB" in out
    assert "unembed.W_U          [64, 512]   embed.W_E, transposed" in out
    assert "blocks.L.attn.hook_pattern" in out and "2 × 100 tokens" in out
    keeps = cli._size(model.plan(2, 100, capture="pattern").keep_bytes)
    assert f"  pattern                {keeps} " in out


def test_info_plan_stays_within_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "stories260K"]) == 0
    assert "a run of 1 × 512 tokens" in capsys.readouterr().out


def test_info_tells_of_bad_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(BUNDLED.read_bytes())
    data[28 + 4 * 70 : 28 + 4 * 71] = struct.pack("<f", float("nan"))  # row 1, column 6 of the embedding
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    assert cli.main(["info", str(path)]) == 0
    assert "WARNING: embed.W_E[1, 6] is nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (8192, "8.19 kB"), (1.5e6, "1.5 MB"), (2.5e9, "2.5 GB"), (4e12, "4,000 GB")],
)
def test_sizes(n: float, text: str) -> None:
    assert cli._size(n) == text


# ---- run ------------------------------------------------------------------------------------------------------------


def test_run_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "stories260K", "--ids", "1, 403,407 261", "--top", "3"]) == 0
    out = capsys.readouterr().out
    logits = clew.load("stories260K").run(IDS).logits[0, -1].astype(float)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    lines = out.split("most likely next:\n")[1].splitlines()
    assert len(lines) == 3
    for line, best in zip(lines, np.argsort(-p)[:3], strict=True):
        share, token = line.split()[:2]
        assert int(token) == best and abs(float(share.rstrip("%")) / 100 - p[best]) < 1e-4


def test_run_saves_what_it_captured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.npz"
    path.write_bytes(b"old")
    args = ["run", "stories260K", "--ids", "1,403,407,261", "--capture", "resid_post.1,pattern", "--capture", "z.0"]
    assert cli.main([*args, "--save", str(path)]) == 0
    out = capsys.readouterr().out
    run = clew.load("stories260K").run(IDS, capture=["resid_post.1", "pattern", "z.0"])
    with np.load(path) as saved:
        assert set(saved) == {*run, "tokens"}
        for name in run:
            assert np.array_equal(saved[name], run[name])
        assert saved["tokens"].tolist() == [IDS]
    for name in run:
        assert name == "logits" or name in out
    assert "saved 9 arrays" in out


def test_run_dtype_and_threads(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    args = ["run", "stories260K", "--ids", "1,403", "--dtype", "float64", "--threads", "1", "--save", str(path)]
    assert cli.main(args) == 0
    assert clew.get_num_threads() == 1
    with np.load(path) as saved:
        assert saved["logits"].dtype == np.float64


def test_run_text(worded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(worded), "word, a", "--lens", "2"]) == 0
    out = capsys.readouterr().out
    model = clew.load(worded)
    ids = model.to_tokens("word, a")[0]
    assert out.startswith(f"{len(ids)} tokens: '<s>' ' word' ',' ")
    view = logit_lens(model, "word, a")
    assert all(line in out for line in tables.lens_lines(view, range(len(ids) - 2, len(ids))))


def test_run_reads_standard_input(worded: Path) -> None:
    done = command("run", str(worded), "-", input=b"word")
    assert done.returncode == 0 and done.stdout.startswith(b"2 tokens: '<s>' ' word'\n"), done.stderr


def test_lens_table_marks_what_is_right(worded: Path) -> None:
    model = clew.load(worded)
    view = logit_lens(model, IDS)
    lines = tables.lens_lines(view, [0, 1, 2, 3])[2:]
    assert [line.count("*") for line in lines] == [int(n) for n in (view.ranks[:, 0] == 0).sum(0)]
    assert all(tables.token_texts(model, [i])[0] in line for i, line in zip(IDS, lines, strict=True))
    assert " ? " in lines[-1]


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 5), ("abcdefgh", 5), ("中文字符", 5), ("e\u0301e\u0301", 5), ("", 3)]
)
def test_padding(text: str, width: int) -> None:
    padded = tables.pad(text, width)
    assert tables._wide(padded) == width
    assert padded.rstrip() == text or (padded.rstrip().endswith("…") and text.startswith(padded.rstrip()[:-1]))


# ---- whatever is wrong ----------------------------------------------------------------------------------------------


def test_errors_are_one_line(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such directory or file" in failing(capsys, "info", str(tmp_path / "none.gguf"))
    assert "vocabulary has ids 0 to 511" in failing(capsys, "run", "stories260K", "--ids", "1,512")
    told = failing(capsys, "run", "stories260K", "--ids", "1", "--capture", "resid_pos")
    assert "matches no capture site; nearest: " in told and told.endswith("clew info MODEL lists all")
    assert "bare.bin has no tokenizer: give token ids with --ids" in failing(capsys, "run", str(bare), "hi")
    assert failing(capsys, "run", str(bare)) == "give a text or --ids, one of them"
    assert failing(capsys, "run", str(bare), "hi", "--ids", "1") == "give a text or --ids, one of them"
    assert "None" not in failing(capsys, "run", "stories260K", "--ids", "1", "--save", str(tmp_path))
    assert "save = '': an empty path" in failing(capsys, "run", "stories260K", "--ids", "1,2", "--save", "")
    assert failing(capsys, "info", "--batch", "2") == "--batch is of a model: clew info MODEL --batch 2"
    assert failing(capsys, "info", "--dtype", "float64").startswith("--dtype is of a model")
    assert "--capture ',' names no site" in failing(capsys, "run", "stories260K", "--ids", "1", "--capture", ",")
    for huge in ("99999999999999999999", "1,-99999999999999999999"):
        told = failing(capsys, "run", "stories260K", f"--ids={huge}")
        assert "9999999999 is outside the vocabulary" in told
    (tmp_path / "cut.bin").write_bytes(BUNDLED.read_bytes()[:1000])
    assert "cut.bin: byte 1000" in failing(capsys, "info", str(tmp_path / "cut.bin"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "required: MODEL"),
        (["run", "m", "--ids", "1,x"], "'1,x' is no list of token ids"),
        (["run", "m", "--top", "0"], "'0' is no whole number above 0"),
        (["info", "--threads", "257"], "'257' is no number of threads from 1 to 256"),
        (["run", "m", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_wrong_arguments(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_out_of_memory_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError("999 bytes\nasked for")

    monkeypatch.setattr(cli, "load", full)
    assert failing(capsys, "info", "m") == "999 bytes asked for"


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", stopped)
    assert cli.main(["info", "m"]) == 130
    assert capsys.readouterr().err == "clew: interrupted\n"


def test_interrupted_while_reading() -> None:
    path = str(Path(clew.__file__).parent.parent)
    script = "import sys, clew.cli; print('ready', flush=True); sys.exit(clew.cli.main())"
    # a pipe that nobody writes to: the command waits for its prompt
    with subprocess.Popen(
        [sys.executable, "-c", script, "run", "stories260K", "-"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if clew.load("stories260K").tokenizer is not None:
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        else:  # without a tokenizer text is refused before it is read
            assert process.wait(20) == 2


def test_a_reader_that_stops_reading() -> None:
    path = str(Path(clew.__file__).parent.parent)
    script = f'"{sys.executable}" -m clew info stories260K | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    first, status = done.stdout.splitlines()
    # the pipe may swallow the whole answer before its reader leaves
    assert first == "Model stories260K" and status in ("0", "141") and done.stderr == ""


def test_a_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    path = str(Path(clew.__file__).parent.parent)
    with os.fdopen(write, "wb") as pipe:
        process = subprocess.run(
            [sys.executable, "-m", "clew", "info", "stories260K"],
            env={**os.environ, "PYTHONPATH": path},
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert process.returncode == 141 and process.stderr == b""


def test_a_stream_without_unicode() -> None:
    done = command("info", "stories260K", environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and b"\\xd7" in done.stdout and done.stderr == b""


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["info", "--help"], ["run", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(args)
        out = capsys.readouterr().out
        assert stop.value.code == 0 and "examples:\n" in out
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"clew {clew.__version__}\n"


# ---- demo -----------------------------------------------------------------------------------------------------------


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demonstration's figures are not made")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the demonstration has no text")
    from clew.mazes import demo as maze_demo

    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    (out / demo.FIGURES[0]).write_text("old")
    assert cli.main(["demo", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = clew.load("shakespeare")
    view = logit_lens(model, demo.TEXT)
    count = view.ranks.shape[2]
    assert lines[0] == "shakespeare: 957,184 parameters, 4 layers of 4 heads, d_model 128"
    start = lines.index(f"It reads {count} tokens:") + 1
    shown = demo.TEXT.splitlines()
    assert [line.removeprefix("  ") for line in lines[start : start + len(shown)]] == shown
    assert set(tables.lens_lines(view, range(1, 21))) <= set(lines)
    right = next(line for line in lines if line.startswith("first guess right")).split()[-4:]
    assert right == [f"{(view.ranks[n, 0, :-1] == 0).mean():.0%}" for n in range(4)]
    ships = "maze-6x6" in clew.bundled()
    figures = (*demo.FIGURES, *demo.CHANGED_FIGURES, *(maze_demo.FIGURES if ships else ()))
    assert any(line.startswith("maze-6x6: 1,238,076 parameters") for line in lines) or not ships
    assert ("maze-6x6 does not come with this installation: no mazes are shown." in lines) != ships
    assert lines[-1] == f"Made {len(figures)} figures in {out}: {', '.join(figures)}"
    assert sorted(p.name for p in out.iterdir()) == sorted(["mine.txt", *figures])
    assert (out / "mine.txt").read_text() == "kept"
    for name in figures:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert max(map(len, lines[:-1])) <= 110
    first, second = (float(x) for x in re.findall(r"(\d+\.\d+)", next(x for x in lines if x.startswith("Surprise: "))))
    heads, back, beside = (float(line.split()[-1]) for line in lines if line.startswith("  without layer"))
    assert second < 2 < 7 < first and min(heads, back) > second + 3 and abs(beside - second) < 1


def test_demo_with_words(worded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demonstration's figures are not made")
    assert cli.main(["demo", "--out", str(tmp_path), "--model", str(worded)]) == 0
    out = capsys.readouterr().out
    assert all(f"  {line}\n" in out for line in demo.TEXT.splitlines() if line)
    assert all(f"\n'{letter}' " in out for letter in ["G", "R", "E", "M", "I", "O", ":", "\\n", "d", "w"])
    assert "#" not in out


def test_demo_without_words(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demonstration's figures are not made")
    assert cli.main(["demo", "--out", str(tmp_path / "o"), "--model", str(bare)]) == 0
    out = capsys.readouterr().out
    assert "no tokenizer beside this model" in out and "#403" in out and "Once upon" not in out
    model = clew.load(bare)
    ids = demo._continued(model, [1], 43)
    assert (model.run(ids).logits[0, :-1].argmax(-1) == ids[1:]).mean() > 0.95  # its own likeliest story


def test_demo_of_a_bundled_model_without_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demonstration's figures are not made")
    assert clew.load("stories260K").tokenizer is None
    assert cli.main(["demo", "--out", str(tmp_path), "--model", "stories260K"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("stories260K: 260,032 parameters") and "no tokenizer beside this model" in out
    assert "#403" in out and demo.TEXT.splitlines()[0] not in out
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(demo.FIGURES)


def test_demo_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demonstration's figures are not made")
    (tmp_path / "taken").write_text("")
    assert "taken" in failing(capsys, "demo", "--out", str(tmp_path / "taken"))


def test_demo_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "clew.plot", raising=False)
    monkeypatch.delattr(clew, "plot", raising=False)
    assert (
        failing(capsys, "demo", "--out", str(tmp_path))
        == "clew.plot needs matplotlib: pip install '.[plot]' in the checkout"
    )


def test_demo_without_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is what would be missed first")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    told = r"clew: error: \S*tokenizer\.json needs the tokenizers package: pip install '\.\[text\]' in the checkout\n"
    assert out == "" and re.fullmatch(told, err)
    assert not (tmp_path / "out").exists()


def test_looks_back() -> None:
    pattern = np.zeros((2, 3, 4, 4))
    pattern[1, 2] = np.eye(4, k=-1)
    assert demo.looks_back(pattern) == (1, 2, 1.0)
    assert demo.looks_back(np.ones((2, 3, 1, 1))) == (0, 0, 0.0)
