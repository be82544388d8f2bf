"""A vendor that fails three calls in ten, in every way, and 64 callers behind a Ray worker.

`nox -s soak` (BYZERLLM_SOAK=1) asks 20,000 times, the tests a twentieth of it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from rich.table import Table

import byzerllm
import vendors
from byzerllm.errors import ByzerLLMError, ProviderUnavailableError, StreamInterruptedError
from byzerllm.runtime.retries import TRIES

pytestmark = [pytest.mark.cluster, pytest.mark.soak, pytest.mark.timeout(1500)]

SOAK = os.environ.get("BYZERLLM_SOAK") == "1"
CALLS = 20_000 if SOAK else 1_000
# Memory is measured after each part.
PARTS = [0, CALLS // 10, CALLS * 4 // 10, CALLS * 7 // 10, CALLS]
TASKS, THREADS = 48, 16
SEED = os.environ.get("BYZERLLM_SEED", "1")
SCRIPT = Path(__file__).with_name("trouble_vendor.py")
READ_TIMEOUT = 5.0
CALL_SECONDS = 90.0
GROWTH_MIB = 16.0
MIB = 2**20

FINE = "fine"
ANSWER = "answer"
LIMITED, FAILED = {"RateLimitedError"}, {"ProviderUnavailableError"}
GARBAGE, SILENT = {"ProviderProtocolError"}, {"ProviderTimeoutError"}
BROKEN = {"StreamInterruptedError"}
RETRIED: dict[str, set[str]] = {
    "429": LIMITED,
    "429 with Retry-After": LIMITED,
    "500": FAILED,
    "503": {"ProviderOverloadedError"},
    "cut before the answer": FAILED,
    "cut in the middle": FAILED,
}
"""What is asked for again, and what it is called after the last try."""
WHOLE = {
    "garbage": GARBAGE,
    "a page of HTML": GARBAGE,
    "empty": GARBAGE,
    "wrong shape": GARBAGE,
    "slow": SILENT,
    "stalled in the middle": SILENT,
}
"""What ends a whole answer at once."""
STREAM = {
    **WHOLE,
    "garbage": GARBAGE | BROKEN,
    "wrong shape": GARBAGE | BROKEN,
    "stalled in the middle": SILENT | BROKEN,
    "cut in the middle": BROKEN,
}
"""What ends a stream at once: broken are those that had begun."""
STREAM_RETRIED = {**RETRIED, "a page of HTML": FAILED}


class Process:
    """The vendor in a process of its own."""

    def __init__(self) -> None:
        home = str(Path(vendors.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), SEED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": home},
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.url: str = told["url"]
        self.key: str = told["key"]

    def report(self) -> dict[str, list[str]]:
        """What it did to each question, by `MODEL: QUESTION`."""
        with urllib.request.urlopen(f"{self.url}/report", timeout=30) as answer:
            report = json.load(answer)
        assert report["complaints"] == []
        told: dict[str, list[str]] = report["told"]
        return told

    def outage(self, down: bool) -> None:
        request = urllib.request.Request(
            f"{self.url}/outage", data=json.dumps(down).encode(), method="PUT"
        )
        urllib.request.urlopen(request, timeout=30).close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def vendor() -> Iterator[Process]:
    process = Process()
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def llm(cluster: object, vendor: Process) -> Iterator[byzerllm.ByzerLLM]:
    """Its default model is `trouble`; `calm` never fails."""
    client = byzerllm.ByzerLLM(cpus_per_worker=0.1, worker_concurrency=128)
    for model in ("trouble", "calm"):
        client.deploy(
            pretrained_model_type="saas/openai",
            udf_name=model,
            infer_params={
                "saas.api_key": vendor.key,
                "saas.base_url": f"{vendor.url}/v1",
                "saas.model": model,
                "saas.read_timeout": READ_TIMEOUT,
            },
        )
    yield client.setup_default_model_name("trouble")
    for model in ("trouble", "calm"):
        client.undeploy(model, force=True)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each turn to a fallback is a warning, and pytest keeps them all."""
    caplog.set_level(logging.ERROR, logger="byzerllm.client")


def answer_to(question: str) -> str:
    return f"{question} is answered with a few words and {question}"


def is_stream(number: int) -> bool:
    return number % 4 >= 2


def has_fallback(number: int) -> bool:
    return number // 4 % 2 == 1


