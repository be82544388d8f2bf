"""A chat as the models are asked, whatever API it came by."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from byzerllm.client.tools import text_messages
from byzerllm.errors import CapabilityError, listed
from byzerllm.messages import normalise
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    ModelMeta,
    ToolCallDelta,
)
from byzerllm_server.api.sampling import sampling_params
from byzerllm_server.errors import HTTPError
from byzerllm_server.operations import Context
from byzerllm_server.words import called_in_words

_WITHOUT_TOOLS = (None, "none", "auto")


class Question:
    """One request for each of the `n` answers to a chat.

    Args:
        messages: in OpenAI's shape.
        config: sampling parameters by the client's names.
        tools: function schemas in OpenAI's shape; a model that has no tools of its own is asked
            for calls in words.
        tool_choice: in OpenAI's shape.
        parallel: an answer may have several calls; else the first one alone is passed on.

    Raises:
        CapabilityError: the model does not chat.
        HTTPError, ParameterError: it cannot be asked so.
    """

    def __init__(
        self,
        context: Context,
        meta: ModelMeta,
        messages: Sequence[dict[str, Any]],
        config: dict[str, Any],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: Any = None,
        parallel: bool = True,
    ) -> None:
        if not _answers_chats(meta):
            raise CapabilityError(
                f"model {context.call.asked!r} does {meta.task}, not chat", parameter="model"
            )
        _check_choice(tools, tool_choice)
        self._gateway = context.server.gateway
        self.call = context.call
        self.n = n
        self._messages = normalise(messages, short_forms=False)
        if not meta.tools:
            # Calls and results of before are told in words, too.
            self._messages = text_messages(self._messages)
        if meta.model_deploy_type == "proprietary":
            # Chat templates know no developer.
            for message in self._messages:
                if message["role"] == "developer":
                    message["role"] = "system"
        self._config = config
        self._tools = list(tools) if tool_choice != "none" else []
        self._tool_choice = tool_choice
        self._parallel = parallel
        self._in_words = bool(self._tools) and not meta.tools
        # Checked here, so that a stream with a wrong value is refused with its own status.
        sampling_params(config)

    async def answer(self, index: int = 0) -> GenerateResult:
        """The whole answer number `index`."""
        if self._in_words:
            result = await self._ask_in_words(index)
        else:
            sent = await self._gateway.send(self.call, self._request(index, False))
            assert isinstance(sent, GenerateResult)
            result = sent
        if not self._parallel:
            del result.tool_calls[1:]
        return result

    async def chunks(self, index: int = 0) -> AsyncGenerator[GenerateChunk, None]:
        """The pieces of answer number `index`. Closing stops the generation."""
        if self._in_words:
            yield as_chunk(await self.answer(index))
            return
        stream = self._gateway.stream(self.call, self._request(index, True))
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                if not self._parallel and chunk.tool_calls:
                    chunk.tool_calls = [call for call in chunk.tool_calls if not call.index]
                yield chunk

    def _request(self, index: int, stream: bool) -> GenerateRequest:
        return GenerateRequest(
            id=f"{self.call.id}-{index}" if index else self.call.id,
            messages=self._messages,
            sampling=sampling_params(self._config, index),
            tools=self._tools,
            tool_choice=self._tool_choice if self._tools else None,
            stream=stream,
        )

    async def _ask_in_words(self, index: int) -> GenerateResult:
        return await called_in_words(
            self._gateway,
            self.call,
            self._messages,
            self._config,
            tools=self._tools,
            tool_choice=self._tool_choice,
            index=index,
        )


def keep_to_json(
    config: dict[str, Any], json_schema: dict[str, Any], meta: ModelMeta, *, parameter: str
) -> None:
    """Have the answer be JSON of a schema; changes `config`.

    Args:
        parameter: the request's field that asked for it.

    Raises:
        CapabilityError: the model cannot.
    """
    if not meta.constrained:
        raise CapabilityError(
            f"{parameter}: this model cannot be kept to JSON; leave it out and ask for JSON in "
            "words",
            parameter=parameter,
        )
    config["json_schema"] = json_schema


def think(config: dict[str, Any], meta: ModelMeta, effort: str | None) -> None:
    """How hard the model thinks; changes `config`. A vendor reads the parameter, a chat template
    the variable, which one that does not know it leaves alone."""
    if effort is None:
        return
    if meta.model_deploy_type == "saas":
        config["reasoning_effort"] = effort
    else:
        set_variable(config, "reasoning_effort", effort)


def set_variable(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a variable of the chat template, where the caller has not; changes `config`."""
    config["chat_template_kwargs"] = {name: value, **config.get("chat_template_kwargs", {})}


def check_object(shape: dict[str, Any], where: str) -> None:
    """Refuse a schema of a function's arguments that is not that of an object."""
    if shape.get("type") != "object":
        raise HTTPError(
            400,
            f"{where}.type: 'object' is needed, for arguments have names",
            code="invalid_value",
            parameter=f"{where}.type",
        )


def as_chunk(result: GenerateResult) -> GenerateChunk:
    """A whole answer as the one chunk of a stream."""
    return GenerateChunk(
        text=result.text,
        reasoning=result.reasoning,
        logprobs=result.logprobs,
        tool_calls=[
            ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
            for index, call in enumerate(result.tool_calls)
        ],
        finish_reason=result.finish_reason,
        stop_text=result.stop_text,
        usage=result.usage,
    )


def _answers_chats(meta: ModelMeta) -> bool:
    """Our own models of pictures answer chats, too: with the pictures, as JSON."""
    draws = meta.task == "image" and meta.model_deploy_type == "proprietary"
    return meta.task == "chat" or draws


def _check_choice(tools: Sequence[dict[str, Any]], choice: Any) -> None:
    if choice in _WITHOUT_TOOLS:
        return
    if not tools:
        raise HTTPError(400, "tool_choice needs tools", parameter="tool_choice")
    if isinstance(choice, dict):
        names = [tool["function"]["name"] for tool in tools]
        name = choice["function"]["name"]
        if name not in names:
            raise HTTPError(
                400,
                f"tool_choice: there is no tool {name!r}; there are: {listed(names)}",
                parameter="tool_choice",
            )
