"""The decode loop: one thread in which the answers of all requests grow together.

Each step decodes one batch: the last token of every growing answer, and as much of the waiting
prompts as a step may take without making those answers stall. New requests join between steps.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import queue
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

from byzerllm.errors import BackendError, ByzerLLMError, RequestCancelledError
from byzerllm.requests import GenerateChunk, TokenLogprob
from byzerllm_backend_llamacpp.answer import Inbox, Sequence
from byzerllm_backend_llamacpp.batch import Batch
from byzerllm_backend_llamacpp.cache import Cache
from byzerllm_backend_llamacpp.model import Model
from byzerllm_backend_llamacpp.native import llama_cpp
from byzerllm_backend_llamacpp.sampling import logits, token_logprob

# How long a step with prompts may take: while other answers wait for their next token, and when
# none does, so that a cancelled prompt ends soon.
_STALL_SECONDS = 0.3
_ALONE_SECONDS = 1.0
_FIRST_PROMPT_STEP = 128
_SMALLEST_PROMPT_STEP = 16
_JOIN_SECONDS = 60.0

Delivery = tuple[Inbox, GenerateChunk | ByzerLLMError]


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has done and does.

    Attributes:
        running, waiting: answers that grow, and requests that wait for a slot or for room.
        steps: batches decoded.
        prompt_tokens, generated_tokens: decoded prompt tokens, and drawn tokens.
        reused_tokens: prompt tokens that were found in the cache.
        kept_tokens: tokens of ended answers that the cache holds.
        preemptions: answers that were sent back because a shared cache was full.
    """

    running: int
    waiting: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    reused_tokens: int
    kept_tokens: int
    preemptions: int


