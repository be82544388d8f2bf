"""The circuit breaker of a hosted model."""

from __future__ import annotations

import pytest

from byzerllm.errors import (
    BackendError,
    BadRequestError,
    ProviderUnavailableError,
    RateLimitedError,
)
from byzerllm.runtime.breaker import FAILURES, FIRST_SECONDS, LONGEST_SECONDS, CircuitBreaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("m", clock)


def fail(breaker: CircuitBreaker, times: int = FAILURES) -> None:
    for _ in range(times):
        breaker.failed(ProviderUnavailableError("down"))


def test_a_few_failures_do_nothing(breaker: CircuitBreaker) -> None:
    fail(breaker, FAILURES - 1)
    breaker.enter()
    breaker.succeeded()
    fail(breaker, FAILURES - 1)
    breaker.enter()
    assert breaker.cooling == 0


def test_a_failing_vendor_is_left_alone(breaker: CircuitBreaker) -> None:
    fail(breaker)
    assert breaker.cooling == FIRST_SECONDS
    with pytest.raises(ProviderUnavailableError, match="failed 5 times in a row") as caught:
        breaker.enter()
    assert caught.value.cooling is True
    assert caught.value.retryable is False
    assert caught.value.retry_after == FIRST_SECONDS
    assert "ProviderUnavailableError: down" in str(caught.value)


def test_one_probe_ends_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += FIRST_SECONDS
    breaker.enter()
    with pytest.raises(ProviderUnavailableError):
        breaker.enter()
    breaker.succeeded()
    breaker.enter()
    breaker.enter()


def test_a_failing_probe_makes_it_longer_up_to_a_limit(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker)
    pauses = []
    for _ in range(6):
        pauses.append(breaker.cooling)
        clock.now += breaker.cooling
        breaker.enter()
        fail(breaker, 1)
    assert pauses[:3] == [5, 10, 20]
    assert pauses[-1] == LONGEST_SECONDS


def test_the_vendors_own_wish_counts(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        breaker.failed(RateLimitedError("slow down", retry_after=30))
    assert breaker.cooling == 30


def test_refused_requests_show_that_the_vendor_is_well(breaker: CircuitBreaker) -> None:
    fail(breaker, FAILURES - 1)
    breaker.failed(BadRequestError("no"))
    fail(breaker, FAILURES - 1)
    breaker.enter()


def test_our_own_faults_say_nothing_of_the_vendor(breaker: CircuitBreaker) -> None:
    fail(breaker, FAILURES - 1)
    breaker.failed(BackendError("a slip"))
    fail(breaker, 1)
    assert breaker.cooling > 0


def test_a_probe_that_never_ends_does_not_block_for_ever(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker)
    clock.now += FIRST_SECONDS
    breaker.enter()
    clock.now += 1000
    breaker.enter()
