"""The backend passes the suite of backends on a small real model."""

from __future__ import annotations

from typing import ClassVar

import pytest

from byzerllm.backend import Backend
from byzerllm.plugins import get_plugins
from byzerllm.testing import BackendConformance
from byzerllm_backend_transformers.backend import TransformersBackend
from byzerllm_backend_transformers.chat.task import Chat
from hf_models.smollm2 import smollm2_folder


@pytest.mark.model
class TestTransformers(BackendConformance):
    spec = get_plugins().backends.get("transformers")
    infer_params: ClassVar = {"max_model_len": 2048, "threads": 1}
    deterministic = True
    exceptions: ClassVar = {
        "test_embedding": "a chat model; tests/test_embedding.py has one that embeds",
        "test_rerank": "a chat model; tests/test_reranking.py has one that ranks",
    }

    @classmethod
    def setup_class(cls) -> None:
        cls.model_path = str(smollm2_folder())
        super().setup_class()

    def busy(self, backend: Backend) -> bool:
        assert isinstance(backend, TransformersBackend)
        assert isinstance(backend.task, Chat)
        stats = backend.task.stats()
        return bool(stats.running or stats.waiting)
