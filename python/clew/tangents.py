"""Jacobian-vector products: how sites move when others are pushed, exact, computed in the core in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from .edit import Edit, as_edits, resolve
from .edit import add as edit_add
from .errors import ConfigError, SiteError
from .run import Run
from .sites import LOGITS, SITES

if TYPE_CHECKING:
    from .model import Capture, Model

Direction = Edit | Iterable[Edit] | Mapping[Any, ArrayLike]

_NONE, _ALL = 0, 2
_TANGENTS = 4
_ADD, _TANGENT = 1, 4


class Tangents(Run):
    """Derivatives of sites along a direction: used like a :class:`Run`, with the sites' own axes."""

    def __repr__(self) -> str:
        return "Tangents of" + super().__repr__().removeprefix("Run of")


def _directions(direction: Direction) -> list[Edit]:
    if isinstance(direction, Mapping):
        return [edit_add(site, value) for site, value in direction.items()]
    edits: list[Any] = [direction] if isinstance(direction, str) else list(as_edits(direction))
    for one in edits:
        if not isinstance(one, Edit) or one.kind != _ADD:
            raise ConfigError(f"the direction of a derivative is an edit.add or {{site: array}}, not {one!r}")
    return edits


def tangents(
    model: Model,
    tokens: Any,
    direction: Direction,
    of: Capture,
    edits: Edit | Iterable[Edit],
    embeddings: Any,
    start_at_layer: int | None,
) -> Tangents:
    """See :meth:`clew.Model.jvp`."""
    pushed = _directions(direction)
    if not pushed:
        raise ConfigError("jvp along what? direction= an edit.add, a list of them, or {site: array}")
    start = model._layer(start_at_layer, "start_at_layer")
    wanted = model.sites().resolve(of, start, None)
    if not wanted:
        raise SiteError("jvp of what? of= sites whose derivative is wanted")
    batch = model._batch(tokens, embeddings, start_at_layer)
    along, _ = resolve(pushed, model, batch.lengths, start, None)
    if any(SITES[e[0]] is LOGITS for e in along):
        raise SiteError("a direction at logits: nothing is computed of them")
    named = [*wanted, *((SITES[e[0]], e[1]) for e in along)]
    front = min(s.index for s in SITES if s.layered)
    behind = any(not site.layered and site.index >= front for site, _ in named)
    stop = None if behind else max((layer for site, layer in named if site.layered), default=0)
    held, calls = resolve([*model._active_edits(), *as_edits(edits)], model, batch.lengths, start, None)
    core = [e for e in held if stop is None or (e[1] <= stop if SITES[e[0]].layered else e[0] < front)]
    plan = _core.Plan(
        model._core,
        batch.lengths,
        np.zeros((0, 2), np.int32),
        None,
        -1 if start is None else start,
        -1 if stop is None else stop,
        batch.embeddings is not None,
        _ALL if any(site is LOGITS for site, _ in wanted) else _NONE,
        edits=[*core, *((*e[:2], _TANGENT, *e[3:]) for e in along)],
        wrt=np.array([(s.index, layer) for s, layer in wanted], np.int32).reshape(-1, 2),
        objective=_TANGENTS,
    )
    outputs, _, _ = plan.run(batch.tokens, batch.floats, calls)
    found = [(i - len(SITES), layers, array) for i, layers, array in outputs]
    return Tangents(found, model.sites(), batch.lengths, batch.padded_tokens(), model)
