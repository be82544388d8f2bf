"""`/metrics`, as Prometheus sees it, and what is written about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families

from byzerllm_server.catalog import Catalog
from byzerllm_server.gateway import Gateway
from byzerllm_server.metrics import Metrics
from vendors.openai import OpenAIVendor
from vendors.server import Refuse

DOCS = Path(__file__).parents[3] / "docs"
CHAT = "/v1/chat/completions"
WAIT_SECONDS = 10
MODELS = """
version: 1
models:
  echo:
    infer_backend: echo
  paced:
    infer_backend: echo
    infer_params: {delay: 0.02, chunks: 10}
  single:
    infer_backend: echo
    infer_params: {delay: 0.05, chunks: 10}
    worker_concurrency: 1
  narrow:
    infer_backend: echo
    infer_params: {delay: 0.05, chunks: 2000}
    worker_concurrency: 1
    max_queue: 0
    fallbacks: [echo]
  slow:
    infer_backend: echo
    infer_params: {delay: 0.05, chunks: 2000}
  broken:
    infer_backend: echo
    infer_params: {fail_at: 3, chunks: 10}
"""


def ask(model: str, text: str = "hello my world", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@dataclass(frozen=True)
class Figures:
    """One answer of `/metrics`."""

    text: str

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(value for found, value in self.samples(name) if labels.items() <= found.items())

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == f"byzerllm_{name}"
        ]

    @property
    def names(self) -> set[str]:
        return {family.name for family in text_string_to_metric_families(self.text)}


def look(client: httpx.Client) -> Figures:
    response = client.get("/metrics")
    assert response.status_code == 200
    return Figures(response.text)


def until(client: httpx.Client, good: Callable[[Figures], bool]) -> Figures:
    """What is measured once it is `good`."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        figures = look(client)
        if good(figures):
            return figures
        assert time.monotonic() < end, figures.text
        time.sleep(0.05)


@pytest.fixture(scope="module")
def url(serving: Callable[..., Any]) -> str:
    return str(serving(config=MODELS).url)


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client


@contextlib.contextmanager
def asked_meanwhile(url: str, body: dict[str, Any]) -> Iterator[threading.Event]:
    """A stream that is read in a thread until the event is set; then its caller leaves."""
    enough = threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=30) as response,
        ):
            for _ in response.iter_text():
                if enough.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield enough
    finally:
        enough.set()
        reader.join(WAIT_SECONDS)


def test_figures_are_those_of_what_was_sent(client: httpx.Client) -> None:
    before = look(client)
    for _ in range(5):
        assert client.post(CHAT, json=ask("echo")).status_code == 200
    for _ in range(3):
        text = client.post(CHAT, json=ask("echo", "one two", stream=True)).text
        assert "[DONE]" in text
    assert (
        client.post("/v1/embeddings", json={"model": "echo", "input": ["a", "b"]}).status_code
        == 200
    )
    after = look(client)

    def more(name: str, **labels: str) -> float:
        return after.of(name, model="echo", **labels) - before.of(name, model="echo", **labels)

    assert more("requests_total", operation="chat", status="200") == 8
    assert more("requests_total", operation="embeddings", status="200") == 1
    assert more("prompt_tokens_total", operation="chat") == 5 * 3 + 3 * 2
    assert more("completion_tokens_total", operation="chat") == 5 * 3 + 3 * 2
    assert more("prompt_tokens_total", operation="embeddings") == 2
    assert more("request_seconds_count", operation="chat") == 8
    assert more("time_to_first_token_seconds_count") == 3
    assert more("model_seconds_count") == 9
    assert more("gateway_overhead_seconds_count") == 9
    assert more("errors_total") == 0
    assert more("requests_total", operation="metrics") == 0
    assert after.of("requests_total", operation="metrics", status="200") >= 1


def test_workers_tell_of_themselves(client: httpx.Client) -> None:
    before = look(client)
    done = {"model": "paced", "worker": "local-0", "outcome": "done"}
    labels = {"model": "paced", "worker": "local-0"}
    client.post(CHAT, json=ask("paced"))
    after = until(client, lambda now: now.of("worker_requests_total", **done) > 0)
    assert after.of("worker_requests_total", **done) == (
        before.of("worker_requests_total", **done) + 1
    )
    assert after.of("worker_prompt_tokens_total", **labels) == 3
    assert after.of("worker_completion_tokens_total", **labels) == 10
    assert after.of("worker_up", **labels) == 1
    assert after.of("model_workers", model="paced", state="ready") == 1
    assert 0.02 <= after.of("worker_ttft_p50_seconds", **labels) < 0.5
    assert after.of("worker_memory_bytes", **labels) > 10_000_000
    assert after.of("workers_reachable") == 1


