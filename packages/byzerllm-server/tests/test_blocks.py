"""Answers cut to blocks."""

from __future__ import annotations

import pytest

from byzerllm.errors import InvalidAnswerError
from byzerllm.requests import GenerateChunk, ToolCallDelta
from byzerllm_server.api.blocks import Began, Block, Blocks, Ended, Grew


def read(*chunks: GenerateChunk) -> tuple[list[str], list[Block]]:
    """The steps as text, and the blocks."""
    blocks = Blocks()
    said = []
    for chunk in chunks:
        for step in blocks.read(chunk):
            if isinstance(step, Grew):
                said.append(f"{step.block.index} {step.text}")
            elif isinstance(step, Began):
                said.append(f"{step.block.index} begins: {step.block.kind}")
            elif isinstance(step, Ended):
                said.append(f"{step.block.index} ends{', the last' if step.last else ''}")
    return said, blocks.found


def call(index: int, id_: str = "", name: str = "", arguments: str = "") -> GenerateChunk:
    piece = ToolCallDelta(index=index, id=id_, name=name, arguments=arguments)
    return GenerateChunk(tool_calls=[piece])


END = GenerateChunk(finish_reason="stop")


def test_thoughts_text_and_calls_follow_each_other() -> None:
    said, blocks = read(
        GenerateChunk(reasoning="hm"),
        GenerateChunk(reasoning="m", text="I "),
        GenerateChunk(text="look"),
        call(0, "a", "weather"),
        call(0, arguments='{"city": '),
        call(0, arguments='"Oslo"}'),
        call(1, "b", "time", "{}"),
        GenerateChunk(text="so"),
        END,
    )
    assert said == [
        "0 begins: thinking",
        "0 hm",
        "0 m",
        "0 ends",
        "1 begins: text",
        "1 I ",
        "1 look",
        "1 ends",
        "2 begins: tool",
        '2 {"city": ',
        '2 "Oslo"}',
        "2 ends",
        "3 begins: tool",
        "3 {}",
        "3 ends",
        "4 begins: text",
        "4 so",
        "4 ends, the last",
    ]
    assert [block.text for block in blocks[:2]] == ["hmm", "I look"]
    assert (blocks[2].id, blocks[2].name, blocks[2].arguments()) == (
        "a",
        "weather",
        {"city": "Oslo"},
    )


def test_an_answer_of_nothing_is_an_empty_text() -> None:
    assert read(END)[0] == ["0 begins: text", "0 ends, the last"]


def test_the_last_chunk_may_bring_everything() -> None:
    whole = call(0, "a", "weather", "{}")
    whole.text, whole.finish_reason = "I look", "tool_calls"
    said, _ = read(whole)
    assert said == [
        "0 begins: text",
        "0 I look",
        "0 ends",
        "1 begins: tool",
        "1 {}",
        "1 ends, the last",
    ]


def test_calls_do_not_mix() -> None:
    first, second = call(0, "a", "weather"), call(1, "b", "time")
    assert len(read(first, second, call(0), END)[1]) == 2
    with pytest.raises(InvalidAnswerError):
        read(first, second, call(0, arguments="{}"))
    with pytest.raises(InvalidAnswerError):
        read(first, GenerateChunk(text="so"), call(0, arguments="{}"))


@pytest.mark.parametrize("text", ["{", "[]", "3", '"x"'])
def test_arguments_are_an_object(text: str) -> None:
    with pytest.raises(InvalidAnswerError, match="weather"):
        Block(0, "tool", "a", "weather", [text]).arguments()


def test_no_arguments_are_an_empty_object() -> None:
    assert Block(0, "tool", "a", "weather").arguments() == {}
