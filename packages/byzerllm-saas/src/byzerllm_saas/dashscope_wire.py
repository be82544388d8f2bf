"""DashScope's own wire, which Qwen's text and vision models share.

The package's own HTTP client speaks it, not the vendor's SDK: that one blocks a thread, cannot be
cancelled, and repeats calls by itself.

Source: https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from byzerllm.errors import (
    AuthenticationError,
    ContentFilteredError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)
from byzerllm.requests import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.errors import ErrorTable, Told, VendorErrors, told
from byzerllm_saas.http import Answer, Stream
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.provider import Provider, Turn
from byzerllm_saas.sampling import given
from byzerllm_saas.sse import Event

DASHSCOPE_SAMPLING = frozenset(
    {
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "presence_penalty",
        "seed",
        "stop",
    }
)
"""The common generation parameters that DashScope has."""

DASHSCOPE_EXTRA = frozenset(
    {
        "enable_thinking",
        "incremental_output",
        "response_format",
        "thinking_budget",
    }
)
"""Generation parameters of both kinds of models that only DashScope knows."""

NO_TASK = "00000000-0000-0000-0000-000000000000"
"""An id that no task has; to ask for it costs nothing and shows whether the key is known."""

_EVENT_OF_ERROR = re.compile(r"\bdata: ?(\{.*\})")


def _told(body: Any) -> Told:
    """The error of a stream that never began comes as an event, under its status."""
    found = told(body)
    event = _EVENT_OF_ERROR.search(found.message) if not found.code else None
    if event is None:
        return found
    try:
        return told(msgspec.json.decode(event[1]))
    except msgspec.DecodeError:
        return found


DASHSCOPE_ERRORS = ErrorTable(
    codes={
        "InvalidApiKey": AuthenticationError,
        "AccessDenied": PermissionDeniedError,
        "AccessDenied.Unpurchased": PermissionDeniedError,
        "Model.AccessDenied": PermissionDeniedError,
        "App.AccessDenied": PermissionDeniedError,
        "Workspace.AccessDenied": PermissionDeniedError,
        "AllocationQuota.FreeTierOnly": QuotaExceededError,
        "Arrearage": QuotaExceededError,
        "ModelNotFound": HostedModelNotFoundError,
        "model_not_found": HostedModelNotFoundError,
        "DataInspectionFailed": ContentFilteredError,
        "data_inspection_failed": ContentFilteredError,
        "Throttling": RateLimitedError,
        "Throttling.RateQuota": RateLimitedError,
        "Throttling.BurstRate": RateLimitedError,
        "LimitRequests": RateLimitedError,
        "limit_requests": RateLimitedError,
        "insufficient_quota": RateLimitedError,
        "ModelServingError": ProviderOverloadedError,
        "ServiceUnavailable": ProviderOverloadedError,
        "ModelUnavailable": ProviderUnavailableError,
        "ModelServiceFailed": ProviderUnavailableError,
        "InternalError": ProviderUnavailableError,
        "InternalError.Algo": ProviderUnavailableError,
        "SystemError": ProviderUnavailableError,
        "InternalError.Timeout": ProviderTimeoutError,
        "RequestTimeOut": ProviderTimeoutError,
        "ResponseTimeout": ProviderTimeoutError,
    },
    phrases=(
        (re.compile(r"free (allocated|tier) quota", re.IGNORECASE), QuotaExceededError),
        (re.compile(r"allocated quota exceeded", re.IGNORECASE), RateLimitedError),
        # What a vision model says at the address of text models, and the other way round.
        (re.compile(r"\burl error\b", re.IGNORECASE), HostedModelNotFoundError),
        (re.compile(r"model (does )?not exist", re.IGNORECASE), HostedModelNotFoundError),
    ),
    read=_told,
)

_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}
_ROLES = {"developer": "system"}
# These think before each answer when nothing is said.
_ONLY_STREAMS = re.compile(r"(qwq|qvq|qwen3-[\d.]+b)", re.IGNORECASE)


class DashScopeParameters(KeyParameters):
    """What a deployment at DashScope can be told."""

    key_variable = "DASHSCOPE_API_KEY"


# What is read of the vendor's JSON.


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Part(Struct):
    text: str | None = None


class _Message(Struct):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    message: _Message | None = None
    finish_reason: str | None = None
    index: int = 0


class _Output(Struct):
    """Older models answer with `text` where a message was asked for."""

    choices: list[_Choice] | None = None
    text: str | None = None
    finish_reason: str | None = None


class DashScopeUsage(Struct):
    """`usage` of any answer."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None

    def plain(self) -> Usage:
        answer = self.output_tokens or 0
        prompt = self.input_tokens
        if prompt is None:
            prompt = (self.total_tokens or 0) - answer
        return Usage(prompt_tokens=prompt, completion_tokens=answer)