def test_times_of_a_stream(client: httpx.Client) -> None:
    before = look(client)
    assert "[DONE]" in client.post(CHAT, json=ask("paced", stream=True)).text
    after = look(client)

    def more(name: str) -> float:
        return after.of(name, model="paced") - before.of(name, model="paced")

    assert more("time_per_output_token_seconds_count") == 1
    # Ten chunks, one each 20 ms; a timer may be a little early, and on a busy machine very late.
    first = more("time_to_first_token_seconds_sum")
    between = more("time_per_output_token_seconds_sum")
    model = more("model_seconds_sum")
    assert first >= 0.018
    assert between >= 0.017
    assert model >= 0.19
    assert 9 * between <= model
    assert first + 9 * between <= more("request_seconds_sum")
    assert more("gateway_overhead_seconds_sum") > 0
    whole = more("request_seconds_sum")
    own = more("gateway_overhead_seconds_sum") + more("model_seconds_sum")
    # The rest is the way of the body.
    assert own <= whole + 1e-9


def test_waiting_for_a_worker_is_the_models_time(url: str, client: httpx.Client) -> None:
    before = look(client)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{url}{CHAT}", json=ask("single")), range(3)))
    assert {answer.status_code for answer in answers} == {200}
    after = look(client)

    def more(name: str) -> float:
        return after.of(name, model="single") - before.of(name, model="single")

    # Half a second each, one after the other: 0.5 + 1.0 + 1.5.
    assert more("model_seconds_sum") > 2.7
    assert more("gateway_overhead_seconds_sum") < 1.0


def test_what_is_under_way_and_what_waits(url: str, client: httpx.Client) -> None:
    labels = {"model": "single", "worker": "local-0"}
    body = ask("single", stream=True)
    with contextlib.ExitStack() as asking:
        for _ in range(5):
            asking.enter_context(asked_meanwhile(url, body))
        during = until(client, lambda now: now.of("worker_waiting", **labels) >= 2)
        assert during.of("worker_running", **labels) == 1
        assert during.of("requests_in_flight", operation="chat") >= 3
        assert during.of("requests_in_flight", operation="metrics") == 1
    until(client, lambda now: now.of("worker_running", **labels) == 0)
    assert look(client).of("requests_in_flight", operation="chat") == 0


def test_a_caller_that_leaves_is_counted(url: str, client: httpx.Client) -> None:
    before = look(client)
    left = {"operation": "chat", "model": "slow"}
    with asked_meanwhile(url, ask("slow", stream=True)) as enough:
        until(client, lambda now: now.of("worker_running", model="slow") == 1)
        enough.set()
    after = until(client, lambda now: now.of("worker_running", model="slow") == 0)
    for name, labels in (
        ("requests_total", {**left, "status": "499"}),
        ("errors_total", {**left, "error": "ClientDisconnect"}),
        ("time_to_first_token_seconds_count", left),
    ):
        assert after.of(name, **labels) == before.of(name, **labels) + 1
    assert after.of("gateway_overhead_seconds_count", model="slow") == 0


@pytest.mark.parametrize(
    ("body", "model", "status", "error"),
    [
        (ask("broken", stream=True), "broken", "200", "BackendError"),
        (ask("broken"), "broken", "500", "BackendError"),
        (ask("nobody"), "unknown", "404", "ModelNotFoundError"),
        (ask("echo", temperature="hot"), "", "400", "invalid_value"),
        (ask("echo", response_format={"type": "json_object"}), "echo", "400", "CapabilityError"),
    ],
)
def test_errors_by_class(
    client: httpx.Client, body: dict[str, Any], model: str, status: str, error: str
) -> None:
    before = look(client)
    client.post(CHAT, json=body)
    after = look(client)
    labels = {"operation": "chat", "model": model}
    counted = after.of("requests_total", status=status, **labels)
    assert counted == before.of("requests_total", status=status, **labels) + 1
    failed = after.of("errors_total", error=error, **labels)
    assert failed == before.of("errors_total", error=error, **labels) + 1


def test_words_of_callers_are_no_labels(client: httpx.Client) -> None:
    client.post(CHAT, json=ask("stranger"))
    client.get("/stranger")
    before = look(client)
    for number in range(30):
        client.post(CHAT, json=ask(f"stranger-{number}", stream=bool(number % 2)))
        client.post("/v1/embeddings", json={"model": f"stranger-{number}", "input": "x"})
        client.get(f"/stranger/{number}")
        client.put(f"{CHAT}?stranger={number}")
    after = look(client)
    assert "stranger" not in after.text.lower()
    assert after.of("requests_total", model="unknown", status="404") >= 60
    assert after.of("requests_total", operation="none", status="404") >= 30
    assert after.of("requests_total", operation="none", status="405") >= 30
    assert len(after.samples("requests_total")) <= len(before.samples("requests_total")) + 2


