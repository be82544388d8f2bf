from __future__ import annotations

import base64
import copy
import json
import timeit
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from byzerllm.errors import ParameterError
from byzerllm.messages import ROLES, normalise, text_of, with_image

HEADS = {
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "image/jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(20),
    "image/gif": b"GIF89a" + bytes(20),
    "image/webp": b"RIFF\x1a\x00\x00\x00WEBPVP8 " + bytes(20),
    "image/bmp": b"BM" + bytes(20),
    "image/tiff": b"II*\x00" + bytes(20),
}
PNG = base64.b64encode(HEADS["image/png"]).decode()
JPEG = base64.b64encode(HEADS["image/jpeg"]).decode()


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_one_text_is_one_user_message() -> None:
    assert normalise("Hello") == user("Hello")


def test_every_role_passes() -> None:
    for role in ROLES:
        messages = [{"role": role, "content": "x"}]
        assert normalise(messages) == messages


def test_the_callers_list_stays() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *user(json.dumps([{"text": "what?", "image": PNG}])),
        *user([{"text": "and this?"}, {"image": PNG}]),
        *user([{"type": "image_url", "image_url": "https://example.com/a.png"}]),
    ]
    before = copy.deepcopy(messages)
    found = with_image(normalise(messages), PNG)
    found[0]["content"] = "changed"
    assert messages == before


def test_objects_and_mappings() -> None:
    class Dumped:
        def model_dump(self, *, exclude_none: bool) -> dict[str, Any]:
            assert exclude_none
            return {"role": "assistant", "content": "b"}

    given = [
        SimpleNamespace(role="user", content="a"),
        Dumped(),
        MappingProxyType({"role": "user", "content": "c", "name": "Zhu"}),
    ]
    assert normalise(given) == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c", "name": "Zhu"},
    ]


def test_history_items() -> None:
    from byzerllm.client.types import LLMHistoryItem

    assert normalise([LLMHistoryItem(role="user", content="a")]) == user("a")


def test_tool_calls_need_no_content() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *user("2 + 2?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ]
    assert normalise(messages) == messages


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([{"text": "what?"}, {"image": PNG}], ["what?", f"data:image/png;base64,{PNG}"]),
        ([{"image": PNG, "text": "what?"}], [f"data:image/png;base64,{PNG}", "what?"]),
        ([{"text": "a"}, {"image": "https://x.org/a.png"}], ["a", "https://x.org/a.png"]),
        ([{"image": f"data:image/jpg,{JPEG}"}], [f"data:image/jpeg;base64,{JPEG}"]),
        ([{"image": f"data:image/jpg,{PNG}"}], [f"data:image/png;base64,{PNG}"]),
        ([{"image": f"data:image/webp;base64,{PNG}"}], [f"data:image/webp;base64,{PNG}"]),
        ([text("a"), image("https://x.org/a.png")], ["a", "https://x.org/a.png"]),
    ],
    ids=["two objects", "one object", "url", "no ;base64", "wrong type", "data url", "openai"],
)
@pytest.mark.parametrize("as_text", [True, False], ids=["JSON text", "list"])
def test_images(given: list[dict[str, Any]], parts: list[str], as_text: bool) -> None:
    content = json.dumps(given, ensure_ascii=False) if as_text else given
    found = normalise(user(content))[0]["content"]
    assert [p["text"] if p["type"] == "text" else p["image_url"]["url"] for p in found] == parts


@pytest.mark.parametrize("kind", HEADS)
def test_the_type_comes_from_the_first_bytes(kind: str) -> None:
    encoded = base64.encodebytes(HEADS[kind]).decode()
    (part,) = normalise(user([{"image": encoded}]))[0]["content"]
    assert part["image_url"]["url"].startswith(f"data:{kind};base64,")
    decoded = base64.b64decode(part["image_url"]["url"].partition(",")[2], validate=True)
    assert decoded == HEADS[kind]


