"""Tokens against the sentencepiece, tokenizers and transformers packages, over text that is hard to cut."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import clew
import numpy as np
import pytest
from clew.errors import LoadError, TokenError, UnsupportedModelError
from clew.tokenizer import Tokenizer, from_directory, from_gguf, from_llama2c, from_model_file
from clew.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceTokenizer,
)

spm = pytest.importorskip("sentencepiece")
hf = pytest.importorskip("tokenizers")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SONNET = """Shall I compare thee to a summer's day? Thou art more lovely and more temperate: Rough winds do shake the
darling buds of May, And summer's lease hath all too short a date; Sometime too hot the eye of heaven shines, And often
is his gold complexion dimm'd; And every fair from fair sometime declines, By chance or nature's changing course
untrimm'd; But thy eternal summer shall not fade, Nor lose possession of that fair thou ow'st; Nor shall death brag thou
wander'st in his shade, When in eternal lines to time thou grow'st: So long as men can breathe or eyes can see, So long
lives this, and this gives life to thee. Let me not to the marriage of true minds Admit impediments. Love is not love
Which alters when it alteration finds, Or bends with the remover to remove: O no! it is an ever-fixed mark That looks on
tempests and is never shaken; It is the star to every wandering bark, Whose worth's unknown, although his height be
taken. In 1609, 154 were printed; 1234567890."""


def corpus() -> list[str]:
    """Lines to train on."""
    shakespeare = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
    text = shakespeare.read_text()[:200_000] if shakespeare.is_file() else SONNET * 20
    lines = [line for line in text.split("\n") if line]
    return [
        *lines,
        *("  indented   text    with     spaces" for _ in range(40)),
        *("aaaa aaaaaa aaa" for _ in range(9)),
    ]


LINES = corpus()

HARD = (
    *("the", "  king's", " king", "\n", "\n\n", "\t", " ", "  ", "   ", "     ", "a", "aa", "aaa", "aaaaaaa"),
    *("don't", "I'LL", "we've", "1234567", "12 34", "3.14", "x=y+z;", "(a)", "...", "--", "<", ">", "|", "<s", "/s>"),
    *(
        "é",
        "e\u0301",
        "ß",
        "中文字",
        "日本語",
        "😀",
        "👩\u200d👩\u200d👧",
        "🇩🇪",
        "🏴",
        "한국어",
        "שלום",
        "؟",
        "Ünïcödé",
    ),
    *("\u200b", "\u00a0", "▁", "▁▁the", "<0x41>", "\r\n", "\x00", "\x7f"),
)

hard_text = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(HARD),
        st.sampled_from(LINES[:200]),
        st.text(alphabet=" \n\t", max_size=9),
        st.text(alphabet="a ", max_size=12),
        st.text(alphabet="thesaing' ", max_size=20),
    ),
    max_size=8,
).map("".join)  # fmt: skip
hard_text = hard_text.filter(lambda text: not re.search(r"</?s>|<unk>|<user>|<pad>", text))
many = settings(max_examples=400, deadline=None)


def train(**options: Any) -> bytes:
    """A SentencePiece model of the corpus."""
    out = io.BytesIO()
    settings_ = {
        "vocab_size": 800, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2,
    }  # fmt: skip
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **(settings_ | options))
    return out.getvalue()


MODELS: dict[str, dict[str, Any]] = {
    "llama": {"allow_whitespace_only_pieces": True, "split_digits": True},
    "no bytes": {"byte_fallback": False, "character_coverage": 0.99},
    "no prefix": {"add_dummy_prefix": False},
    "extra whitespace removed": {"remove_extra_whitespaces": True},
    "user-defined": {"user_defined_symbols": ["<user>", "king", "  ", "▁the"], "control_symbols": ["<pad>"]},
    "across words": {"split_by_whitespace": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    out = {}
    for name, options in MODELS.items():
        content = train(**options)
        path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
        path.write_bytes(content)
        out[name] = spm.SentencePieceProcessor(model_proto=content), path
    return out


def kinds_of(sp: Any) -> list[int]:
    return [
        UNKNOWN if sp.is_unknown(i) else CONTROL if sp.is_control(i) else BYTE if sp.is_byte(i) else
        UNUSED if sp.is_unused(i) else NORMAL for i in range(len(sp))
    ]  # fmt: skip


# ---- SentencePiece --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_model_file(name: str, models: dict[str, tuple[Any, Path]]) -> None:
    """Token for token what sentencepiece gives, and its text back."""
    sp, path = models[name]
    mine = from_model_file(path)
    assert (mine.vocab_size, mine.bos_id, mine.eos_id) == (len(sp), sp.bos_id(), sp.eos_id())
    assert list(mine.tokens) == [sp.id_to_piece(i) for i in range(len(sp))]

    @many
    @given(hard_text)
    @example("aaaaaaaaaaa aaaaa")
    @example("   the   king")
    @example("")
    @example(" ")
    @example("▁▁▁ ▁")
    def check(text: str) -> None:
        ids = sp.encode(text)
        assert mine.encode(text, add_special_tokens=False) == ids
        assert mine.encode(text) == [sp.bos_id(), *ids]
        if sp.unk_id() not in ids:  # sentencepiece writes " ⁇ " for it
            assert mine.decode(ids) == sp.decode(ids)

    check()


@pytest.mark.parametrize("name", ["llama", "no prefix", "extra whitespace removed"])
def test_decoding_any_ids(name: str, models: dict[str, tuple[Any, Path]]) -> None:
    """Half characters, bytes that are no UTF-8, BOS anywhere: what sentencepiece writes."""
    sp, path = models[name]
    mine = from_model_file(path)

    @many
    @given(st.lists(st.integers(1, len(sp) - 1), max_size=12))
    def check(ids: list[int]) -> None:
        assert mine.decode(ids, skip_special_tokens=True) == sp.decode(ids)

    check()


def test_long_text(models: dict[str, tuple[Any, Path]]) -> None:
    """Words come from the cache the second time, and a text without spaces is no quadratic cost."""
    sp, path = models["llama"]
    mine = from_model_file(path)
    text = "\n".join(LINES[:2000])
    for _ in range(2):
        assert mine.encode(text, add_special_tokens=False) == sp.encode(text)
    assert mine.decode(mine.encode(text, add_special_tokens=False)) == text
    dense = text.replace(" ", "").replace("\n", "")[:40_000]
    assert mine.encode(dense, add_special_tokens=False) == sp.encode(dense)


def varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def with_unused(content: bytes, unused: set[int]) -> bytes:
    """A SentencePiece model with some pieces' type, field 3, changed to unused."""
    out, place, count = bytearray(), 0, 0
    while place < len(content):
        start = place
        tag, place = varint(content, place)
        length, place = varint(content, place)
        body = content[place : place + length]
        place += length
        if tag == 0x0A:
            if count in unused:
                body += b"\x18\x05"
                assert len(body) < 128
                out += bytes([tag, len(body)]) + body
            else:
                out += content[start:place]
            count += 1
        else:
            out += content[start:place]
    return bytes(out)


