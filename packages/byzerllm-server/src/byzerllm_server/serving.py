"""Runs the application under uvicorn: one process, or several that share the port."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
import uvloop

from byzerllm.errors import UsageError
from byzerllm_server.app import Application
from byzerllm_server.settings import ServerSettings

logger = logging.getLogger("byzerllm.server")


def serve(
    settings: ServerSettings,
    *,
    announce: Callable[[str], None],
    certfile: str = "",
    keyfile: str = "",
) -> None:
    """Serve until SIGINT or SIGTERM. Streams that run then may go on for `stop_timeout` seconds.

    Args:
        announce: called with the address once requests are taken.

    Raises:
        UsageError: the address is taken, or no address of this machine.
        ByzerLLMError: the models cannot be reached.
    """
    application = Application(settings)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=int(settings.stop_timeout),
        ssl_certfile=certfile or None,
        ssl_keyfile=keyfile or None,
    )
    with _bound(settings) as listening:
        scheme = "https" if certfile else "http"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{scheme}://{host}:{listening.getsockname()[1]}"
        server = _Server(config, application, lambda: announce(address))
        uvloop.run(server.serve(sockets=[listening]))
    if application.failure is not None:
        raise application.failure


class _Server(uvicorn.Server):
    """Says when it is ready, and tells the application at the first signal that it takes no new
    requests."""

    def __init__(
        self, config: uvicorn.Config, application: Application, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._application = application
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._application.server is not None:
            self._application.server.edge.closing = True
        super().handle_exit(sig, frame)


def _bound(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.set_inheritable(True)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; choose another "
            "--host or --port"
        ) from None
    return listening
