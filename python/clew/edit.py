"""Interventions: what a run changes while it computes.

    from clew import edit
    model.run(tokens, edits=[edit.zero("z", heads=[3]), edit.add("resid_pre.5", vector, positions=[-1])])

`zero`, `set`, `add`, `scale`, `mean_ablate`, `freeze` (to another run's values) and `call` (a function) make them. To
patch a head of one run into another: `edit.set("z.2", run["z", 2], heads=[1])`.

Every function takes a site (full name, short name on every layer, glob, or (name, layer)) and what of it is meant:

batch
    Sequences: a number, a list, a slice, or a mask [batch].
positions
    Positions of every selected sequence: a number, a list, a slice or a mask [pos]; negative ones count from each
    sequence's own end. [3, 5] means both positions in all of them, however many they are; for a position of each
    sequence's own give two axes [batch', n], such as [[3], [5]]. Of scores and pattern, these are the queries.
heads
    Heads, of key-value sites key-value heads.
neurons
    The last axis: d_model, d_mlp, d_head, d_vocab; of scores and pattern the keys.

A value is broadcast, by NumPy's rules, to the selected part in the site's own axes, [batch', pos', head', d_head],
and is in the order of the selection: of heads=[2, 0, 1], its first is for head 2. Where an axis is not as long as the
selection but as the site's own, the selected indices are taken from it. What `mean_ablate` and `freeze` set always is
what the reference holds at the selected indices, in whatever order these are.

An index that is listed twice is edited twice: what is added is added twice, of what is set the last value stays. Edits
of one site apply in order. An edit keeps the values and indices that it was made with, whatever becomes of the lists
and arrays that they came in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, ShapeError, SiteError
from .inputs import as_array, in_precision, sliced
from .run import Run
from .sites import LOGITS, SITES, Site, SiteName, pair_name

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[Any]
Ints = NDArray[np.int32]
Which = int | Sequence[int] | slice | NDArray[Any] | None
CoreEdit = tuple[int, int, int, Ints | None, Ints | None, Ints | None, Ints | None, Array | None, tuple[int, ...], int]

_SET, _ADD, _SCALE, _CALL = range(4)
_CANONICAL = {"batch": 0, "pos": 1, "head": 2, "kv_head": 2}  # every other axis is the last one: 3


@dataclass(frozen=True, eq=False)
class Edit:
    """One intervention; made by the functions of `clew.edit`."""

    what: str
    """Name of the function that made it."""
    site: SiteName
    kind: int = field(repr=False)
    value: Any = field(default=None, repr=False)
    batch: Which = None
    positions: Which = None
    heads: Which = None
    neurons: Which = None

    def __post_init__(self) -> None:
        for name in ("batch", "positions", "heads", "neurons"):
            which = getattr(self, name)
            if isinstance(which, Iterator | Set):
                which = list(which)
            object.__setattr__(self, name, _own(which))

    def __repr__(self) -> str:
        chosen = [(n, getattr(self, n)) for n in ("batch", "positions", "heads", "neurons")]
        shown = "".join(f", {n}={v.tolist() if isinstance(v, np.ndarray) else v}" for n, v in chosen if v is not None)
        return f"edit.{self.what}({self.site!r}{shown})"


def _own(value: Any) -> Any:
    """The value as it is now, whatever becomes of the caller's; what nobody can write to is not copied."""
    if isinstance(value, np.ndarray):
        return value if _is_fixed(value) else value.copy()
    if isinstance(value, list | tuple):
        return copy.deepcopy(value)
    return np.asarray(value).copy() if hasattr(value, "__array__") and not isinstance(value, np.generic) else value


