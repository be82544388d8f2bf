"""Audio files: what comes is decoded and checked, what goes is written as it is made."""

from __future__ import annotations

import io
import math
import struct
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from byzerllm.errors import ParameterError

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Mono, -1 to 1."""

READ = "wav, flac, ogg (Vorbis or Opus), mp3 and aiff"
WRITTEN = ("flac", "mp3", "ogg", "opus", "pcm", "wav")
"""What `Encoder` writes; `pcm` is 16 bits, little endian, with no head."""

_RATES = (1_000, 384_000)
_CHANNELS = 16
_BLOCK = 1 << 18
_CONTAINERS = {
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "wav": ("WAV", "PCM_16"),
}
_WHOLE_NUMBERS = ("flac", "pcm", "wav")
_MP3_LEVEL = 0.6
# libsndfile's encoder of Vorbis overflows its stack with much at once.
_WRITE_BLOCK = 1 << 14


def read_audio(data: bytes, *, rate: int, max_seconds: float) -> Samples:
    """The samples in an audio file, as one channel at `rate` Hz. Blocking.

    Raises:
        ParameterError: no audio that can be read, none in it, or too much of it.
    """
    if not data:
        raise _wrong("it is empty")
    try:
        with _Forward(io.BytesIO(data)) as file:
            samples, own = _mono(file, max_seconds), int(file.samplerate)
    except soundfile.SoundFileError as error:
        said = str(error).rpartition(": ")[2].strip(" .")
        raise _wrong(f"no audio file that can be read ({said}); send {READ}") from None
    if not len(samples):
        raise _wrong("it has 0 s of sound")
    if not np.isfinite(samples).all():
        raise _wrong("it has samples that are no numbers")
    return resampled(samples, own, rate)


def resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    """The same sound at another rate, by a polyphase filter."""
    if rate == wanted:
        return samples
    shared = math.gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // shared, rate // shared), dtype=np.float32)


def _mono(file: Any, max_seconds: float) -> Samples:
    """All channels of an open file as one. Files may say wrongly how long they are: what is read
    is counted, too."""
    rate, channels = int(file.samplerate), int(file.channels)
    if not _RATES[0] <= rate <= _RATES[1]:
        raise _wrong(f"{rate:,} samples a second; {_RATES[0]:,} to {_RATES[1]:,} are taken")
    if channels > _CHANNELS:
        raise _wrong(f"{channels} channels; up to {_CHANNELS} are taken")
    blocks: list[Samples] = []
    left = int(max_seconds * rate)
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        left -= len(block)
        if left < 0:
            said = max(file.frames / rate, max_seconds)
            raise _wrong(
                f"it is longer than {max_seconds:g} s, which one request may have"
                + (f" ({said:,.0f} s)" if max_seconds < said < 1e7 else "")
                + "; send it in parts, or deploy the model with a larger max_audio_seconds"
            )
        blocks.append(block.mean(axis=1))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Read from begin to end: seeking fails in a FLAC file whose head does not say how long it is,
    as one that was written to a stream."""

    def seekable(self) -> bool:
        return False


class Encoder:
    """Writes samples as an audio file that is sent while it grows.

    What formats write into their head at the end (lengths, checksums) is there when the file is
    taken as a whole, and left open when it is taken in pieces.

    Args:
        format: one of `WRITTEN`.
        rate: samples a second.
        pieces: `add` gives what is ready; else `finish` gives the whole file.
    """

    def __init__(self, format: str, rate: int, *, pieces: bool) -> None:
        self._format = format
        self._pieces = pieces
        self._sent = 0
        self._target = io.BytesIO()
        self._bare = format == "pcm" or (format == "wav" and pieces)
        self._file: Any = None
        if not self._bare:
            container, subtype = _CONTAINERS[format]
            # A stream's head tells no lengths: frames of one size let players know them.
            mode: dict[str, Any] = {}
            if format == "mp3":
                mode = {"bitrate_mode": "CONSTANT", "compression_level": _MP3_LEVEL}
            self._file = soundfile.SoundFile(
                self._target, "w", rate, 1, subtype=subtype, format=container, **mode
            )
        elif format == "wav":
            self._target.write(_endless_wav(rate))

    def add(self, samples: Samples) -> bytes:
        """Write samples; the bytes that can be sent now."""
        clipped: Any = np.clip(samples, -1, 1)
        if self._format in _WHOLE_NUMBERS:
            clipped = np.minimum(np.rint(clipped * 32768), 32767).astype("<i2")
        if self._bare:
            self._target.write(clipped.tobytes())
        else:
            for start in range(0, len(clipped), _WRITE_BLOCK):
                self._file.write(clipped[start : start + _WRITE_BLOCK])
        return self._ready() if self._pieces else b""

    def finish(self) -> bytes:
        """The rest of the file."""
        if self._file is not None:
            self._file.close()
        return self._ready()

    def _ready(self) -> bytes:
        data = self._target.getvalue()[self._sent :]
        self._sent += len(data)
        return data


def _endless_wav(rate: int) -> bytes:
    """The head of a WAV file of unknown length, as players of streams know it.

    Source: Multimedia Programming Interface and Data Specifications 1.0.
    """
    unknown = 0xFFFFFFFF
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", unknown, b"WAVE")
        + fmt
        + struct.pack("<4sI", b"data", unknown)
    )


def _wrong(reason: str) -> ParameterError:
    return ParameterError(f"audio: {reason}", parameter="audio")
