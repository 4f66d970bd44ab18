"""Tools of the classic library against ours: cache helpers, logit attribution, factored matrices, folded weights.

In float64, with TransformerLens 3's HookedTransformer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("transformer_lens")

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import clew  # noqa: E402
from lifted import lifted  # noqa: E402
from test_transformer_lens import BASE, CONFIGS, _write_classic, classic, relative_error  # noqa: E402

pytestmark = [classic, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PLAIN = ("folded", "folded_rms", "no_norm")
"""Norms without weights: there its stacks behind a norm, which take weights for folded, mean what ours do."""


def both(name: str, directory: Path) -> tuple[Any, Any, clew.Model, Any]:
    """Their model and cache, our model and run, on the same tokens."""
    ids = np.random.default_rng(2).integers(0, (BASE | CONFIGS[name])["d_vocab"], (2, 9))
    with lifted(), torch.no_grad():
        theirs = _write_classic(directory, CONFIGS[name], False)
        _, cache = theirs.run_with_cache(torch.from_numpy(ids))
    model = clew.load(directory)
    return theirs, cache, model, model.run(ids, capture="*")


def same(got: Any, want: Any) -> None:
    """Stack and labels, or a stack."""
    if isinstance(want, tuple):
        assert list(got[1]) == list(want[1])
        got, want = got[0], want[0]
    assert relative_error(got, want.detach().numpy()) < 1e-11


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "gemma"])  # its stacks know no norm behind a branch
def test_stacks(name: str, tmp_path: Path) -> None:
    theirs, cache, model, run = both(name, tmp_path)
    c = model.config
    with torch.no_grad():
        for layer in (None, 0, 1):
            same(run.accumulated_resid(layer, return_labels=True), cache.accumulated_resid(layer, return_labels=True))
            same(run.decompose_resid(layer, return_labels=True), cache.decompose_resid(layer, return_labels=True))
        same(
            run.decompose_resid(mode="attn", incl_embeds=False, pos=-2),
            cache.decompose_resid(mode="attn", incl_embeds=False, pos_slice=-2),
        )
        for options in (dict(), dict(incl_remainder=True)):
            same(
                run.stack_head_results(return_labels=True, **options),
                cache.stack_head_results(-1, return_labels=True, **options),
            )
        if not c.parallel_attn_mlp and not c.attn_only:
            same(
                run.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True, pos=slice(2, 5)),
                cache.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True, pos_slice=(2, 5)),
            )
            same(run.decompose_resid(1, mlp_input=True), cache.decompose_resid(1, mlp_input=True))
        if not c.attn_only:
            same(
                run.stack_neuron_results(1, return_labels=True, incl_remainder=True),
                cache.stack_neuron_results(1, return_labels=True, incl_remainder=True),
            )
            same(
                run.stack_neuron_results(2, pos=-1, neurons=slice(1, 6), return_labels=True),
                cache.stack_neuron_results(2, pos_slice=-1, neuron_slice=(1, 6), return_labels=True),
            )
        same(run.stack_activation("pattern", 1), cache.stack_activation("pattern", 1))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "gemma"])
def test_stacks_behind_norms(name: str, tmp_path: Path) -> None:
    theirs, cache, model, run = both(name, tmp_path)
    with torch.no_grad():
        same(run.accumulated_resid(apply_ln=True), cache.accumulated_resid(apply_ln=True))
        stack = cache.decompose_resid()
        for layer, norm in ((0, "blocks.0.ln1"), (1, "blocks.1.ln1"), (None, "ln_final")):
            weight = model.weights.get(f"{norm}.w", 1.0)
            want = cache.apply_ln_to_stack(stack, layer) * torch.as_tensor(np.array(weight))
            same(run.apply_ln_to_stack(stack.numpy(), layer), want)
        if name in PLAIN:
            answer, wrong = 5, 2
            tokens = torch.tensor([1, 3])
            same(run.logit_attrs(stack.numpy(), answer), cache.logit_attrs(stack, answer))
            same(run.logit_attrs(stack.numpy(), answer, wrong), cache.logit_attrs(stack, answer, wrong))
            last = cache.decompose_resid(pos_slice=-1)
            same(
                run.logit_attrs(last.numpy(), tokens.numpy(), pos=-1),
                cache.logit_attrs(last, tokens, pos_slice=-1),
            )
            heads = cache.stack_head_results(-1, pos_slice=-1, apply_ln=True)
            same(run.stack_head_results(pos=-1, apply_ln=True), heads)
            direct = clew.direct_logit_attribution(model, run.tokens, answer, by="head")
            want_heads = (heads @ theirs.W_U[:, answer]).numpy()
            rows = [i for i, label in enumerate(direct.labels) if label.startswith("L")]
            assert relative_error(direct.values[rows], want_heads) < 1e-11
            full, labels = cache.get_full_resid_decomposition(apply_ln=True, pos_slice=-1, return_labels=True)
            full_attrs = (full @ theirs.W_U[:, answer]).numpy()
            neurons = clew.direct_logit_attribution(model, run.tokens, answer, by="neuron")
            where = [labels.index(label) for label in neurons.labels]
            assert relative_error(neurons.values, full_attrs[where]) < 1e-11
            bias = full_attrs[labels.index("bias")] + theirs.b_U[answer].item()
            assert np.abs(neurons.remainder - bias).max() < 1e-7  # their accumulated_bias is a float32 tensor


@pytest.mark.parametrize("name", ["gpt2", "grouped"])
def test_factored_matrices(name: str, tmp_path: Path) -> None:
    theirs, _, model, _ = both(name, tmp_path)
    with torch.no_grad():
        for ours, other in ((model.QK(), theirs.QK), (model.OV(), theirs.OV)):
            same(ours.AB, other.AB)
            same(ours.S, other.S)
            same(ours.norm(), other.norm())
            same(ours.get_corner()[:3, :3], other.get_corner())  # theirs cuts leading axes too
            same(ours[0, 1].make_even().AB, other[0, 1].make_even().AB)
            same(np.abs(ours.collapse_l()), other.collapse_l().abs())  # singular vectors are given up to signs
            same(np.abs(ours.collapse_r()), other.collapse_r().abs())
            same(ours[1, 0, 2:4].AB, other[1, 0, 2:4].AB)
            got, want = (np.sort_complex(e) for e in (ours.eigenvalues(), other.eigenvalues.numpy()))
            assert np.abs(got - want).max() < 1e-9 * np.abs(want).max()
            same((ours[0] @ ours[1]).AB, (other[0] @ other[1]).AB)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("gemma", "no_norm")])
def test_folded_weights(name: str, tmp_path: Path) -> None:
    """Weight by weight; its process_weights itself passes through float32, so its steps are called one by one."""
    theirs, _, model, run = both(name, tmp_path)
    layer_norm = not model.config.rms
    state = {k: v.clone() for k, v in theirs.state_dict().items()}
    if model.config.norm_affine:
        state = theirs.fold_layer_norm(state, fold_biases=layer_norm, center_weights=layer_norm)
    state = theirs.fold_value_biases(state)
    if layer_norm:
        state = theirs.center_writing_weights(state)
    state = theirs.center_unembed(state)
    folded = model.folded()
    compared = 0
    for key, got in folded.weights.items():
        other = key.replace(".W_", "._W_").replace(".b_", "._b_")
        want = state[other if other in state else key].detach().numpy()
        assert np.abs(got - want).max() < 1e-12 * max(1.0, np.abs(want).max()), key
        compared += 1
    assert compared >= 10
    left = set(state) - set(folded.weights) - {k.replace("._", ".") for k in state}
    for key in set(state) - set(folded.weights):
        if key.endswith((".w", ".b")) and "_norm" not in key:
            assert (state[key] == key.endswith(".w")).all()  # ones and zeros, which a folded model of ours leaves out
    assert not [k for k in left if k.endswith(("W_Q", "W_in", "W_U"))]
    with torch.no_grad():
        theirs.load_state_dict(state)
        want = theirs(torch.from_numpy(np.array(run.tokens)).long()).numpy()
    assert np.abs(folded.run(run.tokens).logits - want).max() < 1e-10 * np.abs(want).max()
