"""What every backend and every provider must do, as pytest classes to subclass.

    class TestAcme(ProviderConformance):
        spec = get_plugins().providers.get("acme")
        infer_params = {"saas.api_key": "..."}
        exceptions = {"test_stop_text": "Acme has no stop sequences"}

What is checked follows from the spec's `capabilities`; what is left out beyond them has a reason
in `exceptions`. The backend is loaded once per class, as a worker loads it, and lives on one event
loop; no pytest plugin is needed.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import pickle
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar, get_args

import msgspec
import pydantic
import pytest

from byzerllm.backend import Backend, BackendSpec, Capability, Parameters
from byzerllm.errors import ByzerLLMError, CapabilityError, ParameterError, UsageError
from byzerllm.plugins import GROUP, Plugins, get_plugins
from byzerllm.requests import (
    ApplyTemplateRequest,
    ApplyTemplateResult,
    EmbedRequest,
    EmbedResult,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    GenerateResult,
    MetaRequest,
    ModelMeta,
    Request,
    RerankRequest,
    RerankResult,
    Result,
    SamplingParams,
    TokenizeRequest,
    TokenizeResult,
)
from byzerllm.runtime.deployment import DeploymentSpec, is_secret, resolve
from byzerllm.runtime.host import Host

T = TypeVar("T")

_METHODS: dict[Capability, str] = {
    "embedding": "embed",
    "rerank": "rerank",
    "tokenize": "tokenize",
    "chat_template": "apply_chat_template",
}
_SECRET = "an-invented-secret-0123456789"
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


class BackendConformance:
    """Checks one backend; subclass it under a name that begins with `Test`.

    Attributes:
        spec: the backend; required.
        infer_params: what a deployment of it is told.
        model_path: a path or a reference (`demo:…`); may stay empty where none is needed.
        model_type: the `pretrained_model_type`.
        prompt: a question whose answer has at least 8 tokens and 8 chunks.
        generation: generation parameters of every request; a check adds its own.
        deterministic: the same request always has the same answer.
        exceptions: a reason per name of a check that does not apply; it is skipped with that
            reason. A name that is no check fails `test_exceptions_name_checks`.
        time_limit: seconds that one check may take, loading left out.
        load_limit: seconds that loading may take.
        cancel_limit: seconds within which a cancelled request must have stopped.
    """

    spec: ClassVar[BackendSpec]
    infer_params: ClassVar[Mapping[str, Any]] = {}
    model_path: ClassVar[str] = ""
    model_type: ClassVar[str] = "custom/auto"
    prompt: ClassVar[str] = "Count from one to twenty in words, one after the other."
    generation: ClassVar[Mapping[str, Any]] = {"max_tokens": 24, "temperature": 0}
    deterministic: ClassVar[bool] = False
    exceptions: ClassVar[Mapping[str, str]] = {}
    time_limit: ClassVar[float] = 60.0
    load_limit: ClassVar[float] = 300.0
    cancel_limit: ClassVar[float] = 1.0

    _runner: ClassVar[asyncio.Runner]
    _host: ClassVar[Host | None] = None

    # What a subclass may replace.

    def busy(self, backend: Backend) -> bool:
        """Whether the engine still works on a request. Asked after a cancellation; replace it
        where the backend can tell, for from outside only its tasks can be seen."""
        return False

    # What pytest calls.

    @classmethod
    def setup_class(cls) -> None:
        if not isinstance(getattr(cls, "spec", None), BackendSpec):
            pytest.fail(f"{cls.__name__}.spec is no BackendSpec", pytrace=False)
        cls._runner = asyncio.Runner()
        cls._host = None

    @classmethod
    def teardown_class(cls) -> None:
        host, cls._host = cls._host, None
        try:
            if host is not None:
                cls._runner.run(asyncio.wait_for(host.close(), cls.time_limit))
        finally:
            cls._runner.close()

    def setup_method(self, method: Any) -> None:
        reason = self.exceptions.get(method.__name__)
        if reason and method.__name__ != "test_exceptions_name_checks":
            pytest.skip(reason)

    # The specification.

    def test_exceptions_name_checks(self) -> None:
        checks = {name for name in dir(type(self)) if name.startswith("test_")}
        unknown = set(self.exceptions) - checks
        assert not unknown, f"exceptions of no check: {sorted(unknown)}; checks: {sorted(checks)}"
        silent = [name for name, reason in self.exceptions.items() if not reason.strip()]
        assert not silent, f"exceptions without a reason: {silent}"

    def test_spec_is_described(self) -> None:
        spec = self.spec
        assert spec.name
        assert spec.description, "BackendSpec.description is shown in tables"
        allowed = set(get_args(Capability))
        assert spec.capabilities, "BackendSpec.capabilities is empty"
        assert spec.capabilities <= allowed, f"capabilities are of {sorted(allowed)}"
        assert spec.default_concurrency >= 1

    def test_spec_names_a_backend(self) -> None:
        loaded = self.spec.load()
        assert isinstance(loaded, type)
        assert issubclass(loaded, Backend), f"{self.spec.path} is no byzerllm.Backend"

    @pytest.mark.parametrize("capability", sorted(_METHODS))
    def test_capability_is_what_is_implemented(self, capability: Capability) -> None:
        method = _METHODS[capability]
        implemented = getattr(self.spec.load(), method) is not getattr(Backend, method)
        declared = capability in self.spec.capabilities
        assert implemented == declared, (
            f"{method} is {'' if implemented else 'not '}implemented and capability "
            f"{capability!r} is {'' if declared else 'not '}declared"
        )

    def test_entry_point_registers_it(self) -> None:
        plugins = get_plugins()
        registry = plugins.providers if self.spec.hosted else plugins.backends
        assert self.spec.name in registry, f"no plugin registers {self.spec.name!r}"
        owner = registry.plugin_of(self.spec.name)
        entries = {entry.name for entry in importlib.metadata.entry_points(group=GROUP)}
        assert owner in entries, f"plugin {owner!r} is named by no entry point in {GROUP!r}"
        assert registry.get(self.spec.name) == self.spec, "the registered spec is another one"

    def test_parameters_are_described(self) -> None:
        fields = self.spec.parameters.model_fields
        assert issubclass(self.spec.parameters, Parameters)
        missing = [name for name, info in fields.items() if not info.description]
        assert not missing, f"infer_params without a description: {missing}"

    def test_parameters_of_this_suite_are_accepted(self) -> None:
        self.spec.parameters.parse(self.infer_params, where="conformance")

    def test_unknown_parameter_is_refused(self) -> None:
        given = {**self.infer_params, "no_such_parameter": 1}
        with pytest.raises(ParameterError, match="no_such_parameter"):
            resolve(self._deployment(given), self._plugins())

    def test_secrets_stay_out_of_sight(self) -> None:
        parameters = self.spec.parameters
        names = [
            name
            for name, info in parameters.model_fields.items()
            if _holds_text(info.annotation)
            and (_is_secret_type(info.annotation) or is_secret(name))
        ]
        given = {
            key: value
            for key, value in self.infer_params.items()
            if _field_of(parameters, key) not in names
        }
        made = parameters.parse({**given, **dict.fromkeys(names, _SECRET)}, where="conformance")
        for text in (repr(made), str(made), made.model_dump_json()):
            assert _SECRET not in text, "a secret shows; its field must be a pydantic.SecretStr"

    # The loaded model.

    def test_loads_and_is_healthy(self) -> None:
        self.run(self.host.backend.health())

    def test_meta(self) -> None:
        meta = self.answer(MetaRequest(id=self._id()))
        assert isinstance(meta, ModelMeta)
        assert meta.model_deploy_type == ("saas" if self.spec.hosted else "proprietary")
        assert meta.backend
        assert meta.max_model_len is None or meta.max_model_len > 0
        declared = self.spec.capabilities
        assert not meta.constrained or "constrained" in declared
        assert not meta.embedding_mode or "embedding" in declared
        encoded = msgspec.msgpack.encode(meta)
        assert msgspec.msgpack.decode(encoded, type=ModelMeta) == meta

    def test_whole_answer(self) -> None:
        self._needs("chat")
        result = self.chat()
        self._check_result(result)

    def test_streamed_answer(self) -> None:
        self._needs("chat")
        chunks = self.stream()
        assert all(isinstance(chunk, GenerateChunk) for chunk in chunks)
        finished = [chunk for chunk in chunks if chunk.finish_reason is not None]
        assert len(finished) == 1, f"{len(finished)} chunks have a finish_reason; the last one must"
        assert chunks[-1] is finished[0], "a chunk follows the one with the finish_reason"
        assert chunks[-1].usage is not None, "the last chunk has no usage"
        pieces = [chunk for chunk in chunks if chunk.text or chunk.reasoning]
        assert len(pieces) > 1, "the answer came in one piece; ask for a longer one in `prompt`"
        self._check_result(_gathered(chunks))

    def test_whole_and_streamed_agree(self) -> None:
        self._needs("chat")
        whole, streamed = self.chat(), _gathered(self.stream())
        assert streamed.finish_reason == whole.finish_reason
        assert bool(streamed.token_ids) == bool(whole.token_ids)
        assert bool(streamed.reasoning) == bool(whole.reasoning)
        assert streamed.usage.prompt_tokens == whole.usage.prompt_tokens
        if self.deterministic:
            assert streamed.text == whole.text
            assert streamed.usage == whole.usage

    def test_text_is_whole_unicode(self) -> None:
        self._needs("chat")
        for chunk in self.stream(prompt=f"{self.prompt} 你好，世界！ 🌍"):
            assert "\ufffd" not in chunk.text
            chunk.text.encode()

    def test_max_tokens(self) -> None:
        self._needs("chat")
        result = self.chat(max_tokens=2)
        assert result.usage.completion_tokens <= 2
        assert result.finish_reason == "length"
        assert len(result.text) < len(self.chat().text)
        assert _gathered(self.stream(max_tokens=2)).finish_reason == "length"

    def test_stop_text(self) -> None:
        self._needs("chat")
        text = self.chat().text
        middle = len(text) // 2
        stop = text[middle : middle + 3].strip() or text.strip()[-3:]
        result = self.chat(stop=[stop])
        assert stop not in result.text
        streamed = _gathered(self.stream(stop=[stop]))
        assert stop not in streamed.text
        if self.deterministic:
            assert result.text == streamed.text == text.partition(stop)[0]
            assert result.finish_reason == streamed.finish_reason == "stop"

    def test_completion(self) -> None:
        request = GenerateRequest(id=self._id(), prompt=self.prompt, sampling=self._sampling())
        if "completion" not in self.spec.capabilities:
            self._lacks(request)
            return
        result = self.answer(request)
        assert isinstance(result, GenerateResult)
        self._check_result(result)

    def test_concurrent_requests(self) -> None:
        self._needs("chat")
        count = max(2, min(4, self.host.spec.worker_concurrency))

        async def many() -> list[GenerateResult]:
            streams = [self._gather(self._request(stream=True)) for _ in range(count)]
            wholes = [self.host.answer(self._request()) for _ in range(count)]
            results = await asyncio.gather(*streams, *wholes)
            return [result for result in results if isinstance(result, GenerateResult)]

        results = self.run(many())
        assert len(results) == 2 * count
        for result in results:
            self._check_result(result)
        if self.deterministic:
            assert len({result.finish_reason for result in results}) == 1

    # Cancelling.

    def test_closed_stream_stops(self) -> None:
        self._needs("chat")
        self.chat()

        async def leave() -> float:
            request = self._request(stream=True, max_tokens=1000)
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    if chunk.text or chunk.reasoning:
                        break
                start = time.monotonic()
            return time.monotonic() - start

        self._check_stops(leave())

    def test_cancelled_stream_stops(self) -> None:
        self._needs("chat")
        self.chat()

        async def read(first: asyncio.Event) -> None:
            request = self._request(stream=True, max_tokens=1000)
            async with aclosing(self._chunks(request)) as chunks:
                async for chunk in chunks:
                    if chunk.text or chunk.reasoning:
                        first.set()

        async def cancel() -> float:
            first = asyncio.Event()
            return await self._cancelled(asyncio.ensure_future(read(first)), first)

        self._check_stops(cancel())

    def test_cancelled_call_stops(self) -> None:
        self._needs("chat")
        self.chat()

        async def cancel() -> float:
            call = asyncio.ensure_future(self.host.answer(self._request(max_tokens=1000)))
            begun = asyncio.Event()
            asyncio.get_running_loop().call_later(0.02, begun.set)
            return await self._cancelled(call, begun)

        self._check_stops(cancel())

    # What is refused.

    def test_unknown_generation_parameter_is_refused(self) -> None:
        with pytest.raises(ParameterError, match=r"temperatur'.*did you mean 'temperature'") as got:
            self.chat(temperatur=1)
        _check_pickles(got.value)

    def test_empty_conversation_is_refused(self) -> None:
        self._needs("chat")
        with pytest.raises(UsageError) as got:
            self.answer(GenerateRequest(id=self._id(), messages=[], sampling=self._sampling()))
        _check_pickles(got.value)
        self._check_result(self.chat())

    # The other capabilities.

    def test_embedding(self) -> None:
        request = EmbedRequest(id=self._id(), texts=["one", "a longer second text"])
        if "embedding" not in self.spec.capabilities:
            self._lacks(request)
            return
        result = self.answer(request)
        assert isinstance(result, EmbedResult)
        assert len(result.vectors) == 2
        sizes = {len(vector) for vector in result.vectors}
        assert len(sizes) == 1, f"vectors of several sizes: {sizes}"
        assert sizes != {0}
        assert all(math.isfinite(number) for vector in result.vectors for number in vector)
        assert result.vectors[0] != result.vectors[1]
        huge = EmbedRequest(id=self._id(), texts=["one"], dimensions=1_234_567)
        with pytest.raises(ByzerLLMError):
            self.answer(huge)

    def test_rerank(self) -> None:
        near, far = "the capital of France is Paris", "a goat eats grass"
        query = "capital of France"
        request = RerankRequest(id=self._id(), query=query, documents=[far, near])
        if "rerank" not in self.spec.capabilities:
            self._lacks(request)
            return
        result = self.answer(request)
        assert isinstance(result, RerankResult)
        assert len(result.scores) == 2
        assert all(math.isfinite(score) for score in result.scores)
        assert result.scores[1] > result.scores[0], "the document that answers has the lower score"
        pairs = RerankRequest(id=self._id(), pairs=[(query, far), (query, near)])
        again = self.answer(pairs)
        assert isinstance(again, RerankResult)
        assert again.scores == pytest.approx(result.scores, abs=1e-3)

    def test_tokenize(self) -> None:
        request = TokenizeRequest(id=self._id(), text="Hello, world")
        if "tokenize" not in self.spec.capabilities:
            self._lacks(request)
            return
        result = self.answer(request)
        assert isinstance(result, TokenizeResult)
        assert result.token_ids
        assert all(isinstance(token, int) for token in result.token_ids)
        empty = self.answer(TokenizeRequest(id=self._id(), text=""))
        assert isinstance(empty, TokenizeResult)
        assert empty.token_ids == [], "special tokens were added"

    def test_chat_template(self) -> None:
        request = ApplyTemplateRequest(id=self._id(), messages=self._messages("a question"))
        if "chat_template" not in self.spec.capabilities:
            self._lacks(request)
            return
        result = self.answer(request)
        assert isinstance(result, ApplyTemplateResult)
        assert "a question" in result.text

    def test_json_schema(self) -> None:
        if "constrained" not in self.spec.capabilities:
            self._lacks(self._request(json_schema=_SCHEMA))
            return
        value = json.loads(self.chat(json_schema=_SCHEMA, max_tokens=200).text)
        assert set(value) == {"n"}
        assert isinstance(value["n"], int)

    def test_logprobs(self) -> None:
        if "logprobs" not in self.spec.capabilities:
            self._lacks(self._request(logprobs=2))
            return
        for result in (self.chat(logprobs=2), _gathered(self.stream(logprobs=2))):
            assert len(result.logprobs) == result.usage.completion_tokens
            for token in result.logprobs:
                assert token.logprob <= 1e-4
                assert len(token.top) == 2
                assert token.top[0][2] >= token.top[1][2]

    def test_close_twice(self) -> None:
        backend = self.host.backend
        # A later check loads anew.
        type(self)._host = None

        async def close() -> None:
            await backend.close()
            await backend.close()

        self.run(close())

    # Tools of the checks, of a subclass's own ones too.

    @property
    def host(self) -> Host:
        """The loaded backend as a worker has it; loaded on first use."""
        cls = type(self)
        if cls._host is None:
            cls._host = self.load()
        return cls._host

    def load(self, infer_params: Mapping[str, Any] | None = None) -> Host:
        """A backend of its own; the one who asks for it closes it."""
        plugins = self._plugins()
        asked = self._deployment(self.infer_params if infer_params is None else infer_params)
        spec, _ = resolve(asked, plugins)
        host = Host(spec, plugins)
        self.run(host.load(), limit=self.load_limit)
        return host

    def run(self, coroutine: Coroutine[Any, Any, T], limit: float | None = None) -> T:
        """The coroutine's result, on the loop that the backend lives on."""
        seconds = limit or self.time_limit

        async def limited() -> T:
            async with asyncio.timeout(seconds):
                return await coroutine

        return self._runner.run(limited())

    def answer(self, request: Request) -> Result:
        """The whole result of any request."""
        return self.run(self.host.answer(request))

    def chat(self, prompt: str | None = None, **generation: Any) -> GenerateResult:
        """The whole answer to a question."""
        result = self.answer(self._request(prompt, **generation))
        assert isinstance(result, GenerateResult)
        return result

    def stream(self, prompt: str | None = None, **generation: Any) -> list[GenerateChunk]:
        """The chunks of the answer to a question."""
        return self.run(self._list(self._request(prompt, stream=True, **generation)))

    # Inside.

    def _plugins(self) -> Plugins:
        plugins = Plugins()
        plugins.discover()
        spec = self.spec
        registry = plugins.providers if spec.hosted else plugins.backends
        if spec.name in registry:
            registry.drop(registry.plugin_of(spec.name))
        registry.add(spec.name, spec, "conformance", spec.aliases)
        return plugins

    def _deployment(self, infer_params: Mapping[str, Any]) -> DeploymentSpec:
        hosted = self.spec.hosted
        return DeploymentSpec(
            model="conformance",
            backend="" if hosted else self.spec.name,
            model_type=f"saas/{self.spec.name}" if hosted else self.model_type,
            model_path=self.model_path,
            infer_params=dict(infer_params),
        )

    def _id(self) -> str:
        return f"conformance-{time.monotonic_ns()}"

    def _messages(self, text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": text}]

    def _sampling(self, **generation: Any) -> SamplingParams:
        return SamplingParams.parse(self.generation, generation)

    def _request(
        self, prompt: str | None = None, *, stream: bool = False, **generation: Any
    ) -> GenerateRequest:
        return GenerateRequest(
            id=self._id(),
            messages=self._messages(prompt or self.prompt),
            sampling=self._sampling(**generation),
            stream=stream,
        )

    def _chunks(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        return self.host.stream(request)

    async def _list(self, request: GenerateRequest) -> list[GenerateChunk]:
        async with aclosing(self._chunks(request)) as chunks:
            return [chunk async for chunk in chunks]

    async def _gather(self, request: GenerateRequest) -> GenerateResult:
        return _gathered(await self._list(request))

    def _needs(self, capability: Capability) -> None:
        if capability not in self.spec.capabilities:
            pytest.skip(f"{self.spec.name} does not declare {capability!r}")

    def _lacks(self, request: Request) -> None:
        with pytest.raises(CapabilityError) as got:
            self.answer(request)
        _check_pickles(got.value)

    def _check_result(self, result: GenerateResult) -> None:
        assert result.text or result.reasoning, "the answer is empty"
        assert result.finish_reason in get_args(FinishReason)
        assert result.usage.prompt_tokens > 0
        assert result.usage.completion_tokens > 0
        assert 0 < result.first_token <= result.elapsed

    async def _cancelled(self, task: asyncio.Future[Any], ready: asyncio.Event) -> float:
        """Cancels the task once `ready` is set; the seconds until it has ended."""
        await ready.wait()
        start = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=self.time_limit / 2)
        assert task.done(), "a cancelled request goes on"
        if not task.cancelled() and task.exception() is not None:
            raise AssertionError("a cancelled request raised another error") from task.exception()
        return time.monotonic() - start

    def _check_stops(self, cancelling: Coroutine[Any, Any, float]) -> None:
        backend = self.host.backend

        async def check() -> tuple[float, bool]:
            before = asyncio.all_tasks()
            took = await cancelling
            end = time.monotonic() + self.cancel_limit

            def at_work() -> bool:
                return bool(asyncio.all_tasks() - before) or self.busy(backend)

            while at_work() and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return took, at_work()

        took, works = self.run(check())
        assert took <= self.cancel_limit, f"it took {took:.2f} s to stop a request"
        assert not works, "the backend goes on with a request that was cancelled"
        assert self.host.stat()["running"] == 0
        self._check_result(self.chat())


class ProviderConformance(BackendConformance):
    """Checks one provider of hosted models, beyond what every backend must do."""

    def wrong_key(self) -> Mapping[str, Any] | None:
        """`infer_params` with a key that the vendor, or the server that plays it, refuses. None
        leaves the check out."""
        return None

    def test_hosted(self) -> None:
        assert self.spec.hosted, "a provider's spec says hosted=True"

    def test_needs_no_model_path(self) -> None:
        assert not self.model_path
        resolve(self._deployment(self.infer_params), self._plugins())

    def test_wrong_key(self) -> None:
        given = self.wrong_key()
        if given is None:
            pytest.skip("wrong_key() names no infer_params with a key that is refused")
        with pytest.raises(ByzerLLMError) as got:
            self._ask_once(given)
        shown = f"{got.value!r} {got.value} {got.value.details}"
        for key, value in given.items():
            assert not is_secret(key) or str(value) not in shown, f"the error shows {key}"
        _check_pickles(got.value)

    def _ask_once(self, infer_params: Mapping[str, Any]) -> None:
        host = self.load(infer_params)

        async def ask() -> None:
            try:
                await host.answer(self._request())
            finally:
                await host.close()

        self.run(ask())


def _gathered(chunks: list[GenerateChunk]) -> GenerateResult:
    last = chunks[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    return GenerateResult(
        text="".join(chunk.text for chunk in chunks),
        finish_reason=last.finish_reason,
        usage=last.usage,
        token_ids=[token for chunk in chunks for token in chunk.token_ids],
        logprobs=[token for chunk in chunks for token in chunk.logprobs],
        reasoning="".join(chunk.reasoning for chunk in chunks),
        first_token=last.first_token,
        elapsed=last.elapsed,
    )


def _check_pickles(error: ByzerLLMError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.message == error.message
    assert again.details == error.details


def _field_of(parameters: type[Parameters], key: str) -> str:
    bare = next((key.removeprefix(p) for p in parameters.prefixes if key.startswith(p)), key)
    return parameters.names().get(bare, bare)


def _inside(annotation: Any) -> set[Any]:
    found = {annotation}
    for inner in get_args(annotation):
        found |= _inside(inner)
    return found


def _is_secret_type(annotation: Any) -> bool:
    return pydantic.SecretStr in _inside(annotation)


def _holds_text(annotation: Any) -> bool:
    return bool({annotation, *get_args(annotation)} & {str, pydantic.SecretStr})
