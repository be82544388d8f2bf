"""Runs the command line as users do: in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from byzerllm.cli import i18n
from byzerllm.cli.program import run as run_program

Run = Callable[..., subprocess.CompletedProcess[str]]
SECONDS = 120


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what changes the command line's behaviour."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYZERLLM_", "LC_"))}
    return {**kept, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **extra}


@pytest.fixture
def byzerllm_command(tmp_path: Path) -> Run:
    """`byzerllm_command("plugins", stdin="…", BYZERLLM_LANG="zh")`, in an empty folder."""

    def run(
        *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "byzerllm", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=clean_environment(**environment),
            cwd=tmp_path,
            timeout=SECONDS,
            check=False,
        )

    return run


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ:
        if name.startswith(("BYZERLLM_", "LC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "C.UTF-8")
    i18n.language.cache_clear()
    yield
    i18n.language.cache_clear()


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """`program("plugins", "--json")` in this process, for what needs no process of its own."""
    before = signal.getsignal(signal.SIGINT)
    levels = {name: logging.getLogger(name).level for name in ("byzerllm", "asyncio")}

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run_program(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGINT, before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
