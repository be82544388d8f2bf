"""The least that a gateway in Python costs: JSON is read and written again, nothing else.

VENDOR_URL=http://127.0.0.1:PORT/v1 uvicorn --app-dir benchmarks peers.passthrough:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

_HEADERS = {"authorization": "Bearer k", "content-type": "application/json"}
_session: aiohttp.ClientSession | None = None


def _opened() -> aiohttp.ClientSession:
    global _session
    if _session is None:
        connector = aiohttp.TCPConnector(limit=0)
        _session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
    return _session


async def chat(request: Request) -> Response:
    body = msgspec.json.decode(await request.body())
    url = os.environ["VENDOR_URL"] + "/chat/completions"
    asked = _opened().post(url, data=msgspec.json.encode(body), headers=_HEADERS)
    if body.get("stream"):

        async def events() -> AsyncIterator[bytes]:
            async with asked as response:
                async for line in response.content:
                    if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                        found = msgspec.json.decode(line[6:])
                        yield b"data: " + msgspec.json.encode(found) + b"\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")
    async with asked as response:
        found = msgspec.json.decode(await response.read())
    return Response(msgspec.json.encode(found), media_type="application/json")


app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
