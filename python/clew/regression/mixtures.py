"""Exact posteriors under priors of several parts: finite sets of tasks, Gaussian mixtures, trees; model averaging.

Conventions as in `clew.regression.linear`, but the prior's own mean need not be 0: the first prediction is the prior
mean's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import check_flags, number, real_numbers
from ._inputs import Array, Examples, check_finite, examples, in_slab
from ._run import method
from .linear import _bayes, _log_evidence

# ---- A finite set of tasks ------------------------------------------------------------------------------------------


def _log_prior(value: ArrayLike | None, m: int, of: str) -> Array | None:
    """Log-weights [m], float64, −inf allowed; None: all the same."""
    if value is None:
        return None
    array = real_numbers(value, "log_prior").astype(np.float64)
    if array.shape != (m,):
        raise ShapeError(f"log_prior {list(array.shape)} with {m} {of}: must be [{m}]")
    if np.isnan(array).any() or array.max() == np.inf or array.max() == -np.inf:
        raise ConfigError("log_prior must be numbers or −inf, not all −inf")
    return np.asarray(array - array.max())


@dataclass(frozen=True)
class Tasks:
    """dMMSE: the posterior mean over a finite set of weight vectors."""

    tasks: Array
    noise_var: float
    log_prior: Array | None

    def run(self, given: Examples, first: int, last: int, weights: bool) -> tuple[Array, Array | None, Array]:
        """(yhat, w, log evidence) of prefixes first … last."""
        batch, _, d = given.x.shape
        rows = last - first + 1
        tasks = in_slab(self.tasks, given.dtype, "tasks", ("task", "feature"))
        prior = None
        if self.log_prior is not None:
            prior = np.maximum(self.log_prior, np.finfo(given.dtype).min / 4).astype(given.dtype)
        yhat = np.empty((batch, rows), given.dtype)
        w = np.empty((batch, rows, d), given.dtype) if weights else None
        evidence = np.empty((batch, rows))
        _core.reg_dmmse(yhat, w, evidence, given.x, given.y, tasks, prior, first, last, self.noise_var)
        return yhat, w, evidence

    def prefixes(self, given: Examples, weights: bool) -> Any:
        yhat, w, _ = self.run(given, 0, given.y.shape[1] - 1, weights)
        return (yhat, w) if weights else yhat

    def fit(self, given: Examples, queries: Array) -> Array:
        n = given.y.shape[1]
        w = self.run(given, n, n, True)[1]
        assert w is not None
        return np.asarray(np.einsum("bmd,bd->bm", queries, w[:, 0]))


@method("dmmse")
def _dmmse(d: int, tasks: Any, noise_var: Any, log_prior: Any = None) -> Tasks:
    array = real_numbers(tasks, "tasks")
    if array.ndim != 2 or array.shape[1] != d:
        raise ShapeError(f"tasks {list(array.shape)} with d = {d}: must be [M, {d}]")
    if array.shape[0] == 0:
        raise ShapeError(f"tasks {list(array.shape)}: M = 0, there is no task to choose from")
    noise = number(noise_var, "noise_var", above=True, why=" (without noise the posterior may be empty)")
    return Tasks(array, noise, _log_prior(log_prior, array.shape[0], "tasks"))


def dmmse(
    X: ArrayLike,
    y: ArrayLike,
    tasks: ArrayLike,
    noise_var: float,
    *,
    log_prior: ArrayLike | None = None,
    weights: bool = False,
) -> Any:
    """The Bayes-optimal prediction when w is one of tasks [M, d] (dMMSE, Raventós et al. 2023): yhat [batch, n].

    w_i = Σ_m p_m w_m, p = softmax_m(log_prior_m − (1/2 noise_var) Σ_{j<i} (y_j − w_m·x_j)²); with `weights` (yhat, w).
    Before the first example w is the prior mean: of a uniform prior (log_prior None) the mean of the tasks. Tasks
    stream by in blocks, so memory does not grow with batch × M. O(M d) an example.

    Raises ConfigError for noise that is not positive, ShapeError for no tasks or tasks of another d.

    >>> dmmse([[[1.0], [1.0], [1.0]]], [[1.0, 1.0, 1.0]], tasks=[[1.0], [-1.0]], noise_var=0.5).round(4).tolist()
    [[0.0, 0.964, 0.9993]]
    """
    check_flags(weights=weights)
    given = examples(X, y)
    return _dmmse(given.d, tasks, noise_var, log_prior).prefixes(given, weights)


# ---- Several hypotheses ---------------------------------------------------------------------------------------------


def _softmax(scores: Array) -> Array:
    """Along axis 0, float64."""
    p = np.exp(scores - scores.max(0))
    return np.asarray(p / p.sum(0))


def _before(log_evidence: Array) -> Array:
    """Evidence of what lies before each example, from evidence up to and with it."""
    out = np.zeros_like(log_evidence)
    out[..., 1:] = log_evidence[..., :-1]
    return out


def model_average(
    predictions: ArrayLike, log_evidence: ArrayLike, log_prior: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Bayesian model averaging: predictions [H, batch, n] of H hypotheses, weighed by their posteriors.

    An example is weighed by the posterior before it. log_evidence [H, batch, n] is log p(y_0 … y_i) under each, as
    `bayes` gives it; log_prior [H] defaults to uniform.
    Returns the averaged predictions [batch, n] and the posterior of the hypotheses [H, batch, n].

    >>> yhat, p = model_average([[[0.0, 0.0]], [[1.0, 1.0]]], [[[-1.0, -2.0]], [[-1.0, -2.0]]])
    >>> yhat.tolist(), p[:, 0, 1].tolist()
    ([[0.5, 0.5]], [0.5, 0.5])
    """
    values, evidence = real_numbers(predictions, "predictions"), real_numbers(log_evidence, "log_evidence")
    if values.ndim != 3 or values.shape != evidence.shape or 0 in values.shape:
        raise ShapeError(
            f"predictions {list(values.shape)} and log_evidence {list(evidence.shape)}: both must be [H, batch, n]"
        )
    for array, name in ((values, "predictions"), (evidence, "log_evidence")):
        check_finite(np.asarray(array, np.float64), name, ("hypothesis", "sequence", "row"))
    prior = _log_prior(log_prior, len(values), "hypotheses")
    scores = _before(evidence.astype(np.float64))
    posterior = _softmax(scores if prior is None else scores + prior[:, None, None])
    return np.asarray((posterior * values).sum(0)), posterior


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussian priors on w."""

    parts: tuple[Any, ...]
    log_prior: Array | None
    noise_var: float

    def _run(self, given: Examples, first: int, last: int) -> tuple[Array, Array, Array, Array]:
        """(yhat, variance, w, evidence before) of every part."""
        batch, n, d = given.x.shape
        rows, h = last - first + 1, len(self.parts)
        yhat, variance = np.empty((2, h, batch, n), given.dtype)
        w = np.empty((h, batch, rows, d), given.dtype)
        evidence = np.empty((h, batch, n))
        for i, part in enumerate(self.parts):
            part.run(given, 0, n - 1, yhat[i], w[i] if last < n else None, variance[i])
            variance[i] += given.dtype.type(self.noise_var)
            evidence[i] = _log_evidence(given.y, yhat[i], variance[i])
            if last == n:
                w[i, :, 0] = part.fit_weights(given)
        return yhat, variance, w, evidence

    def _posterior(self, scores: Array) -> Array:
        prior = 0.0 if self.log_prior is None else self.log_prior.reshape(-1, *(1,) * (scores.ndim - 1))
        return _softmax(scores + prior)

    def all(self, given: Examples) -> tuple[Array, Array, Array]:
        """(yhat [batch, n], w [batch, n, d], posterior [batch, n, H])."""
        yhat, _, w, evidence = self._run(given, 0, given.y.shape[1] - 1)
        p = self._posterior(_before(evidence))
        mean = np.einsum("hbn,hbnd->bnd", p, w).astype(given.dtype)
        return (p * yhat).sum(0).astype(given.dtype), mean, np.moveaxis(p, 0, -1)

    def prefixes(self, given: Examples, weights: bool) -> Any:
        yhat, w, _ = self.all(given)
        return (yhat, w) if weights else yhat

    def fit(self, given: Examples, queries: Array) -> Array:
        n = given.y.shape[1]
        _, _, w, evidence = self._run(given, n, n)
        p = self._posterior(evidence[..., -1])
        return np.asarray(np.einsum("bmd,hb,hbd->bm", queries, p, w[:, :, 0]).astype(given.dtype))


@method("mixture")
def _mixture(d: int, means: Any, covs: Any, noise_var: Any, log_prior: Any = None) -> Mixture:
    centres = real_numbers(means, "means").astype(np.float64)
    if centres.ndim != 2 or centres.shape[1] != d or not len(centres):
        raise ShapeError(f"means {list(centres.shape)} with d = {d}: must be [H, {d}], H at least 1")
    spread = real_numbers(covs, "covs")
    if spread.ndim == 3 and len(spread) != len(centres):
        raise ShapeError(f"covs {list(spread.shape)} with means {list(centres.shape)}: one covariance for each part")
    each = spread if spread.ndim == 3 else [spread] * len(centres)
    parts = tuple(_bayes(d, cov, noise_var, mean) for mean, cov in zip(centres, each, strict=True))
    return Mixture(parts, _log_prior(log_prior, len(centres), "parts"), parts[0].noise_var)


def _answer(result: tuple[Array, Array, Array], weights: bool, posterior: bool) -> Any:
    yhat, w, p = result
    out = [yhat] + [w] * weights + [p] * posterior
    return out[0] if len(out) == 1 else tuple(out)


def mixture(
    X: ArrayLike,
    y: ArrayLike,
    means: ArrayLike,
    covs: ArrayLike,
    noise_var: float,
    *,
    log_prior: ArrayLike | None = None,
    weights: bool = False,
    posterior: bool = False,
) -> Any:
    """The exact posterior mean when w comes from a mixture of Gaussians N(means_h, covs_h), for every prefix.

    means [H, d]; covs a variance, variances [d], a covariance [d, d] for all parts, or one for each [H, d, d];
    log_prior [H] defaults to uniform. Returns yhat [batch, n]; with `weights` also w [batch, n, d], with `posterior`
    also the probability of each part before each example [batch, n, H]. O(H d²) an example.

    >>> yhat, p = mixture([[[1.0], [1.0]]], [[2.0, 2.0]], [[2.0], [-2.0]], 0.01, 0.1, posterior=True)
    >>> yhat.round(3).tolist(), p.round(3).tolist()
    ([[0.0, 2.0]], [[[0.5, 0.5], [1.0, 0.0]]])
    """
    check_flags(weights=weights, posterior=posterior)
    given = examples(X, y)
    return _answer(_mixture(given.d, means, covs, noise_var, log_prior).all(given), weights, posterior)


# ---- Trees ----------------------------------------------------------------------------------------------------------


def tree_leaves(amplitudes: ArrayLike) -> Array:
    """The 2^K weight vectors [2^K, 2^K − 1] of a tree prior of depth K: w = Σ_l a_l s_l e_{n(s_1 … s_{l−1})}, s = ±1.

    Nodes are numbered level by level, the root 0; leaves in the order of (s_1, …, s_K), +1 before −1. Our specification
    of adaptive inference (paper 2).

    >>> tree_leaves([1.0, 0.5]).tolist()
    [[1.0, 0.5, 0.0], [1.0, -0.5, 0.0], [-1.0, 0.0, 0.5], [-1.0, 0.0, -0.5]]
    """
    a = real_numbers(amplitudes, "amplitudes").astype(np.float64)
    if a.ndim != 1 or not 1 <= len(a) <= 16 or not np.isfinite(a).all():
        raise ShapeError(f"amplitudes {list(a.shape)}: finite numbers [K], one for each of 1 to 16 levels")
    k = len(a)
    leaf = np.arange(2**k)
    out = np.zeros((2**k, 2**k - 1))
    for level in range(k):
        node = 2**level - 1 + (leaf >> (k - level))
        sign = 1 - 2 * ((leaf >> (k - 1 - level)) & 1)
        out[leaf, node] = a[level] * sign
    return out


@method("tree")
def _tree(d: int, amplitudes: Any, noise_var: Any, leaf_var: Any = 0.0) -> Mixture | Tasks:
    leaves = tree_leaves(amplitudes)
    if leaves.shape[1] != d:
        raise ShapeError(
            f"d = {d} with amplitudes {list(np.shape(amplitudes))}: such a tree has {leaves.shape[1]} nodes"
        )
    scatter = number(leaf_var, "leaf_var")
    return _mixture(d, leaves, scatter, noise_var) if scatter else _dmmse(d, leaves, noise_var)


def tree(
    X: ArrayLike,
    y: ArrayLike,
    amplitudes: ArrayLike,
    noise_var: float,
    *,
    leaf_var: float = 0.0,
    weights: bool = False,
    posterior: bool = False,
) -> Any:
    """The exact posterior mean under the tree prior of `tree_leaves`, by enumerating its leaves, for every prefix.

    leaf_var > 0 adds Gaussian scatter of that variance in every direction to the leaves. Returns as `mixture`, the
    parts being the leaves: `posterior` is [batch, n, 2^K].

    >>> import numpy as np
    >>> yhat, p = tree([[[1.0], [1.0]]], [[0.9, 0.0]], [1.0], noise_var=0.1, posterior=True)
    >>> p[0].round(3).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    check_flags(weights=weights, posterior=posterior)
    given = examples(X, y)
    made = _tree(given.d, amplitudes, noise_var, leaf_var)
    if isinstance(made, Mixture):
        return _answer(made.all(given), weights, posterior)
    yhat, w = made.prefixes(given, True)
    p = yhat
    if posterior:
        error = given.y[..., None] - given.x.astype(np.float64) @ made.tasks.T
        scores = np.zeros_like(error)
        np.cumsum(-0.5 / made.noise_var * np.square(error[:, :-1]), axis=1, out=scores[:, 1:])
        p = np.moveaxis(_softmax(np.moveaxis(scores, -1, 0)), 0, -1)
    return _answer((yhat, w, p), weights, posterior)
