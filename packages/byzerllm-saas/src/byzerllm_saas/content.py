"""What messages in OpenAI's shape hold, for vendors whose messages have another shape."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from byzerllm.errors import ParameterError
from byzerllm_saas.media import image_format

Part = dict[str, Any]

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[^;,]*)*?;base64,", re.ASCII)
_STATE_MARK = "~"


class Data(NamedTuple):
    """The bytes of a file, still as base64."""

    media_type: str
    base64: str


def data_of(url: str, *, where: str) -> Data | None:
    """What a data URL of an image holds; None of an address.

    Raises:
        ParameterError: it is neither an address nor an image.
    """
    if url.startswith(("http://", "https://")):
        return None
    head = _DATA_URL.match(url)
    if head is None:
        raise ParameterError(
            f"{where}: an image is an http address or a data URL in base64", parameter="image_url"
        )
    encoded = url[head.end() :]
    try:
        begin = binascii.a2b_base64(encoded[:64], strict_mode=len(encoded) <= 64)
    except binascii.Error:
        begin = b""
    if not begin:
        raise ParameterError(
            f"{where}: the data URL of an image holds no base64", parameter="image_url"
        )
    kind, declared = image_format(begin), head[1] or ""
    if not kind and not declared.startswith("image/"):
        raise ParameterError(f"{where}: the data URL holds no image", parameter="image_url")
    return Data(f"image/{kind}" if kind else declared, encoded)


def parts_of(content: str | Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]]:
    """A content as parts, without empty texts, which vendors refuse."""
    if isinstance(content, str) or not content:
        return [{"type": "text", "text": content}] if content else []
    return [part for part in content if part.get("type") != "text" or part.get("text")]


def arguments_of(call: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The arguments of a tool call in a message, as the object that vendors want.

    Raises:
        ParameterError: they are no JSON object.
    """
    function = call.get("function") or {}
    text = function.get("arguments") or "{}"
    try:
        arguments = msgspec.json.decode(text) if isinstance(text, str) else text
    except msgspec.DecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise ParameterError(
            f"{where}: the arguments of a call of {function.get('name')!r} are no JSON object",
            parameter="tool_calls",
        )
    return arguments


# Some vendors want back, with the result of a tool call, what the model thought before it. Callers
# give back a call's id and nothing else, so that the id carries it.


def with_state(call_id: str, state: Any) -> str:
    """An id that carries what `state_of` finds again; the id itself where there is nothing."""
    if not state:
        return call_id
    packed = base64.urlsafe_b64encode(msgspec.json.encode(state)).decode().rstrip("=")
    return f"{call_id}{_STATE_MARK}{packed}"


def state_of(call_id: str) -> tuple[str, Any]:
    """The vendor's own id of a call, and what was put to it; None for another model's call."""
    bare, _, packed = call_id.partition(_STATE_MARK)
    if not packed:
        return call_id, None
    try:
        return bare, msgspec.json.decode(
            base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        )
    except (ValueError, msgspec.DecodeError):
        return bare, None
