"""What `deploy` asked for, as plain data that crosses processes."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from byzerllm.errors import (
    ModelSourceError,
    NotInstalledError,
    ParameterError,
    did_you_mean,
    listed,
)

if TYPE_CHECKING:
    from byzerllm.backend import BackendSpec
    from byzerllm.plugins import Plugins

DEFAULT_MAX_QUEUE = 100
DEFAULT_BALANCER = "lru"
MASK = "******"
_SECRET = re.compile(
    r"(keys?|token|((api|auth|access)[-_]?)tokens|secrets?|passwords?|passwd|credentials?)$",
    re.IGNORECASE,
)
# Of a tokenizer: `eos_token` and its like keep no secret.
_SPECIAL_TOKEN = re.compile(
    r"(^|[._-])(bos|eos|pad|unk|sep|cls|mask|stop|image|audio|video)_token$", re.IGNORECASE
)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_NAME = re.compile(r"[^\s:/]{1,100}")


class DeploymentSpec(Struct, kw_only=True, omit_defaults=True):
    """One deployment as it was asked for.

    Attributes:
        model: the name that users call.
        backend: a backend's name; `saas/NAME` for a provider; empty chooses one.
        model_path: a path on the worker's node, or a reference with a scheme (`demo:`, `hf:`).
        model_type: the `pretrained_model_type`.
        infer_params: the backend's parameters, as given.
        num_workers: worker actors, each with its own copy of the model.
        gpus_per_worker, cpus_per_worker: what each reserves; fractions share a device.
        worker_concurrency: requests that a worker runs at once; 0 takes the backend's default.
        max_queue: requests that wait in a worker beyond those; one more is refused.
        balancer: how callers pick a worker.
        resources: custom Ray resources that each worker reserves.
        node: address of the node that the workers must run on; empty is anywhere.
        disabled_plugins: entry points that the workers leave out too.
        project: label of the `byzerllm up` file that asked for it.
        fallbacks: models that answer chats when this one is overloaded or its vendor fails.
        check: ask the vendor of a hosted model once whether key and model are right.
    """

    model: str
    backend: str = ""
    model_path: str = ""
    model_type: str = "custom/auto"
    infer_params: dict[str, Any] = {}
    num_workers: int = 1
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0
    worker_concurrency: int = 0
    max_queue: int = DEFAULT_MAX_QUEUE
    balancer: str = DEFAULT_BALANCER
    resources: dict[str, float] = {}
    node: str = ""
    disabled_plugins: list[str] = []
    project: str = ""
    fallbacks: list[str] = []
    check: bool = True

    def fingerprint(self) -> str:
        """A digest of all fields: equal for specs that ask for the same."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]

    def worker_resources(self) -> dict[str, float]:
        """The Ray resources of one worker as one bundle; never empty."""
        bundle = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker, **self.resources}
        if self.node:
            bundle[f"node:{self.node}"] = 0.001
        bundle = {name: amount for name, amount in bundle.items() if amount > 0}
        return bundle or {"CPU": 0.001}

    def masked(self) -> dict[str, Any]:
        """All fields, secrets in `infer_params` replaced by asterisks."""
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        if self.infer_params:
            fields["infer_params"] = {
                key: MASK if is_secret(key) else without_login(value)
                for key, value in self.infer_params.items()
            }
        return fields

    def secrets(self) -> Iterator[str]:
        """The secret values, to be cut out of texts that leave the worker."""
        for key, value in self.infer_params.items():
            for text in value if isinstance(value, list | tuple) else (value,):
                if isinstance(text, str):
                    yield from _secrets_in(key, text)

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.masked().items())
        return f"DeploymentSpec({inside})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # msgspec's own shows the fields as they are.
        return list(self.masked().items())


def is_secret(key: str) -> bool:
    """Whether an `infer_params` key names a secret (`saas.api_key`, `hf_token`, …)."""
    return bool(_SECRET.search(key)) and not _SPECIAL_TOKEN.search(key)


def _secrets_in(key: str, text: str) -> list[str]:
    """A secret's text, each of several in it (`saas.api_keys`), or the login in a URL."""
    found = [text, *re.split(r"[\s,;]+", text)] if is_secret(key) else _LOGIN.findall(text)
    return [part for part in found if len(part) > 3]


def without_login(value: Any) -> Any:
    """A URL (`http://user:password@proxy`) without its login; anything else as it is."""
    return _LOGIN.sub(MASK, value) if isinstance(value, str) else value