class Engine:
    """Runs answers on one context until `close`. All methods may be called from any thread.

    Args:
        model: the model of the context.
        context: llama.cpp's handle; the engine owns it.
        cache: slots and room of the context.
        batch_size: most tokens of one step.
    """

    def __init__(self, model: Model, context: Any, cache: Cache, batch_size: int) -> None:
        self._model = model
        self._context = context
        self._cache = cache
        self._batch = Batch(batch_size)
        self._arrivals: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        self._waiting: collections.deque[Sequence] = collections.deque()
        self._running: list[Sequence] = []
        self._deliveries: list[Delivery] = []
        self._step_seconds = 0.0
        self._seconds_per_token = 0.0
        self._counts = collections.Counter[str]()
        self._lock = threading.Lock()
        self._closing = False
        self._failure: BackendError | None = None
        self._thread = threading.Thread(target=self._run, name="llama.cpp engine", daemon=True)
        self._thread.start()
        # A daemon thread inside llama.cpp while the process tears it down would crash.
        atexit.register(self.close)

    def submit(self, sequence: Sequence) -> None:
        """Let an answer grow; its chunks arrive in its inbox.

        Raises:
            BackendError: the engine has failed.
            RequestCancelledError: the engine is closed.
        """
        with self._lock:
            self.check()
            self._arrivals.put(sequence)

    def check(self) -> None:
        """Raise when answers cannot grow any more; see `submit`."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise RequestCancelledError("the model is being closed")
        if not self._thread.is_alive():
            raise BackendError("the engine's thread is gone")

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting) + self._arrivals.qsize(),
            kept_tokens=self._cache.kept,
            **{
                name: self._counts[name]
                for name in (
                    "steps",
                    "prompt_tokens",
                    "generated_tokens",
                    "reused_tokens",
                    "preemptions",
                )
            },
        )

    def close(self) -> None:
        """End all answers, stop the thread and free the context. Blocking; repeatable."""
        with self._lock:
            self._closing = True
        self._arrivals.put(None)
        self._thread.join(_JOIN_SECONDS)
        atexit.unregister(self.close)
        if not self._thread.is_alive() and self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None

    def _run(self) -> None:
        error: ByzerLLMError = RequestCancelledError("the model was closed while it answered")
        try:
            while not self._closing:
                self._receive()
                if not self._closing:
                    self._step()
        except BaseException as cause:
            error = self._failure = BackendError(
                f"the llama.cpp engine failed: {cause}", remote_traceback=traceback.format_exc()
            )
        with self._lock:
            self._closing = True
            self._fail_all(error)

    def _fail_all(self, error: ByzerLLMError) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                arrival = self._arrivals.get_nowait()
                if arrival is not None:
                    self._waiting.append(arrival)
        for sequence in (*self._running, *self._waiting):
            sequence.sampler.close()
            self._deliveries.append((sequence.inbox, error))
        self._running.clear()
        self._waiting.clear()
        self._deliver()

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

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._make_room()
        self._cache.close_gaps()
        self._compose()
        if self._batch.parts:
            self._decode()
            for sequence, _, output in self._batch.parts:
                if output is not None:
                    self._draw(sequence, output)
        self._deliver()

    def _drop_cancelled(self) -> None:
        for sequence in [one for one in self._running if one.cancelled]:
            self._end(sequence)
        for sequence in [one for one in self._waiting if one.cancelled]:
            self._waiting.remove(sequence)
            sequence.sampler.close()

    def _admit(self) -> None:
        """Give slots to waiting requests in their order."""
        while self._waiting:
            sequence = self._waiting[0]
            granted = self._cache.acquire(
                sequence.tokens,
                sequence.limit - sequence.generated,
                (len(one.tokens) for one in self._running),
                reuse=sequence.reuse,
            )
            if granted is None:
                return
            self._waiting.popleft()
            sequence.slot, sequence.fed = granted
            self._counts["reused_tokens"] += sequence.fed
            self._running.append(sequence)

    def _make_room(self) -> None:
        """Send the youngest answers back to wait while the shared cache is too small for all."""
        while not self._cache.make_room(len(one.tokens) for one in self._running):
            youngest = self._running.pop()
            assert youngest.slot is not None
            self._cache.drop(youngest.slot)
            youngest.slot, youngest.fed = None, 0
            self._waiting.appendleft(youngest)
            self._counts["preemptions"] += 1

    def _compose(self) -> None:
        """Fill the next batch: a token of every growing answer, then prompts in their order."""
        growing = [one for one in self._running if one.waiting_tokens == 1]
        parts = [(one, 1) for one in growing]
        room = min(self._prompt_share(alone=not growing), self._batch.capacity - len(growing))
        for sequence in self._running:
            count = min(room, sequence.waiting_tokens)
            if sequence.waiting_tokens > 1 and count > 0:
                parts.append((sequence, count))
                room -= count
        self._batch.fill(parts)

    def _prompt_share(self, *, alone: bool) -> int:
        """Prompt tokens that one step may take, by how long they took so far."""
        if not self._seconds_per_token:
            return _FIRST_PROMPT_STEP
        seconds = _ALONE_SECONDS if alone else _STALL_SECONDS
        return max(_SMALLEST_PROMPT_STEP, int(seconds / self._seconds_per_token))

    def _decode(self) -> None:
        begin = time.perf_counter()
        self._batch.decode(self._context)
        seconds = time.perf_counter() - begin
        prompt = sum(part.length for part in self._batch.parts if part.length > 1)
        if not prompt:
            self._step_seconds = _blend(self._step_seconds, seconds)
        elif prompt >= _SMALLEST_PROMPT_STEP:
            # What a step costs anyway is no fault of the prompt in it.
            own = max(seconds - self._step_seconds, seconds / 4)
            self._seconds_per_token = _blend(self._seconds_per_token, own / prompt)
        self._counts["steps"] += 1
        self._counts["prompt_tokens"] += prompt

    def _draw(self, sequence: Sequence, index: int) -> None:
        """Add the next token to an answer and hand over what can leave."""
        try:
            token = sequence.sampler.sample(self._context, index)
            logprob = self._logprob(sequence, index, token)
        except ByzerLLMError as error:
            self._end(sequence)
            self._deliveries.append((sequence.inbox, error))
            return
        self._counts["generated_tokens"] += 1
        finish = sequence.accept(token, self._model.piece(token), logprob)
        chunk = sequence.chunk(finish)
        if chunk is not None:
            self._deliveries.append((sequence.inbox, chunk))
        if finish is not None:
            self._end(sequence)

    def _logprob(self, sequence: Sequence, index: int, token: int) -> TokenLogprob | None:
        if sequence.logprobs is None:
            return None
        row = logits(self._context, index, self._model.vocab_size)
        return token_logprob(self._model, row, token, sequence.logprobs)

    def _end(self, sequence: Sequence) -> None:
        """Take an answer out of the loop; its tokens stay in the cache for reuse."""
        self._running.remove(sequence)
        sequence.sampler.close()
        assert sequence.slot is not None
        self._cache.release(sequence.slot, sequence.in_cache)
        sequence.slot = None

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
                for sequence in (*self._running, *self._waiting):
                    sequence.cancelled |= sequence.inbox.loop is loop


def _hand_over(deliveries: list[Delivery]) -> None:
    for inbox, item in deliveries:
        inbox.put(item)


def _blend(known: float, seen: float) -> float:
    """Follow a measured time, upwards slowly: another process's load is no trait of the model."""
    return min((known + seen) / 2, known * 1.25) if known else seen
