"""The GGUF container: a bounded parser and memory-mapped tensors.

A file is `GGUF`, a version, the numbers of tensors and of metadata entries, the entries (key, type, value), the tensor
table (name, dimensions innermost first, type, offset), padding, and the data. Every length is checked against what is
left of the file before anything is made of it, so a damaged file gives :class:`clew.LoadError` and costs neither time
nor memory beyond its own size.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import memory
from ..errors import LoadError, UnsupportedModelError, install
from .safetensors import MIN_SLACK, TensorInfo, TensorStore, weights_dtype

Array = NDArray[Any]

MAX_ENTRIES = 1 << 16
"""Metadata entries; real files have fewer than a hundred."""
MAX_TENSORS = 1 << 20
MAX_TEXTS = 1 << 22
"""Texts in one array; the largest vocabularies have 2^18."""
MAX_KEY = 1 << 16
MAX_DEPTH = 4
MAX_RANK = 4

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_BOOL, _TEXT, _ARRAY = 7, 8, 9

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""Number in the file -> name, elements of a block, bytes of a block."""

SUPPORTED = ("F32", "F64", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q4_K", "Q5_K", "Q6_K")
_NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


class Texts(Sequence[str]):
    """An array of texts in the file, decoded when asked for: a vocabulary costs nothing until it is used."""

    def __init__(self, data: NDArray[np.uint8], starts: list[int]) -> None:
        self._data, self._starts = data, starts

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        start = self._starts[place]
        length = int.from_bytes(self._data[start - 8 : start].tobytes(), "little")
        return self._data[start : start + length].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        if not self._starts:
            return
        base = self._starts[0] - 8
        last = self._starts[-1]
        end = last + int.from_bytes(self._data[last - 8 : last].tobytes(), "little")
        raw = self._data[base:end].tobytes()
        for start in self._starts:
            begin = start - base
            yield raw[begin : begin + int.from_bytes(raw[begin - 8 : begin], "little")].decode("utf-8")

    def __repr__(self) -> str:
        return f"<{len(self)} texts>"


@dataclass(frozen=True)
class Header:
    """What stands before the data.

    `metadata` holds numbers, bools, texts, arrays (NumPy) and :class:`Texts`; `tensors` the row-major shapes.
    """

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A place in the file that moves forward and never past the end."""

    def __init__(self, data: NDArray[np.uint8], where: str) -> None:
        self.data, self.where, self.place = data, where, 0
        self._view = data.data

    def fail(self, place: int, text: str) -> LoadError:
        return LoadError(f"{self.where}: byte {place}: {text}")

    def need(self, count: int, what: str) -> int:
        """Where `count` bytes begin, after stepping over them."""
        begin = self.place
        if count > self.data.size - begin:
            raise self.fail(begin, f"{what} takes {count} bytes, the file has {self.data.size - begin} left")
        self.place += count
        return begin

    def number(self, code: str, what: str) -> Any:
        begin = self.need(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self._view, begin)[0]

    def text(self, what: str, most: int | None = None) -> str:
        begin = self.place
        length = self.number("Q", f"the length of {what}")
        if most is not None and length > most:
            raise self.fail(begin, f"{what} has {length} bytes, more than {most}")
        start = self.need(length, what)
        try:
            return self._view[start : start + length].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(start + error.start, f"{what} is no UTF-8") from None

    def texts(self, count: int, what: str) -> Texts:
        if count > MAX_TEXTS:
            raise self.fail(self.place, f"{what} claims {count} texts, more than {MAX_TEXTS}")
        starts: list[int] = []
        view, place, size, unpack = self._view, self.place, self.data.size, struct.Struct("<Q").unpack_from
        for item in range(count):
            if place + 8 > size:
                raise self.fail(place, f"the file ends before text {item} of {count} of {what}")
            length = unpack(view, place)[0]
            place += 8
            if length > size - place:
                raise self.fail(place - 8, f"text {item} of {what} has {length} bytes, the file {size - place} left")
            starts.append(place)
            place += length
        self.place = place
        return Texts(self.data, starts)

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        begin = self.place
        if kind == _BOOL:
            byte = self.number("B", what)
            if byte > 1:
                raise self.fail(begin, f"{what} is a bool of value {byte}")
            return bool(byte)
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], what)
        if kind == _TEXT:
            return self.text(what)
        if kind != _ARRAY:
            raise self.fail(begin - 4, f"{what} has the unknown type {kind}")
        if depth == MAX_DEPTH:
            raise self.fail(begin, f"{what}: arrays in arrays, more than {MAX_DEPTH} deep")
        inner = self.number("I", f"the type of {what}")
        count = self.number("Q", f"the length of {what}")
        if inner == _TEXT:
            if count > (self.data.size - self.place) // 8:
                raise self.fail(begin + 4, f"{what} claims {count} texts, too many for the rest of the file")
            return self.texts(count, what)
        if inner == _ARRAY:
            if count > min(MAX_ENTRIES, (self.data.size - self.place) // 12):
                raise self.fail(begin + 4, f"{what} claims {count} arrays, too many")
            return [self.value(_ARRAY, what, depth + 1) for _ in range(count)]
        if inner not in _SCALARS:
            raise self.fail(begin, f"{what} is an array of the unknown type {inner}")
        dtype = np.dtype("<u1" if inner == _BOOL else "<" + _NUMPY[inner])
        start = self.need(count * dtype.itemsize, what)
        out = self.data[start : start + count * dtype.itemsize].view(dtype)
        if inner == _BOOL:
            if count and int(out.max()) > 1:
                raise self.fail(start + int(np.argmax(out > 1)), f"{what} holds a bool of value {int(out.max())}")
            return out.astype(np.bool_)
        return out


_NUMPY = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 10: "u8", 11: "i8", 12: "f8"}


def parse(data: NDArray[np.uint8], where: str) -> Header:
    """The header of a file's bytes.

    Parameters
    ----------
    data
        The whole file, uint8 [bytes].
    where
        The file's name, for messages.

    Raises
    ------
    LoadError
        Anything in the header that is wrong, with the byte.
    """
    cursor = _Cursor(data, where)
    if data[:4].tobytes() != b"GGUF":
        raise cursor.fail(0, "no GGUF file")
    cursor.place = 4
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0 and version != 0
        raise cursor.fail(4, "a big-endian file" if swapped else f"GGUF version {version}; supported: 2, 3")
    n_tensors = cursor.number("Q", "the number of tensors")
    n_entries = cursor.number("Q", "the number of metadata entries")
    for place, count, most, least, what in (
        (8, n_tensors, MAX_TENSORS, 24, "tensors"),
        (16, n_entries, MAX_ENTRIES, 13, "metadata entries"),
    ):
        if count > min(most, (data.size - cursor.place) // least):
            raise cursor.fail(place, f"{count} {what} do not fit in a file of {data.size} bytes (limit {most})")

    metadata: dict[str, Any] = {}
    places: dict[str, int] = {}
    for _ in range(n_entries):
        begin = cursor.place
        key = cursor.text("a key", MAX_KEY)
        if key in metadata:
            raise cursor.fail(begin, f"the key {key!r} comes twice")
        kind = cursor.number("I", f"the type of {key!r}")
        places[key] = cursor.place
        metadata[key] = cursor.value(kind, repr(key))

    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.fail(
            places["general.alignment"], f"general.alignment = {alignment!r} is no power of two from 8 on"
        )

    table: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        begin = cursor.place
        name = cursor.text("a tensor's name", MAX_KEY)
        if name in table:
            raise cursor.fail(begin, f"the tensor {name!r} comes twice")
        place = cursor.place
        rank = cursor.number("I", f"the rank of {name!r}")
        if not 1 <= rank <= MAX_RANK:
            raise cursor.fail(place, f"tensor {name!r}: rank {rank}; 1 to {MAX_RANK} are allowed")
        shape = tuple(reversed([cursor.number("Q", f"a size of {name!r}") for _ in range(rank)]))
        if not all(0 < size < 1 << 48 for size in shape):
            raise cursor.fail(place + 4, f"tensor {name!r}: shape {list(shape)}")
        place = cursor.place
        number = cursor.number("I", f"the type of {name!r}")
        if number not in TYPES:
            raise cursor.fail(place, f"tensor {name!r}: unknown type {number}")
        offset = cursor.number("Q", f"the offset of {name!r}")
        if offset % alignment:
            raise cursor.fail(place + 4, f"tensor {name!r}: offset {offset} is no multiple of {alignment}")
        table[name] = number, shape, offset, place

    start = -(-cursor.place // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, (number, shape, offset, place) in table.items():
        kind, per_block, block_bytes = TYPES[number]
        if shape[-1] % per_block:
            raise cursor.fail(
                place, f"tensor {name!r}: rows of {shape[-1]} are no whole blocks of {kind} ({per_block})"
            )
        nbytes = math.prod(shape) // per_block * block_bytes
        if start + offset + nbytes > data.size:
            raise cursor.fail(
                place + 4,
                f"tensor {name!r}: bytes {start + offset} to {start + offset + nbytes} do not lie in the file's "
                f"{data.size} bytes",
            )
        tensors[name] = TensorInfo(kind, shape, start + offset, start + offset + nbytes)
    end, before = start, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: item[1].begin):
        if info.begin < end:
            raise cursor.fail(table[name][3] + 4, f"tensor {name!r} overlaps {before}")
        end, before = info.end, repr(name)
    return Header(version, metadata, tensors)


class GGUFStore(TensorStore):
    """The tensors of a GGUF file, converted to one dtype, each tensor once.

    Raises
    ------
    LoadError
        The file cannot be opened, or is not what the format says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(str(path), {})
        path = Path(path)
        try:
            size = path.stat().st_size
            if size < 24:
                raise LoadError(f"{path}: {size} bytes are too few for a GGUF file")
            data = memory.map_file(path, MIN_SLACK)
        except OSError as error:
            if isinstance(error, LoadError):
                raise
            raise LoadError(f"{path}: {error.strerror or error}") from error
        self.header = parse(data, str(path))
        rows = (shape[-1] * 8 for info in self.header.tensors.values() if (shape := info.shape))
        slack = max(rows, default=0)  # a product may read one row past the end of the last tensor
        if slack > MIN_SLACK:
            data = memory.map_file(path, slack)
        self._data = data

    def __contains__(self, name: object) -> bool:
        return name in self.header.tensors

    def __len__(self) -> int:
        return len(self.header.tensors)

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the file."""
        return list(self.header.tensors)

    def info(self, name: str) -> TensorInfo:
        """Type, row-major shape and place of a tensor."""
        return self.header.tensors[name]

    def raw(self, name: str) -> Array:
        """A tensor as it lies in the file: its elements, or uint8 [..., bytes of a row] where it is quantised."""
        info = self.info(name)
        data = self._data[info.begin : info.end]
        dtype = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2"}.get(info.dtype)
        if dtype is not None:
            return data.view(dtype).reshape(info.shape)
        return data.reshape(*info.shape[:-1], -1)

    def choose_dtype(self, names: Iterable[str], dtype: DTypeLike | None = None) -> np.dtype[Any]:
        """Settle what :meth:`get` converts to; every one of the named tensors must have a supported type.

        Raises
        ------
        UnsupportedModelError
            One of them has not; names it and its type.
        """
        names = list(names)
        for name in names:
            if self.info(name).dtype not in SUPPORTED:
                raise UnsupportedModelError(
                    f"{self.where}: tensor {name!r} has the type {self.info(name).dtype}; supported: "
                    f"{', '.join(SUPPORTED)}"
                )
        self.dtype = weights_dtype(dtype, any(self.info(name).dtype == "F64" for name in names))
        return self.dtype

    def get(self, name: str) -> Array:
        """A tensor in the chosen dtype, read-only: a view of the file where the dtype allows, else a copy."""
        if name in self._converted:
            return self._converted[name]
        info, raw = self.info(name), self.raw(name)
        if raw.dtype == self.dtype and raw.flags.aligned:
            out = raw
        elif info.dtype in ("F32", "F64", "F16"):
            out = memory.copy(raw, self.dtype)
        else:
            out = memory.empty(info.shape, self.dtype)
            rows, source = out.reshape(-1, info.shape[-1]), raw.reshape(-1, raw.shape[-1])
            step = max(1, (1 << 20) // info.shape[-1])
            for begin in range(0, len(rows), step):
                rows[begin : begin + step] = self._dequantised(name, source[begin : begin + step])
        out.flags.writeable = False
        self._converted[name] = out
        return out

    def forget(self) -> None:
        """Let go of what was converted: the arrays that were handed out keep what they need."""
        self._converted.clear()

    def _dequantised(self, name: str, rows: Array) -> Array:
        kind = self.info(name).dtype
        if kind == "BF16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        try:
            from gguf import GGMLQuantizationType, dequantize
        except ImportError as error:
            raise LoadError(
                f"{self.where}: tensor {name!r}: {kind} needs the gguf package: {install('gguf')}"
            ) from error
        with np.errstate(all="ignore"):  # a damaged file's scales may be anything
            out: Array = dequantize(np.ascontiguousarray(rows), GGMLQuantizationType(_NUMBERS[kind]))
        return out
