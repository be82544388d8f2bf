"""What is promised when things break, on a live cluster with 8 callers in processes of their own.

`nox -s soak` (BYZERLLM_SOAK=1) runs each fault 20 times, the tests a few times.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

import byzerllm
from byzerllm.errors import ModelNotFoundError, OverloadedError, WorkerDiedError

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1500)]

SOAK = os.environ.get("BYZERLLM_SOAK") == "1"
ROUNDS = 20 if SOAK else 2
CALLERS = 8
MODEL = "fault-echo"
QUIET = "fault-quiet"
SCRIPT = Path(__file__).with_name("fault_caller.py")


class Callers:
    """Caller processes, and the tally of what they saw."""

    def __init__(self, address: str, count: int = CALLERS) -> None:
        self._lock = threading.Lock()
        self._tally: Counter[str] = Counter()
        self._seen: dict[int, int] = {}
        self.messages: list[str] = []
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), address, MODEL],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        for process in self.processes:
            threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            kind, outcome = line.split()[:2]
            with self._lock:
                self._tally[f"{kind} {outcome}"] += 1
                self._seen[process.pid] = self._seen.get(process.pid, 0) + 1
                if outcome != "ok":
                    self.messages.append(line.strip())

    def take(self) -> Counter[str]:
        """What was seen since the last time."""
        with self._lock:
            tally, self._tally = self._tally, Counter()
            self._seen.clear()
        return tally

    def wait_for_all(self, each: int = 2) -> None:
        """Until every caller has seen `each` more outcomes."""
        with self._lock:
            self._seen.clear()

        def all_seen() -> bool:
            with self._lock:
                return sum(seen >= each for seen in self._seen.values()) == len(self.processes)

        wait_until(all_seen, 90, "all callers go on")

    def close(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


def wait_until(condition: object, seconds: float, what: str) -> float:
    """Seconds until the condition held."""
    assert callable(condition)
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - start


def deploy(llm: byzerllm.ByzerLLM, workers: int = 2, model: str = MODEL, **params: object) -> None:
    llm.setup_num_workers(workers).setup_cpus_per_worker(0.1).setup_infer_backend("echo")
    llm.deploy(udf_name=model, infer_params=params)


def ready_pids(llm: byzerllm.ByzerLLM) -> dict[str, int]:
    return {worker["id"]: worker["pid"] for worker in llm.stat(MODEL)[0]["workers"]}


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def controller_process(head_pid: int) -> psutil.Process:
    for process in psutil.Process(head_pid).children(recursive=True):
        if "ray::Controller" in title(process):
            return process
    raise AssertionError("no controller process")


def footprint() -> tuple[set[str], set[str]]:
    """Named actors and placement groups that are ours."""
    actors = {row["name"] for row in ray.util.list_named_actors(all_namespaces=True)}
    groups = {
        row["name"]
        for row in ray.util.placement_group_table().values()
        if row["state"] != "REMOVED"
    }
    return actors, groups


@pytest.fixture(scope="module")
def llm(cluster: object) -> Iterator[byzerllm.ByzerLLM]:
    client = byzerllm.ByzerLLM().setup_default_model_name(MODEL)
    yield client
    if client.is_model_exist(MODEL):
        client.undeploy(MODEL, force=True)


@pytest.fixture(scope="module")
def callers(llm: byzerllm.ByzerLLM, cluster: object) -> Iterator[Callers]:
    deploy(llm, delay=0.005)
    made = Callers(cluster.address)  # type: ignore[attr-defined]
    try:
        made.wait_for_all()
        made.take()
        yield made
    finally:
        made.close()


def test_worker_killed(llm: byzerllm.ByzerLLM, callers: Callers) -> None:
    for round_ in range(ROUNDS):
        before = ready_pids(llm)
        victim, pid = sorted(before.items())[round_ % 2]
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda victim=victim: len(ready_pids(llm)) == 2 and victim not in ready_pids(llm),
            60,
            "a replacement",
        )
        callers.wait_for_all()
    seen = callers.take()
    assert seen["call ok"] > 0
    assert not {o for o in seen if o.startswith("call") and o != "call ok"}, callers.messages
    assert set(seen) <= {"call ok", "stream ok", "stream StreamInterruptedError"}, callers.messages


def test_controller_killed(llm: byzerllm.ByzerLLM, callers: Callers, cluster: object) -> None:
    for _ in range(ROUNDS):
        before = ready_pids(llm)
        controller_process(cluster.process.pid).kill()  # type: ignore[attr-defined]
        callers.wait_for_all()
        assert ready_pids(llm) == before
    seen = callers.take()
    assert set(seen) == {"call ok", "stream ok"}, callers.messages


def test_worker_killed_while_there_is_no_controller(
    llm: byzerllm.ByzerLLM, callers: Callers, cluster: object
) -> None:
    victim, pid = sorted(ready_pids(llm).items())[0]
    controller_process(cluster.process.pid).kill()  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: len(ready_pids(llm)) == 2 and victim not in ready_pids(llm), 60, "a replacement"
    )
    callers.wait_for_all()
    seen = callers.take()
    assert set(seen) <= {"call ok", "stream ok", "stream StreamInterruptedError"}, callers.messages


def test_undeploy_under_load(llm: byzerllm.ByzerLLM, callers: Callers) -> None:
    for _ in range(ROUNDS):
        callers.wait_for_all()
        callers.take()
        llm.undeploy(MODEL)
        wait_until(
            lambda: {"call ModelNotFoundError", "stream ModelNotFoundError"} <= set(callers._tally),
            30,
            "callers see that the model is gone",
        )
        seen = callers.take()
        allowed = {"call ok", "stream ok", "call ModelNotFoundError", "stream ModelNotFoundError"}
        assert set(seen) <= allowed, callers.messages[-5:]
        actors, groups = footprint()
        assert not {name for name in actors if f":{MODEL}:" in name}
        assert not {name for name in groups if MODEL in name}
        deploy(llm, delay=0.005)


def running(llm: byzerllm.ByzerLLM) -> int:
    return int(llm.stat(QUIET)[0]["workers"][0]["running"])


def test_caller_killed_in_mid_stream(llm: byzerllm.ByzerLLM, cluster: object) -> None:
    deploy(llm, workers=1, model=QUIET, delay=0.01, chunks=1_000_000)
    slowest = 0.0
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, str(SCRIPT), cluster.address, QUIET, "long"],  # type: ignore[attr-defined]
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as caller:
            assert caller.stdout is not None
            for _ in range(50):
                assert caller.stdout.readline() == "chunk\n"
            assert running(llm) == 1
            caller.kill()
            took = wait_until(lambda: running(llm) == 0, 5, "generation stops")
        slowest = max(slowest, took)
    print(f"generation stopped at most {slowest:.2f} s after its caller was killed")
    # The lease is 0.9 s; the rest is the time that looking takes.
    assert slowest <= 1.2
    llm.undeploy(QUIET)


def test_queue_overrun(llm: byzerllm.ByzerLLM) -> None:
    client = byzerllm.ByzerLLM(worker_concurrency=2, max_queue=3)
    deploy(client, model=QUIET, delay=0.05, chunks=5)

    async def ask(number: int) -> str:
        try:
            await client.async_chat_oai(f"request {number}", model=QUIET)
        except OverloadedError as error:
            return "refused" if error.retry_after > 0 else "refused without a time"
        return "ok"

    async def many() -> Counter[str]:
        return Counter(await asyncio.gather(*(ask(number) for number in range(40))))

    for _ in range(ROUNDS):
        seen = asyncio.run(many())
        assert seen["ok"] + seen["refused"] == 40
        # Two workers that run two and queue three each.
        assert seen["ok"] >= 10
        assert seen["refused"] >= 10
    client.undeploy(QUIET)


def test_a_request_that_kills_workers(llm: byzerllm.ByzerLLM) -> None:
    deploy(llm, workers=3, model=QUIET, crash_on="die")
    with pytest.raises(WorkerDiedError, match=r"2 workers .* request poison-7; it is not tried"):
        llm.chat_oai("die", model=QUIET, extra_request_params={"request_id": "poison-7"})
    assert llm.chat_oai("live", model=QUIET)[0].output == "live"
    with pytest.raises(WorkerDiedError):
        list(llm.stream_chat_oai("die", model=QUIET))
    wait_until(lambda: llm.models()[-1]["ready_workers"] == 3, 60, "three workers again")
    llm.undeploy(QUIET)


def test_nothing_leaks(llm: byzerllm.ByzerLLM, cluster: object) -> None:
    def workers() -> list[psutil.Process]:
        head = psutil.Process(cluster.process.pid)  # type: ignore[attr-defined]
        return [p for p in head.children(recursive=True) if "ray::Worker" in title(p)]

    def deploy_and_undeploy() -> None:
        deploy(llm, model=QUIET)
        llm.chat_oai("hello", model=QUIET)
        llm.undeploy(QUIET)

    if llm.is_model_exist(MODEL):
        llm.undeploy(MODEL, force=True)
    deploy_and_undeploy()
    actors, groups = footprint()
    controller = controller_process(cluster.process.pid)  # type: ignore[attr-defined]
    rss = controller.memory_info().rss
    for _ in range(ROUNDS):
        deploy_and_undeploy()
    assert footprint() == (actors, groups)
    wait_until(lambda: not workers(), 30, "worker processes end")
    assert controller.memory_info().rss < rss + 50e6
    with pytest.raises(ModelNotFoundError):
        llm.chat_oai("hello", model=QUIET)
