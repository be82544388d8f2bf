"""The runtime without Ray: every worker is a host on one background loop of this process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from byzerllm.balancers import Balancer, WorkerView
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ModelExistsError,
    ModelNotFoundError,
    OverloadedError,
    ParameterError,
    ProviderError,
    RequestTimeoutError,
)
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    GenerateChunk,
    MetaRequest,
    ModelMeta,
    Request,
    Result,
    StreamRequest,
)
from byzerllm.runtime.background import background_loop, inbox_of
from byzerllm.runtime.base import Progress
from byzerllm.runtime.deployment import DeploymentSpec, resolve
from byzerllm.runtime.host import Host
from byzerllm.runtime.retries import VendorRetries, sent_again
from byzerllm.runtime.wire import to_error, to_failure


class LocalDeployment:
    """One model of this process."""

    def __init__(self, asked: DeploymentSpec, spec: DeploymentSpec, balancer: Balancer) -> None:
        self.asked = asked
        self.spec = spec
        self.balancer = balancer
        self.created = time.time()
        self.hosts: list[Host] = []
        self.views: list[WorkerView] = []
        self.picks = 0
        self.running: dict[str, asyncio.Task[Any]] = {}
        self.meta: ModelMeta | None = None

    def pick(self, pin: int | None, tried: set[int]) -> int:
        views = [view for view in self.views if view.index not in tried]
        if pin is not None:
            if pin >= len(self.views):
                raise ParameterError(
                    f"a request of {self.spec.model!r} is pinned to worker {pin}; it has workers "
                    f"0 to {len(self.views) - 1} (setup_pin_model_worker_mapping)"
                )
            return pin
        view = self.balancer.pick(views)
        self.picks += 1
        view.last_used = self.picks
        return view.index


class LocalRuntime:
    """Deploys and calls models in this process. One per process: `local_runtime()`.

    Attributes:
        processes: how many processes deploy the same: each keeps to its part of what a deployment
            may ask of a vendor.
    """

    def __init__(self) -> None:
        self.processes = 1
        self._deployments: dict[str, LocalDeployment] = {}
        self._loading: set[str] = set()
        self._background = background_loop()

    async def call(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result:
        return await self._background.call(self._call(model, request, pin, timeout))

    def call_sync(
        self, model: str, request: Request, *, pin: int | None = None, timeout: float
    ) -> Result:
        return self._background.run(self._call(model, request, pin, timeout))

    def known_meta(self, model: str) -> ModelMeta | None:
        """What the model is, as it said when it was deployed."""
        return self._get(model).meta

    def fallbacks(self, model: str) -> list[str]:
        deployment = self._deployments.get(model)
        return deployment.asked.fallbacks if deployment is not None else []

    async def meta(self, model: str, *, timeout: float) -> ModelMeta:
        """As `known_meta`, never None."""
        known = self.known_meta(model)
        assert known is not None
        return known

    def stream(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        chunks = self._stream(model, request, pin, timeout)
        return chunks if self._background.is_running_here() else self._handed_over(chunks)

    async def _handed_over(
        self, items: AsyncGenerator[GenerateChunk, None]
    ) -> AsyncGenerator[GenerateChunk, None]:
        """The chunks of a stream on the background loop, for a caller on another one."""
        inbox = inbox_of(asyncio.get_running_loop())
        ready: asyncio.Queue[GenerateChunk | BaseException | None] = asyncio.Queue()

        async def pump() -> None:
            last: BaseException | None = None
            try:
                async with aclosing(items) as chunks:
                    async for chunk in chunks:
                        inbox.put(ready.put_nowait, chunk)
            except BaseException as error:
                last = error
                if isinstance(error, asyncio.CancelledError):
                    raise
            finally:
                with contextlib.suppress(RuntimeError):
                    inbox.put(ready.put_nowait, last)

        future = asyncio.run_coroutine_threadsafe(pump(), self._background.loop)
        try:
            while (item := await ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            future.cancel()

    def stream_sync(
        self, model: str, request: StreamRequest, *, pin: int | None = None, timeout: float
    ) -> Iterator[GenerateChunk]:
        return self._background.iterate(self._stream(model, request, pin, timeout))

    def deploy(
        self, spec: DeploymentSpec, *, replace: bool, progress: Progress | None
    ) -> dict[str, Any]:
        return self._background.run(self._deploy(spec, replace, progress))

    def undeploy(self, model: str, *, force: bool) -> None:
        self._background.run(self._undeploy(self._get(model), force))

    def scale(self, model: str, num_workers: int, *, progress: Progress | None) -> None:
        self._background.run(self._scale(self._get(model), num_workers, progress))

    def models(self) -> list[dict[str, Any]]:
        return [
            {
                **deployment.spec.masked(),
                "fingerprint": deployment.asked.fingerprint(),
                "state": "ready",
                "ready_workers": len(deployment.hosts),
                "created": deployment.created,
            }
            for deployment in self._deployments.values()
        ]

    def stat(self, model: str | None) -> list[dict[str, Any]]:
        import os

        import psutil

        chosen = [self._get(model)] if model else list(self._deployments.values())
        process = {"node": "local", "pid": os.getpid(), "rss": psutil.Process().memory_info().rss}
        return [
            {
                "model": deployment.spec.model,
                "backend": deployment.spec.backend,
                "state": "ready",
                "num_workers": len(deployment.hosts),
                "balancer": deployment.spec.balancer,
                "workers": [
                    {
                        "id": f"local-{index}",
                        "state": "ready",
                        **process,
                        **host.stat(),
                        "uptime": time.time() - deployment.created,
                    }
                    for index, host in enumerate(deployment.hosts)
                ],
            }
            for deployment in chosen
        ]

    def abort(self, request_id: str, model: str) -> bool:
        task = self._get(model).running.get(request_id)
        if task is None:
            return False
        self._background.loop.call_soon_threadsafe(task.cancel, "it was aborted")
        return True

    def logs(self, model: str, *, follow: bool, lines: int) -> Iterator[tuple[str, str]]:
        raise CapabilityError("the local runtime logs to this process's own output")

    # On the background loop.

    async def _call(self, model: str, request: Request, pin: int | None, timeout: float) -> Result:
        deployment = self._get(model)
        end = time.monotonic() + timeout
        retries = VendorRetries(model)
        with self._running(deployment, request):
            tried: set[int] = set()
            while True:
                index = deployment.pick(pin, tried)
                try:
                    async with asyncio.timeout(end - time.monotonic()):
                        return await deployment.hosts[index].answer(request)
                except ProviderError as error:
                    await asyncio.sleep(retries.pause(error, end - time.monotonic()))
                except TimeoutError as error:
                    raise _timed_out(error, model, request, timeout) from None
                except OverloadedError:
                    tried.add(index)
                    if pin is not None or len(tried) == len(deployment.hosts):
                        raise
                    sent_again(model, "overloaded")
                except (Exception, asyncio.CancelledError) as error:
                    raise _named(error, deployment) from error

    async def _stream(
        self, model: str, request: StreamRequest, pin: int | None, timeout: float
    ) -> AsyncGenerator[GenerateChunk, None]:
        deployment = self._get(model)
        end = time.monotonic() + timeout
        retries = VendorRetries(model)
        started = False
        with self._running(deployment, request):
            tried: set[int] = set()
            while True:
                index = deployment.pick(pin, tried)
                try:
                    async with aclosing(deployment.hosts[index].stream(request)) as chunks:
                        while True:
                            async with asyncio.timeout(end - time.monotonic()):
                                chunk = await anext(chunks, None)
                            if chunk is None:
                                return
                            started = True
                            yield chunk
                except ProviderError as error:
                    if started:
                        raise
                    await asyncio.sleep(retries.pause(error, end - time.monotonic()))
                except TimeoutError as error:
                    raise _timed_out(error, model, request, timeout) from None
                except OverloadedError:
                    tried.add(index)
                    if pin is not None or len(tried) == len(deployment.hosts):
                        raise
                    sent_again(model, "overloaded")
                except (Exception, asyncio.CancelledError) as error:
                    raise _named(error, deployment) from error

    @contextlib.contextmanager
    def _running(self, deployment: LocalDeployment, request: Request) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        deployment.running[request.id] = task
        try:
            yield
        finally:
            deployment.running.pop(request.id, None)

    async def _deploy(
        self, asked: DeploymentSpec, replace: bool, progress: Progress | None
    ) -> dict[str, Any]:
        plugins = get_plugins()
        spec, _ = resolve(asked, plugins)
        old = self._deployments.get(asked.model)
        if old is not None and not replace:
            raise ModelExistsError(
                f"model {asked.model!r} is deployed already; undeploy it first, choose another "
                "name, or replace it",
                model=asked.model,
            )
        if asked.model in self._loading:
            raise ModelExistsError(f"model {asked.model!r} is being deployed", model=asked.model)
        new = LocalDeployment(asked, spec, plugins.balancers.get(spec.balancer)())
        self._loading.add(asked.model)
        try:
            await self._grow(new, spec.num_workers, progress)
        finally:
            self._loading.discard(asked.model)
        meta = await new.hosts[0].answer(MetaRequest(id="deploy"))
        assert isinstance(meta, ModelMeta)
        new.meta = meta
        self._deployments[asked.model] = new
        if old is not None:
            await self._close(old, 0)
        return _meta_dict(meta)

    async def _grow(
        self, deployment: LocalDeployment, count: int, progress: Progress | None
    ) -> None:
        first = len(deployment.hosts)
        try:
            for index in range(first, count):
                report = functools.partial(progress, f"local-{index}") if progress else _silent
                host = Host(
                    deployment.spec,
                    get_plugins(),
                    worker_index=index,
                    report=report,
                    check=deployment.spec.check and index == 0,
                )
                await host.load()
                deployment.hosts.append(host)
                deployment.views.append(WorkerView(f"local-{index}", index))
                report("ready")
        except BaseException:
            await self._close(deployment, first)
            raise
        self._share_out(deployment)

    async def _scale(
        self, deployment: LocalDeployment, count: int, progress: Progress | None
    ) -> None:
        if count < 1:
            raise ParameterError(f"num_workers is at least 1 (got {count}); to stop, undeploy")
        await self._grow(deployment, count, progress)
        await self._close(deployment, count)
        deployment.asked = msgspec.structs.replace(deployment.asked, num_workers=count)
        deployment.spec = msgspec.structs.replace(deployment.spec, num_workers=count)

    async def _close(self, deployment: LocalDeployment, keep: int) -> None:
        ended = deployment.hosts[keep:]
        del deployment.hosts[keep:], deployment.views[keep:]
        for host in ended:
            await host.close()
        self._share_out(deployment)

    async def _undeploy(self, deployment: LocalDeployment, force: bool) -> None:
        self._deployments.pop(deployment.spec.model, None)
        tasks = list(deployment.running.values())
        if force:
            for task in tasks:
                task.cancel("its model was undeployed")
        if tasks:
            await asyncio.wait(tasks, timeout=60)
        await self._close(deployment, 0)

    def _share_out(self, deployment: LocalDeployment) -> None:
        for host in deployment.hosts:
            host.set_share(1 / (len(deployment.hosts) * self.processes))

    def _get(self, model: str) -> LocalDeployment:
        deployment = self._deployments.get(model)
        if deployment is None:
            raise ModelNotFoundError.unknown(model, self._deployments)
        return deployment


def _silent(phase: str) -> None:
    return None


def _meta_dict(meta: ModelMeta) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.structs.asdict(meta)
    return fields


def _named(error: BaseException, deployment: LocalDeployment) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return to_error(to_failure(error, deployment.spec)) if str(error) else error
    if isinstance(error, ByzerLLMError) and not isinstance(error, BackendError):
        return error
    return to_error(to_failure(error, deployment.spec))


def _timed_out(
    error: TimeoutError, model: str, request: Request, timeout: float
) -> RequestTimeoutError:
    if isinstance(error, RequestTimeoutError):
        return error
    return RequestTimeoutError(
        f"no answer from {model!r} within {timeout:g} s; pass a larger timeout or ask for fewer "
        "tokens",
        request_id=request.id,
    )


@functools.cache
def local_runtime() -> LocalRuntime:
    """This process's local runtime."""
    return LocalRuntime()
