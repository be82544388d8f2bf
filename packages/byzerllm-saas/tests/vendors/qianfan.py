"""Baidu's Qianfan: v1 (ERNIE's own wire, token in the query) and v2 (OpenAI's wire).

Source: https://cloud.baidu.com/doc/WENXINWORKSHOP/s/clntwmv7t (v1), .../s/Fm2vrveyu (v2)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from vendors.openai import ChatBody, EmbeddingBody, OpenAIVendor, vector
from vendors.server import Answer, Refused, Vendor, made_up

SECRET = "secret-key-0123456789abcdef"
TOKEN_SECONDS = 2_592_000


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that Qianfan does not know is refused."""


class FunctionCall(Strict):
    name: Annotated[str, Meta(min_length=1)]
    arguments: str
    thoughts: str = ""


class Message(Strict):
    role: Literal["user", "assistant", "function"]
    content: str
    name: str = ""
    function_call: FunctionCall | None = None


class Function(Strict):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Meta(min_length=1)]
    parameters: dict[str, Any]


class NamedFunction(Strict):
    name: str


class ToolChoice(Strict):
    type: Literal["function"]
    function: NamedFunction


class ChatV1(Strict):
    """`POST …/wenxinworkshop/chat/PLACE`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    temperature: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    penalty_score: Annotated[float, Meta(ge=1, le=2)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=2, le=2048)] | None = None
    system: str = ""
    stop: Annotated[list[Annotated[str, Meta(max_length=20)]], Meta(max_length=4)] = []
    disable_search: bool = False
    enable_citation: bool = False
    enable_trace: bool = False
    enable_system_memory: bool = False
    system_memory_id: str = ""
    response_format: Literal["json_object", "text"] = "text"
    user_id: str = ""
    functions: list[Function] = []
    tool_choice: ToolChoice | None = None
    # Of Baidu's own SDK.
    extra_parameters: dict[str, str] = {}


class EmbeddingV1(Strict):
    """`POST …/wenxinworkshop/embeddings/PLACE`."""

    input: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=16)]
    user_id: str = ""
    # Of Baidu's own SDK.
    extra_parameters: dict[str, str] = {}
    stream: Literal[False] = False


class QianfanVendor(Vendor):
    """v1. It says everything under HTTP 200, errors too, and errors of streams are JSON."""

    models: ClassVar = ("completions", "completions_pro", "ernie-speed-128k", "my_service")
    embedding_models: ClassVar = ("embedding-v1", "tao_8k")
    prefix = "/rpc/2.0/ai_custom/v1/wenxinworkshop"
    errors: ClassVar[dict[str, tuple[int, str]]] = {
        "wrong_key": (14, "IAM Certification failed"),
        "bad_token": (110, "Access token invalid or no longer valid"),
        "old_token": (111, "Access token expired"),
        "forbidden": (6, "No permission to access data"),
        "no_model": (3, "Unsupported openapi method"),
        "bad_request": (336003, "invalid param"),
        "too_long": (336103, "Prompt tokens too long"),
        "rate_limited": (18, "Open api qps request limit reached"),
        "quota": (17, "Open api daily request limit reached"),
        "overloaded": (336100, "try again"),
        "failed": (336000, "internal error"),
    }
    kinds: ClassVar = frozenset(errors) - {"bad_token", "old_token"}

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[str] = []
        self.filters = False

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.post("/oauth/2.0/token", self.hand_out_token)
        yield web.post(f"{self.prefix}/chat/{{place}}", self.chat)
        yield web.post(f"{self.prefix}/embeddings/{{place}}", self.embed)

    def may_fail(self, request: web.Request) -> bool:
        return request.path.startswith(self.prefix)

    def refusal(self, kind: str, message: str) -> web.Response:
        if kind == "unknown_client":
            body = {"error": "invalid_client", "error_description": message}
            return web.json_response(body, status=401)
        code, text = self.errors[kind]
        body = {"error_code": code, "error_msg": f"{text}: {message}", "id": "as-0123456789"}
        return web.json_response(body)

    async def hand_out_token(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        self.expect(query.get("grant_type") == "client_credentials", "unsupported grant_type")
        right = query.get("client_id") == self.key
        self.expect(right, "unknown client id", "unknown_client")
        right = query.get("client_secret") == SECRET
        self.expect(right, "Client authentication failed", "unknown_client")
        self.tokens.append(f"24.token{len(self.tokens)}.{TOKEN_SECONDS}.0123456789-22334455")
        body = {
            "refresh_token": "25.refresh",
            "expires_in": TOKEN_SECONDS,
            "session_key": "9mzdA5",
            "access_token": self.tokens[-1],
            "scope": "public ai_custom_yiyan_com",
            "session_secret": "76e91a",
        }
        return web.json_response(body)

    def check(self, request: web.Request, known: Iterable[str]) -> None:
        token = request.query.get("access_token", "")
        self.expect(token in self.tokens, "no such token", "bad_token")
        # A new token ends the one before it.
        self.expect(token == self.tokens[-1], f"{token} is an old token", "old_token")
        self.expect(request.content_type == "application/json", "unsupported content type")
        self.expect(request.match_info["place"] in known, request.path, "no_model")

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check(request, self.embedding_models)
        body = self.decode(await request.read(), EmbeddingV1)
        alone = request.match_info["place"] == "tao_8k"
        self.expect(not alone or len(body.input) == 1, "the input takes one text")
        tokens = sum(len(text.split()) for text in body.input)
        data = [
            {"object": "embedding", "embedding": vector(text), "index": index}
            for index, text in enumerate(body.input)
        ]
        whole = {
            "id": "as-0123456789",
            "object": "embedding_list",
            "created": 1_700_000_000,
            "data": data[::-1],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return await self.whole(request, whole)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check(request, self.models)
        body = self.decode(await request.read(), ChatV1)
        self.check_turns(body)
        reason = "normal"

        def make() -> Answer:
            nonlocal reason
            question = body.messages[-1].content
            answer, found = made_up(question, max_tokens=body.max_output_tokens, stop=body.stop)
            reason = "length" if found == "length" else "normal"
            return answer

        answer = self.next_answer(make)
        reason = "function_call" if answer.tool_calls else answer.finish or reason
        if not body.stream:
            whole = {**self.base(answer), "result": answer.text, "finish_reason": reason}
            whole.update(self.call(answer))
            return await self.whole(request, whole)
        return await self.stream(request, self.sse(answer, reason))

    def check_turns(self, body: ChatV1) -> None:
        self.expect(len(body.messages) % 2, "the length of messages must be an odd number")
        for index, message in enumerate(body.messages):
            asks = index % 2 == 0
            fits = message.role in ("user", "function") if asks else message.role == "assistant"
            self.expect(fits, f"the role of message {index} is {message.role}")
            named = message.role != "function" or message.name
            self.expect(named, "a function's message needs its name")
            said = message.content.strip() or message.function_call
            self.expect(said, "content is empty")
        known = {function.name for function in body.functions}
        choice = body.tool_choice
        self.expect(choice is None or choice.function.name in known, "no such function")

    def base(self, answer: Answer) -> dict[str, Any]:
        prompt, completion = answer.usage
        return {
            "id": "as-0123456789",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "is_truncated": False,
            "need_clear_history": self.filters,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }

    @staticmethod
    def call(answer: Answer) -> dict[str, Any]:
        if not answer.tool_calls:
            return {}
        call = {"thoughts": "I need the weather.", **answer.tool_calls[0]}
        return {"function_call": call}

    def sse(self, answer: Answer, reason: str) -> Iterator[bytes]:
        pieces = answer.pieces if answer.text else [""]
        for number, piece in enumerate(pieces):
            end = number == len(pieces) - 1
            event = {**self.base(answer), "sentence_id": number, "is_end": end, "result": piece}
            if end:
                event.update(finish_reason=reason, **self.call(answer))
            yield b"data: " + msgspec.json.encode(event) + b"\n\n"


class ChatV2(ChatBody):
    """`POST /v2/chat/completions`: OpenAI's fields and Baidu's."""

    penalty_score: Annotated[float, Meta(ge=1, le=2)] | None = None
    web_search: dict[str, Any] | None = None


class EmbeddingV2(EmbeddingBody):
    """`POST /v2/embeddings`."""

    input: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=16)]
    encoding_format: Literal["float"] = "float"


class QianfanV2Vendor(OpenAIVendor):
    """v2."""

    key: ClassVar = "bce-v3/ALTAK-0123456789/abcdef0123456789"
    prefix = "/v2"
    models: ClassVar = ("ernie-3.5-8k", "ernie-4.5-turbo-vl", "bge-large-zh")
    errors: ClassVar = {
        "wrong_key": (401, "invalid_iam_token", "invalid_request_error"),
        "forbidden": (403, "access_denied", "access_denied"),
        "no_model": (404, "invalid_model", "invalid_request_error"),
        "bad_request": (400, "invalid_argument", "invalid_request_error"),
        "too_long": (400, "tokens_too_long", "invalid_request_error"),
        "filtered": (400, "system_unsafe", "invalid_request_error"),
        "rate_limited": (429, "rpm_rate_limit_exceeded", "rate_limit_exceeded"),
        "failed": (500, "internal_error", "internal_error"),
    }
    kinds: ClassVar = frozenset(errors)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, type_ = self.errors[kind]
        error = {"code": code, "message": message, "type": type_}
        return web.json_response({"id": "as-0123456789", "error": error}, status=status)

    def decode(self, body: bytes, wanted: Any) -> Any:
        wider = {ChatBody: ChatV2, EmbeddingBody: EmbeddingV2}
        return super().decode(body, wider.get(wanted, wanted))

    def completion(self, body: ChatBody, answer: Answer, reason: str) -> dict[str, Any]:
        return super().completion(body, answer, _reason(body, reason))

    def chunks(self, body: ChatBody, answer: Answer, reason: str) -> Iterator[dict[str, Any]]:
        return super().chunks(body, answer, _reason(body, reason))

    def check_chat(self, body: ChatBody) -> None:
        if body.logprobs or body.logit_bias:
            raise Refused("bad_request", "no such parameter")
        super().check_chat(body)


def _reason(body: ChatBody, reason: str) -> str:
    """`stop` is said only where a stop text was met."""
    return "normal" if reason == "stop" and not body.stop else reason
