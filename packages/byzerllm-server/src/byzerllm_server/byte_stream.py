"""An answer of bytes that are sent as they come: sound."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from byzerllm_server.calls import Call
from byzerllm_server.errors import error_response

logger = logging.getLogger("byzerllm.server")


class ByteStream(Response):
    """See the module.

    The head goes out with the first bytes, so that a request which fails at once is answered with
    its own status. A failure after them cuts the connection: no caller takes the half for the
    whole.

    Args:
        pieces: closed when the caller leaves.
        call: the request.
    """

    def __init__(self, pieces: AsyncGenerator[bytes, None], call: Call, *, media_type: str) -> None:
        self._pieces = pieces
        self._call = call
        self._head = (
            (b"content-type", media_type.encode()),
            (b"cache-control", b"no-cache"),
            # nginx gathers answers otherwise.
            (b"x-accel-buffering", b"no"),
        )
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    if not started:
                        started = True
                        await self._start(send)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not started:
                await error_response(error, self._call)(scope, receive, send)
                return
            self._call.error = self._call.error or type(error).__name__
            logger.warning("request %s was cut off: %s", self._call.id, error)
            return
        if not started:
            await self._start(send)
        await send({"type": "http.response.body", "body": b""})

    async def _start(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [*self._head]})
