"""The router asks a vendor again, through a live worker; limits are shared out among workers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import byzerllm
from byzerllm.errors import (
    ByzerLLMError,
    ProviderOverloadedError,
    ProviderUnavailableError,
    RateLimitedError,
    StreamInterruptedError,
)
from byzerllm.runtime.retries import TRIES
from vendors.openai import OpenAIVendor
from vendors.server import NUMBERS, Cut, Fault, Refuse

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

MODEL = "vendor-retries"


def whole(llm: byzerllm.ByzerLLM) -> str:
    (answer,) = llm.chat_oai("Count!")
    return str(answer.output)


def stream(llm: byzerllm.ByzerLLM) -> str:
    return "".join(item.text for item in llm.stream_chat_oai("Count!", delta_mode=True))


def async_whole(llm: byzerllm.ByzerLLM) -> str:
    (answer,) = asyncio.run(llm.async_chat_oai("Count!"))
    return str(answer.output)


def among_others(llm: byzerllm.ByzerLLM) -> str:
    """Through the channel, which a lone call does not use."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*(llm.async_chat_oai("Count!") for _ in range(4)))

    (text,) = {str(answers[0].output) for answers in asyncio.run(ask())}
    return text


WAYS = [whole, stream, async_whole, among_others]
Ask = Callable[[byzerllm.ByzerLLM], str]


@pytest.fixture(scope="module")
def vendor() -> Iterator[OpenAIVendor]:
    with OpenAIVendor() as vendor:
        yield vendor


def params(vendor: OpenAIVendor, **more: Any) -> dict[str, Any]:
    return {
        "saas.api_key": vendor.key,
        "saas.base_url": f"{vendor.url}/v1",
        "saas.model": "gpt-4o",
        **{f"saas.{name}": value for name, value in more.items()},
    }


@pytest.fixture(scope="module")
def llm(cluster: object, vendor: OpenAIVendor) -> Iterator[byzerllm.ByzerLLM]:
    client = byzerllm.ByzerLLM(cpus_per_worker=0.1).setup_default_model_name(MODEL)
    client.deploy(pretrained_model_type="saas/openai", udf_name=MODEL, infer_params=params(vendor))
    yield client
    client.undeploy(MODEL, force=True)


@pytest.fixture
def asked(llm: byzerllm.ByzerLLM, vendor: OpenAIVendor) -> Callable[[], int]:
    """How many requests the vendor has seen in this test."""

    async def well() -> None:
        await asyncio.gather(*(llm.async_chat_oai("Count!") for _ in range(20)))

    # Or what the tests before did would make the circuit breaker leave this vendor alone.
    asyncio.run(well())
    before = len(vendor.asked)
    return lambda: len(vendor.asked) - before


@pytest.mark.parametrize("ask", WAYS)
def test_refused_once(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int], ask: Ask
) -> None:
    vendor.faults(Refuse("rate_limited"))
    assert ask(llm) == NUMBERS
    assert asked() == (5 if ask is among_others else 2)


@pytest.mark.parametrize("ask", WAYS)
def test_retry_after_is_honoured(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int], ask: Ask
) -> None:
    vendor.faults(Refuse("rate_limited", retry_after="2"))
    start = time.monotonic()
    assert ask(llm) == NUMBERS
    assert 2 <= time.monotonic() - start < 5
    assert asked() == (5 if ask is among_others else 2)


def test_a_wait_that_is_longer_than_the_time_limit_is_not_begun(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int]
) -> None:
    vendor.faults(Refuse("rate_limited", retry_after="10"))
    start = time.monotonic()
    with pytest.raises(RateLimitedError) as caught:
        byzerllm.ByzerLLM(timeout=5).chat_oai("Count!", model=MODEL)
    assert time.monotonic() - start < 3
    assert caught.value.retry_after == 10
    assert asked() == 1


@pytest.mark.parametrize("ask", [whole, stream])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Refuse("failed"), ProviderUnavailableError),
        (Refuse("overloaded", retry_after="0"), ProviderOverloadedError),
        (Refuse("rate_limited", retry_after="0"), RateLimitedError),
        (Cut(), ProviderUnavailableError),
    ],
)
def test_retries_end_with_the_vendors_error(
    llm: byzerllm.ByzerLLM,
    vendor: OpenAIVendor,
    asked: Callable[[], int],
    ask: Ask,
    fault: Fault,
    error: type[ByzerLLMError],
) -> None:
    vendor.faults(*[fault] * TRIES)
    with pytest.raises(error) as caught:
        ask(llm)
    assert type(caught.value) is error
    assert caught.value.vendor == "openai"
    assert vendor.key not in f"{caught.value!r} {caught.value.details!r}"
    assert asked() == TRIES


@pytest.mark.parametrize("kind", ["bad_request", "wrong_key", "filtered", "quota"])
def test_what_is_not_asked_again(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int], kind: str
) -> None:
    vendor.faults(Refuse(kind))
    with pytest.raises(ByzerLLMError):
        whole(llm)
    assert asked() == 1


@pytest.mark.parametrize("after", [-1, 0, 1])
def test_a_stream_that_broke_before_its_first_piece_is_asked_for_again(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int], after: int
) -> None:
    vendor.faults(Cut(after))
    assert stream(llm) == NUMBERS
    assert asked() == 2


def test_a_stream_that_broke_later_says_so(
    llm: byzerllm.ByzerLLM, vendor: OpenAIVendor, asked: Callable[[], int]
) -> None:
    # Slow enough for the pieces to be on their way before the cut destroys what is not read.
    vendor.pace = 0.02
    vendor.faults(Cut(8))
    texts = []
    try:
        with pytest.raises(StreamInterruptedError) as caught:
            texts.extend(i.text for i in llm.stream_chat_oai("Count!", delta_mode=True))
    finally:
        vendor.pace = 0.001
    assert caught.value.text == "".join(texts) != ""
    assert NUMBERS.startswith(caught.value.text)
    assert asked() == 1


# Limits.


def outcomes(llm: byzerllm.ByzerLLM, model: str, calls: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(calls):
        try:
            llm.chat_oai("Count!", model=model)
        except RateLimitedError as error:
            found["refused" if error.own_limit and 0 < error.retry_after <= 60 else "odd"] += 1
        else:
            found["answered"] += 1
    return found


def test_a_limit_is_shared_out_among_the_workers(cluster: object, vendor: OpenAIVendor) -> None:
    model = "vendor-limits"
    llm = byzerllm.ByzerLLM(num_workers=2, cpus_per_worker=0.1)
    llm.deploy(
        pretrained_model_type="saas/openai",
        udf_name=model,
        infer_params=params(vendor, rpm=12, rate_wait=0),
    )
    try:
        before = len(vendor.asked)
        llm.setup_pin_model_worker_mapping({"chat": 0})
        assert outcomes(llm, model, 8) == {"answered": 6, "refused": 2}
        llm.setup_pin_model_worker_mapping({"chat": 1})
        assert outcomes(llm, model, 8) == {"answered": 6, "refused": 2}
        assert len(vendor.asked) - before == 12
        llm.scale(model, 1)
        llm.setup_pin_model_worker_mapping({"chat": 0})
        # What the other had is this one's now.
        assert outcomes(llm, model, 8) == {"answered": 6, "refused": 2}
    finally:
        llm.undeploy(model, force=True)
