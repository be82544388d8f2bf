"""The file of `byzerllm up`: which models a project has on a cluster.

    version: 1
    project: my_project        # default: the name of the file's folder
    models:
      NAME:                    # keys are those of `byzerllm deploy`
        model_path: /models/llama.gguf
        num_workers: 2
        infer_params: {n_ctx: 4096}

`${NAME}` and `${NAME:-default}` in values come from the environment. Top-level keys that begin
with `x-` are free, for anchors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from byzerllm.cli.deploy import absolute
from byzerllm.cli.i18n import _, nearest
from byzerllm.cli.values import read_value
from byzerllm.errors import UsageError
from byzerllm.plugins import disabled_plugins, get_plugins
from byzerllm.runtime.deployment import DeploymentSpec, resolve

VERSION = 1
_TOP = ("version", "project", "models")
_KEYS: dict[str, tuple[str, Any]] = {
    "model_path": ("model_path", str),
    "pretrained_model_type": ("model_type", str),
    "infer_backend": ("backend", str),
    "infer_params": ("infer_params", dict[str, Any]),
    "num_workers": ("num_workers", int),
    "gpus_per_worker": ("gpus_per_worker", float),
    "cpus_per_worker": ("cpus_per_worker", float),
    "worker_concurrency": ("worker_concurrency", int),
    "max_queue": ("max_queue", int),
    "load_balance_way": ("balancer", str),
    "resources": ("resources", dict[str, float]),
    "node": ("node", str),
    "fallbacks": ("fallbacks", list[str]),
    "check": ("check", bool),
}
"""Keys of a model: the field of `DeploymentSpec` and its type."""
_PROJECT = re.compile(r"[^\s:/]{1,100}")


@dataclass
class UpFile:
    """A file that was read.

    Attributes:
        project: the label of its deployments.
        specs: its deployments by name, checked, backends chosen.
    """

    project: str
    specs: dict[str, DeploymentSpec] = field(default_factory=dict)


def read_up_file(path: Path, *, models: bool = True) -> UpFile:
    """Read and check a file.

    Args:
        models: false reads only the project's name, and no environment variable is needed.

    Raises:
        UsageError: the file cannot be read or says something that is not allowed; names file,
            line and key.
    """
    return _Reader(path).read(models=models)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *, models: bool) -> UpFile:
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else _("it is no UTF-8 text")
            raise UsageError(
                _("cannot read {path}: {reason}").format(path=self.path, reason=reason)
            ) from None
        self.loader = yaml.SafeLoader(text)
        try:
            return self._file(self.loader.get_single_node(), models=models)
        except yaml.MarkedYAMLError as error:
            raise self._refused(error.problem_mark, str(error.problem)) from None
        except yaml.YAMLError as error:
            raise self._refused(None, str(error)) from None
        finally:
            self.loader.dispose()

    def _file(self, node: Node | None, *, models: bool) -> UpFile:
        if node is None:
            raise self._refused(None, _("the file is empty"))
        top = self._mapping(node, _("the file"))
        for name, (key, _value) in top.items():
            if not name.startswith("x-"):
                self._known(key, name, _TOP, _("the file"))
        self._check_version(top, node)
        found = UpFile(self._project(top))
        if "models" not in top:
            raise self._refused(node, _("the key {key!r} is missing").format(key="models"))
        if models:
            entries = self._mapping(top["models"][1], "models")
            for name, (key, value) in entries.items():
                found.specs[name] = self._model(name, key, value, found.project)
        return found

    def _check_version(self, top: dict[str, tuple[Node, Node]], node: Node) -> None:
        if "version" not in top:
            raise self._refused(
                node, _("the key {key!r} is missing").format(key=f"version: {VERSION}")
            )
        value = top["version"][1]
        if self._plain(value) != VERSION:
            raise self._refused(value, _("version must be {version}").format(version=VERSION))

    def _project(self, top: dict[str, tuple[Node, Node]]) -> str:
        if "project" not in top:
            folder = self.path.resolve().parent.name
            return re.sub(r"[\s:/]+", "-", folder) or "default"
        value = top["project"][1]
        name = self._plain(value)
        if not isinstance(name, str) or not _PROJECT.fullmatch(name):
            raise self._refused(
                value,
                _("project must be a name without spaces, ':' and '/' (got {name!r})").format(
                    name=name
                ),
            )
        return name

    def _model(self, name: str, key: Node, node: Node, project: str) -> DeploymentSpec:
        where = f"models.{name}"
        fields: dict[str, Any] = {}
        for option, (option_node, value) in self._mapping(node, where).items():
            self._known(option_node, option, _KEYS, where)
            target, kind = _KEYS[option]
            fields[target] = self._value(f"{where}.{option}", value, kind)
        if "model_path" in fields:
            fields["model_path"] = absolute(fields["model_path"], self.path.resolve().parent)
        try:
            disabled = sorted(disabled_plugins())
            spec = DeploymentSpec(model=name, project=project, disabled_plugins=disabled, **fields)
            return resolve(spec, get_plugins())[0]
        except UsageError as error:
            raise self._refused(key, f"{where}: {error.message}") from None

    def _value(self, where: str, node: Node, kind: Any) -> Any:
        raw = self._plain(node)
        if isinstance(raw, dict):
            self._mapping(node, where)
        try:
            value = _expanded(raw, where)
        except UsageError as error:
            raise self._refused(node, error.message) from None
        if kind is str and not isinstance(value, str):
            value = str(value) if isinstance(value, int | float) else value
        try:
            return msgspec.convert(value, kind, strict=False)
        except msgspec.ValidationError as error:
            reason = str(error).split(" - at ")[0]
            raise self._refused(node, f"{where}: {reason}") from None

    def _mapping(self, node: Node, where: str) -> dict[str, tuple[Node, Node]]:
        """Keys with the nodes of keys and values; each key once, and a text."""
        if not isinstance(node, MappingNode):
            raise self._refused(
                node, _("{where} must be a mapping of keys to values").format(where=where)
            )
        seen: set[str] = set()
        for key, _value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._refused(key, _("{where}: a key must be a text").format(where=where))
            if key.value in seen and key.value != "<<":
                raise self._refused(
                    key,
                    _("{where}: the key {key!r} comes twice").format(where=where, key=key.value),
                )
            seen.add(key.value)
        self.loader.flatten_mapping(node)
        return {key.value: (key, value) for key, value in node.value}

    def _known(self, node: Node, key: str, allowed: Iterable[str], where: str) -> None:
        if key not in allowed:
            raise self._refused(
                node,
                _("{where} has no key {key!r}{nearest}; allowed: {allowed}").format(
                    where=where,
                    key=key,
                    nearest=nearest(key, allowed),
                    allowed=", ".join(allowed),
                ),
            )

    def _plain(self, node: Node) -> Any:
        return self.loader.construct_object(node, deep=True)

    def _refused(self, at: Node | yaml.Mark | None, reason: str) -> UsageError:
        mark = at.start_mark if isinstance(at, Node) else at
        place = f"{self.path}:{mark.line + 1}" if mark is not None else str(self.path)
        return UsageError(f"{place}: {reason}")


def _expanded(value: Any, where: str) -> Any:
    """Texts in `value` with environment variables and `@FILE`s in their places."""
    if isinstance(value, str):
        return read_value(where, value, where)
    if isinstance(value, dict):
        return {str(key): _expanded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where) for item in value]
    return value
