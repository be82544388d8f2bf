"""`byzerllm:controller`, one detached actor per cluster.

Keeps all deployments as they were asked for: reserves placement groups, starts, watches, replaces,
scales and drains workers, and publishes the routing table. No request passes through it. Ray
restarts it when it dies; it then rebuilds its state from the living workers, which know their own
spec, and throws away what a deployment left half-done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Iterable
from typing import Any

import msgspec
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from byzerllm.backend import BackendSpec, Placement
from byzerllm.errors import (
    ByzerLLMError,
    ModelExistsError,
    ModelLoadError,
    ModelNotFoundError,
    ParameterError,
    ResourcesError,
)
from byzerllm.plugins import Plugins
from byzerllm.runtime.cluster import NAMESPACE
from byzerllm.runtime.deployment import DeploymentSpec, resolve
from byzerllm.runtime.host import decode_spec, encode_spec
from byzerllm.runtime.wire import PROTOCOL, TableEntry, WorkerEntry
from byzerllm.runtime.worker import CONTROL_CONCURRENCY, MAX_CONCURRENCY, Worker

RESERVE_SECONDS = 30.0
DRAIN_SECONDS = 60.0
STOP_SECONDS = 15.0
PING_SECONDS = 5.0
PINGS_MISSED = 4
STUCK_SECONDS = 60.0
RESTART_BACKOFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

logger = logging.getLogger("byzerllm.controller")


class Reservation:
    """One worker's placement group and its name."""

    def __init__(self, name: str, handle: PlacementGroup) -> None:
        self.name = name
        self.handle = handle

    def alive(self) -> bool:
        """Whether its resources are there; blocks."""
        state = placement_group_table(self.handle).get("state")
        return bool(state == "CREATED")

    def free(self) -> None:
        with contextlib.suppress(Exception):
            remove_placement_group(self.handle)


class LiveWorker:
    """One worker actor and what it holds."""

    def __init__(self, worker_id: str, index: int, handle: Any, group: Reservation) -> None:
        self.id = worker_id
        self.index = index
        self.handle = handle
        self.group = group
        self.ready = False
        self.watch: asyncio.Task[None] | None = None


class Deployment:
    """One model name: what was asked for and what lives."""

    def __init__(self, asked: DeploymentSpec, spec: DeploymentSpec, backend: BackendSpec) -> None:
        self.asked = asked
        self.spec = spec
        self.backend = backend
        self.generation = uuid.uuid4().hex[:8]
        self.version = 1
        self.created = time.time()
        self.state = "starting"
        self.workers: list[LiveWorker] = []
        self.replacements: set[asyncio.Task[None]] = set()
        self.lock = asyncio.Lock()

    def ready_workers(self) -> list[LiveWorker]:
        return sorted((w for w in self.workers if w.ready), key=lambda worker: worker.index)

    def current_state(self) -> str:
        if self.state == "ready" and len(self.ready_workers()) < self.asked.num_workers:
            return "degraded"
        return self.state

    def entry(self) -> TableEntry:
        return TableEntry(
            model=self.spec.model,
            version=self.version,
            generation=self.generation,
            balancer=self.spec.balancer,
            retryable=self.backend.retryable,
            workers=[WorkerEntry(w.id, w.index) for w in self.ready_workers()],
            fallbacks=self.asked.fallbacks,
        )


