"""The logit lens: what the residual stream after each layer would predict, were it the last; and the tuned lens.

The tuned lens (Belrose et al. 2023, arXiv:2303.08112) first moves the stream of each layer to where the last layer's
would be, by an affine map learnt for that layer.

>>> import clew
>>> from clew.lens import TunedLens, logit_lens
>>> model = clew.load("stories260K")
>>> lens = logit_lens(model, [1, 403, 407, 261, 378])
>>> lens.ranks.shape, lens.top_tokens.shape
((5, 1, 5), (5, 1, 5, 5))
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import norm
from .attribution import check_same_sizes
from .errors import ConfigError, LoadError, ShapeError, SiteError
from .inputs import (
    as_array,
    check_choice,
    check_numbers,
    check_path,
    in_precision,
    real_array,
    real_numbers,
    selected,
    sliced,
)
from .loaders.safetensors import FLOATS, SafetensorsFile, write_file
from .model import Model, check_model
from .run import Run, check_run
from .tables import lens_lines
from .weights import whole

Array = NDArray[Any]

_BLOCK = 1 << 22  # logits that are in memory at once while the statistics are made


def _residuals(model: Model, resid: ArrayLike) -> Array:
    """Vectors [..., d_model] as an array, or a ShapeError that says what came instead."""
    x = real_numbers(resid, "residuals")
    if x.ndim < 1 or x.shape[-1] != model.config.d_model:
        raise ShapeError(f"residuals of shape {list(x.shape)}: the last axis must be d_model = {model.config.d_model}")
    return x


def unembed(model: Model, resid: ArrayLike) -> Array:
    """Logits [..., d_vocab] of residual vectors [..., d_model]: the model's final norm, unembedding and soft-cap.

    The norm is computed in float64, the product in the model's dtype, which is the dtype of the result.
    Raises ShapeError when the last axis is not d_model, or for what is no real number.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture="resid_post")
    >>> float(abs(unembed(model, run["resid_post", -1]) - run.logits).max()) < 1e-4
    True
    """
    config = model.config
    normed = norm.normalise(model, _residuals(model, resid))
    logits = np.asarray(normed.astype(model.dtype) @ model.weights["unembed.W_U"])
    if "unembed.b_U" in model.weights:
        logits += model.weights["unembed.b_U"]
    if config.output_logits_soft_cap:
        cap = model.dtype.type(config.output_logits_soft_cap)
        np.divide(logits, cap, out=logits)
        np.tanh(logits, out=logits)
        np.multiply(logits, cap, out=logits)
    return logits


def _d_vocab(model: Model) -> int:
    """Number of logits; a model may read another vocabulary than it writes."""
    return int(model.weights["unembed.W_U"].shape[1])


def _log_softmax(logits: Array) -> Array:
    """Natural log-probabilities along the last axis; the sum is taken in float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(logits.dtype))


