"""Speech, transcription and images in OpenAI's shape.

Source: the reference of OpenAI's API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from byzerllm_server.operations import Body
from byzerllm_server.schemas.openai import Text

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Language = Annotated[str, Meta(pattern=r"^([a-zA-Z]{2,3}([-_][a-zA-Z0-9]{2,8})*)?$")]


class Voice(Struct, kw_only=True):
    id: Text


class SpeechRequest(Body, kw_only=True):
    """A text to be spoken.

    `stream_format` is how the audio comes: its bytes as they are made (`audio`), or as events with
    pieces of it in base64 (`sse`). Left out it is `audio`, and a `wav` file then comes in one piece
    with its length in its head.
    """

    model: Text
    input: Text
    voice: str | Voice | None = None
    response_format: AudioFormat | None = None
    speed: Annotated[float, Meta(ge=0.25, le=4)] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    instructions: str | None = None


class SpeechUsage(Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechEvent(Struct, kw_only=True):
    """`speech.audio.delta` with `audio` in base64; `speech.audio.done`, the last one, with
    `usage`."""

    type: Literal["speech.audio.delta", "speech.audio.done"]
    audio: str | UnsetType = UNSET
    usage: SpeechUsage | UnsetType = UNSET


class TranscriptionForm(Body, kw_only=True):
    """Speech to write down; a form, with the audio as its field `file`."""

    model: Text
    language: Language | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    timestamp_granularities: list[Literal["segment"]] | None = msgspec.field(
        default=None, name="timestamp_granularities[]"
    )


class Duration(Struct, kw_only=True):
    type: Literal["duration"] = "duration"
    seconds: float


class Segment(Struct, kw_only=True):
    """`start` and `end` in seconds."""

    id: int
    start: float
    end: float
    text: str


class Transcription(Struct, kw_only=True):
    """What was said; all but `text` and `usage` with `verbose_json` alone."""

    text: str
    task: Literal["transcribe"] | UnsetType = UNSET
    language: str | UnsetType = UNSET
    duration: float | UnsetType = UNSET
    segments: list[Segment] | UnsetType = UNSET
    usage: Duration | UnsetType = UNSET


class TranscriptionEvent(Struct, kw_only=True):
    type: Literal["transcript.text.delta", "transcript.text.done"]
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET


class ImageGenerationRequest(Body, kw_only=True):
    """A text to make images of.

    `response_format` is `b64_json` where nothing is said; `url` gives `data:` addresses that hold
    the image, since nothing is kept here to be fetched later.
    """

    model: Text
    prompt: Text
    n: Annotated[int, Meta(ge=1, le=10)] | None = None
    size: Annotated[str, Meta(pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")] | None = None
    quality: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    user: str | None = None
    stream: Literal[False] | None = None

    def vendor_fields(self) -> dict[str, Any]:
        """What only some models know, as far as it was given."""
        return {
            name: getattr(self, name)
            for name in (
                "style",
                "background",
                "moderation",
                "output_format",
                "output_compression",
                "user",
            )
            if getattr(self, name) is not None
        }


class Image(Struct, kw_only=True):
    b64_json: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    revised_prompt: str | UnsetType = UNSET


class Images(Struct, kw_only=True):
    created: int
    data: list[Image]
    output_format: str
