"""`/v1/audio/speech` and `/v1/audio/transcriptions`, by hosted models."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from vendors.openai import OpenAIVendor

SPEECH = "/v1/audio/speech"
HEAR = "/v1/audio/transcriptions"
SAY = {"model": "voice", "input": "hello, world", "voice": "nova"}
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)


@pytest.fixture
def slow_vendor(openai_vendor: OpenAIVendor) -> Iterator[OpenAIVendor]:
    openai_vendor.pace = 0.2
    yield openai_vendor
    openai_vendor.pace = 0.001


def spoken(text: str) -> bytes:
    from vendors.openai import spoken

    return spoken(text)


# Speech.


def test_a_text_is_spoken(hosted: httpx.Client, openai_vendor: OpenAIVendor) -> None:
    response = hosted.post(SPEECH, json={**SAY, "speed": 1.5, "instructions": "kindly"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/mpeg"
    assert response.headers["transfer-encoding"] == "chunked"
    assert response.content == spoken("hello, world")
    asked = openai_vendor.asked[-1].json
    assert asked == {
        "model": "tts-1",
        "input": "hello, world",
        "voice": "nova",
        "response_format": "mp3",
        "speed": 1.5,
        "instructions": "kindly",
    }


@pytest.mark.parametrize(
    ("format_", "media"),
    [("opus", "audio/ogg"), ("wav", "audio/wav"), ("pcm", "audio/pcm"), ("flac", "audio/flac")],
)
def test_formats(
    hosted: httpx.Client, openai_vendor: OpenAIVendor, format_: str, media: str
) -> None:
    response = hosted.post(SPEECH, json={**SAY, "voice": {"id": "ash"}, "response_format": format_})
    assert response.headers["content-type"] == media
    asked = openai_vendor.asked[-1].json
    assert (asked["response_format"], asked["voice"]) == (format_, "ash")


def test_sound_is_sent_as_it_comes(hosted: httpx.Client, slow_vendor: OpenAIVendor) -> None:
    start = time.monotonic()
    with hosted.stream("POST", SPEECH, json=SAY) as response:
        pieces = []
        times = []
        for piece in response.iter_raw():
            pieces.append(piece)
            times.append(time.monotonic() - start)
    assert b"".join(pieces) == spoken("hello, world")
    assert len(pieces) >= 3
    assert times[-1] - times[0] > 0.3


def test_events(hosted: httpx.Client) -> None:
    response = hosted.post(SPEECH, json={**SAY, "stream_format": "sse"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line[:6] == "data: "]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == spoken("hello, world")
    assert done["type"] == "speech.audio.done"
    assert set(done["usage"]) == {"input_tokens", "output_tokens", "total_tokens"}


@pytest.mark.parametrize("more", [{}, {"stream_format": "sse"}])
def test_a_caller_that_leaves_stops_it(
    hosted: httpx.Client, slow_vendor: OpenAIVendor, more: dict[str, Any]
) -> None:
    before = slow_vendor.left
    text = "a long speech " * 20
    with hosted.stream("POST", SPEECH, json={**SAY, "input": text, **more}) as response:
        next(response.iter_raw())
    end = time.monotonic() + 3
    while slow_vendor.left == before and time.monotonic() < end:
        time.sleep(0.05)
    assert slow_vendor.left == before + 1


def test_speech_that_breaks_off_is_no_whole_answer(
    hosted: httpx.Client, openai_vendor: OpenAIVendor
) -> None:
    from vendors.server import Cut

    openai_vendor.faults(Cut(after=2))
    with hosted.stream("POST", SPEECH, json=SAY) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            list(response.iter_raw())
    openai_vendor.faults(Cut(after=2))
    response = hosted.post(SPEECH, json={**SAY, "stream_format": "sse"})
    last = json.loads(response.text.strip().splitlines()[-1][6:])
    assert last["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a"]}, "input"),
        ({"response_format": "midi"}, "response_format"),
        ({"speed": 9}, "speed"),
        ({"voice": {"name": "x"}}, "voice.id"),
        ({"stream_format": "ws"}, "stream_format"),
        ({"pitch": 2}, "pitch"),
    ],
)
def test_wrong_speech_is_named(
    hosted: httpx.Client, change: dict[str, Any], parameter: str
) -> None:
    response = hosted.post(SPEECH, json={**SAY, **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


@pytest.mark.parametrize("more", [{}, {"stream_format": "sse"}, {"response_format": "wav"}])
def test_what_the_vendor_refuses_has_its_own_status(
    hosted: httpx.Client, more: dict[str, Any]
) -> None:
    response = hosted.post(SPEECH, json={**SAY, "voice": "nobody", **more})
    assert response.status_code == 400
    assert "alloy" in response.json()["error"]["message"]


def test_models_that_do_not_speak_say_so(hosted: httpx.Client, http: httpx.Client) -> None:
    for client, model in ((hosted, "chat"), (http, "echo")):
        response = client.post(SPEECH, json={**SAY, "model": model})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported_by_model"


# Transcription.


def hear(client: httpx.Client, file: Any = ("a.wav", WAV), **fields: str) -> httpx.Response:
    return client.post(HEAR, files={"file": file}, data={"model": "ear", **fields})


def test_speech_is_written_down(hosted: httpx.Client, openai_vendor: OpenAIVendor) -> None:
    answer = hear(hosted, language="en", prompt="names: Byzer", temperature="0.5").json()
    assert answer == {
        "text": f"{len(WAV)} bytes were heard",
        "usage": {"type": "duration", "seconds": 1.5},
    }
    body = openai_vendor.asked[-1].body
    assert all(text in body for text in (WAV, b"names: Byzer", b"0.5", b'filename="speech.wav"'))


def test_formats_of_transcripts(hosted: httpx.Client) -> None:
    text = f"{len(WAV)} bytes were heard"
    plain = hear(hosted, response_format="text")
    assert plain.headers["content-type"].startswith("text/plain")
    assert plain.text == f"{text}\n"
    verbose = hear(hosted, response_format="verbose_json", language="en").json()
    assert verbose["segments"] == [{"id": 0, "start": 0.0, "end": 1.5, "text": text}]
    assert (verbose["duration"], verbose["language"], verbose["text"]) == (1.5, "en", text)
    srt = hear(hosted, response_format="srt").text
    assert srt == f"1\n00:00:00,000 --> 00:00:01,500\n{text}\n"
    vtt = hear(hosted, response_format="vtt")
    assert vtt.headers["content-type"].startswith("text/vtt")
    assert vtt.text == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n{text}\n"


def test_a_streamed_transcript(hosted: httpx.Client) -> None:
    response = hear(hosted, stream="true")
    *events, done = [line[6:] for line in response.text.splitlines() if line[:6] == "data: "]
    assert done == "[DONE]"
    delta, last = map(json.loads, events)
    assert (delta["type"], last["type"]) == ("transcript.text.delta", "transcript.text.done")
    assert delta["delta"] == last["text"] == f"{len(WAV)} bytes were heard"


@pytest.mark.parametrize("format_", ["verbose_json", "srt", "vtt"])
def test_times_that_a_model_does_not_tell_are_not_invented(
    hosted: httpx.Client, format_: str
) -> None:
    response = hear(hosted, model="deaf-to-time", response_format=format_)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"
    assert hear(hosted, model="deaf-to-time").json() == {"text": f"{len(WAV)} bytes were heard"}


def test_a_long_file(hosted: httpx.Client) -> None:
    audio = WAV + b"\r\n--x" * 1_500_000
    assert hear(hosted, ("long.wav", audio)).json()["text"] == f"{len(audio)} bytes were heard"


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "7"}, "temperature"),
        ({"language": "what?"}, "language"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "response_format"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[][0]"),
        ({"modle": "ear"}, "modle"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": b"\xff\xfe"}, "prompt"),
    ],
)
def test_wrong_fields_are_named(
    hosted: httpx.Client, fields: dict[str, Any], parameter: str
) -> None:
    data = {"model": "ear", **fields}
    parts: list[tuple[str, Any]] = [("file", ("a.wav", WAV))]
    for name, value in data.items():
        values = value if isinstance(value, list) else [value]
        parts += [(name, (None, one)) for one in values if one is not None]
    response = hosted.post(HEAR, files=parts)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == parameter


def test_wrong_files_are_named(hosted: httpx.Client) -> None:
    missing = hosted.post(HEAR, files={"model": (None, "ear")})
    text = hosted.post(HEAR, files={"model": (None, "ear"), "file": (None, "text")})
    empty = hear(hosted, ("a.wav", b""))
    twice = hosted.post(HEAR, files=[("file", ("a", WAV)), ("file", ("b", WAV))])
    for response in (missing, text, empty, twice):
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "file"
    other = hosted.post(HEAR, files={"file": ("a.wav", WAV), "model": ("m.txt", b"ear")})
    assert other.json()["error"]["param"] == "model"
    unknown = hosted.post(HEAR, files={"file": ("a.wav", WAV), "cover": ("c.png", b"x")})
    assert unknown.json()["error"]["param"] == "cover"


HEAD = {"content-type": "multipart/form-data; boundary=XX"}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "application/json"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"model=ear", 415),
        ({}, b"", 415),
        ({"content-type": "multipart/form-data"}, b"--XX--", 400),
        (HEAD, b"", 400),
        (HEAD, b"nonsense", 400),
        (HEAD, b"--XX\r\ncontent-disposition: form-data; name=model\r\n\r\nea", 400),
        (HEAD, b"--XX\r\ncontent-disposition: form-data\r\n\r\nx\r\n--XX--\r\n", 400),
        (HEAD, b"--XX\r\nno header\r\n\r\nx\r\n--XX--\r\n", 400),
        (HEAD, b"--XX\r\n" + b"x" * 10_000 + b": y\r\n\r\nx\r\n--XX--\r\n", 400),
        (HEAD, b"--XX\r\ncontent-disposition: form-data; name=a[]\r\n\r\n\r\n" * 100, 400),
    ],
)
def test_broken_forms_are_refused(
    hosted: httpx.Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = hosted.post(HEAR, headers=headers, content=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]["message"]


def test_the_limit_of_bodies_holds(serving: Callable[..., Any]) -> None:
    served = serving("--max_body_mb", "1")
    with httpx.Client(base_url=served.url, timeout=30) as client:
        audio = WAV + bytes(2 * 1024 * 1024)
        assert hear(client, ("a.wav", audio), model="echo").status_code == 413
        response = hear(client, model="echo")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "unsupported_by_model"
