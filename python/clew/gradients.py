"""Gradients: of a metric or a loss, by sites, embeddings and weights; exact, computed in the core."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .edit import Edit, as_edits, check_before_last, check_last, resolve
from .engine import WEIGHTS
from .errors import ConfigError, ShapeError, SiteError, TokenError
from .inputs import Batch, nearest, real_array
from .metrics import Metric, as_metric, value_and_gradient
from .run import Run
from .sites import SITES, Site, capture_list, pair_name

if TYPE_CHECKING:
    from .config import ModelConfig
    from .model import Model

Array = NDArray[Any]
Function = Callable[[Array], tuple[ArrayLike, ArrayLike]]

_LAST, _ALL = 1, 2
_CROSS_ENTROPY, _SQUARED, _CALL = 1, 2, 3


def classic(name: str, gradient: Array, config: ModelConfig) -> Array:
    """A weight's gradient [rows, cols] as the core lays it out, in the weight's classic shape: a view."""
    last = name.rsplit(".", 1)[-1]
    if last in ("W_Q", "W_K", "W_V"):
        return np.asarray(gradient.reshape(config.d_model, -1, config.d_head).transpose(1, 0, 2))
    if last == "W_O":
        return gradient.reshape(-1, config.d_head, config.d_model)
    if last in ("b_Q", "b_K", "b_V"):
        return gradient.reshape(-1, config.d_head)
    return gradient if last.startswith("W_") else gradient[0]


def _named(grads: list[tuple[int, int, Array]], model: Model) -> dict[str, Array]:
    """Gradients by full name; a tied unembedding's is the embedding's, transposed."""
    out = {}
    for number, layer, array in grads:
        name, _, layered = WEIGHTS[number]
        full = f"blocks.{layer}.{name}" if layered else name
        out[full] = classic(name, array, model.config)
    if "unembed.W_U" in model.weights and "unembed.W_U" not in out and "embed.W_E" in out:
        out["unembed.W_U"] = out["embed.W_E"].T
    return out


class WeightGradients:
    """Loss and gradients by all weights, for batches of one shape: planned once, run for every batch.

    Parameters
    ----------
    model
        The model; what its weights hold when `run` is called counts.
    lengths
        Tokens of each sequence, int [batch].
    loss
        "cross_entropy" (targets: ids) or "mse" (targets: vectors [rows, d_vocab_out]).
    recompute
        Blocks keep their input only and run again before their backward pass: the same bits, a fraction of the memory
        (`scratch_bytes`), a third more work (`flops`).

    Attributes
    ----------
    scratch_bytes
        What a run needs besides the gradients: activations of the forward pass and the backward pass's own.
    gradient_bytes
        What the gradients take.

    Example
    -------
    >>> import clew, numpy as np
    >>> from clew.gradients import WeightGradients
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> loss, gradients = WeightGradients(model, [3]).run(np.array([1, 2, 3]), np.array([2, 3, -1]))
    >>> gradients["blocks.0.attn.W_Q"].shape
    (2, 8, 4)
    """

    def __init__(
        self,
        model: Model,
        lengths: ArrayLike,
        loss: Literal["cross_entropy", "mse"] = "cross_entropy",
        recompute: bool = False,
    ) -> None:
        if loss not in ("cross_entropy", "mse"):
            raise ConfigError(f'loss = {loss!r}: "cross_entropy" or "mse"')
        self.model, self.loss = model, loss
        self.lengths = np.ascontiguousarray(lengths, np.int32)
        self._recompute = recompute
        self._compile()

    def __repr__(self) -> str:
        rows = f"{len(self.lengths)} sequences, {int(self.lengths.sum())} tokens"
        return f"WeightGradients of {rows}, {self.loss}, {self.scratch_bytes / 1e6:.3g} MB"

    def _compile(self) -> None:
        objective = _CROSS_ENTROPY if self.loss == "cross_entropy" else _SQUARED
        nothing = np.zeros((0, 2), np.int32)
        self._core = self.model._core
        self._plan = _core.Plan(
            self._core,
            self.lengths,
            nothing,
            None,
            -1,
            -1,
            False,
            _ALL,
            weights=True,
            objective=objective,
            recompute=self._recompute,
        )

    def trim(self) -> None:
        """Gives back the memory of activations, which is kept from one run to the next."""
        self._plan.trim()

    @property
    def scratch_bytes(self) -> int:
        """Bytes of memory that a run needs besides the gradients; depends on the number of threads."""
        return int(self._plan.scratch_bytes)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients."""
        return int(self._plan.keep_bytes)

    @property
    def flops(self) -> float:
        """Floating-point operations of one run, forward and backward."""
        return float(self._plan.flops)

    def run(self, tokens: Array, targets: Array, weights: Array | None = None) -> tuple[float, dict[str, Array]]:
        """Loss and gradients by full name, in classic layout: writable views of one slab.

        tokens: ids [Σ lengths] (or vectors [Σ lengths, d_in]); targets: ids [Σ lengths], negative where there is none
        (or vectors); weights: of every row [Σ lengths], None all 1. The loss is the weighted mean.

        Raises TokenError, ShapeError, ConfigError (no row has a target).
        """
        if self._core is not self.model._core:  # the model was made trainable meanwhile: its weights have moved
            self._compile()
        ids = self.loss == "cross_entropy"
        dtype = np.int32 if ids else self.model.dtype
        inputs = np.asarray(tokens)
        embedded = None
        if self.model.config.d_in is not None:
            inputs, embedded = None, np.ascontiguousarray(inputs, self.model.dtype)  # type: ignore[assignment]
        else:
            inputs = np.ascontiguousarray(inputs, np.int32)
        scale = None if weights is None else np.ascontiguousarray(weights, self.model.dtype)
        _, value, grads = self._plan.run(inputs, embedded, (), None, np.ascontiguousarray(targets, dtype), scale)
        return value, _named(grads, self.model)


