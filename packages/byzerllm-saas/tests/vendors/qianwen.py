"""DashScope's text models and embeddings.

Source: https://help.aliyun.com/zh/model-studio/qwen-api-via-dashscope
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from vendors.openai import CallOfMessage, NamedTool, Tool, vector
from vendors.server import Answer, Refused, Vendor, made_up

REQUEST_ID = "4a8c3b2e-0000-9999-8888-0123456789ab"


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A body in which a field that DashScope does not know is refused."""


class SystemMessage(Strict, tag_field="role", tag="system"):
    content: str


class UserMessage(Strict, tag_field="role", tag="user"):
    content: str


class AssistantMessage(Strict, tag_field="role", tag="assistant"):
    content: str
    tool_calls: list[CallOfMessage] = []
    partial: bool = False


class ToolMessage(Strict, tag_field="role", tag="tool"):
    content: str
    tool_call_id: str


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class Parameters(Strict):
    """`parameters` of a chat."""

    result_format: Literal["text", "message"] = "text"
    incremental_output: bool = False
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, lt=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    stop: str | list[str] | None = None
    enable_search: bool | None = None
    search_options: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    response_format: dict[str, str] | None = None
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class Input(Strict):
    messages: Annotated[list[Message], Meta(min_length=1)]


class ChatBody(Strict):
    """`POST /api/v1/services/aigc/text-generation/generation`."""

    model: str
    input: Input
    parameters: Parameters = msgspec.field(default_factory=Parameters)


class Texts(Strict):
    texts: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]


class EmbeddingParameters(Strict):
    text_type: Literal["query", "document"] = "document"
    dimension: int | None = None


class EmbeddingBody(Strict):
    """`POST /api/v1/services/embeddings/text-embedding/text-embedding`."""

    model: str
    input: Texts
    parameters: EmbeddingParameters = msgspec.field(default_factory=EmbeddingParameters)


