"""Traces by OpenTelemetry: a span for each request, and one in it for the model's part.

Attributes are those of the semantic conventions for HTTP and for generative AI; neither questions
nor answers are among them. Spans are made when a request has ended, with the times that were noted
meanwhile, and are sent by a thread of OpenTelemetry's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

import byzerllm_server
from byzerllm.errors import NotInstalledError, UsageError
from byzerllm_server.calls import Call
from byzerllm_server.operations import Operation

if TYPE_CHECKING:
    from opentelemetry.context import Context

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CLOSE_SECONDS = 5.0
_INSTALL = "pip install 'byzerllm-server[otel]'"
_GEN_AI = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_CARRIED = (b"traceparent", b"tracestate")
_NANO = 1_000_000_000


def wanted(endpoint: str) -> bool:
    """Whether traces are asked for: by the option, or by OpenTelemetry's own variables."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if endpoint:
        return True
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    return exporter == "otlp" and any(os.environ.get(name) for name in ENDPOINTS)


class Tracing:
    """Makes the spans.

    An `Observer`.

    Args:
        endpoint: where an OTLP/HTTP receiver listens, as `http://127.0.0.1:4318`; empty takes it
            out of OpenTelemetry's own variables.
        operations: the routes.

    Raises:
        NotInstalledError: OpenTelemetry's packages are missing.
        UsageError: its variables ask for another protocol.
    """

    def __init__(self, endpoint: str, operations: Sequence[Operation]) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise NotInstalledError(
                f"traces need OpenTelemetry ({error.name} is missing); run: {_INSTALL}"
            ) from None
        _check_protocol()
        name = os.environ.get("OTEL_SERVICE_NAME", "byzerllm-server")
        resource = {"service.name": name, "service.version": byzerllm_server.__version__}
        target = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(target)))
        self._tracer = self._provider.get_tracer("byzerllm_server", byzerllm_server.__version__)
        self._trace = trace
        self._extract = TraceContextTextMapPropagator().extract
        # Those that look after the server are no news.
        self._routes = {row.name: row.path for row in operations if row.tag != "Service"}

    def began(self, call: Call) -> None:
        """Spans are made at the end."""

    def ended(self, call: Call, scope: Scope, status: int, seconds: float) -> None:
        route = self._routes.get(call.operation)
        if route is None:
            return
        trace = self._trace
        # The clock of `perf_counter` against the wall's.
        shift = time.time() - time.perf_counter()
        ended = call.started + seconds
        span = self._tracer.start_span(
            f"{scope['method']} {route}",
            self._parent(scope),
            trace.SpanKind.SERVER,
            _http(call, scope, route, status) | _gen_ai(call),
            start_time=int((call.started + shift) * _NANO),
        )
        if call.sent:
            model = self._tracer.start_span(
                f"{_GEN_AI.get(call.operation, call.operation)} {call.model}",
                trace.set_span_in_context(span),
                trace.SpanKind.CLIENT,
                _gen_ai(call),
                start_time=int((call.sent + shift) * _NANO),
            )
            if call.first:
                model.add_event("gen_ai.first_token", None, int((call.first + shift) * _NANO))
            self._close(model, call, status)
            model.end(int(((call.answered or ended) + shift) * _NANO))
        self._close(span, call, status)
        span.end(int((ended + shift) * _NANO))

    def _parent(self, scope: Scope) -> Context:
        carried = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in _CARRIED
        }
        return self._extract(carried)

    def _close(self, span: Any, call: Call, status: int) -> None:
        if not call.error:
            return
        span.set_attribute("error.type", call.error)
        # A caller's mistake is no failure of the server.
        if status >= 500 or status == 200:
            span.set_status(self._trace.StatusCode.ERROR)

    async def close(self) -> None:
        """Send what waits, and stop."""
        await asyncio.wait(
            {asyncio.create_task(asyncio.to_thread(self._provider.shutdown))},
            timeout=CLOSE_SECONDS,
        )


def _check_protocol() -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name, "http/protobuf").strip()
        if protocol != "http/protobuf":
            raise UsageError(
                f"{name}={protocol}: traces are sent by http/protobuf only; set it to that, and "
                "the endpoint to the receiver's HTTP port, usually 4318"
            )


def _http(call: Call, scope: Scope, route: str, status: int) -> dict[str, Any]:
    client, server = scope.get("client"), scope.get("server")
    return {
        "http.request.method": scope["method"],
        "http.response.status_code": status,
        "http.route": route,
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        **({"client.address": client[0]} if client else {}),
        **({"server.address": server[0], "server.port": server[1]} if server else {}),
        "byzerllm.request.id": call.id,
        "byzerllm.key": call.principal.name,
    }


def _gen_ai(call: Call) -> dict[str, Any]:
    if not call.asked:
        return {}
    found: dict[str, Any] = {
        "gen_ai.operation.name": _GEN_AI.get(call.operation, call.operation),
        "gen_ai.provider.name": "byzerllm",
        "gen_ai.request.model": call.asked,
    }
    if call.model and call.sent:
        found["gen_ai.response.model"] = call.model
    if call.usage is not None:
        found["gen_ai.usage.input_tokens"] = call.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = call.usage.completion_tokens
    first = call.first_seconds()
    if first is not None:
        found["byzerllm.time_to_first_token"] = first
    if call.retries:
        found["byzerllm.retries"] = call.retries
    if call.fallbacks:
        found["byzerllm.fallbacks"] = call.fallbacks
    return found
