"""Anthropic's messages, as its own API and Amazon Bedrock take and send them.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

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
from byzerllm.messages import text_of
from byzerllm.requests import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.content import arguments_of, data_of, parts_of, state_of, with_state
from byzerllm_saas.errors import ErrorTable

ANTHROPIC_ERRORS = ErrorTable(
    codes={
        "authentication_error": AuthenticationError,
        "billing_error": QuotaExceededError,
        "permission_error": PermissionDeniedError,
        "not_found_error": HostedModelNotFoundError,
        "rate_limit_error": RateLimitedError,
        "timeout_error": ProviderTimeoutError,
        "api_error": ProviderUnavailableError,
        "overloaded_error": ProviderOverloadedError,
    },
    phrases=(
        (re.compile(r"credit balance is too low"), QuotaExceededError),
        (re.compile(r"blocked by content filtering"), ContentFilteredError),
    ),
)
ANTHROPIC_SAMPLING: Mapping[str, str] = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop": "stop_sequences",
}
"""The common generation parameters that every model takes, and its names of them."""

_FINISH_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}
# Keywords of JSON schema that constrained decoding does not know; a model reads them as text.
_UNKNOWN_TO_SCHEMAS = frozenset(
    {
        "exclusiveMaximum",
        "exclusiveMinimum",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "pattern",
        "uniqueItems",
    }
)


# What is read of the vendor's JSON; everything else is skipped while it is decoded.


class _Block(Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw()


class _Delta(Struct):
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    signature: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class Message(Struct):
    """A whole answer, or its head in a stream."""

    content: list[_Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None


class StreamEvent(Struct):
    """An event of a stream; types that are not known are skipped, as the vendor asks."""

    type: str
    index: int = 0
    message: Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


def messages_body(
    request: GenerateRequest, *, where: str, max_tokens: int, takes_urls: bool
) -> dict[str, Any]:
    """What of a chat both ways to Anthropic's models have in common; generation parameters apart.

    Args:
        where: names the provider in errors.
        max_tokens: the limit where the request has none; the wire demands one.
        takes_urls: images may be addresses.

    Raises:
        ParameterError: a message that the wire cannot say.
    """
    system, messages = _messages(request.messages or [], where, takes_urls)
    body: dict[str, Any] = {"messages": messages, "max_tokens": max_tokens}
    if system:
        body["system"] = system
    tools, choice = request.tools, request.tool_choice
    if tools:
        body["tools"] = [_tool(tool["function"]) for tool in tools]
        if choice is not None:
            body["tool_choice"] = _choice(choice)
    elif called := _called(messages):
        # Calls in the conversation are refused where no tool is declared.
        body["tools"] = [_tool({"name": name}) for name in called]
        body["tool_choice"] = {"type": "none"}
    return body


def closed_schema(schema: Any) -> Any:
    """A JSON schema as constrained decoding takes it: objects with properties are closed, and
    limits that it does not know stand in the descriptions."""
    if isinstance(schema, list):
        return [closed_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    notes = [
        f"{key}: {value}"
        for key, value in schema.items()
        if key in _UNKNOWN_TO_SCHEMAS and not isinstance(value, dict)
    ]
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            result[key] = {name: closed_schema(inner) for name, inner in value.items()}
        elif key in ("enum", "const", "default", "required", "examples"):
            result[key] = value
        elif key not in _UNKNOWN_TO_SCHEMAS or isinstance(value, dict):
            result[key] = closed_schema(value)
    if isinstance(result.get("properties"), dict):
        result.setdefault("additionalProperties", False)
    if notes:
        said = [result["description"]] if result.get("description") else []
        result["description"] = "; ".join([*said, *notes])
    return result


class AnthropicReading:
    """Turns what the wire says into chunks, for one answer.

    Attributes:
        usage, finish: as soon as they are known.
        begun: something has been passed on.
        done: the vendor has said its last word.
    """

    def __init__(self) -> None:
        self.finish: FinishReason | None = None
        self.begun = False
        self.done = False
        self._usage = _Usage()
        self._stop_text = ""
        # Per block of the answer that is a tool call: its number, and whether arguments came.
        self._calls: dict[int, int] = {}
        self._argued: set[int] = set()
        self._thoughts: list[dict[str, str]] = []

    @property
    def usage(self) -> Usage:
        found = self._usage
        cached = (found.cache_creation_input_tokens or 0) + (found.cache_read_input_tokens or 0)
        return Usage(
            prompt_tokens=(found.input_tokens or 0) + cached,
            completion_tokens=found.output_tokens or 0,
        )

    def whole(self, message: Message) -> GenerateChunk:
        """The one chunk of an answer that came as a whole."""
        chunk = GenerateChunk()
        for index, block in enumerate(message.content):
            self._start(chunk, index, block)
            self._stop(chunk, index)
        self._count(message.usage)
        self._end(message.stop_reason or "end_turn", message.stop_sequence)
        return self.last(chunk)

    def chunk(self, events: Iterable[StreamEvent]) -> GenerateChunk | None:
        """One chunk of the events that arrived together; None where they bring nothing to read."""
        chunk = GenerateChunk()
        for event in events:
            self._read(chunk, event)
        if not (chunk.text or chunk.reasoning or chunk.tool_calls):
            return None
        self.begun = True
        return chunk

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        """The last chunk, with reason and usage."""
        chunk = chunk or GenerateChunk()
        chunk.finish_reason = self.finish or "stop"
        chunk.stop_text = self._stop_text
        chunk.usage = self.usage
        return chunk

    def _read(self, chunk: GenerateChunk, event: StreamEvent) -> None:
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            self._add(chunk, event.index, event.delta)
        elif kind == "content_block_start" and event.content_block is not None:
            self._start(chunk, event.index, event.content_block)
        elif kind == "content_block_stop":
            self._stop(chunk, event.index)
        elif kind == "message_start" and event.message is not None:
            self._count(event.message.usage)
        elif kind == "message_delta":
            self._count(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                self._end(event.delta.stop_reason, event.delta.stop_sequence)
        elif kind == "message_stop":
            self.done = True

    def _start(self, chunk: GenerateChunk, index: int, block: _Block) -> None:
        if block.type == "text":
            chunk.text += block.text
        elif block.type == "thinking":
            thought = {"thinking": block.thinking, "signature": block.signature}
            self._thoughts.append({"type": "thinking", **thought})
            chunk.reasoning += block.thinking
        elif block.type == "redacted_thinking":
            self._thoughts.append({"type": "redacted_thinking", "data": block.data})
        elif block.type == "tool_use":
            number = self._calls[index] = len(self._calls)
            # The first call alone carries what was thought before all of them.
            id_ = with_state(block.id, None if number else self._thoughts)
            call = ToolCallDelta(index=number, id=id_, name=block.name)
            arguments = bytes(block.input)
            if arguments not in (b"", b"{}"):
                call.arguments = arguments.decode()
                self._argued.add(index)
            chunk.tool_calls.append(call)

    def _add(self, chunk: GenerateChunk, index: int, delta: _Delta) -> None:
        if delta.text:
            chunk.text += delta.text
        elif delta.thinking:
            chunk.reasoning += delta.thinking
            if self._thoughts:
                self._thoughts[-1]["thinking"] += delta.thinking
        elif delta.signature and self._thoughts:
            self._thoughts[-1]["signature"] += delta.signature
        elif delta.partial_json and index in self._calls:
            self._argued.add(index)
            call = ToolCallDelta(index=self._calls[index], arguments=delta.partial_json)
            chunk.tool_calls.append(call)

    def _stop(self, chunk: GenerateChunk, index: int) -> None:
        if index in self._calls and index not in self._argued:
            chunk.tool_calls.append(ToolCallDelta(index=self._calls[index], arguments="{}"))

    def _count(self, usage: _Usage | None) -> None:
        if usage is None:
            return
        for name in _Usage.__struct_fields__:
            value = getattr(usage, name)
            if value is not None:
                setattr(self._usage, name, value)

    def _end(self, reason: str, stop: str | None) -> None:
        self._stop_text = stop or ""
        self.finish = _FINISH_REASONS.get(reason, "stop")


def _messages(
    given: Sequence[Mapping[str, Any]], where: str, takes_urls: bool
) -> tuple[str, list[dict[str, Any]]]:
    """The system text, and messages whose roles take turns."""
    system: list[str] = []
    messages: list[dict[str, Any]] = []
    for message in given:
        role = message["role"]
        if role in ("system", "developer"):
            system.append(text_of(message["content"]))
            continue
        if role == "assistant":
            blocks = list(_said(message, where))
        elif role == "tool":
            blocks = [_result(message, where, takes_urls)]
        elif role == "user":
            blocks = [_block(part, where, takes_urls) for part in parts_of(message["content"])]
        else:
            raise ParameterError(f"{where}: there is no role {role!r}", parameter="conversations")
        turn = "assistant" if role == "assistant" else "user"
        if messages and messages[-1]["role"] == turn:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": turn, "content": blocks})
    if not messages:
        raise ParameterError(
            f"{where}: the conversation holds nothing beside system messages; add a user message",
            parameter="conversations",
        )
    return "\n\n".join(filter(None, system)), messages


def _block(part: Mapping[str, Any], where: str, takes_urls: bool) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind != "image_url":
        raise ParameterError(
            f"{where}: parts of type {kind!r} are not taken; text and images are",
            parameter="conversations",
        )
    url = part["image_url"]["url"]
    data = data_of(url, where=where)
    if data is not None:
        source = {"type": "base64", "media_type": data.media_type, "data": data.base64}
    elif takes_urls:
        source = {"type": "url", "url": url}
    else:
        raise ParameterError(
            f"{where}: images are taken as data URLs only, not as addresses", parameter="image_url"
        )
    return {"type": "image", "source": source}


def _said(message: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """The blocks of an assistant's message: what it thought, said and called, in this order."""
    calls = [(call, *state_of(call["id"])) for call in message.get("tool_calls") or ()]
    for _, _, thoughts in calls:
        yield from thoughts or ()
    for part in parts_of(message.get("content")):
        yield {"type": "text", "text": part.get("text") or part.get("refusal") or ""}
    for call, id_, _ in calls:
        name, arguments = call["function"]["name"], arguments_of(call, where=where)
        yield {"type": "tool_use", "id": id_, "name": name, "input": arguments}


def _result(message: Mapping[str, Any], where: str, takes_urls: bool) -> dict[str, Any]:
    id_, _ = state_of(message.get("tool_call_id") or "")
    blocks = [_block(part, where, takes_urls) for part in parts_of(message["content"])]
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": id_}
    return {**result, "content": blocks} if blocks else result


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    tool = {"name": function["name"]}
    if function.get("description"):
        tool["description"] = function["description"]
    return {**tool, "input_schema": function.get("parameters") or {"type": "object"}}


def _choice(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        return {"type": _CHOICES[choice]}
    return {"type": "tool", "name": choice["function"]["name"]}


def _called(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    found = (b["name"] for m in messages for b in m["content"] if b["type"] == "tool_use")
    return list(dict.fromkeys(found))
