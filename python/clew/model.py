"""The model: weights and configuration around the engine, and what can be asked of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isfunction
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .config import ModelConfig
from .edit import Edit, as_edits, check_before_last, check_last, resolve
from .engine import core_config, place_weights, trainable_weights, weight_names
from .errors import ConfigError, Error, ShapeError, TokenError
from .inputs import (
    MOST_TOKENS,
    Batch,
    check_type,
    embedding_batch,
    kept_positions,
    precision,
    token_batch,
    vector_batch,
)
from .plan import Plan
from .replay import next_losses
from .run import Run
from .sites import LOGITS, SiteName, SiteTable, capture_list
from .tables import model_facts
from .text import TextAccess
from .weights import BadValue, WeightAccess, Weights, whole

if TYPE_CHECKING:
    from .generate import Generation, Step
    from .gradients import Gradients
    from .loaders.checkpoint import Checkpoint
    from .metrics import Metric
    from .paths import Receiver
    from .sweep import Axis, Sweep
    from .tangents import Direction, Tangents
    from .train.adamw import AdamW

Array = NDArray[Any]
Capture = str | Iterable[str | tuple[str, int]] | None
Logits = Literal["all", "last"] | None

_LOGITS = {None: 0, "last": 1, "all": 2}
_LOSS = 3
_MOST_PLANNED = 1 << 22
"""Sequences of a plan: it takes some 20 bytes for each before anything is computed."""


_ACTIVE: ContextVar[tuple[tuple[Model, list[Edit]], ...]] = ContextVar("clew_edits", default=())


class Model(WeightAccess, TextAccess):
    """A transformer whose every internal quantity can be seen.

    Made by :func:`clew.load` or :meth:`Model.from_config`; immutable, unless it is trained (:class:`clew.AdamW`). Two
    threads may run one model at once, but not while a step of training changes it.

    Attributes
    ----------
    config, dtype
        The :class:`ModelConfig`; what the model computes in, float32 or float64.
    weights
        Full name → array in classic layout, read-only (`"blocks.0.attn.W_Q"` [n_heads, d_model, d_head], …);
        `with_weights({name: array})` makes a model with others.
    W_Q, W_K, W_V, W_O, W_in, W_out, W_gate, b_Q, …
        The same stacked over layers (a copy), W_Q [n_layers, n_heads, d_model, d_head]; absent biases are zeros.
    W_E, W_pos, W_U, b_U
        [d_vocab, d_model], [positions, d_model], [d_model, d_vocab_out], [d_vocab_out]: views.

    Example
    -------
    >>> import clew
    >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=32, d_vocab=50)
    >>> model = clew.Model.from_config(config, seed=0)
    >>> run = model.run([3, 1, 4, 1, 5], capture=["resid_post", "blocks.0.attn.hook_pattern"])
    >>> run.logits.shape, run["pattern", 0].shape
    ((1, 5, 50), (1, 2, 5, 5))
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        from .loaders.checkpoint import Checkpoint

        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"Model takes a Checkpoint, not {type(checkpoint).__name__}: see clew.load and Model.from_config"
            )
        self.config = checkpoint.config
        self.dtype: np.dtype[Any] = np.dtype(checkpoint.dtype)
        self.notes = tuple(checkpoint.notes)
        """What the loader left out of the file and why."""
        self._make_tokenizer = checkpoint.tokenizer
        self.tokenizer_files = checkpoint.tokenizer_files
        placed = place_weights(checkpoint.weights, self.config, self.dtype)
        known = weight_names(self.config.n_layers)
        self.weights = Weights(placed)
        """Full name → array in classic layout, read-only."""
        self._core = _core.Model(
            core_config(self.config, self.dtype), [(*known[name], array) for name, array in placed.items()]
        )
        self._table = SiteTable(self.config.n_layers, self._core.has_site)
        self._values: dict[str, Array] | None = None  # the weights, writable, once the model is trained

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        seed: int = 0,
        dtype: str | np.dtype[Any] | type = "float32",
        *,
        tokenizer: Model | None = None,
    ) -> Model:
        """A model with seeded random weights.

        N(0, initializer_range²), what writes into the stream divided by √(2 n_layers); biases 0, norm weights 1.

        tokenizer: a model whose tokenizer this one reads text with, and saves.

        Raises ShapeError for a dtype other than float32 and float64, ConfigError for a seed that is no whole number, or
        for a tokenizer that there is not or whose ids are more than `d_vocab`.

        >>> import clew
        >>> config = clew.ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=64, d_vocab=1024)
        >>> clew.Model.from_config(config, tokenizer=clew.load("shakespeare")).run("To be, or not").logits.shape
        (1, 5, 1024)
        """
        from .loaders.checkpoint import Checkpoint
        from .loaders.initialise import initialise

        check_type(ModelConfig, "a ModelConfig", config=config)
        kind = precision(dtype)
        made = Checkpoint(config, initialise(config, seed, kind), kind)
        if tokenizer is not None:
            check_type(Model, "a Model whose tokenizer is taken", tokenizer=tokenizer)
            ids = tokenizer._needs_tokenizer().vocab_size
            if config.d_vocab is None or config.d_in is not None or ids > config.d_vocab:
                raise ConfigError(f"tokenizer: {ids} ids, but d_vocab = {config.d_vocab}, d_in = {config.d_in}")
            made.tokenizer, made.tokenizer_files = tokenizer._make_tokenizer, tokenizer.tokenizer_files
        return cls(made)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes safetensors, config.json and the tokenizer's files into a directory; `load(path)` gives the same bits.

        A model that is there already is replaced, whole or not at all, the files of its tokenizer too. A tokenizer of a
        llama2.c or GGUF file has none to write: a warning says so.

        Raises OSError naming the file; LoadError, before anything is written, where a file of the tokenizer is gone or
        has changed since the model was loaded.
        """
        from .loaders.save import save

        try:
            lost = not self.tokenizer_files and self.tokenizer is not None
        except Error:  # there is one, and it cannot be read here
            lost = True
        if lost:
            warnings.warn(f"{path}: saved without the tokenizer, which has no files to copy", stacklevel=2)
        save(self, path)

    def folded(
        self,
        fold_ln: bool = True,
        center_writing: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
    ) -> Model:
        """A second model with the same predictions and weights that are easier to read.

        Computed in float64 and rounded once; weights that do not change are shared with this model, which stays as it
        is. Every option works on every architecture: what would change predictions is left out, and `notes` says so.

        Parameters
        ----------
        fold_ln
            The norms' weights and biases move into the matrices that read them (W_Q, W_K, W_V, W_in, W_gate, W_U) and
            their biases, which appear where none were; norms become LNPre or RMSPre. Norms behind the branches
            (sandwich blocks) and query/key norms stay; beside the former, the norms before become ones.
        center_writing
            Takes the mean over d_model out of W_E, W_pos, W_O, b_O, W_out and b_out. LayerNorm models only: an RMS
            norm, an unembedding without a norm or a norm behind a branch sees it, so there nothing is centred.
        center_unembed
            Takes the mean over the vocabulary out of W_U and b_U: logits change by a constant at each position,
            probabilities do not. Not where logits are soft-capped.
        fold_value_biases
            b_V moves through W_O into b_O. Not in linear attention, whose weights do not sum to 1.

        Example
        -------
        >>> import clew
        >>> model = clew.load("shakespeare")
        >>> folded = model.folded()
        >>> folded.config.normalization_type, bool(abs(folded.W_U.mean(-1)).max() < 1e-7)
        ('LNPre', True)
        >>> float(abs(folded.loss([5, 6, 7, 8]) - model.loss([5, 6, 7, 8])).max()) < 1e-4
        True
        """
        from .fold import fold_checkpoint

        return Model(
            fold_checkpoint(
                self._checkpoint(),
                fold_ln=fold_ln,
                center_writing=center_writing,
                center_unembed=center_unembed,
                fold_value_biases=fold_value_biases,
            )
        )

    def _checkpoint(self) -> Checkpoint:
        """What this model is made of; the weights of one that is trained are copies as they are now."""
        from .loaders.checkpoint import Checkpoint

        weights = dict(self.weights) if self._values is None else trainable_weights(self.weights, self.dtype)
        return Checkpoint(
            self.config, weights, self.dtype, self._make_tokenizer, list(self.notes), self.tokenizer_files
        )

    def __copy__(self) -> Model:
        return self

    def __deepcopy__(self, memo: Any) -> Model:
        return self if self._values is None else Model(self._checkpoint())  # immutable, unless it is trained

    def __reduce__(self) -> Any:
        raise TypeError("a Model cannot be pickled: save(path) it, and load(path) where it is needed")

    def sweep(
        self,
        clean: Any,
        corrupted: Any = None,
        site: SiteName = "resid_pre",
        over: Sequence[Axis] | Axis = ("layer", "pos"),
        metric: Metric | Callable[[Array], ArrayLike] | None = None,
        direction: Literal["denoise", "noise"] = "denoise",
        *,
        edits: Iterable[Edit | Iterable[Edit]] | None = None,
        layers: Iterable[int] | slice | None = None,
        positions: Iterable[int] | slice | None = None,
        heads: Iterable[int] | slice | None = None,
        neurons: Iterable[int] | slice | None = None,
        keep_batch: bool = False,
        method: Literal["patch", "attribution"] = "patch",
    ) -> Sweep:
        """Activation patching (Vig et al. 2020; Meng et al. 2022): what each part of one run does in another.

        `sweep(tokens, edits=[…], metric=…)` runs any list of edits instead, one variant for each entry (an edit or a
        list of them).

        direction "denoise" runs `corrupted` and inserts values of `clean`, one variant at a time; "noise" the other
        way. Variants run batched; blocks before the patch and positions before it, or before the first token that
        differs, are computed once.

        Parameters
        ----------
        clean, corrupted
            Prompts of the same lengths: text, ids [pos] or [batch, pos], ragged lists; vectors where the model reads
            these.
        site
            One kind of site, by short or full name; a name with a layer in it ("z.3") means that layer only.
        over
            What one variant patches: a combination of "layer", "pos", "head", "neuron" (the site's last axis). An axis
            that is not named is patched whole: without "pos" all positions, without "layer" all layers at once.
        metric
            One of `clew.metrics`, or a function of the last positions' logits [n, 1, vocab] that gives [n].
        layers, positions, heads, neurons
            Only these, of an axis in `over`. Negative positions count from each prompt's own end; a prompt that does
            not have a position stays as it is there.
        keep_batch
            `values` keeps the batch axis, last.
        method
            "attribution": gradient times difference instead, a first-order estimate of every entry from one backward
            pass (attribution patching, Nanda 2023). A function as metric then gives (values [n], their gradient by the
            logits [n, 1, vocab]).

        Returns a :class:`Sweep`. Raises ShapeError (prompts of different length, indices out of range), SiteError,
        ConfigError, TokenError (a loss of one token).

        >>> import clew
        >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=8, d_vocab=50)
        >>> model = clew.Model.from_config(config, seed=0)
        >>> model.sweep([3, 1, 4, 1], [3, 5, 4, 1], site="z", over=("layer", "head"),
        ...             metric=clew.metrics.logit_diff(7, 9)).values.shape
        (2, 2)
        """
        from .sweep import sweep, sweep_edits

        if edits is not None:
            given = (corrupted, layers, positions, heads, neurons)
            asked = (site, over, direction, method) != ("resid_pre", ("layer", "pos"), "denoise", "patch")
            if asked or any(item is not None for item in given):
                raise ConfigError("a sweep over edits takes one prompt, the edits and a metric, nothing else")
            return sweep_edits(self, clean, edits, metric, keep_batch)
        if corrupted is None:
            raise ConfigError("a sweep needs two prompts, clean and corrupted, or one and edits=")
        return sweep(
            self,
            clean,
            corrupted,
            site,
            over,
            metric,
            direction,
            layers=layers,
            positions=positions,
            heads=heads,
            neurons=neurons,
            keep_batch=keep_batch,
            method=method,
        )

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: int | str | Sequence[int | str] | None = None,
        capture: Capture = (),
        edits: Edit | Iterable[Edit] = (),
    ) -> Generation:
        """Continues prompts with a key-value cache, each until it stops by itself.

        Parameters
        ----------
        tokens
            Prompts as for `run`, ragged ones too.
        max_new_tokens
            Of each sequence.
        temperature, top_k, top_p
            0: the likeliest token. Else random by softmax(logits / temperature), among the `top_k` likeliest, then
            among the likeliest that together hold a share `top_p`.
        seed
            The same seed gives a prompt the same text, whatever else is in the batch; equal prompts of one batch get
            different ones, in their order. None draws a seed.
        stop
            Token ids and texts that end a sequence.
        capture
            Sites over prompt and new tokens, the last one included: `generation["resid_post", 3]`; "logits" by name.
        edits
            Hold for the new tokens too. Positions count from the text's beginning, negative ones from the prompt's end;
            a mask as long as the longest prompt, values with as many positions, and a run of the prompts' lengths
            (`edit.freeze`) mean positions of the prompts alone. A function (`edit.call`) is shown the new rows only.

        Returns a :class:`clew.generate.Generation`. Raises TokenError (too long for learned positions),
        UnsupportedModelError (attention that is not causal), ConfigError.

        >>> import clew
        >>> model = clew.load("stories260K")
        >>> model.generate([1, 403, 407, 261], max_new_tokens=4).tokens[0].shape
        (4,)
        """
        from .generate import generate, prepare, settings

        how = settings(self, max_new_tokens, temperature, top_k, top_p, seed, stop)
        return generate(self, *prepare(self, tokens, how, capture, edits))

    def generate_stream(
        self,
        tokens: Any,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: int | str | Sequence[int | str] | None = None,
        capture: Capture = (),
        edits: Edit | Iterable[Edit] = (),
    ) -> Iterator[Step]:
        """The same, a :class:`clew.generate.Step` at a time: `for step in …: print(step.texts[0], end="")`.

        The pieces of a sequence make up `generate(…).text`. `step.run` holds the captured sites over what was read to
        choose its tokens: the prompts first, then a position of each text that still grows.
        """
        from .generate import prepare, settings, steps

        how = settings(self, max_new_tokens, temperature, top_k, top_p, seed, stop)
        return steps(self, *prepare(self, tokens, how, capture, edits), stream=True)

    def gradients(
        self,
        tokens: Any = None,
        metric: Metric | Callable[[Array], tuple[ArrayLike, ArrayLike]] | None = None,
        wrt: Capture = "resid_pre",
        edits: Edit | Iterable[Edit] = (),
        embeddings: Any = None,
    ) -> Gradients:
        """Exact gradients of a metric, summed over sequences, computed in the core.

        Parameters
        ----------
        tokens, embeddings, edits
            As for `run`. Gradients are those of the edited run; through `edit.call` there are none
            (UnsupportedModelError).
        metric
            One of `clew.metrics` (read off the last position; `loss()` is the mean over all real next tokens), or a
            function of logits [batch, pos, d_vocab] that gives (value [batch], its gradient by the logits).
        wrt
            Sites (as for `capture`), names of weights ("W_Q", "blocks.0.attn.W_Q", "weights" for all) or "embeddings".

        Returns :class:`clew.gradients.Gradients`: by sites in the sites' axes, 0 in padding ("logits": [batch, 1,
        d_vocab] where one of `clew.metrics` reads the last position only); `.weights` in classic layout.
        Raises SiteError, ShapeError, TokenError, ConfigError.

        >>> import clew
        >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=8, d_vocab=50)
        >>> model = clew.Model.from_config(config, seed=0)
        >>> g = model.gradients([3, 1, 4], clew.metrics.logit_diff(7, 9), wrt=["resid_pre", "W_Q"])
        >>> g["resid_pre", 1].shape, g.weights["blocks.1.attn.W_Q"].shape
        ((1, 3, 16), (2, 16, 8))
        """
        from .gradients import gradients

        if metric is None:
            raise ConfigError("gradients of what? metric= one of clew.metrics, or a function of the logits")
        return gradients(self, tokens, metric, wrt, edits, embeddings)

    def jvp(
        self,
        tokens: Any = None,
        direction: Direction = (),
        of: Capture = "resid_post",
        *,
        edits: Edit | Iterable[Edit] = (),
        embeddings: Any = None,
        start_at_layer: int | None = None,
    ) -> Tangents:
        """Jacobian-vector products, forward: d/dε of sites when `direction` is added ε times; exact.

        Parameters
        ----------
        tokens, embeddings, edits, start_at_layer
            As for `run`; with `start_at_layer` and a residual stream as `embeddings`, blocks on their own.
        direction
            {site: array in the site's axes}, or one or several `edit.add`, which may choose positions and heads.
        of
            Sites whose derivative is wanted (as for `capture`); "logits" too. Blocks behind them are not computed.

        Returns a :class:`clew.tangents.Tangents`, zeros where the direction does not reach. Raises SiteError,
        ShapeError, ConfigError, UnsupportedModelError (an `edit.call` stands in its way).

        >>> import clew, numpy as np
        >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=8, d_vocab=50)
        >>> model = clew.Model.from_config(config, seed=0)
        >>> block = model.jvp([3, 1, 4], {("resid_pre", 0): np.ones(16)}, of=("resid_post", 0))
        >>> block["resid_post", 0].shape
        (1, 3, 16)
        """
        from .tangents import tangents

        return tangents(self, tokens, direction, of, edits, embeddings, start_at_layer)

    def path_patch(
        self,
        clean: Any,
        corrupted: Any,
        sender: SiteName = "z",
        receivers: Receiver | Iterable[Receiver] = "resid_post.-1",
        over: Sequence[Literal["layer", "pos", "head"]] | str = ("layer", "head"),
        metric: Metric | Callable[[Array], ArrayLike] | None = None,
        direction: Literal["denoise", "noise"] = "denoise",
        *,
        through_mlps: bool = False,
        layers: Iterable[int] | slice | None = None,
        positions: Iterable[int] | slice | None = None,
        heads: Iterable[int] | slice | None = None,
        keep_batch: bool = False,
    ) -> Sweep:
        """Path patching (Wang et al. 2023, Goldowsky-Dill et al. 2023): what senders tell receivers directly.

        For each sender: a run of the base prompt with the sender's value from the other one, where every other head's
        `z` (and, unless `through_mlps`, every other `mlp_out`) of the sender's block and later ones stays as in the
        base; what the receivers hold then goes into a second run of the base, whose metric is the result. A part of a
        head or an MLP ("q", "pattern", "pre") speaks through the output of its own. The base is `corrupted` for
        "denoise", `clean` for "noise".

        Parameters
        ----------
        sender, over, layers, positions, heads
            Site of the senders and what of it is one sender, as for `sweep`.
        receivers
            Sites that listen: names, (name, layer) or (name, layer, head), such as ("q_input", 9, 6); "resid_post.-1"
            is the direct path to the logits.

        Returns a :class:`Sweep`. Raises what `sweep` raises; ConfigError where no sender reaches any receiver.

        >>> import clew
        >>> config = clew.ModelConfig(n_layers=3, d_model=16, n_heads=2, n_ctx=8, d_vocab=50)
        >>> model = clew.Model.from_config(config, seed=0)
        >>> model.path_patch([3, 1, 4, 1], [3, 5, 4, 1], receivers=[("q_input", 2, 0)],
        ...                  metric=clew.metrics.logit_diff(7, 9)).values.shape
        (3, 2)
        """
        from .paths import path_patch

        return path_patch(
            self,
            clean,
            corrupted,
            sender,
            receivers,
            over,
            metric,
            direction,
            through_mlps=through_mlps,
            layers=layers,
            positions=positions,
            heads=heads,
            keep_batch=keep_batch,
        )

    # ---- running --------------------------------------------------------------------------------------------------

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raises TypeError: a model is not called but run."""
        raise TypeError("a Model is not called: model.run(tokens).logits, model.loss(tokens), model.generate(tokens)")

    def sites(self) -> SiteTable:
        """The capture sites that this model has, with axes and meaning; printable, iterable over full names."""
        return self._table

    def _layer(self, layer: int | None, what: str) -> int | None:
        if layer is None:
            return None
        n = self.config.n_layers
        number = whole(layer, what)
        if not -n <= number < n:
            raise ConfigError(f"{what} = {layer}: the model has {f'layers 0 to {n - 1}' if n else 'no layers'}")
        return number % n

    def _plan(
        self,
        lengths: NDArray[np.int32],
        capture: Capture,
        positions: ArrayLike | None,
        start_at_layer: int | None,
        stop_after_layer: int | None,
        logits: int,
        from_embeddings: bool,
        edits: Iterable[Edit] = (),
    ) -> tuple[Any, list[Callable[..., Any]], Array | None]:
        """The core's plan, the functions that its edits call, and the positions that are kept."""
        start = self._layer(start_at_layer, "start_at_layer")
        stop = self._layer(stop_after_layer, "stop_after_layer")
        if start is not None and stop is not None and stop < start:
            raise ConfigError(f"start_at_layer = {start_at_layer} lies behind stop_after_layer = {stop_after_layer}")
        wanted = capture_list(capture)
        if stop is not None and not wanted:  # neither logits nor sites: what such a run leads to
            wanted = [f"resid_post.{stop}"]
        pairs = self._table.resolve(wanted, start, stop)
        if stop is not None:
            if logits == _LOGITS["last"]:
                raise ConfigError(f'logits = "last": a run that stops after layer {stop} has none')
            logits = 0
        elif logits == 0 and "logits" in wanted:
            logits = _LOGITS["all"]
        elif logits == 0:  # a glob may mean them, but None was said
            pairs = [(s, n) for s, n in pairs if s is not LOGITS]
        where = None
        if positions is not None:
            if all(s is LOGITS for s, _ in pairs):
                raise ConfigError("positions choose what is kept of captured sites, but none is captured")
            where = kept_positions(positions, lengths)
        changes = [*self._active_edits(), *as_edits(edits)]
        core, calls = resolve(changes, self, lengths, start, stop) if changes else ([], [])
        if logits == _LOGITS["last"]:
            check_last(core, lengths)
        plan = _core.Plan(
            self._core,
            lengths,
            np.array([(s.index, n) for s, n in pairs], np.int32).reshape(-1, 2),
            where,
            -1 if start is None else start,
            -1 if stop is None else stop,
            from_embeddings,
            logits,
            edits=core,
        )
        return plan, calls, where

    # ---- edits that hold for a while ------------------------------------------------------------------------------

    def _active_edits(self) -> list[Edit]:
        return [e for model, edits in _ACTIVE.get() if model is self for e in edits]

    @contextmanager
    def edited(self, edits: Edit | Iterable[Edit]) -> Iterator[Model]:
        """Edits every run of this model inside the `with` block, in this thread (or asyncio task).

        Contexts add up, the outer one first; a run's own edits come last. A sweep inside is one of the edited model.

        >>> import clew
        >>> from clew import edit
        >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
        >>> with model.edited([edit.zero("mlp_out")]):
        ...     run = model.run([1, 2, 3], capture="mlp_out")
        >>> bool(run["mlp_out"].any())
        False
        """
        entry = (self, [*as_edits(edits)])
        for edit in entry[1]:
            self._table.resolve([edit.site])
        _ACTIVE.set((*_ACTIVE.get(), entry))
        try:
            yield self
        finally:  # also where another context, begun later, has not ended, and in a thread that never began this one
            entry[1].clear()
            _ACTIVE.set(tuple(item for item in _ACTIVE.get() if item is not entry))

    @contextmanager
    def _unedited(self) -> Iterator[None]:
        token = _ACTIVE.set(tuple(item for item in _ACTIVE.get() if item[0] is not self))
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def plan(
        self,
        batch: int = 1,
        pos: int | None = None,
        capture: Capture = None,
        positions: ArrayLike | None = None,
        start_at_layer: int | None = None,
        stop_after_layer: int | None = None,
        logits: Logits = "all",
        edits: Edit | Iterable[Edit] = (),
    ) -> Plan:
        """What a run of [batch, pos] tokens would compute, keep and need, before anything is allocated.

        pos: None is 1,024, or all learned positions where there are fewer.

        Raises SiteError, TokenError (too long for learned positions), ConfigError as `run` does.
        """
        if pos is None:
            learned = self.weights["pos_embed.W_pos"].shape[0] if "pos_embed.W_pos" in self.weights else 1 << 30
            pos = min(1024, learned - self.config.pos_offset)
        batch, pos = whole(batch, "batch"), whole(pos, "pos")
        if batch < 1 or pos < 1:
            raise TokenError(f"plan of {batch} × {pos} tokens: both must be at least 1")
        if batch > _MOST_PLANNED:
            raise TokenError(
                f"plan of {batch} × {pos} tokens: at most {_MOST_PLANNED} sequences, each is planned by itself"
            )
        if batch * pos > MOST_TOKENS:
            raise TokenError(f"plan of {batch} × {pos} tokens: one run takes at most {MOST_TOKENS}")
        lengths = np.full(batch, pos, np.int32)
        mode = _logits_mode(logits)
        core, *_ = self._plan(
            lengths, capture, positions, start_at_layer, stop_after_layer, mode, False, as_edits(edits)
        )
        return Plan(core, batch, pos)

    def _batch(self, tokens: Any, embeddings: Any, start_at_layer: int | None) -> Batch:
        if embeddings is not None:
            if tokens is not None:
                raise ShapeError("give tokens or embeddings, not both")
            return embedding_batch(embeddings, self.config.d_model, self.dtype)
        if tokens is None:
            raise TokenError("nothing to run: give tokens or embeddings")
        if start_at_layer is not None:
            raise ShapeError("start_at_layer: give the residual stream that enters the block as embeddings=")
        if self.config.d_in is not None:
            return vector_batch(tokens, self.config.d_in, self.dtype)
        return token_batch(tokens, self.config.d_vocab, self._encode)

    def run(
        self,
        tokens: Any = None,
        *,
        capture: Capture = None,
        embeddings: Any = None,
        positions: ArrayLike | None = None,
        start_at_layer: int | None = None,
        stop_after_layer: int | None = None,
        logits: Logits = "all",
        edits: Edit | Iterable[Edit] = (),
    ) -> Run:
        """Runs the model on tokens and captures what is asked for.

        Parameters
        ----------
        tokens
            A text, a list of texts, ids [pos] or [batch, pos], or a ragged list of lists (padded on the right). A model
            that reads vectors takes [batch, pos, d_in], [pos, d_in] or a ragged list of [pos, d_in] instead. Learned
            positions end at `n_ctx`; rotary ones go on, to lengths for which the model may not have been trained.
        capture
            Sites: exact names, globs, short names (every layer), `"z.3"` or `("z", 3)`.
        embeddings
            [batch, pos, d_model] or [pos, d_model] instead of tokens: replaces `hook_embed`. With `start_at_layer`, the
            residual stream entering that block.
        positions
            Capture only these positions: a number, a list, a slice or a mask [pos]; negative numbers count from each
            sequence's own end. What a shorter prompt lacks of them (−3 of two tokens) holds zeros.
        start_at_layer, stop_after_layer
            First and last block to compute. A run that stops early has no logits; where nothing is captured it keeps
            the residual stream that leaves the last block.
        logits
            "all" [batch, pos, d_vocab], "last" [batch, 1, d_vocab] (edits of logits then are of these), or None
            (without capture, nothing is computed).
        edits
            Interventions of `clew.edit`; captured values are those after edits.

        Raises
        ------
        SiteError, TokenError, ShapeError, ConfigError
            Naming what was wrong.
        MemoryError
            What is to be kept does not fit, with the byte counts, before anything is computed.

        Example
        -------
        >>> import clew
        >>> config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=32, d_vocab=50)
        >>> run = clew.Model.from_config(config).run([[1, 2, 3], [4, 5]], capture="z", positions=[-1], logits="last")
        >>> run["z", 1].shape, run.logits.shape
        ((2, 1, 2, 8), (2, 1, 50))
        """
        batch = self._batch(tokens, embeddings, start_at_layer)
        from_embeddings = batch.embeddings is not None
        plan, calls, kept = self._plan(
            batch.lengths,
            capture,
            positions,
            start_at_layer,
            stop_after_layer,
            _logits_mode(logits),
            from_embeddings,
            as_edits(edits),
        )
        outputs = plan.run(batch.tokens, batch.floats, calls)
        return Run(outputs, self._table, batch.lengths, batch.padded_tokens(), self, kept)

    def loss(self, tokens: Any, reduce: Literal["none", "mean"] = "none", edits: Edit | Iterable[Edit] = ()) -> Any:
        """Next-token negative log-likelihood in nats, [batch, pos − 1]; logits are never kept.

        reduce="mean": one number, over the real tokens. Entries behind the end of a shorter sequence are 0.
        Raises TokenError for prompts of which none has a next token.
        """
        if reduce not in ("none", "mean"):
            raise ConfigError(f"reduce = {reduce!r}: 'none' or 'mean'")
        if self.config.d_in is not None or self.config.d_out is not None:
            raise ConfigError(
                f"loss: a model with d_in = {self.config.d_in}, d_out = {self.config.d_out} predicts no next token; "
                "clew.train.evaluate takes targets"
            )
        batch = self._batch(tokens, None, None)
        count = int((batch.lengths - 1).sum())
        if count == 0:
            raise TokenError("loss needs a prompt of two tokens or more: the second is what the first predicts")
        changes = [*self._active_edits(), *as_edits(edits)]
        if any(site is LOGITS for e in changes for site, _ in self._table.resolve([e.site])):
            check_before_last(resolve(changes, self, batch.lengths, None, None)[0], batch.lengths)
            run = self.run(tokens, edits=edits)
            assert run.tokens is not None
            losses = next_losses(run.logits[:, :-1], run.tokens[:, 1:])
        else:
            plan, calls, _ = self._plan(batch.lengths, None, None, None, None, _LOSS, False, as_edits(edits))
            ((_, _, losses),) = plan.run(batch.tokens, None, calls)
        return float(losses.sum(dtype=np.float64)) / count if reduce == "mean" else losses

    # ---- training -------------------------------------------------------------------------------------------------

    def _make_trainable(self) -> dict[str, Array]:
        """The weights as writable arrays in memory of their own, which every later run reads in place."""
        if self._values is None:
            values = trainable_weights(self.weights, self.dtype)
            known = weight_names(self.config.n_layers)
            core = _core.Model(
                core_config(self.config, self.dtype), [(*known[name], array) for name, array in values.items()]
            )
            assert core.n_packed == 0  # a copy would not follow the weights
            self._core, self.weights = core, Weights(values)
            self._values = values
        return self._values

    def train_step(
        self,
        tokens: Any,
        targets: Any = None,
        loss_mask: Any = None,
        *,
        optimizer: AdamW,
        accumulate: bool = False,
        recompute: bool = False,
    ) -> float:
        """One step of training on a batch; the mean loss over its targets, before the step.

        Cross-entropy in nats, or for a model with `d_out` the squared error, mean over the values of a target.

        Parameters
        ----------
        tokens
            As `run` takes them; [batch, pos, d_in] where the model reads vectors. Or :class:`clew.train.Examples`,
            which hold targets and mask too.
        targets
            What each position should give: ids in the shape of tokens, or [batch, pos, d_out]. None: the next token;
            the last position of each sequence then has no target.
        loss_mask
            [batch, pos] bool or weights ≥ 0: how much the target of each position counts. What lies behind the end of a
            shorter sequence is not read.
        optimizer
            The :class:`clew.AdamW` of this model.
        accumulate
            Only add the gradients up. The next call without it steps along the mean over all targets since the last
            step: several micro-batches equal one large batch.
        recompute
            Blocks run again in the backward pass instead of keeping their activations: the same bits, less memory.

        Raises
        ------
        TrainingError
            The loss or the gradient is NaN or infinite. Weights and optimiser are as they were.
        ShapeError, TokenError, ConfigError
            Targets or mask that do not fit (both shapes), no target at all, another model's optimiser.

        Example
        -------
        >>> import clew
        >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
        >>> optimizer = clew.AdamW(model, lr=1e-2)
        >>> losses = [model.train_step([[1, 2, 3, 4], [4, 3, 2, 1]], optimizer=optimizer) for _ in range(20)]
        >>> losses[-1] < losses[0] / 2
        True
        """
        from .train.step import train_step

        return train_step(self, tokens, targets, loss_mask, optimizer, accumulate, recompute)

    # ---- looks ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        rows = "\n".join(f"  {name:<13} {value}" for name, value in model_facts(self))
        return f"Model {self.config.model_name}\n{rows}"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in model_facts(self))
        return f"<table><caption>{self.config.model_name}</caption>{rows}</table>"


