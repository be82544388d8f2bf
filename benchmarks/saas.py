"""What a hosted model costs on our side of the wire, beside a plain asyncio client.

A fast server that answers at once plays the vendor in a process of its own. In alternating rounds
of one run, the same work is done by a plain client (aiohttp and msgspec, nothing else), by
`runtime="local"`, and through a Ray worker; CPU is that of all our processes:

    python benchmarks/saas.py [--rounds 5] [--only local|ray] [--address local|HOST:PORT]

References through Ray: the plain client plus a bare actor call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import psutil
from peers.fast_vendor import WORDS, vendor
from rich.console import Console
from rich.table import Table

import byzerllm

MODEL = "bench-saas"
QUESTION = "Say something about the sea. " * 4
PACE = 0.005
LOCAL_GOAL, FLIGHT_GOAL, FLIGHT_EXTRA_MS, LONE_GOAL = 2.5, 2.5, 0.4, 1.3

Row = tuple[str, str, str]


# The two sides.


class Plain:
    """The least that a Python client does: bytes to JSON to text."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/chat/completions"
        self._headers = {"authorization": "Bearer k", "content-type": "application/json"}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
        )

    async def close(self) -> None:
        assert self._session is not None
        await self._session.close()

    def _post(self, **more: Any) -> Any:
        assert self._session is not None
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": QUESTION}], **more}
        data = msgspec.json.encode(body)
        return self._session.post(self._url, data=data, headers=self._headers)

    async def ask(self) -> str:
        async with self._post() as response:
            found = msgspec.json.decode(await response.read())
        text: str = found["choices"][0]["message"]["content"]
        return text

    async def stream(self, pace: float = 0) -> AsyncIterator[str]:
        async with self._post(stream=True, user=str(pace)) as response:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                found = msgspec.json.decode(line[6:])
                if found["choices"]:
                    yield found["choices"][0]["delta"].get("content", "")


class Ours:
    """A deployment of `saas/openai`, on Ray or in this process."""

    def __init__(self, url: str, runtime: str) -> None:
        self.llm = byzerllm.ByzerLLM(runtime=runtime).setup_cpus_per_worker(0.001)
        self.llm.setup_default_model_name(MODEL).setup_worker_concurrency(100)
        params = {
            "saas.api_key": "key-0123456789",
            "saas.base_url": url,
            "saas.model": "gpt-4o",
        }
        self.llm.deploy(
            pretrained_model_type="saas/openai", udf_name=MODEL, infer_params=params, check=False
        )
        self.pid = self.llm.stat(MODEL)[0]["workers"][0]["pid"]

    async def ask(self) -> str:
        (answer,) = await self.llm.async_chat_oai(QUESTION)
        text: str = answer.output
        return text

    def ask_sync(self) -> str:
        text: str = self.llm.chat_oai(QUESTION)[0].output
        return text

    async def stream(self, pace: float = 0) -> AsyncIterator[str]:
        extra = {"user": str(pace)}
        async for text, _ in self.llm.async_stream_chat_oai(
            QUESTION, delta_mode=True, extra_request_params=extra
        ):
            yield text

    def close(self) -> None:
        self.llm.undeploy(MODEL, force=True)


