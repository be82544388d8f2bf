"""How often a small model gives a valid object or tool call, with and without constrained decoding.

Every request has a class, or tools, of its own, generated from the seed: nested classes, enums,
lists, number ranges, unions, optional fields. Both ways answer the same requests, in turns of ten:

    python benchmarks/structured.py [--requests 60] [--tokens 400] [--temperature 0.7] [--seed 1]

`at once` are answers that needed no second ask; `cut` are those that the token limit cut off;
tokens/s and seconds take prompts and second asks in. What counts as valid is checked here once
more: the value is an instance whose own JSON validates, the arguments fit the function's types.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import inspect
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union

import msgspec
import pydantic
from pydantic import Field
from rich.console import Console
from rich.table import Table

from byzerllm import ByzerLLM
from byzerllm.requests import ModelMeta

MODEL = "asked"
TURN = 10
SUBJECTS = (
    "a harbour town", "an old bicycle", "the planet Mars", "a bakery", "a chess player",
    "a mountain hut", "a jazz concert", "a train to Lisbon", "a garden in May", "a used car",
    "a history teacher", "a rescue dog", "a wooden table", "an opera house", "a sailing boat",
)  # fmt: skip
WORDS = ("name", "place", "owner", "label", "author", "motto", "contact", "material")
NUMBERS = ("age", "count", "level", "year", "pages", "seats", "floor", "rank")
MEASURES = ("price", "weight", "score", "height", "share", "speed")
FLAGS = ("is_open", "is_new", "is_public", "has_cover")
CHOICES = (
    ("red", "green", "blue"), ("small", "medium", "large"), ("low", "high"),
    ("spring", "summer", "autumn", "winter"), ("new", "used", "broken"), ("north", "south"),
)  # fmt: skip
VERBS = ("book", "find", "compare", "rate", "order", "plan", "cancel", "describe")


class Switched(ByzerLLM):
    """A client that can be told to overlook that the model's decoding can be constrained."""

    constrain = True

    async def _async_meta(self, model: str) -> ModelMeta:
        meta = await super()._async_meta(model)
        return meta if self.constrain else msgspec.structs.replace(meta, constrained=False)


