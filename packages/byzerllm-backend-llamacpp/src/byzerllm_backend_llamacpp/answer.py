"""What llama.cpp's engine knows of one answer beyond what every engine does."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

import numpy as np

from byzerllm.decoding.answer import Answer
from byzerllm_backend_llamacpp.cache import Slot, Tokens
from byzerllm_backend_llamacpp.sampling import Sampler


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(eq=False, kw_only=True)
class Sequence(Answer):
    """The state of one answer in the engine.

    Attributes:
        reuse: the prompt may take over a prefix that is in the cache.
        fed: tokens that are in the cache; the last of `tokens` may not be decoded yet.
    """

    sampler: Sampler
    reuse: bool = True
    fed: int = 0
    slot: Slot | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)

    @property
    def waiting_tokens(self) -> int:
        """Tokens to decode before the next one can be drawn."""
        return len(self.tokens) - self.fed

    @property
    def in_cache(self) -> Tokens:
        return np.asarray(self.tokens[: self.fed], np.int32)
