"""Anthropic: messages and models.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from byzerllm_saas.media import image_format
from vendors.server import Answer, Vendor, made_up, split_words

REQUEST_ID = "req_011CSHoEeqs5C35K2UUqR7Fy"
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that Anthropic does not know is refused."""


class CacheControl(Strict):
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class Text(Strict, tag="text"):
    text: Annotated[str, Meta(min_length=1)]
    cache_control: CacheControl | None = None


class Base64Source(Strict, tag="base64"):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class URLSource(Strict, tag="url"):
    url: Annotated[str, Meta(pattern=r"^https?://")]


class Image(Strict, tag="image"):
    source: Base64Source | URLSource


class ToolUse(Strict, tag="tool_use"):
    id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$")]
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,200}$")]
    input: dict[str, Any]


class ToolResult(Strict, tag="tool_result"):
    tool_use_id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]+$")]
    content: str | list[Text | Image] = ""
    is_error: bool = False


class Thinking(Strict, tag="thinking"):
    thinking: str
    signature: str


class RedactedThinking(Strict, tag="redacted_thinking"):
    data: str


Block = Text | Image | ToolUse | ToolResult | Thinking | RedactedThinking


class MessageParam(Strict):
    role: Literal["user", "assistant"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        return [Text(text=self.content)] if isinstance(self.content, str) else self.content


class InputSchema(Struct):
    type: Literal["object"]


class Tool(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    input_schema: InputSchema
    description: str = ""
    type: Literal["custom"] | None = None


class Auto(Strict, tag="auto"):
    disable_parallel_tool_use: bool = False


class AnyTool(Strict, tag="any"):
    disable_parallel_tool_use: bool = False


class NoTool(Strict, tag="none"):
    pass


class OneTool(Strict, tag="tool"):
    name: str
    disable_parallel_tool_use: bool = False


class Enabled(Strict, tag="enabled"):
    budget_tokens: Annotated[int, Meta(ge=1024)]


class Disabled(Strict, tag="disabled"):
    pass


class Format(Strict):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Strict):
    format: Format | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Strict):
    user_id: str


class Body(Strict):
    """What both ways to Anthropic's models have in common."""

    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)]
    system: str | list[Text] = ""
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop_sequences: list[Annotated[str, Meta(pattern=r"\S")]] = []
    tools: list[Tool] = []
    tool_choice: Auto | AnyTool | NoTool | OneTool | None = None
    thinking: Enabled | Disabled | None = None


class MessagesBody(Body, kw_only=True):
    """`POST /v1/messages`."""

    model: str
    stream: bool = False
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


def check_messages(vendor: Vendor, body: Body) -> None:
    """What Anthropic refuses beyond the types; shared with Amazon Bedrock."""
    expect = vendor.expect
    expect(body.messages[0].role == "user", 'messages: first message must use the "user" role')
    expect(body.tools or body.tool_choice is None, "tool_choice: tools are required")
    pending: set[str] = set()
    for number, message in enumerate(body.messages):
        expect(message.blocks, f"messages.{number}: all messages must have non-empty content")
        results = {b.tool_use_id for b in message.blocks if isinstance(b, ToolResult)}
        expect(
            results == pending,
            f"messages.{number}: `tool_use` ids were found without `tool_result` blocks "
            f"immediately after: {', '.join(pending ^ results)}",
        )
        pending = {b.id for b in message.blocks if isinstance(b, ToolUse)}
        expect(body.tools or not pending, "Requests which include `tool_use` must define tools")
        expect(message.role == "assistant" or not pending, "`tool_use` is the assistant's")
        for block in message.blocks:
            _check_block(vendor, block)
        thinks = isinstance(body.thinking, Enabled)
        if thinks and pending:
            first = isinstance(message.blocks[0], Thinking | RedactedThinking)
            expect(first, "Expected `thinking` or `redacted_thinking`, but found `tool_use`")
    expect(not pending, "`tool_use` ids were found without `tool_result` blocks")
    if isinstance(body.thinking, Enabled):
        budget = body.thinking.budget_tokens
        expect(budget < body.max_tokens, "`max_tokens` must be greater than `budget_tokens`")
        forced = isinstance(body.tool_choice, AnyTool | OneTool)
        expect(not forced, "Thinking may not be enabled when tool_choice forces tool use.")


