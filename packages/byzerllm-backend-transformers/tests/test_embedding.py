"""Vectors: MiniLM by the backend and by sentence-transformers, families, lengths, bad input."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from byzerllm import ByzerLLM
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ModelLoadError,
    ModelSourceError,
    ParameterError,
)
from byzerllm.requests import EmbedRequest, EmbedResult, GenerateRequest, RerankRequest
from byzerllm.testing import Loaded
from byzerllm_backend_transformers.embedding import Embedding
from hf_models.minilm import made_of_minilm, minilm_folder
from hf_models.reranker import reranker_folder

pytestmark = pytest.mark.model
Load = Callable[..., Loaded]
_ids = itertools.count()
TEXTS = [
    "wow",
    "The giant panda is a bear species endemic to China.",
    "北京是中国的首都。",
    "a " * 40,
    "word " * 600,
    "😀 naïve café",
]
ENGLISH_INSTRUCTION = "Represent this sentence for searching relevant passages: "


def words(count: int) -> str:
    return " ".join(random.choices(("river", "stone", "the", "quick", "jumps", "blue"), k=count))


def embed(loaded: Loaded, texts: list[Any], **more: Any) -> EmbedResult:
    request = EmbedRequest(id=f"e{next(_ids)}", texts=texts, **more)
    result: EmbedResult = loaded.run(loaded.backend.embed(request))
    return result


def vectors(loaded: Loaded, texts: list[Any], **more: Any) -> np.ndarray[Any, Any]:
    return np.array(embed(loaded, texts, **more).vectors)


@pytest.fixture(scope="module")
def reference() -> Any:
    """sentence-transformers itself."""
    return sentence_transformers.SentenceTransformer(str(minilm_folder()), device="cpu")


@pytest.fixture(scope="module")
def minilm(load: Load) -> Loaded:
    return load(minilm_folder(), threads=1)


@pytest.fixture(scope="module")
def bge(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A plain BERT with an English vocabulary, as if it were a BGE."""
    folder = made_of_minilm(tmp_path_factory.mktemp("models") / "bge", plain=True)
    return load(folder, model_type="custom/bge", threads=1)


def test_vectors_equal_those_of_sentence_transformers(minilm: Loaded, reference: Any) -> None:
    assert np.abs(vectors(minilm, TEXTS) - reference.encode(TEXTS)).max() < 1e-5
    one = vectors(minilm, ["wow"])
    assert np.abs(one - reference.encode(["wow"])).max() < 1e-5


def test_company_does_not_change_vectors(minilm: Loaded, reference: Any) -> None:
    texts = [words(1 + 7 * n % 60) for n in range(24)]

    async def together() -> list[EmbedResult]:
        requests = [
            EmbedRequest(id=f"m{at}", texts=texts[at : at + 3]) for at in range(0, len(texts), 3)
        ]
        return list(await asyncio.gather(*map(minilm.backend.embed, requests)))

    found = [vector for result in minilm.run(together()) for vector in result.vectors]
    assert np.abs(np.array(found) - reference.encode(texts)).max() < 1e-5


def test_tokens_are_counted(minilm: Loaded) -> None:
    # [CLS] wow [SEP]; a text that is too long is cut at the folder's 256.
    assert embed(minilm, ["wow"]).usage.prompt_tokens == 3
    assert embed(minilm, ["wow", "word " * 600]).usage.prompt_tokens == 3 + 256
    assert minilm.run(minilm.backend.tokenize("hello there")) == [7592, 2045]
    assert minilm.run(minilm.backend.tokenize("")) == []
    assert len(minilm.run(minilm.backend.tokenize("word " * 600))) == 600


def test_meta(minilm: Loaded) -> None:
    meta = minilm.run(minilm.backend.meta())
    assert (meta.task, meta.backend, meta.max_model_len) == ("embedding", "transformers", 256)
    assert meta.embedding_mode
    assert meta.architectures == ["BertModel"]
    assert not meta.support_stream
    assert any("needs about" in report for report in minilm.reports)


