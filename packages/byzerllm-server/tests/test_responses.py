"""`/v1/responses` with OpenAI's own client: hosted models, a small real one, and echo."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from vendors.openai import PIXEL, OpenAIVendor
from vendors.server import Answer, Cut, Refuse

PATH = "/v1/responses"
HOSTED = """
version: 1
models:
  gpt:
    pretrained_model_type: saas/openai
    infer_params: {{saas.api_key: "{gpt.key}", saas.base_url: "{gpt.url}/v1", saas.model: gpt-4o}}
"""
SMOL = """
version: 1
models:
  smol:
    infer_backend: llama_cpp
    model_path: "demo:smollm2-135m-instruct"
"""
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = {"id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}
TIME = {"id": "call_2", "name": "time", "arguments": "{}"}


@pytest.fixture(scope="module")
def gpt() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def hosted(serving: Callable[..., Any], gpt: OpenAIVendor) -> Iterator[openai.OpenAI]:
    served = serving("--api_key", "s3cret", config=HOSTED.format(gpt=gpt))
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="s3cret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(echo: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{echo.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def smol(serving: Callable[..., Any]) -> Iterator[openai.OpenAI]:
    served = serving(config=SMOL)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def last_body(vendor: Any) -> Any:
    return vendor.asked[-1].json


def output(response: Any) -> list[Any]:
    """The items of a response without what differs each time."""
    return [
        {key: value for key, value in item.to_dict().items() if key != "id"}
        for item in response.output
    ]


def text_item(text: str, status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "status": status, "content": [part]}


def call_item(id_: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "type": "function_call",
        "status": "completed",
        "call_id": id_,
        "name": name,
        "arguments": arguments,
    }


def thought_item(text: str) -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": text}
    return {"type": "reasoning", "status": "completed", "summary": [], "content": [part]}


# Answers.


def test_an_answer(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="echo", input="hello my world", metadata={"team": "a"}, store=True, user="u"
    )
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.model) == ("response", "completed", "echo")
    assert response.output_text == "hello my world"
    assert output(response) == [text_item("hello my world")]
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 3)
    assert response.usage.total_tokens == 6
    assert response.error is None
    assert response.metadata == {"team": "a"}
    # It is not kept, whatever was asked.
    assert response.to_dict()["store"] is False
    assert str(response._request_id).startswith("req_")


def test_the_token_limit_leaves_it_incomplete(client: openai.OpenAI) -> None:
    response = client.responses.create(model="echo", input="one two three", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert output(response) == [text_item("one two", "incomplete")]
    events = list(
        client.responses.create(
            model="echo", input="one two three", max_output_tokens=2, stream=True
        )
    )
    assert events[-1].type == "response.incomplete"
    assert output(events[-1].response) == [text_item("one two", "incomplete")]


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "echo", "input": "hello my world", "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    names, found = [], []
    for block in response.text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        names.append(name.removeprefix("event: "))
        found.append(json.loads(data.removeprefix("data: ")))
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [data["type"] for data in found] == names
    assert [data["sequence_number"] for data in found] == list(range(len(found)))
    ids = {data["item_id"] for data in found if "item_id" in data}
    assert ids == {found[2]["item"]["id"]} == {found[-1]["response"]["output"][0]["id"]}
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[0]["response"]["id"] == found[-1]["response"]["id"]


def test_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="hello my world") as stream:
        pieces = [e.delta for e in stream if e.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert pieces == ["hello", " my", " world"]
    assert response.output_text == "hello my world"
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.total_tokens == 6


def test_what_the_model_gets(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    hosted.responses.create(
        model="gpt",
        instructions="Be brief",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=9,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_object"}},
        extra_body={"frequency_penalty": 1},
        input=[
            {"role": "developer", "content": "In English"},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "two", "annotations": []}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "three"},
                    {"type": "input_image", "image_url": url, "detail": "auto"},
                ],
            },
        ],
    )
    body = last_body(gpt)
    assert body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "developer", "content": "In English"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "three"},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        },
    ]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.5, 0.9)
    assert (body["reasoning_effort"], body["frequency_penalty"]) == ("low", 1)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


class City(BaseModel):
    n: int


def test_a_pydantic_answer(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    parsed = hosted.responses.parse(model="gpt", input="Which one?", text_format=City)
    assert parsed.output_parsed == City(n=7)
    schema = last_body(gpt)["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["n"]["type"] == "integer"


def test_logprobs(hosted: openai.OpenAI) -> None:
    response = hosted.responses.create(
        model="gpt",
        input="Count",
        max_output_tokens=3,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    (item,) = response.output
    assert item.type == "message"
    (part,) = item.content
    assert part.type == "output_text"
    assert part.logprobs
    assert "".join(token.token for token in part.logprobs) == part.text


# Thoughts.


def test_thoughts_are_an_item(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("fine", reasoning="let me see"))
    response = hosted.responses.create(model="gpt", input="well?")
    assert output(response) == [thought_item("let me see"), text_item("fine")]


def test_streamed_thoughts(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("fine", reasoning="let me see"))
    with hosted.responses.stream(model="gpt", input="well?") as stream:
        events = list(stream)
        response = stream.get_final_response()
    thoughts = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(thoughts).strip() == "let me see"
    assert "response.reasoning_text.done" in [e.type for e in events]
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert [e.sequence_number for e in events] == list(range(len(events)))


# Tools.


def test_a_call(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("I look.", tool_calls=[CALL, TIME]))
    response = hosted.responses.create(
        model="gpt",
        input="How is it?",
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
    )
    assert response.status == "completed"
    assert output(response) == [
        text_item("I look."),
        call_item("call_1", "weather", '{"city": "Oslo"}'),
        call_item("call_2", "time", "{}"),
    ]
    body = last_body(gpt)
    assert body["tools"][0]["function"]["parameters"] == WEATHER["parameters"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert response.to_dict()["tool_choice"] == {"type": "function", "name": "weather"}


def test_allowed_tools(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    hosted.responses.create(
        model="gpt",
        input="How is it?",
        tools=[WEATHER, {**WEATHER, "name": "time"}],
        tool_choice={
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "time"}],
        },
    )
    body = last_body(gpt)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["time"]
    assert body["tool_choice"] == "required"


def test_streamed_calls(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("I look.", tool_calls=[CALL, TIME]))
    with hosted.responses.stream(model="gpt", input="How is it?", tools=[WEATHER]) as stream:
        events = list(stream)
        response = stream.get_final_response()
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Oslo"}{}'
    assert len(deltas) > 3
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [e.arguments for e in done] == ['{"city": "Oslo"}', "{}"]
    assert output(response)[1:] == [
        {**call_item("call_1", "weather", '{"city": "Oslo"}'), **_parsed({"city": "Oslo"})},
        {**call_item("call_2", "time", "{}"), **_parsed(None)},
    ]


def _parsed(value: Any) -> dict[str, Any]:
    """What the client adds to a call of a strict tool."""
    return {"parsed_arguments": value}


def test_one_call_at_a_time(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer(tool_calls=[CALL, TIME]))
    response = hosted.responses.create(
        model="gpt", input="How is it?", tools=[WEATHER], parallel_tool_calls=False
    )
    assert [item.type for item in response.output] == ["function_call"]


def test_results(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    """The items of an answer are the next question's input."""
    gpt.answers(Answer("I look.", reasoning="hm", tool_calls=[CALL, {**TIME, "name": "weather"}]))
    first = hosted.responses.create(model="gpt", input="How is it?", tools=[WEATHER])
    hosted.responses.create(
        model="gpt",
        tools=[WEATHER],
        input=[
            {"role": "user", "content": "How is it?"},
            *[item.to_dict() for item in first.output],  # type: ignore[list-item]
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {
                "type": "function_call_output",
                "call_id": "call_2",
                "output": [{"type": "input_text", "text": "sun"}],
            },
        ],
    )
    _, called, *results = last_body(gpt)["messages"]
    assert called["content"] == "I look."
    assert [call["id"] for call in called["tool_calls"]] == ["call_1", "call_2"]
    assert results == [
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": "sun"},
    ]


