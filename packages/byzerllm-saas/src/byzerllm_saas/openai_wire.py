"""The wire of OpenAI's API, as many vendors speak it: chat, completions and the list of models.

The client is lean on purpose: bodies are msgspec structs with the fields that are read, events are
taken from the network as they lie there, and those that arrived together become one chunk. The
typed client of the vendor's SDK costs nine times the CPU.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from byzerllm.backend import Capability
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    PermissionDeniedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
    did_you_mean,
)
from byzerllm.requests import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.http import Answer, Stream
from byzerllm_saas.provider import Provider, Turn
from byzerllm_saas.sampling import given
from byzerllm_saas.sse import Event

OPENAI_ERRORS = ErrorTable(
    codes={
        "context_length_exceeded": ContextLengthError,
        "string_above_max_length": ContextLengthError,
        "insufficient_quota": QuotaExceededError,
        "billing_hard_limit_reached": QuotaExceededError,
        "rate_limit_exceeded": RateLimitedError,
        "invalid_api_key": AuthenticationError,
        "account_deactivated": PermissionDeniedError,
        "unsupported_country_region_territory": PermissionDeniedError,
        "model_not_found": HostedModelNotFoundError,
        "content_filter": ContentFilteredError,
        "content_policy_violation": ContentFilteredError,
        "server_error": ProviderUnavailableError,
        "overloaded_error": ProviderOverloadedError,
    },
    phrases=((re.compile(r"rejected as a result of our safety system"), ContentFilteredError),),
)

OPENAI_CAPABILITIES: frozenset[Capability] = frozenset(
    {
        "chat",
        "completion",
        "constrained",
        "embedding",
        "image",
        "logprobs",
        "speech",
        "tools",
        "transcription",
        "vision",
    }
)
"""What the wire has; a vendor that speaks less of it says so."""

OPENAI_SAMPLING = frozenset(
    {
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "logprobs",
        "logit_bias",
        "json_schema",
    }
)
"""The common generation parameters that OpenAI has."""

OPENAI_EXTRA = frozenset(
    {
        "max_completion_tokens",
        "metadata",
        "modalities",
        "n",
        "parallel_tool_calls",
        "prediction",
        "reasoning_effort",
        "response_format",
        "service_tier",
        "store",
        "stream_options",
        "top_logprobs",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Generation parameters that only this wire knows."""

