"""Requests and tokens per minute."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from byzerllm.errors import RateLimitedError
from byzerllm_saas import limits
from byzerllm_saas.limits import RateLimit, Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_window_never_holds_more_than_its_limit() -> None:
    window, now, taken = Window(10), 0.0, []
    for step in range(200):
        now += (step % 7) * 0.9
        at = window.earliest(1, now)
        window.take(1, at)
        taken.append(at)
    for at in taken:
        assert sum(at - 60 + 1e-6 < other <= at for other in taken) <= 10
    assert taken == sorted(taken)


def test_tokens_wait_for_as_many_as_they_are() -> None:
    window = Window(100)
    window.take(60, window.earliest(60, 0.0))
    assert window.earliest(40, 1.0) == 1.0
    assert window.earliest(41, 1.0) == 60.0


def test_the_real_number_replaces_the_guess() -> None:
    window = Window(100)
    share = window.take(90, 0.0)
    assert window.earliest(50, 1.0) == 60.0
    window.correct(share, 20)
    assert window.earliest(50, 1.0) == 1.0


@pytest.mark.parametrize(("rate", "first_wait"), [(0.5, 120.0), (1, 60.0), (2.5, 0.0)])
def test_rates_below_one_and_fractions(rate: float, first_wait: float) -> None:
    window = Window(rate)
    window.take(1, 0.0)
    assert window.earliest(1, 0.0) == first_wait
    taken = [window.take(1, window.earliest(1, 0.0)).at for _ in range(50)]
    assert 50 / taken[-1] * 60 == pytest.approx(rate, rel=0.1)


def test_refuses_at_once_what_would_wait_too_long() -> None:
    clock = Clock()
    limit = RateLimit(2, 0, longest=30, clock=clock)

    async def enter() -> None:
        await limit.enter()

    asyncio.run(enter())
    asyncio.run(enter())
    with pytest.raises(RateLimitedError, match=r"saas\.rpm=2.*60\.0 s.*rate_wait=30") as caught:
        asyncio.run(enter())
    assert caught.value.retry_after == 60.0
    assert caught.value.own_limit
    assert pickle.loads(pickle.dumps(caught.value)).details == caught.value.details
    clock.now += 61
    asyncio.run(enter())


def test_waits_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MINUTE", 0.2)
    order: list[int] = []

    async def main() -> None:
        limit = RateLimit(3, 0, longest=5)

        async def one(number: int) -> None:
            await limit.enter()
            order.append(number)

        start = asyncio.get_running_loop().time()
        await asyncio.gather(*(one(number) for number in range(9)))
        assert 0.4 <= asyncio.get_running_loop().time() - start < 1.5

    asyncio.run(main())
    assert order == list(range(9))


def test_who_leaves_gives_his_place_back() -> None:
    async def main() -> None:
        clock = Clock()
        limit = RateLimit(1, 100, longest=500, clock=clock)
        await limit.enter(10)
        waiting = asyncio.ensure_future(limit.enter(90))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        clock.now += 60
        async with asyncio.timeout(1):
            await limit.enter(100)

    asyncio.run(main())


def test_no_limit_costs_nothing() -> None:
    limit = RateLimit(0, 0)
    assert not limit.limited
    asyncio.run(limit.enter(10**9))


def test_more_tokens_than_a_minute_has() -> None:
    """Such a request goes when the window is empty, and not never."""
    limit = RateLimit(0, 100)
    ticket = asyncio.run(limit.enter(10_000))
    ticket.used(10_000)


def test_a_part_of_the_limit() -> None:
    limit = RateLimit(10, 0, longest=1, clock=Clock())
    limit.set_share(0.5)

    async def main() -> None:
        for _ in range(5):
            await limit.enter()
        with pytest.raises(RateLimitedError, match=r"saas\.rpm=10"):
            await limit.enter()

    asyncio.run(main())
