"""How fast the llama.cpp backend is beside llama.cpp itself, and whether company changes answers.

All figures come from one interleaved run on one machine, so that its noise meets them alike:

    python benchmarks/llamacpp.py [--pairs 7] [--tokens 96] [--rounds 3] [--threads N] [--no-server]

References: `llama_cpp.Llama` called directly for one request; bare `llama_decode` on eight
sequences without drawing any token for eight at once, and beside it `python -m llama_cpp.server`
under the same eight requests. The backend runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from byzerllm.backend import BackendContext
from byzerllm.decoding.threads import thread_count
from byzerllm.plugins import get_plugins
from byzerllm.requests import GenerateRequest, SamplingParams, TokenLogprob
from byzerllm_backend_llamacpp import LLAMA_CPP
from byzerllm_backend_llamacpp.backend import LlamaCppBackend
from byzerllm_backend_llamacpp.context import answering_context
from byzerllm_backend_llamacpp.native import llama_cpp

EIGHT = 8
N_CTX = 2048
NEAR_TIE = 0.2
SERVER_START_SECONDS = 120.0
TOPICS = (
    "a lighthouse", "the number seven", "a lost key", "rain in a desert", "an old train",
    "a violin", "the first snow", "a market at dawn", "two rivers", "a chess game",
    "a garden on a roof", "a letter from far away", "the night watch", "a paper boat",
    "an empty theatre", "a clock maker", "the last bus", "a bridge of ropes", "honey",
    "a map without names",
)  # fmt: skip


@dataclass
class Answer:
    """Text, tokens and the time of each chunk, in seconds since the request."""

    text: str = ""
    tokens: int = 0
    times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Ours:
    """The backend in this process."""

    def __init__(self, path: Path, threads: int, concurrency: int, **more: Any) -> None:
        self.path, self.concurrency = path, concurrency
        given = {"n_ctx": N_CTX, "n_threads": threads, **more}
        self.parameters = LLAMA_CPP.parameters.parse(given, where="the benchmark")
        self.backend: LlamaCppBackend

    async def load(self) -> Ours:
        self.backend = await LlamaCppBackend.create(
            BackendContext(
                model="bench",
                model_path=self.path,
                model_type="custom/auto",
                parameters=self.parameters,
                concurrency=self.concurrency,
            )
        )
        return self

    async def ask(self, prompt: str, **sampling: Any) -> Answer:
        params = SamplingParams.parse({"temperature": 0, **sampling})
        request = GenerateRequest(id="bench", prompt=prompt, sampling=params, stream=True)
        answer, start = Answer(), time.perf_counter()
        async with aclosing(self.backend.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.token_ids:
                    answer.times.append(time.perf_counter() - start)
                answer.text += chunk.text
                answer.tokens += len(chunk.token_ids)
                answer.logprobs += chunk.logprobs
        return answer

    async def many(self, prompts: list[str], **sampling: Any) -> tuple[float, list[Answer]]:
        """Tokens per second of all together, prompts included, and the answers."""
        start = time.perf_counter()
        answers = await asyncio.gather(*(self.ask(prompt, **sampling) for prompt in prompts))
        return sum(a.tokens for a in answers) / (time.perf_counter() - start), answers


class Raw:
    """Bare `llama_decode` on eight sequences of a context like the backend's own."""

    def __init__(self, ours: Ours, threads: int) -> None:
        self.model = ours.backend._model
        self.context = answering_context(
            self.model, ours.parameters, n_ctx=N_CTX, sequences=EIGHT, shared=False, threads=threads
        )
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)

    def rate(self, prompts: list[str], tokens: int) -> tuple[float, float]:
        """Tokens per second: prompts included, and of the steps at batch eight alone."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, False)
        rows = [self.model.prompt_tokens(prompt) for prompt in prompts]
        start = time.perf_counter()
        self._decode([(n, t, p) for n, row in enumerate(rows) for p, t in enumerate(row)])
        begun = time.perf_counter()
        for step in range(tokens - 1):
            self._decode([(n, row[step % len(row)], len(row) + step) for n, row in enumerate(rows)])
        end = time.perf_counter()
        return (
            EIGHT * tokens / (end - start),
            EIGHT * (tokens - 1) / (end - begun),
        )

    def _decode(self, entries: list[tuple[int, int, int]]) -> None:
        size = llama_cpp.llama_n_batch(self.context)
        for begin in range(0, len(entries), size):
            part = entries[begin : begin + size]
            last = {sequence: at for at, (sequence, _, _) in enumerate(entries)}
            for at, (sequence, token, position) in enumerate(part):
                self.batch.token[at], self.batch.pos[at] = token, position
                self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
                self.batch.logits[at] = last[sequence] == begin + at
            self.batch.n_tokens = len(part)
            if llama_cpp.llama_decode(self.context, self.batch):
                raise RuntimeError("llama_decode failed")
            llama_cpp.llama_synchronize(self.context)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)


class Server:
    """`python -m llama_cpp.server` under the same requests."""

    def __init__(self, port: int) -> None:
        self.port = port

    def many(self, prompts: list[str], tokens: int) -> tuple[float, list[Answer]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            start = time.perf_counter()
            answers = list(pool.map(lambda prompt: self._ask(prompt, tokens), prompts))
            return sum(a.tokens for a in answers) / (time.perf_counter() - start), answers

    def _ask(self, prompt: str, tokens: int) -> Answer:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        answer, start = Answer(), time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            data = line.decode().removeprefix("data: ").strip()
            if data.startswith("{") and (text := json.loads(data)["choices"][0]["text"]):
                answer.times.append(time.perf_counter() - start)
                answer.text += text
                answer.tokens += 1
        connection.close()
        return answer


@contextmanager
def running_server(path: Path, threads: int) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(N_CTX)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
    # By default a new request cuts off the stream that is being answered.
    command += ["--interrupt_requests", "false", "--verbose", "false"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        _wait_for(port, process)
        yield Server(port)
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("llama_cpp.server did not start; is llama-cpp-python[server] installed?")


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


class Bench:
    def __init__(self, options: argparse.Namespace, path: Path, console: Console) -> None:
        self.options, self.path, self.console = options, path, console
        self.threads = options.threads
        self.table = Table(
            title=f"llama.cpp backend, {path.name}, {self.threads} threads, "
            f"{options.tokens} tokens per answer, tokens/s: median (least–most)"
        )
        for title in ("what", "tokens/s", "beside", "goal"):
            self.table.add_column(title)

    async def run(self) -> None:
        keeping = await Ours(self.path, self.threads, EIGHT).load()
        await self.one_request(keeping)
        await keeping.backend.close()
        # Bare llama_decode reuses no prompt, so neither does the backend from here on.
        ours = await Ours(self.path, self.threads, EIGHT, cache_prompt=False).load()
        await self.eight_at_once(ours)
        self.console.print(self.table)
        await self.alone_and_in_company(ours)
        await ours.backend.close()

    async def prompt(self, ours: Ours, topic: str) -> str:
        message = {"role": "user", "content": f"Tell a long story about {topic}."}
        return await ours.backend.apply_chat_template([message])

    async def one_request(self, ours: Ours) -> None:
        """Alternating pairs; within a pair, who goes first alternates too."""
        self.console.print(f"one request: {self.options.pairs} pairs")
        direct = llama_cpp.Llama(
            str(self.path),
            n_ctx=N_CTX,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            verbose=False,
        )
        rates: dict[str, list[float]] = {"direct": [], "ours": []}

        def ask_directly(prompt: str) -> float:
            start = time.perf_counter()
            done = direct.create_completion(prompt, max_tokens=self.options.tokens, temperature=0)
            return float(done["usage"]["completion_tokens"]) / (time.perf_counter() - start)

        async def ask_ours(prompt: str) -> float:
            start = time.perf_counter()
            answer = await ours.ask(prompt, max_tokens=self.options.tokens)
            return answer.tokens / (time.perf_counter() - start)

        for pair in range(-1, self.options.pairs):
            prompt = await self.prompt(ours, f"{TOPICS[pair]} and the number {pair + 100}")
            order = ("direct", "ours") if pair % 2 else ("ours", "direct")
            for name in order:
                rate = ask_directly(prompt) if name == "direct" else await ask_ours(prompt)
                if pair >= 0:
                    rates[name].append(rate)
        direct.close()
        ratios = [a / b for a, b in zip(rates["ours"], rates["direct"], strict=True)]
        self.table.add_row("one request, llama_cpp.Llama", spread(rates["direct"]), "", "")
        self.table.add_row(
            "one request, ours",
            spread(rates["ours"]),
            f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})",
            "≥ 0.95×",
        )

    async def eight_at_once(self, ours: Ours) -> None:
        self.console.print(f"eight at once: {self.options.rounds} rounds")
        shared = await Ours(
            self.path, self.threads, EIGHT, cache_prompt=False, kv_unified=True
        ).load()
        raw = Raw(ours, self.threads)
        rates: dict[str, list[float]] = {}
        answers: dict[str, list[Answer]] = {}
        growing: list[float] = []
        greedy = {"max_tokens": self.options.tokens, "ignore_eos": True}
        drawn = {**greedy, "temperature": None}

        def note(name: str, rate: float, given: list[Answer] | None = None) -> None:
            rates.setdefault(name, []).append(rate)
            answers.setdefault(name, []).extend(given or [])

        with contextmanager(self._server)() as server:
            for turn in range(self.options.rounds):
                topics = [f"{TOPICS[n]} in year {turn + 1900}" for n in range(EIGHT)]
                # Without the template's system message: growing together is what is measured.
                prompts = [f"A long story about {topic}:" for topic in topics]
                whole, steps = raw.rate(prompts, self.options.tokens)
                note("raw", whole)
                note("raw steps", steps)
                rate, given = await ours.many(prompts, **greedy)
                note("ours", rate, given)
                growing.append(_growing_rate(given))
                note("drawn", *await ours.many([f"{p} " for p in prompts], **drawn))
                note("shared", *await shared.many(prompts, **greedy))
                if server is not None:
                    note("server", *await asyncio.to_thread(
                        server.many, prompts, self.options.tokens
                    ))  # fmt: skip
        raw.close()
        await shared.backend.close()
        self._eight_rows(rates, answers, growing)

    def _server(self) -> Iterator[Server | None]:
        if self.options.no_server:
            yield None
            return
        with running_server(self.path, self.threads) as server:
            yield server

    def _eight_rows(
        self, rates: dict[str, list[float]], answers: dict[str, list[Answer]], growing: list[float]
    ) -> None:
        def beside(name: str, other: str) -> str:
            pairs = zip(rates[name], rates[other], strict=True)
            ratios = [a / b for a, b in pairs]
            return f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"

        step_ratio = statistics.median(
            a / b for a, b in zip(growing, rates["raw steps"], strict=True)
        )
        add = self.table.add_row
        add("eight, bare llama_decode with prompts", spread(rates["raw"]), "", "")
        add("eight, ours", spread(rates["ours"]), beside("ours", "raw"), "≥ 0.85×")
        add("eight, ours, temperature 0.8", spread(rates["drawn"]), beside("drawn", "raw"), "")
        add("eight, ours, one shared cache", spread(rates["shared"]), beside("shared", "raw"), "")
        add("eight, bare llama_decode, steps alone", spread(rates["raw steps"]), "", "")
        add("eight, ours while all grow", spread(growing), f"{step_ratio:.2f}×", "≥ 0.85×")
        if "server" in rates:
            add(
                "eight, llama_cpp.server",
                spread(rates["server"]),
                f"ours is {beside('ours', 'server')}",
                "",
            )
        for name in ("ours", "server"):
            if answers.get(name):
                add(f"eight, {name}: when they grow", _overlap(answers[name]), "", "")

    async def alone_and_in_company(self, ours: Ours) -> None:
        """Greedy answers to 20 prompts, one after the other and all at once."""
        prompts = [await self.prompt(ours, topic) for topic in TOPICS]
        options = {"max_tokens": self.options.tokens, "logprobs": 5}
        alone = [await ours.ask(prompt, **options) for prompt in prompts]
        _, company = await ours.many(prompts, **options)
        table = Table(title="greedy answers to 20 prompts, alone and in company: where they part")
        for title in ("prompt", "token", "alone", "in company", "best two, log-probability apart"):
            table.add_column(title)
        gaps = []
        for topic, one, other in zip(TOPICS, alone, company, strict=True):
            parted = _parting(one, other)
            if parted is not None:
                gaps.append(parted[3])
                table.add_row(topic, str(parted[0]), *parted[1:3], f"{parted[3]:.4f}")
        self.console.print(table)
        verdict = (
            "only at near-ties" if max(gaps, default=0) < NEAR_TIE else "NOT only at near-ties"
        )
        self.console.print(
            f"{len(TOPICS) - len(gaps)} of {len(TOPICS)} answers are equal; {len(gaps)} part, "
            f"{verdict} (widest {max(gaps, default=0):.4f}, limit {NEAR_TIE})"
        )


def _parting(one: Answer, other: Answer) -> tuple[int, str, str, float] | None:
    """Position, both tokens, and how far apart the two best were; None for equal answers."""
    pairs = zip(one.logprobs, other.logprobs, strict=False)
    for position, (mine, theirs) in enumerate(pairs):
        if mine.id != theirs.id:
            gap = mine.top[0][2] - mine.top[1][2]
            return position, repr(mine.token), repr(theirs.token), gap
    return None


def _growing_rate(answers: list[Answer]) -> float:
    """Tokens per second between the last answer's first token and the first answer's end."""
    begin = max(answer.times[0] for answer in answers)
    end = min(answer.times[-1] for answer in answers)
    grown = sum(sum(begin < at <= end for at in answer.times) for answer in answers)
    return grown / (end - begin)


def _overlap(answers: list[Answer]) -> str:
    rounds = [answers[at : at + EIGHT] for at in range(0, len(answers), EIGHT)]
    first = statistics.median(max(one.times[0] for one in group) for group in rounds)
    end = statistics.median(min(one.times[-1] for one in group) for group in rounds)
    least = min(sum(at <= 1.0 for at in answer.times) for answer in answers)
    return (
        f"last begins at {first:.2f} s, first ends at {end:.2f} s; "
        f"at least {least} tokens of each within 1 s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="pairs of one request")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of eight at once")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens per answer")
    parser.add_argument("--threads", type=int, default=thread_count(1), help="for all alike")
    parser.add_argument("--model", default="demo:smollm2-135m-instruct", help="path or reference")
    parser.add_argument("--no-server", action="store_true", help="leave llama_cpp.server out")
    options = parser.parse_args()
    if min(options.pairs, options.rounds, options.threads) < 1 or options.tokens < 2:
        parser.error("--pairs, --rounds and --threads are at least 1, --tokens at least 2")
    scheme, _, reference = options.model.partition(":")
    sources = get_plugins().sources
    known = reference and scheme in sources
    path = sources.get(scheme).fetch(reference, print) if known else Path(options.model)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
    asyncio.run(Bench(options, path, console).run())


if __name__ == "__main__":
    main()
