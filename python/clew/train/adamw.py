"""AdamW, and models whose weights it may change."""

from __future__ import annotations

import fnmatch
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core, memory
from ..engine import trainable_order
from ..errors import ConfigError, ShapeError, TrainingError
from ..inputs import as_array, check_counts, check_type, in_precision

if TYPE_CHECKING:
    from ..gradients import WeightGradients
    from ..model import Model

Array = NDArray[Any]
Decay = Callable[[str], bool] | str | Iterable[str] | None


def is_matrix(name: str) -> bool:
    """The usual rule of what decays: matrices, embeddings included; neither biases nor the weights of norms.

    >>> is_matrix("blocks.0.attn.W_Q"), is_matrix("blocks.0.attn.b_Q"), is_matrix("ln_final.w")
    (True, False, False)
    """
    return name.rsplit(".", 1)[-1].startswith("W_")


def _decay_rule(decay: Decay, names: Iterable[str]) -> dict[str, bool]:
    """Which weights decay; raises ConfigError for a name or glob that matches none."""
    names = list(names)
    if decay is None:
        return {name: is_matrix(name) for name in names}
    if callable(decay):
        return {name: bool(decay(name)) for name in names}
    check_type((str, Iterable), "names, globs or a function of a name", decay=decay)
    patterns = [decay] if isinstance(decay, str) else list(decay)
    for pattern in patterns:
        if not isinstance(pattern, str) or not fnmatch.filter(names, pattern):
            raise ConfigError(f"AdamW: decay: {pattern!r} matches no weight of this model that is trained")
    return {name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names}


def _number(name: str, value: Any, least: float, below: float = math.inf) -> float:
    with suppress(OverflowError):  # 10**400
        good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool | np.bool_)
        if good and least <= float(value) < below:
            return float(value)
    bound = "finite" if below == math.inf else f"below {below:g}"
    raise ConfigError(f"AdamW: {name} = {value!r:.80}, must be a number, at least {least:g} and {bound}")


def _weight(value: Any) -> float:
    """How much gradients count beside others; raises ConfigError."""
    if not (weight := _number("weight", value, 0)):
        raise ConfigError("AdamW: gradients of weight 0, must be more than 0")
    return weight


