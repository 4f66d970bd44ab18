"""What a path, a name or a hub id is taken for."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import clew.loaders as loaders
import numpy as np
import pytest
from checkpoint_files import case, random_tensors, safetensors_bytes, write_checkpoint
from clew.errors import LoadError, UnsupportedModelError
from clew.loaders import bundled, open_checkpoint
from support import resident


def make(directory: Path, kind: str = "gpt2") -> Path:
    config, shapes = case(kind)
    return write_checkpoint(directory, config, random_tensors(shapes))


def test_a_file_beside_its_configuration(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    by_file = open_checkpoint(tmp_path / "other.safetensors")
    by_directory = open_checkpoint(str(tmp_path))  # the only one there
    assert by_file.config == by_directory.config and by_file.config.original_architecture == "gpt2"
    (tmp_path / "second.safetensors").write_bytes(safetensors_bytes({"x": np.zeros(1, np.float32)}))
    with pytest.raises(LoadError, match="2 safetensors files .*other.safetensors, second.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(LoadError, match="no config.json beside it"):
        open_checkpoint(tmp_path / "other.safetensors")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no config.json"):
        open_checkpoint(tmp_path)
    make(tmp_path / "a")
    (tmp_path / "a/model.safetensors").unlink()
    with pytest.raises(LoadError, match="no model.safetensors and no model.safetensors.index.json"):
        open_checkpoint(tmp_path / "a")
    (tmp_path / "a/pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LoadError, match=r"only pickled weights \(pytorch_model.bin\): convert them to safetensors"):
        open_checkpoint(tmp_path / "a")
    with pytest.raises(LoadError, match="convert them to safetensors"):
        open_checkpoint(tmp_path / "a/pytorch_model.bin")
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match="unknown suffix '.onnx'; supported: .safetensors, .gguf, .bin"):
        open_checkpoint(tmp_path / "x.onnx")
    (tmp_path / "g").mkdir()
    (tmp_path / "g/tiny.gguf").write_bytes(b"")
    with pytest.raises(LoadError, match="open one of its files: tiny.gguf"):
        open_checkpoint(tmp_path / "g")
    for name in ("nowhere", "/no/such/place", "a/b/c", "./x/y", "x\0y", ""):
        with pytest.raises((LoadError, UnsupportedModelError)):
            open_checkpoint(name)
    with pytest.raises(LoadError, match="no such directory or file, no bundled model .*no hub id"):
        open_checkpoint("nowhere")


def test_hub_names_without_their_owner() -> None:
    for name, full in [
        ("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"),
        ("distilgpt2", "distilbert/distilgpt2"),
    ]:  # fmt: skip
        with pytest.raises(LoadError, match=f"no hub id .owner/name.; on the hub it is '{full}'"):
            open_checkpoint(name)
    with pytest.raises(LoadError, match=r"no hub id \(owner/name\)$"):
        open_checkpoint("gpt3")


def test_no_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint(".").config.original_architecture == "gpt2"
    with pytest.raises(LoadError, match="path = '': give a path"):
        open_checkpoint("")


def test_a_configuration_of_no_known_kind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"hidden_size": 3}, {})
    with pytest.raises(UnsupportedModelError, match="no model_type.*supported: gpt2"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="config.json: no JSON"):
        open_checkpoint(tmp_path)


def test_wrong_dtype_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        open_checkpoint(tmp_path / "nowhere", dtype="int8")


def test_other_formats_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for module, function in (("gguf", "load_gguf"), ("llama2c", "load_llama2c")):
        fake = ModuleType(f"clew.loaders.{module}")
        setattr(fake, function, lambda path, dtype, module=module: seen.append((module, path.name, dtype)))
        monkeypatch.setitem(sys.modules, f"clew.loaders.{module}", fake)
    for name in ("x.gguf", "y.bin", "Z.GGUF"):
        (tmp_path / name).write_bytes(b"")
        open_checkpoint(tmp_path / name, "float64")
    assert seen == [("gguf", "x.gguf", "float64"), ("llama2c", "y.bin", "float64"), ("gguf", "Z.GGUF", "float64")]


def test_bundled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "DATA", tmp_path)
    assert bundled() == []
    make(tmp_path / "one")
    (tmp_path / "two.bin").write_bytes(b"")
    (tmp_path / "notes").mkdir()
    (tmp_path / "LICENSE").write_text("MIT")
    assert bundled() == ["one", "two"]
    assert open_checkpoint("one").config.original_architecture == "gpt2"
    with pytest.raises(LoadError, match=r"no bundled model \(one, two\)"):
        open_checkpoint("three")
    monkeypatch.setattr(loaders, "DATA", tmp_path / "gone")
    assert bundled() == []


def test_tokenizer_is_made_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("clew.tokenizer")
    fake.from_directory = lambda path: f"tokenizer of {Path(path).name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clew.tokenizer", fake)
    checkpoint = open_checkpoint(make(tmp_path / "m"))
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer() == "tokenizer of m"


# ---- Hub ------------------------------------------------------------------------------------------------------------


class FakeHub(ModuleType):
    """Gives a local directory, as the package does from its cache, and remembers what was asked for."""

    def __init__(self, directory: Path) -> None:
        super().__init__("huggingface_hub")
        self.directory, self.asked = directory, []  # type: ignore[var-annotated]

    def snapshot_download(self, repository: str, allow_patterns: list[str]) -> str:
        self.asked.append((repository, allow_patterns))
        return str(self.directory)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(make(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert open_checkpoint("owner/tiny-gpt2").config.original_architecture == "gpt2"
    assert [repository for repository, _ in hub.asked] == ["owner/tiny-gpt2"] * 2
    assert "config.json" in hub.asked[0][1] and not any("safetensors" == p[-11:] for p in hub.asked[0][1])
    assert hub.asked[1][1] == ["model.safetensors"]


def test_hub_shards_are_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_loaders_safetensors import shard

    shard(tmp_path)
    hub = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert open_checkpoint("owner/sharded").config.original_architecture == "llama"
    assert hub.asked[1][1] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_hub_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    def fail(*args: Any, **keywords: Any) -> str:
        raise ConnectionError("no route")

    hub.snapshot_download = fail  # type: ignore[method-assign]
    with pytest.raises(LoadError, match="owner/x: not to be had from the hub: ConnectionError: no route"):
        open_checkpoint("owner/x")


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **keywords: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoadError, match=r"owner/x: .*pip install '\.\[hub\]' in the checkout"):
        open_checkpoint("owner/x")


def test_hub_offline_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(LoadError, match="clew-tests/not-in-the-cache: not to be had from the hub"):
        open_checkpoint("clew-tests/not-in-the-cache")


# ---- Cost -----------------------------------------------------------------------------------------------------------


def test_opening_124_million_parameters_reads_only_the_header(tmp_path: Path) -> None:
    """GPT-2 small as a sparse file: what is not needed is not read."""
    import json
    import struct

    from checkpoint_files import CASES

    sizes = {11: 50257, 12: 768, 36: 3 * 768, 10: 3072}
    _, small = CASES["gpt2"]
    shapes = {}
    for name, shape in small.items():
        if name == "transformer.wpe.weight":
            shapes[name] = (1024, 768)
        elif ".h.0." in name:
            for layer in range(12):
                shapes[name.replace(".0.", f".{layer}.")] = tuple(sizes[n] for n in shape)
        elif ".h." not in name:
            shapes[name] = tuple(sizes[n] for n in shape)
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    config = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = resident()
    checkpoint = open_checkpoint(tmp_path)
    assert sum(array.size for name, array in checkpoint.weights.items() if name != "unembed.W_U") == 124_439_808
    assert resident() - before < 20 << 20  # of 498 MB: weights are mapped, not read


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "model.bin"])
def test_a_pointer_in_place_of_a_file(name: str, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}))
    for place in (tmp_path / name, *([tmp_path] if name == "model.safetensors" else [])):
        with pytest.raises(LoadError, match=f"{name}: a Git LFS pointer, not the file itself"):
            open_checkpoint(place)
    (tmp_path / "config.json").write_text(pointer)
    with pytest.raises(LoadError, match=r"config\.json: a Git LFS pointer, not the file itself"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(tmp_path / "nothing")
    with pytest.raises(LoadError, match=r"config\.json: no file, or a link to none"):
        open_checkpoint(tmp_path)
