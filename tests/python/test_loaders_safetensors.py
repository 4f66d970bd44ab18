"""The safetensors parser, writer and store, against the format's own package and against damage of every kind."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import case, random_tensors, safetensors_bytes, to_bfloat16, write_checkpoint
from clew.errors import Error, LoadError
from clew.loaders import open_checkpoint
from clew.loaders.safetensors import SafetensorsFile, TensorStore, read_json, weights_dtype, write_file

official = pytest.importorskip("safetensors")


def build(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header that may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


# ---- What a file says -----------------------------------------------------------------------------------------------


def test_reads_what_the_package_wrote(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "b": rng.standard_normal((2, 3, 4)),
        "c": rng.standard_normal(7).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([True, False]),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"made by": "the package"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"made by": "the package"}
    assert set(file.tensors) == set(tensors)
    for name in ("a", "b", "c", "scalar", "empty"):
        np.testing.assert_array_equal(file.raw(name), tensors[name])
        assert file.raw(name).dtype == tensors[name].dtype
        assert not file.raw(name).flags.writeable or not file.raw(name).size
    with pytest.raises(LoadError, match="'flags': BOOL is no dtype of weights"):
        file.raw("flags")


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    rng = np.random.default_rng(1)
    base = rng.standard_normal((4, 6, 5))
    tensors = {
        "plain": base,
        "strided": base.transpose(2, 0, 1),
        "single": base[0].astype(np.float32),
        "none": base[:0],
    }
    write_file(tmp_path / "x.safetensors", tensors, {"format": "clew"})
    again = load_file(tmp_path / "x.safetensors")
    for name, array in tensors.items():
        np.testing.assert_array_equal(again[name], array)
    assert SafetensorsFile(tmp_path / "x.safetensors").tensors["plain"].begin % 64 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_float32_is_a_view_of_the_mapping_and_half_precision_is_converted_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    single = rng.standard_normal((4, 4)).astype(np.float32)
    half = rng.standard_normal((3, 5)).astype(np.float16)
    brain = to_bfloat16(rng.standard_normal((2, 3)))
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"s": single, "h": half, "b": brain}))
    store = TensorStore.open(tmp_path / "x.safetensors")
    assert store.choose_dtype(store.names()) == np.float32
    assert np.shares_memory(store.get("s"), store.raw("s"))
    assert not np.shares_memory(store.get("h"), store.raw("h"))
    assert store.get("h") is store.get("h")
    np.testing.assert_array_equal(store.get("h"), half.astype(np.float32))
    # a bfloat16 is the upper half of a float32
    np.testing.assert_array_equal(store.get("b"), (brain.astype(np.uint32) << 16).view(np.float32))
    assert all(store.get(name).dtype == np.float32 and not store.get(name).flags.writeable for name in store.names())


def test_converting_to_float64_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {"s": rng.standard_normal(9).astype(np.float32), "b": to_bfloat16(rng.standard_normal((2, 3)))}
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes(arrays))
    store = TensorStore.open(tmp_path / "x.safetensors")
    assert store.choose_dtype(store.names(), "float64") == np.float64
    np.testing.assert_array_equal(store.get("s"), arrays["s"].astype(np.float64))
    np.testing.assert_array_equal(store.get("b"), (arrays["b"].astype(np.uint32) << 16).view(np.float32))


def test_misaligned_tensors_are_copied(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)
    (tmp_path / "x.safetensors").write_bytes(safetensors_bytes({"x": array}, pad=3))
    store = TensorStore.open(tmp_path / "x.safetensors")
    assert store.info("x").begin % 4 == 3
    got = store.get("x")
    assert got.flags.aligned and not np.shares_memory(got, store.raw("x"))
    np.testing.assert_array_equal(got, array)


def test_dtype_names() -> None:
    assert weights_dtype(None, False) == np.float32 and weights_dtype(None, True) == np.float64
    assert weights_dtype("float64", False) == np.float64
    for wrong in ("float16", "int32", "nonsense"):
        with pytest.raises(ValueError, match=wrong):
            weights_dtype(wrong, False)


# ---- What is wrong with a file --------------------------------------------------------------------------------------

GOOD = {"x": entry()}
DAMAGE = {
    "too short": (b"1234", "4 bytes are too few"),
    "header longer than the file": (build(GOOD, bytes(8), length=10_000), "header of 10000 bytes does not fit"),
    "gigantic header": (struct.pack("<Q", 2**63) + bytes(100), "does not fit"),
    "no object": (build(b"[1]", b""), "byte 8: the header is no JSON object"),
    "no JSON": (build(b'{"x": }', b""), "byte 14: the header is no JSON"),
    "no UTF-8": (build(b'{"\xff": 1}'), "byte 10: the header is no UTF-8"),
    "NaN": (build(b'{"x": NaN}'), "NaN is no JSON"),
    "deep": (build(b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "no usable JSON"),
    "duplicate tensor": (build(b'{"x": 1, "x": 2}'), "'x' comes twice"),
    "metadata": (build({"__metadata__": {"a": 1}}), "__metadata__"),
    "keys missing": (build({"x": {"dtype": "F32"}}), "'x': expected dtype, shape and data_offsets"),
    "no entry": (build({"x": 3}), "'x': expected dtype"),
    "dtype": (build({"x": entry(dtype="F31")}, bytes(8)), "'x': unknown dtype 'F31'"),
    "dtype of another kind": (build({"x": entry(dtype=["F32"])}, bytes(8)), "'x': unknown dtype"),
    "negative size": (build({"x": entry(shape=(-2,))}, bytes(8)), r"'x': shape \[-2\]"),
    "fractional size": (build({"x": entry(shape=(2.0,))}, bytes(8)), r"'x': shape \[2.0\]"),
    "boolean size": (build({"x": entry(shape=(True, 2))}, bytes(8)), "'x': shape"),
    "too many dimensions": (build({"x": entry(shape=(1,) * 33 + (2,))}, bytes(8)), "'x': shape"),
    "huge size": (build({"x": entry(shape=(2**61, 2**61))}, bytes(8)), "'x': F32 .* takes"),
    "number of digits": (build(b'{"x": ' + b"9" * 5000 + b"}"), "no usable JSON"),
    "offsets": (build({"x": entry(offsets=(0,))}, bytes(8)), "'x': data_offsets"),
    "backwards": (build({"x": entry(offsets=(8, 0))}, bytes(8)), "'x': bytes .* do not lie"),
    "past the end": (build({"x": entry(offsets=(0, 16), shape=(4,))}, bytes(8)), "'x': bytes .* do not lie"),
    "size and offsets": (build({"x": entry(shape=(3,))}, bytes(8)), r"'x': F32 \[3\] takes 12 bytes.*give 8"),
    "overlap": (build({"x": entry(), "y": entry(offsets=(4, 12))}, bytes(12)), "'y' overlaps 'x'"),
    "hole": (build({"x": entry(), "y": entry(offsets=(12, 20))}, bytes(20)), "'y' leaves 4 unused bytes behind 'x'"),
    "trailing": (build(GOOD, bytes(11)), "3 bytes behind the last tensor"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    content, message = DAMAGE[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(LoadError, match=message) as caught:
        SafetensorsFile(tmp_path / "x.safetensors")
    assert str(tmp_path / "x.safetensors") in str(caught.value)


def test_the_undamaged_file_loads(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(build(GOOD, bytes(8)))
    assert SafetensorsFile(tmp_path / "x.safetensors").tensors["x"].shape == (2,)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="x.safetensors: No such file"):
        SafetensorsFile(tmp_path / "x.safetensors")


def _attempt(directory: Path) -> bool:
    """Load and look at every weight; False where the loader refuses."""
    try:
        checkpoint = open_checkpoint(directory)
    except Error:
        return False
    for array in checkpoint.weights.values():
        assert array.size < 10_000
        array.tobytes()
    return True


@pytest.fixture
def small(tmp_path: Path) -> Path:
    config, shapes = case("gpt2")
    return write_checkpoint(tmp_path / "model", config, random_tensors(shapes))


def test_every_prefix_is_refused(small: Path) -> None:
    path = small / "model.safetensors"
    whole = path.read_bytes()
    assert _attempt(small)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    lengths = [*range(0, header + 64), *range(header + 64, len(whole), 37), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        assert not _attempt(small), length


def test_mutations_load_or_are_refused_and_take_no_memory(small: Path) -> None:
    path = small / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = np.random.default_rng(7)
    loaded = 0
    tracemalloc.start()
    for _ in range(3000):
        mutated = bytearray(whole)
        # mostly the header: digits make the interesting damage
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, header if rng.random() < 0.9 else len(whole)))
            mutated[place] = (
                rng.choice(np.frombuffer(b'0123456789"{}[],:', np.uint8))
                if rng.random() < 0.7
                else int(rng.integers(0, 256))
            )
        path.write_bytes(bytes(mutated))
        loaded += _attempt(small)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert 10 < loaded < 2990  # both outcomes occur


def test_mutated_configurations_load_or_are_refused(tmp_path: Path) -> None:
    values = [None, True, -1, 0, 1, 3, 2**31, 10**30, 1e308, 0.5, "x", [], {}, [[1]], {"a": 1}]
    tracemalloc.start()
    for kind in ("gpt2", "gpt_neo", "gptj", "gpt_neox", "phi", "qwen2", "gemma2", "gemma3_text"):
        config, shapes = case(kind)
        config |= dict(layer_types=None, rope_parameters=None, rope_scaling=None, head_dim=config.get("head_dim"))
        directory = write_checkpoint(tmp_path / kind, config, random_tensors(shapes))
        assert _attempt(directory)
        for key in config:
            for value in values:
                (directory / "config.json").write_text(json.dumps({**config, key: value}))
                _attempt(directory)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 400e6


# ---- Shards ---------------------------------------------------------------------------------------------------------


def shard(directory: Path, kind: str = "llama") -> dict[str, Any]:
    """Split a checkpoint into two shards with an index."""
    config, shapes = case(kind)
    tensors = random_tensors(shapes)
    write_checkpoint(directory, config, tensors)
    (directory / "model.safetensors").unlink()
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        (directory / file).write_bytes(safetensors_bytes({name: tensors[name] for name in part}))
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_sharded(tmp_path: Path) -> None:
    shard(tmp_path)
    config, shapes = case("llama")
    whole = open_checkpoint(write_checkpoint(tmp_path / "whole", config, random_tensors(shapes)))
    parts = open_checkpoint(tmp_path)
    assert parts.config == whole.config and set(parts.weights) == set(whole.weights)
    for name, array in whole.weights.items():
        np.testing.assert_array_equal(parts.weights[name], array)


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    shard(tmp_path)
    for path in tmp_path.glob("model-*.safetensors"):
        path.unlink()
    with pytest.raises(LoadError, match="2 of 2 shards missing: model-00001-of-00002.*, model-00002-of-00002"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "c:d"])
def test_shards_outside_the_directory(name: str, tmp_path: Path) -> None:
    index = shard(tmp_path)
    index["weight_map"]["lm_head.weight"] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="is no file name in the checkpoint's directory"):
        open_checkpoint(tmp_path)


def test_index_that_lies(tmp_path: Path) -> None:
    index = shard(tmp_path)
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"not in their shard: ghost \(model-00001"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(LoadError, match="weight_map must map"):
        open_checkpoint(tmp_path)


def test_unlisted_tensors_of_a_shard_are_still_looked_at(tmp_path: Path) -> None:
    index = shard(tmp_path)
    path = tmp_path / "model-00001-of-00002.safetensors"
    tensors = {name: np.array(SafetensorsFile(path).raw(name)) for name in SafetensorsFile(path).tensors}
    path.write_bytes(safetensors_bytes({**tensors, "surprise": np.zeros(3, np.float32)}))
    assert "surprise" not in index["weight_map"]
    with pytest.raises(LoadError, match="surprise"):
        open_checkpoint(tmp_path)


def test_read_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe{")
    for name, message in (("a", "found list"), ("b", "no JSON"), ("c", "no JSON"), ("d", "No such file")):
        with pytest.raises(LoadError, match=message):
            read_json(tmp_path / f"{name}.json")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, {"x": np.zeros(3)}, {})
    before = path.read_bytes()

    class Broken(dict):  # type: ignore[type-arg]
        def values(self) -> Any:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(path, Broken(x=np.zeros(4)), {})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(LoadError, match="no regular file"):
        SafetensorsFile(tmp_path / "model.safetensors")
