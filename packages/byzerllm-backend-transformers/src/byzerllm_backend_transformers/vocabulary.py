"""A tokenizer's vocabulary as constrained decoding takes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import llguidance.hf
from llguidance import LLTokenizer

from byzerllm.decoding.json_schema import refused


def read_vocabulary(tokenizer: Any, vocab_size: int, ends: Collection[int]) -> LLTokenizer:
    """The tokens as llguidance takes them; about half a second for 50,000.

    Args:
        vocab_size: number of logits of the model.
        ends: tokens that end an answer.

    Raises:
        ParameterError: the model cannot be held to a schema.
    """
    if not ends:
        raise refused("the model has no token that ends an answer")
    try:
        return llguidance.hf.from_tokenizer(
            tokenizer,
            n_vocab=vocab_size,
            eos_token=sorted(ends),
            slices=LLTokenizer.json_slices(),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise refused(f"the model's tokenizer cannot be used for it: {error}") from None
