"""The configuration of a model: what the engine needs to know, under the classic library's field names."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, UnsupportedModelError
from .inputs import nearest, real_array

ACTIVATIONS = ("none", "gelu", "gelu_tanh", "relu", "silu", "quick_gelu", "relu2", "tanh", "sigmoid")
"""Activation functions, in the order of the core's enumeration."""

ACTIVATION_ALIASES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "linear": "none",
}

_LEAST = {
    "n_layers": 0,
    "d_model": 1,
    "n_heads": 1,
    "n_ctx": 1,
    "d_vocab": 1,
    "d_vocab_out": 1,
    "d_head": 1,
    "n_key_value_heads": 1,
    "d_mlp": 0,
    "pos_offset": 0,
    "window_size": 0,
    "linear_attn_n": 1,
    "d_in": 1,
    "d_out": 1,
    "rotary_dim": 0,
}
"""The smallest value of each size."""

_MOST = {"n_layers": 1 << 16}
"""The largest value of each size where it is not 2³¹ − 1, the core's own."""

_NEEDED = ("n_layers", "d_model", "n_heads", "n_ctx", "pos_offset")
"""Sizes that None does not stand for anything in."""

_DERIVED = ("d_vocab", "d_vocab_out", "d_head", "n_key_value_heads", "d_mlp", "rotary_dim", "attn_scale")
"""Fields whose usual value depends on others."""

_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}
"""Kinds of rope_scaling, and what each needs, numbers above 0."""


T = TypeVar("T")


def _told(cls: type[T]) -> type[T]:
    """A dataclass that names what is nearest to a field that it does not have."""
    made = cls.__init__

    @functools.wraps(made)
    def init(self: T, *args: Any, **given: Any) -> None:
        names = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name in given:
            if name not in names:
                raise ConfigError(f"{cls.__name__}: no field {name!r}{nearest(name, names)}")
        made(self, *args, **given)

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