def _is_fixed(array: Array) -> bool:
    """Is it a view of a run's memory, which is written to no more? A read-only view of other memory may change."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return type(base).__name__ == "PyCapsule"


def zero(
    site: SiteName, heads: Which = None, positions: Which = None, neurons: Which = None, batch: Which = None
) -> Edit:
    """Sets the selected part to 0.

    >>> import clew
    >>> from clew import edit
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> run = model.run([1, 2, 3], capture="z", edits=[edit.zero("z", heads=[1])])
    >>> bool(run["z"][:, :, 1].any()), bool(run["z"][:, :, 0].any())
    (False, True)
    """
    return Edit("zero", site, _SET, 0.0, batch, positions, heads, neurons)


def set(  # noqa: A001 (the public interface's name)
    site: SiteName,
    value: ArrayLike,
    heads: Which = None,
    positions: Which = None,
    neurons: Which = None,
    batch: Which = None,
) -> Edit:
    """Sets the selected part to a value, broadcast to it and in the order of the selection.

    >>> import clew
    >>> from clew import edit
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> two = [[1, 2, 3], [4, 5, 6]]
    >>> run = model.run(two, capture="mlp_out", edits=[edit.set("mlp_out", 0.0, positions=[0, 2])])   # in both
    >>> run["mlp_out"].any(axis=-1).tolist()
    [[False, True, False], [False, True, False]]
    >>> run = model.run(two, capture="mlp_out", edits=[edit.set("mlp_out", 0.0, positions=[[0], [2]])])  # one in each
    >>> run["mlp_out"].any(axis=-1).tolist()
    [[False, True, True], [True, True, False]]
    """
    return Edit("set", site, _SET, _own(value), batch, positions, heads, neurons)


def add(
    site: SiteName,
    vector: ArrayLike,
    heads: Which = None,
    positions: Which = None,
    neurons: Which = None,
    batch: Which = None,
) -> Edit:
    """Adds a value, broadcast to the selected part: a steering vector [d_model], for example."""
    return Edit("add", site, _ADD, _own(vector), batch, positions, heads, neurons)


def scale(
    site: SiteName,
    factor: ArrayLike,
    heads: Which = None,
    positions: Which = None,
    neurons: Which = None,
    batch: Which = None,
) -> Edit:
    """Multiplies the selected part by a factor, broadcast to it."""
    return Edit("scale", site, _SCALE, _own(factor), batch, positions, heads, neurons)


@dataclass(frozen=True)
class _Mean:
    reference: Any


@dataclass(frozen=True)
class _Frozen:
    run: Run


def mean_ablate(
    site: SiteName,
    reference: Any,
    heads: Which = None,
    positions: Which = None,
    neurons: Which = None,
    batch: Which = None,
) -> Edit:
    """Sets the selected part to its mean over reference data.

    reference: an array of the site [batch, pos, …] (every position counts), a run that captured it, or tokens, text or
    ids, which the model is run on first (real positions count). Prompts of a model that reads vectors are arrays
    themselves: give a run of them; what could be such prompts is refused. Scores and patterns are refused: their axes
    are positions.
    """
    return Edit("mean_ablate", site, _SET, _Mean(_own(reference)), batch, positions, heads, neurons)


def freeze(
    site: SiteName,
    run: Run,
    heads: Which = None,
    positions: Which = None,
    neurons: Which = None,
    batch: Which = None,
) -> Edit:
    """Sets the selected part to what another run captured there, such as its attention pattern.

    The other run's prompts are as long as this one's; where it has one sequence, that goes into all of them.
    """
    return Edit("freeze", site, _SET, _Frozen(run), batch, positions, heads, neurons)


def call(site: SiteName, fn: Callable[[Array, str], ArrayLike | None]) -> Edit:
    """Shows the live array to a function, which changes it in place or returns a new one.

    fn(array, site_name): array [batch, pos, …], writable, padded with zeros behind a sequence's end. It may be kept: it
    is memory of its own, and what happens later on either side never reaches the other. An exception ends the run.

    Raises ConfigError for what is no function of these two.
    """
    if not callable(fn):
        raise ConfigError(f"edit.call of {site!r}: {fn!r} cannot be called")
    try:
        takes = inspect.signature(fn)
    except (TypeError, ValueError):  # a function in C that does not tell
        return Edit("call", site, _CALL, fn)
    try:
        takes.bind(None, "")
    except TypeError:
        raise ConfigError(
            f"edit.call of {site!r}: the function takes {takes}, but is called as fn(array, site_name)"
        ) from None
    return Edit("call", site, _CALL, fn)


# ---- Resolving ------------------------------------------------------------------------------------------------------


def indices(which: Which, n: int, axis: str, name: str) -> Ints | None:
    """Absolute indices along one axis of length n; None: all."""
    if which is None:
        return None
    if isinstance(which, slice):
        out = sliced(which, n, f"edit of {name}: {axis}")
    else:
        array = as_array(which, f"edit of {name}: {axis}")
        if array.dtype == bool:
            if array.shape != (n,):
                raise ShapeError(f"edit of {name}: a mask {list(array.shape)} for {n} {axis}")
            out = np.flatnonzero(array)
        elif array.dtype.kind in "iu" and array.ndim <= 1:
            out = np.atleast_1d(array)
            if out.dtype.kind == "u" and out.size and int(out.max()) >= n:  # before a cast could wrap
                raise ShapeError(f"edit of {name}: {axis} {int(out.max())}, but there are {n}")
            out = out.astype(np.int64)
        elif array.size == 0 and array.ndim == 1:
            out = np.zeros(0, np.int64)
        else:
            raise ShapeError(f"edit of {name}: {axis} must be integers, a mask or a slice, not {array.dtype} "
                             f"{list(array.shape)}")  # fmt: skip
    if out.size == 0:
        raise ConfigError(f"edit of {name}: no {axis} are selected, so it would change nothing")
    outside = out[(out < -n) | (out >= n)]
    if outside.size:
        raise ShapeError(f"edit of {name}: {axis} {int(outside[0])}, but there are {n}")
    return np.ascontiguousarray(out % n, np.int32)


def _positions(which: Which, lengths: Ints, batch: Ints | None, name: str) -> Ints | None:
    """Absolute positions [selected sequences, n]; None: all."""
    if which is None:
        return None
    own = lengths if batch is None else lengths[batch]
    longest = int(lengths.max())
    if isinstance(which, slice):
        rows = [sliced(which, n, f"edit of {name}: positions") for n in own]
        if len({len(r) for r in rows}) > 1:
            raise ShapeError(
                f"edit of {name}: {which} selects {[len(r) for r in rows]} positions of prompts of {own.tolist()} "
                "tokens: name them for each sequence, [batch, n]"
            )
        array = np.array(rows)
    else:
        array = as_array(which, f"edit of {name}: positions")
        if array.dtype == bool and array.ndim == 1:
            if array.shape != (longest,):
                raise ShapeError(f"edit of {name}: a mask {list(array.shape)} for {longest} positions")
            array = np.flatnonzero(array)
        if array.size == 0:
            raise ConfigError(f"edit of {name}: no positions are selected, so it would change nothing")
        if array.dtype.kind not in "iu" or array.ndim > 2:
            raise ShapeError(f"edit of {name}: positions must be integers [n] or [batch, n], not {array.dtype} "
                             f"{list(array.shape)}")  # fmt: skip
        if array.ndim == 2 and array.shape[0] != len(own):
            raise ShapeError(f"edit of {name}: positions {list(array.shape)} for {len(own)} sequences")
        array = np.broadcast_to(np.atleast_1d(array), (len(own), array.shape[-1] if array.ndim else 1))
    if array.size == 0:
        raise ConfigError(f"edit of {name}: no positions are selected, so it would change nothing")
    outside = np.argwhere((array >= own[:, None]) | (array < -own[:, None]))
    if outside.size:
        i, j = outside[0]
        raise ShapeError(f"edit of {name}: position {int(array[i, j])} of a prompt of {int(own[i])} tokens")
    return np.ascontiguousarray(np.where(array < 0, array + own[:, None], array), np.int32)


def _mean(reference: Any, site: Site, layer: int, model: Model) -> Array:
    """Mean over batch and positions, the site's other axes [1, 1, …]."""
    name = site.full_name(layer)
    if "key_pos" in site.axes:
        raise SiteError(f"edit.mean_ablate of {name}: a mean over positions of what has positions as axes")
    if isinstance(reference, list | tuple):
        with suppress(ShapeError):  # prompts of several lengths
            array = as_array(reference, "the reference")
            reference = array if array.size and array.dtype.kind == "f" else reference
    values = isinstance(reference, np.ndarray) and reference.dtype.kind == "f"
    d_in = model.config.d_in
    if d_in is not None and not isinstance(reference, Run):
        shape: tuple[int, ...] = np.shape(reference) if values else ()
        if not values or len(shape) in (2, 3) and shape[-1] == d_in:
            what = f"an array {list(shape)}, perhaps prompts" if values else type(reference).__name__
            raise ConfigError(
                f"edit.mean_ablate of {name}: {what}, for a model that reads vectors of {d_in}: give a run of the "
                f'prompts, model.run(prompts, capture="{name}")'
            )
    if values:
        reference = as_array(reference, f"edit.mean_ablate of {name}: the reference")
        if reference.ndim != len(site.axes):
            raise ShapeError(
                f"edit.mean_ablate of {name}: the reference has shape {list(reference.shape)}, the site "
                f"[{', '.join(site.axes)}]"
            )
        if reference.size == 0:
            raise ShapeError(
                f"edit.mean_ablate of {name}: the reference {list(reference.shape)} holds nothing to average"
            )
        return np.asarray(reference.mean(axis=(0, 1), keepdims=True, dtype=np.float64))
    if isinstance(reference, Run):
        run = reference
        _check_whole(run, site, name, f"edit.mean_ablate of {name}")
    else:
        logits: Any = "all" if site.name == "logits" else None
        with model._unedited():
            run = model.run(reference, capture=None if logits else [name], logits=logits)
    array = run[name]
    total = array.sum(axis=(0, 1), keepdims=True, dtype=np.float64)  # padding holds zeros
    return np.asarray(total / float(run.lengths.sum()))


