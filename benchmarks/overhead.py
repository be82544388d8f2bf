"""What the runtime adds to a bare Ray actor: calls and streams of the echo backend.

Every figure comes from alternating rounds in one run, each round beside the bare reference:

    python benchmarks/overhead.py [--rounds 7] [--address auto|local|HOST:PORT]

References: `ray.get(actor.method.remote())` for a lone call, `await actor.method.remote()` for
many in flight, a streaming generator per request for streams.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

import byzerllm
from byzerllm.plugins import get_plugins

MODEL = "bench-echo"
TEXT = "hello " * 20


@ray.remote(num_cpus=0, max_concurrency=1000)
class Bare:
    """The least that an actor can do."""

    async def call(self, request: dict[str, str]) -> dict[str, str]:
        return {"output": request["instruction"]}

    async def stream(self, count: int, pace: float) -> AsyncIterator[float]:
        start = time.perf_counter()
        for index in range(count):
            await asyncio.sleep(max(0.0, start + (index + 1) * pace - time.perf_counter()))
            yield time.time()

    async def cpu(self) -> float:
        return sum(os.times()[:2])


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


class Bench:
    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.llm = byzerllm.ByzerLLM().setup_cpus_per_worker(0.01).setup_infer_backend("echo")
        self.llm.setup_default_model_name(MODEL)
        self.bare = Bare.remote()
        self.console = Console()

    def deploy(self, **params: Any) -> None:
        self.llm.deploy(udf_name=MODEL, infer_params=params, replace=True)

    def cpu(self) -> float:
        """CPU seconds of this process, the bare actor and the worker."""
        import psutil

        pid = self.llm.stat(MODEL)[0]["workers"][0]["pid"]
        worker = psutil.Process(pid).cpu_times()
        return sum(os.times()[:2]) + ray.get(self.bare.cpu.remote()) + worker.user + worker.system

    def lone_call(self) -> list[tuple[str, str, str]]:
        """p50 of one call after the other."""
        request = {"instruction": TEXT}

        def bare() -> None:
            ray.get(self.bare.call.remote(request))

        def ours() -> None:
            self.llm.chat_oai(TEXT)

        medians: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(self.rounds):
            for name, call in (("bare", bare), ("ours", ours)):
                times = []
                for _ in range(200):
                    start = time.perf_counter()
                    call()
                    times.append((time.perf_counter() - start) * 1e3)
                medians[name].append(statistics.median(times))
        ratios = [b / a for a, b in zip(medians["bare"], medians["ours"], strict=True)]
        return [
            ("bare actor call, p50 ms", spread(medians["bare"]), ""),
            ("chat_oai, p50 ms", spread(medians["ours"]), f"{spread(ratios)}×, goal ≤ 1.5×"),
        ]

    async def in_flight(self, count: int, calls: int) -> list[tuple[str, str, str]]:
        request = {"instruction": TEXT}

        async def bare() -> None:
            await self.bare.call.remote(request)

        async def ours() -> None:
            await self.llm.async_chat_oai(TEXT)

        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        costs: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(self.rounds):
            for name, call in (("bare", bare), ("ours", ours)):
                before = await asyncio.to_thread(self.cpu)
                rate = await self._load(call, count, calls)
                used = await asyncio.to_thread(self.cpu) - before
                rates[name].append(rate)
                costs[name].append(used / calls * 1e3)
        speedup = [b / a for a, b in zip(rates["bare"], rates["ours"], strict=True)]
        saved = [b / a for a, b in zip(costs["bare"], costs["ours"], strict=True)]
        goal = {64: "goal ≥ 5×", 8: "goal ≥ 1.2×"}.get(count, "")
        cpu_goal = ", goal ≤ 0.2×" if count == 64 else ""
        return [
            (f"bare, {count} in flight, calls/s", spread(rates["bare"]), ""),
            (f"async_chat_oai, {count} in flight, calls/s", spread(rates["ours"]),
             f"{spread(speedup)}×, {goal}"),
            (f"bare, {count} in flight, CPU ms/call", spread(costs["bare"]), ""),
            (f"async_chat_oai, {count} in flight, CPU ms/call", spread(costs["ours"]),
             f"{spread(saved)}×{cpu_goal}"),
        ]  # fmt: skip

    async def _load(self, call: Callable[[], Awaitable[None]], count: int, calls: int) -> float:
        async def caller() -> None:
            for _ in range(calls // count):
                await call()

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(count)))
        return calls / (time.perf_counter() - start)

    async def paced_stream(self, pace: float, count: int) -> list[tuple[str, str, str]]:
        """One stream: delay of each chunk since it was made, and the first chunk's time."""
        delays: dict[str, list[float]] = {"bare": [], "ours": []}
        firsts: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(self.rounds):
            for name in ("bare", "ours"):
                seen = await (self._bare_stream if name == "bare" else self._stream)(count, pace)
                firsts[name].append((seen[0][0] - pace) * 1e3)
                delays[name] += [delay * 1e3 for _, delay in seen]
        ms = f"{pace * 1e3:g} ms"
        extra = statistics.median(firsts["ours"]) - statistics.median(firsts["bare"])
        return [
            (f"stream at {ms}, generator: delay p50/p95 ms",
             f"{percentile(delays['bare'], .5):.1f} / {percentile(delays['bare'], .95):.1f}", ""),
            (f"stream at {ms}, ours: delay p50/p95 ms",
             f"{percentile(delays['ours'], .5):.1f} / {percentile(delays['ours'], .95):.1f}",
             "goal p95 ≤ 8 ms"),
            (f"stream at {ms}: first chunk ms, generator", spread(firsts["bare"]), ""),
            (f"stream at {ms}: first chunk ms, ours", spread(firsts["ours"]),
             f"{extra:+.1f} ms, goal ≤ +3 ms"),
        ]  # fmt: skip

    async def _bare_stream(self, count: int, pace: float) -> list[tuple[float, float]]:
        """(seconds since the request, delay since the chunk was made) of each chunk."""
        start = time.time()
        seen = []
        async for ref in self.bare.stream.options(num_returns="streaming").remote(count, pace):
            made = await ref
            seen.append((time.time() - start, time.time() - made))
        return seen

    async def _stream(self, count: int, pace: float) -> list[tuple[float, float]]:
        start = time.time()
        seen = []
        async for item in self.llm.async_stream_chat_oai(
            TEXT, delta_mode=True, llm_config={"max_tokens": count}
        ):
            if item.text:
                seen.append((time.time() - start, time.time() - float(item.text)))
        return seen

    async def many_streams(
        self, streams: int, pace: float, count: int, rounds: int
    ) -> list[tuple[str, str, str]]:
        """Chunks/s of many streams at once, asked and delivered, and CPU per chunk."""
        asked = streams / pace
        rows: dict[str, list[tuple[float, float, float]]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            for name in ("bare", "ours"):
                one = self._bare_stream if name == "bare" else self._stream
                before = await asyncio.to_thread(self.cpu)
                start = time.perf_counter()
                seen = await asyncio.gather(*(one(count, pace) for _ in range(streams)))
                seconds = time.perf_counter() - start
                used = await asyncio.to_thread(self.cpu) - before
                chunks = sum(len(times) for times in seen)
                late = [delay for times in seen for _, delay in times]
                rows[name].append(
                    (chunks / seconds, used / chunks * 1e6, percentile(late, 0.95) * 1e3)
                )
        title = f"{streams} streams at {pace * 1e3:g} ms ({asked:.0f} chunks/s asked)"
        return [
            (f"{title}, generators: chunks/s", spread([r[0] for r in rows["bare"]]), ""),
            (f"{title}, ours: chunks/s", spread([r[0] for r in rows["ours"]]),
             "goal ≥ 10,000" if asked > 12_000 else ""),
            ("… CPU µs/chunk, generators", spread([r[1] for r in rows["bare"]]), ""),
            ("… CPU µs/chunk, ours", spread([r[1] for r in rows["ours"]]), ""),
            ("… delay p95 ms, generators", spread([r[2] for r in rows["bare"]]), ""),
            ("… delay p95 ms, ours", spread([r[2] for r in rows["ours"]]), ""),
        ]  # fmt: skip

    def show(self, title: str, rows: list[tuple[str, str, str]]) -> None:
        table = Table("what", "median (min–max)", "against the reference", title=title)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    async def asynchronous(self, only: str | None) -> None:
        if only != "streams":
            for count, calls in ((8, 1600), (64, 6400)):
                self.show(f"{count} in flight", await self.in_flight(count, calls))
        if only == "calls":
            return
        for pace in (0.005, 0.02):
            await asyncio.to_thread(self.deploy, delay=pace, timestamps=True)
            self.show("one stream", await self.paced_stream(pace, int(1 / pace)))
            self.show("64 streams", await self.many_streams(64, pace, int(2 / pace), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--address", default="local")
    parser.add_argument("--only", choices=["calls", "streams"], default=None)
    given = parser.parse_args()
    options = {"num_cpus": 2} if given.address == "local" else {}
    byzerllm.connect_cluster(given.address, log_to_driver=False, **options)
    get_plugins()
    bench = Bench(given.rounds)
    bench.deploy()
    try:
        bench.show("one call at a time", bench.lone_call())
        asyncio.run(bench.asynchronous(given.only))
    finally:
        bench.llm.undeploy(MODEL, force=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
