"""What a sweep or a gradient is about: numbers read off the logits of each sequence's last position.

Every metric is a function of logits [batch, vocab] (or [batch, pos, vocab], of which it reads the last), or of a run,
that gives float64 [batch]. Of prompts of several lengths give it the run, which knows where each one ends: behind the
end of a shorter one, `run.logits` hold padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError, TokenError
from .inputs import as_array, real_array

if TYPE_CHECKING:
    from .model import Model
    from .run import Run

Array = NDArray[Any]
_DIFFERENCE, _LOG_PROB, _KL = 4, 5, 6
__all__ = ["Metric", "kl", "log_prob", "logit_diff", "loss"]


def _last(logits: ArrayLike | Run) -> Array:
    if hasattr(logits, "logits") and hasattr(logits, "lengths"):  # each sequence's own last position
        run: Any = logits
        given: Array = run.logits
        at = np.zeros(len(given), int) if given.shape[1] == 1 else run.lengths - 1
        return np.asarray(given[np.arange(len(given)), at])
    array = as_array(logits, "logits")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ShapeError(f"a metric reads logits [batch, vocab] or [batch, pos, vocab], not {list(array.shape)}")
    if array.dtype.kind not in "fiu":
        raise ShapeError(f"a metric reads logits that are real numbers, not {array.dtype}")
    return array[:, -1] if array.ndim == 3 else array


def _log_softmax(logits: Array) -> Array:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def _tokens(ids: ArrayLike, what: str) -> Array:
    array = as_array(ids, what)
    if array.dtype.kind in "uO":  # before a cast could wrap
        for i in array.flat:
            if isinstance(i, int | np.integer) and i >= 2**63:
                raise TokenError(f"{what}: token {i} is outside the vocabulary of every model")
    if array.dtype.kind in "US" and array.size:
        raise TokenError(
            f"{what} must be a token id, not a text: model.to_single_token({str(array.flat[0])!r:.40}) gives it"
        )
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise TokenError(
            f"{what} must be a token id or one for each example [batch], not {array.dtype} {list(array.shape)}"
        )
    return array.astype(np.int64)


def _needs_probabilities(model: Model, what: str) -> None:
    if model.config.d_out is not None:
        raise ConfigError(f"{what}: this model writes vectors, d_out = {model.config.d_out}, and has no probabilities")


class Metric:
    """A number for each sequence, read off its last position's logits."""

    name = "metric"
    wants_loss = False
    """Reads next-token losses of all positions instead of the last position's logits."""

    def check(self, model: Model) -> None:
        """Raises TokenError for a token that the model has no logit for, ConfigError where it has no probabilities."""

    def __call__(self, logits: Any, examples: ArrayLike | None = None) -> Array:
        """Values float64 [n] of logits [n, vocab], or [n, pos, vocab] without padding, or of a run.

        examples [n]: which example of the batch each row belongs to, for metrics with one token for each example.
        """
        raise NotImplementedError

    def check_batch(self, n: int) -> None:
        """Raises ShapeError for a metric that is about another number of examples."""

    def in_core(self, examples: Array) -> tuple[int, Array, Array | None] | None:
        """How the core computes it without keeping logits, for sequences that are these examples of the batch.

        Its number, tokens int32 [n, 2] and reference log-probabilities [m, vocab] or None. None: it cannot.
        """
        return None

    def gradient(self, logits: ArrayLike) -> tuple[Array, Array]:
        """Values [n] of logits [n, 1, vocab] and their gradients by the logits, of the same shape and dtype."""
        raise ConfigError(f"{self.name} has no gradient: give a function that returns (value, gradient by the logits)")

    def said(self, model: Model) -> str:
        """The name as a reader of that model's text would write it."""
        return self.name

    def __repr__(self) -> str:
        return self.name