def test_unused_pieces_are_taken_apart(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    """An unused piece forms on the way to others, and is split again where it stays."""
    whole, path = models["llama"]
    unused = {i for i in range(259, len(whole)) if i % 3 == 0 and len(whole.id_to_piece(i)) > 1}
    content = with_unused(path.read_bytes(), unused)
    (tmp_path / "tokenizer.model").write_bytes(content)
    sp = spm.SentencePieceProcessor(model_proto=content)
    assert sum(sp.is_unused(i) for i in range(len(sp))) == len(unused) > 50
    mine = from_model_file(tmp_path / "tokenizer.model")
    changed = 0
    for text in LINES[:300]:
        ids = sp.encode(text)
        assert mine.encode(text, add_special_tokens=False) == ids
        changed += ids != whole.encode(text)
    assert changed > 100


def test_special_tokens_in_text(models: dict[str, tuple[Any, Path]]) -> None:
    sp, path = models["llama"]
    mine = from_model_file(path)
    the, space = sp.piece_to_id("▁the"), sp.piece_to_id("▁")
    assert mine.encode("the</s> the", add_special_tokens=False) == [the, 2, the]
    assert mine.encode("</s>") == [1, 2]
    assert mine.decode([1, the, 2, the]) == "<s>the</s> the"
    assert mine.decode([1, the, 2, the], skip_special_tokens=True) == "the the"
    assert mine.to_str_tokens("the\nthe") == ["<s>", " the", "\n", *mine.to_str_tokens(sp.encode("x\nthe")[3:])]
    assert mine.to_str_tokens([the, space, 3 + 0xE2]) == [" the", " ", "\ufffd"]


def test_single_token(models: dict[str, tuple[Any, Path]]) -> None:
    sp, path = models["llama"]
    mine = from_model_file(path)
    assert mine.single_token(" the") == sp.piece_to_id("▁the")
    assert mine.single_token("a") == sp.piece_to_id("a")
    assert mine.single_token(" a") == sp.piece_to_id("▁a")
    assert mine.single_token("\n") == sp.piece_to_id("<0x0A>")
    assert mine.single_token("</s>") == 2
    ids = sp.encode("the king's")
    with pytest.raises(TokenError) as info:
        mine.single_token("the king's")
    assert str(info.value) == f'"the king\'s" is {len(ids)} tokens: ' + ", ".join(
        f"{sp.id_to_piece(i).replace('▁', ' ')!r} ({i})" for i in ids
    )
    with pytest.raises(TokenError, match="'' is no token"):
        mine.single_token("")


def test_refused_text_and_ids(models: dict[str, tuple[Any, Path]]) -> None:
    mine = from_model_file(models["llama"][1])
    with pytest.raises(TokenError, match="character 2 is a lone surrogate"):
        mine.encode("ab\ud800")
    with pytest.raises(TokenError, match=f"id {mine.vocab_size} at place 1 is outside the vocabulary"):
        mine.decode([1, mine.vocab_size])
    with pytest.raises(TokenError, match="id -1 at place 0"):
        mine.to_str_tokens([-1])
    with pytest.raises(TypeError, match="must be a str, not list"):
        mine.encode(["a"])  # type: ignore[arg-type]
    assert mine.decode(np.array([1, 5])) == mine.decode([1, 5])
    bare = SentencePieceTokenizer(["a", "b"], [0.0, 0.0], [NORMAL, NORMAL], add_space_prefix=False)
    assert bare.encode("ab") == [0, 1]
    with pytest.raises(TokenError, match="cannot spell 'c'"):
        bare.encode("ac")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "unigram"}, "of the kind unigram; supported: bpe"),
        ({"model_type": "char"}, "of the kind char"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalisation 'nmt_nfkc'; supported: identity"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    ],
)
def test_other_models_are_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(**options))
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        from_model_file(path)


