"""The command line against a cluster: every verb, and what bad input gets."""

from __future__ import annotations

import io
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from byzerllm import ByzerLLM
from byzerllm.runtime.deployment import DeploymentSpec

from .conftest import Outcome, clean_environment

if TYPE_CHECKING:
    from conftest import RayHead

Cli = Callable[..., Outcome]
pytestmark = pytest.mark.cluster
ECHO = "--infer_backend echo --cpus_per_worker 0.01"


@pytest.fixture(scope="module")
def echo(cluster: RayHead) -> Iterator[str]:
    """A deployed echo model, slow enough to see its chunks."""
    llm = ByzerLLM()
    before = [entry["model"] for entry in llm.models()]
    llm.deploy_spec(
        DeploymentSpec(
            model="cli_echo", backend="echo", cpus_per_worker=0.01, infer_params={"delay": 0.01}
        )
    )
    yield "cli_echo"
    llm.undeploy("cli_echo")
    assert [entry["model"] for entry in llm.models()] == before, "a test left a model behind"


@pytest.fixture
def cli(program: Cli, cluster: RayHead, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`cli("query --model m --query -", stdin="…", code=0)`, in this process's connection."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *, code: int = 0, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        done = program(*shlex.split(line), "--ray_address", cluster.address)
        assert done.code == code, done.err
        assert "Traceback" not in done.err
        return done

    return run


def own_process(head: RayHead, line: str, **environment: str) -> subprocess.Popen[str]:
    """A command line as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "byzerllm", *shlex.split(line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=clean_environment(BYZERLLM_RAY_ADDRESS=head.address, **environment),
    )


def finished(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def test_from_processes_of_their_own(ray_head: RayHead) -> None:
    line = f"deploy --model cli_own --num_workers 2 {ECHO} --infer_params delay=0.01 load_delay=1"
    deployed = finished(own_process(ray_head, line))
    assert deployed.code == 0, deployed.err
    assert "architectures" in deployed.out
    assert ": loading" in deployed.err
    assert "next: byzerllm query --model cli_own" in deployed.err
    asked = finished(own_process(ray_head, "query --model cli_own --query 'hello 你好'"))
    assert asked == Outcome(0, "hello 你好\n", "")
    undeployed = finished(own_process(ray_head, "undeploy --model cli_own"))
    assert undeployed == Outcome(0, "cli_own is undeployed\n", "")


def test_asking(cli: Cli, echo: str, tmp_path: Path) -> None:
    streamed = cli(f"query --model {echo} --query 'hello there' --stream -v")
    assert streamed.out == "hello there\n"
    assert "'input_tokens_count': 2" in streamed.err
    asked = cli(f"query --model {echo} --query - --max_length 2", stdin="one two three\n")
    assert asked.out == "one two\n"
    written = cli(f"query --model {echo} --query 'to disk' --output_file answer.txt")
    assert written.out == ""
    assert (tmp_path / "answer.txt").read_text() == "to disk"
    templated = cli(f"query --model {echo} --query hey --template qwen")
    # The template's stop string ends the echoed prompt.
    assert templated.out.startswith("<|im_start|>system\n")


def test_looking(cli: Cli, echo: str) -> None:
    cli(f"query --model {echo} --query hello")
    (model,) = (m for m in json.loads(cli("models --json").out) if m["model"] == echo)
    assert (model["state"], model["ready_workers"]) == ("ready", 1)
    assert echo in cli("models").out
    (stat,) = json.loads(cli(f"stat --model {echo} --json").out)
    assert stat["workers"][0]["done"] >= 1
    table = cli("stat").out
    assert "tokens/s" in table
    assert f"{echo} (echo)" in table
    assert stat["workers"][0]["id"] in table
    assert f"{echo}: ready" in cli(f"logs --model {echo} --lines 50").out


def test_replacing_and_scaling(cli: Cli) -> None:
    cli(f"deploy --model cli_two {ECHO}")
    taken = cli(f"deploy --model cli_two {ECHO}", code=1)
    assert "error: model 'cli_two' is deployed already" in taken.err
    cli(f"deploy --model cli_two {ECHO} --infer_params chunks=2 --replace")
    assert cli("query --model cli_two --query 'a b c'").out == "a b\n"
    assert cli("scale --model cli_two --num_workers 2").out == "cli_two: 2 worker(s)\n"
    (stat,) = json.loads(cli("stat --model cli_two --json").out)
    assert len(stat["workers"]) == 2
    cli("undeploy --model cli_two --force")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("query --model cli_nope --query x", "error: no model 'cli_nope'"),
        ("undeploy --model cli_nope", "error: no model 'cli_nope'"),
        ("scale --model cli_nope --num_workers 2", "error: no model 'cli_nope'"),
        ("stat --model cli_nope", "error: no model 'cli_nope'"),
        ("logs --model cli_nope", "error: no model 'cli_nope'"),
        ("chat --model cli_nope", "error: no model 'cli_nope'"),
        (f"deploy --model cli_x {ECHO} --gpus_per_worker 7", "error: 'cli_x' asks for"),
        (f"deploy --model cli_x {ECHO} --node 203.0.113.1", "error: 'cli_x' asks for"),
        (f"deploy --model cli_x {ECHO} --infer_params fail_load=boom", "RuntimeError: boom"),
    ],
)
def test_bad_input(line: str, message: str, cli: Cli) -> None:
    done = cli(line, code=1)
    assert message in done.err
    assert done.out == ""


def test_the_workers_traceback_is_for_debugging(cli: Cli) -> None:
    line = f"deploy --model cli_x {ECHO} --infer_params fail_load=boom"
    assert "the worker's traceback: run it again with --debug" in cli(line, code=1).err


def test_a_wrong_token(ray_head: RayHead) -> None:
    wrong = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "f" * 64}
    done = finished(own_process(ray_head, "models", **wrong))
    assert done.code == 1
    assert done.err.startswith("error: the Ray cluster at ")
    assert "token" in done.err
    assert "f" * 64 not in done.err
    assert done.err.count("\n") == 1


def test_a_ray_client(ray_head: RayHead, echo: str) -> None:
    line = f"query --model {echo} --query 'from afar' --stream"
    line += f" --ray_address {ray_head.client_address}"
    done = finished(own_process(ray_head, line))
    if "Initialization failure from server" in done.err:
        # Ray's proxy may lose the first server that it forks; the next client gets another one.
        done = finished(own_process(ray_head, line))
    assert done == Outcome(0, "from afar\n", "")


def test_a_conversation_from_a_pipe(cli: Cli, echo: str) -> None:
    done = cli(f"chat --model {echo}", stdin="hello there\n\nand again\n")
    assert done.out == "hello there\nand again\n"


def test_the_doctor_finds_the_cluster(cli: Cli, ray_head: RayHead) -> None:
    found = {f["subject"]: f for f in json.loads(cli("doctor --json").out)}
    cluster = found[f"cluster at {ray_head.address}"]
    assert cluster["verdict"] == "ok"
    assert "CPUs" in cluster["text"]
    assert found["Ray's token"]["text"] == "from RAY_AUTH_TOKEN_PATH"


UP = """\
version: 1
project: cli_demo
models:
  cli_a: {{infer_backend: echo, cpus_per_worker: 0.01, infer_params: {{chunks: "${{CHUNKS}}"}}}}
  cli_b: {{infer_backend: echo, cpus_per_worker: 0.01, num_workers: {workers}}}
"""


def plan(done: Outcome) -> list[tuple[str, str]]:
    lines = done.out.splitlines()
    table = lines[2 : len(lines) - sum(line.endswith(": done") for line in lines)]
    return [(line.split()[0], line.split()[1]) for line in table]


def test_up_and_down(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "byzerllm.yaml"
    file.write_text(UP.format(workers=1))
    monkeypatch.setenv("CHUNKS", "0")
    assert plan(cli("up --dry_run")) == [("add", "cli_a"), ("add", "cli_b")]
    assert "cli_a" not in cli("models --json").out
    cli("up")
    assert plan(cli("up")) == [("keep", "cli_a"), ("keep", "cli_b")]
    file.write_text(UP.format(workers=2))
    monkeypatch.setenv("CHUNKS", "1")
    assert plan(cli("up")) == [("scale", "cli_b"), ("change", "cli_a")]
    assert cli("query --model cli_a --query 'x y'").out == "x\n"

    file.write_text(UP.format(workers=2).rpartition("  cli_b")[0])
    refused = cli("up", code=1)
    assert "Remove or take over cli_b? Nobody can be asked here; pass --yes" in refused.err
    assert plan(cli("up --yes")) == [("remove", "cli_b"), ("keep", "cli_a")]
    assert cli("down").out == "cli_a is undeployed\n"
    assert "has no models on this cluster" in cli("down").err


def test_one_model_of_a_file_fails(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = UP.format(workers=1).replace("num_workers: 1", "infer_params: {fail_load: boom}")
    (tmp_path / "byzerllm.yaml").write_text(text)
    monkeypatch.setenv("CHUNKS", "0")
    done = cli("up", code=1)
    assert "RuntimeError: boom" in done.err
    assert "failed: cli_b" in done.err
    assert cli("down").out == "cli_a is undeployed\n"


def test_a_model_that_others_made_is_not_taken(
    cli: Cli, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHUNKS", "0")
    (tmp_path / "byzerllm.yaml").write_text(UP.format(workers=1).replace("cli_a", echo))
    refused = cli("up", code=1)
    assert f"Remove or take over {echo}? Nobody can be asked here" in refused.err
    assert "cli_b" not in cli("models --json").out, "nothing is done before the answer"


def test_ctrl_c_while_deploying_leaves_nothing(ray_head: RayHead, cli: Cli) -> None:
    line = f"deploy --model cli_slow {ECHO} --infer_params load_delay=60"
    process = own_process(ray_head, line)
    assert process.stderr is not None
    while "loading" not in (seen := process.stderr.readline()):
        assert seen, "it ended before it was interrupted"
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.code == 130
    assert done.err.strip() == ""
    end = time.monotonic() + 20
    while "cli_slow" in cli("models --json").out and time.monotonic() < end:
        time.sleep(0.2)
    assert "cli_slow" not in cli("models --json").out


def test_following_ends_with_ctrl_c(ray_head: RayHead, echo: str) -> None:
    running: list[Any] = [
        own_process(ray_head, f"logs --model {echo} -f"),
        own_process(ray_head, f"stat --model {echo} --interval 0.2 --json"),
    ]
    for process in running:
        assert process.stdout.readline()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        done = finished(process)
        assert done.code == 130, done.err
        assert done.err.strip() == ""


def test_ctrl_c_stops_the_model_too(ray_head: RayHead, cli: Cli, echo: str) -> None:
    text = "word " * 20_000
    process: Any = own_process(ray_head, f"query --model {echo} --query '{text}' --stream")
    assert process.stdout.read(4) == "word"
    process.send_signal(signal.SIGINT)
    assert finished(process).code == 130
    end = time.monotonic() + 10
    while (busy := _running(cli, echo)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not busy


def _running(cli: Cli, model: str) -> int:
    (stat,) = json.loads(cli(f"stat --model {model} --json").out)
    return sum(worker["running"] for worker in stat["workers"])
