"""Import path of the LlamaIndex integration, which lives in the package byzerllm-retrieval."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from byzerllm.errors import NotInstalledError

__all__ = ["get_service_context", "get_storage_context"]


def get_service_context(*args: Any, **options: Any) -> Any:
    """`byzerllm_retrieval.llama_index.get_service_context`.

    Raises:
        NotInstalledError: the package is missing.
    """
    return _integration().get_service_context(*args, **options)


def get_storage_context(*args: Any, **options: Any) -> Any:
    """`byzerllm_retrieval.llama_index.get_storage_context`.

    Raises:
        NotInstalledError: the package is missing.
    """
    return _integration().get_storage_context(*args, **options)


def _integration() -> Any:
    if importlib.util.find_spec("byzerllm_retrieval") is None:
        raise NotInstalledError(
            "the LlamaIndex integration is in the package byzerllm-retrieval, which is not "
            "installed; run: pip install 'byzerllm-core[retrieval]'"
        )
    return importlib.import_module("byzerllm_retrieval.llama_index")
