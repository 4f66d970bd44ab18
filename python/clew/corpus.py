"""Text for experiments: a held-out passage inside the package, windows of tokens, and the streams that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brief import Brief
from .errors import ConfigError, ShapeError, TokenError
from .inputs import as_array, check_counts, check_seed, token_batch
from .model import Capture, Model, check_model
from .run import Run
from .weights import whole

Array = NDArray[Any]


def held_out() -> str:
    """39,000 characters of Shakespeare that none of the bundled models was trained on.

    >>> held_out()[:7]
    'GREMIO:'
    """
    return (Path(__file__).parent / "data" / "held_out.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Windows(Brief):
    """Tokens cut into windows of one length; made by :func:`windows`."""

    tokens: NDArray[np.int64]
    """[window, pos]"""
    left_out: int
    """Tokens of the text that are in no window: behind the last whole one, or more than was asked for."""
    source: str
    """Where they come from, in words."""

    def told(self) -> str:
        """The source, and how much of it is in no window: nothing is left out silently."""
        if not self.left_out:
            return self.source
        return f"{self.source}, {self.left_out:,} of its {self.left_out + self.tokens.size:,} tokens in no window"


def windows(model: Model, text: str | Sequence[int] | Array | None, length: int, limit: int | None = None,
            seed: int = 0) -> Windows:  # fmt: skip
    """A text, or token ids [pos], cut into windows of `length` tokens, at most `limit` of them spread over it evenly.

    None: the held-out text of the package; for a model without a tokenizer text that the model itself makes, from
    token 1 at temperature 1. Ids [window, pos] stay as they are. What is left out is counted.

    Raises ConfigError (length below 2 or beyond the learned positions, limit below 1), TokenError (no whole window, an
    id out of range), ShapeError.

    >>> import clew
    >>> cut = windows(clew.load("shakespeare"), None, 64, limit=4)
    >>> cut.tokens.shape, cut.left_out > 1000
    ((4, 64), True)
    """
    check_model(model)
    seed = check_seed(seed)
    length = whole(length, "length")
    if length < 2:
        raise ConfigError(f"length = {length}: a window needs two tokens, the second is what the first predicts")
    if model.config.positional_embedding_type == "standard" and length > model.config.n_ctx:
        raise ConfigError(f"length = {length}: the model has learned {model.config.n_ctx} positions")
    if limit is not None and whole(limit, "limit") < 1:
        raise ConfigError(f"limit = {limit}: at least one window")
    source = "the text given"
    if text is None and model.tokenizer is None:
        source = "text that the model itself made, at temperature 1"
        count = 16 if limit is None else limit
        made = model.generate([[1]] * count, max_new_tokens=length - 1, temperature=1.0, seed=seed)
        full = [[1, *row] for row in made.tokens if len(row) == length - 1]
        if not full:
            raise TokenError(f"the model ends every text before {length} tokens: give token ids")
        return Windows(np.array(full, np.int64), sum(len(r) for r in made.tokens) - len(full) * (length - 1), source)
    if text is None:
        text, source = held_out(), "held-out Shakespeare of the package"
    ids = as_array(model.to_tokens(text)[0] if isinstance(text, str) else text, "tokens")
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise ShapeError(f"tokens must be integers [pos] or [window, pos], not {ids.dtype} {list(ids.shape)}")
    outside = ids[(ids < 0) | (ids >= model.config.d_vocab)]
    if outside.size:
        raise TokenError(f"id {int(outside[0])} is no token: the vocabulary has 0 to {model.config.d_vocab - 1}")
    if ids.ndim == 2:
        return Windows(ids.astype(np.int64), 0, "the windows given")
    n = len(ids) // length
    if not n:
        raise TokenError(f"a text of {len(ids)} tokens holds no window of {length}")
    rows = ids[: n * length].reshape(n, length)
    if limit is not None and n > limit:
        rows = rows[np.linspace(0, n - 1, limit).round().astype(int)]
    return Windows(rows.astype(np.int64), len(ids) - rows.size, source)


def sequences(model: Model, tokens: Any) -> list[list[int]]:
    """What `model.run` takes as tokens, as a list of lists of ids; texts through the model's tokenizer.

    Raises ShapeError, TokenError as `model.run`.

    >>> import clew
    >>> sequences(clew.load("stories260K"), [1, 2, 3])
    [[1, 2, 3]]
    """
    check_model(model)
    if isinstance(tokens, Windows):
        tokens = tokens.tokens
    batch = token_batch(tokens, model.config.d_vocab, lambda text: [int(i) for i in model.to_tokens(text)[0]])
    assert batch.tokens is not None
    return [row.tolist() for row in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])]


def rows_of(model: Model, tokens: Any, what: str) -> Array:
    """Windows of one length [window, pos], or one window [pos], as integers [window, pos].

    Raises ShapeError for anything else, TokenError for an id out of range; `what` begins the message.
    """
    check_model(model)
    ids = np.atleast_2d(as_array(tokens.tokens if isinstance(tokens, Windows) else tokens, f"{what}: tokens"))
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise ShapeError(
            f"{what}: tokens must be windows of one length [window, pos], not {ids.dtype} {list(ids.shape)}"
        )
    outside = ids[(ids < 0) | (ids >= model.config.d_vocab)]
    if outside.size:
        raise TokenError(f"{what}: id {int(outside[0])}: the vocabulary has 0 to {model.config.d_vocab - 1}")
    return ids


def runs(model: Model, tokens: Any, capture: Capture, at_once: int = 4096) -> Iterator[Run]:
    """Runs over sequences in batches of about `at_once` tokens, so that memory stays bounded; no logits are kept.

    Padding follows `model.run`: `run.lengths` tells the real lengths.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> [run["resid_post", -1].shape for run in runs(model, [[1, 2, 3], [4, 5]], "resid_post", at_once=3)]
    [(1, 3, 64), (1, 2, 64)]
    """
    check_counts(at_once=at_once)
    batch: list[list[int]] = []
    for row in sequences(model, tokens):
        if batch and (len(batch) + 1) * max(len(row), *map(len, batch)) > at_once:
            yield model.run(batch, capture=capture, logits=None)
            batch = []
        batch.append(row)
    if batch:
        yield model.run(batch, capture=capture, logits=None)


def stream(run: Run) -> Array:
    """The residual stream before the first block and after each [layer + 1, batch, pos, d_model], float64.

    The run must have captured ("resid_pre", 0) and "resid_post".
    """
    return np.concatenate([run["resid_pre", 0][None], run.stack("resid_post")]).astype(np.float64)


__all__ = ["Windows", "held_out", "rows_of", "runs", "sequences", "stream", "windows"]
