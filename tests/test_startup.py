"""The first moments: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "numpy", "llama_cpp", "openai", "huggingface_hub", "grpc", "pydantic")
COMMAND = str(Path(sys.executable).with_name("byzerllm"))
ROUNDS = 5


def loaded(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def cpu_seconds(command: tuple[str, ...]) -> float:
    """What a run costs; its wall time would measure the machine's other work too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_client_and_plugins_load_no_engine() -> None:
    modules = loaded(
        "import byzerllm\nfrom byzerllm.plugins import get_plugins\n"
        "byzerllm.ByzerLLM(); get_plugins().backend('llama_cpp')"
    )
    assert "byzerllm_backend_llamacpp" in modules
    assert not modules & (set(HEAVY) - {"pydantic"})


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ((sys.executable, "-c", "import byzerllm"), 0.25),
        ((COMMAND, "--help"), 0.6),
    ],
    ids=["import", "help"],
)
def test_it_is_quick(command: tuple[str, ...], limit: float) -> None:
    assert min(cpu_seconds(command) for _ in range(ROUNDS)) <= limit
