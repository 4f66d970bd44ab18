"""A matrix kept as the product of two thin ones, as attention's W_Q W_Kᵀ and W_V W_O are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError

Array = NDArray[Any]


class FactoredMatrix:
    """M = A B with A [rows, r] and B [r, columns]; M is formed only when asked for.

    >>> import numpy as np
    >>> m = FactoredMatrix(np.eye(4)[:, :2], np.ones((2, 4)))
    >>> m.shape, float(m.norm())
    ((4, 4), 2.8284271247461903)
    """

    def __init__(self, A: Array, B: Array) -> None:
        if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
            raise ShapeError(f"FactoredMatrix: A {list(A.shape)} and B {list(B.shape)} do not multiply")
        self.A = A
        """Left factor [rows, r]."""
        self.B = B
        """Right factor [r, columns]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product."""
        return self.A.shape[0], self.B.shape[1]

    @property
    def AB(self) -> Array:
        """The product itself [rows, columns]."""
        return np.asarray(self.A @ self.B)

    @property
    def T(self) -> FactoredMatrix:
        """The transpose, factored."""
        return FactoredMatrix(self.B.T, self.A.T)

    __array_ufunc__ = None  # array @ FactoredMatrix comes to __rmatmul__

    def __matmul__(self, right: Any) -> Any:
        """M @ right: an array [columns, …], or another FactoredMatrix, which keeps the product factored.

        Raises ShapeError where the shapes do not fit.
        """
        _fits(self, right)
        if isinstance(right, FactoredMatrix):
            middle = self.B @ right.A
            if self.A.shape[1] <= right.B.shape[0]:
                return FactoredMatrix(self.A, middle @ right.B)
            return FactoredMatrix(self.A @ middle, right.B)
        return np.asarray(self.A @ (self.B @ right))

    def __rmatmul__(self, left: Array) -> Array:
        """left @ M for an array [..., rows]; raises ShapeError where the shapes do not fit."""
        _fits(left, self)
        return np.asarray((left @ self.A) @ self.B)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.AB, dtype)

    def svd(self) -> tuple[Array, Array, Array]:
        """Thin singular value decomposition U [rows, r], S [r], Vh [r, columns], from the factors' QR."""
        q_a, r_a = np.linalg.qr(self.A)
        q_b, r_b = np.linalg.qr(self.B.T)
        u, s, vh = np.linalg.svd(r_a @ r_b.T)
        k = len(s)
        return q_a @ u[:, :k], s, vh[:k] @ q_b.T

    def eigenvalues(self) -> Array:
        """The r eigenvalues that may differ from zero (of B A), complex."""
        return np.asarray(np.linalg.eigvals(self.B @ self.A))

    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.sqrt(max(np.sum((self.A.T @ self.A) * (self.B @ self.B.T)), 0.0)))

    def __repr__(self) -> str:
        return f"FactoredMatrix {list(self.shape)} of rank {self.A.shape[1]} or less, {self.A.dtype}"


def _fits(left: Any, right: Any) -> None:
    """ShapeError unless left @ right is defined."""
    shapes = [tuple(m.shape if isinstance(m, FactoredMatrix) else np.shape(m)) for m in (left, right)]
    inner = shapes[1][-2] if len(shapes[1]) > 1 else (shapes[1] or (None,))[0]
    if not shapes[0] or shapes[0][-1] != inner:
        raise ShapeError(f"{list(shapes[0])} @ {list(shapes[1])} does not multiply")
