"""The circuit breaker of a hosted model."""

from __future__ import annotations

import random

import pytest

from byzerllm.errors import (
    BackendError,
    BadRequestError,
    ContextLengthError,
    ProviderProtocolError,
    ProviderUnavailableError,
    RateLimitedError,
)
from byzerllm.runtime.breaker import (
    FAILURES,
    FIRST_SECONDS,
    LONGEST_SECONDS,
    PROBE_SECONDS,
    WINDOW_REQUESTS,
    WINDOW_SECONDS,
    CircuitBreaker,
    Entered,
)

DOWN = ProviderUnavailableError("down")


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


def request(breaker: CircuitBreaker, error: BaseException | None = None) -> None:
    """One after the other."""
    entered = breaker.enter()
    end(breaker, entered, error)


def end(breaker: CircuitBreaker, entered: Entered, error: BaseException | None = None) -> None:
    if error is None:
        breaker.succeeded(entered)
    else:
        breaker.failed(entered, error)
    breaker.left(entered)


def fail(breaker: CircuitBreaker, times: int = FAILURES) -> None:
    for _ in range(times):
        request(breaker, DOWN)


def test_a_few_failures_do_nothing(breaker: CircuitBreaker) -> None:
    fail(breaker, FAILURES - 1)
    request(breaker)
    fail(breaker, FAILURES - 1)
    breaker.check()
    assert breaker.cooling == 0


def test_a_failing_vendor_is_left_alone(breaker: CircuitBreaker) -> None:
    fail(breaker)
    assert breaker.cooling == FIRST_SECONDS
    for refuse in (breaker.check, breaker.enter):
        with pytest.raises(ProviderUnavailableError, match="failed 5 times in a row") as caught:
            refuse()
        assert caught.value.cooling is True
        assert caught.value.retryable is False
        assert caught.value.retry_after == FIRST_SECONDS
        assert "ProviderUnavailableError: down" in str(caught.value)


