"""Google's Gemini, over the package's own HTTP client: the vendor's google-generativeai holds
protobuf under 6, blocks, and cannot be cancelled.

Source: https://ai.google.dev/api/generate-content
"""

from __future__ import annotations

import mimetypes
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct
from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    ContentFilteredError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderError,
    ProviderUnavailableError,
    QuotaExceededError,
)
from byzerllm.hookspecs import hookimpl
from byzerllm.messages import text_of
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.content import arguments_of, data_of, parts_of, state_of, with_state
from byzerllm_saas.errors import ErrorTable, Told, VendorErrors
from byzerllm_saas.http import Stream
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.provider import Provider, Turn
from byzerllm_saas.sampling import given
from byzerllm_saas.sse import Event
from byzerllm_saas.tasks import DOES

EMBEDDING_BATCH = 100
"""Texts that one call for vectors may have."""

_WHERE = "saas/gemini"
_DAILY = "RESOURCE_EXHAUSTED per day"
_SAMPLING: Mapping[str, str] = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
    "stop": "stopSequences",
}
# What only Gemini knows, and where it stands in a request.
_OWN_CONFIG: Mapping[str, str] = {
    "candidate_count": "candidateCount",
    "media_resolution": "mediaResolution",
    "response_mime_type": "responseMimeType",
    "thinking_config": "thinkingConfig",
}
_OWN_FIELDS: Mapping[str, str] = {
    "cached_content": "cachedContent",
    "safety_settings": "safetySettings",
}
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
}
# The model's own slips: another try may do.
_BROKEN = frozenset(
    {
        "MALFORMED_FUNCTION_CALL",
        "MALFORMED_RESPONSE",
        "MISSING_THOUGHT_SIGNATURE",
        "TOO_MANY_TOOL_CALLS",
        "UNEXPECTED_TOOL_CALL",
    }
)
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_METHODS = {"chat": "generateContent", "embedding": "embedContent"}
# The first generation has neither system instructions nor JSON schemas.
_FIRST = re.compile(r"gemini-(pro|ultra|1\.0)")
# From the third on a call must come back with its signature; this stands for a call of another
# model. Source: https://ai.google.dev/gemini-api/docs/thought-signatures
_SIGNS_CALLS = re.compile(r"gemini-([3-9]|\d\d)")
_NO_SIGNATURE = "skip_thought_signature_validator"


class GeminiParameters(KeyParameters):
    """What a deployment at Google can be told."""

    key_variable = "GEMINI_API_KEY"

    model: str = Field("gemini-pro", description="the vendor's name of the model")
    base_url: str = Field(
        "https://generativelanguage.googleapis.com", description="address of the API's host"
    )
    api_version: str = Field("v1beta", description="version of the API: v1beta, v1, …")


SPEC = BackendSpec(
    name="gemini",
    path="byzerllm_saas.providers.gemini:Gemini",
    parameters=GeminiParameters,
    description="Google's Gemini models",
    model_types=("saas/gemini",),
    capabilities=frozenset({"chat", "constrained", "embedding", "tools", "vision"}),
    extra_parameters=frozenset({*_OWN_CONFIG, *_OWN_FIELDS}),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[gemini]'",
)


def _told(body: Any) -> Told:
    """Google's errors: the reason of an `ErrorInfo` says more than the status, `RetryInfo` says how
    long to wait, and `QuotaFailure` for how long the quota is gone."""
    if isinstance(body, list):
        body = body[0] if body else {}
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Told(message=str(body.get("message", "")) if isinstance(body, dict) else "")
    code, wait = str(error.get("status", "")), None
    for detail in error.get("details") or ():
        kind = str(detail.get("@type", "")).rpartition(".")[2]
        if kind == "ErrorInfo":
            code = detail.get("reason") or code
        elif kind == "RetryInfo":
            wait = _seconds(detail.get("retryDelay", ""))
        elif kind == "QuotaFailure" and "PerDay" in str(detail.get("violations")):
            code = _DAILY
    return Told(code, str(error.get("message", "")), retry_after=wait)


def _seconds(duration: str) -> float | None:
    found = re.fullmatch(r"([\d.]+)s", duration)
    return float(found[1]) if found else None


ERRORS = ErrorTable(
    codes={
        "API_KEY_INVALID": AuthenticationError,
        "API_KEY_EXPIRED": AuthenticationError,
        "UNAUTHENTICATED": AuthenticationError,
        "FAILED_PRECONDITION": PermissionDeniedError,
        "NOT_FOUND": HostedModelNotFoundError,
        _DAILY: QuotaExceededError,
        "INTERNAL": ProviderUnavailableError,
    },
    phrases=(
        (re.compile(r"unregistered callers|API key was reported as leaked"), AuthenticationError),
    ),
    read=_told,
)


