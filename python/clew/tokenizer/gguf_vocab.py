"""The vocabulary inside a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import LoadError, UnsupportedModelError
from .base import Tokenizer
from .huggingface import BackedTokenizer, require_tokenizers
from .sentencepiece import (
    _BYTE_PIECE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceTokenizer,
)

# How text is cut into words before its bytes are merged. The expressions are the published ones of each model family;
# a list is applied one after the other, each to what the ones before left in one piece.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_EDGE = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_EDGE}\p{{L}}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPLITS: dict[str, list[str]] = {
    "gpt2": [_GPT2],
    "llama3": [rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}{_TAIL}"],
    "qwen2": [rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{_TAIL}"],
    "digits": [r"\p{N}", _GPT2],
    "tekken": [rf"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*|\p{{N}}{_TAIL_SLASH}"],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
_PRE = {
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"), "gpt2"),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), "llama3"),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), "qwen2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), "digits"),
    "tekken": "tekken",
    "default": "default",
}


def from_gguf(metadata: Mapping[str, Any], where: str = "GGUF file") -> Tokenizer | None:
    """The tokenizer that a GGUF file's metadata describe; None where they hold none.

    Parameters
    ----------
    metadata
        Key -> value, arrays as sequences.
    where
        The file's name, for messages.

    Raises
    ------
    LoadError
        Arrays of different lengths, ids outside the vocabulary, text that is no UTF-8; or a byte-level vocabulary, and
        the `tokenizers` package is not installed.
    UnsupportedModelError
        A kind of tokenizer, or a way to cut words, that is not supported; by name.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind not in ("llama", "gpt2"):
        raise UnsupportedModelError(f"{where}: tokenizer.ggml.model = {kind!r}; supported: llama, gpt2")
    pieces = _texts(metadata, "tokenizer.ggml.tokens", where)
    if not pieces:
        raise LoadError(f"{where}: tokenizer.ggml.tokens is missing or empty")
    kinds = _numbers(metadata, "tokenizer.ggml.token_type", where, len(pieces))
    ids = {
        name: _token_id(metadata, f"tokenizer.ggml.{name}_token_id", where, len(pieces))
        for name in ("bos", "eos", "unknown")
    }
    if kind == "llama":
        scores = _numbers(metadata, "tokenizer.ggml.scores", where, len(pieces))
        if scores is None:
            raise LoadError(f"{where}: tokenizer.ggml.scores is missing")
        if not all(map(math.isfinite, scores)):
            raise LoadError(f"{where}: tokenizer.ggml.scores holds a score that is not finite")
        if kinds is None:
            kinds = [BYTE if _BYTE_PIECE.fullmatch(piece) else NORMAL for piece in pieces]
            defaults = {"unknown": (0, UNKNOWN), "bos": (1, CONTROL), "eos": (2, CONTROL)}
            for name, (usual, special) in defaults.items():
                given = ids[name]
                token = usual if given is None else given
                if token < len(kinds):
                    kinds[token] = special
                    ids[name] = token
        if ids["unknown"] is None and UNKNOWN in kinds:
            ids["unknown"] = kinds.index(UNKNOWN)
        return SentencePieceTokenizer(
            pieces, scores, [int(kind) for kind in kinds],
            bos_id=ids["bos"], eos_id=ids["eos"], unk_id=ids["unknown"],
            add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", True, where),
            add_eos=_flag(metadata, "tokenizer.ggml.add_eos_token", False, where),
            add_space_prefix=_flag(metadata, "tokenizer.ggml.add_space_prefix", True, where),
            prefix_after_special=True,
        )  # fmt: skip
    return _byte_level(metadata, where, pieces, kinds, ids["bos"], ids["eos"])


def _byte_level(
    metadata: Mapping[str, Any],
    where: str,
    pieces: list[str],
    kinds: list[Any] | None,
    bos_id: int | None,
    eos_id: int | None,
) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE:
        raise UnsupportedModelError(f"{where}: tokenizer.ggml.pre = {pre!r}; supported: {', '.join(sorted(_PRE))}")
    family = _PRE[pre]
    vocabulary: dict[str, int] = {}
    for token, piece in enumerate(pieces):
        if vocabulary.setdefault(piece, token) != token and (kinds is None or kinds[token] != UNUSED):
            raise LoadError(f"{where}: tokenizer.ggml.tokens: {piece!r} is both {vocabulary[piece]} and {token}")
    merges = []
    for place, line in enumerate(_texts(metadata, "tokenizer.ggml.merges", where)):
        left, space, right = line[:1] + line[1:].partition(" ")[0], " " in line[1:], line[1:].partition(" ")[2]
        if not space or not right or not all(part in vocabulary for part in (left, right, left + right)):
            raise LoadError(f"{where}: tokenizer.ggml.merges: {line!r} at {place} joins no two tokens into a third")
        merges.append((left, right))
    tk = require_tokenizers(f"{where}: a byte-level vocabulary")
    backend = tk.Tokenizer(tk.models.BPE(vocabulary, merges, ignore_merges=family in ("llama3", "tekken")))
    if family == "qwen2":
        backend.normalizer = tk.normalizers.NFC()
    splits = [tk.pre_tokenizers.Split(tk.Regex(pattern), "isolated") for pattern in _SPLITS[family]]
    backend.pre_tokenizer = tk.pre_tokenizers.Sequence(
        [*splits, tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = tk.decoders.ByteLevel()
    for token, piece in enumerate(pieces):
        kind = NORMAL if kinds is None else kinds[token]
        if token in (bos_id, eos_id):
            kind = CONTROL
        if piece and kind in (CONTROL, UNKNOWN):
            backend.add_special_tokens([tk.AddedToken(piece, normalized=False, special=True)])
        elif piece and kind == USER_DEFINED:
            backend.add_tokens([tk.AddedToken(piece, normalized=False, special=False)])
    return BackedTokenizer(
        backend,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=_flag(metadata, "tokenizer.ggml.add_bos_token", family == "llama3", where),
        add_eos=_flag(metadata, "tokenizer.ggml.add_eos_token", False, where),
    )


def _texts(metadata: Mapping[str, Any], key: str, where: str) -> list[str]:
    try:
        out = list(metadata.get(key) or ())
    except UnicodeDecodeError as error:
        raise LoadError(f"{where}: {key} holds text that is no UTF-8: {error.object[:40]!r}") from None
    except TypeError:
        raise LoadError(f"{where}: {key} is no array") from None
    if not all(isinstance(text, str) for text in out):
        raise LoadError(f"{where}: {key} is no array of texts")
    return out


def _numbers(metadata: Mapping[str, Any], key: str, where: str, count: int) -> list[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    try:
        out = [item.item() if hasattr(item, "item") else item for item in value]
    except TypeError:
        raise LoadError(f"{where}: {key} is no array") from None
    if not all(isinstance(item, (int, float)) for item in out):
        raise LoadError(f"{where}: {key} is no array of numbers")
    if len(out) != count:
        raise LoadError(f"{where}: {key} has {len(out)} entries, tokenizer.ggml.tokens {count}")
    return out


def _token_id(metadata: Mapping[str, Any], key: str, where: str, count: int) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise LoadError(f"{where}: {key} = {value!r} is no id of a vocabulary of {count}")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise LoadError(f"{where}: {key} = {value!r} is no bool")
    return value