def test_a_plain_encoder_is_mean_pooled(load: Load, reference: Any, tmp_path: Path) -> None:
    folder = made_of_minilm(tmp_path / "plain", plain=True)
    for model_type in ("custom/auto", "custom/m3e"):
        found = vectors(load(folder, model_type=model_type, threads=1), TEXTS[:4])
        lengths = np.linalg.norm(found, axis=1)
        assert np.allclose(lengths, 1) == (model_type == "custom/m3e")
        unit = found / lengths[:, None]
        assert np.abs(unit - reference.encode(TEXTS[:4])).max() < 1e-5


def test_a_plain_bge_takes_its_first_token(bge: Loaded, reference: Any) -> None:
    tokens = reference.encode(TEXTS[:2], output_value="token_embeddings")
    first = np.array([row[0].cpu().numpy() for row in tokens])
    first /= np.linalg.norm(first, axis=1)[:, None]
    assert np.abs(vectors(bge, TEXTS[:2]) - first).max() < 1e-5


def test_the_instruction_of_bge(bge: Loaded, load: Load, tmp_path: Path) -> None:
    query = "what is a panda?"
    asked = vectors(bge, [query], query=True)
    assert np.allclose(asked, vectors(bge, [ENGLISH_INSTRUCTION + query]), atol=1e-6)
    assert not np.allclose(asked, vectors(bge, [query]), atol=1e-3)
    more = embed(bge, [query], query=True).usage.prompt_tokens
    assert more > embed(bge, [query]).usage.prompt_tokens + 5
    path = bge.backend.task.folder.path
    none = load(path, model_type="custom/bge", query_instruction="", threads=1)
    assert np.allclose(vectors(none, [query], query=True), vectors(bge, [query]), atol=1e-6)
    own = made_of_minilm(tmp_path / "own", prompts={"query": "query: ", "passage": "passage: "})
    prompted = load(own, model_type="custom/bge", threads=1)
    plain = load(minilm_folder(), threads=1)
    for text, more_of in (("query: panda", {"query": True}), ("passage: panda", {})):
        assert np.allclose(
            vectors(prompted, ["panda"], **more_of), vectors(plain, [text]), atol=1e-6
        )
    named = vectors(prompted, ["panda"], extra={"prompt_name": "query"})
    assert np.allclose(named, vectors(plain, ["query: panda"]), atol=1e-6)
    with pytest.raises(ParameterError, match=r"no prompt 'quarry'; it has .*passage, query"):
        embed(prompted, ["panda"], extra={"prompt_name": "quarry"})


def test_the_chinese_instruction_of_bge() -> None:
    from byzerllm_backend_transformers.families import family_of

    assert "为这个句子生成表示" in family_of("custom/bge").query_instructions[21128]
    assert not family_of("custom/m3e").query_instructions


def test_a_model_without_an_instruction_knows_no_queries(minilm: Loaded) -> None:
    assert vectors(minilm, ["wow"], query=True).tolist() == vectors(minilm, ["wow"]).tolist()


def test_lengths_of_vectors(load: Load, minilm: Loaded, tmp_path: Path) -> None:
    raw = load(minilm_folder(), normalize_embeddings=False, threads=1)
    one, unit = vectors(raw, TEXTS[:3]), vectors(minilm, TEXTS[:3])
    assert not np.allclose(np.linalg.norm(one, axis=1), 1, atol=1e-2)
    assert np.allclose(one / np.linalg.norm(one, axis=1)[:, None], unit, atol=1e-5)
    folder = made_of_minilm(tmp_path / "doll", config={"matryoshka_dimensions": [64, 128]})
    doll = load(folder, threads=1)
    cut = vectors(doll, TEXTS[:3], dimensions=64)
    wanted = unit[:, :64] / np.linalg.norm(unit[:, :64], axis=1)[:, None]
    assert np.allclose(cut, wanted, atol=1e-5)
    assert vectors(doll, ["wow"], dimensions=384).shape == (1, 384)
    with pytest.raises(CapabilityError, match="384 numbers; or one of 64, 128"):
        embed(doll, ["wow"], dimensions=100)
    for wrong in (64, 385, 10_000):
        with pytest.raises(CapabilityError, match="may not be cut"):
            embed(minilm, ["wow"], dimensions=wrong)
    any_length = made_of_minilm(tmp_path / "any", config={"is_matryoshka": True})
    anything = load(any_length, threads=1)
    assert vectors(anything, ["wow"], dimensions=7).shape == (1, 7)
    with pytest.raises(CapabilityError, match="any smaller number"):
        embed(anything, ["wow"], dimensions=385)


