"""Everything that one does with this repository, one session each: `nox -l` lists them.

Each session has an environment of its own under .nox/, kept between runs. What follows `--` is
passed on: `nox -s tests -- packages/byzerllm-core -k balancer`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.options.sessions = ["tests"]
nox.options.reuse_venv = "yes"

CORE = "packages/byzerllm-core"
LLAMACPP = "packages/byzerllm-backend-llamacpp"
SAAS = "packages/byzerllm-saas"
TRANSFORMERS = "packages/byzerllm-backend-transformers"
SERVER = "packages/byzerllm-server"
MEMBERS = [CORE, LLAMACPP, TRANSFORMERS, SAAS, SERVER]
TESTED_TOGETHER = ("-c", "constraints/tests.txt")
GROUPS = nox.project.load_toml("pyproject.toml")
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0"}
TEST_ENV = {
    **QUIET_RAY,
    # Two OpenMP threads beside Ray's processes are erratic: stalls of half a minute were seen.
    "OMP_NUM_THREADS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def _interpreter() -> str | None:
    """nox's own Python where it is new enough, else the newest that is (Ubuntu 22.04)."""
    if sys.version_info >= (3, 11):  # noqa: UP036 - nox itself may run on an older one
        return None
    newer = (f"python3.{minor}" for minor in range(13, 10, -1))
    return next((name for name in newer if shutil.which(name)), "python3.11")


PYTHON = _interpreter()


def _group(name: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(GROUPS, name)


def _has_llama_cpp(session: nox.Session) -> bool:
    return any(Path(session.virtualenv.location).glob("lib/python*/site-packages/llama_cpp"))


def _install_all(session: nox.Session, extras: str, *more: str) -> None:
    """All packages, editable, in one pip command."""
    if not _has_llama_cpp(session):
        session.log(
            "llama.cpp is compiled from source now, unless pip has it in its cache: 5 to 10 "
            "minutes on two cores, once per machine. pip says 'still running...' meanwhile."
        )
    ours = ("-e", f"{CORE}[{extras}]", "-e", LLAMACPP, "-e", f"{SAAS}[all]")
    ours += ("-e", f"{TRANSFORMERS}[diffusion,gguf,quantization]")
    ours += ("-e", f"{SERVER}[otel,postgres,ray-serve]")
    session.install(*TESTED_TOGETHER, *ours, *more, silent=False)


def _chromium(session: nox.Session) -> None:
    """The browser that the tests of the page drive, where it can be had: they skip without it."""
    if shutil.which("chromium") or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    install = "apt-get update -q && apt-get install -y -q --no-install-recommends chromium"
    session.run("sh", "-c", f"timeout 300 sh -c '{install}' || echo 'no chromium'",
                external=True, silent=True, env={"DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip


def _install_for_tests(session: nox.Session) -> None:
    _install_all(session, "demo,hf,modelscope", *_group("test"))
    session.install("--no-deps", "-r", "constraints/clients.txt")


@nox.session(python=PYTHON)
def quickstart(session: nox.Session) -> None:
    """Deploy a small real model on a local Ray, ask it, take it off again."""
    _install_all(session, "demo")
    session.run("byzerllm", "quickstart", *session.posargs, env=QUIET_RAY)


@nox.session(python=PYTHON)
def tests(session: nox.Session) -> None:
    """All tests of all packages."""
    _chromium(session)
    _install_for_tests(session)
    session.run("pytest", *session.posargs, env=TEST_ENV)


@nox.session(python=PYTHON)
def soak(session: nox.Session) -> None:
    """The tests that repeat faults and load, at full count."""
    _install_for_tests(session)
    session.run("pytest", "-m", "soak", *session.posargs, env={**TEST_ENV, "BYZERLLM_SOAK": "1"})


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    session.install(*TESTED_TOGETHER, *_group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """mypy --strict over all packages. Needs no llama.cpp."""
    members = ("-e", CORE, "-e", SAAS, "-e", f"{SERVER}[otel,postgres,ray-serve]")
    session.install(*TESTED_TOGETHER, *members, *_group("types"), silent=False)
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """The benchmarks, one after the other; arguments go to the one that is named first."""
    _install_all(session, "demo", *_group("bench"))
    chosen, *arguments = session.posargs or [""]
    scripts = sorted(path for path in Path("benchmarks").glob("*.py") if chosen in path.stem)
    if not scripts:
        session.error(f"no benchmark is named {chosen!r}; see benchmarks/")
    for script in scripts:
        session.log(f"{script} {' '.join(arguments)}")
        session.run("python", str(script), *arguments, env=TEST_ENV)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """What the documents say: names, links, examples, both README."""
    _install_all(session, "demo", *_group("test"))
    session.run("pytest", "tests/test_docs.py", "tests/test_readme.py", *session.posargs,
                env=TEST_ENV)  # fmt: skip


@nox.session(python=PYTHON)
def build(session: nox.Session) -> None:
    """Source distributions and wheels of all packages, into dist/."""
    session.install(*TESTED_TOGETHER, *_group("build"))
    for member in MEMBERS:
        session.run("python", "-m", "build", "--outdir", "dist", member, *session.posargs)
