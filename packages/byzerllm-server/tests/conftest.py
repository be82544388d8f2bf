"""Fixtures of the server's tests: real servers in processes of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import pytest

from server_process import Serving, running

if TYPE_CHECKING:
    from vendors.openai import OpenAIVendor

ECHO = """
version: 1
models:
  echo:
    infer_backend: echo
  slow:
    infer_backend: echo
    infer_params: {delay: 0.05, chunks: 200}
  broken:
    infer_backend: echo
    infer_params: {fail_at: 3, chunks: 10}
"""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Serving]]:
    """Starts servers without Ray, with the models of `config`; they end with the module."""
    with contextlib.ExitStack() as ending:

        def start(*options: str, config: str = ECHO, **environ: str) -> Serving:
            if "--runtime" not in options:
                file = tmp_path_factory.mktemp("server") / "byzerllm.yaml"
                file.write_text(config)
                options = ("--runtime", "local", "--config", str(file), *options)
            return ending.enter_context(running(*options, **environ))

        yield start


@pytest.fixture(scope="module")
def echo(serving: Callable[..., Serving]) -> Serving:
    """A server with the models echo, slow and broken."""
    return serving()


HOSTED = """
version: 1
models:
"""
HOSTED_MODEL = """
  {name}:
    pretrained_model_type: saas/openai
    infer_params:
      saas.api_key: {vendor.key}
      saas.base_url: {vendor.url}/v1
      saas.model: {model}
"""
HOSTED_MODELS = {
    "chat": "gpt-4o",
    "vectors": "text-embedding-3-small",
    "painter": "dall-e-3",
    "sketcher": "gpt-image-1",
    "voice": "tts-1",
    "ear": "whisper-1",
    "deaf-to-time": "gpt-4o-transcribe",
}


@pytest.fixture(scope="module")
def openai_vendor() -> Iterator[OpenAIVendor]:
    """A local server that plays OpenAI, strictly."""
    from vendors.openai import OpenAIVendor

    with OpenAIVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def hosted_server(serving: Callable[..., Serving], openai_vendor: OpenAIVendor) -> Serving:
    """A gateway to `HOSTED_MODELS` at the vendor."""
    models = [
        HOSTED_MODEL.format(name=name, model=model, vendor=openai_vendor)
        for name, model in HOSTED_MODELS.items()
    ]
    return serving(config=HOSTED + "".join(models))


@pytest.fixture
def hosted(hosted_server: Serving) -> Iterator[httpx.Client]:
    """A client of `hosted_server`."""
    with httpx.Client(base_url=hosted_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def http(echo: Serving) -> Iterator[httpx.Client]:
    """A client of `echo`."""
    with httpx.Client(base_url=echo.url, timeout=30) as client:
        yield client
