"""What users read first is true: docstrings' examples, the README's code and commands, the notebook."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import json
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import cli

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
NOTEBOOKS = [  # that of a model which this installation lacks cannot run
    path
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    if set(re.findall(r'clew\.load\(\\?"([\w-]+)\\?"\)', path.read_text(encoding="utf-8"))) <= set(clew.bundled())
]
PLOTS = (  # need matplotlib
    "clew.plot",
    "clew.adaptive.figures",
    "clew.descent.figures",
    "clew.geometry.figures",
    "clew.mazes.causal_figures",
    "clew.mazes.demo",
    "clew.mazes.draw",
    "clew.mazes.figures",
    "clew.walk.figures",
)


def modules() -> list[str]:
    """Every module of the package but the extension and `python -m clew`."""
    found = [m.name for m in pkgutil.walk_packages(clew.__path__, "clew.")]
    return ["clew", *(n for n in found if n not in ("clew._core", "clew.__main__"))]


def import_module(name: str) -> Any:
    if name in PLOTS:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: examples of figures are not run")
    return importlib.import_module(name)


# ---- docstrings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_package_has_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [n for n in modules() if n not in PLOTS]
    assert sum(bool(t.examples) for n in names for t in finder.find(importlib.import_module(n))) >= 10


@pytest.mark.parametrize("name", modules())
def test_public_things_have_docstrings(name: str) -> None:
    module = import_module(name)
    assert module.__doc__, name
    for public in getattr(module, "__all__", ()):
        thing = getattr(module, public)
        if callable(thing):
            assert thing.__doc__, f"{name}.{public}"


def test_stub_is_the_extension() -> None:
    """Names of _core.pyi against those of the compiled module."""
    from clew import _core

    path = Path(clew.__file__).parent / "_core.pyi"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"}
    assert set(public) == {n for n in dir(_core) if not n.startswith("_")}
    for name, node in public.items():
        thing = getattr(_core, name)
        if isinstance(node, ast.FunctionDef):
            args = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            given = re.match(rf"{name}\((.*?)\)", thing.__text_signature__ and f"{name}{thing.__text_signature__}")
            assert given is not None
            own = [a.split("=")[0].strip() for a in given[1].split(",") if a.strip() not in ("", "$module", "/")]
            assert args == own, name
        else:
            members = {m.name for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("__")}
            assert members == {m for m in vars(thing) if not m.startswith("__")}, name
    assert (path.parent / "py.typed").is_file()
    declared = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_BuildInfo")
    fields = {n.target.id for n in declared.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert set(_core.build_info()) <= fields


# ---- README ---------------------------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    if not README.is_file():
        pytest.skip("README.md is not here: the tests run outside the repository")
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def shape_in(comment: str) -> tuple[int, ...] | None:
    """The shape that a comment such as `(1, 8, 10, 10): batch, …` promises."""
    match = re.match(r"\s*(\((?:\d+,\s*)*\d+,?\s*\d*\))", comment)
    return None if match is None else ast.literal_eval(match[1])


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the README's model has no text")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    code = blocks("python")
    assert len(code) >= 5
    checked = 0
    for block in code:
        if "plot" in block:
            pytest.importorskip("matplotlib", reason="matplotlib is not installed: the README's figures are not made")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, "README.md", "exec"), namespace)
        for line in block.splitlines():
            statement, _, comment = line.partition("#")
            shape = shape_in(comment)
            if shape is not None and statement.strip().removeprefix("print(").rstrip().rstrip(")").endswith("shape"):
                text = statement.strip()
                text = text[len("print(") : -1] if text.startswith("print(") else text
                if text.startswith("model.weights") or "run" in text or "last" in text or "W_Q" in text:
                    assert eval(text, namespace) == shape, line  # noqa: S307
                    checked += 1
    assert checked >= 5
    assert {p.name for p in tmp_path.iterdir()} == {"out"}  # a checkout's root stays as it is
    assert {"head.png", "lens.png", "norms.png", "small"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert namespace["parts"].logit.item() > 1  # the answer wins
    assert namespace["result"].recovered.max() > 0.9 and namespace["result"].effect.min() > -0.05


def test_commands_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the README's demonstration is not run")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the README's model has no text")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("clew ")]
    assert len(lines) >= 4
    for line in lines:
        assert cli.main(shlex.split(line, comments=True)[1:]) == 0, line
        assert capsys.readouterr().out
    with np.load(tmp_path / "out" / "run.npz") as saved:
        assert "blocks.3.attn.hook_pattern" in saved
    assert (tmp_path / "out" / "logit_lens.png").is_file()


def test_make_targets_of_the_readme() -> None:
    blocks("sh")
    text = README.read_text(encoding="utf-8")
    wanted = set(re.findall(r"\bmake (\w+)", text))
    assert {"demo", "test"} <= wanted
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert not [t for t in wanted if not re.search(rf"^{t}\s*:", makefile, re.M)]


def test_links_and_folders_of_the_readme() -> None:
    blocks("sh")
    text = README.read_text(encoding="utf-8")
    links = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith(("http", "#"))]
    folders = re.findall(r"^\| `([\w/]+)` \|", text, re.M)
    named = re.findall(r"`(tests/[\w/.]+)`", text)
    assert links and len(folders) >= 8
    assert not [t for t in (*links, *folders, *named) if not (ROOT / t).exists()]


def test_extras_of_the_readme() -> None:
    blocks("sh")
    text = README.read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) =", section, re.M))
    told = set(re.findall(r"`(\w+)`", text.split("Extras:")[1].split("Python 3.10")[0]))
    assert told and told <= extras


# ---- notebooks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs(path: Path) -> None:
    """A notebook is kept executed, in order, without errors, and tells nothing about the machine."""
    text = path.read_text(encoding="utf-8")
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c["outputs"]]
    assert outputs and not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", text)


@pytest.mark.filterwarnings("default")  # the machinery of notebooks has its own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "nbclient, ipykernel, matplotlib and tokenizers (clew[notebook,plot,text]) are not all installed"
    for needed in ("nbformat", "nbclient", "ipykernel", "matplotlib", "tokenizers"):
        pytest.importorskip(needed, reason=reason)
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(clew.__file__).parent.parent))
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if old.cell_type == "code":
            kinds = [[sorted(o.get("data", {"text": 0})) for o in cell.outputs] for cell in (old, new)]
            # text that is printed arrives in one piece or in several
            kinds = [[k for i, k in enumerate(row) if k != ["text"] or row[i - 1 : i] != [k]] for row in kinds]
            assert kinds[0] == kinds[1], old.source


def test_there_is_a_notebook() -> None:
    if not (ROOT / "notebooks").is_dir():
        pytest.skip("notebooks/ is not here: the tests run outside the repository")
    assert [p.stem for p in NOTEBOOKS] and all("clew.load" in p.read_text(encoding="utf-8") for p in NOTEBOOKS)
