"""`/v1/messages` with Anthropic's own client: hosted models, a small real one, and echo."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx
import pytest

from byzerllm_server.calls import Call
from byzerllm_server.events import EventStream
from vendors.claude import ClaudeVendor
from vendors.openai import PIXEL, OpenAIVendor
from vendors.server import Answer, Refuse

PATH = "/v1/messages"
HELLO = [{"role": "user", "content": "hello my world"}]
HOSTED = """
version: 1
models:
  gpt:
    pretrained_model_type: saas/openai
    infer_params: {{saas.api_key: "{gpt.key}", saas.base_url: "{gpt.url}/v1", saas.model: gpt-4o}}
  claude:
    pretrained_model_type: saas/claude
    infer_params:
      saas.api_key: "{claude.key}"
      saas.base_url: "{claude.url}"
      saas.model: claude-haiku-4-5
"""
SMOL = """
version: 1
models:
  smol:
    infer_backend: llama_cpp
    model_path: "demo:smollm2-135m-instruct"
"""
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
CALL = {"id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}
TIME = {"id": "call_2", "name": "time", "arguments": "{}"}


@pytest.fixture(scope="module")
def gpt() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def claude() -> Iterator[ClaudeVendor]:
    with ClaudeVendor() as vendor:
        yield vendor


@pytest.fixture(scope="module")
def hosted(
    serving: Callable[..., Any], gpt: OpenAIVendor, claude: ClaudeVendor
) -> Iterator[anthropic.Anthropic]:
    served = serving("--api_key", "s3cret", config=HOSTED.format(gpt=gpt, claude=claude))
    with anthropic.Anthropic(base_url=served.url, api_key="s3cret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(echo: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=echo.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def smol(serving: Callable[..., Any]) -> Iterator[anthropic.Anthropic]:
    served = serving(config=SMOL)
    with anthropic.Anthropic(base_url=served.url, api_key="any", max_retries=0) as client:
        yield client


def last_body(vendor: Any) -> Any:
    return vendor.asked[-1].json


def events(text: str) -> list[tuple[str, Any]]:
    """Names and data of a stream's events."""
    found = []
    for block in text.strip().split("\n\n"):
        name, _, data = block.partition("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# Answers.


def test_an_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="echo", max_tokens=20, messages=HELLO)  # type: ignore[arg-type]
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "echo")
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "hello my world"}
    ]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 3)
    assert str(message._request_id).startswith("req_")


def test_the_token_limit_ends_an_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="echo", max_tokens=2, messages=HELLO)  # type: ignore[arg-type]
    assert message.stop_reason == "max_tokens"


def test_a_stop_sequence_ends_an_answer(client: anthropic.Anthropic) -> None:
    options: dict[str, Any] = {"model": "echo", "max_tokens": 20, "messages": HELLO}
    message = client.messages.create(stop_sequences=["world", " my"], **options)
    assert message.to_dict()["content"] == [{"type": "text", "text": "hello"}]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " my")
    with client.messages.stream(stop_sequences=["world", " my"], **options) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", " my")
    assert client.messages.create(stop_sequences=["x"], **options).stop_reason == "end_turn"


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="echo", max_tokens=20, messages=HELLO) as stream:  # type: ignore[arg-type]
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert pieces == ["hello", " my", " world"]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 3)


def test_the_events_of_a_stream(http: httpx.Client) -> None:
    body = {"model": "echo", "max_tokens": 20, "messages": HELLO, "stream": True}
    response = http.post(PATH, json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    found = events(response.text)
    assert [name for name, _ in found] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(data["type"] == name for name, data in found)
    assert found[0][1]["message"]["content"] == []
    assert found[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


def test_an_answer_without_text_has_an_empty_block(
    hosted: anthropic.Anthropic, gpt: OpenAIVendor
) -> None:
    gpt.answers(Answer(""), Answer(""))
    message = hosted.messages.create(model="gpt", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": ""}]
    with hosted.messages.stream(model="gpt", max_tokens=9, messages=HELLO) as stream:  # type: ignore[arg-type]
        assert stream.get_final_text() == ""


def test_what_the_model_gets(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    pixel = base64.b64encode(PIXEL).decode()
    hosted.messages.create(
        model="gpt",
        max_tokens=9,
        system=[{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}],
        # The client has no names of these any more.
        extra_body={"temperature": 0.5, "top_p": 0.9},
        stop_sequences=["END"],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "one"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "two"},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": pixel},
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}},
                    {
                        "type": "document",
                        "title": "T",
                        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
                    },
                    {"type": "text", "text": "three", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
        metadata={"user_id": "somebody"},
    )
    body = last_body(gpt)
    assert body["messages"] == [
        {"role": "system", "content": "Be\nbrief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
                {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}},
                {"type": "text", "text": "T\nD"},
                {"type": "text", "text": "three"},
            ],
        },
    ]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (9, 0.5, 0.9)
    assert body["stop"] == ["END"]
    assert "metadata" not in body


