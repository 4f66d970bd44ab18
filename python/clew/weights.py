"""A model's weights: by full name, stacked over layers, as factored matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .config import ModelConfig
from .elsewhere import no_attribute
from .engine import WEIGHTS
from .errors import ConfigError, ShapeError, SiteError
from .factored import FactoredMatrix
from .inputs import as_array, check_type, in_precision, nearest
from .inputs import whole as whole  # where others look for it
from .sites import SiteTable

if TYPE_CHECKING:
    from .loaders.checkpoint import Checkpoint
    from .model import Model

Array = NDArray[Any]


_STACKED = frozenset(last for name, _, _ in WEIGHTS if (last := name.rsplit(".", 1)[-1]).startswith(("W_", "b_")))


class Weights(Mapping[str, Array]):
    """Every weight by its full name, in classic layout; read-only views wherever the file's layout allows."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays: dict[str, Array] = {}
        for name, array in arrays.items():
            view = array.view()
            view.flags.writeable = False
            self._arrays[name] = view

    def __getitem__(self, name: str) -> Array:
        """A weight by its full name; raises SiteError, with the nearest names."""
        if not isinstance(name, str):
            raise SiteError(f"{name!r} is no weight of this model: weights have names, such as 'blocks.0.attn.W_Q'")
        try:
            return self._arrays[name]
        except KeyError:
            same = [n for n in self._arrays if n.rsplit(".", 1)[-1] == name or n.lower() == name.lower()]
            hint = f"; nearest: {', '.join(same[:3])}" if same else nearest(name, self._arrays)
            raise SiteError(f"{name!r} is no weight of this model{hint}") from None

    def __contains__(self, name: object) -> bool:  # a Mapping's own would look for the nearest names
        return isinstance(name, str) and name in self._arrays

    __eq__ = object.__eq__  # a Mapping's own would compare arrays
    __hash__ = object.__hash__

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return "\n".join(f"{name:<32} {list(a.shape)} {a.dtype}" for name, a in self._arrays.items())


@dataclass(frozen=True)
class BadValue:
    """A weight that is NaN or infinite."""

    name: str
    index: tuple[int, ...]
    value: float


