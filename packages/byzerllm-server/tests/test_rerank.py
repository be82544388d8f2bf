"""`/v1/rerank` and `/v1/score`."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

QUERY = "what is a panda"
DOCUMENTS = ["hi", "a panda is a bear", "what a day"]
BODY = {"model": "echo", "query": QUERY, "documents": DOCUMENTS}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_sorted(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=BODY).json()
    assert answer["model"] == "echo"
    assert answer["id"].startswith("rerank-")
    assert answer["results"] == [
        {
            "index": index,
            "relevance_score": pytest.approx(sigmoid(share)),
            "document": {"text": DOCUMENTS[index]},
        }
        for index, share in ((1, 0.75), (2, 0.5), (0, 0.0))
    ]
    assert answer["usage"] == {"prompt_tokens": 21, "total_tokens": 21}


def test_what_is_asked_for(http: httpx.Client) -> None:
    more = {"top_n": 2, "return_documents": False, "use_activation": False}
    documents = [{"text": "hi"}, "what is a panda", {"text": "a panda"}]
    answer = http.post("/v1/rerank", json={**BODY, **more, "documents": documents}).json()
    assert answer["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 2, "relevance_score": 0.5},
    ]


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"documents": []}, "documents"),
        ({"documents": "text"}, "documents"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1].text"),
        ({"documents": ["a"] * 5000}, "documents"),
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"top": 1}, "top"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, change: dict[str, Any], parameter: str) -> None:
    response = http.post("/v1/rerank", json={**BODY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


def test_a_model_that_does_not_rerank_says_so(hosted: httpx.Client) -> None:
    response = hosted.post("/v1/rerank", json={**BODY, "model": "chat"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_by_model"
    assert "rerank" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("first", "second", "shares"),
    [
        (QUERY, "a panda", [0.5]),
        ([QUERY], "a panda", [0.5]),
        (QUERY, ["hi", "a panda"], [0.0, 0.5]),
        ([QUERY], ["hi", "a panda"], [0.0, 0.5]),
        (["a b", "c d"], ["a", "c d"], [0.5, 1.0]),
    ],
)
def test_scores(http: httpx.Client, first: Any, second: Any, shares: list[float]) -> None:
    body = {"model": "echo", "text_1": first, "text_2": second}
    answer = http.post("/v1/score", json=body).json()
    assert answer["object"] == "list"
    assert [item["score"] for item in answer["data"]] == pytest.approx(list(map(sigmoid, shares)))
    assert [item["index"] for item in answer["data"]] == list(range(len(shares)))
    raw = http.post("/v1/score", json={**body, "use_activation": False}).json()
    assert [item["score"] for item in raw["data"]] == shares


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"text_1": ["a", "b"]}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
        ({"text_1": []}, "text_1"),
        ({"text_2": ["a", ""]}, "text_2[1]"),
        ({"text_2": 1}, "text_2"),
    ],
)
def test_texts_that_cannot_be_compared(
    http: httpx.Client, change: dict[str, Any], parameter: str
) -> None:
    body = {"model": "echo", "text_1": "a", "text_2": "b", **change}
    response = http.post("/v1/score", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


def test_a_model_of_vectors_scores_by_their_cosine(hosted: httpx.Client) -> None:
    body = {"model": "vectors", "text_1": "same", "text_2": ["same", "other"]}
    same, other = (item["score"] for item in hosted.post("/v1/score", json=body).json()["data"])
    vectors = hosted.post("/v1/embeddings", json={"model": "vectors", "input": ["same", "other"]})
    one, two = (item["embedding"] for item in vectors.json()["data"])
    cosine = sum(a * b for a, b in zip(one, two, strict=True))
    cosine /= math.hypot(*one) * math.hypot(*two)
    assert (same, other) == (pytest.approx(1.0), pytest.approx(cosine))
