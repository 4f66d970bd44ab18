"""Regression in context: every prefix against loops over prefixes, against products alone, and growth by d and n."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import clew
import numpy as np
from clew import _core
from clew import regression as reg
from numpy.typing import NDArray

from .cost import ROOT, probe
from .models import threads
from .report import Figure, at_least, at_most, megabytes, of_limit, of_times, skipped
from .timing import alternate, median

if TYPE_CHECKING:
    from .part import Setting

Array = NDArray[Any]
D_GROWTH = (5, 10, 20, 50, 100, 200)
N_GROWTH = (10, 20, 50, 100, 200, 500, 1000, 2000)


def prompts(batch: int, n: int, d: int, dtype: Any = np.float64, noise: float = 0.0) -> tuple[Array, Array]:
    """Gaussian inputs and weights."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((batch, n, d)), rng.standard_normal((batch, d))
    y = np.einsum("bnd,bd->bn", x, w) + noise * rng.standard_normal((batch, n))
    return x.astype(dtype), y.astype(dtype)


def _slab(array: Array) -> Array:
    out = _core.empty(array.shape, array.dtype)
    out[...] = array
    return out


# ---- Loops over prefixes --------------------------------------------------------------------------------------------


def _lstsq_loop(x: Array, y: Array) -> Array:
    out = np.zeros_like(y)
    for b in range(len(x)):
        for i in range(1, x.shape[1]):
            out[b, i] = x[b, i] @ np.linalg.lstsq(x[b, :i], y[b, :i], rcond=None)[0]
    return out


def least_squares(setting: Setting) -> list[Figure]:
    """64 × 41 × d 20, float64."""
    x, y = prompts(64, 41, 20, noise=0.1)
    gram = np.cumsum(x[..., None] * x[..., None, :], axis=1) + 0.1 * np.eye(20)
    moment = np.cumsum(x * y[..., None], axis=1)[..., None]
    sides: dict[str, Callable[[], Any]] = {
        "clew": partial(reg.ols, x, y),
        "loop": partial(_lstsq_loop, x, y),
        "solve": partial(np.linalg.solve, gram, moment),
        "ridge": partial(reg.ridge, x, y, 0.1),
    }
    times = alternate(sides, setting.rounds)
    note = "systems made before: np.linalg.solve alone"
    name = "least squares 64×41×20"
    return [
        of_times(f"{name}  NumPy lstsq by prefix / clew", times, "loop", "clew", at_least(200)),
        of_times(f"{name}  one batched ridge solve / clew", times, "solve", "clew", at_least(20), note),
        of_times("ridge 64×41×20  one batched solve / clew", times, "solve", "ridge", None, note),
    ]


