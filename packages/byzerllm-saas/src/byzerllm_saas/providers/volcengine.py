"""Volcengine's text to speech: whole over HTTP, streamed over a WebSocket with frames of its own.

By the lean client: the vendor has a demonstration of this API and no SDK for it.

Source: https://www.volcengine.com/docs/6561/79820 (HTTP), .../79821 (WebSocket)
"""

from __future__ import annotations

import base64
import binascii
import gzip
import re
import struct
import uuid
import zlib
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from pydantic import Field, field_validator

from byzerllm.backend import BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ContextLengthError,
    ParameterError,
    PermissionDeniedError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
    RequestError,
)
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateChunk, SpeechRequest, Usage
from byzerllm_saas.errors import ErrorTable, ErrorType, Told
from byzerllm_saas.http import Socket
from byzerllm_saas.parameters import KeyParameters, refused
from byzerllm_saas.provider import Provider

FORMATS = {
    "mp3": "mp3",
    "ogg": "ogg_opus",
    "ogg_opus": "ogg_opus",
    "opus": "ogg_opus",
    "pcm": "pcm",
    "wav": "wav",
}
"""The vendor's name of each format."""

_FINE = 3000
# What belongs into `request` of the body; other parameters of a request belong into `audio`.
_OF_REQUEST = frozenset(
    {
        "extra_param",
        "frontend_type",
        "pure_english_opt",
        "silence_duration",
        "text_type",
        "with_frontend",
        "with_timestamp",
    }
)

# Frames. The first four bytes: version and header size in words; kind and flags; serialization and
# compression; nothing. Numbers are big-endian.
_QUESTION_HEAD = bytes((0x11, 0x10, 0x11, 0x00))
_AUDIO, _FRONTEND, _ERROR = 0xB, 0xC, 0xF
_GZIP = 1


class VolcengineParameters(KeyParameters):
    """What a deployment at Volcengine can be told."""

    key_variable = "VOLCENGINE_TTS_TOKEN"

    model: str = Field("volcano_tts", description="the vendor's name of the cluster")
    base_url: str = Field("https://openspeech.bytedance.com", description="host of the speech API")
    app_id: str = Field("", validate_default=True, description="the application")
    voice: str = Field(
        "BV001_streaming", min_length=1, description="the voice where a request names none"
    )
    uid: str = Field("byzerllm", min_length=1, description="the user, for the vendor's logs")

    @field_validator("app_id", mode="before")
    @classmethod
    def _has_app(cls, value: Any) -> str:
        if not str(value).strip():
            raise refused("the application's id is needed, see Volcengine's console")
        return str(value).strip()


SPEC = BackendSpec(
    name="volcengine",
    path="byzerllm_saas.providers.volcengine:Volcengine",
    parameters=VolcengineParameters,
    description="Volcengine's text to speech",
    model_types=("saas/volcengine",),
    capabilities=frozenset({"speech"}),
    default_concurrency=10,
    retryable=False,
    hosted=True,
    install="pip install 'byzerllm-saas[volcengine]'",
)


def _told(body: Any) -> Told:
    if not isinstance(body, dict):
        return Told()
    code, message = body.get("code", ""), body.get("message", "")
    return Told(str(code), str(message), str(body.get("reqid", "")))


class _Table(ErrorTable):
    def classify(self, status: int | None, code: str, message: str) -> ErrorType:
        # The trial's end has the code of too many calls at once.
        if "lifetime" in message:
            return QuotaExceededError
        return super().classify(status, code, message)


class _Answer(Struct):
    code: int
    data: str | None = None


class _Frame(NamedTuple):
    audio: bytes = b""
    last: bool = False


