"""The runtime on Ray: requests through the router, deployments through the controller."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from byzerllm.errors import ClusterNotFoundError, ModelNotFoundError
from byzerllm.requests import ModelMeta
from byzerllm.runtime.background import background_loop
from byzerllm.runtime.base import Progress
from byzerllm.runtime.cluster import current_connection, require_ray
from byzerllm.runtime.deployment import DeploymentSpec
from byzerllm.runtime.host import encode_spec
from byzerllm.runtime.router import Router
from byzerllm.runtime.wire import Failure, decode_replies, to_error

PROGRESS_SECONDS = 0.3
LOG_SECONDS = 0.3
LOG_LINE_BYTES = 400


class RayRuntime(Router):
    """See the module."""

    def deploy(
        self, spec: DeploymentSpec, *, replace: bool, progress: Progress | None
    ) -> dict[str, Any]:
        made = background_loop().run(
            self._with_progress(spec.model, "deploy", (encode_spec(spec), replace), progress)
        )
        item = decode_replies(made["meta"]).items[0][1]
        if isinstance(item, Failure):
            raise to_error(item)
        assert isinstance(item, ModelMeta)
        fields: dict[str, Any] = msgspec.structs.asdict(item)
        return fields

    def scale(self, model: str, num_workers: int, *, progress: Progress | None) -> None:
        background_loop().run(self._with_progress(model, "scale", (model, num_workers), progress))

    def undeploy(self, model: str, *, force: bool) -> None:
        self._control_on(model, "undeploy", model, force)

    def models(self) -> list[dict[str, Any]]:
        try:
            return list(self.control_sync("models", seconds=30.0))
        except ClusterNotFoundError:
            return []

    def stat(self, model: str | None) -> list[dict[str, Any]]:
        if model:
            return list(self._control_on(model, "stat", model))
        try:
            return list(self.control_sync("stat", None, seconds=30.0))
        except ClusterNotFoundError:
            return []

    def abort(self, request_id: str, model: str) -> bool:
        return bool(self._control_on(model, "abort", request_id, model))

    def logs(self, model: str, *, follow: bool, lines: int) -> Iterator[tuple[str, str]]:
        """Lines of the workers' logs, and with `follow` the new ones until the model is gone."""
        positions: dict[str, int] = {}
        while True:
            for worker_id in self._control_on(model, "workers", model):
                yield from self._log_of(model, worker_id, positions, lines)
            if not follow:
                return
            time.sleep(LOG_SECONDS)

    def _log_of(
        self, model: str, worker_id: str, positions: dict[str, int], lines: int
    ) -> Iterator[tuple[str, str]]:
        import ray

        known = worker_id in positions
        start = positions[worker_id] if known else -lines * LOG_LINE_BYTES
        try:
            handle = self.worker_handle(model, worker_id)
            position, text = ray.get(handle.read_log.remote(start), timeout=10)
        except (ValueError, ray.exceptions.RayError):
            return
        positions[worker_id] = position
        found = text.splitlines()
        for line in found if known else found[-lines:]:
            yield worker_id, line

    def _control_on(self, model: str, method: str, *args: Any) -> Any:
        try:
            return self.control_sync(method, *args)
        except ClusterNotFoundError as error:
            if "nothing was ever deployed" in str(error):
                raise ModelNotFoundError.unknown(model, ()) from None
            raise

    async def _with_progress(
        self, model: str, method: str, args: tuple[Any, ...], progress: Progress | None
    ) -> Any:
        task = asyncio.ensure_future(self.control(method, *args))
        try:
            while not (await asyncio.wait({task}, timeout=PROGRESS_SECONDS))[0]:
                if progress is not None:
                    await self._tell(model, progress)
            return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=5)
            if task.done() and not task.cancelled():
                task.exception()
            if method == "deploy":
                with contextlib.suppress(Exception):
                    await asyncio.shield(self.control("cancel_deploy", model, seconds=30.0))
            raise

    async def _tell(self, model: str, progress: Progress) -> None:
        with contextlib.suppress(Exception):
            for worker_id, phase in await self.control("progress", model, seconds=3.0):
                progress(worker_id, phase)


_current: tuple[Any, RayRuntime] | None = None
_current_lock = threading.Lock()


def ray_runtime() -> RayRuntime:
    """This process's runtime for the Ray connection that it has now.

    Raises:
        ClusterNotFoundError: this process is not connected to Ray.
    """
    global _current
    require_ray()
    connection = current_connection()
    if _current is not None and _current[0] is connection:
        return _current[1]
    with _current_lock:
        if _current is None or _current[0] is not connection:
            if _current is not None:
                _current[1].close()
            _current = (connection, RayRuntime())
        return _current[1]
