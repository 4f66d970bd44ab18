"""Tokenizers that the `tokenizers` package runs: `tokenizer.json`, or `vocab.json` with `merges.txt`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LoadError, MissingPackageError, install
from ..loaders.safetensors import LFS_POINTER, read_json, refuse_pointer
from .base import Tokenizer
from .sentencepiece import SPACE, from_model_file

if TYPE_CHECKING:
    import tokenizers

_FLAGS_FIRST = ("Llama", "CodeLlama", "Gemma", "Cohere")
"""Beginnings of tokenizer classes whose add_bos_token and add_eos_token replace what tokenizer.json adds."""

_CLASSES = {
    "gpt2": "GPT2Tokenizer", "gpt_neo": "GPT2Tokenizer", "gptj": "GPT2Tokenizer", "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
}  # fmt: skip
"""model_type -> the class that the reference takes where tokenizer_config.json names none."""

_SPECIAL = {
    "GPT2Tokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "GPTNeoXTokenizer": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "Qwen2Tokenizer": {"eos_token": "<|endoftext|>"},
    "GemmaTokenizer": {"bos_token": "<bos>", "eos_token": "<eos>"},
}
"""A class's own special tokens: GPT-2's repository names none in any file."""


def require_tokenizers(what: str) -> Any:
    """The `tokenizers` package.

    Raises
    ------
    MissingPackageError
        It is not installed; the message says what needs it.
    """
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
    except ImportError as error:
        raise MissingPackageError(f"{what} needs the tokenizers package: {install('text')}") from error
    return tokenizers


class BackedTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` package.

    Parameters
    ----------
    backend
        The tokenizer, its post-processor included.
    bos_id, eos_id
        None where there is none.
    add_bos, add_eos
        What `encode` adds; None for both: what the tokenizer's own post-processor adds.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool | None = None,
        add_eos: bool | None = None,
    ) -> None:
        self._backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self._own_rule = add_bos is None and add_eos is None
        self._add_bos, self._add_eos = bool(add_bos), bool(add_eos)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        names = [""] * (max(vocabulary.values(), default=-1) + 1)
        for name, token in vocabulary.items():
            names[token] = name
        self.tokens = names
        # decoders drop a leading space at the start of a text: a letter before the token keeps it
        letters = (vocabulary[name] for name in ("a", "e", "A", "E", "0") if name in vocabulary)
        plain = (one for one in letters if backend.decode([one], skip_special_tokens=False) == names[one])
        self._letter = next(plain, None) if backend.decoder is not None else None

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if self._own_rule or not add_special_tokens:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        out = list(self._backend.encode(text, add_special_tokens=False).ids)
        if self._add_bos and self.bos_id is not None:
            out.insert(0, self.bos_id)
        if self._add_eos and self.eos_id is not None:
            out.append(self.eos_id)
        return out

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))

    def _str_token(self, token: int) -> str:
        if self._letter is None:
            return str(self._backend.decode([token], skip_special_tokens=False))
        return str(self._backend.decode([self._letter, token], skip_special_tokens=False))[1:]

    def _lookup(self, text: str) -> int | None:
        token = self._backend.token_to_id(text.replace(" ", SPACE))
        return token if token is not None and self._str_token(token) == text else None


def from_directory(path: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face directory; None where it holds none.

    Looks for `tokenizer.json`, for `vocab.json` with `merges.txt` (byte-level BPE, as GPT-2), for `tokenizer.model`
    (SentencePiece BPE), in this order. Special tokens that no file names are those of the tokenizer's class, which
    `tokenizer_config.json` or the model's type tells. `tokenizer.json` says itself what `encode` adds; `add_bos_token`
    and `add_eos_token` of `tokenizer_config.json` hold for the other two, and for the classes that have always put
    them above `tokenizer.json` (Llama, Code Llama, Gemma, Cohere).

    Raises
    ------
    LoadError
        A file that is not what its name says, or one that needs the `tokenizers` package, which is not installed.
    """
    path = Path(path)
    config = _optional_json(path / "tokenizer_config.json")
    if _is_there(file := path / "tokenizer.json"):
        tk = require_tokenizers(str(file))
        try:
            backend = tk.Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  (the package raises a bare Exception)
            raise LoadError(f"{file}: {error}") from None
        backend.no_padding()
        backend.no_truncation()
    elif _is_there(path / "vocab.json") and _is_there(path / "merges.txt"):
        backend = _byte_level(path, config)
    elif _is_there(file := path / "tokenizer.model"):
        return from_model_file(
            file, add_bos=config.get("add_bos_token", True) is True, add_eos=config.get("add_eos_token", False) is True
        )
    else:
        return None
    names = _optional_json(path / "special_tokens_map.json") | config
    bare = not (path / "tokenizer.json").is_file()
    defaults = _SPECIAL["GPT2Tokenizer"] if bare else _SPECIAL.get(_class_name(path, config), {})

    def special(which: str) -> int | None:
        value: Any = names.get(which, defaults.get(which))
        value = value.get("content") if isinstance(value, dict) else value
        if value is None and bare:
            value = defaults[which]
        return backend.token_to_id(value) if isinstance(value, str) else None

    flags = bare or str(config.get("tokenizer_class")).startswith(_FLAGS_FIRST)
    return BackedTokenizer(
        backend,
        bos_id=special("bos_token"),
        eos_id=special("eos_token"),
        add_bos=_flag(config, "add_bos_token") if flags else None,
        add_eos=_flag(config, "add_eos_token") if flags else None,
    )


