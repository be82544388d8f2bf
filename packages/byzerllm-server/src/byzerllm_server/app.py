"""The ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from byzerllm import ByzerLLM
from byzerllm_server import openapi, tracing
from byzerllm_server.access_log import OFF, AccessLog
from byzerllm_server.api import (
    audio,
    chat,
    completions,
    embeddings,
    images,
    messages,
    metrics,
    page,
    rerank,
    responses,
    service,
    tokenize,
)
from byzerllm_server.auth import Gate, OneKeyGate, OpenGate
from byzerllm_server.catalog import Catalog
from byzerllm_server.edge import Edge, Observer, call_of
from byzerllm_server.errors import HTTPError, error_response
from byzerllm_server.figures import Figures
from byzerllm_server.gateway import Gateway
from byzerllm_server.metrics import Metrics
from byzerllm_server.operations import Context, Endpoint, Operation
from byzerllm_server.settings import ServerSettings
from byzerllm_server.tracing import Tracing

if TYPE_CHECKING:
    from byzerllm_server.keys.gate import KeyGate

STOP_SECONDS = 15.0
"""What is given back at the end must be given back by then."""
OPERATIONS: Sequence[Operation] = [
    *chat.OPERATIONS,
    *completions.OPERATIONS,
    *embeddings.OPERATIONS,
    *rerank.OPERATIONS,
    *audio.OPERATIONS,
    *images.OPERATIONS,
    *tokenize.OPERATIONS,
    *messages.OPERATIONS,
    *responses.OPERATIONS,
    *service.OPERATIONS,
    *metrics.OPERATIONS,
    *page.OPERATIONS,
]


class Server:
    """What the handlers share.

    Attributes:
        settings: what the server was told.
        gateway: the way to the models.
        figures: what the page shows of them.
        metrics: what Prometheus is told.
        keys: asks for keys and counts their use; None without `keys_url`.
        openapi: the document, as JSON.
        edge: the outermost layer of the application.
    """

    logger = logging.getLogger("byzerllm.server")

    def __init__(
        self, settings: ServerSettings, client: ByzerLLM, keys: KeyGate | None = None
    ) -> None:
        self.settings = settings
        self.gateway = Gateway(
            client, Catalog(settings.served_names), timeout=settings.request_timeout
        )
        self.keys = keys
        self.gate: Gate = keys or (OneKeyGate(settings.api_key) if settings.api_key else OpenGate())
        self.figures = Figures(client)
        self.observers: list[Observer] = [self.figures.seen] if settings.page else []
        self.access_log = AccessLog(settings.access_log) if settings.access_log != OFF else None
        self.tracing = (
            Tracing(settings.otel_endpoint, OPERATIONS)
            if tracing.wanted(settings.otel_endpoint)
            else None
        )
        self.metrics = Metrics(
            self.gateway,
            folder=settings.metrics_folder,
            own_workers=settings.runtime == "local",
        )
        self.observers.append(self.metrics)
        if self.access_log is not None:
            self.observers.append(self.access_log)
        if self.tracing is not None:
            self.observers.append(self.tracing)
        if keys is not None:
            self.observers.append(keys)
        self._operations = _operations(settings)
        self.openapi = openapi.document(self._operations, keys=not isinstance(self.gate, OpenGate))
        self.edge = Edge(
            self._routed(), max_requests=settings.max_requests, observers=self.observers
        )

    @property
    def closing(self) -> bool:
        return self.edge.closing

    async def authorize(self, context: Context) -> None:
        """Find out who calls. Raises HTTPError."""
        context.call.principal = await self.gate.authorize(context)

    async def close(self) -> None:
        """Give back what the server holds."""
        if self.keys is not None:
            await self.keys.close()
        await self.metrics.close()
        if self.tracing is not None:
            await self.tracing.close()
        if self.access_log is not None:
            await asyncio.to_thread(self.access_log.close)

    def _routed(self) -> ASGIApp:
        routed = Starlette(
            routes=[
                Route(operation.path, Endpoint(operation, self), methods=[operation.method])
                for operation in self._operations
            ],
            exception_handlers={404: _not_found, 405: _wrong_method},
        )
        # A redirect loses the body in many a client.
        routed.router.redirect_slashes = False
        app: ASGIApp = routed
        if self.settings.cors_origins:
            app = CORSMiddleware(
                app,
                allow_origins=self.settings.cors_origins,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=[
                    "x-request-id",
                    "x-gateway-ms",
                    "retry-after",
                    *(
                        f"x-ratelimit-{what}-{kind}"
                        for what in ("limit", "remaining", "reset")
                        for kind in ("requests", "tokens")
                    ),
                ],
            )
        return app


def _operations(settings: ServerSettings) -> list[Operation]:
    """Those that a server of these settings has."""
    return [
        replace(operation, open=True)
        if operation.name == "metrics" and settings.open_metrics
        else operation
        for operation in OPERATIONS
        if settings.page or operation not in page.OPERATIONS
    ]


async def _not_found(request: Request, error: Exception) -> Response:
    known = sorted({operation.path for operation in OPERATIONS if operation.documented})
    refusal = HTTPError(
        404,
        f"there is nothing at {request.url.path}; there are: {', '.join(known)}",
        code="not_found",
    )
    return error_response(refusal, call_of(request.scope))


async def _wrong_method(request: Request, error: Exception) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    refusal = HTTPError(
        405,
        f"{request.url.path} does not take {request.method}; it takes {headers.get('Allow', '?')}",
        code="method_not_allowed",
        headers=headers,
    )
    return error_response(refusal, call_of(request.scope))


async def _open_keys(settings: ServerSettings) -> KeyGate | None:
    """Raises UsageError: the keys cannot be read."""
    if not settings.keys_url:
        return None
    # SQLAlchemy takes a fifth of a second to import.
    from byzerllm_server.keys.gate import KeyGate
    from byzerllm_server.keys.store import open_store

    gate = KeyGate(open_store(settings.keys_url, create=False), processes=settings.processes)
    await gate.open()
    return gate


Progress = Callable[[str], contextlib.AbstractContextManager[Callable[[str, str], None]]]
"""Given a model's name: what is called with a worker and its phase while the model loads."""