class Made:
    """Classes and functions out of one source of randomness."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def subject(self) -> str:
        return self._random.choice(SUBJECTS)

    def response_class(self, index: int) -> type[pydantic.BaseModel]:
        return self._class(f"Record{index}", depth=1)

    def tools(self, index: int) -> list[Callable[..., Any]]:
        verbs = self._random.sample(VERBS, self._random.randint(1, 3))
        return [self._function(f"{verb}_{index}") for verb in verbs]

    def pick(self, tools: list[Any]) -> Any:
        """A tool choice that forces a call: of any tool, or of a certain one."""
        return self._random.choice(["required", self._random.choice(tools)])

    def _class(self, name: str, depth: int) -> type[pydantic.BaseModel]:
        fields: dict[str, Any] = {}
        for _ in range(self._random.randint(2, 5)):
            key, annotation = self._field(depth)
            fields[key] = annotation
        made: type[pydantic.BaseModel] = pydantic.create_model(name, **fields)
        return made

    def _field(self, depth: int) -> tuple[str, Any]:
        kinds = [self._text, self._whole, self._real, self._flag, self._choice, self._texts,
                 self._wholes, self._union, self._maybe]  # fmt: skip
        if depth:
            kinds += [self._nested, self._several]
        return self._random.choice(kinds)()

    def _text(self) -> tuple[str, Any]:
        key = self._random.choice(WORDS)
        return key, Annotated[str, Field(min_length=1, max_length=self._random.randint(10, 40))]

    def _whole(self) -> tuple[str, Any]:
        low = self._random.randint(0, 50)
        high = low + self._random.randint(1, 2000)
        return self._random.choice(NUMBERS), Annotated[int, Field(ge=low, le=high)]

    def _real(self) -> tuple[str, Any]:
        low = self._random.randint(0, 10)
        high = low + self._random.randint(1, 90)
        return self._random.choice(MEASURES), Annotated[float, Field(gt=low, le=high)]

    def _flag(self) -> tuple[str, Any]:
        return self._random.choice(FLAGS), bool

    def _choice(self) -> tuple[str, Any]:
        values = self._random.choice(CHOICES)
        named = enum.StrEnum("Kind", {value.upper(): value for value in values})  # type: ignore[misc]
        return "kind", self._random.choice([Literal[*values], named])

    def _texts(self) -> tuple[str, Any]:
        item = Annotated[str, Field(max_length=15)]
        return "tags", Annotated[list[item], Field(min_length=1, max_length=3)]  # type: ignore[valid-type]

    def _wholes(self) -> tuple[str, Any]:
        item = Annotated[int, Field(ge=1, le=6)]
        return "marks", Annotated[list[item], Field(min_length=2, max_length=4)]  # type: ignore[valid-type]

    def _union(self) -> tuple[str, Any]:
        return "size", Union[Annotated[int, Field(ge=1, le=99)], Literal["unknown", "varies"]]  # noqa: UP007

    def _maybe(self) -> tuple[str, Any]:
        key, annotation = self._random.choice([self._whole, self._text, self._flag])()
        return f"maybe_{key}", (Optional[annotation], None)  # noqa: UP045

    def _nested(self) -> tuple[str, Any]:
        return "part", self._class(f"Part{self._random.randrange(1000)}", 0)

    def _several(self) -> tuple[str, Any]:
        part = self._class(f"Item{self._random.randrange(1000)}", 0)
        return "items", Annotated[list[part], Field(min_length=1, max_length=2)]  # type: ignore[valid-type]

    def _function(self, name: str) -> Callable[..., Any]:
        def tool(**arguments: Any) -> str:
            return name

        parameters = {}
        for _ in range(self._random.randint(1, 3)):
            key, annotation = self._field(depth=0)
            default: Any = inspect.Parameter.empty
            if isinstance(annotation, tuple):
                annotation, default = annotation
            parameters[key] = (annotation, default)
        # Those without a default come first, as Python wants it.
        ordered = sorted(parameters.items(), key=lambda item: item[1][1] is None)
        tool.__name__ = tool.__qualname__ = name
        tool.__doc__ = f"{name.partition('_')[0].capitalize()} something for the user."
        tool.__annotations__ = {key: annotation for key, (annotation, _) in ordered}
        tool.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
                for key, (annotation, default) in ordered
            ]
        )
        return tool


@dataclass
class Counts:
    """What came of the requests of one row; seconds are of the wall clock."""

    requests: int = 0
    valid: int = 0
    at_once: int = 0
    cut: int = 0
    invalid: int = 0
    tokens: int = 0
    seconds: float = 0.0
    example: str = ""

    def add(self, valid: bool, metadata: Any) -> None:
        self.requests += 1
        self.tokens += metadata["generated_tokens_count"]
        reason = str(metadata.get("reason", ""))
        if valid:
            self.valid += 1
            self.at_once += metadata["steps"] == 1
        elif "token limit" in reason:
            self.cut += 1
        else:
            self.invalid += 1
            self.example = self.example or reason


@dataclass(frozen=True)
class Ask:
    """How a client is asked, and whether its answer is valid."""

    options: dict[str, Any]
    question: str
    holds: Callable[[Any], bool]


def object_ask(made: Made, index: int) -> Ask:
    cls = made.response_class(index)

    def holds(answer: Any) -> bool:
        if not isinstance(answer.value, cls):
            return False
        cls.model_validate_json(answer.value.model_dump_json())
        return True

    return Ask({"response_class": cls}, f"Describe {made.subject()}, number {index}.", holds)


def tool_ask(made: Made, index: int) -> Ask:
    tools = made.tools(index)
    choice = made.pick(tools)
    offered = {tool.__name__: tool for tool in tools}

    def holds(answer: Any) -> bool:
        for call in answer.tool_calls:
            types = inspect.signature(offered[call.name]).parameters
            for name, value in call.arguments.items():
                pydantic.TypeAdapter(types[name].annotation).validate_python(value)
        return bool(answer.tool_calls)

    question = f"I want {made.subject()} for {index} people. Take care of it."
    return Ask({"tools": tools, "tool_choice": choice}, question, holds)


class Bench:
    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.llm = Switched(runtime="local")
        self.llm.setup_worker_concurrency(options.concurrency)
        self.llm.deploy(options.model, udf_name=MODEL, infer_params={"n_ctx": 4096})
        self.llm.setup_default_model_name(MODEL)

    async def run(self) -> None:
        kinds = {"objects": object_ask, "tool calls": tool_ask}
        rows: dict[tuple[str, bool], Counts] = {}
        for kind, make in kinds.items():
            made = Made(self.options.seed)
            asks = [make(made, index) for index in range(self.options.requests)]
            for begin in range(0, len(asks), TURN):
                for constrain in (True, False):
                    counts = rows.setdefault((kind, constrain), Counts())
                    await self._turn(asks[begin : begin + TURN], begin, constrain, counts)
                    self.console.print(f"{kind}, {_way(constrain)}: {counts.valid} valid so far")
        self._show(rows)

    async def _turn(self, asks: list[Ask], begin: int, constrain: bool, counts: Counts) -> None:
        self.llm.constrain = constrain
        room = asyncio.Semaphore(self.options.concurrency)

        async def limited(work: Coroutine[Any, Any, Any]) -> Any:
            async with room:
                return await work

        start = time.perf_counter()
        answers = await asyncio.gather(
            *(limited(self._answer(ask, begin + index)) for index, ask in enumerate(asks))
        )
        counts.seconds += time.perf_counter() - start
        for ask, answer in zip(asks, answers, strict=True):
            counts.add(ask.holds(answer), answer.metadata)

    async def _answer(self, ask: Ask, index: int) -> Any:
        config = {
            "max_length": self.options.tokens,
            "temperature": self.options.temperature,
            "seed": self.options.seed + index,
        }
        conversation = [{"role": "user", "content": ask.question}]
        [answer] = await self.llm.async_chat_oai(conversation, llm_config=config, **ask.options)
        return answer

    def _show(self, rows: dict[tuple[str, bool], Counts]) -> None:
        table = Table(
            title=f"{self.options.model}, llama.cpp, temperature {self.options.temperature}, at "
            f"most {self.options.tokens} tokens, {self.options.concurrency} at once, seed "
            f"{self.options.seed}"
        )
        for title in ("", "asked", "valid", "at once", "cut", "invalid", "tokens/s", "seconds"):
            table.add_column(title, no_wrap=True)
        for (kind, constrain), counts in rows.items():
            table.add_row(
                f"{kind}, {_way(constrain)}",
                str(counts.requests),
                str(counts.valid),
                str(counts.at_once),
                str(counts.cut),
                str(counts.invalid),
                f"{counts.tokens / counts.seconds:.1f}",
                f"{counts.seconds:.0f}",
            )
        self.console.print(table)
        for (kind, constrain), counts in rows.items():
            if counts.example:
                first = counts.example[:200]
                self.console.print(f"first invalid, {kind}, {_way(constrain)}: {first}")


def _way(constrain: bool) -> str:
    return "constrained" if constrain else "free"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo:smollm2-135m-instruct", help="path or reference")
    parser.add_argument("--requests", type=int, default=60, help="of each kind")
    parser.add_argument("--tokens", type=int, default=400, help="most new tokens per answer")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--concurrency", type=int, default=4, help="requests at once")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if min(options.requests, options.tokens, options.concurrency) < 1:
        parser.error("--requests, --tokens and --concurrency are at least 1")
    bench = Bench(options, Console())
    try:
        asyncio.run(bench.run())
    finally:
        bench.llm.undeploy(MODEL, force=True)


if __name__ == "__main__":
    main()
