"""Figures for Prometheus: what this server answered, and what the workers tell of themselves.

Names and meanings are in docs/monitoring.md. Several processes that share a port share a folder,
too: each keeps its figures in files of its own there, and whichever is asked adds them all up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from starlette.types import Scope

import byzerllm_server
from byzerllm.runtime import retries
from byzerllm_server.calls import CURRENT, Call
from byzerllm_server.gateway import Gateway

logger = logging.getLogger("byzerllm.server")
STAT_SECONDS = 2.0
"""A scrape waits so long for the workers' figures."""
STAT_EVERY_SECONDS = 1.0
"""The runtime is asked this often at most, however many scrape."""
UNKNOWN = "unknown"
"""The model of requests for what is not served: a caller's own words never become a label."""
NONE = "none"
"""The operation of requests that no route takes."""

# After the GenAI semantic conventions of OpenTelemetry, with more room for small local models at
# the one end and for long answers at the other. Seconds.
FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                       1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)  # fmt: skip
ANSWER_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12,
                  10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36)  # fmt: skip
# The server's own part is a millisecond, most of the time.
OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025,
                    0.05, 0.1, 0.25, 1.0)  # fmt: skip

M = TypeVar("M", bound=MetricWrapperBase)
_Mode = Literal["livesum", "livemax"]


class Metrics:
    """Counts requests, and writes all figures down when they are asked for.

    An `Observer`. Create it on the running event loop.

    Args:
        gateway: what the workers are asked through.
        folder: shared by all processes of one server; empty for a server of one process.
        own_workers: the workers are in this process, so that the others know nothing of them.
    """

    def __init__(self, gateway: Gateway, *, folder: str = "", own_workers: bool = False) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._workers = Workers(gateway, Path(folder) if folder and own_workers else None)
        self._folder = folder
        self._known: set[str] = set()
        if folder:
            _keep_in(folder)
            MultiProcessCollector(self._registry, folder)  # type: ignore[no-untyped-call]
        self._define(None if folder else self._registry)
        self._registry.register(self._workers)
        self._unlisten = retries.listen(self._retried)
        self._workers.look()

    def _define(self, registry: CollectorRegistry | None) -> None:
        def counter(name: str, text: str, *labels: str) -> _By[Counter]:
            return _By(Counter(f"byzerllm_{name}", text, labels, registry=registry))

        def gauge(name: str, text: str, mode: _Mode, *labels: str) -> _By[Gauge]:
            made = Gauge(
                f"byzerllm_{name}", text, labels, registry=registry, multiprocess_mode=mode
            )
            return _By(made)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> _By[Histogram]:
            labels = ("operation", "model")
            made = Histogram(f"byzerllm_{name}", text, labels, registry=registry, buckets=buckets)
            return _By(made)

        self._requests = counter(
            "requests_total", "Requests that ended", "operation", "model", "status"
        )
        self._errors = counter(
            "errors_total", "Requests that failed, by the error", "operation", "model", "error"
        )
        self._in_flight = gauge(
            "requests_in_flight", "Requests that are being answered", "livesum", "operation"
        )
        self._prompt_tokens = counter(
            "prompt_tokens_total", "Tokens that models read", "operation", "model"
        )
        self._completion_tokens = counter(
            "completion_tokens_total", "Tokens that models wrote", "operation", "model"
        )
        self._fallbacks = counter(
            "fallbacks_total", "Requests that another model took over", "model", "from"
        )
        self._retries = counter(
            "retries_total", "Times that a request was sent again", "model", "reason"
        )
        self._seconds = histogram(
            "request_seconds", "From a request's head to its answer's end", ANSWER_BUCKETS
        )
        self._first = histogram(
            "time_to_first_token_seconds",
            "From a request's head to a stream's first token",
            FIRST_TOKEN_BUCKETS,
        )
        self._per_token = histogram(
            "time_per_output_token_seconds", "Between two tokens of an answer", TOKEN_BUCKETS
        )
        self._model_seconds = histogram(
            "model_seconds", "What the worker took, its queue included", ANSWER_BUCKETS
        )
        self._overhead = histogram(
            "gateway_overhead_seconds",
            "What the server took for itself: all but the body's way and the worker",
            OVERHEAD_BUCKETS,
        )
        build = gauge("build_info", "1; the label has the version", "livemax", "version")
        build[byzerllm_server.__version__,].set(1)

    # What requests do.

    def began(self, call: Call) -> None:
        """Nothing is known yet."""

    def entered(self, call: Call) -> None:
        """Its operation is known."""
        self._in_flight[call.operation,].inc()

    def ended(self, call: Call, scope: Scope, status: int, seconds: float) -> None:
        operation = call.operation or NONE
        model = self._label(call)
        labels = operation, model
        if call.operation:
            self._in_flight[operation,].dec()
        self._requests[operation, model, str(status)].inc()
        self._seconds[labels].observe(seconds)
        if call.error:
            self._errors[operation, model, call.error].inc()
        if not call.sent:
            return
        first = call.first_seconds()
        if first is not None:
            self._first[labels].observe(first)
        waited, tokens = call.decoding
        if tokens:
            self._per_token[labels].observe(waited / tokens)
        if call.model_seconds:
            self._model_seconds[labels].observe(call.model_seconds)
            # What a failed try took is neither the model's nor ours.
            if not (call.retries or call.fallbacks or call.error):
                self._overhead[labels].observe(call.own_seconds(seconds))
        if call.usage is not None:
            self._prompt_tokens[labels].inc(call.usage.prompt_tokens)
            self._completion_tokens[labels].inc(call.usage.completion_tokens)
        for failed, asked in call.stood_in:
            self._fallbacks[asked, failed].inc()

    def _label(self, call: Call) -> str:
        model = call.model
        if model in self._known:
            return model
        if not model:
            return UNKNOWN if call.asked else ""
        if call.first or model in self._workers.models:
            self._known.add(model)
            return model
        if call.error != "ModelNotFoundError":
            self._workers.look()
        return UNKNOWN

    def _retried(self, model: str, reason: retries.Reason) -> None:
        self._retries[model, reason].inc()
        call = CURRENT.get(None)
        if call is not None:
            call.retries += 1

    # What is asked.

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """All figures, and their media type: Prometheus' own format, or OpenMetrics where the
        header `accept` asks for it."""
        await self._workers.ask()
        encode, media = choose_encoder(accept)
        if self._folder:
            await asyncio.to_thread(_forget_the_dead, Path(self._folder))
        return await asyncio.to_thread(encode, self._registry), media

    async def close(self) -> None:
        """Stop listening and asking."""
        self._unlisten()
        await self._workers.close()


