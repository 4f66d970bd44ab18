"""Attention ablations against the float64 twin; composed vectors, damage and splits by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import walk
from clew.experiment import verdict
from clew.walk import attention, knowledge, study
from clew.walk.attention import KINDS, visible
from support import make
from twin import softmax, twin
from twin import visible as seen_by_twin

RNG = np.random.default_rng(7)
CONFIGS = {
    "gpt2": clew.ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=10, d_vocab=20),
    "local": clew.ModelConfig(
        n_layers=2, d_model=12, n_heads=2, n_ctx=10, d_vocab=20, attn_types=("local", "global"), window_size=3,
        positional_embedding_type="rotary", normalization_type="RMS", gated_mlp=True, act_fn="silu",
    ),
    "plain": clew.ModelConfig(n_layers=2, d_model=12, n_heads=2, n_ctx=10, d_vocab=20, normalization_type=None),
    "linear": clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=10, d_vocab=20, attention_kind="linear"),
}  # fmt: skip


def causal(scores: Any, seen: Any) -> Any:
    return softmax(np.where(seen, scores, -np.inf))


def changes(config: Any, kind: str, weights: Any, tokens: Any) -> dict[str, Any]:
    """The ablation as edits of the twin."""
    n, out = tokens.shape[1], {}
    for layer in range(config.n_layers):
        seen, at = seen_by_twin(config, layer, n), f"blocks.{layer}."
        if kind == "uniform":
            out[f"{at}attn.hook_pattern"] = lambda x, s=seen: np.broadcast_to(s / s.sum(1, keepdims=True), x.shape)
        elif kind == "frozen":
            other = twin(config, weights, np.roll(tokens, -1, axis=0))[f"{at}attn.hook_pattern"]
            out[f"{at}attn.hook_pattern"] = lambda x, other=other: other
        elif kind == "none":
            out[f"{at}hook_attn_out"] = np.zeros_like
        elif kind == "similarity":
            kept: dict[str, Any] = {}
            reads = f"{at}ln1.hook_out" if config.normalization_type else f"{at}hook_resid_pre"
            divisor = config.attn_scale * np.sqrt(config.d_model / config.d_head)

            def look(x: Any, kept: Any = kept) -> Any:
                kept["x"] = x
                return x

            def weigh(x: Any, kept: Any = kept, seen: Any = seen, divisor: float = divisor) -> Any:
                y = kept["x"]
                return np.broadcast_to(causal(y @ y.swapaxes(1, 2) / divisor, seen)[:, None], x.shape)

            out |= {reads: look, f"{at}attn.hook_pattern": weigh}
    return out


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "bare"])
def test_ablations_are_the_twins(name: str, kind: Any) -> None:
    config = CONFIGS[name]
    model, weights = make(config)
    tokens = RNG.integers(0, 20, (2, 7))
    got = model.run(tokens, edits=walk.ablation(model, kind, tokens)).logits
    want = twin(config, weights, tokens, edits=changes(config, kind, weights, tokens))["logits"]
    np.testing.assert_allclose(got, want, atol=1e-11)
    assert np.abs(got - model.run(tokens).logits).max() > 1e-6  # it changed something


@pytest.mark.parametrize("name", CONFIGS)
def test_the_bare_model_is_its_formula(name: str) -> None:
    """X ← softmax(causal(X Xᵀ)) X, logits X W_U, from the weights alone."""
    config = CONFIGS[name]
    model, weights = make(config)
    tokens = RNG.integers(0, 20, (2, 6))
    x = np.asarray(weights["embed.W_E"])[tokens]
    if config.positional_embedding_type == "standard":
        x = x + np.asarray(weights["pos_embed.W_pos"])[:6]
    for layer in range(config.n_layers):
        x = causal(x @ x.swapaxes(1, 2), seen_by_twin(config, layer, 6)) @ x
    want = x @ np.asarray(weights["unembed.W_U"]) + weights.get("unembed.b_U", 0)
    np.testing.assert_allclose(model.run(tokens, edits=walk.ablation(model, "bare", tokens)).logits, want, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_visible_keys(name: str) -> None:
    config = CONFIGS[name]
    model, _ = make(config)
    for layer in range(config.n_layers):
        np.testing.assert_array_equal(visible(model, layer, 9), seen_by_twin(config, layer, 9))


def test_losses_of_ablations() -> None:
    model, _ = make(CONFIGS["gpt2"])
    tokens = RNG.integers(0, 20, (5, 8))
    found = walk.ablate(model, tokens, at_once=2)
    assert found.loss == pytest.approx(model.loss(tokens, reduce="mean")) and found.n == 5
    for kind in KINDS:
        whole = model.loss(tokens, edits=walk.ablation(model, kind, tokens))
        assert found.ablated[kind] == pytest.approx(whole.mean(), abs=1e-12)
        rises = (whole - model.loss(tokens)).mean(1)
        assert found.rise_error[kind] == pytest.approx(rises.std(ddof=1) / np.sqrt(5), abs=1e-12)
        if kind != "bare":
            one = model.loss(tokens, reduce="mean", edits=walk.ablation(model, kind, tokens, layers=1))
            assert found.by_layer[kind][1] == pytest.approx(one, abs=1e-12)
    assert "bare" not in found.by_layer and len(found.table().splitlines()) == 6
    given = walk.ablate(model, tokens[:1], ["frozen"], other=tokens[1])
    run = model.run(tokens[1], capture="pattern")
    assert given.ablated["frozen"] == pytest.approx(
        model.loss(tokens[:1], reduce="mean", edits=attention.frozen(model, run)), abs=1e-12
    )


def test_ablations_refuse() -> None:
    model, _ = make(CONFIGS["gpt2"])
    for arguments, message in (
        (("half", [[1, 2]]), "kind = 'half': one of 'uniform', 'frozen'"),
        (("uniform", [[1, 2]], 2), "layer 2: the model has layers 0 to 1"),
        (("bare", [[1, 2]], 0), "'bare' is a change of the whole model"),
        (("frozen", [[1, 2]]), "'frozen' needs another prompt"),
        (("uniform", [[0.5]]), r"windows of one length \[window, pos\], not float64"),
    ):
        with pytest.raises(clew.Error, match=message):
            walk.ablation(model, *arguments)
    with pytest.raises(clew.ConfigError, match="'frozen' needs another prompt"):
        walk.ablate(model, [[1, 2]])


# ---- composed vectors -----------------------------------------------------------------------------------------------


def test_proximity_by_definition() -> None:
    model, _ = make(CONFIGS["gpt2"])
    tokens = RNG.integers(0, 20, (6, 8))
    found = walk.proximity(model, tokens, k=3, least=2)
    assert found.logits_error < 1e-12 and found.n == 42
    logits = model.run(tokens).logits[:, :-1].reshape(-1, 20)
    plain = logits - (model.b_U if "unembed.b_U" in model.weights else 0)
    top = np.argsort(-plain, 1, kind="stable")[:, :3]
    assert found.hits["dot"] == pytest.approx((top == tokens[:, 1:].reshape(-1, 1)).any(1).mean())
    walks = [walk.decoding_walk(model, row, k=0) for row in tokens]
    assert found.straightness == pytest.approx(np.mean([w.straightness for w in walks]))
    assert found.step_length == pytest.approx(np.mean([w.step_length.mean() for w in walks]))
    with pytest.raises(clew.TokenError, match="windows of 2 tokens"):
        walk.proximity(model, [[1, 2]])
    with pytest.raises(clew.ConfigError, match="proximity: the model reads and writes different vocabularies"):
        walk.proximity(make(model.config.replace(d_vocab_out=9, tie_word_embeddings=False))[0], tokens)


def test_insertion_finds_what_copies() -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the bundled model has no text")
    found = walk.insertion(clew.load("english"), range(300, 2000), shots=(0, 4), n=24)
    assert found.gain > 3 and found.log_prob[1] > found.log_prob[0] and found.entropy[1] < found.entropy[0]
    assert found.recovered[0] < 0.3 and found.recovered[2] > 0.8  # the heads of layer 1 copy
    assert found.recovered[-1] == pytest.approx(1, abs=1e-3)  # behind the last layer nothing else is left
    assert max(found.shuffled[2], found.other[2]) < 0.2
    assert len(found.table().splitlines()) == 2 + 4


def test_insertion_refuses() -> None:
    model = clew.load("stories260K")
    for arguments, message in (
        ((range(9), (1, 2)), r"shots = \[1, 2\]: 0 and at least one more"),
        ((range(3),), "a pool of 3 tokens"),
        ((range(9), (0, 200)), "prompts of 803 tokens, the context holds 512"),
    ):
        with pytest.raises(clew.Error, match=message):
            walk.insertion(model, *arguments)
    vectors = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_in=2, d_out=1))
    with pytest.raises(clew.UnsupportedModelError, match="must read tokens"):
        walk.insertion(vectors, range(9))
    with pytest.raises(clew.ConfigError, match="vectors"):
        walk.dose_response(vectors, [[1, 2]])
    with pytest.raises(clew.ConfigError, match="must read tokens"):
        walk.experiment(vectors)


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_rows_change_places_within_bands() -> None:
    counts = RNG.integers(0, 9, 200)
    bins = knowledge.frequency_bins(counts, 4)
    assert (counts[bins == 0] == 0).all() and (counts[bins > 0] > 0).all()
    assert all(counts[bins == b].max() <= counts[bins == b + 1].min() for b in (1, 2, 3))
    for share in (0.0, 0.3, 1.0):
        moved = knowledge.permuted_rows(bins, share, np.random.default_rng(0))
        assert sorted(moved) == list(range(200)) and (bins[moved] == bins).all()
        changed = (moved != np.arange(200)).sum()
        assert changed == sum(round(share * n) for n in np.bincount(bins))
    small = np.repeat([0, 1, 2], [12, 9, 1])  # a tenth of them is one, which cannot change places alone
    moved = knowledge.permuted_rows(small, 0.1, np.random.default_rng(0))
    assert [(moved != np.arange(22))[small == band].sum() for band in range(3)] == [2, 2, 0]
    with pytest.raises(clew.ConfigError, match="share = 2"):
        knowledge.permuted_rows(bins, 2, np.random.default_rng(0))


def test_damage_is_what_it_says() -> None:
    """Against models whose weights were changed, and means put in by hand."""
    config = clew.ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=10, d_vocab=40)
    model, weights = make(config)
    tokens = RNG.integers(0, 40, (3, 8))
    found = walk.dose_response(model, tokens, doses=(0.5, 1.0), draws=1, seed=4)
    assert found.loss == pytest.approx(model.loss(tokens, reduce="mean")) and found.parameters.tolist() == [240, 480]
    bins = knowledge.frequency_bins(np.bincount(tokens.reshape(-1), minlength=40))
    moved = knowledge.permuted_rows(bins, 0.5, np.random.default_rng([4, 0]))
    logits = twin(config, weights | {"embed.W_E": np.asarray(weights["embed.W_E"])[moved]}, tokens)["logits"]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1).mean()
    assert found.rises["rows permuted"][0] == pytest.approx(loss - found.loss, abs=1e-11)
    # 240 parameters: 10 neurons of 24, or one head of 4 · 12 · 4 = 192; 480: two heads
    assert found.touched["neurons, top"].tolist() == [10, 20] and found.touched["heads, top"].tolist() == [1, 2]
    assert np.isnan(found.rises["blocks, top"]).all() and found.touched["blocks, top"].tolist() == [0, 0]
    run = model.run(tokens, capture="z")
    rises = []
    for layer in range(2):
        for head in range(3):
            mean = run["z", layer][:, :, head].mean((0, 1))
            edits = clew.edit.set(("z", layer), mean, heads=[head])
            rises.append(model.loss(tokens, reduce="mean", edits=edits) - found.loss)
    assert min(abs(found.rises["heads, top"][0] - r) for r in rises) < 1e-12
    assert found.errors["heads, top"].tolist() == [0, 0] and len(found.table().splitlines()) == 9
    with pytest.raises(clew.ConfigError, match=r"doses = \[0.0\]: above 0, at most 1"):
        walk.dose_response(model, tokens, doses=0)


def test_first_order_attribution_foretells_small_changes() -> None:
    model, _ = make(CONFIGS["gpt2"])
    tokens = RNG.integers(0, 20, (2, 6))
    means = knowledge._Means(model, tokens)
    value, step = model.run(tokens, capture="z")["z", 1], 1e-5
    moved = value + step * (means.mean["z", 1] - value)
    changed = model.loss(tokens, edits=clew.edit.set(("z", 1), moved[:, :, [2]], heads=[2])) - model.loss(tokens)
    assert changed.mean() == pytest.approx(step * means.attribution["z"][1, 2], rel=1e-3)


# ---- the whole experiment -------------------------------------------------------------------------------------------


def test_stored_measurements() -> None:
    found = walk.stored_trainings()
    assert found.loss.shape == found.purity.shape == (6, 3) and found.curve.shape[:2] == (6, 3)
    np.testing.assert_allclose(found.curve[..., -1], found.loss, atol=1e-3)
    assert np.allclose(found.alike, found.alike.T, equal_nan=True) and (found.runs == 3).all()
    assert len(found.table().splitlines()) == 7
    assert found.curve[0, 0, 0] == pytest.approx(np.log(1024), abs=0.2)  # before training: about uniform
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the bundled model has no text")
    stored = walk.stored_semantics(clew.load("english"))
    assert stored is not None and len(stored["word_similarity"]) == 28
    for row in stored["word_similarity"]:
        low, high = row["interval"]
        assert -1 <= low <= row["rho"] <= high <= 1 and 0 < row["n"] <= row["total"], row["name"]
    schemes = ("concat_each_example", "segment_each_example", "sentence_level")
    for key, shots, more in (("hellaswag", 0, schemes[2:]), ("hellaswag_one_shot", 1, schemes)):
        found_shares = stored[key]  # of tasks that the model never saw
        shares = found_shares["accuracy"]
        names = {test + end for test in ("generation", "similarity") for end in ("", *(f", {s}" for s in more))}
        assert set(shares) == set(found_shares["used"]) == names | {"cross_encoding", "ending_only", "mismatched"}
        assert (found_shares["tasks"], found_shares["shots"]) == (1000, shots)
        assert all(0 < low <= share <= high < 1 for share, low, high in shares.values())
        for name in names:  # paired: on the tasks that both could read
            assert found_shares[name]["baseline"] == shares["cross_encoding"][0]
            assert found_shares[name]["n"] == found_shares["used"]["cross_encoding"] <= found_shares["used"][name]
    assert stored["hellaswag"]["used"]["cross_encoding"] == 1000
    assert stored["hellaswag_one_shot"]["used"]["cross_encoding"] == 545  # one example and the question in 256 tokens
    assert walk.stored_semantics(clew.Model.from_config(clew.load("english").config, seed=0)) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("training.json", "{", r"training.json: no measurements: "),
        ("training.json", "[]", r"training.json: no measurements: no object"),
        ("training.json", "{}", r"training.json: no measurements of trainings: KeyError\('runs'\)"),
        ("training.json", None, r"training.json: no measurements: .*No such file"),
        ("semantics.json", "{}", r"semantics.json: no measurements of models: KeyError\('models'\)"),
        (
            "semantics.json",
            '{"models": {"x": {}}}',
            r"semantics.json: no measurements of models: KeyError\('identity'\)",
        ),
        ("semantics.json", '{"models": 1}', r"semantics.json: no measurements of models: AttributeError"),
    ],
)
def test_stored_files_that_are_none(
    name: str, content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clew.walk.stored.FOLDER", tmp_path)
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(clew.LoadError, match=message):
        walk.stored_trainings() if name == "training.json" else walk.stored_semantics(clew.load("stories260K"))


def test_choices_are_judged_by_their_interval() -> None:
    """Half of what the baseline has above chance is the mark; an interval around it decides nothing."""
    unknown, undecided = (float("nan"), float("nan")), "not testable on this model"
    told: list[tuple[Any, ...]] = []

    def record(*claim: Any) -> None:
        told.append(claim)

    for corrected, interval, want in (
        (0.8, (0.6, 0.9), "holds"), (0.3, (0.1, 0.45), "does not hold"), (0.3, (0.1, 0.7), undecided),
        (0.8, (0.4, 1.1), undecided), (None, unknown, undecided),
    ):  # fmt: skip
        one = walk.Comparison(0.4, 0.6, 200, 0.7, (0.5, 0.9), corrected, interval, -0.2, (-0.3, -0.1), 0.25, 0.4)
        study._claim_choices(record, study.MultipleChoice({}, one, one, 200), None)
        assert [verdict(claim[3]) for claim in told[-2:]] == [want, want]
        assert ("do not set apart" in told[-1][2]) == (corrected is not None and want == undecided)


def test_experiment_on_a_model_without_text() -> None:
    found = walk.experiment(clew.load("stories260K"), seed=3)
    assert found.paper == 1 and len(found.claims) == 14 and found.seed == 3
    verdicts = {c.text: c.verdict for c in found.claims}
    assert list(verdicts.values()).count("not testable on this model") >= 4
    data = found.to_json()
    assert data["numbers"]["choices"] is None and data["numbers"]["splits"]["errors"]
    assert "decoding walk" in found.details()
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert {c.figure for c in found.claims} - {None} <= set(found.figures())
