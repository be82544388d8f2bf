"""What the HTTP server costs, beside a plain asyncio passthrough and LiteLLM's proxy.

A fast server that answers at once plays the vendor; each gateway runs in processes of its own and
is loaded, in alternating rounds of one run, with the same requests. CPU is that of all processes
of a gateway (with Ray: the server and the worker).

    python benchmarks/gateway.py [--rounds 5] [--litellm PATH_OF_ITS_COMMAND] [--only local|ray]

LiteLLM asks for older packages than ours; it lives in an environment of its own:
`pip install 'litellm[proxy]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from peers.fast_vendor import CHUNKS, vendor
from rich.console import Console
from rich.table import Table

MODEL = "bench-gateway"
QUESTION = "Say something about the sea. " * 4
FLIGHT = 32
ON_RAY = "byzerllm on Ray"
START_SECONDS = 120
BIN = Path(sys.executable).parent


@dataclass
class Gateway:
    """One gateway under test."""

    name: str
    port: int
    processes: list[psutil.Process]
    calls: int
    figures: dict[str, list[float]] = field(default_factory=dict)

    def cpu(self) -> float:
        """CPU seconds of its processes and of theirs."""
        used = 0.0
        for process in self.processes:
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    used += times.user + times.system
        return used

    def note(self, figure: str, value: float) -> None:
        self.figures.setdefault(figure, []).append(value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The load: one connection for each caller, kept open, nothing parsed that need not be.


def request_bytes(stream: bool) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": stream,
        "max_tokens": CHUNKS,
    }
    data = msgspec.json.encode(body)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        "authorization: Bearer sk-bench\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def caller(port: int, calls: int, stream: bool, seconds: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    request = request_bytes(stream)
    try:
        for _ in range(calls):
            start = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"content-length:" in head:
                size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
            else:
                pieces = []
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    pieces.append((await reader.readexactly(size + 2))[:-2])
                await reader.readexactly(2)
                body = b"".join(pieces)
            if not head.startswith(b"http/1.1 200") or f"tok{CHUNKS - 1} ".encode() not in body:
                raise RuntimeError(f"a wrong answer: {head!r} {body[:300]!r}")
            seconds.append(time.perf_counter() - start)
    finally:
        writer.close()


async def load(gateway: Gateway, callers: int, calls: int, *, stream: bool) -> dict[str, float]:
    """Figures of `calls` requests by `callers` at once."""
    seconds: list[float] = []
    before, start = gateway.cpu(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller(gateway.port, calls // callers, stream, seconds))
    elapsed = time.perf_counter() - start
    return {
        "rate": len(seconds) / elapsed,
        "cpu": (gateway.cpu() - before) / len(seconds) * 1e3,
        "p50": statistics.median(seconds) * 1e3,
    }


async def measure(gateways: list[Gateway], rounds: int) -> list[float]:
    """Fills the gateways' figures; returns p50 ms of a bare actor call in each round."""
    bare: list[float] = []
    for gateway in gateways:
        await load(gateway, 4, 40, stream=False)
        await load(gateway, 4, 8, stream=True)
    for turn in range(rounds):
        order = gateways[turn % len(gateways) :] + gateways[: turn % len(gateways)]
        for gateway in order:
            lone = await load(gateway, 1, gateway.calls // 4, stream=False)
            gateway.note("one in flight: p50 ms", lone["p50"])
            busy = await load(gateway, FLIGHT, gateway.calls, stream=False)
            gateway.note(f"{FLIGHT} in flight: requests/s", busy["rate"])
            gateway.note(f"{FLIGHT} in flight: CPU ms each", busy["cpu"])
            streams = await load(gateway, FLIGHT, gateway.calls // 4, stream=True)
            gateway.note(f"{CHUNKS}-chunk streams: streams/s", streams["rate"])
            gateway.note(f"{CHUNKS}-chunk streams: CPU ms each", streams["cpu"])
            if gateway.name == ON_RAY:
                bare.append(await asyncio.to_thread(bare_actor_call, 200))
    return bare


_actor: Any = None


def bare_actor_call(calls: int) -> float:
    """p50 ms of calls of an actor that does nothing."""
    global _actor
    import ray

    class Bare:
        async def call(self, text: str) -> str:
            return text

    if _actor is None:
        _actor = ray.remote(num_cpus=0, max_concurrency=100)(Bare).remote()
        ray.get(_actor.call.remote(QUESTION))
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        ray.get(_actor.call.remote(QUESTION))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


# The gateways.


@contextlib.contextmanager
def running(command: list[str], port: int, folder: Path, **environ: str) -> Iterator[Any]:
    """A server process that listens on `port`."""
    log = folder / f"{Path(command[0]).name}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **environ}, cwd=folder
        )
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-3000:]}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def passthrough(url: str, folder: Path) -> Iterator[Gateway]:
    port = free_port()
    command = [str(BIN / "uvicorn"), "--app-dir", str(Path(__file__).parent), "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", "peers.passthrough:app"]
    with running(command, port, folder, VENDOR_URL=url) as process:
        yield Gateway("passthrough", port, [process], 3200)


