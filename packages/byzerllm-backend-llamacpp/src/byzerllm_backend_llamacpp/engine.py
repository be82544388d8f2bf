"""The decode loop: one thread in which the answers of all requests grow together.

Each step decodes one batch: the last token of every growing answer, and as much of the waiting
prompts as a step may take without making those answers stall. New requests join between steps.
"""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass
from typing import Any

from byzerllm.decoding.loop import DecodeLoop
from byzerllm.errors import ByzerLLMError
from byzerllm.requests import TokenLogprob
from byzerllm_backend_llamacpp.answer import Sequence
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


class Engine(DecodeLoop[Sequence]):
    """Runs answers on one context.

    Args:
        model: the model of the context.
        context: llama.cpp's handle; the engine owns it.
        cache: slots and room of the context.
        batch_size: most tokens of one step.
    """

    def __init__(self, model: Model, context: Any, cache: Cache, batch_size: int) -> None:
        super().__init__("llama.cpp")
        self._model = model
        self._context = context
        self._cache = cache
        self._batch = Batch(batch_size)
        self._step_seconds = 0.0
        self._seconds_per_token = 0.0
        self._counts = collections.Counter[str]()
        self.start()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=self.waiting,
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
            self._refuse(sequence, error)
            return
        self._counts["generated_tokens"] += 1
        piece = sequence.decoder.decode(self._model.piece(token))
        complete = sequence.sampler.complete
        self._hand_out(sequence, sequence.accept(token, piece, logprob, complete=complete))

    def _logprob(self, sequence: Sequence, index: int, token: int) -> TokenLogprob | None:
        if sequence.logprobs is None:
            return None
        row = logits(self._context, index, self._model.vocab_size)
        return token_logprob(self._model, row, token, sequence.logprobs)

    def _leave(self, sequence: Sequence) -> None:
        """The answer's tokens stay in the cache for reuse."""
        assert sequence.slot is not None
        self._cache.release(sequence.slot, sequence.in_cache)
        sequence.slot = None

    def _dismiss(self, sequence: Sequence) -> None:
        sequence.sampler.close()

    def _free(self) -> None:
        if self._context is not None:
            llama_cpp.llama_free(self._context)
            self._context = None


def _blend(known: float, seen: float) -> float:
    """Follow a measured time, upwards slowly: another process's load is no trait of the model."""
    return min((known + seen) / 2, known * 1.25) if known else seen
