"""Interventions against the NumPy twin, at every site of every architecture; values, functions, refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import clew
import numpy as np
import pytest
from clew import edit, metrics
from clew.sites import Site
from numpy.typing import NDArray
from support import assert_close, make, relative_error
from twin import twin
from zoo import random_tokens, zoo

Array = NDArray[Any]
ZOO = zoo()
EXACT = 1e-10
POS = 7
KINDS: dict[str, Callable[[Array, Array], Array]] = {
    "set": lambda x, v: v,
    "add": lambda x, v: x + v,
    "scale": lambda x, v: x * v,
}


def some(rng: np.random.Generator, n: int) -> list[int] | None:
    """Some indices, or None for all."""
    if n == 1 or rng.random() < 0.4:
        return None
    return sorted(rng.choice(n, rng.integers(1, n + 1), replace=False).tolist())


def selection(rng: np.random.Generator, site: Site, shape: tuple[int, ...]) -> dict[str, Any]:
    """Keyword arguments of an edit that choose a part of a site."""
    chosen: dict[str, Any] = {}
    for axis, n in zip(site.axes, shape, strict=True):
        name = {"batch": "batch", "pos": "positions", "head": "heads", "kv_head": "heads"}.get(axis, "neurons")
        indices = some(rng, n)
        if indices is not None:
            chosen[name] = indices
    return chosen


def region(site: Site, shape: tuple[int, ...], chosen: dict[str, Any]) -> tuple[Array, ...]:
    """NumPy's index of the selected part."""
    names = [
        {"batch": "batch", "pos": "positions", "head": "heads", "kv_head": "heads"}.get(a, "neurons") for a in site.axes
    ]
    return np.ix_(*(chosen.get(name, range(n)) for name, n in zip(names, shape, strict=True)))


@pytest.mark.parametrize("name", ZOO)
def test_every_site_equals_the_twin(name: str) -> None:
    """Each site of each architecture, each on a layer and with a selection of its own: all that follows agrees."""
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 4, batch=2, pos=POS)
    plain = twin(config, weights, tokens)
    rng = np.random.default_rng(len(name))
    for number, site in enumerate(model.sites().sites):
        if site.layered and not config.n_layers:
            continue
        full = site.full_name(int(rng.integers(config.n_layers)) if site.layered else 0)
        kind = "add" if site.short == "attn_scores" else list(KINDS)[number % 3]  # −inf times a negative number is none
        shape = plain[full].shape
        chosen = selection(rng, site, shape)
        at = region(site, shape, chosen)
        value = rng.normal(size=np.broadcast_shapes(*(i.shape for i in at)))
        if kind == "scale" and site.short in ("scale",):
            value = 1 + 0.1 * np.abs(value)
        if rng.random() < 0.3:
            value = value[..., :1]  # broadcast along the last axis

        def change(x: Array, at: Any = at, value: Array = value, kind: str = kind) -> Array:
            x[at] = KINDS[kind](x[at], value)
            return x

        want = twin(config, weights, tokens, edits={full: change})
        make_edit = getattr(edit, kind)(full, value, **chosen)
        got = model.run(tokens, capture="*", edits=[make_edit])
        try:
            assert_close(got, want, EXACT)
        except AssertionError as error:
            raise AssertionError(f"{make_edit!r}: {error}") from None
        assert full == "logits" or not np.array_equal(got[full], plain[full])
        if full == "logits" and POS - 1 not in chosen.get("positions", [POS - 1]):
            continue  # of none of the last logits: refused
        bare = model.run(tokens, edits=[make_edit], logits="last").logits
        assert relative_error(bare[:, 0], want["logits"][:, -1]) <= EXACT, f"{make_edit!r}, the last logits alone"


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "gemma2",
        "gemma3",
        "gptj",
        "gpt_neox",
        "qwen3",
        "linear_causal",
        "linear_full",
        "linear_full_exclude_last",
    ],
)
def test_many_edits_at_once_equal_the_twin(name: str) -> None:
    """Several sites of several layers, and two edits of one site in order."""
    config = ZOO[name]
    model, weights = make(config)
    tokens = random_tokens(config, 5, batch=2, pos=POS)
    rng = np.random.default_rng(3)
    shapes = {n: a.shape for n, a in twin(config, weights, tokens).items()}
    names = [n for n in shapes if n != "logits" and "scores" not in n]
    picked = [str(n) for n in rng.choice(names, 8, replace=False)]
    values = {n: 0.3 * rng.normal(size=shapes[n]) for n in picked}
    edits = []
    functions: dict[str, Callable[[Array], Array]] = {}
    for n in picked:
        edits += [edit.add(n, values[n]), edit.scale(n, 1.5)]
        functions[n] = lambda x, n=n: (x + values[n]) * 1.5  # type: ignore[misc]
    assert_close(model.run(tokens, capture="*", edits=edits), twin(config, weights, tokens, edits=functions), EXACT)
    swapped = [e for a, b in zip(edits[::2], edits[1::2], strict=True) for e in (b, a)]
    other = model.run(tokens, capture=picked[0], edits=swapped)
    assert relative_error(other[picked[0]], model.run(tokens, capture=picked[0], edits=edits)[picked[0]]) > 1e-3


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(ZOO["gpt2"])[0]