class _By(dict[tuple[str, ...], M]):
    """A metric's figures by the values of its labels."""

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        figure = self[labels] = self._metric.labels(*labels)
        return figure


class Workers(Collector):
    """What the workers tell of themselves, through `ByzerLLM.stat`.

    Attributes:
        models: the deployments that were seen.

    Args:
        folder: where the processes of one server tell each other of their workers; None where
            every process sees the same ones.
    """

    def __init__(self, gateway: Gateway, folder: Path | None) -> None:
        self.models: set[str] = set()
        self._gateway = gateway
        self._folder = folder
        self._rows: list[dict[str, Any]] = []
        self._reachable = False
        self._asked = -STAT_EVERY_SECONDS
        self._asking: asyncio.Task[None] | None = None
        self._telling = asyncio.create_task(self._tell(folder)) if folder is not None else None

    def look(self) -> None:
        """Ask, unless it was done just now, and do not wait."""
        asking = self._asking
        if asking is not None and not asking.done():
            return
        if time.monotonic() - self._asked >= STAT_EVERY_SECONDS:
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._ask())

    async def ask(self) -> None:
        """Have figures that are a second old at most, or what is known after a while."""
        self.look()
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=STAT_SECONDS)
            self._reachable = self._reachable and self._asking.done()

    async def _ask(self) -> None:
        try:
            self._rows = await asyncio.to_thread(self._gateway.client.stat)
            self._reachable = True
        except Exception as error:
            if self._reachable:
                logger.warning("the workers' figures cannot be had: %s", error)
            self._rows, self._reachable = [], False
        self.models.update(row["model"] for row in self._rows)

    async def _tell(self, folder: Path) -> None:
        """Tell the other processes of the workers of this one, as long as it lives."""
        while True:
            await self.ask()
            await asyncio.to_thread(_write_rows, folder, self._rows)
            await asyncio.sleep(STAT_EVERY_SECONDS)

    async def close(self) -> None:
        tasks = {task for task in (self._telling, self._asking) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STAT_SECONDS)

    def collect(self) -> Iterator[Any]:
        """For Prometheus' client; called in a thread."""
        rows = self._rows if self._folder is None else _read_rows(self._folder, self._rows)
        figures = _Figures()
        for row in rows:
            figures.add(row)
        yield GaugeMetricFamily(
            "byzerllm_workers_reachable",
            "1 when the workers' figures could be had, else 0",
            value=float(self._reachable),
        )
        yield from figures.families