# ---- llama2.c -------------------------------------------------------------------------------------------------------


def export(sp: Any, path: Path) -> None:
    """As llama2.c's own script writes a tokenizer.bin."""
    pieces = [sp.id_to_piece(i).replace("▁", " ").encode() for i in range(len(sp))]
    pieces[1], pieces[2] = b"\n<s>\n", b"\n</s>\n"
    with open(path, "wb") as file:
        file.write(struct.pack("<I", max(map(len, pieces))))
        for i, piece in enumerate(pieces):
            file.write(struct.pack("<fI", sp.get_score(i), len(piece)) + piece)


def run_c(pieces: list[bytes], scores: list[float], text: str) -> list[int]:
    """llama2.c's encoder: characters or bytes, then the best neighbours merge, again and again."""
    lookup = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    ids = [1] + ([lookup[b" "]] if text else [])
    for character in text:
        raw = character.encode()
        ids += [lookup[raw]] if raw in lookup else [byte + 3 for byte in raw]
    while True:
        best, place = -1e10, -1
        for i in range(len(ids) - 1):
            both = lookup.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if both is not None and scores[both] > best:
                best, place, merged = scores[both], i, both
        if place < 0:
            return ids
        ids[place : place + 2] = [merged]


def test_llama2c(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    sp, _ = models["llama"]
    path = tmp_path / "tokenizer.bin"
    export(sp, path)
    mine = from_llama2c(path, len(sp))
    pieces = [sp.id_to_piece(i).replace("▁", " ").encode() for i in range(len(sp))]
    scores = [sp.get_score(i) for i in range(len(sp))]

    @settings(max_examples=150, deadline=None)
    @given(hard_text)
    @example("aaaaaaa  aaaa")
    def check(text: str) -> None:
        assert mine.encode(text) == run_c(pieces, scores, text)
        if "▁" not in text:  # a space for sentencepiece, a character like others for llama2.c
            assert mine.encode(text) == [1, *sp.encode(text)]
        assert mine.decode(mine.encode(text), skip_special_tokens=True) == text

    check()
    assert mine.encode("<s>") == [1, *sp.encode("<s>")]  # run.c does not look for special tokens
    assert mine.encode("▁") == [1, sp.piece_to_id("▁"), *(3 + byte for byte in "▁".encode())]


def test_damaged_llama2c(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.bin"
    export(models["llama"][0], path)
    content = path.read_bytes()
    count = len(models["llama"][0])
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(LoadError, match=r"tokenizer\.bin"):
            from_llama2c(path, count)
    for place, value, said in (
        (8, struct.pack("<i", -1), "byte 8: piece 0 has a length of -1"),
        (8, struct.pack("<i", 1 << 30), "byte 8: piece 0 has a length of 1073741824"),
        (4, struct.pack("<f", float("nan")), "byte 4: piece 0 has the score nan"),
        (12, b"\xff", "byte 12: piece 0 is no UTF-8"),
    ):
        path.write_bytes(content[:place] + value + content[place + len(value) :])
        with pytest.raises(LoadError, match=re.escape(said)):
            from_llama2c(path)
    with pytest.raises(LoadError, match="No such file"):
        from_llama2c(tmp_path / "none.bin")


def test_damaged_model_files(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    content = models["llama"][1].read_bytes()
    path = tmp_path / "tokenizer.model"
    rng = np.random.default_rng(0)
    refused = 0
    cuts = [content[:length] for length in range(0, len(content), 37)]
    for _ in range(1000):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(0, len(changed)))] = int(rng.integers(0, 256))
        cuts.append(bytes(changed))
    for changed in cuts:
        path.write_bytes(changed)
        try:
            from_model_file(path)
        except (LoadError, UnsupportedModelError) as error:
            assert "tokenizer.model" in str(error)
            refused += 1
    assert refused > 300
    path.write_bytes(b"")
    with pytest.raises(LoadError, match="no pieces"):
        from_model_file(path)


# ---- GGUF, SentencePiece --------------------------------------------------------------------------------------------


def gguf_metadata(sp: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [sp.id_to_piece(i) for i in range(len(sp))],
        "tokenizer.ggml.scores": np.array([sp.get_score(i) for i in range(len(sp))], dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds_of(sp), dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.mark.parametrize("name", ["llama", "no prefix"])
def test_gguf_sentencepiece(name: str, models: dict[str, tuple[Any, Path]]) -> None:
    sp, _ = models[name]
    metadata = gguf_metadata(sp)
    if name == "no prefix":
        metadata["tokenizer.ggml.add_space_prefix"] = False
        metadata["tokenizer.ggml.add_bos_token"] = False
        metadata["tokenizer.ggml.add_eos_token"] = True
    mine = from_gguf(metadata)
    assert mine is not None

    @many
    @given(hard_text)
    def check(text: str) -> None:
        ids = sp.encode(text)
        assert mine.encode(text, add_special_tokens=False) == ids
        assert mine.encode(text) == ([*ids, 2] if name == "no prefix" else [1, *ids])
        assert mine.decode(ids) == sp.decode(ids)

    check()
    untyped = from_gguf({key: value for key, value in metadata.items() if "token_type" not in key})
    assert untyped is not None
    assert untyped.encode("the king 😀") == mine.encode("the king 😀")


def test_gguf_special_tokens(models: dict[str, tuple[Any, Path]]) -> None:
    """llama.cpp cuts control and user-defined tokens out first, and puts a space before the text behind them."""
    sp, _ = models["llama"]
    metadata = gguf_metadata(sp)
    n = len(sp)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<user>", "▁▁▁"]
    metadata["tokenizer.ggml.scores"] = np.append(metadata["tokenizer.ggml.scores"], [0.0, 0.0])
    metadata["tokenizer.ggml.token_type"] = np.append(metadata["tokenizer.ggml.token_type"], [USER_DEFINED] * 2)
    mine = from_gguf(metadata)
    assert mine is not None
    the = sp.piece_to_id("▁the")
    assert mine.encode("the<user>the</s>the   the") == [1, the, n, the, 2, the, n + 1, the]
    assert mine.to_str_tokens([n + 1]) == ["   "]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model": "t5"}, UnsupportedModelError, "tokenizer.ggml.model = 't5'; supported: llama, gpt2"),
        ({"model": "bert"}, UnsupportedModelError, "'bert'"),
        ({"tokens": None}, LoadError, "tokenizer.ggml.tokens is missing"),
        ({"tokens": 7}, LoadError, "tokenizer.ggml.tokens is no array"),
        ({"tokens": [1, 2]}, LoadError, "is no array of texts"),
        ({"scores": None}, LoadError, "tokenizer.ggml.scores is missing"),
        ({"scores": np.zeros(3)}, LoadError, "tokenizer.ggml.scores has 3 entries, tokenizer.ggml.tokens"),
        ({"scores": "x"}, LoadError, "no array of numbers"),
        ({"token_type": np.zeros(3)}, LoadError, "tokenizer.ggml.token_type has 3 entries"),
        ({"bos_token_id": 1 << 20}, LoadError, "tokenizer.ggml.bos_token_id = 1048576 is no id"),
        ({"eos_token_id": "a"}, LoadError, "tokenizer.ggml.eos_token_id = 'a'"),
        ({"add_bos_token": 1}, LoadError, "tokenizer.ggml.add_bos_token = 1 is no bool"),
    ],
)
def test_gguf_refusals(
    change: dict[str, Any], error: type[Exception], said: str, models: dict[str, tuple[Any, Path]]
) -> None:
    metadata = gguf_metadata(models["llama"][0])
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(error, match=re.escape(said)):
        from_gguf(metadata, "x.gguf")
    assert from_gguf({}) is None
    assert from_gguf({"tokenizer.ggml.model": "none"}) is None


def test_gguf_scores_that_are_not_finite(models: dict[str, tuple[Any, Path]]) -> None:
    metadata = gguf_metadata(models["llama"][0])
    metadata["tokenizer.ggml.scores"][5] = np.nan
    with pytest.raises(LoadError, match="not finite"):
        from_gguf(metadata)


# ---- Byte-level BPE -------------------------------------------------------------------------------------------------


def byte_level(pre_tokenizer: Any = None, normalizer: Any = None) -> Any:
    """A byte-level tokenizer trained on the corpus with the tokenizers package."""
    out = hf.Tokenizer(hf.models.BPE())
    level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre_tokenizer is None)
    out.pre_tokenizer = level if pre_tokenizer is None else hf.pre_tokenizers.Sequence([pre_tokenizer, level])
    if normalizer is not None:
        out.normalizer = normalizer
    out.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>", "<|begin|>"], show_progress=False,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    out.train_from_iterator(LINES, trainer)
    return out


