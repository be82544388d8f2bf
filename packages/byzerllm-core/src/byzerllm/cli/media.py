"""Answers that are sound or pictures: models send them as base64 text."""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byzerllm.cli.i18n import _
from byzerllm.errors import UsageError

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+);base64,(?P<data>.+)", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
_HEAD = 64
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"\xff\xf2", "audio/mpeg"),
    (b"\xff\xf1", "audio/aac"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
)


@dataclass(frozen=True)
class Media:
    """Bytes of a picture or a sound, and their MIME type."""

    data: bytes
    type: str


def decode(answer: Any) -> list[Media]:
    """The pictures or sounds in an answer: bytes, base64, a data URL, or JSON with `img64`.

    Returns:
        an empty list when the answer is a text.
    """
    if isinstance(answer, bytes):
        return [Media(answer, _type_of(answer[:_HEAD]) or "application/octet-stream")]
    text = str(answer).strip()
    if text.startswith(("[", "{")):
        return _decode_json(text)
    url = _DATA_URL.fullmatch(text)
    if url:
        return [Media(_from_base64(url["data"]), url["type"])]
    head = text[:_HEAD]
    if len(text) >= _HEAD and _BASE64.fullmatch(text) and _type_of(_from_base64(head)):
        data = _from_base64(text)
        return [Media(data, _type_of(data[:_HEAD]))]
    return []


def _decode_json(text: str) -> list[Media]:
    try:
        found = json.loads(text)
    except ValueError:
        return []
    items = found if isinstance(found, list) else [found]
    pictures = [
        i["img64"] for i in items if isinstance(i, dict) and isinstance(i.get("img64"), str)
    ]
    return [media for picture in pictures for media in decode(picture)]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except binascii.Error:
        return b""


def _type_of(head: bytes) -> str:
    if head[:4] == b"RIFF":
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp"}.get(head[8:12], "")
    return next((kind for magic, kind in _SIGNATURES if head.startswith(magic)), "")


def write_answer(answer: Any, file: Path) -> list[Path]:
    """Write an answer, decoded when it is media; several pictures get `-1`, `-2`, … in the name.

    Raises:
        UsageError: the file cannot be written.
    """
    found = decode(answer)
    if len(found) > 1:
        names = [file.with_stem(f"{file.stem}-{n}") for n in range(1, len(found) + 1)]
    else:
        names = [file]
    contents = [media.data for media in found] or [str(answer).encode()]
    for name, content in zip(names, contents, strict=True):
        try:
            name.write_bytes(content)
        except OSError as error:
            raise UsageError(
                _("cannot write {path}: {reason}").format(path=name, reason=error.strerror)
            ) from None
    return names


def image_part(image: str) -> dict[str, Any]:
    """A picture (URL or file) as a content part of a message.

    Raises:
        UsageError: the file cannot be read or is no picture.
    """
    if image.startswith(("http://", "https://", "data:")):
        url = image
    else:
        path = Path(image).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(
                _("cannot read {path}: {reason}").format(path=path, reason=error.strerror)
            ) from None
        kind = _type_of(data[:_HEAD]) or mimetypes.guess_type(path.name)[0] or ""
        if not kind.startswith("image/"):
            raise UsageError(_("{path} is no picture").format(path=path))
        url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
