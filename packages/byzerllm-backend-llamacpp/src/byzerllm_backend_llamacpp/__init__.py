"""llama.cpp backend of Byzer-LLM: GGUF models with continuous batching.

The module is the plugin: it registers the backend and imports no engine.
"""

from __future__ import annotations

from collections.abc import Callable

from byzerllm.backend import BackendSpec
from byzerllm.hookspecs import hookimpl
from byzerllm_backend_llamacpp.parameters import LlamaCppParameters

__all__ = ["HOOK_API_VERSION", "LLAMA_CPP", "LlamaCppParameters", "register_backends"]

HOOK_API_VERSION = 1

LLAMA_CPP = BackendSpec(
    name="llama_cpp",
    aliases=("llamacpp", "llama.cpp"),
    path="byzerllm_backend_llamacpp.backend:LlamaCppBackend",
    parameters=LlamaCppParameters,
    description="GGUF models on llama.cpp; the requests of a worker decode together",
    model_types=("custom/auto", "custom/*"),
    formats=("gguf",),
    capabilities=frozenset(
        {
            "chat",
            "completion",
            "embedding",
            "tokenize",
            "chat_template",
            "logprobs",
            "constrained",
        }
    ),
    extra_parameters=frozenset(
        {
            "chat_template_kwargs",
            "mirostat",
            "mirostat_eta",
            "mirostat_tau",
            "repeat_last_n",
            "top_n_sigma",
            "typical_p",
            "xtc_probability",
            "xtc_threshold",
        }
    ),
    default_concurrency=10,
    install="pip install 'byzerllm-core[llamacpp]'",
)


@hookimpl
def register_backends(register: Callable[[BackendSpec], None]) -> None:
    register(LLAMA_CPP)
