"""Models on Amazon Bedrock: Llama, Claude, and Titan's vectors. botocore signs (SigV4) and reads
the frames of streams; the package's own HTTP client does the rest, in a third of boto3's memory.

Source: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import quote

from msgspec import Struct
from pydantic import Field, SecretStr, field_validator

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    ContentFilteredError,
    HostedModelNotFoundError,
    NotInstalledError,
    ParameterError,
    PermissionDeniedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
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
    Usage,
)
from byzerllm_saas.anthropic_wire import (
    ANTHROPIC_SAMPLING,
    AnthropicReading,
    Message,
    StreamEvent,
    messages_body,
)
from byzerllm_saas.conversation import sampling_given
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.http import Answer, Stream, encode_json
from byzerllm_saas.parameters import SaasParameters, check_url, refused
from byzerllm_saas.provider import Provider, Turn

Family = Literal["claude", "llama", "titan"]

INSTALL = "pip install 'byzerllm-saas[aws-bedrock]'"
CLAUDE_VERSION = "bedrock-2023-05-31"

_WHERE = "saas/aws_bedrock"
_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("anthropic.claude", "claude"),
    ("meta.llama", "llama"),
    ("amazon.titan-embed", "titan"),
)
_LLAMA_SAMPLING: Mapping[str, str] = {
    "max_tokens": "max_gen_len",
    "temperature": "temperature",
    "top_p": "top_p",
}
_LLAMA_FINISH: Mapping[str, FinishReason] = {"stop": "stop", "length": "length"}
_LLAMA_2 = re.compile(r"llama-?2")
# A profile spreads requests over regions; its name is the model's with a region before it.
_PROFILE = re.compile(r"(us|us-gov|eu|apac|jp|au|ca|global)\.")


class BedrockParameters(SaasParameters):
    """What a deployment on Amazon Bedrock can be told."""

    model: str = Field(
        "", description="id of the model, of an inference profile, or an ARN of one of them"
    )
    base_url: str = Field(
        "", description="address of the runtime's endpoint; by default the region's"
    )
    control_url: str = Field(
        "",
        description="address of the endpoint that knows models; by default the region's where "
        "base_url is not given",
    )
    region_name: str = Field(
        "", description="the region: us-east-1, eu-central-1, …", validate_default=True
    )
    aws_access_key: SecretStr | None = Field(
        None, description="id of the access key", validate_default=True
    )
    aws_secret_key: SecretStr | None = Field(
        None, description="the access key's secret", validate_default=True
    )
    aws_session_token: SecretStr | None = Field(None, description="token of a temporary access key")
    model_api_version: str = Field(
        CLAUDE_VERSION, description="anthropic_version of the body; Claude models only"
    )
    max_tokens: int = Field(
        4096, ge=1, description="limit of new tokens where a request has none; Claude models only"
    )
    family: Family | None = Field(
        None, description="how the model is asked; by default its name says so"
    )

    @field_validator("control_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return check_url(value) if value else value

    @field_validator("aws_access_key")
    @classmethod
    def _has_key(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked(value, "saas.aws_access_key", "AWS_ACCESS_KEY_ID")

    @field_validator("aws_secret_key")
    @classmethod
    def _has_secret(cls, value: SecretStr | None) -> SecretStr | None:
        return _checked(value, "saas.aws_secret_key", "AWS_SECRET_ACCESS_KEY")

    @field_validator("region_name")
    @classmethod
    def _has_region(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", value):
            raise refused(f"the name of a region is needed, as us-east-1 (got {value!r})")
        return value


def _checked(value: SecretStr | None, name: str, variable: str) -> SecretStr:
    if value is None or not value.get_secret_value().strip():
        raise refused(
            f"no key is given; pass {name}='${{{variable}}}', which takes it from the environment"
        )
    return value


SPEC = BackendSpec(
    name="aws_bedrock",
    path="byzerllm_saas.providers.aws_bedrock:Bedrock",
    parameters=BedrockParameters,
    description="Llama, Claude and Titan on Amazon Bedrock",
    model_types=("saas/aws_bedrock",),
    capabilities=frozenset({"chat", "completion", "embedding", "tools", "vision"}),
    extra_parameters=frozenset({"anthropic_beta", "thinking"}),
    default_concurrency=10,
    hosted=True,
    install=INSTALL,
)

ERRORS = ErrorTable(
    codes={
        "AccessDeniedException": PermissionDeniedError,
        "ExpiredTokenException": AuthenticationError,
        "IncompleteSignatureException": AuthenticationError,
        "InternalServerException": ProviderUnavailableError,
        "InvalidSignatureException": AuthenticationError,
        "MissingAuthenticationTokenException": AuthenticationError,
        "ModelErrorException": ProviderUnavailableError,
        "ModelNotReadyException": ProviderOverloadedError,
        "ModelStreamErrorException": ProviderUnavailableError,
        "ModelTimeoutException": ProviderTimeoutError,
        "ResourceNotFoundException": HostedModelNotFoundError,
        "ServiceQuotaExceededException": QuotaExceededError,
        "ServiceUnavailableException": ProviderOverloadedError,
        "ThrottlingException": RateLimitedError,
        "UnrecognizedClientException": AuthenticationError,
    },
    phrases=(
        (re.compile(r"model identifier is invalid"), HostedModelNotFoundError),
        (re.compile(r"blocked by content filtering"), ContentFilteredError),
    ),
)


# What is read of the JSON; everything else is skipped while it is decoded.


class _Frame(Struct):
    bytes: str


class _Generation(Struct):
    """A whole answer of Llama, or a piece of one."""

    generation: str = ""
    prompt_token_count: int | None = None
    generation_token_count: int | None = None
    stop_reason: str | None = None


class _Vector(Struct, rename="camel"):
    embedding: list[float]
    input_text_token_count: int = 0


class Reading(Protocol):
    """Turns what a family's models say into chunks, for one answer."""

    @property
    def usage(self) -> Usage: ...
    @property
    def finish(self) -> FinishReason | None: ...
    def whole(self, message: Any) -> GenerateChunk: ...
    def chunk(self, events: Iterable[Any]) -> GenerateChunk | None: ...
    def last(self, chunk: GenerateChunk | None) -> GenerateChunk: ...


