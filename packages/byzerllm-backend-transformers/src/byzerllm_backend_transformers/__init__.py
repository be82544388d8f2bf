"""The transformers backend of Byzer-LLM: chat, embeddings, reranking, vision, speech and images.

The module is the plugin: it registers the backend and imports no engine.
"""

from __future__ import annotations

from collections.abc import Callable

from byzerllm.backend import BackendSpec
from byzerllm.hookspecs import hookimpl
from byzerllm_backend_transformers.families import FAMILIES
from byzerllm_backend_transformers.parameters import TransformersParameters

__all__ = ["HOOK_API_VERSION", "TRANSFORMERS", "TransformersParameters", "register_backends"]

HOOK_API_VERSION = 1

_CHAT = frozenset(
    {
        "chat_template_kwargs",
        "epsilon_cutoff",
        "eta_cutoff",
        "no_repeat_ngram_size",
        "top_h",
        "typical_p",
    }
)
_TRANSCRIPTION = frozenset({"language", "task"})
_IMAGE = frozenset(
    {
        "batch_count",
        "batch_size",
        "cfg_scale",
        "enable_hires",
        "enable_multidiff",
        "height",
        "init_image",
        "negative_prompt",
        "sampler_name",
        "sampling_steps",
        "scale_slider",
        "strength",
        "stride",
        "upscaler_mode",
        "views_batch_size",
        "width",
        "window_size",
    }
)

TRANSFORMERS = BackendSpec(
    name="transformers",
    path="byzerllm_backend_transformers.backend:TransformersBackend",
    parameters=TransformersParameters,
    description="Hugging Face folders on transformers: chat, embeddings, vision, speech, images",
    model_types=tuple(FAMILIES),
    formats=("transformers",),
    capabilities=frozenset(
        {
            "chat",
            "completion",
            "embedding",
            "rerank",
            "tokenize",
            "chat_template",
            "logprobs",
            "constrained",
            "vision",
            "speech",
            "image",
            "transcription",
        }
    ),
    extra_parameters=_CHAT | _IMAGE | _TRANSCRIPTION,
    install="pip install 'byzerllm-core[transformers]'",
)


@hookimpl
def register_backends(register: Callable[[BackendSpec], None]) -> None:
    register(TRANSFORMERS)