def test_a_model_that_stands_in(url: str, client: httpx.Client) -> None:
    with asked_meanwhile(url, ask("narrow", stream=True)):
        until(client, lambda now: now.of("worker_running", model="narrow") == 1)
        before = look(client)
        answer = client.post(CHAT, json=ask("narrow"))
        assert answer.json()["model"] == "echo"
        after = look(client)
    assert after.of("fallbacks_total", **{"model": "echo", "from": "narrow"}) == 1
    counted = {"operation": "chat", "model": "echo", "status": "200"}
    assert after.of("requests_total", **counted) == before.of("requests_total", **counted) + 1
    assert after.of("worker_requests_total", model="narrow", outcome="refused") >= 0
    overhead = {"operation": "chat", "model": "echo"}
    assert after.of("gateway_overhead_seconds_count", **overhead) == before.of(
        "gateway_overhead_seconds_count", **overhead
    )


def test_a_vendor_in_trouble(serving: Callable[..., Any]) -> None:
    with OpenAIVendor() as vendor:
        config = f"""
version: 1
models:
  hosted:
    pretrained_model_type: saas/openai
    infer_params:
      saas.api_key: {vendor.key}
      saas.base_url: {vendor.url}/v1
      saas.model: gpt-4o
"""
        served = serving(config=config)
        with httpx.Client(base_url=served.url, timeout=60) as client:
            vendor.faults(Refuse("rate_limited", retry_after="0"))
            assert client.post(CHAT, json=ask("hosted", "Count!")).status_code == 200
            once = look(client)
            assert once.of("retries_total", model="hosted", reason="vendor") == 1
            # Its time was not the server's own.
            assert once.of("gateway_overhead_seconds_count", model="hosted") == 0
            vendor.faults(*[Refuse("failed", retry_after="0")] * 8)
            for _ in range(2):
                assert client.post(CHAT, json=ask("hosted", "Count!")).status_code >= 500
            failed = until(client, lambda now: now.of("worker_cooldowns_total") == 1)
            assert failed.of("retries_total", model="hosted", reason="vendor") > 1
            assert failed.of("worker_cooling_seconds", model="hosted") > 0
            assert failed.of("errors_total", model="hosted") == 2
        assert vendor.key not in failed.text
        assert vendor.key not in served.output


def test_a_key_is_needed(serving: Callable[..., Any]) -> None:
    key = "key-of-the-house-123"
    served = serving("--api_key", key, config=MODELS)
    with httpx.Client(base_url=served.url) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"x-api-key": "key-of-nobody-456"}).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        figures = look(client)
        document = client.get("/openapi.json").json()
    assert figures.of("errors_total", operation="metrics", error="missing_api_key") == 1
    assert figures.of("errors_total", operation="metrics", error="invalid_api_key") == 1
    assert document["paths"]["/metrics"]["get"]["security"]
    for secret in (key, "key-of-nobody-456"):
        assert secret not in figures.text
        assert secret not in served.output


def test_open_metrics(serving: Callable[..., Any]) -> None:
    served = serving("--api_key", "key-of-the-house", "--open_metrics")
    with httpx.Client(base_url=served.url) as client:
        assert look(client).of("workers_reachable") == 1
        assert client.post(CHAT, json=ask("echo")).status_code == 401
        assert "security" not in client.get("/openapi.json").json()["paths"]["/metrics"]["get"]


def test_the_openmetrics_format(client: httpx.Client) -> None:
    client.post(CHAT, json=ask("echo"))
    accept = "application/openmetrics-text; version=1.0.0"
    response = client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name for family in open_families(response.text)}
    assert {"byzerllm_requests", "byzerllm_worker_running"} <= families


