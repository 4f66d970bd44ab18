"""Function vectors: on a transformer by construction whose vector is known, and against loops of single runs."""

from __future__ import annotations

import math
from typing import Any

import clew
import numpy as np
import pytest
from clew import ModelConfig
from clew.adaptive import function_vectors as fv
from clew.loaders.checkpoint import Checkpoint
from numpy.typing import NDArray
from support import make, relative_error
from zoo import zoo

S, T, SHOTS = 6, 3, 4
P = 2 * SHOTS + 1
BARE = fv.Template((), (), ())
TASKS = [fv.Task(f"+{t + 1}", [(x, S + (x + t + 1) % S) for x in range(S)]) for t in range(T)]
SHARP, LOGIT = 200.0, 12.0


def build() -> tuple[clew.Model, slice]:
    """A transformer that finds the task of its examples and then applies it, and where in the stream the task stands.

    Layer 0, head 0: each position looks one back. Its MLP knows every pair (x, y) and writes the task at y.
    Layer 1, head 1: the mean of these over all outputs, at the last token. Its MLP looks up (x, task). The other heads
    write into places that nobody reads.
    """
    sizes = dict(token=2 * S, output=1, back=S, place=P, found=T, task=T, junk=2, answer=S, one=1)
    at: dict[str, slice] = {}
    end = 0
    for name, size in sizes.items():
        at[name], end = slice(end, end + size), end + size
    e, facts = P + 1, [(x, (x + t + 1) % S, t) for t in range(T) for x in range(S)]
    config = ModelConfig(
        n_layers=2, d_model=end, n_heads=2, d_head=e, n_ctx=P, d_vocab=2 * S, d_mlp=len(facts), act_fn="relu",
        normalization_type=None, final_norm=False, qkv_bias=False, attn_out_bias=False, use_attn_scale=False,
    )  # fmt: skip
    w: dict[str, NDArray[Any]] = {
        "embed.W_E": np.zeros((2 * S, end)), "pos_embed.W_pos": np.zeros((P, end)),
        "unembed.W_U": np.zeros((end, 2 * S)),
    }  # fmt: skip
    w["embed.W_E"][:, at["token"]] = np.eye(2 * S)
    w["embed.W_E"][S:, at["output"]] = 1
    w["pos_embed.W_pos"][:, at["place"]] = np.eye(P)
    w["pos_embed.W_pos"][:, at["one"]] = 1
    w["unembed.W_U"][at["answer"], S:] = np.eye(S)
    for layer in range(2):
        for letter in "QKVO":
            w[f"blocks.{layer}.attn.W_{letter}"] = np.zeros((2, e, end) if letter == "O" else (2, end, e))
        w[f"blocks.{layer}.mlp.W_in"], w[f"blocks.{layer}.mlp.b_in"] = np.zeros((end, len(facts))), -np.ones(len(facts))
        w[f"blocks.{layer}.mlp.W_out"], w[f"blocks.{layer}.mlp.b_out"] = np.zeros((len(facts), end)), np.zeros(end)

    def put(name: str, head: int, rows: slice, columns: slice, values: Any) -> None:
        w[name][head, rows, columns] = values

    # the head that looks back, then the one that gathers tasks; two decoys
    put("blocks.0.attn.W_Q", 0, at["place"], slice(0, P), SHARP * np.eye(P))
    put("blocks.0.attn.W_K", 0, at["place"], slice(0, P), np.eye(P, k=1))
    put("blocks.0.attn.W_V", 0, slice(0, S), slice(0, S), np.eye(S))
    put("blocks.0.attn.W_O", 0, slice(0, S), at["back"], np.eye(S))
    put("blocks.1.attn.W_Q", 1, at["one"], slice(0, 1), SHARP)
    put("blocks.1.attn.W_K", 1, at["output"], slice(0, 1), 1)
    put("blocks.1.attn.W_V", 1, at["found"], slice(0, T), np.eye(T))
    put("blocks.1.attn.W_O", 1, slice(0, T), at["task"], np.eye(T))
    for layer, head in ((0, 1), (1, 0)):
        put(f"blocks.{layer}.attn.W_V", head, at["output"], slice(0, 2), 1)
        put(f"blocks.{layer}.attn.W_O", head, slice(0, 2), at["junk"], np.eye(2))
    for i, (x, y, t) in enumerate(facts):
        w["blocks.0.mlp.W_in"][[at["back"].start + x, S + y], i] = 1
        w["blocks.0.mlp.W_out"][i, at["found"].start + t] = 1
        w["blocks.1.mlp.W_in"][[x, at["task"].start + t], i] = 1
        w["blocks.1.mlp.W_out"][i, at["answer"].start + y] = LOGIT
    return clew.Model(Checkpoint(config, w, np.dtype(np.float64))), at["task"]


