"""Snapshots against the parts that they are made of, over checkpoints and between models; files; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import clew
import numpy as np
import pytest
from clew import ConfigError, LoadError, ShapeError, mazes
from clew.mazes.consistency import _kappa
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

CONFIG = mazes.hallway_config(
    n_layers=2, d_model=32, n_heads=2, d_mlp=64, d_vocab=11 + 9, n_ctx=64, initializer_range=0.1,
    extra={"mazes": {"grid": 3, "order": "uniform"}},
)  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> tuple[mazes.Mazes, mazes.Mazes]:
    train, test = (mazes.generate(n, 3, seed=n, split=part) for n, part in ((300, "train"), (60, "test")))
    return train, test


@pytest.fixture(scope="module")
def trained() -> dict[int, clew.Model]:
    """A model that has learned a little, and what it was before; float64, so that results are the same everywhere."""
    tok = mazes.Tokenizer(3)
    kept = {0: clew.Model.from_config(CONFIG, seed=0, dtype="float64")}
    model = clew.Model.from_config(CONFIG, seed=0, dtype="float64")
    source = mazes.Curriculum([mazes.Stage(1000, {3: 1.0}, {"rdfs": 1.0})], tok)
    clew.train.fit(model, source, steps=60, batch=16, lr=3e-3, progress=False)
    return {**kept, 60: model}


def test_a_snapshot_is_its_parts(trained: dict[int, clew.Model], parts: tuple[mazes.Mazes, mazes.Mazes]) -> None:
    model, (train, test) = trained[60], parts
    found = mazes.snapshot(model, train, test, walks=40)
    judged = mazes.judge(mazes.solve(model, test[:40]), test[:40])
    assert (found.n, found.exact, found.valid) == (40, judged.exact.mean(), judged.valid.mean())
    assert (found.target, found.streak) == (judged.target.mean(), judged.streak.mean())
    tok, total, count = mazes.tokenizer_of(model), 0.0, 0
    for maze in test[:40]:
        losses = model.loss(tok.encode(maze))[0]
        total, count = total + losses[-len(maze.solution) - 2 :].sum(), count + len(maze.solution) + 2
    assert found.loss == pytest.approx(total / count)
    walls = mazes.wall_probes(model, train, test, methods=["ridge"])
    assert np.array_equal(found.accuracy, walls["ridge"].accuracy) and found.majority == walls.majority
    assert found.best == walls["ridge"].best
    heads = mazes.adjacency_heads(model, test[:40])
    assert np.array_equal(found.adjacency, heads.score)
    assert np.array_equal(found.adjacency_mass, heads.mass_by_place[0])
    assert found.embedding_r == mazes.embedding_distances(model, grid=3).r
    named = found.adjacency_heads(0.0)
    assert sorted(named) == sorted(map(tuple, np.argwhere(found.adjacency_low > 0).tolist()))
    scores = [found.adjacency[head] for head in named]
    assert scores == sorted(scores, reverse=True)
    assert all(found.adjacency_mass[head] >= 0.5 for head in found.adjacency_heads(0.5))


def test_over_a_training(trained: dict[int, clew.Model], parts: tuple[mazes.Mazes, mazes.Mazes],
                         tmp_path: Path) -> None:  # fmt: skip
    found = mazes.over_training(dict(reversed(trained.items())), *parts, walks=30, about={"seed": 0, "of": "a test"})
    assert found.steps.tolist() == [0, 60]
    assert found["loss"][1] < found["loss"][0] and found["accuracy"].shape == (2, 2)
    assert found["loss"].tolist() == [mazes.snapshot(m, *parts, walks=30).loss for m in trained.values()]
    for step, model in trained.items():
        model.save(tmp_path / f"step-{step}")
    (tmp_path / "step-000000060.safetensors").touch()
    (tmp_path / "step-9").mkdir()
    assert list(mazes.kept_checkpoints(tmp_path)) == [0, 60]
    again = mazes.over_training(tmp_path, *parts, walks=30, about=found.about)
    file = tmp_path / "dynamics.json"
    again.save(file)
    read = mazes.Dynamics.load(file)
    assert read.about == found.about and read.steps.tolist() == [0, 60]
    for name in ("loss", "accuracy", "adjacency", "streak", "embedding_r"):
        assert np.allclose(read[name], found[name], rtol=1e-4), name
    assert read.table() == again.table() and read.table().count("\n") == 2
    with pytest.raises(ConfigError, match="dynamics of 'accurate'"):
        read["accurate"]


def test_what_rises_together() -> None:
    rng = np.random.default_rng(0)
    base = dict(n=1, target=0.0, streak=0.0, control=np.zeros(2), majority=0.5, adjacency=np.zeros((2, 2)),
                adjacency_low=np.zeros((2, 2)), adjacency_mass=np.zeros((2, 2)), embedding_r=0.0, embedding_p=1.0,
                low=np.zeros(2), high=np.zeros(2))  # fmt: skip
    numbers = rng.random((7, 3))
    snapshots = tuple(
        mazes.Snapshot(exact=a, valid=b, loss=c, accuracy=np.array([0.0, a * a - b]), **base) for a, b, c in numbers
    )
    found = mazes.Dynamics(np.arange(7), snapshots, {})
    best = np.maximum(0, numbers[:, 0] ** 2 - numbers[:, 1])
    for i, name in enumerate(("exact", "valid", "loss")):
        assert found.together(name) == pytest.approx(spearmanr(best, numbers[:, i]).statistic)
        changes = spearmanr(np.diff(best), np.diff(numbers[:, i])).statistic
        assert found.changes_together(name) == pytest.approx(changes)


def test_between_models(trained: dict[int, clew.Model], parts: tuple[mazes.Mazes, mazes.Mazes], tmp_path: Path) -> None:
    train, test = parts
    found = mazes.compare({"a": [trained[60], trained[60]], "b": [trained[0]]}, train, test, walks=30, about={"x": 1})
    twin, *others = found.pairs
    assert (twin.a, twin.b) == (("a", 0), ("a", 1)) and len(others) == 2
    assert twin.same_path == 1 and twin.embedding == pytest.approx(1) and twin.profile == pytest.approx(1)
    assert found.between() == [twin] and found.between(same_shape=False) == others
    solved, other = (mazes.judge(mazes.solve(trained[s], test[:30]), test[:30]).exact for s in (60, 0))
    assert twin.both_exact == solved.mean() and others[0].both_exact == (solved & other).mean()
    distances = [mazes.embedding_distances(trained[s], grid=3).distance for s in (60, 0)]
    assert others[0].embedding == pytest.approx(np.corrcoef(*distances)[0, 1])
    tok = mazes.Tokenizer(3)
    bag = mazes.wall_probes("bag of tokens", train, test, methods=["ridge"], tokenizer=tok)["ridge"].accuracy
    assert found.bag == bag[0]
    first = found.models["a"][0]
    assert found.spread(lambda one: one.loss)["a"] == (pytest.approx(first.loss),) * 3
    found.save(tmp_path / "consistency.json")
    read = mazes.Consistency.load(tmp_path / "consistency.json")
    assert read.table() == found.table() and read.about == {"x": 1}
    assert read.pairs[0].a == ("a", 0) and list(read.models) == ["a", "b"]


def test_mazes_of_four_cells() -> None:
    """Their paths are too short for "nonend": heads look from where it was asked for, else from anywhere."""
    ms = mazes.generate(200, 2)
    some = np.isin(ms.hashes, np.unique(ms.hashes)[:2])
    train, test = ms[np.flatnonzero(some)], ms[np.flatnonzero(~some)]
    model = clew.Model.from_config(CONFIG, seed=0)
    found = mazes.snapshot(model, train, test, walks=20)
    assert np.array_equal(found.adjacency, mazes.adjacency_heads(model, test[:20], position="path").score)
    found = mazes.snapshot(model, train, test, walks=20, position="origin")
    assert np.array_equal(found.adjacency, mazes.adjacency_heads(model, test[:20], position="origin").score)
    for heads in ([(0, 0)], 1):
        ablation = mazes.ablate_heads(model, test[:20], train[:20], heads, position="path", draws=1, least_mass=0)
        score = mazes.adjacency_heads(model, train[:20], position="path").score
        assert np.array_equal(ablation.scores, score)
        patching = mazes.patch_heads(model, test[:20], train[:20], heads, position="path", draws=1, least_mass=0)
        assert patching.heads == ablation.heads


def test_a_trainers_folder_over_training(parts: tuple[mazes.Mazes, mazes.Mazes], tmp_path: Path) -> None:
    train, test = parts
    source = mazes.Curriculum([mazes.Stage(1000, {3: 1.0}, {"rdfs": 1.0})], mazes.Tokenizer(3))
    trainer = clew.train.Trainer(
        clew.Model.from_config(CONFIG, seed=0), source, 6, 4, directory=tmp_path, checkpoint_every=1, keep=3,
        snapshots=(0, 5), progress=False,
    )  # fmt: skip
    trainer.run()
    kept = mazes.kept_checkpoints(tmp_path)
    assert list(kept) == [0, 4, 5, 6] and [kept[step].is_dir() for step in kept] == [True, False, True, False]
    found = mazes.over_training(tmp_path, train, test, walks=20)
    assert found.steps.tolist() == [0, 4, 5, 6]
    for i, model in ((0, clew.Model.from_config(CONFIG, seed=0)), (3, trainer.model)):
        assert found.snapshots[i].loss == mazes.snapshot(model, train, test, walks=20).loss
    files = mazes.over_training({6: kept[6], 7: tmp_path / "step-5"}, train, test, walks=20)
    assert files["loss"].tolist() == [found.snapshots[3].loss, found.snapshots[2].loss]


def test_kappa_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 40)) < 0.6
    assert _kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    assert np.isnan(_kappa(np.ones(3, bool), np.ones(3, bool)))


def test_what_is_refused(trained: dict[int, clew.Model], parts: tuple[mazes.Mazes, mazes.Mazes],
                         tmp_path: Path) -> None:  # fmt: skip
    with pytest.raises(ConfigError, match="no checkpoints"):
        mazes.over_training({}, *parts)
    with pytest.raises(LoadError, match="no directory step-N"):
        mazes.over_training(tmp_path, *parts)
    with pytest.raises(ConfigError, match="walls are in both parts"):
        mazes.over_training(trained, parts[0], parts[0])
    with pytest.raises(ShapeError, match="one size at a time"):
        mazes.snapshot(trained[0], parts[0], mazes.generate(5, 2), walks=3)
    with pytest.raises(ConfigError, match="a shape without any"):
        mazes.compare({"a": []}, *parts)
    file = tmp_path / "other.json"
    for load in (mazes.Dynamics.load, mazes.Consistency.load):
        with pytest.raises(LoadError, match="no measurements of mazes"):
            load(tmp_path / "nothing.json")
        file.write_text('{"steps": [0]}', encoding="utf-8")
        with pytest.raises(LoadError, match="its keys are others"):
            load(file)
    file.write_text(json.dumps({"steps": [0], "snapshots": [{"n": 1}], "about": {}}), encoding="utf-8")
    with pytest.raises(LoadError, match=r"other\.json: no snapshot"):
        mazes.Dynamics.load(file)


def test_stored_measurements() -> None:
    found, alike = mazes.stored_dynamics(), mazes.stored_consistency()
    if found is not None:
        assert found.steps[0] == 0 and len(found.steps) >= 8 and found["accuracy"].shape[1] == 6
    if alike is not None:
        assert len(alike.models) == 2 and alike.about["not trained"] or all(len(v) == 3 for v in alike.models.values())
