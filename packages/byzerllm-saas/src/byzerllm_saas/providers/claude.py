"""Anthropic's Claude, over the package's own HTTP client: the vendor's SDK costs many times the
CPU, and the version of the API that it asks for takes no `temperature`.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

import msgspec
from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.errors import ProviderError
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateChunk, GenerateRequest, ModelMeta
from byzerllm_saas.anthropic_wire import (
    ANTHROPIC_ERRORS,
    ANTHROPIC_SAMPLING,
    AnthropicReading,
    Message,
    StreamEvent,
    closed_schema,
    messages_body,
)
from byzerllm_saas.http import Stream
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.provider import Provider, Turn
from byzerllm_saas.sampling import given
from byzerllm_saas.sse import Event

# Later versions refuse `temperature`, `top_p` and `top_k`.
API_VERSION = "2023-06-01"
# Models before Claude 4.5 have no constrained decoding.
_WITHOUT_SCHEMAS = re.compile(r"claude-(instant|2|3)|-4(-[01])?(-20\d{6})?$")
_decode = msgspec.json.Decoder(StreamEvent).decode


class ClaudeParameters(KeyParameters):
    """What a deployment at Anthropic can be told."""

    key_variable = "ANTHROPIC_API_KEY"

    model: str = Field("claude-3-haiku-20240307", description="the vendor's name of the model")
    base_url: str = Field("https://api.anthropic.com", description="address of the API's host")
    max_tokens: int = Field(
        4096, ge=1, description="limit of new tokens where a request has none; the API demands one"
    )


SPEC = BackendSpec(
    name="claude",
    path="byzerllm_saas.providers.claude:Claude",
    parameters=ClaudeParameters,
    description="Anthropic's Claude models",
    model_types=("saas/claude",),
    capabilities=frozenset({"chat", "constrained", "tools", "vision"}),
    extra_parameters=frozenset(
        {"cache_control", "container", "metadata", "output_config", "service_tier", "thinking"}
    ),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[claude]'",
)


class Claude(Provider):
    """A model at Anthropic."""

    spec = SPEC
    errors_table = ANTHROPIC_ERRORS
    parameters: ClaudeParameters

    def headers(self, key: str) -> dict[str, str]:
        """What shows the key."""
        return {"x-api-key": key, "anthropic-version": API_VERSION}

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        """The JSON of a chat.

        Raises:
            ParameterError: a message or a generation parameter that Anthropic does not take.
        """
        where = "saas/claude"
        limit = self.parameters.max_tokens
        body = messages_body(request, where=where, max_tokens=limit, takes_urls=True)
        body["model"] = self.model
        if request.stream:
            body["stream"] = True
        names = set(ANTHROPIC_SAMPLING) | ({"json_schema"} if self._has_schemas else set())
        output: dict[str, Any] = {}
        for name, value in given(request.sampling):
            if name not in names:
                raise self.unsupported(name, names)
            if name == "json_schema":
                output["format"] = {"type": "json_schema", "schema": closed_schema(value)}
            else:
                body[ANTHROPIC_SAMPLING[name]] = value
        body.update(request.sampling.extra)
        body.update(request.extra)
        if output:
            body["output_config"] = {**output, **body.get("output_config", {})}
        return body

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a message or a generation parameter that Anthropic does not take.
            ProviderError, ContextLengthError: the vendor's refusal or failure.
        """
        body = self.chat_body(request)
        url = f"{self.parameters.base_url}/v1/messages"
        async with self.turn("chat", request) as turn:
            headers = self.headers(turn.key)
            if not request.stream:
                answer = await self.http.send("POST", url, json=body, headers=headers)
                reading = AnthropicReading()
                chunk = reading.whole(self.http.decode(answer.body, Message))
                turn.used(reading.usage)
                yield chunk
                return
            async with self.http.stream("POST", url, json=body, headers=headers) as stream:
                async with aclosing(self._chunks(stream, turn)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await stream.drain()

    async def check(self) -> None:
        """Asks for the model by its name."""
        url = f"{self.parameters.base_url}/v1/models/{quote(self.model, safe='')}"
        await self.http.send("GET", url, headers=self.headers(self.keys.pick()))

    async def meta(self) -> ModelMeta:
        meta = await super().meta()
        meta.constrained = self._has_schemas
        return meta

    @property
    def _has_schemas(self) -> bool:
        return _WITHOUT_SCHEMAS.search(self.model) is None

    async def _chunks(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        reading = AnthropicReading()
        chunk: GenerateChunk | None = None
        try:
            async with aclosing(stream.events()) as batches:
                async for events in batches:
                    chunk = reading.chunk(self._parsed(events, stream))
                    if reading.done:
                        break
                    if chunk is not None:
                        yield chunk
                        chunk = None
        except ProviderError:
            # Reason and usage come in one event: nothing of the answer is lost.
            if reading.finish is None:
                raise
        if reading.finish is None:
            raise self.errors.unavailable(
                "the stream ended before the answer did", retryable=not reading.begun
            )
        turn.used(reading.usage)
        yield reading.last(chunk)

    def _parsed(self, events: Sequence[Event], stream: Stream) -> list[StreamEvent]:
        found: list[StreamEvent] = []
        for event in events:
            if event.event == "error":
                raise self.errors.of_body(self.http.decode(event.data), headers=stream.headers)
            if event.event == "ping" or not event.data:
                continue
            try:
                found.append(_decode(event.data))
            except (msgspec.DecodeError, UnicodeDecodeError):
                found.append(self.http.decode(event.data, StreamEvent))
        return found


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
