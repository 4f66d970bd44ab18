"""How estimators reach the engine: a method, made of its parameters, runs over prefixes or fits all examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, TypeVar

import numpy as np

from .. import _core
from ..errors import ConfigError
from ._inputs import Array, Examples, check_range


class Kind(IntEnum):
    """The streams of csrc/core/kernels_reg.h, in its order."""

    OLS, RIDGE, BAYES, AVERAGING, SGD, GD, GD_PP, NEWTON, LASSO = range(9)


LEAST_LAM = {np.dtype(np.float32): 2.0**-99, np.dtype(np.float64): 2.0**-899}
"""Of ridge regression: rotations leave out squares of less than half of that (REAL_TINY in kernels_reg_internal.h)."""


class Method(Protocol):
    """An estimator with its parameters."""

    def prefixes(self, given: Examples, weights: bool) -> Any:
        """Predictions [batch, n] of each example from those before; with weights (predictions, w [batch, n, d])."""

    def fit(self, given: Examples, queries: Array) -> Array:
        """Predictions [batch, m] for queries [batch, m, d] from all examples."""


@dataclass(frozen=True)
class Stream:
    """A method whose state is updated example by example and gives a weight vector."""

    kind: Kind
    steps: int = 0
    lam: float = 0.0
    noise_var: float = 0.0
    alpha: float = 0.0
    tol: float = 0.0
    momentum: float = 0.0
    rates: Array | None = None
    gammas: Array | None = None
    matrices: Array | None = None
    mean: Array | None = None
    max_iterations: int = 0
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Parameters by the user's names for them, which must have a value in the dtype of the computation."""
    arrays: dict[Any, tuple[Array | None, Array | None]] = field(default_factory=dict, compare=False, repr=False)

    def settings(self, dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """What the engine is told; matrices in the dtype of the computation; ConfigError for one beyond it."""
        if dtype not in self.arrays:
            check_range(dtype, LEAST_LAM[dtype] if self.kind == Kind.RIDGE else 0.0, **self.given)
            self.arrays[dtype] = tuple(  # type: ignore[assignment]
                None if a is None else np.ascontiguousarray(a, dtype) for a in (self.matrices, self.mean)
            )
        matrices, mean = self.arrays[dtype]
        return (
            *(int(self.kind), self.steps, self.lam, self.noise_var, self.alpha, self.tol, self.momentum),
            *(self.rates, self.gammas, matrices, mean, self.max_iterations),
        )

    def run(
        self,
        given: Examples,
        first: int,
        last: int,
        yhat: Array | None,
        w: Array | None,
        variance: Array | None = None,
        covariance: Array | None = None,
    ) -> None:
        """Fills estimates from prefixes first … last."""
        settings = self.settings(given.dtype)
        _core.reg_stream(settings, given.x, given.y, first, last, yhat, w, variance, covariance)

    def prefixes(self, given: Examples, weights: bool) -> Any:
        yhat = np.empty(given.y.shape, given.dtype)
        w = np.empty(given.x.shape, given.dtype) if weights else None
        self.run(given, 0, given.y.shape[1] - 1, yhat, w)
        return (yhat, w) if weights else yhat

    def fit_weights(self, given: Examples) -> Array:
        """The estimate [batch, d] from all examples."""
        batch, n, d = given.x.shape
        w = np.empty((batch, 1, d), given.dtype)
        self.run(given, n, n, None, w)
        return w[:, 0]

    def fit(self, given: Examples, queries: Array) -> Array:
        return np.asarray(np.einsum("bmd,bd->bm", queries, self.fit_weights(given)))


@dataclass(frozen=True)
class Compare:
    """A method without a weight vector: queries are compared with the examples they see."""

    kind: int
    a: float
    b: float = 0.0

    def prefixes(self, given: Examples, weights: bool) -> Any:
        if weights:
            raise ConfigError("this estimator has no weight vector: weights=True is for linear ones")
        out = np.empty(given.y.shape, given.dtype)
        _core.reg_compare(self.kind, out, given.x, given.y, given.x, 0, 1, self.a, self.b)
        return out

    def fit(self, given: Examples, queries: Array) -> Array:
        out = np.empty(queries.shape[:2], given.dtype)
        if queries.shape[1]:
            _core.reg_compare(self.kind, out, given.x, given.y, queries, given.y.shape[1], 0, self.a, self.b)
        return out


Builder = Callable[..., Method]
B = TypeVar("B", bound=Builder)
METHODS: dict[str, Builder] = {}
"""By name: a function (d, **parameters) that checks the parameters and makes the method."""


def method(name: str) -> Callable[[B], B]:
    """Registers a builder."""

    def register(builder: B) -> B:
        METHODS[name] = builder
        return builder

    return register


def build(name: str, d: int, parameters: dict[str, Any]) -> Method:
    """The method of a name; ConfigError that lists the names, or says which parameters are wrong or missing."""
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"no method {name!r}: {', '.join(sorted(METHODS))}")
    builder = METHODS[name]
    signature = list(inspect.signature(builder).parameters.values())[1:]  # after d
    known = [p.name for p in signature]
    required = [p.name for p in signature if p.default is p.empty]
    unknown = [p for p in parameters if p not in known]
    missing = [p for p in required if p not in parameters]
    if unknown or missing:
        what = [f"does not take {', '.join(unknown)}"] * bool(unknown) + [f"needs {', '.join(missing)}"] * bool(missing)
        raise ConfigError(f"{name} {' and '.join(what)}: its parameters are {', '.join(known) or 'none'}")
    return builder(d, **parameters)