class Callers:
    """48 tasks and 16 threads that ask question after question, and what they were answered."""

    def __init__(self, llm: byzerllm.ByzerLLM, secret: str) -> None:
        self.plain = llm
        self.safe = byzerllm.ByzerLLM().setup_default_model_name("trouble")
        self.safe.setup_fallbacks("trouble", ["calm"])
        self.secret = secret
        self.outcomes: dict[int, str] = {}
        self.slips: list[str] = []
        self.seconds = 0.0
        self.slowest = 0.0

    def run(self, numbers: range) -> None:
        """Ask all of them; returns when every caller has its answer."""
        start = time.monotonic()
        left = iter(numbers)
        threads = [threading.Thread(target=self._thread, args=(left,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        asyncio.run(self._tasks(left))
        for thread in threads:
            thread.join(CALL_SECONDS)
            assert not thread.is_alive(), "a caller hangs"
        self.seconds += time.monotonic() - start
        assert not self.slips, self.slips[:3]

    def _thread(self, left: Iterator[int]) -> None:
        for number in left:
            start = time.monotonic()
            try:
                self._note(number, self._ask(number), start)
            except BaseException:
                self.slips.append(traceback.format_exc())
                return

    async def _tasks(self, left: Iterator[int]) -> None:
        async def caller() -> None:
            for number in left:
                start = time.monotonic()
                async with asyncio.timeout(CALL_SECONDS):
                    outcome = await self._ask_async(number)
                self._note(number, outcome, start)

        await asyncio.gather(*(caller() for _ in range(TASKS)))

    def _note(self, number: int, outcome: str, start: float) -> None:
        assert number not in self.outcomes
        self.outcomes[number] = outcome
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _client(self, number: int) -> byzerllm.ByzerLLM:
        return self.safe if has_fallback(number) else self.plain

    def _ask(self, number: int) -> str:
        question, client, texts = f"q{number}", self._client(number), [""]
        try:
            if not is_stream(number):
                (answer,) = client.chat_oai(question)
                return self._whole(question, answer)
            delta = number % 4 == 2
            with closing(client.stream_chat_oai(question, delta_mode=delta)) as items:  # type: ignore[type-var]
                for item in items:
                    texts.append(item.text)
            return self._streamed(question, texts, item, delta)
        except ByzerLLMError as error:
            return self._named(question, error, texts, number % 4 == 2)

    async def _ask_async(self, number: int) -> str:
        question, client, texts = f"q{number}", self._client(number), [""]
        delta = number % 4 == 2
        try:
            if not is_stream(number):
                (answer,) = await client.async_chat_oai(question)
                return self._whole(question, answer)
            stream = client.async_stream_chat_oai(question, delta_mode=delta)
            async with aclosing(stream) as items:  # type: ignore[type-var]
                async for item in items:
                    texts.append(item.text)
            return self._streamed(question, texts, item, delta)
        except ByzerLLMError as error:
            return self._named(question, error, texts, delta)

    def _whole(self, question: str, answer: Any) -> str:
        assert answer.output == answer_to(question)
        return ANSWER

    def _streamed(self, question: str, texts: list[str], last: Any, delta: bool) -> str:
        assert ("".join(texts) if delta else texts[-1]) == answer_to(question)
        assert last.metadata.finish_reason == "stop"
        return ANSWER

    def _named(self, question: str, error: ByzerLLMError, texts: list[str], delta: bool) -> str:
        shown = f"{error!r} {error.details!r} {''.join(traceback.format_exception(error))}"
        assert self.secret not in shown
        received = "".join(texts) if delta else texts[-1]
        assert answer_to(question).startswith(received)
        if isinstance(error, StreamInterruptedError):
            assert error.text == received != ""
        else:
            assert received == ""
        return type(error).__name__


def check(number: int, outcome: str, told: dict[str, list[str]]) -> None:
    """Whether a call ended as what the vendor did to it says."""
    kinds = told[f"trouble: q{number}"]
    *earlier, last = kinds
    retried, ends = (STREAM_RETRIED, STREAM) if is_stream(number) else (RETRIED, WHOLE)
    shown = f"q{number}: {outcome} after {kinds}"
    assert len(kinds) <= TRIES, shown
    assert set(earlier) <= retried.keys(), shown
    rescued = told.get(f"calm: q{number}", [])
    if outcome == ANSWER:
        assert rescued == ([] if last == FINE else [FINE]), shown
        assert last == FINE or has_fallback(number), shown
        return
    assert rescued == [], shown
    assert outcome == "StreamInterruptedError" or not has_fallback(number), shown
    if last in retried and len(kinds) == TRIES and outcome in retried[last]:
        return
    assert outcome in ends[last], shown


def memory(llm: byzerllm.ByzerLLM) -> dict[str, float]:
    """MiB of the caller and of the workers."""
    gc.collect()
    found = {"caller": psutil.Process().memory_info().rss / MIB}
    for model in llm.stat():
        for worker in model["workers"]:
            found[f"worker of {model['model']}"] = worker["rss"] / MIB
    return found


def test_an_hour_of_trouble(
    llm: byzerllm.ByzerLLM, vendor: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    callers = Callers(llm, vendor.key)
    sizes = []
    for first, end in pairwise(PARTS):
        callers.run(range(first, end))
        sizes.append(memory(llm))
    told = vendor.report()
    if SOAK:
        with capsys.disabled():
            show(callers, told, sizes)
    assert sorted(callers.outcomes) == list(range(CALLS))
    for number, outcome in callers.outcomes.items():
        check(number, outcome, told)
    for model in llm.stat():
        (worker,) = model["workers"]
        assert (worker["running"], worker["queued"], worker["cooling"]) == (0, 0, 0)
    for name, size in sizes[0].items():
        assert sizes[-1][name] - size < GROWTH_MIB, f"{name}: {sizes}"


def show(
    callers: Callers,
    told: dict[str, list[str]],
    sizes: list[dict[str, float]],
) -> None:
    outcomes = Table(title=f"{CALLS:,} calls of {TASKS + THREADS} callers")
    for column in ("outcome", "whole", "streams", "whole, fallback", "streams, fallback"):
        outcomes.add_column(column, justify="left" if column == "outcome" else "right")
    groups: dict[str, Counter[tuple[bool, bool]]] = {}
    for number, outcome in callers.outcomes.items():
        groups.setdefault(outcome, Counter())[has_fallback(number), is_stream(number)] += 1
    for outcome, counts in sorted(groups.items(), key=lambda group: -group[1].total()):
        cells = [(False, False), (False, True), (True, False), (True, True)]
        outcomes.add_row(outcome, *(f"{counts[cell]:,}" for cell in cells))
    asked = Counter(kind for kinds in told.values() for kind in kinds)
    tries = sum(len(kinds) for name, kinds in told.items() if name.startswith("trouble"))
    figures = Table(title="figures")
    figures.add_column("what")
    figures.add_column("figure", justify="right")
    for what, figure in {
        "calls/s": f"{CALLS / callers.seconds:,.0f}",
        "requests that the vendor saw": f"{asked.total():,}",
        "of them it failed": f"{asked.total() - asked[FINE]:,}",
        "sent again": f"{tries - CALLS:,}",
        "asked of the fallback": f"{asked.total() - tries:,}",
        "slowest call": f"{callers.slowest:.1f} s",
        **{
            f"RSS of {name}, MiB": " → ".join(f"{size[name]:.1f}" for size in sizes)
            for name in sizes[0]
        },
    }.items():
        figures.add_row(what, figure)
    console = Console(width=100)
    console.print(outcomes, figures)


# An outage.


def test_an_outage_is_left_alone_and_its_end_is_found(
    llm: byzerllm.ByzerLLM, vendor: Process
) -> None:
    safe = byzerllm.ByzerLLM().setup_fallbacks("trouble", ["calm"])

    async def asked(client: byzerllm.ByzerLLM, question: str) -> str:
        async with asyncio.timeout(CALL_SECONDS):
            (answer,) = await client.async_chat_oai(question, model="trouble")
        assert answer.output == answer_to(question)
        return str(answer.metadata.model)

    async def until_cooling() -> AsyncIterator[ByzerLLMError]:
        for number in range(1000):
            try:
                await asked(llm, f"outage-{number}")
            except ProviderUnavailableError as error:
                if error.details.get("cooling"):
                    yield error
                    return
            except ByzerLLMError:
                pass

    async def run() -> None:
        vendor.outage(True)
        many = [anext(until_cooling()) for _ in range(TASKS)]
        for error in await asyncio.gather(*many):
            assert error.retry_after > 0
            assert not error.retryable
        before = sum(map(len, vendor.report().values()))
        start = time.monotonic()
        who = await asyncio.gather(*(asked(safe, f"rescued-{number}") for number in range(200)))
        assert set(who) == {"calm"}
        assert time.monotonic() - start < 10
        after = vendor.report()
        assert sum(map(len, after.values())) - before <= 200 + 5
        vendor.outage(False)
        end = time.monotonic() + 60
        number = 0
        while True:
            assert time.monotonic() < end
            number += 1
            if await asked(safe, f"again-{number}") == "trouble":
                break
            await asyncio.sleep(0.1)
        who = await asyncio.gather(*(asked(safe, f"well-{number}") for number in range(100)))
        assert who.count("trouble") > 50

    asyncio.run(run())
    assert llm.stat("trouble")[0]["workers"][0]["cooling"] == 0
