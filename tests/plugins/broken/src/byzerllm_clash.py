"""Offers a balancer under a name that core has taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import byzerllm
from byzerllm.balancers import Balancer, WorkerView


class NotTheLeastRecentlyUsed(Balancer):
    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        return workers[0]


@byzerllm.hookimpl
def register_balancers(register: Callable[[str, type[Balancer]], None]) -> None:
    register("lru", NotTheLeastRecentlyUsed)
