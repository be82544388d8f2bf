"""The access log: one line of JSON for each request, without what was asked or answered.

Lines are written by a thread of its own, many at once, so that no request waits for a disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from datetime import UTC, datetime

import msgspec
from starlette.types import Scope

from byzerllm.errors import UsageError
from byzerllm_server.calls import Call

NAME = "byzerllm.access"
OFF = "off"
STDOUT = "-"
GATHER_SECONDS = 0.1
"""Lines wait so long for others to be written with them."""
MOST_LINES = 100_000
"""That wait; more are lost."""
LOST_EVERY_SECONDS = 60.0
"""The server's own log tells this often at most of lines that were lost."""
CLOSE_SECONDS = 5.0
SHORTEST_KEY = 4
"""Shorter ones are part of any text."""
_LONGEST = 300
_STAND_IN = "\N{REPLACEMENT CHARACTER}"
_KEY_HEADERS = (b"authorization", b"x-api-key")

server_logger = logging.getLogger("byzerllm.server")


class Line(msgspec.Struct, kw_only=True):
    """What the log says of one request. See docs/monitoring.md."""

    time: str
    id: str
    operation: str
    method: str
    path: str
    status: int
    asked: str
    model: str
    key: str
    client: str
    seconds: float
    ttft: float | None
    gateway_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    stream: bool
    retries: int
    fallbacks: int
    error: str
    agent: str


class AccessLog:
    """Writes to the logger `byzerllm.access`.

    An `Observer`.

    Args:
        target: a file, or `-` for standard output.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(self, target: str) -> None:
        self._logger = logging.getLogger(NAME)
        self._writer = LineWriter(target)
        self._logger.addHandler(self._writer)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False

    def began(self, call: Call) -> None:
        """There is nothing to say yet."""

    def ended(self, call: Call, scope: Scope, status: int, seconds: float) -> None:
        agent, keys = "", []
        for name, value in scope["headers"]:
            if name == b"user-agent":
                agent = value.decode("latin-1")
            elif name in _KEY_HEADERS:
                keys.append(value.decode("latin-1").rpartition(" ")[2])
        client = scope.get("client")
        usage, first = call.usage, call.first_seconds()
        line = Line(
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            id=_clean(call.id, keys),
            operation=call.operation,
            method=_clean(scope["method"], keys),
            path=_clean(scope["path"], keys),
            status=status,
            asked=_clean(call.asked, keys),
            model=_clean(call.model, keys),
            key=_clean(call.principal.name, keys),
            client=client[0] if client else "",
            seconds=round(seconds, 6),
            ttft=None if first is None else round(first, 6),
            gateway_ms=round(1000 * call.own_seconds(seconds), 3) if call.model_seconds else None,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            stream=call.stream,
            retries=call.retries,
            fallbacks=call.fallbacks,
            error=call.error,
            agent=_clean(agent, keys),
        )
        text = msgspec.json.encode(line).decode()
        # As `info` does, less the search for who called it, which takes as long as all the rest.
        self._logger.handle(logging.LogRecord(NAME, logging.INFO, __file__, 0, text, (), None))

    def close(self) -> None:
        """Write what waits. Blocks."""
        self._logger.removeHandler(self._writer)
        self._writer.close()


class LineWriter(logging.Handler):
    """Appends the messages of records to a file, from a thread of its own.

    The file is opened anew each time, so that it may be moved away.

    Raises:
        UsageError: the file cannot be written.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._lines: deque[str] = deque()
        self._lost = 0
        self._reason = ""
        self._told = -LOST_EVERY_SECONDS
        self._wanted = threading.Event()
        self._closing = threading.Event()
        try:
            self._append(b"")
        except OSError as error:
            raise UsageError(
                f"--access_log: {target} cannot be written: {error.strerror}"
            ) from None
        super().__init__()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) >= MOST_LINES:
            self._lost += 1
            self._reason = "they came faster than they could be written"
            return
        self._lines.append(record.getMessage())
        if not self._wanted.is_set():
            self._wanted.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait()
            self._closing.wait(GATHER_SECONDS)
            self._wanted.clear()
            self._write()
        self._told = -LOST_EVERY_SECONDS
        self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        try:
            if lines:
                self._append("\n".join([*lines, ""]).encode())
        except OSError as error:
            self._lost += len(lines)
            self._reason = f"{self._target} cannot be written: {error.strerror}"
        now = time.monotonic()
        if self._lost and now - self._told > LOST_EVERY_SECONDS:
            self._told = now
            lost, self._lost = self._lost, 0
            server_logger.error("%d lines of the access log are lost: %s", lost, self._reason)

    def _append(self, data: bytes) -> None:
        if self._target == STDOUT:
            _write_all(1, data)
            return
        file = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            _write_all(file, data)
        finally:
            os.close(file)

    def close(self) -> None:
        self._closing.set()
        self._wanted.set()
        self._thread.join(CLOSE_SECONDS)
        with contextlib.suppress(ValueError):
            super().close()


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _clean(text: str, keys: list[str]) -> str:
    """One short line of what can be printed: no text of a caller steers a terminal, and a key that
    a caller put where it does not belong is none of the log's business."""
    for key in keys:
        if len(key) >= SHORTEST_KEY and key in text:
            text = text.replace(key, "***")
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _STAND_IN for letter in text)
