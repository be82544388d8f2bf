"""What function calling and pydantic answers cost on top of a plain chat.

The echo backend answers at once with a fixed text, so that what is measured is this library:
prompt, schema, parsing, validation. Rounds alternate:

    python benchmarks/python_cost.py [--rounds 7] [--calls 300]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
from rich.console import Console
from rich.table import Table

from byzerllm import ByzerLLM
from byzerllm.client import schema


class Author(pydantic.BaseModel):
    name: str = pydantic.Field(description="full name")
    age: int = pydantic.Field(ge=0, le=150)


class Book(pydantic.BaseModel):
    """A book of the library."""

    title: str
    authors: list[Author]
    kind: Literal["novel", "poems", "essays"]
    price: float | None = None


BOOK = Book(title="T", authors=[Author(name="A", age=40)] * 3, kind="poems", price=9.5)


def weather(
    city: Annotated[str, "where"],
    days: Annotated[int, pydantic.Field(ge=1, le=14)] = 1,
    unit: Annotated[str, "of temperature", {"enum": ["c", "f"]}] = "c",
) -> str:
    """Tell the weather of the next days.

    Args:
        days: how many
    """
    return f"{city} {days} {unit}"


def compute_range(count: Annotated[int, "how many"], unit: Literal["day", "week"]) -> list[str]:
    """Compute a range of dates."""
    return [str(count), unit]


CALL = json.dumps({"tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": 3}}]})


def seconds(what: Callable[[], Any], calls: int) -> float:
    """Milliseconds of one call, the mean of many."""
    start = time.perf_counter()
    for _ in range(calls):
        what()
    return (time.perf_counter() - start) / calls * 1000


def deployed(answer: str) -> ByzerLLM:
    llm = ByzerLLM(runtime="local").setup_infer_backend("echo")
    name = f"cost-{len(llm.models())}"
    llm.deploy(udf_name=name, infer_params={"answer": answer})
    return llm.setup_default_model_name(name)


def forget_schemas() -> None:
    schema._known.clear()
    schema._type_adapter.cache_clear()
    schema._class_schema.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=300)
    given = parser.parse_args()
    answers, calls = deployed(BOOK.model_dump_json()), deployed(CALL)
    tools = [weather, compute_range]

    def pydantic_answer() -> None:
        assert answers.chat_oai("Which book?", response_class=Book)[0].value == BOOK

    def tool_call() -> None:
        assert calls.chat_oai("Weather?", tools=tools, execute_tool=True)[0].values == ["Paris 3 c"]

    def cold(what: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            forget_schemas()
            what()

        return run

    cases: dict[str, Callable[[], Any]] = {
        "plain chat_oai, pydantic's text": lambda: answers.chat_oai("Which book?"),
        "response_class": pydantic_answer,
        "response_class, schemas made anew": cold(pydantic_answer),
        "plain chat_oai, the tool call's text": lambda: calls.chat_oai("Weather?"),
        "tools, executed": tool_call,
        "tools, executed, schemas made anew": cold(tool_call),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for what in cases.values():
        what()
    for _ in range(given.rounds):
        for name, what in cases.items():
            found[name].append(seconds(what, given.calls))
    table = Table("what", "ms per call, median (min–max)", "on top of the plain chat")
    base = 0.0
    for name, times in found.items():
        median = statistics.median(times)
        plain = name.startswith("plain")
        base = median if plain else base
        spread = f"{median:.3f} ({min(times):.3f}–{max(times):.3f})"
        table.add_row(name, spread, "" if plain else f"+{median - base:.3f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()
