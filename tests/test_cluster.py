"""Joining clusters: addresses, Ray's token, Ray Client, two nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import byzerllm

pytestmark = pytest.mark.cluster
MODEL = "cluster-echo"

CONNECT = """
import sys, byzerllm
from byzerllm.errors import ByzerLLMError
try:
    byzerllm.connect_cluster(sys.argv[1], log_to_driver=False)
except ByzerLLMError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("connected")
"""

CLIENT = """
import asyncio, sys, byzerllm
byzerllm.connect_cluster(sys.argv[1])
llm = byzerllm.ByzerLLM().setup_default_model_name(sys.argv[2])
print(llm.chat_oai("one two")[0].output)
print("|".join(item[0] for item in llm.stream_chat_oai("three four", delta_mode=True)))

async def many():
    answers = await asyncio.gather(*(llm.async_chat_oai(f"n {i}") for i in range(40)))
    return sum(a[0].output == f"n {i}" for i, a in enumerate(answers))

print(asyncio.run(many()))
llm.setup_cpus_per_worker(0.1).setup_infer_backend("echo").deploy(udf_name="client-made")
print(llm.chat_oai("five", model="client-made")[0].output)
llm.undeploy("client-made")
print(llm.is_model_exist("client-made"), llm.is_model_exist(sys.argv[2]))
"""

HAND_MADE = """
import sys, ray
ray.init(address=sys.argv[1], namespace="default", ignore_reinit_error=True, log_to_driver=False)
from byzerllm.utils.client import ByzerLLM
question = [{"role": "user", "content": "hi"}]
print(ByzerLLM().chat_oai(model=sys.argv[2], conversations=question)[0].output)
"""


def run(
    code: str, *args: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=os.environ | (environ or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def model(cluster: object):  # type: ignore[no-untyped-def]
    llm = byzerllm.ByzerLLM().setup_cpus_per_worker(0.1).setup_infer_backend("echo")
    llm.deploy(udf_name=MODEL)
    yield
    llm.undeploy(MODEL)


def test_second_process_with_the_token(cluster) -> None:  # type: ignore[no-untyped-def]
    assert run(CONNECT, cluster.address).stdout.strip() == "connected"


@pytest.mark.parametrize("form", ["address", "client_address"])
def test_wrong_and_missing_token(cluster, form: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    address = getattr(cluster, form)
    refused = run(CONNECT, address, environ={"RAY_AUTH_TOKEN_PATH": str(wrong)})
    assert refused.returncode == 1
    assert "ClusterAuthenticationError" in refused.stderr
    assert "ray get-auth-token" in refused.stderr
    assert "0" * 64 not in refused.stderr + refused.stdout
    home = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": ""}
    missing = run(CONNECT, address, environ=home)
    assert "ClusterAuthenticationError" in missing.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "http://x:1"])
def test_wrong_address(address: str) -> None:
    done = run(CONNECT, address)
    assert done.returncode == 1
    expected = "ClusterNotFoundError" if "127" in address else "ParameterError"
    assert expected in done.stderr


def test_auto_never_starts_a_cluster(tmp_path: Path) -> None:
    done = run(CONNECT, "auto", environ={"RAY_ADDRESS": "127.0.0.1:1", "RAY_TMPDIR": str(tmp_path)})
    assert done.returncode == 1
    assert "ClusterNotFoundError" in done.stderr


def test_ray_client(cluster) -> None:  # type: ignore[no-untyped-def]
    done = run(CLIENT, cluster.client_address, MODEL)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = ["one two", "three| four|", "40", "five", "False True"]
    assert done.stdout.splitlines()[-5:] == answers


def test_hand_made_ray_init(cluster) -> None:  # type: ignore[no-untyped-def]
    done = run(HAND_MADE, cluster.address, MODEL)
    assert done.stdout.strip() == "hi", done.stderr[-2000:]


def test_not_connected() -> None:
    done = run("import byzerllm; byzerllm.ByzerLLM().models()")
    assert "ClusterNotFoundError: this process is not connected to Ray" in done.stderr


def test_two_nodes() -> None:
    script = Path(__file__).with_name("two_nodes.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "calls went on" in done.stdout
