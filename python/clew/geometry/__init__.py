"""The geometry of a transformer (paper 3: Molina 2023, *Traveling Words*, arXiv:2309.07315).

Layer norm as a map of space (`norm_geometry`), attention rewritten with W_QK and W_VO (`query_key`, `value_output`,
`rewrite_attention`), what heads read and write as tokens (`probe_nouns`, `svd_heads`, `bias_tokens`, `head_coherence`),
words on their way through the layers (`trajectory`, `distances`, `refinement`, `contextual`), the nearest tokens of any
vector (`nearest`), and all of it on one model (`experiment`).

>>> import clew
>>> from clew import geometry
>>> model = clew.load("shakespeare")
>>> geometry.norm_geometry(model)
NormGeometry ln_final: LayerNorm: projects along 1, radius √128 = 11.31, |γ| 1.33 to 2.04, ‖β‖ 2.27
"""

from .attention import QueryKey, Rewritten, ValueOutput, query_key, rewrite_attention, value_output
from .heads import (
    NOUNS,
    BiasTokens,
    HeadCoherence,
    HeadSVD,
    NounProbe,
    bias_tokens,
    coherence,
    head_coherence,
    probe_nouns,
    single_tokens,
    svd_heads,
)
from .norms import (
    EmbeddingNorms,
    NormGeometry,
    NormStages,
    TokenScores,
    embedding_norms,
    norm_geometry,
    token_scores,
)
from .paths import (
    Contextual,
    Distances,
    Projection,
    Refinement,
    Trajectory,
    contextual,
    distances,
    fit_projection,
    refinement,
    trajectory,
)
from .search import Nearest, nearest, nearest_by
from .study import GeometryExperiment, experiment

__all__ = [
    "NOUNS",
    "BiasTokens",
    "Contextual",
    "Distances",
    "EmbeddingNorms",
    "GeometryExperiment",
    "HeadCoherence",
    "HeadSVD",
    "Nearest",
    "NormGeometry",
    "NormStages",
    "NounProbe",
    "Projection",
    "QueryKey",
    "Refinement",
    "Rewritten",
    "TokenScores",
    "Trajectory",
    "ValueOutput",
    "bias_tokens",
    "coherence",
    "contextual",
    "distances",
    "embedding_norms",
    "experiment",
    "fit_projection",
    "head_coherence",
    "nearest",
    "nearest_by",
    "norm_geometry",
    "probe_nouns",
    "query_key",
    "refinement",
    "rewrite_attention",
    "single_tokens",
    "svd_heads",
    "token_scores",
    "trajectory",
    "value_output",
]
