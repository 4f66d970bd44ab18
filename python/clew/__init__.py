"""clew: take transformers apart. Load a model, run it, see every internal quantity. See the README for a tour.

>>> import clew
>>> model = clew.load("stories260K")
>>> model.run([1, 403, 407, 261], capture="resid_post")["resid_post", -1].shape
(1, 4, 64)

Models      load, bundled, Model, ModelConfig, Run, Plan, edit, metrics, direct_logit_attribution, FactoredMatrix
Training    train, AdamW
Papers      clew.walk (1), clew.adaptive (2), clew.geometry (3), clew.descent (4), clew.mazes (5): each has `experiment`
Tools       clew.lens, clew.probe, clew.regression, clew.stream, clew.corpus, clew.experiment, clew.report, clew.plot,
            clew.testing
Errors      Error, and of it ShapeError, SiteError, LoadError, UnsupportedModelError, TokenError, ConfigError,
            TrainingError
Other       set_num_threads, get_num_threads, show_config, __version__

`python -m clew --help` lists the commands.
"""

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
