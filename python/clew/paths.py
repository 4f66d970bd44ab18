"""Path patching: what one part of the model says to another directly, with everything between them held still."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, SiteError
from .inputs import check_choice, check_flags
from .metrics import Metric, as_metric
from .replay import LOGITS_LAST, LOGITS_LOSS, Base, CoreEdit, Ints, Source, own_positions
from .sites import LOGITS, SITES, Site, SiteName
from .sweep import (
    Sweep,
    axis_labels,
    baseline,
    check_chosen,
    choose,
    choose_positions,
    chunks,
    find_kind,
    first_difference,
    same_prompts,
    swept_axes,
    variant_starts,
)

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[Any]
Receiver = str | tuple[str, int] | tuple[str, int, int]

_Z = next(s for s in SITES if s.short == "z")
_MLP_OUT = next(s for s in SITES if s.short == "mlp_out")
# ways of _READERS that only parallel blocks have, only serial ones, only those whose branches share a norm
_PARALLEL_ONLY, _SERIAL_ONLY, _SHARED_ONLY = (
    {("resid_pre", "mlp_in"), ("attn_out", "resid_post")},
    {("attn_out", "resid_mid"), ("resid_mid", "mlp_in"), ("resid_mid", "resid_post")},
    {("ln1.out", "pre"), ("ln1.out", "pre_linear")},
)
_READERS = {
    "resid_pre": "attn_in mlp_in resid_mid resid_post",
    "attn_in": "q_input k_input v_input ln1.scale ln1.normalized ln1.out q k v",
    "ln1.scale": "ln1.normalized",
    "ln1.normalized": "ln1.out",
    "ln1.out": "q k v pre pre_linear",
    **{f"{a}_input": a for a in "qkv"},
    **{a: f"{a}_normed rot_{a} attn_scores" for a in "qk"},
    **{f"{a}_normed": f"rot_{a} attn_scores" for a in "qk"},
    **{f"rot_{a}": "attn_scores" for a in "qk"},
    "attn_scores": "pattern",
    "pattern": "z",
    "v": "z",
    "z": "result ln1_post.scale ln1_post.normalized ln1_post.out attn_out",
    "result": "ln1_post.scale ln1_post.normalized ln1_post.out attn_out",
    "attn_out": "resid_mid resid_post",
    "resid_mid": "mlp_in resid_post",
    "mlp_in": "ln2.scale ln2.normalized ln2.out pre pre_linear",
    "ln2.scale": "ln2.normalized",
    "ln2.normalized": "ln2.out",
    "ln2.out": "pre pre_linear",
    "pre": "post",
    "pre_linear": "post",
    "post": "ln2_post.scale ln2_post.normalized ln2_post.out mlp_out",
    **{f"{n}.scale": f"{n}.normalized" for n in ("ln1_post", "ln2_post")},
    **{f"{n}.normalized": f"{n}.out" for n in ("ln1_post", "ln2_post")},
    "ln1_post.out": "attn_out",
    "ln2_post.out": "mlp_out",
    "mlp_out": "resid_post",
}
"""What reads a site within a block, by names without "hook_"; sites that a model lacks are passed over."""


def _plain(site: Site) -> str:
    return site.name.replace("hook_", "").removeprefix("blocks.L.").removeprefix("attn.").removeprefix("mlp.")


def _reached(model: Model, site: str, held: set[str]) -> set[str]:
    """What of a block hears a change of one of its sites where these are held."""
    config = model.config
    absent = _SERIAL_ONLY if config.parallel_attn_mlp else _PARALLEL_ONLY
    absent = absent if config.parallel_attn_mlp and config.shared_norm else absent | _SHARED_ONLY
    found: set[str] = set()
    new = [site]
    while new:
        at = new.pop()
        for reader in _READERS.get(at, "").split():
            if (at, reader) not in absent and reader not in held | found:
                found.add(reader)
                new.append(reader)
    return found


def _receivers(model: Model, given: Receiver | Iterable[Receiver]) -> list[tuple[Site, int, int | None]]:
    """(site, layer, head or None) of every receiver."""
    single = isinstance(given, str) or (isinstance(given, tuple) and len(given) > 0 and isinstance(given[0], str))
    out: list[tuple[Site, int, int | None]] = []
    if not isinstance(given, Iterable):
        raise SiteError(f"receivers = {given!r}: give a site, (site, layer) or (site, layer, head), or a list of them")
    for item in [given] if single else list(given):
        parts: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)
        if not 1 <= len(parts) <= 3 or not isinstance(parts[0], str):
            raise SiteError(f"receiver {item!r}: give a site, (site, layer) or (site, layer, head)")
        name = parts[0] if len(parts) == 1 else (parts[0], parts[1])
        if len(parts) == 1 and (match := re.fullmatch(r"(.+)\.(-?\d+)\.(-?\d+)", parts[0])):
            own = (match[1], int(match[2]), int(match[3]))
            raise SiteError(f"receiver {item!r}: one head of a site is named {own!r}")
        for site, layer in model.sites().resolve([name]):
            if site is LOGITS:
                raise SiteError(f"receiver {item!r}: the metric reads the logits; name a site before them")
            head = None
            if len(parts) == 3:
                if not {"head", "kv_head"} & set(site.axes):
                    raise SiteError(f"receiver {item!r}: {site.name} has no heads")
                n = model.config.n_heads if "head" in site.axes else model.config.n_key_value_heads
                head = choose("head", [parts[2]], n, site.name)[0]
            out.append((site, layer, head))
    if not out:
        raise ConfigError("receivers is empty: there is no path to patch")
    return out


def _own_rows(array: Array, axis: int, examples: Ints, starts: Ints, longest: int) -> Array:
    """Rows from each sequence's start on, padded: [sequence, longest, …], or [sequence, head, longest, …]."""
    pos = np.minimum(starts[:, None] + np.arange(longest), array.shape[axis] - 1)
    if axis == 1:
        return np.ascontiguousarray(array[examples[:, None], pos])
    rows = np.arange(array.shape[1])[None, :, None]
    return np.ascontiguousarray(array[examples[:, None, None], rows, pos[:, None, :]])


