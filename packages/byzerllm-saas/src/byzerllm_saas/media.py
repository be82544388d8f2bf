"""Formats of image and audio files by their first bytes."""

from __future__ import annotations

_IMAGES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
)
_AUDIO = (
    (b"ID3", "mp3"),
    (b"\xff\xfb", "mp3"),
    (b"\xff\xf3", "mp3"),
    (b"\xff\xf2", "mp3"),
    (b"fLaC", "flac"),
    (b"OggS", "ogg"),
    (b"\x1aE\xdf\xa3", "webm"),
)


def image_format(data: bytes) -> str:
    """`png`, `jpeg`, `webp`, `gif` or `bmp`; empty where the bytes are none of these."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _IMAGES if data.startswith(magic)), "")


def audio_format(data: bytes) -> str:
    """`wav`, `mp3`, `flac`, `ogg`, `m4a` or `webm`; empty where the bytes are none of these."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[4:8] == b"ftyp":
        return "m4a"
    return next((name for magic, name in _AUDIO if data.startswith(magic)), "")
