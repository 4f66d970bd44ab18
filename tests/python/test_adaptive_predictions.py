"""Predictions (a) to (g): short trainings of fixed seeds against stated bounds, the stored long run, and its form.

The bounds are those of the checks in clew.adaptive.predictions; a test here says which of them hold.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from clew.adaptive import (
    EXPECTED,
    Constrained,
    Experiment,
    Laboratory,
    Prediction,
    bits_by_layer,
    branches_of,
    experiment,
    gaussian,
    level_bits,
    patch_branches,
    reproduce,
    stored,
    tree,
    workspace_vectors,
)
from clew.adaptive.predictions import PREDICTIONS
from clew.errors import ConfigError, ShapeError

LAB = Laboratory(quick=True, seed=0)


@pytest.mark.parametrize("key", [k for k in PREDICTIONS if k != "b"])
def test_prediction_holds_in_a_short_training(key: str) -> None:
    found = PREDICTIONS[key](LAB)
    assert found.verdict == "holds"
    assert Prediction.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_gain_of_the_tree_in_a_short_training() -> None:
    """(b) at K = 3 and L = 1, 2, 3: the error falls with depth; the whole of (b) is in the stored run."""
    adaptive = [LAB.least(tree(), n) for n in (1, 2, 3)]
    fixed = [LAB.fixed(tree(), n) for n in (1, 2, 3)]
    assert adaptive[0] > adaptive[1] + 0.2 > adaptive[2] + 0.3
    assert abs(adaptive[0] - fixed[0]) < 0.02  # one layer has nothing to adapt to
    assert fixed[1] - adaptive[1] > 0.05 and fixed[2] - adaptive[2] > 0.08


def test_stored_run_holds_and_says_how_it_was_made() -> None:
    whole = stored()
    assert set(whole.predictions) == {"table", *PREDICTIONS, "ordinary"}
    assert whole.facts["call"].startswith("clew.adaptive.") and {"seed", "clew", "numpy"} <= set(whole.facts)
    for key in ("table", *PREDICTIONS):
        assert whole.predictions[key].verdict == "holds", key
    text = whole.table()
    assert all(f"({key})" in text for key in whole.predictions)
    assert Experiment.from_json(json.loads(json.dumps(whole.to_json()))).table() == text


def test_stored_table_reaches_the_expected_bounds() -> None:
    rows = stored().predictions["table"].numbers
    for (s, layers), (full, fixed, adaptive, normal) in EXPECTED.items():
        row = rows[f"s={s:g} L={layers}"]
        assert abs(row["full data"] - full) < 0.003
        assert row["non-adaptive"] < fixed + 0.015 and row["adaptive"] < adaptive + 0.015
        assert abs(row["gaussian"] - normal) < 0.015
        assert row["full data"] <= row["adaptive"] + 0.003 and row["adaptive"] <= row["non-adaptive"] + 0.003


def test_first_message_bits() -> None:
    """The best first scalar: .88/.60/.08 bits at a = (1, 1, 1), s = .3; .82/0/0 at a = (1, .7, .5), s = .6."""
    first = stored().predictions["c"].numbers["first message"]
    np.testing.assert_allclose(first["a=(1.0, 1.0, 1.0) s=0.3"], [0.88, 0.60, 0.08], atol=0.015)
    np.testing.assert_allclose(first["a=(1.0, 0.7, 0.5) s=0.6"], [0.82, 0, 0], atol=0.015)


def test_bits_by_hand() -> None:
    prior = tree((1.0, 0.7))
    p = np.array([[0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    want = [1 + (np.log2(0.8) + np.log2(0.5)) / 2, 1 + (np.log2(0.5 / 0.8) + np.log2(0.5)) / 2]
    np.testing.assert_allclose(level_bits(prior, p, [0, 2]), want, rtol=1e-12)
    np.testing.assert_array_equal(branches_of(prior, prior.centres), prior.branches)


def test_function_vectors_are_functions_of_the_workspace() -> None:
    network = Constrained(tree(), 0.3, 3, readout=16, seed=4)
    estimate = np.random.default_rng(0).standard_normal((40, 7))
    workspace, vectors = workspace_vectors(network, estimate, 1)
    again = network.run(estimate[::-1], start=1, messages=workspace)  # other data, the same workspace
    np.testing.assert_array_equal(again.directions[:, 1:2], vectors)


def test_figures_of_all_predictions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = stored().figures()
    assert set(figures) == {"table", *PREDICTIONS, "ordinary"}
    for key, figure in figures.items():
        figure.savefig(tmp_path / f"{key}.png", dpi=50)
        assert figure.axes[0].get_title() and figure.axes[0].get_xlabel() + figure.axes[0].get_ylabel()


def test_reproduce_writes_what_stored_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Experiment({"a": stored().predictions["a"]}, dict(stored().facts))
    module = importlib.import_module("clew.adaptive.experiment")
    monkeypatch.setattr(module, "experiment", lambda quick, seed: small)
    rows = stored().predictions["ordinary"].numbers
    monkeypatch.setattr(module, "grid", lambda steps, seeds: rows)
    made = reproduce(tmp_path / "run.json", steps=600)
    assert Experiment.from_json(json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))) == made


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="no prediction named 'z': table, a, b"):
        experiment(only=["z"])
    with pytest.raises(ConfigError, match="seed = -1"):
        experiment(seed=-1)
    with pytest.raises(ConfigError, match="'gaussian' is no tree"):
        patch_branches(Constrained(gaussian(), 0.3, 1))
    with pytest.raises(ConfigError, match="'gaussian' is no tree"):
        bits_by_layer(Constrained(gaussian(), 0.3, 1))
    with pytest.raises(ShapeError, match=r"probabilities \[2, 3\]"):
        level_bits(tree(), np.zeros((2, 3)), [0, 1])
    with pytest.raises(ConfigError, match="a next layer exists for 0 to 0"):
        workspace_vectors(Constrained(tree(), 0.3, 1), np.zeros((1, 7)), 1)
    with pytest.raises(ShapeError, match="D is 7"):
        branches_of(tree(), np.zeros((2, 3)))