def spread(values: list[float], digits: int = 2) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def ratio(ours: list[float], reference: list[float]) -> float:
    """The median of the rounds' ratios; both values of a round are of the same moment."""
    return statistics.median(a / b for a, b in zip(ours, reference, strict=True))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Bench:
    def __init__(self, url: str, rounds: int, ray_too: bool) -> None:
        self.rounds = rounds
        self.plain = Plain(url)
        self.ours = Ours(url, "ray" if ray_too else "local")
        self.name = "ray" if ray_too else "local"
        self.console = Console()
        self._worker = psutil.Process(self.ours.pid) if self.ours.pid != os.getpid() else None

    def cpu(self) -> float:
        """CPU seconds of this process and of the worker."""
        used = sum(os.times()[:2])
        if self._worker is not None:
            times = self._worker.cpu_times()
            used += times.user + times.system
        return used

    async def lone(self, bare: Callable[[], Any] | None) -> list[Row]:
        """One request after the other: p50 and CPU."""
        times: dict[str, list[float]] = {}
        costs: dict[str, list[float]] = {}

        async def in_thread(call: Callable[[], Any]) -> None:
            await asyncio.to_thread(self._repeat, call, 200)

        async def one_by_one() -> None:
            for _ in range(200):
                await self._timed(self.plain.ask)

        for _ in range(self.rounds):
            for name, work in (
                ("plain", one_by_one()),
                ("bare", in_thread(bare) if bare else None),
                ("ours", in_thread(self.ours.ask_sync)),
            ):
                if work is None:
                    continue
                self._seconds: list[float] = []
                before = self.cpu()
                await work
                costs.setdefault(name, []).append((self.cpu() - before) / 200 * 1e3)
                times.setdefault(name, []).append(statistics.median(self._seconds) * 1e3)
        rows = [("plain client, p50 ms", spread(times["plain"]), "")]
        if bare:
            reference = [a + b for a, b in zip(times["plain"], times["bare"], strict=True)]
            rows.append(("bare actor call, p50 ms", spread(times["bare"]), ""))
            of = f"{ratio(times['ours'], reference):.2f}× of both, goal ≤ {LONE_GOAL}×"
        else:
            of = f"{ratio(times['ours'], times['plain']):.2f}×"
        rows.append(("chat_oai, p50 ms", spread(times["ours"]), of))
        rows.append(("plain client, CPU ms", spread(costs["plain"]), ""))
        goal = "" if bare else f", goal ≤ {LOCAL_GOAL}×"
        of = f"{ratio(costs['ours'], costs['plain']):.2f}×{goal}"
        rows.append(("chat_oai, CPU ms", spread(costs["ours"]), of))
        return rows

    def _repeat(self, call: Callable[[], Any], count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            call()
            self._seconds.append(time.perf_counter() - start)

    async def _timed(self, call: Callable[[], Awaitable[Any]]) -> None:
        start = time.perf_counter()
        await call()
        self._seconds.append(time.perf_counter() - start)

    async def in_flight(self, count: int, calls: int) -> list[Row]:
        """Many at once: requests/s and CPU per request."""
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        costs: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(self.rounds):
            for name, call in (("plain", self.plain.ask), ("ours", self.ours.ask)):
                before, start = self.cpu(), time.perf_counter()
                await self._load(call, count, calls)
                rates[name].append(calls / (time.perf_counter() - start))
                costs[name].append((self.cpu() - before) / calls * 1e3)
        if self.name == "ray":
            limit = [FLIGHT_GOAL * plain + FLIGHT_EXTRA_MS for plain in costs["plain"]]
            over = ratio(costs["ours"], limit)
            goal = (
                f"{ratio(costs['ours'], costs['plain']):.2f}×; {over:.2f} of the goal "
                f"({FLIGHT_GOAL}× + {FLIGHT_EXTRA_MS} ms)"
            )
        else:
            goal = f"{ratio(costs['ours'], costs['plain']):.2f}×, goal ≤ {LOCAL_GOAL}×"
        return [
            (f"{count} in flight, plain: requests/s", spread(rates["plain"], 0), ""),
            (f"{count} in flight, ours: requests/s", spread(rates["ours"], 0), ""),
            ("… CPU ms per request, plain", spread(costs["plain"]), ""),
            ("… CPU ms per request, ours", spread(costs["ours"]), goal),
        ]

    @staticmethod
    async def _load(call: Callable[[], Awaitable[Any]], count: int, calls: int) -> None:
        async def caller() -> None:
            for _ in range(calls // count):
                await call()

        await asyncio.gather(*(caller() for _ in range(count)))

    async def streams(self, count: int, each: int) -> list[Row]:
        """Streams that the vendor sends as fast as it can: CPU per stream of 64 chunks, and the
        first chunk's time."""
        costs: dict[str, list[float]] = {"plain": [], "ours": []}
        firsts: dict[str, list[float]] = {"plain": [], "ours": []}
        for _ in range(self.rounds):
            for name, stream in (("plain", self.plain.stream), ("ours", self.ours.stream)):
                seen: list[float] = []

                async def one(stream: Any = stream, seen: list[float] = seen) -> None:
                    start, text = time.perf_counter(), ""
                    async for piece in stream():
                        if piece and not text:
                            seen.append(time.perf_counter() - start)
                        text += piece
                    assert text == "".join(WORDS)

                before = self.cpu()
                await self._load(one, count, count * each)
                costs[name].append((self.cpu() - before) / (count * each) * 1e3)
                firsts[name].append(statistics.median(seen) * 1e3)
        goal = f", goal ≤ {LOCAL_GOAL}×" if self.name == "local" else ""
        of = f"{ratio(costs['ours'], costs['plain']):.2f}×{goal}"
        return [
            (f"{count} fast streams, plain: CPU ms each", spread(costs["plain"]), ""),
            (f"{count} fast streams, ours: CPU ms each", spread(costs["ours"]), of),
            ("… first chunk p50 ms, plain", spread(firsts["plain"]), ""),
            ("… first chunk p50 ms, ours", spread(firsts["ours"]), ""),
        ]

    async def paced(self, count: int) -> list[Row]:
        """Streams of a chunk each 5 ms: how late each chunk is against the vendor's pace."""
        late: dict[str, list[float]] = {"plain": [], "ours": []}
        costs: dict[str, list[float]] = {"plain": [], "ours": []}

        async def one(stream: Any, late: list[float]) -> None:
            # The vendor's clock is not known here: the earliest chunk counts as on time.
            since, words = [], 0
            async for piece in stream(PACE):
                words += piece.count("tok")
                since.append(time.perf_counter() - words * PACE)
            late += [(moment - min(since)) * 1e3 for moment in since]

        for _ in range(self.rounds):
            for name, stream in (("plain", self.plain.stream), ("ours", self.ours.stream)):
                before = self.cpu()
                await asyncio.gather(*(one(stream, late[name]) for _ in range(count)))
                costs[name].append((self.cpu() - before) / count * 1e3)

        def shown(name: str) -> str:
            values = late[name]
            return f"{percentile(values, 0.5):.1f} / {percentile(values, 0.99):.1f}"

        title = f"{count} streams at {PACE * 1e3:g} ms"
        of = f"{ratio(costs['ours'], costs['plain']):.2f}×"
        return [
            (f"{title}, plain: late p50 / p99 ms", shown("plain"), ""),
            (f"{title}, ours: late p50 / p99 ms", shown("ours"), "goal: on pace"),
            ("… CPU ms per stream, plain", spread(costs["plain"]), ""),
            ("… CPU ms per stream, ours", spread(costs["ours"]), of),
        ]

    def show(self, title: str, rows: list[Row]) -> None:
        table = Table("what", "median (min–max)", "against the reference", title=title)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    async def run(self, bare: Callable[[], Any] | None) -> None:
        await self.plain.open()
        try:
            for _ in range(20):
                await self.plain.ask()
                await self.ours.ask()
            self.show(f"{self.name}: one at a time", await self.lone(bare))
            self.show(f"{self.name}: at once", await self.in_flight(64, 3200))
            rows = await self.streams(1, 100)
            self.show(f"{self.name}: streams", rows + await self.streams(64, 4))
            self.show(f"{self.name}: paced streams", await self.paced(64))
        finally:
            await self.plain.close()


def bare_actor_call() -> Callable[[], Any]:
    """A call of an actor that does nothing."""
    import ray

    class Bare:
        async def call(self, request: dict[str, str]) -> dict[str, str]:
            return request

    actor = ray.remote(num_cpus=0, max_concurrency=100)(Bare).remote()
    return lambda: ray.get(actor.call.remote({"instruction": QUESTION}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--address", default="local")
    parser.add_argument("--only", choices=["local", "ray"], default=None)
    given = parser.parse_args()
    with vendor() as url:
        if given.only != "ray":
            bench = Bench(url, given.rounds, False)
            asyncio.run(bench.run(None))
            bench.ours.close()
        if given.only == "local":
            return
        options = {"num_cpus": 2} if given.address == "local" else {}
        byzerllm.connect_cluster(given.address, log_to_driver=False, **options)
        import ray

        bench = Bench(url, given.rounds, True)
        try:
            asyncio.run(bench.run(bare_actor_call()))
        finally:
            bench.ours.close()
            ray.shutdown()


if __name__ == "__main__":
    main()
