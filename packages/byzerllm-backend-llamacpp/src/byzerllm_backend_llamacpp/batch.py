"""One decode step's input: which tokens of which answers."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from byzerllm.errors import BackendError
from byzerllm_backend_llamacpp.answer import Sequence
from byzerllm_backend_llamacpp.native import llama_cpp


class Part(NamedTuple):
    """The share of one answer in a batch.

    Attributes:
        length: tokens of it.
        output: batch position of the logits for its next token; None in the middle of a prompt.
    """

    sequence: Sequence
    length: int
    output: int | None


class Batch:
    """A `llama_batch` of at most `size` tokens over arrays of this process."""

    def __init__(self, size: int) -> None:
        self.capacity = size
        self.parts: list[Part] = []
        self._size = 0
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        # seq_id is an array of arrays; each inner one has one element here.
        begin, step = self._sequences.ctypes.data, self._sequences.itemsize
        self._pointers = np.arange(begin, begin + size * step, step, dtype=np.uintp)
        self._native = self._over_arrays()

    def _over_arrays(self) -> Any:
        native = llama_cpp.llama_batch()
        types = dict(llama_cpp.llama_batch._fields_)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._counts,
            "seq_id": self._pointers,
            "logits": self._outputs,
        }
        for name, array in arrays.items():
            setattr(native, name, ctypes.cast(array.ctypes.data, types[name]))
        return native

    def __len__(self) -> int:
        return self._size

    def fill(self, parts: list[tuple[Sequence, int]]) -> None:
        """Compose anew: of each answer, which has a slot, the next so many tokens.

        The answers are put in the order of their slots, as llama.cpp needs them to compute them
        together.
        """
        self.parts.clear()
        self._size = 0
        for sequence, length in sorted(parts, key=_slot_id):
            self._add(sequence, length)

    def _add(self, sequence: Sequence, count: int) -> None:
        assert sequence.slot is not None
        begin, end, fed = self._size, self._size + count, sequence.fed
        self._tokens[begin:end] = sequence.tokens[fed : fed + count]
        self._positions[begin:end] = np.arange(fed, fed + count)
        self._sequences[begin:end] = sequence.slot.id
        self._outputs[begin:end] = 0
        self._size = end
        complete = count == sequence.waiting_tokens
        if complete:
            self._outputs[end - 1] = 1
        self.parts.append(Part(sequence, count, end - 1 if complete else None))

    def decode(self, context: Any) -> None:
        """Run the model; blocking, without the interpreter lock.

        Raises:
            BackendError: llama.cpp failed; its cache is in an unknown state.
        """
        self._native.n_tokens = self._size
        code = llama_cpp.llama_decode(context, self._native)
        if code != 0:
            raise BackendError(f"llama_decode returned {code} for {self._size} tokens")
        llama_cpp.llama_synchronize(context)
        for part in self.parts:
            part.sequence.fed += part.length


def _slot_id(part: tuple[Sequence, int]) -> int:
    slot = part[0].slot
    assert slot is not None
    return slot.id
