"""The residual stream in parts: sums that must come out exactly, and every part against the NumPy twin."""

from __future__ import annotations

import pickle
from typing import Any

import clew
import numpy as np
import pytest
from clew import attribution, edit
from clew.attribution import direct_logit_attribution, logit_constant
from clew.lens import logit_lens
from support import make, relative_error
from twin import twin
from zoo import random_tokens, zoo

ZOO = zoo()
BLOCKS = [name for name, c in ZOO.items() if c.n_layers]


def reference(config: clew.ModelConfig, w: Any, site: dict[str, Any], by: str) -> tuple[list[str], list[Any]]:
    """Labels and parts of the final stream [batch, pos, d_model] by their definitions, from the twin's sites."""

    def behind(layer: int, branch: int, x: Any) -> Any:
        name = f"blocks.{layer}.ln{branch}_post"
        if not config.use_normalization_before_and_after:
            return x
        mean = 0 if config.rms else x.mean(-1, keepdims=True)
        return (x - mean) / site[f"{name}.hook_scale"] * w[f"{name}.w"]

    labels, parts = [], []
    for end in ("embed", "pos_embed"):
        if f"hook_{end}" in site:
            labels.append(end)
            parts.append(site[f"hook_{end}"])
    for layer in range(config.n_layers):
        at = f"blocks.{layer}."
        if by == "layer":
            labels.append(f"{layer}_attn_out")
            parts.append(site[at + "hook_attn_out"])
        else:
            labels += [f"L{layer}H{h}" for h in range(config.n_heads)]
            parts += [behind(layer, 1, site[at + "attn.hook_result"][:, :, h]) for h in range(config.n_heads)]
        if by == "neuron" and not config.attn_only:
            labels += [f"L{layer}N{i}" for i in range(config.d_mlp)]
            post, W_out = site[at + "mlp.hook_post"], w[at + "mlp.W_out"]
            parts += [behind(layer, 2, post[:, :, i, None] * W_out[i]) for i in range(config.d_mlp)]
        elif not config.attn_only:
            labels.append(f"{layer}_mlp_out")
            parts.append(site[at + "hook_mlp_out"])
    return labels, parts


def final_linear(config: clew.ModelConfig, w: Any, site: dict[str, Any], x: Any) -> Any:
    """The final norm's linear part."""
    if not config.final_norm or config.normalization_type is None:
        return x
    mean = 0 if config.rms else x.mean(-1, keepdims=True)
    return (x - mean) / site["ln_final.hook_scale"] * w.get("ln_final.w", 1.0)


