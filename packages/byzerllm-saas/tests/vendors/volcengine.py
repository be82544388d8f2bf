"""Volcengine's text to speech: HTTP, and a WebSocket with binary frames.

Source: https://www.volcengine.com/docs/6561/79820 (HTTP), …/79821 (WebSocket)
"""

from __future__ import annotations

import base64
import gzip
import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from vendors.openai import spoken
from vendors.server import Refuse, Refused
from vendors.sockets import SocketVendor

APP = "1234567890"
LONGEST_BYTES = 1024
PIECE_BYTES = 2000
Text = Annotated[str, Meta(min_length=1)]


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that Volcengine does not know is refused."""


class App(Strict):
    appid: Text
    token: Text
    cluster: Text


class User(Strict):
    uid: Text


class Audio(Strict):
    voice_type: Text
    encoding: Literal["wav", "pcm", "ogg_opus", "mp3"] = "pcm"
    rate: Literal[8000, 16000, 24000] = 24000
    bitrate: int = 160
    speed_ratio: Annotated[float, Meta(ge=0.2, le=3)] = 1.0
    volume_ratio: Annotated[float, Meta(ge=0.1, le=3)] = 1.0
    pitch_ratio: Annotated[float, Meta(ge=0.1, le=3)] = 1.0
    loudness_ratio: Annotated[float, Meta(ge=0.5, le=2)] = 1.0
    emotion: str = ""
    language: str = ""


class Request(Strict):
    reqid: Text
    text: str
    operation: Literal["query", "submit"]
    text_type: Literal["plain", "ssml"] = "plain"
    silence_duration: int = 0
    with_timestamp: str = ""
    extra_param: str = ""


class Body(Strict):
    app: App
    user: User
    audio: Audio
    request: Request


class VolcengineVendor(SocketVendor):
    """See the module."""

    voices: ClassVar = ("BV001_streaming", "BV705_streaming")
    errors: ClassVar[dict[str, tuple[int, str]]] = {
        "bad_request": (3001, "invalid request"),
        "too_long": (3010, "text too long"),
        "rate_limited": (3003, "quota exceeded for types: concurrency"),
        "quota": (3003, "quota exceeded for types: text_words_lifetime"),
        "overloaded": (3005, "server busy"),
        "failed": (3031, "Init Engine Instance failed"),
        "reused": (3006, "the request has been handled"),
        "no_text": (3011, "illegal input text!"),
        "no_voice": (3050, "voice not found"),
    }
    at_handshake = frozenset({"wrong_key", "forbidden"})
    kinds: ClassVar = frozenset({*errors, *at_handshake} - {"reused", "no_text", "no_voice"})

    def __init__(self) -> None:
        super().__init__()
        self.reqids: set[str] = set()
        self.compresses = False

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.post("/api/v1/tts", self.whole_speech)
        yield web.get("/api/v1/tts/ws_binary", self.streamed_speech)

    def refusal(self, kind: str, message: str) -> web.Response:
        status = {"wrong_key": 401, "forbidden": 403}.get(kind, 200)
        code, text = self.errors.get(kind, (3001, ""))
        if kind == "wrong_key":
            text = "authenticate request: load grant: requested grant not found"
        if kind == "forbidden":
            text = "extract request resource id: get resource id: access denied"
        body = {"reqid": "", "code": code, "operation": "", "message": f"{text} {message}"}
        return web.json_response(
            {**body, "sequence": 0, "data": ""}, status=status, headers={"X-Tt-Logid": "20240726"}
        )

    def check_token(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "")
        self.expect(given == f"Bearer;{self.key}", "", "wrong_key")

    def check_body(self, body: Body, operation: str) -> None:
        asked = body.request
        self.expect(body.app.appid == APP, "no such application", "forbidden")
        self.expect(body.app.cluster == "volcano_tts", "no such cluster", "bad_request")
        self.expect(asked.operation == operation, f"operation {asked.operation}")
        self.expect(asked.reqid not in self.reqids, asked.reqid, "reused")
        self.reqids.add(asked.reqid)
        self.expect(len(asked.text.encode()) <= LONGEST_BYTES, "", "too_long")
        self.expect(any(map(str.isalnum, asked.text)), "", "no_text")
        self.expect(body.audio.voice_type in self.voices, body.audio.voice_type, "no_voice")

    async def whole_speech(self, request: web.Request) -> web.StreamResponse:
        self.check_token(request)
        self.expect(request.content_type == "application/json", "JSON is needed")
        body = self.decode(await request.read(), Body)
        self.check_body(body, "query")
        whole = {
            "reqid": body.request.reqid,
            "code": 3000,
            "operation": "query",
            "message": "Success",
            "sequence": -1,
            "data": base64.b64encode(spoken(body.request.text)).decode(),
            "addition": {"duration": "1960"},
        }
        return await self.whole(request, whole)

    async def streamed_speech(self, request: web.Request) -> web.StreamResponse:
        asked = self.asked[-1]
        self.check_token(request)
        socket = await self.opened(request)
        message, fault = await self.question(socket, asked)
        if message is None:
            return socket
        try:
            if isinstance(fault, Refuse):
                raise Refused(fault.kind, f"told to say {fault.kind}")
            asked.body = self.opened_frame(message)
            body = self.decode(asked.body, Body)
            self.check_body(body, "submit")
            self.expect(body.audio.encoding != "wav", "wav is not streamed")
            frames = self.sound(spoken(body.request.text))
        except Refused as error:
            if not isinstance(fault, Refuse):
                self.complaints.append(f"{request.path}: {error}")
            frames = iter([self.error(error)])
        return await self.frames(request, socket, frames, fault, garbage=b"\x11\xb1\x00\x00half")

    def opened_frame(self, message: str | bytes) -> bytes:
        """The JSON in a full client request: version 1, gzip."""
        self.expect(isinstance(message, bytes), "a binary message is needed")
        assert isinstance(message, bytes)
        self.expect(message[:4] == b"\x11\x10\x11\x00", f"header {message[:4].hex()}")
        (size,) = struct.unpack(">I", message[4:8])
        self.expect(size == len(message) - 8, "the size is not the payload's")
        return gzip.decompress(message[8:])

    def sound(self, sound: bytes) -> Iterator[bytes]:
        """The receipt, then the pieces; the number of the last one is negative."""
        yield b"\x11\xb0\x00\x00" + struct.pack(">I", 0)
        starts = range(0, len(sound), PIECE_BYTES)
        for number, start in enumerate(starts, 1):
            last = number == len(starts)
            piece = sound[start : start + PIECE_BYTES]
            if self.compresses:
                piece = gzip.compress(piece)
            head = bytes((0x11, 0xB3 if last else 0xB1, 0x01 if self.compresses else 0x00, 0x00))
            yield head + struct.pack(">iI", -number if last else number, len(piece)) + piece

    def error(self, error: Refused) -> bytes:
        code, text = self.errors[error.kind]
        said: dict[str, Any] = {"reqid": "", "code": code, "message": f"{text} {error}"}
        payload = gzip.compress(msgspec.json.encode(said))
        return b"\x11\xf0\x11\x00" + struct.pack(">II", code, len(payload)) + payload
