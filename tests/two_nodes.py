"""A cluster of two nodes on this machine: workers spread, a node dies, calls go on."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter

# Before Ray is imported: nodes that start later must agree with the first.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)

import ray
from ray.cluster_utils import Cluster

import byzerllm
from byzerllm.errors import ByzerLLMError, ResourcesError

SLOT = "slot"


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "resources": {SLOT: 1}, "include_dashboard": False},
    )
    second = cluster.add_node(num_cpus=1, resources={SLOT: 2})
    cluster.wait_for_nodes()
    byzerllm.connect_cluster(cluster.address, log_to_driver=False)
    llm = byzerllm.ByzerLLM().setup_num_workers(3).setup_cpus_per_worker(0.1)
    llm.setup("resources", {SLOT: 1}).setup_infer_backend("echo")
    try:
        byzerllm.ByzerLLM(resources={SLOT: 3}, infer_backend="echo").deploy(udf_name="wide")
    except ResourcesError as error:
        print("refused at once:", error)
    else:
        raise SystemExit("three slots of one worker fit on no node")
    llm.deploy(udf_name="spread")
    llm.setup_default_model_name("spread")
    nodes = Counter(ray_node_of(worker["pid"]) for worker in llm.stat("spread")[0]["workers"])
    print("workers by node:", sorted(nodes.values()))
    assert sorted(nodes.values()) == [1, 2]

    seen: Counter[str] = Counter()
    leave = threading.Event()

    def calls() -> None:
        while not leave.is_set():
            try:
                seen[llm.chat_oai("hello")[0].output] += 1
            except ByzerLLMError as error:
                seen[f"{type(error).__name__}: {error}"] += 1
            time.sleep(0.02)

    thread = threading.Thread(target=calls, daemon=True)
    thread.start()
    time.sleep(1)
    cluster.remove_node(second, allow_graceful=False)
    before = seen["hello"]
    end = time.monotonic() + 60
    while seen["hello"] < before + 100 and time.monotonic() < end:
        time.sleep(0.1)
    state = llm.models()[0]["state"]
    print("after a node died:", dict(seen), state)
    assert set(seen) == {"hello"}, seen
    assert seen["hello"] >= before + 100
    assert state == "degraded"
    cluster.add_node(num_cpus=1, resources={SLOT: 2})
    end = time.monotonic() + 90
    while llm.models()[0]["ready_workers"] < 3 and time.monotonic() < end:
        time.sleep(0.2)
    assert llm.models()[0]["state"] == "ready", llm.models()
    leave.set()
    thread.join(30)
    assert set(seen) == {"hello"}, seen
    llm.undeploy("spread")
    print("calls went on")
    ray.shutdown()
    cluster.shutdown()


def ray_node_of(pid: int) -> str:
    """The raylet that a worker process belongs to: both nodes have one address here."""
    import psutil

    return str(psutil.Process(pid).ppid())


if __name__ == "__main__":
    main()