class _GradientOfWeights(Mapping[str, Array]):
    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        for array in arrays.values():
            array.flags.writeable = False

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return "\n".join(f"{name:<32} {list(a.shape)}" for name, a in self._arrays.items())


class Gradients(Run):
    """Gradients of a metric by sites: used like a :class:`Run`, with the sites' own axes.

    Attributes
    ----------
    value
        The metric for each sequence, float64 [batch]; a loss: one number, [1].
    total
        What was differentiated: the sum over sequences, or the mean loss.
    weights
        Full name → gradient by the weight, for those that `wrt` names; empty without.
    """

    value: Array
    total: float
    weights: Mapping[str, Array]

    def _find(self, key: str | tuple[str, int]) -> tuple[Site, int]:
        return super()._find("hook_embed" if key == "embeddings" else key)

    def __repr__(self) -> str:
        head = f"Gradients of {self.total:.6g} by"
        return (
            head
            + super().__repr__().removeprefix("Run of")
            + (f"\n  {len(self.weights)} weights" if self.weights else "")
        )


def _targets(batch: Batch) -> tuple[Array, Array]:
    """Next tokens [rows], −1 behind the last of each sequence."""
    assert batch.tokens is not None
    targets = np.append(batch.tokens[1:], -1).astype(np.int32)
    targets[np.cumsum(batch.lengths) - 1] = -1
    return targets, np.ones(len(targets))