@pytest.mark.parametrize("by", ["layer", "head", "neuron"])
@pytest.mark.parametrize("name", ZOO)
def test_direct_logit_attribution(name: str, by: Any) -> None:
    config = ZOO[name]
    model, w = make(config)
    tokens = random_tokens(config, 7, pos=9)
    answer, wrong = np.array([0, config.d_vocab_out - 1]), np.array([config.d_vocab_out // 2, 0])
    site = twin(config, w, tokens)
    rows = np.arange(2)
    cap = config.output_logits_soft_cap
    for pos, wrong_ids in ((-1, None), (4, wrong)):
        got = direct_logit_attribution(model, tokens, answer, wrong_ids, by=by, pos=pos)
        direction = w["unembed.W_U"].T[answer]
        if wrong_ids is not None:
            direction = direction - w["unembed.W_U"].T[wrong_ids]
        labels, parts = reference(config, w, site, by)
        want = [(final_linear(config, w, site, part)[:, pos] * direction).sum(-1) for part in parts]
        assert got.labels == labels
        logits = site["logits"] if not cap else cap * np.arctanh(site["logits"] / cap)  # before the cap
        logit = logits[rows, pos, answer] - (0 if wrong_ids is None else logits[rows, pos, wrong_ids])
        size = max(1.0, np.abs(want).max(), np.abs(logit).max())
        assert np.abs(got.values - want).max() < 1e-10 * size
        assert np.abs(got.total - got.logit).max() < 1e-12 * size
        assert np.abs(got.logit - logit).max() < 1e-10 * size
        if not cap:  # the model's own logits
            own = model.run(tokens).logits
            own = own[rows, pos, answer] - (0 if wrong_ids is None else own[rows, pos, wrong_ids])
            assert np.abs(got.total - own).max() < 1e-11 * size


def test_what_edits_put_there_is_a_component() -> None:
    model, _ = make(ZOO["gpt2"])
    plain = direct_logit_attribution(model, [1, 2, 3], 4, by="head")
    assert "edits" not in plain.labels
    for change in (
        edit.scale("attn_out.1", 2.0),
        edit.scale("resid_post.0", 2.0),
        edit.add("ln_final.normalized", 1.0),
    ):
        with model.edited(change):
            parts = direct_logit_attribution(model, [1, 2, 3], 4, by="head")
            logit = model.run([1, 2, 3]).logits[0, -1, 4]
        assert parts.labels[-1] == "edits" and abs(parts.values[-1, 0]) > 1e-6
        assert parts.total[0] == pytest.approx(logit, rel=1e-10) and parts.logit[0] == pytest.approx(logit, rel=1e-10)
    with model.edited(edit.zero("z.0")):  # in sight of the components
        assert abs(direct_logit_attribution(model, [1, 2, 3], 4, by="head").values[-1, 0]) < 1e-10


@pytest.mark.parametrize("name", ZOO)
def test_the_parts_sum_to_the_stream(name: str) -> None:
    config = ZOO[name]
    model, w = make(config)
    tokens = random_tokens(config, 5, pos=7)
    run, site = model.run(tokens, capture="*"), twin(config, w, tokens)
    n = config.n_layers
    for layer in (*range(n), None):
        stream = site[f"blocks.{layer}.hook_resid_pre"] if layer is not None else run.accumulated_resid()[-1]
        for heads in (False, True):
            for neurons in (False, True):
                stack, labels = run.decompose_resid(layer, heads=heads, neurons=neurons, return_labels=True)
                assert len(labels) == len(stack) == len(set(labels))
                assert relative_error(stack.sum(0), stream) < 1e-11
    if n:
        assert relative_error(run.accumulated_resid()[-1], site[f"blocks.{n - 1}.hook_resid_post"]) < 1e-11
    for by, options in (("layer", {}), ("head", dict(heads=True)), ("neuron", dict(heads=True, neurons=True))):
        labels, parts = reference(config, w, site, by)
        stack, own = run.decompose_resid(return_labels=True, **options)
        keep = [i for i, label in enumerate(own) if not label.endswith("_bias")]
        assert [own[i] for i in keep] == labels
        assert relative_error(stack[keep], np.stack(parts)) < 1e-11
        biases = [label for label in own if label.endswith("_bias")]
        assert not biases or by != "layer"
    embeds = [s for s in site if s in ("hook_embed", "hook_pos_embed")]
    for mode, kind in (("attn", "attn"), ("mlp", "mlp")):
        if kind == "attn" or not config.attn_only:
            stack, labels = run.decompose_resid(mode=mode, return_labels=True)
            assert labels[len(embeds) :] == [f"{i}_{kind}_out" for i in range(n)]
            without = run.decompose_resid(mode=mode, incl_embeds=False)
            assert np.array_equal(stack[len(embeds) :], without)


@pytest.mark.parametrize("name", BLOCKS)
def test_inputs_of_every_norm(name: str) -> None:
    """Parts as the norm passes them on, plus its bias, are what the branch reads."""
    config = ZOO[name]
    model, w = make(config)
    tokens = random_tokens(config, 5, pos=7)
    site = twin(config, w, tokens)
    whole = model.run(tokens, capture="*")
    bare = model.run(tokens, capture=[s for s in whole if not s.endswith((".hook_scale", "logits"))])
    for layer in range(config.n_layers):
        for mlp_input in (False, True)[: 1 if config.attn_only else 2]:
            shared = mlp_input and config.parallel_attn_mlp and config.shared_norm
            norm = f"blocks.{layer}.ln{2 if mlp_input and not shared else 1}"
            kind = "mid" if mlp_input and not config.parallel_attn_mlp else "pre"
            want = site.get(f"{norm}.hook_out", site[f"blocks.{layer}.hook_resid_{kind}"])
            bias = w.get(f"{norm}.b", 0.0)
            for run in (whole, bare):  # with the captured scale, and with one made from the stream
                stack = run.decompose_resid(layer, mlp_input=mlp_input, apply_ln=True)
                assert relative_error(stack.sum(0) + bias, want) < 1e-11
                last = run.accumulated_resid(layer, mlp_input=mlp_input, apply_ln=True, return_labels=True)
                assert relative_error(last[0][-1] + bias, want) < 1e-11
                assert last[1][-1] == f"{layer}_{kind}"
            stack = whole.stack_head_results(layer, incl_remainder=True)
            if not mlp_input:
                normed = whole.stack_head_results(layer, incl_remainder=True, apply_ln=True)
                assert np.array_equal(normed, whole.apply_ln_to_stack(stack, layer))
                assert relative_error(normed.sum(0) + bias, want) < 1e-11


@pytest.mark.parametrize("name", ZOO)
def test_logits_from_stacks(name: str) -> None:
    """logit_attrs and logit_constant against the logits, the logit lens and direct_logit_attribution."""
    config = ZOO[name]
    model, _ = make(config)
    tokens = random_tokens(config, 2, pos=7)
    run = model.run(tokens, capture="*")
    cap = config.output_logits_soft_cap
    logits = run.logits if not cap else cap * np.arctanh(run.logits / cap)
    answer = config.d_vocab_out - 1
    stack = run.decompose_resid()
    total = run.logit_attrs(stack, answer).sum(0) + logit_constant(model, answer)
    assert np.abs(total - logits[..., answer]).max() < 1e-10
    every = random_tokens(config.replace(d_vocab=config.d_vocab_out, d_vocab_out=None), 9, pos=7)
    total = run.logit_attrs(stack, every, 0).sum(0) + logit_constant(model, every, 0)
    want = np.take_along_axis(logits, every[..., None], -1)[..., 0] - logits[..., 0]
    assert np.abs(total - want).max() < 1e-10
    one = run.logit_attrs(run.decompose_resid(pos=-2, heads=True), [answer, 0], pos=-2)
    direct = direct_logit_attribution(model, tokens, [answer, 0], by="head", pos=-2)
    total = one.sum(0) + logit_constant(model, [answer, 0])
    assert np.abs(total - direct.logit).max() < 1e-10
    # per sequence, for all its positions
    per = run.logit_attrs(stack, [answer, 0])
    assert np.array_equal(per[:, 0], run.logit_attrs(stack, answer)[:, 0])
    assert np.array_equal(per[:, 1], run.logit_attrs(stack, 0)[:, 1])
    if config.n_layers > 1:
        lens = logit_lens(model, run)
        read = run.accumulated_resid(apply_ln=True)[1:] @ model.W_U + model.b_U
        read = read if not cap else cap * np.tanh(read / cap)
        assert relative_error(read, lens.logits) < 1e-11


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "ln_sandwich", "gqa_6_2", "phi"])
def test_stacks_of_heads_and_neurons(name: str) -> None:
    config = ZOO[name]
    model, w = make(config)
    tokens = random_tokens(config, 3, pos=6)
    site = twin(config, w, tokens)
    run = model.run(tokens, capture="*")
    n, h, f = config.n_layers, config.n_heads, config.d_mlp
    names, parts = reference(config, w, site, "neuron")
    want = dict(zip(names, parts, strict=True))
    without = model.run(tokens, capture=[s for s in run if not s.endswith(("hook_result", "logits"))])
    for source in (run, without):  # from hook_result, and from hook_z
        stack, labels = source.stack_head_results(return_labels=True)
        assert labels == [f"L{i}H{j}" for i in range(n) for j in range(h)]
        assert relative_error(stack, np.stack([want[label] for label in labels])) < 1e-11
    stack, labels = run.stack_neuron_results(n - 1, return_labels=True)
    assert labels == [f"L{i}N{j}" for i in range(n - 1) for j in range(f)]
    assert relative_error(stack, np.stack([want[label] for label in labels])) < 1e-11
    for neurons, numbers in ((slice(2, 9, 3), [2, 5, 8]), ([7, 1], [7, 1]), (np.arange(f) == 4, [4])):
        some, labels = run.stack_neuron_results(neurons=neurons, return_labels=True)
        assert labels == [f"L{i}N{j}" for i in range(n) for j in numbers]
        assert relative_error(some, np.stack([want[label] for label in labels])) < 1e-11
    # the remainder, projections and norms commute
    whole, labels = run.stack_neuron_results(return_labels=True, incl_remainder=True)
    assert labels[-1] == "remainder" and relative_error(whole.sum(0), site[f"blocks.{n - 1}.hook_resid_post"]) < 1e-11
    assert relative_error(run.stack_head_results(incl_remainder=True).sum(0), run["resid_post", -1]) < 1e-11
    for onto in (model.W_U[:, 3], model.W_U[:, :4]):
        got = run.stack_neuron_results(incl_remainder=True, apply_ln=True, project_output_onto=onto)
        assert relative_error(got, run.apply_ln_to_stack(whole) @ onto) < 1e-11
    assert np.shares_memory(run.stack_activation("pattern", 1), run.stack("pattern"))
    assert np.array_equal(run.stack_activation("pattern", 1), run.stack("pattern")[:1])
    assert run.stack_activation("z").shape[0] == n


