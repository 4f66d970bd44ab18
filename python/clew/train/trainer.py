"""The loop around steps: batches in a seeded order, schedule, held-out data, checkpoints, what it shows."""

from __future__ import annotations

import functools
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, LoadError, TrainingError
from ..inputs import check_flags, check_folder, nearest
from . import checkpoint
from .adamw import AdamW, Decay
from .curve import Curve
from .data import Sequences, Source, as_held_out, as_source, check_seed, digest
from .progress import Progress
from .schedule import Schedule
from .step import Examples, Packed, batched, evaluate, gradients_for, loss_and_gradients, pack

if TYPE_CHECKING:
    from ..model import Model


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"Trainer: {name} = {value!r}, must be a whole number, at least {least}")
    return int(value)


_LEAST = {
    "steps": 0, "batch": 1, "micro_batch": 1, "memory": 1, "eval_every": 1, "eval_batch": 1, "checkpoint_every": 1,
    "keep": 1,
}  # fmt: skip
"""Settings that are whole numbers, and the least of each."""


class Trainer:
    """Trains a model for a number of steps; stopped anywhere and resumed, it gives the same bits as without the stop.

    Everything random comes of `seed` and the step's number, sums are cut by shape and never by the number of threads.

    Parameters
    ----------
    model
        What is trained; its weights change in place.
    data
        A text or a stream of ids (windows of `context` tokens, drawn at random), sequences (each once in an epoch),
        (tokens, targets) or (tokens, targets, loss_mask), a function `f(rng, size)` that makes a batch, or a source of
        :mod:`clew.train.data`.
    steps, batch
        Steps in all; sequences of each.
    lr
        Learning rate, or a :class:`Schedule` (`clew.train.cosine(…)`).
    betas, eps, weight_decay, clip, decay
        As :class:`clew.AdamW` takes them.
    context
        Length of windows; None: n_ctx.
    micro_batch
        Sequences of one forward and backward pass; gradients are added up over a batch. None: the whole batch, or what
        `memory` allows.
    memory
        Bytes that activations may take: the batch is halved until they do.
    recompute
        Blocks run again in the backward pass instead of keeping their activations: the same bits, less memory, a third
        more work. None: only where `memory` does not suffice for one sequence otherwise.
    held_out, eval_every, eval_batch
        Data whose loss is measured before the first step, every so many steps and at the end; a stream is cut into
        windows of `context`. Sequences run at a time.
    directory, checkpoint_every, keep
        Where checkpoints go, how often, and how many of the newest stay; older ones go once a loss with the newest's
        weights is known to be finite. With `held_out`, "best.safetensors" is the one of the least loss. There is a
        checkpoint at the end and after Ctrl-C too. `curve.jsonl` holds the loss curve.
    snapshots
        Steps after which the model is kept for good, in the folder `step-N` of the directory, as `model.save` writes
        it; 0: before the first. A resumed run writes what the stopped one had no time for.
    resume
        Go on from the newest checkpoint in the directory. False: a directory with checkpoints is refused.
    seed
        Of the order of the data.
    progress
        A bar where tqdm is installed, else lines; "lines"; False: nothing is printed.
    callback
        Called with this trainer after each step.

    Raises
    ------
    ConfigError
        Settings out of range, or a checkpoint of a run with other settings (names both values). What the source's own
        check of the model raises.
    TrainingError
        From :meth:`run`: a loss or a gradient that is NaN or infinite. Names the step, the step whose weights the model
        holds, which gave it, and the last good checkpoint; a checkpoint of weights that give no finite loss of what
        they were last trained on is removed, so that the newest is one to go on from.

    Example
    -------
    >>> import clew, numpy as np
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=16, d_vocab=8))
    >>> trainer = clew.train.Trainer(model, np.arange(200) % 8, steps=20, batch=2, lr=1e-2, progress=False)
    >>> trainer.run(until=10).rows[-1][0], trainer.run().rows[-1][0]
    (10, 20)
    """

    def __init__(
        self,
        model: Model,
        data: Any,
        steps: int,
        batch: int,
        *,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        decay: Decay = None,
        context: int | None = None,
        micro_batch: int | None = None,
        memory: int | None = None,
        recompute: bool | None = None,
        held_out: Any = None,
        eval_every: int = 100,
        eval_batch: int = 16,
        directory: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1000,
        keep: int = 2,
        snapshots: Iterable[int] = (),
        resume: bool = True,
        seed: int = 0,
        progress: bool | str = True,
        callback: Callable[[Trainer], object] | None = None,
    ) -> None:
        from ..model import check_model

        check_model(model)
        check_flags(resume=resume)
        if directory is not None:
            check_folder(directory=directory)
        self.model = model
        self.steps, self.batch, self.micro_batch, self.memory = steps, batch, micro_batch, memory
        self.recompute = recompute
        self.eval_every, self.eval_batch = eval_every, eval_batch
        self.checkpoint_every, self.keep = checkpoint_every, keep
        self.snapshots: frozenset[int] = snapshots  # type: ignore[assignment]  # made one where it is set
        if self.snapshots and directory is None:
            raise ConfigError("Trainer: snapshots need a directory to be kept in")
        if self.snapshots and max(self.snapshots) > self.steps:
            raise ConfigError(f"Trainer: snapshots of step {max(self.snapshots)}, training ends at {self.steps}")
        if context is not None:
            context = _whole("context", context, 1)
        if not isinstance(progress, bool | np.bool_ | str) or progress not in (True, False, "lines"):
            raise ConfigError(f'Trainer: progress = {progress!r}: True, False or "lines"')
        self.callback = callback
        self.schedule: Schedule = lr  # type: ignore[assignment]  # made one where it is set
        self.source: Source = as_source(data, model, context, check_seed(seed))
        check = getattr(self.source, "check", None)
        if callable(check):
            check(model)
        self.held_out = None if held_out is None else batched(model, as_held_out(held_out, model, context))
        self.optimizer = AdamW(model, self.schedule(0), betas, eps, weight_decay, clip, decay)
        self.curve = Curve()
        """Losses so far."""
        self.notes: list[str] = []
        """What was found when training was resumed: checkpoints or a loss curve that could not be read, another
        schedule, more steps done than are wanted."""
        self._noted = 0  # of them shown
        self._progress = progress if isinstance(progress, str) else bool(progress)
        self._tokens = 0  # of the last step
        self._sound = self._untried = -1  # steps of the last weights known to be good; of a checkpoint still to try
        self.directory = None if directory is None else Path(directory)
        if self.directory is not None:
            self._open(self.directory, resume)

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks settings, which a callback may set between steps as the constructor does."""
        if name in _LEAST and not (value is None and name in ("micro_batch", "memory")):
            value = _whole(name, value, _LEAST[name])
        elif name == "recompute" and value is not None and not isinstance(value, bool | np.bool_):
            raise ConfigError(f"Trainer: recompute = {value!r}: True, False or None")
        elif name == "snapshots":
            if not isinstance(value, Iterable) or isinstance(value, str | bytes):
                raise ConfigError(f"Trainer: snapshots = {value!r}: a list of steps")
            value = frozenset(_whole("a step of snapshots", step, 0) for step in value)
        elif name == "callback" and value is not None and not callable(value):
            raise ConfigError(f"Trainer: callback = {value!r} cannot be called")
        elif name == "schedule" and not isinstance(value, Schedule):
            value = Schedule("constant", value)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        rows = self.curve.rows
        loss = f"; loss {rows[-1][1]:.4g}" if rows else ""
        where = "" if self.directory is None else f"; checkpoints in {self.directory}"
        return f"Trainer: step {self.optimizer.steps} of {self.steps}, batch {self.batch}, {self.source!r}{loss}{where}"

    def __reduce__(self) -> Any:
        raise TypeError("a Trainer can be neither copied nor pickled: make one of the copied model")

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        opt = self.optimizer
        return {
            "data": self.source.identity(),
            "batch": self.batch,
            "betas": list(opt.betas),
            "eps": opt.eps,
            "weight_decay": opt.weight_decay,
            "clip": opt.clip,
            "decays": opt.decays,
        }

    @functools.cached_property
    def _held_out_is(self) -> str | None:
        """Names the held-out data; noted, not refused, where a resumed run has others."""
        data = self.held_out
        return None if data is None else Sequences(data.tokens, data.targets, data.loss_mask).identity()

    def _weights_are(self) -> str:
        """Names the weights as they are now."""
        return digest(*(value for name, value in self.optimizer.state().items() if name.startswith("weights/")))

    def _open(self, directory: Path, resume: bool) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(directory)
        curve = directory / "curve.jsonl"
        written = [curve, directory / "best.safetensors", *(path for _, path in checkpoint.found(directory))]
        for path in written:  # now, not at the first save
            if path.is_dir():
                raise ConfigError(f"Trainer: {path} is a folder, where training writes a file")
        for step in self.snapshots:
            check_folder(snapshot=directory / f"step-{step}")
        saved = checkpoint.newest(directory, self.notes)
        own = self._weights_are()
        self._began: str | None = own
        """Names the weights before the run's first step; None where its checkpoints do not tell."""
        if saved is None:
            if checkpoint.found(directory):
                raise ConfigError(f"Trainer: no checkpoint of {directory} can be read: {'; '.join(self.notes)}")
            self._note_curve(curve)
            return
        if not resume:
            raise ConfigError(f"Trainer: {directory} holds checkpoints ({saved.path.name}), and resume is False")
        mine = {"config": self.model.config.to_dict(), "dtype": str(self.model.dtype), **self._settings()}
        # fields that came into being since then had their default
        known = {field.name: field.default for field in fields(self.model.config) if field.default is not MISSING}
        # and so with keys of `extra`, none of which changes what is computed
        extra = {**mine["config"]["extra"], **saved.state["config"].get("extra", {})}
        theirs = {
            "config": {**checkpoint.as_json(known), **saved.state["config"], "extra": checkpoint.as_json(extra)},
            "dtype": saved.state["dtype"],
            **saved.state["settings"],
        }
        for key, value in mine.items():
            other = theirs.get(key)
            if isinstance(value, dict) and isinstance(other, dict):
                pairs = [(f"{key}.{name}", value.get(name), other.get(name)) for name in {**value, **other}]
            else:
                pairs = [(key, value, other)]
            for name, ours, found in pairs:
                if checkpoint.as_json(ours) != found:
                    raise ConfigError(f"Trainer: {saved.path} was made with {name} = {found!r}, this run has {ours!r}")
        before = saved.state["settings"].get("held_out")
        if before is not None and self.held_out is not None and before != self._held_out_is:
            self.notes.append(
                f"{saved.path} was made with other held-out data: losses up to step {saved.steps}, and the best, "
                "are not comparable with later ones"
            )
        rates = saved.state["schedule"]
        if rates != checkpoint.as_json(self.schedule.to_dict()):
            then = (
                "from here on this run's counts" if saved.steps < self.steps else "nothing is left to train with this"
            )
            self.notes.append(f"{saved.path} was made with another schedule, {rates}: {then}")
        self.optimizer.load_state(saved.arrays, saved.steps)
        self.curve = saved.curve
        self._note_curve(curve)
        self._began = saved.state["settings"].get("weights")
        if self._began not in (None, own) and own != self._weights_are():
            self.notes.append(
                f"{saved.path} is of a run that began with other weights than this model had: they are replaced by its "
                f"own of step {saved.steps}"
            )
        if saved.steps > self.steps:
            self.notes.append(f"{saved.path} is at step {saved.steps} already: nothing to train until {self.steps}")

    def _note_curve(self, path: Path) -> None:
        """Notes a loss curve on disk that is none: it will be replaced by that of the checkpoint, which counts."""
        if path.exists():
            try:
                Curve.load(path)
            except LoadError as error:
                self.notes.append(f"{error}; the first save replaces it")

    def save(self) -> Path | None:
        """Writes a checkpoint of the state as it is; its path. None without a directory. Raises OSError.

        Older ones are thinned out once these weights have given a finite loss: now or in the next step.
        """
        if self.directory is None:
            return None
        self.curve.cut(self.optimizer.steps)
        path = checkpoint.path_of(self.directory, self.optimizer.steps)
        settings = {**self._settings(), "held_out": self._held_out_is, "weights": self._began}
        checkpoint.write(path, self.optimizer, self.curve, settings, self.schedule.to_dict())
        best = self.curve.best
        if best is not None and best[0] == self.optimizer.steps:
            checkpoint.copy(path, self.directory / "best.safetensors")
        self.curve.save(self.directory / "curve.jsonl")
        self._untried = self.optimizer.steps
        self._thin()
        return path

    def _thin(self) -> None:
        """Removes old checkpoints, if the newest is known to be good."""
        if self.directory is not None and self._untried == self._sound >= 0:
            checkpoint.thin(self.directory, self.keep)
            self._untried = -1

    def _try(self) -> None:
        """Are the weights good? They must give a finite loss and gradient of what they were last trained on.

        Raises TrainingError.
        """
        opt = self.optimizer
        if self._sound == opt.steps:
            return
        try:
            for packed in self._pieces(self._examples(max(opt.steps - 1, 0))):
                opt.discard()
                opt.prepare(loss_and_gradients(opt, packed, bool(self.recompute))[1])
        except TrainingError:
            raise TrainingError(
                f"step {opt.steps}: the loss of its batch, or its gradient, is NaN or infinite after it; the weights "
                f"are those of step {opt.steps}",
                opt.steps,
            ) from None
        self._sound = opt.steps

    def _last_good(self) -> str:
        """Removes the newest checkpoint if it is of these weights and they are broken; says which is the last good."""
        if self.directory is None:
            return ""
        path = checkpoint.path_of(self.directory, self.optimizer.steps)
        if path.exists():
            try:
                self._try()
            except TrainingError:
                path.unlink()
        kept = checkpoint.found(self.directory)
        return f"; last good checkpoint: {kept[0][1]}" if kept else "; no good checkpoint"

    def _snapshot(self, again: bool = True) -> None:
        """Keeps the model as it is, where that is wanted (and, not `again`, where it is not there): before the step's
        checkpoint, so that a run that goes on from one has all snapshots up to there."""
        step = self.optimizer.steps
        if self.directory is not None and step in self.snapshots:
            place = self.directory / f"step-{step}"
            if again or not checkpoint.holds_model(place):
                self.model.save(place)

    # ---- memory ---------------------------------------------------------------------------------------------------

    def _activation_bytes(self, lengths: NDArray[np.int32]) -> int:
        return int(gradients_for(self.optimizer, lengths, bool(self.recompute)).scratch_bytes)

    def _fitting(self, lengths: NDArray[np.int32], most: int) -> int:
        """How many of these sequences, from the first, run at a time within `memory`: `most`, halved until they do."""
        size = most
        while self.memory is not None and (needed := self._activation_bytes(lengths[:size])) > self.memory:
            if size > 1:
                size = (size + 1) // 2
            elif self.recompute is None:
                self.recompute, size = True, most
            else:
                raise ConfigError(f"Trainer: memory = {self.memory}: activations of one sequence take {needed} bytes")
        return size

    def plan(self) -> str:
        """Chooses the size of micro-batches; a line about the memory that training takes.

        Looked at are the first batch and, of data that come in parts (`starts`), the first one of each part, whatever
        step training goes on from: micro-batches, and with them the bits, are those of a run without a stop. Where a
        later batch is larger still, its pieces are halved once more.

        Raises ConfigError where `memory` does not suffice for one sequence, naming the bytes.
        """
        starts = getattr(self.source, "starts", None)
        batches = [
            np.sort(pack(self.model, self._examples(step)).lengths)[::-1]
            for step in ([0] if starts is None else starts())
        ]  # the longest sequences first: no other piece of the batch takes more
        size = self.micro_batch or max(map(len, batches))
        for lengths in batches:
            size = self._fitting(lengths, size)
        self.micro_batch = size
        needed, largest = max(
            ((self._activation_bytes(lengths[:size]), lengths[:size]) for lengths in batches), key=lambda pair: pair[0]
        )
        weights = sum(value.nbytes for value in self.optimizer.state().values()) // 3
        sums = weights if size < max(map(len, batches)) else 0
        shape = f"{len(largest)} × {largest[0]}{', recomputed' if self.recompute else ''}"
        parts = [
            ("weights", weights),
            ("gradients", weights + sums),
            ("moments", 2 * weights),
            (f"activations of {shape}", needed),
        ]
        text = ", ".join(f"{what} {n / 1e6:.3g} MB" for what, n in parts)
        return f"{self.model.n_params:,} parameters: {text}; {sum(n for _, n in parts) / 1e6:.3g} MB in all"

    def _pieces(self, examples: Examples) -> list[Packed]:
        """A batch in micro-batches."""
        assert self.micro_batch is not None
        lengths = None if self.memory is None else pack(self.model, examples).lengths
        out: list[Packed] = []
        start = 0
        while start < len(examples):
            size = self.micro_batch if lengths is None else self._fitting(lengths[start:], self.micro_batch)
            out.append(pack(self.model, examples.part(start, start + size), part=True))
            start += size
        return [packed for packed in out if packed.total] or [pack(self.model, examples)]  # which says what lacks

    # ---- steps ----------------------------------------------------------------------------------------------------

    def _examples(self, step: int) -> Examples:
        examples = self.source.batch(step, self.batch)
        if not isinstance(examples, Examples) or len(examples) == 0:
            raise ConfigError(f"Trainer: the data gave {examples!r} for step {step + 1}, expected clew.train.Examples")
        return examples

    def step(self) -> float:
        """One step; the mean loss of its batch. Raises TrainingError as :meth:`run`."""
        if self.model._active_edits():
            raise ConfigError(
                "training inside model.edited(): the gradient would be that of the model without its edits"
            )
        if self.micro_batch is None:
            self.plan()
        opt = self.optimizer
        number = opt.steps
        opt.discard()
        opt.lr = self.schedule(number)
        pieces = self._pieces(self._examples(number))
        loss = total = 0.0
        tokens = 0
        gradients = None
        for packed in pieces:
            part, gradients = loss_and_gradients(opt, packed, bool(self.recompute))
            loss, total, tokens = loss + part * packed.total, total + packed.total, tokens + int(packed.lengths.sum())
            if len(pieces) > 1:
                opt.accumulate(gradients, packed.total)
        arrays, norm, scale = opt.prepare(gradients if len(pieces) == 1 else None)
        self._sound = number
        self._thin()
        # before the step: an interrupt between the two leaves a row too many, which is cut, never one too few
        self.curve.cut(number)
        self.curve.rows.append((number + 1, loss / total, opt.lr, norm))
        opt.apply(arrays, norm, scale)
        self._tokens = tokens
        return loss / total

    def _evaluate(self) -> float | None:
        """Held-out loss of the model as it is, once for each step."""
        if self.held_out is None or (self.curve.held_out and self.curve.held_out[-1][0] == self.optimizer.steps):
            return None
        loss, _ = evaluate(self.model, self.held_out, self.eval_batch)
        if not math.isfinite(loss):
            step = self.optimizer.steps
            raise TrainingError(f"step {step}: the held-out loss is {loss}; the weights are those of step {step}", step)
        self.curve.held_out.append((self.optimizer.steps, loss))
        return loss

    def run(self, until: int | None = None) -> Curve:
        """Trains until so many steps are done (None: all); the loss curve so far.

        Raises TrainingError (the model then holds the weights that gave the loss: no step was done with it), and
        OSError when a checkpoint cannot be written: the older ones are whole then.
        """
        end = self.steps if until is None else min(_whole("until", until, 0), self.steps)
        self.curve.cut(self.optimizer.steps)
        plan = self.plan() if self.optimizer.steps < end or self.micro_batch is None else None
        show = Progress(self._progress, self.optimizer.steps, self.steps)
        kept = checkpoint.found(self.directory) if self.directory is not None else []
        saved = kept[0][0] if kept else -1
        try:
            for note in self.notes[self._noted :]:
                show.line(note)
            self._noted = len(self.notes)
            if plan is not None:
                show.line(plan)
            self._snapshot(again=self.optimizer.steps == 0)  # or what an interrupt came before
            if self.optimizer.steps == 0 and (loss := self._evaluate()) is not None:
                show.line(f"step 0: held-out loss {loss:.4f}")
            while self.optimizer.steps < end:
                began = time.perf_counter()
                self.step()
                number, loss, rate, norm = self.curve.rows[-1]
                show.step(number, loss, rate, norm, time.perf_counter() - began, self._tokens)
                if self.held_out is not None and (number % self.eval_every == 0 or number == self.steps):
                    held = self._evaluate()
                    show.line(f"step {number}: held-out loss {held:.4f}" if held is not None else "")
                if self.callback is not None:
                    self.callback(self)
                self._snapshot()
                best = self.curve.best is not None and self.curve.best[0] == number and number > 0
                if number % self.checkpoint_every == 0 or best:
                    self.save()
                    saved = number
            if self.optimizer.steps != saved:
                self.save()
                saved = self.optimizer.steps
            if self._untried == self.optimizer.steps > 0:  # no step comes that would tell
                self._try()
                self._thin()
        except TrainingError as error:
            raise TrainingError(f"{error}{self._last_good()}", error.step) from None
        except KeyboardInterrupt:
            if self.optimizer.steps != saved:
                self.save()
            raise
        finally:
            self.curve.cut(self.optimizer.steps)
            show.close()
        return self.curve