def _set_rows(site: Site, layer: int, values: Array, head: int | None) -> CoreEdit:
    """Sets every computed row of a site; values as `_own_rows` gives them, or a capture of such a run."""
    source = Source(site, values)
    offset = (head or 0) * source.strides[2]
    heads = None if head is None else np.array([head], np.int32)
    flat = source.array.reshape(-1)[offset:]
    return (site.index, layer, 0, None, None, heads, None, flat, source.strides, -1)


def path_patch(
    model: Model,
    clean: Any,
    corrupted: Any,
    sender: SiteName = "z",
    receivers: Receiver | Iterable[Receiver] = "resid_post.-1",
    over: Sequence[Literal["layer", "pos", "head"]] | str = ("layer", "head"),
    metric: Metric | Callable[[Array], ArrayLike] | None = None,
    direction: Literal["denoise", "noise"] = "denoise",
    *,
    through_mlps: bool = False,
    layers: Iterable[int] | slice | None = None,
    positions: Iterable[int] | slice | None = None,
    heads: Iterable[int] | slice | None = None,
    keep_batch: bool = False,
) -> Sweep:
    """Path patching: see :meth:`clew.Model.path_patch`."""
    check_flags(through_mlps=through_mlps, keep_batch=keep_batch)
    kind, layers = find_kind(model, sender, layers)
    axes = swept_axes(kind, over, ("layer", "pos", "head"))
    check_chosen(axes, pos=positions, head=heads)
    if not kind.layered:
        raise ConfigError(f"sender {kind.name}: a sender belongs to a layer")
    check_choice(("denoise", "noise"), direction=direction)
    senders = choose("layer", layers, model.config.n_layers, kind.name)
    if "layer" not in axes and len(senders) != 1:
        raise ConfigError(f'over = {list(axes)}: without "layer", layers= must name the sender\'s one layer')
    measure = as_metric(metric, model)
    ends = _receivers(model, receivers)
    first, second = same_prompts(model, clean, corrupted)
    into, from_batch = (second, first) if direction == "denoise" else (first, second)
    n_layers = model.config.n_layers
    where = {
        "layer": senders,
        "pos": choose_positions(positions, into.lengths, kind.name),
        "head": choose("head", heads, kind.length(model, "head"), kind.name) if "head" in axes else [],
    }
    frozen = [_Z, *([] if through_mlps or model.config.attn_only else [_MLP_OUT])]
    # the branch that a sender is part of speaks for it: its own output is not held (no other head of it would change)
    speaks = set() if kind.short.startswith("resid") else _reached(model, _plain(kind), {"resid_mid"})
    others = [s for s in frozen if s is kind or _plain(s) not in speaks]
    names = {_plain(s) for s in frozen}
    in_block = {_plain(kind)} | _reached(model, _plain(kind), {_plain(s) for s in others})
    in_later = {"resid_pre"} | _reached(model, "resid_pre", names)

    def hears(site: Site, layer: int, sender: int) -> bool:
        if not site.layered:
            return site.index > kind.index
        return layer >= sender and _plain(site) in (in_block if layer == sender else in_later)

    if not any(hears(s, n, layer) for s, n, _ in ends for layer in where["layer"]):
        said = ", ".join(s.full_name(n) for s, n, _ in ends[:4]) + (", …" if len(ends) > 4 else "")
        raise ConfigError(
            f"nothing that {kind.name} of layer {', '.join(map(str, where['layer']))} sends reaches {said}: receivers "
            f"lie behind a sender, and every later {' and '.join(s.name for s in frozen)} is held"
        )
    held = [(s, layer) for s in frozen for layer in range(min(where["layer"]), n_layers)]
    logits = LOGITS_LOSS if measure.wants_loss else LOGITS_LAST
    base, source = Base.pair(model, into, from_batch, [*held, *((kind, layer) for layer in where["layer"])], logits)
    sources = {layer: Source(kind, source.site(kind, layer)) for layer in where["layer"]}
    everyone = np.arange(len(base.lengths), dtype=np.int32)
    unpatched, reference = baseline(base, measure), baseline(source, measure)
    differs = first_difference(base, source) if base.causal else base.lengths * 0
    variants = [dict(zip(axes, at, strict=True)) for at in itertools.product(*(where[a] for a in axes))]
    out = np.broadcast_to(unpatched, (len(variants), len(everyone))).copy()
    for layer in where["layer"]:
        later = [(s, n, h) for s, n, h in ends if hears(s, n, layer)]
        members = [i for i, v in enumerate(variants) if v.get("layer", where["layer"][0]) == layer]
        if not later:
            continue  # nothing of the sender reaches them
        at = {i: own_positions(variants[i].get("pos"), base.lengths) for i in members}
        starts = {i: variant_starts(base, differs, at[i]) for i in members}
        rows = np.array([int((base.lengths - starts[i]).sum()) if i in starts else 0 for i in range(len(variants))])
        for chunk in chunks([i for i in members if rows[i]], rows):
            examples = [np.flatnonzero(starts[i] < base.lengths).astype(np.int32) for i in chunk]
            which = np.concatenate(examples)
            begin = np.concatenate([starts[i][e] for i, e in zip(chunk, examples, strict=True)])
            longest = int((base.lengths[which] - begin).max())
            edits = [
                _set_rows(s, n, _own_rows(base.site(s, n), 1, which, begin, longest), None)
                for s in frozen
                for n in range(layer if s in others else layer + 1, n_layers)
            ]
            n = 0
            for i, own in zip(chunk, examples, strict=True):
                sequences = np.arange(n, n + len(own), dtype=np.int32)
                pos = at[i]
                pos = None if pos is None else pos[own]
                edits.append(sources[layer].edit(layer, sequences, own, pos, variants[i].get("head")))
                n += len(own)
            capture = sorted({(s.index, n) for s, n, _ in later})
            heard = base.replay(which, begin, layer, edits, [(SITES[i], n) for i, n in capture], logits=0)
            told = []
            for s, n, head in later:
                held_layers, array = heard[s]
                told.append(_set_rows(s, n, array[held_layers.index(n)] if s.layered else array, head))
            start = min((n for s, n, _ in later if s.layered), default=n_layers - 1)
            values = base.measure(measure, which, begin, start, told)
            out[np.repeat(chunk, [len(e) for e in examples]), which] = values
    values = out.reshape(*(len(where[a]) for a in axes), -1)
    labels = tuple(tuple(axis_labels(model, base, a, where[a])) for a in axes)
    listen = [f"{_plain(s)}.{n}" + ("" if h is None else f" head {h}") for s, n, h in ends]
    to = ", ".join(listen[:2]) + (f" and {len(listen) - 2} more" if len(listen) > 2 else "")
    return Sweep(values, axes, labels, unpatched, reference, kind.name, measure.said(model), keep_batch, to)
