"""What a run gives: arrays by site, as views of the engine's own memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import attribution
from .errors import ConfigError, SiteError
from .inputs import check_path
from .sites import LOGITS, SITES, Site, SiteTable, pair_name

if TYPE_CHECKING:
    from .model import Model

Array = NDArray[Any]


class Run(Mapping[str, Array]):
    """Captured values of one forward pass, by site.

    Arrays are read-only views of the engine's memory, C-contiguous, with the axes of the table of sites; `.copy()` to
    write. A batch axis is always there. Ragged batches are padded on the right with zeros; `lengths` [batch] tells the
    real lengths.

    >>> import clew
    >>> model = clew.Model.from_config(clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    >>> run = model.run([1, 2, 3], capture=["resid_post", "pattern.0"])
    >>> run.logits.shape, run["resid_post", -1].shape, run.stack("resid_post").shape
    ((1, 3, 10), (1, 3, 8), (2, 1, 3, 8))
    """

    def __init__(
        self,
        outputs: list[tuple[int, tuple[int, ...], Array]],
        table: SiteTable,
        lengths: NDArray[np.int32],
        tokens: NDArray[np.int32] | None,
        model: Model | None = None,
        positions: ArrayLike | None = None,
    ) -> None:
        self.lengths = lengths
        """Real tokens of each sequence, int32 [batch]."""
        self.tokens = tokens
        """Token ids padded with -1, int32 [batch, pos], a copy; None for a run from embeddings."""
        self.model = model
        """The model that ran; None after unpickling."""
        self.positions = None if positions is None else np.atleast_1d(np.array(positions))
        """The positions that were captured, as they were asked for; None: all."""
        self._table = table
        self._stacks = {SITES[i]: (layers, array) for i, layers, array in outputs}
        order: list[tuple[Site, int]] = []
        for site, (layers, _) in self._stacks.items():
            order += [(site, layer) for layer in (layers if site.layered else (0,))]
        first = min((s.index for s in SITES if s.layered), default=0)
        last = max((s.index for s in SITES if s.layered), default=0)
        order.sort(key=lambda sl: (sl[0].index > last, sl[0].index >= first, sl[1], sl[0].index))
        self._where = {site.full_name(layer): (site, layer) for site, layer in order}

    @property
    def logits(self) -> Array:
        """Logits [batch, pos, d_vocab] ([batch, 1, d_vocab] for logits="last").

        Raises SiteError when the run was made with logits=None or stopped early.
        """
        if LOGITS not in self._stacks:
            raise SiteError(
                "this run has no logits: it was made with logits=None or stop_after_layer, or by generate, which keeps "
                'them with capture=[…, "logits"]'
            )
        return self._stacks[LOGITS][1]

    def _real(self) -> NDArray[np.bool_]:
        """Which captured positions [batch, pos] the sequences have; the others, and padding, hold zeros."""
        length = self.lengths[:, None]
        if self.positions is None:
            return np.asarray(np.arange(int(self.lengths.max())) < length)
        return np.asarray((self.positions < length) & (self.positions >= -length))

    def _find(self, key: str | tuple[str, int]) -> tuple[Site, int]:
        name = pair_name(key)
        if name in self._where:
            return self._where[name]
        wanted = self._table.find(name)
        captured = [(s, layer) for s, layer in wanted if s.full_name(layer) in self._where]
        if len(captured) == 1:
            return captured[0]
        kinds = {s: s.full_name(layer) for s, layer in reversed(captured)}
        if len(kinds) > 1:
            more = ", …" if len(captured) > len(kinds) else ""
            raise SiteError(f"{name!r} means {', '.join(reversed(kinds.values()))}{more}: give one of these names")
        if len(captured) > 1:
            raise SiteError(
                f"{name!r} was captured {len(captured)} times ({captured[0][0].full_name(captured[0][1])}, …): "
                f"give the full name, (name, layer), or use run.stack({name!r})"
            )
        held = ", ".join(dict.fromkeys(s.short if s.layered else s.name for s in self._stacks)) or "nothing"
        raise SiteError(f"{name!r} was not captured; this run holds {held}")

    def __getitem__(self, key: str | tuple[str, int]) -> Array:
        """The array of a site: by full name, by (short name, layer), or by short name where one layer was captured.

        Negative layers count from the end. Raises SiteError for what was not captured and for names of several arrays.
        """
        site, layer = self._find(key)
        layers, array = self._stacks[site]
        return array[layers.index(layer)] if site.layered else array

    def __contains__(self, key: object) -> bool:
        """Was the site captured, on this layer or, for a short name, on any?"""
        try:
            wanted = self._table.find(pair_name(key))
        except (SiteError, TypeError, ValueError):
            return False
        return any(s.full_name(layer) in self._where for s, layer in wanted)

    def get(self, key: str | tuple[str, int], default: Any = None) -> Any:
        """`run[key]`, or the default where the site was not captured.

        Raises SiteError for a name that means no site, or several arrays of this run.
        """
        if key in self or not self._table.find(pair_name(key)):
            return self[key]
        return default

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    __eq__ = object.__eq__  # a Mapping's own would compare arrays
    __hash__ = object.__hash__

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _stacked(self, name: str) -> tuple[tuple[int, ...], Array]:
        sites = {s for s, _ in self._table.find(pair_name(name))}
        held = [s for s in self._stacks if s in sites and s.layered]
        if len(held) == 1:
            return self._stacks[held[0]]
        if held:
            raise SiteError(f"{name!r} means {', '.join(s.name for s in held)}: give one of them")
        raise SiteError(f"{name!r} was captured on no layer")

    def stack(self, name: str) -> Array:
        """A site over its captured layers [layer, batch, …]: a view, nothing is copied.

        Raises SiteError when it was captured on no layer.
        """
        return self._stacked(name)[1]

    def layers(self, name: str) -> tuple[int, ...]:
        """Numbers of the layers that `stack(name)` holds."""
        return self._stacked(name)[0]

    def save(self, path: str | PathLike[str]) -> None:
        """Writes every array by its full name, and the tokens, as one `.npz` file, which `np.load` reads.

        Folders above it are made. Raises ConfigError for what is no path, OSError.

        >>> import clew
        >>> clew.load("stories260K").run([1, 403, 407], capture="z.0").save("out/run.npz")
        >>> sorted(np.load("out/run.npz"))
        ['blocks.0.attn.hook_z', 'logits', 'tokens']
        """
        check_path(path=path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        tokens = {} if self.tokens is None else {"tokens": self.tokens}
        with open(path, "wb") as file:  # np.savez would add a suffix to a name
            np.savez(file, **dict(self), **tokens)  # type: ignore[arg-type]

    # the residual stream in parts: see clew.attribution
    accumulated_resid = attribution.accumulated_resid
    decompose_resid = attribution.decompose_resid
    get_full_resid_decomposition = attribution.get_full_resid_decomposition
    stack_activation = attribution.stack_activation
    stack_head_results = attribution.stack_head_results
    stack_neuron_results = attribution.stack_neuron_results
    apply_ln_to_stack = attribution.apply_ln_to_stack
    logit_attrs = attribution.logit_attrs

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"model": None}  # arrays can be pickled, a model cannot

    def __copy__(self) -> Run:
        out = object.__new__(type(self))
        out.__dict__.update(self.__dict__)
        return out

    def __deepcopy__(self, memo: Any) -> Run:
        out = self.__copy__()
        out.__dict__.update(copy.deepcopy(self.__getstate__(), memo), model=self.model)
        return out

    def __repr__(self) -> str:
        rows = []
        for site, (layers, array) in self._stacks.items():
            shape = array.shape[1:] if site.layered else array.shape
            where = f"{len(layers)} layers" if site.layered else ""
            rows.append(f"  {site.name:<34} {where:<10} {list(shape)}")
        batch, n = len(self.lengths), int(self.lengths.sum())
        head = f"Run of {batch} sequence{'s' if batch != 1 else ''}, {n} token{'s' if n != 1 else ''}"
        return "\n".join([head, *rows])

    def _repr_html_(self) -> str:
        cells = ""
        for site, (layers, array) in self._stacks.items():
            shape = array.shape[1:] if site.layered else array.shape
            where = ", ".join(map(str, layers)) if site.layered else ""
            axes = " × ".join(f"{n} {a}" for n, a in zip(shape, site.axes, strict=False))
            cells += f"<tr><td><code>{site.name}</code></td><td>{where}</td><td>{axes}</td><td>{array.dtype}</td></tr>"
        head = "<tr><th>site</th><th>layers</th><th>shape</th><th>dtype</th></tr>"
        return f"<table>{head}{cells}</table>"


def check_run(run: Any) -> None:
    """Raises ConfigError for what is no run; gradients and tangents are used like one, but hold other values."""
    if type(run) is not Run:
        raise ConfigError(f"run: a Run, such as model.run gives, not {type(run).__name__}")
