"""Fixtures for all packages: one Ray head for the whole run, with token authentication on."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("BYZERLLM_LANG", "en")
# Ray warns of these in every process on a machine without an accelerator.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
START_SECONDS = 90


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


def start_ray_head(folder: Path, *, num_cpus: int = 8, num_gpus: int = 0) -> RayHead:
    """A head in its own process group, on ports and in a folder of its own."""
    token_path = folder / "token"
    token_path.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
    port, client_port = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}"]
    command += ["--include-dashboard=false", f"--num-cpus={num_cpus}", f"--num-gpus={num_gpus}"]
    command += [f"--temp-dir={folder}", "--object-store-memory=200000000"]
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        text = (folder / "head.log").read_text(errors="replace")
        if "Ray runtime started" in text:
            break
        if process.poll() is not None:
            raise RuntimeError(f"ray start failed:\n{text}")
        time.sleep(0.2)
    else:
        raise RuntimeError("ray start took too long")
    host = next(
        line.split("Local node IP:")[1].strip()
        for line in text.splitlines()
        if "Local node IP:" in line
    )
    return RayHead(f"{host}:{port}", f"ray://127.0.0.1:{client_port}", token_path, process)


def stop_ray_head(head: RayHead) -> None:
    """End the head and everything that it started."""
    head.process.send_signal(signal.SIGTERM)
    try:
        head.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.process.pid, signal.SIGKILL)
        head.process.wait(10)


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


@pytest.fixture(scope="session")
def cluster(ray_head: RayHead) -> Iterator[RayHead]:
    """This process connected to the shared head."""
    import ray

    import byzerllm

    byzerllm.connect_cluster(ray_head.address, log_to_driver=False)
    yield ray_head
    ray.shutdown()
