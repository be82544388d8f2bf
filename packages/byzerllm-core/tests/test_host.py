"""Admission, counting and what a worker checks before it asks its backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import ModuleType
from typing import Any

import pytest

import byzerllm
from byzerllm.backend import BackendSpec, Parameters
from byzerllm.errors import (
    BackendError,
    CapabilityError,
    ContextLengthError,
    ModelLoadError,
    ModelSourceError,
    OverloadedError,
    ParameterError,
    ProviderUnavailableError,
)
from byzerllm.plugins import Plugins
from byzerllm.requests import (
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    MetaRequest,
    SamplingParams,
    TokenizeRequest,
    TokenizeResult,
    Usage,
)
from byzerllm.runtime import breaker
from byzerllm.runtime.deployment import DeploymentSpec
from byzerllm.runtime.host import (
    TTFT_SAMPLES,
    Admission,
    Counters,
    Host,
    Meter,
    decode_spec,
    encode_spec,
)
from byzerllm.testing import echo


async def soon() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# Admission.


def test_first_come_first_served() -> None:
    async def run() -> None:
        admission = Admission(concurrency=2, max_queue=10)
        order: list[int] = []

        async def request(number: int) -> None:
            await admission.enter()
            order.append(number)
            await soon()
            assert admission.running <= 2
            admission.leave(0.01)

        await asyncio.gather(*(request(number) for number in range(8)))
        assert order == list(range(8))
        assert (admission.running, admission.queued) == (0, 0)

    asyncio.run(run())


def test_nobody_overtakes_the_queue() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        await admission.enter()
        waiting = asyncio.ensure_future(admission.enter())
        await soon()
        admission.leave(0.01)
        # The place is the waiting one's already, though it did not run yet.
        late = asyncio.ensure_future(admission.enter())
        await soon()
        assert waiting.done()
        assert not late.done()
        admission.leave(0.01)
        await late
        admission.leave(0.01)
        assert admission.running == 0

    asyncio.run(run())


def test_full_queue_refuses_at_once_and_says_its_load() -> None:
    async def run() -> None:
        admission = Admission(2, 3)
        waiting = [asyncio.ensure_future(admission.enter()) for _ in range(5)]
        await soon()
        assert (admission.running, admission.queued) == (2, 3)
        with pytest.raises(OverloadedError, match=r"2 of 2 requests and 3 of 3 wait") as got:
            await asyncio.wait_for(admission.enter(), 0.1)
        assert (got.value.running, got.value.queued) == (2, 3)
        assert got.value.retry_after == pytest.approx(2.0)
        assert admission.refused == 1
        for _ in range(5):
            admission.leave(1.0)
            await soon()
        assert all(task.done() for task in waiting)
        assert (admission.running, admission.queued) == (0, 0)

    asyncio.run(run())


def test_retry_after_follows_how_long_requests_take() -> None:
    async def wait(seconds: float) -> float:
        admission = Admission(1, 0)
        for _ in range(60):
            await admission.enter()
            admission.leave(seconds)
        await admission.enter()
        with pytest.raises(OverloadedError) as got:
            await admission.enter()
        return float(got.value.retry_after)

    assert asyncio.run(wait(10.0)) == pytest.approx(10.0, rel=0.1)
    assert asyncio.run(wait(0.001)) == pytest.approx(0.1)


def test_one_that_leaves_the_queue_takes_no_place() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        await admission.enter()
        first, second = (asyncio.ensure_future(admission.enter()) for _ in range(2))
        await soon()
        first.cancel()
        await soon()
        assert admission.queued == 1
        admission.leave(0.01)
        await second
        assert (admission.running, admission.queued) == (1, 0)

    asyncio.run(run())


def test_one_cancelled_when_its_turn_came_passes_it_on() -> None:
    async def run() -> None:
        admission = Admission(1, 10)
        await admission.enter()
        first, second = (asyncio.ensure_future(admission.enter()) for _ in range(2))
        await soon()
        admission.leave(0.01)
        first.cancel()
        await asyncio.wait_for(second, 1)
        assert first.cancelled()
        assert admission.running == 1
        admission.leave(0.01)
        assert admission.running == 0

    asyncio.run(run())


# Counting.


def last(tokens: int, **more: Any) -> GenerateChunk:
    usage = Usage(prompt_tokens=3, completion_tokens=tokens)
    return GenerateChunk(finish_reason="stop", usage=usage, **more)


def test_meter_counts_tokens_once() -> None:
    counters = Counters()
    meter = Meter(counters)
    meter.saw(GenerateChunk(text="a", token_ids=[1, 2]))
    assert counters.generated_tokens == 2
    meter.saw(GenerateChunk(text="b", token_ids=[3]))
    final = last(4)
    meter.saw(final)
    assert (counters.generated_tokens, counters.prompt_tokens) == (4, 3)
    assert meter.ended(DeploymentSpec(model="m")) is final
    assert counters.done == 1
    assert 0 < final.first_token <= final.elapsed
    assert counters.ttft_p50() == final.first_token


def test_meter_counts_of_a_backend_without_token_ids() -> None:
    counters = Counters()
    meter = Meter(counters)
    meter.saw(GenerateChunk(text="a"))
    meter.saw(last(7))
    assert counters.generated_tokens == 7


def test_an_answer_needs_an_end() -> None:
    meter = Meter(Counters())
    meter.saw(GenerateChunk(text="a"))
    with pytest.raises(BackendError, match="'e' ended an answer without a reason"):
        meter.ended(DeploymentSpec(model="m", backend="e"))


def test_rates() -> None:
    counters = Counters()
    assert counters.tokens_per_second() == 0
    assert counters.ttft_p50() is None
    counters.generated(60)
    counters.generated(40)
    assert counters.generated_tokens == 100
    assert 0 < counters.tokens_per_second() <= 100
    counters.ttft.extend(range(TTFT_SAMPLES + 100))
    assert len(counters.ttft) == TTFT_SAMPLES
    assert counters.ttft_p50() == 200


# The host.


class Odd(echo.EchoBackend):
    """Breaks rules when it is told to."""

    closed = 0

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        if request.prompt == "no end":
            yield GenerateChunk(text="…")
            return
        if request.prompt == "raise":
            raise ZeroDivisionError("engine broke")
        async for chunk in super().generate(request):
            yield chunk

    async def close(self) -> None:
        self.closed += 1


class Down(echo.EchoBackend):
    """A vendor that fails after a while, unless it is asked something else."""

    asked = 0

    async def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateChunk]:
        Down.asked += 1
        await asyncio.sleep(0.02)
        if request.prompt == "fail":
            raise ProviderUnavailableError("down", retryable=True)
        if request.prompt == "hang":
            await asyncio.sleep(60)
        yield GenerateChunk(text="up", finish_reason="stop")


class FileParameters(Parameters):
    """None."""


def plugins() -> Plugins:
    made = Plugins(frozenset())
    made.register(echo, "echo")
    module = ModuleType("odd")

    def register_backends(register: Any) -> None:
        register(
            BackendSpec(
                name="odd",
                path=f"{__name__}:Odd",
                parameters=echo.EchoParameters,
                capabilities=frozenset({"chat", "completion"}),
            )
        )
        register(
            BackendSpec(
                name="files", path=f"{__name__}:Odd", parameters=FileParameters, formats=("x",)
            )
        )

    def register_providers(register: Any) -> None:
        register(
            BackendSpec(
                name="down",
                path=f"{__name__}:Down",
                parameters=echo.EchoParameters,
                capabilities=frozenset({"chat", "completion"}),
                hosted=True,
            )
        )

    module.register_backends = byzerllm.hookimpl(register_backends)  # type: ignore[attr-defined]
    module.register_providers = byzerllm.hookimpl(register_providers)  # type: ignore[attr-defined]
    made.register(module, "odd")
    return made


def host(backend: str = "odd", *, concurrency: int = 2, queue: int = 1, **params: Any) -> Host:
    spec = DeploymentSpec(
        model="m",
        backend=backend,
        worker_concurrency=concurrency,
        max_queue=queue,
        infer_params=params,
    )
    return Host(spec, plugins())


def ask(prompt: str, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(id=prompt, prompt=prompt, sampling=SamplingParams.parse(sampling))


def test_whole_answers_and_streams_and_their_counters() -> None:
    async def run() -> None:
        one = host()
        await one.load()
        whole = await one.answer(ask("a b c"))
        assert isinstance(whole, GenerateResult)
        assert (whole.text, whole.usage.completion_tokens) == ("a b c", 3)
        request = ask("d e")
        request.stream = True
        texts = [chunk.text async for chunk in one.stream(request)]
        assert texts == ["d", " e", ""]
        tokens = await one.answer(TokenizeRequest(id="t", text="ab"))
        assert tokens == TokenizeResult(token_ids=[97, 98])
        stat = one.stat()
        assert (stat["done"], stat["failed"], stat["running"]) == (2, 0, 0)
        assert (stat["prompt_tokens"], stat["generated_tokens"]) == (5, 5)
        assert (stat["concurrency"], stat["max_queue"]) == (2, 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (ask("raise"), ZeroDivisionError, "engine broke"),
        (ask("no end"), BackendError, "without a reason"),
        (ask("a " * 20), ContextLengthError, "20 words"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_failures_free_their_place(
    request_: Any, error: type[Exception], says: str, streamed: bool
) -> None:
    async def run() -> None:
        one = host(context=10)
        await one.load()

        async def read() -> None:
            async for _ in one.stream(request_):
                pass

        for _ in range(5):
            with pytest.raises(error, match=says):
                await (read() if streamed else one.answer(request_))
        assert (one.stat()["failed"], one.stat()["running"]) == (5, 0)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sampling", "error", "says"),
    [
        ({"temprature": 1}, ParameterError, "'temprature'.*did you mean 'temperature'"),
        ({"echo_tag": 1}, ParameterError, "'echo_tag'"),
        ({"json_schema": {}}, CapabilityError, "'constrained'"),
        ({"grammar": "x"}, CapabilityError, "'constrained'"),
        ({"logprobs": 0}, CapabilityError, "'logprobs'"),
    ],
)
def test_refused_before_a_place_is_taken(
    sampling: dict[str, Any], error: type[Exception], says: str
) -> None:
    async def run() -> None:
        one = host()
        await one.load()
        for _ in range(5):
            with pytest.raises(error, match=says):
                await one.answer(ask("hi", **sampling))
        assert one.stat()["failed"] == 0

    asyncio.run(run())


def test_overload_counts_embeddings_too() -> None:
    async def run() -> None:
        one = host(delay=0.05)
        await one.load()
        calls = [asyncio.ensure_future(one.answer(ask("a b"))) for _ in range(3)]
        await soon()
        for request in (ask("a"), EmbedRequest(id="e", texts=["x"])):
            with pytest.raises(OverloadedError):
                await one.answer(request)
        # Cheap ones are answered by a busy worker.
        await one.answer(MetaRequest(id="m"))
        await one.answer(TokenizeRequest(id="t", text="x"))
        await asyncio.gather(*calls)
        assert one.stat()["refused"] == 2

    asyncio.run(run())


def test_cancelled_in_the_queue_and_in_mid_answer() -> None:
    async def run() -> None:
        one = host(concurrency=1, delay=10.0)
        await one.load()
        calls = [asyncio.ensure_future(one.answer(ask("a b"))) for _ in range(2)]
        await soon()
        assert (one.stat()["running"], one.stat()["queued"]) == (1, 1)
        for call in reversed(calls):
            call.cancel()
        await asyncio.wait(calls, timeout=1)
        assert all(call.cancelled() for call in calls)
        assert (one.stat()["running"], one.stat()["queued"]) == (0, 0)

    asyncio.run(run())


def test_loading_and_its_errors() -> None:
    async def run() -> None:
        with pytest.raises(BackendError, match="'m' is not loaded"):
            await host().answer(MetaRequest(id="m"))
        with pytest.raises(ModelLoadError, match="RuntimeError: too big") as got:
            await host(fail_load="too big").load()
        assert "RuntimeError" in got.value.remote_traceback
        with pytest.raises(ModelSourceError, match="'files' needs a model_path"):
            await host("files").load()
        with pytest.raises(ParameterError, match="did you mean 'delay'"):
            await host(dela=1).load()

    asyncio.run(run())


def test_secrets_stay_out_of_load_errors() -> None:
    # The backend repeats what it was told; the key of the name says that it is secret.
    spec = DeploymentSpec(
        model="m",
        backend="echo",
        worker_concurrency=1,
        infer_params={"fail_load": "refused sk-hidden", "api_key": "sk-hidden"},
    )

    class Keyed(echo.EchoParameters):
        api_key: str = ""

    async def run() -> None:
        made = plugins()
        one = Host(spec, made)
        object.__setattr__(one.backend_spec, "parameters", Keyed)
        with pytest.raises(ModelLoadError) as got:
            await one.load()
        assert "sk-hidden" not in f"{got.value} {got.value.details}"

    asyncio.run(run())


def test_close_is_idempotent() -> None:
    async def run() -> None:
        one = host()
        await one.load()
        backend = one.backend
        assert type(backend).__name__ == "Odd"
        await one.close()
        await one.close()
        assert backend.closed == 1  # type: ignore[attr-defined]

    asyncio.run(run())


def test_spec_crosses_processes() -> None:
    spec = DeploymentSpec(model="m", infer_params={"a": [1, "x"]}, resources={"disk": 0.5})
    assert decode_spec(encode_spec(spec)) == spec


# A vendor that is left alone.


async def outcome(one: Host, prompt: str) -> str:
    try:
        await one.answer(ask(prompt))
    except ProviderUnavailableError as error:
        return "cooling" if error.details.get("cooling") else "down"
    return "up"


def test_who_waits_for_a_place_is_refused_too_when_the_vendor_fails() -> None:
    async def run() -> None:
        one = host("saas/down", concurrency=5, queue=100)
        await one.load()
        Down.asked = 0
        outcomes = await asyncio.gather(*(outcome(one, "fail") for _ in range(50)))
        assert Down.asked < 12
        assert outcomes.count("cooling") == 50 - Down.asked
        assert (one.admission.running, one.admission.queued) == (0, 0)
        assert one.stat()["cooling"] > 0
        assert one.stat()["cooldowns"] == 1

    asyncio.run(run())


def test_a_probe_that_finds_no_place_or_is_cancelled_makes_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "FIRST_SECONDS", 0.2)

    async def run() -> None:
        one = host("saas/down", concurrency=1, queue=0)
        await one.load()
        for _ in range(breaker.FAILURES):
            assert await outcome(one, "fail") == "down"
        assert await outcome(one, "up") == "cooling"
        await asyncio.sleep(0.2)
        probe = asyncio.ensure_future(outcome(one, "hang"))
        await asyncio.sleep(0.05)
        assert await outcome(one, "up") == "cooling"
        probe.cancel()
        await soon()
        await one.admission.enter()
        with pytest.raises(OverloadedError):
            await one.answer(ask("up"))
        one.admission.leave(None)
        assert await outcome(one, "up") == "up"
        assert one.stat()["cooling"] == 0

    asyncio.run(run())
