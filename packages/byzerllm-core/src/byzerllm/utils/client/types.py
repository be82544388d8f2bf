"""Import path of earlier releases; use `byzerllm.client.types`."""

from byzerllm.client.types import InferBackend, LLMHistoryItem, LLMRequest, LLMResponse
from byzerllm.templates import Template, Templates

__all__ = [
    "InferBackend",
    "LLMHistoryItem",
    "LLMRequest",
    "LLMResponse",
    "Template",
    "Templates",
]
