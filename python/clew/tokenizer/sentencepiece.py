"""SentencePiece vocabularies that merge by score, as `tokenizer.model`, GGUF files and llama2.c hold them.

Not built on the `tokenizers` package: its BPE orders *pairs*, whereas here every way to form a piece has that piece's
score and the leftmost comes first, so it splits some repeated characters differently.
"""

from __future__ import annotations

import codecs
import heapq
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import LoadError, TokenError, UnsupportedModelError
from .base import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of pieces; SentencePiece's numbers, which GGUF took over."""

SPACE = "\u2581"
MAX_VOCABULARY = 1 << 24
MAX_FILE = 1 << 28
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CACHE_LENGTH, _CACHE_SIZE = 64, 1 << 16


def _one_each(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("clew-one-each", _one_each)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece vocabulary whose pieces merge by score, with bytes for what it does not know.

    Parameters
    ----------
    pieces, scores, kinds
        By id. Higher scores merge first.
    bos_id, eos_id, unk_id
        None where there is none.
    add_bos, add_eos
        What `encode` adds.
    add_space_prefix
        A text is read as if a space came before it.
    prefix_after_special
        So is the text behind every special token in it (llama.cpp), not only at the start (sentencepiece).
    remove_extra_whitespaces
        Spaces around the text go, runs of spaces become one.
    special_in_text
        Control tokens that are spelled out in a text are recognised.
    space
        How the pieces write a space.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: Sequence[float],
        kinds: Sequence[int],
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        unk_id: int | None = None,
        add_bos: bool = True,
        add_eos: bool = False,
        add_space_prefix: bool = True,
        prefix_after_special: bool = False,
        remove_extra_whitespaces: bool = False,
        special_in_text: bool = True,
        space: str = SPACE,
    ) -> None:
        self.tokens = list(pieces)
        self.bos_id, self.eos_id, self._unk_id = bos_id, eos_id, unk_id
        self._add_bos, self._add_eos = add_bos and bos_id is not None, add_eos and eos_id is not None
        self._kinds = list(kinds)
        self._add_space_prefix, self._prefix_after_special = add_space_prefix, prefix_after_special
        self._remove_extra = remove_extra_whitespaces
        self._space = space

        self._pieces: dict[str, tuple[int, float]] = {}
        """What merging may form: piece -> id, score."""
        self._bytes: dict[int, int] = {}
        self._byte_of: dict[int, int] = {}
        specials: dict[str, int] = {}
        defined: dict[str, int] = {}
        for token, (piece, score, kind) in enumerate(zip(self.tokens, scores, self._kinds, strict=True)):
            if kind == BYTE and (match := _BYTE_PIECE.fullmatch(piece)):
                byte = int(match[1], 16)
                self._bytes.setdefault(byte, token)
                self._byte_of[token] = byte
            elif kind == CONTROL:
                if special_in_text and piece:
                    specials.setdefault(piece, token)
            elif kind == USER_DEFINED and piece:
                defined.setdefault(piece, token)
                self._pieces.setdefault(piece, (token, score))
            elif kind in (NORMAL, UNUSED) and piece:
                self._pieces.setdefault(piece, (token, score))
        if prefix_after_special:  # llama.cpp cuts user-defined tokens out of the text before anything else
            specials = {piece.replace(space, " "): token for piece, token in defined.items()} | specials
            defined = {}
        self._specials, self._special_pattern = specials, _any_of(specials)
        self._defined, self._defined_pattern = defined, _any_of(defined)
        # where no piece reaches across the end of a word, words are merged one by one and remembered
        within_words = all(re.fullmatch(f"{space}*[^{space}]*", piece) for piece in self._pieces if len(piece) > 1)
        self._words = re.compile(f"{space}*[^{space}]+|{space}+") if within_words else re.compile(r"(?s:.+)")
        self._cache: dict[str, list[int]] = {}

    # ---- text -> ids

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        out = [self.bos_id] if add_special_tokens and self._add_bos and self.bos_id is not None else []
        start, prefix = 0, self._add_space_prefix
        for match in self._special_pattern.finditer(text) if self._special_pattern else ():
            out += self._encode_plain(text[start : match.start()], prefix)
            out.append(self._specials[match[0]])
            start, prefix = match.end(), self._add_space_prefix and self._prefix_after_special
        out += self._encode_plain(text[start:], prefix)
        if add_special_tokens and self._add_eos and self.eos_id is not None:
            out.append(self.eos_id)
        return out

    def _encode_plain(self, text: str, prefix: bool) -> list[int]:
        """Text without control tokens."""
        if self._remove_extra:
            text = re.sub(" +", " ", text.lstrip(" "))
        if not text:
            return []
        text = (" " if prefix else "") + text
        text = text.replace(" ", self._space)
        if self._remove_extra:
            text = text.rstrip(self._space)
        out: list[int] = []
        start = 0
        for match in self._defined_pattern.finditer(text) if self._defined_pattern else ():
            self._encode_words(text[start : match.start()], out)
            out.append(self._defined[match[0]])
            start = match.end()
        self._encode_words(text[start:], out)
        if not self._bytes and self._unk_id is not None:  # neighbouring unknown characters are one token
            out = [t for i, t in enumerate(out) if not (i and t == self._unk_id == out[i - 1])]
        return out

    def _encode_words(self, text: str, out: list[int]) -> None:
        cache = self._cache
        for word in self._words.findall(text):
            ids = cache.get(word)
            if ids is None:
                ids = self._merge(word)
                if len(word) <= _CACHE_LENGTH:
                    if len(cache) >= _CACHE_SIZE:
                        cache.clear()
                    cache[word] = ids
            out += ids

    def _merge(self, word: str) -> list[int]:
        """Characters merged into pieces, best score first, leftmost of equals."""
        pieces = self._pieces
        symbols: list[str] = list(word)
        following = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        heap: list[tuple[float, int, int, str]] = []
        made_of: dict[str, tuple[str, str]] = {}

        def offer(left: int, right: int) -> None:
            both = symbols[left] + symbols[right]
            found = pieces.get(both)
            if found is not None:
                heapq.heappush(heap, (-found[1], left, right, both))
                if self._kinds[found[0]] == UNUSED:
                    made_of[both] = symbols[left], symbols[right]

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, both = heapq.heappop(heap)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != len(both):
                continue  # one of them has been merged since
            symbols[left], symbols[right] = both, ""
            following[left] = following[right]
            if following[right] < len(symbols):
                before[following[right]] = left
                offer(left, following[right])
            if before[left] >= 0:
                offer(before[left], left)

        out: list[int] = []
        waiting = [symbol for symbol in reversed(symbols) if symbol]
        while waiting:
            symbol = waiting.pop()
            if symbol in made_of:  # a piece that only stands between others
                left_part, right_part = made_of[symbol]
                waiting += (right_part, left_part)
            elif symbol in pieces:
                out.append(pieces[symbol][0])
            else:
                out += self._spell(symbol)
        return out

    def _spell(self, symbol: str) -> list[int]:
        """A character that is no piece: as bytes, else the unknown token."""
        if self._bytes:
            raw = symbol.encode()
            if all(byte in self._bytes for byte in raw):
                return [self._bytes[byte] for byte in raw]
        if self._unk_id is None:
            raise TokenError(f"the vocabulary cannot spell {symbol!r} and has no unknown token")
        return [self._unk_id]

    # ---- ids -> text

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        out: list[str] = []
        raw = bytearray()
        at_start = self._add_space_prefix or self._remove_extra

        def flush() -> None:
            if raw:
                out.append(raw.decode("utf-8", "clew-one-each"))
                raw.clear()

        for token in ids:
            if token in self._byte_of:
                raw.append(self._byte_of[token])
                at_start = False
                continue
            flush()
            if self._kinds[token] in (CONTROL, UNKNOWN):
                if not skip_special_tokens:
                    out.append(self.tokens[token])
                if self._kinds[token] == UNKNOWN:
                    at_start = False
                elif self._prefix_after_special:
                    at_start = self._add_space_prefix
                continue
            piece = self.tokens[token].replace(self._space, " ")
            if at_start and piece:
                piece = piece.removeprefix(" ")
                at_start = self._remove_extra and not piece
            out.append(piece)
        flush()
        return "".join(out)

    def _str_token(self, token: int) -> str:
        if token in self._byte_of:
            return bytes([self._byte_of[token]]).decode("utf-8", "clew-one-each")
        return self.tokens[token].replace(self._space, " ")

    def _lookup(self, text: str) -> int | None:
        found = self._pieces.get(text.replace(" ", self._space))
        if found is not None:
            return found[0]
        raw = text.encode()
        return self._bytes.get(raw[0]) if len(raw) == 1 else None


