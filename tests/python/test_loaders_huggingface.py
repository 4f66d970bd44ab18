"""Hugging Face directories: where every number goes, what every key means, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    CASES,
    C,
    D,
    E,
    F,
    G,
    H,
    L,
    V,
    case,
    random_tensors,
    to_bfloat16,
    write_checkpoint,
)  # fmt: skip
from clew.config import ModelConfig
from clew.errors import LoadError, UnsupportedModelError
from clew.loaders import open_checkpoint, weight_shapes
from clew.loaders.checkpoint import Checkpoint
from clew.loaders.huggingface_config import CLASS_DEFAULTS, OTHER_NAMES, read_config

Array = np.ndarray[Any, np.dtype[Any]]
KINDS = tuple(CASES)
HEAD_DIM = {kind: CASES[kind][0].get("head_dim", E) for kind in KINDS}


def load(directory: Path, kind: str, dtype: Any = None, **changes: Any) -> tuple[Checkpoint, dict[str, Array]]:
    """A case's checkpoint and the tensors that lie in its file."""
    config, shapes = case(kind, **changes)
    tensors = random_tensors(shapes)
    return open_checkpoint(write_checkpoint(directory, config, tensors), dtype), tensors


def only_config(directory: Path, kind: str, **changes: Any) -> Any:
    """The ModelConfig of a case with other keys."""
    return load(directory, kind, **changes)[0].config


def read(raw: dict[str, Any]) -> ModelConfig:
    """The ModelConfig of a configuration alone."""
    return read_config(raw, "config.json")


def heads(rows: Array, n: int, e: int) -> Array:
    """[n·e, d] → [n, d, e], entry by entry."""
    out = np.empty((n, rows.shape[1], e), rows.dtype)
    for head in range(n):
        for i in range(e):
            out[head, :, i] = rows[head * e + i]
    return out


# ---- Weights: names, values, views ----------------------------------------------------------------------------------

# classic name behind "blocks.L." → (file name behind the layer, how its entries are laid out)
Rule = tuple[str, Callable[[Array], Array]]


def _same(x: Array) -> Array:
    return x


def _transposed(x: Array) -> Array:
    return np.array([[x[j, i] for j in range(x.shape[0])] for i in range(x.shape[1])], x.dtype)


def _out(n: int, e: int) -> Callable[[Array], Array]:
    return lambda x: np.stack([_transposed(x[:, head * e : (head + 1) * e]) for head in range(n)])


def _separate(q: str, k: str, v: str, o: str, e: int, g: int, bias: bool, o_bias: bool) -> dict[str, Rule]:
    rules: dict[str, Rule] = {"attn.W_O": (f"{o}.weight", _out(H, e))}
    for letter, name, n in (("Q", q, H), ("K", k, g), ("V", v, g)):
        rules[f"attn.W_{letter}"] = (f"{name}.weight", lambda x, n=n: heads(x, n, e))
        if bias:
            rules[f"attn.b_{letter}"] = (
                f"{name}.bias",
                lambda x, n=n: np.array([x[i * e : (i + 1) * e] for i in range(n)]),
            )
    if o_bias:
        rules["attn.b_O"] = (f"{o}.bias", _same)
    return rules


def _mlp(w_in: str, w_out: str, view: Callable[[Array], Array] = _transposed) -> dict[str, Rule]:
    return {
        "mlp.W_in": (f"{w_in}.weight", view), "mlp.b_in": (f"{w_in}.bias", _same),
        "mlp.W_out": (f"{w_out}.weight", view), "mlp.b_out": (f"{w_out}.bias", _same),
    }  # fmt: skip


def _layer_norm(weight: str, name: str) -> dict[str, Rule]:
    return {f"{weight}.w": (f"{name}.weight", _same), f"{weight}.b": (f"{name}.bias", _same)}


def _gated(kind: str) -> dict[str, Rule]:
    gemma, e = kind.startswith("gemma"), HEAD_DIM[kind]
    scale: Callable[[Array], Array] = (lambda w: (1 + w.astype(np.float64)).astype(w.dtype)) if gemma else _same
    at = "self_attn."
    rules = _separate(f"{at}q_proj", f"{at}k_proj", f"{at}v_proj", f"{at}o_proj", e, G, kind == "qwen2", False)
    rules["ln1.w"] = ("input_layernorm.weight", scale)
    if kind in ("gemma2", "gemma3_text"):
        rules["ln1_post.w"] = ("post_attention_layernorm.weight", scale)
        rules["ln2.w"] = ("pre_feedforward_layernorm.weight", scale)
        rules["ln2_post.w"] = ("post_feedforward_layernorm.weight", scale)
    else:
        rules["ln2.w"] = ("post_attention_layernorm.weight", scale)
    if kind in ("qwen3", "gemma3_text"):
        rules["attn.q_norm.w"] = (f"{at}q_norm.weight", scale)
        rules["attn.k_norm.w"] = (f"{at}k_norm.weight", scale)
    for weight, name in (("gate", "gate"), ("in", "up"), ("out", "down")):
        rules[f"mlp.W_{weight}"] = (f"mlp.{name}_proj.weight", _transposed)
    return rules


