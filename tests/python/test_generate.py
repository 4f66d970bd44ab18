"""Generation: equal to repeated full passes, whatever the batch; sampling; stops; captures and edits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

import clew
import numpy as np
import pytest
from clew import _core, edit, generate, replay
from clew.loaders.checkpoint import Checkpoint
from clew.tokenizer import Tokenizer
from numpy.typing import NDArray
from support import make, relative_error
from zoo import random_tokens, zoo

Array = NDArray[Any]
ZOO = zoo()
CAUSAL = {n: c for n, c in ZOO.items() if c.attention_dir == "causal" and c.d_in is None and c.d_vocab_out == c.d_vocab}
NEW = 6


def prompts(config: clew.ModelConfig) -> list[list[int]]:
    return [random_tokens(config, n, 1, n + 2)[0].tolist() for n in (3, 1, 2)]


def repeated(model: clew.Model, prompt: list[int], n: int = NEW, **more: Any) -> list[int]:
    """The likeliest token n times, a full pass each."""
    text = list(prompt)
    for _ in range(n):
        text.append(int(model.run(text, logits="last", **more).logits[0, 0].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", CAUSAL)
def test_equals_repeated_passes(name: str) -> None:
    model, _ = make(CAUSAL[name])
    given = prompts(model.config)
    got = model.generate(given, max_new_tokens=NEW, capture="*" if model.config.n_layers else ())
    for prompt, tokens, log_probs in zip(given, got.tokens, got.log_probs, strict=True):
        assert tokens.tolist() == repeated(model, prompt)
        losses = model.loss([*prompt, *tokens.tolist()])[0, len(prompt) - 1 :]
        assert np.allclose(log_probs, -losses, rtol=1e-9, atol=1e-12)
    if got.run is None:
        return
    whole = model.run([[*p, *t.tolist()] for p, t in zip(given, got.tokens, strict=True)], capture="*", logits=None)
    assert list(got.run) == list(whole)
    for site in whole:
        assert relative_error(got.run[site], whole[site]) <= 1e-9, site
    assert np.array_equal(got.run.tokens, whole.tokens) and np.array_equal(got.run.lengths, whole.lengths)


@pytest.mark.parametrize("changes", [(), (edit.scale("z", 1.0),)], ids=["plain", "edited"])
def test_stream_captures_what_each_step_reads(changes: tuple[clew.Edit, ...]) -> None:
    model, _ = make(ZOO["gpt2"])
    given = prompts(model.config)
    how: dict[str, Any] = dict(max_new_tokens=9, temperature=2.0, seed=0, stop=list(range(5)), edits=changes)
    sites = ["resid_post", "pattern", "logits", "ln_final.hook_scale"]
    whole = model.generate(given, capture=sites, **how)
    lengths = [len(p) for p in given]
    assert len({len(t) for t in whole.tokens}) > 1, "some end before others"
    for number, step in enumerate(model.generate_stream(given, capture=sites, **how)):
        run = step.run
        assert run is not None and list(run) == list(whole.run) and run.model is model
        for row, seq in enumerate(step.sequences):
            begin = lengths[seq] + number - 1 if number else 0
            n = 1 if number else lengths[seq]
            assert run.lengths[row] == n and run.tokens[row, :n].tolist() == whole.run.tokens[seq, begin:][:n].tolist()
            for name in run:
                got, expected = run[name][row], whole.run[name][seq]
                if name.endswith("hook_pattern"):
                    assert np.array_equal(got[:, :n, : begin + n], expected[:, begin : begin + n, : begin + n])
                else:
                    assert np.array_equal(got[:n], expected[begin : begin + n]), name
                assert not run[name].flags.writeable
    assert all(step.run is None for step in model.generate_stream(given, **how))
    assert whole.run.model is model


@pytest.fixture(scope="module")
def model() -> clew.Model:
    return make(ZOO["llama"])[0]


@pytest.fixture(scope="module")
def trained() -> clew.Model:
    return clew.load("shakespeare")


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_of_several_last_positions(name: str) -> None:
    """They are those that a run of all positions gives there, one text after the other, also behind a cache."""
    model, _ = make(CAUSAL[name])
    c, ids = model.config, random_tokens(model.config, 4, 3, 10)
    lengths, last = np.array([6, 1, 4], np.int32), np.array([3, 1, 4], np.int32)
    tokens = np.concatenate([row[:n] for row, n in zip(ids, lengths, strict=True)]).astype(np.int32)
    shape = (3, 12, c.n_key_value_heads, c.d_head)
    cache = tuple([_core.empty(shape, model.dtype.name) for _ in range(c.n_layers)] for _ in range(2))

    def logits(tokens: Array, lengths: Array, last: Array, past: Array) -> Array:
        how: dict[str, Any] = {"past": past, "past_seq": np.arange(3, dtype=np.int32), "append": True, "last": last}
        plan = replay.core_plan(model, lengths, [], -1, replay.LOGITS_LAST, False, **how)
        ((_, _, found),) = plan.run(tokens, None, [], cache)
        assert found.shape[1] == 1
        return np.asarray(found[:, 0])

    everything = model.run([row[:n].tolist() for row, n in zip(ids, lengths + 4, strict=True)]).logits
    found = logits(tokens, lengths, last, np.zeros(3, np.int32))
    expected = np.concatenate([everything[i, n - k : n] for i, (n, k) in enumerate(zip(lengths, last, strict=True))])
    assert found.shape == (8, c.d_vocab_out) and relative_error(found, expected) < 1e-12
    more, few = np.array([4, 4, 4], np.int32), np.array([2, 4, 1], np.int32)
    tokens = np.concatenate([row[n : n + 4] for row, n in zip(ids, lengths, strict=True)]).astype(np.int32)
    found = logits(tokens, more, few, lengths)
    expected = np.concatenate(
        [everything[i, n + 4 - k : n + 4] for i, (n, k) in enumerate(zip(lengths, few, strict=True))]
    )
    assert found.shape == (7, c.d_vocab_out) and relative_error(found, expected) < 1e-12


def test_more_last_positions_than_a_block_of_attention() -> None:
    config = clew.ModelConfig(n_layers=2, d_model=16, n_heads=2, n_ctx=160, d_vocab=11)
    model = clew.Model.from_config(config, seed=1, dtype="float64")
    ids, lengths, last = random_tokens(config, 4, 2, 150).astype(np.int32), np.array([150, 9]), np.array([100, 1])
    plan = replay.core_plan(
        model, lengths.astype(np.int32), [], -1, replay.LOGITS_LAST, False, last=last.astype(np.int32)
    )
    ((_, _, found),) = plan.run(np.concatenate([ids[0], ids[1, :9]]), None, [], None)
    expected = np.concatenate([model.run(ids[0]).logits[0, 50:], model.run(ids[1, :9]).logits[0, 8:]])
    assert found.shape == (101, 1, 11) and relative_error(found[:, 0], expected) < 1e-12


GUESSED = ("gpt2", "llama", "gemma2", "mistral")


def guess_of(texts: Sequence[Sequence[int]]) -> generate.Guess:
    """Guesses that texts go on as these do, whatever has been said, the stop and all."""

    def guess(which: Array, said: list[list[int]], most: Array) -> list[Array]:
        known = zip(which, said, most, strict=True)
        return [np.array(texts[i][len(text) : len(text) + n], np.int32) for i, text, n in known]

    return guess


@pytest.mark.parametrize("name", [n for n in CAUSAL if n in GUESSED])
def test_guesses_change_nothing_but_the_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are the same whatever is guessed of them; a right guess takes one pass, prompt and all; behind a wrong
    token it goes on with twice what that pass brought."""
    model, _ = make(CAUSAL[name])
    given, limits, read = prompts(model.config), np.array([NEW, 3, 5]), []
    run = generate._Decoder.run

    def counted(self: Any, tokens: Array, lengths: Array, *more: Any, **named: Any) -> Any:
        read.append(lengths.tolist())
        return run(self, tokens, lengths, *more, **named)

    monkeypatch.setattr(generate._Decoder, "run", counted)

    def said(guess: generate.Guess | None, stop: int) -> list[list[int]]:
        read.clear()
        return [t.tolist() for t in generate.likeliest(model, given, limits, stop, guess=guess)]

    def passes(length: int, limit: int, wrong: int) -> int:
        """Of a text whose guess is wrong in one token: each brings what is guessed rightly, and a token more."""
        known, most, count = 0, limit, 0
        while known < length:
            right = min(most, limit - known - 1, wrong - known if known <= wrong else limit)
            known, most, count = known + right + 1, 2 * (right + 1), count + 1
        return count

    free = said(None, 0)
    for stop in (0, free[0][2], free[2][1]):
        plain = said(None, stop)
        longest = max(map(len, plain))
        assert len(read) == longest
        assert said(guess_of(plain), stop) == plain
        whole = [len(p) + min(len(t), n - 1) for p, t, n in zip(given, plain, limits, strict=True)]
        assert read == [whole], "all in one pass, but the last token that there is room for"
        assert said(guess_of([[*t, *t, *t] for t in plain]), stop) == plain
        assert len(read) == 1, "what is guessed behind a stop is not said"
        assert said(guess_of([[] for _ in plain]), stop) == plain
        assert len(read) == longest
        for j in range(longest):
            wrong = [[*t[:j], (t[j] + 1) % model.config.d_vocab, *t[j + 1 :]] if j < len(t) else t for t in plain]
            assert said(guess_of(wrong), stop) == plain, j
            assert len(read) == max(passes(len(t), n, j) for t, n in zip(plain, limits, strict=True))
        assert said(guess_of([plain[0], [], plain[2]]), stop) == plain
    assert said(guess_of([[(t + 1) % model.config.d_vocab for t in text] for text in free]), 0) == free
    assert len(read) == max(map(len, free)), "nothing right: a token each pass"
    assert max(max(lengths) for lengths in read[1:]) <= 3, "of which a guess is at most twice as long"


