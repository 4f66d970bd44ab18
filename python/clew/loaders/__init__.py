"""Opening checkpoints: whatever a path, a hub id or a bundled name stands for becomes a :class:`Checkpoint`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from ..errors import LoadError, UnsupportedModelError, install
from ..inputs import check_type, nearest
from .checkpoint import TOKENIZER_FILES as TOKENIZER_FILES  # where others look for it
from .checkpoint import Checkpoint, Files, check_files, found_files
from .classic import is_classic, load_classic
from .huggingface import find_tensors, load_huggingface
from .huggingface_config import SUPPORTED
from .initialise import initialise, weight_shapes
from .safetensors import LFS_POINTER, TensorStore, _short, read_json, refuse_pointer, weights_dtype
from .save import load_saved, save

__all__ = ["Checkpoint", "bundled", "initialise", "open_checkpoint", "save", "weight_shapes"]

DATA = Path(__file__).resolve().parent.parent / "data"
"""The package's own models: `<name>/` or `<name>.bin` or `<name>.gguf`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OWNERS = {
    "gpt2": "openai-community/gpt2", "gpt2-small": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium", "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl", "distilgpt2": "distilbert/distilgpt2",
}  # fmt: skip
"""Names that the hub or other libraries take without an owner, and where they are."""
_HUB_FILES = ("config.json", "model.safetensors.index.json", "generation_config.json", *TOKENIZER_FILES)


