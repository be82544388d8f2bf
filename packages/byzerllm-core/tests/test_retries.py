"""When a request to a vendor's model is sent again, and after what pause."""

from __future__ import annotations

import pytest

from byzerllm.errors import ProviderError, ProviderUnavailableError, RateLimitedError
from byzerllm.runtime import retries
from byzerllm.runtime.retries import LONGEST_PAUSE_SECONDS, TRIES, VendorRetries

LONG = 600.0


def failure(**details: object) -> ProviderUnavailableError:
    return ProviderUnavailableError("down", **{"retryable": True, **details})


def pauses(error: ProviderError, left: float = LONG) -> list[float]:
    """Every pause until the error is final."""
    tried = VendorRetries()
    found: list[float] = []
    final = None
    while final is None:
        try:
            found.append(tried.pause(error, left))
        except ProviderError as raised:
            final = raised
    assert final is error
    return found


def test_tries_are_bounded() -> None:
    assert len(pauses(failure())) == TRIES - 1


@pytest.mark.parametrize(("jitter", "expected"), [(0.5, [0.25, 0.5, 1.0]), (1.0, [0.5, 1.0, 2.0])])
def test_pauses_double_and_are_jittered(
    monkeypatch: pytest.MonkeyPatch, jitter: float, expected: list[float]
) -> None:
    monkeypatch.setattr(retries.random, "uniform", lambda low, high: jitter)
    assert pauses(failure()) == expected


def test_callers_do_not_come_back_together() -> None:
    firsts = {VendorRetries().pause(failure(), LONG) for _ in range(50)}
    assert len(firsts) > 40
    assert all(0.25 <= pause <= 0.5 for pause in firsts)


def test_pauses_do_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "TRIES", 12)
    found = pauses(failure())
    assert len(found) == 11
    assert 0.5 * LONGEST_PAUSE_SECONDS <= found[-1] <= LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize("wanted", [0.0, 0.3, 7.0])
def test_the_vendors_wish_replaces_the_pause(wanted: float) -> None:
    found = pauses(RateLimitedError("slow down", retryable=True, retry_after=wanted))
    assert len(found) == TRIES - 1
    assert all(wanted <= pause <= wanted + 0.1 for pause in found)


def test_a_rate_limit_without_a_wish_is_waited_for_as_any_failure() -> None:
    found = pauses(RateLimitedError("slow down", retryable=True, retry_after=None))
    assert 0.25 <= found[0] <= 0.5


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (failure(retryable=False), LONG),
        (ProviderUnavailableError("says nothing of it"), LONG),
        (failure(retry_after=LONGEST_PAUSE_SECONDS + 1), LONG),
        (failure(retry_after=5.0), 4.0),
        (failure(), 0.1),
    ],
)
def test_final_at_once(error: ProviderError, left: float) -> None:
    assert pauses(error, left) == []


def test_the_last_error_is_the_one_that_is_raised() -> None:
    tried = VendorRetries()
    for _ in range(TRIES - 1):
        tried.pause(failure(), LONG)
    last = RateLimitedError("slow down", retryable=True, retry_after=0.0)
    with pytest.raises(RateLimitedError) as caught:
        tried.pause(last, LONG)
    assert caught.value is last


def test_listeners_are_told_of_each_repetition() -> None:
    told: list[tuple[str, str]] = []
    end = retries.listen(lambda model, reason: told.append((model, reason)))
    tried = VendorRetries("gpt")
    for _ in range(TRIES - 1):
        tried.pause(failure(), LONG)
    with pytest.raises(ProviderUnavailableError):
        tried.pause(failure(), LONG)
    end()
    VendorRetries("gpt").pause(failure(), LONG)
    assert told == [("gpt", "vendor")] * (TRIES - 1)
