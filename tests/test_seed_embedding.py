"""The examples of embedding and reranking that users of earlier releases know, on a live cluster:
names, keys and the order of calls are the examples'. The models are MiniLM, and a small reranker
made of it, on the CPU; paths, sizes and workers are this test's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.model, pytest.mark.timeout(300)]
ENVIRONMENT = {"threads": 1}


@pytest.fixture(scope="module", autouse=True)
def connected(cluster: object) -> Iterator[None]:
    from byzerllm.utils.client import ByzerLLM

    yield
    llm = ByzerLLM()
    for model in ("emb", "emb_rerank"):
        if llm.is_model_exist(model):
            llm.undeploy(model, force=True)


def test_embedding_model() -> None:
    from byzerllm.utils.client import ByzerLLM, InferBackend, LLMRequest
    from hf_models.minilm import minilm_folder

    llm = ByzerLLM()

    llm.setup_gpus_per_worker(0).setup_num_workers(1).setup_infer_backend(InferBackend.Transformers)
    llm.setup_cpus_per_worker(0.1)
    llm.deploy(
        model_path=str(minilm_folder()),
        pretrained_model_type="custom/bge",
        udf_name="emb",
        infer_params=ENVIRONMENT,
    )

    t = llm.emb("emb", LLMRequest(instruction="wow"))
    assert len(t[0].output) == 384
    assert all(isinstance(number, float) for number in t[0].output)
    assert sum(number * number for number in t[0].output) == pytest.approx(1, abs=1e-4)

    llm.setup_default_emb_model_name("emb")
    v = llm.emb(None, LLMRequest(instruction="你好"))
    assert len(v.output) == 384
    assert len(llm.emb_query("你好").output) == 384


def test_embedding_rerank_model() -> None:
    from byzerllm.utils.client import ByzerLLM, InferBackend
    from hf_models.reranker import reranker_folder

    llm = ByzerLLM()

    llm.setup_gpus_per_worker(0).setup_num_workers(1).setup_infer_backend(InferBackend.Transformers)
    llm.setup_cpus_per_worker(0.1)
    llm.deploy(
        model_path=str(reranker_folder()),
        pretrained_model_type="custom/bge_rerank",
        udf_name="emb_rerank",
        infer_params=ENVIRONMENT,
    )
    llm.setup_default_emb_model_name("emb_rerank")

    sentence_pairs_01 = ["query", "passage"]
    t1 = llm.emb_rerank(sentence_pairs=sentence_pairs_01)
    pair, score = t1[0].output
    assert pair == ["query", "passage"]
    assert isinstance(score, float)

    panda = (
        "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, "
        "is a bear species endemic to China."
    )
    sentence_pairs_02 = [["what is panda?", "hi"], ["what is panda?", panda]]
    t2 = llm.emb_rerank(sentence_pairs=sentence_pairs_02)
    (first, high), (second, low) = t2[0].output
    assert (first, second) == (["what is panda?", panda], ["what is panda?", "hi"])
    assert high > 0 > low
