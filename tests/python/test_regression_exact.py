"""Every estimator against an independent one: NumPy and SciPy by prefix, scikit-learn, closed forms written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import regression
from numpy.typing import NDArray

Array = NDArray[Any]


def data(seed: int, batch: int = 5, n: int = 13, d: int = 4, noise: float = 0.5) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((batch, n, d)), rng.standard_normal((batch, d))
    return x, np.einsum("bnd,bd->bn", x, w) + noise * rng.standard_normal((batch, n))


def by_prefix(x: Array, y: Array, fit: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    """Predictions and weights of a function (X, y) -> w, one prefix at a time."""
    w = np.zeros_like(x)
    for b in range(len(x)):
        for i in range(1, x.shape[1]):
            w[b, i] = fit(x[b, :i], y[b, :i])
    return np.einsum("bnd,bnd->bn", x, w), w


def lstsq(x: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def solve(x: Array, y: Array, lam: float) -> Array:
    return np.linalg.solve(x.T @ x + lam * np.eye(x.shape[1]), x.T @ y)


def descend(x: Array, y: Array, rates: Any, precond: Any = None, beta: float = 0.0) -> Array:
    w = v = np.zeros(x.shape[1])
    for t, rate in enumerate(rates):
        a = np.eye(len(w)) if precond is None else precond[t]
        v = beta * v - rate * a @ (x.T @ (x @ w - y)) / len(x)
        w = w + v
    return w


def tokens_gd_pp(x: Array, y: Array, query: Array, rates: Any, gammas: Any) -> float:
    """GD++ as the transformer does it, token by token: every token's x and y move, the query's as well."""
    z, r, q, rq = x.copy(), y.copy(), query.copy(), 0.0
    for rate, gamma in zip(rates, gammas, strict=True):
        step, h = rate / len(x) * z.T @ r, z.T @ z
        rq, r = rq - step @ q, r - z @ step
        z, q = z - gamma * z @ h, q - gamma * h @ q
    return -rq


def schulz(x: Array, y: Array, steps: int, lam: float) -> Array:
    a = x.T @ x + lam * np.eye(x.shape[1])
    v = a / np.linalg.norm(a, 1) ** 2
    for _ in range(steps):
        v = v @ (2 * np.eye(len(a)) - a @ v)
    return np.asarray(v @ (x.T @ y))


RATES = [0.1, 0.3, 0.2]
PRECOND = np.random.default_rng(5).standard_normal((3, 4, 4)) / 2
LINEAR: dict[str, tuple[Callable[..., Any], Callable[[Array, Array], Array]]] = {
    "ols": (regression.ols, lstsq),
    "ridge": (lambda x, y, **k: regression.ridge(x, y, 0.3, **k), lambda x, y: solve(x, y, 0.3)),
    "ridge of 0": (lambda x, y, **k: regression.ridge(x, y, 0, **k), lstsq),
    "averaging": (regression.averaging, lambda x, y: x.T @ y / len(x)),
    "gd": (lambda x, y, **k: regression.gd(x, y, 4, 0.2, **k), lambda x, y: descend(x, y, [0.2] * 4)),
    "gd, rates": (lambda x, y, **k: regression.gd(x, y, 3, RATES, **k), lambda x, y: descend(x, y, RATES)),
    "gd, preconditioners": (
        lambda x, y, **k: regression.gd(x, y, 3, RATES, PRECOND, **k),
        lambda x, y: descend(x, y, RATES, PRECOND),
    ),
    "gd, one preconditioner": (
        lambda x, y, **k: regression.gd(x, y, 3, RATES, PRECOND[0], **k),
        lambda x, y: descend(x, y, RATES, [PRECOND[0]] * 3),
    ),
    "gd, diagonal": (
        lambda x, y, **k: regression.gd(x, y, 3, RATES, [1, 2, 3, 4], **k),
        lambda x, y: descend(x, y, RATES, [np.diag([1, 2, 3, 4])] * 3),
    ),
    "momentum": (
        lambda x, y, **k: regression.momentum(x, y, 3, RATES, 0.7, **k),
        lambda x, y: descend(x, y, RATES, beta=0.7),
    ),
    "newton_schulz": (
        lambda x, y, **k: regression.newton_schulz(x, y, 4, 0.1, **k),
        lambda x, y: schulz(x, y, 4, 0.1),
    ),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("d", [1, 4, 7])
def test_linear_estimators(name: str, d: int) -> None:
    if "precond" in name or "diagonal" in name:
        d = 4
    ours, theirs = LINEAR[name]
    x, y = data(d, batch=11, n=12, d=d)
    yhat, w = ours(x, y, weights=True)
    expected, weights = by_prefix(x, y, theirs)
    np.testing.assert_allclose(w, weights, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(yhat, expected, rtol=1e-9, atol=1e-10)
    assert np.array_equal(ours(x, y), yhat) and (yhat[:, 0] == 0).all()


@pytest.mark.parametrize("n", [3, 64, 65, 150])
def test_wide_gradient_descent(n: int) -> None:
    """From d = 96 on it goes by chunks of prefixes."""
    x, y = data(n, batch=3, n=n, d=97)
    precond = np.random.default_rng(0).standard_normal((3, 97, 97)) / 20
    for given, matrices in ((None, None), (precond, precond), (precond[0], [precond[0]] * 3)):
        yhat, w = regression.gd(x, y, 3, RATES, given, weights=True)
        for i in range(1, n, 1 + n // 9):
            truth = descend(x[1, :i], y[1, :i], RATES, matrices)
            np.testing.assert_allclose(w[1, i], truth, atol=1e-11)
            np.testing.assert_allclose(yhat[1, i], x[1, i] @ truth, atol=1e-11)
            fit = regression.fit_predict(x[:, :i], y[:, :i], x[:, [i]], "gd", steps=3, lr=RATES, precond=given)
            np.testing.assert_allclose(fit[1, 0], yhat[1, i], atol=1e-11)
    heavy = regression.momentum(x, y, 3, RATES, 0.7)[2, n - 1]
    np.testing.assert_allclose(heavy, x[2, -1] @ descend(x[2, :-1], y[2, :-1], RATES, beta=0.7), atol=1e-11)
    with pytest.raises(clew.ConfigError, match=r"the estimate from the first \d+ examples \(sequence 0\) is beyond"):
        regression.gd(x, y, 400, 100.0)
    clew.set_num_threads(1)
    one = regression.gd(x, y, 3, RATES)
    clew.set_num_threads(3)
    assert np.array_equal(one, regression.gd(x, y, 3, RATES))


def test_gd_pp_is_the_transformer() -> None:
    x, y = data(3, n=9, d=3)
    gammas = [0.02, 0.05, 0.01]
    yhat, w = regression.gd_pp(x, y, 3, RATES, gammas, weights=True)
    for b in range(len(x)):
        for i in range(1, 9):
            truth = tokens_gd_pp(x[b, :i], y[b, :i], x[b, i], RATES, gammas)
            assert abs(yhat[b, i] - truth) < 1e-11 and abs(w[b, i] @ x[b, i] - truth) < 1e-11


def test_sgd_by_hand() -> None:
    x, y = data(4)
    yhat, w = regression.sgd(x, y, 0.1, weights=True)
    now = np.zeros((5, 4))
    for i in range(13):
        np.testing.assert_allclose(w[:, i], now, atol=1e-13)
        np.testing.assert_allclose(yhat[:, i], (now * x[:, i]).sum(1), atol=1e-13)
        now = now + 0.1 * (y[:, i] - (now * x[:, i]).sum(1))[:, None] * x[:, i]


def test_bayes_by_conditioning() -> None:
    """The joint Gaussian of (w, y), conditioned by block inverses."""
    from scipy.stats import multivariate_normal

    x, y = data(6, n=7, d=3)
    root = np.random.default_rng(1).standard_normal((3, 3))
    prior, mean, noise = root @ root.T + 0.1 * np.eye(3), np.array([1.0, -2.0, 0.5]), 0.3
    yhat, var, evidence, w, cov = regression.bayes(x, y, prior, noise, prior_mean=mean, weights=True, covariance=True)
    for b in range(len(x)):
        for i in range(7):
            seen, new = x[b, :i], x[b, i]
            gain = prior @ seen.T @ np.linalg.inv(seen @ prior @ seen.T + noise * np.eye(i))
            centre, spread = mean + gain @ (y[b, :i] - seen @ mean), prior - gain @ seen @ prior
            np.testing.assert_allclose(w[b, i], centre, atol=1e-10)
            np.testing.assert_allclose(cov[b, i], spread, atol=1e-10)
            np.testing.assert_allclose(yhat[b, i], new @ centre, atol=1e-10)
            np.testing.assert_allclose(var[b, i], new @ spread @ new + noise, atol=1e-10)
            every = x[b, : i + 1]
            joint = multivariate_normal(every @ mean, every @ prior @ every.T + noise * np.eye(i + 1))
            np.testing.assert_allclose(evidence[b, i], joint.logpdf(y[b, : i + 1]), atol=1e-9)


@pytest.mark.parametrize("prior", [2.5, [2.5] * 4, 2.5 * np.eye(4)])
def test_bayes_with_an_isotropic_prior_is_ridge(prior: Any) -> None:
    x, y = data(7)
    yhat, _, _ = regression.bayes(x, y, prior, 0.5)
    np.testing.assert_allclose(yhat, regression.ridge(x, y, 0.5 / 2.5), atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 0.1, 1e-2, 1e-3])
def test_lasso_is_scikit_learns(alpha: float) -> None:
    from sklearn.linear_model import Lasso

    x, y = data(8, batch=3, n=14, d=5)

    def theirs(a: Array, b: Array) -> Array:
        return np.asarray(Lasso(alpha, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(a, b).coef_)

    expected, _ = by_prefix(x, y, theirs)
    np.testing.assert_allclose(regression.lasso(x, y, alpha), expected, atol=2e-6)


def test_lasso_over_a_path_of_alphas() -> None:
    from sklearn.linear_model import lasso_path

    x, y = data(8, batch=2, n=20, d=5)
    alphas = [1.0, 0.3, 0.03]
    yhat, w = regression.lasso(x, y, alphas, weights=True)
    assert yhat.shape == (3, 2, 20) and w.shape == (3, 2, 20, 5)
    for b in range(2):
        _, theirs, _ = lasso_path(x[b, :19], y[b, :19], alphas=alphas, tol=1e-14, max_iter=10**6)
        np.testing.assert_allclose(w[:, b, 19], theirs.T, atol=2e-6)
    assert (regression.lasso(x, y, np.array(alphas)) == yhat).all()
    with pytest.raises(clew.ConfigError, match=r"alpha \[0\]: a number, or one or more in a row"):
        regression.lasso(x, y, [])
    with pytest.raises(clew.ConfigError, match="alpha = -1"):
        regression.lasso(x, y, [0.1, -1])


def test_lasso_reaches_its_gap() -> None:
    x, y = data(9, n=17, d=8)
    for alpha in (0.5, 0.05, 0.005):
        _, w = regression.lasso(x, y, alpha, weights=True)
        for b in range(len(x)):
            for i in range(1, 17):
                residual = y[b, :i] - x[b, :i] @ w[b, i]
                dual = residual * min(1, alpha * i / np.abs(x[b, :i].T @ residual).max())
                primal = 0.5 * residual @ residual + alpha * i * np.abs(w[b, i]).sum()
                gap = primal - (0.5 * y[b, :i] @ y[b, :i] - 0.5 * ((y[b, :i] - dual) ** 2).sum())
                assert gap <= 1.1e-12 * 0.5 * y[b, :i] @ y[b, :i] + 1e-14


@pytest.mark.parametrize("k", [1, 3, 50])
def test_knn_is_scikit_learns(k: int) -> None:
    from sklearn.neighbors import KNeighborsRegressor

    x, y = data(10, n=40)
    yhat = regression.knn(x, y, k)
    for b in range(len(x)):
        for i in range(1, 40):
            model = KNeighborsRegressor(min(k, i), algorithm="brute").fit(x[b, :i], y[b, :i])
            np.testing.assert_allclose(yhat[b, i], model.predict(x[b, i][None])[0], rtol=1e-12)


@pytest.mark.parametrize(("n", "d"), [(13, 4), (150, 3), (300, 21)])
@pytest.mark.parametrize("scale", [0.7, -0.3, 40.0])
def test_nadaraya_watson_is_softmax_attention(n: int, d: int, scale: float) -> None:
    from scipy.special import softmax

    x, y = data(11, batch=2, n=n, d=d)
    yhat = regression.nadaraya_watson(x, y, scale)
    for b in range(2):
        for i in range(1, n):
            np.testing.assert_allclose(yhat[b, i], softmax(scale * x[b, :i] @ x[b, i]) @ y[b, :i], atol=1e-11)


@pytest.mark.parametrize("n", [9, 40, 100])
def test_kernel_ridge_is_scikit_learns(n: int) -> None:
    from sklearn.kernel_ridge import KernelRidge

    x, y = data(12, batch=2, n=n)
    yhat = regression.kernel_ridge(x, y, 0.4, 0.2)
    for b in range(2):
        for i in range(1, n, max(1, n // 20)):
            model = KernelRidge(alpha=0.2, kernel="rbf", gamma=0.4).fit(x[b, :i], y[b, :i])
            np.testing.assert_allclose(yhat[b, i], model.predict(x[b, i][None])[0], atol=1e-11)


def posterior(x: Array, y: Array, tasks: Array, noise: float, log_prior: Array | None = None) -> Array:
    """Log-probabilities [batch, n + 1, M] of tasks after each prefix."""
    error = y[..., None] - x @ tasks.T
    scores = np.concatenate([np.zeros_like(error[:, :1]), np.cumsum(-0.5 / noise * error**2, 1)], 1)
    scores = scores if log_prior is None else scores + log_prior
    return np.asarray(scores - np.logaddexp.reduce(scores, -1, keepdims=True))


@pytest.mark.parametrize("m", [1, 7, 256, 1500])
@pytest.mark.parametrize("batch", [1, 19])
def test_dmmse_is_the_softmax(m: int, batch: int) -> None:
    x, y = data(13, batch=batch, n=37)
    rng = np.random.default_rng(m)
    tasks, prior = rng.standard_normal((m, 4)), rng.standard_normal(m)
    for log_prior in (None, prior):
        p = np.exp(posterior(x, y, tasks, 0.4, log_prior))[:, :-1]
        yhat, w = regression.dmmse(x, y, tasks, 0.4, log_prior=log_prior, weights=True)
        np.testing.assert_allclose(w, p @ tasks, atol=1e-12)
        np.testing.assert_allclose(yhat, np.einsum("bnd,bnd->bn", x, p @ tasks), atol=1e-11)
        np.testing.assert_allclose(regression.dmmse(x, y, tasks, 0.4, log_prior=log_prior), yhat, atol=1e-12)


def test_mixture_of_one_is_bayes_and_of_points_is_dmmse() -> None:
    x, y = data(14)
    rng = np.random.default_rng(0)
    tasks = rng.standard_normal((6, 4))
    one = regression.mixture(x, y, np.zeros((1, 4)), 1.5, 0.3)
    np.testing.assert_allclose(one, regression.bayes(x, y, 1.5, 0.3)[0], atol=1e-12)
    points, w, p = regression.mixture(x, y, tasks, 1e-12, 0.3, weights=True, posterior=True)
    np.testing.assert_allclose(points, regression.dmmse(x, y, tasks, 0.3), atol=1e-7)
    np.testing.assert_allclose(p, np.exp(posterior(x, y, tasks, 0.3))[:, :-1], atol=1e-7)
    np.testing.assert_allclose(np.einsum("bnd,bnd->bn", x, w), points, atol=1e-11)


def test_mixture_by_quadrature() -> None:
    """d = 1: the posterior mean as a ratio of integrals."""
    x, y = data(15, batch=2, n=5, d=1)
    means, covs, prior = np.array([[1.0], [-2.0]]), np.array([[[0.3]], [[0.8]]]), np.log([0.3, 0.7])
    grid = np.linspace(-12, 12, 40001)
    density = sum(
        np.exp(prior[h]) * np.exp(-((grid - means[h, 0]) ** 2) / (2 * covs[h, 0, 0])) / np.sqrt(covs[h, 0, 0])
        for h in range(2)
    )
    _, w = regression.mixture(x, y, means, covs, 0.4, log_prior=prior, weights=True)
    for b in range(2):
        for i in range(5):
            error = y[b, :i, None] - x[b, :i] * grid
            weight = density * np.exp(-0.5 / 0.4 * (error**2).sum(0))
            np.testing.assert_allclose(w[b, i, 0], (weight * grid).sum() / weight.sum(), atol=1e-9)


def test_tree_by_enumeration() -> None:
    amplitudes = [1.0, 0.7, 0.5]
    leaves = []
    for s1 in (1, -1):
        for s2 in (1, -1):
            for s3 in (1, -1):
                w = np.zeros(7)
                w[0] = amplitudes[0] * s1
                w[1 + (s1 < 0)] = amplitudes[1] * s2
                w[3 + 2 * (s1 < 0) + (s2 < 0)] = amplitudes[2] * s3
                leaves.append(w)
    assert np.array_equal(regression.tree_leaves(amplitudes), leaves)
    x, y = data(16, d=7)
    yhat, w, p = regression.tree(x, y, amplitudes, 0.6, weights=True, posterior=True)
    truth = np.exp(posterior(x, y, np.array(leaves), 0.6))[:, :-1]
    np.testing.assert_allclose(p, truth, atol=1e-12)
    np.testing.assert_allclose(w, truth @ leaves, atol=1e-12)
    np.testing.assert_allclose(yhat, np.einsum("bnd,bnd->bn", x, w), atol=1e-12)
    scattered = regression.tree(x, y, amplitudes, 0.6, leaf_var=1e-12)
    np.testing.assert_allclose(scattered, yhat, atol=1e-7)
    # the matched Gaussian: variance a_l² / 2^(l − 1) on each node of level l
    assert np.allclose(np.cov(np.array(leaves).T, bias=True).diagonal(), [1, 0.245, 0.245, *[0.0625] * 4])


def test_model_average_of_bayes_is_the_mixture() -> None:
    x, y = data(17)
    parts = [regression.bayes(x, y, v, 0.3) for v in (0.1, 5.0)]
    prior = np.log([0.2, 0.8])
    yhat, p = regression.model_average([a[0] for a in parts], [a[2] for a in parts], prior)
    covs = np.stack([0.1 * np.eye(4), 5.0 * np.eye(4)])
    expected, q = regression.mixture(x, y, np.zeros((2, 4)), covs, 0.3, log_prior=prior, posterior=True)
    np.testing.assert_allclose(yhat, expected, atol=1e-12)
    np.testing.assert_allclose(np.moveaxis(p, 0, -1), q, atol=1e-12)


# ---- All examples, one at a time ------------------------------------------------------------------------------------

PARAMETERS: dict[str, dict[str, Any]] = {
    "ols": {},
    "ridge": {"lam": 0.4},
    "averaging": {},
    "bayes": {"prior_cov": [1.0, 2.0, 0.5, 1.0], "noise_var": 0.3, "prior_mean": [1.0, 0.0, 0.0, 2.0]},
    "gd": {"steps": 3, "lr": 0.2},
    "gd_pp": {"steps": 3, "lr": 0.2, "gamma": 0.01},
    "momentum": {"steps": 3, "lr": 0.2, "beta": 0.5},
    "sgd": {"lr": 0.05},
    "newton_schulz": {"steps": 5},
    "lasso": {"alpha": 0.1},
    "knn": {"k": 3},
    "nadaraya_watson": {"scale": 0.5},
    "kernel_ridge": {"gamma": 0.3, "lam": 0.2},
    "dmmse": {"tasks": np.random.default_rng(2).standard_normal((9, 4)), "noise_var": 0.3},
    "mixture": {"means": np.eye(4)[:2], "covs": 0.5, "noise_var": 0.3},
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_fit_and_online_are_the_prefixes(name: str, dtype: type) -> None:
    x, y = (a.astype(dtype) for a in data(18, batch=11))
    tolerance = 1e-11 if dtype is np.float64 else 2e-4
    yhat = getattr(regression, name)(x, y, **PARAMETERS[name])
    yhat = yhat[0] if name == "bayes" else yhat
    assert yhat.dtype == dtype
    whole = regression.fit_predict(x[:, :-1], y[:, :-1], x[:, [-1, 0]], name, **PARAMETERS[name])
    assert whole.shape == (11, 2) and whole.dtype == dtype
    np.testing.assert_allclose(whole[:, 0], yhat[:, -1], atol=tolerance)
    stream = regression.Online(name, d=4, batch=11, dtype=dtype, **PARAMETERS[name])
    for i in range(13):
        np.testing.assert_allclose(stream.predict(x[:, i]), yhat[:, i], atol=tolerance, err_msg=str(i))
        stream.update(x[:, i], y[:, i])
    assert stream.count == 13
    assert set(PARAMETERS) | {"tree"} == set(regression._run.METHODS)


def test_online_covariance_and_one_sequence() -> None:
    x, y = data(19, batch=1, n=6)
    _, _, _, w, cov = regression.bayes(x, y, 2.0, 0.1, weights=True, covariance=True)
    stream = regression.Online("bayes", d=4, prior_cov=2.0, noise_var=0.1)
    for i in range(6):
        np.testing.assert_allclose(stream.covariance, cov[:, i], atol=1e-14)
        np.testing.assert_allclose(stream.w, w[:, i], atol=1e-14)
        stream.update(x[0, i], y[0, i])
    assert regression.fit_predict(x, y, np.empty((1, 0, 4)), "knn", k=1).shape == (1, 0)