def test_positions_of_ragged_batches() -> None:
    config = ZOO["gpt2"]
    model, _ = make(config)
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    run = model.run(prompts, capture="*")
    for options in (dict(), dict(heads=True, neurons=True)):
        last = run.decompose_resid(pos=-1, apply_ln=True, **options)
        two = run.decompose_resid(pos=[-1, 0], apply_ln=True, **options)
        every = run.decompose_resid(apply_ln=True, **options)
        assert np.isfinite(every).all()
        for seq, prompt in enumerate(prompts):
            alone = model.run([prompt], capture="*").decompose_resid(apply_ln=True, **options)
            assert relative_error(last[:, seq], alone[:, 0, -1]) < 1e-11
            assert relative_error(two[:, seq], alone[:, 0][:, [-1, 0]]) < 1e-11
            assert relative_error(every[:, seq, : len(prompt)], alone[:, 0]) < 1e-11
        assert np.array_equal(run.decompose_resid(pos=slice(1, 3), apply_ln=True, **options), every[:, :, 1:3])
    got = direct_logit_attribution(model, prompts, [3, 4])
    for seq, prompt in enumerate(prompts):
        alone = direct_logit_attribution(model, prompt, 3 + seq)
        assert np.abs(got.values[:, seq] - alone.values[:, 0]).max() < 1e-12
    # a run that kept some positions only: an int counts among those
    some = model.run(prompts, capture="*", positions=[0, -1])
    assert np.array_equal(some.decompose_resid(pos=1, apply_ln=True), run.decompose_resid(pos=-1, apply_ln=True))
    assert np.array_equal(some.decompose_resid(pos=-2), run.decompose_resid(pos=0))
    with pytest.raises(clew.ShapeError, match=r"pos = -4: sequence 1 of the run has 3 positions"):
        run.decompose_resid(pos=-4)
    with pytest.raises(clew.ShapeError, match="pos = 3: the shortest prompt has 3 tokens"):
        direct_logit_attribution(model, prompts, 1, pos=3)
    with pytest.raises(clew.ShapeError, match="pos = 2: sequence 0 of the run has 2 positions"):
        some.decompose_resid(pos=2)