class Controller:
    """See the module. Every argument and result is plain data."""

    def __init__(self) -> None:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        self._deployments: dict[str, Deployment] = {}
        self._starting: dict[str, asyncio.Task[Any]] = {}
        self._pending: dict[str, Deployment] = {}
        self._changed = asyncio.Condition()
        self._recovered: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[Any]] = set()

    async def ready(self) -> int:
        """Returns once the state is rebuilt: the protocol number of this controller."""
        if self._recovered is None:
            self._recovered = asyncio.ensure_future(self._recover())
        await asyncio.shield(self._recovered)
        return PROTOCOL

    # What faces ask for.

    async def deploy(self, asked_data: bytes, replace: bool = False) -> dict[str, Any]:
        """Deploy and return the model's meta; on an error nothing is left behind."""
        await self.ready()
        asked = decode_spec(asked_data)
        plugins = Plugins(frozenset(asked.disabled_plugins))
        plugins.discover()
        spec, backend = resolve(asked, plugins)
        model = asked.model
        if model in self._starting:
            raise ModelExistsError(f"model {model!r} is being deployed right now", model=model)
        if model in self._deployments and not replace:
            raise ModelExistsError(
                f"model {model!r} is deployed already; undeploy it first, choose another name, or "
                "replace it (`deploy --replace`)",
                model=model,
            )
        task = asyncio.ensure_future(self._deploy(Deployment(asked, spec, backend)))
        self._starting[model] = task
        try:
            return await task
        finally:
            self._starting.pop(model, None)
            self._pending.pop(model, None)

    async def cancel_deploy(self, model: str) -> bool:
        """Undo a deployment that is under way."""
        task = self._starting.get(model)
        if task is None:
            return False
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        return True

    async def progress(self, model: str) -> list[tuple[str, str]]:
        """(worker id, phase) of a deployment that is under way."""
        new = self._pending.get(model)
        if new is not None:
            if not new.workers:
                return [("", "waiting for resources")]
            making = new.workers
        else:
            grown = self._deployments.get(model)
            making = [w for w in grown.workers if not w.ready] if grown else []
        return await _gather_limited((self._phase(worker) for worker in making), seconds=2.0)

    async def undeploy(self, model: str, force: bool = False) -> None:
        """Stop accepting, drain, free everything."""
        await self.ready()
        if await self.cancel_deploy(model):
            return
        deployment = self._get(model)
        async with deployment.lock:
            if self._deployments.get(model) is not deployment:
                raise ModelNotFoundError.unknown(model, self._deployments)
            deployment.state = "draining"
            await self._publish(deployment)
            await self._retire(deployment, deployment.workers, drain=not force)
            self._deployments.pop(model, None)
            await self._notify()

    async def scale(self, model: str, num_workers: int) -> None:
        """Add workers, or drain the last ones."""
        await self.ready()
        deployment = self._get(model)
        if num_workers < 1:
            raise ParameterError(
                f"num_workers is at least 1 (got {num_workers}); to stop, undeploy"
            )
        async with deployment.lock:
            missing = num_workers - deployment.asked.num_workers
            if missing > 0:
                first = deployment.asked.num_workers
                await self._start_workers(deployment, range(first, num_workers))
            self._set_num_workers(deployment, num_workers)
            surplus = [w for w in deployment.workers if w.index >= num_workers]
            for worker in surplus:
                worker.ready = False
            await self._publish(deployment)
            await self._retire(deployment, surplus, drain=True)

    async def table(self, model: str, newer_than: int = -1, wait: float = 0.0) -> bytes:
        """The routing of one model.

        Args:
            newer_than: with `wait`, return once the version is above this one and workers are
                ready, at the latest after `wait` seconds.

        Raises:
            ModelNotFoundError: there is none of this name.
        """
        await self.ready()
        end = time.monotonic() + wait
        while True:
            deployment = self._get(model)
            entry = deployment.entry()
            left = end - time.monotonic()
            if left <= 0 or (entry.version > newer_than and entry.workers):
                return msgspec.msgpack.encode(entry)
            with contextlib.suppress(TimeoutError):
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), left)

    async def models(self) -> list[dict[str, Any]]:
        """Every deployment with its secrets masked."""
        await self.ready()
        return [
            {
                **deployment.spec.masked(),
                "fingerprint": deployment.asked.fingerprint(),
                "state": deployment.current_state(),
                "ready_workers": len(deployment.ready_workers()),
                "created": deployment.created,
            }
            for deployment in (*self._deployments.values(), *self._new_pending())
        ]

    async def stat(self, model: str | None = None) -> list[dict[str, Any]]:
        """Live figures per deployment and worker."""
        await self.ready()
        chosen = [self._get(model)] if model else list(self._deployments.values())
        rows = []
        for deployment in chosen:
            workers = await _gather_limited(
                (worker.handle.stat.remote() for worker in deployment.ready_workers()), seconds=5.0
            )
            rows.append(
                {
                    "model": deployment.spec.model,
                    "backend": deployment.spec.backend,
                    "state": deployment.current_state(),
                    "num_workers": deployment.asked.num_workers,
                    "balancer": deployment.spec.balancer,
                    "workers": workers,
                }
            )
        return rows

    async def abort(self, request_id: str, model: str) -> bool:
        """Cancel a request wherever it runs."""
        await self.ready()
        replies = await _gather_limited(
            (w.handle.abort.remote(request_id) for w in self._get(model).ready_workers()),
            seconds=5.0,
        )
        return any(replies)

    async def workers(self, model: str) -> list[str]:
        """The ids of a model's workers, ready or not."""
        await self.ready()
        deployment = self._pending.get(model) or self._get(model)
        return [worker.id for worker in deployment.workers]

    # Making and ending workers.

    async def _deploy(self, new: Deployment) -> dict[str, Any]:
        model = new.spec.model
        old = self._deployments.get(model)
        self._pending[model] = new
        try:
            placement = new.backend.placement(new.spec)
            if old is not None and not await self._fits(placement, new.spec.num_workers):
                logger.info("%s: no room for old and new; the old one is drained first", model)
                await self.undeploy_old(old)
                old = None
            await self._start_workers(new, range(new.spec.num_workers))
            meta = await new.workers[0].handle.call.remote("controller", _meta_call())
        except BaseException:
            await asyncio.shield(self._retire(new, list(new.workers), drain=False))
            raise
        new.state = "ready"
        self._deployments[model] = new
        if old is not None:
            new.version = old.version + 1
        await self._publish(new)
        if old is not None:
            self._spawn(self.undeploy_old(old))
        logger.info("%s: ready on %d workers", model, len(new.workers))
        return {"meta": meta}

    async def undeploy_old(self, old: Deployment) -> None:
        """Drain a deployment that another one takes the name of."""
        async with old.lock:
            old.state = "draining"
            if self._deployments.get(old.spec.model) is old:
                self._deployments.pop(old.spec.model)
            await self._retire(old, list(old.workers), drain=True)

    async def _start_workers(self, deployment: Deployment, indexes: Iterable[int]) -> None:
        """Reserve, start and load; all or none."""
        placement = deployment.backend.placement(deployment.spec)
        indexes = list(indexes)
        await self._check_fits(deployment.spec, placement, len(indexes))
        started: list[LiveWorker] = []
        try:
            groups = await self._reserve(deployment, placement, len(indexes))
            for index, group in zip(indexes, groups, strict=True):
                worker = self._start_worker(deployment, index, group)
                started.append(worker)
                deployment.workers.append(worker)
            loads = [asyncio.ensure_future(self._load(deployment, w)) for w in started]
            try:
                await asyncio.gather(*loads)
            finally:
                for load in loads:
                    load.cancel()
        except BaseException:
            await asyncio.shield(self._retire(deployment, started, drain=False))
            raise
        for worker in started:
            self._commit(deployment, worker)

    async def _reserve(
        self, deployment: Deployment, placement: Placement, count: int
    ) -> list[Reservation]:
        names = [f"byzerllm:{deployment.spec.model}:{uuid.uuid4().hex}" for _ in range(count)]
        bundles = [dict(bundle) for bundle in placement.bundles]
        groups = [
            Reservation(
                name,
                placement_group(
                    bundles, strategy=placement.strategy, name=name, lifetime="detached"
                ),
            )
            for name in names
        ]
        try:
            reserved = await asyncio.gather(
                *(asyncio.to_thread(group.handle.wait, RESERVE_SECONDS) for group in groups)
            )
        except BaseException:
            for group in groups:
                group.free()
            raise
        if not all(reserved):
            for group in groups:
                group.free()
            raise ResourcesError(
                f"{_amounts(placement, count)} for {deployment.spec.model!r} could not be "
                f"reserved within {RESERVE_SECONDS:.0f} s; another deployment or job took them"
            )
        return groups

    def _start_worker(self, deployment: Deployment, index: int, group: Reservation) -> LiveWorker:
        worker_id = f"{deployment.generation}-{index}-{uuid.uuid4().hex[:6]}"
        first = dict(group.handle.bundle_specs[0])
        cpus, gpus = first.pop("CPU", 0), first.pop("GPU", 0)
        resources = {k: v for k, v in first.items() if k not in ("memory", "object_store_memory")}
        handle = (
            ray.remote(concurrency_groups={"control": CONTROL_CONCURRENCY})(Worker)
            .options(
                name=worker_name(deployment.spec.model, worker_id),
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=cpus,
                num_gpus=gpus,
                resources=resources,
                max_restarts=0,
                max_concurrency=MAX_CONCURRENCY,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group.handle, placement_group_bundle_index=0
                ),
            )
            .remote(
                encode_spec(deployment.spec),
                encode_spec(deployment.asked),
                worker_id,
                index,
                group.handle,
                group.name,
                # Once per deployment, by one worker: never when one is replaced or added.
                deployment.spec.check and deployment.state == "starting" and index == 0,
            )
        )
        return LiveWorker(worker_id, index, handle, group)

    async def _load(self, deployment: Deployment, worker: LiveWorker) -> None:
        try:
            await worker.handle.load.remote()
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ByzerLLMError):
                raise cause from None
            raise ModelLoadError(f"{deployment.spec.model!r}: {cause or error}") from None
        except RayActorError as error:
            raise ModelLoadError(
                f"{deployment.spec.model!r}: the worker died while it loaded: {_first_line(error)}"
            ) from None

    def _commit(self, deployment: Deployment, worker: LiveWorker) -> None:
        worker.ready = True
        worker.watch = asyncio.ensure_future(self._watch(deployment, worker))

    async def _retire(
        self, deployment: Deployment, workers: Iterable[LiveWorker], *, drain: bool
    ) -> None:
        workers = list(workers)
        for worker in workers:
            worker.ready = False
            if worker.watch is not None:
                worker.watch.cancel()
        if deployment.state == "draining":
            for task in deployment.replacements:
                task.cancel()
        if drain:
            await _gather_limited(
                (w.handle.drain.remote(DRAIN_SECONDS) for w in workers), seconds=DRAIN_SECONDS + 5
            )
            await _gather_limited((w.handle.stop.remote() for w in workers), seconds=STOP_SECONDS)
        for worker in workers:
            self._remove(worker)
            if worker in deployment.workers:
                deployment.workers.remove(worker)

    def _remove(self, worker: LiveWorker) -> None:
        with contextlib.suppress(Exception):
            ray.kill(worker.handle)
        worker.group.free()

    def _set_num_workers(self, deployment: Deployment, count: int) -> None:
        deployment.asked = msgspec.structs.replace(deployment.asked, num_workers=count)
        deployment.spec = msgspec.structs.replace(deployment.spec, num_workers=count)

    # Watching and replacing.

    async def _watch(self, deployment: Deployment, worker: LiveWorker) -> None:
        """Returns when the worker is dead or hopeless, after its replacement was begun."""
        gone = asyncio.ensure_future(_until_dead(worker.handle))
        missed = 0
        try:
            while missed < PINGS_MISSED:
                done, _ = await asyncio.wait({gone}, timeout=PING_SECONDS)
                if done:
                    break
                missed = 0 if await self._answers(deployment, worker) else missed + 1
        finally:
            gone.cancel()
        if deployment.state == "draining" or worker not in deployment.workers:
            return
        logger.warning("%s: worker %s is lost; replacing it", deployment.spec.model, worker.id)
        worker.ready = False
        deployment.workers.remove(worker)
        with contextlib.suppress(Exception):
            ray.kill(worker.handle)
        await self._publish(deployment)
        self._begin_replacing(deployment, worker.index, worker.group)

    def _begin_replacing(
        self, deployment: Deployment, index: int, held: Reservation | None
    ) -> None:
        task = asyncio.ensure_future(self._replace(deployment, index, held))
        deployment.replacements.add(task)
        task.add_done_callback(deployment.replacements.discard)

    async def _answers(self, deployment: Deployment, worker: LiveWorker) -> bool:
        try:
            async with asyncio.timeout(PING_SECONDS):
                stuck = await worker.handle.ping.remote()
        except (RayError, ByzerLLMError, TimeoutError) as error:
            logger.warning("%s: worker %s: %s", deployment.spec.model, worker.id, error)
            return False
        return bool(stuck < STUCK_SECONDS)

    async def _replace(self, deployment: Deployment, index: int, held: Reservation | None) -> None:
        """Start worker number `index` again, in what it held if that is still there."""
        attempt = 0
        worker = None
        try:
            while worker is None:
                await asyncio.sleep(RESTART_BACKOFF[min(attempt, len(RESTART_BACKOFF) - 1)])
                attempt += 1
                held = await self._hold(deployment, held)
                if held is not None:
                    worker = await self._try_replace(deployment, index, held)
        except asyncio.CancelledError:
            if held is not None:
                held.free()
            raise
        if index >= deployment.asked.num_workers or deployment.state == "draining":
            await self._retire(deployment, [worker], drain=False)
            return
        self._commit(deployment, worker)
        await self._publish(deployment)
        logger.info("%s: worker %s replaces number %d", deployment.spec.model, worker.id, index)

    async def _hold(self, deployment: Deployment, held: Reservation | None) -> Reservation | None:
        """`held` while its node lives, else a new reservation, or None while there is no room.

        Ray would reschedule the group of a dead node, but a restarted controller may find none
        to wait for; one way serves both.
        """
        if held is not None and await asyncio.to_thread(held.alive):
            return held
        if held is not None:
            held.free()
        placement = deployment.backend.placement(deployment.spec)
        if not await self._fits(placement, 1):
            return None
        try:
            (fresh,) = await self._reserve(deployment, placement, 1)
        except ResourcesError as error:
            logger.warning("%s: no room for a replacement: %s", deployment.spec.model, error)
            return None
        return fresh

    async def _try_replace(
        self, deployment: Deployment, index: int, group: Reservation
    ) -> LiveWorker | None:
        worker = self._start_worker(deployment, index, group)
        deployment.workers.append(worker)
        try:
            await self._load(deployment, worker)
        except BaseException as error:
            deployment.workers.remove(worker)
            with contextlib.suppress(Exception):
                ray.kill(worker.handle)
            if not isinstance(error, Exception):
                raise
            logger.error("%s: a replacement failed: %s", deployment.spec.model, error)
            return None
        return worker

    # State.

    async def _publish(self, deployment: Deployment) -> None:
        deployment.version += 1
        asked = encode_spec(deployment.asked)
        await _gather_limited(
            (
                worker.handle.publish.remote(deployment.version, deployment.generation, asked)
                for worker in deployment.workers
                if worker.ready
            ),
            seconds=5.0,
        )
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _recover(self) -> None:
        """Take over the living workers of an earlier life; throw away what is half-done."""
        names = await asyncio.to_thread(ray.util.list_named_actors, True)
        groups = {
            row["name"]: row
            for row in (await asyncio.to_thread(placement_group_table)).values()
            if row["state"] != "REMOVED" and row["name"].startswith("byzerllm:")
        }
        found = []
        for row in names:
            if row["namespace"] == NAMESPACE and row["name"].count(":") == 2:
                handle = ray.get_actor(row["name"], namespace=NAMESPACE)
                found.append((handle, asyncio.ensure_future(_describe(handle))))
        kept: set[str] = set()
        for handle, describing in found:
            about = await describing
            if about is None or not about["generation"] or about["draining"]:
                with contextlib.suppress(Exception):
                    ray.kill(handle)
                continue
            name = about["group"]
            kept.add(name)
            self._adopt(about, handle, Reservation(name, get_placement_group(name)))
        for name in groups.keys() - kept:
            with contextlib.suppress(Exception):
                remove_placement_group(get_placement_group(name))
        for deployment in self._deployments.values():
            logger.info(
                "%s: taken over with %d of %d workers",
                deployment.spec.model,
                len(deployment.workers),
                deployment.asked.num_workers,
            )
            await self._complete(deployment)

    def _adopt(self, about: dict[str, Any], handle: Any, group: Reservation) -> None:
        asked = decode_spec(about["asked"])
        deployment = self._deployments.get(asked.model)
        if deployment is None:
            plugins = Plugins(frozenset(asked.disabled_plugins))
            plugins.discover()
            spec, backend = resolve(asked, plugins)
            deployment = self._deployments[asked.model] = Deployment(asked, spec, backend)
            deployment.generation = about["generation"]
            deployment.created = about["started"]
            deployment.state = "ready"
        deployment.version = max(deployment.version, about["version"])
        worker = LiveWorker(about["id"], about["index"], handle, group)
        deployment.workers.append(worker)
        self._commit(deployment, worker)

    async def _complete(self, deployment: Deployment) -> None:
        """Start what died while there was no controller."""
        present = {worker.index for worker in deployment.workers}
        missing = [i for i in range(deployment.asked.num_workers) if i not in present]
        await self._publish(deployment)
        for index in missing:
            self._begin_replacing(deployment, index, None)

    def _get(self, model: str) -> Deployment:
        deployment = self._deployments.get(model)
        if deployment is None or deployment.state == "draining":
            raise ModelNotFoundError.unknown(model, self._deployments)
        return deployment

    def _new_pending(self) -> list[Deployment]:
        return [d for name, d in self._pending.items() if name not in self._deployments]

    async def _phase(self, worker: LiveWorker) -> tuple[str, str]:
        return worker.id, await worker.handle.phase.remote()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Resources.

    async def _fits(self, placement: Placement, count: int) -> bool:
        available = await asyncio.to_thread(_available)
        return _pack(placement, count, available)

    async def _check_fits(self, spec: DeploymentSpec, placement: Placement, count: int) -> None:
        """Raises ResourcesError at once, instead of a silent wait for what will never come."""
        wanted = _amounts(placement, count)
        totals = await asyncio.to_thread(_totals)
        if not _pack(placement, count, totals):
            raise ResourcesError(
                f"{spec.model!r} asks for {wanted}; the whole cluster has {_described(totals)}. "
                "Ask for less, or add nodes"
            )
        available = await asyncio.to_thread(_available)
        if not _pack(placement, count, available):
            raise ResourcesError(
                f"{spec.model!r} asks for {wanted}; free are {_described(available)} of "
                f"{_described(totals)}. Undeploy something, ask for less, or add nodes"
            )


