"""Capture sites: their table, and finding them by exact name, short name or glob."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _core
from .errors import ConfigError, SiteError
from .inputs import whole

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Site:
    """One kind of capture site, on one layer or on all of them."""

    index: int
    """Its number in the core's list."""
    name: str
    """Full name, where layered with `L` for the layer's number: `blocks.L.attn.hook_z`."""
    axes: tuple[str, ...]
    meaning: str
    layered: bool

    @property
    def short(self) -> str:
        """Last part of the name without `hook_`."""
        return self.name.rsplit(".", 1)[-1].removeprefix("hook_")

    def full_name(self, layer: int = 0) -> str:
        """Name on one layer."""
        return self.name.replace("blocks.L.", f"blocks.{layer}.", 1)

    def length(self, model: Model, axis: str) -> int:
        """Length of the head axis, query or key-value heads; 1 where the site has none."""
        if axis != "head":
            raise ValueError(axis)
        config = model.config
        return config.n_heads if "head" in self.axes else config.n_key_value_heads if "kv_head" in self.axes else 1


_AXES = {
    "b": "batch",
    "p": "pos",
    "k": "key_pos",
    "d": "d_model",
    "h": "head",
    "g": "kv_head",
    "e": "d_head",
    "f": "d_mlp",
    "v": "d_vocab",
    "1": "1",
}

SITES: tuple[Site, ...] = tuple(
    Site(i, f"blocks.L.{name}" if layered else name, tuple(_AXES[a] for a in axes), meaning, layered)
    for i, (name, axes, meaning, layered) in enumerate(_core.sites())
)
LOGITS = next(s for s in SITES if s.name == "logits")


SiteName = str | tuple[str, int]
"""`"z"`, `"z.3"` or `("z", 3)`"""


def pair_name(item: object) -> str:
    """A name as it is, or `("z", 3)` as `"z.3"`.

    Raises SiteError for anything else.
    """
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        with suppress(ConfigError):
            return f"{item[0]}.{whole(item[1], 'layer')}"
    if not isinstance(item, str):
        raise SiteError(f"{item!r} is no name of a capture site, nor (name, layer)")
    return item


def capture_list(capture: str | Iterable[str | tuple[str, int]] | None) -> list[str | tuple[str, int]]:
    """What `capture=` holds, as a list.

    Raises SiteError for what is no collection of names.
    """
    if capture is None:
        return []
    if isinstance(capture, str):
        return [capture]
    if isinstance(capture, tuple) and len(capture) == 2 and isinstance(capture[0], str):
        if not isinstance(capture[1], str | tuple):
            return [capture]  # one (name, layer)
    try:
        return list(capture)
    except TypeError:
        raise SiteError(f"capture = {capture!r}: expected a name of a site, a list of them, or None") from None


_LAYER_NAME = re.compile(r"blocks\.(-?\d{1,18})\.(.+)")


