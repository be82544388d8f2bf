"""OpenAI: chat completions, completions, embeddings, images, speech, transcription, models.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from byzerllm import ByzerLLM
from vendors.server import Answer, Refused, Vendor, made_up

CREATED = 1_700_000_000


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that OpenAI does not know is refused."""


class StreamOptions(Strict):
    include_usage: bool = False


class ImageURL(Strict):
    url: Annotated[str, Meta(pattern=r"^(https?://|data:image/[a-z+]+;base64,)")]
    detail: Literal["auto", "low", "high"] = "auto"


class TextPart(Strict, tag="text"):
    text: str


class ImagePart(Strict, tag="image_url"):
    image_url: ImageURL


class AudioPart(Strict, tag="input_audio"):
    input_audio: dict[str, str]


Content = str | list[TextPart | ImagePart | AudioPart]


class FunctionOfCall(Strict):
    name: str
    arguments: str


class CallOfMessage(Strict):
    id: str
    type: Literal["function"]
    function: FunctionOfCall


class SystemMessage(Strict, tag_field="role", tag="system"):
    content: str
    name: str = ""


class DeveloperMessage(Strict, tag_field="role", tag="developer"):
    content: str
    name: str = ""


class UserMessage(Strict, tag_field="role", tag="user"):
    content: Content
    name: str = ""


class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    content: str | None = None
    tool_calls: list[CallOfMessage] = []
    name: str = ""
    refusal: str | None = None


