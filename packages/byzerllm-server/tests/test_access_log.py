"""The access log and the server's own log."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from byzerllm.errors import UsageError
from byzerllm_server import access_log
from byzerllm_server.access_log import AccessLog, Line, LineWriter
from byzerllm_server.calls import Call, Principal
from byzerllm_server.logs import log_on_stderr

CHAT = "/v1/chat/completions"
KEY = "key-of-the-house-4711"
SECRET = "the secret of the question"
WAIT_SECONDS = 10


def ask(model: str, text: str = SECRET, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


class Log:
    """A server with a log in a file, and a caller with a key."""

    def __init__(self, served: Any, path: Path) -> None:
        self.served = served
        self.path = path
        self.client = httpx.Client(
            base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=30
        )

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def line(self, id: str) -> dict[str, Any]:
        """The line of a request, once it is written."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            found = [line for line in self.lines() if line["id"] == id]
            if found:
                assert len(found) == 1
                return found[0]
            assert time.monotonic() < end, self.path.read_text()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def log(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    path = tmp_path_factory.mktemp("log") / "access.log"
    served = serving("--api_key", KEY, "--access_log", str(path))
    found = Log(served, path)
    with found.client:
        yield found


def test_a_request_is_one_line(log: Log) -> None:
    headers = {"x-request-id": "one-line", "user-agent": "Tester/1.0"}
    response = log.client.post(f"{CHAT}?query=value", json=ask("echo"), headers=headers)
    line = log.line("one-line")
    assert response.json()["usage"]["total_tokens"] == 10
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert 0 < line.pop("gateway_ms") < 1000 * line["seconds"] + 0.01
    assert 0 < line.pop("seconds") < 5
    assert line == {
        "id": "one-line",
        "operation": "chat",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "asked": "echo",
        "model": "echo",
        "key": "api_key",
        "client": "127.0.0.1",
        "ttft": None,
        "prompt_tokens": 5,
        "completion_tokens": 5,
        "stream": False,
        "retries": 0,
        "fallbacks": 0,
        "error": "",
        "agent": "Tester/1.0",
    }
    assert set(Line.__struct_fields__) == {*line, "time", "seconds", "gateway_ms"}


def test_a_stream(log: Log) -> None:
    headers = {"x-request-id": "a-stream"}
    log.client.post(CHAT, json=ask("echo", stream=True), headers=headers)
    line = log.line("a-stream")
    assert line["stream"] is True
    assert 0 < line["ttft"] < line["seconds"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 5)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (ask("nobody"), 404, "ModelNotFoundError"),
        (ask("broken", stream=True), 200, "BackendError"),
        (ask("broken"), 500, "BackendError"),
        (ask("echo", temperature="hot"), 400, "invalid_value"),
    ],
)
def test_failures(log: Log, body: dict[str, Any], status: int, error: str) -> None:
    response = log.client.post(CHAT, json=body)
    line = log.line(response.headers["x-request-id"])
    assert (line["status"], line["error"]) == (status, error)


def test_a_caller_without_a_key(log: Log) -> None:
    headers = {"authorization": "Bearer key-of-nobody-0815"}
    response = httpx.post(f"{log.served.url}{CHAT}", json=ask("echo"), headers=headers)
    line = log.line(response.headers["x-request-id"])
    assert (line["status"], line["error"], line["key"]) == (401, "invalid_api_key", "")


def test_a_caller_that_leaves(log: Log) -> None:
    headers = {"x-request-id": "leaver"}
    with log.client.stream(
        "POST", CHAT, json=ask("slow", stream=True), headers=headers
    ) as response:
        next(response.iter_text())
    line = log.line("leaver")
    assert (line["status"], line["error"]) == (499, "ClientDisconnect")
    assert line["ttft"] > 0


def test_control_characters_do_not_break_a_line(log: Log) -> None:
    before = len(log.lines())
    raw = "POST /%0a%7b%22status%22:200%7d%1b%5b31m%e2%80%a8?x=1 HTTP/1.1\r\nhost: x\r\n"
    raw += "x-request-id: tricky\r\nuser-agent: evil\tagent\x7f\r\ncontent-length: 0\r\n\r\n"
    host, port = log.served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(raw.encode("latin-1"))
        assert connection.recv(100).startswith(b"HTTP/1.1 4")
    name = "echo\n{}\u2028\x9b31m" + "x" * 5000
    response = log.client.post(CHAT, json=ask(name))
    line = log.line(response.headers["x-request-id"])
    assert len(log.lines()) >= before + 1
    assert len(line["asked"]) < 400
    whole = log.path.read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", whole)
    assert all(json.loads(text) for text in whole.split("\n")[:-1])


def test_neither_keys_nor_content_are_written(log: Log) -> None:
    misplaced = {"user-agent": f"client {KEY}", "x-request-id": KEY}
    log.client.post(CHAT, json=ask("echo", "first"), headers=misplaced)
    log.client.get(f"/v1/models/{KEY}", params={"api_key": KEY})
    log.client.post(CHAT, json=ask(f"model-{KEY}"))
    wrong = {"x-api-key": "key-of-nobody-0815", "authorization": ""}
    log.client.post(CHAT, json=ask("key-of-nobody-0815"), headers=wrong)
    last = log.client.post(CHAT, json=ask("echo"))
    log.line(last.headers["x-request-id"])
    whole = log.path.read_text()
    assert "***" in whole
    for text in (KEY, "key-of-nobody-0815", SECRET, "query=value"):
        assert text not in whole
        assert text not in log.served.output


