"""Test suites for authors of plugins, and a backend that needs no model.

The suites need pytest (`pip install 'byzerllm-core[testing]'`) and are loaded on first use, so that
the plugin module `byzerllm.testing.echo` needs nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from byzerllm.errors import NotInstalledError

if TYPE_CHECKING:
    from byzerllm.testing.conformance import BackendConformance, ProviderConformance
    from byzerllm.testing.echo import EchoBackend
    from byzerllm.testing.loaded import Answer, Loaded

_HOMES = {
    "Answer": "byzerllm.testing.loaded",
    "BackendConformance": "byzerllm.testing.conformance",
    "EchoBackend": "byzerllm.testing.echo",
    "Loaded": "byzerllm.testing.loaded",
    "ProviderConformance": "byzerllm.testing.conformance",
}

__all__ = ["Answer", "BackendConformance", "EchoBackend", "Loaded", "ProviderConformance"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'byzerllm.testing' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise NotInstalledError(
            f"{name} needs pytest; run: pip install 'byzerllm-core[testing]'"
        ) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