def bpe_parts(backend: Any) -> tuple[list[str], list[str]]:
    model = json.loads(backend.to_str())["model"]
    pieces = [piece for piece, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]
    return pieces, [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]


def bpe_metadata(backend: Any, pre: str | None) -> dict[str, Any]:
    pieces, merges = bpe_parts(backend)
    out = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": np.array([3, 3] + [1] * (len(pieces) - 2), dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    return out if pre is None else out | {"tokenizer.ggml.pre": pre}


def same(mine: Tokenizer, theirs: Any) -> None:
    """Ids and text agree on hard text, special tokens included."""

    @many
    @given(hard_text)
    @example("the<|endoftext|> king<|begin|>")
    @example("\n\n  x\n \n")
    def check(text: str) -> None:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert mine.encode(text, add_special_tokens=False) == ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert mine.decode(ids) == text or theirs.normalizer is not None

    check()


def test_tokenizer_json(tmp_path: Path) -> None:
    theirs = byte_level()
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<|begin|>"}, "eos_token": "<|endoftext|>"}'
    )
    mine = from_directory(tmp_path)
    assert mine is not None
    assert (mine.bos_id, mine.eos_id, mine.vocab_size) == (1, 0, theirs.get_vocab_size())
    assert mine.encode("the") == theirs.encode("the").ids
    the = theirs.token_to_id("Ġthe")
    assert mine.tokens[the] == "Ġthe"
    assert mine.to_str_tokens([the, 1]) == [" the", "<|begin|>"]
    assert mine.single_token(" the") == the
    (letter,) = theirs.encode("g").ids
    with pytest.raises(TokenError, match=rf"' theg' is 2 tokens: ' the' \({the}\), 'g' \({letter}\)"):
        mine.single_token(" theg")
    same(mine, theirs)


