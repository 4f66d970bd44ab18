"""The forward pass as an inner optimisation (paper 4: Wu & Varshney 2023, arXiv:2310.05884).

Layers are steps; the lens's cross-entropy is what they would lower. `descend` measures how far they do, `controls` how
far anything would; `lens_gradient` is the exact gradient, `over_training` the same over checkpoints, `experiment` all
of it on one model. The paper's abstract and opening were all that was at hand: no number here is the paper's.

>>> import clew
>>> from clew import descent
>>> found = descent.descend(clew.load("shakespeare"), [list(range(5, 40))])
>>> found.cosine.shape
(4,)
"""

from .gradient import LensGradient, Whitening, lens_gradient
from .steps import Descent, PerToken, Streams, collect, controls, descend, find_sinks, frequencies, measure, spearman
from .study import DescentExperiment, Identities, experiment, identities
from .training import RowNorms, Training, over_training, row_norms, stored_training

__all__ = [
    "Descent",
    "DescentExperiment",
    "Identities",
    "LensGradient",
    "PerToken",
    "RowNorms",
    "Streams",
    "Training",
    "Whitening",
    "collect",
    "controls",
    "descend",
    "experiment",
    "find_sinks",
    "frequencies",
    "identities",
    "lens_gradient",
    "measure",
    "over_training",
    "row_norms",
    "spearman",
    "stored_training",
]
