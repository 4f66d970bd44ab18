"""Generating text with a key-value cache: every new token costs one row."""

from __future__ import annotations

import hashlib
import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .edit import CoreEdit, Edit, _Frozen, _positions, _resolve_one, as_edits, check_last, indices, resolve
from .errors import ConfigError, ShapeError, TokenError, UnsupportedModelError
from .inputs import MOST_TOKENS, as_array, check_counts, check_seed, padded, sliced
from .replay import LOGITS_ALL, LOGITS_LAST, core_plan
from .run import Run
from .sites import LOGITS, SITES, Site, capture_list

if TYPE_CHECKING:
    from .inputs import Batch
    from .model import Capture, Model
    from .tokenizer import Tokenizer

Array = NDArray[Any]
Ints = NDArray[np.int32]
Stop = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class Step:
    """One new token of every sequence that goes on; what `generate_stream` yields."""

    sequences: tuple[int, ...]
    """Which sequences."""
    tokens: tuple[int, ...]
    """The new token of each."""
    texts: tuple[str, ...]
    """Its text, as far as it is whole characters and no stop text can begin there; the rest comes with a later step,
    with a sequence's last one at the latest, so that all pieces are what `generate` gives. Empty without a
    tokenizer."""
    log_probs: tuple[float, ...]
    """Its log-probability under the model's own logits, nats."""
    run: Run | None = None
    """The captured sites over what was read to choose them: the prompts, later a token of each. None without any."""


class Generation:
    """What was generated.

    Attributes
    ----------
    tokens
        New token ids of each sequence, int32 [n]; the one that ended it included.
    prompts
        Token ids of each prompt.
    text
        New text of each sequence, without a stop string and what follows it; None without a tokenizer.
    log_probs
        Log-probability of each new token under the model's own logits, nats, float64 [n].
    stopped
        Why each sequence ended: "length", or the stop token or string.
    run
        A :class:`clew.Run` with the captured sites over prompt and new tokens, as one run over the whole would give
        them; None where nothing was captured. `generation["resid_post", 3]` reads it.
    """

    def __init__(
        self,
        prompts: list[Array],
        tokens: list[Array],
        log_probs: list[Array],
        stopped: list[str | int],
        text: list[str] | None,
        run: Run | None,
        seed: int | None,
    ) -> None:
        self.prompts, self.tokens, self.log_probs, self.stopped = prompts, tokens, log_probs, stopped
        self.text, self.run = text, run
        self.seed = seed
        """What the random numbers came from; None for greedy text."""

    def __getitem__(self, key: str | tuple[str, int]) -> Array:
        if self.run is None:
            raise ConfigError(f"{key!r}: nothing was captured; give generate() capture=")
        return self.run[key]

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        shown = self.text if self.text is not None else [t.tolist() for t in self.tokens]
        rows = [
            f"  {text!r}  ({len(t)} token{'s' if len(t) != 1 else ''}, {why if why == 'length' else repr(why)})"
            for text, t, why in zip(shown, self.tokens, self.stopped, strict=True)
        ]
        return "\n".join([f"Generation of {len(self)} sequence{'s' if len(self) != 1 else ''}", *rows])

    def _repr_html_(self) -> str:
        shown = self.text if self.text is not None else [str(t.tolist()) for t in self.tokens]
        cells = "".join(
            f"<tr><td><pre>{escape(text)}</pre></td><td>{len(t)}</td><td>{escape(repr(why))}</td></tr>"
            for text, t, why in zip(shown, self.tokens, self.stopped, strict=True)
        )
        return f"<table><tr><th>new text</th><th>tokens</th><th>stopped by</th></tr>{cells}</table>"


