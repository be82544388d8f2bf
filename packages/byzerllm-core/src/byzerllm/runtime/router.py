"""The caller's side of the runtime: one hop from here to the worker.

The router caches the routing table, lets the balancer pick, and calls the worker directly: a lone
request as one actor call, several through the channel of this event loop and that worker. It is the
one place that retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from byzerllm.balancers import Balancer, WorkerView
from byzerllm.errors import (
    ByzerLLMError,
    ClusterError,
    ModelNotFoundError,
    OverloadedError,
    ParameterError,
    ProviderError,
    RequestTimeoutError,
    StreamInterruptedError,
    WorkerDiedError,
)
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    GenerateChunk,
    MetaRequest,
    ModelMeta,
    Request,
    Result,
    StreamRequest,
)
from byzerllm.runtime.background import background_loop
from byzerllm.runtime.channel import Channel, LeaseKeeper, WorkerLost
from byzerllm.runtime.cluster import NAMESPACE, get_controller, is_ray_client, require_ray
from byzerllm.runtime.retries import VendorRetries, sent_again
from byzerllm.runtime.wire import (
    Failure,
    TableEntry,
    decode_replies,
    encode_calls,
    to_error,
)

DEATHS_ALLOWED = 2
CONTROL_SECONDS = 30.0
RECOVERY_SECONDS = 60.0
RETRY_PAUSE_SECONDS = 0.1
RETRY_LOOK_SECONDS = 3.0


@dataclass(slots=True)
class WorkerLink:
    """One worker as this process reaches it."""

    view: WorkerView
    name: str
    handle: Any = None
    call: Any = None
    channels: dict[int, Channel] = field(default_factory=dict)


class Route:
    """One model's entry of the routing table, with this process's links to its workers."""

    def __init__(self, entry: TableEntry, balancer: Balancer, old: Route | None) -> None:
        self.entry = entry
        self.balancer = balancer
        self.stale = False
        self.refused: set[str] = set()
        known = old.links if old else {}
        self.links: dict[str, WorkerLink] = {
            worker.id: known.get(worker.id)
            or WorkerLink(
                WorkerView(worker.id, worker.index), f"byzerllm:{entry.model}:{worker.id}"
            )
            for worker in entry.workers
        }
        self.ordered = [self.links[worker.id] for worker in entry.workers]

    def saw_version(self, version: int) -> None:
        """A reply carried another version than the table: it is old."""
        if version != self.entry.version:
            self.stale = True


class Attempts:
    """What has happened to one request so far, and whether it may be tried again."""

    def __init__(self, model: str, request: Request, timeout: float) -> None:
        self.model = model
        self.request = request
        self.end = time.monotonic() + timeout
        self.timeout = timeout
        self.dead: set[str] = set()
        self.gone: set[str] = set()
        self.full: set[str] = set()
        self.last_refusal: OverloadedError | None = None
        self.vendor = VendorRetries(model)

    def left(self) -> float:
        """Seconds until the time limit; raises RequestTimeoutError past it."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise self.timed_out()
        return seconds

    def timed_out(self) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"no answer from {self.model!r} within {self.timeout:g} s; pass a larger timeout or "
            "ask for fewer tokens",
            request_id=self.request.id,
        )

    def worker_died(self, route: Route, link: WorkerLink, cause: Exception) -> None:
        """Raises WorkerDiedError when the request must not be tried again."""
        self.dead.add(link.view.id)
        route.stale = True
        if route.entry.retryable and len(self.dead) < DEATHS_ALLOWED:
            sent_again(self.model, "worker_died")
            return
        deaths = f"{len(self.dead)} workers" if len(self.dead) > 1 else "the worker"
        raise WorkerDiedError(
            f"{deaths} of {self.model!r} died while running request {self.request.id}; it is "
            f"not tried again ({_first_line(cause)})",
            request_id=self.request.id,
        ) from None

    def refused(self, route: Route, link: WorkerLink, error: OverloadedError) -> None:
        """Raises OverloadedError when every worker refused."""
        self.full.add(link.view.id)
        self.last_refusal = error
        if all(other.view.id in self.full for other in route.ordered):
            raise OverloadedError(
                f"all {len(route.ordered)} workers of {self.model!r} are full: {error.message}",
                **error.details,
            ) from None
        sent_again(self.model, "overloaded")


