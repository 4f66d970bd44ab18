"""A matrix kept as the product of two thin ones, as attention's W_Q W_Kᵀ and W_V W_O are; of one head or of many."""

from __future__ import annotations

import functools
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError
from .inputs import as_array, whole

Array = NDArray[Any]


class FactoredMatrix:
    """M = A B with A [..., rows, r] and B [..., r, columns]; M is formed only when asked for.

    Leading axes broadcast, so that the matrices of all heads are one object and every result has the leading axes in
    front. The factors are not to be written to: the singular value decomposition is made once and kept.

    Factors are real or complex, of the precisions that LAPACK has: integers, True and False become float64, float16
    float32, and long doubles doubles. Raises ShapeError for factors that do not multiply or are no numbers.

    >>> import numpy as np
    >>> m = FactoredMatrix(np.eye(4)[:, :2], np.ones((2, 4)))
    >>> m.shape, round(m.norm(), 6), m.S.shape
    ((4, 4), 2.828427, (2,))
    >>> import clew
    >>> heads = clew.load("stories260K").OV()           # every layer, every head
    >>> heads.shape, heads.eigenvalues().shape, heads[2, 5].shape
    ((5, 8, 64, 64), (5, 8, 8), (64, 64))
    """

    __array_ufunc__ = None  # array @ FactoredMatrix comes to __rmatmul__

    def __init__(self, A: ArrayLike, B: ArrayLike) -> None:
        a, b = as_array(A, "FactoredMatrix: A"), as_array(B, "FactoredMatrix: B")
        shapes = f"FactoredMatrix: A {list(a.shape)} and B {list(b.shape)}"
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ShapeError(f"{shapes} do not multiply")
        if a.dtype.kind not in "biufc" or b.dtype.kind not in "biufc":
            raise ShapeError(f"{shapes} must be numbers, not {a.dtype} and {b.dtype}")
        a, b = _in_precision(a), _in_precision(b)
        try:
            leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ShapeError(f"{shapes}: the leading axes do not broadcast") from None
        self.A: Array = np.broadcast_to(a, (*leading, *a.shape[-2:])) if a.shape[:-2] != leading else a
        """Left factor [..., rows, r]."""
        self.B: Array = np.broadcast_to(b, (*leading, *b.shape[-2:])) if b.shape[:-2] != leading else b
        """Right factor [..., r, columns]."""

    # ---- shape ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product [..., rows, columns]."""
        return (*self.A.shape[:-1], self.B.shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of the product."""
        return self.A.ndim

    @property
    def ldim(self) -> int:
        """Rows of the product."""
        return int(self.A.shape[-2])

    @property
    def rdim(self) -> int:
        """Columns of the product."""
        return int(self.B.shape[-1])

    @property
    def mdim(self) -> int:
        """Length r of the axis between the factors."""
        return int(self.A.shape[-1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the product."""
        return np.result_type(self.A, self.B)

    @property
    def T(self) -> FactoredMatrix:
        """The transpose of each matrix, factored; leading axes stay."""
        return FactoredMatrix(_t(self.B), _t(self.A))

    def __getitem__(self, index: Any) -> FactoredMatrix:
        """Indexes leading axes as NumPy does; then rows, then columns, which stay two axes (an int keeps one of them).

        Raises IndexError for what is no index, or does not fit.

        >>> import numpy as np
        >>> m = FactoredMatrix(np.ones((3, 4, 2)), np.ones((3, 2, 5)))
        >>> m[0].shape, m[1:, :2].shape, m[..., 0, :3].shape
        ((4, 5), (2, 2, 5), (3, 1, 3))
        """
        parts = index if isinstance(index, tuple) else (index,)
        used = [_axes(p) for p in parts]
        if sum(used) > self.ndim:
            raise IndexError(f"{sum(used)} indices for a FactoredMatrix of shape {list(self.shape)}")
        if any(p is Ellipsis for p in parts):
            at = next(i for i, p in enumerate(parts) if p is Ellipsis)
            parts = (*parts[:at], *[slice(None)] * (self.ndim - sum(used)), *parts[at + 1 :])
        leading: list[Any] = []
        taken, rest = 0, list(parts)
        while rest and (rest[0] is None or taken + _axes(rest[0]) <= self.ndim - 2):
            taken += _axes(rest[0])
            leading.append(rest.pop(0))
        if len(rest) > 2 or any(_axes(p) != 1 or np.ndim(p) > 1 for p in rest if not isinstance(p, slice)):
            raise IndexError(f"index {index!r} does not fit a FactoredMatrix of shape {list(self.shape)}")
        rest += [slice(None)] * (2 - len(rest))
        rows, columns = (_kept(p, n) for p, n in zip(rest, (self.ldim, self.rdim), strict=True))
        a, b = self.A[tuple(leading)], self.B[tuple(leading)]
        return FactoredMatrix(a[..., rows, :], b[..., columns])

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """With an axis of length 1 at place `k` among the leading ones; ShapeError where there is no such place.

        >>> import numpy as np
        >>> FactoredMatrix(np.ones((3, 4, 2)), np.ones((3, 2, 5))).unsqueeze(1).shape
        (3, 1, 4, 5)
        """
        if not 0 <= whole(k, "k") <= self.ndim - 2:
            raise ShapeError(f"unsqueeze({k}) of a FactoredMatrix {list(self.shape)}: 0 to {self.ndim - 2}")
        return FactoredMatrix(np.expand_dims(self.A, k), np.expand_dims(self.B, k))

    @property
    def pair(self) -> tuple[Array, Array]:
        """Both factors, (A, B)."""
        return self.A, self.B

    # ---- products ---------------------------------------------------------------------------------------------------

    @property
    def AB(self) -> Array:
        """The product itself [..., rows, columns]."""
        return np.asarray(self.A @ self.B)

    @property
    def BA(self) -> Array:
        """The factors the other way round [..., r, r]; ShapeError where the product is not square."""
        self._needs_square("BA")
        return np.asarray(self.B @ self.A)

    def __matmul__(self, right: Any) -> Any:
        """M @ right: an array [columns] or [..., columns, n], or another FactoredMatrix, which keeps it factored.

        Raises ShapeError where the shapes do not fit.
        """
        if isinstance(right, FactoredMatrix):
            _fits(self, right)
            middle = self.B @ right.A
            if self.mdim <= right.mdim:
                return FactoredMatrix(self.A, middle @ right.B)
            return FactoredMatrix(self.A @ middle, right.B)
        right = as_array(right, "the right factor")
        if not _holds_numbers(right, "the right factor"):
            return NotImplemented
        _fits(self, right)
        if right.ndim == 1:
            return np.asarray((self.A @ (self.B @ right)[..., None])[..., 0])
        return np.asarray(self.A @ (self.B @ right))

    def __rmatmul__(self, left: ArrayLike) -> Any:
        """left @ M for an array [rows] or [..., n, rows]; raises ShapeError where the shapes do not fit."""
        left = as_array(left, "the left factor")
        if not _holds_numbers(left, "the left factor"):
            return NotImplemented
        _fits(left, self)
        if left.ndim == 1:
            return np.asarray(((left @ self.A)[..., None, :] @ self.B)[..., 0, :])
        return np.asarray((left @ self.A) @ self.B)

    def __mul__(self, factor: Any) -> FactoredMatrix:
        """M times a number, factored."""
        if not _is_number(factor, "*", ", @ multiplies matrices"):
            return NotImplemented
        return FactoredMatrix(self.A * factor, self.B)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> FactoredMatrix:
        """M divided by a number, factored."""
        if not _is_number(factor, "/"):
            return NotImplemented
        return FactoredMatrix(self.A / factor, self.B)

    def __neg__(self) -> FactoredMatrix:
        return FactoredMatrix(-self.A, self.B)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.AB, dtype)

    def get_corner(self, k: int = 3) -> Array:
        """The first k rows and columns [..., k, k], all of a smaller matrix; only they are formed.

        Raises ConfigError for a k that is no whole number of at least 0.
        """
        if whole(k, "k") < 0:
            raise ConfigError(f"k = {k}: at least 0")
        return np.asarray(self.A[..., :k, :] @ self.B[..., :k])

    # ---- linear algebra ---------------------------------------------------------------------------------------------

    @functools.cached_property
    def _triangles(self) -> tuple[Array, Array, Array, Array]:
        """Q_A [..., rows, k], R_A [..., k, r], Q_B [..., columns, l], R_B [..., l, r]: A = Q_A R_A, Bᵀ = Q_B R_B."""
        q_a, r_a = np.linalg.qr(self.A)
        q_b, r_b = np.linalg.qr(_t(self.B))
        return q_a, r_a, q_b, r_b

    @functools.cached_property
    def _svd(self) -> tuple[Array, Array, Array]:
        q_a, r_a, q_b, r_b = self._triangles
        with np.errstate(invalid="ignore", over="ignore"):
            middle = r_a @ _t(r_b)
        self._needs_finite(middle, "singular values")
        u, s, vh = np.linalg.svd(middle, full_matrices=False)
        out = q_a @ u, s, vh @ _t(q_b)
        for array in out:
            array.flags.writeable = False
        return out

    def svd(self) -> tuple[Array, Array, Array]:
        """Thin singular value decomposition U [..., rows, k], S [..., k], Vh [..., k, columns]; M = U diag(S) Vh.

        k is the least of rows, r and columns. Exact, through a QR decomposition of each factor; made once, read-only.
        Raises ConfigError for factors that hold NaN or infinity.
        """
        return self._svd

    @property
    def U(self) -> Array:
        """Left singular vectors [..., rows, k]."""
        return self._svd[0]

    @property
    def S(self) -> Array:
        """Singular values [..., k], largest first."""
        return self._svd[1]

    @property
    def Vh(self) -> Array:
        """Right singular vectors as rows [..., k, columns]."""
        return self._svd[2]

    @property
    def V(self) -> Array:
        """Right singular vectors as columns [..., columns, k]."""
        return _t(self._svd[2])

    def eigenvalues(self) -> Array:
        """The r eigenvalues that may differ from zero, those of B A, complex [..., r].

        Raises ShapeError for a product that is not square, ConfigError for factors that hold NaN or infinity.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            middle = self.BA
        self._needs_finite(middle, "eigenvalues")
        return np.asarray(np.linalg.eigvals(middle))

    def norm(self) -> Any:
        """Frobenius norm: a float, or an array over the leading axes."""
        _, r_a, _, r_b = self._triangles
        norms = np.linalg.norm(r_a @ _t(r_b), axis=(-2, -1))
        return float(norms) if self.ndim == 2 else norms

    def trace(self) -> Any:
        """Sum of the diagonal: a number, or an array over the leading axes; ShapeError where it is not square."""
        self._needs_square("trace")
        traces = np.einsum("...ir,...ri->...", self.A, self.B)
        return traces.item() if self.ndim == 2 else np.asarray(traces)

    def make_even(self) -> FactoredMatrix:
        """The same matrix as U √S times √S Vh: each factor has half of the singular values, orthogonal directions."""
        u, s, vh = self._svd
        root = np.sqrt(s)
        return FactoredMatrix(u * root[..., None, :], root[..., :, None] * vh)

    def collapse_l(self) -> Array:
        """S Vh [..., k, columns]: the matrix without its left orthogonal factor; same right side, norm and Gram matrix.

        For M acting on rows of x, `x @ U @ collapse_l()` is `x @ M`.
        """
        return np.asarray(self.S[..., :, None] * self.Vh)

    def collapse_r(self) -> Array:
        """U S [..., rows, k]: the matrix without its right orthogonal factor."""
        return np.asarray(self.U * self.S[..., None, :])

    def _needs_finite(self, middle: Array, what: str) -> None:
        """ConfigError unless what the values are made from is finite."""
        if not np.isfinite(middle).all():
            bad = [name for name, m in zip("AB", self.pair, strict=True) if not np.isfinite(m).all()]
            raise ConfigError(f"FactoredMatrix: {bad[0] if bad else 'the product'} holds NaN or infinity: no {what}")

    def _needs_square(self, what: str) -> None:
        if self.ldim != self.rdim:
            raise ShapeError(f"{what} of a FactoredMatrix {list(self.shape)}: it must be square")

    def __repr__(self) -> str:
        return f"FactoredMatrix {list(self.shape)} of rank {self.mdim} or less, {self.dtype}"


def _t(array: Array) -> Array:
    """Last two axes swapped: a view."""
    return np.asarray(np.swapaxes(array, -1, -2))


def _axes(part: Any) -> int:
    """How many axes a part of an index takes; IndexError for what is none."""
    if part is None or isinstance(part, EllipsisType):
        return 0
    if isinstance(part, slice):
        return 1
    array = as_array(part, "index")
    if array.size and array.dtype.kind not in "iub":
        raise IndexError(f"index {part!r:.80} of a FactoredMatrix: whole numbers, masks, slices, ... or None")
    return array.ndim if array.dtype == bool else 1


def _is_number(factor: Any, sign: str, said: str = "") -> bool:
    """Is it a number to multiply or divide by? ShapeError for several."""
    array = factor if isinstance(factor, FactoredMatrix) else as_array(factor, "the factor")
    if array.ndim:
        raise ShapeError(f"FactoredMatrix {sign} {list(array.shape)}: a number is meant{said}")
    return isinstance(factor, int) or array.dtype.kind in "biufc"  # NumPy has no dtype for large ints


def _holds_numbers(array: Array, what: str) -> bool:
    """Numbers? ShapeError for an array of other things; of one other thing False: Python refuses it."""
    if array.ndim and array.dtype.kind not in "biufc":
        raise ShapeError(f"{what} must be numbers, not {array.dtype} {list(array.shape)}")
    return array.dtype.kind in "biufc"


def _in_precision(factor: Array) -> Array:
    """The factor in a dtype that LAPACK has and that does not wrap."""
    if factor.dtype.kind in "biu":
        return factor.astype(np.float64)
    others: dict[Any, Any] = {np.float16: np.float32, np.longdouble: np.float64, np.clongdouble: np.complex128}
    return factor.astype(others.get(factor.dtype.type, factor.dtype), copy=False)


def _kept(part: Any, length: int) -> Any:
    """An index of rows or columns that keeps the axis."""
    if isinstance(part, slice):
        return part
    if np.ndim(part) == 0:
        i = int(part)
        if not -length <= i < length:
            raise IndexError(f"index {i} is out of bounds for an axis of {length}")
        return slice(i % length, i % length + 1)
    return part


def _fits(left: Any, right: Any) -> None:
    """ShapeError unless left @ right is defined."""
    shapes = [tuple(m.shape if isinstance(m, FactoredMatrix) else np.shape(m)) for m in (left, right)]
    inner = shapes[1][-2] if len(shapes[1]) > 1 else (shapes[1] or (None,))[0]
    fits = bool(shapes[0]) and shapes[0][-1] == inner
    if fits and min(map(len, shapes)) > 2:
        try:
            np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
        except ValueError:
            fits = False
    if not fits:
        raise ShapeError(f"{list(shapes[0])} @ {list(shapes[1])} does not multiply")
