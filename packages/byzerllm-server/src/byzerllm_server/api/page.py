"""The page at `/`: its files, and the figures of the models that it shows."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import msgspec
from msgspec import Struct
from starlette.responses import Response

from byzerllm_server.errors import HTTPError
from byzerllm_server.figures import ModelFigures
from byzerllm_server.operations import Context, Operation, header

INDEX = "index.html"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    # Asked for anew each time, answered with 304: an upgrade is seen at once.
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}


class ServedModels(Struct, kw_only=True):
    """The models that the caller may use."""

    data: list[ModelFigures]


@dataclass(frozen=True)
class PageFile:
    """One file, as it is and compressed."""

    media: str
    etag: str
    plain: bytes
    packed: bytes


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """The files of the page by name. Reads them; call it from a thread."""
    found = {}
    for entry in resources.files("byzerllm_server").joinpath("page").iterdir():
        kind = entry.name.rpartition(".")[2]
        if kind not in _TYPES:
            continue
        data = entry.read_bytes()
        found[entry.name] = PageFile(
            media=_TYPES[kind],
            etag=hashlib.sha256(data).hexdigest()[:20],
            plain=data,
            packed=gzip.compress(data, mtime=0),
        )
    return found


async def page(context: Context) -> Response:
    return await _file(context, INDEX)


async def page_file(context: Context) -> Response:
    return await _file(context, context.scope["path_params"]["file"])


async def _file(context: Context, name: str) -> Response:
    files = await asyncio.to_thread(page_files)
    file = files.get(name)
    if file is None:
        raise HTTPError(404, f"the page has no file {name!r}", code="not_found")
    packed = "gzip" in header(context.scope, b"accept-encoding")
    etag = f'"{file.etag}{"-gzip" if packed else ""}"'
    headers = {**_HEADERS, "etag": etag}
    if etag in header(context.scope, b"if-none-match"):
        return Response(status_code=304, headers=headers)
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(file.packed if packed else file.plain, headers=headers, media_type=file.media)


async def page_models(context: Context) -> Response:
    server = context.server
    by_model = {row.model: row for row in await server.figures.models()}
    names = server.gateway.catalog.names(by_model)
    rows = [
        msgspec.structs.replace(by_model[model], name=name)
        for name, model in names.items()
        if context.call.may_use(name)
    ]
    answer = msgspec.json.encode(ServedModels(data=rows))
    return Response(answer, headers={"cache-control": "no-store"}, media_type="application/json")


OPERATIONS = [
    Operation(
        name="page",
        method="GET",
        path="/",
        summary="The page to chat",
        handler=page,
        media="text/html",
        open=True,
        documented=False,
        tag="Page",
    ),
    Operation(
        name="page_models",
        method="GET",
        path="/ui/models",
        summary="The figures of the models that the page shows",
        handler=page_models,
        answer=ServedModels,
        documented=False,
        tag="Page",
    ),
    Operation(
        name="page_file",
        method="GET",
        path="/ui/{file}",
        summary="A file of the page",
        handler=page_file,
        media="text/plain",
        open=True,
        documented=False,
        tag="Page",
    ),
]
