"""Azure's text to speech."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from byzerllm.errors import BadRequestError, ParameterError
from byzerllm_saas.providers.azure import AzureParameters
from vendors.azure import AzureVendor
from vendors.openai import spoken
from vendors.server import Vendor
from vendors.speech import TEXT, SpeechConformance, SpeechTests, speech
from vendors.suite import Model


class TestAzure(SpeechTests):
    vendor_class = AzureVendor
    provider = "azure"
    voice = "zh-CN-YunxiNeural"
    # What failed at the vendor may have been made there.
    retryable = frozenset({"rate_limited"})
    # A stream is bare bytes, in which nothing can be told from sound.
    test_garbage_in_a_stream = None

    @pytest.mark.parametrize(
        ("name", "sent"),
        [
            ("mp3", "audio-24khz-48kbitrate-mono-mp3"),
            ("wav", "riff-24khz-16bit-mono-pcm"),
            ("pcm", "raw-24khz-16bit-mono-pcm"),
            ("opus", "ogg-24khz-16bit-mono-opus"),
            ("webm", "webm-24khz-16bit-mono-opus"),
            ("audio-48khz-192kbitrate-mono-mp3", "audio-48khz-192kbitrate-mono-mp3"),
        ],
    )
    def test_formats(self, vendor: Vendor, model: Model, name: str, sent: str) -> None:
        assert model.ask(speech(format=name)).audio == spoken(TEXT)
        assert vendor.asked[-1].headers["x-microsoft-outputformat"] == sent

    @pytest.mark.parametrize(
        "text", ["</voice><voice name='x'>", "a & b < c > d \"e\" 'f'", "]]>", "&amp;"]
    )
    def test_text_is_text(self, model: Model, text: str) -> None:
        """Nothing in a text can become an element."""
        assert model.ask(speech(text)).audio == spoken(text)

    def test_characters_that_xml_has_not(self, model: Model) -> None:
        assert model.ask(speech("a\x00b\x0bc\ufffed")).audio == spoken("a b c d")

    def test_document(self, vendor: Vendor, model: Model) -> None:
        extra = {"style": "cheerful", "pitch": "+5%", "styledegree": 2}
        asked = speech("x", voice="en-US-JennyNeural", speed=1.25, extra=extra)
        assert model.ask(asked).audio == spoken("x")
        sent = vendor.asked[-1].body.decode()
        assert 'xml:lang="en-US"><voice name="en-US-JennyNeural">' in sent
        assert '<mstts:express-as style="cheerful" styledegree="2">' in sent
        assert '<prosody pitch="+5%" rate="1.25">x</prosody>' in sent
        with pytest.raises(ParameterError, match=r"styl'.*did you mean 'style'"):
            model.ask(speech(extra={"styl": "x"}))

    def test_voice_that_does_not_exist(self, vendor: Vendor, model: Model) -> None:
        for voice in ("zh-CN-NobodyNeural", 'a"><b'):
            with pytest.raises(BadRequestError, match="Unsupported voice"):
                model.ask(speech(voice=voice))
        vendor.complaints.clear()
        with pytest.raises(BadRequestError, match="did you mean 'zh-CN-YunxiNeural'"):
            Model("azure", {**self.params(vendor), "saas.voice": "zh-CN-YunxiNeurral"})

    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("eastus", "https://eastus.tts.speech.microsoft.com"),
            ("East US", "https://eastus.tts.speech.microsoft.com"),
            ("chinanorth2", "https://chinanorth2.tts.speech.azure.cn"),
            ("usgovvirginia", "https://usgovvirginia.tts.speech.azure.us"),
        ],
    )
    def test_regions(self, region: str, host: str) -> None:
        given = {"saas.api_key": "key-0123456789", "saas.service_region": region}
        assert AzureParameters.parse(given, where="azure").host == host

    @pytest.mark.parametrize("region", ["", "https://eastus.api.cognitive.microsoft.com", "e/../x"])
    def test_regions_that_are_none(self, region: str) -> None:
        given = {"saas.api_key": "key-0123456789", "saas.service_region": region}
        with pytest.raises(ParameterError, match=r"service_region.*eastus"):
            AzureParameters.parse(given, where="azure")

    def test_region_is_needed(self, vendor: Vendor) -> None:
        params: dict[str, Any] = {"saas.api_key": vendor.key}
        with pytest.raises(ParameterError, match=r"service_region.*is needed"):
            Model("azure", params)


class TestConformance(SpeechConformance):
    tests: ClassVar = TestAzure
