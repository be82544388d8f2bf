"""Vendors' modules are light: their SDKs and the HTTP client wait for the first deployment."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import byzerllm_saas
from byzerllm.plugins import get_plugins

PACKAGE = Path(__file__).parents[1]
HEAVY = "aiohttp yarl openai anthropic google dashscope boto3 botocore websockets ray torch numpy"
MODULES = sorted(
    path.stem
    for path in (Path(byzerllm_saas.__file__).parent / "providers").glob("*.py")
    if path.stem != "__init__"
)


def entry_points() -> dict[str, str]:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    found: dict[str, str] = project["entry-points"]["byzerllm"]
    return found


def test_no_module_loads_an_sdk() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {MODULES!r}: importlib.import_module('byzerllm_saas.providers.' + name)\n"
        f"print(*[name for name in {HEAVY.split()!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_an_entry_point(module: str) -> None:
    assert f"byzerllm_saas.providers.{module}" in entry_points().values()


@pytest.mark.parametrize("name", sorted(entry_points()))
def test_every_plugin_works(name: str) -> None:
    (record,) = [record for record in get_plugins().records if record.name == name]
    assert record.state == "ok", record.traceback
    assert record.hooks == ["register_providers"]


def test_extras_are_named_by_the_install_lines() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = [
        spec
        for spec in get_plugins().providers.values()
        if spec.path.startswith("byzerllm_saas.providers.")
    ]
    assert ours
    for spec in ours:
        extra = spec.install.partition("[")[2].partition("]")[0]
        assert spec.install == f"pip install 'byzerllm-saas[{extra}]'"
        assert extra in extras, spec.name
