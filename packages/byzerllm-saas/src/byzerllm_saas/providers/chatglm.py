"""ChatGLM-130B and its kin, by the third version of Zhipu's API.

Its SDK (zhipuai 1) swallows errors and blocks; the package's own HTTP client does the same in a
page.

Source: the SDK, and https://open.bigmodel.cn/dev/api/thirdparty-frame as archived
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct
from pydantic import Field

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import AuthenticationError, ParameterError, PermissionDeniedError
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateChunk, GenerateRequest, Usage
from byzerllm_saas.http import Answer, Stream
from byzerllm_saas.openai_wire import WireUsage
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.provider import Provider, Turn
from byzerllm_saas.providers.zhipu import ZHIPU_ERRORS, Tokens, secret_halves
from byzerllm_saas.sampling import given
from byzerllm_saas.sse import Event
from byzerllm_saas.system_text import system_with_user

_SAMPLING = frozenset({"temperature", "top_p"})
_NO_TASK = "0"


class ChatGLMParameters(KeyParameters):
    """What a deployment of one of the ChatGLM models can be told."""

    key_variable = "ZHIPUAI_API_KEY"

    model: str = Field("chatglm_130b", description="the vendor's name of the model")
    base_url: str = Field(
        "https://open.bigmodel.cn/api/paas/v3/model-api",
        description="address of the API, up to and including /model-api",
    )


SPEC = BackendSpec(
    name="chatglm",
    path="byzerllm_saas.providers.chatglm:ChatGLM",
    parameters=ChatGLMParameters,
    description="ChatGLM-130B and its kin at Zhipu",
    model_types=("saas/chatglm",),
    capabilities=frozenset({"chat"}),
    extra_parameters=frozenset({"meta", "ref", "request_id"}),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[chatglm]'",
)


class _Choice(Struct):
    content: str = ""


class _Data(Struct):
    choices: list[_Choice] = []
    usage: WireUsage | None = None


class _Answer(Struct):
    """A whole answer; errors come in it, under HTTP 200, too."""

    success: bool = True
    data: _Data | None = None


class _Meta(Struct):
    """What the last event says beside its text."""

    usage: WireUsage | None = None


class ChatGLM(Provider):
    """One of the ChatGLM models."""

    spec = SPEC
    errors_table = ZHIPU_ERRORS

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._tokens = Tokens()

    def headers(self, key: str) -> dict[str, str]:
        """The token is alone in the header, without the word `Bearer`."""
        return {"authorization": self._tokens.of(key)}

    def secrets(self) -> list[str]:
        return [*super().secrets(), *secret_halves(self.keys.texts())]

    def url(self, call: str) -> str:
        return f"{self.parameters.base_url}/{self.model}/{call}"

    async def check(self) -> None:
        """Checks the key, by asking for a task that is none."""
        url = f"{self.parameters.base_url}/-/async-invoke/{_NO_TASK}"
        answer = await self.check_key(url, self.headers(self.keys.pick()))
        if answer is None:
            return
        found = self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        if isinstance(found, AuthenticationError | PermissionDeniedError):
            raise found

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a generation parameter that the vendor does not take.
            CapabilityError: a message has more than text.
            ProviderError, ContextLengthError: the vendor's refusal or failure.
        """
        body = self._body(request)
        async with self.turn("chat", request) as turn:
            headers = self.headers(turn.key)
            if not request.stream:
                url = self.url("invoke")
                answer = await self.http.send("POST", url, json=body, headers=headers)
                yield self._whole(answer, turn)
                return
            body["incremental"] = True
            url = self.url("sse-invoke")
            async with self.http.stream("POST", url, json=body, headers=headers) as stream:
                if stream.content_type == "application/json":
                    yield self._whole(Answer(200, stream.headers, await stream.read()), turn)
                    return
                async with aclosing(self._chunks(stream, turn)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                await stream.drain()

    # Inside.

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": system_with_user(self, request.messages or [])}
        for name, value in given(request.sampling):
            if name not in _SAMPLING:
                raise self.unsupported(name, _SAMPLING)
            if not 0 < value <= 1 or (name == "top_p" and value == 1):
                limits = "above 0 and below 1" if name == "top_p" else "above 0 and up to 1"
                raise ParameterError.invalid(
                    name, f"the vendor takes numbers {limits} (got {value:g})", where="saas/chatglm"
                )
            body[name] = value
        return {**body, **request.sampling.extra, **request.extra}

    def _whole(self, answer: Answer, turn: Turn) -> GenerateChunk:
        found: _Answer = self.http.decode(answer.body, _Answer)
        if not found.success:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        if found.data is None or not found.data.choices:
            raise self.errors.protocol("the answer has no choices", headers=answer.headers)
        usage = found.data.usage.plain() if found.data.usage else Usage()
        turn.used(usage)
        text = _unquoted(found.data.choices[0].content)
        return GenerateChunk(text=text, finish_reason="stop", usage=usage)

    async def _chunks(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        said = ""
        async with aclosing(stream.events()) as batches:
            async for events in batches:
                chunk = GenerateChunk()
                for event in events:
                    if event.event == "error":
                        raise self._error(event, stream.headers)
                    text = self._text(event)
                    if event.event == "add":
                        chunk.text += text
                        continue
                    if event.event == "finish":
                        # Its text is empty, the rest, or all of the answer once more.
                        before = said + chunk.text
                        chunk.text += text.removeprefix(before)
                        chunk.finish_reason = "stop"
                    elif event.event == "interrupted":
                        chunk.finish_reason = "content_filter"
                    else:
                        raise self.errors.protocol(f"an event of type {event.event!r}")
                    chunk.usage = self._usage(event)
                    turn.used(chunk.usage)
                    yield chunk
                    return
                said += chunk.text
                if chunk.text:
                    yield chunk
        raise self.errors.unavailable("the stream ended before the answer did", retryable=not said)

    def _text(self, event: Event) -> str:
        try:
            return event.data.decode()
        except UnicodeDecodeError as error:
            raise self.errors.protocol(f"the text of an event is no UTF-8: {error}") from None

    def _usage(self, event: Event) -> Usage:
        meta = (event.fields or {}).get("meta")
        if not meta:
            return Usage()
        found: _Meta = self.http.decode(meta.encode(), _Meta)
        return found.usage.plain() if found.usage else Usage()

    def _error(self, event: Event, headers: Mapping[str, str]) -> Exception:
        """The error of an event; its data is JSON, or a text."""
        try:
            found = msgspec.json.decode(event.data)
        except msgspec.DecodeError:
            found = None
        if not isinstance(found, dict):
            found = {"msg": event.data.decode("utf-8", "replace")}
        return self.errors.of_body(found, headers=headers)


def _unquoted(content: str) -> str:
    """A content as text; it comes as JSON of one, with its quotes."""
    try:
        text = msgspec.json.decode(content.strip())
    except msgspec.DecodeError:
        return content
    return text if isinstance(text, str) else content


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
