"""Texts of all waiting requests, computed together: batches across the requests of one worker."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from byzerllm.errors import BackendError
from byzerllm_backend_transformers.tasks import is_out_of_memory, out_of_memory_text

Item = TypeVar("Item")
Row = TypeVar("Row")
_serials = itertools.count()


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item, Row]):
    """One text. `key` sorts by length; no two are equal."""

    item: Item
    position: int
    key: tuple[int, int]
    asked: _Asked[Item, Row]
    taken: bool = False


@dataclass(eq=False, slots=True)
class _Asked(Generic[Item, Row]):
    """One request: its texts that wait, longest last, and what is computed."""

    kind: Hashable
    answer: asyncio.Future[list[Row]]
    rows: list[Row | None]
    waiting: list[_Entry[Item, Row]] = field(default_factory=list)
    left: int = 0

    def longest(self) -> _Entry[Item, Row] | None:
        """Its longest text that nobody took."""
        while self.waiting and self.waiting[-1].taken:
            self.waiting.pop()
        return self.waiting[-1] if self.waiting else None


_key = attrgetter("key")


class Batches(Generic[Item, Row]):
    """Computes the texts of many requests, `size` at a time.

    The requests take turns: each batch holds the longest waiting text of the request whose turn it
    is, and fills up with waiting texts of about that length, whoever asked for them. So padding is
    small, and a request waits for no more batches than there are requests.

    A batch that fails is halved until it is one text, so that neither a lack of memory nor a text
    that cannot be computed fails another request.

    Args:
        thread: runs one thing after the other; `compute` is called on it.
        compute: rows of items of one kind; blocking.
        size: most items of a batch.
        near: items shorter than this part of a batch's longest wait for another batch, 0 to 1.
    """

    def __init__(
        self,
        thread: Executor,
        compute: Callable[[Hashable, Sequence[Item]], Sequence[Row]],
        *,
        size: int,
        near: float = 0.0,
    ) -> None:
        self._thread = thread
        self._compute = compute
        self._size = size
        self._near = near
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, list[_Entry[Item, Row]]] = {}
        self._turns: deque[_Asked[Item, Row]] = deque()
        self._running = False
        self._closed = False

    async def rows(
        self, items: Sequence[Item], lengths: Sequence[int], kind: Hashable = None
    ) -> list[Row]:
        """One row per item, in their order. Cancelling drops what was not begun.

        Args:
            lengths: how long each item is, in any unit.
            kind: only items of one kind are computed together.

        Raises:
            BackendError: not enough memory for one item alone, or the model is closed.
        """
        answer: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
        asked: _Asked[Item, Row] = _Asked(kind, answer, [None] * len(items), left=len(items))
        entries = [
            _Entry(item, position, (length, next(_serials)), asked)
            for position, (item, length) in enumerate(zip(items, lengths, strict=True))
        ]
        asked.waiting = sorted(entries, key=_key)
        if not entries:
            return []
        self._add(asked)
        try:
            return await answer
        finally:
            self._drop(asked)

    def stats(self) -> dict[str, int]:
        """Requests that have texts waiting, and these texts."""
        with self._lock:
            return {
                "requests": len(self._turns),
                "texts": sum(len(entries) for entries in self._waiting.values()),
            }

    def close(self) -> None:
        """Fail whatever waits; what is being computed ends first."""
        with self._lock:
            self._closed = True
            asked = {entry.asked for entries in self._waiting.values() for entry in entries}
            asked.update(self._turns)
            self._waiting.clear()
            self._turns.clear()
        for one in asked:
            _fail(one, BackendError("the model was closed"))

    def _add(self, asked: _Asked[Item, Row]) -> None:
        with self._lock:
            if self._closed:
                raise BackendError("the model is closed")
            entries = self._waiting.setdefault(asked.kind, [])
            entries += asked.waiting
            entries.sort(key=_key)
            self._turns.append(asked)
            if self._running:
                return
            self._running = True
        self._thread.submit(self._step)

    def _drop(self, asked: _Asked[Item, Row]) -> None:
        """Forget what nobody waits for."""
        if asked.left == 0:
            return
        with self._lock:
            entries = self._waiting.get(asked.kind, [])
            entries[:] = [entry for entry in entries if entry.asked is not asked]
            if asked in self._turns:
                self._turns.remove(asked)
            asked.waiting.clear()

    def _step(self) -> None:
        """On the thread: one batch. The next one is put behind what else waits for the thread."""
        batch = self._take()
        if not batch:
            return
        done = self._outcomes(batch[0].asked.kind, batch)
        loop = batch[0].asked.answer.get_loop()
        # The loop or the thread may be gone with the model.
        try:
            loop.call_soon_threadsafe(self._deliver, done)
            self._thread.submit(self._step)
        except RuntimeError:
            self._running = False

    def _take(self) -> list[_Entry[Item, Row]]:
        """The next batch; empty when nothing waits."""
        with self._lock:
            while self._turns:
                asked = self._turns.popleft()
                longest = asked.longest()
                if longest is None:
                    continue
                batch = self._around(longest, self._waiting[asked.kind])
                for entry in batch:
                    entry.taken = True
                if asked.longest() is not None:
                    self._turns.append(asked)
                return batch
            self._running = False
            return []

    def _around(
        self, entry: _Entry[Item, Row], entries: list[_Entry[Item, Row]]
    ) -> list[_Entry[Item, Row]]:
        """Take the texts nearest to `entry` in length, shorter ones first, out of `entries`."""
        end = bisect.bisect_right(entries, entry.key, key=_key)
        begin = max(0, end - self._size)
        end = min(len(entries), begin + self._size)
        batch = [one for one in entries[begin:end] if self._are_near(entry.key[0], one.key[0])]
        taken = set(map(id, batch))
        entries[begin:end] = [one for one in entries[begin:end] if id(one) not in taken]
        return batch

    def _are_near(self, length: int, other: int) -> bool:
        return self._near * length <= other and self._near * other <= length

    def _outcomes(
        self, kind: Hashable, batch: Sequence[_Entry[Item, Row]]
    ) -> list[tuple[_Entry[Item, Row], Row | Exception]]:
        wanted = [entry for entry in batch if not entry.asked.answer.done()]
        if not wanted:
            return []
        try:
            rows = self._compute(kind, [entry.item for entry in wanted])
            return list(zip(wanted, rows, strict=True))
        except Exception as error:
            if len(wanted) == 1:
                return [(wanted[0], _named(error))]
        # Outside of the handler: the error's frames hold what was computed so far.
        half = len(wanted) // 2
        return [*self._outcomes(kind, wanted[:half]), *self._outcomes(kind, wanted[half:])]

    def _deliver(self, done: list[tuple[_Entry[Item, Row], Row | Exception]]) -> None:
        for entry, outcome in done:
            asked = entry.asked
            if asked.answer.done():
                continue
            if isinstance(outcome, Exception):
                asked.answer.set_exception(outcome)
                continue
            asked.rows[entry.position] = outcome
            asked.left -= 1
            if asked.left == 0:
                asked.answer.set_result(asked.rows)  # type: ignore[arg-type]


def _named(error: Exception) -> Exception:
    if not is_out_of_memory(error):
        return error
    named = BackendError(out_of_memory_text(error))
    named.__cause__ = error
    return named


def _fail(asked: _Asked[Item, Row], error: Exception) -> None:
    def fail() -> None:
        if not asked.answer.done():
            asked.answer.set_exception(error)

    loop = asked.answer.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(fail)
