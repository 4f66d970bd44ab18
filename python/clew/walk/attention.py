"""What attention is good for: ablations of its pattern, through edits of a run, and what each does to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .. import corpus, edit
from ..brief import Brief
from ..edit import Edit
from ..errors import ConfigError, ShapeError
from ..inputs import as_array, check_counts, check_type, is_word, whole
from ..model import Model
from ..run import Run

Array = NDArray[Any]
Kind = Literal["uniform", "frozen", "similarity", "bare", "none"]

KINDS: tuple[Kind, ...] = get_args(Kind)


def visible(model: Model, layer: int, n: int) -> NDArray[np.bool_]:
    """Which keys each query of a layer sees [n, n]: causality, windows and what the configuration leaves out.

    >>> import clew
    >>> visible(clew.load("english"), 0, 6).sum(1).tolist()
    [1, 2, 3, 4, 4, 4]
    """
    c = model.config
    query, key = np.arange(n)[:, None], np.arange(n)
    seen = np.ones((n, n), bool) if c.attention_dir != "causal" else key <= query
    if c.is_local(layer):
        assert c.window_size is not None
        seen = seen & (query - key < c.window_size)
    if c.attention_kind == "linear" and c.exclude_self:
        seen = seen & (query != key)
    if c.exclude_last:
        seen = seen & (key != n - 1)
    return seen


def _causal_softmax(scores: Array, seen: Array) -> Array:
    """Weights [..., n, n] of scores where a query sees a key; zeros for a query that sees nothing."""
    scores = np.where(seen, scores, -np.inf)
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0))
    total = weights.sum(-1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))


def uniform(model: Model, n: int, layers: Any = None) -> list[Edit]:
    """Edits after which every query of prompts of n tokens weighs all keys that it sees alike.

    layers: a number or a list; None: all. Raises ConfigError for a layer that is not there.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture="pattern", edits=uniform(model, 3))
    >>> (6 * run["pattern", 0][0, 0]).round(3).tolist()
    [[6.0, 0.0, 0.0], [3.0, 3.0, 0.0], [2.0, 2.0, 2.0]]
    """
    out = []
    for layer in _layers(model, layers):
        seen = visible(model, layer, n).astype(np.float64)
        out.append(edit.set(("pattern", layer), (seen / np.maximum(seen.sum(1, keepdims=True), 1))[None, None]))
    return out


def frozen(model: Model, other: Any, layers: Any = None) -> list[Edit]:
    """Edits after which patterns are those of another prompt.

    other: tokens of a prompt as long as the one that will be run (one for all, or one for each of a batch); or a run
    that captured "pattern". Raises as `model.run`, ConfigError for a layer that is not there.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> mine = model.run([1, 403, 407], capture="pattern", edits=frozen(model, [1, 261, 378]))
    >>> bool(np.array_equal(mine["pattern", 2], model.run([1, 261, 378], capture="pattern")["pattern", 2]))
    True
    """
    run = other if isinstance(other, Run) else model.run(other, capture="pattern", logits=None)
    return [edit.freeze(("pattern", layer), run) for layer in _layers(model, layers)]


def similarity(model: Model, layers: Any = None) -> list[Edit]:
    """Edits after which patterns need no weights: softmax of x xᵀ, x what attention reads (the normed stream).

    All heads attend alike; values, W_O, residual stream and MLPs stay. Scores are divided by the model's own divisor
    times √d_model / √d_head, so that they are as wide as a head's. Ours: in place, what `bare` does to the whole.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> pattern = model.run([1, 403, 407], capture="pattern", edits=similarity(model))["pattern", 1]
    >>> round(float(pattern.sum(-1).min()), 5), bool((pattern[0, 0] == pattern[0, 7]).all())
    (1.0, True)
    """
    c = model.config
    reads = "ln1.hook_out" if "blocks.0.ln1.hook_out" in model.sites() else "hook_resid_pre"
    divisor = c.attn_scale * np.sqrt(c.d_model / c.d_head)
    out = []
    for layer in _layers(model, layers):
        kept: dict[str, Array] = {}

        def look(array: Array, name: str, kept: dict[str, Array] = kept) -> None:
            kept["x"] = array.astype(np.float64)

        def weigh(array: Array, name: str, kept: dict[str, Array] = kept, layer: int = layer) -> Array:
            x = kept["x"]
            weights = _causal_softmax(x @ x.swapaxes(1, 2) / divisor, visible(model, layer, x.shape[1]))
            return np.broadcast_to(weights[:, None], array.shape).astype(array.dtype)

        out += [edit.call(f"blocks.{layer}.{reads}", look), edit.call(("pattern", layer), weigh)]
    return out


def bare(model: Model) -> list[Edit]:
    """Edits that leave of a model its embeddings and attention without parameters.

    As the paper's author wrote it (no result of it was published): X ← softmax(causal(X Xᵀ)) X in each layer, logits
    X W_U: one head, no weights, no scaling, no residual stream, no MLP, no norm. X begins as what enters block 0
    (positions included); an unembedding's bias and soft-cap stay.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403], capture="resid_post", edits=bare(model))
    >>> bool(np.allclose(run["resid_post", 0][0, 0], model.W_E[1]))
    True
    """
    out = []
    for layer in range(model.config.n_layers):
        kept: dict[str, Array] = {}

        def look(array: Array, name: str, kept: dict[str, Array] = kept) -> None:
            kept["x"] = array.astype(np.float64)

        def step(array: Array, name: str, kept: dict[str, Array] = kept, layer: int = layer) -> Array:
            x = kept["x"]
            weights = _causal_softmax(x @ x.swapaxes(1, 2), visible(model, layer, x.shape[1]))
            return np.asarray(weights @ x, array.dtype)

        out += [edit.call(("resid_pre", layer), look), edit.call(("resid_post", layer), step)]
    if "ln_final.hook_out" in model.sites():
        last: dict[str, Array] = {}

        def leave(array: Array, name: str) -> None:
            last["x"] = array.copy()

        out += [
            edit.call(("resid_post", model.config.n_layers - 1), leave),
            edit.call("ln_final.hook_out", lambda array, name: last["x"]),
        ]
    return out


def _layers(model: Model, layers: Any) -> list[int]:
    n = model.config.n_layers
    if layers is None:
        return list(range(n))
    out = [whole(layer, "layers") for layer in np.atleast_1d(as_array(layers, "layers")).tolist()]
    if not out:
        raise ConfigError("layers: none were given")
    for layer in out:
        if not -n <= layer < n:
            raise ConfigError(f"layer {layer}: the model has layers 0 to {n - 1}")
    return [layer % n for layer in out]


def ablation(model: Model, kind: Kind, tokens: Any, layers: Any = None, other: Any = None) -> list[Edit]:
    """The edits of one kind for windows of tokens [window, pos] of one length.

    Parameters
    ----------
    kind
        "uniform": all visible keys alike; "frozen": another prompt's pattern; "similarity": softmax(x xᵀ), in place;
        "bare": the whole model without parameters but its embeddings; "none": attention writes nothing.
    layers
        A number or a list; None: all. "bare" is about all.
    other
        Of "frozen": the other prompts [window, pos] or [pos]; None: each window gets the pattern of the next one.

    Raises ConfigError, ShapeError.
    """
    ids = corpus.rows_of(model, tokens, "ablation")
    if not is_word(kind, KINDS):
        raise ConfigError(f"ablation: kind = {kind!r}: one of {', '.join(map(repr, KINDS))}")
    if other is not None and kind != "frozen":
        raise ConfigError(f"ablation: other = is for 'frozen', not for {kind!r}")
    if kind == "uniform":
        return uniform(model, ids.shape[1], layers)
    if kind == "similarity":
        return similarity(model, layers)
    if kind == "none":
        return [edit.zero(("attn_out", layer)) for layer in _layers(model, layers)]
    if kind == "bare":
        if layers is not None:
            raise ConfigError("ablation: 'bare' is a change of the whole model: layers = None")
        return bare(model)
    if other is None:
        if len(ids) < 2:
            raise ConfigError("ablation: 'frozen' needs another prompt: other=, or two windows")
        other = np.roll(ids, -1, axis=0)
    return frozen(model, other, layers)


@dataclass(frozen=True)
class Ablations(Brief):
    """Losses of a model with its attention changed; made by :func:`ablate`."""

    loss: float
    """Of the model as it is, nats a token."""
    error: float
    """Standard error of that mean over windows."""
    ablated: dict[str, float]
    """Kind → loss with all layers changed."""
    rise_error: dict[str, float]
    """Kind → standard error of the rise, window by window."""
    by_layer: dict[str, Array]
    """Kind → loss with one layer changed [layer]; not of "bare"."""
    n: int
    """Windows."""

    def table(self) -> str:
        """A line for each kind."""
        lines = [f"attention as it is: loss {self.loss:.3f} ± {self.error:.3f} on {self.n} windows"]
        for kind, loss in self.ablated.items():
            layers = " ".join(f"{x:.3f}" for x in self.by_layer.get(kind, ()))
            lines.append(f"  {kind:<10} {loss:7.3f}  {loss - self.loss:+.3f} ± {self.rise_error[kind]:.3f}"
                         + (f"   one layer alone: {layers}" if layers else ""))  # fmt: skip
        return "\n".join(lines)


def ablate(model: Model, tokens: Any, kinds: Any = KINDS, by_layer: bool = True, other: Any = None,
           at_once: int = 16) -> Ablations:  # fmt: skip
    """Next-token loss of windows [window, pos] with attention changed, in all layers and in each alone.

    Arguments as :func:`ablation`. Runs `at_once` windows at a time; "frozen" without `other` takes each window's
    pattern from the next, the last one's from the first. Raises ConfigError, ShapeError, TokenError.

    >>> import clew
    >>> found = ablate(clew.load("stories260K"), [[1, 403, 407, 261], [1, 378, 432, 383]], ["uniform"])
    >>> found.by_layer["uniform"].shape
    (5,)
    """
    ids = corpus.rows_of(model, tokens, "ablate")
    check_counts(at_once=at_once)
    check_type((tuple, list), f"a list of {', '.join(map(repr, KINDS))}", kinds=kinds)
    strange = [kind for kind in kinds if not is_word(kind, KINDS)]
    if strange or not kinds:
        raise ConfigError(f"ablate: kinds = {kinds!r}: of {', '.join(map(repr, KINDS))}")
    donors = np.roll(ids, -1, axis=0) if other is None else corpus.rows_of(model, other, "ablate: other")
    if donors.shape[1] != ids.shape[1] or len(donors) not in (1, len(ids)):
        raise ShapeError(f"ablate: other {list(donors.shape)} for windows {list(ids.shape)}")
    donors = np.broadcast_to(donors, ids.shape)
    if "frozen" in kinds and other is None and len(ids) < 2:
        raise ConfigError("ablate: 'frozen' needs another prompt: other=, or two windows")

    def losses(kind: Kind | None, layers: Any = None) -> Array:
        out = []
        for at in range(0, len(ids), at_once):
            now = ids[at : at + at_once]
            edits = (
                []
                if kind is None
                else ablation(model, kind, now, layers, donors[at : at + at_once] if kind == "frozen" else None)
            )
            out.append(model.loss(now, edits=edits).mean(axis=1, dtype=np.float64))
        return np.concatenate(out)

    def error(x: Array) -> float:
        return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")

    base = losses(None)
    whole = {kind: losses(kind) for kind in kinds}
    alone = {
        kind: np.array([losses(kind, layer).mean() for layer in range(model.config.n_layers)])
        for kind in kinds if by_layer and kind != "bare"
    }  # fmt: skip
    return Ablations(
        float(base.mean()), error(base), {kind: float(x.mean()) for kind, x in whole.items()},
        {kind: error(x - base) for kind, x in whole.items()}, alone, len(ids),
    )  # fmt: skip


__all__ = [
    "KINDS", "Ablations", "ablate", "ablation", "bare", "frozen", "similarity", "uniform", "visible",
]  # fmt: skip
