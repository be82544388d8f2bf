"""Pydantic answers: parsing, constrained decoding, the second ask, and what stands in metadata."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import string
from collections.abc import Callable
from typing import Any, Literal

import hypothesis.strategies as st
import pydantic
import pytest
from hypothesis import given, settings
from pydantic import Field

from byzerllm.client.schema import class_schema
from byzerllm.client.structured import AnswerError, answer_schema, parse_answer, parse_json
from byzerllm.errors import ParameterError

Scripted = Callable[..., Any]


class Story(pydantic.BaseModel):
    """故事"""

    title: str = Field(description="故事的标题")
    body: str


class Item(pydantic.BaseModel):
    kind: Literal["item"]
    price: float = Field(ge=0)


class Order(pydantic.BaseModel):
    items: list[Item | Story]
    note: str | None = None


@dataclasses.dataclass
class Point:
    x: int


GOOD = '{"title": "T", "body": "B"}'
STORY = Story(title="T", body="B")
ITEM = Item(kind="item", price=1)
DAMAGE = ["", *"{}[]\"',:\\é\n\x00\ud800", "```", "//", "null"]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"```{GOOD}```",
        f"Of course! Here it is:\n{GOOD}\nAnything else?",
        f"I thought of [1, 2] and {{x}} first.\n\n```json\n{GOOD}\n```\nIt has {{braces}}.",
        "{'title': 'T', 'body': 'B'}",
        '{"title": "T", "body": "B",}',
        '{"title": "T" "body": "B"}',
        '{title: "T", body: "B"}',
        '{"title": "T", "body": "B"',
        '{"title": "T", "body": "B',
        '{"title": "T", // the title\n "body": "B"}',
        '{"Story": {"title": "T", "body": "B"}}',
        '{"value": {"title": "T", "body": "B"}}',
        '{"wrong": 1} and then {"title": "T", "body": "B"}',
    ],
)
def test_answers_that_are_understood(text: str) -> None:
    assert parse_answer(text, Story) == STORY


def test_line_breaks_inside_strings() -> None:
    assert parse_answer('{"title": "T", "body": "a\nb"}', Story).body == "a\nb"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot do that.", "no JSON value"),
        ("", "no JSON value"),
        ('{"title": "T"}', "body: Field required"),
        ('{"title": 1, "body": "B"}', "title: Input should be a valid string"),
    ],
)
def test_answers_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        parse_answer(text, Story)


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (Order, '{"items": [{"kind": "item", "price": 1}]}', Order(items=[ITEM])),
        (list[Story], f"[{GOOD}, {GOOD}]", [STORY, STORY]),
        (list[Story], f'{{"value": [{GOOD}]}}', [STORY]),
        (Story | Item, GOOD, STORY),
        (Story | None, "null", None),
        (int, "42", 42),
        (int, '{"value": 42}', 42),
        (Literal["yes", "no"], '"yes"', "yes"),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Point, '{"x": "3"}', Point(3)),
    ],
)  # fmt: skip
def test_types_of_all_kinds(type_: Any, text: str, value: Any) -> None:
    assert parse_answer(text, type_) == value


def test_what_constrains_is_an_object() -> None:
    assert answer_schema(Story) is answer_schema(Story)
    assert answer_schema(Story) == {**class_schema(Story), "additionalProperties": False}
    wrapped = answer_schema(list[Story])
    assert wrapped["properties"]["value"] == {"type": "array", "items": {"$ref": "#/$defs/Story"}}
    assert "Story" in wrapped["$defs"]


def test_what_constrains_is_closed_unless_the_class_is_open() -> None:
    class Open(pydantic.BaseModel, extra="allow"):
        properties: Item

    schema = answer_schema(Open)
    assert schema["additionalProperties"] is True
    assert schema["properties"]["properties"] == {"$ref": "#/$defs/Item"}
    assert schema["$defs"]["Item"]["additionalProperties"] is False
    assert "additionalProperties" not in class_schema(Item)
    assert answer_schema(dict[str, int])["additionalProperties"] == {"type": "integer"}


def test_the_prompt_and_the_value(scripted: Scripted) -> None:
    script = scripted(f"Sure: {GOOD}")
    (answer,) = script.llm.chat_oai("Tell a story", response_class=Story)
    assert (answer.value, answer.response.output) == (STORY, f"Sure: {GOOD}")
    assert "reason" not in answer.metadata
    assert script.asked().startswith("Tell a story\n\nAnswer with one JSON value")
    assert '"故事的标题"' in script.asked()
    assert script.requests[0].sampling.json_schema is None


def test_the_prompt_is_in_the_language_of_the_question(scripted: Scripted) -> None:
    script = scripted(GOOD)
    script.llm.chat_oai("请给我讲个故事", response_class=Story)
    assert "请只用一个 JSON 值来回答" in script.asked()


def test_constrained_where_the_model_can(scripted: Scripted) -> None:
    script = scripted(GOOD, f'{{"value": [{GOOD}]}}', constrained=True)
    assert script.llm.chat_oai("Tell", response_class=Story)[0].value == STORY
    assert script.requests[0].sampling.json_schema == answer_schema(Story)
    assert script.llm.chat_oai("Tell", response_class=list[Story])[0].value == [STORY]


def test_a_vendor_that_takes_schemas_gets_the_question_as_it_is(scripted: Scripted) -> None:
    script = scripted(GOOD, constrained=True, hosted=True)
    assert script.llm.chat_oai("Tell", response_class=Story)[0].value == STORY
    assert script.asked() == "Tell"


def test_a_schema_that_no_grammar_can_hold_is_left_to_the_prompt(scripted: Scripted) -> None:
    script = scripted(GOOD, constrained=True, refuses_schemas=True)
    (answer,) = script.llm.chat_oai(
        "Tell", response_class=Story, extra_request_params={"request_id": "mine"}
    )
    assert answer.value == STORY
    ids = [request.id for request in script.requests]
    assert ids[0] == "mine"
    assert len(set(ids)) == 2


def test_it_is_asked_again_once_with_the_complaint(scripted: Scripted) -> None:
    script = scripted('{"title": "T"}', GOOD)
    (answer,) = script.llm.chat_oai("Tell", response_class=Story)
    assert answer.value == STORY
    assert "body: Field required" in script.asked()
    messages = script.requests[1].messages
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == '{"title": "T"}'
    assert answer.metadata["steps"] == 2
    assert answer.metadata.input_tokens_count == 6


def test_a_failure_has_its_reason(scripted: Scripted) -> None:
    script = scripted("No.", "Still no.")
    (answer,) = script.llm.chat_oai("Tell", response_class=Story)
    assert answer.value is None
    assert answer.response.output == "Still no."
    assert answer.metadata["reason"] == answer.metadata["resason"] == "it holds no JSON value"
    assert script.answers == []


def test_an_answer_that_was_cut_is_not_asked_again(scripted: Scripted) -> None:
    script = scripted(('{"title": 5', "length"), GOOD)
    (answer,) = script.llm.chat_oai("Tell", response_class=Story)
    assert answer.value is None
    assert "cut off by the token limit" in answer.metadata["reason"]
    assert len(script.requests) == 1


def test_words_first_and_the_class_after(scripted: Scripted) -> None:
    script = scripted("Once upon a time.", GOOD)
    (answer,) = script.llm.chat_oai("Tell", response_class=Story, response_after_chat=True)
    assert answer.value == STORY
    assert answer.metadata["text"] == "Once upon a time."
    first, second = script.requests
    assert first.messages[-1]["content"] == "Tell"
    assert second.messages[1] == {"role": "assistant", "content": "Once upon a time."}


def test_own_formats(scripted: Scripted) -> None:
    script = scripted(GOOD, "words", GOOD)
    model = script.llm.models()[-1]["model"]
    script.llm.setup_response_class_format_func(
        model, lambda prompt, cls: f"<{prompt}|{cls.__name__}>"
    )
    script.llm.setup_response_class_format_after_chat_func(
        model, lambda cls: f"after {cls.__name__}"
    )
    script.llm.chat_oai("Tell", response_class=Story)
    assert script.asked() == "<Tell|Story>"
    script.llm.chat_oai("Tell", response_class=Story, response_after_chat=True)
    assert script.asked() == "after Story"


def test_asynchronously_and_with_images(scripted: Scripted) -> None:
    script = scripted(GOOD)
    content = [
        {"type": "text", "text": "Tell"},
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": content}]
    (answer,) = asyncio.run(script.llm.async_chat_oai(messages, response_class=Story))
    assert answer.value == STORY
    parts = script.requests[0].messages[-1]["content"]
    assert parts[0]["text"].startswith("Tell\n")
    assert parts[1]["type"] == "image_url"
    assert messages[1]["content"] is content


def test_only_the_prompt(scripted: Scripted) -> None:
    script = scripted()
    (answer,) = script.llm.chat_oai("Tell", response_class=Story, only_return_prompt=True)
    assert answer.input.startswith("Tell\n")
    assert script.requests == []


def test_wrong_use_is_said_before_anything_is_sent(scripted: Scripted) -> None:
    script = scripted()
    with pytest.raises(ParameterError, match="response_after_chat needs response_class"):
        script.llm.chat_oai("Tell", response_after_chat=True)
    with pytest.raises(ParameterError, match="is no type that pydantic can check"):
        script.llm.chat_oai("Tell", response_class=object())
    with pytest.raises(ParameterError, match="tools or response_class, not both"):
        script.llm.chat_oai("Tell", response_class=Story, tools=[len])
    assert script.requests == []


# Whatever a model writes, parsing ends with a value or with an AnswerError.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """JSON with a few characters lost, doubled or replaced, chatter around it."""
    text = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.sampled_from(DAMAGE))
        text = text[:at] + piece + text[at + draw(st.integers(0, 2)) :]
    return draw(st.text(string.printable, max_size=8)) + text + draw(st.text(max_size=8))


@given(damaged())
@settings(max_examples=2000, deadline=None)
def test_damaged_texts_never_crash(text: str) -> None:
    for type_ in (Story, Order, list[int]):
        try:
            value = parse_answer(text, type_)
        except AnswerError as error:
            assert str(error)  # noqa: PT017
        else:
            assert value == pydantic.TypeAdapter(type_).validate_python(value)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_sound_json_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == json.loads(text)


STORIES = st.builds(Story, title=st.text(max_size=5), body=st.text(max_size=5))
ORDERS = st.builds(Order, items=st.lists(STORIES, max_size=3), note=st.none() | st.text(max_size=5))


@given(ORDERS)
@settings(max_examples=200, deadline=None)
def test_instances_round_trip(order: Order) -> None:
    assert parse_answer(f"Here:\n```json\n{order.model_dump_json()}\n```", Order) == order


def test_deep_nesting_ends_with_a_reason() -> None:
    with pytest.raises(AnswerError):
        parse_answer("[" * 100_000, Story)
    with pytest.raises(AnswerError):
        parse_answer('{"a":' * 5_000 + "1" + "}" * 5_000, Story)
