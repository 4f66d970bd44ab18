"""A model's norms in NumPy, float64: what lenses and attributions apply to vectors of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from .config import ModelConfig
    from .model import Model

Array = NDArray[Any]


def is_there(config: ModelConfig, name: str) -> bool:
    """Does the model have that norm? `name`: "ln_final", "ln1", "ln2", ..."""
    return config.normalization_type is not None and (name != "ln_final" or config.final_norm)


def centre(config: ModelConfig, x: ArrayLike) -> Array:
    """A float64 copy of x [..., d_model], its mean over the last axis taken out where the norms do so (LayerNorm)."""
    out = np.array(x, np.float64)
    if not config.rms:
        out -= out.mean(-1, keepdims=True)
    return out


def scale(config: ModelConfig, centred: Array) -> Array:
    """What a norm divides by [..., 1]: √(mean square + ε) of an input that is centred already."""
    return np.asarray(np.sqrt(np.square(centred).mean(-1, keepdims=True) + config.eps))


def weight(model: Model, name: str) -> Array | None:
    """The norm's weight [d_model], float64; None where it has none."""
    return None if f"{name}.w" not in model.weights else model.weights[f"{name}.w"].astype(np.float64)


def bias(model: Model, name: str) -> Array | None:
    """The norm's bias [d_model], float64; None where it has none."""
    return None if f"{name}.b" not in model.weights else model.weights[f"{name}.b"].astype(np.float64)


def normalise(model: Model, x: ArrayLike, name: str = "ln_final") -> Array:
    """A norm's output for x [..., d_model], affine part included, float64; a copy of x where the norm is not there.

    >>> import clew
    >>> model = clew.load("stories260K")
    >>> run = model.run([1, 403, 407], capture=["resid_post", "ln_final.hook_out"])
    >>> float(abs(normalise(model, run["resid_post", -1]) - run["ln_final.hook_out"]).max()) < 1e-5
    True
    """
    if not is_there(model.config, name.rsplit(".", 1)[-1]):
        return np.array(x, np.float64)
    out = centre(model.config, x)
    out /= scale(model.config, out)
    for part, combine in ((weight(model, name), np.multiply), (bias(model, name), np.add)):
        if part is not None:
            combine(out, part, out=out)
    return out


def linear_part(model: Model, name: str, x: ArrayLike, scale: ArrayLike) -> Array:
    """The norm as the linear map that it is once its scale [..., 1] is known, without its bias; float64.

    Padded positions, whose scale is 0, stay 0.
    """
    out = centre(model.config, x)
    divisor = np.asarray(scale, np.float64)
    out /= np.where(divisor == 0, 1.0, divisor)
    w = weight(model, name)
    return out if w is None else out * w


def pull_back(model: Model, name: str, direction: Array, scale: ArrayLike) -> Array:
    """The direction before the norm that reads what `direction` [..., d_model] reads behind it; float64.

    direction · linear_part(x) = pull_back(direction) · x.
    """
    w = weight(model, name)
    out = centre(model.config, direction if w is None else direction * w)
    divisor = np.asarray(scale, np.float64)
    out /= np.where(divisor == 0, 1.0, divisor)
    return out


__all__ = ["bias", "centre", "is_there", "linear_part", "normalise", "pull_back", "scale", "weight"]