def _which(examples: ArrayLike | None, n: int) -> Array:
    """The example of each of n rows."""
    if examples is None:
        return np.arange(n)
    array = as_array(examples, "examples")
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ShapeError(f"examples must be one number for each of {n} rows, not {array.dtype} {list(array.shape)}")
    if (array < 0).any():
        raise ShapeError(f"examples: {int(array.min())}, but they are counted from 0")
    return array


def _pick(ids: Array, n: int, examples: ArrayLike | None) -> Array:
    which = _which(examples, n)
    if ids.ndim == 0:
        return np.full(n, int(ids))
    if examples is None and len(ids) != n:
        raise ShapeError(f"the metric has tokens for {len(ids)} examples, the logits are of {n}")
    if which.size and which.max() >= len(ids):
        raise ShapeError(f"the metric has tokens for {len(ids)} examples, the batch has {int(which.max()) + 1}")
    return np.asarray(ids[which])


class _Tokens(Metric):
    """A metric about one token id, or two, for each example."""

    def __init__(self, *ids: ArrayLike) -> None:
        self.ids = [_tokens(i, f"{type(self).__name__}: token {name}") for i, name in zip(ids, "ab", strict=False)]
        if len({len(i) for i in self.ids if i.ndim}) > 1:
            raise ShapeError(
                f"{type(self).__name__}: {' and '.join(str(len(i)) for i in self.ids)} tokens are no pairs"
            )
        shown = ", ".join(str(i.tolist()) for i in self.ids)
        self.name = f"{type(self).__name__}({shown})"

    def said(self, model: Model) -> str:
        """The name with tokens as text where the model has a tokenizer and there is one for all examples."""
        if model._labeller is None or any(ids.ndim for ids in self.ids):
            return self.name
        texts = model._labeller.to_str_tokens([int(ids) for ids in self.ids])
        return f"{type(self).__name__}({', '.join(map(repr, texts))})"

    def check(self, model: Model) -> None:
        self._check_ids(model.config.d_vocab_out)

    def _check_ids(self, n: int) -> None:
        for ids in self.ids:
            outside = ids[(ids < 0) | (ids >= n)]
            if outside.size:
                raise TokenError(f"{self.name}: token {int(outside[0])} has no logit: there are ids 0 to {n - 1}")

    def check_batch(self, n: int) -> None:
        for ids in self.ids:
            if ids.ndim and len(ids) != n:
                raise ShapeError(f"the metric has tokens for {len(ids)} examples, the batch has {n}")


class logit_diff(_Tokens):  # noqa: N801 (reads as the function it stands for)
    """logit[a] − logit[b]; a, b: token ids, or one for each example [batch].

    Of a model that writes vectors it is the difference of two of their values.

    >>> from clew.metrics import logit_diff
    >>> logit_diff(0, 2)([[3.0, 1.0, 0.5]])
    array([2.5])
    """

    def __init__(self, a: ArrayLike, b: ArrayLike) -> None:
        super().__init__(a, b)

    def in_core(self, examples: Array) -> tuple[int, Array, Array | None] | None:
        picks = [_pick(ids, len(examples), examples) for ids in self.ids]
        return _DIFFERENCE, np.stack(picks, axis=1).astype(np.int32), None

    def __call__(self, logits: ArrayLike | Run, examples: ArrayLike | None = None) -> Array:
        x = _last(logits)
        self._check_ids(x.shape[1])
        rows = np.arange(len(x))
        a, b = (_pick(i, len(x), examples) for i in self.ids)
        return np.asarray(x[rows, a].astype(np.float64) - x[rows, b])

    def gradient(self, logits: ArrayLike) -> tuple[Array, Array]:
        x = _last(logits)
        values = self(x)
        slope, rows = np.zeros_like(x), np.arange(len(x))
        a, b = (_pick(i, len(x), None) for i in self.ids)
        slope[rows, a] += 1
        slope[rows, b] -= 1
        return values, slope[:, None]


