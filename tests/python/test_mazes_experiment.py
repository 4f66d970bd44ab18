"""The experiment of paper 5: on a small model, as a command, its claims on what would confirm or refute them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, SiteError, TokenError, cli, mazes
from clew.mazes import claims
from clew.mazes import demo as maze_demo
from clew.mazes.prompts import FIXED

CONFIG = mazes.hallway_config(
    n_layers=2, d_model=32, n_heads=2, d_mlp=64, d_vocab=11 + 9, n_ctx=64, initializer_range=0.1,
    model_name="small", extra={"mazes": {"grid": 3, "order": "uniform"}},
)  # fmt: skip
LINE = "[95 %]"


@pytest.fixture(scope="module")
def model() -> clew.Model:
    """One that has learned to say paths, if not the right ones."""
    of = clew.Model.from_config(CONFIG, seed=0)
    source = mazes.Curriculum([mazes.Stage(1000, {3: 1.0}, {"rdfs": 1.0})], mazes.Tokenizer(3))
    clew.train.fit(of, source, steps=150, batch=16, lr=3e-3, progress=False)
    return of


@pytest.fixture(scope="module")
def result(model: clew.Model) -> mazes.MazeExperiment:
    return mazes.experiment(model, seed=4)


def test_what_it_holds(model: clew.Model, result: mazes.MazeExperiment) -> None:
    assert (result.paper, result.model, result.seed, result.quick, result.grid) == (5, "small", 4, True, 3)
    test = mazes.generate(500, 3, "rdfs", 6, split="test")
    train = mazes.generate(2000, 3, "rdfs", 5, split="train")
    assert np.array_equal(
        result.walls["ridge"].accuracy,
        mazes.wall_probes(model, train, test, methods=["ridge"], seed=4)["ridge"].accuracy,
    )
    before = mazes.wall_probes(model, train, test, position="origin_start", methods=["ridge"])["ridge"]
    assert np.allclose(result.walls_along["origin_start"]["ridge"].accuracy, before.accuracy, atol=1e-4)
    assert result.walls is result.walls_along["path_start"]
    assert result.walls_within is not None
    gathered = result.walls_within["origin_start"]
    within = mazes.wall_probes(model, train, test, position="origin_start", site="resid_mid", methods=["ridge"])
    assert np.allclose(gathered["ridge"].accuracy, within["ridge"].accuracy, atol=1e-4)
    assert np.abs(gathered["ridge"].accuracy - before.accuracy).max() > 1e-3
    for flips, walls in ((result.flips, result.walls), (result.flips_before, gathered)):
        assert (flips.position, flips.site) == (walls.position, walls.site) and flips.layers == (walls["ridge"].best,)
    shown, tok = result.shown, mazes.tokenizer_of(model)
    read = model.run(tok.encode(shown.maze, path=False)[:-5], capture="resid_mid")["resid_mid", shown.layer][:, -1]
    assert (shown.position, shown.site, shown.layer) == ("origin_start", "resid_mid", gathered["ridge"].best)
    assert np.allclose(shown.openness, gathered.openness(read, shown.layer)[0], atol=1e-4)
    evaluated = mazes.evaluate(model, mazes.generate(150, 3, "prdfs", 4, split="test"), seed=4)
    assert result.rows["prdfs"] == dict(evaluated)
    assert result.embedding["l1"].r == mazes.embedding_distances(model, grid=3).r
    assert result.adjacency_head == mazes.adjacency_heads(model, train[:200], seed=4, draws=2).ranked(0.05)[0]
    assert np.array_equal(result.adjacency.score, mazes.adjacency_heads(model, test[:200], seed=4).score)
    assert result.dynamics is None and result.sizes["probes, train"] == 2000
    head, maze, step = result.adjacency_head, result.shown.maze, result.shown.step
    assert np.array_equal(result.shown.attention, mazes.attention_over(model, maze, head, step))
    assert result.lens.paths == "model" and result.lens.n_mazes <= 50


def test_files_and_figures(result: mazes.MazeExperiment, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = result.save(tmp_path)
    assert len(files) == 2 + len(result.figures())
    saved = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    numbers = saved["numbers"]
    assert numbers["rows"]["rdfs"]["exact"]["n"] == 150
    assert numbers["walls"]["scores"]["ridge"]["accuracy"] == result.walls["ridge"].accuracy.tolist()
    assert {"lens", "adjacency", "ablation", "patching", "flips", "flips_before", "start", "route"} <= set(numbers)
    assert set(numbers["walls_along"]) == set(numbers["walls_within"]) == set(FIXED)
    assert numbers["walls_within"]["path_start"]["site"] == "resid_mid"
    assert "shown" not in numbers and "nan" not in (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert {claim.figure for claim in result.claims} - {None} <= set(result.figures())
    assert all(claim.paper == 5 and claim.says and claim.measured for claim in result.claims)
    details = result.details()
    assert "at <PATH_START>, 2,000 mazes" in details and "from <ORIGIN_START> (resid_mid) on" in details
    assert all(f"ridge probes by the token whose {site} they read" in details for site in ("resid_post", "resid_mid"))
    assert "150 mazes of 3 × 3" in details and "minimal pairs" in details and LINE in details


def test_as_a_command(model: clew.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                      monkeypatch: pytest.MonkeyPatch, result: mazes.MazeExperiment) -> None:  # fmt: skip
    pytest.importorskip("matplotlib")
    model.save(tmp_path / "model")
    asked: list[Any] = []
    monkeypatch.setattr(mazes, "experiment", lambda *args, **named: asked.append((args, named)) or result)
    assert cli.main(["mazes", str(tmp_path / "model"), "--seed", "4", "--out", str(tmp_path / "out")]) == 0
    assert asked[0][0][0].config == model.config and asked[0][1] == {"text": None, "quick": True, "seed": 4}
    out = capsys.readouterr().out
    assert result.table() in out and (tmp_path / "out" / "result.json").is_file()


def test_attention_over_a_maze(model: clew.Model) -> None:
    maze = mazes.generate(1, 3, seed=3)[0]
    tok = mazes.tokenizer_of(model)
    for step in (0, len(maze.solution) - 1):
        ids = [*tok.encode(maze, path=False), 6, *(tok.cell_ids[tuple(cell)] for cell in maze.solution[: step + 1])]
        pattern = model.run(ids, capture="pattern")["pattern", 1][0, 1, -1]
        want = np.zeros((3, 3))
        for weight, word in zip(pattern, tok.decode(ids), strict=True):
            if word.startswith("("):
                want[int(word[1]), int(word[3])] += weight
        assert np.allclose(mazes.attention_over(model, maze, (1, 1), step), want)
    with pytest.raises(ConfigError, match="the path has cells 0 to"):
        mazes.attention_over(model, maze, (0, 0), 99)
    with pytest.raises(SiteError, match="heads 0 to 1"):
        mazes.attention_over(model, maze, (0, 2))


def judged(result: mazes.MazeExperiment, **changes: Any) -> dict[str, clew.experiment.Claim]:
    """Text → claim, with some parts replaced."""
    parts = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)} | changes
    return {claim.text: claim for claim in claims.claims(parts)}


def test_verdicts_follow_the_numbers(result: mazes.MazeExperiment) -> None:
    solves = "a small transformer learns to solve mazes"
    assert judged(result)[solves].verdict == "not testable on this model"
    for share, want in ((30, "does not hold"), (99, "holds")):
        rows = {kind: {row: mazes.Rate(share, 100) for row in rates} for kind, rates in result.rows.items()}
        found = judged(result, grid=6, rows=rows)
        assert found[solves].verdict == want and f"exact {share:.1f}/{share:.1f}" in found[solves].measured
    near = mazes.Rate(19, 100)  # 24.2 % of the paper's lies within its interval
    rows["rdfs"] = {**rows["rdfs"], "exact": near}
    assert near.high > 0.242 and judged(result, grid=6, rows=rows)[solves].verdict == "holds"

    walls, scores = result.walls, result.walls["ridge"]
    text = "all walls can be read linearly off one token"
    for accuracy, want in ((0.95, "holds"), (0.88, "does not hold")):
        better = dataclasses.replace(scores, accuracy=np.array([0.9, accuracy]) - [0.1, 0],
                                     low=np.array([0.7, accuracy - 0.01]))  # fmt: skip
        found = judged(result, walls=dataclasses.replace(walls, scores={"ridge": better}))[text]
        assert found.verdict == want and f"{accuracy:.1%}" in found.measured and "majority" in found.measured

    def best_at(walls: dict[str, mazes.WallProbes], best: str) -> dict[str, mazes.WallProbes]:
        """As if 92 % were read at one token, and less elsewhere."""
        return {at: dataclasses.replace(one, scores={"ridge": dataclasses.replace(
            one["ridge"], accuracy=np.array([0.5, 0.92 if at == best else 0.6]))})
            for at, one in walls.items()}  # fmt: skip

    assert result.walls_within is not None
    for behind, within, place in (("target_end", "", "<TARGET_END>"), ("", "origin_end", "<ORIGIN_END> (resid_mid)")):
        parts = {
            "walls_along": best_at(result.walls_along, behind),
            "walls_within": best_at(result.walls_within, within),
        }
        found = judged(result, **parts)[text]
        assert found.verdict == "does not hold" and f"before it (ours) is {place}: 92.0%" in found.measured
    bag = dataclasses.replace(result.walls_bag["ridge"], accuracy=np.array([0.96]))
    better = dataclasses.replace(better, accuracy=np.array([0.8, 0.95]), low=np.array([0.79, 0.94]))
    parts = {"walls": dataclasses.replace(walls, scores={"ridge": better}),
             "walls_bag": dataclasses.replace(result.walls_bag, scores={"ridge": bag})}  # fmt: skip
    assert judged(result, **parts)[text].verdict == "does not hold"
    early = "walls are read best in early layers, less well later"
    three = dataclasses.replace(better, accuracy=np.array([0.8, 0.95, 0.9]), low=np.array([0.79, 0.94, 0.89]))
    parts["walls"] = dataclasses.replace(walls, scores={"ridge": three})
    assert judged(result, **parts)[early].verdict == "not testable on this model"  # tokens alone tell as much
    assert judged(result, walls=parts["walls"])[early].verdict == "holds"

    found = dataclasses.replace(result.embedding["l1"], r=0.5, control=np.zeros(200))
    text = "embeddings of cells lie as the cells do"
    assert judged(result, embedding={**result.embedding, "l1": found})[text].verdict == "holds"
    found = dataclasses.replace(found, control=np.full(200, 0.6))
    assert judged(result, embedding={**result.embedding, "l1": found})[text].verdict == "does not hold"

    head, text = result.adjacency_head, "adjacency heads look at the cells that one step reaches"
    for low, want in ((0.1, "holds"), (-0.1, "does not hold")):
        lows = result.adjacency.low.copy()
        lows[head] = low
        near_ = result.adjacency.connected_over_uniform.copy()
        near_[head] = 1.5
        found = dataclasses.replace(result.adjacency, low=lows, connected_over_uniform=near_)
        assert judged(result, adjacency=found)[text].verdict == want


def test_verdicts_of_stored_measurements(result: mazes.MazeExperiment) -> None:
    text = "probes and behaviour rise together in training"
    assert judged(result)[text].verdict == "not testable on this model"
    base = mazes.snapshot(
        clew.Model.from_config(CONFIG), *(mazes.generate(n, 3, split=part) for n, part in ((60, "train"), (9, "test"))),
        walks=4,
    )  # fmt: skip

    def at(accuracy: float, exact: float) -> mazes.Snapshot:
        return dataclasses.replace(base, accuracy=np.array([0.1, accuracy]), exact=exact, streak=exact)

    up = mazes.Dynamics(np.arange(5), tuple(at(0.6 + 0.05 * i, 0.2 * i) for i in range(5)), {})
    down = mazes.Dynamics(np.arange(5), tuple(at(0.9 - 0.05 * i, 0.2 * i) for i in range(5)), {})
    assert judged(result, dynamics=up)[text].verdict == "holds"
    assert judged(result, dynamics=down)[text].verdict == "does not hold"
    assert "Spearman 1.00 with exact" in judged(result, dynamics=up)[text].measured

    text = "other seeds find the same structure"
    good = dataclasses.replace(
        base, low=np.array([0.9, 0.9]), adjacency_low=np.full((2, 2), 0.1), adjacency_mass=np.full((2, 2), 0.5),
        embedding_p=0.01,
    )  # fmt: skip
    pair = mazes.Pair(("a", 0), ("a", 1), 0.5, 0.5, 0.25, 0.9, 0.8)
    both = mazes.Consistency({"a": (good, good)}, (pair,), 0.7, {})
    assert judged(result, consistency=both)[text].verdict == "holds"
    assert "kappa 0.25" in judged(result, consistency=both)[text].measured
    odd = mazes.Consistency({"a": (good, dataclasses.replace(good, embedding_p=0.5))}, (pair,), 0.7, {})
    assert judged(result, consistency=odd)[text].verdict == "does not hold"
    told = dataclasses.replace(both, bag=0.95)  # the tokens alone tell more than the models' streams
    assert judged(result, consistency=told)[text].verdict == "does not hold"
    assert text not in judged(result, consistency=None)


def test_verdicts_of_causal_tests(result: mazes.MazeExperiment) -> None:
    assert result.ablation is not None and result.patching is not None
    text = "without adjacency heads the next step is lost, more than without other heads"
    assert judged(result, ablation=None)[text].verdict == "not testable on this model"
    below = SimpleNamespace(value=-1.0, low=-2.0, high=-0.5)
    contrast = {"mean": {"matched": {**result.ablation.contrast["mean"]["matched"], "margin": below}}}
    assert judged(result, ablation=dataclasses.replace(result.ablation, contrast=contrast))[text].verdict == "holds"
    text = "the model walks by the walls that its probes read"
    above, none = (SimpleNamespace(value=v, low=v - 0.1, high=v + 0.1) for v in (0.5, 0.0))
    for other, want in ((above, "holds"), (none, "does not hold")):
        contrast = {kind: {"other wall": [above], "random": [other]} for kind in result.flips.kinds}
        assert judged(result, flips=dataclasses.replace(result.flips, contrast=contrast))[text].verdict == want
    before = dataclasses.replace(result.flips_before, contrast=contrast)
    assert judged(result, flips_before=before)[text].verdict == judged(result)[text].verdict

    def moved(flips: mazes.WallFlips, share: int) -> mazes.WallFlips:
        """As if so many of 50 walks had moved."""
        each = np.arange(50) < share
        rows = tuple(dataclasses.replace(row, moved=mazes.Rate(share, 50), moved_each=each) for row in flips.rows)
        return dataclasses.replace(flips, rows=rows)

    for here, there, words in ((10, 40, "better (open, close): open +60.0 ["), (40, 10, "less (open, close)"),
                               (20, 20, "no better: open +0.0 [+0.0, +0.0] points")):  # fmt: skip
        found = judged(result, flips=moved(result.flips, here), flips_before=moved(result.flips_before, there))[text]
        assert f"Walls read at <ORIGIN_START> (resid_mid) steer the walk {words}" in found.measured


def test_the_demonstration(model: clew.Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    model.save(tmp_path / "small")
    files = maze_demo.main(tmp_path / "out", tmp_path / "small", mazes=10, train=200)
    assert [path.name for path in files] == list(maze_demo.FIGURES)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    out = capsys.readouterr().out
    assert out.count("+---+---+---+\n") >= 6 and max(map(len, out.splitlines())) <= 120
    exact = mazes.table(model, 10, 3)["rdfs"]["exact"].value
    row = next(line for line in out.splitlines() if line.startswith("  exact "))
    assert f"{100 * exact:.1f}  ( 24.2)" in row
    if "maze-6x6" not in clew.bundled():
        assert maze_demo.main(tmp_path / "none") == [] and not (tmp_path / "none").exists()
        assert "does not come with this installation" in capsys.readouterr().out


def test_what_is_refused(model: clew.Model) -> None:
    with pytest.raises(ConfigError, match="takes no text"):
        mazes.experiment(model, "some words")
    with pytest.raises(TokenError, match="has 3 rows"):
        mazes.experiment(model, grid=4)
    with pytest.raises(TokenError, match="none of mazes"):
        mazes.experiment(clew.load("stories260K"))


def test_models_without_a_stream_between_attention_and_mlp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both read the same stream: walls are read and flipped behind the layers alone."""
    pytest.importorskip("matplotlib")
    parallel = clew.Model.from_config(CONFIG.replace(parallel_attn_mlp=True), seed=0)
    found = mazes.experiment(parallel, seed=4)
    assert found.walls_within is None and found.flips_before.site == found.shown.site == "resid_post"
    assert {"probes", "probe_positions", "flips_before"} <= set(found.figures()) and "resid_mid" not in found.details()
    parallel.save(tmp_path / "parallel")
    assert len(maze_demo.main(tmp_path / "out", tmp_path / "parallel", mazes=5, train=50)) == len(maze_demo.FIGURES)
    assert "at <ORIGIN_START>,\nlayer" in capsys.readouterr().out
    train, test = (mazes.generate(n, 3, split=part) for n, part in ((50, "train"), (9, "test")))
    with pytest.raises(SiteError, match="resid_mid"):
        mazes.wall_probes(parallel, train, test, site="resid_mid")
