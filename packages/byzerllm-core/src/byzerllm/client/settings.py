"""The state behind every `setup_*` call of a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from byzerllm.errors import ParameterError
from byzerllm.runtime.deployment import DEFAULT_BALANCER, DEFAULT_MAX_QUEUE
from byzerllm.templates import Template

DEFAULT_TIMEOUT = 600.0


@dataclass
class ModelSettings:
    """What this client does for one model.

    Attributes:
        template: renders messages in the caller; None and "auto" leave it to the engine.
        role_mapping: the template's role names, replaced.
        generation: default generation parameters.
        formats: replacements of prompt formats by their kind.
        fallbacks: models that answer when this one cannot.
    """

    template: Template | None = None
    role_mapping: dict[str, str] | None = None
    max_model_length: int | None = None
    max_input_length: int | None = None
    max_output_length: int | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    formats: dict[str, Callable[..., str]] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)


@dataclass
class Settings:
    """Everything that `setup_*` sets. `setup_reset` makes a new one.

    Attributes:
        pins: worker index by kind of request.
        timeout: seconds that one request may take.
        extra: deployment settings by name that have no `setup_*` of their own.
    """

    num_workers: int = 1
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    worker_concurrency: int = 0
    infer_backend: str = ""
    load_balance_way: str = DEFAULT_BALANCER
    max_queue: int = DEFAULT_MAX_QUEUE
    resources: dict[str, float] = field(default_factory=dict)
    node: str = ""
    project: str = ""
    fallbacks: list[str] = field(default_factory=list)
    timeout: float = DEFAULT_TIMEOUT
    default_model_name: str | None = None
    default_emb_model_name: str | None = None
    default_re_rank_model_name: str | None = None
    pins: dict[str, int] = field(default_factory=dict)
    models: dict[str, ModelSettings] = field(default_factory=dict)

    def of(self, model: str) -> ModelSettings:
        return self.models.setdefault(model, ModelSettings())


PLAIN_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "num_workers": int,
    "gpus_per_worker": float,
    "cpus_per_worker": float,
    "worker_concurrency": int,
    "infer_backend": str,
    "load_balance_way": str,
    "max_queue": int,
    "resources": dict,
    "node": str,
    "project": str,
    "fallbacks": list,
    "timeout": float,
}
"""What `setup(name, value)` takes, and the type of each."""

SPELLINGS = {
    "num_gpus": "gpus_per_worker",
    "num_cpus": "cpus_per_worker",
    "maxConcurrency": "num_workers",
    "balancer": "load_balance_way",
    "backend": "infer_backend",
}


def checked_setting(name: str, value: Any) -> tuple[str, Any]:
    """The setting's own name and its value in its type.

    Raises:
        ParameterError: unknown name, with the nearest match, or a value of the wrong type.
    """
    canonical = SPELLINGS.get(name, name)
    if canonical not in PLAIN_SETTINGS:
        raise ParameterError.unknown(name, PLAIN_SETTINGS, where="setup")
    kind = PLAIN_SETTINGS[canonical]
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        raise ParameterError.invalid(
            name, f"a {kind.__name__} is needed (got {value!r})", where="setup"
        ) from None
    if kind is int and isinstance(value, float) and value != converted:
        raise ParameterError.invalid(name, f"a whole number (got {value!r})", where="setup")
    return canonical, converted