class Router:
    """Calls models on the Ray cluster that this process is connected to."""

    def __init__(self) -> None:
        require_ray()
        self.caller = uuid.uuid4().hex[:12]
        self._client = is_ray_client()
        self._routes: dict[str, Route] = {}
        self._metas: dict[str, tuple[str, ModelMeta]] = {}
        self._lock = threading.Lock()
        self._keeper = LeaseKeeper(self.caller)
        self._picks = itertools.count(1)
        self._numbers = itertools.count(1)
        self._controller: Any = None

    # Requests.

    async def call(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result:
        """One whole result.

        Raises:
            ByzerLLMError: see `byzerllm.errors`; the promises are in docs/operations.md.
        """
        return await self._call(Attempts(model, request, timeout), pin)

    async def _call(self, attempts: Attempts, pin: int | None) -> Result:
        while True:
            route = await self._route(attempts.model, attempts)
            link = self._pick(route, attempts, pin)
            if link is None:
                await self._wait_for_workers(attempts.model, route, attempts)
                continue
            pause = 0.0
            try:
                if attempts.dead and not await self._answers(link):
                    attempts.gone.add(link.view.id)
                    continue
                async with asyncio.timeout(attempts.left()):
                    return await self._send(route, link, attempts.request)
            except TimeoutError as error:
                if isinstance(error, ByzerLLMError):
                    raise
                raise attempts.timed_out() from None
            except WorkerLost as error:
                self._forget(link)
                attempts.worker_died(route, link, error)
            except OverloadedError as error:
                attempts.refused(route, link, error)
            except ProviderError as error:
                pause = attempts.vendor.pause(error, attempts.left())
            except ModelNotFoundError as error:
                if not error.details.get("draining"):
                    raise
                route.stale = True
            finally:
                self._release(link)
            if pause:
                await asyncio.sleep(pause)

    def call_sync(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result:
        """`call` for synchronous code. A lone request goes straight from the calling thread."""
        attempts = Attempts(model, request, timeout)
        route = self._routes.get(model)
        link = None
        if route is not None and not route.stale and not _in_event_loop():
            link = self._pick(route, attempts, pin)
        if route is None or link is None:
            return background_loop().run(self._call(attempts, pin))
        pause = 0.0
        try:
            if link.view.in_flight == 1:
                return self._send_alone_sync(route, link, attempts)
        except WorkerLost as error:
            self._forget(link)
            attempts.worker_died(route, link, error)
        except OverloadedError as error:
            attempts.refused(route, link, error)
        except ProviderError as error:
            pause = attempts.vendor.pause(error, attempts.left())
        except ModelNotFoundError as error:
            if not error.details.get("draining"):
                raise
            route.stale = True
        finally:
            self._release(link)
        if pause:
            time.sleep(pause)
        return background_loop().run(self._call(attempts, pin))

    def known_meta(self, model: str) -> ModelMeta | None:
        """The meta of the deployment that this process last called, without asking anybody."""
        route, known = self._routes.get(model), self._metas.get(model)
        if route is None or route.stale or known is None or known[0] != route.entry.generation:
            return None
        return known[1]

    def fallbacks(self, model: str) -> list[str]:
        """What the deployment says of them, as far as this process knows its table."""
        route = self._routes.get(model)
        return route.entry.fallbacks if route is not None else []

    async def meta(self, model: str, *, timeout: float) -> ModelMeta:
        """What the model is; asked for once per deployment."""
        known = self.known_meta(model)
        if known is not None:
            return known
        meta = await self.call(model, MetaRequest(id=f"meta-{uuid.uuid4().hex}"), timeout=timeout)
        assert isinstance(meta, ModelMeta)
        route = self._routes.get(model)
        if route is not None:
            self._metas[model] = (route.entry.generation, meta)
        return meta

    async def stream(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks as they come. Closing the iterator stops the generation in the worker.

        Raises:
            StreamInterruptedError: the worker died after the first chunk; has the `text` so far.
        """
        attempts = Attempts(model, request, timeout)
        texts: list[str] = []
        while True:
            route = await self._route(model, attempts)
            link = self._pick(route, attempts, pin)
            if link is None:
                await self._wait_for_workers(model, route, attempts)
                continue
            started = False
            pause = 0.0
            try:
                if attempts.dead and not await self._answers(link):
                    attempts.gone.add(link.view.id)
                    continue
                channel = self._channel(route, link, self._connect(link))
                stream = channel.stream(request, attempts.left())
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        started = True
                        texts.append(chunk.text)
                        yield chunk
                return
            except TimeoutError as error:
                if isinstance(error, ByzerLLMError):
                    raise
                raise attempts.timed_out() from None
            except WorkerLost as error:
                self._forget(link)
                if started:
                    route.stale = True
                    raise StreamInterruptedError(
                        f"the worker of {model!r} died in the middle of request {request.id}; "
                        f"{len(''.join(texts))} characters had arrived",
                        text="".join(texts),
                        request_id=request.id,
                    ) from None
                attempts.worker_died(route, link, error)
            except OverloadedError as error:
                attempts.refused(route, link, error)
            except ProviderError as error:
                if started:
                    raise
                pause = attempts.vendor.pause(error, attempts.left())
            except ModelNotFoundError as error:
                if started or not error.details.get("draining"):
                    raise
                route.stale = True
            finally:
                self._release(link)
            if pause:
                await asyncio.sleep(pause)

    def stream_sync(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> Iterator[GenerateChunk]:
        """`stream` for synchronous code."""
        chunks = self.stream(model, request, pin=pin, timeout=timeout)
        return background_loop().iterate(chunks)

    # Control.

    async def control(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        """Call the controller; it may be coming back from a restart, which is waited for.

        Raises:
            ByzerLLMError: what the controller raised.
            ClusterError: it does not answer.
        """
        start = method == "deploy"
        end = time.monotonic() + RECOVERY_SECONDS
        while True:
            controller = await self._get_controller(start)
            try:
                async with asyncio.timeout(seconds):
                    return await getattr(controller, method).remote(*args)
            except RayTaskError as error:
                raise _cause(error) from None
            except (RayActorError, ConnectionError) as error:
                self._controller = None
                if method in ("deploy", "scale"):
                    raise ClusterError(
                        f"the controller was restarted during `{method}`, which was undone; "
                        "run it again"
                    ) from None
                if time.monotonic() > end:
                    raise ClusterError(f"the controller does not come back: {error}") from None
                await asyncio.sleep(0.2)
            except TimeoutError:
                raise ClusterError(f"the controller did not answer within {seconds} s") from None

    def control_sync(self, method: str, *args: Any, seconds: float | None = None) -> Any:
        return background_loop().run(self.control(method, *args, seconds=seconds))

    async def _get_controller(self, start: bool) -> Any:
        if self._controller is None:
            self._controller = await asyncio.to_thread(get_controller, start=start)
        return self._controller

    def worker_handle(self, model: str, worker_id: str) -> Any:
        """The actor of one worker, for logs. Raises ValueError when it is gone."""
        return ray.get_actor(f"byzerllm:{model}:{worker_id}", namespace=NAMESPACE)

    def close(self) -> None:
        """Cancel what is in flight and end the leases."""
        self._keeper.stop()
        for route in self._routes.values():
            for link in route.ordered:
                self._forget(link)

    # Picking.

    async def _route(self, model: str, attempts: Attempts) -> Route:
        route = self._routes.get(model)
        if route is not None and not route.stale:
            return route
        return await self._refresh(model, newer_than=-1, wait=0.0)

    async def _refresh(self, model: str, *, newer_than: int, wait: float) -> Route:
        try:
            data = await self.control("table", model, newer_than, wait, seconds=wait + 30.0)
        except ModelNotFoundError:
            self._routes.pop(model, None)
            raise
        except ClusterError as error:
            if "nothing was ever deployed" in str(error):
                raise ModelNotFoundError.unknown(model, ()) from None
            raise
        entry = msgspec.msgpack.decode(data, type=TableEntry)
        new_balancer = get_plugins().balancers.get(entry.balancer)
        with self._lock:
            # Read here and not above: of several callers that ask for the table at once, all must
            # end up with the same links, or a worker would miss the renewals of some.
            old = self._routes.get(model)
            same = old is not None and old.entry.balancer == entry.balancer
            balancer = old.balancer if old and same else new_balancer()
            route = self._routes[model] = Route(entry, balancer, old)
        if old is not None:
            for worker_id in old.links.keys() - route.links.keys():
                self._keeper.release(worker_id)
        return route

    async def _wait_for_workers(self, model: str, route: Route, attempts: Attempts) -> None:
        """Every worker is dead or was tried: wait for the controller's next table."""
        if attempts.last_refusal is not None and not attempts.dead:
            raise attempts.last_refusal
        await self._refresh(model, newer_than=route.entry.version, wait=min(attempts.left(), 10.0))
        attempts.full.clear()

    def _pick(self, route: Route, attempts: Attempts, pin: int | None) -> WorkerLink | None:
        links = route.ordered
        if pin is not None:
            links = [link for link in links if link.view.index == pin]
            if not links and pin >= len(route.ordered):
                raise ParameterError(
                    f"a request of {attempts.model!r} is pinned to worker {pin}; it has workers 0 "
                    f"to {len(route.ordered) - 1} (setup_pin_model_worker_mapping)"
                )
        if attempts.dead or attempts.full:
            tried = attempts.dead | attempts.gone | attempts.full
            links = [link for link in links if link.view.id not in tried]
        if not links:
            return None
        with self._lock:
            if len(links) == 1:
                view = links[0].view
            else:
                view = route.balancer.pick([link.view for link in links])
            view.in_flight += 1
            view.last_used = next(self._picks)
        return route.links[view.id]

    def _release(self, link: WorkerLink) -> None:
        with self._lock:
            link.view.in_flight -= 1

    def _forget(self, link: WorkerLink) -> None:
        """Drop the ways to a worker that is lost; those of other loops find out by themselves."""
        link.handle = link.call = None
        self._keeper.release(link.view.id)

    async def _answers(self, link: WorkerLink) -> bool:
        """Whether a worker lives, before a retry goes there: a dying node takes several workers
        with it, and only those that die of the request shall count against it."""
        await asyncio.sleep(RETRY_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(RETRY_LOOK_SECONDS):
                await self._connect(link).phase.remote()
        except (RayError, ConnectionError, TimeoutError, WorkerLost):
            self._forget(link)
            return False
        return True

    # Sending.

    def _connect(self, link: WorkerLink) -> Any:
        if link.handle is None:
            try:
                handle = ray.get_actor(link.name, namespace=NAMESPACE)
            except ValueError as error:
                raise WorkerLost(str(error)) from None
            link.call = handle.call
            link.handle = handle
            view = link.view
            self._keeper.hold(view.id, handle, lambda: view.in_flight)
        return link.handle

    async def _send(self, route: Route, link: WorkerLink, request: Request) -> Result:
        handle = self._connect(link)
        if link.view.in_flight > 1:
            return await self._channel(route, link, handle).call(request)
        number = next(self._numbers)
        data = encode_calls([(number, request)])
        try:
            reply = await link.call.remote(self.caller, data)
        except asyncio.CancelledError:
            with contextlib.suppress(RayError):
                handle.cancel_call.remote(self.caller, number)
            raise
        except (RayError, ConnectionError) as error:
            raise _named(error) from None
        return self._read_reply(route, reply)

    def _send_alone_sync(self, route: Route, link: WorkerLink, attempts: Attempts) -> Result:
        handle = self._connect(link)
        number = next(self._numbers)
        data = encode_calls([(number, attempts.request)])
        try:
            reply = ray.get(link.call.remote(self.caller, data), timeout=attempts.timeout)
        except GetTimeoutError:
            handle.cancel_call.remote(self.caller, number)
            raise attempts.timed_out() from None
        except (RayError, ConnectionError) as error:
            raise _named(error) from None
        except BaseException:
            handle.cancel_call.remote(self.caller, number)
            raise
        return self._read_reply(route, reply)

    def _read_reply(self, route: Route, reply: bytes) -> Result:
        batch = decode_replies(reply)
        route.saw_version(batch.version)
        item = batch.items[0][1]
        if isinstance(item, Failure):
            raise to_error(item)
        return item  # type: ignore[return-value]

    def _channel(self, route: Route, link: WorkerLink, handle: Any) -> Channel:
        loop = asyncio.get_running_loop()
        channel = link.channels.get(id(loop))
        if channel is None or channel.closed or channel.loop is not loop:
            channel = Channel(
                handle,
                self.caller,
                pull=self._client,
                saw_version=functools.partial(_saw_version, self._routes, route.entry.model),
            )
            link.channels[id(loop)] = channel
        return channel


def _saw_version(routes: dict[str, Route], model: str, version: int) -> None:
    route = routes.get(model)
    if route is not None:
        route.saw_version(version)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _named(error: Exception) -> Exception:
    """A worker's own refusal to read a call, or the loss of the worker."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return cause if isinstance(cause, ByzerLLMError) else WorkerLost(str(error))


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, ByzerLLMError) else ClusterError(f"controller: {error}")


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
