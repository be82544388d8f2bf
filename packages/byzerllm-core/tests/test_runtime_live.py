"""Deployments and requests on a live cluster."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray

from byzerllm import ByzerLLM
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    ContextLengthError,
    ModelExistsError,
    ModelLoadError,
    ModelNotFoundError,
    NotInstalledError,
    OverloadedError,
    ParameterError,
    RequestCancelledError,
    RequestTimeoutError,
    ResourcesError,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
MODEL = "live-echo"
ENDLESS = {"delay": 0.01, "chunks": 1_000_000}


def client(**options: Any) -> ByzerLLM:
    settings = {"infer_backend": "echo", "cpus_per_worker": 0.1, **options}
    return ByzerLLM(**settings).setup_default_model_name(MODEL)


@pytest.fixture(scope="module")
def llm(cluster: object) -> Iterator[ByzerLLM]:
    """Two workers that answer at once."""
    made = client(num_workers=2)
    made.deploy(udf_name=MODEL)
    yield made
    made.undeploy(MODEL)


@pytest.fixture
def other(cluster: object) -> Iterator[Callable[..., ByzerLLM]]:
    """`other("name", settings…, infer_params={…})`: a deployment of one test's own."""
    names: list[str] = []

    def deploy(model: str, infer_params: Any = None, **options: Any) -> ByzerLLM:
        made = client(**options).setup_default_model_name(model)
        names.append(model)
        made.deploy(udf_name=model, infer_params=infer_params or {})
        return made

    yield deploy
    everything = client()
    for name in names:
        if everything.is_model_exist(name):
            everything.undeploy(name, force=True)


@pytest.fixture(scope="module")
def endless(cluster: object) -> Iterator[ByzerLLM]:
    made = client().setup_default_model_name("live-endless")
    made.deploy(udf_name="live-endless", infer_params=ENDLESS)
    yield made
    made.undeploy("live-endless", force=True)


def figures(llm: ByzerLLM, model: str, name: str) -> list[Any]:
    return [worker[name] for worker in llm.stat(model)[0]["workers"]]


def becomes_idle(llm: ByzerLLM, model: str, seconds: float) -> float:
    start = time.monotonic()
    while sum(figures(llm, model, "running")):
        assert time.monotonic() - start < seconds, "the worker goes on"
        time.sleep(0.02)
    return time.monotonic() - start


def left_behind(model: str) -> set[str]:
    actors = {row["name"] for row in ray.util.list_named_actors(all_namespaces=True)}
    table = ray.util.placement_group_table().values()
    groups = {row["name"] for row in table if row["state"] != "REMOVED"}
    return {name for name in actors | groups if f":{model}:" in name}


# Requests.


def test_every_kind_of_request(llm: ByzerLLM) -> None:
    assert llm.get_meta()["backend"] == "echo"
    answer = llm.chat_oai("one two three")[0]
    assert answer.output == "one two three"
    assert (answer.metadata.finish_reason, answer.metadata.generated_tokens_count) == ("stop", 3)
    pieces = [item.text for item in llm.stream_chat_oai("one two", delta_mode=True)]
    assert pieces == ["one", " two", ""]
    assert llm.emb(MODEL, ["a b"]).output == [3.0, 1.0]
    assert llm.tokenize(None, "ab") == [97, 98]
    assert llm.apply_chat_template(None, [{"role": "user", "content": "x"}]) == "user: x\n"


def test_many_at_once_from_a_loop_and_from_threads(llm: ByzerLLM) -> None:
    async def ask() -> None:
        answers = await asyncio.gather(*(llm.async_chat_oai(f"n {n}") for n in range(200)))
        assert [answer[0].output for answer in answers] == [f"n {n}" for n in range(200)]

        async def stream(number: int) -> str:
            pieces = llm.async_stream_chat_oai(f"s {number} end", delta_mode=True)
            return "".join([item.text async for item in pieces])

        texts = await asyncio.gather(*(stream(n) for n in range(50)))
        assert texts == [f"s {n} end" for n in range(50)]

    asyncio.run(ask())
    found: list[str] = []

    def call(number: int) -> None:
        found.extend(llm.chat_oai(f"{number} {turn}")[0].output for turn in range(10))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"{n} {turn}" for n in range(4) for turn in range(10))


