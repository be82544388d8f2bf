"""One row per route: what it takes, what it answers, who may call it.

Routes and the OpenAPI document are made of the same rows.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from byzerllm_server.calls import Call, Dialect
from byzerllm_server.edge import call_of
from byzerllm_server.errors import HTTPError, error_response
from byzerllm_server.forms import FORM, Upload, read_form

if TYPE_CHECKING:
    from byzerllm_server.app import Server

JSON = "application/json"
SKIPPED_BYTES = 64 * 1024
SKIPPED_SECONDS = 1.0
"""The body of a request whose key is refused is read away where it is no longer, and comes by
then; else the connection is closed."""


class Body(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of request bodies: the fields that a route knows, and their types."""


@dataclass(slots=True)
class Context:
    """What a handler has at hand.

    Attributes:
        server: gateway, catalog, settings, keys.
        call: the request so far.
        scope: ASGI's, with headers and path parameters.
        raw: the body as plain JSON data; empty where the route takes none.
        extra: its fields that the route does not know; only where the operation takes them.
    """

    server: Server
    call: Call
    scope: Scope
    raw: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


Handler = Callable[..., Awaitable[Response]]
"""Takes the `Context`, and the body where the operation has one."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One route.

    Attributes:
        name: short and unique; the `operationId`, and the label in metrics.
        method, path: HTTP's, the path in Starlette's notation.
        summary: one line for the document.
        handler: answers it.
        body: the type of its JSON body; None where it takes none, or takes a form.
        form: the type of its multipart form; the handler gets the file, too.
        file: the form's field that is a file.
        extra: fields that `body` does not have are handed on instead of refused.
        answer: the type of its JSON answer; None where it answers with `media` alone.
        event: the type of the events of its stream, where it has one.
        media: the media type of the answer.
        open: needs no key.
        dialect: whose API it is.
        tag: the group in the document.
        documented: whether it stands in the document; the page's own routes do not.
    """

    name: str
    method: str
    path: str
    summary: str
    handler: Handler
    body: type[Body] | None = None
    form: type[Body] | None = None
    file: str = ""
    extra: bool = False
    answer: Any = None
    event: Any = None
    media: str = JSON
    open: bool = False
    dialect: Dialect = "openai"
    tag: str = "OpenAI"
    documented: bool = True


