"""Generated functions: what is asked, what is run (in the real sandbox), kept and asked again."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic
import pytest

from byzerllm import ByzerLLM
from byzerllm.client.implement import ImplementationCache, Implementer, Target
from byzerllm.errors import (
    GeneratedFunctionError,
    ParameterError,
    SandboxTimeoutError,
    SandboxUnavailableError,
)

Scripted = Callable[..., Any]


class Time(pydantic.BaseModel):
    time: str = pydantic.Field(description="时间，时间格式为 yyyy-MM-dd")


class TimeRange(pydantic.BaseModel):
    """时间区间"""

    start: str
    end: str


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Colour(enum.Enum):
    RED = "red"


def calculate_time_range():  # type: ignore[no-untyped-def]
    """
    计算时间区间，时间格式为 yyyy-MM-dd.
    """


def add(a: int, b: int = 2) -> int:
    """Adds two numbers."""
    raise NotImplementedError


def block(code: str) -> str:
    return f"Let me think.\n\n```python\n{code}\n```\nThat is all."


RANGE = block(
    "def calculate_time_range():\n    return {'start': '2023-03-01', 'end': '2023-07-31'}"
)
ADD = block("def add(a, b=2):\n    return a + b")
BAD_ADD = block("def add(a, b=2):\n    return a / 0")


def impl(llm: ByzerLLM, cache: ImplementationCache | None = None, **options: Any) -> Implementer:
    """`llm.impl` of a client that has this cache, or a new one."""
    llm._written = cache or ImplementationCache()
    return llm.impl(**options)


# chat_oai.


def test_chat_oai_runs_the_function_that_the_model_wrote(scripted: Scripted) -> None:
    script = scripted(RANGE)
    (answer,) = script.llm.chat_oai(
        [{"role": "user", "content": "去年三月到七月"}],
        impl_func=calculate_time_range,
        response_class=TimeRange,
        execute_impl_func=True,
    )
    assert answer.value == TimeRange(start="2023-03-01", end="2023-07-31")
    assert answer.metadata.get("resason", "") == ""
    assert "return {'start'" in answer.metadata["code"]
    assert "```python" in answer.output
    asked = script.asked()
    assert "去年三月到七月" in asked
    assert "calculate_time_range" in asked
    assert "请" in asked
    assert '"start"' in asked


def test_chat_oai_only_writes_unless_it_is_told_to_run(scripted: Scripted) -> None:
    script = scripted(block("def add(a, b=2):\n    while True: pass"))
    (answer,) = script.llm.chat_oai("add", impl_func=add)
    assert answer.value is None
    assert answer.metadata["code"].startswith("def add")
    assert "reason" not in answer.metadata


def test_chat_oai_passes_parameters(scripted: Scripted) -> None:
    script = scripted(ADD)
    (answer,) = script.llm.chat_oai(
        "add", impl_func=add, impl_func_params={"a": "3"}, execute_impl_func=True
    )
    assert answer.value == 5
    with pytest.raises(ParameterError, match="c: "):
        script.llm.chat_oai("x", impl_func=add, impl_func_params={"c": 3}, execute_impl_func=True)
    assert len(script.requests) == 1


def test_chat_oai_of_asynchronous_code(scripted: Scripted) -> None:
    script = scripted(BAD_ADD, ADD)

    async def ask() -> Any:
        options = {"impl_func_params": {"a": 1}, "execute_impl_func": True}
        return await script.llm.async_chat_oai("add", impl_func=add, **options)

    (answer,) = asyncio.run(ask())
    assert answer.value == 3
    assert len(script.requests) == 2


def test_a_failing_function_is_asked_for_again_with_its_traceback(scripted: Scripted) -> None:
    script = scripted(BAD_ADD, ADD)
    options = {"impl_func_params": {"a": 1}, "execute_impl_func": True}
    (answer,) = script.llm.chat_oai("add", impl_func=add, **options)
    assert answer.value == 3
    assert answer.metadata["steps"] == 2
    assert answer.metadata["generated_tokens_count"] == 4
    first, second = script.requests
    assert first.id != second.id
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1]["content"] == BAD_ADD
    assert "ZeroDivisionError" in script.asked()
    assert 'File "<generated>", line 2, in add' in script.asked()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot do that.", "no Python code block"),
        ("```sql\nselect 1\n```", "no Python code block"),
        (block("def add(:"), "does not parse"),
        (block("def plus(a, b): return a + b"), "does not define a function 'add'"),
        (BAD_ADD, "ZeroDivisionError: division by zero"),
        (block("def add(a, b):\n    return 'three'"), "returned is no int"),
        (block("def add(a, b):\n    return lambda: 1"), "is not data"),
        (block("import sys\ndef add(a, b):\n    sys.exit()"), "SystemExit"),
    ],
)
def test_what_fails_twice_is_a_reason(scripted: Scripted, answer: str, reason: str) -> None:
    script = scripted(answer, answer)
    options = {"impl_func_params": {"a": 1}, "execute_impl_func": True}
    (done,) = script.llm.chat_oai("add", impl_func=add, **options)
    assert done.value is None
    assert reason in done.metadata["reason"]
    assert done.metadata["resason"] == done.metadata["reason"]
    assert done.metadata.resason == done.metadata["reason"]
    assert len(script.requests) == 2
    assert reason in script.asked()


def test_a_prompt_of_ones_own(scripted: Scripted) -> None:
    script = scripted(RANGE, block("def add(a, b):\n    return [a, b]"))
    seen: list[Any] = []

    def form(prompt: str, func: Any, cls: Any) -> str:
        seen.append((prompt, func, cls))
        schema = cls if isinstance(cls, str) else json.dumps(cls.model_json_schema())
        return f"write {func.__name__} for {prompt}: {schema}"

    script.llm.setup_impl_func_format_func(script.llm._model(None), form)
    options: dict[str, Any] = {"execute_impl_func": True, "response_class": TimeRange}
    script.llm.chat_oai("March", impl_func=calculate_time_range, **options)
    assert seen == [("March", calculate_time_range, TimeRange)]
    assert script.asked().startswith("write calculate_time_range for March: {")
    options = {"execute_impl_func": True, "response_class": list[int], "impl_func_params": {"a": 1}}
    (answer,) = script.llm.chat_oai("add", impl_func=add, **options)
    assert answer.value == [1, 2]
    assert json.loads(seen[1][2]) == {"type": "array", "items": {"type": "integer"}}


def test_a_function_may_be_described_in_words(scripted: Scripted) -> None:
    described = json.dumps({"name": "add", "description": "adds", "parameters": {}})
    script = scripted(ADD, block("import os\ndef one():\n    return '{\"x\": 1}'"))
    options = {"impl_func_params": {"a": 1, "b": 1}, "execute_impl_func": True}
    (answer,) = script.llm.chat_oai("add", impl_func=described, **options)
    assert answer.value == 2
    schema = json.dumps({"type": "object"})
    (answer,) = script.llm.chat_oai(
        "one", impl_func="something", response_class=schema, execute_impl_func=True
    )
    assert answer.value == {"x": 1}


def test_only_the_prompt(scripted: Scripted) -> None:
    script = scripted()
    (answer,) = script.llm.chat_oai("add", impl_func=add, only_return_prompt=True)
    assert "def add(a: int, b: int = 2) -> int:" in str(answer.input)
    assert script.requests == []


# The answer's code.


@pytest.mark.parametrize(
    "text",
    [
        "```python\ndef add(a, b):\n    return a\n```",
        "```\ndef add(a, b):\n    return a\n```",
        "```py\nasync def add(a, b):\n    return a\n```",
        "```python\nadd = lambda a, b: a\n```",
        "def add(a, b):\n    return a",
        "First:\n```python\ndef add(a, b):\n    pass\n```\nand better:\n"
        "```python\ndef add(a, b):\n    return a\n```\nUse it:\n```python\nprint(add(1, 2))\n```",
        "```bash\npip install x\n```\n```python\ndef add(a, b):\n    return a\n```",
    ],
)
def test_the_code_of_an_answer(text: str) -> None:
    assert "return a" in Target.of(add).code(text) or "lambda" in Target.of(add).code(text)


@pytest.mark.parametrize(
    ("annotation", "returned", "expected"),
    [
        (Time, {"time": "x"}, Time(time="x")),
        (Time, '{"time": "x"}', Time(time="x")),
        (Time, '```json\n{"time": "x"}\n```', Time(time="x")),
        (Point, {"x": 1}, Point(1)),
        (list[Point], [{"x": 1}], [Point(1)]),
        (Colour, "red", Colour.RED),
        (int | None, None, None),
        (set[int], [1, 1], {1}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
        (dict[str, float], '{"a": 1}', {"a": 1.0}),
        (str, '{"a": 1}', '{"a": 1}'),
        (Any, '{"a": 1}', '{"a": 1}'),
        (Annotated[int, pydantic.Field(ge=0)], 3, 3),
        (None, None, None),
    ],
    ids=repr,
)
def test_results_take_the_type_that_is_asked_for(
    annotation: Any, returned: Any, expected: Any
) -> None:
    assert Target("f", "f", annotation).validated(returned, "") == expected


def test_a_strict_model_takes_json() -> None:
    class Strict(pydantic.BaseModel, strict=True):
        day: datetime.date

    value = Target("f", "f", Strict).validated({"day": "2024-02-29"}, "")
    assert value.day == datetime.date(2024, 2, 29)


# The decorator.


def test_the_seeds_functions(scripted: Scripted) -> None:
    code = """
    from datetime import datetime, timedelta
    def add_one_day(current_day):
        return {"time": (current_day + timedelta(days=1)).strftime("%Y-%m-%d")}
    """
    today = "import datetime\ndef now():\n    return {'time': datetime.date.today().isoformat()}"
    script = scripted(block(code.replace("\n    ", "\n")), block(today), RANGE)

    @impl(script.llm)
    def add_one_day(
        current_day: Annotated[datetime.datetime, "当前日期，类型是datatime.datetime"],
    ) -> Time:
        """
        给传入的日期加一天，得到明天的时间
        """
        raise NotImplementedError

    @impl(script.llm)
    def now() -> Time:
        """计算当前时间"""
        raise NotImplementedError

    assert add_one_day(datetime.datetime(2024, 1, 28, 5, tzinfo=datetime.UTC)) == Time(
        time="2024-01-29"
    )
    assert "当前日期，类型是datatime.datetime" in script.asked()
    assert datetime.date.fromisoformat(now().time)
    assert now.__name__ == "now"
    ranged: Any = impl(script.llm, instruction="去年三月到七月")(calculate_time_range)
    assert ranged() == {"start": "2023-03-01", "end": "2023-07-31"}
    assert "去年三月到七月" in script.asked()


def test_the_second_call_does_not_ask_but_runs(scripted: Scripted) -> None:
    script = scripted(ADD)
    implemented = impl(script.llm)(add)
    assert [implemented(1), implemented(2, b=5), implemented(b=1, a=1)] == [3, 7, 2]
    assert len(script.requests) == 1


def test_a_client_keeps_functions_until_it_is_told_to_forget(scripted: Scripted) -> None:
    script = scripted(ADD, ADD)
    llm: ByzerLLM = script.llm

    @llm.impl()
    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        raise NotImplementedError

    assert [add(1, 2), add(2, 3)] == [3, 5]
    llm.clear_impl_cache(full_func_name="something else")
    assert add(3, 4) == 7
    assert len(script.requests) == 1
    llm.clear_impl_cache()
    assert add(4, 5) == 9
    assert len(script.requests) == 2


def test_skip_cache_asks_each_time(scripted: Scripted) -> None:
    cache = ImplementationCache()
    script = scripted(ADD, ADD, ADD)
    implemented = impl(script.llm, cache, skip_cache=True)(add)
    assert [implemented(1), implemented(1)] == [3, 3]
    assert impl(script.llm, cache)(add)(1) == 3
    assert len(script.requests) == 3


def test_functions_are_kept_by_model_source_and_instruction(scripted: Scripted) -> None:
    cache = ImplementationCache()
    script, other = scripted(ADD, ADD), scripted(ADD)
    impl(script.llm, cache)(add)(1)
    impl(script.llm, cache, instruction="quickly")(add)(1)
    impl(other.llm, cache)(add)(1)
    impl(script.llm, cache, instruction="quickly")(add)(1)
    impl(script.llm, cache)(add)(1)
    assert (len(script.requests), len(other.requests)) == (2, 1)


def test_the_cache_is_cleared_by_parts(scripted: Scripted) -> None:
    cache = ImplementationCache()
    script = scripted(*[ADD] * 8)
    model = script.llm._model(None)
    instructions = (None, "quickly")

    def fill() -> int:
        before = len(script.requests)
        for instruction in instructions:
            impl(script.llm, cache, instruction=instruction)(add)(1)
        return len(script.requests) - before

    assert [fill(), fill()] == [2, 0]
    assert cache.clear(instruction="quickly") == 1
    assert fill() == 1
    assert cache.clear(model="another") == 0
    assert cache.clear(full_func_name="dd") == 0
    assert fill() == 0
    assert cache.clear(model=model, full_func_name=f"{add.__module__}.add") == 2
    assert fill() == 2
    assert cache.clear(full_func_name="add") == 2
    assert cache.clear() == 0


def test_functions_are_kept_on_disk(scripted: Scripted, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    script = scripted(ADD, ADD, ADD)
    assert impl(script.llm, cache_dir=folder)(add)(1) == 3
    (file,) = folder.iterdir()
    kept = json.loads(file.read_text())
    assert kept["code"].startswith("def add")
    assert kept["function"].endswith(".add")
    fresh = ImplementationCache()
    assert impl(script.llm, fresh, cache_dir=folder)(add)(5) == 7
    assert len(script.requests) == 1
    file.write_text("{")
    assert impl(script.llm, cache_dir=folder)(add)(5) == 7
    assert len(script.requests) == 2
    assert fresh.clear(full_func_name="add") == 1
    assert list(folder.iterdir()) == []
    impl(script.llm, cache_dir=folder)(add)(5)
    assert ImplementationCache().clear(cache_dir=folder) == 1
    assert list(folder.iterdir()) == []


def test_what_was_kept_in_memory_goes_to_disk_too(scripted: Scripted, tmp_path: Path) -> None:
    cache = ImplementationCache()
    script = scripted(ADD)
    impl(script.llm, cache)(add)(1)
    impl(script.llm, cache, cache_dir=tmp_path)(add)(1)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_kept_function_that_fails_is_asked_for_again(scripted: Scripted) -> None:
    picky = block("def add(a, b=2):\n    assert a < 3, 'too much'\n    return a + b")
    script = scripted(picky, ADD)
    implemented = impl(script.llm)(add)
    assert implemented(1) == 3
    assert implemented(5) == 7
    assert "too much" in script.asked()
    assert "assert a < 3" in script.requests[1].messages[1]["content"]
    assert implemented(9) == 11
    assert len(script.requests) == 2


def test_the_error_of_the_last_attempt_is_raised(scripted: Scripted) -> None:
    script = scripted(BAD_ADD, BAD_ADD, ADD)
    implemented = impl(script.llm)(add)
    with pytest.raises(GeneratedFunctionError, match="ZeroDivisionError") as caught:
        implemented(1)
    assert "return a / 0" in caught.value.code
    assert "line 2, in add" in caught.value.remote_traceback
    assert implemented(1) == 3


def test_limits_reach_the_sandbox(scripted: Scripted) -> None:
    endless = block("def add(a, b):\n    while True: pass")
    script = scripted(endless, endless)
    with pytest.raises(SandboxTimeoutError, match=r"0\.3 s"):
        impl(script.llm, limits={"seconds": 0.3})(add)(1)
    assert "time limit" in script.asked()


def test_without_namespaces_nothing_is_run(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise SandboxUnavailableError("none here")

    monkeypatch.setattr("byzerllm.client.sandbox._probed", none)
    script = scripted(ADD, ADD, ADD)
    with pytest.raises(SandboxUnavailableError, match="none here"):
        impl(script.llm)(add)(1)
    assert len(script.requests) == 1
    options: dict[str, Any] = {"execute_impl_func": True, "impl_func_params": {"a": 1}}
    with pytest.raises(SandboxUnavailableError):
        script.llm.chat_oai("add", impl_func=add, **options)
    assert impl(script.llm, sandbox="process")(add)(1) == 3


@pytest.mark.parametrize("sandbox", ["process", "inprocess"])
def test_the_explicit_ways_out(scripted: Scripted, sandbox: str) -> None:
    script = scripted(block("import os\ndef add(a, b):\n    return os.getpid()"))
    import os

    here = impl(script.llm, sandbox=sandbox)(add)(1) == os.getpid()
    assert here == (sandbox == "inprocess")


def test_functions_of_asynchronous_code(scripted: Scripted) -> None:
    script = scripted(block("import asyncio\nasync def later(x):\n    return x * 2"))

    @impl(script.llm)
    async def later(x: int) -> int:
        """Doubles."""
        raise NotImplementedError

    async def calls() -> list[int]:
        return [await later(1), *await asyncio.gather(later(2), later(3))]

    assert asyncio.run(calls()) == [2, 4, 6]
    assert len(script.requests) == 1


def test_models_and_collections_as_arguments(scripted: Scripted) -> None:
    code = "def far(points, *, when, more):\n    return max(p.x for p in points), when.year, more"
    script = scripted(block(code))

    @impl(script.llm)
    def far(points: list[Point], *, when: datetime.date, **rest: Any) -> tuple[int, int, str]:
        """The farthest."""
        raise NotImplementedError

    day = datetime.date(2024, 1, 1)
    assert far([Point(1), Point(3)], when=day, more="x") == (3, 2024, "x")


def test_defaults_reach_the_function(scripted: Scripted) -> None:
    marker: Any = object()
    script = scripted(block("def f(a, b, c=7):\n    return [a, b, c]"))

    def f(a: int = 1, b: Any = None, c: Any = marker) -> list[int | None]:
        """Lists."""
        raise NotImplementedError

    assert impl(script.llm)(f)(b=2) == [1, 2, 7]


def test_wrong_calls_and_options_are_named(scripted: Scripted) -> None:
    script = scripted()
    implemented = impl(script.llm)(add)
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        implemented()  # type: ignore[call-arg]
    with pytest.raises(ParameterError, match=r"'add'.*a: "):
        implemented("many")  # type: ignore[arg-type]

    def many(*numbers: int) -> int:
        """Adds."""
        raise NotImplementedError

    with pytest.raises(ParameterError, match=r"\*numbers"):
        impl(script.llm)(many)(1, 2)
    with pytest.raises(ParameterError, match="did you mean 'process'"):
        impl(script.llm, sandbox="proces")
    with pytest.raises(ParameterError, match="did you mean 'memory'"):
        impl(script.llm, limits={"memry": 1})
    with pytest.raises(ParameterError, match="decorates a function"):
        impl(script.llm)("add")  # type: ignore[type-var]
    assert script.requests == []


def test_verbose_shows_each_step_on_the_terminal(
    scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = block("def add(a, b):\n    print('adding')\n    return a + b")
    script = scripted(BAD_ADD, noisy, ADD)
    assert impl(script.llm, verbose=True)(add)(1) == 3
    shown = capsys.readouterr().err
    steps = ["asked: ", "answered: ", "failed: ", "asked: ", "answered: ", "printed: adding"]
    steps.append("returned: 3 after")
    places = list(itertools.accumulate(steps, lambda at, step: shown.index(step, at), initial=0))
    assert places == sorted(places)
    assert "ZeroDivisionError" in shown
    impl(script.llm)(add)(1)
    assert capsys.readouterr() == ("", "")


def test_the_logger_hears_each_step(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    script = scripted(ADD)
    with caplog.at_level(logging.INFO, logger="byzerllm.impl"):
        impl(script.llm, verbose=True)(add)(1)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "add asked",
        "add answered",
        "add returned",
    ]
    assert capsys.readouterr().err == ""
