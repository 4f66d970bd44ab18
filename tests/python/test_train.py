"""train_step: targets, masks, accumulation, vectors, what it learns, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core, train
from clew.train import Examples, evaluate
from clew.train.step import gradients_for, loss_and_gradients, loss_of, pack
from support import make, relative_error, run_python
from test_train_adamw import copies, numpy_adamw
from zoo import random_inputs, random_tokens, vector_zoo, zoo

ZOO = zoo()
VECTORS = vector_zoo()
Array = Any


def start(name: str, dtype: Any = np.float64, **settings: Any) -> tuple[clew.Model, clew.AdamW]:
    model, _ = make((ZOO | VECTORS)[name], dtype=dtype)
    return model, clew.AdamW(model, **{"lr": 0.01, **settings})


def plain_loss(model: clew.Model, inputs: Any, targets: Array, weights: Array) -> float:
    """Weighted mean of cross-entropies or squared errors, from logits."""
    logits = model.run(inputs).logits.astype(np.float64)
    if model.config.d_out is not None:
        each = ((logits - targets) ** 2).mean(axis=-1)
    else:
        each = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return float((each * weights).sum() / weights.sum())


# ---- Gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VECTORS, "gpt2", "gemma2", "llama3"])
def test_gradients_of_masked_losses_by_differences(name: str) -> None:
    """Along a random direction of each weight, in double: what the step goes along is the derivative of the loss."""
    model, optimizer = start(name)
    config, rng = model.config, np.random.default_rng(1)
    inputs = random_inputs(config, 2, 2, 6)
    targets = rng.standard_normal((2, 6, config.d_out)) if config.d_out else rng.integers(0, config.d_vocab_out, (2, 6))
    weights = rng.random((2, 6)) * (rng.random((2, 6)) > 0.3)
    loss, gradients = loss_and_gradients(optimizer, pack(model, Examples(inputs, targets, weights)))
    assert loss == pytest.approx(plain_loss(model, inputs, targets, weights), rel=1e-12)
    largest = max(float(np.abs(g).max()) for g in gradients.values())
    for weight, value in model._make_trainable().items():
        if weight == "unembed.W_U" and config.tie_word_embeddings:
            continue
        direction = rng.standard_normal(value.shape)
        direction /= np.linalg.norm(direction)
        before, slopes = value.copy(), []
        for h in (1e-3, 5e-4):
            value[...] = before + h * direction
            above = plain_loss(model, inputs, targets, weights)
            value[...] = before - h * direction
            slopes.append((above - plain_loss(model, inputs, targets, weights)) / (2 * h))
        value[...] = before
        slope = (4 * slopes[1] - slopes[0]) / 3
        assert (gradients[weight] * direction).sum() == pytest.approx(slope, abs=1e-6 * largest), weight


# ---- Losses and targets ----------------------------------------------------------------------------------------


def test_without_targets_the_next_token_is_one() -> None:
    tokens = random_tokens(ZOO["gpt2"], 3, 3, 7)
    model, optimizer = start("gpt2")
    expected = model.loss(tokens, reduce="mean")
    for flags in ({"accumulate": "no"}, {"recompute": None}):
        with pytest.raises(clew.ConfigError, match=f"{next(iter(flags))} = .*: True or False"):
            model.train_step(tokens, optimizer=optimizer, **flags)
    with pytest.raises(clew.ConfigError, match="path = '': an empty path"):
        model.save("")
    assert model.train_step(tokens, optimizer=optimizer) == pytest.approx(expected, rel=1e-12)
    other, again = start("gpt2")
    mask = np.ones((3, 7), bool)
    mask[:, -1] = False
    shifted = np.roll(tokens, -1, axis=1)
    shifted[:, -1] = -5  # where the mask is 0 nothing is read
    assert other.train_step(tokens, shifted, mask, optimizer=again) == pytest.approx(expected, rel=1e-12)
    for name, array in copies(model).items():
        assert np.array_equal(array, other.weights[name]), name


def test_ragged_batches_equal_their_sequences() -> None:
    tokens = random_tokens(ZOO["llama3"], 3, 1, 9)[0]
    rows = [tokens, tokens[:4], tokens[2:3], tokens[3:8]]  # the third has no next token
    model, optimizer = start("llama3")
    losses = [(float(model.loss(r, reduce="mean")), len(r) - 1) for r in rows if len(r) > 1]
    expected = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    assert model.train_step([r.tolist() for r in rows], optimizer=optimizer) == pytest.approx(expected, rel=1e-12)
    # masks and targets as lists, or padded
    model, optimizer = start("llama3")
    targets = [np.roll(r, -1) for r in rows]
    padded, mask = np.full((4, 9), 99), np.ones((4, 9))
    for i, r in enumerate(targets):
        padded[i, : len(r)] = r
        mask[i, len(r) - 1] = 0
    one = model.train_step([r.tolist() for r in rows], padded, mask, optimizer=optimizer, accumulate=True)
    two = model.train_step(
        rows, targets, [mask[i, : len(r)] for i, r in enumerate(rows)], optimizer=optimizer, accumulate=True
    )
    assert one == two == pytest.approx(expected, rel=1e-12)


def test_loss_mask_chooses_and_weighs() -> None:
    tokens = random_tokens(ZOO["one_head"], 3, 2, 6)
    model, optimizer = start("one_head")
    each = model.loss(tokens)
    mask = np.random.default_rng(0).random((2, 6))
    mask[0, :3] = 0
    expected = (each * mask[:, :-1]).sum() / mask[:, :-1].sum()
    assert model.train_step(tokens, None, mask, optimizer=optimizer, accumulate=True) == pytest.approx(expected)
    assert optimizer.accumulated == pytest.approx(mask[:, :-1].sum())
    only = np.zeros((2, 6), bool)
    only[1, 2] = True
    assert model.train_step(tokens, None, only, optimizer=optimizer) == pytest.approx(each[1, 2], rel=1e-12)


def test_what_is_masked_has_no_influence() -> None:
    tokens = random_tokens(ZOO["gpt2"], 3, 2, 8)
    mask = np.zeros((2, 8))
    mask[:, 2] = 1  # causal: what comes behind position 3 does not matter
    results = []
    for change in (0, 5):
        model, optimizer = start("gpt2")
        changed = tokens.copy()
        changed[:, 4:] = (changed[:, 4:] + change) % 31
        model.train_step(changed, None, mask, optimizer=optimizer)
        results.append(copies(model))
    for name, array in results[0].items():
        np.testing.assert_allclose(array, results[1][name], rtol=1e-13, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("name", ["gpt2", "vectors"])
def test_micro_batches_equal_the_large_batch(name: str) -> None:
    config = (ZOO | VECTORS)[name]
    rng = np.random.default_rng(1)
    inputs = random_inputs(config, 3, 5, 6)
    targets = rng.standard_normal((5, 6, config.d_out)) if config.d_out else None
    mask = (rng.random((5, 6)) > 0.4).astype(float)  # micro-batches have unequal numbers of targets
    (one, a), (many, b) = start(name, clip=0.1), start(name, clip=0.1)
    for _ in range(3):
        whole = one.train_step(inputs, targets, mask, optimizer=a)
        losses, counts = [], []
        for first, last in ((0, 1), (1, 4), (4, 5)):
            part = slice(first, last)
            own = None if targets is None else targets[part]
            counts.append(pack(many, Examples(inputs[part], own, mask[part])).total)
            losses.append(many.train_step(inputs[part], own, mask[part], optimizer=b, accumulate=last < 5))
            assert b.steps == a.steps - (last < 5)
        assert np.dot(losses, counts) / sum(counts) == pytest.approx(whole, rel=1e-12)
    assert len(set(counts)) > 1
    for weight, array in one.weights.items():
        np.testing.assert_allclose(many.weights[weight], array, rtol=1e-9, atol=1e-11, err_msg=weight)


def test_three_steps_equal_numpy_along_their_own_gradients() -> None:
    model, optimizer = start("gpt2", clip=0.5, weight_decay=0.2, lr=0.05)
    before, gradients = copies(model), []
    for step in range(3):
        tokens = random_tokens(model.config, step, 2, 8)
        _, g = loss_and_gradients(optimizer, pack(model, Examples(tokens)))
        gradients.append({name: g[name].copy() for name in optimizer.names})
        model.train_step(tokens, optimizer=optimizer)
    want = numpy_adamw(
        {n: before[n] for n in optimizer.names}, gradients, set(optimizer.decays),
        lr=0.05, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.2, clip=0.5,
    )  # fmt: skip
    for name, value in want.items():
        assert relative_error(model.weights[name], value) < 1e-12


def test_vectors_learn_a_linear_map() -> None:
    config = clew.ModelConfig(n_layers=1, d_model=16, n_heads=2, n_ctx=8, d_in=3, d_out=2, normalization_type=None)
    model = clew.Model.from_config(config, seed=1)
    optimizer = clew.AdamW(model, lr=1e-2, weight_decay=0.0)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((3, 2))
    losses = []
    for _ in range(150):
        x = rng.standard_normal((8, 4, 3))
        losses.append(model.train_step(x, x @ matrix, optimizer=optimizer))
    assert losses[0] > 0.2 and np.mean(losses[-10:]) < 1e-3
    x = rng.standard_normal((8, 4, 3))
    assert evaluate(model, Examples(x, x @ matrix))[0] == pytest.approx(
        float(((model.run(x).logits - x @ matrix) ** 2).mean()), rel=1e-5
    )


def test_tokens_to_vectors_and_vectors_to_logits() -> None:
    model, optimizer = start("tokens_to_vectors")
    tokens = random_tokens(model.config, 1, 2, 4)
    targets = np.ones((2, 4, 4))
    expected = float(((model.run(tokens).logits - 1) ** 2).mean())
    assert loss_of(model) == "mse"
    assert model.train_step(tokens, targets, optimizer=optimizer) == pytest.approx(expected, rel=1e-12)
    model, optimizer = start("vectors_to_logits")
    x = random_inputs(model.config, 1, 2, 4)
    ids = np.full((2, 4), 8)
    expected = plain_loss(model, x, ids, np.ones((2, 4)))
    assert loss_of(model) == "cross_entropy"
    assert model.train_step(x, ids, optimizer=optimizer) == pytest.approx(expected, rel=1e-12)


# ---- Determinism -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "vectors_rotary"])
def test_twice_the_same_bits_for_any_number_of_threads(name: str) -> None:
    results = []
    for threads in (1, 2, 3, 2):
        clew.set_num_threads(threads)
        model, optimizer = start(name, np.float32, clip=1.0)
        rng = np.random.default_rng(4)
        losses = []
        for step in range(3):
            inputs = random_inputs(model.config, step, 4, 12)
            targets = None
            if model.config.d_out:
                targets = rng.standard_normal((4, 12, model.config.d_out))
            losses.append(model.train_step(inputs, targets, optimizer=optimizer))
        results.append((losses, copies(model)))
    for losses, weights in results[1:]:
        assert losses == results[0][0]
        for weight, array in weights.items():
            assert np.array_equal(array, results[0][1][weight]), weight


def test_learns_to_copy() -> None:
    """Random tokens that come twice: a two-layer model finds the first copy. Chance is ln 16 = 2.77."""
    config = clew.ModelConfig(
        n_layers=2, d_model=32, n_heads=4, n_ctx=16, d_vocab=16, normalization_type="RMS", attn_only=True,
        positional_embedding_type="rotary",
    )  # fmt: skip
    model = clew.Model.from_config(config, seed=0)
    optimizer = clew.AdamW(model, lr=1e-2, weight_decay=0.0, clip=1.0)
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 16))
    mask[:, 8:-1] = 1
    losses = []
    for _ in range(250):
        half = np.argsort(rng.random((32, 16)))[:, :8]  # no token twice in a half
        losses.append(model.train_step(np.concatenate([half, half], axis=1), None, mask, optimizer=optimizer))
    assert losses[0] > 2.5
    assert np.mean(losses[-10:]) < 0.1, np.mean(losses[-10:])


# ---- What it refuses -------------------------------------------------------------------------------------------


def test_a_step_takes_examples() -> None:
    """The same bits as their parts."""
    config = clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10)
    one, other = (clew.Model.from_config(config, seed=1) for _ in range(2))
    first, second = (clew.AdamW(model, lr=0.1) for model in (one, other))
    parts = ([[1, 2, 3], [4, 5, 6]], [[2, 9, 4], [5, 6, 7]], [[1, 0.5, 0], [0, 1, 2]])
    examples = clew.train.Examples(*parts)
    assert one.train_step(*parts, optimizer=first) == other.train_step(examples, optimizer=second)
    for name, array in one.weights.items():
        assert np.array_equal(array, other.weights[name]), name
    with pytest.raises(clew.ConfigError, match="Examples hold their targets and loss_mask"):
        other.train_step(examples, parts[1], optimizer=second)


def test_targets_and_masks_that_do_not_fit() -> None:
    model, optimizer = start("gpt2")
    tokens = random_tokens(model.config, 1, 2, 5)

    def refused(error: type[Exception], words: str, *arguments: Any, **more: Any) -> None:
        with pytest.raises(error, match=words):
            model.train_step(*arguments, **{"optimizer": optimizer, **more})

    refused(clew.ShapeError, r"targets: shape \[2, 4\], expected \[2, 5\]", tokens, tokens[:, 1:])
    refused(clew.ShapeError, r"targets: shape \[2, 5, 1\], expected \[2, 5\]", tokens, tokens[..., None])
    refused(clew.ShapeError, "targets must be integer token ids, not float64", tokens, tokens * 1.0)
    refused(clew.ShapeError, r"targets of prompt 1: shape \[2\], expected \[3\]", [[1, 2], [1, 2, 3]], [[1, 2], [1, 2]])
    refused(clew.TokenError, "target 31 at position 2 of prompt 1: the model has logits 0 to 30", [[1, 2], [1, 2, 3]],
            [[1, 2], [1, 2, 31]])  # fmt: skip
    refused(clew.TokenError, "target -1 at position 0 of prompt 0", tokens, tokens * 0 - 1)
    refused(clew.ShapeError, r"loss_mask: shape \[5\], expected \[2, 5\]", tokens, None, np.ones(5))
    refused(clew.ShapeError, "loss_mask holds -0.5", tokens, None, tokens * 0 - 0.5)
    refused(clew.ShapeError, "loss_mask holds nan", tokens, None, tokens * math.nan)
    refused(clew.ShapeError, "loss_mask must be bool or real", tokens, None, np.full((2, 5), "yes"))
    refused(clew.TokenError, "no target to train on: loss_mask is 0 everywhere", tokens, tokens, tokens * 0)
    refused(clew.TokenError, "no target to train on; without targets the last position", [[1], [2]])
    refused(clew.TokenError, f"token {tokens[0, 0] + 40} at position 0 of prompt 0", tokens + 40)
    refused(clew.ConfigError, "optimizer = None", tokens, optimizer=None)
    refused(clew.ConfigError, "another model", tokens, optimizer=start("gpt2")[1])
    with model.edited(clew.edit.zero("blocks.0.attn.hook_z")):
        refused(clew.ConfigError, r"inside model.edited\(\)", tokens)
    model, optimizer = start("vectors")
    x = np.zeros((2, 5, 5))
    refused(clew.ConfigError, "no targets: with d_in = 5, d_out = 3", x)
    refused(clew.ShapeError, r"targets: shape \[2, 5\], expected \[2, 5, 3\]", x, np.zeros((2, 5)))
    refused(clew.ShapeError, "targets must be real numbers, not complex128", x, np.zeros((2, 5, 3), complex))
    refused(clew.ShapeError, r"\[5, 4\], expected \[pos, 5\]", np.zeros((2, 5, 4)), np.zeros((2, 5, 3)))
    assert optimizer.steps == 0


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model, optimizer = start("vectors")
    x, y = random_inputs(model.config, 1), np.zeros((2, 12, 3))
    model.train_step(x, y, optimizer=optimizer)
    model.train_step(x, y, optimizer=optimizer, accumulate=True)
    before = {name: a.copy() for name, a in optimizer.state().items()}
    for bad, kind in ((np.nan, "nan"), (1e200, "inf")):
        with pytest.raises(
            clew.TrainingError, match=f"step 2: the loss is {kind}; the weights are those of step 1"
        ) as e:
            model.train_step(x, y + bad, optimizer=optimizer)
        assert e.value.step == 2 and isinstance(e.value, ArithmeticError)
    assert optimizer.steps == 1 and optimizer.accumulated == 0
    for name, array in optimizer.state().items():
        assert np.array_equal(array, before[name])
    model.train_step(x, y, optimizer=optimizer)
    assert optimizer.steps == 2


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_falls_before_or_behind_a_step(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(ZOO["gpt2"], 1, 2, 8)
    straight, a = start("gpt2")
    for _ in range(4):
        straight.train_step(tokens, optimizer=a)
    model, optimizer = start("gpt2")
    model.train_step(tokens, optimizer=optimizer)
    own = _core.adamw

    def interrupted(*arguments: Any) -> None:
        if when == "after":
            own(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_core, "adamw", interrupted)
        model.train_step(tokens, optimizer=optimizer)
    assert optimizer.steps == (2 if when == "after" else 1)
    while optimizer.steps < 4:
        model.train_step(tokens, optimizer=optimizer)
    for name, array in straight.weights.items():
        assert np.array_equal(array, model.weights[name])


def test_plans_are_kept_for_some_shapes() -> None:
    model, optimizer = start("one_head")
    for n in range(2, 14):
        model.train_step([[1] * n], optimizer=optimizer)
    assert gradients_for(optimizer, np.array([13], np.int32)) is gradients_for(optimizer, np.array([13], np.int32))
    assert len(optimizer._plans) == 8
    assert gradients_for(optimizer, np.array([13], np.int32)).scratch_bytes > 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted by Linux's /proc")
def test_activations_of_one_shape_at_a_time() -> None:
    """Eight shapes in turn: what training takes stays near to what is planned for the largest of them."""
    script = """