@dataclass(frozen=True)
class Settings:
    """Checked arguments of `generate`."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop_tokens: frozenset[int]
    stop_texts: tuple[str, ...]


def settings(
    model: Model, max_new_tokens: Any, temperature: Any, top_k: Any, top_p: Any, seed: Any, stop: Stop
) -> Settings:
    """Arguments of `generate`, or an error that names the one that is wrong."""
    n = _whole("max_new_tokens", max_new_tokens, 1)
    check_counts(max_new_tokens=n)
    k = 0 if top_k is None else _whole("top_k", top_k, 1)
    check_counts(0, top_k=k)
    try:
        if any(isinstance(value, str | bytes | bool | np.bool_) for value in (temperature, top_p)):
            raise TypeError
        heat, p = float(temperature), 1.0 if top_p is None else float(top_p)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"temperature = {temperature!r:.40}, top_p = {top_p!r}: both are numbers") from None
    if not 0 <= heat < np.inf:
        raise ConfigError(f"temperature = {temperature}: 0 (the likeliest token) or more")
    if not 0 < p <= 1:
        raise ConfigError(f"top_p = {top_p}: must lie in (0, 1]")
    if heat == 0 and (top_k is not None or top_p is not None):
        raise ConfigError("top_k and top_p choose among random tokens: give a temperature above 0")
    if seed is not None:
        seed = check_seed(seed)
    elif heat > 0:
        seed = secrets.randbits(63)
    tokens: set[int] = set()
    texts: list[str] = []
    several = isinstance(stop, Iterable) and not isinstance(stop, (str, bytes))
    several = several and not (isinstance(stop, np.ndarray) and stop.ndim == 0)
    items: list[Any] = [] if stop is None else list(stop) if several else [stop]  # type: ignore[arg-type]
    for item in items:
        if isinstance(item, str) and item:
            if model.tokenizer is None:
                raise TokenError(f"stop = {item!r}: a model without a tokenizer stops at token ids only")
            texts.append(item)
        elif isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            if not 0 <= item < model.config.d_vocab_out:
                raise TokenError(f"stop token {item}: there are ids 0 to {model.config.d_vocab_out - 1}")
            tokens.add(int(item))
        else:
            raise ConfigError(f"stop = {item!r}: token ids and texts that are not empty")
    return Settings(n, heat, k, p, seed if heat > 0 else None, frozenset(tokens), tuple(texts))


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} = {value!r}: a whole number, {least} or more")
    return int(value)


# ---- Edits while the text grows -------------------------------------------------------------------------------------


def _prompt_positions(edit: Edit, lengths: Ints, n_new: int) -> Edit:
    """The edit with negative positions and masks counted over the prompts."""
    where = edit.positions
    if where is None:
        return edit
    batch = indices(edit.batch, len(lengths), "batch", repr(edit))
    own = lengths if batch is None else lengths[batch]
    if isinstance(where, slice):
        return _prompt_slice(edit, where, own, n_new)
    array = as_array(where, f"{edit!r}: positions")
    longest = int(lengths.max())
    if array.dtype == bool and array.ndim == 1 and len(array) != longest + n_new:
        if len(array) != longest:
            raise ShapeError(
                f"{edit!r}: a mask {list(array.shape)} for prompts of {longest} positions, {longest + n_new} with the "
                "new ones"
            )
        if array[int(own.min()) :].any():
            raise ShapeError(f"{edit!r}: the mask selects positions behind the end of a prompt of {own.min()} tokens")
        return replace(edit, positions=np.flatnonzero(array))
    if array.dtype.kind not in "iu" or array.ndim > 2 or not (array < 0).any():
        return edit
    if array.ndim == 2 and len(array) != len(own):
        raise ShapeError(f"{edit!r}: positions {list(array.shape)} for {len(own)} sequences")
    rows = np.broadcast_to(np.atleast_1d(array), (len(own), array.shape[-1] if array.ndim else 1))
    if (rows < -own[:, None]).any():
        raise ConfigError(f"{edit!r}: a position before the prompt's first")
    return replace(edit, positions=np.where(rows < 0, rows + own[:, None], rows))


def _prompt_slice(edit: Edit, where: slice, own: Ints, n_new: int) -> Edit:
    """A slice whose negative ends count from the prompts' ends, as lists of positions; new tokens are behind them."""
    if not any(isinstance(end, int | np.integer) and end < 0 for end in (where.start, where.stop)):
        return edit
    rows = []
    for n in own.tolist():
        start, stop = (end if end is None or end >= 0 else max(0, end + n) for end in (where.start, where.stop))
        rows.append(sliced(slice(start, stop, where.step), n + n_new, f"{edit!r}: positions"))
    if len({len(row) for row in rows}) > 1:
        raise ShapeError(f"{edit!r} selects {[len(row) for row in rows]} positions: name them for each sequence")
    return replace(edit, positions=np.array(rows))


