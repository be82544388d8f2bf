"""Discovery of plugins, and the registries that they fill.

Each entry point of the group `byzerllm` is loaded alone: a broken one is recorded with its
traceback and shown by `byzerllm plugins`, and harms no other. `BYZERLLM_DISABLED_PLUGINS`, a
comma-separated list of entry-point names, leaves plugins out.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import pluggy

from byzerllm import hookspecs
from byzerllm.errors import (
    DuplicateNameError,
    HookVersionError,
    NotInstalledError,
    ParameterError,
    PluginError,
)

if TYPE_CHECKING:
    from byzerllm.backend import BackendSpec
    from byzerllm.balancers import Balancer
    from byzerllm.sources import ModelSource
    from byzerllm.templates import Template

GROUP = "byzerllm"
OLDEST_HOOK_API = 1
DISABLED = "BYZERLLM_DISABLED_PLUGINS"

SIBLING_BACKENDS = {
    "llama_cpp": "llamacpp",
    "transformers": "transformers",
    "ray/vllm": "vllm",
    "vllm": "vllm",
    "ray/deepspeed": "deepspeed",
    "deepspeed": "deepspeed",
}
"""Backends of the project's own packages, in both spellings of their names, and the extra of
byzerllm-core that brings each."""

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name, each with the plugin that brought it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, tuple[T, str]] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, thing: T, plugin: str, aliases: tuple[str, ...] = ()) -> None:
        """Raises DuplicateNameError when the name or an alias is taken."""
        for spelling in (name, *aliases):
            owner = self._owner(spelling)
            if owner is not None:
                raise DuplicateNameError(
                    f"{self.kind} {spelling!r} of plugin {plugin!r} is already offered by plugin "
                    f"{owner!r}; disable one of the two with {DISABLED}"
                )
        self._entries[name] = (thing, plugin)
        for alias in aliases:
            self._aliases[alias] = name

    def get(self, name: str) -> T:
        """Raises ParameterError with the nearest match when nothing has this name."""
        canonical = self._aliases.get(name, name)
        if canonical not in self._entries:
            raise ParameterError.unknown(name, self._entries, where=f"a {self.kind}")
        return self._entries[canonical][0]

    def __contains__(self, name: str) -> bool:
        return self._aliases.get(name, name) in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def values(self) -> list[T]:
        return [self._entries[name][0] for name in self]

    def plugin_of(self, name: str) -> str:
        return self._entries[self._aliases.get(name, name)][1]

    def drop(self, plugin: str) -> None:
        """Take back everything that `plugin` added."""
        self._entries = {n: e for n, e in self._entries.items() if e[1] != plugin}
        self._aliases = {a: n for a, n in self._aliases.items() if n in self._entries}

    def _owner(self, spelling: str) -> str | None:
        entry = self._entries.get(self._aliases.get(spelling, spelling))
        return entry[1] if entry else None


@dataclass(kw_only=True)
class PluginRecord:
    """One entry point and what became of it."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    state: Literal["ok", "broken", "disabled"] = "ok"
    hooks: list[str] = field(default_factory=list)
    error: str = ""
    traceback: str = ""


