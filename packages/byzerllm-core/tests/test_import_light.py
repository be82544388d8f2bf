"""`import byzerllm` brings names, not engines."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import byzerllm

HEAVY = "ray torch numpy pydantic jinja2 rich click openai llama_cpp transformers pytest grpc"


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages the code imports, in a process of its own."""
    shown = f"{code}\nimport sys; print(*[n for n in {HEAVY.split()} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.split())


def test_the_package_itself() -> None:
    assert loaded_by("import byzerllm") == set()


@pytest.mark.parametrize(
    "code",
    [
        "from byzerllm import ByzerLLM; ByzerLLM()",
        "from byzerllm.utils.client import ByzerLLM, LLMRequest, InferBackend, Templates",
        "from byzerllm import Templates; Templates.qwen()",
        "import byzerllm.runtime.local, byzerllm.testing.echo",
    ],
)
def test_no_ray_and_no_engine_before_the_first_call(code: str) -> None:
    assert loaded_by(code) <= {"pydantic"}


def test_the_local_runtime_needs_no_ray() -> None:
    code = (
        "import byzerllm\n"
        "llm = byzerllm.ByzerLLM(runtime='local', infer_backend='echo')\n"
        "llm.deploy(udf_name='m')\n"
        "assert llm.chat_oai('hi', model='m')[0].output == 'hi'\n"
    )
    assert loaded_by(code).isdisjoint({"ray", "torch", "numpy", "llama_cpp", "pytest"})


def test_public_names() -> None:
    constants_first = sorted(byzerllm.__all__, key=lambda name: (not name.isupper(), name))
    assert byzerllm.__all__ == constants_first
    assert dir(byzerllm) == sorted(byzerllm.__all__)
    assert set(byzerllm._HOMES) | {"__version__"} == set(byzerllm.__all__)
    for name in byzerllm.__all__:
        assert getattr(byzerllm, name) is not None
    for name, home in byzerllm._HOMES.items():
        assert getattr(importlib.import_module(home), name) is getattr(byzerllm, name)


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="'byzerllm' has no attribute 'ByzerLM'"):
        byzerllm.ByzerLM  # noqa: B018
