"""Measurements over a training, what is stored with the package, and paper 4's experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import descent
from scipy import stats

CONFIG = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=24, d_vocab=12)
STREAM = np.random.default_rng(0).choice(12, 2000, p=np.arange(1, 13) / 78)


@pytest.fixture(scope="module")
def checkpoints() -> dict[int, clew.Model]:
    """A small training's models at four steps."""
    import copy

    kept = {0: clew.Model.from_config(CONFIG, seed=0)}
    model = clew.Model.from_config(CONFIG, seed=0)

    def note(trainer: Any) -> None:
        if trainer.optimizer.steps in (10, 30, 60):
            kept[trainer.optimizer.steps] = copy.deepcopy(model)

    clew.train.Trainer(model, STREAM, 60, 8, lr=1e-2, context=24, progress=False, callback=note).run()
    return kept


def test_over_training(checkpoints: dict[int, clew.Model], tmp_path: Path) -> None:
    counts, rows = np.bincount(STREAM, minlength=12), STREAM[:240].reshape(10, 24)
    checkpoints[60].save(tmp_path / "step-60")
    pairs = [(60, tmp_path / "step-60"), *((step, checkpoints[step]) for step in (30, 0, 10))]
    found = descent.over_training(pairs, rows, frequency=counts, about={"seed": 0})
    assert found.steps.tolist() == [0, 10, 30, 60] and found.about == {"seed": 0}
    for i, step in enumerate(found.steps):
        model = checkpoints[int(step)]
        one = descent.descend(model, rows, frequency=counts)
        for name in ("loss", "cosine", "cosine_expected", "step_size", "norm", "norm_quantiles", "growth", "n_sinks"):
            np.testing.assert_allclose(getattr(found, name)[i], getattr(one, name), rtol=1e-6)
        np.testing.assert_allclose(found.correlations["entropy"][i], one.correlations["entropy"], atol=1e-6)
        lengths = np.linalg.norm(model.W_E.astype(np.float64), axis=1)
        assert found.row_norms["embed_mean"][i] == pytest.approx(lengths.mean())
        assert found.row_norms["embed_correlation"][i] == pytest.approx(stats.spearmanr(lengths, counts).statistic)
    assert found.loss[-1, -1] < found.loss[0, -1] and len(found.table().splitlines()) == 5
    found.save(tmp_path / "training.json")
    again = descent.Training.load(tmp_path / "training.json")
    np.testing.assert_allclose(again.cosine, found.cosine, rtol=1e-4)
    assert again.steps.dtype == np.int64 and again.about == {"seed": 0}


def test_tuned_lens_and_controls_at_every_checkpoint(checkpoints: dict[int, clew.Model], tmp_path: Path) -> None:
    rows, learn, other = (
        STREAM[:240].reshape(10, 24),
        STREAM[240:720].reshape(20, 24),
        STREAM[::-1][:480].reshape(20, 24),
    )
    some = {step: checkpoints[step] for step in (0, 60)}
    found = descent.over_training(some, rows, learn=learn, controls=True, other=other, seed=3)
    lens = clew.lens.TunedLens.fit(checkpoints[60], [learn[:16].tolist(), learn[16:].tolist()])
    one = descent.descend(checkpoints[60], rows, tuned=lens)
    assert found.loss_tuned is not None and found.cosine_tuned is not None and found.falls_tuned is not None
    np.testing.assert_allclose(found.loss_tuned[1], one.loss_tuned, rtol=1e-6)
    np.testing.assert_allclose(found.cosine_tuned[1], one.cosine_tuned, rtol=1e-6)
    beside = descent.controls(checkpoints[60], rows, seed=3)
    assert set(found.controls) == {*beside, "lens of another text"}
    for name, control in beside.items():
        np.testing.assert_allclose(found.controls[name]["cosine"][1], control.cosine, rtol=1e-6)
        assert found.controls[name]["falls_all"].shape == (2,)
    assert found.controls["lens of another text"]["loss_tuned"].shape == (2, 2)
    assert "control: straight line: falls" in found.table() and "2 layers, 5 controls" in repr(found)
    found.save(tmp_path / "training.json")
    again = descent.Training.load(tmp_path / "training.json")
    np.testing.assert_allclose(
        again.controls["straight line"]["loss"], found.controls["straight line"]["loss"], rtol=1e-4
    )


def test_lengths_of_token_vectors(checkpoints: dict[int, clew.Model]) -> None:
    model, counts = checkpoints[60], np.array([0, 0, 5, 1, 9, 2, 7, 3, 8, 4, 6, 10])
    found = descent.row_norms(model, counts)
    e, u = np.linalg.norm(model.W_E, axis=1), np.linalg.norm(model.W_U, axis=0)
    order = np.argsort(counts)[2:]  # ten tokens that occur: one in each band
    np.testing.assert_allclose(found.embed_bands, e[order], rtol=1e-6)
    np.testing.assert_allclose(found.unembed_bands, u[order], rtol=1e-6)
    assert found.embed_unseen == pytest.approx(e[:2].mean()) and found.unembed_mean == pytest.approx(u.mean())
    assert found.unembed_correlation == pytest.approx(stats.spearmanr(u[2:], counts[2:]).statistic)
    with pytest.raises(clew.ShapeError, match=r"frequency \[3\] for W_E of 12 and W_U of 12 tokens"):
        descent.row_norms(model, [1, 2, 3])
    with pytest.raises(clew.ConfigError, match="no token occurs"):
        descent.row_norms(model, np.zeros(12))


