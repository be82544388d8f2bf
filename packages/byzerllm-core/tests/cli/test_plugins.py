"""Packages of others, as pip leaves them: found, shown, and harmless when broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]


def install(folder: Path, name: str, source: str, version: str = "1.2") -> None:
    """What pip leaves of a package `acme-<name>` with one module and one entry point."""
    (folder / f"acme_{name}.py").write_text(source)
    info = folder / f"acme_{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(f"[byzerllm]\n{name} = acme_{name}\n")


GREET = """
import click
from byzerllm import hookimpl

@hookimpl
def register_commands(cli):
    @cli.command("greet", help="Say hello.")
    @click.option("--your_name", default="you")
    def greet(your_name):
        click.echo(f"hello {your_name}")
"""
RUDE = """
from byzerllm import hookimpl

@hookimpl
def register_commands(cli):
    raise RuntimeError("not today")
"""
THIEF = """
from byzerllm import hookimpl

@hookimpl
def register_commands(cli):
    @cli.command("deploy")
    def deploy():
        print("stolen")
"""
BROKEN = "import a_module_that_is_not_there\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def test_a_plugins_command_is_a_verb(site: Path, byzerllm_command: Run) -> None:
    install(site, "greet", GREET)
    assert "Say hello." in byzerllm_command("--help", PYTHONPATH=str(site)).stdout
    done = byzerllm_command("greet", "--your-name", "Ada", PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, "hello Ada\n")


def test_plugins_are_listed(site: Path, byzerllm_command: Run) -> None:
    install(site, "greet", GREET)
    done = byzerllm_command("plugins", "--json", PYTHONPATH=str(site))
    records = {record["name"]: record for record in json.loads(done.stdout)}
    assert records["greet"]["distribution"] == "acme-greet"
    assert records["greet"]["version"] == "1.2"
    assert records["greet"]["hooks"] == ["register_commands"]
    assert records["greet"]["state"] == "ok"
    assert records["echo"]["distribution"] == "byzerllm-core"


def test_a_broken_plugin_is_shown_and_harms_nothing(site: Path, byzerllm_command: Run) -> None:
    install(site, "bad", BROKEN)
    install(site, "greet", GREET)
    table = byzerllm_command("plugins", PYTHONPATH=str(site))
    assert table.returncode == 0
    line = next(line for line in table.stdout.splitlines() if line.startswith("bad "))
    assert "broken" in line
    assert "bad: ModuleNotFoundError: No module named 'a_module_that_is_not_there'" in table.stderr
    shown = byzerllm_command("plugins", "--traceback", "bad", PYTHONPATH=str(site))
    assert "Traceback (most recent call last)" in shown.stdout
    assert byzerllm_command("greet", PYTHONPATH=str(site)).stdout == "hello you\n"


def test_a_plugin_that_fails_to_add_commands(site: Path, byzerllm_command: Run) -> None:
    install(site, "greet", GREET)
    install(site, "rude", RUDE)
    done = byzerllm_command("--help", PYTHONPATH=str(site))
    assert done.returncode == 0
    assert "greet" in done.stdout
    assert "plugin 'rude' could not add its commands" in done.stderr
    records = json.loads(byzerllm_command("plugins", "--json", PYTHONPATH=str(site)).stdout)
    rude = next(record for record in records if record["name"] == "rude")
    assert (rude["state"], rude["error"]) == ("broken", "RuntimeError: not today")


def test_no_plugin_takes_a_verb_of_core(site: Path, byzerllm_command: Run) -> None:
    install(site, "thief", THIEF)
    assert "stolen" not in byzerllm_command("deploy", PYTHONPATH=str(site)).stdout
    records = json.loads(byzerllm_command("plugins", "--json", PYTHONPATH=str(site)).stdout)
    thief = next(record for record in records if record["name"] == "thief")
    assert thief["state"] == "broken"
    assert "command 'deploy' of plugin 'thief' is already offered by" in thief["error"]


def test_two_plugins_with_one_command(site: Path, byzerllm_command: Run) -> None:
    install(site, "greet", GREET)
    install(site, "greet2", GREET)
    done = byzerllm_command("plugins", "--json", PYTHONPATH=str(site))
    records = {record["name"]: record for record in json.loads(done.stdout)}
    states = {records["greet"]["state"], records["greet2"]["state"]}
    assert states == {"ok", "broken"}
    assert byzerllm_command("greet", PYTHONPATH=str(site)).stdout == "hello you\n"


def test_a_disabled_plugin(site: Path, byzerllm_command: Run) -> None:
    install(site, "greet", GREET)
    environment = {"PYTHONPATH": str(site), "BYZERLLM_DISABLED_PLUGINS": "greet"}
    assert byzerllm_command("greet", **environment).returncode == 2
    assert "disabled" in byzerllm_command("plugins", **environment).stdout