def test_processes_add_up(serving: Callable[..., Any]) -> None:
    served = serving("--workers", "2", config=MODELS)

    # Each request has a connection of its own, so that both processes get some.
    apart = httpx.Client(base_url=served.url, headers={"connection": "close"}, timeout=30)
    with apart as client:

        def once(number: int) -> int:
            return client.post(CHAT, json=ask("echo")).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(once, range(60))) == {200}
        # Whichever process answers.
        for _ in range(8):
            figures = look(client)
            assert figures.of("requests_total", operation="chat", status="200") == 60
            assert figures.of("request_seconds_count", operation="chat") == 60
            assert figures.of("completion_tokens_total", model="echo") == 180
        figures = until(
            client,
            lambda now: now.of("worker_requests_total", model="echo", outcome="done") == 60,
        )
        assert figures.of("model_workers", model="echo", state="ready") == 2
        workers = {labels["worker"] for labels, _ in figures.samples("worker_up")}
    assert len(workers) == 2
    pids = [int(worker.partition("-")[0]) for worker in workers]
    assert set(pids) <= {child.pid for child in psutil.Process(served.process.pid).children()}
    # What a process counted outlives it, what it had in hand does not.
    patient = httpx.Client(
        base_url=served.url,
        headers={"connection": "close"},
        transport=httpx.HTTPTransport(retries=3),
    )
    with asked_meanwhile(served.url, ask("slow", stream=True)), patient as client:
        until(client, lambda now: now.of("worker_running", model="slow") == 1)
        # Both figures are of one scrape: each is told by another process at its own moment.
        figures = until(
            client,
            lambda now: (
                now.of("requests_in_flight", operation="chat") == 1
                and now.of("worker_running", model="slow") == 1
            ),
        )
        (busy,) = [labels["worker"] for labels, value in figures.samples("worker_running") if value]
        os.kill(int(busy.partition("-")[0]), signal.SIGKILL)
        figures = until(client, lambda now: now.of("worker_running", model="slow") == 0)
    assert busy not in {labels["worker"] for labels, _ in figures.samples("worker_up")}
    assert figures.of("requests_total", operation="chat", status="200") == 60
    assert figures.of("requests_in_flight", operation="chat") == 0
    assert figures.of("requests_in_flight", operation="metrics") == 1


class Runtime:
    """A client whose figures come late, or not at all."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = threading.Event()
        self.error: Exception | None = None

    def stat(self) -> list[dict[str, Any]]:
        self.asked += 1
        self.gate.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return []


def test_workers_that_do_not_answer_fail_no_scrape() -> None:
    async def run() -> None:
        runtime = Runtime()
        gateway = Gateway(runtime, Catalog({}), timeout=1)  # type: ignore[arg-type]
        metrics = Metrics(gateway)
        try:
            start = time.monotonic()
            texts = await asyncio.gather(*(metrics.exposition("") for _ in range(3)))
            assert time.monotonic() - start < 4
            # They wait for one and the same.
            assert runtime.asked == 1
            for text, _ in texts:
                assert Figures(text.decode()).of("workers_reachable") == 0
            runtime.error = RuntimeError("down")
            runtime.gate.set()
            await asyncio.sleep(0.1)
            text, _ = await metrics.exposition("")
            assert Figures(text.decode()).of("workers_reachable") == 0
            runtime.error = None
            await asyncio.sleep(1.0)
            text, _ = await metrics.exposition("")
            assert Figures(text.decode()).of("workers_reachable") == 1
            before = runtime.asked
            for _ in range(20):
                await metrics.exposition("")
            assert runtime.asked <= before + 1
        finally:
            await metrics.close()

    asyncio.run(run())


# What is written about them.


def documented() -> dict[str, str]:
    page = (DOCS / "monitoring.md").read_text()
    return dict(re.findall(r"^\| `(byzerllm_\w+)` \|([^|]*)\|", page, re.MULTILINE))


def test_every_metric_is_documented(client: httpx.Client) -> None:
    figures = look(client)
    families = list(text_string_to_metric_families(figures.text))
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in families
    }
    assert names == set(documented())


def test_labels_are_documented(client: httpx.Client) -> None:
    client.post(CHAT, json=ask("echo", stream=True))
    client.post(CHAT, json=ask("broken"))
    for family in text_string_to_metric_families(look(client).text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        for sample in family.samples:
            told = set(re.findall(r"`(\w+)`", documented()[name]))
            assert set(sample.labels) - {"le"} == told, name


def expressions() -> list[str]:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [
        row["query"]["query"] for row in dashboard["templating"]["list"] if row["type"] == "query"
    ]
    return found


def series(figures: Figures) -> set[str]:
    """The names that a query may use, of samples that have not come yet, too."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {
        f"{family.name}{ending}"
        for family in text_string_to_metric_families(figures.text)
        for ending in endings.get(family.type, ("",))
    }


def test_the_dashboard_asks_for_what_there_is(client: httpx.Client) -> None:
    asked = {name for text in expressions() for name in re.findall(r"byzerllm_\w+", text)}
    assert len(asked) > 20
    assert asked <= series(look(client))


def test_the_dashboard_is_promql() -> None:
    for text in expressions():
        if text.startswith("label_values("):
            continue
        filled = text.replace("$__rate_interval", "5m").replace("$quantile", "0.95")
        promql_parser.parse(filled)


def test_the_dashboard_has_a_data_source_to_choose() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    kinds = {row["name"]: row["type"] for row in dashboard["templating"]["list"]}
    assert kinds["datasource"] == "datasource"
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["title"]
            assert panel["description"]
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