def worker_name(model: str, worker_id: str) -> str:
    """The actor name of a worker."""
    return f"byzerllm:{model}:{worker_id}"


def _meta_call() -> bytes:
    from byzerllm.requests import MetaRequest
    from byzerllm.runtime.wire import encode_calls

    return encode_calls([(0, MetaRequest(id="deploy"))])


async def _until_dead(handle: Any) -> None:
    with contextlib.suppress(RayError):
        await handle.wait_stopped.remote()


async def _describe(handle: Any) -> dict[str, Any] | None:
    try:
        async with asyncio.timeout(10):
            about: dict[str, Any] = await handle.describe.remote()
    except (RayError, TimeoutError):
        return None
    return about


async def _gather_limited(awaitables: Iterable[Awaitable[Any]], *, seconds: float) -> list[Any]:
    """The results that come within `seconds` and are no errors."""
    tasks = [asyncio.ensure_future(_awaited(item)) for item in awaitables]
    if not tasks:
        return []
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    return [t.result() for t in tasks if t in done and t.exception() is None]


async def _awaited(item: Awaitable[Any]) -> Any:
    return await item


def _totals() -> list[dict[str, float]]:
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _available() -> list[dict[str, float]]:
    from ray._private.state import available_resources_per_node

    return [dict(node) for node in available_resources_per_node().values()]