@pytest.fixture(scope="module")
def tokens(model: clew.Model) -> Array:
    return random_tokens(model.config, 4, batch=3, pos=POS)


RAGGED = [[1, 4, 2, 8, 5], [7, 1, 4], [9]]


def test_what_is_one_value_parts_where_it_is_edited(model: clew.Model, tokens: Array) -> None:
    plain = model.run(tokens, capture="*")
    run = model.run(tokens, capture="*", edits=[edit.add(("resid_pre", 1), 1.0)])
    assert np.array_equal(run["resid_post", 0], plain["resid_post", 0])
    assert np.allclose(run["resid_pre", 1], plain["resid_pre", 1] + 1)
    run = model.run(tokens, capture="*", edits=[edit.add(("attn_in", 1), 1.0)])
    assert np.array_equal(run["resid_pre", 1], plain["resid_pre", 1])
    assert np.array_equal(run["q_input", 1][:, :, 0], run["attn_in", 1])
    run = model.run(tokens, capture="*", edits=[edit.add(("mlp_in", 1), np.arange(24.0))])
    assert np.array_equal(run["resid_mid", 1], plain["resid_mid", 1])
    assert not np.allclose(run["mlp_out", 1], plain["mlp_out", 1])


def test_ragged_batches_equal_one_by_one(model: clew.Model) -> None:
    vector = np.arange(model.config.d_model) / 10
    rows: list[Callable[[int], clew.edit.Edit]] = [
        lambda i: edit.add("resid_pre", vector, positions=[-1]),
        lambda i: edit.zero("z", heads=[1], positions=0),
        lambda i: edit.scale("mlp_out", 2.0),
        lambda i: edit.set("pattern", 0.2, heads=[0], positions=[-1]),
    ]
    for make_edit in rows:
        together = model.run(RAGGED, capture="*", edits=[make_edit(0)])
        for i, prompt in enumerate(RAGGED):
            alone = model.run(prompt, capture="*", edits=[make_edit(0)])
            for site in alone:
                a, b = together[site][i], alone[site][0]
                if site.endswith(("pattern", "scores")):
                    a, b = a[:, : len(prompt), : len(prompt)], b
                else:
                    a = a[: len(prompt)]
                assert relative_error(a, b) <= 1e-12, f"{make_edit(0)!r}: {site}"


def test_positions_of_each_sequence(model: clew.Model) -> None:
    run = model.run(RAGGED, capture="resid_pre.1", edits=[edit.set(("resid_pre", 1), 5.0, positions=[[3], [-1], [0]])])
    where = [(i, p) for i, p in np.argwhere((run["resid_pre", 1] == 5.0).all(axis=-1)).tolist()]
    assert where == [(0, 3), (1, 2), (2, 0)]
    values = np.array([1.0, 2.0])[:, None, None]
    run = model.run(
        RAGGED, capture="resid_pre.1", edits=[edit.set(("resid_pre", 1), values, positions=[[4], [1]], batch=[0, 1])]
    )
    assert run["resid_pre", 1][0, 4, 0] == 1 and run["resid_pre", 1][1, 1, 0] == 2


def test_values_take_the_selected_indices_from_whole_axes(model: clew.Model, tokens: Array) -> None:
    """A value as long as the site's own axis is indexed as the site is."""
    z = np.random.default_rng(0).normal(size=(3, POS, 3, 8))
    chosen: dict[str, Any] = {"heads": [2, 0], "positions": [1, 5, 2, 3], "neurons": [7, 1]}
    run = model.run(tokens, capture="z.0", edits=[edit.set(("z", 0), z, **chosen)])
    at = np.ix_(range(3), [1, 5, 2, 3], [2, 0], [7, 1])
    assert np.array_equal(run["z", 0][at], z[at])
    resid = np.random.default_rng(1).normal(size=(POS, 24))
    where = np.array([[0, 6], [3, 1], [2, 2]])
    run = model.run(tokens, capture="resid_pre.1", edits=[edit.set(("resid_pre", 1), resid, positions=where)])
    for i, row in enumerate(where):
        assert np.array_equal(run["resid_pre", 1][i, row], resid[row])


