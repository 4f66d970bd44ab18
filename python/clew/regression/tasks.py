"""Settings of in-context regression: who draws inputs, functions and noise; curricula; prompts as a model reads them.

    from clew.regression import tasks
    prompts = tasks.sparse(d=20, nonzero=3).sample(batch=64, n=40, seed=0)
    tokens, targets, loss_mask = tasks.interleaved(prompts)

A setting is inputs × target × noise, y = f(x) + noise. Everything random comes of the seed (or a NumPy generator).

Sources: Garg et al. 2022 (dense, sparse, noisy, skewed, scaled, quadrants, decision trees, ReLU networks, curriculum),
Akyürek et al. 2022 (noisy), von Oswald et al. 2022 (uniform inputs), Ahn et al. 2023 (Σ and Σ⁻¹), Raventós et al. 2023
(M tasks), Lu et al. 2024 (inputs N(0, I/d)). Tree-structured contexts are this library's own specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_counts, check_flags, check_type
from ..train.data import check_seed, generator
from ..train.step import Examples
from ._inputs import check_room

Array = NDArray[Any]
Float = NDArray[np.float64]
Seed = int | np.random.Generator
Layout = Literal["interleaved", "garg", "joined"]

_SETS, _PROMPTS = 1, 2  # places of a seed's streams: what a setting fixes once; prompts


def _generator(seed: Seed, *place: int) -> np.random.Generator:
    return seed if isinstance(seed, np.random.Generator) else generator(check_seed(seed), *place)


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} = {value!r}, must be a whole number, at least {least}")
    if value > (most := 2**62 if most is None else most):
        raise ConfigError(f"{name} = {value}, at most {most}")
    return int(value)


def _number(name: str, value: Any, least: float = 0.0) -> float:
    real = not isinstance(value, bool) and isinstance(value, int | float | np.integer | np.floating)
    if not real or not np.isfinite(value) or value < least:
        raise ConfigError(f"{name} = {value!r}, must be a finite number, at least {least:g}")
    return float(value)


def _covariance(name: str, value: ArrayLike, d: int) -> Float:
    """A covariance [d, d], from a matrix or from variances [d]; raises ShapeError, ConfigError."""
    array = as_array(value, name)
    if array.ndim == 0 or 0 in array.shape or array.dtype.kind not in "iuf":
        raise ShapeError(f"{name}: {array.dtype} {list(array.shape)}, expected variances [d] or a matrix [d, d]")
    if array.shape not in ((d,), (d, d)):
        raise ShapeError(f"{name}: {array.dtype} {list(array.shape)}, expected variances [{d}] or a matrix [{d}, {d}]")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ConfigError(f"{name} holds {array[~np.isfinite(array)][0]}")
    array = np.diag(array) if array.ndim == 1 else array
    if not np.allclose(array, array.T, rtol=1e-10, atol=0):
        raise ConfigError(f"{name} is not symmetric")
    smallest = float(np.linalg.eigvalsh(array)[0])
    if smallest <= 0:
        raise ConfigError(f"{name} is not positive definite: its smallest eigenvalue is {smallest:.3g}")
    return array


def _said(array: Array | None) -> str:
    """An array in a repr."""
    return "None" if array is None else f"{list(np.shape(array))}"


# ---- Prompts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Examples of several functions, float64."""

    X: Float
    """Inputs [batch, n, d]."""
    y: Float
    """Labels [batch, n], noise included."""
    f: Float
    """Labels [batch, n] without noise."""
    w: Float | None = None
    """Weights [batch, d] of linear functions."""
    latent: NDArray[np.int64] | None = None
    """[batch]: which of the M tasks, which leaf or codeword."""
    Xq: Float | None = None
    """Queries [batch, n, d] where prediction i is asked for another input than X[:, i]; None: for that."""
    fq: Float | None = None
    """What they should give [batch, n], without noise."""

    def __len__(self) -> int:
        return len(self.X)

    def __repr__(self) -> str:
        held = [name for name in ("X", "y", "f", "w", "latent", "Xq", "fq") if getattr(self, name) is not None]
        return f"Prompts of {len(self)} functions: " + ", ".join(f"{n} {_said(getattr(self, n))}" for n in held)

    @property
    def queries(self) -> Float:
        """What prediction i is asked for [batch, n, d]."""
        return self.X if self.Xq is None else self.Xq

    @property
    def wanted(self) -> Float:
        """Their noise-free labels [batch, n]."""
        return self.f if self.fq is None else self.fq


