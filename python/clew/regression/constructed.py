"""Transformers whose weights are written down, not trained: each one is a solver, layer by layer.

    from clew.regression import constructed
    gd = constructed.gd(d=5, steps=3, lr=0.1)
    gd.predict(X, y)             # what regression.gd(X, y, 3, 0.1) gives
    gd.layers(X, y)              # after 0, 1, 2 and 3 layers, read from the captured residual stream
    gd.model.run(gd.prompts(X, y, Xq)[0], capture="*")

They run through the ordinary engine (`clew.Model`, attention without a softmax or with one) and everything of them can
be captured, edited and differentiated. Which solvers have a construction, and what it rests on:

* k steps of gradient descent, preconditioned or not, and GD++: k layers of linear attention over tokens (x_j, y_j)
  that all but the query are keys of (von Oswald et al. 2022, Proposition 1; Ahn et al. 2023).
* Newton–Schulz iteration, and by it ridge regression in closed form to rounding: d memory tokens hold the columns of
  the iterate, two layers make a step, which squares its error. This construction is this library's own: the papers' are
  of gradient steps, which reach ridge in the limit only. The one number that attention without a softmax cannot make,
  the scale of the first iterate, comes with the prompt.
* Nadaraya–Watson: one layer of softmax attention.
* One layer of linear attention with any weights (Lu et al. 2024): `clew.regression.learners.fit_attention` fits them.

One prompt of a causal transformer cannot hold k-step descent for every prefix at once (its examples would have to carry
another residual for each), so `predict` runs a ragged batch of prefixes. One step can: :func:`gd_causal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import ModelConfig
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_type, precision
from ..loaders.checkpoint import Checkpoint
from ..model import Model
from .tasks import _covariance, _number, _pair, _whole

Array = NDArray[Any]
Float = NDArray[np.float64]
Kernel = Literal["dot", "gaussian"]
Heads = tuple[Array, Array, Array, Array]
"""One head: W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model]."""

_PLAIN: dict[str, Any] = dict(
    normalization_type=None, final_norm=False, positional_embedding_type="none", attn_only=True, use_attn_scale=False,
    qkv_bias=False, attn_out_bias=False, n_ctx=1 << 20,
)  # fmt: skip
_UNSEEN = -1e30  # a score that no softmax gives weight to, in either precision


@dataclass(frozen=True)
class Construction:
    """A solver as a transformer.

    Attributes
    ----------
    name
        The solver and its settings.
    model
        The transformer; its tokens are vectors, its output is the prediction.
    d
        Length of inputs.
    """

    name: str
    model: Model
    d: int
    layout: Callable[[Float, Float, Float], Float]
    """Examples x [k, d], y [k] and queries [m, d] as tokens [p, d_in], the queries last."""
    one_query: bool = True
    """A prompt holds one query."""
    all_prefixes: Callable[[Float, Float], tuple[Float, slice]] | None = None
    """Tokens [batch, p, d_in] of one causal prompt for all prefixes, and the positions that answer."""

    def prompts(self, X: ArrayLike, y: ArrayLike, Xq: ArrayLike) -> list[Float]:  # noqa: N803
        """Tokens [p, d_in] of every prompt: examples X [batch, n, d], y [batch, n], asked about Xq [batch, m, d].

        batch prompts, or batch · m, those of one sequence together, where a prompt holds one query.

        Raises ShapeError naming both shapes.
        """
        x, t = self._checked(X, y, empty=True)
        q = as_array(Xq, "Xq")
        if q.ndim != 3 or q.shape[0] != len(x) or q.shape[2] != self.d or q.shape[1] == 0 or q.dtype.kind not in "iuf":
            raise ShapeError(f"Xq: {q.dtype} {list(q.shape)} with X {list(x.shape)}, expected [{len(x)}, m, {self.d}]")
        q = q.astype(np.float64)
        bad = np.argwhere(~np.isfinite(q))
        if len(bad):
            raise ConfigError(f"Xq{bad[0].tolist()} is {q[tuple(bad[0])]}")
        if self.one_query:
            return [self.layout(x[b], t[b], q[b, i : i + 1]) for b in range(len(x)) for i in range(q.shape[1])]
        return [self.layout(x[b], t[b], q[b]) for b in range(len(x))]

    def predict(self, X: ArrayLike, y: ArrayLike) -> Array:  # noqa: N803
        """Predictions [batch, n]: that of example i from examples 0 … i − 1, as the solvers of `clew.regression`."""
        return np.asarray(self._predictions(X, y, layers=False)[-1])

    def layers(self, X: ArrayLike, y: ArrayLike) -> Array:  # noqa: N803
        """Predictions behind every layer [n_layers + 1, batch, n], read from the residual stream; the first is 0."""
        return self._predictions(X, y, layers=True)

    def fit_predict(self, X: ArrayLike, y: ArrayLike, Xq: ArrayLike) -> Array:  # noqa: N803
        """Predictions [batch, m] at Xq [batch, m, d] from all examples; no example at all (n = 0) gives 0."""
        return np.asarray(self._answers(self.prompts(X, y, Xq), np.shape(Xq)[1], layers=False)[-1])

    def fit_layers(self, X: ArrayLike, y: ArrayLike, Xq: ArrayLike) -> Array:  # noqa: N803
        """The same behind every layer [n_layers + 1, batch, m]."""
        return self._answers(self.prompts(X, y, Xq), np.shape(Xq)[1], layers=True)

    def __repr__(self) -> str:
        c = self.model.config
        return f"{self.name}: {c.n_layers} layers of {c.attention_kind} attention, d_model {c.d_model}"

    def _checked(self, X: ArrayLike, y: ArrayLike, empty: bool = False) -> tuple[Float, Float]:  # noqa: N803
        x, t = as_array(X, "X"), as_array(y, "y")
        if not (empty and x.ndim == 3 and x.shape[1] == 0 and t.shape == x.shape[:2]):
            x, t = _pair(x, t)
        if x.shape[2] != self.d:
            raise ShapeError(f"X: {list(x.shape)} for a construction of d = {self.d}")
        return x.astype(np.float64), t.astype(np.float64)

    def _predictions(self, X: ArrayLike, y: ArrayLike, layers: bool) -> Array:  # noqa: N803
        x, t = self._checked(X, y)
        batch, n, _ = x.shape
        if self.all_prefixes is not None:
            tokens, where = self.all_prefixes(x, t)
            return self._read(tokens, np.arange(tokens.shape[1])[where], layers).reshape(-1, batch, n)
        rows = [self.layout(x[b, :i], t[b, :i], x[b, i : i + 1]) for b in range(batch) for i in range(n)]
        return self._read(rows, np.array([-1]), layers).reshape(-1, batch, n)

    def _answers(self, prompts: list[Float], m: int, layers: bool) -> Array:
        out = self._read(prompts, np.array([-1]) if self.one_query else np.arange(-m, 0), layers)
        return out.reshape(len(out), -1, m)

    def _read(self, prompts: Any, positions: NDArray[np.int64], layers: bool) -> Array:
        """What the unembedding reads at some positions [layers + 1, prompts, positions], or at the end of it [1, …]."""
        capture = (
            ["blocks.0.hook_resid_pre", "resid_post"] if layers else [f"resid_post.{self.model.config.n_layers - 1}"]
        )
        run = self.model.run(prompts, capture=capture, positions=positions, logits=None)
        stream = run.stack("resid_post")
        if layers:
            stream = np.concatenate([run["blocks.0.hook_resid_pre"][None], stream])
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.asarray(stream @ self.model.W_U[:, 0])
        if not np.isfinite(out).all():
            raise ConfigError(f"{self.name}: predictions are beyond the range of {self.model.dtype}: rescale X and y")
        return out


def _build(config: ModelConfig, layers: Sequence[Sequence[Heads]], read: Array, dtype: Any) -> Model:
    """A model of given heads by layer, whose output is the residual stream times `read`."""
    kind, c = precision(dtype), config
    weights = {"embed.W_E": np.eye(c.d_model), "unembed.W_U": read[:, None]}
    for layer, heads in enumerate(layers):
        for place, letter in enumerate("QKVO"):
            shape = (c.d_head, c.d_model) if letter == "O" else (c.d_model, c.d_head)
            stack = [head[place] for head in heads] + [np.zeros(shape)] * (c.n_heads - len(heads))
            weights[f"blocks.{layer}.attn.W_{letter}"] = np.stack(stack)
    return Model(Checkpoint(c, {name: w.astype(kind) for name, w in weights.items()}, kind))


# ---- Gradient descent -----------------------------------------------------------------------------------------------


def _joined(x: Float, y: Float, query: Float) -> Float:
    """(x_j, y_j), then (x_q, 0)"""
    return np.concatenate([np.column_stack([x, y]), np.column_stack([query, np.zeros(len(query))])])


def _rates(name: str, value: ArrayLike, steps: int) -> Float:
    rates = as_array(value, name)
    if rates.shape not in ((), (steps,)) or rates.dtype.kind not in "iuf":
        raise ShapeError(
            f"{name}: {rates.dtype} {list(rates.shape)}, expected a number or one for each of {steps} steps"
        )
    if not np.isfinite(rates).all():
        raise ConfigError(f"{name} = {value!r}: must be finite")
    return np.broadcast_to(rates.astype(np.float64), (steps,))


def _preconditioners(value: ArrayLike | None, steps: int, d: int) -> Float:
    if value is None:
        return np.broadcast_to(np.eye(d), (steps, d, d))
    array = as_array(value, "precond")
    if array.shape not in ((d, d), (steps, d, d)) or array.dtype.kind not in "iuf":
        raise ShapeError(f"precond: {array.dtype} {list(array.shape)}, expected [{d}, {d}] or [{steps}, {d}, {d}]")
    if not np.isfinite(array).all():
        raise ConfigError(f"precond holds {array[~np.isfinite(array)][0]}")
    return np.broadcast_to(array.astype(np.float64), (steps, d, d))


def gd(d: int, steps: int, lr: ArrayLike, precond: ArrayLike | None = None, dtype: Any = "float64") -> Construction:
    """k steps of gradient descent on (1/2n) Σ (w·x_j − y_j)² from w = 0, as k layers of linear attention.

    Each layer moves every label by what the step moves its prediction: y_j ← y_j − (lr/n) Σ_i y_i (A x_i)·x_j, i over
    the examples. So y_j holds the residual of example j, and minus the last token's label is the prediction (von Oswald
    et al. 2022: W_Q = W_K = [[I, 0], [0, 0]], W_V = [[0, 0], [0, −1]], P = (η/N) I).

    Parameters
    ----------
    lr
        Step size, or one for each step.
    precond
        A [d, d] or [steps, d, d]: the step is w ← w − lr A ∇ (Ahn et al. 2023). None: I.

    Raises
    ------
    ConfigError, ShapeError
        Sizes below 1, numbers that are not finite, shapes that do not fit (both named).

    Example
    -------
    >>> import numpy as np
    >>> from clew.regression import constructed
    >>> x, y = np.array([[[2.0], [1.0]]]), np.array([[3.0, 0.0]])
    >>> constructed.gd(d=1, steps=2, lr=0.1).layers(x, y)[:, 0]  # w = 0, 0.6, 0.96 behind one example
    array([[0.  , 0.  ],
           [0.  , 0.6 ],
           [0.  , 0.96]])
    """
    d, steps = _whole("gd: d", d, 1), _whole("gd: steps", steps, 1)
    n = d + 1
    config = ModelConfig(
        **_PLAIN, n_layers=steps, d_model=n, n_heads=1, d_head=n, d_in=n, d_out=1, attention_kind="linear",
        attention_dir="bidirectional", exclude_last=True, model_name="gd",
    )  # fmt: skip
    inputs, label = np.diag([1.0] * d + [0.0]), np.diag([0.0] * d + [1.0])
    layers = []
    for rate, a in zip(_rates("lr", lr, steps), _preconditioners(precond, steps, d), strict=True):
        key = inputs.copy()
        key[:d, :d] = a.T
        layers.append([(inputs, key, label, -rate * label)])
    return Construction(f"gd(d={d}, steps={steps})", _build(config, layers, -label[d], dtype), d, _joined)


def gd_pp(d: int, steps: int, lr: ArrayLike, gamma: ArrayLike, dtype: Any = "float64") -> Construction:
    """GD++: every layer also moves the inputs, x_j ← x_j − γ Σ_i x_i (x_i·x_j), the query's too (von Oswald et al.).

    A step of descent on the inputs that the last layer left: the eigenvalues λ of Σ x xᵀ become λ (1 − γλ)². Labels
    move by a mean over examples, inputs by a sum. Tokens are (x_j, k x_j, y_j), so that one head's mean of k examples
    is the sum that the other needs; in the paper k is fixed and part of the weights.

    Raises as :func:`gd`.
    """
    d, steps = _whole("gd_pp: d", d, 1), _whole("gd_pp: steps", steps, 1)
    n = 2 * d + 1
    config = ModelConfig(
        **_PLAIN, n_layers=steps, d_model=n, n_heads=2, d_head=n, d_in=n, d_out=1, attention_kind="linear",
        attention_dir="bidirectional", exclude_last=True, model_name="gd_pp",
    )  # fmt: skip
    inputs, counted, label = np.eye(n), np.zeros((n, n)), np.zeros((n, n))
    inputs[d:], label[-1, -1] = 0, 1
    counted[d:-1, :d] = np.eye(d)  # k x_j where the other head has x_j
    both = np.eye(n) - label
    layers = [
        [(inputs, inputs, label, -rate * label), (inputs, counted, both, -g * both)]
        for rate, g in zip(_rates("lr", lr, steps), _rates("gamma", gamma, steps), strict=True)
    ]

    def layout(x: Float, y: Float, query: Float) -> Float:
        tokens = _joined(x, y, query)
        return np.concatenate([tokens[:, :d], len(x) * tokens[:, :d], tokens[:, d:]], axis=1)

    return Construction(f"gd_pp(d={d}, steps={steps})", _build(config, layers, -label[-1], dtype), d, layout)


def gd_causal(d: int, lr: float, dtype: Any = "float64") -> Construction:
    """One step of gradient descent for every prefix in one causal prompt: y_i − (lr/i) Σ_{j<i} y_j x_j·x_i.

    lr = 1 is averaging, w = (1/i) Σ y_j x_j.
    """
    d = _whole("gd_causal: d", d, 1)
    rate = float(_rates("lr", lr, 1)[0])
    n = d + 2  # x, y, prediction
    config = ModelConfig(
        **_PLAIN, n_layers=1, d_model=n, n_heads=1, d_head=d, d_in=n, d_out=1, attention_kind="linear",
        exclude_self=True, model_name="gd_causal",
    )  # fmt: skip
    at, value, out = np.eye(n, d), np.zeros((n, d)), np.zeros((d, n))
    value[d, 0], out[0, d + 1] = 1, rate

    def layout(x: Float, y: Float, query: Float) -> Float:
        return np.column_stack([_joined(x, y, query), np.zeros(len(x) + len(query))])

    def all_prefixes(x: Float, y: Float) -> tuple[Float, slice]:
        return np.concatenate([x, y[..., None], np.zeros((*y.shape, 1))], axis=-1), slice(None)

    model = _build(config, [[(at, at, value, out)]], np.eye(n)[d + 1], dtype)
    return Construction(f"gd_causal(d={d}, lr={rate:g})", model, d, layout, all_prefixes=all_prefixes)


def attention(gamma: ArrayLike, dtype: Any = "float64") -> Construction:
    """One layer of linear attention, ⟨Γ, x_q [(d/n) Σ y_i x_iᵀ, (1/n) Σ y_i²]⟩ with Γ [d, d + 1] (Lu et al. 2024).

    Raises ShapeError, ConfigError.
    """
    weights = as_array(gamma, "gamma")
    if weights.ndim != 2 or not 0 < weights.shape[0] == weights.shape[1] - 1 or weights.dtype.kind not in "iuf":
        raise ShapeError(f"gamma: {list(weights.shape)}, expected [d, d + 1]")
    if not np.isfinite(weights).all():
        raise ConfigError(f"gamma holds {weights[~np.isfinite(weights)][0]}")
    n = len(weights) + 1
    config = ModelConfig(
        **_PLAIN, n_layers=1, d_model=n + 1, n_heads=1, d_head=n, d_in=n + 1, d_out=1, attention_kind="linear",
        attention_dir="bidirectional", exclude_last=True, model_name="attention",
    )  # fmt: skip
    query, key, value, out = np.zeros((n + 1, n)), np.eye(n + 1, n), np.zeros((n + 1, n)), np.zeros((n, n + 1))
    query[: n - 1], key[: n - 1] = weights, (n - 1) * np.eye(n - 1, n)
    value[n - 1, 0] = out[0, n] = 1

    def layout(x: Float, y: Float, asked: Float) -> Float:
        return np.column_stack([_joined(x, y, asked), np.zeros(len(x) + len(asked))])

    model = _build(config, [[(query, key, value, out)]], np.eye(n + 1)[n], dtype)
    return Construction(f"attention(d={n - 1})", model, n - 1, layout)


def ahn_optimum(cov: ArrayLike, n: int, weights: Literal["identity", "inverse"] = "identity") -> Float:
    """The preconditioner [d, d] of one step that is best for x ~ N(0, Σ) and n examples without noise.

    For w ~ N(0, I): U diag(1 / ((n+1)/n λ_i + tr Σ / n)) Uᵀ with Σ = U diag(λ) Uᵀ (Ahn et al. 2023, Theorem 1). For
    weights="inverse", w ~ N(0, Σ⁻¹), their setting of several layers: n / (n + 1 + d) Σ⁻¹ (ours, by the same argument).

    Raises ShapeError, ConfigError.

    >>> ahn_optimum([1.0, 1.0], n=2)
    array([[0.4, 0. ],
           [0. , 0.4]])
    """
    given, n = as_array(cov, "cov"), _whole("n", n, 1)
    if weights not in ("identity", "inverse"):
        raise ConfigError(f'ahn_optimum: weights = {weights!r}: "identity" or "inverse"')
    sigma = _covariance("cov", given, given.shape[-1] if given.ndim else 0)
    eigenvalues, u = np.linalg.eigh(sigma)
    spread = eigenvalues.sum() if weights == "identity" else len(sigma) * eigenvalues
    return np.asarray((u / ((n + 1) / n * eigenvalues + spread / n)) @ u.T)


# ---- Newton–Schulz and ridge ----------------------------------------------------------------------------------------


class _Slots:
    """Places in the residual stream of the Newton–Schulz construction."""

    def __init__(self, d: int) -> None:
        self.d, self.width = d, 6 * d + 2
        self.e, self.b, self.v, self.x, self.q, self.t = (slice(i * d, (i + 1) * d) for i in range(6))
        self.y, self.out = slice(6 * d, 6 * d + 1), slice(6 * d + 1, 6 * d + 2)

    def take(self, **slots: float) -> Array:
        """[width, d]: the sum of some slots, each by its factor."""
        out = np.zeros((self.width, self.d))
        for name, factor in slots.items():
            slot = getattr(self, name)
            out[slot] += factor * np.eye(slot.stop - slot.start, self.d)
        return out

    def head(self, query: Array, key: Array, value: Array, out: slice, factor: float = 1.0) -> Heads:
        """out += factor Σ_i value_i (key_i · query)"""
        write = np.zeros((self.d, self.width))
        write[:, out] = factor * np.eye(self.d, out.stop - out.start)
        return query, key, value, write


def newton_schulz(d: int, steps: int, lam: float = 0.0, dtype: Any = "float64") -> Construction:
    """Newton–Schulz iteration V ← V (2I − A V) for A⁻¹, A = XᵀX + λI, and w = V Xᵀy: 2 · steps + 3 layers of two heads.

    Column m of V stands in a memory token beside the unit vector e_m, so attention with keys e and values V e
    multiplies by V, and over the examples, with keys and values x, by XᵀX. Layer 0 makes V = A / ‖A‖₁² (1/‖A‖₁² comes
    with the prompt), two layers make a step: E = I − A V, then V + V E. The last two answer: each query looks up V x_q,
    and with that as its query Σ y_i x_i · V x_q. Until then `layers` reads 0; for the iterates see :func:`iterates`.

    Raises ConfigError for d below 1, negative steps and negative λ.
    """
    d, steps = _whole("newton_schulz: d", d, 1), _whole("newton_schulz: steps", steps, 0)
    lam = _number("newton_schulz: lam", lam)
    at, name = _Slots(d), f"newton_schulz(d={d}, steps={steps}, lam={lam:g})"
    config = ModelConfig(
        **_PLAIN, n_layers=2 * steps + 3, d_model=at.width, n_heads=2, d_head=d, d_in=at.width, d_out=1,
        attention_kind="linear", attention_dir="bidirectional", linear_attn_n=1, model_name="newton_schulz",
    )  # fmt: skip
    e, x, v = at.take(e=1), at.take(x=1), at.take(v=1)
    remainder = [  # b ← e − A v; what does not come from the examples is looked up among the unit vectors
        at.head(v, x, x, at.b, -1),
        at.head(at.take(e=1, b=-1, v=-lam), e, e, at.b),
    ]
    improve = [at.head(at.take(b=1), e, v, at.v)]
    layers = [
        [at.head(at.take(t=1), x, x, at.v)],
        *[remainder, improve] * steps,
        [at.head(at.take(q=1), e, v, at.t)],
        [at.head(at.take(t=1), x, at.take(y=1), at.out)],
    ]

    def layout(inputs: Float, labels: Float, query: Float) -> Float:
        k = len(inputs)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = float(np.abs(inputs.T @ inputs + lam * np.eye(d)).sum(axis=0).max())
        if not norm < 1e154:
            raise ConfigError(f"{name}: ‖XᵀX + λI‖₁ = {norm:.3g}, whose square is beyond float64: rescale X")
        scale = 1 / norm**2 if norm > 1e-154 else 1.0
        tokens = np.zeros((d + k + len(query), at.width))
        memory, examples = tokens[:d], tokens[d : d + k]
        memory[:, at.e], memory[:, at.v], memory[:, at.t] = np.eye(d), scale * lam * np.eye(d), scale * np.eye(d)
        examples[:, at.x], examples[:, at.y] = inputs, labels[:, None]
        tokens[d + k :, at.q] = query
        return tokens

    return Construction(name, _build(config, layers, at.take(out=1)[:, 0], dtype), d, layout, one_query=False)


def iterates(construction: Construction, X: ArrayLike) -> Array:  # noqa: N803
    """Newton–Schulz's iterates V [steps + 1, batch, d, d] for examples X [batch, n, d], read from the memory tokens.

    Raises ConfigError for another construction, ShapeError.
    """
    check_type(Construction, "a Construction, such as newton_schulz(d, steps)", construction=construction)
    d, model = construction.d, construction.model
    if model.config.model_name != "newton_schulz":
        raise ConfigError(f"iterates of {construction.name}: only newton_schulz and ridge have any")
    x = as_array(X, "X")
    if x.ndim != 3 or x.shape[2] != d or len(x) == 0:
        raise ShapeError(f"X: {x.dtype} {list(x.shape)}, expected real numbers [batch, n, {d}]")
    prompts = construction.prompts(x, np.zeros(x.shape[:2]), np.zeros((len(x), 1, d)))
    run = model.run(prompts, capture="resid_post", positions=np.arange(d), logits=None)
    return np.asarray(run.stack("resid_post")[:-2:2, ..., _Slots(d).v].swapaxes(-1, -2))


def ridge(d: int, lam: float, condition: float = 1e4, dtype: Any = "float64") -> Construction:
    """Ridge regression (XᵀX + λI)⁻¹ Xᵀy in closed form: Newton–Schulz with as many steps as rounding needs.

    What is missing of V after so many steps is (1 − 1/κ²)^(2^steps), κ = ‖A‖₁ / λ_min(A) ≤ ‖A‖₁ / λ; `condition` is the
    largest κ that is solved to rounding (an error of about κ · 1e-16 in float64).

    Raises ConfigError as :func:`newton_schulz`, for λ = 0 and for a condition below 1.
    """
    condition = _number("ridge: condition", condition, 1.0)
    if _number("ridge: lam", lam) == 0:
        raise ConfigError("ridge: lam = 0 has no bound on the condition: use newton_schulz")
    digits = -math.log(np.finfo(precision(dtype)).eps)
    return newton_schulz(d, math.ceil(2 * math.log2(condition) + math.log2(digits)), lam, dtype)


# ---- Nadaraya–Watson ------------------------------------------------------------------------------------------------


def nadaraya_watson(d: int, scale: float, kernel: Kernel = "dot", dtype: Any = "float64") -> Construction:
    """Σ_j softmax_j(scale · x_q·x_j) y_j: one layer of softmax attention, all prefixes in one causal prompt.

    Inputs and examples come in turn, x_0, (x_0, y_0), x_1, …; a token that asks is hidden as a key by a score of −1e30.
    kernel "gaussian": weights ∝ exp(−scale/2 · ‖x_q − x_j‖²), by a bias of the keys that comes with the prompt.

    Raises ConfigError for a scale that is negative or not finite.
    """
    d, scale = _whole("nadaraya_watson: d", d, 1), _number("nadaraya_watson: scale", scale)
    if kernel not in ("dot", "gaussian"):
        raise ConfigError(f'nadaraya_watson: kernel = {kernel!r}: "dot" or "gaussian"')
    n, bias, one, label, out = d + 4, d, d + 1, d + 2, d + 3
    config = ModelConfig(
        **_PLAIN, n_layers=1, d_model=n, n_heads=1, d_head=d + 1, d_in=n, d_out=1, model_name="nadaraya_watson"
    )
    query, key, value, write = np.zeros((n, d + 1)), np.eye(n, d + 1), np.zeros((n, d + 1)), np.zeros((d + 1, n))
    query[:d, :d], query[one, d] = scale * np.eye(d), 1
    value[label, 0], write[0, out] = 1, 1

    def examples(x: Float, y: Float) -> Float:
        own = -0.5 * scale * np.square(x).sum(axis=-1) if kernel == "gaussian" else np.zeros(x.shape[:-1])
        return np.stack([*np.moveaxis(x, -1, 0), own, np.ones(y.shape), y, np.zeros(y.shape)], axis=-1)

    def queries(x: Float) -> Float:
        tokens = np.zeros((*x.shape[:-1], n))
        tokens[..., :d], tokens[..., bias], tokens[..., one] = x, _UNSEEN, 1
        return tokens

    def layout(x: Float, y: Float, query: Float) -> Float:
        return np.concatenate([examples(x, y), queries(query)])

    def all_prefixes(x: Float, y: Float) -> tuple[Float, slice]:
        return np.stack([queries(x), examples(x, y)], axis=2).reshape(len(x), -1, n), slice(0, None, 2)

    model = _build(config, [[(query, key, value, write)]], np.eye(n)[out], dtype)
    name = f"nadaraya_watson(d={d}, scale={scale:g}, {kernel})"
    return Construction(name, model, d, layout, one_query=False, all_prefixes=all_prefixes)