class log_prob(_Tokens):  # noqa: N801
    """Log-probability of a token in nats; a: its id, or one for each example [batch].

    A model that writes vectors is refused: it has no probabilities.

    >>> from clew.metrics import log_prob
    >>> log_prob(1)([[0.0, 0.0]]).round(4)
    array([-0.6931])
    """

    def __init__(self, a: ArrayLike) -> None:
        super().__init__(a)

    def check(self, model: Model) -> None:
        _needs_probabilities(model, self.name)
        super().check(model)

    def in_core(self, examples: Array) -> tuple[int, Array, Array | None] | None:
        pick = _pick(self.ids[0], len(examples), examples)
        return _LOG_PROB, np.stack([pick, pick], axis=1).astype(np.int32), None

    def __call__(self, logits: ArrayLike | Run, examples: ArrayLike | None = None) -> Array:
        x = _last(logits)
        self._check_ids(x.shape[1])
        return np.asarray(_log_softmax(x)[np.arange(len(x)), _pick(self.ids[0], len(x), examples)])

    def gradient(self, logits: ArrayLike) -> tuple[Array, Array]:
        x = _last(logits)
        values = self(x)
        slope = -np.exp(_log_softmax(x))
        slope[np.arange(len(x)), _pick(self.ids[0], len(x), None)] += 1
        return values, slope[:, None].astype(x.dtype)


class kl(Metric):  # noqa: N801
    """KL(reference ‖ prediction) in nats, of the last position; reference: logits [batch, vocab], or a run.

    A model that writes vectors is refused: it has no probabilities.

    >>> from clew.metrics import kl
    >>> kl([[0.0, 1.0]])([[0.0, 1.0]])
    array([0.])
    """

    def __init__(self, reference: ArrayLike | Run) -> None:
        self.log_p = _log_softmax(_last(reference))
        self.name = "kl"

    def check(self, model: Model) -> None:
        _needs_probabilities(model, self.name)
        if self.log_p.shape[1] != model.config.d_vocab_out:
            raise ShapeError(
                f"kl: the reference has logits {list(self.log_p.shape)}, the model {model.config.d_vocab_out} tokens"
            )

    def in_core(self, examples: Array) -> tuple[int, Array, Array | None] | None:
        which = np.asarray(examples) if len(self.log_p) > 1 else np.zeros(len(examples), int)
        if which.max() >= len(self.log_p):
            raise ShapeError(f"kl: the reference has {len(self.log_p)} examples, the batch {int(which.max()) + 1}")
        return _KL, np.stack([which, which], axis=1).astype(np.int32), np.ascontiguousarray(self.log_p)

    def check_batch(self, n: int) -> None:
        if len(self.log_p) not in (1, n):
            raise ShapeError(f"kl: the reference has {len(self.log_p)} examples, the batch {n}")

    def __call__(self, logits: ArrayLike | Run, examples: ArrayLike | None = None) -> Array:
        x = _last(logits)
        if x.shape[1] != self.log_p.shape[1]:
            raise ShapeError(f"kl: the reference has logits {list(self.log_p.shape)}, the prediction {list(x.shape)}")
        if examples is None:
            self.check_batch(len(x))
        which = _which(examples, len(x))
        log_p = self.log_p if len(self.log_p) > 1 else np.broadcast_to(self.log_p, (int(which.max()) + 1, x.shape[1]))
        if which.max() >= len(log_p):
            raise ShapeError(f"kl: the reference has {len(log_p)} examples, the batch {int(which.max()) + 1}")
        p = log_p[which]
        difference = np.where(np.isneginf(p), 0, p - _log_softmax(x))
        return np.asarray((np.exp(p) * difference).sum(axis=-1))

    def gradient(self, logits: ArrayLike) -> tuple[Array, Array]:
        x = _last(logits)
        values = self(x)
        p = self.log_p if len(self.log_p) > 1 else np.broadcast_to(self.log_p, x.shape)
        slope = np.exp(_log_softmax(x)) - np.exp(p)
        return values, slope[:, None].astype(x.dtype)


