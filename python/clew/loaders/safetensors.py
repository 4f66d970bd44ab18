"""The safetensors format: a bounded parser, memory-mapped tensors, an atomic writer.

A file is an 8-byte little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}`, and the data.
Everything the header says is checked before it is used, so a damaged file gives :class:`clew.LoadError` and costs
neither time nor memory beyond its own size.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import memory
from ..errors import LoadError

Array = NDArray[Any]

MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own implementation."""
MAX_RANK = 32
MIN_SLACK = 64 << 10

ITEM_SIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element of each dtype that may stand in a header."""

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""The dtypes that weights may have."""

LFS_POINTER = b"version https://git-lfs"
"""What a small text file begins with that stands for a large one in a git repository."""


def refuse_pointer(start: bytes, where: str) -> None:
    """Raises LoadError if a file begins as a Git LFS pointer does."""
    if start.startswith(LFS_POINTER):
        raise LoadError(f"{where}: a Git LFS pointer, not the file itself; git lfs pull fetches that")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: dtype as the header spells it, shape, and the bytes [begin, end) of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refusing a key that comes twice."""
    out: dict[str, Any] = {}
    for key, value in items:
        if key in out:
            raise ValueError(f"the key {key!r} comes twice")
        out[key] = value
    return out


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def parse_header(header: bytes, file_size: int, where: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a header.

    Parameters
    ----------
    header
        The JSON text, without the 8 bytes before it.
    file_size
        Bytes of the whole file.
    where
        The file's name, for messages.

    Raises
    ------
    LoadError
        Anything in the header that is wrong, with the tensor or the byte.
    """
    if not header.startswith(b"{"):
        raise LoadError(f"{where}: byte 8: the header is no JSON object")
    try:
        parsed = json.loads(header.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise LoadError(f"{where}: byte {8 + error.start}: the header is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise LoadError(f"{where}: byte {8 + error.pos}: the header is no JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{where}: the header is no usable JSON: {error}") from None
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise LoadError(f"{where}: __metadata__ must map strings to strings")

    data = 8 + len(header)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in parsed.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise LoadError(f"{where}: tensor {name!r}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
            raise LoadError(f"{where}: tensor {name!r}: unknown dtype {dtype!r}")
        if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
            raise LoadError(f"{where}: tensor {name!r}: shape {_short(shape)} is no list of at most {MAX_RANK} sizes")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
            raise LoadError(f"{where}: tensor {name!r}: data_offsets {_short(offsets)} are no two positions")
        begin, end = data + offsets[0], data + offsets[1]
        if begin > end or end > file_size:
            raise LoadError(
                f"{where}: tensor {name!r}: bytes {begin} to {end} do not lie in the file's {file_size} bytes"
            )
        need = math.prod(shape) * ITEM_SIZE[dtype]
        if need != end - begin:
            raise LoadError(
                f"{where}: tensor {name!r}: {dtype} {_short(shape)} takes {need} bytes, its offsets give {end - begin}"
            )
        tensors[name] = TensorInfo(dtype, tuple(shape), begin, end)

    position, before = data, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            what = "overlaps" if info.begin < position else f"leaves {info.begin - position} unused bytes behind"
            raise LoadError(f"{where}: byte {info.begin}: tensor {name!r} {what} {before}")
        position, before = info.end, repr(name)
    if position != file_size:
        raise LoadError(f"{where}: byte {position}: {file_size - position} bytes behind the last tensor")
    return tensors, metadata


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class SafetensorsFile:
    """One safetensors file: its header read and checked, its data mapped on first use.

    Attributes
    ----------
    tensors
        name → :class:`TensorInfo`
    metadata
        The header's `__metadata__`.

    Raises
    ------
    LoadError
        The file cannot be opened, or is not what the format says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        where = str(self.path)
        if self.path.exists() and not self.path.is_file():  # opening a pipe would wait for ever
            raise LoadError(f"{where}: no regular file")
        try:
            with open(self.path, "rb") as file:
                self._size = os.fstat(file.fileno()).st_size
                start = file.read(8)
                if len(start) < 8:
                    raise LoadError(f"{where}: {self._size} bytes are too few for a safetensors file")
                if LFS_POINTER.startswith(start):
                    refuse_pointer(start + file.read(len(LFS_POINTER) - 8), where)
                (length,) = struct.unpack("<Q", start)
                if length > min(MAX_HEADER, self._size - 8):
                    raise LoadError(
                        f"{where}: byte 0: a header of {length} bytes does not fit in a file of {self._size} bytes"
                        f" (limit {MAX_HEADER})"
                    )
                header = file.read(length)
        except OSError as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(f"{where}: {error.strerror or error}") from error
        if len(header) != length:
            raise LoadError(f"{where}: byte {8 + len(header)}: the file ends inside its header")
        self.tensors, self.metadata = parse_header(header, self._size, where)
        self._bytes: NDArray[np.uint8] | None = None

    def raw(self, name: str) -> Array:
        """A tensor as it lies in the file: read-only and mapped; bfloat16 as its bits, uint16.

        Raises
        ------
        LoadError
            A dtype that weights cannot have, or a file that changed since it was opened.
        """
        info = self.tensors[name]
        if info.dtype not in FLOATS:
            raise LoadError(f"{self.path}: tensor {name!r}: {info.dtype} is no dtype of weights ({', '.join(FLOATS)})")
        dtype = np.dtype(FLOATS[info.dtype])
        if not math.prod(info.shape):
            return np.zeros(info.shape, dtype)
        if self._bytes is None:
            # a product may read one row past the end of the last tensor
            row = max(other.shape[-1] * ITEM_SIZE[other.dtype] for other in self.tensors.values() if other.shape)
            try:
                self._bytes = memory.map_file(self.path, max(MIN_SLACK, row))
            except OSError as error:
                raise LoadError(f"{self.path}: {error}") from error
            if self._bytes.size != self._size:
                raise LoadError(f"{self.path}: the file changed while it was read")
        return self._bytes[info.begin : info.end].view(dtype).reshape(info.shape)


class TensorStore:
    """The tensors of a checkpoint: one or several files, converted to one dtype, each tensor once.

    Parameters
    ----------
    where
        Names the checkpoint in messages.
    files
        tensor name → the file that holds it

    Example
    -------
    >>> TensorStore.open("model.safetensors").names()       # doctest: +SKIP
    ['h.0.attn.c_attn.bias', ...]
    """

    def __init__(self, where: str, files: Mapping[str, SafetensorsFile]) -> None:
        self.where = where
        self._files = dict(files)
        self._converted: dict[str, Array] = {}
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        """What :meth:`get` converts to."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TensorStore:
        """Open a single file."""
        file = SafetensorsFile(path)
        return cls(str(path), dict.fromkeys(file.tensors, file))

    @classmethod
    def open_sharded(cls, index_path: str | os.PathLike[str]) -> TensorStore:
        """Open the shards that a `model.safetensors.index.json` lists.

        Raises
        ------
        LoadError
            An index that is no such JSON, shards outside its directory or missing (all named), tensors that are not
            where the index says.
        """
        index_path = Path(index_path)
        index = read_json(index_path)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise LoadError(f"{index_path}: weight_map must map tensor names to file names")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if not re.fullmatch(r"[^/\\\0:]+", shard) or shard in (".", ".."):
                raise LoadError(f"{index_path}: weight_map: {shard!r} is no file name in the checkpoint's directory")
        missing = [shard for shard in shards if not (index_path.parent / shard).is_file()]
        if missing:
            raise LoadError(f"{index_path}: {len(missing)} of {len(shards)} shards missing: {', '.join(missing)}")
        files = {shard: SafetensorsFile(index_path.parent / shard) for shard in shards}
        lost = [f"{name} ({shard})" for name, shard in weight_map.items() if name not in files[shard].tensors]
        if lost:
            raise LoadError(f"{index_path}: tensors that are not in their shard: {', '.join(lost)}")
        # what the index forgot is still looked at: an unknown tensor must not go unnoticed
        found = {name: file for file in files.values() for name in file.tensors}
        found.update({name: files[shard] for name, shard in weight_map.items()})
        return cls(str(index_path.parent), found)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __len__(self) -> int:
        return len(self._files)

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the files."""
        return list(self._files)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor."""
        return self._files[name].tensors[name]

    def raw(self, name: str) -> Array:
        """A tensor as it lies in the file (see :meth:`SafetensorsFile.raw`)."""
        return self._files[name].raw(name)

    def choose_dtype(self, names: Iterable[str], dtype: DTypeLike | None = None) -> np.dtype[Any]:
        """Settle what :meth:`get` converts to: `dtype`, or float64 where one of the named tensors is, else float32."""
        self.dtype = weights_dtype(dtype, any(self.info(name).dtype == "F64" for name in names))
        return self.dtype

    def get(self, name: str) -> Array:
        """A tensor in the chosen dtype, read-only: a view of the file where dtype and alignment allow, else a copy."""
        if name in self._converted:
            return self._converted[name]
        raw, kind = self.raw(name), self.info(name).dtype
        if raw.dtype == self.dtype and raw.flags.aligned:
            out = raw
        elif kind == "BF16":
            out = memory.empty(raw.shape, self.dtype)
            if self.dtype == np.float32:
                np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
            else:
                out[...] = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            try:
                with np.errstate(over="raise"):
                    out = memory.copy(raw, self.dtype)
            except FloatingPointError:
                raise LoadError(f"{self.where}: tensor {name!r} holds values beyond {self.dtype}") from None
        out.flags.writeable = False
        self._converted[name] = out
        return out


def weights_dtype(dtype: DTypeLike | None, file_is_double: bool) -> np.dtype[Any]:
    """The dtype of a model: `dtype` where given, else the file's.

    Raises
    ------
    ValueError
        Neither float32 nor float64.
    """
    if dtype is None:
        return np.dtype(np.float64 if file_is_double else np.float32)
    try:
        out = np.dtype(dtype)
    except TypeError:
        out = np.dtype(np.void)
    if out not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype = {dtype!r}; supported: 'float32', 'float64'")
    return out


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises
    ------
    LoadError
        No such file, more than 64 MB, no JSON, or no object.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > 64 << 20:
                raise LoadError(f"{path}: too large for a configuration file")
            text = file.read()
        refuse_pointer(text[: len(LFS_POINTER)], str(path))
    except OSError as error:
        if isinstance(error, LoadError):
            raise
        raise LoadError(f"{path}: {error.strerror or error}") from error
    try:
        out = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: no JSON: {error}") from None
    if not isinstance(out, dict):
        raise LoadError(f"{path}: expected a JSON object, found {type(out).__name__}")
    return out


# ---- Writing --------------------------------------------------------------------------------------------------------


def _blocks(array: Array) -> Iterator[memoryview]:
    """The bytes of an array in C order, copied at most 16 MiB at a time."""
    if array.flags.c_contiguous or array.ndim == 0:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return
    rows = max(1, (16 << 20) // max(1, array.nbytes // max(1, array.shape[0])))
    for start in range(0, array.shape[0], rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write float32 and float64 arrays, in C order, to a safetensors file that replaces `path` at once.

    Raises
    ------
    OSError
        The file cannot be written; `path` is then as it was.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, array in tensors.items():
        dtype = {np.dtype("<f4"): "F32", np.dtype("<f8"): "F64"}[array.dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # data begins on a cache line
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in tensors.values():
            for block in _blocks(array):
                file.write(block)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A new file, on the disk when the block ends; an OSError names it, which that of a full disk does not."""
    try:
        with open(path, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends, and vanishes when it fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(temporary) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
