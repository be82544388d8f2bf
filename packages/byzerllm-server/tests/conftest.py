"""Fixtures of the server's tests: real servers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from vendors.openai import OpenAIVendor

START_SECONDS = 60
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


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        url: `http://127.0.0.1:PORT`.
        log: the file with its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, timeout: float = 20) -> int:
        """Ask it to stop, as Ctrl-C does, and return its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)


def start_server(folder: Path, *options: str, config: str = ECHO, **environ: str) -> Served:
    """`byzerllm serve` without Ray, with the models of `config`, on a port of its own."""
    (folder / "byzerllm.yaml").write_text(config)
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", "--port", "0"]
    if "--runtime" not in options:
        command += ["--runtime", "local", "--config", str(folder / "byzerllm.yaml")]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], stdout=output, stderr=output, env={**os.environ, **environ}
        )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        found = re.search(r"listening on (https?://\S+)", log.read_text(errors="replace"))
        if found:
            return Served(found[1], process, log)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"byzerllm serve did not start:\n{log.read_text(errors='replace')}")


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[..., Served]]:
    """Starts servers, with `start_server`'s options; they end with the module."""
    with contextlib.ExitStack() as ending:

        def start(*options: str, **settings: str) -> Served:
            folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="bz-")))
            served = start_server(folder, *options, **settings)
            ending.callback(_end, served)
            return served

        yield start


def _end(served: Served) -> None:
    if served.process.poll() is None:
        served.process.kill()
        served.process.wait(10)


@pytest.fixture(scope="module")
def echo(serving: Callable[..., Served]) -> Served:
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
def hosted_server(serving: Callable[..., Served], openai_vendor: OpenAIVendor) -> Served:
    """A gateway to `HOSTED_MODELS` at the vendor."""
    models = [
        HOSTED_MODEL.format(name=name, model=model, vendor=openai_vendor)
        for name, model in HOSTED_MODELS.items()
    ]
    return serving(config=HOSTED + "".join(models))


@pytest.fixture
def hosted(hosted_server: Served) -> Iterator[httpx.Client]:
    """A client of `hosted_server`."""
    with httpx.Client(base_url=hosted_server.url, timeout=30) as client:
        yield client


@pytest.fixture
def http(echo: Served) -> Iterator[httpx.Client]:
    """A client of `echo`."""
    with httpx.Client(base_url=echo.url, timeout=30) as client:
        yield client
