"""The residual stream in parts, and what each part adds to a logit (direct logit attribution).

The classic library's cache helpers, as functions of a run and as methods of it: `run.decompose_resid(...)`. Stacks have
the components first: [component, batch, pos, d_model]; an int for `pos` drops that axis.

Once the scale of a norm is known the norm is linear, so a logit is a sum over the parts of the stream:

    logit[t] = Σ_parts linear(part) · W_U[:, t]  +  constant,    linear(x) = w ∘ (x − mean x) / scale

(RMS norms take no mean out; the scale is that of the whole stream, from the run). The constant, :func:`logit_constant`,
is what belongs to no part: the norm's own bias through W_U, and b_U. Soft-caps of logits come after that sum:
attributions are of the logits before them.

>>> import clew
>>> model = clew.load("stories260K")
>>> parts = direct_logit_attribution(model, [1, 403, 407, 261], answer=378, by="layer")
>>> parts.values.shape, parts.labels[:3]
((11, 1), ['embed', '0_attn_out', '0_mlp_out'])
>>> logit = model.run([1, 403, 407, 261], logits="last").logits[0, 0, 378]
>>> bool(abs(parts.total[0] - logit) < 1e-4)
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import norm
from .errors import ConfigError, ShapeError, SiteError, TokenError
from .inputs import as_array, check_flags, is_word, nearest, real_numbers, selected, whole

if TYPE_CHECKING:
    from .model import Model
    from .run import Run

Array = NDArray[Any]
Position = int | slice | Sequence[int] | NDArray[Any] | None
Tokens = int | str | Sequence[int] | Sequence[str] | NDArray[Any]


# ---- Parts of a run -------------------------------------------------------------------------------------------------


_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "d_vocab_out")
_AXES = {"d_model": "d_model", "head": "n_heads", "d_head": "d_head", "d_mlp": "d_mlp", "d_vocab": "d_vocab_out"}


def check_same_sizes(run: Run, model: Model) -> None:
    """Raises ConfigError for what is no model, ShapeError for one of other sizes than ran; weights may be others."""
    from .model import check_model

    check_model(model)
    if run.model is not None:
        sizes = {name: getattr(run.model.config, name) for name in _SIZES}
    else:  # what its arrays tell
        sizes = {"n_layers": run._table.n_layers}
        for site, (_, array) in run._stacks.items():
            lengths = array.shape[1:] if site.layered else array.shape
            sizes |= {_AXES[a]: n for a, n in zip(site.axes, lengths, strict=True) if a in _AXES}
    for name, size in sizes.items():
        if size != (own := getattr(model.config, name)):
            raise ShapeError(f"the run is of a model with {name} = {size}; this model has {own}")
    if run.tokens is not None and run.tokens.max(initial=-1) >= model.config.d_vocab:
        raise ShapeError(f"the run holds token {run.tokens.max()}, the model has ids 0 to {model.config.d_vocab - 1}")


def _model(run: Run, model: Model | None) -> Model:
    found = run.model if model is None else model
    if found is None:
        raise ConfigError("this run does not know its model (it was pickled or made by hand): give model=")
    if found is not run.model:
        check_same_sizes(run, found)
    return found


def _has(run: Run, name: str) -> bool:
    """Does the model have such a site in its blocks?"""
    return any(s.name == f"blocks.L.{name}" for s in run._table.sites)


def _upto(run: Run, layer: int | None) -> int:
    """The layer whose input is meant; None, -1 and n_layers: the unembedding's."""
    n = run._table.n_layers
    if layer is None:
        return n
    try:
        number = whole(layer, "layer")
    except ConfigError as error:
        raise SiteError(f"{error} or None") from None
    if number == -1:
        return n
    if not 0 <= number <= n:
        raise SiteError(f"layer = {layer}: 0 to {n - 1}, or {n}, -1 or None for the end of the residual stream")
    return number


def _at(run: Run, array: Array, pos: Position) -> Array:
    """Positions of an array [batch, pos, ...]; negative ones count from each sequence's own end."""
    if pos is None:
        return array
    if isinstance(pos, slice):
        return array[:, pos]
    wanted = as_array(pos, "pos")
    if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
        raise ShapeError(f"pos must be an int, a slice or a list of ints, not {wanted.dtype} {list(wanted.shape)}")
    length = np.full(len(run.lengths), array.shape[1]) if run.positions is not None else run.lengths
    batch = np.arange(len(length)).reshape(-1, *[1] * wanted.ndim)
    end = length.reshape(batch.shape)
    where = np.where(wanted < 0, wanted + end, wanted)
    outside = (where < 0) | (where >= end)
    if outside.any():
        i = int(np.argwhere(outside)[0][0])
        raise ShapeError(f"pos = {pos!r}: sequence {i} of the run has {int(length[i])} positions")
    return np.asarray(array[batch, where])


