"""A tokenizer's vocabulary: what ends an answer, and all of it for constrained decoding."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import llguidance.hf
from llguidance import LLTokenizer

from byzerllm.decoding.json_schema import refused
from byzerllm.requests import SamplingParams


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


def stop_ids(params: SamplingParams, ends: frozenset[int], tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer.

    Args:
        ends: the model's own.
    """
    own: frozenset[int] = frozenset() if params.ignore_eos else ends
    # A stop text that is a special token never shows as text.
    added = tokenizer.get_added_vocab()
    return own.union(params.stop_token_ids, (added[one] for one in params.stop if one in added))
