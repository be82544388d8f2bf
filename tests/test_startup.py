"""The first moments: nothing heavy is loaded before it is needed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("ray", "torch", "numpy", "llama_cpp", "openai", "huggingface_hub", "grpc", "pydantic")
COMMAND = str(Path(sys.executable).with_name("byzerllm"))
ROUNDS = 20


def loaded(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def seconds(command: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - start


def test_import_loads_nothing_heavy() -> None:
    assert not loaded("import byzerllm") & set(HEAVY)


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
    # What else the machine does at the moment only adds to it: one quick run is the proof.
    times: list[float] = []
    while len(times) < ROUNDS and min(times, default=limit + 1) > limit:
        times.append(seconds(command))
    assert min(times) <= limit
