"""The first moments: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("ray", "torch", "numpy", "llama_cpp", "openai", "huggingface_hub", "grpc", "pydantic")


def loaded(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    assert not loaded("import byzerllm") & set(HEAVY)


def test_client_and_plugins_load_no_engine() -> None:
    modules = loaded(
        "import byzerllm\nfrom byzerllm.plugins import get_plugins\n"
        "byzerllm.ByzerLLM(); get_plugins().backend('llama_cpp')"
    )
    assert "byzerllm_backend_llamacpp" in modules
    assert not modules & (set(HEAVY) - {"pydantic"})
