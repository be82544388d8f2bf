"""Messages for models that want alternating roles."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from byzerllm import LLMHistoryItem
from byzerllm.client.message_utils import padding_messages_expand, padding_messages_merge
from byzerllm.errors import ParameterError
from byzerllm.messages import normalise

Message = dict[str, Any]
BOTH = [padding_messages_merge, padding_messages_expand]


def says(role: str, content: Any, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def call(name: str) -> Message:
    return {"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def calls(*names: str, content: Any = None) -> Message:
    return says("assistant", content, tool_calls=[call(name) for name in names])


def result(name: str) -> Message:
    return says("tool", f"result of {name}", tool_call_id=name)


def short(messages: list[Message]) -> list[str]:
    return [f"{message['role'][0]}:{message['content']}" for message in messages]


@pytest.mark.parametrize(
    ("given", "merged", "expanded"),
    [
        ("u:a", "u:a", "u:a"),
        ("u:a u:b", "u:a\nb", "u:a a:ok u:b"),
        ("u:a a:b u:c", "u:a a:b u:c", "u:a a:b u:c"),
        ("a:a", "u:continue a:a u:continue", "u:continue a:a u:continue"),
        ("u:a a:b", "u:a a:b u:continue", "u:a a:b u:continue"),
        (
            "a:a a:b u:c u:d u:e",
            "u:continue a:a\nb u:c\nd\ne",
            "u:continue a:a u:continue a:b u:c a:ok u:d a:ok u:e",
        ),
        ("s:x", "s:x u:continue", "s:x u:continue"),
        ("u:a s:x u:b s:y", "s:x\ny u:a\nb", "s:x s:y u:a a:ok u:b"),
    ],
)
def test_roles_alternate(given: str, merged: str, expanded: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    messages = [says(names[item[0]], item[2:]) for item in given.split(" ")]
    assert short(padding_messages_merge(messages)) == merged.split(" ")
    assert short(padding_messages_expand(messages)) == expanded.split(" ")


def test_parts_are_kept() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    text = {"type": "text", "text": "what?"}
    messages = [says("user", "look"), says("user", [image, text]), says("user", "well?")]
    (merged,) = padding_messages_merge(messages)
    assert merged["content"] == [
        {"type": "text", "text": "look"},
        image,
        text,
        {"type": "text", "text": "well?"},
    ]
    assert padding_messages_expand(messages)[2]["content"] == [image, text]


@pytest.mark.parametrize("change", BOTH)
def test_results_stand_after_their_calls(change: Callable[..., list[Message]]) -> None:
    one, two = calls("1", "2"), calls("3", content="and")
    messages = [
        says("user", "a"),
        one,
        result("2"),
        says("user", "b"),
        result("1"),
        two,
        result("3"),
        says("assistant", "c"),
    ]
    assert change(messages) == [
        says("user", "a"),
        one,
        result("2"),
        result("1"),
        says("user", "b"),
        two,
        result("3"),
        says("assistant", "c"),
        says("user", "continue"),
    ]


@pytest.mark.parametrize("change", BOTH)
def test_a_conversation_may_end_with_results(change: Callable[..., list[Message]]) -> None:
    messages = [says("user", "a"), calls("1"), result("1")]
    assert change(messages) == messages


def test_merged_calls() -> None:
    messages = [says("user", "a"), says("assistant", "let me"), calls("1"), calls("2"), result("2")]
    merged = padding_messages_merge(messages)
    assert merged[1] == calls("1", "2", content="let me")
    assert merged[2:] == [result("2")]
    apart = [says("user", "a"), calls("1"), calls("2"), result("1"), result("2")]
    assert padding_messages_merge(apart) == [apart[0], apart[1], apart[3], apart[2], apart[4]]


def test_names() -> None:
    same = [says("user", "a", name="Ann"), says("user", "b", name="Ann")]
    assert padding_messages_merge(same) == [says("user", "a\nb", name="Ann")]
    other = [says("user", "a", name="Ann"), says("user", "b")]
    assert padding_messages_merge(other) == [says("user", "a\nb")]


def test_fillers() -> None:
    messages = [says("assistant", "a"), says("assistant", "b")]
    expanded = padding_messages_expand(messages, user_filler="go on", assistant_filler="fine")
    assert short(expanded) == ["u:go on", "a:a", "u:go on", "a:b", "u:go on"]
    merged = padding_messages_merge(messages, user_filler="weiter")
    assert short(merged) == ["u:weiter", "a:a\nb", "u:weiter"]


@pytest.mark.parametrize("change", BOTH)
def test_forms_and_errors(change: Callable[..., list[Message]]) -> None:
    assert change("a") == change([LLMHistoryItem("user", "a")]) == [says("user", "a")]
    with pytest.raises(ParameterError, match="empty"):
        change([])
    with pytest.raises(ParameterError, match=r"conversations\[0\]: unknown role"):
        change([says("king", "a")])


@pytest.mark.parametrize("change", BOTH)
def test_every_short_conversation(change: Callable[..., list[Message]]) -> None:
    """Roles alternate, no text is lost, the caller's messages are left alone, twice is once."""
    kinds = [says("system", "s"), says("user", "u"), says("assistant", "a"), calls("1")]
    for size in range(1, 6):
        for picked in itertools.product(kinds, repeat=size):
            messages = copy.deepcopy(list(picked))
            changed = change(messages)
            assert messages == list(picked)
            roles = [message["role"] for message in changed]
            spoken = [role for role in roles if role != "system"]
            assert roles[: len(roles) - len(spoken)] == ["system"] * (len(roles) - len(spoken))
            assert spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]
            texts = "".join(str(message["content"] or "") for message in changed)
            for letter in "su":
                assert texts.replace("continue", "").count(letter) == sum(
                    message["content"] == letter for message in picked
                )
            assert change(changed) == changed


def test_nothing_is_shared_that_is_changed() -> None:
    messages = normalise([says("assistant", "x"), calls("1"), calls("2")])
    before = copy.deepcopy(messages)
    padding_messages_merge(messages)[1]["tool_calls"].append(call("3"))
    assert messages == before
