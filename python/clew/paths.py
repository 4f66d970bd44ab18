"""Path patching: what one part of the model says to another directly, with everything between them held still."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, SiteError
from .inputs import check_choice
from .metrics import Metric, as_metric
from .replay import Base, CoreEdit, Ints, Source
from .sites import LOGITS, SITES, Site, SiteName
from .sweep import Sweep, axis_labels, choose, chunks, find_kind, first_difference, same_prompts, swept_axes

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[Any]
Receiver = str | tuple[str, int] | tuple[str, int, int]

_Z = next(s for s in SITES if s.short == "z")
_MLP_OUT = next(s for s in SITES if s.short == "mlp_out")


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
    kind, layers = find_kind(model, sender, layers)
    axes = swept_axes(kind, over, ("layer", "pos", "head"))
    if not kind.layered:
        raise ConfigError(f"sender {kind.name}: a sender belongs to a layer")
    check_choice(("denoise", "noise"), direction=direction)
    senders = choose("layer", layers, model.config.n_layers, kind.name)
    if "layer" not in axes and len(senders) != 1:
        raise ConfigError(f'over = {list(axes)}: without "layer", layers= must name the sender\'s one layer')
    measure = as_metric(metric, model)
    if measure.wants_loss:
        raise ConfigError("path patching measures the last position's logits; loss is read off all positions")
    ends = _receivers(model, receivers)
    first, second = same_prompts(model, clean, corrupted)
    into, from_batch = (second, first) if direction == "denoise" else (first, second)
    n_layers = model.config.n_layers
    where = {
        "layer": senders,
        "pos": choose("position", positions, int(into.lengths.max()), kind.name),
        "head": choose("head", heads, kind.length(model, "head"), kind.name) if "head" in axes else [],
    }
    for name, given in (("pos", positions), ("head", heads)):
        if given is not None and name not in axes:
            raise ConfigError(
                f"{'positions' if name == 'pos' else name + 's'} are chosen, but the sweep is over {list(axes)}"
            )
    frozen = [_Z, *([] if through_mlps or model.config.attn_only else [_MLP_OUT])]
    held = [(s, layer) for s in frozen for layer in range(min(where["layer"]), n_layers)]
    base, source = Base.pair(model, into, from_batch, [*held, *((kind, layer) for layer in where["layer"])])
    sources = {layer: Source(kind, source.site(kind, layer)) for layer in where["layer"]}
    everyone = np.arange(len(base.lengths), dtype=np.int32)
    measure.check_batch(len(everyone))
    baseline, reference = measure(base.output, everyone), measure(source.output, everyone)
    differs = first_difference(base, source.tokens) if base.causal else base.lengths * 0
    variants = [dict(zip(axes, at, strict=True)) for at in itertools.product(*(where[a] for a in axes))]
    out = np.broadcast_to(baseline, (len(variants), len(everyone))).copy()
    for layer in where["layer"]:
        later = [(s, n, h) for s, n, h in ends if n > layer or (n == layer and s.index > kind.index) or not s.layered]
        members = [i for i, v in enumerate(variants) if v.get("layer", where["layer"][0]) == layer]
        if not later:
            continue  # nothing of the sender reaches them
        starts = {i: _starts(base, differs, variants[i].get("pos")) for i in members}
        rows = np.array([int((base.lengths - starts[i]).sum()) if i in starts else 0 for i in range(len(variants))])
        for chunk in chunks([i for i in members if rows[i]], rows):
            examples = [np.flatnonzero(starts[i] < base.lengths).astype(np.int32) for i in chunk]
            which = np.concatenate(examples)
            begin = np.concatenate([starts[i][e] for i, e in zip(chunk, examples, strict=True)])
            longest = int((base.lengths[which] - begin).max())
            edits = [
                _set_rows(s, n, _own_rows(base.site(s, n), 1, which, begin, longest), None)
                for s in frozen
                for n in range(layer, n_layers)
            ]
            n = 0
            for i, own in zip(chunk, examples, strict=True):
                sequences = np.arange(n, n + len(own), dtype=np.int32)
                edits.append(
                    sources[layer].edit(layer, sequences, own, variants[i].get("pos"), variants[i].get("head"))
                )
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
    return Sweep(values, axes, labels, baseline, reference, kind.name, measure.name, keep_batch)


def _starts(base: Base, differs: Ints, pos: int | None) -> Ints:
    """[batch] where a variant begins; a prompt's length where nothing changes."""
    if pos is None:
        return differs
    nothing = (pos >= base.lengths) | ((pos < differs) if base.causal else False)
    return np.asarray(np.where(nothing, base.lengths, pos if base.causal else 0), np.int32)