def gradients(
    model: Model, tokens: Any, metric: Metric | Function, wrt: Any, edits: Edit | Iterable[Edit], embeddings: Any
) -> Gradients:
    """See :meth:`clew.Model.gradients`."""
    sites, by_weights = _split(model, wrt)
    batch = model._batch(tokens, embeddings, None)
    held = [*model._active_edits(), *as_edits(edits)]
    core, calls = resolve(held, model, batch.lengths, None, None) if held else ([], [])
    metric = as_metric(metric, model) if isinstance(metric, (Metric, type)) or not callable(metric) else metric
    if isinstance(metric, Metric):
        metric.check_batch(len(batch.lengths))
    value: list[Array] = []

    def shown(logits: Array, name: str) -> Array:
        numbers, slope = metric.gradient(logits) if isinstance(metric, Metric) else value_and_gradient(metric, logits)
        value.append(real_array(numbers, "the metric's value"))
        if value[-1].shape not in ((), batch.lengths.shape):
            raise ShapeError(f"the metric's value has shape {list(value[-1].shape)}: one number, or one for each of "
                             f"{len(batch.lengths)} sequences")  # fmt: skip
        return slope

    by_loss = isinstance(metric, Metric) and metric.wants_loss
    whole = by_loss or not isinstance(metric, Metric)
    if by_loss:
        check_before_last(core, batch.lengths)
    elif not whole:
        check_last(core, batch.lengths, f"{metric} reads")
    if by_loss and batch.tokens is None:
        raise TokenError("the loss of embeddings is not known: it needs the tokens that follow")
    if by_loss and int((batch.lengths - 1).sum()) == 0:
        raise TokenError("loss needs a prompt of two tokens or more: the second is what the first predicts")
    targets = _targets(batch)[0] if by_loss else None
    found: list[tuple[int, tuple[int, ...], Array]] = []
    grads: list[tuple[int, int, Array]] = []
    for part, with_weights in _passes(model, sites, bool(by_weights)):
        plan = _core.Plan(
            model._core,
            batch.lengths,
            np.zeros((0, 2), np.int32),
            None,
            -1,
            -1,
            batch.embeddings is not None,
            _ALL if whole else _LAST,
            edits=core,
            wrt=np.array([(s.index, layer) for s, layer in part], np.int32).reshape(-1, 2),
            weights=with_weights,
            objective=_CROSS_ENTROPY if by_loss else _CALL,
        )
        outputs, loss, weight_grads = plan.run(batch.tokens, batch.floats, [*calls, shown], None, targets, None)
        found += [(i - len(SITES), layers, array) for i, layers, array in outputs]
        grads += weight_grads
    out = Gradients(found, model.sites(), batch.lengths, batch.padded_tokens())
    out.value = np.array([loss]) if by_loss else value[0]
    out.total = float(out.value.sum())
    named = _named(grads, model) if by_weights else {}
    out.weights = _GradientOfWeights({name: named[name] for name in by_weights})
    return out


def _passes(model: Model, sites: list[tuple[Site, int]], weights: bool) -> list[tuple[list[tuple[Site, int]], bool]]:
    """What goes through one backward pass together.

    Where heads (or the branches that share a norm) are given residuals of their own, the norm that all of them read
    otherwise stands beside the way: gradients by the ones and by the other are taken apart.
    """
    own = {"q_input", "k_input", "v_input"}
    if model.config.parallel_attn_mlp and model.config.shared_norm:
        own |= {"attn_in", "mlp_in"}
    heads = [pair for pair in sites if pair[0].short in own]
    rest = [pair for pair in sites if pair[0].short not in own]
    passes = [(rest, weights)] if rest or weights else []
    return [*passes, *([(heads, False)] if heads else [])]


def _split(model: Model, wrt: Any) -> tuple[list[tuple[Any, int]], list[str]]:
    """Sites, and names of weights."""
    sites: list[Any] = []
    weights: list[str] = []
    if wrt is not None and not isinstance(wrt, Iterable):
        raise SiteError(f'wrt = {wrt!r}: expected names of sites or weights, or "embeddings"')
    for item in capture_list(wrt):
        name = pair_name(item)
        if name == "embeddings":
            sites.append("hook_embed")
        elif name == "weights":
            weights += list(model.weights)
        elif name in model.weights:
            weights.append(name)
        else:
            short = [full for full in model.weights if full.rsplit(".", 1)[-1] == name]
            if short:
                weights += short
            else:
                sites.append(item)
    found: list[Any] = []
    for item in sites:
        try:
            model.sites().find(pair_name(item))
        except SiteError as error:
            kinds = dict.fromkeys(full.rsplit(".", 1)[-1] for full in model.weights)
            near = nearest(pair_name(item), [*kinds, *model.weights])
            raise SiteError(f"{error}{near.replace('nearest', 'nearest weights')}") from None
    if sites:
        found = model.sites().resolve(sites)
    if not found and not weights:
        raise SiteError('wrt is empty: name sites, weights or "embeddings" to differentiate by')
    return found, list(dict.fromkeys(weights))