def test_guesses_are_not_used_under_edits(model: clew.Model) -> None:
    given, seen = prompts(model.config), []
    look = edit.call("z.0", lambda value, _: seen.append(value.shape[1]))
    plain = [t.tolist() for t in generate.likeliest(model, given, np.full(3, NEW), 0)]
    guessed = generate.likeliest(model, given, np.full(3, NEW), 0, [look], guess_of(plain))
    assert [t.tolist() for t in guessed] == plain
    assert seen[1:] == [1] * (len(seen) - 1)


def test_what_a_wrong_guess_breaks_is_of_no_use(model: clew.Model) -> None:
    """NaN behind a token that is guessed wrongly does not end a text that never says it; NaN behind a prompt does."""
    given, limits = prompts(model.config), np.full(3, NEW)
    plain = [t.tolist() for t in generate.likeliest(model, given, limits, 0)]
    absent = min(set(range(model.config.d_vocab)) - {int(t) for text in (*plain, *given) for t in text})
    weights = make(ZOO["llama"])[1]
    weights["embed.W_E"][absent] = np.nan
    broken = clew.Model(Checkpoint(model.config, weights, np.dtype(np.float64)))
    guess = guess_of([[*text[:2], absent, absent, 0] for text in plain])
    assert [t.tolist() for t in generate.likeliest(broken, given, limits, 0, guess=guess)] == plain
    with pytest.raises(clew.ConfigError, match="logits of sequence 1 hold NaN"):
        generate.likeliest(broken, [given[0], [absent], given[2]], limits, 0, guess=guess)


