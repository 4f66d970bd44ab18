"""The same measurements over a model's training, and the lengths of token embeddings by how often tokens occur."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import corpus
from ..brief import Brief
from ..errors import ConfigError, LoadError, ShapeError
from ..experiment import write
from ..inputs import as_array, check_path, check_type, real_array, whole
from ..lens import TunedLens
from ..model import Model, check_model, load
from .steps import SINK, descend, frequencies, spearman
from .steps import controls as step_controls

Array = NDArray[Any]

BANDS = 10
"""Bands of tokens by frequency: tenths of those that occur."""


@dataclass(frozen=True)
class RowNorms(Brief):
    """Lengths of a model's rows of W_E and columns of W_U against how often tokens occur; made by :func:`row_norms`."""

    embed_mean: float
    unembed_mean: float
    """Mean length over the vocabulary."""
    embed_correlation: float
    unembed_correlation: float
    """Spearman's correlation of the length with the frequency, over tokens that occur."""
    embed_bands: Array
    unembed_bands: Array
    """Mean length of each tenth of the tokens that occur, the rarest first [10]; NaN where a band is empty."""
    embed_unseen: float
    unembed_unseen: float
    """Mean length of tokens that never occur; NaN where all do."""


def row_norms(model: Model, frequency: ArrayLike) -> RowNorms:
    """Lengths of the rows of W_E and the columns of W_U against token frequency [d_vocab].

    Raises ShapeError for frequencies of another vocabulary, ConfigError when no token occurs.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> row_norms(model, np.arange(512)).embed_bands.shape
    (10,)
    """
    check_model(model)
    counts = real_array(frequency, "frequency")
    e = np.linalg.norm(model.W_E.astype(np.float64), axis=1)
    u = np.linalg.norm(model.W_U.astype(np.float64), axis=0)
    if counts.shape != e.shape or counts.shape != u.shape:
        raise ShapeError(f"frequency {list(counts.shape)} for W_E of {len(e)} and W_U of {len(u)} tokens")
    seen = np.flatnonzero(counts > 0)
    if not seen.size:
        raise ConfigError("row_norms: no token occurs")
    order = seen[np.argsort(counts[seen], kind="stable")]

    def bands(x: Array) -> Array:
        return np.array([x[part].mean() if part.size else np.nan for part in np.array_split(order, BANDS)])

    unseen = counts <= 0
    return RowNorms(
        float(e.mean()), float(u.mean()), spearman(e[seen], counts[seen]), spearman(u[seen], counts[seen]), bands(e),
        bands(u), float(e[unseen].mean()) if unseen.any() else np.nan,
        float(u[unseen].mean()) if unseen.any() else np.nan,
    )  # fmt: skip


# What is kept of each checkpoint's Descent: name → axes.
_KEPT = (
    "loss", "falls", "falls_all", "cosine", "cosine_error", "cosine_expected", "cosine_whitened", "step_size", "radial",
    "norm", "norm_quantiles", "growth", "attention_length", "mlp_length", "attention_growth", "mlp_growth", "n",
    "n_sinks", "sink_norm", "sink_loss",
)  # fmt: skip
_TUNED = ("loss_tuned", "falls_tuned", "cosine_tuned")
_OF_CONTROLS = ("loss", "falls_all", "cosine", "cosine_expected", "norm")


