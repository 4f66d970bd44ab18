"""Function vectors: what a workspace makes the rest of the network do, read out and moved between contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError
from ..inputs import check_seed, whole
from .measures import branches_of
from .network import Constrained, Pass, check_network
from .priors import check_contexts

__all__ = ["Patching", "workspace_vectors", "patch", "patch_branches"]

Array = NDArray[Any]


def workspace_vectors(network: Constrained, estimate: ArrayLike, layer: int) -> tuple[Array, Array]:
    """The workspace p_l after `layer` layers [n, l·H], and Φ_l: the directions it makes the next layer ask about.

    Φ is [n, H, D], a function of p_l alone; after the last layer there is no next one: ConfigError.
    """
    check_network(network)
    if not 0 <= whole(layer, "layer") < network.layers:
        raise ConfigError(f"layer = {layer}: a next layer exists for 0 to {network.layers - 1}")
    seen = network.run(estimate)
    k = layer * network.heads
    return seen.messages[:, :k], seen.directions[:, k : k + network.heads]


def patch(network: Constrained, estimate: ArrayLike, workspace: ArrayLike, layer: int) -> Pass:
    """Runs contexts whose workspace after `layer` layers is replaced by another one [n, ≥ l·H]; later layers go on.

    Later layers ask their own context's data, in the directions that the foreign workspace chooses.
    """
    check_network(network)
    return network.run(estimate, start=layer, messages=workspace)


@dataclass(frozen=True)
class Patching:
    """Rows: layer 1 … L patched. Columns: tree levels. Chance is ½.

    donor, own: share of contexts whose predicted sign, on the path of the donor or of the context itself, is theirs.
    same_branch: donors that share the context's leaf (own sign kept). random: a workspace of unrelated noise (share
    of the unrelated donor's sign). plain: without patching.
    """

    donor: Array
    own: Array
    same_branch: Array
    random: Array
    plain: Array

    def __repr__(self) -> str:
        rows = ["patched  donor's sign at levels 1, 2, …" + " " * 10 + "own"]
        rows += [
            f"{layer:>7}  " + " ".join(f"{x:6.3f}" for x in donor) + "   |" + " ".join(f"{x:6.3f}" for x in own)
            for layer, (donor, own) in enumerate(zip(self.donor, self.own, strict=True), 1)
        ]
        return "\n".join([*rows, "  plain  " + " ".join(f"{x:6.3f}" for x in self.plain)])


def patch_branches(network: Constrained, n: int = 20_000, seed: int = 5) -> Patching:
    """Moves the workspace of each layer between contexts of a tree prior and reads which branch is predicted.

    A level's sign is read at the node that the donor's (or the context's own) path reaches, so that "moved" and "left
    at chance" can be told apart level by level. Donors disagree with the context at the root.

    Raises ConfigError for a prior that is no tree, fewer than 2 contexts and a negative seed.
    """
    check_network(network)
    check_contexts(n, network.prior.dim, least=2)
    seed = check_seed(seed)
    prior, rng = network.prior, np.random.default_rng([seed, n])
    branches = prior.branches
    if branches is None:
        raise ConfigError(f"patch_branches: the prior {prior.name!r} is no tree")
    depth = branches.shape[1]
    index = rng.integers(0, len(branches), n)
    half = len(branches) // 2
    other = (index + half + rng.integers(0, half, n) - index % half) % len(branches)  # the root's sign differs
    if (branches[index, 0] == branches[other, 0]).any():
        other = (other + half) % len(branches)

    def observe(leaves: Array) -> Array:
        w = prior.centres[leaves] + np.sqrt(prior.spread) * rng.standard_normal((n, prior.dim))
        return np.asarray(w + network.noise * rng.standard_normal(w.shape))

    def share(prediction: Array, leaves: Array) -> Array:
        """Share of predictions with the leaf's own sign at each node of the leaf's path."""
        node, out = np.zeros(n, np.intp), np.empty(depth)
        for level in range(depth):
            sign = branches[leaves, level]
            out[level] = (np.sign(prediction[np.arange(n), node]) == sign).mean()
            node = 2 * node + 1 + (sign > 0)
        return out

    own, donor, twin = observe(index), observe(other), observe(index)
    plain = network.run(own)
    foreign, similar = network.run(donor).messages, network.run(twin).messages
    noise = plain.messages.std(axis=0) * rng.standard_normal(plain.messages.shape) + plain.messages.mean(axis=0)
    rows: dict[str, list[Array]] = {"donor": [], "own": [], "same_branch": [], "random": []}
    for layer in range(1, network.layers + 1):
        moved = patch(network, own, foreign, layer).prediction
        rows["donor"].append(share(moved, other))
        rows["own"].append(share(moved, index))
        rows["same_branch"].append(share(patch(network, own, similar, layer).prediction, index))
        rows["random"].append(share(patch(network, own, noise, layer).prediction, other))
    matched = (branches_of(prior, plain.prediction) == branches[index]).mean(axis=0)
    stacked = {name: np.array(row) for name, row in rows.items()}
    return Patching(**stacked, plain=np.asarray(matched))
