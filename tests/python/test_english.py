"""The bundled language model: its size and records, what it has learned, and that its induction heads copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import edit
from clew.demo import copying_weight, words_twice
from numpy.typing import NDArray

Array = NDArray[Any]
FOLDER = Path(clew.__file__).parent / "data" / "english"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HALF = 60


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return clew.load("english")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def twice() -> Array:
    """Random tokens [16, 2 · HALF], the second half the same as the first."""
    once = np.random.default_rng(1).integers(256, 4096, (16, HALF))
    return np.concatenate([once, once], axis=1)


def second(model: clew.Model, tokens: Array, **more: Any) -> float:
    """Loss of the second half."""
    return float(model.loss(tokens, **more)[:, HALF:].mean())


def test_size(model: clew.Model) -> None:
    assert 2e6 <= model.n_params <= 3e6 and model.config.d_vocab == 4096
    assert (FOLDER / "model.safetensors").stat().st_size <= 6e6
    from safetensors.numpy import load_file

    assert {w.dtype for w in load_file(FOLDER / "model.safetensors").values()} == {np.dtype("f2")}


def test_records(record: dict[str, Any]) -> None:
    checkpoints = record["checkpoints"]
    assert len(checkpoints) >= 8 and [int(n) for n in checkpoints] == sorted(int(n) for n in checkpoints)
    assert int(next(iter(checkpoints))) == 0 and int([*checkpoints][-1]) == record["steps"]
    for entry in checkpoints.values():
        assert set(entry["held_out_loss"]) == {"shakespeare", "wikitext", "hellaswag"}
        assert np.shape(entry["induction_by_head"]) == (4, 6) and len(entry["weight_norms"]) >= 25
    curve = record["loss_curve"]
    assert len(curve) >= 100 and curve[0][1] > 6 and curve[-1][1] < 4 and record["seed"] == 0
    assert record["held_out_loss"] < 4.2


def test_the_last_record_is_this_model(model: clew.Model, record: dict[str, Any], twice: Array) -> None:
    """Weights lie in float16; else these are the same computations as at the end of training."""
    last = record["checkpoints"][str(record["steps"])]
    losses = model.loss(twice)
    again = [losses[:, : HALF - 1].mean(), losses[:, HALF:].mean()]
    assert np.abs(np.array(again) - last["repeated_tokens_loss"]).max() < 0.02
    pattern = model.run(twice, capture="pattern", logits=None).stack("pattern")
    scores = np.mean([copying_weight(pattern[:, i]) for i in range(len(twice))], axis=0)
    assert np.abs(scores - np.array(last["induction_by_head"])).max() < 0.01
    for name, norm in last["weight_norms"].items():
        assert np.linalg.norm(model.weights[name].astype(np.float64)) == pytest.approx(norm, rel=1e-3, abs=6e-4), name


def test_held_out_loss(model: clew.Model, record: dict[str, Any]) -> None:
    """Recomputed from the last twentieth of a text."""
    file = SHARED / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        pytest.skip("tinyshakespeare/input.txt, which the held-out loss is of, is not here")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the model reads no text")
    text = file.read_text(encoding="utf-8")
    ids = model.tokenizer.encode(text[len(text) * 19 // 20 :])
    n = len(ids) // 257 * 257
    loss = model.loss(np.array(ids[:n]).reshape(-1, 257)[:, :256], reduce="mean")
    want = record["checkpoints"][str(record["steps"])]["held_out_loss"]["shakespeare"]
    assert abs(loss - want) < 0.02 and want < 4.3


def test_induction_heads(model: clew.Model, twice: Array) -> None:
    """Heads that attend from each token to what followed it before; without them the model does not copy."""
    pattern = model.run(twice, capture="pattern", logits=None).stack("pattern")
    score = np.mean([copying_weight(pattern[:, i]) for i in range(len(twice))], axis=0)
    layer, head = np.unravel_index(int(score.argmax()), score.shape)
    assert score[layer, head] > 0.7 and layer > 0
    losses = model.loss(twice)
    assert losses[:, HALF:].mean() < 1 < 7 < losses[:, : HALF - 1].mean()
    copying = [edit.zero(("z", n), heads=np.flatnonzero(row > 0.4)) for n, row in enumerate(score) if (row > 0.4).any()]
    others = [edit.zero(("z", 2), heads=[0, 1, 2]), edit.zero(("z", 3), heads=[0, 1, 2])]
    assert second(model, twice, edits=copying) > 5
    assert second(model, twice, edits=others) < second(model, twice) + 1
    # the head before them that looks one token back: the heads find what they look for by it
    back = np.diagonal(pattern[:layer].mean(1), -1, axis1=2, axis2=3).mean(-1)
    at, which = np.unravel_index(int(back.argmax()), back.shape)
    assert back[at, which] > 0.8
    without = model.run(twice, capture="pattern", logits=None, edits=[edit.zero(("z", at), heads=[which])])
    left = np.mean([copying_weight(without.stack("pattern")[:, i]) for i in range(len(twice))], axis=0)
    assert left.max() < score.max() / 4


def test_induction_heads_form_at_once(record: dict[str, Any]) -> None:
    """Between the first checkpoint and the last the score rises from chance to most of the attention."""
    best = [np.max(entry["induction_by_head"]) for entry in record["checkpoints"].values()]
    assert best[0] < 0.05 and best[-1] > 0.7
    second_loss = [entry["repeated_tokens_loss"][1] for entry in record["checkpoints"].values()]
    assert second_loss[0] > 8 and second_loss[-1] < 1


def test_patching_finds_where_the_word_is(model: clew.Model) -> None:
    """Before the copying heads' layer the word to copy stands where it was read, behind it where it is needed."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the model has no words")
    ids = words_twice(model)
    n = len(ids) // 2
    asked, instead = ids[:-1], ids[:-1]
    other = next(i for i in words_twice(model, n + 1, seed=1) if i not in ids)
    instead = [*asked[: n - 1], other, *asked[n:]]
    metric = clew.metrics.logit_diff(ids[-1], other)
    recovered = model.sweep(asked, instead, site="resid_pre", over=("layer", "pos"), metric=metric).recovered
    assert recovered[0, n - 1] > 0.9 and abs(recovered[0, -1]) < 0.1
    assert recovered[-1, -1] > 0.8 and abs(recovered[-1, n - 1]) < 0.2
    assert words_twice(model) == ids and len(set(ids)) == n
