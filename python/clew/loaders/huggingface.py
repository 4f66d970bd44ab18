"""Hugging Face directories: checkpoint names -> classic weights, one table each, and what opens a directory.

What the keys of `config.json` mean stands in :mod:`clew.loaders.huggingface_config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .assemble import (
    Array,
    Names,
    Source,
    assemble,
    heads_bias,
    heads_in,
    heads_in_columns,
    heads_out,
    heads_out_rows,
    plus_one,
    transposed,
)
from .checkpoint import Checkpoint
from .huggingface_config import assumed_sizes, read_config
from .safetensors import TensorStore

# ---- Weights --------------------------------------------------------------------------------------------------------


def _norm(weight: str, name: str, d: int, bias: bool) -> list[Source]:
    out = [Source(f"{weight}.w", f"{name}.weight", (d,))]
    return [*out, Source(f"{weight}.b", f"{name}.bias", (d,))] if bias else out


def _linear(weight: str, bias: str | None, name: str, d_in: int, d_out: int) -> list[Source]:
    """PyTorch's Linear, [out, in]."""
    out = [Source(weight, f"{name}.weight", (d_out, d_in), transposed)]
    return [*out, Source(bias, f"{name}.bias", (d_out,))] if bias else out


def _columns(weight: str, bias: str, name: str, d_in: int, d_out: int) -> list[Source]:
    """GPT-2's Conv1D, [in, out]."""
    return [Source(weight, f"{name}.weight", (d_in, d_out)), Source(bias, f"{name}.bias", (d_out,))]


def _attention(c: ModelConfig, to: str, q: str, k: str, v: str, o: str) -> list[Source]:
    """Four PyTorch Linears."""
    d, e = c.d_model, c.d_head
    out = []
    for letter, name, n in (("Q", q, c.n_heads), ("K", k, c.n_key_value_heads), ("V", v, c.n_key_value_heads)):
        out.append(Source(f"{to}.W_{letter}", f"{name}.weight", (n * e, d), heads_in(n)))
        if c.qkv_bias:
            out.append(Source(f"{to}.b_{letter}", f"{name}.bias", (n * e,), heads_bias(n)))
    out.append(Source(f"{to}.W_O", f"{o}.weight", (d, c.n_heads * e), heads_out(c.n_heads)))
    if c.attn_out_bias:
        out.append(Source(f"{to}.b_O", f"{o}.bias", (d,)))
    return out


def _outer(c: ModelConfig, embed: str, final: str, position: str | None = None) -> list[Source]:
    out = [Source("embed.W_E", f"{embed}.weight", (c.d_vocab, c.d_model))]
    if position is not None:
        out.append(Source("pos_embed.W_pos", f"{position}.weight", (c.n_ctx, c.d_model)))
    if c.final_norm and c.norm_affine:
        out += _norm("ln_final", final, c.d_model, c.norm_bias)
    out.append(Source("unembed.W_U", "lm_head.weight", (c.d_vocab, c.d_model), transposed))
    if c.unembed_bias:
        out.append(Source("unembed.b_U", "lm_head.bias", (c.d_vocab,)))
    return out


def _gpt2_weights(c: ModelConfig) -> list[Source]:
    d, h, out = c.d_model, c.n_heads, _outer(c, "wte", "ln_f", "wpe")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True) + _norm(f"{to}.ln2", f"{at}.ln_2", d, True)
        for part, letter in enumerate("QKV"):
            view = heads_in_columns(h, part, 3)
            out.append(Source(f"{to}.attn.W_{letter}", f"{at}.attn.c_attn.weight", (d, 3 * d), view))
            out.append(Source(f"{to}.attn.b_{letter}", f"{at}.attn.c_attn.bias", (3 * d,), heads_bias(h, part, 3)))
        out.append(Source(f"{to}.attn.W_O", f"{at}.attn.c_proj.weight", (d, d), heads_out_rows(h)))
        out.append(Source(f"{to}.attn.b_O", f"{at}.attn.c_proj.bias", (d,)))
        out += _columns(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.c_fc", d, c.d_mlp)
        out += _columns(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.c_proj", c.d_mlp, d)
    return out


def _gpt_neo_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "wte", "ln_f", "wpe")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        inner = f"{at}.attn.attention"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True) + _norm(f"{to}.ln2", f"{at}.ln_2", d, True)
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.out_proj")
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.c_fc", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.c_proj", c.d_mlp, d)
    return out


