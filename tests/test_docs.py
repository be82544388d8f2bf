"""The documents bound to the code: what exists is documented, what is documented works."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import byzerllm
from byzerllm import hookspecs
from byzerllm.errors import error_types
from byzerllm.plugins import get_plugins
from byzerllm.requests import generation_names

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SOURCES = sorted(ROOT.glob("packages/*/src/**/*.py"))
BLOCK = re.compile(r"^```(\S[^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
EXAMPLE_SECONDS = 180
SHARED_OPTIONS = {"--help", "--ray_address", "--verbose", "--debug", "--json"}


def page(name: str) -> str:
    return (DOCS / name).read_text()


def tracked() -> list[Path]:
    """The files that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode()


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    outside = BLOCK.sub("", text)
    titles = re.findall(r"^#+ (.+)$", outside, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Names.


def hooks() -> list[str]:
    members = inspect.getmembers(hookspecs, inspect.isfunction)
    return [name for name, function in members if hasattr(function, "byzerllm_spec")]


def test_hooks_are_found() -> None:
    assert {"register_backends", "before_request"} <= set(hooks())


@pytest.mark.parametrize("hook", hooks())
def test_hook_is_documented(hook: str) -> None:
    arguments = inspect.signature(getattr(hookspecs, hook)).parameters
    assert f"`{hook}({', '.join(arguments)})`" in page("plugins.md")
    assert inspect.getdoc(getattr(hookspecs, hook))


@pytest.mark.parametrize("name", byzerllm.__all__)
def test_public_name_is_documented(name: str) -> None:
    assert f"`{name}`" in page("reference.md")


def client_methods() -> list[str]:
    members = inspect.getmembers(byzerllm.ByzerLLM, inspect.isfunction)
    return [name for name, _ in members if not name.startswith("_")]


@pytest.mark.parametrize("method", client_methods())
def test_client_method_is_documented(method: str) -> None:
    documented = "\n".join(path.read_text() for path in PAGES)
    assert re.search(rf"\b{method}\b", documented)
    assert inspect.getdoc(getattr(byzerllm.ByzerLLM, method))


@pytest.mark.parametrize("error", sorted(error_types()))
def test_error_is_documented(error: str) -> None:
    cls = error_types()[error]
    if cls.__module__ != "byzerllm.errors":
        return
    (row,) = re.findall(rf"^\| `{error}` \| (.*?) \|", page("errors.md"), re.MULTILINE)
    bases = [base.__name__ for base in cls.__bases__ if base.__name__ not in ("Exception",)]
    assert re.findall(r"`(\w+)`", row) == [name for name in bases if name != "ByzerLLMError"]


@pytest.mark.parametrize("name", sorted(generation_names()))
def test_generation_parameter_is_documented(name: str) -> None:
    section = page("python.md").partition("## Generation parameters")[2].partition("\n## ")[0]
    assert f"`{name}`" in section


@pytest.mark.parametrize(
    ("registry", "where"),
    [("templates", "templates.md"), ("balancers", "deploy.md"), ("sources", "models.md")],
)
def test_built_in_things_are_documented(registry: str, where: str) -> None:
    offered: Any = getattr(get_plugins(), registry)
    names = [name for name in offered if offered.plugin_of(name) == registry]
    assert len(names) >= 3
    for name in names:
        assert f"`{name}{':' if registry == 'sources' else ''}" in page(where)


def test_llama_cpp_parameters_are_documented() -> None:
    backend = get_plugins().backend("llama_cpp")
    for name, info in backend.parameters.model_fields.items():
        rows = re.findall(rf"^\| `{name}`.* \| .* \| (.*) \|$", page("models.md"), re.MULTILINE)
        assert rows == [info.description], name
    assert all(f"`{name}`" in page("models.md") for name in backend.extra_parameters)


def test_transformers_parameters_are_documented() -> None:
    backend = get_plugins().backend("transformers")
    text = page("transformers.md")
    for name, info in backend.parameters.model_fields.items():
        rows = re.findall(rf"^\| `{name}`.* \| .* \| (.*) \|$", text, re.MULTILINE)
        assert rows == [info.description], name
    for model_type in backend.model_types:
        assert f"`{model_type}`" in text


def environment_variables() -> list[str]:
    pattern = re.compile(r"(?<![A-Z_])BYZERLLM_[A-Z_]*[A-Z]")
    return sorted({name for path in SOURCES for name in pattern.findall(path.read_text())})


@pytest.mark.parametrize("name", environment_variables())
def test_environment_variable_is_documented(name: str) -> None:
    table = page("operations.md").partition("## Environment variables")[2]
    assert f"| `{name}` |" in table


# The command line.


def verbs() -> dict[str, click.Command]:
    from byzerllm.cli.app import root

    cli = root()
    context = click.Context(cli)
    names = cli.list_commands(context)
    found = {name: cli.resolve_command(context, [name])[1] for name in names}
    return {name: command for name, command in found.items() if command is not None}


def section_of(verb: str) -> str:
    """What stands under a verb's heading, up to the next one of its level."""
    headed = re.split(r"^## ", page("cli.md"), flags=re.MULTILINE)[1:]
    found = [text for text in headed if f"`{verb}`" in text.partition("\n")[0]]
    assert len(found) == 1, f"docs/cli.md has {len(found)} headings with `{verb}`"
    return found[0]


@pytest.mark.parametrize("verb", list(verbs()))
def test_verb_and_its_options_are_documented(verb: str) -> None:
    section, shared = section_of(verb), page("cli.md").partition("## What all verbs share")[2]
    for parameter in verbs()[verb].params:
        for name in (name for name in parameter.opts if name.startswith("--")):
            where = shared if name in SHARED_OPTIONS else section
            assert f"`{name}" in where, f"{verb} {name}"


# Links, paths.


@pytest.mark.parametrize(
    "document",
    [path for path in tracked() if path.suffix == ".md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (document.parent / path).resolve() if path else document
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal.read_text()), target


def test_every_page_is_reached() -> None:
    for start in (DOCS / "index.md", ROOT / "README.md", ROOT / "README.zh-CN.md"):
        targets = {Path(t).name for t in LINK.findall(start.read_text())}
        missing = {path.name for path in PAGES} - targets - {"index.md"}
        assert not missing, f"{start.name}: {missing}"


def test_no_file_names_this_machine() -> None:
    here = {str(ROOT), sys.prefix, tempfile.gettempdir() + "/pytest"}
    for path, text in texts():
        assert not [place for place in here if len(place) > 5 and place in text], path


# Examples.


def runnable(text: str) -> str:
    blocks = [code for info, code in BLOCK.findall(text) if info.split() == ["python", "run"]]
    return "\n".join(blocks)


def pages_that_run() -> list[Path]:
    found = [*PAGES, ROOT / "README.md"]
    return [path for path in found if runnable(path.read_text())]


def run_example(text: str, address: str, folder: Path) -> None:
    """Execute a page's blocks in a process of their own, as a reader would."""
    script = folder / "page.py"
    script.write_text(runnable(text))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=EXAMPLE_SECONDS,
        check=False,
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.cluster
@pytest.mark.parametrize("document", pages_that_run(), ids=lambda path: path.name)
def test_examples_run(document: Path, ray_head: Any, tmp_path: Path) -> None:
    run_example(document.read_text(), ray_head.address, tmp_path)


def test_example_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="of no avail"):
        run_example("```python run\nraise SystemExit('of no avail')\n```\n", "none", tmp_path)


def test_examples_are_python() -> None:
    for path in [*PAGES, ROOT / "README.md"]:
        for info, code in BLOCK.findall(path.read_text()):
            if info.split()[:1] == ["python"]:
                compile(code, str(path), "exec")