class SiteTable:
    """The sites that one model has; printable.

    Example
    -------
    >>> import clew
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> "blocks.0.attn.hook_z" in model.sites()
    True
    """

    def __init__(self, n_layers: int, has: Callable[[int], bool]) -> None:
        self.n_layers = n_layers
        self.sites = tuple(s for s in SITES if has(s.index))
        self._by_name = {s.name: s for s in self.sites}
        self._absent = {s.name: s for s in SITES if not has(s.index)}

    def names(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Full names in order of computation, optionally of some layers only."""
        last = self.n_layers - 1 if last is None else last
        layered = [s for s in self.sites if s.layered]
        start = next((i for i, s in enumerate(self.sites) if s.layered), len(self.sites))
        yield from (s.name for s in self.sites[:start])
        for layer in range(first, last + 1):
            yield from (s.full_name(layer) for s in layered)
        yield from (s.name for s in self.sites[start:] if not s.layered)

    def __iter__(self) -> Iterator[str]:
        return self.names()

    def __len__(self) -> int:
        return sum(self.n_layers if s.layered else 1 for s in self.sites)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self.find(name))
        except SiteError:
            return False

    def _rows(self) -> list[tuple[str, str, str]]:
        return [(s.name, " ".join(s.axes), s.meaning) for s in self.sites]

    def __repr__(self) -> str:
        rows = self._rows()
        wide = max(len(r[0]) for r in rows)
        axes = max(len(r[1]) for r in rows)
        head = f"{len(rows)} kinds of sites; L = 0 … {self.n_layers - 1}"
        return "\n".join([head, *(f"{n:<{wide}}  {a:<{axes}}  {m}" for n, a, m in rows)])

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><td><code>{n}</code></td><td>{a}</td><td>{m}</td></tr>" for n, a, m in self._rows())
        return f"<table><tr><th>site</th><th>axes</th><th>meaning</th></tr>{cells}</table>"

    def layer(self, number: int, what: str) -> int:
        """A layer's number, negative ones counted from the end."""
        if not -self.n_layers <= number < self.n_layers:
            there = f"layers 0 to {self.n_layers - 1}" if self.n_layers else "no layers"
            raise SiteError(f"{what}: the model has {there}")
        return number % self.n_layers

    def find(self, name: SiteName, first: int = 0, last: int | None = None) -> list[tuple[Site, int]]:
        """(site, layer) pairs that a name means: exact, short (`"z"`, `"attn.z"`), with a layer (`"z.3"`) or glob.

        `blocks.L.` as the table prints it stands for every layer; `hook_` may be left out of a short name.

        Globs and short names cover the layers `first` to `last`; an exact name may lie outside them.

        Raises
        ------
        SiteError
            Nothing is meant; the message says the nearest names.
        """
        name = pair_name(name)
        last = self.n_layers - 1 if last is None else last
        layers = range(first, last + 1)
        if name.startswith("blocks.L.") and name in self._by_name:  # as the table prints it: every layer
            if not layers:
                raise SiteError(self._unknown(name))
            return [(self._by_name[name], n) for n in layers]
        match = _LAYER_NAME.fullmatch(name)
        if match and f"blocks.L.{match[2]}" in self._by_name:
            return [(self._by_name[f"blocks.L.{match[2]}"], self.layer(int(match[1]), name))]
        if name in self._by_name and not self._by_name[name].layered:
            return [(self._by_name[name], 0)]
        found: list[tuple[Site, int]] = []
        if any(c in name for c in "*?["):
            for s in self.sites:
                found += [(s, n) for n in (layers if s.layered else (0,)) if fnmatch.fnmatchcase(s.full_name(n), name)]
        else:
            short, number = name, None
            match = re.fullmatch(r"(.+)\.(-?\d{1,18})", name)
            if match:
                short, number = match[1], int(match[2])
            for s in self.sites:
                if self._means(s, short):
                    if number is None:
                        found += [(s, n) for n in (layers if s.layered else (0,))]
                    elif s.layered:
                        found.append((s, self.layer(number, name)))
        if not found:
            raise SiteError(self._unknown(name))
        return found

    @staticmethod
    def _means(site: Site, short: str) -> bool:
        plain = site.name.removeprefix("blocks.L.").replace("hook_", "")
        return short.replace("hook_", "") in (site.short, plain)

    def _unknown(self, name: str) -> str:
        match = _LAYER_NAME.fullmatch(name)
        plain = f"blocks.L.{match[2]}" if match else re.sub(r"\.-?\d+$", "", name)
        if plain in self._absent or any(self._means(s, plain) for s in self._absent.values()):
            return f"{name!r}: this model has no such site (its architecture does not compute it); see model.sites()"
        if self.n_layers == 0 and any(self._means(s, plain) or s.name == plain for s in self.sites if s.layered):
            return f"{name!r}: this model has no layers"
        candidates = [*(s.name for s in self.sites), *(s.short for s in self.sites)]
        near = difflib.get_close_matches(plain, candidates, n=4, cutoff=0.5)
        layer = match[1] if match else "0"
        near = [n.replace("blocks.L.", f"blocks.{layer}.") for n in near]
        hint = f"; nearest: {', '.join(dict.fromkeys(near))}" if near else ""
        return f"{name!r} matches no capture site{hint}; model.sites() lists all"

    def resolve(
        self,
        capture: str | Iterable[str | tuple[str, int]] | None,
        start_at_layer: int | None = None,
        stop_after_layer: int | None = None,
    ) -> list[tuple[Site, int]]:
        """All (site, layer) pairs of a capture list, each once, in order of computation.

        Globs and short names mean what a run from `start_at_layer` to `stop_after_layer` computes.
        """
        first = start_at_layer or 0
        embedding, final = start_at_layer is None, stop_after_layer is None
        front = min((s.index for s in SITES if s.layered), default=0)
        pairs: set[tuple[int, int]] = set()
        for item in capture_list(capture):
            item = pair_name(item)
            found = self.find(item, first, stop_after_layer)
            if len(found) > 1:
                found = [(s, n) for s, n in found if s.layered or (embedding if s.index < front else final)]
                if not found:
                    last = self.n_layers - 1 if stop_after_layer is None else stop_after_layer
                    raise SiteError(f"{item!r} matches nothing that a run of blocks {first} to {last} computes")
            pairs.update((s.index, layer) for s, layer in found)
        return [(SITES[i], layer) for i, layer in sorted(pairs)]
