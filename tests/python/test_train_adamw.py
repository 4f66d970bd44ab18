"""AdamW against NumPy, and what becomes of a model that is trained; gradients are made up here."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core
from support import make, relative_error
from twin import twin
from zoo import random_inputs, vector_zoo, zoo

ZOO = zoo() | vector_zoo()
Array = Any


def numpy_adamw(
    weights: dict[str, Array], gradients: list[dict[str, Array]], decays: set[str], **s: Any
) -> dict[str, Array]:
    """The definition, one weight at a time, in float64."""
    out = {}
    for name, start in weights.items():
        p, m, v = start.astype(np.float64), np.zeros(start.shape), np.zeros(start.shape)
        for t, step in enumerate(gradients, 1):
            norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in step.values()))
            g = step[name].astype(np.float64)
            if s["clip"] is not None and norm + 1e-6 > s["clip"]:
                g = g * s["clip"] / (norm + 1e-6)
            if name in decays:
                p = p - s["lr"] * s["weight_decay"] * p
            m = s["betas"][0] * m + (1 - s["betas"][0]) * g
            v = s["betas"][1] * v + (1 - s["betas"][1]) * g * g
            m_hat, v_hat = m / (1 - s["betas"][0] ** t), v / (1 - s["betas"][1] ** t)
            p = p - s["lr"] * m_hat / (np.sqrt(v_hat) + s["eps"])
        out[name] = p
    return out


def random_gradients(optimizer: clew.AdamW, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    model = optimizer.model
    return {n: rng.standard_normal(model.weights[n].shape).astype(model.dtype) for n in optimizer.names}


def copies(model: clew.Model) -> dict[str, Array]:
    return {name: array.copy() for name, array in model.weights.items()}


SETTINGS: list[dict[str, Any]] = [
    dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, clip=None),
    dict(lr=0.3, betas=(0.5, 0.7), eps=1e-2, weight_decay=0.5, clip=None),
    dict(lr=0.02, betas=(0.0, 0.0), eps=1e-3, weight_decay=0.0, clip=0.25),
    dict(lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1e6),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma3", "gqa_6_2", "odd_d37", "vectors", "one_head"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_steps_equal_numpy(name: str, settings: dict[str, Any], dtype: Any) -> None:
    model, _ = make(ZOO[name], dtype=dtype)
    before = copies(model)
    optimizer = clew.AdamW(model, **settings)
    steps = [random_gradients(optimizer, seed) for seed in range(3)]
    for gradients in steps:
        optimizer.step(gradients)
    decays = {n for n in optimizer.names if n.rsplit(".", 1)[-1].startswith("W_")}
    assert decays == set(optimizer.decays)
    trained = {n: before[n] for n in optimizer.names}
    want = numpy_adamw(trained, steps, decays, **settings)
    tolerance = 1e-14 if dtype is np.float64 else 1e-5 if settings["eps"] > 1e-4 else 1e-4
    for weight, value in want.items():
        assert relative_error(model.weights[weight], value) < tolerance, weight
        assert not np.array_equal(model.weights[weight], before[weight]), weight
    assert optimizer.steps == 3


@pytest.mark.parametrize("name", ZOO)
def test_a_trained_model_computes_with_its_current_weights(name: str) -> None:
    """Every architecture: no weight is a copy, runs see each step, tied weights stay tied, views show it."""
    config = ZOO[name]
    model, _ = make(config)
    inputs = random_inputs(config, 1)
    before = model.run(inputs).logits.copy()
    optimizer = clew.AdamW(model, lr=0.05)
    assert model._core.n_packed == 0
    np.testing.assert_allclose(model.run(inputs).logits, before, rtol=1e-12, atol=1e-12)
    views = dict(model.weights)
    optimizer.step(random_gradients(optimizer, 2))
    after = model.run(inputs).logits
    assert relative_error(after, twin(config, copies(model), inputs)["logits"]) < 1e-12
    if config.d_vocab_out > 1 or config.d_out:
        assert np.abs(after - before).max() > 1e-6
    for weight, view in views.items():
        assert not view.flags.writeable
        assert view is model.weights[weight]
    if config.tie_word_embeddings:
        assert np.array_equal(model.weights["unembed.W_U"], model.weights["embed.W_E"].T)
        assert "unembed.W_U" not in optimizer.names
    else:
        assert "unembed.W_U" in optimizer.names


def test_layouts_that_a_product_reads_in_place() -> None:
    model, _ = make(ZOO["llama3"])
    optimizer = clew.AdamW(model, lr=0.1)
    for letter, heads in (("Q", 4), ("K", 2), ("V", 2)):
        w = model.weights[f"blocks.1.attn.W_{letter}"]
        assert w.transpose(1, 0, 2).flags.c_contiguous and w.shape == (heads, 32, 8)
    assert model.weights["blocks.0.attn.W_O"].flags.c_contiguous
    steps = [s for s in model.plan(pos=4).steps if "q [" in s]
    assert steps and all("q [32, 32], k [32, 16], v [32, 16]" in s for s in steps)  # one product each
    m, v = optimizer.moments("blocks.1.attn.W_K")
    assert m.shape == (2, 32, 8) and not m.any() and not v.any() and not m.flags.writeable
    gradients = random_gradients(optimizer, 1)
    optimizer.step(gradients)
    np.testing.assert_allclose(
        optimizer.moments("blocks.1.attn.W_K")[0], 0.1 * gradients["blocks.1.attn.W_K"], rtol=1e-12
    )
    with pytest.raises(KeyError, match="W_X"):
        optimizer.moments("W_X")


def test_a_file_that_was_loaded_is_not_changed(tmp_path: Any) -> None:
    make(ZOO["gpt2"], dtype=np.float32)[0].save(tmp_path)
    model, other = clew.load(tmp_path), clew.load(tmp_path)
    optimizer = clew.AdamW(model, lr=0.1)
    optimizer.step(random_gradients(optimizer, 1))
    for name, array in clew.load(tmp_path).weights.items():
        assert np.array_equal(array, other.weights[name])
    model.save(tmp_path / "trained")
    again = clew.load(tmp_path / "trained")
    for name, array in model.weights.items():
        assert np.array_equal(array, again.weights[name])


@pytest.mark.parametrize("name", ["gpt2", "llama3", "vectors", "attn_only_no_norm"])
def test_other_models_made_of_a_trained_one_stay_as_they_are(name: str) -> None:
    model, _ = make(ZOO[name])
    optimizer = clew.AdamW(model, lr=0.1)
    inputs = random_inputs(ZOO[name], 1)
    one = model.folded(fold_ln=False, center_writing=False, center_unembed=False, fold_value_biases=False)
    others = [one, model.folded(), copy.deepcopy(model)]
    before = [other.run(inputs).logits.copy() for other in others]
    assert np.array_equal(before[0], model.run(inputs).logits) and np.array_equal(before[2], before[0])
    optimizer.step(random_gradients(optimizer, 2))
    for other, logits in zip(others, before, strict=True):
        assert np.array_equal(other.run(inputs).logits, logits)
    assert not np.array_equal(model.run(inputs).logits, before[0])
    assert copy.deepcopy(one) is one


def test_the_same_bits_for_any_number_of_threads_and_layout() -> None:
    results = []
    for threads in (1, 2, 3):
        clew.set_num_threads(threads)
        model = clew.Model.from_config(
            clew.ModelConfig(n_layers=2, d_model=128, n_heads=4, n_ctx=16, d_vocab=400), seed=1
        )
        optimizer = clew.AdamW(model, lr=0.01, clip=0.5)
        norms = []
        for seed in range(3):
            gradients = random_gradients(optimizer, seed)
            if threads == 2:  # in the layout of the matrices instead of the classic one
                for name, g in gradients.items():
                    if g.ndim == 3:
                        gradients[name] = np.ascontiguousarray(g.transpose(1, 0, 2)).transpose(1, 0, 2)
            norms.append(optimizer.step(gradients))
        results.append((norms, copies(model)))
    for norms, weights in results[1:]:
        assert norms == results[0][0]
        for name, array in weights.items():
            assert np.array_equal(array, results[0][1][name]), name


def test_norm_and_clipping() -> None:
    model, _ = make(ZOO["one_head"])
    optimizer = clew.AdamW(model, lr=1.0, clip=0.5, betas=(0.0, 0.0), eps=1.0, weight_decay=0.0)
    gradients = random_gradients(optimizer, 3)
    flat = np.concatenate([g.reshape(-1) for g in gradients.values()])
    before = copies(model)
    norm = optimizer.step(gradients)
    assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-14)
    factor = 0.5 / (norm + 1e-6)
    for name, g in gradients.items():
        step = factor * g / (np.abs(factor * g) + 1)  # betas 0: the step is g / (|g| + eps)
        np.testing.assert_allclose(model.weights[name], before[name] - step, rtol=1e-12, atol=1e-14)
    small = {name: g * 1e-3 * 0.5 / norm for name, g in gradients.items()}
    before = copies(model)
    optimizer.step(small)
    for name, g in small.items():
        np.testing.assert_allclose(model.weights[name], before[name] - g / (np.abs(g) + 1), rtol=1e-9, atol=1e-15)


def test_accumulated_gradients_are_their_weighted_mean() -> None:
    one, _ = make(ZOO["gpt2"])
    other, _ = make(ZOO["gpt2"])
    a, b = clew.AdamW(one, lr=0.1), clew.AdamW(other, lr=0.1)
    for start in (0, 10):  # the second time, nothing of the first is left
        parts = [(random_gradients(a, start + i), weight) for i, weight in enumerate((3.0, 1.0, 0.5))]
        for gradients, weight in parts[:2]:
            a.accumulate(gradients, weight)
        assert a.accumulated == 4.0
        norm = a.step(*parts[2])
        assert a.accumulated == 0.0
        mean = {n: sum(g[n] * w for g, w in parts) / 4.5 for n in a.names}
        assert b.step(mean) == pytest.approx(norm, rel=1e-12)
    for name, array in one.weights.items():
        np.testing.assert_allclose(array, other.weights[name], rtol=1e-10, atol=1e-12)
    a.accumulate(parts[0][0], 2.0)
    a.discard()
    assert a.accumulated == 0.0
    with pytest.raises(clew.ConfigError, match="without gradients"):
        a.step()
    with pytest.raises(clew.ConfigError, match="weight 0"):
        a.accumulate(parts[0][0], 0)


def test_what_decays() -> None:
    config = ZOO["gpt2"].replace(tie_word_embeddings=False)
    names = list(make(config)[0].weights)
    matrices = [n for n in names if n.rsplit(".", 1)[-1].startswith("W_")]
    assert "pos_embed.W_pos" in matrices and "embed.W_E" in matrices and "blocks.0.attn.b_Q" not in matrices

    def decayed(decay: Any) -> set[str]:
        model, _ = make(config)
        optimizer = clew.AdamW(model, lr=0.5, weight_decay=0.5, decay=decay)
        before = copies(model)
        optimizer.step({n: np.zeros(before[n].shape) for n in names})
        changed = {n for n in names if not np.array_equal(model.weights[n], before[n])}
        assert changed == set(optimizer.decays)
        for name in changed:
            np.testing.assert_allclose(model.weights[name], 0.75 * before[name], rtol=1e-12)
        return changed

    assert decayed(None) == set(matrices)
    assert decayed(["blocks.*.attn.b_Q", "ln_final.w"]) == {"blocks.0.attn.b_Q", "blocks.1.attn.b_Q", "ln_final.w"}
    assert decayed("*.W_U") == {"unembed.W_U"}
    assert decayed(lambda name: "mlp" in name) == {n for n in names if "mlp" in n}
    assert decayed([]) == set()


def test_moments_survive_in_state() -> None:
    one, _ = make(ZOO["gemma2"])
    other, _ = make(ZOO["gemma2"], seed=5)
    a, b = clew.AdamW(one, lr=0.1), clew.AdamW(other, lr=0.1)
    a.step(random_gradients(a, 1))
    b.load_state({name: array.copy() for name, array in a.state().items()}, a.steps)
    for optimizer in (a, b):
        optimizer.step(random_gradients(a, 2))
    for name, array in one.weights.items():
        assert np.array_equal(array, other.weights[name])
    state = dict(a.state())
    state["m/embed.W_E"] = np.zeros((2, 2))
    del state["v/embed.W_E"]
    with pytest.raises(
        clew.ShapeError, match=r"v/embed.W_E is missing; m/embed.W_E has float64 \[2, 2\], expected .* \[31, 24\]"
    ):
        b.load_state(state, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(lr=-1.0), "lr = -1.0"),
        (dict(lr=math.nan), "lr = nan"),
        (dict(lr="fast"), "lr = 'fast'"),
        (dict(lr=0.1, betas=(0.9, 1.0)), r"betas\[1\] = 1.0"),
        (dict(lr=0.1, betas=0.9), "betas = 0.9"),
        (dict(lr=0.1, eps=0), "eps = 0"),
        (dict(lr=0.1, eps=1e-60), "eps = 1e-60 must be more than 0 in float32"),
        (dict(lr=0.1, weight_decay=-0.1), "weight_decay = -0.1"),
        (dict(lr=0.1, clip=0.0), "clip = 0"),
        (dict(lr=0.1, clip=-1.0), "clip = -1.0"),
        (dict(lr=0.1, decay=["W_Q"]), "'W_Q' matches no weight"),
        (dict(lr=0.1, decay=[3]), "3 matches no weight"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    model, _ = make(ZOO["one_head"], dtype=np.float32)
    with pytest.raises(clew.ConfigError, match=words):
        clew.AdamW(model, **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 10**400), ("clip", -1), ("betas", 0.9), ("eps", 0.0), ("weight_decay", "a"), ("lr", math.nan)],
)
def test_settings_that_are_set_between_steps(name: str, value: Any) -> None:
    model, _ = make(ZOO["gpt2"])
    optimizer = clew.AdamW(model, lr=0.1)
    before = model.W_E.copy()
    setattr(optimizer, name, value)
    with pytest.raises(clew.ConfigError, match=f"AdamW: {name} = "):
        model.train_step([1, 2, 3], optimizer=optimizer)
    assert np.array_equal(model.W_E, before) and optimizer.steps == 0


def test_copies_are_refused() -> None:
    model, _ = make(ZOO["gpt2"])
    for made in (clew.AdamW(model), clew.train.Trainer(model, [1, 2, 3] * 9, 1, 1, context=4)):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="can be neither copied nor pickled"):
                copied(made)


@pytest.mark.parametrize("weight", [None, "a", 0, -1, math.nan, math.inf, True])
def test_weights_of_gradients(weight: Any) -> None:
    optimizer = clew.AdamW(make(ZOO["gpt2"])[0])
    gradients = random_gradients(optimizer, 0)
    for take in (optimizer.accumulate, optimizer.step):
        with pytest.raises(clew.ConfigError, match="AdamW: (weight =|gradients of weight)"):
            take(gradients, weight)
    assert optimizer.steps == 0 and optimizer.accumulated == 0


def test_gradients_that_are_no_real_numbers() -> None:
    model = clew.Model.from_config(ZOO["gpt2"])
    optimizer = clew.AdamW(model)
    gradients = random_gradients(optimizer, 0)
    shape = gradients["embed.W_E"].shape
    for wrong, error, words in (
        (np.ones(shape, complex), clew.ShapeError, "must be real numbers, not complex128"),
        (np.ma.array(np.ones(shape), mask=np.eye(*shape)), clew.ShapeError, "masked values"),
        (np.full(shape, 1e39), clew.ConfigError, "beyond the model's float32"),
    ):
        with pytest.raises(error, match=f"gradient of embed.W_E.*{words}"):
            optimizer.step(gradients | {"embed.W_E": wrong})


def test_a_state_that_no_step_gives_is_refused() -> None:
    model, _ = make(ZOO["gpt2"])
    optimizer = clew.AdamW(model)
    state = {name: array.copy() for name, array in optimizer.state().items()}
    for steps in (-1, 1.5, True):
        with pytest.raises(clew.ConfigError, match=f"steps = {steps}"):
            optimizer.load_state(state, steps)  # type: ignore[arg-type]
    for given in (None, list(state)):
        with pytest.raises(clew.ConfigError, match=r"AdamW: state: what state\(\) gave, not (NoneType|list)"):
            optimizer.load_state(given, 0)  # type: ignore[arg-type]
    for value, said in (("x", r"m/embed.W_E has <U1 \[\], expected"), ([[1], [1, 2]], "m/embed.W_E cannot be read")):
        with pytest.raises(clew.ShapeError, match=said):
            optimizer.load_state(state | {"m/embed.W_E": value}, 0)  # type: ignore[dict-item]
    for name, value in (("weights/embed.W_E", math.nan), ("m/embed.W_E", math.inf), ("v/embed.W_E", -1.0)):
        broken = state | {name: np.full_like(state[name], value)}
        with pytest.raises(clew.ConfigError, match=f"state: {name} holds"):
            optimizer.load_state(broken, 3)
        assert np.array_equal(model.W_E, state["weights/embed.W_E"]) and optimizer.steps == 0


def test_the_rate_is_by_default_that_of_the_loop() -> None:
    model = clew.Model.from_config(clew.ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=8, d_vocab=10))
    loop = clew.train.Trainer(model, [1, 2, 3] * 9, steps=1, batch=1)
    assert clew.AdamW(model).lr == loop.optimizer.lr == 1e-3


def test_bad_gradients_change_nothing() -> None:
    model, _ = make(ZOO["gpt2"])
    optimizer = clew.AdamW(model, lr=0.1)
    optimizer.step(random_gradients(optimizer, 1))
    before, state = copies(model), {n: a.copy() for n, a in optimizer.state().items()}
    good = random_gradients(optimizer, 2)

    def refused(error: type[Exception], words: str, **changes: Any) -> None:
        gradients = {name: g for name, g in {**good, **changes}.items() if g is not None}
        with pytest.raises(error, match=words):
            optimizer.step(gradients)

    refused(clew.ShapeError, r"ln_final.w has shape \[2\], the weight \[24\]", **{"ln_final.w": np.zeros(2)})
    refused(clew.ShapeError, "no gradient of ln_final.w", **{"ln_final.w": None})
    refused(clew.ShapeError, "does not have: ln_final.x", **{"ln_final.x": np.zeros(2)})
    refused(clew.ShapeError, "unembed.W_U is tied", **{"unembed.W_U": np.zeros((24, 31))})
    for value in (np.nan, np.inf):
        bad = good["ln_final.w"].copy()
        bad[3] = value
        refused(clew.TrainingError, f"step 2: the norm of the gradients is {value}", **{"ln_final.w": bad})
        optimizer.accumulate({**good, "ln_final.w": bad})
        with pytest.raises(clew.TrainingError, match="step 2") as caught:
            optimizer.step()
        assert caught.value.step == 2 and optimizer.accumulated == 0
    optimizer.lr = math.inf
    refused(clew.ConfigError, "lr = inf")
    assert optimizer.steps == 1
    for name, array in before.items():
        assert np.array_equal(array, model.weights[name])
    for name, array in state.items():
        assert np.array_equal(array, optimizer.state()[name])
    optimizer.lr = 0.1
    tied = {**good, "unembed.W_U": good["embed.W_E"].T}  # a view of the same gradient is welcome
    optimizer.step(tied)
    assert optimizer.steps == 2


def test_the_core_checks_its_arguments() -> None:
    x = [np.ones(3), np.ones(2)]
    step = np.zeros(1, np.int64)
    numbers = (0.1, 0.9, 0.99, 1e-8, 0.0, 1.0)

    def lists() -> list[list[Array]]:
        return [[a.copy() for a in x] for _ in range(4)]

    p, g, m, v = lists()
    _core.adamw(p, g, m, v, [True, False], step, *numbers)
    assert step[0] == 1
    for bad, error, words in (
        (
            ([np.ones(4), np.ones(2)], g, m, v, [True, False], step),
            ValueError,
            "gradient 0 has 3 values, the tensor has 4",
        ),
        ((p, [np.ones(3, np.float32), g[1]], m, v, [True, False], step), TypeError, "gradient 0"),
        (([np.ones(6)[::2], p[1]], g, m, v, [True, False], step), TypeError, "parameter 0 must be a contiguous"),
        ((p, g, m[:1], v, [True, False], step), ValueError, "one length"),
        ((p, g, m, v, [True], step), ValueError, "decay"),
        ((p, g, m, v, [True, False], np.zeros(1)), TypeError, "step must be a writable array of one int64"),
        ((p, g, m, v, [True, False], np.zeros(2, np.int64)), TypeError, "step"),
    ):
        with pytest.raises(error, match=words):
            _core.adamw(*bad, *numbers)  # type: ignore[arg-type]
    frozen = np.ones(3)
    frozen.flags.writeable = False
    with pytest.raises(TypeError, match="first moment 0 must be a contiguous, writable"):
        _core.adamw(p, g, [frozen, m[1]], v, [True, False], step, *numbers)
    assert step[0] == 1
    assert _core.global_norm([]) == 0.0
    assert _core.global_norm([np.array([3.0, 4.0])]) == 5.0
    with pytest.raises(ValueError, match="one length"):
        _core.global_norm((1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="array 1"):
        _core.global_norm([np.ones(1), np.ones(1, int)])
    total = np.zeros(1)
    _core.accumulate(p, g, 2.0, total)
    assert total[0] == 2.0
    with pytest.raises(TypeError, match="total must be a writable array of one float64"):
        _core.accumulate(p, g, 2.0, step)
    with pytest.raises(TypeError, match="sum 0"):
        _core.accumulate([frozen], [np.ones(3)], 1.0, total)


def test_looks() -> None:
    model, _ = make(ZOO["one_head"])
    optimizer = clew.AdamW(model, lr=0.1, clip=1.0)
    assert "step 0" in repr(optimizer) and "clip 1.0" in repr(optimizer)
    assert optimizer.nbytes == 2 * 8 * model.n_params
