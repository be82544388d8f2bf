"""HTTP/1.1 with limits on what a caller may keep the server waiting for.

uvicorn waits without end for the rest of a request's head, for a body that nobody reads, and for a
caller that does not read its answer; and it closes on a caller that still sends, which then loses
the refusal.
"""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from byzerllm_server.calls import Call, new_id
from byzerllm_server.errors import HTTPError, error_body, problem_of

HEAD_SECONDS = 10.0
"""A request's head must have come by then, counted from its first byte or the connection's, or by
`ServerSettings.body_timeout` where that is less."""
HEAD_BYTES = 64 * 1024
HEAD_FIELDS = 200
IDLE_SECONDS = 75
"""A connection without a request is kept for so long."""
LINGER_SECONDS = 3.0
"""What a refused caller still sends is read for so long, so that it gets to see the refusal."""


class LimitedProtocol(HttpToolsProtocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A caller that takes nothing of its answer for so long has left.
        self._unread_seconds: float = config.app.settings.body_timeout  # type: ignore[union-attr]
        self._head_seconds = min(HEAD_SECONDS, self._unread_seconds)
        self._in_head = True
        self._begun = False
        self._messages = 0
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None
        self._linger_timer: TimerHandle | None = None
        self._refusal: HTTPError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_PoliteTransport(transport, self))  # type: ignore[arg-type]
        self._head_timer = self.loop.call_later(self._head_seconds, self._no_head)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._unread_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._unread_timer = self._linger_timer = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        # Requests that were pipelined behind the one that runs are not begun any more.
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None or self.parser is None:
            return
        self._unset_keepalive_if_required()
        was_in_head, messages = self._in_head, self._messages
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The answer is plain HTTP/1.1, and what follows is not read.
            if self.cycle is not None:
                self.cycle.keep_alive = False
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or _malformed())
            return
        if not self._in_head:
            return
        if self._begun or (was_in_head and messages == self._messages):
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(_head_too_large())
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self._head_seconds, self._no_head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._begun = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = self._begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._refusal = _malformed()
            raise self._refusal
        headers = self.headers
        size = len(self.url) + sum([len(name) + len(value) for name, value in headers])
        if size > HEAD_BYTES or len(headers) > HEAD_FIELDS:
            self._refusal = _head_too_large()
            raise self._refusal
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
        self._messages += 1

    def on_response_complete(self) -> None:
        super().on_response_complete()
        complete = self.cycle.response_complete
        if complete and self.is_receiving() and not self.transport.is_closing():
            # Its body is of no use any more, and nothing limits how long it takes.
            self._unset_keepalive_if_required()
            self.transport.close()

    def is_receiving(self) -> bool:
        """Whether the caller still sends the request that was answered last."""
        return not self._in_head

    def linger(self, transport: Any) -> None:
        """Close, but read on for a moment what the caller sends."""
        if transport.can_write_eof():
            transport.write_eof()
        self.flow.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._unread_seconds, self._unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _unread(self) -> None:
        self._unread_timer = None
        self.transport.abort()

    def _no_head(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # A piece of the next request; the answer to the one before it still runs.
            self._head_timer = self.loop.call_later(self._head_seconds, self._no_head)
        elif self._begun:
            self._refuse(
                HTTPError(
                    408,
                    f"the head of the request did not come within {self._head_seconds:g} s",
                    code="timeout",
                )
            )
        else:
            self.transport.close()

    def _refuse(self, error: HTTPError) -> None:
        """Answer what is no request, and close. A caller that is being answered is only left."""
        self._in_head = False
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            answered = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if answered:
                self.transport.abort()
                return
        call = Call(id=new_id("req_"))
        body = error_body(problem_of(error), call.dialect, call.id)
        head = (
            b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %s\r\n"
            b"connection: close\r\n\r\n" % (len(body), call.id.encode())
        )
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()


class _PoliteTransport:
    """A transport whose `close` lets a caller that still sends read its answer first."""

    __slots__ = (
        "_closing",
        "_protocol",
        "_transport",
        "abort",
        "get_extra_info",
        "get_write_buffer_size",
        "pause_reading",
        "resume_reading",
        "set_write_buffer_limits",
        "write",
    )

    def __init__(self, transport: asyncio.Transport, protocol: LimitedProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._closing = False
        # Bound once: a write costs no further call.
        self.write = transport.write
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_write_buffer_limits = transport.set_write_buffer_limits

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        if self._closing or self._transport.is_closing() or not self._protocol.is_receiving():
            self._transport.close()
            return
        self._closing = True
        self._protocol.linger(self._transport)


def _malformed() -> HTTPError:
    return HTTPError(400, "this is no request of HTTP/1.1", code="malformed_request")


def _head_too_large() -> HTTPError:
    return HTTPError(
        431,
        f"the head of the request is longer than {HEAD_BYTES} bytes or {HEAD_FIELDS} fields",
        code="head_too_large",
    )
