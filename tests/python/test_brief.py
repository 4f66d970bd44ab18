"""How results show themselves, and how an experiment tells where it is."""

from __future__ import annotations

import clew
import numpy as np
import pytest
from clew import corpus, descent, geometry, metrics, walk
from clew.experiment import Experiment, listening, measured, tell

MODEL = clew.load("stories260K")
IDS = [[1, 403, 407, 261, 378, 392, 400]]


def test_results_show_no_arrays() -> None:
    results = (
        walk.decoding_walk(MODEL, IDS), walk.split_encoding(MODEL, IDS), walk.stored_trainings(),
        walk.composition(MODEL, IDS, 3), corpus.windows(MODEL, IDS[0], 3), geometry.nearest(MODEL, MODEL.W_E[:2], 3),
        geometry.svd_heads(MODEL, 0, "VO", 2), geometry.probe_nouns(MODEL, ids=[403]), geometry.distances(MODEL, IDS),
        geometry.token_scores(MODEL), descent.descend(MODEL, IDS), descent.descend(MODEL, IDS).per_token,
        descent.stored_training(), descent.collect(MODEL, IDS),
    )  # fmt: skip
    for found in results:
        lines = repr(found).splitlines()
        assert len(lines) <= 12 and max(map(len, lines)) <= 140, repr(found)
        assert "array(" not in repr(found) and repr(found).startswith(type(found).__name__)


def test_shapes_names_and_small_values() -> None:
    shown = repr(geometry.nearest(MODEL, MODEL.W_E[:2], 3))
    assert shown == "Nearest(ids [2, 3], scores [2, 3], metric = 'dot'); table() prints it"
    assert repr(corpus.Windows(np.zeros((2, 3), np.int64), 1, "x" * 80)) == (
        f"Windows(tokens [2, 3], left_out = 1, source = '{'x' * 58}…)"
    )
    assert "words = ('#403',)" in repr(geometry.probe_nouns(MODEL, ids=[403]))
    result = Experiment(3, "Lengths", "tiny", 0, True, ())
    shown = "Experiment(paper = 3, title = 'Lengths', model = 'tiny', seed = 0, quick = True, claims = ())"
    assert repr(result) == f"{shown}; table() prints it"


def test_parts_are_told_to_who_listens() -> None:
    heard: list[str] = []
    with listening(heard.append):
        assert measured({"first_part": lambda: 1, "second": lambda: 2}) == {"first_part": 1, "second": 2}
        with pytest.raises(ZeroDivisionError):
            measured({"third": lambda: 1 // 0, "never": lambda: 0})
    tell("nobody listens")
    assert heard == ["first part", "second", "third"]
    with listening(heard.append):
        config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_vocab=40)
        geometry.experiment(clew.Model.from_config(config), np.arange(200) % 40)
    assert heard[3:6] == ["identities", "embedding norms", "nouns"] and heard[-1] == "coherence"


def test_one_id_as_text_and_tokens_in_a_metrics_name() -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the bundled model has no text")
    model = clew.load("shakespeare")
    lord, love = (model.to_single_token(word) for word in (" lord", " love"))
    assert model.to_str_tokens(lord) == [" lord"] == model.to_str_tokens(np.int64(lord))
    with pytest.raises(clew.ShapeError, match="to_str_tokens: text or integer ids"):
        model.to_str_tokens(1.5)
    metric = metrics.logit_diff(lord, love)
    assert metric.name == f"logit_diff({lord}, {love})" and metric.said(model) == "logit_diff(' lord', ' love')"
    assert metric.said(MODEL) == metric.name and metrics.logit_diff([lord], [love]).said(model).endswith("])")
    for measure in (model.sweep, model.path_patch):
        assert measure("My lord", "My love", metric=metric).metric == "logit_diff(' lord', ' love')"