import clew, numpy as np
from clew.train.step import gradients_for
from support import resident
clew.memory.set_idle_limit(0)
model = clew.Model.from_config(clew.ModelConfig(n_layers=2, d_model=64, n_heads=2, n_ctx=256, d_vocab=8))
optimizer = clew.AdamW(model, lr=0.0)
lengths = [np.full(40, n, np.int32) for n in range(249, 257)]
planned = gradients_for(optimizer, lengths[-1]).scratch_bytes
before = resident()
for _ in range(2):
    for n in lengths:
        model.train_step(np.ones((40, n[0]), int), optimizer=optimizer)
print(planned, resident() - before)
"""
    result = run_python(script, CLEW_NUM_THREADS="2")
    assert result.returncode == 0, result.stdout
    planned, taken = map(int, result.stdout.split())
    assert planned > 40 << 20
    assert taken < 1.5 * planned, f"{taken / planned:.2f} times what is planned"


# ---- evaluate --------------------------------------------------------------------------------------------------


def test_pieces_without_a_target() -> None:
    tokens, mask = np.arange(40).reshape(4, 10) % 31, np.ones((4, 10))
    mask[1] = 0
    model, _ = make(ZOO["gpt2"])
    examples = Examples(tokens, None, mask)
    whole, count = evaluate(model, examples, batch=4)
    assert evaluate(model, examples, batch=1) == (pytest.approx(whole, rel=1e-12), count) and count == 27
    losses = [
        train.fit(make(ZOO["gpt2"])[0], (tokens, None, mask), 2, 4, progress=False, micro_batch=n).losses
        for n in (None, 1)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-10)
    nothing = (tokens, None, 0 * mask)
    for n in (None, 1):
        with pytest.raises(clew.TokenError, match="no target to train on: loss_mask is 0 everywhere"):
            train.fit(make(ZOO["gpt2"])[0], nothing, 1, 4, progress=False, micro_batch=n)
    with pytest.raises(clew.TokenError, match="no target in these examples"):
        evaluate(model, Examples(*nothing), batch=1)


def test_a_mask_beyond_the_models_precision() -> None:
    model = clew.Model.from_config(ZOO["gpt2"])
    with pytest.raises(clew.ConfigError, match=r"loss_mask: the value 1e\+39 is beyond the model's float32"):
        model.train_step([1, 2, 3], loss_mask=[1e39, 1, 1], optimizer=clew.AdamW(model))


def test_evaluate_means_over_targets() -> None:
    model, _ = start("gpt2")
    tokens = random_tokens(model.config, 5, 5, 7)
    loss, count = evaluate(model, Examples(tokens), batch=2)
    assert (loss, count) == (pytest.approx(model.loss(tokens, reduce="mean"), rel=1e-12), 30)
    mask = (np.random.default_rng(2).random((5, 7)) > 0.5) * 1.0
    shifted = np.roll(tokens, -1, axis=1)
    loss, count = evaluate(model, Examples(tokens, shifted, mask), batch=2)
    assert (loss, count) == (pytest.approx(plain_loss(model, tokens, shifted, mask), rel=1e-12), mask.sum())
    ragged = [tokens[0].tolist(), tokens[1, :3].tolist()]
    assert evaluate(model, Examples(ragged))[1] == 8
    assert evaluate(model, Examples(ragged, [np.roll(r, -1) for r in ragged]))[1] == 10
    with pytest.raises(clew.ConfigError, match="no targets"):
        evaluate(start("vectors")[0], Examples(np.zeros((1, 2, 5))))