# ---- Inputs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """x ~ scale · N(0, cov); cov [d, d], None: I. rotate: cov's eigenvectors are drawn anew for each prompt."""

    cov: Float | None = None
    scale: float = 1.0
    rotate: bool = False

    def __repr__(self) -> str:
        return f"Gaussian(cov={_said(self.cov)}, scale={self.scale:g}, rotate={self.rotate})"

    def draw(self, rng: np.random.Generator, batch: int, n: int, d: int) -> Float:
        """[batch, n, d]"""
        x = rng.standard_normal((batch, n, d))
        if self.cov is not None:
            x = x @ np.linalg.cholesky(self.cov).T
        if self.rotate:
            x = x @ rotations(rng, batch, d)
        return x * self.scale


@dataclass(frozen=True)
class Uniform:
    """Each coordinate of x ~ U(−half, half)."""

    half: float = 1.0

    def __post_init__(self) -> None:
        if _number("uniform: half", self.half) > np.finfo(np.float64).max / 2:
            raise ConfigError(f"uniform: half = {self.half:g}: the width of (−half, half) is beyond float64")

    def draw(self, rng: np.random.Generator, batch: int, n: int, d: int) -> Float:
        """[batch, n, d]"""
        return rng.uniform(-self.half, self.half, (batch, n, d))


def rotations(rng: np.random.Generator, batch: int, d: int) -> Float:
    """Orthogonal matrices [batch, d, d], of the Haar measure."""
    q, r = np.linalg.qr(rng.standard_normal((batch, d, d)))
    return np.asarray(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :])


# ---- Targets --------------------------------------------------------------------------------------------------------


class Target:
    """Functions of one kind: `draw` gives one for each prompt."""

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> Any:
        """Parameters of `batch` functions."""
        raise NotImplementedError

    def values(self, parameters: Any, x: Float) -> Float:
        """f [batch, n] at x [batch, n, d]."""
        raise NotImplementedError


class LinearTarget(Target):
    """f(x) = w · x; `draw` gives (w [batch, d], latent [batch] or None)."""

    def values(self, parameters: Any, x: Float) -> Float:
        return np.asarray(np.einsum("bnd,bd->bn", x, parameters[0]))


@dataclass(frozen=True)
class GaussianWeights(LinearTarget):
    """w ~ scale · N(0, cov), of which `nonzero` random coordinates are kept (None: all)."""

    cov: Float | None = None
    scale: float = 1.0
    nonzero: int | None = None

    def __repr__(self) -> str:
        return f"GaussianWeights(cov={_said(self.cov)}, scale={self.scale:g}, nonzero={self.nonzero})"

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> tuple[Float, None]:
        w = rng.standard_normal((batch, d))
        if self.cov is not None:
            w = w @ np.linalg.cholesky(self.cov).T
        if self.nonzero is not None:
            rank = rng.random((batch, d)).argsort(axis=1).argsort(axis=1)
            w = np.where(rank < self.nonzero, w, 0.0)
        return w * self.scale, None


@dataclass(frozen=True)
class FiniteTasks(LinearTarget):
    """w is one of the rows of `tasks` [M, d], each equally likely."""

    tasks: Float

    def __post_init__(self) -> None:
        tasks = as_array(self.tasks, "tasks")
        if tasks.ndim != 2 or 0 in tasks.shape or tasks.dtype.kind not in "iuf":
            raise ShapeError(f"tasks: {tasks.dtype} {list(tasks.shape)}, expected real numbers [M, d], each at least 1")
        object.__setattr__(self, "tasks", tasks)

    def __repr__(self) -> str:
        return f"FiniteTasks({_said(self.tasks)})"

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> tuple[Float, NDArray[np.int64]]:
        latent = rng.integers(0, len(self.tasks), batch)
        return self.tasks[latent], latent


@dataclass(frozen=True)
class TreeContexts(LinearTarget):
    """w with the structure of a tree of depth K, D = 2^K − 1: see :func:`tree_contexts`."""

    amplitudes: tuple[float, ...]
    prior: Literal["tree", "flat", "codebook"] = "tree"
    mix: float = 0.0
    scatter: float = 0.0
    seed: int = 0

    @property
    def depth(self) -> int:
        """K."""
        return len(self.amplitudes)

    @property
    def variances(self) -> Float:
        """Variance of each coordinate, a_l² / 2^(l−1) on level l: of every prior here [2^K − 1]."""
        return np.concatenate([np.full(1 << i, a * a / (1 << i)) for i, a in enumerate(self.amplitudes)])

    @property
    def atoms(self) -> Float:
        """The 2^K values of w under "tree" (leaves, left to right) or "codebook" [2^K, 2^K − 1].

        Raises ConfigError for "flat", which has 2^D of them.
        """
        if self.prior == "flat":
            raise ConfigError("TreeContexts: the flat prior has 2^D atoms, which are not listed")
        leaves = 1 << self.depth
        if self.prior == "codebook":
            # D orthonormal columns that sum to zero: a randomly turned simplex has mean 0 and exactly this covariance
            start = generator(self.seed, _SETS).standard_normal((leaves, leaves - 1))
            q, _ = np.linalg.qr(start - start.mean(axis=0))
            return np.asarray(q * np.sqrt(leaves * self.variances))
        out = np.zeros((leaves, leaves - 1))
        leaf = np.arange(leaves)
        for level, a in enumerate(self.amplitudes):
            node = (1 << level) - 1 + (leaf >> (self.depth - level))
            sign = 2.0 * (leaf >> (self.depth - 1 - level) & 1) - 1
            out[leaf, node] = a * sign
        return out

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> tuple[Float, NDArray[np.int64] | None]:
        latent: NDArray[np.int64] | None = None
        if self.prior == "flat":
            w = rng.choice([-1.0, 1.0], (batch, d)) * np.sqrt(self.variances)
        else:
            latent = rng.integers(0, 1 << self.depth, batch)
            w = self.atoms[latent]
        w = np.sqrt(1 - self.mix) * w
        w += np.sqrt(self.mix * self.variances + self.scatter**2) * rng.standard_normal((batch, d))
        return w, latent


@dataclass(frozen=True)
class DecisionTrees(Target):
    """Full binary trees: every node asks whether a random coordinate is positive, every leaf holds N(0, 1)."""

    depth: int = 4

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> tuple[NDArray[np.int64], Float]:
        leaves = 1 << self.depth
        return rng.integers(0, d, (batch, leaves - 1)), rng.standard_normal((batch, leaves))

    def values(self, parameters: Any, x: Float) -> Float:
        asked, leaf_values = parameters
        rows = np.arange(len(x))[:, None]
        node = np.zeros(x.shape[:2], np.int64)
        for _ in range(self.depth):
            coordinate = asked[rows, node]
            positive = np.take_along_axis(x, coordinate[..., None], axis=2)[..., 0] > 0
            node = 2 * node + 1 + positive
        return np.asarray(leaf_values[rows, node - (leaf_values.shape[1] - 1)])


@dataclass(frozen=True)
class ReLUNetworks(Target):
    """f(x) = √(2 / r) Σ_i a_i max(0, w_i · x), i = 1 … r = `hidden`; a_i and w_i standard normal."""

    hidden: int = 100

    def draw(self, rng: np.random.Generator, batch: int, d: int) -> tuple[Float, Float]:
        return rng.standard_normal((batch, d, self.hidden)), rng.standard_normal((batch, self.hidden))

    def values(self, parameters: Any, x: Float) -> Float:
        first, second = parameters
        active = np.maximum(np.einsum("bnd,bdr->bnr", x, first), 0)
        return np.asarray(np.sqrt(2 / self.hidden) * np.einsum("bnr,br->bn", active, second))


# ---- Settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One setting of in-context regression; made by the functions of this module."""

    name: str
    d: int
    inputs: Gaussian | Uniform
    target: Target
    noise_var: float = 0.0
    quadrants: Literal["random", "opposite"] | None = None
    """Examples of a prompt lie in one orthant, its queries anywhere or in the opposite one."""

    def __post_init__(self) -> None:
        _whole(f"{self.name}: d", self.d, 1)
        _number(f"{self.name}: noise_var", self.noise_var)
        check_type((Gaussian, Uniform), "a Gaussian or Uniform of this module", inputs=self.inputs)
        check_type(Target, "a Target, such as GaussianWeights()", target=self.target)
        if self.quadrants not in (None, "random", "opposite"):
            raise ConfigError(f'{self.name}: quadrants = {self.quadrants!r}: None, "random" or "opposite"')
        for what, part in (("inputs", self.inputs), ("target", self.target)):
            cov = getattr(part, "cov", None)
            if cov is not None and np.shape(cov) != (self.d, self.d):
                raise ShapeError(f"{self.name}: cov of {what} {_said(cov)}, expected {[self.d, self.d]}")
        if isinstance(self.target, FiniteTasks) and self.target.tasks.shape[1] != self.d:
            raise ShapeError(f"{self.name}: tasks {_said(self.target.tasks)}, expected [M, {self.d}]")
        if isinstance(self.target, TreeContexts) and len(self.target.variances) != self.d:
            raise ShapeError(f"{self.name}: d = {self.d}, such a tree has {len(self.target.variances)} nodes")

    def sample(self, batch: int, n: int, seed: Seed = 0, dims: int | None = None) -> Prompts:
        """`batch` functions with `n` examples each.

        dims: coordinates of x behind so many are 0 (a curriculum's). seed: a whole number, or a NumPy generator, which
        is moved on.

        Raises ConfigError.

        Example
        -------
        >>> from clew.regression import tasks
        >>> prompts = tasks.dense(d=5).sample(batch=2, n=8, seed=1)
        >>> prompts.X.shape, prompts.y.shape, prompts.w.shape
        ((2, 8, 5), (2, 8), (2, 5))
        """
        batch, n = _whole("batch", batch, 1), _whole("n", n, 1)
        check_room(f"{self.name}: X", batch, n, self.d)
        rng = _generator(seed, _PROMPTS)
        with np.errstate(over="ignore", invalid="ignore"):
            made = self._draw(rng, batch, n, dims)
        for name, array in (("X", made.X), ("y", made.y), ("Xq", made.Xq), ("fq", made.fq)):
            if array is not None and not np.isfinite(array).all():
                raise ConfigError(f"{self.name}: {name} is beyond the range of float64: smaller scales or variances")
        return made

    def _draw(self, rng: np.random.Generator, batch: int, n: int, dims: int | None) -> Prompts:
        x = self.inputs.draw(rng, batch, n, self.d)
        parameters = self.target.draw(rng, batch, self.d)
        queries = None
        if self.quadrants is not None:
            sign = rng.choice([-1.0, 1.0], (batch, 1, self.d))
            queries = self.inputs.draw(rng, batch, n, self.d)
            if self.quadrants == "opposite":
                queries = -sign * np.abs(queries)
            x = sign * np.abs(x)
        if dims is not None:
            kept = np.arange(self.d) < _whole("dims", dims, 1, self.d)
            x = np.where(kept, x, 0.0)
            queries = None if queries is None else np.where(kept, queries, 0.0)
        f = self.target.values(parameters, x)
        y = f + np.sqrt(self.noise_var) * rng.standard_normal(f.shape) if self.noise_var else f.copy()
        w, latent = parameters if isinstance(self.target, LinearTarget) else (None, None)
        fq = None if queries is None else self.target.values(parameters, queries)
        return Prompts(x, y, f, w, latent, queries, fq)


def dense(d: int, noise_var: float = 0.0, weight_cov: ArrayLike | None = None) -> Setting:
    """x ~ N(0, I), w ~ N(0, I) or N(0, weight_cov) (a matrix, or variances [d])."""
    cov = None if weight_cov is None else _covariance("dense: weight_cov", weight_cov, _whole("dense: d", d, 1))
    return Setting("dense", d, Gaussian(), GaussianWeights(cov), noise_var)


def noisy(d: int, noise_var: float = 1.0) -> Setting:
    """Dense with label noise; ridge with λ = noise_var is then the best predictor (Garg et al.; Akyürek et al.)."""
    return Setting("noisy", d, Gaussian(), GaussianWeights(), noise_var)


def sparse(d: int, nonzero: int = 3, noise_var: float = 0.0) -> Setting:
    """w has `nonzero` coordinates, N(0, 1) at random places (Garg et al.: 3 of 20)."""
    _whole("sparse: nonzero", nonzero, 1, _whole("sparse: d", d, 1))
    return Setting("sparse", d, Gaussian(), GaussianWeights(nonzero=nonzero), noise_var)


def skewed(d: int, power: float = 2.0) -> Setting:
    """x ~ N(0, Σ), Σ's eigenvalues ∝ 1/i^power with trace d, its eigenvectors drawn for each prompt (Garg et al.)."""
    check_room("skewed: cov", _whole("skewed: d", d, 1), d)
    eigenvalues = np.arange(1, _whole("skewed: d", d, 1) + 1, dtype=np.float64) ** -_number("skewed: power", power)
    if not eigenvalues[-1] > 0:
        raise ConfigError(f"skewed: power = {power:g}: the least of {d} eigenvalues is 0 in float64")
    cov = np.diag(eigenvalues * d / eigenvalues.sum())
    return Setting("skewed", d, Gaussian(cov, rotate=True), GaussianWeights())


def scaled(d: int, x_scale: float = 1.0, w_scale: float = 1.0) -> Setting:
    """Dense with inputs or weights larger or smaller than in training (Garg et al.: 1/3, 1/2, 2, 3)."""
    x_scale, w_scale = _number("scaled: x_scale", x_scale), _number("scaled: w_scale", w_scale)
    return Setting("scaled", d, Gaussian(scale=x_scale), GaussianWeights(scale=w_scale))


def quadrants(d: int, query: Literal["random", "opposite"] = "random") -> Setting:
    """Dense, but a prompt's examples lie in one random orthant, its queries anywhere, or opposite (Garg et al.).

    Prompts hold the queries in `Xq` and what they should give in `fq`.
    """
    if query not in ("random", "opposite"):
        raise ConfigError(f'quadrants: query = {query!r}: "random" or "opposite"')
    return Setting("quadrants", d, Gaussian(), GaussianWeights(), quadrants=query)


def uniform(d: int, half: float = 1.0) -> Setting:
    """Coordinates of x ~ U(−half, half), w ~ N(0, I) (von Oswald et al.: 1 in the text, ½ in the code)."""
    return Setting("uniform", d, Uniform(_number("uniform: half", half)), GaussianWeights())


def correlated(cov: ArrayLike, noise_var: float = 0.0, weights: Literal["identity", "inverse"] = "inverse") -> Setting:
    """x ~ N(0, Σ), Σ = `cov` [d, d] or variances [d]; w ~ N(0, Σ⁻¹), or with "identity" N(0, I) (Ahn et al.)."""
    if weights not in ("identity", "inverse"):
        raise ConfigError(f'correlated: weights = {weights!r}: "identity" or "inverse"')
    given = as_array(cov, "correlated: cov")
    sigma = _covariance("correlated: cov", given, given.shape[-1] if given.ndim else 0)
    prior = GaussianWeights(np.asarray(np.linalg.inv(sigma), np.float64) if weights == "inverse" else None)
    return Setting("correlated", len(sigma), Gaussian(sigma), prior, noise_var)


