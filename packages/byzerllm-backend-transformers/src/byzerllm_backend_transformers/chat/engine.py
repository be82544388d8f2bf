"""The decode loop: prompts are read one by one, and all answers grow together, a token a step."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from byzerllm.decoding.answer import Answer
from byzerllm.decoding.loop import DecodeLoop
from byzerllm.errors import BackendError, ByzerLLMError
from byzerllm.requests import FinishReason
from byzerllm_backend_transformers.chat.cache import CacheLostError
from byzerllm_backend_transformers.chat.rows import Rows
from byzerllm_backend_transformers.chat.sampling import Sampler, token_logprob
from byzerllm_backend_transformers.chat.text import TokenText
from byzerllm_backend_transformers.tasks import is_out_of_memory, out_of_memory_text

# How long reading prompts may keep growing answers waiting in one step.
_STALL_SECONDS = 0.3
_FIRST_PART = 128
_SMALLEST_PART = 16
_LARGEST_PART = 2048


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has done and does.

    Attributes:
        running, waiting: answers that grow, and requests that wait for a place.
        steps: forward passes in which answers grew.
        prompt_tokens, generated_tokens: tokens that were read, and drawn.
    """

    running: int
    waiting: int
    steps: int
    prompt_tokens: int
    generated_tokens: int


@dataclass(eq=False, kw_only=True)
class Sequence(Answer):
    """One answer in the engine.

    Attributes:
        row: its place among the rows; -1 while its prompt is read.
        prompt: what its prompt is read into.
        fed: tokens of the prompt that were read.
    """

    sampler: Sampler
    token_text: TokenText
    row: int = -1
    prompt: Any = None
    fed: int = 0


class Engine(DecodeLoop[Sequence]):
    """Runs answers on one model.

    Args:
        rows: the model with the answers' past.
        places: most answers that grow at once.
        text_of: the text of one token id, for log-probabilities.
        threads: CPU threads.
    """

    def __init__(
        self, rows: Rows, *, places: int, text_of: Callable[[int], str], threads: int
    ) -> None:
        super().__init__("transformers")
        self._rows: Rows | None = rows
        self._places = places
        self._text_of = text_of
        self._threads = threads
        self._seconds_per_token = 0.0
        self._counts = collections.Counter[str]()
        self.start()

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            waiting=self.waiting,
            **{name: self._counts[name] for name in ("steps", "prompt_tokens", "generated_tokens")},
        )

    def _run(self) -> None:
        # Both belong to a thread.
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            super()._run()

    def _step(self) -> None:
        self._drop_cancelled()
        growing = [one for one in self._running if one.row >= 0]
        self._read_prompts(until=time.monotonic() + _STALL_SECONDS)
        self._deliver()
        if growing:
            self._grow()
            self._deliver()

    # Prompts.

    def _read_prompts(self, until: float) -> None:
        """Read waiting prompts in their order, a part at a time, while the time lasts."""
        while not self._closing:
            sequence = next((one for one in self._running if one.row < 0), None)
            if sequence is None:
                if not self._waiting or len(self._running) >= self._places:
                    return
                sequence = self._waiting.popleft()
                self._running.append(sequence)
            if sequence.cancelled:
                self._end(sequence)
                continue
            self._read_part(sequence)
            if time.monotonic() > until:
                return

    def _read_part(self, sequence: Sequence) -> None:
        rows = self._all_rows
        if sequence.prompt is None:
            sequence.prompt = rows.begin()
        size = sequence.prompt_length if rows.whole_prompts else self._part
        part = sequence.tokens[sequence.fed : sequence.fed + size]
        begin = time.monotonic()
        try:
            logits = rows.read(sequence.prompt, part)
            sequence.fed += len(part)
            if sequence.fed == sequence.prompt_length:
                rows.join(sequence.prompt)
        except Exception as error:
            self._give_way(sequence, error)
            return
        self._measure(len(part), time.monotonic() - begin)
        self._counts["prompt_tokens"] += len(part)
        if sequence.fed == sequence.prompt_length:
            sequence.prompt = None
            sequence.row = sum(one.row >= 0 for one in self._running)
            self._draw(sequence, logits[0])

    @property
    def _part(self) -> int:
        """Prompt tokens that may be read at once, by how long they took so far."""
        if not self._seconds_per_token:
            return _FIRST_PART
        size = int(_STALL_SECONDS / self._seconds_per_token)
        return min(max(_SMALLEST_PART, size), _LARGEST_PART)

    def _measure(self, tokens: int, seconds: float) -> None:
        if tokens < _SMALLEST_PART:
            return
        seen, known = seconds / tokens, self._seconds_per_token
        # Upwards slowly: another process's load is no trait of the model.
        self._seconds_per_token = min((known + seen) / 2, known * 1.25) if known else seen

    # Answers.

    def _grow(self) -> None:
        """A token more for every answer that has a row."""
        growing = sorted((one for one in self._running if one.row >= 0), key=lambda one: one.row)
        if not growing:
            return
        try:
            logits = self._all_rows.step([one.tokens[-1] for one in growing])
        except Exception as error:
            self._give_way(growing[-1], error)
            return
        self._counts["steps"] += 1
        best = logits.argmax(-1).tolist() if len(growing) > 1 else [None]
        for sequence, row, choice in zip(growing, logits, best, strict=True):
            self._draw(sequence, row, choice)

    def _give_way(self, sequence: Sequence, error: Exception) -> None:
        """For lack of memory one answer ends, or all where their past is lost; what else went
        wrong ends the engine."""
        refusal = BackendError(out_of_memory_text(error))
        if isinstance(error, CacheLostError):
            for one in [one for one in self._running if one.row >= 0]:
                one.row = -1
                self._refuse(one, refusal)
        elif not is_out_of_memory(error):
            raise error
        if sequence in self._running:
            self._refuse(sequence, refusal)

    def _draw(self, sequence: Sequence, logits: torch.Tensor, best: int | None = None) -> None:
        """Add the next token to an answer and hand over what can leave."""
        try:
            if sequence.sampler.takes_the_best:
                token = int(logits.argmax()) if best is None else best
            else:
                token = sequence.sampler.draw(logits, sequence.tokens)
        except ByzerLLMError as error:
            self._refuse(sequence, error)
            return
        self._counts["generated_tokens"] += 1
        self._hand_out(sequence, self._accept(sequence, token, logits))

    def _accept(self, sequence: Sequence, token: int, logits: torch.Tensor) -> FinishReason | None:
        if token in sequence.stop_ids:
            return "stop"
        logprob = None
        if sequence.logprobs is not None:
            logprob = token_logprob(logits, token, sequence.logprobs, self._text_of)
        piece = sequence.token_text.add(token)
        return sequence.accept(token, piece, logprob, complete=sequence.sampler.complete)

    def _leave(self, sequence: Sequence) -> None:
        sequence.prompt = None
        if sequence.row < 0:
            return
        last = max(one.row for one in (*self._running, sequence))
        self._all_rows.leave(sequence.row)
        for other in self._running:
            if other.row == last:
                other.row = sequence.row
        sequence.row = -1

    @property
    def _all_rows(self) -> Rows:
        assert self._rows is not None
        return self._rows

    def _free(self) -> None:
        self._rows = None
