"""One call of `chat_oai` or its kin: what was asked, and the exchange that answers it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from byzerllm.client.chat import (
    Conversations,
    build_request,
    prompt_text,
    to_response,
    without_image,
)
from byzerllm.client.exchange import META, Conversation, Exchange
from byzerllm.client.media import (
    MediaRequest,
    media_of,
    media_request,
    media_responses,
    speech_request,
    transcribe_request,
)
from byzerllm.client.settings import ModelSettings
from byzerllm.client.types import LLMResponse
from byzerllm.errors import ParameterError
from byzerllm.messages import normalise, with_image
from byzerllm.recordings import last_recording, of_fields
from byzerllm.requests import GenerateRequest, ModelMeta, StreamRequest

Plan = Callable[[Conversation], Exchange]


@dataclass(frozen=True, kw_only=True)
class ChatCall:
    """The parameters of one call, checked, before it is known which model answers it.

    Attributes:
        plan: makes the exchange of a chat of several steps; None for a plain one.
        config: the call's `llm_config`.
        extra: the call's `extra_request_params`.
        only_prompt: stop before anything is sent and return the prompt.
    """

    conversations: Conversations
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    role_mapping: Mapping[str, str] | None = None
    default_system: bool = True
    plan: Plan | None = None
    only_prompt: bool = False

    @property
    def timeout(self) -> float | None:
        """Seconds that the caller allows; None leaves it to the settings."""
        if "timeout" not in self.extra:
            return None
        try:
            seconds = float(self.extra["timeout"])
        except (TypeError, ValueError):
            seconds = 0.0
        if seconds <= 0:
            raise ParameterError.invalid(
                "timeout",
                f"seconds above 0 (got {self.extra['timeout']!r})",
                where="extra_request_params",
            )
        return seconds

    def exchange(self, model: str, settings: ModelSettings) -> Exchange:
        """The steps that answer the call with this model."""
        if self.plan is not None:
            conversation = self._conversation(model, settings, (yield META))
            steps = self.plan(conversation)
            return _first_prompt(steps) if self.only_prompt else (yield from steps)
        request = yield from self._media()
        if request is not None:
            return media_responses(request, (yield request), model)
        chat = self.request(settings)
        if self.only_prompt:
            return [LLMResponse(output="", input=prompt_text(chat))]
        return [to_response(chat, (yield chat), settings, model)]

    def _media(self) -> Generator[Any, Any, MediaRequest | None]:
        """The request of a message that is no chat, as far as the model does such things."""
        media = media_of(self.conversations)
        recording = None if media is not None else last_recording(self.conversations)
        if media is None and recording is None:
            return None
        meta: ModelMeta = yield META
        if meta.task == "transcription":
            return transcribe_request(recording or of_fields(media or {}), self.config, self.extra)
        return None if media is None else media_request(meta.task, media, self.extra)

    def stream(
        self, settings: ModelSettings, meta: ModelMeta | Callable[[], ModelMeta]
    ) -> StreamRequest:
        """The request of a stream; `meta` is asked only where the message may be one to speak."""
        media = media_of(self.conversations)
        if media is None:
            return self.request(settings, stream=True)
        known = meta if isinstance(meta, ModelMeta) else meta()
        return speech_request(known.task, media, self.extra) or self.request(settings, stream=True)

    def request(self, settings: ModelSettings, *, stream: bool = False) -> GenerateRequest:
        return build_request(
            self.conversations,
            settings,
            llm_config=self.config,
            role_mapping=self.role_mapping,
            default_system=self.default_system,
            extra=self.extra,
            stream=stream,
        )

    def _conversation(self, model: str, settings: ModelSettings, meta: ModelMeta) -> Conversation:
        config, image = without_image(self.config)
        messages = normalise(self.conversations)
        return Conversation(
            model=model,
            settings=settings,
            meta=meta,
            messages=with_image(messages, image) if image is not None else messages,
            config=config,
            extra=self.extra,
            role_mapping=self.role_mapping,
            default_system=self.default_system,
        )


def plan_of(
    *,
    tools: Sequence[Any],
    tool_choice: Any,
    execute_tool: bool,
    func_params: Mapping[str, Any] | None,
    response_class: Any,
    response_after_chat: bool,
    impl_func: Any,
    impl_func_params: Mapping[str, Any] | None,
    execute_impl_func: bool,
) -> Plan | None:
    """Which kind of chat is asked for; None for a plain one.

    Raises:
        ParameterError: two kinds at once, or a parameter of a kind that is not asked for.
    """
    if impl_func is not None:
        if tools or tool_choice is not None:
            raise ParameterError("chat_oai takes tools or impl_func, not both")
        from byzerllm.client.implement import implement_exchange

        return functools.partial(
            implement_exchange,
            func=impl_func,
            params=impl_func_params,
            execute=execute_impl_func,
            response_class=response_class,
        )
    _refuse_alone(
        "impl_func", execute_impl_func=execute_impl_func, impl_func_params=impl_func_params
    )
    if tools or callable(tool_choice):
        if response_class is not None:
            raise ParameterError(
                "chat_oai takes tools or response_class, not both; ask for the class in a second "
                "call with what the tools returned"
            )
        from byzerllm.client.tools import Toolbox, function_exchange

        toolbox = Toolbox.of(tools, tool_choice, func_params)
        return functools.partial(function_exchange, toolbox=toolbox, execute=execute_tool)
    _refuse_alone("tools", execute_tool=execute_tool, func_params=func_params)
    if tool_choice not in (None, "auto", "none"):
        raise ParameterError("tool_choice needs tools", parameter="tool_choice")
    if response_class is not None:
        from byzerllm.client.schema import type_adapter
        from byzerllm.client.structured import structured_exchange

        type_adapter(response_class)
        return functools.partial(
            structured_exchange, response_class=response_class, after_chat=response_after_chat
        )
    _refuse_alone("response_class", response_after_chat=response_after_chat)
    return None


def _refuse_alone(needed: str, **given: Any) -> None:
    for name, value in given.items():
        if value:
            raise ParameterError(f"{name} needs {needed}", parameter=name)


def _first_prompt(steps: Exchange) -> list[LLMResponse]:
    step = next(steps)
    steps.close()
    assert isinstance(step, GenerateRequest)
    return [LLMResponse(output="", input=prompt_text(step))]