for _base in (WeightAccess, TextAccess):  # Python's own messages about arguments name the class that users know
    for _member in vars(_base).values():
        if isfunction(_member):
            _member.__qualname__ = f"Model.{_member.__name__}"


def _logits_mode(logits: Logits) -> int:
    if not (logits is None or isinstance(logits, str)) or logits not in _LOGITS:
        raise ConfigError(f'logits = {logits!r}: "all", "last" or None')
    return _LOGITS[logits]


def check_model(model: Any) -> None:
    """Raises ConfigError for what is no model."""
    check_type(Model, "a Model, such as clew.load gives", model=model)


def load(path: str | PathLike[str], dtype: str | np.dtype[Any] | None = None) -> Model:
    """Loads a model: a Hugging Face directory, `x.gguf`, llama2.c `x.bin`, a classic state, a hub id or a bundled name.

    dtype: None keeps float32, or float64 for float64 files (float16 and bfloat16 become float32); "float32" or
    "float64" converts. float32 weights stay in the mapped file.

    Raises
    ------
    LoadError
        The file cannot be read; names the file, and the byte or the tensors where known.
    UnsupportedModelError
        The engine would compute it wrongly; names the architecture or the key.
    ShapeError
        Another dtype.
    """
    from .loaders import open_checkpoint

    name = None if dtype is None else precision(dtype).name
    return Model(open_checkpoint(path, dtype=name))


__all__ = ["BadValue", "Error", "Model", "Plan", "Weights", "load"]
