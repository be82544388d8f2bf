"""Runs the application under uvicorn: one process, or several that share the port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from byzerllm.errors import UsageError
from byzerllm_server.app import Application, Progress
from byzerllm_server.logs import log_on_stderr
from byzerllm_server.protocol import IDLE_SECONDS, LimitedProtocol
from byzerllm_server.settings import ServerSettings

logger = logging.getLogger("byzerllm.server")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIDY_SECONDS = 5.0
"""What is cut off gets so long to say its last word."""
_BACKLOG = 2048
_FILES = 65536


def serve(
    settings: ServerSettings, *, announce: Callable[[str], None], progress: Progress | None = None
) -> None:
    """Serve until SIGINT or SIGTERM. Streams that run then may go on for `stop_timeout` seconds; a
    second signal ends at once.

    Args:
        announce: called with the address once requests are taken.
        progress: shows how models load, as `Application` takes it.

    Raises:
        UsageError: the address is taken, or no address of this machine, or the certificate is
            none.
        ByzerLLMError: the models cannot be reached.
    """
    check_certificate(settings)
    _allow_many_connections()
    with bound(settings) as listening:
        if settings.processes > 1:
            from byzerllm_server.processes import Processes

            Processes(settings, listening, announce=announce, progress=progress).run()
            return
        address = url_of(settings, listening)
        run_here(settings, listening, ready=lambda: announce(address), progress=progress)


def run_here(
    settings: ServerSettings,
    listening: socket.socket,
    *,
    ready: Callable[[], None],
    progress: Progress | None = None,
    signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
) -> None:
    """Serve in this process, in its main thread. Raises as `serve`.

    Args:
        signals: those that stop it.
    """
    application = Application(settings, progress=progress)
    config = uvicorn.Config(
        application,
        http=LimitedProtocol,
        ws="none",
        # The server starts and stops the application itself: so its errors come out as they are.
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        ssl_certfile=settings.ssl_certfile or None,
        ssl_keyfile=settings.ssl_keyfile or None,
    )
    server = _Server(config, application, ready, signals)
    with log_on_stderr(verbose=settings.verbose):
        uvloop.run(server.serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """Starts the application before it listens, says when it is ready, and stops in order."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Application,
        ready: Callable[[], None],
        signals: tuple[signal.Signals, ...],
    ) -> None:
        super().__init__(config)
        self._application = application
        self._ready = ready
        self._signals = signals
        self._stopped_by: signal.Signals | None = None
        self._starting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._starting = asyncio.ensure_future(self._start())
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._stopped_by is None:
                raise
            # Nothing was served: as any program that a signal ends.
            raise SystemExit(128 + self._stopped_by) from None
        self._take_signals()
        try:
            await super().startup(sockets)
        except OSError as error:
            raise _cannot_listen(self._application.settings, error) from None
        self._ready()

    async def _start(self) -> None:
        await self._application.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        settings = self._application.settings
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._ended(settings.stop_timeout):
            assert self._application.server is not None
            edge = self._application.server.edge
            logger.warning("stopping: %d requests are cut off", edge.running)
            edge.cut_off()
            await self._ended(TIDY_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self._application.stop()

    async def _ended(self, seconds: float) -> bool:
        """Whether all that runs ends within `seconds`."""
        state = self.server_state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                # uvicorn tells nobody when a connection ends.
                while state.tasks or state.connections:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        return not state.tasks

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = self._take_signals()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take_signals(self) -> dict[signal.Signals, Any]:
        """Again once Ray is connected: its C++ half takes SIGTERM for a crash, and aborts the
        process three seconds later by an alarm."""
        return {
            number: signal.signal(number, self.handle_exit)
            for number in self._signals
            # `nohup` has SIGINT ignored.
            if signal.getsignal(number) is not signal.SIG_IGN
        }

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        signal.alarm(0)
        if self._stopped_by is not None:
            end_at_once(sig)
        self._stopped_by = signal.Signals(sig)
        self.should_exit = True
        if self._application.server is not None:
            self._application.server.edge.closing = True
        elif self._starting is not None:
            self._starting.get_loop().call_soon_threadsafe(self._starting.cancel)


def end_at_once(number: int) -> None:
    """End this process without another word; Ray and the kernel tidy up after it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + number)


def bound(settings: ServerSettings) -> socket.socket:
    """The socket that the server will listen on.

    Raises:
        UsageError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        listening.close()
        raise _cannot_listen(settings, error) from None
    return listening


def url_of(settings: ServerSettings, listening: socket.socket) -> str:
    """`http://HOST:PORT` with the port that is really listened on."""
    scheme = "https" if settings.ssl_certfile else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{scheme}://{host}:{listening.getsockname()[1]}"


def check_certificate(settings: ServerSettings) -> None:
    """Raises UsageError when certificate and key cannot be used together."""
    if not settings.ssl_certfile:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_password() -> str:
        raise UsageError(
            f"--ssl_keyfile: {settings.ssl_keyfile} is encrypted; give a key without a password "
            "that only this user can read"
        )

    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, no_password)
    except ssl.SSLError as error:
        raise UsageError(_certificate_trouble(settings, error)) from None
    except OSError as error:
        raise UsageError(
            f"--ssl_certfile, --ssl_keyfile: cannot be read: {error.strerror}"
        ) from None


def _certificate_trouble(settings: ServerSettings, error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"--ssl_keyfile: {settings.ssl_keyfile} is not the key of the certificate "
            f"{settings.ssl_certfile}"
        )
    return (
        f"--ssl_certfile {settings.ssl_certfile}, --ssl_keyfile {settings.ssl_keyfile}: not a "
        "certificate (with its chain) and its key, both in PEM"
    )


def _cannot_listen(settings: ServerSettings, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or "this is no host name"
    return UsageError(
        f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another --host or "
        "--port"
    )


def _allow_many_connections() -> None:
    """Each connection is an open file, and the usual limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
