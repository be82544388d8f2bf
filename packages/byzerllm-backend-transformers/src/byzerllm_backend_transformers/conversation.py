"""Messages in OpenAI's shape as processors of transformers take them: lists of parts, the pictures
beside them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from byzerllm.errors import ParameterError
from byzerllm_backend_transformers.pictures import SentPicture

Message = dict[str, Any]

_PART_TYPES = "text and image_url"


def with_parts(messages: list[Message]) -> tuple[list[Message], list[SentPicture]]:
    """The messages with lists of `text` and `image` parts for contents, and the pictures in the
    order of the `image` parts.

    Raises:
        ParameterError: a message that is none, or a part of another type.
    """
    pictures: list[SentPicture] = []
    converted: list[Message] = []
    for position, message in enumerate(messages):
        where = f"message {position}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ParameterError(f"{where} is no dict with a role and a content: {message!r:.80}")
        parts = _parts(message.get("content"), where, pictures)
        converted.append({**message, "content": parts})
    return converted, pictures


def _parts(content: Any, where: str, pictures: list[SentPicture]) -> list[Message]:
    if content is None:
        return []
    if isinstance(content, str):
        return [_text(content)]
    if not isinstance(content, list):
        raise ParameterError(
            f"the content of {where} is a {type(content).__name__}; it must be a text or a list of "
            f"parts of type {_PART_TYPES}"
        )
    parts: list[Message] = []
    for part in content:
        url = _url(part)
        if url is not None:
            pictures.append(SentPicture(url, where))
            parts.append({"type": "image"})
        elif isinstance(part, str):
            parts.append(_text(part))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            parts.append(_text(part["text"]))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ParameterError.invalid(
                "content",
                f"a part of type {kind!r}; this model takes parts of type {_PART_TYPES}, each with "
                "what its type names",
                where=where,
            )
    return parts


def as_texts(messages: list[Message], placeholder: str) -> list[Message]:
    """The messages for a template that takes texts only, `placeholder` in each picture's place."""
    return [
        {
            **message,
            "content": "\n".join(part.get("text", placeholder) for part in message["content"]),
        }
        for message in messages
    ]


def check_placeholders(messages: list[Message], placeholders: Collection[str]) -> None:
    """Refuse texts that hold what stands for a picture in the model's own prompts.

    Raises:
        ParameterError: naming the message.
    """
    for position, message in enumerate(messages):
        for part in message["content"]:
            found = [token for token in placeholders if token in part.get("text", "")]
            if found:
                raise ParameterError.invalid(
                    "content",
                    f"the text holds {found[0]!r}, which stands for a picture in this model's "
                    "prompts; send pictures as parts of type image_url",
                    where=f"message {position}",
                )


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _url(part: Any) -> str | None:
    """The address in an `image_url` part; None where it is no such part."""
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return None
    value = part.get("image_url")
    value = value.get("url") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None
