"""The papers' experiments as commands: clew walk, geometry, descent, mazes, adaptive, and the report of all."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from .errors import ConfigError, LoadError, install
from .experiment import Experiment, listening
from .inputs import check_type, check_writable
from .model import load


@dataclass(frozen=True)
class Paper:
    """A paper and where its experiment is."""

    number: int
    name: str
    """Of the command and of the module `clew.NAME`, whose `experiment` runs it."""
    title: str
    model: str | None
    """Bundled model of the report; None: the experiment trains its own networks."""


PAPERS = (
    Paper(1, "walk", "Embedding walks", "english"),
    Paper(2, "adaptive", "Adaptive inference", None),
    Paper(3, "geometry", "Traveling words", "shakespeare"),
    Paper(4, "descent", "Inner optimisation", "shakespeare"),
    Paper(5, "mazes", "Mazes", "maze-6x6"),
)


def run(
    paper: Paper, model: str | None = None, text: str | None = None, quick: bool = True, seed: int = 0
) -> Experiment:
    """The experiment of a paper on a model; None: the bundled one.

    Raises ConfigError (a model or text for an experiment that takes none), ImportError where this installation lacks
    the experiment, and what the experiment raises.

    >>> run(PAPERS[2], "stories260K").paper
    3
    """
    check_type(Paper, "one of PAPERS", paper=paper)
    module = importlib.import_module(f"clew.{paper.name}")
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise ImportError(f"clew.{paper.name} has no experiment in this installation")
    if paper.model is None:
        if model is not None or text is not None:
            raise ConfigError(f"clew {paper.name} trains its own networks: it takes no model and no text")
        result: Experiment = function(quick=quick, seed=seed)
    else:
        result = function(load(paper.model if model is None else model), text=text, quick=quick, seed=seed)
    return result


def _folder(out: str | None, name: str, force: bool) -> Path | None:
    """The folder to write to: new, empty, or --force; where none was named, a new one in out/. None: figures cannot be
    drawn, and none were asked for."""
    if out is None:
        if importlib.util.find_spec("matplotlib") is None:
            print(f"{name}: only printed: figures need matplotlib: {install('plot')}", file=sys.stderr)
            return None
        tries = (Path("out", name if n == 1 else f"{name}-{n}") for n in count(1))
        return check_writable(out=next(folder for folder in tries if not folder.exists()))
    folder = check_writable(out=out)
    if folder.exists() and any(folder.iterdir()) and not force:
        raise ConfigError(
            f"the folder {folder} exists and is not empty: choose another --out, or --force to write into it"
        )
    return folder


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path}: not UTF-8 at byte {error.start}") from None


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if seed < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return seed


def _act(args: argparse.Namespace) -> None:
    paper: Paper = args.paper
    folder = None if args.dry else _folder(args.out, paper.name, args.force)  # before the work, not after it
    text = None if args.text is None else _text(args.text)
    with listening(lambda part: print(f"{paper.name}: {part} ...", file=sys.stderr, flush=True)):
        result = run(paper, args.model, text, not args.full, args.seed)
    details = result.details()
    print(f"{details}\n\n{result.table()}" if details else result.table())  # the verdicts last: they stay in sight
    if folder is not None:
        files = result.save(folder, overwrite=args.force)
        print(f"\nMade {len(files)} files in {folder}: {', '.join(path.name for path in files)}")


def _report(args: argparse.Namespace) -> None:
    from . import report

    report.main(args.out, not args.full, args.seed)


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands to those of `clew`."""
    settings = argparse.ArgumentParser(add_help=False)
    size = settings.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the small version (the default)")
    size.add_argument("--full", action="store_true", help="the whole experiment, which takes longer")
    settings.add_argument("--seed", type=_seed, default=0, metavar="N", help="of everything random (0)")
    for paper in PAPERS:
        sub = commands.add_parser(
            paper.name,
            parents=[common, settings],
            help=f"paper {paper.number}: {paper.title.lower()}",
            description=f"Runs the experiment of paper {paper.number} and prints for every claim what the paper says, "
            "what was measured and the verdict.",
        )
        sub.add_argument("model", nargs="?", metavar="MODEL", help=f"({paper.model or 'it trains its own networks'})")
        where = sub.add_mutually_exclusive_group()
        where.add_argument("--out", metavar="DIR", help="folder for table.txt, result.json and figures (a new one: "
                           f"out/{paper.name}, out/{paper.name}-2, ...)")  # fmt: skip
        where.add_argument("--dry", action="store_true", help="print the table, write nothing")
        sub.add_argument("--force", action="store_true", help="write into a folder that is not empty")
        sub.add_argument("--text", metavar="FILE", help="a text instead of the bundled one")
        sub.set_defaults(act=_act, paper=paper)
    sub = commands.add_parser(
        "report",
        parents=[common, settings],
        help="all five papers' experiments, as one page",
        description="Runs the experiments of all papers on the bundled models and writes DIR/report.html. Exit status "
        "2 when one of them failed; the page says which and why.",
    )
    sub.add_argument("--out", default="out", metavar="DIR", help="folder of report.html (out), which is replaced")
    sub.set_defaults(act=_report)


__all__ = ["PAPERS", "Paper", "add", "run"]
