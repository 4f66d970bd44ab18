"""Arguments of the wrong kind: clew's own errors name them, and say what would do."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import demo, edit, lens, metrics, plot, train, walk

MODEL = clew.load("shakespeare")
CONFIG = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=16, d_vocab=50)
IDS = np.arange(200) % 50


def tiny(**more: Any) -> clew.Model:
    return clew.Model.from_config(CONFIG.replace(**more) if more else CONFIG)


# ---- Settings -------------------------------------------------------------------------------------------------------


def test_fields_that_a_configuration_does_not_have() -> None:
    with pytest.raises(clew.ConfigError, match=r"^ModelConfig: no field 'n_head'; nearest: n_heads, d_head$"):
        clew.ModelConfig(n_layers=1, d_model=8, n_head=2, n_ctx=16, d_vocab=50)  # type: ignore[call-arg]
    with pytest.raises(clew.ConfigError, match="no field 'n_layer'; nearest: n_layers"):
        CONFIG.replace(n_layer=3)
    with pytest.raises(clew.ConfigError, match=r"^ModelConfig: no field 'zzz'$"):
        CONFIG.replace(zzz=3)
    assert "n_heads: 'int'" in str(inspect.signature(clew.ModelConfig))  # help still lists the fields
    assert pickle.loads(pickle.dumps(CONFIG)) == copy.deepcopy(CONFIG) == CONFIG


def test_settings_that_training_does_not_have() -> None:
    with pytest.raises(clew.ConfigError, match=r"fit: no setting 'save_every'; nearest: eval_every; clew\.train\.Tr"):
        train.fit(tiny(), IDS, steps=1, batch=1, save_every=10)
    with pytest.raises(clew.ConfigError, match=r"fit: no setting 'learning_rate'; here it is lr; clew\.train\.Trainer"):
        train.fit(tiny(), IDS, steps=1, batch=1, learning_rate=0.1)
    with pytest.raises(clew.ConfigError, match=r"fit: no setting 'epochs'; here it is steps, batches in all; clew"):
        train.fit(tiny(), IDS, steps=1, batch=1, epochs=3)
    assert set(train.trainer._ELSEWHERE).isdisjoint(inspect.signature(train.Trainer).parameters)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"directory": 5}, "directory: a path, not int"),
        ({"decay": 3}, "decay: names, globs or a function of a name, not int"),
        ({"resume": "no"}, "resume = 'no': True or False"),
        ({"recompute": np.array([1, 2])}, "recompute = .*: True, False or None"),
        ({"progress": np.array([1, 2])}, 'progress = .*: True, False or "lines"'),
    ],
)
def test_settings_of_training(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(clew.ConfigError, match=message):
        train.Trainer(tiny(), IDS, 1, 1, **settings)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for call in (
        lambda path: train.Trainer(tiny(), IDS, 1, 1, directory=path),
        lambda path: demo.main(path),
    ):
        with pytest.raises(clew.ConfigError, match="file is a file, not a folder"):
            call(tmp_path / "file")
    for call in (train.load_model, lambda path: tiny().save(path)):
        with pytest.raises(clew.ConfigError, match="path: a path, not int"):
            call(5)  # type: ignore[arg-type]


# ---- Data -----------------------------------------------------------------------------------------------------------


def test_data_that_is_none() -> None:
    for call in (lambda: train.Trainer(5, IDS, 1, 1), lambda: train.evaluate(5, [1, 2])):  # type: ignore[arg-type]
        with pytest.raises(clew.ConfigError, match="model: a Model, such as clew.load gives, not int"):
            call()
    with pytest.raises(clew.ShapeError, match=r"a tuple of 4, expected \(tokens, targets\) or \(tokens, targets, loss"):
        train.Trainer(tiny(), ([1], [2], [3], [4]), 1, 1)
    with pytest.raises(clew.ShapeError, match="Examples: tokens must be a list or an array of sequences, not int"):
        train.evaluate(tiny(), 5)
    with pytest.raises(clew.ShapeError, match="Examples: targets must be a list or an array of sequences, not float"):
        train.Examples([[1, 2]], 0.5)
    with pytest.raises(clew.ConfigError, match="context = '5': expected a whole number"):
        train.Windows(IDS, "5")  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match='order = .*: "random" or "shuffle"'):
        train.Windows(IDS, 5, order=np.array(["a", "b"]))  # type: ignore[arg-type]
    with pytest.raises(clew.ShapeError, match="Sequences: targets: a list or an array, one for each sequence, not 5"):
        train.Sequences([[1, 2]], targets=5)
    with pytest.raises(clew.ConfigError, match=r"Generated: a function f\(rng, size\), not int"):
        train.Generated(5)  # type: ignore[arg-type]


def test_examples_and_curves_show_themselves_in_a_few_words() -> None:
    tokens = np.zeros((300, 50), int)
    assert repr(train.Examples(tokens, tokens)) == "Examples(tokens [300, 50], targets [300, 50], loss_mask = None)"
    curve = train.fit(tiny(), IDS, steps=40, batch=2, held_out=IDS, eval_every=20, progress=False)
    first, last = curve.losses[[0, -1]]
    least = f"3 held-out losses, least {curve.best[1]:.4g} at step {curve.best[0]}"
    assert repr(curve) == f"Curve of 40 steps: loss {first:.4g} first, {last:.4g} last; {least}"
    assert repr(train.Curve()) == "Curve of 0 steps"  # type: ignore[attr-defined]


def test_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    own = clew.Model.from_config(CONFIG.replace(d_vocab=1024, d_vocab_out=1024), tokenizer=MODEL)
    train.fit(own, "My lord, I pray thee tell me where the king doth lie. " * 3, steps=2, batch=1, progress=False)
    own.save(tmp_path)
    again = clew.load(tmp_path)
    assert (again.to_tokens("My lord") == MODEL.to_tokens("My lord")).all()
    assert np.array_equal(again.run("My lord").logits, own.run("My lord").logits)
    with pytest.raises(clew.ConfigError, match="tokenizer: 1024 ids, but d_vocab = 50"):
        clew.Model.from_config(CONFIG, tokenizer=MODEL)
    with pytest.raises(clew.ConfigError, match="tokenizer: a Model whose tokenizer is taken, not "):
        clew.Model.from_config(CONFIG, tokenizer=MODEL.tokenizer)  # type: ignore[arg-type]
    with pytest.raises(clew.TokenError, match="no tokenizer"):
        clew.Model.from_config(CONFIG, tokenizer=tiny())


# ---- Names ----------------------------------------------------------------------------------------------------------


def test_arrays_and_texts_in_the_place_of_names() -> None:
    names = np.array(["z"])
    assert names not in MODEL.weights and np.array(1) not in MODEL.weights and "embed.W_E" in MODEL.weights
    assert (MODEL.run([1, 2], capture=np.array(["z.0"]))["z", 0] == MODEL.run([1, 2], capture="z.0")["z", 0]).all()
    for wrong in (names, [names], (names, 0)):
        with pytest.raises(clew.SiteError, match="is no name of a capture site"):
            MODEL.run([1, 2], capture="z")[wrong]  # type: ignore[index]
    with pytest.raises(clew.SiteError, match="is no weight of this model: weights have names"):
        MODEL.weights[np.array(1)]  # type: ignore[index]
    with pytest.raises(
        clew.TokenError, match=r"token a must be a token id, not a text: model\.to_single_token\(' lord'\) gives it"
    ):
        metrics.logit_diff(" lord", " king")
    words = np.array(["patch", "noise"])
    for more, message in (({"method": words}, '"patch" or "attribution"'), ({"direction": words}, '"denoise" or')):
        with pytest.raises(clew.ConfigError, match=message):
            MODEL.sweep([1, 2], [1, 3], metric=metrics.log_prob(3), **more)
    with pytest.raises(clew.ConfigError, match=r"evaluate: test = array\(.*: one of 'cross_encoding', "):
        walk.choice.Settings(test=words)  # type: ignore[arg-type]


def test_arrays_in_the_place_of_words() -> None:
    words: Any = np.array(["QK", "VO"])
    for call in (
        lambda: MODEL.run([1, 2], capture=["embed", "resid_post", "attn_out"]).decompose_resid(mode=words),
        lambda: clew.direct_logit_attribution(MODEL, [1, 2], 3, by=words),
        lambda: clew.geometry.nearest(MODEL, MODEL.W_E[:1], of=words),
        lambda: walk.token_table(MODEL, words),
        lambda: walk.token_table(MODEL, "W_E", words),
    ):
        with pytest.raises(clew.ConfigError, match=r"(mode|by|of|space) = array\(\['QK', 'VO'\]"):
            call()


# ---- Figures --------------------------------------------------------------------------------------------------------


def test_figures_of_what_is_none() -> None:
    for function, message in (
        (plot.sweep, "result: a Sweep, such as model.sweep gives"),
        (plot.lens_table, "lens: a LogitLens, such as clew.lens.logit_lens gives"),
        (plot.residual_norms, "run: a Run, such as model.run gives"),
        (plot.loss_curve, "curve: a Curve, such as clew.train.fit gives"),
        (plot.label, "token: a token's text"),
        (lambda x: plot.token_labels(x, [1]), "model: a Model, such as clew.load gives"),
        (lambda x: plot.attention(np.eye(3), ax=x), "ax: a matplotlib Axes"),
        (lambda x: plot.attention(np.eye(3), x), "labels: a text for each position"),
    ):
        with pytest.raises(clew.ConfigError, match=f"{message}, not int"):
            function(3)  # type: ignore[operator]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308, -1e308])
def test_weights_that_have_no_colour(value: float) -> None:
    with pytest.raises(clew.ConfigError, match=r"pattern holds \S+: weights must be finite, and below 1e"):
        plot.attention([[1.0, 0.0], [value, 0.0]])


def test_numbers_of_figures() -> None:
    with pytest.raises(clew.ConfigError, match="labels: a text for each position, not int"):
        plot.attention(np.eye(2), [1, 2])  # type: ignore[list-item]
    curve = train.fit(tiny(), IDS, steps=2, batch=1, progress=False)
    for smooth in (np.nan, "z", 1.5):
        with pytest.raises(clew.ConfigError, match="loss_curve: smooth = .*: expected a whole number"):
            plot.loss_curve(curve, smooth=smooth)  # type: ignore[arg-type]
    for k in (np.inf, "z", True):
        with pytest.raises(clew.ConfigError, match="k = .*: expected a whole number"):
            walk.purity_of_tokens(MODEL, k=k)  # type: ignore[arg-type]


def test_a_sweep_over_edits_is_drawn() -> None:
    for n in (1, 3):
        found = MODEL.sweep([1, 2, 3], edits=[edit.zero(f"z.{i}") for i in range(n)], metric=metrics.log_prob(5))
        (axes,) = plot.sweep(found).axes
        assert axes.get_xlabel() == "variant" and axes.get_title() == "Edits"
        assert axes.lines[1].get_ydata().tolist() == found.effect.tolist()


# ---- Lenses ---------------------------------------------------------------------------------------------------------


def test_lenses_of_what_is_none(tmp_path: Path) -> None:
    tuned = lens.TunedLens.fit(MODEL, ["My lord, I pray thee."])
    for call in (tuned.save, lambda path: lens.TunedLens.load(path, MODEL)):
        with pytest.raises(clew.ConfigError, match="path: a path, not int"):
            call(5)
    for call in (
        lambda no: lens.logit_lens(no, "My lord"),
        lambda no: lens.TunedLens.fit(no, ["My lord"]),
        lambda no: lens.TunedLens.load(tmp_path / "lens", no),
    ):
        with pytest.raises(clew.ConfigError, match="model: a Model, such as clew.load gives, not int"):
            call(5)
    for more, message in (({"ridge": "x"}, "ridge = 'x': expected a finite number"), ({"steps": 1.5}, "steps = 1.5")):
        with pytest.raises(clew.ConfigError, match=message):
            lens.TunedLens.fit(MODEL, ["My lord"], **more)
    with pytest.raises(clew.ConfigError, match='direction = .*: "denoise" or "noise"'):
        MODEL.path_patch(
            [1, 2], [1, 3], receivers=[("q_input", 3, 0)], metric=metrics.log_prob(3), direction=np.array(["a", "b"])
        )
