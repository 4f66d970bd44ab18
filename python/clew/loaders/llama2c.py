"""Models in llama2.c's file format: seven int32, then every weight as float32, in one fixed order.

Rows of queries and keys stand there in rotary pairs; they come back in halves, the order that every other source has,
so that captured queries and keys mean the same.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import memory
from ..config import ModelConfig
from ..errors import LoadError, UnsupportedModelError
from .assemble import heads_in_interleaved
from .checkpoint import Checkpoint
from .safetensors import MIN_SLACK, weights_dtype

Array = NDArray[Any]

_HEADER = struct.Struct("<7i")
_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_NEW_MAGIC = b"24ka"
TOKENIZER_NAMES = ("tokenizer.bin", "tok{vocab_size}.bin")


def load_llama2c(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> Checkpoint:
    """Open a llama2.c `.bin` file (the format that its run.c reads); its weights are mapped in place.

    All but W_Q and W_K, whose rows come back in the order that every other source has.

    Parameters
    ----------
    path
        The file. A `tokenizer.bin` or `tok<vocabulary>.bin` beside it becomes the tokenizer.
    dtype
        None or "float32": views of the file (W_Q and W_K owned). "float64" converts.

    Raises
    ------
    LoadError
        A header of impossible sizes, or a file that is not exactly as long as its header says.
    UnsupportedModelError
        One of llama2.c's newer or quantised formats.

    Example
    -------
    >>> checkpoint = load_llama2c("stories260K.bin")                            # doctest: +SKIP
    >>> checkpoint.weights["blocks.0.attn.W_Q"].shape                           # doctest: +SKIP
    (8, 64, 8)
    """
    chosen = weights_dtype(dtype, False)
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_HEADER.size)
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from error
    if header[:4] == _NEW_MAGIC:
        raise UnsupportedModelError(f"{path}: llama2.c's format with a magic number; supported: version 0, float32")
    if len(header) < _HEADER.size:
        raise LoadError(f"{path}: byte 0: {size} bytes are too few for a llama2.c model")
    sizes = dict(zip(_FIELDS, _HEADER.unpack(header), strict=True))
    for place, (name, value) in enumerate(sizes.items()):
        if value == 0 or (value < 0 and name != "vocab_size"):
            raise LoadError(f"{path}: byte {4 * place}: {name} = {value}: this is no llama2.c model")
    tied = sizes["vocab_size"] > 0  # a negative one says that the classifier follows
    d, f, n_layers, h, g, context = (sizes[name] for name in (*_FIELDS[:5], "seq_len"))
    v = abs(sizes["vocab_size"])
    if d % h or d // h % 2:
        raise LoadError(f"{path}: byte 12: n_heads = {h} does not cut dim = {d} into heads of even size")
    if h % g:
        raise LoadError(f"{path}: byte 16: n_heads = {h} is no multiple of n_kv_heads = {g}")
    e = d // h
    layout = {
        "W_E": (v, d), "ln1": (n_layers, d), "W_Q": (n_layers, h * e, d), "W_K": (n_layers, g * e, d),
        "W_V": (n_layers, g, e, d), "W_O": (n_layers, d, h, e), "ln2": (n_layers, d), "W_gate": (n_layers, f, d),
        "W_out": (n_layers, d, f), "W_in": (n_layers, f, d), "ln_final": (d,), "rotary": (2, context, e // 2),
    }  # fmt: skip
    if not tied:
        layout["W_U"] = (v, d)
    expected = _HEADER.size + 4 * sum(map(math.prod, layout.values()))
    if size != expected:
        where = f"byte {min(size, expected)}"
        raise LoadError(f"{path}: {where}: the header asks for {expected} bytes, the file has {size}")

    try:
        raw = memory.map_file(path, max(MIN_SLACK, 4 * max(d, f)))
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from error
    if raw.size != expected:
        raise LoadError(f"{path}: the file changed while it was read")
    arrays: dict[str, Array] = {}
    place = _HEADER.size
    for name, shape in layout.items():
        end = place + 4 * math.prod(shape)
        if name != "rotary":  # its tables follow from the sizes
            array = raw[place:end].view("<f4").reshape(shape)
            arrays[name] = array if chosen == np.float32 else memory.copy(array, chosen)
            arrays[name].flags.writeable = False
        place = end

    weights: dict[str, Array] = {"embed.W_E": arrays["W_E"]}
    for layer in range(n_layers):
        at = f"blocks.{layer}."
        weights[at + "ln1.w"] = arrays["ln1"][layer]
        for name, heads in (("W_Q", h), ("W_K", g)):
            weights[f"{at}attn.{name}"] = heads_in_interleaved(heads)(arrays[name][layer])
        weights[at + "attn.W_V"] = arrays["W_V"][layer].transpose(0, 2, 1)  # [h, e, d] -> [h, d, e]
        weights[at + "attn.W_O"] = arrays["W_O"][layer].transpose(1, 2, 0)  # [d, h, e] -> [h, e, d]
        weights[at + "ln2.w"] = arrays["ln2"][layer]
        for name in ("W_gate", "W_in", "W_out"):
            weights[f"{at}mlp.{name}"] = arrays[name][layer].T
    weights["ln_final.w"] = arrays["ln_final"]
    weights["unembed.W_U"] = (arrays["W_E"] if tied else arrays["W_U"]).T

    config = ModelConfig(
        n_layers=n_layers, d_model=d, n_heads=h, n_ctx=context, d_vocab=v, d_head=e, n_key_value_heads=g, d_mlp=f,
        act_fn="silu", eps=1e-5, normalization_type="RMS", positional_embedding_type="rotary",
        gated_mlp=True, tie_word_embeddings=tied, qkv_bias=False, attn_out_bias=False,
        mlp_bias=False, norm_bias=False, original_architecture="llama2.c", model_name=path.stem, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return Checkpoint(config, weights, chosen, lambda: _tokenizer(path, v))


def _tokenizer(path: Path, vocab_size: int) -> Any:
    """The tokenizer beside the model; None where there is none."""
    from ..tokenizer import from_llama2c

    for name in TOKENIZER_NAMES:
        beside = path.parent / name.format(vocab_size=vocab_size)
        if beside.is_file() and beside != path:
            return from_llama2c(beside, vocab_size)
    return None