_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "sensitive": "content_filter",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "insufficient_system_resource": "length",
}
_COUNTS_THOUGHTS = re.compile(r"(^|/)(o\d|gpt-5)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a vendor's wire differs from OpenAI's.

    Attributes:
        sampling: the common generation parameters that it takes; others are refused.
        spelled: its names of those that it calls otherwise.
        include_usage: it takes `stream_options`, without which OpenAI counts no streams.
        finish_reasons: its own reasons, beside OpenAI's.
        failures: reasons that say that it failed in mid-answer.
        schema: how it takes a JSON schema: `json_schema` as OpenAI, or `json_object` and the
            schema in the system message.
        roles: its names of roles that it calls otherwise.
        embedding_batch: texts that one call for vectors may have.
        base64_vectors: it sends vectors as base64 of 32-bit floats when asked, a fifth of the
            bytes and of the time to read.
        voice: what speaks when no voice is named.
    """

    sampling: frozenset[str] = OPENAI_SAMPLING
    spelled: Mapping[str, str] = field(default_factory=dict)
    include_usage: bool = True
    finish_reasons: Mapping[str, FinishReason] = field(default_factory=dict)
    failures: frozenset[str] = frozenset()
    schema: str = "json_schema"
    roles: Mapping[str, str] = field(default_factory=dict)
    embedding_batch: int = 2048
    base64_vectors: bool = False
    voice: str = "alloy"


# What is read of the vendor's JSON; everything else is skipped while it is decoded.


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    """`delta` of a chunk, `message` of a whole answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _TopLogprob(Struct):
    token: str
    logprob: float


class _Logprob(Struct):
    token: str
    logprob: float
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(Struct):
    content: list[_Logprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class WireUsage(Struct):
    """`usage` of any answer."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def plain(self) -> Usage:
        prompt = self.prompt_tokens or self.input_tokens or 0
        answer = self.completion_tokens or self.output_tokens or 0
        return Usage(prompt_tokens=prompt, completion_tokens=answer)


class _Completion(Struct):
    """A whole answer, or a chunk of one. `error` comes under HTTP 200, too."""

    choices: list[_Choice] = []
    usage: WireUsage | None = None
    error: Any = None


class _Model(Struct):
    id: str = ""


class _Models(Struct):
    data: list[_Model] = []


_decode = msgspec.json.Decoder(_Completion).decode


class OpenAIChat(Provider):
    """Chat and completions of a vendor that speaks OpenAI's wire.

    Attributes:
        dialect: how the vendor's wire differs.
    """

    errors_table: ClassVar[ErrorTable] = OPENAI_ERRORS
    dialect: Dialect = Dialect()

    # What a vendor may replace.

    def url(self, path: str) -> str:
        """The address of a call: `chat/completions`, `models`, …"""
        return f"{self.parameters.base_url}/{path}"

    def headers(self, key: str) -> dict[str, str]:
        """What shows the key."""
        return {"authorization": f"Bearer {key}"}

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        """The JSON of a chat or a completion."""
        body: dict[str, Any] = {"model": self.model}
        if request.prompt is None:
            body["messages"] = self._messages(request)
        else:
            body["prompt"] = request.prompt
        if request.stream:
            body["stream"] = True
            if self.dialect.include_usage:
                body["stream_options"] = {"include_usage": True}
        self._add_sampling(body, request)
        if request.tools:
            body["tools"] = request.tools
            if request.tool_choice is not None:
                body["tool_choice"] = request.tool_choice
        body.update(request.sampling.extra)
        body.update(request.extra)
        return body

    async def check(self) -> None:
        """Asks for the model by its name, and where that is unknown for the list of models."""
        headers = self.headers(self.keys.pick())
        try:
            await self.http.send("GET", self.url(f"models/{self.model}"), headers=headers)
        except (HostedModelNotFoundError, BadRequestError):
            await self._check_in_list(headers)

    # What every call of the wire has.

    def check_error(self, answer: Answer) -> None:
        """Raises the error that an answer under HTTP 200 tells of."""
        if answer.body[:1] == b"{" and b'"error"' in answer.body[:200]:
            found: dict[str, Any] = self.http.decode(answer.body)
            if found.get("error"):
                raise self.errors.of_body(found, headers=answer.headers)

    async def check_stream_error(self, stream: Stream) -> None:
        """As `check_error`, for JSON where bytes of another kind were to come."""
        if stream.content_type == "application/json":
            answer = Answer(200, stream.headers, await stream.read())
            self.check_error(answer)
            raise self.errors.protocol("JSON came instead of a stream", headers=stream.headers)

    # Backend's methods.

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat, or continue a prompt.

        Raises:
            ParameterError: a generation parameter that the vendor does not take.
            CapabilityError: the model is none that answers.
            ProviderError, ContextLengthError: the vendor's refusal or failure.
        """
        body = self.chat_body(request)
        path = "chat/completions" if request.prompt is None else "completions"
        async with self.turn("chat", request) as turn:
            if not request.stream:
                answer = await self.http.send(
                    "POST", self.url(path), json=body, headers=self.headers(turn.key)
                )
                yield self._whole(answer, turn)
                return
            async with self.http.stream(
                "POST", self.url(path), json=body, headers=self.headers(turn.key)
            ) as stream:
                if stream.content_type == "application/json":
                    # Of a vendor that cannot stream this, or hides an error under HTTP 200.
                    yield self._whole(Answer(200, stream.headers, await stream.read()), turn)
                    return
                async with aclosing(self._chunks(stream, turn)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await stream.drain()

    # Inside.

    def _messages(self, request: GenerateRequest) -> list[dict[str, Any]]:
        messages = request.messages or []
        roles = self.dialect.roles
        if roles:
            messages = [{**m, "role": roles.get(m["role"], m["role"])} for m in messages]
        schema = request.sampling.json_schema
        if schema is not None and self.dialect.schema == "json_object":
            asked = f"Answer with JSON of this schema:\n{msgspec.json.encode(schema).decode()}"
            messages = [{"role": "system", "content": asked}, *messages]
        return messages

    def _add_sampling(self, body: dict[str, Any], request: GenerateRequest) -> None:
        dialect = self.dialect
        for name, value in given(request.sampling):
            if name not in dialect.sampling:
                raise self.unsupported(name, dialect.sampling)
            if name == "json_schema":
                body["response_format"] = self._response_format(value)
            elif name == "logprobs":
                if request.prompt is None:
                    body["logprobs"] = True
                    if value:
                        body["top_logprobs"] = value
                else:
                    body["logprobs"] = value
            elif name == "max_tokens":
                body[self._max_tokens_name(request)] = value
            else:
                body[dialect.spelled.get(name, name)] = value

    def _max_tokens_name(self, request: GenerateRequest) -> str:
        if request.prompt is None and _COUNTS_THOUGHTS.search(self.model):
            return "max_completion_tokens"
        return self.dialect.spelled.get("max_tokens", "max_tokens")

    def _response_format(self, schema: dict[str, Any]) -> dict[str, Any]:
        if self.dialect.schema == "json_object":
            return {"type": "json_object"}
        named = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
        return {"type": "json_schema", "json_schema": named}

    def _whole(self, answer: Answer, turn: Turn) -> GenerateChunk:
        found: _Completion = self.http.decode(answer.body, _Completion)
        if found.error:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        if not found.choices:
            raise self.errors.protocol("the answer has no choices", headers=answer.headers)
        self._check_finish(found)
        reading = Reading(self.dialect.finish_reasons)
        chunk = reading.chunk([found])
        turn.used(reading.usage)
        return reading.last(chunk)

    async def _chunks(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        reading = Reading(self.dialect.finish_reasons)
        chunk: GenerateChunk | None = None
        done = False
        try:
            async with aclosing(stream.events()) as batches:
                async for events in batches:
                    found, done = self._parsed(events, stream)
                    chunk = reading.chunk(found)
                    if done:
                        break
                    if chunk is not None:
                        yield chunk
                        chunk = None
        except ProviderError as error:
            # Of a whole answer nothing is lost but, at worst, its usage.
            if reading.finish is None:
                if isinstance(error, ProviderUnavailableError) and not reading.begun:
                    error.details["retryable"] = True
                raise
        if reading.finish is None and not done:
            raise self.errors.unavailable(
                "the stream ended before the answer did", retryable=not reading.begun
            )
        turn.used(reading.usage)
        yield reading.last(chunk)

    def _parsed(self, events: Sequence[Event], stream: Stream) -> tuple[list[_Completion], bool]:
        """The chunks of some events, and whether the last of the answer is among them."""
        found: list[_Completion] = []
        for event in events:
            data = event.data
            if data == b"[DONE]":
                return found, True
            if not data:
                continue
            try:
                chunk = _decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                chunk = self.http.decode(data, _Completion)
            if chunk.error or event.event == "error":
                raise self.errors.of_body(self.http.decode(data), headers=stream.headers)
            self._check_finish(chunk)
            found.append(chunk)
        return found, False

    def _check_finish(self, found: _Completion) -> None:
        for choice in found.choices:
            if choice.finish_reason in self.dialect.failures:
                raise self.errors.unavailable(
                    f"the vendor ended the answer with {choice.finish_reason!r}", retryable=True
                )

    async def _check_in_list(self, headers: Mapping[str, str]) -> None:
        try:
            answer = await self.http.send("GET", self.url("models"), headers=headers)
        except (HostedModelNotFoundError, BadRequestError):
            self.context.report("not checked: the vendor lists no models")
            return
        listed: _Models = self.http.decode(answer.body, _Models)
        names = [model.id for model in listed.data]
        if names and self.model not in names:
            raise self.errors.make(
                HostedModelNotFoundError,
                f"the vendor lists no such model{did_you_mean(self.model, names)}",
                status=answer.status,
                request_id=answer.request_id,
            )


class Reading:
    """Turns what the wire says into chunks, for one answer.

    Attributes:
        usage, finish: as soon as they are known.
        begun: something has been passed on.
    """

    def __init__(self, finish_reasons: Mapping[str, FinishReason]) -> None:
        self.usage: Usage | None = None
        self.finish: FinishReason | None = None
        self.begun = False
        self._reasons = finish_reasons
        self._calls = 0

    def chunk(self, parts: Sequence[_Completion]) -> GenerateChunk | None:
        """One chunk of the parts that arrived together; None where they bring nothing to read."""
        texts: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCallDelta] = []
        logprobs: list[TokenLogprob] = []
        for part in parts:
            if part.usage is not None:
                self.usage = part.usage.plain()
            for choice in part.choices:
                if choice.index:
                    continue
                message = choice.delta or choice.message
                if message is not None:
                    if message.content:
                        texts.append(message.content)
                    elif message.refusal:
                        texts.append(message.refusal)
                    if message.reasoning_content or message.reasoning:
                        reasoning.append(message.reasoning_content or message.reasoning or "")
                    if message.tool_calls:
                        calls += map(self._call, message.tool_calls)
                elif choice.text:
                    texts.append(choice.text)
                if choice.logprobs is not None:
                    logprobs += _logprobs(choice.logprobs)
                if choice.finish_reason:
                    self.finish = self._reason(choice.finish_reason)
        if not (texts or reasoning or calls or logprobs):
            return None
        self.begun = True
        return GenerateChunk(
            text="".join(texts),
            reasoning="".join(reasoning),
            tool_calls=calls,
            logprobs=logprobs,
        )

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        """The last chunk, with reason and usage."""
        chunk = chunk or GenerateChunk()
        reason = self.finish or "stop"
        chunk.finish_reason = "tool_calls" if self._calls and reason == "stop" else reason
        chunk.usage = self.usage or Usage()
        return chunk

    def _call(self, call: _ToolCall) -> ToolCallDelta:
        index = call.index
        if index is None:
            # Without an index a new id begins the next call.
            index = self._calls if call.id or not self._calls else self._calls - 1
        self._calls = max(self._calls, index + 1)
        function = call.function or _Function()
        arguments = function.arguments or ""
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        return ToolCallDelta(
            index=index, id=call.id or "", name=function.name or "", arguments=arguments
        )

    def _reason(self, reason: str) -> FinishReason:
        return self._reasons.get(reason) or _FINISH_REASONS.get(reason, "stop")


def _logprobs(found: _Logprobs) -> list[TokenLogprob]:
    """Of a chat, or of a completion in its older shape. The vendor tells no token ids: -1."""
    if found.content is not None:
        return [
            TokenLogprob(
                token=one.token,
                id=-1,
                logprob=one.logprob,
                top=[(top.token, -1, top.logprob) for top in one.top_logprobs],
            )
            for one in found.content
        ]
    tops = found.top_logprobs or [None] * len(found.tokens or ())
    return [
        TokenLogprob(
            token=token,
            id=-1,
            logprob=logprob or 0.0,
            top=[(text, -1, value) for text, value in (top or {}).items()],
        )
        for token, logprob, top in zip(
            found.tokens or (), found.token_logprobs or (), tops, strict=False
        )
    ]


def _is_strict(schema: Any) -> bool:
    """Whether a schema keeps to what OpenAI's strict mode takes: closed objects, all required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        if schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("required", ())) != set(properties):
            return False
    elif schema.get("type") == "object":
        return False
    return all(map(_is_strict, schema.values()))