def _frozen(run: Run, site: Site, layer: int, model: Model, lengths: Ints) -> Array:
    name = site.full_name(layer)
    if not isinstance(run, Run):
        raise ConfigError(f"edit.freeze of {name}: {type(run).__name__} is no Run")
    _check_whole(run, site, name, f"edit.freeze of {name}")
    array, full = run[name], site_shape(model, site, lengths)
    if len(run.lengths) not in (1, len(lengths)) or (run.lengths != lengths).any():
        raise ShapeError(
            f"edit.freeze of {name}: the run has prompts of {run.lengths.tolist()} tokens, "
            f"this one of {lengths.tolist()}"
        )
    if array.shape[1:] != full[1:]:
        raise ShapeError(f"edit.freeze of {name}: the run's has shape {list(array.shape)}, this one's {list(full)}")
    return array


def _check_whole(run: Run, site: Site, name: str, what: str) -> None:
    """Raises ShapeError for a run that does not hold all positions of a site, in their order."""
    kept, there = run[name].shape[site.axes.index("pos")], int(run.lengths.max())
    if run.positions is not None or kept != there:
        raise ShapeError(f"{what}: the run kept {kept} positions of {there}: make it without positions= or logits=")


def _numbers(value: Any, dtype: np.dtype[Any], name: str) -> Array:
    array = as_array(value, f"edit of {name}: the value")
    if array.dtype == object and all(isinstance(number, int) for number in array.flat):  # beyond 64 bits
        with suppress(OverflowError):
            array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        raise ShapeError(f"edit of {name}: the value must be real numbers, not {array.dtype}")
    return in_precision(array, dtype, f"edit of {name}")


