"""Recordings in messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from byzerllm.client.media import transcribe_request
from byzerllm.errors import ParameterError
from byzerllm.recordings import Recording, last_recording, recording_in

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)
ENCODED = base64.b64encode(WAV).decode()
PART = {"type": "input_audio", "input_audio": {"data": ENCODED, "format": "wav"}}


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "listen"}, {"role": "user", "content": content}]


@pytest.mark.parametrize(
    "content",
    [
        ENCODED,
        f"data:audio/wav;base64,{ENCODED}",
        [PART],
        [{"type": "text", "text": "names"}, PART],
    ],
)
def test_a_recording_is_seen(content: Any) -> None:
    found = last_recording(said(content))
    assert found is not None
    assert found.data() == WAV
    assert recording_in(content) == found


@pytest.mark.parametrize(
    "head",
    [b"fLaC", b"OggS", b"ID3\4", b"\xff\xfb\x90d", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A "],
)
def test_a_whole_content_is_known_by_its_head(head: bytes) -> None:
    encoded = base64.b64encode(head + bytes(60)).decode()
    assert last_recording(encoded) == Recording(encoded)


@pytest.mark.parametrize(
    "conversations",
    [
        [],
        "hello",
        "AAAA, what a day! " * 9,
        said("data: of what kind?"),
        said([{"type": "text", "text": "hello"}]),
        said([{"type": "input_audio", "input_audio": "nothing"}]),
        said(None),
        [3],
        {"role": "user"},
    ],
)
def test_other_messages_have_none(conversations: Any) -> None:
    assert last_recording(conversations) is None


def test_what_is_said_beside_it() -> None:
    content = json.dumps({"input": ENCODED, "language": "de", "prompt": "Byzer", "seed": 1})
    found = recording_in(content)
    assert (found.text, found.options) == ("Byzer", {"language": "de", "seed": 1})
    request = transcribe_request(found, {"gen.temperature": 0.5}, {"language": "fr", "timeout": 9})
    assert (request.language, request.prompt, request.audio) == ("fr", "Byzer", WAV)
    assert request.extra == {"seed": 1, "temperature": 0.5}
    parts = recording_in([{"type": "text", "text": "names"}, PART])
    assert (parts.text, parts.format) == ("names", "wav")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("hello, is there anybody?", "base64 of an audio file"),
        ("https://example.com/a.wav", "nothing is fetched"),
        ("data:audio/wav,plain", "a data URL is needed that is base64"),
        ([{"type": "text", "text": "hello"}], "has none"),
        (None, "has none"),
        ("", "has none"),
    ],
)
def test_what_is_no_recording(content: Any, reason: str) -> None:
    with pytest.raises(ParameterError, match=reason) as caught:
        recording_in(content).data()
    assert caught.value.parameter == "audio"


def test_a_wrong_type_is_named() -> None:
    with pytest.raises(ParameterError, match="language"):
        transcribe_request(Recording(ENCODED), {"language": ["de"]}, {})
