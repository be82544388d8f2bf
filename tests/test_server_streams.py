"""Many streams at once while workers are killed and callers leave.

`nox -s soak` (BYZERLLM_SOAK=1) keeps 300 streams of two chunks a second for five minutes, the tests
60 of them for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import byzerllm
from server_process import Serving, serving

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1500)]
SOAK = os.environ.get("BYZERLLM_SOAK") == "1"
STREAMS = 300 if SOAK else 60
SECONDS = 300.0 if SOAK else 15.0
KILL_EVERY = 20.0 if SOAK else 5.0
LEAVING = 0.1
"""The part of the callers that leave in the middle."""
CHUNKS = 20
RATE_SECONDS = 20.0 if SOAK else 4.0
RATE_STREAMS = 32
STEADY, FAST = "streams-steady", "streams-fast"
MOST_GROWTH = 20e6
"""Bytes that the server's memory may grow by, once every stream has begun."""


def deploy(model: str, workers: int, **params: Any) -> None:
    client = byzerllm.ByzerLLM().setup_num_workers(workers).setup_cpus_per_worker(0.1)
    client.setup_worker_concurrency(1000).setup_infer_backend("echo")
    client.deploy(udf_name=model, infer_params=params)


def workers_of(model: str) -> list[dict[str, Any]]:
    return list(byzerllm.ByzerLLM().stat(model)[0]["workers"])


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def served(cluster: Any) -> Iterator[Serving]:
    deploy(STEADY, 3, delay=0.5, chunks=CHUNKS)
    deploy(FAST, 2, chunks=64)
    with serving(cluster.address) as running:
        yield running
    for model in (STEADY, FAST):
        byzerllm.ByzerLLM().undeploy(model, force=True)


class Load:
    """Callers, each with one stream after the other."""

    def __init__(self, url: str, model: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": "a b c"}], "stream": True}
        )
        self._request = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._random = random.Random(7)
        self.ends: Counter[str] = Counter()
        self.odd: list[bytes] = []
        self.chunks = 0

    async def run(self, callers: int, seconds: float, leaving: float = 0.0) -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._caller(end, leaving) for _ in range(callers)))

    async def _caller(self, end: float, leaving: float) -> None:
        while time.monotonic() < end:
            leaves = self._random.random() < leaving
            outcome = await self._stream(self._random.uniform(0.1, 5) if leaves else None)
            self.ends[outcome] += 1

    async def _stream(self, leave_after: float | None) -> str:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            writer.write(self._request)
            async with asyncio.timeout(leave_after):
                return await self._read(reader)
        except TimeoutError:
            writer.transport.abort()
            return "left"
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> str:
        """How the stream ended; what came last counts."""
        tail = b""
        while data := await reader.read(65536):
            self.chunks += data.count(b'"delta":{"content"')
            tail = (tail + data)[-2000:]
        if b"data: [DONE]\n\n" in tail:
            return "done"
        if b'data: {"error":' in tail and tail.endswith(b"\r\n0\r\n\r\n"):
            return "told"
        if tail.startswith(b"HTTP/1.1 503 "):
            return "refused"
        self.odd.append(tail)
        return "odd"


async def kill_workers(model: str, every: float, until: float) -> int:
    killed = 0
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        for worker in (await asyncio.to_thread(workers_of, model))[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker["pid"], signal.SIGKILL)
                killed += 1
    return killed


class Memory:
    """A process's resident bytes: the first once `after` seconds have passed, and the last."""

    def __init__(self, process: psutil.Process, after: float) -> None:
        self._process = process
        self._after = after
        self.first = self.last = 0

    async def watch(self) -> None:
        await asyncio.sleep(self._after)
        self.first = self._process.memory_info().rss
        while True:
            self.last = self._process.memory_info().rss
            await asyncio.sleep(0.5)


async def soak(served: Serving) -> tuple[Load, Memory, int]:
    load = Load(served.url, STEADY)
    memory = Memory(psutil.Process(served.process.pid), SECONDS / 3)
    watching = asyncio.create_task(memory.watch())
    killing = asyncio.create_task(kill_workers(STEADY, KILL_EVERY, time.monotonic() + SECONDS))
    await load.run(STREAMS, SECONDS, LEAVING)
    killed = await killing
    watching.cancel()
    return load, memory, killed


def test_streams_while_workers_die_and_callers_leave(served: Serving) -> None:
    load, memory, killed = asyncio.run(soak(served))
    growth = memory.last - memory.first
    print(f"\n{dict(load.ends)}, {killed} workers killed, {load.chunks} chunks, ", end="")
    print(f"memory {memory.first / 1e6:.0f} MB, {growth / 1e6:+.1f} MB later")
    assert killed
    # A stream that was cut before its first chunk went to another worker; all others were told.
    assert set(load.ends) <= {"done", "told", "left", "refused"}, load.odd[:3]
    assert load.ends["done"] > STREAMS / 2
    assert load.ends["told"]
    assert load.ends["left"]
    assert growth < MOST_GROWTH
    until(lambda: all(worker["running"] == 0 for worker in workers_of(STEADY)), 10)
    process = psutil.Process(served.process.pid)
    port = int(served.url.rsplit(":", 1)[1])

    def open_to_callers() -> list[Any]:
        return [
            connection
            for connection in process.net_connections("tcp")
            if connection.laddr.port == port and connection.status != psutil.CONN_LISTEN
        ]

    until(lambda: not open_to_callers(), 10)
    assert "Traceback" not in served.output


def test_the_highest_chunk_rate(served: Serving) -> None:
    load = Load(served.url, FAST)
    process = psutil.Process(served.process.pid)
    before = process.cpu_times()
    start = time.monotonic()
    asyncio.run(load.run(RATE_STREAMS, RATE_SECONDS))
    seconds = time.monotonic() - start
    after = process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    print(
        f"\n{load.chunks / seconds:,.0f} chunks/s over {RATE_STREAMS} streams; the server took "
        f"{1e6 * cpu / load.chunks:.0f} µs CPU for each"
    )
    assert set(load.ends) == {"done"}, load.odd[:3]


def test_nothing_ran_on(served: Serving) -> None:
    """A task that was left over would hold the stop up, and be named as cut off."""
    start = time.monotonic()
    assert served.stop() == 0
    assert time.monotonic() - start < 10
    assert "cut off" not in served.output