def _embeddings(run: Run) -> list[tuple[str, str]]:
    """Label and site of what stands at the beginning of the stream."""
    names = {s.name for s in run._table.sites}
    return [(n, f"hook_{n}") for n in ("embed", "pos_embed") if f"hook_{n}" in names]


def _resid(run: Run, layer: int, mlp_input: bool = False) -> Array:
    """The stream [batch, pos, d_model] that enters block `layer` (the unembedding), or its MLP.

    The same values by another name, where those were captured.
    """
    if mlp_input and _has(run, "hook_resid_mid"):
        return run[f"blocks.{layer}.hook_resid_mid"]
    name, before = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer - 1}.hook_resid_post"
    if layer < run._table.n_layers and name in run:
        return run[name]
    if layer > 0 and (before in run or layer == run._table.n_layers):
        return run[before]
    sites = [site for _, site in _embeddings(run)]
    if layer == 0 and all(site in run for site in sites):
        return np.asarray(sum(run[site] for site in sites[1:]) + run[sites[0]])
    return run[name]  # says that it was not captured


def _scale(run: Run, model: Model, layer: int, mlp_input: bool) -> tuple[str, Array]:
    """The norm that reads the stream there, "" for none, and its scale [batch, pos, 1]."""
    config = model.config
    if layer == config.n_layers:
        name = "ln_final"
    else:
        shared = mlp_input and config.parallel_attn_mlp and config.shared_norm
        name = f"blocks.{layer}.ln{2 if mlp_input and not shared else 1}"
    if not norm.is_there(config, name.rsplit(".", 1)[-1]):
        return "", np.ones((1, 1, 1))
    if f"{name}.hook_scale" in run:
        return name, run[f"{name}.hook_scale"]
    try:
        resid = _resid(run, layer, mlp_input)
    except SiteError as error:
        raise SiteError(f"the scale of {name} needs {name}.hook_scale or what it reads: {error.args[0]}") from None
    return name, norm.scale(config, norm.centre(config, resid))


def _check_mlp_input(run: Run, layer: int, mlp_input: bool) -> None:
    if mlp_input and (layer == run._table.n_layers or not _has(run, "hook_mlp_out")):
        where = "the end of the stream" if layer == run._table.n_layers else "an attention-only model"
        raise SiteError(f"mlp_input: there is no MLP at {where}")


def _behind(run: Run, model: Model, layer: int, branch: int, x: Array, pos: Position) -> Array:
    """What a part x [..., batch, pos, d_model] of a branch's output is worth in the stream, behind any post-norm."""
    config = model.config
    if not config.use_normalization_before_and_after or config.normalization_type is None:
        return x
    name = f"blocks.{layer}.ln{branch}_post"
    return norm.linear_part(model, name, x, _at(run, run[f"{name}.hook_scale"], pos)).astype(x.dtype)


def _branch_bias(model: Model, layer: int, branch: int) -> tuple[Array | None, Array | None]:
    """A branch's output bias, which a post-norm still scales, and the post-norm's own, which it does not; float64."""
    b = model.weights.get(f"blocks.{layer}." + ("attn.b_O" if branch == 1 else "mlp.b_out"))
    return None if b is None else b.astype(np.float64), norm.bias(model, f"blocks.{layer}.ln{branch}_post")


def _bias_row(run: Run, model: Model, layer: int, branch: int, like: Array, pos: Position) -> Array | None:
    """The biases that one branch adds to the stream, broadcast like a part [batch, pos, d_model]."""
    out, own = _branch_bias(model, layer, branch)
    if out is None and own is None:
        return None
    row = np.zeros(like.shape)
    if out is not None:
        row = _behind(run, model, layer, branch, row + out, pos)
    return np.asarray(row if own is None else row + own, like.dtype)


def _heads(run: Run, model: Model, layer: int, pos: Position) -> Array:
    """What each head adds to the stream [head, batch, pos, d_model]."""
    if f"blocks.{layer}.attn.hook_result" in run:
        result = np.moveaxis(_at(run, run[f"blocks.{layer}.attn.hook_result"], pos), -2, 0)
    else:
        z = np.moveaxis(_at(run, run[f"blocks.{layer}.attn.hook_z"], pos), -2, 0)
        W_O = model.weights[f"blocks.{layer}.attn.W_O"]
        result = z @ W_O.reshape(len(W_O), *[1] * (z.ndim - 3), *W_O.shape[1:])
    return _behind(run, model, layer, 1, result, pos)


def _neurons(run: Run, model: Model, layer: int, pos: Position, which: Any = slice(None)) -> Array:
    """What each neuron adds to the stream [neuron, batch, pos, d_model]."""
    post = np.moveaxis(_at(run, run[f"blocks.{layer}.mlp.hook_post"], pos)[..., which], -1, 0)
    W_out = model.weights[f"blocks.{layer}.mlp.W_out"][which]
    out = post[..., None] * W_out.reshape(len(W_out), *[1] * (post.ndim - 1), -1)
    return _behind(run, model, layer, 2, out, pos)


