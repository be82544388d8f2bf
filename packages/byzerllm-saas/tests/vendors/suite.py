"""The tests that every provider passes, one per cell of the table of vendors and capabilities.

class TestAcme(ProviderTests):
    vendor_class = AcmeVendor
    provider = "acme"
    has = frozenset({"chat", "stream", "tools", "usage"})

    def params(self, vendor):
        return {"saas.api_key": vendor.key, "saas.base_url": vendor.url, "saas.model": "acme-1"}
"""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar

import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    ByzerLLMError,
    CapabilityError,
    ContentFilteredError,
    ContextLengthError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    QuotaExceededError,
    RateLimitedError,
    StreamInterruptedError,
)
from byzerllm.plugins import get_plugins
from byzerllm.requests import (
    EmbedRequest,
    GenerateChunk,
    GenerateRequest,
    Request,
    SamplingParams,
    StreamRequest,
    ToolCall,
    add_tool_calls,
)
from byzerllm.runtime.background import background_loop
from byzerllm.runtime.deployment import DeploymentSpec, resolve
from byzerllm.runtime.host import Host
from byzerllm.testing import ProviderConformance
from vendors.server import NUMBERS, Answer, Cut, Empty, Garbage, Refuse, Slow, Vendor

ERRORS: dict[str, type[ByzerLLMError]] = {
    "wrong_key": AuthenticationError,
    "forbidden": PermissionDeniedError,
    "no_model": HostedModelNotFoundError,
    "bad_request": BadRequestError,
    "too_long": ContextLengthError,
    "filtered": ContentFilteredError,
    "rate_limited": RateLimitedError,
    "quota": QuotaExceededError,
    "overloaded": ProviderOverloadedError,
    "failed": ProviderUnavailableError,
}
RETRYABLE = {"rate_limited", "overloaded", "failed"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
CALL = {"name": "weather", "arguments": '{"place": "杭州"}'}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
# A white pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJg"
    "gg=="
)


CELLS = frozenset(
    {
        "check",
        "drawing",
        "embeddings",
        "image_urls",
        "images",
        "json_schema",
        "max_tokens",
        "reasoning",
        "retry_after",
        "speech",
        "stop",
        "stream",
        "streamed_tools",
        "tool_choice",
        "tools",
        "transcription",
        "usage",
    }
)
"""What not every vendor offers; `ProviderTests.has` says which of them one does. Whole answers,
errors, cut connections and timeouts are tested of all. Tests for `drawing`, `speech` and
`transcription` are the vendor's own, marked with `cell`."""

Test = TypeVar("Test", bound=Callable[..., None])


def cell(name: str) -> Callable[[Test], Test]:
    """Marks a test that only vendors with this cell have."""
    assert name in CELLS, name

    def mark(test: Test) -> Test:
        test.cell = name  # type: ignore[attr-defined]
        return test

    return mark


def request(question: str = "Count!", **fields: Any) -> GenerateRequest:
    sampling = SamplingParams.parse(fields.pop("generation", {}))
    messages = fields.pop("messages", [{"role": "user", "content": question}])
    return GenerateRequest(
        id=f"test-{time.monotonic_ns()}", messages=messages, sampling=sampling, **fields
    )


class Model:
    """A provider's model as a worker has it, without the runtime's retries.

    Args:
        check: ask the vendor for key and model first, as deploying does.
    """

    def __init__(self, provider: str, params: dict[str, Any], *, check: bool = True) -> None:
        plugins = get_plugins()
        asked = DeploymentSpec(model="m", model_type=f"saas/{provider}", infer_params=params)
        spec, _ = resolve(asked, plugins)
        self.host = Host(spec, plugins, check=check)
        self._loop = background_loop()
        self._loop.run(self.host.load())

    def ask(self, asked: Request) -> Any:
        return self._loop.run(self.host.answer(asked))

    def chat(self, question: str = "Count!", **fields: Any) -> Any:
        return self.ask(request(question, **fields))

    def chunks(self, question: str = "Count!", **fields: Any) -> list[GenerateChunk]:
        return self.stream(request(question, stream=True, **fields))

    def stream(self, asked: StreamRequest) -> list[GenerateChunk]:
        async def read() -> list[GenerateChunk]:
            async with aclosing(self.host.stream(asked)) as chunks:
                return [chunk async for chunk in chunks]

        return self._loop.run(read())

    def run(self, coroutine: Any) -> Any:
        return self._loop.run(coroutine)

    def close(self) -> None:
        self._loop.run(self.host.close())


