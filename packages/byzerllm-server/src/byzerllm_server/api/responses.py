"""OpenAI's `/v1/responses`. Answers are not kept: a conversation goes on by sending it again.

Source: the reference of OpenAI's Responses API.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, NoReturn

import msgspec
from starlette.responses import Response

from byzerllm.errors import ByzerLLMError
from byzerllm.requests import FinishReason, GenerateChunk, ModelMeta, TokenLogprob
from byzerllm.requests import Usage as EngineUsage
from byzerllm_server.api.blocks import Began, Block, Blocks, Ended, Grew, blocks_of
from byzerllm_server.api.chat import shown_model
from byzerllm_server.api.question import Question, check_object, keep_to_json, think
from byzerllm_server.calls import Call, new_id
from byzerllm_server.errors import HTTPError, problem_of
from byzerllm_server.events import EventStream, event
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import responses as schema

logger = logging.getLogger("byzerllm.server")
encode = msgspec.json.encode
_IDS = {"text": "msg_", "thinking": "rs_", "tool": "fc_"}
_DELTAS = {
    "text": "response.output_text.delta",
    "thinking": "response.reasoning_text.delta",
    "tool": "response.function_call_arguments.delta",
}
_Part = dict[str, Any]


async def responses(context: Context, body: schema.ResponseRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    _refuse_kept(body)
    gateway.open(call, body.model)
    question = _question(context, await gateway.meta(call), body)
    if body.stream:
        call.stream = True
        seconds = context.server.settings.ping_seconds
        return EventStream(_Events(question, body).events(), call, ping_seconds=seconds)
    result = await question.answer()
    whole = _opened(body, call)
    blocks = blocks_of(result)
    status = _status(result.finish_reason)
    whole.output = [_item(_named(block), "completed") for block in blocks]
    whole.output[-1].status = status
    _complete(whole, result.finish_reason, result.usage)
    return Response(encode(whole), media_type="application/json")


async def kept_response(context: Context) -> Response:
    """There is none, and it is said why."""
    raise HTTPError(
        404,
        f"there is no response {context.scope['path_params']['response']!r}: responses are not "
        "kept here",
        code="response_not_found",
    )


# What is asked.


def _refuse_kept(body: schema.ResponseRequest) -> None:
    """Nothing is kept here, so nothing that was kept can be meant."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            _refuse(
                name, "is not taken: responses are not kept; send the whole conversation as input"
            )
    if body.background:
        _refuse("background", "is not taken: responses are not kept; wait for it, or stream")


def _refuse(where: str, reason: str) -> NoReturn:
    raise HTTPError(400, f"{where} {reason}", code="unsupported_parameter", parameter=where)


