"""Streams show what whole answers show, however the text is cut into chunks."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from byzerllm import Templates
from byzerllm.client.chat import StreamReader
from byzerllm.requests import GenerateChunk, GenerateRequest, TokenLogprob, Usage
from byzerllm.templates import CutAt, Template, unchanged

REQUEST = GenerateRequest(id="r-1", prompt="?")
MARKERS = CutAt(("<|im_end|>", "\nUser:", "</s>"))
TEXTS = [
    "plain",
    "  padded \n",
    "an answer<|im_end|>\n<|im_start|>user",
    "a < b and <| so on",
    "first\nsecond\nUser: no\nUser:",
    "\nUser:",
    "<|im_end|>",
    "one \n two   three\n\n",
    "almost<|im_en",
    "x</s<|im_end|>",
    "",
]


def read(text: str, sizes: list[int], delta: bool, clean: Callable[[str], str]) -> list[str]:
    reader = StreamReader(REQUEST, "m", delta, clean)
    chunks, rest = [], text
    for size in sizes:
        chunks.append(GenerateChunk(text=rest[:size]))
        rest = rest[size:]
    chunks.append(GenerateChunk(text=rest, finish_reason="stop", usage=Usage()))
    shown = [reader.read(chunk) for chunk in chunks]
    return [item for item in shown if item is not None]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_cleaned_text(text: str) -> None:
    for seed in range(50):
        sizes = random.Random(seed).choices(range(1, 6), k=30)
        pieces = read(text, sizes, True, MARKERS)
        assert "".join(pieces) == MARKERS(text)
        wholes = read(text, sizes, False, MARKERS)
        assert wholes[-1] == MARKERS(text)
        for before, after in itertools.pairwise(wholes):
            assert after.startswith(before)


def test_a_piece_comes_as_soon_as_it_can() -> None:
    assert read("Hello <b> w", [5, 2, 1, 1, 2], True, MARKERS) == ["Hello", " <b", ">", " w", ""]
    assert read("ab", [1, 1], False, MARKERS) == ["a", "ab", "ab"]


def test_without_a_cleaner_nothing_is_held_back() -> None:
    assert read(" a <|im_end|>", [3, 9], True, unchanged) == [" a ", "<|im_end|", ">"]
    assert read(" a ", [1, 1], False, unchanged) == [" ", " a", " a "]


def test_a_cleaner_of_ones_own_sees_the_text_so_far() -> None:
    shout = Template(name="shout", render=str, clean=str.upper).clean
    assert read("abc", [1, 1], True, shout) == ["A", "B", "C"]
    assert read("abc", [1, 1], False, shout) == ["A", "AB", "ABC"]


def test_a_piece_is_never_taken_back() -> None:
    def without_brackets(text: str) -> str:
        return text.partition("[")[0] if text.endswith("]") else text

    assert read("a[b]", [1, 1, 1], True, without_brackets) == ["a", "[", "b", ""]
    assert read("a[b]", [1, 1, 1], False, without_brackets)[-1] == "a"


@pytest.mark.parametrize("name", ["qwen", "yi", "llama", "deepseek_code", "default"])
def test_every_template_with_markers_can_stream(name: str) -> None:
    template = getattr(Templates, name)()
    raw = f" Fine, thanks. {template.stop[0]}rest"
    assert "".join(read(raw, [4] * 10, True, template.clean)) == "Fine, thanks."


def test_first_marker_in_the_text_counts() -> None:
    cut = CutAt(("bc", "ab"))
    assert cut("xabc") == "x"
    assert cut.partial("xa") == "x"


def test_metadata_fills_up() -> None:
    reader = StreamReader(REQUEST, "m", True)
    assert reader.read(GenerateChunk(reasoning="hm")) == ""
    assert reader.metadata.reasoning_content == "hm"
    assert reader.metadata.first_token_time > 0
    one = TokenLogprob(token="a", id=5, logprob=-0.5, top=[("b", 6, -1.0)])
    assert reader.read(GenerateChunk(text="a", token_ids=[5], logprobs=[one])) == "a"
    assert reader.metadata.generated_tokens_count == 1
    assert reader.read(GenerateChunk(token_ids=[6])) is None
    assert reader.read(GenerateChunk(finish_reason="length", elapsed=2.0)) == ""
    found = reader.metadata
    assert found["generated_tokens_count"] == 2
    assert (found.finish_reason, found.speed, found.time_cost) == ("length", 1.0, 2.0)
    top = [{"token": "b", "id": 6, "logprob": -1.0}]
    assert found.logprobs == [{"token": "a", "id": 5, "logprob": -0.5, "top_logprobs": top}]