class VendorConformance(ProviderConformance):
    """The suite of `byzerllm.testing` at a local server.

    class TestConformance(VendorConformance):
        tests = TestAcme
    """

    tests: ClassVar[type[ProviderTests]]
    deterministic = True
    vendor: ClassVar[Vendor]

    @classmethod
    def setup_class(cls) -> None:
        cls.vendor = cls.tests.vendor_class().__enter__()
        cls.vendor.pace = 0.005
        cls.spec = get_plugins().providers.get(cls.tests.provider)
        cls.infer_params = cls.tests().params(cls.vendor)
        super().setup_class()

    @classmethod
    def teardown_class(cls) -> None:
        super().teardown_class()
        cls.vendor.__exit__()

    def wrong_key(self) -> dict[str, Any]:
        return self.tests().wrong_key(self.vendor)

    def test_embedding(self) -> None:
        name = getattr(self.tests, "embedding_model", "")
        if not name:
            super().test_embedding()
            return
        cls = type(self)
        chats, cls._host = cls._host, self.load(self.tests().embedding_params(self.vendor))
        try:
            super().test_embedding()
        finally:
            self.run(cls._host.close())
            cls._host = chats


class ProviderTests:
    """See the module.

    Class attributes:
        vendor_class: the server.
        provider: what follows `saas/`.
        has: the `CELLS` that the vendor offers; the tests of others are not collected.
        embedding_model: for the cell `embeddings`.
        embedding_dimensions: another length of its vectors; 0 where it has one length alone.
    """

    vendor_class: ClassVar[type[Vendor]]
    provider: ClassVar[str]
    has: ClassVar[frozenset[str]] = frozenset({"check", "stream", "usage"})
    embedding_model: ClassVar[str] = ""
    embedding_dimensions: ClassVar[int] = 0

    def params(self, vendor: Vendor) -> dict[str, Any]:
        """`infer_params` of a deployment at the local server."""
        return {"saas.api_key": vendor.key, "saas.base_url": vendor.url}

    def embedding_params(self, vendor: Vendor) -> dict[str, Any]:
        """`infer_params` of a deployment of `embedding_model`."""
        return {**self.params(vendor), "saas.model": self.embedding_model}

    def __init_subclass__(cls) -> None:
        unknown = cls.has - CELLS
        assert not unknown, f"no cells of the table: {sorted(unknown)}; there are {sorted(CELLS)}"
        cells = set()
        for name in {name for base in cls.__mro__ for name in vars(base) if name[:5] == "test_"}:
            # A class in between may have left it out, without the cells that this one has; a test
            # that replaces another one stands for the same cell.
            homes = [vars(base)[name] for base in cls.__mro__ if vars(base).get(name)]
            test = vars(cls)[name] if name in vars(cls) else homes[0] if homes else None
            its_cell = next((home.cell for home in homes if hasattr(home, "cell")), None)
            setattr(cls, name, None if its_cell in CELLS - cls.has else test)
            cells.add(its_cell)
        empty = cls.has - cells
        assert not empty, f"no test of {cls.__name__} is marked with {sorted(empty)}"

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames and metafunc.function.__name__ == "test_error":
            metafunc.parametrize("kind", sorted(cls.vendor_class.kinds & ERRORS.keys()))

    # Fixtures.

    @pytest.fixture
    def vendor(self) -> Iterator[Vendor]:
        """The server; at the end it must have found nothing wrong that the test did not ask for
        (`vendor.complaints.clear()`)."""
        with self.vendor_class() as vendor:
            yield vendor
        assert vendor.complaints == []

    @pytest.fixture
    def model(self, vendor: Vendor) -> Iterator[Model]:
        model = Model(self.provider, self.params(vendor))
        yield model
        model.close()

    @pytest.fixture
    def llm(self, vendor: Vendor) -> Iterator[ByzerLLM]:
        """A client with the model `m`, runtime and retries included."""
        llm = ByzerLLM(runtime="local")
        llm.deploy(
            pretrained_model_type=f"saas/{self.provider}",
            udf_name="m",
            infer_params=self.params(vendor),
        )
        llm.setup_default_model_name("m")
        yield llm
        llm.undeploy("m", force=True)

    # Chat.

    def test_chat(self, vendor: Vendor, llm: ByzerLLM) -> None:
        vendor.answers("Hello 世界 🌍")
        (answer,) = llm.chat_oai([{"role": "user", "content": "你好"}])
        assert answer.output == "Hello 世界 🌍"
        assert answer.metadata["finish_reason"] == "stop"

    def test_system_and_history(self, vendor: Vendor, model: Model) -> None:
        vendor.answers("fine")
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": "Well."},
            {"role": "user", "content": "Still?"},
        ]
        assert model.chat(messages=messages).text == "fine"
        for text in ("Be short.", "How are you?", "Well.", "Still?"):
            assert text in vendor.asked[-1].body.decode()

    @cell("stream")
    def test_stream(self, vendor: Vendor, llm: ByzerLLM) -> None:
        vendor.answers(Answer("a b 你 好"), Answer("a b 你 好"))
        asked = [{"role": "user", "content": "x"}]
        whole = [text for text, _ in llm.stream_chat_oai(asked)]
        assert whole[-1] == "a b 你 好"
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(whole))
        pieces = [text for text, _ in llm.stream_chat_oai(asked, delta_mode=True)]
        assert "".join(pieces) == "a b 你 好"

    @cell("usage")
    def test_usage(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("a b", usage=(21, 2)), Answer("a b", usage=(21, 2)))
        usage = model.chat().usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (21, 2)
        if "stream" in self.has:
            last = model.chunks()[-1]
            assert last.usage == usage

    @cell("max_tokens")
    def test_max_tokens(self, vendor: Vendor, model: Model) -> None:
        result = model.chat(generation={"max_tokens": 3})
        assert result.text == "one two three"
        assert result.finish_reason == "length"

    @cell("stop")
    def test_stop(self, vendor: Vendor, model: Model) -> None:
        assert model.chat(generation={"stop": [" four"]}).text == "one two three"

    @cell("reasoning")
    def test_reasoning(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(*[Answer("42", reasoning="6 by 7")] * 2)
        result = model.chat()
        assert (result.text, result.reasoning.strip()) == ("42", "6 by 7")
        chunks = model.chunks()
        assert "".join(chunk.reasoning for chunk in chunks).strip() == "6 by 7"
        assert "".join(chunk.text for chunk in chunks) == "42"

    # Tools and schemas.

    @cell("tools")
    def test_tools(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]), "26 degrees")
        result = model.chat("weather?", tools=[WEATHER])
        assert result.finish_reason == "tool_calls"
        (call,) = result.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "杭州"})
        assert call.id
        assert model.chat(messages=self.conversation(call), tools=[WEATHER]).text == "26 degrees"
        assert "26°" in json.dumps(vendor.asked[-1].json, ensure_ascii=False)

    @cell("tool_choice")
    def test_tool_choice(self, vendor: Vendor, model: Model) -> None:
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            vendor.answers(Answer(tool_calls=[CALL]))
            result = model.chat("weather?", tools=[WEATHER], tool_choice=choice)
            assert [call.name for call in result.tool_calls] == ["weather"]

    @cell("streamed_tools")
    def test_streamed_tools(self, vendor: Vendor, model: Model) -> None:
        second = {"name": "weather", "arguments": '{"place": "Paris"}'}
        vendor.answers(Answer(tool_calls=[CALL, second]))
        chunks = model.chunks("weather?", tools=[WEATHER])
        calls: list[ToolCall] = []
        for chunk in chunks:
            add_tool_calls(calls, chunk.tool_calls)
        assert [call.name for call in calls] == ["weather", "weather"]
        places = [json.loads(call.arguments)["place"] for call in calls]
        assert places == ["杭州", "Paris"]
        assert chunks[-1].finish_reason == "tool_calls"

    @staticmethod
    def conversation(call: ToolCall) -> list[dict[str, Any]]:
        function = {"name": call.name, "arguments": call.arguments}
        return [
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "26°"},
        ]

    @cell("json_schema")
    def test_json_schema(self, vendor: Vendor, model: Model) -> None:
        result = model.chat(generation={"json_schema": SCHEMA})
        assert json.loads(result.text) == {"n": 7}

    # Images and vectors.

    @cell("images")
    def test_images(self, vendor: Vendor, model: Model) -> None:
        self.see(vendor, model, f"data:image/png;base64,{PNG}", PNG)

    @cell("image_urls")
    def test_image_urls(self, vendor: Vendor, model: Model) -> None:
        self.see(vendor, model, "https://images.test/a.png", "https://images.test/a.png")

    @staticmethod
    def see(vendor: Vendor, model: Model, url: str, sent: str) -> None:
        """Ask about an image; `sent` must reach the vendor."""
        vendor.answers("a white pixel")
        parts = [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        result = model.chat(messages=[{"role": "user", "content": parts}])
        assert result.text == "a white pixel"
        assert sent in vendor.asked[-1].body.decode().replace("\\/", "/")

    @cell("images")
    def test_images_as_json_text(self, vendor: Vendor, llm: ByzerLLM) -> None:
        vendor.answers("a white pixel")
        content = json.dumps([{"text": "what is it?"}, {"image": f"data:image/png,{PNG}"}])
        (answer,) = llm.chat_oai([{"role": "user", "content": content}])
        assert answer.output == "a white pixel"

    @cell("embeddings")
    def test_embeddings(self, vendor: Vendor) -> None:
        model = Model(self.provider, self.embedding_params(vendor))
        try:
            texts = [f"text {number}" for number in range(40)]
            result = model.ask(EmbedRequest(id="e", texts=texts))
            assert len(result.vectors) == 40
            assert len({tuple(vector) for vector in result.vectors}) == 40
            assert result.usage.prompt_tokens > 0
            again = model.ask(EmbedRequest(id="e", texts=texts[7:8]))
            assert again.vectors[0] == pytest.approx(result.vectors[7])
            with pytest.raises(CapabilityError, match=self.embedding_model):
                model.chat()
        finally:
            model.close()

    @cell("embeddings")
    def test_embeddings_of_another_length(self, vendor: Vendor) -> None:
        """Honoured, or refused; never ignored."""
        wanted = self.embedding_dimensions
        model = Model(self.provider, self.embedding_params(vendor))
        try:
            if wanted:
                result = model.ask(EmbedRequest(id="e", texts=["a", "b"], dimensions=wanted))
                assert {len(vector) for vector in result.vectors} == {wanted}
            else:
                with pytest.raises((CapabilityError, BadRequestError)):
                    model.ask(EmbedRequest(id="e", texts=["a"], dimensions=4))
        finally:
            vendor.complaints.clear()
            model.close()

    # Errors.

    def test_error(self, vendor: Vendor, model: Model, kind: str) -> None:
        """Each error that the vendor can make, of a whole answer and of a stream."""
        for stream in (False, True) if "stream" in self.has else (False,):
            vendor.faults(Refuse(kind))
            with pytest.raises(ERRORS[kind]) as caught:
                model.chunks() if stream else model.chat()
            self.check_error(caught.value, vendor)
            assert caught.value.retryable == (kind in RETRYABLE)

    def check_error(self, error: ByzerLLMError, vendor: Vendor) -> None:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.message, again.details) == (
            type(error),
            error.message,
            error.details,
        )
        assert error.vendor == self.provider
        assert {"vendor_model", "status", "vendor_request_id", "vendor_code"} <= set(error.details)
        shown = f"{error!r} {error.details!r}"
        assert not any(secret in shown for secret in self.secrets(vendor))

    def secrets(self, vendor: Vendor) -> list[str]:
        return [vendor.key]

    @cell("retry_after")
    def test_retry_after(self, vendor: Vendor, llm: ByzerLLM) -> None:
        """429 with Retry-After and then an answer: the caller sees the answer."""
        vendor.faults(Refuse("rate_limited", retry_after="0.2"))
        before = len(vendor.asked)
        start = time.monotonic()
        assert llm.chat_oai("Count!")[0].output == NUMBERS
        assert len(vendor.asked) - before == 2
        assert 0.2 <= time.monotonic() - start < 2

    def test_failed_once(self, vendor: Vendor, llm: ByzerLLM) -> None:
        vendor.faults(Refuse("failed"))
        before = len(vendor.asked)
        assert llm.chat_oai("Count!")[0].output == NUMBERS
        assert len(vendor.asked) - before >= 2

    def test_no_retry_below_the_runtime(self, vendor: Vendor, model: Model) -> None:
        before = len(vendor.asked)
        vendor.faults(Refuse("failed"), Refuse("failed"))
        with pytest.raises(ProviderUnavailableError):
            model.chat()
        assert len(vendor.asked) - before == 1

    def test_cut_before_the_answer(self, vendor: Vendor, model: Model) -> None:
        for stream in (False, True) if "stream" in self.has else (False,):
            vendor.faults(Cut())
            with pytest.raises(ProviderUnavailableError) as caught:
                model.chunks() if stream else model.chat()
            assert caught.value.retryable

    def test_cut_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Cut(3))
        with pytest.raises(ProviderUnavailableError) as caught:
            model.chat()
        self.check_error(caught.value, vendor)

    @cell("stream")
    def test_cut_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Cut(6))
        with pytest.raises(StreamInterruptedError) as caught:
            model.chunks()
        assert caught.value.text
        assert NUMBERS.startswith(caught.value.text)
        self.check_error(caught.value, vendor)

    def test_garbage(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Garbage())
        with pytest.raises(ProviderProtocolError) as caught:
            model.chat()
        self.check_error(caught.value, vendor)
        assert not caught.value.retryable

    @cell("stream")
    def test_garbage_in_a_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Garbage(5))
        with pytest.raises(StreamInterruptedError):
            model.chunks()

    def test_empty_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Empty())
        with pytest.raises(ProviderProtocolError) as caught:
            model.chat()
        self.check_error(caught.value, vendor)

    def test_timeout(self, vendor: Vendor) -> None:
        model = Model(self.provider, {**self.params(vendor), "saas.read_timeout": 0.3})
        try:
            for stream in (False, True) if "stream" in self.has else (False,):
                vendor.faults(Slow(2))
                start = time.monotonic()
                with pytest.raises(ProviderTimeoutError) as caught:
                    model.chunks() if stream else model.chat()
                assert time.monotonic() - start < 1.5
                assert not caught.value.retryable
                self.check_error(caught.value, vendor)
        finally:
            model.close()

    def test_unreachable(self, vendor: Vendor) -> None:
        params = {**self.params(vendor), **self.at("http://127.0.0.1:9")}
        model = Model(self.provider, params, check=False)
        try:
            with pytest.raises(ProviderUnavailableError, match=r"127\.0\.0\.1:9") as caught:
                model.chat()
            assert caught.value.retryable
        finally:
            model.close()

    def at(self, address: str) -> dict[str, Any]:
        """The parameters that send the calls to another address (scheme, host, port)."""
        return {"saas.base_url": address}

    @cell("stream")
    def test_cancelling_reaches_the_vendor(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.05

        async def leave() -> None:
            async with aclosing(model.host.stream(request(stream=True))) as chunks:
                async for _ in chunks:
                    break
            await asyncio.sleep(0.3)

        model.run(leave())
        assert vendor.left == 1

    # Deploying.

    @cell("check")
    def test_wrong_key_at_deploy(self, vendor: Vendor) -> None:
        with pytest.raises(AuthenticationError) as caught:
            Model(self.provider, self.wrong_key(vendor))
        self.check_error(caught.value, vendor)
        assert "wrong-key" not in f"{caught.value!r} {caught.value.details!r}"
        vendor.complaints.clear()

    def wrong_key(self, vendor: Vendor) -> dict[str, Any]:
        return {**self.params(vendor), "saas.api_key": "wrong-key-0123456789"}

    def test_missing_key(self, vendor: Vendor) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != "saas.api_key"}
        with pytest.raises(ParameterError, match=r"saas\.api_key.*\$\{\w+\}"):
            Model(self.provider, params)

    def test_unknown_parameter(self, vendor: Vendor) -> None:
        with pytest.raises(ParameterError, match=r"api_keey.*did you mean 'api_key'"):
            Model(self.provider, {**self.params(vendor), "saas.api_keey": "x"})

    def test_unknown_generation_parameter(self, model: Model) -> None:
        with pytest.raises(ParameterError, match=r"temperatur.*did you mean 'temperature'"):
            model.chat(generation={"temperatur": 1})

    def test_meta(self, model: Model) -> None:
        meta = model.run(model.host.backend.meta())
        assert (meta.model_deploy_type, meta.backend, meta.task) == ("saas", "saas", "chat")
        assert meta.model_name
        assert meta.tools == ("tools" in self.has)

    def test_is_a_provider_error(self, vendor: Vendor, llm: ByzerLLM) -> None:
        """What the caller of the client sees, with retries behind it."""
        vendor.faults(Refuse("bad_request"))
        with pytest.raises(ProviderError):
            llm.chat_oai("Count!")