def _finish(
    run: Run,
    parts: list[Array],
    labels: list[str],
    layer: int,
    mlp_input: bool,
    pos: Position,
    apply_ln: bool,
    return_labels: bool,
    model: Model | None,
) -> Any:
    """Parts [n, batch, pos, d_model] as one stack, normed if asked for, with its labels if asked for."""
    if parts:
        stack = np.concatenate(parts)
    else:
        found = _model(run, model)
        n = int(run.lengths.max()) if run.positions is None else len(run.positions)
        stack = np.zeros((0, *_at(run, np.zeros((len(run.lengths), n)), pos).shape, found.config.d_model), found.dtype)
    if apply_ln:
        stack = apply_ln_to_stack(run, stack, layer, mlp_input=mlp_input, pos=pos, model=model)
    return (stack, labels) if return_labels else stack


# ---- The classic helpers --------------------------------------------------------------------------------------------


def accumulated_resid(
    run: Run,
    layer: int | None = None,
    incl_mid: bool = False,
    apply_ln: bool = False,
    pos: Position = None,
    mlp_input: bool = False,
    return_labels: bool = False,
    *,
    model: Model | None = None,
) -> Any:
    """The residual stream as it grows: what enters each block up to `layer`, [component, batch, pos, d_model].

    Parameters
    ----------
    run
        Holds `resid_pre` (or `resid_post`) of the layers, `resid_mid` where it is asked for.
    layer
        The last block, by its input. None, -1 and n_layers: all, and the stream that the unembedding reads.
    incl_mid
        Also the stream between attention and MLP (not in parallel blocks, which have none).
    apply_ln
        At the end of the stream each entry goes through the whole final norm, with its own scale and with the norm's
        bias: times W_U plus b_U it is the logit lens. For an earlier `layer` as in :func:`apply_ln_to_stack`.
    pos
        An int, slice or list on the axis of positions; negative ints count from each sequence's own end.
    mlp_input
        End with what the MLP of block `layer` reads.
    return_labels
        Also the labels: "0_pre", "0_mid", ..., "final_post".
    model
        For a run that does not know its model, or another one of the same sizes.

    Raises SiteError for layers that are not there or sites that were not captured, ShapeError for positions and for a
    model of other sizes.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture=["resid_pre", "resid_post"])
    >>> stack, labels = run.accumulated_resid(apply_ln=True, pos=-1, return_labels=True)
    >>> stack.shape, labels[0], labels[-1]
    ((6, 1, 64), '0_pre', 'final_post')
    >>> from clew.lens import logit_lens
    >>> float(abs(stack[1:] @ model.W_U - logit_lens(model, run).logits[:, :, -1]).max()) < 1e-4
    True
    """
    check_flags(incl_mid=incl_mid, apply_ln=apply_ln, mlp_input=mlp_input, return_labels=return_labels)
    upto, n = _upto(run, layer), run._table.n_layers
    _check_mlp_input(run, upto, mlp_input)
    mid = _has(run, "hook_resid_mid")
    if incl_mid and not mid:
        raise SiteError("incl_mid: this model has no hook_resid_mid (parallel blocks or attention only)")
    parts, labels = [], []
    for block in range(upto + 1):
        parts.append(_at(run, _resid(run, block), pos)[None])
        labels.append("final_post" if block == n else f"{block}_pre")
        if mid and ((incl_mid and block < upto) or (mlp_input and block == upto)):
            parts.append(_at(run, _resid(run, block, True), pos)[None])
            labels.append(f"{block}_mid")
    if apply_ln and upto == n:
        stack = np.concatenate(parts)
        found = _model(run, model)
        normed = norm.normalise(found, stack).astype(stack.dtype)
        return (normed, labels) if return_labels else normed
    return _finish(run, parts, labels, upto, mlp_input, pos, apply_ln, return_labels, model)