EDITS = {
    "everywhere": lambda: edit.add("resid_pre.1", np.linspace(-1, 1, 24)),
    "a head": lambda: edit.zero("z", heads=[1]),
    "one place of the prompt": lambda: edit.scale("resid_mid.0", 3.0, positions=[-1]),
    "a place that is generated": lambda: edit.set("resid_pre.1", 0.5, positions=[6]),
    "one sequence": lambda: edit.scale("mlp_out.0", 2.0, batch=[2]),
    "by position": lambda: edit.add("resid_pre.1", np.arange(11.0)[:, None] * np.ones(24)),
    "pattern": lambda: edit.scale("pattern.1", 0.5, heads=[0]),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_hold_for_new_tokens(model: clew.Model, name: str) -> None:
    change = EDITS[name]()
    given = prompts(model.config)  # 5, 3 and 4 tokens
    got = model.generate(given, max_new_tokens=NEW, edits=[change], capture="resid_post")
    texts = [[*p, *t.tolist()] for p, t in zip(given, got.tokens, strict=True)]
    fixed = change
    if name == "one place of the prompt":
        fixed = edit.scale("resid_mid.0", 3.0, positions=[[len(p) - 1] for p in given])
    if name == "a place that is generated":
        longer = [t for t in texts if len(t) > 6]
        assert len(longer) == len(texts)
    if name == "by position":
        fixed = edit.add("resid_pre.1", np.arange(11.0)[:, None] * np.ones(24))
    whole = model.run(texts, capture="resid_post", edits=[fixed])
    assert relative_error(got.run.stack("resid_post"), whole.stack("resid_post")) <= 1e-9
    for i, (p, t) in enumerate(zip(given, got.tokens, strict=True)):
        picks = whole.logits[i, len(p) - 1 : len(p) - 1 + NEW].argmax(axis=-1)
        assert t.tolist() == picks.tolist()


PROMPT_SITES = ("resid_mid", "z", "pattern", "attn_scores", "embed")


@pytest.mark.parametrize("site", PROMPT_SITES)
@pytest.mark.parametrize("lengths", [(4, 4), (5, 3, 4)])
def test_frozen_prompts(model: clew.Model, site: str, lengths: tuple[int, ...]) -> None:
    """A run of prompts of the same lengths holds for the prompts, not for what is generated behind them."""
    given = [random_tokens(model.config, 1, 1, n)[0].tolist() for n in lengths]
    other = model.run([random_tokens(model.config, 9, 1, n)[0].tolist() for n in lengths], capture=site)
    names = list(other)[:-1] if "logits" in list(other) else list(other)
    for change in (
        [edit.freeze(site, other)],
        [edit.set(name, other[name]) for name in names],
        [edit.freeze(site, other, batch=range(len(lengths)), positions=slice(0, 3))],
        [edit.freeze(site, other, positions=[1, 0])],
        [edit.set(name, other[name], positions=[-1]) for name in names],
        [edit.set(name, other[name][::-1], batch=list(range(len(lengths)))[::-1]) for name in names],
    ):
        got = model.generate(given, max_new_tokens=NEW, edits=change, capture=[site, "logits"])
        for i, (prompt, tokens) in enumerate(zip(given, got.tokens, strict=True)):
            n = len(prompt)
            where = {"slice(0, 3, None)": [0, 1, 2], "[1, 0]": [0, 1], "[-1]": [n - 1]}
            places = where.get(str(change[0].positions), list(range(n)))
            fixed = []
            for name in names:
                part = other[name][i : i + 1]
                keys = None
                if site in ("pattern", "attn_scores"):
                    part, keys = part[..., places, :n], list(range(n))
                else:
                    part = part[:, places]
                fixed.append(edit.set(name, part, positions=places, neurons=keys))
            whole = model.run([*prompt, *tokens.tolist()], capture=site, edits=fixed)
            for name in names:
                now, want = got.run[name][i, ...], whole[name][0]
                now = now[tuple(slice(0, k) for k in want.shape)]
                assert relative_error(now[np.isfinite(want)], want[np.isfinite(want)]) <= 1e-9
            assert tokens.tolist() == whole.logits[0, n - 1 : n - 1 + NEW].argmax(axis=-1).tolist()


def test_a_run_of_one_prompt_is_frozen_into_all(model: clew.Model) -> None:
    other = model.run([3, 1, 2], capture="resid_mid.0")
    given = [[1, 2, 3], [4, 5, 6]]
    got = model.generate(given, max_new_tokens=2, edits=edit.freeze("resid_mid.0", other), capture="resid_mid.0")
    assert np.array_equal(got["resid_mid", 0][:, :3], np.repeat(other["resid_mid", 0], 2, axis=0))
    with model.edited(edit.freeze("resid_mid.0", other)):
        same = model.generate(given, max_new_tokens=2)
    assert [t.tolist() for t in same.tokens] == [t.tolist() for t in got.tokens]


def test_masks_and_values_of_the_prompt(model: clew.Model) -> None:
    given = [[1, 2, 3, 4], [5, 6, 7, 8]]

    def tokens(*edits: edit.Edit) -> list[list[int]]:
        return [t.tolist() for t in model.generate(given, max_new_tokens=NEW, edits=edits).tokens]

    mask = np.array([False, True, False, True])
    assert tokens(edit.zero("mlp_out", positions=mask)) == tokens(edit.zero("mlp_out", positions=[1, 3]))
    values = np.random.default_rng(0).standard_normal((4, 24)) * 3
    for make_edit in (edit.set, edit.add, edit.scale):
        padded = np.concatenate([values, np.full((NEW, 24), 1.0 if make_edit is edit.scale else 0.0)])
        subset = tokens(make_edit("resid_pre.1", values[[1, 3]], positions=[1, 3]))
        assert tokens(make_edit("resid_pre.1", values, positions=[1, 3])) == subset
        assert tokens(make_edit("resid_pre.1", values, positions=mask)) == subset
        assert tokens(make_edit("resid_pre.1", padded, positions=mask)) == subset
        if make_edit is not edit.set:
            assert tokens(make_edit("resid_pre.1", values)) == tokens(make_edit("resid_pre.1", padded))
    # edits of both kinds, and functions, in their order
    order: list[str] = []
    calls = [edit.call("resid_mid.0", lambda a, n: order.append("first")), edit.set("resid_mid.0", values),
             edit.call("resid_mid.0", lambda a, n: order.append("then") or np.zeros_like(a))]  # fmt: skip
    assert tokens(*calls) == tokens(edit.zero("resid_mid.0")) and order[:2] == ["first", "then"]


def test_what_covers_neither_prompt_nor_text(model: clew.Model) -> None:
    given = [[1, 2, 3, 4], [5, 6]]
    with pytest.raises(clew.ShapeError, match=r"a mask \[3\] for prompts of 4 positions, 10 with the new ones"):
        model.generate(given, NEW, edits=edit.zero("z", positions=[True, False, True]))
    with pytest.raises(clew.ShapeError, match="behind the end of a prompt of 2 tokens"):
        model.generate(given, NEW, edits=edit.zero("z", positions=[True, False, True, False]))
    with pytest.raises(clew.ShapeError, match=r"prompts of \[3\] tokens, these are of \[4, 2\], or of \[10, 8\]"):
        model.generate(given, NEW, edits=edit.freeze("z", model.run([1, 2, 3], capture="z")))
    with pytest.raises(clew.ShapeError, match="position 3 of a prompt of 2 tokens"):
        model.generate(given, NEW, edits=edit.set("resid_pre.0", np.ones((4, 24)), positions=[3]))


def test_edited_context_and_calls(model: clew.Model) -> None:
    given = prompts(model.config)
    want = model.generate(given, edits=[edit.scale("mlp_out", 0.5)])
    with model.edited([edit.scale("mlp_out", 0.5)]):
        assert all(np.array_equal(a, b) for a, b in zip(model.generate(given).tokens, want.tokens, strict=True))
    shapes = []

    def halve(array: Array, name: str) -> None:
        shapes.append(array.shape)
        array *= 0.5

    got = model.generate(given, edits=[edit.call("mlp_out", halve)])
    assert all(np.array_equal(a, b) for a, b in zip(got.tokens, want.tokens, strict=True))
    assert shapes[0] == (3, 5, 24) and shapes[2] == (3, 1, 24), "the prompt, then the new rows only"


def test_edited_texts_end_where_they_stop(model: clew.Model) -> None:
    given = prompts(model.config)
    plain = model.generate(given, max_new_tokens=9, temperature=2.0, seed=0, stop=list(range(5)), capture="resid_post")
    assert len({len(t) for t in plain.tokens}) > 1
    same = edit.scale("z", 1.0)
    how: dict[str, Any] = dict(max_new_tokens=9, temperature=2.0, seed=0, stop=list(range(5)), edits=[same])
    got = model.generate(given, capture="resid_post", **how)
    assert [t.tolist() for t in got.tokens] == [t.tolist() for t in plain.tokens] and got.stopped == plain.stopped
    assert [len(p) for p in got.log_probs] == [len(t) for t in got.tokens]
    assert relative_error(got.run.stack("resid_post"), plain.run.stack("resid_post")) <= 1e-12
    steps = list(model.generate_stream(given, **how))
    for i, tokens in enumerate(got.tokens):
        assert [s.tokens[s.sequences.index(i)] for s in steps if i in s.sequences] == tokens.tolist()


# ---- Sampling -------------------------------------------------------------------------------------------------------


def draw(logits: Array, n: int, temperature: float, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> Array:
    rows = np.ascontiguousarray(np.broadcast_to(logits, (n, 1, len(logits))))
    ids, log_probs = _core.sample(rows, np.arange(n), np.zeros(n, np.int64), temperature, top_k, top_p, seed)
    exact = logits.astype(np.float64)
    log_p = exact - np.log(np.exp(exact - exact.max()).sum()) - exact.max()
    assert np.allclose(log_probs, log_p[ids], rtol=1e-12)
    return np.bincount(ids, minlength=len(logits))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.7), (1.5, 5, 0.6), (1.0, 1, 1.0)],
)
def test_distribution(temperature: float, top_k: int, top_p: float, dtype: Any) -> None:
    logits = np.random.default_rng(1).normal(size=12).astype(dtype) * 1.5
    p = np.exp(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    kept = order[: top_k or len(p)]
    share = np.cumsum(p[kept]) / p[kept].sum()
    kept = kept[: int(np.searchsorted(share, top_p - 1e-12)) + 1]
    want = np.zeros(len(p))
    want[kept] = p[kept] / p[kept].sum()
    n = 40_000
    counts = draw(logits.astype(dtype), n, temperature, top_k, top_p)
    assert not counts[want == 0].any()
    chi2 = float(((counts - n * want)[want > 0] ** 2 / (n * want[want > 0])).sum())
    assert chi2 < 40, "far beyond the 0.999 quantile of chi-square with 11 degrees of freedom: 31"


def test_ties_go_to_the_lower_id() -> None:
    logits = np.array([1.0, 3.0, 3.0, 0.0, 3.0])
    assert draw(logits, 50, 0.0).tolist() == [0, 50, 0, 0, 0]
    counts = draw(logits, 400, 1.0, top_k=2)
    assert counts[[0, 3, 4]].tolist() == [0, 0, 0] and counts[1] > 100 and counts[2] > 100


def test_broken_logits_are_refused() -> None:
    for bad in (np.nan, np.inf):
        with pytest.raises(clew.ConfigError, match="sequence 3 hold NaN or infinity"):
            _core.sample(np.array([[[1.0, bad]]]), np.array([3]), np.array([0]), 1.0, 0, 1.0, 0)
    broken = make(ZOO["llama"])[0]
    for heat in (0.0, 1.0):  # the sequence, not what its random numbers go by
        with pytest.raises(clew.ConfigError, match="logits of sequence 1 hold NaN"):
            broken.generate([[1], [2]], temperature=heat, edits=edit.set("logits", np.nan, batch=[1]))
    rows = np.array([[[-np.inf, 0.0]]])
    assert _core.sample(rows, np.array([0]), np.array([0]), 1.0, 0, 1.0, 0)[0].tolist() == [1]


def test_a_sequence_does_not_depend_on_its_batch(model: clew.Model) -> None:
    given = prompts(model.config)
    how: dict[str, Any] = {"temperature": 1.2, "seed": 7, "max_new_tokens": 12}
    together = model.generate(given, **how)
    again = model.generate(given, **how)
    assert all(np.array_equal(a, b) for a, b in zip(together.tokens, again.tokens, strict=True))
    for row, prompt in enumerate(given):
        assert np.array_equal(model.generate([prompt], **how).tokens[0], together.tokens[row])
    turned = model.generate([given[2], given[0], given[2], given[2]], **how).tokens
    assert np.array_equal(turned[1], together.tokens[0]) and np.array_equal(turned[0], together.tokens[2])
    assert len({tuple(turned[row].tolist()) for row in (0, 2, 3)}) == 3, "equal prompts get texts of their own"
    other = model.generate(given, **(how | {"seed": 8}))
    assert not all(np.array_equal(a, b) for a, b in zip(together.tokens, other.tokens, strict=True))
    unseeded = model.generate(given, temperature=1.0)
    assert unseeded.seed is not None
    same = model.generate(given, temperature=1.0, seed=unseeded.seed)
    assert all(np.array_equal(a, b) for a, b in zip(unseeded.tokens, same.tokens, strict=True))


# ---- Ends -----------------------------------------------------------------------------------------------------------


def test_stop_tokens(model: clew.Model) -> None:
    given = prompts(model.config)
    free = model.generate(given, max_new_tokens=8)
    stop = int(free.tokens[0][2])
    got = model.generate(given, max_new_tokens=8, stop=stop)
    for full, ended, why in zip(free.tokens, got.tokens, got.stopped, strict=True):
        where = np.flatnonzero(full == stop)
        n = int(where[0]) + 1 if where.size else 8
        assert ended.tolist() == full[:n].tolist()
        assert why == (stop if where.size else "length")


def test_stop_texts(trained: clew.Model) -> None:
    free = trained.generate("ROMEO:", max_new_tokens=60, temperature=0.8, seed=3)
    assert free.text is not None
    stop = free.text[0][9:13]  # across a border of tokens or not
    got = trained.generate("ROMEO:", max_new_tokens=60, temperature=0.8, seed=3, stop=[stop, "no such text"])
    assert got.text is not None
    assert got.text[0] == free.text[0][: free.text[0].index(stop)] and got.stopped == [stop]
    assert len(got.tokens[0]) < 60
    assert got.tokens[0].tolist() == free.tokens[0][: len(got.tokens[0])].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_pieces_make_up_the_text(trained: clew.Model, seed: int) -> None:
    """Stop texts of every length, over borders of tokens, one beginning in another; texts cut inside a character."""
    rng = np.random.default_rng(seed)
    tokenizer = trained.tokenizer
    assert tokenizer is not None
    prompts = ["ROMEO:", "To be, or not to", "A"][: 1 + seed % 3]
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.2, "seed": seed}
    odd = set(tokenizer.encode("é—", add_special_tokens=False))  # pieces of characters, made likely
    push = np.zeros(trained.config.d_vocab)
    push[sorted(odd)] = 6.0
    if seed % 2:
        how["edits"] = edit.add("logits", push)
    said = "".join(trained.generate(prompts, **how).text or [])
    cuts = [(int(a), int(n)) for a, n in zip(rng.integers(0, len(said), 8), rng.integers(1, 6, 8), strict=True)]
    words = [said[a : a + n] for a, n in cuts] + [said[a : a + n] + "#" for a, n in cuts]
    for stops in (None, words[0], words[1:3], words[3:], words[8:], ["\ufffd"], [*words[8:], int(rng.integers(1024))]):
        whole = trained.generate(prompts, stop=stops, **how)
        pieces = [""] * len(prompts)
        for step in trained.generate_stream(prompts, stop=stops, **how):
            for seq, text in zip(step.sequences, step.texts, strict=True):
                pieces[seq] += text
                assert whole.text is not None and whole.text[seq].startswith(pieces[seq]), stops
        assert pieces == whole.text, stops


