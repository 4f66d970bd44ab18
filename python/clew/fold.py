"""A model with the same predictions whose weights are easier to read: norms folded, writing weights centred.

What load() gives is never folded; published notebooks of the classic library usually work on folded models.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import ModelConfig
from .inputs import check_flags
from .loaders.checkpoint import Checkpoint

Array = NDArray[Any]
Weights = dict[str, Array]

_PRE = {"LN": "LNPre", "RMS": "RMSPre"}
_BIAS_FLAGS = {
    "qkv_bias": r"blocks\.\d+\.attn\.b_[QKV]",
    "attn_out_bias": r"blocks\.\d+\.attn\.b_O",
    "mlp_bias": r"blocks\.\d+\.mlp\.b_\w+",
    "unembed_bias": r"unembed\.b_U",
}


def fold_checkpoint(
    checkpoint: Checkpoint,
    *,
    fold_ln: bool = True,
    center_writing: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
) -> Checkpoint:
    """What :meth:`clew.Model.folded` does, on weights [classic shapes]; computed in float64, rounded once.

    Weights that stay as they are stay the same arrays. `notes` says what was left out and why.

    >>> import clew
    >>> from clew.loaders.initialise import initialise
    >>> config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10)
    >>> folded = fold_checkpoint(Checkpoint(config, initialise(config), np.dtype("float32")))
    >>> folded.config.normalization_type, "ln_final.w" in folded.weights
    ('LNPre', False)
    """
    check_flags(fold_ln=fold_ln, center_writing=center_writing)
    check_flags(center_unembed=center_unembed, fold_value_biases=fold_value_biases)
    config, notes = checkpoint.config, list(checkpoint.notes)
    why = _no_centring(config)
    if center_writing and why:
        center_writing = False
        notes.append(f"folded: writing weights are not centred: {why}")
    if center_unembed and config.output_logits_soft_cap:
        center_unembed = False
        notes.append("folded: the unembedding is not centred: the soft-cap of the logits would see the difference")
    if center_unembed and config.d_out is not None:
        center_unembed = False
        notes.append("folded: the unembedding is not centred: the mean of the outputs is part of what the model says")
    if fold_value_biases and config.attention_kind != "softmax":
        fold_value_biases = False
        notes.append("folded: value biases stay: weights of linear attention do not sum to 1")
    fold_ln = fold_ln and config.norm_affine

    weights = dict(checkpoint.weights)
    for layer in range(config.n_layers):
        at = f"blocks.{layer}."
        own = {name.removeprefix(at): w for name, w in weights.items() if name.startswith(at)}
        before = dict(own)
        if fold_ln:
            _fold_block(config, own)
        if fold_value_biases:
            _fold_value_bias(config, own)
        if center_writing:
            for name in ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out"):
                _centre(own, name)
        _replace(weights, at, before, own, checkpoint.dtype)

    ends = {name: w for name, w in weights.items() if not name.startswith("blocks.")}
    before = dict(ends)
    if fold_ln and config.final_norm:
        _fold_norm(config, ends, "ln_final", (("unembed.W_U", "unembed.b_U"),))
    if center_writing:
        _centre(ends, "embed.W_E")
        _centre(ends, "pos_embed.W_pos")
    if center_unembed:
        _centre(ends, "unembed.W_U")
        _centre(ends, "unembed.b_U")
    _replace(weights, "", before, ends, checkpoint.dtype)

    changes: dict[str, Any] = {
        flag: any(re.fullmatch(pattern, name) for name in weights) for flag, pattern in _BIAS_FLAGS.items()
    }
    if fold_ln and not config.use_normalization_before_and_after:
        changes["normalization_type"] = _PRE[str(config.normalization_type)]
    if any(weights[name] is not checkpoint.weights[name] for name in ("embed.W_E", "unembed.W_U")):
        changes["tie_word_embeddings"] = False
    return Checkpoint(
        config.replace(**changes), weights, checkpoint.dtype, checkpoint.tokenizer, notes, checkpoint.tokenizer_files
    )


def _no_centring(config: ModelConfig) -> str:
    """Why the mean over d_model matters to something that reads the stream; empty where it does not."""
    if config.normalization_type not in ("LN", "LNPre"):
        kind = "RMS norms" if config.rms else "blocks without norms"
        return f"{kind} read the mean of the residual stream"
    if not config.final_norm:
        return "the unembedding, without a norm before it, reads the mean of the residual stream"
    if config.use_normalization_before_and_after:
        return "norms behind the branches write a mean of their own"
    return ""


def _double(array: Array) -> Array:
    """A float64 copy with the same order of axes in memory."""
    return array.astype(np.float64, order="K", copy=True)


def _replace(weights: Weights, at: str, before: Weights, after: Weights, dtype: np.dtype[Any]) -> None:
    """Puts changed weights into the whole, rounded; drops those that are gone."""
    for name in before.keys() - after.keys():
        del weights[at + name]
    for name, array in after.items():
        if before.get(name) is not array:
            weights[at + name] = array.astype(dtype, order="K", copy=False)


def _fold_norm(config: ModelConfig, w: Weights, norm: str, readers: tuple[tuple[str, str], ...]) -> None:
    """Moves a norm's affine part into the matrices [.., d, out] that read its output, and their biases [.., out].

    (n · w + b) W = n (w W) + b W. LayerNorm's n has mean 0, so the mean of w W over d is never seen: it is taken out,
    as the classic library does. Behind sandwich branches the norm's type must stay: its weight becomes ones.
    """
    scale, shift = w[f"{norm}.w"].astype(np.float64), w.pop(f"{norm}.b", None)
    for matrix, bias in readers:
        if matrix not in w:
            continue
        W = _double(w[matrix])
        if shift is not None:
            moved = shift.astype(np.float64) @ W
            w[bias] = moved + w[bias] if bias in w else moved
        W *= scale[:, None]
        if not config.rms:
            W -= W.mean(-2, keepdims=True)
        w[matrix] = W
    if config.use_normalization_before_and_after:
        w[f"{norm}.w"] = np.ones_like(scale)
    else:
        del w[f"{norm}.w"]


def _fold_block(config: ModelConfig, w: Weights) -> None:
    attention = tuple((f"attn.W_{x}", f"attn.b_{x}") for x in "QKV")
    mlp = (("mlp.W_in", "mlp.b_in"), ("mlp.W_gate", "mlp.b_gate"))
    if config.parallel_attn_mlp and config.shared_norm:
        _fold_norm(config, w, "ln1", attention + mlp)
        return
    _fold_norm(config, w, "ln1", attention)
    if not config.attn_only:
        _fold_norm(config, w, "ln2", mlp)


def _fold_value_bias(config: ModelConfig, w: Weights) -> None:
    """Attention weights sum to 1, so a value bias adds b_V W_O whatever is attended to: it moves into b_O."""
    b_V = w.pop("attn.b_V", None)
    if b_V is None:
        return
    group = config.n_heads // config.n_key_value_heads
    moved = np.einsum("he,hed->d", np.repeat(b_V.astype(np.float64), group, axis=0), _double(w["attn.W_O"]))
    w["attn.b_O"] = moved + w["attn.b_O"] if "attn.b_O" in w else moved


def _centre(w: Weights, name: str) -> None:
    """Takes the mean over the last axis out of a weight, if it is there."""
    if name in w:
        array = _double(w[name])
        w[name] = array - array.mean(-1, keepdims=True)


__all__ = ["fold_checkpoint"]