class QianwenVendor(Vendor):
    """See the module.

    Attributes:
        refuses_by_event: errors of streams come as events, under the status of the error.
    """

    key: ClassVar[str] = "sk-0123456789abcdef0123456789abcdef"
    models: ClassVar = (
        "qwen-turbo",
        "qwen-max",
        "qwen3-8b",
        "text-embedding-v1",
        "text-embedding-v2",
        "text-embedding-v3",
    )
    other_models: ClassVar[tuple[str, ...]] = ("qwen-vl-plus", "qwen-vl-max")
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
        "wrong_key": (401, "InvalidApiKey", "Invalid API-key provided."),
        "forbidden": (403, "AccessDenied.Unpurchased", "Access to model denied."),
        "no_model": (404, "ModelNotFound", "Model can not be found."),
        "bad_request": (400, "InvalidParameter", "Required parameter(s) missing or invalid."),
        "too_long": (400, "InvalidParameter", "Range of input length should be [1, 30720]"),
        "filtered": (400, "DataInspectionFailed", "Input data may contain inappropriate content."),
        "rate_limited": (429, "Throttling.RateQuota", "Requests rate limit exceeded."),
        "quota": (400, "Arrearage", "Access denied, please make sure your account is paid."),
        "overloaded": (503, "ModelServingError", "throttled due to system capacity limits"),
        "failed": (500, "InternalError", "An internal error has occurred."),
    }
    """Status, code and message of each kind of error."""
    batches: ClassVar = {"text-embedding-v1": 25, "text-embedding-v2": 25}

    def __init__(self) -> None:
        super().__init__()
        self.refuses_by_event = False

    def routes(self) -> Iterable[web.RouteDef]:
        services = "/api/v1/services"
        yield web.get("/api/v1/tasks/{task}", self.task)
        yield web.post(f"{services}/aigc/text-generation/generation", self.chat)
        yield web.post(f"{services}/embeddings/text-embedding/text-embedding", self.embed)

    def refusal(self, kind: str, message: str) -> web.Response:
        status, code, says = self.errors[kind]
        error = {"code": code, "message": f"{says} ({message})", "request_id": REQUEST_ID}
        if not self.refuses_by_event:
            return web.json_response(error, status=status)
        event = self.event(1, error, event="error", status=status)
        return web.Response(body=event, status=status, content_type="text/event-stream")

    def check_head(self, request: web.Request) -> None:
        given = request.headers.get("authorization", "")
        self.expect(given == f"Bearer {self.key}", "key", "wrong_key")
        if request.method == "POST":
            self.expect(request.content_type == "application/json", "content type")

    def check_model(self, model: str) -> None:
        self.expect(model not in self.other_models, "url error, please check url!")
        self.expect(model in self.models, model, "no_model")

    async def task(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        output = {"task_id": request.match_info["task"], "task_status": "UNKNOWN"}
        return web.json_response({"request_id": REQUEST_ID, "output": output})

    # Chat.

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), ChatBody)
        self.check_model(body.model)
        self.check_tools(body.input.messages)
        self.expect(
            body.parameters.tool_choice is None or body.parameters.tools, "tool_choice needs tools"
        )
        question = body.input.messages[-1].content
        return await self.answer(request, body.model, question, body.parameters)

    async def answer(
        self, request: web.Request, model: str, question: str, parameters: Parameters
    ) -> web.StreamResponse:
        reason = "stop"

        def make() -> Answer:
            nonlocal reason
            stop = parameters.stop or ()
            answer, reason = made_up(
                question,
                max_tokens=parameters.max_tokens,
                stop=[stop] if isinstance(stop, str) else stop,
            )
            return answer

        streams = request.headers.get("x-dashscope-sse") == "enable"
        thinks = parameters.enable_thinking
        if thinks or (thinks is None and model == "qwen3-8b"):
            self.expect(streams, "enable_thinking must be set to false for non-streaming calls")
        answer = self.next_answer(make)
        reason = answer.finish or ("tool_calls" if answer.tool_calls else reason)
        if not streams:
            message = self.message(answer.text, answer.reasoning, list(_calls(answer)))
            whole = self.output(message, reason, answer.usage, parameters.result_format)
            return await self.whole(request, whole)
        accepts = request.headers.get("accept", "")
        self.expect(accepts == "text/event-stream", "a stream must be accepted")
        return await self.stream(request, self.events(answer, reason, parameters))

    @staticmethod
    def check_tools(messages: Sequence[Message]) -> None:
        pending: set[str] = set()
        for message in messages:
            if isinstance(message, ToolMessage):
                if message.tool_call_id not in pending:
                    raise Refused("bad_request", "no such tool_call_id")
                pending.discard(message.tool_call_id)
            elif pending:
                raise Refused("bad_request", "tool_calls must be followed by tool messages")
            if isinstance(message, AssistantMessage):
                pending = {call.id for call in message.tool_calls}

    def message(self, text: str, reasoning: str, calls: list[Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return message

    def output(
        self, message: dict[str, Any], reason: str, usage: tuple[int, int], form: str
    ) -> dict[str, Any]:
        prompt, completion = usage
        output: dict[str, Any] = {"text": message["content"], "finish_reason": reason}
        if form == "message":
            output = {"choices": [{"finish_reason": reason, "message": message}]}
        counts = {
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return {"output": output, "usage": counts, "request_id": REQUEST_ID}

    def events(self, answer: Answer, reason: str, parameters: Parameters) -> Iterator[bytes]:
        adds = parameters.incremental_output
        yield b":heartbeat\n\nevent:result\n\n"
        prompt, completion = answer.usage
        number = 0
        for number, (text, reasoning, calls) in enumerate(_steps(answer, adds), 1):
            message = self.message(text, reasoning, calls)
            usage = (prompt, min(number, completion))
            yield self.event(number, self.output(message, "null", usage, parameters.result_format))
        if reason.startswith("error "):
            code = reason.removeprefix("error ")
            error = {"code": code, "message": "in mid-stream", "request_id": REQUEST_ID}
            yield self.event(number + 1, error, event="error", status=429)
            return
        last = ("", "", []) if adds else (answer.text, answer.reasoning, list(_calls(answer)))
        message = self.message(*last)
        output = self.output(message, reason, answer.usage, parameters.result_format)
        yield self.event(number + 1, output)

    @staticmethod
    def event(number: int, data: Any, event: str = "result", status: int = 200) -> bytes:
        head = f"id:{number}\nevent:{event}\n:HTTP_STATUS/{status}\n"
        return head.encode() + b"data:" + msgspec.json.encode(data) + b"\n\n"

    # Vectors.

    async def embed(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), EmbeddingBody)
        self.check_model(body.model)
        texts = body.input.texts
        flexible = body.model in ("text-embedding-v3", "text-embedding-v4")
        self.expect(flexible or body.parameters.dimension is None, "dimension is not supported")
        limit = self.batches.get(body.model, 10)
        self.expect(len(texts) <= limit, f"batch size is invalid, it should not be over {limit}")
        vectors = [
            {"text_index": index, "embedding": vector(text)[: body.parameters.dimension]}
            for index, text in enumerate(texts)
        ]
        tokens = sum(len(text.split()) for text in texts)
        # The order is the indexes' business.
        whole = {
            "output": {"embeddings": vectors[::-1]},
            "usage": {"total_tokens": tokens},
            "request_id": REQUEST_ID,
        }
        return await self.whole(request, whole)


def _calls(answer: Answer) -> Iterator[dict[str, Any]]:
    for index, call in enumerate(answer.tool_calls):
        yield {
            "index": index,
            "id": call.get("id", f"call_{index}"),
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }


def _steps(answer: Answer, adds: bool) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Text, reasoning and calls of each event: what is new, or all so far."""
    text = reasoning = ""
    for word in answer.reasoning.split(" ") if answer.reasoning else ():
        piece = f" {word}" if reasoning else word
        reasoning += piece
        yield "", piece if adds else reasoning, []
    for piece in answer.pieces:
        text += piece
        if piece:
            yield (piece, "", []) if adds else (text, reasoning, [])
    before: list[dict[str, Any]] = []
    for call in _calls(answer):
        arguments = call["function"]["arguments"]
        for end in range(0, len(arguments) + 5, 5):
            function = {**call["function"], "arguments": arguments[:end]}
            if not adds:
                yield text, reasoning, [*before, {**call, "function": function}]
            elif not end:
                yield "", "", [{**call, "function": function}]
            else:
                piece = {"arguments": arguments[end - 5 : end]}
                yield "", "", [{**call, "id": "", "function": piece}]
        before.append(call)
