"""Several keys, used in turn."""

from __future__ import annotations

import pytest

from byzerllm.errors import AuthenticationError, BadRequestError, RateLimitedError
from byzerllm_saas import keys
from byzerllm_saas.keys import KeyRing


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    return now


def test_in_turn() -> None:
    ring = KeyRing(["a", "b", "c"])
    assert [ring.pick() for _ in range(7)] == list("abcabca")
    assert KeyRing([]).pick() == ""
    assert "a" not in repr(KeyRing(["aaaa"])).replace("Ring", "").replace("keys", "")


def test_a_failing_key_rests(clock: list[float]) -> None:
    ring = KeyRing(["a", "b"])
    assert ring.failed(ring.pick(), RateLimitedError("slow down", retry_after=5))
    assert [ring.pick() for _ in range(3)] == ["b", "b", "b"]
    clock[0] = 5.1
    assert {ring.pick(), ring.pick()} == {"a", "b"}


def test_when_all_rest_the_first_to_wake_is_tried(clock: list[float]) -> None:
    ring = KeyRing(["a", "b"])
    assert ring.failed("a", AuthenticationError("no"))
    assert not ring.failed("b", RateLimitedError("slow down"))
    assert ring.pick() == "b"


def test_what_is_not_about_the_key() -> None:
    ring = KeyRing(["a", "b"])
    assert not ring.failed("a", BadRequestError("no"))
    assert [ring.pick(), ring.pick()] == ["a", "b"]


def test_a_single_key_never_rests() -> None:
    ring = KeyRing(["a"])
    assert not ring.failed("a", AuthenticationError("no"))
    assert ring.pick() == "a"
