from __future__ import annotations

from collections import Counter

import pytest

from byzerllm.balancers import Balancer, LeastBusy, LeastRecentlyUsed, RoundRobin, WorkerView
from byzerllm.errors import ParameterError
from byzerllm.plugins import get_plugins


def workers(*numbers: int) -> list[WorkerView]:
    return [WorkerView(f"w{number}", number) for number in numbers]


def pick(balancer: Balancer, views: list[WorkerView], count: int) -> list[int]:
    """As a router does: what was picked is marked as used."""
    picked = []
    for _ in range(count):
        view = balancer.pick(views)
        view.last_used = max(each.last_used for each in views) + 1
        view.in_flight += 1
        picked.append(view.index)
    return picked


@pytest.mark.parametrize("name", ["round_robin", "lru", "least_busy"])
def test_built_in_ones_share_evenly(name: str) -> None:
    balancer = get_plugins().balancers.get(name)()
    assert Counter(pick(balancer, workers(0, 1, 2), 12)) == {0: 4, 1: 4, 2: 4}


@pytest.mark.parametrize("name", ["round_robin", "lru", "least_busy"])
def test_one_worker(name: str) -> None:
    assert pick(get_plugins().balancers.get(name)(), workers(4), 3) == [4, 4, 4]


def test_round_robin_goes_on_where_workers_come_and_go() -> None:
    balancer = RoundRobin()
    assert pick(balancer, workers(0, 1, 2), 2) == [0, 1]
    assert pick(balancer, workers(0, 2), 3) == [2, 0, 2]
    assert pick(balancer, workers(0, 1, 2, 3), 2) == [3, 0]


def test_lru_takes_the_one_that_rested_longest() -> None:
    first, second, third = views = workers(0, 1, 2)
    first.last_used, second.last_used, third.last_used = 5, 3, 4
    assert pick(LeastRecentlyUsed(), views, 3) == [1, 2, 0]


def test_least_busy_looks_at_what_is_in_flight() -> None:
    first, second, third = views = workers(0, 1, 2)
    first.in_flight, second.in_flight, third.in_flight = 2, 1, 1
    first.last_used, second.last_used, third.last_used = 1, 3, 2
    assert pick(LeastBusy(), views, 4) == [2, 1, 0, 2]


def test_names() -> None:
    assert sorted(get_plugins().balancers) == ["least_busy", "lru", "round_robin"]
    with pytest.raises(ParameterError, match=r"did you mean 'round_robin'"):
        get_plugins().balancers.get("round-robin")
