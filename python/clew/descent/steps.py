"""Layers as steps of an inner optimisation: loss, direction, step size and length of the stream, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import corpus
from ..brief import Brief
from ..errors import ConfigError, ShapeError, TokenError
from ..inputs import as_array, check_numbers, check_seed, check_type, real_array
from ..lens import TunedLens
from ..model import Model, check_model
from .gradient import Whitening, lens_gradient

Array = NDArray[Any]

SINK = 4.0
"""A stream so many times as long as its layer's median is a sink."""


@dataclass(frozen=True)
class Streams(Brief):
    """Residual streams at the tokens that another one follows; made by :func:`collect`. Float64."""

    resid: Array
    """Before the first step and after each [layer + 1, n, d_model]."""
    attention: Array
    """What attention added [layer, n, d_model]."""
    mlp: Array
    """What the MLP added [layer, n, d_model]; zeros where there is none."""
    tokens: NDArray[np.int64]
    """The token there [n]."""
    targets: NDArray[np.int64]
    """The token that follows [n]."""
    positions: NDArray[np.int64]
    """Where it stands [n]."""

    def with_resid(self, resid: Array) -> Streams:
        """Other streams at the same tokens, without parts."""
        none = np.zeros((len(resid) - 1, *resid.shape[1:]))
        return Streams(resid, none, none, self.tokens, self.targets, self.positions)


def _shuffled(model: Model, tokens: Array, order: Sequence[int]) -> tuple[Array, Array, Array]:
    """Streams, attention's and the MLP's parts [step, batch, pos, d] with the blocks applied in another order."""
    has_mlp = not model.config.attn_only
    x = model.run(tokens, capture=[("resid_pre", 0)], stop_after_layer=0)["resid_pre", 0]
    resid, parts = [x], []
    for layer in order:
        wanted = [(name, layer) for name in ("resid_post", "attn_out", *(["mlp_out"] if has_mlp else []))]
        run = model.run(embeddings=x, start_at_layer=layer, stop_after_layer=layer, capture=wanted)
        x = run["resid_post", layer]
        resid.append(x)
        parts.append((run["attn_out", layer], run["mlp_out", layer] if has_mlp else np.zeros_like(x)))
    return np.stack(resid), np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])