def test_tokens_that_are_looked_at(load: Load, minilm: Loaded) -> None:
    short = load(minilm_folder(), max_seq_length=8, threads=1)
    assert embed(short, ["word " * 600]).usage.prompt_tokens == 8
    long = load(minilm_folder(), max_seq_length=512, threads=1)
    assert embed(long, ["word " * 600]).usage.prompt_tokens == 512
    with pytest.raises(ModelLoadError, match="max_seq_length 513 is more than the 512"):
        load(minilm_folder(), max_seq_length=513, threads=1)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "no texts to embed"),
        ([""], "the text is empty"),
        (["a", " \n"], "text 1 is empty"),
        (["a", 5], "text 1 is a int; it must be text"),
        (["a", None], "text 1 is a NoneType"),
        (["a", ["b"]], "text 1 is a list"),
        (["half \ud83d"], "half of a character"),
    ],
)
def test_bad_texts(minilm: Loaded, texts: list[Any], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        embed(minilm, texts)
    assert len(embed(minilm, ["wow"]).vectors) == 1


def test_bad_requests(minilm: Loaded) -> None:
    with pytest.raises(ParameterError, match="unknown parameter 'colour'"):
        embed(minilm, ["wow"], extra={"colour": "red"})
    with pytest.raises(CapabilityError, match="rerank"):
        minilm.run(minilm.backend.rerank(RerankRequest(id="r", pairs=[("a", "b")])))
    with pytest.raises(CapabilityError, match="chat"):
        minilm.backend.generate(GenerateRequest(id="g", prompt="x"))


def test_wrong_folders(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="deploy it as custom/bge_rerank"):
        load(reranker_folder(), model_type="custom/bge")
    many = made_of_minilm(tmp_path / "many", model_type="SparseEncoder")
    with pytest.raises(ModelLoadError, match="holds a SparseEncoder"):
        load(many, model_type="custom/bge")
    chat = made_of_minilm(
        tmp_path / "chat", plain=True, config={"architectures": ["LlamaForCausalLM"]}
    )
    with pytest.raises(ModelLoadError, match="holds LlamaForCausalLM, no model of vectors"):
        load(chat, model_type="custom/m3e")
    half = made_of_minilm(tmp_path / "half")
    (half / "tokenizer.json").unlink()
    (half / "vocab.txt").unlink()
    with pytest.raises(ModelSourceError, match="half has no tokenizer"):
        load(half)
    own = made_of_minilm(tmp_path / "own")
    modules = (own / "modules.json").read_text()
    own_modules = modules.replace("sentence_transformers.models.Pooling", "pooling_of_ours.Pooling")
    (own / "modules.json").write_text(own_modules)
    with pytest.raises(ByzerLLMError, match="trust_remote_code"):
        load(own)


def test_a_request_that_is_cancelled_stops_soon(minilm: Loaded) -> None:
    task = minilm.backend.task
    assert isinstance(task, Embedding)

    async def leave() -> float:
        texts = [words(200) for _ in range(400)]
        work = asyncio.ensure_future(task.embed(EmbedRequest(id="long", texts=texts)))
        await asyncio.sleep(0.3)
        assert task.stats()["texts"] > 300
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert task.stats() == {"requests": 0, "texts": 0}
        start = time.monotonic()
        await task.embed(EmbedRequest(id="next", texts=["wow"]))
        return time.monotonic() - start

    assert minilm.run(leave()) < 20


def test_closing_answers_whoever_waits() -> None:
    from byzerllm_backend_transformers import TRANSFORMERS

    loaded = Loaded(TRANSFORMERS, minilm_folder(), threads=1)

    async def close() -> None:
        request = EmbedRequest(id="c", texts=[words(100) for _ in range(200)])
        work = asyncio.ensure_future(loaded.backend.embed(request))
        await asyncio.sleep(0.1)
        await loaded.backend.close()
        with pytest.raises(BackendError, match="closed"):
            await work
        with pytest.raises(BackendError, match="closed"):
            await loaded.backend.embed(EmbedRequest(id="d", texts=["x"]))
        with pytest.raises(BackendError, match="closed"):
            await loaded.backend.tokenize("x")

    loaded.run(close())
    loaded.close()


@pytest.fixture(scope="module")
def deployed() -> Iterator[ByzerLLM]:
    """A client with MiniLM in this process, 32 requests at once."""
    client = ByzerLLM(runtime="local")
    client.setup_num_workers(1).setup_worker_concurrency(32).setup_default_emb_model_name("emb")
    client.setup_infer_backend("transformers")
    client.deploy(
        model_path=str(minilm_folder()),
        pretrained_model_type="custom/bge",
        udf_name="emb",
        infer_params={"threads": 1, "query_instruction": "search: "},
    )
    yield client
    client.undeploy("emb", force=True)


def test_many_callers(deployed: ByzerLLM, reference: Any) -> None:
    """32 callers at once, through the worker's host."""
    texts = [[words(5 + 3 * caller % 11), words(8)] for caller in range(32)]

    async def one(caller: int) -> list[list[float]]:
        found = []
        for text in texts[caller]:
            request = EmbedRequest(id=f"c{caller}-{text}", texts=[text])
            result = await deployed.async_send(request, "emb")
            assert isinstance(result, EmbedResult)
            found += result.vectors
        return found

    async def everybody() -> list[list[list[float]]]:
        return list(await asyncio.gather(*map(one, range(32))))

    found = asyncio.run(everybody())
    wanted = [reference.encode(pair) for pair in texts]
    assert np.abs(np.array(found) - np.array(wanted)).max() < 1e-5


def test_the_client(deployed: ByzerLLM, reference: Any) -> None:
    found = deployed.emb(None, ["wow", "a panda"])
    assert np.allclose(list(found.vectors()), reference.encode(["wow", "a panda"]), atol=1e-5)
    assert found.metadata.input_tokens_count == 3 + 4
    query = deployed.emb_query("panda").output
    assert np.allclose(query, reference.encode(["search: panda"])[0], atol=1e-5)
    with pytest.raises(CapabilityError, match="384 numbers"):
        deployed.emb(None, ["wow"], dimensions=10)
    with pytest.raises(ParameterError, match="text 1 is empty"):
        deployed.emb(None, ["wow", ""])
    assert deployed.tokenize("emb", "hello") == [7592]
    assert deployed.get_meta("emb")["embedding_mode"]


def test_a_text_that_does_not_fit_into_memory(
    minilm: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own words where there is no room for a tensor, and its own error of GPUs."""
    task = minilm.backend.task
    real = task.pass_through

    def narrow(features: Any, **options: Any) -> Any:
        if features["input_ids"].shape[1] > 100:
            return torch.empty(1 << 58)
        if len(features["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(features, **options)

    monkeypatch.setattr(task, "pass_through", narrow)
    assert len(embed(minilm, ["wow"] * 9).vectors) == 9
    with pytest.raises(BackendError, match="not enough memory for this request"):
        embed(minilm, ["wow", "word " * 200])
    assert len(embed(minilm, ["wow"]).vectors) == 1
