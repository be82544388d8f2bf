"""Google's generative language API: content, embeddings, models.

With `$alt=json;enum-encoding=int`, as google-generativeai asks for it, enums are numbers; without
`alt=sse` a stream is one JSON array.

Source: https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from byzerllm_saas.media import image_format
from vendors.server import Answer, Refused, Vendor, made_up, split_words

T = TypeVar("T")
SIGNATURE = base64.b64encode(b"what was thought").decode()
NO_SIGNATURE = "skip_thought_signature_validator"
FINISH = ("", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER")
BLOCK = ("", "SAFETY", "OTHER")


class Strict(Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """A body in which a field that Google does not know is refused."""


class Blob(Strict):
    mime_type: str
    data: str


class FileData(Strict):
    file_uri: Annotated[str, Meta(pattern=r"^https?://")]
    mime_type: str = ""


class FunctionCall(Strict):
    name: str
    args: dict[str, Any] = {}
    id: str = ""


class FunctionResponse(Strict):
    name: str
    response: dict[str, Any]
    id: str = ""


class Part(Strict):
    text: str | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    thought: bool = False
    thought_signature: str = ""


class Content(Strict):
    parts: Annotated[list[Part], Meta(min_length=1)]
    role: Literal["user", "model", "function"] | None = None


class ThinkingConfig(Strict):
    include_thoughts: bool = False
    thinking_budget: int | None = None


class GenerationConfig(Strict):
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    candidate_count: int | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=5)] = []
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    response_mime_type: Literal["text/plain", "application/json"] = "text/plain"
    response_schema: dict[str, Any] | None = None
    response_json_schema: dict[str, Any] | None = None
    thinking_config: ThinkingConfig | None = None


class FunctionDeclaration(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z_][\w.:-]{0,63}$")]
    description: str = ""
    parameters: dict[str, Any] | None = None
    parameters_json_schema: dict[str, Any] | None = None


class Tool(Strict):
    function_declarations: Annotated[list[FunctionDeclaration], Meta(min_length=1)]


class FunctionCallingConfig(Strict):
    mode: Literal["AUTO", "ANY", "NONE"] | int = "AUTO"
    allowed_function_names: list[str] = []


class ToolConfig(Strict):
    function_calling_config: FunctionCallingConfig


class SafetySetting(Strict):
    category: str | int
    threshold: str | int


class GenerateBody(Strict):
    """`POST /v1beta/models/MODEL:generateContent`."""

    contents: Annotated[list[Content], Meta(min_length=1)]
    system_instruction: Content | None = None
    generation_config: GenerationConfig = msgspec.field(default_factory=GenerationConfig)
    tools: list[Tool] = []
    tool_config: ToolConfig | None = None
    safety_settings: list[SafetySetting] = []
    cached_content: str = ""


class EmbedBody(Strict):
    model: str
    content: Content
    task_type: str | int = ""
    title: str = ""
    output_dimensionality: int | None = None


class EmbedOneBody(Strict):
    """`POST /v1beta/models/MODEL:embedContent`."""

    content: Content
    model: str = ""
    task_type: str | int = ""


class BatchBody(Strict):
    """`POST /v1beta/models/MODEL:batchEmbedContents`."""

    requests: Annotated[list[EmbedBody], Meta(min_length=1, max_length=100)]


def vector(text: str) -> list[float]:
    """Eight numbers that a text and no other has."""
    return [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:8]]


# What is the caller's own data, in which names stay as they are.
FREE = frozenset(
    {
        "args",
        "parameters",
        "parametersJsonSchema",
        "response",
        "responseJsonSchema",
        "responseSchema",
    }
)


def camel(value: Any) -> Any:
    """A body with all names in camel case: Google's JSON takes them in snake case, too."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {re.sub(r"_([a-z])", lambda m: m[1].upper(), key): v for key, v in value.items()}
    return {key: v if key in FREE else camel(v) for key, v in named.items()}


