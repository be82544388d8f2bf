"""`/metrics` of a server whose models are on Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import byzerllm
from server_process import free_port, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
MODEL = "measured"
CHAT = "/v1/chat/completions"
WAIT_SECONDS = 30


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[httpx.Client]:
    llm = byzerllm.ByzerLLM().setup_cpus_per_worker(0.1).setup_infer_backend("echo")
    llm.setup_num_workers(2)
    llm.deploy(udf_name=MODEL, infer_params={"delay": 0.05, "crash_on": "die"})
    with (
        serving(cluster.address, "--port", "0") as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client
    llm.undeploy(MODEL, force=True)


def figures(client: httpx.Client) -> Callable[..., float]:
    text = client.get("/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def of(name: str, **labels: str) -> float:
        wanted = {"model": MODEL, **labels}
        return sum(
            sample.value
            for sample in samples
            if sample.name == f"byzerllm_{name}" and wanted.items() <= sample.labels.items()
        )

    return of


def until(client: httpx.Client, good: Callable[[Callable[..., float]], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not good(figures(client)):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_workers_tell_of_themselves(client: httpx.Client) -> None:
    for _ in range(4):
        answer = client.post(CHAT, json=ask("one two three"))
        assert answer.status_code == 200
        assert float(answer.headers["x-gateway-ms"]) > 0
    until(client, lambda of: of("worker_requests_total", outcome="done") == 4)
    of = figures(client)
    assert of("requests_total", operation="chat", status="200") == 4
    assert of("completion_tokens_total") == of("worker_completion_tokens_total") == 12
    assert of("prompt_tokens_total") == of("worker_prompt_tokens_total") == 12
    assert of("model_workers", state="wanted") == of("worker_up") == 2
    # Three chunks, one each 50 ms.
    assert 0.6 <= of("model_seconds_sum") <= of("request_seconds_sum")
    assert of("time_per_output_token_seconds_count") == 4


def test_what_runs_and_stops(client: httpx.Client) -> None:
    body = ask("word " * 200, stream=True)
    with client.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        # The stream's own connection is taken; the client opens another one.
        until(client, lambda of: of("worker_running") == 1)
    until(client, lambda of: of("worker_running") == 0)
    of = figures(client)
    assert of("requests_total", status="499") == 1
    assert of("errors_total", error="ClientDisconnect") == 1


def test_a_worker_that_dies_is_a_retry(client: httpx.Client) -> None:
    # It ends both workers, one after the other, and is refused then.
    answer = client.post(CHAT, json=ask("die"))
    assert answer.status_code == 503
    of = figures(client)
    assert of("retries_total", reason="worker_died") == 1
    assert of("errors_total", error="WorkerDiedError") == 1
    until(client, lambda of: of("worker_up") == 2)


def test_a_scrape_beside_many_requests(client: httpx.Client) -> None:
    before = figures(client)("requests_total", status="200")
    answers: list[int] = []

    def many() -> None:
        answers.extend(client.post(CHAT, json=ask("one two")).status_code for _ in range(5))

    asking = [threading.Thread(target=many) for _ in range(8)]
    for thread in asking:
        thread.start()
    seen = 0.0
    while any(thread.is_alive() for thread in asking):
        now = figures(client)("requests_total", status="200")
        assert now >= seen
        seen = now
    for thread in asking:
        thread.join()
    assert answers == [200] * 40
    assert figures(client)("requests_total", status="200") == before + 40


def test_replicas_of_a_node_add_up(cluster: Any, client: httpx.Client) -> None:
    options = ("--ray_serve", "--num_replicas", "2", "--port", str(free_port()))
    with (
        serving(cluster.address, *options) as running,
        httpx.Client(base_url=running.url, timeout=60) as replicas,
    ):
        for _ in range(20):
            assert replicas.post(CHAT, json=ask("one")).status_code == 200
        # Whichever replica answers.
        for _ in range(6):
            of = figures(replicas)
            assert of("requests_total", operation="chat", status="200") == 20
            assert of("worker_up") == 2
        assert running.stop(60) == 0
