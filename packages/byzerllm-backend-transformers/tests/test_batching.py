"""Texts of many requests in common batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from byzerllm.errors import BackendError
from byzerllm_backend_transformers.batching import Batches


class Machine:
    """Computes a text's length, on one thread; the test says when.

    Attributes:
        batches: the texts of each call.
        gate: calls wait for it.
        most: more texts at once do not fit into memory.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)
        self.batches: list[list[str]] = []
        self.kinds: list[Hashable] = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()
        self.most = 1_000

    def compute(self, kind: Hashable, texts: Sequence[str]) -> list[int]:
        self.batches.append(list(texts))
        self.kinds.append(kind)
        self.began.set()
        assert self.gate.wait(10)
        if len(texts) > self.most or "huge" in texts:
            raise MemoryError("no room")
        if "bad" in texts:
            raise ValueError("a bad text")
        return [len(text) for text in texts]

    def batching(self, size: int = 4, near: float = 0.0) -> Batches[str, int]:
        return Batches(self.thread, self.compute, size=size, near=near)


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.gate.set()
    made.thread.shutdown()


def ask(
    batches: Batches[str, int], texts: Sequence[str], kind: Hashable = None
) -> Awaitable[list[int]]:
    return batches.rows(texts, [len(text) for text in texts], kind)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 20)

    asyncio.run(limited())


async def held(machine: Machine, batches: Batches[str, int]) -> asyncio.Future[list[int]]:
    """A first request that keeps the thread busy until the gate is opened."""
    machine.gate.clear()
    first = asyncio.ensure_future(ask(batches, ["first"]))
    await asyncio.to_thread(machine.began.wait, 10)
    return first


def test_rows_come_in_the_order_of_their_texts(machine: Machine) -> None:
    async def work() -> None:
        texts = ["aaa", "a", "aaaaa", "aa", "aaaa", "", "aaaaaa"]
        assert await ask(machine.batching(3), texts) == [3, 1, 5, 2, 4, 0, 6]
        assert await ask(machine.batching(3), []) == []

    run(work)
    assert [[len(text) for text in batch] for batch in machine.batches] == [
        [4, 5, 6],
        [1, 2, 3],
        [0],
    ]


def test_requests_share_batches(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(4)
        first = await held(machine, batches)
        others = [asyncio.ensure_future(ask(batches, ["x" * n])) for n in (3, 1, 2, 4)]
        await asyncio.sleep(0)
        assert batches.stats() == {"requests": 4, "texts": 4}
        machine.gate.set()
        assert await asyncio.gather(first, *others) == [[5], [3], [1], [2], [4]]
        assert batches.stats() == {"requests": 0, "texts": 0}

    run(work)
    assert machine.batches == [["first"], ["x", "xx", "xxx", "xxxx"]]


def test_a_small_request_does_not_wait_for_a_large_one(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(4)
        first = await held(machine, batches)
        large = asyncio.ensure_future(ask(batches, ["long text"] * 400))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(ask(batches, ["x"]))
        await asyncio.sleep(0)
        machine.gate.set()
        assert await small == [1]
        assert await large == [9] * 400
        await first

    run(work)
    assert "x" in machine.batches[2]


def test_a_batch_holds_texts_of_about_one_length(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(8, near=0.75)
        texts = ["x" * length for length in (100, 90, 80, 20, 19, 4)]
        assert await ask(batches, texts) == [100, 90, 80, 20, 19, 4]

    run(work)
    assert [len(batch) for batch in machine.batches] == [3, 2, 1]


def test_kinds_are_not_mixed(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(8)
        first = await held(machine, batches)
        others = [ask(batches, ["x", "y"], "query"), ask(batches, ["z"]), ask(batches, ["u"])]
        waiting = [asyncio.ensure_future(one) for one in others]
        await asyncio.sleep(0)
        machine.gate.set()
        assert await asyncio.gather(*waiting) == [[1, 1], [1], [1]]
        await first

    run(work)
    assert machine.batches[1:] == [["x", "y"], ["z", "u"]]
    assert machine.kinds == [None, "query", None]


def test_what_nobody_waits_for_is_dropped(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(4)
        first = await held(machine, batches)
        left = asyncio.ensure_future(ask(batches, ["left"] * 100))
        stays = asyncio.ensure_future(ask(batches, ["stays"]))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert batches.stats() == {"requests": 1, "texts": 1}
        machine.gate.set()
        assert await stays == [5]
        await first

    run(work)
    assert machine.batches == [["first"], ["stays"]]


def test_a_batch_that_does_not_fit_is_halved(machine: Machine) -> None:
    async def work() -> None:
        machine.most = 2
        assert await ask(machine.batching(8), ["x" * n for n in range(1, 9)]) == [*range(1, 9)]

    run(work)
    assert [len(batch) for batch in machine.batches] == [8, 4, 2, 2, 4, 2, 2]


def test_a_text_that_does_not_fit_alone_fails_its_request_only(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(8)
        first = await held(machine, batches)
        huge = asyncio.ensure_future(ask(batches, ["a", "huge"]))
        bad = asyncio.ensure_future(ask(batches, ["bad", "b", "c"]))
        good = asyncio.ensure_future(ask(batches, ["a", "bb", "ccc"]))
        await asyncio.sleep(0)
        machine.gate.set()
        assert await good == [1, 2, 3]
        with pytest.raises(BackendError, match="not enough memory for this request"):
            await huge
        with pytest.raises(ValueError, match="a bad text"):
            await bad
        assert await ask(batches, ["later"]) == [5]
        await first

    run(work)


def test_closing_fails_what_waits(machine: Machine) -> None:
    async def work() -> None:
        batches = machine.batching(2)
        first = await held(machine, batches)
        waits = asyncio.ensure_future(ask(batches, ["waits"] * 3))
        await asyncio.sleep(0)
        batches.close()
        with pytest.raises(BackendError, match="closed"):
            await waits
        with pytest.raises(BackendError, match="closed"):
            await ask(batches, ["late"])
        machine.gate.set()
        assert await first == [5]

    run(work)
    assert machine.batches == [["first"]]
