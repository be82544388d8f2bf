"""Forms: `multipart/form-data`, as browsers, curl and the openai client send files.

Source: RFC 7578.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from byzerllm_server.errors import HTTPError

FORM = "multipart/form-data"
MOST_PARTS = 64
INLINE_BYTES = 1 << 20
"""Longer bodies are taken apart off the loop."""


@dataclass(frozen=True)
class Upload:
    """A file of a form. `name` is the caller's."""

    name: str
    data: bytes = field(repr=False)


@dataclass
class Form:
    """The fields of a form; a name that ends in `[]` has a list of texts."""

    texts: dict[str, str | list[str]]
    files: dict[str, Upload]


async def read_form(content_type: str, data: bytes) -> Form:
    """The fields of a body.

    Raises:
        HTTPError: it cannot be read; names the field where there is one.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _unreadable("the header content-type names no boundary")
    if len(data) <= INLINE_BYTES:
        return _Reader(boundary).read(data)
    return await asyncio.to_thread(_Reader(boundary).read, data)


class _Reader:
    def __init__(self, boundary: bytes) -> None:
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._part_data,
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )
        self._form = Form({}, {})
        self._parts = 0
        self._complete = False

    def read(self, data: bytes) -> Form:
        try:
            self._parser.write(data)
            self._parser.finalize()
        except MultipartParseError as error:
            raise _unreadable(str(error)) from None
        if not self._complete:
            raise _unreadable("it ends in the middle")
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _unreadable(f"it has more than {MOST_PARTS} fields")
        self._name = b""
        self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._data: list[bytes] = []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _whole(self) -> None:
        self._complete = True

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise _unreadable("a field has no name")
        data = b"".join(self._data)
        if b"filename" in options:
            self._file(name, Upload(options[b"filename"].decode(errors="replace"), data))
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise _wrong(name, "it is no UTF-8") from None
        self._text(name, text)

    def _file(self, name: str, upload: Upload) -> None:
        if name in self._form.files or name in self._form.texts:
            raise _wrong(name, "it is there twice")
        self._form.files[name] = upload

    def _text(self, name: str, text: str) -> None:
        texts = self._form.texts
        if name.endswith("[]"):
            texts[name] = [*texts.get(name, ()), text]
        elif name in texts or name in self._form.files:
            raise _wrong(name, "it is there twice")
        else:
            texts[name] = text


def _wrong(name: str, reason: str) -> HTTPError:
    return HTTPError(400, f"{name}: {reason}", code="invalid_value", parameter=name)


def _unreadable(reason: str) -> HTTPError:
    return HTTPError(400, f"the form cannot be read: {reason}", code="invalid_form")
