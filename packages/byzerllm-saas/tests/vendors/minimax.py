"""MiniMax: ChatCompletion Pro, embeddings, the list of files.

Source: https://platform.minimaxi.com/document/ChatCompletion%20Pro
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from vendors.openai import vector
from vendors.server import Answer, Vendor, made_up

GROUP = "1722334455667788990"
Text = Annotated[str, Meta(min_length=1)]


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that MiniMax does not know is refused."""


class BotSetting(Strict):
    bot_name: Text
    content: Text


class FunctionCall(Strict):
    name: str
    arguments: str


class Message(Strict):
    sender_type: Literal["USER", "BOT", "FUNCTION"]
    sender_name: Text
    text: str
    function_call: FunctionCall | None = None


class Glyph(Strict):
    type: Literal["raw", "json_value"]
    raw_glyph: str = ""
    json_properties: dict[str, Any] = {}


class ReplyConstraints(Strict):
    sender_type: Literal["BOT"]
    sender_name: Text
    glyph: Glyph | None = None


class Function(Strict):
    name: Text
    description: str
    parameters: dict[str, Any]


class ChatBody(Strict):
    """`POST /v1/text/chatcompletion_pro`."""

    model: Text
    messages: Annotated[list[Message], Meta(min_length=1)]
    bot_setting: Annotated[list[BotSetting], Meta(min_length=1)]
    reply_constraints: ReplyConstraints
    stream: bool = False
    use_standard_sse: bool = False
    tokens_to_generate: Annotated[int, Meta(ge=1)] = 256
    temperature: Annotated[float, Meta(gt=0, le=1)] = 0.9
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    mask_sensitive_info: bool = True
    sample_messages: list[Message] = []
    functions: list[Function] = []
    plugins: list[str] = []


class EmbeddingBody(Strict):
    """`POST /v1/embeddings`."""

    model: Text
    texts: Annotated[list[Text], Meta(min_length=1)]
    type: Literal["db", "query"]


class MiniMaxVendor(Vendor):
    """See the module. It says everything under HTTP 200, errors too."""

    models: ClassVar = ("abab5.5-chat", "abab6.5s-chat", "embo-01")
    errors: ClassVar[dict[str, tuple[int, str]]] = {
        "wrong_key": (1004, "login fail: Please carry the API secret key"),
        "forbidden": (2061, "your current token plan not support model"),
        "no_model": (2013, "invalid params, unknown model"),
        "bad_request": (2013, "invalid params"),
        "too_long": (2013, "invalid params, context window exceeds limit"),
        "filtered": (1026, "input new_sensitive"),
        "rate_limited": (1002, "rate limit"),
        "quota": (1008, "insufficient balance"),
        "failed": (1013, "internal service error"),
    }
    kinds: ClassVar = frozenset(errors)
    counts_sum_alone = False
    """As the older models do."""

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.post("/v1/text/chatcompletion_pro", self.chat)
        yield web.post("/v1/embeddings", self.embed)
        yield web.get("/v1/files/list", self.list_files)

    def refusal(self, kind: str, message: str) -> web.Response:
        code, text = self.errors[kind]
        base = {"status_code": code, "status_msg": f"{text} ({message})"}
        body = {"created": 0, "model": "", "reply": "", "choices": None, "base_resp": base}
        return web.json_response(body, headers={"Trace-Id": "trace-0123456789"})

    def check_key(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "")
        self.expect(given == f"Bearer {self.key}", "invalid api key", "wrong_key")
        group = request.query.get("GroupId")
        self.expect(group == GROUP, "token not match group", "wrong_key")

    def check_body(self, request: web.Request, model: str) -> None:
        self.expect(request.content_type == "application/json", "unsupported content type")
        self.expect(model in self.models, f"unknown model '{model}'", "no_model")

    async def list_files(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        self.expect(request.query.get("purpose"), "purpose is required")
        return web.json_response({"files": [], "base_resp": OK})

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        body = self.decode(await request.read(), EmbeddingBody)
        self.check_body(request, body.model)
        whole = {
            "vectors": [vector(text) for text in body.texts],
            "total_tokens": sum(len(text.split()) for text in body.texts),
            "base_resp": OK,
        }
        return await self.whole(request, whole)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_key(request)
        body = self.decode(await request.read(), ChatBody)
        self.check_body(request, body.model)
        self.check_names(body)
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            question = body.messages[-1].text
            answer, reason = made_up(question, max_tokens=body.tokens_to_generate)
            return answer

        answer = self.next_answer(make)
        whole = self.completion(body, answer, answer.finish or reason)
        if not body.stream:
            return await self.whole(request, whole, headers={"Trace-Id": "trace-0123456789"})
        end = b"\n\n" if body.use_standard_sse else b"\n"
        events = self.events(body, answer, whole)
        return await self.stream(
            request, (b"data: " + msgspec.json.encode(event) + end for event in events)
        )

    def check_names(self, body: ChatBody) -> None:
        """Whoever speaks as a bot has a setting, and the last word is not a bot's."""
        names = {bot.bot_name for bot in body.bot_setting}
        speaks = body.reply_constraints.sender_name
        self.expect(speaks in names, "sender_name of reply_constraints is not in bot_setting")
        for message in (*body.messages, *body.sample_messages):
            bot = message.sender_type == "BOT"
            self.expect(not bot or message.sender_name in names, "no bot has this sender_name")
            self.expect(bot or message.function_call is None, "only a BOT calls functions")
            self.expect(message.text or message.function_call, "text is empty")
        last = body.messages[-1].sender_type
        self.expect(last in ("USER", "FUNCTION"), "the last message is a USER's")
        called = False
        for message in body.messages:
            self.expect(called or message.sender_type != "FUNCTION", "FUNCTION without a call")
            called = message.function_call is not None

    def completion(self, body: ChatBody, answer: Answer, reason: str) -> dict[str, Any]:
        prompt, tokens = answer.usage
        parts = {"prompt_tokens": prompt, "completion_tokens": tokens}
        if self.counts_sum_alone:
            parts.clear()
        message = {**self.said(body), "text": answer.text}
        if answer.tool_calls:
            call = answer.tool_calls[0]
            message["function_call"] = {"name": call["name"], "arguments": call["arguments"]}
        return {
            "id": "0123456789abcdef",
            "created": 1_700_000_000,
            "model": body.model,
            "reply": answer.text,
            "choices": [{"index": 0, "finish_reason": reason, "messages": [message]}],
            "usage": {"total_tokens": prompt + tokens, **parts},
            "input_sensitive": False,
            "output_sensitive": False,
            "base_resp": OK,
        }

    def events(
        self, body: ChatBody, answer: Answer, whole: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """A piece each; the last one is the whole answer again."""
        base = {"created": 1_700_000_000, "model": body.model, "reply": ""}
        for piece in answer.pieces:
            message = {**self.said(body), "text": piece}
            yield {**base, "choices": [{"index": 0, "messages": [message]}]}
        yield whole

    @staticmethod
    def said(body: ChatBody) -> dict[str, Any]:
        return {"sender_type": "BOT", "sender_name": body.reply_constraints.sender_name}


OK = {"status_code": 0, "status_msg": "success"}