# What is read of the vendor's JSON; everything else is skipped while it is decoded.


class _Call(Struct):
    name: str
    args: dict[str, Any] = {}
    id: str = ""


class _Part(Struct, rename="camel"):
    text: str = ""
    thought: bool = False
    thought_signature: str = ""
    function_call: _Call | None = None


class _Content(Struct):
    parts: list[_Part] = []


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str = ""
    finish_message: str = ""
    index: int = 0


class _Feedback(Struct, rename="camel"):
    block_reason: str = ""
    block_reason_message: str = ""


class _Usage(Struct, rename="camel"):
    prompt_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    tool_use_prompt_token_count: int = 0

    def plain(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_token_count + self.tool_use_prompt_token_count,
            completion_tokens=self.candidates_token_count + self.thoughts_token_count,
        )


class _Response(Struct, rename="camel"):
    """A whole answer, or a piece of one."""

    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Usage | None = None
    error: Any = None


class _Vector(Struct):
    values: list[float]


class _Vectors(Struct, rename="camel"):
    embeddings: list[_Vector]
    usage_metadata: _Usage | None = None


class _Model(Struct, rename="camel"):
    supported_generation_methods: list[str] = []


_decode = msgspec.json.Decoder(_Response).decode


class Gemini(Provider):
    """A model at Google."""

    spec = SPEC
    errors_table = ERRORS
    parameters: GeminiParameters

    @property
    def path(self) -> str:
        """The model's resource name: `models/…`, or `tunedModels/…` where it is given so."""
        return self.model if "/" in self.model else f"models/{self.model}"

    def url(self, method: str = "") -> str:
        """The address of a call of the model."""
        given, place = self.parameters, quote(self.path, safe="/")
        end = f":{method}" if method else ""
        return f"{given.base_url}/{given.api_version}/{place}{end}"

    def headers(self, key: str) -> dict[str, str]:
        """What shows the key."""
        return {"x-goog-api-key": key}

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        """The JSON of a chat.

        Raises:
            ParameterError: a message or a generation parameter that Gemini does not take.
        """
        signs = _SIGNS_CALLS.search(self.model) is not None
        system, contents = _contents(request.messages or [], signs)
        body: dict[str, Any] = {"contents": contents}
        if system and not self._is_first:
            body["systemInstruction"] = {"parts": [{"text": system}]}
        elif system:
            contents[0]["parts"].insert(0, {"text": system})
        if request.tools:
            declared = [_declaration(tool["function"]) for tool in request.tools]
            body["tools"] = [{"functionDeclarations": declared}]
            if request.tool_choice is not None:
                config = _calling(request.tool_choice)
                body["toolConfig"] = {"functionCallingConfig": config}
        config = self._config(request)
        for name, value in request.sampling.extra.items():
            if name in _OWN_CONFIG:
                config[_OWN_CONFIG[name]] = value
            else:
                body[_OWN_FIELDS[name]] = value
        if config:
            body["generationConfig"] = config
        body.update(request.extra)
        return body

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a message or a generation parameter that Gemini does not take.
            ProviderError, ContextLengthError: the vendor's refusal or failure.
        """
        body = self.chat_body(request)
        async with self.turn("chat", request) as turn:
            headers = self.headers(turn.key)
            if not request.stream:
                url = self.url("generateContent")
                answer = await self.http.send("POST", url, json=body, headers=headers)
                reading = _Reading(self.errors)
                chunk = reading.chunk([self.http.decode(answer.body, _Response)])
                if reading.finish is None:
                    raise self.errors.protocol("the answer has no candidates")
                turn.used(reading.usage)
                yield reading.last(chunk)
                return
            # Without `alt=sse` the pieces are the items of one JSON array.
            url = f"{self.url('streamGenerateContent')}?alt=sse"
            async with (
                self.http.stream("POST", url, json=body, headers=headers) as stream,
                aclosing(self._chunks(stream, turn)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text, as many calls as Gemini's limit makes of it."""
        return await self.in_batches(request, EMBEDDING_BATCH, self._embed)

    async def check(self) -> None:
        """Asks for the model by its name, and whether it does what it is deployed for.

        Raises:
            CapabilityError: it does something else.
        """
        headers = self.headers(self.keys.pick())
        answer = await self.http.send("GET", self.url(), headers=headers)
        model: _Model = self.http.decode(answer.body, _Model)
        methods = model.supported_generation_methods
        wanted = _METHODS.get(self.task, "")
        if methods and wanted and wanted not in methods:
            raise CapabilityError(
                f"model {self.model!r} of gemini is none that {DOES[self.task]}; "
                f"it has {', '.join(methods)}",
                vendor="gemini",
                vendor_model=self.model,
            )

    async def meta(self) -> ModelMeta:
        meta = await super().meta()
        meta.constrained = meta.constrained and not self._is_first
        return meta

    # Inside.

    @property
    def _is_first(self) -> bool:
        return _FIRST.search(self.model) is not None

    def _config(self, request: GenerateRequest) -> dict[str, Any]:
        names = set(_SAMPLING) | (set() if self._is_first else {"json_schema"})
        config: dict[str, Any] = {}
        for name, value in given(request.sampling):
            if name not in names:
                raise self.unsupported(name, names)
            if name == "json_schema":
                config["responseMimeType"] = "application/json"
                config["responseJsonSchema"] = value
            else:
                config[_SAMPLING[name]] = value
        return config

    async def _chunks(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        reading = _Reading(self.errors)
        held: GenerateChunk | None = None
        try:
            async with aclosing(stream.events()) as batches:
                async for events in batches:
                    chunk = reading.chunk(self._parsed(events, stream))
                    if chunk is None:
                        continue
                    if held is not None:
                        yield held
                    held = None
                    # The vendor has no event of its own for the end: the last chunk waits for it.
                    if reading.finish is None:
                        yield chunk
                    else:
                        held = chunk
        except ProviderError:
            if reading.finish is None:
                raise
        if reading.finish is None:
            raise self.errors.unavailable(
                "the stream ended before the answer did", retryable=not reading.begun
            )
        turn.used(reading.usage)
        yield reading.last(held)

    def _parsed(self, events: Sequence[Event], stream: Stream) -> list[_Response]:
        found: list[_Response] = []
        for event in events:
            if not event.data:
                continue
            try:
                response = _decode(event.data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                response = self.http.decode(event.data, _Response)
            if response.error:
                raise self.errors.of_body(self.http.decode(event.data), headers=stream.headers)
            found.append(response)
        return found

    async def _embed(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        extra = dict(request.extra)
        if request.dimensions is not None:
            extra["outputDimensionality"] = request.dimensions
        asked = [
            {"model": self.path, "content": {"parts": [{"text": text}]}, **extra} for text in texts
        ]
        async with self.turn("embedding", request) as turn:
            answer = await self.http.send(
                "POST",
                self.url("batchEmbedContents"),
                json={"requests": asked},
                headers=self.headers(turn.key),
            )
            found: _Vectors = self.http.decode(answer.body, _Vectors)
            if len(found.embeddings) != len(texts):
                raise self.errors.protocol(
                    f"{len(found.embeddings)} vectors came for {len(texts)} texts",
                    headers=answer.headers,
                )
            # Not every model counts.
            usage = found.usage_metadata.plain() if found.usage_metadata else Usage()
            turn.used(usage)
            return EmbedResult(vectors=[one.values for one in found.embeddings], usage=usage)


class _Reading:
    """Turns what the wire says into chunks, for one answer.

    Attributes:
        usage, finish: as soon as they are known.
        begun: something has been passed on.
    """

    def __init__(self, errors: VendorErrors) -> None:
        self.usage = Usage()
        self.finish: FinishReason | None = None
        self.begun = False
        self._errors = errors
        self._calls = 0

    def chunk(self, responses: Iterable[_Response]) -> GenerateChunk | None:
        """One chunk of what arrived together; None where it brings nothing to read.

        Raises:
            ContentFilteredError: the question was refused.
            ProviderUnavailableError: the model did not keep to the form of its own calls.
        """
        chunk = GenerateChunk()
        for response in responses:
            if response.usage_metadata is not None:
                self.usage = response.usage_metadata.plain()
            if response.prompt_feedback is not None:
                self._check(response.prompt_feedback)
            for candidate in response.candidates:
                if candidate.index == 0:
                    self._read(chunk, candidate)
        if not (chunk.text or chunk.reasoning or chunk.tool_calls):
            return None
        self.begun = True
        return chunk

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        """The last chunk, with reason and usage."""
        chunk = chunk or GenerateChunk()
        reason = self.finish or "stop"
        chunk.finish_reason = "tool_calls" if self._calls and reason == "stop" else reason
        chunk.usage = self.usage
        return chunk

    def _check(self, feedback: _Feedback) -> None:
        if feedback.block_reason:
            raise self._errors.make(
                ContentFilteredError,
                feedback.block_reason_message or "the question was blocked",
                status=200,
                code=feedback.block_reason,
            )

    def _read(self, chunk: GenerateChunk, candidate: _Candidate) -> None:
        for part in candidate.content.parts if candidate.content else ():
            if part.function_call is not None:
                chunk.tool_calls.append(self._call(part.function_call, part.thought_signature))
            elif part.thought:
                chunk.reasoning += part.text
            else:
                chunk.text += part.text
        reason = candidate.finish_reason
        if reason in _BROKEN:
            raise self._errors.make(
                ProviderUnavailableError,
                candidate.finish_message or "the model broke off",
                status=200,
                code=reason,
            )
        if reason:
            # All the others are filters, under many names.
            self.finish = _FINISH_REASONS.get(reason, "content_filter")

    def _call(self, call: _Call, signature: str) -> ToolCallDelta:
        number = self._calls
        self._calls += 1
        state = {"id": call.id, "signature": signature}
        state = {key: value for key, value in state.items() if value}
        return ToolCallDelta(
            index=number,
            id=with_state(call.id or f"call_{uuid.uuid4().hex[:24]}", state),
            name=call.name,
            arguments=msgspec.json.encode(call.args).decode(),
        )


def _contents(
    messages: Sequence[Mapping[str, Any]], signs: bool
) -> tuple[str, list[dict[str, Any]]]:
    """The system text, and contents whose roles take turns; the results of calls stand alone."""
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    # What the last content is: texts and results are both the user's, but do not mix.
    last = ""
    for message in messages:
        role = message["role"]
        if role in ("system", "developer"):
            system.append(text_of(message["content"]))
            continue
        if role == "assistant":
            calls = message.get("tool_calls") or ()
            names.update((call["id"], call["function"]["name"]) for call in calls)
            parts = _said(message, signs)
        elif role == "tool":
            parts = [_result(message, names)]
        elif role == "user":
            parts = [_part(part) for part in parts_of(message["content"])]
        else:
            raise ParameterError(f"{_WHERE}: there is no role {role!r}", parameter="conversations")
        if role == last and contents:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": "model" if role == "assistant" else "user", "parts": parts})
            last = role
    if not contents:
        raise ParameterError(
            f"{_WHERE}: the conversation holds nothing beside system messages; add a user message",
            parameter="conversations",
        )
    return "\n\n".join(filter(None, system)), contents


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"text": part["text"]}
    if kind == "input_audio":
        audio = part["input_audio"]
        return {"inlineData": {"mimeType": f"audio/{audio['format']}", "data": audio["data"]}}
    if kind != "image_url":
        raise ParameterError(
            f"{_WHERE}: parts of type {kind!r} are not taken; text, images and sounds are",
            parameter="conversations",
        )
    url = part["image_url"]["url"]
    data = data_of(url, where=_WHERE)
    if data is not None:
        return {"inlineData": {"mimeType": data.media_type, "data": data.base64}}
    media_type, _ = mimetypes.guess_type(urlsplit(url).path)
    file = {"fileUri": url}
    return {"fileData": {**file, "mimeType": media_type} if media_type else file}


def _said(message: Mapping[str, Any], signs: bool) -> list[dict[str, Any]]:
    texts = parts_of(message.get("content"))
    parts: list[dict[str, Any]] = [
        {"text": part.get("text") or part.get("refusal") or ""} for part in texts
    ]
    for number, call in enumerate(message.get("tool_calls") or ()):
        _, state = state_of(call["id"])
        known = state if isinstance(state, dict) else {}
        made = {"name": call["function"]["name"], "args": arguments_of(call, where=_WHERE)}
        part: dict[str, Any] = {"functionCall": made}
        if known.get("id"):
            made["id"] = known["id"]
        if known.get("signature"):
            part["thoughtSignature"] = known["signature"]
        elif signs and not number:
            part["thoughtSignature"] = _NO_SIGNATURE
        parts.append(part)
    return parts


def _result(message: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    id_ = message.get("tool_call_id") or ""
    name = names.get(id_) or message.get("name")
    if not name:
        raise ParameterError(
            f"{_WHERE}: no call {id_!r} stands before its result", parameter="conversations"
        )
    text = text_of(message["content"])
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = text
    response: dict[str, Any] = {
        "name": name,
        "response": value if isinstance(value, dict) else {"result": value},
    }
    _, state = state_of(id_)
    if isinstance(state, dict) and state.get("id"):
        response["id"] = state["id"]
    return {"functionResponse": response}


def _declaration(function: Mapping[str, Any]) -> dict[str, Any]:
    declared = {"name": function["name"]}
    if function.get("description"):
        declared["description"] = function["description"]
    schema = function.get("parameters")
    return {**declared, "parametersJsonSchema": schema} if schema else declared


def _calling(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        return {"mode": _MODES[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
