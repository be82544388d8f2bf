"""ChatGLM by the third version of Zhipu's API.

Source: the SDK of that time (zhipuai 1)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from msgspec import Meta

from vendors.openai import Strict
from vendors.server import Answer, Vendor, made_up
from vendors.zhipu import ZhipuVendor, check_signed


class Message(Strict):
    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(min_length=1)]


class InvokeBody(Strict):
    """`POST /api/paas/v3/model-api/{model}/invoke`."""

    prompt: Annotated[list[Message], Meta(min_length=1)]
    temperature: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, lt=1)] | None = None
    request_id: str | None = None
    return_type: Literal["json_string", "text"] = "json_string"
    ref: dict[str, Any] | None = None


class StreamBody(InvokeBody):
    """`POST /api/paas/v3/model-api/{model}/sse-invoke`."""

    incremental: bool = True


class ChatGLMVendor(Vendor):
    """See the module.

    Attributes:
        status_of: the kinds of errors that are not refused under HTTP 200.
        repeats: the last event of a stream has all of the answer once more.
    """

    key: ClassVar[str] = ZhipuVendor.key
    models: ClassVar = ("chatglm_130b", "chatglm_pro", "chatglm_std", "chatglm_lite")
    kinds: ClassVar = ZhipuVendor.kinds

    def __init__(self) -> None:
        super().__init__()
        self.repeats = False
        self.status_of = {"wrong_key": 401, "expired": 401, "failed": 500}

    def routes(self) -> Iterable[web.RouteDef]:
        p = "/api/paas/v3/model-api"
        yield web.get(f"{p}/-/async-invoke/{{task}}", self.task)
        yield web.post(f"{p}/{{model}}/invoke", self.invoke)
        yield web.post(f"{p}/{{model}}/sse-invoke", self.sse_invoke)

    def refusal(self, kind: str, message: str) -> web.Response:
        _, code, says = ZhipuVendor.errors[kind]
        error = {"code": int(code), "msg": f"{says} ({message})", "success": False}
        return web.json_response(error, status=self.status_of.get(kind, 200))

    def check_head(self, request: web.Request) -> None:
        check_signed(request.headers.get("authorization", ""), self.key)
        if request.method == "POST":
            self.expect(request.content_type == "application/json", "content type")
            model = request.match_info["model"]
            self.expect(model in self.models, model, "no_model")

    async def task(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        return web.json_response({"code": 1222, "msg": "task does not exist", "success": False})

    async def invoke(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), InvokeBody)
        answer = self.answer(body)
        # With its quotes, as the documents warn.
        content = json.dumps(answer.text, ensure_ascii=False)
        data = {
            "request_id": "8098024428488935671",
            "task_id": "75931252186628016897601864755556524089",
            "task_status": "SUCCESS",
            "choices": [
                {
                    "role": "assistant",
                    "content": content if body.return_type == "json_string" else answer.text,
                }
            ],
            "usage": _usage(answer),
        }
        whole = {"code": 200, "msg": "操作成功", "data": data, "success": True}
        return await self.whole(request, whole)

    async def sse_invoke(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), StreamBody)
        self.expect(body.incremental, "this server plays increments alone")
        return await self.stream(request, self.events(self.answer(body)))

    def answer(self, body: InvokeBody) -> Answer:
        self.expect(body.prompt[-1].role == "user", "prompt")
        question = body.prompt[-1].content
        return self.next_answer(lambda: made_up(question, max_tokens=None)[0])

    def events(self, answer: Answer) -> Iterator[bytes]:
        for piece in answer.pieces:
            if piece:
                yield _event("add", piece)
        if answer.finish in ("error", "error as text"):
            error = {"code": 1302, "msg": "您当前使用该API的并发数过高", "success": False}
            yield _event("error", error["msg"] if " " in answer.finish else json.dumps(error))
            return
        meta = {"request_id": "8098", "task_id": "7593", "task_status": "SUCCESS"}
        yield _event(
            answer.finish or "finish",
            answer.text if self.repeats else "",
            meta=json.dumps({**meta, "usage": _usage(answer)}),
        )


def _event(kind: str, data: Any, **fields: str) -> bytes:
    lines = [f"event: {kind}", "id: 8313807536837492492"]
    lines += [f"data: {line}" for line in data.split("\n")]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\n".join([*lines, "", ""]).encode()


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.usage
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