def test_vocab_and_merges(tmp_path: Path) -> None:
    theirs = byte_level()
    theirs.model.save(str(tmp_path))
    assert (tmp_path / "merges.txt").is_file()
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.eos_id == mine.bos_id == 0
    assert mine.encode("the") == theirs.encode("the").ids
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"1": {"content": "<|begin|>", "special": True}}, "add_bos_token": True,
                    "bos_token": "<|begin|>"})
    )  # fmt: skip
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("the") == [1, *theirs.encode("the").ids]
    same(mine, theirs)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"4000": {"content": "<x>"}}}')
    with pytest.raises(LoadError, match="'<x>' should have the id 4000"):
        from_directory(tmp_path)


def test_llama_style_tokenizer_json(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    """The form that Llama 2's tokenizer.json has: a decoder that strips the first space."""
    sp, _ = models["llama"]
    vocabulary = {sp.id_to_piece(i): i for i in range(len(sp))}
    merges = []
    for piece in sorted(vocabulary, key=lambda piece: -sp.get_score(vocabulary[piece])):
        if not sp.is_byte(vocabulary[piece]) and vocabulary[piece] > 2:
            cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            merges += [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
    theirs = hf.Tokenizer(hf.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    theirs.normalizer = hf.normalizers.Sequence([hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")])
    decoders = hf.decoders
    theirs.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    theirs.add_special_tokens(["<s>", "</s>"])
    theirs.post_processor = hf.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    mine = from_directory(tmp_path)
    assert mine is not None
    the = sp.piece_to_id("▁the")
    assert mine.encode("the king") == theirs.encode("the king").ids == [1, *sp.encode("the king")]
    assert mine.to_str_tokens("the\n") == ["<s>", " the", "\n"]
    assert mine.single_token(" the") == the
    assert mine.single_token("a") == sp.piece_to_id("a")
    assert mine.decode([the, the]) == "the the"
    for flags, expected in (
        ({"add_bos_token": False}, [the]),
        ({"add_bos_token": True}, [1, the]),
        ({"add_bos_token": True, "add_eos_token": True}, [1, the, 2]),
        ({"add_eos_token": True}, [the, 2]),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | flags))
        mine = from_directory(tmp_path)
        assert mine is not None
        assert mine.encode("the") == expected
        assert mine.encode("the", add_special_tokens=False) == [the]


def test_directory_with_sentencepiece(models: dict[str, tuple[Any, Path]], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(models["llama"][1].read_bytes())
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("the") == [1, models["llama"][0].piece_to_id("▁the")]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "add_eos_token": true}')
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("the") == [models["llama"][0].piece_to_id("▁the"), 2]
    assert from_directory(tmp_path / "nothing") is None


def test_damaged_tokenizer_json(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    content = (tmp_path / "tokenizer.json").read_text()
    for damaged in ("", "{", content[: len(content) // 2], content.replace('"BPE"', '"XPE"')):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(LoadError, match=r"tokenizer\.json: "):
            from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(LoadError, match=r"tokenizer_config\.json"):
        from_directory(tmp_path)
    config: dict[str, object] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": "yes"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: add_bos_token = 'yes': true or false"):
        from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    with pytest.raises(LoadError, match=r"tokenizer\.json: a Git LFS pointer, not the file itself"):
        from_directory(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(LoadError, match=r"tokenizer\.json: no file, or a link to none"):
        from_directory(tmp_path)


# ---- GGUF, byte-level -----------------------------------------------------------------------------------------------


def test_gguf_gpt2() -> None:
    theirs = byte_level()
    mine = from_gguf(bpe_metadata(theirs, "gpt-2"))
    assert mine is not None
    assert mine.encode("the") == theirs.encode("the").ids
    same(mine, theirs)
    adding = from_gguf(bpe_metadata(theirs, "gpt-2") | {"tokenizer.ggml.add_bos_token": True})
    assert adding is not None
    assert adding.encode("the") == [1, *theirs.encode("the").ids]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("llama-bpe", "1234567 don't DON'T", ["123", "456", "7", " don", "'t", " DON", "'T"]),
        ("llama-bpe", "a\n\n  b!\n\n", ["a", "\n\n", " ", " b", "!\n\n"]),
        ("llama-bpe", "(a)_b \t\n c", ["(a", ")_", "b", " \t\n", " c"]),
        ("qwen2", "1234 I'LL\r\n\nx", ["1", "2", "3", "4", " I", "'LL", "\r\n\n", "x"]),
        ("gpt-2", "1234567 don't DON'T", ["1234567", " don", "'t", " DON", "'", "T"]),
        ("gpt-2", "a\n\n  b", ["a", "\n", "\n", " ", " b"]),
        ("smollm", "12 a3", ["1", "2", " a", "3"]),
        ("default", "1234567 a!b", ["123", "456", "7", " a", "!", "b"]),
        ("tekken", "helloWorld 12a/\n", ["hello", "World", " ", "1", "2", "a", "/\n"]),
    ],
)
def test_words(pre: str, text: str, words: list[str]) -> None:
    """With every merge inside a word allowed, tokens are the words."""
    letters = hf.pre_tokenizers.ByteLevel.alphabet()
    encode = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [encode.pre_tokenize_str(word)[0][0] for word in words]
    # one chain of merges for the whole text makes it one token, unless it is cut into words first
    pieces, merges = sorted(letters), []
    for word in [*spelled, "".join(spelled)]:
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.pre": pre,
    }  # fmt: skip
    mine = from_gguf(metadata)
    assert mine is not None
    assert mine.to_str_tokens(text) == words


def test_gguf_qwen2_composes_characters() -> None:
    """As Qwen's own tokenizer does; the others take the text as it is."""
    for pre, alike in (("qwen2", True), ("gpt-2", False)):
        mine = from_gguf(bpe_metadata(byte_level(), pre))
        assert mine is not None
        assert (mine.encode("e\u0301") == mine.encode("\u00e9")) == alike


def test_gguf_llama3_rules() -> None:
    """Whole words that are tokens are not merged up to, and a BOS is added unless the file says otherwise."""
    letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.tokens": [*letters, "ab", "abc", "<|bos|>"], "tokenizer.ggml.merges": ["a b"],
    }  # fmt: skip
    mine = from_gguf(metadata)
    assert mine is not None
    assert mine.encode("abc") == [258, 257]
    assert mine.encode("abc<|bos|>", add_special_tokens=False) == [257, 258]
    metadata["tokenizer.ggml.add_bos_token"] = False
    mine = from_gguf(metadata)
    assert mine is not None
    assert mine.encode("abc") == [257]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"pre": "chatglm-bpe"}, UnsupportedModelError, "tokenizer.ggml.pre = 'chatglm-bpe'; supported: codeshell"),
        ({"merges": ["Ġ t", "nothing"]}, LoadError, "tokenizer.ggml.merges: 'nothing' at 1 joins no two tokens"),
        ({"merges": ["zz qq"]}, LoadError, "'zz qq' at 0"),
    ],
)
def test_gguf_byte_level_refusals(change: dict[str, Any], error: type[Exception], said: str) -> None:
    metadata = bpe_metadata(byte_level(), "gpt-2")
    for key, value in change.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(error, match=re.escape(said)):
        from_gguf(metadata)


