"""Finds the GGUF file of a model path and checks it before llama.cpp loads it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is read by
ggml's own reader, which ships inside llama-cpp-python.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

from byzerllm.errors import ModelSourceError
from byzerllm_backend_llamacpp import log
from byzerllm_backend_llamacpp.native import llama_cpp

MAGIC = b"GGUF"
_PART = re.compile(r"^(?P<name>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)


def find_gguf(path: Path | None) -> Path:
    """The file to load: `path` itself, or the one GGUF in the folder `path`.

    Of a model that is split into parts it is the first part. Vision projectors (`mmproj*`) in a
    folder are passed over.

    Raises:
        ModelSourceError: nothing there, no GGUF, several, or a part that is not the first.
    """
    if path is None:
        raise ModelSourceError("the llama_cpp backend needs a model_path: a GGUF file")
    if not path.exists():
        raise ModelSourceError(f"model path {str(path)!r} does not exist on this node")
    file = _only_gguf(path) if path.is_dir() else path
    part = _PART.match(file.name)
    if part and int(part["part"]) != 1:
        first = f"{part['name']}-00001-of-{part['count']}.gguf"
        raise ModelSourceError(
            f"{str(file)!r} is part {int(part['part'])} of a split model; give its first part, "
            f"{first}"
        )
    return file


def _only_gguf(folder: Path) -> Path:
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() == ".gguf" and not entry.name.lower().startswith("mmproj")
    )
    heads = [file for file in files if not (m := _PART.match(file.name)) or int(m["part"]) == 1]
    if not files:
        raise ModelSourceError(
            f"folder {str(folder)!r} holds no .gguf file; the llama_cpp backend loads GGUF models, "
            "other formats are for the backends transformers and vllm"
        )
    if len(heads) != 1:
        names = ", ".join(file.name for file in heads or files)
        raise ModelSourceError(
            f"folder {str(folder)!r} holds several models ({names}); name the file in model_path"
        )
    return heads[0]


def check_gguf(file: Path) -> None:
    """Check that `file`, and every part of a split model, is a whole GGUF.

    Raises:
        ModelSourceError: not a GGUF, a damaged header, missing parts, or tensor data that ends
            before the header says so.
    """
    part = _PART.match(file.name)
    if part is None:
        _check_file(file)
        return
    count = int(part["count"])
    parts = [
        file.with_name(f"{part['name']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [one.name for one in parts if not one.exists()]
    if missing:
        raise ModelSourceError(
            f"{file.name!r} is split into {count} parts; missing in {str(file.parent)!r}: "
            f"{', '.join(missing)}"
        )
    for one in parts:
        _check_file(one)


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise ModelSourceError(f"{str(file)!r} is no file")
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise ModelSourceError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    if magic != MAGIC:
        raise ModelSourceError(
            f"{str(file)!r} is no GGUF file (it begins with {magic!r}, not {MAGIC!r}); convert the "
            "model with llama.cpp's convert_hf_to_gguf.py, or deploy it with another backend"
        )
    size = file.stat().st_size
    needed = _needed_size(file)
    if needed is None:
        reason = log.last_errors() or "ggml cannot read it"
        raise ModelSourceError(
            f"the header of {str(file)!r} is damaged or cut off ({size:,} bytes): {reason}; "
            "download the file again"
        )
    if size < needed:
        raise ModelSourceError(
            f"{str(file)!r} is truncated: its header announces {needed:,} bytes, the file has "
            f"{size:,}; download it again"
        )


class _InitParams(ctypes.Structure):
    """`struct gguf_init_params` of ggml's gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(llama_cpp.llama_cpp._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


_open = _function("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _InitParams)
_close = _function("gguf_free", None, ctypes.c_void_p)
_data_offset = _function("gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p)
_tensor_count = _function("gguf_get_n_tensors", ctypes.c_int64, ctypes.c_void_p)
_tensor_offset = _function(
    "gguf_get_tensor_offset", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64
)
_tensor_size = _function("gguf_get_tensor_size", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)


def _needed_size(file: Path) -> int | None:
    """Bytes that the file must have by its header; None when the header cannot be read."""
    log.forget_errors()
    header = _open(str(file).encode(), _InitParams(True, None))
    if not header:
        return None
    try:
        ends = (
            _tensor_offset(header, index) + _tensor_size(header, index)
            for index in range(_tensor_count(header))
        )
        return int(_data_offset(header)) + max(ends, default=0)
    finally:
        _close(header)