def test_one_probe_ends_it(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += FIRST_SECONDS
    breaker.check()
    probe = breaker.enter()
    with pytest.raises(ProviderUnavailableError):
        breaker.check()
    with pytest.raises(ProviderUnavailableError):
        breaker.enter()
    end(breaker, probe)
    breaker.enter()
    breaker.enter()
    assert breaker.cooling == 0


def test_a_failing_probe_makes_it_longer_up_to_a_limit(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker)
    pauses = []
    for _ in range(6):
        pauses.append(breaker.cooling)
        clock.now += breaker.cooling
        fail(breaker, 1)
    assert pauses[:3] == [5, 10, 20]
    assert pauses[-1] == LONGEST_SECONDS


def test_the_vendors_own_wish_counts(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES):
        request(breaker, RateLimitedError("slow down", retry_after=30))
    assert breaker.cooling == 30


@pytest.mark.parametrize("error", [BadRequestError("no"), ContextLengthError("too long")])
def test_refused_requests_show_that_the_vendor_is_well(
    breaker: CircuitBreaker, error: Exception
) -> None:
    fail(breaker, FAILURES - 1)
    request(breaker, error)
    fail(breaker, FAILURES - 1)
    breaker.check()


@pytest.mark.parametrize(
    "error",
    [
        BackendError("a slip"),
        ProviderProtocolError("garbage"),
        RateLimitedError("saas.rpm", own_limit=True),
    ],
)
def test_what_says_nothing_of_the_vendor(breaker: CircuitBreaker, error: Exception) -> None:
    fail(breaker, FAILURES - 1)
    request(breaker, error)
    breaker.check()
    fail(breaker, 1)
    assert breaker.cooling > 0


def test_a_probe_that_never_ends_does_not_block_for_ever(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker)
    clock.now += FIRST_SECONDS
    breaker.enter()
    clock.now += PROBE_SECONDS
    breaker.enter()


def test_the_next_one_probes_when_a_probe_was_cancelled(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker)
    clock.now += FIRST_SECONDS
    breaker.left(breaker.enter())
    request(breaker)
    assert breaker.cooling == 0


def test_who_entered_before_has_no_say_in_the_cooldown(breaker: CircuitBreaker) -> None:
    """Or 64 in flight would make the first pause the longest, or one of them end it."""
    early = [breaker.enter() for _ in range(20)]
    fail(breaker, 21)
    assert breaker.cooling == FIRST_SECONDS
    for entered in early[:10]:
        end(breaker, entered, DOWN)
    assert breaker.cooling == FIRST_SECONDS
    for entered in early[10:]:
        end(breaker, entered)
    assert breaker.cooling == FIRST_SECONDS


def test_failures_of_a_burst_come_back_first(breaker: CircuitBreaker) -> None:
    """A third of 60 requests fails before any answer is here."""
    entered = [breaker.enter() for _ in range(60)]
    for one in entered[:20]:
        end(breaker, one, DOWN)
    breaker.check()
    for one in entered[20:]:
        end(breaker, one)
    breaker.check()


def test_timeouts_of_a_burst_come_back_last(breaker: CircuitBreaker) -> None:
    """Nothing but failures is heard at the end, although most were answered."""
    entered = [breaker.enter() for _ in range(60)]
    for one in entered[::2]:
        end(breaker, one)
    for one in entered[1::2]:
        end(breaker, one, DOWN)
    breaker.check()


def test_the_end_of_a_burst_is_no_sign(breaker: CircuitBreaker, clock: Clock) -> None:
    """The last to be heard of are timeouts, and what is asked again because it failed before."""
    entered = [breaker.enter() for _ in range(60)]
    for one in entered[10:]:
        end(breaker, one)
    clock.now += 2
    for one in entered[:10]:
        end(breaker, one, DOWN)
    fail(breaker, 10)
    breaker.check()
    clock.now += WINDOW_SECONDS
    fail(breaker, 1)
    assert breaker.cooling > 0


def test_a_burst_that_fails_as_a_whole_is_enough(breaker: CircuitBreaker) -> None:
    entered = [breaker.enter() for _ in range(60)]
    for one in entered[:59]:
        end(breaker, one, DOWN)
    assert breaker.cooling == 0
    end(breaker, entered[59], DOWN)
    assert breaker.cooling > 0


def busy(breaker: CircuitBreaker, clock: Clock, share: float, requests: int) -> int:
    """How often a vendor that fails this share is left alone, by 64 callers, 400 requests/s."""
    chance = random.Random(7)
    flying = [breaker.enter() for _ in range(64)]
    cooled = 0
    for _ in range(requests):
        clock.now += 1 / 400
        entered = flying.pop(chance.randrange(len(flying)))
        end(breaker, entered, DOWN if chance.random() < share else None)
        if breaker.cooling:
            cooled += 1
            clock.now += breaker.cooling
            request(breaker)
        flying.append(breaker.enter())
    return cooled


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_random_failures_among_many_are_the_retries_business(
    breaker: CircuitBreaker, clock: Clock, share: float
) -> None:
    assert busy(breaker, clock, share, 20_000) == 0


def test_a_vendor_that_nearly_always_fails_is_left_alone(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    assert busy(breaker, clock, 0.95, 2_000) >= 1


def test_the_share_is_that_of_the_last_seconds(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(50):
        request(breaker)
    clock.now += WINDOW_SECONDS
    for number in range(WINDOW_REQUESTS):
        breaker.check()
        request(breaker, None if number % 5 == 4 else DOWN)
    # 16 of 20 failed, never five in a row.
    assert breaker.cooling == 0
    request(breaker, DOWN)
    assert breaker.cooling == FIRST_SECONDS
    with pytest.raises(ProviderUnavailableError, match="failed 17 of its last 21 requests"):
        breaker.check()
