"""Balancers: which worker takes the next request.

A balancer lives in the caller, one per deployment, and sees what this caller knows of each worker.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from byzerllm.hookspecs import hookimpl


@dataclass(slots=True)
class WorkerView:
    """What a caller knows of one worker.

    Attributes:
        id: the worker's id.
        index: its place in the deployment, 0 first.
        in_flight: requests of this caller that it has now.
        last_used: a counter that grows with every pick; 0 is never.
    """

    id: str
    index: int
    in_flight: int = 0
    last_used: int = 0


class Balancer(abc.ABC):
    """Picks a worker for one request; called under a lock, must be quick."""

    @abc.abstractmethod
    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        """One of `workers`, which is never empty and is ordered by index."""


class RoundRobin(Balancer):
    """One after the other."""

    def __init__(self) -> None:
        self._last = -1

    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        later = (worker for worker in workers if worker.index > self._last)
        worker = next(later, workers[0])
        self._last = worker.index
        return worker


class LeastRecentlyUsed(Balancer):
    """The one whose last request is the longest ago."""

    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        return min(workers, key=lambda worker: worker.last_used)


class LeastBusy(Balancer):
    """The one with the fewest requests in flight; among equals, the least recently used."""

    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        return min(workers, key=lambda worker: (worker.in_flight, worker.last_used))


@hookimpl
def register_balancers(register: Callable[[str, type[Balancer]], None]) -> None:
    register("round_robin", RoundRobin)
    register("lru", LeastRecentlyUsed)
    register("least_busy", LeastBusy)
