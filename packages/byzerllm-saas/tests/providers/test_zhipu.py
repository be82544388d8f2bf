"""Zhipu's GLM models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import zai

from byzerllm import ByzerLLM
from byzerllm.errors import (
    AuthenticationError,
    ParameterError,
    ProviderUnavailableError,
    StreamInterruptedError,
)
from byzerllm.requests import EmbedRequest
from byzerllm_saas.providers import zhipu
from byzerllm_saas.providers.zhipu import Tokens, signed_token
from vendors.openai import vector
from vendors.server import NUMBERS, Answer, Refuse, Refused, Vendor
from vendors.suite import CALL, PNG, WEATHER, Model, ProviderTests, VendorConformance, cell
from vendors.zhipu import ZhipuVendor, check_signed


class TestZhipu(ProviderTests):
    vendor_class = ZhipuVendor
    provider = "zhipu"
    embedding_model = "embedding-2"
    has: ClassVar = frozenset(
        {
            "check",
            "embeddings",
            "image_urls",
            "images",
            "max_tokens",
            "reasoning",
            "retry_after",
            "stop",
            "stream",
            "streamed_tools",
            "tools",
            "usage",
        }
    )

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {
            "saas.api_key": vendor.key,
            "saas.base_url": f"{vendor.url}/api/paas/v4",
            "saas.model": "glm-4",
        }

    def secrets(self, vendor: Vendor) -> list[str]:
        return [vendor.key, vendor.key.partition(".")[2]]

    @contextmanager
    def other(self, vendor: Vendor, name: str, **more: Any) -> Iterator[Model]:
        """Another model of the vendor."""
        model = Model(self.provider, {**self.params(vendor), "saas.model": name, **more})
        try:
            yield model
        finally:
            model.close()

    # Keys.

    def test_key_is_signed(self, vendor: ZhipuVendor, model: Model) -> None:
        model.chat()
        model.chat()
        asked = [request.headers["authorization"] for request in vendor.asked]
        assert set(asked) == {f"Bearer {vendor.tokens[0]}"}
        assert vendor.key not in "".join(asked)

    def test_raw_key(self, vendor: ZhipuVendor) -> None:
        with self.other(vendor, "glm-4", **{"saas.api_key": vendor.raw_key}) as model:
            assert model.chat().text == NUMBERS
        assert vendor.tokens == []
        assert vendor.asked[-1].headers["authorization"] == f"Bearer {vendor.raw_key}"

    def test_token_is_signed_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 1_700_000_000.0
        monkeypatch.setattr(zhipu.time, "time", lambda: now)
        tokens = Tokens()
        first = tokens.of("id.secret")
        now += 100
        assert tokens.of("id.secret") == first
        now += 100
        second = tokens.of("id.secret")
        assert second != first
        now -= 1000
        assert tokens.of("id.secret") not in (first, second)
        assert "id" not in repr(tokens)

    @pytest.mark.parametrize(
        ("key", "age", "kind"),
        [("i.secret", 0, ""), ("i.other", 0, "wrong_key"), ("j.secret", 0, "wrong_key"),
         ("i.secret", 300, "expired")],
    )  # fmt: skip
    def test_server_checks_tokens(self, key: str, age: float, kind: str) -> None:
        token = signed_token(key, zhipu.time.time() - age)
        if not kind:
            check_signed(token, "i.secret")
            return
        with pytest.raises(Refused) as caught:
            check_signed(token, "i.secret")
        assert caught.value.kind == kind

    def test_wrong_secret_at_deploy(self, vendor: Vendor) -> None:
        key = vendor.key[:-1] + "x"
        with (
            pytest.raises(AuthenticationError, match="1002") as caught,
            self.other(vendor, "glm-4", **{"saas.api_key": key}),
        ):
            pass
        assert key.partition(".")[2] not in f"{caught.value!r} {caught.value.details}"
        vendor.complaints.clear()

    def test_token_in_an_error_is_hidden(self, vendor: Vendor, model: Model) -> None:
        token = signed_token(vendor.key, zhipu.time.time())
        assert token not in model.host.backend.errors.clean(f"token {token} is wrong")

    # The wire.

    def test_greedy(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"temperature": 0})
        sent = vendor.asked[-1].json
        assert sent["do_sample"] is False
        assert "temperature" not in sent

    @pytest.mark.parametrize(
        ("generation", "reason"),
        [
            ({"temperature": 1.5}, r"temperature.*0 to 1 \(got 1.5\)"),
            ({"stop": ["a", "b"]}, "stop.*takes one text"),
            ({"top_k": 5}, "'top_k'.*takes .*temperature"),
        ],
    )
    def test_what_zhipu_does_not_take(
        self, model: Model, generation: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(ParameterError, match=reason):
            model.chat(generation=generation)

    def test_tool_choice(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(Answer(tool_calls=[CALL]))
        assert model.chat("weather?", tools=[WEATHER], tool_choice="auto").tool_calls
        assert model.chat("weather?", tools=[WEATHER], tool_choice="none").text == NUMBERS
        assert "tools" not in vendor.asked[-1].json
        with pytest.raises(ParameterError, match=r"tool_choice.*'auto' and 'none'"):
            model.chat("weather?", tools=[WEATHER], tool_choice="required")

    def test_extras(self, vendor: Vendor, model: Model) -> None:
        model.chat(generation={"thinking": {"type": "disabled"}}, extra={"user_id": "somebody"})
        sent = vendor.asked[-1].json
        assert (sent["thinking"], sent["user_id"]) == ({"type": "disabled"}, "somebody")

    # glm-4 reads text alone, glm-4v sees.

    @cell("images")
    def test_images(self, vendor: Vendor, model: Model) -> None:
        with self.other(vendor, "glm-4v") as sees:
            self.see(vendor, sees, f"data:image/png;base64,{PNG}", PNG)
        _, image = vendor.asked[-1].json["messages"][0]["content"]
        assert image == {"type": "image_url", "image_url": {"url": PNG}}

    @cell("image_urls")
    def test_image_urls(self, vendor: Vendor, model: Model) -> None:
        with self.other(vendor, "glm-4v") as sees:
            super().test_image_urls(vendor, sees)

    @cell("images")
    def test_images_as_json_text(self, vendor: Vendor, llm: ByzerLLM) -> None:
        params = {**self.params(vendor), "saas.model": "glm-4v"}
        llm.deploy(pretrained_model_type="saas/zhipu", udf_name="sees", infer_params=params)
        llm.setup_default_model_name("sees")
        try:
            super().test_images_as_json_text(vendor, llm)
        finally:
            llm.undeploy("sees", force=True)

    def test_sensitive(self, vendor: Vendor, model: Model) -> None:
        vendor.answers(*[Answer("half of", finish="sensitive")] * 2)
        assert model.chat().finish_reason == "content_filter"
        assert model.chunks()[-1].finish_reason == "content_filter"

    def test_model_that_fails_in_mid_answer(self, vendor: Vendor, model: Model) -> None:
        vendor.pace = 0.02
        vendor.answers(*[Answer("half of", finish="network_error")] * 2)
        with pytest.raises(ProviderUnavailableError, match="'network_error'") as caught:
            model.chat()
        assert caught.value.retryable
        with pytest.raises(StreamInterruptedError) as interrupted:
            model.chunks()
        assert interrupted.value.text == "half of"

    def test_batches(self, vendor: Vendor) -> None:
        texts = [f"text {number}" for number in range(40)]
        with self.other(vendor, "embedding-3") as model:
            before = len(vendor.asked)
            result = model.ask(EmbedRequest(id="e", texts=texts, extra={"dimensions": 256}))
            assert len(vendor.asked) - before == 3
        assert result.vectors == [vector(text) for text in texts]
        assert vendor.asked[-1].json["dimensions"] == 256

    # The server is Zhipu's as far as its own SDK can tell.

    @pytest.fixture(params=[True, False], ids=["raw", "signed"])
    def sdk(self, vendor: Vendor, request: pytest.FixtureRequest) -> Iterator[Any]:
        client = zai.ZhipuAiClient(
            api_key=vendor.key,
            base_url=f"{vendor.url}/api/paas/v4",
            max_retries=0,
            disable_token_cache=request.param,
        )
        yield client
        client.close()

    def test_sdk(self, vendor: Vendor, sdk: Any) -> None:
        asked: Any = {"model": "glm-4", "messages": [{"role": "user", "content": "Count!"}]}
        assert sdk.chat.completions.create(**asked).choices[0].message.content == NUMBERS
        chunks = list(sdk.chat.completions.create(**asked, stream=True))
        said = "".join(chunk.choices[0].delta.content for chunk in chunks)
        assert said == NUMBERS
        assert chunks[-1].usage.completion_tokens == 20
        vendor.answers(Answer(tool_calls=[CALL]))
        called = sdk.chat.completions.create(**asked, tools=[WEATHER])
        (call,) = called.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"place": "杭州"}
        found = sdk.embeddings.create(model="embedding-2", input=["a", "b"])
        assert {item.index: item.embedding for item in found.data}[1] == vector("b")
        assert sdk.files.list(purpose="batch").data == []

    @pytest.mark.parametrize(
        ("kind", "raised"),
        [
            ("wrong_key", zai.core.APIAuthenticationError),
            ("bad_request", zai.core.APIRequestFailedError),
            ("rate_limited", zai.core.APIReachLimitError),
            ("failed", zai.core.APIInternalError),
        ],
    )
    def test_sdk_errors(self, vendor: Vendor, sdk: Any, kind: str, raised: type[Exception]) -> None:
        vendor.faults(Refuse(kind))
        with pytest.raises(raised):
            sdk.chat.completions.create(model="glm-4", messages=[{"role": "user", "content": "x"}])


class TestConformance(VendorConformance):
    tests = TestZhipu
