"""What walk, geometry, descent, stream, testing and the report refuse, and that the message names what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import commands, corpus, descent, experiment, geometry, report, stream, testing, walk
from clew.errors import ConfigError, LoadError, ShapeError, TokenError
from clew.walk.choice import only

CONFIG = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_vocab=30, initializer_range=0.3)
MODEL = clew.Model.from_config(CONFIG, seed=0)
TALKER = clew.load("shakespeare")
IDS = np.random.default_rng(0).integers(0, 30, (6, 10))
ROWS = np.random.default_rng(1).standard_normal((5, 16))
CHOICES = walk.Choices(walk.Settings(), np.random.default_rng(2).random((8, 4)), np.zeros(8, np.int64))
PAIRS = walk.WordPairs("set", (("king", "queen"), ("man", "day"), ("hand", "eye")), np.array([3.0, 1, 2]))
VECTORS = walk.word_vectors(TALKER, PAIRS.words)
STREAMS = descent.collect(MODEL, IDS)
TASK = walk.Task("a", ("b", "c", "d", "e"), 0)
MEAN: dict[str, Any] = {"mean": (stream.Mean(), "resid_post.1")}
RAGGED: Any = [[1, 2], [3]]
NO: Any = None

MODELS: list[Callable[[Any], Any]] = [
    lambda m: corpus.windows(m, IDS, 4),
    lambda m: corpus.sequences(m, IDS),
    lambda m: walk.decoding_walk(m, [1, 2, 3]),
    lambda m: walk.encoding_walk(m, [1, 2, 3]),
    lambda m: walk.split_encoding(m, IDS),
    lambda m: walk.linear_recurrence(m, IDS),
    lambda m: walk.concept_vectors(m, [[1, 2]]),
    lambda m: walk.evaluate(m, [TASK]),
    lambda m: walk.insertion(m, range(20)),
    lambda m: walk.proximity(m, IDS),
    lambda m: walk.log_probabilities(m, [[1]], [[[2]]]),
    lambda m: walk.dose_response(m, IDS),
    lambda m: walk.ablate(m, IDS),
    lambda m: walk.ablation(m, "uniform", IDS),
    lambda m: walk.purity_of_tokens(m),
    lambda m: walk.composition(m, IDS),
    lambda m: walk.token_table(m),
    lambda m: walk.word_vectors(m, ["king"]),
    lambda m: walk.word_similarities(m, [PAIRS]),
    lambda m: walk.identity(m),
    lambda m: walk.splits(m, IDS),
    lambda m: walk.experiment(m),
    lambda m: geometry.query_key(m, 0),
    lambda m: geometry.rewrite_attention(m, ROWS, 0),
    lambda m: geometry.norm_geometry(m),
    lambda m: geometry.embedding_norms(m),
    lambda m: geometry.token_scores(m),
    lambda m: geometry.single_tokens(m, ["king"]),
    lambda m: geometry.probe_nouns(m),
    lambda m: geometry.svd_heads(m, 0),
    lambda m: geometry.bias_tokens(m, 0),
    lambda m: geometry.head_coherence(m),
    lambda m: geometry.trajectory(m),
    lambda m: geometry.distances(m, IDS),
    lambda m: geometry.refinement(m, IDS),
    lambda m: geometry.contextual(m, IDS),
    lambda m: descent.lens_gradient(m, ROWS, [1, 2, 3, 4, 5]),
    lambda m: descent.descend(m, IDS),
    lambda m: descent.controls(m, IDS),
    lambda m: descent.identities(m, IDS),
    lambda m: descent.frequencies(m, IDS),
    lambda m: descent.row_norms(m, np.ones(30)),
    lambda m: descent.measure(m, STREAMS, np.ones(30)),
    lambda m: descent.experiment(m),
    lambda m: stream.reduce(m, [[1, 2]], MEAN),
]
TOKENS: list[Callable[[Any], Any]] = [
    lambda t: corpus.sequences(MODEL, t),
    lambda t: walk.proximity(MODEL, t),
    lambda t: walk.dose_response(MODEL, t),
    lambda t: walk.ablate(MODEL, t),
    lambda t: walk.composition(MODEL, t),
    lambda t: walk.splits(MODEL, t),
    lambda t: geometry.trajectory(MODEL, t),
    lambda t: geometry.distances(MODEL, t),
    lambda t: geometry.refinement(MODEL, t),
    lambda t: geometry.contextual(MODEL, t),
    lambda t: descent.descend(MODEL, t),
    lambda t: descent.controls(MODEL, t),
    lambda t: descent.identities(MODEL, t),
    lambda t: descent.frequencies(MODEL, t),
    lambda t: descent.over_training({0: MODEL}, t),
]
SEEDS: list[Callable[[Any], Any]] = [
    lambda s: clew.Model.from_config(CONFIG, seed=s),
    lambda s: corpus.windows(MODEL, IDS, 4, seed=s),
    lambda s: walk.evaluate(TALKER, [TASK], seed=s),
    lambda s: CHOICES.interval(seed=s),
    lambda s: walk.compare(CHOICES, CHOICES, seed=s),
    lambda s: walk.insertion(MODEL, range(20), (0, 1), n=2, fill=1, seed=s),
    lambda s: walk.proximity(MODEL, IDS, seed=s),
    lambda s: walk.dose_response(MODEL, IDS, seed=s),
    lambda s: walk.purity(ROWS[:4], list("aabb"), 1, seed=s),
    lambda s: walk.composition(MODEL, IDS, seed=s),
    lambda s: walk.word_similarity(VECTORS, PAIRS, seed=s),
    lambda s: walk.splits(MODEL, IDS, seed=s),
    lambda s: walk.next_sentence_tasks(corpus.held_out(), seed=s),
    lambda s: walk.experiment(TALKER, seed=s),
    lambda s: geometry.contextual(MODEL, IDS, seed=s),
    lambda s: geometry.head_coherence(MODEL, seed=s),
    lambda s: geometry.fit_projection(ROWS, seed=s),
    lambda s: geometry.trajectory(MODEL, [1, 2, 3], seed=s),
    lambda s: descent.controls(MODEL, IDS, seed=s),
    lambda s: descent.experiment(MODEL, seed=s),
    lambda s: report.main(seed=s, papers=()),
]
CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # arrays and ids
    (lambda: walk.measure(RAGGED), ShapeError, "a path cannot be read as an array"),
    (lambda: walk.splits(MODEL, [[3]]), TokenError, "a text of one token makes no step"),
    (lambda: walk.proximity(MODEL, [[1, 2, 99]]), TokenError, "proximity: id 99"),
    (lambda: walk.ablate(MODEL, IDS, ["uniform"], other=IDS[:, :3]), ShapeError, "ablate: other [6, 3]"),
    (lambda: walk.purity(RAGGED, ["a", "b"]), ShapeError, "purity: vectors cannot be read"),
    (lambda: walk.purity(ROWS, NO), ConfigError, "labels: a list of names, not NoneType"),
    (lambda: walk.embedding_similarity("zz", ROWS), ShapeError, "tables must be real numbers"),
    (lambda: walk.insertion(MODEL, "zz"), ShapeError, "insertion: pool: token ids"),
    (lambda: walk.log_probabilities(MODEL, ["ab"], [[[1]]]), ShapeError, "context 0: a list of ids"),
    (lambda: walk.log_probabilities(MODEL, [[1.5]], [[[1]]]), ShapeError, "context 0: ids must be integers"),
    (lambda: walk.concept_vectors(MODEL, "zz"), ConfigError, "texts: a list of texts or of lists of ids, not str"),
    (lambda: walk.concept_vectors(MODEL, [None]), TokenError, "text 0 is neither a text nor a list of ids"),
    (lambda: geometry.coherence(NO, [[0, 1]]), ShapeError, "rows must be real numbers"),
    (lambda: geometry.coherence(ROWS, [0]), ShapeError, "two or more of them"),
    (lambda: geometry.coherence(ROWS, [[0, 9]]), ConfigError, "ids 0 to 9 of 5 rows"),
    (lambda: geometry.probe_nouns(MODEL, ids=[1.5]), ShapeError, "ids must be integers [n], not float64"),
    (lambda: geometry.fit_projection(ROWS, 2)([1.0]), ShapeError, "the projection was fitted to rows of 16"),
    (lambda: descent.lens_gradient(MODEL, "zz", 1), ShapeError, "residuals must be real numbers"),
    (lambda: descent.descend(MODEL, IDS, frequency=RAGGED), ShapeError, "frequency cannot be read"),
    (lambda: descent.row_norms(MODEL, "zz"), ShapeError, "frequency must be real numbers"),
    (lambda: descent.spearman({}, [1]), ShapeError, "spearman: a must be real numbers"),
    (lambda: descent.measure(MODEL, STREAMS, np.ones(30), sinks=NO or [1]), ShapeError, "sinks must be bool"),
    (lambda: stream.Mean().update(RAGGED), ShapeError, "Mean: rows cannot be read as an array"),
    (lambda: stream.TopK().update(ROWS, where=np.zeros(3)), ShapeError, "TopK: where must be int64 [n = 5, 2]"),
    # numbers
    (lambda: walk.decoding_walk(MODEL, [1, 2], k=-1), ConfigError, "k = -1: at least 0"),
    (lambda: walk.decoding_walk(MODEL, [1, 2], metrics=-1), ConfigError, "metrics: a list of 'dot', 'cosine', 'l2'"),
    (lambda: walk.dose_response(MODEL, IDS, draws=0), ConfigError, "draws = 0: at least 1"),
    (lambda: walk.dose_response(MODEL, IDS, doses=()), ConfigError, "doses = []"),
    (lambda: walk.dose_response(MODEL, IDS, doses="a"), ShapeError, "doses must be real numbers"),
    (lambda: walk.dose_response(MODEL, IDS, counts=[1]), ShapeError, "counts [1] must be [d_vocab = 30]"),
    (lambda: walk.purity(ROWS[:4], list("aabb"), 1, deals=-1), ConfigError, "deals = -1: at least 0"),
    (lambda: walk.purity(ROWS[:4], list("aabb"), 1, deals=10**30), ConfigError, "below 2³¹"),
    (lambda: walk.proximity(MODEL, IDS, least="b"), ConfigError, "least = 'b': expected a whole number"),
    (lambda: walk.insertion(MODEL, range(20), n=True), ConfigError, "n = True: expected a whole number"),
    (lambda: walk.insertion(MODEL, range(20), fill=-1), ConfigError, "fill = -1: at least 0"),
    (lambda: walk.concept_vectors(MODEL, [[1]], at_once=0), ConfigError, "at_once = 0: at least 1"),
    (lambda: walk.ablate(MODEL, IDS, at_once=-1), ConfigError, "at_once = -1: at least 1"),
    (lambda: walk.ablate(MODEL, IDS, 3), ConfigError, "kinds: a list of 'uniform'"),
    (lambda: walk.ablate(MODEL, IDS, [None]), ConfigError, "ablate: kinds = [None]"),
    (lambda: walk.ablation(MODEL, "uniform", IDS, layers=[]), ConfigError, "layers: none were given"),
    (lambda: walk.ablation(MODEL, "uniform", IDS, layers="z"), ConfigError, "expected a whole number"),
    (lambda: walk.ablation(MODEL, "none", IDS, other=IDS), ConfigError, "other = is for 'frozen', not for 'none'"),
    (lambda: walk.evaluate(TALKER, [TASK], limit=-1), ConfigError, "limit = -1: at least 1"),
    (lambda: walk.evaluate(TALKER, [TASK], shots=-1), ConfigError, "shots = -1: at least 0"),
    (lambda: CHOICES.interval(level=2), ConfigError, "level = 2: between 0 and 1"),
    (lambda: walk.compare(CHOICES, CHOICES, resamples=0), ConfigError, "resamples = 0: at least 1"),
    (lambda: only(CHOICES, -1), ConfigError, "n = -1: at least 1"),
    (lambda: walk.next_sentence_tasks("A b c. " * 20, n=0), ConfigError, "n = 0: at least 1"),
    (lambda: walk.next_sentence_tasks("A b c. " * 20, alike="zz"), ConfigError, "alike = 'zz'"),  # type: ignore[arg-type]
    (lambda: walk.word_similarity(VECTORS, PAIRS, min_count=1.5), ConfigError, "min_count = 1.5"),  # type: ignore[arg-type]
    (lambda: geometry.probe_nouns(TALKER, layers=[]), ConfigError, "layers: none were given"),
    (lambda: geometry.probe_nouns(TALKER, layers="zz"), ConfigError, "layer = 'zz'"),  # type: ignore[arg-type]
    (lambda: geometry.svd_heads(MODEL, 0, "VO").table(head=7), ConfigError, "head = 7: the layer has heads 0 to 1"),
    (lambda: geometry.token_scores(MODEL).top("norm", k=-1), ConfigError, "k = -1: at least 1"),
    (lambda: geometry.head_coherence(MODEL, pairs=0), ConfigError, "pairs = 0: at least 1"),
    (lambda: geometry.contextual(MODEL, IDS, pairs=10**30), ConfigError, "below 2³¹"),
    (lambda: geometry.fit_projection(ROWS, min_dist=NO), ConfigError, "min_dist = None: expected a finite number"),
    (lambda: descent.descend(MODEL, IDS, sink=NO), ConfigError, "ratio = None: expected a finite number"),
    (lambda: descent.find_sinks(STREAMS, 0), ConfigError, "ratio = 0: above 0"),
    (lambda: descent.descend(MODEL, IDS, order=3), ConfigError, "order: a list of layers, not int"),  # type: ignore[arg-type]
    (lambda: descent.lens_gradient(MODEL, ROWS[0], 1, layer=0), ConfigError, "layer = is the tuned lens's"),
    (lambda: stream.Ridge("zz"), ConfigError, "lam = 'zz': expected a finite number"),  # type: ignore[arg-type]
    (lambda: stream.Histogram("a", 1), ConfigError, "low = 'a'"),  # type: ignore[arg-type]
    # other things than were expected
    (lambda: clew.Model.from_config(NO), ConfigError, "config: a ModelConfig, not NoneType"),
    (lambda: clew.Model.from_config(CONFIG, dtype="zz"), ShapeError, "a model computes in float32 or float64"),
    (lambda: clew.load(5), ConfigError, "path: a path, a name of clew.bundled() or a hub id, not int"),  # type: ignore[arg-type]
    (lambda: walk.Concept(layer=NO), ConfigError, "layer = None"),
    (lambda: walk.concept_vectors(MODEL, [[1]], "mean"), ConfigError, "concept: a Concept, not str"),  # type: ignore[arg-type]
    (lambda: walk.evaluate(TALKER, [None]), ConfigError, "evaluate: tasks: a list of tasks"),  # type: ignore[list-item]
    (lambda: walk.evaluate(TALKER, [TASK], concept=3, test="similarity"), ConfigError, "concept: a Concept"),  # type: ignore[arg-type]
    (lambda: walk.evaluate(TALKER, [TASK], resume=3), ConfigError, "resume: a path, not int"),  # type: ignore[arg-type]
    (lambda: walk.compare(CHOICES, NO), ConfigError, "baseline: what evaluate gives, not NoneType"),
    (lambda: walk.next_sentence_tasks(NO), ConfigError, "text: a text, not NoneType"),
    (lambda: walk.ppmi_vectors(NO), ConfigError, "text: a text, not NoneType"),
    (lambda: walk.word_vectors(TALKER, [None]), ConfigError, "words: a list of words"),  # type: ignore[list-item]
    (lambda: walk.word_similarity(NO, PAIRS), ConfigError, "vectors: what word_vectors gives"),
    (lambda: walk.word_similarities(TALKER, [3]), ConfigError, "a_set: what read_word_pairs gives, not int"),  # type: ignore[list-item]
    (lambda: walk.word_similarities(TALKER, [PAIRS], bad="zz"), ConfigError, "bad = 'zz'"),  # type: ignore[arg-type]
    (lambda: walk.purity_of_tokens(TALKER, classes=NO), ConfigError, "classes: names of classes to words"),
    (lambda: walk.read_tasks(NO), ConfigError, "path: a path, not NoneType"),
    (lambda: walk.read_word_sets(NO), ConfigError, "folder: a path, not NoneType"),
    (lambda: geometry.single_tokens(TALKER, -1), ConfigError, "words: a list of words, not int"),  # type: ignore[arg-type]
    (lambda: geometry.probe_nouns(TALKER, -1), ConfigError, "words: a list of words, not int"),  # type: ignore[arg-type]
    (lambda: geometry.norm_geometry(MODEL, NO), ConfigError, "name: the name of a norm"),
    (lambda: geometry.nearest_by(ROWS, ROWS, 1, NO), ConfigError, "metrics: a list of 'dot'"),
    (lambda: descent.descend(MODEL, IDS, tuned=3), ConfigError, "tuned: a TunedLens, not int"),  # type: ignore[arg-type]
    (lambda: descent.measure(MODEL, NO, np.ones(30)), ConfigError, "streams: what collect gives"),
    (lambda: descent.over_training(NO, IDS), ConfigError, "checkpoints: steps with models or paths"),
    (lambda: descent.over_training([3], IDS), ConfigError, "a checkpoint is (step, model or path), not 3"),  # type: ignore[list-item]
    (lambda: descent.over_training({"a": MODEL}, IDS), ConfigError, "a step = 'a'"),  # type: ignore[dict-item]
    (lambda: descent.over_training({0: MODEL}, IDS, about=3), ConfigError, "about: names to words"),  # type: ignore[arg-type]
    (lambda: descent.experiment(MODEL, training=3), ConfigError, "training: what over_training gives"),  # type: ignore[arg-type]
    (lambda: stream.reduce(MODEL, [[1]], NO), ConfigError, "watches: names to (reducer, site)"),
    (lambda: stream.reduce(MODEL, [[1]], MEAN, capture=3), ConfigError, "capture: sites, not int"),
    (lambda: stream.reduce(MODEL, [[1]], MEAN, progress=3), ConfigError, "progress: a function"),  # type: ignore[arg-type]
    (lambda: stream.Texts(3), ConfigError, "source: a file, a folder, or texts"),  # type: ignore[arg-type]
    (lambda: stream.Texts([], field=NO), ConfigError, "field: the name of a field"),
    (lambda: testing.assert_close_to_golden(NO, {"a": 1.0}), ConfigError, "path: a path, not NoneType"),
    (lambda: experiment.write(NO, {}), ConfigError, "path: a path, not NoneType"),
    (lambda: experiment.write("a.json", [1]), ConfigError, "value: a dataclass or a mapping, not list"),
    (lambda: commands.run(NO), ConfigError, "paper: one of PAPERS, not NoneType"),
    (lambda: report.main(NO), ConfigError, "out: a path, not NoneType"),
    (lambda: report.main(papers=[NO]), ConfigError, "paper: one of PAPERS, not NoneType"),
    (lambda: report.page(NO), ConfigError, "entries: a list of entries"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_came_is_named(number: int) -> None:
    call, error, message = CASES[number]
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("number", range(len(MODELS)))
def test_what_is_no_model_is_named(number: int) -> None:
    for given in (None, "shakespeare"):
        with pytest.raises(ConfigError, match="model: a Model, such as clew.load gives, not (NoneType|str)"):
            MODELS[number](given)


@pytest.mark.parametrize("number", range(len(TOKENS)))
def test_what_is_no_text_is_named(number: int) -> None:
    for given in ([], {}, None, 3.5, [[1.5, 2.0]], [[1, 30, 2]]):
        with pytest.raises((ShapeError, TokenError), match=r"integers|empty|windows|vocabulary has"):
            TOKENS[number](given)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_what_is_no_seed_is_named(number: int) -> None:
    for given in (-1, "zz", None, 1.5):
        with pytest.raises(ConfigError, match=re.escape(f"seed = {given!r}, must be a whole number, at least 0")):
            SEEDS[number](given)


# ---- Files ----------------------------------------------------------------------------------------------------------

GOOD = ["a: b", "0", "x", "y", "z", "w"]
BROKEN: list[tuple[list[str], str]] = [
    (["", *GOOD[1:]], "line 1: the context is empty or no text"),
    ([GOOD[0], "7", *GOOD[2:]], "line 2: the gold index is '7', not 0 to 3"),
    ([*GOOD[:4], "", "w"], "line 5: ending 2 is empty or no text"),
    ([*GOOD, "a: b", "1", "x"], "line 7: a task has six lines (context, gold index, four endings), this has 3"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_the_line_of_a_broken_task_is_named(tmp_path: Path, number: int) -> None:
    lines, message = BROKEN[number]
    path = tmp_path / "tasks.txt"
    path.write_text("\n".join([*lines, *GOOD] if number < 3 else lines) + "\n", encoding="utf-8")
    with pytest.raises(LoadError, match=re.escape(f"{path}: {message}")):
        walk.read_tasks(path)
    found = walk.read_tasks(path, bad="skip")
    assert len(found) == 1 and found.skipped == (message,)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for call in (walk.read_tasks, walk.read_word_pairs, descent.Training.load):
        with pytest.raises(LoadError, match=re.escape(str(tmp_path))):
            call(tmp_path)  # type: ignore[operator]
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"king queen 3\n\xff\xfe\n")
    for read in (walk.read_tasks, walk.read_word_pairs):
        with pytest.raises(LoadError, match=r"binary\.txt: line [12]: (not UTF-8 at byte 0|a task has six lines)"):
            read(binary)  # type: ignore[operator]
    with pytest.raises(LoadError, match=re.escape(str(tmp_path))):
        testing.assert_close_to_golden(tmp_path, {"a": 1.0}, update=False)
    binary.write_text("king queen\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"binary\.txt is a file, not a folder"):
        report.main(binary, papers=())


def test_one_prompt_without_its_batch_axis_is_told() -> None:
    with pytest.raises(ShapeError, match=re.escape("one prompt is a batch of one: X[None], y[None]")):
        clew.regression.ols(np.ones((3, 2)), np.ones(3))


def test_an_evaluation_with_every_task_skipped_has_no_interval() -> None:
    nothing = walk.Choices(walk.Settings(), np.full((2, 4), np.nan), np.zeros(2, np.int64), ("task 0: too long",))
    with pytest.raises(ConfigError, match="no task was used"):
        nothing.interval()
    assert repr(nothing) == "Choices of cross_encoding, 0 shots: all 2 tasks skipped"