def layer_rules(kind: str) -> dict[str, Rule]:
    """What stands in a block, written out once more."""
    norms = _layer_norm("ln1", "ln_1") | _layer_norm("ln2", "ln_2")
    if kind == "gpt2":
        rules = norms | _mlp("mlp.c_fc", "mlp.c_proj", _same) | {"attn.b_O": ("attn.c_proj.bias", _same)}
        rules["attn.W_O"] = ("attn.c_proj.weight", lambda x: np.stack([x[i * E : (i + 1) * E] for i in range(H)]))
        for part, letter in enumerate("QKV"):
            columns = slice(part * D, (part + 1) * D)
            rules[f"attn.W_{letter}"] = (
                "attn.c_attn.weight",
                lambda x, c=columns: np.stack([x[:, c][:, i * E : (i + 1) * E] for i in range(H)]),
            )
            rules[f"attn.b_{letter}"] = (
                "attn.c_attn.bias",
                lambda x, c=columns: np.stack([x[c][i * E : (i + 1) * E] for i in range(H)]),
            )
        return rules
    if kind == "gpt_neo":
        at = "attn.attention."
        own = _separate(f"{at}q_proj", f"{at}k_proj", f"{at}v_proj", f"{at}out_proj", E, H, False, True)
        return norms | own | _mlp("mlp.c_fc", "mlp.c_proj")
    if kind == "gptj":
        own = _separate("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj", E, H, False, False)
        return _layer_norm("ln1", "ln_1") | own | _mlp("mlp.fc_in", "mlp.fc_out")
    if kind == "gpt_neox":
        rules = _layer_norm("ln1", "input_layernorm") | _layer_norm("ln2", "post_attention_layernorm")
        rules |= _mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
        rules |= {"attn.W_O": ("attention.dense.weight", _out(H, E)), "attn.b_O": ("attention.dense.bias", _same)}
        for part, letter in enumerate("QKV"):  # rows: head 0's query, key, value, then head 1's
            rows = [[head * 3 * E + part * E + i for i in range(E)] for head in range(H)]
            rules[f"attn.W_{letter}"] = (
                "attention.query_key_value.weight",
                lambda x, rows=rows: np.stack([_transposed(x[r]) for r in rows]),
            )
            rules[f"attn.b_{letter}"] = ("attention.query_key_value.bias", lambda x, rows=rows: x[np.array(rows)])
        return rules
    if kind == "opt":
        at = "self_attn."
        own = _separate(f"{at}q_proj", f"{at}k_proj", f"{at}v_proj", f"{at}out_proj", E, H, True, True)
        rules = _layer_norm("ln1", "self_attn_layer_norm") | _layer_norm("ln2", "final_layer_norm")
        return rules | own | _mlp("fc1", "fc2")
    if kind == "phi":
        at = "self_attn."
        own = _separate(f"{at}q_proj", f"{at}k_proj", f"{at}v_proj", f"{at}dense", E, G, True, True)
        return _layer_norm("ln1", "input_layernorm") | own | _mlp("mlp.fc1", "mlp.fc2")
    return _gated(kind)


OUTER: dict[str, dict[str, str]] = {
    "gpt2": {"embed.W_E": "wte", "pos_embed.W_pos": "wpe", "ln_final": "ln_f"},
    "gpt_neo": {"embed.W_E": "wte", "pos_embed.W_pos": "wpe", "ln_final": "ln_f"},
    "gptj": {"embed.W_E": "wte", "ln_final": "ln_f", "unembed.W_U": "lm_head"},
    "gpt_neox": {"embed.W_E": "embed_in", "ln_final": "final_layer_norm", "unembed.W_U": "embed_out"},
    "opt": {"embed.W_E": "embed_tokens", "pos_embed.W_pos": "embed_positions", "ln_final": "final_layer_norm"},
    "phi": {"embed.W_E": "embed_tokens", "ln_final": "final_layernorm", "unembed.W_U": "lm_head"},
}
PREFIX = {"gpt2": "transformer.", "gpt_neo": "transformer.", "gptj": "transformer.", "gpt_neox": "gpt_neox."}
PREFIX["opt"] = "model.decoder."


def expected(kind: str, tensors: dict[str, Array]) -> dict[str, Array]:
    """Every weight of a case."""
    prefix, layers = PREFIX.get(kind, "model."), "h" if kind in ("gpt2", "gpt_neo", "gptj") else "layers"
    out: dict[str, Array] = {}
    for layer in range(L):
        for weight, (name, rule) in layer_rules(kind).items():
            out[f"blocks.{layer}.{weight}"] = rule(tensors[f"{prefix}{layers}.{layer}.{name}"])
    gated = {"embed.W_E": "embed_tokens", "ln_final": "norm"}
    outer = OUTER.get(kind, gated | ({} if kind.startswith("gemma") else {"unembed.W_U": "lm_head"}))
    for weight, name in outer.items():
        full = name if name in ("lm_head", "embed_out") else prefix + name
        if weight == "ln_final":
            w = tensors[f"{full}.weight"]
            out["ln_final.w"] = 1 + w if kind.startswith("gemma") else w
            if f"{full}.bias" in tensors:
                out["ln_final.b"] = tensors[f"{full}.bias"]
        else:
            out[weight] = tensors[f"{full}.weight"]
            if f"{full}.bias" in tensors:
                out["unembed.b_U"] = tensors[f"{full}.bias"]
    out["unembed.W_U"] = _transposed(out.get("unembed.W_U", out["embed.W_E"]))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_where_it_belongs(kind: str, tmp_path: Path) -> None:
    checkpoint, tensors = load(tmp_path, kind)
    want = expected(kind, tensors)
    assert set(checkpoint.weights) == set(want)
    for name, array in want.items():
        assert checkpoint.weights[name].dtype == np.float32
        np.testing.assert_array_equal(checkpoint.weights[name], array, err_msg=name)
    assert {name: array.shape for name, array in checkpoint.weights.items()} == weight_shapes(checkpoint.config)
    assert checkpoint.dtype == np.float32 and checkpoint.notes == []


