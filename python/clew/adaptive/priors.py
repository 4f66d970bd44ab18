"""Priors of a context vector and their exact posteriors: mixtures of Gaussians of one common diagonal covariance.

Every prior of the specification is one: the tree and the codebook are 2^K points, the flat prior 2^D, the Gaussian a
single one; a scatter or an interpolation adds a covariance that all points share. Sums over the points are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import check_counts, check_numbers, check_seed, check_type, real_array, whole
from ..regression._inputs import check_room, finite_array
from .specification import DEFAULT

__all__ = ["Prior", "between", "codebook", "eigenvalues", "flat", "gaussian", "sample_estimate", "tree"]

Array = NDArray[Any]
_BLOCK = 1 << 22  # values of one intermediate array
_LEAST, _MOST = 1e-150, 1e150  # noise whose square, and variances' products, are still float64's


@dataclass(frozen=True, eq=False)
class Prior:
    """w = a centre, each equally likely, plus N(0, diag(spread)).

    Attributes: name; centres [points, D] and spread [D], float64; branches [points, K] of ±1, the signs that lead to
    each point from the root, None for priors that are no tree.

    Raises ShapeError for arrays that do not fit, ConfigError for values that are no numbers or a negative spread.

    Example
    -------
    >>> prior = tree()
    >>> prior.centres.shape, prior.branches.shape
    ((8, 7), (8, 3))
    >>> bool(np.allclose(prior.covariance, np.diag(eigenvalues())))
    True
    """

    name: str
    centres: Array
    spread: Array
    branches: Array | None = None

    def __post_init__(self) -> None:
        check_type(str, "a name", name=self.name)
        centres, spread = real_array(self.centres, "Prior: centres"), real_array(self.spread, "Prior: spread")
        if centres.ndim != 2 or 0 in centres.shape or spread.shape != centres.shape[1:]:
            raise ShapeError(
                f"Prior: centres {list(centres.shape)} and spread {list(spread.shape)}, not [points, D], [D]"
            )
        for what, values in (("centres", centres), ("spread", spread)):
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                raise ConfigError(f"Prior: {what}{bad[0].tolist()} is {values[tuple(bad[0])]}")
        if (spread < 0).any():
            raise ConfigError(f"Prior: spread[{int(np.argmin(spread))}] = {spread.min():g} is negative")
        if self.branches is not None:
            signs = real_array(self.branches, "Prior: branches")
            if signs.ndim != 2 or signs.shape[0] != len(centres) or 2 ** signs.shape[1] != len(centres):
                raise ShapeError(
                    f"Prior: branches {list(signs.shape)} with centres {list(centres.shape)}: one sign for each of K "
                    "levels, [points, K], and 2^K points"
                )
            if not np.isin(signs, (-1, 1)).all():
                raise ConfigError("Prior: branches must be signs, −1 or 1")
            object.__setattr__(self, "branches", signs.astype(np.int64))
        for name, values in (("centres", centres), ("spread", spread)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    def __repr__(self) -> str:
        points, levels = len(self.centres), "" if self.branches is None else f", {self.branches.shape[1]} levels"
        return f"Prior {self.name!r}: {points} points in {self.dim} dimensions{levels}, total variance " + (
            f"{np.trace(self.covariance):.4g}"
        )

    @property
    def dim(self) -> int:
        """D."""
        return int(self.centres.shape[1])

    @property
    def covariance(self) -> Array:
        """Cov[w], [D, D]."""
        offsets = self.centres - self.centres.mean(axis=0)
        return np.asarray(offsets.T @ offsets / len(offsets) + np.diag(self.spread))

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> tuple[Array, Array]:
        """n contexts: w [n, D], float64, and the centre of each [n]. Raises ConfigError."""
        check_contexts(n, self.dim)
        rng = _generator(seed)
        index = rng.integers(0, len(self.centres), n)
        w = self.centres[index]
        if self.spread.any():
            w = w + rng.standard_normal(w.shape) * np.sqrt(self.spread)
        return w, index

    def posterior(self, directions: ArrayLike, messages: ArrayLike, noise: float) -> tuple[Array, Array]:
        """Exact posterior given messages m ~ N(U w, noise² U Uᵀ), for each context.

        directions: U [n, L, D], or [L, D] for all; messages [n, L]. Directions may depend on the messages before them
        (Bayes' rule does not care why a question was asked), and on each other. Returns probabilities of the centres
        [n, points] and the mean of w [n, D].

        Raises ShapeError for shapes that do not fit, ConfigError for noise that is not positive.
        """
        m, U = finite_array(messages, "messages"), finite_array(directions, "directions")
        if U.ndim == 2 and m.ndim == 2:
            U = np.broadcast_to(U, (len(m), *U.shape))
        if m.ndim != 2 or U.shape != (*m.shape, self.dim):
            raise ShapeError(f"posterior: directions {list(U.shape)} and messages {list(m.shape)}, D is {self.dim}")
        _positive("noise", noise)
        check_room("posterior: probabilities", len(m), len(self.centres))
        probabilities = np.empty((len(m), len(self.centres)))
        mean = np.empty((len(m), self.dim))
        for part in _blocks(len(m), len(self.centres) * max(m.shape[1], 1)):
            with np.errstate(over="ignore", invalid="ignore"):
                probabilities[part], mean[part] = self._posterior(U[part], m[part], noise)
        return _in_range("posterior", probabilities), _in_range("posterior", mean)

    def _posterior(self, u: Array, m: Array, noise: float) -> tuple[Array, Array]:
        """`posterior` of a block of contexts."""
        S = np.einsum("nld,d,nkd->nlk", u, self.spread + noise**2, u)
        inverse = np.linalg.pinv(_in_range("posterior", S), rcond=1e-10, hermitian=True)
        off = m[:, None] - np.einsum("nld,pd->npl", u, self.centres)
        solved = np.einsum("nlk,npk->npl", inverse, off)
        logs = -0.5 * (off * solved).sum(axis=2)
        p = np.exp(logs - logs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        middle = np.einsum("np,npl->nl", p, solved)
        return p, p @ self.centres + self.spread * np.einsum("nld,nl->nd", u, middle)

    def full_posterior(self, estimate: ArrayLike, noise: float) -> tuple[Array, Array]:
        """Exact posterior given the whole estimate ŵ ~ N(w, noise² I) [n, D]: probabilities and mean as `posterior`."""
        estimate = finite_array(estimate, "estimate")
        if estimate.ndim != 2 or estimate.shape[1] != self.dim:
            raise ShapeError(f"full_posterior: estimate {list(estimate.shape)}: [n, D], D is {self.dim}")
        return self.posterior(np.eye(self.dim), estimate, noise)

    def token_posterior(self, x: ArrayLike, y: ArrayLike, sigma: float) -> tuple[Array, Array]:
        """Exact posterior given examples x [n, N, D], y [n, N] with noise σ: the likelihood of the tokens themselves.

        Returns probabilities [n, points] and the mean of w [n, D].
        """
        x, y = finite_array(x, "x"), finite_array(y, "y")
        if x.ndim != 3 or y.shape != x.shape[:2] or x.shape[2] != self.dim:
            raise ShapeError(f"token_posterior: x {list(x.shape)} and y {list(y.shape)}, D is {self.dim}")
        _positive("sigma", sigma)
        with np.errstate(over="ignore", invalid="ignore"):
            return self._token_posterior(x, y, sigma)

    def _token_posterior(self, x: Array, y: Array, sigma: float) -> tuple[Array, Array]:
        gram, moment = x.transpose(0, 2, 1) @ x / sigma**2, np.einsum("nkd,nk->nd", x, y) / sigma**2
        _in_range("token_posterior", gram)
        # A centre's Gaussian in w: with precision spread⁻¹, or the point itself where the spread is 0
        root = np.sqrt(self.spread)
        inner = np.linalg.inv(np.eye(self.dim) + root[:, None] * gram * root)
        off = moment[:, None] - np.einsum("nde,pe->npd", gram, self.centres)
        shrunk = np.einsum("nde,npe->npd", inner, off * root)
        logs = np.einsum("pd,nd->np", self.centres, moment) - 0.5 * np.einsum(
            "pd,nde,pe->np", self.centres, gram, self.centres, optimize=True
        )
        logs += 0.5 * (off * root * shrunk).sum(axis=2)
        p = np.exp(logs - logs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        means = self.centres + root * shrunk
        return _in_range("token_posterior", p), _in_range("token_posterior", np.einsum("np,npd->nd", p, means))

    def full_data_error(self, noise: float, n: int = 200_000, seed: int = 0) -> tuple[float, float]:
        """E|w − E[w|ŵ]|² by Monte Carlo over n contexts, and its standard error: the lower bound of every policy.

        Raises ConfigError for noise that is not positive, fewer than 2 contexts and a negative seed.
        """
        _positive("noise", noise)
        check_contexts(n, self.dim, least=2)
        rng = np.random.default_rng(check_seed(seed))
        w, _ = self.sample(n, rng)
        _, mean = self.full_posterior(w + noise * rng.standard_normal(w.shape), noise)
        errors = ((w - mean) ** 2).sum(axis=1)
        return float(errors.mean()), float(errors.std() / n**0.5)


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise ConfigError(f"{name} = {value!r:.60}, must be positive")
    if not _LEAST < value < _MOST:
        raise ConfigError(f"{name} = {value:g}: its square is beyond the range of float64")


def check_contexts(n: int, dim: int, least: int = 1) -> None:
    """Raises ConfigError for n that is no whole number from `least` on, MemoryError for more than fit anywhere."""
    if isinstance(n, bool) or whole(n, "n") < least:
        raise ConfigError(f"n = {n}: contexts, at least {least}")
    check_room("contexts", n, dim)


def check_prior(prior: Any) -> None:
    """Raises ConfigError for what is no prior."""
    check_type(Prior, "a Prior, such as tree() gives", prior=prior)


def _generator(seed: int | np.random.Generator) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else np.random.default_rng(check_seed(seed))


def _in_range(what: str, array: Array) -> Array:
    """The array; ConfigError unless all of it is finite."""
    if not np.isfinite(array).all():
        raise ConfigError(f"{what}: beyond the range of float64: rescale the prior, the noise and what was seen")
    return array


def _blocks(n: int, width: int) -> list[slice]:
    size = max(1, _BLOCK // max(width, 1))
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _amplitudes(amplitudes: Sequence[float]) -> Array:
    a = real_array(amplitudes, "amplitudes")
    if a.ndim != 1 or not 1 <= len(a) <= 10:
        raise ShapeError(f"amplitudes: one for each of 1 to 10 levels, not {list(a.shape)}")
    if not np.isfinite(a).all() or (a <= 0).any():
        raise ConfigError(f"amplitudes = {tuple(a.tolist())}, must be positive")
    for value in a.tolist():
        _positive("amplitude", value)
    return a


def eigenvalues(amplitudes: Sequence[float] = DEFAULT.amplitudes) -> Array:
    """λ [2^K − 1]: the tree's variance along each node, root first, level by level.

    >>> eigenvalues((1.0, 0.7)).tolist()
    [1.0, 0.24499999999999997, 0.24499999999999997]
    """
    a = _amplitudes(amplitudes)
    return np.concatenate([np.full(2**level, a[level] ** 2 / 2**level) for level in range(len(a))])


def tree(amplitudes: Sequence[float] = DEFAULT.amplitudes, scatter: float = 0.0) -> Prior:
    """The tree prior: leaf Σ_l a_l s_l e_n, n the node that s_1 … s_{l−1} lead to (heap order: 2n+1 for −, 2n+2 for +).

    scatter: standard deviation, in every direction, of a Gaussian around each leaf.
    """
    a = _amplitudes(amplitudes)
    depth = len(a)
    signs = np.array(
        [[1 if leaf >> (depth - 1 - level) & 1 else -1 for level in range(depth)] for leaf in range(2**depth)]
    )
    centres = np.zeros((2**depth, 2**depth - 1))
    node = np.zeros(2**depth, np.intp)
    for level in range(depth):
        centres[np.arange(2**depth), node] = a[level] * signs[:, level]
        node = 2 * node + 1 + (signs[:, level] > 0)
    if isinstance(scatter, bool) or not isinstance(scatter, int | float | np.number) or not 0 <= scatter < np.inf:
        raise ConfigError(f"scatter = {scatter!r:.60}, must not be negative")
    if scatter:
        _positive("scatter", scatter)
    return Prior("tree", centres, np.full(2**depth - 1, scatter**2), signs)


def gaussian(amplitudes: Sequence[float] = DEFAULT.amplitudes) -> Prior:
    """N(0, diag λ), the Gaussian with the tree's covariance."""
    lam = eigenvalues(amplitudes)
    return Prior("gaussian", np.zeros((1, len(lam))), lam)


def flat(amplitudes: Sequence[float] = DEFAULT.amplitudes) -> Prior:
    """Independent signs on every node, ±√λ_n: 2^D points (D at most 15)."""
    root = np.sqrt(eigenvalues(amplitudes))
    if len(root) > 15:
        raise ConfigError(f"flat: 2^{len(root)} points; at most 4 levels")
    signs = 1 - 2 * (np.arange(2 ** len(root))[:, None] >> np.arange(len(root)) & 1)
    return Prior("flat", signs * root, np.zeros(len(root)))


def codebook(amplitudes: Sequence[float] = DEFAULT.amplitudes, seed: int = 0) -> Prior:
    """2^K random codewords of mean 0 and covariance diag λ, both exact: a random rotation of a simplex, scaled."""
    lam = eigenvalues(amplitudes)
    n = len(lam) + 1
    vectors = np.random.default_rng(check_seed(seed)).standard_normal((n, n))
    vectors[:, 0] = 1
    basis, _ = np.linalg.qr(vectors)
    return Prior("codebook", basis[:, 1:] * np.sqrt(n * lam), np.zeros(len(lam)))


def between(t: float, amplitudes: Sequence[float] = DEFAULT.amplitudes) -> Prior:
    """√(1−t) · tree + √t · gaussian: the tree at t = 0, the Gaussian at t = 1, one covariance throughout.

    >>> bool(np.allclose(between(0.3).covariance, tree().covariance))
    True
    """
    if isinstance(t, bool) or not isinstance(t, int | float | np.number) or not 0 <= t <= 1:
        raise ConfigError(f"t = {t!r}, must lie between 0 (tree) and 1 (Gaussian)")
    start = tree(amplitudes)
    return Prior(f"between({t:g})", np.sqrt(1 - t) * start.centres, t * eigenvalues(amplitudes), start.branches)


def sample_estimate(w: ArrayLike, examples: int, sigma: float, seed: int | np.random.Generator = 0) -> Array:
    """ŵ = (1/N) Σ y_i x_i of each context w [n, D], exactly distributed for any N ≥ D, without drawing examples.

    X'X is Wishart (Bartlett's decomposition), and X'ε given X is N(0, σ² X'X). float64 [n, D].

    Raises ShapeError for w with other than two axes or fewer examples than D, ConfigError for a negative sigma.
    """
    w = finite_array(w, "w")
    check_counts(examples=examples)
    check_numbers(sigma=sigma)
    if sigma < 0:
        raise ConfigError(f"sigma = {sigma:g}, must not be negative")
    if w.ndim != 2 or examples < w.shape[1]:
        raise ShapeError(
            f"sample_estimate: w {list(w.shape)}, {examples} examples: w is [n, D], and at least D examples"
        )
    n, d = w.shape
    check_room("sample_estimate: Bartlett's factors", n, d, d)
    rng = _generator(seed)
    T = np.tril(rng.standard_normal((n, d, d)), -1)
    T[:, np.arange(d), np.arange(d)] = np.sqrt(rng.chisquare(examples - np.arange(d), (n, d)))
    inner = np.einsum("nji,nj->ni", T, w) + sigma * rng.standard_normal((n, d))
    return np.asarray(np.einsum("nij,nj->ni", T, inner) / examples)
