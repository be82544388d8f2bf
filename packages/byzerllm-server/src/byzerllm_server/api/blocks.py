"""An answer as blocks that follow each other: thoughts, text, calls. Anthropic's messages and
OpenAI's responses are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from byzerllm.errors import InvalidAnswerError
from byzerllm.requests import GenerateChunk, GenerateResult, TokenLogprob, ToolCallDelta
from byzerllm_server.api.question import as_chunk
from byzerllm_server.calls import new_id

Kind = Literal["thinking", "text", "tool"]


@dataclass(slots=True)
class Block:
    """One block, as far as it has come.

    Attributes:
        index: its place in the answer, 0 first.
        pieces: its text, or the JSON of a call's arguments.
        id: of a block, as the API that is spoken makes it; of a call, the model's own.
        name: the function that is called.
    """

    index: int
    kind: Kind
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a call.

        Raises:
            InvalidAnswerError: they are no JSON object.
        """
        try:
            found = msgspec.json.decode(self.text or "{}")
        except msgspec.DecodeError:
            found = None
        if not isinstance(found, dict):
            raise InvalidAnswerError(
                f"the model called {self.name!r} with arguments that are no JSON object"
            )
        return found


@dataclass(slots=True)
class Began:
    block: Block


@dataclass(slots=True)
class Grew:
    """`text` came to the block."""

    block: Block
    text: str
    logprobs: list[TokenLogprob]


@dataclass(slots=True)
class Ended:
    """`last`: the answer ended with it; else another block follows, and it is whole."""

    block: Block
    last: bool


Step = Began | Grew | Ended


class Blocks:
    """Cuts the chunks of one answer to blocks."""

    def __init__(self) -> None:
        self.found: list[Block] = []
        self._open: Block | None = None
        self._call = -1

    def read(self, chunk: GenerateChunk) -> Iterator[Step]:
        """What a chunk brings; the last one, with its `finish_reason`, ends what is open."""
        if chunk.reasoning:
            yield from self._switch("thinking")
            yield self._grow(chunk.reasoning)
        if chunk.text or chunk.logprobs:
            yield from self._switch("text")
            yield self._grow(chunk.text, chunk.logprobs)
        for piece in chunk.tool_calls:
            yield from self._called(piece)
        if chunk.finish_reason is not None:
            if not self.found:
                # Callers read the first block of any answer.
                yield from self._switch("text")
            yield from self._end(last=True)

    def _called(self, piece: ToolCallDelta) -> Iterator[Step]:
        if piece.index > self._call:
            self._call = piece.index
            yield from self._end()
            id_ = piece.id or new_id("call_")
            yield self._begin(Block(len(self.found), "tool", id_, piece.name))
        elif not piece.arguments:
            return
        elif self._open is None or self._open.kind != "tool" or piece.index < self._call:
            raise InvalidAnswerError("the model went on with a call after it had begun another")
        if piece.arguments:
            yield self._grow(piece.arguments)

    def _switch(self, kind: Kind) -> Iterator[Step]:
        if self._open is None or self._open.kind != kind:
            yield from self._end()
            yield self._begin(Block(len(self.found), kind))

    def _begin(self, block: Block) -> Began:
        self._open = block
        self.found.append(block)
        return Began(block)

    def _grow(self, text: str, logprobs: list[TokenLogprob] | None = None) -> Grew:
        assert self._open is not None
        self._open.pieces.append(text)
        if logprobs:
            self._open.logprobs.extend(logprobs)
        return Grew(self._open, text, logprobs or [])

    def _end(self, last: bool = False) -> Iterator[Ended]:
        if self._open is not None:
            ended, self._open = self._open, None
            yield Ended(ended, last)


def blocks_of(result: GenerateResult) -> list[Block]:
    """The blocks of a whole answer."""
    blocks = Blocks()
    for _ in blocks.read(as_chunk(result)):
        pass
    return blocks.found
