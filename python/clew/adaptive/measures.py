"""What a workspace tells: bits about each level of the tree, and which branch a prediction stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_seed
from ..regression._inputs import finite_array
from .network import Constrained, check_network
from .priors import Prior, check_contexts, check_prior

__all__ = ["bits_by_layer", "branches_of", "level_bits"]

Array = NDArray[Any]


def _branches(prior: Prior) -> Array:
    check_prior(prior)
    if prior.branches is None:
        raise ConfigError(f"the prior {prior.name!r} is no tree: it has no levels")
    return prior.branches


def level_bits(prior: Prior, probabilities: ArrayLike, index: ArrayLike) -> Array:
    """Mutual information between what was seen and the sign of each level, given the signs above it: [K], in bits.

    E log2 P(s_k | s_1…s_{k−1}, seen) + 1, for posterior probabilities of the leaves [n, 2^K] and the true leaves [n].
    By the chain rule the levels add up to the information about the leaf.

    Raises ConfigError for priors that are no tree, probabilities that are none and leaves that the tree does not have,
    ShapeError for shapes that do not fit.

    Example
    -------
    >>> from clew.adaptive import tree
    >>> level_bits(tree(), np.eye(8), np.arange(8)).tolist()
    [1.0, 1.0, 1.0]
    """
    signs = _branches(prior)
    p, index = finite_array(probabilities, "probabilities"), as_array(index, "index")
    if p.ndim != 2 or p.shape[1] != len(signs) or index.shape != p.shape[:1]:
        raise ShapeError(f"level_bits: probabilities {list(p.shape)}, leaves {list(index.shape)} of {len(signs)}")
    if not len(p):
        raise ShapeError(f"level_bits: probabilities {list(p.shape)}: at least one context")
    if (p < 0).any() or (np.abs(p.sum(axis=1) - 1) > 1e-3).any():
        row = int(np.argmax((p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-3)))
        raise ConfigError(f"probabilities of context {row} add up to {p[row].sum():g}, the least is {p[row].min():g}")
    if index.dtype.kind not in "iu":
        raise ConfigError(f"index: whole numbers of leaves, not {index.dtype}")
    if (outside := (index < 0) | (index >= len(signs))).any():
        row = int(np.argmax(outside))
        raise ConfigError(f"index[{row}] = {index[row]}: the tree has leaves 0 to {len(signs) - 1}")
    same = np.ones((len(p), len(signs)), bool)
    above = np.ones(len(p))
    out = np.empty(signs.shape[1])
    for level in range(signs.shape[1]):
        same &= signs[:, level] == signs[index, level, None]
        with_it = np.maximum((p * same).sum(axis=1), 1e-300)
        out[level] = 1 + np.log2(with_it / above).mean()
        above = with_it
    return out


def bits_by_layer(network: Constrained, n: int = 50_000, seed: int = 3) -> Array:
    """Bits about each tree level in the workspace after each layer [layers, K], from the exact posterior given p_l."""
    check_network(network)
    check_contexts(n, network.prior.dim)
    _branches(network.prior)
    rng = np.random.default_rng([check_seed(seed), n])
    w, index = network.prior.sample(n, rng)
    seen = network.run(w + network.noise * rng.standard_normal(w.shape))
    rows = []
    for layer in range(1, network.layers + 1):
        k = layer * network.heads
        p, _ = network.prior.posterior(seen.directions[:, :k], seen.messages[:, :k], network.noise)
        rows.append(level_bits(network.prior, p, index))
    return np.array(rows)


def branches_of(prior: Prior, prediction: ArrayLike) -> Array:
    """The signs [n, K] of the path that a predicted vector [n, D] stands for: at each node the sign along it."""
    depth = _branches(prior).shape[1]
    w = finite_array(prediction, "prediction")
    if w.ndim != 2 or w.shape[1] != prior.dim:
        raise ShapeError(f"branches_of: prediction {list(w.shape)}, D is {prior.dim}")
    node, rows = np.zeros(len(w), np.intp), np.arange(len(w))
    signs = np.empty((len(w), depth), np.int64)
    for level in range(depth):
        signs[:, level] = np.where(w[rows, node] > 0, 1, -1)
        node = 2 * node + 1 + (signs[:, level] > 0)
    return signs
