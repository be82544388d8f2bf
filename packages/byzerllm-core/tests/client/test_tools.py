"""Function calling: the choice, the call, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import given, settings

from byzerllm.client.tools import Toolbox, read_calls, text_messages
from byzerllm.client.types import FunctionCall, LLMFunctionCallResponse
from byzerllm.errors import ParameterError

Scripted = Callable[..., Any]


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def weather(city: Annotated[str, "where"], unit: Literal["c", "f"] = "c") -> str:
    """Tell the weather."""
    return f"20 {unit} in {city}"


def broken(reason: str) -> str:
    """Fail."""
    raise RuntimeError(reason)


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"tool_calls": [{"name": name, "arguments": arguments}]})


FORMS = [
    call("add", a=1, b=2),
    f"```json\n{call('add', a=1, b=2)}\n```",
    '{"name": "add", "arguments": {"a": 1, "b": 2}}',
    '[{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}]',
    '{"tool_calls": [{"id": "x", "type": "function", "function": '
    '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}}]}',
    '{"name": "add", "parameters": {"a": "1", "b": 2}}',
    '{"function": "add", "arguments": {"a": 1, "b": 2}}',
    'I would call {"name": "add", "arguments": {"a": 1, "b": 2}} here.',
]


@pytest.mark.parametrize("text", FORMS)
def test_forms_that_models_write(scripted: Scripted, text: str) -> None:
    script = scripted(text)
    (answer,) = script.llm.chat_oai("1 + 2?", tools=[add, weather], execute_tool=True)
    assert isinstance(answer, LLMFunctionCallResponse)
    assert (answer.values, answer.metadata.finish_reason) == ([3], "tool_calls")
    assert answer.tool_calls[0].arguments == {"a": 1, "b": 2}


def test_what_the_model_is_asked(scripted: Scripted) -> None:
    script = scripted(call("add", a=1), call("add", a=1), call("add", a=1))
    script.llm.chat_oai("1 + 1?", tools=[add])
    assert '"Add two numbers."' in script.asked()
    assert '{"answer": "your answer in words"}' in script.asked()
    script.llm.chat_oai("1 + 1?", tools=[add], tool_choice=add)
    assert "You must call add." in script.asked()
    script.llm.chat_oai("一加一？", tools=[add], tool_choice="required")
    assert "必须至少调用其中一个函数" in script.asked()


@pytest.mark.parametrize("text", ["您好，我无法吃饭。", '{"answer": "您好，我无法吃饭。"}'])
def test_no_tool_chosen_gives_the_text(scripted: Scripted, text: str) -> None:
    script = scripted(text)
    (answer,) = script.llm.chat_oai("你吃饭了么？", tools=[add], execute_tool=True)
    assert (answer.values, answer.tool_calls) == ([], [])
    assert answer.response.output == "您好，我无法吃饭。"
    assert "reason" not in answer.metadata


def test_json_that_is_no_call_is_an_answer(scripted: Scripted) -> None:
    script = scripted('{"name": "Alice", "age": 5}')
    (answer,) = script.llm.chat_oai("Who?", tools=[add])
    assert answer.tool_calls == []
    assert answer.output == '{"name": "Alice", "age": 5}'


def test_several_calls_run_in_their_order(scripted: Scripted) -> None:
    text = json.dumps(
        {
            "tool_calls": [
                {"name": "weather", "arguments": {"city": "Paris"}},
                {"name": "add", "arguments": {"a": 4}},
            ]
        }
    )
    script = scripted(text)
    (answer,) = script.llm.chat_oai("?", tools=[add, weather], execute_tool=True)
    assert answer.values == ["20 c in Paris", 5]


def test_without_execution_nothing_runs(scripted: Scripted) -> None:
    script = scripted(call("broken", reason="x"))
    (answer,) = script.llm.chat_oai("?", tools=[broken])
    assert answer.values == []
    assert answer.tool_calls[0].name == "broken"


def test_a_tool_that_raises_is_reported(scripted: Scripted) -> None:
    script = scripted(call("broken", reason="no disk"))
    (answer,) = script.llm.chat_oai("?", tools=[broken], execute_tool=True)
    assert answer.values == []
    assert answer.metadata["reason"] == "broken(reason='no disk') raised RuntimeError: no disk"
    assert answer.metadata["resason"] == answer.metadata["reason"]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (call("add", a="x"), "add: a: Input should be a valid integer"),
        (call("add", a=1, c=2), "add: c: Extra inputs"),
        (call("ad", a=1), "there is no function 'ad' (did you mean 'add'?)"),
        ('{"name": "add", "arguments": 5}', "add: the arguments are no JSON object"),
    ],
)
def test_a_wrong_call_is_asked_again_once(scripted: Scripted, wrong: str, complaint: str) -> None:
    script = scripted(wrong, call("add", a=1))
    (answer,) = script.llm.chat_oai("1 + 1?", tools=[add], execute_tool=True)
    assert answer.values == [2]
    assert complaint in script.asked()
    assert answer.metadata["steps"] == 2
    script.answers[:] = [wrong, wrong]
    (answer,) = script.llm.chat_oai("1 + 1?", tools=[add], execute_tool=True)
    assert answer.values == answer.tool_calls == []
    assert complaint in answer.metadata["reason"]


def test_a_forced_call_that_does_not_come(scripted: Scripted) -> None:
    script = scripted("hm", "hm")
    (answer,) = script.llm.chat_oai("?", tools=[add], tool_choice="add")
    assert answer.metadata["reason"] == "it calls no function"


def test_constrained_where_the_model_can(scripted: Scripted) -> None:
    script = scripted(call("add", a=1), call("add", a=1), constrained=True)
    script.llm.chat_oai("?", tools=[add, weather])
    free = script.requests[-1].sampling.json_schema
    assert [set(option["properties"]) for option in free["anyOf"]] == [{"tool_calls"}, {"answer"}]
    script.llm.chat_oai("?", tools=[add, weather], tool_choice="add")
    forced = script.requests[-1].sampling.json_schema["properties"]["tool_calls"]
    assert forced["maxItems"] == 1
    assert forced["items"]["properties"]["name"] == {"const": "add"}


def test_definitions_of_two_tools_stay_apart() -> None:
    def one(x: pydantic.BaseModel) -> None: ...
    def two(x: pydantic.BaseModel) -> None: ...

    def model(**fields: Any) -> type[pydantic.BaseModel]:
        return pydantic.create_model("Same", **fields)

    one.__annotations__["x"] = model(a=(int, ...))
    two.__annotations__["x"] = model(b=(str, ...))
    schema = Toolbox.of([one, two], "required", None).json_schema()
    assert set(schema["$defs"]) == {"one.Same", "two.Same"}
    assert "#/$defs/two.Same" in json.dumps(schema)


# Models with tools of their own.


def test_native_tools(scripted: Scripted) -> None:
    script = scripted([("add", '{"a": 2, "b": 3}'), ("weather", '{"city": "X"}')], tools=True)
    (answer,) = script.llm.chat_oai(
        "?", tools=[add, weather], tool_choice="required", execute_tool=True
    )
    assert answer.values == [5, "20 c in X"]
    request = script.requests[0]
    assert [tool["function"]["name"] for tool in request.tools] == ["add", "weather"]
    assert request.tool_choice == "required"
    assert script.asked() == "?"
    assert answer.message()["tool_calls"][0] == {
        "id": "call-0",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
    }


def test_native_tools_choose_by_name_and_answer_in_words(scripted: Scripted) -> None:
    script = scripted("I am well.", [("add", "{}")], [("add", '{"a": 1}')], tools=True)
    (answer,) = script.llm.chat_oai("How are you?", tools=[add], execute_tool=True)
    assert (answer.values, answer.output) == ([], "I am well.")
    (answer,) = script.llm.chat_oai("?", tools=[add], tool_choice=add)
    assert script.requests[1].tool_choice == {"type": "function", "function": {"name": "add"}}
    assert answer.tool_calls == [FunctionCall("call-0", "add", {"a": 1})]
    assert "a: Field required" in script.asked()


def test_an_own_format_replaces_native_tools(scripted: Scripted) -> None:
    script = scripted(call("add", a=1), tools=True)
    model = script.llm.models()[-1]["model"]

    def own(prompt: str, tools: list[Callable[..., Any]], tool_choice: Any) -> str:
        return f"{prompt} {[tool.__name__ for tool in tools]} {tool_choice.__name__}"

    script.llm.setup_function_calling_format_func(model, own)
    (answer,) = script.llm.chat_oai("?", tools=[weather], tool_choice=add, execute_tool=True)
    assert script.asked() == "? ['weather', 'add'] add"
    assert answer.values == [2]


# A conversation with tools goes on.

ROUNDS = [
    {"role": "user", "content": "1 + 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]


def test_calls_and_results_in_words() -> None:
    assert text_messages(ROUNDS) == [
        ROUNDS[0],
        {
            "role": "assistant",
            "content": '{"tool_calls": [{"name": "add", "arguments": {"a": 1}}]}',
        },
        {"role": "user", "content": "add returned: 3"},
    ]


def test_the_next_round(scripted: Scripted) -> None:
    script = scripted("3", "3", tools=True)
    script.llm.chat_oai(ROUNDS, tools=[add])
    assert script.requests[0].messages == ROUNDS


# Tools that take their time, and parameters that the caller fills in.


def test_coroutines_and_threads(scripted: Scripted) -> None:
    async def slow(a: int) -> int:
        await asyncio.sleep(0.01)
        return a

    def blocking(a: int) -> str:
        return threading.current_thread().name

    both = json.dumps([{"name": name, "arguments": {"a": 1}} for name in ("slow", "blocking")])
    script = scripted(both, both)
    (answer,) = script.llm.chat_oai("?", tools=[slow, blocking], execute_tool=True)
    assert answer.values == [1, "MainThread"]
    (answer,) = asyncio.run(
        script.llm.async_chat_oai("?", tools=[slow, blocking], execute_tool=True)
    )
    assert answer.values[0] == 1
    assert answer.values[1] != "MainThread"


def test_func_params_are_not_the_models(scripted: Scripted) -> None:
    def fetch(city: str, key: str) -> str:
        return f"{city} with {key}"

    script = scripted(call("fetch", city="X"))
    (answer,) = script.llm.chat_oai(
        "?", tools=[fetch, add], execute_tool=True, func_params={"key": "k"}
    )
    assert answer.values == ["X with k"]
    assert '"key"' not in script.asked()


def test_schemas_without_functions(scripted: Scripted) -> None:
    tool = {
        "type": "function",
        "function": {"name": "remote", "parameters": {"type": "object", "properties": {}}},
    }
    script = scripted(call("remote", x=1), call("remote", x=1))
    (answer,) = script.llm.chat_oai("?", tools=[tool])
    assert answer.tool_calls[0].arguments == {"x": 1}
    (answer,) = script.llm.chat_oai("?", tools=[tool], execute_tool=True)
    assert "remote is a schema without a function" in answer.metadata["reason"]


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"tools": [add, add]}, "two tools are called 'add'"),
        ({"tools": [{"name": ""}]}, "OpenAI's shape"),
        ({"tools": ["add"]}, "a tool is a function"),
        ({"tools": [add], "tool_choice": "ad"}, "one of the tools"),
        ({"tools": [add], "func_params": {"zz": 1}}, "unknown parameter 'zz' for func_params"),
        ({"execute_tool": True}, "execute_tool needs tools"),
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"func_params": {"a": 1}}, "func_params needs tools"),
        ({"tools": [add], "impl_func": add}, "tools or impl_func, not both"),
    ],
)
def test_wrong_use_is_said_before_anything_is_sent(
    scripted: Scripted, parameters: dict[str, Any], complaint: str
) -> None:
    script = scripted()
    with pytest.raises(ParameterError, match=complaint.replace("(", r"\(")):
        script.llm.chat_oai("?", **parameters)
    assert script.requests == []


@given(st.text(max_size=60) | st.sampled_from(FORMS).map(lambda t: t[: len(t) // 2] + "}" + t[5:]))
@settings(max_examples=500, deadline=None)
def test_any_text_is_read(text: str) -> None:
    found, answer = read_calls(text, ["add"])
    assert all(isinstance(name, str) and id_ for id_, name, _ in found)
    assert answer is None or isinstance(answer, str)
