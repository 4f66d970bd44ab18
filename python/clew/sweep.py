"""Patch sweeps: many interventions on one prompt, batched, with everything shared computed once."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError, SiteError
from .inputs import as_array, check_choice, check_counts, check_flags, check_seed, sliced
from .metrics import Metric, as_metric
from .replay import LOGITS_LAST, LOGITS_LOSS, Base, CoreEdit, Ints, Source, own_positions
from .sites import SITES, Site, SiteName, pair_name

if TYPE_CHECKING:
    from .edit import Edit
    from .model import Model

Array = NDArray[Any]
Axis = Literal["layer", "pos", "head", "neuron"]

_MOST_ROWS = 4096  # of one run: enough for products at full speed, little enough to stay small in memory
_RESID_POST = next(s for s in SITES if s.short == "resid_post")
_RESID_PRE = next(s for s in SITES if s.short == "resid_pre")


@dataclass(frozen=True)
class Sweep:
    """What a sweep measured: the metric of every variant, with the axes' labels.

    Attributes
    ----------
    per_example
        Metric of every variant and example, float64 [*axes, batch].
    values
        Its mean over examples [*axes]; with `keep_batch=True` the same as `per_example`.
    axes, labels
        Names of the axes, and for each one what its entries are (layer numbers, tokens, heads).
    baseline, reference
        Metric [batch] of the run that values go into, and of the run that they come from.
    """

    per_example: Array
    axes: tuple[str, ...]
    labels: tuple[tuple[Any, ...], ...]
    baseline: Array
    reference: Array | None
    site: str
    metric: str
    keep_batch: bool = field(default=False, repr=False)
    receivers: str = ""
    """Of path patching: who listens."""

    @property
    def values(self) -> Array:
        """Metric [*axes], averaged over examples; [*axes, batch] with keep_batch."""
        return self.per_example if self.keep_batch else np.asarray(self.per_example.mean(axis=-1))

    @property
    def effect(self) -> Array:
        """Difference from the unpatched run, averaged over examples [*axes]."""
        return np.asarray((self.per_example - self.baseline).mean(axis=-1))

    @property
    def recovered(self) -> Array:
        """Share of the way from baseline to reference, of the means over examples [*axes].

        NaN, with a warning, where the two give the metric the same value: there is nothing to recover.

        Raises ConfigError for sweeps that have no reference run.
        """
        if self.reference is None:
            raise ConfigError("this sweep has no reference run: its variants are edits, not values of another run")
        gap = self.reference.mean() - self.baseline.mean()
        if gap == 0:
            warnings.warn(f"clean and corrupted give the same {self.metric}: nothing to recover, NaN", stacklevel=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.effect / np.where(gap == 0, np.nan, gap))

    def interval(self, level: float = 0.95, n: int = 1000, seed: int = 0) -> Array:
        """Percentile bootstrap interval of the mean over examples [2, *axes].

        Examples are drawn with replacement `n` times; one example gives an interval of length 0.

        Raises ConfigError for a level outside (0, 1), n < 1 or no seed.
        """
        check_counts(**{"interval: n": n})
        if not isinstance(level, float | np.floating) or not 0 < level < 1:
            raise ConfigError(f"interval: level {level!r} must lie in (0, 1)")
        batch = self.per_example.shape[-1]
        draws = np.random.default_rng(check_seed(seed)).integers(0, batch, (n, batch))
        counts = np.zeros((n, batch))
        np.add.at(counts, (np.arange(n)[:, None], draws), 1 / batch)
        means = self.per_example.reshape(-1, batch) @ counts.T
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=-1)
        return np.stack([low, high]).reshape(2, *self.per_example.shape[:-1])

    def __repr__(self) -> str:
        shape = " × ".join(f"{n} {a}" for n, a in zip(self.per_example.shape, self.axes, strict=False))
        batch = self.per_example.shape[-1]
        to = f" to {self.receivers}" if self.receivers else ""
        return f"Sweep of {self.site}{to} over {shape}, {self.metric}, {batch} example{'s' if batch != 1 else ''}"


# ---- Variants -------------------------------------------------------------------------------------------------------


@dataclass
class _Variant:
    """One entry of the result: where it begins and what it changes."""

    layer: int
    """First block that is computed, −1 the embedding."""
    starts: Ints
    """[batch] first position that changes; a prompt's length: nothing does."""
    make: Callable[[Ints, Ints], list[CoreEdit]]
    """(sequences, examples) → edits"""
    calls: Sequence[Callable[..., Any]] = ()
    """Functions that its edits call: then it runs alone."""


