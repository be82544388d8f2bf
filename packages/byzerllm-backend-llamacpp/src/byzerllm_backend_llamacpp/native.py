"""The one place that imports llama-cpp-python, with OpenMP told how to wait.

llama.cpp's threads meet some hundred times per token. libgomp lets them spin for milliseconds at
each meeting, which is as good as a short spin while the cores are free, and many times slower as
soon as other processes want them: a spinning thread holds the core that the late one waits for.
libgomp reads the variable when it is loaded; what the environment says already is left alone.
"""

from __future__ import annotations

import os

_SPINS = "2000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

import llama_cpp  # noqa: E402

__all__ = ["llama_cpp"]