@pytest.mark.parametrize("kind", KINDS)
def test_float32_weights_are_views_of_one_mapping(kind: str, tmp_path: Path) -> None:
    checkpoint, _ = load(tmp_path, kind)
    base = checkpoint.weights["embed.W_E"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    for name, array in checkpoint.weights.items():
        owned = kind.startswith("gemma") and name.endswith(".w")  # 1 + w is another number than the file's
        assert np.shares_memory(array, base) != owned, name
        assert not array.flags.writeable, name


def test_strides_of_fused_and_transposed_matrices(tmp_path: Path) -> None:
    gpt2, _ = load(tmp_path / "gpt2", "gpt2")
    assert gpt2.weights["blocks.0.attn.W_K"].strides == (4 * E, 4 * 3 * D, 4)
    assert gpt2.weights["blocks.0.attn.W_O"].flags.c_contiguous
    neox, _ = load(tmp_path / "neox", "gpt_neox")
    assert neox.weights["blocks.1.attn.W_V"].strides == (4 * 3 * E * D, 4, 4 * D)
    llama, _ = load(tmp_path / "llama", "llama")
    assert llama.weights["blocks.0.attn.W_Q"].strides == (4 * E * D, 4, 4 * D)
    assert llama.weights["blocks.0.attn.W_O"].strides == (4 * E, 4, 4 * H * E)
    assert llama.weights["blocks.0.mlp.W_in"].strides == (4, 4 * D)


@pytest.mark.parametrize("kind", KINDS)
def test_names_without_prefix(kind: str, tmp_path: Path) -> None:
    config, shapes = case(kind)
    tensors = random_tensors(shapes)
    prefix = PREFIX.get(kind, "model.")
    bare = {name.removeprefix(prefix): array for name, array in tensors.items()}
    assert set(bare) != set(tensors)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config, bare))
    for name, array in expected(kind, tensors).items():
        np.testing.assert_array_equal(checkpoint.weights[name], array, err_msg=name)


def test_a_weight_with_and_without_prefix(tmp_path: Path) -> None:
    config, shapes = case("llama")
    shapes["norm.weight"] = (D,)
    with pytest.raises(LoadError, match="'model.norm.weight' and 'norm.weight' are the same weight"):
        open_checkpoint(write_checkpoint(tmp_path, config, random_tensors(shapes)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_dtypes(kind: str, tmp_path: Path) -> None:
    config, shapes = case(kind)
    tensors = random_tensors(shapes)
    reference = expected(kind, tensors)
    converted, _ = load(tmp_path / "to64", kind, "float64")
    assert converted.dtype == np.float64
    doubles = {name: array.astype(np.float64) for name, array in tensors.items()}
    double = open_checkpoint(write_checkpoint(tmp_path / "from64", config, doubles))
    assert double.dtype == np.float64
    narrowed = open_checkpoint(write_checkpoint(tmp_path / "from64", config, doubles), "float32")
    brains = {name: to_bfloat16(array) for name, array in tensors.items()}
    brain = open_checkpoint(write_checkpoint(tmp_path / "bf16", config | {"torch_dtype": "bfloat16"}, brains))
    wide = {name: (bits.astype(np.uint32) << 16).view(np.float32) for name, bits in brains.items()}
    want = expected(kind, wide)
    for name, array in reference.items():
        got = double.weights[name]
        assert got.dtype == converted.weights[name].dtype == np.float64
        np.testing.assert_allclose(got, array, rtol=1e-7)
        np.testing.assert_array_equal(got, converted.weights[name])
        np.testing.assert_allclose(narrowed.weights[name], array, rtol=2e-7)
        np.testing.assert_array_equal(brain.weights[name], want[name], err_msg=name)
    if kind == "gemma2":  # 1 + w in the model's own precision
        w = tensors["model.norm.weight"].astype(np.float64)
        np.testing.assert_array_equal(double.weights["ln_final.w"], 1 + w)


# ---- Missing, superfluous, wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_missing_tensors_are_all_listed(kind: str, tmp_path: Path) -> None:
    config, shapes = case(kind)
    tensors = random_tensors(shapes)
    gone = [name for name in tensors if ".1." in name]
    for name in gone:
        del tensors[name]
    with pytest.raises(LoadError) as caught:
        open_checkpoint(write_checkpoint(tmp_path, config, tensors))
    assert "missing" in str(caught.value) and all(name in str(caught.value) for name in gone)


def test_renamed_tensors_are_named_beside_what_is_missing(tmp_path: Path) -> None:
    config, shapes = case("gpt2")
    tensors = {f"model.{name}": array for name, array in random_tensors(shapes).items()}
    with pytest.raises(LoadError) as caught:
        open_checkpoint(write_checkpoint(tmp_path, config, tensors))
    said = str(caught.value)
    listed = said.split(" tensors missing: ")[1].split(";")[0].split(", ")
    assert len(set(listed)) == len(listed) == len(tensors) and f"{len(listed)} tensors missing" in said
    assert "; nothing uses model.transformer." in said and said.count("model.transformer.") == 4 and ", …" in said
    assert said.endswith("; nearest to wte.weight: model.transformer.wte.weight")


def test_wrong_shapes_are_all_named_with_both(tmp_path: Path) -> None:
    config, shapes = case("gpt2")
    shapes["transformer.h.0.attn.c_attn.weight"] = (3 * D, D)
    shapes["transformer.ln_f.bias"] = (D + 1,)
    with pytest.raises(LoadError, match="2 tensors of the wrong shape") as caught:
        open_checkpoint(write_checkpoint(tmp_path, config, random_tensors(shapes)))
    assert "transformer.h.0.attn.c_attn.weight: [36, 12], expected [12, 36]" in str(caught.value)
    assert "transformer.ln_f.bias: [13], expected [12]" in str(caught.value)


def test_masks_and_rotary_buffers_are_left_out_with_a_note(tmp_path: Path) -> None:
    harmless = {
        "gpt2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
        "gpt_neo": ["transformer.h.0.attn.attention.bias"],
        "gptj": ["transformer.h.0.attn.masked_bias"],
        "gpt_neox": ["gpt_neox.layers.0.attention.rotary_emb.inv_freq", "gpt_neox.layers.1.attention.masked_bias"],
        "llama": ["model.layers.0.self_attn.rotary_emb.inv_freq"],
    }
    for kind, names in harmless.items():
        config, shapes = case(kind)
        tensors = random_tensors(shapes) | {name: np.ones((1, 1, C, C), bool) for name in names}
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / kind, config, tensors))
        assert len(checkpoint.notes) == 1 and all(name in checkpoint.notes[0] for name in names)


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    config, shapes = case("llama")
    shapes |= {"score.weight": (2, D), "model.layers.0.self_attn.q_proj.bias": (H * E,)}
    with pytest.raises(LoadError, match="2 tensors that the architecture does not have") as caught:
        open_checkpoint(write_checkpoint(tmp_path, config, random_tensors(shapes)))
    assert "score.weight" in str(caught.value) and "model.layers.0.self_attn.q_proj.bias" in str(caught.value)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    config, shapes = case("llama")
    tensors = random_tensors(shapes)
    tensors["model.norm.weight"] = np.ones(D, np.int64)
    with pytest.raises(LoadError, match=r"'model.norm.weight': I64 is no dtype of weights"):
        open_checkpoint(write_checkpoint(tmp_path, config, tensors))