def _check_block(vendor: Vendor, block: Block) -> None:
    if isinstance(block, Thinking):
        vendor.expect(block.signature == SIGNATURE, "Invalid `signature` in `thinking` block")
    if isinstance(block, Image) and isinstance(block.source, Base64Source):
        try:
            data = base64.b64decode(block.source.data, validate=True)
        except binascii.Error:
            data = b""
        fits = f"image/{image_format(data)}" == block.source.media_type
        vendor.expect(fits, "Could not process image")


def answer_to(vendor: Vendor, body: Body, schema: Any = None) -> tuple[Answer, str]:
    """An answer and its `stop_reason`."""
    reason = "end_turn"

    def make() -> Answer:
        nonlocal reason
        texts = (b.text for b in body.messages[-1].blocks if isinstance(b, Text))
        answer, ended = made_up(
            " ".join(texts), max_tokens=body.max_tokens, stop=body.stop_sequences, schema=schema
        )
        if ended == "length":
            reason = "max_tokens"
        elif body.stop_sequences:
            reason = "stop_sequence"
        return answer

    answer = vendor.next_answer(make)
    return answer, answer.finish or ("tool_use" if answer.tool_calls else reason)


def message_of(model: str, answer: Answer, reason: str) -> dict[str, Any]:
    """A whole answer."""
    prompt, completion = answer.usage
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(_blocks(answer)),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt - 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 1,
            "output_tokens": completion,
        },
    }


def _blocks(answer: Answer) -> Iterator[dict[str, Any]]:
    if answer.reasoning:
        yield {"type": "thinking", "thinking": answer.reasoning, "signature": SIGNATURE}
    if answer.text or not answer.tool_calls:
        yield {"type": "text", "text": answer.text}
    for number, call in enumerate(answer.tool_calls):
        yield {
            "type": "tool_use",
            "id": call.get("id", f"toolu_{number}"),
            "name": call["name"],
            "input": msgspec.json.decode(call["arguments"]),
        }


def events_of(model: str, answer: Answer, reason: str) -> Iterator[dict[str, Any]]:
    """The events of a stream. A reason that ends in `_error` ends it in one."""
    head = message_of(model, answer, reason)
    usage = {**head["usage"], "output_tokens": 1}
    head.update(content=[], stop_reason=None, usage=usage)
    yield {"type": "message_start", "message": head}
    for index, block in enumerate(_blocks(answer)):
        empty, deltas = _pieces(block, answer)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        if reason.endswith("_error"):
            yield {"type": "error", "error": {"type": reason, "message": "in mid-stream"}}
            return
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": answer.usage[1]},
    }
    yield {"type": "message_stop"}


def _pieces(block: dict[str, Any], answer: Answer) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """A block as it starts, and what comes to it."""
    if block["type"] == "text":
        deltas = [{"type": "text_delta", "text": piece} for piece in answer.pieces]
        return {**block, "text": ""}, deltas
    if block["type"] == "thinking":
        deltas = [
            {"type": "thinking_delta", "thinking": word} for word in split_words(answer.reasoning)
        ]
        deltas.append({"type": "signature_delta", "signature": SIGNATURE})
        return {**block, "thinking": "", "signature": ""}, deltas
    text = msgspec.json.encode(block["input"]).decode()
    parts = ["", *(text[at : at + 5] for at in range(0, len(text), 5))] if block["input"] else [""]
    deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return {**block, "input": {}}, deltas


