"""Traces, as a receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

CHAT = "/v1/chat/completions"
WAIT_SECONDS = 20
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Spans wait for others to be sent with them.
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
SECRET = "the secret of the question"


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SECRET}], **more}


class Receiver:
    """Takes what is sent to `/v1/traces`."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        sent = ExportTraceServiceRequest()
        sent.ParseFromString(body)
        for resource in sent.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)

    def of(self, id: str) -> tuple[Span, Span | None]:
        """The span of a request and that of its model, once they have come."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            for span in list(self.spans):
                if attributes(span).get("byzerllm.request.id") == id:
                    inner = [s for s in list(self.spans) if s.parent_span_id == span.span_id]
                    return span, inner[0] if inner else None
            time.sleep(0.02)
        raise AssertionError(f"no span of {id}")

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {row.key: getattr(row.value, row.value.WhichOneof("value")) for row in span.attributes}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def client(serving: Callable[..., Any], receiver: Receiver) -> Iterator[httpx.Client]:
    served = serving("--otel_endpoint", receiver.url, **QUICK)
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def test_a_chat(client: httpx.Client, receiver: Receiver) -> None:
    before = time.time_ns()
    id = client.post(CHAT, json=ask("echo")).headers["x-request-id"]
    after = time.time_ns()
    span, model = receiver.of(id)
    assert model is not None
    assert span.name == f"POST {CHAT}"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.parent_span_id == b""
    assert before - 10**7 <= span.start_time_unix_nano < model.start_time_unix_nano
    assert model.start_time_unix_nano < model.end_time_unix_nano < span.end_time_unix_nano
    assert span.end_time_unix_nano <= after + 10**7
    said = attributes(span)
    assert said["http.request.method"] == "POST"
    assert said["http.route"] == said["url.path"] == CHAT
    assert said["http.response.status_code"] == 200
    assert said["client.address"] == "127.0.0.1"
    assert (model.name, model.kind) == ("chat echo", Span.SPAN_KIND_CLIENT)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "byzerllm",
        "gen_ai.request.model": "echo",
        "gen_ai.response.model": "echo",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
    }
    assert attributes(model) == expected
    assert expected.items() <= said.items()
    assert receiver.resources[0]["service.name"] == "byzerllm-server"


def test_a_stream_has_its_first_token(client: httpx.Client, receiver: Receiver) -> None:
    id = client.post(CHAT, json=ask("echo", stream=True)).headers["x-request-id"]
    span, model = receiver.of(id)
    assert model is not None
    (first,) = model.events
    assert first.name == "gen_ai.first_token"
    assert model.start_time_unix_nano < first.time_unix_nano <= model.end_time_unix_nano
    assert 0 < attributes(span)["byzerllm.time_to_first_token"] < 5


def test_the_callers_trace_goes_on(client: httpx.Client, receiver: Receiver) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=x"}
    id = client.post(CHAT, json=ask("echo"), headers=headers).headers["x-request-id"]
    span, model = receiver.of(id)
    assert model is not None
    assert span.trace_id.hex() == model.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert span.trace_state == "vendor=x"
    # The caller's own decision not to record holds.
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    unseen = client.post(CHAT, json=ask("echo"), headers=headers).headers["x-request-id"]
    broken = {"traceparent": "nonsense"}
    last = client.post(CHAT, json=ask("echo"), headers=broken).headers["x-request-id"]
    span, _ = receiver.of(last)
    assert span.parent_span_id == b""
    assert unseen not in {attributes(span).get("byzerllm.request.id") for span in receiver.spans}


@pytest.mark.parametrize(
    ("body", "error", "failed"),
    [
        (ask("broken", stream=True), "BackendError", True),
        (ask("broken"), "BackendError", True),
        (ask("nobody"), "ModelNotFoundError", False),
    ],
)
def test_errors(
    client: httpx.Client, receiver: Receiver, body: dict[str, Any], error: str, failed: bool
) -> None:
    id = client.post(CHAT, json=body).headers["x-request-id"]
    span, _ = receiver.of(id)
    assert attributes(span)["error.type"] == error
    assert (span.status.code == Status.STATUS_CODE_ERROR) is failed


def test_a_caller_that_leaves(client: httpx.Client, receiver: Receiver) -> None:
    with client.stream("POST", CHAT, json=ask("slow", stream=True)) as response:
        next(response.iter_text())
    span, model = receiver.of(response.headers["x-request-id"])
    assert model is not None
    assert attributes(span)["http.response.status_code"] == 499
    assert attributes(model)["error.type"] == "ClientDisconnect"


def test_nothing_of_the_content_is_sent(client: httpx.Client, receiver: Receiver) -> None:
    headers = {"authorization": "Bearer key-of-the-house-4711"}
    path = f"{CHAT}?api_key=key-of-the-house-4711"
    receiver.of(client.post(path, json=ask("echo"), headers=headers).headers["x-request-id"])
    whole = b"".join(receiver.bodies)
    assert b"echo" in whole
    assert SECRET.encode() not in whole
    assert b"key-of-the-house-4711" not in whole


def test_looking_after_the_server_makes_no_spans(client: httpx.Client, receiver: Receiver) -> None:
    for path in ("/health", "/metrics", "/version", "/openapi.json"):
        assert client.get(path).status_code == 200
    receiver.of(client.post(CHAT, json=ask("echo")).headers["x-request-id"])
    names = {span.name for span in receiver.spans}
    assert not any("health" in name or "metrics" in name for name in names)


def test_the_standard_variables(serving: Callable[..., Any]) -> None:
    with Receiver() as receiver:
        served = serving(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SERVICE_NAME="gateway-1")
        httpx.post(f"{served.url}{CHAT}", json=ask("echo"))
        # Stopping sends what waits.
        assert served.stop() == 0
        assert sorted(span.name for span in receiver.spans) == [f"POST {CHAT}", "chat echo"]
        assert receiver.resources[0]["service.name"] == "gateway-1"
        off = serving(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_SDK_DISABLED="true")
        httpx.post(f"{off.url}{CHAT}", json=ask("echo"))
        assert off.stop() == 0
        assert len(receiver.spans) == 2


def test_a_receiver_that_is_away_holds_up_nobody(serving: Callable[..., Any]) -> None:
    served = serving("--otel_endpoint", "http://127.0.0.1:1", **QUICK)
    with httpx.Client(base_url=served.url) as client:
        for _ in range(20):
            response = client.post(CHAT, json=ask("echo"))
            assert response.status_code == 200
            assert response.elapsed.total_seconds() < 2
    assert served.stop() == 0


def refused(folder: Path, *options: str, before: str = "", **environ: str) -> str:
    """What `byzerllm serve` says when it does not start."""
    (folder / "byzerllm.yaml").write_text("version: 1\nmodels: {echo: {infer_backend: echo}}\n")
    program = f"{before}\nfrom byzerllm.cli import main\nmain()"
    command = [sys.executable, "-c", program, "serve", "--port", "0", "--runtime", "local"]
    command += ["--config", str(folder / "byzerllm.yaml"), *options]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environ},
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return " ".join(ended.stderr.split())


def test_the_extra_is_named(tmp_path: Path) -> None:
    missing = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    without = f"import sys; sys.modules[{missing!r}] = None"
    said = refused(tmp_path, "--otel_endpoint", "http://127.0.0.1:4318", before=without)
    assert "pip install 'byzerllm-server[otel]'" in said


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4317",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
    )
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc" in said
    assert "http/protobuf" in said


def test_without_traces_opentelemetry_is_not_even_loaded() -> None:
    program = (
        "import sys, byzerllm_server.app\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
