"""Texts from files, folders, JSONL and iterables, one at a time: nothing but the current one is in memory."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from ..brief import brief
from ..errors import ConfigError, LoadError, TokenError
from ..inputs import as_array, check_path, check_type

Item: TypeAlias = "str | list[int]"
By = Literal["paragraph", "line", "file"]
_JSON = (".jsonl", ".ndjson")
_PLAIN = (".txt", ".text", ".md")
_MOST_LISTED = 100


@dataclass(frozen=True)
class Broken:
    """A line that is no text."""

    file: str
    line: int
    """The first is 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


class Texts:
    """An iterable of texts, or lists of token ids, that can be larger than memory; iterating again reads again.

    Parameters
    ----------
    source
        A file, a folder (its .txt, .text, .md, .jsonl and .ndjson files, also with .gz, by name, folders inside too),
        or an iterable of texts, lists of ids and `pathlib.Path`s of such files. A str is a path, never a text.
    field
        What a JSONL line's object holds the text (or the ids) under. Blank lines are passed over.
    by
        What of a plain file is a text: a "paragraph" (blank lines part them), a "line" that is not blank, the "file".
    broken
        "error": the first broken line raises LoadError (file, line, what is wrong); "skip": it is counted in
        `n_broken` and the first 100 are listed in `broken`.

    Raises ConfigError for other values, LoadError for a path that does not exist, is no such file, or for a folder
    without any, and, while it is read, for a file that cannot be (a .gz that breaks off); TokenError for an item of an
    iterable that is neither text nor ids, or that is the name of such a file: a `pathlib.Path` is read.

    >>> list(Texts(["one", [1, 2]]))
    ['one', [1, 2]]
    """

    def __init__(self, source: str | os.PathLike[str] | Iterable[Any], field: str = "text", by: By = "paragraph",
                 broken: Literal["error", "skip"] = "error") -> None:  # fmt: skip
        check_type(Iterable if not isinstance(source, os.PathLike) else os.PathLike,
                   "a file, a folder, or texts and lists of ids", source=source)  # fmt: skip
        if isinstance(source, Mapping):
            raise ConfigError("source: a mapping; give its texts alone: source.values()")
        check_type(str, "the name of a field", field=field)
        if by not in ("paragraph", "line", "file"):
            raise ConfigError(f"by = {by!r}: 'paragraph', 'line' or 'file'")
        if broken not in ("error", "skip"):
            raise ConfigError(f"broken = {broken!r}: 'error' or 'skip'")
        self._source = source
        self._field = field
        self._by = by
        self._skip = broken == "skip"
        self.n_broken = 0
        """Broken lines of the last pass."""
        self.broken: list[Broken] = []
        """The first 100 of them."""
        if isinstance(source, str | os.PathLike):
            check_path(source=source)
            _files(Path(source))

    def __repr__(self) -> str:
        source = self._source
        said = os.fspath(source) if isinstance(source, str | os.PathLike) else brief(source)
        return f"Texts of {said}, by {self._by}{f', {self.n_broken} broken' if self.n_broken else ''}"

    def __iter__(self) -> Iterator[Item]:
        self.n_broken = 0
        self.broken = []
        if isinstance(self._source, str | os.PathLike):
            for path in _files(Path(self._source)):
                yield from self._file(path)
            return
        for i, item in enumerate(self._source):
            if isinstance(item, os.PathLike):
                for path in _files(Path(item)):
                    yield from self._file(path)
            elif isinstance(item, str):
                if _is_name(item):
                    raise TokenError(f"item {i}, {item!r}, is the name of a file: pathlib.Path({item!r}) is read")
                yield item
            else:
                ids = as_array(item, f"item {i}")
                if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
                    raise TokenError(f"item {i} is neither a text nor a list of token ids: {item!r:.60}")
                yield [int(t) for t in ids]

    def _file(self, path: Path) -> Iterator[Item]:
        read = self._json_lines if _kind(path) in _JSON else self._plain
        try:
            with cast(BinaryIO, gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
                yield from read(path, _lines(file))
        except LoadError:
            raise
        except (OSError, EOFError, zlib.error) as error:  # a .gz that breaks off or is none
            raise LoadError(f"{path}: {error}") from None

    def _bad(self, path: Path, line: int, reason: str) -> None:
        found = Broken(str(path), line, reason)
        if not self._skip:
            raise LoadError(f'{found}; broken="skip" counts such lines and goes on')
        self.n_broken += 1
        if len(self.broken) < _MOST_LISTED:
            self.broken.append(found)

    def _json_lines(self, path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[Item]:
        for number, line in lines:
            if not line.strip():
                continue
            item = _parsed(line, self._field)
            if isinstance(item, _Reason):
                self._bad(path, number, item)
            else:
                yield item

    def _plain(self, path: Path, lines: Iterator[tuple[int, bytes]]) -> Iterator[str]:
        kept: list[str] = []
        for number, line in lines:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                self._bad(path, number, f"not UTF-8 at byte {error.start}")
                continue
            ends = self._by == "line" or (self._by == "paragraph" and not text.strip())
            if text.strip() or self._by == "file":
                kept.append(text)
            if ends and kept:
                yield "".join(kept).rstrip("\r\n")
                kept = []
        rest = "".join(kept)
        if rest.strip():
            yield rest if self._by == "file" else rest.rstrip("\r\n")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, a byte order mark passed over."""
    for number, line in enumerate(file, 1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


class _Reason(str):
    """What is wrong with a line; texts are plain str."""


def _parsed(line: bytes, field: str) -> Item | _Reason:
    """The text or the ids of a JSONL line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _Reason(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        return _Reason(f"not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return _Reason("not JSON that can be read: nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return _Reason(f"not JSON that can be read: {error}")
    if not isinstance(value, dict):
        return _Reason(f"a {type(value).__name__}, not an object with a field {field!r}")
    if field not in value:
        return _Reason(f"no field {field!r}; it has {', '.join(map(repr, value)) or 'none'}")
    item = value[field]
    if isinstance(item, str) and item:
        return item
    if isinstance(item, list) and item and all(isinstance(t, int) and not isinstance(t, bool) for t in item):
        return item
    empty = isinstance(item, str | list) and not item
    return _Reason(f"field {field!r} is {'empty' if empty else 'neither a text nor a list of token ids'}")


def _kind(path: Path) -> str:
    """The suffix that tells what a file holds, .gz aside."""
    return Path(path.stem).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _is_name(text: str) -> bool:
    """Is this the name of a file of texts that there is, and not a text?"""
    return text.lower().endswith((*_JSON, *_PLAIN, ".gz")) and os.path.isfile(text)


def _files(path: Path) -> list[Path]:
    if not os.path.exists(path):  # what no path can be, a long text, does not exist either
        raise LoadError(f"{str(path)!r:.80}: there is no such file or folder; a text itself is given in a list: [text]")
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in (*_JSON, *_PLAIN))
        if not found:
            raise LoadError(f"{path}: no file in it ends in {', '.join((*_PLAIN, *_JSON))}")
        return found
    if not path.is_file():
        raise LoadError(f"{path}: neither a file nor a folder")
    if _kind(path) not in (*_JSON, *_PLAIN):
        raise LoadError(f"{path}: a file of texts ends in {', '.join((*_PLAIN, *_JSON))}, or one of these and .gz")
    return [path]