def test_json_text_of_texts_alone_stays_a_text() -> None:
    assert normalise(user(' [{"text": "a"}, {"text": "b"}]')) == user("a\nb")


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a", "id": 3}]',
        '[{"text": "a"}, 1]',
        '[{"text": 1}]',
        '[{"text": "a"}',
        '["text", "image"]',
        '[{"text": "a"}] is JSON, why?',
        '{"text": "a"}',
        '{"input": "Hi", "voice": "echo"}',
        '[{"type": "text", "text": "a", "x": 1}]',
        "[]",
        "[text] and [image]",
        "[",
        "",
        "  \n",
    ],
)
def test_what_looks_like_json_stays(content: str) -> None:
    assert normalise(user(content)) == user(content)


def test_openai_parts_pass() -> None:
    parts = [
        text("Listen"),
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_url", "image_url": {"url": "https://x.org/a.png", "detail": "low"}},
    ]
    assert normalise(user(parts)) == user(parts)
    assert normalise(user(["Hi", image("https://x.org")])) == user(
        [text("Hi"), image("https://x.org")]
    )


@pytest.mark.parametrize(
    ("conversations", "says"),
    [
        ([], "empty"),
        ("", "empty"),
        (None, "got NoneType"),
        ({"role": "user", "content": "x"}, "got dict"),
        (b"x", r"conversations\[0\]: a message is a mapping"),
        (["x"], r"conversations\[0\]: a message is a mapping with role and content \(got str\)"),
        ([{"content": "x"}], r"conversations\[0\]: role is missing; one of assistant"),
        (
            [*user("x"), {"role": "asistant", "content": "x"}],
            r"conversations\[1\]: unknown role 'asistant' \(did you mean 'assistant'\?\)",
        ),
        ([{"role": ["user"], "content": "x"}], r"unknown role \['user'\]"),
        ([{"role": "user"}], r"conversations\[0\]: content is missing"),
        ([{"role": "assistant", "content": None}], "content is missing"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "content is missing"),
        (user(3), "content is int"),
        (user({"text": "x"}), "content is dict"),
        (user([]), "content is an empty list"),
        (user([3]), "a part is int"),
        (user([{}]), "a part has no type"),
        (
            user([{"type": "texts", "texts": ""}]),
            r"unknown part type 'texts' \(did you mean 'text'",
        ),
        (user([{"type": 3}]), "unknown part type 3"),
        (user([{"type": "text"}]), "needs the key 'text'"),
        (user([{"type": "text", "text": 3}]), "text of a part is int"),
        (user([{"type": "image_url", "image_url": {}}]), r"image_url of a part needs \{'url'"),
        (user([{"type": "input_audio", "input_audio": "x"}]), "input_audio of a part is str"),
        (user([{"image": "cat.png"}]), "image of a part is neither"),
        (user([{"image": 3}]), "image of a part is int"),
        (user('[{"text": "a", "image": "cat.png"}]'), "image of a part is neither"),
    ],
)
def test_what_is_wrong_is_named(conversations: Any, says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        normalise(conversations)


def test_with_image() -> None:
    messages = [*user("first"), {"role": "assistant", "content": "ok"}, *user("what is it?")]
    found = with_image(messages, PNG)
    assert found[:2] == messages[:2]
    assert found[2]["content"] == [text("what is it?"), image(f"data:image/png;base64,{PNG}")]
    again = with_image(found, "https://x.org/b.png")
    assert again[2]["content"] == [*found[2]["content"], image("https://x.org/b.png")]


@pytest.mark.parametrize("wrong", ["", "cat.png", "data:text/plain,abc", base64.b64encode(b"x"), 3])
def test_with_image_needs_an_image(wrong: Any) -> None:
    with pytest.raises(ParameterError, match="a URL, a data URL or the base64 of a PNG"):
        with_image(user("x"), wrong)


def test_with_image_needs_a_user_message() -> None:
    with pytest.raises(ParameterError, match="no user message"):
        with_image([{"role": "system", "content": "x"}], PNG)


def test_text_of() -> None:
    assert text_of("a") == "a"
    assert text_of(None) == ""
    assert text_of([text("a"), image("https://x.org"), text("b")]) == "a\nb"


def test_an_ordinary_message_costs_little() -> None:
    messages = user("What is the capital city of France?")
    rounds = 5_000
    best = min(timeit.repeat(lambda: normalise(messages), number=rounds, repeat=7)) / rounds
    assert best < 10e-6
