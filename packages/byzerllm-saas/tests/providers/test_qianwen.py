"""Qwen's text models at DashScope."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from byzerllm.errors import (
    CapabilityError,
    HostedModelNotFoundError,
    ParameterError,
    ProviderProtocolError,
)
from byzerllm.requests import EmbedRequest, ToolCall, add_tool_calls
from vendors.dashscope import DashScopeTests
from vendors.openai import vector
from vendors.qianwen import REQUEST_ID, QianwenVendor
from vendors.server import NUMBERS, Answer, Refuse, Vendor
from vendors.suite import (
    CALL,
    PNG,
    WEATHER,
    Model,
    VendorConformance,
)


class TestQianwen(DashScopeTests):
    vendor_class = QianwenVendor
    provider = "qianwen"
    embedding_model = "text-embedding-v2"
    has: ClassVar = frozenset(
        {
            "check",
            "embeddings",
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

    def test_search_and_extras(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"gen.enable_search": True}, extra={"enable_thinking": False})
        sent = vendor.asked[-1].json["parameters"]
        assert (sent["enable_search"], sent["enable_thinking"]) == (True, False)

    def test_tools_in_whole_texts(self, vendor: Vendor, model: Model) -> None:
        second = {"name": "weather", "arguments": '{"place": "Paris"}'}
        vendor.answers(Answer("let us see", tool_calls=[CALL, second], finish="stop"))
        chunks = model.chunks("weather?", tools=[WEATHER], generation={"incremental_output": False})
        calls: list[ToolCall] = []
        for chunk in chunks:
            add_tool_calls(calls, chunk.tool_calls)
        assert [json.loads(call.arguments)["place"] for call in calls] == ["杭州", "Paris"]
        assert [call.id for call in calls] == ["call_0", "call_1"]
        assert "".join(chunk.text for chunk in chunks) == "let us see"
        assert chunks[-1].finish_reason == "tool_calls"

    def test_required_is_one_of_one(self, model: Model) -> None:
        other = {"type": "function", "function": {"name": "other", "parameters": {}}}
        with pytest.raises(ParameterError, match=r"tool_choice.*not 'required'"):
            model.chat("weather?", tools=[WEATHER, other], tool_choice="required")

    def test_models_that_only_stream(self, vendor: Vendor) -> None:
        with self.other(vendor, "qwen3-8b") as model:
            assert model.chat().text == NUMBERS
            assert vendor.asked[-1].headers["x-dashscope-sse"] == "enable"
            model.chat(generation={"enable_thinking": False})
            assert "x-dashscope-sse" not in vendor.asked[-1].headers

    def test_thinking_comes_as_a_stream(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("42", reasoning="6 by 7"))
        result = model.chat(generation={"enable_thinking": True})
        assert (result.text, result.reasoning) == ("42", "6 by 7")

    def test_vision_model_has_another_address(self, vendor: Vendor) -> None:
        with (
            pytest.raises(ParameterError, match=r"qwen-vl-plus.*deploy it as saas/qianwen_vl"),
            self.other(vendor, "qwen-vl-plus"),
        ):
            pass
        assert vendor.asked == []

    def test_url_error(self, vendor: Vendor, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """A vision model whose name does not say so."""
        monkeypatch.setattr(vendor, "other_models", ("qwen-turbo",))
        with pytest.raises(HostedModelNotFoundError, match="url error"):
            model.chat()
        vendor.complaints.clear()

    def test_images_need_another_model(self, model: Model) -> None:
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
        with pytest.raises(CapabilityError, match=r"qwen-turbo.*reads text, no image_url"):
            model.chat(messages=[{"role": "user", "content": parts}])

    def test_texts_in_parts(self, vendor: Vendor, model: Model) -> None:
        parts = [{"type": "text", "text": "Count"}, {"type": "text", "text": "now!"}]
        assert model.chat(messages=[{"role": "user", "content": parts}]).text == NUMBERS
        assert vendor.asked[-1].json["input"]["messages"][0]["content"] == "Count\nnow!"

    # Vectors.

    @pytest.mark.parametrize(
        ("name", "calls"),
        [("text-embedding-v1", 3), ("text-embedding-v2", 3), ("text-embedding-v3", 6)],
    )
    def test_batches(self, vendor: Vendor, name: str, calls: int) -> None:
        texts = [f"text {number}" for number in range(60)]
        with self.other(vendor, name) as model:
            before = len(vendor.asked)
            result = model.ask(EmbedRequest(id="e", texts=texts, extra={"text_type": "query"}))
            assert len(vendor.asked) - before == calls
        assert result.vectors == [vector(text) for text in texts]
        assert result.usage.prompt_tokens == 120
        assert vendor.asked[-1].json["parameters"] == {"text_type": "query"}

    def test_vectors_that_are_missing(self, vendor: Vendor) -> None:
        whole = vendor.whole

        async def one(request: Any, body: Any) -> Any:
            del body["output"]["embeddings"][0]
            return await whole(request, body)

        vendor.whole = one  # type: ignore[method-assign, assignment]
        with (
            self.other(vendor, self.embedding_model) as model,
            pytest.raises(ProviderProtocolError, match="1 vectors came for 2 texts"),
        ):
            model.ask(EmbedRequest(id="e", texts=["a", "b"]))

    # The server is DashScope as far as its own SDK can tell.

    def test_sdk_chat(self, vendor: Vendor, sdk: Any) -> None:
        asked: Any = {
            "model": "qwen-turbo",
            "messages": [{"role": "user", "content": "Count!"}],
            "result_format": "message",
            "api_key": vendor.key,
        }
        whole = sdk.Generation.call(**asked)
        assert whole.output.choices[0].message.content == NUMBERS
        assert whole.usage.output_tokens == 20
        pieces = list(sdk.Generation.call(**asked, stream=True, incremental_output=True))
        said = "".join(piece.output.choices[0].message.content for piece in pieces)
        assert said == NUMBERS
        assert pieces[-1].output.choices[0].finish_reason == "stop"
        *_, last = sdk.Generation.call(**asked, stream=True, incremental_output=False)
        assert last.output.choices[0].message.content == NUMBERS
        vendor.answers(Answer(tool_calls=[CALL]))
        called = sdk.Generation.call(**asked, tools=[WEATHER])
        (call,) = called.output.choices[0].message.tool_calls
        assert json.loads(call["function"]["arguments"]) == {"place": "杭州"}

    def test_sdk_vectors(self, vendor: Vendor, sdk: Any) -> None:
        found = sdk.TextEmbedding.call(
            model="text-embedding-v2", input=["a", "b"], api_key=vendor.key
        )
        vectors = {item["text_index"]: item["embedding"] for item in found.output["embeddings"]}
        assert vectors[1] == vector("b")

    @pytest.mark.parametrize("kind", sorted(QianwenVendor.kinds))
    def test_sdk_errors(self, vendor: Vendor, sdk: Any, kind: str) -> None:
        vendor.faults(Refuse(kind))
        status, code, _ = QianwenVendor.errors[kind]
        found = sdk.Generation.call(model="qwen-turbo", prompt="x", api_key=vendor.key)
        assert (found.status_code, found.code) == (status, code)
        assert found.request_id == REQUEST_ID


class TestConformance(VendorConformance):
    tests = TestQianwen