# Thoughts.


def test_thoughts_are_blocks(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("fine", reasoning="let me see"), Answer("fine", reasoning="let me see"))
    message = hosted.messages.create(model="gpt", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "let me see", "signature": ""},
        {"type": "text", "text": "fine"},
    ]
    with hosted.messages.stream(model="gpt", max_tokens=9, messages=HELLO) as stream:  # type: ignore[arg-type]
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["thinking", "text"]
    assert streamed.content[0].to_dict()["thinking"].strip() == "let me see"
    assert {"thinking", "signature", "text"} <= set(kinds)


def test_thinking_is_the_vendors_to_read(hosted: anthropic.Anthropic, claude: ClaudeVendor) -> None:
    hosted.messages.create(
        model="claude",
        max_tokens=3000,
        thinking={"type": "enabled", "budget_tokens": 2000},
        messages=HELLO,  # type: ignore[arg-type]
    )
    assert last_body(claude)["thinking"] == {"type": "enabled", "budget_tokens": 2000}


# Tools.


def test_a_call(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("I look.", tool_calls=[CALL, TIME]))
    message = hosted.messages.create(
        model="gpt",
        max_tokens=50,
        messages=HELLO,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice={"type": "tool", "name": "weather"},
    )
    assert message.stop_reason == "tool_use"
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
    ]
    body = last_body(gpt)
    assert body["tools"][0]["function"]["parameters"] == WEATHER["input_schema"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(("choice", "said"), [("auto", "auto"), ("any", "required"), (None, None)])
def test_choices(
    hosted: anthropic.Anthropic, gpt: OpenAIVendor, choice: str | None, said: str | None
) -> None:
    options: dict[str, Any] = {"tool_choice": {"type": choice}} if choice else {}
    hosted.messages.create(
        model="gpt",
        max_tokens=5,
        messages=HELLO,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
        **options,
    )
    assert last_body(gpt).get("tool_choice") == said


def test_no_tools_are_offered_with_the_choice_none(
    hosted: anthropic.Anthropic, gpt: OpenAIVendor
) -> None:
    hosted.messages.create(
        model="gpt",
        max_tokens=5,
        messages=HELLO,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
        tool_choice={"type": "none"},
    )
    assert "tools" not in last_body(gpt)


def test_streamed_calls(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer("I look.", tool_calls=[CALL, TIME]))
    with hosted.messages.stream(
        model="gpt",
        max_tokens=50,
        messages=HELLO,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
    ) as stream:
        partial = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert len(partial) > 3
    assert message.stop_reason == "tool_use"
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert message.content[1].to_dict()["input"] == {"city": "Oslo"}
    assert message.content[2].to_dict()["input"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_a_time(hosted: anthropic.Anthropic, gpt: OpenAIVendor, stream: bool) -> None:
    gpt.answers(Answer(tool_calls=[CALL, TIME]))
    options: dict[str, Any] = {
        "model": "gpt",
        "max_tokens": 50,
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    if stream:
        with hosted.messages.stream(**options) as found:
            message: anthropic.types.Message = found.get_final_message()
    else:
        message = hosted.messages.create(**options)
    assert [block.type for block in message.content] == ["tool_use"]


def test_results(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    pixel = base64.b64encode(PIXEL).decode()
    image = {"type": "base64", "media_type": "image/png", "data": pixel}
    hosted.messages.create(
        model="gpt",
        max_tokens=50,
        tools=[WEATHER],  # type: ignore[list-item]
        messages=[
            {"role": "user", "content": "How is it?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Oslo"}},
                    {"type": "tool_use", "id": "b", "name": "weather", "input": {"city": "Bern"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "a",
                        "content": [
                            {"type": "text", "text": "rain"},
                            {"type": "image", "source": image},  # type: ignore[typeddict-item]
                        ],
                    },
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "content": "no such city",
                        "is_error": True,
                    },
                    {"type": "text", "text": "and now?"},
                ],
            },
        ],
    )
    _, called, *results = last_body(gpt)["messages"]
    assert called["content"] is None
    assert [call["id"] for call in called["tool_calls"]] == ["a", "b"]
    assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"city": "Oslo"}
    assert results == [
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
        {"role": "tool", "tool_call_id": "b", "content": "error: no such city"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
                {"type": "text", "text": "and now?"},
            ],
        },
    ]


