"""Azure's text to speech: its REST interface.

Source: https://learn.microsoft.com/azure/ai-services/speech-service/rest-text-to-speech
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import ClassVar

from aiohttp import web

from vendors.openai import spoken
from vendors.server import FAULT, Garbage, Vendor

SSML = "{http://www.w3.org/2001/10/synthesis}"
MSTTS = "{https://www.w3.org/2001/mstts}"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
PIECE_BYTES = 2000
CONTENT_TYPES = {
    "audio-24khz-48kbitrate-mono-mp3": "audio/mpeg",
    "audio-48khz-192kbitrate-mono-mp3": "audio/mpeg",
    "ogg-24khz-16bit-mono-opus": "audio/ogg",
    "raw-24khz-16bit-mono-pcm": "audio/basic",
    "riff-24khz-16bit-mono-pcm": "audio/x-wav",
    "webm-24khz-16bit-mono-opus": "audio/webm",
}


class AzureVendor(Vendor):
    """See the module. What it says of errors is in the status line, in JSON, or nowhere."""

    voices: ClassVar = ("zh-CN-XiaoxiaoNeural", "zh-CN-YunxiNeural", "en-US-JennyNeural")
    statuses: ClassVar = {
        "wrong_key": 401,
        "quota": 403,
        "bad_request": 400,
        "no_type": 415,
        "rate_limited": 429,
        "failed": 502,
        "overloaded": 503,
    }
    kinds: ClassVar = frozenset(statuses) - {"no_type"}

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.post("/cognitiveservices/v1", self.speak)
        yield web.get("/cognitiveservices/voices/list", self.list_voices)

    def refusal(self, kind: str, message: str) -> web.Response:
        status = self.statuses[kind]
        headers = {"X-RequestId": "0123456789", "apim-request-id": "apim-0123456789"}
        if kind == "wrong_key":
            text = "Access denied due to invalid subscription key or wrong API endpoint."
            body = {"error": {"code": "401", "message": text}}
            return web.json_response(body, status=status, headers=headers)
        if kind == "quota":
            text = "Out of call volume quota. Quota will be replenished in 13 days."
            body = {"error": {"code": "403", "message": text}}
            return web.json_response(body, status=status, headers=headers)
        text = message if status < 500 else ""
        return web.Response(text=text, status=status, headers=headers)

    def check_key(self, request: web.Request) -> None:
        given = request.headers.get("ocp-apim-subscription-key")
        self.expect(given == self.key, "no such key", "wrong_key")

    async def list_voices(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        voices = [
            {"ShortName": name, "Locale": name[:5], "VoiceType": "Neural", "Status": "GA"}
            for name in self.voices
        ]
        return web.json_response(voices)

    async def speak(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        right = request.content_type == "application/ssml+xml"
        self.expect(right, "Unsupported media type", "no_type")
        self.expect(request.headers.get("user-agent"), "User-Agent is required")
        kind = CONTENT_TYPES.get(request.headers.get("x-microsoft-outputformat", ""))
        self.expect(kind, "X-Microsoft-OutputFormat is invalid")
        assert kind is not None
        sound = spoken(self.spoken_text(await request.read()))
        if isinstance(request.get(FAULT), Garbage):
            return await self.whole(request, {"not": "sound"})
        pieces = [sound[at : at + PIECE_BYTES] for at in range(0, len(sound), PIECE_BYTES)]
        return await self.stream(request, pieces, content_type=kind)

    def spoken_text(self, body: bytes) -> str:
        """The text of a document of the right shape."""
        try:
            root = ET.fromstring(body)
        except ET.ParseError as error:
            self.expect(False, f"SSML parsing error: {error}")
            raise
        self.expect(root.tag == f"{SSML}speak", f"the root is {root.tag}")
        self.expect(root.get("version") == "1.0", "version is required")
        self.expect(root.get(XML_LANG), "xml:lang is required")
        voices = root.findall(f"{SSML}voice")
        self.expect(len(voices) == 1 and len(root) == 1, "one voice is needed")
        name = voices[0].get("name", "")
        self.expect(name in self.voices, f"Unsupported voice {name}.")
        known = {f"{SSML}prosody", f"{MSTTS}express-as"}
        inside = {one.tag for one in voices[0].iter()} - {f"{SSML}voice"}
        self.expect(inside <= known, f"unknown elements {inside - known}")
        return "".join(voices[0].itertext())
