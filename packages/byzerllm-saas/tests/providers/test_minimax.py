"""MiniMax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from byzerllm.errors import CapabilityError, HostedModelNotFoundError, ParameterError
from byzerllm.requests import EmbedRequest
from vendors.minimax import GROUP, MiniMaxVendor
from vendors.openai import vector
from vendors.server import NUMBERS, Answer, Vendor
from vendors.suite import CALL, WEATHER, Model, ProviderTests, VendorConformance


class TestMiniMax(ProviderTests):
    vendor_class = MiniMaxVendor
    provider = "minimax"
    embedding_model = "embo-01"
    has: ClassVar = frozenset(
        {"check", "embeddings", "max_tokens", "stream", "streamed_tools", "tools", "usage"}
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.group_id": GROUP,
            "saas.base_url": vendor.url,
            "saas.model": "abab6.5s-chat",
        }

    def test_bots_have_names(self, vendor: Vendor, model: Model) -> None:
        model.chat(
            messages=[
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "a", "name": "Ming"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        )
        sent = vendor.asked[-1].json
        assert sent["bot_setting"] == [{"bot_name": "assistant", "content": "Be short."}]
        assert sent["reply_constraints"] == {"sender_type": "BOT", "sender_name": "assistant"}
        assert [(m["sender_type"], m["sender_name"]) for m in sent["messages"]] == [
            ("USER", "Ming"),
            ("BOT", "assistant"),
            ("USER", "user"),
        ]

    def test_several_bots(self, vendor: Vendor, model: Model) -> None:
        bots = [{"bot_name": name, "content": "kind"} for name in ("Anna", "Bert")]
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "name": "Anna"},
            {"role": "user", "content": "c"},
        ]
        reply = {"sender_name": "Bert"}
        extra = {"bot_setting": bots, "reply_constraints": reply}
        assert model.chat(messages=messages, extra=extra).text == NUMBERS
        sent = vendor.asked[-1].json
        assert sent["messages"][1]["sender_name"] == "Anna"
        assert sent["reply_constraints"]["sender_name"] == "Bert"
        with pytest.raises(ParameterError, match="Anna, Bert"):
            model.chat(extra={**extra, "reply_constraints": {"sender_name": "Carl"}})

    def test_the_last_event_repeats_the_text(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0
        vendor.answers(Answer("你好 世界 " * 50))
        text = "".join(chunk.text for chunk in model.chunks())
        assert text == "你好 世界 " * 50

    def test_streamed_tools(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]))
        last = model.chunks("weather?", tools=[WEATHER])[-1]
        assert last.finish_reason == "tool_calls"
        assert [(call.name, call.arguments) for call in last.tool_calls] == [
            (CALL["name"], CALL["arguments"])
        ]

    def test_tools_that_are_not_to_be_called(self, vendor: Vendor, model: Model) -> None:
        model.chat(tools=[WEATHER], tool_choice="none")
        assert "functions" not in vendor.asked[-1].json
        with pytest.raises(ParameterError, match="tool_choice"):
            model.chat(tools=[WEATHER], tool_choice="required")

    def test_temperature_zero(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"temperature": 0, "top_p": 0.5, "mask_sensitive_info": False})
        sent = vendor.asked[-1].json
        assert (sent["temperature"], sent["top_p"]) == (0.01, 0.5)
        assert sent["mask_sensitive_info"] is False

    @pytest.mark.parametrize("name", ["seed", "stop", "top_k"])
    def test_what_it_does_not_take(self, model: Model, name: str) -> None:
        value: Any = ["x"] if name == "stop" else 1
        with pytest.raises(ParameterError, match=rf"'{name}'.*takes .*temperature"):
            model.chat(generation={name: value})

    def test_no_images(self, vendor: Vendor, model: Model) -> None:
        before = len(vendor.asked)
        part = {"type": "image_url", "image_url": {"url": "https://images.test/a.png"}}
        with pytest.raises(CapabilityError, match=r"abab6\.5s-chat.*image_url"):
            model.chat(messages=[{"role": "user", "content": [part]}])
        assert len(vendor.asked) == before

    def test_whole_address(self, vendor: Vendor) -> None:
        """The seed's `saas.api_url`; the other calls are at the same host."""
        params = self.params(vendor)
        del params["saas.base_url"]
        params["saas.api_url"] = f"{vendor.url}/v1/text/chatcompletion_pro"
        params["saas.group_id"] = int(GROUP)
        model = Model("minimax", params)
        assert model.chat().text == NUMBERS
        model.close()
        with pytest.raises(ParameterError, match=r"api_url.*begins with http"):
            Model("minimax", {**params, "saas.api_url": "api.minimax.chat"})
        with pytest.raises(ParameterError, match=r"group_id.*is needed"):
            Model("minimax", {k: v for k, v in params.items() if k != "saas.group_id"})

    def test_wrong_model(self, vendor: Vendor) -> None:
        model = Model("minimax", {**self.params(vendor), "saas.model": "abab9"})
        with pytest.raises(HostedModelNotFoundError, match="abab9"):
            model.chat()
        model.close()
        vendor.complaints.clear()

    @pytest.fixture
    def vectors(self, vendor: Vendor) -> Iterator[Model]:
        model = Model("minimax", self.embedding_params(vendor))
        yield model
        model.close()

    def test_vectors_to_look_up(self, vendor: Vendor, vectors: Model) -> None:
        asked = EmbedRequest(id="e", texts=["a b"], extra={"type": "query"})
        assert vectors.ask(asked).vectors == [vector("a b")]
        assert vendor.asked[-1].json["type"] == "query"

    def test_sum_of_tokens(self, vendor: Vendor, model: Model) -> None:
        """The older models count question and answer together."""
        assert isinstance(vendor, MiniMaxVendor)
        vendor.counts_sum_alone = True
        vendor.answers(Answer("a", usage=(4, 5)))
        assert model.chat().usage.completion_tokens == 9


class TestConformance(VendorConformance):
    tests = TestMiniMax
    exceptions: ClassVar = {"test_stop_text": "MiniMax takes no stop texts"}