def lasso(setting: Setting) -> list[Figure]:
    """Against scikit-learn by prefix."""
    name = "lasso 8×41×20, alpha {}  scikit-learn by prefix / clew"
    try:
        from sklearn.linear_model import Lasso
    except ImportError:
        return [skipped(name.format(0.01), at_least(100), "scikit-learn is not installed")]
    x, y = prompts(8, 41, 20)

    def loop(alpha: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it does not converge everywhere
            for b in range(len(x)):
                for i in range(1, 41):
                    Lasso(alpha, fit_intercept=False).fit(x[b, :i], y[b, :i]).predict(x[b, i : i + 1])

    out = []
    for alpha in (0.1, 0.01, 0.001):
        times = alternate({"clew": partial(reg.lasso, x, y, alpha), "loop": partial(loop, alpha)}, setting.rounds)
        note = "gap 1e-12; theirs 1e-4, where it converges"
        out.append(of_times(name.format(alpha), times, "loop", "clew", at_least(100), note))
    return out


# ---- Products -------------------------------------------------------------------------------------------------------


def _causal(batch: int, n: int, d: int, steps: int) -> Callable[[], None]:
    """The products of `steps` of linear attention: W Xᵀ and its product with X, in causal blocks of 64 rows."""
    rng = np.random.default_rng(1)
    x, w = _slab(rng.standard_normal((batch, n, d))), _slab(rng.standard_normal((batch, n, d)))
    score, out = _core.empty((batch, min(n, 64), n), np.float64), _core.empty((batch, n, d), np.float64)

    def run() -> None:
        for _ in range(steps):
            for first in range(0, n, 64):
                end = min(first + 64, n)
                block = score[:, : end - first, :end]
                _core.product(block, w[:, first:end], x[:, :end].transpose(0, 2, 1))
                _core.product(out[:, first:end], block, x[:, :end])

    return run


def _scores(batch: int, n: int, d: int) -> Callable[[], None]:
    """The products of causal attention with one output: X Xᵀ in blocks of 64 rows, and the scores times y."""
    rng = np.random.default_rng(1)
    x, y = _slab(rng.standard_normal((batch, n, d))), _slab(rng.standard_normal((batch, n, 1)))
    score, out = _core.empty((batch, min(n, 64), n), np.float64), _core.empty((batch, n, 1), np.float64)

    def run() -> None:
        for first in range(0, n, 64):
            end = min(first + 64, n)
            block = score[:, : end - first, :end]
            _core.product(block, x[:, first:end], x[:, :end].transpose(0, 2, 1))
            _core.product(out[:, first:end], block, y[:, :end])

    return run


def products(setting: Setting) -> list[Figure]:
    """Gradient descent and kernel regression over the matrix products of their attention form."""
    out = []
    for batch, n, d in ((64, 41, 20), (16, 256, 64), (4, 512, 200)):
        x, y = prompts(batch, n, d)
        sides: dict[str, Callable[[], Any]] = {
            "gd": partial(reg.gd, x, y, 5, 0.01),
            "gd floor": _causal(batch, n, d, 5),
            "kernel": partial(reg.nadaraya_watson, x, y, 0.1),
            "kernel floor": _scores(batch, n, d),
        }
        times = alternate(sides, setting.short_rounds)
        shape = f"{batch}×{n}×{d}"
        name = f"kernel regression {shape}  clew / its products"
        out.append(of_times(f"gd, 5 steps {shape}  clew / its products", times, "gd", "gd floor", at_most(1.5)))
        out.append(of_times(name, times, "kernel", "kernel floor", at_most(1.5)))
    return out


# ---- dMMSE ----------------------------------------------------------------------------------------------------------


def _dmmse_numpy(x: Array, y: Array, tasks: Array, noise: float, block: int = 4096) -> Array:
    """A streaming log-sum-exp over blocks of tasks, float32, as one would write it in NumPy."""
    batch, n, d = x.shape
    maximum = np.full((batch, n), -np.inf, x.dtype)
    total, along = np.zeros((2, batch, n), x.dtype)
    for first in range(0, len(tasks), block):
        for b in range(batch):
            p = x[b] @ tasks[first : first + block].T
            error = np.square(y[b, :, None] - p)
            score = np.zeros_like(error)
            np.cumsum(error[:-1], axis=0, out=score[1:])
            score *= -0.5 / noise
            top = np.maximum(maximum[b], score.max(1))
            np.maximum(score - top[:, None], -80, out=score)  # exp of less is denormal, which is slow
            np.exp(score, out=score)
            keep = np.exp(maximum[b] - top)
            total[b] = total[b] * keep + score.sum(1)
            along[b] = along[b] * keep + (score * p).sum(1)
            maximum[b] = top
    return np.asarray(along / total)


def dmmse(setting: Setting) -> list[Figure]:
    """256 × 16 × 8, M = 2¹⁸, float32: one pass of the same products, and NumPy in blocks. Memory at M = 2²⁰."""
    m, noise = 2**18, 0.25
    tasks = np.random.default_rng(2).standard_normal((m, 8)).astype(np.float32)
    x, y = prompts(256, 16, 8, np.float32, 0.5)
    a, b = _slab(x.reshape(-1, 8)), _slab(np.ascontiguousarray(tasks.T))
    product = _core.empty((len(a), 256), np.float32)

    def once() -> None:
        for first in range(0, m, 256):
            _core.product(product, a, b[:, first : first + 256])

    part = slice(0, 16)  # of the batch, for NumPy
    np.testing.assert_allclose(
        _dmmse_numpy(x[:2], y[:2], tasks[:9000], noise), reg.dmmse(x[:2], y[:2], tasks[:9000], noise), atol=1e-3
    )
    sides: dict[str, Callable[[], Any]] = {
        "clew": partial(reg.dmmse, x, y, tasks, noise),
        "pass": once,
        "part": partial(reg.dmmse, x[part], y[part], tasks, noise),
        "numpy": partial(_dmmse_numpy, x[part], y[part], tasks, noise),
    }
    times = alternate(sides, setting.rounds)
    flops = 2.0 * len(a) * 8 * m
    note = f"b at {flops / median(times['pass']) / 1e9:.0f} GF/s"
    out = [
        of_times("dmmse 256×16×8, M 2¹⁸  clew / one pass of its products", times, "clew", "pass", at_most(2.5), note),
        of_times("dmmse 16×16×8, M 2¹⁸  NumPy in blocks / clew", times, "numpy", "part", at_least(4.0)),
    ]
    batch = 256 if setting.quick else 4096
    name = f"dmmse {batch}×16×8, M 2²⁰, float32: peak memory / 200 MB"
    got = probe("memory-dmmse", str(batch))
    if got["peak"] is None:
        return [*out, skipped(name, at_most(1.0), "the system does not tell a process's peak memory")]
    note = f"{megabytes(got['before'])} before, with the data; {got['seconds']:.0f} s"
    return [*out, of_limit(name, got["peak"], 200e6, megabytes, note)]


# ---- Growth ---------------------------------------------------------------------------------------------------------

METHODS: dict[str, tuple[Callable[[Array, Array], Any], int, str]] = {
    "least squares": (reg.ols, 2, "n d²"),
    "ridge": (lambda x, y: reg.ridge(x, y, 0.1), 2, "n d²"),
    "gd, 5 steps": (lambda x, y: reg.gd(x, y, 5, 0.001), 2, "n d²"),
    "lasso": (lambda x, y: reg.lasso(x, y, 0.3), 3, "n d³"),
    "GD++, 2 steps": (lambda x, y: reg.gd_pp(x, y, 2, 0.001, 1e-5), 3, "n d³"),
    "kernel regression": (lambda x, y: reg.nadaraya_watson(x, y, 0.1), 1, "n² d"),
    "kernel ridge": (lambda x, y: reg.kernel_ridge(x, y, 0.01, 0.1), 1, "n³ + n² d"),
    "3 nearest": (lambda x, y: reg.knn(x, y, 3), 1, "n² d"),
}
QUADRATIC_IN_N = {"kernel regression": 2, "kernel ridge": 3, "3 nearest": 2}
LONGEST = 4.0
"""Seconds after which a curve is not followed further."""


def _curve(run: Callable[[Array, Array], Any], shapes: list[tuple[int, int, int]], least: int) -> list[float]:
    out: list[float] = []
    for shape in shapes:
        x, y = prompts(*shape, noise=0.1)
        run(x, y)
        best = np.inf
        for _ in range(least):
            start = time.perf_counter()
            run(x, y)
            best = min(best, time.perf_counter() - start)
        out.append(float(best))
        if best > LONGEST:
            break
    return out


def growth(setting: Setting) -> list[Figure]:
    """Seconds by d (n = 50) and by n (d = 10), 16 sequences; exponents of the last tripling against the stated ones."""
    rounds = 2 if setting.quick else 5
    by_d, by_n = {}, {}
    for name, (run, _, _) in METHODS.items():
        by_d[name] = _curve(run, [(16, 50, d) for d in D_GROWTH], rounds)
        by_n[name] = _curve(run, [(16, n, 10) for n in N_GROWTH], rounds)
    out = []
    for name, (_, power, stated) in METHODS.items():
        for curve, sizes, most, axis in (
            (by_d[name], D_GROWTH, power, "d"),
            (by_n[name], N_GROWTH, QUADRATIC_IN_N.get(name, 1), "n"),
        ):
            first = max(0, len(curve) - 3)
            low, high = sizes[first], sizes[len(curve) - 1]
            exponent = float(np.log(curve[-1] / curve[first]) / np.log(high / low))
            label = f"{name}: exponent of {axis}, {low} to {high}, / {most}"
            out.append(
                Figure(label, exponent / most, None, None, at_most(1.35), f"{exponent:.2f}", str(most), f"O({stated})")
            )
    return [*out, *_plot(by_d, by_n)]


def _plot(by_d: dict[str, list[float]], by_n: dict[str, list[float]]) -> list[Figure]:
    """The curves, in out/regression.png."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        return [skipped("out/regression.png", None, "matplotlib is not installed")]
    drawing = Drawing((11, 5), layout="constrained")
    FigureCanvasAgg(drawing)
    for ax, curves, sizes, text in zip(
        drawing.subplots(1, 2),
        (by_d, by_n),
        (D_GROWTH, N_GROWTH),
        ("d, with n = 50", "n, with d = 10"),
        strict=True,
    ):
        for (name, times), marker in zip(curves.items(), "os^vDP*X", strict=True):
            ax.loglog(sizes[: len(times)], times, marker=marker, label=f"{name}: O({METHODS[name][2]})")
        ax.set_xlabel(text)
        ax.set_ylabel("seconds, 16 sequences")
        ax.grid(alpha=0.3)
    drawing.axes[0].legend(fontsize=8)
    path = ROOT / "out" / "regression.png"
    path.parent.mkdir(exist_ok=True)
    drawing.savefig(path, dpi=120)
    return []


def regression(setting: Setting) -> list[Figure]:
    """All of them."""
    clew.set_num_threads(threads())
    return [
        *least_squares(setting),
        *lasso(setting),
        *products(setting),
        *dmmse(setting),
        *growth(setting),
    ]