def chunks(order: Sequence[int], rows: NDArray[np.int64]) -> Iterator[list[int]]:
    """Variants that go into one run."""
    chunk: list[int] = []
    total = 0
    for i in order:
        if chunk and total + rows[i] > _MOST_ROWS:
            yield chunk
            chunk, total = [], 0
        chunk.append(i)
        total += int(rows[i])
    if chunk:
        yield chunk


def _measure(base: Base, variants: Sequence[_Variant], metric: Metric, baseline: Array) -> Array:
    """The metric of every variant [variant, batch].

    Variants that begin at different blocks run together: those that begin later join those that have come there, so
    that products have many rows. Where edits hold, or functions are called, each block's variants run alone.
    """
    out: Array = np.broadcast_to(baseline, (len(variants), len(baseline))).copy()
    rows = np.array([int((base.lengths - v.starts).sum()) for v in variants], np.int64)
    groups: dict[tuple[int, int], list[int]] = {}
    for i in sorted(range(len(variants)), key=lambda i: variants[i].layer):
        v = variants[i]
        if rows[i]:
            together = v.layer >= 0 and not v.calls and not base.edited
            groups.setdefault((0 if together else v.layer, i if v.calls else -1), []).append(i)
    for members in groups.values():
        for chunk in chunks(members, rows):
            examples: list[Ints] = []
            core: list[CoreEdit] = []
            n = 0
            for i in chunk:
                v = variants[i]
                own = np.flatnonzero(v.starts < base.lengths).astype(np.int32)
                core += v.make(np.arange(n, n + len(own), dtype=np.int32), own)
                examples.append(own)
                n += len(own)
            sizes = [len(e) for e in examples]
            which = np.concatenate(examples)
            starts = np.concatenate([variants[i].starts[e] for i, e in zip(chunk, examples, strict=True)])
            layer, begun, core = _joined(
                base, which, starts, np.repeat([variants[i].layer for i in chunk], sizes), core
            )
            calls = variants[chunk[0]].calls
            out[np.repeat(chunk, sizes), which] = base.measure(metric, which, starts, layer, core, calls, begun)
    return out


def _joined(
    base: Base, which: Ints, starts: Ints, layers: NDArray[np.int64], core: list[CoreEdit]
) -> tuple[int, Array | None, list[CoreEdit]]:
    """Brings variants, in the order of the blocks where they begin, to the block where the last of them do: that block,
    the stream that enters it of those that began before, and the edits that are left.
    """
    begun: Array | None = None
    joins = sorted({int(layer) for layer in layers})
    for here, there in pairwise(joins):
        n = int(np.searchsorted(layers, here, "right"))
        now = [e for e in core if SITES[e[0]].layered and here <= e[1] < there]
        begun = base.advance(which[:n], starts[:n], (here, there), now, begun)
    return joins[-1], begun, [e for e in core if not SITES[e[0]].layered or e[1] >= joins[-1]]


def baseline(base: Base, metric: Metric) -> Array:
    """The metric of the base itself [batch]."""
    metric.check_batch(len(base.lengths))
    everyone = np.arange(len(base.lengths), dtype=np.int32)
    if metric.wants_loss:
        return base.mean_loss(everyone, base.lengths, np.zeros((len(everyone), 0)))
    return metric(base.output, everyone)


