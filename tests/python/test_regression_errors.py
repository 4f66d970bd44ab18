"""Bad input to the estimators: what is raised and what the message says; and what is accepted as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, _core, regression
from numpy.typing import NDArray
from test_regression_exact import PARAMETERS, data

Array = NDArray[Any]
X, Y = data(0, batch=3, n=6, d=4)


def call(name: str, x: Any = X, y: Any = Y, **changes: Any) -> Any:
    return getattr(regression, name)(x, y, **(PARAMETERS[name] | changes))


def predictions(result: Any) -> Array:
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def raises(error: type[Exception], text: str) -> Any:
    return pytest.raises(error, match=re.escape(text))


# ---- Examples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_nan_and_infinity(name: str, value: float, word: str) -> None:
    x, y = X.copy(), Y.copy()
    x[1, 4, 2] = value
    with raises(ConfigError, f"X is {word} at sequence 1, row 4, feature 2"):
        call(name, x)
    y[2, 5] = value
    with raises(ConfigError, f"y is {word} at sequence 2, row 5"):
        call(name, y=y)
    with raises(ConfigError, f"Xq is {word} at sequence 1, row 4, feature 2"):
        regression.fit_predict(X, Y, x, name, **PARAMETERS[name])


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes(name: str) -> None:
    with raises(ShapeError, "X [3, 6, 4] and y [3, 5]: X must be [batch, n, d] and y [batch, n]"):
        call(name, y=Y[:, :5])
    with raises(ShapeError, "X [6, 4] and y [6]: X must be [batch, n, d]"):
        call(name, X[0], Y[0])
    for empty, axis in ((X[:0], "batch"), (X[:, :0], "n"), (X[:, :, :0], "d")):
        with raises(ShapeError, f"X {list(empty.shape)}: {axis} = 0"):
            call(name, empty, np.zeros(empty.shape[:2]))
    with raises(ShapeError, "Xq [2, 6, 4] with X [3, 6, 4]: Xq must be [3, m, 4]"):
        regression.fit_predict(X, Y, X[:2], name, **PARAMETERS[name])


@pytest.mark.parametrize("bad", [X.astype(complex), X > 0, X.astype(str), X.astype(object)])
def test_no_numbers(bad: Any) -> None:
    with raises(ShapeError, f"X must be real numbers, not {bad.dtype}"):
        regression.ols(bad, Y)
    with raises(ShapeError, "X cannot be read as an array"):
        regression.ols([[[1.0], [1.0, 2.0]]], [[1.0, 2.0]])
    with raises(ShapeError, "X: an array with masked values"):
        regression.ols(np.ma.masked_greater(X, X.mean()), Y)


@pytest.mark.parametrize("name", PARAMETERS)
def test_dtypes_layouts_and_inputs_that_stay(name: str) -> None:
    truth = predictions(call(name))
    wide = np.zeros((3, 12, 8))
    wide[:, ::2, ::2] = X
    for x in (wide[:, ::2, ::2], np.asfortranarray(X), X[:, :, ::-1].copy()[:, :, ::-1], X.astype(">f8")):
        before, y = x.copy(), Y.copy()
        x.flags.writeable = y.flags.writeable = False
        assert np.array_equal(predictions(call(name, x, y)), truth)
        assert np.array_equal(x, before) and np.array_equal(y, Y)
    assert predictions(call(name, X.tolist(), Y.tolist())).dtype == np.float64
    integers, outputs = np.rint(3 * X).astype(np.int16), np.rint(3 * Y).astype(np.int64)
    ours = predictions(call(name, integers, outputs))
    assert ours.dtype == np.float64
    assert np.array_equal(ours, predictions(call(name, integers.astype(float), outputs.astype(float))))
    half = predictions(call(name, X.astype(np.float16), Y.astype(np.float16)))
    single = predictions(call(name, X.astype(np.float16).astype(np.float32), Y.astype(np.float16).astype(np.float32)))
    assert half.dtype == np.float32 and np.array_equal(half, single)
    assert predictions(call(name, X.astype(np.float32), Y)).dtype == np.float64
    large = np.longdouble("1e400") * X.astype(np.longdouble)
    if np.isfinite(large).all() and large.dtype.itemsize > 8:
        with raises(ConfigError, "X is infinite at sequence 0, row 0, feature 0"):
            call(name, large)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 1023, 1024, 40_000, 70_001])
def test_the_first_bad_value(dtype: Any, at: int) -> None:
    x = np.ones(70_002, dtype)
    assert _core.first_bad(x) == -1
    x[at], x[-1] = np.nan, np.inf
    out = np.zeros_like(x)
    assert _core.first_bad(x) == at and _core.copy_finite(out, x) == at
    assert np.array_equal(out[:at], x[:at])
    assert _core.first_bad(x[::-1]) == 0 and _core.first_bad(x.reshape(3, -1, 2)) == at
    for bad in (x[::2], x.astype(">f8"), x[:5], np.zeros(len(x), int), None):
        with pytest.raises(TypeError):
            _core.copy_finite(out, bad)


# ---- Parameters -----------------------------------------------------------------------------------------------------


NOT_PD = np.diag([1.0, 2.0, -0.5, 1.0])
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("ridge", {"lam": -1.0}, ConfigError, "lam = -1.0: must be a finite number at least 0"),
    ("ridge", {"lam": np.nan}, ConfigError, "lam = nan: must be a finite number at least 0"),
    ("ridge", {"lam": "much"}, ConfigError, "lam = 'much' is no number"),
    ("kernel_ridge", {"lam": -0.1}, ConfigError, "lam = -0.1: must be a finite number at least 0"),
    ("kernel_ridge", {"gamma": -1}, ConfigError, "gamma = -1: must be a finite number at least 0"),
    ("newton_schulz", {"lam": -0.1}, ConfigError, "lam = -0.1: must be a finite number at least 0"),
    ("newton_schulz", {"steps": -1}, ConfigError, "steps = -1: must be a whole number, at least 0"),
    ("bayes", {"noise_var": -1}, ConfigError, "noise_var = -1: must be a finite number above 0"),
    ("bayes", {"noise_var": 0}, ConfigError, "noise_var = 0: must be a finite number above 0"),
    ("bayes", {"prior_cov": NOT_PD}, ConfigError, "not positive definite: its smallest eigenvalue is -0.5"),
    ("bayes", {"prior_cov": 0.0}, ConfigError, "prior_cov is not positive definite: its smallest eigenvalue is 0"),
    ("bayes", {"prior_cov": np.triu(np.ones((4, 4)))}, ConfigError, "prior_cov is not symmetric"),
    ("bayes", {"prior_cov": np.eye(3)}, ShapeError, "prior_cov [3, 3] with d = 4"),
    ("bayes", {"prior_cov": [1, 1, np.nan, 1]}, ConfigError, "prior_cov holds NaN or infinity"),
    ("bayes", {"prior_mean": [1.0]}, ShapeError, "prior_mean [1] with d = 4: must be [4]"),
    ("gd", {"steps": 2.5}, ConfigError, "steps = 2.5: must be a whole number, at least 0"),
    ("gd", {"lr": [0.1, 0.2]}, ShapeError, "lr [2]: one number, or one for each of 3 steps"),
    ("gd", {"lr": np.inf}, ConfigError, "lr = inf: must be finite"),
    ("gd", {"precond": np.eye(3)}, ShapeError, "precond [3, 3] with d = 4"),
    ("gd", {"precond": np.zeros((2, 4, 4))}, ShapeError, "precond [2, 4, 4]: one matrix for each step is [3, 4, 4]"),
    ("gd_pp", {"gamma": [1, 2]}, ShapeError, "gamma [2]: one number, or one for each of 3 steps"),
    ("momentum", {"beta": -1}, ConfigError, "beta = -1: must be a finite number at least 0"),
    ("sgd", {"lr": np.nan}, ConfigError, "lr = nan: must be a finite number"),
    ("lasso", {"alpha": 0}, ConfigError, "alpha = 0: must be a finite number above 0 (without a penalty it is ols)"),
    ("lasso", {"alpha": 1e-4, "max_iter": 1}, ConfigError, "lasso: 1 iterations did not bring the duality gap"),
    ("knn", {"k": 0}, ConfigError, "k = 0: must be a whole number, at least 1"),
    ("nadaraya_watson", {"scale": np.inf}, ConfigError, "scale = inf: must be a finite number"),
    ("dmmse", {"noise_var": 0.0}, ConfigError, "noise_var = 0.0: must be a finite number above 0"),
    ("dmmse", {"noise_var": -2}, ConfigError, "noise_var = -2: must be a finite number above 0"),
    ("dmmse", {"tasks": np.zeros((0, 4))}, ShapeError, "tasks [0, 4]: M = 0, there is no task to choose from"),
    ("dmmse", {"tasks": np.zeros((5, 3))}, ShapeError, "tasks [5, 3] with d = 4: must be [M, 4]"),
    ("dmmse", {"tasks": np.full((2, 4), np.nan)}, ConfigError, "tasks is NaN at task 0, feature 0"),
    ("dmmse", {"log_prior": [0.0]}, ShapeError, "log_prior [1] with 9 tasks: must be [9]"),
    ("dmmse", {"log_prior": [np.nan] * 9}, ConfigError, "log_prior must be numbers or −inf"),
    ("mixture", {"means": np.zeros((2, 3))}, ShapeError, "means [2, 3] with d = 4: must be [H, 4]"),
    ("mixture", {"covs": np.ones((3, 4, 4))}, ShapeError, "covs [3, 4, 4] with means [2, 4]"),
    ("mixture", {"covs": NOT_PD}, ConfigError, "prior_cov is not positive definite"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "error", "text"), WRONG)
def test_parameters(name: str, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with raises(error, text):
        call(name, **changes)
    with raises(error, text):
        regression.fit_predict(X, Y, X, name, **(PARAMETERS[name] | changes))


RANGES = [
    ("ridge", {"lam": 1e-36}), ("ridge", {"lam": 1e-46}), ("ridge", {"lam": 1e100}), ("lasso", {"alpha": 1e50}),
    ("sgd", {"lr": -1e50}), ("sgd", {"lr": 1e-50}), ("gd", {"lr": [1e50, 0.1, 0.1]}), ("gd", {"precond": 1e-50}),
    ("gd_pp", {"gamma": 1e50}), ("momentum", {"beta": 1e50}), ("newton_schulz", {"lam": 1e50}),
    ("bayes", {"noise_var": 1e-50}), ("bayes", {"noise_var": 1e50}), ("bayes", {"prior_cov": 1e-50}),
    ("bayes", {"prior_mean": np.full(4, 1e50)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), RANGES)
def test_parameters_beyond_the_dtype(name: str, changes: dict[str, Any]) -> None:
    parameters = PARAMETERS[name] | changes
    (named,) = changes
    for call in (
        lambda dtype: getattr(regression, name)(X.astype(dtype), Y.astype(dtype), **parameters),
        lambda dtype: regression.fit_predict(X.astype(dtype), Y.astype(dtype), X.astype(dtype), name, **parameters),
        lambda dtype: regression.Online(name, 4, dtype=dtype, **parameters),
    ):
        with pytest.raises(
            ConfigError, match=rf"{named} = \S+: of X and y in float32 it is 0 or lies in \S+ to 3.4e\+38"
        ):
            call(np.float32)
        try:
            call(np.float64)
        except ConfigError as error:  # of what is too large for the data itself
            assert "of X and y" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_least_penalty_is_that_of_least_squares(dtype: Any) -> None:
    x, y = X.astype(dtype), Y.astype(dtype)
    least = regression._run.LEAST_LAM[np.dtype(dtype)]  # type: ignore[attr-defined]
    want = regression.ols(x.astype(float), y.astype(float), weights=True)[1]
    found = regression.ridge(x, y, least, weights=True)[1]
    assert abs(found - want).max() < 100 * np.finfo(dtype).eps * abs(want).max()
    for lam in (least / 2, np.finfo(dtype).smallest_subnormal):
        with pytest.raises(ConfigError, match=f"lam = .*: of X and y in {np.dtype(dtype)} it is 0 or lies in"):
            regression.ridge(x, y, lam)


def test_tree_and_model_average() -> None:
    with raises(ShapeError, "d = 4 with amplitudes [2]: such a tree has 3 nodes"):
        regression.tree(X, Y, [1, 0.5], 0.1)
    with raises(ShapeError, "amplitudes [0]: finite numbers [K]"):
        regression.tree_leaves([])
    with raises(ConfigError, "leaf_var = -1: must be a finite number at least 0"):
        regression.tree(X[:, :, :3], Y, [1, 0.5], 0.1, leaf_var=-1)
    with raises(ShapeError, "predictions [3, 6] and log_evidence [3, 6]: both must be [H, batch, n]"):
        regression.model_average(Y, Y)
    with raises(ConfigError, "log_evidence is NaN at hypothesis 0, sequence 0, row 0"):
        regression.model_average(Y[None], np.full((1, 3, 6), np.nan))
    with raises(ShapeError, "log_prior [2] with 1 hypotheses: must be [1]"):
        regression.model_average(Y[None], Y[None], [0, 0])


def test_names_of_methods_and_parameters() -> None:
    with raises(ConfigError, "no method 'rigde': averaging, bayes, dmmse,"):
        regression.fit_predict(X, Y, X, "rigde")
    with raises(ConfigError, "ridge does not take alpha and needs lam: its parameters are lam"):
        regression.fit_predict(X, Y, X, "ridge", alpha=1)
    with raises(ConfigError, "ols does not take lam: its parameters are none"):
        regression.Online("ols", d=3, lam=1)


def test_online() -> None:
    stream = regression.Online("ridge", d=2, batch=3, lam=1.0)
    with raises(ShapeError, "x [2, 2]: one row for each sequence is [3, 2]"):
        stream.update(np.zeros((2, 2)), np.zeros(3))
    with raises(ShapeError, "y [2]: one number for each sequence is [3]"):
        stream.update(np.zeros((3, 2)), np.zeros(2))
    with raises(ConfigError, "y is NaN at sequence 1"):
        stream.update(np.zeros((3, 2)), [0, np.nan, 0])
    assert stream.count == 0 and (stream.w == 0).all()
    with raises(ConfigError, "ridge has no posterior covariance"):
        _ = stream.covariance
    with raises(ConfigError, "knn keeps its examples, not a weight vector"):
        _ = regression.Online("knn", d=2, k=1).w
    with raises(ConfigError, "dtype int64: must be float32 or float64"):
        regression.Online("ols", d=2, dtype=np.int64)
    with raises(ConfigError, "d = 0: must be a whole number, at least 1"):
        regression.Online("ols", d=0)


# ---- Range ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [1e160, 1e300])
def test_overflow_is_finite_or_an_error(name: str, size: float) -> None:
    for x, y in ((X * size, Y), (X, Y * size), (X * size, Y * size)):
        with np.errstate(all="ignore"):
            try:
                assert np.isfinite(predictions(call(name, x, y))).all()
            except ConfigError as error:
                assert re.search("beyond the range of float64|did not bring|not positive definite", str(error))


def test_overflow_messages() -> None:
    with raises(
        ConfigError, "the estimate from the first 4 examples (a sequence of 0 to 2) is beyond the range of float64"
    ):
        regression.averaging(X * [[[1]] * 3 + [[1e200]] * 3], Y * ([1] * 3 + [1e200] * 3))
    with raises(ConfigError, "beyond the range of float32"):
        regression.gd(X.astype(np.float32), Y.astype(np.float32), 200, 100.0)
    with raises(ConfigError, "of sequence 0 is beyond the range of float64: rescale X"):
        regression.knn(X * 1e300, Y, 1)
    with raises(
        ConfigError, "kernel_ridge: the kernel matrix of sequence 0 is not positive definite from example 1 on"
    ):
        regression.kernel_ridge(np.ones((1, 3, 2)), np.ones((1, 3)), 1.0, 0.0)
    with raises(ConfigError, "dmmse: the scores of sequence 0 are beyond the range of float64"):
        regression.dmmse(X, Y * 1e300, X[0], 1.0)


# ---- Threads --------------------------------------------------------------------------------------------------------

SHAPES: list[tuple[int, int]] = [(1, 5), (23, 70), (7, 300)]  # the last: several blocks of keys


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_no_bit(name: str, shape: tuple[int, int]) -> None:
    x, y = data(1, *shape)
    run: Callable[[], Any] = lambda: call(name, x, y)  # noqa: E731
    results = []
    for threads in (1, 2, 3):
        clew.set_num_threads(threads)
        results.append(predictions(run()))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_weights_are_asked_for_not_given() -> None:
    x, y = np.ones((1, 3, 2)), np.ones((1, 3))
    with pytest.raises(ConfigError, match="weights = .*: True or False, whether the estimator's weights are returned"):
        regression.ols(x, y, weights=np.ones(3))  # type: ignore[arg-type]