def test_gguf_token_twice() -> None:
    metadata = bpe_metadata(byte_level(), "gpt-2")
    metadata["tokenizer.ggml.tokens"][300] = metadata["tokenizer.ggml.tokens"][200]
    with pytest.raises(LoadError, match="is both 200 and 300"):
        from_gguf(metadata)


# ---- The ecosystem's own classes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


def test_against_gpt2(transformers: Any, tmp_path: Path) -> None:
    byte_level().model.save(str(tmp_path))
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    mine = from_directory(tmp_path)
    assert mine is not None

    @many
    @given(hard_text)
    def check(text: str) -> None:
        assert mine.encode(text) == theirs(text)["input_ids"]

    check()


def test_against_qwen2(transformers: Any, tmp_path: Path) -> None:
    backend = byte_level()
    backend.model.save(str(tmp_path))
    theirs = transformers.Qwen2TokenizerFast.from_pretrained(tmp_path)
    mine = from_gguf(bpe_metadata(backend, "qwen2"))
    assert mine is not None

    @many
    @given(hard_text)
    def check(text: str) -> None:
        assert mine.encode(text) == theirs(text)["input_ids"]

    check()


def test_against_llama3(transformers: Any) -> None:
    """Llama 3's expression as transformers has it."""
    import inspect

    from transformers.convert_slow_tokenizer import TikTokenConverter

    pattern = inspect.signature(TikTokenConverter).parameters["pattern"].default
    theirs = byte_level(hf.pre_tokenizers.Split(hf.Regex(pattern), "isolated"))
    theirs.model.ignore_merges = True
    mine = from_gguf(bpe_metadata(theirs, "llama-bpe"))
    assert mine is not None
    same(mine, theirs)