def test_what_over_training_refuses(checkpoints: dict[int, clew.Model], tmp_path: Path) -> None:
    rows = STREAM[:48].reshape(2, 24)
    with pytest.raises(clew.ConfigError, match=r"checkpoints at steps \[\]: one or more, each once"):
        descent.over_training({}, rows)
    with pytest.raises(clew.ConfigError, match=r"checkpoints at steps \[1, 1\]"):
        descent.over_training([(1, checkpoints[0]), (1, checkpoints[10])], rows)
    deeper = clew.Model.from_config(CONFIG.replace(n_layers=3))
    with pytest.raises(clew.ShapeError, match=r"step 5 has \[layers, tokens\] \[3, 12\], the others \[2, 12\]"):
        descent.over_training({0: checkpoints[0], 5: deeper}, rows)
    with pytest.raises(clew.LoadError):
        descent.over_training({0: tmp_path / "nothing"}, rows)
    for text in ("[1]", '{"steps": [0]}', "no JSON"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(clew.LoadError, match="bad.json: no measurements of a training"):
            descent.Training.load(tmp_path / "bad.json")


def test_what_is_stored_with_the_package() -> None:
    found = descent.stored_training()
    assert len(found.steps) == 12 and found.steps[0] == 0 and (np.diff(found.steps) > 0).all()
    assert {"model", "seed", "text", "version"} <= set(found.about)
    again, recorded = found.about["held_out_loss"], found.about["held_out_loss_recorded"]
    assert again.keys() == recorded.keys() and {"0", "150", "300", "1800", "2400"} <= again.keys()
    assert max(abs(again[step] - recorded[step]) for step in again) < 2e-3  # it is the bundled model's training
    assert found.loss_tuned is not None and np.isfinite(found.loss_tuned).all()
    assert set(found.controls) == {
        "random weights", "shuffled layers", "permuted steps", "straight line", "lens of another text",
    }  # fmt: skip
    assert abs(found.cosine[0]).max() < 0.01 < found.cosine[-1].min()  # an untrained model steps nowhere
    assert found.loss[0].max() < np.log(1024) + 0.2
    for name in ("loss", "cosine", "cosine_expected", "cosine_whitened", "norm", "radial", "growth", "sink_norm"):
        assert np.isfinite(getattr(found, name)).all() and len(getattr(found, name)) == len(found.steps)
    assert all(np.isfinite(v).all() for k, v in found.row_norms.items() if "unseen" not in k)


def test_experiment(tmp_path: Path) -> None:
    model = clew.load("stories260K")
    text = np.asarray(model.generate([1], max_new_tokens=900, temperature=1.0, seed=5).tokens[0])
    text = text if len(text) > 600 else np.random.default_rng(0).integers(3, 512, 700)
    result = descent.experiment(model, text, seed=4)
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert data["paper"] == 4 and data["seed"] == 4 and len(data["claims"]) == 7
    assert set(data["numbers"]["controls"]) == {
        "random weights", "shuffled layers", "permuted steps", "straight line", "lens of another text",
    }  # fmt: skip
    assert data["numbers"]["descent"]["loss"] == result.descent.loss.tolist()
    verdicts = {claim.text: claim.verdict for claim in result.claims}
    unknown = "the norms of token representations have a special characteristic"
    assert verdicts[unknown] == "not testable on this model"  # the paper's claim is not known to us
    assert verdicts["a gradient step on a normed stream lengthens it"] == "holds"
    assert len(result.details()) > 2000 and "seed 4" in result.table()
    with pytest.raises(clew.ConfigError, match="a text of one window of 64 tokens"):
        descent.experiment(model, text[:64])
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: figures are not drawn")
    names = set(result.figures())
    assert {claim.figure for claim in result.claims} - {None} <= names
    assert len(result.save(tmp_path / "out")) == 2 + len(names)


def test_claims_of_an_untrained_model() -> None:
    """Where there is nothing to find, nothing is found."""
    config = clew.ModelConfig(n_layers=3, d_model=32, n_heads=4, n_ctx=32, d_vocab=60, initializer_range=0.2)
    model = clew.Model.from_config(config, seed=0)
    text = np.random.default_rng(0).integers(0, 60, 2000)
    verdicts = [claim.verdict for claim in descent.experiment(model, text).claims]
    assert verdicts[0] == verdicts[1] == "does not hold"