def test_empty_stacks() -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([[1, 2, 3]] * 2, capture="*")
    assert run.stack_head_results(0).shape == run.stack_neuron_results(0).shape == (0, 2, 3, 24)
    assert run.stack_head_results(0, pos=-1, apply_ln=True).shape == (0, 2, 24)
    assert run.stack_neuron_results(0, project_output_onto=model.W_U[:, 0]).shape == (0, 2, 3)
    assert run.decompose_resid(0, incl_embeds=False, pos=[0, 1]).shape == (0, 2, 2, 24)
    only = run.stack_head_results(0, incl_remainder=True)
    assert np.array_equal(only[0], run["resid_pre", 0])
    assert run.stack_activation("z", 0).shape == (0, 2, 3, 3, 8)


def test_float32_stays_float32() -> None:
    for name in ("gpt2", "gemma2"):
        model, _ = make(ZOO[name], dtype=np.float32)
        run = model.run([1, 2, 3], capture="*")
        for stack in (
            run.accumulated_resid(apply_ln=True),
            run.decompose_resid(heads=True, neurons=True, apply_ln=True),
            run.stack_head_results(incl_remainder=True),
            run.stack_neuron_results(1, incl_remainder=True, apply_ln=True),
            run.logit_attrs(run.decompose_resid(), 3),
        ):
            assert stack.dtype == np.float32
        got = direct_logit_attribution(model, [1, 2, 3], 4, by="neuron")
        assert got.values.dtype == np.float64 and np.abs(got.total - got.logit).max() < 1e-4


def test_runs_without_their_model() -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([1, 2, 3], capture="*")
    assert run.model is model
    again = pickle.loads(pickle.dumps(run))
    assert again.model is None
    assert np.array_equal(again.decompose_resid(), run.decompose_resid())  # needs no weights
    for ask in (
        lambda m: again.stack_head_results(model=m),
        lambda m: again.logit_attrs(run.decompose_resid(), 1, model=m),
    ):
        assert ask(model).shape
        with pytest.raises(clew.ConfigError, match="does not know its model"):
            ask(None)


