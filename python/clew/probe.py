"""Linear probes: what can be read off activations by a linear map, for many targets and several layers at once.

`Moments` streams: a ridge regression needs sums of products only, so activations are seen once and never kept.

>>> import numpy as np
>>> from clew import probe
>>> X = np.random.default_rng(0).standard_normal((200, 5))
>>> Y = (X[:, :2] + 0.1 > 0).astype(float)
>>> found = probe.logistic(X, Y)
>>> found.weight.shape, float((found.predict(X) == Y).mean()) > 0.95
((5, 2), True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError
from .inputs import as_array, check_counts, number, real_numbers, whole

Array = NDArray[Any]

HEADROOM = 200
"""Powers of two by which later rows may exceed the first ones before sums of their products are scaled anew."""


@dataclass(frozen=True)
class Probe:
    """Linear maps, one for each layer where there are layers.

    Raises ShapeError for a weight and a bias that are no such maps, ConfigError for a boundary that is no number.
    """

    weight: Array
    """[..., d, t], float64: layers (or none), features, targets."""
    bias: Array
    """[..., t]"""
    boundary: float = 0.5
    """Above it a score means 1: ½ for regressions on 0 and 1, 0 for log-odds."""
    converged: ArrayLike = True
    """Bool [...]: had the fit of each layer ended when its steps did? Ridge regression takes none."""

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            object.__setattr__(self, name, real_numbers(getattr(self, name), f"probe: {name}"))
        if self.weight.ndim < 2 or self.bias.shape != self.weight.shape[:-2] + self.weight.shape[-1:]:
            raise ShapeError(
                f"probe: weight {list(self.weight.shape)} and bias {list(self.bias.shape)}: [..., d, t] and [..., t]"
            )
        object.__setattr__(self, "boundary", number(self.boundary, "probe: boundary", least=-math.inf))

    def __call__(self, x: ArrayLike) -> Array:
        """Scores [..., n, t] of activations [..., n, d], float64.

        Raises ShapeError for another number of features, ConfigError for NaN or infinity.
        """
        array = _finite(x, "activations")
        if array.ndim < 2 or array.shape[-1] != self.weight.shape[-2]:
            raise ShapeError(f"probe: activations {list(array.shape)}, the last axis must be {self.weight.shape[-2]}")
        return np.asarray(array @ self.weight + self.bias[..., None, :], np.float64)

    def predict(self, x: ArrayLike) -> Array:
        """Bool [..., n, t]: is the score above the boundary?"""
        return np.asarray(self(x) > self.boundary)

    def __repr__(self) -> str:
        layers = [f"{n} layers, " for n in self.weight.shape[:-2]]
        ended = "" if np.all(self.converged) else ", not converged"
        return f"Probe of {''.join(layers)}{self.weight.shape[-2]} features, {self.weight.shape[-1]} targets{ended}"

    def layer(self, index: int) -> Probe:
        """One layer's probe, negative ones from the end. Raises ConfigError for one that is not there."""
        if self.weight.ndim < 3:
            raise ConfigError(f"layer = {index}: this probe is of one layer")
        n = len(self.weight)
        if not -n <= whole(index, "layer") < n:
            raise ConfigError(f"layer = {index}: the probe has layers 0 to {n - 1}")
        return self.layers(index)

    def layers(self, which: Any) -> Probe:
        """The maps of some layers, as NumPy takes them along the first axis."""
        converged = np.broadcast_to(self.converged, self.bias.shape[:-1])[which]
        return Probe(self.weight[which], self.bias[which], self.boundary, converged)

    def targets(self, which: slice) -> Probe:
        """The maps of some of the targets."""
        return Probe(self.weight[..., which], self.bias[..., which], self.boundary, self.converged)


