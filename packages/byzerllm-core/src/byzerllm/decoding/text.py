"""From pieces of text to what of it may leave: no part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence


class AnswerText:
    """Finds the stop strings of an answer while it grows.

    Text that could be the beginning of a stop string is held back until it is known not to be
    one. Where several stop strings are found in the text so far, the one that begins first ends
    the answer.

    Args:
        stops: stop strings, none of them empty.

    Attributes:
        stop: the stop string that has ended the answer; empty while none has.
        seen: characters so far, held ones included.
        released: characters that `push` and `flush` have given out.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stop = ""
        self.seen = 0
        self.released = 0

    @property
    def stopped(self) -> bool:
        """A stop string has ended the answer."""
        return bool(self.stop)

    def push(self, piece: str) -> str:
        """The text that may leave after one more piece."""
        self.seen += len(piece)
        if not self._stops:
            self.released = self.seen
            return piece
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            return self._release(text, at)
        return self._release(text, len(text) - self._undecided(text))

    def flush(self) -> str:
        """What is still held, at an end that is no stop string."""
        return "" if self.stopped else self._release(self._held, len(self._held))

    def _release(self, text: str, length: int) -> str:
        self._held = text[length:]
        self.released += length
        return text[:length]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
