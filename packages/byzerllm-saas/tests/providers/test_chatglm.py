"""ChatGLM by the third version of Zhipu's API."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import zhipuai

from byzerllm.errors import (
    AuthenticationError,
    ParameterError,
    ProviderUnavailableError,
    RateLimitedError,
)
from byzerllm.requests import SamplingParams
from vendors.chatglm import ChatGLMVendor
from vendors.server import NUMBERS, Answer, Vendor
from vendors.suite import Model, ProviderTests, VendorConformance


class TestChatGLM(ProviderTests):
    vendor_class = ChatGLMVendor
    provider = "chatglm"
    has: ClassVar = frozenset({"check", "stream", "usage"})

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/api/paas/v3/model-api",
            "saas.model": "chatglm_130b",
        }

    def secrets(self, vendor: Vendor) -> list[str]:
        return [vendor.key, vendor.key.partition(".")[2]]

    def test_default_model(self, vendor: Vendor) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != "saas.model"}
        model = Model(self.provider, params)
        assert model.chat().text == NUMBERS
        model.close()

    def test_token_is_bare(self, vendor: Vendor, model: Model) -> None:
        model.chat()
        assert vendor.asked[-1].headers["authorization"].startswith("eyJ")

    def test_system_without_its_role(self, vendor: Vendor, model: Model) -> None:
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Count!"},
        ]
        assert model.chat(messages=messages).text == NUMBERS
        assert vendor.asked[-1].json["prompt"] == [
            {"role": "user", "content": "Be short.\n\nHello!"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Count!"},
        ]

    @pytest.mark.parametrize(
        "text", ['a "quoted" word', "two\nlines\n", '"', '{"n": 7}', "7", " a ", "\\n"]
    )
    def test_text_is_what_was_said(self, vendor: Vendor, model: Model, text: str) -> None:
        """Whole answers come as JSON with quotes, events as they are."""
        vendor.answers(Answer(text), Answer(text))
        assert model.chat().text == text
        assert "".join(chunk.text for chunk in model.chunks()) == text

    def test_text_without_quotes(self, vendor: Vendor, model: Model) -> None:
        vendor.answers("as it is")
        assert model.chat(extra={"return_type": "text"}).text == "as it is"

    def test_last_event_that_repeats(self, vendor: ChatGLMVendor, model: Model) -> None:
        vendor.repeats = True
        assert "".join(chunk.text for chunk in model.chunks()) == NUMBERS

    def test_interrupted(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("half of", finish="interrupted"))
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == "half of"
        assert chunks[-1].finish_reason == "content_filter"

    def test_error_as_an_event(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer("", finish="error"))
        with pytest.raises(RateLimitedError, match=r"1302.*并发数过高"):
            model.chunks()
        vendor.answers(Answer("", finish="error as text"))
        with pytest.raises(Exception, match=r"chatglm .*并发数过高"):
            model.chunks()

    @pytest.mark.parametrize(
        ("generation", "reason"),
        [
            ({"max_tokens": 5}, r"'max_tokens'.*takes temperature, top_p"),
            ({"temperature": 0}, r"'temperature'.*above 0 and up to 1 \(got 0\)"),
            ({"top_p": 1}, r"'top_p'.*above 0 and below 1 \(got 1\)"),
        ],
    )
    def test_what_chatglm_does_not_take(
        self, model: Model, generation: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ParameterError, match=reason):
            model.chat(generation=generation)

    def test_no_answer_at_all(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(pieces=[]))

        def nothing(answer: Answer) -> Any:
            return iter(())

        vendor.events = nothing  # type: ignore[attr-defined]
        with pytest.raises(ProviderUnavailableError, match="ended before") as caught:
            model.chunks()
        assert caught.value.retryable

    def test_wrong_key_under_http_200(self, vendor: ChatGLMVendor) -> None:
        vendor.status_of = {}
        with pytest.raises(AuthenticationError, match="1002"):
            Model(self.provider, self.wrong_key(vendor))
        vendor.complaints.clear()

    def test_key_without_a_secret(self, vendor: Vendor) -> None:
        with pytest.raises(AuthenticationError):
            Model(self.provider, {**self.params(vendor), "saas.api_key": "no-dot-0123456789"})
        vendor.complaints.clear()

    def test_sdk(self, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server is ChatGLM's as far as its own SDK can tell."""
        monkeypatch.setattr(zhipuai, "api_key", vendor.key)
        monkeypatch.setattr(zhipuai, "model_api_url", self.params(vendor)["saas.base_url"])
        asked: Any = {
            "model": "chatglm_130b",
            "prompt": [{"role": "user", "content": "Count!"}],
            "temperature": 0.9,
            "top_p": 0.7,
        }
        found = zhipuai.model_api.invoke(**asked)
        assert json.loads(found["data"]["choices"][0]["content"]) == NUMBERS
        client = zhipuai.model_api.sse_invoke(**asked, incremental=True)
        *pieces, last = client.events()
        client.close()
        assert "".join(event.data for event in pieces) == NUMBERS
        assert {event.event for event in pieces} == {"add"}
        assert last.event == "finish"
        assert json.loads(last.meta)["usage"]["completion_tokens"] == 20
        assert "code" in zhipuai.model_api.query_async_invoke_result("0")


class TestConformance(VendorConformance):
    tests = TestChatGLM
    generation: ClassVar = {"temperature": 0.5}
    exceptions: ClassVar = {
        "test_max_tokens": "ChatGLM has no limit of new tokens",
        "test_stop_text": "ChatGLM has no stop texts",
    }

    def _sampling(self, **more: Any) -> SamplingParams:
        # Checks of cancelling ask for a long answer by a high limit.
        more.pop("max_tokens", None)
        return super()._sampling(**more)