def normalised(d: int, noise_var: float = 0.0) -> Setting:
    """x ~ N(0, I/d), w ~ N(0, I) (Lu et al.; noise_var is their ρ)."""
    return Setting("normalised", d, Gaussian(scale=_whole("normalised: d", d, 1) ** -0.5), GaussianWeights(), noise_var)


def mixture(d: int, M: int | None, noise_var: float = 0.25, seed: int = 0) -> Setting:  # noqa: N803 (the paper's name)
    """w is one of M tasks, drawn once from N(0, I) by `seed`; M = None: a new one each time (Raventós et al.).

    The first tasks of a larger M are those of a smaller one. `setting.target.tasks` [M, d] is what `dmmse` takes.

    Example
    -------
    >>> mixture(d=4, M=8).target.tasks.shape
    (8, 4)
    """
    _whole("mixture: d", d, 1)
    seed = check_seed(seed)
    if M is None:
        return Setting("mixture of any tasks", d, Gaussian(), GaussianWeights(), noise_var)
    check_room("mixture: tasks", _whole("mixture: M", M, 1), d)
    tasks = generator(seed, _SETS).standard_normal((M, d))
    return Setting(f"mixture of {M} tasks", d, Gaussian(), FiniteTasks(tasks), noise_var)


def decision_tree(d: int, depth: int = 4) -> Setting:
    """x ~ N(0, I), f a random decision tree (Garg et al.: d 20, depth 4)."""
    return Setting("decision tree", d, Gaussian(), DecisionTrees(_whole("decision_tree: depth", depth, 1, 20)))


def relu_network(d: int, hidden: int = 100) -> Setting:
    """x ~ N(0, I), f a random network with one hidden layer (Garg et al.: d 20, 100 hidden)."""
    return Setting("ReLU network", d, Gaussian(), ReLUNetworks(_whole("relu_network: hidden", hidden, 1)))


def tree_contexts(
    amplitudes: Sequence[float] = (1.0, 0.7, 0.5),
    prior: Literal["tree", "flat", "codebook"] = "tree",
    mix: float = 0.0,
    noise_var: float = 0.0,
    scatter: float = 0.0,
    seed: int = 0,
) -> Setting:
    """x ~ N(0, I), w a latent context with the structure of a tree; this library's own specification.

    Depth K is the number of amplitudes, d = 2^K − 1, one coordinate for each inner node in breadth-first order. Under
    "tree" w = Σ_l a_l s_l e_(node reached by s_1 … s_(l−1)), s_l = ±1; `latent` is the leaf, s_1 its highest bit.
    "flat" has an independent sign on every node, "codebook" 2^K fixed codewords drawn by `seed`; both with the tree's
    covariance, variance a_l² / 2^(l−1) on level l. mix = t: w = √(1 − t) · that + √t · a Gaussian of the same
    covariance. scatter: standard deviation of N(0, scatter² I) besides.

    Raises ConfigError.

    Example
    -------
    >>> setting = tree_contexts((1.0, 0.5))
    >>> setting.target.atoms
    array([[-1. , -0.5,  0. ],
           [-1. ,  0.5,  0. ],
           [ 1. ,  0. , -0.5],
           [ 1. ,  0. ,  0.5]])
    """
    if (array := as_array(amplitudes, "tree_contexts: amplitudes")).ndim != 1:
        raise ShapeError(f"tree_contexts: amplitudes {list(array.shape)}: one number for each level, [K]")
    values = tuple(_number("tree_contexts: amplitude", a) for a in amplitudes)
    _whole("tree_contexts: depth", len(values), 1, 16)
    if prior not in ("tree", "flat", "codebook"):
        raise ConfigError(f'tree_contexts: prior = {prior!r}: "tree", "flat" or "codebook"')
    if _number("tree_contexts: mix", mix) > 1:
        raise ConfigError(f"tree_contexts: mix = {mix}, at most 1")
    target = TreeContexts(values, prior, float(mix), _number("tree_contexts: scatter", scatter), check_seed(seed))
    return Setting(f"{prior} contexts", (1 << len(values)) - 1, Gaussian(), target, noise_var)