def _is_of_prompt(edit: Edit, site: Site, lengths: Ints, n_new: int) -> bool:
    """Do the edit's values cover the prompt, no more and no less?

    Where both readings fit, a value is broadcast as anywhere else: only what would not fit the whole text is meant.
    """
    if isinstance(edit.value, _Frozen):
        run = edit.value.run
        return isinstance(run, Run) and len(run.lengths) in (1, len(lengths)) and not (run.lengths != lengths).any()
    if not isinstance(edit.value, np.ndarray | list | tuple) or "pos" not in site.axes:
        return False
    shape = as_array(edit.value, f"{edit!r}: the value").shape
    axis = site.axes.index("pos") - len(site.axes) + len(shape)
    longest = int(lengths.max())
    if axis < 0 or shape[axis] != longest or longest == 1:
        return False
    batch = indices(edit.batch, len(lengths), "batch", repr(edit))
    selected = _positions(edit.positions, (lengths + n_new).astype(np.int32), batch, repr(edit))
    return selected is None or selected.shape[-1] != longest


def _over_prompt(edit: Edit, site: Site, layer: int, model: Model, lengths: Ints) -> list[CoreEdit]:
    """An edit of the prompt's positions alone, as the core reads it."""
    number, layer, kind, batch, positions, heads, keys, value, strides, call = _resolve_one(
        edit, site, layer, model, lengths
    )
    if keys is None and "key_pos" in site.axes:  # the text will have more of them
        keys = np.arange(lengths.max(), dtype=np.int32)
    if positions is not None:
        return [(number, layer, kind, batch, positions, heads, keys, value, strides, call)]
    assert value is not None
    rows = np.arange(len(lengths), dtype=np.int32) if batch is None else batch
    own = lengths[rows]
    every = np.arange(lengths.max(), dtype=np.int32)
    if (own == own[0]).all():
        positions = np.ascontiguousarray(np.broadcast_to(every[: own[0]], (len(rows), own[0])))
        return [(number, layer, kind, batch, positions, heads, keys, value, strides, call)]
    out: list[CoreEdit] = []
    for i, n in enumerate(own):  # as many positions as each prompt has
        part = value if strides[0] == 0 else np.ascontiguousarray(value[i : i + 1])
        out.append((number, layer, kind, rows[i : i + 1], every[None, :n], heads, keys, part, (0, *strides[1:]), call))
    return out


def _growing(core: list[CoreEdit], total: int, n_seq: int) -> list[CoreEdit]:
    """Edits whose values differ by position name the positions, as a step's first row is not the text's first."""
    out = []
    for edit in core:
        site, layer, kind, batch, positions, heads, neurons, value, strides, call = edit
        if positions is None and strides[1] != 0:
            n = n_seq if batch is None else len(batch)
            positions = np.ascontiguousarray(np.broadcast_to(np.arange(total, dtype=np.int32), (n, total)))
        out.append((site, layer, kind, batch, positions, heads, neurons, value, strides, call))
    return out


def _held(
    edits: Iterable[Edit], model: Model, lengths: Ints, n_new: int
) -> tuple[list[CoreEdit], list[Callable[..., Any]]]:
    """Edits of texts that grow, as the core reads them, and the functions that they call."""
    core: list[CoreEdit] = []
    calls: list[Callable[..., Any]] = []
    whole = (lengths + n_new).astype(np.int32)
    for given in edits:
        edit = _prompt_positions(given, lengths, n_new)
        for site, layer in model.sites().resolve([edit.site]):
            if _is_of_prompt(edit, site, lengths, n_new):
                core += _over_prompt(edit, site, layer, model, lengths)
                continue
            if (
                isinstance(edit.value, _Frozen)
                and isinstance(edit.value.run, Run)
                and (len(edit.value.run.lengths) not in (1, len(lengths)) or (edit.value.run.lengths != whole).any())
            ):
                raise ShapeError(
                    f"{edit!r}: the run has prompts of {edit.value.run.lengths.tolist()} tokens, these are of "
                    f"{lengths.tolist()}, or of {whole.tolist()} with the new ones"
                )
            found, functions = resolve([replace(edit, site=site.full_name(layer))], model, whole, None, None)
            core += [(*one[:-1], one[-1] + len(calls) if functions else -1) for one in found]
            calls += functions
    return _growing(core, int(whole.max()), len(lengths)), calls


