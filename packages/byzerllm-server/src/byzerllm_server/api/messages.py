"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

Source: the reference of Anthropic's Messages API.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from byzerllm.client.tools import text_messages
from byzerllm.errors import CapabilityError
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    FinishReason,
    GenerateChunk,
    GenerateResult,
    ModelMeta,
    TokenizeRequest,
    TokenizeResult,
)
from byzerllm.requests import Usage as EngineUsage
from byzerllm_server.api.blocks import Began, Block, Blocks, Ended, Step, blocks_of
from byzerllm_server.api.chat import shown_model
from byzerllm_server.api.question import Question, check_object, keep_to_json, set_variable, think
from byzerllm_server.calls import new_id
from byzerllm_server.errors import HTTPError
from byzerllm_server.events import PINGS, EventStream, event
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import anthropic as schema

encode = msgspec.json.encode

_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_STOP_REASONS: dict[FinishReason, schema.StopReason] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_DELTAS = {
    "text": b'{"type":"text_delta","text":%s}',
    "thinking": b'{"type":"thinking_delta","thinking":%s}',
    "tool": b'{"type":"input_json_delta","partial_json":%s}',
}
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%s}\n\n'
)
_Part = dict[str, Any]


async def messages(context: Context, body: schema.MessagesRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    if body.thread is not None:
        # By this code the client knows that it is to send whole conversations.
        raise HTTPError(
            400,
            "thread: conversations are not kept; send all messages without it",
            code="thread_unsupported_request",
            parameter="thread",
        )
    gateway.open(call, body.model)
    question = _question(context, await gateway.meta(call), body)
    if body.stream:
        call.stream = True
        seconds = context.server.settings.ping_seconds
        return EventStream(_Events(question).events(), call, ping_seconds=seconds)
    result = await question.answer()
    answer = schema.Message(
        id=new_id("msg_"),
        model=shown_model(call, body.model),
        content=[_answered(block) for block in blocks_of(result)],
        stop_reason=_stop_reason(result),
        stop_sequence=result.stop_text or None,
        usage=_usage(result.usage),
    )
    return Response(encode(answer), media_type="application/json")


async def count_tokens(context: Context, body: schema.CountTokensRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    meta = await gateway.meta(call)
    if meta.task != "chat" or not meta.support_chat_template:
        raise CapabilityError(
            f"the tokens of model {body.model!r} cannot be counted: it has no chat template of its "
            "own here",
            parameter="model",
        )
    asked = conversation(body)
    if any(part["type"] != "text" for message in asked for part in _parts(message)):
        raise HTTPError(
            400,
            "messages: the tokens of texts are counted, not those of images",
            code="unsupported_by_model",
            parameter="messages",
        )
    request = ApplyTemplateRequest(id=call.id, messages=text_messages(asked))
    applied = await gateway.send(call, request)
    assert isinstance(applied, ApplyTemplateResult)
    text = applied.text
    if body.tools:
        text += encode(_tools(body.tools)).decode()
    found = await gateway.send(call, TokenizeRequest(id=f"{call.id}-1", text=text))
    assert isinstance(found, TokenizeResult)
    answer = schema.TokenCount(input_tokens=len(found.token_ids))
    return Response(encode(answer), media_type="application/json")


def _parts(message: dict[str, Any]) -> Sequence[_Part]:
    content = message.get("content")
    return content if isinstance(content, list) else ()


# What is asked.


def _question(context: Context, meta: ModelMeta, body: schema.MessagesRequest) -> Question:
    config: dict[str, Any] = {**context.extra, "max_tokens": body.max_tokens}
    for name in ("temperature", "top_p", "top_k", "chat_template_kwargs"):
        if getattr(body, name) is not None:
            config[name] = getattr(body, name)
    if body.stop_sequences:
        config["stop"] = body.stop_sequences
    _think(config, body.thinking, meta)
    wanted = body.output_config
    think(config, meta, wanted.effort if wanted else None)
    if wanted is not None and wanted.format is not None:
        keep_to_json(config, wanted.format.schema, meta, parameter="output_config.format")
    choice = body.tool_choice
    alone = getattr(choice, "disable_parallel_tool_use", None)
    return Question(
        context,
        meta,
        conversation(body),
        config,
        tools=_tools(body.tools or ()),
        tool_choice=_choice(choice),
        parallel=not alone,
    )


def _think(config: dict[str, Any], wanted: schema.Thinking | None, meta: ModelMeta) -> None:
    """Vendors get the field as it is; chat templates of thinking models know `enable_thinking`."""
    if wanted is None:
        return
    if meta.model_deploy_type == "saas":
        config["thinking"] = msgspec.to_builtins(wanted)
        return
    set_variable(config, "enable_thinking", wanted.type != "disabled")


def _tools(tools: Sequence[schema.Tool]) -> list[dict[str, Any]]:
    for index, tool in enumerate(tools):
        check_object(tool.input_schema, f"tools[{index}].input_schema")
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.input_schema,
            },
        }
        for tool in tools
    ]


