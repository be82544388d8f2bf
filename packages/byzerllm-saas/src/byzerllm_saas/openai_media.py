"""The rest of OpenAI's wire: vectors, images, speech, transcription.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import array
import base64
import binascii
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import Struct

from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    GenerateChunk,
    ImageRequest,
    ImageResult,
    SpeechRequest,
    TranscribeRequest,
    TranscribeResult,
    Usage,
)
from byzerllm_saas.media import audio_format, image_format
from byzerllm_saas.openai_wire import OpenAIChat, WireUsage


class _Vector(Struct):
    embedding: str | list[float]
    index: int = 0


class _Vectors(Struct):
    data: list[_Vector]
    usage: WireUsage | None = None


class _Image(Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Images(Struct):
    data: list[_Image]
    output_format: str = ""


class _Transcript(Struct):
    text: str
    language: str | None = None
    duration: float | None = None
    segments: list[dict[str, Any]] | None = None


class OpenAIVectors(OpenAIChat):
    """Chat and vectors.

    The dialect's `embedding_batch` is how many texts go with one call.
    """

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text, as many calls as the vendor's limit makes of it."""
        return await self.in_batches(request, self.dialect.embedding_batch, self._embed)

    async def _embed(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        body: dict[str, Any] = {"model": self.model, "input": texts}
        if self.dialect.base64_vectors:
            body["encoding_format"] = "base64"
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        body.update(request.extra)
        async with self.turn("embedding", request) as turn:
            answer = await self.http.send(
                "POST", self.url("embeddings"), json=body, headers=self.headers(turn.key)
            )
            self.check_error(answer)
            found: _Vectors = self.http.decode(answer.body, _Vectors)
            if len(found.data) != len(texts):
                raise self.errors.protocol(
                    f"{len(found.data)} vectors came for {len(texts)} texts", headers=answer.headers
                )
            usage = found.usage.plain() if found.usage else Usage()
            turn.used(usage)
            found.data.sort(key=lambda vector: vector.index)
            vectors = [self._numbers(vector.embedding) for vector in found.data]
            return EmbedResult(vectors=vectors, usage=usage)

    def _numbers(self, vector: str | list[float]) -> list[float]:
        if isinstance(vector, list):
            return vector
        try:
            numbers = array.array("f", base64.b64decode(vector, validate=True))
        except (binascii.Error, ValueError):
            raise self.errors.protocol("a vector is no base64 of 32-bit floats") from None
        if sys.byteorder == "big":
            numbers.byteswap()
        return numbers.tolist()


class OpenAIWire(OpenAIVectors):
    """All of OpenAI's wire: chat, vectors, images, speech, transcription."""

    async def draw(self, request: ImageRequest) -> ImageResult:
        """Make images; those that come as addresses are fetched.

        Raises:
            ContentFilteredError: the prompt breaks the vendor's rules.
            ProviderError: other refusals and failures.
        """
        body: dict[str, Any] = {"model": self.model, "prompt": request.prompt, "n": request.n}
        if request.size:
            body["size"] = request.size
        if request.quality:
            body["quality"] = request.quality
        if not self.model.startswith("gpt-image"):
            # The gpt-image models know no other way and refuse the field.
            body["response_format"] = "b64_json"
        body.update(request.extra)
        async with self.turn("image", request) as turn:
            answer = await self.http.send(
                "POST", self.url("images/generations"), json=body, headers=self.headers(turn.key)
            )
            self.check_error(answer)
            found: _Images = self.http.decode(answer.body, _Images)
            images = [await self._image(image) for image in found.data]
        if not images:
            raise self.errors.protocol("the answer has no images", headers=answer.headers)
        return ImageResult(
            images=images,
            format=image_format(images[0]) or found.output_format or "png",
            revised_prompt=found.data[0].revised_prompt or "",
        )

    async def speak(self, request: SpeechRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Speak a text; a stream's chunks are what the network brings.

        Raises:
            BadRequestError: a voice or a format that the vendor does not have.
            ContextLengthError: the text is too long.
            ProviderError: other refusals and failures.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "input": request.text,
            "voice": request.voice or self.dialect.voice,
            "response_format": request.format,
        }
        if request.speed != 1.0:
            body["speed"] = request.speed
        body.update(request.extra)
        async with self.turn("speech", request) as turn:
            url, headers = self.url("audio/speech"), self.headers(turn.key)
            if not request.stream:
                answer = await self.http.send("POST", url, json=body, headers=headers)
                self.check_error(answer)
                if not answer.body:
                    raise self.errors.protocol("the answer is empty", headers=answer.headers)
                yield GenerateChunk(audio=answer.body, finish_reason="stop", usage=Usage())
                return
            async with self.http.stream("POST", url, json=body, headers=headers) as stream:
                await self.check_stream_error(stream)
                heard = False
                async with aclosing(stream.pieces()) as pieces:
                    async for piece in pieces:
                        heard = True
                        yield GenerateChunk(audio=piece)
                if not heard:
                    raise self.errors.protocol("the answer is empty", headers=stream.headers)
                yield GenerateChunk(finish_reason="stop", usage=Usage())

    async def transcribe(self, request: TranscribeRequest) -> TranscribeResult:
        """Write down speech; models that tell times are asked for them.

        Raises:
            BadRequestError: the audio is none that the vendor reads.
            ProviderError: other refusals and failures.
        """
        import aiohttp

        form = aiohttp.FormData()
        name = f"speech.{request.format or audio_format(request.audio) or 'wav'}"
        form.add_field(
            "file", request.audio, filename=name, content_type="application/octet-stream"
        )
        fields = {
            "model": self.model,
            "language": request.language,
            "prompt": request.prompt,
            "response_format": "verbose_json" if self.model.startswith("whisper") else "json",
            **request.extra,
        }
        for field, value in fields.items():
            if value != "":
                form.add_field(field, str(value))
        async with self.turn("transcription", request) as turn:
            answer = await self.http.send(
                "POST",
                self.url("audio/transcriptions"),
                body=form,
                headers=self.headers(turn.key),
            )
            self.check_error(answer)
            found: _Transcript = self.http.decode(answer.body, _Transcript)
        return TranscribeResult(
            text=found.text,
            language=found.language or request.language,
            duration=found.duration or 0.0,
            segments=[
                {name: segment[name] for name in ("start", "end", "text") if name in segment}
                for segment in found.segments or ()
            ],
        )

    async def _image(self, image: _Image) -> bytes:
        if image.b64_json:
            try:
                return base64.b64decode(image.b64_json, validate=True)
            except (binascii.Error, ValueError):
                raise self.errors.protocol("an image is no base64") from None
        if image.url:
            # Its address is the vendor's file store, which the key is none of the business of.
            return (await self.http.send("GET", image.url)).body
        raise self.errors.protocol("an image has neither b64_json nor url")