def _place_value(
    value: Array, site: Site, full: tuple[int, ...], chosen: Sequence[Ints | None], name: str, whole: bool = False
) -> tuple[Array, tuple[int, ...]]:
    """The value with its strides over selected indices. full: the site's shape; chosen: by axis, None all.

    whole: the value's axes are the site's own, also where the selection is as long.
    """
    region = tuple(n if c is None else c.shape[-1] for n, c in zip(full, chosen, strict=True))
    if value.ndim > len(full):
        extra = value.shape[: value.ndim - len(full)]
        if any(n != 1 for n in extra):
            raise ShapeError(_misfit(name, value, region, site))
        value = value.reshape(value.shape[len(extra) :])
    given: Array = value
    value = value.reshape((1,) * (len(full) - value.ndim) + value.shape)
    for axis, (which, selected) in enumerate(zip(chosen, region, strict=True)):
        n = int(value.shape[axis])
        if n == 1 or (n == selected and (which is None or not whole)):
            continue
        if n != full[axis] or which is None:
            raise ShapeError(_misfit(name, given, region, site))
        if which.ndim == 1:
            value = value.take(which, axis=axis)
        else:  # positions, of each sequence its own; the batch axis came first
            value = np.repeat(value, len(which), axis=0) if len(value) == 1 else value
            shape = [1] * value.ndim
            shape[0], shape[axis] = len(which), which.shape[-1]
            value = np.take_along_axis(value, which.reshape(shape).astype(np.int64), axis=axis)
    value = np.ascontiguousarray(value)
    strides = [0, 0, 0, 0]
    for axis, n in enumerate(value.shape):
        if n > 1:
            strides[_CANONICAL.get(site.axes[axis], 3)] = value.strides[axis] // value.itemsize
    return value, tuple(strides)


