"""Both README files: the two commands, the same in two languages, the tour as it stands there."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
SETUP = "python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s"
BLOCK = re.compile(r"^```(\S[^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def headings(text: str) -> list[int]:
    """The levels of all headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE)]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", text))


@pytest.mark.parametrize("session", ["quickstart", "tests"])
def test_command_is_one_line_of_its_own(session: str) -> None:
    assert ENGLISH.count(f"```bash\n{SETUP} {session}\n```") == 1


def test_ci_runs_the_second_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == f"{SETUP} tests"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_runs_from_any_folder(tmp_path: Path) -> None:
    clone, elsewhere, binaries = tmp_path / "clone", tmp_path / "elsewhere", tmp_path / "bin"
    for folder in (clone / ".ci", elsewhere, binaries):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", clone / ".ci" / "run")
    tool = '#!/bin/sh\necho "$PWD $0 $*" >> "$LOG"\n'
    python = (
        f"{tool}mkdir -p .venv/bin\nfor t in pip nox; do cp {binaries}/tool .venv/bin/$t; done\n"
    )
    for name, text in (("tool", tool), ("python3", python)):
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    log = tmp_path / "log"
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LOG": str(log), "CI": "true"}
    subprocess.run([clone / ".ci" / "run"], cwd=elsewhere, env=environment, check=True, timeout=60)
    assert log.read_text().splitlines() == [
        f"{clone} {binaries}/python3 -m venv .venv",
        f"{clone} .venv/bin/pip install nox",
        f"{clone} .venv/bin/nox -s tests",
    ]


def test_sessions_are_those_that_are_described() -> None:
    functions = [
        node
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {function.name for function in functions} == set(table)
    assert all(ast.get_docstring(function) for function in functions)


def test_both_languages_have_the_same_structure() -> None:
    assert headings(ENGLISH) == headings(CHINESE)
    assert BLOCK.findall(ENGLISH) == BLOCK.findall(CHINESE)


def test_both_languages_link_to_the_same_pages() -> None:
    assert links(ENGLISH)[0] == "README.zh-CN.md"
    assert links(CHINESE)[0] == "README.md"
    # Screenshots are of the page in the reader's language.
    chinese = [link.replace("-zh-", "-en-") for link in links(CHINESE)]
    assert links(ENGLISH)[1:] == chinese[1:]
    assert ENGLISH.count("\n|") == CHINESE.count("\n|")


@pytest.mark.cluster
@pytest.mark.model
def test_tour_on_the_command_line(ray_head: Any, tmp_path: Path) -> None:
    """The tour's commands, less `ray start`: the head of the tests stands in its place."""
    (tour,) = (code for info, code in BLOCK.findall(ENGLISH) if "ray start --head\n" in code)
    script = tour.replace("ray start --head\n", "")
    assert script.count("byzerllm ") == 4
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "RAY_ADDRESS": ray_head.address},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Paris" in done.stdout
