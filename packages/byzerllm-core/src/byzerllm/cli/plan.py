"""What `up` has to do: the difference between a file and a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from byzerllm.cli.i18n import _
from byzerllm.errors import ModelExistsError
from byzerllm.runtime.deployment import DeploymentSpec

Action = Literal["remove", "change", "scale", "add", "keep"]
ORDER: tuple[Action, ...] = ("remove", "scale", "change", "add", "keep")
"""Removing comes first: it frees what the others need."""


@dataclass(frozen=True)
class Step:
    """One model and what happens to it.

    Attributes:
        reason: what differs, for people; never a value, which might be a secret.
        takes_over: the model was deployed by hand and becomes the project's.
    """

    action: Action
    model: str
    reason: str = ""
    spec: DeploymentSpec | None = None
    takes_over: bool = False


def make_plan(
    project: str, specs: Mapping[str, DeploymentSpec], deployed: Iterable[Mapping[str, Any]]
) -> list[Step]:
    """Steps in the order in which they are done.

    Args:
        specs: what the file says, resolved.
        deployed: what the cluster has, as `ByzerLLM.models` returns it.

    Raises:
        ModelExistsError: a model of the file belongs to another project.
    """
    running = {entry["model"]: entry for entry in deployed}
    steps = [_step(project, spec, running.get(name)) for name, spec in specs.items()]
    steps += [
        Step("remove", name, _("not in the file"))
        for name, entry in running.items()
        if entry.get("project") == project and name not in specs
    ]
    return sorted(steps, key=lambda step: (ORDER.index(step.action), step.model))


def _step(project: str, spec: DeploymentSpec, entry: Mapping[str, Any] | None) -> Step:
    if entry is None:
        return Step("add", spec.model, spec=spec)
    owner = entry.get("project", "")
    if owner and owner != project:
        raise ModelExistsError(
            _(
                "model {model!r} belongs to the project {owner!r}; give it another name in the "
                "file, or take it off first: byzerllm undeploy --model {model}"
            ).format(model=spec.model, owner=owner)
        )
    if entry["fingerprint"] == spec.fingerprint():
        return Step("keep", spec.model, spec=spec)
    if not owner:
        return Step("change", spec.model, _("was deployed by hand"), spec, takes_over=True)
    workers = entry.get("num_workers", 1)
    same_but_workers = msgspec.structs.replace(spec, num_workers=workers)
    if entry["fingerprint"] == same_but_workers.fingerprint():
        return Step("scale", spec.model, f"num_workers {workers} → {spec.num_workers}", spec)
    return Step("change", spec.model, ", ".join(_differences(spec, entry)), spec)


def _differences(spec: DeploymentSpec, entry: Mapping[str, Any]) -> list[str]:
    wanted, defaults = spec.masked(), DeploymentSpec(model="").masked()
    names = [name for name in spec.__struct_fields__ if name not in ("model", "project")]
    different = [
        name
        for name in names
        if wanted.get(name, defaults.get(name)) != entry.get(name, defaults.get(name))
    ]
    # Masked secrets look alike; then only the fingerprint knows.
    return different or ["infer_params"]