def test_more_layers_than_tensors(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="9000 layers, but .* holds only"):
        load(tmp_path, "llama", num_hidden_layers=9000)


# ---- Tied embeddings ------------------------------------------------------------------------------------------------


def test_tied_unembedding_is_a_view_of_the_embedding(tmp_path: Path) -> None:
    checkpoint, _ = load(tmp_path, "gpt2")
    assert checkpoint.config.tie_word_embeddings
    assert np.shares_memory(checkpoint.weights["unembed.W_U"], checkpoint.weights["embed.W_E"])


def tied_case(directory: Path, kind: str, tie: bool | None, head: str) -> Checkpoint:
    """head: "none", "same", "other", "only"."""
    config, shapes = case(kind)
    if tie is not None:
        config["tie_word_embeddings"] = tie
    tensors = random_tensors(shapes | {"lm_head.weight": (V, D)})
    embed = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    if head == "none":
        del tensors["lm_head.weight"]
    elif head == "same":
        tensors["lm_head.weight"] = tensors[embed]
    elif head == "only":
        del tensors[embed]
    return open_checkpoint(write_checkpoint(directory, config, tensors))


def test_tying(tmp_path: Path) -> None:
    for name, tie, head, tied, note in [
        ("a", None, "none", True, "tied to the embedding"),
        ("b", None, "other", False, None),
        ("c", False, "other", False, None),
        ("d", True, "none", True, None),
        ("e", True, "same", True, "left out"),
        ("f", True, "other", False, "differs"),
        ("g", True, "only", True, None),
    ]:
        checkpoint = tied_case(tmp_path / name, "llama", tie, head)
        w = checkpoint.weights
        assert checkpoint.config.tie_word_embeddings is tied, name
        assert np.shares_memory(w["unembed.W_U"], w["embed.W_E"]) is tied, name
        assert np.array_equal(w["unembed.W_U"], w["embed.W_E"].T) is tied, name
        assert len(checkpoint.notes) == (note is not None) and (note is None or note in checkpoint.notes[0]), name
    with pytest.raises(LoadError, match="missing: lm_head.weight"):
        tied_case(tmp_path / "h", "llama", False, "none")
    untied = tied_case(tmp_path / "i", "gpt2", False, "other")
    assert not untied.config.tie_word_embeddings


# ---- Configuration --------------------------------------------------------------------------------------------------


def test_gpt2_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gpt2")
    assert (config.n_layers, config.d_model, config.n_heads, config.d_head, config.d_mlp) == (L, D, H, E, F)
    assert (config.n_ctx, config.d_vocab, config.act_fn, config.eps) == (C, V, "gelu_tanh", 1e-5)
    assert config.attn_scale == 2.0 and config.normalization_type == "LN" and config.qkv_bias and config.mlp_bias
    assert config.positional_embedding_type == "standard" and config.original_architecture == "gpt2"
    config = only_config(
        tmp_path / "b", "gpt2", scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3,
        reorder_and_upcast_attn=True, activation_function="relu", bos_token_id=3, eos_token_id=[4, 5],
    )  # fmt: skip
    assert config.attn_scale == 1.0 and config.scale_attn_by_inverse_layer_idx and config.eps == 1e-3
    assert config.act_fn == "relu" and (config.bos_token_id, config.eos_token_id) == (3, (4, 5))
    directory = tmp_path / "c"
    raw, shapes = case("gpt2", n_inner=None)
    wide = {n: tuple(4 * D if d == F else d for d in s) for n, s in shapes.items()}
    assert open_checkpoint(write_checkpoint(directory, raw, random_tensors(wide))).config.d_mlp == 4 * D


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gelu", "gelu"), ("gelu_python", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_accurate", "gelu_tanh"), ("gelu_python_tanh", "gelu_tanh"),
        ("relu", "relu"), ("relu2", "relu2"), ("silu", "silu"), ("swish", "silu"), ("quick_gelu", "quick_gelu"),
        ("tanh", "tanh"), ("sigmoid", "sigmoid"), ("linear", "none"),
    ],
)  # fmt: skip
def test_activations(name: str, kind: str, tmp_path: Path) -> None:
    assert only_config(tmp_path, "llama", hidden_act=name).act_fn == kind


@pytest.mark.parametrize("name", ["gelu_10", "mish", "xielu", "laplace", 3, None])
def test_unknown_activations_are_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=f"hidden_act = {name!r}; supported: .*gelu_new"):
        only_config(tmp_path, "llama", hidden_act=name)


