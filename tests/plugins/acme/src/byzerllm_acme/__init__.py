"""Registers Acme's provider, template and balancer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pydantic

import byzerllm
from byzerllm import BackendSpec, Parameters, Template
from byzerllm.balancers import Balancer, WorkerView

HOOK_API_VERSION = 1


class AcmeParameters(Parameters):
    """What an Acme deployment can be told."""

    prefixes = ("saas.",)

    api_key: pydantic.SecretStr = pydantic.Field(description="the account's key")
    model: str = pydantic.Field("mirror-1", description="Acme's own name of the model")


class HighestNumber(Balancer):
    """Always the last worker."""

    def pick(self, workers: Sequence[WorkerView]) -> WorkerView:
        return workers[-1]


def brackets() -> Template:
    return Template(
        name="acme", render=lambda messages: "".join(f"<{m['content']}>" for m in messages)
    )


@byzerllm.hookimpl
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    register(
        BackendSpec(
            name="acme",
            path="byzerllm_acme.provider:AcmeProvider",
            parameters=AcmeParameters,
            description="Acme's hosted mirror models",
            # A template's text arrives as a completion.
            capabilities=frozenset({"chat", "completion"}),
            default_concurrency=10,
            hosted=True,
        )
    )


@byzerllm.hookimpl
def register_templates(register: Callable[[str, Callable[[], Template]], None]) -> None:
    register("acme", brackets)


@byzerllm.hookimpl
def register_balancers(register: Callable[[str, type[Balancer]], None]) -> None:
    register("acme", HighestNumber)
