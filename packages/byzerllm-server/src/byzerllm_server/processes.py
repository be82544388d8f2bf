"""Several processes that share one listening socket.

Each is a whole server. What they are told crosses by a pipe, so that a key is in no process's
arguments or environment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Any

from byzerllm.errors import BackendError, ByzerLLMError
from byzerllm_server.app import Progress
from byzerllm_server.logs import log_on_stderr
from byzerllm_server.serving import (
    STOP_SIGNALS,
    TIDY_SECONDS,
    end_at_once,
    logger,
    run_here,
    url_of,
)
from byzerllm_server.settings import ServerSettings

LOOK_SECONDS = 0.2
PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a process that died is replaced: the more, the more often it died of late."""
LASTING_SECONDS = 60.0
"""A process that served for so long has nothing against it."""
_spawning = multiprocessing.get_context("spawn")


class Processes:
    """Starts the processes, replaces those that die, and stops them all.

    Args:
        announce: called with the address once all take requests.
        progress: picklable; shows how the models of the first process load.
    """

    def __init__(
        self,
        settings: ServerSettings,
        listening: socket.socket,
        *,
        announce: Callable[[str], None],
        progress: Progress | None,
    ) -> None:
        self._settings = settings
        self._listening = listening
        self._announce = announce
        self._progress = progress
        self._stopped_by: signal.Signals | None = None
        self._members: list[_Member] = []

    def run(self) -> None:
        """Until a signal. Raises ByzerLLMError when a process cannot start the first time."""
        with contextlib.ExitStack() as ending:
            ending.enter_context(self._signals())
            ending.enter_context(log_on_stderr(verbose=self._settings.verbose))
            folder = tempfile.TemporaryDirectory(prefix="byzerllm-metrics-")
            metrics_folder = ending.enter_context(folder)
            self._settings = replace(self._settings, metrics_folder=metrics_folder)
            try:
                for number in range(self._settings.processes):
                    # They all load the same.
                    self._members.append(self._start(None if number else self._progress))
                self._wait_until_ready()
                while self._stopped_by is None:
                    self._look_after()
            finally:
                self._stop()

    def _start(self, progress: Progress | None = None) -> _Member:
        return _Member(self._settings, self._listening, progress)

    def _wait_until_ready(self) -> None:
        waiting = list(self._members)
        while waiting and self._stopped_by is None:
            wait([member.pipe for member in waiting], LOOK_SECONDS)
            for member in waiting:
                member.read()
            waiting = [member for member in waiting if not member.ready]
        if self._stopped_by is not None:
            raise SystemExit(128 + self._stopped_by)
        self._announce(url_of(self._settings, self._listening))

    def _look_after(self) -> None:
        living = [member.process.sentinel for member in self._members if not member.replace_at]
        if not wait(living, LOOK_SECONDS) and not living:
            time.sleep(LOOK_SECONDS)
        for index, member in enumerate(self._members):
            if member.process.is_alive():
                with contextlib.suppress(ByzerLLMError):
                    member.read()
                continue
            if not member.replace_at:
                lasted = time.monotonic() - member.started > LASTING_SECONDS
                member.deaths = 1 if lasted else member.deaths + 1
                pause = PAUSES[min(member.deaths, len(PAUSES)) - 1]
                member.replace_at = time.monotonic() + pause
                logger.warning(
                    "process %s of the server ended with code %s; another one starts in %g s",
                    member.process.pid,
                    member.process.exitcode,
                    pause,
                )
            if time.monotonic() > member.replace_at:
                member.close()
                self._members[index] = self._start()
                self._members[index].deaths = member.deaths

    def _stop(self) -> None:
        self._listening.close()
        for member in self._members:
            member.ask_to_stop()
        end = time.monotonic() + self._settings.stop_timeout + 4 * TIDY_SECONDS
        for member in self._members:
            while member.process.is_alive() and time.monotonic() < end:
                member.process.join(LOOK_SECONDS)
            member.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self._on_signal)
            for number in STOP_SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopped_by is not None:
            for member in self._members:
                member.process.kill()
            end_at_once(number)
        self._stopped_by = signal.Signals(number)


class _Member:
    """One process, as the one that started it sees it."""

    def __init__(
        self, settings: ServerSettings, listening: socket.socket, progress: Progress | None
    ) -> None:
        self.pipe, theirs = _spawning.Pipe()
        self.process: SpawnProcess = _spawning.Process(
            target=_serve, args=(settings, listening, theirs, progress), name="byzerllm-server"
        )
        self.process.start()
        theirs.close()
        self.started = time.monotonic()
        self.ready = False
        self.deaths = 0
        self.replace_at = 0.0

    def read(self) -> None:
        """Take what the process said. Raises the error that it could not start for."""
        while not self.pipe.closed and self.pipe.poll():
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join(TIDY_SECONDS)
                if not self.ready:
                    raise BackendError(
                        f"a process of the server ended with code {self.process.exitcode} before "
                        "it could serve"
                    ) from None
                return
            if isinstance(said, ByzerLLMError):
                raise said
            self.ready = True

    def ask_to_stop(self) -> None:
        if self.process.is_alive():
            self.process.terminate()

    def close(self) -> None:
        """Kill it where it still lives."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join(TIDY_SECONDS)
        self.pipe.close()


def _serve(
    settings: ServerSettings, listening: socket.socket, pipe: Connection, progress: Progress | None
) -> None:
    # A terminal sends Ctrl-C to all of them; the first process passes it on in its own way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()

    def ready() -> None:
        _say(pipe, True)

    try:
        run_here(settings, listening, ready=ready, progress=progress, signals=(signal.SIGTERM,))
    except ByzerLLMError as error:
        _say(pipe, error if _crosses(error) else BackendError(error.message))
        raise SystemExit(1) from None


def _end_with_parent(pipe: Connection) -> None:
    """The other end of the pipe closes when the process that started this one is gone."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _say(pipe: Connection, what: Any) -> None:
    # Who started it may be gone.
    with contextlib.suppress(OSError):
        pipe.send(what)


def _crosses(error: ByzerLLMError) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), ByzerLLMError)
    except Exception:
        return False