class Moments:
    """Sums of products of activations and targets, float64, added up block by block: all that ridge regression needs.

    Memory: layers · d · (d + t) numbers, whatever the number of rows.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.standard_normal((3, 100, 4)), rng.standard_normal((100, 2))
    >>> sums = Moments()
    >>> for rows in (slice(0, 60), slice(60, 100)):
    ...     sums.add(X[:, rows], Y[rows])
    >>> sums.n, sums.ridge().weight.shape
    (100, (3, 4, 2))
    """

    def __init__(self) -> None:
        self.n = 0
        """Rows so far."""
        # sums are of scaled rows: products of numbers around 1e±160 have none in float64
        self._ex: Array = np.zeros(0, int)
        self._ey: Array = np.zeros(0, int)
        self._x0: Array = np.zeros(0)
        self._y0: Array = np.zeros(0)
        self._xy: Array = np.zeros(0)

    def __repr__(self) -> str:
        sizes = f" of {self._xy.shape[-2]} activations and {self._xy.shape[-1]} targets" if self.n else ""
        return f"Moments of {self.n} rows{sizes}"

    def add(self, x: ArrayLike, y: ArrayLike) -> None:
        """Adds rows: activations [..., n, d], targets [n, t] or [n], or [..., n, t] where they differ by layer.

        Raises ShapeError where the rows do not fit each other, or the earlier ones; ConfigError for NaN or infinity.
        """
        X, Y = _rows(x, y)
        if X.ndim < 2 or Y.ndim < 2 or X.shape[-2] != Y.shape[-2] or Y.ndim > 2 and Y.shape[:-2] != X.shape[:-2]:
            raise ShapeError(f"probe: activations {list(X.shape)} and targets {list(Y.shape)}: [..., n, d] and [n, t]")
        if X.shape[-2] == 0:
            return
        X, Y = X.astype(np.float64), Y.astype(np.float64)
        ex, ey = _exponent(X), _exponent(Y)
        if self.n == 0:
            self._ex, self._ey = ex, ey
        elif (*X.shape[:-2], X.shape[-1], Y.shape[-1]) != self._xy.shape or ey.shape != self._ey.shape:
            raise ShapeError(
                f"probe: activations {list(X.shape)} and targets {list(Y.shape)} behind sums of {list(self._xy.shape)}"
            )
        else:
            self._rescale(ex, ey)
        if self._ex.any() or self._ey.any():
            X, Y = np.ldexp(X, -self._ex), np.ldexp(Y, -self._ey)
        if self.n == 0:  # sums are taken around the first block's means, so that no large numbers cancel
            self._x0, self._y0 = X.mean(-2, keepdims=True), Y.mean(-2, keepdims=True)
            self._x, self._y = np.zeros_like(self._x0), np.zeros_like(self._y0)
            self._xx = np.zeros((*X.shape[:-2], X.shape[-1], X.shape[-1]))
            self._xy = np.zeros((*X.shape[:-2], X.shape[-1], Y.shape[-1]))
        X -= self._x0
        Y = Y - self._y0
        self._x += X.sum(-2, keepdims=True)
        self._y += Y.sum(-2, keepdims=True)
        turned = np.swapaxes(X, -1, -2)
        self._xx += turned @ X
        self._xy += turned @ Y
        self.n += X.shape[-2]

    def _rescale(self, ex: Array, ey: Array) -> None:
        """Makes room for rows of these exponents, where they are far above those so far."""
        ex, ey = (np.where(new > old + HEADROOM, new, old) for new, old in ((ex, self._ex), (ey, self._ey)))
        by_x, by_y = self._ex - ex, self._ey - ey
        if by_x.any() or by_y.any():
            self._x0, self._x, self._y0, self._y, self._xx, self._xy = (
                np.ldexp(sums, by) for sums, by in (
                    (self._x0, by_x), (self._x, by_x), (self._y0, by_y), (self._y, by_y), (self._xx, 2 * by_x),
                    (self._xy, by_x + by_y),
                )
            )  # fmt: skip
            self._ex, self._ey = ex, ey

    def _scaled(self) -> tuple[Array, Array, Array, Array]:
        """Means [..., 1, d], [..., 1, t] and covariances [..., d, d], [..., d, t] of the scaled rows."""
        if self.n == 0:
            raise ConfigError("probe: no rows to learn from")
        turned = np.swapaxes(self._x, -1, -2)
        return (
            self._x0 + self._x / self.n, self._y0 + self._y / self.n,
            self._xx / self.n - turned @ self._x / self.n**2, self._xy / self.n - turned @ self._y / self.n**2,
        )  # fmt: skip

    @property
    def mean(self) -> Array:
        """Mean activation [..., d]."""
        return _as_given(self._scaled()[0], self._ex, "means")[..., 0, :]

    @property
    def target_mean(self) -> Array:
        """Mean of the targets [..., t]."""
        return _as_given(self._scaled()[1], self._ey, "means")[..., 0, :]

    @property
    def covariance(self) -> Array:
        """Covariance of activations [..., d, d], divided by n. Raises ConfigError where it is beyond float64."""
        return _as_given(self._scaled()[2], 2 * self._ex, "covariances")

    @property
    def cross(self) -> Array:
        """Covariance of activations and targets [..., d, t]. Raises ConfigError where it is beyond float64."""
        return _as_given(self._scaled()[3], self._ex + self._ey, "covariances")

    def ridge(self, lam: float = 1e-3) -> Probe:
        """Minimises mean ‖x W + b − y‖² + λ ‖W‖², λ = lam · mean variance of the features; b is not shrunk.

        A feature that never varies gets no weight. Raises ConfigError for a negative lam, without rows, or for weights
        beyond float64.
        """
        lam = number(lam, "probe: lam")
        mean, target_mean, S, cross = self._scaled()
        d = S.shape[-1]
        size = np.trace(S, axis1=-2, axis2=-1)[..., None, None] / d
        over = max(0, int(np.frexp(lam)[1]))  # of a large lam, which times a variance may be beyond float64
        S = np.ldexp(S, -over) + np.ldexp(lam, -over) * np.where(size > 0, size, 1.0) * np.eye(d)
        # a lam below rounding would leave S singular to rounding, where its limit is the pseudo-inverse
        W = np.linalg.solve(S, cross) if lam > _EPS else np.linalg.pinv(S, hermitian=True) @ cross
        bias = target_mean - mean @ np.ldexp(W, -over)
        weight = _as_given(W, self._ey - self._ex - over, "weights")
        bias = _as_given(bias, self._ey, "biases")[..., 0, :]
        return Probe(weight, bias, converged=np.ones(weight.shape[:-2], bool))