def _choice(choice: Any) -> Any:
    if choice is None or isinstance(choice, schema.ChooseAuto):
        return None if choice is None else "auto"
    if isinstance(choice, schema.ChooseTool):
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if isinstance(choice, schema.ChooseAny) else "none"


def conversation(body: schema.Conversation) -> list[dict[str, Any]]:
    """The system text and the messages in OpenAI's shape.

    Raises:
        HTTPError: a block that its message's role cannot have.
    """
    asked: list[dict[str, Any]] = []
    system = body.system if isinstance(body.system, str) else _joined(body.system or ())
    if system:
        asked.append({"role": "system", "content": system})
    for number, message in enumerate(body.messages):
        if isinstance(message.content, str):
            asked.append({"role": message.role, "content": message.content})
        else:
            where = f"messages[{number}].content"
            asked.extend(_SAID[message.role](message.content, where))
    return asked


def _joined(blocks: Iterable[schema.TextBlock]) -> str:
    return "\n".join(block.text for block in blocks)


def _system_said(blocks: Sequence[schema.AskedBlock], where: str) -> Iterator[dict[str, Any]]:
    for index, block in enumerate(blocks):
        if not isinstance(block, schema.TextBlock):
            raise _misplaced(block, f"{where}[{index}]", "system")
        yield {"role": "system", "content": block.text}


def _assistant_said(blocks: Sequence[schema.AskedBlock], where: str) -> Iterator[dict[str, Any]]:
    texts: list[schema.TextBlock] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        if isinstance(block, schema.TextBlock):
            texts.append(block)
        elif isinstance(block, schema.ToolUseBlock):
            function = {"name": block.name, "arguments": encode(block.input).decode()}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, schema.ThinkingBlock | schema.RedactedThinkingBlock):
            raise _misplaced(block, f"{where}[{index}]", "assistant")
    said: dict[str, Any] = {"role": "assistant", "content": _joined(texts)}
    if calls:
        said["content"] = said["content"] or None
        said["tool_calls"] = calls
    yield said


def _user_said(blocks: Sequence[schema.AskedBlock], where: str) -> Iterator[dict[str, Any]]:
    """Results come first, as they answer the calls of the message before; a result's images are
    the user's, since OpenAI's results are texts."""
    parts: list[_Part] = []
    for index, block in enumerate(blocks):
        if isinstance(block, schema.ToolResultBlock):
            content = block.content or ""
            found = [] if isinstance(content, str) else [_part(inner) for inner in content]
            text = content if isinstance(content, str) else _text_of(found)
            if block.is_error:
                text = f"error: {text}"
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            parts += [part for part in found if part["type"] != "text"]
        elif isinstance(block, schema.TextBlock | schema.ImageBlock | schema.DocumentBlock):
            parts.append(_part(block))
        else:
            raise _misplaced(block, f"{where}[{index}]", "user")
    if not parts:
        return
    plain = all(part["type"] == "text" for part in parts)
    yield {"role": "user", "content": _text_of(parts) if plain else parts}


_SAID = {"system": _system_said, "assistant": _assistant_said, "user": _user_said}


