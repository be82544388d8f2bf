"""Qwen's vision models at DashScope.

Source: https://help.aliyun.com/zh/model-studio/vision and, for images that are too large for a
request, https://help.aliyun.com/zh/model-studio/get-temporary-file-url
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct
from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.errors import CapabilityError, ParameterError
from byzerllm.hookspecs import hookimpl
from byzerllm_saas.content import Data, data_of, parts_of
from byzerllm_saas.dashscope_wire import (
    DASHSCOPE_EXTRA,
    DashScopeChat,
    DashScopeParameters,
)

LARGEST_DATA = 10_000_000
"""Characters of a data URL that the vendor takes; larger images go through its file store."""

_STORED = "oss://"
_READS_TEXT = re.compile(r"qwen-(turbo|plus|max|long|coder|math)", re.IGNORECASE)


class QianwenVLParameters(DashScopeParameters):
    """What a deployment of one of Qwen's vision models can be told."""

    model: str = Field("qwen-vl-plus", description="the vendor's name of the model")
    base_url: str = Field(
        "https://dashscope.aliyuncs.com/api/v1",
        description="address of the API, up to and including /api/v1",
    )


SPEC = BackendSpec(
    name="qianwen_vl",
    path="byzerllm_saas.providers.qianwen_vl:QianwenVL",
    parameters=QianwenVLParameters,
    description="Qwen's vision models at DashScope",
    model_types=("saas/qianwen_vl",),
    capabilities=frozenset({"chat", "vision"}),
    extra_parameters=DASHSCOPE_EXTRA | {"ocr_options", "vl_high_resolution_images"},
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[qianwen-vl]'",
)


class _Policy(Struct):
    upload_host: str
    upload_dir: str
    oss_access_key_id: str
    signature: str
    policy: str
    x_oss_object_acl: str
    x_oss_forbid_overwrite: str


class _Certificate(Struct):
    data: _Policy


class QianwenVL(DashScopeChat):
    """One of Qwen's vision models."""

    spec = SPEC
    address = "services/aigc/multimodal-generation/generation"

    def model_name(self) -> str:
        model = super().model_name()
        if _READS_TEXT.match(model):
            raise ParameterError.invalid(
                "saas.model",
                f"{model!r} reads text alone and has another address; deploy it as saas/qianwen",
                where="saas/qianwen_vl",
            )
        return model

    def content(self, message: Mapping[str, Any], index: int) -> list[dict[str, str]]:
        """Texts, images and videos. Those of a data URL must be images."""
        parts: list[dict[str, str]] = []
        for part in parts_of(message.get("content")):
            if part["type"] == "text":
                parts.append({"text": part["text"]})
            elif part["type"] == "image_url":
                parts.append({"image": _image(part["image_url"]["url"], index)})
            elif part["type"] == "video_url":
                parts.append({"video": part["video_url"]["url"]})
            else:
                raise CapabilityError(
                    f"saas/qianwen_vl: messages[{index}] has a part of type {part['type']!r}; "
                    "the vendor takes text, image_url and video_url",
                    vendor="qianwen_vl",
                    vendor_model=self.model,
                )
        return parts or [{"text": ""}]

    async def prepare(self, messages: list[dict[str, Any]], key: str) -> dict[str, str]:
        """Puts images that are too large for a request into the vendor's file store, which keeps
        them for two days."""
        stored = False
        for message in messages:
            for part in message["content"]:
                image = part.get("image", "")
                if image.startswith("data:") and len(image) > LARGEST_DATA:
                    image = part["image"] = await self._upload(image, key)
                stored = stored or image.startswith(_STORED)
        return {"x-dashscope-ossresourceresolve": "enable"} if stored else {}

    async def _upload(self, image: str, key: str) -> str:
        import aiohttp

        data = data_of(image, where="saas/qianwen_vl")
        assert data is not None
        answer = await self.http.send(
            "GET",
            self.url(f"uploads?action=getPolicy&model={self.model}"),
            headers=self.headers(key),
        )
        self.check_error(answer)
        found: _Certificate = self.http.decode(answer.body, _Certificate)
        policy = found.data
        place = f"{policy.upload_dir}/{uuid.uuid4().hex}.{data.media_type.partition('/')[2]}"
        form = aiohttp.FormData()
        for name, value in (
            ("OSSAccessKeyId", policy.oss_access_key_id),
            ("Signature", policy.signature),
            ("policy", policy.policy),
            ("key", place),
            ("x-oss-object-acl", policy.x_oss_object_acl),
            ("x-oss-forbid-overwrite", policy.x_oss_forbid_overwrite),
            ("success_action_status", "200"),
            ("x-oss-content-type", data.media_type),
        ):
            form.add_field(name, value)
        # The store reads no field after the file.
        form.add_field("file", _bytes(data), filename=place.rpartition("/")[2])
        await self.http.send("POST", policy.upload_host, body=form)
        return f"{_STORED}{place}"


def _image(url: str, index: int) -> str:
    if url.startswith(_STORED):
        return url
    where = f"saas/qianwen_vl: messages[{index}]"
    data = data_of(url, where=where)
    if data is None:
        return url
    if not data.media_type.startswith("image/"):
        raise ParameterError(
            f"{where}: a data URL that is no image ({data.media_type or 'of no known type'})",
            parameter="image_url",
        )
    return f"data:{data.media_type};base64,{data.base64}"


def _bytes(data: Data) -> bytes:
    try:
        return base64.b64decode(data.base64, validate=True)
    except (binascii.Error, ValueError):
        raise ParameterError(
            "saas/qianwen_vl: the data URL of an image is no base64", parameter="image_url"
        ) from None


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
