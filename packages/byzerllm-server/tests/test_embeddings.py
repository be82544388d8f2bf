"""`/v1/embeddings`."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx
import pytest

PATH = "/v1/embeddings"


def test_one_text(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"model": "echo", "input": "hello my world"}).json()
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [14.0, 2.0]}],
        "model": "echo",
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


def test_a_batch_keeps_its_order(hosted: httpx.Client) -> None:
    texts = [f"text {number}" for number in range(40)]
    data = hosted.post(PATH, json={"model": "vectors", "input": texts}).json()["data"]
    assert [item["index"] for item in data] == list(range(40))
    for number in (0, 17, 39):
        alone = hosted.post(PATH, json={"model": "vectors", "input": texts[number]}).json()
        assert alone["data"][0]["embedding"] == data[number]["embedding"]


def test_base64_is_little_endian_floats(hosted: httpx.Client) -> None:
    body = {"model": "vectors", "input": ["a", "b"]}
    plain = hosted.post(PATH, json=body).json()["data"]
    packed = hosted.post(PATH, json={**body, "encoding_format": "base64"}).json()["data"]
    for one, other in zip(plain, packed, strict=True):
        numbers = struct.unpack("<8f", base64.b64decode(other["embedding"]))
        assert list(numbers) == one["embedding"]


def test_dimensions_are_honoured(hosted: httpx.Client) -> None:
    body = {"model": "vectors", "input": "a"}
    whole = hosted.post(PATH, json=body).json()["data"][0]["embedding"]
    short = hosted.post(PATH, json={**body, "dimensions": 3}).json()["data"][0]["embedding"]
    assert short == whole[:3]


def test_dimensions_that_a_model_lacks_are_refused(
    http: httpx.Client, hosted: httpx.Client
) -> None:
    assert http.post(PATH, json={"model": "echo", "input": "a", "dimensions": 2}).status_code == 200
    response = http.post(PATH, json={"model": "echo", "input": "a", "dimensions": 3})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("dimensions", "unsupported_by_model")
    assert "vectors of 2 numbers" in error["message"]
    response = hosted.post(PATH, json={"model": "vectors", "input": "a", "dimensions": 9})
    assert response.status_code == 400
    assert "dimensions" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [[1, 2]]}, "input[0]"),
        ({"input": {"text": "a"}}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimension": 3}, "dimension"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, change: dict[str, Any], parameter: str) -> None:
    response = http.post(PATH, json={"model": "echo", "input": "a", **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


def test_a_model_without_vectors_says_so(hosted: httpx.Client) -> None:
    response = hosted.post(PATH, json={"model": "chat", "input": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_by_model"