def _batches(model: Model, tokens: Any, order: Sequence[int] | None) -> Iterator[tuple[Array, Array, Array, Array]]:
    """(streams, attention's parts, the MLP's, tokens) of sequences of one length, a bounded number at a time."""
    has_mlp = not model.config.attn_only
    by_length: dict[int, list[list[int]]] = {}
    for row in corpus.sequences(model, tokens):
        if len(row) > 1:
            by_length.setdefault(len(row), []).append(row)
    for length, rows in by_length.items():
        at_once = max(1, 4096 // length)
        for start in range(0, len(rows), at_once):
            ids = np.array(rows[start : start + at_once])
            if order is not None:
                yield (*_shuffled(model, ids, order), ids)
                continue
            names: list[str | tuple[str, int]] = [("resid_pre", 0), "resid_post", "attn_out"]
            names += ["mlp_out"] if has_mlp else []
            run = model.run(ids, capture=names, logits=None)
            attention = run.stack("attn_out")
            yield corpus.stream(run), attention, run.stack("mlp_out") if has_mlp else np.zeros_like(attention), ids


def collect(model: Model, tokens: Any, order: Sequence[int] | None = None) -> Streams:
    """The residual stream at every token that another one follows, with what attention and MLP add.

    tokens: whatever `model.run` takes, or :class:`clew.corpus.Windows`. order: the blocks, applied in this order (a
    control). All streams are in memory: (2 n_layers + 1) · n · d_model doubles and more.

    Raises TokenError (no token that another follows), ConfigError (an order that is no permutation, another output
    vocabulary).

    >>> import clew
    >>> collect(clew.load("stories260K"), [[1, 403, 407], [1, 261]]).resid.shape
    (6, 3, 64)
    """
    check_model(model)
    if order is not None:
        check_type((Sequence, np.ndarray), "a list of layers", order=order)
    config = model.config
    if config.d_vocab_out != config.d_vocab or config.d_in is not None:
        raise ConfigError("descent: the model must read and write one vocabulary")
    if not config.n_layers:
        raise ConfigError("descent: the model has no layers")
    if order is not None and sorted(order) != list(range(config.n_layers)):
        raise ConfigError(f"order = {list(order)}: each of the layers 0 to {config.n_layers - 1} once")
    parts = [
        (resid[:, :, :-1], attention[:, :, :-1], mlp[:, :, :-1], ids)
        for resid, attention, mlp, ids in _batches(model, tokens, order)
    ]
    if not parts:
        raise TokenError("descent: no token that another one follows")
    d = config.d_model

    def joined(i: int) -> Array:
        return np.concatenate([np.asarray(p[i], np.float64).reshape(len(p[i]), -1, d) for p in parts], axis=1)

    ids = [p[3] for p in parts]
    places = [np.broadcast_to(np.arange(i.shape[1] - 1), (len(i), i.shape[1] - 1)).reshape(-1) for i in ids]
    return Streams(
        joined(0), joined(1), joined(2), np.concatenate([i[:, :-1].reshape(-1) for i in ids]),
        np.concatenate([i[:, 1:].reshape(-1) for i in ids]), np.concatenate(places),
    )  # fmt: skip


# ---- What is measured -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerToken(Brief):
    """The same measurements for each token, sinks included; of :class:`Descent`."""

    loss: Array
    """Cross-entropy of the logit lens, nats [layer + 1, n]."""
    entropy: Array
    """[layer + 1, n]"""
    rank: Array
    """Tokens likelier than the next [layer + 1, n]."""
    cosine: Array
    """cos(Δ, −∇L) [layer, n]."""
    step: Array
    """⟨Δ, −∇L⟩ / ‖∇L‖² [layer, n]."""
    norm: Array
    """‖r‖ [layer + 1, n]."""
    sink: NDArray[np.bool_]
    """Position 0, or far longer than others at some layer [n]."""
    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Descent(Brief):
    """Layers as steps of an optimisation, over tokens that are no sinks; made by :func:`descend`.

    [layer + 1]: before the first block, then after each; [layer]: of each block's step Δ.
    """

    loss: Array
    """Mean cross-entropy of the logit lens, nats [layer + 1]."""
    loss_tuned: Array | None
    """Mean cross-entropy of the tuned lens after each block, nats [layer]."""
    falls: Array
    """Share of tokens whose loss falls [layer]."""
    falls_all: float
    """Share of layers and tokens where it falls."""
    falls_tuned: Array | None
    """The same of the tuned lens [layer − 1], from the first block's end on."""
    cosine: Array
    """Mean cos(Δ, −∇L) [layer], ∇L at the step's beginning."""
    cosine_error: Array
    """Standard error of that mean [layer]."""
    cosine_expected: Array
    """The same with the expected gradient, against the last layer's prediction [layer]."""
    cosine_whitened: Array
    """The same in coordinates in which the unembedding is white [layer]."""
    cosine_tuned: Array | None
    """The same with the tuned lens's gradient [layer − 1], from the first block's end on."""
    step_size: Array
    """Implied step ⟨Δ, −∇L⟩ / ‖∇L‖²: quartiles over tokens [3, layer]."""
    radial: Array
    """Mean cos(r, Δ) [layer]: steps along the stream itself."""
    norm: Array
    """Mean ‖r‖ [layer + 1]."""
    norm_quantiles: Array
    """Its quartiles [3, layer + 1]."""
    growth: Array
    """Median ratio of ‖r‖ after a block to before it [layer]."""
    attention_length: Array
    """Mean length of what attention adds [layer]."""
    mlp_length: Array
    """Mean length of what the MLP adds [layer]."""
    attention_growth: Array
    """Mean part of ‖r‖²'s growth that is attention's: 2⟨r, a⟩ + ‖a‖² + ⟨a, m⟩ [layer]."""
    mlp_growth: Array
    """The MLP's: 2⟨r, m⟩ + ‖m‖² + ⟨a, m⟩ [layer]; the two add up to the whole."""
    correlations: dict[str, Array]
    """Spearman's correlation of ‖r‖ with the model's loss, the next token's rank, the entropy, and the logarithm of
    how often the token and the next one occur [layer + 1]; NaN where one does not vary."""
    n: int
    """Tokens."""
    n_sinks: int
    sink_norm: Array
    """Mean ‖r‖ of sinks [layer + 1]; NaN where there are none."""
    sink_loss: Array
    """Mean loss of sinks [layer + 1]."""
    per_token: PerToken = field(repr=False, metadata={"json": False})

    @property
    def last_loss(self) -> float:
        """The model's own mean loss, sinks left out."""
        return float(self.loss[-1])

    def table(self) -> str:
        """A line for each layer, and the correlations."""
        lines = [
            f"{self.n} tokens, {self.n_sinks} sinks apart; the loss falls in {self.falls_all:.1%} of all steps",
            "layer    loss   tuned  falls  cos(Δ,−∇L)  expected  whitened  step size  cos(r,Δ)    ‖r‖  growth  ‖attn‖"
            "  ‖mlp‖  sinks' ‖r‖",
            f"start  {self.loss[0]:6.3f} {'':54}{self.norm[0]:8.2f} {'':24}{self.sink_norm[0]:9.2f}",
        ]
        for i in range(len(self.cosine)):
            tuned = f"{self.loss_tuned[i]:6.3f}" if self.loss_tuned is not None else "     –"
            lines.append(
                f"{i:>5}  {self.loss[i + 1]:6.3f}  {tuned}  {self.falls[i]:5.1%}  {self.cosine[i]:10.4f}  "
                f"{self.cosine_expected[i]:8.4f}  {self.cosine_whitened[i]:8.4f}  {self.step_size[1, i]:9.3g}  "
                f"{self.radial[i]:8.3f}  {self.norm[i + 1]:5.2f}  {self.growth[i]:6.3f}  "
                f"{self.attention_length[i]:6.2f}  {self.mlp_length[i]:5.2f}  {self.sink_norm[i + 1]:10.2f}"
            )
        lines += [f"‖r‖ and {name}: " + " ".join(f"{x:+.2f}" for x in c) for name, c in self.correlations.items()]
        return "\n".join(lines)


def _cosine(a: Array, b: Array) -> Array:
    """Along the last axis; 0 where one is zero: a step that is none goes nowhere."""
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(_ratio(np.einsum("...d,...d->...", a, b), sizes))


def _ratio(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 0))


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two lists, ties at their mean rank; NaN where one does not vary or holds NaN.

    >>> round(spearman([1, 2, 3, 4], [10, 20, 20, 90]), 4)
    0.9487
    """

    def ranks(x: Array) -> Array:
        _, place, count = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)]

    x, y = real_array(a, "spearman: a"), real_array(b, "spearman: b")
    if x.shape != y.shape or x.ndim != 1:
        raise ShapeError(f"spearman: {list(x.shape)} and {list(y.shape)} must be [n] both")
    if len(x) < 2 or np.isnan([x, y]).any():
        return float("nan")
    p, q = ranks(x), ranks(y)
    p, q = p - p.mean(), q - q.mean()
    size = float(np.sqrt((p @ p) * (q @ q)))
    return float(p @ q) / size if size > 0 else float("nan")


def frequencies(model: Model, tokens: Any) -> NDArray[np.int64]:
    """How often each token of the vocabulary occurs in some text [d_vocab]. Raises ShapeError, TokenError."""
    rows = corpus.sequences(model, tokens)
    every = np.concatenate([np.array(row, np.int64) for row in rows]) if rows else np.zeros(0, np.int64)
    return np.bincount(every, minlength=model.config.d_vocab)


def find_sinks(streams: Streams, ratio: float = SINK) -> NDArray[np.bool_]:
    """Position 0, and streams that some block leaves `ratio` times as long as its median token's [n].

    Raises ConfigError for a ratio that is not positive.
    """
    check_type(Streams, "what collect gives", streams=streams)
    check_numbers(ratio=ratio)
    if ratio <= 0:
        raise ConfigError(f"ratio = {ratio}: above 0")
    lengths = np.linalg.norm(streams.resid[1:], axis=-1)
    return np.asarray((streams.positions == 0) | (lengths > ratio * np.median(lengths, axis=1)[:, None]).any(0))


def descend(
    model: Model, tokens: Any, *, tuned: TunedLens | None = None, frequency: ArrayLike | None = None,
    sink: float = SINK, order: Sequence[int] | None = None,
) -> Descent:  # fmt: skip
    """Reads a forward pass as an optimisation: layers are steps, the lens's loss is what they would lower.

    With r the stream that predicts token y, L the cross-entropy of the lens and Δ a block's step: L by layer, cos(Δ,
    −∇L), the implied step ⟨Δ, −∇L⟩/‖∇L‖², how often L falls, and the length of r. Motivated by Wu & Varshney 2023; what
    is computed is ours, and the numbers mean something only beside :func:`controls`.

    Parameters
    ----------
    tokens
        Whatever `model.run` takes, or :class:`clew.corpus.Windows`. Not text that the model or the tuned lens learned.
    tuned
        A tuned lens; its loss and gradient beside the logit lens's.
    frequency
        How often each token occurs [d_vocab]; None: in these tokens.
    sink
        A stream so many times as long as its layer's median, and position 0, is a sink and counted apart.
    order
        The blocks, applied in this order (a control).

    Raises ConfigError, TokenError, ShapeError.

    Example
    -------
    >>> import clew
    >>> found = descend(clew.load("stories260K"), [[1, 403, 407, 261, 378, 392, 400]])
    >>> found.loss.shape, found.cosine.shape, found.n, found.n_sinks
    ((6,), (5,), 5, 1)
    """
    streams = collect(model, tokens, order)
    counts = frequencies(model, tokens) if frequency is None else as_array(frequency, "frequency")
    return measure(model, streams, counts, tuned=tuned, sink=sink)


def measure(
    model: Model, streams: Streams, frequency: Array, *, tuned: TunedLens | None = None, sink: float = SINK,
    sinks: NDArray[np.bool_] | None = None,
) -> Descent:  # fmt: skip
    """What :func:`descend` gives, of streams that are there already. sinks: which tokens are (controls: the model's).

    Raises ShapeError for frequencies of another vocabulary, ConfigError for such as nothing has, or when all tokens are
    sinks.
    """
    check_model(model)
    check_type(Streams, "what collect gives", streams=streams)
    frequency = real_array(frequency, "frequency")
    if frequency.shape != (model.config.d_vocab,):
        raise ShapeError(f"frequency {list(frequency.shape)} must be [d_vocab = {model.config.d_vocab}]")
    if not (np.isfinite(frequency) & (frequency >= 0)).all():
        raise ConfigError("frequency: how often each token occurs, 0 or more, not negative, NaN or infinite")
    r, n_layers = streams.resid, len(streams.resid) - 1
    apart = find_sinks(streams, sink) if sinks is None else as_array(sinks, "sinks")
    if apart.dtype != bool or apart.shape != streams.targets.shape:
        raise ShapeError(f"sinks must be bool [n = {len(streams.targets)}], not {apart.dtype} {list(apart.shape)}")
    if apart.all():
        raise ConfigError(f"all {len(apart)} tokens are sinks (position 0 is one): give longer texts")
    y = streams.targets
    found = [lens_gradient(model, r[layer], y, reference=r[-1]) for layer in range(n_layers + 1)]
    loss, entropy = np.stack([f.loss for f in found]), np.stack([f.entropy for f in found])
    rank = np.stack([f.rank for f in found])
    white = Whitening(model)
    cosine, expected, whitened, step = (np.zeros((n_layers, r.shape[1])) for _ in range(4))
    delta = np.diff(r, axis=0)
    for layer in range(n_layers):
        gradient, wanted = found[layer].gradient, found[layer].expected
        assert wanted is not None
        cosine[layer] = _cosine(delta[layer], -gradient)
        expected[layer] = _cosine(delta[layer], -wanted)
        along = -np.einsum("nd,nd->n", delta[layer], gradient)
        step[layer] = _ratio(along, np.square(gradient).sum(-1))
        sizes = np.linalg.norm(white.step(delta[layer]), axis=-1)
        whitened[layer] = _ratio(along, sizes * np.linalg.norm(white.gradient(gradient), axis=-1))
    tuned_loss, tuned_cosine = [], []
    if tuned is not None:
        for layer in range(n_layers):
            own = lens_gradient(model, r[layer + 1], y, tuned=tuned, layer=layer)
            tuned_loss.append(own.loss)
            if layer + 1 < n_layers:
                tuned_cosine.append(_cosine(delta[layer + 1], -own.gradient))
    norm, kept = np.linalg.norm(r, axis=-1), ~apart
    a, m = streams.attention, streams.mlp
    both = np.einsum("lnd,lnd->ln", a, m)
    growth_a = 2 * np.einsum("lnd,lnd->ln", r[:-1], a) + np.square(a).sum(-1) + both
    growth_m = 2 * np.einsum("lnd,lnd->ln", r[:-1], m) + np.square(m).sum(-1) + both
    radial = _cosine(r[:-1], delta)
    against = {
        "the model's loss": loss[-1], "rank of the next token": rank[-1], "entropy": entropy[-1],
        "log frequency of the token": np.log1p(frequency[streams.tokens]),
        "log frequency of the next token": np.log1p(frequency[y]),
    }  # fmt: skip
    falls = np.diff(loss, axis=0)[:, kept] < 0
    quarters = [25, 50, 75]
    losses = np.stack(tuned_loss)[:, kept] if tuned is not None else None
    n = int(kept.sum())
    nothing = np.full(n_layers + 1, np.nan)
    return Descent(
        loss=loss[:, kept].mean(1),
        loss_tuned=None if losses is None else losses.mean(1),
        falls=falls.mean(1),
        falls_all=float(falls.mean()),
        falls_tuned=None if losses is None else (np.diff(losses, axis=0) < 0).mean(1),
        cosine=cosine[:, kept].mean(1),
        cosine_error=cosine[:, kept].std(1) / np.sqrt(n),
        cosine_expected=expected[:, kept].mean(1),
        cosine_whitened=whitened[:, kept].mean(1),
        cosine_tuned=np.array([c[kept].mean() for c in tuned_cosine]) if tuned is not None else None,
        step_size=np.percentile(step[:, kept], quarters, axis=1),
        radial=radial[:, kept].mean(1),
        norm=norm[:, kept].mean(1),
        norm_quantiles=np.percentile(norm[:, kept], quarters, axis=1),
        growth=np.median(_ratio(norm[1:], norm[:-1])[:, kept], axis=1),
        attention_length=np.linalg.norm(a, axis=-1)[:, kept].mean(1),
        mlp_length=np.linalg.norm(m, axis=-1)[:, kept].mean(1),
        attention_growth=growth_a[:, kept].mean(1),
        mlp_growth=growth_m[:, kept].mean(1),
        correlations={
            name: np.array([spearman(row[kept], values[kept]) for row in norm]) for name, values in against.items()
        },
        n=n,
        n_sinks=int(apart.sum()),
        sink_norm=norm[:, apart].mean(1) if apart.any() else nothing,
        sink_loss=loss[:, apart].mean(1) if apart.any() else nothing,
        per_token=PerToken(loss, entropy, rank, cosine, step, norm, apart, streams.tokens, y),
    )


# ---- Controls -------------------------------------------------------------------------------------------------------


def controls(
    model: Model, tokens: Any, *, other_lens: TunedLens | None = None, seed: int = 0, sink: float = SINK
) -> Mapping[str, Descent]:
    """What :func:`descend` gives where there is nothing to find, by name.

    "random weights"
        A model of the same shape, seeded, never trained.
    "shuffled layers"
        The model's blocks in another order (the seed's; never the right one).
    "permuted steps"
        The model's own steps Δ of each token, in an order of its own: same first and last stream.
    "straight line"
        From the first stream to the last in equal steps: a fall of the loss that follows from the ends.
    "lens of another text"
        With `other_lens`, a tuned lens that was fitted to another text.

    Raises what :func:`descend` raises.

    >>> import clew
    >>> sorted(controls(clew.load("stories260K"), [[1, 403, 407, 261, 378, 392, 400]]))
    ['permuted steps', 'random weights', 'shuffled layers', 'straight line']
    """
    check_model(model)
    rng = np.random.default_rng(check_seed(seed))
    n_layers = model.config.n_layers
    tokens = corpus.sequences(model, tokens)  # the model of random weights has no tokenizer
    streams, counts = collect(model, tokens), frequencies(model, tokens)
    sinks = find_sinks(streams, sink)
    fresh = Model.from_config(model.config, seed=seed, dtype=model.dtype)
    out = {"random weights": descend(fresh, tokens, sink=sink)}
    if n_layers > 1:
        order = rng.permutation(n_layers)
        while (order == np.arange(n_layers)).all():
            order = rng.permutation(n_layers)
        out["shuffled layers"] = descend(model, tokens, sink=sink, order=[int(i) for i in order])
    r = streams.resid
    delta = np.diff(r, axis=0)
    each = rng.permuted(np.broadcast_to(np.arange(n_layers)[:, None], delta.shape[:2]), axis=0)
    moved = np.concatenate([r[:1], r[:1] + np.cumsum(np.take_along_axis(delta, each[..., None], axis=0), axis=0)])
    share = np.linspace(0, 1, n_layers + 1)[:, None, None]
    for name, resid in (("permuted steps", moved), ("straight line", r[0] + share * (r[-1] - r[0]))):
        out[name] = measure(model, streams.with_resid(resid), counts, sinks=sinks)
    if other_lens is not None:
        out["lens of another text"] = measure(model, streams, counts, tuned=other_lens, sinks=sinks)
    return out


__all__ = [
    "SINK",
    "Descent",
    "PerToken",
    "Streams",
    "collect",
    "controls",
    "descend",
    "find_sinks",
    "frequencies",
    "measure",
    "spearman",
]