class loss(Metric):  # noqa: N801
    """Mean next-token negative log-likelihood over a sequence, in nats: what `model.loss` averages."""

    name = "loss"
    wants_loss = True

    def check(self, model: Model) -> None:
        from .replay import check_predicts

        check_predicts(model)

    def __call__(self, logits: ArrayLike | Run, examples: ArrayLike | None = None) -> Array:
        raise ConfigError("loss is read off a run's tokens, not off last logits: use model.loss")


class _Function(Metric):
    """A Python function of logits [n, 1, vocab] that gives [n]."""

    def __init__(self, function: Callable[[Array], ArrayLike]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, logits: ArrayLike, examples: ArrayLike | None = None) -> Array:
        array = np.asarray(logits)
        return self._checked(self.function(array), array)

    def _checked(self, given: ArrayLike, array: Array) -> Array:
        if isinstance(given, tuple) and len(given) == 2 and np.shape(given[1]) == array.shape:
            raise ConfigError(
                f"metric {self.name} gave a tuple of 2: (value, gradient) is for attribution and gradients, here the "
                f"value alone is wanted, [{len(array)}]"
            )
        values = real_array(given, f"what metric {self.name} gave")
        if values.shape != (len(array),):
            raise ShapeError(
                f"metric {self.name} gave shape {list(values.shape)} for logits {list(array.shape)}: "
                f"expected one number for each sequence, [{len(array)}]"
            )
        return values


class _Differentiated(_Function):
    """A Python function of logits [n, 1, vocab] that gives (values [n], their gradient by the logits)."""

    def __call__(self, logits: ArrayLike, examples: ArrayLike | None = None) -> Array:
        return self._checked(self.gradient(np.asarray(logits))[0], np.asarray(logits))

    def gradient(self, logits: ArrayLike) -> tuple[Array, Array]:
        array = np.asarray(logits)
        values, slope = value_and_gradient(self.function, array)
        return self._checked(values, array), slope


def value_and_gradient(function: Any, logits: Array) -> tuple[ArrayLike, Array]:
    """What a Python metric of gradients gives: (value, gradient by the logits).

    Raises ConfigError for what is no such pair, ShapeError for a gradient of another shape.
    """
    result = function(logits)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ConfigError(
            f"metric {getattr(function, '__name__', function)!r} gave {type(result).__name__}: a metric of gradients "
            "gives (value, its gradient by the logits), or is one of clew.metrics"
        )
    slope = as_array(result[1], "the metric's gradient")
    if slope.shape != logits.shape:
        raise ShapeError(f"the metric's gradient has shape {list(slope.shape)}, its logits {list(logits.shape)}")
    return result[0], slope.copy() if slope is logits else slope  # of ½ Σ logits², the logits themselves


def as_metric(
    metric: Metric | Callable[[Array], ArrayLike] | None, model: Model, with_gradient: bool = False
) -> Metric:
    """The metric itself, checked against the model, or a function as one.

    with_gradient: a function gives (value, gradient by the logits). Raises ConfigError for what is neither.
    """
    if isinstance(metric, type) and issubclass(metric, Metric):
        raise ConfigError(f"metric = {metric.__name__}: call it, as in {metric.__name__}(...)")
    if not isinstance(metric, Metric):
        if not callable(metric):
            raise ConfigError(f"metric = {metric!r}: give one of clew.metrics or a function of logits [n, 1, vocab]")
        function = cast("Callable[[Array], ArrayLike]", metric)
        metric = _Differentiated(function) if with_gradient else _Function(function)
    if type(metric) is Metric:
        raise ConfigError("metric = Metric(): it is what the others are made of; give one of clew.metrics")
    metric.check(model)
    return metric


def __dir__() -> list[str]:
    return __all__
