"""Running variants of a run that is there already, without computing again what they share with it.

A variant differs from its base from some block and some position on. What lies before both is taken from the base: the
residual stream that enters the block, and the keys and values of earlier positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .edit import resolve, site_shape
from .errors import ConfigError, TokenError
from .inputs import Batch
from .sites import LOGITS, SITES, Site

if TYPE_CHECKING:
    from .metrics import Metric
    from .model import Model

Array = NDArray[Any]
Ints = NDArray[np.int32]
CoreEdit = tuple[Any, ...]
Kept = dict[Site, tuple[tuple[int, ...], Array]]
"""What a run gave: layers, and their arrays [layer, …], or an array where a site has no layers."""

LOGITS_NONE, LOGITS_LAST, LOGITS_ALL, LOGITS_LOSS = 0, 1, 2, 3
_RESID_PRE, _RESID_POST = (next(s for s in SITES if s.short == name) for name in ("resid_pre", "resid_post"))
_FRONT = min(s.index for s in SITES if s.layered)  # the embedding's sites lie before


def core_plan(
    model: Model,
    lengths: Ints,
    capture: Sequence[tuple[Site, int]],
    start: int,
    logits: int,
    embedded: bool,
    stop: int = -1,
    **more: Any,
) -> Any:
    """A plan of the core's for sites that are resolved already."""
    pairs = np.array([(s.index, layer) for s, layer in capture], np.int32).reshape(-1, 2)
    return _core.Plan(model._core, lengths, pairs, None, start, stop, embedded, logits, **more)


def stacks(outputs: list[tuple[int, tuple[int, ...], Array]]) -> Kept:
    """What a plan gave, by site."""
    return {SITES[i]: (layers, array) for i, layers, array in outputs}


def key_site(model: Model) -> Site:
    """The site whose values are the keys that scores are made of."""
    config = model.config
    name = "k_normed" if config.use_qk_norm else "k"
    if config.positional_embedding_type == "rotary" and config.rotary_dim > 0:
        name = "rot_k"
    return next(s for s in SITES if s.short == name)


