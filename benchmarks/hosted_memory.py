"""What ten hosted models of ten vendors need of memory, in one Ray, with fractional CPUs.

Deploys them one after the other at `--cpus 0.001` against a local address that refuses everything,
asks each one a question, so that what is loaded late is counted, and measures the unique memory
(USS: what ending the process would free) of all our processes: controller and workers.

    python benchmarks/hosted_memory.py [--count 10] [--address local|HOST:PORT]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

import byzerllm
from byzerllm.errors import ByzerLLMError
from byzerllm.plugins import get_plugins

MIB = 2**20
GOAL_MIB = 130.0
SETTLE_SECONDS = 3.0
REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
)
KEY = "key-0123456789"
# One model per vendor, and those first that need no SDK.
VENDORS: dict[str, dict[str, str]] = {
    "openai": {"base_url": "{url}/v1", "model": "gpt-4o", "api_key": KEY},
    "claude": {"base_url": "{url}", "api_key": KEY},
    "gemini": {"base_url": "{url}", "api_key": KEY},
    "qianwen": {"base_url": "{url}/api/v1", "api_key": KEY},
    "zhipu": {"base_url": "{url}/api/paas/v4", "api_key": f"id.{KEY}"},
    "baichuan": {"base_url": "{url}/v1", "api_key": KEY},
    "minimax": {"base_url": "{url}", "api_key": KEY, "group_id": "7"},
    "qianfan": {"base_url": "{url}", "api_key": KEY, "secret_key": KEY},
    "aws_bedrock": {
        "base_url": "{url}",
        "model": "anthropic.claude-3-haiku-20240307-v1:0",
        "region_name": "us-east-1",
        "aws_access_key": KEY,
        "aws_secret_key": KEY,
    },
    "azure_openai": {"api_base": "{url}", "api_key": KEY, "deployment_id": "gpt-4o"},
    "chatglm": {"base_url": "{url}/api/paas/v3/model-api", "api_key": f"id.{KEY}"},
    "qianwen_vl": {"base_url": "{url}/api/v1", "api_key": KEY},
}


async def serve() -> None:
    """Refuse whatever is asked."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REFUSAL)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def vendor() -> Iterator[str]:
    """The address of a server, in a process of its own, that refuses."""
    process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def chosen(count: int) -> list[str]:
    """So many vendors that are installed here; the same ones again where they are too few."""
    known = [name for name in VENDORS if name in get_plugins().providers]
    return [known[number % len(known)] for number in range(count)]


class Fleet:
    """The deployments and the processes that they live in."""

    def __init__(self, url: str, cpus: float) -> None:
        self._url = url
        self._llm = byzerllm.ByzerLLM(cpus_per_worker=cpus)
        self.models: list[str] = []

    def add(self, name: str) -> None:
        """Deploy one more and ask it something."""
        model = f"memory-{len(self.models)}-{name}"
        params = {f"saas.{key}": text.format(url=self._url) for key, text in VENDORS[name].items()}
        self._llm.deploy(
            pretrained_model_type=f"saas/{name}", udf_name=model, infer_params=params, check=False
        )
        self.models.append(model)
        try:
            self._llm.chat_oai("Say something about the sea.", model=model)
        except ByzerLLMError:
            return
        raise SystemExit(f"{model} had an answer from a server that gives none")

    def memory(self) -> dict[str, tuple[float, float]]:
        """USS and RSS in MiB of the controller and of each worker."""
        time.sleep(SETTLE_SECONDS)
        found: dict[str, tuple[float, float]] = {}
        for model in self._llm.stat():
            for worker in model["workers"]:
                if model["model"] in self.models:
                    found[model["model"]] = _sizes(psutil.Process(worker["pid"]))
                    family = psutil.Process(worker["pid"]).parent()
        assert family is not None
        for process in family.children():
            if "ray::Controller" in " ".join(process.cmdline()):
                found["controller"] = _sizes(process)
        return found

    def close(self) -> None:
        for model in self.models:
            self._llm.undeploy(model, force=True)


def _sizes(process: psutil.Process) -> tuple[float, float]:
    info: Any = process.memory_full_info()
    return info.uss / MIB, info.rss / MIB


def show(first: dict[str, tuple[float, float]], last: dict[str, tuple[float, float]]) -> float:
    """Print both measurements; the unique memory of a further deployment in MiB."""
    table = Table("process", "USS MiB", "RSS MiB", title="after the last deployment")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (uss, rss) in last.items():
        table.add_row(name, f"{uss:.1f}", f"{rss:.1f}")
    table.add_section()
    totals = [sum(uss for uss, _ in sizes.values()) for sizes in (first, last)]
    further = (totals[1] - totals[0]) / max(1, len(last) - len(first))
    table.add_row("all, after one deployment", f"{totals[0]:.1f}", "")
    table.add_row(f"all, after {len(last) - 1}", f"{totals[1]:.1f}", "")
    table.add_row("each further deployment", f"{further:.1f}", f"goal ≤ {GOAL_MIB:g}")
    Console().print(table)
    return further


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--cpus", type=float, default=0.001)
    parser.add_argument("--address", default="local")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return 0
    options = {"num_cpus": 2} if given.address == "local" else {}
    byzerllm.connect_cluster(given.address, log_to_driver=False, **options)
    import ray

    with vendor() as url:
        fleet = Fleet(url, given.cpus)
        try:
            names = chosen(given.count)
            fleet.add(names[0])
            first = fleet.memory()
            for name in names[1:]:
                fleet.add(name)
            further = show(first, fleet.memory())
        finally:
            fleet.close()
            ray.shutdown()
    return int(further > GOAL_MIB)


if __name__ == "__main__":
    sys.exit(main())
