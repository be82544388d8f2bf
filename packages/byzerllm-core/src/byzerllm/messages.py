"""Chat messages and content parts in OpenAI's shape.

The seed's short forms are normalised here and nowhere else: one text instead of a list, objects
with `role` and `content`, and contents that are JSON text: a list of `{"text": …}` and
`{"image": …}`, an image being a URL, a data URL or bare base64.

Source: the `messages` of OpenAI's chat completions API.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from byzerllm.errors import ParameterError, did_you_mean, listed

Message = dict[str, Any]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
PART_TYPES = frozenset({"text", "image_url", "input_audio", "video_url", "file", "refusal"})

_SHORT_KEYS = frozenset({"text", "image"})
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[^;,]*)*),", re.ASCII)
_ANSWERS_WITHOUT_TEXT = ("tool_calls", "function_call", "refusal", "audio")


def normalise(conversations: str | Sequence[Any], *, short_forms: bool = True) -> list[Message]:
    """Messages in OpenAI's shape; what the caller passed stays as it is.

    Args:
        conversations: a list of messages (mappings, or objects with `role` and `content`), or one
            text, which is one user message.
        short_forms: a content that is JSON text of parts means these parts.

    Raises:
        ParameterError: an empty conversation, or a message that is none; names its index.
    """
    if isinstance(conversations, str):
        conversations = [{"role": "user", "content": conversations}] if conversations else []
    if isinstance(conversations, Mapping) or not isinstance(conversations, Sequence):
        raise ParameterError(
            "conversations: a list of messages or one text is needed "
            f"(got {type(conversations).__name__})",
            parameter="conversations",
        )
    if not conversations:
        raise ParameterError(
            "conversations: empty; at least one message is needed", parameter="conversations"
        )
    return [_message(index, message, short_forms) for index, message in enumerate(conversations)]


def with_image(messages: Sequence[Message], image: str) -> list[Message]:
    """The messages with an image added to the last user message.

    Args:
        image: a URL, a data URL, or the base64 of an image file.

    Raises:
        ParameterError: no user message, or no image.
    """
    url = _image_url(image) if isinstance(image, str) else None
    if url is None:
        raise ParameterError(
            "image: a URL, a data URL or the base64 of a PNG, JPEG, GIF, WebP, BMP or TIFF file "
            "is needed",
            parameter="image",
        )
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message["role"] == "user":
            content = message["content"]
            parts = [_text(content)] if isinstance(content, str) else list(content)
            changed = {**message, "content": [*parts, _image(url)]}
            return [*messages[:index], changed, *messages[index + 1 :]]
    raise ParameterError("image: there is no user message to add it to", parameter="image")


def text_of(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The text of a content: its text parts on lines of their own, other parts left out."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("type") == "text")


def _message(index: int, given: Any, short_forms: bool) -> Message:
    message = given.copy() if type(given) is dict else _as_dict(index, given)
    role = message.get("role")
    if type(role) is not str or role not in ROLES:
        raise _wrong(index, _about_role(message))
    content = message.get("content")
    if type(content) is str:
        # Only what can be the seed's form is parsed: this runs for every message of every call.
        if short_forms and content[:1] in "[ \n\t\r" and _may_hold_parts(content):
            message["content"] = _from_json_text(index, content)
    elif isinstance(content, (list, tuple)):
        message["content"] = _parts(index, content)
    elif content is not None:
        raise _wrong(index, f"content is {type(content).__name__}; a text or a list of parts")
    elif role != "assistant" or not any(message.get(key) for key in _ANSWERS_WITHOUT_TEXT):
        raise _wrong(index, "content is missing; a text or a list of parts")
    return message


def _as_dict(index: int, given: Any) -> Message:
    if isinstance(given, Mapping):
        return dict(given)
    if hasattr(given, "model_dump"):
        return dict(given.model_dump(exclude_none=True))
    if hasattr(given, "role") and hasattr(given, "content"):
        return {"role": given.role, "content": given.content}
    raise _wrong(
        index, f"a message is a mapping with role and content (got {type(given).__name__})"
    )


def _about_role(message: Message) -> str:
    if "role" not in message:
        return f"role is missing; one of {listed(ROLES)}"
    role = message["role"]
    near = did_you_mean(role, ROLES) if isinstance(role, str) else ""
    return f"unknown role {role!r}{near}; one of {listed(ROLES)}"


def _wrong(index: int, reason: str) -> ParameterError:
    return ParameterError(f"conversations[{index}]: {reason}", parameter="conversations")


def _parts(index: int, given: Sequence[Any]) -> list[Message]:
    if not given:
        raise _wrong(index, "content is an empty list; at least one part is needed")
    parts: list[Message] = []
    for part in given:
        if isinstance(part, str):
            parts.append(_text(part))
        elif not isinstance(part, Mapping):
            raise _wrong(index, f"a part is {type(part).__name__}; a mapping with a type")
        elif "type" in part:
            parts.append(_part(index, part))
        elif part and _SHORT_KEYS.issuperset(part):
            parts.extend(_short(index, part))
        else:
            raise _wrong(index, f"a part has no type; one of {listed(PART_TYPES)}")
    return parts


def _part(index: int, given: Mapping[str, Any]) -> Message:
    kind = given["type"]
    if kind not in PART_TYPES:
        near = did_you_mean(kind, PART_TYPES) if isinstance(kind, str) else ""
        raise _wrong(index, f"unknown part type {kind!r}{near}; one of {listed(PART_TYPES)}")
    if kind not in given:
        raise _wrong(index, f"a part of type {kind!r} needs the key {kind!r}")
    value = given[kind]
    if kind in ("text", "refusal"):
        if not isinstance(value, str):
            raise _wrong(index, f"{kind} of a part is {type(value).__name__}; a text is needed")
        return dict(given)
    if kind in ("image_url", "video_url"):
        value = {"url": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping) or not isinstance(value.get("url"), str):
            raise _wrong(index, f"{kind} of a part needs {{'url': …}}")
    elif not isinstance(value, Mapping):
        raise _wrong(index, f"{kind} of a part is {type(value).__name__}; a mapping is needed")
    return {**given, kind: dict(value)}


def _short(index: int, given: Mapping[str, Any]) -> list[Message]:
    parts = []
    for key, value in given.items():
        if not isinstance(value, str):
            raise _wrong(index, f"{key} of a part is {type(value).__name__}; a text is needed")
        if key == "text":
            parts.append(_text(value))
            continue
        url = _image_url(value)
        if url is None:
            raise _wrong(
                index,
                "image of a part is neither a URL nor the base64 of a PNG, JPEG, GIF, WebP, BMP or "
                "TIFF file",
            )
        parts.append(_image(url))
    return parts


def _may_hold_parts(content: str) -> bool:
    return content.lstrip()[:1] == "[" and ('"text"' in content or '"image"' in content)


def _from_json_text(index: int, content: str) -> str | list[Message]:
    try:
        items = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return content
    if not items or not all(_is_short(item) for item in items):
        return content
    parts = _parts(index, items)
    # Text alone stays a text, which every engine takes.
    return parts if any(part["type"] != "text" for part in parts) else text_of(parts)


def _is_short(item: Any) -> bool:
    """Whether a JSON value is one of the forms that mean parts and no data of the user's own."""
    if not isinstance(item, dict) or not item:
        return False
    kind = item.get("type")
    if kind is not None:
        return kind in ("text", "image_url") and item.keys() == {"type", kind}
    return _SHORT_KEYS.issuperset(item) and all(isinstance(v, str) for v in item.values())


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _image(url: str) -> Message:
    return {"type": "image_url", "image_url": {"url": url}}


def _image_url(image: str) -> str | None:
    """A URL or a valid data URL of an image; None where the text is none."""
    if image.startswith(("http://", "https://")):
        return image
    declared = _DATA_URL.match(image)
    if declared is None:
        return _data_url(image, "")
    if ";base64" in declared["options"]:
        return image
    return _data_url(image[declared.end() :], declared["type"] or "")


def _data_url(encoded: str, declared: str) -> str | None:
    encoded = "".join(encoded.split())
    try:
        head = binascii.a2b_base64(encoded, strict_mode=True)[:16]
    except (binascii.Error, ValueError):
        return None
    kind = _sniff(head) or declared
    return f"data:{kind};base64,{encoded}" if head and kind.startswith("image/") else None


def _sniff(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")