# A real small model.


@pytest.mark.model
def test_a_small_model(smol: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "smol",
        "instructions": "You are a guide.",
        "input": "Tell me of Paris.",
        "temperature": 0,
        "max_output_tokens": 30,
    }
    response = smol.responses.create(**asked)
    assert len(response.output_text) > 20
    with smol.responses.stream(**asked) as stream:
        pieces = [e.delta for e in stream if e.type == "response.output_text.delta"]
    assert "".join(pieces) == response.output_text


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True])
def test_a_small_model_calls_in_words(smol: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {
        "model": "smol",
        "temperature": 0,
        "max_output_tokens": 200,
        "tools": [WEATHER],
        # By its name: else a small model may call it several times.
        "tool_choice": {"type": "function", "name": "weather"},
    }
    question = {"role": "user", "content": "How is the weather in Paris?"}
    if stream:
        with smol.responses.stream(input=[question], **options) as found:
            first: Any = found.get_final_response()
    else:
        first = smol.responses.create(input=[question], **options)
    (call,) = first.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert isinstance(json.loads(call.arguments)["city"], str)
    made = call_item(call.call_id, call.name, call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again = smol.responses.create(
        model="smol", input=[question, made, result], max_output_tokens=20
    )
    assert again.output_text


class Place(BaseModel):
    city: str = Field(max_length=20)


@pytest.mark.model
def test_a_small_model_is_kept_to_a_schema(smol: openai.OpenAI) -> None:
    parsed = smol.responses.parse(
        model="smol", input="Name a city.", text_format=Place, max_output_tokens=60
    )
    assert parsed.output_parsed is not None


# Errors.


def test_responses_are_not_kept(client: openai.OpenAI) -> None:
    made = client.responses.create(model="echo", input="hello", store=True)
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.retrieve(made.id)


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="nobody", input="hello")
    assert caught.value.code == "model_not_found"
    assert str(caught.value.request_id).startswith("req_")


@pytest.mark.parametrize("stream", [False, True])
def test_a_vendor_that_refuses(hosted: openai.OpenAI, gpt: OpenAIVendor, stream: bool) -> None:
    gpt.faults(Refuse("too_long"))
    with pytest.raises(openai.BadRequestError) as caught:
        hosted.responses.create(model="gpt", input="hello", stream=stream)
    assert caught.value.code == "context_length_exceeded"


def test_an_error_in_mid_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="broken", input="hello my world", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert "chunk 3" in last.response.error.message
    assert last.sequence_number == len(events) - 1


def test_a_vendor_that_breaks_off(hosted: openai.OpenAI, gpt: OpenAIVendor) -> None:
    gpt.faults(Cut(after=4))
    *_, last = hosted.responses.create(model="gpt", input="Count", stream=True)
    assert last.type == "response.failed"


def test_a_caller_that_leaves_stops_the_generation(
    hosted: openai.OpenAI, gpt: OpenAIVendor
) -> None:
    gpt.answers(Answer(pieces=["tick "] * 200))
    left, gpt.pace = gpt.left, 0.05
    try:
        with hosted.responses.stream(model="gpt", input="Count") as stream:
            assert next(e for e in stream if e.type == "response.output_text.delta")
        end = time.monotonic() + 5
        while gpt.left == left and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        gpt.pace = 0.001
    assert gpt.left == left + 1


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        (item(type="web_search_call"), "input[0].type"),
        (item(type="item_reference", id="msg_1"), "input[0].type"),
        (item(role="user"), "input[0].content"),
        (item(content="x"), "input[0].role"),
        (item(role="user", content=[{"type": "input_image"}]), "input[0].content[0].image_url"),
        (
            item(role="user", content=[{"type": "input_image", "file_id": "file_1"}]),
            "input[0].content[0].file_id",
        ),
        (item(type="function_call", call_id="a", name="weather"), "input[0].arguments"),
        (item(type="function_call_output", output="x"), "input[0].call_id"),
        (item(type="reasoning"), "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "parameters": {}}]}, "tools[0].parameters.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperatur": 1}, "temperatur"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, change: dict[str, Any], parameter: str) -> None:
    response = http.post(PATH, json={"model": "echo", "input": "hello", **change})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == parameter
    assert parameter in error["message"]
