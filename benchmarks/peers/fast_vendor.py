"""A vendor that answers at once, so that it is never what limits a measurement.

Speaks just enough of OpenAI's chat completions; in a process of its own:

    with vendor() as url: …
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

CHUNKS = 64
WORDS = [f"tok{number} " for number in range(CHUNKS)]
_BASE: dict[str, Any] = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "gpt-4o"}
_USAGE = {"prompt_tokens": 12, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 12}


def _json(body: dict[str, Any]) -> bytes:
    data = msgspec.json.encode(body)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def _answer() -> bytes:
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _json({**_BASE, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def _events() -> list[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**_BASE, "object": "chat.completion.chunk", "choices": [choice]}

    chunks = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": word}) for word in WORDS]
    chunks += [chunk({}, "stop"), {**_BASE, "choices": [], "usage": _USAGE}]
    events = [b"data: " + msgspec.json.encode(item) + b"\n\n" for item in chunks]
    return [b"%x\r\n%s\r\n" % (len(e), e) for e in [*events, b"data: [DONE]\n\n"]]


class FastVendor(asyncio.Protocol):
    """Answers `POST …/chat/completions` from bytes made once; streams chunk by chunk, each in a
    write of its own, with the pause that the field `user` of the request asks for (seconds)."""

    answer, events = _answer(), _events()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            _, _, after = head.partition(b"content-length:")
            size = int(after.partition(b"\r\n")[0] or 0)
            if len(self._rest) < end + 4 + size:
                return
            body = self._rest[end + 4 : end + 4 + size]
            self._rest = self._rest[end + 4 + size :]
            self._reply(msgspec.json.decode(body) if body else {})

    def _reply(self, asked: dict[str, Any]) -> None:
        if asked.get("stream"):
            pace = float(asked.get("user", 0))
            self._task = asyncio.ensure_future(self._stream(pace))
        else:
            self._transport.write(self.answer)

    async def _stream(self, pace: float) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        self._transport.write(head + b"transfer-encoding: chunked\r\n\r\n")
        clock = asyncio.get_running_loop().time
        start = clock()
        for number, event in enumerate(self.events):
            await asyncio.sleep(max(0.0, start + number * pace - clock()))
            self._transport.write(event)
        self._transport.write(b"0\r\n\r\n")


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(FastVendor, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def vendor() -> Iterator[str]:
    """The address of a vendor in a process of its own."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
