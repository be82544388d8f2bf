"""What quantization costs and saves: memory, tokens per second and likeness of the answers.

The same folder is loaded in full, as int8 and as int4, each in a process of its own, so that its
memory is measured alone; rounds alternate, so that the machine's noise meets them alike:

    python benchmarks/quantization.py [--model FOLDER] [--rounds 3] [--tokens 32] [--threads N]

Needs the extra `quantization`. The backend runs without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import statistics
import time
from contextlib import aclosing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from peers.small_models import smollm2_folder
from rich.console import Console
from rich.table import Table

KINDS = {"full": None, "int8": 8, "int4": 4}
QUESTION = "Tell me a story about a lighthouse."
TEXT = (
    "A lighthouse is a tower that shows ships the way at night. Its keeper lights the lamp when "
    "the sun goes down, and puts it out in the morning. Most of them have no keeper any more."
)


def serve(pipe: Connection, model: Path, bits: int | None, options: argparse.Namespace) -> None:
    """One loaded model in a process of its own: answers `round` until it is told to end."""
    asyncio.run(_serve(pipe, model, bits, options))


async def _serve(
    pipe: Connection, model: Path, bits: int | None, options: argparse.Namespace
) -> None:
    from byzerllm.backend import BackendContext
    from byzerllm_backend_transformers import TRANSFORMERS
    from byzerllm_backend_transformers.backend import TransformersBackend

    given = {"quantization": bits, "threads": options.threads, "dtype": options.dtype}
    if options.device:
        given["device"] = options.device
    phases: list[str] = []
    begin = time.monotonic()
    backend = await TransformersBackend.create(
        BackendContext(
            model="bench",
            model_path=model,
            model_type="custom/auto",
            parameters=TRANSFORMERS.parameters.parse(given, where="the benchmark"),
            report=phases.append,
        )
    )
    causal: Any = backend.task._model  # type: ignore[attr-defined]
    pipe.send(
        {
            "seconds": time.monotonic() - begin,
            "said": next(phase for phase in phases if phase.startswith("needs about")),
            "weights": causal.model.get_memory_footprint() / 2**20,
            "perplexity": _perplexity(causal),
        }
    )
    while pipe.recv() == "round":
        pipe.send(await _round(backend, options.tokens))
    pipe.send(psutil.Process().memory_info().rss / 2**20)
    await backend.close()


async def _round(backend: Any, tokens: int) -> tuple[float, str]:
    """Tokens per second after the first one, and the text."""
    from byzerllm.requests import GenerateRequest, SamplingParams

    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    request = GenerateRequest(
        id="bench",
        messages=[{"role": "user", "content": QUESTION}],
        sampling=params,
        stream=True,
    )
    text, times, count = "", [], 0
    async with aclosing(backend.generate(request)) as chunks:
        async for chunk in chunks:
            text += chunk.text
            count += len(chunk.token_ids)
            times.append(time.monotonic())
    return (count - 1) / (times[-1] - times[0]), text


def _perplexity(causal: Any) -> float:
    import torch

    ids = causal.tokenizer(TEXT, return_tensors="pt")["input_ids"].to(causal.device)
    with torch.inference_mode():
        return math.exp(float(causal.model(ids, labels=ids).loss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device")
    options = parser.parse_args()
    options.model = options.model or smollm2_folder()

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    loaded: dict[str, dict[str, Any]] = {}
    processes = []
    for kind, bits in KINDS.items():
        pipes[kind], end = context.Pipe()
        process = context.Process(target=serve, args=(end, options.model, bits, options))
        process.start()
        processes.append(process)
        loaded[kind] = pipes[kind].recv()
    speeds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    texts: dict[str, str] = {}
    for _ in range(options.rounds + 1):
        for kind, pipe in pipes.items():
            pipe.send("round")
            speed, texts[kind] = pipe.recv()
            speeds[kind].append(speed)
    for kind, pipe in pipes.items():
        pipe.send("end")
        loaded[kind]["resident"] = pipe.recv()
    for process in processes:
        process.join(30)
    _print(loaded, {kind: values[1:] for kind, values in speeds.items()}, texts)


def _print(
    loaded: dict[str, dict[str, Any]], speeds: dict[str, list[float]], texts: dict[str, str]
) -> None:
    table = Table("", "weights", "process", "said before loading", "loading", "tokens/s",
                  "perplexity")  # fmt: skip
    for kind, facts in loaded.items():
        values = speeds[kind]
        table.add_row(
            kind,
            f"{facts['weights']:.0f} MiB",
            f"{facts['resident']:.0f} MiB",
            facts["said"],
            f"{facts['seconds']:.1f} s",
            f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})",
            f"{facts['perplexity']:.2f}",
        )
    console = Console(width=120)
    console.print(table)
    for kind, text in texts.items():
        console.print(f"{kind}: {json.dumps(text[:100], ensure_ascii=False)}", markup=False)


if __name__ == "__main__":
    main()
