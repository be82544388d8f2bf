"""Baichuan's models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import openai
import pytest

from byzerllm.errors import CapabilityError, ParameterError, RateLimitedError
from byzerllm.requests import EmbedRequest
from vendors.baichuan import REQUEST_ID, BaichuanVendor
from vendors.openai import vector
from vendors.server import NUMBERS, Answer, Refuse, Vendor
from vendors.suite import PNG, Model, ProviderTests, VendorConformance


class TestBaichuan(ProviderTests):
    vendor_class = BaichuanVendor
    provider = "baichuan"
    embedding_model = "Baichuan-Text-Embedding"
    has: ClassVar = frozenset(
        {"check", "embeddings", "max_tokens", "retry_after", "stream", "usage"}
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/v1",
            "saas.model": "Baichuan2-Turbo",
        }

    @contextmanager
    def other(self, vendor: Vendor, name: str) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name})
        try:
            yield model
        finally:
            model.close()

    def test_system_without_its_role(self, vendor: Vendor, model: Model) -> None:
        """The second generation has users and assistants alone, later ones more."""
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Count!"},
        ]
        model.chat(messages=messages)
        assert vendor.asked[-1].json["messages"] == [
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Be short.\n\nCount!"},
        ]
        with self.other(vendor, "Baichuan4") as later:
            later.chat(messages=[{**messages[0], "role": "developer"}, *messages[1:]])
        assert vendor.asked[-1].json["messages"] == messages

    def test_system_alone(self, model: Model) -> None:
        for messages, reason in (
            ([], "add a user message"),
            ([{"role": "assistant", "content": "Hello."}], "no user message"),
            ([{"role": "tool", "tool_call_id": "1", "content": "x"}], "got 'tool'"),
        ):
            with pytest.raises(ParameterError, match=reason):
                model.chat(messages=[{"role": "system", "content": "Be short."}, *messages])

    def test_images(self, model: Model) -> None:
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]
        with pytest.raises(CapabilityError, match="reads text"):
            model.chat(messages=[{"role": "user", "content": parts}])

    @pytest.mark.parametrize(
        ("generation", "reason"),
        [
            ({"temperature": 1.5}, r"temperature.*0 to 1 \(got 1.5\)"),
            ({"stop": ["a"]}, r"'stop'.*takes .*temperature"),
            ({"seed": 5}, r"'seed'.*takes .*temperature"),
        ],
    )
    def test_what_baichuan_does_not_take(
        self, model: Model, generation: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ParameterError, match=reason):
            model.chat(generation=generation)

    def test_what_baichuan_takes(self, vendor: Vendor, model: Model) -> None:
        model.chat(
            generation={"temperature": 1, "top_k": 5, "with_search_enhance": True},
            extra={"knowledge_base": {"ids": ["kb-1"]}},
        )
        sent = vendor.asked[-1].json
        assert (sent["temperature"], sent["top_k"]) == (1, 5)
        assert sent["with_search_enhance"] is True
        assert sent["knowledge_base"] == {"ids": ["kb-1"]}

    def test_usage_is_in_the_last_piece(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.02
        vendor.answers(Answer("a b c"))
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == "a b c"
        assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 7)

    def test_request_id(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Refuse("rate_limited"))
        with pytest.raises(RateLimitedError) as caught:
            model.chat()
        assert caught.value.vendor_request_id == REQUEST_ID

    def test_batches(self, vendor: Vendor) -> None:
        texts = [f"text {number}" for number in range(40)]
        with self.other(vendor, self.embedding_model) as model:
            before = len(vendor.asked)
            result = model.ask(EmbedRequest(id="e", texts=texts))
            assert len(vendor.asked) - before == 3
        assert result.vectors == [vector(text) for text in texts]

    def test_sdk(self, vendor: Vendor) -> None:
        """Baichuan's documents show OpenAI's SDK."""
        with openai.OpenAI(api_key=vendor.key, base_url=f"{vendor.url}/v1", max_retries=0) as sdk:
            asked: Any = {
                "model": "Baichuan2-Turbo",
                "messages": [{"role": "user", "content": "Count!"}],
            }
            assert sdk.chat.completions.create(**asked).choices[0].message.content == NUMBERS
            chunks = list(sdk.chat.completions.create(**asked, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == NUMBERS
            vendor.faults(Refuse("wrong_key"))
            with pytest.raises(openai.AuthenticationError):
                sdk.chat.completions.create(**asked)


class TestConformance(VendorConformance):
    tests = TestBaichuan
    exceptions: ClassVar = {"test_stop_text": "Baichuan has no stop texts"}
