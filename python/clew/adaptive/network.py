"""Constrained linear-attention transformers: layers that ask u_l(p_l), one answer a head, and a readout.

With the exact posterior as the readout the network is a *policy*, and its error an upper bound of the optimum. With a
network as the readout it is the *constrained transformer* of the specification. Both run and train in the core, on the
estimate ŵ (reduced model) or on the examples themselves (token-level model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import _core
from ..errors import ConfigError, ShapeError, TrainingError
from ..inputs import check_flags, check_numbers, check_seed, check_type, whole
from ..regression._inputs import check_room, finite_array, float_dtype
from .priors import Prior, _positive, check_contexts, check_prior
from .specification import DEFAULT

__all__ = ["Constrained", "Pass", "fit"]

Array = NDArray[Any]
_STEPS_AT_ONCE = 500


@dataclass(frozen=True)
class Pass:
    """Contexts through a network: prediction [n, D], messages [n, L·H], directions [n, L·H, D], squared errors [n].

    The workspace after layer l is `messages[:, : l * heads]`; errors are None where w was not given.
    """

    prediction: Array
    messages: Array
    directions: Array
    errors: Array | None = None

    def __repr__(self) -> str:
        held = [name for name in ("prediction", "messages", "directions", "errors") if getattr(self, name) is not None]
        return "Pass: " + ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in held)


@dataclass(eq=False)
class Constrained:
    """One network. Parameters are one array [P], layer by layer: W1, b1, W2, b2; then the readout's V1, c1, V2, c2.

    prior: whose posterior an exact readout computes, and what training draws from. noise: s. layers × heads messages.
    width: hidden units of each routing network. readout: hidden units, or "exact". routing: False feeds the routing
    networks zeros instead of p: the same parameters, but directions that do not depend on the context, which is one
    layer of L·H heads. orthonormal: directions orthonormal to all earlier ones (always with an exact readout).

    Raises ConfigError or ShapeError for sizes that do not go together.

    Example
    -------
    >>> from clew.adaptive import tree
    >>> policy = Constrained(tree(), 0.3, layers=2)
    >>> policy.n_parameters, policy.run(np.zeros((5, 7))).directions.shape
    (1102, (5, 2, 7))
    """

    prior: Prior
    noise: float
    layers: int
    heads: int = 1
    width: int = DEFAULT.width
    readout: int | Literal["exact"] = "exact"
    routing: bool = True
    orthonormal: bool | None = None
    seed: int = 0
    dtype: DTypeLike = "float32"
    parameters: Array = None  # type: ignore[assignment]
    losses: Array = field(default_factory=lambda: np.empty(0), repr=False)
    """Mean squared error of each training step's batch."""

    def __post_init__(self) -> None:
        check_prior(self.prior)
        _positive("noise", self.noise)
        self.dtype = float_dtype(self.dtype)
        self.seed = check_seed(self.seed)
        check_flags(routing=self.routing)
        if self.orthonormal is not None:
            check_flags(orthonormal=self.orthonormal)
        for name in ("layers", "heads", "width"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ConfigError(f"{name} = {value!r}, must be a positive whole number")
            if value >= 2**31:
                raise ConfigError(f"{name} = {value}: below 2³¹")
        units = 1 if isinstance(self.readout, str) and self.readout == "exact" else self.readout
        if isinstance(units, bool) or not isinstance(units, int | np.integer) or not 1 <= units < 2**31:
            raise ConfigError(f'readout = {self.readout!r:.60}: a number of hidden units, or "exact"')
        if self.orthonormal is None:
            self.orthonormal = self.readout == "exact"
        try:
            n = _core.adaptive_parameters(self._shape)
        except ValueError as error:
            raise ConfigError(f"Constrained: {error}") from None
        if self.parameters is None:
            self.parameters = self._initial(n)
        self.parameters = np.ascontiguousarray(finite_array(self.parameters, "parameters"), self.dtype)
        if self.parameters.shape != (n,):
            raise ShapeError(f"parameters {list(self.parameters.shape)}, this network has [{n}]")

    def __repr__(self) -> str:
        ends = "an exact readout" if self.readout == "exact" else f"{self.readout} hidden units in the readout"
        parts = [f"{self.layers} layers of {self.heads} heads", f"width {self.width}", ends]
        parts += ["no routing"] * (not self.routing) + [f"{self.n_parameters} parameters {self.dtype}"]
        if len(self.losses):
            parts.append(f"trained for {len(self.losses)} steps")
        return f"Constrained, prior {self.prior.name!r}, noise {self.noise:g}: {', '.join(parts)}"

    @property
    def _exact(self) -> bool:
        return self.readout == "exact"

    @property
    def _shape(self) -> tuple[int, int, int, int, int, int, bool, bool]:
        readout = 0 if self.readout == "exact" else int(self.readout)
        points = len(self.prior.centres) if self._exact else 0
        sizes = (self.prior.dim, int(self.layers), int(self.heads), int(self.width))
        return (*sizes, readout, points, bool(self.routing), bool(self.orthonormal))

    @property
    def n_parameters(self) -> int:
        """P."""
        return len(self.parameters)

    def _initial(self, n: int) -> Array:
        check_room("Constrained: parameters", n)
        np.empty(n)  # NumPy's MemoryError says the bytes before anything is drawn
        rng = np.random.default_rng([self.seed, 2606])
        d, out = self.prior.dim, self.heads * self.prior.dim
        parts: list[Array] = []
        for layer in range(self.layers):
            n_in = layer * self.heads
            parts += [
                rng.standard_normal((self.width, n_in)) * max(n_in, 1) ** -0.5,
                rng.standard_normal(self.width) * 0.5,
                rng.standard_normal((out, self.width)) * self.width**-0.5,
                np.zeros(out),
            ]
        if self.readout != "exact":
            messages, units = self.layers * self.heads, int(self.readout)
            parts += [
                rng.standard_normal((units, messages)) * 1.5 * messages**-0.5,
                rng.standard_normal(units) * 0.5,
                rng.standard_normal((d, units)) * 0.1 * units**-0.5,
                np.zeros(d),
            ]
        flat = np.concatenate([part.ravel() for part in parts])
        assert len(flat) == n
        return flat.astype(self.dtype)

    # ---- Running ----------------------------------------------------------------------------------------------------

    def _contexts(self, value: ArrayLike, what: str) -> Array:
        array = self._numbers(value, what)
        if array.ndim != 2 or array.shape[1] != self.prior.dim:
            raise ShapeError(f"{what} {list(array.shape)}: [n, D], D is {self.prior.dim}")
        return array

    def _numbers(self, value: ArrayLike, what: str) -> Array:
        """A contiguous array in the network's dtype; ConfigError for values that are not finite in it."""
        array = finite_array(value, what)
        with np.errstate(over="ignore"):
            out = np.ascontiguousarray(array, self.dtype)
        bad = np.argwhere(~np.isfinite(out))
        if len(bad):
            raise ConfigError(f"{what}{bad[0].tolist()} = {array[tuple(bad[0])]:g} is beyond the range of {self.dtype}")
        return out

    def _pass(
        self, estimate: ArrayLike | None, examples: tuple[ArrayLike, ArrayLike] | None, w: ArrayLike | None, start: int,
        messages: ArrayLike | None, gradient: Array | None,
    ) -> Pass:  # fmt: skip
        d, width = self.prior.dim, self.layers * self.heads
        x = y = reduced = None
        if (estimate is None) == (examples is None):
            raise ConfigError("a context is an estimate or examples (x, y): give one of them")
        if examples is not None:
            if not isinstance(examples, Sequence) or len(examples) != 2:
                raise ConfigError(f"examples: a pair (x [n, N, D], y [n, N]), not {type(examples).__name__}")
            x, y = self._numbers(examples[0], "x"), self._numbers(examples[1], "y")
            if x.ndim != 3 or x.shape[2] != d or y.shape != x.shape[:2] or 0 in x.shape:
                raise ShapeError(f"examples: x {list(x.shape)} and y {list(y.shape)}, not [n, N, {d}] and [n, N]")
            n = len(x)
        else:
            assert estimate is not None
            reduced = self._contexts(estimate, "estimate")
            n = len(reduced)
        if not 0 <= whole(start, "start") <= self.layers:
            raise ConfigError(f"start = {start}: this network has {self.layers} layers")
        answers = np.zeros((n, width), self.dtype)
        if start > 0:
            if messages is None:
                raise ConfigError(f"start = {start} needs the messages of the layers before it")
            given = self._numbers(messages, "messages")
            if given.ndim != 2 or len(given) != n or given.shape[1] < start * self.heads:
                raise ShapeError(f"messages {list(given.shape)}: [{n}, at least {start * self.heads}]")
            answers[:, : start * self.heads] = given[:, : start * self.heads]
        truth = None if w is None else self._contexts(w, "w")
        if truth is not None and len(truth) != n:
            raise ShapeError(f"w {list(truth.shape)} for {n} contexts")
        prediction, directions = np.empty((n, d), self.dtype), np.empty((n, width, d), self.dtype)
        errors = None if truth is None else np.empty(n)
        _core.adaptive_pass(
            self._shape,
            self.parameters,
            self.prior.centres.astype(self.dtype) if self._exact else None,
            self.prior.spread.astype(self.dtype),
            self.noise**2,
            n,
            truth,
            reduced,
            x,
            y,
            start,
            prediction,
            answers,
            directions,
            errors,
            gradient,
        )
        for what, made in (("prediction", prediction), ("errors", errors)):
            if made is not None and not np.isfinite(made).all():
                row = int(np.argwhere(~np.isfinite(made))[0][0])
                raise ConfigError(
                    f"the {what} of context {row} is beyond the range of {self.dtype}: rescale what it sees"
                )
        return Pass(prediction, answers, directions, errors)

    def run(
        self, estimate: ArrayLike | None = None, *, examples: tuple[ArrayLike, ArrayLike] | None = None,
        w: ArrayLike | None = None, start: int = 0, messages: ArrayLike | None = None,
    ) -> Pass:  # fmt: skip
        """Runs contexts: an estimate ŵ [n, D] each, or examples (x [n, N, D], y [n, N]).

        w [n, D]: for squared errors. start, messages [n, ≥ start·heads]: layers before `start` do not run; their
        answers are taken from `messages` instead, which is how a workspace is patched.

        Raises ShapeError for shapes that do not fit (both named), ConfigError for values that are no finite numbers.
        """
        return self._pass(estimate, examples, w, start, messages, None)

    def gradient(
        self, w: ArrayLike, estimate: ArrayLike | None = None, *,
        examples: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> tuple[float, Array]:  # fmt: skip
        """Mean squared error over contexts, and its gradient by the parameters [P]. Raises as `run`."""
        if w is None:
            raise ConfigError("w = None: an error is against true contexts w [n, D]")
        out = np.empty_like(self.parameters)
        errors = self._pass(estimate, examples, w, 0, None, out).errors
        assert errors is not None
        if not len(errors):
            raise ShapeError(f"w {list(np.shape(w))}: at least one context, for an error's mean")
        return float(errors.mean()), out

    def error(self, n: int = 100_000, seed: int = 1) -> tuple[float, float]:
        """E|w − ŵ|² over n fresh contexts of the reduced model, and its standard error.

        Raises ConfigError for fewer than 2 contexts and a negative seed, MemoryError.
        """
        check_contexts(n, self.layers * self.heads * self.prior.dim, least=2)
        rng = np.random.default_rng([check_seed(seed), n])
        w, _ = self.prior.sample(n, rng)
        errors = self.run(w + self.noise * rng.standard_normal(w.shape), w=w).errors
        assert errors is not None
        return float(errors.mean()), float(errors.std() / n**0.5)


def check_network(network: Any) -> None:
    """Raises ConfigError for what is no network."""
    check_type(Constrained, "a Constrained, such as fit() gives", network=network)


def fit(
    prior: Prior | Sequence[Prior],
    noise: float,
    layers: int,
    heads: int = 1,
    *,
    readout: int | Literal["exact"] = "exact",
    routing: bool = True,
    orthonormal: bool | None = None,
    width: int = DEFAULT.width,
    seeds: Sequence[int] = (0,),
    steps: int = 2500,
    batch: int = DEFAULT.batch,
    rate: float = 3e-3,
    dtype: DTypeLike = "float32",
) -> list[Constrained]:
    """Trains one network for each seed, side by side, by Adam whose rate falls along half a cosine to a fiftieth.

    prior: one, or one for each seed (of as many centres). Each step draws fresh contexts and one fresh estimate for
    each, from the seed and the step alone: results are the same bits for any number of threads. The networks'
    `losses` [steps] are those of the batches.

    Raises ConfigError for settings that do not go together, TrainingError when a loss is not finite.

    Example
    -------
    >>> from clew.adaptive import tree
    >>> one, = fit(tree(), 0.3, 1, steps=60, batch=128)
    >>> bool(one.losses[-10:].mean() < one.losses[:10].mean())
    True
    """
    for what, given in (("layers", layers), ("width", width), ("steps", steps), ("batch", batch)):
        if not 0 <= whole(given, what) < 2**31:
            raise ConfigError(f"{what} = {given}: below 2³¹")
    for what, several in (("prior", prior), ("seeds", seeds)):
        if not isinstance(several, Prior | Sequence | np.ndarray) or isinstance(several, str):
            raise ConfigError(f"{what}: one or a sequence of them, not {type(several).__name__}")
    if not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s < 2**63 for s in seeds):
        raise ConfigError(f"seeds {list(seeds)!r}: whole numbers from 0, below 2⁶³")
    priors = [prior] * len(seeds) if isinstance(prior, Prior) else list(prior)
    if not len(seeds) or len(priors) != len(seeds) or any(int(s) != s or s < 0 for s in seeds):
        raise ConfigError(f"{len(priors)} priors for seeds {list(seeds)!r}: one each, seeds are whole and not negative")
    if strange := [type(p).__name__ for p in priors if not isinstance(p, Prior)]:
        raise ConfigError(f"prior: a Prior, such as tree() gives, not {strange[0]}")
    if len({p.centres.shape for p in priors}) > 1:
        raise ConfigError(f"priors with different numbers of centres: {[list(p.centres.shape) for p in priors]}")
    check_numbers(rate=rate)
    if steps < 1 or batch < 1 or not rate > 0:
        raise ConfigError(f"steps = {steps}, batch = {batch}, rate = {rate}: must be positive")
    networks = [
        Constrained(p, noise, layers, heads, width, readout, routing, orthonormal, int(s), dtype)
        for p, s in zip(priors, seeds, strict=True)
    ]
    parameters = np.stack([network.parameters for network in networks])
    m, v = np.zeros_like(parameters), np.zeros_like(parameters)
    kind = parameters.dtype
    losses = np.empty((steps, len(seeds)))
    for first in range(0, steps, _STEPS_AT_ONCE):
        part = losses[first : first + _STEPS_AT_ONCE]
        try:
            _core.adaptive_train(
                networks[0]._shape,
                parameters,
                m,
                v,
                np.stack([p.centres for p in priors]).astype(kind),
                np.stack([p.spread for p in priors]).astype(kind),
                np.full(len(seeds), float(noise)),
                np.array(seeds, np.uint64),
                part,
                int(batch),
                first,
                int(steps),
                float(rate),
                float(rate) / 50,
            )
        except ConfigError as error:
            raise TrainingError(f"fit: {error}", first + 1) from None
    for i, network in enumerate(networks):
        network.parameters = parameters[i].copy()
        network.losses = losses[:, i].copy()
    return networks