@pytest.fixture(scope="module")
def built() -> tuple[clew.Model, slice]:
    return build()


@pytest.fixture(scope="module")
def found(built: tuple[clew.Model, slice]) -> fv.FunctionVectors:
    return fv.extract(built[0], TASKS, shots=SHOTS, prompts=30, shuffled_prompts=12, top=1, template=BARE)


# ---- The known vector -----------------------------------------------------------------------------------------------


def test_the_model_does_its_tasks(built: tuple[clew.Model, slice]) -> None:
    for task in TASKS:
        prompts = fv.make_prompts(built[0], task, SHOTS, 20, template=BARE)
        logits = built[0].run(prompts.tokens, logits="last").logits[:, 0]
        assert (logits.argmax(axis=-1) == prompts.answers).all()


def test_the_head_and_the_vector_are_found(built: tuple[clew.Model, slice], found: fv.FunctionVectors) -> None:
    assert found.heads == [(1, 1)]
    others = found.average.copy()
    others[1, 1] = 0
    assert np.abs(others).max() < 1e-12 and found.average[1, 1] > 0.3
    assert found.average[1, 1] > 5 * found.standard_error[1, 1] > 0
    for t, task in enumerate(TASKS):
        want = np.zeros(built[0].config.d_model)
        want[built[1].start + t] = 1
        np.testing.assert_allclose(found.vectors[task.name], want, atol=1e-12)
    assert "      1     1 " in repr(found) and "+1, +2, +3" in repr(found)


def test_zero_shot_transfer(built: tuple[clew.Model, slice], found: fv.FunctionVectors) -> None:
    model = built[0]
    right = 1 / (1 + (2 * S - 1) * math.exp(-LOGIT))
    for task in TASKS:
        result = fv.transfer(model, task, found.vectors[task.name], n=20, template=BARE)
        assert result.layers == [0, 1] and result.best == 0 and result.n == S  # each pair once: there are no others
        assert result.accuracy[0] == 1 and result.probability[0] == pytest.approx(right, rel=1e-12)
        # without, all outputs are equally likely; behind the last layer nobody reads the task
        assert result.base_probability == pytest.approx(1 / (2 * S), rel=1e-12)
        assert result.probability[1] == pytest.approx(1 / (2 * S), rel=1e-12)
        low, high = result.interval()
        assert low[0] == pytest.approx(S / (S + 1.959964**2), rel=1e-6) and high[0] == pytest.approx(1)
        other = TASKS[(TASKS.index(task) + 1) % T]
        assert fv.transfer(model, task, found.vectors[other.name], [0], n=20, template=BARE).accuracy[0] == 0
    # into prompts whose labels are shuffled: the task beats what they say by accident
    result = fv.transfer(model, TASKS[0], 4 * found.vectors["+1"], [0], SHOTS, 20, True, template=BARE)
    assert result.accuracy[0] == 1 > result.base_accuracy
    assert "without: accuracy" in repr(result)


