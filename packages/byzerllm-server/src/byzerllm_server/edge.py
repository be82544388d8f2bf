"""The outermost layer: what holds for every request, whatever it asks.

It gives the request an id, counts it, notices a caller that leaves, and has the last word on errors
that nobody else caught.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from byzerllm_server.calls import Call, new_id
from byzerllm_server.errors import HTTPError, error_response, stopping

logger = logging.getLogger("byzerllm.server")
CALLER_LEFT = 499
"""The status in log and metrics of a request whose caller did not wait; nginx's number."""
_REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")


class Observer(Protocol):
    """Sees each request twice: metrics, the access log."""

    def began(self, call: Call) -> None: ...

    def ended(self, call: Call, scope: Scope, status: int, seconds: float) -> None:
        """`status` is 0 where nothing was answered."""
        ...


class Edge:
    """See the module.

    Attributes:
        running: requests that are being answered.
        closing: no new ones are taken; the server is stopping.
    """

    def __init__(self, app: ASGIApp, *, max_requests: int, observers: Sequence[Observer]) -> None:
        self._app = app
        self._max_requests = max_requests
        self._observers = observers
        self.running = 0
        self.closing = False
        self._calls: dict[asyncio.Task[None], Call] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(id=_request_id(scope))
        scope["byzerllm.call"] = call
        answer = _Answer(send, call)
        task: asyncio.Task[None] = asyncio.current_task()  # type: ignore[assignment]
        self._calls[task] = call
        self.running += 1
        for observer in self._observers:
            observer.began(call)
        try:
            refusal = self._refusal()
            if refusal is not None:
                await error_response(refusal, call)(scope, receive, answer)
                return
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            if call.cut and not answer.status:
                task.uncancel()
                await error_response(stopping(), call)(scope, receive, answer)
                return
            call.error = call.error or "CancelledError"
            raise
        except Exception as error:
            logger.exception("request %s failed", call.id)
            call.error = type(error).__name__
            if not answer.status:
                await error_response(error, call)(scope, receive, answer)
        finally:
            self.running -= 1
            del self._calls[task]
            seconds = time.perf_counter() - call.started
            status = answer.status if answer.complete else CALLER_LEFT
            for observer in self._observers:
                observer.ended(call, scope, status, seconds)

    def cut_off(self) -> None:
        """End what runs: streams with an event that says why, other requests with 503."""
        for task, call in list(self._calls.items()):
            call.cut = True
            task.cancel()

    def _refusal(self) -> HTTPError | None:
        if self.closing:
            return stopping()
        if self.running > self._max_requests:
            return HTTPError(
                503,
                f"the server has {self._max_requests} requests at once, which is its limit",
                code="overloaded",
                retry_after=1.0,
            )
        return None


class _Answer:
    """The way back to the caller: adds our headers and remembers what was sent."""

    def __init__(self, send: Send, call: Call) -> None:
        self._send = send
        self._call = call
        self.status = 0
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message["headers"]
            headers.append((b"x-request-id", self._call.id.encode()))
            headers.extend(self._call.principal.headers)
            if self._call.dialect == "anthropic":
                headers.append((b"request-id", self._call.id.encode()))
            if self._call.sent:
                own = f"{1000 * _own_seconds(self._call):.2f}"
                headers.append((b"x-gateway-ms", own.encode()))
        elif not message.get("more_body"):
            self.complete = True
        await self._send(message)


def _own_seconds(call: Call) -> float:
    """What the gateway itself took so far: for a stream until the request went to the model, else
    all but the model's own time."""
    if call.stream:
        return call.sent - call.started - call.body_seconds
    return call.own_seconds(time.perf_counter() - call.started)


def call_of(scope: Scope) -> Call:
    """The call that a request belongs to."""
    call: Call = scope["byzerllm.call"]
    return call


def _request_id(scope: Scope) -> str:
    """The caller's own `x-request-id` where it is one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return new_id("req_")
