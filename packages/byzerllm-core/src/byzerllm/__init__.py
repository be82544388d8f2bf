"""Byzer-LLM: deploy, call and serve large language models on Ray.

Every public name is loaded on first use, so that `import byzerllm` brings neither Ray nor an
engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from byzerllm.lazy import lazy_names

if TYPE_CHECKING:
    from byzerllm.backend import Backend, BackendContext, BackendSpec, Parameters, Placement
    from byzerllm.client import ByzerLLM
    from byzerllm.client.prompts import prompt
    from byzerllm.client.types import (
        InferBackend,
        LLMClassResponse,
        LLMFunctionCallResponse,
        LLMHistoryItem,
        LLMRequest,
        LLMResponse,
    )
    from byzerllm.errors import ByzerLLMError
    from byzerllm.hookspecs import HOOK_API_VERSION, hookimpl
    from byzerllm.runtime.cluster import connect_cluster
    from byzerllm.templates import Template, Templates

__version__ = "0.2.0"

_HOMES = {
    "Backend": "byzerllm.backend",
    "BackendContext": "byzerllm.backend",
    "BackendSpec": "byzerllm.backend",
    "ByzerLLM": "byzerllm.client",
    "ByzerLLMError": "byzerllm.errors",
    "HOOK_API_VERSION": "byzerllm.hookspecs",
    "InferBackend": "byzerllm.client.types",
    "LLMClassResponse": "byzerllm.client.types",
    "LLMFunctionCallResponse": "byzerllm.client.types",
    "LLMHistoryItem": "byzerllm.client.types",
    "LLMRequest": "byzerllm.client.types",
    "LLMResponse": "byzerllm.client.types",
    "Parameters": "byzerllm.backend",
    "Placement": "byzerllm.backend",
    "Template": "byzerllm.templates",
    "Templates": "byzerllm.templates",
    "connect_cluster": "byzerllm.runtime.cluster",
    "hookimpl": "byzerllm.hookspecs",
    "prompt": "byzerllm.client.prompts",
}

__all__ = [
    "HOOK_API_VERSION",
    "Backend",
    "BackendContext",
    "BackendSpec",
    "ByzerLLM",
    "ByzerLLMError",
    "InferBackend",
    "LLMClassResponse",
    "LLMFunctionCallResponse",
    "LLMHistoryItem",
    "LLMRequest",
    "LLMResponse",
    "Parameters",
    "Placement",
    "Template",
    "Templates",
    "__version__",
    "connect_cluster",
    "hookimpl",
    "prompt",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
