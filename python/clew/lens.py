"""The logit lens: what the residual stream after each layer would predict, were it the last.

>>> import clew
>>> from clew.lens import logit_lens
>>> lens = logit_lens(clew.load("stories260K"), [1, 403, 407, 261, 378])
>>> lens.ranks.shape, lens.top_tokens.shape
((5, 1, 5), (5, 1, 5, 5))
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import norm
from .errors import ConfigError, ShapeError, SiteError
from .model import Model
from .run import Run

Array = NDArray[Any]

_BLOCK = 1 << 22  # logits that are in memory at once while the statistics are made


def unembed(model: Model, resid: ArrayLike) -> Array:
    """Logits [..., d_vocab] of residual vectors [..., d_model]: the model's final norm, unembedding and soft-cap.

    The norm is computed in float64, the product in the model's dtype, which is the dtype of the result.
    Raises ShapeError when the last axis is not d_model.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture="resid_post")
    >>> float(abs(unembed(model, run["resid_post", -1]) - run.logits).max()) < 1e-4
    True
    """
    x = np.asarray(resid)
    config = model.config
    if x.ndim < 1 or x.shape[-1] != config.d_model:
        raise ShapeError(f"residuals of shape {list(x.shape)}: the last axis must be d_model = {config.d_model}")
    if x.dtype.kind not in "fiu":
        raise ShapeError(f"residuals must be real numbers, not {x.dtype}")
    normed = norm.normalise(model, x)
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
    `.logits` or `.log_probs` is asked for. Positions behind a shorter sequence's end hold -1 (integers) or NaN.
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
                yield layer, s, p, unembed(self.model, self._resid[layer, s, p])

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

    def __repr__(self) -> str:
        layers, batch, pos = self._resid.shape[:3]
        lines = [f"LogitLens of {layers} layers, {batch} × {pos} positions"]
        known = self.targets is not None and bool((self.targets >= 0).any())
        lines.append("  layer  entropy" + ("     loss  median rank  first guess right" if known else ""))
        for row, layer in enumerate(self.layers):
            line = f"  {layer:>5}  {np.nanmean(self.entropy[row]):7.3f}"
            if known:
                ranks = self._ranks[row][self._ranks[row] >= 0]
                line += f"  {np.nanmean(self._loss[row]):7.3f}  {np.median(ranks):11.0f}  {(ranks == 0).mean():17.0%}"
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
        Targets of another shape or dtype; a run of another model.
    ConfigError
        `top_k` is less than 1.

    Example
    -------
    >>> import clew
    >>> model = clew.load("stories260K")
    >>> lens = logit_lens(model, [1, 403, 407, 261, 378], layers=[0, -1])
    >>> lens.layers, lens.logits.shape
    ((0, 4), (2, 1, 5, 512))
    """
    n, v = model.config.n_layers, model.config.d_vocab_out
    if top_k < 1:
        raise ConfigError(f"top_k = {top_k}: at least 1")
    if isinstance(run_or_tokens, Run):
        run = run_or_tokens
        if "resid_post" not in run and not any(name.endswith(".hook_resid_post") for name in run):
            raise SiteError("the run holds no resid_post: make it with capture='resid_post'")
        captured = run.layers("resid_post")
        wanted = captured if layers is None else tuple(model.sites().layer(i, f"layer {i}") for i in layers)
    else:
        wanted = tuple(range(n)) if layers is None else tuple(model.sites().layer(i, f"layer {i}") for i in layers)
        if wanted:
            run = model.run(run_or_tokens, capture=[("resid_post", i) for i in wanted], logits=None)
            captured = run.layers("resid_post")
    if not wanted:
        raise SiteError("no layers to look at")
    missing = [i for i in wanted if i not in captured]
    if missing:
        raise SiteError(f"the run did not capture resid_post of layer {', '.join(map(str, missing))}")
    stack = run.stack("resid_post")
    if stack.shape[-1] != model.config.d_model:
        raise ShapeError(
            f"the run's residuals have {stack.shape[-1]} values, the model's d_model is {model.config.d_model}"
        )
    if wanted != captured:
        stack = stack[[captured.index(i) for i in wanted]]
    batch, pos = stack.shape[1:3]
    whole = int(run.lengths.max()) == pos
    real = np.arange(pos) < run.lengths[:, None] if whole else np.ones((batch, pos), bool)
    following: Array | None = None
    if targets is not None:
        following = np.asarray(targets)
        if following.shape != (batch, pos) or following.dtype.kind not in "iu":
            raise ShapeError(
                f"targets must be integers [{batch}, {pos}], not {following.dtype} {list(following.shape)}"
            )
        outside = following[(following >= v) | (following < -1)]
        if outside.size:
            raise ShapeError(f"targets: {int(outside[0])} is no token; the vocabulary has ids 0 to {v - 1}, -1 is none")
        following = np.where(real, following, -1).astype(np.int64)
    elif run.tokens is not None and whole and v == model.config.d_vocab:
        following = np.full((batch, pos), -1, np.int64)
        following[:, :-1] = run.tokens[:, 1:]
    return LogitLens(model, stack, wanted, real, run.tokens if whole else None, following, min(top_k, v))


__all__ = ["LogitLens", "logit_lens", "unembed"]
