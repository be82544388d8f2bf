"""How fast the transformers backend is beside transformers itself, and what company costs.

All figures come from one interleaved run on one machine, so that its noise meets them alike:

    python benchmarks/transformers_chat.py [--model FOLDER] [--rounds 3] [--tokens 64]

References: `model.generate` on the same loaded weights for one request; the same eight requests one
after the other for eight at once; and `model.generate_batch`, transformers' own continuous
batching, where it runs. The backend runs in this process, without Ray.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch
import transformers
from peers.small_models import smollm2_folder
from rich.console import Console
from rich.table import Table

from byzerllm.backend import BackendContext
from byzerllm.requests import GenerateRequest, SamplingParams
from byzerllm_backend_transformers import TRANSFORMERS
from byzerllm_backend_transformers.backend import TransformersBackend

QUESTIONS = (
    "Tell me a story about a lighthouse.", "Describe the number seven.",
    "Why do keys get lost?", "What is rain in a desert like?", "Write about an old train.",
    "How is a violin made?", "Describe the first snow.", "What is sold at a market at dawn?",
)  # fmt: skip
NEAR_TIE = 1e-3


class Ours:
    """The backend in this process."""

    def __init__(self, backend: TransformersBackend, tokens: int) -> None:
        self.backend, self.tokens = backend, tokens

    @property
    def causal(self) -> Any:
        return self.backend.task._model  # type: ignore[attr-defined]

    async def ask(self, question: str) -> list[int]:
        params = SamplingParams(max_tokens=self.tokens, temperature=0, ignore_eos=True)
        messages = [{"role": "user", "content": question}]
        request = GenerateRequest(id="bench", messages=messages, sampling=params, stream=True)
        ids: list[int] = []
        async with aclosing(self.backend.generate(request)) as chunks:
            async for chunk in chunks:
                ids += chunk.token_ids
        return ids

    async def one(self) -> float:
        begin = time.perf_counter()
        await self.ask(QUESTIONS[0])
        return self.tokens / (time.perf_counter() - begin)

    async def one_by_one(self) -> float:
        begin = time.perf_counter()
        for question in QUESTIONS:
            await self.ask(question)
        return len(QUESTIONS) * self.tokens / (time.perf_counter() - begin)

    async def together(self) -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(self.ask(question) for question in QUESTIONS))
        return len(QUESTIONS) * self.tokens / (time.perf_counter() - begin)


class Bare:
    """transformers on the same weights."""

    def __init__(self, ours: Ours) -> None:
        causal = ours.causal
        self.model, self.tokens, self.device = causal.model, ours.tokens, causal.device
        self.ids = [
            causal.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=False,
            )
            for question in QUESTIONS
        ]

    @torch.inference_mode()
    def generate(self, ids: list[int], **more: Any) -> Any:
        config = transformers.GenerationConfig(
            max_new_tokens=self.tokens, do_sample=False, pad_token_id=0, **more
        )
        given = torch.tensor([ids], device=self.device)
        return self.model.generate(
            given, attention_mask=torch.ones_like(given), generation_config=config
        )

    def one(self) -> float:
        begin = time.perf_counter()
        self.generate(self.ids[0])
        return self.tokens / (time.perf_counter() - begin)

    def batched(self) -> float:
        """Its own continuous batching."""
        config = transformers.GenerationConfig(
            max_new_tokens=self.tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        before = self.model.config._attn_implementation
        begin = time.perf_counter()
        try:
            results = self.model.generate_batch(
                inputs=self.ids, generation_config=config, progress_bar=False
            )
        finally:
            self.model.set_attn_implementation(before)
        count = sum(len(result.generated_tokens) for result in results.values())
        if count < len(self.ids) * self.tokens // 2:
            raise RuntimeError(f"only {count} tokens")
        return count / (time.perf_counter() - begin)


async def measure(arguments: argparse.Namespace) -> None:
    console = Console()
    ours = Ours(await _loaded(arguments, console), arguments.tokens)
    bare = Bare(ours)
    console.print(f"{torch.get_num_threads()} threads, device {bare.device}, {bare.model.dtype}")
    rates: dict[str, list[float]] = {}
    failed = ""
    await ours.one()
    for _ in range(arguments.rounds):
        for name, measured in (("generate", bare.one), ("ours, one", ours.one)):
            rates.setdefault(name, []).append(await _rate(measured))
        rates.setdefault("ours, one by one", []).append(await ours.one_by_one())
        rates.setdefault("ours, eight at once", []).append(await ours.together())
        if arguments.peer and not failed:
            try:
                rates.setdefault("generate_batch, eight", []).append(bare.batched())
            except Exception as error:
                failed = f"generate_batch does not run here: {type(error).__name__}: {error}"
    _print(console, rates)
    if failed:
        console.print(failed[:400])
    await _compare(console, ours, bare)
    await ours.backend.close()


async def _loaded(arguments: argparse.Namespace, console: Console) -> TransformersBackend:
    given = {"max_model_len": 2048}
    if arguments.threads:
        given["threads"] = arguments.threads
    context = BackendContext(
        model="bench",
        model_path=arguments.model,
        model_type="custom/auto",
        parameters=TRANSFORMERS.parameters.parse(given, where="the benchmark"),
        concurrency=len(QUESTIONS),
        gpus=1.0 if arguments.device == "cuda" else 0.0,
        report=lambda phase: console.print(f"[dim]{phase}[/dim]"),
    )
    return await TransformersBackend.create(context)


async def _rate(measured: Callable[[], Any]) -> float:
    result = measured()
    return await result if asyncio.iscoroutine(result) else result


def _print(console: Console, rates: dict[str, list[float]]) -> None:
    table = Table("what", "tokens/s, median (min-max)", "against")
    for name, values in rates.items():
        middle = statistics.median(values)
        reference = {
            "ours, one": "generate",
            "ours, eight at once": "ours, one by one",
            "generate_batch, eight": "ours, eight at once",
        }.get(name)
        against = ""
        if reference:
            ratios = [a / b for a, b in zip(values, rates[reference], strict=False)]
            against = f"{statistics.median(ratios):.2f}x {reference}"
        table.add_row(name, f"{middle:.1f} ({min(values):.1f}-{max(values):.1f})", against)
    console.print(table)


async def _compare(console: Console, ours: Ours, bare: Bare) -> None:
    """Whether the greedy texts of eight in company are those of `generate`."""
    answers = await asyncio.gather(*(ours.ask(question) for question in QUESTIONS))
    equal = 0
    for question, ids, got in zip(QUESTIONS, bare.ids, answers, strict=True):
        output = bare.generate(ids, return_dict_in_generate=True, output_logits=True)
        expected = output.sequences[0, len(ids) :].tolist()
        at = next((n for n, pair in enumerate(zip(got, expected, strict=True)) if len({*pair}) > 1),
                  None)  # fmt: skip
        equal += at is None
        if at is not None:
            first, second = output.logits[at][0].topk(2).values.tolist()
            near = "nearly equal" if first - second < NEAR_TIE else "NOT nearly equal"
            console.print(f"{question!r}: token {at}, {near}: {first - second:.2e} apart")
    console.print(f"{equal} of {len(QUESTIONS)} greedy texts in company are those of generate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="a folder; default: SmolLM2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="no generate_batch")
    arguments = parser.parse_args()
    arguments.model = arguments.model or smollm2_folder()
    asyncio.run(measure(arguments))


if __name__ == "__main__":
    main()
