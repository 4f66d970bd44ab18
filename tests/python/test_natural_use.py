"""What users try first: indices in every form NumPy has, names with a layer in them, errors that say what was wrong."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import ConfigError, ShapeError, SiteError, TokenError, UnsupportedModelError, edit, metrics
from clew.bench import bench

IDS = np.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
OTHER = np.array([[1, 2, 7, 4, 5, 6], [6, 5, 9, 3, 2, 1]])
DIFF = metrics.logit_diff(3, 5)


def _config(**changes: Any) -> clew.ModelConfig:
    sizes: dict[str, Any] = dict(
        n_layers=2, d_model=12, n_heads=3, d_mlp=20, n_ctx=24, d_vocab=11, initializer_range=0.4
    )
    return clew.ModelConfig(**(sizes | changes))


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return clew.Model.from_config(_config(), seed=1, dtype="float64")


# ---- Which positions are kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "kept"),
    [
        (slice(1, 3), [1, 2]),
        (slice(-2, None), [4, 5]),
        (slice(None, None, -3), [5, 2]),
        (np.array([False, True, False, False, True, False]), [1, 4]),
        ([True] * 6, [0, 1, 2, 3, 4, 5]),
        (np.int64(3), [3]),
    ],
)
def test_positions_as_numpy_takes_them(model: clew.Model, positions: Any, kept: list[int]) -> None:
    whole = model.run(IDS, capture=["z", "pattern"])
    run = model.run(IDS, capture=["z", "pattern"], positions=positions)
    np.testing.assert_allclose(run["z", 1], whole["z", 1][:, kept], rtol=1e-12)
    np.testing.assert_allclose(run["pattern", 0], whole["pattern", 0][:, :, kept], rtol=1e-12)
    assert run.positions is not None and len(run.positions) == len(kept)
    assert model.plan(2, 6, capture="z", positions=positions).sites["blocks.0.attn.hook_z"] == run["z", 0].shape


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([], r"positions = \[\] selects nothing"),
        (slice(4, 2), r"positions = slice\(4, 2, None\) selects nothing"),
        ([False] * 6, "selects nothing"),
        ([True, False], r"positions: a mask \[2\] for 6 positions"),
        (slice("a"), r"positions = slice\(None, 'a', None\): slice indices must be integers"),
        (slice(None, None, 0), "slice step cannot be zero"),
    ],
)
def test_positions_that_are_none(model: clew.Model, positions: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        model.run(IDS, capture="z", positions=positions)


def test_a_slice_of_ragged_prompts_is_ambiguous(model: clew.Model) -> None:
    with pytest.raises(ShapeError, match=r"slice\(-2, None, None\) of prompts of \[3, 1\] tokens: list them"):
        model.run([[1, 2, 3], [4]], capture="z", positions=slice(-2, None))


# ---- Edits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [edit.set, edit.add, edit.scale])
def test_an_edit_keeps_the_value_it_was_made_with(model: clew.Model, make: Callable[..., edit.Edit]) -> None:
    value = np.linspace(-1, 1, 12)
    made = make("resid_pre.1", value)
    before = model.run(IDS, edits=made).logits
    value[:] = 7
    assert np.array_equal(model.run(IDS, edits=made).logits, before)
    held = model.run(IDS, capture="resid_pre.1")["resid_pre", 1]
    assert make("resid_pre.1", held).value is held  # nobody can write to it: no copy


def test_a_reference_is_kept_as_it_was(model: clew.Model) -> None:
    reference = model.run(IDS, capture="z.1")["z", 1].copy()
    made = edit.mean_ablate("z.1", reference)
    before = model.run(IDS, edits=made).logits
    reference[:] = 0
    assert np.array_equal(model.run(IDS, edits=made).logits, before)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (edit.set("resid_pre", np.ma.masked_equal(np.ones(12), 1)), "the value: an array with masked values"),
        (edit.zero("z", heads=[[0], [1, 2]]), "heads cannot be read as an array"),
        (edit.zero("z", positions=[[0], [1, 2]]), "positions cannot be read as an array"),
        (edit.zero("z", heads=slice(None, None, 0)), "slice step cannot be zero"),
        (edit.zero("z", positions=slice("a", None)), "slice indices must be integers"),
    ],
)
def test_selections_that_are_none(model: clew.Model, made: edit.Edit, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        model.run(IDS, edits=made)


def test_a_run_is_a_reference(model: clew.Model) -> None:
    """Of a ragged batch the real positions count, as of its tokens."""
    prompts = [[1, 2, 3], [4]]
    run = model.run(prompts, capture=["z", "logits"])
    for site in ("z.1", "logits"):
        by_run = model.run(IDS, edits=edit.mean_ablate(site, run)).logits
        assert np.array_equal(by_run, model.run(IDS, edits=edit.mean_ablate(site, prompts)).logits)
    with pytest.raises(ShapeError, match="the run kept 1 positions of 6"):
        model.run(IDS, edits=edit.mean_ablate("z", model.run(IDS, capture="z", positions=[0])))


# ---- Sweeps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z.1", ("z", 1), ("z", -1), "blocks.1.attn.hook_z"])
def test_a_site_of_one_layer_is_swept_there(model: clew.Model, site: Any) -> None:
    """Else a layer in the name would change nothing."""
    both = model.sweep(IDS, OTHER, "z", ("layer", "head"), DIFF)
    one = model.sweep(IDS, OTHER, site, ("layer", "head"), DIFF)
    assert one.labels[0] == (1,)
    np.testing.assert_allclose(one.values, both.values[1:], rtol=1e-12)
    heads = model.sweep(IDS, OTHER, site, "head", DIFF)
    np.testing.assert_allclose(heads.values, both.values[1], rtol=1e-12)
    estimate = model.sweep(IDS, OTHER, site, ("layer", "head"), DIFF, method="attribution")
    assert estimate.values.shape == (1, 3)
    paths = model.path_patch(IDS, OTHER, site, metric=DIFF)
    np.testing.assert_allclose(paths.values, model.path_patch(IDS, OTHER, "z", metric=DIFF).values[1:], rtol=1e-12)


def test_a_layer_is_named_once(model: clew.Model) -> None:
    with pytest.raises(ConfigError, match=r"layers are chosen, but 'z.1' names layer 1 itself"):
        model.sweep(IDS, OTHER, "z.1", ("layer", "head"), DIFF, layers=[0])


def test_slices_choose_entries(model: clew.Model) -> None:
    whole = model.sweep(IDS, OTHER, metric=DIFF)
    part = model.sweep(IDS, OTHER, metric=DIFF, layers=slice(1, None), positions=slice(-2, None))
    np.testing.assert_allclose(part.values, whole.values[1:, -2:], rtol=1e-12)
    assert part.labels == ((1,), (4, 5))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(over=None), ConfigError, "over = None: expected a list of axes"),
        (dict(site=None), SiteError, "None is no name of a capture site"),
        (dict(site=["z"]), SiteError, r"\['z'\] is no name of a capture site"),
        (dict(layers=[[0], [1]]), ShapeError, r"layers of .* must be integers, not int64 \[2, 1\]"),
        (dict(layers=slice(None, None, 0)), ShapeError, "slice step cannot be zero"),
        (dict(metric=lambda logits: "a"), ShapeError, "what metric <lambda> gave must be real numbers"),
    ],
)
def test_sweeps_that_are_none(model: clew.Model, arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        model.sweep(IDS, OTHER, **({"metric": DIFF} | arguments))


@pytest.mark.parametrize("wrong", [dict(level=2), dict(level="a"), dict(n="a"), dict(n=0)])
def test_intervals_that_are_none(model: clew.Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"interval: level .* must lie in|n = 'a': expected a whole number|n = 0: at least 1"
    ):
        model.sweep(IDS, OTHER, metric=DIFF).interval(**wrong)


def test_a_table_of_sites_finds_pairs(model: clew.Model) -> None:
    assert model.sites().find(("z", -1)) == model.sites().find("z.1")
    with pytest.raises(SiteError, match="3 is no name of a capture site"):
        model.sites().find(3)  # type: ignore[arg-type]


def test_a_sweep_over_edits_reads_any_iterable(model: clew.Model) -> None:
    made = [edit.zero(("z", layer)) for layer in range(2)]
    listed = model.sweep(IDS, edits=made, metric=DIFF).values
    assert np.array_equal(model.sweep(IDS, edits=iter(made), metric=DIFF).values, listed)
    assert np.array_equal(model.sweep(IDS, edits=((e,) for e in made), metric=DIFF).values, listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(edits=edit.zero("z")), r"edits = edit.zero\('z'\): expected a list, an entry"),
        (dict(edits="z"), "edits = 'z': expected a list"),
        (dict(edits=[3]), "edits = 3: expected a list of clew.edit's"),
        (dict(edits=[edit.zero("z")], layers=np.array([0, 1])), "one prompt, the edits and a metric, nothing else"),
        (dict(edits=[edit.zero("z")], positions=[]), "nothing else"),
        (dict(edits=[edit.zero("z")], direction="noise"), "nothing else"),
        (dict(edits=[edit.zero("z")], method="attribution"), "nothing else"),
    ],
)
def test_sweeps_over_edits_that_are_none(model: clew.Model, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sweep(IDS, metric=DIFF, **arguments)


def test_receivers_that_are_none(model: clew.Model) -> None:
    with pytest.raises(SiteError, match="receivers = 3: give a site"):
        model.path_patch(IDS, OTHER, receivers=3, metric=DIFF)  # type: ignore[arg-type]
    with pytest.raises(SiteError, match="receiver 'logits': the metric reads the logits"):
        model.path_patch(IDS, OTHER, receivers="logits", metric=DIFF)


def test_metrics_know_the_vocabulary() -> None:
    for metric in (metrics.logit_diff(3, 5), metrics.log_prob(5)):
        with pytest.raises(TokenError, match="token 5 has no logit: there are ids 0 to 4"):
            metric(np.zeros((2, 5)))
    with pytest.raises(TokenError, match="logit_diff: token a must be a token id"):
        metrics.logit_diff("x", 1)


# ---- Generation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [(), edit.scale("z.1", 0.3)])
def test_generation_keeps_logits(model: clew.Model, edits: Any) -> None:
    prompts = [[1, 2, 3], [4], [5, 6]]
    plain = model.generate(prompts, max_new_tokens=6, stop=[4], edits=edits)
    kept = model.generate(prompts, max_new_tokens=6, stop=[4], capture=["logits", "z"], edits=edits)
    for seq, prompt in enumerate(prompts):
        assert kept.tokens[seq].tolist() == plain.tokens[seq].tolist()
        text = [*prompt, *kept.tokens[seq].tolist()]
        whole = model.run(text, edits=edits)
        np.testing.assert_allclose(kept["logits"][seq, : len(text)], whole.logits[0], rtol=1e-9, atol=1e-12)
        assert not kept["logits"][seq, len(text) :].any()
    alone = model.generate([1, 2, 3], max_new_tokens=2, capture="logits")
    assert alone["logits"].shape == (1, 5, 11)


def test_slices_count_from_the_prompts_end(model: clew.Model) -> None:
    """As lists of negative positions do: what is generated does not move them."""
    prompts = [[1, 2, 3], [5, 6, 7, 8]]
    sliced = model.generate(prompts, 5, capture="z", edits=edit.zero("z.0", positions=slice(-2, -1)))
    listed = model.generate(prompts, 5, capture="z", edits=edit.zero("z.0", positions=[-2]))
    assert [t.tolist() for t in sliced.tokens] == [t.tolist() for t in listed.tokens]
    assert np.array_equal(sliced["z", 0], listed["z", 0])
    onwards = model.generate(prompts, 5, capture="z", edits=edit.zero("z.0", positions=slice(-1, None)))
    assert not onwards["z", 0][0, 2:].any() and not onwards["z", 0][1, 3:].any()
    assert onwards["z", 0][0, :2].any() and onwards["z", 0][1, :3].any()


@pytest.mark.parametrize("batch", [slice(0, 1), [True, False], 0])
def test_positions_of_selected_sequences(model: clew.Model, batch: Any) -> None:
    prompts = [[1, 2, 3], [5, 6, 7, 8]]
    kept = model.generate(prompts, 3, capture="z", edits=edit.zero("z.0", positions=[-1], batch=batch))
    assert not kept["z", 0][0, 2].any() and kept["z", 0][0, 1].any() and kept["z", 0][1, 3].any()
    with pytest.raises(ShapeError, match=r"positions \[3, 1\] for 2 sequences"):
        model.generate(prompts, 3, edits=edit.zero("z.0", positions=[[-1], [-1], [-1]]))


def test_vectors_are_not_generated() -> None:
    for reads in (dict(d_vocab=None, d_in=3, d_out=2), dict(d_out=2)):
        vectors = clew.Model.from_config(_config(**reads))
        with pytest.raises(UnsupportedModelError, match=r"feeds tokens back: this model has d_in = \w+, d_out = 2"):
            vectors.generate(np.ones((1, 2, 3)) if "d_in" in reads else [1, 2])


# ---- Gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_of_half_the_square_is_the_logits(model: clew.Model) -> None:
    """A metric may give back the very array that it was shown."""
    own = model.gradients(IDS, lambda logits: (0.5 * np.square(logits).sum(axis=(1, 2)), logits), wrt="embeddings")
    copied = model.gradients(IDS, lambda logits: (0.5 * np.square(logits).sum(axis=(1, 2)), logits * 1), wrt="embed")
    assert np.array_equal(own["embeddings"], copied["hook_embed"]) and own["embeddings"].any()
    total = model.gradients(IDS, lambda logits: (0.5 * np.square(logits).sum(), logits), wrt="embed")
    assert total.total == pytest.approx(own.total)


@pytest.mark.parametrize(
    ("given", "message"),
    [("a", "the metric's value must be real numbers"), (np.zeros(3), r"value has shape \[3\]: one number, or one for")],
)
def test_values_that_are_none(model: clew.Model, given: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        model.gradients(IDS, lambda logits: (given, logits))
    with pytest.raises(SiteError, match="wrt = 3: expected names of sites or weights"):
        model.gradients(IDS, DIFF, wrt=3)  # type: ignore[arg-type]


# ---- Models, weights, configurations --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["banana", "bfloat16", 3, "float16", np.int8])
def test_precisions_that_are_none(dtype: Any) -> None:
    for make in (lambda: clew.load("stories260K", dtype=dtype), lambda: clew.Model.from_config(_config(), dtype=dtype)):
        with pytest.raises(ShapeError, match="a model computes in float32 or float64"):
            make()


@pytest.mark.parametrize("path", [3, None, ["gpt2"]])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"path: a path, a name of clew.bundled\(\) or a hub id, not"):
        clew.load(path)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed = .*, must be a whole number, at least 0"):
        clew.Model.from_config(_config(), seed=seed)
    with pytest.raises(ConfigError, match="config: a ModelConfig, not dict"):
        clew.Model.from_config({"n_layers": 1})  # type: ignore[arg-type]


def test_weights_that_are_none(model: clew.Model) -> None:
    with pytest.raises(SiteError, match=r"'W_Q' is no weight of this model; nearest: blocks\.0\.attn\.W_Q"):
        model.weights["W_Q"]
    with pytest.raises(SiteError, match="3 is no weight of this model"):
        model.weights[3]  # type: ignore[index]
    bare = clew.Model.from_config(_config(n_layers=0))
    with pytest.raises(SiteError, match="the model has no layers"):
        bare.QK(0, 0)


def test_configurations_are_keys() -> None:
    config = _config(positional_embedding_type="rotary", rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert {config: 1}[copy.copy(config)] == {config: 1}[pickle.loads(pickle.dumps(config))] == 1
    assert config != _config() and len({config, _config()}) == 2


def test_modules_are_there_without_an_import_of_their_own() -> None:
    for name in ("walk", "adaptive", "geometry", "descent", "mazes", "regression", "probe", "lens", "metrics", "plot"):
        assert getattr(clew, name).__name__ == f"clew.{name}" and name in dir(clew)
    with pytest.raises(AttributeError, match="module 'clew' has no attribute 'lenses'"):
        clew.lenses  # noqa: B018


def test_numbers_of_threads_that_are_none() -> None:
    before = clew.get_num_threads()
    for n in (0, -1, 1.5, "a", None, 10**30):
        with pytest.raises(ConfigError, match="set_num_threads"):
            clew.set_num_threads(n)  # type: ignore[arg-type]
    assert clew.get_num_threads() == before


# ---- Text -----------------------------------------------------------------------------------------------------------


def test_text_that_is_none() -> None:
    pytest.importorskip("tokenizers")
    model = clew.load("shakespeare")
    for call in (lambda: model.to_tokens(3), lambda: model.to_tokens(["a", 3]), lambda: model.to_single_token(3)):  # type: ignore[arg-type, list-item]
        with pytest.raises(ShapeError, match="not int"):
            call()
    assert model.to_str_tokens([]) == []
    with pytest.raises(TokenError, match="token ids are whole numbers, not 'a'"):
        model.tokenizer.decode("a")  # type: ignore[union-attr]


# ---- Probes ---------------------------------------------------------------------------------------------------------


def test_one_target_is_a_column() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(50, 4))
    y = x @ [1.0, -1.0, 0.5, 0.0] + 0.3 * generator.normal(size=50) > 0
    for learn in (clew.probe.ridge, clew.probe.logistic):
        one, column = learn(x, y), learn(x, y[:, None])
        assert np.array_equal(one.weight, column.weight) and one.weight.shape == (4, 1)
        assert learn(x.astype(np.float16), y.tolist()).predict(x).shape == (50, 1)
        with pytest.raises(ConfigError, match="probe: activations hold NaN"):
            learn(np.where(x > 2, np.nan, x), y)
        with pytest.raises(ShapeError, match="probe: targets must be real numbers, not <U1"):
            learn(x, ["a"] * 50)
        with pytest.raises(ConfigError, match="probe: activations hold NaN"):
            one.predict(np.where(x > 2, np.nan, x))
        with pytest.raises(ShapeError, match="probe: activations must be real numbers, not <U1"):
            one(["a"] * 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", 1), ShapeError, "probe: weight must be real numbers, not <U1"),
        ((np.eye(2), "ab"), ShapeError, "probe: bias must be real numbers, not <U2"),
        ((np.eye(2), 1), ShapeError, r"probe: weight \[2, 2\] and bias \[\]: \[..., d, t\] and"),
        ((np.zeros((3, 4, 2)), np.zeros(2)), ShapeError, r"probe: weight \[3, 4, 2\] and bias \[2\]"),
        ((np.eye(2), [0, 0], "x"), ConfigError, "probe: boundary = 'x' is no number"),
    ],
)
def test_probes_that_are_none(arguments: tuple[Any, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        clew.probe.Probe(*arguments)


def test_a_probe_in_one_line() -> None:
    x = np.random.default_rng(0).normal(size=(3, 50, 4))
    several = clew.probe.ridge(x, x[0, :, :2])
    assert repr(several) == "Probe of 3 layers, 4 features, 2 targets"
    assert repr(several.layer(-1)) == "Probe of 4 features, 2 targets"
    with pytest.raises(ConfigError, match="layer = 9: the probe has layers 0 to 2"):
        several.layer(9)
    with pytest.raises(ConfigError, match="layer = 0: this probe is of one layer"):
        several.layer(0).layer(0)


# ---- Lens, factors, training ----------------------------------------------------------------------------------------


def test_layers_of_a_lens(model: clew.Model) -> None:
    both = clew.lens.logit_lens(model, IDS)
    for layers, row in ((1, 1), (slice(0, 1), 0), (np.int64(-1), 1)):
        assert np.array_equal(clew.lens.logit_lens(model, IDS, layers).logits[0], both.logits[row])  # type: ignore[arg-type]
    for wrong in (dict(layers="a"), dict(layers=[0.5]), dict(top_k="a")):
        with pytest.raises(ConfigError, match="expected a whole number"):
            clew.lens.logit_lens(model, IDS, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="batches = 3: expected a list of what model.run takes"):
        clew.lens.TunedLens.fit(model, 3)  # type: ignore[arg-type]


def test_half_precision_factors() -> None:
    a = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    matrix = clew.FactoredMatrix(a, a.T)
    np.testing.assert_allclose(matrix.S[:3], np.linalg.svd(a.astype(np.float64) @ a.T, compute_uv=False)[:3], rtol=1e-5)
    np.testing.assert_allclose((matrix / 4).AB, matrix.AB / 4, rtol=1e-6)
    with pytest.raises(ShapeError, match=r"FactoredMatrix / \[2\]"):
        matrix / np.ones(2)


def test_evaluation_of_plain_tokens(model: clew.Model) -> None:
    evaluate = clew.train.evaluate
    loss, count = evaluate(model, IDS)
    assert count == 10 and loss == pytest.approx(model.loss(IDS, reduce="mean"))
    ragged = [[1, 2, 3], [4]]  # a part of the batch may have no target, the whole must
    assert evaluate(model, ragged, batch=1) == pytest.approx(evaluate(model, ragged, batch=2))
    with pytest.raises(TokenError, match="no target in these examples"):
        evaluate(model, [[4], [5]])
    with pytest.raises(ConfigError, match="batch = 0, at least 1"):
        evaluate(model, IDS, batch=0)


def test_training_of_what_is_no_model(model: clew.Model) -> None:
    with pytest.raises(ConfigError, match="AdamW: int is no clew.Model"):
        clew.AdamW(3, lr=0.1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="callback = 3 cannot be called"):
        clew.train.fit(clew.Model.from_config(_config()), IDS, 1, 2, progress=False, callback=3)


def test_figures_and_cells_that_are_none() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ShapeError, match="curves: series must be numbers: could not convert string to float: 'b'"):
        clew.plot.curves({"a": ["b"]})
    with pytest.raises(ShapeError, match="curves: a name for each series, {name: values}, not list"):
        clew.plot.curves([1, 2])  # type: ignore[arg-type]
    maze = clew.mazes.generate(1, grid=3)[0]
    for wrong in (1, (1, 2, 3), (0.5, 1.0), "ab"):
        with pytest.raises(ShapeError, match=r"a cell is two whole numbers \(row, column\), not"):
            maze.connected(wrong, (0, 0))


# ---- clew bench -----------------------------------------------------------------------------------------------------


def test_bench_times_a_model(model: clew.Model, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench(model, batch=2, pos=5, rounds=1)
    assert [row.what.strip() for row in rows] == [
        "product of 1024 × 1024", "forward, 2 × 5", "every site captured", "one head zeroed", "and backward",
        "a new token",
    ]  # fmt: skip
    assert all(row.seconds > 0 for row in rows)
    assert rows[2].note == f"{rows[2].seconds / rows[1].seconds:.2f} × the forward pass"
    assert [row.what.strip() for row in bench(clew.Model.from_config(_config(n_layers=0, n_ctx=1)), rounds=1)] == [
        "product of 1024 × 1024", "forward, 1 × 1", "every site captured",
    ]  # fmt: skip
    from clew.cli import main

    assert main(["bench", "stories260K", "--pos", "4", "--rounds", "1"]) == 0
    assert "forward, 1 × 4" in capsys.readouterr().out


def test_what_cannot_be_timed(model: clew.Model) -> None:
    with pytest.raises(ConfigError, match="this one has d_in = 3, d_out = 2"):
        bench(clew.Model.from_config(_config(d_vocab=None, d_in=3, d_out=2)))
    with pytest.raises(ConfigError, match="rounds = 0, at least 1"):
        bench(model, rounds=0)
    with pytest.raises(TokenError, match="24 learned positions"):
        bench(model, pos=25)


# ---- What a notebook shows ------------------------------------------------------------------------------------------


def test_every_public_class_shows_what_it_holds() -> None:
    bare = []
    for found in pkgutil.walk_packages(clew.__path__, "clew."):
        if ".data." in found.name or found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        public = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
        bare += [f"{found.name}.{n}" for n, c in public.items() if type(c) is type and c.__repr__ is object.__repr__]
    assert not bare


def test_shown_sources_and_trainers(tmp_path: Path) -> None:
    from clew import mazes, probe, regression, stream, train

    small = clew.Model.from_config(_config(), seed=1)
    trainer = train.Trainer(small, IDS, steps=3, batch=2, directory=tmp_path, progress=False)
    assert repr(trainer) == f"Trainer: step 0 of 3, batch 2, Sequences: 2, shuffled, seed 0; checkpoints in {tmp_path}"
    loss = trainer.run().losses[-1]
    assert repr(trainer).startswith("Trainer: step 3 of 3") and f"; loss {loss:.4g}; " in repr(trainer)
    assert repr(train.Windows(range(40), 5, 2)) == "Windows of 5 of 40 tokens, random, seed 2"

    def made(rng: Any, size: int) -> Any:
        return IDS

    assert repr(train.Generated(made)).endswith("made, seed 0")
    curriculum = mazes.Curriculum([mazes.Stage(9, {3: 1.0}, {"rdfs": 1.0})], mazes.Tokenizer(4))
    assert repr(curriculum) == "Curriculum of 1 stage, mazes of up to 3 × 3, seed 0"
    sums = probe.Moments()
    assert repr(sums) == "Moments of 0 rows"
    sums.add(np.ones((5, 3)), np.ones((5, 2)))
    assert repr(sums) == "Moments of 5 rows of 3 activations and 2 targets"
    prompts = regression.tasks.Stream(regression.tasks.dense(d=3), n=5)
    assert repr(prompts) == "Stream of dense prompts, d 3, n 5, interleaved, seed 0"
    assert repr(stream.Texts(["a", [1, 2]])) == "Texts of ['a', [1, 2]], by paragraph"
    assert repr(clew.gradients.WeightGradients(small, [3, 2])).startswith(
        "WeightGradients of 2 sequences, 5 tokens, cross_entropy, "
    )
    assert repr(clew.descent.gradient.Whitening(small)) == "Whitening of 10 directions, d_model 12"


# ---- Messages that name what was given ------------------------------------------------------------------------------


def test_prompts_of_another_type_are_named() -> None:
    model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    given: tuple[tuple[Any, str], ...] = (
        ((text for text in ("a", "b")), "generator$"),
        ({"input_ids": [1, 2]}, "dict; give what it holds under 'input_ids'"),
        (Path("prompts.txt"), "PosixPath|WindowsPath"),
    )
    for tokens, named in given:
        with pytest.raises(ShapeError, match=rf"a text, token ids \(integers\) or a list of either, not ({named})"):
            model.run(tokens)


def test_a_weight_that_there_is_not() -> None:
    model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    with pytest.raises(clew.SiteError, match=r"'W_X' matches no capture site.*; nearest weights: .*W_[QKVOEU]"):
        model.gradients([1, 2], clew.metrics.log_prob(1), wrt=["resid_pre", "W_X"])
    with pytest.raises(clew.SiteError, match=r"nearest: .*resid_pre[^;]*; model.sites\(\) lists all$"):
        model.gradients([1, 2], clew.metrics.log_prob(1), wrt="resid_prx")


# ---- Coming from elsewhere, or nearly right -------------------------------------------------------------------------


def test_names_of_other_libraries_lead_here(model: clew.Model) -> None:
    for name, message in [
        ("cfg", r"here it is model\.config"),
        ("run_with_cache", r"model\.run\(tokens, capture=\"\*\"\)"),
        ("genrate", "nearest: generate"),
        ("n_heads", r"here it is model\.config\.n_heads$"),
        ("logit_lens", r"here it is clew\.logit_lens\(model, tokens\)$"),
        ("run_", r"nearest: run(?!.*_)"),
    ]:
        with pytest.raises(AttributeError, match=message):
            getattr(model, name)
    assert not hasattr(model, "__array__")
    with pytest.raises(TypeError, match=r"model\.run\(tokens\)\.logits"):
        model("text")
    with pytest.raises(TypeError, match=r"Model\.to_tokens\(\) got an unexpected keyword argument 'prepend_bos'"):
        model.to_tokens("text", prepend_bos=True)  # type: ignore[call-arg]


def test_a_run_in_the_place_of_tokens(model: clew.Model) -> None:
    run = model.run(IDS, capture="resid_pre")
    for wrong in (lambda: model.run(run), lambda: clew.direct_logit_attribution(model, run, 3)):
        with pytest.raises(ShapeError, match=r"a text or token ids, not a Run: a run's are its \.tokens"):
            wrong()
    assert np.array_equal(model.run(run.tokens).logits, run.logits)


def test_a_generations_run_says_how_it_keeps_logits(model: clew.Model) -> None:
    with pytest.raises(clew.SiteError, match=r"or by generate, which keeps them with capture=\[…, \"logits\"\]"):
        _ = model.generate(IDS, 2, capture=["resid_post"]).run.logits
    kept = model.generate(IDS, 2, capture=["resid_post", "logits"]).run
    assert kept is not None and kept.logits.shape[-1] == model.config.d_vocab_out


def test_attributions_by_name_and_whole_in_print() -> None:
    model = clew.load("shakespeare")
    parts = clew.direct_logit_attribution(model, ["Good morrow, my noble", "God save"], answer=" lord", by="head")
    assert np.array_equal(parts["L0H2"], parts.values[parts.labels.index("L0H2")])
    with pytest.raises(clew.SiteError, match=r"'L0H99' is no component of this attribution; nearest: L0H"):
        parts["L0H99"]
    rows = [line.rsplit(None, 1) for line in repr(parts).splitlines()[1:]]
    assert any(name.strip() == f"{len(parts.labels) - 10} others" for name, _ in rows)
    assert sum(float(value) for _, value in rows[:-1]) == pytest.approx(float(rows[-1][1]), abs=1e-3)


def test_what_positions_see_is_part_of_a_models_look() -> None:
    assert "attention     the last 4 positions in layers 0, 2" in repr(clew.load("english"))
    small = clew.ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=8, d_vocab=10)
    assert "attention" not in repr(clew.Model.from_config(small))
    for changes, said in (
        ({"window_size": 3}, "the last 3 positions in all layers"),
        ({"attn_types": ("global", "local"), "window_size": 3}, "the last 3 positions in layer 1"),
        ({"attention_kind": "linear"}, "linear, causal"),
    ):
        assert f"attention     {said}\n" in repr(clew.Model.from_config(small.replace(**changes)))


def test_ids_as_text() -> None:
    model = clew.load("shakespeare")
    text = "God save you,\n gentle"
    assert model.to_string(model.to_tokens(text)) == text
    run = model.run(["God save", "God save you, gentle"])
    assert [model.to_string(row) for row in run.tokens] == ["God save", "God save you, gentle"]  # type: ignore[union-attr]
    with pytest.raises(ShapeError, match="of one text"):
        model.to_string(run.tokens)  # type: ignore[arg-type]


def test_a_name_of_several_sites_lists_them(model: clew.Model) -> None:
    run = model.run(IDS, capture="scale")
    with pytest.raises(SiteError, match="means blocks.0.ln1.hook_scale, blocks.0.ln2.hook_scale: give one") as told:
        run["scale", 0]
    for name in str(told.value).split(" means ")[1].split(":")[0].split(", "):  # and the advice works
        assert run[name].shape == (2, 6, 1)
    with pytest.raises(SiteError, match="means") as told:
        run.stack("scale")
    for name in str(told.value).split(" means ")[1].split(":")[0].split(", "):
        assert run.stack(name).shape == (2, 2, 6, 1)


def test_nearly_right_requests(model: clew.Model) -> None:
    with pytest.raises(SiteError, match=r"one head of a site is named \('q_input', 1, 0\)"):
        model.path_patch(IDS, OTHER, receivers="q_input.1.0", metric=DIFF)
    with pytest.raises(ConfigError, match=r"edit\.call of 'z\.1': .* takes \(a\), but is called as fn\(array, site_na"):
        edit.call("z.1", lambda a: a)  # type: ignore[arg-type, misc]

    def wrong(array: Any, name: str) -> Any:
        raise TypeError("its own")

    for function in (wrong, lambda *both: wrong(*both), lambda array, name, more=1: wrong(array, name)):
        with pytest.raises(TypeError, match="its own"):  # what the function itself raises stays what it is
            model.run(IDS, edits=[edit.call("z.1", function)])
    with pytest.warns(UserWarning, match="clean and corrupted give the same"):
        assert np.isnan(model.sweep(IDS, IDS, metric=DIFF).recovered).all()


def test_other_weights(model: clew.Model, tmp_path: Path) -> None:
    name = "blocks.1.attn.W_O"
    changed = model.weights[name].copy()
    changed[2] = 0
    other = model.with_weights({name: changed})
    changed[:] = 9  # the caller's own
    without = model.run(IDS, edits=[edit.zero("z.1", heads=[2])]).logits
    np.testing.assert_allclose(other.run(IDS).logits, without, rtol=1e-12)
    assert model.weights[name][2].any() and not other.weights[name].flags.writeable
    other.save(tmp_path / "other")
    assert np.array_equal(clew.load(tmp_path / "other").run(IDS).logits, other.run(IDS).logits)
    with pytest.raises(SiteError, match=r"nearest: blocks\.0\.attn\.W_O"):
        model.with_weights({"W_O": changed})
    with pytest.raises(ShapeError, match=r"\[4, 12\] for a weight \[3, 4, 12\]"):
        model.with_weights({name: changed[0]})


def test_other_weights_of_tied_embeddings(tmp_path: Path) -> None:
    model = clew.load("shakespeare")
    other = model.with_weights({"embed.W_E": 2 * model.W_E})
    assert not other.config.tie_word_embeddings and np.array_equal(other.W_U, model.W_U)
    assert np.array_equal(other.W_E, 2 * model.W_E)
    other.save(tmp_path / "other")
    assert np.array_equal(clew.load(tmp_path / "other").run([1, 2]).logits, other.run([1, 2]).logits)


def test_modules_show_what_is_public() -> None:
    assert dir(edit) == sorted(["Edit", "add", "call", "freeze", "mean_ablate", "scale", "set", "zero"])
    assert {"logit_diff", "loss"} <= set(dir(metrics)) and "np" not in dir(metrics)
    vectors = importlib.import_module("clew.adaptive.function_vectors")
    assert {"extract", "transfer"} <= set(dir(vectors)) and "ArrayLike" not in dir(vectors)


def test_a_run_on_disk(model: clew.Model, tmp_path: Path) -> None:
    run = model.run(IDS, capture=["z", "pattern.1"])
    run.save(tmp_path / "new" / "run")
    with np.load(tmp_path / "new" / "run") as saved:
        assert sorted(saved) == sorted([*run, "tokens"])
        assert all(np.array_equal(saved[name], array) for name, array in run.items())
        assert np.array_equal(saved["tokens"], IDS)


def test_one_token_is_one(model: clew.Model) -> None:
    assert repr(model.run([3])).startswith("Run of 1 sequence, 1 token\n")
    assert "(1 token, length)" in repr(model.generate([3], max_new_tokens=1))


def test_a_bundled_name_that_is_nearly_right() -> None:
    with pytest.raises(clew.LoadError, match="no hub id .*; nearest: shakespeare$"):
        clew.load("shakespear")
