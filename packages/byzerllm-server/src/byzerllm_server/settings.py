"""What a server was told: plain data that crosses to its worker processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MEBI = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server. Times in seconds.

    Attributes:
        runtime: `ray` serves the models of a cluster, `local` those of `config` in this process.
        ray_address: as `connect_cluster` takes it; only with `ray`.
        config: the file of `byzerllm up`; its models are deployed in this process with `local`.
        host, port: where it listens.
        api_key: the one key that callers present; empty with `keys_url`, or for an open server.
        keys_url: the database of keys, as SQLAlchemy writes it; empty without one.
        served_names: names that callers use, and the models that they mean. Where it is not
            empty, only these are served.
        cors_origins: origins of pages that may call from a browser; `*` for all.
        max_body_bytes: longest request body.
        body_timeout: a request's head and body must have come by then, and a caller that reads
            nothing of its answer for so long has left.
        request_timeout: a request must be answered by then.
        ping_seconds: a stream that is silent for so long gets a comment, which keeps proxies from
            closing it.
        stop_timeout: streams that run may go on for so long when the server is told to stop.
        max_requests: requests at once, over all callers; more are refused with 503.
        access_log: the file that gets a line of JSON for each request; `-` is standard output,
            `off` is none.
        page: serve the page at `/`.
        open_metrics: `/metrics` needs no key.
        metrics_folder: where several processes add up their metrics, made by their parent; empty
            where there is one.
        otel_endpoint: where traces are sent by OTLP over HTTP; empty leaves it to OpenTelemetry's
            own variables.
        verbose: the server's log has what libraries tell, too.
        processes: how many processes share the port. With `local` each has models of its own,
            and its part of their vendors' limits.
        ssl_certfile, ssl_keyfile: certificate and key in PEM, for HTTPS; empty for HTTP.
    """

    runtime: Literal["ray", "local"] = "ray"
    ray_address: str = "auto"
    config: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = field(default="", repr=False)
    keys_url: str = field(default="", repr=False)
    served_names: dict[str, str] = field(default_factory=dict)
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 32 * MEBI
    body_timeout: float = 60.0
    request_timeout: float = 600.0
    ping_seconds: float = 15.0
    stop_timeout: float = 60.0
    max_requests: int = 2000
    access_log: str = "off"
    page: bool = True
    open_metrics: bool = False
    metrics_folder: str = ""
    otel_endpoint: str = ""
    verbose: bool = False
    processes: int = 1
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