class ClaudeVendor(Vendor):
    """See the module."""

    models: ClassVar = ("claude-3-haiku-20240307", "claude-haiku-4-5")
    kinds: ClassVar = frozenset(
        {
            "wrong_key",
            "forbidden",
            "no_model",
            "bad_request",
            "too_long",
            "filtered",
            "rate_limited",
            "quota",
            "overloaded",
            "failed",
        }
    )
    errors: ClassVar[dict[str, tuple[int, str, str]]] = {
        "wrong_key": (401, "authentication_error", "{}"),
        "forbidden": (403, "permission_error", "{}"),
        "no_model": (404, "not_found_error", "{}"),
        "bad_request": (400, "invalid_request_error", "{}"),
        "too_long": (
            400,
            "invalid_request_error",
            "prompt is too long: 208310 tokens > 200000 maximum",
        ),
        "filtered": (400, "invalid_request_error", "Output blocked by content filtering policy"),
        "rate_limited": (429, "rate_limit_error", "{}"),
        "quota": (402, "billing_error", "{}"),
        "overloaded": (529, "overloaded_error", "Overloaded"),
        "failed": (500, "api_error", "Internal server error"),
        "no_credit": (
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API.",
        ),
        "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
        "slow": (504, "timeout_error", "Request timed out"),
    }
    """Status, type and message of each kind of error."""

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.get("/v1/models/{model}", self.one_model)
        yield web.post("/v1/messages", self.create)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, type_, text = self.errors[kind]
        error = {"type": type_, "message": text.format(message)}
        body = {"type": "error", "error": error, "request_id": REQUEST_ID}
        return web.json_response(body, status=status, headers={"request-id": REQUEST_ID})

    def check_headers(self, request: web.Request) -> str:
        """Returns the version of the API."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = request.headers.get("x-api-key", bearer)
        self.expect(given == self.key, "invalid x-api-key", "wrong_key")
        version = request.headers.get("anthropic-version", "")
        known = version in ("2023-06-01", "2026-10-21")
        self.expect(known, "anthropic-version: header is required")
        return version

    def check_model(self, model: str) -> None:
        self.expect(model in self.models, f"model: {model}", "no_model")

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        self.check_headers(request)
        model = request.match_info["model"]
        self.check_model(model)
        created = "2024-03-07T00:00:00Z"
        return web.json_response(
            {"type": "model", "id": model, "display_name": model, "created_at": created}
        )

    async def create(self, request: web.Request) -> web.StreamResponse:
        version = self.check_headers(request)
        self.expect(request.content_type == "application/json", "unsupported content type")
        body = self.decode(await request.read(), MessagesBody)
        self.check_model(body.model)
        check_messages(self, body)
        if version != "2023-06-01":
            for name in ("temperature", "top_p", "top_k"):
                self.expect(getattr(body, name) is None, f"{name}: not taken in {version}")
        form = body.output_config and body.output_config.format
        if form:
            self.expect("-3-" not in body.model, "output_config.format: not with this model")
            check_schema(self, form.schema)
        answer, reason = answer_to(self, body, form)
        headers = {"request-id": REQUEST_ID}
        if not body.stream:
            message = message_of(body.model, answer, reason)
            return await self.whole(request, message, headers=headers)
        return await self.stream(request, self.sse(events_of(body.model, answer, reason)))

    @staticmethod
    def sse(events: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        for event in events:
            data = msgspec.json.encode(event)
            yield b"event: " + event["type"].encode() + b"\ndata: " + data + b"\n\n"


def check_schema(vendor: Vendor, schema: dict[str, Any]) -> None:
    """Objects are closed, and some keywords are not known."""
    if schema.get("type") == "object":
        closed = schema.get("additionalProperties") is False
        vendor.expect(closed, "For 'object' type, 'additionalProperties' must be set to false")
    unknown = {"minimum", "maximum", "minLength", "maxLength", "maxItems"} & set(schema)
    vendor.expect(not unknown, f"properties not supported: {', '.join(unknown)}")
    for inner in schema.get("properties", {}).values():
        check_schema(vendor, inner)
