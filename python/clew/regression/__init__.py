"""Regression in context: exact estimators of every prefix of a sequence, at C speed.

What would a given estimator predict for example i of a prompt from examples 0 … i − 1? Each function answers for every
i at once: X [batch, n, d], y [batch, n] → yhat [batch, n]. `fit_predict` uses all examples, `Online` takes them one by
one.

>>> import numpy as np
>>> from clew import regression
>>> rng = np.random.default_rng(0)
>>> X, w = rng.standard_normal((64, 41, 20)), rng.standard_normal((64, 20))
>>> y = np.einsum("bnd,bd->bn", X, w)
>>> loss = ((regression.ols(X, y) - y) ** 2).mean(0) / 20
>>> bool(loss[10] > 0.3), bool(loss[20:].max() < 1e-9)
(True, True)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..inputs import nearest
from .linear import averaging, bayes, gd, gd_pp, lasso, momentum, newton_schulz, ols, ridge, sgd
from .mixtures import dmmse, mixture, model_average, tree, tree_leaves
from .neighbours import kernel_ridge, knn, nadaraya_watson
from .online import Online, fit_predict

if TYPE_CHECKING:
    from . import constructed, learners, tasks

__all__ = [
    "Online",
    "averaging",
    "bayes",
    "constructed",
    "dmmse",
    "fit_predict",
    "gd",
    "gd_pp",
    "kernel_ridge",
    "knn",
    "lasso",
    "learners",
    "mixture",
    "model_average",
    "momentum",
    "nadaraya_watson",
    "newton_schulz",
    "ols",
    "ridge",
    "sgd",
    "tasks",
    "tree",
    "tree_leaves",
]


def __getattr__(name: str) -> Any:
    if name in ("constructed", "learners", "tasks"):  # on first use: they need models and training
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, __all__)}")