# ---- Activation patching --------------------------------------------------------------------------------------------


def choose(what: str, given: Iterable[int] | slice | None, n: int, site: str) -> list[int]:
    """Indices along one axis, negative ones counted from its end."""
    if given is None:
        return list(range(n))
    if isinstance(given, slice):
        array = sliced(given, n, f"{what}s of {site}")
    else:
        listed = isinstance(given, Iterable) and not isinstance(given, str | np.ndarray)
        entries = list(given) if listed else given
        array = np.atleast_1d(as_array(entries, f"{what}s of {site}"))
    if array.ndim > 1 or (array.size and array.dtype.kind not in "iu"):
        raise ShapeError(f"{what}s of {site} must be integers, not {array.dtype} {list(array.shape)}")
    chosen = [int(i) for i in array.ravel()]
    for i in chosen:
        if not -n <= i < n:
            raise ShapeError(f"{what} {i} of {site}: there are {n}")
    if not chosen:
        raise ConfigError(f"{what}s is empty: the sweep has no variants")
    return [i % n for i in chosen]


def choose_positions(given: Iterable[int] | slice | None, lengths: Ints, site: str) -> list[int]:
    """Positions of prompts; of prompts of different lengths negative ones stay, each counts them from its own end.

    Raises ShapeError for what the longest prompt does not have, and for slices that mean others in other prompts.
    """
    longest = int(lengths.max())
    if (lengths == longest).all() or given is None:
        return choose("position", given, longest, site)
    if isinstance(given, slice):
        if any(isinstance(end, int) and end < 0 for end in (given.start, given.stop)):
            raise ShapeError(
                f"positions = {given} of {site}, for prompts of {lengths.tolist()} tokens: list them, negative ones "
                "count from each prompt's own end"
            )
        return choose("position", given, longest, site)
    entries = given if isinstance(given, np.ndarray) else list(given)
    chosen = choose("position", entries, longest, site)
    asked = np.atleast_1d(np.asarray(entries)).ravel()
    return [at - longest if negative else at for at, negative in zip(chosen, asked < 0, strict=True)]


def axis_labels(model: Model, base: Base, axis: str, entries: list[int]) -> list[Any]:
    """What an axis' entries are: numbers, and for positions of one text its tokens."""
    if axis != "pos" or len(base.lengths) > 1 or base.inputs.ndim > 1:
        return list(entries)
    if model._labeller is None:
        return [int(base.inputs[i]) for i in entries]
    return model.to_str_tokens(base.inputs[entries])


def find_kind(model: Model, name: SiteName, layers: Iterable[int] | slice | None) -> tuple[Site, Any]:
    """The kind of site that a name means, and the layers: those of the name where it names some, else `layers`."""
    pairs = model.sites().find(pair_name(name))
    found = {s for s, _ in pairs}
    if len(found) > 1:
        raise SiteError(f"{name!r} means {', '.join(s.name for s in found)}: a sweep is over one kind of site")
    kind = found.pop()
    own = [layer for _, layer in pairs]
    if not kind.layered and layers is not None:
        raise ConfigError(f"layers are chosen, but {kind.name} has none")
    if not kind.layered or len(own) == model.config.n_layers:
        return kind, layers
    if layers is not None:
        raise ConfigError(f"layers are chosen, but {name!r} names layer {', '.join(map(str, own))} itself")
    return kind, own


def swept_axes(
    kind: Site, over: Sequence[str] | str, offered: Sequence[str] = ("layer", "pos", "head", "neuron")
) -> tuple[str, ...]:
    """The axes of a sweep, checked against those that the site has."""
    if not isinstance(over, Iterable):
        raise ConfigError(f"over = {over!r}: expected a list of axes, such as ('layer', 'pos')")
    axes: tuple[str, ...] = (over,) if isinstance(over, str) else tuple(over)
    heads, last = bool({"head", "kv_head"} & set(kind.axes)), kind.axes[-1] != "1"
    present = {"pos": True, "layer": kind.layered, "head": heads, "neuron": last}
    allowed = [a for a in offered if present[a]]
    for a in axes:
        if a not in allowed:
            raise ConfigError(f"over = {list(axes)}: {kind.name} can be swept over {allowed}, not {a!r}")
    if not axes or len(set(axes)) != len(axes):
        raise ConfigError(f"over = {list(axes)}: name each axis once, at least one")
    return axes