def _gptj_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "wte", "ln_f")
    for layer in range(c.n_layers):
        at, to = f"h.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.ln_1", d, True)
        out += _attention(
            c, f"{to}.attn", f"{at}.attn.q_proj", f"{at}.attn.k_proj", f"{at}.attn.v_proj", f"{at}.attn.out_proj"
        )
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.fc_in", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.fc_out", c.d_mlp, d)
    return out


def _gpt_neox_weights(c: ModelConfig) -> list[Source]:
    d, h, out = c.d_model, c.n_heads, _outer(c, "embed_in", "final_layer_norm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, True)
        out += _norm(f"{to}.ln2", f"{at}.post_attention_layernorm", d, True)
        fused = f"{at}.attention.query_key_value"
        for part, letter in enumerate("QKV"):
            out.append(Source(f"{to}.attn.W_{letter}", f"{fused}.weight", (3 * d, d), heads_in(h, part, 3)))
            if c.qkv_bias:
                view = heads_bias(h, part, 3, interleaved=True)
                out.append(Source(f"{to}.attn.b_{letter}", f"{fused}.bias", (3 * d,), view))
        out.append(Source(f"{to}.attn.W_O", f"{at}.attention.dense.weight", (d, d), heads_out(h)))
        if c.attn_out_bias:
            out.append(Source(f"{to}.attn.b_O", f"{at}.attention.dense.bias", (d,)))
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.dense_h_to_4h", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.dense_4h_to_h", c.d_mlp, d)
    return out