def test_a_text_that_ends_inside_a_character(trained: clew.Model) -> None:
    assert trained.tokenizer is not None
    first = trained.tokenizer.encode("é", add_special_tokens=False)[0]
    push = np.zeros(trained.config.d_vocab)
    push[first] = 1e4
    how: dict[str, Any] = {"max_new_tokens": 3, "edits": edit.add("logits", push)}
    texts = [step.texts[0] for step in trained.generate_stream("A", **how)]
    assert texts[:2] == ["", ""] and texts[2] and set(texts[2]) == {"\ufffd"}
    assert "".join(texts) == trained.generate("A", **how).text[0]  # type: ignore[index]


def test_decoders_that_undo_a_run_of_bytes(trained: clew.Model) -> None:
    """Byte fallback of `tokenizers`: a run that is no whole text becomes one U+FFFD for each byte, its start too."""

    class Bytes(Tokenizer):
        tokens = [*(f"<0x{n:02X}>" for n in range(256)), "x"]

        def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            out, run = "", b""
            for token in [*ids, 256]:
                if token < 256:
                    run += bytes([token])
                    continue
                try:
                    out += run.decode()
                except UnicodeDecodeError:
                    out += "\ufffd" * len(run)
                out, run = out + "x", b""
            return out[:-1]

        _encode = _str_token = _lookup = None  # type: ignore[assignment]

    class Reader:
        tokenizer = _labeller = Bytes()

    for end in ("x", "é"):
        ids = [256, *"€€".encode(), 256, *"é".encode(), *end.encode()[:1]]
        text, how = generate._Text([], []), generate.settings(trained, len(ids), 0.0, None, None, None, None)
        pieces = []
        for token in ids:
            text.tokens.append(token)
            pieces.append(generate._ended(Reader(), text, how))  # type: ignore[arg-type]
        assert "".join(pieces) == Bytes().decode(ids)


