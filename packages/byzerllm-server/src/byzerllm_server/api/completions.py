"""`/v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from byzerllm.requests import GenerateChunk, GenerateRequest, GenerateResult, TokenLogprob
from byzerllm.requests import Usage as EngineUsage
from byzerllm_server.api.chat import DONE, shown_model, usage_of
from byzerllm_server.api.merging import merged, together
from byzerllm_server.api.sampling import sampling_config, sampling_params
from byzerllm_server.calls import new_id
from byzerllm_server.events import EventStream, event
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import openai as schema

encode = msgspec.json.encode


async def completions(context: Context, body: schema.CompletionRequest) -> Response:
    call = context.call
    context.server.gateway.open(call, body.model)
    work = _Work(context, body)
    if body.stream:
        call.stream = True
        return EventStream(work.events(), call, ping_seconds=context.server.settings.ping_seconds)
    results = await together([work.answer(index) for index in range(work.count)])
    answer = schema.Completion(
        id=new_id("cmpl-"),
        created=int(time.time()),
        model=shown_model(call, body.model),
        choices=[
            schema.CompletionChoice(
                index=index,
                text=result.text,
                logprobs=_logprobs(result.logprobs, 0) if result.logprobs else None,
                finish_reason=_finish(result.finish_reason),
            )
            for index, result in enumerate(results)
        ],
        usage=work.usage([result.usage for result in results]),
    )
    return Response(encode(answer), media_type="application/json")


class _Work:
    """Prompts times `n` answers, numbered through."""

    def __init__(self, context: Context, body: schema.CompletionRequest) -> None:
        self._gateway = context.server.gateway
        self._call = context.call
        self._body = body
        self._prompts = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
        self._n = body.n or 1
        self.count = len(self._prompts) * self._n
        self._config = sampling_config(body, context.extra)
        if body.logprobs is not None:
            self._config["logprobs"] = body.logprobs
        sampling_params(self._config)

    def _request(self, index: int, stream: bool) -> GenerateRequest:
        return GenerateRequest(
            id=f"{self._call.id}-{index}" if index else self._call.id,
            prompt=self._prompts[index // self._n],
            sampling=sampling_params(self._config, index % self._n),
            stream=stream,
        )

    async def answer(self, index: int) -> GenerateResult:
        result = await self._gateway.send(self._call, self._request(index, False))
        assert isinstance(result, GenerateResult)
        return result

    def usage(self, usages: Sequence[EngineUsage]) -> schema.Usage:
        """Each prompt counts once, whatever `n` is."""
        parts = [usage_of(usages[at : at + self._n]) for at in range(0, len(usages), self._n)]
        prompt = sum(part.prompt_tokens for part in parts)
        completion = sum(part.completion_tokens for part in parts)
        return schema.Usage(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        body = self._body
        include = bool(body.stream_options and body.stream_options.include_usage)
        id_, created = new_id("cmpl-"), int(time.time())
        usages = [EngineUsage()] * self.count
        offsets = [0] * self.count

        def written(**fields: Any) -> bytes:
            model = shown_model(self._call, body.model)
            piece = schema.Completion(id=id_, created=created, model=model, **fields)
            if include and piece.usage is msgspec.UNSET:
                piece.usage = None
            return event(piece)

        streams = [
            self._gateway.stream(self._call, self._request(index, True))
            for index in range(self.count)
        ]
        async with aclosing(merged(streams)) as chunks:
            async for index, chunk in chunks:
                if chunk.usage is not None:
                    usages[index] = chunk.usage
                if chunk.text or chunk.finish_reason is not None:
                    yield written(choices=[self._choice(index, chunk, offsets[index])])
                offsets[index] += len(chunk.text)
        if include:
            yield written(choices=[], usage=self.usage(usages))
        yield DONE

    @staticmethod
    def _choice(index: int, chunk: GenerateChunk, offset: int) -> schema.CompletionChoice:
        return schema.CompletionChoice(
            index=index,
            text=chunk.text,
            logprobs=_logprobs(chunk.logprobs, offset) if chunk.logprobs else None,
            finish_reason=_finish(chunk.finish_reason) if chunk.finish_reason else None,
        )


def _finish(reason: str) -> Any:
    return "stop" if reason == "tool_calls" else reason


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> schema.CompletionLogprobs:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return schema.CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{text: logprob for text, _, logprob in token.top} for token in tokens],
        text_offset=offsets,
    )


OPERATIONS = [
    Operation(
        name="completions",
        method="POST",
        path="/v1/completions",
        summary="Go on with a text",
        handler=completions,
        body=schema.CompletionRequest,
        extra=True,
        answer=schema.Completion,
        event=schema.Completion,
    )
]
