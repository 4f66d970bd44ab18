"""Estimators without a weight vector: nearest neighbours and kernels. Conventions as in `clew.regression.linear`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..inputs import number
from ._inputs import Array, count, examples
from ._run import Compare, method


@method("knn")
def _knn(d: int, k: Any) -> Compare:
    return Compare(1, float(min(count(k, "k", most=10**18), 1 << 40)))


def knn(X: ArrayLike, y: ArrayLike, k: int) -> Array:
    """Mean y of the k nearest examples before each, Euclidean distance; all of them while there are fewer: [batch, n].

    Of equal distances the earlier example counts. O(n d) an example.

    >>> knn([[[0.0], [1.0], [5.0], [0.9]]], [[1.0, 3.0, 8.0, 0.0]], k=2).tolist()
    [[0.0, 1.0, 2.0, 2.0]]
    """
    given = examples(X, y)
    return np.asarray(_knn(given.d, k).prefixes(given, False))


@method("nadaraya_watson")
def _nadaraya_watson(d: int, scale: Any) -> Compare:
    return Compare(0, number(scale, "scale", least=-math.inf))


def nadaraya_watson(X: ArrayLike, y: ArrayLike, scale: float) -> Array:
    """Kernel regression with the kernel exp(scale · x·x'), which is softmax attention: yhat [batch, n].

    yhat_i = Σ_{j<i} softmax_j(scale · x_i·x_j) y_j. O(n d) an example. A negative scale prefers what is least alike.

    >>> nadaraya_watson([[[1.0], [1.0], [0.0]]], [[2.0, 4.0, 0.0]], scale=3.0).tolist()
    [[0.0, 2.0, 3.0]]
    """
    given = examples(X, y)
    return np.asarray(_nadaraya_watson(given.d, scale).prefixes(given, False))


@method("kernel_ridge")
def _kernel_ridge(d: int, gamma: Any, lam: Any) -> Compare:
    return Compare(2, number(gamma, "gamma"), number(lam, "lam"))


def kernel_ridge(X: ArrayLike, y: ArrayLike, gamma: float, lam: float) -> Array:
    """Kernel ridge regression with exp(−gamma ‖x − x'‖²): yhat_i = k_iᵀ (K + lam I)⁻¹ y over the examples before.

    One Cholesky factor of the whole K + lam I serves all prefixes: O(n³/3 + n² d) a sequence. Returns [batch, n].

    Raises ConfigError where K + lam I is singular to rounding: equal inputs without lam.

    >>> kernel_ridge([[[0.0], [0.0]]], [[3.0, 0.0]], gamma=1.0, lam=0.5).round(9).tolist()
    [[0.0, 2.0]]
    """
    given = examples(X, y)
    return np.asarray(_kernel_ridge(given.d, gamma, lam).prefixes(given, False))