def connect(settings: ServerSettings, progress: Progress | None = None) -> ByzerLLM:
    """The client of the runtime that is served; with `local` the models of the file are deployed
    in this process. Blocks; call it from a thread.

    Raises:
        ByzerLLMError: no cluster, or a model that cannot be deployed.
    """
    if settings.runtime == "ray":
        from byzerllm.runtime.cluster import connect_cluster

        # What workers print may be what people asked, and is no business of the server's log.
        connect_cluster(settings.ray_address, log_to_driver=False, logging_level=logging.ERROR)
        return ByzerLLM()
    from byzerllm.cli.upfile import read_up_file
    from byzerllm.runtime.local import local_runtime

    specs = read_up_file(Path(settings.config)).specs
    local_runtime().processes = settings.processes
    client = ByzerLLM(runtime="local")
    for spec in specs.values():
        with progress(spec.model) if progress else contextlib.nullcontext() as report:
            client.deploy_spec(spec, progress=report)
    return client


def disconnect(settings: ServerSettings) -> None:
    """Give back what `connect` took: the models of this process, or the connection to Ray.
    Blocks."""
    if settings.runtime == "ray":
        import ray

        ray.shutdown()
        return
    client = ByzerLLM(runtime="local")
    for row in client.models():
        client.undeploy(row["model"], force=True)


class Application:
    """The server as one ASGI application, started and stopped by `start` and `stop`, or by the
    `lifespan` protocol.

    Args:
        progress: shows how models load.
        connected: this process is connected to Ray already, and stays so.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        progress: Progress | None = None,
        connected: bool = False,
    ) -> None:
        self.settings = settings
        self.server: Server | None = None
        self._progress = progress
        self._connected = connected

    async def start(self) -> Server:
        """Connect and deploy; the loop that runs here becomes the client's, too."""
        from byzerllm.runtime.background import adopt_running_loop

        adopt_running_loop()
        keys = await _open_keys(self.settings)
        try:
            client = await asyncio.to_thread(connect, self.settings, self._progress)
            self.server = Server(self.settings, client, keys)
        except BaseException:
            if keys is not None:
                await keys.close()
            raise
        return self.server

    async def stop(self) -> None:
        """Give back what `start` took; nothing may run any more."""
        server, self.server = self.server, None
        if server is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await server.close()
                if not self._connected:
                    await asyncio.to_thread(disconnect, self.settings)
        except Exception:
            Server.logger.exception("stopping: something was not given back")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert self.server is not None
        await self.server.edge(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})