def _class_name(path: Path, config: dict[str, Any]) -> str:
    """The tokenizer class: the one that is named, else the one that models of the directory's type have."""
    named = config.get("tokenizer_class")
    if isinstance(named, str):
        return named.removesuffix("Fast")
    model = _optional_json(path / "config.json")
    kind = model.get("model_type")
    if kind == "clew" and isinstance(model.get("config"), dict):  # what `save` wrote says where it came from
        kind = model["config"].get("original_architecture")
    return _CLASSES.get(kind, "") if isinstance(kind, str) else ""


def _flag(config: dict[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise LoadError(f"tokenizer_config.json: {key} = {value!r:.40}: true or false")
    return value


def _is_there(path: Path) -> bool:
    """Is this file there? Raises LoadError for what has its name and is none, such as a link to nothing."""
    if path.is_file():
        start = b""
        with suppress(OSError), open(path, "rb") as file:  # who reads it says why it cannot be opened
            start = file.read(len(LFS_POINTER))
        refuse_pointer(start, str(path))
        return True
    if os.path.lexists(path):
        raise LoadError(f"{path}: no file, or a link to none")
    return False


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if _is_there(path) else {}


def _byte_level(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's files: byte-level BPE."""
    tk = require_tokenizers(str(path / "vocab.json"))
    try:
        model = tk.models.BPE.from_file(str(path / "vocab.json"), str(path / "merges.txt"))
    except Exception as error:  # noqa: BLE001  (the package raises a bare Exception)
        raise LoadError(f"{path / 'vocab.json'}, {path / 'merges.txt'}: {error}") from None
    backend: tokenizers.Tokenizer = tk.Tokenizer(model)
    backend.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False) is True)
    backend.decoder = tk.decoders.ByteLevel()
    added: dict[int, tuple[str, bool]] = {}
    for name, token in _optional_json(path / "added_tokens.json").items():
        if isinstance(token, int):
            added[token] = (name, False)
    for token, entry in (config.get("added_tokens_decoder") or {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and str(token).isdigit():
            added[int(token)] = (entry["content"], entry.get("special") is True)
    names = _optional_json(path / "special_tokens_map.json") | config
    for which in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = names.get(which, "<|endoftext|>" if which == "eos_token" else None)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and (token := backend.token_to_id(value)) is not None:
            added[token] = (value, True)
    for token, (name, is_special) in sorted(added.items()):
        entry = tk.AddedToken(name, normalized=False, special=is_special)
        (backend.add_special_tokens if is_special else backend.add_tokens)([entry])
        if (given := backend.token_to_id(name)) != token:
            raise LoadError(f"{path}: added token {name!r} should have the id {token}, gets {given}")
    return backend
