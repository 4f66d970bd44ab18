"""Models that read or write vectors: against the twin, saved and loaded, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import ModelConfig
from support import assert_close, make, relative_error, with_positions
from twin import twin
from zoo import random_inputs, vector_zoo

ZOO = vector_zoo()
EXACT = 1e-12


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 70)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_every_site_equals_the_twin(name: str, shape: tuple[int, int]) -> None:
    config = with_positions(ZOO[name], shape[1])
    model, weights = make(config)
    inputs = random_inputs(config, 5, *shape)
    want = twin(config, weights, inputs)
    everything = model.run(inputs, capture="*")
    assert set(everything) == set(want) == set(model.sites())
    assert_close(everything, want, EXACT)
    assert relative_error(model.run(inputs).logits, want["logits"]) <= EXACT
    assert relative_error(model.run(inputs, logits="last").logits, want["logits"][:, -1:]) <= EXACT
    for site in ("hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre"):  # each of them alone takes another way
        if site in want:
            assert_close(model.run(inputs, capture=site), want, EXACT, [site])


@pytest.mark.parametrize("name", ["vectors", "vectors_no_positions"])
def test_captured_embedding_is_not_written_over(name: str) -> None:
    model, weights = make(ZOO[name])
    inputs = random_inputs(ZOO[name], 3)
    want = twin(ZOO[name], weights, inputs)
    capture = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]
    assert_close(
        model.run(inputs, capture=capture, positions=[0, -1]), {k: want[k][:, [0, -1]] for k in capture}, EXACT
    )
    assert_close(model.run(inputs, capture=capture), want, EXACT, capture)


def test_editing_the_residual_leaves_the_captured_embedding() -> None:
    model, weights = make(ZOO["vectors_no_positions"])
    x = random_inputs(model.config, 3)
    run = model.run(
        x, capture=["hook_embed", "blocks.0.hook_resid_pre"], edits=clew.edit.zero("blocks.0.hook_resid_pre")
    )
    assert relative_error(run["hook_embed"], x @ weights["embed.W_E"]) <= EXACT
    assert not run["blocks.0.hook_resid_pre"].any()
    gone = model.run(x, capture="blocks.0.hook_resid_pre", edits=clew.edit.zero("hook_embed"))
    assert not gone["blocks.0.hook_resid_pre"].any()


def test_ragged_and_float32() -> None:
    config = ZOO["vectors"]
    model, weights = make(config)
    long, short = random_inputs(config, 1, 1, 9)[0], random_inputs(config, 2, 1, 4)[0]
    run = model.run([long, short], capture="z")
    assert run.lengths.tolist() == [9, 4] and run.tokens is None
    assert relative_error(run.logits[1, :4], twin(config, weights, short[None])["logits"][0]) <= EXACT
    assert not run.logits[1, 4:].any()
    single, _ = make(config, dtype=np.float32)
    assert relative_error(single.run(long).logits, twin(config, weights, long[None])["logits"]) < 1e-5


def test_embeddings_replace_the_product() -> None:
    config = ZOO["vectors"]
    model, weights = make(config)
    x = random_inputs(config, 1)
    embedded = x @ weights["embed.W_E"]
    assert relative_error(model.run(embeddings=embedded).logits, model.run(x).logits) <= EXACT
    resid = model.run(x, capture="resid_post.0")["resid_post.0"]
    again = model.run(embeddings=resid, start_at_layer=1)
    assert relative_error(again.logits, model.run(x).logits) <= EXACT


@pytest.mark.parametrize("name", ZOO)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    model = clew.Model.from_config(ZOO[name], seed=2)
    model.save(tmp_path)
    again = clew.load(tmp_path)
    assert again.config == model.config
    inputs = random_inputs(ZOO[name], 4)
    np.testing.assert_array_equal(again.run(inputs).logits, model.run(inputs).logits)


def test_what_it_looks_like() -> None:
    model = clew.Model.from_config(ZOO["vectors"])
    assert "vectors of 5" in repr(model) and "vectors of 3" in repr(model) and "vocabulary" not in repr(model)
    assert model.config.d_vocab == 5 and model.config.d_vocab_out == 3
    assert model.W_E.shape == (5, 20) and model.W_U.shape == (20, 3)
    assert model.plan(batch=2, pos=4).sites["logits"] == (2, 4, 3)


BASE: dict[str, Any] = dict(n_layers=1, d_model=8, n_heads=2, n_ctx=8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(d_in=3), ["d_in = 3", "d_out", "d_vocab_out"]),
        (dict(d_in=3, d_out=0), ["d_out = 0"]),
        (dict(d_in=2.5, d_out=1), ["d_in = 2.5"]),
        (dict(d_in=3, d_out=1, d_vocab=4), ["d_vocab = 4", "d_in = 3"]),
        (dict(d_vocab=4, d_out=1, d_vocab_out=2), ["d_vocab_out = 2", "d_out = 1"]),
        (dict(d_in=3, d_out=3, tie_word_embeddings=True), ["tied", "d_in = 3"]),
        (dict(), ["d_vocab", "d_in"]),
    ],
)
def test_configurations_that_contradict_themselves(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(clew.ConfigError) as error:
        ModelConfig(**BASE, **fields)
    for word in words:
        assert word in str(error.value)


def test_wrong_inputs_name_both_shapes() -> None:
    model = clew.Model.from_config(ModelConfig(**BASE, d_in=3, d_out=1))
    with pytest.raises(clew.ShapeError, match=r"\[4, 2\], expected \[pos, 3\]"):
        model.run(np.zeros((2, 4, 2)))
    with pytest.raises(clew.ShapeError, match=r"input vectors \[3\]: expected \[batch, pos, 3\]"):
        model.run(np.zeros(3))
    with pytest.raises(clew.ShapeError, match="real numbers, not complex128"):
        model.run(np.zeros((1, 2, 3), complex))
    with pytest.raises(clew.ShapeError, match="vectors of 3 values, not text"):
        model.run("text")
    with pytest.raises(clew.ConfigError, match=r"input vectors: the value 1e\+300 is beyond the model's float32"):
        model.run(np.full((1, 2, 3), 1e300))
    with pytest.raises(clew.ConfigError, match=r"embeddings: the value 1e\+300 is beyond the model's float32"):
        model.run(embeddings=np.full((1, 2, model.config.d_model), 1e300))
    with pytest.raises(clew.TokenError, match="prompt 1 is empty"):
        model.run([np.zeros((2, 3)), np.zeros((0, 3))])
    with pytest.raises(clew.TokenError, match="9"):
        model.run(np.zeros((1, 9, 3)))
    with pytest.raises(clew.ConfigError, match="d_in = 3, d_out = 1"):
        model.loss(np.zeros((1, 4, 3)))
    with pytest.raises(clew.TokenError, match="nothing to run"):
        model.run()