class ToolMessage(Strict, tag_field="role", tag="tool"):
    content: str
    tool_call_id: str


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JSONSchema(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any]
    strict: bool | None = None
    description: str = ""


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class ChatBody(Strict):
    """`POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: Annotated[list[str], Meta(max_length=4)] | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    user: str | None = None
    n: int | None = None


class CompletionBody(Strict):
    """`POST /v1/completions`."""

    model: str
    prompt: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: list[str] | str | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    logit_bias: dict[str, float] | None = None


class EmbeddingBody(Strict):
    """`POST /v1/embeddings`."""

    model: str
    input: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class ImageBody(Strict):
    """`POST /v1/images/generations`."""

    model: str
    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    n: Annotated[int, Meta(ge=1, le=10)] = 1
    size: Literal["256x256", "512x512", "1024x1024", "1792x1024", "1024x1792"] = "1024x1024"
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] = "standard"
    style: Literal["vivid", "natural"] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: str | None = None


class SpeechBody(Strict):
    """`POST /v1/audio/speech`."""

    model: str
    input: Annotated[str, Meta(min_length=1)]
    voice: str
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    instructions: str = ""


VOICES = ("alloy", "ash", "coral", "echo", "fable", "nova", "onyx", "sage", "shimmer")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAA"
    "BJRU5ErkJggg=="
)


def spoken(text: str) -> bytes:
    """What stands for the sound of a text."""
    return b"ID3" + text.encode() * 200


def vector(text: str) -> list[float]:
    """Eight numbers that a text and no other has."""
    digest = hashlib.sha256(text.encode()).digest()
    return [struct.unpack("<f", struct.pack("<f", byte / 256))[0] for byte in digest[:8]]


class OpenAIVendor(Vendor):
    """See the module."""

    models: ClassVar = (
        "gpt-3.5-turbo-0125",
        "gpt-4o",
        "gpt-5-mini",
        "davinci-002",
        "text-embedding-3-small",
        "dall-e-3",
        "gpt-image-1",
        "tts-1",
        "whisper-1",
        "gpt-4o-transcribe",
    )
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
    errors: ClassVar[dict[str, tuple[int, str | None, str]]] = {
        "wrong_key": (401, "invalid_api_key", "invalid_request_error"),
        "forbidden": (403, None, "insufficient_permissions"),
        "no_model": (404, "model_not_found", "invalid_request_error"),
        "bad_request": (400, "invalid_value", "invalid_request_error"),
        "too_long": (400, "context_length_exceeded", "invalid_request_error"),
        "filtered": (400, "content_filter", "invalid_request_error"),
        "rate_limited": (429, "rate_limit_exceeded", "requests"),
        "quota": (429, "insufficient_quota", "insufficient_quota"),
        "overloaded": (503, None, "service_unavailable_error"),
        "failed": (500, None, "server_error"),
        "long": (400, "string_above_max_length", "invalid_request_error"),
    }
    """Status, code and type of each kind of error."""
    prefix = "/v1"

    def routes(self) -> Iterable[web.RouteDef]:
        p = self.prefix
        yield web.get(f"{p}/models", self.list_models)
        yield web.get(f"{p}/models/{{model}}", self.one_model)
        yield web.post(f"{p}/chat/completions", self.chat)
        yield web.post(f"{p}/completions", self.complete)
        yield web.post(f"{p}/embeddings", self.embed)
        yield web.post(f"{p}/images/generations", self.draw)
        yield web.get("/files/pixel.png", self.pixel)
        yield web.post(f"{p}/audio/speech", self.speak)
        yield web.post(f"{p}/audio/transcriptions", self.transcribe)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, type_ = self.errors[kind]
        error = {"message": message, "type": type_, "param": None, "code": code}
        return web.json_response(
            {"error": error}, status=status, headers={"x-request-id": "req_0123456789"}
        )

    def check_key(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "")
        self.expect(given == f"Bearer {self.key}", "Incorrect API key provided", "wrong_key")

    def check_json(self, request: web.Request) -> None:
        self.expect(request.content_type == "application/json", "unsupported content type")

    def check_model(self, model: str) -> None:
        known = model in self.models
        self.expect(known, f"The model `{model}` does not exist", "no_model")

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        data = [self.model_object(model) for model in self.models]
        return web.json_response({"object": "list", "data": data})

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_model(request.match_info["model"])
        return web.json_response(self.model_object(request.match_info["model"]))

    @staticmethod
    def model_object(model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": CREATED, "owned_by": "system"}

    # Chat.

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_json(request)
        body = self.decode(await request.read(), ChatBody)
        self.check_model(body.model)
        self.check_chat(body)
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            answer, reason = made_up(
                _question(body.messages),
                max_tokens=body.max_completion_tokens or body.max_tokens,
                stop=[body.stop] if isinstance(body.stop, str) else body.stop or (),
                schema=body.response_format and body.response_format.json_schema,
            )
            return answer

        answer = self.next_answer(make)
        reason = answer.finish or ("tool_calls" if answer.tool_calls else reason)
        if not body.stream:
            return await self.whole(
                request,
                self.completion(body, answer, reason),
                headers={"x-request-id": "req_0123456789"},
            )
        return await self.stream(request, self.sse(self.chunks(body, answer, reason)))

    def check_chat(self, body: ChatBody) -> None:
        """What OpenAI refuses beyond the types."""
        thinks = body.model.startswith(("o1", "o3", "gpt-5"))
        if thinks and body.max_tokens is not None:
            raise Refused(
                "bad_request",
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
            )
        self.expect(
            body.stream or body.stream_options is None,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
        )
        self.expect(
            body.top_logprobs is None or body.logprobs, "top_logprobs needs logprobs to be true"
        )
        self.expect(body.tools or body.tool_choice is None, "tool_choice needs tools")
        form = body.response_format
        if form and form.type == "json_schema":
            self.expect(form.json_schema, "Missing required parameter: json_schema")
        pending: set[str] = set()
        for message in body.messages:
            if isinstance(message, ToolMessage):
                self.expect(message.tool_call_id in pending, "no such tool_call_id")
                pending.discard(message.tool_call_id)
            else:
                self.expect(not pending, "tool_calls must be followed by tool messages")
            if isinstance(message, AssistantMessage):
                self.expect(message.content is not None or message.tool_calls, "empty message")
                pending = {call.id for call in message.tool_calls}

    def completion(self, body: ChatBody, answer: Answer, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["content"] = answer.text or None
            message["tool_calls"] = list(_calls(answer))
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": CREATED,
            "model": body.model,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": _logprobs(answer, body),
                    "finish_reason": reason,
                }
            ],
            "usage": _usage(answer),
        }

    def chunks(self, body: ChatBody, answer: Answer, reason: str) -> Iterator[dict[str, Any]]:
        def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None, **more}
            return {**base, "choices": [choice]}

        base = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": body.model,
        }
        yield chunk({"role": "assistant", "content": ""})
        for word in answer.reasoning.split(" ") if answer.reasoning else ():
            yield chunk({"reasoning_content": f"{word} "})
        for piece in answer.pieces:
            alone = Answer(pieces=[piece])
            yield chunk({"content": piece}, logprobs=_logprobs(alone, body))
        for index, call in enumerate(_calls(answer)):
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            yield chunk({"tool_calls": [{"index": index, **call}]})
            for start in range(0, len(arguments), 5):
                piece = {"arguments": arguments[start : start + 5]}
                yield chunk({"tool_calls": [{"index": index, "function": piece}]})
        yield chunk({}, reason)
        if body.stream_options and body.stream_options.include_usage:
            yield {**base, "choices": [], "usage": _usage(answer)}

    @staticmethod
    def sse(chunks: Iterable[Any]) -> Iterator[bytes]:
        for chunk in chunks:
            yield b"data: " + msgspec.json.encode(chunk) + b"\n\n"
        yield b"data: [DONE]\n\n"

    # Completions.

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_json(request)
        body = self.decode(await request.read(), CompletionBody)
        self.check_model(body.model)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
        answer, reason = made_up(body.prompt, max_tokens=body.max_tokens, stop=stop)
        base = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": CREATED,
            "model": body.model,
        }

        def choice(text: str, finish: str | None) -> list[dict[str, Any]]:
            return [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None}]

        if not body.stream:
            whole = {**base, "choices": choice(answer.text, reason), "usage": _usage(answer)}
            return await self.whole(request, whole)
        chunks: list[dict[str, Any]] = [
            {**base, "choices": choice(piece, None)} for piece in answer.pieces
        ]
        chunks.append({**base, "choices": choice("", reason)})
        if body.stream_options and body.stream_options.include_usage:
            chunks.append({**base, "choices": [], "usage": _usage(answer)})
        return await self.stream(request, self.sse(chunks))

    # Vectors, images, sound.

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_json(request)
        body = self.decode(await request.read(), EmbeddingBody)
        self.check_model(body.model)
        flexible = body.model.startswith("text-embedding-3")
        if body.dimensions is not None:
            self.expect(flexible, "This model does not support specifying dimensions.")
            self.expect(0 < body.dimensions <= 8, "dimensions must be between 1 and 8")
        data = []
        for index, text in enumerate(body.input):
            numbers: Any = vector(text)[: body.dimensions]
            if body.encoding_format == "base64":
                numbers = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": numbers})
        tokens = sum(len(text.split()) for text in body.input)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        # The order is the indexes' business.
        whole = {"object": "list", "data": data[::-1], "model": body.model, "usage": usage}
        return await self.whole(request, whole)

    async def draw(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_json(request)
        body = self.decode(await request.read(), ImageBody)
        self.check_model(body.model)
        if body.model.startswith("gpt-image"):
            known = body.response_format is None
            self.expect(known, "Unknown parameter: 'response_format'.")
        if body.model == "dall-e-3":
            self.expect(body.n == 1, "You must provide n=1 for this model.")
        image = {"revised_prompt": f"{body.prompt}, in detail"}
        if body.response_format == "url":
            image["url"] = f"{self.url}/files/pixel.png"
        else:
            image["b64_json"] = base64.b64encode(PIXEL).decode()
        return await self.whole(request, {"created": CREATED, "data": [image] * body.n})

    async def pixel(self, request: web.Request) -> web.StreamResponse:
        """The file store: it wants no key, and must not be shown one."""
        self.expect("authorization" not in request.headers, "the key was shown to the file store")
        return web.Response(body=PIXEL, content_type="image/png")

    async def speak(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.check_json(request)
        body = self.decode(await request.read(), SpeechBody)
        self.check_model(body.model)
        self.expect(body.voice in VOICES, f"Input should be one of {', '.join(VOICES)}")
        self.expect(len(body.input) <= 4096, "String should have at most 4096 characters", "long")
        sound = spoken(body.input)
        pieces = [sound[at : at + 1000] for at in range(0, len(sound), 1000)]
        return await self.stream(request, pieces, content_type="audio/mpeg")

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        form = await self.form(request)
        known = {"file", "model", "language", "prompt", "response_format", "temperature"}
        self.expect(set(form) <= known, f"unknown fields: {set(form) - known}")
        self.expect({"file", "model"} <= set(form), "file and model are required")
        fields = {name: field.text for name, field in form.items() if name != "file"}
        model, file = fields["model"], form["file"]
        self.check_model(model)
        formats = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".webm")
        audio = file.data
        fine = file.filename.endswith(formats) and audio[:4] in (b"RIFF", b"ID3\x03", b"fLaC")
        self.expect(fine, "Invalid file format.")
        shape = fields.get("response_format", "json")
        allowed = ("json", "text", "verbose_json") if model == "whisper-1" else ("json",)
        self.expect(shape in allowed, f"response_format {shape!r} is not compatible with {model}")
        text = f"{len(audio)} bytes were heard"
        if shape != "verbose_json":
            return await self.whole(request, {"text": text})
        segment = {"id": 0, "seek": 0, "start": 0.0, "end": 1.5, "text": text, "tokens": [1]}
        whole = {
            "task": "transcribe",
            "language": fields.get("language", "english"),
            "duration": 1.5,
            "text": text,
            "segments": [segment],
        }
        return await self.whole(request, whole)


@contextmanager
def scripted_vendor(
    *answers: Answer | str, model: str = "gpt-4o"
) -> Iterator[tuple[ByzerLLM, OpenAIVendor]]:
    """A client in this process whose default model gives these answers in turn, and the vendor
    behind it, which remembers what it was asked.

        with scripted_vendor("first", Answer(tool_calls=[…])) as (llm, vendor):
            llm.chat_oai("a question")
    """
    with OpenAIVendor() as vendor:
        vendor.answers(*answers)
        llm = ByzerLLM(runtime="local").setup_default_model_name("scripted")
        llm.deploy(
            pretrained_model_type="saas/openai",
            udf_name="scripted",
            infer_params={
                "saas.api_key": vendor.key,
                "saas.base_url": f"{vendor.url}/v1",
                "saas.model": model,
            },
        )
        try:
            yield llm, vendor
        finally:
            llm.undeploy("scripted", force=True)


def _question(messages: list[Message]) -> str:
    content = messages[-1].content
    if isinstance(content, list):
        return " ".join(part.text for part in content if isinstance(part, TextPart))
    return content or ""


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.usage
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _calls(answer: Answer) -> Iterator[dict[str, Any]]:
    for number, call in enumerate(answer.tool_calls):
        function = {"name": call["name"], "arguments": call["arguments"]}
        yield {
            "id": call.get("id", f"call_{number}"),
            "type": "function",
            "function": function,
        }


def _logprobs(answer: Answer, body: ChatBody) -> dict[str, Any] | None:
    if not body.logprobs:
        return None

    def one(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    others = range(body.top_logprobs or 0)
    content = [
        {**one(piece, -0.1), "top_logprobs": [one(f"{piece}{n}", -0.1 - n) for n in others]}
        for piece in answer.pieces
    ]
    return {"content": content, "refusal": None}
