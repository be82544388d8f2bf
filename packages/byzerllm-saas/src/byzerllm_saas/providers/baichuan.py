"""Baichuan's models, which speak OpenAI's wire.

Source: https://platform.baichuan-ai.com/docs/api
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.errors import ParameterError, QuotaExceededError
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateRequest
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.openai_media import OpenAIVectors
from byzerllm_saas.openai_wire import OPENAI_ERRORS, Dialect
from byzerllm_saas.parameters import KeyParameters
from byzerllm_saas.system_text import system_with_user

HOTTEST = 1.0
"""The highest temperature that the vendor takes."""

# The second generation knows no system messages.
_NO_SYSTEM = re.compile(r"baichuan2", re.IGNORECASE)


class BaichuanParameters(KeyParameters):
    """What a deployment at Baichuan can be told."""

    key_variable = "BAICHUAN_API_KEY"

    model: str = Field("Baichuan2-Turbo", description="the vendor's name of the model")
    base_url: str = Field(
        "https://api.baichuan-ai.com/v1",
        description="address of the API, up to and including /v1",
    )


SPEC = BackendSpec(
    name="baichuan",
    path="byzerllm_saas.providers.baichuan:Baichuan",
    parameters=BaichuanParameters,
    description="Baichuan's models and embeddings",
    model_types=("saas/baichuan",),
    capabilities=frozenset({"chat", "embedding"}),
    extra_parameters=frozenset({"knowledge_base", "with_search_enhance"}),
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[baichuan]'",
)


class Baichuan(OpenAIVectors):
    """A model at Baichuan."""

    spec = SPEC
    errors_table = ErrorTable(
        codes=OPENAI_ERRORS.codes,
        # It comes under 429, as a rate that is too high does.
        phrases=((re.compile(r"insufficient (account )?balance", re.I), QuotaExceededError),),
    )
    dialect = Dialect(
        sampling=frozenset({"max_tokens", "temperature", "top_p", "top_k"}),
        include_usage=False,
        roles={"developer": "system"},
        embedding_batch=16,
    )

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        temperature = request.sampling.temperature
        if temperature is not None and temperature > HOTTEST:
            raise ParameterError.invalid(
                "temperature", f"the vendor takes 0 to {HOTTEST:g} (got {temperature:g})",
                where="saas/baichuan",
            )  # fmt: skip
        body = super().chat_body(request)
        if _NO_SYSTEM.match(self.model):
            body["messages"] = system_with_user(self, request.messages or [])
        return body

    async def check(self) -> None:
        """Checks the key, by the list of the account's files; models are listed nowhere."""
        await self.check_key(self.url("files"), self.headers(self.keys.pick()))


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
