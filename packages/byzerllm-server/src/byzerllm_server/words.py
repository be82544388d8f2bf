"""Tool calls of models that have none of their own: asked for in words, kept to JSON where the
engine can."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from byzerllm.requests import GenerateResult, ToolCall, Usage
from byzerllm_server.calls import Call
from byzerllm_server.gateway import Gateway


async def called_in_words(
    gateway: Gateway,
    call: Call,
    messages: Sequence[dict[str, Any]],
    config: Mapping[str, Any],
    *,
    tools: Sequence[dict[str, Any]],
    tool_choice: Any,
    index: int,
) -> GenerateResult:
    """An answer with the tool calls that the client's function calling finds in it."""
    call.sent = call.sent or time.perf_counter()
    config = {**config, "seed": config["seed"] + index} if config.get("seed") else config
    (answer,) = await gateway.client.async_chat_oai(
        list(messages),
        tools=list(tools),
        tool_choice=tool_choice,
        model=call.model,
        llm_config=config,
        extra_request_params={
            "request_id": f"{call.id}-{index}" if index else call.id,
            "timeout": gateway.timeout,
        },
    )
    metadata = answer.metadata
    usage = Usage(
        prompt_tokens=metadata["input_tokens_count"],
        completion_tokens=metadata["generated_tokens_count"],
    )
    result = GenerateResult(
        text="" if answer.tool_calls else answer.response.output,
        finish_reason=metadata["finish_reason"],
        usage=usage,
        tool_calls=[
            ToolCall(
                id=made.id,
                name=made.name,
                arguments=msgspec.json.encode(made.arguments).decode(),
            )
            for made in answer.tool_calls
        ],
        elapsed=metadata["time_cost"],
    )
    gateway.note(call, result)
    return result