class GeminiVendor(Vendor):
    """See the module."""

    models: ClassVar = ("gemini-pro", "gemini-2.5-flash", "gemini-3-flash", "gemini-embedding-001")
    kinds: ClassVar = frozenset(
        {
            "wrong_key",
            "forbidden",
            "no_model",
            "bad_request",
            "too_long",
            "rate_limited",
            "quota",
            "overloaded",
            "failed",
        }
    )
    errors: ClassVar[dict[str, tuple[int, str, str]]] = {
        "wrong_key": (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        "no_key": (
            403,
            "PERMISSION_DENIED",
            "Method doesn't allow unregistered callers (callers without established identity).",
        ),
        "forbidden": (403, "PERMISSION_DENIED", "The caller does not have permission"),
        "no_model": (404, "NOT_FOUND", "models/x is not found for API version v1beta"),
        "bad_request": (400, "INVALID_ARGUMENT", "{}"),
        "too_long": (
            400,
            "INVALID_ARGUMENT",
            "The input token count (1048580) exceeds the maximum number of tokens allowed "
            "(1048576).",
        ),
        "rate_limited": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted."),
        "quota": (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota."),
        "overloaded": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
        "failed": (500, "INTERNAL", "An internal error has occurred."),
        "no_country": (400, "FAILED_PRECONDITION", "User location is not supported."),
        "slow": (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    }
    """Status, Google's name of it and message of each kind of error."""

    def routes(self) -> Iterable[web.RouteDef]:
        # google-generativeai asks v1beta, google-genai v1.
        model = "/{version:v1|v1beta}/models/{model}"
        yield web.get(model, self.one_model)
        yield web.post(f"{model}:generateContent", self.generate)
        yield web.post(f"{model}:streamGenerateContent", self.generate)
        yield web.post(f"{model}:embedContent", self.embed_one)
        yield web.post(f"{model}:batchEmbedContents", self.embed)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, name, text = self.errors[kind]
        error: dict[str, Any] = {"code": status, "message": text.format(message), "status": name}
        google = "type.googleapis.com/google.rpc"
        if kind == "wrong_key":
            info = {"reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            error["details"] = [{"@type": f"{google}.ErrorInfo", **info}]
        if kind in ("rate_limited", "quota"):
            per = "Minute" if kind == "rate_limited" else "Day"
            violation = {"quotaId": f"GenerateRequestsPer{per}PerProjectPerModel"}
            error["details"] = [
                {"@type": f"{google}.QuotaFailure", "violations": [violation]},
                {"@type": f"{google}.RetryInfo", "retryDelay": "0.2s"},
            ]
        return web.json_response({"error": error}, status=status)

    def check(self, request: web.Request) -> str:
        """Checks key and model; returns the model."""
        key = request.headers.get("x-goog-api-key", "")
        self.expect(key, "no key", "no_key")
        self.expect(key == self.key, "another key", "wrong_key")
        model = request.match_info["model"]
        self.expect(model in self.models, f"no {model}", "no_model")
        return model

    async def body(self, request: web.Request, wanted: type[T]) -> T:
        self.expect(request.content_type == "application/json", "Unsupported content type")
        plain = self.decode(await request.read(), dict[str, Any])
        return self.decode(msgspec.json.encode(camel(plain)), wanted)

    async def one_model(self, request: web.Request) -> web.StreamResponse:
        model = self.check(request)
        methods = ["generateContent", "countTokens"]
        if "embedding" in model:
            methods = ["embedContent"]
        return web.json_response({"name": f"models/{model}", "supportedGenerationMethods": methods})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        model = self.check(request)
        self.expect("embedding" not in model, "not supported for generateContent", "no_model")
        body = await self.body(request, GenerateBody)
        self.check_body(model, body)
        numbered = request.query.get("$alt") == "json;enum-encoding=int"
        answer, reason = self.answer(body)
        streamed = request.path.endswith("streamGenerateContent")
        responses = list(self.responses(model, answer, reason, pieces=streamed))
        if numbered:
            responses = [_numbered(response) for response in responses]
        if not streamed:
            return await self.whole(request, responses[0])
        if request.query.get("alt") == "sse":
            return await self.stream(request, self.sse(responses))
        items = self.array(responses)
        return await self.stream(request, items, content_type="application/json")

    def check_body(self, model: str, body: GenerateBody) -> None:
        """What Google refuses beyond the types."""
        config = body.generation_config
        schema = config.response_schema or config.response_json_schema
        json_type = config.response_mime_type == "application/json"
        self.expect(json_type or not schema, "Function calling with response schema needs JSON")
        first = model == "gemini-pro"
        self.expect(
            not first or body.system_instruction is None,
            f"Developer instruction is not enabled for models/{model}",
        )
        self.expect(not first or not schema, f"JSON mode is not enabled for models/{model}")
        self.expect(body.tools or body.tool_config is None, "tool_config needs tools")
        called: list[FunctionCall] = []
        for content in body.contents:
            self.expect(content.role, "Please use a valid role: user, model.")
            responses = [p.function_response for p in content.parts if p.function_response]
            self.expect(
                [(r.name, r.id) for r in responses] == [(c.name, c.id) for c in called],
                "Please ensure that the number of function response parts is equal to the number "
                "of function call parts of the function call turn.",
            )
            called = [part.function_call for part in content.parts if part.function_call]
            for part in content.parts:
                self.check_part(part)
            if called and model.startswith("gemini-3"):
                signatures = [p.thought_signature for p in content.parts if p.function_call]
                known = signatures[0] in (SIGNATURE, NO_SIGNATURE)
                self.expect(known, "Function call is missing a thought_signature")
        self.expect(not called, "function call turn without function response turn")

    def check_part(self, part: Part) -> None:
        kinds = (part.text, part.inline_data, part.file_data)
        calls = (part.function_call, part.function_response)
        held = [value for value in (*kinds, *calls) if value is not None]
        self.expect(len(held) == 1, "contents.parts: must have exactly one initialized field")
        if part.inline_data and part.inline_data.mime_type.startswith("image/"):
            try:
                # Google takes both alphabets.
                encoded = part.inline_data.data.replace("-", "+").replace("_", "/")
                data = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise Refused("bad_request", "Base64 decoding failed") from None
            fits = f"image/{image_format(data)}" == part.inline_data.mime_type
            self.expect(fits, "Provided image is not valid.")

    def answer(self, body: GenerateBody) -> tuple[Answer, str]:
        reason = "STOP"
        config = body.generation_config

        def make() -> Answer:
            nonlocal reason
            parts = body.contents[-1].parts
            answer, ended = made_up(
                " ".join(part.text or "" for part in parts),
                max_tokens=config.max_output_tokens,
                stop=config.stop_sequences,
                schema=config.response_schema or config.response_json_schema,
            )
            reason = "MAX_TOKENS" if ended == "length" else "STOP"
            return answer

        answer = self.next_answer(make)
        return answer, answer.finish or reason

    def responses(
        self, model: str, answer: Answer, reason: str, *, pieces: bool
    ) -> Iterator[dict[str, Any]]:
        """The answer as a whole or in pieces. A reason `blocked:…` refuses the question."""
        prompt, completion = answer.usage
        usage = {"promptTokenCount": prompt, "candidatesTokenCount": completion}
        if answer.reasoning:
            usage.update(candidatesTokenCount=completion - 1, thoughtsTokenCount=1)
        base = {"usageMetadata": {"promptTokenCount": prompt}, "modelVersion": model}
        if reason.startswith("blocked:"):
            yield {**base, "promptFeedback": {"blockReason": reason.removeprefix("blocked:")}}
            return
        thoughts = split_words(answer.reasoning) if pieces else [answer.reasoning]
        texts = answer.pieces if pieces else [answer.text]
        parts: list[dict[str, Any]] = [{"text": text, "thought": True} for text in thoughts if text]
        parts += [{"text": text} for text in texts]
        signed = {"thoughtSignature": SIGNATURE} if model.startswith("gemini-3") else {}
        for number, call in enumerate(answer.tool_calls):
            made = {"name": call["name"], "args": msgspec.json.decode(call["arguments"])}
            if signed:
                made["id"] = f"id{number}"
            parts.append({"functionCall": made, **({} if number else signed)})
        if answer.tool_calls and not answer.text:
            parts = [part for part in parts if part.get("text") != ""]

        def response(parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
            content = {"parts": parts, "role": "model"}
            return {**base, "candidates": [{"content": content, "index": 0, **more}]}

        if not pieces:
            yield {**response(parts, finishReason=reason), "usageMetadata": usage}
            return
        for part in parts:
            yield response([part])
        yield {**response([{"text": ""}], finishReason=reason), "usageMetadata": usage}

    @staticmethod
    def sse(responses: Iterable[Any]) -> Iterator[bytes]:
        for response in responses:
            yield b"data: " + msgspec.json.encode(response) + b"\r\n\r\n"

    @staticmethod
    def array(responses: Iterable[Any]) -> Iterator[bytes]:
        begin = b"["
        for response in responses:
            yield begin + msgspec.json.encode(response)
            begin = b"\n,\r\n"
        yield b"\n]"

    # Vectors.

    async def embed(self, request: web.Request) -> web.StreamResponse:
        model = self.check(request)
        body = await self.body(request, BatchBody)
        for one in body.requests:
            same = one.model == f"models/{model}"
            self.expect(same, "all requests must be of the model in the URL")
        texts = [_text(one.content) for one in body.requests]
        tokens = sum(len(text.split()) for text in texts)
        whole = {
            "embeddings": [
                {"values": vector(text)[: one.output_dimensionality]}
                for text, one in zip(texts, body.requests, strict=True)
            ],
            "usageMetadata": {"promptTokenCount": tokens},
        }
        return await self.whole(request, whole)

    async def embed_one(self, request: web.Request) -> web.StreamResponse:
        self.check(request)
        body = await self.body(request, EmbedOneBody)
        return await self.whole(request, {"embedding": {"values": vector(_text(body.content))}})


def _text(content: Content) -> str:
    return " ".join(part.text or "" for part in content.parts)


def _numbered(response: dict[str, Any]) -> dict[str, Any]:
    """The response with numbers for enums."""
    for candidate in response.get("candidates", ()):
        if "finishReason" in candidate:
            candidate["finishReason"] = FINISH.index(candidate["finishReason"])
    feedback = response.get("promptFeedback")
    if feedback:
        feedback["blockReason"] = BLOCK.index(feedback["blockReason"])
    return response
