"""`/tokenize`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


def test_a_prompt(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": "echo", "prompt": "Hi"}).json()
    assert answer == {"count": 2, "max_model_len": 100_000, "tokens": [72, 105]}
    empty = http.post("/tokenize", json={"model": "echo", "prompt": ""}).json()
    assert (empty["count"], empty["tokens"]) == (0, [])


def test_a_conversation(http: httpx.Client) -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    answer = http.post("/tokenize", json={"model": "echo", "messages": messages}).json()
    assert bytes(answer["tokens"]).decode() == "system: be kind\nuser: Hi\n"
    assert answer["count"] == len(answer["tokens"])


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"prompt": "a", "add_special_tokens": True}, "add_special_tokens"),
        ({"promt": "a"}, "promt"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, body: dict[str, Any], parameter: str) -> None:
    response = http.post("/tokenize", json={"model": "echo", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


@pytest.mark.parametrize(
    "field", [{"prompt": "a"}, {"messages": [{"role": "user", "content": ""}]}]
)
def test_a_model_without_a_tokenizer_says_so(hosted: httpx.Client, field: dict[str, Any]) -> None:
    response = hosted.post("/tokenize", json={"model": "chat", **field})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_by_model"
