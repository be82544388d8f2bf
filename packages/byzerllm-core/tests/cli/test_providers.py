"""`byzerllm providers`, and what `byzerllm stat` says of a vendor that is left alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from rich.console import Console

from byzerllm.backend import Parameters
from byzerllm.cli.stat import stat_view

Run = Callable[..., Any]


def text_of(renderable: Any) -> str:
    written = io.StringIO()
    Console(width=300, file=written).print(renderable)
    return written.getvalue()


def test_vendors_as_a_table_and_as_json(byzerllm_command: Run) -> None:
    done = byzerllm_command("providers")
    assert done.returncode == 0
    assert "saas/openai" in done.stdout
    listed = json.loads(byzerllm_command("providers", "--json").stdout)
    found = {provider["name"]: provider for provider in listed}
    assert "tools" in found["openai"]["capabilities"]
    assert found["openai"]["install"] == "pip install 'byzerllm-saas[openai]'"


def test_one_vendor(byzerllm_command: Run) -> None:
    for name in ("openai", "saas/openai"):
        shown = byzerllm_command("providers", name).stdout
        assert "saas.api_key" in shown
        assert "saas.base_url" in shown
    described = json.loads(byzerllm_command("providers", "openai", "--json").stdout)
    parameters = {row["name"]: row for row in described["parameters"]}
    assert parameters["saas.api_key"]["type"] == "secret"
    assert parameters["saas.read_timeout"] == {
        "name": "saas.read_timeout",
        "type": "number",
        "default": 300.0,
        "required": False,
        "description": "longest silence in seconds",
    }


def test_a_vendor_that_is_none(byzerllm_command: Run) -> None:
    done = byzerllm_command("providers", "opnai")
    assert done.returncode == 1
    assert "did you mean 'openai'" in done.stderr


def test_types_as_people_read_them() -> None:
    class Given(Parameters):
        required: int
        several: tuple[str, ...] = ("a",)
        maybe: float | None = None

    assert [(row["type"], row["default"], row["required"]) for row in Given.described()] == [
        ("int", None, True),
        ("list of text", ["a"], False),
        ("number", None, False),
    ]


def test_a_cooldown_is_shown() -> None:
    worker = {
        "id": "w", "pid": 1, "state": "ready", "running": 0, "concurrency": 1, "queued": 0,
        "max_queue": 1, "done": 0, "failed": 5, "refused": 0, "cooling": 4.2,
    }  # fmt: skip
    model = {"model": "m", "backend": "saas/openai", "state": "ready", "workers": [worker]}
    assert "cooling 4.2 s" in text_of(stat_view([model]))
    assert "cooling" not in text_of(stat_view([{**model, "workers": [{**worker, "cooling": 0}]}]))