def test_a_thinking_model_goes_on_after_its_call(
    hosted: anthropic.Anthropic, claude: ClaudeVendor
) -> None:
    """Its signed thoughts travel in the call's id."""
    claude.answers(Answer(reasoning="hm", tool_calls=[{**CALL, "id": "toolu_1"}]))
    options: dict[str, Any] = {
        "model": "claude",
        "max_tokens": 3000,
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 2000},
    }
    first = hosted.messages.create(messages=HELLO, **options)
    call = first.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain"}
    hosted.messages.create(
        messages=[
            *HELLO,
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {"role": "user", "content": [result]},
        ],
        **options,
    )
    blocks = last_body(claude)["messages"][1]["content"]
    assert [block["type"] for block in blocks] == ["thinking", "tool_use"]
    assert blocks[1]["id"] == "toolu_1"


def test_the_clients_own_tool_runner(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    """It tries to have the conversation kept, and goes on without."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    gpt.answers(Answer(tool_calls=[CALL]), Answer("It rains."))
    runner = hosted.beta.messages.tool_runner(
        model="gpt",
        max_tokens=50,
        messages=HELLO,  # type: ignore[arg-type]
        tools=[weather],
    )
    *_, last = runner
    assert last.content[0].to_dict()["text"] == "It rains."
    assert last_body(gpt)["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "rain in Oslo",
    }


# A real small model.


@pytest.mark.model
def test_a_small_model(smol: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": "smol",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    greedy = {"temperature": 0}
    message = smol.messages.create(max_tokens=30, extra_body=greedy, **asked)
    assert message.content[0].type == "text"
    assert len(message.content[0].text) > 20
    assert message.usage.output_tokens <= 30
    with smol.messages.stream(max_tokens=30, extra_body=greedy, **asked) as stream:
        assert stream.get_final_text() == message.content[0].text
    stop = message.content[0].text.split()[3]
    stopped = smol.messages.create(max_tokens=30, stop_sequences=[stop], extra_body=greedy, **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    counted = smol.messages.count_tokens(**asked)
    assert counted.input_tokens == message.usage.input_tokens


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True])
def test_a_small_model_calls_in_words(smol: anthropic.Anthropic, stream: bool) -> None:
    options: dict[str, Any] = {
        "model": "smol",
        "max_tokens": 100,
        "extra_body": {"temperature": 0},
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    if stream:
        with smol.messages.stream(**options) as found:
            message: anthropic.types.Message = found.get_final_message()
    else:
        message = smol.messages.create(**options)
    assert message.stop_reason == "tool_use"
    call = message.content[0]
    assert call.type == "tool_use"
    assert call.name == "weather"
    assert isinstance(call.input["city"], str)
    again = smol.messages.create(
        model="smol",
        max_tokens=20,
        messages=[
            *options["messages"],
            {"role": "assistant", "content": [call.to_dict()]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}],
            },
        ],
    )
    assert again.content[0].type == "text"


@pytest.mark.model
def test_how_hard_to_think_is_the_templates_to_read(smol: anthropic.Anthropic) -> None:
    """A template that knows nothing of it leaves it alone."""
    message = smol.messages.create(
        model="smol",
        max_tokens=5,
        messages=HELLO,  # type: ignore[arg-type]
        thinking={"type": "adaptive"},
        output_config={"effort": "low"},
    )
    assert message.usage.output_tokens == 5


@pytest.mark.model
def test_a_small_model_is_kept_to_a_schema(smol: anthropic.Anthropic) -> None:
    shape = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    message = smol.messages.create(
        model="smol",
        max_tokens=60,
        messages=[{"role": "user", "content": "Name a city."}],
        output_config={"format": {"type": "json_schema", "schema": shape}},
    )
    assert message.content[0].type == "text"
    assert set(json.loads(message.content[0].text)) == {"city"}


# Tokens.


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    plain = client.messages.count_tokens(model="echo", messages=HELLO)  # type: ignore[arg-type]
    assert plain.input_tokens == len("user: hello my world\n")
    more = client.messages.count_tokens(
        model="echo",
        messages=HELLO,  # type: ignore[arg-type]
        system="Be brief",
        tools=[WEATHER],  # type: ignore[list-item]
    )
    assert more.input_tokens > plain.input_tokens + len(json.dumps(WEATHER["input_schema"])) - 20


def test_tokens_of_a_hosted_model_are_not_counted(hosted: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="cannot be counted"):
        hosted.messages.count_tokens(model="gpt", messages=HELLO)  # type: ignore[arg-type]


def test_tokens_of_images_are_not_counted(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}}
    with pytest.raises(anthropic.BadRequestError, match="images"):
        client.messages.count_tokens(
            model="echo",
            messages=[{"role": "user", "content": [image]}],  # type: ignore[list-item]
        )


# Models.


def test_models(client: anthropic.Anthropic) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == ["broken", "echo", "slow"]
    assert models[0].type == "model"
    echo = client.models.retrieve("echo")
    assert (echo.id, echo.display_name) == ("echo", "echo")
    assert abs(echo.created_at.timestamp() - time.time()) < 600
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.models.retrieve("nobody")
    body: Any = caught.value.body
    assert body["error"]["type"] == "not_found_error"


# Errors.


def test_an_unknown_model(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(model="nobody", max_tokens=5, messages=HELLO)  # type: ignore[arg-type]
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "not_found_error"
    assert caught.value.error_code == "model_not_found"
    assert body["request_id"] == caught.value.request_id
    assert caught.value.response.headers["x-request-id"] == body["request_id"]


def test_a_wrong_key(hosted: anthropic.Anthropic) -> None:
    wrong = hosted.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError) as caught:
        wrong.messages.create(model="gpt", max_tokens=5, messages=HELLO)  # type: ignore[arg-type]
    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_vendor_that_refuses(
    hosted: anthropic.Anthropic, gpt: OpenAIVendor, stream: bool
) -> None:
    gpt.faults(Refuse("too_long"))
    with pytest.raises(anthropic.BadRequestError) as caught:
        hosted.messages.create(model="gpt", max_tokens=5, messages=HELLO, stream=stream)  # type: ignore[arg-type, call-overload]
    body: Any = caught.value.body
    assert body["error"]["type"] == "invalid_request_error"


def test_an_error_in_mid_stream(client: anthropic.Anthropic) -> None:
    texts = []
    with (
        pytest.raises(anthropic.APIStatusError, match="chunk 3") as caught,
        client.messages.stream(model="broken", max_tokens=50, messages=HELLO) as stream,  # type: ignore[arg-type]
    ):
        texts.extend(stream.text_stream)
    assert "".join(texts) == "hello my world"
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"


def test_a_call_that_is_no_json(hosted: anthropic.Anthropic, gpt: OpenAIVendor) -> None:
    gpt.answers(Answer(tool_calls=[{**CALL, "arguments": '{"city": '}]))
    with pytest.raises(anthropic.InternalServerError, match="no JSON object"):
        hosted.messages.create(
            model="gpt",
            max_tokens=50,
            messages=HELLO,  # type: ignore[arg-type]
            tools=[WEATHER],  # type: ignore[list-item]
        )


def test_a_caller_that_leaves_stops_the_generation(
    hosted: anthropic.Anthropic, gpt: OpenAIVendor
) -> None:
    gpt.answers(Answer(pieces=["tick "] * 200))
    left, gpt.pace = gpt.left, 0.05
    try:
        with hosted.messages.stream(model="gpt", max_tokens=500, messages=HELLO) as stream:  # type: ignore[arg-type]
            assert next(stream.text_stream) == "tick "
        end = time.monotonic() + 5
        while gpt.left == left and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        gpt.pace = 0.001
    assert gpt.left == left + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_stops_calls_in_words(http: httpx.Client, stream: bool) -> None:
    body = {"model": "slow", "max_tokens": 500, "messages": HELLO, "tools": [WEATHER]}
    with pytest.raises(httpx.ReadTimeout):
        http.post(PATH, json={**body, "stream": stream}, timeout=2)
    end = time.monotonic() + 4
    while running(http) and time.monotonic() < end:
        time.sleep(0.05)
    assert running(http) == 0


def running(http: httpx.Client) -> int:
    """Requests that the model `slow`, which takes ten seconds for each, is at."""
    lines = http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("byzerllm_worker_running{")]
    assert found
    return int(sum(float(line.split()[-1]) for line in found if 'model="slow"' in line))


def test_a_silent_stream_pings() -> None:
    sent: list[bytes] = []

    async def silent() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.3)
        yield b"at last"

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        raise AssertionError("nothing more is read")

    call = Call(id="req_1", dialect="anthropic")
    stream = EventStream(silent(), call, ping_seconds=0.05)
    asyncio.run(stream({"type": "http"}, receive, send))
    assert sent.count(b'event: ping\ndata: {"type":"ping"}\n\n') >= 2
    assert sent[-2:] == [b"at last", b""]


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}}
USE = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}


def said(role: str, *blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        (said("user"), "messages[0].content"),
        (said("user", {"type": "song"}), "messages[0].content[0].type"),
        (said("user", USE), "messages[0].content[0]"),
        (said("assistant", IMAGE), "messages[0].content[0]"),
        (said("system", IMAGE), "messages[0].content[0]"),
        ({"temperature": 2}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "x", "input_schema": {"type": "string"}}]}, "input_schema.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config"),
        ({"container": "c"}, "container"),
        ({"chat_template_kwargs": 3, "thinking": {"type": "disabled"}}, "chat_template_kwargs"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, change: dict[str, Any], named: str) -> None:
    body = {"model": "echo", "max_tokens": 5, "messages": HELLO, **change}
    response = http.post(PATH, json=body)
    assert response.status_code == 400
    answer = response.json()
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert named in answer["error"]["message"]
