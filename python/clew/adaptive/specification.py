"""What `clew.adaptive` computes: our own specification of adaptive in-context inference, in one place.

This is *a test of the claims of an abstract under our own specification*: Raj & Reddy, "Adaptive inference and function
vectors" (arXiv 2606.16694, 2026), of which only the abstract was at hand. Nothing below is quoted from its body, and no
equation, size or figure here is the paper's. When the text is at hand, this module is the one to change.

**Claims of the abstract.** A deep transformer does distributed inference under constraints on communication, locality
and depth. Internal states ("function vectors") let it infer a latent context variable at increasingly finer scales over
its layers. For in-context regression, theory predicts a non-trivial relation between the non-Gaussian, hierarchical
structure of the latent context and depth; constrained linear-attention transformers show adaptive inference.

**Context and data.** A context is a vector w in R^D. Its examples are x_i ~ N(0, I), y_i = w·x_i + σ ε_i, i = 1…N. The
target of a query is w·x_q without noise, so the excess loss is E|w − ŵ(state)|²: the mean squared error plotted against
depth.

**Priors**, all of one covariance diag(λ), in coordinates where every tree node is an axis (`clew.adaptive.priors`):

* *tree* of depth K, D = 2^K − 1: w = Σ_l a_l s_l e_{n(s_1…s_{l−1})}, s_l = ±1; one direction for each internal node;
  λ =
  a_l² / 2^{l−1} on each node of level l; optionally a Gaussian of variance scatter² in every direction around each
  leaf.
* *gaussian*: N(0, diag λ), the matched Gaussian.
* *flat*: independent signs on every node, w_n = ±√λ_n: not Gaussian, not hierarchical.
* *codebook*: 2^K random codewords whose mean is 0 and whose covariance is diag λ exactly: a rotated simplex. (The tree
  itself is one rotation of it.)
* *between(t)*: √(1−t) · tree + √t · gaussian, whose covariance does not depend on t.

**Constrained linear-attention transformer.** A token's residual is [x_i, y_i, p_l]. Layer l writes h_i = y_i (u_l ·
x_i) for each head, where u_l is a network of the workspace p_l alone (locality: one hidden layer of 64 tanh units);
attention has a constant query and key, so every token receives the mean of h in a fresh slot of p (one channel for
each head). The *function vector* of layer l is Φ_l = u_{l+1}(p_l), the directions that p_l makes the next layer ask
about. The readout is x_q · ŵ(p_L). A message is therefore u_l · ŵ with one fixed vector for each context,

    ŵ = (1/N) Σ y_i x_i,   E[ŵ|w] = w,   Cov[ŵ|w] = ((|w|² + σ²) I + w wᵀ) / N,

and its noise is the same for all layers. For σ² ≫ |w|² this is N(w, s² I) with s = σ/√N: the *reduced model*. L
messages in directions U are then N(U w, s² U Uᵀ). Two messages along u and v tell what the messages along an
orthonormal pair with the same span tell, so policies and the programme work with orthonormal directions, for which
the noise of different layers is independent.

**Optimal measurement** (`clew.adaptive.programme`): V_L(p) = tr Cov(w|p), V_{l−1}(p) = min_u E V_l(p ⊕ m). Three
numbers bracket its value: the posterior given all of ŵ (lower bound), a dynamic programme over a restricted set of
directions (node directions, their signed sums), and a policy of a network trained by gradient through the exact
posterior (upper bounds both). *Non-adaptive* means one layer of L heads.

**Sizes.** K = 3, D = 7, a = (1, .7, .5), N = 256, σ = 4.8, s = .3 (also .4 and .6); networks 64 wide, batches of 512.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..inputs import check_counts

__all__ = ["DEFAULT", "EXPECTED", "Specification"]


@dataclass(frozen=True)
class Specification:
    """The sizes of the experiments; lengths in units of the root's amplitude.

    >>> Specification().dim, Specification().noise
    (7, 0.3)
    """

    depth: int = 3
    """K, levels of the tree."""
    amplitudes: tuple[float, ...] = (1.0, 0.7, 0.5)
    """a_l, one for each level; they decay, or the order of levels is not the order of usefulness."""
    examples: int = 256
    """N."""
    sigma: float = 4.8
    """σ, noise of one y."""
    width: int = 64
    """Hidden units of the routing networks."""
    batch: int = 512
    """Contexts in a training step."""

    def __post_init__(self) -> None:
        check_counts(depth=self.depth, examples=self.examples, width=self.width, batch=self.batch)

    @property
    def dim(self) -> int:
        """D = 2^K − 1."""
        return int(2**self.depth - 1)

    @property
    def noise(self) -> float:
        """s = σ/√N, the noise of the estimate in each direction."""
        return float(self.sigma / self.examples**0.5)


DEFAULT = Specification()
"""The sizes that every experiment uses unless it says otherwise."""

EXPECTED: dict[tuple[float, int], tuple[float, float, float, float]] = {
    (0.3, 1): (0.047, 0.556, 0.556, 0.826),
    (0.3, 2): (0.047, 0.301, 0.210, 0.645),
    (0.3, 3): (0.047, 0.200, 0.059, 0.465),
    (0.4, 2): (0.145, 0.423, 0.332, 0.731),
    (0.4, 3): (0.145, 0.321, 0.172, 0.583),
    (0.6, 2): (0.457, 0.680, 0.655, 0.907),
    (0.6, 3): (0.457, 0.560, 0.529, 0.807),
    (0.6, 4): (0.457, 0.531, 0.479, 0.798),
}
"""(s, L) → mean squared errors: full data, tree non-adaptive, tree adaptive, Gaussian (adaptive or not).

Values of our own from one seed of 2,500 steps each, a = (1, .7, .5), K = 3; the last three are upper bounds.
"""