def test_masks_and_slices(model: clew.Model, tokens: Array) -> None:
    mask = np.zeros(24, bool)
    mask[[3, 5]] = True
    run = model.run(
        tokens, capture="resid_mid.0", edits=[edit.zero(("resid_mid", 0), positions=slice(2, 4), neurons=mask)]
    )
    zero = np.argwhere(run["resid_mid", 0][0] == 0)
    assert zero.tolist() == [[2, 3], [2, 5], [3, 3], [3, 5]]


def test_start_and_stop(model: clew.Model, tokens: Array) -> None:
    stream = model.run(tokens, capture="resid_pre.1")["resid_pre", 1]
    change = edit.zero(("z", 1), heads=[0])
    whole = model.run(tokens, edits=[change]).logits
    assert relative_error(model.run(embeddings=stream, start_at_layer=1, edits=[change]).logits, whole) <= 1e-12
    early = model.run(tokens, stop_after_layer=0, capture="z", edits=[edit.zero("z")])
    assert not early["z", 0].any()


def test_mean_ablation(model: clew.Model, tokens: Array) -> None:
    reference = model.run(RAGGED, capture="mlp_out")
    kept = np.concatenate([reference["mlp_out", 1][i, : len(p)] for i, p in enumerate(RAGGED)])
    for data in (RAGGED, kept[None]):
        run = model.run(tokens, capture="mlp_out.1", edits=[edit.mean_ablate(("mlp_out", 1), data)])
        assert relative_error(run["mlp_out", 1], np.broadcast_to(kept.mean(axis=0), (3, POS, 24))) <= 1e-12
    heads = edit.mean_ablate(("z", 0), RAGGED, heads=[1])
    run = model.run(tokens, capture="z.0", edits=[heads])
    assert np.ptp(run["z", 0][:, :, 1], axis=(0, 1)).max() == 0 and np.ptp(run["z", 0][:, :, 0]) > 0


def test_freezing(model: clew.Model, tokens: Array) -> None:
    other = model.run((tokens + 1) % 31, capture=["pattern", "resid_post"])
    run = model.run(tokens, capture=["pattern", "z", "v"], edits=[edit.freeze("pattern", other)])
    assert np.array_equal(run.stack("pattern"), other.stack("pattern"))
    assert np.allclose(run["z", 1], np.einsum("bhpk,bkhe->bphe", other["pattern", 1], run["v", 1]))
    same = model.run(tokens, edits=[edit.freeze("resid_post.-1", other)])
    assert relative_error(same.logits, model.run((tokens + 1) % 31).logits) <= 1e-12
    one = model.run(tokens[:1], capture="z")
    run = model.run(tokens, capture="z", edits=[edit.freeze("z", one)])
    assert np.array_equal(run["z", 0][2], one["z", 0][0])


@pytest.mark.parametrize(
    ("axis", "chosen", "orders"),
    [
        (1, "positions", [[-1, 0, 1, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1, 0], [4, 1]]),
        (2, "heads", [[2, 0, 1], [1, 0]]),
        (0, "batch", [[1, 2, 0], [2, 0]]),
        (3, "neurons", [[7, 6, 5, 4, 3, 2, 1, 0]]),
    ],
)
def test_what_is_frozen_is_taken_by_index(
    model: clew.Model, tokens: Array, axis: int, chosen: str, orders: list[list[int]]
) -> None:
    """In whatever order the indices are listed; a value of `set` is in the order of the selection."""
    other = model.run((tokens + 1) % 31, capture="z")
    plain = model.run(tokens, capture="z.0")["z", 0]
    mean = other["z", 0].mean(axis=(0, 1))
    for order in orders:
        select = tuple(order if a == axis else slice(None) for a in range(4))
        frozen = model.run(tokens, capture="z.0", edits=[edit.freeze("z.0", other, **{chosen: order})])["z", 0]
        want = plain.copy()
        want[select] = other["z", 0][select]
        assert np.array_equal(frozen, want), order
        if axis > 1:
            for reference in (other, other["z", 0].copy()):
                change = edit.mean_ablate("z.0", reference, **{chosen: order})
                got = model.run(tokens, capture="z.0", edits=[change])["z", 0]
                want[select] = np.broadcast_to(mean, plain.shape)[select]
                assert np.allclose(got, want, rtol=1e-12), order
                want = plain.copy()
        value = other["z", 0][select]
        for name, fn in KINDS.items():
            got = model.run(tokens, capture="z.0", edits=[getattr(edit, name)("z.0", value, **{chosen: order})])
            want = plain.copy()
            want[select] = fn(want[select], value)
            assert np.array_equal(got["z", 0], want), (name, order)


