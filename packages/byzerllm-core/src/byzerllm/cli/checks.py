"""What `byzerllm doctor` looks at. Each check is a function that returns findings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import byzerllm
from byzerllm.cli.i18n import _
from byzerllm.cli.render import size

Verdict = Literal["ok", "warn", "fail"]
OLDEST_PYTHON = (3, 11)
OLDEST_RAY = (2, 54)
GIB = 1024**3
LOW_MEMORY = 2 * GIB
LOW_SHM = GIB
LOW_DISK = 10 * GIB
NO_DISK = GIB
_UPSTREAM = "byzerllm"
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        text: what was found.
        todo: what to do about it; empty when nothing is needed.
    """

    verdict: Verdict
    subject: str
    text: str
    todo: str = ""


def check_python() -> list[Finding]:
    """The interpreter that runs this."""
    text = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("fail", "Python", text, _("install Python 3.11 or newer"))]
    return [Finding("ok", "Python", text)]


def check_packages() -> list[Finding]:
    """Core and its siblings have one version; upstream's package is not in the way."""
    found = []
    versions = _our_versions()
    for name, version in sorted(versions.items()):
        if version == byzerllm.__version__:
            found.append(Finding("ok", name, version))
        else:
            todo = f"pip install '{name}=={byzerllm.__version__}'"
            text = _("{version}, but byzerllm-core is {core}; versions move together").format(
                version=version, core=byzerllm.__version__
            )
            found.append(Finding("fail", name, text, todo))
    if "byzerllm-core" not in versions:
        text = _("runs from source, not installed; no plugin is found")
        todo = "pip install byzerllm-core"
        found.append(Finding("fail", "byzerllm-core", text, todo))
    return found + _check_upstream()


def _our_versions() -> dict[str, str]:
    names = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {n: v for n, v in names.items() if n.lower().replace("_", "-").startswith("byzerllm-")}


def _check_upstream() -> list[Finding]:
    try:
        version = importlib.metadata.version(_UPSTREAM)
    except importlib.metadata.PackageNotFoundError:
        return []
    text = _(
        "the original project's package {version} is installed too; it owns the same import name, "
        "so that files of both lie in one folder"
    ).format(version=version)
    todo = "pip uninstall byzerllm && pip install --force-reinstall --no-deps byzerllm-core"
    return [Finding("fail", "byzerllm", text, todo)]


def check_ray() -> list[Finding]:
    """Ray is there, new enough, and complete."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        todo = "pip install 'ray[client]>=2.54'"
        return [Finding("fail", "Ray", _("is not installed"), todo)]
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST_RAY:
        todo = "pip install 'ray[client]>=2.54'"
        return [Finding("fail", "Ray", _("{version} is too old").format(version=version), todo)]
    if importlib.util.find_spec("grpc") is None:
        text = _("{version}, but ray:// addresses need grpcio").format(version=version)
        return [Finding("warn", "Ray", text, "pip install 'ray[client]'")]
    return [Finding("ok", "Ray", version)]


def check_token() -> list[Finding]:
    """Where Ray's token comes from; never what it is."""
    from byzerllm.runtime.cluster import token_source

    mode = os.environ.get("RAY_AUTH_MODE", "")
    source = token_source()
    subject = _("Ray's token")
    if mode not in ("", "token", "disabled"):
        text = _("RAY_AUTH_MODE={mode!r} is none; allowed: token, disabled").format(mode=mode)
        return [Finding("fail", subject, text, "export RAY_AUTH_MODE=token")]
    if mode == "disabled":
        text = _("RAY_AUTH_MODE is disabled: whoever reaches the cluster can use it")
        return [Finding("warn", subject, text, "export RAY_AUTH_MODE=token")]
    if source:
        return [Finding("ok", subject, _("from {source}").format(source=source))]
    todo = _("copy the head's token (`ray get-auth-token` there) into ~/.ray/auth_token")
    if mode == "token":
        return [Finding("fail", subject, _("is wanted by RAY_AUTH_MODE and missing"), todo)]
    text = _("none on this machine; a cluster that wants one refuses this machine")
    return [Finding("warn", subject, text, todo)]


def check_gpus() -> list[Finding]:
    """NVIDIA's cards by the driver's own tool."""
    if shutil.which(_NVIDIA_SMI[0]) is None:
        text = _("none; small and hosted models do without")
        return [Finding("ok", "GPU", text)]
    try:
        told = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [_broken_driver(str(error))]
    if told.returncode:
        lines = (told.stdout + told.stderr).strip().splitlines()
        return [_broken_driver(lines[0] if lines else f"{told.returncode}")]
    return [Finding("ok", "GPU", line) for line in told.stdout.strip().splitlines()]


def _broken_driver(reason: str) -> Finding:
    text = _("nvidia-smi fails: {reason}").format(reason=reason)
    return Finding("fail", "GPU", text, _("repair or reinstall the NVIDIA driver"))


def check_plugins() -> list[Finding]:
    """Each entry point loads."""
    from byzerllm.plugins import get_plugins

    records = get_plugins().records
    found = [
        Finding(
            "fail",
            _("plugin {name}").format(name=record.name),
            record.error,
            f"byzerllm plugins --traceback {record.name}",
        )
        for record in records
        if record.state == "broken"
    ]
    works = [record.name for record in records if record.state == "ok"]
    return [Finding("ok", _("plugins"), ", ".join(works) or "–"), *found]


def check_room() -> list[Finding]:
    """Memory, shared memory and disk that are free."""
    import psutil

    found = [
        _room(
            _("free memory"),
            psutil.virtual_memory().available,
            LOW_MEMORY,
            _("stop other programs, or choose a smaller model"),
        )
    ]
    shm = Path("/dev/shm")
    if shm.is_dir():
        todo = _("in a container: run it with --shm-size=4g; Ray's objects go to disk otherwise")
        found.append(_room(_("shared memory"), psutil.disk_usage(str(shm)).free, LOW_SHM, todo))
    home = psutil.disk_usage(str(Path.home()))
    todo = _("make room; models are large, and Ray refuses work on a full disk")
    disk = _room(_("free disk"), home.free, LOW_DISK, todo)
    if home.free < NO_DISK:
        disk = Finding("fail", disk.subject, disk.text, todo)
    return [*found, disk]


def _room(subject: str, free: float, low: float, todo: str) -> Finding:
    if free < low:
        return Finding("warn", subject, size(free), todo)
    return Finding("ok", subject, size(free))


def check_cluster(address: str) -> list[Finding]:
    """Whether a cluster answers, and what it has."""
    from byzerllm.cli.session import join
    from byzerllm.errors import ByzerLLMError, ClusterNotFoundError

    subject = _("cluster at {address}").format(address=address)
    try:
        join(address)
        import ray

        has = ray.cluster_resources()
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except ClusterNotFoundError as error:
        if address != "auto" or os.environ.get("RAY_ADDRESS"):
            return [Finding("fail", subject, error.message)]
        todo = _("ray start --head, or let `byzerllm deploy` start one")
        return [Finding("warn", subject, _("none runs on this machine"), todo)]
    except ByzerLLMError as error:
        return [Finding("fail", subject, error.message)]
    text = _("{nodes} nodes, {cpus:g} CPUs, {gpus:g} GPUs").format(
        nodes=len(nodes), cpus=has.get("CPU", 0), gpus=has.get("GPU", 0)
    )
    return [Finding("ok", subject, text)]


LOCAL_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_ray,
    check_token,
    check_gpus,
    check_plugins,
    check_room,
)
