"""The client as users call it, on the runtime of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import byzerllm
from byzerllm import ByzerLLM, InferBackend, LLMHistoryItem, LLMRequest, LLMResponse, Templates
from byzerllm.client.settings import Settings
from byzerllm.client.types import StreamItem
from byzerllm.errors import (
    BackendError,
    ByzerLLMError,
    CapabilityError,
    ContextLengthError,
    ModelExistsError,
    ModelLoadError,
    ModelNotFoundError,
    OverloadedError,
    ParameterError,
    PluginError,
    RequestCancelledError,
    RequestTimeoutError,
    TemplateError,
)
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    EmbedResult,
    GenerateChunk,
    GenerateResult,
    ModelMeta,
    Usage,
)

WORDS = "one two three four five"
Deploy = Callable[..., ByzerLLM]


@pytest.fixture
def deploy() -> Iterator[Deploy]:
    """`deploy("name", workers=2, delay=0.1)`: a client whose default model is that echo."""
    client = ByzerLLM(runtime="local")

    def make(model: str = "echo-1", *, workers: int = 1, client: Any = None, **params: Any) -> Any:
        llm = client or ByzerLLM(runtime="local")
        llm.setup_infer_backend("echo").setup_num_workers(workers)
        llm.deploy(udf_name=model, infer_params=params)
        return llm.setup_default_model_name(model)

    yield make
    for row in client.models():
        client.undeploy(row["model"], force=True)


@pytest.fixture
def llm(deploy: Deploy) -> ByzerLLM:
    return deploy()


@pytest.fixture
def plugin() -> Iterator[Callable[..., ModuleType]]:
    """`plugin(hook=function)`: a module that a notebook would register."""
    plugins = get_plugins()
    names: list[str] = []

    def register(**hooks: Any) -> ModuleType:
        name = f"test-plugin-{len(names)}"
        module = ModuleType(name)
        for hook, function in hooks.items():
            setattr(module, hook, byzerllm.hookimpl(function))
        plugins.register(module, name)
        names.append(name)
        return module

    yield register
    for name in names:
        plugins.hooks.unregister(name=name)
        for registry in plugins._registries():
            registry.drop(name)
    plugins.records = [record for record in plugins.records if record.name not in names]


# Settings.


def test_every_setup_call_returns_the_client() -> None:
    llm = ByzerLLM(runtime="local")

    def f(*given: Any) -> str:
        return ""

    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("setup_gpus_per_worker", (0.5,)),
        ("setup_cpus_per_worker", (0.25,)),
        ("setup_num_workers", (3,)),
        ("setup_worker_concurrency", (7,)),
        ("setup_infer_backend", (InferBackend.LLAMA_CPP,)),
        ("setup_load_balance_way", ("least_busy",)),
        ("setup_default_model_name", ("a",)),
        ("setup_default_emb_model_name", ("b",)),
        ("setup_default_re_rank_model_name", ("c",)),
        ("setup_template", ("m", Templates.qwen())),
        ("setup_role_mapping", ("m", {"user": "U"})),
        ("setup_max_model_length", ("m", 100)),
        ("setup_max_input_length", ("m", 200)),
        ("setup_max_output_length", ("m", 300)),
        ("setup_extra_generation_params", ("m", {"generation.temperature": 0.1})),
        ("setup_pin_model_worker_mapping", ({"embedding": 1, "complete/chat": 2},)),
        ("setup_function_calling_format_func", ("m", f)),
        ("setup_response_class_format_func", ("m", f)),
        ("setup_response_class_format_after_chat_func", ("m", f)),
        ("setup_impl_func_format_func", ("m", f)),
        ("setup", ("max_queue", 9)),
    ]
    for name, given in calls:
        assert getattr(llm, name)(*given) is llm, name
    found = llm._settings
    assert (found.gpus_per_worker, found.cpus_per_worker, found.num_workers) == (0.5, 0.25, 3)
    assert (found.worker_concurrency, found.max_queue) == (7, 9)
    assert (found.infer_backend, found.load_balance_way) == ("llama_cpp", "least_busy")
    names = (found.default_model_name, found.default_emb_model_name)
    assert (*names, found.default_re_rank_model_name) == ("a", "b", "c")
    assert found.pins == {"embedding": 1, "chat": 2}
    of = found.of("m")
    assert (of.max_model_length, of.max_input_length, of.max_output_length) == (100, 200, 300)
    assert set(of.formats) == {
        "function_calling",
        "response_class",
        "response_class_after_chat",
        "impl_func",
    }
    assert llm.setup_reset() is llm
    assert llm._settings == Settings()


def test_options_are_settings() -> None:
    llm = ByzerLLM(runtime="local", num_workers="2", balancer="round_robin", resources={"disk": 1})
    assert llm._settings.num_workers == 2
    assert llm._settings.load_balance_way == "round_robin"
    assert llm._settings.resources == {"disk": 1}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda llm: llm.setup("num_worker", 1), "num_worker.*did you mean 'num_workers'"),
        (lambda llm: llm.setup("num_workers", "many"), r"a int is needed \(got 'many'\)"),
        (lambda llm: llm.setup("num_workers", 1.5), r"whole number \(got 1.5\)"),
        (lambda llm: llm.setup_load_balance_way("lrru"), "lrru.*did you mean 'lru'"),
        (lambda llm: llm.setup_template("m", "qwen"), "pass 'auto' or one of Templates: .*qwen"),
        (lambda llm: llm.setup_max_input_length("m", 0), r"above 0 \(got 0\)"),
        (lambda llm: llm.setup_max_output_length("m", "5"), r"above 0 \(got '5'\)"),
        (lambda llm: llm.setup_extra_generation_params("m", {"top_p": 7}), "top_p"),
        (lambda llm: llm.setup_pin_model_worker_mapping({"embeding": 0}), "mean 'embedding'"),
        (lambda llm: llm.setup_pin_model_worker_mapping({"meta": -1}), r"0 first \(got -1\)"),
        (lambda llm: llm.setup_impl_func_format_func("m", "f"), "a function is needed"),
        (lambda llm: llm.chat_oai("hi"), "setup_default_model_name"),
        (lambda llm: llm.deploy(udf_name=""), "1 to 100 characters"),
    ],
)
def test_wrong_settings_are_refused(call: Callable[[ByzerLLM], Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        call(ByzerLLM(runtime="local"))


def test_wrong_runtime_and_option() -> None:
    with pytest.raises(ParameterError, match="did you mean 'local'"):
        ByzerLLM(runtime="locale")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="did you mean 'max_queue'"):
        ByzerLLM(runtime="local", max_que=1)


# Deployments.


def test_deploy_tells_what_the_model_is(deploy: Deploy) -> None:
    llm = ByzerLLM(runtime="local", infer_backend="echo")
    seen: list[tuple[str, str]] = []
    meta = llm.deploy(
        "", udf_name="first", infer_params={"load_delay": 0.01}, progress=lambda *a: seen.append(a)
    )
    assert meta == llm.get_meta("first")
    assert meta == {
        "model_deploy_type": "proprietary",
        "backend": "echo",
        "support_stream": True,
        "support_chat_template": True,
        "max_model_len": 100_000,
        "architectures": ["Echo"],
        "model_name": "first",
        "embedding_mode": False,
        "message_format": True,
    }
    assert ("local-0", "loading") in seen
    assert seen[-1] == ("local-0", "ready")
    assert llm.is_model_exist("first")
    assert not llm.is_model_exist("second")
    row = llm.models()[0]
    assert (row["model"], row["state"], row["ready_workers"]) == ("first", "ready", 1)


def test_name_taken_replace_undeploy_and_deploy_again(deploy: Deploy) -> None:
    llm = deploy("again")
    with pytest.raises(ModelExistsError, match="'again' is deployed already"):
        llm.deploy(udf_name="again")
    llm.deploy(udf_name="again", infer_params={"context": 3}, replace=True)
    assert llm.get_meta()["max_model_len"] == 3
    llm.undeploy("again")
    with pytest.raises(ModelNotFoundError, match="no model 'again'; nothing is deployed"):
        llm.chat_oai("hi")
    with pytest.raises(ModelNotFoundError):
        llm.undeploy("again")
    llm.deploy(udf_name="again")
    assert llm.chat_oai("hi")[0].output == "hi"


def test_unknown_model_has_the_nearest_name(llm: ByzerLLM) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'ecko-1' \(did you mean 'echo-1'\?\)"):
        llm.chat_oai("hi", model="ecko-1")


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ({"delai": 1}, ParameterError, "did you mean 'delay'"),
        ({"delay": "slow"}, ParameterError, "'delay'.*number"),
        ({"fail_load": "no weights"}, ModelLoadError, "no weights"),
    ],
)
def test_failed_deploy_leaves_nothing(
    params: dict[str, Any], error: type[ByzerLLMError], says: str
) -> None:
    llm = ByzerLLM(runtime="local", infer_backend="echo", num_workers=2)
    with pytest.raises(error, match=says):
        llm.deploy(udf_name="broken", infer_params=params)
    assert llm.models() == []


def test_scale_and_stat(deploy: Deploy) -> None:
    llm = deploy("many")
    llm.scale("many", 3)
    llm.chat_oai(WORDS)
    row = llm.stat("many")[0]
    assert (row["num_workers"], row["backend"], row["balancer"]) == (3, "echo", "lru")
    assert sum(worker["done"] for worker in row["workers"]) == 1
    assert sum(worker["generated_tokens"] for worker in row["workers"]) == 5
    llm.scale("many", 1)
    assert len(llm.stat()[0]["workers"]) == 1
    with pytest.raises(ParameterError, match="at least 1"):
        llm.scale("many", 0)
    with pytest.raises(CapabilityError):
        llm.logs("many")


# Chat.


def test_chat_oai(llm: ByzerLLM) -> None:
    conversation = [{"role": "user", "content": WORDS}]
    answers = llm.chat_oai(conversations=conversation)
    assert conversation == [{"role": "user", "content": WORDS}]
    assert len(answers) == 1
    answer = answers[0]
    assert isinstance(answer, LLMResponse)
    assert (answer.output, answer.input) == (WORDS, WORDS)
    found = answer.metadata
    assert (found["input_tokens_count"], found.generated_tokens_count) == (5, 5)
    assert (found.finish_reason, found.model, found.reasoning_content) == ("stop", "echo-1", "")
    assert isinstance(found.request_id, str)
    assert 0 < found.first_token_time <= found.time_cost
    assert found.speed > 0
    with pytest.raises(AttributeError, match="no 'logprobs'"):
        _ = found.logprobs


@pytest.mark.parametrize(
    "conversations",
    [
        WORDS,
        [LLMHistoryItem("user", WORDS)],
        [{"role": "system", "content": "s"}, {"role": "user", "content": WORDS}],
        [{"role": "user", "content": [{"type": "text", "text": WORDS}]}],
        [{"role": "user", "content": f'[{{"text": "{WORDS}"}}]'}],
    ],
)
def test_forms_of_a_conversation(llm: ByzerLLM, conversations: Any) -> None:
    assert llm.chat_oai(conversations)[0].output == WORDS


@pytest.mark.parametrize("conversations", ["", [], {"role": "user"}, None, [{"role": "king"}]])
def test_no_conversation(llm: ByzerLLM, conversations: Any) -> None:
    with pytest.raises(ParameterError, match="conversations"):
        llm.chat_oai(conversations)


def test_chat_with_a_request(llm: ByzerLLM) -> None:
    answers = llm.chat("echo-1", LLMRequest(instruction=["hello world", WORDS], max_length=2))
    assert [answer.output for answer in answers] == ["hello world", "one two"]
    request = LLMRequest("a b c", extra_params={"gen.max_tokens": 1})
    assert llm.chat(None, request)[0].output == "a"
    assert llm.chat(None, LLMRequest("a b c"), {"max_length": 2})[0].output == "a b"


def test_only_return_prompt(llm: ByzerLLM) -> None:
    llm.setup_template("echo-1", Templates.qwen())
    answer = llm.chat_oai("hi", only_return_prompt=True)[0]
    assert answer.output == ""
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    turn = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.input == system + turn
    plain = llm.chat_oai("hi", only_return_prompt=True, enable_default_sys_message=False)[0]
    assert plain.input == turn
    assert llm.stat("echo-1")[0]["workers"][0]["done"] == 0


def test_role_mapping(llm: ByzerLLM) -> None:
    llm.setup_template("echo-1", Templates.default())
    llm.setup_role_mapping("echo-1", {"user_role": "Q", "assistant_role": "A", "system_msg": "S"})
    assert llm.chat_oai("hi", only_return_prompt=True)[0].input == "S\nQ:hi\nA:"
    once = llm.chat_oai("hi", only_return_prompt=True, role_mapping={"user": "Frage"})[0]
    assert "Frage:hi" in once.input
    with pytest.raises(ParameterError, match="did you mean 'user'"):
        llm.chat_oai("hi", role_mapping={"usr": "x"})


def test_generation_parameters_and_who_wins(llm: ByzerLLM) -> None:
    llm.setup_extra_generation_params("echo-1", extra_generation_params={"gen.max_length": 2})
    assert llm.chat_oai(WORDS)[0].output == "one two"
    answer = llm.chat_oai(WORDS, llm_config={"generation.max_tokens": 3})[0]
    assert (answer.output, answer.metadata.finish_reason) == ("one two three", "length")
    llm.setup_max_output_length("echo-1", 1)
    assert llm.chat_oai(WORDS, llm_config={"max_length": 3})[0].output == "one"
    assert llm.chat_oai("a b", model="echo-1", llm_config={"stop": "a"})[0].output == ""
    assert llm.chat_oai("a", llm_config={"echo_tag": "declared"})[0].output == "a"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"temprature": 1}, r"'temprature'.*did you mean 'temperature'"),
        ({"gen.top_p": 3}, r"'top_p'.*<= 1"),
        ({"max_length": "long"}, "'max_tokens'"),
    ],
)
def test_wrong_generation_parameters(llm: ByzerLLM, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ParameterError, match=says):
        llm.chat_oai("hi", llm_config=config)
    with pytest.raises(ParameterError, match=says):
        list(llm.stream_chat_oai("hi", llm_config=config))


def test_what_the_model_cannot_do(llm: ByzerLLM) -> None:
    for config in ({"json_schema": {}}, {"grammar": "root ::= 'a'"}, {"logprobs": True}):
        with pytest.raises(CapabilityError):
            llm.chat_oai("hi", llm_config=config)


def test_input_length(llm: ByzerLLM) -> None:
    llm.setup_max_input_length("echo-1", 10)
    assert llm.chat_oai("0123456789")[0].output == "0123456789"
    with pytest.raises(ContextLengthError, match=r"11 characters.*allows 10"):
        llm.chat_oai("0123456789a")


def test_context_of_the_model(deploy: Deploy) -> None:
    llm = deploy(context=3)
    with pytest.raises(ContextLengthError, match="5 words, the context holds 3"):
        llm.chat_oai(WORDS)


def test_a_failing_engine(deploy: Deploy) -> None:
    llm = deploy(fail_at=2)
    with pytest.raises(BackendError, match="told to fail at chunk 2"):
        llm.chat_oai(WORDS)
    texts = []
    with pytest.raises(BackendError):
        texts.extend(item.text for item in llm.stream_chat_oai(WORDS, delta_mode=True))
    assert texts == ["one", " two"]
    assert llm.stat("echo-1")[0]["workers"][0]["failed"] == 2


# Templates.


def test_template_and_auto(llm: ByzerLLM) -> None:
    llm.setup_template(model="echo-1", template=Templates.empty())
    answer = llm.chat_oai([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])[0]
    assert answer.output == "a\nb"
    assert llm.setup_template("echo-1", "auto") is llm
    assert llm.chat_oai("hi")[0].output == "hi"
    assert llm.setup_auto("echo-1") is llm


def test_auto_needs_a_template_in_the_model(
    llm: ByzerLLM, plugin: Callable[..., ModuleType]
) -> None:
    def before_request(model: str, request: Any) -> Any:
        return ModelMeta(model_deploy_type=model, backend="x")  # type: ignore[arg-type]

    plugin(before_request=before_request)
    with pytest.raises(TemplateError, match=r"'proprietary' has no chat template.*qwen"):
        llm.setup_template("proprietary", "auto")
    assert llm.setup_template("saas", "auto") is llm
    with pytest.raises(ModelNotFoundError):
        ByzerLLM(runtime="local").undeploy("proprietary")


# Streams.


def test_stream_of_whole_texts(llm: ByzerLLM) -> None:
    items = list(llm.stream_chat_oai(conversations=[{"role": "user", "content": "a b c"}]))
    assert [item.text for item in items] == ["a", "a b", "a b c", "a b c"]
    assert items[0] + "\n" == "a\n"
    assert ">" + items[0] == ">a"
    assert str(items[1]) == items[1][0] == "a b"
    text, metadata = items[-1]
    assert text == "a b c"
    assert metadata is items[0].metadata is items[-1][1]
    assert metadata.finish_reason == metadata["finish_reason"] == "stop"
    assert metadata["generated_tokens_count"] == 3
    assert metadata.time_cost > 0
    assert isinstance(items[0], StreamItem)


def test_stream_of_pieces(llm: ByzerLLM) -> None:
    items = [text for text, _ in llm.stream_chat_oai("a b c", delta_mode=True)]
    assert items == ["a", " b", " c", ""]


@pytest.mark.parametrize("delta", [False, True])
def test_stream_is_cleaned_as_a_whole_answer(llm: ByzerLLM, delta: bool) -> None:
    llm.setup_template("echo-1", Templates.qwen())
    whole = llm.chat_oai("hi", llm_config={"stop": []})[0].output
    assert "im_end" not in whole
    items = list(llm.stream_chat_oai("hi", delta_mode=delta, llm_config={"stop": []}))
    assert ("".join(item.text for item in items) if delta else items[-1].text) == whole


def test_stream_arrives_as_it_is_made(deploy: Deploy) -> None:
    llm = deploy(delay=0.05)
    start = time.monotonic()
    times = [time.monotonic() - start for _ in llm.stream_chat_oai(WORDS)]
    assert times[0] < 0.15
    assert times[-1] > 0.22


def test_async_forms(llm: ByzerLLM) -> None:
    async def ask() -> None:
        answers = await asyncio.gather(*(llm.async_chat_oai(f"text {n}") for n in range(20)))
        assert [answer[0].output for answer in answers] == [f"text {n}" for n in range(20)]
        items = [item async for item in llm.async_stream_chat_oai("a b", delta_mode=True)]
        assert [item + "" for item in items] == ["a", " b", ""]
        assert items[0].metadata.finish_reason == "stop"
        prompt = await llm.async_chat_oai("hi", only_return_prompt=True)
        assert prompt[0].input == "hi"
        with pytest.raises(ParameterError, match="execute_tool needs tools"):
            await llm.async_chat_oai("hi", execute_tool=True)

    asyncio.run(ask())


# Ending early.


def running(llm: ByzerLLM) -> int:
    return sum(worker["running"] for worker in llm.stat("echo-1")[0]["workers"])


def becomes_idle(llm: ByzerLLM, seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while running(llm) and time.monotonic() < end:
        time.sleep(0.005)
    return running(llm) == 0


@pytest.fixture
def endless(deploy: Deploy) -> ByzerLLM:
    return deploy(delay=0.01, chunks=1_000_000)


def test_abort_from_another_thread(endless: ByzerLLM) -> None:
    items = endless.stream_chat_oai("x ", extra_request_params={"request_id": "mine"})
    first = next(items)
    assert first.metadata.request_id == "mine"
    found: list[bool] = []
    thread = threading.Timer(0.05, lambda: found.append(endless.abort("mine")))
    thread.start()
    with pytest.raises(RequestCancelledError, match="aborted"):
        list(items)
    thread.join()
    assert found == [True]
    assert becomes_idle(endless)
    assert not endless.abort("mine")


def test_abort_of_a_whole_answer(endless: ByzerLLM) -> None:
    thread = threading.Timer(0.1, lambda: endless.abort("mine", model="echo-1"))
    thread.start()
    with pytest.raises(RequestCancelledError):
        endless.chat_oai("x", extra_request_params={"request_id": "mine"})
    thread.join()
    assert becomes_idle(endless)


def test_leaving_a_stream_stops_it(endless: ByzerLLM) -> None:
    for item in endless.stream_chat_oai("x"):
        assert item.text == "x"
        assert running(endless) == 1
        break
    assert becomes_idle(endless)


def test_cancelling_tasks_stops_the_work(endless: ByzerLLM) -> None:
    async def cancel() -> None:
        async def stream() -> None:
            async for _ in endless.async_stream_chat_oai("x"):
                pass

        tasks = [
            asyncio.ensure_future(stream()),
            asyncio.ensure_future(endless.async_chat_oai("x")),
        ]
        await asyncio.sleep(0.1)
        assert running(endless) == 2
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in ended)

    asyncio.run(cancel())
    assert becomes_idle(endless)


@pytest.mark.parametrize("given", [{"timeout": 0.1}, {}])
def test_timeout(endless: ByzerLLM, given: dict[str, float]) -> None:
    if not given:
        endless.setup("timeout", 0.1)
    with pytest.raises(RequestTimeoutError, match=r"within 0\.1 s"):
        endless.chat_oai("x", extra_request_params=given)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        list(endless.stream_chat_oai("x", extra_request_params=given))
    assert becomes_idle(endless)


@pytest.mark.parametrize("timeout", [0, -1, "soon", None])
def test_wrong_timeout(llm: ByzerLLM, timeout: Any) -> None:
    with pytest.raises(ParameterError, match="seconds above 0"):
        llm.chat_oai("x", extra_request_params={"timeout": timeout})


def test_undeploy_by_force_ends_requests(endless: ByzerLLM) -> None:
    items = endless.stream_chat_oai("x")
    next(items)
    endless.undeploy("echo-1", force=True)
    with pytest.raises(RequestCancelledError, match="undeployed"):
        list(items)


# Many workers, and too much work.


def done(llm: ByzerLLM) -> list[int]:
    return [worker["done"] for worker in llm.stat("echo-1")[0]["workers"]]


@pytest.mark.parametrize("way", ["lru", "round_robin", "least_busy"])
def test_balancers(deploy: Deploy, way: str) -> None:
    client = ByzerLLM(runtime="local").setup_load_balance_way(way)
    llm = deploy(workers=3, client=client)
    for _ in range(6):
        llm.chat_oai("hi")
    assert done(llm) == [2, 2, 2]


def test_pins(deploy: Deploy) -> None:
    llm = deploy(workers=3)
    llm.setup_pin_model_worker_mapping({"complete": 2, "embedding": 1, "tokenizer": 0})
    for _ in range(3):
        llm.chat_oai("hi")
        list(llm.stream_chat_oai("hi"))
        llm.emb(None, ["x"])
    assert done(llm) == [0, 3, 6]
    llm.setup_pin_model_worker_mapping({"chat": 3})
    with pytest.raises(ParameterError, match="pinned to worker 3; it has workers 0 to 2"):
        llm.chat_oai("hi")
    with pytest.raises(ParameterError, match="pinned to worker 3"):
        list(llm.stream_chat_oai("hi"))


def test_overload(deploy: Deploy) -> None:
    client = ByzerLLM(runtime="local", worker_concurrency=1, max_queue=1)
    llm = deploy(client=client, workers=2, delay=0.02)

    async def many() -> list[Any]:
        asked = [llm.async_chat_oai(WORDS) for _ in range(6)]
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = asyncio.run(many())
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    assert len(refused) == 2
    assert sum(isinstance(outcome, list) for outcome in outcomes) == 4
    for error in refused:
        assert (error.running, error.queued) == (1, 1)
        assert error.retry_after >= 0.1
    assert becomes_idle(llm)
    assert llm.chat_oai("hi")[0].output == "hi"


# Embeddings and the tokenizer.


def test_embeddings(llm: ByzerLLM) -> None:
    found = llm.emb("echo-1", LLMRequest(instruction="wow"))
    assert found[0].output == found.output == [3.0, 0.0]
    assert (found[0].input, len(found)) == ("wow", 1)
    assert found.metadata.input_tokens_count == 1
    several = llm.emb(None, ["a b", "c"])
    assert list(several.vectors()) == [[3.0, 1.0], [1.0, 0.0]]
    llm.setup_default_model_name("other").setup_default_emb_model_name("echo-1")
    assert llm.emb_query("abc").output == [3.0, 0.0]
    for wrong in ([], [1], LLMRequest(instruction=[])):
        with pytest.raises(ParameterError, match="at least one"):
            llm.emb(None, wrong)  # type: ignore[arg-type]


def test_embeddings_of_a_length_that_the_model_lacks(llm: ByzerLLM) -> None:
    assert llm.emb(None, ["abc"], dimensions=2).output == [3.0, 0.0]
    with pytest.raises(CapabilityError, match="vectors of 2 numbers, none of 5"):
        llm.emb(None, ["abc"], dimensions=5)
    with pytest.raises(ParameterError, match="unknown parameter 'colour'"):
        llm.emb(None, ["abc"], colour="red")


PAIR = ["what is a panda", "A panda is a bear"]
FAR = ["what is a panda", "hi"]


def test_rerank_one_pair(llm: ByzerLLM) -> None:
    found = llm.emb_rerank("echo-1", sentence_pairs=PAIR)
    assert found[0].output == found.output == [PAIR, 0.75]
    assert (found[0].input, len(found)) == (PAIR, 1)
    assert found.metadata.input_tokens_count == 9
    assert (found.metadata.model, bool(found.metadata.request_id)) == ("echo-1", True)


def test_rerank_many_pairs(llm: ByzerLLM) -> None:
    (answer,) = llm.emb_rerank(sentence_pairs=[FAR, PAIR])
    assert answer.output == [[PAIR, 0.75], [FAR, 0.0]]
    assert llm.emb_rerank(sentence_pairs=[PAIR])[0].output == [[PAIR, 0.75]]


def test_rerank_model_of_calls_that_name_none(llm: ByzerLLM) -> None:
    llm.setup_default_model_name("nobody")
    llm.setup_default_emb_model_name("echo-1")
    assert llm.emb_rerank(sentence_pairs=PAIR).output[1] == 0.75
    llm.setup_default_emb_model_name("nobody").setup_default_re_rank_model_name("echo-1")
    assert llm.emb_rerank(sentence_pairs=PAIR).output[1] == 0.75


@pytest.mark.parametrize("wrong", [[], "ab", ["a"], ["a", "b", "c"], [["a"]], [["a", 1]], [1]])
def test_rerank_of_what_is_no_pair(llm: ByzerLLM, wrong: Any) -> None:
    with pytest.raises(ParameterError, match="sentence_pairs"):
        llm.emb_rerank(sentence_pairs=wrong)


def test_tokenizer_and_chat_template(llm: ByzerLLM) -> None:
    assert llm.tokenize("echo-1", "ab") == llm.tokenize(None, "ab") == [97, 98]
    messages = [{"role": "user", "content": "hi"}]
    assert llm.apply_chat_template("echo-1", messages) == "user: hi\n"
    assert llm.apply_chat_template(None, '[{"role": "user", "content": "hi"}]') == "user: hi\n"
    with pytest.raises(ParameterError, match="no JSON"):
        llm.apply_chat_template(None, "{")


# Hooks and the log.


def test_hooks_see_every_request(deploy: Deploy, plugin: Callable[..., ModuleType]) -> None:
    before: list[tuple[str, str]] = []
    after: list[tuple[str, Any, Any]] = []

    def before_request(model: str, request: Any) -> None:
        before.append((model, type(request).__name__))

    def after_request(request: Any, result: Any, error: Any) -> None:
        after.append((type(request).__name__, type(result).__name__, type(error).__name__))

    plugin(before_request=before_request, after_request=after_request)
    llm = deploy(context=3)
    llm.chat_oai("hi")
    list(llm.stream_chat_oai("hi"))
    llm.emb(None, ["x"])
    with pytest.raises(ContextLengthError):
        llm.chat_oai(WORDS)

    async def ask() -> None:
        await llm.async_chat_oai("hi")
        async for _ in llm.async_stream_chat_oai("hi"):
            pass

    asyncio.run(ask())
    kinds = ["Generate", "Generate", "Embed", "Generate", "Generate", "Generate"]
    assert before == [("echo-1", f"{kind}Request") for kind in kinds]
    assert after == [
        ("GenerateRequest", "GenerateResult", "NoneType"),
        ("GenerateRequest", "NoneType", "NoneType"),
        ("EmbedRequest", "EmbedResult", "NoneType"),
        ("GenerateRequest", "NoneType", "ContextLengthError"),
        ("GenerateRequest", "GenerateResult", "NoneType"),
        ("GenerateRequest", "NoneType", "NoneType"),
    ]


def test_hook_changes_a_request(deploy: Deploy, plugin: Callable[..., ModuleType]) -> None:
    def before_request(request: Any) -> Any:
        request.messages[-1]["content"] = "censored"
        return request

    plugin(before_request=before_request)
    llm = deploy()
    conversation = [{"role": "user", "content": "secret"}]
    assert llm.chat_oai(conversation)[0].output == "censored"
    assert conversation[0]["content"] == "secret"


def test_hook_answers_itself(deploy: Deploy, plugin: Callable[..., ModuleType]) -> None:
    def before_request(request: Any) -> Any:
        usage = Usage(prompt_tokens=1, completion_tokens=2)
        return GenerateResult(text="from the cache", finish_reason="stop", usage=usage)

    llm = deploy()
    plugin(before_request=before_request)
    llm = ByzerLLM(runtime="local").setup_default_model_name("echo-1")
    answer = llm.chat_oai("hi")[0]
    assert (answer.output, answer.metadata.generated_tokens_count) == ("from the cache", 2)
    for delta in (True, False):
        items = list(llm.stream_chat_oai("hi", delta_mode=delta))
        assert [item.text for item in items] == ["from the cache"]
        assert items[0].metadata.finish_reason == "stop"

    async def ask() -> None:
        assert (await llm.async_chat_oai("hi"))[0].output == "from the cache"
        items = [item async for item in llm.async_stream_chat_oai("hi")]
        assert [item.text for item in items] == ["from the cache"]

    asyncio.run(ask())
    assert done(ByzerLLM(runtime="local")) == [0]


@pytest.mark.parametrize("wrong", [EmbedResult(vectors=[]), GenerateChunk(), "text"])
def test_hook_that_answers_something_else(
    llm: ByzerLLM, plugin: Callable[..., ModuleType], wrong: Any
) -> None:
    plugin(before_request=lambda request: wrong)
    llm = ByzerLLM(runtime="local")
    with pytest.raises(PluginError, match=f"GenerateRequest with a {type(wrong).__name__}"):
        llm.chat_oai("hi", model="echo-1")


def test_verbose_log(deploy: Deploy, caplog: pytest.LogCaptureFixture) -> None:
    llm = deploy(client=ByzerLLM(verbose=True, runtime="local"), context=2)
    with caplog.at_level(logging.INFO, "byzerllm"):
        llm.chat_oai("hi", extra_request_params={"request_id": "r-7"})
        with pytest.raises(ContextLengthError):
            llm.chat_oai(WORDS)
    assert "echo-1 r-7: ok in" in caplog.text
    assert "ContextLengthError" in caplog.text


def test_quiet_by_default(llm: ByzerLLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "byzerllm"):
        llm.chat_oai("hi")
    assert not caplog.records
