"""The loss that a residual vector stands for under the lens, and its exact gradient by that vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import norm
from ..brief import Brief
from ..errors import ConfigError, ShapeError, TokenError
from ..inputs import as_array, check_type, real_array, whole
from ..lens import TunedLens
from ..model import Model, check_model

Array = NDArray[Any]

_BLOCK = 1 << 22  # logits that are in memory at once


@dataclass(frozen=True)
class LensGradient(Brief):
    """Loss of the lens at residual vectors and its gradient; made by :func:`lens_gradient`. Float64."""

    loss: Array
    """Cross-entropy of the target, nats [...]."""
    entropy: Array
    """Entropy of the prediction, nats [...]."""
    rank: NDArray[np.int64]
    """How many tokens are likelier than the target [...]."""
    gradient: Array
    """∇L by the residual vector [..., d_model]."""
    expected: Array | None
    """The same, of the cross-entropy against the reference's prediction instead of one token; None without one."""


class _Head:
    """Final norm and unembedding as a function with a derivative."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.norm = norm.is_there(model.config, "ln_final")
        self.w = norm.weight(model, "ln_final") if self.norm else None
        self.b = norm.bias(model, "ln_final") if self.norm else None
        self.W_U = model.weights["unembed.W_U"]
        self.b_U = model.weights["unembed.b_U"] if "unembed.b_U" in model.weights else None
        self.cap = model.config.output_logits_soft_cap

    def forward(self, x: Array) -> tuple[Array, Array, Array | None, Array | None]:
        """Logits [n, vocabulary], their slope under the soft-cap or 1, and what `back` needs of the norm."""
        normalized = scale = None
        y = x
        if self.norm:
            y = norm.centre(self.model.config, x)
            scale = norm.scale(self.model.config, y)
            normalized = y / np.where(scale == 0, 1.0, scale)
            y = normalized if self.w is None else normalized * self.w
            y = y if self.b is None else y + self.b
        logits = y.astype(self.model.dtype) @ self.W_U
        if self.b_U is not None:
            logits += self.b_U
        slope = np.ones((), logits.dtype)
        if self.cap:
            bent = np.tanh(logits / logits.dtype.type(self.cap))
            logits, slope = bent * logits.dtype.type(self.cap), 1 - bent * bent
        return logits, slope, normalized, scale

    def back(self, by_logits: Array, normalized: Array | None, scale: Array | None) -> Array:
        """Gradient by x [n, d_model], float64: the unembedding's transpose, then the norm's exact Jacobian."""
        grad: Array = (by_logits @ self.W_U.T).astype(np.float64)
        if normalized is None or scale is None:
            return grad
        grad = grad if self.w is None else grad * self.w
        grad = grad - normalized * (grad * normalized).mean(-1, keepdims=True)
        out: Array = norm.centre(self.model.config, grad / np.where(scale == 0, np.inf, scale))
        return out


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Probabilities and log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(-1, keepdims=True, dtype=np.float64)
    return np.asarray(e / total.astype(logits.dtype)), np.asarray(shifted - np.log(total).astype(logits.dtype))


def lens_gradient(
    model: Model, resid: ArrayLike, targets: ArrayLike, *, reference: ArrayLike | None = None,
    tuned: TunedLens | None = None, layer: int | None = None,
) -> LensGradient:  # fmt: skip
    """Cross-entropy of the lens at residual vectors, and its exact gradient, through the final norm and any soft-cap.

    Without a final norm −∇L = u_y − Σ_v p_v u_v; with one, times the norm's Jacobian. `reference`'s prediction q
    instead of a single token gives the expected gradient, Uᵀ(p − q) before the norm.

    Parameters
    ----------
    resid
        [..., d_model]
    targets
        The token that each should predict, integers [...].
    reference
        Residual vectors [..., d_model] whose prediction (by the logit lens) stands for what was to be expected: the
        last layer's.
    tuned, layer
        The tuned lens's map of that layer first; the gradient is by the vector before it.

    Products are in the model's dtype, everything else in float64; a float64 model gives the gradient to rounding.

    Raises
    ------
    ShapeError
        Shapes that do not fit.
    TokenError
        A target that is no token.
    ConfigError
        A tuned lens without a layer, or of another model.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407, 261], capture="resid_post")
    >>> found = lens_gradient(model, run["resid_post", -1][0, :3], [403, 407, 261])
    >>> float(abs(found.loss - model.loss([1, 403, 407, 261])[0]).max()) < 1e-4, found.gradient.shape
    (True, (3, 64))
    """
    check_model(model)
    x, y = real_array(resid, "residuals"), as_array(targets, "targets")
    d = model.config.d_model
    if x.ndim < 1 or x.shape[-1] != d or y.shape != x.shape[:-1] or y.dtype.kind not in "iu":
        raise ShapeError(
            f"residuals {list(x.shape)} and targets {y.dtype} {list(y.shape)}: [..., d_model = {d}] and integers [...]"
        )
    v = model.config.d_vocab_out
    outside = y[(y < 0) | (y >= v)]
    if outside.size:
        raise TokenError(f"target {int(outside[0])} is no token: the vocabulary has 0 to {v - 1}")
    last = None
    if reference is not None:
        last = real_array(reference, "reference")
        if last.shape != x.shape:
            raise ShapeError(f"reference {list(last.shape)} for residuals {list(x.shape)}")
        last = last.reshape(-1, d)
    if layer is not None and tuned is None:
        raise ConfigError("lens_gradient: layer = is the tuned lens's: give tuned=")
    map_of: tuple[Array, Array] | None = None
    if tuned is not None:
        check_type(TunedLens, "a TunedLens", tuned=tuned)
        if tuned.model is not model:
            raise ConfigError("lens_gradient: the tuned lens was made for another model")
        if layer is None:
            raise ConfigError("lens_gradient: a tuned lens has a map for each layer: give layer=")
        at = model.sites().layer(whole(layer, "layer"), f"layer {layer}")
        if at != model.config.n_layers - 1:  # the last layer's is the identity
            map_of = tuned.weight[at].astype(np.float64), tuned.bias[at].astype(np.float64)
    flat, wanted, head = x.reshape(-1, d), y.reshape(-1), _Head(model)
    n = len(flat)
    loss, entropy, rank = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    gradient, expected = np.zeros((n, d)), None if last is None else np.zeros((n, d))
    step = max(1, _BLOCK // v)
    for start in range(0, n, step):
        part, goal = slice(start, start + step), wanted[start : start + step]
        rows = np.arange(len(goal))
        own = flat[part] if map_of is None else flat[part] @ map_of[0] + map_of[1]
        logits, slope, normalized, scale = head.forward(own)
        p, log_p = _softmax(logits)
        loss[part] = -log_p[rows, goal]
        entropy[part] = -(p * log_p).sum(-1, dtype=np.float64)
        rank[part] = (logits > logits[rows, goal][:, None]).sum(-1)
        results = []
        for q in (None, last):
            if q is None:
                by_logits = p.copy()
                by_logits[rows, goal] -= 1
            else:
                by_logits = p - _softmax(head.forward(q[part])[0])[0]
            by_logits *= slope
            back = head.back(by_logits, normalized, scale)
            results.append(back if map_of is None else back @ map_of[0].T)
            if last is None:
                break
        gradient[part] = results[0]
        if expected is not None:
            expected[part] = results[1]
    shape = x.shape[:-1]
    return LensGradient(
        loss.reshape(shape), entropy.reshape(shape), rank.reshape(shape), gradient.reshape(x.shape),
        None if expected is None else expected.reshape(x.shape),
    )  # fmt: skip


class Whitening:
    """Coordinates of the residual stream in which the unembedding is white: r' = C^½ r.

    C is the covariance over the vocabulary of the vectors that the logits read off the normed stream (γ ⊙ u, in the
    space that the norm keeps), so steps count by how much they spread the logits. A gradient step in these coordinates
    is the metric beside the plain Euclidean one: ⟨Δ, −∇L⟩ is the same, lengths are ‖C^½ Δ‖ and ‖C^−½ ∇L‖.
    """

    def __init__(self, model: Model) -> None:
        check_model(model)
        u = model.W_U.astype(np.float64).T
        if norm.is_there(model.config, "ln_final"):
            w = norm.weight(model, "ln_final")
            u = norm.centre(model.config, u if w is None else u * w)
        values, self._axes = np.linalg.eigh(np.cov(u, rowvar=False, bias=True).reshape(u.shape[1], -1))
        kept = values > values.max(initial=0.0) * 1e-10  # directions that no logit reads have no length
        self._root = np.sqrt(np.where(kept, values, 0.0))
        self._inverse = np.divide(1.0, self._root, out=np.zeros_like(self._root), where=kept)

    def __repr__(self) -> str:
        return f"Whitening of {np.count_nonzero(self._root)} directions, d_model {len(self._root)}"

    def step(self, delta: Array) -> Array:
        """Displacements [..., d_model] in white coordinates, C^½ Δ."""
        return np.asarray((delta @ self._axes) * self._root)

    def gradient(self, gradient: Array) -> Array:
        """Gradients [..., d_model] in white coordinates, C^−½ ∇L."""
        return np.asarray((gradient @ self._axes) * self._inverse)


__all__ = ["LensGradient", "Whitening", "lens_gradient"]