def test_gpt_neo_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gpt_neo")
    assert config.attn_types == ("global", "local") and config.window_size == 5
    assert config.attn_scale == 1.0 and not config.qkv_bias and config.attn_out_bias
    plain = only_config(tmp_path / "b", "gpt_neo", attention_types=[[["global"], 2]])
    assert plain.attn_types is None and plain.window_size is None
    for wrong in ([[["global"], 3]], [[["sparse"], 2]], [["global", 2]], 7, [[["global"], 10**12]]):
        with pytest.raises(LoadError, match="attention_types"):
            only_config(tmp_path / "c", "gpt_neo", attention_types=wrong)


def test_gpt_neo_layers_win_over_types(tmp_path: Path) -> None:
    """The reference reads attention_layers, which its own files hold beside attention_types."""
    both = dict(attention_types=[[["global", "local"], 12]], attention_layers=["local", "local"])
    assert only_config(tmp_path / "a", "gpt_neo", **both).attn_types == ("local", "local")
    null = only_config(tmp_path / "b", "gpt_neo", attention_types=[[["local", "global"], 1]], attention_layers=None)
    assert null.attn_types == ("local", "global")
    for wrong in (["local"], ["local"] * 3, ["local", "sparse"], "local", 7, [["local"], "global"]):
        with pytest.raises(LoadError, match="attention_layers = .*expected 'global' or 'local' for each of 2 layers"):
            only_config(tmp_path / "c", "gpt_neo", attention_layers=wrong)


@pytest.mark.parametrize("kind", OTHER_NAMES)
def test_names_that_a_class_takes_as_well(kind: str, tmp_path: Path) -> None:
    config, shapes = case(kind)
    named = {other: config.pop(own) for other, own in OTHER_NAMES[kind].items()}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config | named, random_tensors(shapes)))
    want = only_config(tmp_path / "own", kind)
    assert checkpoint.config == want and checkpoint.config.extra == want.extra
    # where both are given the other name wins, as in the reference
    assert read(case(kind)[0] | {"num_hidden_layers": 2, OTHER_NAMES[kind]["num_hidden_layers"]: 9}).n_layers == 2


def test_gptj_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gptj")
    assert config.rotary_dim == 2 and config.rotary_adjacent_pairs and config.rotary_base == 10000.0
    assert config.parallel_attn_mlp and config.shared_norm and config.unembed_bias and not config.tie_word_embeddings
    assert not config.qkv_bias and not config.attn_out_bias and config.mlp_bias
    for wrong in (3, 6):
        with pytest.raises(LoadError, match="rotary_dim"):
            only_config(tmp_path / "b", "gptj", rotary_dim=wrong)


def test_gpt_neox_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gpt_neox")
    assert config.rotary_dim == 2 and config.rotary_base == 500.0 and not config.rotary_adjacent_pairs
    assert config.parallel_attn_mlp and not config.shared_norm and config.act_fn == "gelu"
    assert not only_config(tmp_path / "b", "gpt_neox", use_parallel_residual=False).parallel_attn_mlp
    new = {"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 1.0}
    config = only_config(tmp_path / "c", "gpt_neox", rope_parameters=new, rotary_pct=None, rotary_emb_base=None)
    assert config.rotary_dim == 4 and config.rotary_base == 77.0
    # the names that other architectures have for them mean nothing here
    other = dict(rope_theta=77.0, partial_rotary_factor=1.0)
    config = only_config(tmp_path / "e", "gpt_neox", **other, rotary_pct=0.5, rotary_emb_base=None)
    assert config.rotary_dim == 2 and config.rotary_base == 10000.0
    assert read(case("gpt_neox", **other, hidden_size=24, rotary_pct=None)[0]).rotary_dim == 2  # of 8: a quarter
    raw, shapes = case("gpt_neox", attention_bias=False)
    bare = {n: s for n, s in shapes.items() if not n.endswith(("query_key_value.bias", "dense.bias"))}
    config = open_checkpoint(write_checkpoint(tmp_path / "d", raw, random_tensors(bare))).config
    assert not config.qkv_bias and not config.attn_out_bias and config.mlp_bias


def test_opt_keys(tmp_path: Path) -> None:
    checkpoint, tensors = load(tmp_path / "a", "opt")
    assert checkpoint.config.pos_offset == 2 and checkpoint.config.n_ctx == C and checkpoint.config.act_fn == "relu"
    assert checkpoint.weights["pos_embed.W_pos"].shape == (C + 2, D)
    raw, shapes = case("opt", enable_bias=False, layer_norm_elementwise_affine=False)
    bare = {n: s for n, s in shapes.items() if not n.endswith(".bias") and "layer_norm" not in n}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "b", raw, random_tensors(bare)))
    assert checkpoint.config.normalization_type == "LNPre" and not checkpoint.config.mlp_bias
    assert not any(name.startswith("ln") or ".b_" in name for name in checkpoint.weights)
    raw, shapes = case("opt", _remove_final_layer_norm=True)
    bare = {n: s for n, s in shapes.items() if not n.startswith("model.decoder.final_layer_norm")}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", raw, random_tensors(bare)))
    assert not checkpoint.config.final_norm and "ln_final.w" not in checkpoint.weights
    del tensors


def test_phi_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "phi")
    assert config.rotary_dim == 2 and config.shared_norm and config.parallel_attn_mlp and config.unembed_bias
    assert config.n_key_value_heads == G and config.act_fn == "gelu_tanh"
    assert only_config(tmp_path / "b", "phi", partial_rotary_factor=1.0).rotary_dim == 4


