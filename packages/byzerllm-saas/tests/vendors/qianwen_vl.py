"""DashScope's vision models, and the file store that large images go through.

Source: https://help.aliyun.com/zh/model-studio/vision and
https://help.aliyun.com/zh/model-studio/get-temporary-file-url
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from vendors.qianwen import REQUEST_ID, Parameters, QianwenVendor, Strict

FORM = (
    "OSSAccessKeyId",
    "Signature",
    "policy",
    "key",
    "x-oss-object-acl",
    "x-oss-forbid-overwrite",
    "success_action_status",
    "x-oss-content-type",
    "file",
)
"""Fields of an upload; the file is the last."""


class Part(Strict):
    """One of the three."""

    text: str | None = None
    image: (
        Annotated[str, Meta(pattern=r"^(https?://|oss://|data:image/[a-z+]+;base64,)")] | None
    ) = None
    video: str | list[str] | None = None


class VisionMessage(Strict):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], Meta(min_length=1)]


class VisionInput(Strict):
    messages: Annotated[list[VisionMessage], Meta(min_length=1)]


class VisionParameters(Parameters):
    vl_high_resolution_images: bool | None = None


class VisionBody(Strict):
    """`POST /api/v1/services/aigc/multimodal-generation/generation`."""

    model: str
    input: VisionInput
    parameters: VisionParameters = msgspec.field(default_factory=VisionParameters)


class QianwenVLVendor(QianwenVendor):
    """See the module.

    Attributes:
        stored: the uploaded files by their place.
        largest_data: characters of a data URL that are taken.
    """

    models: ClassVar = ("qwen-vl-plus", "qwen-vl-max", "qwen2.5-vl-7b-instruct")
    other_models: ClassVar = ("qwen-turbo", "qwen-max", "other-text-model")
    largest_data: ClassVar = 10_000_000

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, bytes] = {}

    def routes(self) -> Iterable[web.RouteDef]:
        yield web.get("/api/v1/tasks/{task}", self.task)
        yield web.get("/api/v1/uploads", self.policy)
        yield web.post("/store", self.store)
        yield web.post("/api/v1/services/aigc/multimodal-generation/generation", self.chat)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        body = self.decode(await request.read(), VisionBody)
        self.check_model(body.model)
        resolves = request.headers.get("x-dashscope-ossresourceresolve") == "enable"
        texts = []
        for message in body.input.messages:
            for part in message.content:
                given = [
                    value for value in (part.text, part.image, part.video) if value is not None
                ]
                self.expect(len(given) == 1, "a part is one of text, image and video")
                texts.append(part.text or "")
                image = part.image or ""
                self.expect(len(image) <= self.largest_data, "Exceeded limit on max bytes")
                if image.startswith("oss://"):
                    self.expect(resolves, "oss:// is not resolved")
                    self.expect(image.removeprefix("oss://") in self.stored, "no such file")
        body.parameters.result_format = "message"
        return await self.answer(request, body.model, texts[-1], body.parameters)

    def message(self, text: str, reasoning: str, calls: list[Any]) -> dict[str, Any]:
        message = super().message(text, reasoning, calls)
        message["content"] = [{"text": text}] if text else []
        return message

    # The file store.

    async def policy(self, request: web.Request) -> web.StreamResponse:
        self.check_head(request)
        self.expect(request.query.get("action") == "getPolicy", "action")
        self.check_model(request.query.get("model", ""))
        data = {
            "policy": "cG9saWN5",
            "signature": "signed=",
            "upload_dir": f"dashscope-instant/0123456789/{len(self.asked)}",
            "upload_host": f"{self.url}/store",
            "expire_in_seconds": "300",
            "max_file_size_mb": "100",
            "capacity_limit_mb": "999999999",
            "oss_access_key_id": "LTAI0123456789",
            "x_oss_object_acl": "private",
            "x_oss_forbid_overwrite": "true",
        }
        return web.json_response({"request_id": REQUEST_ID, "data": data})

    async def store(self, request: web.Request) -> web.StreamResponse:
        """The store is not DashScope: it knows signatures, and must not see the key."""
        self.expect("authorization" not in request.headers, "the key was shown to the store")
        form = await self.form(request)
        self.expect(tuple(form) == FORM, f"fields {tuple(form)}")
        fields = {name: field.text for name, field in form.items() if name != "file"}
        signed = (fields["OSSAccessKeyId"], fields["Signature"], fields["policy"])
        if signed != ("LTAI0123456789", "signed=", "cG9saWN5"):
            error = "<Error><Code>AccessDenied</Code><Message>no such policy</Message></Error>"
            return web.Response(text=error, status=403, content_type="application/xml")
        self.expect(fields["key"].startswith("dashscope-instant/0123456789/"), "key")
        self.stored[fields["key"]] = form["file"].data
        return web.Response(status=int(fields["success_action_status"]))
