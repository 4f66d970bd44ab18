"""Movement through embedding space (paper 1: Singh 2023, arXiv:2308.10874): walks, concept vectors and their tests.

The paper's notation was not at hand: definitions of walks, filters and aggregation are ours, consistent with its
abstracts; the two tests are those of the author's published code.

>>> import clew
>>> from clew import walk
>>> walk.decoding_walk(clew.load("stories260K"), [1, 403, 407, 261]).points.shape
(4, 64)
"""

from .choice import Choices, Comparison, Settings, compare, evaluate
from .concepts import Concept, concept_vectors
from .continuation import log_probabilities
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
    "Choices",
    "Comparison",
    "Concept",
    "Settings",
    "Split",
    "Steps",
    "Task",
    "Tasks",
    "Walk",
    "compare",
    "concept_vectors",
    "decoding_walk",
    "encoding_walk",
    "evaluate",
    "linear_recurrence",
    "log_probabilities",
    "measure",
    "next_sentence_tasks",
    "read_tasks",
    "split_decoding",
    "split_encoding",
]
