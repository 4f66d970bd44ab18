"""clew: take transformers apart. Load a model, run it, see every internal quantity. See the README for a tour."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import (
    ConfigError,
    Error,
    LoadError,
    ShapeError,
    SiteError,
    TokenError,
    TrainingError,
    UnsupportedModelError,
)

# isort: split
from . import edit, metrics, regression, train
from .attribution import direct_logit_attribution
from .config import ModelConfig
from .factored import FactoredMatrix
from .info import __version__, bundled, show_config
from .model import Model, load
from .plan import Plan
from .run import Run
from .threads import get_num_threads, register, set_num_threads
from .train import AdamW

register()
del register

_LAZY = ("adaptive", "descent", "geometry", "lens", "mazes", "plot", "probe", "stream", "testing", "walk")
"""Modules that are imported when they are first asked for: `clew.lens`."""


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY} - {"ModuleType", "import_module"})


__all__ = [
    "AdamW",
    "ConfigError",
    "Error",
    "FactoredMatrix",
    "LoadError",
    "Model",
    "ModelConfig",
    "Plan",
    "Run",
    "ShapeError",
    "SiteError",
    "TokenError",
    "TrainingError",
    "UnsupportedModelError",
    "__version__",
    "bundled",
    "direct_logit_attribution",
    "edit",
    "get_num_threads",
    "load",
    "metrics",
    "regression",
    "set_num_threads",
    "show_config",
    "train",
]
