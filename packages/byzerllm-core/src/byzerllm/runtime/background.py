"""An event loop in a daemon thread, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_END = object()
TIDY_SECONDS = 30.0


class Inbox:
    """Calls for an event loop from other threads. Those that pile up while it is busy wake it once:
    waking writes to a pipe, which costs more than all the rest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._woken = False

    def put(self, call: Callable[[Any], object], argument: Any) -> None:
        """Have `call(argument)` made on the loop, in order.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._calls.append((call, argument))
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._make_calls)
            except RuntimeError:
                self._woken = False
                raise

    def _make_calls(self) -> None:
        # Before the calls are taken: one that is put after the last of them wakes the loop anew.
        self._woken = False
        calls = self._calls
        try:
            for _ in range(len(calls)):
                call, argument = calls.popleft()
                call(argument)
        finally:
            if calls and not self._woken:
                self._woken = True
                self._loop.call_soon(self._make_calls)


_inboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Inbox] = WeakKeyDictionary()


def inbox_of(loop: asyncio.AbstractEventLoop) -> Inbox:
    """The one inbox of a loop."""
    inbox = _inboxes.get(loop)
    if inbox is None:
        inbox = _inboxes.setdefault(loop, Inbox(loop))
    return inbox


class BackgroundLoop:
    """Runs coroutines and iterates async iterators for synchronous code.

    Args:
        loop: a loop that runs already, in a thread of its owner's; None starts one.

    Attributes:
        thread: the one that was started; None where the loop has an owner.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self.thread: threading.Thread | None = None
        if loop is None:
            self.thread = threading.Thread(target=self._run, name="byzerllm-io", daemon=True)
            self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Ctrl-C in the calling thread cancels it and waits until it has
        tidied up; a second one does not wait."""
        job = _Job(self.loop, coroutine)
        try:
            job.ended.acquire()
        except BaseException:
            if not job.done():
                job.cancel()
                job.ended.acquire(timeout=TIDY_SECONDS)
            raise
        return job.result(concurrent.futures.CancelledError)

    def is_running_here(self) -> bool:
        """Whether the caller runs on this very loop."""
        return asyncio.get_running_loop() is self.loop

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """`run` for asynchronous code on any loop; cancelling reaches the coroutine."""
        if self.is_running_here():
            return await coroutine
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = _Job(self.loop, coroutine, answer)
        try:
            await answer
        except BaseException:
            job.cancel()
            raise
        return job.result(asyncio.CancelledError)

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items, one by one; leaving the loop early closes the async iterator."""
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(items) as source:
                    async for item in source:
                        ready.put(item)
            except BaseException as error:
                ready.put(_Raised(error))
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                ready.put(_END)

        future = asyncio.run_coroutine_threadsafe(pump(), self.loop)
        try:
            while (item := ready.get()) is not _END:
                if isinstance(item, _Raised):
                    raise item.error
                yield item
        finally:
            future.cancel()


class _Job(Generic[T]):
    """A coroutine on the background loop, and who waits for it.

    What `run_coroutine_threadsafe` does with chained futures costs twice the CPU of this.

    Args:
        waiter: a future of the loop that waits; without one `ended` is the lock to wait for.
    """

    __slots__ = ("_context", "_coroutine", "_inbox", "_task", "_waiter", "ended")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T],
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        self.ended = threading.Lock()
        self.ended.acquire()
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._waiter = waiter
        self._task: asyncio.Task[T] | None = None
        self._inbox = inbox_of(loop)
        self._inbox.put(_Job._start, self)

    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def result(self, cancelled: type[BaseException]) -> T:
        """What the coroutine returned or raised, once it has ended; `cancelled` where it was."""
        assert self._task is not None
        if self._task.cancelled():
            raise cancelled
        return self._task.result()

    def cancel(self) -> None:
        """From any thread; the coroutine ends a little later."""
        self._inbox.put(_Job._cancel, self)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._coroutine, context=self._context)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            # Read here, for who waited may be gone, and asyncio complains of errors nobody reads.
            task.exception()
        self.ended.release()
        waiter = self._waiter
        if waiter is not None:
            # The waiting loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                inbox_of(waiter.get_loop()).put(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_current: BackgroundLoop | None = None
_current_lock = threading.Lock()


def background_loop() -> BackgroundLoop:
    """The one loop of this process."""
    global _current
    if _current is None:
        with _current_lock:
            _current = _current or BackgroundLoop()
    return _current


def adopt_running_loop() -> None:
    """Make the loop that runs here the one of this process, as a server's main loop is: what
    would go to another thread and back stays on it. Synchronous calls of the client must then
    come from other threads.

    Raises:
        RuntimeError: the process has one already.
    """
    global _current
    with _current_lock:
        if _current is not None:
            raise RuntimeError("the background loop of this process is in use already")
        _current = BackgroundLoop(asyncio.get_running_loop())
