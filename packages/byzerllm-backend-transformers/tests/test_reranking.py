"""Reranking by a small cross-encoder that was trained for these tests."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch

from byzerllm import ByzerLLM
from byzerllm.errors import CapabilityError, ModelLoadError, ModelSourceError, ParameterError
from byzerllm.requests import EmbedRequest, RerankRequest, RerankResult
from byzerllm.testing import Loaded
from hf_models.minilm import made_of_minilm, minilm_folder
from hf_models.reranker import PASSAGES, reranker_folder

pytestmark = pytest.mark.model
Load = Callable[..., Loaded]
_ids = itertools.count()
DOCUMENTS = list(PASSAGES.values())
# Not the words of the training.
QUERIES = {
    "tell me about pandas": "what is a panda?",
    "where is Paris?": "capital of France",
    "honey of bees": "how do bees make honey?",
    "the speed of light": "how fast is light?",
    "height of Mount Everest": "how tall is Everest?",
}


@pytest.fixture(scope="module")
def reranker(load: Load) -> Loaded:
    return load(reranker_folder(), model_type="custom/bge_rerank", threads=1)


def rerank(loaded: Loaded, **asked: Any) -> RerankResult:
    request = RerankRequest(id=f"r{next(_ids)}", **asked)
    result: RerankResult = loaded.run(loaded.backend.rerank(request))
    return result


def test_a_known_list_is_ranked(reranker: Loaded) -> None:
    for query, known in (*QUERIES.items(), *zip(PASSAGES, PASSAGES, strict=True)):
        scores = rerank(reranker, query=query, documents=DOCUMENTS).scores
        best = max(range(len(scores)), key=scores.__getitem__)
        assert DOCUMENTS[best] == PASSAGES[known], query


def test_scores_are_raw_logits(reranker: Loaded) -> None:
    pairs = [(query, passage) for query in QUERIES for passage in DOCUMENTS[:4]]
    result = rerank(reranker, pairs=pairs)
    model = sentence_transformers.CrossEncoder(str(reranker_folder()), device="cpu")
    wanted = model.predict(pairs, activation_fn=torch.nn.Identity())
    assert result.scores == pytest.approx(wanted.tolist(), abs=1e-4)
    assert min(result.scores) < 0 < max(result.scores)
    mask = model.preprocess(pairs)["attention_mask"]
    assert result.usage.prompt_tokens == int(mask.sum())
    alone = [rerank(reranker, pairs=[pair]).scores[0] for pair in pairs[:3]]
    assert alone == pytest.approx(result.scores[:3], abs=1e-4)


def test_requests_share_batches(reranker: Loaded) -> None:
    async def together() -> list[RerankResult]:
        asked = [
            RerankRequest(id=f"t{query}", query=query, documents=DOCUMENTS) for query in QUERIES
        ]
        return list(await asyncio.gather(*map(reranker.backend.rerank, asked)))

    for query, result in zip(QUERIES, reranker.run(together()), strict=True):
        alone = rerank(reranker, query=query, documents=DOCUMENTS)
        assert result.scores == pytest.approx(alone.scores, abs=1e-4)


def test_meta_and_tokens(reranker: Loaded) -> None:
    meta = reranker.run(reranker.backend.meta())
    assert (meta.task, meta.backend, meta.max_model_len) == ("rerank", "transformers", 512)
    assert reranker.run(reranker.backend.tokenize("hello")) == [7592]
    long = rerank(reranker, query="panda", documents=["word " * 900])
    assert long.usage.prompt_tokens == 512


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "no pairs to rank"),
        ({"pairs": [("a",)]}, "pair 0 is no pair"),
        ({"pairs": [("a", "b"), "cd"]}, "pair 1 is no pair"),
        ({"pairs": [("a", 5)]}, "passage of pair 0 is a int"),
        ({"pairs": [("", "b")]}, "query of pair 0 is empty"),
        ({"query": "a", "documents": [None]}, "passage of pair 0 is a NoneType"),
        ({"pairs": [("a", "b")], "extra": {"top": 1}}, "unknown parameter 'top'"),
    ],
)
def test_bad_requests(reranker: Loaded, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        rerank(reranker, **asked)
    assert len(rerank(reranker, pairs=[("a", ""), ("a", "b")]).scores) == 2


def test_it_makes_no_vectors(reranker: Loaded) -> None:
    with pytest.raises(CapabilityError, match="embedding"):
        reranker.run(reranker.backend.embed(EmbedRequest(id="e", texts=["x"])))


def test_auto_knows_a_cross_encoder(load: Load, tmp_path: Path) -> None:
    assert load(reranker_folder(), threads=1).backend.task.capability == "rerank"
    saved = tmp_path / "saved"
    sentence_transformers.CrossEncoder(str(reranker_folder()), device="cpu").save_pretrained(
        str(saved)
    )
    again = load(saved, threads=1)
    assert again.backend.task.capability == "rerank"
    scores = rerank(again, query="where is Paris?", documents=DOCUMENTS).scores
    assert max(scores) == scores[1]


def test_wrong_folders(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="scores no pairs of texts"):
        load(minilm_folder(), model_type="custom/bge_rerank")
    headless = made_of_minilm(
        tmp_path / "headless",
        plain=True,
        config={"architectures": ["BertForSequenceClassification"], "num_labels": 1},
    )
    with pytest.raises(ModelSourceError, match=r"lack the head that scores \(classifier"):
        load(headless, model_type="custom/bge_rerank", threads=1)
    config = json.loads((headless / "config.json").read_text())
    del config["num_labels"]
    config |= {"id2label": {"0": "no", "1": "maybe", "2": "yes"}}
    (headless / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="3 scores"):
        load(headless, model_type="custom/bge_rerank", threads=1)


def test_the_client() -> None:
    client = ByzerLLM(runtime="local")
    client.setup_num_workers(1).setup_infer_backend("transformers")
    client.deploy(
        model_path=str(reranker_folder()),
        pretrained_model_type="custom/bge_rerank",
        udf_name="ranker",
        infer_params={"threads": 1},
    )
    try:
        client.setup_default_re_rank_model_name("ranker")
        pairs = [["where is Paris?", passage] for passage in DOCUMENTS[:3]]
        (answer,) = client.emb_rerank(sentence_pairs=pairs)
        scores = [score for _, score in answer.output]
        assert scores == sorted(scores, reverse=True)
        assert answer.output[0][0] == pairs[1]
        (single,) = client.emb_rerank(sentence_pairs=pairs[1])
        assert single.output == [pairs[1], pytest.approx(scores[0], abs=1e-4)]
        assert single.metadata.input_tokens_count > 5
    finally:
        client.undeploy("ranker", force=True)
