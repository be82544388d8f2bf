"""Every error that Byzer-LLM raises on purpose.

    ByzerLLMError
    ├── UsageError (ValueError)          the call itself is wrong; nothing was sent
    │   ├── ParameterError               an unknown or malformed parameter
    │   ├── TemplateError                a template is missing or cannot be rendered
    │   └── ModelSourceError             a model path that is missing or is not a model
    ├── NotInstalledError (ImportError)  an optional package is missing; names the pip line
    ├── PluginError                      a plugin cannot be used
    │   ├── DuplicateNameError           two plugins offer the same name
    │   └── HookVersionError             a plugin was written for other hooks
    ├── ModelNotFoundError (LookupError) no deployment has this name
    ├── ModelExistsError                 the name is taken
    ├── CapabilityError                  the model cannot do what was asked of it
    ├── DeployError                      a deployment could not be made; nothing is left behind
    │   ├── ResourcesError               the cluster has not enough CPUs, GPUs or custom resources
    │   └── ModelLoadError               a worker could not load its model
    ├── ClusterError                     Ray cannot be used
    │   ├── ClusterNotFoundError         no cluster at this address
    │   └── ClusterAuthenticationError   the cluster refuses the token
    ├── ProtocolError                    the two ends speak different protocol numbers
    ├── SandboxError                     generated code did not come to an end; has its `code`
    │   ├── SandboxUnavailableError      the machine gives no namespaces; names the ways out
    │   ├── SandboxTimeoutError (TimeoutError)   it took longer than it may
    │   ├── SandboxMemoryError           it needs more memory than it may have
    │   ├── SandboxResultError           its result is too large, or not a result
    │   ├── SandboxCrashError            it ended its process
    │   └── GeneratedFunctionError       it raised, or is not the function that was asked for
    └── RequestError                     one request failed while it ran
        ├── ContextLengthError (ValueError)      prompt and answer do not fit the context
        ├── OverloadedError              every worker is full; has `retry_after` seconds
        ├── WorkerDiedError              the workers that ran the request died
        ├── StreamInterruptedError       a stream broke after its first chunk; has `text`
        ├── RequestCancelledError        cancelled by `abort`, by its caller, or by an undeploy
        ├── RequestTimeoutError (TimeoutError)   no answer within the time limit
        ├── BackendError                 the engine raised; has `remote_traceback`
        ├── InvalidAnswerError (ValueError)      the answer does not fit the type asked for
        └── ProviderError                the vendor of a hosted model refused or failed
            ├── AuthenticationError          the key is missing, wrong or expired
            ├── PermissionDeniedError        the key may not do this
            ├── HostedModelNotFoundError (LookupError)  the vendor has no such model
            ├── BadRequestError              the vendor does not take the request
            ├── ContentFilteredError         the vendor's filter refused question or answer
            ├── RateLimitedError             too many requests or tokens; has `retry_after`
            ├── QuotaExceededError           the account has nothing left to spend
            ├── ProviderOverloadedError      the vendor is full; may have `retry_after`
            ├── ProviderUnavailableError     the vendor failed, or cannot be reached
            ├── ProviderTimeoutError (TimeoutError)  the vendor was too slow
            └── ProviderProtocolError        what came back is not what the vendor documents

A ProviderError (and a ContextLengthError of a hosted model) has `vendor`, `vendor_model`, `status`
(HTTP, or None), `vendor_request_id`, `vendor_code`, `vendor_message`, and `retryable`: whether the
router may send the request again.

Each one pickles and crosses Ray and the wire unchanged: an error is a message plus `details`,
a dict of plain data whose entries can be read as attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "AuthenticationError",
    "BackendError",
    "BadRequestError",
    "ByzerLLMError",
    "CapabilityError",
    "ClusterAuthenticationError",
    "ClusterError",
    "ClusterNotFoundError",
    "ContentFilteredError",
    "ContextLengthError",
    "DeployError",
    "DuplicateNameError",
    "GeneratedFunctionError",
    "HookVersionError",
    "HostedModelNotFoundError",
    "InvalidAnswerError",
    "ModelExistsError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelSourceError",
    "NotInstalledError",
    "OverloadedError",
    "ParameterError",
    "PermissionDeniedError",
    "PluginError",
    "ProtocolError",
    "ProviderError",
    "ProviderOverloadedError",
    "ProviderProtocolError",
    "ProviderTimeoutError",
    "ProviderUnavailableError",
    "QuotaExceededError",
    "RateLimitedError",
    "RequestCancelledError",
    "RequestError",
    "RequestTimeoutError",
    "ResourcesError",
    "SandboxCrashError",
    "SandboxError",
    "SandboxMemoryError",
    "SandboxResultError",
    "SandboxTimeoutError",
    "SandboxUnavailableError",
    "StreamInterruptedError",
    "TemplateError",
    "UsageError",
    "WorkerDiedError",
]


def _rebuild(cls: type[ByzerLLMError], message: str, details: dict[str, Any]) -> ByzerLLMError:
    return cls(message, **details)


class ByzerLLMError(Exception):
    """Root of the tree.

    Args:
        message: what was wrong, what is allowed, what to do.
        details: plain data about the event, readable as attributes of the error.
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])

    def __getattr__(self, name: str) -> Any:
        details: dict[str, Any] = self.__dict__.get("details", {})
        if name in details:
            return details[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)


class UsageError(ByzerLLMError, ValueError):
    """The call itself is wrong; nothing was sent."""


