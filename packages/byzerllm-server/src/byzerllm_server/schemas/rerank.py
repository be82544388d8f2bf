"""Reranking and scoring.

Sources: Cohere's and Jina's references of their rerank calls, vLLM's of its `/v1/rerank` and
`/v1/score`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from byzerllm_server.operations import Body
from byzerllm_server.schemas.openai import EmbeddingUsage, Text

MOST_DOCUMENTS = 4096


class Document(Struct, kw_only=True):
    text: str


class RerankRequest(Body, kw_only=True):
    """Documents to sort by what they have to do with a query.

    Scores are between 0 and 1 (the sigmoid of the model's logit); with `use_activation: false`
    they are the raw logits.
    """

    model: Text
    query: Text
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MOST_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None


class Ranked(Struct, kw_only=True):
    """`index` is the document's place in the request."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankAnswer(Struct, kw_only=True):
    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage


Texts = Annotated[list[Text], Meta(min_length=1, max_length=MOST_DOCUMENTS)]


class ScoreRequest(Body, kw_only=True):
    """Texts to compare: one with one, one with each of many, or each with its counterpart.

    Scores as of `/v1/rerank`. A model that makes vectors answers with their cosine.
    """

    model: Text
    text_1: Text | Texts
    text_2: Text | Texts
    use_activation: bool | None = None


class Score(Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreAnswer(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