def test_llama_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "llama")
    assert config.normalization_type == "RMS" and config.gated_mlp and config.act_fn == "silu" and config.eps == 1e-6
    assert config.n_key_value_heads == G and config.rotary_dim == E and config.rotary_base == 10000.0
    assert not (config.qkv_bias or config.attn_out_bias or config.mlp_bias or config.norm_bias or config.unembed_bias)
    raw, shapes = case("llama", attention_bias=True, mlp_bias=True)
    shapes |= {n.replace(".weight", ".bias"): s[:1] for n, s in shapes.items() if "_proj" in n}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "b", raw, random_tensors(shapes)))
    assert checkpoint.config.qkv_bias and checkpoint.config.attn_out_bias and checkpoint.config.mlp_bias
    assert checkpoint.weights["blocks.1.mlp.b_gate"].shape == (F,)
    assert checkpoint.weights["blocks.1.attn.b_K"].shape == (G, E)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi"])
def test_rotary_scaling_in_both_forms(kind: str, tmp_path: Path) -> None:
    llama3 = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    old = only_config(tmp_path / "a", kind, rope_theta=5e5, rope_scaling=llama3)
    new = only_config(tmp_path / "b", kind, rope_parameters={"rope_theta": 5e5, **llama3})
    assert old.rotary_base == new.rotary_base == 5e5
    assert dict(old.rope_scaling) == dict(new.rope_scaling) == llama3
    linear = only_config(tmp_path / "c", kind, rope_scaling={"type": "linear", "factor": 4})
    assert dict(linear.rope_scaling) == {"rope_type": "linear", "factor": 4.0} and linear.rotary_base == 10000.0
    np.testing.assert_allclose(
        linear.rotary_frequencies()[0], [1e4 ** (-2 * i / linear.rotary_dim) / 4 for i in range(linear.rotary_dim // 2)]
    )
    assert only_config(tmp_path / "d", kind, rope_scaling={"rope_type": "default"}).rope_scaling is None
    del llama3["original_max_position_embeddings"]
    implied = only_config(tmp_path / "e", kind, rope_scaling=llama3)
    assert implied.rope_scaling["original_max_position_embeddings"] == C
    outside = only_config(tmp_path / "f", kind, rope_scaling=llama3, original_max_position_embeddings=99)
    assert outside.rope_scaling["original_max_position_embeddings"] == 99


def test_mistral_window(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "mistral")
    assert config.window_size == 5 and config.attn_types is None and config.is_local(0) and config.is_local(1)
    assert only_config(tmp_path / "b", "mistral", sliding_window=None).window_size is None
    assert only_config(tmp_path / "c", "mistral", layer_types=["sliding_attention"] * 2).window_size == 5
    with pytest.raises(UnsupportedModelError, match="layer_types"):
        only_config(tmp_path / "d", "mistral", layer_types=["sliding_attention", "full_attention"])


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_qwen_windows(kind: str, tmp_path: Path) -> None:
    assert only_config(tmp_path / "a", kind, sliding_window=4).window_size is None
    on = dict(use_sliding_window=True, sliding_window=4)
    config = only_config(tmp_path / "b", kind, **on, max_window_layers=1)
    assert config.attn_types == ("global", "local") and config.window_size == 4
    assert only_config(tmp_path / "c", kind, **on).attn_types is None  # 28 layers come first
    types = ["sliding_attention", "full_attention"]
    assert only_config(tmp_path / "d", kind, **on, layer_types=types).attn_types == ("local", "global")
    with pytest.raises(UnsupportedModelError, match="sliding_window is not in use"):
        only_config(tmp_path / "e", kind, layer_types=types)
    with pytest.raises(UnsupportedModelError, match="chunked_attention"):
        only_config(tmp_path / "f", kind, **on, layer_types=["chunked_attention"] * 2)
    with pytest.raises(LoadError, match="layer_types.*2 layers"):
        only_config(tmp_path / "g", kind, **on, layer_types=types * 2)


def test_qwen_heads(tmp_path: Path) -> None:
    qwen2, qwen3 = only_config(tmp_path / "a", "qwen2"), only_config(tmp_path / "b", "qwen3")
    assert qwen2.qkv_bias and not qwen2.attn_out_bias and qwen2.d_head == 4
    assert qwen3.use_qk_norm and not qwen3.qkv_bias and qwen3.d_head == 6


def test_gemma_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gemma", hidden_act="gelu")
    assert config.embed_scale == math.sqrt(D) and config.act_fn == "gelu_tanh" and config.tie_word_embeddings
    assert config.attn_scale == math.sqrt(6) and config.d_head == 6
    assert only_config(
        tmp_path / "b", "gemma", hidden_act="gelu", hidden_activation="gelu_pytorch_tanh"
    ) == config.replace(model_name="gemma")
    with pytest.raises(UnsupportedModelError, match="hidden_activation = 'relu' contradicts"):
        only_config(tmp_path / "c", "gemma", hidden_activation="relu")


def test_gemma2_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gemma2")
    assert config.attn_types == ("local", "global") and config.window_size == 5
    assert config.attn_scores_soft_cap == 50.0 and config.output_logits_soft_cap == 30.0 and config.attn_scale == 16.0
    assert config.use_normalization_before_and_after
    changed = only_config(
        tmp_path / "b", "gemma2", attn_logit_softcapping=None, final_logit_softcapping=7, query_pre_attn_scalar=9,
        layer_types=["full_attention", "sliding_attention"], hidden_activation="gelu",
    )  # fmt: skip
    assert changed.attn_scores_soft_cap is None and changed.output_logits_soft_cap == 7.0
    assert changed.attn_scale == 3.0 and changed.attn_types == ("global", "local") and changed.act_fn == "gelu"


def test_gemma3_keys(tmp_path: Path) -> None:
    config = only_config(tmp_path / "a", "gemma3_text")
    assert config.rotary_base == 1e6 and config.rotary_base_local == 1e4 and config.rope_scaling is None
    assert config.attn_types == ("local", "local") and config.window_size == 5 and config.use_qk_norm
    assert config.attn_scores_soft_cap is None and config.output_logits_soft_cap is None
    linear = {"rope_type": "linear", "factor": 8.0}
    old = only_config(
        tmp_path / "b", "gemma3_text", rope_theta=5e5, rope_local_base_freq=7e3, rope_scaling=linear,
        sliding_window_pattern=2,
    )  # fmt: skip
    new = only_config(
        tmp_path / "c", "gemma3_text", layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_theta": 5e5, **linear}, "sliding_attention": {"rope_theta": 7e3},
        },
    )  # fmt: skip
    for config in (old, new):
        assert (config.rotary_base, config.rotary_base_local) == (5e5, 7e3)
        assert dict(config.rope_scaling) == linear and config.attn_types == ("local", "global")
        full, local = config.rotary_frequencies()
        np.testing.assert_allclose(full, [5e5 ** (-2 * i / 6) / 8 for i in range(3)])
        np.testing.assert_allclose(local, [7e3 ** (-2 * i / 6) for i in range(3)])
    with pytest.raises(LoadError, match="rope_parameters"):
        only_config(tmp_path / "d", "gemma3_text", rope_parameters={"rope_theta": 1e4})


def test_gemma3_bases_beside_rope_parameters() -> None:
    """The older keys hold where rope_parameters has no base of its own."""
    outer = dict(rope_theta=5e5, rope_local_base_freq=7e3)
    linear = {"rope_type": "linear", "factor": 8.0}
    for new, bases in [
        ({"full_attention": linear, "sliding_attention": {"rope_type": "default"}}, (5e5, 7e3)),
        ({"full_attention": linear, "sliding_attention": None}, (5e5, 7e3)),
        ({"sliding_attention": {"rope_theta": 11.0}}, (5e5, 11.0)),
        ({"full_attention": linear | {"rope_theta": 12.0}}, (12.0, 7e3)),
    ]:
        config = read(case("gemma3_text", **outer, rope_parameters=new)[0])
        assert (config.rotary_base, config.rotary_base_local) == bases, new
        assert config.rope_scaling == (linear if "full_attention" in new else None)
    config = read(case("gemma3_text", rope_theta=None, rope_parameters={"full_attention": linear})[0])
    assert (config.rotary_base, config.rotary_base_local) == (1e6, 1e4)


def test_scaling_under_its_older_name() -> None:
    """`type` where rope_type is absent or null, for Gemma 3 too: the reference's fifth release forgets it there."""
    linear = {"rope_type": "linear", "factor": 8.0}
    for kind in ("llama", "gemma3_text"):
        for scaling in ({"type": "linear", "factor": 8.0}, {"rope_type": None, "type": "linear", "factor": 8.0}):
            assert read(case(kind, rope_scaling=scaling)[0]).rope_scaling == linear
        both = {"rope_type": "default", "type": "linear", "factor": 8.0}
        assert read(case(kind, rope_scaling=both)[0]).rope_scaling is None
        with pytest.raises(UnsupportedModelError, match="rope_scaling: rope_type = 'yarn'"):
            read(case(kind, rope_scaling={"rope_type": None, "type": "yarn", "factor": 8.0})[0])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ("ab", "rope_parameters = 'ab'"),
        ([[1, 2]], r"rope_parameters = \[\[1, 2\]\]"),
        ({"full_attention": 3}, "rope_parameters: full_attention = 3"),
        ({"full_attention": "ab"}, "rope_parameters: full_attention = 'ab'"),
        ({"full_attention": 0}, "rope_parameters: full_attention = 0"),
        ({"full_attention": []}, r"rope_parameters: full_attention = \[\]"),
        ({"full_attention": [[1, 2]]}, r"rope_parameters: full_attention = \[\[1, 2\]\]"),
        ({"sliding_attention": [1]}, r"rope_parameters: sliding_attention = \[1\]"),
        ({"full_attention": {}, "sliding_attention": "ab"}, "rope_parameters: sliding_attention = 'ab'"),
    ],
)
def test_rope_parameters_that_are_no_objects(kind: str, wrong: Any, key: str) -> None:
    with pytest.raises(LoadError, match=f"config.json: {key}, expected an object"):
        read(case(kind, rope_parameters=wrong)[0])


