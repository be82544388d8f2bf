"""Vectors of texts, from a model that answers too and from one that only embeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from byzerllm.errors import CapabilityError, ContextLengthError, ParameterError
from byzerllm.requests import EmbedRequest

pytestmark = pytest.mark.model


def vectors(model: Any, *texts: str) -> np.ndarray[Any, Any]:
    result = model.run(model.backend.embed(EmbedRequest(id="e", texts=list(texts))))
    assert len(result.vectors) == len(texts)
    return np.asarray(result.vectors)


def cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_one_vector_per_text_in_their_order(model: Any) -> None:
    texts = [
        "A cat sits on the mat.",
        "A kitten sits on the rug.",
        "GDP fell in the third quarter.",
    ]
    together = vectors(model, *texts)
    assert together.shape == (3, 576)
    for text, vector in zip(texts, together, strict=True):
        assert cosine(vectors(model, text)[0], vector) > 0.999
    assert cosine(together[0], together[1]) > cosine(together[0], together[2])


def test_many_texts_take_several_batches(model: Any) -> None:
    texts = [f"Text number {n} of many." for n in range(70)]
    many = vectors(model, *texts)
    assert many.shape == (70, 576)
    assert cosine(many[69], vectors(model, texts[69])[0]) > 0.999


def test_usage_counts_tokens(model: Any) -> None:
    result = model.run(model.backend.embed(EmbedRequest(id="e", texts=["one two", "three"])))
    assert result.usage.prompt_tokens == len(model.run(model.backend.tokenize("one two"))) + len(
        model.run(model.backend.tokenize("three"))
    )


def test_vectors_are_the_mean_of_llama_cpps(model: Any, model_path: Any) -> None:
    import llama_cpp

    llama = llama_cpp.Llama(
        str(model_path),
        n_ctx=256,
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        verbose=False,
    )
    try:
        theirs = np.asarray(llama.create_embedding("A cat sits.")["data"][0]["embedding"])
    finally:
        llama.close()
    ours = vectors(model, "A cat sits.")[0]
    assert cosine(ours, theirs) > 0.999
    assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=0.02)


def test_texts_that_cannot_be_embedded(model: Any) -> None:
    with pytest.raises(ParameterError, match="text 1 is empty"):
        vectors(model, "a", "")
    with pytest.raises(ParameterError, match="no texts"):
        vectors(model)
    with pytest.raises(ContextLengthError, match="1,024") as got:
        vectors(model, "word " * 2000)
    assert got.value.limit == 1024
    assert got.value.tokens > 2000


def test_embedding_while_an_answer_grows(model: Any) -> None:
    import asyncio

    async def both() -> Any:
        return await asyncio.gather(
            model.gather(model.request("Tell a story.", max_tokens=20, ignore_eos=True)),
            model.backend.embed(EmbedRequest(id="e", texts=["a cat"] * 10)),
        )

    answer, embedded = model.run(both())
    assert answer.usage.completion_tokens == 20
    assert len(embedded.vectors) == 10


def test_a_model_that_only_embeds(load: Callable[..., Any]) -> None:
    model = load(
        embedding=True, n_ctx=256, pooling_type="last", normalize_embeddings=True, verbose=False
    )
    meta = model.run(model.backend.meta())
    assert meta.embedding_mode
    assert not meta.support_stream
    assert np.linalg.norm(vectors(model, "a cat")[0]) == pytest.approx(1)
    with pytest.raises(CapabilityError, match="only embeds"):
        model.ask("hello")
    model.run(model.backend.health())
