"""The tests that every provider passes whose models speak and do nothing else.

class TestAcme(SpeechTests):
    vendor_class = AcmeVendor
    provider = "acme"
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, ClassVar

import pytest

from byzerllm import ByzerLLM
from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    ParameterError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    StreamInterruptedError,
)
from byzerllm.requests import EmbedRequest, GenerateChunk, GenerateRequest, SpeechRequest
from vendors.openai import spoken
from vendors.server import Cut, Empty, Garbage, Refuse, Slow, Vendor
from vendors.suite import ERRORS, RETRYABLE, Model, ProviderTests, VendorConformance

TEXT = "你好，大帅哥 <3 & 'more'"
_NUMBERS = itertools.count()


def speech(text: str = TEXT, **fields: Any) -> SpeechRequest:
    return SpeechRequest(id=f"s-{next(_NUMBERS)}", text=text, **fields)


class SpeechTests:
    """See the module.

    Class attributes:
        vendor_class: the server.
        provider: what follows `saas/`.
        voice: one that the server has.
        has: the cells of the table of vendors that these tests stand for.
        retryable: the kinds of errors after which the text may be sent again.
    """

    vendor_class: ClassVar[type[Vendor]]
    provider: ClassVar[str]
    voice: ClassVar[str]
    has: ClassVar[frozenset[str]] = frozenset({"check", "speech", "stream"})
    retryable: ClassVar[frozenset[str]] = frozenset(RETRYABLE)
    embedding_model: ClassVar[str] = ""

    def params(self, vendor: Vendor) -> dict[str, Any]:
        """`infer_params` of a deployment at the local server."""
        return {"saas.api_key": vendor.key, "saas.base_url": vendor.url}

    def wrong_key(self, vendor: Vendor) -> dict[str, Any]:
        return {**self.params(vendor), "saas.api_key": "wrong-key-0123456789"}

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames and metafunc.function.__name__ == "test_error":
            metafunc.parametrize("kind", sorted(cls.vendor_class.kinds & ERRORS.keys()))

    check_error = ProviderTests.check_error

    def secrets(self, vendor: Vendor) -> list[str]:
        return [vendor.key]

    @pytest.fixture
    def vendor(self) -> Iterator[Vendor]:
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
        llm = ByzerLLM(runtime="local")
        llm.deploy(
            pretrained_model_type=f"saas/{self.provider}",
            udf_name="m",
            infer_params=self.params(vendor),
        )
        llm.setup_default_model_name("m")
        yield llm
        llm.undeploy("m", force=True)

    def ask(self, model: Model, stream: bool) -> bytes:
        if not stream:
            audio: bytes = model.ask(speech()).audio
            return audio
        return b"".join(chunk.audio for chunk in self.chunks(model))

    @staticmethod
    def chunks(model: Model) -> list[GenerateChunk]:
        return model.stream(speech(stream=True))

    # Speech.

    def test_speak(self, model: Model) -> None:
        result = model.ask(speech(voice=self.voice))
        assert (result.audio, result.format) == (spoken(TEXT), "mp3")

    def test_streamed(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.02
        chunks = self.chunks(model)
        assert b"".join(chunk.audio for chunk in chunks) == spoken(TEXT)
        assert len(chunks) > 2
        assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert (chunks[-1].finish_reason, chunks[-1].usage is not None) == ("stop", True)

    def test_the_seeds_form(self, llm: ByzerLLM) -> None:
        content = {"input": TEXT, "voice": self.voice, "response_format": "mp3"}
        asked = [{"role": "user", "content": json.dumps(content, ensure_ascii=False)}]
        (answer,) = llm.chat_oai(asked)
        assert base64.b64decode(answer.output) == spoken(TEXT)
        pieces = [piece for piece, _ in llm.stream_chat_oai(asked)]
        assert b"".join(pieces) == spoken(TEXT)  # type: ignore[arg-type]

    def test_speed(self, vendor: Vendor, model: Model) -> None:
        model.ask(speech(speed=1.5))
        assert "1.5" in vendor.asked[-1].body.decode()

    def test_format_that_does_not_exist(self, vendor: Vendor, model: Model) -> None:
        before = len(vendor.asked)
        with pytest.raises(ParameterError, match=r"response_format.*mp3.*'flop'"):
            model.ask(speech(format="flop"))
        assert len(vendor.asked) == before

    def test_it_does_nothing_else(self, model: Model) -> None:
        message = {"role": "user", "content": "x"}
        with pytest.raises(CapabilityError):
            model.ask(GenerateRequest(id="g", messages=[message]))
        with pytest.raises(CapabilityError):
            model.ask(EmbedRequest(id="e", texts=["x"]))

    def test_meta(self, model: Model) -> None:
        meta = model.run(model.host.backend.meta())
        assert (meta.model_deploy_type, meta.task) == ("saas", "speech")
        assert meta.support_stream
        assert not any((meta.tools, meta.constrained, meta.embedding_mode))

    # Errors.

    @pytest.mark.parametrize("stream", [False, True])
    def test_error(self, vendor: Vendor, model: Model, kind: str, stream: bool) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(ERRORS[kind]) as caught:
            self.ask(model, stream)
        self.check_error(caught.value, vendor)
        assert caught.value.retryable == (kind in self.retryable)

    def test_rate_limited_once(self, vendor: Vendor, llm: ByzerLLM) -> None:
        """The runtime sends it again; the caller sees nothing of it."""
        vendor.faults(Refuse("rate_limited"))
        (answer,) = llm.chat_oai(json.dumps({"input": TEXT}))
        assert base64.b64decode(answer.output) == spoken(TEXT)

    @pytest.mark.parametrize("stream", [False, True])
    def test_cut_before_the_answer(self, vendor: Vendor, model: Model, stream: bool) -> None:
        """Speech costs: it is not asked for again, since the vendor may have made it."""
        vendor.faults(Cut())
        with pytest.raises(ProviderUnavailableError) as caught:
            self.ask(model, stream)
        self.check_error(caught.value, vendor)
        assert not caught.value.retryable

    def test_cut_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Cut(1))
        with pytest.raises(ProviderUnavailableError) as caught:
            self.ask(model, False)
        self.check_error(caught.value, vendor)
        assert not caught.value.retryable

    def test_cut_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.01
        vendor.faults(Cut(3))
        with pytest.raises(StreamInterruptedError):
            self.ask(model, True)

    def test_garbage(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Garbage())
        with pytest.raises(ProviderProtocolError) as caught:
            self.ask(model, False)
        self.check_error(caught.value, vendor)

    def test_garbage_in_a_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.01
        vendor.faults(Garbage(2))
        with pytest.raises(StreamInterruptedError):
            self.ask(model, True)

    @pytest.mark.parametrize("stream", [False, True])
    def test_empty_answer(self, vendor: Vendor, model: Model, stream: bool) -> None:
        vendor.faults(Empty())
        with pytest.raises(ProviderProtocolError) as caught:
            self.ask(model, stream)
        self.check_error(caught.value, vendor)

    @pytest.mark.parametrize("stream", [False, True])
    def test_timeout(self, vendor: Vendor, stream: bool) -> None:
        model = Model(self.provider, {**self.params(vendor), "saas.read_timeout": 0.3})
        vendor.faults(Slow(2))
        start = time.monotonic()
        with pytest.raises(ProviderTimeoutError) as caught:
            self.ask(model, stream)
        assert time.monotonic() - start < 1.5
        self.check_error(caught.value, vendor)
        model.close()

    def test_unreachable(self, vendor: Vendor) -> None:
        params = {**self.params(vendor), "saas.base_url": "http://127.0.0.1:9"}
        model = Model(self.provider, params, check=False)
        for stream in (False, True):
            with pytest.raises(ProviderUnavailableError, match=r"127\.0\.0\.1:9"):
                self.ask(model, stream)
        model.close()

    def test_cancelling_reaches_the_vendor(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.05

        async def leave() -> None:
            asked = speech(stream=True)
            async with aclosing(model.host.stream(asked)) as chunks:
                async for _ in chunks:
                    break
            await asyncio.sleep(0.2)

        model.run(leave())
        assert vendor.left == 1

    # Deploying.

    def test_wrong_key_at_deploy(self, vendor: Vendor) -> None:
        with pytest.raises(AuthenticationError) as caught:
            Model(self.provider, self.wrong_key(vendor))
        self.check_error(caught.value, vendor)
        assert "wrong-key" not in f"{caught.value!r} {caught.value.details!r}"
        vendor.complaints.clear()

    def test_missing_key(self, vendor: Vendor) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != "saas.api_key"}
        with pytest.raises(ParameterError, match=r"saas\.api_key.*\$\{\w+\}"):
            Model(self.provider, params)

    def test_unknown_parameter(self, vendor: Vendor) -> None:
        with pytest.raises(ParameterError, match=r"api_keey.*did you mean 'api_key'"):
            Model(self.provider, {**self.params(vendor), "saas.api_keey": "x"})


class SpeechConformance(VendorConformance):
    """The suite of `byzerllm.testing`, as far as it is about providers that speak."""
