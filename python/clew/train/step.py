"""From batches as users give them to losses, gradients and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..brief import Brief
from ..errors import ConfigError, ShapeError, TokenError, TrainingError
from ..inputs import as_array, check_flags, in_precision
from ..weights import whole
from .adamw import AdamW, not_finite

if TYPE_CHECKING:
    from ..gradients import WeightGradients
    from ..model import Model

Array = NDArray[Any]


@dataclass
class Examples(Brief):
    """A batch to train on: what `model.train_step` takes. Lists of sequences where these are ragged."""

    tokens: Any
    """[batch, pos], or [batch, pos, d_in] where the model reads vectors."""
    targets: Any = None
    """[batch, pos] or [batch, pos, d_out]; None: the next token."""
    loss_mask: Any = None
    """[batch, pos], how much each target counts; None: all alike."""

    def __post_init__(self) -> None:
        for what in ("tokens", "targets", "loss_mask"):
            value = getattr(self, what)
            if not isinstance(value, str) and not hasattr(value, "__len__") and (what == "tokens" or value is not None):
                raise ShapeError(
                    f"Examples: {what} must be a list or an array of sequences, not {type(value).__name__}"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> Examples:
        """Some of the sequences."""
        cut = slice(start, stop)
        return Examples(
            self.tokens[cut],
            None if self.targets is None else self.targets[cut],
            None if self.loss_mask is None else self.loss_mask[cut],
        )


@dataclass
class Packed(Brief):
    """A checked batch as the core reads it: sequences one after the other."""

    lengths: NDArray[np.int32]
    """[batch]"""
    inputs: Array
    """int32 [rows], or vectors [rows, d_in]"""
    targets: Array
    """int32 [rows], or vectors [rows, d_out]; 0 where none counts"""
    weights: NDArray[np.float64]
    """[rows]"""

    @property
    def total(self) -> float:
        """Σ weights: the number of targets, where all count alike."""
        return float(self.weights.sum())


def loss_of(model: Model) -> Literal["mse", "cross_entropy"]:
    """What training makes small: "mse" for a model that writes vectors, else "cross_entropy"."""
    return "mse" if model.config.d_out is not None else "cross_entropy"


def _rows(value: Any, lengths: NDArray[np.int32], width: int | None, what: str) -> Array:
    """Values at each real position, [rows] or [rows, width]; given as [batch, pos, …], [pos, …] or a ragged list."""
    n, longest = len(lengths), int(lengths.max())
    tail = [] if width is None else [width]
    rank = 1 + len(tail)
    ragged = isinstance(value, Sequence) and len(value) > 0 and all(as_array(v, what).ndim == rank for v in value)
    if ragged and len(value) == n:
        rows = [np.asarray(v) for v in value]
        for i, row in enumerate(rows):
            if list(row.shape) not in ([int(lengths[i]), *tail], [longest, *tail]):
                raise ShapeError(f"{what} of prompt {i}: shape {list(row.shape)}, expected {[int(lengths[i]), *tail]}")
        return np.concatenate([row[:length] for row, length in zip(rows, lengths, strict=True)])
    array = as_array(value, what)
    if array.ndim == rank and n == 1:
        array = array[None]
    if list(array.shape) != [n, longest, *tail]:
        raise ShapeError(f"{what}: shape {list(array.shape)}, expected {[n, longest, *tail]}")
    return np.asarray(array[np.arange(longest) < lengths[:, None]])


def _mask(loss_mask: Any, lengths: NDArray[np.int32]) -> NDArray[np.float64]:
    """Weights [rows]."""
    if loss_mask is None:
        return np.ones(int(lengths.sum()))
    weights = _rows(loss_mask, lengths, None, "loss_mask")
    if weights.dtype.kind not in "biuf":
        raise ShapeError(f"loss_mask must be bool or real numbers, not {weights.dtype}")
    weights = weights.astype(np.float64)
    bad = weights[~((weights >= 0) & (weights < math.inf))]
    if bad.size:
        raise ShapeError(f"loss_mask holds {bad[0]}: weights are finite and at least 0")
    return weights


def pack(model: Model, examples: Examples, part: bool = False) -> Packed:
    """A batch, checked; part: one of several, which may be without any target.

    Raises ShapeError with both shapes, TokenError, ConfigError.
    """
    config = model.config
    batch = model._batch(examples.tokens, None, None)
    lengths = batch.lengths
    inputs = batch.tokens if batch.tokens is not None else batch.floats
    assert inputs is not None
    weights = _mask(examples.loss_mask, lengths)
    in_precision(weights, model.dtype, "loss_mask")
    if examples.targets is not None:
        targets = _rows(examples.targets, lengths, config.d_out, "targets")
        kinds = "iuf" if config.d_out is not None else "iu"
        if targets.dtype.kind not in kinds:
            expected = "real numbers" if config.d_out is not None else "integer token ids"
            raise ShapeError(f"targets must be {expected}, not {targets.dtype}")
    elif config.d_in is not None or config.d_out is not None:
        raise ConfigError(f"no targets: with d_in = {config.d_in}, d_out = {config.d_out} no token comes next")
    else:
        targets = np.append(inputs[1:], np.int32(0))
        weights[np.cumsum(lengths) - 1] = 0  # nothing comes after the last
    if not part and not weights.any():
        hint = ": loss_mask is 0 everywhere" if examples.loss_mask is not None else ""
        if examples.targets is None:
            hint += "; without targets the last position of a prompt has none"
        raise TokenError(f"no target to train on{hint}")
    ignored = weights == 0
    if config.d_out is not None:
        targets = np.ascontiguousarray(targets, model.dtype)
        if ignored.any():
            targets = np.where(ignored[:, None], model.dtype.type(0), targets)
    else:
        targets = np.where(ignored, 0, targets)
        outside = np.flatnonzero((targets < 0) | (targets >= config.d_vocab_out))
        if outside.size:
            at = int(outside[0])
            ends = np.cumsum(lengths)
            seq = int(np.searchsorted(ends, at, side="right"))
            pos = at - int(ends[seq] - lengths[seq])
            raise TokenError(
                f"target {int(targets[at])} at position {pos} of prompt {seq}: the model has logits 0 to "
                f"{config.d_vocab_out - 1}"
            )
        targets = np.ascontiguousarray(targets, np.int32)
    return Packed(lengths, inputs, targets, weights)


def batched(model: Model, examples: Examples) -> Examples:
    """The same with a batch axis where one sequence was given without."""
    rank = 1 if model.config.d_in is None else 2
    if isinstance(examples.tokens, str):
        return Examples([examples.tokens], examples.targets, examples.loss_mask)
    if len(examples) == 0 or np.ndim(examples.tokens[0]) >= rank or isinstance(examples.tokens[0], str):
        return examples
    return Examples(*(None if v is None else [v] for v in (examples.tokens, examples.targets, examples.loss_mask)))


# ---- Losses and gradients --------------------------------------------------------------------------------------

_KEPT = 8
"""Plans kept for batches of other lengths."""


def gradients_for(optimizer: AdamW, lengths: NDArray[np.int32], recompute: bool = False) -> WeightGradients:
    """The compiled forward and backward pass of batches of such lengths."""
    from ..gradients import WeightGradients

    plans, key = optimizer._plans, (lengths.tobytes(), recompute)
    last = next(reversed(plans), key)
    if last != key:  # activations of one shape at a time: each may take all the memory that was planned
        plans[last].trim()
    if key not in plans:
        plans[key] = WeightGradients(optimizer.model, lengths, loss_of(optimizer.model), recompute)
        while len(plans) > _KEPT:
            plans.popitem(last=False)
    plans.move_to_end(key)
    return plans[key]


def loss_and_gradients(optimizer: AdamW, packed: Packed, recompute: bool = False) -> tuple[float, dict[str, Array]]:
    """Mean loss over the targets, and its gradient by each weight.

    Raises TrainingError for a loss that is NaN or infinite.
    """
    compiled = gradients_for(optimizer, packed.lengths, recompute)
    loss, gradients = compiled.run(packed.inputs, packed.targets, packed.weights)
    if not math.isfinite(loss):
        raise not_finite("the loss", loss, optimizer.steps)
    return loss, gradients


def train_step(
    model: Model,
    tokens: Any,
    targets: Any,
    loss_mask: Any,
    optimizer: AdamW,
    accumulate: bool = False,
    recompute: bool = False,
) -> float:
    """See :meth:`clew.Model.train_step`."""
    if isinstance(tokens, Examples):
        if targets is not None or loss_mask is not None:
            raise ConfigError("train_step: Examples hold their targets and loss_mask: give no others beside them")
        examples = tokens
    else:
        examples = Examples(tokens, targets, loss_mask)
    check_flags(accumulate=accumulate, recompute=recompute)
    if not isinstance(optimizer, AdamW):
        raise ConfigError(f"train_step: optimizer = {optimizer!r}, expected a clew.AdamW of this model")
    if optimizer.model is not model:
        raise ConfigError("train_step: the optimizer was made for another model")
    if model._active_edits():
        raise ConfigError("train_step inside model.edited(): the gradient would be that of the model without its edits")
    packed = pack(model, examples)
    try:
        loss, gradients = loss_and_gradients(optimizer, packed, bool(recompute))
    except TrainingError:
        optimizer.discard()
        raise
    if accumulate:
        optimizer.accumulate(gradients, packed.total)
    else:
        optimizer.step(gradients, packed.total)
    return loss


def evaluate(model: Model, examples: Examples | Any, batch: int = 16) -> tuple[float, float]:
    """Mean loss over the targets of some examples, and their number (Σ loss_mask); `batch` sequences run at a time.

    examples: or what `model.run` takes, each next token a target.
    Raises ShapeError, TokenError (no target at all), ConfigError as `model.train_step`.
    """
    from ..model import check_model

    check_model(model)
    if whole(batch, "batch") < 1:
        raise ConfigError(f"evaluate: batch = {batch}, at least 1")
    loss = count = 0.0
    examples = batched(model, examples if isinstance(examples, Examples) else Examples(examples))
    for start in range(0, len(examples), batch):
        part = examples.part(start, start + batch)
        if part.targets is None and part.loss_mask is None and loss_of(model) == "cross_entropy":
            lengths = model._batch(part.tokens, None, None).lengths
            n = float((lengths - 1).sum())
            loss += float(model.loss(part.tokens).sum(dtype=np.float64)) if n else 0.0
        else:
            packed = pack(model, part, part=True)
            n = packed.total
            loss += float((_losses(model, packed, part.tokens) * packed.weights).sum()) if n else 0.0
        count += n
    if not count:
        raise TokenError("evaluate: no target in these examples")
    return loss / count, count


def _losses(model: Model, packed: Packed, tokens: Any) -> NDArray[np.float64]:
    """Loss of each target [rows], float64."""
    logits = model.run(tokens).logits
    rows = logits[np.arange(logits.shape[1]) < packed.lengths[:, None]].astype(np.float64)
    if loss_of(model) == "mse":
        return np.asarray(np.square(rows - packed.targets).mean(axis=-1))
    rows -= rows.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(rows).sum(axis=-1)) - rows[np.arange(len(rows)), packed.targets])