def test_another_model_of_the_same_sizes() -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([1, 2, 3], capture="z")
    doubled = model.with_weights({"blocks.0.attn.W_O": 2 * model.weights["blocks.0.attn.W_O"]})
    np.testing.assert_allclose(run.stack_head_results(1, model=doubled), 2 * run.stack_head_results(1), rtol=1e-12)
    assert run.stack_head_results(model=model.folded()).shape == (6, 1, 3, 24)


def test_stacks_of_integers() -> None:
    for name in ("gpt2", "no_norm"):
        model, _ = make(ZOO[name])
        run = model.run([1, 2, 3], capture="*")
        stack = np.arange(3 * model.config.d_model).reshape(1, 1, 3, -1)
        assert run.apply_ln_to_stack(stack).dtype == np.float64
        np.testing.assert_allclose(run.logit_attrs(stack, 1), run.logit_attrs(stack.astype(float), 1), rtol=1e-12)


def test_tokens_as_text() -> None:
    pytest.importorskip("tokenizers")
    model = clew.load("shakespeare")
    text = "God save you, gentle"
    words = [" lord", " king"]
    ids = [model.to_single_token(w) for w in words]
    a = direct_logit_attribution(model, text, " lord", " king")
    b = direct_logit_attribution(model, text, ids[0], ids[1])
    assert np.array_equal(a.values, b.values)
    run = model.run([text, text], capture="*")
    stack = run.decompose_resid(pos=-1)
    assert np.array_equal(run.logit_attrs(stack, words, pos=-1), run.logit_attrs(stack, ids, pos=-1))
    shown = repr(a).splitlines()
    assert shown[0] == "Attribution of 10 components, 1 sequence; means:" and len(shown) == 13
    best = max(range(10), key=lambda i: abs(a.values[i, 0]))
    assert a.labels[best] in shown[1] and f"{a.values[best, 0]:+.4f}" in shown[1] and "logit" in shown[-1]
    assert a.top(2)[0] == (a.labels[best], a.values[best, 0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(by="token"), clew.ConfigError, "by = 'token'"),
        (dict(answer=31), clew.TokenError, "31 is no token; the model writes ids 0 to 30"),
        (dict(answer=0.5), clew.ShapeError, r"token ids, at most \[batch, pos\], not float64 \[\]"),
        (dict(answer=[1, 2]), clew.ShapeError, r"answer of shape \[2\] for 1 sequences"),
        (dict(answer=[[1]]), clew.ShapeError, r"answer of shape \[1, 1\] for 1 sequences"),
        (dict(answer=[1, 2], wrong=[1, 2, 3]), clew.ShapeError, r"tokens \[2\] and incorrect_tokens \[3\] differ"),
        (dict(answer=[[1], [2, 3]]), clew.ShapeError, "tokens cannot be read as an array: .* inhomogeneous"),
        (dict(answer="x"), clew.TokenError, "no tokenizer"),
        (dict(pos=[1, 2]), clew.ShapeError, r"pos = \[1, 2\]: expected one position"),
        (dict(pos=3), clew.ShapeError, "3 of a prompt of 3 tokens"),
        (dict(tokens=[]), clew.TokenError, "empty"),
    ],
)
def test_refused(options: dict[str, Any], error: type[clew.Error], message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    with pytest.raises(error, match=message):
        direct_logit_attribution(model, **(dict(tokens=[1, 2, 3], answer=4) | options))


@pytest.mark.parametrize(
    ("neurons", "message"),
    [
        ([[1, 2]], r"neurons: a slice, a list of integers or a mask, not int64 \[1, 2\]"),
        (5, r"neurons: a slice, a list of integers or a mask, not int64 \[\]"),
        ([0.5], r"neurons: a slice, a list of integers or a mask, not float64 \[1\]"),
        ("a", r"neurons: a slice, a list of integers or a mask, not <U1 \[\]"),
        ([[1], [2, 3]], "neurons cannot be read as an array"),
        ([], r"neurons = \[\] selects nothing"),
        (np.arange(0), "neurons = array.* selects nothing"),
        (np.zeros(96, bool), "neurons = array.* selects nothing"),
        (np.zeros(5, bool), "neurons: boolean index did not match .*; the model has 96"),
        (slice(4, 4), "neurons = slice.* selects nothing"),
        (slice("a"), "neurons = slice.*: slice indices must be integers"),
        (slice(0, 4, 0), "neurons = slice.*: slice step cannot be zero"),
    ],
)
def test_neurons_that_there_are_not(neurons: Any, message: str) -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([1, 2, 3], capture="mlp.hook_post")
    with pytest.raises(clew.ShapeError, match=message):
        run.stack_neuron_results(neurons=neurons)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a", r" must be real numbers, not <U1 \[\]"),
        ([[1], [2, 3]], " cannot be read as an array: .* inhomogeneous"),
        (np.ma.masked_all(24), ": an array with masked values"),
        (np.ones(24, complex), r" must be real numbers, not complex128 \[24\]"),
        (np.ones(24, object), r" must be real numbers, not object \[24\]"),
        (np.ones(24, bool), r" must be real numbers, not bool \[24\]"),
    ],
)
def test_stacks_and_directions_that_are_no_real_numbers(given: Any, message: str) -> None:
    for name in ("gpt2", "no_norm"):
        model, _ = make(ZOO[name])
        run = model.run([1, 2, 3], capture="*")
        with pytest.raises(clew.ShapeError, match=f"project_output_onto{message}"):
            run.stack_neuron_results(project_output_onto=given)
        for read in (run.apply_ln_to_stack, lambda stack, run=run: run.logit_attrs(stack, 1)):
            with pytest.raises(clew.ShapeError, match=f"stack{message}"):
                read(given)


