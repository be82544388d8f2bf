"""A vendor on OpenAI's wire that fails three calls in ten, in every way that vendors do, in a
process of its own.

python trouble_vendor.py SEED    prints its port and serves until its stdin is closed

What goes wrong depends on the seed, the question and the number of the try alone. `GET /report`
tells it, by model and question; `POST /outage` with `true` or `false` begins and ends an outage.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

from aiohttp import web

from vendors.openai import OpenAIVendor
from vendors.server import FAULT, Answer, Asked, Cut, Empty, Fault, Garbage, Refuse, Slow

SHARE = 0.3
SLOW_SECONDS = 60.0
KINDS = (
    "429",
    "429 with Retry-After",
    "500",
    "503",
    "cut before the answer",
    "cut in the middle",
    "garbage",
    "a page of HTML",
    "empty",
    "slow",
    "stalled in the middle",
    "wrong shape",
)
FINE = "fine"
DOWN = "503 of an outage"
PAGE = b"<html><body>Bad gateway</body></html>"

_question: ContextVar[str] = ContextVar("question")


@dataclass
class Page:
    """HTML under HTTP 200."""


@dataclass
class Misshapen:
    """JSON that is no answer, in a stream at this event."""

    at: int


@dataclass
class Stalled:
    """A stream says nothing any more after so many events."""

    after: int


def fault(kind: str, chance: random.Random) -> Fault | Page | Misshapen | Stalled | None:
    """What a kind is made of."""
    at = chance.randint(0, 8)
    made: dict[str, Any] = {
        "429": Refuse("rate_limited"),
        "429 with Retry-After": Refuse("rate_limited", retry_after="1"),
        "500": Refuse("failed"),
        "503": Refuse("overloaded"),
        DOWN: Refuse("overloaded"),
        "cut before the answer": Cut(),
        "cut in the middle": Cut(at),
        "garbage": Garbage(at),
        "a page of HTML": Page(),
        "empty": Empty(),
        "slow": Slow(SLOW_SECONDS),
        "stalled in the middle": Stalled(at),
        "wrong shape": Misshapen(at),
    }
    found: Fault | Page | Misshapen | Stalled | None = made.get(kind)
    return found


def answer_to(question: str) -> str:
    """What the vendor answers, and no other question."""
    return f"{question} is answered with a few words and {question}"


class TroubleVendor(OpenAIVendor):
    """`trouble` fails, `calm` does not."""

    models: ClassVar = ("trouble", "calm")

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.seed = seed
        self.down = False
        self.told: dict[str, list[str]] = {}

    def routes(self) -> Iterable[web.RouteDef]:
        yield from super().routes()
        yield web.get("/report", self.report)
        yield web.put("/outage", self.outage)

    async def report(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"told": self.told, "complaints": self.complaints})

    async def outage(self, request: web.Request) -> web.StreamResponse:
        self.down = await request.json()
        return web.json_response(self.down)

    def remember(self, asked: Asked) -> None:
        """Memory is measured."""

    def fault_of(self, request: web.Request, asked: Asked) -> Fault | None:
        if not self.may_fail(request):
            return None
        body = asked.json
        question = body["messages"][-1]["content"]
        _question.set(question)
        tries = self.told.setdefault(f"{body['model']}: {question}", [])
        chance = random.Random(f"{self.seed}, {body['model']}, {question}, {len(tries)}")
        kind = FINE
        if body["model"] == "trouble":
            if self.down:
                kind = DOWN
            elif chance.random() < SHARE:
                kind = chance.choice(KINDS)
        tries.append(kind)
        return fault(kind, chance)  # type: ignore[return-value]

    def next_answer(self, make: Any) -> Answer:
        return Answer(answer_to(_question.get()))

    def refusal(self, kind: str, message: str) -> web.Response:
        return super().refusal(kind, f"{message}, with the key {self.key}")

    async def whole(self, request: web.Request, body: Any, **more: Any) -> web.StreamResponse:
        found = request.get(FAULT)
        if isinstance(found, Stalled):
            await asyncio.sleep(SLOW_SECONDS)
        elif isinstance(found, Page):
            return web.Response(body=PAGE, content_type="text/html")
        elif isinstance(found, Misshapen):
            body = {"choices": self.key}
        return await super().whole(request, body, **more)

    async def stream(self, request: web.Request, events: Any, **more: Any) -> web.StreamResponse:
        found = request.get(FAULT)
        if isinstance(found, Page):
            return web.Response(body=PAGE, content_type="text/html")
        if isinstance(found, Misshapen):
            wrong = b'data: {"choices": "%s"}\n\n' % self.key.encode()
            events = (wrong if at == found.at else event for at, event in enumerate(events))
        elif isinstance(found, Stalled):
            return await self.stall(request, events, found.after)
        return await super().stream(request, events, **more)

    async def stall(
        self, request: web.Request, events: Iterable[bytes], after: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(events):
            if number == after:
                await asyncio.sleep(SLOW_SECONDS)
            await response.write(event)
        return response


def main() -> None:
    with TroubleVendor(sys.argv[1]) as vendor:
        print(json.dumps({"url": vendor.url, "key": vendor.key}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