def _parameters(url: str) -> dict[str, str]:
    return {"saas.api_key": "key-0123456789", "saas.base_url": url, "saas.model": "gpt-4o"}


@contextlib.contextmanager
def ours_local(url: str, folder: Path) -> Iterator[Gateway]:
    model = {
        "pretrained_model_type": "saas/openai",
        "infer_params": _parameters(url),
        "worker_concurrency": 100,
        "check": False,
    }
    config = folder / "byzerllm.json"
    config.write_bytes(msgspec.json.encode({"version": 1, "models": {MODEL: model}}))
    port = free_port()
    command = [str(BIN / "byzerllm"), "serve", "--runtime", "local", "--config", str(config)]
    with running([*command, "--port", str(port)], port, folder) as process:
        yield Gateway("byzerllm, no Ray", port, [process], 3200)


@contextlib.contextmanager
def ours_on_ray(url: str, folder: Path) -> Iterator[Gateway]:
    import ray

    import byzerllm

    byzerllm.connect_cluster("local", log_to_driver=False, num_cpus=2)
    try:
        llm = byzerllm.ByzerLLM().setup_cpus_per_worker(0.001).setup_worker_concurrency(100)
        llm.deploy(
            pretrained_model_type="saas/openai",
            udf_name=MODEL,
            infer_params=_parameters(url),
            check=False,
        )
        worker = psutil.Process(llm.stat(MODEL)[0]["workers"][0]["pid"])
        port = free_port()
        command = [
            str(BIN / "byzerllm"),
            "serve",
            "--ray_address",
            ray.get_runtime_context().gcs_address,
        ]
        with running([*command, "--port", str(port)], port, folder) as process:
            yield Gateway(ON_RAY, port, [process, worker], 3200)
        llm.undeploy(MODEL, force=True)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def litellm(command: str, url: str, folder: Path) -> Iterator[Gateway]:
    config = folder / "litellm.json"
    parameters = {"model": "openai/gpt-4o", "api_base": url, "api_key": "key-0123456789"}
    models = [{"model_name": MODEL, "litellm_params": parameters}]
    config.write_bytes(msgspec.json.encode({"model_list": models}))
    port = free_port()
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    started = [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with running(started, port, folder, **environ) as process:
        yield Gateway("LiteLLM's proxy", port, [process], 320)


def show(gateways: list[Gateway]) -> None:
    plain = gateways[0]
    console = Console(width=120)
    for figure in plain.figures:
        table = Table("gateway", "median (min–max)", "against the passthrough", title=figure)
        for gateway in gateways:
            values = gateway.figures[figure]
            pairs = zip(values, plain.figures[figure], strict=True)
            low, high = min(values), max(values)
            table.add_row(
                gateway.name,
                f"{statistics.median(values):.2f} ({low:.2f}–{high:.2f})",
                "" if gateway is plain else f"{statistics.median(a / b for a, b in pairs):.2f}×",
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--litellm", default=shutil.which("litellm") or "")
    parser.add_argument("--only", choices=["local", "ray"], default=None)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(vendor())
        gateways = [stack.enter_context(passthrough(url, folder))]
        if given.only != "ray":
            gateways.append(stack.enter_context(ours_local(url, folder)))
        if given.only != "local":
            gateways.append(stack.enter_context(ours_on_ray(url, folder)))
        if given.litellm:
            gateways.append(stack.enter_context(litellm(given.litellm, url, folder)))
        else:
            print("no LiteLLM here (--litellm): its rows are missing")
        bare = asyncio.run(measure(gateways, given.rounds))
        show(gateways)
        if bare:
            lone = next(g for g in gateways if g.name == ON_RAY).figures["one in flight: p50 ms"]
            added = statistics.median(a - b for a, b in zip(lone, bare, strict=True))
            print(
                f"one in flight on Ray: a bare actor call {statistics.median(bare):.2f} ms, the "
                f"server adds {added:.2f} ms (goal: at most 4)"
            )


if __name__ == "__main__":
    main()
