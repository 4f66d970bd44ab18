"""Estimators with a weight vector: least squares and its relatives, Bayes, and the ones that iterate.

Every one takes X [batch, n, d] and y [batch, n] and predicts each example from those before it in its sequence:
`yhat[:, i] = X[:, i] · w_i`, where w_i is made of examples 0 … i − 1 and w_0 = 0. float32 and float16 are computed in
float32, everything else in float64; arrays may have any layout and are never changed. Common errors: ShapeError (shapes
that do not fit together, n or d of 0, no real numbers), ConfigError (NaN or infinity, and where; parameters out of
range; estimates beyond the range of the dtype).

>>> import numpy as np
>>> from clew import regression
>>> rng = np.random.default_rng(0)
>>> X, w = rng.standard_normal((2, 8, 5)), rng.standard_normal((2, 5))
>>> y = np.einsum("bnd,bd->bn", X, w)
>>> error = abs(regression.ols(X, y) - y)
>>> bool((error[:, 5:] < 1e-9).all()), bool((error[:, :5] > 1e-3).any())
(True, True)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError, ShapeError
from ..inputs import check_flags, number, real_numbers
from ._inputs import (
    Array,
    count,
    covariance_factor,
    examples,
    in_slab,
    matrix,
    per_step,
)
from ._run import Kind, Stream, build, method


def _prefixes(name: str, x: ArrayLike, y: ArrayLike, weights: bool, parameters: dict[str, Any]) -> Any:
    check_flags(weights=weights)
    given = examples(x, y)
    return build(name, given.d, parameters).prefixes(given, weights)


# ---- Least squares, ridge -------------------------------------------------------------------------------------------


@method("ols")
def _ols(d: int) -> Stream:
    return Stream(Kind.OLS)


def ols(X: ArrayLike, y: ArrayLike, *, weights: bool = False) -> Any:
    """Minimum-norm least squares of every prefix: yhat [batch, n]; with `weights` (yhat, w [batch, n, d]).

    Exact through rank deficiency: fewer examples than d, repeated and dependent rows, any scale. The rank of k rows is
    that of `numpy.linalg.lstsq`: singular values above eps · max(k, d) times the largest, eps of the dtype. By
    orthogonal updating, O(d²) an example.

    >>> import numpy as np
    >>> yhat, w = ols([[[3.0, 4.0], [3.0, 4.0], [4.0, -3.0]]], [[5.0, 7.0, 1.0]], weights=True)
    >>> w[0].round(12).tolist()
    [[0.0, 0.0], [0.6, 0.8], [0.72, 0.96]]
    """
    return _prefixes("ols", X, y, weights, {})


@method("ridge")
def _ridge(d: int, lam: Any) -> Stream:
    value = number(lam, "lam")
    return Stream(Kind.RIDGE, lam=value, given={"lam": value}) if value > 0 else Stream(Kind.OLS)


def ridge(X: ArrayLike, y: ArrayLike, lam: float, *, weights: bool = False) -> Any:
    """Ridge regression of every prefix, w = (XᵀX + lam I)⁻¹ Xᵀy: yhat [batch, n]; with `weights` (yhat, w).

    lam = 0 is `ols`; one too small for the dtype (float32: below 1.6e-30) is refused. The triangular factor of
    XᵀX + lam I is updated by rotations, O(d²) an example, so the error grows with the condition of [X; √lam I], not
    with its square; √lam should be above the rounding of X.

    >>> ridge([[[1.0, 0.0], [2.0, 1.0]]], [[3.0, 1.0]], lam=0.5).round(9).tolist()
    [[0.0, 4.0]]
    """
    return _prefixes("ridge", X, y, weights, {"lam": lam})


@method("averaging")
def _averaging(d: int) -> Stream:
    return Stream(Kind.AVERAGING)


def averaging(X: ArrayLike, y: ArrayLike, *, weights: bool = False) -> Any:
    """Averaging, w = (1/k) Σ y_j x_j over the k examples so far (Garg et al. 2022): yhat; with `weights` (yhat, w).

    >>> averaging([[[1.0], [1.0], [1.0]]], [[2.0, 4.0, 0.0]]).tolist()
    [[0.0, 2.0, 3.0]]
    """
    return _prefixes("averaging", X, y, weights, {})


# ---- Bayes ----------------------------------------------------------------------------------------------------------


@method("bayes")
def _bayes(d: int, prior_cov: Any, noise_var: Any, prior_mean: Any = None) -> Stream:
    noise = number(noise_var, "noise_var", above=True, why=" (without noise, the limit is ols)")
    mean = None
    if prior_mean is not None:
        mean = real_numbers(prior_mean, "prior_mean").astype(np.float64)
        if mean.shape != (d,):
            raise ShapeError(f"prior_mean {list(mean.shape)} with d = {d}: must be [{d}]")
        mean = in_slab(mean, np.dtype(np.float64), "prior_mean", ("feature",))
    factor = covariance_factor(prior_cov, d, "prior_cov")
    given = {"noise_var": noise, "prior_cov": prior_cov} | ({} if mean is None else {"prior_mean": mean})
    return Stream(Kind.BAYES, noise_var=noise, matrices=factor, mean=mean, given=given)


def bayes(
    X: ArrayLike,
    y: ArrayLike,
    prior_cov: ArrayLike,
    noise_var: float,
    *,
    prior_mean: ArrayLike | None = None,
    weights: bool = False,
    covariance: bool = False,
) -> Any:
    """Bayesian linear regression, w ~ N(prior_mean, prior_cov), y = x·w + N(0, noise_var), for every prefix.

    prior_cov is a variance, variances [d] or a covariance [d, d], positive definite. O(d²) an example.

    Returns
    -------
    yhat
        Posterior predictive mean [batch, n] of each example given those before.
    variance
        Its variance, noise included [batch, n], in the units of y squared.
    log_evidence
        log p(y_0 … y_i), nats, float64 [batch, n]: the last column is the evidence of the whole sequence.
    w, cov
        With `weights` the posterior means [batch, n, d], with `covariance` the covariances [batch, n, d, d], both
        before example i.

    Raises ConfigError for noise that is not positive and a prior that is not positive definite.

    >>> yhat, variance, log_evidence = bayes([[[1.0], [1.0]]], [[2.0, 0.0]], prior_cov=1.0, noise_var=1.0)
    >>> yhat.round(9).tolist(), variance.round(9).tolist()
    ([[0.0, 1.0]], [[2.0, 1.5]])
    """
    check_flags(weights=weights, covariance=covariance)
    given = examples(X, y)
    stream = _bayes(given.d, prior_cov, noise_var, prior_mean)
    batch, n, d = given.x.shape
    yhat, variance = np.empty((2, batch, n), given.dtype)
    w = np.empty((batch, n, d), given.dtype) if weights else None
    cov = np.empty((batch, n, d, d), given.dtype) if covariance else None
    stream.run(given, 0, n - 1, yhat, w, variance, cov)
    variance += given.dtype.type(stream.noise_var)
    out = [yhat, variance, _log_evidence(given.y, yhat, variance)]
    return (*out, *(a for a in (w, cov) if a is not None))


def _log_evidence(y: Array, yhat: Array, variance: Array) -> Array:
    """Σ log N(y; yhat, variance) up to and with each example, float64."""
    v = variance.astype(np.float64)
    with np.errstate(over="ignore"):
        error = y.astype(np.float64) - yhat
        out = np.cumsum(-0.5 * (np.log(2 * math.pi * v) + error * error / v), axis=1)
    if not np.isfinite(out).all():
        b, i = np.argwhere(~np.isfinite(out))[0]
        raise ConfigError(f"the log evidence of sequence {b} is beyond the range of float64 at row {i}: rescale y")
    return np.asarray(out)


# ---- Iterations -----------------------------------------------------------------------------------------------------


@method("gd")
def _gd(d: int, steps: Any, lr: Any, precond: Any = None, momentum: Any = 0.0) -> Stream:
    n = count(steps, "steps", 0)
    beta, rates = number(momentum, "momentum"), per_step(lr, n, "lr")
    matrices = None
    if precond is not None:
        matrices = real_numbers(precond, "precond")
        if matrices.ndim == 3:
            if matrices.shape != (n, d, d):
                raise ShapeError(f"precond {list(matrices.shape)}: one matrix for each step is [{n}, {d}, {d}]")
            matrices = in_slab(matrices, np.dtype(np.float64), "precond", ("step", "row", "column"))
        else:
            matrices = matrix(matrices, d, "precond")
    given = {"lr": rates, "beta": beta} | ({} if matrices is None else {"precond": matrices})
    return Stream(Kind.GD, steps=n, rates=rates, matrices=matrices, momentum=beta, given=given)


def gd(
    X: ArrayLike,
    y: ArrayLike,
    steps: int,
    lr: float | ArrayLike,
    precond: ArrayLike | None = None,
    *,
    weights: bool = False,
) -> Any:
    """Gradient descent from 0 on (1/2k)‖Xw − y‖² for every prefix of k examples: w ← w − lr · A ∇.

    lr is one rate or one for each step; precond (A) a number, a diagonal [d], a matrix [d, d], or one for each step
    [steps, d, d] (Ahn et al. 2023). O(steps d²) an example. Returns yhat [batch, n]; with `weights` (yhat, w).

    >>> gd([[[1.0], [1.0]]], [[4.0, 0.0]], steps=2, lr=0.5).tolist()
    [[0.0, 3.0]]
    """
    return _prefixes("gd", X, y, weights, {"steps": steps, "lr": lr, "precond": precond})


@method("momentum")
def _momentum(d: int, steps: Any, lr: Any, beta: Any = 0.9, precond: Any = None) -> Stream:
    return _gd(d, steps, lr, precond, number(beta, "beta"))


def momentum(
    X: ArrayLike, y: ArrayLike, steps: int, lr: float | ArrayLike, beta: float = 0.9, *, weights: bool = False
) -> Any:
    """Gradient descent with heavy-ball momentum, v ← beta v − lr ∇, w ← w + v, on (1/2k)‖Xw − y‖², from 0.

    As `gd`, which it is with beta = 0.

    >>> momentum([[[1.0], [1.0]]], [[4.0, 0.0]], steps=2, lr=0.5, beta=0.5).tolist()
    [[0.0, 4.0]]
    """
    return _prefixes("momentum", X, y, weights, {"steps": steps, "lr": lr, "beta": beta})


@method("gd_pp")
def _gd_pp(d: int, steps: Any, lr: Any, gamma: Any) -> Stream:
    n = count(steps, "steps", 0)
    rates, gammas = per_step(lr, n, "lr"), per_step(gamma, n, "gamma")
    return Stream(Kind.GD_PP, steps=n, rates=rates, gammas=gammas, given={"lr": rates, "gamma": gammas})


def gd_pp(
    X: ArrayLike,
    y: ArrayLike,
    steps: int,
    lr: float | ArrayLike,
    gamma: float | ArrayLike,
    *,
    weights: bool = False,
) -> Any:
    """GD++ (von Oswald et al. 2022) for every prefix: gradient descent that also moves the inputs.

    Each step is `gd`'s and, from the same inputs, x ← (I − gamma XXᵀ) x for every example and the query, XXᵀ = Σ x xᵀ
    over the prefix. An eigenvalue of XXᵀ goes from λ to λ − 2 gamma λ² + gamma² λ³. w is the vector by which the
    query's own input is multiplied. O(steps d³) an example. Returns yhat [batch, n]; with `weights` (yhat, w).

    >>> gd_pp([[[1.0], [1.0]]], [[4.0, 0.0]], steps=2, lr=0.5, gamma=0.5).tolist()
    [[0.0, 2.25]]
    """
    return _prefixes("gd_pp", X, y, weights, {"steps": steps, "lr": lr, "gamma": gamma})


@method("sgd")
def _sgd(d: int, lr: Any) -> Stream:
    rate = number(lr, "lr", least=-math.inf)
    return Stream(Kind.SGD, rates=np.array([rate]), given={"lr": rate})


def sgd(X: ArrayLike, y: ArrayLike, lr: float, *, weights: bool = False) -> Any:
    """One pass of stochastic gradient descent from 0, w ← w + lr (y_j − x_j·w) x_j: yhat; with `weights` (yhat, w).

    O(d) an example. With lr = 1/‖x‖² it is the least-mean-squares projection of Kaczmarz.

    >>> sgd([[[1.0], [1.0], [1.0]]], [[4.0, 4.0, 0.0]], lr=0.5).tolist()
    [[0.0, 2.0, 3.0]]
    """
    return _prefixes("sgd", X, y, weights, {"lr": lr})


_MOST_SQUARINGS = 1 << 16
"""Of Newton–Schulz: a step squares what is missing, and 2¹² of them are enough for any condition that float64 holds."""


@method("newton_schulz")
def _newton_schulz(d: int, steps: Any, lam: Any = 0.0) -> Stream:
    squarings, value = count(steps, "steps", 0, _MOST_SQUARINGS), number(lam, "lam")
    return Stream(Kind.NEWTON, steps=squarings, lam=value, given={"lam": value})


def newton_schulz(X: ArrayLike, y: ArrayLike, steps: int, lam: float = 0.0, *, weights: bool = False) -> Any:
    """w = V Xᵀy with V ≈ (XᵀX + lam I)⁻¹ after `steps` of Newton–Schulz iteration V ← V (2I − A V), A = XᵀX + lam I.

    From V = A / ‖A‖₁² (Ben-Israel and Cohen 1966): what is missing of the inverse along an eigenvalue s of A is
    (1 − s²/‖A‖₁²)^(2^steps). Without lam it tends to the minimum-norm solution. O(steps d³) an example. Returns yhat
    [batch, n]; with `weights` (yhat, w).

    >>> newton_schulz([[[2.0], [1.0]]], [[4.0, 0.0]], steps=1).tolist()
    [[0.0, 2.0]]
    """
    return _prefixes("newton_schulz", X, y, weights, {"steps": steps, "lam": lam})


@method("lasso")
def _lasso(d: int, alpha: Any, tol: Any = 1e-12, max_iter: Any = 10_000) -> Stream:
    penalty = number(alpha, "alpha", above=True, why=" (without a penalty it is ols)")
    return Stream(
        Kind.LASSO,
        alpha=penalty,
        given={"alpha": penalty},
        tol=number(tol, "tol"),
        max_iterations=count(max_iter, "max_iter"),
    )


def lasso(
    X: ArrayLike,
    y: ArrayLike,
    alpha: float | Sequence[float],
    *,
    tol: float = 1e-12,
    max_iter: int = 10_000,
    weights: bool = False,
) -> Any:
    """Lasso of every prefix, the least (1/2k)‖Xw − y‖² + alpha ‖w‖₁: yhat [batch, n]; with `weights` (yhat, w).

    Several alphas give a path: each estimate gets an axis in front, in the order of the alphas.

    Coordinate descent along the prefixes, each from the last one's weights, with Newton steps over the coordinates that
    are not 0, until the duality gap is at most tol · (1/2k)‖y‖², or 8 (d + 4) eps in tol's place where that is more
    (rounding). An iteration costs O(d³); few are needed from one prefix to the next.

    Raises ConfigError when max_iter iterations do not bring the gap there, and for alpha that is not positive.

    >>> X, y = [[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], [[4.0, 0.5, 0.0]]
    >>> lasso(X, y, alpha=0.5).round(9).tolist()
    [[0.0, 0.0, 3.0]]
    >>> lasso(X, y, alpha=[1.0, 0.5]).shape
    (2, 1, 3)
    """
    if isinstance(alpha, str) or np.ndim(alpha) == 0:
        return _prefixes("lasso", X, y, weights, {"alpha": alpha, "tol": tol, "max_iter": max_iter})
    if np.ndim(alpha) != 1 or np.size(alpha) == 0:
        raise ConfigError(f"alpha {list(np.shape(alpha))}: a number, or one or more in a row")
    path = [lasso(X, y, a, tol=tol, max_iter=max_iter, weights=weights) for a in np.asarray(alpha).tolist()]
    return tuple(np.stack(part) for part in zip(*path, strict=True)) if weights else np.stack(path)
