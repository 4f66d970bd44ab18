"""GGUF files, written by the gguf package's own writer, against the arrays they were written from and against what
Hugging Face computed for the same weights."""

from __future__ import annotations

import json
import re
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from clew.errors import LoadError, UnsupportedModelError  # noqa: E402
from clew.loaders import open_checkpoint  # noqa: E402
from clew.loaders.gguf import load_gguf  # noqa: E402
from clew.loaders.gguf_reader import TYPES, GGUFStore  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from twin import twin  # noqa: E402

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
Q = gguf.GGMLQuantizationType

ARCHITECTURE = {
    "gpt2": "gpt2", "llama": "llama", "llama3": "llama", "llama_linear": "llama", "llama_biased": "llama",
    "mistral": "llama", "qwen2": "qwen2", "qwen2_window": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3": "gemma3", "gpt_neox": "gptneox", "gpt_neox_serial": "gptneox", "phi": "phi2",
}  # fmt: skip


# ---- A converter, as the format's own does it -----------------------------------------------------------------------


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Halves of a head [2, e/2] become neighbours [e/2, 2]."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def convert(name: str, path: Path, **options: Any) -> dict[str, Any]:
    """Write a golden model as GGUF; returns its configuration."""
    config = json.loads((GOLDEN / name / "config.json").read_text())
    tensors = safetensors_numpy.load_file(GOLDEN / name / "model.safetensors")
    arch = ARCHITECTURE[name]
    writer = gguf.GGUFWriter(None, arch)
    n_layers = config.get("num_hidden_layers", config.get("n_layer"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    groups = config.get("num_key_value_heads", heads)
    d = config.get("hidden_size", config.get("n_embd"))
    e = config.get("head_dim", d // heads)
    writer.add_name(f"golden {name}")
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    writer.add_embedding_length(d)
    writer.add_block_count(n_layers)
    writer.add_feed_forward_length(config.get("intermediate_size") or config.get("n_inner") or 4 * d)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    if "head_dim" in config:
        writer.add_key_length(e)
        writer.add_value_length(e)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config.get("layer_norm_eps", config.get("layer_norm_epsilon")))
    rope = config.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    if full:
        writer.add_rope_freq_base(full["rope_theta"])
        writer.add_rope_dimension_count(int(e * full.get("partial_rotary_factor", 1)))
        if full.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(full["factor"])
        if full.get("rope_type") == "llama3":
            factors = []
            for pair in range(e // 2):
                wavelength = 2 * np.pi * full["rope_theta"] ** (2 * pair / e)
                turns = full["original_max_position_embeddings"] / wavelength
                low, high = full["low_freq_factor"], full["high_freq_factor"]
                smooth = min(max((turns - low) / (high - low), 0), 1)
                factors.append(1 / ((1 - smooth) / full["factor"] + smooth))
            writer.add_tensor("rope_freqs.weight", np.array(factors, dtype=np.float32))
            if options.get("original_length", True):
                writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if config.get("sliding_window") and (arch.startswith("gemma") or name in ("mistral", "qwen2_window")):
        writer.add_sliding_window(config["sliding_window"])
    if name == "qwen2_window":
        pattern = [kind == "sliding_attention" for kind in config["layer_types"]]
        writer.add_array("qwen2.attention.sliding_window_pattern", pattern)
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if "query_pre_attn_scalar" in config:
        writer.add_float32(f"{arch}.attention.scale", config["query_pre_attn_scalar"] ** -0.5)
    if arch == "gptneox":
        writer.add_parallel_residual(config["use_parallel_residual"])

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), n_layers)
    for source, array in tensors.items():
        if arch == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight$", source):
            array = array.T
        if arch == "llama" and re.search(r"[qk]_proj\.(weight|bias)$", source):
            array = permute(array, heads if "q_proj" in source else groups)
        if arch.startswith("gemma") and source.endswith("norm.weight"):
            array = array + 1
        if "query_key_value" in source:
            array = array.reshape(heads, 3, e, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert target, source
        kind = options.get("types", {}).get(target)
        array = np.ascontiguousarray(array)
        if kind is None:
            writer.add_tensor(target, array)
        else:
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
    for key, value in options.get("keys", {}).items():
        adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        adders[type(value)](key, value)
    save(writer, path)
    return config


def save(writer: Any, path: Path) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def owner(array: np.ndarray) -> np.ndarray:
    """The mapping below a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


# ---- Every architecture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_architecture(name: str, tmp_path: Path) -> None:
    """The same configuration and bit for bit the same weights as from the Hugging Face directory, and its logits."""
    path = tmp_path / "model.gguf"
    convert(name, path)
    mine, theirs = load_gguf(path), open_checkpoint(GOLDEN / name)
    if name == "gpt_neox_serial":  # its activation is not Pythia's, and the format cannot say so
        assert mine.config.act_fn == "gelu"
        mine.config = mine.config.replace(act_fn="gelu_tanh")
    assert mine.dtype == np.float32
    assert set(mine.weights) == set(theirs.weights)
    for key, expected in theirs.weights.items():
        found = mine.weights[key]
        assert found.shape == expected.shape, key
        # the writer stored 1 + w, rounded once; so does the other loader
        assert np.array_equal(found, expected), key
        assert not found.flags.writeable, key
    same = (
        "n_layers", "d_model", "n_heads", "n_ctx", "d_vocab", "d_head", "n_key_value_heads", "d_mlp", "act_fn", "eps",
        "normalization_type", "positional_embedding_type", "gated_mlp", "parallel_attn_mlp", "shared_norm",
        "use_normalization_before_and_after", "use_qk_norm", "rotary_dim", "rotary_adjacent_pairs", "qkv_bias",
        "attn_out_bias", "mlp_bias", "unembed_bias", "tie_word_embeddings", "embed_scale",
    )  # fmt: skip
    for field in same:
        assert getattr(mine.config, field) == getattr(theirs.config, field), field
    for layer in range(mine.config.n_layers):
        assert mine.config.is_local(layer) == theirs.config.is_local(layer)
    np.testing.assert_array_equal(mine.config.rotary_frequencies(), theirs.config.rotary_frequencies())

    recorded = np.load(GOLDEN / name / "reference.npz")
    # Gemma's 1 + w and 1/√12 are rounded to float32 in the file
    tolerance = 1e-6 if "gemma" in name else 1e-10
    logits = twin(mine.config, mine.weights, recorded["tokens"])["logits"]
    np.testing.assert_allclose(logits, recorded["logits"], rtol=0, atol=tolerance * np.abs(recorded["logits"]).max())


def test_views_of_the_file(tmp_path: Path) -> None:
    """Float32 matrices are mapped, only Llama's permuted queries and keys are owned."""
    path = tmp_path / "model.gguf"
    convert("llama", path)
    weights = load_gguf(path).weights
    mapping = owner(weights["embed.W_E"])
    for name, array in weights.items():
        assert np.shares_memory(array, mapping) == (name[-3:] not in ("W_Q", "W_K")), name
    double = load_gguf(path, "float64")
    assert double.dtype == np.float64
    for name, array in double.weights.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, weights[name])
    with pytest.raises(ValueError, match="float16"):
        load_gguf(path, "float16")


def test_alignment_is_honoured(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(None, "gpt2")
    writer.add_custom_alignment(128)
    array = np.arange(7, dtype=np.float32)
    writer.add_tensor("a", array)
    writer.add_tensor("b", array[:3])
    save(writer, tmp_path / "a.gguf")
    store = GGUFStore(tmp_path / "a.gguf")
    assert store.info("a").begin % 128 == 0
    assert store.info("b").begin == store.info("a").begin + 128
    np.testing.assert_array_equal(store.get("b"), array[:3])


def test_phi2_fused(tmp_path: Path) -> None:
    """Phi-2's own release stores queries, keys and values in one tensor."""
    convert("phi", tmp_path / "a.gguf")
    store = GGUFStore(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(None, "phi2")
    for key, value in store.header.metadata.items():
        if key.startswith("phi2."):
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name in store.names():
        if ".attn_q." in name:
            parts = [store.get(name.replace("attn_q", f"attn_{letter}")) for letter in "qkv"]
            writer.add_tensor(name.replace("attn_q", "attn_qkv"), np.concatenate(parts))
        elif not re.search(r"\.attn_[kv]\.", name):
            writer.add_tensor(name, np.array(store.get(name)))
    save(writer, tmp_path / "b.gguf")
    a, b = load_gguf(tmp_path / "a.gguf").weights, load_gguf(tmp_path / "b.gguf").weights
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# ---- Rotary scaling -------------------------------------------------------------------------------------------------


def test_llama3_parameters_are_recognised(tmp_path: Path) -> None:
    convert("llama3", tmp_path / "a.gguf")
    assert load_gguf(tmp_path / "a.gguf").config.rope_scaling == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 100,
    }  # fmt: skip


def test_other_divisors_are_kept(tmp_path: Path) -> None:
    convert("llama3", tmp_path / "a.gguf", original_length=False)
    config = load_gguf(tmp_path / "a.gguf").config
    assert config.rope_scaling is not None
    assert config.rope_scaling["rope_type"] == "factors"
    exact = open_checkpoint(GOLDEN / "llama3").config.rotary_frequencies()
    np.testing.assert_allclose(config.rotary_frequencies(), exact, rtol=1e-6)
    assert not np.allclose(exact, config.replace(rope_scaling=None).rotary_frequencies())


def test_divisors_and_a_linear_factor_together(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    convert("llama3", tmp_path / "a.gguf", keys=keys)
    exact = open_checkpoint(GOLDEN / "llama3").config.rotary_frequencies()
    np.testing.assert_allclose(load_gguf(tmp_path / "a.gguf").config.rotary_frequencies(), exact / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.expert_count": 8}, "llama.expert_count = 8"),
        ({"llama.attention.causal": False}, "llama.attention.causal = False"),
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale"),
        ({"llama.residual_scale": 0.5}, "llama.residual_scale"),
        ({"split.count": 2}, "split.count = 2"),
        ({"general.type": "adapter"}, "general.type = 'adapter'"),
    ],
)
def test_keys_that_change_results_are_refused(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    convert("llama", tmp_path / "a.gguf", keys=keys)
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        load_gguf(tmp_path / "a.gguf")


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(None, "mamba")
    writer.add_tensor("a", np.zeros(4, dtype=np.float32))
    save(writer, tmp_path / "a.gguf")
    with pytest.raises(UnsupportedModelError, match="'mamba'; supported: gpt2, llama, qwen2"):
        load_gguf(tmp_path / "a.gguf")


def test_27b_models_scale_by_the_width_of_a_head(tmp_path: Path) -> None:
    """The format has no key: 46 layers are Gemma 2 27B, where scores are divided by √(d_model / n_heads)."""
    from clew.loaders.gguf import _gemma_scale, _Keys

    keys = _Keys({"general.architecture": "gemma2"}, "x")
    fields = {"n_layers": 46, "d_model": 4608, "n_heads": 32, "d_head": 128}
    assert _gemma_scale(keys, fields, layers_27b=46) == 12.0
    assert _gemma_scale(keys, fields | {"n_layers": 42}, layers_27b=46) == np.sqrt(128)


# ---- Tensor types ---------------------------------------------------------------------------------------------------


def random_blocks(kind: Any, rows: int, columns: int, seed: int) -> np.ndarray:
    """Rows of random bits whose scales are ordinary numbers."""
    rng = np.random.default_rng(seed)
    per_block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // per_block, nbytes), dtype=np.uint8)
    scales = {Q.Q4_0: [0], Q.Q5_0: [0], Q.Q8_0: [0], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}[kind]
    for place in scales:
        numbers = rng.normal(0, 0.1, blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = numbers[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", [Q.Q4_0, Q.Q5_0, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K])
def test_quantised(kind: Any, tmp_path: Path) -> None:
    raw = random_blocks(kind, 70, 512, seed=int(kind))
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("a", raw, raw_dtype=kind)
    save(writer, tmp_path / "a.gguf")
    store = GGUFStore(tmp_path / "a.gguf")
    assert store.info("a").shape == (70, 512)
    expected = gguf.quants.dequantize(raw, kind)
    assert np.isfinite(expected).all()
    assert expected.std() > 0.01
    np.testing.assert_array_equal(store.get("a"), expected)
    store = GGUFStore(tmp_path / "a.gguf")
    store.choose_dtype(["a"], "float64")
    assert store.get("a").dtype == np.float64
    np.testing.assert_array_equal(store.get("a"), expected.astype(np.float64))


def test_q4_0_by_hand(tmp_path: Path) -> None:
    """One block by its definition: scale times nibble minus 8, low nibbles first."""
    block = np.zeros(18, dtype=np.uint8)
    block[:2] = np.array([0.5], dtype=np.float16).view(np.uint8)
    block[2:] = np.arange(16) | (15 - np.arange(16)) << 4
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("a", block[None], raw_dtype=Q.Q4_0)
    save(writer, tmp_path / "a.gguf")
    expected = np.concatenate([0.5 * (np.arange(16) - 8), 0.5 * (7 - np.arange(16))])
    np.testing.assert_array_equal(GGUFStore(tmp_path / "a.gguf").get("a")[0], expected)


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.F64])
def test_plain_types(kind: Any, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    writer = gguf.GGUFWriter(None, "llama")
    if kind == Q.BF16:
        bits = array.view(np.uint32) >> 16
        expected = (bits << 16).view(np.float32)
        writer.add_tensor("a", bits.astype(np.uint16).view(np.uint8), raw_dtype=kind)
    else:
        written = array.astype(np.float16 if kind == Q.F16 else np.float64)
        expected = written
        writer.add_tensor("a", written)
    save(writer, tmp_path / "a.gguf")
    for dtype in ("float32", "float64"):
        store = GGUFStore(tmp_path / "a.gguf")
        store.choose_dtype(["a"], dtype)
        assert store.get("a").dtype == dtype
        np.testing.assert_array_equal(store.get("a"), expected.astype(dtype))
    assert GGUFStore(tmp_path / "a.gguf").choose_dtype(["a"]) == (np.float64 if kind == Q.F64 else np.float32)


def test_quantised_model(tmp_path: Path) -> None:
    """A model with some tensors quantised: those are the dequantised ones, permuted rows included."""
    convert("llama3", tmp_path / "a.gguf")
    names = [name for name in GGUFStore(tmp_path / "a.gguf").names() if re.search(r"attn_[qkv]\.weight", name)]
    types = dict(zip(names, [Q.Q8_0, Q.Q4_0, Q.Q5_0, Q.F16, Q.BF16, Q.Q8_0], strict=True))
    convert("llama3", tmp_path / "b.gguf", types=types)
    plain, packed = load_gguf(tmp_path / "a.gguf"), load_gguf(tmp_path / "b.gguf")
    for name, array in plain.weights.items():
        error = np.abs(packed.weights[name] - array).max() / np.abs(array).max()
        assert error < 0.1
        assert (error == 0) == ("W_Q" not in name and "W_K" not in name and "W_V" not in name), name


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    convert("llama", tmp_path / "a.gguf")
    store = GGUFStore(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("a", np.zeros((1, 84), dtype=np.uint8), raw_dtype=Q.Q2_K)
    save(writer, tmp_path / "b.gguf")
    store = GGUFStore(tmp_path / "b.gguf")
    with pytest.raises(UnsupportedModelError, match="'a' has the type Q2_K; supported: F32"):
        store.choose_dtype(["a"])


def test_the_table_of_types_is_the_format_s() -> None:
    theirs = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in Q}
    assert {number: entry for number, entry in TYPES.items() if number in theirs} == {
        number: entry for number, entry in theirs.items() if number in TYPES
    }
    assert len(TYPES.keys() & theirs.keys()) >= 30


def test_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("a", random_blocks(Q.Q8_0, 2, 64, 0), raw_dtype=Q.Q8_0)
    writer.add_tensor("b", np.ones(3, dtype=np.float16))
    save(writer, tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    store = GGUFStore(tmp_path / "a.gguf")
    np.testing.assert_array_equal(store.get("b"), np.ones(3))
    with pytest.raises(LoadError, match=r"'a': Q8_0 needs the gguf package: pip install '\.\[gguf\]' in the checkout"):
        store.get("a")


# ---- Tensors that are not there -------------------------------------------------------------------------------------


def rewritten(source: Path, target: Path, change: Any) -> None:
    """A copy of a GGUF file with tensors changed: change(name, array) -> array or None."""
    store = GGUFStore(source)
    writer = gguf.GGUFWriter(None, store.header.metadata["general.architecture"])
    for key, value in store.header.metadata.items():
        if not key.startswith("general."):
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name in store.names():
        array = change(name, np.array(store.get(name)))
        if array is not None:
            writer.add_tensor(name, array)
    save(writer, target)


def test_missing_unknown_and_misshapen_tensors(tmp_path: Path) -> None:
    convert("llama", tmp_path / "a.gguf")
    drop = ("blk.0.ffn_up.weight", "blk.1.attn_k.weight")
    rewritten(tmp_path / "a.gguf", tmp_path / "b.gguf", lambda name, array: None if name in drop else array)
    with pytest.raises(LoadError, match="2 tensors missing") as info:
        load_gguf(tmp_path / "b.gguf")
    assert all(name in str(info.value) for name in drop)

    rewritten(
        tmp_path / "a.gguf", tmp_path / "c.gguf", lambda name, array: array[:, :-1] if "ffn_up" in name else array
    )
    with pytest.raises(LoadError, match=re.escape("blk.0.ffn_up.weight: [45, 23], expected [45, 24]")):
        load_gguf(tmp_path / "c.gguf")

    store = GGUFStore(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(None, "llama")
    for key, value in store.header.metadata.items():
        if key.startswith("llama."):
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name in store.names():
        writer.add_tensor(name, np.array(store.get(name)))
    writer.add_tensor("blk.0.attn_sinks.weight", np.zeros(3, dtype=np.float32))
    save(writer, tmp_path / "d.gguf")
    with pytest.raises(LoadError, match=r"does not have: blk\.0\.attn_sinks\.weight"):
        load_gguf(tmp_path / "d.gguf")


def test_missing_key_and_missing_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    save(writer, tmp_path / "a.gguf")
    with pytest.raises(LoadError, match=r"llama\.embedding_length' is missing"):
        load_gguf(tmp_path / "a.gguf")
    with pytest.raises(LoadError, match=r"none\.gguf: No such file"):
        load_gguf(tmp_path / "none.gguf")


# ---- Damaged files --------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def container(entries: list[bytes], tensors: list[bytes], data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ALIGN = text("general.alignment") + struct.pack("<I", 4)

DAMAGED = {
    "magic": (b"GGUX" + bytes(60), "byte 0: no GGUF file"),
    "short": (b"GGUF", "4 bytes are too few"),
    "version": (container([], [], bytes(32), version=1), "byte 4: GGUF version 1; supported: 2, 3"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), "byte 4: a big-endian file"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(60), "byte 8: 1152921504606846976 tensors"),
    "entry count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60) + bytes(60), "byte 16: 1152921504606846976 metadata"),
    "key length": (container([struct.pack("<Q", 1 << 40) + bytes(9)], []), "byte 24: a key has 1099511627776 bytes"),
    "key not UTF-8": (
        container([struct.pack("<Q", 2) + b"a\xff" + struct.pack("<IB", 0, 1)], []),
        "byte 33: a key is no UTF-8",
    ),
    "key twice": (
        container([text("a") + struct.pack("<IB", 0, 1)] * 2, []),
        "byte 38: the key 'a' comes twice",
    ),
    "unknown value type": (container([text("a") + struct.pack("<II", 13, 1)], []), "'a' has the unknown type 13"),
    "bool": (container([text("a") + struct.pack("<IB", 7, 2)], []), "'a' is a bool of value 2"),
    "bools": (
        container([text("a") + struct.pack("<IIQ", 9, 7, 2) + b"\1\7"], []),
        "'a' holds a bool of value 7",
    ),
    "text length": (
        container([text("a") + struct.pack("<IQ", 8, 1 << 50)], []),
        "byte 45: 'a' takes 1125899906842624 bytes",
    ),
    "array length": (container([text("a") + struct.pack("<IIQ", 9, 12, 1 << 61)], []), "'a' takes"),
    "array of texts": (container([text("a") + struct.pack("<IIQ", 9, 8, 1 << 61)], []), "texts, too many"),
    "text in array": (
        container([text("a") + struct.pack("<IIQQ", 9, 8, 1, 1 << 33)], []),
        "text 0 of 'a' has 8589934592 bytes",
    ),
    "array type": (container([text("a") + struct.pack("<IIQ", 9, 77, 1)], []), "array of the unknown type 77"),
    "array of arrays": (
        container([text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50], []),
        "more than 4 deep",
    ),
    "many arrays": (container([text("a") + struct.pack("<IIQ", 9, 9, 1 << 40)], []), "arrays, too many"),
    "alignment": (container([ALIGN + struct.pack("<I", 24)], []), "general.alignment = 24"),
    "zero alignment": (container([ALIGN + struct.pack("<I", 0)], []), "general.alignment = 0"),
    "rank": (container([], [tensor("a", [1, 1, 1, 1, 1])], bytes(32)), "'a': rank 5"),
    "size zero": (container([], [tensor("a", [4, 0])], bytes(32)), "'a': shape [0, 4]"),
    "overflowing shape": (container([], [tensor("a", [1 << 47] * 4)], bytes(32)), "do not lie in the file's"),
    "type": (container([], [tensor("a", [4], kind=4)], bytes(32)), "'a': unknown type 4"),
    "partial block": (container([], [tensor("a", [33], kind=8)], bytes(64)), "rows of 33 are no whole blocks of Q8_0"),
    "offset": (container([], [tensor("a", [4], offset=3)], bytes(32)), "offset 3 is no multiple of 32"),
    "offset beyond": (container([], [tensor("a", [4], offset=1 << 40)], bytes(32)), "do not lie in the file's"),
    "tensor twice": (container([], [tensor("a", [4])] * 2, bytes(32)), "the tensor 'a' comes twice"),
    "overlap": (container([], [tensor("a", [9]), tensor("b", [4], offset=32)], bytes(64)), "'b' overlaps 'a'"),
    "truncated data": (container([], [tensor("a", [9])], bytes(35)), "do not lie in the file's"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case: str, tmp_path: Path) -> None:
    content, said = DAMAGED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=re.escape(said)) as info:
        load_gguf(path)
    assert str(path) in str(info.value)


def small_file(path: Path) -> bytes:
    """A model of one layer with a vocabulary, every kind of value and three types of tensors."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(8)), "▁a", "b"]
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(len(pieces))])
    writer.add_token_types([2, 3, 3] + [6] * 8 + [1] * 2)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_array("extra.nested", [1, 2, 3])

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    writer.add_tensor("token_embd.weight", random(len(pieces), 32))
    writer.add_tensor("output_norm.weight", random(32))
    for name, rows in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32), ("ffn_gate", 32)):
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(random(rows, 32), Q.Q8_0), raw_dtype=Q.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", random(32, 32).astype(np.float16))
    writer.add_tensor("blk.0.ffn_down.weight", random(32, 32))
    writer.add_tensor("blk.0.attn_norm.weight", random(32))
    writer.add_tensor("blk.0.ffn_norm.weight", random(32))
    save(writer, path)
    return path.read_bytes()


def attempt(path: Path) -> bool:
    """Load a model and its tokenizer; True, or False where the file was refused."""
    try:
        checkpoint = load_gguf(path)
        tokenizer = checkpoint.tokenizer() if checkpoint.tokenizer else None
        if tokenizer is not None:
            repr(tokenizer)
    except (LoadError, UnsupportedModelError):
        return False
    for array in checkpoint.weights.values():
        assert array.dtype == checkpoint.dtype
        float(array.ravel()[-1])
    return True


def test_every_prefix(tmp_path: Path) -> None:
    content = small_file(tmp_path / "whole.gguf")
    assert attempt(tmp_path / "whole.gguf")
    path = tmp_path / "part.gguf"
    tail = len(content) - 4096  # the data is long and all alike
    lengths = [n for n in range(len(content)) if n < 4096 or n > tail or n % 31 == 0]
    loaded = []
    for length in lengths:
        path.write_bytes(content[:length])
        if attempt(path):
            loaded.append(length)
    # only the padding behind the last tensor may be missing
    assert all(length >= len(content) - 32 for length in loaded), loaded[:5]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutations(tmp_path: Path) -> None:
    """Thousands of files with changed bytes load or are refused, in little memory."""
    content = small_file(tmp_path / "whole.gguf")
    path = tmp_path / "changed.gguf"
    rng = np.random.default_rng(20240607)
    header = GGUFStore(tmp_path / "whole.gguf").info("token_embd.weight").begin
    outcomes = {True: 0, False: 0}
    tracemalloc.start()
    for _ in range(4000):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, header))
            kind = rng.integers(0, 4)
            if kind == 0:
                changed[place] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                changed[place] = int(rng.choice([0, 1, 9, 127, 128, 255]))
            elif kind == 2:
                changed[place : place + 8] = struct.pack("<Q", int(rng.integers(0, 1 << 63)))
            else:
                del changed[place : place + int(rng.integers(1, 9))]
        path.write_bytes(changed)
        outcomes[attempt(path)] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20
    assert min(outcomes.values()) > 100, outcomes
