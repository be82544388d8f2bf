"""The Ray actor that hosts one backend.

Requests and channels run in the actor's default concurrency group on one event loop; control calls
have a group, and with it a thread, of their own, so that a busy engine still answers them.

A caller's requests live under its lease: it renews every `RENEW_SECONDS` while it waits for
something. A caller that has not been heard of for `LEASE_SECONDS` has left, and what it asked for
is cancelled: neither a dropped generator nor a dead caller ends anything in an actor by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import ray

from byzerllm.errors import ModelNotFoundError
from byzerllm.plugins import Plugins
from byzerllm.requests import GenerateChunk, Request, Result, StreamRequest
from byzerllm.runtime.host import Host, decode_spec
from byzerllm.runtime.wire import (
    Cancel,
    Failure,
    decode_calls,
    encode_replies,
    to_failure,
)

LEASE_SECONDS = 0.9
RENEW_SECONDS = 0.2
IDLE_LEASE_SECONDS = 60.0
STREAM_FRAME_SECONDS = 0.004
STREAM_FRAME_SECONDS_EACH = 0.00006
UNARY_FRAME_SECONDS = 0.001
PULL_SECONDS = 5.0
TASKS_AT_ONCE = 24
CHANNEL_ITSELF = 0
MAX_CONCURRENCY = 100_000
CONTROL_CONCURRENCY = 64

logger = logging.getLogger("byzerllm.worker")

F = TypeVar("F", bound=Callable[..., Any])


def _on_actor(**options: Any) -> Callable[[F], F]:
    """`ray.method`, which has no types, with its type."""
    return ray.method(**options)  # type: ignore[no-any-return]


class WorkerChannel:
    """The worker's end of a channel: collects replies and frames them."""

    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.closed = False
        self.streams = 0
        self._outbox: list[tuple[int, GenerateChunk | Result | Failure]] = []
        self._ready = asyncio.Event()
        self._next_frame = 0.0

    def put(self, number: int, item: GenerateChunk | Result | Failure) -> None:
        self._outbox.append((number, item))
        self._ready.set()

    async def take(
        self, limit: float | None = None
    ) -> list[tuple[int, GenerateChunk | Result | Failure]]:
        """What is ready, at most one frame per interval; the first after a pause goes at once."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), limit)
        pause = self._next_frame - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        items, self._outbox = self._outbox, []
        self._ready.clear()
        self._next_frame = time.monotonic() + self._interval()
        return items

    def _interval(self) -> float:
        """Seconds between frames: a frame costs the same however much is in it, so many streams
        share fewer of them."""
        if not self.streams:
            return UNARY_FRAME_SECONDS
        return min(
            STREAM_FRAME_SECONDS + self.streams * STREAM_FRAME_SECONDS_EACH,
            2 * STREAM_FRAME_SECONDS,
        )

    def close(self, reason: str) -> None:
        self.closed = True
        for task in self.tasks.values():
            task.cancel(reason)
        self._ready.set()


class Lease:
    """One caller: when it was last heard of, and what it has open."""

    def __init__(self) -> None:
        self.seen = time.monotonic()
        self.channels: dict[str, WorkerChannel] = {}
        self.direct: dict[int, asyncio.Task[Any]] = {}

    def busy(self) -> bool:
        return bool(self.direct) or any(channel.tasks for channel in self.channels.values())

    def end(self, reason: str) -> None:
        for task in list(self.direct.values()):
            task.cancel(reason)
        for channel in self.channels.values():
            channel.close(reason)


class Worker:
    """See the module. Made by the controller only; all arguments are plain data."""

    def __init__(
        self,
        spec: bytes,
        asked: bytes,
        worker_id: str,
        index: int,
        group: Any,
        group_name: str,
        check: bool = False,
    ) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._asked = asked
        self._spec = decode_spec(spec)
        self._id = worker_id
        self._index = index
        self._group_name = group_name
        self._phase = "starting"
        self._version = 0
        self._generation = ""
        self._draining = False
        self._started = time.time()
        self._leases: dict[str, Lease] = {}
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat = time.monotonic()
        self._keeper: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        plugins = Plugins(frozenset(self._spec.disabled_plugins))
        plugins.discover()
        self._host = Host(
            self._spec,
            plugins,
            worker_index=index,
            placement_group=group,
            report=self._report,
            check=check,
        )

    def _report(self, phase: str) -> None:
        if phase != self._phase:
            logger.info("%s: %s", self._spec.model, phase)
        self._phase = phase

    # Requests: the default concurrency group.

    async def load(self) -> None:
        """Load the model; raises what the host raises."""
        self._loop = asyncio.get_running_loop()
        await self._host.load()
        self._keeper = asyncio.create_task(self._keep_leases())
        self._report("ready")

    async def call(self, caller: str, data: bytes) -> bytes:
        """One request and its whole answer in one call, for a caller with nothing else to say."""
        ((number, request),) = decode_calls(data)
        assert not isinstance(request, Cancel)
        lease = self._lease(caller)
        task = asyncio.current_task()
        assert task is not None
        lease.direct[number] = self._running[request.id] = task
        try:
            self._refuse_if_draining()
            reply: Result | Failure = await self._host.answer(request)
        except (Exception, asyncio.CancelledError) as error:
            reply = self._failure(error)
        finally:
            lease.direct.pop(number, None)
            self._running.pop(request.id, None)
        return encode_replies(self._version, [(number, reply)])

    @_on_actor(num_returns=0)
    async def cancel_call(self, caller: str, number: int) -> None:
        """Cancel a `call`."""
        lease = self._leases.get(caller)
        task = lease.direct.get(number) if lease else None
        if task is not None:
            task.cancel("its caller cancelled it")

    @_on_actor(num_returns=0)
    async def submit(self, caller: str, channel_id: str, data: bytes) -> None:
        """Requests and cancellations of a channel, gathered by the caller."""
        channel = self._channel(caller, channel_id)
        try:
            items = decode_calls(data)
        except Exception as error:
            channel.put(CHANNEL_ITSELF, self._failure(error))
            return
        for place, (number, item) in enumerate(items):
            if isinstance(item, Cancel):
                task = channel.tasks.get(number)
                if task is not None:
                    task.cancel("its caller cancelled it")
                continue
            if place and not place % TASKS_AT_ONCE:
                # Lets the first replies leave while the rest is still being worked on.
                await asyncio.sleep(0)
            task = asyncio.create_task(self._serve(channel, number, item))
            channel.tasks[number] = task
            self._running[item.id] = task

    async def open(self, caller: str, channel_id: str) -> AsyncGenerator[bytes, None]:
        """The channel's frames, until the caller closes it or its lease ends."""
        channel = self._channel(caller, channel_id)
        while not channel.closed:
            items = await channel.take()
            if items:
                yield encode_replies(self._version, items)

    async def pull(self, caller: str, channel_id: str) -> bytes | None:
        """The next frame for a caller that cannot read a generator (Ray Client); may be empty.
        None: the channel is closed."""
        channel = self._channel(caller, channel_id)
        if channel.closed:
            return None
        return encode_replies(self._version, await channel.take(PULL_SECONDS))

    @_on_actor(num_returns=0)
    async def close_channel(self, caller: str, channel_id: str) -> None:
        lease = self._leases.get(caller)
        channel = lease.channels.pop(channel_id, None) if lease else None
        if channel is not None:
            channel.close("its caller closed the channel")

    async def _serve(self, channel: WorkerChannel, number: int, request: Request) -> None:
        streaming = isinstance(request, StreamRequest) and request.stream
        channel.streams += streaming
        try:
            self._refuse_if_draining()
            if isinstance(request, StreamRequest) and request.stream:
                async with contextlib.aclosing(self._host.stream(request)) as chunks:
                    async for chunk in chunks:
                        channel.put(number, chunk)
            else:
                channel.put(number, await self._host.answer(request))
        except (Exception, asyncio.CancelledError) as error:
            channel.put(number, self._failure(error))
        finally:
            channel.streams -= streaming
            channel.tasks.pop(number, None)
            self._running.pop(request.id, None)

    def _failure(self, error: BaseException) -> Failure:
        failure = to_failure(error, self._spec)
        if failure.code == "BackendError":
            logger.error("%s", failure.details.get("remote_traceback", failure.message))
        return failure

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise ModelNotFoundError(
                f"model {self._spec.model!r} is being undeployed", draining=True
            )

    def _lease(self, caller: str) -> Lease:
        lease = self._leases.get(caller)
        if lease is None:
            lease = self._leases[caller] = Lease()
        lease.seen = time.monotonic()
        return lease

    def _channel(self, caller: str, channel_id: str) -> WorkerChannel:
        lease = self._lease(caller)
        channel = lease.channels.get(channel_id)
        if channel is None:
            channel = lease.channels[channel_id] = WorkerChannel(caller)
        return channel

    async def _keep_leases(self) -> None:
        """End the leases of callers that left, forgiving them the pauses of this process."""
        interval = 0.05
        while True:
            slept = time.monotonic()
            await asyncio.sleep(interval)
            now = self._beat = time.monotonic()
            late = now - slept - interval
            if late > interval:
                for lease in self._leases.values():
                    lease.seen += late
            for caller, lease in list(self._leases.items()):
                limit = LEASE_SECONDS if lease.busy() else IDLE_LEASE_SECONDS
                if now - lease.seen > limit:
                    del self._leases[caller]
                    lease.end("its caller left")

    # Control: a concurrency group of its own.

    @_on_actor(concurrency_group="control", num_returns=0)
    async def renew(self, caller: str) -> None:
        lease = self._leases.get(caller)
        if lease is not None:
            lease.seen = time.monotonic()

    @_on_actor(concurrency_group="control")
    async def phase(self) -> str:
        return self._phase

    @_on_actor(concurrency_group="control")
    async def describe(self) -> dict[str, Any]:
        """What a restarted controller must know."""
        return {
            "id": self._id,
            "index": self._index,
            "asked": self._asked,
            "group": self._group_name,
            "generation": self._generation,
            "version": self._version,
            "draining": self._draining,
            "started": self._started,
        }

    @_on_actor(concurrency_group="control")
    async def publish(self, version: int, generation: str, asked: bytes) -> None:
        """The deployment as it is now; the first call tells that it is complete."""
        self._asked = asked
        self._version = version
        self._generation = generation
        share = 1 / decode_spec(asked).num_workers
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._host.set_share, share)

    @_on_actor(concurrency_group="control")
    async def ping(self) -> float:
        """Seconds since the request loop last ran; raises when the engine is broken."""
        await self._on_request_loop(self._host.backend.health())
        return time.monotonic() - self._beat

    @_on_actor(concurrency_group="control")
    async def stat(self) -> dict[str, Any]:
        import psutil

        return {
            "id": self._id,
            "node": ray.util.get_node_ip_address(),
            "pid": os.getpid(),
            "state": "draining" if self._draining else self._phase,
            **self._host.stat(),
            "uptime": time.time() - self._started,
            "rss": psutil.Process().memory_info().rss,
        }

    @_on_actor(concurrency_group="control")
    async def abort(self, request_id: str) -> bool:
        task = self._running.get(request_id)
        if task is None or self._loop is None:
            return False
        self._loop.call_soon_threadsafe(task.cancel, "it was aborted")
        return True

    @_on_actor(concurrency_group="control")
    async def drain(self, limit: float) -> bool:
        """Refuse new requests and wait for the accepted ones, at most `limit` seconds."""
        self._draining = True
        end = time.monotonic() + limit
        while self._running and time.monotonic() < end:  # noqa: ASYNC110 - another loop empties it
            await asyncio.sleep(0.02)
        return not self._running

    @_on_actor(concurrency_group="control")
    async def stop(self) -> None:
        """Cancel what runs and free the model."""
        self._draining = True
        with contextlib.suppress(Exception):
            await self._on_request_loop(self._close())
        self._stopped.set()

    @_on_actor(concurrency_group="control")
    async def wait_stopped(self) -> None:
        """Returns after `stop`; fails at once when the actor dies, which is how one learns it."""
        await self._stopped.wait()

    @_on_actor(concurrency_group="control")
    async def read_log(self, position: int, limit: int = 1 << 18) -> tuple[int, str]:
        """What stands in this worker's log behind `position`, and the next position. A negative
        position counts from the end."""
        path = _log_path()
        return await asyncio.to_thread(_read_from, path, position, limit) if path else (0, "")

    async def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        for lease in self._leases.values():
            lease.end("its model was undeployed")
        await asyncio.sleep(2 * STREAM_FRAME_SECONDS)
        await self._host.close()

    async def _on_request_loop(self, coroutine: Any) -> Any:
        if self._loop is None:
            coroutine.close()
            return None
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return await asyncio.wait_for(asyncio.wrap_future(future), 10)


def _log_path() -> Path | None:
    """The file that Ray writes this process's stderr to."""
    try:
        target = Path(os.readlink(f"/proc/self/fd/{sys.__stderr__.fileno()}"))  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return None
    return target if target.suffix == ".err" else None


def _read_from(path: Path, position: int, limit: int) -> tuple[int, str]:
    size = path.stat().st_size
    start = max(0, size + position) if position < 0 else min(position, size)
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(limit)
    return start + len(data), data.decode(errors="replace")
