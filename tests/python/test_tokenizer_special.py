"""Beginning and end of a text where no file names them: what the tokenizer's class says, as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clew
import pytest
from checkpoint_files import D, case, random_tensors, write_checkpoint
from clew.tokenizer import from_directory

pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")
from test_tokenizer import byte_level  # noqa: E402


def gpt2_repository(path: Path, kind: str | None = "gpt2", config: dict[str, Any] | None = None) -> None:
    """The files of GPT-2's repository, none of which names a special token."""
    byte_level().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024} if config is None else config))
    if kind is not None:
        (path / "config.json").write_text(json.dumps({"model_type": kind}))


LAYOUTS: list[tuple[str | None, dict[str, Any] | None, tuple[int | None, int | None]]] = [
    ("gpt2", None, (0, 0)),
    ("gpt_neo", {}, (0, 0)),
    ("gptj", None, (0, 0)),
    ("phi", None, (0, 0)),
    ("qwen2", None, (None, 0)),
    ("llama", None, (None, None)),
    (None, {"tokenizer_class": "GPT2TokenizerFast"}, (0, 0)),
    ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast"}, (None, None)),
    ("gpt2", {"bos_token": "<|begin|>"}, (1, 0)),
    ("gpt2", {"bos_token": None}, (None, 0)),
]
"""model_type, tokenizer_config.json, ids of BOS and EOS (`byte_level` has <|endoftext|> 0 and <|begin|> 1)."""


@pytest.mark.parametrize(("kind", "config", "ids"), LAYOUTS)
def test_special_tokens_that_no_file_names(
    kind: str | None, config: dict[str, Any] | None, ids: tuple[int | None, int | None], tmp_path: Path
) -> None:
    gpt2_repository(tmp_path, kind, config)
    mine = from_directory(tmp_path)
    assert mine is not None
    assert (mine.bos_id, mine.eos_id) == ids
    assert 0 not in mine.encode("the king")  # a BOS is known, not added


def test_a_vocabulary_without_the_class_token(tmp_path: Path) -> None:
    gpt2_repository(tmp_path, "gemma")  # its class would begin with <bos>
    mine = from_directory(tmp_path)
    assert mine is not None
    assert (mine.bos_id, mine.eos_id) == (None, None)


def test_bos_of_gpt2_through_a_model_and_its_copy(tmp_path: Path) -> None:
    config, shapes = case("gpt2", vocab_size=4000)
    shapes["transformer.wte.weight"] = (4000, D)
    gpt2_repository(write_checkpoint(tmp_path / "a", config, random_tensors(shapes)), None)
    model = clew.load(tmp_path / "a")
    model.save(tmp_path / "b")
    for one in (model, clew.load(tmp_path / "b")):
        ids = one.to_tokens("the king", bos=True)
        assert ids[0][0] == 0
        assert list(ids[0][1:]) == list(one.to_tokens("the king")[0])


@pytest.mark.parametrize(("kind", "config", "ids"), [layout for layout in LAYOUTS if layout[0] is not None])
def test_against_what_its_class_says(
    kind: str, config: dict[str, Any] | None, ids: tuple[int | None, int | None], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    gpt2_repository(tmp_path, kind, config)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == ids
    mine = from_directory(tmp_path)
    assert mine is not None
    assert mine.encode("the king") == theirs("the king")["input_ids"]
