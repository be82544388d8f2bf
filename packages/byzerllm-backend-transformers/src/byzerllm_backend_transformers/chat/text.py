"""Token ids to text, as they come: whole characters only."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream

# A first token's leading blank shows only beside the text before it; a few tokens are enough.
_CONTEXT = 8


class TokenText:
    """Decodes one answer.

    Args:
        tokenizer: transformers' tokenizer.
        prompt: token ids that the answer continues as text; empty for an answer of its own, which
            does not begin with a blank.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._ids = list(prompt[-_CONTEXT:])
        self._read = 0
        if self._fast is not None:
            self._stream = DecodeStream(ids=self._ids, skip_special_tokens=True)
        else:
            self._shown = self._decode(self._ids)

    def add(self, token: int) -> str:
        """The characters that are whole after one more token."""
        if self._fast is not None:
            return self._stream.step(self._fast, token) or ""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd"):
            return ""
        fresh, self._shown = text[len(self._shown) :], text
        return fresh

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text