# ---- The loop -------------------------------------------------------------------------------------------------------


def _streams(tokens: Ints, lengths: Ints) -> NDArray[np.int64]:
    """What each sequence draws its random numbers by: its prompt, and how many equal ones stand before it.

    Not its row, so that a text stays the same whatever else is in the batch.
    """
    seen: Counter[bytes] = Counter()
    out = []
    for row in np.split(tokens, np.cumsum(lengths)[:-1]):
        prompt = row.astype("<i4").tobytes()
        key = hashlib.blake2b(prompt + seen[prompt].to_bytes(8, "little"), digest_size=8).digest()
        out.append(int.from_bytes(key, "little", signed=True))
        seen[prompt] += 1
    return np.array(out, np.int64)


class _Decoder:
    """A batch of texts that grow: the cache, and what each step gives."""

    def __init__(
        self, model: Model, batch: Batch, how: Settings, capture: Sequence[tuple[Site, int]], edits: tuple[Edit, ...],
        limits: Ints | None = None,
    ) -> None:  # fmt: skip
        config = model.config
        if config.attention_dir != "causal":
            raise UnsupportedModelError("generation needs causal attention: this model's positions see what follows")
        if config.d_vocab_out > config.d_vocab:
            raise UnsupportedModelError(
                f"generation feeds tokens back: the model writes {config.d_vocab_out} and reads {config.d_vocab}"
            )
        if batch.tokens is None or config.d_out is not None:
            raise UnsupportedModelError(
                f"generation feeds tokens back: this model has d_in = {config.d_in}, d_out = {config.d_out}"
            )
        self.model, self.how, self.capture = model, how, capture
        self.keeps_logits = LOGITS in (site for site, _ in capture)
        self.lengths = batch.lengths
        self.limits: Ints = np.full(len(batch.lengths), how.max_new_tokens, np.int32) if limits is None else limits
        """New tokens of each sequence, at most."""
        ends = batch.lengths.astype(np.int64) + self.limits
        longest = int(ends.argmax())
        total = int(ends[longest])
        weights = model.weights
        if "pos_embed.W_pos" in weights:
            learned = weights["pos_embed.W_pos"].shape[0] - config.pos_offset
            if total > learned:
                raise TokenError(
                    f"a prompt of {batch.lengths[longest]} tokens and {self.limits[longest]} new ones: "
                    f"the model has {learned} learned positions"
                )
        if total > MOST_TOKENS:
            raise TokenError(f"max_new_tokens = {self.limits[longest]}: a text has at most {MOST_TOKENS} tokens")
        self.ends: Ints = ends.astype(np.int32)
        """Tokens of each whole text, at most."""
        shape = (len(batch.lengths), total, config.n_key_value_heads, config.d_head)
        layers = range(config.n_layers)
        try:
            self.cache = tuple([_core.empty(shape, model.dtype.name) for _ in layers] for _ in range(2))
        except MemoryError:
            size = 2 * config.n_layers * math.prod(shape) * model.dtype.itemsize
            raise MemoryError(
                f"max_new_tokens = {self.limits[longest]}: keys and values of {shape[0]} × {total} tokens take "
                f"{size} bytes"
            ) from None
        self.streams = _streams(batch.tokens, batch.lengths)
        # edits may name as many positions of every text, also those that a lower limit leaves out
        self.edits, self.calls = _held((*model._active_edits(), *edits), model, batch.lengths, how.max_new_tokens)
        if not self.keeps_logits:
            check_last(self.edits, batch.lengths, "generate reads")
        self.kept: list[tuple[Ints, Ints, Ints, Any]] = []
        """Of each step: sequences, first positions, lengths, outputs."""

    def run(
        self, tokens: Ints, lengths: Ints, past: Ints, sequences: Ints, logits: int = LOGITS_LAST,
        last: Ints | None = None,
    ) -> Array | None:  # fmt: skip
        """Logits [sequences, 1, vocab] behind new tokens, or [sum of last, 1, vocab] behind so many of each one's."""
        plan = core_plan(
            self.model,
            lengths,
            self.capture,
            -1,
            LOGITS_ALL if self.keeps_logits else logits,
            False,
            edits=self.edits,
            past=past,
            past_seq=sequences,
            append=True,
            last=last,
        )
        outputs = plan.run(tokens, None, self.calls, self.cache)
        if self.capture:
            wanted = outputs if self.keeps_logits else [o for o in outputs if SITES[o[0]] is not LOGITS]
            self.kept.append((sequences, past, lengths, wanted))
        if logits == 0:
            return None
        found: Array = outputs[-1][2]
        if self.keeps_logits and logits == LOGITS_LAST:
            found = np.ascontiguousarray(found[np.arange(len(lengths)), lengths - 1][:, None])
        return found

    def newest(self, rows: list[int], tokens: Ints) -> Run | None:
        """Captured sites of some rows of the step that was just run, which are not kept for whole texts."""
        if not self.capture:
            return None
        _, _, lengths, outputs = self.kept.pop()
        if len(rows) < len(lengths):
            outputs = [(i, layers, array.take(rows, 1 if SITES[i].layered else 0)) for i, layers, array in outputs]
            for _, _, array in outputs:
                array.flags.writeable = False
        return Run(outputs, self.model.sites(), lengths[rows], padded(tokens, lengths)[rows], self.model)

    def whole(self, texts: list[Array]) -> Run:
        """Captured sites over whole texts."""
        lengths = np.array([len(t) for t in texts], np.int32)
        longest = int(lengths.max())
        out = []
        for number, (index, layers, first) in enumerate(self.kept[0][3]):
            site = SITES[index]
            axes = ("layer", *site.axes) if site.layered else site.axes
            shape = [longest if a in ("pos", "key_pos") else n for a, n in zip(axes, first.shape, strict=True)]
            shape[axes.index("batch")] = len(texts)
            fill = -np.inf if site.short == "attn_scores" else 0
            array = np.zeros(shape, first.dtype)
            for sequences, past, n_new, outputs in self.kept:
                part = outputs[number][2]
                for row, (seq, begin, n) in enumerate(zip(sequences, past, n_new, strict=True)):
                    if begin >= len(texts[seq]):  # it has ended and is carried along
                        continue
                    to: list[Any] = [slice(None)] * len(axes)
                    at: list[Any] = [slice(None)] * len(axes)
                    to[axes.index("batch")], at[axes.index("batch")] = seq, row
                    to[axes.index("pos")], at[axes.index("pos")] = slice(begin, begin + n), slice(0, n)
                    if "key_pos" in axes:
                        array[tuple(to)] = fill
                        width = min(part.shape[-1], longest)
                        to[-1] = at[-1] = slice(0, width)
                    array[tuple(to)] = part[tuple(at)]
            array.flags.writeable = False
            out.append((index, layers, array))
        return Run(out, self.model.sites(), lengths, padded(np.concatenate(texts), lengths), self.model)


