"""llama.cpp's log: kept quiet unless a model was deployed with `verbose`, its last errors at hand.

llama.cpp has one log per process, so one verbose model makes the whole process talk.
"""

from __future__ import annotations

import collections
import ctypes
import sys

from byzerllm_backend_llamacpp.native import llama_cpp

# ggml_log_level: none, debug, info, warn, error, cont (goes on with the line before).
_WARN, _ERROR, _CONT = 3, 4, 5
_KEPT_LINES = 12

_errors: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
_verbose = False
_last_level = 0


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _receive(level: int, text: bytes | None, _user_data: ctypes.c_void_p) -> None:
    global _last_level
    message = (text or b"").decode("utf-8", "replace")
    if _verbose:
        print(message, end="", file=sys.stderr, flush=True)
    level = _last_level if level == _CONT else level
    _last_level = level
    if level == _ERROR and message.strip():
        _errors.append(message.strip())


def install(*, verbose: bool) -> None:
    """Take over llama.cpp's log; `verbose` shows it on stderr from now on."""
    global _verbose
    _verbose = _verbose or verbose
    llama_cpp.llama_log_set(_receive, ctypes.c_void_p(0))


def forget_errors() -> None:
    """Start collecting anew, before a call whose errors are of interest."""
    _errors.clear()


def last_errors() -> str:
    """llama.cpp's error lines since `forget_errors`, as one sentence part, or ''."""
    return "; ".join(dict.fromkeys(_errors))
