"""Ordinary transformers on the same task, through the ordinary engine: linear attention and softmax, MLP × depth.

A sequence is N examples [x, y, 0] followed by queries [x, 0, 1]; the target of a query is w·x. Each trained model's
predictions are compared with those of the exact tree posterior and of the best of gradient descent, GD++, ridge and
least squares, each with its best settings: which algorithm does the model's behaviour lie closer to?
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import regression
from ..config import ModelConfig
from ..errors import ConfigError
from ..inputs import check_counts, check_flags, check_numbers, check_seed, check_type
from ..model import Model, check_model
from ..regression._inputs import check_room
from ..train import Examples, Generated, cosine, fit
from .priors import Prior, _positive, check_prior, tree

__all__ = ["Distances", "cells", "compare_with_algorithms", "grid", "ordinary_model", "summary", "train_ordinary"]

Array = NDArray[Any]
N_QUERIES = 8


def _sequences(prior: Prior, n: int, examples: int, sigma: float, rng: np.random.Generator) -> tuple[Array, ...]:
    """x [n, N + queries, D], y [n, N + queries] without noise, noise [n, N], w [n, D]."""
    w, _ = prior.sample(n, rng)
    x = rng.standard_normal((n, examples + N_QUERIES, prior.dim))
    return x, np.einsum("nkd,nd->nk", x, w), sigma * rng.standard_normal((n, examples)), w


def _tokens(x: Array, clean: Array, noise: Array) -> Examples:
    n, length, d = x.shape
    examples = noise.shape[1]
    tokens = np.zeros((n, length, d + 2))
    tokens[..., :d] = x
    tokens[:, :examples, d] = clean[:, :examples] + noise
    tokens[:, examples:, d + 1] = 1
    mask = np.zeros((n, length))
    mask[:, examples:] = 1
    return Examples(tokens.astype(np.float32), clean[..., None].astype(np.float32), mask)


def ordinary_model(
    attention: Literal["linear", "softmax"], layers: int, mlp: bool, dim: int, length: int, seed: int = 0
) -> Model:
    """An untrained model of width 32 with 4 heads, without positions; LayerNorm where attention is softmax.

    Raises ConfigError for another attention, sizes that are no whole numbers of at least 1 and a negative seed.
    """
    if attention not in ("linear", "softmax"):
        raise ConfigError(f'attention = {attention!r}: "linear" or "softmax"')
    check_counts(layers=layers, dim=dim, length=length)
    check_flags(mlp=mlp)
    linear = attention == "linear"
    config = ModelConfig(
        n_layers=layers, d_model=32, n_heads=4, n_ctx=length, d_in=dim + 2, d_out=1, attn_only=not mlp, d_mlp=64 * mlp,
        attention_kind=attention, positional_embedding_type="none", normalization_type=None if linear else "LN",
        final_norm=not linear, initializer_range=0.15,
    )  # fmt: skip
    return Model.from_config(config, seed=seed, dtype="float32")


def train_ordinary(
    attention: Literal["linear", "softmax"],
    layers: int,
    mlp: bool,
    *,
    prior: Prior | None = None,
    examples: int = 32,
    noise: float = 0.3,
    steps: int = 1500,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
) -> Model:
    """Trains an ordinary model on contexts of a prior (None: the tree), σ = noise · √N; fresh contexts in each step.

    AdamW; the rate rises over a tenth of the steps to `lr`, then falls to 0 along a cosine; gradients are clipped at a
    norm of 1. Three layers of linear attention (a polynomial of degree 27 in the tokens) without an MLP leave the
    numbers at 3e-3; 1e-3 trains every model of `grid`.

    Raises ConfigError for settings that are out of range, MemoryError, and TrainingError where a loss is not finite.
    """
    source = tree() if prior is None else prior
    check_prior(source)
    check_counts(examples=examples, steps=steps, batch=batch)
    check_numbers(noise=noise, lr=lr)
    if noise < 0:
        raise ConfigError(f"noise = {noise:g}, must not be negative")
    seed = check_seed(seed)
    check_room("train_ordinary: x of a batch", batch, examples + N_QUERIES, source.dim)
    sigma = noise * examples**0.5

    def make(rng: np.random.Generator, size: int) -> Examples:
        x, clean, eps, _ = _sequences(source, size, examples, sigma, rng)
        return _tokens(x, clean, eps)

    model = ordinary_model(attention, layers, mlp, source.dim, examples + N_QUERIES, seed)
    fit(model, Generated(make, seed), steps, batch, lr=cosine(lr, steps, steps // 10), clip=1.0, progress=False)
    return model


@dataclass(frozen=True)
class Distances:
    """Mean squared differences over queries: the model to the truth, the tree posterior and the nearest algorithm."""

    error: float
    to_posterior: float
    to_algorithm: float
    algorithm: str
    posterior_error: float
    algorithm_error: float


def compare_with_algorithms(
    model: Model, *, prior: Prior | None = None, examples: int = 32, noise: float = 0.3, n: int = 1000, seed: int = 11
) -> Distances:
    """How far a trained model's predictions lie from the tree posterior's and from the best of four algorithms.

    GD, GD++, ridge and least squares run over a grid of settings; the one nearest to the model's predictions is told.
    The best any of them could do against the truth is `algorithm_error`.

    Raises ConfigError for what is no model of such sequences and for settings that are out of range.
    """
    source = tree() if prior is None else prior
    check_model(model)
    check_prior(source)
    if model.config.d_in != source.dim + 2:
        raise ConfigError(f"model: reads vectors of {source.dim + 2} values, d_in is {model.config.d_in}")
    check_counts(examples=examples, n=n)
    _positive("noise", noise)
    seed = check_seed(seed)
    check_room("compare_with_algorithms: x", n, examples + N_QUERIES, source.dim)
    sigma = noise * examples**0.5
    x, clean, eps, _ = _sequences(source, n, examples, sigma, np.random.default_rng([seed, n]))
    batch = _tokens(x, clean, eps)
    predicted = model.run(batch.tokens).logits[:, examples:, 0].astype(np.float64)
    truth = clean[:, examples:]
    X, y, Xq = x[:, :examples], clean[:, :examples] + eps, x[:, examples:]
    _, mean = source.token_posterior(X, y, sigma)
    posterior = np.einsum("nqd,nd->nq", Xq, mean)
    candidates: dict[str, Array] = {"least squares": regression.fit_predict(X, y, Xq, "ols")}
    for lam in sigma**2 * 2.0 ** np.arange(-4, 7):
        candidates[f"ridge, lam {lam:.3g}"] = regression.fit_predict(X, y, Xq, "ridge", lam=float(lam))
    for steps in (1, 2, 3, 5, 10):
        for lr in (0.05, 0.1, 0.2, 0.4, 0.6):
            candidates[f"GD, {steps} steps of {lr:g}"] = regression.fit_predict(X, y, Xq, "gd", steps=steps, lr=lr)
            for gamma in (0.05, 0.1, 0.2):
                with contextlib.suppress(ConfigError):  # settings that diverge
                    candidates[f"GD++, {steps} steps of {lr:g}, gamma {gamma:g}"] = regression.fit_predict(
                        X, y, Xq, "gd_pp", steps=steps, lr=lr, gamma=gamma
                    )

    def distance(a: Array, b: Array) -> float:
        return float(((a - b) ** 2).mean())

    near = min(candidates, key=lambda name: distance(candidates[name], predicted))
    best = min(distance(values, truth) for values in candidates.values())
    return Distances(
        distance(predicted, truth),
        distance(predicted, posterior),
        distance(predicted, candidates[near]),
        near,
        distance(posterior, truth),
        best,
    )


def cells(depths: tuple[int, ...] = (1, 3)) -> dict[str, tuple[Literal["linear", "softmax"], int, bool]]:
    """The models of `grid` by name: attention, layers, MLP."""
    check_type((list, tuple), "whole numbers", depths=depths)
    if not depths:
        raise ConfigError("depths is empty: at least one")
    for layers in depths:
        check_counts(depth=layers)
    out: dict[str, tuple[Literal["linear", "softmax"], int, bool]] = {}
    kinds: tuple[Literal["linear", "softmax"], ...] = ("linear", "softmax")
    for attention in kinds:
        for layers in depths:
            for mlp in (False, True):
                name = f"{attention}, {layers} layer{'s' if layers > 1 else ''}, {'MLP' if mlp else 'no MLP'}"
                out[name] = (attention, layers, mlp)
    return out


def summary(by_seed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of one cell, their least and largest error, and the seeds' own numbers under "seeds"."""
    rows = list(by_seed.values())
    if not rows:
        raise ConfigError("summary: no seed was measured")
    names = [row["algorithm"].split(",")[0] for row in rows]
    out: dict[str, Any] = {
        key: float(np.mean([row[key] for row in rows])) for key in rows[0] if isinstance(rows[0][key], float)
    }
    return out | {
        "algorithm": " / ".join(dict.fromkeys(names)),
        "errors": [min(row["error"] for row in rows), max(row["error"] for row in rows)],
        "seeds": {seed: dict(row) for seed, row in by_seed.items()},
    }


def grid(
    *, steps: int = 1500, seeds: Sequence[int] = (0, 1, 2), depths: tuple[int, ...] = (1, 3)
) -> dict[str, dict[str, Any]]:
    """Attention × MLP × depth on the tree prior, by name: the distances of the trained models, means over seeds.

    Takes minutes; `python/clew/data/adaptive/measure.py` does the same and can be stopped and gone on with.

    Raises ConfigError for no seed, a negative one, and sizes that are no whole numbers of at least 1.
    """
    check_type(Sequence, "whole numbers", seeds=seeds)
    if not len(seeds):
        raise ConfigError("seeds is empty: at least one")
    seeds = [check_seed(seed) for seed in seeds]
    check_counts(steps=steps)
    rows = {}
    for name, cell in cells(depths).items():
        models = {str(seed): train_ordinary(*cell, steps=steps, seed=seed) for seed in seeds}
        rows[name] = summary({seed: asdict(compare_with_algorithms(model)) for seed, model in models.items()})
    return rows
