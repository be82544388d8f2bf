"""Server-sent events, read from bytes as they arrive.

Source: the WHATWG HTML standard, 9.2.6 "Interpreting an event stream". Vendors differ from it in
two ways that are read, too: fields of their own, and a last event without the empty line after it.
"""

from __future__ import annotations

from typing import NamedTuple

LARGEST_EVENT = 64 * 1024 * 1024
"""Bytes that one event may have; images come in events."""


class Event(NamedTuple):
    """One event.

    Attributes:
        data: its data lines, joined by newlines.
        event: its type; empty is `message`.
        fields: its other fields by name (`id`, or the vendor's own).
    """

    data: bytes
    event: str = ""
    fields: dict[str, str] | None = None


class EventTooLarge(ValueError):
    """An event is larger than any that a vendor sends."""


class EventParser:
    """Turns pieces of a stream into events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._event = ""
        self._fields: dict[str, str] | None = None
        self._begun = False
        self._size = 0

    def feed(self, piece: bytes) -> list[Event]:
        """The events that a piece completes.

        Raises:
            EventTooLarge: an event has grown beyond `LARGEST_EVENT`.
        """
        text = self._rest + piece if self._rest else piece
        if not self._begun:
            if len(text) < 3 and b"\xef\xbb\xbf".startswith(text):
                self._rest = text
                return []
            text, self._begun = text.removeprefix(b"\xef\xbb\xbf"), True
        # A CR at the end may be half of a CRLF.
        end = max(text.rfind(b"\n"), text.rfind(b"\r", 0, len(text) - 1)) + 1
        self._rest = text[end:]
        if self._size + len(self._rest) > LARGEST_EVENT:
            raise EventTooLarge(f"an event of more than {LARGEST_EVENT:,} bytes")
        return self._read(text[:end].splitlines()) if end else []

    def close(self) -> list[Event]:
        """The event that the end of the stream completes, if any."""
        rest, self._rest = self._rest, b""
        return self._read([*rest.splitlines(), b""])

    def _read(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if line[:6] == b"data: ":
                self._data.append(line[6:])
                self._size += len(line)
            elif line:
                self._field(line)
            elif self._data or self._event or self._fields:
                data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                events.append(Event(data, self._event, self._fields))
                self._data, self._event, self._fields, self._size = [], "", None, 0
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if not name:
            return
        value = value.removeprefix(b" ")
        self._size += len(line)
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        else:
            fields = self._fields = self._fields or {}
            fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
