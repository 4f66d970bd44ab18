"""What every tokenizer does."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from ..errors import TokenError


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes
    ----------
    tokens
        The vocabulary's own strings by id (`"Ġthe"`, `"▁the"`, `"<0x0A>"`); "" where the vocabulary has a gap.
    bos_id, eos_id
        Ids of the tokens that begin and end a text; None where the vocabulary has none.

    Example
    -------
    >>> tokenizer = clew.load("model").tokenizer                # doctest: +SKIP
    >>> tokenizer.to_str_tokens("The cat sat")                  # doctest: +SKIP
    ['<s>', ' The', ' cat', ' sat']
    """

    tokens: Sequence[str]
    bos_id: int | None = None
    eos_id: int | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids, gaps counted."""
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, bos_id={self.bos_id}, eos_id={self.eos_id})"

    @abstractmethod
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...

    @abstractmethod
    def _str_token(self, token: int) -> str:
        """One id alone, its leading space kept."""

    @abstractmethod
    def _lookup(self, text: str) -> int | None:
        """The id whose own string is `text`, where encoding `text` would put a space before it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text.

        Parameters
        ----------
        text
            Special tokens that it spells out (`"<|endoftext|>"`) become their ids.
        add_special_tokens
            Add what the tokenizer's own configuration adds (for most Llamas and Gemmas a BOS, for GPT-2 nothing).

        Raises
        ------
        TokenError
            Text that is not valid Unicode (a lone surrogate), or a character that the vocabulary cannot spell.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode: text must be a str, not {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenError(f"character {error.start} is a lone surrogate, which no token spells") from None
        return self._encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are no UTF-8 come out as U+FFFD.

        Raises
        ------
        TokenError
            An id outside the vocabulary.
        """
        return self._decode(self._checked(ids), skip_special_tokens)

    def to_str_tokens(self, text_or_ids: str | Iterable[int], add_special_tokens: bool = True) -> list[str]:
        """Each token as it reads on its own, its leading space kept: `["The", " cat"]`.

        Raises
        ------
        TokenError
            An id outside the vocabulary.
        """
        if isinstance(text_or_ids, str):
            text_or_ids = self.encode(text_or_ids, add_special_tokens)
        return [self._str_token(token) for token in self._checked(text_or_ids)]

    def single_token(self, text: str) -> int:
        """The id of the one token that reads `text`, leading space included.

        Raises
        ------
        TokenError
            It is more than one token; the message shows them.
        """
        ids = self.encode(text, add_special_tokens=False)
        if len(ids) == 1 and self._str_token(ids[0]) == text:
            return ids[0]
        token = self._lookup(text)
        if token is not None:
            return token
        if len(ids) == 1:
            raise TokenError(f"{text!r} is no token; the nearest is {self._str_token(ids[0])!r} ({ids[0]})")
        split = ", ".join(f"{self._str_token(token)!r} ({token})" for token in ids)
        raise TokenError(f"{text!r} is {len(ids)} tokens: {split}" if ids else f"{text!r} is no token")

    def _checked(self, ids: Iterable[int]) -> list[int]:
        try:
            out = [operator.index(token) for token in ids]
        except TypeError:
            raise TokenError(f"token ids are whole numbers, not {ids!r}") from None
        for place, token in enumerate(out):
            if not 0 <= token < len(self.tokens):
                raise TokenError(f"id {token} at place {place} is outside the vocabulary of {len(self.tokens)}")
        return out
