"""`/v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from byzerllm.requests import (
    GenerateChunk,
    GenerateResult,
    ModelMeta,
    ToolCall,
    ToolCallDelta,
)
from byzerllm.requests import TokenLogprob as EngineLogprob
from byzerllm.requests import Usage as EngineUsage
from byzerllm_server.api.merging import merged, together
from byzerllm_server.api.question import Question, keep_to_json, think
from byzerllm_server.api.sampling import sampling_config
from byzerllm_server.calls import Call, new_id
from byzerllm_server.errors import HTTPError
from byzerllm_server.events import EventStream
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import openai as schema

encode = msgspec.json.encode
DONE = b"data: [DONE]\n\n"


async def chat_completions(context: Context, body: schema.ChatCompletionRequest) -> Response:
    call = context.call
    context.server.gateway.open(call, body.model)
    question = await _question(context, body)
    if body.stream:
        call.stream = True
        usage = bool(body.stream_options and body.stream_options.include_usage)
        events = _Chunks(question, usage).events()
        return EventStream(events, call, ping_seconds=context.server.settings.ping_seconds)
    results = await together([question.answer(index) for index in range(question.n)])
    answer = schema.ChatCompletion(
        id=new_id("chatcmpl-"),
        created=int(time.time()),
        model=shown_model(call, body.model),
        choices=[_choice(index, result) for index, result in enumerate(results)],
        usage=usage_of([result.usage for result in results]),
    )
    return Response(encode(answer), media_type="application/json")


async def _question(context: Context, body: schema.ChatCompletionRequest) -> Question:
    """The question of a chat completion.

    Raises:
        HTTPError, ByzerLLMError: it cannot be asked of this model.
    """
    meta = await context.server.gateway.meta(context.call)
    config = sampling_config(body, context.extra)
    if body.max_completion_tokens is not None:
        config["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        config["logprobs"] = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise HTTPError(400, "top_logprobs needs logprobs: true", parameter="top_logprobs")
    if body.chat_template_kwargs is not None:
        config["chat_template_kwargs"] = body.chat_template_kwargs
    think(config, meta, body.reasoning_effort)
    _constrain(config, body.response_format, meta)
    return Question(
        context,
        meta,
        context.raw["messages"],
        config,
        n=body.n or 1,
        tools=context.raw.get("tools") or (),
        tool_choice=context.raw.get("tool_choice"),
        parallel=body.parallel_tool_calls is not False,
    )


def _constrain(
    config: dict[str, Any], wanted: schema.ResponseFormat | None, meta: ModelMeta
) -> None:
    if wanted is None or wanted.type == "text":
        return
    shape: dict[str, Any] = {"type": "object"}
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise HTTPError(
                400,
                "response_format.json_schema is missing: {'name': …, 'schema': {…}}",
                parameter="response_format.json_schema",
            )
        shape = wanted.json_schema.schema
    keep_to_json(config, shape, meta, parameter="response_format")


class _Chunks:
    """The events of one streamed chat."""

    def __init__(self, question: Question, include_usage: bool) -> None:
        self._question = question
        self._include_usage = include_usage
        self._model = question.call.asked
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())
        head = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    async def events(self) -> AsyncGenerator[bytes, None]:
        question = self._question
        usages: list[EngineUsage] = []
        begun: set[int] = set()
        streams = [question.chunks(index) for index in range(question.n)]
        async with aclosing(merged(streams)) as chunks:
            async for index, chunk in chunks:
                if index not in begun:
                    begun.add(index)
                    yield self._event(index, b'{"role":"assistant","content":""}')
                for encoded in self._pieces(index, chunk):
                    yield encoded
                if chunk.usage is not None:
                    usages.append(chunk.usage)
        if self._include_usage:
            usage = encode(usage_of(usages))
            yield self._head + b'],"usage":' + usage + b"}\n\n"
        yield DONE

    def _pieces(self, index: int, chunk: GenerateChunk) -> list[bytes]:
        found: list[bytes] = []
        if chunk.reasoning:
            found.append(
                self._event(index, b'{"reasoning_content":' + encode(chunk.reasoning) + b"}")
            )
        if chunk.text or chunk.logprobs:
            delta = b'{"content":' + encode(chunk.text) + b"}"
            logprobs = encode(logprobs_of(chunk.logprobs)) if chunk.logprobs else b"null"
            found.append(self._event(index, delta, logprobs))
        if chunk.tool_calls:
            calls = encode([_tool_delta(piece) for piece in chunk.tool_calls])
            found.append(self._event(index, b'{"tool_calls":' + calls + b"}"))
        if chunk.finish_reason is not None:
            reason = encode(chunk.finish_reason)
            found.append(self._event(index, b"{}", finish=reason))
        return found

    def _event(
        self, index: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null"
    ) -> bytes:
        return b'%s{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":%s}%s' % (
            self._head,
            index,
            delta,
            logprobs,
            finish,
            self._tail,
        )


def _choice(index: int, result: GenerateResult) -> schema.Choice:
    message = schema.AnsweredMessage(content=result.text)
    if result.reasoning:
        message.reasoning_content = result.reasoning
    if result.tool_calls:
        message.content = result.text or None
        message.tool_calls = [tool_call_of(call) for call in result.tool_calls]
    return schema.Choice(
        index=index,
        message=message,
        logprobs=logprobs_of(result.logprobs) if result.logprobs else None,
        finish_reason=result.finish_reason,
    )


def tool_call_of(call: ToolCall) -> schema.CalledTool:
    """A tool call in OpenAI's shape."""
    function = schema.CalledFunction(name=call.name, arguments=call.arguments)
    return schema.CalledTool(id=call.id, type="function", function=function)


def _tool_delta(piece: ToolCallDelta) -> schema.ToolCallDelta:
    function = schema.FunctionDelta(arguments=piece.arguments)
    delta = schema.ToolCallDelta(index=piece.index, function=function)
    if piece.name:
        function.name = piece.name
    if piece.id:
        delta.id = piece.id
        delta.type = "function"
    return delta


def logprobs_of(tokens: Sequence[EngineLogprob]) -> schema.Logprobs:
    """Log-probabilities in OpenAI's shape."""
    return schema.Logprobs(
        content=[
            schema.TokenLogprob(
                token=token.token,
                logprob=token.logprob,
                bytes=list(token.token.encode()),
                top_logprobs=[
                    schema.TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()))
                    for text, _, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )


def usage_of(usages: Sequence[EngineUsage]) -> schema.Usage:
    """The tokens of `n` answers: the prompt counts once."""
    prompt = max((usage.prompt_tokens for usage in usages), default=0)
    completion = sum(usage.completion_tokens for usage in usages)
    return schema.Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )


def shown_model(call: Call, asked: str) -> str:
    """The model's name in an answer: the caller's own, or that of the model that stood in."""
    return call.model if call.fallbacks else asked


OPERATIONS = [
    Operation(
        name="chat",
        method="POST",
        path="/v1/chat/completions",
        summary="Answer a conversation",
        handler=chat_completions,
        body=schema.ChatCompletionRequest,
        extra=True,
        answer=schema.ChatCompletion,
        event=schema.ChatCompletionChunk,
    )
]