def test_a_log_that_is_moved_away_begins_anew(log: Log) -> None:
    log.line(log.client.get("/version").headers["x-request-id"])
    moved = log.path.with_suffix(".1")
    log.path.rename(moved)
    response = log.client.get("/version")
    end = time.monotonic() + WAIT_SECONDS
    while not log.path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert [line["id"] for line in log.lines()] == [response.headers["x-request-id"]]


def test_standard_output_and_off(serving: Callable[..., Any]) -> None:
    for option, expected in (("-", True), ("off", False)):
        served = serving("--access_log", option)
        id = httpx.get(f"{served.url}/version").headers["x-request-id"]
        assert served.stop() == 0
        # Stopping writes what waits.
        assert (f'"id":"{id}"' in served.output) is expected


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "byzerllm.yaml").write_text("version: 1\nmodels: {echo: {infer_backend: echo}}\n")
    command = [str(Path(sys.executable).with_name("byzerllm")), "serve", "--port", "0"]
    command += ["--runtime", "local", "--config", str(tmp_path / "byzerllm.yaml")]
    command += ["--access_log", str(tmp_path / "missing" / "access.log")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "--access_log" in ended.stderr
    assert "No such file" in ended.stderr
    assert "Traceback" not in ended.stderr


def ended(log: AccessLog, **fields: Any) -> None:
    call = Call(id="req_1", principal=Principal(name="team"), **fields)
    scope = {"headers": [], "method": "POST", "path": CHAT, "client": None}
    log.ended(call, scope, 200, 0.1)


def test_a_slow_disk_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(access_log, "MOST_LINES", 3000)
    log = AccessLog(str(fifo))
    told: list[str] = []

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler = Told()
    access_log.server_logger.addHandler(handler)
    try:
        # A pipe that nobody reads takes 64 KiB; the writer's thread is stuck then.
        start = time.monotonic()
        for _ in range(10_000):
            ended(log)
        assert time.monotonic() - start < 5
        os.set_blocking(reader, True)
        lines = 0
        closed = threading.Event()

        def drain() -> None:
            nonlocal lines
            data = b""
            while data or not closed.is_set():
                # Empty between two batches of the writer.
                data = os.read(reader, 1 << 16)
                lines += data.count(b"\n")
                time.sleep(0 if data else 0.01)

        draining = threading.Thread(target=drain)
        draining.start()
        end = time.monotonic() + WAIT_SECONDS
        while lines < 3000 and time.monotonic() < end:
            time.sleep(0.05)
        ended(log)
        log.close()
        closed.set()
        draining.join(WAIT_SECONDS)
        lines += os.read(reader, 1 << 16).count(b"\n")
    finally:
        access_log.server_logger.removeHandler(handler)
        os.close(reader)
    assert 3000 <= lines < 10_000
    lost = [re.search(r"(\d+) lines of the access log are lost", message) for message in told]
    assert lost
    assert all(lost)
    assert sum(int(found[1]) for found in lost if found) + lines == 10_001


def test_a_full_disk_is_told_seldom_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.log"
    writer = LineWriter(str(path))
    path.unlink()
    path.mkdir()
    for _ in range(3):
        writer.emit(logging.makeLogRecord({"msg": "line"}))
        time.sleep(2 * access_log.GATHER_SECONDS)
    path.rmdir()
    writer.emit(logging.makeLogRecord({"msg": "last"}))
    writer.close()
    assert path.read_text() == "last\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"{count} lines of the access log are lost: {path} cannot be written: Is a directory"
        for count in (1, 2)
    ]


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        AccessLog(str(tmp_path))


def test_the_log_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    with log_on_stderr(verbose=False):
        logging.getLogger("byzerllm.server").info("told")
        logging.getLogger("uvicorn.error").warning("told, too")
        logging.getLogger("uvicorn.error").info("not told")
        try:
            raise ValueError("its cause")
        except ValueError:
            logging.getLogger("byzerllm.server").exception("request %s failed", "req_1")
    with log_on_stderr(verbose=True):
        logging.getLogger("uvicorn.error").info("told at length")
    assert (root.handlers, root.level) == before
    written = capfd.readouterr().err
    head = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    assert re.search(head + r"INFO byzerllm.server: told$", written, re.MULTILINE)
    assert re.search(head + r"WARNING uvicorn.error: told, too$", written, re.MULTILINE)
    assert re.search(head + r"ERROR byzerllm.server: request req_1 failed$", written, re.MULTILINE)
    assert "ValueError: its cause" in written
    assert "told at length" in written
    assert "not told" not in written


def test_fields_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
    table = page.partition("## Access log")[2].partition("## Traces")[0]
    first = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    documented = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert documented == set(Line.__struct_fields__)
    shown = re.search(r"```json\n(.*?)```", table, re.DOTALL)
    assert shown
    assert set(json.loads(shown[1])) == documented
