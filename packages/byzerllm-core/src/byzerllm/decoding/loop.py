"""The thread in which the answers of one model grow together, step by step."""

from __future__ import annotations

import abc
import asyncio
import atexit
import collections
import contextlib
import queue
import threading
import traceback
from typing import Generic, TypeVar

from byzerllm.decoding.answer import Answer, Inbox
from byzerllm.errors import BackendError, ByzerLLMError, RequestCancelledError
from byzerllm.requests import FinishReason, GenerateChunk

_JOIN_SECONDS = 60.0

A = TypeVar("A", bound=Answer)
Delivery = tuple[Inbox, GenerateChunk | ByzerLLMError]


class DecodeLoop(abc.ABC, Generic[A]):
    """Runs answers until `close`; new ones join between steps. A subclass says what a step is.

    `submit`, `check` and `close` may be called from any thread; the rest is the loop's own.

    Args:
        name: the engine's, for its thread and its errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: collections.deque[A] = collections.deque()
        self._running: list[A] = []
        self._arrivals: queue.SimpleQueue[A | None] = queue.SimpleQueue()
        self._deliveries: list[Delivery] = []
        self._lock = threading.Lock()
        self._closing = False
        self._failure: BackendError | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name} engine", daemon=True)

    def start(self) -> None:
        """Begin; once, at the end of the subclass's construction."""
        self._thread.start()
        # A daemon thread inside an engine while the process tears it down would crash.
        atexit.register(self.close)

    def submit(self, answer: A) -> None:
        """Let an answer grow; its chunks arrive in its inbox.

        Raises:
            BackendError: the engine has failed.
            RequestCancelledError: the engine is closed.
        """
        with self._lock:
            self.check()
            self._arrivals.put(answer)

    def check(self) -> None:
        """Raise when answers cannot grow any more; see `submit`."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise RequestCancelledError("the model is being closed")
        if not self._thread.is_alive():
            raise BackendError("the engine's thread is gone")

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting) + self._arrivals.qsize()

    def close(self) -> None:
        """End all answers, stop the thread and free what the engine holds. Blocking; repeatable."""
        with self._lock:
            self._closing = True
        self._arrivals.put(None)
        self._thread.join(_JOIN_SECONDS)
        atexit.unregister(self.close)
        if not self._thread.is_alive():
            self._free()

    # What a subclass says.

    @abc.abstractmethod
    def _step(self) -> None:
        """Let every running answer grow by a token, and begin waiting ones; deliver chunks."""

    @abc.abstractmethod
    def _leave(self, answer: A) -> None:
        """Give back what a running answer held; it has been taken off `_running`."""

    def _dismiss(self, answer: A) -> None:
        """Give back what any answer holds, also one that never ran."""

    def _free(self) -> None:
        """Free the engine's own memory; repeatable."""

    # What a step is made of.

    def _drop_cancelled(self) -> None:
        for answer in [one for one in self._running if one.cancelled]:
            self._end(answer)
        for answer in [one for one in self._waiting if one.cancelled]:
            self._waiting.remove(answer)
            self._dismiss(answer)

    def _hand_out(self, answer: A, finish: FinishReason | None) -> None:
        """Hand over what can leave of an answer, and end it where it is complete."""
        chunk = answer.chunk(finish)
        if chunk is not None:
            self._deliveries.append((answer.inbox, chunk))
        if finish is not None:
            self._end(answer)

    def _refuse(self, answer: A, error: ByzerLLMError) -> None:
        """End a running answer with an error of its own; the others go on."""
        self._end(answer)
        self._deliveries.append((answer.inbox, error))

    def _end(self, answer: A) -> None:
        self._running.remove(answer)
        self._dismiss(answer)
        self._leave(answer)

    def _deliver(self) -> None:
        """Hand the step's chunks to their event loops, one wake-up per loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for delivery in self._deliveries:
            by_loop.setdefault(delivery[0].loop, []).append(delivery)
        self._deliveries.clear()
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_over, deliveries)
            except RuntimeError:  # the loop is closed, its callers are gone
                for answer in (*self._running, *self._waiting):
                    answer.cancelled |= answer.inbox.loop is loop

    # The thread.

    def _run(self) -> None:
        error: ByzerLLMError = RequestCancelledError("the model was closed while it answered")
        try:
            while not self._closing:
                self._receive()
                if not self._closing:
                    self._step()
        except BaseException as cause:
            error = self._failure = BackendError(
                f"the {self._name} engine failed: {cause}", remote_traceback=traceback.format_exc()
            )
        with self._lock:
            self._closing = True
            self._fail_all(error)

    def _receive(self) -> None:
        """Take new requests; sleep while there is nothing to do."""
        idle = not self._running and not self._waiting
        try:
            while True:
                arrival = self._arrivals.get(block=idle)
                if arrival is None:
                    return
                self._waiting.append(arrival)
                idle = False
        except queue.Empty:
            return

    def _fail_all(self, error: ByzerLLMError) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                arrival = self._arrivals.get_nowait()
                if arrival is not None:
                    self._waiting.append(arrival)
        for answer in (*self._running, *self._waiting):
            self._dismiss(answer)
            self._deliveries.append((answer.inbox, error))
        self._running.clear()
        self._waiting.clear()
        self._deliver()


def _hand_over(deliveries: list[Delivery]) -> None:
    for inbox, item in deliveries:
        inbox.put(item)