class _LlamaReading:
    def __init__(self) -> None:
        self.finish: FinishReason | None = None
        self._prompt = self._answer = 0

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=self._prompt, completion_tokens=self._answer)

    def whole(self, message: _Generation) -> GenerateChunk:
        chunk = self.chunk([message])
        self.finish = self.finish or "stop"
        return self.last(chunk)

    def chunk(self, events: Iterable[_Generation]) -> GenerateChunk | None:
        text = ""
        for event in events:
            text += event.generation
            # The count of the prompt comes with the first piece alone.
            self._prompt = event.prompt_token_count or self._prompt
            self._answer = event.generation_token_count or self._answer
            if event.stop_reason:
                self.finish = _LLAMA_FINISH.get(event.stop_reason, "stop")
        return GenerateChunk(text=text) if text else None

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        chunk = chunk or GenerateChunk()
        chunk.finish_reason, chunk.usage = self.finish or "stop", self.usage
        return chunk


class Bedrock(Provider):
    """A model on Amazon Bedrock."""

    spec = SPEC
    errors_table = ERRORS
    parameters: BedrockParameters
    _types: ClassVar[Mapping[str, tuple[type[Any], type[Any]]]] = {
        "claude": (Message, StreamEvent),
        "llama": (_Generation, _Generation),
    }

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self.family = self.parameters.family or _family_of(self.model)
        if self.family == "titan":
            self.task = "embedding"
        region = self.parameters.region_name
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        self.runtime = self.parameters.base_url or f"https://bedrock-runtime.{region}.{domain}"
        self.control = self.parameters.control_url
        if not self.control and not self.parameters.base_url:
            self.control = f"https://bedrock.{region}.{domain}"

    async def open(self) -> None:
        """Make the signer.

        Raises:
            NotInstalledError: botocore is missing.
        """
        try:
            from botocore.auth import SigV4Auth
            from botocore.credentials import Credentials
        except ModuleNotFoundError as error:
            raise NotInstalledError(
                f"provider 'aws_bedrock' needs the package {error.name!r}; run: {INSTALL}"
            ) from error
        key, secret, token = (
            value.get_secret_value().strip() if value else None
            for value in (
                self.parameters.aws_access_key,
                self.parameters.aws_secret_key,
                self.parameters.aws_session_token,
            )
        )
        credentials = Credentials(key, secret, token)
        self._signer = SigV4Auth(credentials, "bedrock", self.parameters.region_name)
        await super().open()

    def signed(self, method: str, url: str, body: bytes = b"") -> dict[str, str]:
        """The headers of a request, signature included."""
        from botocore.awsrequest import AWSRequest

        headers = {"content-type": "application/json", "accept": "application/json"}
        if method == "GET":
            del headers["content-type"]
        request = AWSRequest(method=method, url=url, data=body, headers=headers)
        self._signer.add_auth(request)
        return {str(name): _text(value) for name, value in request.headers.items()}

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        """The JSON of a chat or a completion; it is the model's own, not Bedrock's.

        Raises:
            CapabilityError: the model has no tools, no prompts, or is none that answers.
            ParameterError: a message or a generation parameter that the model does not take.
        """
        if self.family == "claude":
            return self._claude_body(request)
        return self._llama_body(request)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat, or, with Llama, continue a prompt.

        Raises:
            CapabilityError, ParameterError: as `chat_body`.
            ProviderError, ContextLengthError: Amazon's refusal or failure.
        """
        async with self.turn("chat", request) as turn:
            body = encode_json(self.chat_body(request))
            reading: Reading = AnthropicReading() if self.family == "claude" else _LlamaReading()
            whole, event = self._types[self.family]
            if not request.stream:
                answer = await self._invoke(body)
                chunk = reading.whole(self.http.decode(answer.body, whole))
                turn.used(reading.usage)
                yield chunk
                return
            url = self._url("invoke-with-response-stream")
            headers = self.signed("POST", url, body)
            async with (
                self.http.stream("POST", url, body=body, headers=headers, encoded=True) as stream,
                aclosing(self._chunks(stream, reading, event, turn)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text; Titan takes one text with one call."""
        return await self.in_batches(request, 1, self._embed)

    async def check(self) -> None:
        """Asks the region for the model or the profile; needs the permission for it, which a key
        that may only run models does not have."""
        path = _known_as(self.model)
        if not self.control or path is None:
            self.context.report("not checked: no endpoint that knows the model")
            return
        url = f"{self.control}/{path}/{quote(self.model, safe='')}"
        try:
            await self.http.send("GET", url, headers=self.signed("GET", url), encoded=True)
        except PermissionDeniedError:
            self.context.report("not checked: the key may not ask about models")

    async def meta(self) -> ModelMeta:
        meta = await super().meta()
        meta.tools = meta.tools and self.family == "claude"
        return meta

    # Inside.

    def _url(self, call: str) -> str:
        return f"{self.runtime}/model/{quote(self.model, safe='')}/{call}"

    async def _invoke(self, body: bytes) -> Answer:
        url = self._url("invoke")
        headers = self.signed("POST", url, body)
        return await self.http.send("POST", url, body=body, headers=headers, encoded=True)

    def _claude_body(self, request: GenerateRequest) -> dict[str, Any]:
        if request.prompt is not None:
            raise self._lacking("continues prompts")
        limit = self.parameters.max_tokens
        body = messages_body(request, where=_WHERE, max_tokens=limit, takes_urls=False)
        body["anthropic_version"] = self.parameters.model_api_version
        body.update(sampling_given(self, request.sampling, ANTHROPIC_SAMPLING))
        return {**body, **request.sampling.extra, **request.extra}

    def _llama_body(self, request: GenerateRequest) -> dict[str, Any]:
        if request.tools:
            raise self._lacking("takes tools")
        body: dict[str, Any] = {"prompt": request.prompt}
        if request.prompt is None:
            write = _llama2_prompt if _LLAMA_2.search(self.model) else _llama3_prompt
            body["prompt"] = write(request.messages or [])
        body.update(sampling_given(self, request.sampling, _LLAMA_SAMPLING))
        for name in request.sampling.extra:
            raise self.unsupported(name, _LLAMA_SAMPLING)
        return {**body, **request.extra}

    def _lacking(self, does: str) -> CapabilityError:
        return CapabilityError(
            f"model {self.model!r} of aws_bedrock is none that {does}",
            vendor="aws_bedrock",
            vendor_model=self.model,
        )

    async def _chunks(
        self, stream: Stream, reading: Reading, event: type[Any], turn: Turn
    ) -> AsyncGenerator[GenerateChunk, None]:
        held: GenerateChunk | None = None
        begun = False
        try:
            async with aclosing(self._events(stream, event)) as batches:
                async for events in batches:
                    chunk = reading.chunk(events)
                    if chunk is None:
                        continue
                    if held is not None:
                        yield held
                    # What comes with the reason is the last chunk, unless more follows.
                    held = chunk if reading.finish is not None else None
                    if held is None:
                        begun = True
                        yield chunk
        except ProviderError:
            if reading.finish is None:
                raise
        if reading.finish is None:
            raise self.errors.unavailable(
                "the stream ended before the answer did", retryable=not begun
            )
        turn.used(reading.usage)
        yield reading.last(held)

    async def _events(self, stream: Stream, event: type[Any]) -> AsyncGenerator[list[Any], None]:
        """The model's events, in lists of those that arrived together."""
        from botocore.eventstream import EventStreamBuffer, ParserError

        frames = EventStreamBuffer()
        async with aclosing(stream.pieces()) as pieces:
            async for piece in pieces:
                frames.add_data(piece)
                try:
                    found = list(frames)
                except ParserError as error:
                    raise self.errors.protocol(
                        f"a frame of the stream is broken: {error}", headers=stream.headers
                    ) from None
                yield [self._event(frame.headers, frame.payload, stream, event) for frame in found]

    def _event(
        self, headers: Mapping[str, Any], payload: bytes, stream: Stream, event: type[Any]
    ) -> Any:
        kind = headers.get(":message-type")
        if kind != "event":
            name = str(headers.get(":exception-type") or headers.get(":error-code") or "")
            message = headers.get(":error-message")
            body = {"message": message} if message else self.http.decode(payload)
            code = name[:1].upper() + name[1:]
            raise self.errors.of_body({**body, "code": code}, headers=stream.headers)
        frame: _Frame = self.http.decode(payload, _Frame)
        try:
            data = base64.b64decode(frame.bytes, validate=True)
        except (binascii.Error, ValueError):
            raise self.errors.protocol("a frame of the stream holds no base64") from None
        return self.http.decode(data, event)

    async def _embed(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        (text,) = texts
        body = {"inputText": text, **request.extra}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        async with self.turn("embedding", request) as turn:
            answer = await self._invoke(encode_json(body))
            found: _Vector = self.http.decode(answer.body, _Vector)
            usage = Usage(prompt_tokens=found.input_text_token_count)
            turn.used(usage)
            return EmbedResult(vectors=[found.embedding], usage=usage)


def _family_of(model: str) -> Family:
    for part, family in _FAMILIES:
        if part in model:
            return family
    known = ", ".join(part for part, _ in _FAMILIES)
    raise ParameterError.invalid(
        "saas.model",
        f"no model of the families that are known: {known} (got {model!r}); "
        "saas.family says how another name is asked",
        where=_WHERE,
    )


def _known_as(model: str) -> str | None:
    """Where the control plane keeps a model; None of what it has no page for."""
    if model.startswith("arn:"):
        profile = ":inference-profile/" in model or ":application-inference-profile/" in model
        return "inference-profiles" if profile else None
    return "inference-profiles" if _PROFILE.match(model) else "foundation-models"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _said(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Roles and texts, roles taking turns after the system's.

    Raises:
        ParameterError: Llama does not read such a message.
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, content = message["role"], message.get("content")
        if role not in ("system", "developer", "user", "assistant"):
            raise ParameterError(
                f"{_WHERE}: Llama does not read messages of the role {role!r}",
                parameter="conversations",
            )
        if not isinstance(content, str) and any(p["type"] != "text" for p in content or ()):
            raise ParameterError(f"{_WHERE}: Llama reads text alone", parameter="conversations")
        text = text_of(content)
        if role in ("system", "developer"):
            system.append(text)
        elif turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    if not turns:
        raise ParameterError(
            f"{_WHERE}: the conversation holds nothing beside system messages; add a user message",
            parameter="conversations",
        )
    return [("system", "\n\n".join(system)), *turns] if system else turns


def _llama2_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of Llama 2 chat models.

    Source: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-2/
    """
    turns = _said(messages)
    system = ""
    if turns[0][0] == "system":
        system = f"<<SYS>>\n{turns.pop(0)[1]}\n<</SYS>>\n\n"
    if turns[0][0] == "assistant":
        turns.insert(0, ("user", ""))
    prompt = ""
    for role, text in turns:
        if role == "user":
            prompt += f"<s>[INST] {system}{text} [/INST]"
            system = ""
        else:
            prompt += f" {text} </s>"
    return prompt


def _llama3_prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt of Llama 3 models.

    Source: https://www.llama.com/docs/model-cards-and-prompt-formats/meta-llama-3/
    """
    said = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
        for role, text in _said(messages)
    )
    return f"<|begin_of_text|>{said}<|start_header_id|>assistant<|end_header_id|>\n\n"


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