class WeightAccess:
    """What a :class:`clew.Model` says about its weights."""

    config: ModelConfig
    dtype: np.dtype[Any]
    weights: Weights
    _table: SiteTable
    _checkpoint: Callable[[], Checkpoint]

    @functools.cached_property
    def n_params(self) -> int:
        """Number of parameters; a tied unembedding counts once."""
        seen = {(a.__array_interface__["data"][0], a.size): a.size for a in self.weights.values()}
        return sum(seen.values())

    def __dir__(self) -> list[str]:
        stacked = {full.rsplit(".", 1)[-1] for full, _, _ in WEIGHTS}
        return sorted({*super().__dir__(), *(n for n in stacked if n.startswith(("W_", "b_")))})

    def __getattr__(self, name: str) -> Any:
        # W_Q, b_in, ...: only names that the table of weights holds reach this far
        if name.startswith(("W_", "b_")):
            for full, axes, layered in WEIGHTS:
                if full.rsplit(".", 1)[-1] == name:
                    return self._stacked(full, axes, layered)
        raise AttributeError(no_attribute(name, dir(self) if name[:1] != "_" else []))

    def with_weights(self, weights: Mapping[str, ArrayLike]) -> Model:
        """A second model in which some weights are others; this one, and what the two share, stays as it is.

        weights: full name → array in classic layout, converted to the model's dtype. Raises SiteError for a name that
        is no weight of this model, ShapeError (both shapes), ConfigError (no mapping, values beyond the dtype). Tied
        embeddings part: of W_E and W_U only the one that is named changes.

        >>> import clew
        >>> model = clew.load("stories260K")
        >>> W_O = model.weights["blocks.0.attn.W_O"].copy()
        >>> W_O[2] = 0                                                      # what head 2 writes
        >>> other = model.with_weights({"blocks.0.attn.W_O": W_O})
        >>> float(other.weights["blocks.0.attn.W_O"][2].max()), bool(model.weights["blocks.0.attn.W_O"][2].any())
        (0.0, True)
        """
        check_type(Mapping, "{full name: array}", weights=weights)
        made = self._checkpoint()
        for name, value in weights.items():
            old, new = self.weights[name], as_array(value, name)
            if new.shape != old.shape or new.dtype.kind not in "fiu":
                raise ShapeError(f"{name}: {new.dtype} {list(new.shape)} for a weight {list(old.shape)}")
            made.weights[name] = in_precision(new, self.dtype, name).copy()
        if {"embed.W_E", "unembed.W_U"} & set(weights):
            made.config = made.config.replace(tie_word_embeddings=False)
        return type(self)(made)  # type: ignore[call-arg, return-value]

    def _stacked(self, name: str, axes: str, layered: bool) -> Array:
        lengths = {
            "v": self.config.d_vocab,
            "u": self.config.d_vocab_out,
            "d": self.config.d_model,
            "h": self.config.n_heads,
            "g": self.config.n_key_value_heads,
            "e": self.config.d_head,
            "f": self.config.d_mlp,
            "c": self.config.n_ctx + self.config.pos_offset,
        }
        names = [f"blocks.{n}.{name}" for n in range(self.config.n_layers)] if layered else [name]
        kept = [self.weights[n] for n in names if n in self.weights]
        is_bias = name.rsplit(".", 1)[-1].startswith("b_")
        if not kept and not is_bias:
            raise AttributeError(f"this model has no {name}")
        if not layered and kept:
            return kept[0]
        shape = tuple(lengths[a] for a in axes)
        zero = np.zeros(shape, self.dtype)  # an absent bias
        stack = np.stack([self.weights.get(n, zero) for n in names]) if layered else zero
        stack.flags.writeable = False
        return stack

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weights" and "weights" in self.__dict__ and not isinstance(value, Weights):
            raise AttributeError("model.weights cannot be set: model.with_weights makes a model of others")
        if name in _STACKED:
            raise AttributeError(
                f"model.{name} cannot be set, it is a view or a copy of model.weights: edits change runs, "
                "and model.with_weights makes a model of others"
            )
        object.__setattr__(self, name, value)

    def _kv_head(self, head: int) -> int:
        head = whole(head, "head")
        if not -self.config.n_heads <= head < self.config.n_heads:
            raise ConfigError(f"head {head}: the model has heads 0 to {self.config.n_heads - 1}")
        return head % self.config.n_heads * self.config.n_key_value_heads // self.config.n_heads

    def _factors(self, left: str, right: str, layer: int | None, head: int | None, what: str) -> tuple[Array, Array]:
        """Two attention weights [..., d, e] or [..., e, d] of a layer and query head; None: a leading axis of all."""
        group = self.config.n_heads // self.config.n_key_value_heads
        if head is None:
            query: Any = slice(None)
            key: Any = slice(None) if group == 1 else np.arange(self.config.n_heads) // group
        else:
            query, key = whole(head, "head"), self._kv_head(head)
        if layer is not None:
            layer = self._table.layer(whole(layer, "layer"), what)
        elif not self.config.n_layers:
            raise SiteError(f"{what}: the model has no layers")
        out = []
        for name in (left, right):
            # a slice of one layer is a view of the file's memory, all layers are stacked
            weight = self.weights[f"blocks.{layer}.attn.{name}"] if layer is not None else getattr(self, name)
            out.append(weight[..., key if name in ("W_K", "W_V") else query, :, :])
        return out[0], out[1]

    def QK(self, layer: int | None = None, head: int | None = None) -> FactoredMatrix:
        """W_Q W_Kᵀ [d_model, d_model] of one head, factored: residual of the query × residual of the key.

        None for the layer or the head: all of them, as leading axes [n_layers, n_heads, d_model, d_model].
        Without the scale of the scores; rotary positions and query/key norms act between the factors.
        """
        W_Q, W_K = self._factors("W_Q", "W_K", layer, head, f"QK({layer}, {head})")
        return FactoredMatrix(W_Q, np.swapaxes(W_K, -1, -2))

    def OV(self, layer: int | None = None, head: int | None = None) -> FactoredMatrix:
        """W_V W_O [d_model, d_model] of one head, factored: what attending to a residual writes.

        None for the layer or the head: all of them, as leading axes [n_layers, n_heads, d_model, d_model].
        """
        return FactoredMatrix(*self._factors("W_V", "W_O", layer, head, f"OV({layer}, {head})"))

    def check(self) -> list[BadValue]:
        """First NaN or infinite value of every weight that has one; an empty list is a clean bill."""
        bad = []
        for name, array in self.weights.items():
            at = _core.first_bad(array)
            if at >= 0:
                index = tuple(int(i) for i in np.unravel_index(at, array.shape))
                bad.append(BadValue(name, index, float(array[index])))
        return bad
