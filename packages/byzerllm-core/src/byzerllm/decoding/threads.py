"""How many CPU threads an engine takes."""

from __future__ import annotations

import os

import psutil


def thread_count(cpus: float) -> int:
    """Threads for a worker that reserved `cpus`: those, or all cores when it reserved one or less.

    One CPU or a fraction is what deployments reserve when nobody thought of it.
    """
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    else:
        usable = os.cpu_count() or 1
    cores = min(usable, psutil.cpu_count(logical=False) or usable)
    return max(1, min(int(cpus), usable) if cpus >= 2 else cores)