def _pack(placement: Placement, count: int, nodes: list[dict[str, float]]) -> bool:
    """Whether `count` groups fit, first fit; a strict pack keeps a group on one node."""
    left = [dict(node) for node in nodes]
    for _ in range(count):
        if placement.strategy == "STRICT_PACK":
            total: dict[str, float] = {}
            for bundle in placement.bundles:
                for name, amount in bundle.items():
                    total[name] = total.get(name, 0.0) + amount
            units = [total]
        else:
            units = [dict(bundle) for bundle in placement.bundles]
        for unit in units:
            home = next((node for node in left if _holds(node, unit)), None)
            if home is None:
                return False
            for name, amount in unit.items():
                home[name] = home.get(name, 0.0) - amount
    return True


def _holds(node: dict[str, float], unit: dict[str, float]) -> bool:
    return all(node.get(name, 0.0) + 1e-6 >= amount for name, amount in unit.items())


def _amounts(placement: Placement, count: int) -> str:
    one = " + ".join(
        ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        for bundle in placement.bundles
    )
    return f"{count} × ({one})" if count > 1 else one


def _described(nodes: list[dict[str, float]]) -> str:
    shown = [
        ", ".join(
            f"{node.get(name, 0.0):g} {name}"
            for name in sorted({"CPU", "GPU"} | {n for n in node if _custom(n)})
        )
        for node in nodes
    ]
    return " | ".join(shown) or "nothing"


def _custom(name: str) -> bool:
    builtin = ("CPU", "GPU", "memory", "object_store_memory")
    return name not in builtin and not name.startswith(("node:", "bundle", "accelerator_type"))


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
