"""`/v1/audio/speech` and `/v1/audio/transcriptions`."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response

from byzerllm.errors import CapabilityError
from byzerllm.requests import (
    GenerateChunk,
    SpeechRequest,
    TranscribeRequest,
    TranscribeResult,
    Usage,
)
from byzerllm_server.byte_stream import ByteStream
from byzerllm_server.errors import HTTPError
from byzerllm_server.events import EventStream, event
from byzerllm_server.forms import Upload
from byzerllm_server.operations import Context, Operation
from byzerllm_server.schemas import media as schema

encode = msgspec.json.encode
_SOUNDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_FILES = frozenset({"flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm"})


async def speech(context: Context, body: schema.SpeechRequest) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    format_ = body.response_format or "mp3"
    voice = body.voice.id if isinstance(body.voice, schema.Voice) else body.voice
    request = SpeechRequest(
        id=call.id,
        text=body.input,
        voice=voice or "",
        format=format_,
        speed=1.0 if body.speed is None else body.speed,
        stream=format_ != "wav" or body.stream_format is not None,
        extra={"instructions": body.instructions} if body.instructions else {},
    )
    call.stream = True
    chunks = gateway.stream(call, request)
    if body.stream_format == "sse":
        seconds = context.server.settings.ping_seconds
        return EventStream(_events(chunks), call, ping_seconds=seconds)
    return ByteStream(_sound(chunks), call, media_type=_SOUNDS[format_])


async def _sound(chunks: AsyncGenerator[GenerateChunk, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks) as source:
        async for chunk in source:
            if chunk.audio:
                yield chunk.audio


async def _events(chunks: AsyncGenerator[GenerateChunk, None]) -> AsyncGenerator[bytes, None]:
    usage = Usage()
    async with aclosing(chunks) as source:
        async for chunk in source:
            usage = chunk.usage or usage
            if chunk.audio:
                piece = base64.b64encode(chunk.audio)
                yield b'data: {"type":"speech.audio.delta","audio":"' + piece + b'"}\n\n'
    yield event(
        schema.SpeechEvent(
            type="speech.audio.done",
            usage=schema.SpeechUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        )
    )


async def transcriptions(
    context: Context, body: schema.TranscriptionForm, upload: Upload
) -> Response:
    call = context.call
    gateway = context.server.gateway
    gateway.open(call, body.model)
    if not upload.data:
        raise HTTPError(400, "file: it is empty", parameter="file")
    ending = upload.name.rpartition(".")[2].lower()
    request = TranscribeRequest(
        id=call.id,
        audio=upload.data,
        format=ending if ending in _FILES else "",
        language=body.language or "",
        prompt=body.prompt or "",
        extra={} if body.temperature is None else {"temperature": body.temperature},
    )
    if body.stream:
        _refuse_format(body)
        call.stream = True
        seconds = context.server.settings.ping_seconds
        return EventStream(_transcript(context, request), call, ping_seconds=seconds)
    result = await gateway.send(call, request)
    assert isinstance(result, TranscribeResult)
    return _WRITTEN[body.response_format or "json"](result)


def _refuse_format(body: schema.TranscriptionForm) -> None:
    if body.response_format not in (None, "json"):
        raise HTTPError(
            400, "response_format: a stream is of json events", parameter="response_format"
        )


async def _transcript(context: Context, request: TranscribeRequest) -> AsyncGenerator[bytes, None]:
    """The events of a transcript. Models tell it at once, so that there is one piece."""
    result = await context.server.gateway.send(context.call, request)
    assert isinstance(result, TranscribeResult)
    yield event(schema.TranscriptionEvent(type="transcript.text.delta", delta=result.text))
    yield event(schema.TranscriptionEvent(type="transcript.text.done", text=result.text))
    yield b"data: [DONE]\n\n"


def _json(result: TranscribeResult) -> Response:
    answer = schema.Transcription(text=result.text)
    if result.duration:
        answer.usage = schema.Duration(seconds=result.duration)
    return Response(encode(answer), media_type="application/json")


def _verbose_json(result: TranscribeResult) -> Response:
    answer = schema.Transcription(
        text=result.text,
        task="transcribe",
        language=result.language,
        duration=result.duration,
        segments=_segments(result, "verbose_json"),
    )
    if result.duration:
        answer.usage = schema.Duration(seconds=result.duration)
    return Response(encode(answer), media_type="application/json")


def _text(result: TranscribeResult) -> Response:
    return Response(f"{result.text}\n", media_type="text/plain")


def _srt(result: TranscribeResult) -> Response:
    cues = [
        f"{segment.id + 1}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n"
        f"{_line(segment.text)}\n"
        for segment in _segments(result, "srt")
    ]
    return Response("\n".join(cues), media_type="text/plain")


def _vtt(result: TranscribeResult) -> Response:
    cues = [
        f"\n{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n"
        # A text must not end a cue, nor begin another one.
        f"{_line(segment.text).replace('-->', '->')}\n"
        for segment in _segments(result, "vtt")
    ]
    return Response("WEBVTT\n" + "".join(cues), media_type="text/vtt")


_WRITTEN = {
    "json": _json,
    "text": _text,
    "verbose_json": _verbose_json,
    "srt": _srt,
    "vtt": _vtt,
}


def _segments(result: TranscribeResult, format_: str) -> list[schema.Segment]:
    told: Sequence[dict[str, Any]] = result.segments
    if not told and result.text:
        raise CapabilityError(
            f"the model does not tell when something was said, which response_format {format_!r} "
            "needs; ask for json or text",
            parameter="response_format",
        )
    return [
        schema.Segment(
            id=index,
            start=segment["start"],
            end=segment["end"],
            text=segment["text"],
        )
        for index, segment in enumerate(told)
    ]


def _time(seconds: float, point: str) -> str:
    """`01:02:03,456`."""
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{thousandths:03}"


def _line(text: str) -> str:
    return " ".join(text.split())


OPERATIONS = [
    Operation(
        name="speech",
        method="POST",
        path="/v1/audio/speech",
        summary="Speak a text",
        handler=speech,
        body=schema.SpeechRequest,
        media="audio/*",
        event=schema.SpeechEvent,
    ),
    Operation(
        name="transcriptions",
        method="POST",
        path="/v1/audio/transcriptions",
        summary="Write down speech",
        handler=transcriptions,
        form=schema.TranscriptionForm,
        file="file",
        answer=schema.Transcription,
        event=schema.TranscriptionEvent,
        media="text/*",
    ),
]