def test_first_calls_that_come_together(other: Callable[..., ByzerLLM]) -> None:
    """All ask for the routing table; the last one ends long before the others, whose worker must
    not think that their caller has left."""
    llm = other("live-first", {"delay": 0.25}, worker_concurrency=50)

    async def ask() -> list[str]:
        texts = [*(["one two three four five six seven eight"] * 20), "short"]
        answers = await asyncio.gather(*(llm.async_chat_oai(text) for text in texts))
        return [answer[0].output for answer in answers]

    assert asyncio.run(ask())[-1] == "short"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("config", "says"),
    [({"temprature": 1}, "did you mean 'temperature'"), ({"top_p": 2}, "top_p")],
)
def test_errors_cross_by_name(llm: ByzerLLM, streamed: bool, config: Any, says: str) -> None:
    def ask() -> None:
        if streamed:
            list(llm.stream_chat_oai("x", llm_config=config))
        else:
            llm.chat_oai("x", llm_config=config)

    with pytest.raises(ParameterError, match=says):
        ask()


def test_errors_of_the_engine(other: Callable[..., ByzerLLM]) -> None:
    llm = other("live-fails", {"fail_at": 1, "context": 3})
    with pytest.raises(BackendError, match="told to fail at chunk 1"):
        llm.chat_oai("a b")
    texts = []
    with pytest.raises(BackendError):
        texts.extend(item.text for item in llm.stream_chat_oai("a b", delta_mode=True))
    assert texts == ["a"]
    with pytest.raises(ContextLengthError, match="5 words"):
        llm.chat_oai("a b c d e")
    assert figures(llm, "live-fails", "running") == [0]


def test_unknown_model(llm: ByzerLLM) -> None:
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'live-echo'"):
        llm.chat_oai("hi", model="live-ecko")
    for call in (llm.undeploy, llm.stat, llm.get_meta):
        with pytest.raises(ModelNotFoundError):
            call("nobody")


@pytest.mark.parametrize("way", ["round_robin", "lru", "least_busy"])
def test_balancers(other: Callable[..., ByzerLLM], way: str) -> None:
    llm = other("live-balanced", num_workers=2, load_balance_way=way)
    for _ in range(6):
        llm.chat_oai("hi")
    assert figures(llm, "live-balanced", "done") == [3, 3]
    assert llm.stat("live-balanced")[0]["balancer"] == way


def test_pinning(llm: ByzerLLM) -> None:
    pinned = client().setup_pin_model_worker_mapping({"chat": 1, "embedding": 0})
    before = figures(llm, MODEL, "done")
    for _ in range(3):
        pinned.chat_oai("hi")
        list(pinned.stream_chat_oai("hi"))
        pinned.emb(MODEL, ["x"])
    after = figures(llm, MODEL, "done")
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 6]
    with pytest.raises(ParameterError, match="worker 7"):
        client().setup_pin_model_worker_mapping({"chat": 7}).chat_oai("hi")


def test_overload(other: Callable[..., ByzerLLM]) -> None:
    options = {"num_workers": 2, "worker_concurrency": 1, "max_queue": 1}
    llm = other("live-full", {"delay": 0.1}, **options)

    async def many() -> list[Any]:
        asked = [llm.async_chat_oai("a b c") for _ in range(12)]
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = asyncio.run(many())
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    assert len(refused) + sum(isinstance(outcome, list) for outcome in outcomes) == 12
    assert len(refused) == 8
    assert all(error.retry_after > 0 for error in refused)


