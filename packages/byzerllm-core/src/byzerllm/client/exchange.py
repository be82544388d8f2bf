"""Chats that take several steps: tool calls, pydantic answers, generated functions.

Such a chat is written once, as a generator that yields what it needs done and is sent what came of
it; `ByzerLLM` drives it, from synchronous and from asynchronous code alike. The pattern is known
as sans-I/O (https://sans-io.readthedocs.io).
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from byzerllm.client.chat import build_request, to_response
from byzerllm.client.media import MediaRequest
from byzerllm.client.settings import ModelSettings
from byzerllm.client.types import LLMResponse
from byzerllm.messages import Message, text_of
from byzerllm.requests import GenerateRequest, GenerateResult, ModelMeta
from byzerllm.runtime.background import background_loop


@dataclass(frozen=True)
class Run:
    """A step that runs the user's or generated code: blocking, or a coroutine function.

    The driver of an asynchronous chat runs what blocks in a thread. What `function` raises is
    raised at the `yield`.
    """

    function: Callable[[], Any]


class Meta(enum.Enum):
    """A step that asks what the model is; there is one, `META`."""

    META = enum.auto()


META = Meta.META
Step = GenerateRequest | MediaRequest | Meta | Run
Exchange = Generator[Step, Any, list[Any]]
"""Yields a request and is sent its result, `META` and is sent the `ModelMeta`, or a `Run` and is
sent what it returned; returns what `chat_oai` returns."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One `chat_oai` call that takes several steps.

    Attributes:
        model: the deployment's name.
        settings: what `setup_*` said of it.
        meta: what the model is.
        messages: the conversation so far, normalised.
        config: the call's `llm_config`.
        extra: the call's `extra_request_params`; a `request_id` in it is the first step's.
    """

    model: str
    settings: ModelSettings
    meta: ModelMeta
    messages: list[Message]
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    role_mapping: Mapping[str, str] | None = None
    default_system: bool = True

    @property
    def question(self) -> str:
        """The text of the last message."""
        return text_of(self.messages[-1].get("content"))

    def asking(self, question: str) -> list[Message]:
        """The messages with the last one's text replaced; its other parts stay."""
        last = self.messages[-1]
        content = last.get("content")
        changed: str | list[Any] = question
        if not isinstance(content, str) and content:
            others = [part for part in content if part.get("type") != "text"]
            changed = [{"type": "text", "text": question}, *others]
        return [*self.messages[:-1], {**last, "content": changed}]

    def request(
        self,
        messages: Sequence[Message] | None = None,
        *,
        json_schema: dict[str, Any] | None = None,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: str | dict[str, Any] | None = None,
    ) -> GenerateRequest:
        """The request of one step. `json_schema` constrains the answer where the model can.

        The first request of a conversation has the caller's `request_id`, the others their own.
        """
        request = build_request(
            self.messages if messages is None else messages,
            self.settings,
            llm_config=self.config,
            role_mapping=self.role_mapping,
            default_system=self.default_system,
            extra=self.extra,
        )
        if json_schema is not None and self.meta.constrained:
            sampling = msgspec.structs.replace(request.sampling, json_schema=json_schema)
            request.sampling = sampling
        request.tools = list(tools)
        request.tool_choice = tool_choice
        return request

    def again(self, messages: Sequence[Message], **options: Any) -> GenerateRequest:
        """`request` for a further step: its id is another one."""
        extra = {key: value for key, value in self.extra.items() if key != "request_id"}
        return replace(self, extra=extra).request(messages, **options)

    def response(self, request: GenerateRequest, result: GenerateResult) -> LLMResponse:
        return to_response(request, result, self.settings, self.model)


def drive(exchange: Exchange, answer: Callable[[Any], Any]) -> list[Any]:
    """Run an exchange from synchronous code.

    Args:
        answer: gives the result of a request, and the `ModelMeta` for `META`.
    """
    try:
        step = next(exchange)
        while True:
            try:
                outcome = _run(step.function) if isinstance(step, Run) else answer(step)
            except Exception as error:
                step = exchange.throw(error)
            else:
                step = exchange.send(outcome)
    except StopIteration as end:
        return list(end.value)
    finally:
        exchange.close()


async def drive_async(
    exchange: Exchange, answer: Callable[[Any], Coroutine[Any, Any, Any]]
) -> list[Any]:
    """`drive` from asynchronous code; cancelling ends it at the step that runs."""
    try:
        step = next(exchange)
        while True:
            try:
                if isinstance(step, Run):
                    outcome = await _run_async(step.function)
                else:
                    outcome = await answer(step)
            except Exception as error:
                step = exchange.throw(error)
            else:
                step = exchange.send(outcome)
    except StopIteration as end:
        return list(end.value)
    finally:
        exchange.close()


def _run(function: Callable[[], Any]) -> Any:
    outcome = function()
    if inspect.isawaitable(outcome):
        return background_loop().run(_awaited(outcome))
    return outcome


async def _run_async(function: Callable[[], Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function()
    outcome = await asyncio.to_thread(function)
    return await outcome if inspect.isawaitable(outcome) else outcome


async def _awaited(outcome: Awaitable[Any]) -> Any:
    return await outcome