_ELSEWHERE = {
    "learning_rate": "lr", "epochs": "steps, batches in all", "num_epochs": "steps, batches in all",
    "max_steps": "steps", "batch_size": "batch",
}  # fmt: skip
"""What other libraries call a setting, and its name here."""


def fit(model: Model, data: Any, steps: int, batch: int, **settings: Any) -> Curve:
    """Trains a model in place and gives the loss curve.

    data: a text, a stream of ids, sequences, (tokens, targets), (tokens, targets, loss_mask), or a function that makes
    batches. settings, each described at :class:`Trainer`: lr, betas, eps, weight_decay, clip, decay, context,
    micro_batch, memory, recompute, held_out, eval_every, eval_batch, directory, checkpoint_every, keep, snapshots,
    resume, seed, progress, callback.

    Raises what it raises, and ConfigError for a setting that there is not, with the nearest. Without progress, what
    resuming found (`Trainer.notes`) comes as warnings.

    >>> import clew
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=5))
    >>> len(fit(model, [0, 1, 2, 3, 4] * 9, steps=3, batch=2, progress=False).losses)
    3
    """
    known = inspect.signature(Trainer).parameters
    for name in settings:
        if name not in known:
            hint = f"; here it is {_ELSEWHERE[name]}" if name in _ELSEWHERE else nearest(name, known)
            raise ConfigError(f"fit: no setting {name!r}{hint}; clew.train.Trainer says what each is")
    for needed, names in (
        ("directory", ("checkpoint_every", "keep", "resume")),
        ("held_out", ("eval_every", "eval_batch")),
    ):
        for name in names:
            if name in settings and settings.get(needed) is None:
                raise ConfigError(f"fit: {name} has no effect without {needed}")
    trainer = Trainer(model, data, steps, batch, **settings)
    if not settings.get("progress", True):  # then nobody would hear of them
        for note in trainer.notes:
            warnings.warn(note, stacklevel=2)
    return trainer.run()