def decompose_resid(
    run: Run,
    layer: int | None = None,
    mlp_input: bool = False,
    mode: Literal["all", "attn", "mlp"] = "all",
    apply_ln: bool = False,
    pos: Position = None,
    incl_embeds: bool = True,
    return_labels: bool = False,
    *,
    heads: bool = False,
    neurons: bool = False,
    model: Model | None = None,
) -> Any:
    """The parts whose sum is the stream that enters block `layer`: embeddings, each attn_out, each mlp_out.

    Parameters
    ----------
    run
        Holds `hook_embed`, `hook_pos_embed`, `attn_out`, `mlp_out` of the layers before; for heads `z` or `result`,
        for neurons `mlp.hook_post`, in sandwich blocks then the post-norms' `hook_scale`.
    layer
        As in :func:`accumulated_resid`.
    mlp_input
        What the MLP of block `layer` reads: with that block's attn_out, unless the blocks are parallel.
    mode
        "attn" and "mlp": these parts only, besides the embeddings.
    apply_ln
        As :func:`apply_ln_to_stack` for the norm that reads the stream there.
    incl_embeds
        False leaves the embeddings out.
    heads, neurons
        Each head, each neuron instead of its layer's output; biases are then entries of their own ("0_attn_bias").

    What an edit of the stream itself (`resid_post`, …) put there is no part, and missing from the sum.

    The other parameters, and the errors, are those of :func:`accumulated_resid`. Labels: "embed", "pos_embed",
    "0_attn_out", "0_mlp_out", "L0H0", "L0N0", ...

    Example
    -------
    >>> import clew
    >>> model = clew.load("shakespeare")
    >>> run = model.run([5, 6, 7], capture=["embed", "pos_embed", "attn_out", "mlp_out", "resid_post.3"])
    >>> stack = run.decompose_resid()
    >>> stack.shape, float(abs(stack.sum(0) - run["resid_post"]).max()) < 1e-4
    ((10, 1, 3, 128), True)
    """
    if not is_word(mode, ("all", "attn", "mlp")):
        raise ConfigError(f'mode = {mode!r}: "all", "attn" or "mlp"')
    check_flags(incl_embeds=incl_embeds, heads=heads, neurons=neurons)
    check_flags(apply_ln=apply_ln, mlp_input=mlp_input, return_labels=return_labels)
    upto = _upto(run, layer)
    _check_mlp_input(run, upto, mlp_input)
    parts: list[Array] = []
    labels: list[str] = []

    def add(branch: int, block: int, expand: bool) -> None:
        kind = "attn" if branch == 1 else "mlp"
        if not expand:
            parts.append(_at(run, run[f"blocks.{block}.hook_{kind}_out"], pos)[None])
            labels.append(f"{block}_{kind}_out")
            return
        found = _model(run, model)
        part = _heads(run, found, block, pos) if branch == 1 else _neurons(run, found, block, pos)
        parts.append(part)
        labels.extend(f"L{block}{'H' if branch == 1 else 'N'}{i}" for i in range(len(part)))
        row = _bias_row(run, found, block, branch, part[0], pos)
        if row is not None:
            parts.append(row[None])
            labels.append(f"{block}_{kind}_bias")

    if incl_embeds:
        for label, site in _embeddings(run):
            parts.append(_at(run, run[site], pos)[None])
            labels.append(label)
    for block in range(upto):
        if mode != "mlp":
            add(1, block, heads)
        if mode != "attn" and _has(run, "hook_mlp_out"):
            add(2, block, neurons)
    if mlp_input and mode != "mlp" and _has(run, "hook_resid_mid"):
        add(1, upto, heads)
    return _finish(run, parts, labels, upto, mlp_input, pos, apply_ln, return_labels, model)


def get_full_resid_decomposition(
    run: Run,
    layer: int | None = None,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    apply_ln: bool = False,
    pos: Position = None,
    return_labels: bool = False,
    *,
    model: Model | None = None,
) -> Any:
    """Every part of the stream that enters block `layer`: each head and neuron, the embeddings, and all biases as one.

    In this order, labelled "L0H0", "L0N0", "embed", "pos_embed", "bias". expand_neurons=False: each MLP's output
    ("0_mlp_out") instead of its neurons. Needs what :func:`decompose_resid` does, whose parameters the others are.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture=["embed", "z", "mlp.hook_post", "resid_post"])
    >>> stack, labels = run.get_full_resid_decomposition(pos=-1, return_labels=True)
    >>> stack.shape, labels[0], labels[-1], float(abs(stack.sum(0) - run["resid_post", -1][:, -1]).max()) < 1e-4
    ((901, 1, 64), 'L0H0', 'embed', True)
    """
    check_flags(expand_neurons=expand_neurons, apply_ln=apply_ln, return_labels=return_labels)
    stack, labels = decompose_resid(
        run, layer, mlp_input, pos=pos, return_labels=True, heads=True, neurons=expand_neurons, model=model
    )
    kinds = ["embed" if "embed" in n else "bias" if n.endswith("_bias") else "H" if "H" in n else "N" for n in labels]
    of = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in ("H", "N", "embed", "bias")}
    order = of["H"] + of["N"] + of["embed"]
    parts, names = [stack[order]], [labels[i] for i in order]
    if of["bias"]:
        parts.append(stack[of["bias"]].sum(axis=0, keepdims=True))
        names.append("bias")
    return _finish(run, parts, names, _upto(run, layer), mlp_input, pos, apply_ln, return_labels, model)