def _misfit(name: str, value: Array, region: tuple[int, ...], site: Site) -> str:
    axes = ", ".join(site.axes)
    return f"edit of {name}: a value {list(value.shape)} does not fit the selected part {list(region)} [{axes}]"


def site_shape(model: Model, site: Site, lengths: Ints) -> tuple[int, ...]:
    c, longest = model.config, int(lengths.max())
    length = {
        "batch": len(lengths), "pos": longest, "key_pos": longest, "d_model": c.d_model, "head": c.n_heads,
        "kv_head": c.n_key_value_heads, "d_head": c.d_head, "d_mlp": c.d_mlp, "d_vocab": c.d_vocab_out, "1": 1,
    }  # fmt: skip
    return tuple(length[a] for a in site.axes)


def _found(edit: Edit, model: Model, start: int | None, stop: int | None) -> list[tuple[Site, int]]:
    name = pair_name(edit.site)
    pairs = model.sites().resolve([edit.site], start, stop)
    first, last = start or 0, model.config.n_layers - 1 if stop is None else stop
    front = min((s.index for s in SITES if s.layered), default=0)
    for site, layer in pairs:
        computed = first <= layer <= last if site.layered else start is None if site.index < front else stop is None
        if not computed:
            raise SiteError(
                f"edit of {name}: a run of blocks {first} to {last} does not compute {site.full_name(layer)}"
            )
    return pairs


def resolve(
    edits: Iterable[Edit], model: Model, lengths: Ints, start: int | None, stop: int | None
) -> tuple[list[CoreEdit], list[Callable[..., Any]]]:
    """Edits as the core reads them, and the functions that they call.

    Raises SiteError (no such site, or not computed by this run), ShapeError (indices out of range, values that do not
    fit: both shapes), ConfigError (what would change nothing, values beyond the model's precision).
    """
    core: list[CoreEdit] = []
    calls: list[Callable[..., Any]] = []
    if isinstance(edits, Edit):
        edits = [edits]
    for edit in edits:
        if not isinstance(edit, Edit):
            raise ConfigError(f"edits hold {edit!r}: make edits with clew.edit.zero, .set, .add, ...")
        for site, layer in _found(edit, model, start, stop):
            if edit.kind == _CALL:
                core.append((site.index, layer, _CALL, None, None, None, None, None, (0, 0, 0, 0), len(calls)))
                calls.append(_checked(edit.value, model.dtype))
            else:
                core.append(_resolve_one(edit, site, layer, model, lengths))
    return core, calls


