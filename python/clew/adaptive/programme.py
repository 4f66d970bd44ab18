"""The optimal layer-wise measurement over a restricted set of directions, by dynamic programming in the core.

State: the posterior over the tree's leaves and the directions seen so far. A layer of H heads chooses H directions at
once and sees them together; the next layer chooses knowing the answers. One head in each of L layers is the adaptive
problem, one layer of L heads the non-adaptive one. What a direction adds to those before it is its orthogonal part, so
noise of different messages is independent, as N(Uw, s² U Uᵀ) demands.

Expectations over a message are trapezoid sums over a grid, whose error for these smooth mixtures is far below the error
that kinks of the minimum make; `step` halves it. The tree's symmetry (swapping the two subtrees of a node, and its
sign) leaves one of each class of first sets, and half of the grid where it can turn the first message's sign.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..errors import ConfigError, ShapeError
from ..inputs import check_flags, real_array, whole
from ..regression._inputs import check_room
from .priors import Prior, _positive, check_prior

__all__ = ["Programme", "node_directions", "programme", "tree_symmetries"]

Array = NDArray[Any]
_MOST_MESSAGES = 5


@dataclass(frozen=True)
class Programme:
    """What the programme found.

    value: least expected squared error; first: the directions of the best first layer [H, D]; first_values: the value
    of each class of first sets, and first_sets the sets [classes, H] as rows of directions [A, D].
    """

    value: float
    heads: tuple[int, ...]
    first: Array
    first_sets: Array
    first_values: Array
    directions: Array

    def __repr__(self) -> str:
        said = f"{len(self.first_sets)} first sets of {len(self.directions)} directions"
        return f"Programme of heads {self.heads}: error {self.value:.4f} over {said}"


def node_directions(depth: int, terms: int = 2, families: bool = True) -> Array:
    """Directions of unit length [A, D]: nodes and their signed sums, closed under the tree's symmetries.

    terms: signed sums of up to so many different nodes (1: the nodes alone). families: also the signed sums of a node
    and its two children, which ask about two levels whatever the branch. One of v and −v is kept.

    >>> node_directions(2, terms=1, families=False).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    >>> len(node_directions(3))
    61
    """
    if not 1 <= whole(depth, "depth") <= 6:
        raise ConfigError(f"node_directions: depth = {depth}, must be 1 to 6")
    d = 2**depth - 1
    if not 1 <= whole(terms, "terms") <= d:
        raise ConfigError(f"node_directions: terms = {terms}, must be 1 to {d}")
    check_flags(families=families)
    many = sum(math.comb(d, n) << (n - 1) for n in range(1, terms + 1))
    check_room("node_directions", many, d)
    np.empty((many, d))  # NumPy's MemoryError says the bytes before anything is made
    sets = [nodes for n in range(1, terms + 1) for nodes in itertools.combinations(range(d), n)]
    if families:
        sets += [(n, 2 * n + 1, 2 * n + 2) for n in range(d // 2)]
    rows = []
    for nodes in dict.fromkeys(sets):
        for signs in itertools.product((1, -1), repeat=len(nodes) - 1):
            vector = np.zeros(d)
            vector[list(nodes)] = np.array((1, *signs)) / len(nodes) ** 0.5
            rows.append(vector)
    return np.array(rows)


def tree_symmetries(depth: int) -> Array:
    """The tree's symmetries as signed permutations [2^D, D, D]: a sign for each node, whose subtrees swap with it.

    Each maps the leaves of `tree` onto themselves.
    """
    d = 2**depth - 1
    out = np.zeros((2**d, d, d))
    for index in range(2**d):
        image = [0] * d
        for node in range(d):
            flipped = index >> node & 1
            for child in (2 * node + 1, 2 * node + 2):
                if child < d:  # children change places where their parent's sign is turned
                    left = 2 * image[node] + 1
                    image[child] = left + (child % 2 == 0) if not flipped else left + (child % 2 == 1)
            out[index, image[node], node] = -1.0 if flipped else 1.0
    return out


def _classes(sets: Array, directions: Array, group: Array) -> tuple[Array, Array]:
    """One set of each class, and whether a symmetry that keeps the set turns its first direction's sign."""
    images = np.einsum("gij,aj->gai", group, directions)
    table = {tuple(np.round(v * s, 9) + 0.0): (a, s) for a, v in enumerate(directions) for s in (1, -1)}
    n_group, n = images.shape[:2]
    index, sign = np.empty((n_group, n), np.int64), np.empty((n_group, n), np.int64)
    for g in range(n_group):
        for a in range(n):
            found = table.get(tuple(np.round(images[g, a], 9) + 0.0))
            if found is None:  # the set of directions is not closed under the group
                return sets, np.zeros(len(sets), bool)
            index[g, a], sign[g, a] = found
    kept, halved = [], []
    seen: set[tuple[int, ...]] = set()
    for chosen in sets:
        key = tuple(chosen)
        if key in seen:
            continue
        seen.update(map(tuple, np.sort(index[:, chosen], axis=1)))
        fixed = (index[:, chosen] == chosen).all(axis=1)
        kept.append(key)
        halved.append(bool((fixed & (sign[:, chosen[0]] == -1)).any()))
    return np.array(kept), np.array(halved)


