"""Volcengine."""

from __future__ import annotations

import gzip
import json
import struct
from typing import Any, ClassVar

import pytest

from byzerllm.errors import (
    BadRequestError,
    ContextLengthError,
    ParameterError,
    ProviderProtocolError,
)
from byzerllm_saas.providers.volcengine import question_frame
from vendors.openai import spoken
from vendors.server import Garbage, Vendor
from vendors.speech import TEXT, SpeechConformance, SpeechTests, speech
from vendors.suite import Model
from vendors.volcengine import APP, VolcengineVendor


class TestVolcengine(SpeechTests):
    vendor_class = VolcengineVendor
    provider = "volcengine"
    voice = "BV705_streaming"

    def params(self, vendor: Vendor) -> dict[str, Any]:
        return {**super().params(vendor), "saas.app_id": APP}

    def test_frame(self) -> None:
        """Byte by byte, as the vendor's pages draw it."""
        frame = question_frame({"a": 1})
        assert frame[:4] == bytes([0b0001_0001, 0b0001_0000, 0b0001_0001, 0])
        assert struct.unpack(">I", frame[4:8]) == (len(frame) - 8,)
        assert json.loads(gzip.decompress(frame[8:])) == {"a": 1}

    @pytest.mark.parametrize("stream", [False, True])
    def test_question(self, vendor: Vendor, model: Model, stream: bool) -> None:
        extra = {"emotion": "happy", "volume_ratio": 1.2, "silence_duration": 125}
        asked = speech(voice=self.voice, speed=1.5, format="opus", extra=extra, stream=stream)
        if stream:
            model.stream(asked)
        else:
            model.ask(asked)
        sent = vendor.asked[-1].json
        reqid = sent["request"].pop("reqid")
        assert len(reqid) == 36
        assert sent == {
            "app": {"appid": APP, "token": "access_token", "cluster": "volcano_tts"},
            "user": {"uid": "byzerllm"},
            "audio": {
                "voice_type": self.voice,
                "encoding": "ogg_opus",
                "speed_ratio": 1.5,
                "emotion": "happy",
                "volume_ratio": 1.2,
            },
            "request": {
                "text": TEXT,
                "text_type": "plain",
                "operation": "submit" if stream else "query",
                "silence_duration": 125,
            },
        }
        assert vendor.asked[-1].headers["authorization"] == f"Bearer;{vendor.key}"

    def test_a_number_for_each_request(self, vendor: Vendor, model: Model) -> None:
        for stream in (False, True) * 3:
            assert self.ask(model, stream) == spoken(TEXT)
        assert isinstance(vendor, VolcengineVendor)
        assert len(vendor.reqids) == 6

    def test_compressed_sound(self, vendor: Vendor, model: Model) -> None:
        assert isinstance(vendor, VolcengineVendor)
        vendor.compresses = True
        assert self.ask(model, True) == spoken(TEXT)

    def test_one_frame(self, vendor: Vendor, model: Model) -> None:
        (only,) = model.stream(speech("a", stream=True))
        assert (only.audio, only.finish_reason) == (spoken("a"), "stop")

    @pytest.mark.parametrize("stream", [False, True])
    def test_texts_and_voices(self, vendor: Vendor, model: Model, stream: bool) -> None:
        for error, asked in (
            (ContextLengthError, speech("long " * 300, stream=stream)),
            (BadRequestError, speech("?!", stream=stream)),
            (BadRequestError, speech(voice="nobody", stream=stream)),
        ):
            with pytest.raises(error, match="code 30"):
                model.stream(asked) if stream else model.ask(asked)
        vendor.complaints.clear()

    def test_wav_is_not_streamed(self, model: Model) -> None:
        assert model.ask(speech(format="wav")).audio == spoken(TEXT)
        with pytest.raises(ParameterError, match="wav cannot be streamed"):
            model.stream(speech(format="wav", stream=True))

    def test_garbage_as_the_first_frame(self, vendor: Vendor, model: Model) -> None:
        vendor.faults(Garbage())
        with pytest.raises(ProviderProtocolError, match="frame"):
            self.ask(model, True)

    def test_application_is_needed(self, vendor: Vendor) -> None:
        params = {k: v for k, v in self.params(vendor).items() if k != "saas.app_id"}
        with pytest.raises(ParameterError, match=r"app_id.*is needed"):
            Model("volcengine", params)
        model = Model("volcengine", {**params, "saas.app_id": int(APP)})
        assert self.ask(model, False) == spoken(TEXT)
        model.close()


class TestConformance(SpeechConformance):
    tests: ClassVar = TestVolcengine
