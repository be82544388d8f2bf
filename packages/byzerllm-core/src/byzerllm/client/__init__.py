"""The client: what users touch."""

from byzerllm.client.llm import ByzerLLM

__all__ = ["ByzerLLM"]
