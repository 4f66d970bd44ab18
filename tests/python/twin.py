"""The forward pass in plain NumPy float64: every capture site, as its definition says it.

Slow and readable on purpose. It shares nothing with the engine, nor with the rotary frequencies of `ModelConfig`, so
that an error on either side shows as a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


# ---- Parts ----------------------------------------------------------------------------------------------------------


def activation(name: str, x: Array) -> Array:
    """The activation function of that name, elementwise."""
    if name == "none":
        return x.copy()
    if name == "gelu":
        return x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu2":
        return np.maximum(x, 0) ** 2
    if name == "silu":
        return x * sigmoid(x)
    if name == "quick_gelu":
        return x * sigmoid(1.702 * x)
    if name == "tanh":
        return np.tanh(x)
    if name == "sigmoid":
        return sigmoid(x)
    raise AssertionError(f"the twin has no activation {name!r}")


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def softmax(x: Array) -> Array:
    """Softmax over the last axis; −inf gives 0."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def soft_cap(x: Array, cap: float | None) -> Array:
    """cap · tanh(x / cap), or x."""
    return x if not cap else cap * np.tanh(x / cap)


def norm(config: Any, x: Array, w: Array | None, b: Array | None) -> tuple[Array, Array, Array]:
    """Scale, normalized and output of one norm; x [.., d]."""
    if config.normalization_type in ("LN", "LNPre"):
        x = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.eps)
    normalized = x / scale
    out = normalized
    if w is not None:
        out = out * w
    if b is not None:
        out = out + b
    return scale, normalized, out