# ---- Curriculum -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curriculum:
    """How many coordinates and examples prompts have at a step; the defaults are those of Garg et al.

    Example
    -------
    >>> curriculum = Curriculum()
    >>> curriculum.at(0), curriculum.at(1999), curriculum.at(2000), curriculum.at(500_000)
    ((5, 11), (5, 11), (6, 13), (20, 41))
    """

    dims: tuple[int, int, int] = (5, 20, 1)
    """First, last, increment."""
    points: tuple[int, int, int] = (11, 41, 2)
    every: int = 2000
    """Steps between increments."""

    def __post_init__(self) -> None:
        for name in ("dims", "points"):
            value = getattr(self, name)
            if not isinstance(value, Sequence) or len(value) != 3:
                raise ConfigError(f"Curriculum: {name} = {value!r}, must be (first, last, increment)")
            first, last, increment = (_whole(f"Curriculum: {name}", v, 0) for v in value)
            if first < 1 or last < first or (increment < 1 and last > first):
                raise ConfigError(f"Curriculum: {name} = {value!r} does not lead from its first to its last")
        _whole("Curriculum: every", self.every, 1)

    def at(self, step: int) -> tuple[int, int]:
        """(coordinates, examples) of a step; the first is 0."""
        times = _whole("Curriculum: step", step, 0) // self.every
        dims, points = (min(first + times * inc, last) for first, last, inc in (self.dims, self.points))
        return dims, points


# ---- Layouts --------------------------------------------------------------------------------------------------------


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """X [batch, n, d] and y [batch, n], floating."""
    a, b = as_array(x, "X"), as_array(y, "y")
    if a.ndim != 3 or a.dtype.kind not in "iuf" or 0 in a.shape:
        raise ShapeError(f"X: {a.dtype} {list(a.shape)}, expected real numbers [batch, n, d], each at least 1")
    if b.shape != a.shape[:2] or b.dtype.kind not in "iuf":
        raise ShapeError(f"y: {b.dtype} {list(b.shape)} with X {list(a.shape)}, expected {list(a.shape[:2])}")
    for name, array in (("X", a), ("y", b)):
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            raise ConfigError(f"{name}{bad[0].tolist()} is {array[tuple(bad[0])]}")
    kind = np.float32 if a.dtype == b.dtype == np.float32 else np.float64
    return a.astype(kind, copy=False), b.astype(kind, copy=False)


def read_prompts(prompts: Prompts) -> tuple[Array, Array]:
    """X and y of prompts, checked, and with them the shapes of their own queries; raises ShapeError, ConfigError."""
    check_type(Prompts, "Prompts, such as a setting's sample() gives", prompts=prompts)
    x, y = _pair(prompts.X, prompts.y)
    for name, array, shape in (("Xq", prompts.Xq, x.shape), ("fq", prompts.fq, y.shape)):
        if array is not None and np.shape(array) != shape:
            raise ShapeError(f"{name}: {list(np.shape(array))} with X {list(x.shape)}, expected {list(shape)}")
    return x, y


def interleaved(prompts: Prompts, garg: bool = False) -> Examples:
    """x_0, y_0, x_1, y_1, …: one token for each input and each label; the model answers at the inputs.

    Tokens [batch, 2n, d + 1] hold (0, x) and (y, 0, …, 0) (Raventós et al.); with garg=True [batch, 2n, d], x and
    (y, 0, …) in the same coordinates (Garg et al.). Targets [batch, 2n, 1] are the labels at the inputs' positions,
    where loss_mask [batch, 2n] is 1.

    Raises ShapeError; ConfigError for prompts with queries of their own.
    """
    x, y = read_prompts(prompts)
    check_flags(garg=garg)
    if prompts.Xq is not None:
        raise ConfigError("interleaved: prompts with queries of their own have no one prompt for all prefixes; "
                          "use joined")  # fmt: skip
    batch, n, d = x.shape
    tokens = np.zeros((batch, n, 2, d if garg else d + 1), x.dtype)
    tokens[:, :, 0, 0 if garg else 1 :] = x
    tokens[:, :, 1, 0] = y
    targets = np.zeros((batch, n, 2, 1), x.dtype)
    targets[:, :, 0, 0] = y
    mask = np.zeros((batch, n, 2), bool)
    mask[:, :, 0] = True
    return Examples(tokens.reshape(batch, 2 * n, -1), targets.reshape(batch, 2 * n, 1), mask.reshape(batch, 2 * n))