def open_checkpoint(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Checkpoint:
    """Open a model's files; weights are mapped, not read.

    Parameters
    ----------
    path
        A directory (Hugging Face, what :func:`save` wrote, a classic HookedTransformer state), a `.safetensors` file
        beside its `config.json`, a `.gguf` or llama2.c `.bin` file, the name of a bundled model, or a hub id
        `owner/name`. The first of these that exists is taken.
    dtype
        "float32" or "float64" converts; None: float64 for files of float64, else float32.

    Raises
    ------
    LoadError
        Nothing there (says what was looked for), or a file that is damaged or incomplete.
    UnsupportedModelError
        A model that would be computed wrongly; names the key.
    ValueError
        Another dtype.

    Example
    -------
    >>> checkpoint = open_checkpoint("gpt2/")                                       # doctest: +SKIP
    >>> checkpoint.weights["blocks.0.attn.W_Q"].shape                               # doctest: +SKIP
    (12, 768, 64)
    """
    weights_dtype(dtype, False)  # a wrong dtype is refused before anything is read
    check_type((str, os.PathLike), "a path, a name of clew.bundled() or a hub id", path=path)
    text = os.fspath(path)
    if not text:  # a Path of it is the working directory
        raise LoadError("path = '': give a path, a name of clew.bundled() or a hub id (owner/name)")
    if "\0" in text:
        raise LoadError(f"{text!r} is no path")
    try:
        place = Path(path).expanduser()
        is_directory = place.is_dir()
    except (OSError, RuntimeError) as error:  # too long; a home directory of nobody
        raise LoadError(f"{_short(text)} is no path: {getattr(error, 'strerror', None) or error}") from None
    if is_directory:
        return _open_directory(place, dtype)
    if place.is_file():
        return _open_file(place, dtype)
    if text in bundled():
        found = _bundled_paths()[text]
        return _open_directory(found, dtype) if found.is_dir() else _open_file(found, dtype)
    if _HUB_ID.fullmatch(text):
        return _open_directory(_from_hub(text), dtype)
    names = ", ".join(bundled()) or "none"
    hint = f"; on the hub it is {_OWNERS[text]!r}" if text in _OWNERS else nearest(text, bundled())
    raise LoadError(f"{text}: no such directory or file, no bundled model ({names}), and no hub id (owner/name){hint}")


def bundled() -> list[str]:
    """Names of the trained models inside the package, for :func:`clew.load`."""
    return sorted(_bundled_paths())


def _bundled_paths() -> dict[str, Path]:
    """Name → file or directory: `x.bin`, `x.gguf`, a directory with config.json or with such a file of its name."""
    paths: dict[str, Path] = {}
    for entry in sorted(DATA.iterdir()) if DATA.is_dir() else ():
        if entry.is_dir() and (entry / "config.json").is_file():
            paths[entry.name] = entry
        elif entry.is_dir():
            paths.update({p.stem: p for p in entry.glob(f"{entry.name}.*") if p.suffix in (".bin", ".gguf")})
        elif entry.suffix in (".bin", ".gguf"):
            paths[entry.stem] = entry
    return paths


def _open_file(path: Path, dtype: DTypeLike | None) -> Checkpoint:
    """A single file, by its suffix."""
    suffix = path.suffix.lower()
    start = b""
    with suppress(OSError), open(path, "rb") as file:  # who reads it says why it cannot be opened
        start = file.read(len(LFS_POINTER))
    refuse_pointer(start, str(path))
    if suffix == ".gguf":
        from .gguf import load_gguf

        return load_gguf(path, dtype)
    if suffix == ".safetensors":
        if not (path.parent / "config.json").is_file():
            raise LoadError(f"{path}: no config.json beside it{_of_training(path)}")
        return _open_parts(path.parent, TensorStore.open(path), dtype)
    if suffix == ".bin":
        if re.fullmatch(r"pytorch_model.*\.bin", path.name):
            raise LoadError(f"{path}: pickled weights: convert them to safetensors")
        from .llama2c import load_llama2c

        return load_llama2c(path, dtype)
    raise LoadError(f"{path}: unknown suffix {suffix!r}; supported: .safetensors, .gguf, .bin (llama2.c), directories")


def _open_directory(directory: Path, dtype: DTypeLike | None) -> Checkpoint:
    if not (directory / "config.json").is_file():
        if os.path.lexists(directory / "config.json"):
            raise LoadError(f"{directory / 'config.json'}: no file, or a link to none")
        ggufs = sorted(path.name for path in directory.glob("*.gguf"))
        hint = f"; open one of its files: {', '.join(ggufs)}" if ggufs else _of_training(directory)
        raise LoadError(f"{directory}: no config.json{hint}")
    return _open_parts(directory, None, dtype)


def _of_training(path: Path) -> str:
    """What a message about a file or a folder ends with, if it is a checkpoint of training or holds some."""
    from ..train import checkpoint

    here = checkpoint.found(path) if path.is_dir() else checkpoint.is_checkpoint(path)
    return "; clew.train.load_model reads a training's checkpoints" if here else ""


def _open_parts(directory: Path, store: TensorStore | None, dtype: DTypeLike | None) -> Checkpoint:
    """A directory's `config.json` with its tensors, or with those of one given file."""
    where = directory / "config.json"
    raw = read_json(where)
    load: Callable[[TensorStore, dict[str, Any], str, DTypeLike | None], Checkpoint]
    if raw.get("model_type") == "clew":
        load = load_saved
    elif is_classic(raw):
        load = load_classic
    elif "model_type" in raw:
        load = load_huggingface
    else:
        raise UnsupportedModelError(
            f"{where}: no model_type, and not the classic library's fields; supported: {', '.join(SUPPORTED)}"
        )
    checkpoint = load(find_tensors(directory) if store is None else store, raw, str(where), dtype)
    files = found_files(directory / name for name in TOKENIZER_FILES)
    checkpoint.tokenizer, checkpoint.tokenizer_files = (lambda: _tokenizer(directory, files)), files
    return checkpoint


def _tokenizer(directory: Path, files: Files) -> Any:
    """The directory's tokenizer, or None."""
    from ..tokenizer import from_directory

    check_files(files, (directory / name for name in TOKENIZER_FILES))
    return from_directory(directory)


def _from_hub(repository: str) -> Path:
    """Where the hub's cache holds a repository, after fetching what is not there and may be fetched.

    Only configuration, tokenizer and safetensors files of its top folder are asked for. `HF_HUB_OFFLINE`, `HF_HOME`
    and the rest of the package's own settings hold.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise LoadError(
            f"{repository}: no such directory; to fetch it as a hub id install the extra: {install('hub')}"
        ) from None
    try:
        directory = Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(_HUB_FILES)))
        wanted = ["model.safetensors"]
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if isinstance(weight_map, dict):
                wanted = sorted({shard for shard in weight_map.values() if isinstance(shard, str)})
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=wanted))
    except LoadError:
        raise
    except Exception as error:  # the package raises many kinds, some of them other libraries' own
        raise LoadError(f"{repository}: not to be had from the hub: {type(error).__name__}: {error}") from error
