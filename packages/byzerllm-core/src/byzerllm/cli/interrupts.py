"""Ctrl-C: the first one stops what runs and lets it tidy up, the second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

EXIT_CODE = 130
"""128 + SIGINT, what a shell reports for a program that Ctrl-C ended."""

_seen = 0


def install() -> None:
    """Take over SIGINT, unless whoever started this process had it ignored (`nohup`)."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _on_interrupt)


def forget() -> None:
    """The interrupt was dealt with; the next one is a first one again."""
    global _seen
    _seen = 0


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _seen
    _seen += 1
    if _seen == 1:
        raise KeyboardInterrupt
    # A progress display may have hidden the cursor, and nothing else runs after this line.
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
    os._exit(EXIT_CODE)
