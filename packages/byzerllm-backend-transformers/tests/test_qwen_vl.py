"""The form of the first Qwen-VL: JSON with response and history, pictures by name, no files."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from PIL import Image

from byzerllm.errors import ParameterError
from byzerllm.requests import GenerateChunk
from byzerllm_backend_transformers.conversation import with_parts
from byzerllm_backend_transformers.pictures import read_pictures
from byzerllm_backend_transformers.qwen_vl import Talk, spelled
from hf_models import vision

Message = dict[str, Any]
NAME = re.compile(r"Picture 1: <img>([0-9a-f]{32}\.png)</img>\n这是什么")


def url_of(color: str) -> str:
    target = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def user(text: str, *colors: str) -> Message:
    """A message as the client makes it: pictures after the text."""
    images = [{"type": "image_url", "image_url": {"url": url_of(color)}} for color in colors]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def talk_of(messages: list[Message]) -> Talk:
    converted, sent = with_parts(messages)
    return Talk.of(converted, read_pictures(sent))


def answered(talk: Talk, *pieces: str) -> list[GenerateChunk]:
    async def chunks() -> AsyncGenerator[GenerateChunk, None]:
        for piece in pieces[:-1]:
            yield GenerateChunk(text=piece)
        yield GenerateChunk(text=pieces[-1], finish_reason="stop")

    async def gather() -> list[GenerateChunk]:
        return [chunk async for chunk in talk.as_json(chunks())]

    return asyncio.run(gather())


def whole(talk: Talk, *pieces: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads("".join(chunk.text for chunk in answered(talk, *pieces)))
    return answer


def kinds(message: Message) -> list[str]:
    return [part["type"] for part in message["content"]]


def test_a_first_round() -> None:
    talk = talk_of([user("这是什么", "red")])
    assert kinds(talk.messages[0]) == ["image", "text"]
    answer = whole(talk, "图中是", "一只狗")
    assert answer["response"] == "图中是一只狗"
    question, reply = answer["history"]
    assert NAME.fullmatch(question["content"])
    assert reply == {"role": "assistant", "content": "图中是一只狗"}


def test_further_rounds_bring_the_picture_again_and_it_counts_once() -> None:
    conversation: list[Message] = []
    for number, text in enumerate(("这是什么", "能圈出狗么？", "and the sea?")):
        talk = talk_of([*conversation, user(text, "red")])
        assert len(talk.pictures) == 1
        assert kinds(talk.messages[0]) == ["image", "text"]
        assert all(kinds(m) == ["text"] for m in talk.messages[1:])
        assert talk.messages[-1]["content"][-1]["text"] == text
        conversation = whole(talk, f"answer {number}")["history"]
    assert len(conversation) == 6
    assert [m["content"] for m in conversation[1:]][::2] == ["answer 0", "answer 1", "answer 2"]
    assert NAME.fullmatch(conversation[0]["content"])


def test_a_new_picture_beside_the_old_one_is_the_second() -> None:
    history = whole(talk_of([user("这是什么", "red")]), "red")["history"]
    talk = talk_of([*history, user("and this?", "red", "blue")])
    assert [kinds(m).count("image") for m in talk.messages] == [1, 0, 1]
    assert [p.image.getpixel((0, 0)) for p in talk.pictures] == [(255, 0, 0), (0, 0, 255)]
    assert talk.history[2]["content"].startswith("Picture 2: <img>")
    again = talk_of([*whole(talk, "blue")["history"], user("both?", "red", "blue")])
    assert [kinds(m).count("image") for m in again.messages] == [1, 0, 1, 0, 0]


def test_two_equal_pictures_of_one_message_are_two() -> None:
    talk = talk_of([user("what differs?", "red", "red")])
    assert kinds(talk.messages[0]) == ["image", "image", "text"]
    assert talk.history[0]["content"].count("<img>") == 2
    again = talk_of([*whole(talk, "nothing")["history"], user("sure?", "red")])
    assert [kinds(m).count("image") for m in again.messages] == [2, 0, 0]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "../../../etc/passwd",
        "http://localhost/a.png",
        f"{'0' * 32}.png",
        "",
    ],
)
def test_a_name_is_looked_up_among_the_request_s_pictures_alone(name: str) -> None:
    said = {"role": "user", "content": f"Picture 1: <img>{name}</img>\n这是什么"}
    reply = {"role": "assistant", "content": "?"}
    with pytest.raises(ParameterError, match=r"message 0.*does not bring") as raised:
        talk_of([said, reply, user("and now?", "red")])
    assert raised.value.parameter == "image"
    with pytest.raises(ParameterError, match="message 0"):
        talk_of([said])


def test_tags_elsewhere_are_text() -> None:
    text = "what does <img>/etc/passwd</img> mean in HTML?"
    talk = talk_of([user(text)])
    assert talk.messages == [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert talk.pictures == []
    tag = "Picture 1: <img>/etc/passwd</img>\n"
    talk = talk_of([{"role": "assistant", "content": tag}, user("hm")])
    assert talk.history[0]["content"] == tag
    assert talk.pictures == []


def test_pieces_of_a_stream_are_those_of_its_json() -> None:
    talk = talk_of([user("say it", "red")])
    chunks = answered(talk, 'he said "', "\\o/\n", "\x07", "", "狗 🌍")
    assert chunks[0].text == '{"response": "he said \\"'
    assert chunks[1].text == "\\\\o/\\n"
    assert "狗 🌍" in chunks[-1].text
    answer = json.loads("".join(chunk.text for chunk in chunks))
    assert answer["response"] == 'he said "\\o/\n\x07狗 🌍' == answer["history"][-1]["content"]


def test_system_messages_stay_in_the_history() -> None:
    talk = talk_of([{"role": "system", "content": "be brief"}, user("hi")])
    history = whole(talk, "hello")["history"]
    assert [m["role"] for m in history] == ["system", "user", "assistant"]
    assert history[0]["content"] == "be brief"


def test_places_are_spelled_as_the_first_one_did() -> None:
    tokens = vision.tokenizer(None)
    found = spelled(tokens)
    ids = tokens.convert_tokens_to_ids(["<|object_ref_start|>", "<|box_end|>"])
    assert [found[id_] for id_ in ids] == ["<ref>", "</box>"]