class ParameterError(UsageError):
    """A parameter is unknown, malformed, missing or out of range."""

    @classmethod
    def unknown(cls, name: str, allowed: Iterable[str], *, where: str) -> ParameterError:
        """An unknown `name`, with the nearest match and everything that `where` accepts."""
        allowed = list(allowed)
        return cls(
            f"unknown parameter {name!r} for {where}{did_you_mean(name, allowed)}; "
            f"allowed: {listed(allowed)}",
            parameter=name,
        )

    @classmethod
    def invalid(cls, name: str, reason: str, *, where: str) -> ParameterError:
        """A known `name` with a value that `where` cannot take, `reason` saying what it takes."""
        return cls(f"parameter {name!r} for {where}: {reason}", parameter=name)


class TemplateError(UsageError):
    """A chat template or the template of a prompt is missing or cannot be rendered."""


class ModelSourceError(UsageError):
    """A model path does not exist, cannot be fetched, or does not hold a model."""


class NotInstalledError(ByzerLLMError, ImportError):
    """An optional package is missing; the message is the pip line that brings it."""


class PluginError(ByzerLLMError):
    """A plugin cannot be used."""


class DuplicateNameError(PluginError):
    """Two plugins offer the same name; both are named."""


class HookVersionError(PluginError):
    """A plugin was written for a hook API that this core does not offer."""


class ModelNotFoundError(ByzerLLMError, LookupError):
    """No deployment has this name."""

    @classmethod
    def unknown(cls, model: str, deployed: Iterable[str]) -> ModelNotFoundError:
        names = sorted(deployed)
        known = f"deployed: {listed(names)}" if names else "nothing is deployed on this cluster"
        return cls(f"no model {model!r}{did_you_mean(model, names)}; {known}", model=model)


class ModelExistsError(ByzerLLMError):
    """The model name is taken by another deployment."""


class CapabilityError(ByzerLLMError):
    """The model cannot do what was asked of it."""


class DeployError(ByzerLLMError):
    """A deployment could not be made; nothing of it is left behind."""


class ResourcesError(DeployError):
    """The cluster has not enough CPUs, GPUs or custom resources."""


class ModelLoadError(DeployError):
    """A worker could not load its model; `remote_traceback` holds the worker's own."""


class ClusterError(ByzerLLMError):
    """Ray cannot be used."""


class ClusterNotFoundError(ClusterError):
    """No Ray cluster answers at this address."""


class ClusterAuthenticationError(ClusterError):
    """The cluster refuses the token that was presented, or wants one."""


class ProtocolError(ByzerLLMError):
    """Caller and worker speak different protocol numbers, or one sent what is none."""


class SandboxError(ByzerLLMError):
    """Generated code did not come to its end. `code`: its source, where it was run."""


class SandboxUnavailableError(SandboxError):
    """This machine cannot isolate generated code; the message names the other ways."""


class SandboxTimeoutError(SandboxError, TimeoutError):
    """Generated code took more time, by the clock or of the processor, than it may."""


class SandboxMemoryError(SandboxError):
    """Generated code needs more memory than it may have."""


class SandboxResultError(SandboxError):
    """What came out of the sandbox is larger than it may be, or is not a result."""


class SandboxCrashError(SandboxError):
    """Generated code ended its process, which therefore has no result."""


class GeneratedFunctionError(SandboxError):
    """The function raised (`remote_traceback` has its lines), is missing, is not what was asked
    for, or returned what is not data or not of its type."""


class RequestError(ByzerLLMError):
    """One request failed while it ran."""


class ContextLengthError(RequestError, ValueError):
    """Prompt and answer do not fit the model's context."""


class OverloadedError(RequestError):
    """Every worker of the model is full. `retry_after`: seconds, an estimate."""


class WorkerDiedError(RequestError):
    """The workers that ran the request died. `request_id` names it."""


class StreamInterruptedError(RequestError):
    """A stream broke after its first chunk. `text`: what had arrived."""


class RequestCancelledError(RequestError):
    """The request was aborted, its caller left, or its model was undeployed."""


class RequestTimeoutError(RequestError, TimeoutError):
    """No answer came within the time limit."""


class BackendError(RequestError):
    """The engine raised; `remote_traceback` holds its traceback."""


class InvalidAnswerError(RequestError, ValueError):
    """The model's answer does not fit the type that was asked for. `text`: the answer; `reason`:
    what does not fit."""


class ProviderError(RequestError):
    """The vendor of a hosted model refused or failed."""


class AuthenticationError(ProviderError):
    """The vendor does not know the key."""


class PermissionDeniedError(ProviderError):
    """The key may not use this model or this call."""


class HostedModelNotFoundError(ProviderError, LookupError):
    """The vendor has no model of this name."""


class BadRequestError(ProviderError):
    """The vendor does not take the request as it is."""


class ContentFilteredError(ProviderError):
    """The vendor's content filter refused the question or the answer."""


class RateLimitedError(ProviderError):
    """Too many requests or tokens in a time. `retry_after`: seconds, where the vendor says it."""


class QuotaExceededError(ProviderError):
    """The account has nothing left to spend; waiting does not help."""


class ProviderOverloadedError(ProviderError):
    """The vendor has too much to do."""


class ProviderUnavailableError(ProviderError):
    """The vendor failed, or cannot be reached."""


class ProviderTimeoutError(ProviderError, TimeoutError):
    """The vendor did not answer in time."""


class ProviderProtocolError(ProviderError):
    """What came back is not what the vendor documents."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the nearest of `allowed`, or an empty string."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(names: Iterable[str]) -> str:
    """`a, b, c`, or `none`."""
    return ", ".join(sorted(names)) or "none"


def error_types() -> Mapping[str, type[ByzerLLMError]]:
    """Every class of the tree by its name, which is its code on the wire."""
    found: dict[str, type[ByzerLLMError]] = {}
    todo: list[type[ByzerLLMError]] = [ByzerLLMError]
    while todo:
        cls = todo.pop()
        found[cls.__name__] = cls
        todo.extend(cls.__subclasses__())
    return found