def _any_of(texts: dict[str, int]) -> re.Pattern[str] | None:
    """Finds the longest of some texts at each place."""
    if not texts:
        return None
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))


# ---- llama2.c ----


def from_llama2c(path: str | os.PathLike[str], vocab_size: int | None = None) -> SentencePieceTokenizer:
    """A llama2.c `tokenizer.bin`: int32 longest piece, then float32 score, int32 length and the piece, for each id.

    Parameters
    ----------
    path
        The file.
    vocab_size
        How many pieces it must hold; None: as many as it does.

    Raises
    ------
    LoadError
        A file that is cut short or that holds another number of pieces.
    """
    data = _read(path)
    pieces: list[str] = []
    scores: list[float] = []
    if len(data) < 4:
        raise LoadError(f"{path}: byte 0: {len(data)} bytes are too few for a tokenizer")
    (longest,) = struct.unpack_from("<i", data)
    place = 4
    while place < len(data):
        if place + 8 > len(data):
            raise LoadError(f"{path}: byte {place}: the file ends inside piece {len(pieces)}")
        score, length = struct.unpack_from("<fi", data, place)
        if not 0 <= length <= min(longest, len(data) - place - 8):
            raise LoadError(f"{path}: byte {place + 4}: piece {len(pieces)} has a length of {length}")
        if not math.isfinite(score):
            raise LoadError(f"{path}: byte {place}: piece {len(pieces)} has the score {score}")
        place += 8
        try:
            pieces.append(data[place : place + length].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise LoadError(f"{path}: byte {place + error.start}: piece {len(pieces)} is no UTF-8") from None
        scores.append(score)
        place += length
    if vocab_size is not None and len(pieces) != vocab_size:
        raise LoadError(f"{path}: {len(pieces)} pieces, expected {vocab_size}")
    if len(pieces) < 3:
        raise LoadError(f"{path}: {len(pieces)} pieces are too few: 0 is unknown, 1 begins, 2 ends a text")
    for token in range(3):  # written as "\n<s>\n" there
        pieces[token] = pieces[token].strip("\n")
    kinds = [UNKNOWN, CONTROL, CONTROL]
    kinds += [BYTE if _BYTE_PIECE.fullmatch(piece) else NORMAL for piece in pieces[3:]]
    return SentencePieceTokenizer(pieces, scores, kinds, bos_id=1, eos_id=2, unk_id=0, special_in_text=False, space=" ")


# ---- tokenizer.model ----


def from_model_file(path: str | os.PathLike[str], *, add_bos: bool = True, add_eos: bool = False) -> Tokenizer:
    """A SentencePiece `tokenizer.model` of the BPE kind.

    Raises
    ------
    LoadError
        A damaged file.
    UnsupportedModelError
        Another kind (unigram, word, char) or a normalisation of characters.
    """
    data = _read(path)
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, int | bytes | float] = {3: 1, 40: 0, 41: 1, 42: 2}
    normalizer: dict[int, int | bytes | float] = {3: 1, 4: 1, 5: 1}
    for field, value, place in _fields(data, 0, len(data), path):
        if field == 1 and isinstance(value, bytes):
            piece, score, kind = b"", 0.0, NORMAL
            for inner, item, _ in _fields(value, 0, len(value), path, place):
                if inner == 1 and isinstance(item, bytes):
                    piece = item
                elif inner == 2 and isinstance(item, float):
                    score = item
                elif inner == 3 and isinstance(item, int):
                    kind = item
            if not math.isfinite(score):
                raise LoadError(f"{path}: byte {place}: piece {len(pieces)} has the score {score}")
            try:
                pieces.append(piece.decode("utf-8"))
            except UnicodeDecodeError:
                raise LoadError(f"{path}: byte {place}: piece {len(pieces)} is no UTF-8") from None
            scores.append(score)
            kinds.append(kind)
        elif field in (2, 3) and isinstance(value, bytes):
            target = trainer if field == 2 else normalizer
            target.update((inner, item) for inner, item, _ in _fields(value, 0, len(value), path, place))
    if not pieces:
        raise LoadError(f"{path}: no pieces: this is no SentencePiece model")
    if trainer[3] != 2:
        kind_name = {1: "unigram", 3: "word", 4: "char"}.get(int(trainer[3]), str(trainer[3]))
        raise UnsupportedModelError(f"{path}: SentencePiece model of the kind {kind_name}; supported: bpe")
    if normalizer.get(2):
        rule = normalizer.get(1, b"")
        name = rule.decode("utf-8", "replace") if isinstance(rule, bytes) else str(rule)
        raise UnsupportedModelError(f"{path}: SentencePiece normalisation {name!r}; supported: identity")
    if trainer.get(24):
        raise UnsupportedModelError(f"{path}: treat_whitespace_as_suffix; supported: a space before a word")

    def known(field: int) -> int | None:
        value = int(trainer[field])
        value = value - (1 << 64) if value >= 1 << 63 else value  # a negative int32 is written in 64 bits
        return value if 0 <= value < len(pieces) else None

    return SentencePieceTokenizer(
        pieces, scores, kinds,
        unk_id=known(40), bos_id=known(41), eos_id=known(42), add_bos=add_bos, add_eos=add_eos,
        add_space_prefix=bool(normalizer[3]), remove_extra_whitespaces=bool(normalizer[4]),
    )  # fmt: skip