def _opt_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "embed_tokens", "final_layer_norm")
    # position 0 reads row 2 of it
    out.append(Source("pos_embed.W_pos", "embed_positions.weight", (c.n_ctx + c.pos_offset, d)))
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        if c.norm_affine:
            out += _norm(f"{to}.ln1", f"{at}.self_attn_layer_norm", d, True)
            out += _norm(f"{to}.ln2", f"{at}.final_layer_norm", d, True)
        inner = f"{at}.self_attn"
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.out_proj")
        bias = c.mlp_bias or None
        out += _linear(f"{to}.mlp.W_in", bias and f"{to}.mlp.b_in", f"{at}.fc1", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", bias and f"{to}.mlp.b_out", f"{at}.fc2", c.d_mlp, d)
    return out


def _phi_weights(c: ModelConfig) -> list[Source]:
    d, out = c.d_model, _outer(c, "embed_tokens", "final_layernorm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, True)
        inner = f"{at}.self_attn"
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.dense")
        out += _linear(f"{to}.mlp.W_in", f"{to}.mlp.b_in", f"{at}.mlp.fc1", d, c.d_mlp)
        out += _linear(f"{to}.mlp.W_out", f"{to}.mlp.b_out", f"{at}.mlp.fc2", c.d_mlp, d)
    return out


def _llama_weights(c: ModelConfig, one_plus: bool = False) -> list[Source]:
    """Llama, Mistral, Qwen and the Gemmas; with `one_plus` the norms multiply by 1 + w."""
    d, e, out = c.d_model, c.d_head, _outer(c, "embed_tokens", "norm")
    for layer in range(c.n_layers):
        at, to = f"layers.{layer}", f"blocks.{layer}"
        inner = f"{at}.self_attn"
        out += _norm(f"{to}.ln1", f"{at}.input_layernorm", d, False)
        out += _attention(c, f"{to}.attn", f"{inner}.q_proj", f"{inner}.k_proj", f"{inner}.v_proj", f"{inner}.o_proj")
        if c.use_qk_norm:
            out += _norm(f"{to}.attn.q_norm", f"{inner}.q_norm", e, False)
            out += _norm(f"{to}.attn.k_norm", f"{inner}.k_norm", e, False)
        if c.use_normalization_before_and_after:
            out += _norm(f"{to}.ln1_post", f"{at}.post_attention_layernorm", d, False)
            out += _norm(f"{to}.ln2", f"{at}.pre_feedforward_layernorm", d, False)
            out += _norm(f"{to}.ln2_post", f"{at}.post_feedforward_layernorm", d, False)
        else:
            out += _norm(f"{to}.ln2", f"{at}.post_attention_layernorm", d, False)
        for weight, name, wide, narrow in (
            ("gate", "gate_proj", d, c.d_mlp),
            ("in", "up_proj", d, c.d_mlp),
            ("out", "down_proj", c.d_mlp, d),
        ):
            bias = f"{to}.mlp.b_{weight}" if c.mlp_bias else None
            out += _linear(f"{to}.mlp.W_{weight}", bias, f"{at}.mlp.{name}", wide, narrow)
    if one_plus:
        out = [Source(s.weight, s.name, s.shape, plus_one) if s.weight.endswith(".w") else s for s in out]
    return out


def _gemma_weights(c: ModelConfig) -> list[Source]:
    return _llama_weights(c, one_plus=True)


# ---- The architectures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Architecture:
    """One `model_type`: its weights, and how its files name them."""

    weights: Callable[[ModelConfig], list[Source]]
    prefixes: tuple[str, ...] = ("model.",)
    harmless: tuple[str, ...] = (r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
    renames: dict[str, str] = field(default_factory=dict)


_CAUSAL_MASKS = (r"h\.\d+\.attn\.(attention\.)?(bias|masked_bias|embed_positions)",)

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(_gpt2_weights, ("transformer.",), _CAUSAL_MASKS),
    "gpt_neo": Architecture(_gpt_neo_weights, ("transformer.",), _CAUSAL_MASKS),
    "gptj": Architecture(_gptj_weights, ("transformer.",), _CAUSAL_MASKS),
    "gpt_neox": Architecture(
        _gpt_neox_weights,
        ("gpt_neox.",),
        (r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"rotary_emb\.inv_freq"),
        {"embed_out.weight": "lm_head.weight"},
    ),
    "opt": Architecture(_opt_weights, ("model.decoder.", "decoder."), ()),
    "phi": Architecture(_phi_weights),
    "llama": Architecture(_llama_weights),
    "mistral": Architecture(_llama_weights),
    "qwen2": Architecture(_llama_weights),
    "qwen3": Architecture(_llama_weights),
    "gemma": Architecture(_gemma_weights),
    "gemma2": Architecture(_gemma_weights),
    "gemma3_text": Architecture(_gemma_weights),
    # the text half of the image-and-text wrapper
    "gemma3": Architecture(
        _gemma_weights,
        ("language_model.model.", "model.language_model.", "language_model.", "model."),
        (*Architecture(_gemma_weights).harmless, r"(vision_tower|multi_modal_projector)\..*"),
    ),
}


def load_huggingface(store: TensorStore, raw: dict[str, Any], where: str, dtype: DTypeLike | None = None) -> Checkpoint:
    """A Hugging Face checkpoint whose `config.json` is parsed already.

    Parameters
    ----------
    store
        Its tensors.
    raw
        Its configuration.
    where
        The configuration's name, for messages.
    dtype
        None: float32, or float64 where the file's weights are.

    Raises
    ------
    LoadError, UnsupportedModelError
        As :func:`clew.loaders.huggingface_config.read_config`; tensors missing, superfluous or of the wrong shape. Says
        which sizes the configuration leaves to defaults.
    """
    try:
        return _load(store, raw, where, dtype)
    except LoadError as error:
        assumed = assumed_sizes(raw)
        if not assumed:
            raise
        said = ", ".join(f"{key} is missing ({value} assumed)" for key, value in assumed.items())
        raise LoadError(f"{error}; {where}: {said}") from error


def _load(store: TensorStore, raw: dict[str, Any], where: str, dtype: DTypeLike | None) -> Checkpoint:
    config = read_config(raw, where)
    architecture = ARCHITECTURES[raw["model_type"]]
    if config.n_layers > len(store):
        raise LoadError(f"{where}: {config.n_layers} layers, but {store.where} holds only {len(store)} tensors")
    names = Names(store, architecture.prefixes, architecture.renames)
    notes: list[str] = []
    if raw["model_type"] == "gemma3" and not any(
        re.match(r"embed_tokens\.|layers\.", name) for name in names.remaining(())
    ):
        raise UnsupportedModelError(f"{where}: model_type = 'gemma3': {store.where} holds no text weights")
    sources = architecture.weights(config)
    config, sources, tied_to, ignored = _tie(config, sources, names, "tie_word_embeddings" in raw, notes)
    weights = assemble(names, sources, dtype, (*architecture.harmless, *ignored), notes)
    _finish_tie(weights, tied_to)
    return Checkpoint(config, weights, store.dtype, None, notes)


def _tie(
    config: ModelConfig, sources: Sequence[Source], names: Names, explicit: bool, notes: list[str]
) -> tuple[ModelConfig, list[Source], str | None, list[str]]:
    """Settle whether the unembedding is the embedding: (config, sources without it, what to derive, names to leave).

    Where the file holds both and says that they are tied, they are compared: different ones are not tied.
    """
    embed = next(source for source in sources if source.weight == "embed.W_E")
    unembed = next(source for source in sources if source.weight == "unembed.W_U")
    without_unembed = [source for source in sources if source is not unembed]
    has_embed, has_unembed = embed.name in names, unembed.name in names
    if not config.tie_word_embeddings:
        if has_unembed or explicit or not has_embed:
            return config, list(sources), None, []
        notes.append(f"no {names.full(unembed.name)}: tied to the embedding")
        return config.replace(tie_word_embeddings=True), without_unembed, "unembed.W_U", []
    if has_embed and has_unembed:
        store = names.store
        first, second = names.full(embed.name), names.full(unembed.name)
        if _same_bytes(store, first, second):
            return config, without_unembed, "unembed.W_U", [re.escape(unembed.name)]
        notes.append(f"{second} differs from {first}: not tied, although tie_word_embeddings is true")
        return config.replace(tie_word_embeddings=False), list(sources), None, []
    if has_unembed:
        return config, [source for source in sources if source is not embed], "embed.W_E", []
    return config, without_unembed, "unembed.W_U", []


def _same_bytes(store: TensorStore, first: str, second: str) -> bool:
    if store.info(first).shape != store.info(second).shape or store.info(first).dtype != store.info(second).dtype:
        return False
    one, other = store.raw(first), store.raw(second)
    return all(one[at : at + 4096].tobytes() == other[at : at + 4096].tobytes() for at in range(0, len(one), 4096))


def _finish_tie(weights: dict[str, Array], tied_to: str | None) -> None:
    """Add the derived one of the two as a transposed view."""
    if tied_to == "unembed.W_U":
        weights["unembed.W_U"] = weights["embed.W_E"].T
    elif tied_to == "embed.W_E":
        weights["embed.W_E"] = weights["unembed.W_U"].T


def find_tensors(directory: Path) -> TensorStore:
    """The tensors of a directory: one safetensors file, or the shards of an index.

    Raises
    ------
    LoadError
        None there (says what to do about `pytorch_model.bin`), or several without an index.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return TensorStore.open_sharded(index)
    if (directory / "model.safetensors").is_file():
        return TensorStore.open(directory / "model.safetensors")
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(files) == 1:
        return TensorStore.open(directory / files[0])
    if files:
        raise LoadError(
            f"{directory}: {len(files)} safetensors files ({', '.join(files)}), but no model.safetensors.index.json"
        )
    pickled = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
    if pickled:
        raise LoadError(
            f"{directory}: only pickled weights ({', '.join(pickled)}): convert them to safetensors, for example with"
            " transformers' save_pretrained or safetensors.torch.save_model"
        )
    raise LoadError(f"{directory}: no model.safetensors and no model.safetensors.index.json")
