"""What the runtime without Ray does beyond the client's own tests."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from byzerllm.errors import ModelExistsError, ModelLoadError, OverloadedError, RequestTimeoutError
from byzerllm.requests import EmbedRequest, GenerateRequest, GenerateResult, MetaRequest
from byzerllm.runtime.background import BackgroundLoop, background_loop, inbox_of
from byzerllm.runtime.deployment import DeploymentSpec
from byzerllm.runtime.local import LocalRuntime, local_runtime


@pytest.fixture
def runtime() -> Iterator[LocalRuntime]:
    made = LocalRuntime()
    yield made
    for row in made.models():
        made.undeploy(row["model"], force=True)


def deploy(
    runtime: LocalRuntime, model: str = "m", replace: bool = False, **fields: object
) -> None:
    spec = DeploymentSpec(model=model, backend="echo", **fields)  # type: ignore[arg-type]
    runtime.deploy(spec, replace=replace, progress=None)


def ask(text: str = "a b") -> GenerateRequest:
    return GenerateRequest(id=f"{text}-{time.monotonic_ns()}", prompt=text)


def test_one_per_process() -> None:
    assert local_runtime() is local_runtime()
    assert background_loop() is background_loop()
    assert LocalRuntime() is not local_runtime()


def test_calls_from_many_threads(runtime: LocalRuntime) -> None:
    deploy(runtime, num_workers=2)
    texts: list[str] = []

    def call(number: int) -> None:
        for turn in range(20):
            result = runtime.call_sync("m", ask(f"{number} {turn}"), timeout=10)
            assert isinstance(result, GenerateResult)
            texts.append(result.text)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(f"{number} {turn}" for number in range(8) for turn in range(20))


def test_calls_from_a_loop_of_the_caller_and_from_the_background_loop(
    runtime: LocalRuntime,
) -> None:
    deploy(runtime)

    async def both() -> None:
        await runtime.call("m", ask(), timeout=5)
        chunks = [chunk async for chunk in runtime.stream("m", ask(), timeout=5)]
        assert chunks[-1].finish_reason == "stop"

    asyncio.run(both())
    background_loop().run(both())


def test_the_balancer_and_then_the_others_are_tried(runtime: LocalRuntime) -> None:
    deploy(
        runtime,
        num_workers=2,
        worker_concurrency=1,
        max_queue=0,
        balancer="round_robin",
        infer_params={"delay": 0.05},
    )

    async def three() -> list[object]:
        # The second one's first choice is worker 1, the third one's is worker 0.
        calls = [runtime.call("m", ask("a"), timeout=5) for _ in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    outcomes = asyncio.run(three())
    assert sum(isinstance(outcome, OverloadedError) for outcome in outcomes) == 1
    stat = runtime.stat("m")[0]["workers"]
    assert [worker["done"] for worker in stat] == [1, 1]
    assert [worker["refused"] for worker in stat] == [1, 1]


def test_replacing_keeps_the_old_one_when_the_new_one_does_not_load(
    runtime: LocalRuntime,
) -> None:
    deploy(runtime)
    with pytest.raises(ModelLoadError):
        deploy(runtime, replace=True, infer_params={"fail_load": "no"})
    with pytest.raises(ModelExistsError):
        deploy(runtime)
    assert runtime.call_sync("m", MetaRequest(id="x"), timeout=5)


def test_names_are_taken_while_loading(runtime: LocalRuntime) -> None:
    outcomes: list[str] = []

    def make() -> None:
        try:
            deploy(runtime, infer_params={"load_delay": 0.1})
        except ModelExistsError:
            outcomes.append("taken")
        else:
            outcomes.append("deployed")

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["deployed", "taken"]


def test_undeploy_waits_for_what_runs(runtime: LocalRuntime) -> None:
    deploy(runtime, infer_params={"delay": 0.05})
    results: list[object] = []
    request = ask("a b c")
    thread = threading.Thread(
        target=lambda: results.append(runtime.call_sync("m", request, timeout=5))
    )
    thread.start()
    time.sleep(0.05)
    runtime.undeploy("m", force=False)
    thread.join()
    assert isinstance(results[0], GenerateResult)
    assert results[0].text == "a b c"


def test_timeouts_of_every_kind(runtime: LocalRuntime) -> None:
    deploy(runtime, worker_concurrency=1, infer_params={"delay": 5.0})

    async def run() -> None:
        first = asyncio.ensure_future(runtime.call("m", ask(), timeout=0.2))
        await asyncio.sleep(0.05)
        # This one waits for its turn until its time is up.
        embed = EmbedRequest(id="e", texts=["x"])
        with pytest.raises(RequestTimeoutError, match=r"within 0\.05 s") as got:
            await runtime.call("m", embed, timeout=0.05)
        assert got.value.request_id == "e"
        with pytest.raises(RequestTimeoutError, match=r"within 0\.2 s"):
            await first
        with pytest.raises(RequestTimeoutError):
            async for _ in runtime.stream("m", ask(), timeout=0.1):
                pass

    asyncio.run(run())
    assert runtime.stat("m")[0]["workers"][0]["running"] == 0


def test_secrets_are_masked(runtime: LocalRuntime) -> None:
    # Parameters are checked, so only the table can show what was given.
    row = DeploymentSpec(model="m", infer_params={"api_key": "sk-hidden"}).masked()
    assert "sk-hidden" not in str(row)
    deploy(runtime)
    assert set(row) <= set(runtime.models()[0])


# The loop in the background.


def test_background_results_and_errors() -> None:
    loop = BackgroundLoop()

    async def fails() -> None:
        raise ValueError("inside")

    async def gives() -> int:
        return 5

    assert loop.run(gives()) == 5
    with pytest.raises(ValueError, match="inside"):
        loop.run(fails())
    stop(loop)


def test_background_iteration_ends_with_its_caller() -> None:
    loop = BackgroundLoop()
    closed = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    items = loop.iterate(numbers())
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(1)

    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise ValueError("half way")

    seen = []
    with pytest.raises(ValueError, match="half way"):
        seen.extend(loop.iterate(breaks()))
    assert next(loop.iterate(breaks())) == 1
    gc.collect()
    stop(loop)


def stop(loop: BackgroundLoop) -> None:
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    assert loop.thread is not None
    loop.thread.join(5)
    loop.loop.close()


def test_background_calls_from_another_loop() -> None:
    """Many at once from a loop of the caller: results, errors, contexts and cancellations stay
    each caller's own."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    background = background_loop()
    ended: list[int] = []

    async def work(number: int) -> str:
        try:
            await asyncio.sleep(0.01 if number % 7 else 30)
        finally:
            ended.append(number)
        if number % 5 == 0:
            raise ValueError(number)
        return f"{name.get()} {number}"

    async def one(number: int) -> str:
        name.set(f"caller {number}")
        async with asyncio.timeout(0.5):
            return await background.call(work(number))

    async def many() -> list[Any]:
        return await asyncio.gather(*(one(n) for n in range(200)), return_exceptions=True)

    for number, result in enumerate(asyncio.run(many())):
        if number % 7 == 0:
            assert isinstance(result, TimeoutError)
        elif number % 5 == 0:
            assert isinstance(result, ValueError)
        else:
            assert result == f"caller {number} {number}"
    # A cancellation arrives a little later.
    background.run(asyncio.sleep(0.1))
    assert sorted(ended) == list(range(200))


def test_inbox_loses_nothing() -> None:
    """Threads put while the loop empties the inbox; a call that fails takes no other with it."""
    seen: list[int] = []
    loop = asyncio.new_event_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: failures.append(context))
    inbox = inbox_of(loop)
    assert inbox_of(loop) is inbox

    def take(number: int) -> None:
        if number % 1000 == 0:
            raise ValueError(number)
        seen.append(number)

    def put(first: int) -> None:
        for number in range(first, first + 5000):
            inbox.put(take, number)

    threads = [threading.Thread(target=put, args=(first,)) for first in (0, 5000, 10000)]
    for thread in threads:
        thread.start()

    end = time.monotonic() + 20
    while len(seen) + len(failures) < 15000 and time.monotonic() < end:
        loop.run_until_complete(asyncio.sleep(0.01))
    for thread in threads:
        thread.join()
    loop.close()
    assert sorted(seen) == [number for number in range(15000) if number % 1000]
    assert len(failures) == 15
    with pytest.raises(RuntimeError):
        inbox.put(take, 1)
