"""OpenAI, and everybody who speaks its wire: Kimi, DeepSeek, 01.AI, … by `saas.base_url`.

Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import Field

from byzerllm.backend import BackendSpec
from byzerllm.hookspecs import hookimpl
from byzerllm_saas.openai_media import OpenAIWire
from byzerllm_saas.openai_wire import OPENAI_CAPABILITIES, OPENAI_EXTRA, Dialect
from byzerllm_saas.parameters import KeyParameters


class OpenAIParameters(KeyParameters):
    """What a deployment at OpenAI can be told."""

    key_variable = "OPENAI_API_KEY"

    model: str = Field("gpt-3.5-turbo-0125", description="the vendor's name of the model")
    base_url: str = Field(
        "https://api.openai.com/v1", description="address of the API, up to and including /v1"
    )


SPEC = BackendSpec(
    name="openai",
    aliases=("official_openai",),
    path="byzerllm_saas.providers.openai:OpenAI",
    parameters=OpenAIParameters,
    description="OpenAI, and whoever speaks its API: Kimi, DeepSeek, 01.AI, … by saas.base_url",
    model_types=("saas/openai", "saas/official_openai"),
    capabilities=OPENAI_CAPABILITIES,
    extra_parameters=OPENAI_EXTRA,
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[openai]'",
)


class OpenAI(OpenAIWire):
    """A model at OpenAI or at an address that speaks its API."""

    spec = SPEC
    dialect = Dialect(base64_vectors=True)


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
