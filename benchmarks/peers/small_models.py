"""The small real models that the tests make, for benchmarks without a model of their own."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2] / "packages" / "byzerllm-backend-transformers" / "tests"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, made once from the demo model's GGUF."""
    sys.path.insert(0, str(_TESTS))
    from hf_models import smollm2

    return smollm2.smollm2_folder()
