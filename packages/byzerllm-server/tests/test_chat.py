"""`/v1/chat/completions`, as any HTTP client sees it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

import httpx
import pytest

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello my world"}]


def events(text: str) -> list[Any]:
    """The data of a stream's events, `[DONE]` as it is."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


def test_an_answer(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "echo", "messages": HELLO})
    answer = response.json()
    assert response.status_code == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello my world", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert response.headers["x-request-id"].startswith("req_")
    assert float(response.headers["x-gateway-ms"]) >= 0


def test_a_stream(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "echo", "messages": HELLO, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "hello my world"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    assert not any("usage" in chunk for chunk in chunks)


def test_a_stream_with_usage(http: httpx.Client) -> None:
    body = {"model": "echo", "messages": HELLO, "stream": True, "n": 2}
    response = http.post(PATH, json={**body, "stream_options": {"include_usage": True}})
    *chunks, last, _done = events(response.text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in own)
        assert text == "hello my world"


def test_an_error_before_the_first_event_has_its_own_status(http: httpx.Client) -> None:
    body = {"model": "nobody", "messages": HELLO, "stream": True}
    response = http.post(PATH, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_an_error_in_mid_stream_is_its_last_event(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "broken", "messages": HELLO, "stream": True})
    assert response.status_code == 200
    last = events(response.text)[-1]
    assert last["error"]["code"] == "engine_error"
    assert "chunk 3" in last["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_stops_the_generation(http: httpx.Client, stream: bool) -> None:
    body = {"model": "slow", "messages": HELLO, "stream": stream}
    leave = threading.Event()

    def ask() -> None:
        # It waits for an answer of ten seconds, which nobody lets it see the end of.
        with (
            contextlib.suppress(httpx.ReadTimeout),
            http.stream("POST", PATH, json=body, timeout=3) as response,
        ):
            for _ in response.iter_text():
                if leave.is_set():
                    return

    caller = threading.Thread(target=ask)
    caller.start()
    until_running(http, 1)
    leave.set()
    until_running(http, 0)
    caller.join(10)
    assert not caller.is_alive()


def until_running(http: httpx.Client, wanted: int) -> None:
    end = time.monotonic() + 6
    while running(http) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    assert running(http) == wanted


def running(http: httpx.Client) -> int:
    """Requests that the model `slow` is at."""
    text = http.get("/metrics").text
    found = [line for line in text.splitlines() if line.startswith("byzerllm_worker_running")]
    return int(sum(float(line.split()[-1]) for line in found if 'model="slow"' in line))


@pytest.mark.parametrize(
    ("change", "status", "parameter"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": 9}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperatur": 1}, 400, "temperatur"),
        ({"n": 1000}, 400, "n"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"model": ""}, 400, "model"),
    ],
)
def test_what_is_wrong_is_named(
    http: httpx.Client, change: dict[str, Any], status: int, parameter: str
) -> None:
    response = http.post(PATH, json={"model": "echo", "messages": HELLO, **change})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == parameter


def test_a_text_that_is_json_stays_a_text(http: httpx.Client) -> None:
    text = '[{"text": "hello"}, {"image": "https://127.0.0.1/x.png"}]'
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    answer = http.post(PATH, json=body).json()
    assert answer["choices"][0]["message"]["content"] == text
