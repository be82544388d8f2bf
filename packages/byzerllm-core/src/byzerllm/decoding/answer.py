"""One answer: what grows in an engine's thread, and what its caller's event loop awaits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from byzerllm.decoding.text import AnswerText
from byzerllm.errors import ByzerLLMError
from byzerllm.requests import FinishReason, GenerateChunk, TokenLogprob, Usage

_CHECK_SECONDS = 30.0


class Inbox:
    """Where the chunks of one answer arrive on the caller's event loop.

    Args:
        check: raises when the engine is gone; asked when nothing came for a while.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._check = check
        self._arrived = asyncio.Event()
        self._chunks: list[GenerateChunk] = []
        self._error: ByzerLLMError | None = None

    def put(self, item: GenerateChunk | ByzerLLMError) -> None:
        """Take a chunk or the error that ends the answer. On the loop's thread."""
        if isinstance(item, ByzerLLMError):
            self._error = item
        else:
            self._chunks.append(item)
        self._arrived.set()

    async def chunks(self) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks until the one with a finish reason; those that piled up come as one."""
        while True:
            await self._wait()
            chunks, self._chunks = self._chunks, []
            if chunks:
                chunk = _merged(chunks)
                yield chunk
                if chunk.finish_reason is not None:
                    return
            if self._error is not None:
                raise self._error

    async def _wait(self) -> None:
        while not self._arrived.is_set():
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                self._check()
        self._arrived.clear()


@dataclass(eq=False, kw_only=True)
class Answer:
    """One answer while it grows. The engine's thread alone changes it, but for `cancelled`.

    Attributes:
        tokens: prompt and answer so far.
        prompt_length: how many of them are the prompt.
        limit: most new tokens.
        stop_ids: tokens that end the answer and are no part of it.
        logprobs: alternatives per token; None for no log-probabilities.
        stream: the caller reads chunks; else it gets the first text and then all the rest.
        cancelled: the caller is gone; set from any thread.
    """

    tokens: list[int]
    prompt_length: int
    limit: int
    text: AnswerText
    inbox: Inbox
    stop_ids: frozenset[int]
    logprobs: int | None = None
    stream: bool = True
    cancelled: bool = False
    _ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _ends: list[tuple[int, int]] = field(default_factory=list)
    _ready: str = ""
    _begun: bool = False

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def accept(
        self, token: int, piece: str, logprob: TokenLogprob | None, *, complete: bool = False
    ) -> FinishReason | None:
        """Add a drawn token and the whole characters that it brings.

        Args:
            complete: nothing may follow this token.

        Returns:
            the reason when the answer is complete.
        """
        if token in self.stop_ids:
            return "stop"
        begin = self.text.seen
        self._ready += self.text.push(piece)
        self.tokens.append(token)
        self._ids.append(token)
        self._ends.append((begin, self.text.seen))
        if logprob is not None:
            self._logprobs.append(logprob)
        if self.text.stopped or complete:
            return "stop"
        return "length" if self.generated >= self.limit else None

    def chunk(self, finish: FinishReason | None) -> GenerateChunk | None:
        """What can leave now; None for nothing."""
        if finish is not None:
            self._ready += self.text.flush()
        elif not self._ready or (self._begun and not self.stream):
            return None
        count = self._released_tokens(final=finish is not None)
        chunk = GenerateChunk(
            text=self._ready, token_ids=self._ids[:count], logprobs=self._logprobs[:count]
        )
        del self._ids[:count], self._logprobs[:count], self._ends[:count]
        self._ready, self._begun = "", True
        if finish is not None:
            chunk.finish_reason = finish
            chunk.stop_text = self.text.stop
            chunk.usage = Usage(prompt_tokens=self.prompt_length, completion_tokens=self.generated)
        return chunk

    def _released_tokens(self, *, final: bool) -> int:
        """How many of the pending tokens belong to the text that has been released.

        A token waits until all of its text may leave. At the end those that lie wholly inside the
        stop string are left out.
        """
        released = self.text.released
        if not final:
            return sum(end <= released for _, end in self._ends)
        if not self.text.stopped:
            return len(self._ends)
        return sum(begin < released for begin, _ in self._ends)


def _merged(chunks: list[GenerateChunk]) -> GenerateChunk:
    if len(chunks) == 1:
        return chunks[0]
    last = chunks[-1]
    return GenerateChunk(
        text="".join(chunk.text for chunk in chunks),
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
        finish_reason=last.finish_reason,
        stop_text=last.stop_text,
        usage=last.usage,
    )
