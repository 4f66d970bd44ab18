"""Log-probabilities of continuations: what they share, their context's keys and values, is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError, TokenError, UnsupportedModelError
from ..inputs import as_array, check_counts, check_type
from ..model import Model, check_model
from ..replay import LOGITS_LOSS, core_plan, key_site, stacks
from ..sites import SITES

Array = NDArray[Any]
Ids = Sequence[int]


def _check(model: Model, contexts: Sequence[Any], continuations: Sequence[Sequence[Ids]]) -> None:
    if model.config.attention_dir != "causal" or model.config.d_out is not None:
        raise UnsupportedModelError("continuations need a model with causal attention that predicts tokens")
    if len(contexts) != len(continuations):
        raise ShapeError(f"{len(contexts)} contexts for {len(continuations)} lists of continuations")
    for i, (context, own) in enumerate(zip(contexts, continuations, strict=True)):
        for given in (context, own, *(own if isinstance(own, Sequence) else ())):
            if isinstance(given, str | bytes) or not isinstance(given, Sequence | np.ndarray):
                raise ShapeError(f"context {i}: a list of ids (or vectors) and lists of ids, not {given!r:.60}")
        if not len(context) or not len(own) or not all(len(c) for c in own):
            raise TokenError(f"context {i}: it and each of its continuations need a token")
        longest = len(context) + max(map(len, own)) - 1  # the last token is predicted, not read
        if longest > model.config.n_ctx:
            raise TokenError(f"context {i}: {len(context)} tokens and a continuation of {max(map(len, own))}: the "
                             f"context holds {model.config.n_ctx}")  # fmt: skip


def _batch(model: Model, contexts: Sequence[Any], continuations: Sequence[Sequence[Ids]]) -> Array:
    """Log-probabilities of all continuations, one context after the other."""
    embedded = np.ndim(contexts[0]) == 2
    lengths = np.array([len(c) for c in contexts], np.int32)
    owner = np.repeat(np.arange(len(contexts), dtype=np.int32), [len(own) for own in continuations])
    flat = [np.asarray(c, np.int32) for own in continuations for c in own]
    more: dict[str, Any] = {}
    cache = None
    if (lengths > 1).any() and model.config.n_layers:
        k, v = key_site(model), next(s for s in SITES if s.short == "v")
        wanted = [(s, layer) for s in (k, v) for layer in range(model.config.n_layers)]
        wanted.sort(key=lambda pair: (pair[0].index, pair[1]))
        plan = core_plan(model, lengths, wanted, -1, 0, embedded)
        kept = stacks(plan.run(*((None, np.concatenate(contexts)) if embedded else (np.concatenate(contexts), None))))
        cache = tuple(list(kept[s][1]) for s in (k, v))
        more = {"past": lengths[owner] - 1, "past_seq": owner}
    # each sequence: the context's last entry, which predicts the continuation's first token, then the continuation
    n = np.array([len(c) + 1 for c in flat], np.int32)
    first = np.concatenate([[0], np.cumsum(n)[:-1]])
    behind = np.ones(int(n.sum()), bool)
    behind[first] = False
    tokens = np.zeros(len(behind), np.int32)
    tokens[behind] = np.concatenate(flat)
    vectors = None
    if embedded:
        vectors = np.empty((len(behind), model.config.d_model), model.dtype)
        vectors[behind] = model.W_E[tokens[behind]] * model.dtype.type(model.config.embed_scale)
        vectors[first] = np.stack([c[-1] for c in contexts])[owner]
    else:
        tokens[first] = np.array([c[-1] for c in contexts], np.int32)[owner]
    plan = core_plan(model, n, [], -1, LOGITS_LOSS, embedded, **more)
    ((_, _, losses),) = plan.run(tokens, vectors, [], cache)
    return np.asarray(-losses.sum(axis=1, dtype=np.float64))


def log_probabilities(
    model: Model, contexts: Sequence[Any], continuations: Sequence[Sequence[Ids]], at_once: int = 4096
) -> list[Array]:
    """Σ log p(token) of each continuation behind its context, nats, float64: a list of [continuations].

    Parameters
    ----------
    contexts
        Lists of ids, or vectors [pos, d_model] that stand for embeddings (as `run(embeddings=)` takes them): then
        continuations follow as token embeddings.
    continuations
        Of each context, lists of ids.
    at_once
        About so many tokens are computed at once; sorted by length, so that little is padding.

    A context runs once; its continuations read its keys and values. Raises TokenError for what the context length does
    not hold (nothing is cut), UnsupportedModelError, ShapeError.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> found = log_probabilities(model, [[1, 403, 407]], [[[261], [261, 378]]])
    >>> found[0].shape, bool(found[0][1] < found[0][0] < 0)
    ((2,), True)
    """
    check_model(model)
    check_counts(at_once=at_once)
    check_type((Sequence, np.ndarray), "a list", contexts=contexts, continuations=continuations)
    _check(model, contexts, continuations)
    if model._active_edits():
        raise UnsupportedModelError("log_probabilities inside model.edited: continuations run apart from their context")
    vocabulary = model.config.d_vocab
    kinds = {np.ndim(c) for c in contexts}
    if len(kinds) > 1:
        raise ShapeError("contexts are all lists of ids, or all vectors")
    rows: list[Any] = []
    for i, context in enumerate(contexts):
        if kinds == {2}:
            row = np.ascontiguousarray(context, model.dtype)
            if row.shape[1] != model.config.d_model:
                raise ShapeError(f"context {i}: vectors {list(row.shape)}, expected [pos, {model.config.d_model}]")
        else:
            row = as_array(context, f"context {i}")
        for ids in ([] if kinds == {2} else [row]) + [as_array(c, f"context {i}") for c in continuations[i]]:
            if ids.ndim != 1 or ids.dtype.kind not in "iu":
                raise ShapeError(f"context {i}: ids must be integers [n], not {ids.dtype} {list(ids.shape)}")
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise TokenError(f"context {i}: an id that is no token: the vocabulary has 0 to {vocabulary - 1}")
        rows.append(row if kinds == {2} else np.ascontiguousarray(row, np.int32))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out: list[Any] = [None] * len(rows)
    while order:
        count, used = 0, 0
        while count < len(order):
            i = order[count]
            used += len(rows[order[0]]) + sum(len(c) + 1 for c in continuations[i])
            if count and used > at_once:
                break
            count += 1
        now, order = order[:count], order[count:]
        found = _batch(model, [rows[i] for i in now], [continuations[i] for i in now])
        ends = np.cumsum([len(continuations[i]) for i in now])[:-1]
        for i, part in zip(now, np.split(found, ends), strict=True):
            out[i] = part
    return out


__all__ = ["log_probabilities"]
