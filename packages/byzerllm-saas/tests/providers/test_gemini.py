"""Google's Gemini."""

from __future__ import annotations

import json
import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from google import genai
from google.genai import types

from byzerllm.errors import (
    AuthenticationError,
    CapabilityError,
    ContentFilteredError,
    HostedModelNotFoundError,
    ParameterError,
    PermissionDeniedError,
    ProviderProtocolError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    RateLimitedError,
)
from byzerllm.requests import EmbedRequest, ToolCall, add_tool_calls
from vendors.gemini import GeminiVendor, vector
from vendors.server import NUMBERS, Answer, Garbage, Refuse, Vendor
from vendors.suite import CALL, PNG, SCHEMA, WEATHER, Model, ProviderTests, VendorConformance

OLD_SDK = "google-generativeai==0.8.6"
SCRIPT = Path(__file__).parents[1] / "vendors" / "gemini_old_sdk.py"


class TestGemini(ProviderTests):
    vendor_class = GeminiVendor
    provider = "gemini"
    embedding_model = "gemini-embedding-001"
    embedding_dimensions = 4
    has: ClassVar = frozenset(
        {
            "check",
            "embeddings",
            "image_urls",
            "images",
            "json_schema",
            "max_tokens",
            "reasoning",
            "retry_after",
            "stop",
            "stream",
            "streamed_tools",
            "tool_choice",
            "tools",
            "usage",
        }
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": vendor.url,
            "saas.model": "gemini-2.5-flash",
        }

    @contextmanager
    def other(self, vendor: Vendor, name: str, **more: Any) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name, **more})
        try:
            yield model
        finally:
            model.close()

    # The wire.

    def test_seed(self, vendor: Vendor) -> None:
        """The seed's model, which has no system instructions and no schemas."""
        with self.other(vendor, "gemini-pro") as model:
            messages = [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Count!"},
            ]
            generation = {"temperature": 0.1, "top_p": 0.9, "top_k": 3}
            assert model.chat(messages=messages, generation=generation).text == NUMBERS
            sent = vendor.asked[-1]
            assert sent.path == "/v1beta/models/gemini-pro:generateContent"
            assert sent.query == {}
            assert sent.json["contents"] == [
                {"role": "user", "parts": [{"text": "Be short."}, {"text": "Count!"}]}
            ]
            assert not model.run(model.host.backend.meta()).constrained
            with pytest.raises((CapabilityError, ParameterError), match=r"json_schema|constrained"):
                model.chat(generation={"json_schema": SCHEMA})

    def test_own_parameters(self, vendor: Vendor, model: Model) -> None:
        settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
        thinking = {"includeThoughts": True}
        model.chat(generation={"safety_settings": settings, "thinking_config": thinking})
        sent = vendor.asked[-1].json
        assert sent["safetySettings"] == settings
        assert sent["generationConfig"]["thinkingConfig"] == thinking

    @pytest.mark.parametrize("name", ["min_p", "logprobs", "repetition_penalty"])
    def test_what_gemini_does_not_take(self, model: Model, name: str) -> None:
        with pytest.raises((CapabilityError, ParameterError), match=name):
            model.chat(generation={name: 1})

    @pytest.mark.parametrize("stream", [False, True])
    def test_signatures_come_back_with_the_result(self, vendor: Vendor, stream: bool) -> None:
        with self.other(vendor, "gemini-3-flash") as model:
            vendor.answers(Answer(tool_calls=[CALL, CALL]))
            calls: list[ToolCall] = []
            if stream:
                for chunk in model.chunks("weather?", tools=[WEATHER]):
                    add_tool_calls(calls, chunk.tool_calls)
            else:
                calls = model.chat("weather?", tools=[WEATHER]).tool_calls
            history = _history(calls)
            assert model.chat(messages=history, tools=[WEATHER]).text == NUMBERS
            parts = vendor.asked[-1].json["contents"][2]["parts"]
            assert [part["functionResponse"]["id"] for part in parts] == ["id0", "id1"]
            assert parts[0]["functionResponse"]["response"] == {"result": "26°"}
            # Calls of another vendor's model.
            for call, id_ in zip(calls, ("toolu_1", "toolu_2"), strict=True):
                call.id = id_
            assert model.chat(messages=_history(calls), tools=[WEATHER]).text == NUMBERS

    def test_result_without_a_call(self, model: Model) -> None:
        with pytest.raises(ParameterError, match="no call 'x'"):
            model.chat(messages=[{"role": "tool", "tool_call_id": "x", "content": "1"}])

    def test_results_that_are_objects(self, vendor: Vendor, model: Model) -> None:
        calls = [ToolCall(id="a", name="weather", arguments="{}")]
        history = _history(calls)
        history[-1]["content"] = '{"degrees": 26}'
        model.chat(messages=[*history, {"role": "user", "content": "and?"}], tools=[WEATHER])
        contents = vendor.asked[-1].json["contents"]
        assert contents[2]["parts"][0]["functionResponse"]["response"] == {"degrees": 26}
        assert contents[3] == {"role": "user", "parts": [{"text": "and?"}]}

    def test_sound(self, vendor: Vendor, model: Model) -> None:
        sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
        model.chat(messages=[{"role": "user", "content": [sound]}])
        part = vendor.asked[-1].json["contents"][0]["parts"][0]
        assert part == {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}}

    # Errors.

    @pytest.mark.parametrize("stream", [False, True])
    def test_filtered_question(self, vendor: Vendor, model: Model, stream: bool) -> None:
        vendor.answers(Answer(finish="blocked:SAFETY"))
        with pytest.raises(ContentFilteredError) as caught:
            model.chunks() if stream else model.chat()
        self.check_error(caught.value, vendor)
        assert caught.value.details["vendor_code"] == "SAFETY"

    @pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT"])
    def test_filtered_answer(self, vendor: Vendor, model: Model, reason: str) -> None:
        vendor.answers(*[Answer("half of", finish=reason)] * 2)
        assert model.chat().finish_reason == "content_filter"
        assert model.chunks()[-1].finish_reason == "content_filter"

    def test_call_that_is_none(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(finish="MALFORMED_FUNCTION_CALL"))
        with pytest.raises(ProviderUnavailableError, match="MALFORMED_FUNCTION_CALL") as caught:
            model.chat(tools=[WEATHER])
        assert caught.value.retryable

    def test_wait_in_the_body(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Refuse("rate_limited"))
        with pytest.raises(RateLimitedError) as caught:
            model.chat()
        assert caught.value.retry_after == 0.2

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("no_key", AuthenticationError),
            ("no_country", PermissionDeniedError),
            ("slow", ProviderTimeoutError),
        ],
    )
    def test_other_errors(
        self, vendor: Vendor, model: Model, kind: str, raised: type[Exception]
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            model.chat()

    def test_models_that_do_something_else(self, vendor: Vendor) -> None:
        with (
            pytest.raises(CapabilityError, match="none that answers chats; it has embedContent"),
            self.other(vendor, self.embedding_model, **{"saas.task": "chat"}),
        ):
            pass
        with pytest.raises(HostedModelNotFoundError), self.other(vendor, "gemini-9"):
            pass
        vendor.complaints.clear()

    # Vectors.

    def test_more_texts_than_one_call_takes(self, vendor: Vendor) -> None:
        texts = [f"text {number}" for number in range(250)]
        with self.other(vendor, self.embedding_model) as model:
            before = len(vendor.asked)
            result = model.ask(EmbedRequest(id="e", texts=texts, extra={"taskType": "CLUSTERING"}))
            assert len(vendor.asked) - before == 3
            assert result.vectors == [vector(text) for text in texts]
            assert result.usage.prompt_tokens == 500
            vendor.faults(Garbage())
            with pytest.raises(ProviderProtocolError):
                model.ask(EmbedRequest(id="e", texts=["a"]))

    # The server is Google's as far as its own SDKs can tell.

    @pytest.fixture
    def sdk(self, vendor: Vendor) -> genai.Client:
        options = types.HttpOptions(base_url=vendor.url, retry_options=None)
        return genai.Client(api_key=vendor.key, http_options=options, vertexai=False)

    def test_sdk(self, vendor: Vendor, sdk: genai.Client) -> None:
        name = "gemini-2.5-flash"
        image = types.Part.from_bytes(data=_png(), mime_type="image/png")
        answer = sdk.models.generate_content(model=name, contents=["Count!", image])
        assert answer.text == NUMBERS
        stream = sdk.models.generate_content_stream(model=name, contents="Count!")
        chunks = list(stream)
        assert "".join(chunk.text or "" for chunk in chunks) == NUMBERS
        usage = chunks[-1].usage_metadata
        assert usage
        assert usage.candidates_token_count == 20
        vendor.answers(Answer(tool_calls=[CALL]))
        function = types.FunctionDeclaration(
            name="weather",
            parameters_json_schema=WEATHER["function"]["parameters"],  # type: ignore[index]
        )
        config = types.GenerateContentConfig(
            tools=[types.Tool(function_declarations=[function])], system_instruction="Be short."
        )
        answer = sdk.models.generate_content(model=name, contents="weather?", config=config)
        assert answer.function_calls
        assert answer.function_calls[0].args == {"place": "杭州"}
        texts: Any = ["a", "b"]
        found = sdk.models.embed_content(model=self.embedding_model, contents=texts)
        assert found.embeddings
        assert found.embeddings[1].values == vector("b")

    @pytest.mark.parametrize(
        ("kind", "code", "status"),
        [
            ("wrong_key", 400, "INVALID_ARGUMENT"),
            ("rate_limited", 429, "RESOURCE_EXHAUSTED"),
            ("failed", 500, "INTERNAL"),
        ],
    )
    def test_sdk_errors(
        self, vendor: Vendor, sdk: genai.Client, kind: str, code: int, status: str
    ) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(genai.errors.APIError) as caught:
            sdk.models.generate_content(model="gemini-2.5-flash", contents="Count!")
        assert (caught.value.code, caught.value.status) == (code, status)

    @pytest.mark.packaging
    def test_old_sdk(self, vendor: Vendor, tmp_path: Path) -> None:
        """google-generativeai in an environment of its own, because it holds protobuf under 6."""
        venv.create(tmp_path / "v", with_pip=True)
        python = tmp_path / "v" / "bin" / "python"
        install = [python, "-m", "pip", "install", "-q", OLD_SDK]
        subprocess.run(install, check=True, timeout=300, capture_output=True)
        vendor.answers(NUMBERS, NUMBERS, Answer(finish="blocked:SAFETY"))
        run = [python, SCRIPT, vendor.url, vendor.key]
        done = subprocess.run(run, check=False, timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told == {
            "whole": NUMBERS,
            "stream": NUMBERS,
            "finish": "STOP",
            "blocked": "SAFETY",
            "vector": vector("a"),
            "wrong_key": "BadRequest",
        }
        assert vendor.asked[0].query["$alt"] == "json;enum-encoding=int"
        vendor.complaints.clear()


class TestConformance(VendorConformance):
    tests = TestGemini


def _history(calls: list[ToolCall]) -> list[dict[str, Any]]:
    given_back = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in calls
    ]
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": given_back},
        *({"role": "tool", "tool_call_id": call.id, "content": "26°"} for call in calls),
    ]


def _png() -> bytes:
    import base64

    return base64.b64decode(PNG)