class Volcengine(Provider):
    """Voices of Volcengine."""

    spec = SPEC
    default_task = "speech"
    errors_table = _Table(
        codes={
            "3003": RateLimitedError,
            "3005": ProviderOverloadedError,
            "3006": BadRequestError,
            "3010": ContextLengthError,
            "3011": BadRequestError,
            "3030": ProviderTimeoutError,
            "3031": ProviderUnavailableError,
            "3032": ProviderTimeoutError,
            "3040": ProviderUnavailableError,
            "3050": BadRequestError,
        },
        phrases=(
            (re.compile(r"grant not found|authenticate request"), AuthenticationError),
            (re.compile(r"access denied"), PermissionDeniedError),
            (re.compile(r"quota exceeded for types: \S*concurrency"), RateLimitedError),
        ),
        read=_told,
    )
    parameters: VolcengineParameters

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Speak a text; a stream's chunks are the vendor's pieces of sound.

        Raises:
            ParameterError: a format that the vendor does not have, or cannot stream.
            BadRequestError: a voice that does not exist, a text with nothing to speak.
            ContextLengthError: the text is too long.
            ProviderError: other refusals and failures.
        """
        body = self._body(request)
        async with self.turn("speech", request) as turn:
            headers = {"authorization": f"Bearer;{turn.key}"}
            if not request.stream:
                yield GenerateChunk(
                    audio=await self._whole(body, headers), finish_reason="stop", usage=Usage()
                )
                return
            async with self.http.socket(self._socket_url(), headers=headers) as socket:
                await socket.send(question_frame(body))
                last = heard = False
                while not last:
                    audio, last = await self._frame(socket, heard)
                    heard = heard or bool(audio)
                    if audio and not last:
                        yield GenerateChunk(audio=audio)
                if not heard:
                    raise self.errors.protocol("the answer has no sound")
                yield GenerateChunk(audio=audio, finish_reason="stop", usage=Usage())

    async def check(self) -> None:
        """Opens a socket and closes it again: the handshake shows the token."""
        headers = {"authorization": f"Bearer;{self.keys.pick()}"}
        async with self.http.socket(self._socket_url(), headers=headers):
            pass

    # Inside.

    def _socket_url(self) -> str:
        return f"ws{self.parameters.base_url.removeprefix('http')}/api/v1/tts/ws_binary"

    def _body(self, request: SpeechRequest) -> dict[str, Any]:
        given = self.parameters
        encoding = FORMATS.get(request.format)
        if encoding is None:
            raise ParameterError.invalid(
                "response_format",
                f"one of {', '.join(sorted(FORMATS))} is needed (got {request.format!r})",
                where="saas/volcengine",
            )
        if encoding == "wav" and request.stream:
            raise ParameterError.invalid(
                "response_format", "wav cannot be streamed; mp3 can", where="saas/volcengine"
            )
        audio: dict[str, Any] = {"voice_type": request.voice or given.voice, "encoding": encoding}
        if request.speed != 1.0:
            audio["speed_ratio"] = request.speed
        asked: dict[str, Any] = {
            # Never twice the same: the vendor refuses it.
            "reqid": str(uuid.uuid4()),
            "text": request.text,
            "text_type": "plain",
            "operation": "submit" if request.stream else "query",
        }
        for name, value in request.extra.items():
            (asked if name in _OF_REQUEST else audio)[name] = value
        return {
            # The token that counts is the header's; this one may be any text.
            "app": {"appid": given.app_id, "token": "access_token", "cluster": self.model},
            "user": {"uid": given.uid},
            "audio": audio,
            "request": asked,
        }

    async def _whole(self, body: dict[str, Any], headers: dict[str, str]) -> bytes:
        url = f"{self.parameters.base_url}/api/v1/tts"
        answer = await self.http.send("POST", url, json=body, headers=headers)
        found: _Answer = self.http.decode(answer.body, _Answer)
        if found.code != _FINE:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        try:
            audio = base64.b64decode(found.data or "", validate=True)
        except binascii.Error:
            raise self.errors.protocol("the sound is no base64", headers=answer.headers) from None
        if not audio:
            raise self.errors.protocol("the answer has no sound", headers=answer.headers)
        return audio

    async def _frame(self, socket: Socket, heard: bool) -> _Frame:
        message = await socket.receive()
        if message is None:
            if not heard:
                raise self.errors.protocol("the socket was closed without an answer")
            raise self.errors.unavailable(
                "the socket was closed before the sound ended", retryable=False
            )
        if isinstance(message, str):
            raise self.errors.protocol("a text came where frames were to come")
        try:
            return self._read(message)
        except RequestError:
            # Two kinds of them are a ValueError and an OSError, too.
            raise
        except (struct.error, IndexError, ValueError, EOFError, OSError, zlib.error) as error:
            raise self.errors.protocol(f"a frame cannot be read: {error}") from None

    def _read(self, frame: bytes) -> _Frame:
        kind, flags, compression = frame[1] >> 4, frame[1] & 0xF, frame[2] & 0xF
        rest = frame[(frame[0] & 0xF) * 4 :]
        if kind == _ERROR:
            (code,) = struct.unpack_from(">I", rest)
            raise self._failure(code, _payload(rest, 4, compression))
        if kind == _FRONTEND or (kind == _AUDIO and not flags):
            # Times of words; or the receipt of the question.
            return _Frame()
        if kind != _AUDIO:
            raise ValueError(f"kind {kind:#x}")
        (sequence,) = struct.unpack_from(">i", rest)
        return _Frame(_payload(rest, 4, compression), sequence < 0)

    def _failure(self, code: int, said: bytes) -> Exception:
        try:
            body = msgspec.json.decode(said)
        except msgspec.DecodeError:
            body = None
        if not isinstance(body, dict) or "message" not in body:
            body = {"message": said.decode("utf-8", "replace")}
        return self.errors.of_body({"code": code, **body})


def question_frame(body: Any) -> bytes:
    """A question as one frame: header, size, gzipped JSON."""
    payload = gzip.compress(msgspec.json.encode(body), mtime=0)
    return _QUESTION_HEAD + struct.pack(">I", len(payload)) + payload


def _payload(rest: bytes, at: int, compression: int) -> bytes:
    """What follows its size at a place; all of it must be there."""
    (size,) = struct.unpack_from(">I", rest, at)
    payload = rest[at + 4 : at + 4 + size]
    if len(payload) != size:
        raise ValueError(f"{len(payload)} of {size} bytes are there")
    return gzip.decompress(payload) if compression == _GZIP and payload else payload


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
