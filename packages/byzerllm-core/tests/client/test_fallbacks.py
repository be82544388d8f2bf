"""Models that stand in for one that cannot answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import (
    BackendError,
    BadRequestError,
    OverloadedError,
    ParameterError,
    ProviderUnavailableError,
    RateLimitedError,
    StreamInterruptedError,
)

Scripted = Callable[..., Any]
DOWN = ProviderUnavailableError("down", retryable=False)


def pair(first: Any, second: Any) -> ByzerLLM:
    llm: ByzerLLM = first.llm
    names = [script.llm._settings.default_model_name for script in (first, second)]
    return llm.setup_fallbacks(names[0], [names[1]])


def test_the_next_model_answers(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    llm = pair(scripted(DOWN), scripted("from the second"))
    (answer,) = llm.chat_oai("hi")
    assert answer.output == "from the second"
    assert answer.metadata.model == llm.models()[-1]["model"]
    assert "ProviderUnavailableError: down; asking scripted-" in caplog.text


def test_asynchronously_and_in_streams(scripted: Scripted) -> None:
    llm = pair(scripted(DOWN, DOWN, DOWN), scripted("one", "two", "three"))

    async def ask() -> tuple[str, str]:
        (answer,) = await llm.async_chat_oai("hi")
        items = [item async for item in llm.async_stream_chat_oai("hi", delta_mode=True)]
        return answer.output, "".join(item.text for item in items)

    assert asyncio.run(ask()) == ("one", "two")
    assert "".join(i.text for i in llm.stream_chat_oai("hi", delta_mode=True)) == "three"


def test_chats_of_several_steps_begin_anew(scripted: Scripted) -> None:
    second = scripted('{"value": 5}')
    llm = pair(scripted("no json", DOWN), second)
    assert llm.chat_oai("hi", response_class=int)[0].value == 5
    assert len(second.requests) == 1


def test_the_last_error_is_raised(scripted: Scripted) -> None:
    llm = pair(scripted(DOWN), scripted(RateLimitedError("slow", retryable=False)))
    with pytest.raises(RateLimitedError, match="slow"):
        llm.chat_oai("hi")


@pytest.mark.parametrize("error", [BadRequestError("what?"), BackendError("a slip")])
def test_errors_that_another_model_would_not_cure(scripted: Scripted, error: Exception) -> None:
    second = scripted("never")
    with pytest.raises(type(error)):
        pair(scripted(error), second).chat_oai("hi")
    assert second.requests == []


def test_a_stream_that_began_is_not_begun_anew(scripted: Scripted) -> None:
    second = scripted("never")
    llm = pair(scripted(("begun", ProviderUnavailableError("cut"))), second)
    texts = []
    with pytest.raises((StreamInterruptedError, ProviderUnavailableError)):
        texts.extend(item.text for item in llm.stream_chat_oai("hi", delta_mode=True))
    assert texts == ["begun"]
    assert second.requests == []


def test_retries_come_first(scripted: Scripted) -> None:
    first = scripted(ProviderUnavailableError("once", retryable=True, retry_after=0.0), "recovered")
    second = scripted("never")
    assert pair(first, second).chat_oai("hi")[0].output == "recovered"
    assert second.requests == []


def test_a_deployment_may_bring_its_own(scripted: Scripted) -> None:
    second = scripted("from the second")
    name = second.llm._settings.default_model_name
    llm = ByzerLLM(runtime="local").setup_infer_backend("echo").setup_worker_concurrency(1)
    llm.setup("max_queue", 0).setup("fallbacks", [name])
    llm.deploy(udf_name="busy", infer_params={"delay": 0.5})
    try:

        async def ask() -> list[Any]:
            asked = [llm.async_chat_oai("hi there", model="busy") for _ in range(2)]
            return await asyncio.gather(*asked)

        outputs = {answer[0].output for answer in asyncio.run(ask())}
        assert outputs == {"hi there", "from the second"}
    finally:
        llm.undeploy("busy")


def test_without_fallbacks_nothing_changes(scripted: Scripted) -> None:
    llm = ByzerLLM(runtime="local").setup_infer_backend("echo").setup_worker_concurrency(1)
    llm.setup("max_queue", 0)
    llm.deploy(udf_name="busy", infer_params={"delay": 0.2})
    try:

        async def ask() -> list[Any]:
            asked = [llm.async_chat_oai("hi", model="busy") for _ in range(2)]
            return await asyncio.gather(*asked, return_exceptions=True)

        assert any(isinstance(found, OverloadedError) for found in asyncio.run(ask()))
    finally:
        llm.undeploy("busy")


@pytest.mark.parametrize("wrong", ["b", ["a"], [3]])
def test_wrong_fallbacks(wrong: Any) -> None:
    with pytest.raises(ParameterError, match="fallback"):
        ByzerLLM(runtime="local").setup_fallbacks("a", wrong)
