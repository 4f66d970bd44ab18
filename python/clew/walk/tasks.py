"""Multiple-choice tasks: HellaSwag's files, with errors that name the line, and an easier task made of any text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..brief import Brief
from ..errors import ConfigError, LoadError, TokenError
from ..inputs import check_counts, check_flags, check_path, check_seed, check_type, is_word, whole

N_CHOICES = 4


@dataclass(frozen=True)
class Task:
    """A question with four endings. Raises ConfigError for other numbers of them, and for blank texts."""

    context: str
    """`activity_label: ctx`"""
    endings: tuple[str, ...]
    """Without the space that joins them to the context."""
    gold: int
    """Index of the right ending."""

    def __post_init__(self) -> None:
        check_type(tuple, f"a tuple of {N_CHOICES} texts", endings=self.endings)
        if len(self.endings) != N_CHOICES:
            raise ConfigError(f"Task: {len(self.endings)} endings: a task has {N_CHOICES}")
        for text in (self.context, *self.endings):
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f"Task: {text!r:.40}: its context and endings are texts, and not blank")
        if not 0 <= whole(self.gold, "Task: gold") < N_CHOICES:
            raise ConfigError(f"Task: gold = {self.gold}: 0 to {N_CHOICES - 1}")

    @property
    def answer(self) -> str:
        """The right ending, with the space before it."""
        return " " + self.endings[self.gold]


@dataclass(frozen=True)
class Tasks(Brief, Sequence[Task]):
    """Tasks of a file; made by :func:`read_tasks`."""

    tasks: tuple[Task, ...]
    source: str
    skipped: tuple[str, ...] = ()
    """What was wrong with each task that was left out, with its line."""

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Tasks(self.tasks[index], self.source, self.skipped)
        return self.tasks[index]


Bad = Literal["error", "skip"]


class NotText(str):
    """Stands for a line that is no UTF-8, and says so; texts are plain str."""


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """Lines of a text file, plain, .bz2 or .gz; :class:`NotText` for one that is no UTF-8, so that readers can name it.

    Lines end in a line feed, a carriage return before it aside: other separators are part of a text. A byte order mark
    is passed over. Raises LoadError for a file that cannot be read.
    """
    check_path(path=path)
    unpack = {".bz2": bz2.decompress, ".gz": gzip.decompress}.get(Path(path).suffix, bytes)
    try:
        data = unpack(Path(path).read_bytes())
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a .bz2 that breaks off
        raise LoadError(f"{path}: {error}") from None
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [_decoded(line.removesuffix(b"\r")) for line in (lines if lines[-1] else lines[:-1])]


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return NotText(f"not UTF-8 at byte {error.start}")


def check_text(line: str, number: int) -> str:
    """The line. Raises ValueError, with its number, for one that is no text."""
    if isinstance(line, NotText):
        raise ValueError(f"line {number}: {line}")
    return line


def _six_lines(lines: list[str]) -> Callable[[int], Task]:
    def parse(at: int) -> Task:
        block = [check_text(line, at + 1 + i) for i, line in enumerate(lines[at : at + 2 + N_CHOICES])]
        if len(block) < 2 + N_CHOICES:
            raise ValueError(f"line {at + 1}: a task has six lines (context, gold index, four endings), this has "
                             f"{len(block)}")  # fmt: skip
        return _task(block[0], block[1], block[2:], [at + 1 + i for i in range(6)])

    return parse


def _task(context: Any, gold: Any, endings: Any, lines: list[int]) -> Task:
    if not isinstance(context, str) or not context.strip():
        raise ValueError(f"line {lines[0]}: the context is empty or no text")
    text = str(gold).strip()
    if isinstance(gold, bool) or not re.fullmatch(r"[0-3]", text):
        raise ValueError(f"line {lines[1]}: the gold index is {text[:40]!r}, not 0 to 3")
    if not isinstance(endings, list) or len(endings) != N_CHOICES:
        raise ValueError(f"line {lines[2]}: a task has {N_CHOICES} endings")
    for i, ending in enumerate(endings):
        if not isinstance(ending, str) or not ending.strip():
            raise ValueError(f"line {lines[2 + i]}: ending {i} is empty or no text")
    return Task(context, tuple(e.strip() for e in endings), int(text))


def _json_line(number: int, line: str) -> Task:
    """A line of HellaSwag's own JSONL: activity_label, ctx, label, endings."""
    try:
        data = json.loads(check_text(line, number))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError(f"line {number}: no JSON that can be read: nested too deeply") from None
    except ValueError as error:
        if isinstance(line, NotText):
            raise
        raise ValueError(f"line {number}: no JSON that can be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"line {number}: not an object")
    missing = [key for key in ("ctx", "label", "endings") if key not in data]
    if missing:
        raise ValueError(f"line {number}: no {missing[0]!r}")
    label = data.get("activity_label")
    context = f"{label}: {data['ctx']}" if label else data["ctx"]
    return _task(context, data["label"], data["endings"], [number] * 6)


def read_tasks(path: str | os.PathLike[str], bad: Bad = "error") -> Tasks:
    """Tasks of a HellaSwag file: six lines a task (context, gold, four endings), or .jsonl;
    also .bz2 and .gz.

    bad: "error" stops at a broken line, with its number and what is wrong; "skip" leaves the task out, and `skipped`
    says what was wrong with each. In six-line files a task that is too short or long shifts the others: reading goes on
    at the next line whose successor is a gold index. Raises LoadError, ConfigError.
    """
    if not is_word(bad, ("error", "skip")):
        raise ConfigError(f"bad = {bad!r}: 'error' or 'skip'")
    lines = read_lines(path)
    tasks: list[Task] = []
    skipped: list[str] = []
    is_json = ".jsonl" in Path(path).name
    parse = _six_lines(lines)
    at = 0
    while at < len(lines):
        step = 1
        try:
            if is_json and lines[at].strip():
                tasks.append(_json_line(at + 1, lines[at]))
            elif not is_json:
                step = 2 + N_CHOICES
                tasks.append(parse(at))
        except ValueError as error:
            if bad == "error":
                raise LoadError(f"{path}: {error}") from None
            skipped.append(str(error))
            if not is_json:
                step = next((n for n in range(1, len(lines) - at - 1)
                             if re.fullmatch(r"[0-3]", lines[at + n + 1].strip())), len(lines) - at)  # fmt: skip
        at += step
    if not tasks:
        raise LoadError(f"{path}: no task" + (f"; the first of {len(skipped)}: {skipped[0]}" if skipped else ""))
    return Tasks(tuple(tasks), Path(path).name, tuple(skipped))


_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")


def next_sentence_tasks(text: str, n: int = 100, seed: int = 0, sentences: int = 2, alike: bool = False) -> Tasks:
    """An easier four-way task for small models: the true next sentence against three random ones of the same text.

    Contexts are `sentences` sentences long. alike: the random endings are as many words long as the true one, give or
    take one; tasks that find no three of them are left out. Raises TokenError for a text of fewer than ten sentences,
    ConfigError for `alike` that is no flag.

    >>> tasks = next_sentence_tasks(" ".join(f"This is sentence {i}." for i in range(30)), n=5)
    >>> len(tasks), tasks[0].endings[tasks[0].gold] != tasks[0].context
    (5, True)
    """
    check_type(str, "a text", text=text)
    check_flags(alike=alike)
    check_counts(n=n, sentences=sentences)
    n, sentences = int(n), int(sentences)
    found = [s.strip() for s in _SENTENCE.findall(text) if 3 <= len(s.split()) <= 40]
    if len(found) < 10:
        raise TokenError(f"next_sentence_tasks: {len(found)} sentences of 3 to 40 words: at least 10 are needed")
    rng = np.random.default_rng(check_seed(seed))
    length = np.array([len(s.split()) for s in found])
    tasks: list[Task] = []
    for start in rng.permutation(max(len(found) - sentences, 0)):
        if len(tasks) == n:
            break
        true = int(start) + sentences
        others = [i for i in range(len(found)) if not start <= i <= true and found[i] != found[true]]
        if alike:
            others = [i for i in others if abs(length[i] - length[true]) <= 1]
            if len(others) < N_CHOICES - 1:
                continue
        others = list(rng.permutation(others))
        gold = int(rng.integers(N_CHOICES))
        endings = [found[int(i)] for i in others[: N_CHOICES - 1]]
        endings.insert(gold, found[true])
        tasks.append(Task(" ".join(found[start:true]), tuple(endings), gold))
    return Tasks(tuple(tasks), "the next of four sentences")


__all__ = ["NotText", "Task", "Tasks", "check_text", "next_sentence_tasks", "read_lines", "read_tasks"]