def check_chosen(axes: Sequence[str], /, **given: Any) -> None:
    """Raises ConfigError where entries of an axis are chosen that is not swept."""
    for name, entries in given.items():
        if entries is not None and name not in axes:
            said = "positions" if name == "pos" else f"{name}s"
            raise ConfigError(f"{said} are chosen, but the sweep is over {list(axes)}")


def same_prompts(model: Model, clean: Any, corrupted: Any) -> tuple[Any, Any]:
    a, b = model._batch(clean, None, None), model._batch(corrupted, None, None)
    if len(a.lengths) != len(b.lengths) or (a.lengths != b.lengths).any():
        raise ShapeError(
            f"clean prompts have {a.lengths.tolist()} tokens, corrupted ones {b.lengths.tolist()}: "
            "values move from position to position, so the lengths must be the same"
        )
    return a, b


def first_difference(base: Base, source: Base) -> Ints:
    """[batch] first position where the prompts differ; the length where they do not."""
    out = base.lengths.copy()
    unlike = base.inputs != source.inputs
    if unlike.ndim > 1:  # vectors
        unlike = unlike.any(axis=1)
    for i, (at, n) in enumerate(zip(base.first, base.lengths, strict=True)):
        differs = np.flatnonzero(unlike[at : at + n])
        out[i] = differs[0] if differs.size else n
    return np.asarray(out, np.int32)


def variant_starts(base: Base, differs: Ints, pos: Ints | None) -> Ints:
    """[batch] where a variant begins; a prompt's length where nothing changes. pos: `own_positions`"""
    if pos is None:
        return differs
    nothing = (pos < 0) | ((pos < differs) if base.causal else False)
    return np.asarray(np.where(nothing, base.lengths, pos if base.causal else 0), np.int32)