def stack_activation(run: Run, name: str, layer: int | None = None) -> Array:
    """A site over the layers before `layer` [layer, ...]; None, -1 and n_layers: over all of them. A view.

    Raises SiteError where one of them was not captured.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> model.run([1, 403, 407], capture="pattern").stack_activation("pattern", 2).shape
    (2, 1, 8, 3, 3)
    """
    upto = _upto(run, layer)
    held = run.layers(name)
    missing = [block for block in range(upto) if block not in held]
    if missing:
        raise SiteError(f"{name!r} was not captured on layer {', '.join(map(str, missing))}")
    return run.stack(name)[:upto]  # layers ascend, so the first ones are those before


def stack_head_results(
    run: Run,
    layer: int | None = None,
    return_labels: bool = False,
    incl_remainder: bool = False,
    pos: Position = None,
    apply_ln: bool = False,
    *,
    model: Model | None = None,
) -> Any:
    """What every head before `layer` adds to the stream, [layer · head, batch, pos, d_model]; labels "L0H0", ...

    From `result` where it was captured, else `z` and W_O; behind the post-norm in sandwich blocks (needs its
    `hook_scale`). `incl_remainder`: a last entry, "remainder", such that the sum is the stream that enters `layer`.
    The other parameters, and the errors, are those of :func:`accumulated_resid`.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> stack, labels = model.run([1, 403, 407], capture="z").stack_head_results(2, return_labels=True)
    >>> stack.shape, labels[-1]
    ((16, 1, 3, 64), 'L1H7')
    """
    check_flags(return_labels=return_labels, incl_remainder=incl_remainder, apply_ln=apply_ln)
    upto, found = _upto(run, layer), _model(run, model)
    parts = [_heads(run, found, block, pos) for block in range(upto)]
    labels = [f"L{block}H{h}" for block in range(upto) for h in range(found.config.n_heads)]
    if incl_remainder:
        rest = _at(run, _resid(run, upto), pos)
        parts.append((rest - sum(part.sum(0) for part in parts))[None])
        labels.append("remainder")
    return _finish(run, parts, labels, upto, False, pos, apply_ln, return_labels, found)


def stack_neuron_results(
    run: Run,
    layer: int | None = None,
    pos: Position = None,
    neurons: slice | Sequence[int] | NDArray[Any] | None = None,
    return_labels: bool = False,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    project_output_onto: ArrayLike | None = None,
    *,
    model: Model | None = None,
) -> Any:
    """What every neuron before `layer` adds to the stream, [layer · neuron, batch, pos, d_model]; labels "L0N0", ...

    neurons: a slice or list of those of each layer. `project_output_onto` [d_model] or [d_model, n] gives the products
    with these directions instead, [..., n], one layer's stack in memory at a time. The other parameters, and the
    errors, are those of :func:`stack_head_results` (needs `mlp.hook_post`); ShapeError for neurons that are not there,
    or none, and directions that do not fit.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture="mlp.hook_post")
    >>> run.stack_neuron_results(2, pos=-1, neurons=range(5), project_output_onto=model.W_U[:, 378]).shape
    (10, 1)
    """
    check_flags(return_labels=return_labels, incl_remainder=incl_remainder, apply_ln=apply_ln)
    upto, found = _upto(run, layer), _model(run, model)
    if not _has(run, "mlp.hook_post"):
        raise SiteError("stack_neuron_results: this model has no MLPs")
    onto = None if project_output_onto is None else real_numbers(project_output_onto, "project_output_onto")
    if onto is not None and (onto.ndim not in (1, 2) or onto.shape[0] != found.config.d_model):
        raise ShapeError(f"project_output_onto {list(onto.shape)}: expected [{found.config.d_model}] or [.., n]")
    every = slice(None) if neurons is None else neurons
    numbers = selected(every, found.config.d_mlp, "neurons", f"the model has {found.config.d_mlp}")
    if not numbers.size:
        raise ShapeError(f"neurons = {neurons!r:.40} selects nothing")
    which = every if isinstance(every, slice) else numbers  # a slice copies no weights

    def finish(part: Array) -> Array:
        if apply_ln:
            part = apply_ln_to_stack(run, part, upto, pos=pos, model=found)
        return part if onto is None else np.asarray(part @ onto)

    parts: list[Array] = []
    total: Any = 0
    for block in range(upto):
        part = _neurons(run, found, block, pos, which)
        if incl_remainder:
            total = total + part.sum(0)
        parts.append(finish(part))
    labels = [f"L{block}N{i}" for block in range(upto) for i in numbers]
    if incl_remainder:
        parts.append(finish((_at(run, _resid(run, upto), pos) - total)[None]))
        labels.append("remainder")
    if not parts:
        empty = _finish(run, [], labels, upto, False, pos, False, False, found)
        parts = [empty if onto is None else empty @ onto]
    stack = np.concatenate(parts)
    return (stack, labels) if return_labels else stack


