"""One example after the other, and fits to all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import real_numbers
from ._inputs import Array, check_room, count, examples, float_dtype, in_slab, query_array
from ._run import Kind, Stream, build


def fit_predict(X: ArrayLike, y: ArrayLike, Xq: ArrayLike, method: str = "ols", **parameters: Any) -> Array:
    """Predictions [batch, m] for queries Xq [batch, m, d] from all n examples of X [batch, n, d] and y [batch, n].

    `method` is the name of an estimator of `clew.regression`, `parameters` are that function's own. Dtypes and errors
    are those of the function.

    >>> fit_predict([[[1.0], [2.0]]], [[2.0, 4.0]], [[[3.0]]], "ridge", lam=1.0).round(9).tolist()
    [[5.0]]
    """
    given = examples(X, y)
    queries = query_array(Xq, given)
    return build(method, given.d, parameters).fit(given, queries)


class Online:
    """An estimator that is given one example at a time, for `batch` sequences side by side.

    `method` and `parameters` are those of the function of that name. Least squares, ridge, Bayes, averaging, SGD, lasso
    and the iterations keep a state of fixed size and take an example in O(d²); the others keep the examples.

    >>> import numpy as np
    >>> model = Online("ridge", d=2, lam=0.5)
    >>> model.update([[1.0, 0.0]], [3.0])
    >>> model.w.round(9).tolist(), model.predict([[2.0, 1.0]]).round(9).tolist(), model.count
    ([[2.0, 0.0]], [4.0], 1)
    """

    count: int
    """Examples so far."""

    def __init__(
        self, method: str, d: int, *, batch: int = 1, dtype: DTypeLike = np.float64, **parameters: Any
    ) -> None:
        self.d, self.batch, self.count = count(d, "d"), count(batch, "batch"), 0
        self.dtype = float_dtype(dtype)
        self.method = method
        self._made = build(method, self.d, parameters)
        check_room("Online: one example of each sequence", self.batch, self.d)
        self._x = np.empty((self.batch, 0, self.d), self.dtype)
        self._y = np.empty((self.batch, 0), self.dtype)
        self._state: Array | None = None
        if isinstance(self._made, Stream):
            self._settings = self._made.settings(self.dtype)
            self._state = _core.reg_state(self._settings, self.batch, self.d, self.dtype)

    def __repr__(self) -> str:
        return f"Online {self.method}: {self.batch} sequences of d = {self.d}, {self.count} examples, {self.dtype}"

    def _rows(self, x: ArrayLike, name: str) -> Array:
        array = real_numbers(x, name)
        if self.batch == 1 and array.ndim == 1:
            array = array[None]
        if array.shape != (self.batch, self.d):
            raise ShapeError(f"{name} {list(array.shape)}: one row for each sequence is [{self.batch}, {self.d}]")
        return in_slab(array, self.dtype, name, ("sequence", "feature"))

    def update(self, x: ArrayLike, y: ArrayLike) -> None:
        """Takes one example for each sequence: x [batch, d], y [batch] ([d] and a number where batch is 1).

        Raises ShapeError and ConfigError as the functions do; the state is then what it was.
        """
        rows = self._rows(x, "x")
        values = real_numbers(y, "y")
        if self.batch == 1 and values.ndim == 0:
            values = values[None]
        if values.shape != (self.batch,):
            raise ShapeError(f"y {list(values.shape)}: one number for each sequence is [{self.batch}]")
        outputs = in_slab(values, self.dtype, "y", ("sequence",))
        if self._state is not None:
            _core.reg_update(self._state, self._settings, rows, outputs)
        else:
            if self.count == self._x.shape[1]:
                room = max(16, 2 * self.count)
                self._x = np.concatenate([self._x, np.empty((self.batch, room, self.d), self.dtype)], axis=1)
                self._y = np.concatenate([self._y, np.empty((self.batch, room), self.dtype)], axis=1)
            self._x[:, self.count], self._y[:, self.count] = rows, outputs
        self.count += 1

    @property
    def w(self) -> Array:
        """The estimate so far [batch, d]. Raises ConfigError for a method without a weight vector."""
        if self._state is None:
            raise ConfigError(f"{self.method} keeps its examples, not a weight vector: use predict")
        out = np.empty((self.batch, self.d), self.dtype)
        _core.reg_weights(self._state, self._settings, out, None)
        return out

    @property
    def covariance(self) -> Array:
        """The posterior covariance of w [batch, d, d]. Raises ConfigError for other methods than bayes."""
        if self._state is None or not isinstance(self._made, Stream) or self._made.kind != Kind.BAYES:
            raise ConfigError(f"{self.method} has no posterior covariance")
        w = np.empty((self.batch, self.d), self.dtype)
        out = np.empty((self.batch, self.d, self.d), self.dtype)
        _core.reg_weights(self._state, self._settings, w, out)
        return out

    def predict(self, x: ArrayLike) -> Array:
        """Predictions [batch] for one query of each sequence, x [batch, d]."""
        rows = self._rows(x, "x")
        if self._state is not None:
            return np.asarray((rows * self.w).sum(1))
        if self.count == 0:
            return np.asarray(self._nothing(rows))
        given = examples(self._x[:, : self.count], self._y[:, : self.count])
        queries = in_slab(rows[:, None], self.dtype, "x", ("sequence", "row", "feature"))
        return np.asarray(self._made.fit(given, queries)[:, 0])

    def _nothing(self, rows: Array) -> Array:
        """The prior mean's prediction."""
        given = examples(rows[:, None], np.zeros((self.batch, 1), self.dtype))
        return np.asarray(self._made.prefixes(given, False)[:, 0])
