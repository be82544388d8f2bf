"""Server-sent events, written as they come and gathered under load.

Source: the section on server-sent events of the HTML standard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from byzerllm.errors import ByzerLLMError
from byzerllm_server.calls import Call, Dialect
from byzerllm_server.errors import HTTPError, error_event, error_response, stopping

logger = logging.getLogger("byzerllm.server")
PINGS: dict[Dialect, bytes] = {
    "openai": b": ping\n\n",
    "anthropic": b'event: ping\ndata: {"type":"ping"}\n\n',
}
"""What is sent to a caller that waits, so that nobody between takes the connection for dead."""
MOST_WAITING_BYTES = 1 << 20
"""A caller that reads so much slower than the model writes holds the model up."""
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx gathers answers otherwise.
    (b"x-accel-buffering", b"no"),
)


def event(data: object, name: str = "") -> bytes:
    """One event; `data` becomes JSON."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


class EventStream(Response):
    """An answer of events.

    The head goes out with the first event, so that a request which fails at once is answered with
    its own status, or after `ping_seconds` of silence. What is ready at one time is written in one
    piece. An error after the head is the stream's last event.

    Args:
        events: encoded events; closed when the caller leaves.
        call: the request.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], call: Call, *, ping_seconds: float
    ) -> None:
        self._events = events
        self._call = call
        self._ping_seconds = ping_seconds
        self._waiting: list[bytes] = []
        self._size = 0
        self._ended = False
        self._failure: Exception | None = None
        self._ready = asyncio.Event()
        self._drained = asyncio.Event()
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump())
        started = False
        try:
            while True:
                data = await self._next()
                if not started:
                    if data is None and self._failure is not None:
                        await error_response(self._failure, self._call)(scope, receive, send)
                        return
                    started = True
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": [*_HEADERS]}
                    )
                if data is None:
                    break
                await send({"type": "http.response.body", "body": data, "more_body": True})
            last = b"" if self._failure is None else error_event(self._failure, self._call)
            await send({"type": "http.response.body", "body": last})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not (started and self._call.cut):
                raise
            task.uncancel()
            last = b"".join(self._waiting) + error_event(stopping(), self._call)
            await send({"type": "http.response.body", "body": last})
        finally:
            if not pump.done():
                pump.cancel()
                await asyncio.wait({pump})

    async def _next(self) -> bytes | None:
        """What is ready, a ping when nothing is for long, None at the end."""
        if not self._waiting and not self._ended:
            self._ready.clear()
            try:
                async with asyncio.timeout(self._ping_seconds):
                    await self._ready.wait()
            except TimeoutError:
                return PINGS[self._call.dialect]
        if not self._waiting:
            return None
        data = b"".join(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting.clear()
        self._size = 0
        self._drained.set()
        return data

    async def _pump(self) -> None:
        try:
            async with aclosing(self._events) as events:
                async for encoded in events:
                    self._waiting.append(encoded)
                    self._size += len(encoded)
                    self._ready.set()
                    if self._size > MOST_WAITING_BYTES:
                        self._drained.clear()
                        await self._drained.wait()
        except Exception as error:
            self._failure = error
            if not isinstance(error, ByzerLLMError | HTTPError):
                logger.exception("request %s failed", self._call.id)
        finally:
            self._ended = True
            self._ready.set()
