"""Turns texts into vectors on a context of its own over the loaded model."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from byzerllm.errors import BackendError, ContextLengthError, ParameterError
from byzerllm_backend_llamacpp.context import embedding_context
from byzerllm_backend_llamacpp.model import Model
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.parameters import LlamaCppParameters

_POOLING = {"mean": 1, "cls": 2, "last": 3}
_UNSPECIFIED = -1
_SMALLEST_LIMIT = 2048
_TEXTS_AT_ONCE = 64


class Embedder:
    """Embeds texts; blocking, one call at a time. The context is made by the first call.

    Args:
        n_ctx: the deployment's context; no text may be longer.
        threads: CPU threads when the parameters do not say.
    """

    def __init__(
        self, model: Model, parameters: LlamaCppParameters, *, n_ctx: int, threads: int
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._threads = threads
        self._limit = min(n_ctx, max(parameters.n_ubatch, _SMALLEST_LIMIT))
        self._lock = threading.Lock()
        self._context: Any = None
        self._closed = False

    def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """One vector per text, and the number of tokens in all.

        Raises:
            ParameterError: an empty text.
            ContextLengthError: a text that does not fit; it is never cut.
        """
        tokens = [self._tokens(text, position) for position, text in enumerate(texts)]
        with self._lock:
            self._open()
            vectors = [vector for group in self._groups(tokens) for vector in self._vectors(group)]
        return vectors, sum(len(one) for one in tokens)

    def close(self) -> None:
        """Free the context, after the call that runs."""
        with self._lock:
            self._closed = True
            if self._context is not None:
                llama_cpp.llama_free(self._context)
                self._context = None

    def _tokens(self, text: str, position: int) -> list[int]:
        tokens = self._model.tokenize(text, special=False, add_special=True)
        if not tokens:
            raise ParameterError(f"text {position} is empty; there is nothing to embed")
        if len(tokens) > self._limit:
            raise ContextLengthError(
                f"text {position} has {len(tokens):,} tokens, at most {self._limit:,} can be "
                "embedded; split it, or deploy with larger n_ctx and n_ubatch",
                tokens=len(tokens),
                limit=self._limit,
            )
        return tokens

    def _open(self) -> None:
        if self._closed:
            raise BackendError("the model is closed")
        if self._context is not None:
            return
        wanted = self._parameters.pooling_type
        if wanted is not None:
            pooling = _POOLING[wanted]
        else:
            pooling = _UNSPECIFIED if self._model.pools() else _POOLING["mean"]
        self._context = embedding_context(
            self._model,
            self._parameters,
            tokens=self._limit,
            sequences=min(_TEXTS_AT_ONCE, self._limit),
            pooling=pooling,
            threads=self._threads,
        )

    def _groups(self, texts: list[list[int]]) -> list[list[list[int]]]:
        """The texts in groups that fit into one batch."""
        groups: list[list[list[int]]] = []
        room = 0
        for tokens in texts:
            if not groups or len(tokens) > room or len(groups[-1]) == _TEXTS_AT_ONCE:
                groups.append([])
                room = self._limit
            groups[-1].append(tokens)
            room -= len(tokens)
        return groups

    def _vectors(self, texts: list[list[int]]) -> list[list[float]]:
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:
            llama_cpp.llama_memory_clear(memory, False)
        batch = llama_cpp.llama_batch_init(sum(len(one) for one in texts), 0, 1)
        try:
            at = 0
            for sequence, tokens in enumerate(texts):
                for position, token in enumerate(tokens):
                    batch.token[at], batch.pos[at] = token, position
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                    batch.logits[at] = 1
                    at += 1
            batch.n_tokens = at
            code = llama_cpp.llama_decode(self._context, batch)
            if code != 0:
                raise BackendError(f"llama_decode returned {code} while embedding {at} tokens")
            return [self._vector(sequence) for sequence in range(len(texts))]
        finally:
            llama_cpp.llama_batch_free(batch)

    def _vector(self, sequence: int) -> list[float]:
        row = llama_cpp.llama_get_embeddings_seq(self._context, sequence)
        if not row:
            raise BackendError("llama.cpp gives no pooled vector for this model")
        vector = np.ctypeslib.as_array(row, (self._model.embedding_size,)).astype(np.float64)
        if self._parameters.normalize_embeddings:
            vector /= max(float(np.linalg.norm(vector)), 1e-12)
        result: list[float] = vector.tolist()
        return result