def apply_ln_to_stack(
    run: Run,
    stack: ArrayLike,
    layer: int | None = None,
    mlp_input: bool = False,
    pos: Position = None,
    *,
    model: Model | None = None,
) -> Array:
    """Parts of the stream as the norm that reads it at `layer` passes them on, [component, batch, pos, d_model].

    The norm's scale is the run's, one for all parts, so the norm is linear: centred (LayerNorm), divided by the scale,
    times its weight. Its bias belongs to no part and is left out: the sum over all parts plus the bias is
    `ln.hook_out`. (The classic library leaves the weight out too, as if it were folded.)

    Parameters
    ----------
    run
        Holds the norm's `hook_scale`, or the stream that it reads.
    stack
        Parts, already at the positions `pos`.
    layer
        The block whose ln1 (with `mlp_input`: ln2) is meant; None, -1 and n_layers: the final norm.
    pos
        As in :func:`accumulated_resid`: where the stack stands.

    A model without the norm gives the stack as it is. Raises ShapeError for a stack of another shape or of what is no
    real number, SiteError when the scale is not known.
    """
    found = _model(run, model)
    upto, array = _upto(run, layer), real_numbers(stack, "stack")
    kind = array.dtype if array.dtype.kind == "f" else found.dtype
    _check_mlp_input(run, upto, mlp_input)
    name, scale = _scale(run, found, upto, mlp_input)
    if not name:
        if array.ndim < 2 or array.shape[-1] != found.config.d_model:
            raise ShapeError(f"stack {list(array.shape)}: the last axis must be d_model = {found.config.d_model}")
        return array.astype(kind, copy=False)
    here = _at(run, scale, pos)
    shape = [*here.shape[:-1], found.config.d_model]
    if list(array.shape[1:]) != shape:
        raise ShapeError(f"stack {list(array.shape)} at pos = {pos!r}: expected [component, {str(shape)[1:]}")
    return norm.linear_part(found, name, array, here).astype(kind)


# ---- Logits ---------------------------------------------------------------------------------------------------------


def _token_ids(model: Model, tokens: Tokens, what: str) -> Array:
    """Ids of tokens given as an id, a text that is one token, or several of either."""
    if isinstance(tokens, str):
        return np.asarray(model.to_single_token(tokens))
    if isinstance(tokens, Sequence) and any(isinstance(t, str) for t in tokens):
        tokens = [model.to_single_token(t) if isinstance(t, str) else t for t in tokens]
    ids = as_array(tokens, what)
    if ids.dtype.kind not in "iu" or ids.ndim > 2:
        raise ShapeError(f"{what}: token ids, at most [batch, pos], not {ids.dtype} {list(ids.shape)}")
    outside = ids[(ids < 0) | (ids >= model.config.d_vocab_out)]
    if outside.size:
        raise TokenError(
            f"{what}: {int(outside[0])} is no token; the model writes ids 0 to {model.config.d_vocab_out - 1}"
        )
    return ids


def _directions(model: Model, tokens: Tokens, incorrect: Tokens | None) -> tuple[Array, Array]:
    """Columns of W_U [*tokens, d_model] and entries of b_U [*tokens], or their differences; float64."""
    ids = _token_ids(model, tokens, "tokens")
    W_U, b_U = model.weights["unembed.W_U"], model.b_U
    out = [np.moveaxis(W_U[:, ids], 0, -1).astype(np.float64), b_U[ids].astype(np.float64)]
    if incorrect is not None:
        other = _token_ids(model, incorrect, "incorrect_tokens")
        if other.ndim and ids.ndim and other.shape != ids.shape:
            raise ShapeError(f"tokens {list(ids.shape)} and incorrect_tokens {list(other.shape)} differ in shape")
        out[0] = out[0] - np.moveaxis(W_U[:, other], 0, -1)
        out[1] = out[1] - b_U[other]
    return out[0], out[1]


