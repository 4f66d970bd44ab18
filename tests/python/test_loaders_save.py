"""Saving and loading to the bit, and seeded initial weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import CASES, case, random_tensors, write_checkpoint
from clew.config import ModelConfig
from clew.errors import LoadError, UnsupportedModelError
from clew.loaders import initialise, open_checkpoint, save, weight_shapes
from clew.loaders.checkpoint import Checkpoint

SMALL: dict[str, Any] = dict(n_layers=2, d_model=12, n_heads=3, n_ctx=8, d_vocab=9)
GATED: dict[str, Any] = SMALL | dict(
    gated_mlp=True, normalization_type="RMS", n_key_value_heads=1, use_qk_norm=True, d_head=6, norm_bias=False,
    use_normalization_before_and_after=True, positional_embedding_type="rotary", tie_word_embeddings=True,
)  # fmt: skip


def bits(array: Any) -> bytes:
    return bytes(np.ascontiguousarray(array).tobytes())


def made(seed: int = 0, dtype: Any = np.float32, **fields: Any) -> Checkpoint:
    config = ModelConfig(**(SMALL | fields))
    return Checkpoint(config, initialise(config, seed, dtype), np.dtype(dtype))


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.config == other.config and one.dtype == other.dtype
    assert set(one.weights) == set(other.weights)
    for name, array in one.weights.items():
        assert bits(array) == bits(other.weights[name]), name
        assert array.shape == other.weights[name].shape


# ---- Saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_load_of_save_is_the_same_to_the_bit(kind: str, dtype: str, tmp_path: Path) -> None:
    config, shapes = case(kind, bos_token_id=1, eos_token_id=[2, 3])
    first = open_checkpoint(write_checkpoint(tmp_path / "hf", config, random_tensors(shapes, dtype)))
    save(first, tmp_path / "clew")
    second = open_checkpoint(tmp_path / "clew")
    assert_same(first, second)
    assert sorted(path.name for path in (tmp_path / "clew").iterdir()) == ["config.json", "model.safetensors"]
    save(second, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "clew" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_unusual_values_survive(tmp_path: Path) -> None:
    first = made(dtype=np.float64, attn_types=("local", "global"), window_size=3, rope_scaling=None, extra={"a": [1]})
    weights = first.weights["blocks.0.mlp.W_in"]
    weights[0, :4] = [np.nan, -0.0, np.inf, 5e-324]
    save(first, tmp_path)
    assert_same(first, open_checkpoint(tmp_path))


def test_matrices_keep_their_memory_order(tmp_path: Path) -> None:
    first = made()
    save(first, tmp_path)
    second = open_checkpoint(tmp_path)
    for name, array in first.weights.items():
        assert second.weights[name].strides == array.strides, name


def test_tied_embeddings_are_saved_once(tmp_path: Path) -> None:
    config, shapes = case("gpt2")
    tied = open_checkpoint(write_checkpoint(tmp_path / "hf", config, random_tensors(shapes)))
    save(tied, tmp_path / "a")
    again = open_checkpoint(tmp_path / "a")
    assert np.shares_memory(again.weights["unembed.W_U"], again.weights["embed.W_E"])
    # an equal copy is still one matrix; another one is not, whatever the configuration says
    tied.weights["unembed.W_U"] = tied.weights["unembed.W_U"].copy()
    save(tied, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    tied.weights["unembed.W_U"] = tied.weights["unembed.W_U"] + 1
    save(tied, tmp_path / "c")
    untied = open_checkpoint(tmp_path / "c")
    assert not untied.config.tie_word_embeddings
    np.testing.assert_array_equal(untied.weights["unembed.W_U"], tied.weights["unembed.W_U"])


def test_biases_that_the_flags_do_not_mention(tmp_path: Path) -> None:
    first = made(qkv_bias=False)
    first.weights["blocks.1.attn.b_Q"] = np.ones((3, 4), np.float32)
    del first.weights["blocks.0.mlp.b_in"]
    save(first, tmp_path)
    assert_same(first, open_checkpoint(tmp_path))


def test_saving_over_a_model_and_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save(made(0), tmp_path)
    save(made(1, d_vocab=10), tmp_path)
    assert_same(made(1, d_vocab=10), open_checkpoint(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]


def test_a_model_may_be_saved_over_the_files_it_is_mapped_from(tmp_path: Path) -> None:
    save(made(3), tmp_path)
    opened = open_checkpoint(tmp_path)
    save(opened, tmp_path)
    assert_same(made(3), opened)
    assert_same(made(3), open_checkpoint(tmp_path))


def test_interrupted_saves_leave_the_old_model_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from clew.loaders import save as save_function  # the function; its module is patched below

    assert callable(save_function)
    save(made(0), tmp_path)
    replace, left = os.replace, 0

    def failing(source: Any, target: Any) -> None:
        nonlocal left
        if left == 0:
            raise OSError("interrupted")
        left -= 1
        replace(source, target)

    outcomes = []
    for steps in range(4):
        save(made(0), tmp_path)
        left = steps
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                save(made(1), tmp_path)
                outcomes.append("new")
            except OSError:
                outcomes.append("interrupted")
        if outcomes[-1] == "new":
            assert_same(made(1), open_checkpoint(tmp_path))
        elif (tmp_path / "config.json").exists():
            assert_same(made(0), open_checkpoint(tmp_path))
        else:
            with pytest.raises(LoadError, match="no config.json"):
                open_checkpoint(tmp_path)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert outcomes == ["interrupted", "interrupted", "interrupted", "new"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    first = made()
    first.weights["unembed.W_U"] = first.weights["unembed.W_U"].astype(np.float64)
    with pytest.raises(ValueError, match="float32.*float64"):
        save(first, tmp_path / "x")
    half = {name: array.astype(np.float16) for name, array in made().weights.items()}
    with pytest.raises(ValueError, match="float16"):
        save(SimpleNamespace(config=first.config, weights=half), tmp_path / "x")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save(made(), tmp_path / "file")


DAMAGE: list[tuple[Any, Any, type[Exception], str]] = [
    (("version",), 99, UnsupportedModelError, "version = 99"),
    (("config",), None, LoadError, "config = None"),
    (("config", "new_field"), 1, UnsupportedModelError, "unknown fields new_field"),
    (("config", "d_model"), "12", LoadError, "d_model = '12'"),
    (("config", "n_layers"), 10**12, LoadError, "n_layers"),
    (("config", "n_layers"), 1000, LoadError, "1000 layers, but"),
    (("config", "gated_mlp"), 1, LoadError, "gated_mlp = 1"),
    (("config", "act_fn"), "solu", UnsupportedModelError, "solu"),
    (("config", "rotary_base"), -1.0, LoadError, "rotary_base"),
    (("config", "attn_types"), [["x"]], LoadError, "config.json"),
    (("config", "d_vocab"), 10, LoadError, "embed.W_E"),
    (("weights",), [], LoadError, "weights must map"),
    (("weights", "embed.W_E"), [0, 0], LoadError, "'embed.W_E'.*no order of 2 axes"),
    (("weights", "embed.W_E"), [True, 0], LoadError, "'embed.W_E'.*no order"),
]


@pytest.mark.parametrize(("path", "value", "kind", "message"), DAMAGE)
def test_damaged_configurations(path: Any, value: Any, kind: Any, message: str, tmp_path: Path) -> None:
    save(made(), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(kind, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["n_layers", "d_vocab"])
def test_missing_fields(name: str, tmp_path: Path) -> None:
    save(made(), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["config"][name]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(LoadError, match=f"{name} is missing"):
        open_checkpoint(tmp_path)


# ---- Initial weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [SMALL, GATED, SMALL | {"attn_only": True, "final_norm": False}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initial_weights(fields: dict[str, Any], dtype: Any) -> None:
    config = ModelConfig(**fields)
    weights = initialise(config, 5, dtype)
    assert {name: array.shape for name, array in weights.items()} == weight_shapes(config)
    for name, array in weights.items():
        last = name.rsplit(".", 1)[-1]
        assert array.dtype == dtype
        if last == "w":
            assert (array == 1).all()
        elif last.startswith("b"):
            assert (array == 0).all()
        elif last in ("W_Q", "W_K", "W_V"):
            n, d, e = array.shape
            size = array.dtype.itemsize
            assert array.strides == (e * size, n * e * size, size)  # all heads are one [d, n·e] matrix
        elif not (last == "W_U" and config.tie_word_embeddings):
            assert array.flags.c_contiguous
    assert np.shares_memory(weights["unembed.W_U"], weights["embed.W_E"]) == config.tie_word_embeddings


def test_seeds() -> None:
    config = ModelConfig(**SMALL)
    first, again, other = initialise(config, 1), initialise(config, 1), initialise(config, 2)
    double = initialise(config, 1, np.float64)
    for name in first:
        assert bits(first[name]) == bits(again[name])
        np.testing.assert_array_equal(first[name], double[name].astype(np.float32))
        if ".W_" in name:
            assert not np.array_equal(first[name], other[name])
    drawn = [bits(array) for name, array in first.items() if name.endswith(".W_K")]
    assert len(set(drawn)) == len(drawn)


def test_scales() -> None:
    config = ModelConfig(n_layers=8, d_model=64, n_heads=4, n_ctx=100, d_vocab=500, initializer_range=0.3)
    weights = initialise(config, 0, np.float64)
    for name, std in [
        ("embed.W_E", 0.3), ("pos_embed.W_pos", 0.3), ("blocks.3.attn.W_Q", 0.3), ("blocks.7.mlp.W_in", 0.3),
        ("blocks.3.attn.W_O", 0.3 / 4), ("blocks.7.mlp.W_out", 0.3 / 4), ("unembed.W_U", 0.3),
    ]:  # fmt: skip
        sample = weights[name]
        error = std / np.sqrt(2 * sample.size)
        assert abs(sample.std() - std) < 5 * error, name
        assert abs(sample.mean()) < 5 * std / np.sqrt(sample.size), name


def test_biases_follow_the_flags() -> None:
    off = dict.fromkeys(("qkv_bias", "attn_out_bias", "mlp_bias", "norm_bias", "unembed_bias"), False)
    assert not any(name.rsplit(".", 1)[-1].startswith("b") for name in weight_shapes(ModelConfig(**SMALL, **off)))
    for flag, names in {
        "qkv_bias": {"blocks.1.attn.b_Q", "blocks.1.attn.b_K", "blocks.1.attn.b_V"},
        "attn_out_bias": {"blocks.1.attn.b_O"},
        "mlp_bias": {"blocks.1.mlp.b_in", "blocks.1.mlp.b_out"},
        "norm_bias": {"blocks.1.ln1.b", "blocks.1.ln2.b", "ln_final.b"},
        "unembed_bias": {"unembed.b_U"},
    }.items():
        shapes = weight_shapes(ModelConfig(**SMALL, **(off | {flag: True})))
        got = {name for name in shapes if name.rsplit(".", 1)[-1].startswith("b") and ".0." not in name}
        assert got == names


def test_wrong_dtype() -> None:
    with pytest.raises(ValueError, match="float16"):
        initialise(ModelConfig(**SMALL), 0, np.float16)
