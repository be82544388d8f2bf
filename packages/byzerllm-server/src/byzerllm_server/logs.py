"""The server's own log, for people: on standard error, with times.

A thread of its own writes it, so that no request waits for whoever reads it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from typing import Any

MOST_WAITING = 10_000
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def log_on_stderr(*, verbose: bool) -> Iterator[None]:
    """While it lasts the log of this process goes to standard error.

    Args:
        verbose: all that libraries tell, too; else their warnings and errors.
    """
    root, own = logging.getLogger(), logging.getLogger("byzerllm.server")
    before = root.handlers[:], root.level, own.level
    written = logging.StreamHandler()
    written.setFormatter(logging.Formatter(_FORMAT))
    waiting: queue.Queue[Any] = queue.Queue(MOST_WAITING)
    listener = QueueListener(waiting, written)
    root.handlers[:] = [_Handler(waiting)]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    own.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.handlers[:], root.level, own.level = before
        listener.stop()


class _Handler(QueueHandler):
    """Drops what nobody reads instead of waiting for it."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)