class Endpoint:
    """Answers one operation: checks the caller, reads the body, and stops when the caller leaves.

    An ASGI application.
    """

    def __init__(self, operation: Operation, server: Server) -> None:
        self._operation = operation
        self._server = server
        body = operation.body or operation.form
        self._fields = (
            {f.encode_name for f in msgspec.structs.fields(body)} if body is not None else set()
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = call_of(scope)
        call.operation = self._operation.name
        call.dialect = self._operation.dialect
        self._server.metrics.entered(call)
        context = Context(self._server, call, scope)
        task = asyncio.current_task()
        assert task is not None
        leaving: asyncio.Task[None] | None = None
        left = False

        async def leave() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        try:
            if not self._operation.open:
                await self._authorize(context, receive)
            arguments = await self._read(context, receive)
            leaving = asyncio.create_task(leave())
            response = await self._operation.handler(context, *arguments)
            await response(scope, receive, send)
        except ClientDisconnect:
            call.error = "ClientDisconnect"
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            call.error = "ClientDisconnect"
        except Exception as error:
            await self._refuse(error, call, scope, receive, send)
        finally:
            if leaving is not None:
                leaving.cancel()

    async def _authorize(self, context: Context, receive: Receive) -> None:
        try:
            await self._server.authorize(context)
        except HTTPError as refusal:
            # A caller that is over its limits comes again; its connection is worth a short body.
            if not await _skip_body(context.scope, receive):
                refusal.headers["connection"] = "close"
            raise

    async def _refuse(
        self, error: Exception, call: Call, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = error_response(error, call)
        if response.status_code == 500:
            self._server.logger.error("request %s failed", call.id, exc_info=error)
        await response(scope, receive, send)

    async def _read(self, context: Context, receive: Receive) -> tuple[Any, ...]:
        operation = self._operation
        if operation.form is not None:
            return await self._read_form(context, receive, operation.form)
        if operation.body is None:
            return ()
        _check_kind(context.scope, JSON, "JSON")
        context.raw = _json_object(await self._data(context, receive))
        body = _converted(context.raw, operation.body)
        unknown = context.raw.keys() - self._fields
        if unknown:
            if not operation.extra:
                raise _unknown_field(min(unknown), self._fields)
            context.extra = {name: context.raw[name] for name in unknown}
        return (body,)

    async def _read_form(
        self, context: Context, receive: Receive, kind: type[Body]
    ) -> tuple[Body, Upload]:
        _check_kind(context.scope, FORM, "a form")
        content_type = header(context.scope, b"content-type")
        form = await read_form(content_type, await self._data(context, receive))
        name = self._operation.file
        allowed = {*self._fields, name}
        unknown = (form.texts.keys() | form.files.keys()) - allowed
        if unknown:
            raise _unknown_field(min(unknown), allowed)
        for other in form.files.keys() - {name}:
            raise HTTPError(400, f"{other}: it must be a text, not a file", parameter=other)
        if name not in form.files:
            how = "it must be a file, with a filename" if name in form.texts else "it is missing"
            raise HTTPError(400, f"{name}: {how}", parameter=name)
        return _converted(form.texts, kind, strict=False), form.files[name]

    async def _data(self, context: Context, receive: Receive) -> bytes:
        settings = self._server.settings
        began = time.perf_counter()
        try:
            async with asyncio.timeout(settings.body_timeout):
                data = await read_body(context.scope, receive, settings.max_body_bytes)
        except TimeoutError:
            raise HTTPError(
                408,
                f"the body did not come within {settings.body_timeout:g} s",
                code="timeout",
                headers={"connection": "close"},
            ) from None
        context.call.body_seconds = time.perf_counter() - began
        return data


def _check_kind(scope: Scope, wanted: str, called: str) -> None:
    kind = header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind != wanted:
        raise HTTPError(
            415,
            f"the body must be {called}, with the header content-type: {wanted} (got {kind!r})",
            code="unsupported_media_type",
        )


def header(scope: Scope, name: bytes) -> str:
    """The value of a header, or an empty text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        HTTPError: it is longer than `limit` bytes; the connection is closed then.
        ClientDisconnect: the caller left.
    """
    length = header(scope, b"content-length")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
        if not message.get("more_body"):
            return b"".join(pieces) if len(pieces) > 1 else piece


async def _skip_body(scope: Scope, receive: Receive) -> bool:
    """Read a body that nobody wants; False where it is too long, or too slow."""
    if header(scope, b"transfer-encoding"):
        return False
    length = header(scope, b"content-length") or "0"
    if not length.isdigit() or int(length) > SKIPPED_BYTES:
        return False
    if int(length) == 0:
        return True
    try:
        async with asyncio.timeout(SKIPPED_SECONDS):
            await read_body(scope, receive, SKIPPED_BYTES)
    except (TimeoutError, HTTPError):
        return False
    return True


def _too_large(limit: int) -> HTTPError:
    return HTTPError(
        413,
        f"the body is longer than {limit} bytes (byzerllm serve --max_body_mb)",
        code="request_too_large",
        headers={"connection": "close"},
    )


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPError(400, f"the body is no JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise HTTPError(400, "the body is nested too deeply", code="invalid_json") from None
    if not isinstance(value, dict):
        raise HTTPError(
            400, f"the body must be a JSON object (got {type(value).__name__})", code="invalid_json"
        )
    return value


_AT = re.compile(r" - at `\$?\.?(?P<path>.*)`$")
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")


def _converted(value: Mapping[str, Any], body: type[Body], *, strict: bool = True) -> Body:
    try:
        return msgspec.convert(value, body, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _AT.search(text)
        path = found["path"] if found else ""
        missing = _MISSING.search(text)
        if missing:
            path = f"{path}.{missing['name']}" if path else missing["name"]
        reason = _AT.sub("", text)
        where = f"{path}: " if path else ""
        raise HTTPError(400, f"{where}{reason}", code="invalid_value", parameter=path) from None


def _unknown_field(name: str, known: set[str]) -> HTTPError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return HTTPError(
        400,
        f"unknown parameter {name!r}{hint}; allowed: {', '.join(sorted(known))}",
        code="unknown_parameter",
        parameter=name,
    )