def sweep(
    model: Model,
    clean: Any,
    corrupted: Any,
    site: SiteName = "resid_pre",
    over: Sequence[Axis] | Axis = ("layer", "pos"),
    metric: Metric | Callable[[Array], ArrayLike] | None = None,
    direction: Literal["denoise", "noise"] = "denoise",
    *,
    layers: Iterable[int] | slice | None = None,
    positions: Iterable[int] | slice | None = None,
    heads: Iterable[int] | slice | None = None,
    neurons: Iterable[int] | slice | None = None,
    keep_batch: bool = False,
    method: Literal["patch", "attribution"] = "patch",
) -> Sweep:
    """Activation patching (Vig et al. 2020; Meng et al. 2022): see :meth:`clew.Model.sweep`."""
    check_choice(("patch", "attribution"), method=method)
    check_flags(keep_batch=keep_batch)
    kind, layers = find_kind(model, site, layers)
    axes = swept_axes(kind, over)
    check_chosen(axes, pos=positions, head=heads, neuron=neurons)
    check_choice(("denoise", "noise"), direction=direction)
    measure = as_metric(metric, model, with_gradient=method == "attribution")
    first, second = same_prompts(model, clean, corrupted)
    into, source_batch = (second, first) if direction == "denoise" else (first, second)
    n_layers = model.config.n_layers
    all_layers = choose("layer", layers, n_layers, kind.name) if kind.layered else [0]
    logits = LOGITS_LOSS if measure.wants_loss else LOGITS_LAST
    base, source = Base.pair(model, into, source_batch, [(kind, layer) for layer in all_layers], logits)
    unpatched, reference = baseline(base, measure), baseline(source, measure)
    sources = {layer: Source(kind, source.site(kind, layer)) for layer in all_layers}
    entries: dict[str, list[int]] = {
        "layer": all_layers,
        "pos": choose_positions(positions, base.lengths, kind.name),
        "head": choose("head", heads, kind.length(model, "head"), kind.name) if "head" in axes else [],
        "neuron": choose("neuron", neurons, sources[all_layers[0]].width, kind.name) if "neuron" in axes else [],
    }
    if method == "attribution":
        estimate = _attribution(model, into, base, source, kind, axes, entries, measure)
        values = estimate + unpatched
        labels = tuple(tuple(axis_labels(model, base, a, entries[a])) for a in axes)
        return Sweep(
            values, axes, labels, unpatched, reference, kind.name, f"{measure.said(model)} (estimated)", keep_batch
        )
    differs = first_difference(base, source) if base.causal else base.lengths * 0

    def variant(**at: int) -> _Variant:
        pos = own_positions(at.get("pos"), base.lengths)
        changed = [at["layer"]] if "layer" in at else all_layers
        moved = kind is _RESID_POST and changed[0] + 1 < n_layers and len(changed) == 1
        moved = moved and not base.is_edited(_RESID_PRE, changed[0] + 1)  # which comes between
        where = _RESID_PRE if moved else kind

        def make(sequences: Ints, examples: Ints) -> list[CoreEdit]:
            out = []
            own = None if pos is None else pos[examples]
            for layer in changed:
                one = sources[layer].edit(layer + moved, sequences, examples, own, at.get("head"), at.get("neuron"))
                out.append((where.index, *one[1:]))
            return out

        start = changed[0] + moved if kind.layered else n_layers - 1 if kind.index > _RESID_POST.index else -1
        return _Variant(start, variant_starts(base, differs, pos), make)

    product = itertools.product(*(entries[a] for a in axes))
    variants = [variant(**dict(zip(axes, at, strict=True))) for at in product]
    shape = tuple(len(entries[a]) for a in axes)
    values = _measure(base, variants, measure, unpatched).reshape(*shape, -1)
    labels = tuple(tuple(axis_labels(model, base, a, entries[a])) for a in axes)
    return Sweep(values, axes, labels, unpatched, reference, kind.name, measure.said(model), keep_batch)


def _attribution(
    model: Model,
    into: Any,
    base: Base,
    source: Base,
    kind: Site,
    axes: tuple[str, ...],
    entries: dict[str, list[int]],
    metric: Metric,
) -> Array:
    """First-order estimate of every variant's effect [*axes, batch]: gradient at the base times the difference.

    One run each and one backward pass, whatever the number of variants (Nanda 2023).
    """
    from .gradients import gradients

    prompts = np.split(base.inputs, np.cumsum(into.lengths)[:-1])
    layers = entries["layer"] or [0]
    names = [kind.full_name(layer) for layer in layers]
    slopes = gradients(model, prompts, metric, names, (), None)
    parts = []
    for layer, name in zip(layers, names, strict=True):
        new, old = source.site(kind, layer), base.site(kind, layer)
        with np.errstate(invalid="ignore"):
            change = np.where(np.isneginf(new) & np.isneginf(old), 0, new - old)
        slope = slopes[name].astype(np.float64)
        if slope.shape != change.shape:  # logits, of which the metric reads the last
            ends, last = (np.arange(len(change)), base.lengths - 1), slope[:, 0]
            slope = np.zeros(change.shape)
            slope[ends] = last
        parts.append(slope * change)
    product = np.stack(parts)
    if metric.wants_loss:  # the gradient is of the mean over the batch's tokens; an example's own mean is asked for
        weight = (base.lengths - 1).sum() / np.maximum(base.lengths - 1, 1)
        product *= weight.reshape(1, -1, *[1] * (product.ndim - 2))
    place = {"layer": 0, "pos": 1 + kind.axes.index("pos"), "neuron": product.ndim - 1}
    for i, a in enumerate(kind.axes):
        if a in ("head", "kv_head"):
            place["head"] = 1 + i
    batch = 1
    kept = [place[a] for a in axes]
    product = product.sum(axis=tuple(i for i in range(product.ndim) if i not in (*kept, batch)), keepdims=True)
    product = product.transpose(*kept, batch, *(i for i in range(product.ndim) if i not in (*kept, batch)))
    product = product.reshape(product.shape[: len(axes) + 1])
    for i, a in enumerate(axes):
        if a == "pos":  # each prompt's own, nothing where it has none
            at = np.stack([np.asarray(own_positions(p, base.lengths)) for p in entries[a]])
            at = at.reshape(*(len(at) if axis == i else 1 for axis in range(len(axes))), -1)
            product = np.where(at < 0, 0, np.take_along_axis(product, np.maximum(at, 0), axis=i))
        elif a != "layer":
            product = product.take(entries[a], axis=i)
    return np.asarray(product)