def redact(text: str, spec: DeploymentSpec) -> str:
    """`text` without any of the deployment's secrets."""
    # The longest first: one secret may be a part of another.
    for value in sorted(spec.secrets(), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def redact_data(value: Any, spec: DeploymentSpec) -> Any:
    """Plain data without any of the deployment's secrets."""
    if isinstance(value, str):
        return redact(value, spec)
    if isinstance(value, dict):
        return {redact_data(key, spec): redact_data(item, spec) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_data(item, spec) for item in value]
    return value


def resolve(spec: DeploymentSpec, plugins: Plugins) -> tuple[DeploymentSpec, BackendSpec]:
    """Check everything that can be known without a cluster, and choose the backend.

    The choice when none is named: type `saas/…` → that provider; a format that a backend claims
    (GGUF → llama_cpp); GPUs asked for and vLLM installed → vLLM; else transformers.

    Returns:
        the spec with `backend` and `worker_concurrency` filled in, and the backend.

    Raises:
        ParameterError: a wrong name, number or `infer_params` entry.
        NotInstalledError: the backend's package is missing.
        ModelSourceError: a model path is needed and was not given.
    """
    _check_types(spec)
    _check_numbers(spec)
    plugins.balancers.get(spec.balancer)
    backend = _choose(spec, plugins)
    if not backend.hosted and not backend.accepts_type(spec.model_type):
        raise ParameterError.unknown(
            spec.model_type, backend.model_types, where=f"pretrained_model_type of {backend.name}"
        )
    if backend.formats and not backend.hosted and not spec.model_path:
        raise ModelSourceError(
            f"backend {backend.name!r} needs a model_path: a path on the worker's node, or a "
            f"reference of one of the schemes {listed(plugins.sources)}"
        )
    backend.parameters.parse(spec.infer_params, where=f"backend {backend.name!r}")
    name = f"saas/{backend.name}" if backend.hosted else backend.name
    concurrency = spec.worker_concurrency or backend.default_concurrency
    return msgspec.structs.replace(spec, backend=name, worker_concurrency=concurrency), backend


def backend_of(spec: DeploymentSpec, plugins: Plugins) -> BackendSpec:
    """The backend or provider that a resolved spec names."""
    if spec.backend.startswith("saas/"):
        return plugins.providers.get(spec.backend.removeprefix("saas/"))
    return plugins.backend(spec.backend)


def _choose(spec: DeploymentSpec, plugins: Plugins) -> BackendSpec:
    if spec.model_type.startswith("saas/"):
        provider = spec.model_type.removeprefix("saas/")
        if provider not in plugins.providers:
            raise _no_provider(spec.model_type, [f"saas/{name}" for name in plugins.providers])
        return plugins.providers.get(provider)
    if spec.backend:
        return backend_of(spec, plugins)
    for backend in plugins.backends.values():
        if plugins_format(spec.model_path, plugins) in backend.formats:
            return backend
    if plugins_format(spec.model_path, plugins) == "gguf":
        return plugins.backend("llama_cpp")
    if spec.gpus_per_worker > 0 and "ray/vllm" in plugins.backends:
        return plugins.backend("ray/vllm")
    return plugins.backend("transformers")


def _no_provider(model_type: str, there: list[str]) -> Exception:
    if not there:
        return NotInstalledError(
            f"provider {model_type!r} is not installed; run: pip install byzerllm-saas"
        )
    return ParameterError(
        f"no provider {model_type!r}{did_you_mean(model_type, there)}; there are: {listed(there)}",
        parameter="pretrained_model_type",
    )


def plugins_format(model_path: str, plugins: Plugins) -> str:
    """The model format that a path or a reference shows without being opened, or ''."""
    scheme, _, reference = model_path.partition(":")
    if reference and scheme in plugins.sources:
        return plugins.sources.get(scheme).format_of(reference)
    return "gguf" if model_path.lower().endswith(".gguf") else ""


def _refused(name: str, reason: str) -> ParameterError:
    return ParameterError.invalid(name, reason, where="deploy")


def _check_types(spec: DeploymentSpec) -> None:
    for name, value in msgspec.structs.asdict(spec).items():
        try:
            msgspec.convert({"model": "", name: value}, DeploymentSpec)
        except msgspec.ValidationError as error:
            reason = str(error).partition(" - at ")[0]
            raise _refused(name, f"{reason} (got {value!r})") from None


def _check_numbers(spec: DeploymentSpec) -> None:
    if not _NAME.fullmatch(spec.model):
        raise _refused(
            "model",
            f"a name of 1 to 100 characters without spaces, ':' or '/' (got {spec.model!r})",
        )
    if spec.num_workers < 1:
        raise _refused("num_workers", f"at least 1 (got {spec.num_workers})")
    if spec.worker_concurrency < 0:
        raise _refused("worker_concurrency", f"at least 1 (got {spec.worker_concurrency})")
    if spec.model in spec.fallbacks:
        raise _refused("fallbacks", f"{spec.model!r} cannot be its own fallback")
    if spec.max_queue < 0:
        raise _refused("max_queue", f"at least 0 (got {spec.max_queue})")
    _check_amount("gpus_per_worker", spec.gpus_per_worker)
    _check_amount("cpus_per_worker", spec.cpus_per_worker)
    if spec.gpus_per_worker > 1 and spec.gpus_per_worker != int(spec.gpus_per_worker):
        raise _refused("gpus_per_worker", f"whole GPUs above 1 (got {spec.gpus_per_worker})")
    for resource, amount in spec.resources.items():
        if resource in ("CPU", "GPU"):
            name = f"{resource.lower()}s_per_worker"
            raise _refused("resources", f"custom ones only; {resource} is set by {name}")
        _check_amount(f"resources[{resource!r}]", amount)


def _check_amount(name: str, amount: float) -> None:
    if not 0 <= amount < math.inf:
        raise _refused(name, f"at least 0 (got {amount})")