def _checked(fn: Callable[..., Any], dtype: np.dtype[Any]) -> Callable[..., Any]:
    """A function of an edit.call, whose values are refused as those of edit.set are; the core looks at the rest."""

    def call(array: Array, name: str) -> Any:
        given = fn(array, name)
        if given is None or given is array:
            return given
        given = as_array(given, f"edit.call of {name}: what the function returned")
        return in_precision(given, dtype, f"edit.call of {name}") if given.ndim and given.dtype.kind == "f" else given

    return call


def check_last(core: Iterable[CoreEdit], lengths: Ints, what: str = 'logits="last" computes') -> None:
    """Raises ConfigError for edits of logits that reach no sequence's last position, which alone are computed."""
    for index, _, _, batch, positions, *_ in core:
        if SITES[index] is LOGITS and positions is not None:
            ends = (lengths if batch is None else lengths[batch]) - 1
            if not (positions >= ends[:, None]).any():
                raise ConfigError(
                    f"edit of logits: {what} those of the last positions, and the edit is of positions "
                    f"{positions.tolist()}: it would change nothing"
                )


def check_before_last(core: Iterable[CoreEdit], lengths: Ints) -> None:
    """Raises ConfigError for edits of logits of last positions alone, which predict no token of the prompts."""
    for index, _, _, batch, positions, *_ in core:
        if SITES[index] is LOGITS and positions is not None:
            ends = (lengths if batch is None else lengths[batch]) - 1
            if not (positions < ends[:, None]).any():
                raise ConfigError(
                    f"edit of logits: a loss reads those before the last positions, and the edit is of positions "
                    f"{positions.tolist()}: it would change nothing"
                )


def _resolve_one(edit: Edit, site: Site, layer: int, model: Model, lengths: Ints) -> CoreEdit:
    name = site.full_name(layer)
    full = site_shape(model, site, lengths)
    has_heads = bool({"head", "kv_head"} & {*site.axes})
    if edit.heads is not None and not has_heads:
        raise SiteError(f"edit of {name}: it has no heads, its axes are [{', '.join(site.axes)}]")
    batch = indices(edit.batch, len(lengths), "batch", name)
    positions = _positions(edit.positions, lengths, batch, name)
    n_heads = next((n for n, a in zip(full, site.axes, strict=True) if a in ("head", "kv_head")), 1)
    heads = indices(edit.heads, n_heads, "heads", name)
    neurons = indices(edit.neurons, full[-1], "neurons", name)
    by_axis = {0: batch, 1: positions, 2: heads, 3: neurons}
    chosen = [by_axis[_CANONICAL.get(a, 3)] for a in site.axes]
    value: Any = edit.value
    whole = isinstance(value, _Mean | _Frozen)
    if isinstance(value, _Mean):
        value = _mean(value.reference, site, layer, model)
    elif isinstance(value, _Frozen):
        value = _frozen(value.run, site, layer, model, lengths)
    placed, strides = _place_value(_numbers(value, model.dtype, name), site, full, chosen, name, whole)
    return (site.index, layer, edit.kind, batch, positions, heads, neurons, placed, strides, -1)


def as_edits(edits: Edit | Iterable[Edit] | None) -> tuple[Edit, ...]:
    """A list of edits, also from one.

    Raises ConfigError for what is none.
    """
    if edits is None:
        return ()
    if isinstance(edits, Edit):
        return (edits,)
    try:
        if isinstance(edits, str):
            raise TypeError
        held = tuple(edits)
    except TypeError:
        raise ConfigError(f"edits = {edits!r}: expected a list of clew.edit's") from None
    for item in held:
        if not isinstance(item, Edit):
            raise ConfigError(f"edits hold {item!r}: make edits with clew.edit.zero, .set, .add, ...")
    return held


__all__ = ["Edit", "add", "call", "freeze", "mean_ablate", "scale", "set", "zero"]


def __dir__() -> list[str]:
    return __all__
