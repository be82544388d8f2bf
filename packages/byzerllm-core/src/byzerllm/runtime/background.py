"""An event loop in a daemon thread, for callers that are not asynchronous."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
TIDY_SECONDS = 30.0


class BackgroundLoop:
    """Runs coroutines and iterates async iterators for synchronous code."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="byzerllm-io", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Ctrl-C in the calling thread cancels it and waits until it has
        tidied up; a second one does not wait."""
        ended = threading.Event()

        async def watched() -> T:
            try:
                return await coroutine
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self.loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(TIDY_SECONDS)
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items, one by one; leaving the loop early closes the async iterator."""
        ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(items) as source:  # type: ignore[type-var]
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


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


@functools.cache
def background_loop() -> BackgroundLoop:
    """The one loop of this process."""
    return BackgroundLoop()
