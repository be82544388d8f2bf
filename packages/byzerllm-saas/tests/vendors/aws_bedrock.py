"""Amazon Bedrock: its runtime, and the part of its control plane that knows models.

Signatures are computed here from the bytes that came, not with botocore.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/ and
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, quote, unquote

import msgspec
from aiohttp import web
from msgspec import Meta

from vendors.claude import (
    Body,
    Image,
    Strict,
    URLSource,
    answer_to,
    check_messages,
    events_of,
    message_of,
)
from vendors.server import Answer, Vendor, made_up

REGION = "us-west-2"
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
TOKEN = "FwoGZXIvYXdzEXAMPLE"
CLOCK_SECONDS = 300


class ClaudeBody(Body, kw_only=True):
    """Of `InvokeModel` with a model of Anthropic's."""

    anthropic_version: Literal["bedrock-2023-05-31"]
    anthropic_beta: list[str] = msgspec.field(default_factory=list)


class LlamaBody(Strict):
    """Of `InvokeModel` with Llama; it knows no other keys."""

    prompt: Annotated[str, Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_gen_len: Annotated[int, Meta(ge=1, le=2048)] | None = None


class TitanBody(Strict):
    """Of `InvokeModel` with Titan's embeddings."""

    input_text: Annotated[str, Meta(min_length=1)] = msgspec.field(name="inputText")
    dimensions: Literal[256, 512, 1024] | None = None
    normalize: bool | None = None


def vector(text: str) -> list[float]:
    """Eight numbers that a text and no other has."""
    return [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:8]]