def test_released_gemma3_leaves_out_what_its_class_says() -> None:
    """Google's 4B, 12B and 27B files hold these keys and no others (sizes made small)."""
    text = dict(
        hidden_size=24, intermediate_size=37, model_type="gemma3_text", num_hidden_layers=6, sliding_window=4,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
    )  # fmt: skip
    config = read({"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]})
    assert (config.n_heads, config.n_key_value_heads, config.d_head, config.d_vocab) == (8, 4, 256, 262208)
    assert (config.n_layers, config.d_model, config.d_mlp, config.n_ctx) == (6, 24, 37, 131072)
    assert config.attn_types == ("local",) * 5 + ("global",) and config.window_size == 4
    assert (config.rotary_base, config.rotary_base_local, config.attn_scale) == (1e6, 1e4, 16.0)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 8.0}
    assert config.act_fn == "gelu_tanh" and config.eps == 1e-6 and config.tie_word_embeddings
    assert (config.bos_token_id, config.eos_token_id) == (2, (1, 106))
    assert read({"model_type": "gemma3", "text_config": {}}).n_layers == 26


@pytest.mark.parametrize("kind", CLASS_DEFAULTS)
def test_a_configuration_of_nothing_is_the_class_default(kind: str) -> None:
    config = read({"model_type": kind})
    assert config.d_vocab == CLASS_DEFAULTS[kind]["vocab_size"]
    assert read({"model_type": kind} | CLASS_DEFAULTS[kind]).replace(extra={}) == config


@pytest.mark.parametrize("style", ["language_model.model.", "model.language_model."])
def test_gemma3_inside_its_wrapper(style: str, tmp_path: Path) -> None:
    config, shapes = case("gemma3_text")
    tensors = random_tensors(shapes)
    wrapped = {name.replace("model.", style, 1): array for name, array in tensors.items()}
    vision = style.removesuffix("language_model.").removesuffix("language_model.model.")
    wrapped |= {f"{vision}vision_tower.x.weight": np.ones(3, np.float32)}
    wrapped |= {f"{vision}multi_modal_projector.y": np.ones(3, np.float32)}
    outer = {"model_type": "gemma3", "text_config": config, "vision_config": {}, "eos_token_id": [1, 106]}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "a", outer, wrapped))
    assert checkpoint.config.eos_token_id == (1, 106) and "vision_tower" in checkpoint.notes[0]
    for name, array in expected("gemma3_text", tensors).items():
        np.testing.assert_array_equal(checkpoint.weights[name], array, err_msg=name)
    blind = {name: array for name, array in wrapped.items() if "vision" in name}
    with pytest.raises(LoadError, match="holds only 1 tensors"):
        open_checkpoint(write_checkpoint(tmp_path / "b", outer, blind))
    blind |= {f"vision_tower.{i}": np.ones(1, np.float32) for i in range(9)}
    with pytest.raises(UnsupportedModelError, match="holds no text weights"):
        open_checkpoint(write_checkpoint(tmp_path / "b", outer, blind))
    with pytest.raises(LoadError, match="text_config"):
        open_checkpoint(write_checkpoint(tmp_path / "c", {"model_type": "gemma3"}, wrapped))


