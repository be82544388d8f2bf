"""Zhipu's GLM models, which speak OpenAI's wire with a few words of their own.

Source: https://docs.bigmodel.cn/cn/guide/develop/http/introduction and, for the signed keys,
https://docs.bigmodel.cn/cn/api/introduction
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
from pydantic import Field

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import (
    AuthenticationError,
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
from byzerllm.requests import GenerateRequest
from byzerllm_saas.content import data_of
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.openai_media import OpenAIVectors
from byzerllm_saas.openai_wire import Dialect
from byzerllm_saas.parameters import KeyParameters

ZHIPU_ERRORS = ErrorTable(
    codes={
        **dict.fromkeys(("1000", "1001", "1002", "1003", "1004", "1100"), AuthenticationError),
        **dict.fromkeys(
            ("1110", "1111", "1112", "1121", "1220", "1300", "434"), PermissionDeniedError
        ),
        **dict.fromkeys(("1113", "1309"), QuotaExceededError),
        **dict.fromkeys(("1211", "1212", "1221", "1222"), HostedModelNotFoundError),
        **dict.fromkeys(("1120", "1230", "1234", "500"), ProviderUnavailableError),
        "1261": ContextLengthError,
        "1301": ContentFilteredError,
        **dict.fromkeys(("1302", "1303", "1304", "1308"), RateLimitedError),
        **dict.fromkeys(("1305", "1312"), ProviderOverloadedError),
    },
    statuses={434: PermissionDeniedError},
    # 1210 to 1215 tell of parameters; a text that is too long is among them.
    phrases=(
        (re.compile(r"(输入|prompt)[^。.]{0,12}(超长|过长)", re.IGNORECASE), ContextLengthError),
    ),
)

HOTTEST = 1.0
"""The highest temperature that the vendor takes."""
TOKEN_SECONDS = 210
"""How long a signed key is good for."""
_RENEW_SECONDS = 30

_SIGNED = re.compile(r"([^.\s]+)\.([^.\s]+)")


def signed_token(key: str, now: float) -> str:
    """The JSON Web Token of a key of the form `id.secret`; its times are in milliseconds.

    Args:
        now: seconds since 1970.
    """
    identity, _, secret = key.partition(".")
    milliseconds = round(now * 1000)
    head = {"alg": "HS256", "sign_type": "SIGN"}
    claims = {
        "api_key": identity,
        "exp": milliseconds + TOKEN_SECONDS * 1000,
        "timestamp": milliseconds,
    }
    text = b".".join(_base64(msgspec.json.encode(part)) for part in (head, claims))
    signature = hmac.digest(secret.encode(), text, hashlib.sha256)
    return b".".join((text, _base64(signature))).decode()


class Tokens:
    """What shows a key: a token that is signed anew every few minutes, or the key as it is where it
    has no secret half."""

    def __init__(self) -> None:
        self._signed: dict[str, tuple[float, str]] = {}

    def __repr__(self) -> str:
        return f"Tokens({len(self._signed)} keys)"

    def of(self, key: str) -> str:
        """The token of a key."""
        if not _SIGNED.fullmatch(key):
            return key
        now = time.time()
        signed, token = self._signed.get(key, (0.0, ""))
        # A clock that was set back makes the token one of the future.
        if not 0 <= now - signed < TOKEN_SECONDS - _RENEW_SECONDS:
            token = signed_token(key, now)
            self._signed[key] = (now, token)
        return token


def secret_halves(keys: list[str]) -> list[str]:
    """The secrets in keys of the form `id.secret`."""
    return [found[2] for key in keys if (found := _SIGNED.fullmatch(key))]


class ZhipuParameters(KeyParameters):
    """What a deployment at Zhipu can be told."""

    key_variable = "ZHIPUAI_API_KEY"

    model: str = Field("glm-4", description="the vendor's name of the model")
    base_url: str = Field(
        "https://open.bigmodel.cn/api/paas/v4",
        description="address of the API, up to and including /api/paas/v4",
    )


SPEC = BackendSpec(
    name="zhipu",
    path="byzerllm_saas.providers.zhipu:Zhipu",
    parameters=ZhipuParameters,
    description="Zhipu's GLM models and embeddings",
    model_types=("saas/zhipu",),
    capabilities=frozenset({"chat", "embedding", "tools", "vision"}),
    extra_parameters=frozenset(
        {
            "do_sample",
            "reasoning_effort",
            "request_id",
            "response_format",
            "thinking",
            "tool_stream",
            "user_id",
        }
    ),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[zhipu]'",
)


class Zhipu(OpenAIVectors):
    """A GLM model."""

    spec = SPEC
    errors_table = ZHIPU_ERRORS
    dialect = Dialect(
        sampling=frozenset({"max_tokens", "seed", "stop", "temperature", "top_p"}),
        include_usage=False,
        finish_reasons={"sensitive": "content_filter"},
        failures=frozenset({"network_error"}),
        roles={"developer": "system"},
        # embedding-2 takes 8000 tokens with one call and at most 512 of each text.
        embedding_batch=15,
    )

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._tokens = Tokens()

    def headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self._tokens.of(key)}"}

    def secrets(self) -> list[str]:
        return [*super().secrets(), *secret_halves(self.keys.texts())]

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        if len(request.sampling.stop) > 1:
            raise ParameterError.invalid("stop", "the vendor takes one text", where="saas/zhipu")
        temperature = request.sampling.temperature
        if temperature is not None and temperature > HOTTEST:
            raise ParameterError.invalid(
                "temperature",
                f"the vendor takes 0 to {HOTTEST:g} (got {temperature:g})",
                where="saas/zhipu",
            )
        body = super().chat_body(request)
        if temperature == 0:
            # Zero is outside of what it takes; this is how it is told to be greedy.
            del body["temperature"]
            body.setdefault("do_sample", False)
        if request.tools and body.get("tool_choice") == "none":
            del body["tools"], body["tool_choice"]
        elif body.get("tool_choice", "auto") != "auto":
            raise ParameterError.invalid(
                "tool_choice", "the vendor takes 'auto' and 'none'", where="saas/zhipu"
            )
        body["messages"] = [_with_bare_images(message) for message in body["messages"]]
        return body

    async def check(self) -> None:
        """Checks the key, by the list of the account's files; models are listed nowhere."""
        headers = self.headers(self.keys.pick())
        await self.check_key(self.url("files?purpose=batch&limit=1"), headers)


def _with_bare_images(message: dict[str, Any]) -> dict[str, Any]:
    """Images are addresses or bare base64."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = []
    for part in content:
        if part["type"] == "image_url":
            data = data_of(part["image_url"]["url"], where="saas/zhipu")
            if data is not None:
                part = {"type": "image_url", "image_url": {"url": data.base64}}
        parts.append(part)
    return {**message, "content": parts}


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
