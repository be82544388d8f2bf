"""Stop strings, over many random cuts of random texts."""

from __future__ import annotations

import random

import pytest

from byzerllm.decoding.text import AnswerText

ALPHABET = "ab¿字🌍 "


def pieces_of(text: str, dice: random.Random) -> list[str]:
    """`text` cut anywhere; some pieces are empty, as a token is that ends inside a character."""
    cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(1, 12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def expected(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """The rule spelled out: cut the text before the first stop string that has arrived."""
    text = ""
    for piece in pieces:
        text += piece
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], True
    return text, False


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_never_leave(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        text = "".join(dice.choices(ALPHABET, k=dice.randrange(0, 30)))
        stops = [
            "".join(dice.choices(ALPHABET, k=dice.randrange(1, 5)))
            for _ in range(dice.randrange(0, 4))
        ]
        pieces = pieces_of(text, dice)
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
    assert answer.push("ok <") == "ok "
    assert answer.push("/") == ""
    assert answer.push("b>") == "</b>"
    assert answer.push("</") == ""
    assert answer.push("s>more") == ""
    assert answer.stopped
    assert answer.flush() == ""


def test_an_end_gives_back_what_was_held() -> None:
    answer = AnswerText(["stop"])
    assert answer.push("do not sto") == "do not "
    assert answer.flush() == "sto"