def logit_attrs(
    run: Run,
    stack: ArrayLike,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    pos: Position = None,
    *,
    model: Model | None = None,
) -> Array:
    """What each part of a stack adds to the logit of a token, or to a difference of logits: [component, batch, pos].

    Parameters
    ----------
    run
        Holds `ln_final.hook_scale`, or the last `resid_post`.
    stack
        Parts [component, batch, pos, d_model] before the final norm, at the positions `pos`.
    tokens, incorrect_tokens
        Ids or texts: one for all, one per sequence [batch], or one per position [batch, pos]. With incorrect ones the
        logit of `tokens` minus theirs.

    Parts that sum to the stream sum to the logit (before any soft-cap) minus :func:`logit_constant`. Raises TokenError
    for an id that the model does not write, ShapeError for shapes that do not fit.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture=["embed", "attn_out", "mlp_out", "ln_final.hook_scale"])
    >>> attrs = run.logit_attrs(run.decompose_resid(pos=-1), 378, pos=-1)
    >>> attrs.shape, bool(abs(attrs.sum(0) + logit_constant(model, 378) - run.logits[:, -1, 378]) < 1e-4)
    ((11, 1), True)
    """
    found = _model(run, model)
    normed = apply_ln_to_stack(run, stack, None, pos=pos, model=found)
    direction, _ = _directions(found, tokens, incorrect_tokens)
    if direction.ndim == 2 and normed.ndim == 4:
        direction = direction[:, None]  # one per sequence, for all its positions
    try:
        np.broadcast_shapes(normed.shape[1:], direction.shape)
        fits = direction.ndim < normed.ndim
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(
            f"tokens of shape {list(direction.shape[:-1])} do not fit a stack of {list(normed.shape[:-1])} vectors"
        )
    return np.asarray((normed * direction).sum(-1), normed.dtype)


def logit_constant(model: Model, tokens: Tokens, incorrect_tokens: Tokens | None = None) -> Any:
    """What of a logit, or of a difference of two, belongs to no part of the stream; float64, the shape of `tokens`.

    The final norm's bias through W_U, and b_U. 0 for Llama and its like.

    >>> import clew
    >>> float(logit_constant(clew.load("stories260K"), 378))
    0.0
    """
    direction, constant = _directions(model, tokens, incorrect_tokens)
    shift = norm.bias(model, "ln_final") if norm.is_there(model.config, "ln_final") else None
    return constant if shift is None else constant + direction @ shift


@dataclass(frozen=True)
class Attribution:
    """Parts of a logit, or of a difference of two, at one position of each sequence.

    `values.sum(0) + remainder` is `logit` to rounding.
    """

    values: NDArray[np.float64]
    """What each component adds [component, batch]."""
    labels: list[str]
    """Names of the components: "embed", "pos_embed", "0_attn_out", "L0H3", "L0N17", "0_mlp_out", ..."""
    remainder: NDArray[np.float64]
    """What belongs to no component [batch]: biases (of the final norm and the unembedding; by head and by neuron also
    of what was taken apart)."""
    logit: NDArray[np.float64]
    """The model's own logit, before any soft-cap, or the difference of two [batch]."""

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of the components and the remainder [batch]."""
        return np.asarray(self.values.sum(0) + self.remainder)

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k components that matter most, by the size of their mean over the batch."""
        mean = self.values.mean(1)
        return [(self.labels[i], float(mean[i])) for i in np.argsort(-np.abs(mean), kind="stable")[:k]]

    def __getitem__(self, label: str) -> NDArray[np.float64]:
        """What the component of this name adds [batch]. Raises SiteError for another one, with the nearest."""
        if label not in self.labels:
            raise SiteError(f"{label!r} is no component of this attribution{nearest(str(label), self.labels)}")
        return np.asarray(self.values[self.labels.index(label)])

    def __repr__(self) -> str:
        n, batch = self.values.shape
        lines = [f"Attribution of {n} components, {batch} sequence{'s' if batch != 1 else ''}; means:"]
        rows = self.top()
        if n > len(rows):
            rows.append((f"{n - len(rows)} others", float(self.values.mean(1).sum()) - sum(value for _, value in rows)))
        rows += [("remainder", float(self.remainder.mean())), ("logit", float(self.logit.mean()))]
        wide = max(len(label) for label, _ in rows)
        return "\n".join([*lines, *(f"  {label:<{wide}} {value:+9.4f}" for label, value in rows)])


