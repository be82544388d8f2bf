"""What the local servers share: strictness, scripted answers, faults on demand."""

from __future__ import annotations

import asyncio
import email
import email.message
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import msgspec
from aiohttp import web

T = TypeVar("T")
GARBAGE = b'{"choices": [{"delta": {"content": "half'


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """One scripted answer of a chat.

    Attributes:
        text: the answer; in a stream word by word, or in `pieces`.
        tool_calls: dicts with `name`, `arguments` (JSON text) and, where wanted, `id`.
        finish: the vendor's own word for the reason; empty is its usual one.
        usage: prompt and completion tokens.
    """

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    reasoning: str = ""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    finish: str = ""
    usage: tuple[int, int] = (11, 7)

    def __post_init__(self) -> None:
        if self.pieces:
            self.text = "".join(self.pieces)
        else:
            self.pieces = split_words(self.text)


@dataclass
class Refuse:
    """The request is refused in the vendor's own shape; `kind` is one of `Vendor.kinds`."""

    kind: str
    retry_after: str = ""


@dataclass
class Slow:
    """So many seconds of silence before the answer."""

    seconds: float


@dataclass
class Cut:
    """The connection is cut: a stream after so many events (-1: without any answer at all), a
    whole answer in the middle."""

    after: int = -1


@dataclass
class Garbage:
    """A stream's event of this number is no JSON; so is the body of a whole answer."""

    at: int = 0


@dataclass
class Empty:
    """Status 200 and nothing else."""


Fault = Refuse | Slow | Cut | Garbage | Empty
FAULT = web.RequestKey("fault", object)


@dataclass
class FormField:
    """One field of a form; files have a name."""

    data: bytes
    filename: str = ""

    @property
    def text(self) -> str:
        return self.data.decode()