@dataclass(frozen=True)
class Training:
    """Measurements at the checkpoints of a training; made by :func:`over_training`. Axis 0 of arrays: checkpoint.

    The names are those of :class:`clew.descent.Descent` and :class:`RowNorms`.
    """

    steps: NDArray[np.int64]
    """Training steps done [checkpoint]; 0 is the model before training."""
    loss: Array
    falls: Array
    falls_all: Array
    cosine: Array
    cosine_error: Array
    cosine_expected: Array
    cosine_whitened: Array
    step_size: Array
    radial: Array
    norm: Array
    norm_quantiles: Array
    growth: Array
    attention_length: Array
    mlp_length: Array
    attention_growth: Array
    mlp_growth: Array
    n: NDArray[np.int64]
    n_sinks: NDArray[np.int64]
    sink_norm: Array
    sink_loss: Array
    correlations: dict[str, Array]
    """Name → [checkpoint, layer + 1]."""
    row_norms: dict[str, Array]
    """Name of a field of RowNorms → [checkpoint, ...]."""
    about: dict[str, Any]
    """What was trained and measured, in words and numbers."""
    loss_tuned: Array | None = None
    falls_tuned: Array | None = None
    cosine_tuned: Array | None = None
    """Of a tuned lens fitted at each checkpoint; None without one."""
    controls: dict[str, dict[str, Array]] = field(default_factory=dict)
    """Name of a control → loss, falls_all, cosine, cosine_expected and norm; of the lens of another text loss_tuned,
    falls_tuned and cosine_tuned."""

    def __repr__(self) -> str:
        what = f"{self.about['model']}: " if "model" in self.about else ""
        return (
            f"Training: {what}{len(self.steps)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}, "
            f"{self.loss.shape[1] - 1} layers, {len(self.controls)} controls"
        )

    def table(self) -> str:
        """A line for each checkpoint."""
        lines = [
            str(self.about.get("model", "")),
            "   step  loss at start, after each layer ... falls   mean cos(Δ,−∇L)  expected  ‖r‖ first, last   ‖W_E‖  "
            "corr. with frequency  ‖W_U‖  corr.",
        ]
        rows = self.row_norms
        for i, step in enumerate(self.steps):
            losses = " ".join(f"{x:6.2f}" for x in self.loss[i])
            lines.append(
                f"{step:>7}  {losses}  {self.falls_all[i]:6.1%}  {self.cosine[i].mean():16.4f}  "
                f"{self.cosine_expected[i].mean():8.4f}  {self.norm[i, 0]:6.2f} {self.norm[i, -1]:7.2f}  "
                f"{rows['embed_mean'][i]:6.3f}  {rows['embed_correlation'][i]:+20.2f}  "
                f"{rows['unembed_mean'][i]:6.3f}  {rows['unembed_correlation'][i]:+5.2f}"
            )
        for name, found in self.controls.items():
            if "cosine" in found:
                falls, cosine = found["falls_all"], found["cosine"].mean(1)
                lines.append(f"control: {name}: falls " + " ".join(f"{x:.0%}" for x in falls)
                             + "; mean cos(Δ,−∇L) " + " ".join(f"{x:+.3f}" for x in cosine))  # fmt: skip
        return "\n".join(lines).lstrip("\n")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything as JSON, numbers rounded to five digits. Raises OSError."""
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Training:
        """Reads what :meth:`save` wrote. Raises LoadError for another file."""
        check_path(path=path)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            names = {f.name for f in dataclasses.fields(cls)}
            may = {f.name for f in dataclasses.fields(cls) if f.default is None or f.name == "controls"}
            if not isinstance(data, dict) or not names - may <= set(data) <= names:
                raise ValueError("its keys are others")
            return cls(**{name: _restored(name, value) for name, value in data.items()})
        except (ValueError, TypeError, OSError) as error:
            raise LoadError(f"{path}: no measurements of a training: {error}") from None


def _restored(name: str, value: Any) -> Any:
    if name == "about" or value is None:
        return value
    if isinstance(value, dict):
        return {key: _restored(key, item) for key, item in value.items()}
    return np.array(value, np.int64 if name in ("steps", "n", "n_sinks") else np.float64)


def over_training(
    checkpoints: Mapping[int, Any] | Iterable[tuple[int, Any]], tokens: Any, *, frequency: ArrayLike | None = None,
    sink: float = SINK, about: Mapping[str, Any] | None = None, learn: Any = None, controls: bool = False,
    other: Any = None, seed: int = 0,
) -> Training:  # fmt: skip
    """Every measurement of :func:`descend`, and the lengths of W_E's and W_U's rows, at checkpoints of a training.

    Parameters
    ----------
    checkpoints
        Step → model, or a path that `clew.load` takes; one model is in memory at a time. Step 0, the model before
        training, should be among them.
    tokens
        Token ids as `model.run` takes them, the same at all checkpoints; text that was never trained on.
    frequency
        How often each token occurs in the text that was trained on [d_vocab]; None: in `tokens`.
    about
        Words and numbers to keep with the result.
    learn
        Other tokens, to which a tuned lens is fitted at each checkpoint; None: no tuned lens.
    controls
        Whether to measure :func:`clew.descent.controls` at each checkpoint too.
    other
        With `controls`, tokens of another text that the control's lens is fitted to.
    seed
        Of the controls.

    Raises
    ------
    ConfigError
        No checkpoints, or a step that comes twice.
    ShapeError
        Checkpoints of different shapes.
    LoadError and others
        As `clew.load` and :func:`descend`.

    Example
    -------
    >>> import clew
    >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_vocab=8)
    >>> model = clew.Model.from_config(config, seed=0)
    >>> stream, kept = np.arange(400) % 8, {0: clew.Model.from_config(config, seed=0)}
    >>> _ = clew.train.fit(model, stream, steps=20, batch=4, lr=1e-2, progress=False)
    >>> found = over_training({**kept, 20: model}, stream[None, :16])
    >>> found.steps.tolist(), found.loss.shape, bool(found.loss[1, -1] < found.loss[0, -1])
    ([0, 20], (2, 3), True)
    """
    check_type(Iterable, "steps with models or paths", checkpoints=checkpoints)
    if about is not None:
        check_type(Mapping, "names to words and numbers", about=about)
    pairs = list(checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConfigError(f"over_training: a checkpoint is (step, model or path), not {pair!r:.60}")
    steps = [whole(step, "over_training: a step") for step, _ in pairs]
    if not pairs or len(set(steps)) != len(steps):
        raise ConfigError(f"over_training: checkpoints at steps {steps}: one or more, each once")
    pairs.sort(key=lambda pair: int(pair[0]))
    values: dict[str, list[Any]] = {name: [] for name in (*_KEPT, *(() if learn is None else _TUNED))}
    beside: dict[str, dict[str, list[Any]]] = {}
    correlations: dict[str, list[Any]] = {}
    rows: dict[str, list[Any]] = {}
    shape: tuple[int, int] | None = None
    for step, source in pairs:
        model = source if isinstance(source, Model) else load(source)
        own = (model.config.n_layers, model.config.d_vocab)
        if shape is not None and own != shape:
            raise ShapeError(f"over_training: step {step} has [layers, tokens] {list(own)}, the others {list(shape)}")
        shape = own
        counts = frequencies(model, tokens) if frequency is None else as_array(frequency, "frequency")
        tuned = None if learn is None else fit_lens(model, learn)
        found = descend(model, tokens, tuned=tuned, frequency=counts, sink=sink)
        for name in (*_KEPT, *(_TUNED if tuned is not None else ())):
            values[name].append(getattr(found, name))
        if controls:
            foreign = None if other is None else fit_lens(model, other)
            for name, one in step_controls(model, tokens, other_lens=foreign, seed=seed, sink=sink).items():
                kept = beside.setdefault(name, {})
                for part in _OF_CONTROLS if one.loss_tuned is None else _TUNED:
                    kept.setdefault(part, []).append(getattr(one, part))
        for name, correlation in found.correlations.items():
            correlations.setdefault(name, []).append(correlation)
        lengths = row_norms(model, counts)
        for of in dataclasses.fields(lengths):
            rows.setdefault(of.name, []).append(getattr(lengths, of.name))
    return Training(
        steps=np.array(sorted(steps)),
        **{name: np.array(value) for name, value in values.items()},
        correlations={name: np.array(value) for name, value in correlations.items()},
        row_norms={name: np.array(value) for name, value in rows.items()},
        about=dict(about or {}),
        controls={name: {part: np.array(value) for part, value in one.items()} for name, one in beside.items()},
    )


def fit_lens(model: Model, tokens: Any) -> TunedLens:
    """A tuned lens by ridge regression on sequences of tokens, 16 at a time."""
    rows = corpus.sequences(model, tokens)
    return TunedLens.fit(model, [rows[i : i + 16] for i in range(0, len(rows), 16)])


def stored_training() -> Training:
    """The bundled "shakespeare" at checkpoints of its training, as measured beforehand (`data/descent` says how).

    >>> found = stored_training()
    >>> len(found.steps) >= 8, int(found.steps[0])
    (True, 0)
    """
    return Training.load(Path(__file__).parent.parent / "data" / "descent" / "training.json")


__all__ = ["RowNorms", "Training", "fit_lens", "over_training", "row_norms", "stored_training"]