@_told
@dataclass(frozen=True)
class ModelConfig:
    """What a model is; enough, with its weights, to run it.

    Fields carry the classic library's names where it has one. Lengths count elements, `eps` is added to the variance.
    A model reads tokens (`d_vocab`) or vectors (`d_in`), and writes logits (`d_vocab_out`) or vectors (`d_out`).
    `None` for `d_vocab_out`, `d_head`, `n_key_value_heads`, `d_mlp`, `rotary_dim` and `attn_scale` means the usual
    value (`d_vocab`, `d_model / n_heads`, `n_heads`, `4 · d_model`, `d_head`, `√d_head`), which the finished config
    holds.

    Raises
    ------
    UnsupportedModelError
        An activation, norm or position kind that the engine does not have.
    ConfigError
        Sizes that contradict each other; a field that there is not, with the nearest.

    Example
    -------
    >>> config = ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=32, d_vocab=50)
    >>> config.d_head, config.d_mlp
    (8, 64)
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_ctx: int
    """Rows of learned positions. With rotary positions or none it limits nothing: the length of training's windows."""
    d_vocab: int = None  # type: ignore[assignment]
    """Token ids; `d_in` where the model reads vectors: the rows of W_E."""
    d_vocab_out: int = None  # type: ignore[assignment]
    """Logits that the unembedding writes; `d_out` where these are vectors."""
    d_head: int = None  # type: ignore[assignment]
    n_key_value_heads: int = None  # type: ignore[assignment]
    d_mlp: int = None  # type: ignore[assignment]
    act_fn: str = "gelu"
    eps: float = 1e-5
    normalization_type: str | None = "LN"
    """"LN", "RMS", "LNPre" and "RMSPre" (no affine part), or None."""
    final_norm: bool = True
    positional_embedding_type: str = "standard"
    """"standard" (learned, absolute), "rotary" or "none"."""
    pos_offset: int = 0
    """Row of W_pos that position 0 reads (OPT: 2)."""
    attn_only: bool = False
    """Blocks without an MLP."""
    gated_mlp: bool = False
    """act(x W_gate) · (x W_in + b_in), as Llama's."""
    parallel_attn_mlp: bool = False
    """Attention and MLP read the same stream and are added together (GPT-NeoX, GPT-J, Phi)."""
    shared_norm: bool = False
    """Parallel blocks: ln1 feeds both branches (GPT-J, Phi)."""
    use_normalization_before_and_after: bool = False
    """Sandwich blocks: ln1_post and ln2_post (Gemma 2 and 3)."""
    use_qk_norm: bool = False
    """RMS norms of each head's queries and keys (Qwen 3, Gemma 3)."""
    use_attn_scale: bool = True
    """False: scores are not divided (GPT-Neo)."""
    attn_scale: float = None  # type: ignore[assignment]
    """Scores are divided by this."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Scores of layer i are divided by i + 1 as well."""
    attn_types: tuple[str, ...] | None = None
    """"global" or "local" for each layer; None: all global (or all local where window_size is set)."""
    window_size: int | None = None
    """Local layers: key j is seen by query i when 0 <= i - j < window_size."""
    attention_dir: str = "causal"
    """"causal", or "bidirectional" (linear attention over the whole prompt)."""
    attention_kind: str = "softmax"
    """"softmax" or "linear" (no softmax: scores / n)."""
    linear_attn_n: int | None = None
    """Linear attention: the n that scores are divided by; None: the number of visible keys."""
    exclude_self: bool = False
    """Linear attention: a position does not see itself."""
    exclude_last: bool = False
    """Linear attention over the whole prompt: nobody sees the last position, which asks and is no example."""
    attn_scores_soft_cap: float | None = None
    """Scores s become cap · tanh(s / cap) (Gemma 2)."""
    output_logits_soft_cap: float | None = None
    """The same of logits."""
    rotary_dim: int = None  # type: ignore[assignment]
    """Of each head so many first dimensions turn."""
    rotary_base: float = 10000.0
    rotary_base_local: float | None = None
    """Base of the local layers (Gemma 3); None: the same."""
    rotary_adjacent_pairs: bool = False
    """Dimensions 2i and 2i + 1 turn together (GPT-J), not i and i + rotary_dim / 2."""
    rope_scaling: Mapping[str, Any] | None = field(default=None, hash=False)
    """Of the global layers: {"rope_type": "linear", "factor": f}; {"rope_type": "llama3", "factor", "low_freq_factor",
    "high_freq_factor", "original_max_position_embeddings"};
    or {"rope_type": "factors", "factors": divisors by pair}."""
    embed_scale: float = 1.0
    """Embeddings of tokens are multiplied by this (Gemma: √d_model)."""
    tie_word_embeddings: bool = False
    """W_U is W_E transposed."""
    qkv_bias: bool = True
    attn_out_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    """LayerNorm has a bias (RMS norms never have)."""
    unembed_bias: bool = False
    d_in: int | None = None
    """The model reads vectors of so many values instead of tokens; W_E [d_in, d_model] multiplies them."""
    d_out: int | None = None
    """The model writes vectors of so many values instead of logits; training fits them by squared error."""
    initializer_range: float = 0.02
    original_architecture: str | None = None
    model_name: str = "custom"
    tokenizer_name: str | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other keys of the file's own configuration, kept for reference; none of them changes what is computed."""

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("_derived", tuple(name for name in _DERIVED if getattr(self, name) is None))
        for name, least in _LEAST.items():
            value, most = getattr(self, name), _MOST.get(name, 2**31 - 1)
            if value is None and name not in _NEEDED:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ConfigError(f"ModelConfig: {name} = {value!r}, must be a whole number, at least {least}")
            if value > most:
                raise ConfigError(f"ModelConfig: {name} = {value}, at most {most}")
            put(name, int(value))
        for name in (
            "attn_scale",
            "rotary_base",
            "rotary_base_local",
            "attn_scores_soft_cap",
            "output_logits_soft_cap",
        ):
            if getattr(self, name) is not None:
                put(name, self._number(name))
                if getattr(self, name) <= 0:
                    raise ConfigError(f"ModelConfig: {name} = {getattr(self, name)}, must be positive")
        for name in ("eps", "embed_scale", "initializer_range"):
            put(name, self._number(name))
        for name in ("eps", "initializer_range"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ModelConfig: {name} = {getattr(self, name)}, must not be negative")
        for flag in dataclasses.fields(self):
            if flag.type == "bool":
                if not isinstance(getattr(self, flag.name), bool | np.bool_):
                    raise ConfigError(f"ModelConfig: {flag.name} = {getattr(self, flag.name)!r}, must be true or false")
                put(flag.name, bool(getattr(self, flag.name)))
        for name in ("act_fn", "normalization_type", "positional_embedding_type", "attention_kind", "attention_dir"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"ModelConfig: {name} = {getattr(self, name)!r}, must be a name")
        if self.attn_types is not None and not isinstance(self.attn_types, list | tuple):
            raise ConfigError(f"ModelConfig: attn_types = {self.attn_types!r}, must be a list, one for each layer")
        for ours, name in (("d_in", "d_vocab"), ("d_out", "d_vocab_out")):
            length = getattr(self, ours)
            if length is not None and getattr(self, name) not in (None, length):
                raise ConfigError(
                    f"ModelConfig: {name} = {getattr(self, name)} with {ours} = {length}: vectors have no vocabulary, "
                    f"leave {name} out"
                )
            if length is not None:
                put(name, length)
        if self.d_vocab is None:
            raise ConfigError("ModelConfig: d_vocab = None: give d_vocab for tokens, or d_in for input vectors")
        if self.d_vocab_out is None:
            if self.d_in is not None:
                raise ConfigError(
                    f"ModelConfig: d_in = {self.d_in} without an output: give d_out for vectors, d_vocab_out for logits"
                )
            put("d_vocab_out", self.d_vocab)
        if self.tie_word_embeddings and (self.d_in is not None or self.d_out is not None):
            raise ConfigError(
                f"ModelConfig: tied embeddings with d_in = {self.d_in}, d_out = {self.d_out}: vectors have matrices of "
                "their own"
            )
        if self.tie_word_embeddings and self.d_vocab_out != self.d_vocab:
            raise ConfigError(
                f"ModelConfig: d_vocab_out = {self.d_vocab_out} with tied embeddings must be d_vocab = {self.d_vocab}"
            )
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise ConfigError(
                    f"ModelConfig: d_model = {self.d_model} is no multiple of n_heads = {self.n_heads}: give d_head"
                )
            put("d_head", self.d_model // self.n_heads)
        if self.n_key_value_heads is None:
            put("n_key_value_heads", self.n_heads)
        if self.n_heads % self.n_key_value_heads:
            raise ConfigError(
                f"ModelConfig: n_heads = {self.n_heads} is no multiple of n_key_value_heads = {self.n_key_value_heads}"
            )
        if self.d_mlp is None:
            put("d_mlp", 0 if self.attn_only else 4 * self.d_model)
        if self.rotary_dim is None:
            put("rotary_dim", self.d_head if self.positional_embedding_type == "rotary" else 0)
        if self.attn_scale is None:
            put("attn_scale", math.sqrt(self.d_head) if self.use_attn_scale else 1.0)
        put("act_fn", ACTIVATION_ALIASES.get(self.act_fn, self.act_fn))
        if self.act_fn not in ACTIVATIONS:
            raise UnsupportedModelError(f"act_fn = {self.act_fn!r}; supported: {', '.join(ACTIVATIONS)}")
        if self.normalization_type not in ("LN", "RMS", "LNPre", "RMSPre", None):
            raise UnsupportedModelError(
                f"normalization_type = {self.normalization_type!r}; supported: LN, RMS, LNPre, RMSPre, None"
            )
        if self.positional_embedding_type not in ("standard", "rotary", "none"):
            raise UnsupportedModelError(
                f"positional_embedding_type = {self.positional_embedding_type!r}; supported: standard, rotary, none"
            )
        if self.attention_kind not in ("softmax", "linear"):
            raise UnsupportedModelError(f"attention_kind = {self.attention_kind!r}; supported: softmax, linear")
        if self.attention_dir not in ("causal", "bidirectional"):
            raise UnsupportedModelError(f"attention_dir = {self.attention_dir!r}; supported: causal, bidirectional")
        if self.positional_embedding_type == "rotary" and not self.rotary_dim:
            raise ConfigError("ModelConfig: rotary positions with rotary_dim = 0: no position would be seen")
        if self.rotary_dim % 2 or self.rotary_dim > self.d_head:
            raise ConfigError(
                f"ModelConfig: rotary_dim = {self.rotary_dim} must be even and at most d_head = {self.d_head}"
            )
        if self.attn_types is not None:
            put("attn_types", tuple(self.attn_types))
            if len(self.attn_types) != self.n_layers or set(self.attn_types) - {"global", "local"}:
                raise ConfigError(
                    f"ModelConfig: attn_types = {self.attn_types} must hold 'global' or 'local' for each of "
                    f"{self.n_layers} layers"
                )
            if "local" in self.attn_types and not self.window_size:
                raise ConfigError("ModelConfig: local attention layers need window_size")
        _check_scaling(self.rope_scaling)
        self.rotary_frequencies()  # refuses scalings that the engine does not have

    def _number(self, name: str) -> float:
        """A finite number as a float."""
        value = getattr(self, name)
        if not isinstance(value, bool | np.bool_) and isinstance(value, int | float | np.integer | np.floating):
            with contextlib.suppress(OverflowError):
                if math.isfinite(number := float(value)):
                    return number
        raise ConfigError(f"ModelConfig: {name} = {value!r}, must be a finite number")

    @property
    def norm_affine(self) -> bool:
        """Do the norms have weights?"""
        return self.normalization_type in ("LN", "RMS")

    @property
    def rms(self) -> bool:
        """Are the norms RMS norms?"""
        return self.normalization_type in ("RMS", "RMSPre")

    def is_local(self, layer: int) -> bool:
        """Does this layer see a sliding window only?"""
        if self.attn_types is None:
            return bool(self.window_size)
        return self.attn_types[layer] == "local"

    def rotary_frequencies(self) -> NDArray[np.float64]:
        """Angle per position of each rotary pair, radians; float64 [kinds, rotary_dim / 2].

        Row 0 is for global layers; row 1, where `rotary_base_local` is set, for local ones (never scaled).
        """
        if self.positional_embedding_type != "rotary" or not self.rotary_dim:
            return np.zeros((0, 0))
        exponent = np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        freq = _scaled(self.rotary_base**-exponent, self.rope_scaling)
        if self.rotary_base_local is None:
            return freq[None, :]
        return np.stack([freq, self.rotary_base_local**-exponent])

    def replace(self, **changes: Any) -> ModelConfig:
        """The same configuration with some fields changed; what was not given but follows from others follows anew.

        >>> config = ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_vocab=50)
        >>> config.replace(n_heads=4).d_head
        4
        """
        derived: dict[str, Any] = dict.fromkeys(self._derived)  # type: ignore[attr-defined]
        return dataclasses.replace(self, **(derived | changes))

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain values that JSON can hold."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out["rope_scaling"] = None if self.rope_scaling is None else dict(self.rope_scaling)
        out["extra"] = dict(self.extra)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}


def _check_scaling(scaling: Any) -> None:
    """Raises ConfigError, UnsupportedModelError for a rope_scaling that would be ignored or computed wrongly."""
    if not isinstance(scaling, Mapping | None):
        raise ConfigError(f"ModelConfig: rope_scaling = {scaling!r}, must be a mapping or None")
    given = {key: value for key, value in (scaling or {}).items() if value is not None}
    kinds = [given.pop(key) for key in ("rope_type", "type") if key in given]
    if not kinds and not given:
        return
    if not kinds:
        raise ConfigError(f"ModelConfig: rope_scaling = {dict(given)}: rope_type is missing")
    if not isinstance(kinds[0], str) or kinds[0] not in _SCALINGS:
        raise UnsupportedModelError(f"rope_scaling: rope_type = {kinds[0]!r}; supported: linear, llama3")
    needed = _SCALINGS[kinds[0]]
    for key in given:
        if key not in needed:
            raise ConfigError(f"ModelConfig: rope_scaling: {kinds[0]} has no {key!r}{nearest(str(key), needed)}")
    for key in needed:
        if key not in given:
            raise ConfigError(f"ModelConfig: rope_scaling: {kinds[0]}: {key} is missing")
        numbers = real_array(given[key], f"rope_scaling: {key}")
        if not ((numbers > 0) & (numbers < np.inf)).all() or numbers.ndim != (key == "factors"):
            raise ConfigError(f"ModelConfig: rope_scaling: {key} = {given[key]!r:.80}, must be finite and positive")
    if kinds[0] == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        raise ConfigError("ModelConfig: rope_scaling: high_freq_factor must be larger than low_freq_factor")


def _scaled(freq: NDArray[np.float64], scaling: Mapping[str, Any] | None) -> NDArray[np.float64]:
    """Rotary frequencies after a scaling that has been checked."""
    if not scaling:
        return freq
    kind = scaling.get("rope_type")
    kind = scaling.get("type") if kind is None else kind
    if kind in ("default", None):
        return freq
    if kind == "linear":
        return np.asarray(freq / float(scaling["factor"]))
    if kind == "llama3":
        factor = float(scaling["factor"])
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        original = float(scaling["original_max_position_embeddings"])
        wavelength = 2 * np.pi / freq
        # between the two wavelengths the frequency is blended, below it is kept, above divided
        smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
        return (1 - smooth) * freq / factor + smooth * freq
    divisors = np.asarray(scaling["factors"], dtype=np.float64)  # GGUF files may hold some that no rule gives
    if divisors.shape != freq.shape:
        raise ConfigError(f"rope_scaling: {divisors.size} factors for {freq.size} rotary pairs")
    return np.asarray(freq / divisors)
