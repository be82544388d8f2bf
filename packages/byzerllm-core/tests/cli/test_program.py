"""What users see: help, exit codes, errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import byzerllm
from byzerllm.cli.app import sections

Run = Callable[..., CompletedProcess[str]]
VERBS = [entry.name for entries in sections().values() for entry in entries]
HEAVY = ("ray", "torch", "numpy", "llama_cpp", "prompt_toolkit", "openai")


def test_help_lists_every_verb(byzerllm_command: Run) -> None:
    done = byzerllm_command("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in VERBS:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb: str, program: Callable[..., Any]) -> None:
    done = program(verb, "--help")
    assert done.code == 0
    assert done.err == ""
    assert f"Usage: byzerllm {verb}" in done.out
    examples = done.out.partition("Examples")[2]
    assert f"byzerllm {verb}" in examples


@pytest.mark.parametrize("arguments", [["--help"], ["deploy", "--help"], ["plugins"]])
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from byzerllm.cli.program import run\n"
        f"assert run({arguments!r}) == 0\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_verb_imports_only_itself() -> None:
    code = (
        "import sys\n"
        "from byzerllm.cli.program import run\n"
        "run(['models', '--help'])\n"
        "loaded = [m for m in sys.modules if m in ('byzerllm.cli.deploy', 'byzerllm.cli.chat')]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_version(byzerllm_command: Run) -> None:
    assert byzerllm_command("--version").stdout == f"byzerllm {byzerllm.__version__}\n"


def test_without_a_verb_the_help_is_shown(byzerllm_command: Run) -> None:
    done = byzerllm_command()
    assert done.returncode == 2
    assert "deploy" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["deplyo"], 2, "error: no command 'deplyo' (did you mean 'deploy'?)"),
        (["deploy"], 2, "error: --model is missing"),
        (["deploy", "--modle", "x"], 2, "error: no option --modle (did you mean '--model'?)"),
        (["deploy", "--model"], 2, "error: --model needs a value"),
        (["deploy", "--replace=1", "--model", "x"], 2, "error: --replace takes no value"),
        (["scale", "--model=x", "--num_workers=0"], 2, "error: --num_workers: takes at least 1"),
        (["models", "--ray_address", "local"], 2, "error: --ray_address: a local cluster ends"),
        (["stat", "--interval", "0"], 2, "error: --interval: takes at least 0.1, got 0"),
        (
            ["query", "--model", "x", "--query", "y", "--template", "qwne"],
            2,
            "error: --template: 'qwne' is none (did you mean 'qwen'?)",
        ),
        (
            ["deploy", "--model", "x", "--infer_backend", "ehco"],
            1,
            "error: unknown parameter 'ehco' for a backend (did you mean 'echo'?)",
        ),
        (
            ["deploy", "--model", "x", "--infer_backend", "echo", "--infer_params", "dealy=1"],
            1,
            "error: unknown parameter 'dealy' for backend 'echo' (did you mean 'delay'?)",
        ),
        (["deploy", "--model", "a b", "--infer_backend", "echo"], 1, "error: parameter 'model'"),
        (
            ["deploy", "--model", "x", "--infer_backend", "echo", "--num_workers", "0"],
            1,
            "error: parameter 'num_workers' for deploy: at least 1",
        ),
        (["models", "--ray_address", "nonsense"], 1, "error: address 'nonsense' is none"),
        (["query", "--model", "x", "--query", "-"], 1, "error: the question is empty"),
        (["plugins", "--traceback", "ehco"], 1, "error: no plugin 'ehco' (did you mean 'echo'?)"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_a_code(
    arguments: list[str],
    code: int,
    message: str,
    program: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = program(*arguments)
    assert done.code == code
    assert done.err.startswith(message)
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_cluster_that_is_not_there(byzerllm_command: Run) -> None:
    done = byzerllm_command("models", "--ray_address", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Ray cluster answers at 127.0.0.1:1")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_debug_shows_the_traceback(byzerllm_command: Run) -> None:
    arguments = ["models", "--ray_address", "nonsense"]
    assert "Traceback" in byzerllm_command(*arguments, "--debug").stderr
    assert "Traceback" in byzerllm_command(*arguments, BYZERLLM_DEBUG="1").stderr
    assert "Traceback" not in byzerllm_command(*arguments, BYZERLLM_DEBUG="0").stderr


def test_secrets_stay_out_of_errors(byzerllm_command: Run) -> None:
    done = byzerllm_command(
        "deploy", "--model", "x", "--infer_backend", "echo",
        "--infer_params", "saas.api_key=${KEY}", KEY="s3cret-value",
    )  # fmt: skip
    assert done.returncode == 1
    assert "s3cret" not in done.stderr


def test_a_missing_variable_is_a_usage_error(byzerllm_command: Run) -> None:
    done = byzerllm_command("deploy", "--model", "x", "--infer_params", "saas.api_key=${NOPE}")
    assert done.returncode == 2
    assert "--infer_params saas.api_key: the environment variable NOPE is not set" in done.stderr


def test_an_unforeseen_error_is_called_a_bug() -> None:
    code = (
        "import byzerllm.cli.plugins_list as module\n"
        "module.command.callback = lambda **given: 1 / 0\n"
        "from byzerllm.cli.program import run\n"
        "raise SystemExit(run(['plugins']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this is a bug in byzerllm: ZeroDivisionError: division by zero" in done.stderr
    assert "--debug" in done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "byzerllm", "completion", "bash"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 141


def waiting(code: str) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


CTRL_C = """
import time
import byzerllm.cli.plugins_list as module
def slow(**given):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("tidying", flush=True)
        time.sleep({tidying})
        print("tidy", flush=True)
module.command.callback = slow
from byzerllm.cli.program import run
raise SystemExit(run(["plugins"]))
"""


def test_ctrl_c_lets_the_program_tidy_up() -> None:
    process = waiting(CTRL_C.format(tidying=0.1))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == "tidying\ntidy\n"
    assert "Traceback" not in err


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = waiting(CTRL_C.format(tidying=60))
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "tidying\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (out, err) == ("", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, byzerllm_command: Run) -> None:
    done = byzerllm_command("completion", shell)
    assert done.returncode == 0
    assert done.stdout.startswith("# To have it in every shell:")
    assert "_BYZERLLM_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("byzerllm und", {"undeploy"}),
        ("byzerllm deploy --infer_backend ec", {"echo"}),
        ("byzerllm deploy --load_balance_way l", {"lru", "least_busy"}),
        ("byzerllm query --template au", {"auto"}),
        ("byzerllm completion b", {"bash"}),
        ("byzerllm scale --num", {"--num_workers"}),
    ],
)
def test_completions(words: str, expected: set[str], byzerllm_command: Run) -> None:
    parts = words.split()
    done = byzerllm_command(
        _BYZERLLM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(parts) - 1)
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


def test_python_dash_m_and_the_script_are_the_same(byzerllm_command: Run) -> None:
    script = Path(sys.executable).with_name("byzerllm")
    done: Any = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == byzerllm_command("--version").stdout
