"""OpenAI, and whoever speaks its wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import openai
import pytest

from byzerllm.errors import (
    AuthenticationError,
    BadRequestError,
    CapabilityError,
    ContextLengthError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderProtocolError,
)
from byzerllm.requests import (
    EmbedRequest,
    GenerateRequest,
    ImageRequest,
    SpeechRequest,
    TranscribeRequest,
)
from vendors.openai import PIXEL, OpenAIVendor, scripted_vendor, spoken, vector
from vendors.server import NUMBERS, Answer, Cut, Empty, Garbage, Refuse, Vendor
from vendors.suite import SCHEMA, WEATHER, Model, ProviderTests, VendorConformance, cell

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100)


class TestOpenAI(ProviderTests):
    vendor_class = OpenAIVendor
    provider = "openai"
    embedding_model = "text-embedding-3-small"
    embedding_dimensions = 4
    has: ClassVar = frozenset(
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

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/v1",
            "saas.model": "gpt-4o",
        }

    @contextmanager
    def other(self, vendor: Vendor, name: str, *, check: bool = True) -> Iterator[Model]:
        """Another model of the vendor."""
        params = {**self.params(vendor), "saas.model": name}
        model = Model(self.provider, params, check=check)
        try:
            yield model
        finally:
            model.close()

    # The wire.

    def test_official_openai_is_the_same(self, vendor: Vendor) -> None:
        model = Model("official_openai", self.params(vendor))
        assert model.chat().text == NUMBERS
        model.close()

    def test_thinking_models_count_their_thoughts(self, vendor: Vendor) -> None:
        with self.other(vendor, "gpt-5-mini") as model:
            assert model.chat(generation={"max_tokens": 2}).text == "one two"
        assert vendor.asked[-1].json["max_completion_tokens"] == 2

    def test_extras(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"reasoning_effort": "low"}, extra={"user": "me"})
        sent = vendor.asked[-1].json
        assert (sent["reasoning_effort"], sent["user"]) == ("low", "me")

    @pytest.mark.parametrize("name", ["top_k", "min_p", "repetition_penalty", "grammar"])
    def test_what_openai_does_not_take(self, model: Model, name: str) -> None:
        value: Any = "root ::= x" if name == "grammar" else 1
        with pytest.raises(ParameterError, match=rf"'{name}'.*takes .*temperature"):
            model.chat(generation={name: value})

    def test_completion(self, vendor: Vendor) -> None:
        with self.other(vendor, "davinci-002") as model:
            asked = GenerateRequest(id="c", prompt="Count!")
            assert model.ask(asked).text == NUMBERS
            streamed = model.stream(GenerateRequest(id="c", prompt="Count!", stream=True))
            assert "".join(chunk.text for chunk in streamed) == NUMBERS
            assert streamed[-1].usage.completion_tokens == 20

    def test_logprobs(self, vendor: Vendor, model: Model) -> None:
        vendor.answers("a b")
        result = model.chat(generation={"logprobs": 2})
        assert [token.token for token in result.logprobs] == ["a", " b"]
        assert result.logprobs[0].top[1] == ("a1", -1, -1.1)

    def test_strict_schema(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"json_schema": SCHEMA})
        assert vendor.asked[-1].json["response_format"]["json_schema"]["strict"] is True
        model.chat(generation={"json_schema": {**SCHEMA, "required": []}})
        assert vendor.asked[-1].json["response_format"]["json_schema"]["strict"] is False

    def test_refused_by_the_filter_in_mid_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("half of", finish="content_filter"))
        assert model.chat().finish_reason == "content_filter"

    def test_forced_tool_that_ends_with_stop(self, vendor: Vendor, model: Model) -> None:
        call = {"name": "weather", "arguments": "{}"}
        vendor.answers(Answer(tool_calls=[call], finish="stop"))
        result = model.chat(
            tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "weather"}}
        )
        assert result.finish_reason == "tool_calls"

    def test_cut_after_the_last_word(self, vendor: Vendor, model: Model) -> None:
        """Words and reason are here; only the count of tokens is lost."""
        vendor.answers(Answer("a b")).faults(Cut(4))
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == "a b"
        assert chunks[-1].finish_reason == "stop"

    def test_what_the_key_may_use_is_asked_at_deploy(self, vendor: Vendor) -> None:
        with (
            pytest.raises(HostedModelNotFoundError, match=r"did you mean 'gpt-4o'"),
            self.other(vendor, "gpt-4"),
        ):
            pass
        vendor.complaints.clear()
        before = len(vendor.asked)
        with self.other(vendor, "gpt-4", check=False):
            assert len(vendor.asked) == before

    # Vectors, images, sound.

    def test_vectors_as_base64_and_as_numbers(self, vendor: Vendor) -> None:
        with self.other(vendor, self.embedding_model) as model:
            small = model.ask(EmbedRequest(id="e", texts=["a"]))
            assert vendor.asked[-1].json["encoding_format"] == "base64"
            plain = model.ask(EmbedRequest(id="e", texts=["a"], extra={"encoding_format": "float"}))
            assert small.vectors == plain.vectors == [vector("a")]

    def test_more_texts_than_one_call_takes(self, vendor: Vendor) -> None:
        texts = [f"text {number}" for number in range(5000)]
        with self.other(vendor, self.embedding_model) as model:
            before = len(vendor.asked)
            result = model.ask(EmbedRequest(id="e", texts=texts))
            assert len(vendor.asked) - before == 3
            assert result.vectors == [vector(text) for text in texts]
            assert result.usage.prompt_tokens == 10_000
            vendor.faults(Refuse("rate_limited"))
            with pytest.raises(Exception, match="rate"):
                model.ask(EmbedRequest(id="e", texts=texts))

    @cell("drawing")
    @pytest.mark.parametrize("name", ["dall-e-3", "gpt-image-1"])
    def test_draw(self, vendor: Vendor, name: str) -> None:
        with self.other(vendor, name) as model:
            request = ImageRequest(id="i", prompt="a white cat", size="1024x1024")
            result = model.ask(request)
            assert (result.images, result.format) == ([PIXEL], "png")
            assert result.revised_prompt == "a white cat, in detail"
            with pytest.raises(CapabilityError, match=f"{name}.*draws images.*answers chats"):
                model.chat()

    def test_drawn_image_behind_an_address(self, vendor: Vendor) -> None:
        with self.other(vendor, "dall-e-3") as model:
            request = ImageRequest(id="i", prompt="a cat", extra={"response_format": "url"})
            assert model.ask(request).images == [PIXEL]

    def test_drawing_is_not_repeated_after_a_failure(self, vendor: Vendor) -> None:
        with self.other(vendor, "dall-e-3") as model:
            for fault, again in (
                (Refuse("failed"), False),
                (Cut(), False),
                (Refuse("rate_limited"), True),
            ):
                vendor.faults(fault)
                with pytest.raises(Exception, match="openai") as caught:
                    model.ask(ImageRequest(id="i", prompt="a cat"))
                assert caught.value.retryable == again, fault

    @cell("speech")
    def test_speak(self, vendor: Vendor) -> None:
        with self.other(vendor, "tts-1") as model:
            result = model.ask(SpeechRequest(id="s", text="hello", voice="alloy"))
            assert (result.audio, result.format) == (spoken("hello"), "mp3")
            chunks = model.stream(SpeechRequest(id="s", text="hello", stream=True))
            assert b"".join(chunk.audio for chunk in chunks) == spoken("hello")
            assert len(chunks) > 2

    def test_speech_that_cannot_be(self, vendor: Vendor) -> None:
        with self.other(vendor, "tts-1") as model:
            with pytest.raises(BadRequestError, match="alloy, ash"):
                model.ask(SpeechRequest(id="s", text="hello", voice="nobody"))
            with pytest.raises(ContextLengthError, match="4096"):
                model.ask(SpeechRequest(id="s", text="hello" * 1000))
            vendor.complaints.clear()
            for fault in (Empty(), Cut(1)):
                vendor.faults(fault)
                with pytest.raises(Exception, match="openai"):
                    model.ask(SpeechRequest(id="s", text="hello"))

    @cell("transcription")
    def test_transcribe(self, vendor: Vendor) -> None:
        with self.other(vendor, "whisper-1") as model:
            request = TranscribeRequest(id="t", audio=WAV, language="en", prompt="names")
            result = model.ask(request)
            assert result.text == f"{len(WAV)} bytes were heard"
            assert (result.language, result.duration) == ("en", 1.5)
            assert result.segments == [{"start": 0.0, "end": 1.5, "text": result.text}]
        with self.other(vendor, "gpt-4o-transcribe") as model:
            assert model.ask(TranscribeRequest(id="t", audio=WAV)).text == result.text
            with pytest.raises(BadRequestError, match="file format"):
                model.ask(TranscribeRequest(id="t", audio=b"no sound at all"))
        vendor.complaints.clear()

    def test_vectors_that_are_none(self, vendor: Vendor) -> None:
        with self.other(vendor, self.embedding_model) as model:
            vendor.faults(Garbage())
            with pytest.raises(ProviderProtocolError):
                model.ask(EmbedRequest(id="e", texts=["a"]))

    # The server is OpenAI's as far as its own SDK can tell.

    @pytest.fixture
    def sdk(self, vendor: Vendor) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(
            api_key=vendor.key, base_url=f"{vendor.url}/v1", max_retries=0
        ) as client:
            yield client

    def test_sdk_chat(self, vendor: Vendor, sdk: openai.OpenAI) -> None:
        asked: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Count!"}]}
        assert sdk.chat.completions.create(**asked).choices[0].message.content == NUMBERS
        chunks = list(
            sdk.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
        )
        said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert said == NUMBERS
        assert chunks[-1].usage
        assert chunks[-1].usage.completion_tokens == 20
        vendor.answers(Answer(tool_calls=[{"name": "weather", "arguments": '{"place": "x"}'}]))
        with sdk.chat.completions.stream(**asked, tools=[WEATHER]) as stream:
            message = stream.get_final_completion().choices[0].message
        assert message.tool_calls
        assert json.loads(message.tool_calls[0].function.arguments) == {"place": "x"}

    def test_sdk_rest(self, vendor: Vendor, sdk: openai.OpenAI) -> None:
        assert "gpt-4o" in {model.id for model in sdk.models.list()}
        found = sdk.embeddings.create(model=self.embedding_model, input=["a", "b"])
        assert {item.index: item.embedding for item in found.data}[1] == vector("b")
        drawn = sdk.images.generate(model="dall-e-3", prompt="a cat", response_format="b64_json")
        assert drawn.data
        assert drawn.data[0].b64_json
        sound = sdk.audio.speech.create(model="tts-1", voice="alloy", input="hello")
        assert sound.read() == spoken("hello")
        heard = sdk.audio.transcriptions.create(model="whisper-1", file=("a.wav", WAV))
        assert heard.text.endswith("heard")

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("wrong_key", openai.AuthenticationError),
            ("forbidden", openai.PermissionDeniedError),
            ("no_model", openai.NotFoundError),
            ("bad_request", openai.BadRequestError),
            ("rate_limited", openai.RateLimitError),
            ("failed", openai.InternalServerError),
        ],
    )
    def test_sdk_errors(
        self, vendor: Vendor, sdk: openai.OpenAI, kind: str, raised: type[Exception]
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            sdk.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])


class TestConformance(VendorConformance):
    tests = TestOpenAI


def test_wrong_address() -> None:
    params = {"saas.api_key": "k-0123456789", "saas.base_url": "api.openai.com/v1"}
    with pytest.raises(ParameterError, match=r"base_url.*begins with http:// or https://"):
        Model("openai", params)


def test_scripted_vendor() -> None:
    """For tests of other parts that need a model that says certain things."""
    with scripted_vendor("first", "second") as (llm, vendor):
        said = [llm.chat_oai(question)[0].output for question in ("a", "b")]
        assert said == ["first", "second"]
        assert vendor.asked[-1].json["messages"] == [{"role": "user", "content": "b"}]


def test_several_keys() -> None:
    """A key that the vendor refuses rests, and another one answers."""
    with OpenAIVendor() as vendor:
        params = {
            "saas.api_keys": f"{vendor.key}, wrong-key-0123456789",
            "saas.base_url": f"{vendor.url}/v1",
            "saas.model": "gpt-4o",
        }
        model = Model("openai", params)
        caught = []
        for _ in range(6):
            try:
                assert model.chat().text == NUMBERS
            except AuthenticationError as error:
                caught.append(error)
        model.close()
    (only,) = caught
    assert only.retryable
    assert only.retry_after == 0