def test_prompts_without_examples_ask_every_pair_once(built: tuple[clew.Model, slice]) -> None:
    for n, times in ((S, {1}), (S - 2, {1}), (2 * S, {2}), (2 * S + 1, {2, 3})):
        asked = [tuple(p) for p in fv.make_prompts(built[0], TASKS[0], 0, n, template=BARE).tokens]
        assert len(asked) == n and {asked.count(p) for p in asked} == times


# ---- Against single runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gptj", "linear_causal"])
def test_effects_equal_single_runs(name: str) -> None:
    model, weights = make(zoo()[name])
    vocab = model.config.d_vocab
    task = fv.Task("any", [(x, (3 * x + 1) % vocab) for x in range(min(vocab, 9))])
    clean = fv.make_prompts(model, task, 3, 5, template=BARE)
    means = fv.mean_heads(model, clean, batch=2)
    stack = model.run(clean.tokens, capture="z").stack("z")
    assert relative_error(means, stack[:, :, -1].mean(axis=1)) <= 1e-12
    prompts = fv.make_prompts(model, task, 3, 5, True, BARE, seed=1)
    effects = fv.indirect_effects(model, prompts, means, batch=3)
    assert effects.shape == (5, model.config.n_layers, model.config.n_heads)

    def probability(i: int, edits: Any = ()) -> float:
        logits = model.run(prompts.tokens[i], edits=edits).logits[0, -1]
        return float(np.exp(logits - logits.max())[prompts.answers[i]] / np.exp(logits - logits.max()).sum())

    for i in range(5):
        for layer in range(model.config.n_layers):
            for head in range(model.config.n_heads):
                patch = clew.edit.set(("z", layer), means[layer, head], heads=[head], positions=[-1])
                want = probability(i, patch) - probability(i)
                assert effects[i, layer, head] == pytest.approx(want, abs=1e-12)
    heads = [(0, 1), (model.config.n_layers - 1, 0)]
    want = sum(means[layer, head] @ weights[f"blocks.{layer}.attn.W_O"][head] for layer, head in heads)
    assert relative_error(fv.function_vector(model, means, heads), want) <= 1e-12


def test_transfer_equals_single_runs() -> None:
    model, _ = make(zoo()["llama"])
    task = fv.Task("any", [(x, (2 * x + 3) % 9) for x in range(7)])
    vector = np.random.default_rng(0).standard_normal(model.config.d_model)
    result = fv.transfer(model, task, vector, [0], shots=2, n=6, scale=1.5, template=BARE, batch=4)
    prompts = fv.make_prompts(model, task, 2, 6, template=BARE, seed=2)
    likely, right = [], []
    for tokens, answer in zip(prompts.tokens, prompts.answers, strict=True):
        push = clew.edit.add(("resid_post", 0), 1.5 * vector, positions=[-1])
        logits = model.run(tokens, edits=push).logits[0, -1]
        p = np.exp(logits - logits.max())
        likely.append(p[answer] / p.sum())
        right.append(logits.argmax() == answer)
    assert result.probability[0] == pytest.approx(np.mean(likely), rel=1e-12)
    assert result.accuracy[0] == np.mean(right)


# ---- Prompts --------------------------------------------------------------------------------------------------------


def test_prompts_in_token_ids(built: tuple[clew.Model, slice]) -> None:
    template = fv.Template([1], 2, (3, 4))
    task = fv.Task("lists", [([5, 6], [7]), ([8], [9, 10]), (11, 0)])
    prompts = fv.make_prompts(built[0], task, 1, 12, template=template)
    want = {
        (1, *a, 2, *b, 3, 4, 1, *c, 2): first
        for a, b in (((5, 6), (7,)), ((8,), (9, 10)), ((11,), (0,)))
        for c, first in (((5, 6), 7), ((8,), 9), ((11,), 0))
        if a != c
    }
    assert all(want[tuple(p)] == a for p, a in zip(prompts.tokens, prompts.answers, strict=True))


