"""Text to token ids and back, with the tokens of the model's own tokenizer.

A tokenizer comes from a Hugging Face directory (:func:`from_directory`), from a GGUF file's vocabulary
(:func:`from_gguf`) or from a llama2.c `tokenizer.bin` (:func:`from_llama2c`). SentencePiece vocabularies need nothing
but clew; `tokenizer.json`, `vocab.json` with `merges.txt` and byte-level vocabularies of GGUF files need the
`tokenizers` package (`pip install '.[text]'` in the checkout), which is imported when the first of them is opened.
"""

from __future__ import annotations

from .base import Tokenizer
from .gguf_vocab import from_gguf
from .huggingface import from_directory
from .sentencepiece import SentencePieceTokenizer, from_llama2c, from_model_file

__all__ = ["SentencePieceTokenizer", "Tokenizer", "from_directory", "from_gguf", "from_llama2c", "from_model_file"]