def direct_logit_attribution(
    model: Model,
    tokens: Any,
    answer: Tokens,
    wrong: Tokens | None = None,
    by: Literal["layer", "head", "neuron"] = "layer",
    pos: int = -1,
) -> Attribution:
    """Runs the model and takes the logit of `answer` (minus that of `wrong`) apart, exactly.

    Parameters
    ----------
    tokens
        Whatever `model.run` takes, one prompt or many.
    answer, wrong
        An id, a text that is one token, or one of these per sequence.
    by
        "layer": embeddings, each attn_out, each mlp_out. "head": each head instead of attn_out. "neuron": each head,
        and each neuron instead of mlp_out.
    pos
        The position whose prediction it is; a negative one counts from each sequence's own end.

    Behind the components comes a remainder, the biases: see :class:`Attribution`.

    Inside `model.edited`, a last component "edits" is what these put where no other one is seen: into the stream
    itself, into what was taken apart or behind the final norm.

    Values are sums in float64 of what the model computed in its own dtype. Behind post-norms (Gemma 2 and 3) a part
    counts with what the post-norm makes of it. Soft-capped logits: the logit before the cap is what is taken apart.

    Raises TokenError, ShapeError as `model.run` does, and for answers that do not fit; ConfigError for another `by`.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> parts = direct_logit_attribution(model, [[1, 403, 407], [1, 261]], answer=378, wrong=[403, 407], by="head")
    >>> parts.values.shape, bool(abs(parts.total - parts.logit).max() < 1e-5)
    ((46, 2), True)
    """
    if not is_word(by, ("layer", "head", "neuron")):
        raise ConfigError(f'by = {by!r}: "layer", "head" or "neuron"')
    c, w = model.config, model.weights
    post_norms = c.use_normalization_before_and_after and c.normalization_type is not None
    mlps, last = not c.attn_only, f"blocks.{c.n_layers - 1}.hook_resid_post"
    final = norm.is_there(c, "ln_final")
    capture = [name for name in ("hook_embed", "hook_pos_embed") if name in model.sites()]
    capture += ["ln_final.hook_scale", "ln_final.hook_out"] if final else [last] if c.n_layers else []
    if c.n_layers:
        capture.append("attn_out" if by == "layer" else "attn.hook_z")
        capture += ["ln1_post.hook_scale"] if post_norms and by != "layer" else []
        if mlps:
            capture.append("mlp.hook_post" if by == "neuron" else "mlp_out")
            capture += ["ln2_post.hook_scale"] if post_norms and by == "neuron" else []
    try:
        where = whole(pos, "pos")
    except ConfigError:
        raise ShapeError(f"pos = {pos!r}: expected one position, a whole number") from None
    run = model.run(tokens, capture=capture, positions=[where], logits=None)
    batch, short = len(run.lengths), int(run.lengths.min())
    if not -short <= where < short:
        raise ShapeError(f"pos = {where}: the shortest prompt has {short} tokens")
    direction, constant = _directions(model, answer, wrong)
    if direction.ndim > 2 or (direction.ndim == 2 and len(direction) != batch):
        raise ShapeError(f"answer of shape {list(direction.shape[:-1])} for {batch} sequences: one, or one for each")
    direction = np.broadcast_to(direction, (batch, c.d_model))

    def at(name: str) -> Array:
        return run[name][:, 0].astype(np.float64)

    # what reads the stream for this logit, before the final norm
    reader = norm.pull_back(model, "ln_final", direction, at("ln_final.hook_scale")) if final else direction
    remainder = np.broadcast_to(logit_constant(model, answer, wrong), (batch,)).astype(np.float64)
    values: list[Array] = []
    labels: list[str] = []
    for label, site in _embeddings(run):
        values.append((at(site) * reader).sum(-1)[None])
        labels.append(label)

    def inside(layer: int, branch: int) -> Array:
        """What reads a branch's output before any post-norm; its biases go to the remainder."""
        nonlocal remainder
        name, before = f"blocks.{layer}.ln{branch}_post", reader
        if post_norms:
            before = norm.pull_back(model, name, reader, at(f"{name}.hook_scale"))
        out, own = _branch_bias(model, layer, branch)
        remainder = remainder + (0 if out is None else before @ out) + (0 if own is None else reader @ own)
        return before

    for layer in range(c.n_layers):
        at_layer = f"blocks.{layer}"
        if by == "layer":
            values.append((at(f"{at_layer}.hook_attn_out") * reader).sum(-1)[None])
            labels.append(f"{layer}_attn_out")
        else:
            read = np.einsum("hed,bd->hbe", w[f"{at_layer}.attn.W_O"].astype(np.float64), inside(layer, 1))
            values.append((np.moveaxis(at(f"{at_layer}.attn.hook_z"), 1, 0) * read).sum(-1))
            labels.extend(f"L{layer}H{h}" for h in range(c.n_heads))
        if mlps and by == "neuron":
            read = w[f"{at_layer}.mlp.W_out"].astype(np.float64) @ inside(layer, 2).T
            values.append(at(f"{at_layer}.mlp.hook_post").T * read)
            labels.extend(f"L{layer}N{i}" for i in range(c.d_mlp))
        elif mlps:
            values.append((at(f"{at_layer}.hook_mlp_out") * reader).sum(-1)[None])
            labels.append(f"{layer}_mlp_out")

    if final or c.n_layers:
        end = at("ln_final.hook_out" if final else last)
    else:
        end = np.asarray(sum(at(site) for _, site in _embeddings(run)))
    logit = (end * direction).sum(-1) + constant
    if model._active_edits():
        values.append((logit - np.concatenate(values).sum(0) - remainder)[None])
        labels.append("edits")
    return Attribution(np.concatenate(values), labels, remainder, np.asarray(logit))


__all__ = [
    "Attribution",
    "accumulated_resid",
    "apply_ln_to_stack",
    "decompose_resid",
    "direct_logit_attribution",
    "get_full_resid_decomposition",
    "logit_attrs",
    "logit_constant",
    "stack_activation",
    "stack_head_results",
    "stack_neuron_results",
]