def _question(context: Context, meta: ModelMeta, body: schema.ResponseRequest) -> Question:
    config: dict[str, Any] = dict(context.extra)
    for name, value in (
        ("max_tokens", body.max_output_tokens),
        ("temperature", body.temperature),
        ("top_p", body.top_p),
        ("chat_template_kwargs", body.chat_template_kwargs),
        ("verbosity", body.text and body.text.verbosity),
    ):
        if value is not None:
            config[name] = value
    think(config, meta, body.reasoning.effort if body.reasoning else None)
    if "message.output_text.logprobs" in (body.include or ()):
        config["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs:
        _refuse("top_logprobs", "needs include: ['message.output_text.logprobs']")
    _constrain(config, body.text.format if body.text else None, meta)
    tools, choice = _tools(body)
    return Question(
        context,
        meta,
        conversation(body),
        config,
        tools=tools,
        tool_choice=choice,
        parallel=body.parallel_tool_calls is not False,
    )


def _constrain(config: dict[str, Any], wanted: schema.TextFormat | None, meta: ModelMeta) -> None:
    if wanted is None or wanted.type == "text":
        return
    shape: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema":
        if wanted.schema is None:
            _refuse("text.format.schema", "is missing")
        shape = wanted.schema
    keep_to_json(config, shape, meta, parameter="text.format")


def _tools(body: schema.ResponseRequest) -> tuple[list[dict[str, Any]], Any]:
    """The tools and the choice in the shape that chat completions have."""
    tools = list(body.tools or ())
    for index, tool in enumerate(tools):
        if tool.parameters is not None:
            check_object(tool.parameters, f"tools[{index}].parameters")
    choice: Any = body.tool_choice
    if isinstance(choice, schema.ChosenTool):
        if choice.type == "allowed_tools":
            names = {tool.name for tool in choice.tools or ()}
            unknown = names - {tool.name for tool in tools}
            if unknown:
                _refuse("tool_choice.tools", f"names no tool of tools: {min(unknown)!r}")
            tools = [tool for tool in tools if tool.name in names]
            choice = choice.mode or "auto"
        elif choice.name is None:
            _refuse("tool_choice.name", "is missing")
        else:
            choice = {"type": "function", "function": {"name": choice.name}}
    functions = [
        {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": tool.parameters or {"type": "object", "properties": {}},
        }
        for tool in tools
    ]
    return [{"type": "function", "function": function} for function in functions], choice


def conversation(body: schema.ResponseRequest) -> list[dict[str, Any]]:
    """The instructions and the input in the shape that chat completions have.

    Raises:
        HTTPError: an item that lacks what its type needs.
    """
    asked: list[dict[str, Any]] = []
    if body.instructions:
        asked.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*asked, {"role": "user", "content": body.input}]
    for index, item in enumerate(body.input):
        where = f"input[{index}]"
        if item.type == "function_call":
            _add_call(asked, item, where)
        elif item.type == "function_call_output":
            asked.extend(_result(item, where))
        elif item.type != "reasoning":
            asked.append(_message(item, where))
    if not asked:
        raise HTTPError(400, "input holds no message", code="invalid_value", parameter="input")
    return asked


def _given(value: Any, where: str) -> Any:
    if value is None:
        raise HTTPError(400, f"{where} is missing", code="invalid_value", parameter=where)
    return value


def _add_call(asked: list[dict[str, Any]], item: schema.InputItem, where: str) -> None:
    """A call belongs to the message of the assistant before it, where there is one."""
    function = {
        "name": _given(item.name, f"{where}.name"),
        "arguments": _given(item.arguments, f"{where}.arguments"),
    }
    id_ = _given(item.call_id, f"{where}.call_id")
    if not asked or asked[-1]["role"] != "assistant":
        asked.append({"role": "assistant", "content": None})
    asked[-1].setdefault("tool_calls", []).append(
        {"id": id_, "type": "function", "function": function}
    )


def _result(item: schema.InputItem, where: str) -> Iterator[dict[str, Any]]:
    """A result is a text; its images are the user's."""
    output = _given(item.output, f"{where}.output")
    id_ = _given(item.call_id, f"{where}.call_id")
    content = output if isinstance(output, str) else _content(output, f"{where}.output")
    parts = [] if isinstance(content, str) else content
    text = content if isinstance(content, str) else _joined(parts)
    yield {"role": "tool", "tool_call_id": id_, "content": text}
    others = [part for part in parts if part["type"] != "text"]
    if others:
        yield {"role": "user", "content": others}


def _message(item: schema.InputItem, where: str) -> dict[str, Any]:
    content = _given(item.content, f"{where}.content")
    role = _given(item.role, f"{where}.role")
    return {"role": role, "content": _content(content, f"{where}.content")}


def _content(parts: str | Sequence[Any], where: str) -> str | list[_Part]:
    """Texts alone are one text, which every engine takes."""
    if isinstance(parts, str):
        return parts
    found = [_part(part, f"{where}[{index}]") for index, part in enumerate(parts)]
    return _joined(found) if all(part["type"] == "text" for part in found) else found


