"""Downloads of large files that go on where an earlier one stopped, in this process or another.

Source of the protocol: range requests, RFC 9110 section 14.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BEGUN = ".begun"
SILENCE = 30.0
"""Seconds without a byte after which a connection counts as broken."""
_CHUNK = 2**20
_FAILURES = 7
_LONGEST_PAUSE = 30.0
_LOCK_TIMEOUT = 24 * 3600.0


def fetch(
    attempt: Callable[[Mapping[str, str]], Any],
    target: Path,
    size: int,
    *,
    lock: Path,
    transient: Callable[[Exception], bool],
    arrived: Callable[[int], None],
) -> None:
    """Download `target`, whose bytes so far stand beside it under the suffix `BEGUN`.

    One process at a time downloads; the others wait, up to a day, and find the file. A connection
    that breaks is opened anew after growing pauses, until seven in a row have brought nothing.

    Args:
        attempt: opens a streamed response (httpx's) for these request headers; raises for a status
            that is no success.
        size: bytes of the whole file.
        lock: the lock file.
        transient: whether an error may pass by itself.
        arrived: told of each number of new bytes, those of an earlier download first.
    """
    from filelock import FileLock

    for folder in (target.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock, timeout=_LOCK_TIMEOUT):
        if target.exists():
            arrived(size)
            return
        begun = target.with_name(target.name + BEGUN)
        begun.touch()
        if begun.stat().st_size > size:
            begun.unlink()
            begun.touch()
        arrived(begun.stat().st_size)
        _complete(attempt, begun, size, transient, arrived)
        os.replace(begun, target)


def _complete(
    attempt: Callable[[Mapping[str, str]], Any],
    begun: Path,
    size: int,
    transient: Callable[[Exception], bool],
    arrived: Callable[[int], None],
) -> None:
    failures = 0
    while (have := begun.stat().st_size) < size:
        error: Exception = ConnectionError(f"the connection ended at byte {have} of {size}")
        try:
            _append(attempt, begun, have, arrived)
        except Exception as raised:
            if not transient(raised):
                raise
            error = raised
        gained = begun.stat().st_size > have
        failures = 0 if gained else failures + 1
        if failures == _FAILURES:
            raise error
        if begun.stat().st_size < size:
            time.sleep(min(_LONGEST_PAUSE, 0.25 * 2**failures))
    if begun.stat().st_size > size:
        begun.unlink()
        raise ConnectionError(f"more than the {size} bytes of the file arrived; nothing is kept")


def _append(
    attempt: Callable[[Mapping[str, str]], Any],
    begun: Path,
    have: int,
    arrived: Callable[[int], None],
) -> None:
    # Ranges count bytes of the file: a compressed answer would have others.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with attempt(headers) as response, begun.open("r+b") as file:
        if response.status_code == 206:
            file.seek(have)
        else:
            # The server knows no ranges: all of it comes again.
            file.truncate(0)
            arrived(-have)
        for chunk in response.iter_bytes(_CHUNK):
            file.write(chunk)
            arrived(len(chunk))