_EPS = float(np.finfo(np.float64).eps)


def _exponent(array: Array, ordinary: int = HEADROOM) -> Array:
    """The power of two above the largest magnitude of each layer [..., 1, 1]; 0 up to `ordinary`, which needs no unit.

    Of zeros it is below that of every other number.
    """
    largest = np.abs(array).max((-2, -1), keepdims=True, initial=0)
    exponent = np.where(largest > 0, np.frexp(largest)[1], -1074)
    return np.asarray(np.where(np.abs(exponent) <= ordinary, 0, exponent))


def _as_given(scaled: Array, exponent: Array | int, what: str) -> Array:
    """Of what was computed of scaled rows, the value in the units of the rows; ConfigError where float64 has none."""
    with np.errstate(over="ignore", under="ignore"):
        out = np.ldexp(scaled, exponent)
    if not np.isfinite(out).all():
        raise ConfigError(f"probe: {what} are beyond float64: rescale activations or targets")
    return np.asarray(out)


def _rows(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Activations and targets as arrays of finite numbers; targets [n] are one column."""
    X, Y = _finite(x, "activations"), _finite(y, "targets")
    return X, Y[:, None] if Y.ndim == 1 else Y


def _finite(values: ArrayLike, what: str) -> Array:
    array = as_array(values, f"probe: {what}")
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"probe: {what} must be real numbers, not {array.dtype} {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ConfigError(f"probe: {what} hold NaN or infinity")
    return array


def ridge(x: ArrayLike, y: ArrayLike, lam: float = 1e-3) -> Probe:
    """Ridge regression of targets [n, t] or [n] (one) on activations [..., n, d]; see :meth:`Moments.ridge`.

    Of targets 0 and 1 the boundary is ½. Raises ShapeError, ConfigError.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).standard_normal((50, 3))
    >>> bool(np.allclose(ridge(X, X[:, :1] * 2 + 1, lam=0).bias, 1))
    True
    """
    sums = Moments()
    sums.add(x, y)
    return sums.ridge(lam)


def logistic(x: ArrayLike, y: ArrayLike, lam: float = 1e-3, *, steps: int = 500, tol: float = 1e-4) -> Probe:
    """Logistic regression of each target 0 or 1, [n, t] or [n] (one), on activations [..., n, d].

    Minimises the mean cross-entropy + λ/2 ‖w‖², λ = lam · mean variance of the features / 4, by accelerated steps of
    the fixed Hessian bound Σ/4 + λ (Böhning and Lindsay 1988), restarted where they overshoot (O'Donoghue and Candès
    2015). All targets share each step's two products. Products are computed in the activations' dtype.

    Parameters
    ----------
    lam
        Keeps weights of separable targets finite; above 0.
    steps, tol
        Steps at most; it ends once no weight, in units of the features' deviation, has changed by more than tol. Where
        the steps end before that, :attr:`Probe.converged` is False.

    Raises ShapeError for shapes that do not fit, ConfigError for targets other than 0 and 1, a lam or tol that is not
    above 0, steps below 1, or weights beyond float64.
    """
    X, Y = _rows(x, y)
    X = X if X.dtype in (np.float32, np.float64) else X.astype(np.float64)
    lam = number(lam, "probe: logistic: lam", above=True, why=": weights of separable targets would be infinite")
    tol = number(tol, "probe: logistic: tol", above=True)
    check_counts(steps=steps)
    if X.ndim < 2 or Y.ndim != 2 or X.shape[-2] != len(Y) or len(Y) == 0:
        raise ShapeError(f"probe: activations {list(X.shape)} and targets {list(Y.shape)}: [..., n, d] and [n, t]")
    if not np.isin(Y, (0, 1)).all():
        raise ConfigError("probe: logistic: targets must be 0 or 1")
    flat = X.reshape(-1, *X.shape[-2:])
    fits = [_logistic(layer, Y.astype(X.dtype), lam, steps, tol) for layer in flat]
    d, t = X.shape[-1], Y.shape[1]
    weight = np.array([w for w, _, _ in fits]).reshape(*X.shape[:-2], d, t)
    bias = np.array([b for _, b, _ in fits]).reshape(*X.shape[:-2], t)
    return Probe(weight, bias, 0.0, np.array([c for _, _, c in fits]).reshape(X.shape[:-2]))


def _logistic(X: Array, Y: Array, lam: float, steps: int, tol: float) -> tuple[Array, Array, bool]:
    """Weights [d, t] and biases [t] of one layer, and whether the steps led there."""
    n, d = X.shape
    exponent = _exponent(X, HEADROOM if X.dtype == np.float64 else 20)  # float32 may hold no products of X as it is
    X = np.ldexp(X, -exponent)
    mean = X.mean(0, dtype=np.float64)
    centred = X - mean.astype(X.dtype)
    S = (centred.T @ centred).astype(np.float64) / n
    size = np.trace(S) / d or 1.0
    pull = lam * size / 4
    bound = S / 4 + pull * np.eye(d)
    inverse = np.linalg.inv(bound) if lam > _EPS else np.linalg.pinv(bound, hermitian=True)
    deviation = np.sqrt(np.maximum(np.diag(S), 0))[:, None]
    w, b = np.zeros((d, Y.shape[1])), np.zeros(Y.shape[1])
    w_old, b_old, moment = w, b, np.ones(Y.shape[1])
    v, c, converged = w, b, False
    for _ in range(steps):
        z = centred @ v.astype(X.dtype) + c.astype(X.dtype)
        error = 0.5 * (1 + np.tanh(0.5 * z)) - Y
        by_w = (centred.T @ error).astype(np.float64) / n + pull * v
        by_b = error.mean(0, dtype=np.float64)
        w_old, b_old = w, b
        w, b = v - inverse @ by_w, c - 4 * by_b
        change_w, change_b = w - w_old, b - b_old
        if max(float(np.abs(change_w * deviation).max(initial=0)), float(np.abs(change_b).max(initial=0))) < tol:
            converged = True
            break
        overshot = (by_w * change_w).sum(0) + by_b * change_b > 0
        following = np.where(overshot, 1.0, (1 + np.sqrt(1 + 4 * moment**2)) / 2)
        push = np.where(overshot, 0.0, (moment - 1) / following)
        moment = following
        v, c = w + push * change_w, b + push * change_b
    return _as_given(w, -exponent, "weights"), b - mean @ w, converged


__all__ = ["Moments", "Probe", "logistic", "ridge"]
