"""All five papers' experiments on one page: what each says, what was measured, the picture, the verdict.

The page is one file: images and style are inside, nothing is loaded, no script runs.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import PAPERS, Paper, run
from .errors import Error
from .experiment import Claim, Experiment, listening, tell
from .info import __version__
from .inputs import check_seed, check_type, check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Entry:
    """One experiment: its result, or the message of what stopped it."""

    paper: Paper
    result: Experiment | None
    error: str = ""
    seconds: float = 0.0
    images: dict[str, bytes] = field(default_factory=dict)
    """PNG files by the figure's name."""


_WIDTH = 4.8  # inches of a picture: on a phone's 390 px its letters are still about 9 px tall
_DPI = 160


def _png(figure: Figure) -> bytes:
    width, height = figure.get_size_inches()
    if width > _WIDTH:
        figure.set_size_inches(_WIDTH, height * max(_WIDTH / width, 0.8))
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()


def entry(paper: Paper, quick: bool = True, seed: int = 0) -> Entry:
    """Runs an experiment and draws it. Whatever goes wrong becomes the entry's error."""
    start = time.perf_counter()
    try:
        result = run(paper, quick=quick, seed=seed)
        tell("figures")
        images = {name: _png(figure) for name, figure in result.figures().items()}
    except Exception as error:  # the page tells what failed and the other papers still run
        text = " ".join(str(error).split())
        return Entry(paper, None, f"{type(error).__name__}: {text}" if text else type(error).__name__,
                     time.perf_counter() - start)  # fmt: skip
    return Entry(paper, result, "", time.perf_counter() - start, images)


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 68rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; border-top: 2px solid #333; padding-top: 1rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1.05rem; line-height: 1.35; margin: .3rem 0 .6rem; }
a { color: #0057a0; }
table { border-collapse: collapse; width: 100%; max-width: 34rem; }
td, th { border-bottom: 1px solid #ccc; padding: .4rem .3rem; text-align: left; vertical-align: bottom;
  line-height: 1.25; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
th { font-size: .85rem; overflow-wrap: normal; }
img { width: 100%; max-width: 34rem; height: auto; display: block; }
.claim, .failure { border: 1px solid #ccc; border-left: .4rem solid #767676; border-radius: 4px; padding: .7rem .9rem;
  margin: 1rem 0; }
.yes { border-left-color: #0072B2; } .no { border-left-color: #D55E00; }
.failure { border-left-color: #a00000; background: #fff4f4; }
.verdict { display: inline-block; font-size: .85rem; font-weight: 700; color: #fff; background: #595959;
  border-radius: 3px; padding: .05rem .5rem; margin: 0; }
.yes .verdict { background: #005a8e; } .no .verdict { background: #a84a00; }
dl { margin: 0; } dt { font-weight: 600; font-size: .85rem; color: #555; } dd { margin: 0 0 .6rem; }
.note { color: #555; }
.facts, footer { color: #555; font-size: .9rem; } footer { margin-top: 3rem; }
.more { display: grid; gap: 1rem; }
@media (max-width: 40rem) { .claim img { width: calc(100% + 1.6rem); max-width: none; margin: 0 -.8rem; } }
@media (min-width: 60rem) {
  .picture { display: grid; grid-template-columns: 1fr 30rem; column-gap: 1.5rem; align-items: start; }
  .more { grid-template-columns: 1fr 1fr; }
}
"""
_LOOK = {"holds": "yes", "does not hold": "no"}


def _image(name: str, data: bytes, alt: str) -> str:
    source = base64.b64encode(data).decode("ascii")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))  # of the PNG's header
    size = f' width="{width}" height="{height}"' if width and height else ""
    return f'<img id="{html.escape(name)}" alt="{html.escape(alt)}"{size} src="data:image/png;base64,{source}">'


def _text(text: str) -> str:
    """Escaped; a remark in brackets at the beginning stands back."""
    note = re.match(r"\([^()]*\) ", text)
    if note is None:
        return html.escape(text)
    return f'<span class="note">{html.escape(note[0])}</span>{html.escape(text[note.end() :])}'


def _claim(claim: Claim, images: dict[str, bytes], prefix: str, shown: set[str]) -> str:
    picture = pointer = ""
    if claim.figure in images and claim.figure is not None:
        name = f"{prefix}-{claim.figure}"
        if claim.figure in shown:  # one figure can be about several claims: it is on the page once
            pointer = f'<p><a href="#{html.escape(name)}">The picture is above.</a></p>'
        else:
            shown.add(claim.figure)
            picture = _image(name, images[claim.figure], f"{claim.figure.replace('_', ' ')}: {claim.text}")
    look = _LOOK.get(claim.verdict, "open") + (" picture" if picture else "")
    title = html.escape(claim.text[:1].upper() + claim.text[1:])
    return (
        f'<article class="claim {look}"><div><p class="verdict">{html.escape(claim.verdict)}</p>'
        f"<h3>{title}</h3><dl><dt>The paper says</dt><dd>{_text(claim.says)}</dd>"
        f"<dt>Measured</dt><dd>{_text(claim.measured)}</dd></dl>{pointer}</div>{picture}</article>"
    )


def _section(e: Entry) -> str:
    head = f'<section id="{e.paper.name}"><h2>Paper {e.paper.number}: {html.escape(e.paper.title)}</h2>'
    if e.result is None:
        return f'{head}<div class="failure"><h3>Failed</h3><p>{html.escape(e.error)}</p></div></section>'
    r = e.result
    facts = (
        f'<p class="facts">{html.escape(r.title)}. Model: {html.escape(r.model)}; seed {r.seed}; {e.seconds:.0f} s.</p>'
    )
    shown: set[str] = set()
    claims = "".join(_claim(c, e.images, e.paper.name, shown) for c in r.claims)
    more = "".join(
        _image(f"{e.paper.name}-{name}", data, f"{name.replace('_', ' ')}, paper {e.paper.number}")
        for name, data in e.images.items() if name not in shown
    )  # fmt: skip
    if more:
        more = f'<h3>More pictures</h3><div class="more">{more}</div>'
    return f"{head}{facts}{claims}{more}</section>"


def counts(e: Entry) -> dict[str, int]:
    """How many claims have each verdict; empty for an experiment that failed."""
    out: dict[str, int] = {}
    for claim in e.result.claims if e.result is not None else ():
        out[claim.verdict] = out.get(claim.verdict, 0) + 1
    return out


def page(entries: Sequence[Entry], quick: bool = True, seed: int = 0) -> str:
    """The whole page as HTML.

    >>> "no weights" in page([Entry(PAPERS[0], None, "LoadError: no weights")])
    True
    """
    check_type(Sequence, "a list of entries", entries=entries)
    rows = ""
    for e in entries:
        n = counts(e)
        cells = "".join(
            f'<td class="number">{n.get(v, 0)}</td>' for v in ("holds", "does not hold", "not testable on this model")
        )
        name = f'<td><a href="#{e.paper.name}">{e.paper.number}. {html.escape(e.paper.title)}</a></td>'
        failed = '<td class="number" colspan="3">failed</td>'
        rows += f"<tr>{name}{cells if e.result is not None else failed}</tr>"
    size = "small" if quick else "whole"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>clew: five papers, measured</title><style>{_STYLE}</style></head><body>"
        "<h1>Five papers, measured</h1><p>For every claim: what the paper says, what was measured on small models that "
        "come with clew, and whether it holds there.</p>"
        '<table><thead><tr><th>paper</th><th class="number">holds</th><th class="number">does not hold</th>'
        f'<th class="number">not testable</th></tr></thead><tbody>{rows}</tbody></table>'
        + "".join(_section(e) for e in entries)
        + f"<footer>clew {html.escape(__version__)}, the {size} version of each experiment, seed {seed}.</footer>"
        "</body></html>\n"
    )


def main(out: str | os.PathLike[str] = "out", quick: bool = True, seed: int = 0,
         papers: Sequence[Paper] = PAPERS) -> Path:  # fmt: skip
    """Runs the papers' experiments, names each part as it begins, and writes `out`/report.html; its path.

    Raises ConfigError for a file in the folder's place; Error, after the page is written, where an experiment failed:
    which, and why.
    """
    folder = check_writable(out=out)
    seed = check_seed(seed)
    check_type(Sequence, "a list of papers", papers=papers)
    for paper in papers:
        check_type(Paper, "one of PAPERS", paper=paper)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for i, paper in enumerate(papers, 1):
        print(f"[{i}/{len(papers)}] paper {paper.number}, {paper.title}: ", end="", flush=True)
        with listening(lambda part: print(part, end=", ", flush=True)):
            e = entry(paper, quick, seed)
        entries.append(e)
        told = ", ".join(f"{v}: {n}" for v, n in counts(e).items()) if e.result is not None else f"FAILED: {e.error}"
        print(f"done ({e.seconds:.0f} s)\n      {told}", flush=True)
    path = folder / "report.html"
    path.write_text(page(entries, quick, seed), encoding="utf-8")
    print(f"Made {os.fspath(path)}")
    failed = [e for e in entries if e.result is None]
    if failed:
        why = "; ".join(f"{e.paper.name} ({e.error})" for e in failed)
        raise Error(f"{len(failed)} of {len(entries)} experiments failed: {why}; the others are in {os.fspath(path)}")
    return path


__all__ = ["Entry", "counts", "entry", "main", "page"]
