"""OpenAI's models on Azure."""

from __future__ import annotations

from typing import Any, ClassVar

import openai
import pytest

from byzerllm.errors import HostedModelNotFoundError, ParameterError
from byzerllm.requests import EmbedRequest, ImageRequest, SpeechRequest, TranscribeRequest
from vendors.azure_openai import AzureOpenAIVendor
from vendors.openai import PIXEL, spoken
from vendors.server import NUMBERS, Vendor
from vendors.suite import Model, ProviderTests, VendorConformance, cell


class TestAzureOpenAI(ProviderTests):
    vendor_class = AzureOpenAIVendor
    provider = "azure_openai"
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
            "saas.api_type": "azure",
            "saas.api_key": vendor.key,
            "saas.api_base": f"{vendor.url}/",
            "saas.api_version": "2024-10-21",
            "saas.deployment_id": "chat-here",
        }

    def at(self, address: str) -> dict[str, Any]:
        return {"saas.api_base": address}

    def deployed(self, vendor: Vendor, deployment: str, model: str) -> Model:
        given = {"saas.deployment_id": deployment, "saas.model": model}
        return Model(self.provider, {**self.params(vendor), **given})

    @cell("drawing")
    def test_draw(self, vendor: Vendor) -> None:
        model = self.deployed(vendor, "images-here", "dall-e-3")
        assert model.ask(ImageRequest(id="i", prompt="a cat")).images == [PIXEL]
        model.close()

    @cell("speech")
    def test_speak(self, vendor: Vendor) -> None:
        model = self.deployed(vendor, "voice-here", "tts-1")
        assert model.ask(SpeechRequest(id="s", text="hello")).audio == spoken("hello")
        model.close()

    @cell("transcription")
    def test_transcribe(self, vendor: Vendor) -> None:
        model = self.deployed(vendor, "ears-here", "whisper-1")
        audio = b"RIFF" + bytes(100)
        assert model.ask(TranscribeRequest(id="t", audio=audio)).text == "104 bytes were heard"
        model.close()

    def test_older_versions_count_no_streams(self, vendor: Vendor) -> None:
        """The seed's version: `stream_options` would be refused."""
        params = {**self.params(vendor), "saas.api_version": "2023-07-01-preview"}
        model = Model(self.provider, params)
        chunks = model.chunks()
        assert "".join(chunk.text for chunk in chunks) == NUMBERS
        assert chunks[-1].usage.completion_tokens == 0
        assert model.chat().usage.completion_tokens == 20
        model.close()

    def embedding_params(self, vendor: Vendor) -> dict[str, Any]:
        model = {"saas.deployment_id": "vectors-here", "saas.model": self.embedding_model}
        return {**self.params(vendor), **model}

    def test_deployment_whose_name_does_not_say_what_it_does(self, vendor: Vendor) -> None:
        given = {"saas.deployment_id": "vectors-here", "saas.task": "embedding"}
        model = Model(self.provider, {**self.params(vendor), **given})
        assert len(model.ask(EmbedRequest(id="e", texts=["a", "b"])).vectors) == 2
        model.close()

    def test_the_model_alone_names_the_deployment(self, vendor: Vendor) -> None:
        params = {**self.params(vendor), "saas.model": "chat-here"}
        del params["saas.deployment_id"]
        model = Model(self.provider, params)
        assert model.chat().text == NUMBERS
        model.close()

    def test_deployment_that_is_none(self, vendor: Vendor) -> None:
        model = Model(self.provider, {**self.params(vendor), "saas.deployment_id": "nowhere"})
        with pytest.raises(HostedModelNotFoundError, match="does not exist"):
            model.chat()
        model.close()
        vendor.complaints.clear()

    @pytest.mark.parametrize("name", ["api_base", "deployment_id"])
    def test_what_is_missing(self, vendor: Vendor, name: str) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != f"saas.{name}"}
        with pytest.raises(ParameterError, match=rf"saas\.{name}"):
            Model(self.provider, params)

    def test_version_that_is_none(self, vendor: Vendor) -> None:
        with pytest.raises(HostedModelNotFoundError, match="HTTP 404"):
            Model(self.provider, {**self.params(vendor), "saas.api_version": "2019-01-01"})
        vendor.complaints.clear()

    def test_sdk(self, vendor: Vendor) -> None:
        with openai.AzureOpenAI(
            api_key=vendor.key,
            azure_endpoint=vendor.url,
            api_version="2024-10-21",
            max_retries=0,
        ) as client:
            asked: Any = {"model": "chat-here", "messages": [{"role": "user", "content": "x"}]}
            assert client.chat.completions.create(**asked).choices[0].message.content == NUMBERS
            chunks = client.chat.completions.create(**asked, stream=True)
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert said == NUMBERS
            found = client.embeddings.create(model="vectors-here", input=["a"])
            assert len(found.data[0].embedding) == 8


class TestConformance(VendorConformance):
    tests = TestAzureOpenAI