def _part(block: schema.TextBlock | schema.ImageBlock | schema.DocumentBlock) -> _Part:
    if isinstance(block, schema.TextBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, schema.DocumentBlock):
        lines = [line for line in (block.title, block.context, block.source.data) if line]
        return {"type": "text", "text": "\n".join(lines)}
    source = block.source
    url = (
        source.url
        if isinstance(source, schema.UrlSource)
        else f"data:{source.media_type};base64,{source.data}"
    )
    return {"type": "image_url", "image_url": {"url": url}}


def _text_of(parts: Iterable[_Part]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _misplaced(block: schema.AskedBlock, where: str, role: str) -> HTTPError:
    kind = type(block).__struct_config__.tag
    return HTTPError(
        400,
        f"{where}: a message of the role {role!r} has no blocks of type {kind!r}",
        code="invalid_value",
        parameter=where,
    )


# What is answered.


def _answered(block: Block) -> schema.TextBlock | schema.ThinkingBlock | schema.ToolUseBlock:
    if block.kind == "thinking":
        return schema.ThinkingBlock(thinking=block.text)
    if block.kind == "tool":
        return schema.ToolUseBlock(id=block.id, name=block.name, input=block.arguments())
    return schema.TextBlock(text=block.text)


def _stop_reason(ended: GenerateResult | GenerateChunk) -> schema.StopReason:
    assert ended.finish_reason is not None
    return "stop_sequence" if ended.stop_text else _STOP_REASONS[ended.finish_reason]


def _usage(usage: EngineUsage | None) -> schema.Usage:
    found = usage or EngineUsage()
    return schema.Usage(input_tokens=found.prompt_tokens, output_tokens=found.completion_tokens)


class _Events:
    """The events of one streamed message."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._blocks = Blocks()

    async def events(self) -> AsyncGenerator[bytes, None]:
        begun = False
        async with aclosing(self._question.chunks()) as chunks:
            async for chunk in chunks:
                if not begun:
                    begun = True
                    yield self._start()
                for step in self._blocks.read(chunk):
                    yield _written(step)
                if chunk.finish_reason is not None:
                    yield self._end(chunk)
        yield _STOP

    def _start(self) -> bytes:
        call = self._question.call
        head = schema.Message(
            id=new_id("msg_"),
            model=shown_model(call, call.asked),
            content=[],
            usage=_usage(None),
        )
        return event(schema.MessageStart(message=head), "message_start")

    @staticmethod
    def _end(chunk: GenerateChunk) -> bytes:
        ended = schema.Ended(stop_reason=_stop_reason(chunk), stop_sequence=chunk.stop_text or None)
        return event(schema.MessageDelta(delta=ended, usage=_usage(chunk.usage)), "message_delta")


def _written(step: Step) -> bytes:
    block = step.block
    if isinstance(step, Began):
        empty = _answered(block)
        start = schema.ContentBlockStart(index=block.index, content_block=empty)
        begun = event(start, "content_block_start")
        return begun if block.index else begun + PINGS["anthropic"]
    if isinstance(step, Ended):
        return _stopped(block)
    return _delta(block.index, _DELTAS[block.kind] % encode(step.text))


def _stopped(block: Block) -> bytes:
    last = b""
    if block.kind == "thinking":
        last = _delta(block.index, b'{"type":"signature_delta","signature":""}')
    elif block.kind == "tool":
        # A caller cannot go on with a call that it cannot read.
        block.arguments()
    return last + event(schema.ContentBlockStop(index=block.index), "content_block_stop")


def _delta(index: int, delta: bytes) -> bytes:
    return _DELTA % (index, delta)


OPERATIONS = [
    Operation(
        name="messages",
        method="POST",
        path="/v1/messages",
        summary="Answer a conversation",
        handler=messages,
        body=schema.MessagesRequest,
        extra=True,
        answer=schema.Message,
        event=schema.StreamEvent,
        dialect="anthropic",
        tag="Anthropic",
    ),
    Operation(
        name="count_tokens",
        method="POST",
        path="/v1/messages/count_tokens",
        summary="Count the tokens of a conversation",
        handler=count_tokens,
        body=schema.CountTokensRequest,
        extra=True,
        answer=schema.TokenCount,
        dialect="anthropic",
        tag="Anthropic",
    ),
]
