"""Recordings in messages, for models that write down speech.

A recording is the whole content of a message (base64, or a data URL), an `input_audio` part of
OpenAI's chat completions API, or the `input` of a content that is JSON text:
`{"input": "…", "language": "en", "prompt": "…"}`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from byzerllm.errors import ParameterError
from byzerllm.messages import text_of

_DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<options>(;[^;,]*)*),", re.ASCII)
# How base64 of RIFF, fLaC, OggS, ID3, MPEG frames, EBML, FORM and MPEG-4 begins.
_MAGIC = ("UklGR", "ZkxhQ", "T2dnU", "SUQz", "//u", "//v", "//N", "//M", "//t", "GkXf", "Rk9ST")
_SHORTEST = 60


@dataclass(frozen=True)
class Recording:
    """One recording as it was sent.

    Attributes:
        encoded: base64, or a data URL of it.
        format: `wav`, `mp3`, …; '' where nobody said.
        text: what else the message says, a prompt for the model.
        options: further keys of the JSON form.
    """

    encoded: str = field(repr=False)
    format: str = ""
    text: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> bytes:
        """The bytes of the file.

        Raises:
            ParameterError: they are not base64.
        """
        encoded = self.encoded
        if encoded.startswith(("http://", "https://", "file:")):
            raise _wrong(
                "nothing is fetched from addresses; send the file itself as base64 or as a data "
                "URL (data:audio/wav;base64,…)"
            )
        declared = _DATA_URL.match(encoded)
        if declared is not None:
            if ";base64" not in declared["options"]:
                raise _wrong("a data URL is needed that is base64")
            encoded = encoded[declared.end() :]
        try:
            return base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError):
            raise _wrong(
                "the base64 of an audio file is needed, or a data URL (data:audio/wav;base64,…)"
            ) from None


def last_recording(conversations: str | Sequence[Any]) -> Recording | None:
    """The recording in the last message; None where nothing looks like one. Cheap: it runs for
    every chat."""
    if isinstance(conversations, str):
        content: Any = conversations
    elif conversations and isinstance(conversations, Sequence):
        last = conversations[-1]
        content = last.get("content") if isinstance(last, Mapping) else None
    else:
        return None
    if isinstance(content, str):
        return Recording(content) if _looks_recorded(content) else None
    return _in_parts(content)


def recording_in(content: Any) -> Recording:
    """The recording that a message to a model of recordings must have.

    Raises:
        ParameterError: there is none.
    """
    if isinstance(content, str) and content.strip():
        return _in_json(content) or Recording(content.strip())
    found = _in_parts(content)
    if found is None:
        raise _wrong(
            "the last message has none; send a part of type input_audio "
            "({'data': base64, 'format': 'wav'}), or base64 or a data URL as the whole content"
        )
    return found


def _looks_recorded(content: str) -> bool:
    if content.startswith("data:"):
        return content.startswith(("data:audio/", "data:video/", "data:application/ogg"))
    return len(content) >= _SHORTEST and (
        content.startswith(_MAGIC) or (content.startswith("AAAA") and content[5:8] == "GZ0")
    )


def _in_parts(content: Any) -> Recording | None:
    if not isinstance(content, (list, tuple)):
        return None
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "input_audio":
            continue
        audio = part.get("input_audio")
        if not isinstance(audio, Mapping) or not isinstance(audio.get("data"), str):
            continue
        texts = [p for p in content if isinstance(p, Mapping) and isinstance(p.get("text"), str)]
        return Recording(audio["data"], str(audio.get("format") or ""), text_of(texts))
    return None


def _in_json(content: str) -> Recording | None:
    if content.lstrip()[:1] != "{":
        return None
    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("input"), str):
        return None
    return of_fields(value)


def of_fields(fields: Mapping[str, Any]) -> Recording:
    """The recording of the JSON form."""
    rest = dict(fields)
    encoded = rest.pop("input")
    text, format_ = rest.pop("prompt", ""), rest.pop("format", "")
    return Recording(encoded, str(format_ or ""), str(text or ""), rest)


def _wrong(reason: str) -> ParameterError:
    return ParameterError(f"audio: {reason}", parameter="audio")
