"""Events out of bytes, however the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byzerllm_saas import sse
from byzerllm_saas.sse import Event, EventParser, EventTooLarge

STREAM = (
    b"\xef\xbb\xbf: a comment\n"
    b"data: one\n\n"
    b"event: ping\r\ndata:two\r\n\r\n"
    b"id: 7\rdata: three\rdata: lines\r\r"
    b"data\n\n"
    b"meta: {}\ndata:  kept space\n\n"
    b"data: \xe4\xb8\x96\xe7\x95\x8c\n\n"
)
EVENTS = [
    Event(b"one"),
    Event(b"two", "ping"),
    Event(b"three\nlines", "", {"id": "7"}),
    Event(b""),
    Event(b" kept space", "", {"meta": "{}"}),
    Event("世界".encode()),
]


def read(pieces: list[bytes]) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.close()


def test_at_once() -> None:
    assert read([STREAM]) == EVENTS


def test_byte_by_byte() -> None:
    assert read([STREAM[at : at + 1] for at in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cut_anywhere(places: list[int]) -> None:
    ends = [0, *sorted(places), len(STREAM)]
    assert read([STREAM[a:b] for a, b in itertools.pairwise(ends)]) == EVENTS


def test_the_last_event_needs_no_empty_line() -> None:
    assert read([b"data: [DONE]"]) == [Event(b"[DONE]")]
    assert read([b"data: [DONE]\n"]) == [Event(b"[DONE]")]


def test_nothing() -> None:
    assert read([]) == read([b"\n\n"]) == read([b": ping\n\n"]) == []


@pytest.mark.parametrize("piece", [b"x" * 50, b"data: " + b"x" * 50 + b"\n"])
def test_an_event_without_an_end(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(sse, "LARGEST_EVENT", 1000)
    with pytest.raises(EventTooLarge):
        read([b"data: ", *[piece] * 30])
