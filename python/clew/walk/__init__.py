"""Movement through embedding space (paper 1: Singh 2023, arXiv:2308.10874): walks, concept vectors and their tests.

The paper's notation was not at hand: definitions of walks, filters and aggregation are ours, consistent with its
abstracts; the two tests are those of the author's published code.

Walks (`decoding_walk`, `encoding_walk`, `measure`) and what their steps are made of (`split_decoding`,
`split_encoding`, `splits`, `linear_recurrence`); where the composed vector lies and what it carries (`proximity`,
`insertion`); concept vectors (`Concept`, `concept_vectors`) and their tests (`read_tasks`, `next_sentence_tasks`,
`evaluate`, `compare`); what words' vectors know (`word_similarities`, `purity_of_tokens`, `composition`); what damage
does (`ablate`, `dose_response`); what was measured beforehand (`stored_trainings`, `stored_semantics`); all of it on
one model (`experiment`).

>>> import clew
>>> from clew import walk
>>> walk.decoding_walk(clew.load("stories260K"), [1, 403, 407, 261]).points.shape
(4, 64)
"""

from .attention import Ablations, ablate, ablation
from .choice import Choices, Comparison, Settings, compare, evaluate
from .concepts import Concept, concept_vectors
from .context import Insertion, Proximity, insertion, proximity
from .continuation import log_probabilities
from .knowledge import DoseResponse, dose_response
from .neighbours import CLASSES, Composition, Purity, composition, purity, purity_of_tokens
from .similarity import (
    Similarity,
    WordPairs,
    WordSimilarities,
    WordVectors,
    embedding_similarity,
    ppmi_vectors,
    read_word_pairs,
    read_word_sets,
    token_table,
    word_similarities,
    word_similarity,
    word_vectors,
)
from .stored import Trainings, identity, stored_semantics, stored_trainings
from .study import Splits, WalkExperiment, experiment, splits
from .tasks import Task, Tasks, next_sentence_tasks, read_tasks
from .walks import (
    Split,
    Steps,
    Walk,
    decoding_walk,
    encoding_walk,
    linear_recurrence,
    measure,
    split_decoding,
    split_encoding,
)

__all__ = [
    "CLASSES",
    "Ablations",
    "Choices",
    "Comparison",
    "Composition",
    "Concept",
    "DoseResponse",
    "Insertion",
    "Proximity",
    "Purity",
    "Settings",
    "Similarity",
    "Split",
    "Splits",
    "Steps",
    "Task",
    "Tasks",
    "Trainings",
    "Walk",
    "WalkExperiment",
    "WordPairs",
    "WordSimilarities",
    "WordVectors",
    "ablate",
    "ablation",
    "compare",
    "composition",
    "concept_vectors",
    "decoding_walk",
    "dose_response",
    "embedding_similarity",
    "encoding_walk",
    "evaluate",
    "experiment",
    "identity",
    "insertion",
    "linear_recurrence",
    "log_probabilities",
    "measure",
    "next_sentence_tasks",
    "ppmi_vectors",
    "proximity",
    "purity",
    "purity_of_tokens",
    "read_tasks",
    "read_word_pairs",
    "read_word_sets",
    "split_decoding",
    "split_encoding",
    "splits",
    "stored_semantics",
    "stored_trainings",
    "token_table",
    "word_similarities",
    "word_similarity",
    "word_vectors",
]
