"""Linear messages under a Gaussian prior: the posterior covariance depends on no answer, and adapting is worthless.

L messages of one head in L layers are then L heads of one layer, and the best directions are the leading eigenvectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import real_array
from ..weights import whole
from .priors import _positive

__all__ = ["gaussian_error", "noiseless_error", "water_filling"]


def _sorted(eigenvalues: ArrayLike, messages: int) -> NDArray[Any]:
    values = real_array(eigenvalues, "eigenvalues")
    lam = np.sort(values)[::-1] if values.ndim else values
    if lam.ndim != 1 or not 0 <= whole(messages, "messages") <= len(lam):
        raise ShapeError(f"eigenvalues {list(lam.shape)} and {messages} messages: [D], and 0 to D of them")
    if not np.isfinite(lam).all() or (lam < 0).any():
        raise ConfigError("eigenvalues must be finite and not negative")
    return lam


def noiseless_error(eigenvalues: ArrayLike, messages: int) -> float:
    """MMSE(L) = Σ_{i>L} λ_i: each exact message removes one eigenvalue, the largest first.

    >>> noiseless_error([1.0, 0.5, 0.25], 1)
    0.75
    """
    return float(_sorted(eigenvalues, messages)[messages:].sum())


def gaussian_error(eigenvalues: ArrayLike, messages: int, noise: float) -> float:
    """Least error of L messages that share the noise of one estimate ŵ ~ N(w, s² I): of this specification.

    Orthonormal directions are optimal: Σ_{i≤L} λ_i s² / (λ_i + s²) + Σ_{i>L} λ_i.

    >>> round(gaussian_error([1.0, 0.245, 0.245, 0.0625, 0.0625, 0.0625, 0.0625], 3, 0.3), 3)
    0.464
    """
    lam = _sorted(eigenvalues, messages)
    _positive("noise", noise)
    seen = lam[:messages]
    return float((seen * noise**2 / (seen + noise**2)).sum() + lam[messages:].sum())


def water_filling(eigenvalues: ArrayLike, messages: int, noise: float) -> tuple[float, NDArray[Any]]:
    """Least error of L unit messages with *fresh* noise each, and the precision that each eigenvector receives [D].

    L unit vectors can realise any spectrum of Σ u uᵀ of trace L and rank L, so the precision L / s² is poured over
    the L leading eigenvalues: 1/λ_i + j_i is one level where j_i > 0. Messages that share one estimate cannot do this
    (asking twice tells nothing new): `gaussian_error`.

    >>> lam = [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    >>> [round(water_filling(lam, n, 0.6)[0], 3) for n in (2, 3)]
    [1.968, 1.675]
    """
    lam = _sorted(eigenvalues, messages)
    _positive("noise", noise)
    poured = np.zeros(len(lam))
    for active in range(min(messages, int((lam > np.finfo(np.float64).tiny).sum())), 0, -1):
        level = ((1 / lam[:active]).sum() + messages / noise**2) / active
        if level >= 1 / lam[active - 1]:
            poured[:active] = level - 1 / lam[:active]
            break
    error = np.where(lam > 0, lam / (1 + lam * poured), 0.0)
    return float(error.sum()), poured
