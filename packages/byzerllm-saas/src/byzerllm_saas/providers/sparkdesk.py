"""iFLYTEK's SparkDesk: one WebSocket per answer, its address signed. By the lean client: the SDK
blocks a thread for each answer and does not check certificates.

Source: https://www.xfyun.cn/doc/spark/Web.html
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct
from pydantic import Field, SecretStr, field_validator

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    CapabilityError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderOverloadedError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import (
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ModelMeta,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.conversation import (
    Message,
    function_names,
    functions_of,
    new_call_id,
    one_call,
    plain_text,
    sampling_given,
    without_system,
)
from byzerllm_saas.errors import ErrorTable, Told
from byzerllm_saas.http import Socket
from byzerllm_saas.parameters import KeyParameters, check_url, refused
from byzerllm_saas.provider import Provider

COOLEST = 0.01
"""What stands for temperature 0, which SparkDesk refuses."""

_DOMAINS: Mapping[str, tuple[str, ...]] = {
    "/v1.1/chat": ("general", "lite"),
    "/v2.1/chat": ("generalv2",),
    "/v3.1/chat": ("generalv3",),
    "/chat/pro-128k": ("pro-128k",),
    "/v3.5/chat": ("generalv3.5",),
    "/chat/max-32k": ("max-32k",),
    "/v4.0/chat": ("4.0Ultra",),
}
"""The domains of each version's path, the usual one first."""
_WITHOUT_FUNCTIONS = frozenset({"general", "lite", "generalv2"})
_WITHOUT_SYSTEM = frozenset({"general", "generalv2", "generalv3"})
_SAMPLING = {"max_tokens": "max_tokens", "temperature": "temperature", "top_k": "top_k"}
_LAST = 2
"""The status of an answer's last frame."""


