"""EchoBackend: a real plugin without a model, for tests and benchmarks.

It answers a chat with the text of its last message and a completion with its prompt, word by word
in a stream. Stop texts end an answer; with `chunks` or `timestamps` they do not.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

from pydantic import Field

from byzerllm.backend import Backend, BackendContext, BackendSpec, Parameters
from byzerllm.errors import BackendError, ContextLengthError, ParameterError
from byzerllm.hookspecs import hookimpl
from byzerllm.messages import text_of
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    RerankRequest,
    RerankResult,
    Usage,
)

_WORD = re.compile(r"\s*\S+\s*$|\s*\S+")
_BARE_WORD = re.compile(r"\w+")


class EchoParameters(Parameters):
    """What an echo deployment can be told."""

    delay: float = Field(0.0, ge=0, description="seconds before each chunk")
    chunks: int = Field(0, ge=0, description="length of every answer in chunks; 0: its words")
    load_delay: float = Field(0.0, ge=0, description="seconds that loading takes")
    fail_load: str = Field("", description="loading fails with this text")
    fail_at: int = Field(-1, description="generation raises before this chunk; -1: never")
    crash_on: str = Field("", description="a question of this text ends the worker's process")
    timestamps: bool = Field(False, description="each chunk is the time that it was made at")
    answer: str = Field("", description="the answer to everything; empty: the question")
    context: int = Field(100_000, ge=1, description="words that a prompt may have")


class EchoBackend(Backend):
    """See the module."""

    def __init__(self, parameters: EchoParameters, model: str) -> None:
        self._parameters = parameters
        self._model = model
        self.generated = 0

    @classmethod
    async def create(cls, context: BackendContext) -> Self:
        parameters: EchoParameters = context.parameters
        if parameters.load_delay:
            context.report("loading")
            await asyncio.sleep(parameters.load_delay)
        if parameters.fail_load:
            raise RuntimeError(parameters.fail_load)
        return cls(parameters, context.model)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        question = self._text(request)
        given = self._parameters
        if given.crash_on and question == given.crash_on:
            os._exit(1)
        words = _WORD.findall(question)
        if len(words) > given.context:
            raise ContextLengthError(
                f"the prompt has {len(words)} words, the context holds {given.context}"
            )
        prompt_tokens = len(words)
        if given.answer:
            question = given.answer
            words = _WORD.findall(question)
        stops, stop = request.sampling.stop, ""
        if stops and not given.chunks and not given.timestamps:
            question, stop = _until(question, stops)
            words = _WORD.findall(question)
        count = given.chunks or len(words)
        limit = min(count, request.sampling.max_tokens or count)
        finish: FinishReason = "length" if limit < count else "stop"
        stop = stop if finish == "stop" else ""
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=limit)
        if not request.stream and not given.delay and given.fail_at < 0:
            self.generated += limit
            whole = question if limit == len(words) else self._piece(words, range(limit))
            yield GenerateChunk(text=whole, finish_reason=finish, stop_text=stop, usage=usage)
            return
        clock = asyncio.get_running_loop().time
        start = clock()
        for index in range(limit):
            if index == given.fail_at:
                raise BackendError(f"told to fail at chunk {index}")
            if given.delay:
                await asyncio.sleep(max(0.0, start + (index + 1) * given.delay - clock()))
            self.generated += 1
            text = self._piece(words, range(index, index + 1))
            yield GenerateChunk(text=f"{time.time():.6f} " if given.timestamps else text)
        yield GenerateChunk(finish_reason=finish, stop_text=stop, usage=usage)

    async def meta(self) -> ModelMeta:
        return ModelMeta(
            model_deploy_type="proprietary",
            backend="echo",
            support_chat_template=True,
            max_model_len=self._parameters.context,
            architectures=["Echo"],
            model_name=self._model,
        )

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        _nothing_else(request.extra)
        vectors = [[float(len(text)), float(text.count(" "))] for text in request.texts]
        return EmbedResult(vectors=vectors, usage=Usage(prompt_tokens=len(request.texts)))

    async def rerank(self, request: RerankRequest) -> RerankResult:
        """The share of the query's words that the document has."""
        _nothing_else(request.extra)
        pairs = request.all_pairs()
        words = sum(len(text.split()) for pair in pairs for text in pair)
        return RerankResult(
            scores=[_share(query, document) for query, document in pairs],
            usage=Usage(prompt_tokens=words),
        )

    async def tokenize(self, text: str) -> list[int]:
        return list(text.encode())

    async def apply_chat_template(self, messages: list[dict[str, Any]]) -> str:
        return "".join(f"{m['role']}: {text_of(m['content'])}\n" for m in messages)

    @staticmethod
    def _piece(words: list[str], indexes: range) -> str:
        return "".join(words[index % len(words)] for index in indexes)

    @staticmethod
    def _text(request: GenerateRequest) -> str:
        text = request.prompt
        if text is None:
            if not request.messages:
                raise ParameterError("the conversation is empty; send at least one message")
            text = text_of(request.messages[-1].get("content"))
        return text or "(empty)"


def _nothing_else(extra: dict[str, Any]) -> None:
    if extra:
        raise ParameterError.unknown(min(extra), (), where="the echo backend")


def _share(query: str, document: str) -> float:
    asked = {word.lower() for word in _BARE_WORD.findall(query)}
    found = {word.lower() for word in _BARE_WORD.findall(document)}
    return len(asked & found) / len(asked) if asked else 0.0


def _until(text: str, stops: list[str]) -> tuple[str, str]:
    """What stands before the first of the stop texts, and which that is."""
    ends = [(end, stop) for stop in stops if (end := text.find(stop)) >= 0]
    end, stop = min(ends, default=(len(text), ""))
    return text[:end], stop


@hookimpl
def register_backends(register: Callable[[BackendSpec], None]) -> None:
    register(
        BackendSpec(
            name="echo",
            path="byzerllm.testing.echo:EchoBackend",
            parameters=EchoParameters,
            description="answers with what was said; for tests and benchmarks",
            capabilities=frozenset(
                {"chat", "completion", "embedding", "rerank", "tokenize", "chat_template"}
            ),
            extra_parameters=frozenset({"echo_tag"}),
            default_concurrency=1000,
        )
    )
