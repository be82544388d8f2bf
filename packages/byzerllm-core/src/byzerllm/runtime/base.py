"""What a client needs of a runtime: on Ray, or in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Protocol

from byzerllm.requests import GenerateChunk, ModelMeta, Request, Result, StreamRequest
from byzerllm.runtime.deployment import DeploymentSpec

Progress = Callable[[str, str], None]
"""Called with (worker id, phase) while a deployment is made."""


class Runtime(Protocol):
    """Calls models and keeps deployments. Every method raises errors of `byzerllm.errors`."""

    async def call(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result: ...

    def call_sync(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result: ...

    def known_meta(self, model: str) -> ModelMeta | None: ...

    def fallbacks(self, model: str) -> list[str]: ...

    async def meta(self, model: str, *, timeout: float) -> ModelMeta: ...

    def stream(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> AsyncGenerator[GenerateChunk, None]: ...

    def stream_sync(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> Iterator[GenerateChunk]: ...

    def deploy(
        self, spec: DeploymentSpec, *, replace: bool, progress: Progress | None
    ) -> dict[str, Any]: ...

    def undeploy(self, model: str, *, force: bool) -> None: ...

    def scale(self, model: str, num_workers: int, *, progress: Progress | None) -> None: ...

    def models(self) -> list[dict[str, Any]]: ...

    def stat(self, model: str | None) -> list[dict[str, Any]]: ...

    def abort(self, request_id: str, model: str) -> bool: ...

    def logs(self, model: str, *, follow: bool, lines: int) -> Iterator[tuple[str, str]]: ...
