"""Who holds which part of llama.cpp's key-value cache.

Each running answer has a slot: one of the context's sequence ids. With a split cache every slot
has room for a whole context; with a shared one all slots take from one pool of cells. What an
ended answer leaves in its slot is kept, and reused by a prompt that begins alike.

llama.cpp computes a batch over a split cache in one go only where the sequence ids in it follow one
another without a gap, so gaps between running answers are closed by moving one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from byzerllm_backend_llamacpp.native import llama_cpp

Tokens = npt.NDArray[np.int32]
_NONE = np.empty(0, np.int32)

# Cells of ended answers slow down the attention of running ones in a shared cache, although they
# are masked; a quarter of it is what they may take.
_SHARED_KEEP = 0.25
# Tokens that a new answer must find room for, beyond its prompt, so that it is not sent back at
# once.
_HEADROOM = 64


@dataclass(eq=False)
class Slot:
    """One sequence id of the context.

    Attributes:
        kept: tokens that an ended answer left in the cache.
        last_use: grows with time; which kept tokens go first.
    """

    id: int
    kept: Tokens
    busy: bool = False
    last_use: int = 0


class Cache:
    """Slots and room of one context.

    Args:
        memory: llama.cpp's memory handle of the context.
        slots: sequences that may run at once.
        n_ctx: tokens of one answer; of all answers together when `shared`.
        keep: leave the tokens of ended answers in the cache for reuse.
    """

    def __init__(self, memory: Any, *, slots: int, n_ctx: int, shared: bool, keep: bool) -> None:
        self._memory = memory
        self._slots = [Slot(number, _NONE) for number in range(slots)]
        self._n_ctx = n_ctx
        self._shared = shared
        self._keep = keep
        self._clock = 0

    @property
    def kept(self) -> int:
        """Tokens kept of ended answers."""
        return sum(len(slot.kept) for slot in self._slots)

    def acquire(
        self, tokens: list[int], remaining: int, running: Iterable[int], *, reuse: bool
    ) -> tuple[Slot, int] | None:
        """A slot for `tokens`, and how many of them lie in its cache already.

        Args:
            tokens: what the cache must hold before the next token can be drawn.
            remaining: new tokens that may follow.
            running: lengths of the answers that run now, tokens to be decoded included.
            reuse: take over what an ended answer left.

        Returns:
            None when no slot or no room is free now.
        """
        free = [slot for slot in self._slots if not slot.busy]
        if not free:
            return None
        lengths = list(running)
        needed = len(tokens) + min(remaining, _HEADROOM) + sum(lengths) + len(lengths)
        if self._shared and lengths and needed > self._n_ctx:
            return None
        slot, common = self._choose(free, np.asarray(tokens, np.int32) if reuse else _NONE)
        common = self._trim(slot, min(common, len(tokens) - 1))
        slot.kept, slot.busy = _NONE, True
        if self._shared:
            self._evict(self._n_ctx - min(needed, self._n_ctx))
        return slot, common

    def make_room(self, lengths: Iterable[int]) -> bool:
        """Whether the running answers fit, kept tokens given up where they must be."""
        if not self._shared:
            return True
        free = self._n_ctx - sum(lengths)
        if free < 0:
            return False
        self._evict(free)
        return True

    def close_gaps(self) -> None:
        """Let the ids of the running answers follow one another; needed by a split cache only."""
        if self._shared:
            return
        while gaps := self._gaps():
            self._move(self._outermost(), min(gaps, key=lambda slot: slot.last_use))

    def release(self, slot: Slot, tokens: Tokens) -> None:
        """Free a slot whose cache holds `tokens`."""
        slot.busy = False
        slot.last_use = self._tick()
        if not self._keep:
            self._clear(slot)
            return
        slot.kept = tokens
        if self._shared:
            self._evict(int(self._n_ctx * _SHARED_KEEP))

    def drop(self, slot: Slot) -> None:
        """Free a slot and forget what its cache holds."""
        slot.busy = False
        self._clear(slot)

    def _gaps(self) -> list[Slot]:
        """Free slots between busy ones."""
        busy = [slot.id for slot in self._slots if slot.busy]
        if not busy:
            return []
        return [s for s in self._slots if not s.busy and min(busy) < s.id < max(busy)]

    def _outermost(self) -> Slot:
        """The first or the last busy slot: the one whose leaving closes more."""
        busy = sorted((slot for slot in self._slots if slot.busy), key=lambda slot: slot.id)
        below, above = busy[1].id - busy[0].id, busy[-1].id - busy[-2].id
        return busy[0] if below > above else busy[-1]

    def _move(self, busy: Slot, free: Slot) -> None:
        """Bring a running answer into a free slot's place; what was kept there is lost."""
        self._clear(free)
        llama_cpp.llama_memory_seq_cp(self._memory, busy.id, free.id, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, busy.id, -1, -1)
        busy.id, free.id = free.id, busy.id

    def _choose(self, free: list[Slot], tokens: Tokens) -> tuple[Slot, int]:
        """The free slot that shares the longest prefix; among equals the longest unused."""
        ranked = [(_common_prefix(slot.kept, tokens), slot) for slot in free]
        common, slot = max(ranked, key=lambda pair: (pair[0], -pair[1].last_use, -pair[1].id))
        return slot, common

    def _trim(self, slot: Slot, length: int) -> int:
        """Cut a slot's cache to `length` tokens; 0 when the model cannot cut in the middle."""
        if length == len(slot.kept):
            return length
        if length and llama_cpp.llama_memory_seq_rm(self._memory, slot.id, length, -1):
            return length
        self._clear(slot)
        return 0

    def _evict(self, room: int) -> None:
        """Give up kept tokens, the longest unused first, until they take at most `room`."""
        kept = self.kept
        for slot in sorted(self._slots, key=lambda slot: slot.last_use):
            if kept <= room:
                return
            if len(slot.kept):
                kept -= len(slot.kept)
                self._clear(slot)

    def _clear(self, slot: Slot) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, slot.id, -1, -1)
        slot.kept = _NONE

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _common_prefix(left: Tokens, right: Tokens) -> int:
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length