class LogitLens:
    """Predictions from the residual stream after some layers; made by :func:`logit_lens`.

    Statistics are made in blocks of positions, so that [layer, batch, pos, d_vocab] is never in memory unless
    `.logits` or `.log_probs` is asked for. Positions that a shorter sequence lacks hold -1 (integers) or NaN.
    """

    layers: tuple[int, ...]
    """Numbers of the layers, the first axis of everything here."""
    tokens: NDArray[np.int32] | None
    """The token at each position [batch, pos], -1 for none; None when it is not known."""
    targets: NDArray[np.int64] | None
    """The token that follows each position [batch, pos], -1 where none does; None when it is not known."""
    top_tokens: NDArray[np.int64]
    """The likeliest tokens [layer, batch, pos, k], likeliest first."""
    top_probs: Array
    """Their probabilities [layer, batch, pos, k]."""
    entropy: Array
    """Entropy of each prediction, nats [layer, batch, pos]."""

    def __init__(
        self,
        model: Model,
        resid: Array,
        layers: Sequence[int],
        real: Array,
        tokens: Array | None,
        targets: Array | None,
        top_k: int,
    ) -> None:
        self.model = model
        self.layers = tuple(layers)
        self.tokens = tokens
        self.targets = targets
        self._resid = resid
        self._real = real  # [batch, pos]: positions that hold a token
        shape = resid.shape[:-1]
        self.top_tokens = np.full((*shape, top_k), -1, np.int64)
        self.top_probs = np.full((*shape, top_k), np.nan, model.dtype)
        self.entropy = np.full(shape, np.nan, model.dtype)
        self._ranks = np.full(shape, -1, np.int64)
        self._loss = np.full(shape, np.nan, model.dtype)
        for layer, seq, pos, logits in self._blocks():
            at = (np.full(len(seq), layer), seq, pos)
            broken = np.flatnonzero(~np.isfinite(logits.max(-1)))  # a NaN is the greatest; -inf is a token's own affair
            if broken.size:
                raise ConfigError(
                    f"the logits of sequence {seq[broken[0]]} after layer {layers[layer]} hold NaN or infinity: "
                    "no token can be ranked"
                )
            log_probs = _log_softmax(logits)
            self.entropy[at] = -(np.exp(log_probs) * log_probs).sum(-1)
            # a stable order: of equal logits the smaller id comes first
            best = np.argpartition(-logits, top_k - 1, axis=-1)[:, :top_k] if top_k < logits.shape[-1] else None
            if best is None:
                best = np.broadcast_to(np.arange(logits.shape[-1]), logits.shape)
            best = np.sort(best, axis=-1)
            order = np.argsort(-np.take_along_axis(logits, best, -1), axis=-1, kind="stable")
            best = np.take_along_axis(best, order, -1)
            self.top_tokens[at] = best
            self.top_probs[at] = np.exp(np.take_along_axis(log_probs, best, -1))
            if targets is not None:
                known = targets[seq, pos] >= 0
                wanted = targets[seq, pos][known][:, None]
                here = tuple(axis[known] for axis in at)
                own = np.take_along_axis(logits[known], wanted, -1)
                self._ranks[here] = (logits[known] > own).sum(-1)
                self._loss[here] = -np.take_along_axis(log_probs[known], wanted, -1)[:, 0]

    def _blocks(self) -> Iterator[tuple[int, Array, Array, Array]]:
        """(row of layers, sequences, positions, logits [rows, d_vocab]) in bounded pieces."""
        seq, pos = np.nonzero(self._real)
        rows = max(1, _BLOCK // self.model.config.d_vocab_out)
        for layer in range(len(self.layers)):
            for start in range(0, len(seq), rows):
                s, p = seq[start : start + rows], pos[start : start + rows]
                with np.errstate(invalid="ignore"):  # what comes of infinities is looked for in the logits
                    logits = unembed(self.model, self._resid[layer, s, p])
                yield layer, s, p, logits

    @functools.cached_property
    def logits(self) -> Array:
        """Logits [layer, batch, pos, d_vocab], made and kept when first asked for; zero where there is no token."""
        out = np.zeros((*self._resid.shape[:-1], self.model.config.d_vocab_out), self.model.dtype)
        for layer, seq, pos, logits in self._blocks():
            out[layer, seq, pos] = logits
        return out

    @property
    def log_probs(self) -> Array:
        """Natural log-probabilities [layer, batch, pos, d_vocab], made from the logits each time."""
        return _log_softmax(self.logits)

    def _needs_targets(self, what: str) -> None:
        if self.targets is None:
            raise ConfigError(
                f"{what}: the next tokens are not known (the run was made from embeddings or captured some positions "
                "only, or the model reads and writes different vocabularies): give targets= to logit_lens"
            )

    @property
    def ranks(self) -> NDArray[np.int64]:
        """How many tokens are likelier than the one that follows [layer, batch, pos]; 0: the first guess is right.

        -1 where nothing follows. Raises ConfigError when the next tokens are not known.
        """
        self._needs_targets("ranks")
        return self._ranks

    @property
    def loss(self) -> Array:
        """Negative log-probability of the token that follows, nats [layer, batch, pos]; NaN where nothing follows.

        Raises ConfigError when the next tokens are not known.
        """
        self._needs_targets("loss")
        return self._loss

    def _columns(self, positions: Any, batch: int) -> tuple[int, Array]:
        """A sequence's number, and those of the positions that hold a token of it; None: all."""
        n_batch, n_pos = self._real.shape
        if not -n_batch <= whole(batch, "batch") < n_batch:
            raise ShapeError(f"batch = {batch}: the lens has {n_batch} sequence{'s' if n_batch != 1 else ''}")
        which = [positions] if isinstance(positions, int | np.integer) else positions
        there = f"the lens has positions 0 to {n_pos - 1}"
        chosen = selected(slice(None) if which is None else which, n_pos, "positions", there)
        return int(batch), chosen[self._real[batch, chosen]]

    def table(self, positions: int | Sequence[int] | slice | None = None, batch: int = 0) -> str:
        """The likeliest next token after each layer as text, with its share of the probability; `*`: it comes next.

        positions: one or more of one sequence; None: all that hold a token. Raises ShapeError for what is not there,
        ConfigError for a batch that is no whole number.

        >>> import clew
        >>> lens = logit_lens(clew.load("stories260K"), [1, 403, 407, 261, 378], layers=[0, 4])
        >>> print(lens.table([1, 2]))
        token       follows     layer 0         layer 4
        ────────────────────────────────────────────────────────
        #403        #407        #403      100%  #407       98%*
        #407        #261        #407      100%  #261       99%*
        """
        batch, columns = self._columns(positions, batch)
        return "\n".join(lens_lines(self, columns.tolist(), batch))

    def __repr__(self) -> str:
        layers, batch, pos = self._resid.shape[:3]
        lines = [f"LogitLens of {layers} layers, {batch} × {pos} positions"]
        known = self.targets is not None and bool((self.targets >= 0).any())
        lines.append("  layer  entropy" + ("     loss  median rank (first: 0)  first guess right" if known else ""))
        for row, layer in enumerate(self.layers):
            line = f"  {layer:>5}  {np.nanmean(self.entropy[row]):7.3f}"
            if known:
                ranks = self._ranks[row][self._ranks[row] >= 0]
                line += f"  {np.nanmean(self._loss[row]):7.3f}  {np.median(ranks):22.0f}  {(ranks == 0).mean():17.0%}"
            lines.append(line)
        return "\n".join(lines)


def logit_lens(
    model: Model,
    run_or_tokens: Any,
    layers: Sequence[int] | None = None,
    *,
    targets: ArrayLike | None = None,
    top_k: int = 5,
) -> LogitLens:
    """Reads the residual stream after each layer through the model's own final norm and unembedding.

    Parameters
    ----------
    run_or_tokens
        A run that captured `resid_post`, or anything that `model.run` takes.
    layers
        Numbers of the layers, negative ones from the end; None: all (of a run: all that it captured). The last layer's
        predictions are the model's own.
    targets
        The token that follows each position, integers [batch, pos], -1 for none; None: the next token of the prompt.
        A run that captured some positions only (`positions=`) needs them for `ranks` and `loss`.
    top_k
        How many of the likeliest tokens to keep; all of a smaller vocabulary.

    Raises
    ------
    SiteError
        A layer that does not exist, or that the run did not capture.
    ShapeError
        Targets of another shape or dtype; a run of a model of other sizes.
    ConfigError
        `top_k` is less than 1; a model with `d_out`, whose outputs are vectors and no logits; gradients or tangents in
        place of a run; logits that are NaN or infinite.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> lens = logit_lens(model, [1, 403, 407, 261, 378], layers=[0, -1])
    >>> lens.layers, lens.logits.shape
    ((0, 4), (2, 1, 5, 512))
    """
    return _look(model, run_or_tokens, layers, targets, top_k, None)


def _numbered(model: Model, layers: Any) -> tuple[int, ...]:
    """Layers by number, negative ones counted from the end."""
    if isinstance(layers, slice):
        return tuple(sliced(layers, model.config.n_layers, "layers").tolist())
    given = layers if isinstance(layers, Iterable) and not isinstance(layers, str) else [layers]
    return tuple(model.sites().layer(whole(i, "layer"), f"layer {i}") for i in given)


def _needs_logits(model: Model, what: str) -> None:
    if model.config.d_out is not None:
        raise ConfigError(f"{what}: this model writes vectors, d_out = {model.config.d_out}, and has no probabilities")


def _look(
    model: Model,
    run_or_tokens: Any,
    layers: Sequence[int] | None,
    targets: ArrayLike | None,
    top_k: int,
    translate: Callable[[Array, int], Array] | None,
) -> LogitLens:
    """The logit lens; with `translate` (residuals, layer) of what that gives."""
    check_model(model)
    _needs_logits(model, "logit lens")
    n, v = model.config.n_layers, model.config.d_vocab_out
    if whole(top_k, "top_k") < 1:
        raise ConfigError(f"top_k = {top_k}: at least 1")
    if isinstance(run_or_tokens, Run):
        run = run_or_tokens
        check_run(run)
        check_same_sizes(run, model)
        if "resid_post" not in run and not any(name.endswith(".hook_resid_post") for name in run):
            raise SiteError("the run holds no resid_post: make it with capture='resid_post'")
        captured = run.layers("resid_post")
        wanted = captured if layers is None else _numbered(model, layers)
    else:
        wanted = tuple(range(n)) if layers is None else _numbered(model, layers)
        if wanted:
            run = model.run(run_or_tokens, capture=[("resid_post", i) for i in wanted], logits=None)
            captured = run.layers("resid_post")
    if not wanted:
        raise SiteError("no layers to look at")
    missing = [i for i in wanted if i not in captured]
    if missing:
        raise SiteError(f"the run did not capture resid_post of layer {', '.join(map(str, missing))}")
    stack = run.stack("resid_post")
    if wanted != captured:
        stack = stack[[captured.index(i) for i in wanted]]
    if translate is not None:
        stack = np.stack([translate(resid, layer) for resid, layer in zip(stack, wanted, strict=True)])
    batch, pos = stack.shape[1:3]
    kept = run.positions
    entire = kept is None or (len(kept) == int(run.lengths.max()) and bool((kept == np.arange(pos)).all()))
    real = run._real()
    following: Array | None = None
    if targets is not None:
        following = as_array(targets, "targets")
        if following.shape != (batch, pos) or following.dtype.kind not in "iu":
            raise ShapeError(
                f"targets must be integers [{batch}, {pos}], not {following.dtype} {list(following.shape)}"
            )
        outside = following[(following >= v) | (following < -1)]
        if outside.size:
            raise ShapeError(f"targets: {int(outside[0])} is no token; the vocabulary has ids 0 to {v - 1}, -1 is none")
        following = np.where(real, following, -1).astype(np.int64)
    elif run.tokens is not None and entire and v == model.config.d_vocab:
        following = np.full((batch, pos), -1, np.int64)
        following[:, :-1] = run.tokens[:, 1:]
    return LogitLens(model, stack, wanted, real, run.tokens if entire else None, following, min(top_k, v))


# ---- The tuned lens -------------------------------------------------------------------------------------------------


def _translator(value: ArrayLike, model: Model, name: str) -> Array:
    """Weights or biases of the maps in the model's dtype, a copy, or an error that says what came instead."""
    array = in_precision(real_array(value, f"TunedLens: {name}"), model.dtype, f"TunedLens: {name}")
    if not np.isfinite(array).all():
        raise ConfigError(f"TunedLens: {name} holds NaN or infinity")
    return array


class TunedLens:
    """Affine maps, one for each layer, from the residual stream after it to the stream that the unembedding reads.

    Made by :meth:`fit` or :meth:`load`. The last layer's map is the identity.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> prompts = np.random.default_rng(0).integers(3, 512, (8, 64))
    >>> tuned = TunedLens.fit(model, [prompts[:4], prompts[4:]])
    >>> run = model.run(prompts[0, :5], capture="resid_post")
    >>> tuned.logits(run, 2).shape, tuned.lens(run).top_tokens.shape
    ((1, 5, 512), (5, 1, 5, 5))
    """

    def __init__(self, model: Model, weight: ArrayLike, bias: ArrayLike, losses: ArrayLike = ()) -> None:
        check_model(model)
        n, d = model.config.n_layers, model.config.d_model
        self.model = model
        self.weight: Array = _translator(weight, model, "weight")
        """x @ weight + bias is the translated stream: [n_layers, d_model, d_model], in the model's dtype."""
        self.bias: Array = _translator(bias, model, "bias")
        """[n_layers, d_model]"""
        if self.weight.shape != (n, d, d) or self.bias.shape != (n, d):
            raise ShapeError(
                f"TunedLens: weight {list(self.weight.shape)} and bias {list(self.bias.shape)}; "
                f"the model needs {[n, d, d]} and {[n, d]}"
            )
        steps = real_array(losses, "TunedLens: losses")
        if steps.size and (steps.ndim > 2 or steps.shape[-1] != n):
            raise ShapeError(f"TunedLens: losses {list(steps.shape)}; expected [step, {n}]")
        self.losses: Array = steps.reshape(-1, n) if steps.size else np.zeros((0, n))
        """Mean divergence of each batch by layer before its step [step, n_layers], nats; empty without steps."""

    @classmethod
    def fit(
        cls,
        model: Model,
        batches: Iterable[Any],
        method: Literal["ridge", "kl"] = "ridge",
        *,
        ridge: float = 1e-2,
        steps: int = 250,
        lr: float = 0.5,
    ) -> TunedLens:
        """Learns the maps from what the model computes on some text; deterministic.

        Parameters
        ----------
        batches
            An iterable of whatever `model.run` takes, one run each. "ridge" goes through it once and keeps nothing;
            "kl" needs it again and keeps the prompts.
        method
            "ridge": ridge regression of the last layer's stream on each layer's, exact, from normal equations summed
            in float64; a position counts by 1 / (scale of the final norm)², which is what the norm makes of errors.
            "kl": from there on, Adam on the mean Kullback-Leibler divergence from the model's own predictions to the
            lens's, the tuned lens's objective, a batch a step.
        ridge
            Pull towards the identity, relative to the mean variance of the stream's directions.
        steps, lr
            Of "kl": number of steps, and the most that the first of them can change a stream, relative to its root mean
            square: Adam's rate is lr / d_model, and falls linearly to 0.

        A translator of d_model² numbers wants many times d_model positions of text like that which it will read.

        Raises
        ------
        ConfigError
            No batches, another method, or numbers out of range; a residual stream that is NaN or infinite.
        TokenError, ShapeError
            A batch that `model.run` does not take.
        """
        check_model(model)
        check_choice(("ridge", "kl"), method=method)
        check_numbers(ridge=ridge, lr=lr)
        if ridge < 0:
            raise ConfigError(f"ridge = {ridge}: a number, at least 0")
        if whole(steps, "steps") < 0 or lr <= 0:
            raise ConfigError(f"steps = {steps}, lr = {lr}: steps at least 0, lr above 0")
        if isinstance(batches, str):
            raise ConfigError("batches: a list of prompts, not one text")
        if not model.config.n_layers:
            raise SiteError("TunedLens: the model has no layers")
        if method == "kl" and not isinstance(batches, Sequence | np.ndarray):
            batches = list(batches)
        weight, bias, mean_square = _ridge(model, batches, ridge)
        if method == "ridge":
            return cls(model, weight, bias)
        losses = _descend(model, batches, weight, bias, steps, lr / model.config.d_model, np.sqrt(mean_square))
        return cls(model, weight, bias, losses)

    def translate(self, resid: ArrayLike, layer: int) -> Array:
        """The stream after `layer` [..., d_model] as it would be after the last; the last layer's is as it was.

        Raises SiteError for a layer that is not there, ShapeError when the last axis is not d_model or for what is no
        real number.
        """
        layer = self.model.sites().layer(whole(layer, "layer"), f"layer {layer}")
        x = _residuals(self.model, resid)
        if layer == self.model.config.n_layers - 1:
            return x
        return np.asarray(x @ self.weight[layer] + self.bias[layer])

    def logits(self, run_or_resid: Run | ArrayLike, layer: int) -> Array:
        """Logits [..., d_vocab] that the stream after `layer` stands for.

        Takes a run that captured `resid_post` there, or residuals [..., d_model]; errors as :meth:`translate`.
        """
        if isinstance(run_or_resid, Run):
            check_run(run_or_resid)
            check_same_sizes(run_or_resid, self.model)
            run_or_resid = run_or_resid["resid_post", layer]
        return unembed(self.model, self.translate(run_or_resid, layer))

    def lens(
        self,
        run_or_tokens: Any,
        layers: Sequence[int] | None = None,
        *,
        targets: ArrayLike | None = None,
        top_k: int = 5,
    ) -> LogitLens:
        """What :func:`logit_lens` gives, of the translated stream: statistics, table, and figures in `clew.plot`."""
        return _look(self.model, run_or_tokens, layers, targets, top_k, self.translate)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the maps to a safetensors file; :meth:`load` gives the same bits. Raises OSError, ConfigError."""
        check_path(path=path)
        config = self.model.config
        about = {"format": "clew tuned lens", "model_name": config.model_name}
        write_file(path, {"weight": self.weight, "bias": self.bias}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model) -> TunedLens:
        """Reads what :meth:`save` wrote, for the model that it was made for.

        Raises LoadError for another file, or maps that do not fit the model (both shapes); ConfigError.
        """
        check_path(path=path)
        check_model(model)
        file = SafetensorsFile(path)
        if file.metadata.get("format") != "clew tuned lens" or set(file.tensors) != {"weight", "bias"}:
            raise LoadError(f"{path}: no tuned lens")
        n, d = model.config.n_layers, model.config.d_model
        for name, want in (("weight", (n, d, d)), ("bias", (n, d))):
            info = file.tensors[name]
            if info.shape != want or info.dtype not in ("F32", "F64"):
                raise LoadError(f"{path}: {name}: {info.dtype} {list(info.shape)}, the model needs {list(want)}")
        return cls(model, *(file.raw(name).astype(FLOATS[file.tensors[name].dtype]) for name in ("weight", "bias")))

    def __repr__(self) -> str:
        n, d = self.bias.shape
        return f"TunedLens of {n} layers, d_model {d}, for {self.model.config.model_name}"


def _streams(model: Model, batches: Iterable[Any]) -> Iterator[Array]:
    """The stream after every layer at the real positions of each batch [n_layers, rows, d_model]."""
    empty = True
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise ShapeError(f"batches = {batches!r}: expected a list of what model.run takes")
    for batch in batches:
        run = model.run(batch, capture="resid_post", logits=None)
        stack = run.stack("resid_post")
        rows = stack[:, np.arange(stack.shape[2]) < run.lengths[:, None]]
        broken = np.flatnonzero(~np.isfinite(rows).all((1, 2)))
        if broken.size:
            raise ConfigError(f"the residual stream after layer {broken[0]} holds NaN or infinity")
        yield rows
        empty = False
    if empty:
        raise ConfigError("batches is empty: there is no text to learn from")


def _ridge(model: Model, batches: Iterable[Any], ridge: float) -> tuple[Array, Array, Array]:
    """Weights, biases and mean squares of each layer's stream [n_layers]; float64.

    With the last layer's stream y, minimises Σ w ‖x A + b − y‖² + λ ‖A − I‖² for each layer's x: the centred
    covariances give A − I = (Sxx + λ)⁻¹ (Sxy − Sxx).
    """
    n, d = model.config.n_layers, model.config.d_model
    total, shift = 0.0, np.zeros((n, 1, d))
    sums, square, cross = np.zeros((n, d)), np.zeros((n, d, d)), np.zeros((n, d, d))
    for i, stream in enumerate(_streams(model, batches)):
        if i == 0:  # variances are taken around the first batch's means, so that no large sums cancel
            shift = stream.mean(1, keepdims=True, dtype=np.float64)
        last = norm.centre(model.config, stream[-1])
        weights = 1 / norm.scale(model.config, last) ** 2 if norm.is_there(model.config, "ln_final") else 1.0
        root = np.sqrt(np.broadcast_to(weights, (stream.shape[1], 1)))
        end = (stream[-1] - shift[-1]) * root
        total += float((root**2).sum())
        for layer in range(n):
            x = (stream[layer] - shift[layer]) * root
            sums[layer] += (root * x).sum(0)
            square[layer] += x.T @ x
            cross[layer] += x.T @ end
    mean = sums / total
    spread = square / total - mean[:, :, None] * mean[:, None, :]
    toward = cross / total - mean[:, :, None] * mean[-1][None, None, :]
    size = np.trace(spread, axis1=1, axis2=2) / d
    mean = mean + shift[:, 0]
    weight = np.broadcast_to(np.eye(d), (n, d, d)).copy()
    bias = np.zeros((n, d))
    for layer in range(n - 1):
        # a direction that never varies takes no part: the least-norm solution leaves it as it is
        pull = ridge * size[layer] * np.eye(d)
        weight[layer] += np.linalg.lstsq(spread[layer] + pull, toward[layer] - spread[layer], rcond=None)[0]
        bias[layer] = mean[-1] - mean[layer] @ weight[layer]
    return weight, bias, size + np.square(mean).mean(1)


def _divergence(
    model: Model, log_p: Array, x: Array, weight: Array | None, bias: Array | None
) -> tuple[Array, Array, Array]:
    """Divergence [rows] from log-probabilities [rows, d_vocab] to the lens on x [rows, d_model], and its gradients.

    Gradients of the sum over rows by the weight [d_model, d_model] and the bias [d_model]; float64. Without a weight
    (the logit lens) they are empty.
    """
    config, kind = model.config, model.dtype
    y = x.astype(np.float64) if weight is None else x @ weight + bias
    there = norm.is_there(config, "ln_final")
    if there:
        y = norm.centre(config, y)
        scale = norm.scale(config, y)
        normalized = y / scale
        w, b = norm.weight(model, "ln_final"), norm.bias(model, "ln_final")
        y = normalized if w is None else normalized * w
        y = y if b is None else y + b
    W_U = model.weights["unembed.W_U"]
    logits = y.astype(kind) @ W_U + model.b_U
    cap = config.output_logits_soft_cap
    if cap:
        slope = np.tanh(logits / kind.type(cap))
        logits = slope * kind.type(cap)
    log_q = _log_softmax(logits)
    p = np.exp(log_p)
    loss = (p * (log_p - log_q)).sum(-1, dtype=np.float64)
    if weight is None:
        return loss, np.zeros(0), np.zeros(0)
    back = np.exp(log_q) - p
    if cap:
        back *= 1 - slope * slope
    grad = (back @ W_U.T).astype(np.float64)
    if there:
        grad = grad if w is None else grad * w
        grad = grad - normalized * (grad * normalized).mean(-1, keepdims=True)
        grad = norm.centre(config, grad / scale)
    return loss, x.T.astype(np.float64) @ grad, grad.sum(0)


def _blocked(
    model: Model, stream: Array, weight: Array | None, bias: Array | None
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Mean divergence of each layer [n_layers], and the gradients of the layers before the last; bounded memory."""
    n, rows, d = stream.shape
    step = max(1, _BLOCK // _d_vocab(model))
    loss = np.zeros(n)
    grads = [(np.zeros((d, d)), np.zeros(d)) for _ in range(n - 1 if weight is not None else 0)]
    for start in range(0, rows, step):
        part = stream[:, start : start + step]
        log_p = _log_softmax(unembed(model, part[-1]))
        for layer in range(n - 1):
            own = (None, None) if weight is None or bias is None else (weight[layer], bias[layer])
            values, by_weight, by_bias = _divergence(model, log_p, part[layer], *own)
            loss[layer] += values.sum()
            if grads:
                grads[layer][0][...] += by_weight
                grads[layer][1][...] += by_bias
    return loss / rows, [(by_weight / rows, by_bias / rows) for by_weight, by_bias in grads]


def _descend(
    model: Model, batches: Iterable[Any], weight: Array, bias: Array, steps: int, rate: float, sizes: Array
) -> Array:
    """Adam on the divergence, in place on weight and bias [n_layers, ...]; losses [step, n_layers]."""
    beta, beta2, tiny = 0.9, 0.999, 1e-12
    moments = [[np.zeros_like(a[0]) for a in (weight, weight, bias, bias)] for _ in range(len(weight) - 1)]
    losses = np.zeros((steps, len(weight)))
    step = 0
    while step < steps:
        for stream in _streams(model, batches):
            if step == steps:
                break
            losses[step], grads = _blocked(model, stream, weight, bias)
            step += 1
            fall = 1 - (step - 1) / steps
            for layer, (by_weight, by_bias) in enumerate(grads):
                m = moments[layer]
                for first, second, grad, value, size in (
                    (m[0], m[1], by_weight, weight[layer], 1.0),
                    (m[2], m[3], by_bias, bias[layer], sizes[layer]),
                ):
                    first += (1 - beta) * (grad - first)
                    second += (1 - beta2) * (grad * grad - second)
                    root = np.sqrt(second / (1 - beta2**step)) + tiny
                    value -= fall * rate * size * (first / (1 - beta**step)) / root
    return losses


def kl_divergence(model: Model, batches: Iterable[Any], tuned: TunedLens | None = None) -> Array:
    """Mean Kullback-Leibler divergence from the model's predictions to those of a lens, nats, float64 [n_layers].

    Of the tuned lens, or without one of the logit lens; over all positions of all batches (whatever `model.run` takes).
    0 after the last layer. Raises ConfigError without batches, for a model with `d_out` and for a residual stream that
    is NaN or infinite.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> kl_divergence(model, [[1, 403, 407, 261, 378]]).shape
    (5,)
    """
    if tuned is not None and tuned.model is not model:
        raise ConfigError("kl_divergence: the tuned lens was made for another model")
    _needs_logits(model, "kl_divergence")
    total, rows = np.zeros(model.config.n_layers), 0
    for stream in _streams(model, batches):
        if tuned is not None:
            stream = np.stack([tuned.translate(x, layer) for layer, x in enumerate(stream)])
        total += _blocked(model, stream, None, None)[0] * stream.shape[1]
        rows += stream.shape[1]
    return np.asarray(total / rows)


__all__ = ["LogitLens", "TunedLens", "kl_divergence", "logit_lens", "unembed"]
