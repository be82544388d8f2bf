"""MiniMax: ChatCompletion Pro, and vectors of embo-01. By the lean client; there is no SDK for it.

Bots and users have names here: the system message is the setting of a bot, and a bot's name in a
message must be one that has a setting.

Source: https://platform.minimaxi.com/document/ChatCompletion%20Pro
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlencode, urlsplit

from msgspec import Struct
from pydantic import Field, field_validator

from byzerllm.backend import BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilteredError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
)
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import (
    EmbedRequest,
    EmbedResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ToolCallDelta,
    Usage,
)
from byzerllm_saas.conversation import (
    functions_of,
    new_call_id,
    one_call,
    plain_text,
    sampling_given,
    without_system,
)
from byzerllm_saas.errors import ErrorTable, Told
from byzerllm_saas.http import Answer, Headers, Stream
from byzerllm_saas.parameters import KeyParameters, check_url
from byzerllm_saas.provider import Provider, Turn

EMBEDDING_BATCH = 128
COOLEST = 0.01
"""What stands for temperature 0, which MiniMax refuses."""

_SAMPLING = {"max_tokens": "tokens_to_generate", "temperature": "temperature", "top_p": "top_p"}
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_output": "length",
    "function_call": "tool_calls",
}


class MiniMaxParameters(KeyParameters):
    """What a deployment at MiniMax can be told."""

    key_variable = "MINIMAX_API_KEY"

    model: str = Field("abab5.5-chat", description="the vendor's name of the model")
    group_id: str = Field("", validate_default=True, description="the account's group, a number")
    base_url: str = Field("https://api.minimax.chat", description="host of MiniMax's API")
    api_url: str = Field("", description="whole address of the chat call, instead of base_url")
    bot_name: str = Field("assistant", min_length=1, description="what the model is called")
    user_name: str = Field("user", min_length=1, description="what the user is called")
    bot_setting: str = Field(
        "A helpful assistant.",
        min_length=1,
        description="who the model is, where a conversation has no system message",
    )

    @field_validator("group_id", mode="before")
    @classmethod
    def _has_group(cls, value: Any) -> str:
        from byzerllm_saas.parameters import refused

        # A number of 19 digits may come as one.
        text = str(value).strip()
        if not text:
            raise refused("the account's group is needed, see MiniMax's console")
        return text

    @field_validator("api_url")
    @classmethod
    def _check_api_url(cls, value: str) -> str:
        return check_url(value) if value else value


SPEC = BackendSpec(
    name="minimax",
    path="byzerllm_saas.providers.minimax:MiniMax",
    parameters=MiniMaxParameters,
    description="MiniMax's abab models",
    model_types=("saas/minimax",),
    capabilities=frozenset({"chat", "embedding", "tools"}),
    extra_parameters=frozenset(
        {
            "bot_setting",
            "glyph",
            "mask_sensitive_info",
            "plugins",
            "reply_constraints",
            "sample_messages",
        }
    ),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[minimax]'",
)


def _told(body: Any) -> Told:
    base = body.get("base_resp") if isinstance(body, dict) else None
    if not isinstance(base, dict):
        return Told("", body.get("message", "") if isinstance(body, dict) else "")
    return Told(
        str(base.get("status_code", "")), str(base.get("status_msg", "")), str(body.get("id", ""))
    )


# What is read of an answer. Errors set to null what they have nothing to say of.


class _FunctionCall(Struct):
    name: str | None = None
    arguments: str | None = None


class _Message(Struct):
    text: str | None = None
    function_call: _FunctionCall | None = None


class _Choice(Struct):
    messages: list[_Message] | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    total_tokens: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def plain(self) -> Usage:
        prompt = self.prompt_tokens or 0
        # The older models count the sum alone.
        answer = self.completion_tokens or max(0, (self.total_tokens or 0) - prompt)
        return Usage(prompt_tokens=prompt, completion_tokens=answer)


class _BaseResp(Struct):
    status_code: int = 0


class _Event(Struct):
    choices: list[_Choice] | None = None
    reply: str | None = None
    usage: _Usage | None = None
    output_sensitive: bool | None = None
    base_resp: _BaseResp | None = None

    @property
    def refused(self) -> bool:
        return self.base_resp is not None and self.base_resp.status_code != 0


class _Vectors(Struct):
    vectors: list[list[float]] | None = None
    total_tokens: int | None = None
    base_resp: _BaseResp | None = None


class MiniMax(Provider):
    """A model at MiniMax."""

    spec = SPEC
    errors_table = ErrorTable(
        codes={
            "1000": ProviderUnavailableError,
            "1001": ProviderTimeoutError,
            "1002": RateLimitedError,
            "1004": AuthenticationError,
            "1008": QuotaExceededError,
            "1013": ProviderUnavailableError,
            "1024": ProviderUnavailableError,
            "1026": ContentFilteredError,
            "1027": ContentFilteredError,
            "1033": ProviderUnavailableError,
            "1039": RateLimitedError,
            "1041": RateLimitedError,
            "2045": RateLimitedError,
            "2049": AuthenticationError,
            "2056": QuotaExceededError,
            "2061": PermissionDeniedError,
        },
        phrases=((re.compile(r"unknown model", re.IGNORECASE), HostedModelNotFoundError),),
        read=_told,
    )
    parameters: MiniMaxParameters

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a generation parameter that MiniMax does not take, or a bot's name
                without a setting.
            CapabilityError: the model is none that answers, or a message is more than text.
            ProviderError, ContextLengthError: MiniMax's refusal or failure.
        """
        body = self._body(request)
        given = self.parameters
        url = self._url("text/chatcompletion_pro", given.api_url)
        async with self.turn("chat", request) as turn:
            headers = self._headers(turn.key)
            if not request.stream:
                answer = await self.http.send("POST", url, json=body, headers=headers)
                yield self._whole(answer, turn)
                return
            async with self.http.stream("POST", url, json=body, headers=headers) as stream:
                if stream.content_type == "application/json":
                    # Refusals come as JSON under HTTP 200.
                    yield self._whole(Answer(200, stream.headers, await stream.read()), turn)
                    return
                async with aclosing(self._chunks(stream, turn)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await stream.drain()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text. `type` in the request's extra is `db` for what is stored, the
        default, and `query` for what is looked up."""
        return await self.in_batches(request, EMBEDDING_BATCH, self._embed)

    async def check(self) -> None:
        """Asks for the list of files, which costs nothing, to see the key and the group."""
        url = self._url("files/list", purpose="retrieval")
        try:
            answer = await self.http.send("GET", url, headers=self._headers(self.keys.pick()))
            self._refusal(self.http.decode(answer.body, _Vectors).base_resp, answer)
        except (BadRequestError, HostedModelNotFoundError, PermissionDeniedError):
            self.context.report("not checked: the account lists no files")

    # Inside.

    def _url(self, path: str, whole: str = "", **query: str) -> str:
        given = self.parameters
        root = given.base_url
        if given.api_url:
            parts = urlsplit(given.api_url)
            root = f"{parts.scheme}://{parts.netloc}"
        address = whole or f"{root}/v1/{path}"
        joint = "&" if "?" in address else "?"
        return f"{address}{joint}{urlencode({'GroupId': given.group_id, **query})}"

    @staticmethod
    def _headers(key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        given = self.parameters
        extra = {**request.sampling.extra, **request.extra}
        system, messages = without_system(self, request.messages or ())
        bots = extra.pop("bot_setting", None) or [
            {"bot_name": given.bot_name, "content": system or given.bot_setting}
        ]
        names = [bot["bot_name"] for bot in bots]
        constraints = {"sender_type": "BOT", "sender_name": names[0]}
        constraints.update(extra.pop("reply_constraints", {}))
        if constraints["sender_name"] not in names:
            raise ParameterError.invalid(
                "reply_constraints",
                f"sender_name is one of bot_setting's: {', '.join(names)}",
                where="saas/minimax",
            )
        if glyph := extra.pop("glyph", None):
            constraints["glyph"] = glyph
        body: dict[str, Any] = {
            "model": self.model,
            "bot_setting": bots,
            "reply_constraints": constraints,
            "messages": [self._message(m, names, constraints["sender_name"]) for m in messages],
        }
        if request.stream:
            # Without the second, events have no empty line between them.
            body.update(stream=True, use_standard_sse=True)
        for name, value in sampling_given(self, request.sampling, _SAMPLING):
            body[name] = COOLEST if name == "temperature" and value == 0 else value
        if request.tools and request.tool_choice != "none":
            if request.tool_choice not in (None, "auto"):
                raise self.unsupported("tool_choice", ("auto", "none"))
            body["functions"] = functions_of(request.tools)
        body.update(extra)
        return body

    def _message(self, message: Mapping[str, Any], names: Sequence[str], bot: str) -> Any:
        text, name = plain_text(self, message), message.get("name")
        if message["role"] == "user":
            sender = name or self.parameters.user_name
            return {"sender_type": "USER", "sender_name": sender, "text": text}
        sender = name if name in names else bot
        if message["role"] in ("tool", "function"):
            return {"sender_type": "FUNCTION", "sender_name": sender, "text": text}
        said: dict[str, Any] = {"sender_type": "BOT", "sender_name": sender, "text": text}
        if call := one_call(self, message):
            said["function_call"] = call
        return said

    def _whole(self, answer: Answer, turn: Turn) -> GenerateChunk:
        event: _Event = self.http.decode(answer.body, _Event)
        self._refusal(event.base_resp, answer)
        reading = _Reading()
        text = reading.text_of([event])
        if reading.finish is None:
            raise self.errors.protocol("the answer has no choices", headers=answer.headers)
        turn.used(reading.usage)
        return reading.last(text)

    async def _chunks(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        reading = _Reading()
        async with aclosing(stream.events()) as batches:
            async for batch in batches:
                events = [self._event(event.data, stream.headers) for event in batch if event.data]
                text = reading.text_of(events)
                if reading.finish is not None:
                    turn.used(reading.usage)
                    yield reading.last(text)
                    return
                if text:
                    yield GenerateChunk(text=text)
        raise self.errors.unavailable(
            "the stream ended before the answer did", retryable=not reading.sent
        )

    def _event(self, data: bytes, headers: Headers) -> _Event:
        event: _Event = self.http.decode(data, _Event)
        if event.refused:
            raise self.errors.of_body(self.http.decode(data), headers=headers)
        return event

    def _refusal(self, base: _BaseResp | None, answer: Answer) -> None:
        """Raises the error that an answer under HTTP 200 tells of."""
        if base is not None and base.status_code:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)

    async def _embed(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        self.no_dimensions(request)
        body = {"model": self.model, "texts": texts, "type": "db", **request.extra}
        async with self.turn("embedding", request) as turn:
            answer = await self.http.send(
                "POST", self._url("embeddings"), json=body, headers=self._headers(turn.key)
            )
            found: _Vectors = self.http.decode(answer.body, _Vectors)
            self._refusal(found.base_resp, answer)
            vectors = found.vectors or []
            if len(vectors) != len(texts):
                raise self.errors.protocol(
                    f"{len(vectors)} vectors came for {len(texts)} texts", headers=answer.headers
                )
            usage = Usage(prompt_tokens=found.total_tokens or 0)
            turn.used(usage)
            return EmbedResult(vectors=vectors, usage=usage)


class _Reading:
    """Reads the events of one answer; the last one says all of it again.

    Attributes:
        sent: the text that was handed out.
        finish, usage: of the last event.
    """

    def __init__(self) -> None:
        self.sent = ""
        self.finish: FinishReason | None = None
        self.usage: Usage | None = None
        self._call = _FunctionCall("", "")

    def text_of(self, events: Sequence[_Event]) -> str:
        """The new text of some events that arrived together."""
        return "".join(map(self._new, events))

    def last(self, text: str) -> GenerateChunk:
        """The last chunk, with what is new of the text."""
        call, finish = self._call, self.finish or "stop"
        calls = []
        if call.name:
            # An answer has one call at most.
            calls = [
                ToolCallDelta(
                    index=0, id=new_call_id(), name=call.name, arguments=call.arguments or "{}"
                )
            ]
        return GenerateChunk(
            text=text,
            tool_calls=calls,
            finish_reason="tool_calls" if calls and finish == "stop" else finish,
            usage=self.usage or Usage(),
        )

    def _new(self, event: _Event) -> str:
        choice = event.choices[0] if event.choices else _Choice()
        message = choice.messages[-1] if choice.messages else _Message()
        text = message.text or ""
        if not choice.finish_reason:
            self._add(message.function_call)
            self.sent += text
            return text
        self.finish = _FINISH_REASONS.get(choice.finish_reason, "stop")
        if event.output_sensitive:
            self.finish = "content_filter"
        self.usage = event.usage.plain() if event.usage else None
        if message.function_call is not None and message.function_call.name:
            self._call = message.function_call
        whole = event.reply or text
        return whole[len(self.sent) :] if whole.startswith(self.sent) else ""

    def _add(self, call: _FunctionCall | None) -> None:
        if call is not None:
            arguments = (self._call.arguments or "") + (call.arguments or "")
            self._call = _FunctionCall(self._call.name or call.name, arguments)


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
