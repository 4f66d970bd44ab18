"""Words and neighbourhoods: files with broken lines, SciPy's Spearman, counts by hand, purity by definition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew import walk
from clew.walk.neighbours import CLASSES
from clew.walk.similarity import WordPairs, WordVectors, token_table, word_counts, word_ids
from scipy import stats

SETS = Path(__file__).resolve().parents[3] / "shared" / "data" / "word-similarity"
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model() -> clew.Model:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: the bundled model has no text")
    return clew.load("shakespeare")


# ---- files ----------------------------------------------------------------------------------------------------------


def test_files_with_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "EN-SET.txt"
    path.write_text("king\tqueen\t8.5\n\nking queen\nking\tlord\tmuch\nlord lady 7\nlord lady nan\n")
    with pytest.raises(clew.LoadError, match=r"EN-SET.txt: line 3: 2 fields, expected two words and a score"):
        walk.read_word_pairs(path)
    found = walk.read_word_pairs(path, bad="skip")
    assert found.name == "EN-SET" and found.pairs == (("king", "queen"), ("lord", "lady"))
    assert found.scores.tolist() == [8.5, 7.0] and found.words == ["king", "queen", "lord", "lady"]
    assert [s.split(":")[0] for s in found.skipped] == ["line 3", "line 4", "line 6"]
    assert "'much', not a number" in found.skipped[1]
    path.write_bytes(b"king queen 1\n\xff\xfe 2\nlord lady 3\n")
    assert walk.read_word_pairs(path, bad="skip").skipped == ("line 2: not UTF-8 at byte 0",)
    path.write_text("nothing\n")
    with pytest.raises(clew.LoadError, match="no pair; the first of 1: line 1"):
        walk.read_word_pairs(path, bad="skip")
    with pytest.raises(clew.ConfigError, match="bad = 'perhaps'"):
        walk.read_word_pairs(path, bad="perhaps")  # type: ignore[arg-type]
    with pytest.raises(clew.LoadError, match="none: no such folder"):
        walk.read_word_sets(tmp_path / "none")
    path.unlink()
    with pytest.raises(clew.LoadError, match="no .txt file"):
        walk.read_word_sets(tmp_path)


def test_all_sets_are_read() -> None:
    if not SETS.is_dir():
        pytest.skip(f"{SETS.name} is not here")
    found = {one.name: len(one.pairs) for one in walk.read_word_sets(SETS)}
    assert found["EN-SIMLEX-999"] == 999 and found["EN-MEN-TR-3k"] == 3000 and len(found) == 7


# ---- vectors --------------------------------------------------------------------------------------------------------


def test_words_of_several_tokens(model: clew.Model) -> None:
    ids = word_ids(model, "handkerchief")
    assert len(ids) > 1 and "".join(model.to_str_tokens(np.array(ids))) == " handkerchief"
    table = model.W_E.astype(np.float64)
    mean = walk.word_vectors(model, ["king", "handkerchief", "king"])
    assert mean.words == ("king", "handkerchief") and mean.pieces is not None
    assert mean.pieces.tolist() == [1, len(ids)]
    np.testing.assert_allclose(mean.vectors[1], table[ids].mean(0), rtol=1e-14)
    last = walk.word_vectors(model, ["handkerchief"], pieces="last")
    np.testing.assert_array_equal(last.vectors[0], table[ids[-1]])
    single = walk.word_vectors(model, ["king", "handkerchief", "\U0001f409"], pieces="single")
    assert single.words == ("king",) and single.missing == ("handkerchief", "\U0001f409")
    with pytest.raises(clew.ConfigError, match="pieces = 'first': 'mean', 'last' or 'single'"):
        walk.word_vectors(model, ["king"], pieces="first")  # type: ignore[arg-type]
    with pytest.raises(clew.TokenError, match="no tokenizer"):
        walk.word_vectors(clew.load("stories260K"), ["king"])


def test_spaces_of_the_table(model: clew.Model) -> None:
    raw = model.W_E.astype(np.float64)
    np.testing.assert_allclose(token_table(model, space="centred"), raw - raw.mean(0), atol=1e-15)
    x = raw - raw.mean(1, keepdims=True)
    x /= np.sqrt((x**2).mean(1, keepdims=True) + model.config.eps)
    want = x * model.weights["blocks.0.ln1.w"] + model.weights["blocks.0.ln1.b"]
    np.testing.assert_allclose(token_table(model, space="normed"), want, atol=1e-9)
    np.testing.assert_array_equal(token_table(model, "W_U"), model.W_U.T)
    with pytest.raises(clew.ConfigError, match="space = 'white': one of 'raw', 'centred', 'normed'"):
        token_table(model, space="white")  # type: ignore[arg-type]
    with pytest.raises(clew.ConfigError, match="of = 'W_Q'"):
        token_table(model, of="W_Q")


def test_ppmi_by_hand() -> None:
    """Counts by a loop over pairs of places; U Λ Uᵀ comes back where every dimension is kept."""
    words = "a b c d e".split()
    said = [words[i] for i in RNG.integers(0, 5, 200)]
    found = walk.ppmi_vectors(" ".join(said), d=5, window=3, min_count=1)
    assert found.words == tuple(words)
    together = np.zeros((5, 5))
    for i, a in enumerate(said):
        for j, b in enumerate(said):
            if i != j and abs(i - j) <= 3:
                together[words.index(a), words.index(b)] += 1
    p = together / together.sum()
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(np.log(p / np.outer(p.sum(1), p.sum(1))), 0)
    values = np.linalg.eigvalsh(ppmi)
    np.testing.assert_allclose(found.vectors.T @ found.vectors,
                               np.diag(np.sort(np.abs(values))[::-1]), atol=1e-10)  # fmt: skip
    gram = np.linalg.svd(ppmi)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, gram[0] * gram[1] @ gram[0].T, atol=1e-10)
    with pytest.raises(clew.TokenError, match="2 words, 1 of them 2 times"):
        walk.ppmi_vectors("a a", min_count=2)
    with pytest.raises(clew.ConfigError, match="window = 0"):
        walk.ppmi_vectors("a b", window=0)


def test_counts_find_what_occurs_alike() -> None:
    """Two groups of words that keep to themselves: neighbours are of their own group."""
    groups = [["sun", "moon", "star", "sky"], ["salt", "bread", "soup", "milk"]]
    rng = np.random.default_rng(0)
    text = " ".join(w for _ in range(300) for w in rng.choice(groups[int(rng.integers(2))], 6))
    found = walk.ppmi_vectors(text, d=2, window=2)
    labels = [int(w in groups[1]) for w in found.words]
    assert walk.purity(found.vectors, labels, k=3).purity == 1.0
    assert word_counts("It's an owl. An OWL!") == Counter({"an": 2, "owl": 2, "it's": 1})


# ---- correlation ----------------------------------------------------------------------------------------------------


def test_spearman_is_scipys() -> None:
    words = tuple("abcdefghijkl")
    vectors = WordVectors(words, RNG.standard_normal((12, 4)), "random")
    pairs = [(a, b) for i, a in enumerate(words) for b in words[:i]]
    scores = np.round(RNG.random(len(pairs)), 1)  # with ties
    found = walk.word_similarity(vectors, WordPairs("set", tuple(pairs), scores))
    cosines = [
        float(vectors.vectors[words.index(a)] @ vectors.vectors[words.index(b)]
              / np.linalg.norm(vectors.vectors[words.index(a)]) / np.linalg.norm(vectors.vectors[words.index(b)]))
        for a, b in pairs
    ]  # fmt: skip
    assert found.rho == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-12)
    draws = [stats.spearmanr(np.array(cosines)[i], scores[i]).statistic for i in RNG.integers(0, 66, (2000, 66))]
    np.testing.assert_allclose(found.interval, np.quantile(draws, [0.025, 0.975]), atol=0.04)


def test_missing_and_rare_words_are_listed() -> None:
    vectors = WordVectors(("a", "b", "c", "d"), RNG.standard_normal((4, 3)), "random")
    pairs = WordPairs("set", (("A", "b"), ("a", "c"), ("b", "c"), ("c", "d"), ("a", "x")), np.arange(5.0))
    found = walk.word_similarity(vectors, pairs, {"a": 20, "b": 30, "c": 20, "d": 19})
    assert found.n == 3 and found.total == 5 and found.missing == ("x",) and found.rare == ("d",)
    assert "on 3 of 5 pairs; words missing 1, too rare 1" in repr(found)
    few = walk.word_similarity(vectors, pairs, {"a": 20})
    assert few.n == 0 and np.isnan(few.rho) and np.isnan(few.interval).all()


def test_every_set_by_every_space(model: clew.Model, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("king queen 9\nking duke 8\nlord hand 1\nlord lady 9\nheart eyes 6\n")
    text = "king queen duke lord lady hand heart eyes " * 30
    found = walk.word_similarities(model, tmp_path, text)
    assert [r.source.split(", ")[-1] for r in found.rows] == ["raw", "centred", "normed", "PPMI-SVD of the text"]
    assert all(r.n == 5 for r in found.rows) and len(found.table().splitlines()) == 4
    assert len(walk.word_similarities(model, walk.read_word_sets(tmp_path)).rows) == 3
    (tmp_path / "two.txt").write_text("king handkerchief 1\nqueen zebra 2\nlord lady 9\n")
    found = walk.word_similarities(model, tmp_path, text, pieces="single", min_count=1)
    words = "king queen duke lord hand lady heart eyes handkerchief zebra".split()
    several = [word for word in words if len(model.to_tokens(f" {word}")[0]) > 1]
    assert several and found.table().splitlines()[8:] == [
        f"words without a vector: {len(several)}: {', '.join(several)}"
    ]
    assert walk.word_similarities(model, tmp_path, text).table().splitlines()[8:] == [
        "words too rare: 2: handkerchief, zebra"
    ]


def test_arrangement_of_two_tables() -> None:
    x = RNG.standard_normal((20, 5))
    turn = np.linalg.qr(RNG.standard_normal((5, 5)))[0]
    assert walk.embedding_similarity(x, 2 * x @ turn + 3) == pytest.approx(1)
    y = RNG.standard_normal((20, 7))

    def cosines(t: Any) -> Any:
        t = t - t.mean(0)
        return np.array(
            [t[i] @ t[j] / np.linalg.norm(t[i]) / np.linalg.norm(t[j]) for i in range(20) for j in range(i)]
        )

    assert walk.embedding_similarity(x, y) == pytest.approx(stats.pearsonr(cosines(x), cosines(y)).statistic)
    with pytest.raises(clew.ShapeError, match=r"tables \[20, 5\] and \[19, 7\]"):
        walk.embedding_similarity(x, y[1:])


# ---- neighbourhoods -------------------------------------------------------------------------------------------------


def test_purity_by_definition() -> None:
    x, labels = RNG.standard_normal((30, 4)), RNG.integers(0, 3, 30)
    found = walk.purity(x, labels, k=4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    shares = [(labels[np.argsort(-row)[:4]] == own).mean() for row, own in zip(cosine, labels, strict=True)]
    assert found.purity == pytest.approx(np.mean(shares))
    deals = [(d[:, None] == d).sum() - 30 for d in (RNG.permutation(labels) for _ in range(3))]
    assert found.chance == pytest.approx(deals[0] / (30 * 29))
    assert found.p > 0.01
    for name in found.by_class:
        assert found.by_class[name] == pytest.approx(np.mean(np.array(shares)[labels == int(name)]))
    clear = walk.purity(np.eye(6)[np.repeat([0, 1], 8)] + 0.01 * RNG.standard_normal((16, 6)), [0] * 8 + [1] * 8)
    assert clear.purity == 1 and clear.p < 0.01
    same = walk.purity(np.ones((4, 2)), [0, 0, 1, 1], k=1)  # nobody is its own neighbour, even among equals
    assert 0 <= same.purity <= 1
    for arguments, message in (
        ((x, labels[:-1]), r"vectors \[30, 4\] with 29 labels"),
        ((x, labels, 30), "k = 30 of 30 items"),
        ((x[:3], [0, 0, 1]), r"classes of \[2, 1\]"),
    ):
        with pytest.raises(clew.Error, match=message):
            walk.purity(*arguments)


def test_purity_of_a_model(model: clew.Model) -> None:
    found = walk.purity_of_tokens(model)
    assert found.purity > 3 * found.chance and found.p < 0.01 and set(found.sizes) <= set(CLASSES)
    random = walk.purity_of_tokens(model, table=RNG.standard_normal((1024, 16)))
    assert random.purity < 2 * random.chance and random.p > 0.001
    with pytest.raises(clew.ShapeError, match=r"a table \[3, 2\] for 1024 tokens"):
        walk.purity_of_tokens(model, table=np.ones((3, 2)))
    with pytest.raises(clew.TokenError, match="fewer than two classes"):
        walk.purity_of_tokens(model, classes={"a": "king queen"})


def test_composition_by_definition() -> None:
    m = clew.load("stories260K", dtype="float64")
    rows = [RNG.integers(3, 512, 9).tolist(), RNG.integers(3, 512, 5).tolist()]
    found = walk.composition(m, rows, k=4)
    table = m.W_E / np.linalg.norm(m.W_E, axis=1, keepdims=True)
    own, itself, following = [], [], []
    for row in rows:
        stack = m.run(row, capture="resid_post").stack("resid_post")[:, 0]
        for i in range(len(row) - 1):
            home = set(np.argsort(-(table @ table[row[i]]), kind="stable")[:4].tolist())
            near = np.argsort(-(stack[3, i] @ table.T), kind="stable")
            own.append(len(home & set(near[:4].tolist())) / 4)
            itself.append(near[0] == row[i])
            following.append(near[0] == row[i + 1])
    assert found.n == 12 and found.own[0] == 1 and found.itself[0] == 1
    assert found.own[4] == pytest.approx(np.mean(own)) and found.itself[4] == pytest.approx(np.mean(itself))
    assert found.following[4] == pytest.approx(np.mean(following))
    with pytest.raises(clew.TokenError, match="no sequence of two tokens"):
        walk.composition(m, [[1]])
