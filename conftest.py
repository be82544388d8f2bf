"""Fixtures for all packages: one Ray head for the whole run, with token authentication on."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("BYZERLLM_LANG", "en")
# Ray warns of these in every process on a machine without an accelerator.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
START_SECONDS = 90
# A shell that runs the tests in the background makes them, and all that they start, deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class RayHead:
    """A head started for the tests.

    Attributes:
        address, client_address: `HOST:PORT` and `ray://HOST:PORT`.
        token_path: the file with the cluster's token.
    """

    address: str
    client_address: str
    token_path: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ray_head(
    folder: Path,
    *,
    num_cpus: int = 8,
    num_gpus: int = 0,
    python: str = sys.executable,
    environ: MutableMapping[str, str] = os.environ,
) -> RayHead:
    """A head in its own process group, on ports and in a folder of its own.

    Args:
        python: the interpreter of the environment that it runs in.
        environ: its environment, which gets the variables that present its token.
    """
    token_path = folder / "token"
    token_path.write_text(secrets.token_hex(32))
    environ["RAY_AUTH_MODE"] = "token"
    environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    port, client_port = free_port(), free_port()
    command = [str(Path(python).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}"]
    command += ["--include-dashboard=false", f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}"]
    command += [f"--temp-dir={folder}", "--object-store-memory=200000000"]
    path = folder / "head.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environ
        )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        text = path.read_text(errors="replace")
        found = re.search(r"--address='([^']+)'", text)
        if found and "terminated by a signal" in text:
            return RayHead(found[1], f"ray://127.0.0.1:{client_port}", token_path, process)
        if process.poll() is not None:
            raise RuntimeError(f"ray start failed:\n{text}")
        time.sleep(0.2)
    raise RuntimeError("ray start took too long")


def stop_ray_head(head: RayHead) -> None:
    """End the head and everything that it started; a polite stop would drain for 30 seconds."""
    family = psutil.Process(head.process.pid).children(recursive=True)
    head.process.kill()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    head.process.wait(10)
    psutil.wait_procs(family, timeout=10)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A head with 8 CPUs that lives as long as the test run."""
    folder = Path(tempfile.mkdtemp(prefix="bz-"))
    head = start_ray_head(folder)
    try:
        yield head
    finally:
        stop_ray_head(head)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def other_head() -> Iterator[Callable[..., RayHead]]:
    """Starts further heads, with `start_ray_head`'s keywords; they end with the module."""
    with contextlib.ExitStack() as ending:

        def start(**keywords: Any) -> RayHead:
            folder = Path(tempfile.mkdtemp(prefix="bz-"))
            ending.callback(shutil.rmtree, folder, ignore_errors=True)
            head = start_ray_head(folder, **keywords)
            ending.callback(stop_ray_head, head)
            return head

        yield start


@pytest.fixture(scope="session")
def cluster(ray_head: RayHead) -> Iterator[RayHead]:
    """This process connected to the shared head."""
    import ray

    import byzerllm

    byzerllm.connect_cluster(ray_head.address, log_to_driver=False)
    yield ray_head
    ray.shutdown()