def test_refused_helpers() -> None:
    model, _ = make(ZOO["gpt2"])
    other, _ = make(ZOO["gpt2"].replace(n_heads=4, d_head=8))
    deeper, _ = make(ZOO["gpt2"].replace(n_layers=3))
    run = model.run([1, 2, 3], capture="*")
    bare = pickle.loads(pickle.dumps(run))  # does not know its model
    stack = run.decompose_resid()
    cases: list[tuple[Any, type[clew.Error], str]] = [
        (lambda: run.decompose_resid(3), clew.SiteError, "layer = 3: 0 to 1, or 2, -1 or None"),
        (lambda: run.decompose_resid(0.5), clew.SiteError, "layer = 0.5: expected a whole number"),
        (lambda: run.decompose_resid(mlp_input=True), clew.SiteError, "no MLP at the end of the stream"),
        (lambda: run.decompose_resid(mode="z"), clew.ConfigError, "mode = 'z'"),
        (lambda: run.decompose_resid(pos=0.5), clew.ShapeError, r"pos must be an int, .* not float64 \[\]"),
        (lambda: run.apply_ln_to_stack(stack, pos=0), clew.ShapeError, r"24\] at pos = 0: expected \[component, 1, 24"),
        (lambda: run.apply_ln_to_stack(stack[..., :5]), clew.ShapeError, r"expected \[component, 1, 3, 24\]"),
        (lambda: run.logit_attrs(stack, [[1, 2]]), clew.ShapeError, r"\[1, 2\] do not fit a stack of \[6, 1, 3\]"),
        (lambda: run.logit_attrs(stack[:, :, 0], [[1, 2, 3]], pos=0), clew.ShapeError, r"shape \[1, 3\] do not fit"),
        (lambda: run.stack_neuron_results(neurons=[96]), clew.ShapeError, "index 96 is out of bounds .* has 96"),
        (lambda: run.logit_attrs(stack, [[1], [2, 3]]), clew.ShapeError, "tokens cannot be read as an array"),
        (lambda: run.logit_attrs(stack, 1, [[1], [2, 3]]), clew.ShapeError, "incorrect_tokens cannot be read"),
        (lambda: run.stack_head_results(model=5), clew.ConfigError, "model: a Model, .*, not int"),
        (lambda: run.stack_head_results(model=other), clew.ShapeError, "with n_heads = 3; this model has 4"),
        (lambda: bare.stack_head_results(model=other), clew.ShapeError, "with n_heads = 3; this model has 4"),
        (lambda: bare.logit_attrs(stack, 1, model=deeper), clew.ShapeError, "with n_layers = 2; this model has 3"),
        (lambda: run.stack_neuron_results(project_output_onto=np.ones(5)), clew.ShapeError, r"\[5\]: expected \[24\]"),
    ]  # fmt: skip
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_what_was_not_captured() -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([1, 2, 3], capture=["z.0", "attn_out.0"])
    cases: list[tuple[Any, str]] = [
        (lambda: run.stack_head_results(), r"blocks\.1\.attn\.hook_z' was not captured"),
        (lambda: run.stack_neuron_results(), r"blocks\.0\.mlp\.hook_post' was not captured"),
        (lambda: run.stack_activation("z"), "'z' was not captured on layer 1"),
        (lambda: run.decompose_resid(), "'hook_embed' was not captured"),
        (lambda: run.accumulated_resid(), r"blocks\.0\.hook_resid_pre' was not captured"),
        (lambda: run.stack_head_results(1, apply_ln=True), r"blocks\.1\.ln1 needs blocks\.1\.ln1\.hook_scale or"),
        (lambda: run.logit_attrs(np.zeros((1, 1, 3, 24)), 0), r"ln_final\.hook_scale or .*blocks\.1\.hook_resid_post"),
    ]  # fmt: skip
    for ask, message in cases:
        with pytest.raises(clew.SiteError, match=message):
            ask()
    attn_only, _ = make(ZOO["attn_only"])
    run = attn_only.run([1, 2, 3], capture="*")
    with pytest.raises(clew.SiteError, match="this model has no MLPs"):
        run.stack_neuron_results()
    with pytest.raises(clew.SiteError, match="no MLP at an attention-only model"):
        run.decompose_resid(0, mlp_input=True)
    with pytest.raises(clew.SiteError, match="incl_mid: this model has no hook_resid_mid"):
        run.accumulated_resid(incl_mid=True)
    no_norm, _ = make(ZOO["no_norm"])
    run = no_norm.run([1, 2, 3], capture="embed")
    with pytest.raises(clew.ShapeError, match=r"stack \[2, 3\]: the last axis must be d_model = 16"):
        run.apply_ln_to_stack(np.ones((2, 3)))