def _joined(parts: Iterable[_Part]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _part(part: schema.InputPart, where: str) -> _Part:
    kind = part.type
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": _given(part.text, f"{where}.text")}
    if kind == "refusal":
        return {"type": "text", "text": _given(part.refusal, f"{where}.refusal")}
    if kind == "reasoning_text":
        _refuse(f"{where}.type", "is of a reasoning item, not of a message")
    if part.file_id is not None:
        _refuse(f"{where}.file_id", "is not taken: no files are kept; send the data itself")
    if kind == "input_image":
        return {
            "type": "image_url",
            "image_url": {"url": _given(part.image_url, f"{where}.image_url")},
        }
    if kind == "input_audio":
        audio = _given(part.input_audio, f"{where}.input_audio")
        return {"type": "input_audio", "input_audio": audio}
    data = _given(part.file_data, f"{where}.file_data")
    return {"type": "file", "file": {"filename": part.filename or "file", "file_data": data}}


# What is answered.


def _opened(body: schema.ResponseRequest, call: Call) -> schema.Response:
    """A response that nothing came of yet."""
    raw_choice = body.tool_choice
    choice: Any = "auto" if raw_choice is None else msgspec.to_builtins(raw_choice)
    if isinstance(choice, dict):
        choice = {name: value for name, value in choice.items() if value is not None}
    text = body.text or schema.TextConfig()
    return schema.Response(
        id=new_id("resp_"),
        created_at=int(time.time()),
        status="in_progress",
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=shown_model(call, body.model),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=body.reasoning or schema.Reasoning(),
        temperature=body.temperature,
        text=schema.TextConfig(
            format=text.format or schema.TextFormat(type="text"),
            verbosity=text.verbosity or "medium",
        ),
        tool_choice=choice,
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=body.top_p,
        user=body.user,
    )


def _status(finish: FinishReason) -> schema.Status:
    return "completed" if finish in ("stop", "tool_calls") else "incomplete"


def _complete(whole: schema.Response, finish: FinishReason, usage: EngineUsage | None) -> None:
    whole.status = _status(finish)
    if finish == "length":
        whole.incomplete_details = schema.IncompleteDetails(reason="max_output_tokens")
    elif finish == "content_filter":
        whole.incomplete_details = schema.IncompleteDetails(reason="content_filter")
    else:
        whole.completed_at = int(time.time())
    found = usage or EngineUsage()
    whole.usage = schema.Usage(
        input_tokens=found.prompt_tokens,
        output_tokens=found.completion_tokens,
        total_tokens=found.prompt_tokens + found.completion_tokens,
    )


def _named(block: Block) -> Block:
    """The block with an id of this API; a call's own id is its `call_id`."""
    if block.kind != "tool":
        block.id = new_id(_IDS[block.kind])
    return block


def _item(block: Block, status: schema.Status, id_: str = "") -> schema.OutputItem:
    if block.kind == "tool":
        return schema.FunctionCallItem(
            id=id_ or new_id(_IDS["tool"]),
            status=status,
            call_id=block.id,
            name=block.name,
            arguments=block.text,
        )
    part = _output_part(block)
    if isinstance(part, schema.ReasoningText):
        return schema.ReasoningItem(id=block.id, status=status, content=[part])
    return schema.MessageItem(id=block.id, status=status, content=[part])


def _output_part(block: Block) -> schema.OutputText | schema.ReasoningText:
    if block.kind == "thinking":
        return schema.ReasoningText(text=block.text)
    return schema.OutputText(text=block.text, logprobs=_logprobs(block.logprobs))


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[schema.Logprob]:
    return [
        schema.Logprob(
            token=token.token,
            bytes=list(token.token.encode()),
            logprob=token.logprob,
            top_logprobs=[
                schema.TopLogprob(token=text, bytes=list(text.encode()), logprob=logprob)
                for text, _, logprob in token.top
            ],
        )
        for token in tokens
    ]


class _Events:
    """The events of one streamed response. An error after the first one ends it as failed."""

    def __init__(self, question: Question, body: schema.ResponseRequest) -> None:
        self._question = question
        self._body = body
        self._blocks = Blocks()
        self._number = 0
        self._whole: schema.Response | None = None
        # Of the block that is open: its item's id, and its deltas up to their number.
        self._id = ""
        self._delta = b""

    async def events(self) -> AsyncGenerator[bytes, None]:
        call = self._question.call
        try:
            async with aclosing(self._question.chunks()) as chunks:
                async for chunk in chunks:
                    if self._whole is None:
                        self._whole = _opened(self._body, call)
                        yield self._lifecycle(schema.ResponseCreated, self._whole)
                        yield self._lifecycle(schema.ResponseInProgress, self._whole)
                    for encoded in self._pieces(chunk, self._whole):
                        yield encoded
        except Exception as error:
            if self._whole is None:
                raise
            yield self._failed(error, self._whole)

    def _pieces(self, chunk: GenerateChunk, whole: schema.Response) -> Iterator[bytes]:
        for step in self._blocks.read(chunk):
            if isinstance(step, Grew):
                yield self._grew(step)
            elif isinstance(step, Began):
                yield from self._began(_named(step.block))
            else:
                yield from self._ended(step, chunk.finish_reason, whole)
        if chunk.finish_reason is None:
            return
        _complete(whole, chunk.finish_reason, chunk.usage)
        complete = whole.status == "completed"
        yield self._lifecycle(
            schema.ResponseCompleted if complete else schema.ResponseIncomplete, whole
        )

    def _began(self, block: Block) -> Iterator[bytes]:
        empty = _item(block, "in_progress")
        self._id = empty.id
        if not isinstance(empty, schema.FunctionCallItem):
            empty.content = []
        yield self._event(
            schema.ItemAdded(sequence_number=self._next(), output_index=block.index, item=empty)
        )
        kind = _DELTAS[block.kind].encode()
        place = b'"item_id":"%s","output_index":%d' % (self._id.encode(), block.index)
        if block.kind != "tool":
            place += b',"content_index":0'
            yield self._event(
                schema.PartAdded(
                    sequence_number=self._next(),
                    item_id=self._id,
                    output_index=block.index,
                    part=_output_part(block),
                )
            )
        self._delta = b'event: %s\ndata: {"type":"%s",%s,"delta":' % (kind, kind, place)

    def _grew(self, step: Grew) -> bytes:
        logprobs = b""
        if step.block.kind == "text":
            logprobs = b',"logprobs":' + encode(_logprobs(step.logprobs))
        return b'%s%s%s,"sequence_number":%d}\n\n' % (
            self._delta,
            encode(step.text),
            logprobs,
            self._next(),
        )

    def _ended(
        self, step: Ended, finish: FinishReason | None, whole: schema.Response
    ) -> Iterator[bytes]:
        block, text = step.block, step.block.text
        status: schema.Status = _status(finish) if finish and step.last else "completed"
        place: dict[str, Any] = {"item_id": self._id, "output_index": block.index}
        if block.kind == "tool":
            yield self._event(
                schema.ArgumentsDone(
                    sequence_number=self._next(), name=block.name, arguments=text, **place
                )
            )
        else:
            part = _output_part(block)
            done: schema.Event
            if isinstance(part, schema.OutputText):
                done = schema.TextDone(
                    sequence_number=self._next(), text=text, logprobs=part.logprobs, **place
                )
            else:
                done = schema.ReasoningDone(sequence_number=self._next(), text=text, **place)
            yield self._event(done)
            yield self._event(schema.PartDone(sequence_number=self._next(), part=part, **place))
        item = _item(block, status, self._id)
        whole.output = [*whole.output, item]
        yield self._event(
            schema.ItemDone(sequence_number=self._next(), output_index=block.index, item=item)
        )

    def _failed(self, error: Exception, whole: schema.Response) -> bytes:
        call = self._question.call
        call.error = call.error or type(error).__name__
        if not isinstance(error, ByzerLLMError | HTTPError):
            logger.error("request %s failed", call.id, exc_info=error)
        problem = problem_of(error)
        code = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        whole.status = "failed"
        whole.error = schema.ResponseError(code=code, message=problem.message)
        return self._lifecycle(schema.ResponseFailed, whole)

    def _lifecycle(self, kind: Any, whole: schema.Response) -> bytes:
        return self._event(kind(sequence_number=self._next(), response=whole))

    def _event(self, data: schema.Event) -> bytes:
        return event(data, str(type(data).__struct_config__.tag))

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number


OPERATIONS = [
    Operation(
        name="responses",
        method="POST",
        path="/v1/responses",
        summary="Answer a conversation, as items",
        handler=responses,
        body=schema.ResponseRequest,
        extra=True,
        answer=schema.Response,
        event=schema.StreamEvent,
    ),
    Operation(
        name="response",
        method="GET",
        path="/v1/responses/{response}",
        summary="Refused: responses are not kept",
        handler=kept_response,
        documented=False,
    ),
]