class _Figures:
    """The families of the workers' figures."""

    def __init__(self) -> None:
        labels = ("model", "worker")

        def gauge(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"byzerllm_worker_{name}", text, labels=labels)

        def counter(name: str, text: str, *more: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"byzerllm_worker_{name}", text, labels=(*labels, *more))

        self._sizes = GaugeMetricFamily(
            "byzerllm_model_workers", "Workers of a model", labels=("model", "state")
        )
        self._up = gauge("up", "1 when the worker takes requests, else 0")
        self._requests = counter("requests", "Requests that the worker was given", "outcome")
        self._by_key: list[tuple[str, GaugeMetricFamily | CounterMetricFamily]] = [
            ("running", gauge("running", "Requests that the worker is at")),
            ("queued", gauge("waiting", "Requests that wait in the worker for their turn")),
            ("concurrency", gauge("concurrency", "Requests that the worker takes at once")),
            ("ttft_p50", gauge("ttft_p50_seconds", "Median of the last 200 first tokens")),
            ("rss", gauge("memory_bytes", "Memory of the worker's process")),
            ("cooling", gauge("cooling_seconds", "Until a failing vendor is asked again; 0: well")),
            ("cooldowns", counter("cooldowns", "Times that a failing vendor was left alone")),
            ("prompt_tokens", counter("prompt_tokens", "Tokens that the worker read")),
            ("generated_tokens", counter("completion_tokens", "Tokens that the worker wrote")),
        ]

    @property
    def families(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        return [self._sizes, self._up, self._requests, *(family for _, family in self._by_key)]

    def add(self, row: Mapping[str, Any]) -> None:
        model, workers = str(row["model"]), row["workers"]
        ready = sum(worker["state"] == "ready" for worker in workers)
        self._sizes.add_metric((model, "wanted"), row["num_workers"])
        self._sizes.add_metric((model, "ready"), ready)
        for worker in workers:
            labels = model, str(worker["id"])
            self._up.add_metric(labels, float(worker["state"] == "ready"))
            for outcome in ("done", "failed", "refused"):
                self._requests.add_metric((*labels, outcome), worker[outcome])
            for key, family in self._by_key:
                # A worker of an older version may not have all of them.
                if worker.get(key) is not None:
                    family.add_metric(labels, worker[key])


def _keep_in(folder: str) -> None:
    """From now on this process keeps its figures in files of this folder. Prometheus' client takes
    it from the environment, and has decided when it was imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


_GAUGES = re.compile(r"gauge_live\w+_(\d+)\.db")
_ROWS = re.compile(r"workers_(\d+)\.json")


def _forget_the_dead(folder: Path) -> None:
    """What processes counted outlives them; what they had in hand and their workers do not."""
    rows = {int(found[1]): folder / found[0] for found in _matches(folder, _ROWS)}
    gauges = {int(found[1]) for found in _matches(folder, _GAUGES)}
    for pid in gauges | rows.keys():
        if _lives(pid):
            continue
        mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        if pid in rows:
            rows[pid].unlink(missing_ok=True)


def _matches(folder: Path, pattern: re.Pattern[str]) -> Iterable[re.Match[str]]:
    for path in folder.iterdir():
        found = pattern.fullmatch(path.name)
        if found:
            yield found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    with contextlib.suppress(OSError):
        path = folder / f"workers_{os.getpid()}.new"
        path.write_bytes(msgspec.json.encode(rows))
        path.replace(path.with_suffix(".json"))


def _read_rows(folder: Path, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The workers of all processes, each with its process in its name."""
    by_pid = {os.getpid(): own}
    for found in _matches(folder, _ROWS):
        pid = int(found[1])
        if pid in by_pid:
            continue
        with contextlib.suppress(OSError, msgspec.DecodeError):
            by_pid[pid] = msgspec.json.decode((folder / found[0]).read_bytes())
    merged: dict[str, dict[str, Any]] = {}
    for pid, rows in sorted(by_pid.items()):
        for row in rows:
            workers = [{**worker, "id": f"{pid}-{worker['id']}"} for worker in row["workers"]]
            into = merged.setdefault(row["model"], {**row, "num_workers": 0, "workers": []})
            into["num_workers"] += row["num_workers"]
            into["workers"] += workers
    return list(merged.values())
