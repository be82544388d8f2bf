"""`/v1/completions`."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

PATH = "/v1/completions"
BODY = {"model": "echo", "prompt": "hello my world"}


def events(text: str) -> list[Any]:
    """The data of a stream's events, `[DONE]` as it is."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in found]


def test_an_answer(http: httpx.Client) -> None:
    answer = http.post(PATH, json=BODY).json()
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "echo")
    assert answer["choices"] == [
        {"index": 0, "text": "hello my world", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_several_prompts_with_several_answers_each(http: httpx.Client) -> None:
    answer = http.post(PATH, json={**BODY, "prompt": ["a b", "c"], "n": 2}).json()
    texts = {choice["index"]: choice["text"] for choice in answer["choices"]}
    assert texts == {0: "a b", 1: "a b", 2: "c", 3: "c"}
    # Each prompt counts once.
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def test_limits(http: httpx.Client) -> None:
    (choice,) = http.post(PATH, json={**BODY, "max_tokens": 2}).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello my", "length")
    (choice,) = http.post(PATH, json={**BODY, "stop": " world"}).json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hello my", "stop")


def test_a_stream(http: httpx.Client) -> None:
    body = {**BODY, "prompt": ["a b", "c"], "stream": True}
    response = http.post(PATH, json={**body, "stream_options": {"include_usage": True}})
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index, text in enumerate(["a b", "c"]):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == ["stop"]


def test_a_stream_without_usage(http: httpx.Client) -> None:
    *chunks, _done = events(http.post(PATH, json={**BODY, "stream": True}).text)
    assert not any("usage" in chunk for chunk in chunks)


def test_an_error_in_mid_stream_is_its_last_event(http: httpx.Client) -> None:
    response = http.post(PATH, json={**BODY, "model": "broken", "stream": True})
    assert response.status_code == 200
    assert "chunk 3" in events(response.text)[-1]["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_answer_that_fails_ends_the_others(serving: Any, stream: bool) -> None:
    # Two of six answers find no place; the four others must not go on for nobody.
    config = """
version: 1
models:
  small:
    infer_backend: echo
    worker_concurrency: 2
    max_queue: 2
    infer_params: {delay: 0.05, chunks: 200}
"""
    served = serving(config=config)
    with httpx.Client(base_url=served.url, timeout=30) as client:
        body = {"model": "small", "prompt": "a", "n": 6, "stream": stream}
        response = client.post(PATH, json=body)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        time.sleep(0.2)
        # All places are free again: there is room for four.
        body = {"model": "small", "prompt": "a", "n": 4, "stream": True}
        with client.stream("POST", PATH, json=body) as response:
            assert response.status_code == 200
            assert next(response.iter_lines())


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 30}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": True}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"temprature": 1}, "temprature"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_named(
    http: httpx.Client, change: dict[str, Any], parameter: str, stream: bool
) -> None:
    response = http.post(PATH, json={**BODY, "stream": stream, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


def test_log_probabilities_that_a_model_lacks_are_refused(http: httpx.Client) -> None:
    response = http.post(PATH, json={**BODY, "logprobs": 1})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_by_model"