def _gathered(value: Array, strides: tuple[int, ...], shape: tuple[int, ...], rows: Ints) -> tuple[Array, Any]:
    """An edit's value for these of its sequences; shape: lengths of its four axes, which a stride of 0 repeats."""
    sizes = [n if step else 1 for n, step in zip(shape, strides, strict=True)]
    steps = [step * value.itemsize for step in strides]
    chosen = np.lib.stride_tricks.as_strided(value, sizes, steps)
    taken = np.ascontiguousarray(chosen[rows] if strides[0] else chosen)
    own = [s // taken.itemsize if n > 1 else 0 for s, n in zip(taken.strides, taken.shape, strict=True)]
    return taken.reshape(-1), tuple(own)


def next_losses(logits: Array, targets: Array) -> Array:
    """Losses [sequence, pos] of logits [sequence, pos, vocab]; 0 where the target is negative, which means none.

    Raises TokenError for a target, the token behind the position, that has no logit.
    """
    outside = np.argwhere(targets >= logits.shape[-1])
    if outside.size:  # as the core says it, which computes losses of logits that are not edited
        i, j = outside[0]
        raise TokenError(
            f"token {int(targets[i, j])} at position {j + 1} of prompt {i} has no logit: there are {logits.shape[-1]}"
        )
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(x, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    losses = np.log(np.exp(x).sum(axis=-1)) - picked
    return np.where(targets >= 0, losses, 0).astype(logits.dtype)


def check_predicts(model: Model) -> None:
    """Raises ConfigError for a model that predicts no next token."""
    if model.config.d_in is not None or model.config.d_out is not None:
        raise ConfigError(
            f"loss: a model with d_in = {model.config.d_in}, d_out = {model.config.d_out} predicts no next token"
        )


def check_loss(model: Model, lengths: Ints) -> None:
    """Raises ConfigError for a model that predicts no next token, TokenError for a prompt that has none."""
    check_predicts(model)
    if (lengths < 2).any():
        raise TokenError(
            f"loss needs prompts of two tokens or more, not {lengths.tolist()}: the second is what the first predicts"
        )


class Base:
    """A run that variants start from: its residual stream, keys and values of every layer.

    Edits that hold (`model.edited`) hold in the run and in its variants. Raises ConfigError for those that call a
    function, and what `check_loss` raises where losses are asked for.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        capture: Sequence[tuple[Site, int]] = (),
        logits: int = LOGITS_LAST,
        kept: Kept | None = None,
    ):
        """logits: LAST, or LOSS for losses instead, whatever is captured.
        kept: what a run of these prompts gave, where there has been one.
        """
        self.model, self.lengths = model, batch.lengths
        self.inputs: Array = batch.vectors if batch.tokens is None else batch.tokens  # type: ignore[assignment]
        """Ids [Σ lengths] or vectors [Σ lengths, d_in]."""
        n_layers = model.config.n_layers
        if logits == LOGITS_LOSS:
            check_loss(model, batch.lengths)
        self._held, calls = resolve(model._active_edits(), model, batch.lengths, None, None)
        if calls:
            raise ConfigError("a sweep inside model.edited with edit.call: its variants run in parts, not whole")
        # losses of edited logits are read off all of them
        whole = (LOGITS, 0) in capture or (logits == LOGITS_LOSS and self.is_edited(LOGITS, 0))
        self.causal = model.config.attention_dir == "causal"
        k, v = key_site(model), next(s for s in SITES if s.short == "v")
        own = [(s, layer) for s in ((_RESID_PRE, k, v) if self.causal else (_RESID_PRE,)) for layer in range(n_layers)]
        if kept is None:
            pairs = sorted({(s.index, layer) for s, layer in [*own, *capture] if s is not LOGITS})
            sites = [(SITES[i], layer) for i, layer in pairs]
            mode = LOGITS_ALL if whole else logits
            plan = core_plan(model, batch.lengths, sites, -1, mode, False, edits=self._held)
            kept = stacks(plan.run(batch.tokens, batch.vectors))
        self.kept = kept
        self.first = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        """[batch] where each prompt's tokens begin"""
        if n_layers:
            self.resid = self.kept[_RESID_PRE][1]
            """[layer, batch, pos, d_model]"""
        self.cache = ([], []) if not (self.causal and n_layers) else tuple(list(self.kept[s][1]) for s in (k, v))
        everyone = np.arange(len(self.lengths), dtype=np.int32)
        self.output = self.kept[LOGITS][1]
        """Logits of the last positions [batch, 1, vocab], or losses [batch, pos − 1]."""
        if whole and logits == LOGITS_LOSS:
            self.output = self._losses(everyone, 0 * everyone, self.output)
        elif whole:
            self.output = self.output[everyone, self.lengths - 1][:, None]

    @classmethod
    def pair(
        cls, model: Model, into: Batch, source: Batch, capture: Sequence[tuple[Site, int]], logits: int = LOGITS_LAST
    ) -> tuple[Base, Base]:
        """Two bases of equally long prompts, in one run where no edits hold: its products have twice as many rows."""
        if model._active_edits():
            return cls(model, into, capture, logits), cls(model, source, capture, logits)
        lengths = np.concatenate([into.lengths, source.lengths])
        if into.tokens is None or source.tokens is None:
            rows = np.concatenate([into.vectors, source.vectors])
            both = cls(model, Batch(lengths, vectors=rows), capture, logits).kept
        else:
            both = cls(model, Batch(lengths, np.concatenate([into.tokens, source.tokens])), capture, logits).kept
        n = len(into.lengths)

        def part(half: slice) -> Kept:
            return {
                site: (layers, array[:, half] if site.layered else array[half])
                for site, (layers, array) in both.items()
            }

        return (
            cls(model, into, capture, logits, part(slice(None, n))),
            cls(model, source, capture, logits, part(slice(n, None))),
        )

    @property
    def edited(self) -> bool:
        """Do edits hold?"""
        return bool(self._held)

    def is_edited(self, site: Site, layer: int) -> bool:
        """Does an edit hold there?"""
        return any(e[:2] == (site.index, layer) for e in self._held)

    def _held_in(self, examples: Ints, layer: int) -> list[CoreEdit]:
        """Edits that hold, for a run of these examples from a block on, whose input has been edited already."""
        out = []
        for site, at, kind, batch, positions, heads, neurons, value, strides, call in self._held:
            what = SITES[site]
            if layer >= 0 and (at < layer or what is _RESID_PRE and at == layer if what.layered else site < _FRONT):
                continue
            chosen = np.arange(len(self.lengths)) if batch is None else batch
            number = np.full(len(self.lengths), -1)
            number[chosen] = np.arange(len(chosen))
            own = np.flatnonzero(number[examples] >= 0).astype(np.int32)
            rows = number[examples[own]]
            if not own.size:
                continue
            if positions is None and strides[1]:  # values count from the prompt's beginning, not the run's
                positions = np.broadcast_to(np.arange(int(self.lengths.max())), (len(chosen), int(self.lengths.max())))
            n_pos = 1 if positions is None else positions.shape[1]
            n_heads = what.length(self.model, "head") if heads is None else len(heads)
            width = site_shape(self.model, what, self.lengths)[-1] if neurons is None else len(neurons)
            assert value is not None  # of an edit that calls nothing
            placed, steps = _gathered(value, strides, (len(chosen), n_pos, n_heads, width), rows)
            where = None if positions is None else np.ascontiguousarray(positions[rows], np.int32)
            out.append((site, at, kind, own, where, heads, neurons, placed, steps, call))
        return out

    def site(self, site: Site, layer: int) -> Array:
        """A captured site's array."""
        layers, array = self.kept[site]
        return array[layers.index(layer)] if site.layered else array

    def replay(
        self,
        examples: Ints,
        starts: Ints,
        layer: int,
        edits: Sequence[CoreEdit],
        capture: Sequence[tuple[Site, int]] = (),
        logits: int = LOGITS_LAST,
        calls: Sequence[Callable[..., Any]] = (),
        read: tuple[Array | None, Array | None] = (None, None),
        begun: Array | None = None,
        stop: int = -1,
    ) -> Kept:
        """Runs variants: sequence i is example examples[i] from position starts[i] and block `layer` on.

        layer -1 begins with the embedding. Edits count positions as the whole prompt does. Captured arrays hold the
        computed positions only. read: what the metric that `logits` may stand for reads (`Metric.in_core`).
        begun: the stream [row, d_model] that enters block `layer` of the first sequences, which began before it; the
        others begin with the base's. stop: the last block, where logits are not asked for.
        """
        lengths = (self.lengths[examples] - starts).astype(np.int32)
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        pos = within + np.repeat(starts, lengths)
        seq = np.repeat(examples, lengths)
        inputs = np.ascontiguousarray(self.inputs[self.first[seq] + pos])
        tokens, embeddings = (inputs, None) if inputs.ndim == 1 else (None, inputs)
        if layer >= 0:
            n = 0 if begun is None else len(begun)
            embeddings = np.ascontiguousarray(self.resid[layer][seq[n:], pos[n:]])
            embeddings = embeddings if begun is None else np.concatenate([begun, embeddings])
        more: dict[str, Any] = {"edits": [*self._held_in(examples, layer), *edits]}
        if self.causal and starts.any():
            more |= {"past": starts, "past_seq": examples}
        plan = core_plan(self.model, lengths, capture, layer, logits, layer >= 0, stop, **more)
        cache = self.cache if "past" in more else None
        return stacks(plan.run(tokens, embeddings, list(calls), cache, *read))

    def measure(
        self,
        metric: Metric,
        examples: Ints,
        starts: Ints,
        layer: int,
        edits: Sequence[CoreEdit],
        calls: Sequence[Callable[..., Any]] = (),
        begun: Array | None = None,
    ) -> Array:
        """The metric of every variant [sequence]: read off in the core where it can be."""
        edited = any(SITES[e[0]] is LOGITS for e in (*edits, *self._held))
        if metric.wants_loss:
            mode = LOGITS_ALL if edited else LOGITS_LOSS
            given = self.replay(examples, starts, layer, edits, logits=mode, calls=calls, begun=begun)[LOGITS][1]
            return self.mean_loss(examples, starts, self._losses(examples, starts, given) if edited else given)
        told = None if edited else metric.in_core(examples)
        if told is None:
            kept = self.replay(examples, starts, layer, edits, calls=calls, begun=begun)
            return metric(kept[LOGITS][1], examples)
        number, picks, reference = told
        return self.replay(examples, starts, layer, edits, (), number, calls, (picks, reference), begun)[LOGITS][1]

    def mean_loss(self, examples: Ints, starts: Ints, losses: Array) -> Array:
        """Mean loss of each variant: the base's up to where it starts, its own from there. losses: [n, computed − 1]"""
        total = np.add.reduce(losses, axis=1, dtype=np.float64)
        before = np.arange(self.output.shape[1]) < starts[:, None]
        total += np.add.reduce(np.where(before, self.output[examples], 0), axis=1, dtype=np.float64)
        return np.asarray(total / (self.lengths[examples] - 1))

    def _losses(self, examples: Ints, starts: Ints, logits: Array) -> Array:
        """Losses [sequence, computed − 1] of the logits of all computed positions."""
        pos = starts[:, None] + 1 + np.arange(logits.shape[1] - 1)
        there = pos < self.lengths[examples][:, None]
        at = self.first[examples][:, None] + pos
        return next_losses(logits[:, :-1], np.where(there, self.inputs[np.where(there, at, 0)], -1))

    def advance(
        self, examples: Ints, starts: Ints, layers: tuple[int, int], edits: Sequence[CoreEdit], begun: Array | None
    ) -> Array:
        """The stream [row, d_model] that enters block layers[1] of variants that have come to block layers[0]."""
        begin, end = layers
        site = (_RESID_POST, end - 1)
        out = self.replay(examples, starts, begin, edits, [site], LOGITS_NONE, begun=begun, stop=end - 1)[_RESID_POST]
        lengths = self.lengths[examples] - starts
        return np.asarray(out[1][0][np.arange(int(lengths.max())) < lengths[:, None]])


class Source:
    """Values of a site that go into variants: one array [batch, pos, …] or [batch, head, pos, key] a layer."""

    def __init__(self, site: Site, array: Array) -> None:
        self.site = site
        self.array = np.ascontiguousarray(array)
        axes = [a if a not in ("kv_head",) else "head" for a in site.axes]
        step = dict(zip(axes, (s // array.itemsize for s in self.array.strides), strict=True))
        self.strides = (step["batch"], step["pos"], step.get("head", 0), 1 if axes[-1] != "1" else 0)
        self.width = array.shape[-1]

    def edit(
        self,
        layer: int,
        sequences: Ints,
        examples: Ints,
        pos: Ints | None = None,
        head: int | None = None,
        neuron: int | None = None,
    ) -> CoreEdit:
        """Sets the site of these sequences to these examples' values: all of it, or one position, head, neuron.

        pos: [example] the position of each.
        """
        array, strides = self.array, list(self.strides)
        offset = (head or 0) * strides[2] + (neuron or 0) * strides[3]
        axis = self.site.axes.index("pos")
        if pos is not None and (pos != pos[0]).any():  # each sequence's own: picked out
            array = np.ascontiguousarray(array[examples, pos] if axis == 1 else array[examples, :, pos])
            strides[0], strides[1] = array[0].size, 0
            if axis == 2:  # where a head's queries were, one is left
                strides[2] = array.shape[-1]
                offset = (head or 0) * strides[2] + (neuron or 0)
        else:
            if not np.array_equal(examples, np.arange(len(array))):
                array = np.ascontiguousarray(array[examples])
            offset += 0 if pos is None else int(pos[0]) * strides[1]
        where = np.arange(self.array.shape[axis])[None] if pos is None else pos[:, None]
        return (
            self.site.index,
            layer,
            0,
            np.ascontiguousarray(sequences, np.int32),
            np.ascontiguousarray(np.broadcast_to(where, (len(sequences), where.shape[1])), np.int32),
            None if head is None else np.array([head], np.int32),
            None if neuron is None else np.array([neuron], np.int32),
            array.reshape(-1)[offset:],
            tuple(strides),
            -1,
        )


def own_positions(pos: int | None, lengths: Ints) -> Ints | None:
    """[batch] a position of every sequence, a negative one from its own end; −1 where it has none."""
    if pos is None:
        return None
    at = np.full(len(lengths), pos) if pos >= 0 else np.maximum(lengths + pos, -1)
    return np.asarray(np.where(at < lengths, at, -1), np.int32)