class SparkDeskParameters(KeyParameters):
    """What a deployment at SparkDesk can be told."""

    key_variable = "SPARKDESK_API_KEY"

    base_url: str = Field(
        "wss://spark-api.xf-yun.com/v3.5/chat",
        alias="gpt_url",
        description="whole address of the version's WebSocket",
    )
    appid: str = Field("", validate_default=True, description="the application")
    api_secret: SecretStr = Field(
        SecretStr(""), validate_default=True, description="the application's secret"
    )
    domain: str = Field("", description="the version's domain; by default what fits gpt_url")
    model: str = Field("", description="another name for domain")

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        return check_url(value, ("wss", "ws"))

    @field_validator("appid", mode="before")
    @classmethod
    def _has_appid(cls, value: Any) -> str:
        if not str(value).strip():
            raise refused("the application's id is needed, see iFLYTEK's console")
        return str(value).strip()

    @field_validator("api_secret")
    @classmethod
    def _has_secret(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().strip():
            raise refused(
                "the application's secret is needed; saas.api_secret='${SPARKDESK_API_SECRET}' "
                "takes it from the environment"
            )
        return value


SPEC = BackendSpec(
    name="sparkdesk",
    path="byzerllm_saas.providers.sparkdesk:SparkDesk",
    parameters=SparkDeskParameters,
    description="iFLYTEK's Spark models",
    model_types=("saas/sparkdesk",),
    capabilities=frozenset({"chat", "tools"}),
    extra_parameters=frozenset({"auditing", "chat_id", "question_type", "uid"}),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[sparkdesk]'",
)


def _told(body: Any) -> Told:
    header = body.get("header") if isinstance(body, dict) else None
    if not isinstance(header, dict):
        return Told("", str(body.get("message", "")) if isinstance(body, dict) else "")
    return Told(
        str(header.get("code", "")), str(header.get("message", "")), str(header.get("sid", ""))
    )


# What is read of a frame.


class _Header(Struct):
    code: int = 0
    status: int = 0


class _FunctionCall(Struct):
    name: str | None = None
    arguments: str | None = None


class _Text(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    function_call: _FunctionCall | None = None


class _Choices(Struct):
    status: int = 0
    text: list[_Text] = []


class _Tokens(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Usage(Struct):
    text: _Tokens = msgspec.field(default_factory=_Tokens)


class _Payload(Struct):
    choices: _Choices = msgspec.field(default_factory=_Choices)
    usage: _Usage | None = None


class _Frame(Struct):
    header: _Header
    payload: _Payload | None = None


class SparkDesk(Provider):
    """A version of Spark."""

    spec = SPEC
    errors_table = ErrorTable(
        codes={
            "10003": BadRequestError,
            "10004": BadRequestError,
            "10005": BadRequestError,
            "10006": RateLimitedError,
            "10007": RateLimitedError,
            "10008": ProviderOverloadedError,
            "10009": ProviderUnavailableError,
            "10010": ProviderUnavailableError,
            "10011": ProviderUnavailableError,
            "10012": ProviderUnavailableError,
            "10013": ContentFilteredError,
            "10014": ContentFilteredError,
            "10015": PermissionDeniedError,
            "10016": PermissionDeniedError,
            "10019": ContentFilteredError,
            "10110": ProviderOverloadedError,
            "10163": BadRequestError,
            "10222": ProviderUnavailableError,
            "10404": HostedModelNotFoundError,
            "10907": ContextLengthError,
            "11200": PermissionDeniedError,
            "11201": QuotaExceededError,
            "11202": RateLimitedError,
            "11203": RateLimitedError,
        },
        # A signature that does not fit is 401, one that is too old is 403.
        statuses={403: AuthenticationError},
        read=_told,
    )
    parameters: SparkDeskParameters

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        if len(self.keys) > 1:
            raise ParameterError.invalid(
                "saas.api_secret",
                "it belongs to one API key (several given)",
                where="saas/sparkdesk",
            )

    def model_name(self) -> str:
        """The domain, which must be one of the path's."""
        given: SparkDeskParameters = self.context.parameters
        path = urlsplit(given.base_url).path
        asked = given.domain or given.model
        fitting = _DOMAINS.get(path, ())
        if asked and fitting and asked not in fitting:
            raise ParameterError.invalid(
                "saas.domain",
                f"at {path} it is {' or '.join(fitting)} (got {asked!r}); choose the gpt_url of "
                "the version that you want, too",
                where="saas/sparkdesk",
            )
        if not asked and not fitting:
            raise ParameterError.invalid(
                "saas.domain",
                f"it is needed with a gpt_url that is none of {', '.join(_DOMAINS)}",
                where="saas/sparkdesk",
            )
        return asked or fitting[0]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a generation parameter that SparkDesk does not take.
            CapabilityError: functions for a version that knows none, or more than text.
            ProviderError, ContextLengthError: SparkDesk's refusal or failure.
        """
        question = msgspec.json.encode(self._question(request)).decode()
        async with self.turn("chat", request) as turn:
            reading = _Reading(request.sampling.max_tokens)
            try:
                async with self.http.socket(self._signed(turn.key)) as socket:
                    await socket.send(question)
                    while not reading.ended:
                        chunk = reading.chunk(await self._frame(socket, reading))
                        if reading.ended:
                            turn.used(reading.usage)
                        if chunk is not None:
                            yield chunk
            except ProviderUnavailableError as error:
                if not reading.begun:
                    # Nothing was handed out, so that the chat may be asked again.
                    error.details["retryable"] = True
                raise

    async def check(self) -> None:
        """Opens a socket and closes it again: the handshake shows key and secret."""
        async with self.http.socket(self._signed(self.keys.pick())):
            pass

    async def meta(self) -> ModelMeta:
        meta = await super().meta()
        meta.tools = self.model not in _WITHOUT_FUNCTIONS
        return meta

    # Inside.

    def _signed(self, key: str) -> str:
        """The address with the signature of host, date and request line, good for minutes."""
        url = self.parameters.base_url
        parts = urlsplit(url)
        date = formatdate(usegmt=True)
        signed = f"host: {parts.netloc}\ndate: {date}\nGET {parts.path} HTTP/1.1"
        secret = self.parameters.api_secret.get_secret_value().strip()
        digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
        authorization = (
            f'api_key="{key}", algorithm="hmac-sha256", headers="host date request-line", '
            f'signature="{base64.b64encode(digest).decode()}"'
        )
        query = {
            "authorization": base64.b64encode(authorization.encode()).decode(),
            "date": date,
            "host": parts.netloc,
        }
        return f"{url}?{urlencode(query, quote_via=quote)}"

    async def _frame(self, socket: Socket, reading: _Reading) -> _Frame:
        message = await socket.receive()
        if message is None:
            if not reading.begun:
                raise self.errors.protocol("the socket was closed without an answer")
            raise self.errors.unavailable(
                "the socket was closed before the answer ended", retryable=False
            )
        data = message.encode() if isinstance(message, str) else message
        frame: _Frame = self.http.decode(data, _Frame)
        if frame.header.code:
            raise self.errors.of_body(self.http.decode(data))
        return frame

    def _question(self, request: GenerateRequest) -> dict[str, Any]:
        extra = {**request.sampling.extra, **request.extra}
        header = {"app_id": self.parameters.appid}
        if uid := extra.pop("uid", ""):
            header["uid"] = str(uid)
        chat: dict[str, Any] = {"domain": self.model}
        for name, value in sampling_given(self, request.sampling, _SAMPLING):
            chat[name] = COOLEST if name == "temperature" and value == 0 else value
        chat.update(extra)
        payload: dict[str, Any] = {"message": {"text": self._messages(request.messages or ())}}
        if request.tools and request.tool_choice != "none":
            payload["functions"] = {"text": self._functions(request)}
        return {"header": header, "parameter": {"chat": chat}, "payload": payload}

    def _functions(self, request: GenerateRequest) -> list[dict[str, Any]]:
        if self.model in _WITHOUT_FUNCTIONS:
            raise CapabilityError(
                f"Spark's domain {self.model} calls no functions; generalv3 and later ones do",
                vendor=self.spec.name,
                vendor_model=self.model,
            )
        if request.tool_choice not in (None, "auto"):
            raise self.unsupported("tool_choice", ("auto", "none"))
        return functions_of(request.tools)

    def _messages(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """User and assistant in turn, neighbours of one role joined; a system message first, or
        before the first question where the version knows no system."""
        system, rest = without_system(self, messages)
        names = function_names(rest)
        found: list[dict[str, str]] = []
        for message in rest:
            one = self._message(message, names)
            if found and found[-1]["role"] == one["role"]:
                found[-1]["content"] += "\n\n" + one["content"]
            else:
                found.append(one)
        if found[-1]["role"] != "user":
            raise ParameterError(
                "conversations: the last message must be the user's or a function's result",
                parameter="conversations",
            )
        if system and self.model in _WITHOUT_SYSTEM:
            first = next(one for one in found if one["role"] == "user")
            first["content"] = f"{system}\n\n{first['content']}"
        elif system:
            found.insert(0, {"role": "system", "content": system})
        return found

    def _message(self, message: Message, names: Mapping[str, str]) -> dict[str, str]:
        """Calls and results have no roles of their own here: they are said as JSON."""
        text = plain_text(self, message)
        if message["role"] in ("tool", "function"):
            name = message.get("name") or names.get(message.get("tool_call_id", ""), "function")
            said = msgspec.json.encode({"name": name, "result": text}).decode()
            return {"role": "user", "content": said}
        if call := one_call(self, message):
            said = msgspec.json.encode(call).decode()
            text = f"{text}\n{said}" if text else said
        return {"role": message["role"], "content": text}


class _Reading:
    """Reads the frames of one answer.

    Attributes:
        begun: something was handed out.
        ended: the last frame was read.
        usage: of the last frame.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self.begun = False
        self.ended = False
        self.usage = Usage()
        self._max_tokens = max_tokens
        self._calls = False

    def chunk(self, frame: _Frame) -> GenerateChunk | None:
        """What a frame brings; None where that is nothing."""
        payload = frame.payload or _Payload()
        text = "".join(one.content or "" for one in payload.choices.text)
        reasoning = "".join(one.reasoning_content or "" for one in payload.choices.text)
        calls = [self._call(one.function_call) for one in payload.choices.text if one.function_call]
        if payload.usage is not None:
            tokens = payload.usage.text
            self.usage = Usage(
                prompt_tokens=tokens.prompt_tokens, completion_tokens=tokens.completion_tokens
            )
        chunk = GenerateChunk(text=text, reasoning=reasoning, tool_calls=calls)
        self.ended = _LAST in (frame.header.status, payload.choices.status)
        if self.ended:
            chunk.finish_reason, chunk.usage = self._finish(), self.usage
        elif not (text or reasoning or calls):
            return None
        self.begun = True
        return chunk

    def _finish(self) -> FinishReason:
        """SparkDesk does not say why an answer ended; the tokens do."""
        if self._calls:
            return "tool_calls"
        cut = self._max_tokens and self.usage.completion_tokens >= self._max_tokens
        return "length" if cut else "stop"

    def _call(self, call: _FunctionCall) -> ToolCallDelta:
        # An answer has one call at most.
        begins, self._calls = not self._calls, True
        return ToolCallDelta(
            index=0,
            id=new_call_id() if begins else "",
            name=call.name or "" if begins else "",
            arguments=call.arguments or "",
        )


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
