"""Vectors and ranks over HTTP, by models on this machine."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

if TYPE_CHECKING:
    from server_process import Serving

pytestmark = pytest.mark.model
CONFIG = """
version: 1
models:
  minilm:
    pretrained_model_type: custom/bge
    infer_backend: transformers
    model_path: {minilm}
    worker_concurrency: 8
    infer_params: {{threads: 1}}
  ranker:
    pretrained_model_type: custom/bge_rerank
    infer_backend: transformers
    model_path: {ranker}
    worker_concurrency: 8
    infer_params: {{threads: 1}}
"""
TEXTS = ["wow", "The giant panda is a bear species endemic to China."]
QUERY = "where is Paris?"
DOCUMENTS = ["Bread is baked from flour.", "Paris is the capital city of France.", "hi"]


@pytest.fixture(scope="module")
def http(serving: Callable[..., Serving]) -> Iterator[httpx.Client]:
    if importlib.util.find_spec("byzerllm_backend_transformers") is None:
        pytest.skip("needs byzerllm-backend-transformers")
    from hf_models.minilm import minilm_folder
    from hf_models.reranker import reranker_folder

    config = CONFIG.format(minilm=minilm_folder(), ranker=reranker_folder())
    served = serving(config=config, OMP_NUM_THREADS="1")
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


def test_embeddings(http: httpx.Client) -> None:
    import sentence_transformers

    from hf_models.minilm import minilm_folder

    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": TEXTS}).json()
    model = sentence_transformers.SentenceTransformer(str(minilm_folder()), device="cpu")
    found = np.array([row["embedding"] for row in answer["data"]])
    assert np.abs(found - model.encode(TEXTS)).max() < 1e-5
    assert answer["usage"]["prompt_tokens"] == int(model.preprocess(TEXTS)["attention_mask"].sum())
    encoded = {"model": "minilm", "input": TEXTS[0], "encoding_format": "base64"}
    (row,) = http.post("/v1/embeddings", json=encoded).json()["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(row["embedding"]), "<f4"), found[0])


def test_what_it_cannot_do(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": "a", "dimensions": 9})
    assert answer.status_code == 400
    assert "384 numbers" in answer.json()["error"]["message"]
    answer = http.post("/v1/embeddings", json={"model": "ranker", "input": "a"})
    assert answer.status_code == 400
    assert "embedding" in answer.json()["error"]["message"]


def test_rerank_and_score(http: httpx.Client) -> None:
    body = {"model": "ranker", "query": QUERY, "documents": DOCUMENTS}
    ranked = http.post("/v1/rerank", json=body).json()
    assert ranked["results"][0]["index"] == 1
    assert ranked["results"][0]["relevance_score"] > 0.5 > ranked["results"][1]["relevance_score"]
    assert ranked["usage"]["prompt_tokens"] > 20
    scored = {"model": "ranker", "text_1": QUERY, "text_2": DOCUMENTS, "use_activation": False}
    scores = [row["score"] for row in http.post("/v1/score", json=scored).json()["data"]]
    assert scores.index(max(scores)) == 1
    assert min(scores) < 0 < max(scores)
    cosines = {"model": "minilm", "text_1": QUERY, "text_2": DOCUMENTS}
    close = [row["score"] for row in http.post("/v1/score", json=cosines).json()["data"]]
    assert close.index(max(close)) == 1