def joined(prompts: Prompts) -> Examples:
    """(x_0, y_0), …, (x_(n−2), y_(n−2)), (x_(n−1), 0): the last token asks (von Oswald et al.; Ahn et al.).

    Tokens [batch, n, d + 1]; targets [batch, n, 1] and loss_mask [batch, n] are about the last one. Where the prompts
    have queries of their own the last of these is what is asked.

    Raises ShapeError.
    """
    x, y = read_prompts(prompts)
    tokens = np.concatenate([x, y[..., None]], axis=-1)
    tokens[:, -1, :-1], tokens[:, -1, -1] = prompts.queries[:, -1], 0
    targets = np.zeros((*y.shape, 1), y.dtype)
    targets[:, -1, 0] = y[:, -1] if prompts.fq is None else prompts.fq[:, -1]
    mask = np.zeros(y.shape, bool)
    mask[:, -1] = True
    return Examples(tokens, targets, mask)


class Stream:
    """A setting's prompts as data for `clew.train`: a new batch for every step, of the seed and the step's number.

    Parameters
    ----------
    setting
        What prompts are drawn from.
    n
        Examples of a prompt (for "joined" the last one is the query); with a curriculum the most of them.
    layout
        "interleaved", "garg" or "joined".
    curriculum
        Coordinates and examples by step.
    seed
        Of the prompts.

    Example
    -------
    >>> Stream(dense(d=3), n=5, layout="joined").batch(step=0, size=2).tokens.shape
    (2, 5, 4)
    """

    def __init__(
        self,
        setting: Setting,
        n: int,
        layout: Layout = "interleaved",
        curriculum: Curriculum | None = None,
        seed: int = 0,
    ) -> None:
        if layout not in ("interleaved", "garg", "joined"):
            raise ConfigError(f'Stream: layout = {layout!r}: "interleaved", "garg" or "joined"')
        check_type(Setting, "a Setting, such as dense(d=5)", setting=setting)
        if curriculum is not None:
            check_type(Curriculum, "a Curriculum or None", curriculum=curriculum)
        self.setting, self.n, self.layout, self.curriculum = setting, _whole("Stream: n", n, 1), layout, curriculum
        if curriculum is not None and curriculum.dims[1] > setting.d:
            raise ConfigError(f"Stream: the curriculum leads to {curriculum.dims[1]} dims, the setting has {setting.d}")
        if curriculum is not None and curriculum.points[1] > self.n:
            raise ConfigError(f"Stream: the curriculum leads to {curriculum.points[1]} examples, n = {self.n}")
        self.seed = check_seed(seed)

    def __repr__(self) -> str:
        how = self.layout if self.curriculum is None else f"{self.layout}, with a curriculum"
        return f"Stream of {self.setting.name} prompts, d {self.setting.d}, n {self.n}, {how}, seed {self.seed}"

    def batch(self, step: int, size: int) -> Examples:
        """Prompts of a step."""
        check_counts(0, step=step)
        dims, n = (None, self.n) if self.curriculum is None else self.curriculum.at(step)
        prompts = self.setting.sample(size, n, generator(self.seed, step), dims)
        return joined(prompts) if self.layout == "joined" else interleaved(prompts, self.layout == "garg")

    def identity(self) -> str:
        """What the prompts and their order are."""
        return f"{self.setting.name} d {self.setting.d} n {self.n} {self.layout} {self.curriculum} seed {self.seed}"