class Refused(Exception):
    """The server does not take the request; `kind` is one of `Vendor.kinds`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Vendor:
    """A vendor on a port of this machine, on a thread and loop of its own.

    A subclass names its `routes`, and says in `refusal` how it refuses.

    Class attributes:
        key: the key that it knows.
        models: the models that it has.
        kinds: the errors that it can make, by the names that `suite.ERRORS` has.

    Attributes:
        asked: every request, first one first.
        complaints: why requests were refused without being told to.
        left: answers that the client did not wait for.
        pace: seconds between the events of a stream.
    """

    key: ClassVar[str] = "vendor-key-0123456789abcdef"
    models: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.complaints: list[str] = []
        self.left = 0
        self.pace = 0.001
        self._answers: deque[Answer] = deque()
        self._faults: deque[Fault] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._port = 0

    # What a vendor says of itself.

    def routes(self) -> Iterable[web.RouteDef]:
        """Its calls."""
        raise NotImplementedError

    def refusal(self, kind: str, message: str) -> web.Response:
        """An error as the vendor shapes it."""
        raise NotImplementedError

    # What tests use.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def answers(self, *answers: Answer | str) -> Self:
        """What the next chats are answered with; afterwards the server makes up its own."""
        self._answers.extend(Answer(a) if isinstance(a, str) else a for a in answers)
        return self

    def faults(self, *faults: Fault) -> Self:
        """What goes wrong with the next requests, one each; checks of key and model excepted."""
        self._faults.extend(faults)
        return self

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # What vendors use.

    def next_answer(self, make: Callable[[], Answer]) -> Answer:
        return self._answers.popleft() if self._answers else make()

    def decode(self, body: bytes, wanted: type[T]) -> T:
        """A JSON body as a msgspec struct; structs here are declared with
        `forbid_unknown_fields=True`, so that a field the vendor does not know is refused."""
        try:
            return msgspec.json.decode(body, type=wanted)
        except msgspec.ValidationError as error:
            raise Refused("bad_request", str(error)) from None
        except msgspec.DecodeError as error:
            raise Refused("bad_request", f"the body is no JSON: {error}") from None

    async def form(self, request: web.Request) -> dict[str, FormField]:
        """The fields of a multipart body by name."""
        kind = request.headers["content-type"]
        self.expect(request.content_type == "multipart/form-data", "a form is needed")
        head = f"content-type: {kind}\r\n\r\n".encode()
        message = email.message_from_bytes(head + await request.read())
        self.expect(message.is_multipart(), "the form cannot be read")
        fields = {}
        for part in message.get_payload():
            assert isinstance(part, email.message.Message)
            name = str(part.get_param("name", header="content-disposition"))
            data = part.get_payload(decode=True)
            assert isinstance(data, bytes)
            fields[name] = FormField(data, part.get_filename() or "")
        return fields

    @staticmethod
    def expect(condition: object, message: str, kind: str = "bad_request") -> None:
        if not condition:
            raise Refused(kind, message)

    async def whole(
        self,
        request: web.Request,
        body: Any,
        *,
        content_type: str = "application/json",
        **more: Any,
    ) -> web.StreamResponse:
        """A whole answer: JSON, or bytes."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        fault = request.get(FAULT)
        if isinstance(fault, Garbage):
            data = GARBAGE
        if isinstance(fault, Cut):
            response = web.StreamResponse(headers={"content-type": content_type})
            response.content_length = len(data)
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            _cut(request)
            return response
        return web.Response(body=data, content_type=content_type, **more)

    async def stream(
        self,
        request: web.Request,
        events: Iterable[bytes] | AsyncIterator[bytes],
        *,
        content_type: str = "text/event-stream",
        garbage: bytes = b"data: " + GARBAGE + b"\n\n",
    ) -> web.StreamResponse:
        """A stream; each item of `events` is one event in its frame."""
        fault = request.get(FAULT)
        response = web.StreamResponse(headers={"content-type": content_type})
        await response.prepare(request)
        for number, event in enumerate(events):  # type: ignore[arg-type]
            if isinstance(fault, Cut) and fault.after == number:
                _cut(request)
                return response
            wrong = isinstance(fault, Garbage) and fault.at == number
            await response.write(garbage if wrong else event)
            await asyncio.sleep(self.pace)
        await response.write_eof()
        return response

    # Inside.

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        app = web.Application(middlewares=[self._middleware], client_max_size=64 * 1024**2)
        app.add_routes(list(self.routes()))
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _middleware(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        asked = Asked(request.method, request.path, dict(request.query), headers, body)
        self.remember(asked)
        try:
            fault = self.fault_of(request, asked)
            if fault is not None:
                request[FAULT] = fault
                if isinstance(fault, Slow):
                    await asyncio.sleep(fault.seconds)
                elif isinstance(fault, Empty):
                    return web.Response(body=b"", content_type="application/json")
                elif isinstance(fault, Cut) and fault.after < 0:
                    _cut(request)
                    return web.Response()
                elif isinstance(fault, Refuse):
                    response = self.refusal(fault.kind, f"told to say {fault.kind}")
                    if fault.retry_after:
                        response.headers["retry-after"] = fault.retry_after
                    return response
            return await handler(request)
        except Refused as error:
            self.complaints.append(f"{request.method} {request.path}: {error}")
            return self.refusal(error.kind, str(error))
        except web.HTTPException as error:
            self.complaints.append(f"{request.method} {request.path}: {error.status}")
            raise
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        except Exception as error:
            self.complaints.append(f"{request.method} {request.path}: {error!r}")
            raise

    def remember(self, asked: Asked) -> None:
        self.asked.append(asked)

    def fault_of(self, request: web.Request, asked: Asked) -> Fault | None:
        """What goes wrong with this request."""
        return self._faults.popleft() if self._faults and self.may_fail(request) else None

    def may_fail(self, request: web.Request) -> bool:
        """Whether faults reach this request; those of the check at deploy are spared."""
        return request.method == "POST"


def _cut(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


def split_words(text: str) -> list[str]:
    """`a b c` as `a`, ` b`, ` c`."""
    words: list[str] = []
    for word in text.split(" "):
        words.append(f" {word}" if words else word)
    return words


NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)


def made_up(
    question: str, *, max_tokens: int | None, stop: Iterable[str] = (), schema: Any = None
) -> tuple[Answer, str]:
    """What a vendor answers when the test has not said it: the numbers from one to twenty, within
    the limits that the request sets; and `stop` or `length`."""
    text = '{"n": 7}' if schema is not None else NUMBERS
    for end in stop:
        text = text.partition(end)[0]
    words = split_words(text)
    limit = len(words) if max_tokens is None else min(max_tokens, len(words))
    reason = "length" if limit < len(words) else "stop"
    answer = Answer(pieces=words[:limit], usage=(len(question.split()) + 3, limit))
    return answer, reason
