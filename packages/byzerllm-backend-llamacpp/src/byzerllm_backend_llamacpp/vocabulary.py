"""A GGUF's tokens as llguidance takes them."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from byzerllm.decoding.json_schema import refused
from byzerllm_backend_llamacpp.model import Model


def read_vocabulary(model: Model) -> LLTokenizer:
    """Raises ParameterError for a model without an end token."""
    ends = sorted(model.end_tokens)
    if not ends:
        raise refused("the model has no token that ends an answer")
    # llguidance.llamacpp reads the vocabulary too, but through a deprecated function, and takes
    # tokens that an answer does not show for the text that stands for them.
    vocabulary = TokenizerWrapper(_Vocabulary(model))
    return LLTokenizer(vocabulary, eos_token=ends, slices=LLTokenizer.json_slices())


class _Vocabulary:
    """The model's tokens in the form that llguidance's `TokenizerWrapper` asks for."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.eos_token_id = min(model.end_tokens)
        self.bos_token_id = None
        pieces = [model.piece(token) for token in range(model.vocab_size)]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        # A first byte that no text has marks tokens that never stand for text.
        self.tokens = [piece or b"\xff<%d>" % token for token, piece in enumerate(pieces)]

    def __call__(self, text: bytes) -> list[int]:
        return self._model.tokenize(text.decode("utf-8", "replace"), special=False)
