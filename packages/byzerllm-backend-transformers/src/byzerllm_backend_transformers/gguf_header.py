"""How many weights a GGUF file has, by its header.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from byzerllm.errors import ModelSourceError

_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the metadata types that have a fixed length."""
_STRING, _ARRAY = 8, 9


def count_weights(file: Path) -> int:
    """Number of weights in all tensors.

    Raises:
        ModelSourceError: the header is damaged, or cut off.
    """
    try:
        with file.open("rb") as stream:
            return _count(stream)
    except (OSError, struct.error, KeyError, OverflowError) as error:
        raise ModelSourceError(
            f"{file} cannot be loaded: its header is damaged ({error}); is the file whole?"
        ) from None


def _count(stream: BinaryIO) -> int:
    stream.seek(8)
    tensors, pairs = _numbers(stream, "QQ")
    for _ in range(pairs):
        _skip_text(stream)
        (kind,) = _numbers(stream, "I")
        _skip_value(stream, kind)
    total = 0
    for _ in range(tensors):
        _skip_text(stream)
        (dimensions,) = _numbers(stream, "I")
        total += math.prod(_numbers(stream, f"{dimensions}Q"))
        stream.seek(12, 1)
    return total


def _skip_value(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _skip_text(stream)
    elif kind == _ARRAY:
        inner, length = _numbers(stream, "IQ")
        if inner in _FIXED:
            stream.seek(_FIXED[inner] * length, 1)
            return
        for _ in range(length):
            _skip_value(stream, inner)
    else:
        stream.seek(_FIXED[kind], 1)


def _skip_text(stream: BinaryIO) -> None:
    (length,) = _numbers(stream, "Q")
    stream.seek(length, 1)


def _numbers(stream: BinaryIO, layout: str) -> tuple[int, ...]:
    size = struct.calcsize(f"<{layout}")
    return struct.unpack(f"<{layout}", stream.read(size))