def test_streaming_gives_the_same(trained: clew.Model) -> None:
    how: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0.9, "seed": 5, "top_k": 30}
    whole = trained.generate(["ROMEO:", "Enter"], **how)
    pieces = ["", ""]
    ids: list[list[int]] = [[], []]
    for step in trained.generate_stream(["ROMEO:", "Enter"], **how):
        for seq, token, text in zip(step.sequences, step.tokens, step.texts, strict=True):
            ids[seq].append(token)
            pieces[seq] += text
    assert ids == [t.tolist() for t in whole.tokens] and pieces == whole.text


def test_characters_split_over_tokens(trained: clew.Model) -> None:
    """A step's text holds whole characters only."""
    assert trained.tokenizer is not None
    ids = trained.tokenizer.encode("é—", add_special_tokens=False)
    assert len(ids) > 2
    texts = generate._Text([], [])
    how = generate.settings(trained, 10, 0.0, None, None, None, None)
    pieces = []
    for token in ids:
        texts.tokens.append(token)
        pieces.append(generate._ended(trained, texts, how))
    assert "".join(pieces) == "é—" and "\ufffd" not in "".join(pieces)


def test_ctrl_c_leaves_the_model_usable(trained: clew.Model) -> None:
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            trained.generate("ROMEO:", max_new_tokens=200)
    timer.join()
    assert np.isfinite(trained.run("ROMEO:").logits).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"max_new_tokens": 0}, clew.ConfigError, "max_new_tokens = 0"),
        ({"max_new_tokens": 2.5}, clew.ConfigError, "max_new_tokens = 2.5"),
        ({"max_new_tokens": 2**31}, clew.ConfigError, "max_new_tokens = 2147483648: below 2"),
        ({"max_new_tokens": 10**30}, clew.ConfigError, "max_new_tokens = 10{30}: below 2"),
        ({"temperature": -1}, clew.ConfigError, "temperature = -1"),
        ({"temperature": "hot"}, clew.ConfigError, "numbers"),
        ({"temperature": "0.8"}, clew.ConfigError, "temperature = '0.8', top_p = None: both are numbers"),
        ({"temperature": True}, clew.ConfigError, "temperature = True"),
        ({"temperature": 1.0, "top_p": "0.9"}, clew.ConfigError, "top_p = '0.9': both are numbers"),
        ({"temperature": 1.0, "top_k": 0}, clew.ConfigError, "top_k = 0"),
        ({"temperature": 1.0, "top_p": 0.0}, clew.ConfigError, r"top_p = 0.0: must lie in \(0, 1\]"),
        ({"temperature": 1.0, "top_p": 1.5}, clew.ConfigError, "top_p"),
        ({"top_k": 5}, clew.ConfigError, "temperature above 0"),
        ({"temperature": 1.0, "seed": -1}, clew.ConfigError, "seed"),
        ({"stop": 31}, clew.TokenError, "stop token 31: there are ids 0 to 30"),
        ({"stop": "a"}, clew.TokenError, "without a tokenizer"),
        ({"stop": [1.5]}, clew.ConfigError, "1.5"),
        ({"stop": 1.5}, clew.ConfigError, "stop = 1.5: token ids and texts"),
        ({"stop": True}, clew.ConfigError, "stop = True"),
        ({"stop": np.array(5)}, clew.ConfigError, r"stop = array\(5\): token ids"),
        ({"temperature": 10**400}, clew.ConfigError, "temperature = 1000"),
        ({"temperature": 1.0, "top_k": 2**70}, clew.ConfigError, "top_k = .*below 2"),
        ({"temperature": 1.0, "seed": 2**64}, clew.ConfigError, "seed = .*below 2"),
        ({"stop": b"ab"}, clew.ConfigError, "stop = b'ab'"),
        ({"stop": ""}, clew.ConfigError, "not empty"),
        ({"tokens": []}, clew.TokenError, "empty"),
        ({"capture": "zz"}, clew.SiteError, "zz"),
        ({"edits": [edit.zero("z", positions=[-9])]}, clew.ConfigError, "before the prompt's first"),
        ({"edits": [edit.zero("z", heads=[9])]}, clew.ShapeError, "heads 9"),
    ],
)
def test_what_is_refused(model: clew.Model, change: dict[str, Any], error: type[Exception], match: str) -> None:
    given: dict[str, Any] = {"tokens": [1, 2, 3]} | change
    with pytest.raises(error, match=match):
        model.generate(given.pop("tokens"), **given)