class _Completion(Struct):
    """A whole answer, or an event of one. `code` says that it is an error."""

    output: _Output | None = None
    usage: DashScopeUsage | None = None
    code: Any = None


_decode = msgspec.json.Decoder(_Completion).decode


class DashScopeChat(Provider):
    """Chat at DashScope.

    Class attributes:
        address: where chats are sent, after `base_url`.
    """

    errors_table: ClassVar[ErrorTable] = DASHSCOPE_ERRORS
    address: ClassVar[str]

    # What a kind of models says.

    def content(self, message: Mapping[str, Any], index: int) -> Any:
        """The content of a message as the kind of models takes it.

        Raises:
            ParameterError: a part that the models do not take.
        """
        raise NotImplementedError

    async def prepare(self, messages: list[dict[str, Any]], key: str) -> dict[str, str]:
        """Last changes to the messages that need the vendor; the headers that they bring."""
        return {}

    # What every call has.

    def url(self, path: str) -> str:
        return f"{self.parameters.base_url}/{path}"

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def check_error(self, answer: Answer) -> None:
        """Raises the error that an answer under HTTP 200 tells of."""
        if b'"code"' in answer.body:
            found: dict[str, Any] = self.http.decode(answer.body)
            if found.get("code"):
                raise self.errors.of_body(found, headers=answer.headers)

    async def check(self) -> None:
        """Checks the key; DashScope has no free way to ask for a model."""
        headers = self.headers(self.keys.pick())
        await self.check_key(self.url(f"tasks/{NO_TASK}"), headers)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a generation parameter or a part of a message that the model does not
                take.
            CapabilityError: the model is none that answers.
            ProviderError, ContextLengthError: the vendor's refusal or failure.
        """
        streams = request.stream or self._only_streams(request)
        parameters = self._chat_parameters(request, streams)
        messages = self._messages(request)
        body = {"model": self.model, "input": {"messages": messages}, "parameters": parameters}
        async with self.turn("chat", request) as turn:
            more = await self.prepare(messages, turn.key)
            url, headers = self.url(self.address), {**self.headers(turn.key), **more}
            if not streams:
                answer = await self.http.send("POST", url, json=body, headers=headers)
                yield self._whole(answer, turn)
                return
            headers |= {"accept": "text/event-stream", "x-dashscope-sse": "enable"}
            reading = _Reading(self.errors, whole_texts=parameters["incremental_output"] is False)
            async with self.http.stream("POST", url, json=body, headers=headers) as stream:
                if stream.content_type == "application/json":
                    yield self._whole(Answer(200, stream.headers, await stream.read()), turn)
                    return
                async with aclosing(self._chunks(stream, reading)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await stream.drain()
            turn.used(reading.usage)

    # Inside.

    def _messages(self, request: GenerateRequest) -> list[dict[str, Any]]:
        return [
            {
                **message,
                "role": _ROLES.get(message["role"], message["role"]),
                "content": self.content(message, index),
            }
            for index, message in enumerate(request.messages or ())
        ]

    def _only_streams(self, request: GenerateRequest) -> bool:
        """Whether the vendor streams the answer or refuses, as it does where the model thinks."""
        asked = {**request.sampling.extra, **request.extra}
        thinks = asked.get("enable_thinking")
        return bool(_ONLY_STREAMS.match(self.model)) if thinks is None else bool(thinks)

    def _chat_parameters(self, request: GenerateRequest, streams: bool) -> dict[str, Any]:
        parameters: dict[str, Any] = {"result_format": "message"}
        for name, value in given(request.sampling):
            if name not in DASHSCOPE_SAMPLING:
                raise self.unsupported(name, DASHSCOPE_SAMPLING)
            parameters[name] = value
        if request.tools:
            parameters["tools"] = request.tools
            if request.tool_choice is not None:
                parameters["tool_choice"] = self._tool_choice(request)
        parameters |= request.sampling.extra
        parameters |= request.extra
        increments = parameters.pop("incremental_output", True)
        if not isinstance(increments, bool):
            raise ParameterError.invalid(
                "incremental_output", f"true or false is needed (got {increments!r})",
                where=f"saas/{self.spec.name}",
            )  # fmt: skip
        if streams:
            parameters["incremental_output"] = increments
        return parameters

    def _tool_choice(self, request: GenerateRequest) -> str | dict[str, Any]:
        choice = request.tool_choice
        if choice != "required":
            return choice or "auto"
        if len(request.tools) > 1:
            raise ParameterError.invalid(
                "tool_choice",
                "the vendor takes 'auto', 'none' and the name of a function, not 'required'",
                where=f"saas/{self.spec.name}",
            )
        return {"type": "function", "function": {"name": request.tools[0]["function"]["name"]}}

    def _whole(self, answer: Answer, turn: Turn) -> GenerateChunk:
        found: _Completion = self.http.decode(answer.body, _Completion)
        if found.code:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        reading = _Reading(self.errors)
        chunk = reading.chunk([found])
        if not reading.answered:
            raise self.errors.protocol("the answer has no choices", headers=answer.headers)
        turn.used(reading.usage)
        return reading.last(chunk)

    async def _chunks(
        self, stream: Stream, reading: _Reading
    ) -> AsyncGenerator[GenerateChunk, None]:
        async with aclosing(stream.events()) as batches:
            async for events in batches:
                # An event without data is a heartbeat.
                chunk = reading.chunk(
                    [self._parsed(event, stream) for event in events if event.data]
                )
                if reading.finish is not None:
                    yield reading.last(chunk)
                    return
                if chunk is not None:
                    yield chunk
        raise self.errors.unavailable(
            "the stream ended before the answer did", retryable=not reading.begun
        )

    def _parsed(self, event: Event, stream: Stream) -> _Completion:
        try:
            found = _decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = self.http.decode(event.data, _Completion)
        if found.code or event.event == "error":
            status = (event.fields or {}).get("status", "")
            raise self.errors.of_body(
                self.http.decode(event.data),
                status=int(status) if status.isdigit() else None,
                headers=stream.headers,
            )
        return found


class _Reading:
    """Turns what the wire says into chunks, for one answer.

    Args:
        whole_texts: each event repeats what came before it.

    Attributes:
        usage, finish: as soon as they are known.
        answered: there was something to read at all.
        begun: something has been passed on.
    """

    def __init__(self, errors: VendorErrors, *, whole_texts: bool = False) -> None:
        self.usage: Usage | None = None
        self.finish: FinishReason | None = None
        self.answered = False
        self.begun = False
        self._errors = errors
        self._whole_texts = whole_texts
        self._seen: dict[str, str] = {}

    def chunk(self, parts: Sequence[_Completion]) -> GenerateChunk | None:
        """One chunk of the events that arrived together; None where they bring nothing to read."""
        chunk = GenerateChunk()
        for part in parts:
            if part.usage is not None:
                self.usage = part.usage.plain()
            for choice in _choices(part.output):
                self.answered = True
                if choice.finish_reason and choice.finish_reason != "null":
                    self.finish = _FINISH_REASONS.get(choice.finish_reason, "stop")
                self._add(chunk, choice.message or _Message())
        if not (chunk.text or chunk.reasoning or chunk.tool_calls):
            return None
        self.begun = True
        return chunk

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        """The last chunk, with reason and usage."""
        chunk = chunk or GenerateChunk()
        chunk.finish_reason = self.finish or "stop"
        if chunk.finish_reason == "stop" and any(name.startswith("call") for name in self._seen):
            chunk.finish_reason = "tool_calls"
        chunk.usage = self.usage or Usage()
        return chunk

    def _add(self, chunk: GenerateChunk, message: _Message) -> None:
        content = message.content or ""
        if not isinstance(content, str):
            content = "".join(part.text or "" for part in content)
        chunk.reasoning += self._new("reasoning", message.reasoning_content or "")
        chunk.text += self._new("text", content)
        for place, call in enumerate(message.tool_calls or ()):
            index = place if call.index is None else call.index
            function = call.function or _Function()
            known = f"call {index}" in self._seen
            arguments = self._new(f"call {index}", function.arguments or "")
            if arguments or not known:
                self._seen.setdefault(f"call {index}", "")
                chunk.tool_calls.append(
                    ToolCallDelta(
                        index=index,
                        id=call.id or "",
                        name=function.name or "",
                        arguments=arguments,
                    )
                )

    def _new(self, name: str, text: str) -> str:
        """What a text adds to what came before."""
        if not self._whole_texts:
            return text
        # Half of a character is sent as U+FFFD until the rest of it is here.
        text = text if self.finish else text.rstrip("\ufffd")
        before = self._seen.get(name, "")
        if not text:
            return ""
        if not text.startswith(before):
            raise self._errors.protocol("an event takes back what came before it")
        self._seen[name] = text
        return text[len(before) :]


def _choices(output: _Output | None) -> list[_Choice]:
    if output is None:
        return []
    if output.choices:
        return [choice for choice in output.choices if not choice.index]
    if output.text is None:
        return []
    return [_Choice(_Message(output.text), output.finish_reason)]