def test_labels_of_the_growing_stream() -> None:
    model, _ = make(ZOO["gpt2"])
    run = model.run([1, 2, 3], capture=["resid_pre", "resid_mid", "resid_post"])
    stack, labels = run.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    for part, name in zip(
        stack, ("resid_pre.0", "resid_mid.0", "resid_pre.1", "resid_mid.1", "resid_post.1"), strict=True
    ):
        assert np.array_equal(part, run[name])
    assert run.accumulated_resid(1, return_labels=True)[1] == ["0_pre", "1_pre"]
    assert run.accumulated_resid(1, mlp_input=True, return_labels=True)[1] == ["0_pre", "1_pre", "1_mid"]
    only = model.run([1, 2, 3], capture=["resid_post", "embed", "pos_embed"])
    np.testing.assert_allclose(only.accumulated_resid(), stack[[0, 2, 4]], rtol=1e-12, atol=1e-14)
    assert attribution.accumulated_resid(run).shape == (3, 1, 3, 24)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gptj", "llama3"])
@pytest.mark.parametrize("expand", [True, False])
def test_the_full_decomposition(name: str, expand: bool) -> None:
    model, _ = make(ZOO[name])
    config = model.config
    run = model.run(random_tokens(config, 5, pos=6), capture="*")
    stack, labels = run.get_full_resid_decomposition(expand_neurons=expand, return_labels=True)
    assert len(stack) == len(labels)
    assert relative_error(stack.sum(axis=0), run["resid_post", -1]) < 1e-11
    heads = [f"L{n}H{h}" for n in range(config.n_layers) for h in range(config.n_heads)]
    per_layer = [f"N{i}" for i in range(config.d_mlp)] if expand else ["_mlp_out"]
    mlps = [f"L{n}{x}" if expand else f"{n}{x}" for n in range(config.n_layers) for x in per_layer]
    embeds = [e for e in ("embed", "pos_embed") if f"hook_{e}" in run]
    assert [x for x in labels if x != "bias"] == heads + mlps + embeds and labels.count("bias") <= 1
    parts, names = run.decompose_resid(heads=True, neurons=expand, return_labels=True)
    for label, part in zip(labels, stack, strict=True):
        if label != "bias":
            assert np.array_equal(part, parts[names.index(label)])
    early = run.get_full_resid_decomposition(1, apply_ln=True, pos=-1)
    assert np.allclose(early, run.apply_ln_to_stack(run.get_full_resid_decomposition(1, pos=-1), 1, pos=-1))