@dataclass
class _Text:
    """One sequence as it grows."""

    tokens: list[int]
    log_probs: list[float]
    shown: str = ""
    """What has been given to who streams it."""
    stopped: str | int | None = None
    limit: int | None = None
    """New tokens at most; None: as the settings say."""


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _settled(tokenizer: Tokenizer, tokens: list[int], decoded: str, stops: tuple[str, ...]) -> str:
    """As much of a text as stays what it is, whatever comes next: no broken character, no beginning of a stop text."""
    n = len(tokens)
    while n and _BYTE.fullmatch(tokenizer.tokens[tokens[n - 1]]):  # some decoders undo all of a run that is cut short
        n -= 1
    text = decoded if n == len(tokens) else tokenizer.decode(tokens[:n])
    text = text.rstrip("\ufffd")
    held = (k for s in stops for k in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:k]))
    return text[: len(text) - max(held, default=0)]


def _ended(model: Model, text: _Text, how: Settings) -> str:
    """Notes why a text is complete, if it is; gives its new characters."""
    if text.tokens[-1] in how.stop_tokens:
        text.stopped = text.tokens[-1]
    elif len(text.tokens) == (text.limit or how.max_new_tokens):
        text.stopped = "length"
    if model._labeller is None:
        return ""
    whole = model._labeller.decode(text.tokens)
    found = [(whole.index(s), s) for s in how.stop_texts if s in whole]
    if found:
        at, text.stopped = min(found)
        whole = whole[:at]
    elif text.stopped is None:
        whole = _settled(model._labeller, text.tokens, whole, how.stop_texts)
    if not whole.startswith(text.shown):
        return ""
    piece = whole[len(text.shown) :]
    text.shown = whole
    return piece


