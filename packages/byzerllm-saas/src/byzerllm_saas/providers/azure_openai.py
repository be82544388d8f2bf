"""OpenAI's models on Azure: its wire, addressed by deployment, with a key in a header of its own.

Source: https://learn.microsoft.com/azure/ai-services/openai/reference
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from byzerllm.backend import BackendContext, BackendSpec
from byzerllm.errors import (
    AuthenticationError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    RateLimitedError,
)
from byzerllm.hookspecs import hookimpl
from byzerllm.requests import GenerateRequest
from byzerllm_saas.errors import ErrorTable
from byzerllm_saas.openai_media import OpenAIWire
from byzerllm_saas.openai_wire import (
    OPENAI_CAPABILITIES,
    OPENAI_ERRORS,
    OPENAI_EXTRA,
    Dialect,
)
from byzerllm_saas.parameters import KeyParameters

# The first versions that take `stream_options`; before, streams have no usage.
_COUNTS_STREAMS = "2024-09-01"


class AzureOpenAIParameters(KeyParameters):
    """What a deployment on Azure can be told."""

    key_variable = "AZURE_OPENAI_API_KEY"

    base_url: str = Field(
        "", alias="api_base", description="the resource: https://NAME.openai.azure.com"
    )
    api_version: str = Field("2024-10-21", description="version of the API, a date")
    api_type: Literal["azure"] = Field("azure", description="what it always is")
    deployment_id: str = Field("", description="name of the deployment on Azure")
    model: str = Field("", description="the model behind the deployment; by default its name")


SPEC = BackendSpec(
    name="azure_openai",
    path="byzerllm_saas.providers.azure_openai:AzureOpenAI",
    parameters=AzureOpenAIParameters,
    description="OpenAI's models on Azure",
    model_types=("saas/azure_openai",),
    capabilities=OPENAI_CAPABILITIES,
    extra_parameters=OPENAI_EXTRA | {"data_sources"},
    default_concurrency=10,
    hosted=True,
    install="pip install 'byzerllm-saas[azure-openai]'",
)


class AzureOpenAI(OpenAIWire):
    """A deployment on Azure."""

    spec = SPEC
    errors_table = ErrorTable(
        codes={
            **OPENAI_ERRORS.codes,
            "401": AuthenticationError,
            "403": PermissionDeniedError,
            "429": RateLimitedError,
            "DeploymentNotFound": HostedModelNotFoundError,
            "ResponsibleAIPolicyViolation": OPENAI_ERRORS.codes["content_filter"],
        },
    )
    parameters: AzureOpenAIParameters

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        version = self.parameters.api_version[: len(_COUNTS_STREAMS)]
        self.dialect = Dialect(base64_vectors=True, include_usage=version >= _COUNTS_STREAMS)

    def model_name(self) -> str:
        given: AzureOpenAIParameters = self.context.parameters
        if not given.base_url:
            raise ParameterError.invalid(
                "saas.api_base",
                "the address of the resource is needed: https://NAME.openai.azure.com",
                where="saas/azure_openai",
            )
        if not given.deployment_id and not given.model:
            raise ParameterError.invalid(
                "saas.deployment_id", "the deployment's name is needed", where="saas/azure_openai"
            )
        return given.model or given.deployment_id

    def url(self, path: str) -> str:
        given = self.parameters
        deployment = given.deployment_id or given.model
        place = "models" if path == "models" else f"deployments/{deployment}/{path}"
        return f"{given.base_url}/openai/{place}?api-version={given.api_version}"

    def headers(self, key: str) -> dict[str, str]:
        return {"api-key": key}

    def chat_body(self, request: GenerateRequest) -> dict[str, Any]:
        body = super().chat_body(request)
        # The deployment says which model it is.
        del body["model"]
        return body

    async def check(self) -> None:
        """Checks address, version and key; Azure lists models there, but no deployments."""
        headers = self.headers(self.keys.pick())
        await self.http.send("GET", self.url("models"), headers=headers)


@hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(SPEC)
