"""Baichuan's models.

Source: https://platform.baichuan-ai.com/docs/api
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from msgspec import Meta

from vendors.openai import CREATED, Strict, vector
from vendors.server import Answer, Vendor, made_up

REQUEST_ID = "bc-0123456789"


class Message(Strict):
    role: Literal["user", "assistant", "system"]
    content: str


class ChatBody(Strict):
    """`POST /v1/chat/completions`."""

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2048)] | None = None
    with_search_enhance: bool | None = None
    knowledge_base: dict[str, list[str]] | None = None


class EmbeddingBody(Strict):
    """`POST /v1/embeddings`."""

    model: str
    input: (
        str | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=16)]
    )


class BaichuanVendor(Vendor):
    """See the module."""

    models: ClassVar = ("Baichuan2-Turbo", "Baichuan4", "Baichuan-Text-Embedding")
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
    errors: ClassVar[dict[str, tuple[int, str | None, str, str]]] = {
        "wrong_key": (
            401,
            "invalid_api_key",
            "invalid_request_error",
            "Incorrect API key provided",
        ),
        "forbidden": (403, None, "invalid_request_error", "no access"),
        "no_model": (404, "model_not_found", "invalid_request_error", "no such model"),
        "bad_request": (400, None, "invalid_request_error", "invalid parameters"),
        "too_long": (400, "context_length_exceeded", "invalid_request_error", "too many tokens"),
        "filtered": (400, "content_filter", "invalid_request_error", "sensitive"),
        "rate_limited": (429, None, "rate_limit", "Rate limit reached for requests"),
        "quota": (429, None, "rate_limit", "Insufficient account balance, please recharge"),
        "overloaded": (503, None, "", "busy"),
        "failed": (500, None, "server_error", "Internal Server Error"),
    }
    """Status, code, type and message of each kind of error."""

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.get("/v1/files", self.files)
        yield web.post("/v1/chat/completions", self.chat)
        yield web.post("/v1/embeddings", self.embed)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, type_, says = self.errors[kind]
        error = {"code": code, "param": None, "type": type_, "message": f"{says} ({message})"}
        return web.json_response(
            {"error": error}, status=status, headers={"X-BC-Request-Id": REQUEST_ID}
        )

    def check_head(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "")
        self.expect(given == f"Bearer {self.key}", "key", "wrong_key")
        if request.method == "POST":
            self.expect(request.content_type == "application/json", "content type")

    async def files(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        return web.json_response({"object": "list", "data": []})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), ChatBody)
        self.expect(body.model in self.models, body.model, "no_model")
        roles = [message.role for message in body.messages]
        if body.model.startswith("Baichuan2"):
            self.expect("system" not in roles, "role is user or assistant")
        self.expect(roles[-1] == "user", "the last message is the user's")
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            answer, reason = made_up(body.messages[-1].content, max_tokens=body.max_tokens)
            return answer

        answer = self.next_answer(make)
        reason = answer.finish or reason
        if body.stream:
            return await self.stream(request, self.events(body, answer, reason))
        message = {"role": "assistant", "content": answer.text}
        whole = {
            "id": "chatcmpl-M000000",
            "object": "chat.completion",
            "created": CREATED,
            "model": body.model,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": _usage(answer),
        }
        return await self.whole(request, whole)

    def events(self, body: ChatBody, answer: Answer, reason: str) -> Iterator[bytes]:
        """The last chunk has text, reason and usage."""
        last = len(answer.pieces) - 1
        for number, piece in enumerate(answer.pieces):
            choice: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": piece}}
            chunk: dict[str, Any] = {
                "id": "chatcmpl-M000000",
                "object": "chat.completion.chunk",
                "created": CREATED,
                "model": body.model,
                "choices": [choice],
            }
            if number == last:
                choice["finish_reason"] = reason
                chunk["usage"] = _usage(answer)
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), EmbeddingBody)
        self.expect(body.model == "Baichuan-Text-Embedding", body.model, "no_model")
        texts = [body.input] if isinstance(body.input, str) else body.input
        tokens = sum(len(text.split()) for text in texts)
        data = [
            {"object": "embedding", "index": index, "embedding": vector(text)}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        whole = {"object": "list", "data": data[::-1], "model": body.model, "usage": usage}
        return await self.whole(request, whole)


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.usage
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