def _chosen(logits: Array, decoder: _Decoder, active: Ints, step: int) -> tuple[Ints, Array]:
    """A token for each sequence, and its log-probability."""
    how, places, rows = decoder.how, np.full(len(active), step, np.int64), active.astype(np.int64)
    try:
        return _core.sample(
            logits, decoder.streams[active], places, how.temperature, how.top_k, how.top_p, how.seed or 0
        )
    except ConfigError:  # which names the stream: again, to name the sequence
        _core.sample(logits, rows, places, 0.0, 0, 1.0, 0)
        raise


def steps(
    model: Model,
    decoder: _Decoder,
    batch: Batch,
    texts: list[_Text],
    stream: bool = False,
) -> Iterator[Step]:
    """Grows the texts, a token each at a time, until all have stopped.

    stream: each step takes the captured values with it. Otherwise the decoder keeps them, those of last tokens too.
    """
    how = decoder.how
    assert batch.tokens is not None
    active = np.arange(len(texts), dtype=np.int32)
    past = np.zeros(len(texts), np.int32)
    tokens, lengths = batch.tokens, batch.lengths
    step = 0
    while True:
        logits = decoder.run(tokens, lengths, past, active)
        assert logits is not None
        past = past + lengths
        ids, log_probs = _chosen(logits, decoder, active, step)
        pieces = []
        grown = [row for row, seq in enumerate(active) if texts[seq].stopped is None]
        for row in grown:
            text = texts[active[row]]
            text.tokens.append(int(ids[row]))
            text.log_probs.append(float(log_probs[row]))
            pieces.append(_ended(model, text, how))
        said, chosen, likely = (tuple(values[grown].tolist()) for values in (active, ids, log_probs))
        yield Step(said, chosen, tuple(pieces), likely, decoder.newest(grown, tokens) if stream else None)
        going = np.array([texts[seq].stopped is None for seq in active])
        if decoder.edits and going.any():  # edits count sequences: those that have ended stay
            going[:] = True
        if decoder.edits and step > 0:  # one that has no room for another token is shown its last one again
            full = past == decoder.ends
            ids, past = np.where(full, tokens, ids), past - full
        if decoder.capture and not stream and not going.all():  # the last token of a text is looked at as well
            ended = ~going
            n = np.ones(int(ended.sum()), np.int32)
            if not decoder.edits:
                decoder.run(np.ascontiguousarray(ids[ended]), n, past[ended], active[ended], logits=0)
            elif not going.any():
                decoder.run(np.ascontiguousarray(ids), np.ones(len(active), np.int32), past, active, logits=0)
        if not going.any():
            return
        active, past, tokens = active[going], past[going], np.ascontiguousarray(ids[going])
        lengths = np.ones(len(active), np.int32)
        step += 1


def prepare(
    model: Model, tokens: Any, how: Settings, capture: Capture, edits: Edit | Iterable[Edit], limits: Ints | None = None
) -> tuple[_Decoder, Batch, list[_Text]]:
    """What a generation starts from. limits: new tokens of each sequence; None: all as `how` says."""
    batch = model._batch(tokens, None, None)
    wanted = capture_list(capture)
    pairs = model.sites().resolve(wanted)
    if "logits" not in wanted:  # a glob may mean them too; they are large, and kept when named
        pairs = [(site, layer) for site, layer in pairs if site is not LOGITS]
    decoder = _Decoder(model, batch, how, pairs, as_edits(edits), limits)
    return decoder, batch, [_Text([], [], limit=limit) for limit in decoder.limits.tolist()]


def generate(model: Model, decoder: _Decoder, batch: Batch, texts: list[_Text]) -> Generation:
    """Runs all steps."""
    for _ in steps(model, decoder, batch, texts):
        pass
    assert batch.tokens is not None
    prompts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
    new = [np.array(t.tokens, np.int32) for t in texts]
    run = decoder.whole([np.concatenate(pair) for pair in zip(prompts, new, strict=True)]) if decoder.capture else None
    shown = None if model._labeller is None else [_final_text(model, t, decoder.how) for t in texts]
    stopped = [t.stopped if t.stopped is not None else "length" for t in texts]
    return Generation(prompts, new, [np.array(t.log_probs) for t in texts], stopped, shown, run, decoder.how.seed)


