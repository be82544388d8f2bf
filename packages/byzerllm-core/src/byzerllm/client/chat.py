"""Conversations to requests, and results to what users read."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from byzerllm.client.settings import ModelSettings
from byzerllm.client.types import LLMResponse, Metadata
from byzerllm.errors import ContextLengthError
from byzerllm.messages import normalise, text_of, with_image
from byzerllm.requests import (
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    SamplingParams,
    SpeechRequest,
    StreamRequest,
    TokenLogprob,
    Usage,
)
from byzerllm.templates import unchanged

Conversations = str | Sequence[Any]

_EMPTY: Mapping[str, Any] = {}


_PROCESS = uuid.uuid4().hex[:20]
_request_numbers = itertools.count(1)


def new_request_id() -> str:
    """Unique among processes, and cheap: a random id per request costs more than the rest."""
    return f"{_PROCESS}{next(_request_numbers):012x}"


def build_request(
    conversations: Conversations,
    settings: ModelSettings,
    *,
    llm_config: Mapping[str, Any],
    role_mapping: Mapping[str, str] | None = None,
    default_system: bool = True,
    extra: Mapping[str, Any] = _EMPTY,
    stream: bool = False,
) -> GenerateRequest:
    """The request for one answer.

    With a template the prompt is rendered here; without one the messages go to the engine, which
    uses its own chat template.

    Raises:
        ParameterError, TemplateError, ContextLengthError: before anything is sent.
    """
    messages = normalise(conversations)
    config, image = without_image(llm_config)
    if image is not None:
        messages = with_image(messages, image)
    sampling = _sampling(settings, config)
    request = GenerateRequest(
        id=str(extra["request_id"]) if "request_id" in extra else new_request_id(),
        sampling=sampling,
        stream=stream,
        extra={k: v for k, v in extra.items() if k not in ("request_id", "timeout")},
    )
    if settings.template is None:
        request.messages = messages
    else:
        request.prompt = _render(messages, settings, role_mapping, default_system)
    _check_length(request, settings)
    return request


def without_image(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """An `llm_config` and the seed's `image` in it."""
    for key in ("image", "gen.image", "generation.image"):
        if key in config:
            return {k: v for k, v in config.items() if k != key}, config[key]
    return config, None


def _sampling(settings: ModelSettings, config: Mapping[str, Any]) -> SamplingParams:
    template = settings.template
    if template is None:
        sampling = SamplingParams.parse(settings.generation, config)
    else:
        layers = ({"stop": list(template.stop), "stop_token_ids": list(template.stop_token_ids)},)
        sampling = SamplingParams.parse(*layers, settings.generation, config)
    limit = settings.max_output_length
    if limit is not None and (sampling.max_tokens or limit + 1) > limit:
        return msgspec.structs.replace(sampling, max_tokens=limit)
    return sampling


def _render(
    messages: list[dict[str, Any]],
    settings: ModelSettings,
    role_mapping: Mapping[str, str] | None,
    default_system: bool,
) -> str:
    template = settings.template
    assert template is not None
    mapping = role_mapping or settings.role_mapping
    if mapping:
        template = template.with_roles(mapping)
    if default_system and template.default_system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": template.default_system}, *messages]
    return template.apply(messages)


def _check_length(request: GenerateRequest, settings: ModelSettings) -> None:
    limit = settings.max_input_length
    if limit is None:
        return
    size = len(prompt_text(request))
    if size > limit:
        raise ContextLengthError(
            f"the conversation has {size} characters; setup_max_input_length allows {limit}"
        )


def prompt_text(request: GenerateRequest) -> str:
    """What the model is given, as far as the caller knows it: the prompt, or the last message."""
    if request.prompt is not None:
        return request.prompt
    return text_of(request.messages[-1].get("content")) if request.messages else ""