class Plugins:
    """All plugins of this process and what they registered."""

    def __init__(self, disabled: frozenset[str] | None = None) -> None:
        self.disabled = disabled_plugins() if disabled is None else disabled
        self.records: list[PluginRecord] = []
        self.hooks = pluggy.PluginManager(GROUP)
        self.hooks.add_hookspecs(hookspecs)
        self.backends: Registry[BackendSpec] = Registry("backend")
        self.providers: Registry[BackendSpec] = Registry("provider")
        self.templates: Registry[Callable[[], Template]] = Registry("template")
        self.balancers: Registry[type[Balancer]] = Registry("balancer")
        self.trainers: Registry[Any] = Registry("trainer")
        self.sources: Registry[ModelSource] = Registry("model source")

    def discover(self, hook: str | None = None) -> None:
        """Load every entry point of the group, core's own ones first.

        Args:
            hook: leave out the modules that cannot implement this hook.
        """
        entries = importlib.metadata.entry_points(group=GROUP)
        found = [(_record(e), e) for e in entries if hook is None or _may_implement(e, hook)]
        for record, entry in sorted(found, key=lambda pair: _order(pair[0])):
            self.records.append(record)
            if record.name in self.disabled:
                record.state = "disabled"
            else:
                self._load(record, entry.load)

    def register(self, module: ModuleType, name: str) -> PluginRecord:
        """Add a module that no entry point names: a notebook's or a test's.

        Raises:
            PluginError: it cannot be used; the reason is the message.
        """
        record = PluginRecord(name=name, module=module.__name__)
        self.records.append(record)
        error = self._load(record, lambda: module)
        if isinstance(error, PluginError):
            raise error
        if error is not None:
            raise PluginError(record.error) from error
        return record

    def _load(self, record: PluginRecord, load: Callable[[], ModuleType]) -> BaseException | None:
        try:
            self._check_name(record)
        except DuplicateNameError as error:
            _record_failure(record, error)
            return error
        try:
            module = load()
            check_hook_api(module, record.name)
            self.hooks.register(module, name=record.name)
            self.hooks.check_pending()
            callers = self.hooks.get_hookcallers(module) or []
            record.hooks = sorted(caller.name for caller in callers)
            self._collect(record.name, module)
        except (Exception, SystemExit) as error:
            _record_failure(record, error)
            if self.hooks.has_plugin(record.name):
                self.hooks.unregister(name=record.name)
            for registry in self._registries():
                registry.drop(record.name)
            return error
        return None

    def _check_name(self, record: PluginRecord) -> None:
        # Everything below goes by this name: a second owner would take the first one down.
        if not self.hooks.has_plugin(record.name):
            return
        first = next(r for r in self.records if r.name == record.name and r.state == "ok")
        raise DuplicateNameError(
            f"plugin name {record.name!r} of {_origin(record)} is already used by "
            f"{_origin(first)}; uninstall one of the two"
        )

    def _collect(self, name: str, module: ModuleType) -> None:
        def spec_into(registry: Registry[BackendSpec]) -> Callable[[BackendSpec], None]:
            return lambda spec: registry.add(spec.name, spec, name, spec.aliases)

        def named_into(registry: Registry[Any]) -> Callable[[str, Any], None]:
            return lambda key, thing: registry.add(key, thing, name)

        registrations: dict[str, Callable[..., None]] = {
            "register_backends": spec_into(self.backends),
            "register_providers": spec_into(self.providers),
            "register_templates": named_into(self.templates),
            "register_balancers": named_into(self.balancers),
            "register_trainers": named_into(self.trainers),
            "register_model_sources": lambda s: self.sources.add(s.scheme, s, name),
        }
        others = [p for p in self.hooks.get_plugins() if p is not module]
        for hook, register in registrations.items():
            self.hooks.subset_hook_caller(hook, others)(register=register)

    def _registries(self) -> list[Registry[Any]]:
        return [
            self.backends,
            self.providers,
            self.templates,
            self.balancers,
            self.trainers,
            self.sources,
        ]

    def backend(self, name: str) -> BackendSpec:
        """The backend of this name or alias.

        Raises:
            NotInstalledError: it is one of the project's own packages, not installed here.
            ParameterError: nobody offers it.
        """
        if name not in self.backends and name in SIBLING_BACKENDS:
            raise NotInstalledError(
                f"backend {name!r} is not installed; "
                f"run: pip install 'byzerllm-core[{SIBLING_BACKENDS[name]}]'"
            )
        return self.backends.get(name)

    def observes_requests(self) -> bool:
        """Whether any plugin implements `before_request` or `after_request`."""
        hook = self.hooks.hook
        return bool(hook.before_request.get_hookimpls() or hook.after_request.get_hookimpls())


def _record(entry: importlib.metadata.EntryPoint) -> PluginRecord:
    distribution, version = _origin_of(entry.dist)
    return PluginRecord(
        name=entry.name, module=entry.value, distribution=distribution, version=version
    )


@functools.cache
def _origin_of(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    # Reading the metadata parses a file, and one distribution may bring twenty entry points.
    fields: Mapping[str, str] = distribution.metadata if distribution is not None else {}  # type: ignore[assignment]
    name, version = (fields.get(key, "") for key in ("Name", "Version"))
    return name, version


def _may_implement(entry: importlib.metadata.EntryPoint, hook: str) -> bool:
    """Whether the module's source names the hook; true also where there is no source to read.

    `byzerllm --help` asks for commands only, and importing every vendor's module would take it
    as long again.
    """
    try:
        spec = importlib.util.find_spec(entry.module)
        return hook.encode() in Path(spec.origin).read_bytes()  # type: ignore[union-attr, arg-type]
    except Exception:
        # Loading it says what is wrong, to the one who can show it.
        return True


def _order(record: PluginRecord) -> tuple[bool, str, str]:
    return not record.module.startswith("byzerllm."), record.name, record.distribution


def _origin(record: PluginRecord) -> str:
    return f"{record.distribution or record.module!r} {record.version}".rstrip()


def _record_failure(record: PluginRecord, error: BaseException) -> None:
    record.state = "broken"
    record.error = f"{type(error).__name__}: {error}"
    record.traceback = "".join(traceback.format_exception(error))


def check_hook_api(module: ModuleType, name: str) -> None:
    """Raises HookVersionError when `module` asks for hooks that this core does not offer."""
    wanted = getattr(module, "HOOK_API_VERSION", hookspecs.HOOK_API_VERSION)
    if not isinstance(wanted, int) or not OLDEST_HOOK_API <= wanted <= hookspecs.HOOK_API_VERSION:
        newer = isinstance(wanted, int) and wanted > hookspecs.HOOK_API_VERSION
        remedy = "upgrade byzerllm-core" if newer else f"upgrade the plugin {name!r}"
        raise HookVersionError(
            f"plugin {name!r} is written for hook API {wanted!r}, this core offers "
            f"{OLDEST_HOOK_API} to {hookspecs.HOOK_API_VERSION}; {remedy}"
        )


def disabled_plugins() -> frozenset[str]:
    """Entry-point names in `BYZERLLM_DISABLED_PLUGINS`."""
    names = os.environ.get(DISABLED, "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


@functools.cache
def get_plugins() -> Plugins:
    """This process's plugins, discovered on first use."""
    plugins = Plugins()
    plugins.discover()
    return plugins