# ---- Refusals -------------------------------------------------------------------------------------------------------

ROTARY_KINDS = [kind for kind in KINDS if kind not in ("gpt2", "gpt_neo", "opt", "gptj", "gemma3_text")]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((kind, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = .*gptq") for kind in KINDS),
    *((kind, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'") for kind in ROTARY_KINDS),
    *((kind, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'") for kind in ROTARY_KINDS),
    *((kind, {"rope_parameters": {"rope_type": "longrope"}}, "rope_type = 'longrope'") for kind in ROTARY_KINDS),
    *(
        (kind, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5")
        for kind in ROTARY_KINDS
        if kind not in ("phi", "gpt_neox")
    ),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
    ("gptj", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("gptj", {"rotary_dim": None}, "rotary_dim = null"),
    ("gpt_neox", {"head_dim": 7}, "head_dim = 7"),
    ("gpt_neox", {"rotary_pct": 0.3}, "1 rotary dimensions"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
    ("opt", {"word_embed_proj_dim": 6}, "word_embed_proj_dim = 6"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm = True"),
    ("llama", {"sliding_window": 4}, "sliding_window = 4"),
    ("llama", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("llama", {"logits_scaling": 8.0}, "logits_scaling = 8.0"),
    ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
    ("llama", {"head_dim": 5}, "5 rotary dimensions"),
    ("mistral", {"attention_bias": True}, "attention_bias = True"),
    ("qwen2", {"attention_bias": False}, "attention_bias = False"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias = True"),
    *((kind, {"is_causal": False}, "is_causal = False is not supported") for kind in KINDS if kind != "gpt_neo"),
    ("llama", {"is_causal": None}, "is_causal = None is not supported"),
    *(
        (kind, {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_parameters by layer type")
        for kind in ROTARY_KINDS
    ),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma", {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("gemma3_text", {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type = 'yarn'"),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "sliding_attention: rope_type = 'linear'",
    ),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_keys_that_change_results_are_refused(kind: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        only_config(tmp_path, kind, **changes)
    assert "config.json" in str(caught.value)


def test_causal_attention_may_be_said(tmp_path: Path) -> None:
    for kind in KINDS:
        said = read(case(kind, is_causal=True)[0])
        assert said.replace(extra={}) == read(case(kind)[0]) and said.attention_dir == "causal"
    # GPT-Neo's own masks are causal whatever the key says
    assert read(case("gpt_neo", is_causal=False)[0]).attention_dir == "causal"


@pytest.mark.parametrize("kind", ["bert", "mixtral", None, 3])
def test_unknown_architectures(kind: Any, tmp_path: Path) -> None:
    config, shapes = case("llama")
    with pytest.raises(UnsupportedModelError, match=f"model_type = {kind!r}; supported: gpt2, .*gemma3_text, clew"):
        open_checkpoint(write_checkpoint(tmp_path, config | {"model_type": kind}, random_tensors(shapes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "12"}, "hidden_size = '12', expected an integer"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small', expected a number"),
        ({"num_key_value_heads": 2}, "n_heads = 3 is no multiple of n_key_value_heads = 2"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide"),
        ({"attention_bias": "yes"}, "attention_bias = 'yes', expected true or false"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"vocab_size": V + 1}, r"embed_tokens.weight: \[11, 12\], expected \[12, 12\]"),
    ],
)
def test_keys_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=message):
        only_config(tmp_path, "llama", **changes)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_sizes_that_are_missing(key: str, tmp_path: Path) -> None:
    config, shapes = case("llama")
    del config[key]
    # the class's own default holds, and does not fit
    with pytest.raises(LoadError, match=rf"config.json: {key} is missing \({CLASS_DEFAULTS['llama'][key]} assumed\)"):
        open_checkpoint(write_checkpoint(tmp_path, config, random_tensors(shapes)))


def test_other_keys_are_kept_for_reference(tmp_path: Path) -> None:
    config = only_config(tmp_path, "llama", attention_dropout=0.1, my_note="hello")
    assert config.extra["attention_dropout"] == 0.1 and config.extra["my_note"] == "hello"
    assert "hidden_size" not in config.extra
    json.dumps(config.to_dict())