def test_an_edit_keeps_what_it_was_made_with(model: clew.Model, tokens: Array) -> None:
    ones = np.ones(24)
    want = model.run(tokens, edits=[edit.add("resid_pre.0", ones)]).logits

    def changed(value: Any, memory: Any) -> Array:
        made = edit.add("resid_pre.0", value)
        memory[:] = [9.0] * len(memory) if isinstance(memory, list) else 9.0
        return model.run(tokens, edits=[made]).logits

    memory = ones.copy()
    view = memory.view()
    view.flags.writeable = False
    for value, source in ((a := ones.tolist(), a), (b := ones.copy(), b), (view, memory)):
        assert np.array_equal(changed(value, source), want)

    class Foreign:
        """An array of another library."""

        def __init__(self) -> None:
            self.memory = ones.copy()

        def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
            return self.memory

    foreign = Foreign()
    assert np.array_equal(changed(foreign, foreign.memory), want)
    for name, indices in (("positions", [0, 2]), ("heads", [0]), ("neurons", [1]), ("batch", [2]),
                          ("positions", [[0], [1], [2]])):  # fmt: skip
        for given in (indices, np.array(indices)):
            kept = model.run(tokens, edits=[edit.zero("z.0", **{name: given})]).logits
            made = edit.zero("z.0", **{name: given})
            given[0] = 1 - given[0] if not isinstance(given[0], list) else [3]
            assert np.array_equal(model.run(tokens, edits=[made]).logits, kept), name
            indices = [[0], [1], [2]] if isinstance(indices[0], list) else indices
    prompts = [[1, 2, 3], [4, 5]]
    made = edit.mean_ablate("z.0", prompts)
    kept = model.run(tokens, edits=[made]).logits
    prompts[0][0] = 9
    assert np.array_equal(model.run(tokens, edits=[made]).logits, kept)
    run = model.run(tokens, capture="z")
    assert edit.set("z.0", run["z", 0]).value is not None and np.shares_memory(
        edit.set("z.0", run["z", 0][:, :2]).value, run["z", 0]
    ), "a run's memory does not change: no copy"


@pytest.mark.parametrize("name", ["set", "add", "scale"])
@pytest.mark.parametrize("site", ["pattern.1", "attn_scores.0", "logits"])
def test_padding_stays_as_it_was(model: clew.Model, name: str, site: str) -> None:
    """What lies behind a sequence's end is no part of a site, keys included."""
    plain = model.run(RAGGED, capture=site)[site]
    value = np.float64(0.25)
    by_function = edit.call(site, lambda x, _: KINDS[name](x, np.full_like(x, value)))
    for change in (getattr(edit, name)(site, value), getattr(edit, name)(site, value, neurons=[4, 0, 2]), by_function):
        together = model.run(RAGGED, capture=site, edits=[change])
        for i, prompt in enumerate(RAGGED):
            n = len(prompt)
            behind = together[site][i]
            if site != "logits":
                assert not behind[:, n:].any()
                assert np.array_equal(behind[..., n:], plain[i][..., n:])
            else:
                assert not behind[n:].any()
            if len(prompt) == 5 or "neurons" not in repr(change):
                alone = model.run(prompt, edits=[change]).logits
                assert np.allclose(together.logits[i, :n], alone[0], rtol=1e-11)


def test_edits_of_logits_that_are_not_computed(model: clew.Model, tokens: Array) -> None:
    change = edit.zero("logits", positions=[0])
    with pytest.raises(clew.ConfigError, match="would change nothing"):
        model.run(tokens, logits="last", edits=[change])
    with model.edited(change), pytest.raises(clew.ConfigError, match="would change nothing"):
        model.run(tokens, logits="last")
    metric = metrics.logit_diff(1, 2)
    for ask in (
        lambda: model.sweep(tokens, edits=[change], metric=metric),
        lambda: model.gradients(tokens, metric, edits=[change]),
        lambda: model.generate(tokens, 2, edits=[change]),
    ):
        with pytest.raises(clew.ConfigError, match="reads those of the last positions.* would change nothing"):
            ask()
    late = edit.zero("logits", positions=[-1])
    for ask in (
        lambda: model.loss(tokens, edits=[late]),
        lambda: model.sweep(tokens, edits=[late], metric=metrics.loss()),
        lambda: model.gradients(tokens, metrics.loss(), edits=[late]),
    ):
        with pytest.raises(clew.ConfigError, match="a loss reads those before the last .* would change nothing"):
            ask()
    assert model.generate(tokens, 2, capture="logits", edits=[change]).run is not None  # which shows it
    assert (model.generate(tokens[:1], 2, edits=[edit.set("logits", np.arange(31.0))]).tokens[0] == 30).all()
    assert not model.run(tokens, edits=[change]).logits[:, 0].any()
    for change in (edit.zero("logits", positions=[0, -1]), edit.zero("logits", positions=[[0], [-1], [1]])):
        whole = model.run(tokens, edits=[change]).logits[:, -1:]
        assert np.allclose(model.run(tokens, logits="last", edits=[change]).logits, whole, rtol=1e-12)