def _fields(
    data: bytes, start: int, end: int, path: str | os.PathLike[str], base: int = 0
) -> Iterator[tuple[int, int | bytes | float, int]]:
    """Fields of a protocol buffer message: number, value, the byte of the file where the value begins."""
    place = start

    def varint() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            if place >= end or shift > 63:
                raise LoadError(f"{path}: byte {base + place}: the file ends inside a number or the number is too long")
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < end:
        key = varint()
        field, wire = key >> 3, key & 7
        begin = place
        if not field:
            raise LoadError(f"{path}: byte {base + begin}: field 0: this is no SentencePiece model")
        if wire == 0:
            yield field, varint(), base + begin
            continue
        if wire == 2:
            length = varint()
            begin = place
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise LoadError(f"{path}: byte {base + begin}: unknown wire type {wire}: this is no SentencePiece model")
        if length > end - place:
            raise LoadError(f"{path}: byte {base + begin}: {length} bytes do not fit in the file")
        raw = data[place : place + length]
        place += length
        yield field, (raw if wire == 2 else struct.unpack("<d" if wire == 1 else "<f", raw)[0]), base + begin


def _read(path: str | os.PathLike[str]) -> bytes:
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE:
            raise LoadError(f"{path}: {path.stat().st_size} bytes are too many for a tokenizer (limit {MAX_FILE})")
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{path}: {error.strerror or error}") from error
