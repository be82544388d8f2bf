"""Every hook of Byzer-LLM.

A plugin is a module named by an entry point in the group `byzerllm`. It implements any of these
functions under `@byzerllm.hookimpl`. Hooks only ever gain arguments; an implementation names the
ones that it wants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from byzerllm.backend import BackendSpec
    from byzerllm.balancers import Balancer
    from byzerllm.requests import Request, Result
    from byzerllm.sources import ModelSource
    from byzerllm.templates import Template

HOOK_API_VERSION = 1
"""Version of the hooks below. A plugin that needs a certain one sets this name in its module."""

hookspec = pluggy.HookspecMarker("byzerllm")
hookimpl = pluggy.HookimplMarker("byzerllm")


@hookspec
def register_backends(register: Callable[[BackendSpec], None]) -> None:
    """Offer backends: code that runs a model on our machines."""


@hookspec
def register_providers(register: Callable[[BackendSpec], None]) -> None:
    """Offer providers: code that reaches a hosted model; `name` is what follows `saas/`."""


@hookspec
def register_templates(register: Callable[[str, Callable[[], Template]], None]) -> None:
    """Offer chat templates by name; each becomes `Templates.<name>()`."""


@hookspec
def register_balancers(register: Callable[[str, type[Balancer]], None]) -> None:
    """Offer balancers by the name that `setup_load_balance_way` takes."""


@hookspec
def register_trainers(register: Callable[[str, Any], None]) -> None:
    """Offer trainers by the name of the training job that they run."""


@hookspec
def register_model_sources(register: Callable[[ModelSource], None]) -> None:
    """Offer model sources: what turns `scheme:reference` into a local path."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the `byzerllm` command line."""


@hookspec(firstresult=True)
def before_request(model: str, request: Request) -> Request | Result | None:
    """See a request before it leaves the caller; stops at the first non-None result.

    Return a request to send that one instead, or a result to answer without asking the model.
    """


@hookspec
def after_request(
    model: str, request: Request, result: Result | None, error: BaseException | None
) -> None:
    """See how a request ended, in the caller; `result` is None after an error or a stream."""