class AdamW:
    r"""Adam with decoupled weight decay, as `torch.optim.AdamW` defines it (Loshchilov and Hutter, arXiv:1711.05101).

    Making one makes the model trainable: its weights move into writable memory of its own. `model.weights` stays a
    read-only view of them and shows the current values; a tied unembedding stays tied. In step t, with gradient g,

        p ← (1 − lr · weight_decay) p            where p decays
        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²
        p ← p − lr · m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + eps)

    Parameters
    ----------
    model
        What is trained, float32 or float64; the moments m and v are of its dtype.
    lr
        Learning rate, by default that of :func:`clew.train.fit`; the attribute `lr` may be set between steps.
    betas, eps, weight_decay
        As above.
    clip
        Gradients are multiplied by min(1, clip / (norm + 1e-6)), norm that of all gradients together; None: never.
    decay
        Which weights decay: a function of the full name, or names and globs. None: matrices and embeddings (`W_…`)
        do, biases and the weights of norms do not.

    Raises
    ------
    ConfigError
        A setting out of range, or a glob that matches nothing.

    Example
    -------
    >>> import clew
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> optimizer = clew.AdamW(model, lr=1e-2)
    >>> optimizer
    AdamW: step 0, lr 0.01, betas (0.9, 0.999), eps 1e-08, weight_decay 0.01, clip None; 9 of 21 weights decay
    >>> loss = model.train_step([1, 2, 3], optimizer=optimizer)
    >>> optimizer.steps
    1
    """

    def __init__(
        self,
        model: Model,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = None,
        decay: Decay = None,
    ) -> None:
        if not hasattr(model, "_make_trainable"):
            raise ConfigError(f"AdamW: {type(model).__name__} is no clew.Model")
        self.model = model
        self.lr, self.betas, self.eps, self.weight_decay, self.clip = lr, betas, eps, weight_decay, clip
        self._check()
        trained = dict(model._make_trainable())
        if "unembed.W_U" in trained and np.may_share_memory(trained["unembed.W_U"], trained["embed.W_E"]):
            del trained["unembed.W_U"]
        self._decay = _decay_rule(decay, trained)
        self._order = {name: trainable_order(name, value.ndim) for name, value in trained.items()}
        self._values = [value.transpose(self._order[name]).reshape(-1) for name, value in trained.items()]
        self._m = [_zeros(value) for value in self._values]
        self._v = [_zeros(value) for value in self._values]
        self._steps = np.zeros(1, np.int64)
        self._plans: OrderedDict[tuple[bytes, bool], WeightGradients] = OrderedDict()  # by lengths: see step.py
        # gradients added up over micro-batches; they count while _sums_of is the current step
        self._sums: list[Array] | None = None
        self._sums_of = -1
        self._total = np.zeros(1, np.float64)

    def _check(self) -> None:
        """Settings as numbers; raises ConfigError for one out of range, which may have been set between steps."""
        self.lr = _number("lr", self.lr, 0)
        try:
            first, second = self.betas
        except (TypeError, ValueError):
            raise ConfigError(f"AdamW: betas = {self.betas!r}, must be two numbers") from None
        self.betas = (_number("betas[0]", first, 0, 1), _number("betas[1]", second, 0, 1))
        self.eps = _number("eps", self.eps, 0)
        if not self.model.dtype.type(self.eps) > 0:  # 0 / 0 where a weight never had a gradient
            raise ConfigError(f"AdamW: eps = {self.eps!r} must be more than 0 in {self.model.dtype}")
        self.weight_decay = _number("weight_decay", self.weight_decay, 0)
        self.clip = None if self.clip is None else _number("clip", self.clip, 0)
        if self.clip == 0:
            raise ConfigError("AdamW: clip = 0 would keep the model as it is; None: no clipping")

    def __reduce__(self) -> Any:  # a copy's model would have other weights than those that it steps
        raise TypeError("an AdamW can be neither copied nor pickled: make one of the copied model, load_state(state())")

    # ---- looks ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self._steps[0])

    @property
    def names(self) -> list[str]:
        """Full names of the weights that are trained; a tied unembedding is its embedding."""
        return list(self._order)

    @property
    def decays(self) -> list[str]:
        """Full names of the weights that decay."""
        return [name for name, decays in self._decay.items() if decays]

    @property
    def nbytes(self) -> int:
        """Bytes of the moments, and of the sums of gradients where micro-batches have been added up."""
        return sum(a.nbytes for a in (*self._m, *self._v, *(self._sums or ())))

    def moments(self, name: str) -> tuple[Array, Array]:
        """m and v of a weight, in its classic shape; read-only views. Raises KeyError."""
        i = self.names.index(name) if name in self._order else -1
        if i < 0:
            raise KeyError(f"{name!r} is no weight that is trained")
        shape = self.model.weights[name].shape
        return _classic(self._m[i], shape, self._order[name]), _classic(self._v[i], shape, self._order[name])

    def __repr__(self) -> str:
        return (
            f"AdamW: step {self.steps}, lr {self.lr:g}, betas {self.betas}, eps {self.eps:g}, weight_decay "
            f"{self.weight_decay:g}, clip {self.clip}; {len(self.decays)} of {len(self.names)} weights decay"
        )

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _memory_of(self, gradients: Mapping[str, Array]) -> list[Array]:
        """Gradients in the weights' order and memory layout."""
        out = []
        for name, order in self._order.items():
            if name not in gradients:
                raise ShapeError(f"AdamW: no gradient of {name}")
            what, shape = f"AdamW: gradient of {name}", self.model.weights[name].shape
            gradient = as_array(gradients[name], what)
            if gradient.shape != shape:
                raise ShapeError(f"{what} has shape {list(gradient.shape)}, the weight {list(shape)}")
            if gradient.dtype.kind not in "fiu":
                raise ShapeError(f"{what} must be real numbers, not {gradient.dtype}")
            out.append(in_precision(gradient.transpose(order), self.model.dtype, what).reshape(-1))
        strange = [name for name in gradients if name not in self._order]
        if strange == ["unembed.W_U"] and "unembed.W_U" in self.model.weights:
            if np.may_share_memory(gradients["unembed.W_U"], gradients["embed.W_E"]):
                return out
            raise ShapeError("AdamW: unembed.W_U is tied: its gradient belongs to that of embed.W_E")
        if strange:
            raise ShapeError(f"AdamW: gradients of what this model does not have: {', '.join(strange[:8])}")
        return out

    @property
    def accumulated(self) -> float:
        """Weight of the gradients that have been added up for the next step."""
        return float(self._total[0]) if self._sums_of == self.steps else 0.0

    def discard(self) -> None:
        """Forgets what has been added up for the next step."""
        self._sums_of = -1

    def accumulate(self, gradients: Mapping[str, Array], weight: float = 1.0) -> None:
        """Adds gradients of a micro-batch up for the next step, which takes their weighted mean.

        Raises ShapeError naming both shapes.
        """
        self._accumulate(self._memory_of(gradients), _weight(weight))

    def _accumulate(self, arrays: list[Array], weight: float) -> None:
        if self._sums is None:
            self._sums = [_zeros(value) for value in self._values]
        if self._sums_of != self.steps:
            for total in self._sums:
                total[...] = 0
            self._total[0] = 0
            self._sums_of = self.steps
        _core.accumulate(self._sums, arrays, weight, self._total)

    def step(self, gradients: Mapping[str, Array] | None = None, weight: float = 1.0) -> float:
        """One step along gradients (full name → array in classic shape), and along those that have been added up.

        It falls wholly before or wholly behind a KeyboardInterrupt. Returns the gradients' norm, before clipping.

        Raises ShapeError naming both shapes, ConfigError without any gradient, TrainingError for gradients that are NaN
        or infinite; the weights are then as they were.
        """
        arrays, norm, scale = self.prepare(gradients, weight)
        self.apply(arrays, norm, scale)
        return norm

    def prepare(
        self, gradients: Mapping[str, Array] | None = None, weight: float = 1.0
    ) -> tuple[list[Array], float, float]:
        """The first half of :meth:`step`: gradients as :meth:`apply` takes them, their norm, and their factor."""
        arrays = None if gradients is None else self._memory_of(gradients)
        weight, scale = _weight(weight), 1.0
        if self.accumulated:
            if arrays is not None:
                self._accumulate(arrays, weight)
            assert self._sums is not None
            arrays, scale = self._sums, 1 / self.accumulated
        if arrays is None:
            raise ConfigError("AdamW: step() without gradients, and none have been accumulated")
        norm = _core.global_norm(arrays) * scale
        if not math.isfinite(norm):
            self.discard()
            raise not_finite("the norm of the gradients", norm, self.steps)
        return arrays, norm, scale

    def apply(self, arrays: list[Array], norm: float, scale: float) -> None:
        """The second half: the step itself, wholly or not at all."""
        self._check()
        if self.clip is not None:
            scale *= min(1.0, self.clip / (norm + 1e-6))
        _core.adamw(
            self._values, arrays, self._m, self._v, [self._decay[n] for n in self._order], self._steps,
            self.lr, *self.betas, self.eps, self.weight_decay, scale,
        )  # fmt: skip

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        """Weights and moments as they lie in memory, by "weights/…", "m/…" and "v/…": views."""
        out: dict[str, Array] = {}
        for kind, arrays in (("weights", self._values), ("m", self._m), ("v", self._v)):
            for name, array in zip(self._order, arrays, strict=True):
                order = self._order[name]
                shape = self.model.weights[name].shape
                out[f"{kind}/{name}"] = array.reshape([shape[axis] for axis in order])
        return out

    def load_state(self, state: Mapping[str, Array], steps: int) -> None:
        """Takes over what :meth:`state` gave, and the number of steps.

        Raises ShapeError where they do not fit, ConfigError for what is no such mapping and for values that no step
        gives; all is then unchanged.
        """
        check_type(Mapping, "what state() gave", **{"AdamW: state": state})
        check_counts(0, steps=steps)
        own = self.state()
        missing = [name for name in own if name not in state]
        given = {name: as_array(state[name], f"AdamW: state: {name}") for name in own if name in state}
        wrong = [
            f"{name} has {array.dtype} {list(array.shape)}, expected {own[name].dtype} {list(own[name].shape)}"
            for name, array in given.items()
            if array.shape != own[name].shape or array.dtype != own[name].dtype
        ]
        if missing or wrong:
            problems = [*(f"{name} is missing" for name in missing[:8]), *wrong[:8]]
            raise ShapeError(f"AdamW: state does not fit the model: {'; '.join(problems)}")
        for name in own:
            if not np.isfinite(given[name]).all() or (name.startswith("v/") and (given[name] < 0).any()):
                raise ConfigError(f"AdamW: state: {name} holds values that are NaN, infinite or negative squares")
        for name, array in own.items():
            array[...] = given[name]
        self._steps[0] = steps
        self.discard()


def not_finite(what: str, value: float, steps: int) -> TrainingError:
    """The error of a step that cannot be done, behind so many that were."""
    return TrainingError(f"step {steps + 1}: {what} is {value}; the weights are those of step {steps}", steps + 1)


def _zeros(like: Array) -> Array:
    out = memory.empty(like.shape, like.dtype)
    out[...] = 0
    return out


def _classic(flat: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    view: Array = flat.reshape([shape[axis] for axis in order]).transpose(order)
    view.flags.writeable = False
    return view
