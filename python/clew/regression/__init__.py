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

from .linear import averaging, bayes, gd, gd_pp, lasso, momentum, newton_schulz, ols, ridge, sgd
from .mixtures import dmmse, mixture, model_average, tree, tree_leaves
from .neighbours import kernel_ridge, knn, nadaraya_watson
from .online import Online, fit_predict

__all__ = [
    "Online",
    "averaging",
    "bayes",
    "dmmse",
    "fit_predict",
    "gd",
    "gd_pp",
    "kernel_ridge",
    "knn",
    "lasso",
    "mixture",
    "model_average",
    "momentum",
    "nadaraya_watson",
    "newton_schulz",
    "ols",
    "ridge",
    "sgd",
    "tree",
    "tree_leaves",
]