# ---- Any list of edits ----------------------------------------------------------------------------------------------


def _edit_variant(model: Model, base: Base, edits: Edit | Iterable[Edit], metric: Metric) -> _Variant:
    from .edit import as_edits, check_before_last, check_last, resolve

    if edits is None:
        raise ConfigError("edits holds None: an entry is an edit or a list of them; [] changes nothing")
    core, calls = resolve(as_edits(edits), model, base.lengths, None, None)
    if metric.wants_loss:
        check_before_last(core, base.lengths)
    else:
        check_last(core, base.lengths, f"{metric} reads")
    n_layers = model.config.n_layers
    starts = base.lengths.copy()
    layer = n_layers - 1
    for index, at, _, batch, positions, *_ in core:
        examples = np.arange(len(starts)) if batch is None else batch
        first = 0 if positions is None or not base.causal else positions.min(axis=1)
        starts[examples] = np.minimum(starts[examples], first)
        site = SITES[index]
        layer = min(layer, at if site.layered else n_layers - 1 if index > _RESID_POST.index else -1)

    def make(sequences: Ints, examples: Ints) -> list[CoreEdit]:
        number = {int(e): int(s) for s, e in zip(sequences, examples, strict=True)}
        out = []
        for site, at, kind, batch, positions, heads, neurons, value, strides, call in core:
            chosen = range(len(base.lengths)) if batch is None else batch.tolist()
            members = np.array([number[e] for e in chosen], np.int32)
            out.append((site, at, kind, members, positions, heads, neurons, value, strides, call))
        return out

    if calls:  # a function is shown every sequence from its beginning
        starts[:] = 0
        return _Variant(layer, starts, lambda sequences, examples: list(core), calls)
    return _Variant(layer, starts, make)


def sweep_edits(
    model: Model,
    tokens: Any,
    variants: Iterable[Edit | Iterable[Edit]],
    metric: Metric | Callable[[Array], ArrayLike] | None,
    keep_batch: bool,
) -> Sweep:
    """One run for each list of edits: see :meth:`clew.Model.sweep`."""
    check_flags(keep_batch=keep_batch)
    measure = as_metric(metric, model)
    if not isinstance(variants, Iterable) or isinstance(variants, str):
        raise ConfigError(
            f"edits = {variants!r}: expected a list, an entry (an edit or a list of them) for each variant"
        )
    variants = list(variants)
    if not variants:
        raise ConfigError("edits is empty: the sweep has no variants")
    base = Base(model, model._batch(tokens, None, None), logits=LOGITS_LOSS if measure.wants_loss else LOGITS_LAST)
    unpatched = baseline(base, measure)
    made = [_edit_variant(model, base, v, measure) for v in variants]
    values = _measure(base, made, measure, unpatched)
    labels = (tuple(range(len(made))),)
    return Sweep(values, ("variant",), labels, unpatched, None, "edits", measure.said(model), keep_batch)