def frame(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of `application/vnd.amazon.eventstream`: lengths, their CRC, headers whose values
    are strings (type 7), payload, CRC of all."""
    head = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value))
        + value.encode()
        for name, value in headers.items()
    )  # fmt: skip
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def chunk_frame(event: Any) -> bytes:
    """An event of a model; Amazon pads them so that their length tells nothing."""
    data = base64.b64encode(msgspec.json.encode(event)).decode()
    headers = {":event-type": "chunk", ":content-type": "application/json"}
    payload = msgspec.json.encode({"bytes": data, "p": "abcdefghijklmnop"[: len(data) % 16]})
    return frame({**headers, ":message-type": "event"}, payload)


def exception_frame(name: str) -> bytes:
    """What ends a stream that fails."""
    headers = {":exception-type": name, ":content-type": "application/json"}
    payload = msgspec.json.encode({"message": "in mid-stream"})
    return frame({**headers, ":message-type": "exception"}, payload)


def broken_frame() -> bytes:
    """A frame with a byte changed on the way."""
    whole = bytearray(chunk_frame({"generation": "half"}))
    whole[-6] ^= 1
    return bytes(whole)


class BedrockVendor(Vendor):
    """See the module. `key` is the secret of the access key."""

    key: ClassVar = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    models: ClassVar = (
        "meta.llama2-70b-chat-v1",
        "meta.llama3-8b-instruct-v1:0",
        "anthropic.claude-3-sonnet-20240229-v1:0",
        "anthropic.claude-3-haiku-20240307-v1:0",
        "amazon.titan-embed-text-v2:0",
    )
    profiles: ClassVar = ("us.anthropic.claude-3-haiku-20240307-v1:0",)
    kinds: ClassVar = frozenset(
        {
            "wrong_key",
            "forbidden",
            "no_model",
            "bad_request",
            "too_long",
            "filtered",
            "rate_limited",
            "quota",
            "overloaded",
            "failed",
        }
    )
    errors: ClassVar[dict[str, tuple[int, str, str]]] = {
        "wrong_key": (
            403,
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided.",
        ),
        "unknown_key": (
            403,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        "forbidden": (
            403,
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
        ),
        "no_model": (400, "ValidationException", "The provided model identifier is invalid."),
        "bad_request": (400, "ValidationException", "{}"),
        "too_long": (400, "ValidationException", "Input is too long for requested model."),
        "filtered": (400, "ValidationException", "Output blocked by content filtering policy"),
        "rate_limited": (429, "ThrottlingException", "Too many requests, please wait."),
        "quota": (400, "ServiceQuotaExceededException", "The quota is exceeded."),
        "overloaded": (503, "ServiceUnavailableException", "Try again later."),
        "failed": (500, "InternalServerException", "An internal server error occurred."),
        "slow": (408, "ModelTimeoutException", "Model has timed out."),
        "cold": (429, "ModelNotReadyException", "Model is not ready for inference."),
        "model_failed": (424, "ModelErrorException", "The model failed."),
        "expired": (403, "ExpiredTokenException", "The security token is expired."),
    }
    """Status, code and message of each kind of error."""

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.post("/model/{model}/invoke", self.invoke)
        yield web.post("/model/{model}/invoke-with-response-stream", self.invoke)
        yield web.get("/foundation-models/{model}", self.one_model)
        yield web.get("/inference-profiles/{model}", self.one_model)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, text = self.errors[kind]
        headers = {
            "x-amzn-errortype": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/",
            "x-amzn-requestid": "8b9d1c7e-0000-4000-8000-7c1f1d9a0000",
        }
        return web.json_response({"message": text.format(message)}, status=status, headers=headers)

    # Signatures.

    def check_signature(self, request: web.Request, body: bytes) -> None:
        """Signature Version 4; the path as it came is encoded once more."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([\w-]+)/(\w+)/aws4_request, "
            r"SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})",
            headers.get("authorization", ""),
        )
        if found is None:
            self.expect(False, "Missing Authentication Token", "unknown_key")
            return
        access_key, day, region, service, names, signature = found.groups()
        self.expect(access_key == ACCESS_KEY, "unknown access key", "unknown_key")
        self.expect((region, service) == (REGION, "bedrock"), "wrong scope", "wrong_key")
        given = names.split(";")
        self.expect({"host", "x-amz-date"} <= set(given), "headers are not signed", "wrong_key")
        stamp = headers["x-amz-date"]
        self.expect(stamp.startswith(day), "Date in Credential scope does not match", "wrong_key")
        at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        self.expect(abs(time.time() - at) < CLOCK_SECONDS, "Signature expired", "expired")
        token = headers.get("x-amz-security-token")
        self.expect(token in (None, TOKEN), "another token", "unknown_key")
        self.expect(token is None or "x-amz-security-token" in given, "unsigned", "wrong_key")
        path, _, query = request.raw_path.partition("?")
        canonical = "\n".join(
            [
                request.method,
                quote(path, safe="/-_.~"),
                "&".join(
                    f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
                    for name, value in sorted(parse_qsl(query, keep_blank_values=True))
                ),
                *(f"{name}:{' '.join(headers[name].split())}" for name in given),
                "",
                names,
                hashlib.sha256(body).hexdigest(),
            ]
        )
        scope = f"{day}/{region}/{service}/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        signed = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}"
        key = f"AWS4{self.key}".encode()
        for part in (day, region, service, "aws4_request", signed):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        self.expect(hmac.compare_digest(key.hex(), signature), "another signature", "wrong_key")

    # Calls.

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        self.check_signature(request, b"")
        model = unquote(request.match_info["model"])
        profile = request.path.startswith("/inference-profiles")
        known = model in (self.profiles if profile else self.models)
        self.expect(known, "", "no_model")
        if profile:
            return web.json_response({"inferenceProfileId": model, "status": "ACTIVE"})
        return web.json_response({"modelDetails": {"modelId": model}})

    async def invoke(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.check_signature(request, body)
        # boto3 calls a body bytes when it is told nothing.
        kinds = ("application/json", "application/octet-stream")
        self.expect(request.content_type in kinds, "The content type is wrong")
        model = unquote(request.match_info["model"])
        self.expect(model in (*self.models, *self.profiles), "", "no_model")
        streamed = request.path.endswith("-stream")
        if "titan" in model:
            self.expect(not streamed, "The model is unsupported for streaming")
            return await self.embed(request, self.decode(body, TitanBody))
        if "llama" in model:
            answer, whole, events = self.llama(self.decode(body, LlamaBody))
        else:
            answer, whole, events = self.claude(model, self.decode(body, ClaudeBody))
        headers = {
            "x-amzn-requestid": "8b9d1c7e-0000-4000-8000-7c1f1d9a0000",
            "x-amzn-bedrock-input-token-count": str(answer.usage[0]),
            "x-amzn-bedrock-output-token-count": str(answer.usage[1]),
        }
        if not streamed:
            return await self.whole(request, whole, headers=headers)
        kind = "application/vnd.amazon.eventstream"
        frames = self.frames(events)
        return await self.stream(request, frames, content_type=kind, garbage=broken_frame())

    @staticmethod
    def frames(events: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        for event in events:
            if event.get("type") == "error":
                yield exception_frame(event["error"]["type"].removesuffix("_error"))
            else:
                yield chunk_frame(event)

    def claude(self, model: str, body: ClaudeBody) -> tuple[Answer, Any, Iterator[Any]]:
        check_messages(self, body)
        roles = [message.role for message in body.messages]
        turns = all(a != b for a, b in itertools.pairwise(roles))
        self.expect(turns, 'messages: roles must alternate between "user" and "assistant"')
        images = [b for m in body.messages for b in m.blocks if isinstance(b, Image)]
        urls = any(isinstance(image.source, URLSource) for image in images)
        self.expect(not urls, "image.source.type: URL sources are not supported")
        answer, reason = answer_to(self, body)
        name = model.partition("anthropic.")[2]
        return answer, message_of(name, answer, reason), self.measured(name, answer, reason)

    @staticmethod
    def measured(name: str, answer: Answer, reason: str) -> Iterator[dict[str, Any]]:
        for event in events_of(name, answer, reason):
            if event["type"] == "ping":
                continue
            if event["type"] == "message_stop":
                event["amazon-bedrock-invocationMetrics"] = {"inputTokenCount": answer.usage[0]}
            yield event

    def llama(self, body: LlamaBody) -> tuple[Answer, Any, Iterator[Any]]:
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            answer, reason = made_up(body.prompt, max_tokens=body.max_gen_len)
            return answer

        answer = self.next_answer(make)
        prompt, completion = answer.usage
        whole = {
            "generation": answer.text,
            "prompt_token_count": prompt,
            "generation_token_count": completion,
            "stop_reason": reason,
        }

        def events() -> Iterator[dict[str, Any]]:
            first: int | None = prompt
            for number, piece in enumerate(answer.pieces, 1):
                yield {
                    "generation": piece,
                    "prompt_token_count": first,
                    "generation_token_count": number,
                    "stop_reason": None,
                }
                first = None
            yield {
                "generation": "",
                "prompt_token_count": None,
                "generation_token_count": completion,
                "stop_reason": reason,
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": prompt},
            }

        return answer, whole, events()

    async def embed(self, request: web.Request, body: TitanBody) -> web.StreamResponse:
        text = body.input_text
        count = len(text.split())
        numbers = vector(text)
        if body.dimensions:
            numbers *= body.dimensions // len(numbers)
        return await self.whole(request, {"embedding": numbers, "inputTextTokenCount": count})
