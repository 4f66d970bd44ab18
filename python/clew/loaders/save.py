"""clew's own format: `model.safetensors` and `config.json`, such that what is loaded again has the same bits.

`config.json` holds `model_type: "clew"`, the fields of the configuration, and for each tensor the order of its classic
axes in the file: a matrix is written as it lies in memory, so the engine finds the layout that it had.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..config import ModelConfig
from ..errors import ConfigError, LoadError, UnsupportedModelError
from ..inputs import check_path
from .assemble import Names, Source, assemble
from .checkpoint import TOKENIZER_FILES, Checkpoint, Files, check_files
from .initialise import weight_shapes
from .keys import build
from .safetensors import TensorStore, write_file, writing

Array = NDArray[Any]
VERSION = 1
_BIASES = ("qkv_bias", "attn_out_bias", "mlp_bias", "norm_bias", "unembed_bias")


class Saveable(Protocol):
    """A model or a checkpoint."""

    @property
    def config(self) -> ModelConfig:
        """What it is."""

    @property
    def weights(self) -> Mapping[str, Array]:
        """name -> float32 or float64 array in classic shape, all of one dtype, any strides."""


def save(model: Saveable, directory: str | os.PathLike[str]) -> None:
    """Write a model, with the files of its tokenizer; the directory is made if need be, other files are left alone.

    All files are written beside their places before the first is renamed. Then the old configuration goes, with what a
    model that was there had and this one has not, and the new one comes last: a full disk leaves the old model, an
    interrupt that or one that refuses to load, never a mixture.

    Parameters
    ----------
    model
        Its configuration and its weights, float32 or float64 throughout.
    directory
        Where to.

    Raises
    ------
    ValueError
        Mixed or other dtypes.
    ConfigError
        No path; a folder of checkpoints with another model's tokenizer; what JSON cannot hold in the configuration's
        `extra`.
    LoadError
        A file of the tokenizer that has changed since the model was loaded.
    OSError
        A file cannot be written, which it names.
    """
    check_path(path=directory)
    path = Path(directory)
    config, weights = model.config, dict(model.weights)
    dtypes = {array.dtype for array in weights.values()}
    if len(dtypes) > 1 or not dtypes <= {np.dtype("<f4"), np.dtype("<f8")}:
        raise ValueError(f"save: weights of dtype {sorted(map(str, dtypes))}; expected float32 or float64 throughout")
    tied = config.tie_word_embeddings and _same(weights["embed.W_E"].T, weights["unembed.W_U"])
    if tied:
        del weights["unembed.W_U"]
    config = config.replace(tie_word_embeddings=tied)
    # one order whatever the dict's, so that the same model gives the same files
    weights = dict(sorted(weights.items(), key=lambda item: re.sub(r"\d+", lambda m: m[0].zfill(6), item[0])))
    axes = {name: _memory_order(array) for name, array in weights.items()}
    raw = {"model_type": "clew", "version": VERSION, "config": config.to_dict(), "weights": axes}
    try:
        text = json.dumps(raw, indent=1).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"save: extra = {config.extra!r:.80} of the configuration: {error}") from None
    ordered = {name: array.transpose(axes[name]) for name, array in weights.items()}
    files: Files = getattr(model, "tokenizer_files", {})
    check_files(files)
    theirs = [name for name in TOKENIZER_FILES if (path / name).exists() and name not in {file.name for file in files}]
    if theirs and not (path / "config.json").exists() and any(path.glob("step-*.safetensors")):
        raise ConfigError(
            f"save: {path} holds a training's checkpoints: their {theirs[0]} would read this model's text"
        )
    texts = {source.name: source.read_bytes() for source in files if source.resolve().parent != path.resolve()}
    path.mkdir(parents=True, exist_ok=True)
    _replace(path, ordered, {**texts, "config.json": text}, {source.name for source in files})


def _replace(path: Path, ordered: Mapping[str, Array], texts: Mapping[str, bytes], tokenizer: set[str]) -> None:
    """Puts files into a directory, config.json last, and takes out what the model before them had besides."""
    staged = {name: path / f".{name}.{os.getpid()}.tmp" for name in ("model.safetensors", *texts)}
    old = ["config.json"]
    if any((path / name).exists() for name in ("config.json", "model.safetensors")):
        old += ["model.safetensors.index.json", *(name for name in TOKENIZER_FILES if name not in tokenizer)]
    try:
        for name, text in texts.items():
            with writing(staged[name]) as file:
                file.write(text)
        write_file(staged["model.safetensors"], ordered, {"format": "clew"})
        for name in old:
            (path / name).unlink(missing_ok=True)
        for name, file_ in staged.items():
            os.replace(file_, path / name)
    finally:
        for file_ in staged.values():
            with suppress(OSError):
                file_.unlink()


def _same(one: Array, other: Array) -> bool:
    """Are they one view, or equal to the bit?"""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.__array_interface__["data"] == other.__array_interface__["data"] and one.strides == other.strides:
        return True
    bits = np.dtype(f"<u{one.dtype.itemsize}")
    return bool(np.array_equal(one.copy().view(bits), other.copy(order="C").view(bits)))


def _memory_order(array: Array) -> list[int]:
    """Axes from the slowest to the fastest in memory."""
    return sorted(range(array.ndim), key=lambda axis: (-abs(array.strides[axis]), axis))


def load_saved(store: TensorStore, raw: dict[str, Any], where: str, dtype: DTypeLike | None = None) -> Checkpoint:
    """What :func:`save` wrote; arguments and errors as :func:`clew.loaders.huggingface.load_huggingface`."""
    if raw.get("version") != VERSION:
        raise UnsupportedModelError(f"{where}: version = {raw.get('version')!r}; supported: {VERSION}")
    values, axes = raw.get("config"), raw.get("weights")
    if not isinstance(values, dict):
        raise LoadError(f"{where}: config = {values!r}, expected an object")
    unknown = sorted(set(values) - {field.name for field in dataclass_fields(ModelConfig)})
    if unknown:
        raise UnsupportedModelError(f"{where}: config: unknown fields {', '.join(unknown)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key in ("n_layers", "d_model", "n_heads", "n_ctx", "d_vocab"):
        if values.get(key) is None:
            raise LoadError(f"{where}: config: {key} is missing")
    _check_types(values, where)
    config = build(where, values)
    if config.n_layers > len(store):
        raise LoadError(f"{where}: {config.n_layers} layers, but {store.where} holds only {len(store)} tensors")
    # the file says which biases there are
    shapes = weight_shapes(config.replace(**dict.fromkeys(_BIASES, True)))
    if config.tie_word_embeddings:
        del shapes["unembed.W_U"]
    if not isinstance(axes, dict) or not all(isinstance(order, list) for order in axes.values()):
        raise LoadError(f"{where}: weights must map names to orders of axes")
    sources = []
    for name, shape in shapes.items():
        if name not in axes and name.rsplit(".", 1)[-1].startswith("b"):
            continue
        order = axes.get(name, list(range(len(shape))))
        if sorted(map(str, order)) != [str(axis) for axis in range(len(shape))] or not all(
            type(axis) is int for axis in order
        ):
            raise LoadError(f"{where}: weights: {name!r}: {order!r} is no order of {len(shape)} axes")
        back = tuple(order.index(axis) for axis in range(len(shape)))
        sources.append(Source(name, name, tuple(shape[axis] for axis in order), _transposed_by(back)))
    notes: list[str] = []
    weights = assemble(Names(store, ()), sources, dtype, (), notes)
    if config.tie_word_embeddings:
        weights["unembed.W_U"] = weights["embed.W_E"].T
    return Checkpoint(config, weights, store.dtype, None, notes)


def _transposed_by(back: tuple[int, ...]) -> Any:
    return lambda array: array.transpose(back)


def _check_types(values: dict[str, Any], where: str) -> None:
    """Numbers where the configuration has numbers; sizes within reason."""
    for field in dataclass_fields(ModelConfig):
        value = values.get(field.name)
        kind = str(field.type)
        if value is None or field.name not in values:
            continue
        good = True
        if kind.startswith("int") and "tuple" not in kind:
            good = type(value) is int and 0 <= value < 1 << 31
        elif kind.startswith("float"):
            good = isinstance(value, (int, float)) and not isinstance(value, bool)
        elif kind.startswith("bool"):
            good = isinstance(value, bool)
        elif kind.startswith("str"):
            good = isinstance(value, str)
        elif kind.startswith("Mapping"):
            good = isinstance(value, dict)
        if field.name in ("rotary_base", "rotary_base_local", "attn_scale"):
            good = good and value > 0
        if field.name in ("d_head", "rotary_dim", "n_layers"):
            good = good and value <= 1 << 20
        if not good:
            raise LoadError(f"{where}: config: {field.name} = {value!r}, expected {kind}")