def to_response(
    request: GenerateRequest, result: GenerateResult, settings: ModelSettings, model: str
) -> LLMResponse:
    """What `chat_oai` returns for a result."""
    metadata = _metadata(request, model)
    _fill(
        metadata,
        usage=result.usage,
        finish_reason=result.finish_reason,
        elapsed=result.elapsed,
        first_token=result.first_token,
        reasoning=result.reasoning,
    )
    if result.logprobs:
        metadata["logprobs"] = [_logprob(item) for item in result.logprobs]
    if result.tool_calls:
        metadata["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in result.tool_calls
        ]
    text = result.text if settings.template is None else settings.template.clean(result.text)
    return LLMResponse(output=text, input=prompt_text(request), metadata=metadata)


class StreamReader:
    """Turns chunks into what `stream_chat_oai` yields.

    The pieces of a stream add up to the text that `chat_oai` returns for the same answer.

    Args:
        clean: the template's cleaner, None without a template.
    """

    def __init__(
        self,
        request: StreamRequest,
        model: str,
        delta_mode: bool,
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.metadata = _metadata(request, model)
        self._speaks = isinstance(request, SpeechRequest)
        self._delta = delta_mode
        self._clean = None if clean is unchanged else clean
        self._partial: Callable[[str], str] | None = getattr(clean, "partial", self._clean)
        self._whole = ""
        self._shown = ""
        self._reasoning = ""
        self._start = time.monotonic()
        self._first = 0.0

    def read(self, chunk: GenerateChunk) -> str | bytes | None:
        """The text (or the audio) that the user sees next; None when the chunk brings none."""
        metadata = self.metadata
        if not self._first and (chunk.text or chunk.reasoning or chunk.audio):
            self._first = time.monotonic() - self._start
            metadata["first_token_time"] = self._first
        if chunk.reasoning:
            self._reasoning += chunk.reasoning
            metadata["reasoning_content"] = self._reasoning
        if chunk.logprobs:
            metadata.setdefault("logprobs", []).extend(_logprob(item) for item in chunk.logprobs)
        metadata["generated_tokens_count"] += len(chunk.token_ids)
        self._whole += chunk.text
        last = chunk.finish_reason is not None
        if chunk.finish_reason is not None:
            _fill(
                metadata,
                usage=chunk.usage or Usage(completion_tokens=metadata["generated_tokens_count"]),
                finish_reason=chunk.finish_reason,
                elapsed=chunk.elapsed,
                first_token=self._first,
                reasoning=self._reasoning,
            )
        if self._speaks:
            return chunk.audio or None
        if self._clean is None:
            text = chunk.text if self._delta else self._whole
            return text if chunk.text or chunk.reasoning or last else None
        text = self._cleaned(last)
        return text if text or chunk.reasoning or last else None

    def _cleaned(self, last: bool) -> str:
        """What cleaning lets through now; empty when that is nothing new."""
        clean = self._clean if last else self._partial
        assert clean is not None
        text, before = clean(self._whole), self._shown
        if not self._delta:
            self._shown = text
            return text if last or text != before else ""
        if not text.startswith(before):
            # A cleaner that takes back what was shown: a piece cannot.
            return ""
        self._shown = text
        return text[len(before) :]


def _metadata(request: StreamRequest, model: str) -> Metadata:
    return Metadata(
        request_id=request.id,
        model=model,
        input_tokens_count=0,
        generated_tokens_count=0,
        time_cost=0.0,
        first_token_time=0.0,
        speed=0.0,
        finish_reason=None,
        reasoning_content="",
    )


def _fill(
    metadata: Metadata,
    *,
    usage: Usage,
    finish_reason: str,
    elapsed: float,
    first_token: float,
    reasoning: str,
) -> None:
    metadata["input_tokens_count"] = usage.prompt_tokens
    metadata["generated_tokens_count"] = usage.completion_tokens
    metadata["time_cost"] = elapsed
    metadata["first_token_time"] = first_token
    metadata["speed"] = usage.completion_tokens / elapsed if elapsed > 0 else 0.0
    metadata["finish_reason"] = finish_reason
    metadata["reasoning_content"] = reasoning


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    top = [{"token": text, "id": id_, "logprob": value} for text, id_, value in item.top]
    return {"token": item.token, "id": item.id, "logprob": item.logprob, "top_logprobs": top}
