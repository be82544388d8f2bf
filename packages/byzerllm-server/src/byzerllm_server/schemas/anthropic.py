"""Anthropic's requests and answers.

Source: the reference of Anthropic's Messages API.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from byzerllm_server.operations import Body
from byzerllm_server.schemas.openai import Probability, Text, TokenLimit

ObjectSchema = Annotated[
    dict[str, Any],
    Meta(
        description="The JSON schema of an object",
        extra_json_schema={"properties": {"type": {"const": "object"}}, "required": ["type"]},
    ),
]


class ErrorCode(Struct, kw_only=True):
    error_code: str


class ErrorDetail(Struct, kw_only=True):
    type: str
    message: str
    details: ErrorCode


class Error(Struct, kw_only=True):
    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str


# What is asked.


class TextBlock(Struct, kw_only=True, tag_field="type", tag="text"):
    text: str


class Base64Source(Struct, kw_only=True, tag_field="type", tag="base64"):
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: Text


class UrlSource(Struct, kw_only=True, tag_field="type", tag="url"):
    url: Annotated[str, Meta(pattern="^(https?://|data:image/)")]


class ImageBlock(Struct, kw_only=True, tag_field="type", tag="image"):
    source: Base64Source | UrlSource


class TextSource(Struct, kw_only=True, tag_field="type", tag="text"):
    data: str
    media_type: Literal["text/plain"] = "text/plain"


class DocumentBlock(Struct, kw_only=True, tag_field="type", tag="document"):
    """A plain text; other documents are not taken."""

    source: TextSource
    title: str | None = None
    context: str | None = None


class ThinkingBlock(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """What a model thought. The conversation goes on without it."""

    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Struct, kw_only=True, tag_field="type", tag="redacted_thinking"):
    data: str


class ToolUseBlock(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: Text
    name: Text
    input: dict[str, Any]


class ToolResultBlock(Struct, kw_only=True, tag_field="type", tag="tool_result"):
    tool_use_id: Text
    content: str | list[TextBlock | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None


AskedBlock = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
)


class AskedMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[AskedBlock], Meta(min_length=1)]


class Tool(Struct, kw_only=True):
    """A function of the caller's own; Anthropic's tools are not taken."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: ObjectSchema


class ChooseAuto(Struct, kw_only=True, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class ChooseAny(Struct, kw_only=True, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class ChooseTool(Struct, kw_only=True, tag_field="type", tag="tool"):
    name: Text
    disable_parallel_tool_use: bool | None = None


class ChooseNone(Struct, kw_only=True, tag_field="type", tag="none"):
    pass


class Thinking(Struct, kw_only=True, omit_defaults=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Meta(ge=1024, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, kw_only=True):
    effort: str | None = None
    format: OutputFormat | None = None


class Conversation(Body, kw_only=True):
    """What messages and the count of their tokens share."""

    model: Text
    messages: Annotated[list[AskedMessage], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ChooseAuto | ChooseAny | ChooseTool | ChooseNone | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Taken and of no effect: it steers Anthropic's own platform.
    cache_control: dict[str, Any] | None = None


class MessagesRequest(Conversation, kw_only=True):
    """A conversation that the model answers."""

    max_tokens: TokenLimit
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    stop_sequences: Annotated[list[Text], Meta(max_length=16)] | None = None
    stream: bool | None = None
    # Refused: nothing is kept.
    thread: dict[str, Any] | None = None
    # vLLM's
    chat_template_kwargs: dict[str, Any] | None = None
    # Taken and of no effect: they steer Anthropic's own platform.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None


class CountTokensRequest(Conversation, kw_only=True):
    """A conversation whose tokens are counted."""


# What is answered.

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class Usage(Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Message(Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: Usage


class TokenCount(Struct, kw_only=True):
    input_tokens: int


class Model(Struct, kw_only=True):
    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: datetime


class ModelList(Struct, kw_only=True):
    data: list[Model]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, models: list[Model]) -> ModelList:
        """All models on one page."""
        first, last = (models[0].id, models[-1].id) if models else (None, None)
        return cls(data=models, first_id=first, last_id=last)


# The events of a stream.


class TextDelta(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Struct, kw_only=True, tag_field="type", tag="signature_delta"):
    signature: str


class InputJsonDelta(Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class MessageStart(Struct, kw_only=True, tag_field="type", tag="message_start"):
    message: Message


class ContentBlockStart(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class ContentBlockDelta(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    index: int


class Ended(Struct, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageDelta(Struct, kw_only=True, tag_field="type", tag="message_delta"):
    """`usage` counts the whole answer, and the prompt, which is not known at the start."""

    delta: Ended
    usage: Usage


class MessageStop(Struct, kw_only=True, tag_field="type", tag="message_stop"):
    pass


class Ping(Struct, kw_only=True, tag_field="type", tag="ping"):
    pass


class ErrorEvent(Struct, kw_only=True, tag_field="type", tag="error"):
    error: ErrorDetail
    request_id: str


StreamEvent = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | ErrorEvent
)
