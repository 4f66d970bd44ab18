"""Transformers trained in context, and which estimator they follow: by position, by layer, by the number of tasks.

    from clew.regression import learners, tasks
    setting = tasks.noisy(d=5, noise_var=0.25)
    learner = learners.train(setting, n=10, kind="gpt2", steps=2000)
    prompts = setting.sample(batch=1000, n=10, seed=1)
    solvers = {"ridge": lambda X, y: regression.ridge(X, y, 0.25), "ols": regression.ols}
    print(learners.compare(learner, prompts, solvers))

A trained model is one draw: what is said of it needs its seed, its steps and an interval over prompts, which the
results here carry. `python/clew/data/icl` holds those of a few runs with the command that made them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..config import ModelConfig
from ..errors import ConfigError, ShapeError
from ..inputs import check_counts, check_numbers, check_type, whole
from ..lens import unembed
from ..loaders.checkpoint import Checkpoint
from ..loaders.initialise import initialise
from ..model import Model
from ..train.curve import Curve
from ..train.data import check_seed
from ..train.schedule import cosine
from ..train.trainer import Trainer
from . import tasks
from ._inputs import finite_array
from .constructed import Construction, attention
from .tasks import Curriculum, Prompts, Setting, Stream, _number, _pair, _whole, read_prompts

Array = NDArray[Any]
Float = NDArray[np.float64]
Kind = Literal["gpt2", "softmax", "linear"]
Solver = Callable[[Array, Array], ArrayLike]


@dataclass(frozen=True)
class Learner:
    """A model that was trained in context, and how it reads prompts."""

    model: Model
    kind: Kind
    d: int
    n: int
    """Examples of a prompt that it was trained on (of "softmax" and "linear": and a query)."""
    curve: Curve = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)
    """Setting, sizes, steps, seed: what the training was."""

    def __repr__(self) -> str:
        c = self.model.config
        told = f"d {self.d}, n {self.n}, {c.n_layers} layers, width {c.d_model}, {c.n_heads} heads"
        return f"Learner {self.kind!r} of {self.record.get('setting', 'prompts')}: {told}"

    @property
    def joined(self) -> bool:
        """Are tokens pairs (x, y), the last of which asks?"""
        return self.kind != "gpt2"

    def predict(self, X: ArrayLike, y: ArrayLike) -> Float:  # noqa: N803
        """Predictions [batch, n]: that of example i from examples 0 … i − 1, as the solvers of `clew.regression`."""
        return np.asarray(self._read(X, y, layers=False)[-1])

    def fit_last(self, X: ArrayLike, y: ArrayLike) -> Float:  # noqa: N803
        """The last of these predictions alone [batch], from one prompt of each sequence."""
        x, t = self._pair(X, y)
        tokens = tasks.joined(Prompts(x, t, t)).tokens if self.joined else self._tokens(x, t)[0][:, :-1]
        return self._finite(self.model.run(self._rounded(tokens), logits="last").logits[:, 0, 0])

    def layers(self, X: ArrayLike, y: ArrayLike) -> Float:  # noqa: N803
        """The same as every layer's stream reads (a logit lens), the embedding first: [n_layers + 1, batch, n]."""
        return self._read(X, y, layers=True)

    def residuals(self, X: ArrayLike, y: ArrayLike) -> Array:  # noqa: N803
        """The residual stream where the model answers, [n_layers + 1, batch, n, d_model], the embedding first."""
        tokens, positions = self._tokens(X, y)
        last = self.model.config.n_layers - 1
        run = self.model.run(
            self._rounded(tokens),
            capture=["blocks.0.hook_resid_pre", "resid_post"],
            positions=positions,
            stop_after_layer=last,
        )
        stream = np.concatenate([run["blocks.0.hook_resid_pre"][None], run.stack("resid_post")])
        batch, n = np.shape(y)
        return stream.reshape(last + 2, batch, n, -1)

    def sensitivity(self, X: ArrayLike, y: ArrayLike) -> Float:  # noqa: N803
        """∂ŷ/∂x of the last query [batch, d], exact: the weight vector that the model acts by (von Oswald et al.)."""
        x, t = self._pair(X, y)
        if self.joined:
            tokens = tasks.joined(Prompts(x, t, t)).tokens
            rows = slice(0, self.d)
        else:
            tokens = tasks.interleaved(Prompts(x, t, t)).tokens[:, :-1]
            rows = slice(1, self.d + 1)

        def answer(logits: Array) -> tuple[Array, Array]:
            return logits[:, -1, 0], np.ones_like(logits)

        slope = self.model.gradients(self._rounded(tokens), answer, wrt=["hook_embed"])["hook_embed"]
        return self._finite(slope[:, -1].astype(np.float64) @ np.asarray(self.model.W_E[rows], np.float64).T)

    def _pair(self, X: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:  # noqa: N803
        x, t = _pair(X, y)
        if x.shape[2] != self.d:
            raise ShapeError(f"X: {list(x.shape)} for a learner of d = {self.d}")
        if not self.joined and x.shape[1] > self.n:
            raise ShapeError(f"X: {list(x.shape)}: the learner has positions for {self.n} examples")
        return x, t

    def _rounded(self, tokens: Any) -> Any:
        """Tokens in the model's dtype; what is beyond its range becomes infinite, without a warning."""
        with np.errstate(over="ignore"):
            if isinstance(tokens, list):
                return [part.astype(self.model.dtype) for part in tokens]
            return tokens.astype(self.model.dtype)

    def _finite(self, values: Array) -> Float:
        if not np.isfinite(values).all():
            raise ConfigError(f"the learner's answers are beyond the range of {self.model.dtype}: rescale X and y")
        return np.asarray(values, np.float64)

    def _tokens(self, X: ArrayLike, y: ArrayLike) -> tuple[Any, NDArray[np.int64]]:  # noqa: N803
        x, t = self._pair(X, y)
        n = x.shape[1]
        if not self.joined:
            return tasks.interleaved(Prompts(x, t, t)).tokens, np.arange(0, 2 * n, 2)
        rows = np.concatenate([x, t[..., None]], axis=-1)
        asked = np.concatenate([x, np.zeros_like(t)[..., None]], axis=-1)
        prompts = [np.concatenate([rows[b, :i], asked[b, i : i + 1]]) for b in range(len(x)) for i in range(n)]
        return prompts, np.array([-1])

    def _read(self, X: ArrayLike, y: ArrayLike, layers: bool) -> Float:  # noqa: N803
        if layers:
            return self._finite(unembed(self.model, self.residuals(X, y))[..., 0])
        tokens, positions = self._tokens(X, y)
        logits = self.model.run(self._rounded(tokens), logits="last" if self.joined else "all").logits
        return self._finite(logits[:, positions, 0]).reshape(1, *np.shape(y))


# ---- Training -------------------------------------------------------------------------------------------------------


def architecture(kind: Kind, d: int, n: int, n_layers: int, width: int | None = None, n_heads: int = 1) -> ModelConfig:
    """Configuration of a learner.

    "gpt2": inputs and labels in turn, causal softmax attention, MLPs, LayerNorm, learned positions (Garg et al.;
    Raventós et al.), width 64 unless given. "softmax" and "linear": pairs (x, y) and a query, attention only, no norms
    and no positions, width d + 1 unless given; linear attention sees the whole prompt but the query (von Oswald et al.;
    Ahn et al.).

    Raises ConfigError for sizes that are no whole numbers of at least 1, and for another kind.
    """
    d, n = _whole("d", d, 1), _whole("n", n, 1)
    width = None if width is None else _whole("width", width, 1)
    common: dict[str, Any] = dict(
        n_layers=_whole("n_layers", n_layers, 1), n_heads=_whole("n_heads", n_heads, 1), d_in=d + 1, d_out=1
    )
    if kind == "gpt2":
        return ModelConfig(**common, d_model=width or 64, n_ctx=2 * n, unembed_bias=True)
    if kind not in ("softmax", "linear"):
        raise ConfigError(f'kind = {kind!r}: "gpt2", "softmax" or "linear"')
    own: dict[str, Any] = {}
    if kind == "linear":
        own = dict(attention_kind="linear", attention_dir="bidirectional", exclude_last=True)
    return ModelConfig(
        **common, **own, d_model=width or d + 1, d_head=width or d + 1, n_ctx=1 << 20, attn_only=True, qkv_bias=False,
        attn_out_bias=False, normalization_type=None, final_norm=False, positional_embedding_type="none",
        use_attn_scale=kind == "softmax",
    )  # fmt: skip


def initial(config: ModelConfig, seed: int = 0, attention: float = 0.1) -> Model:
    """Seeded weights to train from, float32.

    Attention-only learners begin with the tokens as they are: an embedding [I, 0] and an unembedding that reads minus
    the label's place; attention N(0, attention²). "gpt2" ones begin as `Model.from_config` does.
    """
    check_type(ModelConfig, "a ModelConfig, such as architecture() gives", config=config)
    seed, attention = check_seed(seed), _number("attention", attention)
    if not config.attn_only:
        return Model.from_config(config, seed)
    weights = initialise(config.replace(initializer_range=attention), seed, np.float32)
    d_in = config.d_vocab
    weights["embed.W_E"][...] = np.eye(d_in, config.d_model)
    weights["unembed.W_U"][...] = -np.eye(config.d_model)[:, d_in - 1 : d_in]
    return Model(Checkpoint(config, weights, np.dtype(np.float32)))


def train(
    setting: Setting,
    n: int,
    kind: Kind = "gpt2",
    *,
    n_layers: int = 2,
    width: int | None = None,
    n_heads: int | None = None,
    steps: int = 2000,
    batch: int = 64,
    lr: float = 1e-3,
    clip: float | None = 1.0,
    curriculum: Curriculum | None = None,
    seed: int = 0,
    **settings: Any,
) -> Learner:
    """Trains a transformer in context on prompts of a setting, new ones at every step, by squared error.

    Adam (no weight decay), a warm-up over a tenth of the steps, then a cosine down to a tenth of `lr`.

    Parameters
    ----------
    n
        Examples of a prompt; "gpt2" learns every prefix at once, the others the prompt of n examples and a query.
    kind, n_layers, width, n_heads
        :func:`architecture`; heads: 4 for "gpt2", else 1.
    curriculum
        Coordinates and examples by step.
    seed
        Of the initial weights and of the prompts.
    settings
        Other settings of :class:`clew.train.Trainer`: progress, directory, held_out, …

    Raises ConfigError, and TrainingError where the loss is not finite.

    Example
    -------
    >>> from clew.regression import learners, tasks
    >>> setting = tasks.dense(d=2)
    >>> learner = learners.train(setting, n=4, kind="linear", n_layers=1, steps=20, batch=16)
    >>> learner.predict(*[getattr(setting.sample(3, 4), name) for name in "Xy"]).shape
    (3, 4)
    """
    seed = check_seed(seed)
    check_type(Setting, "a Setting, such as tasks.dense(d=5)", setting=setting)
    check_numbers(lr=lr)
    known = list(inspect.signature(Trainer).parameters)
    if unknown := [name for name in settings if name not in known]:
        raise ConfigError(f"train does not take {', '.join(unknown)}; a Trainer's settings are {', '.join(known)}")
    n_heads = n_heads if n_heads is not None else 4 if kind == "gpt2" else 1
    config = architecture(kind, setting.d, _whole("n", n, 1), n_layers, width, n_heads)
    model = initial(config, seed)
    joined = kind != "gpt2"
    stream = Stream(setting, n + 1 if joined else n, "joined" if joined else "interleaved", curriculum, seed)
    steps = _whole("steps", steps, 1)
    rate = cosine(lr, steps, max(1, steps // 10) if steps > 1 else 0, lr / 10)
    own: dict[str, Any] = {"lr": rate, "weight_decay": 0.0, "clip": clip, "seed": seed, "progress": False}
    trainer = Trainer(model, stream, steps, batch, **(own | settings))
    curve = trainer.run()
    record = dict(
        setting=setting.name, d=setting.d, n=n, noise_var=setting.noise_var, kind=kind, n_layers=n_layers,
        width=config.d_model, n_heads=n_heads, steps=steps, batch=batch, lr=lr, seed=seed, parameters=model.n_params,
    )  # fmt: skip
    return Learner(model, kind, setting.d, n, curve, record)


# ---- Training in closed form ----------------------------------------------------------------------------------------


def attention_features(prompts: Prompts) -> Float:
    """H = x_q [(d/l) Σ y_i x_iᵀ, (1/l) Σ y_i²] of every prompt, the last example asking [batch, d, d + 1] (Lu et al.).

    Raises ConfigError for prompts of one example.
    """
    x, y = read_prompts(prompts)
    if x.shape[1] < 2:
        raise ConfigError("prompts of 1 example: at least 2, the last of which asks")
    d, length = x.shape[2], x.shape[1] - 1
    moments = d / length * np.einsum("bni,bn->bi", x[:, :-1], y[:, :-1])
    squares = np.square(y[:, :-1]).mean(axis=1, keepdims=True)
    seen = np.concatenate([moments, squares], axis=1)
    return np.asarray(prompts.queries[:, -1, :, None] * seen[:, None, :], np.float64)


def attention_weights(prompts: Prompts, lam: float) -> Float:
    """Γ [d, d + 1] that makes Σ (y_q − ⟨Γ, H⟩)² + (n/d) lam ‖Γ‖² least over the n prompts (Lu et al.)."""
    h = attention_features(prompts)
    n, d = len(h), h.shape[1]
    flat, penalty = h.reshape(n, -1), _number("lam", lam) * n / d
    gram = flat.T @ flat + penalty * np.eye(flat.shape[1])
    wanted = prompts.y[:, -1] if prompts.fq is None else prompts.fq[:, -1]
    return np.asarray(np.linalg.lstsq(gram, flat.T @ wanted, rcond=None)[0].reshape(h.shape[1:]))


def fit_attention(prompts: Prompts, lam: float) -> Construction:
    """One layer of linear attention, pretrained in closed form by ridge regression over prompts (Lu et al. 2024).

    Each prompt's last example is the query and what it should give. The result is a transformer:
    `.fit_predict(X, y, Xq)`, `.model`.

    Raises ConfigError for a negative lam and prompts of one example.

    Example
    -------
    >>> from clew.regression import learners, tasks
    >>> built = learners.fit_attention(tasks.normalised(d=3).sample(200, 9, seed=0), lam=1e-3)
    >>> new = tasks.normalised(d=3).sample(2, 9, seed=1)
    >>> built.fit_predict(new.X[:, :8], new.y[:, :8], new.X[:, 8:]).shape
    (2, 1)
    """
    return attention(attention_weights(prompts, lam))


# ---- By position ----------------------------------------------------------------------------------------------------


def _mean(values: Float) -> tuple[Float, Float]:
    """Mean over the first axis and its standard error."""
    return values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(len(values))


def _check_learner(learner: Learner, prompts: Prompts, least: int = 1) -> None:
    """Raises ConfigError for what is no learner or no prompts, and for fewer than `least` of these."""
    check_type(Learner, "a Learner, such as train() gives", learner=learner)
    read_prompts(prompts)
    if len(prompts) < least:
        raise ConfigError(f"{len(prompts)} prompts, at least {least} are needed")


def _solved(solvers: Mapping[str, Solver], prompts: Prompts) -> dict[str, Float]:
    check_type(Mapping, "a mapping from names to functions of (X, y)", solvers=solvers)
    if not solvers:
        raise ConfigError("solvers is empty: nothing to compare with")
    out = {}
    for name, solver in solvers.items():
        if not callable(solver):
            raise ConfigError(f"solver {name}: a function of (X, y), not {type(solver).__name__}")
        values = finite_array(solver(prompts.X, prompts.y), f"solver {name}: predictions")
        if values.shape != prompts.y.shape:
            raise ShapeError(f"solver {name}: predictions {list(values.shape)}, expected {list(prompts.y.shape)}")
        out[name] = values
    return out


@dataclass(frozen=True)
class Comparison:
    """A learner beside solvers on the same prompts, by position: the number of examples before the query."""

    d: int
    errors: dict[str, Float]
    """Squared error against the noise-free label, by d, of "model" and of each solver [n]."""
    distances: dict[str, Float]
    """Squared distance of the model's predictions to each solver's, by d [n] (Raventós et al.: Δ by position)."""
    standard_errors: dict[str, Float]
    """Of `distances`, over prompts [n]."""

    @property
    def closest(self) -> list[str]:
        """The solver whose predictions are nearest, by position."""
        names = list(self.distances)
        return [names[i] for i in np.argmin(np.stack([self.distances[name] for name in names]), axis=0)]

    @property
    def total(self) -> dict[str, float]:
        """Δ to each solver: the mean over positions."""
        return {name: float(values.mean()) for name, values in self.distances.items()}

    def __repr__(self) -> str:
        n = len(self.errors["model"])
        rows = ["examples before   " + " ".join(f"{i:>7}" for i in range(n))]
        rows += [f"error {name:<11} " + " ".join(f"{v:7.4f}" for v in e) for name, e in self.errors.items()]
        rows += [f"to {name:<14} " + " ".join(f"{v:7.4f}" for v in e) for name, e in self.distances.items()]
        return "\n".join(rows)


def compare(learner: Learner, prompts: Prompts, solvers: Mapping[str, Solver]) -> Comparison:
    """Which solver a learner follows, by position.

    solvers: name → function of X [batch, n, d], y [batch, n] that gives all-prefix predictions [batch, n].

    Raises ShapeError, ConfigError.
    """
    _check_learner(learner, prompts, least=2)
    solved = _solved(solvers, prompts)
    own = learner.predict(prompts.X, prompts.y)
    d = learner.d
    errors = {name: np.square(p - prompts.f).mean(axis=0) / d for name, p in {"model": own, **solved}.items()}
    pairs = {name: _mean(np.square(own - p) / d) for name, p in solved.items()}
    return Comparison(d, errors, {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()})


# ---- By layer -------------------------------------------------------------------------------------------------------


def by_layer(learner: Learner, prompts: Prompts, solvers: Mapping[str, Solver]) -> dict[str, Float]:
    """Squared distance by d of what each layer's stream reads as to each solver: name → [n_layers + 1, n]."""
    _check_learner(learner, prompts)
    solved = _solved(solvers, prompts)
    own = learner.layers(prompts.X, prompts.y)
    return {name: np.square(own - p).mean(axis=1) / learner.d for name, p in solved.items()}


@dataclass(frozen=True)
class Steps:
    """How like k steps of gradient descent each layer reads: see :func:`gradient_steps`."""

    distance: Float
    """[n_layers + 1, steps + 1], 0: a perfect likeness, 1: no more than predicting 0 does"""
    rate: Float
    """Step size of the likest descent [n_layers + 1, steps + 1]; 0 for no step"""

    @property
    def likest(self) -> NDArray[np.int64]:
        """Number of steps that each layer is likest to [n_layers + 1]."""
        return np.asarray(self.distance.argmin(axis=1))

    def __repr__(self) -> str:
        rows = ["layer  likest steps  distance   rate"]
        rows += [
            f"{layer:>5} {k:>13} {self.distance[layer, k]:>9.4f} {self.rate[layer, k]:>6.3f}"
            for layer, k in enumerate(self.likest)
        ]
        return "\n".join(rows)


def gradient_steps(learner: Learner, prompts: Prompts, steps: int = 6, rates: ArrayLike | None = None) -> Steps:
    """Compares each layer's reading for the last query with 0 … `steps` steps of gradient descent, at the best rate.

    Distance Σ (ŷ − ŷ_GD)² / Σ (ŷ² + ŷ_GD²), over prompts; rates: step sizes that are tried, default 60 from 0.01 to 2.

    Raises ConfigError.
    """
    steps = _whole("steps", steps, 1)
    _check_learner(learner, prompts)
    grid = np.geomspace(0.01, 2, 60) if rates is None else np.atleast_1d(finite_array(rates, "rates"))
    if grid.ndim != 1 or not len(grid):
        raise ShapeError(f"rates {list(grid.shape)}: one step size or a list of them, [n]")
    x, y, q = prompts.X[:, :-1], prompts.y[:, :-1], prompts.X[:, -1]
    read = learner.layers(prompts.X, prompts.y)[:, :, -1]
    k = max(1, x.shape[1])
    gram, moment = np.einsum("bni,bnj->bij", x, x) / k, np.einsum("bni,bn->bi", x, y) / k
    best = np.full((len(read), steps + 1), np.inf)
    rate_of = np.zeros_like(best)
    best[:, 0] = np.where(np.square(read).sum(axis=1) > 0, 1.0, 0.0)
    for rate in grid:
        w = np.zeros_like(moment)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(1, steps + 1):
                w = w - rate * (np.einsum("bij,bj->bi", gram, w) - moment)
                wanted = np.einsum("bd,bd->b", w, q)
                distance = np.square(read - wanted).sum(axis=1) / np.square(np.stack([read, wanted + 0 * read])).sum(
                    (0, 2)
                )
                nearer = distance < best[:, step]
                best[nearer, step], rate_of[nearer, step] = distance[nearer], rate
    return Steps(best, rate_of)


@dataclass(frozen=True)
class Likeness:
    """A learner's weight vector ∂ŷ/∂x beside a solver's, for the last query (as von Oswald et al. compare them)."""

    cosine: float
    """Mean cosine of the angle between them."""
    distance: float
    """Mean ‖∂ŷ/∂x − w‖."""
    prediction: float
    """Mean |ŷ − w·x|."""


def likeness(learner: Learner, prompts: Prompts, weights: ArrayLike) -> Likeness:
    """Compares a learner with weight vectors w [batch, d] of a solver, each fitted to all examples but the last.

    Raises ShapeError naming both shapes.
    """
    _check_learner(learner, prompts)
    w = finite_array(weights, "weights")
    if w.shape != (len(prompts), learner.d):
        raise ShapeError(f"weights: {list(w.shape)}, expected {[len(prompts), learner.d]}")
    own = learner.sensitivity(prompts.X, prompts.y)
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(w, axis=1)
    cosine = np.einsum("bd,bd->b", own, w) / np.where(lengths > 0, lengths, 1)
    said = learner.predict(prompts.X, prompts.y)[:, -1]
    apart = np.abs(said - np.einsum("bd,bd->b", w, prompts.X[:, -1]))
    return Likeness(float(cosine.mean()), float(np.linalg.norm(own - w, axis=1).mean()), float(apart.mean()))


def second_moments(X: ArrayLike, position: int = -1) -> Float:  # noqa: N803
    """(1/k) XᵀX of the k examples before a position, its upper triangle [batch, d (d + 1) / 2]: a target of `probe`.

    Raises ShapeError for another rank, ConfigError for NaN and for a position that X [batch, n, d] does not have.
    """
    x = finite_array(X, "X")
    if x.ndim != 3:
        raise ShapeError(f"X {list(x.shape)}: [batch, n, d]")
    x = x[:, : _place(position, x.shape[1])]
    gram = np.einsum("bni,bnj->bij", x, x) / max(1, x.shape[1])
    rows, columns = np.triu_indices(x.shape[2])
    return np.asarray(gram[:, rows, columns])


def _place(position: int, n: int) -> int:
    """A position from 0, given one that may count from the end; raises ConfigError."""
    if not -n <= whole(position, "position") < n:
        raise ConfigError(f"position = {position}: there are {n} examples")
    return position % n


def probe(
    learner: Learner, prompts: Prompts, targets: Mapping[str, ArrayLike], position: int = -1, penalty: float = 1e-3
) -> dict[str, Float]:
    """What can be read linearly off each layer where the model answers: name → share of variance [n_layers + 1].

    A ridge regression from the residual stream to each target [batch, m] (w, the entries of XᵀX, a solver's
    prediction), fitted on one half of the prompts; R² on the other half, over all m values together. penalty: times the
    features' mean variance. A target that never varies is refused.

    Raises ShapeError, ConfigError.
    """
    _check_learner(learner, prompts, least=4)
    half = len(prompts) // 2
    penalty = _number("penalty", penalty)
    check_type(Mapping, "a mapping from names to arrays [batch, m]", targets=targets)
    if not targets:
        raise ConfigError("targets is empty: nothing to read off")
    position = _place(position, np.shape(prompts.y)[1])
    wanted = {name: finite_array(value, f"target {name}") for name, value in targets.items()}
    for name, value in wanted.items():
        if value.ndim != 2 or len(value) != len(prompts):
            raise ShapeError(f"target {name}: {list(value.shape)}, expected [{len(prompts)}, m]")
        if not np.square(value - value[:half].mean(axis=0))[half:].sum() > 0:
            raise ConfigError(f"target {name} does not vary")
    stream = learner.residuals(prompts.X, prompts.y)[:, :, position].astype(np.float64)
    out: dict[str, list[float]] = {name: [] for name in wanted}
    for features in stream:
        centre = features[:half].mean(axis=0)
        a, b = features[:half] - centre, features[half:] - centre
        gram = a.T @ a
        solver = np.linalg.pinv(gram + penalty * np.trace(gram) / len(gram) * np.eye(len(gram)), hermitian=True) @ a.T
        for name, value in wanted.items():
            mean = value[:half].mean(axis=0)
            rest = value[half:] - mean - b @ (solver @ (value[:half] - mean))
            out[name].append(1 - np.square(rest).sum() / np.square(value[half:] - mean).sum())
    return {name: np.array(values) for name, values in out.items()}


# ---- By the number of tasks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diversity:
    """Learners trained on M tasks each, measured on tasks that they may never have seen: see :func:`diversity`."""

    rows: list[dict[str, Any]]
    """M, seed, and Δ with its standard error to dMMSE and to ridge: `dmmse`, `dmmse_se`, `ridge`, `ridge_se` on new
    tasks, with the prefix `old_` on those of training; `apart`: Δ between the two; `loss`: of the last steps."""
    record: dict[str, Any]

    @property
    def threshold(self) -> int | None:
        """The least M from which on every learner is nearer to ridge than to dMMSE on new tasks; None: no such."""
        finite = sorted({row["M"] for row in self.rows if row["M"] is not None})
        nearer = {m: all(r["ridge"] < r["dmmse"] for r in self.rows if r["M"] == m) for m in finite}
        return next((m for m in finite if all(nearer[k] for k in finite if k >= m)), None)

    def __repr__(self) -> str:
        lines = ["     M seed | new tasks: to dMMSE   to ridge  dMMSE–ridge | tasks of training: to dMMSE   to ridge"]
        for r in self.rows:
            to = [f"{r[k]:10.4f}" if r[k] is not None else "         –" for k in
                  ("dmmse", "ridge", "apart", "old_dmmse", "old_ridge")]  # fmt: skip
            lines.append(f"{r['M'] or '∞':>6} {r['seed']:>4} |           {to[0]} {to[1]}   {to[2]} |                   "
                         f"{to[3]} {to[4]}")  # fmt: skip
        return "\n".join(lines)


def diversity(
    M: Sequence[int | None] = (4, 32, 256, None),  # noqa: N803
    *,
    d: int = 4,
    K: int = 8,  # noqa: N803
    noise_var: float = 0.25,
    steps: int = 2000,
    seeds: Iterable[int] = (0,),
    prompts: int = 1024,
    done: Callable[[dict[str, Any]], object] | None = None,
    **settings: Any,
) -> Diversity:
    """Trains a learner for each number of tasks and seed, and asks whose predictions it makes (Raventós et al. 2023).

    Δ = mean over positions of E (ŷ − ŷ_solver)² / d, on `prompts` prompts of tasks drawn anew from N(0, I) ("new") and
    of the M tasks ("old"). dMMSE is the best predictor for the M tasks, ridge with λ = noise_var for all. With a small
    model and few steps a learner may have reached neither: then both distances are large, and the rows say so.

    Parameters
    ----------
    M
        Numbers of tasks; None: a new one in every prompt.
    done
        Called with each row as soon as it is measured.
    settings
        Of :func:`train`: n_layers, width, batch, lr, …

    Example
    -------
    >>> from clew.regression import learners
    >>> learners.diversity((2,), d=2, K=3, steps=5, prompts=8, width=8, n_heads=2).rows[0]["M"]
    2
    """
    from .. import regression

    check_counts(2, prompts=prompts)  # one has no standard error
    check_type(Iterable, "whole numbers", seeds=seeds)
    check_type(Sequence, "numbers of tasks, None for any", M=M)
    if done is not None and not callable(done):
        raise ConfigError(f"done: a function of a row, not {type(done).__name__}")
    seeds = [check_seed(seed) for seed in seeds]
    if not len(M) or not seeds:
        raise ConfigError(f"M = {list(M)!r:.60} and seeds = {seeds}: at least one of each")
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for seed in seeds:
        fresh = tasks.mixture(d, None, noise_var).sample(prompts, K, seed=seed + 10_000)
        ridge = np.asarray(regression.ridge(fresh.X, fresh.y, noise_var))
        for m in M:
            setting = tasks.mixture(d, m, noise_var, seed)
            learner = train(setting, K, steps=steps, seed=seed, **settings)
            record = {**learner.record, "setting": "mixture", "prompts": prompts}
            row: dict[str, Any] = {"M": m, "seed": seed}
            row.update(_distances("", learner.predict(fresh.X, fresh.y), fresh, ridge, setting))
            row["loss"] = float(learner.curve.losses[-max(1, steps // 20) :].mean())
            if m is not None:
                old = setting.sample(prompts, K, seed=seed + 20_000)
                own = learner.predict(old.X, old.y)
                row.update(_distances("old_", own, old, np.asarray(regression.ridge(old.X, old.y, noise_var)), setting))
            else:
                row.update(dict.fromkeys(("old_dmmse", "old_dmmse_se", "old_ridge", "old_ridge_se", "old_apart")))
            rows.append(row)
            if done is not None:
                done(row)
    return Diversity(rows, record)


def _distances(prefix: str, own: Float, prompts: Prompts, ridge: Float, setting: Setting) -> dict[str, float | None]:
    """Δ of predictions [batch, n] to ridge, and to dMMSE where there are finitely many tasks."""
    from .. import regression

    def apart(a: Float, b: Float) -> tuple[float, float]:
        value, error = _mean(np.square(a - b).mean(axis=1) / setting.d)
        return float(value), float(error)

    out: dict[str, float | None] = {}
    out[f"{prefix}ridge"], out[f"{prefix}ridge_se"] = apart(own, ridge)
    if isinstance(setting.target, tasks.FiniteTasks):
        dmmse = np.asarray(regression.dmmse(prompts.X, prompts.y, setting.target.tasks, setting.noise_var))
        out[f"{prefix}dmmse"], out[f"{prefix}dmmse_se"] = apart(own, dmmse)
        out[f"{prefix}apart"], _ = apart(ridge, dmmse)
    else:
        out.update(dict.fromkeys((f"{prefix}dmmse", f"{prefix}dmmse_se", f"{prefix}apart")))
    return out
