"""Whole characters and stop strings, over many random cuts of random texts."""

from __future__ import annotations

import random

import pytest

from byzerllm_backend_llamacpp.text import AnswerText

ALPHABET = "ab¿字🌍 "


def pieces_of(data: bytes, dice: random.Random) -> list[bytes]:
    """`data` cut anywhere, also inside characters."""
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randrange(1, 12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def expected(pieces: list[bytes], stops: list[str]) -> tuple[str, bool]:
    """The rule spelled out: cut the text before the first stop string that has arrived."""
    seen = b""
    for piece in pieces:
        seen += piece
        text = seen.decode("utf-8", "ignore")
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], True
    return seen.decode("utf-8", "ignore"), False


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_never_leave(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        text = "".join(dice.choices(ALPHABET, k=dice.randrange(0, 30)))
        stops = [
            "".join(dice.choices(ALPHABET, k=dice.randrange(1, 5)))
            for _ in range(dice.randrange(0, 4))
        ]
        pieces = pieces_of(text.encode(), dice)
        answer, given = AnswerText(stops), ""
        wanted, stopped = expected(pieces, stops)
        for piece in pieces:
            given += answer.push(piece)
            assert wanted.startswith(given)
            if answer.stopped:
                break
        given += answer.flush()
        assert (given, answer.stopped) == (wanted, stopped)
        assert answer.released == len(given)


def test_what_may_begin_a_stop_string_waits() -> None:
    answer = AnswerText(["</s>"])
    assert answer.push(b"ok <") == "ok "
    assert answer.push(b"/") == ""
    assert answer.push(b"b>") == "</b>"
    assert answer.push(b"</") == ""
    assert answer.push(b"s>more") == ""
    assert answer.stopped
    assert answer.flush() == ""


def test_an_end_gives_back_what_was_held() -> None:
    answer = AnswerText(["stop"])
    assert answer.push(b"do not sto") == "do not "
    assert answer.flush() == "sto"


def test_characters_are_never_split() -> None:
    earth = "🌍".encode()
    answer = AnswerText()
    assert [answer.push(earth[n : n + 1]) for n in range(4)] == ["", "", "", "🌍"]


def test_an_unfinished_character_is_dropped_and_a_broken_one_replaced() -> None:
    answer = AnswerText()
    assert answer.push(b"a\xff\xe5") == "a\ufffd"
    assert answer.flush() == ""
