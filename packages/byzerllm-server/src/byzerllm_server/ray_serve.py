"""The same application as an ingress of Ray Serve: a proxy on each node, replicas where there is
room.

A proxy speaks HTTP with its own settings: the limits of `byzerllm_server.protocol` are not its.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from byzerllm.errors import ClusterError, NotInstalledError
from byzerllm.runtime.cluster import connect_cluster
from byzerllm_server.app import Application
from byzerllm_server.serving import STOP_SIGNALS, end_at_once
from byzerllm_server.settings import ServerSettings

NAME = "byzerllm"
"""The application's name in Ray Serve."""
_LOOK_SECONDS = 0.5


def serve_on_ray(
    settings: ServerSettings, *, num_replicas: int, announce: Callable[[str], None]
) -> None:
    """Serve from the nodes of the cluster until SIGINT or SIGTERM, then take the application off
    again; a second signal leaves it there.

    Args:
        num_replicas: processes that answer.
        announce: called with the address, which is the same port on every node.

    Raises:
        NotInstalledError: Ray Serve is not there.
        ClusterError: the replicas do not start.
    """
    serve = _ray_serve()
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.alarm(0)
        if stopped.is_set():
            end_at_once(number)
        stopped.set()

    connect_cluster(settings.ray_address, log_to_driver=False, logging_level=logging.ERROR)
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        _start(serve, settings, num_replicas)
        if not stopped.is_set():
            scheme = "https" if settings.ssl_certfile else "http"
            announce(f"{scheme}://{settings.host}:{settings.port}")
        while not stopped.wait(_LOOK_SECONDS):
            pass
    finally:
        _stop(serve)
        for number, handler in before.items():
            signal.signal(number, handler)


def application(settings: ServerSettings, *, num_replicas: int = 1) -> Any:
    """What `ray.serve.run` takes. The settings, with the key, are kept in the cluster."""
    serve = _ray_serve()
    name = f"byzerllm-metrics-{uuid.uuid4().hex}"

    def build() -> Application:
        # Of a node's replicas any may be asked for the metrics of all.
        folder = Path(tempfile.gettempdir(), name)
        folder.mkdir(mode=0o700, exist_ok=True)
        return Application(replace(settings, metrics_folder=str(folder)), connected=True)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        num_replicas=num_replicas,
        max_ongoing_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.stop_timeout,
    )
    return deployment.bind()


def _start(serve: Any, settings: ServerSettings, num_replicas: int) -> None:
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "ssl_certfile": settings.ssl_certfile or None,
        "ssl_keyfile": settings.ssl_keyfile or None,
    }
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        serve.start(proxy_location="EveryNode", http_options=options, logging_config=quiet)
        serve.run(
            application(settings, num_replicas=num_replicas),
            name=NAME,
            route_prefix="/",
            logging_config=quiet,
        )
    except (RuntimeError, TimeoutError, ValueError) as error:
        raise ClusterError(f"Ray Serve does not start the server: {error}") from None


def _stop(serve: Any) -> None:
    """Take our application off, and Ray Serve itself where nothing else runs on it."""
    import ray

    with contextlib.suppress(Exception):
        serve.delete(NAME)
        if not serve.status().applications:
            serve.shutdown()
    ray.shutdown()


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise NotInstalledError(
            "Ray Serve is not installed; run: pip install 'byzerllm-server[ray-serve]'"
        ) from None
    return serve