# Ending requests early.


def test_abort_by_id(endless: ByzerLLM) -> None:
    items = endless.stream_chat_oai("x", extra_request_params={"request_id": "by-id"})
    next(items)
    assert endless.abort("by-id")
    with pytest.raises(RequestCancelledError, match="aborted"):
        list(items)
    assert becomes_idle(endless, "live-endless", 1.5) < 1.5
    assert not endless.abort("by-id")


def test_leaving_a_stream_reaches_the_worker(endless: ByzerLLM) -> None:
    for _ in endless.stream_chat_oai("x"):
        break
    becomes_idle(endless, "live-endless", 1.5)


def test_cancelling_tasks_reaches_the_worker(endless: ByzerLLM) -> None:
    async def cancel() -> None:
        async def stream() -> None:
            async for _ in endless.async_stream_chat_oai("x"):
                pass

        tasks = [asyncio.ensure_future(stream()) for _ in range(3)]
        tasks += [asyncio.ensure_future(endless.async_chat_oai("x")) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert await asyncio.to_thread(figures, endless, "live-endless", "running") == [6]
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)
        await asyncio.to_thread(becomes_idle, endless, "live-endless", 1.5)

    asyncio.run(cancel())


def test_timeouts_reach_the_worker(endless: ByzerLLM) -> None:
    with pytest.raises(RequestTimeoutError, match=r"0\.3 s"):
        endless.chat_oai("x", extra_request_params={"timeout": 0.3})
    with pytest.raises(RequestTimeoutError, match=r"0\.3 s"):
        list(endless.stream_chat_oai("x", extra_request_params={"timeout": 0.3}))
    becomes_idle(endless, "live-endless", 1.5)


# Deployments.


def test_name_is_taken(llm: ByzerLLM) -> None:
    with pytest.raises(ModelExistsError, match="'live-echo' is deployed already"):
        llm.deploy(udf_name=MODEL)
    assert llm.chat_oai("still here")[0].output == "still here"


@pytest.mark.parametrize(
    ("options", "given", "error", "says"),
    [
        ({"infer_backend": "ecko"}, {}, ParameterError, "did you mean 'echo'"),
        ({"infer_backend": "ray/deepspeed"}, {}, NotInstalledError, "pip install"),
        ({}, {"pretrained_model_type": "custom/none"}, ParameterError, "custom/auto"),
        ({}, {"infer_params": {"delai": 1}}, ParameterError, "did you mean 'delay'"),
        ({}, {"infer_params": {"delay": "x"}}, ParameterError, "number"),
        ({"num_workers": 0}, {}, ParameterError, "at least 1"),
        ({"gpus_per_worker": 2}, {}, ResourcesError, "GPU"),
        ({"cpus_per_worker": 500}, {}, ResourcesError, "CPU"),
        ({"resources": {"tape": 1}}, {}, ResourcesError, "tape"),
        ({}, {"infer_params": {"fail_load": "no weights here"}}, ModelLoadError, "no weights"),
    ],
)
def test_failed_deploys_say_so_at_once_and_leave_nothing(
    cluster: object, options: Any, given: Any, error: type[ByzerLLMError], says: str
) -> None:
    start = time.monotonic()
    with pytest.raises(error, match=says):
        client(**options).deploy(udf_name="live-wrong", **given)
    assert time.monotonic() - start < 15
    assert not client().is_model_exist("live-wrong")
    assert not left_behind("live-wrong")


def test_load_errors_have_the_worker_s_traceback(cluster: object) -> None:
    with pytest.raises(ModelLoadError) as got:
        client().deploy(udf_name="live-wrong", infer_params={"fail_load": "no weights"})
    assert "echo.py" in got.value.remote_traceback


