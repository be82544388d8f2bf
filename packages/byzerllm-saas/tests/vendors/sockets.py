"""What the servers share that answer over WebSockets: faults inside of an open socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import WSMsgType, web

from vendors.server import Asked, Cut, Empty, Fault, Garbage, Refuse, Slow, Vendor


class SocketVendor(Vendor):
    """A vendor whose answers come through sockets.

    Faults reach a question, not the handshake; a refusal whose kind is one of `at_handshake` is
    the exception.
    """

    at_handshake: frozenset[str] = frozenset()

    def may_fail(self, request: web.Request) -> bool:
        if "upgrade" not in request.headers:
            return super().may_fail(request)
        first = self._faults[0] if self._faults else None
        return isinstance(first, Refuse) and first.kind in self.at_handshake

    async def opened(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    async def question(
        self, socket: web.WebSocketResponse, asked: Asked
    ) -> tuple[str | bytes | None, Fault | None]:
        """The one message of a socket, noted as the body of what was asked, and what is to go
        wrong with it; None where the client leaves without one."""
        message = await socket.receive(timeout=10)
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return None, None
        data: str | bytes = message.data
        asked.body = data.encode() if isinstance(data, str) else data
        return data, self._faults.popleft() if self._faults else None

    async def frames(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        frames: Iterable[str | bytes],
        fault: Fault | None = None,
        *,
        garbage: str | bytes,
    ) -> web.WebSocketResponse:
        """The answer; each of its frames is a message."""
        if isinstance(fault, Slow):
            await asyncio.sleep(fault.seconds)
        if not isinstance(fault, Empty):
            for number, frame in enumerate(frames):
                if isinstance(fault, Cut) and fault.after <= number:
                    assert request.transport is not None
                    request.transport.abort()
                    return socket
                wrong = isinstance(fault, Garbage) and fault.at == number
                await self._send(socket, garbage if wrong else frame)
                await asyncio.sleep(self.pace)
        await socket.close()
        return socket

    @staticmethod
    async def _send(socket: web.WebSocketResponse, frame: str | bytes) -> None:
        if isinstance(frame, str):
            await socket.send_str(frame)
        else:
            await socket.send_bytes(frame)