def test_models_that_cannot_generate() -> None:
    with pytest.raises(clew.UnsupportedModelError, match="causal"):
        make(ZOO["linear_full"])[0].generate([1, 2])
    with pytest.raises(clew.TokenError, match="a prompt of 20 tokens and 5 new ones: the model has 24 learned"):
        make(ZOO["gpt2"])[0].generate([1] * 20, max_new_tokens=5)
    for n, error, match in (
        (2**31 - 1, clew.TokenError, "a prompt of 3 tokens and 2147483647 new ones: the model has 24 learned"),
        (10**9, clew.TokenError, "and 1000000000 new ones"),
    ):
        with pytest.raises(error, match=match):
            make(ZOO["gpt2"])[0].generate([1, 2, 3], max_new_tokens=n)
    endless = make(ZOO["llama"])[0]
    with pytest.raises(clew.TokenError, match="max_new_tokens = 2147483647: a text has at most 2147483647 tokens"):
        endless.generate([1, 2, 3], max_new_tokens=2**31 - 1)
    with pytest.raises(MemoryError, match=r"keys and values of 900 × 2000000001 tokens take \d{15,} bytes"):
        endless.generate([[1]] * 900, max_new_tokens=2 * 10**9)
    assert len(make(ZOO["gpt2"])[0].generate([1] * 20, max_new_tokens=4).tokens[0]) == 4


def test_printing(trained: clew.Model) -> None:
    got = trained.generate("A <b>", max_new_tokens=3)
    ended = trained.generate("ROMEO:", max_new_tokens=9, stop="\n")
    assert r"(1 token, '\n')" in repr(ended) and len(repr(ended).splitlines()) == 2
    assert "3 tokens, length" in repr(got) and "<td>3</td>" in got._repr_html_()
    with pytest.raises(clew.ConfigError, match="nothing was captured"):
        got["z", 0]