def test_cancelled_deploy_leaves_nothing(cluster: object) -> None:
    llm = client()
    outcomes: list[BaseException] = []

    def deploy() -> None:
        try:
            llm.deploy(udf_name="live-slow", infer_params={"load_delay": 60})
        except ByzerLLMError as error:
            outcomes.append(error)

    thread = threading.Thread(target=deploy)
    thread.start()
    end = time.monotonic() + 20
    while not left_behind("live-slow") and time.monotonic() < end:
        time.sleep(0.05)
    assert left_behind("live-slow")
    llm.undeploy("live-slow")
    thread.join(20)
    assert not thread.is_alive()
    assert outcomes
    assert not left_behind("live-slow")


def test_progress_is_told(other: Callable[..., ByzerLLM]) -> None:
    llm = client()
    seen: list[tuple[str, str]] = []
    llm.deploy(
        udf_name="live-told",
        infer_params={"load_delay": 1.0},
        progress=lambda worker, phase: seen.append((worker, phase)),
    )
    llm.undeploy("live-told")
    assert "loading" in {phase for _, phase in seen}


def test_scale_logs_and_undeploy(other: Callable[..., ByzerLLM]) -> None:
    llm = other("live-scaled")
    llm.scale("live-scaled", 3)
    row = next(row for row in llm.models() if row["model"] == "live-scaled")
    assert (row["num_workers"], row["ready_workers"], row["state"]) == (3, 3, "ready")
    for _ in range(6):
        llm.chat_oai("hi")
    assert figures(llm, "live-scaled", "done") == [2, 2, 2]
    workers = {worker for worker, _ in llm.logs("live-scaled")}
    assert workers <= set(figures(llm, "live-scaled", "id"))
    assert workers
    llm.scale("live-scaled", 1)
    assert llm.chat_oai("hi")[0].output == "hi"
    assert len(figures(llm, "live-scaled", "id")) == 1
    with pytest.raises(ByzerLLMError, match="at least 1"):
        llm.scale("live-scaled", 0)
    llm.undeploy("live-scaled")
    assert not left_behind("live-scaled")
    with pytest.raises(ModelNotFoundError):
        llm.chat_oai("hi")


def test_replace_under_traffic_loses_no_call(other: Callable[..., ByzerLLM]) -> None:
    llm = other("live-replaced", {"delay": 0.01}, num_workers=2)
    stop = threading.Event()
    outcomes: list[str] = []

    def call() -> None:
        while not stop.is_set():
            try:
                outcomes.append(llm.chat_oai("a b")[0].output)
                streamed = [item.text for item in llm.stream_chat_oai("c d", delta_mode=True)]
                outcomes.append("".join(streamed))
            except ByzerLLMError as error:
                outcomes.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    llm.deploy(udf_name="live-replaced", infer_params={"context": 7}, replace=True)
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"a b", "c d"}
    assert llm.get_meta("live-replaced")["max_model_len"] == 7


def test_undeploy_waits_and_force_does_not(other: Callable[..., ByzerLLM]) -> None:
    llm = other("live-drained", {"delay": 0.2})
    items = llm.stream_chat_oai("a b c d", delta_mode=True)
    first = next(items).text
    texts: list[str] = [first]
    thread = threading.Thread(target=lambda: texts.extend(item.text for item in items))
    thread.start()
    llm.undeploy("live-drained")
    thread.join()
    assert "".join(texts) == "a b c d"

    llm = other("live-drained", ENDLESS)
    items = llm.stream_chat_oai("x")
    next(items)
    start = time.monotonic()
    llm.undeploy("live-drained", force=True)
    assert time.monotonic() - start < 20
    with pytest.raises(ByzerLLMError):
        list(items)
    assert not left_behind("live-drained")


def test_a_secret_is_nowhere(cluster: object) -> None:
    llm = client()
    with pytest.raises(ParameterError) as got:
        llm.deploy(udf_name="live-secret", infer_params={"api_key": "sk-hidden", "delay": 0.1})
    assert "sk-hidden" not in f"{got.value} {got.value.details}"