def test_shuffled_prompts_show_the_same_words(built: tuple[clew.Model, slice]) -> None:
    clean = fv.make_prompts(built[0], TASKS[0], SHOTS, 40, template=BARE, seed=3)
    mixed = fv.make_prompts(built[0], TASKS[0], SHOTS, 40, True, BARE, seed=3)
    np.testing.assert_array_equal(clean.answers, mixed.answers)
    assert clean.tokens != mixed.tokens
    for a, b in zip(clean.tokens, mixed.tokens, strict=True):
        assert a[::2] == b[::2] and sorted(a[1::2]) == sorted(b[1::2])
        assert len({*a[::2]}) == SHOTS + 1  # no repetition, and the query is none of the examples


def test_text(built: tuple[clew.Model, slice]) -> None:
    pytest.importorskip("tokenizers")
    model = clew.load("english")
    task = fv.Task("opposites", [("hot", "cold"), ("big", "small"), ("good", "bad"), ("day", "night")])
    prompts = fv.make_prompts(model, task, 2, 5)
    for tokens, answer in zip(prompts.tokens, prompts.answers, strict=True):
        text = model.tokenizer.decode(tokens)
        assert text.count("Q: ") == 3 and text.endswith("\nA:")
        word = dict(task.pairs)[text.rsplit("Q: ", 1)[1].removesuffix("\nA:")]
        assert f" {word}".startswith(model.tokenizer.decode([int(answer)]))
    found = fv.extract(model, [task], shots=2, prompts=4, shuffled_prompts=3, top=3)
    assert found.average.shape == (4, 6) and len(found.heads) == 3
    assert fv.transfer(model, task, found.vectors["opposites"], n=4).accuracy.shape == (4,)


# ---- Refusals -------------------------------------------------------------------------------------------------------


def test_refusals(built: tuple[clew.Model, slice]) -> None:
    model = built[0]
    means = np.zeros((2, 2, P + 1))
    task = TASKS[0]
    for make_error, message in [
        (lambda: fv.make_prompts(model, task, 6, template=BARE), r"'\+1' has 6 pairs: 6 examples and a query need 7"),
        (lambda: fv.make_prompts(model, task, -1, template=BARE), "shots = -1"),
        (lambda: fv.make_prompts(model, task, 1, 0, template=BARE), "n = 0"),
        (lambda: fv.make_prompts(model, task, 1), "'Q: ' in a prompt of token ids"),
        (lambda: fv.make_prompts(model, fv.Task("x", [("a", 1), ("b", 2)]), 1), "all text or all token ids"),
        (lambda: fv.make_prompts(model, fv.Task("x", [(1, []), (2, [])]), 1, template=BARE), "is empty"),
        (lambda: fv.make_prompts(model, fv.Task("x", [("a", "b"), ("c", "d")]), 1), "tokenizer"),
        (lambda: fv.indirect_effects(model, fv.make_prompts(model, task, 1, 2, template=BARE), means[0]), "means: "),
        (lambda: fv.function_vector(model, means, [(2, 0)]), r"head \(2, 0\): there are 2 layers of 2 heads"),
        (lambda: fv.extract(model, [], template=BARE), "at least one"),
        (lambda: fv.extract(model, [task, task], template=BARE), "a name of its own"),
        (lambda: fv.extract(model, [task], top=5, template=BARE), "top = 5: the model has 4 heads"),
        (lambda: fv.transfer(model, task, np.zeros(3), template=BARE), r"vector: \[3\], expected \["),
        (lambda: fv.transfer(model, task, np.zeros(model.config.d_model), [2], template=BARE), r"layers = \[2\]"),
        (lambda: fv.transfer(model, task, np.zeros(model.config.d_model), scale=math.nan), "scale = nan"),
    ]:
        with pytest.raises(clew.Error, match=message):
            make_error()
    with pytest.raises(clew.ConfigError, match="level 1"):
        fv.transfer(model, task, np.zeros(model.config.d_model), n=2, template=BARE).interval(1)