def test_the_core_checks_how_far_a_value_reaches(model: clew.Model) -> None:
    from clew import _core

    where = next(s for s in model.sites().sites if s.short == "z")
    nothing, lengths = np.zeros((0, 2), np.int32), np.array([4, 2], np.int32)
    positions, heads = np.array([[3], [1]], np.int32), np.array([2, 0], np.int32)

    def plan(value: Array, strides: tuple[int, ...], *chosen: Any) -> Any:
        batch, pos, head, neurons = chosen or (None, None, None, None)
        item = (where.index, 0, 0, batch, pos, head, neurons, value, strides, -1)
        return _core.Plan(model._core, lengths, nothing, None, -1, -1, False, 2, edits=[item])

    plan(np.zeros(2 * 4 * 3 * 8), (96, 24, 8, 1))
    plan(np.zeros(1), (0, 0, 0, 0))
    plan(np.zeros(2 * 2 * 8), (16, 7, 8, 1), None, positions, heads, None)
    for value, strides, chosen in (
        (np.zeros(2 * 4 * 3 * 8 - 1), (96, 24, 8, 1), ()),
        (np.zeros(31), (16, 0, 8, 1), (None, positions, heads, None)),
        (np.zeros(4), (-1, 0, 0, 0), ()),
        (np.zeros(4), (2**62, 2**62, 2**62, 0), ()),
    ):
        with pytest.raises(clew.ShapeError, match=r"does not reach the selected part \[2, "):
            plan(value, strides, *chosen)
    with pytest.raises(ValueError, match="the value of an edit is empty"):
        plan(np.zeros(0), (0, 0, 0, 0))


def test_freezing_all_of_a_site_spares_what_made_it(model: clew.Model, tokens: Array) -> None:
    other = model.run(tokens, capture="z")
    steps = model.plan(3, POS, edits=[edit.freeze("z", other)]).steps
    assert not any("attention" in step for step in steps), "nobody reads what attention would give"


# ---- Functions ------------------------------------------------------------------------------------------------------


def test_functions_see_and_change_every_site(model: clew.Model, tokens: Array) -> None:
    plain = model.run(tokens, capture="*")
    seen: dict[str, Array] = {}

    def look(array: Array, name: str) -> None:
        seen[name] = array

    same = model.run(tokens, capture="*", edits=[edit.call(name, look) for name in model.sites()])
    assert set(seen) == set(model.sites())
    for name in plain:
        assert relative_error(seen[name], plain[name]) <= 1e-13, name
        assert seen[name].flags.writeable
        assert relative_error(same[name], plain[name]) <= 1e-13


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "site", ["hook_embed", "resid_pre.1", "z.0", "pattern.1", "attn_scores.0", "ln1.hook_scale.1", "logits"]
)
def test_functions_in_place_or_with_a_new_array(model: clew.Model, tokens: Array, site: str, ragged: bool) -> None:
    prompt: Any = RAGGED if ragged else tokens

    def in_place(array: Array, name: str) -> None:
        array *= 1.25

    def anew(array: Array, name: str) -> Array:
        return array * 1.25

    want = model.run(prompt, capture="*", edits=[edit.scale(site, 1.25)])
    for fn in (in_place, anew):
        got = model.run(prompt, capture="*", edits=[edit.call(site, fn)])
        for name in want:
            assert relative_error(got[name], want[name]) <= 1e-13, name


def test_what_a_function_keeps_is_its_own(model: clew.Model, tokens: Array) -> None:
    kept: list[Array] = []
    run = model.run(tokens, capture="resid_mid.0", edits=[edit.call(("resid_mid", 0), lambda a, n: kept.append(a))])
    before = run["resid_mid", 0].copy()
    assert np.array_equal(kept[0], before)
    kept[0][...] = -1  # writing to it changes nothing
    again = model.run(tokens, capture="resid_mid.0")
    assert np.array_equal(run["resid_mid", 0], before) and np.array_equal(again["resid_mid", 0], before)
    assert (kept[0] == -1).all()
    returned = np.full_like(before, 3.0)
    run = model.run(tokens, capture="resid_mid.0", edits=[edit.call(("resid_mid", 0), lambda a, n: returned)])
    returned[...] = 9
    assert (run["resid_mid", 0] == 3).all()


def test_a_function_that_raises_ends_the_run(model: clew.Model, tokens: Array) -> None:
    def boom(array: Array, name: str) -> None:
        raise LookupError(f"no {name}")

    with pytest.raises(LookupError, match=r"no blocks\.1\.attn\.hook_z") as caught:
        model.run(tokens, edits=[edit.call(("z", 1), boom)])
    assert caught.traceback[-1].name == "boom"
    assert np.isfinite(model.run(tokens).logits).all()


