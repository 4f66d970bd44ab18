"""Adaptive inference in context: optimal layer-wise questions, and constrained transformers that learn to ask them.

A test of an abstract's claims (arXiv 2606.16694) under our own specification, which `clew.adaptive.specification`
holds.

>>> import clew.adaptive as adaptive
>>> policy, = adaptive.fit(adaptive.tree(), 0.3, layers=2, steps=100)
>>> policy.run([[1.0, 0, 0, 0, 0, 0, 0]]).messages.shape
(1, 2)
"""

from __future__ import annotations

from . import function_vectors
from .closed_forms import gaussian_error, noiseless_error, water_filling
from .experiment import Experiment, experiment, reproduce, stored
from .measures import bits_by_layer, branches_of, level_bits
from .network import Constrained, Pass, fit
from .ordinary import compare_with_algorithms, train_ordinary
from .patching import Patching, patch, patch_branches, workspace_vectors
from .predictions import PREDICTIONS, Check, Laboratory, Prediction, expected_values
from .priors import Prior, between, codebook, eigenvalues, flat, gaussian, sample_estimate, tree
from .programme import Programme, node_directions, programme
from .specification import DEFAULT, EXPECTED, Specification

__all__ = [
    "DEFAULT",
    "EXPECTED",
    "PREDICTIONS",
    "Check",
    "Constrained",
    "Experiment",
    "Laboratory",
    "Pass",
    "Patching",
    "Prediction",
    "Prior",
    "Programme",
    "Specification",
    "between",
    "bits_by_layer",
    "branches_of",
    "codebook",
    "compare_with_algorithms",
    "eigenvalues",
    "expected_values",
    "experiment",
    "fit",
    "flat",
    "function_vectors",
    "gaussian",
    "gaussian_error",
    "level_bits",
    "node_directions",
    "noiseless_error",
    "patch",
    "patch_branches",
    "programme",
    "reproduce",
    "sample_estimate",
    "stored",
    "train_ordinary",
    "tree",
    "water_filling",
    "workspace_vectors",
]
