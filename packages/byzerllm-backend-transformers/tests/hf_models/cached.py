"""Folders that take long to make are made once per user and machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, made by `make(folder)` where it is not there yet.

    It appears whole or not at all; two processes may make it at once. A new content needs a new
    name.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "byzerllm-tests"
    folder = root / name
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}-"))
    try:
        make(half)
        half.chmod(0o755)
        try:
            half.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder
