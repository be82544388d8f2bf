"""Qwen's vision models at DashScope."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, ClassVar

import pytest

from byzerllm.errors import CapabilityError, HostedModelNotFoundError, ParameterError
from byzerllm_saas.providers import qianwen_vl
from vendors.dashscope import DashScopeTests
from vendors.qianwen_vl import QianwenVLVendor
from vendors.server import NUMBERS, Vendor
from vendors.suite import PNG, Model, VendorConformance

DATA_URL = f"data:image/png;base64,{PNG}"


def about(url: str) -> list[dict[str, Any]]:
    """Messages with an image."""
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "user", "content": parts}]


class TestQianwenVL(DashScopeTests):
    vendor_class = QianwenVLVendor
    provider = "qianwen_vl"
    has: ClassVar = frozenset(
        {
            "check",
            "image_urls",
            "images",
            "max_tokens",
            "reasoning",
            "retry_after",
            "stop",
            "stream",
            "usage",
        }
    )

    def test_parts_on_the_wire(self, vendor: Vendor, model: Model) -> None:
        model.chat(messages=[{"role": "system", "content": "Be short."}, *about(DATA_URL)])
        system, user = vendor.asked[-1].json["input"]["messages"]
        assert system == {"role": "system", "content": [{"text": "Be short."}]}
        assert user["content"] == [{"text": "what is it?"}, {"image": DATA_URL}]

    def test_video(self, vendor: Vendor, model: Model) -> None:
        url = "https://videos.test/a.mp4"
        part = {"type": "video_url", "video_url": {"url": url}}
        assert model.chat(messages=[{"role": "user", "content": [part]}]).text == NUMBERS
        (message,) = vendor.asked[-1].json["input"]["messages"]
        assert message["content"] == [{"video": url}]

    def test_large_images_go_through_the_store(
        self, vendor: QianwenVLVendor, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qianwen_vl, "LARGEST_DATA", 50)
        vendor.answers("a white pixel")
        assert model.chat(messages=about(DATA_URL)).text == "a white pixel"
        ((place, data),) = vendor.stored.items()
        assert data == base64.b64decode(PNG)
        sent = vendor.asked[-1].json["input"]["messages"][0]["content"]
        assert sent == [{"text": "what is it?"}, {"image": f"oss://{place}"}]
        assert model.chat(messages=about(f"oss://{place}")).text == NUMBERS

    def test_image_that_is_none(self, vendor: Vendor, model: Model) -> None:
        before = len(vendor.asked)
        text = base64.b64encode(b"no image at all").decode()
        for url in (f"data:text/plain;base64,{text}", "data:image/png;base64,???", "file:///a.png"):
            with pytest.raises(ParameterError, match="image"):
                model.chat(messages=about(url))
        assert len(vendor.asked) == before

    def test_sound_is_refused(self, model: Model) -> None:
        part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
        with pytest.raises(CapabilityError, match=r"messages\[0\].*'input_audio'"):
            model.chat(messages=[{"role": "user", "content": [part]}])

    def test_text_model_has_another_address(self, vendor: Vendor) -> None:
        with (
            pytest.raises(ParameterError, match=r"qwen-max.*deploy it as saas/qianwen"),
            self.other(vendor, "qwen-max"),
        ):
            pass
        assert vendor.asked == []

    def test_url_error(self, vendor: Vendor) -> None:
        """A text model whose name does not say so."""
        with (
            self.other(vendor, "other-text-model") as model,
            pytest.raises(HostedModelNotFoundError, match="url error"),
        ):
            model.chat()
        vendor.complaints.clear()

    # The server is DashScope as far as its own SDK can tell.

    def test_sdk(self, vendor: QianwenVLVendor, sdk: Any, tmp_path: Path) -> None:
        path = tmp_path / "pixel.png"
        path.write_bytes(base64.b64decode(PNG))
        asked: Any = {"model": "qwen-vl-plus", "api_key": vendor.key}
        for image in ("https://images.test/a.png", f"file://{path}"):
            parts = [{"image": image}, {"text": "Count!"}]
            messages = [{"role": "user", "content": parts}]
            whole = sdk.MultiModalConversation.call(**asked, messages=messages)
            assert whole.output.choices[0].message.content == [{"text": NUMBERS}]
            pieces = sdk.MultiModalConversation.call(
                **asked, messages=messages, stream=True, incremental_output=True
            )
            contents = [piece.output.choices[0].message.content for piece in pieces]
            assert "".join(part["text"] for content in contents for part in content) == NUMBERS
        assert list(vendor.stored.values()) == [path.read_bytes()] * 2


class TestConformance(VendorConformance):
    tests = TestQianwenVL
