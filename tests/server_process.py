"""`byzerllm serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Serving:
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

    def stop(self, timeout: float = 30) -> int:
        """Ask it to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


def start(folder: Path, *options: str, **environ: str) -> Serving:
    """A server with `options` on a port of its own, which logs into `folder`."""
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", "--port", "0", *options]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environ}
        )
    try:
        return Serving(_url(process, log), process, log)
    except BaseException:
        _end(process)
        raise


@contextlib.contextmanager
def running(*options: str, **environ: str) -> Iterator[Serving]:
    """`start`, in a folder of its own; it is ended with the context."""
    with tempfile.TemporaryDirectory(prefix="bz-") as folder:
        served = start(Path(folder), *options, **environ)
        try:
            yield served
        finally:
            _end(served.process)


def serving(address: str, *options: str) -> contextlib.AbstractContextManager[Serving]:
    """`running`, for the models of the cluster at `address`."""
    return running("--ray_address", address, *options)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(10)


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"listening on (https?://\S+)", log.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"byzerllm serve did not start:\n{log.read_text(errors='replace')}")
