"""Pydantic answers and tool calls of the real small model, through the client."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import Field

from byzerllm import ByzerLLM

pytestmark = pytest.mark.model


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


class Closed(pydantic.BaseModel):
    """Without more properties than its own, which a small model writes until its limit."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Author(Closed):
    name: str = Field(max_length=20)
    age: int = Field(ge=18, le=30)


class Book(Closed):
    title: str = Field(max_length=25)
    author: Author
    mood: Mood
    tags: list[Annotated[str, Field(max_length=10)]] = Field(min_length=1, max_length=2)
    price: Annotated[int, Field(ge=0, le=200)] | Literal["free"]
    sequel: bool | None = None


class Point(Closed):
    x: float = Field(gt=0, le=5, multiple_of=0.25)
    y: int = Field(ge=-3, le=-1)


def weather(
    city: Annotated[str, Field(max_length=20)],
    days: Annotated[int, Field(ge=1, le=7)],
    unit: Literal["c", "f"] = "c",
) -> str:
    """Forecast the weather."""
    return f"{city} {days} {unit}"


def add(
    first: Annotated[int, Field(ge=0, le=99)], second: Annotated[int, Field(ge=0, le=99)]
) -> int:
    """Add two numbers."""
    return first + second


@pytest.fixture(scope="module")
def llm(model_path: Any) -> Iterator[ByzerLLM]:
    client = ByzerLLM(runtime="local")
    client.setup_worker_concurrency(2)
    client.deploy(str(model_path), udf_name="small", infer_params={"n_ctx": 2048})
    client.setup_default_model_name("small")
    yield client
    client.undeploy("small", force=True)


@pytest.mark.parametrize("wanted", [Book, Point, list[Point]])
def test_a_small_model_gives_valid_objects(llm: ByzerLLM, wanted: Any) -> None:
    config = {"temperature": 0.9, "seed": 7, "max_length": 300}
    [answer] = llm.chat_oai(
        [{"role": "user", "content": "Tell me about rabbits."}],
        response_class=Annotated[wanted, Field(max_length=2)] if wanted == list[Point] else wanted,
        llm_config=config,
    )
    value = pydantic.TypeAdapter(wanted).validate_python(answer.value)
    assert value
    assert answer.metadata.steps == 1


@pytest.mark.parametrize("choice", ["required", weather])
def test_a_forced_call_of_a_small_model_validates(llm: ByzerLLM, choice: Any) -> None:
    [answer] = llm.chat_oai(
        [{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[weather, add],
        tool_choice=choice,
        execute_tool=True,
        llm_config={"temperature": 0.9, "seed": 7, "max_length": 300},
    )
    assert answer.metadata.steps == 1
    assert answer.tool_calls
    assert len(answer.values) == len(answer.tool_calls), answer.metadata
    if choice is weather:
        city, days, unit = answer.values[0].rsplit(" ", 2)
        assert len(city) <= 20
        assert 1 <= int(days) <= 7
        assert unit in "cf"
