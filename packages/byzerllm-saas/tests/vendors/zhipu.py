"""Zhipu's GLM models.

Source: https://docs.bigmodel.cn/cn/guide/develop/http/introduction
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from msgspec import Meta, field

from vendors.openai import (
    CREATED,
    AssistantMessage,
    Strict,
    SystemMessage,
    TextPart,
    Tool,
    ToolMessage,
    vector,
)
from vendors.server import Answer, Refused, Vendor, made_up


class ImageURL(Strict):
    """An address, or base64 without the head of a data URL."""

    url: Annotated[str, Meta(pattern=r"^(https?://|[A-Za-z0-9+/]+=*$)")]


class ImagePart(Strict, tag="image_url"):
    image_url: ImageURL


class UserMessage(Strict, tag_field="role", tag="user"):
    content: str | list[TextPart | ImagePart]


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class ChatBody(Strict):
    """`POST /api/paas/v4/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    request_id: Annotated[str, Meta(min_length=6, max_length=64)] | None = None
    do_sample: bool | None = None
    stream: bool = False
    temperature: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    seed: int | None = None
    stop: Annotated[list[str], Meta(max_length=1)] | None = None
    tools: list[Tool] = field(default_factory=list)
    tool_choice: Literal["auto"] | None = None
    tool_stream: bool | None = None
    response_format: dict[str, str] | None = None
    thinking: dict[str, str] | None = None
    user_id: Annotated[str, Meta(min_length=6, max_length=128)] | None = None


class EmbeddingBody(Strict):
    """`POST /api/paas/v4/embeddings`."""

    model: str
    input: str | list[Annotated[str, Meta(min_length=1)]]
    dimensions: int | None = None


class ZhipuVendor(Vendor):
    """See the module.

    Attributes:
        tokens: the signed keys that came.
    """

    key: ClassVar[str] = "0123456789abcdef0123456789abcdef.S3cretS3cretS3cretS3cretS3cretS3cr"
    raw_key: ClassVar[str] = "raw-key-without-any-dot"
    models: ClassVar = ("glm-4", "glm-4-flash", "glm-4v", "embedding-2", "embedding-3")
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
        "wrong_key": (401, "1002", "Authorization Token非法,请确认Authorization Token正确传递。"),
        "expired": (401, "1003", "Authorization Token已过期,请重新生成/获取"),
        "forbidden": (434, "1220", "你无权访问 chat/completions"),
        "no_model": (400, "1211", "模型不存在,请检查模型代码"),
        "bad_request": (400, "1210", "API 调用参数有误,请检查文档"),
        "too_long": (400, "1261", "Prompt 超长"),
        "filtered": (400, "1301", "系统检测到输入或生成内容可能包含不安全或敏感内容"),
        "rate_limited": (429, "1302", "您当前使用该API的并发数过高,请降低并发"),
        "quota": (429, "1113", "您的账户已欠费,请充值后重试"),
        "overloaded": (429, "1305", "当前API请求过多,请稍后重试"),
        "failed": (500, "1234", "网络错误,错误id: 20240101"),
    }
    """Status, code and message of each kind of error."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []

    def routes(self) -> Iterable[web.RouteDef]:
        p = "/api/paas/v4"
        yield web.get(f"{p}/files", self.files)
        yield web.post(f"{p}/chat/completions", self.chat)
        yield web.post(f"{p}/embeddings", self.embed)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, says = self.errors[kind]
        error = {"code": code, "message": f"{says} ({message})"}
        return web.json_response({"error": error}, status=status)

    def check_head(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        self.expect(scheme == "Bearer", "Bearer", "wrong_key")
        self.check_token(token)
        if request.method == "POST":
            self.expect(request.content_type == "application/json", "content type")

    def check_token(self, token: str) -> None:
        """A signed key, or one of the newer accounts that is shown as it is."""
        if token in (self.raw_key, self.key):
            return
        check_signed(token, self.key)
        self.tokens.append(token)

    def check_model(self, model: str) -> None:
        self.expect(model in self.models, model, "no_model")

    async def files(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        self.expect(request.query.get("purpose") in ("batch", "file-extract"), "purpose")
        return web.json_response({"object": "list", "data": [], "has_more": False})

    # Chat.

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), ChatBody)
        self.check_model(body.model)
        self.expect(body.tools or body.tool_choice is None, "tool_choice needs tools")
        question = self.check_messages(body)
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            answer, reason = made_up(question, max_tokens=body.max_tokens, stop=body.stop or ())
            return answer

        answer = self.next_answer(make)
        reason = answer.finish or ("tool_calls" if answer.tool_calls else reason)
        if body.stream:
            return await self.stream(request, self.events(body, answer, reason))
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = list(_calls(answer))
        whole = {
            "id": "8231168139794583938",
            "request_id": "8231168139794583938",
            "created": CREATED,
            "model": body.model,
            "choices": [{"index": 0, "finish_reason": reason, "message": message}],
            "usage": _usage(answer),
        }
        return await self.whole(request, whole)

    def check_messages(self, body: ChatBody) -> str:
        """The question; images are for models that see."""
        question = ""
        for message in body.messages:
            content = message.content
            if isinstance(content, list):
                self.expect(body.model == "glm-4v", "messages 参数非法", "bad_request")
                content = " ".join(part.text for part in content if isinstance(part, TextPart))
            question = content or ""
        return question

    def events(self, body: ChatBody, answer: Answer, reason: str) -> Iterator[bytes]:
        """Chunks without `object`; the last one has the usage."""

        def chunk(delta: dict[str, Any], **more: Any) -> bytes:
            choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", **delta}}
            if "finish_reason" in more:
                choice["finish_reason"] = more.pop("finish_reason")
            whole = {
                "id": "8313807536837492492",
                "created": CREATED,
                "model": body.model,
                "choices": [choice],
                **more,
            }
            return f"data: {json.dumps(whole, ensure_ascii=False)}\n\n".encode()

        for word in answer.reasoning.split(" ") if answer.reasoning else ():
            yield chunk({"reasoning_content": f"{word} "})
        for piece in answer.pieces:
            yield chunk({"content": piece})
        for call in _calls(answer):
            yield chunk({"tool_calls": [call]})
        yield chunk({"content": ""}, finish_reason=reason, usage=_usage(answer))
        yield b"data: [DONE]\n\n"

    # Vectors.

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), EmbeddingBody)
        self.check_model(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        # The older one takes the field and makes vectors of its one length.
        if body.model == "embedding-2":
            body.dimensions = None
        self.expect(0 < len(texts) <= 64, "input 数组最大不得超过 64 条")
        self.expect(all(len(text.split()) <= 512 for text in texts), "input", "too_long")
        tokens = sum(len(text.split()) for text in texts)
        data = [
            {"object": "embedding", "index": index, "embedding": vector(text)[: body.dimensions]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        whole = {"model": body.model, "data": data[::-1], "object": "list", "usage": usage}
        return await self.whole(request, whole)


def check_signed(token: str, key: str) -> None:
    """Check a JSON Web Token of a key, RFC 7519, with Zhipu's own head and times."""
    identity, _, secret = key.partition(".")
    parts = token.split(".")
    if len(parts) != 3:
        raise Refused("wrong_key", "not a token")
    signature = hmac.digest(secret.encode(), ".".join(parts[:2]).encode(), hashlib.sha256)
    if not hmac.compare_digest(_decoded(parts[2]), signature):
        raise Refused("wrong_key", "signature")
    head, claims = (json.loads(_decoded(part)) for part in parts[:2])
    if (head.pop("typ", "JWT"), head) != ("JWT", {"alg": "HS256", "sign_type": "SIGN"}):
        raise Refused("wrong_key", f"head {head}")
    if claims.keys() != {"api_key", "exp", "timestamp"} or claims["api_key"] != identity:
        raise Refused("wrong_key", "claims")
    now = time.time() * 1000
    if not all(isinstance(claims[name], int) for name in ("exp", "timestamp")):
        raise Refused("wrong_key", "times are integers")
    if abs(claims["timestamp"] - now) > 3_600_000 or claims["exp"] > now + 86_400_000:
        raise Refused("wrong_key", "times are in milliseconds")
    if claims["exp"] < now:
        raise Refused("expired", "exp")


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.usage
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _calls(answer: Answer) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(answer.tool_calls):
        yield {
            "id": call.get("id", f"call_{index}"),
            "index": index,
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
