"""Models in GGUF files: metadata keys to a configuration, tensors to weights in classic layout."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .assemble import Names, Source, assemble, heads_in_interleaved, heads_out, transposed
from .checkpoint import Checkpoint
from .gguf_reader import GGUFStore

Array = NDArray[Any]

MAX_HEAD = 1 << 16
"""Elements of a head; the largest models have 2^9."""

_MISSING = object()


class _Keys:
    """Metadata with types checked; `arch.` stands before a name that begins with a dot."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self.metadata, self.where = metadata, where
        self.arch = self.text("general.architecture")

    def full(self, name: str) -> str:
        return self.arch + name if name.startswith(".") else name

    def _get(self, name: str, default: Any) -> Any:
        value = self.metadata.get(self.full(name), default)
        if value is _MISSING:
            raise LoadError(f"{self.where}: the key {self.full(name)!r} is missing")
        return value

    def text(self, name: str, default: Any = _MISSING) -> Any:
        value = self._get(name, default)
        if value is not default and not isinstance(value, str):
            raise LoadError(f"{self.where}: {self.full(name)} = {value!r} is no text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise LoadError(f"{self.where}: {self.full(name)} = {value!r} is no bool")
        return value

    def size(self, name: str, default: Any = _MISSING) -> Any:
        """A count from 1 on; an array by layer must hold one number."""
        value = self._get(name, default)
        if value is default:
            return value
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
            if np.any(value != value[0]):
                raise UnsupportedModelError(f"{self.where}: {self.full(name)} differs from layer to layer")
            value = int(value[0])
        if type(value) is not int or not 0 < value < 1 << 31:
            raise LoadError(f"{self.where}: {self.full(name)} = {value!r} is no size")
        return value

    def real(self, name: str, default: Any = _MISSING) -> Any:
        """A number above 0."""
        value = self._get(name, default)
        if value is default:
            return value
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise LoadError(f"{self.where}: {self.full(name)} = {value!r} is no positive number")
        return float(value)

    def decimal(self, name: str, default: Any = _MISSING) -> Any:
        """A float32 as the decimal that it was written as: 1e-5, not 9.99999974e-6."""
        value = self.real(name, default)
        if value is default:
            return value
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else value


def load_gguf(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Checkpoint:
    """Open a GGUF file; float32 tensors are mapped in place, others converted once.

    Architectures: gpt2, llama (Mistral too), qwen2, qwen3, gemma, gemma2, gemma3, gptneox, phi2. Tensor types: F32,
    F64, F16, BF16, Q8_0, Q4_0, Q5_0, Q4_K, Q5_K, Q6_K. Llama's query and key rows, which the format permutes, come back
    in the order that every other source has, so that captured queries and keys mean the same.

    Parameters
    ----------
    path
        The file.
    dtype
        "float32" or "float64" converts; None: float64 where a weight is, else float32.

    Raises
    ------
    LoadError
        A damaged file (with the byte), keys or tensors that are missing, of the wrong type or shape, or unknown; a
        quantised file, and the `gguf` package is not installed.
    UnsupportedModelError
        An architecture, a tensor type or a key whose model would be computed wrongly; by name.
    """
    store = GGUFStore(path)
    where = str(path)
    keys = _Keys(store.header.metadata, where)
    if keys.arch not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{where}: general.architecture = {keys.arch!r}; supported: {', '.join(_ARCHITECTURES)}"
        )
    _refuse(keys)
    fields = _common(keys, store)
    fields.update(_ARCHITECTURES[keys.arch](keys, fields))
    fields.update(_biases(store, fields["n_layers"], where))
    notes: list[str] = []
    fields["rope_scaling"] = _rope_scaling(keys, store, fields)
    try:
        config = ModelConfig(**fields)
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        raise LoadError(f"{where}: {error}") from None

    harmless = [r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd(\.weight)?", r"blk\.\d+\.attn\.(masked_)?bias"]
    names = Names(store, [])
    weights = assemble(names, _sources(config, store), dtype, harmless, notes)
    if config.tie_word_embeddings:
        weights["unembed.W_U"] = weights["embed.W_E"].T
    store.forget()
    metadata = store.header.metadata
    return Checkpoint(config, weights, store.dtype, lambda: _tokenizer(metadata, where), notes)


def _tokenizer(metadata: Mapping[str, Any], where: str) -> Any:
    from ..tokenizer import from_gguf

    return from_gguf(metadata, where)


# ---- Configuration ----

_CHANGE_RESULTS: dict[str, Callable[[Any], bool]] = {
    ".expert_count": lambda value: value == 0,
    ".attention.causal": lambda value: value is True,
    ".attention.max_alibi_bias": lambda value: value == 0,
    ".attention.clamp_kqv": lambda value: value == 0,
    ".attention.temperature_scale": lambda value: value == 0,
    ".residual_scale": lambda value: value in (0, 1),
    ".logit_scale": lambda value: value in (0, 1),
    ".rope.scaling.attn_factor": lambda value: value in (0, 1),
    ".rope.scaling.alpha": lambda value: value == 0,
    ".swin_norm": lambda value: value is False,
    ".pooling_type": lambda value: value == 0,
    "split.count": lambda value: value in (0, 1),
}
"""Keys of models that would be computed wrongly, and the values that mean nothing special."""


def _refuse(keys: _Keys) -> None:
    for name, harmless in _CHANGE_RESULTS.items():
        value = keys.metadata.get(keys.full(name))
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or not harmless(value):
            raise UnsupportedModelError(f"{keys.where}: {keys.full(name)} = {value!r} is not supported")
    if keys.text("general.type", "model") != "model":
        raise UnsupportedModelError(f"{keys.where}: general.type = {keys.text('general.type')!r}; supported: model")


def _common(keys: _Keys, store: GGUFStore) -> dict[str, Any]:
    """What every architecture says in the same words."""
    where = keys.where
    d_model, n_heads = keys.size(".embedding_length"), keys.size(".attention.head_count")
    d_head = keys.size(".attention.key_length", None)
    if d_head is None:
        if d_model % n_heads:
            raise LoadError(f"{where}: {keys.arch}.embedding_length = {d_model} is no multiple of {n_heads} heads")
        d_head = d_model // n_heads
    if d_head > MAX_HEAD:
        raise LoadError(f"{where}: heads of {d_head} elements, more than {MAX_HEAD}")
    value_length = keys.size(".attention.value_length", d_head)
    if value_length != d_head:
        raise UnsupportedModelError(
            f"{where}: {keys.full('.attention.value_length')} = {value_length}, the keys have {d_head}"
        )
    if "token_embd.weight" not in store:
        raise LoadError(f"{where}: 1 tensors missing: token_embd.weight")
    n_layers = keys.size(".block_count")
    if n_layers > len(store):
        raise LoadError(f"{where}: {keys.arch}.block_count = {n_layers}, the file has {len(store)} tensors")
    rms = keys.arch not in ("gpt2", "gptneox", "phi2")
    out: dict[str, Any] = {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": n_heads,
        "n_key_value_heads": keys.size(".attention.head_count_kv", n_heads),
        "d_head": d_head,
        "d_mlp": keys.size(".feed_forward_length", 4 * d_model),
        "n_ctx": keys.size(".context_length"),
        "d_vocab": store.info("token_embd.weight").shape[0],
        "normalization_type": "RMS" if rms else "LN",
        "eps": keys.decimal(f".attention.layer_norm_{'rms_' if rms else ''}epsilon"),
        "norm_bias": not rms,
        "gated_mlp": rms,
        "tie_word_embeddings": "output.weight" not in store,
        "original_architecture": keys.arch,
        "model_name": keys.text("general.name", None) or Path(where).stem,
    }
    for name in ("bos", "eos"):
        token = keys.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if type(token) is int:
            out[f"{name}_token_id"] = token
    if keys.arch != "gpt2":
        out |= {
            "positional_embedding_type": "rotary",
            "rotary_dim": keys.size(".rope.dimension_count", d_head),
            "rotary_base": keys.decimal(".rope.freq_base", 10000.0),
        }
    return out


def _gpt2(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return {"act_fn": "gelu_tanh"}


def _llama(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"act_fn": "silu"}
    if (scale := keys.decimal(".attention.scale", None)) is not None:
        out["attn_scale"] = 1 / scale
    if (scale := keys.decimal(".embedding_scale", None)) is not None:
        out["embed_scale"] = scale
    if (window := keys.size(".attention.sliding_window", None)) is not None:
        out["window_size"] = window
        if (pattern := _pattern(keys, fields["n_layers"], None)) is not None:
            out["attn_types"] = pattern
    return out


def _qwen3(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return _llama(keys, fields) | {"use_qk_norm": True}


def _gemma(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return {"act_fn": "gelu_tanh", "embed_scale": math.sqrt(fields["d_model"])}


def _gemma2(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return _gemma(keys, fields) | {
        "use_normalization_before_and_after": True,
        "attn_scores_soft_cap": keys.decimal(".attn_logit_softcapping", 50.0),
        "output_logits_soft_cap": keys.decimal(".final_logit_softcapping", 30.0),
        "window_size": keys.size(".attention.sliding_window", 4096),
        "attn_types": _pattern(keys, fields["n_layers"], 2),
        "attn_scale": _gemma_scale(keys, fields, layers_27b=46),
    }


def _gemma3(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return _gemma(keys, fields) | {
        "use_normalization_before_and_after": True,
        "use_qk_norm": True,
        "output_logits_soft_cap": keys.decimal(".final_logit_softcapping", None),
        "window_size": keys.size(".attention.sliding_window"),
        "attn_types": _pattern(keys, fields["n_layers"], 6),
        "rotary_base_local": keys.decimal(".rope.freq_base_swa", 10000.0),
        "attn_scale": _gemma_scale(keys, fields, layers_27b=62),
    }


def _gemma_scale(keys: _Keys, fields: dict[str, Any], layers_27b: int) -> float:
    """What scores are divided by. The format has no key for it: only the 27B models differ from √d_head."""
    if (scale := keys.decimal(".attention.scale", None)) is not None:
        return 1 / float(scale)
    if fields["n_layers"] == layers_27b:
        return math.sqrt(fields["d_model"] / fields["n_heads"])
    return math.sqrt(fields["d_head"])


def _pattern(keys: _Keys, n_layers: int, default: int | None) -> tuple[str, ...] | None:
    """Which layers are local: every `period`-th one is global, or what an array by layer says."""
    name = ".attention.sliding_window_pattern"
    value = keys.metadata.get(keys.full(name), default)
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.size == n_layers:
        return tuple("local" if local else "global" for local in value)
    if type(value) is not int or value < 0:
        raise LoadError(f"{keys.where}: {keys.full(name)} = {value!r} is no period and no bool for each layer")
    return tuple("local" if not value or layer % value < value - 1 else "global" for layer in range(n_layers))


def _gptneox(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    # the format does not name the activation: Pythia has the exact one, GPT-NeoX 20B the approximation
    large = (fields["n_layers"], fields["d_model"]) == (44, 6144)
    return {
        "act_fn": "gelu_tanh" if large else "gelu",
        "parallel_attn_mlp": keys.flag(".use_parallel_residual", True),
    }


def _phi2(keys: _Keys, fields: dict[str, Any]) -> dict[str, Any]:
    return {"act_fn": "gelu_tanh", "parallel_attn_mlp": True, "shared_norm": True}


_ARCHITECTURES: dict[str, Callable[[_Keys, dict[str, Any]], dict[str, Any]]] = {
    "gpt2": _gpt2, "llama": _llama, "qwen2": _llama, "qwen3": _qwen3, "gemma": _gemma, "gemma2": _gemma2,
    "gemma3": _gemma3, "gptneox": _gptneox, "phi2": _phi2,
}  # fmt: skip


def _biases(store: GGUFStore, n_layers: int, where: str) -> dict[str, bool]:
    """Which biases there are: a kind that one layer has, every layer must have."""

    def any_layer(*parts: str) -> bool:
        return any(f"blk.{layer}.{part}.bias" in store for layer in range(n_layers) for part in parts)

    return {
        "qkv_bias": any_layer("attn_qkv", "attn_q", "attn_k", "attn_v"),
        "attn_out_bias": any_layer("attn_output"),
        "mlp_bias": any_layer("ffn_up", "ffn_down", "ffn_gate"),
        "unembed_bias": "output.bias" in store,
    }


def _rope_scaling(keys: _Keys, store: GGUFStore, fields: dict[str, Any]) -> dict[str, Any] | None:
    """Scaling of the rotary frequencies, from the keys and from the tensor of divisors that Llama 3 files hold."""
    kind = keys.text(".rope.scaling.type", "none")
    factor = keys.decimal(".rope.scaling.factor", None)
    if kind == "none" and (old := keys.decimal(".rope.scale_linear", None)) is not None:
        kind, factor = "linear", old
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{keys.where}: {keys.full('.rope.scaling.type')} = {kind!r}; supported: none, linear"
        )
    linear = factor if kind == "linear" and factor is not None else 1.0
    if "rope_freqs.weight" not in store:
        return {"rope_type": "linear", "factor": linear} if linear != 1.0 else None
    info = store.info("rope_freqs.weight")
    pairs = fields.get("rotary_dim", 0) // 2
    if info.shape != (pairs,) or info.dtype != "F32":
        raise LoadError(f"{keys.where}: rope_freqs.weight: {info.dtype} {list(info.shape)}, expected F32 {[pairs]}")
    factors = store.raw("rope_freqs.weight").astype(np.float64)
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise LoadError(f"{keys.where}: rope_freqs.weight holds a divisor that is not positive")
    if linear == 1.0 and np.all(factors == 1.0):
        return None
    original = keys.size(".rope.scaling.original_context_length", 8192)
    if linear == 1.0 and (found := _llama3(factors, fields, original)) is not None:
        return found
    return {"rope_type": "factors", "factors": [float(item) for item in factors * linear]}


def _llama3(factors: NDArray[np.float64], fields: dict[str, Any], original: int) -> dict[str, Any] | None:
    """Llama 3's parameters, where they give these divisors to float32 precision."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    plain = fields["rotary_base"] ** -(np.arange(0, 2 * factors.size, 2) / (2 * factors.size))
    wavelengths = 2 * np.pi / plain
    smooth = np.clip((original / wavelengths - 1.0) / 3.0, 0.0, 1.0)
    expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return scaling if np.allclose(factors, expected, rtol=1e-5, atol=0) else None


# ---- Tensors ----


def _rows(start: int, heads: int, size: int) -> Callable[[Array], Array]:
    """[..h·e.., d] -> [h, d, e], or a bias [..h·e..] -> [h, e]: the rows from `start` on"""

    def view(array: Array) -> Array:
        part = array[start : start + heads * size].reshape(heads, size, *array.shape[1:])
        return part.transpose(0, 2, 1) if part.ndim == 3 else part

    return view


def _sources(config: ModelConfig, store: GGUFStore) -> list[Source]:
    """The table of tensors."""
    arch = config.original_architecture
    d, f, v = config.d_model, config.d_mlp, config.d_vocab
    h, g, e = config.n_heads, config.n_key_value_heads, config.d_head
    out = [Source("embed.W_E", "token_embd.weight", (v, d))]

    def norm(weight: str, name: str, size: int = d) -> None:
        out.append(Source(f"{weight}.w", f"{name}.weight", (size,)))
        if config.norm_bias:
            out.append(Source(f"{weight}.b", f"{name}.bias", (size,)))

    if arch == "gpt2":
        out.append(Source("pos_embed.W_pos", "position_embd.weight", (config.n_ctx, d)))
    for layer in range(config.n_layers):
        at, blk = f"blocks.{layer}.", f"blk.{layer}."
        norm(at + "ln1", blk + "attn_norm")
        fused = arch in ("gpt2", "gptneox") or (arch == "phi2" and f"{blk}attn_qkv.weight" in store)
        start = 0
        for letter, heads in (("q", h), ("k", g), ("v", g)):
            view = _rows(start, heads, e)
            if arch == "llama" and letter != "v":
                view = heads_in_interleaved(heads)
            rows = (h + 2 * g) * e if fused else heads * e
            name = f"{blk}attn_{'qkv' if fused else letter}"
            out.append(Source(f"{at}attn.W_{letter.upper()}", f"{name}.weight", (rows, d), view))
            if config.qkv_bias:
                out.append(Source(f"{at}attn.b_{letter.upper()}", f"{name}.bias", (rows,), view))
            start += heads * e if fused else 0
        if config.use_qk_norm:
            for letter in "qk":
                out.append(Source(f"{at}attn.{letter}_norm.w", f"{blk}attn_{letter}_norm.weight", (e,)))
        out.append(Source(at + "attn.W_O", blk + "attn_output.weight", (d, h * e), heads_out(h)))
        if config.attn_out_bias:
            out.append(Source(at + "attn.b_O", blk + "attn_output.bias", (d,)))
        if config.use_normalization_before_and_after:
            out.append(Source(at + "ln1_post.w", blk + "post_attention_norm.weight", (d,)))
            out.append(Source(at + "ln2_post.w", blk + "post_ffw_norm.weight", (d,)))
        if not config.shared_norm:
            norm(at + "ln2", blk + "ffn_norm")
        for weight, name, shape in ((("gate", "ffn_gate", (f, d)),) if config.gated_mlp else ()) + (
            ("in", "ffn_up", (f, d)),
            ("out", "ffn_down", (d, f)),
        ):
            out.append(Source(f"{at}mlp.W_{weight}", f"{blk}{name}.weight", shape, transposed))
            if config.mlp_bias:
                out.append(Source(f"{at}mlp.b_{weight}", f"{blk}{name}.bias", (shape[0],)))
    norm("ln_final", "output_norm")
    if not config.tie_word_embeddings:
        out.append(Source("unembed.W_U", "output.weight", (v, d), transposed))
    if config.unembed_bias:
        out.append(Source("unembed.b_U", "output.bias", (v,)))
    return out