def programme(
    prior: Prior,
    noise: float,
    heads: Sequence[int],
    directions: ArrayLike | None = None,
    *,
    step: float = 0.5,
    reach: float = 6.0,
    symmetry: bool = True,
) -> Programme:
    """Least expected squared error of layers that ask heads[l] directions each, out of a given set.

    prior: points, with one common spread in every direction (the tree, its scatter, a codebook, flat signs). noise: s.
    directions [A, D]: normalised here; None: `node_directions(K)`. step: distance of grid points in standard deviations
    of a message; reach: how far the grid reaches beyond the outermost centre, in the same unit. symmetry: use the
    tree's.

    Returns a `Programme`. The value is an upper bound of the optimum over all directions, up to the grid's error.

    Raises ConfigError for a prior with different spreads (a Gaussian: see `closed_forms`), heads that are not
    positive or settings that are not; ShapeError for directions that do not fit or more messages than D; MemoryError
    beyond 5 messages.

    Example
    -------
    >>> from clew.adaptive import tree
    >>> adaptive = programme(tree((1.0, 0.7)), 0.3, (1, 1)).value
    >>> fixed = programme(tree((1.0, 0.7)), 0.3, (2,)).value
    >>> adaptive < fixed
    True
    """
    _positive("noise", noise)
    _positive("step", step)
    _positive("reach", reach)
    check_flags(symmetry=symmetry)
    check_prior(prior)
    if not isinstance(heads, Sequence | np.ndarray):
        raise ConfigError(f"heads = {heads!r}: one positive whole number for each layer")
    layers = tuple(whole(h, "heads: a layer's number") for h in heads)
    if not layers or min(layers) < 1:
        raise ConfigError(f"heads = {tuple(heads)!r}: one positive whole number for each layer")
    if np.ptp(prior.spread) > 0:
        raise ConfigError(
            f"programme: the spread of {prior.name!r} differs between directions ({prior.spread.min():g} to "
            f"{prior.spread.max():g}); points with one common spread are meant"
        )
    depth = None if prior.branches is None else prior.branches.shape[1]
    if directions is None:
        depth_of_dim = (prior.dim + 1).bit_length() - 1
        if 2**depth_of_dim - 1 != prior.dim:
            raise ConfigError(f"programme: D = {prior.dim} is no 2^K − 1: give directions")
        actions = node_directions(depth_of_dim, min(2, prior.dim))
    else:
        actions = real_array(directions, "directions")
        if actions.ndim != 2 or actions.shape[1] != prior.dim:
            raise ShapeError(f"directions {list(actions.shape)}, D is {prior.dim}")
        lengths = np.linalg.norm(actions, axis=1, keepdims=True)
        if not np.isfinite(actions).all() or not (lengths > 0).all():
            raise ConfigError("directions: each must be finite and not zero")
        actions = actions / lengths
    if sum(layers) > prior.dim:
        raise ShapeError(f"{sum(layers)} messages: more than D = {prior.dim} directions cannot be orthogonal")
    if sum(layers) > _MOST_MESSAGES:
        scale = float(np.linalg.norm(prior.centres, axis=1).max()) / (noise**2 + float(prior.spread[0])) ** 0.5
        grid = 2 * math.ceil((scale + reach) / step) + 2
        size = grid ** (sum(layers) - 2) * len(prior.centres) * 8
        raise MemoryError(
            f"programme: {sum(layers)} messages on a grid of {grid} values need {size} bytes of posteriors at once; "
            f"at most {_MOST_MESSAGES} messages"
        )
    if max(layers) > len(actions):
        raise ConfigError(f"heads = {layers}: a layer asks more directions than there are, {len(actions)}")
    many = math.comb(len(actions), layers[0])
    check_room("programme: first sets", many, layers[0])
    np.empty((many, layers[0]))  # NumPy's MemoryError says the bytes before anything is made
    sets = np.array(list(itertools.combinations(range(len(actions)), layers[0])), np.int64)
    halved = np.zeros(len(sets), bool)
    if symmetry and depth is not None and depth <= 3:
        sets, halved = _classes(sets, actions, tree_symmetries(depth))
    values = np.empty(len(sets))
    n = len(prior.centres)
    _core.programme_values(
        values,
        np.ascontiguousarray(sets, np.int32),
        np.ascontiguousarray(halved),
        np.ascontiguousarray(prior.centres),
        np.full(n, 1 / n),
        np.ascontiguousarray(actions),
        np.array(layers, np.int32),
        float(prior.spread[0]),
        float(noise),
        float(step),
        float(reach),
    )
    if not np.isfinite(values).all():
        raise ConfigError(f"programme: its values are beyond the range of float64: noise {noise:g} is too far from 1")
    best = int(np.argmin(values))
    return Programme(float(values[best]), layers, actions[sets[best]], sets, values, actions)
