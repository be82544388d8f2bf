"""`byzerllm serve` in a process of its own, on a cluster."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def serving(address: str, *options: str) -> Iterator[Serving]:
    """The models of the cluster at `address`, on a port of its own."""
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", "--port", "0"]
    with tempfile.TemporaryDirectory(prefix="bz-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--ray_address", address, *options], stdout=output, stderr=output
            )
        try:
            yield Serving(_url(process, log), process, log)
        finally:
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
