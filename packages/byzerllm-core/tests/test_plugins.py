"""Discovery of plugins from real entry points, in distributions that exist for one test only."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pluggy
import pytest

from byzerllm import hookimpl
from byzerllm.backend import BackendSpec, Parameters
from byzerllm.errors import (
    DuplicateNameError,
    HookVersionError,
    NotInstalledError,
    ParameterError,
    PluginError,
)
from byzerllm.hookspecs import HOOK_API_VERSION
from byzerllm.plugins import (
    DISABLED,
    PluginRecord,
    Plugins,
    Registry,
    disabled_plugins,
    get_plugins,
)
from byzerllm.requests import EmbedRequest, EmbedResult, GenerateRequest, MetaRequest

# A module of an earlier test is still in sys.modules.
_NUMBERS = itertools.count()
CORE = {"templates", "balancers", "sources", "echo"}


class Install(Protocol):
    def __call__(self, name: str, code: str, *, entry: str = "", metadata: bool = True) -> str: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one module and one entry point; returns the module's name."""
    monkeypatch.delenv(DISABLED, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def one(name: str, code: str, *, entry: str = "", metadata: bool = True) -> str:
        module = f"{name.replace('-', '_')}_{next(_NUMBERS)}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        if metadata:
            info.joinpath("METADATA").write_text(
                f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.2\n"
            )
        info.joinpath("entry_points.txt").write_text(f"[byzerllm]\n{entry or name} = {module}\n")
        return module

    return one


def discover() -> Plugins:
    plugins = Plugins()
    plugins.discover()
    core = [record for record in plugins.records if record.distribution == "byzerllm-core"]
    assert {record.name: record.state for record in core} == dict.fromkeys(CORE, "ok")
    return plugins


def record_of(plugins: Plugins, distribution: str) -> PluginRecord:
    (found,) = [r for r in plugins.records if r.distribution == f"dist-{distribution}"]
    return found


TEMPLATE = """
    from byzerllm import hookimpl
    from byzerllm.templates import Template

    @hookimpl
    def register_templates(register):
        register({name!r}, lambda: Template(name={name!r}, render=lambda messages: "x"))
"""


def test_a_plugin_is_loaded(install: Install) -> None:
    module = install("good", TEMPLATE.format(name="good_template"))
    plugins = discover()
    record = record_of(plugins, "good")
    assert (record.name, record.module, record.version) == ("good", module, "1.2")
    assert (record.state, record.hooks) == ("ok", ["register_templates"])
    assert (record.error, record.traceback) == ("", "")
    assert plugins.templates.get("good_template")().apply([{"role": "user", "content": "a"}]) == "x"
    assert plugins.templates.plugin_of("good_template") == "good"


BROKEN = {
    "import": ("import no_such_package_at_all", "ModuleNotFoundError: No module named"),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("import sys; sys.exit('I want to leave')", "SystemExit: I want to leave"),
    "raises": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "unknown hook": (
        """
        from byzerllm import hookimpl

        @hookimpl
        def register_template(register):
            pass
        """,
        "unknown hook 'register_template'",
    ),
    "unknown argument": (
        """
        from byzerllm import hookimpl

        @hookimpl
        def register_balancers(register):
            pass

        @hookimpl
        def register_templates(registry):
            pass
        """,
        "registry",
    ),
    "hook raises": (
        """
        from byzerllm import hookimpl

        @hookimpl
        def register_templates(register):
            register("half_done", None)
            raise LookupError("no more")
        """,
        "LookupError: no more",
    ),
    "newer": (f"HOOK_API_VERSION = {HOOK_API_VERSION + 1}", "HookVersionError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_harms_no_other(kind: str, install: Install) -> None:
    code, says = BROKEN[kind]
    install("a-first", TEMPLATE.format(name="first_template"))
    install("b-broken", code)
    install("c-last", TEMPLATE.format(name="last_template"))
    plugins = discover()
    record = record_of(plugins, "b-broken")
    assert record.state == "broken"
    assert says in record.error
    assert "Traceback" in record.traceback
    assert {record_of(plugins, d).state for d in ("a-first", "c-last")} == {"ok"}
    assert {"first_template", "last_template", "qwen"} <= set(plugins.templates)
    assert "half_done" not in plugins.templates
    assert not plugins.hooks.has_plugin("b-broken")
    assert all(not plugins.hooks.is_blocked(name) for name in CORE)
    # Nothing of it is called later, and what is added later is not blamed for it.
    late = ModuleType("late")
    assert plugins.register(late, "late").state == "ok"


def test_a_name_offered_twice_names_both(install: Install) -> None:
    install("a-first", TEMPLATE.format(name="same"))
    install("b-second", TEMPLATE.format(name="same") + TEMPLATE.format(name="qwen"))
    plugins = discover()
    record = record_of(plugins, "b-second")
    assert record.state == "broken"
    assert record.error.startswith("DuplicateNameError: template 'qwen'")
    assert "'b-second'" in record.error
    assert "'templates'" in record.error
    assert plugins.templates.plugin_of("qwen") == "templates"
    assert plugins.templates.plugin_of("same") == "a-first"


@pytest.mark.parametrize("taken", ["same", "echo"])
def test_an_entry_point_name_offered_twice(taken: str, install: Install) -> None:
    install("a-first", TEMPLATE.format(name="first_template"), entry="same")
    install("b-second", TEMPLATE.format(name="second_template"), entry=taken)
    plugins = discover()
    record = record_of(plugins, "b-second")
    assert record.state == "broken"
    assert "DuplicateNameError" in record.error
    assert "dist-b-second" in record.error
    assert ("dist-a-first" if taken == "same" else "byzerllm-core") in record.error
    assert record_of(plugins, "a-first").state == "ok"
    assert "first_template" in plugins.templates
    assert "second_template" not in plugins.templates
    assert "echo" in plugins.backends


def test_a_distribution_without_metadata(install: Install) -> None:
    module = install("bare", TEMPLATE.format(name="bare_template"), metadata=False)
    plugins = discover()
    (record,) = [r for r in plugins.records if r.module == module]
    assert (record.state, record.distribution, record.version) == ("ok", "", "")
    assert "bare_template" in plugins.templates


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (HOOK_API_VERSION + 1, "upgrade byzerllm-core"),
        (0, "upgrade the plugin 'wrong'"),
        ("1", "upgrade the plugin 'wrong'"),
        (None, "upgrade the plugin 'wrong'"),
    ],
)
def test_hook_api_version(version: object, says: str) -> None:
    module = ModuleType("wrong")
    module.HOOK_API_VERSION = version  # type: ignore[attr-defined]
    plugins = Plugins()
    with pytest.raises(HookVersionError, match=says):
        plugins.register(module, "wrong")
    assert plugins.records[-1].state == "broken"
    module.HOOK_API_VERSION = HOOK_API_VERSION  # type: ignore[attr-defined]
    assert plugins.register(module, "right").state == "ok"


def test_disabled_by_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    module = install("loud", "raise SystemExit('never imported')")
    monkeypatch.setenv(DISABLED, " loud , other,,")
    assert disabled_plugins() == {"loud", "other"}
    plugins = discover()
    record = record_of(plugins, "loud")
    assert (record.state, record.error, record.hooks) == ("disabled", "", [])
    assert module not in sys.modules


def test_a_fresh_process_finds_them(install: Install, tmp_path: Path) -> None:
    install("good", TEMPLATE.format(name="good_template"))
    code = (
        "from byzerllm import Templates\n"
        "print(Templates.good_template().name)\n"
        "import sys; heavy = {'ray', 'torch', 'llama_cpp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("good_template\n", "")


def test_the_built_ins_are_plugins() -> None:
    plugins = get_plugins()
    by_name = {record.name: record for record in plugins.records}
    assert by_name.keys() >= CORE
    assert all(by_name[name].distribution == "byzerllm-core" for name in CORE)
    assert set(plugins.sources) >= {"demo", "hf", "modelscope"}
    assert "echo" in plugins.backends
    assert get_plugins() is plugins


# Registered by hand


def plugin(name: str, **implementations: Any) -> ModuleType:
    module = ModuleType(name)
    for hook, function in implementations.items():
        setattr(module, hook, hookimpl(function))
    return module


def test_register_says_why_not() -> None:
    plugins = Plugins()

    def register_templates(register: Any) -> None:
        register("a", None)
        register("a", None)

    broken = plugin("broken", register_templates=register_templates)
    with pytest.raises(DuplicateNameError, match="template 'a' of plugin 'broken' is already"):
        plugins.register(broken, "broken")
    assert "a" not in plugins.templates
    with pytest.raises(PluginError, match="unknown hook"):
        plugins.register(plugin("typo", register_tempaltes=lambda register: None), "typo")
    assert plugins.register(plugin("fine"), "fine").state == "ok"
    with pytest.raises(DuplicateNameError, match="'fine'"):
        plugins.register(plugin("other"), "fine")
    assert [r.state for r in plugins.records] == ["broken", "broken", "ok", "broken"]


def test_an_implementation_takes_the_arguments_that_it_wants() -> None:
    seen: list[tuple[Any, ...]] = []
    plugins = Plugins()
    plugins.register(plugin("none", after_request=lambda: seen.append(())), "none")
    plugins.register(
        plugin("two", after_request=lambda error, model: seen.append((model, error))), "two"
    )
    error = ValueError("x")
    request = MetaRequest(id="1")
    plugins.hooks.hook.after_request(model="m", request=request, result=None, error=error)
    assert seen == [("m", error), ()]


def test_before_request_stops_at_the_first_answer() -> None:
    asked: list[str] = []
    result = EmbedResult(vectors=[[1.0]])

    def observer(name: str, answer: Any, **options: Any) -> ModuleType:
        module = ModuleType(name)

        def before_request(request: Any) -> Any:
            asked.append(name)
            return answer

        module.before_request = hookimpl(**options)(before_request)  # type: ignore[attr-defined]
        return module

    plugins = Plugins()
    assert not plugins.observes_requests()
    plugins.register(observer("never", result), "never")
    assert plugins.observes_requests()
    plugins.register(observer("answers", result), "answers")
    plugins.register(observer("looks", None), "looks")
    plugins.register(observer("last", None, trylast=True), "last")
    request = EmbedRequest(id="1", texts=["a"])
    call = plugins.hooks.hook.before_request
    assert call(model="m", request=request) is result
    assert asked == ["looks", "answers"]
    for name in ("never", "answers"):
        plugins.hooks.unregister(name=name)
    asked.clear()
    assert call(model="m", request=request) is None
    assert asked == ["looks", "last"]


def test_before_request_may_change_the_request() -> None:
    plugins = Plugins()
    changed = GenerateRequest(id="1", prompt="Be kind. Hi")
    plugins.register(plugin("p", before_request=lambda model, request: changed), "p")
    given = GenerateRequest(id="1", prompt="Hi")
    assert plugins.hooks.hook.before_request(model="m", request=given) is changed
    assert given.prompt == "Hi"


def test_every_hook_is_documented_and_typed() -> None:
    from byzerllm import hookspecs

    manager = pluggy.PluginManager("byzerllm")
    manager.add_hookspecs(hookspecs)
    names = {
        name for name in vars(hookspecs) if name.startswith(("register_", "before_", "after_"))
    }
    assert names == {name for name in vars(manager.hook) if not name.startswith("_")}
    for name in names:
        function = getattr(hookspecs, name)
        assert function.__doc__
        assert "return" in function.__annotations__


# Registries and backends


def spec(name: str, *aliases: str) -> BackendSpec:
    return BackendSpec(name=name, path="x:Y", parameters=Parameters, aliases=aliases)


def test_registry() -> None:
    registry: Registry[str] = Registry("thing")
    registry.add("b", "B", "p1", ("beta", "bee"))
    registry.add("a", "A", "p2")
    assert list(registry) == ["a", "b"]
    assert registry.values() == ["A", "B"]
    assert registry.get("beta") == "B"
    assert "bee" in registry
    assert "c" not in registry
    assert registry.plugin_of("bee") == "p1"
    with pytest.raises(DuplicateNameError, match=r"'beta' of plugin 'p3'.*plugin 'p1'.*disable"):
        registry.add("c", "C", "p3", ("beta",))
    assert "c" not in registry
    with pytest.raises(ParameterError, match=r"'be' for a thing \(did you mean 'b.*allowed: a, b"):
        registry.get("be")
    registry.drop("p1")
    assert list(registry) == ["a"]
    assert "beta" not in registry
    registry.add("beta", "B2", "p3")
    assert registry.get("beta") == "B2"


def test_a_name_and_its_own_alias() -> None:
    registry: Registry[str] = Registry("thing")
    registry.add("a", "A", "p", ("a",))
    assert registry.get("a") == "A"


def test_backends_of_the_project_that_are_missing() -> None:
    plugins = Plugins()
    for name, extra in {"llama_cpp": "llamacpp", "ray/vllm": "vllm", "vllm": "vllm"}.items():
        with pytest.raises(NotInstalledError, match=rf"pip install 'byzerllm-core\[{extra}\]'"):
            plugins.backend(name)
    with pytest.raises(ParameterError, match=r"unknown parameter 'llama.cpp' for a backend"):
        plugins.backend("llama.cpp")
    plugins.register(
        plugin("mine", register_backends=lambda register: register(spec("ray/vllm", "vllm"))),
        "mine",
    )
    assert plugins.backend("vllm").name == "ray/vllm"
