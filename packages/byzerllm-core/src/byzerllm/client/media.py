"""Speech, images and transcription through `chat_oai`: the seed's form, a last message that is the
JSON text of `{"input": "…", "voice": "…", "response_format": "mp3"}` or
`{"input": "…", "size": "1024x1024"}`, and recordings (see `byzerllm.recordings`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from byzerllm.client.chat import new_request_id
from byzerllm.client.types import LLMResponse, Metadata
from byzerllm.errors import ParameterError
from byzerllm.recordings import Recording
from byzerllm.requests import (
    ImageRequest,
    ImageResult,
    SpeechRequest,
    SpeechResult,
    Task,
    TranscribeRequest,
    TranscribeResult,
)

MediaRequest = SpeechRequest | ImageRequest | TranscribeRequest
MediaResult = SpeechResult | ImageResult | TranscribeResult

_SPEECH = {"voice": str, "speed": float}
_IMAGE = {"size": str, "quality": str, "n": int}
_TRANSCRIPTION = {"language": str, "prompt": str, "format": str}


def media_of(conversations: str | Sequence[Any]) -> dict[str, Any] | None:
    """The object in the last message when it has the seed's form, else None. Cheap: it runs for
    every chat."""
    if isinstance(conversations, str):
        content: Any = conversations
    elif conversations and isinstance(conversations, Sequence):
        last = conversations[-1]
        content = last.get("content") if isinstance(last, Mapping) else None
    else:
        return None
    if not isinstance(content, str) or content.lstrip()[:1] != "{" or '"input"' not in content:
        return None
    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("input"), str) else None


def media_request(
    task: Task, given: Mapping[str, Any], extra: Mapping[str, Any]
) -> MediaRequest | None:
    """The request of a model that speaks or draws; None for a chat model, to which the text is a
    text like any other.

    Raises:
        ParameterError: an empty `input`, or a value of the wrong type.
    """
    fields = dict(given)
    text = fields.pop("input")
    id_, rest = _id_and_rest(extra)
    if task in ("speech", "image") and not text.strip():
        raise ParameterError("the input is empty", parameter="input")
    if task == "speech":
        format_ = str(fields.pop("response_format", "") or "mp3")
        known = _taken(fields, _SPEECH)
        return SpeechRequest(id=id_, text=text, format=format_, extra={**fields, **rest}, **known)
    if task == "image":
        fields.pop("response_format", None)
        known = _taken(fields, _IMAGE)
        return ImageRequest(id=id_, prompt=text, extra={**fields, **rest}, **known)
    return None


def speech_request(
    task: Task, given: Mapping[str, Any], extra: Mapping[str, Any]
) -> SpeechRequest | None:
    """The streamed request of a model that speaks, None for any other."""
    if task != "speech":
        return None
    request = media_request(task, given, extra)
    assert isinstance(request, SpeechRequest)
    request.stream = True
    return request


def transcribe_request(
    recording: Recording, config: Mapping[str, Any], extra: Mapping[str, Any]
) -> TranscribeRequest:
    """The request of a model that writes down speech. `language` and `prompt` come from the
    message, from `llm_config` or from `extra_request_params`, the last one winning.

    Raises:
        ParameterError: the recording is not base64, or a value has the wrong type.
    """
    id_, rest = _id_and_rest(extra)
    bare = {key.removeprefix("gen.").removeprefix("generation."): v for key, v in config.items()}
    given = {"prompt": recording.text, "format": recording.format, **recording.options}
    fields = {**given, **bare, **rest}
    known = _taken(fields, _TRANSCRIPTION)
    return TranscribeRequest(id=id_, audio=recording.data(), extra=fields, **known)


def _id_and_rest(extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    id_ = str(extra["request_id"]) if "request_id" in extra else new_request_id()
    return id_, {key: value for key, value in extra.items() if key not in ("request_id", "timeout")}


def _taken(fields: dict[str, Any], types: Mapping[str, type[Any]]) -> dict[str, Any]:
    """The fields of given types, taken out of `fields`."""
    taken: dict[str, Any] = {}
    for name, kind in types.items():
        if name not in fields:
            continue
        value = fields.pop(name)
        try:
            taken[name] = msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            raise ParameterError.invalid(name, f"{error} (got {value!r})", where="input") from None
    return taken


def media_responses(request: MediaRequest, result: MediaResult, model: str) -> list[LLMResponse]:
    """What `chat_oai` returns: audio and images as base64 text, one response per image."""
    metadata = Metadata(
        request_id=request.id,
        model=model,
        input_tokens_count=0,
        generated_tokens_count=0,
        time_cost=result.elapsed,
        first_token_time=0.0,
        speed=0.0,
        finish_reason="stop",
        reasoning_content="",
    )
    if isinstance(result, TranscribeResult):
        metadata.update(
            language=result.language, segments=result.segments, duration=result.duration
        )
        return [LLMResponse(output=result.text, metadata=metadata)]
    if isinstance(result, SpeechResult):
        metadata.update(
            format=result.format,
            first_token_time=result.first_token,
            input_tokens_count=result.usage.prompt_tokens,
            generated_tokens_count=result.usage.completion_tokens,
        )
        assert isinstance(request, SpeechRequest)
        audio = base64.b64encode(result.audio).decode()
        return [LLMResponse(output=audio, input=request.text, metadata=metadata)]
    assert isinstance(request, ImageRequest)
    metadata.update(format=result.format, revised_prompt=result.revised_prompt)
    return [
        LLMResponse(
            output=base64.b64encode(image).decode(),
            input=request.prompt,
            metadata=Metadata(metadata),
        )
        for image in result.images
    ]
