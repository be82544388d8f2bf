"""The caller's end of a channel: all traffic between one event loop and one worker.

Requests of one tick go out in one Ray call; replies of all requests come back in frames over one
streaming generator, or over pulls through Ray Client, which refuses generators. The end of the
channel is the end of everything pending on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayError

from byzerllm.errors import ByzerLLMError, ParameterError
from byzerllm.requests import GenerateChunk, Request, Result
from byzerllm.runtime.cluster import current_connection
from byzerllm.runtime.wire import (
    Cancel,
    Failure,
    decode_replies,
    encode_calls,
    to_error,
)
from byzerllm.runtime.worker import CHANNEL_ITSELF, RENEW_SECONDS

IDLE_RENEW_SECONDS = 10.0

_channel_ids = itertools.count(1)


class WorkerLost(Exception):
    """The worker or the way to it is gone."""


class Channel:
    """See the module. Belongs to the loop that made it."""

    def __init__(
        self, worker: Any, caller: str, *, pull: bool, saw_version: Callable[[int], None]
    ) -> None:
        self._worker = worker
        self._caller = caller
        self._id = f"{caller}/{next(_channel_ids)}"
        self.loop = asyncio.get_running_loop()
        self._saw_version = saw_version
        self._connection = current_connection()
        self._numbers = itertools.count(1)
        self._outgoing: list[tuple[int, Request | Cancel]] = []
        self._flush_scheduled = False
        self._unary: dict[int, asyncio.Future[Result]] = {}
        self._streams: dict[int, asyncio.Queue[GenerateChunk | Exception]] = {}
        self.closed = False
        self._reader = self.loop.create_task(self._read(self._pulled if pull else self._streamed))

    @property
    def pending(self) -> int:
        return len(self._unary) + len(self._streams)

    async def call(self, request: Request) -> Result:
        """One request's whole result.

        Raises:
            WorkerLost: the channel ended first.
            ByzerLLMError: what the worker answered.
        """
        number = next(self._numbers)
        future: asyncio.Future[Result] = self.loop.create_future()
        self._unary[number] = future
        self._send(number, request)
        try:
            return await future
        except asyncio.CancelledError:
            self._send(number, Cancel())
            raise
        finally:
            self._unary.pop(number, None)

    async def stream(self, request: Request, seconds: float) -> AsyncGenerator[GenerateChunk, None]:
        """One request's chunks; closing the iterator cancels the request in the worker.

        Raises:
            TimeoutError: the last chunk did not come within `seconds`.
        """
        number = next(self._numbers)
        queue: asyncio.Queue[GenerateChunk | Exception] = asyncio.Queue()
        self._streams[number] = queue
        limit = self.loop.call_later(seconds, queue.put_nowait, TimeoutError())
        self._send(number, request)
        finished = False
        try:
            while not finished:
                item = await queue.get()
                if isinstance(item, Exception):
                    finished = not isinstance(item, TimeoutError)
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            limit.cancel()
            self._streams.pop(number, None)
            if not finished:
                self._send(number, Cancel())

    def _send(self, number: int, item: Request | Cancel) -> None:
        if self.closed:
            if not isinstance(item, Cancel):
                self._settle(number, WorkerLost("the channel is closed"))
            return
        self._outgoing.append((number, item))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        items, self._outgoing = self._outgoing, []
        if self.closed:
            return
        try:
            self._submit(items)
        except ParameterError:
            for item in items:
                try:
                    self._submit([item])
                except ParameterError as error:
                    self._settle(item[0], error)

    def _submit(self, items: list[tuple[int, Request | Cancel]]) -> None:
        data = encode_calls(items)
        try:
            self._worker.submit.remote(self._caller, self._id, data)
        except RayError as error:
            for number, _ in items:
                self._settle(number, WorkerLost(str(error)))

    def _settle(self, number: int, item: GenerateChunk | Result | Exception) -> None:
        future = self._unary.get(number)
        if future is not None:
            if future.done():
                return
            if isinstance(item, Exception):
                future.set_exception(item)
            else:
                future.set_result(item)  # type: ignore[arg-type]
            return
        queue = self._streams.get(number)
        if queue is not None:
            queue.put_nowait(item)  # type: ignore[arg-type]

    async def _read(self, frames: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        reason: BaseException | str = "the worker closed the channel"
        try:
            async for frame in frames():
                self._dispatch(frame)
        except (Exception, asyncio.CancelledError) as error:
            reason = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if not self.closed:
                self._end(reason)

    def _dispatch(self, frame: bytes) -> None:
        batch = decode_replies(frame)
        self._saw_version(batch.version)
        for number, item in batch.items:
            if number == CHANNEL_ITSELF and isinstance(item, Failure):
                raise to_error(item)
            self._settle(number, to_error(item) if isinstance(item, Failure) else item)

    async def _streamed(self) -> AsyncGenerator[bytes, None]:
        open_ = self._worker.open.options(num_returns="streaming")
        async for ref in open_.remote(self._caller, self._id):
            yield await ref

    async def _pulled(self) -> AsyncGenerator[bytes, None]:
        while True:
            frame = await self._worker.pull.remote(self._caller, self._id)
            if frame is None:
                return
            yield frame

    def _end(self, reason: BaseException | str) -> None:
        self.closed = True
        if current_connection() is self._connection:
            with contextlib.suppress(RayError):
                self._worker.close_channel.remote(self._caller, self._id)
        error = reason if isinstance(reason, ByzerLLMError) else WorkerLost(str(reason))
        for number in (*self._unary, *self._streams):
            self._settle(number, error)

    def close(self) -> None:
        """Cancel everything in flight."""
        if self.closed:
            return
        self._reader.cancel()
        self._end("the caller closed the channel")


class LeaseKeeper:
    """Renews this process's leases from a thread of its own, so that a caller whose event loop is
    busy is not taken for dead. Renews often while something is pending, rarely else."""

    def __init__(self, caller: str) -> None:
        self._caller = caller
        self._connection = current_connection()
        self._held: dict[str, tuple[Any, Callable[[], int]]] = {}
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="byzerllm-lease", daemon=True)
        self._thread.start()

    def hold(self, worker_id: str, worker: Any, pending: Callable[[], int]) -> None:
        """Keep the lease on a worker; `pending` tells how much is in flight."""
        self._held[worker_id] = (worker, pending)

    def release(self, worker_id: str) -> None:
        self._held.pop(worker_id, None)

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def _run(self) -> None:
        renewed: dict[str, float] = {}
        while not self._wake.wait(RENEW_SECONDS) and not self._stopped:
            if current_connection() is not self._connection:
                # A call now would make Ray start a cluster of its own.
                return
            now = time.monotonic()
            for worker_id, (worker, pending) in list(self._held.items()):
                idle = now - renewed.get(worker_id, 0.0) < IDLE_RENEW_SECONDS
                if idle and not pending():
                    continue
                renewed[worker_id] = now
                try:
                    worker.renew.remote(self._caller)
                except (RayError, ConnectionError):
                    self.release(worker_id)
