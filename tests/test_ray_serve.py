"""The server as an ingress of Ray Serve."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import byzerllm
from server_process import Serving, free_port, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
MODEL = "ray-served"
KEY = "sk-ray-serve-0123456789"
CHAT = "/v1/chat/completions"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


def question(*, stream: bool = False) -> dict[str, Any]:
    content = "one two three"
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "stream": stream}


@pytest.fixture(scope="module")
def served(cluster: Any) -> Iterator[Serving]:
    client = byzerllm.ByzerLLM().setup_cpus_per_worker(0.1).setup_infer_backend("echo")
    client.deploy(udf_name=MODEL, infer_params={"delay": 0.02, "chunks": 50})
    options = ("--ray_serve", "--port", str(free_port()), "--api_key", KEY)
    with serving(cluster.address, *options) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0, running.output
        assert "Traceback" not in running.output
        assert KEY not in running.output
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{running.url}/health/live", timeout=5)
    client.undeploy(MODEL, force=True)


def test_answers_and_refusals(served: Serving) -> None:
    with httpx.Client(base_url=served.url, headers=AUTHORIZED, timeout=30) as http:
        answer = http.post(CHAT, json=question())
        assert answer.status_code == 200, answer.text
        message = answer.json()["choices"][0]["message"]
        assert message["content"].startswith("one two three")
        assert answer.headers["x-request-id"]
        body = {"model": MODEL, "input": ["a b"]}
        data = http.post("/v1/embeddings", json=body).json()["data"]
        assert data[0]["embedding"] == [3.0, 1.0]
        assert MODEL in http.get("/v1/models").text
        wrong = http.post(CHAT, json={**question(), "temperature": 9})
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"] == "temperature"
    refused = httpx.post(f"{served.url}{CHAT}", json=question())
    assert refused.status_code == 401


def test_stream(served: Serving) -> None:
    times = []
    texts = []
    with httpx.stream(
        "POST", f"{served.url}{CHAT}", json=question(stream=True), headers=AUTHORIZED, timeout=30
    ) as answer:
        for text in answer.iter_text():
            times.append(time.monotonic())
            texts.append(text)
    events = "".join(texts).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    whole = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert whole.startswith("one two three")
    # They came as they were made, in 50 steps of 20 ms.
    assert times[-1] - times[0] > 0.5


def test_a_caller_that_leaves(served: Serving) -> None:
    def running() -> int:
        return int(byzerllm.ByzerLLM().stat(MODEL)[0]["workers"][0]["running"])

    with httpx.stream(
        "POST", f"{served.url}{CHAT}", json=question(stream=True), headers=AUTHORIZED, timeout=30
    ) as answer:
        texts = answer.iter_text()
        next(texts)
        assert running() == 1
    start = time.monotonic()
    while running():
        assert time.monotonic() - start < 0.8
        time.sleep(0.02)