def test_a_function_may_run_the_model(model: clew.Model, tokens: Array) -> None:
    other = (tokens + 2) % 31

    def swap(array: Array, name: str) -> Array:
        return model.run(other, capture=name)[name]

    got = model.run(tokens, edits=[edit.call(("resid_pre", 1), swap)]).logits
    assert relative_error(got, model.run(other).logits) <= 1e-12


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\), the site has \(3, 7, 24\)"),
        (np.zeros((3, POS, 24), complex), "complex128"),
        ("text", r"shape \(\)"),
    ],
)
def test_a_function_that_returns_something_else(model: clew.Model, tokens: Array, result: Any, match: str) -> None:
    with pytest.raises(clew.ShapeError, match=match):
        model.run(tokens, edits=[edit.call(("resid_pre", 1), lambda a, n: result)])
    assert np.isfinite(model.run(tokens).logits).all()


# ---- For a while ----------------------------------------------------------------------------------------------------


def test_edited_contexts_add_up(model: clew.Model, tokens: Array) -> None:
    first, second, third = edit.add("resid_pre.1", 1.0), edit.scale("resid_pre.1", 2.0), edit.add("resid_pre.1", 3.0)
    want = model.run(tokens, edits=[first, second, third]).logits
    with model.edited([first]) as same:
        assert same is model
        with model.edited(second):
            assert np.array_equal(model.run(tokens, edits=[third]).logits, want)
        loss = model.loss(tokens)
    assert np.array_equal(loss, model.loss(tokens, edits=[first]))
    assert not np.array_equal(model.run(tokens).logits, want)
    with pytest.raises(ZeroDivisionError), model.edited([first]):
        raise ZeroDivisionError
    assert np.array_equal(model.loss(tokens), model.loss(tokens, edits=[]))


def test_edited_contexts_that_end_out_of_order(model: clew.Model, tokens: Array) -> None:
    def edited(change: edit.Edit) -> Any:
        with model.edited(change):
            yield

    plain = model.run(tokens).logits
    first, second = edited(edit.zero("z")), edited(edit.zero("mlp_out"))
    next(first), next(second)
    first.close()
    assert np.array_equal(model.run(tokens).logits, model.run(tokens, edits=[edit.zero("mlp_out")]).logits)
    raised: list[BaseException] = []

    def close() -> None:
        try:
            second.close()
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert not raised and np.array_equal(model.run(tokens).logits, plain)


def test_edited_holds_in_its_own_thread(model: clew.Model, tokens: Array) -> None:
    plain = model.run(tokens).logits
    seen: list[Array] = []
    with model.edited([edit.zero("z")]):
        thread = threading.Thread(target=lambda: seen.append(model.run(tokens).logits))
        thread.start()
        thread.join()
        assert not np.array_equal(model.run(tokens).logits, plain)
    assert np.array_equal(seen[0], plain)


def test_another_model_is_not_edited(model: clew.Model, tokens: Array) -> None:
    other = make(ZOO["gpt2"], seed=9)[0]
    plain = other.run(tokens).logits
    with model.edited([edit.zero("z")]):
        assert np.array_equal(other.run(tokens).logits, plain)


