"""The server as a driver on a live cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

import byzerllm
from server_process import Serving, serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
ECHO, SLOW = "served-echo", "served-slow"
CHAT = "/v1/chat/completions"
STREAMS = 32


def question(model: str, text: str = "one two three", *, stream: bool = False) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}


def deploy(model: str, workers: int = 1, **params: Any) -> None:
    client = byzerllm.ByzerLLM().setup_num_workers(workers).setup_cpus_per_worker(0.1)
    client.setup_infer_backend("echo").deploy(udf_name=model, infer_params=params)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def pids(model: str) -> list[int]:
    return [worker["pid"] for worker in byzerllm.ByzerLLM().stat(model)[0]["workers"]]


def running(model: str) -> int:
    return sum(worker["running"] for worker in byzerllm.ByzerLLM().stat(model)[0]["workers"])


@pytest.fixture(scope="module")
def server(cluster: Any) -> Iterator[Serving]:
    deploy(ECHO, workers=2)
    deploy(SLOW, workers=2, delay=0.05, chunks=60)
    with serving(cluster.address) as served:
        yield served
        assert served.stop() == 0
        assert "Traceback" not in served.output
    for model in (ECHO, SLOW):
        byzerllm.ByzerLLM().undeploy(model, force=True)


@pytest.fixture
def http(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def events(text: str) -> list[Any]:
    """The JSON of each event, and `[DONE]`."""
    datas = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def test_two_deployments(http: httpx.Client) -> None:
    for model in (ECHO, SLOW):
        assert content(http.post(CHAT, json=question(model))).startswith("one two three")
    listed = {model["id"] for model in http.get("/v1/models").json()["data"]}
    assert {ECHO, SLOW} <= listed
    assert http.get("/health").json()["status"] == "ok"


def test_stream(http: httpx.Client) -> None:
    with http.stream("POST", CHAT, json=question(ECHO, stream=True)) as answer:
        got = events("".join(answer.iter_text()))
    pieces = [event["choices"][0]["delta"].get("content", "") for event in got[:-1]]
    assert "".join(pieces) == "one two three"
    assert got[-1] == "[DONE]"


def test_embeddings(http: httpx.Client) -> None:
    body = {"model": ECHO, "input": ["a b", "abc"]}
    data = http.post("/v1/embeddings", json=body).json()["data"]
    assert [row["embedding"] for row in data] == [[3.0, 1.0], [3.0, 0.0]]


def test_numbers_that_the_wire_cannot_carry(http: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"maximum": 10**30}}}]
    for extra in ({"echo_tag": 10**30}, {"tools": tools}):
        for stream in (False, True):
            answer = http.post(CHAT, json={**question(ECHO, stream=stream), **extra})
            assert answer.status_code < 500, answer.text


async def read_stream(client: httpx.AsyncClient, model: str) -> list[Any]:
    async with client.stream("POST", CHAT, json=question(model, stream=True)) as answer:
        return events("".join([text async for text in answer.aiter_text()]))


def test_many_streams_at_once(server: Serving) -> None:
    async def all_of_them() -> list[list[Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            asked = (read_stream(client, SLOW) for _ in range(STREAMS))
            return list(await asyncio.gather(*asked))

    start = time.monotonic()
    got = asyncio.run(all_of_them())
    assert time.monotonic() - start < 20
    assert all(stream[-1] == "[DONE]" for stream in got)
    assert {len(stream) for stream in got} == {len(got[0])}
    assert running(SLOW) == 0


def test_a_caller_that_leaves(server: Serving) -> None:
    with (
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", CHAT, json=question(SLOW, stream=True)) as answer,
    ):
        texts = answer.iter_text()
        next(texts)
        until(lambda: running(SLOW) == 1, 2)
    until(lambda: running(SLOW) == 0, 2)


def test_a_worker_killed_in_the_middle(server: Serving) -> None:
    async def ask() -> tuple[list[list[Any]], list[httpx.Response]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            streams = [asyncio.create_task(read_stream(client, SLOW)) for _ in range(8)]
            wholes = [asyncio.create_task(client.post(CHAT, json=question(SLOW))) for _ in range(8)]
            await asyncio.sleep(1)
            os.kill((await asyncio.to_thread(pids, SLOW))[0], signal.SIGKILL)
            return list(await asyncio.gather(*streams)), list(await asyncio.gather(*wholes))

    streams, wholes = asyncio.run(ask())
    assert [answer.status_code for answer in wholes] == [200] * 8
    ends = [stream[-1] for stream in streams]
    broken = [end for end in ends if end != "[DONE]"]
    assert 0 < len(broken) < 8
    assert {end["error"]["code"] for end in broken} == {"stream_interrupted"}
    until(lambda: len(pids(SLOW)) == 2)


def controller(cluster: Any) -> psutil.Process:
    for process in psutil.Process(cluster.process.pid).children(recursive=True):
        if "ray::Controller" in " ".join(process.cmdline()):
            return process
    raise AssertionError("no controller")


def test_the_controller_comes_back(http: httpx.Client, cluster: Any) -> None:
    controller(cluster).kill()
    assert content(http.post(CHAT, json=question(ECHO))) == "one two three"
    assert http.get("/health/ready").status_code in (200, 503)
    until(lambda: http.get("/health/ready").status_code == 200)
    assert content(http.post(CHAT, json=question(ECHO))) == "one two three"


def test_deployed_and_undeployed_while_it_serves(http: httpx.Client) -> None:
    late = "served-late"
    assert http.post(CHAT, json=question(late)).status_code == 404
    deploy(late, delay=0.02, chunks=50)
    try:
        assert content(http.post(CHAT, json=question(late))).startswith("one")
        with http.stream("POST", CHAT, json=question(late, stream=True)) as answer:
            texts = answer.iter_text()
            text = next(texts)
            byzerllm.ByzerLLM().undeploy(late)
            assert events(text + "".join(texts))[-1] == "[DONE]"
        refused = http.post(CHAT, json=question(late))
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert late not in http.get("/v1/models").text
    finally:
        if byzerllm.ByzerLLM().is_model_exist(late):
            byzerllm.ByzerLLM().undeploy(late, force=True)


def test_two_processes(cluster: Any, server: Serving) -> None:
    with serving(cluster.address, "--workers", "2") as served:
        for _ in range(20):
            assert content(httpx.post(served.url + CHAT, json=question(ECHO))) == "one two three"
        family = psutil.Process(served.process.pid).children(recursive=True)
        assert served.stop() == 0
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left
        assert "Traceback" not in served.output


def test_nothing_is_left_of_a_server_that_stopped(cluster: Any, server: Serving) -> None:
    with serving(cluster.address) as served:
        url = served.url + CHAT
        with httpx.stream("POST", url, json=question(SLOW, stream=True), timeout=30) as answer:
            texts = answer.iter_text()
            text = next(texts)
            family = psutil.Process(served.process.pid).children(recursive=True)
            served.process.send_signal(signal.SIGTERM)
            assert events(text + "".join(texts))[-1] == "[DONE]"
        assert served.process.wait(20) == 0, served.output
        _, left = psutil.wait_procs(family, timeout=5)
        assert not left
        assert running(SLOW) == 0


def test_a_wrong_token(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with (
        pytest.raises(RuntimeError, match="refuses this process") as refusal,
        serving(cluster.address),
    ):
        pass
    assert "Traceback" not in str(refusal.value)
    assert "0" * 64 not in str(refusal.value)
