"""Azure's text to speech over its REST interface: SSML goes, the bytes of a file come.

By the lean client: the SDK is a native library of 40 MB with threads of its own, for this one call.

Source: https://learn.microsoft.com/azure/ai-services/speech-service/rest-text-to-speech
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from msgspec import Struct
from pydantic import Field, ValidationInfo, field_validator

from byzerllm.backend import BackendSpec
from byzerllm.errors import BadRequestError, ParameterError, QuotaExceededError, did_you_mean
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateChunk, SpeechRequest, Usage
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.parameters import KeyParameters, refused
from byzerllm_saas.provider import Provider

FORMATS = {
    "mp3": "audio-24khz-48kbitrate-mono-mp3",
    "ogg": "ogg-24khz-16bit-mono-opus",
    "opus": "ogg-24khz-16bit-mono-opus",
    "pcm": "raw-24khz-16bit-mono-pcm",
    "wav": "riff-24khz-16bit-mono-pcm",
    "webm": "webm-24khz-16bit-mono-opus",
}
"""What the usual names stand for; Azure's own names are taken, too."""

_OWN_FORMAT = re.compile(r"(audio|amr-wb|ogg|raw|riff|webm)-[0-9a-z-]+")
_REGION = re.compile(r"[a-z][a-z0-9]+")
# XML 1.0 has no place for these, escaped or not.
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PROSODY = ("rate", "pitch", "volume", "contour", "range")
_EXPRESSION = ("style", "styledegree", "role")


class AzureParameters(KeyParameters):
    """What a deployment of Azure's speech can be told."""

    key_variable = "AZURE_SPEECH_KEY"

    model: str = Field("azure_tts", description="what errors call it; the voices are the models")
    base_url: str = Field("", description="host of the API, instead of that of the region")
    service_region: str = Field(
        "", validate_default=True, description="the resource's region: eastus, chinanorth2, …"
    )
    voice: str = Field(
        "zh-CN-XiaoxiaoNeural", min_length=1, description="the voice where a request names none"
    )

    @field_validator("service_region")
    @classmethod
    def _check_region(cls, value: str, info: ValidationInfo) -> str:
        name = value.strip().lower().replace(" ", "")
        if not name and not info.data.get("base_url"):
            raise refused("the resource's region is needed: saas.service_region=eastus")
        if name and not _REGION.fullmatch(name):
            raise refused(f"the short name of a region is needed, like eastus (got {value!r})")
        return name

    @property
    def host(self) -> str:
        region = self.service_region
        if self.base_url:
            return self.base_url
        if region.startswith("china"):
            return f"https://{region}.tts.speech.azure.cn"
        if region.startswith("usgov"):
            return f"https://{region}.tts.speech.azure.us"
        return f"https://{region}.tts.speech.microsoft.com"


SPEC = BackendSpec(
    name="azure",
    path="byzerllm_saas.providers.azure:Azure",
    parameters=AzureParameters,
    description="Azure's text to speech",
    model_types=("saas/azure",),
    capabilities=frozenset({"speech"}),
    default_concurrency=10,
    retryable=False,
    hosted=True,
    install="pip install 'byzerllm-saas[azure]'",
)


class _Voice(Struct):
    ShortName: str = ""


class Azure(Provider):
    """Voices of one region of Azure."""

    spec = SPEC
    default_task = "speech"
    errors_table = ErrorTable(phrases=((re.compile(r"quota", re.IGNORECASE), QuotaExceededError),))
    parameters: AzureParameters

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Speak a text; a stream's chunks are what the network brings.

        Raises:
            ParameterError: a format or a parameter that Azure does not have.
            BadRequestError: a voice that does not exist.
            ProviderError: other refusals and failures.
        """
        url = f"{self.parameters.host}/cognitiveservices/v1"
        body, format_ = self.ssml(request).encode(), self._format(request.format)
        async with self.turn("speech", request) as turn:
            headers = {
                "ocp-apim-subscription-key": turn.key,
                "content-type": "application/ssml+xml",
                "x-microsoft-outputformat": format_,
            }
            if not request.stream:
                answer = await self.http.send("POST", url, body=body, headers=headers)
                if not answer.body:
                    raise self.errors.protocol("the answer is empty", headers=answer.headers)
                self._check_sound(answer.headers)
                yield GenerateChunk(audio=answer.body, finish_reason="stop", usage=Usage())
                return
            async with self.http.stream("POST", url, body=body, headers=headers) as stream:
                heard = False
                async with aclosing(stream.pieces()) as pieces:
                    async for piece in pieces:
                        if not heard:
                            self._check_sound(stream.headers)
                        heard = True
                        yield GenerateChunk(audio=piece)
                if not heard:
                    raise self.errors.protocol("the answer is empty", headers=stream.headers)
                yield GenerateChunk(finish_reason="stop", usage=Usage())

    async def check(self) -> None:
        """Asks for the list of voices, which costs nothing, and looks the voice up in it."""
        headers = {"ocp-apim-subscription-key": self.keys.pick()}
        url = f"{self.parameters.host}/cognitiveservices/voices/list"
        answer = await self.http.send("GET", url, headers=headers)
        found: list[_Voice] = self.http.decode(answer.body, list[_Voice])
        names = [voice.ShortName for voice in found]
        voice = self.parameters.voice
        if names and voice not in names:
            raise self.errors.make(
                BadRequestError,
                f"the region has no voice {voice!r}{did_you_mean(voice, names)}",
                status=answer.status,
            )

    # Inside.

    def ssml(self, request: SpeechRequest) -> str:
        """The document that says what is spoken, how, and by whom.

        Raises:
            ParameterError: a parameter that has no place in it.
        """
        voice = request.voice or self.parameters.voice
        extra = dict(request.extra)
        language = str(extra.pop("lang", "") or "-".join(voice.split("-")[:2]))
        prosody = {name: extra.pop(name) for name in _PROSODY if name in extra}
        if request.speed != 1.0:
            prosody.setdefault("rate", f"{request.speed:g}")
        expression = {name: extra.pop(name) for name in _EXPRESSION if name in extra}
        if extra:
            allowed = ("lang", *_PROSODY, *_EXPRESSION)
            raise ParameterError.unknown(min(extra), allowed, where="saas/azure")
        text = escape(_NO_XML.sub(" ", request.text))
        text = _element("prosody", prosody, text)
        text = _element("mstts:express-as", expression, text)
        return (
            '<speak version="1.0" xmlns="http://www.w3.org/2001/10/synthesis" '
            'xmlns:mstts="https://www.w3.org/2001/mstts" '
            f"xml:lang={quoteattr(language)}><voice name={quoteattr(voice)}>{text}</voice></speak>"
        )

    def _format(self, name: str) -> str:
        found = FORMATS.get(name, name)
        if not _OWN_FORMAT.fullmatch(found):
            raise ParameterError.invalid(
                "response_format",
                f"one of {', '.join(sorted(FORMATS))}, or one of Azure's own names, is needed "
                f"(got {name!r})",
                where="saas/azure",
            )
        return found

    def _check_sound(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "audio")
        if not kind.startswith(("audio", "application/octet-stream", "application/ogg")):
            raise self.errors.protocol(f"{kind} came where sound was to come", headers=headers)


def _element(name: str, attributes: Mapping[str, Any], inside: str) -> str:
    """An element around a text; the text alone without attributes."""
    if not attributes:
        return inside
    written = "".join(f" {key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"<{name}{written}>{inside}</{name}>"


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