Guess = Callable[[Ints, list[list[int]], Ints], Sequence[Array]]
"""Numbers of texts, what has been said of each, how many tokens are wanted at most → how each may go on."""


def likeliest(
    model: Model,
    tokens: Sequence[Array],
    limits: Array,
    stop: int,
    edits: Edit | Iterable[Edit] = (),
    guess: Guess | None = None,
) -> list[Array]:
    """The likeliest new tokens of each prompt until `stop`, the stop included; of each at most its own limit [batch].

    What one prompt is followed by depends on no other's length or limit. Guesses of how texts go on are read in one
    pass instead of a token at a time: right ones save time, wrong ones change nothing. Under edits, which may look at
    how a text is read, they are not used. Raises as `Model.generate`.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> [len(new) for new in likeliest(model, [[1, 403], [1, 407, 261]], np.array([4, 2]), stop=2)]
    [4, 2]
    """
    how = settings(model, limits.max(), 0.0, None, None, None, stop)
    decoder, batch, texts = prepare(model, tokens, how, (), edits, limits.astype(np.int32))
    if guess is None or decoder.edits:
        return generate(model, decoder, batch, texts).tokens
    return _guessed(decoder, batch, stop, guess)


def _guessed(decoder: _Decoder, batch: Batch, stop: int, guess: Guess) -> list[Array]:
    """The likeliest new tokens, guesses read along.

    A pass reads what it has not read of each text, the prompt and later the last token, and a guess behind it. Keys and
    values of wrong tokens are written over by the next one. A guess may be twice as long as what the last one brought.
    """
    assert batch.tokens is not None
    prompts = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
    said: list[list[int]] = [[] for _ in prompts]
    most = decoder.limits.copy()
    active = np.arange(len(prompts), dtype=np.int32)
    while len(active):
        known = [said[i] for i in active]
        n = np.array([len(text) for text in known], np.int32)
        past = np.where(n > 0, batch.lengths[active] + n - 1, 0).astype(np.int32)
        unread = [text[-1:] or prompts[i] for i, text in zip(active, known, strict=True)]
        guesses = guess(active, known, np.minimum(most[active], decoder.limits[active] - n - 1))
        try:
            new = _read_along(decoder, active, past, unread, guesses)
        except ConfigError:  # NaN, which may stand behind a wrong token only
            new = _read_along(decoder, active, past, unread, [g[:0] for g in guesses])
        for i, text in zip(active.tolist(), new, strict=True):
            said[i] += text[: text.index(stop) + 1] if stop in text else text
            most[i] = 2 * len(text)
        active = active[[said[i][-1] != stop and len(said[i]) < decoder.limits[i] for i in active]]
    return [np.array(text, np.int32) for text in said]


def _read_along(
    decoder: _Decoder, active: Ints, past: Ints, unread: Sequence[Sequence[int] | Array], guesses: Sequence[Array]
) -> list[list[int]]:
    """What each text says as far as it was guessed, and the first token that was not.

    The logits behind a guess's first tokens are those of a text that says the same: the likeliest of them tell how far
    it does, and what it says next.
    """
    tokens = np.concatenate([part for pair in zip(unread, guesses, strict=True) for part in pair]).astype(np.int32)
    guessed = np.array([len(g) for g in guesses], np.int32)
    lengths = np.array([len(text) for text in unread], np.int32) + guessed
    logits = decoder.run(tokens, lengths, past, active, last=guessed + 1)
    assert logits is not None
    streams = np.repeat(active.astype(np.int64), guessed + 1)
    flat, _ = _core.sample(logits, streams, np.zeros_like(streams), 0.0, 0, 1.0, 0)
    ids = padded(flat, guessed + 1)
    right = np.cumprod(ids[:, :-1] == padded(np.concatenate(guesses), guessed), axis=1).sum(axis=1)
    return [row[: k + 1] for row, k in zip(ids.tolist(), right.tolist(), strict=True)]


def _final_text(model: Model, text: _Text, how: Settings) -> str:
    assert model._labeller is not None
    decoded = model._labeller.decode(text.tokens)
    ends = [decoded.index(s) for s in how.stop_texts if s in decoded]
    return decoded[: min(ends)] if ends else decoded
