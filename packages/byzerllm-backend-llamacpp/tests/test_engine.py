"""Requests that decode together: growing at once, cancelled, waiting for room, failing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from byzerllm.errors import BackendError, RequestCancelledError
from byzerllm_backend_llamacpp.native import llama_cpp

pytestmark = pytest.mark.model

STORY = "Tell a long story about the number {}."


def stories(model: Any, count: int, **options: Any) -> list[Any]:
    """The answers of `count` requests at once."""

    async def all_of_them() -> list[Any]:
        requests = [model.request(STORY.format(n), **options) for n in range(count)]
        return await asyncio.gather(*(model.gather(request) for request in requests))

    return model.run(all_of_them(), 240.0)  # type: ignore[no-any-return]


def check_near_tie(answer: Any, other: Any) -> None:
    """Equal answers, or parted where the two best tokens were nearly as likely.

    A batch of another size sums in another order, and a cache in half precision rounds on it.
    """
    for mine, theirs in zip(answer.logprobs, other.logprobs, strict=False):
        if mine.id != theirs.id:
            first, second = (logprob for _, _, logprob in mine.top[:2])
            assert first - second < 0.2, f"parted at {mine} and {theirs}"
            assert theirs.id in {token for _, token, _ in mine.top}
            return


def test_eight_answers_grow_together(model: Any) -> None:
    before = model.backend.stats()
    answers = stories(model, 8, max_tokens=40, ignore_eos=True)
    stats = model.backend.stats()
    assert all(answer.usage.completion_tokens == 40 for answer in answers)
    last_first = max(answer.times[0] for answer in answers)
    first_last = min(answer.times[-1] for answer in answers)
    assert last_first < first_last, "an answer began after another had ended"
    generated = stats.generated_tokens - before.generated_tokens
    assert generated == 320
    assert stats.steps - before.steps < generated / 4, "the steps did not carry many answers"


def test_company_changes_no_answer_but_at_near_ties(model: Any) -> None:
    options = {"max_tokens": 16, "logprobs": 2}
    together = stories(model, 8, **options)
    for number, other in enumerate(together):
        check_near_tie(model.ask(STORY.format(number), **options), other)


def test_a_request_joins_those_that_run(model: Any) -> None:
    async def join() -> tuple[Any, Any]:
        long = asyncio.ensure_future(
            model.gather(model.request(STORY.format(1), max_tokens=80, ignore_eos=True))
        )
        await model.until(lambda stats: stats.running > 0)
        short = await model.gather(model.request("Say hi.", max_tokens=3))
        assert not long.done()
        return short, await long

    short, long = model.run(join())
    assert short.times[-1] < long.times[-1]


def test_a_long_prompt_does_not_stop_the_others(load: Callable[..., Any]) -> None:
    model = load(n_ctx=1024, concurrency=2, cache_prompt=False)

    async def both() -> tuple[Any, Any]:
        small = asyncio.ensure_future(
            model.gather(model.request(STORY.format(1), max_tokens=60, ignore_eos=True))
        )
        await model.until(lambda stats: stats.generated_tokens >= 3)
        large = await model.gather(model.request(prompt="a long way " * 250, max_tokens=2))
        return await small, large

    small, large = model.run(both())
    assert large.usage.prompt_tokens > 700
    meanwhile = [at for at in small.times if at < large.times[0]]
    assert len(meanwhile) >= 5, "the small answer stood still while the long prompt was read"


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_a_request_that_is_left_stops(model: Any, how: str) -> None:
    async def leave() -> int:
        request = model.request(STORY.format(3), ignore_eos=True, max_tokens=900)
        if how == "close":
            async with model.chunks(request) as chunks:
                async for _ in chunks:
                    break
        else:
            task = asyncio.ensure_future(model.gather(request))
            await model.until(lambda stats: stats.running > 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await model.idle()
        return int(model.backend.stats().generated_tokens)

    generated = model.run(leave())
    time.sleep(0.2)
    assert model.backend.stats().generated_tokens == generated


def test_a_waiting_request_that_is_left_never_runs(load: Callable[..., Any]) -> None:
    model = load(n_ctx=1024, concurrency=1)

    async def leave() -> None:
        first = asyncio.ensure_future(
            model.gather(model.request(STORY.format(1), max_tokens=60, ignore_eos=True))
        )
        await model.until(lambda stats: stats.running > 0)
        second = asyncio.ensure_future(model.gather(model.request(STORY.format(2))))
        await model.until(lambda stats: stats.waiting > 0)
        second.cancel()
        await first
        assert await model.idle()

    model.run(leave())
    assert model.backend.stats().generated_tokens == 60


def test_more_requests_than_slots_all_end(load: Callable[..., Any]) -> None:
    model = load(n_ctx=512, concurrency=2)
    answers = stories(model, 5, max_tokens=8)
    assert [answer.usage.completion_tokens for answer in answers] == [8] * 5


def test_a_shared_cache_is_one_requests_or_everybodys(load: Callable[..., Any]) -> None:
    model = load(n_ctx=256, concurrency=4, kv_unified=True)
    alone = model.ask(STORY.format(1), ignore_eos=True)
    assert alone.usage.prompt_tokens + alone.usage.completion_tokens == 256
    options = {"ignore_eos": True, "max_tokens": 100, "logprobs": 4}
    answers = stories(model, 4, **options)
    assert [answer.usage.completion_tokens for answer in answers] == [100] * 4
    assert all(answer.finish == "length" for answer in answers)
    assert model.backend.stats().preemptions > 0, "four times 140 tokens do not fit into 256"
    for number, answer in enumerate(answers):
        check_near_tie(model.ask(STORY.format(number), **options | {"max_tokens": 20}), answer)


def test_gaps_between_answers_are_closed_without_a_trace(load: Callable[..., Any]) -> None:
    model = load(n_ctx=512, concurrency=4, kv_unified=False, cache_prompt=False)
    lengths = {0: 60, 1: 4, 2: 6, 3: 60}
    options = {"ignore_eos": True, "logprobs": 4}

    async def run() -> list[Any]:
        tasks = [
            asyncio.ensure_future(
                model.gather(model.request(STORY.format(n), max_tokens=length, **options))
            )
            for n, length in lengths.items()
        ]
        await asyncio.gather(tasks[1], tasks[2])
        running = model.backend._engine._running
        await model.until(lambda _: abs(running[0].slot.id - running[-1].slot.id) == 1)
        return await asyncio.gather(*tasks)

    answers = model.run(run())
    for number in (0, 3):
        alone = model.ask(STORY.format(number), max_tokens=60, **options)
        check_near_tie(alone, answers[number])


def test_a_common_prefix_is_reused(load: Callable[..., Any]) -> None:
    for shared in (False, True):
        model = load(n_ctx=1024, concurrency=2, kv_unified=shared)
        talk = [{"role": "user", "content": "My name is Ada. " * 20 + "Greet me."}]
        first = model.ask(messages=talk, max_tokens=8)
        talk += [
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "And again."},
        ]
        before = model.backend.stats()
        model.ask(messages=talk, max_tokens=8)
        after = model.backend.stats()
        assert after.reused_tokens - before.reused_tokens >= first.usage.prompt_tokens - 4
        same = model.ask(messages=talk, max_tokens=8)
        fresh = model.ask(messages=talk, max_tokens=8, seed=1)
        assert model.backend.stats().kept_tokens > 0
        assert same.text == fresh.text


def test_without_cache_prompt_nothing_is_kept(load: Callable[..., Any]) -> None:
    model = load(n_ctx=256, concurrency=1, cache_prompt=False)
    for _ in range(2):
        model.ask("hello", max_tokens=2)
    stats = model.backend.stats()
    assert (stats.kept_tokens, stats.reused_tokens) == (0, 0)


def test_closing_ends_what_runs(load: Callable[..., Any]) -> None:
    model = load(n_ctx=1024, concurrency=2)

    async def close() -> None:
        tasks = [
            asyncio.ensure_future(
                model.gather(model.request(STORY.format(n), ignore_eos=True, max_tokens=900))
            )
            for n in range(3)
        ]
        await model.until(lambda stats: stats.running > 0)
        await model.backend.close()
        for task in tasks:
            with pytest.raises(RequestCancelledError, match="closed"):
                await task

    model.run(close())


def test_a_failing_engine_fails_all_and_is_not_healthy(load: Callable[..., Any]) -> None:
    model = load(n_ctx=1024, concurrency=3)
    engine = model.backend._engine

    async def fail() -> None:
        await model.backend.health()
        tasks = [
            asyncio.ensure_future(
                model.gather(model.request(STORY.format(n), ignore_eos=True, max_tokens=900))
            )
            for n in range(2)
        ]
        await model.until(lambda stats: stats.running >= 2)
        # A token that llama.cpp must refuse: the model has none of this id.
        poisoned = await model.backend._prepare(model.request("hello"), engine)
        poisoned.tokens[0] = 10**6
        engine.submit(poisoned)
        for task in tasks:
            with pytest.raises(BackendError, match="engine failed") as got:
                await task
            assert "llama_decode" in got.value.remote_traceback
        with pytest.raises(BackendError, match="engine failed"):
            await model.backend.health()
        with pytest.raises(BackendError, match="engine failed"):
            await model.gather(model.request("hello"))

    model.run(fail())


def test_gpu_layers_without_a_gpu_are_reported(load: Callable[..., Any]) -> None:
    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("this build has GPU support")
    model = load(n_ctx=256, concurrency=1, num_gpu_layers=-1)
    assert any("no GPU support" in report for report in model.reports)
    assert model.ask("hi", max_tokens=2).text


def test_llama_cpp_is_quiet(load: Callable[..., Any], capfd: pytest.CaptureFixture[str]) -> None:
    model = load(n_ctx=256, concurrency=1)
    model.ask("hi", max_tokens=2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert model.reports[-1] == "making the context"
    assert "loading weights 100 %" in model.reports


def test_loading_parameters_reach_llama_cpp(load: Callable[..., Any]) -> None:
    model = load(
        n_ctx=512,
        concurrency=3,
        n_batch=64,
        n_ubatch=32,
        n_threads=1,
        n_threads_batch=2,
        type_k="q8_0",
        type_v="q8_0",
        flash_attn=True,
        rope_freq_base=20000.0,
        use_mmap=False,
        kv_unified=False,
    )
    context = model.backend._engine._context
    assert llama_cpp.llama_n_ctx(context) == 3 * 512
    assert llama_cpp.llama_n_batch(context) == 64
    assert llama_cpp.llama_n_ubatch(context) == 32
    assert llama_cpp.llama_n_seq_max(context) == 3
    assert llama_cpp.llama_n_threads(context) == 1
    assert llama_cpp.llama_n_threads_batch(context) == 2
    assert model.ask(prompt="word " * 200, max_tokens=3).usage.completion_tokens == 3


def test_a_context_that_needs_too_much_memory(load: Callable[..., Any]) -> None:
    from byzerllm.errors import ModelLoadError

    with pytest.raises(ModelLoadError, match="lower n_ctx"):
        load(n_ctx=50_000_000, kv_unified=True)


def test_loading_can_be_given_up(model_path: Any) -> None:
    from byzerllm.backend import BackendContext
    from byzerllm_backend_llamacpp import LLAMA_CPP
    from byzerllm_backend_llamacpp.backend import LlamaCppBackend

    context = BackendContext(
        model="m",
        model_path=model_path,
        model_type="custom/auto",
        parameters=LLAMA_CPP.parameters.parse({"use_mmap": False}, where="a test"),
    )

    async def give_up() -> None:
        loading = asyncio.ensure_future(LlamaCppBackend.create(context))
        await asyncio.sleep(0.02)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading

    asyncio.run(asyncio.wait_for(give_up(), 30))