def frequencies(config: Any, layer: int) -> list[float]:
    """Radians per position of each rotary pair of this layer."""
    local = config.is_local(layer) and config.rotary_base_local is not None
    base = config.rotary_base_local if local else config.rotary_base
    out = []
    for pair in range(config.rotary_dim // 2):
        f = 1.0 / base ** (2 * pair / config.rotary_dim)
        scaling = None if local else config.rope_scaling
        if scaling:
            kind = scaling.get("rope_type", scaling.get("type"))
            if kind == "linear":
                f = f / scaling["factor"]
            elif kind == "llama3":
                turns = scaling["original_max_position_embeddings"] * f / (2 * math.pi)  # over the trained length
                low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
                if turns < low:
                    f = f / scaling["factor"]
                elif turns <= high:
                    keep = (turns - low) / (high - low)
                    f = keep * f + (1 - keep) * f / scaling["factor"]
            elif kind not in (None, "default"):
                raise AssertionError(f"the twin has no rotary scaling {kind!r}")
        out.append(f)
    return out


def rotate(config: Any, layer: int, x: Array) -> Array:
    """Rotary positions on x [b, p, heads, e]."""
    out = x.copy()
    half = config.rotary_dim // 2
    for p in range(x.shape[1]):
        for pair, f in enumerate(frequencies(config, layer)):
            i, j = (2 * pair, 2 * pair + 1) if config.rotary_adjacent_pairs else (pair, pair + half)
            c, s = math.cos(p * f), math.sin(p * f)
            out[:, p, :, i] = c * x[:, p, :, i] - s * x[:, p, :, j]
            out[:, p, :, j] = s * x[:, p, :, i] + c * x[:, p, :, j]
    return out


def visible(config: Any, layer: int, n: int) -> NDArray[np.bool_]:
    """Does query i (row) see key j (column)?"""
    seen = np.zeros((n, n), dtype=bool)
    for i in range(n):
        for j in range(n):
            seen[i, j] = (
                (config.attention_dir == "bidirectional" or j <= i)
                and (not config.is_local(layer) or i - j < config.window_size)
                and not (config.attention_kind == "linear" and config.exclude_self and i == j)
                and not (config.exclude_last and j == n - 1)
            )
    return seen


# ---- Sites ----------------------------------------------------------------------------------------------------------

Edits = Mapping[str, Callable[[Array], Array]]


class Sites(dict[str, Array]):
    """Values by name. An edit replaces a value for everything computed after it."""

    def __init__(self, edits: Edits | None, prefix: str = "") -> None:
        super().__init__()
        self.edits, self.prefix = edits or {}, prefix

    def edited(self, name: str) -> bool:
        """Is there an edit of this site?"""
        return self.prefix + name in self.edits

    def put(self, name: str, value: Array) -> Array:
        """Keeps a value, after its edit; gives what it is from here on."""
        value = self.edits[self.prefix + name](value.copy()) if self.edited(name) else value
        self[name] = value
        return value


# ---- The model ------------------------------------------------------------------------------------------------------


def twin(
    config: Any,
    weights: Mapping[str, ArrayLike],
    tokens: ArrayLike | None = None,
    embeddings: ArrayLike | None = None,
    start_at_layer: int | None = None,
    stop_after_layer: int | None = None,
    edits: Edits | None = None,
) -> dict[str, Array]:
    """Every site of a run over equally long sequences, by full name; a site that the model lacks is not a key.

    tokens [batch, pos] or [pos], or vectors [batch, pos, d_in]; embeddings [batch, pos, d_model] replace `hook_embed`,
    or with `start_at_layer` the residual stream entering that block. `stop_after_layer` is the last block computed: no
    final norm, no logits. `edits`: full name → function of the site's value.
    """
    w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
    sites = Sites(edits)
    if start_at_layer is not None:
        resid = np.array(embeddings, dtype=np.float64)
    else:
        if embeddings is not None:
            embed = np.array(embeddings, dtype=np.float64)
        elif config.d_in is not None:
            embed = np.einsum("bpi,id->bpd", np.asarray(tokens, dtype=np.float64), w["embed.W_E"])
        else:
            embed = w["embed.W_E"][np.atleast_2d(np.asarray(tokens))] * config.embed_scale
        resid = embed = sites.put("hook_embed", embed)
        if config.positional_embedding_type == "standard":
            rows = np.arange(embed.shape[1]) + config.pos_offset
            resid = embed + sites.put("hook_pos_embed", np.broadcast_to(w["pos_embed.W_pos"][rows], embed.shape).copy())

    last = config.n_layers - 1 if stop_after_layer is None else stop_after_layer
    for layer in range(start_at_layer or 0, last + 1):
        mine = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{layer}.")}
        inside, resid = _block(config, mine, layer, resid, edits)
        sites.update({f"blocks.{layer}.{name}": value for name, value in inside.items()})
    if stop_after_layer is not None:
        return sites

    if config.final_norm and config.normalization_type is not None:
        resid = _put_norm(config, sites, "ln_final", resid, w)
    logits = np.einsum("bpd,dv->bpv", resid, w["unembed.W_U"])
    if "unembed.b_U" in w:
        logits = logits + w["unembed.b_U"]
    sites.put("logits", soft_cap(logits, config.output_logits_soft_cap))
    return sites


def _put_norm(config: Any, sites: Sites, name: str, x: Array, w: Mapping[str, Array]) -> Array:
    """A norm, each of its parts as it is after edits."""
    if config.normalization_type is None:
        return x
    centred = x - x.mean(axis=-1, keepdims=True) if config.normalization_type in ("LN", "LNPre") else x
    scale = sites.put(f"{name}.hook_scale", norm(config, x, None, None)[0])
    out = sites.put(f"{name}.hook_normalized", centred / scale)
    out = out * w.get(f"{name}.w", 1.0) + w.get(f"{name}.b", 0.0)
    return sites.put(f"{name}.hook_out", out)


def _block(
    config: Any, w: dict[str, Array], layer: int, resid_pre: Array, edits: Edits | None = None
) -> tuple[dict[str, Array], Array]:
    """Sites of one block (names without its number) and the residual stream leaving it."""
    sites = Sites(edits, f"blocks.{layer}.")
    resid_pre = sites.put("hook_resid_pre", resid_pre)

    # attention
    attn_in = sites.put("hook_attn_in", resid_pre.copy())
    inputs = {}
    for kind, heads in (("q", config.n_heads), ("k", config.n_key_value_heads), ("v", config.n_key_value_heads)):
        inputs[kind] = sites.put(f"hook_{kind}_input", np.repeat(attn_in[:, :, None, :], heads, axis=2))
    attn_out = _attention(config, w, layer, _put_norm(config, sites, "ln1", attn_in, w), inputs, sites)
    if config.use_normalization_before_and_after:
        attn_out = _put_norm(config, sites, "ln1_post", attn_out, w)
    attn_out = sites.put("hook_attn_out", attn_out)
    resid_mid = resid_pre + attn_out
    if config.attn_only:
        resid_mid = sites.put("hook_resid_post", resid_mid)
        return sites, resid_mid

    # MLP
    if not config.parallel_attn_mlp:
        resid_mid = sites.put("hook_resid_mid", resid_mid)
    mlp_in = sites.put("hook_mlp_in", (resid_pre if config.parallel_attn_mlp else resid_mid).copy())
    if config.parallel_attn_mlp and config.shared_norm:
        x = sites.get("ln1.hook_out", resid_pre)
        if sites.edited("hook_attn_in") or sites.edited("hook_mlp_in"):  # each branch reads its own residual
            x = mlp_in if config.normalization_type is None else norm(config, mlp_in, w.get("ln1.w"), w.get("ln1.b"))[2]
    else:
        x = _put_norm(config, sites, "ln2", mlp_in, w)
    mlp_out = _mlp(config, w, x, sites)
    if config.use_normalization_before_and_after:
        mlp_out = _put_norm(config, sites, "ln2_post", mlp_out, w)
    mlp_out = sites.put("hook_mlp_out", mlp_out)
    return sites, sites.put("hook_resid_post", resid_mid + mlp_out)


def _attention(config: Any, w: dict[str, Array], layer: int, x: Array, inputs: dict[str, Array], sites: Sites) -> Array:
    """Attention's output, bias included, from the normed x [b, p, d]; heads whose own input is edited read that."""
    vectors = {}
    for kind in "qkv":
        weight = w[f"attn.W_{kind.upper()}"]
        if sites.edited(f"hook_{kind}_input"):
            own = inputs[kind]
            if config.normalization_type is not None:
                own = norm(config, own, w.get("ln1.w"), w.get("ln1.b"))[2]
            y = np.einsum("bphd,hde->bphe", own, weight)
        else:
            y = np.einsum("bpd,hde->bphe", x, weight)
        if f"attn.b_{kind.upper()}" in w:
            y = y + w[f"attn.b_{kind.upper()}"]
        vectors[kind] = sites.put(f"attn.hook_{kind}", y)
    q, k, v = vectors["q"], vectors["k"], vectors["v"]
    if config.use_qk_norm:
        q, k = (y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + config.eps) for y in (q, k))
        q = sites.put("attn.hook_q_normed", q * w["attn.q_norm.w"])
        k = sites.put("attn.hook_k_normed", k * w["attn.k_norm.w"])
    if config.positional_embedding_type == "rotary":
        q = sites.put("attn.hook_rot_q", rotate(config, layer, q))
        k = sites.put("attn.hook_rot_k", rotate(config, layer, k))

    group = config.n_heads // config.n_key_value_heads  # query heads that share a key head stand side by side
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    divisor = config.attn_scale * (layer + 1 if config.scale_attn_by_inverse_layer_idx else 1)
    scores = soft_cap(np.einsum("bphe,bkhe->bhpk", q, k) / divisor, config.attn_scores_soft_cap)
    seen = visible(config, layer, x.shape[1])
    scores = sites.put("attn.hook_attn_scores", np.where(seen, scores, -np.inf))
    if config.attention_kind == "linear":
        n = np.full(x.shape[1], config.linear_attn_n) if config.linear_attn_n else seen.sum(axis=1)
        pattern = np.where(seen, scores, 0.0) / np.maximum(n, 1)[:, None]  # a query that sees nothing: zeros
    else:
        pattern = softmax(scores)
    pattern = sites.put("attn.hook_pattern", pattern)
    z = sites.put("attn.hook_z", np.einsum("bhpk,bkhe->bphe", pattern, v))
    result = sites.put("attn.hook_result", np.einsum("bphe,hed->bphd", z, w["attn.W_O"]))
    out: Array = result.sum(axis=2)
    return out + w["attn.b_O"] if "attn.b_O" in w else out


def _mlp(config: Any, w: dict[str, Array], x: Array, sites: Sites) -> Array:
    """The MLP's output from the normed x [b, p, d]; adds its sites."""

    def linear(y: Array, name: str) -> Array:
        y = np.einsum("bpi,io->bpo", y, w[f"mlp.W_{name}"])
        return y + w[f"mlp.b_{name}"] if f"mlp.b_{name}" in w else y

    if config.gated_mlp:
        linear_branch = sites.put("mlp.hook_pre_linear", linear(x, "in"))
        pre = sites.put("mlp.hook_pre", linear(x, "gate"))
        post = activation(config.act_fn, pre) * linear_branch
    else:
        post = activation(config.act_fn, sites.put("mlp.hook_pre", linear(x, "in")))
    return linear(sites.put("mlp.hook_post", post), "out")