def test_loss_with_edited_logits(model: clew.Model, tokens: Array) -> None:
    change = edit.scale("logits", 0.5)
    logits = model.run(tokens, edits=[change]).logits[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    want = -np.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    assert relative_error(model.loss(tokens, edits=[change]), want) <= 1e-12


def test_bits_do_not_depend_on_threads(model: clew.Model, tokens: Array) -> None:
    edits = [
        edit.add("resid_pre", 0.1),
        edit.zero("z", heads=[0]),
        edit.scale("pattern.1", 0.9),
        edit.zero("q_input.0"),
    ]
    runs = []
    for n in (1, 2, 3):
        clew.set_num_threads(n)
        runs.append(model.run(tokens, edits=edits).logits)
    assert all(np.array_equal(runs[0], r) for r in runs[1:])


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_edit", "error", "match"),
    [
        (lambda r: edit.zero("resid_pot"), clew.SiteError, "resid_post"),
        (lambda r: edit.zero("rot_q"), clew.SiteError, "no such site"),
        (lambda r: edit.zero(("z", 2)), clew.SiteError, "layers 0 to 1"),
        (lambda r: edit.zero("z", heads=[3]), clew.ShapeError, "heads 3, but there are 3"),
        (lambda r: edit.zero("resid_pre", heads=[0]), clew.SiteError, "has no heads"),
        (lambda r: edit.zero("z", positions=[POS]), clew.ShapeError, "position 7 of a prompt of 7"),
        (lambda r: edit.zero("z", positions=[]), clew.ConfigError, "no positions"),
        (lambda r: edit.zero("z", positions=np.zeros((2, 1), int)), clew.ShapeError, r"\[2, 1\] for 3 sequences"),
        (lambda r: edit.zero("z", positions=[0.5]), clew.ShapeError, "float64"),
        (lambda r: edit.zero("z", neurons=[8]), clew.ShapeError, "neurons 8, but there are 8"),
        (lambda r: edit.zero("z", batch=[3]), clew.ShapeError, "batch 3, but there are 3"),
        (lambda r: edit.zero("z", heads=np.zeros(3, bool)), clew.ConfigError, "no heads"),
        (lambda r: edit.zero("z", heads=np.zeros(2, bool)), clew.ShapeError, r"mask \[2\] for 3"),
        (lambda r: edit.set("z", np.zeros(5)), clew.ShapeError, r"value \[5\] does not fit .* part \[3, 7, 3, 8\]"),
        (lambda r: edit.set("z", np.zeros((2, 3, 7, 3, 8))), clew.ShapeError, r"\[2, 3, 7, 3, 8\]"),
        (lambda r: edit.set("z", [[1], [2, 3]]), clew.ShapeError, "cannot be read"),
        (lambda r: edit.set("z", 1j), clew.ShapeError, "complex128"),
        (lambda r: edit.set("z", "x"), clew.ShapeError, "real numbers"),
        (lambda r: edit.mean_ablate("pattern", RAGGED), clew.SiteError, "positions as axes"),
        (lambda r: edit.mean_ablate("z", np.zeros((2, 3))), clew.ShapeError, r"\[2, 3\]"),
        (lambda r: edit.freeze("q", r), clew.SiteError, "not captured"),
        (lambda r: edit.freeze("z", "run"), clew.ConfigError, "no Run"),
        (lambda r: "zero", clew.ConfigError, "clew.edit.zero"),
    ],
)  # fmt: skip
def test_what_is_refused(model: clew.Model, tokens: Array, make_edit: Any, error: type[Exception], match: str) -> None:
    run = model.run(tokens, capture="z")
    with pytest.raises(error, match=match):
        model.run(tokens, edits=[make_edit(run)])


def test_prompts_of_vectors_are_no_values() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=16, d_in=16, d_out=2)
    model = clew.Model.from_config(config, dtype="float64")
    x = np.random.default_rng(0).normal(3, 1, (2, 6, 16))

    def ablated(reference: Any, site: str = "resid_post.0") -> Array:
        return model.run(x, capture=site, edits=[edit.mean_ablate(site, reference)])[site]

    run = model.run(x, capture=["resid_post.0", "z.0"])
    assert np.allclose(ablated(run), run["resid_post", 0].mean((0, 1)))
    assert np.array_equal(ablated(run["z", 0], "z.0"), ablated(run, "z.0"))  # four axes are no prompts
    for given, said in (
        (x, r"an array \[2, 6, 16\], perhaps prompts"),
        (x.tolist(), r"an array \[2, 6, 16\], perhaps prompts"),
        (x[0], r"an array \[6, 16\], perhaps prompts"),
        ([x[0], x[1, :4]], "list"),
        (x.astype(int), "ndarray"),
    ):
        for site in ("resid_post.0", "z.0"):
            message = rf"mean_ablate of \S+: {said}, for a model that reads vectors of 16: give a run of the prompts"
            with pytest.raises(clew.ConfigError, match=message):
                ablated(given, site)


@pytest.mark.parametrize("change", [edit.set, edit.add, edit.scale])
def test_values_beyond_the_models_precision(change: Any, tokens: Array) -> None:
    huge = edit.call(("z", 0), lambda x, name: x.astype(np.float64) + 1e39)
    with pytest.raises(clew.ConfigError, match=r"edit.call of .*_z: the value 1e\+39 is beyond the model's float32"):
        clew.Model.from_config(ZOO["gpt2"], seed=0).run(tokens, edits=[huge])
    single = clew.Model.from_config(ZOO["gpt2"], seed=0)
    for value in (-1e39, [1.0] * 7 + [-1e39], np.float64(-1e39)):
        with pytest.raises(clew.ConfigError, match=r"hook_z: the value -1e\+39 is beyond the model's float32"):
            single.run(tokens, edits=[change(("z", 0), value)])
    assert not np.isfinite(single.run(tokens, edits=[change(("z", 0), np.inf)]).logits).all()  # said, and so meant