FLAGS = [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("adds", [True, False])
def test_against_tokenizer_config(adds: bool, flags: dict[str, bool], transformers: Any, tmp_path: Path) -> None:
    """A tokenizer.json says itself what is added."""
    backend = byte_level()
    if adds:
        backend.post_processor = hf.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
        )
    else:
        backend.post_processor = hf.processors.ByteLevel(trim_offsets=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|endoftext|>", **flags,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("the king") == theirs("the king")["input_ids"]
    assert (mine.encode("the king")[0] == 1) == adds


@pytest.mark.parametrize("flags", FLAGS)
def test_against_vocab_and_merges(flags: dict[str, bool], transformers: Any, tmp_path: Path) -> None:
    """Without a tokenizer.json, the configuration says what is added (OPT: a BOS)."""
    byte_level().model.save(str(tmp_path))
    config = {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin|>", "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>", **flags,
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = from_directory(tmp_path)
    assert mine is not None
    for text in ("the king", "the<|begin|> king"):
        assert mine.encode(text) == theirs(text)["input_ids"]


# ---- Without the package --------------------------------------------------------------------------------------------


def test_without_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    metadata = bpe_metadata(byte_level(), "gpt-2")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    said = r"needs the tokenizers package: pip install '\.\[text\]' in the checkout"
    with pytest.raises(LoadError, match=said):
        from_directory(tmp_path)
    with pytest.raises(LoadError, match=said):
        from_gguf(metadata)


def test_a_model_without_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids work, and what would be labelled with texts has ids; only text and the tokenizer itself are refused."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = clew.load("shakespeare")
    ids, other = [3, 1, 4], [3, 5, 4]
    assert model.run(ids).logits.shape == (1, 3, 1024)
    sweep = model.sweep(ids, other, metric=clew.metrics.logit_diff(7, 9))
    assert sweep.labels[1] == (3, 5, 4) and sweep.metric == "logit_diff(7, 9)"
    made = model.generate(ids, max_new_tokens=2)
    assert len(made.tokens[0]) == 2 and made.text is None
    assert [step.texts for step in model.generate_stream(ids, max_new_tokens=2)] == [("",), ("",)]
    said = r"needs the tokenizers package: pip install '\.\[text\]' in the checkout"
    for ask in (lambda: model.tokenizer, lambda: model.run("hi"), lambda: model.generate(ids, stop="x")):
        with pytest.raises(LoadError, match=said):
            ask()


def test_importing_clew_imports_no_extra() -> None:
    extras = ("tokenizers", "gguf", "transformers", "sentencepiece")
    code = f"import sys, clew, clew.tokenizer; print([name for name in {extras} if name in sys.modules])"
    paths = {**os.environ, "PYTHONPATH": str(Path(clew.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths).stdout == "[]\n"
