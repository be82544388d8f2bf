"""Baidu's Qianfan: v1 with a token for API key and secret key, v2 with the API key alone.

v2 is OpenAI's wire. v1 is by the lean client, too: its SDK blocks and retries on its own.

Source: https://cloud.baidu.com/doc/WENXINWORKSHOP/s/clntwmv7t (v1), .../s/Fm2vrveyu (v2)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from msgspec import Struct
from pydantic import Field, SecretStr

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
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
    EmbedRequest,
    EmbedResult,
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
from byzerllm_saas.errors import ErrorTable, Told, told
from byzerllm_saas.http import Answer, Headers, Stream
from byzerllm_saas.openai_media import OpenAIVectors
from byzerllm_saas.openai_wire import OPENAI_SAMPLING, Dialect
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.provider import Turn

T = TypeVar("T")

V1_HOST = "https://aip.baidubce.com"
V2_HOST = "https://qianfan.baidubce.com"
V1_PREFIX = "/rpc/2.0/ai_custom/v1/wenxinworkshop"
EMBEDDING_BATCH = 16
COOLEST = 0.01
"""What stands for temperature 0, which v1 refuses."""
EARLY = 60.0
"""Seconds before its end that a token is renewed."""

_STALE = ("110", "111")
# v1's models whose place is not their name in small letters; v1 has a place per model. A name that
# is none of Baidu's is the place of a service that the account has published.
_PLACES = {
    "aquilachat-7b": "aquilachat_7b",
    "bge-large-en": "bge_large_en",
    "bge-large-zh": "bge_large_zh",
    "bloomz-7b": "bloomz_7b1",
    "chatglm2-6b-32k": "chatglm2_6b_32k",
    "chatlaw": "chatlaw",
    "embedding-v1": "embedding-v1",
    "ernie speed-appbuilder": "ai_apaas",
    "ernie-3.5-8k": "completions",
    "ernie-4.0-8k": "completions_pro",
    "ernie-4.0-8k-preview-0518": "completions_adv_pro",
    "ernie-bot": "completions",
    "ernie-bot-4": "completions_pro",
    "ernie-bot-turbo": "eb-instant",
    "ernie-bot-turbo-ai": "ai_apaas",
    "ernie-character-8k": "ernie-char-8k",
    "ernie-character-fiction-8k": "ernie-char-fiction-8k",
    "ernie-function-8k": "ernie-func-8k",
    "ernie-lite-8k-0308": "ernie-lite-8k",
    "ernie-lite-8k-0922": "eb-instant",
    "ernie-lite-appbuilder-8k-0614": "ai_apaas_lite",
    "ernie-speed": "ernie_speed",
    "ernie-speed-8k": "ernie_speed",
    "gemma-7b-it": "gemma_7b_it",
    "llama-2-13b-chat": "llama_2_13b",
    "llama-2-70b-chat": "llama_2_70b",
    "llama-2-7b-chat": "llama_2_7b",
    "meta-llama-3-70b": "llama_3_70b",
    "meta-llama-3-8b": "llama_3_8b",
    "mixtral-8x7b-instruct": "mixtral_8x7b_instruct",
    "qianfan-bloomz-7b-compressed": "qianfan_bloomz_7b_compressed",
    "qianfan-chinese-llama-2-13b": "qianfan_chinese_llama_2_13b",
    "qianfan-chinese-llama-2-70b": "qianfan_chinese_llama_2_70b",
    "qianfan-chinese-llama-2-7b": "qianfan_chinese_llama_2_7b",
    "tao-8k": "tao_8k",
    "xuanyuan-70b-chat-4bit": "xuanyuan_70b_chat",
    "yi-34b-chat": "yi_34b_chat",
}
_SAMPLING = {
    "max_tokens": "max_output_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "repetition_penalty": "penalty_score",
    "stop": "stop",
}
_FINISH_REASONS: Mapping[str, FinishReason] = {
    "normal": "stop",
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
}


class QianfanParameters(KeyParameters):
    """What a deployment at Qianfan can be told."""

    key_variable = "QIANFAN_API_KEY"

    model: str = Field("ernie-3.5-8k", description="the vendor's name of the model")
    secret_key: SecretStr | None = Field(
        None, description="the application's secret key, for v1; without it the API is v2"
    )
    base_url: str = Field(
        "",
        description=f"host of the API; by default {V1_HOST} with a secret key, else {V2_HOST}",
    )
    appid: str = Field("", description="the application that v2 counts calls for")


SPEC = BackendSpec(
    name="qianfan",
    path="byzerllm_saas.providers.qianfan:Qianfan",
    parameters=QianfanParameters,
    description="Baidu's ERNIE models and others on Qianfan",
    model_types=("saas/qianfan",),
    capabilities=frozenset({"chat", "constrained", "embedding", "tools", "vision"}),
    extra_parameters=frozenset(
        {
            "disable_search",
            "enable_citation",
            "enable_system_memory",
            "enable_trace",
            "parallel_tool_calls",
            "penalty_score",
            "response_format",
            "stream_options",
            "system_memory_id",
            "user",
            "user_id",
            "web_search",
        }
    ),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[qianfan]'",
)


def _told(body: Any) -> Told:
    if not isinstance(body, dict):
        return Told()
    if "error_code" in body:
        code, message = str(body["error_code"]), str(body.get("error_msg", ""))
        return Told(code, message, str(body.get("id", "")))
    if "error_description" in body:
        return Told(str(body.get("error", "")), str(body["error_description"]))
    return told(body)


# What is read of v1's answers.


class _FunctionCall(Struct):
    name: str | None = None
    arguments: str | None = None
    thoughts: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Answer(Struct):
    """A whole answer, or an event of one."""

    result: str | None = None
    function_call: _FunctionCall | None = None
    is_end: bool | int | None = None
    is_truncated: bool | None = None
    need_clear_history: bool | None = None
    finish_reason: str | None = None
    usage: _Usage | None = None
    error_code: int | str | None = None


class _Vector(Struct):
    embedding: list[float]
    index: int = 0


class _Vectors(Struct):
    data: list[_Vector] = []
    usage: _Usage | None = None
    error_code: int | str | None = None


class _Token(Struct):
    access_token: str = ""
    expires_in: float = 0.0


class Qianfan(OpenAIVectors):
    """A model on Qianfan; which API it is, the secret key says."""

    spec = SPEC
    errors_table = ErrorTable(
        codes={
            # v1
            "1": ProviderUnavailableError,
            "2": ProviderUnavailableError,
            "3": HostedModelNotFoundError,
            "4": RateLimitedError,
            "6": PermissionDeniedError,
            "13": AuthenticationError,
            "14": AuthenticationError,
            "15": PermissionDeniedError,
            "17": QuotaExceededError,
            "18": RateLimitedError,
            "19": QuotaExceededError,
            "100": BadRequestError,
            "110": AuthenticationError,
            "111": AuthenticationError,
            "336000": ProviderUnavailableError,
            "336004": PermissionDeniedError,
            "336005": HostedModelNotFoundError,
            "336007": ContextLengthError,
            "336100": ProviderOverloadedError,
            "336103": ContextLengthError,
            "336501": RateLimitedError,
            "336502": RateLimitedError,
            "invalid_client": AuthenticationError,
            # v2
            "access_denied": PermissionDeniedError,
            "characters_too_long": ContextLengthError,
            "functions_unsafe": ContentFilteredError,
            "invalid_iam_token": AuthenticationError,
            "invalid_model": HostedModelNotFoundError,
            "system_unsafe": ContentFilteredError,
            "tokens_too_long": ContextLengthError,
            "user_setting_unsafe": ContentFilteredError,
        },
        read=_told,
    )
    dialect = Dialect(
        sampling=OPENAI_SAMPLING - {"logprobs", "logit_bias"} | {"repetition_penalty"},
        spelled={"repetition_penalty": "penalty_score"},
        finish_reasons={"normal": "stop"},
        embedding_batch=EMBEDDING_BATCH,
    )
    parameters: QianfanParameters

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        given = self.parameters
        self.v1 = given.secret_key is not None
        self.host = given.base_url or (V1_HOST if self.v1 else V2_HOST)
        if self.v1 and len(self.keys) > 1:
            raise ParameterError.invalid(
                "saas.secret_key", "it belongs to one API key (several given)", where="saas/qianfan"
            )
        self._token = ""
        self._token_ends = 0.0
        self._renewing = asyncio.Lock()

    # v2, as far as it is not OpenAI's.

    def url(self, path: str) -> str:
        return f"{self.host}/v2/{path}"

    def headers(self, key: str) -> dict[str, str]:
        headers = super().headers(key)
        if self.parameters.appid:
            headers["appid"] = self.parameters.appid
        return headers

    # Both.

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Answer a chat.

        Raises:
            ParameterError: a generation parameter that Qianfan does not take; in v1 also roles
                that do not take turns.
            CapabilityError: the model is none that answers, or reads less than there is.
            ProviderError, ContextLengthError: Qianfan's refusal or failure.
        """
        chunks = self._generate_v1(request) if self.v1 else super().generate(request)
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """One vector per text, 16 texts with one call."""
        if not self.v1:
            return await super().embed(request)
        # This one takes a single text.
        size = 1 if self._place() == "tao_8k" else EMBEDDING_BATCH
        return await self.in_batches(request, size, self._embed_v1)

    async def check(self) -> None:
        """v1: gets a token, for which the keys must be right. v2: asks for the model."""
        if self.v1:
            await self._fresh_token(self.keys.pick())
        else:
            await super().check()

    async def meta(self) -> ModelMeta:
        meta = await super().meta()
        if self.v1:
            meta.constrained = False
        return meta

    # v1.

    async def _generate_v1(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        body = self._body(request)
        async with self.turn("chat", request) as turn:
            for last in (False, True):
                token = await self._fresh_token(turn.key)
                try:
                    async with aclosing(self._answer(body, token, turn)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                    return
                except AuthenticationError as error:
                    if last or error.vendor_code not in _STALE:
                        raise
                    self._forget(token)

    async def _answer(
        self, body: Mapping[str, Any], token: str, turn: Turn
    ) -> AsyncGenerator[GenerateChunk, None]:
        url = self._url_v1("chat", token)
        if not body.get("stream"):
            yield self._whole_v1(await self.http.send("POST", url, json=body), turn)
            return
        async with self.http.stream("POST", url, json=body) as stream:
            if stream.content_type == "application/json":
                # Refusals come as JSON under HTTP 200.
                yield self._whole_v1(Answer(200, stream.headers, await stream.read()), turn)
                return
            async with aclosing(self._chunks_v1(stream, turn)) as chunks:
                async for chunk in chunks:
                    yield chunk
            await stream.drain()

    def _whole_v1(self, answer: Answer, turn: Turn) -> GenerateChunk:
        found = self._read(answer.body, answer.headers)
        if found.result is None and found.function_call is None:
            raise self.errors.protocol("the answer has no result", headers=answer.headers)
        found.is_end = True
        reading = _Reading()
        chunk = reading.chunk([found])
        turn.used(reading.usage)
        return reading.last(chunk)

    async def _chunks_v1(self, stream: Stream, turn: Turn) -> AsyncGenerator[GenerateChunk, None]:
        reading = _Reading()
        async with aclosing(stream.events()) as batches:
            async for batch in batches:
                events = [self._read(event.data, stream.headers) for event in batch if event.data]
                chunk = reading.chunk(events)
                if reading.ended:
                    turn.used(reading.usage)
                    yield reading.last(chunk)
                    return
                if chunk is not None:
                    yield chunk
        raise self.errors.unavailable(
            "the stream ended before the answer did", retryable=not reading.begun
        )

    def _read(self, data: bytes, headers: Headers) -> _Answer:
        found: _Answer = self.http.decode(data, _Answer)
        if found.error_code:
            raise self.errors.of_body(self.http.decode(data), headers=headers)
        return found

    async def _embed_v1(self, texts: Sequence[str], request: EmbedRequest) -> EmbedResult:
        self.no_dimensions(request)
        body = {"input": texts, **request.extra}
        async with self.turn("embedding", request) as turn:

            async def ask(token: str) -> Answer:
                url = self._url_v1("embeddings", token)
                answer = await self.http.send("POST", url, json=body)
                if self.http.decode(answer.body, _Vectors).error_code:
                    raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
                return answer

            answer = await self._with_token(turn.key, ask)
            found: _Vectors = self.http.decode(answer.body, _Vectors)
            if len(found.data) != len(texts):
                raise self.errors.protocol(
                    f"{len(found.data)} vectors came for {len(texts)} texts", headers=answer.headers
                )
            usage = Usage(prompt_tokens=found.usage.prompt_tokens if found.usage else 0)
            turn.used(usage)
            found.data.sort(key=lambda vector: vector.index)
            return EmbedResult(vectors=[vector.embedding for vector in found.data], usage=usage)

    def _place(self) -> str:
        """Where v1 has the model."""
        name = self.model.lower()
        known = _PLACES.get(name)
        return known or (name if name.startswith("ernie") else self.model)

    def _url_v1(self, kind: str, token: str) -> str:
        place = quote(self._place(), safe="")
        return f"{self.host}{V1_PREFIX}/{kind}/{place}?{urlencode({'access_token': token})}"

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        system, rest = without_system(self, request.messages or ())
        body: dict[str, Any] = {"messages": self._in_turns(rest)}
        if system:
            body["system"] = system
        if request.stream:
            body["stream"] = True
        for name, value in sampling_given(self, request.sampling, _SAMPLING):
            body[name] = COOLEST if name == "temperature" and value == 0 else value
        choice = request.tool_choice
        if request.tools and choice != "none":
            if choice == "required":
                raise self.unsupported("tool_choice 'required'", ("auto", "none", "a function"))
            body["functions"] = functions_of(request.tools)
            if isinstance(choice, dict):
                body["tool_choice"] = choice
        body.update(request.sampling.extra)
        body.update(request.extra)
        return body

    def _in_turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """v1's messages: an odd number of them, a user (or a function) and the model in turn.
        Neighbours of one role become one message."""
        names = function_names(messages)
        found: list[dict[str, Any]] = []
        for message in messages:
            one = self._message(message, names)
            before = found[-1] if found else {}
            if one.keys() == before.keys() == {"role", "content"} and (
                one["role"] == before["role"]
            ):
                before["content"] += "\n\n" + one["content"]
                continue
            if (one["role"] == "assistant") != (len(found) % 2 == 1):
                raise ParameterError(
                    f"conversations: a message of {one['role']} cannot be number {len(found) + 1} "
                    "for qianfan's v1: user (or a function's result) and assistant take turns, "
                    "and user begins",
                    parameter="conversations",
                )
            found.append(one)
        if len(found) % 2 == 0:
            raise ParameterError(
                "conversations: the last message must be the user's or a function's result",
                parameter="conversations",
            )
        return found

    def _message(self, message: Message, names: Mapping[str, str]) -> dict[str, Any]:
        text = plain_text(self, message)
        if message["role"] in ("tool", "function"):
            name = message.get("name") or names.get(message.get("tool_call_id", ""), "")
            return {"role": "function", "name": name, "content": text}
        one: dict[str, Any] = {"role": message["role"], "content": text}
        if call := one_call(self, message):
            one["function_call"] = call
        return one

    # v1's token.

    async def _with_token(self, key: str, ask: Callable[[str], Awaitable[T]]) -> T:
        """What `ask` makes of a token; once more with a new one where v1 calls it stale."""
        token = await self._fresh_token(key)
        try:
            return await ask(token)
        except AuthenticationError as error:
            if error.vendor_code not in _STALE:
                raise
        self._forget(token)
        return await ask(await self._fresh_token(key))

    async def _fresh_token(self, key: str) -> str:
        async with self._renewing:
            if not self._token or time.monotonic() > self._token_ends:
                await self._fetch_token(key)
            return self._token

    def _forget(self, token: str) -> None:
        """Unless another request has done it already."""
        if self._token == token:
            self._token = ""

    async def _fetch_token(self, key: str) -> None:
        assert self.parameters.secret_key is not None
        query = {
            "grant_type": "client_credentials",
            "client_id": key,
            "client_secret": self.parameters.secret_key.get_secret_value(),
        }
        answer = await self.http.send("POST", f"{self.host}/oauth/2.0/token?{urlencode(query)}")
        found: _Token = self.http.decode(answer.body, _Token)
        if not found.access_token:
            raise self.errors.of_body(self.http.decode(answer.body), headers=answer.headers)
        self._token = found.access_token
        self._token_ends = time.monotonic() + found.expires_in - EARLY
        self.errors.hide(found.access_token)


class _Reading:
    """Reads the events of one of v1's answers.

    Attributes:
        begun: something was handed out.
        ended: the last event was among them.
        usage: as soon as it is known.
    """

    def __init__(self) -> None:
        self.begun = False
        self.ended = False
        self.usage: Usage | None = None
        self._finish: FinishReason = "stop"
        self._calls = False

    def chunk(self, events: Sequence[_Answer]) -> GenerateChunk | None:
        """One chunk of the events that arrived together; None where they bring nothing."""
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCallDelta] = []
        for event in events:
            texts.append(event.result or "")
            if call := event.function_call:
                thoughts.append(call.thoughts or "")
                calls.append(self._call(call))
            self._note(event)
        if not any(texts) and not calls:
            return None
        self.begun = True
        return GenerateChunk(text="".join(texts), reasoning="".join(thoughts), tool_calls=calls)

    def last(self, chunk: GenerateChunk | None) -> GenerateChunk:
        """The last chunk, with reason and usage."""
        chunk = chunk or GenerateChunk()
        stopped = self._finish == "stop"
        chunk.finish_reason = "tool_calls" if self._calls and stopped else self._finish
        chunk.usage = self.usage or Usage()
        return chunk

    def _note(self, event: _Answer) -> None:
        if event.usage is not None:
            self.usage = Usage(
                prompt_tokens=event.usage.prompt_tokens,
                completion_tokens=event.usage.completion_tokens,
            )
        if event.finish_reason:
            self._finish = _FINISH_REASONS.get(event.finish_reason, "stop")
        elif event.is_truncated:
            self._finish = "length"
        if event.need_clear_history:
            self._finish = "content_filter"
        self.ended = self.ended or bool(event.is_end)

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