def test_more_refusals(model: clew.Model, tokens: Array) -> None:
    short = model.run(tokens[:, :4], capture="z")
    with pytest.raises(clew.ShapeError, match=r"\[4, 4, 4\] tokens, this one of \[7, 7, 7\]"):
        model.run(tokens, edits=[edit.freeze("z", short)])
    part = model.run(tokens, capture="z", positions=[0])
    turned = model.run(tokens, capture="z", positions=[6, 5, 4, 3, 2, 1, 0])  # as many, and none in its place
    for kept, run in ((1, part), (7, turned)):
        with pytest.raises(clew.ShapeError, match=f"edit.freeze of .* kept {kept} positions of 7: make it without"):
            model.run(tokens, edits=[edit.freeze("z", run)])
        with pytest.raises(clew.ShapeError, match=f"edit.mean_ablate of .* kept {kept} positions of 7: make it"):
            model.run(tokens, edits=[edit.mean_ablate("z", run)])
    last = model.run(tokens, logits="last")
    with pytest.raises(clew.ShapeError, match="mean_ablate of logits: the run kept 1 positions of 7"):
        model.run(tokens, edits=[edit.mean_ablate("logits", last)])
    config = ZOO["gpt2"].replace(n_heads=1, n_key_value_heads=1, d_head=8)
    one_head = make(config)[0].run(tokens, capture=["pattern", "z"])
    for site in ("pattern", "z"):
        with pytest.raises(clew.ShapeError, match=r"the run's has shape \[3, .*, this one's \[3, .*3.*\]"):
            model.run(tokens, edits=[edit.freeze(site, one_head)])
    with pytest.raises(clew.SiteError, match="does not compute"):
        model.run(tokens, stop_after_layer=0, edits=[edit.zero("blocks.1.attn.hook_z")])
    with pytest.raises(clew.ConfigError, match="cannot be called"):
        edit.call("z", 3)  # type: ignore[arg-type]
    with pytest.raises(clew.SiteError, match="nearest"), model.edited([edit.zero("reside_pre")]):
        pass
    with pytest.raises(clew.ConfigError, match="expected a list"):
        model.run(tokens, edits=3)  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match="edits = 'zero': expected a list"):
        model.run(tokens, edits="zero")  # type: ignore[arg-type]
    assert repr(edit.zero("z", heads=[1], positions=[-1])) == "edit.zero('z', positions=[-1], heads=[1])"


def test_masked_arrays_and_lists_as_values(model: clew.Model, tokens: Array) -> None:
    plain = np.arange(7 * 3 * 8, dtype=np.float64).reshape(1, 7, 3, 8)
    masked = np.ma.array(plain, mask=plain > 100)
    changes = [edit.set("z", masked), edit.mean_ablate("z", masked), edit.call("z", lambda x, name: masked)]
    for change in changes:
        with pytest.raises(clew.ShapeError, match="edit.*z.*: an array with masked values"):
            model.run(tokens, edits=[change])
    runs = [model.run(tokens, edits=[edit.mean_ablate("z", value)]).logits for value in (plain, plain.tolist())]
    assert np.array_equal(*runs)
    runs = [model.run(tokens, edits=[edit.set("z", value)]).logits for value in (10**30, 1e30)]
    assert np.array_equal(*runs)


@pytest.mark.parametrize("which", ["heads", "positions", "batch", "neurons"])
def test_true_among_numbers_is_no_index(model: clew.Model, tokens: Array, which: str) -> None:
    with pytest.raises(clew.ShapeError, match=f"{which}: True or False among numbers"):
        model.run(tokens, edits=[edit.zero("z", **{which: [1, True]})])


def test_a_selection_that_is_read_once(model: clew.Model, tokens: Array) -> None:
    def some() -> Any:
        return (i for i in (0, 2))

    given = edit.zero("z", heads=some(), positions=some(), neurons=some(), batch={0, 2})
    same = edit.zero("z", heads=[0, 2], positions=[0, 2], neurons=[0, 2], batch=[0, 2])
    assert repr(given) == repr(same)
    for _ in range(2):  # it holds on every layer, in every run
        runs = [model.run(tokens, capture="z", edits=[e]) for e in (given, same)]
        assert np.array_equal(runs[0].stack("z"), runs[1].stack("z"))


def test_huge_indices_and_empty_references(model: clew.Model, tokens: Array) -> None:
    with pytest.raises(clew.ShapeError, match=r"heads 18446744073709551615, but there are"):
        model.run(tokens, edits=[edit.zero("blocks.0.attn.hook_z", heads=np.array([2**64 - 1], np.uint64))])
    model.run(tokens, edits=[edit.zero("blocks.0.attn.hook_z", heads=np.array([0], np.uint64))])
    with pytest.raises(clew.ShapeError, match="holds nothing to average"):
        model.run(tokens, edits=[edit.mean_ablate("blocks.0.attn.hook_z", np.zeros((0, 4, 2, 8)))])
