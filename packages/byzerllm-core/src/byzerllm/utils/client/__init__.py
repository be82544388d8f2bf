"""Import path of earlier releases; use `byzerllm` and `byzerllm.client`."""

from byzerllm.client import ByzerLLM
from byzerllm.client.types import InferBackend, LLMHistoryItem, LLMRequest, LLMResponse
from byzerllm.templates import Template, Templates

__all__ = [
    "ByzerLLM",
    "InferBackend",
    "LLMHistoryItem",
    "LLMRequest",
    "LLMResponse",
    "Template",
    "Templates",
]
